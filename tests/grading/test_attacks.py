"""What a submission may try, and the exact score that it gets. None crashes the run or touches anything outside."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import nbformat
import pytest

from attncourse.grading.notebook import code_cells

ROOT = Path(__file__).parents[2]
SOLVED = code_cells(ROOT / "solutions" / "01_bahdanau.ipynb")
FRESH = code_cells(ROOT / "exercises" / "01_bahdanau.ipynb")
FULL = 13

HANG = "while True:\n    pass"
SWALLOW = """
import time
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""
PATCH = "import torch\ntorch.allclose = torch.equal = torch.isclose = lambda *a, **k: True"
ALWAYS_EQUAL = """
import torch

class Equal(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("allclose", "equal", "isclose", "eq", "__eq__"):
            return True
        return super().__torch_function__(func, types, args, kwargs or {})

def context_vector(weights, values):
    return torch.zeros(weights.shape[0], weights.shape[1], values.shape[2]).as_subclass(Equal)
"""
FRAMES = """
import sys

def context_vector(weights, values):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if hasattr(value, "reference"):
                return value.reference(weights, values)
            if hasattr(value, "expected"):
                return value.expected
        frame = frame.f_back
    return weights
"""
GARBAGE = """
import gc

def context_vector(weights, values):
    for thing in gc.get_objects():
        try:
            if getattr(thing, "__name__", "") == "context_vector" and thing is not context_vector:
                return thing(weights, values)
            if type(thing).__name__ in ("Exercise", "Question", "Exam"):
                return thing.reference(weights, values)
        except Exception:
            pass
    return weights
"""
IMPORT_REFERENCE = """
try:
    from attncourse.checks.bahdanau import context_vector
except ImportError:
    pass
"""
FORGE = """
import os, socket, struct, json

def context_vector(weights, values):
    text = json.dumps({"_": "dict", "items": [["reply", {"_": "Reply", "fields": {"_": "dict", "items": [
        ["results", {"_": "tuple", "items": []}], ["failure", None]]}}]]}).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack(">II", len(text), 0) + text)
        except OSError:
            pass
    return weights
"""


def without(name):
    """The solved cells, with the answer to one exercise left fresh."""
    i = next(i for i, cell in enumerate(FRESH) if f" {name}(" in cell and not cell.startswith("check"))
    return [*SOLVED[:i], FRESH[i], *SOLVED[i + 1 :]]


NO_CONTEXT = without("context_vector")

ATTACKS = {
    "all solved": (SOLVED, FULL),
    "nothing attempted": (FRESH, 0),
    "no cells": ([], 0),
    "infinite loop in a cell": ([HANG, *SOLVED], FULL),
    "loop that swallows interrupts": ([SWALLOW, *SOLVED], FULL),
    "os._exit in a cell": (["import os\nos._exit(0)", *SOLVED], FULL),
    "sys.exit in a cell": (["import sys\nsys.exit()", *SOLVED], FULL),
    "infinite loop in an answer": ([*NO_CONTEXT, "def context_vector(w, v):\n    while True: pass"], FULL - 1),
    "os._exit in an answer": ([*NO_CONTEXT, "import os\ndef context_vector(w, v):\n    os._exit(0)"], FULL - 1),
    "memory bomb of Python": (["x = [0] * 10**10", *SOLVED], FULL),
    "memory bomb of torch": (["import torch\nx = torch.ones(10**11)", *SOLVED], FULL),
    "memory bomb, little by little": (["x = []\nwhile True:\n    x.append(bytearray(10**8))", *SOLVED], FULL),
    "fork bomb": (["import os\nwhile True:\n    os.fork()", *SOLVED], FULL),
    "output flood": (["for i in range(10**5):\n    print('x' * 1000)", *SOLVED], FULL),
    "syntax error": (["def broken(:\n    pass", *SOLVED], FULL),
    "patched torch.allclose and torch.equal": ([PATCH, *NO_CONTEXT], FULL - 1),
    "a tensor that equals everything": ([*NO_CONTEXT, ALWAYS_EQUAL], FULL - 1),
    "frame walk": ([*NO_CONTEXT, FRAMES], FULL - 1),
    "gc walk for references": ([*NO_CONTEXT, GARBAGE], FULL - 1),
    "importing the reference": ([*NO_CONTEXT, IMPORT_REFERENCE], FULL - 1),
    "forged reply": ([*NO_CONTEXT, FORGE], FULL - 1),
    "fake check": ([*NO_CONTEXT, "check = print\nprint('✓ passed 100 of 100 points')"], FULL - 1),
    "patched builtins": ([*NO_CONTEXT, "import builtins\nbuiltins.isinstance = lambda *a: True"], FULL - 1),
    "every cell twice": ([cell for cell in SOLVED for _ in (0, 1)], FULL),
    "fresh copies after the answers": ([*SOLVED, *FRESH], FULL),
    "checks deleted": ([cell for cell in SOLVED if not cell.startswith("check(")], FULL),
    "magics and shell lines": (["%matplotlib inline\n!pip install torch\n%%time", *SOLVED], FULL),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_score(name, graded):
    cells, points = ATTACKS[name]
    assert graded(cells).points == points


def test_a_cell_that_hangs_is_named_and_the_rest_runs(graded):
    grade = graded([*SOLVED[:2], HANG, "import os\nos._exit(3)", *SOLVED[2:]])
    assert grade.points == FULL
    assert grade.cell_errors[2].startswith("skipped: it ran too long")
    assert grade.cell_errors[3].startswith("skipped: its process ended")


def test_one_exercise_that_dies_costs_only_its_own_points(graded):
    grade = graded([*NO_CONTEXT, "import os\ndef context_vector(w, v):\n    os._exit(0)"])
    lost = [verdict for verdict in grade.verdicts if not verdict.passed]
    assert [verdict.exercise.id for verdict in lost] == ["bahdanau/context_vector"]
    assert "its process ended" in lost[0].message


def probe(graded, code):
    """What `code` left in `found`, told through an exception's text: the only way out."""
    return graded([f"found = None\n{code}\nraise RuntimeError(repr(found))"]).cell_errors[0]


def test_files_outside_cannot_be_read(graded, tmp_path):
    secret = tmp_path / "key"
    secret.write_text("the instructor's key")
    for path in (secret, ROOT / "README.md", "/etc/shadow", "/etc/passwd", Path.home() / ".bashrc"):
        code = (
            f"try:\n    found = open({str(path)!r}).read()\nexcept OSError as error:\n    found = type(error).__name__"
        )
        assert "FileNotFoundError" in probe(graded, code), path


def test_files_outside_cannot_be_written(graded, tmp_path):
    target = tmp_path / "written"
    probe(graded, f"import os\nos.makedirs({str(tmp_path)!r}, exist_ok=True)\nopen({str(target)!r}, 'w').write('x')")
    assert not target.exists()
    code = "import torch\ntry:\n    open(torch.__file__, 'a')\nexcept OSError as error:\n    found = error.strerror"
    assert probe(graded, code) in ("RuntimeError: 'Read-only file system'", "RuntimeError: 'Permission denied'")


def test_the_network_is_gone_even_loopback(graded):
    server = socket.create_server(("127.0.0.1", 0))
    reached = []
    threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()
    code = f"import socket\ntry:\n    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)\n"
    assert "unreachable" in probe(graded, code + "except OSError as error:\n    found = error.strerror")
    server.close()
    assert not reached


def test_other_processes_cannot_be_seen(graded):
    code = "import os\nfound = [name for name in os.listdir('/proc') if name.isdigit()]"
    assert probe(graded, code) == "RuntimeError: ['1']"


def test_the_learner_is_nobody(graded):
    found = probe(graded, "import os\ntry:\n    os.setuid(0)\nexcept OSError as error:\n    found = error.strerror")
    assert "not permitted" in found or "Invalid argument" in found


def test_a_daemon_left_behind_dies_with_the_submission(graded):
    mark = f"sleeper-{os.getpid()}-{time.monotonic_ns()}"
    daemon = f"""
import os, time, ctypes
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(15, {mark[:15].encode()!r}, 0, 0, 0)
    time.sleep(600)
"""
    assert graded([daemon, *SOLVED]).points == FULL
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(mark[:15]):
        time.sleep(0.05)
    assert not alive(mark[:15])


def alive(name):
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return name in found


def test_a_stripped_notebook_of_format_4_0_grades_the_same(graded, tmp_path):
    notebook = nbformat.read(ROOT / "solutions" / "01_bahdanau.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.metadata.clear()
        cell.pop("id", None)
    notebook.nbformat_minor, notebook.metadata = 0, {}
    notebook.cells = [notebook.cells[0], *notebook.cells]
    path = tmp_path / "saved.ipynb"
    path.write_text(nbformat.writes(notebook, version=4))
    assert graded(code_cells(path)).points == FULL


def test_a_known_mistake_is_named_as_check_names_it(graded):
    mean = "def context_vector(weights, values):\n    return (weights * 0 + 1 / weights.shape[-1]) @ values"
    grade = graded([*NO_CONTEXT, mean])
    verdict = next(v for v in grade.verdicts if v.exercise.id == "bahdanau/context_vector")
    assert [mistake.name for mistake in verdict.mistakes] == ["uniform"]


def test_what_a_notebook_accepts_the_grader_accepts(graded):
    i = next(i for i, cell in enumerate(SOLVED) if cell.lstrip().startswith("def additive_score"))
    timed = [*SOLVED[:i], "%%time\n" + SOLVED[i], *SOLVED[i + 1 :]]
    assert graded(timed).points == FULL
    drive = ["from google.colab import drive\n" + cell if "from torch import nn" in cell else cell for cell in SOLVED]
    assert drive != SOLVED
    assert graded(drive).points == FULL


def test_a_syntax_error_in_an_answer_is_said_with_its_cell(graded):
    i = next(i for i, cell in enumerate(SOLVED) if cell.lstrip().startswith("def context_vector"))
    grade = graded([*SOLVED[:i], SOLVED[i].replace("):", ")", 1), *SOLVED[i + 1 :]])
    assert grade.points == FULL - 1
    verdict = next(v for v in grade.verdicts if v.exercise.defines == "context_vector")
    assert verdict.kind == "raised"
    assert verdict.message.startswith(
        f"Code cell {i + 1}, which defines `context_vector`, could not be run: SyntaxError"
    )
