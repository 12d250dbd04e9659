"""What the book generates: the matrix of checks, questions, and the bibliography's style and anchors."""

import json
import re
from collections import Counter
from pathlib import Path

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting import BaseSortingStyle
from sphinx.util.docutils import SphinxDirective

from attncourse.show import questions

ROOT = Path(__file__).parents[2]
MATRIX = ROOT / "attncourse" / "data" / "checks_matrix.json"


class ChecksMatrix(SphinxDirective):
    """The results in `attncourse/data/checks_matrix.json`: a table of all exercises, then one for each."""

    def run(self):
        self.env.note_dependency(str(MATRIX))
        if not MATRIX.exists():
            return self.parse_text_to_nodes("The results are not there yet: `make matrix` writes them.")
        return self.parse_text_to_nodes(matrix_markdown(json.loads(MATRIX.read_text())), allow_section_headings=True)


def matrix_markdown(matrix):
    """Markdown for the page of checks: totals, one row for each exercise, then every misconception."""
    exercises = [exercise for exercise in matrix["exercises"] if "reverse" not in exercise]
    known = [misconception for exercise in exercises for misconception in exercise["misconceptions"]]
    rows = [
        "## Results",
        "",
        f"{len(known)} misconceptions in {len(exercises)} {'exercise' if len(exercises) == 1 else 'exercises'}: "
        f"{count(known, 'caught')} caught, {count(known, 'named')} named first.",
        "",
        "| exercise | misconceptions caught | named first | pairs caught | pairs named | mutants caught | rewritings |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for exercise in exercises:
        pairs, mutants, rewritings = exercise["pairs"], exercise["mechanical"], exercise["rewritings"]
        explained = f", {mutants['explained']} equivalent" if mutants["explained"] else ""
        cells = [
            f"[{exercise['title']}](#{slug(exercise['title'])})",
            count(exercise["misconceptions"], "caught"),
            count(exercise["misconceptions"], "named"),
            f"{pairs['caught']} of {pairs['total']}",
            f"{pairs['named']} of {pairs['total']}",
            f"{mutants['killed']} of {mutants['total']}{explained}",
            f"{rewritings['passed']} of {rewritings['total']}",
        ]
        rows.append(row(cells))
    rows += tests_markdown([exercise for exercise in matrix["exercises"] if "reverse" in exercise])
    for exercise in exercises:
        rows += ["", f"## {exercise['title']}", "", f"`{exercise['id']}`", ""]
        rows += ["| misconception | caught | named first |", "| --- | --- | --- |"]
        for known in exercise["misconceptions"]:
            rows.append(row([known.get("title", known["name"]), yes(known["caught"]), yes(known["named"])]))
    return "\n".join(rows)


def tests_markdown(exercises):
    """A table of the exercises in which the learner writes the test."""
    rows = ["", "Where the learner writes a test, good tests pass, and lax or too strict ones are told why not.", ""]
    rows += ["| exercise | right and wrong ones | good tests pass | lax told | strict told |", "| --- " * 5 + "|"]
    for exercise in exercises:
        n = exercise["reverse"]
        told = [f"{n[kind]['told']} of {n[kind]['total']}" for kind in ("good_tests", "lax_tests", "strict_tests")]
        rows.append(row([f"{exercise['title']} (`{exercise['id']}`)", f"{n['right']} and {n['wrong']}", *told]))
    return rows if exercises else []


def count(items, key):
    """ "5 of 6" of the items have the key set."""
    return f"{sum(bool(item[key]) for item in items)} of {len(items)}"


def yes(value):
    """A word and no colour: it has to read in a table, aloud and in print."""
    return "yes" if value else "**no**"


def row(cells):
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def slug(title):
    """The anchor that MyST gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


class Questions(SphinxDirective):
    """The questions of `attncourse/data/questions/NAME.json`, as a chapter shows them."""

    required_arguments = 1

    def run(self):
        self.env.note_dependency(str(ROOT / "attncourse" / "data" / "questions" / f"{self.arguments[0]}.json"))
        return [nodes.raw("", questions(self.arguments[0]).html, format="html")]


class AuthorYear(BaseLabelStyle):
    """Labels that say who and when: "Cho et al. 2014", and "Cho et al. 2014b" for the next one of that year."""

    def format_labels(self, entries):
        seen = Counter()
        for entry in entries:
            names = [" ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]]
            label = (f"{names[0]} et al." if len(names) > 2 else " and ".join(names)) + f" {entry.fields['year']}"
            yield label + " bcdefgh"[seen[label]].strip()
            seen[label] += 1


class ByYear(BaseSortingStyle):
    """Oldest first; within a year, by the number of the preprint, where there is one."""

    def sorting_key(self, entry):
        return entry.fields["year"], entry.fields.get("eprint", "")


class CourseStyle(Style):
    """The bibliography: plain entries, labelled by author and year, in the order of publication."""

    default_label_style = AuthorYear
    default_sorting_style = ByYear


def anchor_bibliography(app, doctree):
    """Let `../book/bibliography.md#key` work in a notebook: MyST resolves headings only, and warns of others."""
    if app.env.docname == "book/bibliography":
        keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
        app.env.metadata[app.env.docname].setdefault("myst_slugs", {}).update({key: (0, key, key) for key in keys})


def setup(app):
    register_plugin("pybtex.style.formatting", "course", CourseStyle)
    app.add_directive("checks-matrix", ChecksMatrix)
    app.add_directive("questions", Questions)
    app.connect("doctree-read", anchor_bibliography)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
