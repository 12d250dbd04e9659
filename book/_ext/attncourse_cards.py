"""The cards at the head of the chapters: what they say, and the page of objectives made of them."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

from attncourse.checks import CHAPTERS, exercises

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
TIME = re.compile(r"\*\*Time\*\* (\d+) minutes to read and run, (\d+) for the")
LINK = re.compile(r"\]\(((?:\.\./)?[\w/]*\.(?:ipynb|md))?(#[\w-]+)?\)")
ITEM = re.compile(r"(\d\d)(?: \(([\w ]+)\))?( reading)?")


@dataclass(frozen=True)
class Card:
    """What a chapter says of itself. reading and doing are minutes; needs are numbers of chapters, such as "03"."""

    notebook: str
    title: str
    idea: str
    you_need: str
    reading: int
    doing: int
    objectives: tuple[str, ...]

    @property
    def number(self) -> str:
        return self.notebook[:2]

    @property
    def needs(self) -> list[str]:
        return re.findall(r"\]\((\d\d)_\w+\.ipynb", self.you_need)

    @property
    def tasks(self) -> list:
        """The exercises of the chapter, from the specifications of the checks."""
        return exercises(CHAPTERS[int(self.number)])


def read_card(notebook: str, text: str) -> Card:
    """The card in the first cell of a chapter. Raises ValueError where a line of it is missing."""
    patterns = {
        "title": r"^# (.+)$",
        "idea": r"^\*\*In one sentence\.\*\* (.+)$",
        "you_need": r"^- \*\*You need\*\* (.+)$",
    }
    found = {name: re.search(pattern, text, re.MULTILINE) for name, pattern in patterns.items()}
    time = TIME.search(text)
    objectives = tuple(re.findall(r"^\d\. (.+)$", text, re.MULTILINE))
    missing = [name for name, match in found.items() if not match]
    missing += ["time"] * (time is None) + ["objectives"] * (not objectives)
    if missing:
        raise ValueError(f"the card of {notebook} lacks {', '.join(missing)}")
    fields = {name: match.group(1) for name, match in found.items()}
    return Card(notebook, **fields, reading=int(time[1]), doing=int(time[2]), objectives=objectives)


@cache
def cards() -> dict[str, Card]:
    """All cards by number, in the order of the course."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    first = {path.stem: "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]) for path in paths}
    return {name[:2]: read_card(name, text) for name, text in first.items()}


def duration(minutes: int) -> str:
    """ "1 h 45 min", "2 h" or "40 min"."""
    hours, rest = divmod(minutes, 60)
    return " ".join([f"{hours} h"] * bool(hours) + [f"{rest} min"] * (rest > 0 or not hours))


def relink(text: str, card: Card, up: str) -> str:
    """Text of a notebook with its links as a page needs them from which `up` leads to the root of the repository."""

    def link(match):
        path, anchor = match[1] or f"{card.notebook}.ipynb", match[2] or ""
        return f"]({up}{path.removeprefix('../') if path.startswith('../') else 'notebooks/' + path}{anchor})"

    return LINK.sub(link, text)


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def link_to(card: Card, up: str, folder: str = "notebooks") -> str:
    return f"[{card.number} {card.title}]({up}{folder}/{card.notebook}.ipynb)"


def objectives_markdown(up: str) -> str:
    """A section for each chapter: its minutes, what it needs, and what the reader can do after it."""
    lines = []
    for card in cards().values():
        minutes = f"{card.reading} minutes to read and run, {card.doing} for the {len(card.tasks)} exercises"
        lines += [f"## {card.number} {card.title}", "", f"{relink(card.idea, card, up)}", ""]
        lines += [f"[The chapter]({up}notebooks/{card.notebook}.ipynb): {minutes}."]
        lines += [f"You need {relink(card.you_need, card, up)}", "", "After it you can", ""]
        lines += [f"{n}. {relink(text, card, up)}" for n, text in enumerate(card.objectives, 1)] + [""]
    return "\n".join(lines)


def parse_item(text: str) -> tuple[Card, list]:
    """ "03" is a chapter with all its exercises, "03 reading" without any, "03 (attend score)" with those two."""
    match = ITEM.fullmatch(text.strip())
    if not match or match[1] not in cards():
        raise ValueError(f"{text!r} is no chapter of {', '.join(cards())}, with (exercises) or `reading` after it")
    card = cards()[match[1]]
    by_name = {task.id.split("/")[1]: task for task in card.tasks}
    names = [] if match[3] else (match[2] or " ".join(by_name)).split()
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"chapter {card.number} has no exercise {', '.join(unknown)}; it has {', '.join(by_name)}")
    return card, [by_name[name] for name in names]


class FromCards(SphinxDirective):
    """Markdown made from the notebooks, by `markdown(up)`; made again when one of them changes."""

    def run(self):
        for path in NOTEBOOKS.glob("*.ipynb"):
            self.env.note_dependency(str(path))
        cards.cache_clear()
        up = "../" * self.env.docname.count("/")
        try:
            return self.parse_text_to_nodes(self.markdown(up), allow_section_headings=True)
        except ValueError as error:
            raise self.error(str(error)) from None


class Objectives(FromCards):
    def markdown(self, up):
        return objectives_markdown(up)


def setup(app):
    app.add_directive("objectives", Objectives)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
