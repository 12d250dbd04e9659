"""Make slides of the chapters: `python scripts/slides.py [NAME …]`, after `make book`, into `_build/slides/`.

A cell is on the slides when its notebook gives it a slide type (JupyterLab: property inspector, "Slide Type"):
`slide` begins one, `subslide` one below it, `-` goes on, `notes` is for the speaker. Cells without one are left out.
Of prose a slide takes headings, formulas, tables, and the first sentence of each paragraph and item; the whole of it
goes to the speaker's notes. A long program becomes several slides, and so do recall questions.
"""

import json
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
DECK = Path(__file__).resolve().parent / "deck"
EXECUTED = ROOT / "_build" / "jupyter_execute" / "notebooks"  # as the book's build leaves them
OUT = ROOT / "_build" / "slides"
LINES = 24  # of a program on one slide
SHORT = 40  # characters of a first sentence, with which the next one is shown too
REVEAL, KATEX = ROOT / "node_modules" / "reveal.js" / "dist", ROOT / "node_modules" / "katex" / "dist"
LIBRARIES = {
    "reveal.css": REVEAL / "reveal.css",
    "reveal.js": REVEAL / "reveal.js",
    "notes.js": REVEAL / "plugin" / "notes.js",
    "katex/katex.min.css": KATEX / "katex.min.css",
    "katex/katex.min.js": KATEX / "katex.min.js",
    "katex/auto-render.min.js": KATEX / "contrib" / "auto-render.min.js",
    "deck.css": DECK / "deck.css",
    "deck.js": DECK / "deck.js",
}
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Slides</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 1.1rem/1.9 system-ui, sans-serif; margin: 2rem }}</style>
</head><body><main><h1>Slides</h1>
<p>Arrow keys go on, F fills the screen, S opens the speaker's notes, and ? lists all keys.</p>
<ul>
{items}
</ul></main></body></html>
"""
# Between sentences: behind a full stop, which emphasis or a bracket may follow.
LINKED = re.compile(r"\]\([^)]*\)")
QUOTED = re.compile(r'\*"[^"]*[".]\*')  # a misunderstanding, which never stands without its answer
DATED = re.compile(r", (?:\w+ )*20\d\d-\d\d\b")  # where an exhibit was found: what it is comes next
SENTENCE = re.compile(r"(?:(?<=[.?!])|(?<=[.?!][*\")])|(?<=[.?!]\*\*))(?<!et al\.)\s+(?=[^a-z\d])")


def unlink(markdown: str) -> str:
    """Links of the book as their text: its pages are not beside the slides."""
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\((?!https?:)[^)]*\)", r"\1", markdown)


def in_front(block: str) -> str:
    """The first sentence of a paragraph or item, and more while that is short, such as **In one sentence.**"""
    text = re.sub(r" \(exercises? [^)]*\)", "", " ".join(block.split("\n")))
    marker, text = re.fullmatch(r"((?:[-*]|\d+\.) +)?(.*)", text).groups("")
    if text.startswith("**Before you look"):
        return text  # it asks
    first, *more = SENTENCE.split(text)
    while more and len(QUOTED.sub("", LINKED.sub("", first))) < SHORT:
        first += " " + more.pop(0)
    if more and DATED.search(first):
        first += " " + more.pop(0)
    return marker + first


def blocks(markdown: str) -> list[str]:
    """The blocks of a cell's Markdown, without what folds."""
    markdown = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    return [block for block in re.split(r"\n\s*\n", markdown.strip()) if block.strip()]


def shown(markdown: str) -> str:
    """What of a cell's prose stands on the slide."""
    kept = []
    for block in blocks(unlink(markdown)):
        if re.match(r"#|\||\$\$|>", block):
            kept.append(block)
        else:
            items = re.split(r"\n(?=(?:[-*]|\d+\.) )", block)
            kept.append("\n".join(map(in_front, items)))
    return "\n\n".join(kept)


def programs(source: str) -> list[str]:
    """The HTML of a program in parts of at most about LINES lines, cut at empty lines where that can be."""
    lines = source.strip("\n").split("\n")
    coloured = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).split("\n")
    parts, begin = [], 0
    while begin < len(lines):
        end = len(lines)
        if end - begin > 1.25 * LINES:
            empty = [i for i in range(begin + LINES // 2, begin + LINES + 1) if not lines[i]]
            end = max(empty, key=lambda i: (lines[i + 1][:1] != " ", i), default=begin + LINES)
        parts.append("\n".join(coloured[begin:end]).strip("\n"))
        begin = end
    return [f'<div class="source highlight"><pre>{part}</pre></div>' for part in parts]


def split(output: NotebookNode) -> list[str]:
    """The HTML of one output, a part for each slide."""
    soup = BeautifulSoup(output.data["text/html"], "html.parser")
    root = soup.find(class_="ac")
    if "ac-source" in root["class"]:
        return programs(root.pre.get_text())
    if "ac-comparison" in root["class"]:  # this chapter's row, and the one before: the whole is too much
        for row in root.select("tbody tr")[:-2]:
            row.decompose()
        if root.figcaption:
            root.figcaption.string = "The last two rows of the running comparison; the lower is new."
    if "ac-questions" in root["class"]:
        data = root.find("script", type="application/json")
        parts = []
        for i, answer in enumerate(json.loads(data.get_text())["correct"]):
            one = deepcopy(soup)
            questions = one.select(".ac-question")
            for other in questions[:i] + questions[i + 1 :]:
                other.decompose()
            one.find("script", type="application/json").string = json.dumps({"correct": [answer]})
            parts.append(str(one))
        return parts
    return [str(soup)]


def streams_once(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs, without text that an earlier stream holds: merging streams leaves the parts in the build's copy."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and any(
            earlier.output_type == "stream" and earlier.name == output.name and output.text.rstrip() in earlier.text
            for earlier in kept
        ):
            continue
        kept.append(output)
    return kept


def slides(notebook: NotebookNode) -> NotebookNode:
    """The notebook of the slides, for nbconvert: every cell in it has its slide type."""
    cells, heading, asked = [], "", False

    def add(cell: NotebookNode, kind: str) -> None:
        cell.metadata["slideshow"] = {"slide_type": kind}
        cells.append(cell)

    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        titles = re.findall(r"^##? .*$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        heading = titles[-1] if titles else heading
        if kind in (None, "", "skip"):
            continue
        if asked and cell.cell_type == "code" and kind == "-":
            kind = "subslide"  # first the question, then the figure
        if kind != "notes":
            asked = cell.cell_type == "markdown" and "**Before you look" in cell.source
        if cell.cell_type == "markdown":
            if kind != "notes":
                above = "" if titles or kind == "-" else f"{heading}\n\n"
                add(new_markdown_cell(above + shown(cell.source), id=cell.id), kind)
            add(new_markdown_cell(unlink(cell.source), id=f"{cell.id}-notes"), "notes")
            continue
        if kind != "-":
            add(new_markdown_cell(heading, id=f"{cell.id}-heading"), kind)
        cell.outputs = streams_once(cell.outputs)
        rich = [i for i, output in enumerate(cell.outputs) if "text/html" in output.get("data", {})]
        parts = split(cell.outputs[rich[0]]) if len(rich) == 1 else []
        if parts:
            cell.outputs[rich[0]].data = {"text/html": parts[0]}
        if parts and (
            "show.source" in cell.source or cell.source.count("\n") >= LINES // 2
        ):  # what it shows is the point
            cell.metadata["tags"] = ["hide-input"]
        add(cell, "-")
        for i, part in enumerate(parts[1:], 1):
            add(new_markdown_cell(heading, id=f"{cell.id}-heading-{i}"), "subslide")
            more = deepcopy(cell)
            more.id, more.metadata["tags"] = f"{cell.id}-{i}", ["hide-input"]
            more.outputs = [new_output("display_data", {"text/html": part})]
            add(more, "-")
    if not cells:
        raise ValueError("no cell of the notebook has a slide type")
    title = re.sub(r"^# ", "", shown(notebook.cells[0].source).split("\n")[0])
    return nbformat.v4.new_notebook(cells=cells, metadata={**notebook.metadata, "title": title})


def make(path: Path, out: Path) -> Path:
    """Write the slides of one executed notebook; returns their path."""
    exporter = SlidesExporter(template_name="deck", extra_template_basedirs=[str(DECK.parent)])
    html, _ = exporter.from_notebook_node(slides(nbformat.read(path, as_version=4)))
    target = out / f"{path.stem}.html"
    target.write_text(html, encoding="utf-8")
    return target


def libraries(out: Path) -> None:
    """Copy what the slides load."""
    for name, source in LIBRARIES.items():
        (out / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, out / "lib" / name)
    fonts = out / "lib" / "katex" / "fonts"
    shutil.copytree(KATEX / "fonts", fonts, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    (out / "lib" / "pygments.css").write_text(
        HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    )


def make_all(names: list[str], out: Path) -> None:
    """Write the slides of the chapters named, or of all, and a page that lists what there is. Exits where none is."""
    paths = sorted(EXECUTED.glob("*.ipynb"))
    chosen = [path for path in paths if not names or path.stem in names]
    if not chosen:
        sys.exit(f"{EXECUTED} has no notebook {' or '.join(names)}: run `make book`")
    libraries(out)
    for path in chosen:
        print(make(path, out))
    decks = sorted(out.glob("[0-9]*.html"))
    titles = [re.search(r"<title>(.*): slides</title>", path.read_text("utf-8"))[1] for path in decks]
    items = [
        f'<li><a href="{path.name}">{path.name[:2]} {title}</a></li>' for path, title in zip(decks, titles, strict=True)
    ]
    (out / "index.html").write_text(INDEX.format(items="\n".join(items)), "utf-8")


if __name__ == "__main__":
    make_all(sys.argv[1:], OUT)
