import pytest

from attncourse.checks import exercises
from attncourse.grading.examiner import Exam, Times, Workers, grade

QUICK = Times(cell=2.0, exercise=2.0, submission=20.0)


@pytest.fixture(scope="session")
def exam():
    return Exam(exercises("bahdanau"), seeds=(0, 1))


@pytest.fixture(scope="session")
def workers(exam):
    with Workers(exam.given) as started:
        yield started


@pytest.fixture(scope="session")
def graded(exam, workers):
    """graded(cells): the grade of these code cells, with short time limits."""
    return lambda cells: grade(cells, exam, workers, QUICK)
