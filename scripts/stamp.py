"""Where a fork is published, and how that address gets into its pages and notebooks."""

import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin, urlsplit

import nbformat
from docutils.nodes import make_id
from nbformat import NotebookNode

from scripts import setup_cell

BRANCH = "colab"
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}(?<!\.git)")
PLAIN = re.compile(r"https://([\w.-]+)(:\d+)?(/[\w.~-]+)*/?", re.ASCII)
DOWNLOADS = '<div class="downloads docutils">'  # where a page has room for links to them: `:::{div} downloads`
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}  # what Colab takes its runtime from
NOT_FOUND = """<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>No such page &#8212; attncourse</title>
<script>
  document.documentElement.dataset.theme = localStorage.getItem("theme")
    || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
</script>
<link rel="stylesheet" href="{root}_static/book.css" /><link rel="icon" href="{root}_static/logo.svg" /></head>
<body><main class="bd-main"><article class="bd-article" style="max-width: 36rem; margin: 10vh auto; padding: 0 1rem">
<p><a class="navbar-brand logo" href="{root}book/intro.html">
<img src="{root}_static/logo.svg" alt="" class="logo__image" height="40" /> attncourse</a></p>
<h1>This page is not here</h1>
<p>Its name may have changed, or the address is misspelt.</p>
<ul>
<li><a href="{root}book/intro.html">First page of the course</a></li>
<li><a href="{root}search.html">Search the course</a></li>
</ul>
</article></main></body></html>
"""
LINK = re.compile(r"\]\(((?:[\w./-]*\.(?:ipynb|md))?(?:#[^)\s]*)?)\)")  # of Markdown, to a page of the course


@dataclass(frozen=True)
class Address:
    """repository: owner/name on GitHub; site: where the pages lie, a slash at its end. "" where it is not known.

    issues: whether readers may open issues there; in a fork they are off until its owner switches them on.
    """

    repository: str = ""
    site: str = ""
    issues: bool = True

    @property
    def sources(self) -> str:
        """The address of the repository."""
        return f"https://github.com/{self.repository}"

    def colab(self, notebook: str) -> str:
        """The address at which Colab opens a notebook, given by its path: notebooks/13_gqa.ipynb."""
        return f"https://colab.research.google.com/github/{self.repository}/blob/{BRANCH}/{quote(notebook)}"

    def report(self, title: str, page: str) -> str:
        """The address of a new issue on a page, its form filled in as far as the page knows."""
        fields = {"template": "error.yml", "title": f"Error: {title}", "page": self.site + page}
        return f"{self.sources}/issues/new?{urlencode(fields)}"

    def wheel(self, name: str) -> str:
        """The address of the package, or "" where there is no site."""
        return f"{self.site}wheel/{name}" if self.site else ""


def address(repository: str = "", site: str = "", issues: bool = True) -> Address:
    """The address of a fork; `site` is where GitHub Pages puts it unless another is given (a custom domain).

    Raises ValueError for what is no owner/name, and for a site that is no folder at a plain https address.
    """
    if repository and not REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository={repository!r} is not owner/name as on GitHub, such as someone/attention")
    if repository and not site:
        owner, name = repository.lower().split("/")[0], repository.split("/")[1]
        site = f"https://{owner}.github.io/" + ("" if name.lower() == f"{owner}.github.io" else f"{name}/")
    if site:
        if fault := _fault(site):
            raise ValueError(f"site={site!r} {fault}")
        site = site.rstrip("/") + "/"
    return Address(repository, site, issues)


def _fault(site: str) -> str:
    """Why nothing can be published at this address; "" where it is well formed."""
    if re.match(r"http://[^/]", site):
        return "is not https, and Colab installs the package from it: enforce HTTPS there"
    plain = PLAIN.fullmatch(site)
    if not plain:
        return "is no plain https address, such as https://course.example.org/"
    if not all(re.match(r"\w", label) for label in plain[1].split(".")):  # a hyphen at the end: owners have one
        return f"has {plain[1]!r} as its host, which is no name of one"
    path = urlsplit(site).path
    if {".", ".."} & set(path.split("/")):
        return "has . or .. in its path: give the address that a browser shows"
    if path.lower().endswith((".html", ".htm")):
        return "is a page: give the folder that it lies in"
    return ""


def stamp_page(html: str, page: str, to: Address, is_notebook: bool) -> str:
    """A built page with its links: to Colab under the title, to report an error and to the sources at its end.

    page: its path in the site. Raises ValueError when the page has no title or article to put them into.
    """
    found = re.search(r"<title>\s*(.*?)( &#8212; [^<]*)?</title>", html, re.DOTALL)
    if not found or not re.search(r"<article.*</h1>.*</article>", html, re.DOTALL):
        raise ValueError(f"{page} has no title, heading or article: it is no page of the book")
    title = unescape(found[1])
    article = html.index("<article")
    under_title = html.index("</h1>", article) + len("</h1>")
    end = html.index("</article>", article)
    launch = to.repository and is_notebook and to.colab(page.removesuffix(".html") + ".ipynb")
    last = {}
    if to.repository and to.issues:
        last[to.report(title, page)] = "Report an error on this page"
    if to.repository:
        last[to.sources] = "Source of this copy on GitHub"
    html = (
        html[:under_title]
        + (_line("launch", {launch: "Open in Colab"}) if launch else "")
        + html[under_title:end]
        + (_line("report", last) if last else "")
        + html[end:]
    )
    return _stamp_head(html, to.site + page) if to.site else html


def stamp_first(html: str, to: Address) -> str:
    """The page at the site's root, which leads to the landing page: a link to it is shown as one to that."""
    return _stamp_head(html, to.site + "book/intro.html", to.site) if to.site else html


def _stamp_head(html: str, place: str, base: str = "") -> str:
    """The page with its own address in its head, and with absolute ones where Open Graph and schema.org have others.

    base: what addresses in the head are relative to, where that is not the page's own address.
    """
    head, end, rest = html.partition("</head>")
    head = re.sub(r'((?:"og:image" content=|"url": )")([^"]+)', lambda m: m[1] + urljoin(base or place, m[2]), head)
    own = f'<link rel="canonical" href="{place}" />\n<meta property="og:url" content="{place}" />\n'
    return head + own + end + rest


def not_found(to: Address) -> str:
    """The page that the host shows at any address that is none: its links begin at the host's root."""
    return NOT_FOUND.format(root=urlsplit(to.site).path)


def stamp_downloads(html: str, page: str, files: dict[str, str]) -> str:
    """A built page with links to files of the site, if it has a place for them. files: text of a link by its path."""
    up = "../" * page.count("/")
    links = " and ".join(f'<a href="{up}{path}">{text}</a>' for path, text in files.items())
    if not links:
        return html
    return re.sub(f"({DOWNLOADS}.*?)(?=</div>)", rf"\1<p>In this copy: {links}.</p>\n", html, flags=re.DOTALL)


def sitemap(pages: Iterable[str], to: Address) -> str:
    """Where the pages lie, for search engines."""
    places = "".join(f"<url><loc>{to.site}{page}</loc></url>\n" for page in pages)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
    return f"{head}\n{places}</urlset>\n"


def _line(name: str, links: dict[str, str]) -> str:
    """A line of a page that is not printed. links: their texts by their targets."""
    anchors = " · ".join(f'<a href="{escape(target)}">{text}</a>' for target, text in links.items())
    return f'\n<p class="course-{name} d-print-none">{anchors}</p>\n'


def stamp_notebook(
    notebook: NotebookNode, path: str, wheel: str, to: Address, ids: Callable[[str], dict[str, str]]
) -> None:
    """Give a notebook, in place, the package's address, a GPU, and links that lead somewhere from Colab.

    path: notebooks/13_gqa.ipynb. wheel: its name. ids: the anchors of a page of the site. A whole notebook is opened
    in Colab, a place in one on the site. Raises ValueError for a link to a place that is not there.
    """

    def absolute(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
        if file.endswith(".ipynb") and not anchor and to.repository:
            return f"]({to.colab(file)})"
        page = posixpath.splitext(file)[0] + ".html"
        places = ids(page)
        place = places.get(anchor) or places.get(_letters(anchor), "")
        if anchor and not place:
            raise ValueError(f"{path} links to {match[1]}, and {page} has no such place")
        return f"]({to.site}{page}{'#' if place else ''}{place})"

    setup_cell.stamp(notebook, to.wheel(wheel))
    notebook.metadata |= nbformat.from_dict(GPU)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(absolute, cell.source)
    nbformat.validate(notebook)


def anchors(site: Path) -> Callable[[str], dict[str, str]]:
    """A function from a page's path in `site` to the ids in it; a page that is not there raises ValueError.

    Notebooks name a heading in GitHub's way (5-bahdanaus-order), pages in docutils' (bahdanau-s-order): an id is found
    by itself, and by its letters.
    """

    @cache
    def ids(page: str) -> dict[str, str]:
        if not (site / page).is_file():
            raise ValueError(f"a notebook links to {page}, which the site has not")
        found = re.findall(r'\sid="([^"]+)"', (site / page).read_text("utf-8"))
        return {_letters(id): id for id in reversed(found)} | {id: id for id in found}

    return ids


def _letters(anchor: str) -> str:
    return make_id(anchor).replace("-", "")
