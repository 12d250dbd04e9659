"""The worker: a process that imports torch once and forks a jailed child for each submission.

Started by `examiner.Workers` in a folder that holds a stub of the course (`stub.py`): neither references nor seeds
nor the instructor's key are ever in this process. It computes; it decides nothing.
"""

import ast
import builtins
import contextlib
import json
import linecache
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attncourse.checks import compute
from attncourse.grading import isolation, users, wire

WATCH_SECONDS = 0.2  # between two looks at what a submission has taken
MAX_CANDIDATES = 20  # definitions of one name that are kept, of the latest cells
MAX_ERRORS = 100  # of cells, told of one notebook: one message must hold them


def main(control_fd: int, level: str, folder: str, extra: bool) -> None:
    """Fork a child for each channel that arrives on the control socket, until it closes.

    folder: an empty one, where level A puts its file systems; extra: seccomp and Landlock too, where they are.
    """
    control = socket.socket(fileno=control_fd)
    torch.set_num_threads(1)  # a process that ran threads cannot fork safely
    isolation.die_with_parent()
    stub = Path(__file__).resolve().parents[2]
    readable = [*isolation.python_folders(), stub]
    installed = {Path(name).resolve() / "attncourse" for name in sys.path if name}
    hidden = [path for path in installed - {stub / "attncourse"} if path.is_dir() and _inside(path, readable)]
    _warm_up()
    control.sendall(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            break
        _reap()
        child = os.fork()
        if child == 0:
            jail = _Jail(
                level, folder=Path(folder), readable=readable, hidden=hidden, extra=extra, **json.loads(message)
            )
            control.close()
            _supervise(socket.socket(fileno=descriptors[0]), jail)
        os.close(descriptors[0])
        control.sendall(child.to_bytes(4, "big"))


@dataclass(frozen=True)
class _Jail:
    """What a submission is shut in: the level, its user and, at level B, its home."""

    level: str
    folder: Path
    readable: list[Path]
    hidden: list[Path]
    extra: bool
    uid: int
    home: str
    limits: isolation.Limits = field(default_factory=isolation.Limits)


def _inside(path: Path, folders: list[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _warm_up() -> None:
    """Import what notebooks use, so that no child has to."""
    for name in ("torch.nn.functional", "IPython.core.inputtransformer2", "numpy", "json"):
        __import__(name)


def _reap() -> None:
    """Collect the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(channel: socket.socket, jail: _Jail) -> None:
    """In the forked child: enter the jail, fork process 1 of it, and wait for that to end. Never returns."""
    status = 1
    try:
        os.setsid()
        os.umask(0o022)  # another user is to read what is made here
        isolation.die_with_parent()
        isolation.go_first_when_memory_is_short()
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 1 << 16)
        base = 0 if jail.level == "C" else users.memory("self")
        if jail.level == "A":
            isolation.enter_namespaces(jail.uid)
            isolation.build_root(jail.folder, jail.readable, jail.hidden, jail.limits)
        first = os.fork()
        if first == 0:
            _run(channel, jail)
        channel.close()
        status = _watch(first, jail, base)
    except OSError as error:
        wire.send(channel, {"failed": str(error)})
    finally:
        os._exit(status & 0xFF)


def _run(channel: socket.socket, jail: _Jail) -> None:
    """As process 1 of the jail: give up what is left of power, then serve. Never returns."""
    try:
        if jail.level == "A":
            protection = isolation.become_first(jail.limits, jail.uid, jail.extra)
        elif jail.level == "B":
            home = Path(jail.home)
            protection = isolation.become_user(jail.limits, jail.uid, home, jail.readable, jail.hidden, jail.extra)
        else:
            protection = isolation.stay_open()
            if sys.platform.startswith("linux"):
                isolation.die_with_parent()
                isolation.set_limits(jail.limits)
        _Runner(channel, jail).serve(protection)
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(channel, {"failed": str(error)})
    finally:
        os._exit(0)


def _watch(first: int, jail: _Jail, base: int) -> int:
    """Wait for process 1 to end, and end it with all that it started if together they take too much."""
    while True:
        ended, status = os.waitpid(first, 0 if jail.level == "C" else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(WATCH_SECONDS)
        alive = users.processes_of(jail.uid if jail.level == "B" else None)
        too_much = _memory(alive, base) > jail.limits.memory
        too_much = too_much or (jail.level == "B" and _files_are_too_many(jail, alive))
        if too_much and jail.level == "B":
            users.kill(jail.uid)
        elif too_much:
            os.kill(first, signal.SIGKILL)


def _files_are_too_many(jail: _Jail, pids: Iterable[int]) -> bool:
    """Whether the files of the submission's user are more, or larger, than it may have."""
    n_bytes, n_files = users.usage(jail.uid, Path(jail.home), pids)
    return n_bytes > jail.limits.disk or n_files > jail.limits.files


def _memory(alive: Iterable[int], base: int) -> int:
    """Bytes that these processes hold together, each without what it began with."""
    total = 0
    for pid in alive:
        with contextlib.suppress(OSError, ValueError):
            total += max(0, users.memory(pid) - base)
    return total


class _Runner:
    """Runs a notebook's cells in a namespace, then scripts of calls on the names they defined."""

    def __init__(self, channel: socket.socket, jail: _Jail):
        self.channel, self.jail = channel, jail
        self.pid = os.getpid()
        os.register_at_fork(after_in_child=channel.close)  # what the learner forks does not speak for the learner
        self.namespace: dict[str, Any] = {
            "__name__": "__main__",
            "__builtins__": builtins,
            "get_ipython": _NoIPython,
            "display": print,
        }
        self.candidates: dict[str, list[Any]] = {}
        for stream in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), stream)

    def serve(self, protection: dict[str, str]) -> None:
        """Answer requests until the channel closes. protection: what shuts this process in, told first."""
        wire.send(self.channel, {"ready": protection})
        while True:
            request = wire.receive(self.channel)
            reply = getattr(self, f"_do_{request.pop('do')}")(**request)
            try:
                wire.send(self.channel, reply)
            except OSError:
                raise
            except Exception as error:  # what was returned is too large, say, or of a dtype that is not sent
                told = compute.Failure("NotSent", f"what it returns cannot be graded: {error}"[:500].rstrip("."))
                wire.send(self.channel, {"reply": compute.Reply((), told)})

    def _do_cells(self, cells: list[str], skip: list[int], names: list[str]) -> dict:
        """Run all cells but `skip`; say before each which it is, so that one that never ends is known."""
        errors = {}
        for i, cell in enumerate(cells):
            if i in skip:
                continue
            wire.send(self.channel, {"cell": i})
            before = {name: self.namespace.get(name) for name in names}
            error = self._run_cell(i, cell)
            if os.getpid() != self.pid:
                os._exit(0)  # a process that the cell forked, and that came out of the cell like its parent
            if self.jail.level == "B" and _files_are_too_many(self.jail, [self.pid]):
                os._exit(1)  # now, so that the cell is skipped: the watch would come in the middle of an answer
            if error and len(errors) < MAX_ERRORS:
                errors[str(i)] = error
            for name in names:
                if name in self.namespace and self.namespace[name] is not before[name]:
                    self.candidates.setdefault(name, []).append(self.namespace[name])
        kept = {name: len(found[-MAX_CANDIDATES:]) for name, found in self.candidates.items()}
        return {"errors": errors, "candidates": kept}

    def _run_cell(self, i: int, cell: str) -> str:
        """Run one cell; the text of what it raised, or nothing."""
        name = f"<cell {i}>"
        try:
            from IPython.core.inputtransformer2 import TransformerManager

            code = TransformerManager().transform_cell(_without_timing(cell))
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
            compile(code, name, "exec")  # a syntax error anywhere stops the whole cell, as in a notebook
            failed = ""
            for statement in ast.parse(code, name).body:
                try:
                    exec(compile(ast.Module([statement], []), name, "exec"), self.namespace)
                except ImportError as error:  # what Colab has and the jail has not; the imports after it still count
                    failed = failed or _told(error)
            return failed
        except BaseException as error:  # a cell may raise anything; the next one runs all the same
            return _told(error)

    def _do_script(self, name: str, candidate: int, script: Any, forbidden: list[str]) -> dict:
        """Run a script on the candidate-th latest definition of `name`."""
        target = self._bind(name, candidate)
        if compute.is_the_courses(target):
            raise_own = compute.Failure("NotYourOwn", f"`{name}` is the course's own, imported; write it yourself")
            return {"reply": compute.Reply((), raise_own)}
        return {"reply": compute.run(target, script, forbidden)}

    def _do_test(self, name: str, candidate: int) -> dict:
        """Run the candidate-th latest definition of `name`, a test, on the implementation that the examiner holds."""
        return {"outcome": compute.run_test(self._bind(name, candidate), self._ask)}

    def _bind(self, name: str, candidate: int) -> Any:
        """The candidate-th latest definition of `name`, which later answers that call it by name now find.

        The examiner asks for one after the other until one was attempted, so an empty copy at the end does no harm.
        """
        self.namespace[name] = self.candidates[name][-1 - candidate]
        return self.namespace[name]

    def _ask(self, *arguments: Any, **named: Any) -> Any:
        """What the implementation under test returns: the examiner runs it, this process never has it."""
        try:
            wire.send(self.channel, {"arguments": arguments, "named": named})
        except wire.ProtocolError as error:
            raise compute.CandidateRaised(f"inputs must be tensors, numbers or None: {error}") from None
        answer = wire.receive(self.channel)
        if "raised" in answer:
            raise compute.CandidateRaised(answer["raised"])
        return answer["returned"]


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[-500:]


def _without_timing(cell: str) -> str:
    """The cell without a first line such as %%time, which runs the rest as it stands."""
    first, _, rest = cell.partition("\n")
    return "\n" + rest if first.split(" ")[0] in ("%%time", "%%timeit", "%%capture", "%%prun") else cell


class _NoIPython:
    """Stands for the notebook's shell: magics and shell commands do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], extra=sys.argv[4:] == ["extra"])
