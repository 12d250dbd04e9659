"""Answers in words, for the instructor to read: found in the notebooks, and shown question by question on one page.

They are read anew at every run, and no code runs for it. Where a student wrote is not certain: into the cell for it,
into one of their own below, or below the question in its own cell. So all of these count.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attncourse.grading.classroom import Graded, Work
from attncourse.grading.feedback import link, page, prose, text
from attncourse.grading.gradebook import Mark, begins, plain
from attncourse.grading.handout import ANSWER
from attncourse.grading.intake import Notebook, Submission
from attncourse.grading.notebook import MAX_TEXT

Question = Mapping[str, Any]
TASK = re.compile(r"^`\w+/\w+` · difficulty ", re.MULTILINE)  # the second line of an exercise
HEADING, POINTS = re.compile(r"## Question \d+\s*"), re.compile(r"\s*\*[\d.]+ points?, graded by hand\.\*")


@dataclass(frozen=True)
class Answer:
    """What a student wrote. text: None where the question was not found, empty where its answer is; cut: in which
    notebook there is more, if any."""

    text: str | None
    cut: str = ""


def answer_to(question: Question, submission: Submission, questions: Sequence[Question]) -> Answer:
    """A student's answer to one of the `questions`: what stands with its text, or else in the cell with its id."""
    asked, others = _pattern(question), [_pattern(other) for other in questions if other is not question]
    for find in (lambda book: _below(book, question, asked, others), lambda book: _by_id(book, question["id"])):
        found = {book.name: pieces for book in submission.notebooks if (pieces := find(book)) is not None}
        if found:
            break
    else:
        return Answer(None)
    pieces = list(dict.fromkeys(piece for some in found.values() for piece in some))
    whole = "\n\n".join(pieces)
    cut = len(whole) > MAX_TEXT or any(len(piece) > MAX_TEXT for piece in pieces)
    return Answer(whole[:MAX_TEXT], ", ".join(found) if cut else "")


def unanswered(questions: Sequence[Question], submission: Submission) -> frozenset[str]:
    """The ids of the questions below which nothing was written. One that was not found is none of them."""
    return frozenset(q["id"] for q in questions if answer_to(q, submission, questions).text == "")


def _pattern(question: Question) -> re.Pattern:
    """What finds a question's text, however its lines are broken."""
    return re.compile(r"\s+".join(map(re.escape, _text(question).split())))


def _text(question: Question) -> str:
    return question.get("text") or question["title"]


def _below(book: Notebook, question: Question, asked: re.Pattern, others: Sequence[re.Pattern]) -> list[str] | None:
    """What is written from the question's text on, up to another question or exercise; None where it is not there."""
    places = [(i, match) for i, (_, written) in enumerate(book.texts) if (match := asked.search(written))]
    if not places:
        return None
    pieces = [written for id, written in book.texts if id == question["id"] and not asked.search(written)]
    for i, match in places:
        written = book.texts[i][1]
        pieces.append(HEADING.sub("", written[: match.start()]) + POINTS.sub("", written[match.end() :], count=1))
        for _, written in book.texts[i + 1 :]:
            if TASK.search(written) or any(other.search(written) for other in (asked, *others)):
                break
            pieces.append(written)
    return list(_written(pieces))


def _by_id(book: Notebook, id: str) -> list[str] | None:
    """What is written in the cells with this id; None where there are none."""
    found = [written for name, written in book.texts if name == id]
    return list(_written(found)) if found else None


def _written(pieces: Sequence[str]) -> Iterator[str]:
    """The texts, without the sentence that was there before."""
    for piece in pieces:
        if piece := piece.replace(ANSWER, "").strip("\r\n").rstrip():
            yield piece


def answers_page(graded: Sequence[Graded], work: Work, given: Mapping[str, Mark]) -> str:
    """The answers to every question, for the instructor."""
    items = sorted(graded, key=lambda item: (item.submission.name.casefold(), item.submission.student))
    contents = "".join(f'<li><a href="#{text(q["id"])}">{prose(q["title"])}</a></li>' for q in work.questions)
    head = (
        f'<header><p class="dim">Answers in words, for the instructor</p><h1>{text(work.title)}</h1>'
        "<p>No program reads these. Give points in <code>adjustments.csv</code>: beside each answer stands how its row "
        "begins, and the points come next. Where there is no such row, as for who handed in later, add it. Then grade "
        'again with the same command. <a href="summary.html">Summary of the class</a></p></header>'
    )
    body = [head, f"<ol>{contents}</ol>" if len(work.questions) > 1 else ""]
    for question in work.questions:
        found = [answer_to(question, item.submission, work.questions) for item in items]
        marks = [given[item.submission.student] for item in items]
        wrote = sum(bool(answer.text) for answer in found)
        pointed = sum(mark.manual[question["id"]] is not None for mark in marks)
        body.append(
            f'<h2 id="{text(question["id"])}">{prose(question["title"])}</h2>'
            + (f'<p class="words">{_lines(_text(question))}</p>' if _text(question) != question["title"] else "")
            + f'<p class="dim"><code>{text(question["id"])}</code> · {_of(question)} · {wrote} of {len(items)} '
            f"students wrote an answer · {pointed} have points</p>"
        )
        body += [_card(item, question, *more) for item, *more in zip(items, found, marks, strict=True)]
    return page(f"{work.title}: answers in words", "".join(body))


def _of(question: Question) -> str:
    return f"{plain(question['points'])} point{'' if question['points'] == 1 else 's'}"


def _card(item: Graded, question: Question, answer: Answer, mark: Mark) -> str:
    """One student's answer, and what there is to do with it."""
    who = item.submission
    if answer.text:
        said = f'<p class="words">{_lines(answer.text)}</p>'
    elif answer.text == "":
        said = '<p class="dim">Not answered.</p>'
    else:
        why = "; ".join(item.problems) or "the question is not in what was handed in"
        said = f'<p class="dim">Not found: {prose(why)}.</p>'
    if answer.cut:
        said += f'<p class="dim">Cut after {MAX_TEXT} characters; the rest is in {text(answer.cut)}.</p>'
    points = mark.manual[question["id"]]
    none_yet = "0, unless you say otherwise" if answer.text == "" else "no points yet"
    given = none_yet if points is None else f"{plain(points)} of {_of(question)}"
    given = "excused" if mark.points is None else given
    return (
        f'<article class="answer"><h3>{link(item)}</h3>'
        f'<p class="dim">{given} · row <code>{text(begins(who, question))}</code></p>{said}</article>'
    )


def _lines(words: str) -> str:
    """Escaped text that keeps its lines and spaces."""
    lines = words.expandtabs(4).splitlines()
    return "\n".join(text(line) for line in lines)
