"""A gallery of heads: what every head of a causal model looks at in one short text, one byte or word at a time."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table, two_decimals
from attncourse.show.pieces import DARK_FLIP, LIGHT_FLIP, NOTE

LEVELS = 16  # shades of the heatmap
SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
CELL_WIDTH, CELL_HEIGHT, DOT = 10, 22, 9  # a letter of the text, and a weight of the heatmap, in pixels


def heads(
    tokens: Sequence[str],
    weights: Sequence[Tensor] | Tensor,
    *,
    names: dict[tuple[int, int], str] | None = None,
    start: tuple[int, int] = (0, 0),
    start_query: int | None = None,
    title: str = "What each head looks at",
    caption: str = "The stronger the colour of a byte, the larger its weight for the byte in the frame.",
) -> Output:
    """Weights of every head on one text of T single characters, explored by layer, head and query.

    weights: (L, H, T, T), or a list of L tensors (H, T, T), causal, each row a softmax. Stored as one byte a weight,
    the lower triangle only: 4 layers of 8 heads and 67 tokens are 97 kB. names: (layer, head) -> what to call it.
    Layers and heads count from 0, as in code; the tokens from 1. Lines break after "\\n". Without scripts: head
    `start`, its heatmap, and a table of its largest weights.

    Raises ValueError where shapes, tokens or the start do not fit, or a weight looks ahead.
    """
    require_text(title=title, caption=caption)
    tokens = list(tokens)
    if not tokens or not all(isinstance(token, str) and len(token) == 1 for token in tokens):
        raise ValueError("tokens must be single characters, one at least")
    shades, T = _shades(weights, len(tokens)), len(tokens)
    L, H = shades.shape[:2]
    layer, head = start
    query = T - 1 if start_query is None else start_query
    if not (0 <= layer < L and 0 <= head < H and 0 <= query < T):
        raise ValueError(f"start={start}, start_query={query}, but there are {L} layers, {H} heads and {T} tokens")
    names = names or {}
    if unknown := [place for place in names if not (0 <= place[0] < L and 0 <= place[1] < H)]:
        raise ValueError(f"names has {unknown[0]}, but there are {L} layers of {H} heads")
    signs = [SIGNS.get(token, token) for token in tokens]
    lower = torch.tril_indices(T, T)
    data = {
        "tokens": signs,
        "places": _places(tokens),
        "layers": L,
        "heads": H,
        "weights": [
            base64.b64encode(bytes(shades[n, m][*lower].tolist())).decode() for n in range(L) for m in range(H)
        ],
        "names": [names.get((n, m), "") for n in range(L) for m in range(H)],
        "start": [layer, head, query],
        "dot": DOT,
    }
    now = shades[layer, head]
    status = describe(data, now, layer, head, query)
    header, rows = ["token", "largest weights"], _rows(signs, now)
    said = f"{title}: the largest weights of layer {layer}, head {head}"
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{_text(data, now, query)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f"{scroll(_map(data, now, query), f'Heatmap: {title}')}"
        f"<details><summary>Layer {layer}, head {head} as a table</summary>{table(header, rows, said, said)}</details>"
        f"<figcaption>{prose(caption)} {NOTE}</figcaption></figure>"
    )
    html = fragment(body, kind="heads", piece="heads", script="heads.js", data=data, styles=["heads.css"])
    text = [title, status, f"{said}\n{text_table(header, rows)}", f"{caption} {NOTE}"]
    return Output("\n\n".join(text), html, data)


def _shades(weights: Sequence[Tensor] | Tensor, T: int) -> Tensor:
    """The weights, checked, as integers from 0 to 255: (L, H, T, T)."""
    if not isinstance(weights, Tensor):
        weights = torch.stack(list(weights))
    weights = weights.detach().cpu().double()
    if weights.dim() != 4 or weights.shape[2:] != (T, T):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; {T} tokens need (L, H, {T}, {T})")
    if weights.triu(1).any():
        raise ValueError("a weight looks ahead: the gallery shows causal heads")
    if not (weights.isfinite().all() and weights.min() >= 0 and weights.max() <= 1 + 1e-4):
        raise ValueError("weights must be between 0 and 1")
    return (255 * weights).round().clamp(max=255).long()


def _places(tokens: list[str]) -> list[list[int]]:
    """Line and column of each token: a line ends with its newline."""
    places, line, column = [], 0, 0
    for token in tokens:
        places.append([line, column])
        line, column = (line + 1, 0) if token == "\n" else (line, column + 1)
    return places


def largest(row: Sequence[int], n: int = 3) -> list[int]:
    """The keys of the n largest weights that do not round to 0.00, larger first, then nearer first."""
    shown = [j for j, shade in enumerate(row) if two_decimals(shade / 255) != "0.00"]
    return sorted(shown, key=lambda j: (-row[j], -j))[:n]


def describe(data: dict[str, Any], shades: Tensor, layer: int, head: int, query: int) -> str:
    """What the status line says of one query of one head."""
    row, signs = shades[query, : query + 1].tolist(), data["tokens"]
    name = data["names"][layer * data["heads"] + head]
    found = [f"{two_decimals(row[j] / 255)} on «{signs[j]}» {_back(query - j)}" for j in largest(row)]
    who = f"Layer {layer}, head {head}" + (f" ({name})" if name else "")
    return f"{who}, token {query + 1}, «{signs[query]}»: {', '.join(found) or 'no weight above 0.00'}"


def _back(distance: int) -> str:
    return f"{distance} back" if distance else "itself"


def _rows(signs: list[str], shades: Tensor) -> list[list[str]]:
    rows = []
    for i, sign in enumerate(signs):
        row = shades[i, : i + 1].tolist()
        said = ", ".join(f"{two_decimals(row[j] / 255)} on «{signs[j]}» {_back(i - j)}" for j in largest(row))
        rows.append([f"{i + 1} «{sign}»", said])
    return rows


def _text(data: dict[str, Any], shades: Tensor, query: int) -> str:
    """The text in cells, each as dark as the query's weight on it."""
    places, parts = data["places"], []
    for j, (sign, (line, column)) in enumerate(zip(data["tokens"], places, strict=True)):
        weight = shades[query, j].item() / 255 if j <= query else 0.0
        x, y = column * CELL_WIDTH, line * CELL_HEIGHT
        flipped = (weight >= DARK_FLIP) + (weight >= LIGHT_FLIP)
        on = ' class="ac-on"' if j == query else ""
        parts.append(
            f'<g{on}><rect x="{x + 1}" y="{y + 2}" width="{CELL_WIDTH}" height="{CELL_HEIGHT - 3}" '
            f'fill-opacity="{two_decimals(weight)}"/>'
            f'<text x="{x + 1 + CELL_WIDTH / 2:g}" y="{y + 16}" class="ac-t{flipped}">{escape(sign)}</text></g>'
        )
    width = 2 + CELL_WIDTH * (1 + max(column for _, column in places))
    height = 2 + CELL_HEIGHT * (1 + places[-1][0])
    return (
        f'<svg class="ac-text" viewBox="0 0 {width} {height}" role="img" style="max-width:{1.4 * width:.0f}px" '
        f'aria-label="The text; a stronger colour is a larger weight. The line below says which.">'
        f"{''.join(parts)}</svg>"
    )


def levels(shades: Tensor) -> list[str]:
    """One SVG path for each shade of the heatmap but the faintest, from weights (T, T) of 0 to 255."""
    paths = [""] * (LEVELS + 1)
    for i, row in enumerate(shades.tolist()):
        for j, shade in enumerate(row[: i + 1]):
            paths[(2 * shade * LEVELS + 255) // 510] += f"M{j} {i}h1v1h-1z"
    return paths[1:]


def _map(data: dict[str, Any], shades: Tensor, query: int) -> str:
    """The heatmap of one head: a row for each query, a column for each key."""
    signs, T = data["tokens"], len(data["tokens"])
    left, top = 16, 16
    size = T * DOT
    letters = "".join(
        f'<text x="{left - 6}" y="{top + (i + 0.85) * DOT:g}">{escape(sign)}</text>'
        f'<text x="{left + (i + 0.5) * DOT:g}" y="{top - 4}">{escape(sign)}</text>'
        for i, sign in enumerate(signs)
    )
    paths = "".join(f'<path d="{path}" fill-opacity="{(n + 1) / LEVELS:g}"/>' for n, path in enumerate(levels(shades)))
    frame = f'<rect class="ac-frame" x="0" y="{query}" width="{query + 1}" height="1"/>'
    edge = f"M{left} {top}v{size}h{size}L{left} {top}"
    width = left + size + 4
    return (
        f'<svg class="ac-dots" viewBox="0 0 {width} {top + size + 4}" role="img" '
        f'aria-label="Heatmap of one head: queries downwards, keys to the right; its numbers are said above." '
        f'style="max-width:{width}px;min-width:{0.75 * width:.0f}px"><g class="ac-letters">{letters}</g>'
        f'<path class="ac-lines" d="{edge}"/>'
        f'<g class="ac-shades" transform="translate({left} {top}) scale({DOT})">{paths}{frame}</g></svg>'
    )
