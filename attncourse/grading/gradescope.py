"""Grade one submission as Gradescope wants it: from submission/ to results/results.json, as `attncourse grade` does.

Run by the autograder's `run_autograder`. What is wrong with a submission becomes a result that tells the student so;
what is wrong with the autograder becomes none, and exit status 1, so that nobody gets points or zero by accident.
"""

import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from attncourse.grading.bundle import KEY_NAME
from attncourse.grading.classroom import InThisProcess, assigned_work, grade_class
from attncourse.grading.gradebook import Adjustments, marks
from attncourse.grading.intake import IntakeError, find_submissions
from attncourse.grading.key import Key, KeyFileError
from attncourse.grading.results import of_student

ISOLATION = "auto"  # level A where the machine allows it, else B
MAX_FILES = 200  # notebooks that are looked at
STUDENT = "student"


def main(argv: list[str] | None = None) -> int:
    """Grade what lies in the autograder's folder; returns the exit status."""
    root = Path((argv or sys.argv[1:] or ["/autograder"])[0])
    isolation = os.environ.get("ATTNCOURSE_ISOLATION", ISOLATION)
    try:
        with tempfile.TemporaryDirectory(prefix="attncourse-gradescope-") as name:
            results = _graded(root, Path(name), isolation)
    except (OSError, KeyFileError, IntakeError, RuntimeError) as error:
        print(f"The autograder failed, not the submission: {error}", file=sys.stderr)
        return 1
    place = root / "results" / "results.json"
    place.parent.mkdir(exist_ok=True)
    beside = place.with_name(".results.json.tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    os.replace(beside, place)
    return 0


def _graded(root: Path, place: Path, isolation: str) -> dict:
    """The submission's results. place: an empty folder. Raises RuntimeError where the machine cannot grade."""
    key = Key.open(root / "source" / KEY_NAME)
    assignment = key.assignment()
    shown = {"visibility": "visible", "stdout_visibility": "hidden"}
    if not _collect(root / "submission", place / "class" / STUDENT):
        told = "There is no notebook (.ipynb) in what you handed in."
        tests = [{"name": item.id, "score": 0, "max_score": item.points} for item in assignment.exercises]
        return {"score": 0, "output": told, "tests": tests} | shown
    work, submissions, private = assigned_work(key, assignment), find_submissions(place / "class"), [place, key.path]
    graded = grade_class(submissions, work, place, level=isolation, private=private, pool=InThisProcess)
    if len(graded) != 1 or graded[0].failed:
        raise RuntimeError(graded[0].failed if graded else "no submission was found")
    (mark,) = marks(graded, work, Adjustments()).values()
    return of_student(graded[0], mark) | shown


def _collect(submission: Path, folder: Path) -> int:
    """Copy the notebooks of a submission, and nothing else; how many there are. Links are not followed."""
    count = 0
    for above, folders, names in os.walk(submission):
        folders.sort()
        for name in sorted(names):
            path = Path(above) / name
            if not name.lower().endswith(".ipynb") or not stat.S_ISREG(path.lstat().st_mode):
                continue
            count += 1
            if count > MAX_FILES:
                return MAX_FILES
            target = folder / path.relative_to(submission)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target, follow_symlinks=False)
    return count


if __name__ == "__main__":
    sys.exit(main())
