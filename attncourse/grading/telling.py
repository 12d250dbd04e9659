"""What a student may be told of a verdict: plain facts, ready for a page, a terminal or JSON.

With an instructor's key the inputs are secret, and an answer may try to send them back: in an exception's text, its
type's name, a line number. So everything said then is taken from fixed sentences, from the exercise's own texts, or
from the student's own notebook, and never from what the answer replied.
"""

import builtins
import re
from collections.abc import Mapping, Sequence

from attncourse.checks.judge import Verdict
from attncourse.checks.report import HEADINGS, Report
from attncourse.checks.spec import Exercise, Misconception

ENDED = {  # how the examiner says that a process ended -> what a student is told
    "it ran too long": "It ran too long and was stopped.",
    "its process ended": "It ended its process: by `os._exit`, a crash, or more memory than is allowed.",
    "it wrote to the examiner's channel": "It wrote where only the grader may write.",
    "The notebook used up its time": "The notebook used up its time before this exercise.",
}
RAISED = tuple(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
)
HINTS = {
    "raised": "Call it on small tensors of your own, of different sizes, with and without every optional argument.",
    "forbidden": "Write that step out with basic operations: products, sums, `exp`.",
    "type": "Look at what every `return` returns.",
    "shape": "Write the shape of each line's result beside it, with sizes that all differ.",
    "dtype": "Take the dtype from the inputs (`new_zeros`, `zeros_like`), never from a default.",
    "nan": "Look for a row in which everything is masked, a division by zero, and `exp` of a large number.",
    "gradient": "Look for what leaves the graph or is edited in place: `.detach()`, `.data`, `x[…] = 0`.",
    "different": "Work out two tokens by hand and compare them with what your code gives.",
    "too strict": "A right implementation may differ in the last digits, and in how it is written.",
    "misses": "For each of these, think of the smallest input on which it differs from a right one.",
}
MAX_TEXT, MAX_DETAIL = 2000, 20_000  # characters
SMALL = " `check` in the notebook shows the sizes and numbers of a public case."


def tell(verdict: Verdict, cells: Sequence[str], cell_errors: Mapping[int, str], hidden: bool) -> dict:
    """A verdict as plain data: kind, points, mistakes, `said` for the student, `detail` for the instructor only."""
    task = verdict.exercise
    return {
        "id": task.id,
        "title": task.title,
        "chapter": task.chapter,
        "defines": task.defines,
        "points": verdict.points,
        "possible": task.points,
        "kind": verdict.kind,
        "heading": HEADINGS[verdict.kind][1],
        "mistakes": [_mistake(mistake) for mistake in verdict.mistakes],
        "said": _said(verdict, cells, cell_errors) if hidden else _all(verdict),
        "hint": "" if verdict.mistakes and verdict.kind != "misses" else HINTS.get(verdict.kind, ""),
        "advice": list(verdict.advice),
        "detail": str(Report(verdict))[:MAX_DETAIL],
    }


def _mistake(mistake: Misconception) -> dict[str, str]:
    return {
        "name": mistake.name,
        "title": mistake.title,
        "explanation": mistake.explanation,
        "reread": mistake.reread,
    }


def _all(verdict: Verdict) -> list[str]:
    """What `check` says of a public case, but for the mistakes, which are told apart."""
    if verdict.kind in ("passed", "not attempted"):
        return []
    lines = [verdict.message[:MAX_TEXT]] if verdict.message else []
    if verdict.difference:
        lines += [line for line in str(Report(verdict)).splitlines()[1:] if _is_of_difference(line.strip())]
    return [line.strip() for line in lines]


def _is_of_difference(line: str) -> bool:
    """Whether the line of a report is about the first number that differs."""
    return line.startswith(("Smallest case", "Your row:", "Right row:")) or "; it should be " in line


def _said(verdict: Verdict, cells: Sequence[str], cell_errors: Mapping[int, str]) -> list[str]:
    """What can be told of a hidden case."""
    kind, message, task = verdict.kind, verdict.message, verdict.exercise
    if kind == "raised":
        return [_how_it_raised(message, task.defines, cells, cell_errors)]
    if kind == "forbidden" and isinstance(task, Exercise):
        named = [name for name in task.forbidden if name in message]
        calls = f": `{'`, `'.join(named)}`" if named else ""
        return [f"It makes a library call that this exercise asks you to write{calls}."]
    if kind == "type":
        return [f"`{task.defines}` returns another kind of object than the task asks for.{SMALL}"]
    if kind == "shape":
        return [f"The result has another shape than the task asks for.{SMALL}"]
    if kind in ("misses", "too strict") and not isinstance(task, Exercise):
        return [message]  # made of the exercise's own words and of counts
    if kind == "different":
        broken = re.match(r"A right answer keeps this, and yours does not: (.*)\.$", message)
        held = [p.text for p in getattr(task, "properties", ()) if broken and p.text == broken[1]]
        if held:
            return [f"A right answer keeps this, and yours does not: {held[0]}.{SMALL}"]
        return [f"The values differ on a hidden case, and they equal no mistake that this check knows.{SMALL}"]
    if kind in ("dtype", "nan"):
        return [f"So it is on a hidden case.{SMALL}"]
    if kind == "gradient":
        return ["The values are right and their gradient is not, which here is half of the task."]
    return []


def _how_it_raised(message: str, defines: str, cells: Sequence[str], cell_errors: Mapping[int, str]) -> str:
    """Where and how an answer failed, of the notebook's own lines and Python's own names of exceptions."""
    for i, text in sorted(cell_errors.items()):
        if message.startswith("Code cell") and re.search(rf"\b(def|class)\s+{defines}\b", cells[i]):
            last = text.splitlines()[-1] if text else "it did not end"
            return f"Code cell {i + 1}, which defines `{defines}`, could not be run: {last}"
    if message.startswith("What it returns cannot be graded"):
        return "It returns what cannot be sent to the grader: too large, or no tensor of plain real numbers."
    for begin, told in ENDED.items():
        if begin in message[:200] and message.startswith(("When `", "The notebook")):
            return told
    name = next((name for name in RAISED if re.match(rf"{name}\b", message)), None)
    said = f"It raised {'an' if name[0] in 'AEIOU' else 'a'} {name}" if name else "It raised an error"
    found = re.findall(r"line (\d{1,6}) of the cell, `([^`]*)`", message)
    if found:
        number, code = int(found[-1][0]), found[-1][1].strip()
        own = (cell.splitlines() for cell in cells if re.search(rf"\b(def|class)\s+{defines}\b", cell))
        if any(0 < number <= len(lines) and lines[number - 1].strip() == code for lines in own):
            said += f" in line {number} of the cell, `{code}`"
    return f"{said}, on a hidden case.{SMALL}"
