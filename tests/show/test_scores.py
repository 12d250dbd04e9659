"""The score explorer: every number is Python's in every state, by keyboard, on a phone, and without scripts."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from attncourse import show
from attncourse.show.html import to_json

KEYS = torch.tensor([[1.6, 0.2], [0.3, 1.2], [-1.0, 0.9], [-0.9, -0.8], [0.5, -1.3]])
SWAP = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
V = torch.tensor([1.0, 1.0])
FUNCTIONS = {
    "dot": lambda q, k: q @ k.T,
    "general": lambda q, k: q @ SWAP @ k.T,
    "concat": lambda q, k: torch.tanh(q[:, None] + k) @ V,
}
LENGTHS = TEMPERATURES = (0.5, 1, 2)
EVIL = "</script><b onclick=x>&\"'"
AXE = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"


def example(**changes) -> show.Output:
    return show.scores(**({"keys": KEYS, "score_functions": FUNCTIONS} | changes))


def true_state(name: str, degree: float, length: float, temperature: float) -> tuple[list[float], list[float]]:
    """Scores and weights of each key, computed here with plain numbers."""
    q = (length * math.cos(math.radians(degree)), length * math.sin(math.radians(degree)))
    scores = []
    for x, y in KEYS.tolist():
        if name == "dot":
            scores.append(q[0] * x + q[1] * y)
        elif name == "general":
            scores.append(q[1] * x + q[0] * y)
        else:
            scores.append(math.tanh(q[0] + x) + math.tanh(q[1] + y))
    powers = [math.exp(score / temperature) for score in scores]
    return scores, [power / sum(powers) for power in powers]


def states(data: dict):
    for s, record in enumerate(data["scores"]):
        for i, degree in enumerate(data["degrees"]):
            for n, length in enumerate(LENGTHS):
                for t, temperature in enumerate(TEMPERATURES):
                    yield (s, i, n, t), (record["name"], degree, length, temperature)


def test_every_state_is_computed_and_rounded():
    data = example().data
    for (s, i, n, t), state in states(data):
        scores, weights = true_state(*state)
        given = data["scores"][s]
        assert given["scores"][n][i] == pytest.approx(scores, abs=0.005 + 1e-6), state
        assert given["weights"][t][n][i] == pytest.approx(weights, abs=0.005 + 1e-6), state
        for value in given["scores"][n][i] + given["weights"][t][n][i]:
            assert value == round(value, 2) and str(value) != "-0.0"
    assert data["degrees"] == list(range(0, 360, 15)) and data["lengths"] == data["temperatures"] == ["0.5", "1", "2"]


def test_what_the_reader_is_to_find():
    """The facts behind the questions that stand before the piece in chapter 02."""
    dot, general, concat = (record for record in example().data["scores"])
    favourites = [
        {row.index(max(row)) for rows in record["scores"] for row in rows} for record in (dot, general, concat)
    ]
    assert favourites == [{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, {0, 1}]  # k₃, k₄, k₅ lie below and left of another key
    agree = [i for i in range(24) if all(dot["scores"][n][i] == general["scores"][n][i] for n in range(3))]
    assert [15 * i for i in agree] == [45, 225]
    longer = [record["weights"][1][2][2] for record in (dot, general, concat)]
    cooler = [record["weights"][0][1][2] for record in (dot, general, concat)]
    assert [max(weights) for weights in longer] == [0.74, 0.54, 0.31]
    assert [max(weights) for weights in cooler] == [0.74, 0.54, 0.52]
    assert [record["weights"][0][1] == record["weights"][1][2] for record in (dot, general, concat)] == [
        True,
        True,
        False,
    ]


def test_the_page_stays_small():
    assert len(to_json(example().data)) <= 30_000
    assert len(example().html) <= 50_000


def test_starts_at_one_or_in_the_middle():
    assert example().data["start"] == {"score": 0, "angle": 2, "length": 1, "temperature": 1}
    changed = example(lengths=(2, 3, 4), temperatures=(1,), angles=8, start_angle=315).data["start"]
    assert changed == {"score": 0, "angle": 7, "length": 1, "temperature": 0}


def test_text_form_and_static_table():
    output = example(key_labels=["one", "two", "three", "four", "five"])
    assert "dot, query at 30°, length 1, temperature 1: largest weight 0.52 on one." in repr(output)
    assert "Largest with the same query: general 0.41 on two; concat 0.39 on two." in repr(output)
    static = re.search(r"<details>.*</details>", output.html, re.DOTALL)[0]
    assert static.count('<th scope="row">') == 3 * (4 + 3)  # four directions, three lengths
    assert '<th scope="row">general, 90°, length 1</th><td>0.57 (1.60)</td>' in static
    assert repr(example(score_functions={"dot": FUNCTIONS["dot"]})).count("Largest with") == 0


def test_ties_name_every_key():
    equal = example(score_functions={"none": lambda q, k: torch.zeros(len(q), len(k))})
    assert "largest weight 0.20 on k₁ and k₂ and k₃ and k₄ and k₅." in repr(equal)


def test_deterministic_without_ids_and_escaped():
    output = example(key_labels=[EVIL, *"bcde"], score_functions={EVIL: FUNCTIONS["dot"]}, title=EVIL)
    page = output.html
    assert EVIL not in page and "<b onclick" not in page and page.count("</script>") == 2
    assert json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1]) == output.data
    assert example().html == example().html
    assert " id=" not in re.sub(r"<script>.*", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keys": torch.zeros(3, 4)}, r"keys have shape \(3, 4\)"),
        ({"keys": []}, "keys have shape"),
        ({"key_labels": ["a"]}, "must be 5 texts"),
        ({"score_functions": {}}, "at least one"),
        ({"score_functions": {"mine": lambda q, k: q @ q.T}}, r"mine: 216 queries and 5 keys .* have \(216, 216\)"),
        ({"score_functions": {"mine": lambda q, k: 1}}, "mine: .* not int"),
        ({"score_functions": {"mine": lambda q, k: q @ k.T / 0}}, "mine: not every score is finite"),
        ({"angles": 7}, "angles=7 must divide 360"),
        ({"start_angle": 31}, "start_angle=31"),
        ({"lengths": (1, 1)}, "lengths="),
        ({"temperatures": (0, 1)}, "temperatures="),
        ({"caption": " "}, "caption="),
    ],
)
def test_says_what_does_not_fit(changes, message):
    if "216" in message:
        changes = changes | {"angles": 72}
    with pytest.raises(ValueError, match=message):
        example(**changes)


def test_half_precision_and_gradients_are_the_callers_affair():
    weight = torch.eye(2, requires_grad=True)
    output = show.scores(KEYS.double(), {"general": lambda q, k: q @ weight.double() @ k.T})
    assert output.data["scores"][0] == example().data["scores"][0] | {"name": "general"}


READ = """(root) => ({
  rows: [...root.querySelectorAll(".ac-now tbody tr")].map(row => [row.children[1].textContent,
    row.lastChild.lastChild.textContent, parseFloat(row.querySelector(".ac-share span").style.width)]),
  halos: [...root.querySelectorAll(".ac-halo")].map(halo => +halo.getAttribute("stroke-width")),
  turn: root.querySelector(".ac-query").getAttribute("transform"),
  tip: root.querySelector(".ac-query").lastChild.getAttribute("transform"),
  label: ["x", "y"].map(name => +root.querySelector(".ac-query + text").getAttribute(name)),
  said: root.querySelector(".ac-slider span").textContent,
  spoken: root.querySelector("input[type=range]").getAttribute("aria-valuetext"),
  status: root.querySelector("[role=status]").textContent,
  others: root.querySelector(".ac-others").textContent,
})"""

# Every state of the piece, by its own controls.
SWEEP = f"""(root) => {{
  const read = {READ};
  const groups = [...root.querySelectorAll("fieldset")].map(group => [...group.querySelectorAll("input")]);
  const slider = root.querySelector("input[type=range]");
  const seen = [];
  for (const score of groups[0]) {{
    score.click();
    for (let i = 0; i <= +slider.max; i++) {{
      slider.value = i;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
      for (const length of groups[1]) {{
        length.click();
        for (const temperature of groups[2]) {{
          temperature.click();
          seen.push(read(root));
        }}
      }}
    }}
  }}
  return seen;
}}"""


def text(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def largest(labels: list[str], weights: list[float]) -> str:
    return (
        f"{text(max(weights))} on {' and '.join(k for k, w in zip(labels, weights, strict=True) if w == max(weights))}"
    )


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    output = example()
    data, labels = output.data, output.data["keys"]
    pages = open_page(output.html).locator(".ac-scores").evaluate(SWEEP)
    assert len(pages) == 3 * 24 * 3 * 3
    for page, ((s, i, n, t), (name, degree, length, temperature)) in zip(pages, states(data), strict=True):
        scores = data["scores"][s]["scores"][n][i]
        weights = data["scores"][s]["weights"][t][n][i]
        assert [row[:2] for row in page["rows"]] == [[text(a), text(b)] for a, b in zip(scores, weights, strict=True)]
        assert [row[2] for row in page["rows"]] == pytest.approx([100 * w for w in weights], abs=1e-3)
        assert page["halos"] == pytest.approx([24 * w for w in weights], abs=1e-6)
        tip = length * data["unit"]
        assert page["turn"] == f"rotate({-degree})" and page["said"] == page["spoken"] == f"{degree}°"
        assert float(page["tip"][10:-1]) == pytest.approx(tip)
        angle = math.radians(degree)
        where = [(tip + 12) * math.cos(angle), 4.5 - (tip + 12) * math.sin(angle)]
        assert page["label"] == pytest.approx(where, abs=1e-6)
        query = f"{name}, query at {degree}°, length {length:g}, temperature {temperature:g}"
        assert page["status"] == f"{query}: largest weight {largest(labels, weights)}."
        others = [r for r in data["scores"] if r["name"] != name]
        said = "; ".join(f"{r['name']} {largest(labels, r['weights'][t][n][i])}" for r in others)
        assert page["others"] == f"Largest with the same query: {said}."


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    """With and without scripts, the page says and draws the same at first."""
    live, still = (open_page(example().html, java_script_enabled=on) for on in (True, False))
    for selector in (".ac-now", ".ac-live", ".ac-others"):
        assert live.locator(selector).inner_text() == still.locator(selector).inner_text()
    markup = [page.locator(".ac-plane").inner_html() for page in (live, still)]
    numbers = [[float(x) for x in re.findall(r"-?\d+\.?\d*", re.sub(r"#\w+|</?\w+", "", text))] for text in markup]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.06)


# Of the control that has the focus; a chip's radio button is invisible, and its text carries the outline.
OUTLINE = """() => {
  const node = document.activeElement;
  return getComputedStyle(node.type === "range" ? node : node.nextSibling).outlineStyle;
}"""


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "ArrowRight"], "general, query at 30°, length 1, temperature 1:"),
        (["End"], "concat, query at 30°"),
        (["Tab", "ArrowRight", "ArrowUp"], "concat, query at 60°"),
        (["ArrowLeft"], "concat, query at 45°"),
        (["End"], "concat, query at 345°"),
        (["Home"], "concat, query at 0°"),
        (["Tab", "ArrowRight"], "concat, query at 0°, length 2"),
        (["Tab", "Home"], "concat, query at 0°, length 2, temperature 0.5:"),
        (["Shift+Tab", "Shift+Tab", "PageUp"], "concat, query at "),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
        assert page.evaluate(OUTLINE) == "solid"
    assert page.get_by_role("slider", name="Direction of q").count() == 1
    assert page.get_by_role("group", name="Temperature").get_by_role("radio", name="0.5").is_checked()


@pytest.mark.browser
def test_a_click_turns_the_query(open_page):
    page = open_page(example().html)
    box = page.locator(".ac-plane").bounding_box()
    for degree in (0, 90, 195, 345):
        x = box["width"] * (0.5 + 0.3 * math.cos(math.radians(degree + 5)))
        y = box["height"] * (0.5 - 0.3 * math.sin(math.radians(degree + 5)))
        page.locator(".ac-plane").click(position={"x": x, "y": y})
        assert f"query at {degree}°," in page.locator("[role=status]").inner_text()
        assert page.locator(".ac-slider span").inner_text() == f"{degree}°"


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390])
def test_fits_a_phone_with_large_targets(open_page, width):
    page = open_page(example().html, viewport={"width": width, "height": 800})
    for length in ("0.5", "2"):
        page.get_by_role("group", name="Length").get_by_role("radio", name=length).check(force=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    overflow = page.locator(".ac-now .ac-scroll").evaluate("node => node.scrollWidth - node.clientWidth")
    assert overflow == 0
    sizes = page.locator(".ac-chips label, summary, input[type=range]").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert len(sizes) == 11 and min(sizes) >= 24


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = example(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-plane").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    said = page.locator("main").inner_text()
    for part in ("largest weight 0.52 on k₁", "k₅ (0.5, −1.3)", "concat, 30°, length 2", "Notice <this>."):
        assert part in said, part


@pytest.mark.browser
def test_two_on_a_page_do_not_meet(open_page):
    one = show.scores(KEYS[:2], {"dot": FUNCTIONS["dot"]}, lengths=(1,), temperatures=(1,))
    page = open_page(one.html + example().html)
    small, large = page.locator(".ac-scores").all()
    assert small.locator("fieldset").count() == 0 and small.locator("input[type=range]").count() == 1
    assert small.locator(".ac-others").inner_text() == ""
    small.locator("input[type=range]").press("Home")
    large.get_by_role("radio", name="concat").check(force=True)
    assert "dot, query at 0°" in small.locator("[role=status]").inner_text()
    assert "concat, query at 30°" in large.locator("[role=status]").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page, theme):
    second = example(title="Another")  # two of them, because names of regions must differ
    page = open_page(example().html + second.html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for width in (900, 320):
        page.set_viewport_size({"width": width, "height": 800})
        found = page.evaluate("() => axe.run('.ac')")
        assert [rule["id"] for rule in found["violations"]] == []
        assert len(found["passes"]) > 10
