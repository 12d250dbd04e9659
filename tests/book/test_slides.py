"""The slides of the chapters: which cells are on them, what of their prose, and whether they fit."""

import os
from collections import Counter

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_output

from attncourse import show
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
        (
            "A first sentence that is long enough for a slide. Not this. It runs at\n\n$$\nx\n$$",
            "A first sentence that is long enough for a slide. It runs at\n\n$$\nx\n$$",
        ),
        (
            "Long enough to stand on a slide without more.\n\nThe byte model on 32 more:",
            "Long enough to stand on a slide without more.",
        ),
        (
            "- **New** Chapters 12 and 13 shared heads. Here not. More.",
            "- **New** Chapters 12 and 13 shared heads. Here not.",
        ),
        ("<details><summary>Hint</summary>\n\nHidden.\n\n</details>\n\nSeen.", "Seen."),
    ],
)
def test_of_prose_a_slide_takes_what_stands_in_front(prose, on_the_slide):
    assert slides.shown(prose) == on_the_slide


def test_a_line_that_announces_the_next_cell_stays():
    assert slides.shown("Six patterns on 256 tokens, which are causal:", more=True).endswith(":")


def test_a_cell_can_say_what_its_slide_says():
    cell = nbformat.v4.new_markdown_cell(
        "## A\n\nProse.", metadata={"slideshow": {"slide_type": "slide", "text": "Own."}}
    )
    notebook = slides.slides(nbformat.v4.new_notebook(cells=[cell]))
    assert [cell.source for cell in notebook.cells] == ["## A\n\nOwn.", "## A\n\nProse."]


LAYER = '''"""A module."""

import torch

__all__ = ["Layer"]


def check_size(n):
    raise ValueError(n)


def _helper(x):
    return x


class Layer(nn.Module):
    """A layer."""

    def __init__(
        self,
        n: int,
    ):
        """Made."""
        check_size(n)
        if n > 3:
            raise ValueError(n)
        self.n = n

    # why
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Run."""
        return x  # (B, T)
'''


def test_of_a_program_a_slide_takes_what_it_computes():
    assert slides.essence(LAYER).strip() == (
        "class Layer(nn.Module):\n\n    def __init__(self, n):\n        self.n = n\n\n"
        "    # why\n    def forward(self, x, *, mask=None):\n        return x  # (B, T)"
    )
    assert "__init__" not in slides.essence(LAYER, long=True)
    ((html, said),) = slides.programs(LAYER)
    assert "forward" in html
    assert "<code>forward</code>: Run." in said


def test_a_long_program_is_cut_between_definitions():
    methods = "\n".join(f"    def f{i}(self):\n        a = {i}\n        b = a\n\n        return b\n" for i in range(9))
    parts = slides.cut("X = 1\n\n\nclass A:\n" + methods)
    assert len(parts) > 2
    assert parts[0].startswith("X = 1")
    assert all(part.startswith("class A:  # goes on\n    def f") for part in parts[1:])
    assert all(part.endswith("return b") and len(part.split("\n")) <= slides.LINES + 1 for part in parts)


def test_of_a_long_program_the_first_parts_are_shown():
    long = "\n\n".join(f"def f{i}(x):\n" + "    x = x + 1\n" * 15 for i in range(9))
    parts = slides.programs(long)
    assert len(parts) == slides.PARTS
    assert ["f0" in parts[0][0], "f3" in parts[3][0]] == [True, True]


def test_a_program_that_is_one_check_is_shown():
    assert slides.essence("def check_size(n):\n    raise ValueError(n)").count("raise") == 1


def test_the_chapters_new_rows_are_lines_of_a_table():
    output = new_output("display_data", {"text/html": show.comparison("kv_cache").html})
    ((html, _),) = slides.split(output)
    rows = BeautifulSoup(html, "html.parser").select("tr")
    assert len(rows) == 9
    assert [cell.get_text() for cell in rows[0]] == [
        "mechanism",
        "Key-value cache, exact",
        "Quantized cache (8 or 4 bits)",
    ]


def test_the_speaker_is_told_the_answers():
    output = new_output("display_data", {"text/html": show.predict("Which?", "Both, as `a` says.").html})
    assert slides.split(output)[0][1] == "<p>Both, as <code>a</code> says.</p>"
    output = new_output("display_data", {"text/html": show.questions("kv_cache").html})
    parts = slides.split(output)
    assert len(parts) == 5
    assert parts[0][1].startswith("<p><b>A. 2 · 32 · 8 · 128 = 65,536.</b> A key and a value for each layer")


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
