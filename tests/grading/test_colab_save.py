"""A notebook that comes back from Colab grades as it did before."""

import json
from pathlib import Path

import nbformat
import pytest

from attncourse.checks import exercises
from attncourse.grading.examiner import Exam, Workers, exercises_in, grade
from attncourse.grading.notebook import code_cells
from scripts.colab_save import colab_save

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "solutions").glob("*.ipynb"))
SUBMISSIONS = {
    "solved": lambda solved, fresh: solved,
    "fresh": lambda solved, fresh: fresh,
    "half done": lambda solved, fresh: half_done(solved, fresh),
}


def read(path):
    return json.loads(path.read_text("utf-8"))


def half_done(solved, fresh):
    """The exercise with every second answer filled in."""
    answers = {cell["id"]: cell for cell in solved["cells"] if cell["id"].endswith("-answer")}
    chosen = set(list(answers)[::2])
    return fresh | {"cells": [answers[cell["id"]] if cell["id"] in chosen else cell for cell in fresh["cells"]]}


@pytest.fixture(scope="module")
def workers():
    """One for all chapters: most of a worker's time is its start."""
    with Workers({name for exercise in exercises() for name in exercise.given}) as started:
        yield started


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request, workers):
    """A solution, its exercise, and a function that grades a notebook's text."""
    solved, fresh = read(request.param), read(ROOT / "exercises" / request.param.name)
    chosen = exercises_in(code_cells(request.param))
    exam = Exam(chosen, seeds=(0, 1))

    def graded(path):
        cells = code_cells(path)
        assert exercises_in(cells) == chosen
        return [(v.exercise.id, v.kind, v.points) for v in grade(cells, exam, workers).verdicts]

    return solved, fresh, graded


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_points_are_the_same(name, chapter, tmp_path):
    solved, fresh, graded = chapter
    notebook = SUBMISSIONS[name](solved, fresh)
    original, saved = tmp_path / "original.ipynb", tmp_path / "saved.ipynb"
    original.write_text(json.dumps(notebook), "utf-8")
    saved.write_text(colab_save(notebook, fresh), "utf-8")
    before, after = graded(original), graded(saved)
    assert after == before
    passed = {kind == "passed" for _, kind, _ in before}
    assert passed == {"solved": {True}, "fresh": {False}, "half done": {True, False}}[name]


def test_the_save_is_what_colab_writes():
    solved, fresh = read(CHAPTERS[0]), read(ROOT / "exercises" / CHAPTERS[0].name)
    text = colab_save(solved, fresh)
    nbformat.validate(nbformat.reads(text, as_version=4))
    saved = json.loads(text)
    assert (saved["nbformat"], saved["nbformat_minor"]) == (4, 0)
    assert saved["cells"][0]["metadata"]["id"] == "view-in-github"
    for cell in saved["cells"]:
        assert "id" not in cell
        assert not {"nbgrader", "tags"} & set(cell["metadata"])
    answers = sum(
        "nbgrader" in cell["metadata"] and cell["metadata"]["nbgrader"]["solution"] for cell in fresh["cells"]
    )
    assert len(saved["cells"]) == 1 + len(solved["cells"]) + 2 * answers
