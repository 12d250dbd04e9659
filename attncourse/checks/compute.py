"""Run a script of calls on a learner's function or class. Computes and reports; decides nothing.

This file holds no reference and no expectation, so that it can run beside untrusted code.
"""

import linecache
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attncourse.checks.script import Call, Construct, Failure, Load, Outcome, Reply, Result, Script

LIBRARIES = ("site-packages", "dist-packages", "<frozen")  # parts of file names; dist-packages: Colab's


class ForbiddenCall(RuntimeError):
    """The answer called a library function that this exercise asks the learner to write."""


class CandidateRaised(Exception):
    """An implementation under a learner's test raised an error: a test that does not expect it has rejected it."""


class _Forbid(TorchFunctionMode):
    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.names = frozenset(names)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in self.names:
            raise ForbiddenCall(f"`{name}` is what this exercise asks you to write; use more basic operations")
        return function(*args, **(kwargs or {}))


def run(target: Any, script: Script, forbidden: Iterable[str] = ()) -> Reply:
    """Run `script` on `target`, a function or class. Exceptions become part of the reply; inputs are copies."""
    results: list[Result] = []
    # Random numbers are the same in every run, and the learner's own stream is left as it was.
    with torch.random.fork_rng(devices=[]), _Forbid(forbidden) if forbidden else nullcontext():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the learner's CUDA stream, slowly
        try:
            for step in script.steps:
                if isinstance(step, Construct):
                    target = target(*step.arguments.values())
                elif isinstance(step, Load):
                    target.load_state_dict({name: tensor.clone() for name, tensor in step.state.items()})
                else:
                    results.append(_call(target if step.method is None else getattr(target, step.method), step))
        except (Exception, SystemExit) as error:
            return Reply(tuple(results), _failure(error))
    return Reply(tuple(results))


def run_test(test: Callable, candidate: Callable) -> Outcome:
    """Run a learner's test on one candidate: False, AssertionError or an error of the candidate rejects it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            returned = test(candidate)
            accepted = returned is None or bool(returned)
        except AssertionError:
            return Outcome(False)
        except (Exception, SystemExit) as error:
            return Outcome(False, _failure(error))
    if returned is None or type(returned).__name__ in ("bool", "bool_", "Tensor"):  # Python's, NumPy's, a tensor of one
        return Outcome(accepted)
    return Outcome(False, Failure("TypeError", f"the test returned a {type(returned).__name__}, not True or False"))


def _call(function: Callable, call: Call) -> Result:
    given = {name: _fresh(value, name in call.gradients) for name, value in call.arguments.items()}
    returned = function(*given.values())
    items = returned if isinstance(returned, (tuple, list)) else (returned,)
    if not items or not all(isinstance(item, Tensor) for item in items):
        return Result(_type_name(returned))
    gradients = _gradients(items, {name: given[name] for name in call.gradients}) if call.gradients else {}
    return Result(
        type="tuple" if items is returned else "Tensor",
        outputs=tuple(item.detach().clone() for item in items),
        gradients=gradients,
        inputs={name: value.detach().clone() for name, value in given.items() if isinstance(value, Tensor)},
    )


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
    line, code = _own_line(error.__traceback__)
    return Failure(type(error).__name__, str(error), line, code)


def _own_line(traceback: TracebackType | None) -> tuple[int | None, str]:
    """The deepest line in the learner's own file: the file of the first frame that is neither ours nor torch's."""
    own, line, code = None, None, ""
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        library = filename == __file__ or any(part in filename for part in LIBRARIES)
        if own is None and not library:
            own = filename
        if filename == own:
            line = traceback.tb_lineno
            code = linecache.getline(filename, line, traceback.tb_frame.f_globals).strip()
        traceback = traceback.tb_next
    return line, code
