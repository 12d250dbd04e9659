"""What the landing page computes: minutes from the chapters' cards, and an answer of a check."""

import re

import pytest

from attncourse import check
from tests.book.extensions import ROOT, load

LANDING = load("attncourse_landing")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
INTRO = (ROOT / "book" / "intro.md").read_text()


def test_every_card_has_its_minutes():
    found = {path.stem: LANDING.minutes(path) for path in NOTEBOOKS}
    assert found["00_start"] == (15, 30) and len(found) == 18
    assert all(10 <= minutes <= 120 for times in found.values() for minutes in times)


def test_a_card_without_minutes_is_named(tmp_path):
    text = NOTEBOOKS[0].read_text().replace("**Time** 15 minutes", "**Time** some minutes")
    (tmp_path / "00_start.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"00_start\.ipynb: its card has no line"):
        LANDING.minutes(tmp_path / "00_start.ipynb")


@pytest.mark.parametrize(
    ("total", "text"), [(862, "14½ hours"), (60, "1 hour"), (45, "1 hour"), (35, "½ hour"), (120, "2 hours")]
)
def test_hours_to_the_half(total, text):
    assert LANDING.hours(total) == text


def test_each_chapter_has_one_card():
    assert sorted(re.findall(r"^(\d\d_\w+) \| ", INTRO, re.MULTILINE)) == [path.stem for path in NOTEBOOKS]


def test_the_colours_of_the_families_are_those_of_the_map():
    of_map = (ROOT / "attncourse" / "show" / "static" / "map.css").read_text()
    of_page = (ROOT / "book" / "_static" / "course.css").read_text()
    for family in re.findall(r"^:family: (\w+)$", INTRO, re.MULTILINE):
        colours = re.findall(rf"chapters-{family} {{ --family: (#\w+)", of_page)
        said = re.search(rf"--ac-{family}: ([^;]+);", of_map)[1]
        assert colours == re.findall(r"#\w+", said), family


def test_the_check_on_the_page_names_the_mistake():
    source = re.search(r"```\{diagnosis\}\n(.*?)```", INTRO, re.DOTALL)[1]
    names = {}
    exec(source, names)
    assert "known mistake" in str(check("gqa/repeat_kv", names["repeat_kv"]))
