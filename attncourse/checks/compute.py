"""Run a script of calls on a learner's function or class. Computes and reports; decides nothing.

This file holds no reference and no expectation, so that it can run beside untrusted code.
"""

import dis
import linecache
import random
import signal
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from attncourse.checks.script import Call, Construct, Failure, Load, Outcome, Reply, Result, Script

LIBRARY_FOLDERS = (str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"])
LIBRARIES = ("site-packages", "dist-packages", "<frozen")  # parts of file names; dist-packages: Colab's

# What the library runs for a function under another name: the beginnings of those names, without underscores in front.
KERNELS = {
    "softmax": ("masked_softmax", "safe_softmax", "sparse_softmax"),
    "scaled_dot_product_attention": ("scaled_dot_product_", "safe_softmax", "flex_attention"),
    "multi_head_attention_forward": ("native_multi_head_attention", "transformer_encoder_layer_fwd"),
    "unfold": ("im2col",),
}


class ForbiddenCall(RuntimeError):
    """The answer called a library function that this exercise asks the learner to write."""


class TooLarge(RuntimeError):
    """The answer made a tensor of more numbers than its exercise allows at a time."""


class TookTooLong(BaseException):
    """The answer was stopped; no Exception, so that the learner's own `except` does not catch it."""


class WrongParameters(Exception):
    """The object's parameters are not those that the exercise gave it."""


class CandidateRaised(Exception):
    """An implementation under a learner's test raised an error: a test that does not expect it has rejected it."""


class _Watch(TorchFunctionMode):
    """Stops an answer at a function of these names, and at a tensor of more than `largest` numbers (a view is none)."""

    def __init__(self, names: Iterable[str], largest: int | None):
        super().__init__()
        self.forbid, self.largest = _Forbid(names), largest

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.forbid.look_at(getattr(function, "__name__", ""))
        result = function(*args, **(kwargs or {}))
        if self.largest is not None and isinstance(result, Tensor):
            held = result.untyped_storage().nbytes() // result.element_size()
            if held > self.largest:
                raise TooLarge(
                    f"a tensor of shape {tuple(result.shape)} holds {held:,} numbers at once, and this exercise asks "
                    f"for no more than {self.largest:,} here: work on one part after the other"
                )
        return result


class _Forbid(TorchDispatchMode):
    """Stops an answer at the kernels of these functions: called by a script, say, or with the other mode off."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.names = {name.lstrip("_") for name in names}
        self.kernels = tuple(kernel for name in self.names for kernel in KERNELS.get(name, ()))
        self.fine: set[str] = set()  # names looked at already

    def look_at(self, name: str) -> None:
        """Raise ForbiddenCall if this is the name of a forbidden function, of one of its overloads or kernels."""
        if name in self.fine:
            return
        bare = name.partition(".")[0].lstrip("_")
        if bare in self.names or (self.kernels and bare.startswith(self.kernels)):
            raise ForbiddenCall(f"`{bare}` is what this exercise asks you to write; use more basic operations")
        self.fine.add(name)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler for this, which takes a second

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.look_at(function.__name__)
        return function(*args, **(kwargs or {}))


def is_the_courses(answer: Any) -> bool:
    """Whether an answer is a function or class of the course itself, or a class made from one of its classes."""
    family = answer.__mro__ if isinstance(answer, type) else (answer,)
    return any(str(getattr(member, "__module__", "")).startswith("attncourse.") for member in family)


@contextmanager
def _at_most(seconds: float | None) -> Iterator[None]:
    """Raise TookTooLong in what runs longer. Only where a timer can interrupt: Unix, in the main thread."""
    timed = seconds is not None and hasattr(signal, "setitimer")
    if not timed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TookTooLong(f"there was no answer after {seconds:g} s: a loop may wait for something that never comes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(target: Any, script: Script, forbidden: Iterable[str] = (), seconds: float | None = None) -> Reply:
    """Run `script` on `target`, a function or class. Exceptions become part of the reply; inputs are copies.

    seconds: after which it is stopped, where that is possible (a notebook's own process; a jail has its own limit).
    """
    returned: list[_Returned] = []
    # Random numbers are the same in every run, and the learner's own stream is left as it was.
    forbidden = tuple(forbidden)
    watch = _Watch(forbidden, script.largest) if forbidden or script.largest is not None else nullcontext()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the learner's CUDA stream, slowly
        try:
            given = [_copies(step) if isinstance(step, Call) else {} for step in script.steps]  # not watched: slow
            with watch, watch.forbid if forbidden else nullcontext(), _at_most(seconds):
                for step, inputs in zip(script.steps, given, strict=True):
                    if isinstance(step, Construct):
                        target = target(*step.arguments.values())
                    elif isinstance(step, Load):
                        _load(target, step.state)
                    else:
                        function = target if step.method is None else getattr(target, step.method)
                        returned.append(_call(function, inputs, step.gradients))
            failure = None
        except (Exception, SystemExit, TookTooLong) as error:
            failure = _failure(error)
    return Reply(tuple(one.result() for one in returned), failure)


def run_test(test: Callable, candidate: Callable) -> Outcome:
    """Run a learner's test on one candidate: False, AssertionError or an error of the candidate rejects it.

    Torch's random numbers and Python's are the same in every run, and the learner's own are left as they were.
    """
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        try:
            returned = test(candidate)
            accepted = returned is None or bool(returned)
        except AssertionError:
            return Outcome(False)
        except (Exception, SystemExit) as error:
            return Outcome(False, _failure(error))
        finally:
            random.setstate(state)
    if returned is None:
        return Outcome(True, said_nothing=True)
    kind = str(returned.dtype) if isinstance(returned, Tensor) else type(returned).__name__
    if kind in ("bool", "bool_", "torch.bool"):  # Python's, NumPy's, a tensor's
        return Outcome(accepted)
    return Outcome(False, Failure("TypeError", f"the test returned a {kind}, not True or False"))


def _load(target: Any, state: dict[str, Tensor]) -> None:
    try:
        target.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    except (RuntimeError, AttributeError) as error:
        if not isinstance(target, nn.Module):
            raise WrongParameters(
                f"this exercise needs a class made from nn.Module, not {type(target).__name__}"
            ) from None
        theirs = {name: tensor for name, tensor in target.state_dict().items()}
        raise WrongParameters(
            f"the class must keep its parameters {_named_shapes(state)}; yours has {_named_shapes(theirs)}. "
            "Leave `__init__` as it was"
        ) from error


def _named_shapes(state: dict[str, Tensor]) -> str:
    return ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in state.items()) or "none"


@dataclass(frozen=True)
class _Returned:
    """What a call returned and was given, not copied yet: later calls may still change it, and should not."""

    type: str
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor | None]
    inputs: dict[str, Tensor]

    def result(self) -> Result:
        copies = tuple(output.clone() for output in self.outputs)
        return Result(self.type, copies, self.gradients, {name: tensor.clone() for name, tensor in self.inputs.items()})


def _copies(call: Call) -> dict[str, tuple[Any, Tensor | None]]:
    """The arguments of a call by name, copied; beside each tensor itself again, to see later whether it was edited."""
    copies = {name: _fresh(value, name in call.gradients) for name, value in call.arguments.items()}
    return {name: (value, value.detach() if isinstance(value, Tensor) else None) for name, value in copies.items()}


def _call(function: Callable, given: dict[str, tuple[Any, Tensor | None]], wanted: Iterable[str]) -> _Returned:
    """Call a function with what `_copies` gives. wanted: the arguments whose gradients are."""
    inputs = {name: tensor for name, (_, tensor) in given.items() if tensor is not None}
    returned = function(*(value for value, _ in given.values()))
    items = returned if isinstance(returned, (tuple, list)) else (returned,)
    if not items or not all(isinstance(item, Tensor) for item in items):
        return _Returned(_type_name(returned), (), {}, inputs)
    gradients = _gradients(items, {name: given[name][0] for name in wanted}) if wanted else {}
    kind = "tuple" if items is returned else "Tensor"
    return _Returned(kind, tuple(item.detach() for item in items), gradients, inputs)


def _fresh(value: Any, needs_gradient: bool) -> Any:
    """A copy with the same strides, so that a non-contiguous input stays one."""
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
    # Not a leaf, nor a view of one: editing those in place is an error, editing this is a habit we want to see.
    return copy.requires_grad_().clone() if needs_gradient else copy


def _gradients(outputs: Iterable[Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradient of a fixed weighted sum of all outputs with respect to each input, None where none arrives."""
    total = None
    for output in outputs:
        if output.requires_grad and output.is_floating_point():
            # Not as `grad_outputs`: for these torch would import its symbolic shapes, which takes a third of a second.
            weights = torch.cos(torch.arange(1, output.numel() + 1)).to(output).view(output.shape)
            part = (output * weights).sum()
            total = part if total is None else total + part
    if total is None:
        return dict.fromkeys(inputs)
    try:
        gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    except RuntimeError:  # an input was edited in place: the inputs afterwards show it
        return dict.fromkeys(inputs)
    return dict(zip(inputs, gradients, strict=True))


def _type_name(returned: Any) -> str:
    if isinstance(returned, (tuple, list)):
        return f"{type(returned).__name__} of {', '.join(type(item).__name__ for item in returned) or 'nothing'}"
    return type(returned).__name__


def _failure(error: BaseException) -> Failure:
    """What the learner is told of an error: the deepest line of the cell that the check called, and what to do.

    An untouched placeholder alone keeps the type NotImplementedError: it means "not attempted".
    """
    every = list(_frames(error.__traceback__))
    frames = [frame for frame in every if not _is_library(frame.filename)]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    line, code = (own[-1].line, own[-1].text) if own else (None, "")
    if not isinstance(error, NotImplementedError):
        return Failure(type(error).__name__, str(error), line, code)
    if not frames or frames[-1] is not every[-1] or "NotImplementedError" not in frames[-1].code.co_names:
        return Failure("NotImplementedError of torch", str(error), line, code)
    if frames[-1].code.co_name != "__init__" and not _only_raises(frames[-1].code):
        return Failure(
            "Placeholder", "your code reached the placeholder, `raise NotImplementedError`; delete it", line, code
        )
    if len(frames) > 1:
        name = frames[-1].code.co_name
        return Failure("NotWritten", f"it calls your `{name}`, which is not written yet: write that first", line, code)
    return Failure("NotImplementedError", "", line, code)


class _Frame(NamedTuple):
    filename: str
    line: int
    text: str
    code: CodeType


def _frames(traceback: TracebackType | None) -> Iterator[_Frame]:
    while traceback is not None:
        frame, line = traceback.tb_frame, traceback.tb_lineno
        name = frame.f_code.co_filename
        yield _Frame(name, line, linecache.getline(name, line, frame.f_globals).strip(), frame.f_code)
        traceback = traceback.tb_next


def _is_library(filename: str) -> bool:
    return filename.startswith(LIBRARY_FOLDERS) or any(part in filename for part in LIBRARIES)


def _only_raises(code: CodeType) -> bool:
    """Whether a function's body is nothing but `raise NotImplementedError`, under a docstring or not."""
    working = ("BINARY", "STORE", "COMPARE", "LOAD_ATTR", "LOAD_METHOD", "LOAD_FAST", "IMPORT", "BUILD", "JUMP")
    return not any(step.opname.startswith(working) for step in dis.get_instructions(code))
