"""The map of attention and its timeline, made of `attncourse/data/map.json` and `timeline.json`."""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from attncourse.show import attention_map, timeline

DATA = Path(__file__).parents[2] / "attncourse" / "data"
MAP, TIMELINE = DATA / "map.json", DATA / "timeline.json"


class shown(nodes.General, nodes.Element):
    """An output of `show`, written when its page is: the addresses in it depend on the page and on the builder."""


class Shown(SphinxDirective):
    """Reads the records again whenever they change."""

    def run(self):
        for path in (MAP, TIMELINE):
            self.env.note_dependency(str(path))
        return [shown("", what=self.name, options=dict(self.options))]


class AttentionMap(Shown):
    """The map. With `open`, its list is open too."""

    option_spec = {"open": directives.flag}  # noqa: RUF012


def outputs(what, options, link):
    """The HTML of a directive."""
    entries = json.loads(TIMELINE.read_text("utf-8"))
    if what == "timeline":
        return timeline(entries, link=link).html
    return attention_map(json.loads(MAP.read_text("utf-8")), entries, link=link, open_list="open" in options).html


def visit(translator, node):
    """Write it, with links to those pages that the book has."""
    builder = translator.builder

    def link(page, anchor):
        if page not in builder.env.all_docs:
            return None
        address = builder.get_relative_uri(builder.current_docname, page)
        name = anchor_of(builder.env.metadata.get(page, {}).get("myst_slugs", {}), anchor)
        return f"{address}#{name}" if name else address

    translator.body.append(outputs(node["what"], node["options"], link))
    raise nodes.SkipNode


def anchor_of(slugs, wanted):
    """The id of a heading by its slug or, for `13`, that of the heading which begins so; empty where there is none."""
    found = [slug for slug in slugs if wanted and (slug == wanted or slug.startswith(f"{wanted}-"))]
    return slugs[found[0]][1] if found else ""


def skip(translator, node):
    raise nodes.SkipNode


def setup(app):
    others = {builder: (skip, None) for builder in ("latex", "text", "man", "texinfo")}
    app.add_node(shown, html=(visit, None), **others)
    app.add_directive("attention-map", AttentionMap)
    app.add_directive("timeline", Shown)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
