"""The slides of the chapters: which cells are on them, what of their prose, and whether they fit."""

import os
from collections import Counter

import nbformat
import pytest

from scripts import slides

NOTEBOOKS = sorted((slides.ROOT / "notebooks").glob("*.ipynb"))
CHOSEN = os.environ.get("SLIDES", "13_gqa")  # `make test-all` sets it to "all"
DECKS = [path.stem for path in NOTEBOOKS] if CHOSEN == "all" else CHOSEN.split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_has_ten_to_twenty_slides(path):
    cells = nbformat.read(path, as_version=4).cells
    types = Counter(cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells)
    assert set(types) <= {None, "slide", "subslide", "-", "notes"}
    assert 10 <= types["slide"] <= 20
    assert cells[0].metadata.slideshow.slide_type == "slide"


@pytest.mark.parametrize(
    ("prose", "on_the_slide"),
    [
        (
            "## A\n\nA sentence that is long enough for a slide. [Two](y.ipynb).",
            "## A\n\nA sentence that is long enough for a slide.",
        ),
        (
            "Short. The next sentence stands on the slide, too? Not this.",
            "Short. The next sentence stands on the slide, too?",
        ),
        (
            "**What it costs.** $2GD$ numbers a token and layer. More.",
            "**What it costs.** $2GD$ numbers a token and layer.",
        ),
        (
            "[Cho et al. 2014](b.md#cho2014) wrote about machine translation. More.",
            "Cho et al. 2014 wrote about machine translation.",
        ),
        ("$$\nx. Y\n$$\n\n| a |\n| - |\n| b. C |", "$$\nx. Y\n$$\n\n| a |\n| - |\n| b. C |"),
        (
            "1. One item of a list, not of the shortest. Two.\n2. three ([exercise 1](e.ipynb));",
            "1. One item of a list, not of the shortest.\n2. three;",
        ),
        ("<details><summary>Hint</summary>\n\nHidden.\n\n</details>\n\nSeen.", "Seen."),
    ],
)
def test_of_prose_a_slide_takes_what_stands_in_front(prose, on_the_slide):
    assert slides.shown(prose) == on_the_slide


def test_a_long_program_is_cut_at_empty_lines():
    source = "\n".join(f"def f{i}():\n    '''\n    A text.\n    '''\n    return {i}\n\n" for i in range(12))
    parts = slides.programs(source)
    assert len(parts) > 2
    assert all("f" in part.split("\n")[0] for part in parts)
    assert sum(part.count("return") for part in parts) == 12


def test_a_notebook_without_slides_is_refused():
    with pytest.raises(ValueError, match="no cell of the notebook has a slide type"):
        slides.slides(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A")]))


@pytest.mark.browser
@pytest.mark.parametrize("name", DECKS)
def test_slides_fit_and_load_nothing_from_elsewhere(browser, tmp_path, name):
    slides.libraries(tmp_path)
    path = slides.make(slides.EXECUTED / f"{name}.ipynb", tmp_path)
    sheet = browser.new_page(viewport={"width": 1280, "height": 720})
    requests, errors = [], []
    sheet.on("request", lambda request: requests.append(request.url))
    sheet.on("requestfailed", lambda request: errors.append(request.url))
    sheet.on("pageerror", lambda error: errors.append(str(error)))
    sheet.goto(path.as_uri(), wait_until="load")
    sheet.wait_for_function("Reveal.isReady()")
    cells = sheet.evaluate("Reveal.getSlides().map((slide) => slide.dataset.cell)")
    too_large = {}
    for cell in cells:
        pixels = sheet.evaluate("overflow(Reveal.getCurrentSlide())")
        if pixels > 0:
            too_large[cell] = pixels
        sheet.evaluate("Reveal.next()")
    assert sheet.evaluate("Reveal.isLastSlide()")
    assert too_large == {}
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert sheet.locator(".katex").count()
    assert not sheet.locator(".katex-error").count()
    assert sheet.locator("aside.notes").count() >= 10
    sheet.close()
