"""All pages of the built book as one HTML document, for `scripts/pdf.py`.

Scripts are left out, so that every interactive piece shows its static form. Answers stand at the end of their page.
What another page has already, or only the notebooks need, is left out. What print looks like is in the `@media print`
of `book/_static/course.css`, which a single page uses too, and in `scripts/pdf.css`.
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
ANSWER = re.compile(r"Reveal the answer|Answer to question|One explanation|What there is to see")
ON_SCREEN = re.compile(r"(, which|; a narrow screen) scrolls sideways")
COMPARISON = "notebooks/16_choosing.html"  # has the whole table; the chapters before it print what is new
ABOUT = (
    "How to read this book on paper. Interactive pieces and animations are printed as figures, in the state they begin"
    " with; in the book online they move. Answers to predictions and questions stand at the end of each chapter, with"
    " the page on which each was asked: write yours down first. Code behind figures is in the notebooks, and so is what"
    " checks print. Of the running comparison each chapter prints its new rows; the chapter on choosing has all. The"
    " steps of each claim, and the tables of each exercise’s check, are online. Solutions are at the end."
)
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


def element(name: str, text: str = "", **attributes: str) -> Tag:
    made = BeautifulSoup("", "html.parser").new_tag(name, attrs={k.rstrip("_"): v for k, v in attributes.items()})
    made.extend([text] if text else [])
    return made


def plain(node: Tag) -> str:
    return " ".join(node.get_text().split())


def shorten(body: Tag, site: Path, page: Page) -> None:
    """Leave out what is in the book already, or is of use at a computer only."""
    for cell in body.select(".cell_input"):
        if re.fullmatch(r"show\.\w+\([^\n]*\)", cell.get_text().strip()):  # what it shows says as much
            cell.decompose()
    for caption in body.select("figcaption, caption, .ac-scroll"):
        for text in caption.find_all(string=ON_SCREEN):
            text.replace_with(ON_SCREEN.sub("", text))
    if page.path == "book/claims.html":
        for steps in body.select("details"):
            steps.decompose()
    if page.path == "book/checks.html":
        for section in body.select("section section"):
            if (lead := section.find("p")) and re.fullmatch(r"\w+/\w+", plain(lead)):  # an exercise's table
                for link in body.select(f'a[href="#{section["id"]}"]'):
                    link.unwrap()
                section.decompose()
    if page.path.startswith("solutions/"):
        only_solutions(body, site, page)
    for figure in body.select(".ac-comparison figure"):
        if plain(figure.figcaption).startswith("The running comparison"):
            if page.path == COMPARISON:
                figure["id"] = "running-comparison"
            else:
                only_new_rows(figure, page)


def only_solutions(body: Tag, site: Path, page: Page) -> None:
    """Leave out of the solutions what the page of their exercises says, and lead there."""
    exercises = page.path.replace("solutions/", "exercises/")
    there, here = read(site / exercises).select_one("article > section"), body.find("section")
    for node in there.select(DROPPED):
        node.decompose()
    known = {plain(block) for block in there.select("p, ul, ol, div, details, .cell_input")}
    for block in here.select("section > :not(section, h1, h2)"):
        if plain(block.select_one(".cell_input") or block) in known:
            block.decompose()
    for mark in here.select("pre .c1:-soup-contains('### BEGIN SOLUTION', '### END SOLUTION')"):  # and its line
        before, after = mark.previous_sibling, mark.next_sibling
        before.replace_with(before.rstrip(" "))
        after.replace_with(after.removeprefix("\n"))
        mark.decompose()
    for title in here.select("h2"):
        lead = element("p", class_="to-exercise")
        lead.append(element("a", "The exercise", href=f"../{exercises}#{title.parent['id']}", class_="on-page"))
        title.insert_after(lead)


def only_new_rows(figure: Tag, page: Page) -> None:
    """Turn the running comparison into its last rows, each a column of a table on its side."""
    count = re.search(r"last (\d+)? ?rows? (?:is|are) new", plain(figure.figcaption))
    rows = figure.select("tbody tr")[-int(count[1] or 1) :]
    turned = element("table")
    for cells in zip(figure.select("thead th"), *([*row.find_all(["th", "td"])] for row in rows), strict=True):
        row = element("tr")
        title, *values = [cell.extract() for cell in cells]
        row.extend([element("th", title.get_text(), scope="row"), *values])
        turned.append(row)
    figure.find("table").replace_with(turned)
    figure.figcaption.string = "New in the running comparison. "
    target = f"{Path(COMPARISON).name}#running-comparison"
    figure.figcaption.append(element("a", "The whole table", href=target, class_="on-page"))
    figure.find_parent(class_="ac-comparison")["class"] = ["ac", "ac-new"]


def collect_answers(body: Tag) -> None:
    """Move answers to the end of the page, numbered, with a link there and back."""
    answers = element("ol", class_="answers")
    for details in body.select("details"):
        if not ANSWER.match(plain(details.summary)):
            continue
        number = len(answers.contents) + 1
        asked = details.find_previous(class_="ac-dim") if details.find_parent(class_="ac-question") else None
        label = plain(asked or details.find_previous(["h1", "h2", "h3", "h4"]))
        there = element("p", class_="to-answer", id=f"asked-{number}")
        there.append(element("a", f"Answer {number}", href=f"#answer-{number}", class_="on-page"))
        answer = element("li", id=f"answer-{number}")
        back = element("p", class_="asked")
        back.append(element("a", label, href=f"#asked-{number}", class_="on-page"))
        details.summary.decompose()
        details.replace_with(there)
        answer.extend([back, *[node.extract() for node in [*details.children]]])
        answers.append(answer)
    if answers.contents:
        section = element("section", class_="answers-of-page")
        section.extend([element("h2", "Answers", id="answers"), answers])
        body.find("section").append(section)


def open_details(body: Tag) -> None:
    """Make plain text of what opens: its summary begins its first paragraph."""
    for details in body.select("details:not(figure details)"):
        title = element("strong", f"{plain(details.summary).rstrip('.')}. ")
        details.summary.decompose()
        first = details.find(True)
        details.name, details["class"] = "div", "opened"
        if first is not None and first.name == "p":
            first.insert(0, title)
        else:
            details.insert(0, title)


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
    body.smooth()
    shorten(body, site, page)
    collect_answers(body)
    open_details(body)
    for code in body.select("table code, .ac-comparison td"):  # a line may end after these
        for text in code.find_all(string=re.compile(r"[_./·]")):
            parts = re.split(r"(?<=[_./·])(?=\w)", text)
            text.replace_with(*[node for part in parts for node in (part, element("wbr"))][:-1])
    for node in body.find_all(True):
        if re.fullmatch(r"h[1-5]", node.name):  # h1 is for the parts
            node.name = f"h{int(node.name[1]) + 1}"
        if "id" in node.attrs:
            node["id"] = f"{page.anchor}--{node['id']}"
        for name in REFERENCES & node.attrs.keys():
            if name == "href" and node.name == "a":
                relink(node, page, anchors)
                if "on-page" in node.get_attribute_list("class") and "href" in node.attrs:
                    number = element("span", class_="number")
                    number["data-page"] = node["href"][1:]
                    node.extend([", page ", number])
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
        sheet = page.anchor
        if page.part == "Solutions":  # short: they follow one another on the same pages
            sheet, text = "solutions", page.part
        headers.append(f'@page {sheet} {{ @top-left {{ content: "{text}"; }} }}')
        body = article(site, page, anchors, styles)
        bodies.append(f'<div class="page" id="{page.anchor}" style="page: {sheet}">{body}</div>')
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
        f'<p class="about">{escape(ABOUT)}</p>'
        f'<nav class="book-contents"><h2>Contents</h2>{"".join(rows)}</nav>{"".join(bodies)}</div></div></body></html>'
    )
    return html, pages


def name(home: BeautifulSoup) -> str:
    """The book's title, which is the landing page's."""
    return re.sub(r"\s*#$", "", home.select_one("article h1").get_text(" ", strip=True))
