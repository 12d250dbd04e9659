"""Scripts of calls: what a check asks of an answer, and what comes back, as plain data.

A script is a list of steps that any process can run on a learner's function or class (`compute.run`). Its
values are numbers, strings, booleans, None, tensors, and tuples or dicts of those: nothing that holds code.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Construct:
    """Make the object under test: `target(*arguments.values())`. Without this step the target is a function."""

    arguments: dict[str, Any]


@dataclass(frozen=True)
class Load:
    """Give the object weights: `load_state_dict(state)`, strictly."""

    state: dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """Call the function, the object, or one of its methods with `arguments`, in order, by position.

    `gradients` names the arguments whose gradient is wanted; the result is recorded either way.
    """

    arguments: dict[str, Any]
    method: str | None = None
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Script:
    """Steps to run in order. With `habit`, a probe for that habit: it gives advice and never costs points.

    largest: how many numbers one tensor of the answer may hold, where an exercise is about not holding more.
    """

    name: str
    steps: tuple[Construct | Load | Call, ...]
    habit: str | None = None
    largest: int | None = None

    @property
    def calls(self) -> list[Call]:
        return [step for step in self.steps if isinstance(step, Call)]

    @property
    def size(self) -> int:
        """Numbers in all inputs: the smallest script that fails makes the counterexample."""
        tensors = [value for call in self.calls for value in call.arguments.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() for tensor in tensors)


@dataclass(frozen=True)
class Failure:
    """An exception raised by the answer: its type, message, and the learner's own line."""

    type: str
    message: str
    line: int | None = None
    code: str = ""


@dataclass(frozen=True)
class Result:
    """What one call gave.

    type: the Python type of what was returned, "tuple" for several; outputs: the tensors in it, empty when it
    was something else; gradients: by argument name, None where no gradient arrived; inputs: tensors afterwards.
    """

    type: str
    outputs: tuple[Tensor, ...] = ()
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What running one script gave: a result for each call made, and the failure that ended it, if any."""

    results: tuple[Result, ...]
    failure: Failure | None = None


@dataclass(frozen=True)
class Outcome:
    """What a learner's test said of one candidate: accepted or not, or the failure of the test itself.

    said_nothing: it returned None, which accepts.
    """

    accepted: bool
    failure: Failure | None = None
    said_nothing: bool = False
