"""The roofline: how many operations a call does for each byte it moves, and which ceiling of a machine that meets."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table

KINDS = ("prefill", "step")
PARTS = ("all", "dots", "chosen", "took")  # of the marks of each kind
# As their maker states them, without sparsity: 16-bit products of matrices, and memory. T4: Jia et al. 2019 quote them.
MACHINES = {
    "H200, its maker's figures": {"flop_per_s": 989e12, "bytes_per_s": 4.8e12},
    "T4, its maker's figures": {"flop_per_s": 65e12, "bytes_per_s": 320e9},
}
WIDTH, HEIGHT, LEFT, TOP = 290, 250, 46, 16  # of the area, and what stands to its left and above
START = {"machine": 0, "tokens": 4096, "batch": 1, "mechanism": "multi_head"}


def roofline(
    grid: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Any],
    *,
    machines: Mapping[str, Mapping[str, float]] = MACHINES,
    start: Mapping[str, Any] = START,
    title: str = "Compute or traffic?",
    caption: str = "The slanted ceiling is what memory delivers, the flat one what can be computed; a call stands "
    "under one of them by its FLOP a byte (logarithmic scales). Circles are steps, squares prefills; on the ceiling by "
    "formula, below it as measured; large for the chosen mechanism. Every mechanism keeps a quarter of multi-head "
    "attention's cache, or what it must.",
) -> Output:
    """Prefill and step of every mechanism under the ceilings of a machine, tokens and batch chosen by the reader.

    grid: the formulas, as `attncourse.lab.costs.grid()` gives them. measured: what `benchmarks/roofline.py` wrote:
    `machine`, `environment`, `settings`, and `rows` and `batched` with times. machines: others, name -> flop_per_s and
    bytes_per_s, of 16-bit numbers and without measured points. start: which machine (0 is the measured one), tokens,
    batch and mechanism. Every number on the page is computed here and rounded (`.data`); the script looks it up.
    8 mechanisms at 6 lengths and 3 batches on 3 machines: 60 KB. Without scripts: the start, drawn and as a table.

    Raises ValueError for a grid with holes, and a start that is not in it.
    """
    require_text(title=title, caption=caption)
    tokens, batches = sorted({row["tokens"] for row in grid}), sorted({row["batch"] for row in grid})
    names = list(dict.fromkeys(row["mechanism"] for row in grid))
    cells = {(row["number_bytes"], row["tokens"], row["batch"], row["mechanism"]): row for row in grid}
    for values, known in (("tokens", tokens), ("batch", batches), ("mechanism", names)):
        if start[values] not in known:
            raise ValueError(f"start: {values}={start[values]!r} is none of {known}")
    if not 0 <= start["machine"] <= len(machines):
        raise ValueError(f"start: machine={start['machine']}, but there are {1 + len(machines)}, counted from 0")
    here = {_named(measured): dict(measured["machine"]) | {"number_bytes": _number_bytes(measured)}}
    every = here | {name: dict(machine) | {"number_bytes": 2} for name, machine in machines.items()}
    needed = {
        (m["number_bytes"], n, b, name) for m in every.values() for n in tokens for b in batches for name in names
    }
    if missing := needed - set(cells):
        raise ValueError(f"the grid lacks {sorted(missing)[0]}: bytes of a number, tokens, batch, mechanism")
    times = _times(measured)
    drawn = [(cells[key][kind], times.get((*key[1:], kind))) for key in needed for kind in KINDS]
    scale = _Scale([cost for cost, _ in drawn], every.values(), [cost["flop"] / took for cost, took in drawn if took])

    def calls(machine: Mapping[str, float], own: bool) -> list:
        """By tokens, batch, mechanism and kind: each call on a machine, with its measured time on our own."""

        def pair(n: int, b: int, mechanism: str) -> list:
            row = cells[machine["number_bytes"], n, b, mechanism]
            return [
                _call(row[kind], machine, times.get((n, b, mechanism, kind)) if own else None, scale) for kind in KINDS
            ]

        return [[[pair(n, b, mechanism) for mechanism in names] for b in batches] for n in tokens]

    data = {
        "names": names,
        "tokens": [f"{n:,}" for n in tokens],
        "batches": [str(b) for b in batches],
        "machines": [
            {"name": name, "about": _about(machine), "calls": calls(machine, name in here)}
            for name, machine in every.items()
        ],
        "start": [
            start["machine"],
            tokens.index(start["tokens"]),
            batches.index(start["batch"]),
            names.index(start["mechanism"]),
        ],
    }
    at = data["start"]
    lines = describe(data, *at)
    header = ["mechanism", "call", "FLOP", "bytes", "FLOP a byte", "binds", "at least", "measured"]
    rows = [
        [name, kind, *call[2:5], ("traffic", "compute")[call[5]], call[6], call[7] if len(call) > 7 else "–"]
        for name, pair in zip(names, data["machines"][at[0]]["calls"][at[1]][at[2]], strict=True)
        for kind, call in zip(KINDS, pair, strict=True)
    ]
    said = f"{data['tokens'][at[1]]} tokens, batch {data['batches'][at[2]]}, {data['machines'][at[0]]['name']}"
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[1:])
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data, every, scale), title)}"
        f'<div class="ac-live" role="status" aria-live="polite"><p>{escape(lines[0])}</p><ul>{items}</ul></div>'
        f"<details><summary>The start as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    script, styles = "roofline.js", ["scores.css", "roofline.css"]
    html = fragment(body, kind="roofline", piece="roofline", script=script, data=data, styles=styles)
    text = [title, "\n".join(lines), f"{said}\n{text_table(header, rows)}", caption]
    return Output("\n\n".join(text), html, data)


def figure(value: float) -> str:
    """A positive number with three figures."""
    decimals = max(0, 2 - math.floor(math.log10(value) + 1e-9))
    text = f"{value:,.{decimals}f}"
    return text if value >= 100 or len(text.replace(".", "").lstrip("0")) <= 3 else f"{value:,.{decimals - 1}f}"


def si(value: float, unit: str) -> str:
    """A positive number with three figures and a prefix: 68.7 GFLOP, 1.31 µs."""
    power = math.floor(math.log10(value * (1 + 5e-4)) / 3 + 1e-9)
    power = min(max(power, -3), 5)
    return f"{figure(value / 1000**power)} {('n', 'µ', 'm', '', 'k', 'M', 'G', 'T', 'P')[power + 3]}{unit}"


def describe(data: Mapping, machine: int, tokens: int, batch: int, mechanism: int) -> list[str]:
    """What the page says: the machine, the two calls of the chosen mechanism, and how many calls traffic binds."""
    record = data["machines"][machine]
    calls = record["calls"][tokens][batch]
    lines = [f"{record['name']}: {record['about']}."]
    for kind, call in zip(KINDS, calls[mechanism], strict=True):
        _, _, flop, moved, intensity, compute, least, *took = call
        line = f"{data['names'][mechanism]}, {kind}: {flop}, {moved}, {intensity} FLOP a byte. "
        line += f"{'Compute' if compute else 'Traffic'} binds: at least {least}"
        lines.append(line + (f"; measured {took[0]}" if took else ""))
    bound = [sum(not pair[k][5] for pair in calls) for k in range(2)]
    lines.append(
        f"{data['tokens'][tokens]} tokens, batch {data['batches'][batch]}: traffic binds {bound[0]} of {len(calls)} "
        f"prefills and {bound[1]} of {len(calls)} steps"
    )
    return lines


def _about(machine: Mapping[str, float]) -> str:
    """A machine's two speeds, and where its ceilings meet."""
    compute, traffic = machine["flop_per_s"], machine["bytes_per_s"]
    ridge = figure(compute / traffic)
    return f"{si(compute, 'FLOP/s')} and {si(traffic, 'B/s')}; the ceilings meet at {ridge} FLOP a byte"


def _named(measured: Mapping) -> str:
    """What the measured machine is called."""
    threads, device = measured["environment"]["threads"], measured["environment"]["device"]
    if device.startswith("cpu"):
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}, as measured"
    return f"{device}, as measured"


def _number_bytes(measured: Mapping) -> int:
    return 4 if measured["settings"]["dtype"] == "float32" else 2


def _times(measured: Mapping) -> dict[tuple, float]:
    """Measured seconds by tokens, batch, mechanism and kind of call."""
    rows = [{"batch": 1} | row for row in measured["rows"]] + list(measured.get("batched", ()))
    return {
        (row["tokens"], row["batch"], row["mechanism"], kind): row[kind]["ms"] / 1e3
        for row in rows
        for kind in KINDS
        if row[kind]["ms"] is not None
    }


class _Scale:
    """Where FLOP a byte and FLOP a second stand: both logarithmic, over all that is drawn. speeds: measured ones."""

    def __init__(self, costs: Sequence[Mapping], machines: Sequence[Mapping], speeds: Sequence[float]):
        intensities = [cost["flop"] / cost["bytes"] for cost in costs]
        self.left, self.right = math.log10(min(intensities)) - 0.15, math.log10(max(intensities)) + 0.15
        slowest = min(m["bytes_per_s"] for m in machines) * 10**self.left
        self.low = math.log10(min([slowest, *speeds])) - 0.1
        self.high = math.log10(max(m["flop_per_s"] for m in machines)) + 0.25

    def x(self, intensity: float) -> float:
        return round(LEFT + WIDTH * (math.log10(intensity) - self.left) / (self.right - self.left), 1)

    def y(self, speed: float) -> float:
        height = (self.high - math.log10(speed)) / (self.high - self.low)
        return round(TOP + HEIGHT * height, 1)

    def roof(self, machine: Mapping[str, float]) -> str:
        """A machine's two ceilings as a path."""
        ridge = machine["flop_per_s"] / machine["bytes_per_s"]
        first = self.y(machine["bytes_per_s"] * 10**self.left)
        return f"M{LEFT} {first:g}L{self.x(ridge):g} {self.y(machine['flop_per_s']):g}H{LEFT + WIDTH}"


def _call(cost: Mapping[str, int], machine: Mapping[str, float], seconds: float | None, scale: _Scale) -> list:
    """x, y, FLOP, bytes, FLOP a byte, whether compute binds, the least time; then the measured time, and its y."""
    compute, traffic = cost["flop"] / machine["flop_per_s"], cost["bytes"] / machine["bytes_per_s"]
    least, intensity = max(compute, traffic), cost["flop"] / cost["bytes"]
    call = [scale.x(intensity), scale.y(cost["flop"] / least), si(cost["flop"], "FLOP"), si(cost["bytes"], "B")]
    call += [figure(intensity), int(compute > traffic), si(least, "s")]
    return call if seconds is None else [*call, si(seconds, "s"), scale.y(cost["flop"] / seconds)]


def mark(kind: int, x: float, y: float, size: float) -> str:
    """A square for a prefill, a circle for a step, as a path."""
    if kind:
        return f"M{x - size:g} {y:g}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0z"
    return f"M{x - size:g} {y - size:g}h{2 * size:g}v{2 * size:g}h{-2 * size:g}z"


def paths(data: Mapping, machine: int, tokens: int, batch: int, mechanism: int) -> list[str]:
    """Marks of prefills, then of steps: all by formula, all as measured, the chosen one by formula and measured."""
    calls, found = data["machines"][machine]["calls"][tokens][batch], []
    for kind in range(2):
        found.append("".join(mark(kind, *pair[kind][:2], 2) for pair in calls))
        found.append("".join(mark(kind, pair[kind][0], pair[kind][8], 1.5) for pair in calls if len(pair[kind]) > 7))
        x, y, *_ = chosen = calls[mechanism][kind]
        found.append(mark(kind, x, y, 5))
        found.append(f"M{x:g} {y:g}V{chosen[8]:g}{mark(kind, x, chosen[8], 4)}" if len(chosen) > 7 else "")
    return found


def _picture(data: Mapping, machines: Mapping[str, Mapping], scale: _Scale) -> str:
    """Scales, the machines' ceilings, and a mark for each call."""
    right, bottom, at = LEFT + WIDTH, TOP + HEIGHT, data["start"]
    grid, texts = "", []
    for power in range(math.ceil(scale.left), math.floor(scale.right) + 1):
        x = scale.x(10.0**power)
        grid += f"M{x:g} {TOP}v{HEIGHT + 4}"
        label = f"{10**power // 1000}k" if power >= 3 else f"{10.0**power:g}"
        texts.append(f'<text class="ac-mid" x="{x:g}" y="{bottom + 17}">{label}</text>')
    for power in range(math.ceil(scale.low), math.floor(scale.high) + 1):
        y = scale.y(10.0**power)
        grid += f"M{LEFT} {y:g}h{WIDTH}"
        label = f"{10 ** (power % 3)} {'kMGTPE'[power // 3 - 1]}"
        texts.append(f'<text class="ac-end" x="{LEFT - 5}" y="{y + 4:g}">{label}</text>')
    roofs = ""
    for i, (name, machine) in enumerate(machines.items()):
        here = " ac-here" if i == at[0] else ""
        roofs += f'<path class="ac-roof{here}" d="{scale.roof(machine)}"/>'
        y = scale.y(machine["flop_per_s"]) - 5
        texts.append(f'<text class="ac-end ac-over" x="{right}" y="{y:g}">{escape(name.split(",")[0])}</text>')
    kinds = [f"ac-{kind} ac-{part}" for kind in KINDS for part in PARTS]
    marks = "".join(f'<path class="{kind}" d="{d}"/>' for kind, d in zip(kinds, paths(data, *at), strict=True))
    alt = (
        "Two ceilings for each machine, and a mark for each call under those of the chosen one; the numbers are said "
        "below and stand in the table."
    )
    whole, tall = right + 8, bottom + 38
    return (
        f'<svg class="ac-roofs" viewBox="0 0 {whole} {tall}" role="img" aria-label="{alt}" '
        f'style="max-width:{1.6 * whole:.0f}px;min-width:{0.78 * whole:.0f}px">'
        f'<path class="ac-lines" d="{grid}"/>{roofs}{marks}{"".join(texts)}'
        f'<text x="2" y="{TOP - 4}">FLOP/s</text>'
        f'<text class="ac-end" x="{right}" y="{bottom + 33}">FLOP a byte</text></svg>'
    )
