"""The mask lab: every mask in the page against the functions that made it, its counts, and the page in Chromium."""

from itertools import product

import pytest
import torch

from attncourse import masks, show
from attncourse.lab.masks import patterns
from attncourse.show.html import to_json, two_decimals
from attncourse.show.masks import layers_until, squares, unpack
from tests.show.accessible import assert_accessible_and_fits

EVIL = "</script><b>"
CHAPTERS = {
    "08": ("causal", "window", "sinks + window", "blocks", "top-k"),
    "09": ("window", "strided + local", "fixed", "dilated", "global + window", "random blocks", "top-k"),
}
T = 7
NEVER, SELFLESS = torch.eye(T, dtype=torch.bool), masks.causal_mask(T) & ~torch.eye(T, dtype=torch.bool)


def small(**options) -> show.Output:
    """Causal and not, none, one and two parameters, a pair that is never reached, and queries blind to themselves."""
    made = {
        "window": (lambda w: masks.sliding_window_mask(T, window=w), {"W": [1, 2, 3]}, f"The last W. {EVIL}"),
        "both ways": (
            lambda w, n: masks.combine(
                masks.sliding_window_mask(T, window=w, causal=False), masks.global_mask(T, global_tokens=range(n))
            ),
            {"W": [2, 3, 4], "global": [0, 1]},
        ),
        "never": NEVER,
        "any": torch.rand(T, T, generator=torch.Generator().manual_seed(0)) < 0.3,  # not causal, not symmetric
        EVIL: SELFLESS,
    }
    return show.masks(made, **({"values": {"W": 3}, "n_layers": 4} | options))


def by_search(mask: torch.Tensor) -> list[list[int]]:
    """Layers until each query can depend on each token, by breadth-first search from every query."""
    rows, seen = [], mask.tolist()
    for i in range(len(seen)):
        layers, front = {i: 0}, [i]
        while front:
            following = []
            for at in front:
                for j, sees in enumerate(seen[at]):
                    if sees and j not in layers:
                        layers[j] = layers[at] + 1
                        following.append(j)
            front = following
        rows.append([1 if seen[i][j] else layers.get(j, -1) for j in range(len(seen))])
    return rows


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_mask_in_the_page_is_the_functions(chapter):
    given = patterns(*CHAPTERS[chapter])
    output = show.masks(given, values={"W": 4})
    assert [record["name"] for record in output.data["patterns"]] == list(given)
    for record, (make, parameters, note) in zip(output.data["patterns"], given.values(), strict=True):
        assert record["note"] == note
        assert [(label, choice) for label, choice, _ in record["parameters"]] == [
            (label, [str(value) for value in values]) for label, values in parameters.items()
        ]
        for packed, values in zip(record["masks"], product(*parameters.values()), strict=True):
            mask = make(*values)
            rows = torch.tensor(unpack(record, packed, 24))
            assert torch.equal(rows == 1, mask), (record["name"], values)
            assert packed[1:] == [mask.sum(), mask.sum(-1).max()]
            assert record["causal"] == (record["name"] != "global + window")
    assert len(to_json(output.data)) < 60_000 and len(output.html) < 85_000


@pytest.mark.parametrize("seed", range(6))
def test_layers_are_the_shortest_ways(seed):
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)) < 0.12 + 0.04 * seed
    assert layers_until(mask).tolist() == by_search(mask)
    causal = mask & masks.causal_mask(12)
    found = layers_until(causal).tolist()
    assert found == by_search(causal)
    for n in range(1, 5):  # reached within n layers: the n-th power of the mask with the residual connection
        power = torch.matrix_power((causal | torch.eye(12, dtype=torch.bool)).double(), n) > 0
        assert torch.equal(power | causal, torch.tensor([[0 <= d <= n for d in row] for row in found]))


def test_a_window_takes_as_many_layers_as_its_length_says():
    for window in range(2, 9):
        far = layers_until(masks.sliding_window_mask(24, window=window))[-1, 0]
        assert far == -(-23 // (window - 1))


def test_sentences():
    output = small(cell=(6, 0))
    assert "Query 6 does not see key 0, 6 back, but can depend on it after 3 layers." in output.html
    for part in (
        "window, W = 3\n",
        "Keys per query: 2.57 on average, 3 at most.",
        "Pairs: 18 of 28 causal ones, 64\u00a0%.",
        "The last token can depend on the first after 3 layers.",
        "In one layer the last token sees 3 of 7 tokens.",
        "····■■■",
        "A mask shows where information can flow",
    ):
        assert part in output.text, part
    assert "Query 0 does not see key 6, 6 ahead, and no causal layer does." in small(cell=(0, 6)).text
    assert (
        "Query 2 sees itself." in small(cell=(2, 2)).text and "Query 2 sees key 1, 1 back." in small(cell=(2, 1)).text
    )
    never = small(start="never", cell=(3, 1)).text
    assert "Query 3 does not see key 1, 2 back, and no number of layers changes that." in never
    assert "The last token can never depend on the first" in never
    own = small(start=EVIL, cell=(3, 3)).text
    assert "Query 3 does not see itself; the residual connection alone keeps it." in own
    assert "Pairs: 29 of 49, 59\u00a0%." in small(start="both ways").text


def test_table_has_every_pattern_at_its_start():
    text = small().text
    assert [line.split()[-4:] for line in text.splitlines() if line.startswith(("window, W = 3  ", "never  "))] == [
        ["3", "2.57", "18", "3"],
        ["never", "1.00", "7", "never"],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patterns": {}}, "at least one"),
        ({"patterns": {"a": torch.ones(T, T)}}, "torch.float32"),
        ({"patterns": {"a": [[True]]}}, "list"),
        ({"patterns": {"a": torch.ones(T, 3, dtype=torch.bool)}}, r"\(7, 3\)"),
        ({"patterns": {"a": torch.ones(37, 37, dtype=torch.bool)}}, "from 2 to 36"),
        ({"patterns": {"a": NEVER, "b": NEVER[:3, :3]}}, "different numbers of tokens"),
        ({"patterns": {"a": (lambda n: NEVER[:n, :n], {"n": [3, 4]})}}, "different numbers of tokens"),
        ({"patterns": {"a": (lambda: NEVER, {"n": []})}}, "one or two parameters"),
        ({"patterns": {"a": (lambda *_: NEVER, {key: [1] for key in "abc"})}}, "one or two parameters"),
        ({"start": "windows"}, "start='windows'"),
        ({"values": {"W": 9}}, "W=9"),
        ({"values": {"w": 3}}, "w=3"),
        ({"cell": (7, 0)}, "7 tokens"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"caption": " "}, "caption"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        if "patterns" in change:
            mine = change["patterns"]
            if "a" in mine and isinstance(mine["a"], list):
                mine = {"a": (lambda: [[True]], {})}
            show.masks(mine)
        else:
            small(**change)


READ = """(root) => ({
  said: root.querySelector("[role=status]").textContent,
  named: root.querySelector(".ac-now").textContent,
  facts: [...root.querySelectorAll(".ac-facts li")].map(node => node.textContent),
  paths: ["large", "small"].map(name => root.querySelector(`.ac-grid .ac-${name}`).getAttribute("d")),
  area: root.querySelector(".ac-area").getAttribute("d"),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const move = (slider, value) => {{
    slider.value = value;
    slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
  }};
  const press = (key) => root.querySelector(".ac-grid").dispatchEvent(new KeyboardEvent("keydown", {{ key }}));
  const seen = [];
  for (const radio of root.querySelectorAll("fieldset input")) {{
    radio.click();
    const sliders = [...root.querySelectorAll("input[type=range]")];
    const depth = sliders.pop();
    const walk = (rest) => {{
      if (rest.length) {{
        for (let n = 0; n <= +rest[0].max; n++) {{
          move(rest[0], n);
          walk(rest.slice(1));
        }}
        return;
      }}
      for (let n = 0; n <= +depth.max; n++) {{
        move(depth, n);
        const cells = [];
        for (let i = 0; i < {T}; i++) press("ArrowUp");
        for (let i = 0; i < {T}; i++) {{
          press("Home");
          for (let j = 0; j < {T}; j++) {{
            cells.push(root.querySelector("[role=status]").textContent);
            press("ArrowRight");
          }}
          press("ArrowDown");
        }}
        seen.push({{ ...read(root), cells }});
      }}
    }};
    walk(sliders);
  }}
  return seen;
}}"""


def sentence(n: int, i: int, j: int, causal: bool) -> str:
    where = "itself" if i == j else f"key {j}, {abs(i - j)} {'back' if i > j else 'ahead'}"
    if n == 1:
        return f"Query {i} sees {where}."
    rest = f", but can depend on it after {n} layers."
    if n == 0:
        rest = "; the residual connection alone keeps it."
    if n < 0:
        rest = f", and no {'causal layer does' if causal and j > i else 'number of layers changes that'}."
    return f"Query {i} does not see {where}{rest}"


@pytest.mark.browser
def test_every_state_of_the_page_is_pythons(open_page):
    output = small()
    pages = iter(open_page(output.html).locator(".ac-masks").evaluate(SWEEP))
    for record in output.data["patterns"]:
        choices = [[f"{label} = {value}" for value in values] for label, values, _ in record["parameters"]]
        for packed, chosen in zip(record["masks"], product(*choices), strict=True):
            rows = unpack(record, packed, T)
            mask, far, causal = torch.tensor(rows) == 1, rows[-1][0], record["causal"]
            for layers in range(1, 5):
                page = next(pages)
                assert page["named"] == ", ".join([record["name"], *chosen])
                assert page["paths"] == list(squares(rows, layers))
                assert page["area"] == output.data["areas"][causal]
                cells = [sentence(rows[i][j], i, j, causal) for i in range(T) for j in range(T)]
                assert page["cells"] == cells
                pairs, whole = int(mask.sum()), 28 if causal else 49
                first = f"The last token can depend on the first after {far} layers."
                if far in (1, -1):
                    first = "The last token " + (
                        "sees the first."
                        if far == 1
                        else "can never depend on the first, however many layers there are."
                    )
                count = sum(0 <= n <= layers for n in rows[-1]) if layers > 1 else int(mask[-1].sum())
                reach = f"After {layers} layers the last token can depend on {count} of 7 tokens."
                assert page["facts"] == [
                    record["note"],
                    f"Keys per query: {two_decimals(pairs / T)} on average, {int(mask.sum(-1).max())} at most.",
                    f"Pairs: {pairs} of {whole}{' causal ones' if causal else ''}, {100 * pairs / whole:.0f}\u00a0%.",
                    first,
                    reach if layers > 1 else f"In one layer the last token sees {count} of 7 tokens.",
                ]
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    for options in ({}, {"start": "both ways", "cell": (2, 5), "values": {"W": 4, "global": 1}}):
        output = small(**options)
        live, still = (open_page(output.html, java_script_enabled=on).locator(".ac-masks") for on in (True, False))
        for selector in (".ac-told", ".ac-of-query", ".ac-of-key", "figcaption"):
            assert live.locator(selector).text_content() == still.locator(selector).text_content()
        for selector, name in (
            (".ac-grid .ac-large", "d"),
            (".ac-grid .ac-small", "d"),
            (".ac-area", "d"),
            (".ac-of-query", "transform"),
            (".ac-of-key", "transform"),
            (".ac-chosen", "x"),
            (".ac-chosen", "y"),
        ):
            assert live.locator(selector).get_attribute(name) == still.locator(selector).get_attribute(name)


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(small().html)
    status, named = page.locator("[role=status]"), page.locator(".ac-now")
    for keys, expected in (
        (["Tab", "ArrowRight"], "both ways, W = 3, global = 0"),  # W stays from pattern to pattern
        (["Tab", "End"], "both ways, W = 4, global = 0"),
        (["Tab", "End"], "both ways, W = 4, global = 1"),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert named.inner_text() == expected
    for keys, expected in (
        (["Tab", "ArrowRight"], "After 2 layers"),
        (["End"], "After 4 layers"),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in page.locator(".ac-facts").inner_text()
    for keys, expected in (
        (["Tab", "ArrowUp", "ArrowRight"], "Query 5 does not see key 1, 4 back"),
        (["End"], "Query 5 sees key 6, 1 ahead."),
        (["ArrowRight", "ArrowDown", "ArrowDown"], "Query 6 sees itself."),
        (["Home"], "Query 6 sees key 0, 6 back."),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.get_by_role("application", name="Arrow keys choose a cell").count() == 1
    assert page.get_by_role("slider", name="Layers").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


@pytest.mark.browser
def test_the_mouse_looks_and_a_click_chooses(open_page):
    page = open_page(small().html)
    status = page.locator("[role=status]")
    box = page.locator(".ac-area").bounding_box()

    def place(i: int, j: int) -> tuple[float, float]:
        return box["x"] + (j + 0.5) * box["width"] / T, box["y"] + (i + 0.5) * box["height"] / T

    assert status.inner_text().startswith("Query 6 does not see key 0")
    page.mouse.move(*place(4, 2))
    assert status.inner_text() == "Query 4 sees key 2, 2 back."
    page.mouse.move(2, 2)
    assert status.inner_text().startswith("Query 6 does not see key 0")
    page.mouse.click(*place(2, 3))
    page.mouse.move(2, 2)
    assert status.inner_text() == "Query 2 does not see key 3, 1 ahead, and no causal layer does."


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = small(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-grid svg").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    said = page.locator("main").inner_text()
    for part in (f"The last W. {EVIL}", "after 3 layers", "both ways, W = 3, global = 0", "Notice <this>.", EVIL):
        assert part in said, part
    assert page.locator("[tabindex]").count() == 1  # the table, which scrolls


@pytest.mark.browser
def test_two_on_a_page_do_not_meet_and_one_pattern_needs_no_choice(open_page):
    page = open_page(small().html + show.masks({"mine": SELFLESS}, n_layers=1).html)
    one, two = page.locator(".ac-masks").all()
    before = two.inner_text()
    one.get_by_role("slider", name="W").press("Home")
    one.get_by_role("radio", name="never").check(force=True)
    assert two.inner_text() == before and "mine" in before
    assert two.get_by_role("radio").count() == 0 and two.get_by_role("slider").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    whole = show.masks(patterns(*CHAPTERS["09"]), title="Another").html
    page = open_page(small().html + whole, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    assert_accessible_and_fits(page, ".ac-chips label, summary, input[type=range]", widths=(900, 390, 320))
