"""What rots in teaching material: minutes, versions, lists of chapters, links to terms, scores without evidence."""

import json
import re
import tomllib
from itertools import pairwise

import pytest
import yaml

from attncourse import __version__
from attncourse.checks import CHAPTERS, exercises
from attncourse.checks.spec import ReverseExercise
from tests.book.extensions import ROOT, load

cards_of, head = load("attncourse_cards"), load("attncourse_head")
notes_of, syllabus, tested = load("attncourse_notes"), load("attncourse_syllabus"), load("attncourse_tested")
CARDS = cards_of.cards()
BOOK = ROOT / "book"


def read(path):
    return (ROOT / path).read_text("utf-8")


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---- cards ----


def test_every_chapter_has_a_card_in_the_order_of_the_checks():
    assert [card.notebook[3:] for card in CARDS.values()] == list(CHAPTERS)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.notebook)
def test_a_card_has_the_minutes_of_its_exercises(card):
    assert card.doing == sum(task.minutes for task in card.tasks)
    assert card.reading % 5 == 0 and 10 <= card.reading <= 90
    assert 3 <= len(card.objectives) <= 5 and card.number not in card.needs


def test_a_card_that_lacks_something_says_what():
    with pytest.raises(ValueError, match=r"the card of 99_x lacks you_need, time"):
        cards_of.read_card("99_x", "# X\n\n**In one sentence.** Y.\n\n1. do it\n")


def test_links_of_a_notebook_lead_there_from_a_page():
    card, text = CARDS["05"], "[a](03_b.ipynb#c) [d](../book/e.md) [f](#g) [h](https://example.org/i.md)"
    assert cards_of.relink(text, card, "../../") == (
        "[a](../../notebooks/03_b.ipynb#c) [d](../../book/e.md) [f](../../notebooks/05_causal.ipynb#g) "
        "[h](https://example.org/i.md)"
    )


def test_objectives_list_every_chapter_and_every_objective():
    text = cards_of.objectives_markdown("../")
    assert [line[3:5] for line in text.splitlines() if line.startswith("## ")] == list(CARDS)
    assert len(re.findall(r"^\d\. ", text, re.MULTILINE)) == sum(len(card.objectives) for card in CARDS.values())
    for target in re.findall(r"\]\(\.\./([\w/]+\.(?:ipynb|md))", text):
        assert (ROOT / target).exists(), target


# ---- the syllabus ----


def plans():
    """The plans of the page: heading -> (lines, start of the day or None)."""
    found = {}
    for section in read("book/teaching/syllabus.md").split("\n## "):
        if block := re.search(r"```\{sessions\}\n(?::start: \"([\d:]+)\"\n)?(.*?)```", section, re.DOTALL):
            found[section.splitlines()[0]] = (block[2].strip().splitlines(), block[1])
    return found


def minutes_of(text):
    """ "1 h 45 min" as 105."""
    hours, rest = re.fullmatch(r"(?:(\d+) h)? ?(?:(\d+) min)?", text).groups()
    return 60 * int(hours or 0) + int(rest or 0)


def table(text):
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip(" *") for cell in row] for row in rows]


def test_there_are_three_plans():
    assert list(plans()) == ["One day", "Four weeks", "Ten weeks"]


@pytest.mark.parametrize("name", ["Four weeks", "Ten weeks"])
def test_the_weeks_of_a_plan_add_up(name):
    lines, _ = plans()[name]
    *rows, total = table(syllabus.weeks(lines, ""))
    assert len(rows) == {"Four weeks": 4, "Ten weeks": 10}[name]
    for row, line in zip([*rows], lines, strict=True):
        items = [item.split() for item in line.split("|")[1].split(",")]
        read_ = sum(CARDS[item[0]].reading for item in items)
        do = sum(CARDS[item[0]].doing for item in items if len(item) == 1)
        assert [minutes_of(cell) for cell in row[2:]] == [read_, do, read_ + do]
    for column in (2, 3, 4):
        assert minutes_of(total[column]) == sum(minutes_of(row[column]) for row in rows)


def test_ten_weeks_have_every_chapter_with_every_exercise():
    lines, _ = plans()["Ten weeks"]
    items = [item.strip() for line in lines for item in line.split("|")[1].split(",")]
    assert items == list(CARDS)
    assert "Every chapter comes after those that its card says it needs." in syllabus.weeks(lines, "")


def test_a_day_is_a_day():
    lines, start = plans()["One day"]
    *rows, total = table(syllabus.day(lines, start, ""))
    times = [row[0] for row in rows] + [total[0].removeprefix("to ")]
    minutes = [60 * int(time[:2]) + int(time[3:]) for time in times]
    assert times[0] == start and minutes_of(total[1]) == minutes[-1] - minutes[0] <= 8 * 60
    for line, row, (begins, ends) in zip(lines, rows, pairwise(minutes), strict=True):
        length = line.split(" |")[0] if "|" in line else minutes_of(row[2]) + minutes_of(row[3])
        assert ends - begins == int(length), line
    for column in (2, 3):
        assert minutes_of(total[column]) == sum(minutes_of(row[column]) for row in rows if row[column])


def test_a_plan_says_what_it_leaves_out():
    text = syllabus.weeks(["Week 1 | 00, 03 (OneHead)", "Week 2 | 01 reading"], "../")
    assert "03 names 01, 02." in text
    assert "[03 Self-attention](../notebooks/03_self_attention.ipynb) (exercise 4) | 55 min | 45 min |" in text
    assert "(no exercises) | 40 min | 0 min | 40 min |" in text


@pytest.mark.parametrize(
    ("item", "message"), [("42", "'42' is no chapter"), ("03 (two_heads)", "chapter 03 has no exercise two_heads")]
)
def test_a_plan_with_a_chapter_or_exercise_that_is_not_there(item, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        syllabus.weeks([f"Week 1 | {item}"], "")


def test_the_page_names_the_chapters_in_which_one_writes_tests():
    there = sorted({task.chapter[:2] for task in exercises() if isinstance(task, ReverseExercise)})
    *most, last = there
    assert f"In chapters {', '.join(most)} and {last} there are exercises" in read("book/teaching/syllabus.md")


# ---- notes for instructors ----


def test_notes_have_every_chapter_and_exercise():
    text = "\n".join(line for card in CARDS.values() for line in notes_of.notes(card, "../../"))
    assert [line[3:5] for line in text.splitlines() if line.startswith("## ")] == list(CARDS)
    assert len(re.findall(r"^\| \d ", text, re.MULTILINE)) == len(exercises())
    assert text.count("**Listen for**") == len(CARDS) - 1  # chapter 00 has no misunderstandings
    assert text.count("**Ask before the cell runs**") == len(CARDS)


def test_notes_are_what_the_notebook_says():
    cells = [
        (
            "code",
            '%matplotlib inline\nshow.predict("How large?", "Small.")\nshow.predict(f"Of {n}?", "None.")'
            '\nshow.predict("Why?", f"{n}.")',
        ),
        ("markdown", '## When to use it\n\n- *"Not this."*\n\n**Three misunderstandings**\n\n- *"A."* B.\n- *"C."*, D'),
        ("markdown", '## Recall\n\n- *"Nor this."*'),
    ]
    assert notes_of.predictions(cells) == [("How large?", "Small."), ("Why?", "")]
    assert notes_of.misunderstandings(cells) == (["A.", "C."], "when-to-use-it")


# ---- versions and metadata ----


def test_one_version_everywhere():
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    citation = yaml.safe_load(read("CITATION.cff"))
    first = re.search(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)[1]
    assert version == __version__ == citation["version"]
    released = re.fullmatch(rf"{re.escape(version)}, (not released yet|\d{{4}}-\d\d-\d\d)", first)
    assert released, f"CHANGELOG.md begins with {first!r}, not with {version} and a date"
    dated = "date-released" in citation
    assert dated == (released[1] != "not released yet"), "CITATION.cff has a date of release, CHANGELOG.md has none"


def test_the_course_is_described_for_search_engines():
    text = json.dumps(head.course())
    course = json.loads(text)
    for field in (
        *("name", "description", "audience", "coursePrerequisites", "teaches", "timeRequired", "license", "version"),
        *("inLanguage", "isAccessibleForFree", "provider", "keywords", "hasCourseInstance", "educationalLevel"),
    ):
        assert course[field], field
    assert course["@type"] == ["Course", "LearningResource"]
    assert [text.split()[0] for text in course["teaches"]] == ["Write", "Recognise", "Count", "Choose"]
    minutes = sum(card.reading + sum(task.minutes for task in card.tasks) for card in CARDS.values())
    assert course["timeRequired"] == f"PT{minutes // 60}H{minutes % 60}M"
    assert [part["name"] for part in course["hasPart"]] == [card.title for card in CARDS.values()]
    assert not re.search(r"\.ipynb|\.md|exercise \d|[`$]", text)
    addresses = [part["url"] for part in (course, *course["hasPart"])]  # relative: the book knows no address
    assert addresses == ["intro.html", *(f"../notebooks/{card.notebook}.html" for card in CARDS.values())]


@pytest.mark.parametrize(("minutes", "text"), [(45, "PT45M"), (120, "PT2H"), (1945, "PT32H25M"), (0, "PT0M")])
def test_durations_are_those_of_iso_8601(minutes, text):
    assert head.iso_duration(minutes) == text


def test_dates_of_verification_are_read_from_the_records():
    rows = table(tested.verified())
    assert len(rows) == len(tested.VERIFIED)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?", row[1]) for row in rows)
    assert json.loads(read("attncourse/data/oracles.json"))["date"] == rows[0][1]
    targets = re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", tested.verified())) <= set(targets)


# ---- glossary and notation ----


def test_every_linked_term_is_in_the_glossary_and_terms_are_in_order():
    terms = re.findall(r"^## (.+)$", read("book/glossary.md"), re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    pages = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("solutions/*.ipynb"), *BOOK.rglob("*.md")]
    linked = {name for page in pages for name in re.findall(r"glossary\.md#([\w-]+)", page.read_text("utf-8"))}
    assert len(linked) > 30 and linked <= {slug(term) for term in terms}


def test_letters_of_the_exercises_are_in_the_notation():
    common, own = read("book/notation.md").split("Some letters belong to one chapter")
    everywhere = set(re.findall(r"^\| \$(\w)\$ \|", common, re.MULTILINE)) | {"Dv"}
    assert everywhere >= set("BTSHGDRCW")
    rows = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", own, re.MULTILINE)
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        chapters = [letters for numbers, letters in rows if path.name[:2] in numbers.split(", ")]
        here = set(re.findall(r"\$\\?(\w+)\$", " ".join(chapters))) | everywhere
        line = re.search(r'"Letters: (.+?)(?:\\n)?"', path.read_text("utf-8"))
        named = set(re.findall(r"`(\w{1,2})`", line[1]))
        assert named <= here, f"{path.name} uses {named - here}, which book/notation.md does not have"


# ---- quality, paper ----


def test_a_score_has_its_evidence():
    text = read("book/quality.md")
    lines = [line for line in text.splitlines() if re.match(r"\| (?!criterion |complaint |---)", line)]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert len(rows) > 50
    assert all(row[1] in "012" and len(row[2]) > 4 for row in rows), rows
    for path in re.findall(r"`([\w./-]+/[\w./-]*|[A-Z]\w+(?:-\w+)?(?:\.\w+)?|[\w-]+\.(?:md|txt|toml))`", text):
        assert (ROOT / path).exists(), path


def test_the_scores_know_whether_a_gpu_was_tried():
    runs = json.loads(read("attncourse/data/tested_on.json"))["runs"]
    assert ("tried: none so far" in read("book/quality.md")) == (not any(run["device"] == "cuda" for run in runs))


def test_the_paper_cites_what_its_bibliography_has():
    text, entries = read("paper.md"), read("paper.bib")
    keys = re.findall(r"^@\w+\{(\w+),", entries, re.MULTILINE)
    assert sorted(set(re.findall(r"@(\w+)", text.split("---", 2)[2]))) == sorted(keys)
    dois = re.findall(r"^  doi\s+= \{(10\.\d{4,}/\S+)\},$", entries, re.MULTILINE)
    assert len(dois) == len(set(dois)) == len(keys)
    head = yaml.safe_load(text.split("---")[1])
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= set(head)


def test_the_numbers_of_the_paper_hold():
    text = " ".join(read("paper.md").split())
    minutes = sum(card.reading + card.doing for card in CARDS.values())
    known = sum(len(task.misconceptions) for task in exercises())
    tests = {task.chapter for task in exercises() if isinstance(task, ReverseExercise)}
    assert f"of {len(CARDS)} chapters" in text and f"all {len(exercises())} exercises" in text
    assert f"takes {minutes // 60} hours" in text and f"wrong programs, {known} in all" in text
    assert {6: "In six chapters"}[len(tests)] in text


def test_readme_has_the_range_of_minutes():
    cards = CARDS.values()
    shortest, longest = min(card.reading for card in cards), max(card.reading for card in cards)
    least, most = min(card.doing for card in cards), max(card.doing for card in cards)
    text = " ".join(read("README.md").split())
    assert f"takes {shortest} to {longest} minutes to read and run, and {least} to {most} for its exercises" in text
    hours = sum(card.reading + card.doing for card in cards) / 60
    assert len(CARDS) == 18 and f"all eighteen take {hours:.0f} hours" in text


@pytest.mark.browser
def test_pages_show_the_version_and_the_first_one_its_metadata():
    """Needs the built book, and no browser."""
    site = ROOT / "_build" / "html"
    first = (site / "book" / "intro.html").read_text("utf-8")
    found = re.search(r'<script type="application/ld\+json">(.*?)</script>', first, re.DOTALL)
    assert json.loads(found[1]) == head.course()
    for page in ("book/intro", "notebooks/03_self_attention", "exercises/03_self_attention"):
        assert f"Version {__version__}</a>" in (site / f"{page}.html").read_text("utf-8")
    assert "application/ld+json" not in (site / "book" / "glossary.html").read_text("utf-8")
