"""Pages of feedback and the summary: what they say, what they never say, and that no text becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest

from attncourse.checks import exercise, exercises
from attncourse.checks.judge import Difference, Verdict
from attncourse.checks.report import HEADINGS
from attncourse.grading import classroom, results
from attncourse.grading.classroom import Graded, Work, grade_class
from attncourse.grading.feedback import class_page, mistakes_of, page_name, prose, student_page
from attncourse.grading.gradebook import Adjustments, Mark, marks
from attncourse.grading.intake import Notebook, Submission
from attncourse.grading.key import Assigned, Assignment, Key
from attncourse.grading.telling import tell
from tests.grading.a_class import NO_TANH, SOLVED, TELLS_INPUTS, UNIFORM, with_answer
from tests.grading.test_classroom import Inline

ASSIGNED = tuple(Assigned(e.id, None, e.points) for e in exercises("bahdanau"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"&\x1b[31m\u202e"
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "article", "div", "h1", "h2", "h3", "p", "a"),
    *("span", "strong", "em", "code", "br", "wbr", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
}


class Page(HTMLParser):
    """The tags, attributes and words of a page; fails for what no page of ours has."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, self._open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        assert tag in ALLOWED, tag
        assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "srcset")], attributes
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "wbr" and self.words:  # nothing parts these words
            self.words[-1] += data
        elif self._open and self._open[-1] != "style":
            self.words.append(data)


def work(hidden=True, questions=()):
    return Work("Week 1", ASSIGNED, {a.id: (0, 1) for a in ASSIGNED}, hidden, questions)


def told(hidden=True, **kinds):
    """Exercises as told, those of `kinds` (by the name they define) with that verdict, the others passed."""
    made = []
    for assigned in ASSIGNED:
        task = assigned.task()
        kind, n = kinds.get(task.defines, ("passed", 0))
        mistakes = task.misconceptions[:n]
        verdict = Verdict(task, kind, "", mistakes)
        made.append(tell(verdict, [], {}, hidden) | {"variant": None})
    return tuple(made)


def graded(student, *, name=None, older=(), problems=(), errors=(), late=False, **kinds):
    book = Notebook(f"{student}.ipynb", ("x",))
    who = Submission(student, name or student, 1, late, (book,), older)
    return Graded(who, told(**kinds), errors, problems, 1.0, "A", True)


def marked(items, work):
    return marks(items, work, Adjustments())


def page_of(item, work):
    return student_page(item, work, marked([item], work)[item.submission.student])


def test_a_page_says_what_is_right_and_the_mistake_and_the_section():
    item = graded("ann", masked_softmax=("mistake", 1), Attention=("not attempted", 0))
    page = Page(page_of(item, work()))
    mistake = exercise("bahdanau/masked_softmax").misconceptions[0]
    title = mistake.title[:1].upper() + mistake.title[1:]
    assert "7 of 13 points" in page.text and "3 of 5 exercises are right" in page.text
    assert title.replace("`", "") in page.text
    assert f"Reread “{mistake.reread}” in chapter 1" in page.text
    at = [page.text.index(word) for word in ("To look at again", "Not attempted", "bahdanau/attention", "Right ")]
    assert at == sorted(at)
    assert not [tag for tag, _ in page.tags if tag == "script"]


def test_a_mistake_in_a_variant_comes_with_what_this_copy_asks_for():
    item = graded("ann", masked_softmax=("mistake", 1))
    for e in item.exercises:
        e["variant"] = "forbid" if e["defines"] == "masked_softmax" else None
    statement = exercise("bahdanau/masked_softmax").variants["forbid"].statement
    assert Page(page_of(item, work())).text.count(statement) == 1
    assert (
        "bahdanau/masked_softmax , variant forbid" in Page(class_page([item], work(), marked([item], work()), ())).text
    )


def test_prose_has_code_and_stress_and_leaves_products_alone():
    assert prose("keys *before* it, `a *b* c`") == "keys <em>before</em> it, <code>a *b* c</code>"
    assert prose("2 * 3 * 4, f(*args, **more), a*b*c") == "2 * 3 * 4, f(*args, **more), a*b*c"


def test_every_kind_of_verdict_has_a_page():
    for kind in HEADINGS:
        page = Page(page_of(graded("ann", masked_softmax=(kind, 0)), work()))
        assert HEADINGS[kind][1] in page.text or kind in ("passed", "not attempted")


def test_no_text_becomes_markup():
    item = graded(HOSTILE, older=(HOSTILE,), problems=(HOSTILE,), errors=(HOSTILE,), masked_softmax=("mistake", 1))
    some = Work(HOSTILE, ASSIGNED, {}, False, ({"id": "q", "title": HOSTILE, "points": 2.0},))
    item.exercises[1]["said"].append(HOSTILE)
    item.exercises[1]["mistakes"][0] |= {"title": HOSTILE, "explanation": HOSTILE, "reread": HOSTILE}
    item.exercises[0]["advice"].append(HOSTILE)
    for text in (page_of(item, some), class_page([item], some, marked([item], some), (HOSTILE,), (HOSTILE,))):
        page = Page(text)
        assert "alert(1)" in page.text and "\\x1b[31m\\u202e" in page.text
        assert "\x1b" not in text and "\u202e" not in text
        assert "default-src 'none'" in text
        text.encode("utf-8")
    note = Mark(1.0, {a.id: 1.0 for a in ASSIGNED}, {"q": None}, (HOSTILE,))
    assert "alert(1)" in Page(student_page(item, some, note)).text


def test_names_of_pages_are_safe_and_differ():
    students = [
        "ann",
        "Ann",
        "ANN",
        "../../etc/passwd",
        "..",
        ".",
        "",
        "con",
        "LPT1",
        "com9",
        "josé",
        "jose",
        "a" * 300,
        "a" * 301,
        "a/b",
        "a-b",
    ]
    students.append(page_name("Ann"))
    names = [page_name(student) for student in students]
    assert len(set(names)) == len(names) and page_name("ann") == "ann"
    assert all(re.fullmatch(r"[a-z0-9_-]{1,70}", name) for name in names)
    assert len({name.lower() for name in names}) == len(names)


SECRET = "1234567"


def secrets_of(kind, task):
    """A verdict whose every text, forged or not, holds a secret."""
    row = (float(SECRET),) * 3
    difference = Difference(SECRET, SECRET, SECRET, (int(SECRET),), float(SECRET), 0.0, row, row, 1.0)
    for message in (
        f"ValueError: {SECRET}. It happened in line {SECRET} of the cell, `{SECRET}`. The call had query ({SECRET}).",
        f"Code cell 1, which defines `{task.defines}`, could not be run: {SECRET}",
        f"When `{task.defines}` was called, it ran too long {SECRET}",
        f"A right answer keeps this, and yours does not: {SECRET}.",
        f"Zq{SECRET}: {SECRET}. It happened in line 1 of the cell, `{SECRET}`.",
        SECRET,
    ):
        yield Verdict(task, kind, message, difference=difference)


@pytest.mark.parametrize("kind", [kind for kind in HEADINGS if kind not in ("misses", "too strict")])
def test_nothing_of_a_hidden_case_is_told(kind):
    task = exercise("bahdanau/masked_softmax")
    cells = [f"def masked_softmax(scores, mask):\n    return {SECRET[::-1]}"]
    for verdict in secrets_of(kind, task):
        found = tell(verdict, cells, {0: "SyntaxError: own text"}, hidden=True)
        assert SECRET not in json.dumps({name: value for name, value in found.items() if name != "detail"})
        if kind not in ("passed", "not attempted"):
            assert SECRET in json.dumps(tell(verdict, cells, {}, hidden=False))


def test_how_an_answer_raised_is_told_in_the_notebooks_own_lines():
    task = exercise("bahdanau/masked_softmax")
    cells = ["import torch", "def masked_softmax(scores, mask):\n    return scores.nope"]
    where = " It happened in line 2 of the cell, `return scores.nope`. The call had scores (1, 2, 3)."
    message = "AttributeError: no nope." + where
    assert tell(Verdict(task, "raised", message), cells, {}, True)["said"][0].startswith(
        "It raised an AttributeError in line 2 of the cell, `return scores.nope`, on a hidden case."
    )
    assert tell(Verdict(task, "raised", "Odd7: x." + where), cells, {}, True)["said"][0].startswith(
        "It raised an error in line 2 of the cell, `return scores.nope`, on a hidden case."
    )


def test_an_answer_that_sends_its_inputs_back_is_not_printed(tmp_path):
    key = Key.make(tmp_path / "key")
    key.add(Assignment("week-1", "Week 1", "", ASSIGNED))
    hidden = classroom.assigned_work(key, key.assignment())
    also = ["import torch", "seen = []", TELLS_INPUTS.replace("    raise", "    seen.append(values)\n    raise")]
    who = Submission("ann", "ann", 1, False, (Notebook("ann.ipynb", (*with_answer(TELLS_INPUTS), *also)),))
    (item,) = grade_class([who], hidden, tmp_path, pool=Inline)
    assert item.points == 12
    record = next((tmp_path / "records").iterdir()).read_text("utf-8")
    numbers = re.findall(r"-?\d\.\d{3,}", json.loads(record)["exercises"][2]["detail"])
    assert len(numbers) >= 5  # for the instructor they are there
    mark = marked([item], hidden)["ann"]
    for text in (student_page(item, hidden, mark), json.dumps(results.of_student(item, mark))):
        assert not [number for number in numbers if number in text] and "inputs: [" not in text
        assert not re.search(r"Zq-?\d", text)
        assert "It raised an error" in text


def test_without_a_key_the_page_shows_what_check_shows():
    task = exercise("bahdanau/context_vector")
    difference = Difference("small", "weights (1, 2, 3)", "context", (0, 1), 0.5, 0.25, (0.5, 1.0), (0.25, 1.0), 1.0)
    verdict = Verdict(task, "different", "The values differ.", difference=difference)
    item = graded("ann")
    exercises = [tell(verdict, [], {}, False) if e["id"] == task.id else e for e in item.exercises]
    item = Graded(item.submission, tuple(exercises), isolation="A")
    page = Page(page_of(item, work(hidden=False)))
    assert "Smallest case where it shows (small): weights (1, 2, 3)." in page.text
    assert "context[0, 1] is 0.5; it should be 0.25." in page.text and "Your row:" in page.text
    assert "inputs that are not shown" not in page.text


def test_the_summary_counts():
    items = [
        graded("ann"),
        graded("bob", additive_score=("mistake", 1), context_vector=("raised", 0)),
        graded("cyd", additive_score=("mistake", 2), late=True),
        graded("dan", additive_score=("mistake", 1), context_vector=("not attempted", 0)),
    ]
    counts = mistakes_of(items)
    first, second = exercise("bahdanau/additive_score").misconceptions[:2]
    assert counts == {("bahdanau/additive_score", first.name): 3, ("bahdanau/additive_score", second.name): 1}
    page = Page(class_page(items, work(), marked(items, work()), ("Eve", "Fay"), ("dan",)))
    assert "4 submissions; half of them have 10.5 of 13 points or more" in page.text
    assert "2 handed in nothing: Eve; Fay." in page.text and "1 not found in the gradebook: dan." in page.text
    common = page.text[page.text.index("Common mistakes") : page.text.index("Exercises Exercise")]
    assert common.index(" 3 ") < common.index(" 1 ")
    rows = re.findall(r"bahdanau/(\w+) (\d+) (\d+) (\d+)", page.text)
    assert rows[:3] == [
        ("additive_score", "1", "3", "0"),
        ("masked_softmax", "4", "0", "0"),
        ("context_vector", "2", "1", "1"),
    ]
    assert "1 × raised an error" in page.text and re.search(r"3 × \w", page.text)
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"feedback/{student}.html" for student in ("ann", "bob", "cyd", "dan")}


def test_the_summary_says_what_needs_attention():
    item = graded("ann", older=("old.ipynb",), problems=("x.ipynb is not whole JSON",))
    failed = Graded(graded("bob").submission, told(), failed="no memory", isolation="C")
    questions = ({"id": "q", "title": "Why?", "points": 2.0},)
    given = marked([item, failed], work(questions=questions))
    page = Page(class_page([item, failed], work(questions=questions), given, None))
    for words in (
        "who is missing is not known",
        "ann : x.ipynb is not whole JSON",
        "1 handed in more than once, and the latest counts: ann .",
        "bob : could not be graded. no memory",
        "2 answers wait for points by hand",
        "level C",
    ):
        assert words in page.text, words


def test_results_have_gradescopes_form():
    item = graded("ann", masked_softmax=("mistake", 1), late=True, older=("old.ipynb",))
    record = results.of_student(item, marked([item], work())["ann"])
    assert set(record) == {"score", "execution_time", "output", "tests", "extra_data"}
    assert record["score"] == sum(test["score"] for test in record["tests"]) == 10
    for test in record["tests"]:
        assert set(test) == {"name", "score", "max_score", "status", "output", "visibility"}
        assert test["status"] in ("passed", "failed") and test["visibility"] == "visible"
    assert record["extra_data"]["late"] and record["extra_data"]["not_counted"] == ["old.ipynb"]
    json.dumps(record)


def test_two_known_mistakes_of_real_answers_are_named(tmp_path):
    cells = with_answer(UNIFORM)
    i = next(i for i, cell in enumerate(SOLVED) if cell.startswith("def additive_score"))
    cells[i] = NO_TANH
    who = Submission("ann", "ann", 1, False, (Notebook("ann.ipynb", tuple(cells)),))
    (item,) = grade_class([who], work(hidden=False), tmp_path, pool=Inline)
    assert sorted(name for _, name in mistakes_of([item])) == ["no_tanh", "uniform"]
    page = Page(page_of(item, work(hidden=False)))
    assert "Every value counts the same." in page.text and "There is no tanh." in page.text
