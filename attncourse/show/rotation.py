"""Rotary positions as arrows: each pair of a query and a key turns on its circle, and the score follows."""

import math
from collections.abc import Callable, Mapping
from html import escape

import torch
from torch import Tensor

from attncourse.show.figures import PALETTE
from attncourse.show.html import Output, fragment, number, prose, require_text, table, text_table, two_decimals

Turn = Callable[[Tensor, Tensor], Tensor]
RADIUS = 46  # of a circle, in its picture's units
WIDTH, HEIGHT, LEFT, TOP = 300, 120, 46, 10  # of the curve's area, and what stands to its left and above


def rotation(
    query: Tensor,
    key: Tensor,
    turns: Mapping[str, Turn],
    *,
    n_distances: int = 33,
    n_shifts: int = 17,
    start: tuple[int, int] = (4, 0),
    title: str = "Two tokens, turned by their positions",
    caption: str = "The score depends on the distance of the two tokens alone.",
) -> Output:
    """A query and a key (D,) whose tokens the reader moves: apart (`n_distances`), and both along (`n_shifts`).

    turns: name -> function of vectors (N, D) and positions (N,) that gives the turned vectors (N, D), such as
    `apply_rotary` with some base. The key stands at position n = shift, the query at n + distance; the score is their
    product divided by √D. Which numbers form a pair, and how fast it turns, is found by turning unit vectors. Every
    number on the page is computed here in float64 and rounded (`.data`); the script looks it up. start: distance and
    shift. Four pairs, 33 distances, 17 shifts and three functions: 60 KB. Without scripts: the start, drawn, and the
    score at some distances as a table.

    Raises ValueError where a function does not turn pairs, and for sizes that do not fit.
    """
    require_text(title=title, caption=caption)
    if query.dim() != 1 or query.shape != key.shape or len(query) % 2 or not len(query):
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must be (D,) with D even")
    if not turns:
        raise ValueError("rotation needs at least one function that turns")
    if not (n_distances > 1 and n_shifts > 0 and 0 <= start[0] < n_distances and 0 <= start[1] < n_shifts):
        raise ValueError(f"start={start} must lie within n_distances={n_distances} and n_shifts={n_shifts}")
    query, key = query.detach().cpu().double(), key.detach().cpu().double()
    records = [_record(name, turn, query, key, n_distances, n_shifts) for name, turn in turns.items()]
    everything = [score for record in records for row in record["scores"] for score in row]
    low, high = min(0.0, *everything), max(0.0, *everything)
    longest = max(
        math.hypot(*pair) for record in records for token in record["query"] + record["key"] for pair in token
    )
    data = {
        "turns": records,
        "unit": round(0.76 * RADIUS / max(longest, 1e-9), 3),
        "x": [round(LEFT + WIDTH * d / (n_distances - 1), 1) for d in range(n_distances)],
        "y": [round(TOP + HEIGHT * high / ((high - low) or 1), 1), round(HEIGHT / ((high - low) or 1), 3)],
        "start": {"turn": 0, "distance": start[0], "shift": start[1]},
    }
    steps = sorted({0, *(2**i for i in range(20) if 2**i < n_distances), n_distances - 1})
    header = ["distance", *turns]
    rows = [[str(d), *(shown(record["scores"][0][d]) for record in records)] for d in steps]
    said = "Score at some distances"
    status = describe(data, data["start"])
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{_circles(data)}{_curve(data, low, high)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f"<details><summary>The score as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    styles = ["scores.css", "rotation.css"]
    html = fragment(body, kind="rotation", piece="rotation", script="rotation.js", data=data, styles=styles)
    return Output("\n\n".join([title, status, f"{said}\n{text_table(header, rows)}", caption]), html, data)


def _record(name: str, turn: Turn, query: Tensor, key: Tensor, n_distances: int, n_shifts: int) -> dict:
    """One function's pairs, turned vectors and scores, as plain JSON values."""
    D = len(query)
    pairs, rates = _pairs(name, turn, D)
    queries = turn(query.expand(n_distances + n_shifts - 1, D), torch.arange(n_distances + n_shifts - 1))
    keys = turn(key.expand(n_shifts, D), torch.arange(n_shifts))
    of_query, of_key = queries[:, pairs], keys[:, pairs]  # (N, D/2, 2)
    windows = of_query.unfold(0, n_distances, 1)  # (n_shifts, D/2, 2, n_distances)
    shares = torch.einsum("spcd,spc->sdp", windows, of_key) / D**0.5  # (n_shifts, n_distances, D/2)
    return {
        "name": name,
        "pairs": pairs.tolist(),
        "rates": [number(round(rate, 4)) for rate in rates],
        "query": _rounded(of_query, 3),
        "key": _rounded(of_key, 3),
        "shares": _rounded(shares, 2),
        "scores": _rounded(shares.sum(-1), 2),
    }


def _pairs(name: str, turn: Turn, D: int) -> tuple[Tensor, list[float]]:
    """The pairs (D/2, 2) that a function turns, and by how many radians a position."""
    unit = torch.eye(D, dtype=torch.float64)
    turned = turn(unit, torch.ones(D, dtype=torch.long))
    if not isinstance(turned, Tensor) or turned.shape != (D, D):
        got = tuple(turned.shape) if isinstance(turned, Tensor) else type(turned).__name__
        raise ValueError(f"{name}: {D} vectors of {D} numbers must stay ({D}, {D}), but became {got}")
    partners = (turned - turned.diagonal().diag()).abs().argmax(-1).tolist()
    pairs = [[i, j] for i, j in enumerate(partners) if i < j]
    expected = torch.zeros(D, D, dtype=torch.float64)
    rates = []
    for i, j in pairs:
        cos, sin = turned[i, i].item(), turned[i, j].item()
        expected[i, i] = expected[j, j] = cos
        expected[i, j], expected[j, i] = sin, -sin
        rates.append(math.atan2(sin, cos))
    is_rotation = all(abs(turned[i, i] ** 2 + turned[i, j] ** 2 - 1) < 1e-5 for i, j in pairs)
    if len(pairs) != D // 2 or not is_rotation or not torch.allclose(turned.double(), expected, atol=1e-5):
        raise ValueError(f"{name}: position 1 does not turn pairs of numbers")
    return torch.tensor(pairs), rates


def _rounded(values: Tensor, digits: int) -> list:
    scale = 10**digits
    return ((values * scale).round() / scale + 0.0).tolist()


def shown(value: float) -> str:
    """Two decimals with a true minus sign."""
    return two_decimals(value).replace("-", "−")


def describe(data: Mapping, at: Mapping[str, int]) -> str:
    """What the page says of one state."""
    record, d, n = data["turns"][at["turn"]], at["distance"], at["shift"]
    score, unmoved = shown(record["scores"][n][d]), shown(record["scores"][0][d])
    again = f"; before both moved on it was {unmoved}" if n else ""
    return f"{record['name']}: query at position {n + d}, key at {n}, distance {d}. Score {score}{again}."


def _circles(data: Mapping) -> str:
    """A picture for each pair, with its two arrows, and under it what it turns by and adds."""
    at, side = data["start"], RADIUS + 16
    record, unit = data["turns"][at["turn"]], data["unit"]
    query, key = record["query"][at["shift"] + at["distance"]], record["key"][at["shift"]]
    shares = record["shares"][at["shift"]][at["distance"]]
    cells = []
    for p, (first, second) in enumerate(record["pairs"]):
        arrows = "".join(_arrow(role, *vectors[p], unit) for role, vectors in (("query", query), ("key", key)))
        alt = f"Pair {p + 1} of query and key as arrows; what it adds is said below."
        cells.append(
            f'<div><svg class="ac-plane" viewBox="{-side} {-side} {2 * side} {2 * side}" role="img" '
            f'aria-label="{alt}"><circle class="ac-lines" r="{RADIUS}"/>{arrows}</svg>'
            f'<p><b class="ac-which">numbers {first}, {second}</b><br>'
            f'<span class="ac-dim ac-rate">{record["rates"][p]} rad a position</span><br>'
            f'adds <span class="ac-adds">{shown(shares[p])}</span></p></div>'
        )
    return f'<div class="ac-pairs">{"".join(cells)}</div>'


def _arrow(role: str, x: float, y: float, unit: float) -> str:
    """An arrow from the centre to (x, y), y pointing up, in the colour of its role, with its letter."""
    colour, width = PALETTE[role], 3 if role == "query" else 2
    out = _letter_at(role, math.hypot(x, y), unit)
    return (
        f'<g class="ac-{role}"><path d="M0 0L{x * unit:.1f} {-y * unit:.1f}" stroke="{colour}" stroke-width="{width}"/>'
        f'<circle cx="{x * unit:.1f}" cy="{-y * unit:.1f}" r="{width + 1}" fill="{colour}"/>'
        f'<text x="{x * out:.1f}" y="{4.5 - y * out:.1f}">{role[0]}</text></g>'
    )


def _letter_at(role: str, length: float, unit: float) -> float:
    """By what to multiply an arrow's vector to stand where its letter does: beyond its tip, or outside the circle."""
    return (length * unit + 9 if role == "query" else RADIUS + 9) / max(length, 1e-9)


def _curve(data: Mapping, low: float, high: float) -> str:
    """The score against the distance, the reader's distance marked."""
    at = data["start"]
    record, x, (zero, per) = data["turns"][at["turn"]], data["x"], data["y"]
    scores = record["scores"][at["shift"]]
    last = len(x) - 1
    points = "L".join(f"{a:g} {zero - per * score:.1f}" for a, score in zip(x, scores, strict=True))
    marked = f'cx="{x[at["distance"]]:g}" cy="{zero - per * scores[at["distance"]]:.1f}"'
    ticks = "".join(
        f'<text x="{x[d]:g}" y="{TOP + HEIGHT + 18}" class="ac-mid">{d}</text>'
        for d in range(0, last + 1, last // 4 or 1)
    )
    levels = "".join(
        f'<text x="{LEFT - 6}" y="{zero - per * level + 4:.1f}" class="ac-end">{text}</text>'
        for level, text in {round(value, 6): shown(value) for value in (low, 0.0, high)}.items()
    )
    alt = f"Score against distance, 0 to {last}; the numbers are in the table below."
    width, height = LEFT + WIDTH + 14, TOP + HEIGHT + 40
    return (
        f'<svg class="ac-curve" viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">'
        f'<path class="ac-lines" d="M{LEFT} {zero}h{WIDTH}M{LEFT} {TOP}v{HEIGHT}"/>{ticks}{levels}'
        f'<text x="{LEFT + WIDTH / 2:g}" y="{TOP + HEIGHT + 35}" class="ac-mid">distance → score</text>'
        f'<path class="ac-scored" d="M{points}"/><circle class="ac-here" {marked} r="6"/></svg>'
    )
