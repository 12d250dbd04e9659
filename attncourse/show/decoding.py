"""Decoding, call by call: which scores a call computes, which of them were computed before, and what is stored."""

from collections.abc import Mapping, Sequence
from html import escape

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table

CELL, LEFT, TOP = 16, 46, 20  # a cell's width, what stands left of the first one and above it


def decoding(
    traces: Mapping[str, Sequence[tuple[int, int, int]]],
    *,
    start: tuple[int, int] = (0, 0),
    title: str = "Decoding, call by call",
    caption: str = "A row is a query, a column a key.",
) -> Output:
    """How a text is read and written in calls of a model, for several ways to do it.

    traces: name -> calls (first, end, kept): the call projects tokens first … end - 1, each of which attends to all
    tokens up to its own, and afterwards the keys and values of `kept` tokens are stored. Every way ends with the same
    number of tokens, at most 24. start: which way, and which of its calls. Without scripts: the start, drawn, and all
    ways as a table.

    Raises ValueError for calls that do not follow each other.
    """
    require_text(title=title, caption=caption)
    if not traces:
        raise ValueError("decoding needs at least one way to decode")
    records = [_record(name, calls) for name, calls in traces.items()]
    ends = {record["calls"][-1][1] for record in records}
    if len(ends) > 1 or max(ends) > 24:
        raise ValueError(f"the ways end with {sorted(ends)} tokens; they must agree, and be at most 24")
    if not (0 <= start[0] < len(records) and 0 <= start[1] < len(records[start[0]]["calls"])):
        raise ValueError(f"start={start} must be a way and one of its calls, counted from 0")
    data = {"ways": records, "tokens": ends.pop(), "size": [CELL, LEFT, TOP], "start": list(start)}
    status = describe(data, *start)
    header = ["way", "calls", "tokens projected", "scores", "computed again", "tokens stored"]
    rows = []
    for way, record in enumerate(records):
        sums = totals(data, way, len(record["calls"]) - 1)
        rows.append([record["name"], str(len(record["calls"])), *map(str, sums)])
    said = "At the end"
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data), title)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f"<details><summary>All ways as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    script, styles = "decoding.js", ["scores.css", "decoding.css"]
    html = fragment(body, kind="decoding", piece="decoding", script=script, data=data, styles=styles)
    return Output("\n\n".join([title, status, f"{said}\n{text_table(header, rows)}", caption]), html, data)


def _record(name: str, calls: Sequence[tuple[int, int, int]]) -> dict:
    require_text(name=name)
    calls, before = [[int(number) for number in call] for call in calls], 0
    if not calls:
        raise ValueError(f"{name}: there are no calls")
    for first, end, kept in calls:
        if not (0 <= first <= before < end and 0 <= kept <= end):
            raise ValueError(f"{name}: the call ({first}, {end}, {kept}) does not continue {before} tokens")
        before = end
    return {"name": name, "calls": calls}


def totals(data: Mapping, way: int, call: int) -> tuple[int, int, int, int]:
    """After a call: tokens projected and scores computed so far, how many of those again, and tokens stored."""
    calls = data["ways"][way]["calls"][: call + 1]
    projected = sum(end - first for first, end, _ in calls)
    scores = sum(_scores(first, end) for first, end, _ in calls)
    return projected, scores, scores - _scores(0, calls[-1][1]), calls[-1][2]


def _scores(first: int, end: int) -> int:
    """Pairs of a query from first to end - 1 and a key up to it."""
    return (end * (end + 1) - first * (first + 1)) // 2


def describe(data: Mapping, way: int, call: int) -> str:
    """What the page says of one call."""
    record = data["ways"][way]
    first, end, _ = record["calls"][call]
    projected, scores, again, kept = totals(data, way, call)
    new = "1 token" if end - first == 1 else f"{end - first} tokens"
    return (
        f"{record['name']}, call {call + 1} of {len(record['calls'])}: {new} projected, {_scores(first, end)} scores. "
        f"So far {projected} projected, {scores} scores, {again} of them computed again. "
        f"Stored: {kept} of {end} tokens."
    )


def paths(data: Mapping, way: int, call: int) -> dict[str, str]:
    """What is drawn for one call: scores of earlier calls, new ones, those computed again, and the stored tokens."""
    cell, left, top = data["size"]
    calls = data["ways"][way]["calls"]
    before = calls[call - 1][1] if call else 0
    first, end, kept = calls[call]
    found = {"old": "", "now": "", "again": ""}
    for i in range(end):
        for j in range(i + 1):
            x, y = left + cell * j, top + cell * i
            if i >= first:
                found["now"] += f"M{x + 1} {y + 1}h{cell - 2}v{cell - 2}h-{cell - 2}z"
            else:
                found["old"] += f"M{x + 5} {y + 5}h{cell - 10}v{cell - 10}h-{cell - 10}z"
            if first <= i < before:
                found["again"] += f"M{x + 4} {y + 4}l{cell - 8} {cell - 8}m0 -{cell - 8}l-{cell - 8} {cell - 8}"
    y = top + cell * data["tokens"] + 30
    found["kept"] = "".join(f"M{left + cell * j + 1} {y + 1}h{cell - 2}v{cell - 2}h-{cell - 2}z" for j in range(kept))
    return found


def _picture(data: Mapping) -> str:
    """The triangle of scores, and below it a slot for each token that could be stored."""
    cell, left, top = data["size"]
    T = data["tokens"]
    width, bottom = cell * T, top + cell * T
    drawn = "".join(f'<path class="ac-{name}" d="{d}"/>' for name, d in paths(data, *data["start"]).items())
    outline = f"M{left} {top}" + f"h{cell}v{cell}" * T + f"H{left}z"
    slots = "".join(f"M{left + cell * j} {bottom + 30}h{cell}v{cell}h-{cell}z" for j in range(T))
    shown = [i for i in range(T) if i == 0 or (i + 1) % 4 == 0]
    numbers = "".join(
        f'<text class="ac-end" x="{left - 5}" y="{top + cell * (i + 0.8):g}">{i + 1}</text>'
        f'<text class="ac-mid" x="{left + cell * (i + 0.5):g}" y="{bottom + 44 + cell}">{i + 1}</text>'
        for i in shown
    )
    alt = "A triangle of scores, and a row of slots; what is computed and stored is said below and stands in the table."
    whole = left + width + 6
    return (
        f'<svg class="ac-calls" viewBox="0 0 {whole} {bottom + 50 + cell}" role="img" aria-label="{alt}" '
        f'style="max-width:{1.3 * whole:.0f}px;min-width:{0.75 * whole:.0f}px">'
        f'<path class="ac-lines" d="{outline}{slots}"/>{drawn}{numbers}'
        f'<text x="{left}" y="13">scores: a row for each query</text>'
        f'<text x="{left}" y="{bottom + 24}">stored: a key and a value of each token</text></svg>'
    )
