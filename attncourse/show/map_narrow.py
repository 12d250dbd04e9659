"""The narrow drawing of the map of attention: time runs down, and every theorem is a line of text at its later node."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attncourse.show.map_wide import BOLD, Box, around, text_width

WIDTH, TITLE, SMALL = 300, 12.5, 10.5  # px of the drawing, of a node's name, of all other text
PITCH, GAP, ROW = 9, 14, 28  # between two tracks; from one line of text to the next; a finger's height, at 320 px too


class Row(NamedTuple):
    """One theorem below its later node: its lines of text, and the track from which its branch comes."""

    index: int  # of the theorem
    lines: list[str]
    boxes: list[Box]
    target: Box  # what a finger meets
    y: float
    track: float | None  # None for a theorem of one node


class Stop(NamedTuple):
    """One node: its place on the line of time, its texts, its theorems to earlier nodes and to itself."""

    node: Mapping
    y: float
    name: Box
    about: Box
    box: Box
    rows: list[Row]


class Drawing(NamedTuple):
    """All of it, and by the id of each earlier node the x of its track and where on it which theorems branch off."""

    stops: list[Stop]
    trunks: dict[str, tuple[float, list[tuple[float, int]]]]
    spine: float
    height: float


def in_time(nodes: Sequence[Mapping]) -> list[Mapping]:
    """The nodes by date, those of one date as given."""
    return sorted(nodes, key=lambda node: node["date"])


def draw(nodes: Sequence[Mapping], theorems: Sequence[Mapping]) -> Drawing:
    """Places of everything, from top to bottom."""
    nodes = in_time(nodes)
    order = {node["id"]: i for i, node in enumerate(nodes)}
    short = {node["id"]: node["short"] for node in nodes}
    belongs: dict[str, list[tuple[int, str]]] = {node["id"]: [] for node in nodes}
    last: dict[str, int] = {}
    for i, theorem in enumerate(theorems):
        earlier, later = sorted(theorem["of"], key=order.__getitem__)
        belongs[later].append((i, earlier))
        if earlier != later:
            last[earlier] = max(order[later], last.get(earlier, 0))
    tracks = _tracks([(order[name], end, name) for name, end in last.items()])
    spine = 12 + PITCH * (max(tracks.values(), default=-1) + 1)
    place = {name: spine - PITCH * (track + 1) - 2 for name, track in tracks.items()}
    left, y, stops = spine + 12, 18.0, []
    trunks: dict[str, tuple[float, list[tuple[float, int]]]] = {name: (x, []) for name, x in place.items()}
    for node in nodes:
        about = f"{node['date'][:4]} {node['family']}"
        name = Box(left, y - 8, left + BOLD * text_width(node["short"], TITLE), y + 7)
        year = Box(WIDTH - 4 - text_width(about, SMALL), y - 7, WIDTH - 4, y + 6)
        top, rows, middle = y - 14, [], y
        y += 12 + 5
        for i, earlier in sorted(belongs[node["id"]], key=lambda pair: order[pair[1]]):
            lines = _text(theorems[i], node["id"], earlier, short, WIDTH - 4 - left)
            aside = max(ROW - GAP * len(lines), 4) / 2
            y += aside
            boxes = []
            for n, line in enumerate(lines):
                begin = left + 10 * (n > 0)
                boxes.append(Box(begin, y - 5, begin + text_width(line, SMALL), y + 8))
                y += GAP
            y += aside
            text = around(boxes)
            target = Box(text.left, text.top - aside, text.right, text.bottom + 1 + aside)
            track = None if earlier == node["id"] else place[earlier]
            rows.append(Row(i, lines, boxes, target, boxes[0].top + 6.5, track))
            if track is not None:
                trunks[earlier][1].append((rows[-1].y, i))
        stops.append(Stop(node, middle, name, year, Box(left - 6, top, WIDTH - 1, max(y, middle + 14)), rows))
        y = max(y, middle + 14) + 14
    return Drawing(stops, trunks, spine, y - 4)


def _tracks(spans: list[tuple[int, int, str]]) -> dict[str, int]:
    """A track for each span (begin, end, name): short spans near the line of time, no two at once on one track."""
    found: dict[str, int] = {}
    for begin, end, name in sorted(spans, key=lambda span: (span[1] - span[0], span)):
        taken = {found[other] for first, final, other in spans if other in found and first <= end and begin <= final}
        found[name] = next(track for track in range(len(spans)) if track not in taken)
    return found


def _text(theorem: Mapping, here: str, other: str, short: Mapping[str, str], room: float) -> list[str]:
    """What stands at a node of one theorem: in one line, or in two where one is too short."""
    sign = "=" if theorem["kind"] == "equality" else "→" if theorem["of"][0] == here else "←"
    if not theorem["holds"]:
        sign = "≠" if sign == "=" else "↛"
    who = "itself" if here == other else short[other]
    head, condition = f"{sign} {who}:", theorem["condition"] + ("" if theorem["holds"] else ", does not hold")
    one = f"{head} {condition}"
    return [one] if text_width(one, SMALL) <= room else [head, condition]
