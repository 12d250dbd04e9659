"""Titles get their chapter's number, and punctuation stays with its formula."""

from types import SimpleNamespace

import pytest
from docutils import nodes

from tests.book.extensions import load

TEXT = load("attncourse_text")


def titled(docname, title):
    document = nodes.section("", nodes.title("", title, nodes.emphasis(text="x")))
    TEXT.number(SimpleNamespace(env=SimpleNamespace(docname=docname)), document)
    return document.astext()


@pytest.mark.parametrize(
    ("docname", "title", "expected"),
    [
        ("notebooks/13_gqa", "Grouped-query attention ", "13 Grouped-query attention x"),
        ("notebooks/17_bugs", "Bugs: a museum ", "17 Bugs: a museum x"),
        ("exercises/13_gqa", "Exercises: grouped-query ", "Exercises 13: grouped-query x"),
        ("solutions/02_luong", "Solutions: scores ", "Solutions 02: scores x"),
        ("book/map", "The map ", "The map x"),
    ],
)
def test_a_chapters_number_stands_in_its_title(docname, title, expected):
    assert titled(docname, nodes.Text(title)).replace("\n", "") == expected


def test_no_line_begins_with_the_full_stop_behind_a_formula():
    paragraph = nodes.paragraph("", "", nodes.math(text="T"), nodes.Text(". Then "), nodes.math(text="S"))
    paragraph += [nodes.Text(" and "), nodes.emphasis(text="so"), nodes.Text(".")]
    TEXT.join(paragraph)
    assert [str(text) for text in paragraph.findall(nodes.Text)] == ["T", "\u2060. Then ", "S", " and ", "so", "."]
