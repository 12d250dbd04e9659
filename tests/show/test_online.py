"""Online softmax, tile by tile: the numbers are the module's, and the page says and draws them in every state."""

import math
from functools import reduce
from itertools import product

import pytest
import torch
from torch import Tensor

from attncourse import show
from attncourse.attention import scaled_dot_product_attention
from attncourse.execution import Running, attend_part, finish, merge
from attncourse.show.online import EXAMPLE, RULES, VALUES, at_once, describe, largest, lines, paths, steps, text
from tests.show.accessible import assert_accessible_and_fits

SMALL = {"a": [0.5, 1, 3, -math.inf, 2, 4, 1], "b": [5, -100, 2, 1, 0, 0.25, 120]}
PAIRS = [[1, 2], [3, -1], [0, 5], [2, 2], [-3, 1], [1, 0.5], [2, -2]]


def small(**changes) -> show.Output:
    return show.online(SMALL, PAIRS, **({"tile": 2, "tile_sizes": (1, 2, 3, 7)} | changes))


def rows() -> list[tuple[Tensor, Tensor]]:
    """Scores (S,) and values (S, Dv) of all examples."""
    found = [(scores, torch.tensor(VALUES)[:, None]) for scores in EXAMPLE.values()]
    found += [(scores, torch.tensor(PAIRS)) for scores in SMALL.values()]
    return [(torch.tensor(scores).double(), values.double()) for scores, values in found]


def part(scores: Tensor, values: Tensor) -> Running:
    """The module's part of these keys: a query that has these scores."""
    allowed = scores > -math.inf
    query = scores.masked_fill(~allowed, 0.0)[None]
    return attend_part(query, torch.eye(len(scores)).double(), values, allowed, scale=1.0)


def test_numbers_are_those_of_the_module():
    for (scores, values), size in product(rows(), range(1, 13)):
        parts = [part(*pair) for pair in zip(scores.split(min(size, len(scores))), values.split(size), strict=False)]
        found = steps(scores, values, size, "rescale")
        assert len(found) == len(parts)
        for k, step in enumerate(found):
            running = reduce(merge, parts[: k + 1])
            assert step.maximum == running.maximum
            for one, two in ((step.total, running.total), (step.weighted, running.weighted[0])):
                torch.testing.assert_close(one, two.squeeze().float().reshape(one.shape), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(step.output.double(), finish(running)[0], rtol=1e-5, atol=1e-5)
            assert step.same


def test_all_at_once_is_attention():
    for scores, values in rows():
        for n in range(1, len(scores) + 1):
            allowed, keys = scores[:n] > -math.inf, torch.eye(n).double()
            query = scores[:n].masked_fill(~allowed, 0.0)[None]
            whole = scaled_dot_product_attention(query, keys, values[:n], allowed, scale=1.0)
            torch.testing.assert_close(at_once(scores[:n], values[:n]), whole[0])


def counted(scores: Tensor, size: int, end: int, rule: str) -> tuple[Tensor, Tensor]:
    """What each of the first `end` keys counts for: in the total, and in the weighted sum. In float64."""
    top = [scores[:n].max() for n in range(1, len(scores) + 1)]
    read = torch.stack([top[min((j // size + 1) * size, len(scores)) - 1] for j in range(end)])
    now, first = top[end - 1].expand(end), top[min(size, len(scores)) - 1].expand(end)
    with_total = {"forget to rescale": read, "keep the first maximum": first}.get(rule, now)
    with_sum = {"rescale the total only": read}.get(rule, with_total)
    return tuple((scores[:end] - m.nan_to_num(neginf=0.0)).exp() for m in (with_total, with_sum))


def test_each_rule_does_what_it_says():
    seen = set()
    for (scores, values), rule, size in product(rows(), RULES, (1, 2, 3, 5, 12)):
        for k, step in enumerate(steps(scores, values, size, rule)):
            end = min(size * (k + 1), len(scores))
            total, of_sum = counted(scores, size, end, rule)
            if total.sum() > 3e38:
                assert step.total == math.inf and not step.same
                continue
            torch.testing.assert_close(step.total.double(), total.sum(), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(step.weighted.double(), of_sum @ values[:end], rtol=1e-4, atol=1e-3)
            before = steps(scores, values, size, rule)[k - 1] if k else None
            if before:
                torch.testing.assert_close(step.total, before.total * step.factor + step.added)
                carried = before.weighted * step.factor_of_sum + step.added_sum
                torch.testing.assert_close(step.weighted, carried)
            seen.add((rule, step.same))
    assert seen == {(rule, same) for rule in RULES for same in (True, False)} - {("rescale", False)} - {
        ("keep the first maximum", False)  # where it is wrong, the total has overflown
    }


def test_what_the_chapter_tells():
    data = show.online().data
    last = {
        (query["name"], rule, size): query["traces"][r][n][-1]
        for query in data["queries"]
        for r, rule in enumerate(RULES)
        for n, size in enumerate(data["sizes"])
    }
    same = {place: step[-1] for place, step in last.items()}
    assert all(same[place] for place in same if place[0] == "largest first")  # nothing to rescale after the first tile
    assert all(same[place] for place in same if place[2] == 12)  # one tile
    for name, size in product(("largest late", "large scores"), (1, 2, 3, 4)):
        assert not same[name, "forget to rescale", size] and not same[name, "rescale the total only", size]
    wrong = {place for place in same if place[1] == "keep the first maximum" and not same[place]}
    assert {(name, size) for name, _, size in wrong} == {("large scores", 1), ("large scores", 2), ("large scores", 3)}
    assert all(last[place][3] == "∞" and last[place][7] == "NaN" for place in wrong)
    assert float(last["largest late", "rescale the total only", 3][7]) > max(VALUES)  # no mean of the values
    assert data["queries"][2]["traces"][0][2][0][:4] == ["−∞", "0", "0", "0"]  # a tile with no key that may be seen


def test_numbers_in_words():
    shown = {
        1.5: "1.5", 0.36788: "0.368", -2.0: "−2", -0.0: "0", 999.4: "999", 999.6: "1·10³", 0.000123: "1.23·10⁻⁴",
        2.77e35: "2.77·10³⁵", -math.inf: "−∞", math.inf: "∞", math.nan: "NaN",
    }  # fmt: skip
    assert [text(x) for x in shown] == list(shown.values())
    assert text([1.0]) == "1" and text([1.0, -0.5]) == "(1, −0.5)"


def test_a_tensor_of_scores_gets_names():
    data = show.online(torch.tensor(list(EXAMPLE.values())), VALUES).data
    assert [query["name"] for query in data["queries"]] == [f"query {i}" for i in range(1, 5)]
    assert [query["traces"] for query in data["queries"]] == [q["traces"] for q in show.online().data["queries"]]
    assert show.online([[1.0, 2.0]], [3.0, 4.0], tile=1).data["sizes"] == [1, 2]


def test_what_does_not_fit_is_named():
    for arguments, message in (
        (({"mine": [1, 2]}, [1, 2, 3]), r"mine: scores \(2,\) must be \(3,\)"),
        (({"mine": [1, math.nan]}, [1, 2]), "mine: a score is NaN"),
        (({"mine": [1, math.inf]}, [1, 2]), "mine: a score is NaN or ∞"),
        (({}, [1, 2]), "there are 0 queries"),
        (([[1.0]] * 7, [1]), "there are 7 queries"),
        (([[1.0] * 17], [1] * 17), r"values \(17, 1\)"),
        (([[1.0]], [[1, 2, 3, 4]]), r"values \(1, 4\)"),
        (([[1.0, 1.0]], [1, math.inf]), "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            show.online(*arguments, tile=1)
    for changes, message in (
        ({"tile_sizes": (2, 8)}, r"tile_sizes=\[2, 8\] must be different sizes from 1 to 7"),
        ({"tile_sizes": (2, 2)}, "different sizes"),
        ({"tile_sizes": ()}, "different sizes"),
        ({"tile": 5}, r"tile=5 is not one of the sizes \[1, 2, 3, 7\]"),
        ({"start": (2, 0)}, r"start=\(2, 0\) must be one of 2 queries"),
        ({"start": (0, 4)}, r"start=\(0, 4\)"),
        ({"title": " "}, "title"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**changes)


def states(data) -> list[dict[str, int]]:
    """Every state, in the order of the sweep."""
    found = []
    for query, rule, size in product(range(len(data["queries"])), range(4), range(len(data["sizes"]))):
        run = data["queries"][query]["traces"][rule][size]
        found += [{"query": query, "rule": rule, "size": size, "tile": k} for k in range(len(run))]
    return found


def test_bars_have_the_height_of_what_is_counted():
    data = show.online().data
    for at in states(data):
        scores, size = torch.tensor(list(EXAMPLE.values())[at["query"]]).double(), data["sizes"][at["size"]]
        end = min(size * (at["tile"] + 1), 12)
        of_total, of_sum = counted(scores, size, end, RULES[at["rule"]])
        if at["rule"] == 1:
            of_total = counted(scores, size, end, "rescale")[0]  # what it should be
        drawn = paths(data, **at)
        heights = [float(piece.split("h")[0]) for piece in drawn["counts"].split("v-")[1:]]
        assert heights == pytest.approx((60 * of_sum.clamp(max=1)).tolist(), abs=0.051)
        assert drawn["counts"].count("l6 -8") == (of_sum > 1).sum()
        levels = [float(piece.split()[1].split("h")[0]) for piece in drawn["should"].split("M")[1:]]
        assert levels == pytest.approx((160 - 60 * of_total.clamp(max=1)).tolist(), abs=0.051)
        assert drawn["tiles"].count("M") == -(-12 // size) and drawn["read"].count("M") == at["tile"] + 1
        m, read = largest(data, **at), size if at["rule"] == 3 else end
        assert m == (-1 if scores[:read].max() == -math.inf else scores[:read].argmax())


def test_it_is_small():
    assert len(show.online().html) < 55_000 and show.online().html == show.online().html


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  paths: Object.fromEntries(["tiles", "read", "frame", "counts", "should"].map(
    name => [name, root.querySelector(`.ac-${name}`).getAttribute("d")])),
  scores: [...root.querySelectorAll(".ac-score")].map(
    node => [node.textContent, node.classList.contains("ac-later"), node.getAttribute("x")]),
  m: [root.querySelector(".ac-max").hasAttribute("hidden"), root.querySelector(".ac-max").getAttribute("x")],
  caption: root.querySelector(".ac-trace caption").textContent,
  table: [...root.querySelectorAll(".ac-trace tbody tr")].map(row => [...row.children].map(cell => cell.textContent)),
  row: [...root.querySelectorAll(".ac-trace tbody tr")].findIndex(row => row.className === "ac-on"),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const seen = [];
  const [queries, rules, sizes] = [...root.querySelectorAll("fieldset")].map(
    group => [...group.querySelectorAll("input")]);
  const slider = root.querySelector("input[type=range]");
  for (const query of queries) for (const rule of rules) for (const size of sizes) {{
    [query, rule, size].forEach(input => input.click());
    for (let tile = 0; tile <= +slider.max; tile++) {{
      slider.value = tile;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
      seen.push({{ ...read(root), tile: slider.getAttribute("aria-valuetext") }});
    }}
  }}
  return seen;
}}"""


@pytest.mark.browser
@pytest.mark.parametrize("output", [show.online(), small(start=(1, 3))], ids=["default", "pairs"])
def test_every_number_in_every_state_is_pythons(open_page, output):
    data = output.data
    pages = iter(open_page(output.html).locator(".ac-online").evaluate(SWEEP))
    for at in states(data):
        page, query, size = next(pages), data["queries"][at["query"]], data["sizes"][at["size"]]
        read, table = size * (at["tile"] + 1), lines(data, at["query"], at["rule"], at["size"])
        assert page["status"] == describe(data, **at)
        assert page["paths"] == paths(data, **at)
        middle = [f"{42 + 26 * (j + 0.5):g}" for j in range(len(query["shown"]))]
        assert page["scores"] == [[s, j >= read, middle[j]] for j, s in enumerate(query["shown"])]
        m = largest(data, **at)
        assert page["m"][0] == (m < 0) and (m < 0 or page["m"][1] == middle[m])
        assert page["caption"] == f"{query['name']}, {RULES[at['rule']]}, tiles of {size}"
        assert page["table"] == table and page["row"] == at["tile"]
        assert page["tile"] == f"{at['tile'] + 1} of {len(table)}"
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    pages = [open_page(small().html, java_script_enabled=on).locator(".ac-online") for on in (True, False)]
    assert pages[0].locator(".ac-live").inner_text() == pages[1].locator(".ac-live").inner_text()
    for name in ("tiles", "read", "frame", "counts", "should", "max"):
        one, two = (root.locator(f".ac-{name}") for root in pages)
        for attribute in ("d", "x", "hidden"):
            assert one.get_attribute(attribute) == two.get_attribute(attribute)
    one, two = (root.locator(".ac-trace").text_content() for root in pages)
    assert one == two


@pytest.mark.browser
def test_keyboard_and_buttons(open_page):
    output = show.online()
    page = open_page(output.html)
    at = {"query": 0, "rule": 0, "size": 2, "tile": 1}

    def press(*keys: str, **changes: int):
        for key in keys:
            page.keyboard.press(key)
        at.update(changes)
        assert page.locator("[role=status]").inner_text() == describe(output.data, **at)

    press("Tab", "ArrowRight", "ArrowRight", "ArrowRight", query=3)
    press("Tab", "End", rule=3)
    press("Tab", "ArrowRight", size=3)  # tiles of 4: the six keys read become eight
    press("Home", size=0, tile=7)
    press("End", size=6, tile=0)
    press("ArrowLeft", size=5, tile=1)
    press("ArrowLeft", "ArrowLeft", "ArrowLeft", size=2, tile=3)
    press("Tab", "Home", tile=0)
    press("ArrowRight", tile=1)
    press("Tab", "Enter", tile=0)  # the button «Back»
    press("Enter", tile=0)
    press("Tab", "Enter", "Enter", "Enter", "Enter", tile=3)  # «Next»


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(
        small(caption="Notice <this>.").html, java_script_enabled=False, viewport={"width": 320, "height": 800}
    )
    assert page.locator(".ac-row-of-tiles").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    shown = page.locator("main").inner_text()
    data = small().data
    parts = [describe(data, 0, 0, 1, 1), "a, rescale, tiles of 2", "Output after the last tile, in tiles of 2"]
    for word in (*parts, "forget to rescale", "all at once", "Notice <this>.", data["queries"][1]["once"][-1]):
        assert word in shown, word


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(show.online().html + small(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    page.get_by_label("forget to rescale", exact=True).first.check(force=True)
    assert_accessible_and_fits(
        page, ".ac-chips label, summary, .ac-moves button, input[type=range]:visible", (900, 390, 320)
    )
