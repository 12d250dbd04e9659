"""Answers in words: found wherever students write them, shown as text and nothing else, and read anew at every run."""

import json
import re
import uuid
from dataclasses import replace

import pytest

from attncourse import cli
from attncourse.grading import answers, classroom
from attncourse.grading.answers import Answer, answer_to, answers_page
from attncourse.grading.gradebook import Adjustments, marks
from attncourse.grading.handout import ANSWER, Question, _asked
from attncourse.grading.intake import Notebook, Submission, find_submissions
from attncourse.grading.key import Assignment, Key
from attncourse.grading.notebook import MAX_TEXT, MAX_TEXTS, read
from attncourse.grading.publish import publish
from tests.grading.a_class import SOLVED
from tests.grading.test_classroom import Inline
from tests.grading.test_feedback import ASSIGNED, HOSTILE, Page, graded, marked, work

WHY = {"id": "why", "title": "Why does it need tanh?", "text": "Why does it need tanh?", "points": 3.0}
HOW = {"id": "how", "title": "How many?", "text": "How many?\n\nCount *all* of\nthem.", "points": 1.0}
ASKED = (WHY, HOW)
CELLS = _asked([Question(q["id"], q["text"], q["points"]) for q in ASKED])
TASK = {"cell_type": "markdown", "source": "## 3. Next\n\n`gqa/repeat_kv` · difficulty ●○○ · 5 minutes"}


def written(*cells):
    """A submission of one notebook of these cells: JSON, or text of Markdown."""
    made = [c if isinstance(c, dict) else {"cell_type": "markdown", "source": c, "metadata": {}} for c in cells]
    code, texts = read("a.ipynb", json.dumps({"cells": made}).encode())
    return Submission("ann", "Ann", 1, False, (Notebook("a.ipynb", tuple(code), texts=tuple(texts)),))


def handed_in(why=ANSWER, how=ANSWER, form=lambda cell: cell):
    """The hand-out's cells with answers."""
    sources = {"why": why, "how": how}
    return [form(cell | {"source": sources.get(cell["id"], cell["source"])}) for cell in CELLS]


def found(submission):
    return [answer_to(question, submission, ASKED).text for question in ASKED]


def colab(cell):
    """As Colab saves it: other ids in other places, lines, its own metadata only."""
    lines = cell["source"].splitlines(keepends=True)
    return {"cell_type": cell["cell_type"], "source": lines, "metadata": {"id": uuid.uuid4().hex}}


@pytest.mark.parametrize("form", [dict, colab, lambda cell: cell | {"metadata": {}, "id": uuid.uuid4().hex[:8]}])
def test_an_answer_is_found_below_its_question_with_and_without_ids(form):
    assert found(written("# Title", *handed_in("  Since  a\nsum.\n", "Two.", form), TASK, "not an answer")) == [
        "  Since  a\nsum.",
        "Two.",
    ]
    assert found(written("# Title", *handed_in(how="Two.", form=form))) == ["", "Two."]


def test_an_answer_is_found_where_students_write_instead():
    below = [cell if cell["id"] != "why-text" else cell | {"source": f"{cell['source']}\n\nIn here."} for cell in CELLS]
    assert found(written(*below)) == ["In here.", ""]
    new = [*handed_in()[:2], "# My heading", {"cell_type": "code", "source": "# in code"}, *handed_in()[2:]]
    assert found(written(*new)) == ["# My heading\n\n# in code", ""]
    without = [cell for cell in handed_in("Sum.", "Two.") if not cell["id"].endswith("-text")]
    assert found(written(*without)) == ["Sum.", "Two."]  # by the cells' ids
    bare = [{key: value for key, value in cell.items() if key != "id"} for cell in without]
    assert found(written(*bare)) == ["Sum.", "Two."]  # by what nbgrader notes
    doubled = [*handed_in("Sum."), *handed_in("Sum.")]
    assert found(written(*doubled)) == ["Sum.", ""]
    broken = [cell | {"source": cell["source"].replace("does it", "does\nit")} for cell in handed_in("Sum.")]
    assert found(written(*broken)) == ["Sum.", ""]
    assert found(written("# Title", "Nothing of this")) == [None, None]


def test_any_notebook_of_a_student_may_have_the_answer():
    (first,), (second,) = written("# Title").notebooks, written(*handed_in("Sum.")).notebooks
    assert found(Submission("ann", "Ann", 1, False, (first, second, Notebook("c.ipynb", None, "broken")))) == [
        "Sum.",
        "",
    ]


def test_an_older_question_with_the_same_id_is_not_taken_for_this_one():
    old = _asked([Question("why", "What was asked last week?", 3.0)])
    submission = written(old[0], old[1] | {"source": "Old."}, *handed_in("New."))
    assert found(submission) == ["Old.\n\nNew.", ""]  # both cells have the id: nothing is lost
    renamed = [cell | {"id": "x", "metadata": {}} for cell in old]
    assert found(written(*renamed, *handed_in("New."))) == ["New.", ""]


def test_long_answers_are_cut_and_it_is_said():
    answer = answer_to(WHY, written(*handed_in("x" * MAX_TEXT)), ASKED)
    assert answer == Answer("x" * MAX_TEXT)
    answer = answer_to(WHY, written(*handed_in("x" * 50_000)), ASKED)
    assert answer == Answer("x" * MAX_TEXT, "a.ipynb")
    image = f"![a](data:image/png;base64,{'QUJD' * 50_000}) So."
    assert found(written(*handed_in(image))) == ["![a](an image, in the notebook) So.", ""]
    kept = written(*["y" * 100_000] * 150).notebooks[0].texts
    assert sum(len(text) for _, text in kept) == MAX_TEXTS and len(kept) == 150


@pytest.mark.parametrize("odd", [{}, {"source": 7}, {"source": [1, "a"], "metadata": [], "id": 3}, {"source": None}])
def test_odd_cells_cost_nothing(odd):
    assert found(written(odd | {"cell_type": "markdown"}, *handed_in("Sum."))) == ["Sum.", ""]
    assert found(written({"source": "x", "metadata": {"nbgrader": {"grade_id": 3}}}, *handed_in("Sum."))) == [
        "Sum.",
        "",
    ]


def page_of(*items, questions=ASKED):
    asked = work(questions=questions)
    return answers_page(items, asked, marked(items, asked))


def answered(*cells, name="ann", **more):
    item = graded(name, **more)
    books = written(*cells).notebooks
    return with_books(item, books)


def with_books(item, books):
    return replace(item, submission=replace(item.submission, notebooks=books))


def test_the_page_shows_each_answer_with_its_row_and_points():
    items = [
        answered(*handed_in("Sum <b>of</b>\n    two."), name="ann"),
        answered(*handed_in(), name="=bob"),
        answered("# Title", name="cyd"),
        answered(name="dan", problems=("d.ipynb is not whole JSON",)),
    ]
    asked = work(questions=ASKED)
    given = marked(items, asked)
    given["ann"].manual["why"] = 2.5
    text = answers_page(items, asked, given)
    page = Page(text)
    assert "Sum &lt;b&gt;of&lt;/b&gt;\n    two." in text
    assert "2.5 of 3 points · row manual,ann,why, Sum" in page.text
    away = Adjustments(excused={"cyd"})
    assert Page(answers_page(items, asked, marks(items, asked, away))).text.count("excused") == 2
    assert "0, unless you say otherwise · row manual,'=bob,why, Not answered." in page.text
    assert "Not found: the question is not in what was handed in." in page.text
    assert "Not found: d.ipynb is not whole JSON." in page.text
    assert (
        "1 of 4 students wrote an answer · 1 have points" in page.text and "How many? Count *all* of them." in page.text
    )
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {"#why", "#how", "summary.html", "feedback/ann.html"} <= links


def test_no_text_of_a_learner_becomes_markup():
    long = written(*handed_in("z" * 30_000)).notebooks[0]
    item = answered(*handed_in(f"{HOSTILE}\n\ta\r\n</p></article><p style=x>\u2028{HOSTILE}\ud800"), name=HOSTILE)
    question = WHY | {"title": HOSTILE, "text": f"{HOSTILE}\nWhy does it need tanh?"}
    cells = handed_in(HOSTILE)
    cells[0] = cells[0] | {"source": question["text"]}
    cut = with_books(graded("bob", problems=(HOSTILE,)), (Notebook(HOSTILE, (), texts=long.texts),))
    for text in (page_of(item, cut), page_of(with_books(item, written(*cells).notebooks), questions=(question, HOW))):
        page = Page(text)
        assert page.text.count("alert(1)") >= 2 and "\\x1b[31m\\u202e" in page.text
        assert not set("\x1b\u202e\u2028\ud800") & set(text) and "default-src 'none'" in text
        assert not [tag for tag, attributes in page.tags if "style" in attributes]


def test_a_changed_answer_is_shown_without_grading_the_code_again(tmp_path, monkeypatch, capsys):
    key = Key.make(tmp_path / "key")
    key.add(Assignment("week-1", "Week 1", "", ASSIGNED[:1], ASKED))
    graded_jobs = []
    real = classroom.grade_job

    def counted(job):
        graded_jobs.append(job.hash)
        return real(job)

    monkeypatch.setattr(classroom, "grade_job", counted)
    monkeypatch.setattr(classroom, "local_pool", Inline)
    monkeypatch.setattr(
        classroom.grade_class, "__kwdefaults__", classroom.grade_class.__kwdefaults__ | {"pool": Inline}
    )
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    code = [{"cell_type": "code", "metadata": {}, "source": cell} for cell in SOLVED]
    for run, answer in enumerate(["First thought.", "Second thought."]):
        book = {"cells": [*code, *handed_in(answer)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / "ann.ipynb").write_text(json.dumps(book), "utf-8")
        assert cli.main(["grade", str(folder), "--key", str(key.path), "--out", str(out)]) == 0
        assert len(graded_jobs) == 1
        text = (out / "answers.html").read_text("utf-8")
        assert answer in text and ("First" in text) == (run == 0)
        assert f"Written: {out}/summary.html, {out}/answers.html, {out}/gradebook.csv" in capsys.readouterr().out
    assert 'href="answers.html"' in (out / "summary.html").read_text("utf-8")
    assert find_submissions(folder)[0].notebooks[0].cells == tuple(SOLVED)


def test_only_what_was_written_waits_for_points(tmp_path):
    items = [answered(*handed_in("Because."), name="ann"), answered(*handed_in(), name="bob"), answered(name="cyd")]
    marks_given = publish(tmp_path, items, work(questions=ASKED), Adjustments()).marks
    assert [marks_given[name].unanswered for name in ("ann", "bob", "cyd")] == [{"how"}, {"why", "how"}, set()]
    assert [marks_given[name].waiting for name in ("ann", "bob", "cyd")] == [1, 0, 2]
    assert "3 answers wait" in (tmp_path / "summary.html").read_text("utf-8")
    pages = [(tmp_path / "feedback" / f"{name}.html").read_text("utf-8") for name in ("ann", "bob", "cyd")]
    assert [(page.count("· not answered"), page.count("· not graded yet")) for page in pages] == [
        (1, 1),
        (2, 0),
        (0, 2),
    ]


def test_without_questions_there_is_no_such_page(tmp_path):
    (tmp_path / "answers.html").write_text("of another assignment", "utf-8")
    published = publish(tmp_path, [graded("ann")], work(), Adjustments())
    assert "answers.html" not in published.files and not (tmp_path / "answers.html").exists()
    assert "answers.html" not in (tmp_path / "summary.html").read_text("utf-8")
    published = publish(tmp_path, [graded("ann")], work(questions=ASKED), Adjustments())
    assert set(published.files) <= {path.name for path in tmp_path.iterdir()}


def test_the_hand_out_is_written_as_it_is_looked_for():
    """The page depends on three phrases of the hand-out."""
    assert answers.HEADING.match(CELLS[0]["source"]) and answers.POINTS.search(CELLS[0]["source"])
    assert CELLS[1]["source"] == ANSWER and re.search(answers.TASK, TASK["source"])
