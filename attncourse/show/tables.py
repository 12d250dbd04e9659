"""Tables: any numbers with a caption, and the running comparison to which each chapter adds its mechanism's row."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from attncourse.show.html import Output, fragment, prose, require_text, text_table, to_columns
from attncourse.show.html import table as html_table

COLUMNS = {
    "mechanism": "mechanism",
    "stored": "what is stored",
    "bytes_per_token": "bytes a token and layer",
    "prefill": "prefill cost",
    "decode": "decode cost",
    "exact": "exact?",
    "parameters": "extra parameters",
    "shipped_in": "shipped in",
    "evidence": "evidence",
}


def table(data: Mapping[str, Sequence] | Sequence[Mapping[str, Any]], *, caption: str, kind: str = "table") -> Output:
    """A table with a visible caption; `data` is a dict of columns or a list of rows as dicts.

    kind "comparison" lets the cells' text wrap, for tables of words.
    """
    require_text(caption=caption)
    header, rows = to_columns(data)
    body = f"<figure><figcaption>{prose(caption)}</figcaption>{html_table(header, rows, caption)}</figure>"
    styles = ["comparison.css"] if kind == "comparison" else []
    return Output(f"{caption}\n{text_table(header, rows)}", fragment(body, kind=kind, styles=styles))


def comparison(chapter: str) -> Output:
    """The comparison table of `data/comparison.json` as it stands after `chapter`, such as "bahdanau"."""
    rows = json.loads((files("attncourse") / "data" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    chapters = [row["chapter"] for row in rows]
    if chapter not in chapters:
        raise ValueError(f"no row of the comparison table belongs to {chapter!r}; there are {', '.join(chapters)}")
    last = max(i for i, name in enumerate(chapters) if name == chapter)
    new = chapters.count(chapter)
    shown = [{title: row[name] for name, title in COLUMNS.items()} for row in rows[: last + 1]]
    return table(
        shown,
        caption="The running comparison, which scrolls sideways; the last "
        f"{'row is' if new == 1 else f'{new} rows are'} new.",
        kind="comparison",
    )
