import os
import sys
from pathlib import Path

import pytest

from attncourse.checks import exercises
from attncourse.grading import bundle, classroom
from attncourse.grading.examiner import Exam, Times, Workers, grade
from attncourse.grading.handout import course_folder
from attncourse.grading.key import Assigned, Assignment, Key
from tests.conftest import ROOT_ONLY

ROOT = Path(__file__).parents[2]
QUICK = Times(cell=3.0, exercise=3.0, submission=40.0)  # for what never ends
PATIENT = Times(cell=20.0, exercise=20.0, submission=60.0)  # a busy machine takes no points away


def limits(cells):
    return QUICK if any("while True" in cell for cell in cells) else PATIENT


@pytest.fixture(scope="session")
def exam():
    return Exam(exercises("bahdanau"), seeds=(0, 1))


@pytest.fixture(scope="session", params=["A", "B"])
def workers(exam, request):
    if request.param == "B":
        skip_unless_root()
    with Workers(exam.given, request.param) as started:
        yield started


@pytest.fixture(scope="session")
def bare_workers(exam):
    """Level B without seccomp and Landlock, as on a machine that has neither."""
    skip_unless_root()
    with Workers(exam.given, "B", extra=False) as started:
        yield started


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A key with one assignment: chapter 01."""
    key = Key.make(tmp_path_factory.mktemp("key") / "course.key")
    key.add(Assignment("week-1", "Week 1", "", tuple(Assigned(e.id, None, e.points) for e in exercises("bahdanau"))))
    return key


@pytest.fixture(scope="module")
def work(key):
    """What that assignment asks for."""
    return classroom.assigned_work(key, key.assignment())


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory):
    """The package's wheel, built once as `assign` builds it, and what the checkout holds that it did not before."""
    before = set(ROOT.iterdir())
    wheel = bundle.build_wheel(course_folder(), tmp_path_factory.mktemp("wheel"))
    return wheel, set(ROOT.iterdir()) - before


def skip_unless_root():
    """Level B can be tried by root only. Who has no root is told so, with the command, at the end of the run."""
    if os.geteuid() != 0:
        pytest.skip(f"{ROOT_ONLY}: sudo {sys.executable} -m pytest tests/grading")


@pytest.fixture(scope="session")
def graded(exam, workers):
    """graded(cells): the grade of these code cells, with short limits where it never ends, at both levels."""
    return lambda cells: grade(cells, exam, workers, limits(cells))


@pytest.fixture(scope="session")
def graded_bare(exam, bare_workers):
    return lambda cells: grade(cells, exam, bare_workers, limits(cells))
