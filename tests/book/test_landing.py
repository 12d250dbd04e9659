"""What the landing page computes: minutes from the chapters' cards, and an answer of a check."""

import re

import pytest

from attncourse import check
from tests.book.extensions import ROOT, load

LANDING = load("attncourse_landing")
INTRO = (ROOT / "book" / "intro.md").read_text()


def test_a_card_has_the_minutes_of_its_chapter_and_leads_there():
    card = LANDING.cards()["13"]
    text = "\n".join(LANDING.chapter("13 | Grouped queries | A few of them", "../"))
    assert text.startswith("- [**13** Grouped queries](../notebooks/13_gqa.ipynb)\n\n  A few of them\n")
    assert f"*{card.reading} min, exercises {card.doing} min*" in text


def test_a_card_of_no_chapter_is_refused():
    with pytest.raises(ValueError, match="'42' is no chapter of 00, 01"):
        list(LANDING.chapter("42 | Title | about", ""))


@pytest.mark.parametrize(
    ("total", "text"), [(862, "14½ hours"), (60, "1 hour"), (45, "1 hour"), (35, "½ hour"), (120, "2 hours")]
)
def test_hours_to_the_half(total, text):
    assert LANDING.hours(total) == text


def test_each_chapter_has_one_card():
    assert sorted(re.findall(r"^(\d\d) \| ", INTRO, re.MULTILINE)) == list(LANDING.cards())


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
