"""Judge a learner's test by the implementations that it accepts and rejects."""

import math
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attncourse.checks import compute
from attncourse.checks.judge import Verdict, error_text
from attncourse.checks.script import Outcome
from attncourse.checks.spec import Misconception, ReverseExercise

MAX_AXES, MAX_AXIS, MAX_NUMBERS = 4, 64, 20_000  # of what a test may give to a candidate; an empty axis counts as one
MAX_CALLS = 200  # of one candidate by one run of a test
TOO_STRICT = (
    "Compare with a tolerance that is wide enough (`torch.allclose(…, atol=1e-4)`), and only on inputs that the task "
    "allows: no NaN, no infinity, no huge numbers."
)


@dataclass(frozen=True)
class Candidate:
    """One implementation under test: right (`mistake` is None), or with a known mistake."""

    name: str
    implementation: Callable
    mistake: Misconception | None


def candidates(exercise: ReverseExercise, seed: int | str, copies: int = 1) -> list[Candidate]:
    """All implementations, the wrong ones `copies` times, in an order that depends on the seed."""
    found = [Candidate(name, implementation, None) for name, implementation in exercise.right.items()]
    for mistake in exercise.misconceptions:
        found += [Candidate(mistake.name, exercise.faulty(frozenset([mistake.name])), mistake)] * copies
    random.Random(f"{exercise.id} {seed}").shuffle(found)
    return found


def exam_candidates(exercise: ReverseExercise) -> list[Candidate]:
    """The implementations as grading asks about them, one after the other, in an order that nobody can know.

    Every wrong one comes as often as right ones come in all, and counts as found when it is rejected each time: so
    neither guessing, nor counting, nor taking what comes most often for right gives points.
    """
    return candidates(exercise, secrets.token_hex(), copies=len(exercise.right))


def trial(candidate: Candidate) -> Callable[..., Any]:
    """The candidate as one run of a test may call it, a limited number of times."""
    left = MAX_CALLS

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise compute.CandidateRaised(f"a test may call an implementation {MAX_CALLS} times, not more")
        return _call(candidate, arguments, named)

    return call


def _call(candidate: Candidate, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Run a candidate on copies of a test's arguments. Raises CandidateRaised for whatever it raises.

    It says the same of every candidate: an error's own words would tell which it is. The arguments may come from an
    untrusted process: plain values and tensors of limited size pass, nothing else.
    """
    values = [*arguments, *named.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    plain = [value for value in values if not isinstance(value, Tensor)]
    if not all(value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e6) for value in plain):
        raise compute.CandidateRaised("inputs must be tensors, numbers or None, and no lists: `torch.tensor([3, 1])`")
    too_large = any(t.dim() > MAX_AXES or max(t.shape, default=0) > MAX_AXIS for t in tensors)
    if too_large or sum(math.prod(max(1, n) for n in t.shape) for t in tensors) > MAX_NUMBERS:
        raise compute.CandidateRaised(
            f"inputs are limited to {MAX_AXIS} along an axis, {MAX_AXES} axes and {MAX_NUMBERS} numbers in all"
        )
    try:
        return candidate.implementation(*map(_copy, arguments), **{name: _copy(v) for name, v in named.items()})
    except Exception:
        given = ", ".join(map(_shown, values))
        raise compute.CandidateRaised(f"the implementation raised an error when called with {given}") from None


def _shown(value: Any) -> str:
    """A tensor by its shape, and its dtype where it is not float32."""
    if not isinstance(value, Tensor):
        return str(value)
    kind = str(value.dtype).removeprefix("torch.")
    return str(tuple(value.shape)) + ("" if kind == "float32" else f" of {kind}")


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def evaluate(exercise: ReverseExercise, test: Callable) -> Verdict:
    """Run a test on all candidates in this process, and judge it: the instant check."""
    asked = candidates(exercise, 0)
    return judge(exercise, asked, [compute.run_test(test, trial(candidate)) for candidate in asked])


def not_attempted(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.type == "NotImplementedError"


def judge(exercise: ReverseExercise, asked: Sequence[Candidate], outcomes: Sequence[Outcome]) -> Verdict:
    """Full points for a test that rejects every wrong implementation and accepts every right one.

    A test that accepts all right ones gets its share of the points for the wrong ones it rejects; a test that
    rejects a right one gets none, since rejecting everything would otherwise pay.
    """
    if not_attempted(outcomes[0]):
        return Verdict(exercise, "not attempted", "Not attempted yet.")
    pairs = list(zip(asked, outcomes, strict=True))
    # A test may stumble over a wrong implementation, and so rejects it; over a right one it must not.
    failures = [outcome.failure for candidate, outcome in pairs if outcome.failure and candidate.mistake is None]
    if failures:
        where = f" in line {failures[0].line} of the cell, `{failures[0].code}`" if failures[0].code else ""
        own = failures[0].type in ("CandidateRaised", "Placeholder", "NotWritten")  # their messages say it all
        error = failures[0].message if own else error_text(failures[0])
        where = "" if failures[0].type == "NotWritten" else where
        if "does not require grad" in error:
            error += " (no gradient passes through a candidate: change an input, and see which outputs move)"
        text = f"On a right implementation your test itself raised an error{where}: {error.rstrip('.')}."
        return Verdict(exercise, "raised", text)
    rejected = [candidate.name for candidate, outcome in pairs if candidate.mistake is None and not outcome.accepted]
    accepted = {candidate.name for candidate, outcome in pairs if outcome.accepted}
    missed = tuple(mistake for mistake in exercise.misconceptions if mistake.name in accepted)
    n_wrong = len(exercise.misconceptions)
    if rejected:
        text = (
            f"Your test rejects {len(rejected)} of {len(exercise.right)} right implementations: {', '.join(rejected)}. "
            f"{exercise.too_strict or TOO_STRICT}"
        )
        if len(rejected) == len(exercise.right):
            text = (
                f"Your test rejects all {len(rejected)} right implementations, so either True and False are in each "
                "other's place, or what you compare with is wrong: work one number out by hand."
            )
            text += f" {exercise.too_strict}" if exercise.too_strict else ""
        return Verdict(exercise, "too strict", text)
    if missed:
        found = n_wrong - len(missed)
        text = f"It accepts every right implementation and rejects {found} of {n_wrong} wrong ones."
        if not found and any(outcome.said_nothing for outcome in outcomes):
            text += " It returns None, which counts as accepted: is a `return` or an `assert` missing?"
        text += " It lets through:"
        return Verdict(exercise, "misses", text, missed, share=found / n_wrong)
    return Verdict(exercise, "passed", "Correct.")
