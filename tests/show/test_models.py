"""Context against cache: every number is the calculator's, in every state, with and without scripts."""

from itertools import pairwise

import pytest

from attncourse import show
from attncourse.models import growth, kind, kv_cache_bytes, load_models
from attncourse.show.models import CARDS, describe, path
from tests.show.accessible import assert_accessible_and_fits

CHOSEN = ["Llama-2-7b-hf", "Gemma-3-27b-it", "DeepSeek-V3"]


def example(**changes) -> show.Output:
    return show.models(growth(), **({"start": CHOSEN} | changes))


def said(tokens: int, names: list[str | None]) -> list[str]:
    """What the page must say, from the calculator alone."""
    lines = [f"At {tokens:,} tokens:"]
    for letter, name in zip("ABCDEF", names, strict=False):
        if name:
            gib = kv_cache_bytes(name, tokens) / 2**30
            room = next((label for label, size in CARDS.items() if gib <= size), None)
            where = f"below the line of {room}" if room else "above every line"
            number = f"{gib:.3f}" if gib < 0.1 else f"{gib + 1e-9:,.2f}"  # ties go up, as a reader rounds
            lines.append(f"{letter} {name}, {kind(name)}: {number} GiB, {where}")
    return lines


def test_numbers_are_the_calculator_s():
    data = example().data
    tokens = growth()["tokens"]
    assert data["tokens"] == [f"{n:,}" for n in tokens] and tokens == [2**i for i in range(10, 21)]
    assert [model["name"] for model in data["models"]] == list(load_models())
    for i, model in enumerate(data["models"]):
        for k, n in enumerate(tokens):
            assert describe(data, k, [i]) == said(n, [model["name"]])


def test_heights_are_logarithms():
    data = example().data
    heights = {label: y for label, y in data["cards"]}
    assert heights["24 GB (RTX 4090)"] > heights["80 GB (H100)"] > heights["192 GB (B200)"]
    llama = data["models"][[model["name"] for model in data["models"]].index("Llama-2-7b-hf")]
    steps = [b - a for a, b in zip(llama["y"][1:], llama["y"], strict=False)]
    assert max(steps) - min(steps) < 0.21  # twice the tokens, twice the bytes: a straight line
    assert all(14 <= y <= 284 for model in data["models"] for y in model["y"])


def test_few_points_draw_a_line():
    data = example().data
    drawn = {model["name"]: path(data, i) for i, model in enumerate(data["models"])}
    assert drawn["Llama-2-7b-hf"].count("L") == 1 and 2 < drawn["Gemma-3-27b-it"].count("L") < 10
    for i, model in enumerate(data["models"]):
        knots = [tuple(map(float, point.split())) for point in path(data, i)[1:].split("L")]
        for x, y in zip(data["x"], model["y"], strict=True):
            (x0, y0), (x1, y1) = next(pair for pair in pairwise(knots) if pair[1][0] >= x)
            assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=0.25)


def test_what_does_not_fit_is_named():
    for changes, message in (
        ({"tokens": 1000}, "tokens=1000 is none of the contexts"),
        ({"start": []}, r"start=\[\] must be 1 to 6"),
        ({"start": ["Llama"]}, r"start=\['Llama'\]"),
        ({"start": CHOSEN[:1] * 2}, "start="),
        ({"title": " "}, "title=' '"),
    ):
        with pytest.raises(ValueError, match=message):
            example(**changes)
    with pytest.raises(ValueError, match="two or more rising"):
        show.models(growth(tokens=(2048, 1024)))
    with pytest.raises(ValueError, match=r"mine: bytes=\[1\], but there are 2 contexts"):
        show.models({"tokens": [1, 2], "models": [{"name": "mine", "kind": "MHA", "bytes": [1]}]})


def test_the_text_form_says_the_same():
    output = example()
    text = repr(output)
    assert "\n".join(said(131_072, CHOSEN)) in text
    table = text.split("All models")[1]
    assert all(name in table for name in load_models()) and "1,048,576" in table
    assert len(output.html) < 50_000


READ = """(root) => ({
  said: [...root.querySelectorAll(".ac-live p, .ac-live li")].map(node => node.textContent),
  lines: [...root.querySelectorAll(".ac-model")].map(node => [node.getAttribute("class"), node.getAttribute("d")]),
  here: root.querySelector(".ac-here").getAttribute("d"),
  badges: [...root.querySelectorAll(".ac-badge")].map(node => node.hasAttribute("hidden") ? null : [
    ...[...node.querySelectorAll("circle")].map(c => [+c.getAttribute("cx"), +c.getAttribute("cy")]),
    [+node.lastChild.getAttribute("x"), +node.lastChild.getAttribute("y")]]),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const slider = root.querySelector("input[type=range]");
  const boxes = [...root.querySelectorAll("input[type=checkbox]")];
  const seen = [];
  const move = (n) => {{
    slider.value = n;
    slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
  }};
  boxes.filter((box) => box.checked).forEach((box) => box.click());
  boxes.forEach((box) => {{
    box.click();
    for (let n = 0; n <= +slider.max; n++) {{
      move(n);
      seen.push(read(root));
    }}
    box.click();
  }});
  return seen;
}}"""


def expected(data: dict, tokens: int, chosen: list[int | None]) -> dict:
    """The page's state from Python's numbers."""
    slots = {index: slot for slot, index in enumerate(chosen) if index is not None}
    badges = []
    for slot, knot in enumerate(data["badges"]):
        index = chosen[slot] if slot < len(chosen) else None
        if index is None:
            badges.append(None)
            continue
        (x, y), model = (data["x"], data["models"][index]["y"]), data["models"][index]
        badges.append([[x[tokens], model["y"][tokens]], [x[knot], y[knot]], [x[knot], y[knot] + 4]])
    return {
        "said": describe(data, tokens, chosen),
        "lines": [
            [f"ac-model ac-slot-{slots[i]}" if i in slots else "ac-model", path(data, i)]
            for i in range(len(data["models"]))
        ],
        "here": f"M{data['x'][tokens]:g} 14v270",
        "badges": badges,
    }


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    output = example()
    pages = iter(open_page(output.html).locator(".ac-models").evaluate(SWEEP))
    for index in range(len(output.data["models"])):
        for tokens in range(len(output.data["tokens"])):
            page, wanted = next(pages), expected(output.data, tokens, [index])
            assert page.pop("badges")[1:] == wanted.pop("badges")[1:]
            assert page == wanted
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    output = example()
    start = output.data["start"]
    wanted = expected(output.data, start["tokens"], start["chosen"])
    for on in (True, False):
        page = open_page(output.html, java_script_enabled=on).locator(".ac-models")
        assert page.locator(".ac-live p, .ac-live li").all_text_contents() == wanted["said"] == said(131_072, CHOSEN)
        lines = page.locator(".ac-model").all()
        assert [[line.get_attribute("class"), line.get_attribute("d")] for line in lines] == wanted["lines"]
        assert page.locator(".ac-here").get_attribute("d") == wanted["here"]
        badges = page.locator(".ac-badge").all()
        for badge, places in zip(badges, wanted["badges"], strict=True):
            assert (badge.get_attribute("hidden") is not None) == (places is None)
            if places:
                circles = badge.locator("circle").all()
                found = [[float(circle.get_attribute(name)) for name in ("cx", "cy")] for circle in circles]
                assert found == places[:2]


@pytest.mark.browser
def test_keyboard_alone_chooses_at_most_six(open_page):
    page = open_page(example().html)
    lines = page.locator(".ac-live p, .ac-live li")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert lines.all_text_contents() == said(65_536, CHOSEN)
    page.keyboard.press("End")
    assert lines.first.inner_text() == "At 1,048,576 tokens:"
    page.keyboard.press("Tab")
    assert (
        page.evaluate("document.activeElement.textContent") == f"Choose models (3 of {len(load_models())}, at most 6)"
    )
    page.keyboard.press("Enter")
    boxes, names = page.locator("input[type=checkbox]"), list(load_models())
    for _ in range(3):  # the first three, which take the free letters
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
    assert lines.all_text_contents() == said(1_048_576, CHOSEN + names[:3])
    assert boxes.nth(3).is_disabled() and not boxes.nth(0).is_disabled()
    page.keyboard.press("Space")  # gives its letter back
    assert lines.all_text_contents() == said(1_048_576, CHOSEN + names[:2]) and not boxes.nth(3).is_disabled()
    page.get_by_label("Llama-2-7b-hf").uncheck()
    page.get_by_label("PaLM 540B").uncheck()
    page.get_by_label("Qwen3-8B").check()
    assert lines.all_text_contents() == said(1_048_576, ["Qwen3-8B", *CHOSEN[1:], names[0]])


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(
        example(caption="Notice <this>.").html, java_script_enabled=False, viewport={"width": 320, "height": 800}
    )
    assert page.locator(".ac-caches").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for part in ("10.41 GiB", "192 GB (B200)", "Kimi-K3", "Notice <this>."):
        assert part in text, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("details").evaluate_all("nodes => nodes.forEach(node => (node.open = true))")
    assert_accessible_and_fits(page, "input, summary", widths=(900, 390, 320))
