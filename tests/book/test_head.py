"""What pages say to other programs, without an address, and the picture that goes with it."""

import html
import re

from docutils import nodes
from matplotlib.image import imread

from tests.book.extensions import load

HEAD, PICTURE = load("attncourse_head"), load("attncourse_picture")


def tags(page, description="What <it> is"):
    text = HEAD.open_graph(page, "Map & more", description)
    return {
        name: html.unescape(value) for name, value in re.findall(r'property="og:(\S+)" content="([^"]*)"', text)
    }, text


def test_a_page_says_what_it_is_and_points_to_no_address():
    found, text = tags("book/map")
    assert found["image"] == "../_static/card.png" and found["title"] == "Map & more"
    assert found["description"] == "What <it> is" and found["type"] == "article"
    assert "http" not in text and "url" not in found
    assert tags("search")[0]["image"] == "_static/card.png" and tags("book/intro")[0]["type"] == "website"
    assert "description" not in tags("search", "")[0]


def described(text):
    return HEAD.described(nodes.section("", nodes.paragraph(text=text)))


def test_the_description_is_the_first_paragraph_that_says_something():
    page = nodes.section(
        "", *(nodes.paragraph(text=text) for text in ("Short.", "a  long\nline " * 20, "Later. " * 20))
    )
    found = HEAD.described(page)
    assert found.startswith("a long line a long line ") and found.endswith(" …") and 140 < len(found) <= 160
    clauses = "In one sentence. " + "It has a cost, " * 4 + "and another: " + "a long one " * 20
    assert described(clauses).startswith("It has") and described(clauses).endswith("and another …")
    assert described("Half of it. " * 7 + "word " * 40) == ("Half of it. " * 7).strip()
    assert described("A paragraph before a block of code ends in a colon, as this one does:").endswith("does.")
    assert HEAD.described(nodes.section("", nodes.paragraph(text="Short."))) == HEAD.described(None) == ""


def test_the_picture_is_one(tmp_path):
    path = tmp_path / "card.png"
    PICTURE.draw(path)
    picture = imread(path)
    assert picture.shape[:2] == (630, 1200)
    assert picture[..., :3].std() > 0.1, "the picture is empty"
