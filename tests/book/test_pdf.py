"""The book in print: the PDF of a few pages, and single pages as the browser prints them."""

import re
from types import SimpleNamespace

import pytest
from pypdf import PdfReader

from scripts import pdf
from scripts.one_document import document, read

PAGES = (
    "notebooks/01_bahdanau",
    "exercises/01_bahdanau",
    "book/notation",
    "book/bibliography",
    "solutions/01_bahdanau",
)
PAPER = 643  # CSS pixels of 170 mm, which A4 leaves between its margins
WIDER = """() => [...document.querySelectorAll("article *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !node.closest("svg svg, .katex-mathml, .katex svg");
}).map((node) => node.outerHTML.slice(0, 120))"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def printed(browser, site, tmp_path_factory):
    path = tmp_path_factory.mktemp("pdf") / "book.pdf"
    begins = pdf.print_book(site, path, browser, PAGES)
    reader = PdfReader(path)
    texts = [page.extract_text() for page in reader.pages]
    return SimpleNamespace(begins=begins, reader=reader, texts=texts, site=site)


def test_contents_name_the_pages_on_which_titles_stand(printed):
    listed = re.findall(r"^(.+?)\s*(\d+)$", printed.texts[1], re.MULTILINE)
    assert len(listed) >= len(PAGES)
    pages = document(printed.site, PAGES)[1]
    assert [page.title for page in pages] == [title for title, _ in listed][: len(pages)]
    for page, (_, number) in zip(pages, listed, strict=False):
        heading = read(printed.site / page.path).select_one("article h1").get_text().removesuffix("#")
        assert heading in printed.texts[int(number) - 1]
        assert printed.begins[page.anchor] == int(number)


def test_pages_are_numbered_and_named(printed):
    first = printed.begins["notebooks-01_bahdanau"]
    assert printed.texts[first].startswith("01 Additive attention")
    assert all(f"\n{i + 1}\n" in printed.texts[i][:80] for i in range(first - 1, first + 4))


def test_text_can_be_copied_and_formulas_are_named(printed):
    text = " ".join(" ".join(printed.texts).split())
    assert "Bahdanau, Cho and Bengio" in text
    assert "Reveal the answer" not in text
    root = printed.reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en"
    objects = (printed.reader.get_object(number) for number in sorted(printed.reader.xref[0]))
    tags = [(tag["/S"], tag.get("/Alt", "")) for tag in objects if hasattr(tag, "get") and "/S" in tag]
    assert any(kind == "/Figure" and "\\frac" in alt for kind, alt in tags)
    assert {"/Table", "/Code", "/H2", "/H3"} <= {kind for kind, _ in tags}


def test_outline_has_parts_pages_and_sections(printed):
    def titles(items, depth=0):
        for item in items:
            if isinstance(item, list):
                yield from titles(item, depth + 1)
            else:
                yield depth, item.title

    found = list(titles(printed.reader.outline))
    assert {(0, "Chapters"), (1, "Additive attention"), (2, "By hand"), (1, "Exercises: additive attention")} <= set(
        found
    )


def test_fonts_are_embedded(printed):
    seen = 0
    for page in printed.reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            font = font.get_object()
            if font["/Subtype"] == "/Type3":  # its letters are drawings
                continue
            (below,) = font["/DescendantFonts"]
            descriptor = below.get_object()["/FontDescriptor"]
            assert {"/FontFile2", "/FontFile3"} & descriptor.keys(), font["/BaseFont"]
            seen += 1
    assert seen


def test_links_lead_into_the_book_or_to_the_web(printed):
    inside, outside = 0, 0
    for page in printed.reader.pages:
        for link in page.get("/Annots", []):
            link = link.get_object()
            if "/A" in link:
                assert re.match(r"https?://", link["/A"]["/URI"]), link["/A"]
                outside += 1
            else:
                assert link["/Dest"] in printed.reader.named_destinations
                inside += 1
    assert inside > 40
    assert outside > 5


def test_an_unknown_page_is_named(site):
    with pytest.raises(ValueError, match="no page of the book is called notebooks/99"):
        document(site, ["notebooks/99"])


@pytest.mark.parametrize("name", ["notebooks/16_choosing", "book/oracles", "exercises/03_self_attention"])
def test_a_single_page_fits_on_paper(browser, address, name):
    sheet = browser.new_page(viewport={"width": PAPER, "height": 900})
    sheet.goto(f"{address}/{name}.html", wait_until="load")
    sheet.emulate_media(media="print")
    assert sheet.evaluate(WIDER) == []
    assert (
        not sheet.locator(".bd-sidebar-primary, .bd-header-article, .copybtn, .ac button")
        .and_(sheet.locator(":visible"))
        .count()
    )
    sheet.close()


def test_a_dark_page_is_printed_in_light_colours(browser, address):
    sheet = browser.new_page(color_scheme="dark")
    sheet.goto(f"{address}/notebooks/01_bahdanau.html", wait_until="load")
    seen = sheet.evaluate("""() => ["beforeprint", "afterprint"].map((name) => {
        dispatchEvent(new Event(name));
        return document.documentElement.dataset.theme;
    })""")
    assert seen == ["light", "dark"]
    sheet.close()
