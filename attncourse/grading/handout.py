"""Make an assignment's notebooks out of the course's solutions: for students, for reference, for nbgrader.

A notebook has the exercises that were chosen, in the book's order and under its numbers, and those that a chosen one
builds on, without points. An exercise in a variant has its task and answer rewritten by `data/variants.toml`.
"""

import ast
import copy
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import attncourse
from attncourse.checks import exercise
from attncourse.checks.spec import Exercise
from attncourse.grading.key import Assigned

KINDS = ("students", "reference", "source")  # what is handed out; the answers; what nbgrader makes a hand-out of
PARTS = ("task", "answer", "check", "note")
STUB = ("# Your code here.", "raise NotImplementedError")
ANSWER = "*Your answer here.*"
NO_WHEEL = 'WHEEL = ""'
Cell = dict[str, Any]
Book = dict[str, Any]  # a notebook as JSON


class AssignError(ValueError):
    """The assignment cannot be made; the message says why and what helps."""


@dataclass(frozen=True)
class Question:
    """A question that is answered in words and graded by hand. chapter: in whose notebook, else in the last one."""

    id: str
    text: str
    points: float
    chapter: str = ""

    @property
    def title(self) -> str:
        """Its first line, or the beginning of that."""
        line = self.text.strip().splitlines()[0]
        return line if len(line) <= 80 else f"{line[:79]}…"


@dataclass(frozen=True)
class Links:
    """Where things are, as far as it is known.

    wheel: the package's address or file name, for the set-up cell; site: the published book; colab: what comes before
    a notebook's name in an address that Colab opens.
    """

    wheel: str = ""
    site: str = ""
    colab: str = ""


def course_folder() -> Path:
    """The checkout that this package is in, which has the exercises with their answers."""
    folder = Path(attncourse.__file__).resolve().parents[1]
    if not (folder / "solutions").is_dir() or not (folder / "pyproject.toml").is_file():
        raise AssignError(
            "this installation has the package only, and not the exercises' notebooks: run `.venv/bin/attncourse "
            "assign …` in a clone of the course, after `make setup`"
        )
    return folder


@dataclass
class Chapter:
    """What is chosen of a chapter, and how its notebooks are made.

    name: as in "13_gqa"; picked: what is assigned, by the id's part after the slash; forms: the variant of each
    exercise that is in the notebook, None for the course's own.
    """

    name: str
    picked: dict[str, Assigned]
    questions: Sequence[Question] = ()
    original: Book = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = course_folder() / "solutions" / f"{self.name}.ipynb"
        self.original = json.loads(path.read_text("utf-8"))
        self.cells = {cell["id"]: _text(cell) for cell in self.original["cells"]}
        self.short = next(iter(self.picked.values())).id.split("/")[0]
        self.order = [name.removesuffix("-answer") for name in self.cells if name.endswith("-answer")]
        self.defined = {exercise(f"{self.short}/{slug}").defines: slug for slug in self.order}
        self.forms: dict[str, str | None] = {slug: assigned.variant for slug, assigned in self.picked.items()}
        for slug in reversed(self.order):  # what a chosen exercise builds on stands before it
            if slug in self.forms:
                for helper in self.calls(slug):
                    self.forms.setdefault(helper, self.expected(slug, helper))

    @property
    def whole(self) -> bool:
        """Whether all exercises of the chapter are assigned."""
        return len(self.picked) == len(self.order)

    def calls(self, slug: str) -> list[str]:
        """The exercises whose answers this one's answer calls."""
        tree = ast.parse(self.cells[f"{slug}-answer"])
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return [self.defined[name] for name in self.defined if name in used and self.defined[name] != slug]

    def expected(self, slug: str, helper: str) -> str | None:
        """The variant in which an exercise's answer needs another's: its own where there is one of that name."""
        variant, spec = self.forms[slug], exercise(f"{self.short}/{helper}")
        return variant if isinstance(spec, Exercise) and variant in spec.variants else None

    def number(self, slug: str) -> str:
        """The exercise's number in its chapter."""
        match = re.match(r"## (\d+)\.", self.cells[f"{slug}-task"])
        return match[1] if match else slug

    # What is written for an exercise

    def answer(self, slug: str, variant: str | None) -> str:
        """The source of an answer in a variant, with its marks of a solution."""
        return rewritten(f"{self.short}/{slug}", variant, "", self.cells[f"{slug}-answer"])[1]

    def solution(self, slug: str) -> str:
        """The answer in this assignment: it brings along what it calls, where that is under another convention here."""
        source = self.answer(slug, self.forms[slug])
        for helper in self.clashes(slug):
            own = without_marks(self.answer(helper, self.expected(slug, helper)))
            begin = re.search(r"^( *)### BEGIN SOLUTION\n", source, re.MULTILINE)
            inserted = "".join(f"{begin[1]}{line}".rstrip() + "\n" for line in own.splitlines())
            source = f"{source[: begin.end()]}{inserted}\n{source[begin.end() :]}"
        return source

    def clashes(self, slug: str) -> list[str]:
        """The exercises whose answers this one's would call, and cannot, because they are in another variant here."""
        return [
            helper
            for helper in self.calls(slug)
            if helper in self.forms and self.forms[helper] != self.expected(slug, helper)
        ]

    def task(self, slug: str, links: Links) -> str:
        """The text of a task, in its variant and without what leads to its solution."""
        id, variant = f"{self.short}/{slug}", self.forms[slug]
        text = rewritten(id, variant, self.cells[f"{slug}-task"], self.cells[f"{slug}-answer"])[0]
        text = re.sub(r"\n*\[Solution\]\([^)]*\)\s*$", "", text)
        head, line, rest = text.partition("\n\n")[0], *text.partition("\n\n")[2].split("\n\n", 1)
        told = []
        if slug not in self.picked:
            line = re.sub(r" · \d+ points?$", "", line)
            told.append("*Not part of this assignment, and without points: an exercise below may use it.*")
        else:
            points = self.picked[slug].points
            line = re.sub(r"\d+ points?$", f"{points} point{'' if points == 1 else 's'}", line)
        if variant:
            told.append(exercise(id).variants[variant].statement.replace("In this copy", "**In this copy**", 1))
        for helper in self.clashes(slug):
            name, own = exercise(f"{self.short}/{helper}").defines, self.expected(slug, helper)
            told.append(
                f"**In this copy** exercise {self.number(helper)} is under another convention, and this one is not: "
                f"your `{name}` does not fit here as it stands."
                if own is None
                else f"**In this copy** your `{name}` of exercise {self.number(helper)} does not fit here as it stands."
            )
        return linked("\n\n".join((head, line, *told, rest)), links)

    def check(self, slug: str) -> str:
        """The check, which names the variant."""
        source, variant = self.cells[f"{slug}-check"], self.forms[slug]
        if variant is None:
            return source
        call = re.compile(r"^(check\(.*)\)\s*$", re.DOTALL)
        if not call.match(source):
            raise AssignError(f"the check of {self.short}/{slug} is no single call, so no variant fits into it")
        return call.sub(rf'\1, "{variant}")', source)

    def title(self, title: str, kind: str, links: Links) -> str:
        """The first cell: what there is to do."""
        head, first, *rest = self.cells["title"].split("\n\n")
        _, _, subject = head.partition(": ")
        reference = ", reference" if kind == "reference" else ""
        if not self.whole:
            n = len(self.picked)
            first = (
                f"{n} exercise{'s' if n != 1 else ''} of [chapter {self.name[:2]}](../notebooks/{self.name}.ipynb), "
                "under the numbers that they have there."
            )
        told = [f"# {title}{reference}: {subject}", first]
        if links.colab and kind != "reference":
            told.insert(1, f"[Open in Colab]({links.colab}{self.name}.ipynb)")
        variants = [self.number(slug) for slug in self.order if self.forms.get(slug)]
        for paragraph in rest:
            told.append(self._table(paragraph) if paragraph.startswith("| exercise") else paragraph)
        if variants:
            one = len(variants) == 1
            told.append(
                f"**In this copy** exercise{'' if one else 's'} {_listed(variants)} {'is' if one else 'are'} under "
                "another convention than in the chapter; the text of the exercise says which. All others keep the "
                "course's own, also where they build on such an exercise."
            )
        return linked("\n\n".join(told), links)

    def _table(self, table: str) -> str:
        rows = []
        for row in table.splitlines():
            number = re.match(r"\| (\d+) ", row)
            slug = next((s for s in self.forms if number and self.number(s) == number[1]), None)
            if number and slug is None:
                continue
            if slug:
                points = self.picked[slug].points if slug in self.picked else "–"
                row = re.sub(r"\| \d+ \|$", f"| {points} |", row)
            rows.append(row)
        return "\n".join(rows)

    def book(self, title: str, kind: str, links: Links) -> Book:
        """The notebook of one of `KINDS`."""
        made = copy.deepcopy({key: value for key, value in self.original.items() if key != "cells"})
        made["cells"] = []
        for original in self.original["cells"]:
            cell = copy.deepcopy(original)
            slug, _, part = cell["id"].rpartition("-")
            tags = cell["metadata"].get("tags", [])
            if part in PARTS and slug in self.order:
                text = self._part(slug, part, kind, links)
            elif "solution-only" in tags and kind != "reference":
                text = None
            elif cell["id"] == "title":
                text = self.title(title, kind, links)
            elif cell["id"] == "install":
                text = _text(cell)
                if links.wheel and kind == "students":
                    text = text.replace(NO_WHEEL, f"WHEEL = {json.dumps(links.wheel)}", 1)
            else:
                text = linked(_text(cell), links) if cell["cell_type"] == "markdown" else _text(cell)
            if text is None:
                continue
            if part == "check" and slug in self.forms and slug not in self.picked:
                cell["metadata"] = {}
            elif (grading := cell["metadata"].get("nbgrader")) and grading.get("grade"):
                grading["points"] = self.picked[slug].points
            made["cells"].append(_with(cell, text, kind))
        made["cells"] += [_with(cell, cell["source"], kind) for cell in _asked(self.questions)]
        return made

    def _part(self, slug: str, part: str, kind: str, links: Links) -> str | None:
        """The text of an exercise's cell; None where it is left out."""
        if slug not in self.forms:
            return None
        if part == "task":
            return self.task(slug, links)
        if part == "check":
            return self.check(slug)
        if part == "note":  # about the course's own form
            return linked(self.cells[f"{slug}-note"], links) if kind == "reference" and not self.forms[slug] else None
        source = self.solution(slug)
        return {"students": cleared, "reference": without_marks, "source": str}[kind](source)


def _asked(questions: Iterable[Question]) -> list[Cell]:
    """The cells of questions in words: each question, and a cell for the answer that is graded by hand."""
    cells = []
    for number, question in enumerate(questions, 1):
        points = f"{question.points:g} point{'' if question.points == 1 else 's'}"
        text = f"## Question {number}\n\n{question.text.strip()}\n\n*{points}, graded by hand.*"
        graded = {"grade": True, "solution": True, "locked": False, "task": False, "schema_version": 3}
        graded |= {"grade_id": question.id, "points": question.points, "cell_type": "markdown"}
        cells.append({"cell_type": "markdown", "id": f"{question.id}-text", "metadata": {}, "source": text})
        cells.append(
            {"cell_type": "markdown", "id": question.id, "metadata": {"nbgrader": graded}, "source": ANSWER},
        )
    return cells


@cache
def _variants() -> Mapping[str, Mapping[str, Mapping[str, list]]]:
    path = Path(attncourse.__file__).parent / "data" / "variants.toml"
    return tomllib.loads(path.read_text("utf-8"))


def rewritten(id: str, variant: str | None, task: str, answer: str) -> tuple[str, str]:
    """The texts of an exercise's task and answer in a variant."""
    if variant is None:
        return task, answer
    try:
        changes = _variants()[id][variant]["changes"]
    except KeyError:
        raise AssignError(f"data/variants.toml has no text for {id} in its variant {variant!r}") from None
    for old, new in changes:
        task, answer = task.replace(old, new), answer.replace(old, new)
    return task, answer


def cleared(source: str) -> str:
    """An answer as it is handed out: a stub in the place of the solution."""
    region = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION *$", re.MULTILINE | re.DOTALL)
    return region.sub(lambda match: "\n".join(match[1] + line for line in STUB), source)


def without_marks(source: str) -> str:
    """An answer without the lines that mark its solution."""
    return re.sub(r"^ *### (BEGIN|END) SOLUTION *\n?", "", source, flags=re.MULTILINE).rstrip()


def linked(text: str, links: Links) -> str:
    """A text whose links to the course's own pages lead to its site, or are plain words where that is not known."""

    def there(match: re.Match) -> str:
        words, path, anchor = match.groups()
        return f"[{words}]({links.site}/{path}.html{anchor or ''})" if links.site else words

    return re.sub(r"\[([^\]]+)\]\(\.\./([\w/]+)\.(?:ipynb|md)(#[^)]*)?\)", there, text)


def checksum(cell: Cell) -> str:
    """What nbgrader knows an untouched cell by."""
    graded = cell["metadata"]["nbgrader"]
    parts = [_text(cell), cell["cell_type"], *(str(bool(graded[name])) for name in ("grade", "solution"))]
    locked = graded["locked"] if not graded["solution"] else False
    parts += [str(bool(locked)), graded["grade_id"]]
    parts += [str(float(graded["points"]))] if graded["grade"] else []
    return hashlib.md5("".join(parts).encode(), usedforsecurity=False).hexdigest()


def _with(cell: Cell, text: str, kind: str) -> Cell:
    """A cell with this text, and with what belongs to it in a notebook that is handed out."""
    cell = copy.deepcopy(cell) | {"source": text.splitlines(keepends=True)}
    if cell["cell_type"] == "code":
        cell |= {"outputs": [], "execution_count": None}
    graded = cell["metadata"].get("nbgrader")
    if graded and kind == "students":
        graded |= {"cell_type": cell["cell_type"], "checksum": checksum(cell)}
        cell["metadata"]["deletable"] = False
        if graded["locked"]:
            cell["metadata"]["editable"] = False
    return cell


def written(book: Book) -> str:
    """A notebook as text."""
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _text(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _listed(words: Sequence[str]) -> str:
    """1; 1 and 2; 1, 2 and 3."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
