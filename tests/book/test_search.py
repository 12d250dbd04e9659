"""Search finds pages and leads to them: served, and opened from the disk, where browsers let scripts fetch nothing."""

import re
from urllib.parse import quote

import pytest

from tests.book.extensions import ROOT, load

pytestmark = pytest.mark.browser


@pytest.fixture(params=["served", "from the disk"])
def start(request, site, address):
    """The address of the landing page."""
    return f"{address if request.param == 'served' else site.as_uri()}/book/intro.html"


@pytest.fixture
def sheet(browser, start):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    if start.startswith("file:"):  # the words around a result are fetched: from the disk a result has its title only
        errors = [error for error in errors if error != "Failed to fetch"]
    assert not errors


def ask(sheet, term):
    """Type a term as a reader does with the keyboard; returns the titles of the results."""
    sheet.keyboard.press("Control+k")
    sheet.keyboard.type(term)
    sheet.keyboard.press("Enter")
    sheet.wait_for_url(re.compile(r"search\.html\?q="))
    sheet.locator("#search-results .search-summary").filter(has_text=re.compile("found|did not match")).wait_for()
    return sheet.locator("#search-results ul.search li > a").all_text_contents()


FIRST = {  # what a reader types: the page that comes first
    "GQA": "notebooks/13_gqa",
    "grouped query attention": "notebooks/13_gqa",
    "RoPE": "notebooks/07_positions",
    "rotary": "notebooks/07_positions",
    "positional encoding": "notebooks/07_positions",
    "MLA": "notebooks/14_mla",
    "MHA": "notebooks/06_multi_head",
    "multi-head": "notebooks/06_multi_head",
    "KV cache": "notebooks/11_kv_cache",
    "key-value cache": "notebooks/11_kv_cache",
    "sliding window": "notebooks/08_sliding_window",
    "sliding window attention": "notebooks/08_sliding_window",
    "self attention": "notebooks/03_self_attention",
    "causal mask": "notebooks/05_causal",
    "softmax": "notebooks/00_start",
    "bahdanau": "notebooks/01_bahdanau",
    "FlashAttention": "notebooks/15_execution",
    "Longformer": "notebooks/09_sparse",  # a heading
    "bottleneck": "book/glossary",  # its entry links no chapter
    "prerequisites": "book/prerequisites",
    "install": "book/how_to_use",
    "grading": "book/teaching/guide",
    "claims": "book/claims",
    "bibliography": "book/bibliography",
}


@pytest.mark.parametrize(
    ("term", "heading"),
    [("grouped-query", "13 Grouped-query attention"), ("bibliography", "Bibliography"), ("repeat_kv", "")],
)
def test_a_term_leads_to_its_page(sheet, start, term, heading):
    sheet.goto(start)
    titles = ask(sheet, term)
    assert any(title.startswith(heading) for title in titles), titles
    result = sheet.locator("#search-results ul.search li > a").filter(has_text=heading).first
    title = result.text_content()
    result.click()
    sheet.wait_for_load_state("load")
    assert "search.html" not in sheet.url
    assert title.partition(" > ")[0] in sheet.locator("article h1").first.text_content()


@pytest.mark.parametrize("term", FIRST)
def test_the_right_page_comes_first(browser, site, term):
    page = browser.new_page()
    page.goto(f"{site.as_uri()}/search.html?q={quote(term)}")
    page.locator("#search-results .search-summary").filter(has_text="found").wait_for()
    found = page.locator("#search-results ul.search li > a").evaluate_all("links => links.map(a => a.href)")
    page.close()
    assert found[0].partition("#")[0] == f"{site.as_uri()}/{FIRST[term]}.html", found[:5]


def test_every_name_is_of_a_page():
    pages = {page for page in load("attncourse_search").NAMES if not any(ROOT.glob(f"{page}.*"))}
    assert not pages, "names of pages that are not there"


def test_the_glossary_names_chapters():
    titles = {
        "notebooks/01_x": "01 First-hand attention",
        "notebooks/02_y": "Y’s",
        "book/z": "Z",
        "solutions/01_x": "S",
    }
    glossary = """# Glossary

## Loose term

Without a chapter, unlike the next one.

## Quick-step attention (QSA)

[Chapter 01](../notebooks/01_x.ipynb) uses it, [chapter 02](../notebooks/02_y.ipynb) is about it.

## Gone

[Chapter 03](../notebooks/03_gone.ipynb).
"""
    found = {name: page for page, name in load("attncourse_search").entries(titles, glossary)}
    own = {"x", "first-hand attention", "first hand attention", "first-hand-attention"}
    term = {"y", "y's", "qsa", "quick-step attention", "quick step attention", "quick-step-attention"}
    assert found == dict.fromkeys(own, "notebooks/01_x") | dict.fromkeys(term, "notebooks/02_y") | {"z": "book/z"}


def test_the_results_are_announced_and_one_tab_away(sheet, start):
    sheet.goto(start)
    ask(sheet, "GQA")
    status = sheet.get_by_role("status").filter(has_text=re.compile(r"found \d+ page"))
    assert status.evaluate("status => status === document.activeElement")
    links = sheet.locator("#search-results ul.search li > a")
    for i in range(2):
        sheet.keyboard.press("Tab")
        assert links.nth(i).evaluate("link => link === document.activeElement")


def test_a_reader_who_types_on_keeps_the_focus(browser, site):
    page = browser.new_page()
    page.add_init_script("""addEventListener("DOMContentLoaded", () => document.querySelector("main input").focus())""")
    page.goto(f"{site.as_uri()}/search.html?q=GQA")
    page.locator("#search-results .search-summary").filter(has_text="found").wait_for()
    assert page.evaluate("document.activeElement.name") == "q"
    page.close()


def test_what_is_nowhere_is_not_found(sheet, start):
    sheet.goto(start)
    assert ask(sheet, "qwertzuiop") == []


def test_a_link_within_the_page_goes_there(sheet, start):
    sheet.goto(start)
    sheet.locator(".bd-sidebar-secondary").get_by_role("link", name="Chapters").click()
    sheet.wait_for_url(re.compile("#chapters$"))
    top = sheet.evaluate("() => document.querySelector('#chapters h2').getBoundingClientRect().top")
    assert 0 <= top < 300
