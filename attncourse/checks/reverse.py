"""Judge a learner's test by the implementations that it accepts and rejects."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attncourse.checks import compute
from attncourse.checks.judge import Verdict
from attncourse.checks.script import Outcome
from attncourse.checks.spec import Misconception, ReverseExercise

MAX_AXIS, MAX_NUMBERS = 64, 20_000  # of what a test may give to a candidate


@dataclass(frozen=True)
class Candidate:
    """One implementation under test: right (`mistake` is None), or with a known mistake."""

    name: str
    implementation: Callable
    mistake: Misconception | None


def candidates(exercise: ReverseExercise, seed: int) -> list[Candidate]:
    """All implementations, right and wrong, in an order that depends on the seed."""
    found = [Candidate(name, implementation, None) for name, implementation in exercise.right.items()]
    for mistake in exercise.misconceptions:
        found.append(Candidate(mistake.name, exercise.faulty(frozenset([mistake.name])), mistake))
    random.Random(f"{exercise.id} {seed}").shuffle(found)
    return found


def call(candidate: Candidate, arguments: Sequence[Any]) -> Any:
    """Run a candidate on copies of a test's arguments. Raises CandidateRaised for whatever it raises.

    The arguments may come from an untrusted process: plain values and tensors of limited size pass, nothing else.
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    plain = [value for value in arguments if not isinstance(value, Tensor)]
    if not all(value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e6) for value in plain):
        raise compute.CandidateRaised("inputs must be tensors, numbers or None")
    if any(max(t.shape, default=0) > MAX_AXIS for t in tensors) or sum(t.numel() for t in tensors) > MAX_NUMBERS:
        raise compute.CandidateRaised(
            f"inputs are limited to {MAX_AXIS} along an axis and {MAX_NUMBERS} numbers in all"
        )
    try:
        return candidate.implementation(*(v.detach().clone() if isinstance(v, Tensor) else v for v in arguments))
    except Exception as error:
        raise compute.CandidateRaised(f"{type(error).__name__}: {error}") from None


def run_here(exercise: ReverseExercise, test: Callable, seed: int) -> list[Outcome]:
    """Run a test on all candidates in this process: for the instant check."""
    return [
        compute.run_test(test, lambda *arguments, candidate=candidate: call(candidate, arguments))
        for candidate in candidates(exercise, seed)
    ]


def judge(exercise: ReverseExercise, seed: int, outcomes: Sequence[Outcome]) -> Verdict:
    """Full points for a test that rejects every wrong implementation and accepts every right one.

    A test that accepts all right ones gets its share of the points for the wrong ones it rejects; a test that
    rejects a right one gets none, since rejecting everything would otherwise pay.
    """
    pairs = list(zip(candidates(exercise, seed), outcomes, strict=True))
    if any(outcome.failure and outcome.failure.type == "NotImplementedError" for outcome in outcomes):
        return Verdict(exercise, "not attempted", "Not attempted yet.")
    # A test may stumble over a wrong implementation, and so rejects it; over a right one it must not.
    failures = [outcome.failure for candidate, outcome in pairs if outcome.failure and candidate.mistake is None]
    if failures:
        first = failures[0]
        where = f" in line {first.line} of the cell, `{first.code}`" if first.line and first.code else ""
        return Verdict(
            exercise,
            "raised",
            f"On a right implementation your test failed itself{where}: {first.type}: {first.message}",
        )
    rejected = [candidate.name for candidate, outcome in pairs if candidate.mistake is None and not outcome.accepted]
    missed = tuple(candidate.mistake for candidate, outcome in pairs if candidate.mistake and outcome.accepted)
    n_wrong = len(exercise.misconceptions)
    if rejected:
        text = (
            f"Your test rejects {len(rejected)} of {len(exercise.right)} right implementations: {', '.join(rejected)}. "
            "Compare with a tolerance (`torch.allclose`), and ask for nothing that the task does not promise."
        )
        return Verdict(exercise, "too strict", text)
    if missed:
        found = n_wrong - len(missed)
        text = f"It accepts every right implementation and rejects {found} of {n_wrong} wrong ones. It lets through:"
        return Verdict(exercise, "misses", text, missed, share=found / n_wrong)
    return Verdict(exercise, "passed", "Correct.")
