"""All pages of the built book as one HTML document, for `scripts/pdf.py`.

Scripts are left out, so that every interactive piece shows its static form. What print looks like is in the
`@media print` of `book/_static/course.css`, which a single page uses too, and in `scripts/pdf.css`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup, Tag

HOME = "book/intro.html"  # the landing page: its navigation is the table of contents; it is not printed
# What does nothing on paper, and MathML, which would stand in the text a second time.
DROPPED = "script, style, noscript, .headerlink, .copybtn, .katex-mathml, details.hide"
REFERENCES = ("href", "xlink:href", "for", "aria-labelledby", "aria-describedby", "aria-controls")


@dataclass
class Page:
    """A page of the book: its path below the site, its title in the contents, and how deep it stands there."""

    path: str
    title: str
    depth: int
    part: str
    header: str  # what stands above its pages

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.path.removesuffix(".html"))


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def resolve(href: str, page: str) -> tuple[str, str]:
    """The path below the site and the fragment to which `href` leads on `page`."""
    target, fragment = urldefrag(href)
    path = (Path("/", page).parent / unquote(target)).as_posix() if target else f"/{page}"
    return re.sub(r"/[^/]+/\.\.(?=/)", "", path).lstrip("/"), unquote(fragment)


def contents(home: BeautifulSoup) -> list[Page]:
    """All pages but the landing page, in the order of the sidebar."""
    pages, part, above = [], "", []
    for node in home.select("nav.bd-links .caption-text, nav.bd-links a.internal"):
        title = node.get_text(" ", strip=True)
        if node.name == "span":
            part = title
        elif (path := resolve(node["href"], HOME)[0]) != HOME:
            depth = len(node.find_parents("ul")) - 1
            above = [*above[:depth], title]
            of_part = [part] if part == "Solutions" else []  # whose pages are called as the chapters are
            pages.append(Page(path, title, depth, part, ": ".join(of_part + above)))
    return pages


def article(site: Path, page: Page, anchors: dict[str, str], styles: dict[str, None]) -> str:
    """The article of a page, fit for a document that holds all of them; adds its style sheets to `styles`."""
    body = read(site / page.path).select_one("article")
    for style in body.select("style"):  # each output carries its own copy
        styles[style.get_text()] = None
    for formula in body.select(".katex"):  # read out, and found, as TeX
        tex = formula.find("annotation")
        if tex is not None:
            formula.attrs |= {"role": "img", "aria-label": tex.get_text(strip=True)}
            del formula.select_one(".katex-html")["aria-hidden"]
    for node in body.select(DROPPED):
        node.decompose()
    for token in body.select(".highlight :is(.n, .p, .w)"):  # without colour; each would be an element of the PDF
        token.unwrap()
    for details in body.select("details"):
        details["open"] = ""
        if details.summary and details.summary.get_text() == "Reveal the answer":
            details.summary.string = "Answer"
    for node in body.find_all(True):
        if re.fullmatch(r"h[1-5]", node.name):  # h1 is for the parts
            node.name = f"h{int(node.name[1]) + 1}"
        if "id" in node.attrs:
            node["id"] = f"{page.anchor}--{node['id']}"
        for name in REFERENCES & node.attrs.keys():
            if name == "href" and node.name == "a":
                relink(node, page, anchors)
            elif name.endswith("href"):
                node[name] = re.sub(r"^#", f"#{page.anchor}--", node[name])
            else:
                node[name] = " ".join(f"{page.anchor}--{one}" for one in node.get_attribute_list(name))
        for name in ("style", "clip-path", "fill", "stroke", "marker-end", "marker-start", "mask"):
            if "url(#" in node.get(name, ""):
                node[name] = node[name].replace("url(#", f"url(#{page.anchor}--")
        if node.name == "img":
            node["src"] = (site / resolve(node["src"], page.path)[0]).as_uri()
    title = body.find("h2")
    if page.depth or page.path.startswith("solutions/"):  # theirs is the chapter's title over again
        title["class"] = [*title.get("class", []), "minor"]
    return body.decode_contents(formatter="html5")


def relink(link: Tag, page: Page, anchors: dict[str, str]) -> None:
    """Let a link lead to its place in the document; one to what is not in it becomes text."""
    if urlsplit(link["href"]).scheme:
        return
    path, fragment = resolve(link["href"], page.path)
    if path not in anchors:
        del link["href"]
    else:
        link["href"] = f"#{anchors[path]}--{fragment}" if fragment else f"#{anchors[path]}"


def document(site: Path, only: Sequence[str] = ()) -> tuple[str, list[Page]]:
    """The book as one HTML document, in which the contents' page numbers are still empty, and its pages.

    only: the pages to take, such as `notebooks/03_self_attention`; all of them when it is empty.
    """
    home = read(site / HOME)
    pages = contents(home)
    if unknown := set(only) - {page.path.removesuffix(".html") for page in pages}:
        raise ValueError(f"no page of the book is called {', '.join(sorted(unknown))}")
    pages = [page for page in pages if not only or page.path.removesuffix(".html") in only]
    anchors, styles = {page.path: page.anchor for page in pages}, {}
    rows, bodies, headers, part = [], [], [], None
    for page in pages:
        if page.part != part:
            part = page.part
            rows.append(f'<p class="part">{escape(page.part)}</p>')
            bodies.append(f'<h1 class="part">{escape(page.part)}</h1>')
        rows.append(
            f'<p class="depth-{page.depth}"><a href="#{page.anchor}">{escape(page.title)}</a>'
            f'<span class="number" data-page="{page.anchor}"></span></p>'
        )
        text = page.header.replace("\\", "").replace('"', "")
        headers.append(f'@page {page.anchor} {{ @top-left {{ content: "{text}"; }} }}')
        body = article(site, page, anchors, styles)
        bodies.append(f'<div class="page" id="{page.anchor}" style="page: {page.anchor}">{body}</div>')
    sheets = [
        (site / resolve(link["href"], HOME)[0].split("?")[0]).as_uri()
        for link in home.select("head link[rel=stylesheet]")
    ]
    own = (Path(__file__).with_name("pdf.css")).read_text(encoding="utf-8")
    lead = home.select_one("article .lead") or home.select_one("article p")
    footer = home.select_one(".bd-footer-content")
    html = (
        '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{escape(name(home))}</title>"
        + "".join(f'<link rel="stylesheet" href="{escape(sheet)}">' for sheet in sheets)
        + "".join(f"<style>{style}</style>" for style in [*styles, own, "\n".join(headers)])
        + '</head><body><div class="bd-article-container bd-content"><div class="bd-article">'
        f'<div class="cover"><p class="title">{escape(name(home))}</p>'
        f"<p>{escape(lead.get_text(' ', strip=True))}</p>"
        f"<p class=licence>{escape(footer.get_text(' ', strip=True)) if footer else ''}</p></div>"
        f'<nav class="book-contents"><h2>Contents</h2>{"".join(rows)}</nav>{"".join(bodies)}</div></div></body></html>'
    )
    return html, pages


def name(home: BeautifulSoup) -> str:
    """The book's title, which is the landing page's."""
    return re.sub(r"\s*#$", "", home.select_one("article h1").get_text(" ", strip=True))
