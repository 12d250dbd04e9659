"""`attncourse check`, for a learner, and `attncourse grade`, for many notebooks: answers run in a jail."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attncourse.cli.text import failed

if TYPE_CHECKING:
    from attncourse.checks import Task
    from attncourse.grading.examiner import Exam

ISOLATION = (
    "A: jailed by namespaces; B: as root without namespaces, each notebook as a user of its own; C: not isolated, own "
    "work only; auto (default): A where the machine has it, else B"
)


def add_to(commands: argparse._SubParsersAction) -> None:
    """The parsers of `check` and `grade`."""
    check = commands.add_parser(
        "check",
        help="say of each exercise in a notebook what `check` says",
        description="Run a notebook's answers in a jail, and say of each exercise what `check` would say.",
    )
    check.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="an .ipynb file")
    check.add_argument("--isolation", choices=("auto", "A", "B", "C"), default="auto", help=ISOLATION)
    check.epilog = (
        "Example: attncourse check exercises/13_gqa.ipynb. Exit status: 0 all right, 1 something is not right or not "
        "attempted, or the machine has no jail, 2 wrong usage or a file that is no notebook with exercises."
    )
    check.set_defaults(run=run_check)
    grade = commands.add_parser(
        "grade",
        help="grade exercise notebooks",
        description="Grade exercise notebooks: each runs in a jail, and its answers are judged as `check` does.",
    )
    grade.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="an .ipynb file")
    grade.add_argument(
        "--out",
        type=Path,
        default=Path("grades.json"),
        metavar="FILE",
        help="where to write the results (default: %(default)s)",
    )
    grade.add_argument("--isolation", choices=("auto", "A", "B", "C"), default="auto", help=ISOLATION)
    grade.add_argument("--seed", type=int, default=0, help="of the inputs; 0, the default, gives those of `check`")
    grade.epilog = (
        "Example: attncourse grade submissions/*.ipynb --out grades.json. "
        "Exit status: 0 all graded, 1 a file could not be graded, 2 wrong usage."
    )
    grade.set_defaults(run=run_grade)


def _exam(made: dict[tuple[str, ...], "Exam"], chosen: list["Task"], seeds: tuple[int, ...]) -> "Exam":
    """The questions about these exercises: made once, for all notebooks that have them."""
    from attncourse.grading.examiner import Exam

    key = tuple(exercise.id for exercise in chosen)
    if key not in made:
        made[key] = Exam(chosen, seeds=seeds)
    return made[key]


def _read(path: Path) -> tuple[list[str], list["Task"]]:
    """The code cells of a notebook, and the exercises in it; NotebookError says why there are none."""
    from attncourse.grading.examiner import exercises_in
    from attncourse.grading.notebook import NotebookError, code_cells

    try:
        cells = code_cells(path)
    except FileNotFoundError:
        raise NotebookError("there is no such file") from None
    except IsADirectoryError:
        raise NotebookError(f"that is a folder; name the notebooks in it, as {path}/*.ipynb") from None
    except OSError as error:
        raise NotebookError(str(error)) from None
    if not (chosen := exercises_in(cells)):
        raise NotebookError(f"{path.name} has no exercise of this course in it")
    return cells, chosen


def run_check(options: argparse.Namespace) -> int:
    """What `check` would say of every exercise, and a line that sums it up."""
    from attncourse.checks.judge import SEEDS
    from attncourse.checks.report import Report
    from attncourse.grading.examiner import Workers, grade
    from attncourse.grading.notebook import NotebookError

    read, verdicts, exams, unread = {}, [], {}, 0
    for path in options.notebooks:
        try:
            read[path] = _read(path)
        except NotebookError as error:
            print(f"{path}: {error}", file=sys.stderr)
            unread += 1
    if not read:
        return 2
    given = {name for _, chosen in read.values() for exercise in chosen for name in exercise.given}
    try:
        with Workers(given, options.isolation) as workers:
            for path, (cells, chosen) in read.items():
                graded = grade(cells, _exam(exams, chosen, SEEDS), workers)
                verdicts += graded.verdicts
                errors = sorted(graded.cell_errors.items())
                lines = [str(path)] if len(read) > 1 else []
                lines += [str(Report(verdict)) for verdict in graded.verdicts]
                lines += [f"Code cell {i + 1}: {(text.splitlines() or [''])[-1]}" for i, text in errors]
                print(_printable("\n".join(lines)), flush=True)
    except RuntimeError as error:
        return failed("check", error, 1)
    right = sum(verdict.passed for verdict in verdicts)
    untried = sum(verdict.kind == "not attempted" for verdict in verdicts)
    wrong = len(verdicts) - right - untried
    print(f"{right} of {len(verdicts)} right, {wrong} not right, {untried} not attempted")
    return 2 if unread else int(right < len(verdicts))


def _printable(text: str) -> str:
    """Text of a learner's code, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def run_grade(options: argparse.Namespace) -> int:
    """Points of every exercise of every notebook, printed and written."""
    from attncourse.grading import results
    from attncourse.grading.examiner import Workers, grade
    from attncourse.grading.notebook import NotebookError

    out, seed = options.out, options.seed
    read, records, exams, unread = {}, {}, {}, 0

    def write() -> None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):  # now, not after the grading
        return failed("grade", f"cannot write {out}; name a file in a folder that exists: --out FILE", 2)
    for path in options.notebooks:
        try:
            read[path] = _read(path)
        except NotebookError as error:
            print(f"{path}: {error}", file=sys.stderr)
            records[str(path)], unread = {"score": 0, "tests": [], "output": str(error)}, unread + 1
    try:
        given = {name for _, chosen in read.values() for exercise in chosen for name in exercise.given}
        with Workers(given, options.isolation) as workers:
            for path, (cells, chosen) in read.items():
                graded = grade(cells, _exam(exams, chosen, (2 * seed, 2 * seed + 1)), workers)
                records[str(path)] = results.to_json(graded)
                write()
                print(f"{path}\n{results.to_text(graded)}")
        write()
    except RuntimeError as error:
        return failed("grade", error, 1)
    except OSError as error:
        return failed("grade", f"cannot write {out}: {error.strerror}", 1)
    missing = f", {unread} that could not be graded" if unread else ""
    print(f"Results of {len(read)} notebook{'s' if len(read) != 1 else ''}{missing}: {out}")
    return 1 if unread else 0
