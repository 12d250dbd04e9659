"""Write what a run gives: gradebook, pages of feedback, summary, results. All of it is made anew from the records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attncourse.grading import feedback, results
from attncourse.grading.answers import answers_page, unanswered
from attncourse.grading.classroom import Graded, Work, write_whole
from attncourse.grading.gradebook import Adjustments, Filled, Mark, fill_gradebook, marks, new_gradebook

PAGES = (("feedback", ".html"), ("results", ".json"))


@dataclass(frozen=True)
class Published:
    """What was written, for whoever reports it. filled: the instructor's export, if one was given; files: for people,
    by name."""

    marks: dict[str, Mark]
    filled: Filled | None
    files: tuple[str, ...]


def publish(
    out: Path, graded: Sequence[Graded], work: Work, adjusted: Adjustments, export: Path | None = None
) -> Published:
    """Write everything that is for people into `out`. export: the instructor's gradebook, as Canvas exported it."""
    given = marks(graded, work, adjusted)
    for who in (item.submission for item in graded if work.questions):
        given[who.student] = replace(given[who.student], unanswered=unanswered(work.questions, who))
    filled = fill_gradebook(export, graded, work, given) if export else None
    if filled:
        graded = [_named(item, filled.names) for item in graded]
    for folder, _ in PAGES:
        (out / folder).mkdir(mode=0o700, exist_ok=True)
    names = set()
    for item in graded:
        mark, name = given[item.submission.student], feedback.page_name(item.submission.student)
        names.add(name)
        write_whole(out / "feedback" / f"{name}.html", feedback.student_page(item, work, mark))
        write_whole(out / "results" / f"{name}.json", json.dumps(results.of_student(item, mark), indent=1) + "\n")
    for folder, ending in PAGES:  # of students who are no longer among the submissions; their records stay
        for path in (out / folder).glob(f"*{ending}"):
            if path.stem not in names:
                path.unlink(missing_ok=True)
        for left in (out / folder).glob(".*.tmp"):
            left.unlink(missing_ok=True)
    page = feedback.class_page(
        graded, work, given, filled.missing if filled else None, filled.unknown if filled else ()
    )
    write_whole(out / "summary.html", page)
    if work.questions:
        write_whole(out / "answers.html", answers_page(graded, work, given))
    else:
        (out / "answers.html").unlink(missing_ok=True)  # of another assignment
    write_whole(out / "gradebook.csv", filled.text if filled else new_gradebook(graded, work, given))
    answers = ("answers.html",) if work.questions else ()
    return Published(given, filled, ("summary.html", *answers, "gradebook.csv", "feedback", "results"))


def _named(item: Graded, names: Mapping[str, str]) -> Graded:
    """The same under the name that the gradebook has, which file names only hint at."""
    who = item.submission
    return replace(item, submission=replace(who, name=names.get(who.student, who.name)))
