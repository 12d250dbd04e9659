"""The check catches and names known mistakes, written a second time as learners write them."""

import json
import os
from itertools import combinations
from pathlib import Path

import pytest

from attncourse.checks import CHAPTERS, evaluate, exercise, exercises
from tests.checks import implementations, matrix

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads(matrix.PATH.read_text(encoding="utf-8"))
IDS = [spec.id for spec in implementations()]
MISCONCEPTIONS = [(spec.id, m.name) for spec in implementations() for m in spec.misconceptions]
PAIRS = [key for chapter in CHAPTERS for key in matrix.answers(chapter).pairs]
REWRITINGS = [key for chapter in CHAPTERS for key in matrix.answers(chapter).rewritings]
FORMS = [key for chapter in CHAPTERS for key in matrix.answers(chapter).forms]


def names(verdict):
    return [mistake.name for mistake in verdict.mistakes]


def test_no_exercise_vanishes():
    committed, ids = (ROOT / "tests/checks/exercise_ids.txt").read_text().split(), [spec.id for spec in exercises()]
    assert [id for id in committed if id not in ids] == [], "ids never change: submissions are graded by them"
    assert [id for id in ids if id not in committed] == [], "add new ids to tests/checks/exercise_ids.txt"


def test_ids_are_unique_and_begin_with_their_chapter():
    ids = [spec.id for spec in exercises()]
    assert len(set(ids)) == len(ids)
    assert {id.split("/")[0] for id in ids} == set(CHAPTERS)
    assert len({(spec.chapter, spec.defines) for spec in exercises()}) == len(ids)


def test_what_concerns_one_exercise_runs_in_one_process(request):
    """Else both processes compute all verdicts. pytest-xdist reads the group from the end of the id."""
    groups = [(item.nodeid, item.get_closest_marker("xdist_group")) for item in request.session.items]
    groups = [(id, marker.args[0]) for id, marker in groups if marker]
    assert groups or len(request.session.items) == 1
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert [id for id, name in groups if not id.endswith(f"@{name}")] == []


@pytest.mark.parametrize("id", IDS)
def test_enough_is_known_of_each_exercise(id):
    known = [m.name for m in exercise(id).misconceptions]
    assert len(set(known)) == len(known) >= 5
    assert len(matrix.rewritings(id)) >= 3


def test_every_misconception_is_written_a_second_time_and_nothing_else():
    written = [key for chapter in CHAPTERS for key in matrix.answers(chapter).mutants]
    assert sorted(written) == sorted(MISCONCEPTIONS)
    switches = {id: {m.name for m in exercise(id).misconceptions} for id in IDS}
    assert [(id, pair) for id, pair in PAIRS if not pair <= switches[id]] == []


@pytest.mark.parametrize(("id", "name"), MISCONCEPTIONS)
def test_every_misconception_is_caught(id, name):
    verdict = matrix.misconceptions(id)[name]
    assert not verdict.passed and verdict.points == 0


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nine_in_ten_misconceptions_are_named_first_and_correctly(chapter):
    named = {
        (spec.id, name): names(v)
        for spec in implementations(chapter)
        for name, v in matrix.misconceptions(spec.id).items()
    }
    wrong = {key: found for key, found in named.items() if found != [key[1]]}
    assert len(wrong) <= 0.1 * len(named), wrong


@pytest.mark.parametrize(
    ("id", "pair"), PAIRS, ids=lambda value: value if isinstance(value, str) else "+".join(sorted(value))
)
def test_two_mistakes_at_once_as_learners_make_them_are_named(id, pair):
    verdict = next(found.verdict for found in matrix.pairs(id) if found.natural and found.names == pair)
    assert not verdict.passed
    assert set(names(verdict)) == pair


@pytest.mark.parametrize("id", IDS)
def test_two_switches_at_once_are_caught_and_nine_in_ten_named(id):
    found = matrix.pairs(id)
    assert [pair.names for pair in found if pair.verdict.passed] == []
    assert sum(pair.named for pair in found) >= 0.9 * len(found), [pair.names for pair in found if not pair.named]


@pytest.mark.parametrize(("id", "words"), FORMS)
def test_other_forms_are_caught_and_never_blamed_on_something_else(id, words):
    form_of, verdict = matrix.forms(id)[words]
    assert not verdict.passed
    if form_of is not None and verdict.mistakes:
        assert form_of in names(verdict)


@pytest.mark.parametrize(("id", "style"), REWRITINGS)
def test_right_answers_in_other_styles_pass_without_advice(id, style):
    verdict = matrix.rewritings(id)[style]
    assert verdict.passed, verdict.message
    assert verdict.advice == ()


@pytest.mark.parametrize("id", IDS)
def test_the_switches_all_off_are_right(id):
    verdict = evaluate(id, exercise(id).faulty(frozenset()))
    assert verdict.passed, verdict.message


@pytest.mark.parametrize("id", IDS)
def test_the_reference_passes_without_advice(id):
    verdict = evaluate(id, exercise(id).reference)
    assert verdict.passed and verdict.advice == ()


@pytest.mark.parametrize("id", IDS)
def test_no_two_misconceptions_look_alike(id):
    spec = exercise(id)
    replies = {"a right answer": matrix.scored_replies(id, spec.reference)}
    replies |= {m.name: matrix.scored_replies(id, spec.faulty(frozenset([m.name]))) for m in spec.misconceptions}
    alike = [(a, b) for a, b in combinations(replies, 2) if matrix.same(spec, replies[a], replies[b])]
    assert not alike, "no script tells these apart"


@pytest.mark.parametrize("id", IDS)
def test_other_seeds_judge_alike(id):
    """Grading asks with seeds of its own: no verdict may hang on the seeds of the instant check."""
    from attncourse.checks import compute
    from attncourse.checks.judge import ask, judge

    spec, question = exercise(id), ask(exercise(id), seeds=(17, 4242))
    mutants = matrix.answers(id.split("/")[0]).mutants
    for misconception in spec.misconceptions:
        replies = [compute.run(mutants[id, misconception.name], script, spec.forbidden) for script in question.scripts]
        assert names(judge(spec, question, replies)) == [misconception.name]


@pytest.mark.parametrize("id", [spec.id for spec in exercises()])
def test_the_heading_to_reread_is_in_the_notebook(id):
    spec = exercise(id)
    notebook = json.loads((ROOT / "notebooks" / f"{spec.chapter}.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    headings = {line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")}
    missing = {m.reread for m in spec.misconceptions} - headings
    assert not missing, f"notebooks/{spec.chapter}.ipynb has no such headings; it has {sorted(headings)}"


@pytest.mark.parametrize("id", [spec.id for spec in exercises()])
def test_the_committed_row_is_this_one(id):
    row = next((row for row in COMMITTED["exercises"] if row["id"] == id), None)
    assert row == matrix.row(id), f"{matrix.PATH} is out of date: run `{matrix.COMMAND}`"


def test_the_committed_matrix_has_these_rows_and_their_sums():
    ids = [spec.id for chapter in CHAPTERS for spec in exercises(chapter)]
    assert [row["id"] for row in COMMITTED["exercises"]] == ids
    assert COMMITTED["totals"] == matrix.totals(COMMITTED["exercises"])
    assert matrix.PATH.read_text(encoding="utf-8") == matrix.text(COMMITTED)
