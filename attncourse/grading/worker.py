"""The worker: a process that imports torch once and forks a jailed child for each submission.

Started by `examiner.Workers` in a folder that holds a stub of the course (`stub.py`): neither references nor seeds
nor the instructor's key are ever in this process. It computes; it decides nothing.
"""

import ast
import builtins
import contextlib
import linecache
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from attncourse.checks import compute
from attncourse.grading import isolation, wire

MAX_CANDIDATES = 20  # definitions of one name that are kept, of the latest cells


def main(control_fd: int, level: str) -> None:
    """Fork a child for each channel that arrives on the control socket, until it closes."""
    control = socket.socket(fileno=control_fd)
    torch.set_num_threads(1)  # a process that ran threads cannot fork safely
    isolation.die_with_parent() if sys.platform.startswith("linux") else None
    root = Path(tempfile.mkdtemp(prefix="attncourse-"))
    readable = [*isolation.python_folders(), Path(__file__).resolve().parents[2]]
    _warm_up()
    control.sendall(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if not message:
            break
        _reap()
        child = os.fork()
        if child == 0:
            control.close()
            _supervise(socket.socket(fileno=descriptors[0]), int(message), level, root, readable)
        os.close(descriptors[0])
        control.sendall(child.to_bytes(4, "big"))
    root.rmdir()


def _warm_up() -> None:
    """Import what notebooks use, so that no child has to."""
    for name in ("torch.nn.functional", "IPython.core.inputtransformer2", "numpy", "json"):
        __import__(name)


def _reap() -> None:
    """Collect the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(channel: socket.socket, uid: int, level: str, root: Path, readable: list[Path]) -> None:
    """In the forked child: enter the jail, fork process 1 of it, and wait for that to end. Never returns."""
    status = 1
    try:
        os.setsid()
        isolation.die_with_parent()
        limits = isolation.Limits()
        if level == "A":
            isolation.enter_namespaces(uid)
            isolation.build_root(root, readable, limits)
        first = os.fork()
        if first == 0:
            try:
                if level == "A":
                    isolation.become_first(limits, uid)
                else:
                    isolation.set_limits(limits)
                _Runner(channel).serve()
            finally:
                os._exit(0)
        channel.close()
        status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    except OSError as error:
        wire.send(channel, {"failed": str(error)})
    finally:
        os._exit(status & 0xFF)


class _Runner:
    """Runs a notebook's cells in a namespace, then scripts of calls on the names they defined."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
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

    def serve(self) -> None:
        wire.send(self.channel, {"ready": True})
        while True:
            request = wire.receive(self.channel)
            wire.send(self.channel, getattr(self, f"_do_{request.pop('do')}")(**request))

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
            if error:
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
    main(int(sys.argv[1]), sys.argv[2])
