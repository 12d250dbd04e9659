"""The book in print: the PDF of a few pages, and single pages as the browser prints them."""

import re
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

from scripts import pdf
from scripts.one_document import HOME, document, read

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
# Words in some cells of tables that stand on two lines; names may end a line after a mark.
BROKEN = """(cells) => [...document.querySelectorAll(cells)].flatMap((cell) => {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
    for (let text; (text = walk.nextNode()); ) for (const word of text.data.matchAll(/[\\p{L}\\d]+/gu)) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        if (range.getClientRects().length > 1) broken.push(word[0]);
    }
    return broken;
})"""

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
    assert {
        (0, "Chapters"),
        (1, "01 Additive attention"),
        (2, "By hand"),
        (1, "Exercises 01: additive attention"),
    } <= set(found)


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


def parsed(site, *pages):
    return BeautifulSoup(document(site, pages)[0], "html.parser")


@pytest.mark.parametrize("name", ["notebooks/01_bahdanau", "notebooks/00_start", "book/prerequisites"])
def test_answers_stand_at_the_end_of_their_page(site, name):
    asked = read(site / f"{name}.html").select(".ac-static :is(.ac-answer, .ac-feedback)")
    page = parsed(site, name).select_one(".page")
    assert not page.select(".ac :is(.ac-answer, .ac-feedback), .ac-static details")
    answers = page.select_one("section").find_all(recursive=False)[-1].select(".answers > li")
    assert len(answers) >= len(asked) > 3
    for answer in answers:
        (there,) = page.select(f'a[href="#{answer["id"]}"]')
        (back,) = page.select(f'a[href="#{there.parent["id"]}"]')
        assert back.find_parent("li") is answer
        assert len(answer.get_text()) > len(back.get_text()) + 10


def test_page_numbers_of_answers_are_right(printed):
    (answer,) = (key for key in printed.begins if key.endswith("01_bahdanau--answer-1"))
    number = printed.begins[answer]
    assert "Answers" in printed.texts[number - 1]
    assert f"Answer 1, page {number}" in " ".join(
        printed.texts[printed.begins[answer.replace("answer", "asked")] - 1].split()
    )


def test_solutions_print_what_is_new(site):
    page = parsed(site, "exercises/01_bahdanau", "solutions/01_bahdanau").select_one("#solutions-01_bahdanau")
    text = page.get_text()
    assert "def additive_score(" in text
    assert not re.search(r"Hint 1|difficulty|SOLUTION|check\(|BEGIN", text)
    numbers = [link["href"].removeprefix("#exercises-01_bahdanau--") for link in page.select(".to-exercise a")]
    assert numbers == [title.parent["id"].split("--")[1] for title in page.select("h3")]


def test_what_only_a_computer_needs_is_left_out(site):
    page = parsed(site, "notebooks/05_causal", "book/checks", "book/claims")
    text = " ".join(page.get_text().split())
    folded = read(site / "notebooks/05_causal.html").select(".cell details.hide pre")
    assert folded
    assert not [code for code in folded if " ".join(code.get_text().split()) in text]
    assert "Code behind figures is in the notebooks" in text
    assert "scrolls sideways" not in text
    assert "Steps to" not in text
    assert len(page.select("#book-checks table")) == 3
    assert re.search(r"\d+ misconceptions in \d+ exercises", text)
    ids = {node["id"] for node in page.select("[id]")}
    assert {link["href"][1:] for link in page.select('#book-checks a[href^="#"]')} <= ids


def test_chapters_print_the_new_rows_of_the_comparison(site):
    page = parsed(site, "notebooks/02_luong", "notebooks/16_choosing")
    (new,) = page.select("#notebooks-02_luong .ac-new table")
    assert [len(row.select("th, td")) for row in new.select("tr")] == [4] * 9
    assert page.select_one(".ac-new figcaption a")["href"] == "#notebooks-16_choosing--running-comparison"
    assert len(page.select("#notebooks-16_choosing--running-comparison tr")) > 20


def test_tables_fit_and_break_no_word(browser, site, tmp_path):
    path = tmp_path / "book.html"
    path.write_text(document(site, ["notebooks/16_choosing", "book/oracles", "notebooks/13_gqa"])[0], encoding="utf-8")
    sheet = browser.new_page(viewport={"width": PAPER, "height": 900}, java_script_enabled=False)
    sheet.goto(path.as_uri(), wait_until="load")
    sheet.emulate_media(media="print")
    assert sheet.evaluate(BROKEN, "table :is(th, td code)") == []
    assert sheet.evaluate("() => document.documentElement.scrollWidth") <= PAPER
    sheet.close()


def test_pages_are_filled_and_no_heading_ends_one(printed):
    headings = {" ".join(h.get_text().split()) for h in parsed(printed.site, *PAGES).select("h3, h4")}
    starts = {number for anchor, number in printed.begins.items() if "--" not in anchor}
    for number, text in enumerate(printed.texts[3:-1], start=4):
        lines = text.strip().splitlines()
        assert not headings & set(lines[-2:]), number
        if not {number, number + 1} & starts and number + 2 not in starts:
            assert len(text) > 350, number


def test_an_address_is_printed_once(printed):
    text = "".join(printed.texts)
    assert "arXiv:1409.0473" in text
    assert "arxiv.org/abs/1409.0473" not in text


def test_the_version_ends_the_footer(site, printed):
    assert re.search(r"Version \d+(\.\d+)+$", read(site / HOME).select_one(".bd-footer-content").get_text().strip())
    assert re.search(r"Version \d+(\.\d+)+$", printed.texts[0].strip())


def test_an_unknown_page_is_named(site):
    with pytest.raises(ValueError, match="no page of the book is called notebooks/99"):
        document(site, ["notebooks/99"])


@pytest.mark.parametrize("name", ["notebooks/16_choosing", "book/oracles", "exercises/03_self_attention"])
def test_a_single_page_fits_on_paper(browser, address, name):
    sheet = browser.new_page(viewport={"width": PAPER, "height": 900})
    sheet.goto(f"{address}/{name}.html", wait_until="load")
    sheet.emulate_media(media="print")
    assert sheet.evaluate(WIDER) == []
    assert sheet.evaluate(BROKEN, "table th") == []
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
