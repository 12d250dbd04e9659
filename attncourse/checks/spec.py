"""What an exercise is: one specification serves the instant check, the grading run and the matrix of mutants."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attncourse.checks.script import Call, Construct, Load, Result, Script


@dataclass(frozen=True)
class Misconception:
    """A known mistake: `name` switches it on in the exercise's `faulty`; the rest is told to the learner.

    title: the mistake in a few words; explanation: why it is one; reread: heading of a section of the chapter.
    """

    name: str
    title: str
    explanation: str
    reread: str


@dataclass(frozen=True)
class Output:
    """One thing the answer returns: its name and the letters of its axes, as in "B T S"."""

    name: str
    axes: str


@dataclass(frozen=True)
class Property:
    """Something that holds for every right answer, to say what a wrong one breaks.

    text: the property in words; holds(call, result) -> bool.
    """

    text: str
    holds: Callable[[Call, Result], bool]


@dataclass(frozen=True)
class Variant:
    """The same exercise under another convention, for an instructor's copy.

    statement: what changes, told to the learner; argument(name, value): an input in this convention;
    wrap(implementation): an implementation of the original exercise, made to follow this convention; titles and
    explanations: of the misconceptions of which the exercise's own say something that does not hold here, by name.
    """

    statement: str
    argument: Callable[[str, Any], Any]
    wrap: Callable[[Callable], Callable]
    titles: Mapping[str, str] = field(default_factory=dict)
    explanations: Mapping[str, str] = field(default_factory=dict)

    def of(self, mistake: Misconception) -> Misconception:
        """What is told of a misconception under this convention."""
        title = self.titles.get(mistake.name, mistake.title)
        return replace(mistake, title=title, explanation=self.explanations.get(mistake.name, mistake.explanation))


@dataclass(frozen=True)
class Task:
    """What every exercise has: the learner defines one function or class under the name `defines`.

    id: "chapter/name", never changed; chapter: its notebook's name; given: modules of the course that an answer may
    import.
    """

    id: str
    defines: str
    title: str
    chapter: str
    difficulty: int
    minutes: int
    points: int
    given: tuple[str, ...] = field(default=(), kw_only=True)

    def variant(self, name: str) -> "Task":
        """This exercise under the convention called `name`."""
        raise ValueError(f"{self.id} has no variant {name!r}; it has none")


@dataclass(frozen=True)
class Exercise(Task):
    """The learner writes an implementation, which is compared with a reference.

    scripts(seed): the script of calls, smallest first; reference: a right answer; faulty(wrong): the answer with
    those misconceptions (an empty set gives a right one); outputs: of the last call; forbidden: library functions
    the learner must not use; habits: advice by habit name, for what scripts with that `habit` find;
    compare_gradients: whether a right answer must have the right gradients, not only the right values.
    """

    scripts: Callable[[int], Iterable[Script]]
    reference: Callable
    faulty: Callable[[frozenset[str]], Callable]
    misconceptions: tuple[Misconception, ...]
    outputs: tuple[Output, ...]
    properties: tuple[Property, ...] = ()
    habits: Mapping[str, str] = field(default_factory=dict)
    rtol: float = 1e-4
    atol: float = 1e-5
    forbidden: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    compare_gradients: bool = False

    def variant(self, name: str) -> "Exercise":
        """This exercise under the convention called `name`."""
        if name not in self.variants:
            raise ValueError(f"{self.id} has no variant {name!r}; it has {sorted(self.variants) or 'none'}")
        variant = self.variants[name]
        return replace(
            self,
            scripts=lambda seed: [_translate(script, variant.argument) for script in self.scripts(seed)],
            reference=variant.wrap(self.reference),
            faulty=lambda wrong: variant.wrap(self.faulty(wrong)),
            misconceptions=tuple(map(variant.of, self.misconceptions)),
            variants={},
        )


@dataclass(frozen=True)
class ReverseExercise(Task):
    """The learner writes a test, which must tell right implementations from wrong ones.

    right: right implementations by name, written differently; faulty(wrong): the wrong ones, one for each of
    `misconceptions`. The learner's test gets one at a time, unnamed and in a shuffled order, and returns True or False.
    too_strict: advice of its own for a test that rejects a right one.
    """

    right: Mapping[str, Callable]
    faulty: Callable[[frozenset[str]], Callable]
    misconceptions: tuple[Misconception, ...]
    too_strict: str = ""


def _translate(script: Script, argument: Callable[[str, Any], Any]) -> Script:
    def convert(step: Construct | Load | Call) -> Construct | Load | Call:
        if not isinstance(step, Call):
            return step
        return replace(step, arguments={name: argument(name, value) for name, value in step.arguments.items()})

    return replace(script, steps=tuple(convert(step) for step in script.steps))


class Inputs:
    """Random inputs from a seed, chosen so that mistakes show: spread out, no identities, no constants."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        """Normal numbers of standard deviation `spread`."""
        return torch.randn(shape, generator=self.generator) * spread

    def weight(self, *shape: int) -> Tensor:
        """Weights that keep the variance of what they multiply: divided by the root of their last axis."""
        return self.normal(*shape, spread=shape[-1] ** -0.5)

    def mask(self, *shape: int) -> Tensor:
        """A boolean mask with at least one allowed and one forbidden key in every row of the last axis."""
        order = torch.rand(shape, generator=self.generator).argsort(-1)
        n_allowed = torch.randint(1, shape[-1], (*shape[:-1], 1), generator=self.generator)
        return order < n_allowed

    def padding(self, *lengths: int) -> Tensor:
        """Masks (B, S) of right-padded sequences of these lengths."""
        return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
