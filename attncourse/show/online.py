"""Online softmax, tile by tile: what the keys read so far leave, and what goes wrong where it is not rescaled."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import torch
from torch import Tensor

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table

CELL, LEFT, TOP, BASE, BAR = 26, 42, 18, 160, 60  # a key's width; where scores and bars stand; a bar of 1
RULES = ("rescale", "forget to rescale", "rescale the total only", "keep the first maximum")
EXAMPLE = {
    "largest late": [2, 1, 0, 3, 1, 2, 0, 1, 5, 2, 6, 3],
    "largest first": [6, 2, 5, 1, 3, 0, 2, 4, 1, 0, 3, 2],
    "first keys masked": [-math.inf] * 4 + [1, 3, 2, 0, 4, 2, 1, 3],
    "large scores": [10, -20, 5, 30, 0, 60, 20, 90, 40, 110, 80, 100],
}
VALUES = [4, 1, -2, 3, 2, 1, -1, 5, 1, -4, 2, 6]
HEADER = ("keys", "maximum", "factor", "total", "weighted sum", "output", "all at once")  # the factor is the total's
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Step(NamedTuple):
    """One tile read: its maximum taken in, its sums added. Tensors in float32: of no axis, and (Dv,)."""

    maximum: Tensor
    factor: Tensor  # of the total
    added: Tensor
    total: Tensor
    factor_of_sum: Tensor
    added_sum: Tensor
    weighted: Tensor
    output: Tensor
    same: bool  # as the softmax of the keys read


def online(
    scores: Mapping[str, Sequence[float]] | Tensor | Sequence[Sequence[float]] | None = None,
    values: Tensor | Sequence | None = None,
    *,
    tile_sizes: Sequence[int] | None = None,
    tile: int = 3,
    start: tuple[int, int] = (0, 1),
    title: str = "A softmax, tile by tile",
    caption: str = (
        "The framed tile is read now; `m` stands below the score that is the maximum. A bar is what a key counts for "
        "in the weighted sum, a line what it should: exp(score − maximum). A triangle: more than 1. Numbers are "
        "rounded to three figures."
    ),
) -> Output:
    """A query's scores of S keys, read in tiles: maximum, factor, total, weighted sum and output after each.

    scores: name -> S numbers, or (T, S); −∞ where the query may not attend. values: (S,) or (S, Dv), Dv at most 3. The
    default has the largest score late, or first, masked keys, or scores whose exponentials do not fit into float32.
    The reader chooses query, tile size (default: 1 to 6, and S), the rule that merges (`RULES`), and how many tiles are
    read. tile: the size at the start. start: which query, and which of its tiles. Everything is computed here in
    float32 (`.data`); what the softmax of the same keys gives at once, in float64. "The same" is within a thousandth of
    the largest value. Without scripts: the start, drawn and as a table, and what each rule ends with.

    Raises ValueError for shapes that do not fit, more than 16 keys or 6 queries, and sizes that cannot be chosen.
    """
    require_text(title=title, caption=caption)
    queries, values = _check(EXAMPLE if scores is None else scores, VALUES if values is None else values)
    S = len(values)
    sizes = sorted({*range(1, min(S, 6) + 1), S}) if tile_sizes is None else list(tile_sizes)
    if not sizes or len(set(sizes)) < len(sizes) or not all(size in range(1, S + 1) for size in sizes):
        raise ValueError(f"tile_sizes={sizes} must be different sizes from 1 to {S}")
    if tile not in sizes:
        raise ValueError(f"tile={tile} is not one of the sizes {sizes}")
    if not (0 <= start[0] < len(queries) and 0 <= start[1] < -(-S // tile)):
        raise ValueError(f"start={start} must be one of {len(queries)} queries and one of its tiles, counted from 0")
    data = {
        "queries": [_record(name, row, values, sizes) for name, row in queries.items()],
        "values": [[_short(x) for x in row] for row in values.tolist()],
        "rules": list(RULES),
        "sizes": sizes,
        "empty": [text(-math.inf), "0", text([0.0] * values.shape[1])],
        "place": [CELL, LEFT, TOP, BASE, BAR],
        "start": {"query": start[0], "rule": 0, "size": sizes.index(tile), "tile": start[1]},
    }
    status, rows = describe(data, **data["start"]), lines(data, start[0], 0, sizes.index(tile))
    said = f"{list(queries)[start[0]]}, {RULES[0]}, tiles of {tile}"
    ends = [
        [query["name"], *(runs[sizes.index(tile)][-1][7] for runs in query["traces"]), query["once"][-1]]
        for query in data["queries"]
    ]
    ended, end_header = f"Output after the last tile, in tiles of {tile}", ["query", *RULES, HEADER[-1]]
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data), title)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f'<details><summary>Every tile as a table</summary><div class="ac-trace">'
        f"{table(HEADER, rows, f'{title}: every tile', said)}</div>"
        f"{table(end_header, ends, f'{title}: at the end', ended)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    html = fragment(
        body, kind="online", piece="online", script="online.js", data=data, styles=["scores.css", "online.css"]
    )
    tables = [f"{said}\n{text_table(HEADER, rows)}", f"{ended}\n{text_table(end_header, ends)}"]
    return Output("\n\n".join([title, status, *tables, caption]), html, data)


def _check(
    scores: Mapping[str, Sequence[float]] | Tensor | Sequence, values: Tensor | Sequence
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of scores (S,) by name, in float64, and values (S, Dv)."""
    if not isinstance(scores, Mapping):
        scores = {f"query {i}": row for i, row in enumerate(scores, 1)}
    rows = {name: torch.as_tensor(row).detach().cpu().double() for name, row in scores.items()}
    values = torch.as_tensor(values).detach().cpu().double()
    values = values[:, None] if values.dim() == 1 else values
    if values.dim() != 2 or not (1 <= len(values) <= 16 and 1 <= values.shape[1] <= 3) or not values.isfinite().all():
        raise ValueError(f"values {tuple(values.shape)} must be finite, (S,) or (S, Dv), S at most 16 and Dv at most 3")
    if not 1 <= len(rows) <= 6:
        raise ValueError(f"there are {len(rows)} queries, but 1 to 6 fit")
    for name, row in rows.items():
        require_text(name=name)
        if row.shape != (len(values),):
            raise ValueError(f"{name}: scores {tuple(row.shape)} must be ({len(values)},), one for each value")
        if row.isnan().any() or (row == math.inf).any():
            raise ValueError(f"{name}: a score is NaN or ∞; only −∞ may stand beside numbers")
    return rows, values


def steps(scores: Tensor, values: Tensor, size: int, rule: str) -> list[Step]:
    """What is kept after each tile of `size` keys, in float32, by one of `RULES`. scores (S,), values (S, Dv)."""
    keep, one, found = rule == RULES[3], torch.tensor(1.0), []
    maximum, total, weighted = torch.tensor(-math.inf), torch.tensor(0.0), torch.zeros(values.shape[1])
    for first in range(0, len(scores), size):
        part, value = scores[first : first + size].float(), values[first : first + size].float()
        new = maximum if keep and first else torch.maximum(maximum, part.max())
        shift = new.masked_fill(new == -math.inf, 0.0)  # −∞ minus −∞ would be NaN
        shares = (part - shift).exp()
        factor = one if keep or rule == RULES[1] else (maximum - shift).exp()
        of_sum = one if rule == RULES[2] else factor
        added, added_sum = shares.sum(), shares @ value
        total, weighted = total * factor + added, weighted * of_sum + added_sum
        output = weighted / total.masked_fill(total == 0, 1.0)
        whole = at_once(scores[: first + size], values[: first + size])
        same = bool(((output - whole).abs() <= 1e-3 * values.abs().max()).all())
        found.append(Step(new, factor, added, total, of_sum, added_sum, weighted, output, same))
        maximum = new
    return found


def at_once(scores: Tensor, values: Tensor) -> Tensor:
    """The output of these keys by one softmax, in float64; zeros where no key is allowed."""
    return scores.softmax(-1).nan_to_num(0.0) @ values


def _record(name: str, scores: Tensor, values: Tensor, sizes: Sequence[int]) -> dict:
    """One query as plain JSON values: what each rule and each size of tile leave, as it is shown."""
    return {
        "name": name,
        "scores": [x if math.isfinite(x) else None for x in scores.tolist()],
        "shown": [_short(x) for x in scores.tolist()],
        "once": [text(at_once(scores[:n], values[:n]).tolist()) for n in range(1, len(scores) + 1)],
        "traces": [
            [
                [[*(text(x.tolist()) for x in step[:-1]), step.same] for step in steps(scores, values, size, rule)]
                for size in sizes
            ]
            for rule in RULES
        ],
    }


def text(x: float | Sequence[float]) -> str:
    """Three figures, with a true minus sign: 1.23, 0.00123, 1.23·10⁷, −∞; several numbers in brackets."""
    if isinstance(x, Sequence):
        return text(x[0]) if len(x) == 1 else f"({', '.join(map(text, x))})"
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "−∞"
    digits = f"{x + 0.0:.3g}"  # never minus zero
    if x and not 1e-3 <= abs(x) < 999.5:
        digits, exponent = f"{x:.2e}".split("e")
        digits = f"{float(digits):g}·10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return digits.replace("-", "−")


def _short(x: float) -> str:
    """A number of the picture: one decimal where it has any."""
    return text(x) if not math.isfinite(x) else f"{round(x, 1) + 0.0:g}".replace("-", "−")


def _keys(first: int, end: int) -> str:
    return str(end) if end - first == 1 else f"{first + 1}–{end}"


def lines(data: Mapping, query: int, rule: int, size: int) -> list[list[str]]:
    """The table's cells: a row for each tile."""
    record, step, S = data["queries"][query], data["sizes"][size], len(data["values"])
    rows = []
    for k, (m, factor, _, total, _, _, weighted, output, _) in enumerate(record["traces"][rule][size]):
        end = min(step * (k + 1), S)
        rows.append([_keys(step * k, end), m, factor, total, weighted, output, record["once"][end - 1]])
    return rows


def describe(data: Mapping, query: int, rule: int, size: int, tile: int) -> str:
    """What the page says after one tile."""
    record, step = data["queries"][query], data["sizes"][size]
    run = record["traces"][rule][size]
    m0, total0, weighted0 = (run[tile - 1][i] for i in (0, 3, 6)) if tile else data["empty"]
    m, factor, added, total, of_sum, added_sum, weighted, output, same = run[tile]
    end = min(step * (tile + 1), len(data["values"]))
    keys = f"key{'s' if end - step * tile > 1 else ''} {_keys(step * tile, end)}"
    return (
        f"{record['name']}, {data['rules'][rule]}, tile {tile + 1} of {len(run)}, {keys}: maximum {m0} → {m}. "
        f"Total {total0} × {factor} + {added} = {total}. "
        f"Weighted sum {weighted0} × {of_sum} + {added_sum} = {weighted}. "
        f"Output so far {output}; a softmax of the keys read gives {record['once'][end - 1]}: "
        f"{'the same' if same else 'not the same'}."
    )


def paths(data: Mapping, query: int, rule: int, size: int, tile: int) -> dict[str, str]:
    """What is drawn after one tile: all tiles, those read, the one read now; what keys count for, and should."""
    cell, left, top, base, bar = data["place"]
    step, S = data["sizes"][size], len(data["values"])
    scores = [-math.inf if x is None else x for x in data["queries"][query]["scores"]]
    end = min(step * (tile + 1), S)

    def box(first: int, gap: float) -> str:
        width = cell * (min(first + step, S) - first) - 2 * gap
        return f"M{left + cell * first + gap:g} {top + gap:g}h{width:g}v{cell - 2 * gap:g}h-{width:g}z"

    def share(j: int, keys: int) -> float:
        """exp(score - maximum of the first `keys` keys)"""
        m = max(scores[: step if rule == 3 else keys])
        return math.exp(scores[j] - (m if math.isfinite(m) else 0))

    found = {"tiles": "", "read": "", "frame": box(step * tile, 1), "counts": "", "should": ""}
    for first in range(0, S, step):
        found["tiles"] += box(first, 1)
        if first < end:
            found["read"] += box(first, 1)
    for j in range(end):
        x, seen = left + cell * j, min(step * (j // step + 1), S)
        count, should = share(j, seen if rule in (1, 2) else end), share(j, end)
        height = f"{bar * min(count, 1):.1f}"
        found["counts"] += f"M{x + 8} {base}v-{height}h{cell - 16}v{height}z"
        if count > 1:
            found["counts"] += f"M{x + 7} {base - bar - 3}l6 -8l6 8z"
        found["should"] += f"M{x + 2} {base - bar * min(should, 1):.1f}h{cell - 4}"
    return found


def largest(data: Mapping, query: int, rule: int, size: int, tile: int) -> int:
    """The key whose score is the maximum after one tile; -1 where none is allowed."""
    step = data["sizes"][size]
    read = data["queries"][query]["scores"][: step if rule == 3 else step * (tile + 1)]
    scores = [-math.inf if x is None else x for x in read]
    return scores.index(max(scores)) if max(scores) > -math.inf else -1


def _picture(data: Mapping) -> str:
    """Scores in their tiles, below them a bar for each key that was read, and the values."""
    cell, left, top, base, bar = data["place"]
    S, at = len(data["values"]), data["start"]
    read, m = data["sizes"][at["size"]] * (at["tile"] + 1), largest(data, **at)
    drawn = "".join(f'<path class="ac-{name}" d="{d}"/>' for name, d in paths(data, **at).items())
    middle = [f"{left + cell * (j + 0.5):g}" for j in range(S)]
    scores = data["queries"][at["query"]]["shown"]
    words = "".join(
        f'<text class="ac-mid ac-later" x="{x}" y="12">{j + 1}</text>'
        f'<text class="ac-mid ac-score{"" if j < read else " ac-later"}" x="{x}" y="{top + 17}">{scores[j]}</text>'
        for j, x in enumerate(middle)
    )
    columns = list(zip(*data["values"], strict=True))
    words += "".join(
        f'<text class="ac-mid" x="{x}" y="{base + 18 + 15 * n}">{cells[j]}</text>'
        for n, cells in enumerate(columns)
        for j, x in enumerate(middle)
    )
    sides = {12: "key", top + 17: "score", base - bar + 4: "1", base + 2: "0", base + 18: "value"}
    words += "".join(f'<text class="ac-end" x="{left - 6}" y="{y}">{word}</text>' for y, word in sides.items())
    place = f'x="{middle[max(m, 0)]}" y="{top + cell + 12}"{" hidden" if m < 0 else ""}'
    alt = "Scores in tiles, a bar for each key that was read, and values; the numbers are said below and in the table."
    whole = left + cell * S + 4
    return (
        f'<svg class="ac-row-of-tiles" viewBox="0 0 {whole} {base + 9 + 15 * len(columns)}" role="img" '
        f'aria-label="{alt}" style="max-width:{1.5 * whole:.0f}px;min-width:{0.85 * whole:.0f}px">'
        f'<path class="ac-lines" d="M{left} {base - bar}h{cell * S}M{left} {base}h{cell * S}"/>{drawn}{words}'
        f'<text class="ac-mid ac-max" {place}>m</text>'
        f'<text x="{left}" y="{base - bar - 18}">what a key counts for in the weighted sum</text></svg>'
    )
