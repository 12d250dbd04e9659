"""A state as a memory: pairs are written into it one after the other, and each of their keys is asked again."""

from collections.abc import Mapping, Sequence
from html import escape

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table, two_decimals

PAIR, LEFT, ROW, BAR = 14, 52, 14, 60  # a pair's width, what stands left of the first, a letter's row, a full bar


def memory(
    letters: Sequence[str],
    memories: Mapping[str, Tensor],
    *,
    kept: Tensor | None = None,
    start: tuple[int, int] = (0, 8),
    title: str = "Write pairs into a state, then ask for each",
    caption: str = "Each pair is a key and a letter. A bar is the share of the answer that falls on the right letter.",
) -> Output:
    """What a state gives back after 1, 2, … N pairs of a key and a letter, for several kinds of state.

    letters: the N letters written, each one character, at most 5 different. memories: name -> the keys' features
    (N, M), none negative, M ≤ 64; pair i adds features[i] to the column of its letter, and a question reads with the
    same features and divides by its sum: normalised linear attention, asked with a key that was written. kept: what
    softmax attention has in place of the products of features, (N, N), where every key is kept. start: which memory,
    and how many pairs. Everything is computed here in float64 and rounded (`.data`); the script looks it up. Six
    memories of 24 pairs: 40 KB. Without scripts: the start, drawn, and each memory's count of right letters as a table.

    Raises ValueError for sizes that do not fit, and for features that are negative or all zero.
    """
    require_text(title=title, caption=caption)
    if not letters or any(not isinstance(letter, str) or len(letter) != 1 for letter in letters):
        raise ValueError(f"letters={letters!r} must be single characters, one for each pair")
    N, kinds = len(letters), sorted(set(letters))
    if N > 32 or len(kinds) > 5:
        raise ValueError(f"there are {N} letters, {len(kinds)} of them different; at most 32 and 5 fit")
    if not memories:
        raise ValueError("memory needs at least one kind of state")
    values = F.one_hot(torch.tensor([kinds.index(letter) for letter in letters]), len(kinds)).double()
    records = [_state(name, features, values) for name, features in memories.items()]
    if kept is not None:
        records.append(_kept(kept, values))
    if not (0 <= start[0] < len(records) and 1 <= start[1] <= N):
        raise ValueError(f"start={start}, but there are {len(records)} memories, from 0, and 1 to {N} pairs")
    data = {
        "letters": "".join(letters),
        "kinds": "".join(kinds),
        "memories": records,
        "size": [PAIR, LEFT, ROW, BAR],
        "start": {"memory": start[0], "pairs": start[1]},
    }
    status = describe(data, *start)
    steps = sorted({n for n in (1, 2, 4, 8, 16) if n < N} | {N})
    header = ["right letters after … pairs", *map(str, steps)]
    rows = [[record["name"], *(str(_right(record, data["letters"], n)) for n in steps)] for record in records]
    said = "Right letters"
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data), title)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f"<details><summary>Right letters as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    styles = ["scores.css", "memory.css"]
    html = fragment(body, kind="memory", piece="memory", script="memory.js", data=data, styles=styles)
    return Output("\n\n".join([title, status, f"{said}\n{text_table(header, rows)}", caption]), html, data)


def _state(name: str, features: Tensor, values: Tensor) -> dict:
    """One kind of state after every number of pairs, as plain JSON values."""
    require_text(name=name)
    N = len(values)
    if features.dim() != 2 or features.shape[0] != N or not 1 <= features.shape[1] <= 64:
        raise ValueError(f"{name}: features {tuple(features.shape)} must be ({N}, M) with M from 1 to 64")
    features = features.detach().cpu().double()
    if not features.isfinite().all() or (features < 0).any() or (features.sum(-1) == 0).any():
        raise ValueError(f"{name}: features must be finite, not negative, and of no key all zero")
    memories = (features[:, :, None] * values[:, None]).cumsum(0)  # (N, M, V)
    levels = (9 * memories / memories.amax((1, 2), keepdim=True)).round().long()  # drawn in ten shades
    return {
        "name": name,
        "features": features.shape[1],
        "states": ["".join(map(str, level.T.flatten().tolist())) for level in levels],  # a letter's row at a time
        **_answers(features @ features.T, values),
    }


def _kept(similarity: Tensor, values: Tensor) -> dict:
    N = len(values)
    if similarity.shape != (N, N) or not (similarity > 0).all():
        raise ValueError(f"kept {tuple(similarity.shape)} must be ({N}, {N}) and positive")
    answers = _answers(similarity.detach().cpu().double(), values)
    return {"name": "softmax, all kept", "features": None, "states": None, **answers}


def _answers(similarity: Tensor, values: Tensor) -> dict:
    """For n = 1 … N pairs: the share (per cent) on each right letter, which letter has most, and the mean share."""
    shares, read, means = [], [], []
    for n in range(1, len(values) + 1):
        weights = similarity[:n, :n]
        answer = weights @ values[:n] / weights.sum(-1, keepdim=True)  # (n, V)
        right = (answer * values[:n]).sum(-1)
        shares.append([round(100 * share) for share in right.tolist()])
        read.append("".join(map(str, answer.argmax(-1).tolist())))
        means.append(round(right.mean().item(), 4))
    return {"shares": shares, "read": read, "means": means}


def _right(record: Mapping, letters: str, n: int) -> int:
    kinds = sorted(set(letters))
    return sum(kinds[int(k)] == letter for k, letter in zip(record["read"][n - 1], letters, strict=False))


def describe(data: Mapping, kind: int, n: int) -> str:
    """What the page says of one state."""
    record, V = data["memories"][kind], len(data["kinds"])
    right = _right(record, data["letters"], n)
    M = record["features"]
    stored = f"State: {M} × {V} + {M} = {M * (V + 1)} numbers" if M else f"Stored: {n} keys and {n} values"
    pairs = "1 pair" if n == 1 else f"{n} pairs"
    mean = two_decimals(record["means"][n - 1])
    return f"{record['name']}: {pairs} written, {right} read back right. Mean share {mean}. {stored}."


def shades(data: Mapping, record: Mapping, n: int) -> list[str]:
    """The state as nine paths, one for each shade from 1 to 9; empty ones where every key is kept."""
    pair, left, row, _ = data["size"]
    width, paths = pair * len(data["letters"]), [""] * 9
    if record["states"]:
        M = record["features"]
        for place, level in enumerate(record["states"][n - 1]):
            if level != "0":
                y, x = divmod(place, M)
                step = width / M
                paths[int(level) - 1] += f"M{left + x * step:.2f} {20 + row * y}h{step:.2f}v{row}h-{step:.2f}z"
    return paths


def _picture(data: Mapping) -> str:
    """The state above, a row for each letter; below it a bar for each pair, what was written and what is read."""
    kind, n = data["start"]["memory"], data["start"]["pairs"]
    record, letters, kinds = data["memories"][kind], data["letters"], data["kinds"]
    pair, left, row, bar = data["size"]
    N, V = len(letters), len(kinds)
    width, top = pair * N, 20 + row * V
    base = top + 48 + bar
    rows = "".join(
        f'<text x="{left - 6}" y="{20 + row * (v + 0.8):g}" class="ac-end">{escape(letter)}</text>'
        for v, letter in enumerate(kinds)
    )
    paths = "".join(
        f'<path class="ac-shade" d="{d}" fill-opacity="{level / 9:.2f}"/>'
        for level, d in enumerate(shades(data, record, n), 1)
    )
    none = "" if not record["states"] else " hidden"
    bars = []
    for i, letter in enumerate(letters):
        written = i < n
        share = record["shares"][n - 1][i] if written else 0
        read = kinds[int(record["read"][n - 1][i])] if written else ""
        mark = ("✓" if read == letter else read) if written else ""
        x, middle = left + pair * i, left + pair * (i + 0.5)
        bars.append(
            f'<g class="ac-pair-{i}{"" if written else " ac-later"}">'
            f'<rect x="{x + 2}" y="{base - bar * share / 100:g}" width="{pair - 4}" height="{bar * share / 100:g}"/>'
            f'<text class="ac-mid" x="{middle:g}" y="{base + 14}">{escape(letter)}</text>'
            f'<text class="ac-mid ac-read" x="{middle:g}" y="{base + 30}">{escape(mark)}</text></g>'
        )
    lines = f"M{left} {base}h{width}M{left} {base - bar}h{width}M{left} 20h{width}v{row * V}h-{width}z"
    labels = {base - bar + 4: "1", base - 1: "0", base + 14: "wrote", base + 30: "read"}
    sides = "".join(f'<text x="{left - 6}" y="{y}" class="ac-end">{text}</text>' for y, text in labels.items())
    alt = "The state's numbers in shades, and a bar for each pair; counts are said below and stand in the table."
    return (
        f'<svg class="ac-store" viewBox="0 0 {left + width + 6} {base + 38}" role="img" aria-label="{alt}" '
        f'style="max-width:{1.4 * (left + width + 6):.0f}px;min-width:{0.78 * (left + width + 6):.0f}px">'
        f'<path class="ac-lines" d="{lines}"/><text x="{left}" y="13">state: a column for each feature</text>'
        f'<text class="ac-none ac-mid" x="{left + width / 2:g}" y="{20 + row * V / 2 + 4:g}"{none}>'
        f"no state: every key and value is kept</text>"
        f'{rows}{paths}<text x="{left}" y="{top + 34}">share on the right letter</text>{sides}{"".join(bars)}</svg>'
    )
