"""A page of its own for each browser test, which must not ask for anything or complain."""

import pytest

PAGE = """<!doctype html><html lang="en"{attributes}><head><meta charset="utf-8"><title>Test</title>
<meta name="viewport" content="width=device-width,initial-scale=1"></head><body><main>{content}</main></body></html>"""


@pytest.fixture
def open_page(browser):
    contexts, complaints = [], []

    def open_page(html: str, attributes: str = "", **options):
        context = browser.new_context(**({"viewport": {"width": 1000, "height": 800}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.set_content(PAGE.format(attributes=attributes, content=html))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
