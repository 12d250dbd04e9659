"""A fork's address: what is one, what follows from it, and where it goes in a page and a notebook."""

import json
import os
import re
import shutil
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat import v4

import attncourse
from scripts import publish as publishing
from scripts.build_book import DERIVED, fingerprint
from scripts.stamp import (
    GPU,
    Address,
    address,
    anchors,
    not_found,
    stamp_downloads,
    stamp_first,
    stamp_notebook,
    stamp_page,
)

PAGE = """<html><head><title>Masks &amp; queries &#8212; attncourse</title>{head}</head>
<body><h1>For print</h1><article class="bd-article"><section><h1>Masks</h1><p id="the-idea">x</p>
<h2 id="in-bahdanau-s-order">y</h2></section></article></body></html>"""
FORK = address("Some-One/attention.course")
WHEEL = "attncourse-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("repository", "site", "expected"),
    [
        ("Some-One/attention", "", "https://some-one.github.io/attention/"),
        ("Some-One/Attention_2.0", "", "https://some-one.github.io/Attention_2.0/"),
        ("Some-One/some-one.github.io", "", "https://some-one.github.io/"),
        ("Some-One/Some-One.github.io", "", "https://some-one.github.io/"),
        ("old--name-/attention", "", "https://old--name-.github.io/attention/"),
        ("you_corp/attention", "https://bold-one.pages.github.io", "https://bold-one.pages.github.io/"),
        ("someone/attention", "https://course.example.org", "https://course.example.org/"),
        ("", "https://example.org:8443/~me/course", "https://example.org:8443/~me/course/"),
        ("", "", ""),
    ],
)
def test_the_site_follows_from_the_repository_unless_it_is_given(repository, site, expected):
    assert address(repository, site) == Address(repository, expected)


@pytest.mark.parametrize(
    "repository",
    [
        "attention",
        "a/b/c",
        "-a/b",
        "_a/b",
        "a/",
        "/b",
        "a/..",
        "a/b.git",
        "a b/c",
        'a/b"',
        "a/é",
        "a/b\n",
        "o" * 40 + "/c",
    ],
)
def test_what_is_no_repository_is_refused_by_name(repository):
    with pytest.raises(ValueError, match=r"^repository=.* is not owner/name"):
        address(repository)


@pytest.mark.parametrize(
    "site", ["example.org", "https://", "ftp://example.org/", "https://e.org/?a=b", "https://e.org/#a", 'https://e.org/"',
             "https://me:secret@e.org/", "https://e.org/a b", "https://é.org/"]
)  # fmt: skip
def test_what_is_no_site_is_refused_by_name(site):
    with pytest.raises(ValueError, match=r"^site=.* is no plain https address"):
        address("a/b", site)


@pytest.mark.parametrize(
    ("site", "why"),
    [
        ("https://x.org/index.html", "is a page: give the folder"),
        ("https://a..b/", r"has 'a\.\.b' as its host"),
        ("https://-/", "has '-' as its host"),
        ("https://-a.example.org/", r"has '-a\.example\.org' as its host"),
        ("https://localhost:8000/../x", r"has \. or \.\. in its path"),
    ],
)
def test_a_site_at_which_nothing_can_lie_is_refused_and_why(site, why):
    with pytest.raises(ValueError, match=rf"^site='{site}' {why}"):
        address("a/b", site)


def test_a_site_without_https_is_refused_and_why():
    with pytest.raises(ValueError, match="Colab installs the package from it: enforce HTTPS"):
        address("a/b", "http://example.org/")


def test_a_notebooks_page_opens_in_colab_and_reports_errors():
    html = stamp_page(PAGE.format(head=""), "notebooks/05_causal.html", FORK, is_notebook=True)
    colab = "https://colab.research.google.com/github/Some-One/attention.course/blob/colab/notebooks/05_causal.ipynb"
    article = html[html.index("<article") :]
    assert f'</h1>\n<p class="course-launch d-print-none"><a href="{colab}">Open in Colab</a></p>' in article
    assert html.count(colab) == 1
    report = html[html.index('href="https://github.com/') + 6 :].partition('"')[0].replace("&amp;", "&")
    sources = '<a href="https://github.com/Some-One/attention.course">Source of this copy on GitHub</a>'
    assert article.count(f"Report an error on this page</a> · {sources}</p>\n</article>") == 1
    assert urlsplit(report).path == "/Some-One/attention.course/issues/new"
    page = "https://some-one.github.io/attention.course/notebooks/05_causal.html"
    assert parse_qs(urlsplit(report).query) == {
        "template": ["error.yml"],
        "title": ["Error: Masks & queries"],
        "page": [page],
    }
    assert f'<link rel="canonical" href="{page}" />' in html


def test_a_page_has_only_the_links_that_lead_somewhere():
    plain = PAGE.format(head="")
    stamped = {
        "prose": stamp_page(plain, "book/map.html", FORK, is_notebook=False),
        "no issues": stamp_page(plain, "a/b.html", address("a/b", issues=False), is_notebook=True),
        "no GitHub": stamp_page(plain, "a/b.html", address(site="https://e.org"), is_notebook=True),
    }
    texts = ("Open in Colab", "Report an error", "Source of this copy")
    found = {name: tuple(text in html for text in texts) for name, html in stamped.items()}
    expected = {"prose": (False, True, True), "no issues": (True, False, True), "no GitHub": (False, False, False)}
    assert found == expected
    assert stamp_page(plain, "a/b.html", Address(), is_notebook=True) == plain


def test_addresses_in_the_head_become_absolute_and_others_stay():
    head = '<meta property="og:image" content="../_static/card.png" /><meta property="og:title" content="a/b" />'
    head += '<script type="application/ld+json">{"url": "map.html", "hasPart": [{"url": "../a/b.html"}]}</script>'
    plain = PAGE.format(head=head).replace("<p ", '<p title="&quot;url&quot;: &quot;x&quot;"> "url": "x"</p><p ')
    html = stamp_page(plain, "book/map.html", FORK, is_notebook=False)
    root = "https://some-one.github.io/attention.course"
    assert f'content="{root}/_static/card.png"' in html and 'content="a/b"' in html
    assert f'{{"url": "{root}/book/map.html", "hasPart": [{{"url": "{root}/a/b.html"}}]}}' in html
    assert f'<meta property="og:url" content="{root}/book/map.html" />' in html and '"url": "x"' in html


def test_the_first_page_is_shared_as_the_landing_page():
    plain = '<html><head><meta property="og:image" content="_static/card.png" /></head><body></body></html>'
    html, root = stamp_first(plain, FORK), "https://some-one.github.io/attention.course"
    assert f'<meta property="og:image" content="{root}/_static/card.png" />' in html
    assert f'<link rel="canonical" href="{root}/book/intro.html" />' in html and stamp_first(plain, Address()) == plain


@pytest.mark.parametrize(
    ("to", "root"), [(FORK, "/attention.course/"), (address(site="https://e.org"), "/")], ids=["project", "domain"]
)
def test_a_page_that_is_not_there_leads_to_the_first_and_to_the_search(to, root):
    """It is shown at addresses of any depth: no link of it may be relative to them."""
    html = not_found(to)
    assert re.findall(r'<li><a href="([^"]+)"', html) == [f"{root}book/intro.html", f"{root}search.html"]
    assert all(target.startswith(root) for target in re.findall(r'(?:href|src)="([^"]+)"', html))


def test_downloads_are_linked_where_a_page_has_room_for_them():
    room = '<div class="downloads docutils">\n<p>Both can be printed.</p></div>'
    files = {"attncourse.pdf": "the book", "slides/index.html": "slides"}
    html = stamp_downloads(f"<h1>x</h1>{room}", "book/teaching/syllabus.html", files)
    links = '<a href="../../attncourse.pdf">the book</a> and <a href="../../slides/index.html">slides</a>'
    assert html.endswith(f"<p>Both can be printed.</p><p>In this copy: {links}.</p>\n</div>")
    assert stamp_downloads("<h1>x</h1>", "book/map.html", files) == "<h1>x</h1>"
    assert stamp_downloads(room, "book/map.html", {}) == room


def test_what_is_no_page_of_the_book_is_refused():
    with pytest.raises(ValueError, match=r"a/b\.html has no title, heading or article"):
        stamp_page("<title>x</title><article></article>", "a/b.html", FORK, is_notebook=False)


@pytest.fixture
def site(tmp_path):
    """A book of two pages."""
    for name in ("notebooks/05_causal.html", "book/map.html"):
        (tmp_path / "html" / name).parent.mkdir(parents=True)
        (tmp_path / "html" / name).write_text(PAGE.format(head=""))
    (tmp_path / "html" / "_sources" / "book").mkdir(parents=True)
    (tmp_path / "html" / "_sources" / "book" / "map.md").write_text("# Masks")
    (tmp_path / "html" / "index.html").write_text("<a href='book/map.html'>Open</a>")
    return tmp_path / "html"


def stamped(site, to, *lines):
    """The Markdown of a stamped notebook, and the notebook."""
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("\n".join(lines)), v4.new_code_cell("x", id="x")])
    stamp_notebook(notebook, "notebooks/05_causal.ipynb", WHEEL, to, anchors(site))
    return notebook.cells[0].source.split("\n"), notebook


LINKS = [
    "[a](05_causal.ipynb), [b](../book/map.md)",
    "[c](#the-idea) [d](05_causal.ipynb#5-in-bahdanaus-order)",
    "[e](../book/map.md#the-idea) and [f](https://example.org/a.md), `g[0](x)`",
]


def test_links_of_a_notebook_lead_to_colab_and_to_places_of_the_site(site):
    lines, _ = stamped(site, FORK, *LINKS)
    colab = "https://colab.research.google.com/github/Some-One/attention.course/blob/colab/notebooks/05_causal.ipynb"
    pages = "https://some-one.github.io/attention.course"
    chapter = f"{pages}/notebooks/05_causal.html"
    assert lines == [
        f"[a]({colab}), [b]({pages}/book/map.html)",
        f"[c]({chapter}#the-idea) [d]({chapter}#in-bahdanau-s-order)",
        f"[e]({pages}/book/map.html#the-idea) and [f](https://example.org/a.md), `g[0](x)`",
    ]


def test_without_github_they_all_lead_to_the_site(site):
    lines, _ = stamped(site, address(site="https://e.org/course"), "[a](05_causal.ipynb)")
    assert lines == ["[a](https://e.org/course/notebooks/05_causal.html)"]


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("[a](#no-such-place)", r"links to #no-such-place, and notebooks/05_causal\.html has no such place"),
        ("[a](../book/gone.md)", r"links to book/gone\.html, which the site has not"),
    ],
)
def test_a_link_to_nowhere_is_not_published(site, link, message):
    with pytest.raises(ValueError, match=message):
        stamped(site, FORK, link)


def test_a_notebook_asks_for_a_gpu_and_knows_its_package(site):
    _, notebook = stamped(site, FORK, "# Title")
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"
    assert f'WHEEL = "https://some-one.github.io/attention.course/wheel/{WHEEL}"' in notebook.cells[1].source


def test_committed_notebooks_ask_for_nothing():
    """The metadata is Colab's: it is put in when a fork publishes, and stays out of git."""
    paths = [
        path for name in ("notebooks", "exercises", "solutions") for path in publishing.ROOT.glob(f"{name}/*.ipynb")
    ]
    assert len(paths) > 50
    assert not [path for path in paths if json.loads(path.read_text("utf-8"))["metadata"].keys() & GPU.keys()]


@pytest.fixture
def wheel(monkeypatch):
    """No package is built."""

    def build_wheel(folder):
        (folder / WHEEL).write_text("a wheel")
        return folder / WHEEL

    monkeypatch.setattr(publishing, "build_wheel", build_wheel)


def test_without_an_address_the_book_is_as_it_was_built(site, wheel, tmp_path):
    out = tmp_path / "out"
    placed = publishing.publish(Address(), out, site, outputs=tmp_path / "cache")
    assert placed == out / "site" / "wheel" / WHEEL
    for path in site.rglob("*.html"):
        assert (out / "site" / path.relative_to(site)).read_text() == path.read_text()
    assert not (out / "colab").exists()
    assert not [name for name in ("sitemap.xml", "404.html") if (out / "site" / name).exists()]


def test_templates_of_the_theme_are_not_published(site, wheel, tmp_path):
    (site / "_static").mkdir()
    for name in ("book.css", "webpack-macros.html", "sbt-webpack-macros.html"):
        (site / "_static" / name).write_text("{{ pathto() }}")
    publishing.publish(FORK, tmp_path / "out", site, outputs=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "out" / "site" / "_static").iterdir()] == ["book.css"]


@pytest.mark.parametrize(("given", "at_root"), [("", False), ("https://e.org", True), ("https://e.org/course", False)])
def test_pages_are_listed_for_search_engines(site, wheel, tmp_path, given, at_root):
    to, out = address("Some-One/attention", given), tmp_path / "out"
    publishing.publish(to, out, site, outputs=tmp_path / "cache")
    listed = ElementTree.parse(out / "site" / "sitemap.xml").iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")
    assert [place.text for place in listed] == [f"{to.site}book/map.html"]  # the other page has no source
    robots = out / "site" / "robots.txt"
    assert robots.exists() == at_root
    assert not at_root or f"Sitemap: {to.site}sitemap.xml\n" in robots.read_text()


def test_pdf_and_slides_of_this_book_are_published_and_older_ones_are_not(site, wheel, tmp_path):
    page = site / "book" / "map.html"
    page.write_text(page.read_text().replace("<h2", '<div class="downloads docutils"></div><h2'))
    assert publishing.made(tmp_path, site) == []
    pdf, slides = tmp_path / "attncourse.pdf", tmp_path / "slides"
    (slides / "lib").mkdir(parents=True)
    for path in (pdf, slides / "index.html", slides / "05_causal.html", slides / "lib" / "reveal.js"):
        path.write_text("x" * 149_000)
    assert publishing.made(tmp_path, site) == [pdf, slides]
    publishing.publish(FORK, tmp_path / "out", site, outputs=tmp_path / "cache", downloads=[pdf, slides])
    html = (tmp_path / "out" / "site" / "book" / "map.html").read_text()
    assert 'href="../attncourse.pdf">the book as one PDF (0.1 MB)</a> and <a href="../slides/index.html">' in html
    assert (tmp_path / "out" / "site" / "slides" / "lib" / "reveal.js").exists()
    os.utime(slides / "05_causal.html", (1, 1))
    assert publishing.made(tmp_path, site) == [pdf]
    os.utime(pdf, (1, 1))
    assert publishing.made(tmp_path, site) == []


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A build of two pages of this checkout, as up to date as its own stamps say."""
    html = tmp_path / "html"
    for name in ("book/map.md", "notebooks/05_causal.ipynb"):
        (html / "_sources" / name).parent.mkdir(parents=True)
        shutil.copy(publishing.ROOT / name, html / "_sources" / name)
    (html / "index.html").touch()
    for name, (_, patterns) in DERIVED.items():
        (tmp_path / f".{name.replace(' ', '-')}.sha256").write_text(fingerprint(patterns))
    monkeypatch.setattr(publishing, "BUILD", tmp_path)
    monkeypatch.setattr(publishing, "SITE", html)
    return tmp_path


def test_a_book_older_than_its_sources_is_not_published(built, tmp_path, capsys):
    """By contents: a checkout makes files newer that are the same."""
    html = built / "html"
    os.utime(html / "_sources" / "book" / "map.md", (1, 1))
    assert publishing.changed(built, html) == []
    for name in ("book/map.md", "book/gone.md"):
        (html / "_sources" / name).write_text("# Before")
    (built / ".pages.sha256").write_text("0")
    (built / ".executed-notebooks.sha256").unlink()
    others = ["what the executed notebooks come from", "what the pages come from"]
    assert publishing.changed(built, html) == ["book/gone.md", "book/map.md", *others]
    assert publishing.main(["--repository", "a/b", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Not published: the book is older than book/gone.md, book/map.md, ")
    assert said.endswith("and 1 more: run `make book`\n") and not (tmp_path / "out").exists()


def test_the_command_says_why_pdf_and_slides_are_not_published(built, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(publishing, "publish", lambda to, out, downloads: out.mkdir() or tmp_path / WHEEL)
    (built / "attncourse.pdf").touch()
    os.utime(built / "attncourse.pdf", (1, 1))
    assert publishing.main(["--repository", "a/b", "--out", str(tmp_path / "out")]) == 0
    said = "the book as one PDF (older than the sources of the book) and slides of each chapter (not made yet)"
    assert f"Without {said}: run `make pdf slides`" in capsys.readouterr().out


def test_the_branch_lists_its_notebooks():
    titles = {"exercises/05_causal.ipynb": "x", "notebooks/00_start.ipynb": "Start", "notebooks/05_causal.ipynb": "Two"}
    first, second = publishing.rows(titles, FORK).splitlines()
    assert first == f"| [00 Start]({FORK.colab('notebooks/00_start.ipynb')}) |  |  |"
    exercises = FORK.colab("exercises/05_causal.ipynb")
    assert second == f"| [05 Two]({FORK.colab('notebooks/05_causal.ipynb')}) | [exercises]({exercises}) |  |"


def test_what_an_earlier_run_left_is_not_published_again(site, wheel, tmp_path):
    out = tmp_path / "out"
    publishing.publish(FORK, out, site, outputs=tmp_path / "cache")
    for left in ("site/gone.html", "colab/gone.ipynb", "wheel/old.whl"):
        (out / left).write_text("")
    publishing.publish(address("a/b"), out, site, outputs=tmp_path / "cache")
    assert not [path for path in out.rglob("*") if path.stem in {"gone", "old"}]
    html = (out / "site" / "book" / "map.html").read_text()
    assert "github.com/a/b/issues" in html and "Some-One" not in html
    assert "github.com" not in (out / "site" / "index.html").read_text()  # no page, but a redirect


def test_earlier_packages_stay_beside_the_new_one(tmp_path):
    for folder in ("now", "earlier"):
        (tmp_path / folder).mkdir()
    (tmp_path / "now" / WHEEL).write_text("new")
    for name in (WHEEL, WHEEL.replace("0.1.0", "0.0.9"), "notes.txt"):
        (tmp_path / "earlier" / name).write_text("old")
    publishing.keep_earlier(tmp_path / "now" / WHEEL, tmp_path / "earlier")
    kept = {path.name: path.read_text() for path in (tmp_path / "now").iterdir()}
    assert kept == {WHEEL: "new", WHEEL.replace("0.1.0", "0.0.9"): "old"}


def test_a_tag_says_the_version():
    version = attncourse.__version__
    publishing.check_tag(f"v{version}")
    with pytest.raises(ValueError, match=rf"the tag v99 releases version {version}: .* tag it v{version}"):
        publishing.check_tag("v99")


def test_a_notebook_that_changed_after_the_build_is_not_published_as_executed(tmp_path):
    notebook = v4.new_notebook(
        cells=[v4.new_code_cell("x = 1")], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    with pytest.raises(ValueError, match=r"^a has changed since the book was built: run `make book`$"):
        publishing.executed(nbformat.from_dict(notebook), "a", publishing.get_cache(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repository", "nobody"], "repository='nobody'"),
        (["--repository", "a/b"], "run `make book`"),
        (["--check", "--repository", "a/b", "--tag", "v99"], "the tag v99 releases version"),
        (["--check", "--repository", "a/b", "--site", "http://e.org/"], "is not https"),
        (["--repository", "a/b", "--earlier", "gone"], "no folder gone, which --earlier names"),
    ],
)
def test_the_command_says_in_a_sentence_why_it_did_nothing(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(publishing, "SITE", tmp_path / "html")
    assert publishing.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Not published: ") and message in said
    assert not (tmp_path / "out").exists()


def test_what_can_be_published_is_checked_without_a_book(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(publishing, "SITE", tmp_path / "html")
    tag = f"v{attncourse.__version__}"
    assert publishing.main(["--check", "--repository", "a/b", "--tag", tag, "--out", str(tmp_path / "out")]) == 0
    assert "https://a.github.io/b/" in capsys.readouterr().out and not list(tmp_path.iterdir())
