"""The course as data: its version in each page's footer, schema.org metadata on the first page, dates of the checks."""

import json
import re
import tomllib
from pathlib import Path

import yaml
from attncourse_cards import cards
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from attncourse.show import questions

ROOT = Path(__file__).parents[2]
DATA = ROOT / "attncourse" / "data"
LICENCES = ["https://creativecommons.org/licenses/by/4.0/", "https://spdx.org/licenses/MIT.html"]
VERIFIED = (  # what, the records with their dates, the command that makes them
    ("Mechanisms against other implementations", "attncourse/data/oracles.json", "make oracles"),
    ("Theorems of the map", "attncourse/data/map.json", "make map"),
    ("Whether the tests notice changes", "tests/mutation/results.json", "make mutation"),
    ("Experiments and measurements", "attncourse/data/lab/*.json", "make lab, make bench"),
)


def project() -> dict:
    """The table `project` of pyproject.toml: name, version, description."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def iso_duration(minutes: int) -> str:
    """ISO 8601, as schema.org asks: 90 is "PT1H30M"."""
    hours, rest = divmod(minutes, 60)
    return "PT" + f"{hours}H" * bool(hours) + f"{rest}M" * (rest > 0 or not hours)


def plain(text: str) -> str:
    """Markdown of a card as text: a link by its words, an objective without the exercise in brackets."""
    text = re.sub(r" \((?:section|under|\[exercise)[^()]*(?:\([^()]*\)[^()]*)*\)(?=[.;]?$)", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*`$]", "", text).rstrip(".;")


def course(address: str = "") -> dict:
    """schema.org's description of the course. address: where it is published, if that is known."""
    about, chapters = project(), list(cards().values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    hours = iso_duration(sum(card.reading + card.doing for card in chapters))
    authors = {"@type": "Organization", "name": citation["authors"][0]["name"]}
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
            **({"url": f"{address.rstrip('/')}/notebooks/{card.notebook}.html"} if address else {}),
            **common,
        }
        for card in chapters
    ]
    return {
        "@context": "https://schema.org",
        "@type": ["Course", "LearningResource"],
        "name": citation["title"],
        "description": about["description"],
        "version": about["version"],
        **({"url": address} if address else {}),
        **common,
        "author": authors,
        "provider": authors,
        "keywords": citation["keywords"],
        "learningResourceType": ["executable book", "exercise", "lesson plan"],
        "educationalLevel": "advanced",
        "audience": {"@type": "EducationalAudience", "educationalRole": ["student", "teacher", "professional"]},
        "coursePrerequisites": plain(chapters[0].you_need),
        "teaches": [card.title for card in chapters[1:]],
        "timeRequired": hours,
        "hasCourseInstance": {"@type": "CourseInstance", "courseMode": "online", "courseWorkload": hours},
        "hasPart": parts,
    }


def verified() -> str:
    """A table of when each kind of result was last computed: the dates stand in the committed records."""
    lines = ["| what | last verified | again with |", "| --- | --- | --- |"]
    for what, pattern, command in VERIFIED:
        found = [re.findall(r'"date": "(\d{4}-\d\d-\d\d)"', path.read_text("utf-8")) for path in ROOT.glob(pattern)]
        dates = sorted(date for dates in found for date in dates)
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines.append(f"| {what} | {span} | `{'`, `'.join(command.split(', '))}` |")
    return "\n".join(lines)


class Verified(SphinxDirective):
    def run(self):
        for _, pattern, _ in VERIFIED:
            for path in ROOT.glob(pattern):
                self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(verified())


class Questions(SphinxDirective):
    """The questions of `attncourse/data/questions/NAME.json`, as a chapter shows them."""

    required_arguments = 1

    def run(self):
        self.env.note_dependency(str(DATA / "questions" / f"{self.arguments[0]}.json"))
        return [nodes.raw("", questions(self.arguments[0]).html, format="html")]


def state_version(app, config):
    """A new version makes every page anew."""
    config.version = config.release = project()["version"]


def describe(app, pagename, templatename, context, doctree):
    """The version below each page, and the metadata in the head of the first."""
    version = f"Version {project()['version']}"
    if "book/changelog" in app.env.all_docs:
        version = f'<a href="{context["pathto"]("book/changelog")}">{version}</a>'
    context["theme_extra_footer"] = f"{context.get('theme_extra_footer', '')} {version}."
    if pagename == app.config.root_doc:
        text = json.dumps(course(app.config.html_baseurl), ensure_ascii=False).replace("<", "\\u003c")
        context["metatags"] += f'<script type="application/ld+json">{text}</script>'


def setup(app):
    app.add_directive("last-verified", Verified)
    app.add_directive("questions", Questions)
    app.connect("config-inited", state_version)
    app.connect("html-page-context", describe)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
