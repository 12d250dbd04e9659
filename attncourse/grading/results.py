"""What grading gives: a table for the terminal and JSON in the form that Gradescope reads."""

from attncourse.checks.report import HEADINGS, Report
from attncourse.grading.examiner import Grade


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
            "mistakes": {v.exercise.id: [m.name for m in v.mistakes] for v in grade.verdicts if v.mistakes},
            "cell_errors": {str(i): text for i, text in grade.cell_errors.items()},
        },
    }


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
