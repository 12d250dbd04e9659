"""What code in a jail can reach, at levels A and B. The score of each attack stands in `test_every_attack.py`."""

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import nbformat

from attncourse.grading import examiner
from attncourse.grading.examiner import Times
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

TRANSFORMER = """
shell = get_ipython()
shell.input_transformers_cleanup.append(lambda lines: [])
shell.input_transformers_post.append(lambda lines: [line for line in lines if not line.startswith("check(")])
shell.ast_transformers.append(None)
"""
TRANSFORMER_OF_THE_WORKER = """
import IPython.core.inputtransformer2 as transformers
transformers.TransformerManager.transform_cell = lambda self, cell: "check = print"
"""
EDIT_RESULTS = """
import json, os
text = json.dumps({"score": 100, "tests": [{"name": "all", "score": 100, "max_score": 100}]})
places = ["grades.json", "../grades.json", "/autograder/results/results.json", *TARGETS]
for path in places + [f"/proc/self/fd/{n}" for n in range(64)]:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        pass
for fd in range(3, 256):
    try:
        os.ftruncate(fd, 0)
    except OSError:
        pass
"""
EXAMINERS_MEMORY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
found = []
for pid in [*PIDS, os.getppid(), *range(2, 400)]:
    if pid in (0, os.getpid()):
        continue
    for name in ("mem", "environ", "maps", "fd/3", "root/etc/shadow", "cwd/x"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                if file.read(1):
                    found.append((pid, name))
        except OSError:
            pass
    here = ctypes.create_string_buffer(8)
    parts = Part(ctypes.addressof(here), 8), Part(id(here), 8)
    if libc.process_vm_readv(pid, ctypes.byref(parts[0]), 1, ctypes.byref(parts[1]), 1, 0) > 0:
        found.append((pid, "process_vm_readv"))
    if libc.ptrace(16, pid, 0, 0) == 0:
        found.append((pid, "ptrace"))
"""
KILL_ALL = """
import os, signal
assert os.getpid() == 1 or os.getuid() in range(60_706, 61_184), "not in a jail: this would end the session"
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
for pid in [*PIDS, os.getppid(), *range(2, 3000)]:
    if pid not in (0, os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
"""
FILL = """
import os
for folder in (".", "/dev/shm", "/tmp", "/var/tmp", "/dev/mqueue", "/run/lock"):
    for i in range(20):
        try:
            with open(os.path.join(folder, f"filled-{MARK}-{i}"), "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        except OSError:
            pass
"""
MANY_FILES = """
import os
while True:
    path = os.path.join(".", *["deep"] * 40)
    os.makedirs(path, exist_ok=True)
    os.chdir(path)
    for i in range(100):
        open(f"empty-{i}", "w").close()
"""
DAEMON = """
import os, time, ctypes
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(15, MARK[-15:].encode(), 0, 0, 0)
    time.sleep(600)
"""
OWN_LIMITS = """
import resource
for limit in range(16):
    for value in ((-1, -1), (1 << 40, 1 << 40)):
        try:
            resource.setrlimit(limit, value)
        except (OSError, ValueError):
            pass
"""
SETUID = """
import subprocess
ran = []
commands = ["su", "-c", "id"], ["mount", "-t", "tmpfs", "x", "/tmp"], ["ping", "-c1", "127.0.0.1"], ["sudo", "-n", "id"]
for command in commands:
    try:
        done = subprocess.run(command, capture_output=True, timeout=1, stdin=subprocess.DEVNULL)
        ran.append((command[0], done.returncode))
    except (OSError, subprocess.SubprocessError):
        pass
"""
IMPORT_BY_PATH = f"""
import importlib.util, sys
for name in [name for name in sys.modules if name.startswith("attncourse")]:
    del sys.modules[name]
sys.path[:] = [path for path in sys.path if "stub" not in path]
for folder in ({str(ROOT)!r}, *sys.path):
    try:
        sys.path.insert(0, folder)
        text = open(folder + "/attncourse/checks/bahdanau.py").read()
        text = text[text.index("def context_vector"):]
        exec(text[:text.index("# ---")])
        break
    except (OSError, ImportError):
        pass
try:
    from attncourse.checks.bahdanau import context_vector
except ImportError:
    pass
"""
NAMESPACES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
found = [hex(flag) for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000) if libc.unshare(flag) == 0]
"""


def without(name):
    """The solved cells, with the answer to one exercise left fresh."""
    i = next(i for i, cell in enumerate(FRESH) if f" {name}(" in cell and not cell.startswith("check"))
    return [*SOLVED[:i], FRESH[i], *SOLVED[i + 1 :]]


NO_CONTEXT = without("context_vector")


def test_a_cell_that_hangs_is_named_and_the_rest_runs(graded):
    grade = graded([*SOLVED[:2], HANG, "import os\nos._exit(3)", *SOLVED[2:]])
    assert grade.points == FULL
    assert grade.cell_errors[2].startswith("skipped: it ran too long")
    assert grade.cell_errors[3].startswith("skipped: its process ended")


def test_the_time_of_a_notebook_is_bounded_however_it_is_spent(exam, workers):
    """Cells that each stay within their own time, and answers that die, which has the cells run again."""
    slow = "import os, time\ntime.sleep(0.8)\ndef {}(*a, **k):\n    time.sleep(0.2)\n    os._exit(0)"
    cells = [*SOLVED, *(slow.format(exercise.defines) for exercise in exam.exercises)]
    grade = examiner.grade(cells, exam, workers, Times(cell=3.0, exercise=3.0, submission=5.0))
    assert 5 <= grade.seconds < 7.5 and grade.points == 0
    assert grade.verdicts[-1].message == "The notebook used up its time before this exercise."


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
        assert probe(graded, code) in ("RuntimeError: 'FileNotFoundError'", "RuntimeError: 'PermissionError'"), path


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
    found = probe(graded, code + "except OSError as error:\n    found = error.strerror")
    assert found in ("RuntimeError: 'Operation not permitted'", "RuntimeError: 'Network is unreachable'")
    server.close()
    assert not reached


def test_other_processes_cannot_be_seen(graded):
    code = (
        "import os\ntry:\n    found = [name for name in os.listdir('/proc') if name.isdigit()]\n"
        "except PermissionError:\n    found = ['1']"
    )
    assert probe(graded, code) == "RuntimeError: ['1']"


def test_the_examiners_memory_cannot_be_read(graded):
    assert probe(graded, f"PIDS = [{os.getpid()}]" + EXAMINERS_MEMORY) == "RuntimeError: []"


def test_no_namespace_can_be_made(graded):
    assert probe(graded, NAMESPACES) == "RuntimeError: []"


def test_limits_stay(graded):
    code = (
        "import resource\nfound = []\nfor name in ('AS', 'FSIZE', 'CPU', 'NPROC', 'NOFILE', 'CORE', 'MSGQUEUE'):\n"
        "    limit = getattr(resource, 'RLIMIT_' + name)\n    try:\n        resource.setrlimit(limit, (-1, -1))\n"
        "        found.append(name)\n    except (OSError, ValueError):\n        pass"
    )
    assert probe(graded, code) == "RuntimeError: []"


def test_nobody_else_is_killed_and_no_file_is_left(graded):
    others = [
        subprocess.Popen(["sleep", "60"], **({"user": uid} if os.geteuid() == 0 else {})) for uid in (None, 65534)
    ]
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    grade = graded([f"PIDS = {[other.pid for other in others]}" + KILL_ALL, f"MARK = '{mark}'" + FILL, *SOLVED])
    assert grade.points == FULL
    assert [other.poll() for other in others] == [None, None]
    for other in others:
        other.kill()
        other.wait()
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "."):
        assert not list(Path(folder).glob(f"filled-{mark}-*"))


def test_many_processes_have_the_memory_of_one(exam, workers):
    bomb = "import os, time\nfor _ in range(5):\n    os.fork()\nx = b'x' * 150_000_000\ntime.sleep(25)"
    grade = examiner.grade([bomb, *SOLVED], exam, workers, Times(cell=30.0, exercise=5.0, submission=60.0))
    assert grade.points == FULL
    assert grade.cell_errors[0].startswith("skipped: its process ended")


def test_what_was_closed_is_recorded(graded, workers):
    grade = graded(FRESH)
    assert grade.isolation == workers.level and grade.left == ""
    assert set(grade.protection) == {"files", "network", "processes", "system calls"}
    assert all(how.startswith(("closed (", "filtered (", "open")) for how in grade.protection.values())
    if workers.level == "A":
        assert {grade.protection[name] for name in ("files", "network", "processes")} == {"closed (namespace)"}


def test_the_learner_is_nobody(graded):
    found = probe(graded, "import os\ntry:\n    os.setuid(0)\nexcept OSError as error:\n    found = error.strerror")
    assert "not permitted" in found or "Invalid argument" in found


def test_points_edited_in_the_notebook_count_for_nothing(graded, tmp_path):
    notebook = nbformat.read(ROOT / "solutions" / "01_bahdanau.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.metadata["nbgrader"] = {"points": 100, "grade": True, "grade_id": "all", "locked": False, "solution": True}
    path = tmp_path / "edited.ipynb"
    path.write_text(nbformat.writes(notebook))
    grade = graded(code_cells(path))
    assert (grade.points, grade.possible) == (FULL, FULL)


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
