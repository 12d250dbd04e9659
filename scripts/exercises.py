"""Make exercises/ from solutions/ with nbgrader's own preprocessors, or say where they are out of step.

python scripts/exercises.py           write exercises/*.ipynb
python scripts/exercises.py --check   exit 1 when one differs from what would be written
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbgrader.preprocessors import (
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS, EXERCISES = ROOT / "solutions", ROOT / "exercises"
STEPS = (LockCells, ClearSolutions, ClearHiddenTests, ClearMarkScheme, ClearOutput, ComputeChecksums)
CONFIG = Config(
    {"ClearSolutions": {"code_stub": {"python": "# Your code here.\nraise NotImplementedError"}}},
)


def exercise_from(solution: Path) -> str:
    """The text of the exercise notebook made from a solution notebook."""
    notebook = nbformat.read(solution, as_version=4)
    resources: dict = {}
    for step in STEPS:
        notebook, resources = step(config=CONFIG).preprocess(notebook, resources)
    first = notebook.cells[0]
    first.source = first.source.replace("# Solutions:", "# Exercises:", 1)
    notebook.cells = [cell for cell in notebook.cells if "solution-only" not in cell.metadata.get("tags", [])]
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the exercises, or check them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, and fail when one is out of step")
    check = parser.parse_args(argv).check
    wanted = {EXERCISES / path.name: exercise_from(path) for path in sorted(SOLUTIONS.glob("*.ipynb"))}
    stale = [path for path in sorted(EXERCISES.glob("*.ipynb")) if path not in wanted]
    stale += [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of step with solutions/; run: make exercises", file=sys.stderr)
        return 1 if stale else 0
    EXERCISES.mkdir(exist_ok=True)
    for path in stale:
        if path in wanted:
            path.write_text(wanted[path], "utf-8")
        else:
            path.unlink()
    print(f"{len(wanted)} exercise notebooks, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
