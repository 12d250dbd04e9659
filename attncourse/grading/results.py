"""What grading gives: a table for the terminal and JSON in the form that Gradescope reads."""

from attncourse.checks.report import HEADINGS, Report
from attncourse.grading.classroom import Graded
from attncourse.grading.examiner import Grade
from attncourse.grading.gradebook import Mark


def to_json(grade: Grade) -> dict:
    """Gradescope's results.json: a test for each exercise, with what the check would say."""
    return {
        "score": grade.points,
        "execution_time": round(grade.seconds, 3),
        "tests": [
            {
                "name": verdict.exercise.id,
                "score": verdict.points,
                "max_score": verdict.exercise.points,
                "status": "passed" if verdict.passed else "failed",
                "output": str(Report(verdict)),
                "visibility": "visible",
            }
            for verdict in grade.verdicts
        ],
        "extra_data": {
            "isolation": grade.isolation,
            "protection": grade.protection,
            "left_behind": grade.left,
            "mistakes": {v.exercise.id: [m.name for m in v.mistakes] for v in grade.verdicts if v.mistakes},
            "cell_errors": {str(i): text for i, text in grade.cell_errors.items()},
        },
    }


def of_student(item: Graded, mark: Mark) -> dict:
    """Gradescope's results.json for a student of a class: nothing in it tells of hidden inputs."""
    return {
        "score": mark.points if mark.points is not None else 0,
        "execution_time": round(item.seconds, 3),
        "output": "\n".join([*mark.notes, *item.problems, *item.cell_errors]),
        "tests": [
            {
                "name": e["id"],
                "score": mark.exercises[e["id"]],
                "max_score": e["possible"],
                "status": "passed" if e["kind"] == "passed" else "failed",
                "output": "\n".join(_lines(e)),
                "visibility": "visible",
            }
            for e in item.exercises
        ],
        "extra_data": {
            "student": item.submission.student,
            "isolation": item.isolation,
            "protection": dict(item.protection),
            "left_behind": item.left,
            "late": item.submission.late,
            "excused": mark.points is None,
            "mistakes": {e["id"]: [m["name"] for m in e["mistakes"]] for e in item.exercises if e["mistakes"]},
            "not_counted": list(item.submission.older),
        },
    }


def _lines(e: dict) -> list[str]:
    """What a student is told of an exercise, as text."""
    lines = [
        f"{'✓' if e['kind'] == 'passed' else '○' if e['kind'] == 'not attempted' else '✗'} {e['heading']}",
        *e["said"],
    ]
    for mistake in e["mistakes"]:
        lines.append(f"{mistake['title'][:1].upper()}{mistake['title'][1:]}.")
        if e["kind"] != "misses":
            lines += [mistake["explanation"], f"To reread: “{mistake['reread']}”."]
    return [*lines, *([f"Hint: {e['hint']}"] if e["hint"] else []), *(f"Advice: {advice}" for advice in e["advice"])]


def to_text(grade: Grade) -> str:
    """A line for each exercise: points, what was found, the mistake's name."""
    width = max(len(verdict.exercise.id) for verdict in grade.verdicts)
    lines = []
    for verdict in grade.verdicts:
        mark, heading = HEADINGS[verdict.kind]
        found = " and ".join(mistake.title for mistake in verdict.mistakes) or heading
        if verdict.kind == "misses":
            found = f"lets through: {'; '.join(mistake.title for mistake in verdict.mistakes)}"
        points = f"{verdict.points}/{verdict.exercise.points}"
        lines.append(f"  {mark} {verdict.exercise.id:<{width}}  {points:>5}  {found}")
    for i, text in sorted(grade.cell_errors.items()):
        last = text.splitlines()[-1] if text else text
        lines.append(f"    code cell {i + 1}: {''.join(c if c.isprintable() else '?' for c in last)}")
    lines.append(f"  {grade.points} of {grade.possible} points in {grade.seconds:.2f} s, isolation {grade.isolation}")
    return "\n".join(lines)
