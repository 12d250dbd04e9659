import json
from importlib.resources import files

import pytest

from attncourse import show
from attncourse.lab import load_result


def test_a_table_shows_its_caption_and_numbers():
    output = show.table([{"n": 1, "share": 0.25}, {"n": 2, "share": 0.5}], caption="Shares <by> n")
    assert "Shares &lt;by&gt; n" in output.html
    assert '<th scope="row">2</th><td>0.5</td>' in output.html
    assert output.text.splitlines()[1].split() == ["n", "share"]


def test_the_comparison_ends_with_the_chapter_asked_for():
    rows = json.loads((files("attncourse") / "data" / "comparison.json").read_text("utf-8"))["rows"]
    for i, row in enumerate(rows):
        last = max(j for j, other in enumerate(rows) if other["chapter"] == row["chapter"])
        output = show.comparison(row["chapter"])
        assert "ac-comparison" in output.html  # its cells wrap
        text = output.text
        assert all((other["mechanism"] in text) == (j <= last) for j, other in enumerate(rows)), i


def test_a_chapter_without_a_row_is_an_error():
    with pytest.raises(ValueError, match=r"'nothing'.*bahdanau"):
        show.comparison("nothing")


def test_a_committed_result_carries_its_provenance():
    run = load_result("bahdanau")["runs"]["de/attention/0"]
    assert run["environment"]["torch"] and run["data"]["sha256"] and run["date"]


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_the_mechanisms_name_stays_beside_readable_columns(open_page, theme):
    page = open_page(show.comparison("choosing").html, f' data-theme="{theme}"', viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box, name = page.locator(".ac-scroll"), page.locator("tbody th").last
    left = name.bounding_box()["x"]
    box.evaluate("(node) => (node.scrollLeft = 500)")
    assert box.evaluate("(node) => node.scrollLeft") == 500 and name.bounding_box()["x"] == pytest.approx(left, abs=1)
    ground = name.evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[theme]
    widths = page.locator("tbody tr:last-child td").evaluate_all("nodes => nodes.map((n) => n.clientWidth)")
    assert widths[0] >= 11 * 0.9 * 16  # what is stored: words
    page.add_style_tag(content=".ac { font-size: 32px }")  # the name would take half of the screen
    assert name.evaluate("(node) => getComputedStyle(node).position") == "static"
