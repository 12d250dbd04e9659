"""The course folder that nbgrader gets: its own commands make the hand-out, and score what comes back right."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from attncourse.grading.assign import Question, assign

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("nbgrader")
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # nbgrader runs alembic


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """An assignment of a chapter and an exercise, in variants, graded by nbgrader: (folder, hand-out, reference)."""
    folder = tmp_path_factory.mktemp("nbgrader")
    wheel = folder / "attncourse-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"not needed here")
    made = assign(
        ["gqa", "positions/rotary_scores"],
        "Week 3",
        folder / "key",
        folder / "out",
        variants=True,
        questions=[Question("essay", "Why?", 4.0)],
        wheel=wheel,
    )
    with zipfile.ZipFile(made.handout) as archive:
        archive.extractall(folder / "handed out")
    place = made.bundle / "nbgrader"
    nbgrader(folder, place, "generate_assignment", "week-3", "--create")
    shutil.copytree(folder / "handed out" / "week-3", place / "submitted" / "fresh" / "week-3")
    shutil.copytree(folder / "handed out" / "week-3", place / "submitted" / "solved" / "week-3")
    for path in sorted((place / "submitted" / "solved" / "week-3").glob("*.ipynb")):
        solve(path, made.bundle / "reference" / path.name)
    nbgrader(folder, place, "autograde", "week-3")
    return place, folder / "handed out" / "week-3"


def nbgrader(folder, place, *words):
    """Run a command of nbgrader as an instructor would, with no settings of this machine's user."""
    settings = {"HOME": folder, "IPYTHONDIR": folder / "ipython", "JUPYTER_CONFIG_DIR": folder / "jupyter"}
    settings |= {"PATH": BIN, "PYTHONPATH": ROOT, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    env = os.environ | {name: str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words], cwd=place, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def solve(path, reference):
    """Put the reference's answers into a student's notebook."""
    book, right = (json.loads(p.read_text("utf-8")) for p in (path, reference))
    answers = {cell["id"]: cell["source"] for cell in right["cells"] if cell["id"].endswith("-answer")}
    for cell in book["cells"]:
        cell["source"] = answers.get(cell["id"], cell["source"])
        if cell["id"] == "essay":
            cell["source"] = ["Because."]
    path.write_text(json.dumps(book), "utf-8")


def scores(place, student, monkeypatch):
    """Automatic points by notebook, and whether something waits to be graded by hand."""
    monkeypatch.setenv("PATH", BIN)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{place / 'gradebook.db'}") as gradebook:
        submission = gradebook.find_submission("week-3", student)
        books = {book.name: (book.score, book.max_score) for book in submission.notebooks}
        return books, submission.needs_manual_grade


def test_nbgrader_scores_an_untouched_notebook_zero_and_a_solved_one_full(course, monkeypatch):
    fresh, by_hand = scores(course[0], "fresh", monkeypatch)
    assert fresh == {"07_positions": (0, 2), "13_gqa": (0, 10 + 4)} and not by_hand
    solved, by_hand = scores(course[0], "solved", monkeypatch)
    assert solved == {"07_positions": (2, 2), "13_gqa": (10, 10 + 4)} and by_hand


def test_what_nbgrader_hands_out_has_the_cells_of_our_hand_out(course):
    place, handed_out = course
    for path in sorted(handed_out.glob("*.ipynb")):
        ours = json.loads(path.read_text("utf-8"))["cells"]
        theirs = json.loads((place / "release" / "week-3" / path.name).read_text("utf-8"))["cells"]
        assert [cell["id"] for cell in ours] == [cell["id"] for cell in theirs]
        for own, other in zip(ours, theirs, strict=True):
            if own["id"] not in ("title", "install"):  # these have addresses
                assert "".join(own["source"]) == "".join(other["source"]), own["id"]
                assert own["metadata"].get("nbgrader") == other["metadata"].get("nbgrader"), own["id"]
