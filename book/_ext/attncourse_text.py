"""What text gets on its way from a notebook into the book: a chapter's number, and punctuation that keeps its place."""

import re

from docutils import nodes

CHAPTER = re.compile(r"(?:notebooks|exercises|solutions)/(\d\d)_")
JOINER = "\u2060"  # no line is broken there


def numbered(title: str, number: str) -> str:
    """ "13 Grouped-query attention", and "Exercises 13: grouped-query attention"."""
    kind, colon, rest = title.partition(":")
    return f"{kind} {number}:{rest}" if colon and kind in ("Exercises", "Solutions") else f"{number} {title}"


def number(app, doctree):
    """Put a chapter's number into the title of its pages, which says it in the sidebar only."""
    chapter, title = CHAPTER.match(app.env.docname), doctree.next_node(nodes.title)
    if chapter and title is not None:
        text = title.next_node(nodes.Text)
        text.parent.replace(text, nodes.Text(numbered(text, chapter[1])))


def join(doctree):
    """Let no line begin with the full stop or comma that follows a formula."""
    for formula in list(doctree.findall(nodes.math)):
        after = formula.next_node(descend=False, siblings=True)
        if isinstance(after, nodes.Text) and re.match(r"[.,;:!?)]", after):
            formula.parent.replace(after, nodes.Text(JOINER + after))


def setup(app):
    app.connect("doctree-read", number, priority=100)  # before Sphinx collects the titles
    app.connect("doctree-resolved", lambda app, doctree, docname: join(doctree))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
