"""The running comparison table: each chapter adds its mechanism's row."""

import json
from importlib.resources import files

from attncourse.show.html import Output, fragment, prose, table, text_table

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


def comparison(chapter: str) -> Output:
    """The comparison table of `data/comparison.json` as it stands after `chapter`, such as "bahdanau"."""
    rows = json.loads((files("attncourse") / "data" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    chapters = [row["chapter"] for row in rows]
    if chapter not in chapters:
        raise ValueError(f"no row of the comparison table belongs to {chapter!r}; there are {', '.join(chapters)}")
    last = max(i for i, name in enumerate(chapters) if name == chapter)
    header = list(COLUMNS.values())
    cells = [[row[name] for name in COLUMNS] for row in rows[: last + 1]]
    caption = "The running comparison; the last row is new."
    body = f"<figure><figcaption>{prose(caption)}</figcaption>{table(header, cells, caption)}</figure>"
    return Output(f"{caption}\n{text_table(header, cells)}", fragment(body, kind="comparison"))
