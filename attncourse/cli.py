"""The command line: `attncourse grade NOTEBOOK…`."""

import argparse
import json
import os
import sys
from pathlib import Path

from attncourse import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 something could not be done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="attncourse", description="An executable course on attention.")
    parser.add_argument("--version", action="version", version=f"attncourse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    grade = commands.add_parser(
        "grade",
        help="grade exercise notebooks",
        description="Grade exercise notebooks: each runs in a jail, and its answers are judged as `check` does.",
    )
    grade.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="an .ipynb file")
    grade.add_argument("--out", type=Path, metavar="FILE", help="where to write the results (default: grades.json)")
    grade.add_argument(
        "--isolation", choices=("A", "C"), default="A", help="A: jailed (default); C: not isolated, own work only"
    )
    grade.add_argument("--seed", type=int, default=0, help="of the inputs; 0, the default, gives those of `check`")
    grade.epilog = "Exit status: 0 all graded, 1 a file could not be graded, 2 wrong usage."
    options = parser.parse_args(argv)
    try:
        return _grade(options.notebooks, options.out or Path("grades.json"), options.isolation, options.seed)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _grade(paths: list[Path], out: Path, level: str, seed: int) -> int:
    from attncourse.grading import results
    from attncourse.grading.examiner import Exam, Workers, exercises_in, grade
    from attncourse.grading.notebook import NotebookError, code_cells

    read, records, failed = {}, {}, 0

    def write() -> None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):  # now, not after the grading
        print(f"attncourse grade: cannot write {out}; name a file in a folder that exists: --out FILE", file=sys.stderr)
        return 2
    for path in paths:
        try:
            cells = code_cells(path)
            chosen = exercises_in(cells)
            if not chosen:
                raise NotebookError(f"{path.name} has no exercise of this course in it")
            read[path] = (cells, chosen)
        except (NotebookError, OSError) as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            print(f"{path}: {why}", file=sys.stderr)
            records[str(path)], failed = {"score": 0, "tests": [], "output": why}, failed + 1
    exams: dict[tuple[str, ...], Exam] = {}
    given = {name for _, chosen in read.values() for exercise in chosen for name in exercise.given}
    try:
        with Workers(given, level) as workers:
            for path, (cells, chosen) in read.items():
                key = tuple(exercise.id for exercise in chosen)
                if key not in exams:
                    exams[key] = Exam(chosen, seeds=(2 * seed, 2 * seed + 1))
                graded = grade(cells, exams[key], workers)
                records[str(path)] = results.to_json(graded)
                write()
                print(f"{path}\n{results.to_text(graded)}")
    except RuntimeError as error:
        print(f"attncourse grade: {error}", file=sys.stderr)
        return 1
    write()
    print(f"Results of {len(records)} notebook{'s' if len(records) != 1 else ''}: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
