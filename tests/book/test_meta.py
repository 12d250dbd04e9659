"""What pages say to other programs, with the site's address and without."""

import html
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from tests.book.extensions import load

META = load("attncourse_meta")
SITE = "https://owner.github.io/name/"


def tags(site, page="book/map"):
    text = META.page_tags(site, page, "Map & more", "What &quot;it&quot; is")
    return {
        name: html.unescape(value) for name, value in re.findall(r'property="og:(\S+)" content="([^"]*)"', text)
    }, text


def test_without_an_address_nothing_points_to_one():
    found, text = tags("")
    assert found["image"] == "../_static/card.png" and found["title"] == "Map & more"
    assert found["description"] == 'What "it" is' and found["type"] == "article"
    assert "http" not in text and "canonical" not in text and "url" not in found


def test_with_an_address_all_is_absolute():
    found, text = tags(SITE, "search")
    assert found["image"] == f"{SITE}_static/card.png" and found["url"] == f"{SITE}search.html"
    assert f'<link rel="canonical" href="{SITE}search.html" />' in text


@pytest.mark.parametrize("given", [SITE, SITE.rstrip("/"), f" {SITE} "])
def test_the_address_ends_with_a_slash(monkeypatch, given):
    monkeypatch.setenv("ATTNCOURSE_ADDRESS", given)
    assert META.address() == SITE


@pytest.mark.parametrize("given", ["owner.github.io", "https://a/?b", 'https://a"b', "javascript:x"])
def test_what_is_no_address_is_refused(monkeypatch, given):
    monkeypatch.setenv("ATTNCOURSE_ADDRESS", given)
    with pytest.raises(ValueError, match="is not an address such as"):
        META.address()


def test_the_files_come_and_go_with_the_address(monkeypatch, tmp_path):
    (tmp_path / "_static").mkdir()
    docs = {"book/map", "book/intro"}
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"), env=SimpleNamespace(found_docs=docs))
    monkeypatch.setenv("ATTNCOURSE_ADDRESS", SITE)
    META.write(app, None)
    places = [node.text for node in ElementTree.parse(tmp_path / "sitemap.xml").iter() if node.tag.endswith("loc")]
    assert places == [f"{SITE}book/intro.html", f"{SITE}book/map.html"]
    assert f"Sitemap: {SITE}sitemap.xml" in (tmp_path / "robots.txt").read_text()
    monkeypatch.delenv("ATTNCOURSE_ADDRESS")
    META.write(app, None)
    assert not (tmp_path / "sitemap.xml").exists() and not (tmp_path / "robots.txt").exists()
    picture = imread(tmp_path / META.PICTURE)
    assert picture.shape[:2] == (630, 1200)
    assert picture[..., :3].std() > 0.1, "the picture is empty"
