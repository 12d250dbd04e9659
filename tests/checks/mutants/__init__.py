"""Answers written as learners write them, by chapter: mistakes, two mistakes at once, and right answers."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Answers:
    """The answers of one chapter, filled by decorators; keys are (exercise id, what it is).

    mutants: a misconception by name; pairs: the frozenset of both names; forms: other ways a learner makes a
    mistake, by a few words, with the name of the misconception it is a form of (None: not one of the list);
    rewritings: right answers, by style. For exercises whose answer is a test: good, by style; lax, by a few words,
    with the names of the misconceptions that it lets through; strict, which rejects a right implementation.
    """

    chapter: str
    mutants: dict[tuple[str, str], Callable] = field(default_factory=dict)
    pairs: dict[tuple[str, frozenset[str]], Callable] = field(default_factory=dict)
    forms: dict[tuple[str, str], tuple[str | None, Callable]] = field(default_factory=dict)
    rewritings: dict[tuple[str, str], Callable] = field(default_factory=dict)
    good: dict[tuple[str, str], Callable] = field(default_factory=dict)
    lax: dict[tuple[str, str], tuple[frozenset[str], Callable]] = field(default_factory=dict)
    strict: dict[tuple[str, str], Callable] = field(default_factory=dict)

    def mutant(self, exercise: str, misconception: str) -> Callable:
        return self._into(self.mutants, exercise, misconception)

    def pair(self, exercise: str, *misconceptions: str) -> Callable:
        return self._into(self.pairs, exercise, frozenset(misconceptions))

    def form(self, exercise: str, words: str, misconception: str | None) -> Callable:
        return self._into(self.forms, exercise, words, lambda answer: (misconception, answer))

    def right(self, exercise: str, style: str) -> Callable:
        return self._into(self.rewritings, exercise, style)

    def good_test(self, exercise: str, style: str) -> Callable:
        return self._into(self.good, exercise, style)

    def lax_test(self, exercise: str, words: str, *missed: str) -> Callable:
        return self._into(self.lax, exercise, words, lambda test: (frozenset(missed), test))

    def strict_test(self, exercise: str, words: str) -> Callable:
        return self._into(self.strict, exercise, words)

    def _into(self, table: dict, exercise: str, what: str | frozenset[str], make: Callable = lambda a: a) -> Callable:
        key = (f"{self.chapter}/{exercise}", what)
        if key in table:
            raise ValueError(f"{key} is there twice")

        def add(answer: Callable) -> Callable:
            table[key] = make(answer)
            return answer

        return add
