"""The page of comparisons with other implementations, made of `attncourse/data/oracles.json`."""

import json
from collections import Counter
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

from attncourse.show.claims import CHAPTERS

ROOT = Path(__file__).parents[2]
ORACLES = ROOT / "attncourse" / "data" / "oracles.json"
NAMES = {"numpy": "NumPy", "torch": "PyTorch"}  # others are written as they are installed
TITLES = {notebook: f"{notebook[:2]} {title}" for notebook, title in CHAPTERS.values()}
DTYPES = ("float32", "float64")
MOST_SHAPES = 8


class Oracles(SphinxDirective):
    """Totals, then a table for each chapter, whose number links to its notebook when that exists."""

    def run(self):
        self.env.note_dependency(str(ORACLES))
        self.env.note_reread()  # a new notebook changes this page
        notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
        text = oracles_markdown(json.loads(ORACLES.read_text("utf-8")), notebooks)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def oracles_markdown(content, notebooks):
    """Markdown for the page. notebooks: which there are, such as "06_multi_head"."""
    rows = content["comparisons"]
    cases = sum(row["cases"] for row in rows)
    lines = ["## All comparisons", ""]
    lines += [f"{len(rows)} comparisons in {cases:,} cases, measured on {content['date']}.", ""]
    lines += ["| compared with | comparisons | cases |", "| --- | --- | --- |"]
    kinds, in_kind = Counter(map(kind, rows)), Counter()
    for row in rows:
        in_kind[kind(row)] += row["cases"]
    lines += [f"| {name} | {number} | {in_kind[name]:,} |" for name, number in kinds.most_common()]
    for chapter, title in TITLES.items():
        there = [row for row in rows if row["chapter"] == chapter]
        if there:
            lines += ["", f"## {title}", ""]
            lines += [f"[Chapter {title[:2]}](../notebooks/{chapter}.ipynb)", ""] if chapter in notebooks else []
            lines += table(there)
    return "\n".join(lines)


def table(rows):
    """A table with a line for each comparison."""
    header = ["ours", "theirs", "what is varied", "cases: shapes"]
    header += [f"{dtype}: outputs, gradients" for dtype in DTYPES]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        cells = [ours(row), theirs(row), row["what"], f"{row['cases']:,}: {shapes(row['shapes'])}"]
        cells += [numbers(row, dtype) for dtype in DTYPES]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def library(row):
    return f"{NAMES.get(row['library'], row['library'])} {row['version']}"


def kind(row):
    """What the totals count together."""
    return f"equations, in {library(row)}" if row.get("equations") else library(row)


def ours(row):
    """The module, and the mechanism where it has another name."""
    mechanism = {"rope": "RoPE", "alibi": "ALiBi"}.get(row["mechanism"], row["mechanism"].replace("_", " "))
    return f"`{row['module']}`" + ("" if row["mechanism"] == row["module"] else f", {mechanism}")


def theirs(row):
    """The class or function, or the equations, and in which library; and the device, if that is no CPU."""
    name = row["theirs"] if row.get("equations") else f"`{row['theirs']}`"
    where = ", in " if row.get("equations") else ", "
    return name + where + library(row) + ("" if row["device"] == "cpu" else f", on {row['device'].upper()}")


def shapes(texts):
    """All shapes, or the first and the last of many and how many there are."""
    if len(texts) <= MOST_SHAPES:
        return ", ".join(texts)
    half = MOST_SHAPES // 2
    return f"{', '.join(texts[:half])}, … {', '.join(texts[-half:])} ({len(texts)} in all)"


def numbers(row, dtype):
    """ "1e−6, 1e−5", or words where nothing was compared."""
    found = row["differences"].get(dtype, {})
    relative = " relative" if row["scaled"] and "gradients" in found else ""
    return ", ".join(short(found.get(of)) for of in ("outputs", "gradients")) + relative if found else "none"


def short(difference):
    """With a true minus: a line does not break after it, and a screen reader says it."""
    return "none" if difference is None else f"{difference:.0e}".replace("e-0", "e-").replace("-", "−")


def setup(app):
    app.add_directive("oracles", Oracles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
