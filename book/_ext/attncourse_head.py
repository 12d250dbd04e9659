"""What a page says of itself to other programs: a description, Open Graph, and schema.org on the first page.

The book knows no address: its own pages and its picture have relative ones here, and scripts/stamp.py makes them
absolute in a published copy.
"""

import json
import re
from html import escape, unescape
from pathlib import Path
from textwrap import shorten

import yaml
from attncourse_cards import cards
from attncourse_picture import ALT, PICTURE
from attncourse_text import JOINER
from docutils import nodes

from attncourse import __version__

ROOT = Path(__file__).parents[2]
LICENCES = ["https://creativecommons.org/licenses/by/4.0/", "https://spdx.org/licenses/MIT.html"]

INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>attncourse</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url=book/intro.html">
{shared}
</head>
<body><main><h1>attncourse</h1><p><a href="book/intro.html">Open the course</a></p></main></body></html>
"""


def described(doctree) -> str:
    """The first paragraph that says something: its sentences that fit into 160 characters, else its first clauses.

    The theme computes a description and does not use it.
    """
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    texts = (" ".join(node.astext().replace(JOINER, "").split()) for node in paragraphs)
    text = next((text for text in texts if len(text) > 60), "").removeprefix("In one sentence. ")
    if len(text) <= 160:
        return re.sub(":$", ".", text)
    sentences = [found.end() for found in re.finditer(r"[.?!](?= )", text[:161])]
    if sentences and sentences[-1] >= 50:
        return text[: sentences[-1]]
    clauses = [found.start() for found in re.finditer(r"[,;:](?= )", text[:159])]
    return text[: clauses[-1]] + " …" if clauses and clauses[-1] >= 50 else shorten(text, 160, placeholder=" …")


def open_graph(page: str, title: str, description: str) -> str:
    """Open Graph's tags for one page, book/map."""
    tags = {"og:type": "website" if page == "book/intro" else "article", "og:site_name": "attncourse"}
    tags |= {"og:title": title, "og:image": "../" * page.count("/") + PICTURE, "og:image:width": 1200}
    tags |= {"og:image:height": 630, "og:image:alt": ALT, "og:locale": "en"}
    tags |= {"og:description": description} if description else {}
    lines = [f'<meta property="{name}" content="{escape(str(content))}" />' for name, content in tags.items()]
    return "\n".join([*lines, '<meta name="twitter:card" content="summary_large_image" />'])


def iso_duration(minutes: int) -> str:
    """ISO 8601, as schema.org asks: 90 is "PT1H30M"."""
    hours, rest = divmod(minutes, 60)
    return "PT" + f"{hours}H" * bool(hours) + f"{rest}M" * (rest > 0 or not hours)


def plain(text: str) -> str:
    """Markdown of a card as text: a link by its words, an objective without the exercise in brackets."""
    text = re.sub(r" \((?:section|under|\[exercise)[^()]*(?:\([^()]*\)[^()]*)*\)(?=[.;]?$)", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*`$]", "", text).rstrip(".;")


def course() -> dict:
    """schema.org's description of the course, for the first page."""
    chapters = list(cards().values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    hours = iso_duration(sum(card.reading + card.doing for card in chapters))
    authors = {"@type": "Organization", "name": citation["authors"][0]["name"]}
    first = (ROOT / "book" / "intro.md").read_text("utf-8")
    abilities = [plain(text) for text in re.findall(r"^- (\*\*\w+\*\* .+)$", first, re.MULTILINE)]
    common = {"inLanguage": "en", "isAccessibleForFree": True, "license": LICENCES}
    parts = [
        {
            "@type": "LearningResource",
            "name": card.title,
            "position": int(card.number),
            "description": plain(card.idea),
            "competencyRequired": plain(card.you_need),
            "teaches": [plain(text) for text in card.objectives],
            "timeRequired": iso_duration(card.reading + card.doing),
            "url": f"../notebooks/{card.notebook}.html",
            **common,
        }
        for card in chapters
    ]
    return {
        "@context": "https://schema.org",
        "@type": ["Course", "LearningResource"],
        "name": citation["title"],
        "description": citation["abstract"].strip(),
        "version": __version__,
        "url": "intro.html",
        **common,
        "author": authors,
        "provider": authors,
        "keywords": citation["keywords"],
        "learningResourceType": ["executable book", "exercise", "lesson plan"],
        "educationalLevel": "intermediate",
        "audience": {"@type": "EducationalAudience", "educationalRole": ["student", "teacher", "professional"]},
        "coursePrerequisites": plain(chapters[0].you_need),
        "teaches": abilities,
        "timeRequired": hours,
        "hasCourseInstance": {"@type": "CourseInstance", "courseMode": "online", "courseWorkload": hours},
        "hasPart": parts,
    }


def add(app, page, templatename, context, doctree):
    """Put all of it into the head of a page."""
    description = described(doctree)
    title = unescape(re.sub(r"<[^>]+>", "", context.get("title", ""))) or page.title()
    first = page == app.config.root_doc
    found = [f'<meta name="description" content="{escape(description)}" />'] if description else []
    found.append(open_graph(page, f"{app.config.html_title}: {title}" if first else title, description))
    if first:
        text = json.dumps(course(), ensure_ascii=False).replace("<", "\\u003c")
        found.append(f'<script type="application/ld+json">{text}</script>')
    context["metatags"] = context.get("metatags", "") + "\n".join(found)


def first_page(landing):
    """The page at the site's root, from the HTML of the landing page.

    Programs that show a shared link do not follow it there, so it says of itself what the landing page says.
    """
    tags = re.findall(r'<meta (?:name="(?:description|twitter:card)"|property="og:[\w:]+") content="[^"]*" />', landing)
    return INDEX.format(shared="\n".join(tags).replace('"../', '"'))


def lead(app, exception):
    """Replace Jupyter Book's redirect to the landing page, which has no language, title or link."""
    landing = Path(app.outdir, "book", "intro.html").read_text("utf-8") if exception is None else ""
    Path(app.outdir, "index.html").write_text(first_page(landing), "utf-8")


def setup(app):
    app.connect("html-page-context", add)
    app.connect("build-finished", lead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
