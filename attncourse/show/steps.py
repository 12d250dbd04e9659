"""One self-attention layer, step by step: X, then Q, K and V, the scores, the weights, the output."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from attncourse.show.figures import PALETTE
from attncourse.show.html import Output, fragment, prose, require_text, scroll, text_table
from attncourse.show.pieces import NOTE
from attncourse.show.vectors import rounded, shown

STEPS = ("X", "Q, K, V", "scores", "divide", "softmax", "output")
# Name in a trace -> title, step at which it appears, its colour, and whether a row belongs to the token that asks.
MATRICES = {
    "x": ("X", 0, "neutral", True),
    "query": ("Q", 1, "query", True),
    "key": ("K", 1, "key", False),
    "value": ("V", 1, "value", False),
    "scores": ("scores Q Kᵀ", 2, "neutral", True),
    "scaled": ("into the softmax", 3, "neutral", True),
    "weights": ("weights", 4, "neutral", True),
    "output": ("output: weights · V", 5, "output", True),
}
SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def steps(
    traces: Mapping[str, Mapping[str, Tensor]],
    *,
    title: str = "One layer, step by step",
    caption: str = "A row for each token; the chosen one is marked.",
) -> Output:
    """What one head computes for a few tokens, revealed a step at a time; the reader chooses the token that asks.

    traces: name -> tensors `x` (T, d), `query` and `key` (T, D), `value` and `output` (T, Dv), `scores`, `scaled` (what
    enters the softmax) and `weights` (T, T). Several traces of the same x can be compared; shapes must agree. At most
    6 tokens of 4 numbers. `.data` holds the texts that the page shows, rounded here. Without scripts: all matrices of
    the first trace, and every step of every token in words.

    Raises ValueError where a tensor is missing or does not fit.
    """
    require_text(title=title, caption=caption)
    if not traces:
        raise ValueError("steps needs at least one trace")
    runs = [_run(name, trace) for name, trace in traces.items()]
    shapes = [[(len(rows), len(rows[0])) for rows in run["cells"]] for run in runs]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"the traces {', '.join(traces)} differ in their shapes")
    tokens = [_name("x", i) for i in range(shapes[0][0][0])]
    data = {
        "steps": list(STEPS),
        "tokens": tokens,
        "at": [step for _, step, _, _ in MATRICES.values()],
        "own": [own for _, _, _, own in MATRICES.values()],
        "runs": runs,
    }
    shown_first = zip(MATRICES, runs[0]["cells"], strict=True)
    matrices = f'<div class="ac-mats">{"".join(_matrix(name, rows, tokens) for name, rows in shown_first)}</div>'
    words = [_words(run, first=run is runs[0]) for run in runs]
    said = "".join(
        f"<p><b>{escape(run['name'])}</b></p><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for run, lines in zip(runs, words, strict=True)
    )
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f'<p class="ac-live" role="status" aria-live="polite">{escape(runs[0]["said"][-1][0])}</p>'
        f"{scroll(matrices, f'Matrices: {title}')}"
        f"<details><summary>Every step in words</summary>{said}</details>"
        f"<figcaption>{prose(caption)} {NOTE}</figcaption></figure>"
    )
    html = fragment(body, kind="steps", piece="steps", script="steps.js", data=data, styles=["steps.css"])
    text = [title]
    for name, rows in zip(MATRICES, runs[0]["cells"], strict=True):
        header = ["", *(tokens if name in ("scores", "scaled", "weights") else map(str, range(1, len(rows[0]) + 1)))]
        text.append(
            f"{MATRICES[name][0]}\n{text_table(header, [[t, *row] for t, row in zip(tokens, rows, strict=True)])}"
        )
    text += ["\n".join([run["name"], *lines]) for run, lines in zip(runs, words, strict=True)]
    return Output("\n\n".join([*text, f"{caption} {NOTE}"]), html, data)


def _run(name: str, trace: Mapping[str, Tensor]) -> dict[str, Any]:
    """One trace, checked: its cells as texts, and a sentence for every step and token."""
    require_text(name=name)
    if missing := [key for key in MATRICES if key not in trace]:
        raise ValueError(f"{name}: the trace lacks {', '.join(missing)}")
    values = {key: torch.as_tensor(trace[key]).detach().double().cpu() for key in MATRICES}
    T = len(values["x"])
    wanted = {key: (T, T) for key in ("scores", "scaled", "weights")}
    for key, tensor in values.items():
        shape = wanted.get(key, (T, tensor.shape[-1] if tensor.dim() else 0))
        if tensor.dim() != 2 or tuple(tensor.shape) != shape or not (1 <= T <= 6 and 1 <= tensor.shape[1] <= 6):
            raise ValueError(f"{name}: {key} has shape {tuple(tensor.shape)}; it must be {shape}, at most 6 × 6")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: {key} is not finite")
    cells = {key: _texts(tensor.tolist()) for key, tensor in values.items()}
    said = [[_sentence(step, i, cells) for i in range(T)] for step in range(len(STEPS))]
    return {"name": name, "cells": list(cells.values()), "said": said}


def _texts(rows: list[list[float]]) -> list[list[str]]:
    """Numbers as shown: whole ones where the matrix has no other, else two decimals."""
    flat = [[rounded(value) for value in row] for row in rows]
    whole = all(value.is_integer() for row in flat for value in row)
    return [[(str(int(value)).replace("-", "−") if whole else shown(value)) for value in row] for row in flat]


def _sentence(step: int, i: int, cells: Mapping[str, list[list[str]]]) -> str:
    """What happens to token i at a step."""
    x, q, k, v = (_name(letter, i) for letter in "xqkv")
    row = {name: f"({', '.join(rows[i])})" for name, rows in cells.items()}
    T = len(cells["x"])
    if step == 0:
        what = f"{x} = {row['x']}. One sequence comes in, and nothing else."
    elif step == 1:
        what = (
            f"{q} = {row['query']} asks, {k} = {row['key']} is compared, {v} = {row['value']} is given: all from {x}."
        )
    elif step == 2:
        products = ", ".join(f"{q}·{_name('k', j)} = {cells['scores'][i][j]}" for j in range(T))
        what = f"{x} asks every token, itself too: {products}."
    elif step == 3:
        change = "stay as they are" if row["scores"] == row["scaled"] else f"become {row['scaled']}"
        what = f"Scores of {x}: {row['scores']} {change}."
    elif step == 4:
        weights = cells["weights"][i]
        top = max(weights, key=float)
        most = " and ".join(_name("x", j) for j in range(T) if weights[j] == top)
        what = f"{x} spreads one unit: {row['weights']}. Most, {top}, goes to {most}."
    else:
        parts = " + ".join(f"{cells['weights'][i][j]} {_name('v', j)}" for j in range(T))
        what = f"{x} receives {parts} = {row['output']}."
    return f"Step {step + 1} of {len(STEPS)}, {STEPS[step]}. {what}"


def _words(run: Mapping[str, Any], first: bool) -> list[str]:
    """Every sentence of a trace; of a later one only those from the division on, the others being the same."""
    return [line for lines in run["said"][0 if first else 3 :] for line in lines]


def _matrix(name: str, rows: list[list[str]], tokens: Sequence[str]) -> str:
    """One matrix as a table: a row for each token, and for T×T ones a column for each."""
    title, _, colour, _ = MATRICES[name]
    columns = tokens if name in ("scores", "scaled", "weights") else [str(j + 1) for j in range(len(rows[0]))]
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(token)}</th>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
        for token, row in zip(tokens, rows, strict=True)
    )
    return (
        f'<div class="ac-mat"><table><caption style="border-color:{PALETTE[colour]}">{escape(title)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _name(letter: str, i: int) -> str:
    return f"{letter}{str(i + 1).translate(SMALL)}"
