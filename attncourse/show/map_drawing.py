"""The map of attention as two SVGs: what `map_wide` and `map_narrow` placed, drawn and linked."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import pairwise
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
    """Lines, ways and labels of the wide drawing: they depend on few things, and take seconds."""
    nodes, theorems = json.loads(given)
    height = max(map_wide.node_box(node).bottom for node in nodes) + 16
    lines = map_wide.lines_between(theorems)
    ways = map_wide.route(nodes, lines, height)
    return lines, ways, map_wide.place_labels(nodes, lines, ways, height), height


def layout(nodes: Sequence[Mapping], theorems: Sequence[Mapping]) -> tuple:
    """The wide drawing's lines, their ways, the places of their conditions, and the height."""
    few = [{key: node[key] for key in ("id", "short", "family", "date")} for node in nodes]
    small = [
        {"i": i} | {key: theorem[key] for key in ("id", "of", "kind", "condition", "holds")}
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


def _d(way: Any) -> str:
    """A way with rounded corners."""
    places = [way[0]] + [b for a, b in pairwise(way) if abs(b - a).sum() > 0.01]
    drawn = "M{:.1f} {:.1f}".format(*places[0])
    for before, here, after in zip(places, places[1:], places[2:], strict=False):
        reach = min(8, abs(here - before).sum() / 2, abs(after - here).sum() / 2)
        start = here + np.sign(before - here) * reach
        end = here + np.sign(after - here) * reach
        drawn += "L{:.1f} {:.1f}Q{:.1f} {:.1f} {:.1f} {:.1f}".format(*start, *here, *end)
    return drawn + "L{:.1f} {:.1f}".format(*places[-1])


def _broken(way: Any) -> str:
    """A way with a gap in the middle of its longest piece, and a cross in the gap."""
    x, y, _ = map_wide.middle(way)
    k = int(np.argmax(np.abs(np.diff(way, axis=0)).sum(1)))
    aside = np.sign(way[k + 1] - way[k]) * 8
    place = np.array((x, y))
    return _d(np.array([*way[: k + 1], place - aside])) + _d(np.array([place + aside, *way[k + 1 :]])) + _cross(x, y)


def _edge(line: map_wide.Line, way: Any, of: Sequence[int], kind: str, tracks: Mapping[str, Box]) -> str:
    """One line of the wide drawing; where it ends at a rail stands a ring, where it crosses one a gap in the rail."""
    broken = "" if line.holds else " ac-broken"
    limit = " ac-limit" if line.kind == "limit" else ""
    drawn = _d(way) if line.holds else _broken(way)
    last = next(b - a for a, b in zip(way[-2::-1], way[:0:-1], strict=True) if abs(b - a).sum() > 0.01)
    head = _arrow(way[-1], last) if line.kind == "limit" else ""
    gaps, rings = "", ""
    for name, rail in tracks.items():
        for (left, top, _, bottom), x in zip(map_wide.pieces(way), way[:, 0], strict=False):
            if name not in line.of and rail.left < x < rail.right and top < rail.top and bottom > rail.bottom:
                gaps += f"M{left:.1f} {rail.top - 1:.1f}V{rail.bottom + 1:.1f}"
        for x, y in (way[0], way[-1]):
            if name in line.of and rail.left < x < rail.right and y in (rail.top, rail.bottom) and not head:
                rings += f'<circle class="ac-ring" cx="{x:.1f}" cy="{(rail.top + rail.bottom) / 2:g}" r="3"/>'
    marks = f'data-of="{" ".join(map(str, of))}" data-is="{" ".join(str(theorem["i"]) for theorem in line.theorems)}"'
    gap = f'<path class="ac-gap" d="{gaps}"/>' if gaps else ""
    hit = f'<path class="ac-hit" d="{_d(way)}"/>'
    edge = f'<path class="ac-edge{limit}{broken}" d="{drawn}"/>'
    return f'<g class="ac-line {kind}" {marks}>{hit}{gap}{edge}{head}{rings}</g>'


def wide(nodes: Sequence[Mapping], theorems: Sequence[Mapping], at: Mapping[str, int], link: Link) -> str:
    """Regions, rails, lines, cards and conditions; what is written comes last, so that nothing runs over it."""
    lines, ways, spots, height = layout(nodes, theorems)
    names = {node["id"]: node for node in nodes}
    tracks = map_wide.rails(nodes)
    parts = [_years(height)]
    heads = []
    for family, (boxes, name) in map_wide.regions(nodes).items():
        parts.append(f'<g class="ac-region {_class(family)}">{"".join(_rect(box, "", 12) for box in boxes)}</g>')
        heads.append(
            f'<text class="ac-region-name" x="{name.left:.1f}" y="{name.bottom - 3.5:.1f}">{escape(family)}</text>'
        )
    for name, rail in tracks.items():
        y = (rail.top + rail.bottom) / 2
        kind = _class(names[name]["family"])
        parts.append(f'<path class="ac-rail {kind}" data-node="{at[name]}" d="M{rail.left:.1f} {y:g}H{rail.right:g}"/>')
    for line, way in zip(lines, ways, strict=True):
        kind = _class(names[line.of[0]]["family"])
        parts.append(_edge(line, way, sorted({at[name] for name in line.of}), kind, tracks))
    parts += heads
    for node in sorted(nodes, key=lambda node: at[node["id"]]):
        parts.append(_card(node, at[node["id"]], theorems, link))
    ordered = sorted((spot for of in spots for spot in of), key=lambda spot: not spot.quiet)
    parts += [_condition(spot, theorems, names, link) for spot in ordered]
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


def _condition(spot: map_wide.Spot, theorems: Sequence[Mapping], names: Mapping[str, Mapping], link: Link) -> str:
    """A theorem's condition, a link to its chapter; one that is not always written is a dot until it is chosen."""
    theorem = theorems[spot.theorem["i"]]
    drawn = ""
    if spot.quiet:
        kind = _class(names[theorem["of"][0]]["family"])
        drawn = f'<circle class="ac-dot {kind}" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="3"/>'
        drawn += f'<circle class="ac-hit" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="9"/>'
    for n, (text, box) in enumerate(zip(map_wide.texts(theorem), spot.boxes, strict=False)):
        fails = ' class="ac-fails"' if n else ""
        hit = "" if spot.quiet else _rect(box, "ac-hit", 3)
        drawn += (
            f'{hit}<text{fails} x="{(box.left + box.right) / 2:.1f}" y="{box.bottom - 3:.1f}">{escape(text)}</text>'
        )
    href = link("notebooks/" + theorem["chapter"], "")
    kind = "ac-theorem ac-quiet" if spot.quiet else "ac-theorem"
    return _linked(drawn, kind, href, named(theorem, names), f' data-theorem="{spot.theorem["i"]}" tabindex="-1"')


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
            target = _rect(row.target, "ac-hit", 3)
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
