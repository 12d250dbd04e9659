"""Search finds pages and leads to them: served, and opened from the disk, where browsers let scripts fetch nothing."""

import re

import pytest

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


@pytest.mark.parametrize(
    ("term", "heading"),
    [("grouped-query", "Grouped-query attention"), ("bibliography", "Bibliography"), ("repeat_kv", "")],
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


def test_what_is_nowhere_is_not_found(sheet, start):
    sheet.goto(start)
    assert ask(sheet, "qwertzuiop") == []


def test_a_link_within_the_page_goes_there(sheet, start):
    sheet.goto(start)
    sheet.locator(".bd-sidebar-secondary").get_by_role("link", name="Chapters").click()
    sheet.wait_for_url(re.compile("#chapters$"))
    top = sheet.evaluate("() => document.querySelector('#chapters h2').getBoundingClientRect().top")
    assert 0 <= top < 300
