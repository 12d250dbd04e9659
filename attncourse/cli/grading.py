"""`attncourse check`, for a learner, and `attncourse grade`, for some notebooks or a class: answers run in a jail."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncourse.cli.text import count, failed

if TYPE_CHECKING:
    from attncourse.checks import Task
    from attncourse.grading.classroom import Graded, Work
    from attncourse.grading.examiner import Exam
    from attncourse.grading.publish import Published

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
        help="grade notebooks, or a class",
        description="Grade exercise notebooks: each runs in a jail, and its answers are judged as `check` does. A "
        "folder or a zip (as Canvas, Moodle or Gradescope export it) is a class: its results, feedback, summary and "
        "gradebook go to a folder, and a run that was stopped goes on where it was.",
    )
    grade.add_argument(
        "submissions",
        nargs="+",
        type=Path,
        metavar="SUBMISSIONS",
        help="an .ipynb file or several; or one folder or zip, which is a class",
    )
    grade.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="where to write: a file for notebooks (default: grades.json), a folder for a class (default: grades)",
    )
    grade.add_argument("--isolation", choices=("auto", "A", "B", "C"), default="auto", help=ISOLATION)
    single = grade.add_argument_group("for notebooks")
    single.add_argument("--seed", type=int, help="of the inputs; 0, the default, gives those of `check`")
    several = grade.add_argument_group("for a class")
    several.add_argument(
        "--key", type=Path, metavar="FILE", help="the instructor's key: hidden inputs, what is assigned"
    )
    several.add_argument("--assignment", metavar="ID", help="which of the key's assignments (default: the newest)")
    several.add_argument("--title", help="of the assignment, where there is no key")
    several.add_argument(
        "--gradebook", type=Path, metavar="CSV", help="the gradebook as Canvas exported it; it is filled, in a copy"
    )
    several.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="how many notebooks are graded at a time (default: one for each core; with --dask, for each worker)",
    )
    several.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="grade on a Dask cluster, by the address of its scheduler: tls://HOST:8786, or tcp:// in a closed network",
    )
    grade.epilog = (
        "Examples: attncourse grade solutions/13_gqa.ipynb; attncourse grade submissions.zip --key course.key --out "
        "week3. Exit status: 0 all graded, 1 something could not be graded, 2 wrong usage."
    )
    grade.set_defaults(run=run_grade)


def _exam(made: dict[tuple[int, ...], "Exam"], chosen: list["Task"], seeds: tuple[int, ...]) -> "Exam":
    """The questions about these exercises: made once, for all notebooks that have them."""
    from attncourse.grading.examiner import Exam

    key = tuple(map(id, chosen))  # a variant has the id of its exercise
    if key not in made:
        made[key] = Exam(chosen, seeds=seeds)
    return made[key]


def _read(path: Path) -> tuple[list[str], list["Task"]]:
    """The code cells of a notebook, and the exercises in it; NotebookError says why there are none."""
    from attncourse.grading.examiner import exercises_in, variant_in
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
    named = [variant_in(task, cells) for task in chosen]
    return cells, [task.variant(name) if name else task for task, name in zip(chosen, named, strict=True)]


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
    """Grade a class, where there is a folder, a zip or a key; or else notebooks."""
    paths = options.submissions
    of_class = {
        name: getattr(options, name)
        for name in ("key", "assignment", "title", "gradebook", "dask")
        if getattr(options, name) is not None
    }
    packed = [path for path in paths if path.is_dir() or path.suffix.lower() == ".zip"]
    if len(paths) == 1 and (packed or of_class):
        if options.seed is not None:
            return failed("grade", "--seed is for single notebooks; a class has its inputs from --key", 2)
        return run_class(options)
    if of_class:
        return failed(
            "grade", f"--{next(iter(of_class))} is for a class: name one folder or zip, not {len(paths)} files", 2
        )
    return run_notebooks(options)


def run_class(options: argparse.Namespace) -> int:
    """Grade a class: one line a student, then what was written."""
    from attncourse.grading import classroom, gradebook
    from attncourse.grading.intake import IntakeError, find_submissions
    from attncourse.grading.key import Key, KeyFileError
    from attncourse.grading.publish import publish

    out = options.out or Path("grades")
    start = time.monotonic()
    if options.assignment is not None and options.key is None:
        return failed("grade", "--assignment names one of a key's assignments: give --key FILE too", 2)
    if out.exists() and not out.is_dir():
        return failed("grade", f"{out} is a file; the results of a class go to a folder: --out DIR", 2)
    try:
        key = Key.open(options.key) if options.key else None
        assignment = key.assignment(options.assignment) if key else None
        submissions = find_submissions(options.submissions[0], leave_out=out)
        work = classroom.assigned_work(key, assignment) if key else classroom.work_found(submissions, options.title)
        with classroom.alone_in(out):
            gradebook.keep_to(out, work)
            adjusted = out / "adjustments.csv"
            gradebook.write_template(adjusted, submissions, work)
            given = gradebook.read_adjustments(adjusted, work)
            if options.gradebook:  # now, not after the grading
                gradebook.fill_gradebook(options.gradebook, [], work, {})
            print(_begun(len(submissions), work))
            with _processes(options) as processes:
                progress = _Progress(len(submissions), work)
                graded = classroom.grade_class(
                    submissions,
                    work,
                    out,
                    level=options.isolation,
                    private=[options.submissions[0], out, *([options.key] if options.key else [])],
                    told=progress.told,
                    **processes,
                )
                progress.end()
            published = publish(out, graded, work, given, options.gradebook)
            unknown = sorted(given.students - {item.submission.student for item in graded})
    except (KeyFileError, IntakeError, gradebook.GradebookError) as error:
        return failed("grade", error, 2)
    except classroom.ClassError as error:
        return failed("grade", error, 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        return failed("grade", f"cannot write into {out}: {error}", 1)
    if unknown:
        named = f"{', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}"
        print(f"adjustments.csv names students who are not among the submissions: {_printable(named)}", file=sys.stderr)
    print(_printable(_ended(graded, published, out, time.monotonic() - start)))
    return 1 if any(item.failed for item in graded) else 0


@contextlib.contextmanager
def _processes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What grades, as `grade_class` takes it: processes of this machine, or the workers of a Dask cluster."""
    if options.dask is None:
        yield {"workers": options.workers or os.cpu_count() or 1}
        return
    try:
        from attncourse.grading.cluster import Cluster
    except ModuleNotFoundError as error:
        from attncourse.grading.classroom import ClassError

        if error.name not in ("dask", "distributed"):
            raise
        raise ClassError(f"--dask needs Dask, and there is no {error.name} here: pip install distributed") from None
    with Cluster(options.dask) as cluster:
        for note in cluster.notes:
            print(note, file=sys.stderr)
        workers = options.workers or cluster.size
        yield {"workers": workers, "pool": cluster.pool, "choose": cluster.choose, "ahead": 1}


def _begun(n: int, work: "Work") -> str:
    """What will be graded."""
    chapters = len({assigned.id.split("/")[0] for assigned in work.exercises})
    source = "hidden inputs" if work.hidden else "public inputs, since there is no key"
    variants = sum(assigned.variant is not None for assigned in work.exercises)
    return _printable(
        f"{work.title}: {n} submission{'s' if n != 1 else ''}, {len(work.exercises)} exercises of {chapters} "
        f"chapter{'s' if chapters != 1 else ''}{f', {variants} in a variant' if variants else ''}; {source}"
    )


class _Progress:
    """One line for each student as they are done; on a terminal a bar below, too."""

    def __init__(self, n: int, work: "Work"):
        self.n, self.done, self.possible = n, 0, sum(assigned.points for assigned in work.exercises)
        self.terminal = sys.stderr.isatty()
        self._bar()

    def told(self, item: "Graded") -> None:
        who = item.submission
        points = "failed" if item.failed else f"{item.points}/{self.possible}"
        name = who.name if who.name == who.student else f"{who.name} ({who.student})"
        said = [] if item.new or not item.isolation else ["as before"]
        said += ["late"] if who.late else []
        said += [item.failed] if item.failed else []
        said += [*item.problems[:2]]
        said += [f"{len(who.older)} earlier not counted"] if who.older else []
        self._clear()
        print(_printable(f"{points:>7}  {name}{': ' if said else ''}{', '.join(said)}"), flush=True)
        self.done += 1
        self._bar()

    def end(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _bar(self) -> None:
        if self.terminal:
            full = 30 * self.done // max(1, self.n)
            print(f"[{'#' * full}{'.' * (30 - full)}] {self.done}/{self.n}", end="", file=sys.stderr, flush=True)


def _ended(graded: list["Graded"], published: "Published", out: Path, seconds: float) -> str:
    """What was graded and written, and what is left to do."""
    new, failures = sum(item.new for item in graded), sum(bool(item.failed) for item in graded)
    lines = [f"{new} graded, {len(graded) - new} as before or not to be graded, in {seconds:.1f} s"]
    if failures:
        lines.append(f"{failures} could not be graded; run the same command again to try only those")
    if filled := published.filled:
        lines.append(
            f"Column {filled.column!r}{' (new)' if filled.new else ''}: {len(graded) - len(filled.unknown)} filled in, "
            f"{len(filled.missing)} handed in nothing"
        )
        lines += [f"Not in the gradebook: {', '.join(filled.unknown)}"] if filled.unknown else []
        lines += [filled.note] if filled.note else []
    waiting = sum(mark.waiting for mark in published.marks.values())
    wait = "answer waits" if waiting == 1 else "answers wait"
    lines += [f"{waiting} {wait} for points by hand in {out / 'adjustments.csv'}"] if waiting else []
    lines.append(f"Written: {', '.join(str(out / name) for name in published.files)}")
    return "\n".join(lines)


def run_notebooks(options: argparse.Namespace) -> int:
    """Points of every exercise of every notebook, printed and written."""
    from attncourse.grading import results
    from attncourse.grading.examiner import Workers, grade
    from attncourse.grading.notebook import NotebookError

    out, seed = options.out or Path("grades.json"), options.seed or 0
    read, records, exams, unread = {}, {}, {}, 0

    def write() -> None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):  # now, not after the grading
        return failed("grade", f"cannot write {out}; name a file in a folder that exists: --out FILE", 2)
    for path in options.submissions:
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
