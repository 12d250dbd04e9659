"""Score functions on vectors of the plane: what each score makes of the same query and the same keys."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import torch
from torch import Tensor

from attncourse.show.figures import PALETTE
from attncourse.show.html import (
    Output,
    fragment,
    number,
    prose,
    require_text,
    scroll,
    table,
    text_table,
    two_decimals,
)

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
RADIUS = 128  # of the picture, in its own units


def scores(
    keys: Tensor | Sequence[Sequence[float]],
    score_functions: Mapping[str, ScoreFunction],
    *,
    angles: int = 24,
    lengths: Sequence[float] = (0.5, 1, 2),
    temperatures: Sequence[float] = (0.5, 1, 2),
    start_angle: int = 30,
    key_labels: Sequence[str] | None = None,
    title: str = "Which key does the query prefer?",
    caption: str = "The wider the band behind a key, the larger its weight.",
) -> Output:
    """One query against a few keys (S, 2) in the plane: the reader turns and stretches it, and chooses the score.

    score_functions: name -> function of queries (N, 2) and keys (S, 2) that gives the scores (N, S), unscaled. Weights
    are softmax(scores / temperature). Everything the page shows is computed here, at `angles` directions for each
    length and temperature, and rounded to two decimals (`.data`); the script looks it up. Starts with the first score
    at `start_angle` degrees, at length 1 and temperature 1 where they are among the choices. Three functions, three
    lengths and temperatures, five keys: 25 KB. Without scripts: the picture of the start, and a table of other queries.

    Raises ValueError where a score has another shape than (N, S) or is not finite, and for settings that do not fit.
    """
    keys, labels = check_keys(keys, key_labels)
    require_text(title=title, caption=caption)
    if not score_functions:
        raise ValueError("scores needs at least one score function")
    if not 4 <= angles <= 360 or 360 % angles or start_angle not in range(0, 360, 360 // angles):
        raise ValueError(
            f"angles={angles} must divide 360, and start_angle={start_angle} be a multiple of 360 / angles below 360"
        )
    for name, values in (("lengths", lengths), ("temperatures", temperatures)):
        if not values or any(not value > 0 for value in values) or len(set(values)) != len(values):
            raise ValueError(f"{name}={values} must be different positive numbers")
    degrees = list(range(0, 360, 360 // angles))
    queries = torch.stack([vector(length, degree) for length in lengths for degree in degrees]).to(keys)
    records = []
    for name, function in score_functions.items():
        raw = score(function, queries, keys, name)
        weights = [[softmax(row, temperature) for row in raw] for temperature in temperatures]
        grids = [grid(raw, angles), *(grid(rows, angles) for rows in weights)]
        records.append({"name": name, "scores": grids[0], "weights": grids[1:]})
    limit = max(*map(float, lengths), *keys.norm(dim=-1).tolist())
    start = {
        "score": 0,
        "angle": degrees.index(start_angle),
        "length": _start(lengths),
        "temperature": _start(temperatures),
    }
    data = {
        "keys": labels,
        "scores": records,
        "degrees": degrees,
        "lengths": [number(float(length)) for length in lengths],
        "temperatures": [number(float(temperature)) for temperature in temperatures],
        "unit": round(RADIUS / limit, 2),
        "start": start,
    }
    header, rows = ["score, query", *labels], _some_states(data)
    said = f"Weight (score) of each key, temperature {data['temperatures'][start['temperature']]}"
    status, others, now = describe(data, start)
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{picture(keys, labels, now, degrees[start['angle']], lengths[start['length']], data['unit'], lengths, title)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f'<p class="ac-dim ac-others">{escape(others)}</p>'
        f"<details><summary>Some queries as a table</summary>{table(header, rows, f'{title} {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    html = fragment(body, kind="scores", piece="scores", script="scores.js", data=data, styles=["scores.css"])
    text = [title, f"{status} {others}".strip(), f"{said}\n{text_table(header, rows)}", caption]
    return Output("\n\n".join(text), html, data)


def check_keys(
    keys: Tensor | Sequence[Sequence[float]], labels: Sequence[str] | None = None
) -> tuple[Tensor, list[str]]:
    """Keys (S, 2) as a tensor, and a label for each: k₁, k₂, … where none are given."""
    keys = torch.as_tensor(keys).detach().cpu()
    keys = keys if keys.is_floating_point() else keys.to(torch.get_default_dtype())
    if keys.dim() != 2 or keys.shape[-1] != 2 or not len(keys):
        raise ValueError(f"keys have shape {tuple(keys.shape)}; the plane needs (S, 2)")
    if labels is None:
        digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
        labels = [f"k{j}".translate(digits) for j in range(1, len(keys) + 1)]
    if len(labels) != len(keys) or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"key_labels={list(labels)} must be {len(keys)} texts, one a key")
    return keys, list(labels)


def vector(length: float, degree: float) -> Tensor:
    """The vector (2,) of this length in this direction, in float64."""
    angle = math.radians(degree)
    return length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def score(function: ScoreFunction, queries: Tensor, keys: Tensor, name: str) -> list[list[float]]:
    """The scores (N, S) as lists; ValueError where the function gives anything else."""
    with torch.no_grad():
        result = function(queries, keys)
    wanted = (len(queries), len(keys))
    if not isinstance(result, Tensor):
        raise ValueError(f"{name}: the scores must be a tensor of shape {wanted}, not {type(result).__name__}")
    if tuple(result.shape) != wanted:
        raise ValueError(
            f"{name}: {wanted[0]} queries and {wanted[1]} keys need scores of shape {wanted}, "
            f"but they have {tuple(result.shape)}"
        )
    if not result.isfinite().all():
        raise ValueError(f"{name}: not every score is finite")
    return result.tolist()


def softmax(row: Sequence[float], temperature: float) -> list[float]:
    """softmax(row / temperature)."""
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def rounded(value: float) -> float:
    """value to two decimals, as it is shown; never minus zero."""
    return float(two_decimals(value)) + 0.0


def shown(value: float) -> str:
    """Two decimals with a true minus sign."""
    return two_decimals(value).replace("-", "−")


def grid(rows: Sequence[Sequence[float]], angles: int) -> list[list[list[float]]]:
    """Rows in the order of the queries, rounded, as [length][angle][key]."""
    flat = [[rounded(value) for value in row] for row in rows]
    return [flat[i : i + angles] for i in range(0, len(flat), angles)]


def describe(data: Mapping, at: Mapping[str, int]) -> tuple[str, str, list[tuple[float, float]]]:
    """What the page says of one state: the status, the other scores' preferences, and (score, weight) of each key."""

    def weights(record: Mapping) -> list[float]:
        return record["weights"][at["temperature"]][at["length"]][at["angle"]]

    chosen = data["scores"][at["score"]]
    query = f"query at {data['degrees'][at['angle']]}°, length {data['lengths'][at['length']]}"
    where = f"{chosen['name']}, {query}, temperature {data['temperatures'][at['temperature']]}"
    status = f"{where}: largest weight {most(data['keys'], weights(chosen))}."
    others = [f"{r['name']} {most(data['keys'], weights(r))}" for r in data["scores"] if r is not chosen]
    now = list(zip(chosen["scores"][at["length"]][at["angle"]], weights(chosen), strict=True))
    return status, f"Largest with the same query: {'; '.join(others)}." if others else "", now


def most(labels: Sequence[str], weights: Sequence[float]) -> str:
    """The largest of the rounded weights, and the keys that have it."""
    top = max(weights)
    return f"{shown(top)} on {' and '.join(label for label, w in zip(labels, weights, strict=True) if w == top)}"


def picture(
    keys: Tensor,
    labels: Sequence[str],
    now: Sequence[tuple[float, float]],
    degree: float,
    length: float,
    unit: float,
    rings: Sequence[float],
    title: str,
) -> str:
    """The plane as SVG, and beside it the table of scores and weights; `now` has (score, weight) of each key."""
    parts = [f'<path class="ac-lines" d="M-{RADIUS} 0H{RADIUS}M0 -{RADIUS}V{RADIUS}"/>']
    parts += [f'<circle class="ac-lines" r="{ring * unit:.1f}" fill="none" stroke-dasharray="2 4"/>' for ring in rings]
    names = []
    for (x, y), label, (_, weight) in zip(keys.tolist(), labels, now, strict=True):
        parts.append(
            f'<g class="ac-key" transform="rotate({-math.degrees(math.atan2(y, x)):.1f})" {_paint("key")}>'
            f'<path class="ac-halo" d="M0 0H{math.hypot(x, y) * unit:.1f}" stroke-width="{24 * weight:g}"/>'
            f"{_arrow(math.hypot(x, y) * unit, 2)}</g>"
        )
        names.append(_label(label, x * unit, y * unit))
    x, y = vector(length, degree).tolist()
    parts += names
    parts.append(
        f'<g class="ac-query" transform="rotate({-degree:g})" {_paint("query")}>'
        f"{_arrow(length * unit, 4)}</g>{_label('q', x * unit, y * unit)}"
    )
    alt = f"The query and {len(labels)} keys as arrows; the numbers are in the table beside."
    side = RADIUS + 22
    names = (
        f'{escape(label)} <span class="ac-dim">({_coordinate(x)}, {_coordinate(y)})</span>'
        for (x, y), label in zip(keys.tolist(), labels, strict=True)
    )
    numbers = weights_table([(name, *pair) for name, pair in zip(names, now, strict=True)], title)
    return (
        f'<div class="ac-state"><svg class="ac-plane" viewBox="{-side} {-side} {2 * side} {2 * side}" role="img" '
        f'aria-label="{alt}">{"".join(parts)}</svg><div class="ac-now">{numbers}</div></div>'
    )


def weights_table(rows: Sequence[tuple[str, float, float]], title: str) -> str:
    """A table of keys (as HTML), their scores and their weights, each weight with a bar. title: of the piece."""
    body = "".join(
        f'<tr><th scope="row">{key}</th><td>{shown(value)}</td><td><span class="ac-share">'
        f'<span style="width:{100 * min(max(weight, 0), 1):.4g}%"></span></span><span>{shown(weight)}</span></td></tr>'
        for key, value, weight in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("key", "score", "weight"))
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", f"Scores and weights: {title}")


def _arrow(tip: float, width: float) -> str:
    """Shaft and head along the x-axis; the colour is the parent's stroke."""
    size = 5 + 1.5 * width
    return (
        f'<path d="M0 0H{tip - 5:.1f}" stroke-width="{width}"/>'
        f'<path d="M0 0L{-size} {-size / 2}V{size / 2}z" transform="translate({tip:.1f})"/>'
    )


def _paint(role: str) -> str:
    return f'stroke="{PALETTE[role]}" fill="{PALETTE[role]}"'


def _label(text: str, x: float, y: float) -> str:
    """A text just beyond the tip (x, y) of an arrow, y pointing up."""
    further = 1 + 12 / max(math.hypot(x, y), 1e-9)
    return f'<text x="{x * further:.1f}" y="{4.5 - y * further:.1f}">{escape(text)}</text>'


def _coordinate(value: float) -> str:
    return number(round(value, 2) + 0.0).replace("-", "−")


def _start(values: Sequence[float]) -> int:
    return list(values).index(1) if 1 in values else len(values) // 2


def _some_states(data: Mapping) -> list[list[str]]:
    """Rows of the static table: each score in four directions, and at each length."""
    start, n = data["start"], len(data["degrees"])
    quarters = [(start["length"], i * n // 4) for i in range(4)]
    states = [*quarters, *((i, start["angle"]) for i in range(len(data["lengths"])))]
    rows = []
    for record in data["scores"]:
        for length, angle in states:
            cells = zip(
                record["weights"][start["temperature"]][length][angle], record["scores"][length][angle], strict=True
            )
            query = f"{record['name']}, {data['degrees'][angle]}°, length {data['lengths'][length]}"
            rows.append([query, *(f"{shown(weight)} ({shown(value)})" for weight, value in cells)])
    return rows
