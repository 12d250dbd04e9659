"""Decoding, call by call: the numbers are those of real calls, and the page says and draws them in every state."""

import pytest
import torch

from attncourse import show
from attncourse.masks import causal_mask
from tests.show.accessible import assert_accessible_and_fits

TRACES = {
    "without": [(0, end, 0) for end in range(3, 7)],
    "with": [(0, 3, 3), *((end - 1, end, end) for end in range(4, 7))],
    "in twos": [(0, 2, 2), (2, 3, 3), (3, 5, 5), (5, 6, 6)],
}


def example(**changes) -> show.Output:
    return show.decoding(TRACES, **({"start": (1, 2)} | changes))


def computed(way: str) -> list[torch.Tensor]:
    """How often each score (6, 6) has been computed after each call, from masks."""
    counts, times = [], torch.zeros(6, 6, dtype=torch.long)
    for first, end, _ in TRACES[way]:
        times = times.clone()
        times[first:end, :end] += causal_mask(end - first, end)
        counts.append(times)
    return counts


def said(way: str, call: int) -> str:
    first, end, kept = TRACES[way][call]
    times = computed(way)
    before = times[call - 1] if call else torch.zeros(6, 6, dtype=torch.long)
    now, far = (times[call] - before).sum().item(), times[call].sum().item()
    projected = sum(b - a for a, b, _ in TRACES[way][: call + 1])
    tokens = "1 token" if end - first == 1 else f"{end - first} tokens"
    return (
        f"{way}, call {call + 1} of 4: {tokens} projected, {now} scores. So far {projected} projected, {far} scores, "
        f"{far - (times[call] > 0).sum().item()} of them computed again. Stored: {kept} of {end} tokens."
    )


def test_numbers_are_those_of_the_masks():
    from attncourse.show.decoding import describe, paths

    data = example().data
    for way, name in enumerate(TRACES):
        for call, times in enumerate(computed(name)):
            before = computed(name)[call - 1] if call else torch.zeros(6, 6, dtype=torch.long)
            now = times > before
            drawn = paths(data, way, call)
            squares = {kind: drawn[kind].count("M") for kind in drawn}
            assert squares == {
                "old": ((times > 0) & ~now).sum().item(),
                "now": now.sum().item(),
                "again": (now & (before > 0)).sum().item(),
                "kept": TRACES[name][call][2],
            }
            assert describe(data, way, call) == said(name, call)


def test_a_cache_computes_every_score_once():
    text = repr(example()).split("At the end")[1].splitlines()
    assert [line.split() for line in text[2:5]] == [
        ["without", "4", "18", "52", "31", "0"],
        ["with", "4", "6", "21", "0", "6"],
        ["in", "twos", "4", "6", "21", "0", "6"],
    ]


def test_what_does_not_fit_is_named():
    for traces, message in (
        ({}, "at least one way"),
        ({"mine": []}, "mine: there are no calls"),
        ({"mine": [(0, 3, 3), (4, 5, 5)]}, r"mine: the call \(4, 5, 5\) does not continue 3 tokens"),
        ({"mine": [(0, 3, 4)]}, r"the call \(0, 3, 4\)"),
        ({"a": [(0, 3, 3)], "b": [(0, 4, 4)]}, r"end with \[3, 4\] tokens"),
        ({"a": [(0, 25, 0)]}, "at most 24"),
    ):
        with pytest.raises(ValueError, match=message):
            show.decoding(traces)
    with pytest.raises(ValueError, match=r"start=\(1, 4\)"):
        example(start=(1, 4))


def test_it_is_small():
    assert len(example().html) < 25_000 and example().html == example().html


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  paths: Object.fromEntries(["old", "now", "again", "kept"].map(
    name => [name, root.querySelector(`.ac-${name}`).getAttribute("d")])),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const seen = [];
  root.querySelectorAll("fieldset input").forEach((way, n) => {{
    way.click();
    const slider = root.querySelectorAll("input[type=range]")[n];
    for (let call = 0; call <= +slider.max; call++) {{
      slider.value = call;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
      seen.push(read(root));
    }}
  }});
  return seen;
}}"""


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    from attncourse.show.decoding import paths

    output = example()
    pages = iter(open_page(output.html).locator(".ac-decoding").evaluate(SWEEP))
    for way, name in enumerate(TRACES):
        for call in range(4):
            page = next(pages)
            assert page["status"] == said(name, call)
            assert page["paths"] == paths(output.data, way, call)
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (open_page(example().html, java_script_enabled=on).locator(".ac-decoding") for on in (True, False))
    assert live.locator(".ac-live").inner_text() == still.locator(".ac-live").inner_text() == said("with", 2)
    for name in ("old", "now", "again", "kept"):
        one, two = (root.locator(f".ac-{name}").get_attribute("d") for root in (live, still))
        assert one == two


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "Tab", "Home"], said("with", 0)),
        (["ArrowRight"], said("with", 1)),
        (["Shift+Tab", "End"], said("in twos", 2)),  # the first call that has read as many tokens
        (["Home"], said("without", 2)),
        (["Tab", "End"], said("without", 3)),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert status.inner_text() == expected
    assert page.get_by_role("slider").count() == 1


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(
        example(caption="Notice <this>.").html, java_script_enabled=False, viewport={"width": 320, "height": 800}
    )
    assert page.locator(".ac-calls").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for part in (said("with", 2), "computed again", "in twos", "Notice <this>."):
        assert part in text, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    assert_accessible_and_fits(page, ".ac-chips label, summary, input[type=range]:visible")
