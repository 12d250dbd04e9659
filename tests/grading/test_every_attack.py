"""A class in which everyone attacks, graded by the command: the exact score of each at levels A and B.

None ends the run, gets what it has not earned, takes what another has earned, or touches anything outside.
"""

import contextlib
import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from attncourse import cli
from attncourse.checks import exercises
from attncourse.grading import users
from attncourse.grading.feedback import page_name
from attncourse.grading.key import Assigned, Assignment, Key
from tests.grading.a_class import notebook, zipped
from tests.grading.conftest import skip_unless_root
from tests.grading.test_attacks import (
    ALWAYS_EQUAL,
    DAEMON,
    EDIT_RESULTS,
    EXAMINERS_MEMORY,
    FILL,
    FORGE,
    FRAMES,
    FRESH,
    FULL,
    GARBAGE,
    IMPORT_BY_PATH,
    IMPORT_REFERENCE,
    KILL_ALL,
    MANY_FILES,
    NAMESPACES,
    NO_CONTEXT,
    OWN_LIMITS,
    PATCH,
    ROOT,
    SETUID,
    SOLVED,
    SWALLOW,
    TRANSFORMER,
    TRANSFORMER_OF_THE_WORKER,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="levels A and B are Linux's")

HANG = "import time\nwhile True:\n    time.sleep(1)"
DEAF = "import signal\nfor n in (1, 2, 3, 10, 12, 13, 14, 15, 20, 24):\n    signal.signal(n, signal.SIG_IGN)\n"
CLAIM = "check = print\nprint('✓ passed 100 of 100 points')"
FORGE_NAN = FORGE.replace('["results", {"_": "tuple", "items": []}]', '["results", NaN], ["more", Infinity]')
STEERS = "raise RuntimeError('\\x1b[2J\\x1b]0;owned\\x07\\r<script>alert(1)</script>\\u202e' + 'x' * 10**7)"
EARNED, WITHOUT = FULL, FULL - 1  # all right; all right but for one exercise


def answer(body):
    """All right but for one exercise, whose answer is this."""
    return [*NO_CONTEXT, f"import os, torch\ndef context_vector(w, v):\n{body}"]


def attacks(place, pids, mark):
    """{what is tried: (the code cells, or the file; the score)}, against the files in `place` and these processes."""
    targets = [place / name for name in ("canary", "course.key", "class/all-solved.ipynb", "out/adjustments.csv")]
    targets += [place / "out/results" / f"{name}.json" for name in ("all-solved", "results-edited")]
    edit = f"TARGETS = {[str(path) for path in targets]!r}\nPIDS = {pids}\nMARK = {mark!r}\n"
    return {
        "all solved": (SOLVED, EARNED),
        "nothing attempted": (FRESH, 0),
        "no cells": ([], 0),
        # cells and answers that end, hang, or take too much
        "loop in a cell": ([HANG, *SOLVED], EARNED),
        "loop that swallows interrupts": ([DEAF + SWALLOW, *SOLVED], EARNED),
        "loop in an answer": (answer("    import time\n    while True: time.sleep(1)"), WITHOUT),
        "os._exit in a cell": (["import os\nos._exit(0)", *SOLVED], EARNED),
        "os._exit in an answer": (answer("    os._exit(0)"), WITHOUT),
        "sys.exit in a cell": (["import sys\nsys.exit()", "raise KeyboardInterrupt", *SOLVED], EARNED),
        "sys.exit in an answer": (answer("    raise SystemExit"), WITHOUT),
        "crash": (["import ctypes\nctypes.string_at(0)", *SOLVED], EARNED),
        "all descriptors closed": (["import os\nos.closerange(0, 1000)", *SOLVED], EARNED),
        "memory bomb of Python": (["x = [0] * 10**10", *SOLVED], EARNED),
        "memory bomb of torch": (["import torch\nx = torch.ones(10**11)", *SOLVED], EARNED),
        "memory bomb, little by little": (["x = []\nwhile True:\n    x.append(bytearray(10**8))", *SOLVED], EARNED),
        "memory bomb in an answer": (answer("    return torch.ones(10**11)"), WITHOUT),
        "fork bomb": (["import os\nwhile True:\n    os.fork()", *SOLVED], EARNED),
        "output flood": (["for i in range(10**5):\n    print('x' * 1000)", *SOLVED], EARNED),
        "syntax error": (["def broken(:\n    pass", *SOLVED], EARNED),
        "error that steers a terminal": ([STEERS, *SOLVED], EARNED),
        "error whose text exits": (["class E(Exception):\n    __str__ = lambda s: exit()\nraise E()", *SOLVED], EARNED),
        "thousands of failing cells": ([*["raise RuntimeError('é😀' * 400)"] * 1500, *SOLVED], EARNED),
        "more cells than are run": ([*["x = 1"] * 6000, *SOLVED], 0),
        "filling the disk": ([edit + FILL, *SOLVED], EARNED),
        "many files, very deep": ([MANY_FILES, *SOLVED], EARNED),
        "daemon": ([edit + DAEMON, *SOLVED], EARNED),
        "magics and shell lines": (["%matplotlib inline\n!pip install torch\n%%time", *SOLVED], EARNED),
        # the comparison
        "patched torch.allclose and torch.equal": ([PATCH, *NO_CONTEXT], WITHOUT),
        "patched builtins": ([*NO_CONTEXT, "import builtins\nbuiltins.isinstance = lambda *a: True"], WITHOUT),
        "a tensor that equals everything": ([*NO_CONTEXT, ALWAYS_EQUAL], WITHOUT),
        "NaN everywhere": (answer("    return (w @ v) * float('nan')"), WITHOUT),
        "infinities": (answer("    return (w @ v) / 0"), WITHOUT),
        "complex numbers": (answer("    return (w @ v).to(torch.complex64)"), WITHOUT),
        "a reply too large to send": (answer("    return torch.zeros(10**7, dtype=torch.bool)"), WITHOUT),
        "a class without a name": (answer("    return type('', (), {})()"), WITHOUT),
        "a fake passed": ([*NO_CONTEXT, CLAIM], WITHOUT),
        # the answers
        "frame walk": ([*NO_CONTEXT, FRAMES], WITHOUT),
        "gc walk for references": ([*NO_CONTEXT, GARBAGE], WITHOUT),
        "importing the reference": ([*NO_CONTEXT, IMPORT_REFERENCE], WITHOUT),
        "importing the reference by its path": ([*NO_CONTEXT, IMPORT_BY_PATH], WITHOUT),
        # the notebook
        "every cell twice": ([cell for cell in SOLVED for _ in (0, 1)], EARNED),
        "fresh copies after the answers": ([*SOLVED, *FRESH], EARNED),
        "checks deleted": ([cell for cell in SOLVED if not cell.startswith("check(")], EARNED),
        "checks and an answer deleted": ([cell for cell in NO_CONTEXT if not cell.startswith("check(")], WITHOUT),
        "IPython transformer that deletes tests": ([TRANSFORMER, *NO_CONTEXT], WITHOUT),
        "IPython transformer, right answers": ([TRANSFORMER, *SOLVED], EARNED),
        "the worker's own transformer patched": ([*NO_CONTEXT, TRANSFORMER_OF_THE_WORKER, *SOLVED], WITHOUT),
        "points edited to 100": (worth_a_hundred(NO_CONTEXT), WITHOUT),
        # what is outside
        "forged reply": ([*NO_CONTEXT, FORGE], WITHOUT),
        "forged reply with NaN": ([*NO_CONTEXT, FORGE_NAN], WITHOUT),
        "results edited": ([edit + EDIT_RESULTS, *NO_CONTEXT], WITHOUT),
        "reading the examiner's memory": ([edit + EXAMINERS_MEMORY, *NO_CONTEXT], WITHOUT),
        "killing every process": ([edit + KILL_ALL, *SOLVED], EARNED),
        "raising its own limits": ([OWN_LIMITS, *SOLVED], EARNED),
        "programs with root's rights": ([SETUID, *SOLVED], EARNED),
        "namespaces of its own": ([NAMESPACES, *SOLVED], EARNED),
        # files
        "empty file": (b"", 0),
        "truncated JSON": (notebook(SOLVED)[:4000], 0),
        "JSON that is no notebook": (b"[1, 2]", 0),
        "not UTF-8": ("é".encode("latin-1"), 0),
        "nested too deep": (b'{"cells": ' + b"[" * 100_000, 0),
        "more code than is run": ([*SOLVED, "x = 1\n" * 200_000], 0),
    }


def worth_a_hundred(cells):
    """A notebook that says of every cell that it earned 100 points."""
    book = json.loads(notebook(cells))
    said = {"output_type": "stream", "name": "stdout", "text": "✓ passed: 100 of 100 points"}
    for i, cell in enumerate(book["cells"]):
        cell["metadata"]["nbgrader"] = {"grade": True, "points": 100, "grade_id": f"c{i}", "solution": True}
        cell["outputs"] = [said]
    book["metadata"]["score"] = 100
    return json.dumps(book).encode()


def student(name):
    """A student's id: what is tried, in letters that every file may have."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# Names that collide where case does not count, that a device has, that a spreadsheet or a browser would run, that
# steer a terminal or are no UTF-8; and what they are called in the class.
NAMES = {
    **{name.encode(): name for name in ("Twin", "twin", "con", "LPT1", "-rf", "=cmd|'!A0", "<img src=x onerror=a()>")},
    b"Jos\xe9": "José",
    b"\x1b[31mred\r": "\\x1b[31mred\\r",
    "\u202egpj".encode(): "\\u202egpj",
}


def fill(folder):
    """Put into a folder the submissions that are no matter of code; {student: score}."""
    folder.mkdir()
    for raw in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), raw + b".ipynb"))).write_bytes(notebook(SOLVED))
    (folder / "twin.ipynb").write_bytes(notebook(NO_CONTEXT))
    for n, cells in (("attempt 9", SOLVED), ("attempt 10", NO_CONTEXT)):
        (folder / "two submissions" / n).mkdir(parents=True)
        (folder / "two submissions" / n / "x.ipynb").write_bytes(notebook(cells))
    (folder / "a hundred notebooks").mkdir()
    for i in range(100):
        (folder / "a hundred notebooks" / f"{i}.ipynb").write_bytes(notebook(SOLVED))
    (folder / "no notebook").mkdir()
    (folder / "no notebook" / "grades.json").write_text('{"score": 100}')
    (folder / "link to the key.ipynb").symlink_to("../course.key")
    (folder / "link to another's.ipynb").symlink_to("all-solved.ipynb")
    (folder / "link to everything").symlink_to("/")
    os.mkfifo(folder / "pipe.ipynb")
    with open(folder / "two hundred megabytes.ipynb", "wb") as file:
        file.truncate(200 << 20)
    links = ("link to the key", "link to another's", "link to everything")
    nothing = (*links, "no notebook", "pipe", "two hundred megabytes")
    earned = dict.fromkeys(NAMES.values(), EARNED) | {"twin": WITHOUT, "two submissions": WITHOUT}
    return earned | {"a hundred notebooks": EARNED} | dict.fromkeys(nothing, 0)


def hostile_zip(path):
    """A zip of tricks, with one honest student; {student: score}."""
    good, link = notebook(SOLVED), zipfile.ZipInfo("link_5_9_x.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    inner = zipped({"x.ipynb": b" " * (5 << 20)}, path.with_name("inner.zip")).read_bytes()
    inner = zipped({"x.ipynb": b" " * (5 << 20), "y.zip": inner}, path.with_name("inner.zip")).read_bytes()
    path.with_name("inner.zip").unlink()
    zipped(
        {
            "honest_1_9_x.ipynb": good,
            "bomb_2_9_x.ipynb": b" " * (15 << 20),
            "large_3_9_x.ipynb": os.urandom(1000) * 30_000,
            "nested_4_9_x.zip": inner,
            link: b"/etc/passwd",
            "twice_6_9_x.ipynb": good,
            "twice_6_10_x-1.ipynb": notebook(NO_CONTEXT),
            "caf#_7_9_x.ipynb": good,
            "damaged_8_9_x.ipynb": good,
            "../../../out.ipynb": good,
            "/etc/cron.d/job.ipynb": good,
            "C:\\windows\\x.ipynb": good,
            "D L_11_assignsubmission_file_/../../../evil.ipynb": good,
            "n" * 3000 + ".ipynb": good,
        },
        path,
    )
    data = path.read_bytes().replace(b"caf#", b"caf\x82")  # code page 437, as old systems write
    at = data.index(b"damaged_8_9_x.ipynb") + 100
    path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    long = "n" * 150 + "…" + "n" * 44
    earned = dict.fromkeys(("1", "7", "etc", "C:", long), EARNED)
    return earned | {"6": WITHOUT} | dict.fromkeys(("2", "3", "4", "5", "8", "11", "out"), 0)


class Run:
    """The command, run on a class at a level, and what it left. expected: {student: score}.

    With one process at level A and two at level B: what they do to each other is tried where least is between them.
    """

    def __init__(self, level, place, submissions, expected, key, inside=False):
        self.level, self.place, self.expected, self.out = level, place, expected, place / "out"
        command = ["grade", str(submissions), "--key", str(key.path), "--out", str(self.out), "--isolation", level]
        command += ["--workers", "1" if inside or level == "A" else "2"]
        if inside:  # in this process, which has imported everything
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
                self.done = subprocess.CompletedProcess(command, cli.main(command))
            self.done.stdout, self.done.stderr = out.getvalue(), error.getvalue()
        else:
            command = [sys.executable, "-m", "attncourse.cli", *command]
            self.done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=place)
        found = [json.loads(path.read_text("utf-8")) for path in sorted(self.out.glob("results/*.json"))]
        self.results = {result["extra_data"]["student"]: result for result in found}

    def of(self, name):
        """The result of the student who tries this."""
        return self.results[student(name)]


def make_key(place):
    """A key with an assignment of chapter 1."""
    key = Key.make(place / "course.key")
    key.add(Assignment("week-1", "Week 1", "", tuple(Assigned(e.id, None, e.points) for e in exercises("bahdanau"))))
    return key


def contents(folder):
    """{path: mode, and size or bytes} of everything below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        how = path.lstat()
        readable = stat.S_ISREG(how.st_mode) and how.st_size < 1 << 20
        found[path] = (how.st_mode, path.read_bytes() if readable else how.st_size)
    return found


def sources():
    """The course's own code."""
    return {path: path.read_bytes() for path in (ROOT / "attncourse").rglob("*.py")}


def at_level(level):
    """A parameter: all tests of one level in one process, since they share a class."""
    return pytest.param(level, marks=pytest.mark.xdist_group(f"attacks {level}"))


LEVELS = [at_level("A"), at_level("B")]
MARK = f"attack-{os.getpid()}-{time.monotonic_ns()}"


def place_for(level, tmp_path_factory):
    """A folder that only its owner can open, for a run at this level."""
    if level == "B":
        skip_unless_root()
    place = tmp_path_factory.mktemp(f"class-{level}")
    place.chmod(0o700)
    return place


@pytest.fixture(scope="module", params=LEVELS)
def folder(request, tmp_path_factory):
    """The class in a folder, after the run."""
    place = place_for(request.param, tmp_path_factory)
    nobody = {"user": 65534} if os.geteuid() == 0 else {}
    key = make_key(place)
    (place / "canary").write_text("alive")
    expected = fill(place / "class")
    others = [subprocess.Popen(["sleep", "1000"], **who) for who in ({}, nobody)]
    try:
        for name, (what, points) in attacks(place, [other.pid for other in others], MARK).items():
            data = what if isinstance(what, bytes) else notebook(what)
            (place / "class" / f"{student(name)}.ipynb").write_bytes(data)
            expected[student(name)] = points
        before = contents(place), sources()
        run = Run(request.param, place, place / "class", expected, key)
        run.before, run.others = before, [other.poll() for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()
    return run


@pytest.fixture(scope="module", params=LEVELS)
def packed(request, tmp_path_factory):
    """The class in a zip, after the run."""
    place = place_for(request.param, tmp_path_factory)
    expected = hostile_zip(place / "class.zip")
    return Run(request.param, place, place / "class.zip", expected, make_key(place), inside=True)


@pytest.mark.parametrize("name", attacks(Path("/nowhere"), [], ""))
def test_score(name, folder):
    result = folder.of(name)
    expected = folder.expected[student(name)]
    assert (result["score"], sum(test["score"] for test in result["tests"])) == (expected, expected), result["output"]


def test_every_score_stands_in_results_and_gradebook(folder):
    check(folder)


def test_every_score_of_a_zip_stands_in_results_and_gradebook(packed):
    check(packed)


def check(run):
    """The run succeeds; one line, one result and one row a student, all harmless, with the scores expected."""
    assert (run.done.returncode, run.done.stderr) == (0, "")
    assert {who: result["score"] for who, result in run.results.items()} == run.expected
    with open(run.out / "gradebook.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1][5] == str(FULL) and len(rows) == 2 + len(run.expected)
    assert sorted(int(row[5]) for row in rows[2:]) == sorted(run.expected.values())
    assert not [cell for row in rows[2:] for cell in row if cell.startswith(tuple("=+-@\t\r"))]
    lines = run.done.stdout.splitlines()
    assert len(lines) == 1 + len(run.expected) + 2 and all(line.isprintable() for line in lines)
    assert "failed" not in run.done.stdout


def test_each_name_is_its_own_students(folder):
    pages = {path.stem for path in (folder.out / "feedback").iterdir()}
    assert pages == {page_name(who) for who in folder.expected} and len({p.casefold() for p in pages}) == len(pages)
    assert folder.results["two submissions"]["extra_data"]["not_counted"] == ["two submissions/attempt 9/x.ipynb"]
    told = "".join(path.read_text("utf-8") for path in folder.out.rglob("*.html"))
    assert "&lt;img src=x" in told and not re.search(r"<(img|script)|\x1b|\u202e", told)


def test_level_and_protection_are_recorded(folder):
    ran = [result["extra_data"] for who, result in folder.results.items() if result["extra_data"]["isolation"]]
    records = [json.loads(path.read_text("utf-8")) for path in (folder.out / "records").iterdir()]
    assert len(ran) > 50 and len(records) > 40
    for found in (*ran, *records):
        assert found["isolation"] == folder.level
        assert set(found["protection"]) == {"files", "network", "processes", "system calls"}
        assert folder.level == "B" or found["protection"]["files"] == "closed (namespace)"
    left = folder.of("daemon")["extra_data"]["left_behind"]
    assert left == ("" if folder.level == "A" else "1 more processes")
    assert folder.of("all solved")["extra_data"]["left_behind"] == ""
    summary = (folder.out / "summary.html").read_text("utf-8")
    assert f"Isolation level {folder.level}." in summary
    assert ("left behind what was removed: 1 more processes" in summary) == (folder.level == "B")


def test_nothing_outside_was_touched(folder):
    place = {path: found for path, found in contents(folder.place).items() if not path.is_relative_to(folder.out)}
    assert place == folder.before[0]
    assert sources() == folder.before[1] and not (ROOT / "grades.json").exists()
    assert folder.others == [None, None]  # those it could have killed still run
    for name in ("/tmp", "/dev/shm", "/var/tmp", "/dev/mqueue", "."):
        assert not Path(name).is_dir() or not list(Path(name).glob(f"*{MARK}*"))
    end = time.monotonic() + 10
    while (left := processes_called(MARK[-15:])) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    wanted = [
        ".assignment",
        ".lock",
        "adjustments.csv",
        "feedback",
        "gradebook.csv",
        "records",
        "results",
        "summary.html",
    ]
    assert sorted(path.name for path in folder.out.iterdir()) == wanted


def processes_called(name):
    """The processes that gave themselves this name."""
    found = []
    for pid in users.processes_of(None):
        with contextlib.suppress(OSError):
            found += [pid] if Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() == name else []
    return found


def test_nothing_of_a_zip_is_written_outside_the_results(packed):
    assert sorted(path.name for path in packed.place.iterdir()) == ["class.zip", "course.key", "out"]
    assert not [path for path in packed.place.parent.glob("*.ipynb")]
    problems = " ".join(result["output"] for result in packed.results.values())
    for words in ("as a zip bomb does", "30 MB; at most 21", "is a zip within the zip", "a symbolic link"):
        assert words in problems
    assert "is damaged in the zip" in problems and problems.count("leads out of its folder") == 2
