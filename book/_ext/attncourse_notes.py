"""Notes for instructors, chapter by chapter, made from the notebooks and the exercises."""

import ast
import json
import re
from collections import Counter

from attncourse_cards import NOTEBOOKS, FromCards, cards, link_to, row


class ChapterNotes(FromCards):
    """For each chapter: questions to ask, misunderstandings to listen for, and its exercises."""

    def markdown(self, up):
        return "\n".join(line for card in cards().values() for line in notes(card, up))


def notes(card, up):
    cells = json.loads((NOTEBOOKS / f"{card.notebook}.ipynb").read_text("utf-8"))["cells"]
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    lines = [f"## {card.number} {card.title}", ""]
    lines += [f"{link_to(card, up)}: {card.reading} minutes to read and run, {card.doing} for the exercises.", ""]
    if questions := predictions(cells):
        lines += ["**Ask before the cell runs**", ""]
        for question, answer in questions:
            lines += [f"- {question}", *[f"  - {answer}"] * bool(answer)]
        lines.append("")
    said, section = misunderstandings(cells)
    if said:
        address = f"{up}notebooks/{card.notebook}.ipynb#{section}"
        lines += [f"**Listen for** ([answers]({address}))", "", *(f"- “{text}”" for text in said), ""]
    lines += [row("exercise", "level", "minutes", "points", "known mistakes", "they send back to")]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for n, task in enumerate(card.tasks, 1):
        sections = Counter(known.reread for known in task.misconceptions).most_common(2)
        back = ", ".join(f"{heading} ({count})" for heading, count in sections)
        level = "●" * task.difficulty + "○" * (3 - task.difficulty)
        lines.append(row(f"{n} {task.title}", level, task.minutes, task.points, len(task.misconceptions), back))
    return [*lines, ""]


def predictions(cells):
    """Questions of `show.predict` in a notebook, with answers: computed questions are left out, computed answers ""."""
    calls = (
        node for kind, text in cells if kind == "code" and "show.predict" in text for node in ast.walk(parse(text))
    )
    calls = [call for call in calls if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "predict"]
    texts = ([getattr(text, "value", "") for text in call.args[:2]] for call in calls)
    return [(question, answer if isinstance(answer, str) else "") for question, answer in texts if question]


def parse(text):
    """A code cell as Python: lines for IPython left out."""
    return ast.parse("\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!"))))


def misunderstandings(cells):
    """What a chapter quotes under "Three misunderstandings" or "Misunderstandings", and the anchor of its section."""
    said, section, heading, found = [], "", "", False
    for kind, text in cells:
        for line in text.splitlines() if kind == "markdown" else ():
            if line.startswith("## "):
                heading, found = line[3:], line == "## Misunderstandings"
            found = found or line == "**Three misunderstandings**"
            quoted = re.match(r'(?:- \*|\*\*\d\. )"(.+?)"', line)
            if found and quoted:
                said.append(quoted[1])
                section = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return said, section


def setup(app):
    app.add_directive("chapter-notes", ChapterNotes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
