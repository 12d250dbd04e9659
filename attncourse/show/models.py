"""How published models' caches grow with the context, beside the memory of some graphics cards."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table, two_decimals

CARDS = {"24 GB (RTX 4090)": 24, "80 GB (H100)": 80, "192 GB (B200)": 192}  # read as GiB; a fourth has no room
WIDTH, HEIGHT, LEFT, TOP = 280, 270, 46, 14  # of the curves' area, and what stands to its left and above
BADGES = (9, 6, 5, 3, 8, 4)  # where along its line, in tenths, the letter of each chosen model stands


def models(
    growth: Mapping[str, Any],
    *,
    cards: Mapping[str, float] = CARDS,
    start: Sequence[str] = ("Llama-2-7b-hf", "Llama-3.1-8B", "Gemma-3-27b-it", "DeepSeek-V3"),
    tokens: int = 131_072,
    title: str = "Context and cache",
    caption: str = "A line is a published model's cache of one sequence in bf16, a dashed one a card's memory (its "
    "name, read as GiB), of which the weights take their share. Notice which lines bend.",
) -> Output:
    """The caches of many models on logarithmic scales; the reader chooses up to six of them, and a context.

    growth: `tokens`, rising contexts, and `models`, each with `name`, `kind` (in words) and `bytes` at these contexts:
    what `attncourse.models.growth()` gives. cards: label -> GiB, drawn as lines. start: the models chosen at first.
    tokens: the context at first. Every number on the page is computed here and rounded (`.data`); the script looks it
    up. 58 models at 11 contexts: 45 KB. Without scripts: the start, drawn, and every model as a table.

    Raises ValueError for a start that is not there, and sizes that do not fit.
    """
    require_text(title=title, caption=caption)
    contexts, records = [int(n) for n in growth["tokens"]], list(growth["models"])
    names = [record["name"] for record in records]
    if len(contexts) < 2 or contexts != sorted(set(contexts)) or contexts[0] < 1:
        raise ValueError(f"tokens={contexts} must be two or more rising numbers")
    for record in records:
        if len(record["bytes"]) != len(contexts) or min(record["bytes"]) < 1:
            raise ValueError(f"{record['name']}: bytes={record['bytes']}, but there are {len(contexts)} contexts")
    if tokens not in contexts:
        raise ValueError(f"tokens={tokens} is none of the contexts {contexts}")
    if not 1 <= len(start) <= len(BADGES) or set(start) - set(names) or len(set(start)) < len(start):
        raise ValueError(f"start={list(start)} must be 1 to {len(BADGES)} of the models")
    gib = [[size / 2**30 for size in record["bytes"]] for record in records]
    lows, highs = min(map(min, gib)), max(*cards.values(), *map(max, gib))
    low, high = math.log10(lows) - 0.1, math.log10(highs) + 0.1

    def height(size: float) -> float:
        return round(TOP + HEIGHT * (high - math.log10(size)) / (high - low), 1)

    span = math.log2(contexts[-1] / contexts[0])
    data = {
        "tokens": [f"{n:,}" for n in contexts],
        "x": [round(LEFT + WIDTH * math.log2(n / contexts[0]) / span, 1) for n in contexts],
        "cards": [[label, height(size)] for label, size in sorted(cards.items(), key=lambda card: card[1])],
        "models": [
            {
                "name": record["name"],
                "kind": record["kind"],
                "gib": [shown(size) for size in sizes],
                "y": [height(size) for size in sizes],
                "below": [sum(size > room for room in cards.values()) for size in sizes],  # cards that are too small
            }
            for record, sizes in zip(records, gib, strict=True)
        ],
        "badges": [round(spot * (len(contexts) - 1) / 10) for spot in BADGES],
        "start": {"tokens": contexts.index(tokens), "chosen": [names.index(name) for name in start]},
    }
    shown_at = (1024, 8192, 32_768, 131_072, 1_048_576)
    some = [i for i, n in enumerate(contexts) if n in shown_at] or range(len(contexts))
    header = ["GiB at … tokens", *(data["tokens"][i] for i in some), "attention"]
    rows = [[model["name"], *(model["gib"][i] for i in some), model["kind"]] for model in data["models"]]
    first, *lines = describe(data, data["start"]["tokens"], data["start"]["chosen"])
    said = "All models"
    items = "".join(f"<li><b>{line[0]}</b>{escape(line[1:])}</li>" for line in lines)
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data, range(math.ceil(low), math.floor(high) + 1), height), title)}"
        f'<div class="ac-live" role="status" aria-live="polite"><p>{escape(first)}</p><ul>{items}</ul></div>'
        f"<details><summary>All models as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    script, styles = "models.js", ["scores.css", "models.css"]
    html = fragment(body, kind="models", piece="models", script=script, data=data, styles=styles)
    text = [title, "\n".join([first, *lines]), f"{said}\n{text_table(header, rows)}", caption]
    return Output("\n\n".join(text), html, data)


def shown(gib: float) -> str:
    """GiB with two decimals; three where it is less than 0.1."""
    return f"{gib:.3f}" if gib < 0.1 else f"{float(two_decimals(gib)):,.2f}"


def describe(data: Mapping, tokens: int, chosen: Sequence[int | None]) -> list[str]:
    """What the page says: the context, then a line for each chosen model, which begins with its letter."""
    lines = [f"At {data['tokens'][tokens]} tokens:"]
    for letter, index in zip("ABCDEF", chosen, strict=False):
        if index is not None:
            model = data["models"][index]
            too_small = model["below"][tokens]
            fits = too_small < len(data["cards"])
            where = f"below the line of {data['cards'][too_small][0]}" if fits else "above every line"
            lines.append(f"{letter} {model['name']}, {model['kind']}: {model['gib'][tokens]} GiB, {where}")
    return lines


def path(data: Mapping, index: int) -> str:
    """A model's line, without the points that lie on a straight piece of it."""
    points = list(zip(data["x"], data["models"][index]["y"], strict=True))
    kept = [0]
    for i in range(1, len(points) - 1):
        (x0, y0), (x2, y2) = points[kept[-1]], points[i + 1]
        passed = points[kept[-1] + 1 : i + 1]
        if any(abs(y0 + (y2 - y0) * (x - x0) / (x2 - x0) - y) >= 0.2 for x, y in passed):
            kept.append(i)
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in (points[i] for i in (*kept, len(points) - 1)))


def _picture(data: Mapping, powers: range, height: Callable[[float], float]) -> str:
    """Scales, cards, every model's line, and letters for the chosen ones."""
    x, at = data["x"], data["start"]
    right, bottom = LEFT + WIDTH, TOP + HEIGHT
    grid, marks = "", []
    for power in powers:
        y = height(10.0**power)
        grid += f"M{LEFT} {y:g}h{WIDTH}"
        marks.append(f'<text class="ac-end" x="{LEFT - 5}" y="{y + 4:g}">{10.0**power:,g}</text>')
    for i in range(0, len(x), 2):
        grid += f"M{x[i]:g} {bottom}v4"
        count = int(data["tokens"][i].replace(",", ""))
        label = f"{count // 2**20}M" if count >= 2**20 else f"{count // 1024}k" if count >= 1024 else str(count)
        marks.append(f'<text class="ac-mid" x="{x[i]:g}" y="{bottom + 17}">{label}</text>')
    rooms = "".join(f"M{LEFT} {y:g}h{WIDTH}" for _, y in data["cards"])
    for i, (label, y) in enumerate(data["cards"]):
        above = i == len(data["cards"]) - 1
        marks.append(f'<text class="ac-room" x="{LEFT + 5}" y="{y - 4 if above else y + 10:g}">{escape(label)}</text>')
    slots = {index: slot for slot, index in enumerate(at["chosen"])}
    lines = "".join(
        f'<path class="ac-model{f" ac-slot-{slots[i]}" if i in slots else ""}" d="{path(data, i)}"/>'
        for i in range(len(data["models"]))
    )
    badges = []
    for slot, knot in enumerate(data["badges"]):
        chosen = slot < len(at["chosen"])
        y = data["models"][at["chosen"][slot]]["y"] if chosen else data["models"][0]["y"]
        badges.append(
            f'<g class="ac-badge ac-slot-{slot}"{"" if chosen else " hidden"}>'
            f'<circle class="ac-dot" cx="{x[at["tokens"]]:g}" cy="{y[at["tokens"]]:g}" r="3.5"/>'
            f'<circle cx="{x[knot]:g}" cy="{y[knot]:g}" r="8"/>'
            f'<text class="ac-mid" x="{x[knot]:g}" y="{y[knot] + 4:g}">{"ABCDEF"[slot]}</text></g>'
        )
    alt = "Cache in GiB against context, a line for each model; the numbers are said below and stand in the table."
    whole, tall = right + 16, bottom + 36
    return (
        f'<svg class="ac-caches" viewBox="0 0 {whole} {tall}" role="img" aria-label="{alt}" '
        f'style="max-width:{1.6 * whole:.0f}px;min-width:{0.78 * whole:.0f}px">'
        f'<path class="ac-lines" d="{grid}"/><path class="ac-rooms" d="{rooms}"/>{lines}'
        f'<path class="ac-here" d="M{x[at["tokens"]]:g} {TOP}v{HEIGHT}"/>{"".join(marks)}{"".join(badges)}'
        f'<text x="4" y="{TOP - 3}">GiB</text><text class="ac-end" x="{right}" y="{bottom + 32}">tokens</text></svg>'
    )
