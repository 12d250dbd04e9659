"""Exercises and their checks. `check(id, answer)` tells whether an answer is right, or which mistake it makes."""

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attncourse.checks import compute, reverse
from attncourse.checks.judge import SEEDS, Verdict, ask, judge
from attncourse.checks.report import CheckFailed, Report
from attncourse.checks.script import Reply
from attncourse.checks.spec import Exercise, ReverseExercise, Task

__all__ = [
    "CheckFailed",
    "Exercise",
    "Report",
    "ReverseExercise",
    "Verdict",
    "check",
    "evaluate",
    "exercise",
    "exercises",
]

MOST_SECONDS = 20  # for one script of calls; a right answer needs a small part of one

# The part of an id before the slash -> the module of its specifications, in the order of the chapters.
CHAPTERS = (
    "start",
    "bahdanau",
    "luong",
    "self_attention",
    "cross_attention",
    "causal",
    "multi_head",
    "positions",
    "sliding_window",
    "sparse",
    "linear",
    "kv_cache",
    "mqa",
    "gqa",
    "mla",
    "execution",
    "choosing",
    "bugs",
)


def exercises(chapter: str | None = None) -> list[Task]:
    """All exercises, or those of one chapter, in the order of the book."""
    chapters = CHAPTERS if chapter is None else (chapter,)
    return [e for name in chapters for e in importlib.import_module(f"attncourse.checks.{name}").EXERCISES]


def exercise(id: str) -> Task:
    """The exercise called `id`, such as "bahdanau/additive_score"."""
    chapter = id.split("/")[0]
    known = exercises(chapter) if chapter in CHAPTERS else exercises()
    for candidate in known:
        if candidate.id == id:
            return candidate
    raise ValueError(f"there is no exercise {id!r}; there are {', '.join(e.id for e in known)}")


def evaluate(id: str, answer: Any, variant: str | None = None) -> Verdict:
    """Judge `answer`, the learner's function or class, without showing anything."""
    spec = exercise(id) if variant is None else exercise(id).variant(variant)
    if answer is None or answer is ...:
        return Verdict(spec, "not attempted", "Not attempted yet.")
    if not callable(answer):
        return Verdict(
            spec, "type", f"`{spec.defines}` is a {type(answer).__name__}; give check the function or class itself."
        )
    if isinstance(spec, ReverseExercise):
        with _one_thread():
            return reverse.evaluate(spec, answer)
    if isinstance(spec.reference, type) and not (isinstance(answer, type) or inspect.isroutine(answer)):
        message = f"check was given an object, made from a {type(answer).__name__}; give it the class itself."
        return Verdict(spec, "type", message)
    with _one_thread():
        question = ask(spec, SEEDS)
        replies: list[Reply] = []
        for script in question.scripts:
            late = bool(replies) and replies[-1].failure is not None and replies[-1].failure.type == "TookTooLong"
            replies.append(replies[-1] if late else compute.run(answer, script, spec.forbidden, MOST_SECONDS))
        return judge(spec, question, replies)


def check(id: str, answer: Any, variant: str | None = None) -> Report:
    """Check an answer and show the result: `check("bahdanau/additive_score", additive_score)`.

    Nothing is stored or sent. Under nbgrader (NBGRADER_EXECUTION set) anything but a pass raises CheckFailed.
    """
    if not isinstance(id, str):
        raise TypeError('check takes the name in quotes, then the answer: check("bahdanau/attention", Attention)')
    verdict = evaluate(id, answer, variant)
    if verdict.passed and compute.is_the_courses(answer):
        message = f"`{verdict.exercise.defines}` is the course's own, or made from it; write it yourself."
        verdict = Verdict(verdict.exercise, "forbidden", message)
    report = Report(verdict)
    report.show()
    return report


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors of a check are tiny: on a busy machine a second thread costs fifteen times what it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
