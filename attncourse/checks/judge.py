"""Decide what a reply means: right, not attempted, or wrong and how. Never runs the learner's code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from attncourse.checks import compute
from attncourse.checks.script import Call, Failure, Reply, Result, Script
from attncourse.checks.spec import Exercise, Misconception, Task

# Failures whose message is a sentence already.
SAID = (
    "ForbiddenCall",
    "WrongParameters",
    "Placeholder",
    "NotWritten",
    "NotYourOwn",
    "NotSent",
    "TooLarge",
    "TookTooLong",
)
SEEDS = (0, 1)  # of the instant check; grading derives others from the instructor's key

EDITS_INPUTS = "Your code changes its inputs in place: whoever called it finds other numbers there. Work on a copy."
DETACHES = (
    "No gradient reaches {names}: something detaches the graph (`.detach()`, `.data`, `.item()`, numpy, "
    "`torch.tensor(…)` or `nn.Parameter(…)` of a tensor, `no_grad`), or a result that the backward pass needs is "
    "edited in place (`weights[…] = 0`: use `masked_fill`). The output is right, but a model could not train through "
    "it."
)

WRONG_GRADIENT = (
    "The output is right, but the gradient that reaches {names} is not: part of the computation is detached, or a NaN "
    "was replaced or cut off after it had entered the graph (its gradient stays NaN; 0/0 in padded rows, for example). "
    "A model would train wrongly through it."
)


@dataclass(frozen=True)
class Difference:
    """The first number that differs, in the smallest script in which one does."""

    script: str
    sizes: str
    output: str
    index: tuple[int, ...]
    got: float
    expected: float
    got_row: tuple[float, ...]
    expected_row: tuple[float, ...]
    largest: float


@dataclass(frozen=True)
class Verdict:
    """How an answer was judged.

    kind: "passed", "not attempted", "raised", "forbidden", "type", "shape", "dtype", "nan", "gradient", "mistake"
    (values that equal a known mistake) or "different" (that equal none); for a learner's test also "misses" and "too
    strict"; mistakes: the misconceptions recognised, one or two, whatever the kind (for a test: those it lets
    through); advice: habits worth changing, which cost no points; share: of the points, where not all or none.
    """

    exercise: Task
    kind: str
    message: str
    mistakes: tuple[Misconception, ...] = ()
    difference: Difference | None = None
    advice: tuple[str, ...] = ()
    share: float = 0.0

    @property
    def passed(self) -> bool:
        return self.kind == "passed"

    @property
    def points(self) -> int:
        return self.exercise.points if self.passed else int(self.exercise.points * self.share)


@dataclass(frozen=True)
class Question:
    """The scripts an answer is asked, and what a right answer replies to each."""

    scripts: tuple[Script, ...]
    expected: tuple[Reply, ...]


def ask(exercise: Exercise, seeds: Sequence[int] = SEEDS) -> Question:
    """Write the scripts of an exercise for these seeds, smallest first, and run the reference on them."""
    scripts = sorted((script for seed in seeds for script in exercise.scripts(seed)), key=lambda s: s.size)
    expected = tuple(compute.run(exercise.reference, script) for script in scripts)
    for script, reply in zip(scripts, expected, strict=True):
        if reply.failure:
            raise RuntimeError(f"the reference of {exercise.id} fails on {script.name!r}: {reply.failure}")
    return Question(tuple(scripts), expected)


def judge(exercise: Exercise, question: Question, replies: Sequence[Reply]) -> Verdict:
    """The verdict on an answer's replies to the question's scripts."""
    if any(reply.failure and reply.failure.type == "NotImplementedError" for reply in replies):
        return Verdict(exercise, "not attempted", "Not attempted yet.")
    asked = list(zip(question.scripts, question.expected, replies, strict=True))
    scored = [row for row in asked if row[0].habit is None]
    found = _first_problem(exercise, scored)
    if found is None:
        return Verdict(exercise, "passed", "Correct.", advice=tuple(_advice(exercise, asked)))
    kind, message = found
    if kind == "forbidden":
        return Verdict(exercise, kind, message)
    mistakes = _recognise(exercise, scored)
    difference = next(_differences(exercise, scored), None) if kind == "different" else None
    if kind == "different" and mistakes:
        kind, message = "mistake", ""
    elif kind == "gradient" and mistakes:
        message = ""
    return Verdict(exercise, kind, message, mistakes, difference)


Row = tuple[Script, Reply, Reply]  # a script, the reference's reply, the answer's reply


def _first_problem(exercise: Exercise, rows: list[Row]) -> tuple[str, str] | None:
    """The first thing wrong, in the order that a learner can act on; None when all is right."""
    stages = [("raised", _raised), ("type", _type), ("shape", _shape), ("dtype", _dtype), ("nan", _nan)]
    for kind, stage in [*stages, ("different", _different), ("gradient", _gradient)]:
        for script, expected, reply in rows:
            message = stage(exercise, script, expected, reply)
            if message is not None:
                forbidden = reply.failure is not None and reply.failure.type == "ForbiddenCall"
                return "forbidden" if forbidden else kind, message
    return None


def _raised(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    failure = reply.failure
    if failure is None:
        return None
    where = (
        f" It happened in line {failure.line} of the cell, `{failure.code}`." if failure.line and failure.code else ""
    )
    if failure.type in SAID:
        return f"{failure.message[:1].upper()}{failure.message[1:]}.{where}"  # a sentence already
    return f"{error_text(failure)}.{where} The call had {_sizes(script, len(reply.results))}."


def error_text(failure: Failure, most: int = 300) -> str:
    """An exception's type and message on one line, cut where it is long."""
    text = " ".join(f"{failure.type}: {failure.message}".split()).rstrip(" :.")
    text = text if len(text) <= most else f"{text[:most]} …"
    if failure.message.startswith("Boolean value of Tensor"):
        text += (
            " (join masks with `&`, with brackets round each comparison, since `&` binds tighter than `>=`; ask for "
            "None with `is not None`; choose number by number with `torch.maximum` or `torch.where`)"
        )
    return text


def _type(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    for call, right, result in zip(script.calls, expected.results, reply.results, strict=True):
        wanted = "a tensor" if right.type == "Tensor" else f"a tuple of {len(right.outputs)} tensors"
        wanted += f" ({', '.join(output.name for output in exercise.outputs)})"
        name = f"`{call.method}`" if call.method else f"`{exercise.defines}`"
        if right.type == "NoneType":
            continue
        if result.type == "NoneType":
            return f"{name} returns None; it should return {wanted}. Is a `return` missing?"
        if result.type != right.type or len(result.outputs) != len(right.outputs):
            n = f" of {len(result.outputs)}" if result.type == "tuple" else ""
            kind = result.type[:60] or "nameless object"
            article = "an" if kind[0] in "aeiou" else "a"
            return f"{name} returns {article} {kind}{n}; it should return {wanted}."
    return None


def _shape(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    for output, right, got in _outputs(exercise, expected, reply):
        if got.shape == right.shape:
            continue
        letters = output.axes.split()
        message = f"{output.name} has shape {tuple(got.shape)}; it should be {_named(letters)} = {tuple(right.shape)}"
        if got.dim() != right.dim():
            message += f": {got.dim()} {'axis' if got.dim() == 1 else 'axes'} instead of {right.dim()}"
            if got.dim() < right.dim() and [n for n in got.shape if n != 1] == [n for n in right.shape if n != 1]:
                message += " (a `.squeeze()` without an axis removes every axis of size 1; a reduction without"
                message += " `keepdim=True` and an index such as `x[:, 0]` remove theirs)"
        elif sorted(got.shape) == sorted(right.shape):
            moved = [letter for letter, a, b in zip(letters, got.shape, right.shape, strict=True) if a != b]
            if len(moved) == 2:
                message += f": the axes {' and '.join(moved)} are in each other's place"
            else:
                message += f": the axes {', '.join(moved[:-1])} and {moved[-1]} are in another order"
        else:
            axis = next(i for i, (a, b) in enumerate(zip(got.shape, right.shape, strict=True)) if a != b)
            known = "and should be" if letters[axis].isdigit() else f"where {letters[axis]} is"
            message += f": axis {axis} is {got.shape[axis]} {known} {right.shape[axis]}"
        return f"{message}. The call had {_sizes(script)}."
    return None


def _named(letters: list[str]) -> str:
    """A shape in letters, written as Python writes tuples: (N,)."""
    return f"({', '.join(letters)}{',' if len(letters) == 1 else ''})"


def _dtype(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    for output, right, got in _outputs(exercise, expected, reply):
        if got.dtype != right.dtype:
            return f"{output.name} has dtype {got.dtype}; for these inputs it should be {right.dtype}."
    return None


def _nan(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    for output, right, got in _outputs(exercise, expected, reply):
        bad = ~torch.isfinite(got) & torch.isfinite(right) if got.is_floating_point() else torch.zeros(1).bool()
        if bad.any():
            index = tuple(bad.nonzero()[0].tolist())
            value = got[index].item()
            why = "NaN comes from 0/0, inf - inf or 0 · inf" if value != value else "It should be a finite number"
            return (
                f"{output.name}{list(index)} is {value}, when called with {_sizes(script)} ({script.name}). "
                f"{why}: look at that row."
            )
    return None


def _different(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    if all(_close(exercise, got, right) for _, right, got in _outputs(exercise, expected, reply)):
        return None
    for held in exercise.properties:
        calls = list(zip(script.calls, expected.results, reply.results, strict=True))
        if not all(held.holds(call, right) for call, right, _ in calls if right.outputs):
            continue  # in a variant, a right answer need not keep it
        if not all(held.holds(call, result) for call, right, result in calls if right.outputs):
            return f"A right answer keeps this, and yours does not: {held.text}."
    return "The values differ, and they equal no mistake that this check knows."


def _gradient(exercise: Exercise, script: Script, expected: Reply, reply: Reply) -> str | None:
    pairs = zip(expected.results, reply.results, strict=True)
    if not exercise.compare_gradients or all(_same_gradients(exercise, *pair) for pair in pairs):
        return None
    return "The values are right and their gradient is not, which here is half of the task."


def _differences(exercise: Exercise, rows: list[Row]) -> Iterator[Difference]:
    for script, expected, reply in rows:
        for call, output, right, got in _numbered_outputs(exercise, expected, reply):
            wrong = got != right
            if right.is_floating_point():
                wrong = ~torch.isclose(got, right, rtol=exercise.rtol, atol=exercise.atol)
            if wrong.any():
                index = tuple(wrong.nonzero()[0].tolist())
                row = index[:-1]
                yield Difference(
                    _place(script, call),
                    _sizes(script, call),
                    output.name,
                    index,
                    got[index].item(),
                    right[index].item(),
                    tuple(torch.atleast_1d(got[row]).tolist()),
                    tuple(torch.atleast_1d(right[row]).tolist()),
                    (got.double() - right.double()).abs().nan_to_num(float("inf")).max().item(),
                )


def _outputs(exercise: Exercise, expected: Reply, reply: Reply) -> Iterator[tuple]:
    """(what it is, right tensor, given tensor) for every tensor of every call."""
    for _, *rest in _numbered_outputs(exercise, expected, reply):
        yield tuple(rest)


def _numbered_outputs(exercise: Exercise, expected: Reply, reply: Reply) -> Iterator[tuple]:
    """The same, with the number of the call in front."""
    for call, (right, result) in enumerate(zip(expected.results, reply.results, strict=True)):
        for output, a, b in zip(exercise.outputs, right.outputs, result.outputs, strict=False):
            yield call, output, a, b


def _recognise(exercise: Exercise, rows: list[Row]) -> tuple[Misconception, ...]:
    """The misconception whose replies these are, or the two that together give them, or nothing."""
    by_name = {misconception.name: misconception for misconception in exercise.misconceptions}
    for n in (1, 2):
        for names in combinations(by_name, n):
            if _same_replies(exercise, exercise.faulty(frozenset(names)), rows):
                return tuple(by_name[name] for name in names)
    return ()


def _same_replies(exercise: Exercise, implementation: Callable, rows: list[Row]) -> bool:
    """Whether `implementation` gives the answer's replies, and not merely the same exceptions."""
    informative = False
    for script, expected, reply in rows:
        imitated = compute.run(implementation, script if exercise.compare_gradients else _without_gradients(script))
        if not _same(exercise, imitated, reply):
            return False
        says = any(output.isfinite().any() for result in reply.results for output in result.outputs)  # more than NaN
        informative = informative or (says and not _same(exercise, imitated, expected))
    return informative


def _without_gradients(script: Script) -> Script:
    """Mistakes are recognised by their values; gradients would double the time."""
    steps = tuple(replace(step, gradients=()) if isinstance(step, Call) else step for step in script.steps)
    return replace(script, steps=steps)


def _same(exercise: Exercise, one: Reply, other: Reply) -> bool:
    if (one.failure is None) != (other.failure is None) or len(one.results) != len(other.results):
        return False
    return all(_same_result(exercise, a, b) for a, b in zip(one.results, other.results, strict=True))


def _same_result(exercise: Exercise, one: Result, other: Result) -> bool:
    if one.type != other.type or len(one.outputs) != len(other.outputs):
        return False
    if exercise.compare_gradients and not _same_gradients(exercise, one, other):
        return False
    return all(_close(exercise, a, b) for a, b in zip(one.outputs, other.outputs, strict=True))


def _same_gradients(exercise: Exercise, one: Result, other: Result) -> bool:
    pairs = [(one.gradients.get(name), other.gradients.get(name)) for name in {*one.gradients, *other.gradients}]
    return all(a is b is None or (a is not None and b is not None and _close(exercise, a, b)) for a, b in pairs)


def _close(exercise: Exercise, got: Tensor, right: Tensor) -> bool:
    return (
        got.shape == right.shape
        and got.dtype == right.dtype
        and (right.is_floating_point() or torch.equal(got, right))  # whole numbers have no tolerance
        and torch.allclose(got, right, rtol=exercise.rtol, atol=exercise.atol, equal_nan=True)
    )


def _advice(exercise: Exercise, asked: list[Row]) -> Iterator[str]:
    """Habits that right values hide: said once each."""
    edited, detached, wrong = False, {}, {}
    for script, expected, reply in asked:
        if script.habit is not None:
            continue
        for call, right, result in zip(script.calls, expected.results, reply.results, strict=True):
            edited = edited or any(not _unchanged(after, call.arguments[name]) for name, after in result.inputs.items())
            for name, gradient in right.gradients.items():
                got = result.gradients.get(name)
                if gradient is not None and got is None:
                    detached[name] = True
                elif gradient is not None and not torch.allclose(got, gradient, rtol=1e-3, atol=1e-4):
                    wrong[name] = True
    if edited:
        yield EDITS_INPUTS
    elif detached:
        yield DETACHES.format(names=" or ".join(f"`{name}`" for name in detached))
    elif wrong:
        yield WRONG_GRADIENT.format(names=" and ".join(f"`{name}`" for name in wrong))
    said: list[str] = []
    for habit, advice in exercise.habits.items():
        if any(habit.startswith(f"{other} ") for other in said):
            continue  # "extreme forbidden" is a finer form of "extreme"
        probes = [row for row in asked if row[0].habit == habit]
        if any(not _same(exercise, expected, reply) for _, expected, reply in probes):
            said.append(habit)
            yield advice


def _place(script: Script, call: int) -> str:
    """The script's name, and which call of a method it was where there are several: "three steps, step 2 of 3"."""
    method = script.calls[call].method
    same = [i for i, other in enumerate(script.calls) if other.method == method]
    if len(same) == 1:
        return script.name
    return f"{script.name}, {method or 'call'} {same.index(call) + 1} of {len(same)}"


def _unchanged(one: Tensor, other: Tensor) -> bool:
    """Equal in every number; NaN is equal to NaN."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, 0, 0, equal_nan=True)


def _sizes(script: Script, call: int = -1) -> str:
    """The inputs of one of the script's calls, as a learner would say them: "query (2, 3, 5), mask None"."""
    arguments = script.calls[call].arguments.items()
    return ", ".join(f"{name} {_size(value)}" for name, value in arguments)


def _size(value: object) -> str:
    """A tensor's shape, with its numbers where they are few: lengths, or losses; anything else as it is."""
    if not isinstance(value, Tensor):
        return str(value)
    if value.numel() <= 8 and value.dtype == torch.long:
        return f"{tuple(value.shape)} = {value.tolist()}"
    if value.numel() <= 8 and value.dim() == 1:
        return f"{tuple(value.shape)} = {[round(number, 3) for number in value.tolist()]}"
    return f"{tuple(value.shape)}"
