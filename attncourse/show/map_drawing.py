"""The map of attention as two SVGs: what `map_wide` and `map_narrow` placed, drawn and linked."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import numpy as np

from attncourse.show import map_narrow, map_wide
from attncourse.show.map_wide import Box
from attncourse.show.map_words import Link, named, spoken


def legend() -> str:
    """How lines are read."""
    signs = (
        ("equal", '<path class="ac-edge" d="M2 8H34"/>', "equal, tested"),
        ("limit", f'<path class="ac-edge ac-limit" d="M2 8H28"/>{_arrow((34, 8), (1, 0))}', "comes to, in the limit"),
        ("broken", f'<path class="ac-edge ac-broken" d="M2 8H11M25 8H34{_cross(18, 8)}"/>', "does not hold"),
    )
    items = "".join(
        f'<li><svg viewBox="0 0 36 16" aria-hidden="true">{drawn}</svg>{said}</li>' for _, drawn, said in signs
    )
    return f'<ul class="ac-atlas-legend">{items}</ul>'


def _cross(x: float, y: float) -> str:
    return f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8"


def _arrow(tip: Sequence[float], along: Sequence[float]) -> str:
    """A filled head of an arrow, whose tip is at a place."""
    size = math.hypot(*along)
    dx, dy = along[0] / size, along[1] / size
    (x, y), back = tip, 8
    points = (
        (x, y),
        (x - back * dx - 4 * dy, y - back * dy + 4 * dx),
        (x - back * dx + 4 * dy, y - back * dy - 4 * dx),
    )
    return '<path class="ac-head" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + 'z"/>'


@cache
def _layout(given: str) -> tuple:
    """Lines, curves and labels of the wide drawing: they depend on few things, and take a second."""
    nodes, theorems = json.loads(given)
    height = max(map_wide.node_box(node).bottom for node in nodes) + 20
    lines = map_wide.lines_between(theorems)
    curves = map_wide.route(nodes, lines, height)
    return lines, curves, map_wide.place_labels(nodes, lines, curves, height), height


def layout(nodes: Sequence[Mapping], theorems: Sequence[Mapping]) -> tuple:
    """The wide drawing's lines, curves, boxes of their conditions, and height."""
    few = [{key: node[key] for key in ("id", "short", "family", "date")} for node in nodes]
    small = [
        {"i": i} | {key: theorem[key] for key in ("of", "kind", "condition", "holds")}
        for i, theorem in enumerate(theorems)
    ]
    return _layout(json.dumps([few, small]))


def _class(family: str) -> str:
    return "ac-of-" + family.replace(" ", "-")


def _rect(box: Box, kind: str, radius: float) -> str:
    size = f'width="{box.right - box.left:.1f}" height="{box.bottom - box.top:.1f}"'
    return f'<rect class="{kind}" x="{box.left:.1f}" y="{box.top:.1f}" {size} rx="{radius}"/>'


def _svg(kind: str, width: float, height: float, label: str, about: str, content: str) -> str:
    return (
        f'<svg class="ac-atlas-{kind}" viewBox="0 0 {width} {height:.0f}" role="group" aria-label="{escape(label)}">'
        f"<desc>{escape(about)}</desc>{content}</svg>"
    )


def _linked(content: str, kind: str, href: str | None, label: str, rest: str) -> str:
    """A link inside a drawing; without an address the same, not linked."""
    to = f'href="{escape(href)}" ' if href else ""
    return f'<a class="{kind}" {to}aria-label="{escape(label)}"{rest}>{content}</a>'


def _d(points: Any) -> str:
    start, *rest = [f"{x:.1f} {y:.1f}" for x, y in points]
    return f"M{start}C{' '.join(rest)}"


def _part(points: Any, begin: float, end: float) -> Any:
    """The part of a cubic curve between two of its parameters."""
    for cut, first in ((end, True), (begin / end, False)):
        a, b, c, d = points
        ab, bc, cd = a + (b - a) * cut, b + (c - b) * cut, c + (d - c) * cut
        abc, bcd = ab + (bc - ab) * cut, bc + (cd - bc) * cut
        middle = abc + (bcd - abc) * cut
        points = (a, ab, abc, middle) if first else (middle, bcd, cd, d)
    return points


def _edge(line: map_wide.Line, points: Any, of: Sequence[int], theorems: Sequence[int]) -> str:
    """One line of the wide drawing."""
    broken = "" if line.holds else " ac-broken"
    limit = " ac-limit" if line.kind == "limit" else ""
    if line.holds:
        drawn = _d(points)
    else:
        x, y = map_wide.curve(points, np.array([0.5]))[0]
        drawn = _d(_part(points, 0, 0.43)) + _d(_part(points, 0.57, 1))
        drawn += _cross(x, y)
    head = _arrow(points[3], points[3] - points[2]) if line.kind == "limit" else ""
    marks = f'data-of="{" ".join(map(str, of))}" data-is="{" ".join(map(str, theorems))}"'
    hit = f'<path class="ac-hit" d="{_d(points)}"/>'
    return f'<g class="ac-line" {marks}>{hit}<path class="ac-edge{limit}{broken}" d="{drawn}"/>{head}</g>'


def wide(nodes: Sequence[Mapping], theorems: Sequence[Mapping], at: Mapping[str, int], link: Link) -> str:
    """Regions, lines, cards and conditions; what is written comes last, so that nothing runs over it."""
    lines, curves, labels, height = layout(nodes, theorems)
    names = {node["id"]: node for node in nodes}
    parts = [_years(height)]
    for family, (box, name) in map_wide.regions(nodes).items():
        parts.append(
            f'<g class="{_class(family)}">{_rect(box, "ac-region", 14)}'
            f'<text class="ac-region-name" x="{name.left:.1f}" y="{name.bottom - 3.5:.1f}">{escape(family)}</text></g>'
        )
    for line, points in zip(lines, curves, strict=True):
        indices = [theorem["i"] for theorem in line.theorems]
        parts.append(_edge(line, points, sorted({at[name] for name in line.of}), indices))
    for line, points, boxes in zip(lines, curves, labels, strict=True):
        parts += _conditions(line, points, boxes, theorems, names, link)
    for node in sorted(nodes, key=lambda node: at[node["id"]]):
        parts.append(_card(node, at[node["id"]], theorems, link))
    about = "From left to right in time. Every line is a theorem, with its condition; the list below has them all."
    return _svg("wide", map_wide.WIDTH, height, "Map of attention", about, "".join(parts))


def _years(height: float) -> str:
    """The columns of the years, each under its number."""
    edges = [*map_wide.COLUMNS.values(), map_wide.WIDTH]
    numbers = "".join(
        f'<text class="ac-year" x="{(left + right) / 2:g}" y="14">{year}</text>'
        for year, left, right in zip(map_wide.COLUMNS, edges, edges[1:], strict=False)
    )
    lines = "".join(f"M{left} 22V{height:.0f}" for left in edges[1:-1])
    return f'<path class="ac-columns" d="{lines}"/>{numbers}'


def _conditions(
    line: map_wide.Line,
    points: Any,
    boxes: Sequence[Box] | None,
    theorems: Sequence[Mapping],
    names: Mapping[str, Mapping],
    link: Link,
) -> list[str]:
    """The conditions of a line, each a link to its chapter; a dot for each where there is no room."""
    if boxes is None:
        count = len(line.theorems)
        ts = np.array([(i + 1) / (count + 1) for i in range(count)])
        middles = map_wide.curve(points, ts)
        drawn = [f'<circle class="ac-dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in middles]
    else:
        drawn = [
            f'{_rect(box, "ac-hit", 3)}<text x="{(box.left + box.right) / 2:.1f}" y="{box.bottom - 3:.1f}">'
            f"{escape(text)}</text>"
            for text, box in zip(map_wide.texts(line), boxes, strict=True)
        ]
    found = []
    for theorem, content in zip(line.theorems, drawn, strict=False):
        i = theorem["i"]
        href = link("notebooks/" + theorems[i]["chapter"], "")
        found.append(
            _linked(content, "ac-theorem", href, named(theorems[i], names), f' data-theorem="{i}" tabindex="-1"')
        )
    extra = drawn[len(line.theorems) :]
    return found + [f'<g class="ac-theorem ac-fails">{content}</g>' for content in extra]


def _card(node: Mapping, i: int, theorems: Sequence[Mapping], link: Link) -> str:
    """A node: its name above its year."""
    box = map_wide.node_box(node)
    x = (box.left + box.right) / 2
    texts = " ".join(
        f'<text class="ac-name" x="{x:.1f}" y="{box.top + 14.5 + 13 * n:.1f}">{escape(line)}</text>'
        for n, line in enumerate(map_wide.lines_of(node["short"]))
    )
    texts += f' <text class="ac-year" x="{x:.1f}" y="{box.bottom - 6:.1f}">{node["date"][:4]}</text>'
    return _linked(
        _rect(box, "ac-card", 9) + texts,
        f"ac-node {_class(node['family'])}",
        link("notebooks/" + node["chapter"], ""),
        spoken(node, node["date"][:4], theorems),
        f' data-node="{i}"',
    )


def narrow(nodes: Sequence[Mapping], theorems: Sequence[Mapping], at: Mapping[str, int], link: Link) -> str:
    """A line of time that runs down, trunks beside it, and branches to the theorems at their later nodes."""
    drawing = map_narrow.draw(nodes, theorems)
    spine, under, over = drawing.spine, [], []
    under.append(f'<path class="ac-spine" d="M{spine} {drawing.stops[0].y:.1f}V{drawing.stops[-1].y:.1f}"/>')
    begin = {stop.node["id"]: stop.y for stop in drawing.stops}
    for name, (x, branches) in drawing.trunks.items():
        y = begin[name]
        path = f"M{spine:g} {y:.1f}H{x + 6:g}Q{x:g} {y:.1f} {x:g} {y + 6:.1f}"
        for n, (end, _) in enumerate(branches):
            marks = f'data-of="{at[name]}" data-is="{" ".join(str(i) for _, i in branches[n:])}"'
            under.append(f'<g class="ac-line" {marks}><path class="ac-edge" d="{path}V{end - 6:.1f}"/></g>')
            path = f"M{x:g} {end - 6:.1f}"
    for stop in drawing.stops:
        i = at[stop.node["id"]]
        kind, about = _class(stop.node["family"]), f"{stop.node['date'][:4]} {stop.node['family']}"
        href = link("notebooks/" + stop.node["chapter"], "")
        content = (
            f'{_rect(stop.box, "ac-hit", 6)}<circle class="ac-stop" cx="{spine}" cy="{stop.y:.1f}" r="6"/>'
            f'<text class="ac-name" x="{stop.name.left:.1f}" y="{stop.y + 4:.1f}">{escape(stop.node["short"])}</text>'
            f' <text class="ac-year" x="{stop.about.right:.1f}" y="{stop.y + 3.5:.1f}">'
            f"{escape(about)}</text>"
        )
        over.append(_linked(content, f"ac-node {kind}", href, spoken(stop.node, about, theorems), f' data-node="{i}"'))
        for row in stop.rows:
            under.append(_branch(row, spine, theorems[row.index], at))
            texts = " ".join(
                f'<text x="{box.left:.1f}" y="{box.bottom - 3.5:.1f}">{escape(line)}</text>'
                for line, box in zip(row.lines, row.boxes, strict=True)
            )
            theorem = theorems[row.index]
            fails = "" if theorem["holds"] else " ac-fails"
            target = _rect(map_wide.around(row.boxes), "ac-hit", 3)
            href = link("notebooks/" + theorem["chapter"], "")
            over.append(
                _linked(
                    target + texts,
                    f"ac-theorem{fails}",
                    href,
                    f"{stop.node['short']} {' '.join(row.lines)}",
                    f' data-theorem="{row.index}" tabindex="-1"',
                )
            )
    said = "From top to bottom in time. Every line of text below a name is a theorem; the list below has them all."
    content = "".join([*under, *over])
    return _svg("narrow", map_narrow.WIDTH, drawing.height, "Map of attention", said, content)


def _branch(row: map_narrow.Row, spine: float, theorem: Mapping, at: Mapping[str, int]) -> str:
    """From a trunk to a theorem; a ring for a theorem of one node."""
    of = sorted({at[name] for name in theorem["of"]})
    marks = f'data-of="{" ".join(map(str, of))}" data-is="{row.index}"'
    broken = "" if theorem["holds"] else " ac-broken"
    limit = " ac-limit" if theorem["kind"] == "limit" else ""
    y, x = row.y, row.track
    end = spine + 7
    if x is None:
        drawn = f"M{spine} {y:.1f}a3.5 3.5 0 1 1 7 0a3.5 3.5 0 1 1 -7 0" if theorem["holds"] else _cross(spine + 3.5, y)
        return f'<g class="ac-line" {marks}><path class="ac-edge{broken}" d="{drawn}"/></g>'
    drawn = f"M{x:g} {y - 6:.1f}Q{x:g} {y:.1f} {x + 6:g} {y:.1f}H{end}"
    if not theorem["holds"]:
        middle = (x + spine) / 2 + 2
        drawn = f"M{x:g} {y - 6:.1f}Q{x:g} {y:.1f} {min(x + 6, middle - 5):g} {y:.1f}H{middle - 5:g}"
        drawn += f"M{middle + 5:g} {y:.1f}H{end}{_cross(middle, y)}"
    towards = at[theorem["of"][1]] == max(of)
    head = (_arrow((end + 1, y), (1, 0)) if towards else _arrow((x, y), (-1, 0))) if limit else ""
    return f'<g class="ac-line" {marks}><path class="ac-edge{limit}{broken}" d="{drawn}"/>{head}</g>'
