"""The examiner: has a worker run a notebook, asks it scripts of calls, and judges the replies. Trusted."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from attncourse.checks import compute, exercises, reverse
from attncourse.checks.judge import Question, Verdict, ask, judge
from attncourse.checks.script import Call, Failure, Outcome, Reply, Result, Script
from attncourse.checks.spec import Exercise, ReverseExercise, Task
from attncourse.grading import isolation, stub, users, wire


@dataclass(frozen=True)
class Times:
    """Seconds: for one cell, for one exercise, for all of a notebook, however often its process dies."""

    cell: float = 10.0
    exercise: float = 10.0
    submission: float = 60.0


@dataclass(frozen=True)
class Grade:
    """The verdicts on one notebook.

    cell_errors: what cells raised, by their index among the code cells. isolation: the level; protection: what shut
    the code in, by what it is kept from ("files", "network", "processes", "system calls"): "closed (by what)" or
    "open"; left: what the submission left behind outside its folder, which was removed.
    """

    verdicts: tuple[Verdict, ...]
    cell_errors: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    isolation: str = "A"
    protection: dict[str, str] = field(default_factory=dict)
    left: str = ""

    @property
    def points(self) -> int:
        return sum(verdict.points for verdict in self.verdicts)

    @property
    def possible(self) -> int:
        return sum(verdict.exercise.points for verdict in self.verdicts)


class Exam:
    """Exercises and the questions asked about them; made once, for all notebooks that are graded alike.

    seeds: the same for every exercise, or a mapping from an exercise's id to its own.
    """

    def __init__(self, chosen: Sequence[Task], seeds: Sequence[int] | Mapping[str, Sequence[int]]):
        torch.set_num_threads(1)  # the tensors are tiny; processes, not threads, share the cores
        self.exercises = tuple(chosen)
        own = seeds if isinstance(seeds, Mapping) else {task.id: seeds for task in chosen}
        self.questions = {task.id: ask(task, own[task.id]) for task in chosen if isinstance(task, Exercise)}
        self.given = sorted({name for exercise in chosen for name in exercise.given})
        self._orders: dict[str, list[bytes]] = {}

    def orders(self, exercise: Exercise, candidate: int) -> list[bytes]:
        """The requests to run an exercise's scripts, as they are sent: nearly always the same for all notebooks."""
        if candidate == 0 and exercise.id in self._orders:
            return self._orders[exercise.id]
        what = {"do": "script", "name": exercise.defines, "candidate": candidate, "forbidden": list(exercise.forbidden)}
        orders = [wire.encode(what | {"script": script}) for script in self.questions[exercise.id].scripts]
        if candidate == 0:
            self._orders[exercise.id] = orders
        return orders


class Died(Exception):
    """The learner's process ended, hung, or sent something that is no message. The text says which."""


class Workers:
    """A worker process that forks a jailed child for each submission. Use as a context manager.

    level: as in `isolation.choose`, which raises RuntimeError, with the reason, where a level is not to be had.
    private: files and folders that no submission may read, such as the key; at level B, where code sees the machine's
    files, RuntimeError if every user may read one. extra: seccomp and Landlock too, where the machine has them.
    `level` is then the one that runs, and `protection` what shuts the latest submission in.
    """

    def __init__(self, given: Iterable[str], level: str = "auto", *, private: Iterable[Path] = (), extra: bool = True):
        self.level = isolation.choose(level)
        if self.level == "B":
            refuse_open(private)
        self.protection: dict[str, str] = {}
        self._count, self._extra = 0, extra
        place = tempfile.gettempdir()
        if self.level == "B" and isolation.closed_to_others(Path(place)):
            place = "/tmp"
        self._folder = Path(tempfile.mkdtemp(prefix="attncourse-", dir=place))
        self._folder.chmod(0o711)
        for name, mode in (("stub", 0o755), ("root", 0o700), ("homes", 0o711)):
            (self._folder / name).mkdir()
            (self._folder / name).chmod(mode)
        stub.write_stub(self._folder / "stub", given)
        self._environment = {"PYTHONPATH": str(self._folder / "stub"), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
        library = isolation.standard_library()
        if self.level == "B" and isolation.closed_to_others(library):
            stub.copy_standard_library(library, self._folder / "python")
            paths = [self._folder / "stub", *isolation.package_folders()]
            self._environment |= {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONHOME": str(self._folder / "python")}
        self._launch()

    def _launch(self) -> None:
        self._control, theirs = socket.socketpair()
        folder = self._folder / "stub"
        command = [sys.executable, "-m", "attncourse.grading.worker", str(theirs.fileno()), self.level]
        self._process = subprocess.Popen(
            [*command, str(self._folder / "root"), "extra" if self._extra else "bare"],
            pass_fds=[theirs.fileno()],
            cwd=folder,
            env=self._environment | {"LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        if self._control.recv(5) != b"ready":
            self.__exit__()
            raise RuntimeError("the worker did not start; what it said stands above")
        self._control.settimeout(60)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        self._control.close()
        self._process.terminate()
        self._process.wait()

    def start(self) -> "Child":
        """Fork a child for a submission. A worker that ended, as when memory ran out, is replaced."""
        for _ in range(3):
            self._count += 1
            try:
                user = users.lend(self._folder / "homes", self._count) if self.level == "B" else None
            except OSError as error:
                raise RuntimeError(f"a user for a submission could not be made: {error}") from None
            child = Child(user, group=self.level == "C")
            try:
                self._fork(child)
                self.protection = child.wait_until_ready()
                return child
            except OSError as error:
                self._end()
                child.stop()
                self._launch()
                reason = str(error)
            except Died as died:
                child.stop()
                reason = str(died)
            except RuntimeError:
                child.stop()
                raise
        raise RuntimeError(f"a jail could not be made, three times: {reason}")

    def _fork(self, child: "Child") -> None:
        ours, theirs = socket.socketpair()
        child.channel = ours
        # What runs at the same time, in processes of adjacent ids, runs as different users.
        uid = child.user.uid if child.user else users.UIDS[os.getpid() % 59 * 8 + self._count % 8]
        order = {"uid": uid, "home": str(child.user.home) if child.user else ""}
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], [theirs.fileno()])
        finally:
            theirs.close()
        pid = self._control.recv(4)
        if len(pid) != 4:
            raise OSError("the worker ended")
        child.pid = int.from_bytes(pid, "big")


def refuse_open(private: Iterable[Path]) -> None:
    """RuntimeError where every user of the machine, and so a submission at level B, may read one of these."""
    for path in private:
        if isolation.closed_to_others(path) is None:
            raise RuntimeError(
                f"{path} can be read by every user of this machine, and at level B by a submission: "
                f"chmod {'700' if path.is_dir() else '600'} {path}"
            )


class Child:
    """One jailed child: requests and replies, each with a deadline."""

    def __init__(self, user: "users.User | None" = None, *, group: bool = False):
        self.user, self.group = user, group
        self.channel: socket.socket | None = None
        self.pid = 0

    def wait_until_ready(self) -> dict[str, str]:
        """What shuts it in, once it is shut in. RuntimeError if that failed."""
        started = self._receive(time.monotonic() + 20)
        if "failed" in started:
            raise RuntimeError(f"the jail could not be made: {started['failed']}")
        return started["ready"]

    def request(self, message: dict | bytes) -> None:
        """Send a request, or one that `wire.encode` has written."""
        try:
            self.channel.sendall(message if isinstance(message, bytes) else wire.encode(message))
        except OSError as error:
            raise Died(f"its process ended ({error})") from None
        except wire.ProtocolError as error:
            raise Died(f"it asked for something that cannot be sent: {error}") from None

    def _receive(self, deadline: float) -> dict:
        try:
            reply = wire.receive(self.channel, deadline)
        except TimeoutError:
            raise Died("it ran too long and was stopped") from None
        except wire.ProtocolError:
            raise Died("its process ended: os._exit, a crash, or a limit (memory, files)") from None
        if not isinstance(reply, dict):
            raise Died("it wrote to the examiner's channel")
        return reply

    def run_cells(self, cells: Sequence[str], skip: set[int], names: Sequence[str], seconds: float, end: float) -> dict:
        """Run the cells; what they raised and how many definitions of each name there are.

        seconds: for one cell; end: of all. Raises Died with `.cell`, the index of the cell it was in.
        """
        at = -1
        try:
            self.request({"do": "cells", "cells": list(cells), "skip": sorted(skip), "names": list(names)})
            while True:
                reply = self._receive(min(end, time.monotonic() + seconds))
                if "errors" in reply:
                    return _cell_reply(reply, len(cells))
                at = int(reply["cell"]) if reply.get("cell") in range(len(cells)) else at
        except Died as died:
            died.cell = at
            raise

    def run_script(self, order: bytes, script: Script, deadline: float) -> Reply:
        """The reply to a script. order: the request to run it, as `Exam.orders` gives it."""
        self.request(order)
        reply = self._receive(deadline).get("reply")
        if not _well_formed(reply, script.calls):
            raise Died("it wrote to the examiner's channel")
        return reply

    def run_test(self, exercise: ReverseExercise, candidate: int, implementation: Callable, deadline: float) -> Outcome:
        """What a learner's test says of one implementation, which it calls by way of this process."""
        self.request({"do": "test", "name": exercise.defines, "candidate": candidate})
        while True:
            reply = self._receive(deadline)
            if _is_outcome(reply.get("outcome")):
                return reply["outcome"]
            arguments, named = reply.get("arguments"), reply.get("named")
            if not (isinstance(arguments, tuple) and isinstance(named, dict)):
                raise Died("it wrote to the examiner's channel")
            try:
                answer = {"returned": implementation(*arguments, **named)}
            except compute.CandidateRaised as error:
                answer = {"raised": str(error)[:200]}
            self.request(answer)

    def stop(self) -> None:
        """Kill the child and everything it started, and remove what it left."""
        if self.channel is not None:
            self.channel.close()
        strays = users.strays(self.user.uid, self.pid) if self.user else 0
        if self.pid > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if self.group else os.kill)(self.pid, signal.SIGKILL)
        if self.user is not None:
            self.user.end(strays)


def _cell_reply(reply: dict, n_cells: int) -> dict:
    """What running the cells gave, of the right types even if it is forged."""
    errors, candidates = reply["errors"], reply.get("candidates")
    if not isinstance(errors, dict) or not isinstance(candidates, dict):
        raise Died("it wrote to the examiner's channel")
    return {
        "errors": {i: str(errors[str(i)])[-500:] for i in range(n_cells) if str(i) in errors},
        "candidates": {name: n for name, n in candidates.items() if isinstance(n, int)},
    }


def _well_formed(reply: object, calls: Sequence[Call]) -> bool:
    """Whether a reply that may be forged is made like a real one to these calls."""
    if not isinstance(reply, Reply) or not isinstance(reply.results, tuple) or not _is_failure(reply.failure):
        return False
    if len(reply.results) > len(calls) or (len(reply.results) < len(calls) and reply.failure is None):
        return False
    return all(map(_is_result, reply.results, calls))


def _is_result(result: object, call: Call) -> bool:
    """Whether this is made of tensors, those of gradients and inputs like the arguments they belong to."""
    return (
        isinstance(result, Result)
        and isinstance(result.type, str)
        and isinstance(result.outputs, tuple)
        and all(isinstance(output, Tensor) for output in result.outputs)
        and isinstance(result.gradients, dict)
        and isinstance(result.inputs, dict)
        and all(g is None or _is_like(g, call.arguments.get(name)) for name, g in result.gradients.items())
        and all(_is_like(after, call.arguments.get(name)) for name, after in result.inputs.items())
    )


def _is_like(tensor: object, argument: object) -> bool:
    if not isinstance(tensor, Tensor) or not isinstance(argument, Tensor):
        return False
    return tensor.shape == argument.shape and tensor.dtype == argument.dtype


def _is_failure(failure: object) -> bool:
    """Whether this is no failure, or one made of text."""
    return failure is None or (
        isinstance(failure, Failure)
        and all(isinstance(text, str) for text in (failure.type, failure.message, failure.code))
        and isinstance(failure.line, int | None)
    )


def _is_outcome(outcome: object) -> bool:
    if not isinstance(outcome, Outcome) or not _is_failure(outcome.failure):
        return False
    return isinstance(outcome.accepted, bool) and isinstance(outcome.said_nothing, bool)


def grade(cells: Sequence[str], exam: Exam, workers: Workers, times: Times | None = None) -> Grade:
    """Grade one notebook's code cells.

    A cell that dies or hangs is skipped and the others run again without it; an exercise whose answer dies or hangs
    gets no points and the others are still asked. Never raises for anything the learner's code does.
    """
    times, start = times or Times(), time.monotonic()
    names = [exercise.defines for exercise in exam.exercises]
    errors: dict[int, str] = {}
    left_behind: list[str] = []
    skip: set[int] = set()
    verdicts: dict[str, Verdict] = {}
    left, end = list(exam.exercises), start + times.submission
    while left and time.monotonic() < end:
        child = workers.start()
        try:
            ran = child.run_cells(cells, skip, names, times.cell, end)
            errors |= ran["errors"]
            while left:
                exercise, deadline = left[0], min(end, time.monotonic() + times.exercise)
                verdicts[exercise.id] = _grade_one(child, exam, exercise, cells, ran["candidates"], errors, deadline)
                left.pop(0)
        except Died as died:
            cell = getattr(died, "cell", None)
            if cell is None:
                verdicts[left[0].id] = Verdict(left[0], "raised", f"When `{left[0].defines}` was called, {died}.")
                left.pop(0)
            elif cell < 0 or cell in skip:
                break
            else:
                skip.add(cell)
                errors[cell] = f"skipped: {died}"
        finally:
            child.stop()
            if child.user and child.user.left:
                left_behind.append(child.user.left)
    for exercise in left:
        verdicts[exercise.id] = Verdict(exercise, "raised", "The notebook used up its time before this exercise.")
    return Grade(
        tuple(verdicts[exercise.id] for exercise in exam.exercises),
        errors,
        time.monotonic() - start,
        workers.level,
        workers.protection,
        "; ".join(left_behind),
    )


def _grade_one(
    child: Child,
    exam: Exam,
    exercise: Task,
    cells: Sequence[str],
    candidates: dict[str, int],
    errors: dict[int, str],
    deadline: float,
) -> Verdict:
    """The verdict on the latest definition that was attempted: a doubled, empty copy of a cell changes nothing."""
    count = candidates.get(exercise.defines, 0)
    if count < 1:
        for i, text in sorted(errors.items()):
            if re.search(rf"\b(def|class)\s+{exercise.defines}\b", cells[i]):
                last = text.splitlines()[-1] if text else "it did not end"
                message = f"Code cell {i + 1}, which defines `{exercise.defines}`, could not be run: {last}"
                return Verdict(exercise, "raised", message)
        return Verdict(exercise, "not attempted", f"The notebook defines no `{exercise.defines}`.")
    for candidate in range(min(count, 20)):
        if isinstance(exercise, ReverseExercise):
            verdict = _judge_test(child, exercise, candidate, deadline)
        else:
            question = exam.questions[exercise.id]
            verdict = judge(exercise, question, _replies(child, question, exam.orders(exercise, candidate), deadline))
        if verdict.kind != "not attempted":
            break
    return verdict


def _judge_test(child: Child, exercise: ReverseExercise, candidate: int, deadline: float) -> Verdict:
    """The verdict on a test. It sees one implementation at a time, and answers before it sees the next."""
    asked = reverse.exam_candidates(exercise)
    outcomes: list[Outcome] = []
    for implementation in asked:
        outcomes.append(child.run_test(exercise, candidate, reverse.trial(implementation), deadline))
        if reverse.not_attempted(outcomes[0]):
            break
    return reverse.judge(exercise, asked, outcomes)


def _replies(child: Child, question: Question, orders: Sequence[bytes], deadline: float) -> list[Reply]:
    replies = []
    for order, script in zip(orders, question.scripts, strict=True):
        reply = child.run_script(order, script, deadline)
        replies.append(reply)
        if reply.failure and reply.failure.type in ("NotImplementedError", "NotSent"):
            return [reply] * len(question.scripts)
    return replies


def exercises_in(cells: Iterable[str]) -> list[Task]:
    """The exercises of the chapters that a notebook is about: those whose id or name its code mentions."""
    text = "\n".join(cells)
    chapters = {
        e.chapter for e in exercises() if f'"{e.id}"' in text or f"'{e.id}'" in text or f" {e.defines}(" in text
    }
    return [exercise for exercise in exercises() if exercise.chapter in chapters]


def variant_in(task: Task, cells: Iterable[str]) -> str | None:
    """The variant of an exercise that the notebook's own `check` names, as an instructor's copy does."""
    call = re.compile(rf"""check\(\s*["']{re.escape(task.id)}["']\s*,\s*\w+\s*,\s*["'](\w+)["']""")
    named = next(filter(None, map(call.search, cells)), None)
    return named[1] if named and named[1] in getattr(task, "variants", ()) else None
