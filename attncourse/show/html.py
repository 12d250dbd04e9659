"""What every output of `show` is made of: text, self-contained HTML, tables, numbers."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any


class Output:
    """What a cell shows: plain text (terminals, plain viewers) and HTML (everywhere else).

    `data` is what an interactive piece was given as JSON, so that a test can hold the page to these numbers.
    """

    def __init__(self, text: str, html: str, data: Any = None):
        self.text, self.html, self.data = text, html, data

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self.html}


def fragment(
    body: str,
    *,
    kind: str,
    piece: str | None = None,
    script: str | None = None,
    data: Any = None,
    styles: Sequence[str] = (),
) -> str:
    """The HTML of one output: its styles, `body`, and for an interactive `piece` its JSON and its scripts.

    kind: CSS class `ac-<kind>` of the root. script: the file in `static/` that registers the piece. styles: files
    that only this kind of output needs. The library is repeated in each output, because each of Colab's outputs is a
    document of its own; it defines itself once.
    """
    if piece is None:
        css = "".join(map(static, ("course.css", *styles)))
        return f'<div class="ac ac-{kind}"><style>{css}</style>{body}</div>'
    css = "".join(map(static, ("course.css", "pieces.css", *styles)))
    return (
        f'<div class="ac ac-piece ac-{kind}" data-ac="{piece}" data-lm-suppress-shortcuts="true">'
        f"<style>{css}</style>{body}"
        f'<script type="application/json">{to_json(data)}</script></div>'
        f"<script>{static('course.js')}{static(script)}</script>"
    )


@cache
def static(name: str) -> str:
    """A file of `show/static/`, without its indentation and its comment lines."""
    text = (files("attncourse.show") / "static" / name).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//")) + "\n"


def to_json(data: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def prose(text: str) -> str:
    """Escaped text, with `backquoted` parts as code. Nothing else is read; mathematics is plain Unicode (d_k, √d)."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def two_decimals(x: float) -> str:
    """x with two decimals, ties away from zero as JavaScript's toFixed does (Python's own format rounds 0.125 down)."""
    return str(Decimal(x).quantize(Decimal("0.01"), ROUND_HALF_UP))


def number(value: Any) -> str:
    """A table cell: text as it is, floats to four figures, None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], label: str, caption: str | None = None) -> str:
    """A table with header cells in its first row and first column, in a region that scrolls and takes the focus."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return scroll(f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", label)


def scroll(content: str, label: str) -> str:
    """`content` in a box that scrolls sideways, with the keyboard too."""
    return f'<div class="ac-scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table for a terminal: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def require_text(**texts: Any) -> None:
    """Raise unless each is a string with something in it."""
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}={text!r}, but it must be a text")


def to_columns(data: Mapping[str, Sequence] | Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of a dict of equally long columns or a list of dicts with the same keys."""
    if isinstance(data, Mapping):
        columns = {
            name: column.tolist() if hasattr(column, "tolist") else list(column) for name, column in data.items()
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the table's columns differ in length: {lengths}")
        header, rows = list(columns), list(zip(*columns.values(), strict=True))
    else:
        if not data:
            raise ValueError("the table has no rows")
        header = list(data[0])
        for i, row in enumerate(data):
            if list(row) != header:
                raise ValueError(f"row {i} of the table has the keys {list(row)}, but row 0 has {header}")
        rows = [list(row.values()) for row in data]
    return [str(name) for name in header], [[number(_scalar(value)) for value in row] for row in rows]


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
