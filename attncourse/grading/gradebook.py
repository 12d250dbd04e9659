"""The gradebook: points with the instructor's adjustments, as Canvas imports them.

`adjustments.csv` belongs to the instructor: written once as a template, read at every run, never written again.
`gradebook.csv` is written anew by every run, in the columns of Canvas, or as the instructor's own export, filled.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attncourse.grading.classroom import Graded, Work, write_whole
from attncourse.grading.intake import Submission, printable

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
POSSIBLE = "    Points Possible"  # as Canvas has it, with its spaces
FORMULA = "=+-@\t\r＝＋－＠"
HEADER = ("what", "student", "exercise", "points", "note")
KINDS = ("override", "manual", "late", "excuse")
MAX_BYTES = 20 << 20
TEMPLATE = """\
# what,student,exercise or question,points,"Rows that begin with # are not read. This file is never written again."
# override,ann,gqa/repeat_kv,2,"these points for this exercise, whatever the grader found"
# override,ann,,17,"this total, whatever else holds"
# manual,ann,essay-1,3,"points for a question that is graded by hand"
# late,*,,10%,"what those lose who are marked as late"
# late,ann,,0%,"what this student loses, marked or not"
# excuse,ann,,,"no points, and none missing: EX in Canvas"
"""


class GradebookError(ValueError):
    """A file of the instructor's cannot be used; the message says which line and why."""


@dataclass
class Adjustments:
    """What the instructor decided. Points by (student, exercise or question); lateness as a share that is lost."""

    overrides: dict[tuple[str, str], float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    manual: dict[tuple[str, str], float] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)

    @property
    def students(self) -> set[str]:
        """Everyone who is named."""
        named = {student for student, _ in (*self.overrides, *self.manual)} | set(self.totals) | self.excused
        return (named | set(self.late)) - {"*"}


@dataclass(frozen=True)
class Mark:
    """What a student gets. points: None if excused; notes: what was adjusted, for the student to read; unanswered: ids
    of questions below which the student wrote nothing."""

    points: float | None
    exercises: Mapping[str, float]
    manual: Mapping[str, float | None]
    notes: tuple[str, ...] = ()
    unanswered: frozenset[str] = frozenset()

    @property
    def waiting(self) -> int:
        """How many answers are still to be graded by hand: none of someone excused."""
        ungraded = {id for id, points in self.manual.items() if points is None}
        return 0 if self.points is None else len(ungraded - self.unanswered)


def read_adjustments(path: Path, work: Work) -> Adjustments:
    """The instructor's adjustments. Raises GradebookError, with the line, for what cannot be understood."""
    exercises = {assigned.id for assigned in work.exercises}
    questions = {question["id"]: float(question["points"]) for question in work.questions}
    found, wrong = Adjustments(), []
    for line, row in _rows(path, _text_of(path)):
        what, student, about, points, *_ = (*(cell.strip() for cell in row), "", "", "", "")
        student = student.removeprefix("'") if student[1:2] in tuple(FORMULA) else student
        if not any(cell.strip() for cell in row) or what.startswith("#") or what.lower() == "what":
            continue
        problem = _enter(found, what.lower(), student, about, points, exercises, questions)
        wrong += [f"line {line}: {problem}"] if problem else []
    if wrong:
        raise GradebookError(f"{path} was not understood, and nothing was graded:\n  " + "\n  ".join(wrong[:20]))
    return found


def _enter(
    found: Adjustments,
    what: str,
    student: str,
    about: str,
    points: str,
    exercises: set[str],
    questions: Mapping[str, float],
) -> str:
    """Add one row; what is wrong with it, or nothing."""
    number = _number(points)
    if what not in KINDS:
        return f"{what!r} is none of {', '.join(KINDS)}"
    if not student or (student == "*" and what != "late"):
        return f"{what} needs a student"
    if what == "excuse":
        found.excused.add(student)
        return ""
    if what == "manual" and not points:
        return ""  # not graded yet
    if number is None or number < 0:
        return f"{points!r} is not a number of points" if what != "late" else f"{points!r} is no share such as 10%"
    if what == "late":
        if number > 100 or (0 < number < 1 and "%" not in points):
            return f"{points!r} is no share; write 10% for a tenth"
        found.late[student] = number / 100
    elif what == "manual":
        if about not in questions:
            return f"there is no question {about!r}; the assignment has {', '.join(questions) or 'none'}"
        if number > questions[about]:
            return f"question {about} has {plain(questions[about])} points, not {points}"
        found.manual[student, about] = number
    elif not about:
        found.totals[student] = number
    elif about not in exercises:
        return f"there is no exercise {about!r}; the assignment has {', '.join(sorted(exercises))}"
    else:
        found.overrides[student, about] = number
    return ""


def _number(text: str) -> float | None:
    """A number as people write it: 7, 7.5, 7,5 or 10 %."""
    text = text.strip().removesuffix("%").strip().replace(",", ".")
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII) else None


def keep_to(out: Path, work: Work) -> None:
    """Note in `out` whose grades it holds. Raises GradebookError where they are another assignment's.

    Its adjustments would count here too: `question-1` is a question of both. Without a key the title follows from what
    was handed in, and is not compared.
    """
    note, name = out / ".assignment", work.title if work.hidden else ""
    if not note.exists():
        return write_whole(note, name)
    if (before := note.read_text("utf-8")) == name:
        return
    held = f"the grades of {before!r}" if before else "grades made without a key"
    asked = f"this is {name!r}" if name else "without --key others would come"
    raise GradebookError(f"{out} holds {held}, and {asked}; name another folder, --out DIR, or the right key")


def write_template(path: Path, submissions: Iterable[Submission], work: Work) -> None:
    """Write `adjustments.csv` if there is none: examples, and a row for each answer that is graded by hand."""
    if path.exists():
        return
    rows = [HEADER]
    for question in work.questions:
        rows += [_by_hand(who, question) for who in submissions]
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(_csv(rows[:1]) + TEMPLATE + _csv(rows[1:]), encoding="utf-8", errors="backslashreplace")
    beside.replace(path)


def _by_hand(who: Submission, question: Mapping[str, Any]) -> tuple[str, ...]:
    """The row for an answer in words, without its points."""
    name = "" if who.name == who.student else f", {who.name}"
    return "manual", guarded(who.student), question["id"], "", guarded(f"of {question['points']:g}{name}")


def begins(who: Submission, question: Mapping[str, Any]) -> str:
    """How the row for an answer in words begins in `adjustments.csv`: what comes next are the points."""
    return _csv([_by_hand(who, question)[:3]]).rstrip("\n") + ","


def marks(graded: Sequence[Graded], work: Work, adjusted: Adjustments) -> dict[str, Mark]:
    """What each student gets, by student."""
    return {item.submission.student: _mark(item, work, adjusted) for item in graded}


def _mark(item: Graded, work: Work, adjusted: Adjustments) -> Mark:
    student = item.submission.student
    exercises = {e["id"]: float(e["points"]) for e in item.exercises}
    changed = {e: points for e in exercises if (points := adjusted.overrides.get((student, e))) is not None}
    manual = {question["id"]: adjusted.manual.get((student, question["id"])) for question in work.questions}
    notes = [f"{e}: {plain(points)} points, set by the instructor." for e, points in changed.items()]
    if student in adjusted.excused:
        return Mark(None, exercises | changed, manual, (*notes, "Excused: this assignment does not count for you."))
    total = sum((exercises | changed).values()) + sum(points or 0 for points in manual.values())
    share = adjusted.late.get(student, adjusted.late.get("*", 0.0) if item.submission.late else 0.0)
    if share:
        notes.append(f"Handed in late: {plain(100 * share)}% of {plain(total)} points are lost.")
        total *= 1 - share
    if student in adjusted.totals:
        total = adjusted.totals[student]
        notes.append(f"The total, {plain(total)} points, was set by the instructor.")
    return Mark(round(total, 2), exercises | changed, manual, tuple(notes))


def plain(number: float) -> str:
    """A number of points: two decimals at most, none where it is whole."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def guarded(text: str) -> str:
    """A cell of text that no spreadsheet takes for a formula, on one line."""
    text = " ".join(printable(re.sub(r"\s", " ", text)).split(" "))
    return f"'{text}" if text.lstrip().startswith(tuple(FORMULA)) else text


def new_gradebook(graded: Sequence[Graded], work: Work, given: Mapping[str, Mark]) -> str:
    """A gradebook in the columns of Canvas."""
    rows = [[*CANVAS, guarded(work.title)], [POSSIBLE, "", "", "", "", plain(work.possible)]]
    for item in graded:
        who = item.submission
        known = {column or "SIS Login ID": value for column, value in who.ids}
        row = [who.name, *(known.get(column, "") for column in CANVAS[1:])]
        rows.append([*map(guarded, row), _points(given[who.student])])
    return _csv(rows)


@dataclass(frozen=True)
class Filled:
    """The instructor's export with the points in it.

    names: of the students, as it has them; missing: who is in it and handed in nothing; unknown: the students that it
    does not have; column: the header of the points' column; new: whether it was added.
    """

    text: str
    names: Mapping[str, str]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    column: str
    new: bool
    note: str = ""


def fill_gradebook(path: Path, graded: Sequence[Graded], work: Work, given: Mapping[str, Mark]) -> Filled:
    """The gradebook that Canvas exported, with this assignment's points; everything else in it stays."""
    text = _text_of(path)
    rows = [row for _, row in _rows(path, text)]
    if not rows or "ID" not in rows[0] or not {"Student", "LastName"} & set(rows[0]):
        raise GradebookError(
            f"{path} is not a gradebook that Canvas exported: its first line has no columns Student and ID"
        )
    header, rows = rows[0], [row for row in rows if row]
    named = [i for i, name in enumerate(header) if _title(name) == _title(work.title)]
    new = not named
    if len(named) > 1:
        raise GradebookError(f"{path} has {len(named)} columns called {work.title}; rename one in Canvas")
    column = named[0] if named else len(header)
    if new:
        rows[0] = header = [*header, guarded(work.title)]
    rows[1:] = [row + [""] * (len(header) - len(row)) for row in rows[1:]]
    people = [row for row in rows[1:] if not _is_no_student(row)]
    found = _match(header, people, [item.submission for item in graded])
    points = {i: _points(given[student]) for student, i in found.items()}
    note = ""
    for row in rows[1:]:
        if row[0].strip() == POSSIBLE.strip():
            row[column] = row[column] or plain(work.possible)
            if _number(row[column]) not in (None, round(work.possible, 2)):
                note = f"Canvas has {row[column]} points possible; the assignment has {plain(work.possible)}"
    names = {student: _name(header, people[i]) for student, i in found.items()}
    missing = [_name(header, row) for i, row in enumerate(people) if i not in points and not _is_test(header, row)]
    for i, row in enumerate(people):
        row[column] = points.get(i, row[column])
        for j, name in enumerate(header):
            if name in (*CANVAS, "LastName", "FirstName") and not row[j].startswith('="'):
                row[j] = guarded(row[j])
    unknown = [item.submission.student for item in graded if item.submission.student not in found]
    begin = "\ufeff" if path.read_bytes().startswith(b"\xef\xbb\xbf") else ""  # with it, spreadsheets read UTF-8
    filled = begin + _csv(rows, _delimiter(text))
    return Filled(filled, names, tuple(missing), tuple(unknown), header[column], new, note)


def _points(mark: Mark) -> str:
    return "EX" if mark.points is None else plain(mark.points)


def _title(name: str) -> str:
    """An assignment's name without the number that Canvas puts after it."""
    return " ".join(re.sub(r"\s*\(\d+\)\s*$", "", name).casefold().split())


def _is_no_student(row: Sequence[str]) -> bool:
    """Whether this is the row of points possible, or the one that says which columns are muted."""
    return row[0].strip() == POSSIBLE.strip() or not any(row[:2])


def _is_test(header: Sequence[str], row: Sequence[str]) -> bool:
    """Whether this is Canvas's test student."""
    return _name(header, row) in ("Student, Test", "Test Student")


def _name(header: Sequence[str], row: Sequence[str]) -> str:
    if "Student" in header:
        return row[header.index("Student")].removeprefix('="').removesuffix('"')
    return f"{row[header.index('LastName')]}, {row[header.index('FirstName')]}"


def _match(header: Sequence[str], rows: Sequence[Sequence[str]], submissions: Sequence[Submission]) -> dict[str, int]:
    """The row of each student: by number in Canvas, by login, by address, or else by a name that only one has.

    What two students could be is left for the instructor to decide.
    """
    by_id: dict[tuple[str, str], set[int]] = {}
    by_name: dict[str, set[int]] = {}
    for i, row in enumerate(rows):
        for name in ("ID", "SIS User ID", "SIS Login ID", "Integration ID"):
            if name in header and (value := row[header.index(name)].strip().casefold()):
                for key in {value, value.split("@")[0]}:
                    for column in (name, ""):
                        by_id.setdefault((column, key), set()).add(i)
        last, _, first = _name(header, row).partition(",")
        for name in {f"{last}{first}", f"{first}{last}"}:
            by_name.setdefault(_letters(name), set()).add(i)
    found: dict[str, int] = {}
    for rows_of in (lambda who: _by_id(who, by_id), lambda who: [by_name.get(_letters(who.name), set())]):
        could = {who.student: rows_of(who) for who in submissions if who.student not in found}
        certain = {student: next(iter(some)) for student, sets in could.items() for some in sets if len(some) == 1}
        claims = Counter(certain.values()) + Counter(found.values())
        found |= {student: i for student, i in certain.items() if claims[i] == 1}
    return found


def _by_id(who: Submission, by_id: Mapping[tuple[str, str], set[int]]) -> list[set[int]]:
    """The rows that what is known of a student leads to."""
    found = []
    for column, value in who.ids:
        value = value.casefold()
        columns = {"SIS User ID": ("SIS User ID", "SIS Login ID", "Integration ID"), "": ("",)}.get(column, (column,))
        for key in dict.fromkeys((value, value.split("@")[0])):
            found += [by_id[name, key] for name in columns if (name, key) in by_id]
    return found[:1]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GradebookError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; is it the right file?")
        data = path.read_bytes()
    except OSError as error:
        raise GradebookError(f"cannot read {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")  # what a spreadsheet may save


def _delimiter(text: str) -> str:
    first = text.split("\n", 1)[0]
    return ";" if first.count(";") > first.count(",") else ","


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """(line, cells) for every line of a CSV, with commas or semicolons."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise GradebookError(f"{path}, line {reader.line_num}: {error}") from None


def _csv(rows: Iterable[Sequence[str]], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()
