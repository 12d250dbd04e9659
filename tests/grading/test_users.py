"""Level B, where each submission runs as a user of its own: what it may see, and that nothing of it is left."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attncourse.grading import examiner, filters, isolation, users
from attncourse.grading.examiner import Workers, grade
from tests.grading.conftest import PATIENT, skip_unless_root
from tests.grading.test_attacks import (
    EXAMINERS_MEMORY,
    FILL,
    FORGE,
    FULL,
    KILL_ALL,
    NO_CONTEXT,
    ROOT,
    SETUID,
    SOLVED,
    probe,
)


@pytest.fixture
def root():
    skip_unless_root()


# --- without seccomp and Landlock: the user alone ----------------------------------------------------------------

LEFT_BEHIND = """
import ctypes, os, signal, time
os.setpgid(0, 0)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                pass
            time.sleep(0.1)
libc = ctypes.CDLL(None, use_errno=True)
found = [libc.shmget(0, 4096, 0o1777) >= 0, libc.msgget(0, 0o1777) >= 0, libc.semget(0, 1, 0o1777) >= 0]
libc.mq_open.restype = ctypes.c_int
found.append(libc.mq_open(b"/left", 0o102, 0o777, None) >= 0)
for folder in ("/tmp", "/dev/shm", "/var/tmp"):
    os.makedirs(os.path.join(folder, f"left-{os.getuid()}", "deep"), exist_ok=True)
    os.chmod(os.path.join(folder, f"left-{os.getuid()}"), 0)
os.symlink("/etc", f"/tmp/link-{os.getuid()}")
here = os.getcwd()
for _ in range(1200):
    os.mkdir("d")
    os.chdir("d")
"""


def test_nothing_of_a_submission_is_left(exam, bare_workers):
    cells = [LEFT_BEHIND, "import os\nraise RuntimeError(os.getuid())", *SOLVED]
    graded = grade(cells, exam, bare_workers, PATIENT)  # its processes never end, its cells do
    assert graded.points == FULL
    uid = int(graded.cell_errors[1].split()[-1])  # others are being graded elsewhere, as other users
    assert uid in users.UIDS
    for part in ("more processes", "files outside its folder", "3 shared memories"):
        assert part in graded.left
    assert Path("/etc/passwd").exists()
    assert not users.processes_of(uid)
    for folder in map(Path, users.WRITABLE):
        if folder.is_dir():
            assert not list(users.files_of(uid, [folder]))
    for kind in users.SHARED_MEMORY:
        rows = [line.split() for line in Path("/proc/sysvipc", kind).read_text().splitlines()]
        column = rows[0].index("uid")
        assert not [row for row in rows[1:] if int(row[column]) == uid]


def test_message_queues_cannot_be_made(graded_bare):
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "found = libc.mq_open(b'/queue', 0o102, 0o777, None), ctypes.get_errno() != 0"
    )
    assert probe(graded_bare, code) == "RuntimeError: (-1, True)"


BARE = {
    "reading the examiner's memory": ([f"PIDS = [{os.getpid()}]" + EXAMINERS_MEMORY, *NO_CONTEXT], FULL - 1),
    "killing every process": ([f"PIDS = [{os.getpid()}]" + KILL_ALL, *SOLVED], FULL),
    "filling the disk": (["MARK = 'bare'" + FILL, *SOLVED], FULL),
    "programs with root's rights": ([SETUID, *SOLVED], FULL),
    "forged reply": ([*NO_CONTEXT, FORGE], FULL - 1),
    "fork bomb": (["import os\nwhile True:\n    os.fork()", *SOLVED], FULL),
}


@pytest.mark.parametrize("name", BARE)
def test_score(name, graded_bare):
    cells, points = BARE[name]
    assert graded_bare(cells).points == points


def test_the_examiners_memory_cannot_be_read(graded_bare):
    assert probe(graded_bare, f"PIDS = [{os.getpid()}]" + EXAMINERS_MEMORY) == "RuntimeError: []"


def test_private_files_and_results_cannot_be_touched(graded_bare):
    for name, mode in (("key", 0o600), ("out", 0o700)):
        path = Path("/tmp") / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        path.mkdir(mode) if name == "out" else path.write_text("secret")
        path.chmod(mode)
        for call in (f"open({str(path)!r})", f"open({str(path)!r}, 'a')", f"__import__('os').listdir({str(path)!r})"):
            code = f"try:\n    found = {call}\nexcept OSError as error:\n    found = error.strerror"
            found = probe(graded_bare, code)
            assert found.split("'")[1] in ("Permission denied", "Not a directory", "Is a directory")
        path.rmdir() if name == "out" else path.unlink()


def test_a_program_of_root_gives_no_rights(graded_bare):
    folder = Path("/tmp") / f"setuid-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    folder.chmod(0o755)
    program = folder / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    try:
        found = probe(graded_bare, f"import subprocess\nfound = subprocess.check_output([{str(program)!r}, '-u'])")
    finally:
        program.unlink()
        folder.rmdir()
    assert int(found.split("'")[1].rstrip("\\n")) in users.UIDS


def test_what_is_open_is_said(graded_bare):
    server = socket.create_server(("127.0.0.1", 0))
    code = f"import socket\nfound = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1) and 'reached'"
    grade = graded_bare([f"{code}\nraise RuntimeError(found)"])
    server.close()
    assert grade.cell_errors[0] == "RuntimeError: reached"
    assert grade.protection["network"] == grade.protection["system calls"] == "open"
    assert grade.protection["files"] == "open: what every user of the machine may read"


def test_each_submission_is_another_user(graded_bare):
    code = "import os\nfound = (os.getuid(), os.getgid(), os.getgroups(), os.getcwd(), oct(os.stat('.').st_mode))"
    first, second = (probe(graded_bare, code) for _ in range(2))
    assert first != second
    assert ", [], " in first and "'0o40700'" in first


@pytest.mark.parametrize("level", ["A", "B"])
def test_the_installed_course_is_hidden_and_its_neighbours_are_not(level, exam, monkeypatch):
    """Whatever the umask of whoever grades, what is given can be read."""
    if level == "B":
        skip_unless_root()
    folder = Path("/tmp") / f"packages-{os.getpid()}-{time.monotonic_ns()}"
    for name in ("attncourse", "neighbour"):
        (folder / name).mkdir(parents=True)
        (folder / name / "solution.py").write_text("found = 'read'")
    (folder / "alone.py").write_text("")
    launch = Workers._launch

    def with_packages(self):
        self._environment["PYTHONPATH"] += f":{folder}"
        launch(self)

    monkeypatch.setattr(Workers, "_launch", with_packages)
    code = "import os, alone\nfrom neighbour.solution import found\nfound = [found]\n"
    for name in ("attncourse/solution.py", "attncourse"):
        path = folder / name
        code += (
            f"try:\n    found.append(os.listdir({str(path)!r}) if {path.is_dir()} else open({str(path)!r}).read())\n"
            "except OSError:\n    found.append([])\n"
        )
    code += "from attncourse.bahdanau import AdditiveAttention\nfound.append(AdditiveAttention.__name__)"
    told = "RuntimeError: ['read', [], [], 'AdditiveAttention']"
    umask = os.umask(0o077)
    try:
        with Workers(["attncourse.bahdanau"], level) as workers:
            assert probe(lambda cells: examiner.grade(cells, exam, workers), code) == told
    finally:
        os.umask(umask)
        shutil.rmtree(folder)


# --- users are lent ----------------------------------------------------------------------------------------------


def test_a_user_is_lent_once(root, tmp_path):
    one, two = users.lend(tmp_path), users.lend(tmp_path)
    assert one.uid != two.uid and one.home != two.home
    assert (one.home.stat().st_uid, stat.S_IMODE(one.home.stat().st_mode)) == (one.uid, 0o700)
    one.end()
    two.end()
    assert not list(tmp_path.iterdir()) and (one.left, two.left) == ("", "")


def test_root_follows_no_link_that_another_submission_puts_on_the_way(root, tmp_path, monkeypatch):
    """One leaves a file in a folder of another, which puts a link in the folder's place before root comes."""
    place, victim = tmp_path / "writable", tmp_path / "victim"
    for folder in (place, place / "others", victim):
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    (victim / "passwd").write_text("precious")
    monkeypatch.setattr(users, "WRITABLE", (str(place),))
    user = users.lend(tmp_path / "victim")
    (place / "others" / "passwd").touch()
    (place / "own").mkdir()
    for path in (place / "others" / "passwd", place / "own"):
        os.chown(path, user.uid, user.uid)
    seen = list(users.files_of(user.uid, [place]))
    assert {path.name for path in seen} == {"passwd", "own"}

    def swap(uid, folders):
        (place / "others").rename(place / "moved")
        (place / "others").symlink_to(victim)
        return seen

    monkeypatch.setattr(users, "files_of", swap)
    user.end()
    assert (victim / "passwd").read_text() == "precious" and not user.home.exists()
    assert user.left == "1 files outside its folder" and not (place / "own").exists()


def test_folders_of_others_may_be_nested_as_deep_as_they_like(root, tmp_path):
    folder = tmp_path / "0"
    for _ in range(1500):
        folder.mkdir()
        folder.chmod(0o777)
        if len(str(folder)) > 4000:
            break
        folder /= "0"
    try:
        assert not list(users.files_of(users.UIDS[0], [tmp_path]))
        assert users.usage(users.UIDS[0], tmp_path / "0", [])[1] > 1000
    finally:  # pytest would remove it one day, and cannot
        subprocess.run(["rm", "-rf", tmp_path / "0"], check=True)


KILLED = """
import os, sys, time
from pathlib import Path
from attncourse.grading import users
user = users.lend(Path(sys.argv[1]), 400)
if os.fork() == 0:
    os.close(user.lock)  # as a jail does
    os.setsid()
    os.setresuid(user.uid, user.uid, user.uid)
    print(user.uid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(root, tmp_path):
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    uid = int(run.stdout.readline())
    run.kill()
    run.wait()
    run.stdout.close()
    assert len(users.processes_of(uid)) == 1 and (tmp_path / str(uid)).is_dir()
    again = users.lend(tmp_path.parent, users.UIDS.index(uid))
    assert again.uid == uid and not users.processes_of(uid) and not (tmp_path / str(uid)).exists()
    again.end()


def test_a_worker_that_ended_is_replaced(bare_workers, graded_bare):
    bare_workers._process.kill()
    bare_workers._process.wait()
    assert graded_bare(SOLVED).points == FULL


# --- the choice of a level -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "namespaces", "for_root", "chosen"),
    [
        ("auto", None, None, "A"),
        ("auto", "refused", None, "B"),
        ("A", None, "no root", "A"),
        ("B", None, None, "B"),
        ("C", "refused", "no root", "C"),
    ],
)
def test_the_level(level, namespaces, for_root, chosen, monkeypatch):
    monkeypatch.setattr(isolation, "available", lambda: namespaces)
    monkeypatch.setattr(isolation, "available_to_root", lambda: for_root)
    assert isolation.choose(level) == chosen


@pytest.mark.parametrize(
    ("level", "said"), [("auto", "refused, and no root. "), ("A", "refused. "), ("B", "no root. ")]
)
def test_no_level_is_refused_with_a_remedy(level, said, monkeypatch):
    monkeypatch.setattr(isolation, "available", lambda: "refused")
    monkeypatch.setattr(isolation, "available_to_root", lambda: "no root")
    with pytest.raises(RuntimeError, match="cannot isolate a learner's code: ") as raised:
        isolation.choose(level)
    assert said in str(raised.value) and "Run as root" in str(raised.value) and "--isolation C" in str(raised.value)


def test_a_private_file_that_all_may_read_is_refused(root, exam):
    path = Path("/tmp") / f"key-{os.getpid()}-{time.monotonic_ns()}"
    path.write_text("secret")
    path.chmod(0o644)
    try:
        with pytest.raises(RuntimeError, match=f"chmod 600 {path}"):
            Workers(exam.given, "B", private=[path])
    finally:
        path.unlink()
    assert isolation.closed_to_others(Path("/root") / "any") == Path("/root")


def test_packages_in_a_closed_folder_are_refused(root, monkeypatch):
    monkeypatch.setattr(isolation, "package_folders", lambda: [Path("/root")])
    said = "at level B every user must be able to read Python's packages, and /root is closed to others"
    assert isolation.available_to_root() == said


# --- as in Gradescope's container -------------------------------------------------------------------------------------

CONTAINER = """
import ctypes, sys
from attncourse import cli
from attncourse.grading import filters
libc = ctypes.CDLL(None, use_errno=True)
docker = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}  # the capabilities that Docker leaves
for capability in set(range(41)) - docker:
    assert libc.prctl(24, capability, 0, 0, 0) == 0
keep = sum(1 << capability for capability in docker)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert libc.capset(header, (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)) == 0
assert filters.refuse_calls(["unshare", "setns", "mount", "umount2", "pivot_root", "keyctl", "bpf", "ptrace"])
assert cli.main(sys.argv[1:] + ["--isolation", "A"]) == 1
sys.exit(cli.main(sys.argv[1:]))
"""


def test_as_root_in_a_container_without_namespaces(root, tmp_path):
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        "-c",
        CONTAINER,
        "grade",
        str(ROOT / "solutions" / "01_bahdanau.ipynb"),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1 and "namespaces are refused (Operation not permitted)" in done.stderr
    (record,) = json.loads(out.read_text()).values()
    assert record["score"] == FULL and record["extra_data"]["isolation"] == "B"


# --- seccomp and Landlock ----------------------------------------------------------------------------------------


def in_a_child(function):
    """What a function returned or raised in a forked child, as text."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            try:
                text = str(function())
            except Exception as error:
                text = type(error).__name__
            os.write(theirs, text.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    text = os.read(ours, 4096).decode()
    os.close(ours)
    return text


def test_calls_are_refused_and_threads_and_programs_still_start():
    def tried():
        assert filters.refuse_calls()
        import threading

        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        socket.socketpair()
        assert subprocess.run(["true"]).returncode == 0
        return socket.socket(socket.AF_UNIX)

    if filters._library is None:
        pytest.fail("libseccomp.so.2 is missing: sudo apt-get install libseccomp2")
    assert in_a_child(tried) == "PermissionError"


def test_without_the_library_it_says_so(monkeypatch):
    monkeypatch.setattr(filters, "_library", None)
    assert filters.refuse_calls() is False


def test_files_are_closed_but_those_named(tmp_path):
    for name in ("read", "write", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    def tried():
        isolation._call("prctl", isolation.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        assert filters.close_files([tmp_path / "read"], [tmp_path / "write"], [Path("/dev/null")])
        assert (tmp_path / "read" / "file").read_text() == "read"
        (tmp_path / "write" / "new").write_text("new")
        Path("/dev/null").write_text("gone")
        refused = 0
        for path, mode in (("read/file", "w"), ("closed/file", "r"), ("/etc/passwd", "r"), ("/proc/self/status", "r")):
            try:
                open(tmp_path / path, mode).close()
            except PermissionError:
                refused += 1
        return refused

    if not filters.landlock_version():
        pytest.fail(
            "this kernel has no Landlock: it has to be among those of /sys/kernel/security/lsm (boot with lsm=)"
        )
    assert in_a_child(tried) == "4"


def test_without_landlock_it_says_so(monkeypatch):
    monkeypatch.setattr(filters, "landlock_version", lambda: 0)
    assert filters.close_files([], [], []) is False


def test_a_process_that_stops_others_from_dying_dies(root, tmp_path):
    """Processes that start each other anew, ignore signals and wake each other up."""
    user = users.lend(tmp_path)
    child = os.fork()
    if child == 0:
        os.setsid()
        isolation.drop_privileges(user.uid)
        isolation.set_limits(isolation.Limits(processes=30))
        isolation._libc.prctl(isolation.PR_SET_PDEATHSIG, 0, 0, 0, 0)
        while True:
            with contextlib.suppress(OSError):
                os.fork()
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGCONT)
    time.sleep(0.2)
    user.end(users.strays(user.uid, os.getpid()))
    os.waitpid(child, 0)
    assert not users.processes_of(user.uid) and "more processes" in user.left
