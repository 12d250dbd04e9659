"""The mask lab: which keys each query may see under a pattern, and what reaches it through a stack of layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attncourse.show.figures import PALETTE
from attncourse.show.html import Output, fragment, prose, require_text, table, text_table, two_decimals

Pattern = Tensor | tuple[Callable[..., Tensor], Mapping[str, Sequence]] | tuple[Callable, Mapping[str, Sequence], str]

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # a pair's number of layers, as one letter
CELL, LEFT, TOP = 12, 56, 44  # of the grid, in its picture's units
NOTE = "A mask shows where information can flow, not whether it does."


def masks(
    patterns: Mapping[str, Pattern],
    *,
    start: str | None = None,
    values: Mapping[str, Any] | None = None,
    cell: tuple[int, int] | None = None,
    n_layers: int = 8,
    title: str = "Who may see whom",
    caption: str = "Change the pattern and its numbers, then the layers, and follow the last row.",
) -> Output:
    """Masks (T, T) of several patterns, explored by pattern, one or two parameters, number of layers, and cell.

    patterns: name -> a mask, or (function, {parameter: values}) or the same with a sentence on what the query sees;
    the function takes one value of each parameter, in this order, and gives the mask. Every combination is computed
    here. start: the pattern shown first; values: parameter -> the value that its slider begins at (else the middle
    one); cell: (query, key), else the last query and the first key. Tokens count from 0. A parameter keeps its value
    from pattern to pattern where both have it.

    Stored for each pair, as one letter: after how many layers the query can depend on the token. A causal mask of 24
    tokens takes 0.3 kB, another 0.6. Without scripts: the start, drawn, and each pattern's numbers there as a table.

    Raises ValueError or TypeError for masks that are not boolean (T, T) of one T ≤ 36, and a start that is not there.
    """
    require_text(title=title, caption=caption)
    if not patterns:
        raise ValueError("masks needs at least one pattern")
    records = [_record(name, pattern, values or {}) for name, pattern in patterns.items()]
    sizes = sorted({record.pop("T") for record in records})
    if len(sizes) > 1:
        raise ValueError(f"the masks have different numbers of tokens: {sizes}")
    T, names = sizes[0], list(patterns)
    for label, value in (values or {}).items():
        if not any(label == own and str(value) in choice for r in records for own, choice, _ in r["parameters"]):
            raise ValueError(f"values has {label}={value!r}, which no pattern has")
    if start is not None and start not in names:
        raise ValueError(f"start={start!r}, but the patterns are {', '.join(names)}")
    query, key = cell or (T - 1, 0)
    if not (0 <= query < T and 0 <= key < T):
        raise ValueError(f"cell={cell}, but there are {T} tokens, from 0")
    if n_layers < 1:
        raise ValueError(f"n_layers={n_layers}, but it must be at least 1")
    first = names.index(start) if start else 0
    data = {
        "T": T,
        "cell": CELL,
        "layers": n_layers,
        "patterns": records,
        "areas": [_square(T), _staircase(T)],
        "start": {"pattern": first, "cell": [query, key]},
    }
    record = records[first]
    mask = record["masks"][start_index(record)]
    distances = unpack(record, mask, T)
    status, facts = describe(record, distances, query, key), tell(record, mask, distances, 1)
    header, rows = ["pattern", "keys per query", "pairs", "layers from first to last"], [_row(r, T) for r in records]
    said = "Every pattern at its start"
    items = "".join(f"<li{'' if fact else ' hidden'}>{escape(fact)}</li>" for fact in facts)
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div><div class="ac-beside">'
        f'<div class="ac-grid">{_grid(data, record, distances, query, key)}</div>'
        f'<div class="ac-told"><p class="ac-now"><b>{escape(_named(record))}</b></p>'
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f'<ul class="ac-facts" aria-live="polite">{items}</ul>'
        '<p class="ac-dim ac-legend"><span class="ac-big"></span> the query sees the key<br><span class="ac-small">'
        "</span> it can depend on that token through others; the smaller, the more layers that takes</p></div></div>"
        f"<details><summary>{said}, as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)} {NOTE}</figcaption></figure>"
    )
    html = fragment(body, kind="masks", piece="masks", script="masks.js", data=data, styles=["masks.css"])
    drawn = "\n".join("".join("■" if n == 1 else "·" for n in row) for row in distances)
    told = "\n".join([_named(record), *filter(None, facts), status])
    text = [title, drawn, told, f"{said}\n{text_table(header, rows)}", f"{caption} {NOTE}"]
    return Output("\n\n".join(text), html, data)


def _record(name: str, pattern: Pattern, values: Mapping[str, Any]) -> dict[str, Any]:
    """One pattern, all its masks computed, as plain JSON values (and T)."""
    if isinstance(pattern, Tensor):
        pattern = (lambda mask=pattern: mask, {})
    make, parameters, note = (*pattern, "")[:3]
    if len(parameters) > 2 or not all(len(choice) for choice in parameters.values()):
        raise ValueError(f"{name}: {dict(parameters)} must be one or two parameters with their values")
    made = [_checked(name, make(*chosen)) for chosen in product(*parameters.values())]
    if len({len(mask) for mask in made}) > 1:
        raise ValueError(f"{name}: the masks have different numbers of tokens: {sorted({len(m) for m in made})}")
    causal = not any(mask.triu(1).any() for mask in made)
    sliders = []
    for label, choice in parameters.items():
        at = list(choice).index(values[label]) if values.get(label) in choice else (len(choice) - 1) // 2
        sliders.append([label, [str(value) for value in choice], at])
    packed = [[pack(mask, causal), int(mask.sum()), int(mask.sum(-1).max())] for mask in made]
    return {"T": len(made[0]), "name": name, "note": note, "causal": causal, "parameters": sliders, "masks": packed}


def _checked(name: str, mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}: a mask is {kind}; it must be a tensor of torch.bool")
    if mask.dim() != 2 or len(mask) != mask.shape[1] or not 1 < len(mask) <= len(DIGITS):
        raise ValueError(f"{name}: a mask is {tuple(mask.shape)}; it must be (T, T) with T from 2 to {len(DIGITS)}")
    return mask.detach().cpu()


def layers_until(mask: Tensor) -> Tensor:
    """After how many layers with this mask a query's state can depend on each token, from a mask (T, T): (T, T) int64.

    1 where the query sees the key; n where the n-th power of the mask reaches it, and none before; -1 where none does.
    What a token already is stays with it through the residual connection: 0 where a query does not see itself.
    """
    own = torch.eye(len(mask), dtype=torch.bool)
    found = torch.where(mask, 1, torch.where(own, 0, -1))
    step = reached = mask | own
    for n in range(2, len(mask)):
        reached = (step.float() @ reached.float()) > 0
        found[reached & (found < 0)] = n
    return found


def pack(mask: Tensor, causal: bool) -> str:
    """`layers_until` row by row, a letter for each pair ("." for never); without the later tokens where causal."""
    rows = layers_until(mask).tolist()
    kept = [n for i, row in enumerate(rows) for n in (row[: i + 1] if causal else row)]
    return "".join("." if n < 0 else DIGITS[n] for n in kept)


def unpack(record: Mapping[str, Any], mask: Sequence, T: int) -> list[list[int]]:
    """The rows that `pack` wrote, the later tokens of a causal pattern at -1."""
    letters = iter(mask[0])
    return [
        [-1 if record["causal"] and j > i else DIGITS.find(next(letters)) for j in range(T)]  # "." is not in DIGITS
        for i in range(T)
    ]


def is_reached(n: int, layers: int) -> bool:
    """Whether a pair at n layers is drawn for a stack of so many: one layer shows the mask itself."""
    return 0 <= n <= layers and (n > 0 or layers > 1)


def describe(record: Mapping[str, Any], distances: Sequence[Sequence[int]], query: int, key: int) -> str:
    """What the page says of one cell."""
    n, back = distances[query][key], query - key
    where = f"key {key}, {back} back" if back > 0 else f"key {key}, {-back} ahead" if back else "itself"
    if n == 1:
        return f"Query {query} sees {where}."
    if n == 0:
        return f"Query {query} does not see {where}; the residual connection alone keeps it."
    if n > 1:
        return f"Query {query} does not see {where}, but can depend on it after {n} layers."
    never = "and no causal layer does" if record["causal"] and back < 0 else "and no number of layers changes that"
    return f"Query {query} does not see {where}, {never}."


def tell(record: Mapping[str, Any], mask: Sequence, distances: Sequence[Sequence[int]], layers: int) -> list[str]:
    """What the page says of one mask and a number of layers."""
    _, pairs, most = mask
    T, causal, far = len(distances), record["causal"], distances[-1][0]
    whole = T * (T + 1) // 2 if causal else T * T
    count = sum(is_reached(n, layers) for n in distances[-1])
    first = "sees the first" if far == 1 else f"can depend on the first after {far} layers"
    if far < 0:
        first = "can never depend on the first, however many layers there are"
    reach = f"After {layers} layers the last token can depend on" if layers > 1 else "In one layer the last token sees"
    return [
        record["note"],
        f"Keys per query: {two_decimals(pairs / T)} on average, {most} at most.",
        f"Pairs: {pairs} of {whole}{' causal ones' if causal else ''}, {math.floor(100 * pairs / whole + 0.5)}\u00a0%.",
        f"The last token {first}.",
        f"{reach} {count} of {T} tokens.",
    ]


def start_index(record: Mapping[str, Any]) -> int:
    """Which of a pattern's masks its sliders begin at."""
    index = 0
    for _, choice, at in record["parameters"]:
        index = index * len(choice) + at
    return index


def _named(record: Mapping[str, Any]) -> str:
    """The pattern and its start values."""
    return ", ".join([record["name"], *(f"{label} = {choice[at]}" for label, choice, at in record["parameters"])])


def _row(record: Mapping[str, Any], T: int) -> list[str]:
    mask = record["masks"][start_index(record)]
    far = unpack(record, mask, T)[-1][0]
    return [_named(record), two_decimals(mask[1] / T), str(mask[1]), "never" if far < 0 else str(far)]


def squares(distances: Sequence[Sequence[int]], layers: int) -> tuple[str, str]:
    """The large squares, of pairs that see each other, and the small ones, as SVG paths."""
    large, small = [], []
    for i, row in enumerate(distances):
        for j, n in enumerate(row):
            if is_reached(n, layers):
                side = CELL - 2 if n == 1 else max(4, CELL - 3 - n) if n else 4
                edge = (CELL - side) / 2
                path = f"M{CELL * j + edge:g} {CELL * i + edge:g}h{side}v{side}h-{side}z"
                (large if n == 1 else small).append(path)
    return "".join(large), "".join(small)


def _square(T: int) -> str:
    return f"M0 0h{CELL * T}v{CELL * T}h-{CELL * T}z"


def _staircase(T: int) -> str:
    return "M0 0" + f"h{CELL}v{CELL}" * T + "H0z"


def _grid(data: Mapping[str, Any], record: Mapping, distances: Sequence[Sequence[int]], query: int, key: int) -> str:
    """The grid: a row for each query, a column for each key, the chosen ones framed."""
    T, size = data["T"], CELL * data["T"]
    ticks = "".join(
        f'<text x="{LEFT - 14}" y="{TOP + CELL * n + 10}" class="ac-end">{n}</text>'
        f'<text x="{LEFT + CELL * n + 6}" y="{TOP - 14}" class="ac-mid">{n}</text>'
        for n in range(0, T, 4)
    )
    lines = "".join(f"M{CELL * n} 0v{size}M0 {CELL * n}h{size}" for n in range(0, T + 1, 4))
    large, small = squares(distances, 1)
    width, height = LEFT + size + 5, TOP + size + 5
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Grid of {T} queries, downwards, and {T} keys, to the right; what it shows is said beside it.">'
        f'<text x="{LEFT - 4}" y="12" class="ac-end ac-dim">query ↓</text>'
        f'<text x="{LEFT + 4}" y="12" class="ac-dim">key →</text>{ticks}'
        f'<g transform="translate({LEFT} {TOP})"><path class="ac-area" d="{data["areas"][record["causal"]]}"/>'
        f'<path class="ac-lines" d="{lines}"/><path class="ac-large" d="{large}"/><path class="ac-small" d="{small}"/>'
        f'<g class="ac-of-query" transform="translate(0 {CELL * query})" stroke="{PALETTE["query"]}">'
        f'<path d="M-10 2l7 4l-7 4z" fill="{PALETTE["query"]}"/><rect width="{size}" height="{CELL}"/></g>'
        f'<g class="ac-of-key" transform="translate({CELL * key} 0)" stroke="{PALETTE["key"]}">'
        f'<path d="M2 -10l4 7l4 -7z" fill="{PALETTE["key"]}"/><rect width="{CELL}" height="{size}"/></g>'
        f'<rect class="ac-chosen" x="{CELL * key}" y="{CELL * query}" width="{CELL}" height="{CELL}"/></g></svg>'
    )
