"""The landing page: cards of chapters with their minutes, how long the course takes, and a check that answers."""

import ast
import contextlib
import io
import re
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
TIME = re.compile(r"^- \*\*Time\*\* (\d+) minutes to read and run, (\d+) for the \[exercises\]", re.MULTILINE)


def minutes(notebook):
    """Minutes to read and run, and minutes of exercises, as a chapter's card says. Raises ValueError if it does not."""
    card = nbformat.read(notebook, as_version=4).cells[0].source
    found = TIME.search(card)
    if not found:
        raise ValueError(f"{notebook.name}: its card has no line `- **Time** 40 minutes to read and run, 65 for the …`")
    return int(found[1]), int(found[2])


def hours(total):
    """ "14½ hours" for 862 minutes: to the half hour."""
    halves = round(total / 30)
    return f"{halves // 2 or ''}{'½' * (halves % 2)} hour{'' if halves <= 2 else 's'}"


class Chapters(SphinxDirective):
    """Cards of chapters, a `notebook | title | what it is about` each. family: whose colour of the map they have."""

    has_content = True
    option_spec = {"family": directives.unchanged}  # noqa: RUF012

    def run(self):
        items = []
        for line in self.content:
            name, title, about = (part.strip() for part in line.split(" | ", 2))
            path = ROOT / "notebooks" / f"{name}.ipynb"
            self.env.note_dependency(str(path))
            read, exercises = minutes(path)
            items += [f"- [**{name[:2]}** {title}](../notebooks/{name}.ipynb)", "", f"  {about}", ""]
            items += [f"  *{read} min, exercises {exercises} min*", ""]
        classes = ["chapters", f"chapters-{self.options.get('family', 'none')}"]
        return [nodes.container("", *self.parse_text_to_nodes("\n".join(items)), classes=classes)]


class CourseTime(SphinxDirective):
    """A sentence with the hours of all chapters together."""

    def run(self):
        paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
        for path in paths:
            self.env.note_dependency(str(path))
        read, exercises = (sum(times) for times in zip(*map(minutes, paths), strict=True))
        return self.parse_text_to_nodes(
            f"{len(paths)} chapters: {hours(read)} to read and run, {hours(exercises)} of exercises, "
            "by the authors' estimate."
        )


class Diagnosis(SphinxDirective):
    """Code that defines an answer and checks it in its last line, and what a notebook shows of it."""

    has_content = True

    def run(self):
        for path in (ROOT / "attncourse" / "checks").glob("*.py"):
            self.env.note_dependency(str(path))
        source, names = "\n".join(self.content), {}
        *definitions, last = ast.parse(source).body
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(ast.Module(definitions, []), "diagnosis", "exec"), names)
            report = eval(compile(ast.Expression(last.value), "diagnosis", "eval"), names)
        if "known mistake" not in str(report):
            raise self.error(f"the check names no known mistake; it says:\n{report}")
        code = nodes.literal_block(source, source, language="python")
        return [code, nodes.raw("", f'<div class="diagnosis">{report._repr_html_()}</div>', format="html")]


def setup(app):
    app.add_directive("chapters", Chapters)
    app.add_directive("course-time", CourseTime)
    app.add_directive("diagnosis", Diagnosis)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
