"""A class graded on a Dask cluster: the same grades, whatever happens to its workers."""

import contextlib
import json
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor

import pytest

distributed = pytest.importorskip("distributed")

from attncourse import cli  # noqa: E402
from attncourse.grading import classroom, cluster  # noqa: E402
from attncourse.grading.classroom import ClassError, grade_class, work_found  # noqa: E402
from attncourse.grading.cluster import Cluster, Terms  # noqa: E402
from attncourse.grading.intake import find_submissions  # noqa: E402
from tests.grading.a_class import FRESH, FULL, ROOT, SOLVED, UNIFORM, marked, notebook, with_answer  # noqa: E402
from tests.grading.test_classroom import Inline, alive, children, essence, fill  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Dask workers shut submissions in as Linux can"),
    pytest.mark.xdist_group("dask"),
]
SLEEPS = "import time\ntime.sleep(1.5)"
FILES = {
    "ann": marked("ann"),
    "bob": marked("bob", with_answer(UNIFORM)),
    "cyd": marked("cyd", [SLEEPS, *SOLVED]),
    "dan": marked("dan", FRESH),
    "eve": b"",
    "fay": marked("fay", [SLEEPS, *SOLVED]),
    "gus": marked("gus", ["import os\nos._exit(0)", *SOLVED]),
}
POINTS = {"ann": FULL, "bob": FULL - 1, "cyd": FULL, "dan": 0, "eve": 0, "fay": FULL, "gus": FULL}


class Dask:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        file = folder / "scheduler.json"
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0")
        self.start_file = file
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]

    def start(self, what, *arguments, **environment):
        command = [sys.executable, "-m", "dask", what, *arguments]
        if what == "scheduler":
            command += ["--scheduler-file", str(self.folder / "scheduler.json")]
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def worker(self, *arguments, **environment):
        options = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder))
        return self.start("worker", self.address, *options, *arguments, **environment)

    def stop(self):
        for process in self.processes:
            for pid in {process.pid, *children(process.pid)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    dask = Dask(tmp_path_factory.mktemp("dask"))
    try:
        yield dask
    finally:
        dask.stop()
