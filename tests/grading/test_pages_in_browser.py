"""The pages of grading in a browser: no fault that axe finds, light and dark, and room on a narrow screen."""

from dataclasses import replace
from pathlib import Path

import pytest

from attncourse.grading.answers import answers_page
from attncourse.grading.feedback import class_page, student_page
from attncourse.grading.intake import Notebook
from tests.book.test_pages import AXE, AXE_OPTIONS
from tests.grading.test_feedback import graded, marked, work

pytestmark = pytest.mark.browser

QUESTIONS = ({"id": "q", "title": "Why does additive attention need tanh?", "points": 3.0},)
LONG = "a_very_long_name_of_a_notebook_" * 4 + ".ipynb"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A student's page and a summary, in files."""
    out = tmp_path_factory.mktemp("pages")
    items = [
        graded("101", name="Lovelace, Ada"),
        graded("102", name="Noether, Emmy", masked_softmax=("mistake", 2), additive_score=("raised", 0), late=True),
        graded("103", name="Gauß, Carl", Attention=("not attempted", 0), problems=(f"{LONG} is not whole JSON",)),
    ]
    words = tuple(("q", text) for text in ("It bends a sum.\n\n    So it does.", LONG * 9))
    items[1] = replace(items[1], submission=replace(items[1].submission, notebooks=(Notebook("a", (), texts=words),)))
    asked = work(questions=QUESTIONS)
    given = marked(items, asked)
    (out / "summary.html").write_text(class_page(items, asked, given, ("Fermi, Enrico",)), "utf-8")
    (out / "answers.html").write_text(answers_page(items, asked, given), "utf-8")
    for item in items[1:]:
        path = out / f"{item.submission.student}.html"
        path.write_text(student_page(item, asked, given[item.submission.student]), "utf-8")
    return out


@pytest.mark.parametrize("name", ["summary", "answers", "102", "103"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 320), ("dark", 390)])
def test_a_page_is_accessible_and_fits(name, scheme, width, browser, pages):
    sheet = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, errors = [], []
    sheet.on("request", lambda request: requests.append(request.url))
    sheet.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    sheet.goto(Path(pages / f"{name}.html").as_uri())
    assert len(requests) == 1 and not errors
    assert sheet.evaluate("() => document.documentElement.scrollWidth") <= width
    if width < 600:  # the table of exercises becomes blocks, so that nobody scrolls sideways for what was found
        inside = (
            "() => [...document.querySelectorAll('.exercises')].every(t => t.scrollWidth <= t.parentNode.clientWidth)"
        )
        assert sheet.evaluate(inside)
    background = sheet.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[scheme]
    sheet.evaluate(AXE.read_text("utf-8"))
    violations = sheet.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS)["violations"]
    assert [f"{rule['id']}: {node['html'][:120]}" for rule in violations for node in rule["nodes"]] == []
    sheet.close()
