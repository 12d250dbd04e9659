"""Figures: the same characters each time, ids of their own, the page's colours, numbers in a table."""

import re
import xml.etree.ElementTree as ET

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from attncourse import show


def draw(end: float = 3.0) -> plt.Figure:
    with show.style():
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3], [1, 2, end], label="a < b", **show.MARKS["query"])
        ax.plot([1, 2, 3], [3, 2, 1], "k--", label="black")
        ax.fill_between([1, 2], [1, 1], [2, 2], color="black", alpha=0.2)
        ax.set_xlabel("length $d_k$")
        ax.legend()
    return fig


def page(fig: plt.Figure, **changes) -> str:
    arguments = {"alt": "Two lines that cross.", "caption": "Notice `a`."} | changes
    return show.figure(fig, **arguments)._repr_mimebundle_()["text/html"]


def test_the_same_figure_gives_the_same_characters():
    assert page(draw()) == page(draw())


def test_ids_are_used_and_differ_between_figures():
    one, two = page(draw(3.0)), page(draw(4.0))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for text, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) == own
        assert len(re.findall(r'\bid="', text)) == len(own)


def test_svg_follows_the_page():
    svg = re.search(r"<svg.*</svg>", page(draw()), re.DOTALL)[0]
    ET.fromstring(svg)  # well formed
    assert 'role="img" aria-label="Two lines that cross."' in svg and 'fill="currentColor"' in svg
    assert "#000000" not in svg and "stroke: currentColor" in svg
    assert "<style" not in svg and "<metadata" not in svg and "<!--" not in svg and "xlink" not in svg
    assert "DejaVu" not in svg and "a &lt; b</text>" in svg
    assert "fill: #ffffff" not in svg


def test_widest_text_fits_a_phone():
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', page(draw()))[1])
    assert show.figures.RC["font.size"] * 358 / width >= 10.8  # pixels, in the column of a screen 390 px wide


def test_table_caption_and_text():
    output = show.figure(draw(), alt="Lines.", caption="See <x>.", table={"n": [1, 2], "loss": [0.5, None]})
    html = output._repr_mimebundle_()["text/html"]
    assert "<summary>Numbers behind this figure</summary>" in html
    assert '<th scope="col">loss</th>' in html and '<th scope="row">2</th><td>–</td>' in html
    assert "<figcaption>See &lt;x&gt;.</figcaption>" in html
    assert repr(output) == "Figure: See <x>.\nLines.\n\nn  loss\n1   0.5\n2     –"


def test_the_figure_is_closed_and_the_style_does_not_stay():
    before = matplotlib.rcParams["font.size"]
    fig = draw()
    page(fig)
    assert not plt.fignum_exists(fig.number)
    assert matplotlib.rcParams["font.size"] == before


@pytest.mark.parametrize("alt", ["", "  ", None, "loss.png", "figures/a.SVG "])
def test_alt_says_what_is_shown(alt):
    with pytest.raises(ValueError, match="alt="):
        show.figure(plt.figure(), alt=alt, caption="c")
    plt.close("all")


def test_alt_and_caption_are_required():
    with pytest.raises(TypeError):
        show.figure(plt.figure())
    with pytest.raises(ValueError, match="caption="):
        show.figure(plt.figure(), alt="Lines.", caption="")
    plt.close("all")


def test_marks_differ_in_more_than_colour():
    for key in ("color", "linestyle", "marker"):
        assert len({str(mark[key]) for mark in show.MARKS.values()}) == len(show.MARKS) == len(show.PALETTE)
