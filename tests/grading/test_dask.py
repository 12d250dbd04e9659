"""A class graded on a Dask cluster: the same grades, whatever happens to its workers."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor
from functools import partial
from types import SimpleNamespace

import distributed
import pytest

from attncourse import cli
from attncourse.grading import classroom, cluster
from attncourse.grading.classroom import ClassError, Records, grade_class
from attncourse.grading.cluster import Cluster, Terms
from attncourse.grading.intake import find_submissions
from tests.grading.a_class import FRESH, FULL, ROOT, SOLVED, UNIFORM, marked, with_answer
from tests.grading.test_classroom import Inline, alive, children, essence, fill

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Dask workers shut submissions in as Linux can"),
    pytest.mark.xdist_group("dask"),
]
SLEEPS = "import time\ntime.sleep(0.7)"  # so that there is something to kill


def slow(name, cells=SOLVED):
    return marked(name, [SLEEPS, *cells])


FILES = {
    "ann": slow("ann"),
    "bob": slow("bob", with_answer(UNIFORM)),
    "cyd": slow("cyd"),
    "dan": slow("dan", FRESH),
    "eve": b"",
    "fay": slow("fay"),
    "gus": slow("gus", ["import os\nos._exit(0)", *SOLVED]),
}
POINTS = {"ann": FULL, "bob": FULL - 1, "cyd": FULL, "dan": 0, "eve": 0, "fay": FULL, "gus": FULL}


class Dask:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        file = folder / "scheduler.json"
        self.scheduler = self.start("scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={file}")
        until(lambda: file.exists() and whole(file.read_text()))
        self.address = json.loads(file.read_text())["address"]

    def start(self, what, *arguments, **environment):
        command = [sys.executable, "-m", "dask", what, "--dashboard-address=:0", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def worker(self, *arguments, **environment):
        options = ("--nthreads=1", "--memory-limit=0", f"--local-directory={self.folder}")
        return self.start("worker", self.address, *options, *arguments, **environment)

    def client(self):
        return distributed.Client(self.address, timeout=30, set_as_default=False)

    def stop(self):
        for pid in {pid for process in self.processes for pid in (process.pid, *children(process.pid))}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


def whole(text):
    """Whether this is all of a JSON text, and not only its beginning."""
    with contextlib.suppress(ValueError):
        return bool(json.loads(text))
    return False


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A worker may take long to start on a busy machine."""
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 240.0)


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    """A scheduler, yet without workers."""
    started = Dask(tmp_path_factory.mktemp("dask"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def workers(dask):
    """Two workers: one that stays away when it is killed, and one that Dask's nanny starts again."""
    mortal, nanny = dask.worker("--no-nanny"), dask.worker("--nanny")
    with dask.client() as client:
        client.wait_for_workers(2, timeout=240)
    return mortal, nanny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("class") / "submissions", FILES)


@pytest.fixture(scope="module")
def submissions(folder):
    return find_submissions(folder)


@pytest.fixture(scope="module")
def run(dask, workers, key, folder, tmp_path_factory):
    """The command's run of the class, one worker of which is killed: its folder, its arguments, and what it said."""
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = [*map(str, ("grade", folder, "--key", key.path, "--out", out)), "--dask", dask.address]
    family = set()

    def kill_half_way():
        mortal = workers[0].pid
        with dask.client() as client:
            address = next(address for address, pid in client.run(os.getpid).items() if pid == mortal)
            until(lambda: list(out.glob("records/*.json")), 240)
            while not family:
                until(lambda: client.processing()[address], 240)
                os.kill(mortal, signal.SIGSTOP)
                time.sleep(0.3)  # what it had said before arrives
                if client.processing()[address]:
                    family.update({mortal, *children(mortal)})
                    os.kill(mortal, signal.SIGKILL)
                else:
                    os.kill(mortal, signal.SIGCONT)

    killing = threading.Thread(target=kill_half_way)
    killing.start()
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        status = cli.main(arguments)
    killing.join()
    return SimpleNamespace(
        out=out,
        arguments=arguments,
        status=status,
        said=said.getvalue(),
        complained=complained.getvalue(),
        family=family,
    )


def nobody(n):
    raise AssertionError("there is nothing to grade")


def old_course(folder):
    """A folder with a course from before there was this module."""
    (folder / "attncourse").mkdir()
    (folder / "attncourse" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    return folder


def test_a_scheduler_without_workers(dask, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2.0)
    with pytest.raises(ClassError, match=f"has no worker: start some with `dask worker {dask.address} --nthreads 1"):
        Cluster(dask.address)


def test_a_worker_with_an_older_course_is_refused(dask, tmp_path):
    worker = dask.worker("--no-nanny", PYTHONPATH=str(old_course(tmp_path)))
    with Cluster(dask.address) as connected, pytest.raises(ClassError) as refused:
        connected.choose("auto")
    assert re.search(r"1 of 1 Dask workers cannot grade.*has attncourse 0\.0\.1, and this class", str(refused.value))
    assert classroom.fingerprint() in str(refused.value)
    worker.terminate()
    worker.wait()


def test_a_worker_that_is_killed_costs_nothing(run, work, submissions, tmp_path):
    assert run.status == 0
    told = re.findall(r"^ *(\d+)/13  (\w+)", run.said, re.MULTILINE)
    assert sorted((student, int(points)) for points, student in told) == sorted(POINTS.items())
    here = grade_class(submissions, work, tmp_path, pool=Inline)
    there = grade_class(submissions, work, run.out, pool=nobody)
    assert essence(there) == essence(here)
    hashes = lambda folder: sorted(path.name for path in folder.glob("records/*"))  # noqa: E731
    assert hashes(run.out) == hashes(tmp_path) and len(hashes(tmp_path)) == 6


def test_what_a_killed_worker_had_started_ends_with_it(run):
    assert len(run.family) > 1
    until(lambda: not alive(run.family), 20)


def test_it_is_said_that_the_connection_is_not_encrypted(run, dask):
    line = next(line for line in run.complained.splitlines() if "unencrypted" in line)
    assert dask.address in line and "tls://" in line


def test_a_second_run_grades_nothing(run, capsys):
    assert cli.main(run.arguments) == 0
    out = capsys.readouterr().out
    assert "\n0 graded, 7 as before" in out and "  13/13  ann: as before" in out


def test_another_version_is_refused_before_and_while_a_class_is_graded(
    run, dask, work, submissions, tmp_path, monkeypatch
):
    real = classroom.fingerprint()
    monkeypatch.setattr(cluster, "fingerprint", lambda: "7.0.0 0123456789abcdef")
    with Cluster(dask.address) as connected:
        for choose in (connected.choose, lambda _: "A"):  # a worker may join a class that has begun
            with pytest.raises(ClassError) as refused:
                grade_class(submissions, work, tmp_path, pool=connected.pool, choose=choose, ahead=1)
            assert f"has attncourse {real}, and this class is graded with 7.0.0 0123456789abcdef" in str(refused.value)
    assert not list(tmp_path.glob("records/*"))


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def recall(folder, job):
    return Records(folder).get(job.hash)


def test_a_job_that_kills_its_workers_fails_alone(run, dask, work, submissions, tmp_path):
    some = [submission for submission in submissions if submission.student in ("ann", "bob")]
    functions = {"# ann": partial(recall, run.out / "records"), "# bob": die}

    class Deadly(Executor):
        def __init__(self, pool):
            self.submit = lambda _, job: pool.submit(functions[job.cells[-1]], job)
            self.shutdown = pool.shutdown

    with dask.client() as client, Cluster(dask.address) as connected:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        pool = lambda n: Deadly(connected.pool(n))  # noqa: E731
        ann, bob = grade_class(some, work, tmp_path, workers=2, pool=pool, choose=lambda _: "A", ahead=1)
    assert (ann.points, ann.failed) == (FULL, "") and "was killed, twice" in bob.failed
    assert len(list(tmp_path.glob("records/*"))) == 1


def test_a_cluster_that_is_lost_is_given_up(run, dask, workers, work, submissions, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    with Cluster(dask.address) as connected:
        for pid in (workers[1].pid, *children(workers[1].pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr(cluster, "EMPTY_SECONDS", 0.5)
        with pytest.raises(ClassError, match=r"it has had no worker for .* run the same command again"):
            grade_class(submissions, work, tmp_path, pool=connected.pool, choose=lambda _: "A", ahead=1)
        monkeypatch.setattr(cluster, "EMPTY_SECONDS", 600.0)
        threading.Timer(0.5, dask.scheduler.kill).start()
        with pytest.raises(ClassError, match=r"scheduler at .* is lost\. What is graded is kept"):
            grade_class(submissions, work, tmp_path, pool=connected.pool, choose=lambda _: "A", ahead=1)


def silent():
    """A server that accepts and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_nothing_at_the_address(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    server, address = silent()

    def said(address):
        status = cli.main(["grade", str(folder), "--out", str(tmp_path), "--dask", address])
        return status, capsys.readouterr().err

    status, error = said(address)
    assert status == 1 and "is it the port of a dashboard?" in error
    server.close()
    status, error = said(address)
    assert status == 1 and error.startswith(
        f"attncourse grade: no Dask scheduler answers at {address}: OSError: Timed out"
    )
    assert "Start one with `dask scheduler`" in error
    assert "missing port" in said("nonsense")[1]
    assert not list(tmp_path.glob("records"))


def test_without_dask(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "attncourse.grading.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["grade", str(folder), "--out", str(tmp_path), "--dask", "tcp://127.0.0.1:8786"]) == 1
    assert "pip install distributed" in capsys.readouterr().err


def test_level_b_needs_a_network_that_submissions_cannot_reach():
    about = {"fingerprint": "1", "A": "no namespaces", "B": None, "filtered": False}
    assert "reach the scheduler" in cluster._objection(about, "B", Terms("1", encrypted=False))
    assert cluster._objection(about, "B", Terms("1", encrypted=True)) is None
    assert cluster._objection(about | {"filtered": True}, "B", Terms("1", encrypted=False)) is None
    assert "no namespaces" in cluster._objection(about, "A", Terms("1", encrypted=True))
    assert cluster._objection(about, "C", Terms("1", encrypted=False)) is None


def test_a_class_is_graded_at_the_level_that_all_workers_have():
    both = {"fingerprint": "1", "A": None, "B": None, "filtered": True}
    only_a, only_b = both | {"B": "level B needs root"}, both | {"A": "no namespaces"}
    terms = Terms("1", encrypted=False)
    assert cluster.agreed({"x": both, "y": only_a}, "auto", terms) == ("A", {})
    assert cluster.agreed({"x": both, "y": only_b}, "auto", terms) == ("B", {})
    assert cluster.agreed({"x": both, "y": only_b}, "C", terms) == ("C", {})
    chosen, refused = cluster.agreed({"x": both, "y": only_b}, "A", terms)
    assert chosen is None and list(refused) == ["y"] and "no namespaces" in refused["y"]
    chosen, refused = cluster.agreed({"x": only_a, "y": only_b, "z": both}, "auto", terms)
    assert chosen is None and "needs root" in refused["x"] and "no namespaces" in refused["y"] and len(refused) == 2
    neither = only_a | only_b | {"B": "level B needs root", "A": "no namespaces"}
    assert re.search("no namespaces, and .* needs root", cluster.agreed({"x": neither}, "auto", terms)[1]["x"])
    assert cluster.agreed({}, "auto", terms) == (None, {})
