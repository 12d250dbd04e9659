"""Interactive pieces. Python draws and rounds; the script only moves what is marked and says what stands there."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from attncourse.show.html import (
    Output,
    fragment,
    prose,
    require_text,
    scroll,
    table,
    text_table,
    two_decimals,
)

NOTE = "Weights show where information could flow; they do not explain a decision."

# From these weights on, text on a cell is turned over to keep 4.5:1: in the dark theme, and in the light one.
DARK_FLIP, LIGHT_FLIP = 0.54, 0.71


def alignment(
    examples: Sequence[Mapping[str, Any]],
    query_label: str = "output word",
    key_label: str = "source word",
    title: str = "Who looks at whom",
    caption: str = "How much of each source word every output word takes.",
    quantity: str = "weight",
) -> Output:
    """Attention weights of a few examples, explored one query at a time with the arrow keys.

    examples: dicts with `source` (S tokens), `target` (T tokens), `weights` (T×S, nested lists or a tensor, each
    between 0 and 1, rounded here to four decimals) and optionally `title`. A row need not add up to 1 (local
    attention's does not). Shows two decimals; `.data` holds what the page was given. Without scripts: the first
    example's heatmap and every example's table. Up to about 25 words each way. quantity: what the numbers are called,
    where they are not attention weights.

    Raises ValueError where the shapes and tokens do not fit.
    """
    require_text(query_label=query_label, key_label=key_label, title=title, caption=caption)
    if not examples:
        raise ValueError("alignment needs at least one example")
    records = [_record(i, example) for i, example in enumerate(examples)]
    caption = f"{caption} {NOTE}" if quantity == "weight" else caption
    data = {"query_label": query_label, "key_label": key_label, "quantity": quantity, "examples": records}
    maps, tables, texts = [], [], []
    for i, record in enumerate(records):
        header = [query_label, *record["source"]]
        rows = [
            [token, *map(two_decimals, row)] for token, row in zip(record["target"], record["weights"], strict=True)
        ]
        hidden = " hidden" if i else ""
        heading = f"<p><b>{escape(record['title'])}</b></p>" if len(records) > 1 else ""
        svg = scroll(heatmap(record, query_label, key_label), f"Heatmap: {record['title']}")
        maps.append(f'<div class="ac-map"{hidden}>{heading}{svg}</div>')
        said = f"{record['title']}: {quantity} on each {key_label}"
        tables.append(table(header, rows, said, said))
        texts.append(f"{said}\n{text_table(header, rows)}")
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>{"".join(maps)}'
        f"<details><summary>All {quantity}s as a table</summary>{''.join(tables)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    html = fragment(body, kind="alignment", piece="alignment", script="alignment.js", data=data)
    return Output("\n\n".join([title, *texts, caption]), html, data)


def _record(i: int, example: Mapping[str, Any]) -> dict[str, Any]:
    """One example, checked, as plain JSON values."""
    if missing := {"source", "target", "weights"} - set(example):
        raise ValueError(f"example {i} lacks {', '.join(sorted(missing))}")
    source, target, weights = list(example["source"]), list(example["target"]), example["weights"]
    weights = weights.tolist() if hasattr(weights, "tolist") else [list(map(float, row)) for row in weights]
    for name, tokens in (("source", source), ("target", target)):
        if not tokens or not all(isinstance(token, str) and token for token in tokens):
            raise ValueError(f"example {i}: {name} must be a list of words, none of them empty; it is {tokens}")
    sizes = {len(row) for row in weights}
    if len(weights) != len(target) or sizes != {len(source)}:
        raise ValueError(
            f"example {i}: weights have {len(weights)} rows of {sorted(sizes)} numbers, "
            f"but there are {len(target)} target and {len(source)} source words"
        )
    for row in weights:
        for weight in row:
            if not (math.isfinite(weight) and -1e-4 <= weight <= 1 + 1e-4):
                raise ValueError(f"example {i}: weight {weight} is not between 0 and 1")
    rounded = [[min(1.0, max(0.0, round(weight, 4))) for weight in row] for row in weights]
    title = str(example.get("title") or " ".join(source))
    return {"title": title, "source": source, "target": target, "weights": rounded}


def heatmap(record: Mapping[str, Any], query_label: str, key_label: str) -> str:
    """Weights (T, S) as SVG: a row for each query, whose frame and arrow a script shows by the class `ac-on`."""
    source, target, weights = record["source"], record["target"], record["weights"]
    n_rows, n_columns = len(target), len(source)
    numbered = n_columns <= 10
    cell_width, cell_height = (40, 30) if numbered else (24, 24)
    letter = 7.4  # an average letter at 13 px, a little wide
    longest = letter * max(map(len, source))
    turned = longest > cell_width - 6
    left = 26 + letter * max(*map(len, target), len(query_label))
    top = 30 + (0.72 * longest + 12 if turned else 18)
    overhang = 0.72 * letter * max(len(token) - (n_columns - 1 - j) * 3 for j, token in enumerate(source))
    key_width = letter * (len(key_label) + 2)
    width = left + max(n_columns * cell_width + (max(0, overhang - 8) if turned else 0), key_width) + 4
    height = top + n_rows * cell_height + 4
    lines = "".join(f"M{left:g} {top + i * cell_height:g}h{n_columns * cell_width}" for i in range(n_rows + 1))
    lines += "".join(f"M{left + j * cell_width:g} {top:g}v{n_rows * cell_height}" for j in (0, n_columns))
    parts = [
        f'<path class="ac-lines" d="{lines}"/>',
        f'<text x="{left - 8:g}" y="{top - 8:g}" class="ac-dim ac-end">{escape(query_label)} ↓</text>',
        f'<text x="{left:g}" y="14" class="ac-dim">{escape(key_label)} →</text>',
    ]
    for j, token in enumerate(source):
        x, y = left + (j + 0.5) * cell_width, top - 8
        place = f'x="{x:g}" y="{y:g}" class="ac-mid"'
        if turned:
            place = f'transform="translate({x + 4:g} {y:g}) rotate(-45)"'
        parts.append(f"<text {place}>{escape(token)}</text>")
    for i, (token, row) in enumerate(zip(target, weights, strict=True)):
        y, middle = top + i * cell_height, top + (i + 0.5) * cell_height + 4.5
        parts.append(
            f'<g class="ac-row"><text x="{left - 5:g}" y="{middle:g}" class="ac-end ac-arrow">▸</text>'
            f'<text x="{left - 17:g}" y="{middle:g}" class="ac-end">{escape(token)}</text>'
        )
        for j, weight in enumerate(row):
            if (shown := two_decimals(weight)) == "0.00":
                continue
            x = left + j * cell_width
            parts.append(
                f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{cell_width - 2}" height="{cell_height - 2}" '
                f'fill-opacity="{shown}"/>'
            )
            if numbered:
                flipped = (float(shown) >= DARK_FLIP) + (float(shown) >= LIGHT_FLIP)
                parts.append(
                    f'<text x="{x + cell_width / 2:g}" y="{middle - 0.5:g}" class="ac-t{flipped}">{shown}</text>'
                )
        size = f'width="{n_columns * cell_width}" height="{cell_height}"'
        parts.append(f'<rect class="ac-frame" x="{left:g}" y="{y:g}" {size}/></g>')
    alt = f"Heatmap of attention weights, {n_rows} × {n_columns}; the numbers are in the table below."
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{alt}" '
        f'style="max-width:{width:.0f}px;min-width:{0.8 * width:.0f}px">{"".join(parts)}</svg>'
    )
