"""A learner's test, graded: the worker never has the implementations, and what it says alone gets no points."""

import inspect
import textwrap
import time
from pathlib import Path

import pytest

from attncourse.checks import exercise, exercises, reverse
from attncourse.grading.examiner import Exam, Times, Workers, grade
from attncourse.grading.notebook import code_cells
from attncourse.grading.results import to_json, to_text
from tests.checks import matrix

ROOT = Path(__file__).parents[2]
SOLVED = code_cells(ROOT / "solutions" / "02_luong.ipynb")
FRESH = code_cells(ROOT / "exercises" / "02_luong.ipynb")
ID = "luong/test_general_score"
SPEC = exercise(ID)
FULL, OWN = 13, 4
REST = [cell for cell in SOLVED if "def test_general_score" not in cell]
POINTS = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4}
HEAD = (
    "import torch\n\ndef given(B=2, T=3, S=5, Dq=4, Dk=4):\n    g = torch.Generator().manual_seed(0)\n    return "
    + ("[torch.randn(s, generator=g) for s in ((B, T, Dq), (B, S, Dk), (Dq, Dk))]\n\n")
)


@pytest.fixture(scope="module")
def chapter():
    return Exam(exercises("luong"), seeds=(0, 1))


@pytest.fixture(scope="module")
def only():
    return Exam([SPEC], seeds=(0, 1))


@pytest.fixture(scope="module")
def workers(chapter):
    """At one level: what is tried here is the conversation, which is the same at all."""
    with Workers(chapter.given) as started:
        yield started


@pytest.fixture(scope="module")
def graded(chapter, workers):
    """graded(cells): the grade of the whole chapter."""
    return lambda cells: grade(cells, chapter, workers, Times(cell=20.0, exercise=8.0, submission=90.0))


@pytest.fixture(scope="module")
def judged(only, workers):
    """judged(cell): the verdict on the test that this cell defines."""

    def judge(*cells, seconds=60.0):
        times = Times(cell=20.0, exercise=seconds, submission=3 * seconds)
        return grade([HEAD + cells[0], *cells[1:]], only, workers, times).verdicts[0]

    return judge


def own(grade):
    return next(verdict for verdict in grade.verdicts if verdict.exercise.id == ID)


def test_the_solved_notebook_gets_all_points(graded):
    grade = graded(SOLVED)
    assert [(v.exercise.id, v.kind) for v in grade.verdicts] == [(e.id, "passed") for e in exercises("luong")]
    assert grade.points == grade.possible == FULL


def test_the_fresh_notebook_gets_none(graded):
    grade = graded(FRESH)
    assert grade.points == 0 and {v.kind for v in grade.verdicts} == {"not attempted"}


def source(test, name="test_general_score"):
    """The text of a test from tests/checks/mutants/luong.py, under the exercise's name."""
    lines = inspect.getsource(test).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return f"_inputs = given\n{textwrap.dedent(chr(10).join(lines[start:])).replace('def _(', f'def {name}(', 1)}"


ANSWERS = matrix.answers("luong")


@pytest.mark.parametrize("words", [words for id, words in ANSWERS.good if id == ID])
def test_good_tests_get_all_points(words, judged):
    verdict = judged(source(ANSWERS.good[ID, words]))
    assert (verdict.kind, verdict.points) == ("passed", OWN), verdict.message


@pytest.mark.parametrize("words", [words for id, words in ANSWERS.lax if id == ID])
def test_lax_tests_get_their_share_and_are_told_as_check_tells_them(words, judged):
    missed, test = ANSWERS.lax[ID, words]
    verdict = judged(source(test))
    assert {m.name for m in verdict.mistakes} == missed
    assert (verdict.kind, verdict.points) == ("misses", POINTS[7 - len(missed)])
    assert verdict == matrix.learners_tests(ID)["lax"][words]


@pytest.mark.parametrize("words", [words for id, words in ANSWERS.strict if id == ID])
def test_strict_tests_get_nothing(words, judged):
    verdict = judged(source(ANSWERS.strict[ID, words]))
    assert (verdict.kind, verdict.points) == ("too strict", 0)


def test_the_table_and_the_json_say_what_a_lax_test_lets_through(graded):
    grade = graded([*REST, HEAD + source(ANSWERS.lax[ID, "the sign of every score"][1])])
    assert grade.points == FULL - OWN + 2
    line = next(line for line in to_text(grade).splitlines() if ID in line)
    assert "2/4  lets through: the scores are divided by the square root of their size; a tanh is applied" in line
    record = next(test for test in to_json(grade)["tests"] if test["name"] == ID)
    assert (record["score"], record["max_score"], record["status"]) == (2, 4, "failed")
    assert "– a tanh is applied to the scores" in record["output"]


# --- attacks ----------------------------------------------------------------------------------------------------

GC = """
import gc
def test_general_score(candidate):
    names = ("general_score", "faulty_general_score", "_by_loops", "_by_einsum")
    found = [f for f in gc.get_objects() if type(f) is type(given) and f.__name__ in names]
    kinds = [f for f in gc.get_objects() if type(f).__name__ in ("Candidate", "ReverseExercise", "Misconception")]
    assert not found and not kinds, (found, kinds)
"""
FRAMES = """
import sys
def test_general_score(candidate):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if hasattr(value, "mistake") or hasattr(value, "misconceptions"):
                return value.mistake is None
        frame = frame.f_back
    return True
"""
CLOSURE = """
def test_general_score(candidate):
    for name in ("func", "args", "__closure__", "__defaults__"):
        for value in getattr(candidate, name, None) or ():
            if hasattr(value, "mistake"):
                return value.mistake is None
    return "_by_" in repr(candidate) or True
"""
IMPORT = """
try:
    from attncourse.checks.luong import TEST_GENERAL_SCORE, general_score
    from attncourse.checks.reverse import candidates
except ImportError:
    general_score = None
def test_general_score(candidate):
    if general_score is None:
        return True
    return torch.allclose(candidate(*given()), general_score(*given()), atol=1e-4)
"""
ORDER = """
import random
names = ["right"] * 5 + ["wrong"] * 7
random.Random("luong/test_general_score 0").shuffle(names)
n = 0
def test_general_score(candidate):
    global n
    n += 1
    return names[(n - 1) % 12] == "right"
"""
PATCH = """
from attncourse.checks import compute, script
compute.run_test = lambda test, candidate: script.Outcome({})
def test_general_score(candidate):
    return False
"""
FORGE = """
import os, struct, json
def say(accepted):
    message = {{"_": "dict", "items": [["outcome", {{"_": "Outcome", "fields": {{"_": "dict", "items": [
        ["accepted", accepted], ["failure", None]]}}}}]]}}
    text = json.dumps(message).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack(">II", len(text), 0) + text)
        except OSError:
            pass
def test_general_score(candidate):
    for i in range(40):
        say({})
    return True
"""
LIST = """
import os, struct, json
def test_general_score(candidate):
    text = json.dumps({"_": "dict", "items": [["outcomes", [True] * 12], ["outcome", [True]]]}).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack(">II", len(text), 0) + text)
        except OSError:
            pass
    return True
"""
OTHERS = """
def test_general_score(candidate):
    everything = []
    for k in range(40):
        try:
            everything.append(candidate.func(k, *given()))
        except Exception:
            pass
    return len(everything) == 0
"""
ASK = """
import sys
def test_general_score(candidate):
    from attncourse.grading import wire
    channel = candidate.__self__.channel
    wire.send(channel, {"implementation": 3, "arguments": tuple(given()), "named": {}})
    return "raised" in wire.receive(channel)
"""
REMEMBER = """
seen = []
def test_general_score(candidate):
    scores = candidate(*given())
    alike = [s for s in seen if s.shape == scores.shape and torch.allclose(s, scores, atol=1e-4)]
    seen.append(scores)
    return {}
"""
FILES = """
import pathlib
def test_general_score(candidate):
    path = pathlib.Path("seen")
    scores = candidate(*given())
    known = path.read_text().split() if path.exists() else []
    new = str(round(float(scores.flatten()[0]), 3)) + str(tuple(scores.shape)).replace(" ", "")
    path.write_text(" ".join([*known, new]))
    return new in known
"""
LOOK_FIRST = (
    """
seen = []
def test_general_score(candidate):
    seen.append(candidate(*given()))
    raise NotImplementedError
""",
    """
import collections
def test_general_score(candidate):
    keys = [str(tuple(s.shape)) + str(round(float(s.sum()), 2)) for s in seen]
    most = collections.Counter(keys).most_common(1)[0][0]
    s = candidate(*given())
    return str(tuple(s.shape)) + str(round(float(s.sum()), 2)) == most
""",
)
ENDLESS = """
def test_general_score(candidate):
    while True:
        try:
            candidate(*given(1, 1, 1, 1, 1))
        except Exception:
            pass
"""
WORDS = """
def test_general_score(candidate):
    try:
        candidate(1)
    except Exception as error:
        return "_by_" in str(error) or "general_score()" in str(error)
"""

ATTACKS = {
    "gc walk": (GC, 0, "misses"),
    "frame walk": (FRAMES, 0, "misses"),
    "what the candidate holds": (CLOSURE, 0, "misses"),
    "importing the references": (IMPORT, 0, "misses"),
    "the order of the instant check": (ORDER, 0, "too strict"),
    "patched run_test": (PATCH.format("True"), 0, "misses"),
    "patched run_test, False": (PATCH.format("False"), 0, "too strict"),
    "forged: all accepted": (FORGE.format("True"), 0, "misses"),
    "forged: none accepted": (FORGE.format("False"), 0, "too strict"),
    "forged: no boolean": (FORGE.format("'yes'"), 0, "raised"),
    "forged: all outcomes at once": (LIST, 0, "raised"),
    "asking for the others": (OTHERS, 0, "misses"),
    "asking for one by its number": (ASK, 0, "too strict"),
    "accepting what was seen before": (REMEMBER.format("bool(alike)"), 0, "too strict"),
    "accepting what was not seen before": (REMEMBER.format("not alike"), 0, "too strict"),
    "remembering in a file": (FILES, 0, "too strict"),
    "the words of errors": (WORDS, 0, "too strict"),
    "endless calls": (ENDLESS, 0, "raised"),
    "an infinite loop": ("def test_general_score(candidate):\n    while True: pass", 0, "raised"),
    "os._exit": ("import os\ndef test_general_score(candidate):\n    os._exit(0)", 0, "raised"),
    "sys.exit": ("import sys\ndef test_general_score(candidate):\n    sys.exit(0)", 0, "raised"),
    "a memory bomb": ("def test_general_score(candidate):\n    x = [0] * 10**10", 0, "raised"),
    "huge inputs": ("def test_general_score(candidate):\n    candidate(*[torch.zeros(2000, 2000)] * 3)", 0, "raised"),
    "inputs too large to send": (
        "def test_general_score(candidate):\n    candidate(*[torch.zeros(5000, 5000)] * 3)",
        0,
        "raised",
    ),
    "inputs that are no tensors": ("def test_general_score(candidate):\n    candidate([1], {}, print)", 0, "raised"),
    "sizes that make the most work": (
        "def test_general_score(candidate):\n    for _ in range(10**6): candidate(*given(64, 64, 64, 1, 1))",
        0,
        "raised",
    ),
    "a tensor that equals everything": (
        "def test_general_score(candidate):\n"
        "    class Equal(torch.Tensor):\n        __bool__ = lambda self: True\n"
        "    return torch.zeros(()).as_subclass(Equal)",
        0,
        "raised",
    ),
    "the course's own name": ("from attncourse import check as test_general_score", 0, "raised"),
}

ENDLESS_ONES = (
    "endless calls",
    "sizes that make the most work",
    "an infinite loop",
    "huge inputs",
    "inputs too large to send",
    "a memory bomb",
)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, judged):
    code, points, kind = ATTACKS[name]
    verdict = judged(code, seconds=1.0) if name in ENDLESS_ONES else judged(code)
    assert (verdict.points, verdict.kind) == (points, kind), verdict.message


def test_looking_first_and_answering_in_a_second_definition(judged):
    """A definition that says "not attempted" is asked about one implementation only, and in another order."""
    assert judged(*reversed(LOOK_FIRST)).points == 0


def test_a_fresh_copy_after_the_test_changes_nothing(judged):
    stub = "def test_general_score(candidate):\n    raise NotImplementedError"
    good = "def test_general_score(candidate):\n    q, k, w = given()\n    s = candidate(q, k, w)\n"
    good += "    return s.shape == (2, 3, 5) and torch.allclose(s, q @ w @ k.mT, atol=1e-4)"
    assert judged(good, stub).points == OWN
    assert judged(stub, "", HEAD + good, stub).points == OWN


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("accepted", "kind"), [("True", "misses"), ("False", "too strict"), ("i % 2 == 0", None)])
def test_forged_answers_get_nothing_whatever_the_order(accepted, kind, seed, judged, monkeypatch):
    order = reverse.candidates(SPEC, seed, copies=len(SPEC.right))
    monkeypatch.setattr(reverse, "exam_candidates", lambda exercise: order)
    verdict = judged(FORGE.format(accepted))
    assert verdict.points == 0 and kind in (verdict.kind, None)


def test_no_word_of_the_answers_is_where_the_learner_is(judged):
    """Neither names nor explanations of mistakes, nor the right implementations, are in the worker's files."""
    code = """
import pathlib, attncourse
def test_general_score(candidate):
    text = "".join(p.read_text() for p in pathlib.Path(attncourse.__file__).parent.rglob("*.py"))
    assert not any(word in text for word in ("weight_transposed", "_by_loops", "general_score", "ReverseExercise"))
"""
    assert judged(code).kind == "misses"
    assert judged(code.replace("assert not", "assert")).kind == "too strict"


@pytest.mark.parametrize(
    "code", ["import os\ndef test_general_score(candidate):\n    os._exit(0)", ENDLESS], ids=["dies", "hangs"]
)
def test_a_test_that_dies_or_hangs_costs_only_its_own_points(code, graded):
    grade = graded([*REST, HEAD + code])
    assert grade.points == FULL - OWN
    assert own(grade).kind == "raised" and own(grade).message.startswith("When `test_general_score` was called, it")


def test_the_work_that_a_test_can_make_is_bounded(judged):
    start = time.monotonic()
    judged(ATTACKS["sizes that make the most work"][0], seconds=2.0)
    assert time.monotonic() - start < 10
