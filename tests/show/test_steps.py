"""The stepper: every number and sentence is Python's at every step, by keyboard, on a phone, and without scripts."""

import json
import re
from pathlib import Path

import pytest
import torch

from attncourse import show
from attncourse.show.html import to_json, two_decimals
from attncourse.show.steps import MATRICES, STEPS

AXE = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"
EVIL = "</script><b onclick=x>&\"'"
REVEALED = {0: 1, 1: 4, 2: 5, 3: 6, 4: 7, 5: 8}  # matrices seen at each step


def trace(scale: float = 2**-0.5, T: int = 4) -> dict[str, torch.Tensor]:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])[:T]
    query, key = x @ torch.tensor([[0.0, -1.0], [1.0, 0.0]]), x @ torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    value = x @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    scores = query @ key.T
    weights = (scale * scores).softmax(-1)
    made = {"x": x, "query": query, "key": key, "value": value, "scores": scores, "scaled": scale * scores}
    return made | {"weights": weights, "output": weights @ value}


def example(**options) -> show.Output:
    return show.steps({"divided by √2": trace(), "not divided": trace(1.0)}, **options)


def as_shown(value: float) -> str:
    return two_decimals(value).replace("-", "−")


def test_numbers_are_rounded_here_and_whole_ones_stay_whole():
    data = example().data
    for run, scale in zip(data["runs"], (2**-0.5, 1.0), strict=True):
        for (name, tensor), cells in zip(trace(scale).items(), run["cells"], strict=True):
            whole = bool((tensor == tensor.round()).all())
            texts = [[str(int(v)).replace("-", "−") if whole else as_shown(v) for v in row] for row in tensor.tolist()]
            assert cells == texts, name
    assert data["runs"][0]["cells"][3][0] == ["1", "1"] and data["runs"][0]["cells"][4][0] == ["−1", "−1", "−2", "1"]


def test_sentences_say_what_the_matrices_hold():
    divided, not_divided = (run["said"] for run in example().data["runs"])
    assert divided[0][3] == "Step 1 of 6, X. x₄ = (−1, 0). One sequence comes in, and nothing else."
    assert divided[2][0].endswith("x₁ asks every token, itself too: q₁·k₁ = −1, q₁·k₂ = −1, q₁·k₃ = −2, q₁·k₄ = 1.")
    assert divided[3][0].endswith("Scores of x₁: (−1, −1, −2, 1) become (−0.71, −0.71, −1.41, 0.71).")
    assert not_divided[3][0].endswith("Scores of x₁: (−1, −1, −2, 1) stay as they are.")
    assert divided[4][1].endswith("Most, 0.37, goes to x₁ and x₃.")
    assert divided[5][0].endswith("0.15 v₁ + 0.15 v₂ + 0.07 v₃ + 0.62 v₄ = (−0.17, −0.62).")


def test_static_form_has_every_matrix_and_every_step_of_every_token():
    output = example(caption="See <this>.")
    static = re.sub(r"<script.*", "", output.html, flags=re.DOTALL)
    assert static.count("<table>") == len(MATRICES) and not re.search(r"<div[^>]* hidden", static)
    words = re.search(r"<details>.*</details>", static, re.DOTALL)[0]
    assert words.count("<li>") == 4 * 6 + 4 * 3  # a second trace differs from the division on
    assert "do not explain a decision" in static and "See &lt;this&gt;." in static
    assert "weights\n" in output.text and "Step 6 of 6, output. x₄ receives" in output.text


def test_small_deterministic_escaped_and_without_ids():
    output = show.steps({EVIL: trace(), "b": trace(1.0)}, title=EVIL, caption=EVIL)
    page = output.html
    assert EVIL not in page and "<b onclick" not in page and page.count("</script>") == 2
    assert json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1]) == output.data
    assert example().html == example().html and " id=" not in re.sub(r"<script>.*", "", page, flags=re.DOTALL)
    assert len(to_json(example().data)) <= 10_000 and len(example().html) <= 40_000


def test_a_trace_of_one_token():
    said = show.steps({"one": trace(T=1)}).data["runs"][0]["said"]
    assert said[5][0] == "Step 6 of 6, output. x₁ receives 1 v₁ = (1, 1)."


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"query": None}, "mine: the trace lacks query"),
        ({"weights": torch.zeros(4, 3)}, r"weights has shape \(4, 3\); it must be \(4, 4\)"),
        ({"value": torch.zeros(4)}, r"value has shape \(4,\)"),
        ({"value": torch.zeros(3, 2)}, r"value has shape \(3, 2\); it must be \(4, 2\)"),
        ({"x": torch.zeros(4, 9)}, r"x has shape \(4, 9\).*at most 6"),
        ({"output": torch.full((4, 2), float("nan"))}, "output is not finite"),
    ],
)
def test_says_what_does_not_fit(changes, message):
    made = {name: tensor for name, tensor in (trace() | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        show.steps({"mine": made})


def test_traces_must_agree():
    with pytest.raises(ValueError, match="at least one"):
        show.steps({})
    with pytest.raises(ValueError, match="a, b differ in their shapes"):
        show.steps({"a": trace(), "b": trace(T=3)})


READ = """(root) => ({
  seen: [...root.querySelectorAll(".ac-mat")].filter(node => !node.hidden).length,
  cells: [...root.querySelectorAll(".ac-mat")].map(mat => [...mat.querySelectorAll("tbody tr")].map(
    row => [...row.querySelectorAll("td")].map(cell => cell.textContent))),
  framed: [...root.querySelectorAll(".ac-mat")].map(mat => mat.classList.contains("ac-on")),
  marked: [...root.querySelectorAll(".ac-mat:not([hidden]) tr.ac-on > th")].map(node => node.textContent),
  status: root.querySelector("[role=status]").textContent,
})"""


@pytest.mark.browser
def test_every_number_and_sentence_is_pythons(open_page):
    data = example().data
    root = open_page(example().html).locator(".ac-steps")
    steps, tokens, runs = (root.locator("fieldset").nth(n).locator("input") for n in range(3))
    for r, run in enumerate(data["runs"]):
        runs.nth(r).check(force=True)
        for i in range(4):
            tokens.nth(i).check(force=True)
            for step in range(len(STEPS)):
                steps.nth(step).check(force=True)
                page = root.evaluate(READ)
                assert page["cells"] == run["cells"]
                assert page["status"] == run["said"][step][i]
                assert page["seen"] == REVEALED[step]
                assert page["framed"] == [at == step for at in data["at"]]
                marks = sum(at == step or (at < step and own) for at, own in zip(data["at"], data["own"], strict=True))
                assert page["marked"] == [data["tokens"][i]] * marks


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "ArrowRight"], "Step 2 of 6, Q, K, V. q₁"),
        (["End"], "Step 6 of 6, output. x₁"),
        (["ArrowLeft"], "Step 5 of 6, softmax. x₁"),
        (["Tab", "Enter", "Enter"], "Step 3 of 6"),  # back
        (["Tab", "Space", "Space", "Space", "Space"], "Step 6 of 6"),  # next, and no further
        (["Tab", "ArrowRight"], "Step 6 of 6, output. x₂"),
        (["Tab", "ArrowRight"], "x₂ receives 0.40 v₁ + 0.15 v₂"),
        (["Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Home"], "Step 1 of 6, X. x₂ ="),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390])
def test_fits_a_phone_with_large_targets(open_page, width):
    page = open_page(example().html, viewport={"width": width, "height": 800})
    page.get_by_role("radio", name="output").check(force=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    overflow = page.locator(".ac-scroll").evaluate("node => node.scrollWidth - node.clientWidth")
    assert overflow == 0
    sizes = page.locator(".ac-chips label, summary, button").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert len(sizes) == 6 + 4 + 2 + 1 + 2 and min(sizes) >= 24


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(example().html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-mat:visible").count() == len(MATRICES)
    assert page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    said = page.locator("main").inner_text()
    for part in ("x₄ receives", "itself too", "not divided", "stay as they are", "into the softmax"):
        assert part in said, part


@pytest.mark.browser
def test_two_on_a_page_do_not_meet(open_page):
    page = open_page(show.steps({"one": trace()}).html + example().html)
    small, large = page.locator(".ac-steps").all()
    assert small.locator("fieldset").count() == 2  # one trace: nothing to choose
    small.get_by_role("button", name="Next").click()
    assert "Step 2 of 6" in small.locator("[role=status]").inner_text()
    assert "Step 1 of 6" in large.locator("[role=status]").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    for root in page.locator(".ac-steps").all():
        root.get_by_role("radio", name="output").check(force=True)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for width in (900, 320):
        page.set_viewport_size({"width": width, "height": 800})
        found = page.evaluate("() => axe.run('.ac')")
        assert [rule["id"] for rule in found["violations"]] == []
        assert len(found["passes"]) > 10
