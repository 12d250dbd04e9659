"""Grade a class on a Dask cluster: the same jobs as on this machine, run by Dask's workers. Needs `distributed`.

What ran on a worker that is gone, Dask runs again elsewhere; a result arrives once. A worker grades one notebook at a
time and shuts it in as this machine would: so each must have the same course installed, and isolation of its own.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError
from functools import cache, partial
from typing import Any, NamedTuple

from distributed import Client, KilledWorker, Security, get_worker
from distributed.comm import connect
from distributed.threadpoolexecutor import ThreadPoolExecutor

import attncourse
from attncourse.grading import filters, isolation
from attncourse.grading.classroom import ClassError, Job, fingerprint

CONNECT_SECONDS = 10.0  # to find the scheduler, and then a worker
EMPTY_SECONDS = 60.0  # that a cluster may be without workers, as while one starts again
LOOK_SECONDS = 2.0  # between two looks at whether it is
KEPT = "What is graded is kept: run the same command again"


class Terms(NamedTuple):
    """What a worker must agree to. fingerprint: of the course; encrypted: whether the scheduler knows its clients."""

    fingerprint: str
    encrypted: bool


class Cluster:
    """A connection to the Dask scheduler at `address`. Use as a context manager.

    Raises ClassError, with the remedy, where no scheduler answers within CONNECT_SECONDS, or it has no worker. TLS and
    its certificates are as Dask's own configuration says. size: how many workers there are; notes: what the one who
    grades should know of this cluster, a sentence each.
    """

    def __init__(self, address: str):
        try:
            asyncio.run(_knock(address))
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="attncourse")
        except Exception as error:  # of the network, of the address, of TLS
            raise ClassError(
                f"no Dask scheduler answers at {address}: {_said(error)}. Start one with `dask scheduler`, and give "
                "the address that it prints: --dask tcp://HOST:8786"
            ) from None
        self.address = self._client.scheduler_info()["address"]
        self._promised: set[Future] = set()
        self._closing = threading.Event()
        try:
            with contextlib.suppress(TimeoutError):
                self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            threads = self._client.nthreads()
            if not threads:
                raise ClassError(
                    f"the Dask scheduler at {self.address} has no worker: start some with `dask worker {self.address} "
                    "--nthreads 1 --nworkers N`"
                )
        except BaseException:
            self._client.close()
            raise
        self.size = len(threads)
        self.notes = list(_notes(self.address, threads))
        self._terms = Terms(fingerprint(), self.address.startswith("tls://"))
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._client.close(timeout=CONNECT_SECONDS)

    def choose(self, level: str = "auto") -> str:
        """The level that every worker can have, as `isolation.choose` for one machine; ClassError names who cannot."""
        answers = self._client.run(_about, on_error="return")
        chosen, refused = agreed(answers, level, self._terms)
        if chosen:
            return chosen
        for address in refused:
            if isinstance(error := answers[address], Exception):
                refused[address] = self._lacking(address, error)
        named = "; ".join(f"{address} {reason}" for address, reason in sorted(refused.items())[:3])
        raise ClassError(
            f"{len(refused)} of {len(answers)} Dask workers cannot grade this class: {named or 'there is none'}"
        )

    def _lacking(self, address: str, error: Exception) -> str:
        """What a worker has, from which this module could not be imported."""
        asked = self._client.run(getattr, attncourse, "__version__", workers=[address], on_error="return")
        version = asked.get(address)
        has = f"attncourse {version}" if isinstance(version, str) else "no attncourse that it can import"
        return (
            f"has {has}, and this class is graded with {self._terms.fingerprint}: install that there ({_said(error)})"
        )

    def pool(self, n: int) -> Executor:
        """An executor for `grade_class`, which sees to it that n jobs are under way."""
        return _Pool(self)

    def submit(self, jobs: Executor, function: Callable[[Job], dict], job: Job) -> Future:
        """A job's future, which has an end even if the cluster has not."""
        promised: Future = Future()
        self._promised.add(promised)
        promised.add_done_callback(self._promised.discard)
        try:
            asked = jobs.submit(on_worker, function, job, self._terms)
        except Exception as error:  # the connection is closed
            self._give_up(_said(error))
        else:
            asked.add_done_callback(partial(self._pass_on, promised))
        return promised

    def _pass_on(self, promised: Future, asked: Future) -> None:
        """The end of a job at Dask, in the terms of `grade_class`."""
        with contextlib.suppress(InvalidStateError):  # it has been given up
            if asked.cancelled():
                promised.set_exception(ClassError(f"the Dask scheduler at {self.address} is lost. {KEPT}"))
            elif isinstance(error := asked.exception(), KilledWorker):  # this job, or one that was there with it
                promised.set_exception(BrokenExecutor(_said(error)))
            elif error is not None:
                promised.set_exception(error)
            else:
                promised.set_result(asked.result())

    def _watch(self) -> None:
        """Give up when there is no worker for long: Dask would wait for ever."""
        seen = time.monotonic()
        while not self._closing.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # of a scheduler that is lost; the jobs hear of it too
                if self._client.nthreads():
                    seen = time.monotonic()
            if time.monotonic() - seen > EMPTY_SECONDS:
                self._give_up(f"it has had no worker for {EMPTY_SECONDS:.0f} s")

    def _give_up(self, reason: str) -> None:
        for promised in tuple(self._promised):
            with contextlib.suppress(InvalidStateError):
                promised.set_exception(ClassError(f"the Dask cluster at {self.address} is gone: {reason}. {KEPT}"))


class _Pool(Executor):
    """Dask's own executor, with ends of jobs as `grade_class` knows them."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._jobs = cluster._client.get_executor(pure=False)  # what ran in a crowd may run again, alone

    def submit(self, function: Callable[[Job], dict], /, job: Job) -> Future:
        return self._cluster.submit(self._jobs, function, job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._jobs.shutdown(wait)


def agreed(answers: dict[str, Any], level: str, terms: Terms) -> tuple[str | None, dict[str, str]]:
    """The level that all workers can have, of what each says of itself; or None, and why which cannot."""
    reasons: dict[str, list[str]] = {}
    for candidate in ("A", "B") if level == "auto" else (level,):
        objections = {address: _objection(about, candidate, terms) for address, about in answers.items()}
        if answers and not any(objections.values()):
            return candidate, {}
        for address, reason in objections.items():
            if reason and reason not in reasons.setdefault(address, []):
                reasons[address].append(reason)
    return None, {address: ", and ".join(said) for address, said in reasons.items() if said}


async def _knock(address: str) -> None:
    """Return when a scheduler answers. A Client would wait for ever for something else that listens there."""
    made = connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    try:
        comm = await asyncio.wait_for(made, CONNECT_SECONDS + 1)
    except TimeoutError:
        raise OSError("what is there does not speak Dask's protocol (is it the port of a dashboard?)") from None
    await comm.close()


def _notes(address: str, threads: dict[str, int]) -> Iterable[str]:
    if not address.startswith("tls://"):
        yield (
            f"Notebooks, hidden inputs and grades travel unencrypted to and from {address}, and whoever reaches it can "
            "run code on its workers: outside a closed network use tls://"
        )
    if many := [address for address, n in threads.items() if n > 1]:
        yield (
            f"{len(many)} of {len(threads)} Dask workers have several threads, but each worker grades one notebook at "
            "a time: start them with --nthreads 1 --nworkers N"
        )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


# On a Dask worker

# A process that runs submissions ends with the thread that started it; Dask's threads may end before the worker does.
_thread = ThreadPoolExecutor(1, thread_name_prefix="attncourse")


def on_worker(function: Callable[[Job], dict], job: Job, terms: Terms) -> dict:
    """Grade one notebook, after those that came to this worker before. ClassError where the worker is not fit to."""
    if reason := _objection(_about(), job.level, terms):
        raise ClassError(f"the Dask worker {get_worker().address} {reason}. {KEPT}")
    return _thread.submit(function, job).result()


@cache
def _about() -> dict[str, Any]:
    """What this worker has. A, B: None, or why it cannot have that level; filtered: whether seccomp closes sockets."""
    return {
        "fingerprint": fingerprint(),
        "A": isolation.available(),
        "B": isolation.available_to_root(),
        "filtered": _filters_calls(),
    }


def _filters_calls() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if filters.refuse_calls() else 1)
    return os.waitpid(child, 0)[1] == 0


def _objection(about: dict[str, Any] | Exception, level: str, terms: Terms) -> str | None:
    """Why a worker cannot grade at this level; None if it can."""
    if isinstance(about, Exception):
        return f"cannot be asked: {_said(about)}"
    if about["fingerprint"] != terms.fingerprint:
        return (
            f"has attncourse {about['fingerprint']}, and this class is graded with {terms.fingerprint} (version, hash "
            "of the code): install the same on both"
        )
    if level == "C":
        return None
    if about[level]:
        return f"cannot isolate a learner's code at level {level}: {about[level]}"
    if level == "B" and not (terms.encrypted or about["filtered"]):
        return (
            "would let a submission at level B reach the scheduler, which obeys whoever reaches it: install libseccomp "
            "there, or use tls://"
        )
    return None
