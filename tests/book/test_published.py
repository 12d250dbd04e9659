"""What a fork publishes, made from the built book: every address in it, held against the tree and the repository."""

import json
import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import nbformat
import pytest
import yaml

from scripts import setup_cell
from scripts.publish import publish
from scripts.slides import make_all as make_slides
from scripts.stamp import address
from tests.book.test_pages import AXE, AXE_OPTIONS

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("published")]

ROOT = Path(__file__).parents[2]
REPOSITORY = os.environ.get("GITHUB_REPOSITORY") or "Someone/attention-course"
TO = address(REPOSITORY)
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/colab/"
NOTEBOOKS = {
    path.relative_to(ROOT).as_posix()
    for folder in ("notebooks", "exercises", "solutions")
    for path in (ROOT / folder).glob("*.ipynb")
}


@pytest.fixture(scope="module")
def tree(site, tmp_path_factory):
    """With slides of one chapter, and a file for the PDF, which takes minutes to print."""
    out, made = tmp_path_factory.mktemp("publish"), tmp_path_factory.mktemp("made")
    (made / "attncourse.pdf").write_bytes(b"%PDF-1.7")
    make_slides(["13_gqa"], made / "slides")
    publish(TO, out, downloads=[made / "attncourse.pdf", made / "slides"])
    return out


class Page(HTMLParser):
    """Links, ids and the text of links of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.named, self._link = [], set(), [], None
        self.canonical, self.shared = None, {}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        target = attributes.get("href" if tag in {"a", "link"} else "src" if tag in {"img", "script"} else "-")
        if attributes.get("rel") == "canonical":
            self.canonical = target
        elif target:
            self.links.append(target)
        if tag == "meta" and attributes.get("property", "").startswith("og:"):
            self.shared[attributes["property"]] = attributes["content"]
        self._link = [target, ""] if tag == "a" and target else self._link

    def handle_data(self, text):
        if self._link:
            self._link[1] += text

    def handle_endtag(self, tag):
        if tag == "a" and self._link:
            self.named.append(tuple(self._link))
            self._link = None

    def to(self, text):
        return [target for target, words in self.named if words.strip() == text]


read = cache(Page)  # by path; each tree has its own folder


def lost(address, tree):
    """Why an absolute address leads nowhere, as far as it is the fork's own; "" otherwise."""
    if address.startswith(COLAB):
        path = tree / "colab" / unquote(address.removeprefix(COLAB))
        return "" if path.suffix == ".ipynb" and path.is_file() else f"{address} is not on the branch"
    if address.startswith(TO.site):
        parts = urlsplit(address.removeprefix(TO.site))
        path = tree / "site" / unquote(parts.path)
        if not path.is_file():
            return f"{address} is not on the site"
        if parts.fragment and path.suffix == ".html" and unquote(parts.fragment) not in read(path).ids:
            return f"{address} has no such place"
        return ""
    if address.startswith(f"https://github.com/{REPOSITORY}/"):
        return "" if "/issues/new?" in address else f"{address} is no form"
    if address == f"https://github.com/{REPOSITORY}":
        return ""
    other = re.search(r"colab\.research|github\.io|127\.0\.0\.1|localhost", address)
    return f"{address} is another fork's" if other else ""


def pages(tree):
    """The pages of the course: what has a source."""
    sources = (path.relative_to(tree / "site" / "_sources") for path in tree.glob("site/_sources/**/*.*"))
    return sorted(path.with_suffix(".html").as_posix() for path in sources)


def test_every_page_says_where_it_lies_where_its_sources_are_and_how_to_report_an_error(tree):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "error.yml").read_text())
    assert len(pages(tree)) > 60
    for name in pages(tree):
        page = read(tree / "site" / name)
        assert page.canonical == page.shared["og:url"] == TO.site + name
        assert page.shared["og:image"] == f"{TO.site}_static/card.png"
        assert page.to("Source of this copy on GitHub") == [f"https://github.com/{REPOSITORY}"]
        (report,) = page.to("Report an error on this page")
        assert report.startswith(f"https://github.com/{REPOSITORY}/issues/new?")
        fields = parse_qs(urlsplit(report).query)
        assert fields["page"] == [TO.site + name] and fields["title"][0] > "Error: "
        assert fields["template"] == ["error.yml"]
        assert fields.keys() - {"template", "title"} <= {field.get("id") for field in form["body"]}


def test_notebooks_pages_and_no_others_open_in_colab(tree):
    opened = {page: read(tree / "site" / page).to("Open in Colab") for page in pages(tree)}
    expected = {page: [COLAB + page.removesuffix(".html") + ".ipynb"] for page in pages(tree)}
    assert {page for page, found in opened.items() if found} == {f"{name[:-6]}.html" for name in NOTEBOOKS}
    assert all(found == expected[page] for page, found in opened.items() if found)


def test_search_engines_find_every_page(tree):
    text = (tree / "site" / "sitemap.xml").read_text("utf-8")
    assert re.findall(r"<loc>(.*)</loc>", text) == [TO.site + name for name in pages(tree)]
    first = (tree / "site" / "book" / "intro.html").read_text("utf-8")
    course = json.loads(re.search(r'<script type="application/ld\+json">(.*?)</script>', first, re.DOTALL)[1])
    places = [part["url"] for part in (course, *course["hasPart"])]
    assert len(places) == 19 and all(place.startswith(TO.site) and not lost(place, tree) for place in places)


def test_pdf_and_slides_are_linked(tree):
    found = [name for name in pages(tree) if "attncourse.pdf" in "".join(read(tree / "site" / name).links)]
    assert found == ["book/how_to_use.html", "book/teaching/syllabus.html"]
    for name in found:
        assert {urljoin(name, target) for target in read(tree / "site" / name).links} >= {
            "attncourse.pdf",
            "slides/index.html",
        }
    assert read(tree / "site" / "slides" / "index.html").named == [("13_gqa.html", "13 Grouped-query attention")]


def test_links_of_pages_resolve(tree):
    broken, own = [], 0
    every = {path.relative_to(tree / "site").as_posix() for path in tree.glob("site/**/*.html")}
    assert {*pages(tree), "index.html", "search.html"} <= every
    for name in sorted(name for name in every if not name.startswith("_")):
        for target in read(tree / "site" / name).links:
            absolute = target if urlsplit(target).scheme else urljoin(TO.site + name, target)
            own += absolute.startswith((COLAB, TO.site))
            broken += [(name, why) for why in [lost(absolute, tree)] if why]
    assert not broken
    assert own > 5000
    assert not list(tree.glob("site/**/*webpack-macros.html"))


def test_the_branch_lists_every_notebook(tree):
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", (tree / "colab" / "README.md").read_text("utf-8"))
    assert sorted(target for _, target in links) == sorted(COLAB + name for name in NOTEBOOKS)
    assert links[0] == ("00 Start here", f"{COLAB}notebooks/00_start.ipynb")
    assert not [why for _, target in links for why in [lost(target, tree)] if why]


def notebooks(tree):
    """Every notebook of the tree and its path in the repository: those on the branch, and those to download."""
    for folder in (tree / "colab", tree / "site" / "_sources"):
        for path in sorted(folder.rglob("*.ipynb")):
            yield path, path.relative_to(folder).as_posix(), nbformat.read(path, as_version=4)


def test_notebooks_are_all_there_with_a_gpu_and_the_package(tree):
    found = list(notebooks(tree))
    assert sorted(name for _, name, _ in found) == sorted([*NOTEBOOKS, *NOTEBOOKS])
    (wheel,) = (tree / "site" / "wheel").iterdir()
    assert [wheel.read_bytes()] == [path.read_bytes() for path in (tree / "wheel").iterdir()]
    for path, _, notebook in found:
        nbformat.validate(notebook)
        assert (notebook.metadata["accelerator"], notebook.metadata["colab"]["gpuType"]) == ("GPU", "T4")
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        (target,) = re.findall(r'^WHEEL = "(.*)"', first.source, re.MULTILINE)
        assert target == f"{TO.site}wheel/{wheel.name}", path
        assert not lost(target, tree)


def test_notebooks_differ_from_the_committed_ones_in_addresses_and_outputs_only(tree):
    for path, name, notebook in notebooks(tree):
        source = nbformat.read(ROOT / name, as_version=4)
        for new, old in zip(notebook.cells, source.cells, strict=True):
            assert (new.id, new.cell_type, new.metadata) == (old.id, old.cell_type, old.metadata)
            if new.cell_type == "code" and new.id != setup_cell.ID:
                assert new.source == old.source
            elif new.cell_type == "markdown":
                assert re.sub(r"\]\([^)\s]+\)", "]()", new.source) == re.sub(r"\]\([^)\s]+\)", "]()", old.source)
        run = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count]
        if path.is_relative_to(tree / "colab") and not name.startswith("exercises/"):
            code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.id != setup_cell.ID]
            assert run == code, f"{name} was not executed"
            assert any(cell.outputs for cell in run)
        else:
            assert [cell.id for cell in run] == [cell.id for cell in source.cells if cell.get("execution_count")]


def test_links_of_notebooks_are_absolute_and_resolve(tree):
    broken, own = [], 0
    for path, _, notebook in notebooks(tree):
        for cell in notebook.cells:
            prose = re.sub(r"^```.*?^```|`[^`\n]*`|\$[^$]*\$", "", cell.source, flags=re.DOTALL | re.MULTILINE)
            targets = re.findall(
                r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"", prose if cell.cell_type == "markdown" else ""
            )
            for target in map("".join, targets):
                why = lost(target, tree) if urlsplit(target).scheme else f"{target} is relative"
                broken += [(path.name, why)] if why else []
                own += target.startswith((COLAB, TO.site))
    assert not broken
    assert own > 1500


def test_no_placeholder_is_left(tree):
    texts = [path for path in tree.rglob("*") if path.suffix in {".html", ".ipynb", ".md", ".js", ".css"}]
    assert len(texts) > 200
    for path in texts:
        text = path.read_text("utf-8")
        assert setup_cell.UNSTAMPED not in text and setup_cell.UNSTAMPED.replace('"', '\\"') not in text, path
        assert not re.search(r"owner/name/(blob|issues)|\{site\}", text), path


def test_the_package_is_whole(tree, tmp_path):
    (wheel,) = (tree / "site" / "wheel").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"attncourse/data/models.json", "attncourse/checks/gqa.py"} <= set(names)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", tmp_path, wheel], check=True)
    code = "import attncourse as a, attncourse.models as m, json; print(json.dumps([a.__file__, len(m.load_models())]))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]  # from a folder where the package is, and the checkout is not
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    origin, models = json.loads(done.stdout)
    assert Path(origin).is_relative_to(tmp_path)
    assert models > 5


AXE_ON_LINKS = """
(options) => axe.run(
    {include: [".course-launch", ".course-report"].filter((one) => document.querySelector(one)).map((one) => [one])},
    options)
"""


@pytest.mark.parametrize(
    ("name", "scheme", "width", "count"),
    [("notebooks/13_gqa", "light", 1280, 3), ("exercises/13_gqa", "dark", 390, 3), ("book/intro", "light", 320, 2)],
)
def test_the_links_fit_and_are_accessible(name, scheme, width, count, browser, tree):
    sheet = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    requests = []
    sheet.on("request", lambda request: requests.append(request.url))
    sheet.goto((tree / "site" / f"{name}.html").as_uri())
    assert sheet.evaluate("() => document.documentElement.scrollWidth") <= width
    assert requests and all(request.startswith((tree / "site").as_uri()) for request in requests)
    links = sheet.locator(".course-launch a, .course-report a")
    assert links.count() == count
    for box in (links.nth(i).bounding_box() for i in range(count)):
        assert box["height"] >= 24 and box["x"] >= 0 and box["x"] + box["width"] <= width
    sheet.evaluate(AXE.read_text("utf-8"))
    found = sheet.evaluate(AXE_ON_LINKS, AXE_OPTIONS)
    assert not [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
    assert found["passes"]
    sheet.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_an_address_that_is_none_shows_a_page_of_the_book(scheme, width, browser, tree):
    """As the host does: 404.html at any depth, everything else from where it lies."""

    def serve(route):
        path = tree / "site" / unquote(urlsplit(route.request.url.removeprefix(TO.site)).path)
        there = route.request.url.startswith(TO.site) and path.is_file()
        lost.extend([] if there else [route.request.url])
        route.fulfill(path=path if there else tree / "site" / "404.html", status=200 if there else 404)

    lost, gone = [], f"{TO.site}notebooks/old/gone.html"
    sheet = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    sheet.route("**/*", serve)
    sheet.goto(gone)
    assert lost == [gone]  # and its styles were found
    assert sheet.locator("h1").inner_text() == "This page is not here"
    background = sheet.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert sheet.evaluate("() => document.documentElement.scrollWidth") <= width
    sheet.evaluate(AXE.read_text("utf-8"))
    found = sheet.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS)
    assert not [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
    sheet.get_by_text("First page of the course").click()
    sheet.wait_for_url(f"{TO.site}book/intro.html")
    assert sheet.evaluate("() => getComputedStyle(document.body).backgroundColor") == background
    sheet.close()
