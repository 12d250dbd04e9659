"""The landing page: cards of chapters with their minutes, how long the course takes, and a check that answers."""

import ast
import contextlib
import io

from attncourse_cards import ROOT, FromCards, cards
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


def hours(total):
    """ "14½ hours" for 862 minutes: to the half hour."""
    halves = round(total / 30)
    return f"{halves // 2 or ''}{'½' * (halves % 2)} hour{'' if halves <= 2 else 's'}"


class Chapters(FromCards):
    """Cards of chapters, a `number | title | what it is about` each. family: whose colour of the map they have."""

    has_content = True
    option_spec = {"family": directives.unchanged}  # noqa: RUF012

    def run(self):
        classes = ["chapters", f"chapters-{self.options.get('family', 'none')}"]
        return [nodes.container("", *super().run(), classes=classes)]

    def markdown(self, up):
        return "\n".join(item for line in self.content for item in chapter(line, up))


def chapter(line, up):
    """The item of one chapter. Raises ValueError where there is no chapter of that number."""
    number, title, about = (part.strip() for part in line.split(" | ", 2))
    if number not in cards():
        raise ValueError(f"{number!r} is no chapter of {', '.join(cards())}")
    card = cards()[number]
    yield from [f"- [**{number}** {title}]({up}notebooks/{card.notebook}.ipynb)", "", f"  {about}", ""]
    yield from [f"  *{card.reading} min, exercises {card.doing} min*", ""]


class CourseTime(FromCards):
    """A sentence with the hours of all chapters together."""

    def markdown(self, up):
        read, do = (
            sum(column) for column in zip(*((card.reading, card.doing) for card in cards().values()), strict=True)
        )
        return (
            f"{len(cards())} chapters: {hours(read)} to read and run, {hours(do)} of exercises, "
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
