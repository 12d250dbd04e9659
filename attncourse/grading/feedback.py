"""The pages that a run writes: feedback for each student, and a summary of the class for the instructor.

Each page is one file, needs no script, asks no other host for anything, and escapes every text it is given.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from attncourse.checks import exercise
from attncourse.grading.classroom import Graded, Work
from attncourse.grading.gradebook import Mark, plain
from attncourse.grading.intake import printable

MARKS = {"passed": "✓", "not attempted": "○"}
UNNAMED = {  # what an answer is called in the summary if it makes no known mistake
    "passed": "",
    "not attempted": "",
    "raised": "raised an error",
    "forbidden": "calls what is to be written",
    "different": "wrong values, no known mistake",
}
COMMON = 8  # mistakes in the summary's first list


def page_name(student: str) -> str:
    """A file name, without its ending, for a student: safe in every file system, and no two are the same."""
    safe = re.sub(r"[^a-z0-9_-]+", "-", student.lower()).strip("-")[:60]
    taken = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)?", safe) or re.search(r"-[0-9a-f]{8}$", safe)  # or made below
    if safe == student and not taken:
        return safe
    digest = hashlib.sha256(student.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{safe}-{digest}" if safe else digest


def student_page(item: Graded, work: Work, mark: Mark) -> str:
    """The feedback that one student gets."""
    who = item.submission
    right = [e for e in item.exercises if e["kind"] == "passed"]
    so_far = f"<p>{len(right)} of {len(item.exercises)} exercises are right.</p>" if item.exercises else ""
    rest = [e for e in item.exercises if e["kind"] != "passed"]
    body = [
        f'<header><p class="dim">{text(work.title)}</p><h1>{text(who.name)}</h1>{_total(mark, work)}{so_far}</header>',
        _notes(item, mark),
    ]
    if rest:
        tried = [e for e in rest if e["kind"] != "not attempted"]
        untried = [e for e in rest if e["kind"] == "not attempted"]
        body += [f"<h2>To look at again</h2>{''.join(_card(e, mark) for e in tried)}"] if tried else []
        body += [f"<h2>Not attempted</h2>{_list(untried, mark)}"] if untried else []
    if right:
        body.append(f"<h2>Right</h2>{_list(right, mark)}")
    if work.questions:
        body.append(f"<h2>Read by your instructor</h2>{_questions(work, mark)}")
    foot = [f"Graded at isolation level {text(item.isolation)}."] if item.isolation else []
    if work.hidden:
        foot.append(
            "Your answers were tried on inputs that are not shown. <code>check</code> in the notebook tries them on "
            "public ones, and shows these."
        )
    if foot:
        body.append(f'<p class="dim foot">{" ".join(foot)}</p>')
    return page(f"{work.title}: {who.name}", "".join(body))


def _total(mark: Mark, work: Work) -> str:
    if mark.points is None:
        return '<p class="total">excused</p>'
    share = max(0.0, min(1.0, mark.points / work.possible)) if work.possible else 0.0
    bar = f'<span class="bar" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span></span>'
    return f'<p class="total"><strong>{plain(mark.points)}</strong> of {plain(work.possible)} points</p>{bar}'


def _notes(item: Graded, mark: Mark) -> str:
    who = item.submission
    lines = [*mark.notes, *item.problems]
    lines += [f"{error.rstrip('.')}. The cells after it were run all the same." for error in item.cell_errors[:10]]
    if who.older:
        lines.append(f"Not graded, since a later attempt counts: {', '.join(who.older)}.")
    if who.late and not any(note.startswith("Handed in late") for note in mark.notes):
        lines.append("Handed in late.")
    if not lines:
        return ""
    return f'<ul class="notes">{"".join(f"<li>{prose(line)}</li>" for line in lines)}</ul>'


def _card(e: Mapping, mark: Mark) -> str:
    """An exercise that is not right: the named mistake, else what was found; one hint; what to reread."""
    body = [f"<p>{prose(exercise(e['id']).variants[e['variant']].statement)}</p>"] if e.get("variant") else []
    if e["kind"] == "misses":
        body += [f"<p>{prose(line)}</p>" for line in e["said"]]
        missed = (f"<li>{prose(_sentence(m['title']))}</li>" for m in e["mistakes"])
        body.append(f"<ul>{''.join(missed)}</ul>")
    elif e["mistakes"]:
        body += [f"<p>{prose(line)}</p>" for line in e["said"] if e["kind"] not in ("mistake", "different")]
        titles = "; and ".join(m["title"] for m in e["mistakes"])
        body.append(f'<p class="mistake">{prose(_sentence(titles))}</p>')
        body += [f"<p>{prose(m['explanation'])}</p>" for m in e["mistakes"]]
    else:
        body += [_line(line) for line in e["said"]]
    if e["hint"]:
        body.append(f"<p><strong>Hint.</strong> {prose(e['hint'])}</p>")
    sections = list(dict.fromkeys(m["reread"] for m in e["mistakes"]))[:3]
    if sections:
        named = ", ".join(f"“{text(section)}”" for section in sections)
        body.append(f'<p class="reread"><strong>Reread</strong> {named} in {text(_chapter(e))}.</p>')
    return (
        f'<article><h3><span class="mark" aria-hidden="true">✗</span> {text(e["title"])}</h3>'
        f'<p class="dim"><code>{text(e["id"])}</code>{_variant(e)} · {_points(e, mark)} · {text(e["heading"])}</p>'
        f"{''.join(body)}{_advice(e)}</article>"
    )


def _line(line: str) -> str:
    """One line of what was found; rows of numbers stay aligned."""
    row = re.fullmatch(r"((?:Your|Right) row:)\s*(.*)", line)
    return f'<p class="row"><code>{text(row[1]):<12}{text(row[2])}</code></p>' if row else f"<p>{prose(line)}</p>"


def _advice(e: Mapping) -> str:
    return "".join(f'<p class="advice"><strong>Advice, not points.</strong> {prose(a)}</p>' for a in e["advice"])


def _list(exercises: Iterable[Mapping], mark: Mark) -> str:
    """Exercises of which little is to be said."""
    items = "".join(
        f'<li><span class="mark" aria-hidden="true">{MARKS[e["kind"]]}</span> <span>{text(e["title"])} '
        f'<span class="dim"><code>{text(e["id"])}</code>{_variant(e)} · {_points(e, mark)}</span>'
        f"{_advice(e)}</span></li>"
        for e in exercises
    )
    return f'<ul class="plain">{items}</ul>'


def _questions(work: Work, mark: Mark) -> str:
    rows = []
    for question in work.questions:
        points = mark.manual[question["id"]]
        ungraded = "not answered" if question["id"] in mark.unanswered else "not graded yet"
        said = ungraded if points is None else f"{plain(points)} of {plain(question['points'])} points"
        rows.append(f'<li><span>{text(question["title"])} <span class="dim">· {said}</span></span></li>')
    return f'<ul class="plain">{"".join(rows)}</ul>'


def _breakable(id: str) -> str:
    """An exercise's id, which a narrow column breaks after its slash and between its words."""
    return re.sub(r"([/_])", r"\1<wbr>", text(id))


def _points(e: Mapping, mark: Mark) -> str:
    possible = e["possible"]
    said = f"{plain(mark.exercises[e['id']])} of {plain(possible)} point{'s' if possible != 1 else ''}"
    return said.replace(" ", "\N{NO-BREAK SPACE}")


def _variant(e: Mapping) -> str:
    return f", variant {text(e['variant'])}" if e.get("variant") else ""


def _chapter(e: Mapping) -> str:
    number = e["chapter"].split("_")[0]
    return f"chapter {int(number)}" if number.isdecimal() else e["chapter"]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def class_page(
    graded: Sequence[Graded],
    work: Work,
    given: Mapping[str, Mark],
    missing: Sequence[str] | None,
    unknown: Sequence[str] = (),
) -> str:
    """The summary for the instructor. missing: who handed in nothing, None where no class list was given."""
    n, answered = len(graded), [item for item in graded if item.exercises and not item.failed]
    points = sorted(mark.points for mark in given.values() if mark.points is not None)
    middle = (points[(len(points) - 1) // 2] + points[len(points) // 2]) / 2 if points else 0
    head = (
        f"<header><p class='dim'>Summary for the instructor</p><h1>{text(work.title)}</h1>"
        f"<p>{n} submission{'s' if n != 1 else ''}; half of them have {plain(middle)} of {plain(work.possible)} points "
        f"or more.{'' if work.hidden else ' Graded without a key, so on public inputs.'}{_levels(graded)}</p>"
        f"{_asked(work)}</header>"
    )
    body = [
        head,
        _attention(graded, work, given, missing, unknown),
        _common(answered),
        _per_exercise(answered, work),
        _students(graded, given, work),
    ]
    return page(f"{work.title}: summary", "".join(body), wide=True)


def _asked(work: Work) -> str:
    """Where the answers in words are."""
    n = len(work.questions)
    return f'<p><a href="answers.html">Answers to {n} question{"s" if n > 1 else ""} in words</a></p>' if n else ""


def _levels(graded: Sequence[Graded]) -> str:
    """The isolation level of what was graded."""
    levels = sorted({item.isolation for item in graded if item.isolation})
    return f" Isolation level {text(' and '.join(levels))}." if levels else ""


def mistakes_of(graded: Iterable[Graded]) -> Counter:
    """How many students made each mistake: by (exercise's id, the mistake's name)."""
    return Counter(
        (e["id"], m["name"]) for item in graded for e in item.exercises for m in e["mistakes"] if e["kind"] != "passed"
    )


def _common(graded: Sequence[Graded]) -> str:
    counts = mistakes_of(graded)
    if not counts:
        return "<h2>Common mistakes</h2><p>No known mistake was found.</p>"
    told = {(e["id"], m["name"]): (e, m) for item in graded for e in item.exercises for m in e["mistakes"]}
    order = sorted(counts, key=lambda key: (-counts[key], key))[:COMMON]
    rows = []
    for key in order:
        e, m = told[key]
        where = "a test that lets this through · " if e["kind"] == "misses" else ""
        rows.append(
            f'<li><span class="count">{counts[key]}</span><div><p><strong>{prose(_sentence(m["title"]))}</strong></p>'
            f'<p class="dim"><code>{text(e["id"])}</code>{_variant(e)} · {where}“{text(m["reread"])}” in '
            f"{text(_chapter(e))}</p>"
            f"<p>{prose(m['explanation'])}</p></div></li>"
        )
    more = len(counts) - len(rows)
    rest = f'<p class="dim">{more} more, with fewer students each, are in the table below.</p>' if more else ""
    return f'<h2>Common mistakes</h2><ol class="common">{"".join(rows)}</ol>{rest}'


def _per_exercise(graded: Sequence[Graded], work: Work) -> str:
    counts = mistakes_of(graded)
    rows = []
    for i, assigned in enumerate(work.exercises):
        answers = [item.exercises[i] for item in graded]
        right = sum(e["kind"] == "passed" for e in answers)
        untried = sum(e["kind"] == "not attempted" for e in answers)
        wrong = len(answers) - right - untried
        titles = {m["name"]: m["title"] for e in answers for m in e["mistakes"]}
        named = sorted(
            ((counts[assigned.id, name], title) for name, title in titles.items()), key=lambda x: (-x[0], x[1])
        )
        unnamed = Counter(UNNAMED.get(e["kind"], e["heading"]) for e in answers if not e["mistakes"])
        said = [f"<li>{n} × {prose(title)}</li>" for n, title in named[:4] if n]
        said += [f'<li class="dim">{len(named) - 4} more</li>'] if len(named) > 4 else []
        said += [f'<li class="dim">{n} × {what}</li>' for what, n in sorted(unnamed.items()) if what]
        title = text(answers[0]["title"]) if answers else ""
        rows.append(
            f'<tr><th scope="row">{title}<br><code class="dim">{_breakable(assigned.id)}</code></th>'
            f'<td>{_share(right, wrong, untried)}</td><td data-of="right">{right}</td>'
            f'<td data-of="not right">{wrong}</td><td data-of="not attempted">{untried}</td>'
            f"<td><ul>{''.join(said)}</ul></td></tr>"
        )
    return (
        '<h2>Exercises</h2><div class="scroll" role="region" tabindex="0" aria-label="Exercises">'
        '<table class="exercises"><thead><tr>'
        '<th scope="col">Exercise</th><th scope="col"><span class="unseen">Shares</span></th>'
        '<th scope="col">right</th><th scope="col">not right</th><th scope="col">not attempted</th>'
        '<th scope="col">What was found</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _share(right: int, wrong: int, untried: int) -> str:
    """A bar of three parts. The numbers stand beside it."""
    n = max(1, right + wrong + untried)
    parts = zip(("right", "wrong", "untried"), (right, wrong, untried), strict=True)
    spans = "".join(f'<span class="{name}" style="width:{100 * part / n:.1f}%"></span>' for name, part in parts)
    return f'<span class="bar three" aria-hidden="true">{spans}</span>'


def _attention(
    graded: Sequence[Graded],
    work: Work,
    given: Mapping[str, Mark],
    missing: Sequence[str] | None,
    unknown: Sequence[str],
) -> str:
    """What the instructor may have to do something about."""
    items: list[str] = []
    if missing:
        items.append(f"{len(missing)} handed in nothing: {text('; '.join(missing))}.")
    elif missing is None:
        items.append("No class list was given, so who is missing is not known: <code>--gradebook FILE</code>.")
    if unknown:
        items.append(f"{len(unknown)} not found in the gradebook: {text(', '.join(unknown))}.")
    for item in graded:
        student = link(item)
        items += [f"{student}: {prose(problem)}" for problem in item.problems[:3]]
        items += [f"{student}: could not be graded. {prose(item.failed)}"] if item.failed else []
        items += [f"{student}: left behind what was removed: {text(item.left)}."] if item.left else []
    if again := [link(item) for item in graded if item.submission.older]:
        items.append(f"{len(again)} handed in more than once, and the latest counts: {'; '.join(again)}.")
    if waiting := sum(mark.waiting for mark in given.values()):
        wait = "answer waits" if waiting == 1 else "answers wait"
        items.append(f"{waiting} {wait} for points by hand, in <code>adjustments.csv</code>.")
    of_b = [item.protection for item in graded if item.isolation == "B"]
    if opened := {what for protection in of_b for what, by in protection.items() if by.startswith("open")}:
        items.append(f"Graded at level B; what this leaves open to a notebook: {text(', '.join(sorted(opened)))}.")
    if any(item.isolation == "C" for item in graded):
        items.append("Graded without isolation (level C): these notebooks could change what is written here.")
    return f'<h2>To look at</h2><ul class="notes">{"".join(f"<li>{line}</li>" for line in items)}</ul>' if items else ""


def _students(graded: Sequence[Graded], given: Mapping[str, Mark], work: Work) -> str:
    rows = []
    for item in sorted(graded, key=lambda item: (item.submission.name.casefold(), item.submission.student)):
        mark = given[item.submission.student]
        marks = "".join(
            f'<span class="mark" title="{text(e["id"])}: {text(e["heading"])}">{MARKS.get(e["kind"], "✗")}</span>'
            for e in item.exercises
        )
        late = "late" if item.submission.late else ""
        points = "excused" if mark.points is None else plain(mark.points)
        rows.append(
            f'<tr><th scope="row">{link(item)}</th><td>{text(item.submission.student)}</td><td>{points}</td>'
            f'<td class="marks">{marks}</td><td>{late}</td></tr>'
        )
    return (
        '<h2>Students</h2><div class="scroll" role="region" tabindex="0" aria-label="Students"><table class="students">'
        '<thead><tr><th scope="col">Name</th><th scope="col">Known as</th>'
        f'<th scope="col">of {plain(work.possible)}</th><th scope="col">Exercises, in order</th>'
        '<th scope="col"><span class="unseen">Late</span></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def link(item: Graded) -> str:
    """A student's name, which leads to the feedback."""
    who = item.submission
    return f'<a href="feedback/{page_name(who.student)}.html">{text(who.name)}</a>'


def text(words: object) -> str:
    """Escaped text, without what turns the writing direction or cannot be written."""
    return escape(printable(str(words)))


def prose(words: str) -> str:
    """Escaped text, with `backquoted` parts as code, and *starred* words stressed."""
    parts = re.split(r"`([^`]+)`", text(words))
    parts[::2] = (re.sub(r"(?<![\w*])\*(\w+(?: \w+)*)\*(?![\w*])", r"<em>\1</em>", part) for part in parts[::2])
    parts[1::2] = (f"<code>{part}</code>" for part in parts[1::2])
    return "".join(parts)


@cache
def _css() -> str:
    return (files("attncourse.grading") / "pages.css").read_text(encoding="utf-8")


def page(title: str, body: str, wide: bool = False) -> str:
    """A whole page in the style of grading."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title>\n<style>\n{_css()}</style></head>\n"
        f"<body{' class=wide' if wide else ''}><main>{body}</main></body></html>\n"
    )
