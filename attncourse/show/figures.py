"""House style for figures, and a matplotlib figure as inline SVG that follows the page's colours."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

from attncourse.show.html import Output, fragment, prose, require_text, text_table, to_columns
from attncourse.show.html import table as html_table

# One colour each through the whole book; at least 3:1 against white and against the theme's dark background.
PALETTE = {
    "query": "#2a82c4",
    "key": "#d0620e",
    "value": "#16936b",
    "output": "#b8609c",
    "neutral": "#75808c",
    "neutral_light": "#8b949e",
}

# Keyword arguments of `plot`: colour never carries meaning alone.
MARKS = {
    name: {"color": PALETTE[name], "linestyle": linestyle, "marker": marker}
    for name, linestyle, marker in (
        ("query", "-", "o"),
        ("key", "--", "s"),
        ("value", "-.", "^"),
        ("output", (0, (5, 1, 1, 1, 1, 1)), "D"),
        ("neutral", ":", "x"),
        ("neutral_light", (0, (1, 3)), "+"),
    )
}

RC = {
    "figure.figsize": (5, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["neutral_light"],
    "grid.alpha": 0.35,
    "grid.linewidth": 0.7,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "axes.prop_cycle": cycler(color=[mark["color"] for mark in MARKS.values()])
    + cycler(linestyle=[mark["linestyle"] for mark in MARKS.values()])
    + cycler(marker=[mark["marker"] for mark in MARKS.values()]),
}


def style() -> AbstractContextManager:
    """House style, for `with show.style():` around the code that draws. Leave black black: `figure` recolours it."""
    return plt.style.context(["default", RC])


def figure(
    fig: Figure,
    *,
    alt: str,
    caption: str,
    table: Mapping[str, Sequence] | Sequence[Mapping[str, Any]] | None = None,
) -> Output:
    """A matplotlib figure as SVG in the page, with caption, alternative text and the numbers behind it.

    Draw it 5 inches wide, with `style()`: the SVG then fits a phone at full size (11 pt is 11 px on a screen 390 px
    wide, 16 px on a large one). Stack panels, do not put them side by side. Black becomes the text's colour of the
    page, the background is transparent. alt says what the figure shows, caption what to notice (`code` in
    backquotes is set as code); table is a dict of columns or a list of rows as dicts. Closes `fig`, so that it is
    not shown twice. The same figure gives the same characters.
    """
    require_text(alt=alt, caption=caption)
    if re.search(r"\.(png|svg|jpe?g|gif|pdf|webp)\s*$", alt, re.IGNORECASE):
        raise ValueError(f"alt={alt!r} is a file's name; say what the figure shows")
    text = f"Figure: {caption}\n{alt}"
    body = f"{inline_svg(fig, alt)}<figcaption>{prose(caption)}</figcaption>"
    if table is not None:
        summary = "Numbers behind this figure"
        header, rows = to_columns(table)
        text += "\n\n" + text_table(header, rows)
        body += f"<details><summary>{summary}</summary>{html_table(header, rows, summary)}</details>"
    plt.close(fig)
    return Output(text, fragment(f"<figure>{body}</figure>", kind="figure"))


def inline_svg(fig: Figure, alt: str) -> str:
    """The figure's SVG, made fit for a page: no date, no style for the whole page, no id that another could have."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attncourse"}):
        fig.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.06, metadata={"Date": None}
        )
    svg = buffer.getvalue()
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    svg = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _tidy(tag[0]), svg)
    svg = re.sub(r">\s*\n\s*<", "><", svg).strip().replace("<defs></defs>", "").replace("<defs/>", "")
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    prefix = "ac" + hashlib.sha256((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in wanted else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", svg)
    # matplotlib leaves out what is black by default, hence the fill; 1.1 CSS pixels for each of a 96th of an inch.
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}" fill="currentColor" '
        f'stroke-linejoin="round" stroke-linecap="butt" style="max-width:{width * 1.1 * 96 / 72:.0f}px">{svg}</svg>'
    )


def _tidy(tag: str) -> str:
    """One tag, with black as the page's text colour, the page's font, and coordinates of a thousandth of a point."""
    tag = re.sub(r"\s+", " ", tag).replace("xlink:href", "href")
    tag = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", tag)
    tag = re.sub(r"'DejaVu Sans'(, [^;\"]*sans-serif)?(?=[;\"])", "var(--ac-font)", tag)
    return re.sub(r'( (?:d|x|y)=")([^"]*)', lambda m: m[1] + re.sub(r"(\.\d{3})\d+", r"\1", m[2]), tag)
