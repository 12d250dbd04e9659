"""The matrix of mutants: what the check catches and names. `python -m tests.checks.matrix` writes it for the book.

`python -m tests.checks.matrix bugs gqa` computes the rows of these chapters only, and keeps the others.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import attncourse
from attncourse.checks import CHAPTERS, Verdict, compute, evaluate, exercise, exercises
from attncourse.checks.judge import Question, _same, ask, judge
from attncourse.checks.script import Call, Reply
from attncourse.checks.spec import Exercise, ReverseExercise
from tests.checks import mechanical
from tests.checks.mutants import Answers

PATH = Path(attncourse.__file__).parent / "data" / "checks_matrix.json"
COMMAND = "python -m tests.checks.matrix"


@cache
def answers(chapter: str) -> Answers:
    """The answers written by hand for one chapter."""
    return importlib.import_module(f"tests.checks.mutants.{chapter}").ANSWERS


@cache
def question(id: str) -> Question:
    return ask(exercise(id))


def verdict(id: str, answer: Callable) -> Verdict:
    """What `evaluate` gives, without writing the scripts anew each time."""
    spec = exercise(id)
    return judge(spec, question(id), [compute.run(answer, s, spec.forbidden) for s in question(id).scripts])


def scored_replies(id: str, answer: Callable) -> list[Reply]:
    """What an answer replies to the scripts that cost points, gradients left out where they cost none."""
    scripts = [script for script in question(id).scripts if script.habit is None]
    if exercise(id).compare_gradients:
        return [compute.run(answer, script) for script in scripts]
    plain = [
        replace(s, steps=tuple(replace(step, gradients=()) if isinstance(step, Call) else step for step in s.steps))
        for s in scripts
    ]
    return [compute.run(answer, script) for script in plain]


def same(spec: Exercise, one: list[Reply], other: list[Reply]) -> bool:
    """Whether no script tells the two apart, by values or by which of them raise."""
    return all(_same(spec, a, b) for a, b in zip(one, other, strict=True))


@cache
def misconceptions(id: str) -> dict[str, Verdict]:
    """The verdict on each misconception, as written the second time."""
    mutants = answers(id.split("/")[0]).mutants
    return {m.name: evaluate(id, mutants[id, m.name]) for m in exercise(id).misconceptions}


@cache
def rewritings(id: str) -> dict[str, Verdict]:
    """The verdict on each right answer in another style."""
    return {
        style: evaluate(id, answer) for (of, style), answer in answers(id.split("/")[0]).rewritings.items() if of == id
    }


@cache
def forms(id: str) -> dict[str, tuple[str | None, Verdict]]:
    """Other forms of mistakes: the misconception each is a form of, if any, and the verdict."""
    table = answers(id.split("/")[0]).forms
    return {words: (name, evaluate(id, answer)) for (of, words), (name, answer) in table.items() if of == id}


@cache
def learners_tests(id: str) -> dict[str, dict[str, Verdict]]:
    """The verdicts on learners' tests, where those are the answer: "good", "lax" and "strict" ones, by their words."""
    table = answers(id.split("/")[0])
    kinds = {"good": table.good, "lax": {key: test for key, (_, test) in table.lax.items()}, "strict": table.strict}
    return {
        kind: {words: evaluate(id, test) for (of, words), test in group.items() if of == id}
        for kind, group in kinds.items()
    }


@dataclass(frozen=True)
class Pair:
    names: frozenset[str]
    natural: bool  # written by hand, not made of switches
    verdict: Verdict

    @property
    def named(self) -> bool:
        return frozenset(mistake.name for mistake in self.verdict.mistakes) == self.names


@cache
def pairs(id: str) -> tuple[Pair, ...]:
    """Two mistakes at once: the natural ones, then every pair of switches whose behaviour is new.

    Not counted are pairs that no script can tell from a right answer, from one mistake, or from an earlier pair.
    """
    spec = exercise(id)
    found = [
        Pair(names, True, evaluate(id, answer))
        for (of, names), answer in answers(id.split("/")[0]).pairs.items()
        if of == id
    ]
    names = [misconception.name for misconception in spec.misconceptions]
    seen = [scored_replies(id, spec.faulty(frozenset(wrong))) for wrong in [[], *([name] for name in names)]]
    for wrong in map(frozenset, combinations(names, 2)):
        replies = scored_replies(id, spec.faulty(wrong))
        if not any(same(spec, replies, other) for other in seen):
            seen.append(replies)
            found.append(Pair(wrong, False, verdict(id, spec.faulty(wrong))))
    return tuple(found)


@cache
def survivors(id: str) -> tuple[int, dict[str, Verdict]]:
    """How many mechanical mutants there are, and the verdict on each that passes, by id."""
    mutants = mechanical.mutants(id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mutants do what PyTorch will no longer allow
        passed = {mutant.id: evaluate(id, mutant.make()) for mutant in mutants if not killed(id, mutant)}
    assert all(verdict.passed for verdict in passed.values())
    return len(mutants), passed


def killed(id: str, mutant: mechanical.Mutant) -> bool:
    """Whether one script alone fails the mutant: what `evaluate` would say, without naming it and stopping early."""
    spec = replace(exercise(id), misconceptions=())
    for script, expected in zip(question(id).scripts, question(id).expected, strict=True):
        reply = compute.run(mutant.make(), script, spec.forbidden)
        if not judge(spec, Question((script,), (expected,)), [reply]).passed:
            return True
    return False


def row(id: str) -> dict[str, Any]:
    """All numbers of one exercise."""
    spec = exercise(id)
    if isinstance(spec, ReverseExercise):
        return {"id": id, "title": spec.title, "reverse": reverse_row(spec)}
    total, survived = survivors(id)
    explained = sum((id, mutant) in mechanical.EQUIVALENT for mutant in survived)
    verdicts = misconceptions(id)
    return {
        "id": id,
        "title": spec.title,
        "misconceptions": [
            {
                "name": m.name,
                "title": m.title,
                "caught": not verdicts[m.name].passed,
                "named": [mistake.name for mistake in verdicts[m.name].mistakes] == [m.name],
                "kind": verdicts[m.name].kind,
            }
            for m in spec.misconceptions
        ],
        "pairs": {
            "total": len(pairs(id)),
            "caught": sum(not pair.verdict.passed for pair in pairs(id)),
            "named": sum(pair.named for pair in pairs(id)),
        },
        "mechanical": {"total": total, "killed": total - len(survived), "explained": explained},
        "rewritings": {
            "total": len(rewritings(id)),
            "passed": sum(verdict.passed and not verdict.advice for verdict in rewritings(id).values()),
        },
    }


def reverse_row(spec: ReverseExercise) -> dict[str, Any]:
    """The numbers of an exercise whose answer is a test: how many tests of each kind get what they should."""
    verdicts, lax = learners_tests(spec.id), answers(spec.id.split("/")[0]).lax
    told = [{m.name for m in verdict.mistakes} == lax[spec.id, words][0] for words, verdict in verdicts["lax"].items()]
    return {
        "right": len(spec.right),
        "wrong": len(spec.misconceptions),
        "good_tests": {"total": len(verdicts["good"]), "told": sum(v.passed for v in verdicts["good"].values())},
        "lax_tests": {"total": len(told), "told": sum(told)},
        "strict_tests": {
            "total": len(verdicts["strict"]),
            "told": sum(verdict.kind == "too strict" for verdict in verdicts["strict"].values()),
        },
    }


def matrix(chapters: Sequence[str]) -> dict[str, Any]:
    """The whole matrix, in the order of the book: the rows of these chapters computed, the others as committed."""
    kept = {} if set(chapters) == set(CHAPTERS) else {r["id"]: r for r in json.loads(PATH.read_text())["exercises"]}
    every = [
        row(spec.id) if chapter in chapters else kept[spec.id] for chapter in CHAPTERS for spec in exercises(chapter)
    ]
    return {"exercises": every, "totals": totals(every)}


def totals(every: list[dict[str, Any]]) -> dict[str, int]:
    """The sums over the rows of all exercises whose answer is no test."""
    rows = [row for row in every if "reverse" not in row]
    known = [misconception for row in rows for misconception in row["misconceptions"]]
    return {
        "misconceptions": len(known),
        "caught": sum(misconception["caught"] for misconception in known),
        "named": sum(misconception["named"] for misconception in known),
        "pairs": sum(row["pairs"]["total"] for row in rows),
        "pairs_caught": sum(row["pairs"]["caught"] for row in rows),
        "pairs_named": sum(row["pairs"]["named"] for row in rows),
        "mutants": sum(row["mechanical"]["total"] for row in rows),
        "killed": sum(row["mechanical"]["killed"] for row in rows),
        "explained": sum(row["mechanical"]["explained"] for row in rows),
        "rewritings": sum(row["rewritings"]["total"] for row in rows),
    }


def text(of: dict[str, Any]) -> str:
    """A matrix as it is committed."""
    return json.dumps(of, indent=2, ensure_ascii=False) + "\n"


def main(chapters: Sequence[str]) -> None:
    if unknown := set(chapters) - set(CHAPTERS):
        sys.exit(f"there is no chapter {', '.join(sorted(unknown))}; there are {', '.join(CHAPTERS)}")
    torch.set_num_threads(1)
    PATH.parent.mkdir(parents=True, exist_ok=True)
    chapters = chapters or CHAPTERS
    whole = matrix(chapters)
    PATH.write_text(text(whole), encoding="utf-8")
    print(f"wrote {PATH}")
    for name, number in whole["totals"].items():
        print(f"  {name:15} {number}")
    for id in (row["id"] for row in whole["exercises"] if "reverse" not in row and row["id"].split("/")[0] in chapters):
        for words, (name, verdict) in forms(id).items():
            names = ", ".join(mistake.name for mistake in verdict.mistakes) or "not named"
            print(f"  {id}, another form: {words}: {verdict.kind}, {names}{f' (a form of {name})' if name else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
