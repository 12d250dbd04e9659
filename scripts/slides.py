"""Make slides of the chapters: `python scripts/slides.py [NAME …]`, after `make book`, into `_build/slides/`.

A cell is on the slides when its notebook gives it a slide type (JupyterLab: property inspector, "Slide Type"):
`slide` begins one, `subslide` one below it, `-` goes on, `notes` is for the speaker. Cells without one are left out.
Of prose a slide takes headings, formulas, tables, and the first sentence of each paragraph and item, or the
`slideshow.text` of the cell's metadata in their place; the whole goes to the speaker's notes, as do the answers of
questions. A long program becomes several slides, and so do recall questions.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import textwrap
from copy import deepcopy
from html import escape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
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
LINES = 20  # of a program on one slide
COLUMNS = 96  # of a program, at its full size; a wider or longer one is set smaller
WIDTHS = (88, 104, 120)  # in which a program is laid out, to see which can be set largest
PARTS = 4  # of a program at most: from there on only its functions and its layers' `forward`, the first first
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
NAMED = re.compile(r"^\*\*[^*.]+\*\* ")  # what an item is about, such as **New**
DATED = re.compile(r", (?:\w+ )*20\d\d-\d\d\b")  # where an exhibit was found: what it is comes next
SENTENCE = re.compile(r"(?:(?<=[.?!])|(?<=[.?!][*\")])|(?<=[.?!]\*\*))(?<!et al\.)\s+(?=[^a-z\d])")


def unlink(markdown: str) -> str:
    """Links of the book as their text: its pages are not beside the slides."""
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\((?!https?:)[^)]*\)", r"\1", markdown)


def in_front(block: str, leads_on: bool = False) -> str:
    """The first sentence of a paragraph or item, and more while that is short, such as **In one sentence.**

    Where a formula follows, the last sentence too: it `leads_on` to it.
    """
    text = re.sub(r" \(exercises? [^)]*\)", "", " ".join(block.split("\n")))
    marker, text = re.fullmatch(r"((?:[-*]|\d+\.) +)?(.*)", text).groups("")
    if text.startswith("**Before you look"):
        return text  # it asks
    first, *more = SENTENCE.split(text)
    while more and len(QUOTED.sub("", LINKED.sub("", NAMED.sub("", first)))) < SHORT:
        first += " " + more.pop(0)
    if more and DATED.search(first):
        first += " " + more.pop(0)
    if more and leads_on:
        first += " " + more[-1]
    return marker + first


def blocks(markdown: str) -> list[str]:
    """The blocks of a cell's Markdown, without what folds."""
    markdown = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    return [block for block in re.split(r"\n\s*\n", markdown.strip()) if block.strip()]


def shown(markdown: str, more: bool = False) -> str:
    """What of a cell's prose stands on the slide, where `more` says that the next cell is on it too."""
    kept = []
    all_blocks = blocks(unlink(markdown))
    for block, after in zip(all_blocks, [*all_blocks[1:], ""], strict=True):
        if re.match(r"#|\||\$\$|>", block):
            kept.append(block)
        else:
            items = re.split(r"\n(?=(?:[-*]|\d+\.) )", block)
            leads_on = after.startswith("$$") and len(items) == 1
            kept.append("\n".join(in_front(item, leads_on) for item in items))
    while not more and kept[-1:] and kept[-1].endswith(":"):
        kept.pop()  # what it announces is not on the slides
    return "\n\n".join(kept)


def on_slide(cell: NotebookNode, more: bool) -> str:
    """The slide's text of a Markdown cell: its own, below the cell's headings, where the metadata has one."""
    text = cell.metadata.get("slideshow", {}).get("text")
    if text is None:
        return shown(cell.source, more)
    return "\n\n".join([*re.findall(r"^#+ .*$", cell.source, re.MULTILINE), text])


def is_check(node: ast.stmt) -> bool:
    """Whether a statement does nothing but refuse arguments."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return re.match(r"(?:\w+\.)*_?check_", ast.unparse(node.value.func)) is not None
    if isinstance(node, ast.If) and not node.orelse:
        return all(isinstance(step, ast.Raise) or is_check(step) for step in node.body)
    return isinstance(node, ast.For) and all(map(is_check, node.body))


def is_aside(node: ast.stmt) -> bool:
    """Whether a slide can do without a statement: a docstring, an import, `__all__`, a check, or a private helper."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    if isinstance(node, ast.FunctionDef):
        return re.match(r"_(?!_)|check_", node.name) is not None
    return isinstance(node, ast.Import | ast.ImportFrom) or is_check(node)


def first_line(node: ast.stmt, lines: list[str]) -> int:
    """The index of a statement's first line, with decorators and the comments above it."""
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


def is_detail(node: ast.stmt, parent: ast.AST) -> bool:
    """Whether a statement is what a layer has besides `forward`."""
    names = [getattr(step, "name", "") for step in parent.body]
    return isinstance(parent, ast.ClassDef) and "forward" in names and getattr(node, "name", "") != "forward"


def signature(node: ast.FunctionDef) -> str:
    """The first line of a function, without annotations."""
    arguments = deepcopy(node.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"{' ' * node.col_offset}def {node.name}({ast.unparse(arguments)}):"


def essence(source: str, long: bool = False) -> str:
    """A program without what a room need not read; of a `long` one not the details either."""
    lines = source.split("\n")
    left_out, first = set(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
            first[node.lineno - 1] = signature(node)
            left_out |= set(range(node.lineno, first_line(node.body[0], lines)))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.If | ast.With):
            asides = [step for step in node.body if is_aside(step) or (long and is_detail(step, node))]
            if len(asides) == len(node.body):
                continue  # it is all there is
            for step in asides:
                left_out |= set(range(first_line(step, lines), step.end_lineno))
    return "\n".join(first.get(i, line) for i, line in enumerate(lines) if i not in left_out)


def laid_out(source: str, columns: int) -> str:
    """A program in lines of at most so many columns, where that can be."""
    options = ["--isolated", f"--line-length={columns}", "--config=format.skip-magic-trailing-comma=true", "-"]
    ruff = [sys.executable, "-m", "ruff", "format", *options]
    return subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout.strip("\n")


def cuts(source: str) -> dict[int, str]:
    """The lines at which a program may be cut: where a definition or method begins, with the class that goes on there.

    A class goes with its first method, and what stands above the first definition with that.
    """
    lines = source.split("\n")
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[first_line(node, lines)] = ""
        if isinstance(node, ast.ClassDef):
            methods = [step for step in node.body if isinstance(step, ast.FunctionDef)]
            found |= {first_line(step, lines): lines[node.lineno - 1] + "  # goes on" for step in methods[1:]}
    return dict(list(found.items())[1:])


def cut(source: str) -> list[str]:
    """A program in parts of about LINES lines, cut where that can be; what cannot be cut is longer."""
    lines, places = source.split("\n"), cuts(source)
    parts, begin = [], 0
    while begin < len(lines):
        after = [i for i in [*places, len(lines)] if i > begin]
        fitting = [i for i in after if len("\n".join(lines[begin:i]).rstrip().split("\n")) <= LINES] or after[:1]
        end = max(fitting, key=lambda i: (not places.get(i) and i - begin > LINES // 2, i))
        above = [places[begin]] if places.get(begin) else []
        parts.append("\n".join([*above, *lines[begin:end]]).strip("\n"))
        begin = end
    return parts


def size(part: str) -> float:
    """How large a part of a program can be set; 1 is full size."""
    lines = part.split("\n")
    return min(1, LINES / len(lines), COLUMNS / max(map(len, lines)))


def pages(source: str) -> list[str]:
    """A program in parts, laid out so that the smallest of them is as large as can be."""
    return max((cut(laid_out(source, width)) for width in WIDTHS), key=lambda parts: min(map(size, parts)))


def told(source: str, part: str) -> str:
    """What the docstrings say about the definitions that a part of a program shows, for the speaker."""
    names = set(re.findall(r"^ *(?:class|def) (\w+)(?!.*# goes on)", part, re.MULTILINE))
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    docs = {node.name: ast.get_docstring(node) for node in nodes if node.name in names and ast.get_docstring(node)}
    return "".join(f"<p><code>{name}</code>: {' '.join(escape(doc).split())}</p>" for name, doc in docs.items())


def programs(source: str) -> list[tuple[str, str]]:
    """The HTML of a program in parts, at most PARTS, each with its speaker's notes."""
    source = textwrap.dedent(source)
    parts = pages(essence(source))
    if len(parts) >= PARTS:
        parts = pages(essence(source, long=True))[:PARTS]
    said = "<p>Without imports, annotations, docstrings, checks and helpers; the whole is in the book.</p>"
    formatter = HtmlFormatter(nowrap=True)
    coloured = [highlight(part, PythonLexer(), formatter) for part in parts]
    html = [f'<div class="source highlight"><pre>{text}</pre></div>' for text in coloured]
    return [(text, said + told(source, part)) for text, part in zip(html, parts, strict=True)]


def new_rows(root: Tag) -> str:
    """The rows of a comparison that its chapter adds, as a table with a line for each column."""
    new = re.search(r"the last (\d+ )?rows? (?:is|are) new", root.figcaption.get_text())
    rows = [row.find_all(["th", "td"]) for row in root.select("tbody tr")[-int(new[1] or 1) :]]
    lines = zip(root.select("thead th"), *rows, strict=True)
    texts = ["".join(f"<td>{cell.decode_contents()}</td>" for cell in cells) for _, *cells in lines]
    heads = [f'<th scope="row">{head.decode_contents()}</th>' for head in root.select("thead th")]
    body = "".join(f"<tr>{head}{text}</tr>" for head, text in zip(heads, texts, strict=True))
    return f"<table><tbody>{body}</tbody></table>"


def answer(question: Tag) -> str:
    """The answer of a prediction or of one recall question with its explanation, for the speaker."""
    if question.select_one(".ac-answer"):
        return f"<p>{question.select_one('.ac-answer').decode_contents()}</p>"
    options = question.select(".ac-options li")
    feedback = question.select(".ac-feedback li")
    right = next(i for i, line in enumerate(feedback) if line.b.get_text() == "Right.")
    why = feedback[right].span.decode_contents()
    return f"<p><b>{'ABCDEFGH'[right]}. {options[right].decode_contents()}</b> {why}</p>"


def split(output: NotebookNode) -> list[tuple[str, str]]:
    """The HTML of one output, a part for each slide, and the speaker's notes to it."""
    soup = BeautifulSoup(output.data["text/html"], "html.parser")
    root = soup.find(class_="ac")
    if "ac-source" in root["class"]:
        return programs(root.pre.get_text())
    if root.figcaption and "new" in root.figcaption.get_text() and "ac-comparison" in root["class"]:
        root.table.replace_with(BeautifulSoup(new_rows(root), "html.parser"))  # the whole is too much for a room
        root.figcaption.string = "New in the running comparison:"
    if "ac-questions" in root["class"]:
        data = root.find("script", type="application/json")
        parts = []
        for i, right in enumerate(json.loads(data.get_text())["correct"]):
            one = deepcopy(soup)
            questions = one.select(".ac-question")
            for other in questions[:i] + questions[i + 1 :]:
                other.decompose()
            one.find("script", type="application/json").string = json.dumps({"correct": [right]})
            parts.append((str(one), answer(questions[i])))
        return parts
    if "ac-predict" in root["class"]:
        return [(str(soup), answer(root))]
    return [(str(soup), "")]


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

    def note(cell: NotebookNode, text: str) -> None:
        if text:
            add(new_markdown_cell(text, id=f"{cell.id}-notes"), "notes")

    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in notebook.cells]
    for cell, kind, after in zip(notebook.cells, kinds, [*kinds[1:], None], strict=True):
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
                add(new_markdown_cell(above + on_slide(cell, more=after == "-"), id=cell.id), kind)
            add(new_markdown_cell(unlink(cell.source), id=f"{cell.id}-notes"), "notes")
            continue
        if kind != "-":
            add(new_markdown_cell(heading, id=f"{cell.id}-heading"), kind)
        cell.outputs = streams_once(cell.outputs)
        rich = [i for i, output in enumerate(cell.outputs) if "text/html" in output.get("data", {})]
        parts = split(cell.outputs[rich[0]]) if len(rich) == 1 else []
        if parts:
            cell.outputs[rich[0]].data = {"text/html": parts[0][0]}
        if parts and (
            "show.source" in cell.source or cell.source.count("\n") >= LINES // 2
        ):  # what it shows is the point
            cell.metadata["tags"] = ["hide-input"]
        add(cell, "-")
        note(cell, parts[0][1] if parts else "")
        for i, (part, said) in enumerate(parts[1:], 1):
            add(new_markdown_cell(heading, id=f"{cell.id}-heading-{i}"), "subslide")
            more = deepcopy(cell)
            more.id, more.metadata["tags"] = f"{cell.id}-{i}", ["hide-input"]
            more.outputs = [new_output("display_data", {"text/html": part})]
            add(more, "-")
            note(more, said)
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
