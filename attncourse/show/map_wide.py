"""The wide drawing of the map of attention: time runs to the right, hubs are rails, edges run along right angles."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

WIDTH = 760

# The left edge of each year's column, and where the last one ends. Nothing of the map is of 2016.
COLUMNS = {2014: 0, 2015: 80, 2017: 160, 2018: 288, 2019: 330, 2020: 390, 2021: 566, 2022: 622, 2023: 660, 2024: 708}

# The middle of each node, by hand: in its year's column, near what it is compared with. A test holds them apart.
PLACES = {
    "additive": (42, 452),
    "hard": (118, 470),
    "luong": (118, 372),
    "local": (118, 274),
    "linear": (440, 488),
    "performer": (440, 428),
    "sparse": (356, 156),
    "bigbird": (410, 218),
    "longformer": (474, 156),
    "sliding_window": (538, 218),
    "self_attention": (196, 276),
    "cross_attention": (196, 372),
    "causal": (264, 276),
    "multi_head": (262, 372),
    "rope": (588, 268),
    "alibi": (602, 318),
    "kv_cache": (222, 590),
    "mqa": (356, 520),
    "gqa": (686, 440),
    "mla": (726, 492),
    "rolling_cache": (690, 546),
    "quantized_cache": (710, 640),
    "online": (309, 66),
    "tiled": (632, 126),
    "paged": (692, 126),
}

# Nodes that many others are compared with go on as a rail, to this x.
RAILS = {"multi_head": 750, "kv_cache": 750, "online": 724}

# The parts of a family's region: each the rectangle around some of its nodes; "-": around the rail of one.
REGIONS = {
    "alignment": [["additive", "hard", "luong", "local"]],
    "dot product": [
        ["self_attention", "cross_attention", "causal", "multi_head"],
        ["-multi_head"],
        ["rope", "alibi", "-multi_head:570:640"],
    ],
    "fewer scores": [["sparse", "bigbird", "longformer", "sliding_window"]],
    "linear": [["linear", "performer"]],
    "cache": [
        ["kv_cache", "-kv_cache"],
        ["mqa", "-kv_cache:334:376"],
        ["gqa", "mla", "rolling_cache", "quantized_cache"],
    ],
    "execution": [["online", "-online"], ["tiled", "paged", "-online:610:724"]],
}
NAME_AT = {"fewer scores": (430, 118)}  # where a family's name does not stand at its region's first corner

# The theorems whose condition always stands in the drawing. The others are dots until they are chosen.
HEADLINES = {
    "concat-is-additive",
    "one-head",
    "window-sees-all",
    "sparse-one-block",
    "longformer-all-global",
    "bigbird-all-blocks",
    "linear-recurrent",
    "linear-chunked",
    "performer-is-softmax",
    "cache-in-calls",
    "rolling-cache",
    "paged-cache",
    "quantized-in-one-call",
    "gqa-every-head",
    "gqa-one-head",
    "mqa-is-tied",
    "tiled-is-exact",
    "alibi-without-slopes",
    "online-softmax",
}

TITLE, SMALL, LABEL = 12.5, 10.5, 10.5  # px of a node's name, of its year, of a condition
BOLD = 1.15  # how much wider bold letters are


class Box(NamedTuple):
    """A rectangle by its edges."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float) -> "Box":
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def within(self, other: "Box") -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def around(boxes: Sequence[Box]) -> Box:
    """The smallest rectangle that holds all of them."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return Box(min(left), min(top), max(right), max(bottom))


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FontProperties(family="DejaVu Sans")))


@cache
def text_width(text: str, size: float) -> float:
    """Width in px in DejaVu Sans, which is wider than what systems use for their own texts."""
    font = _font()
    font.set_size(64, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 * size / 64


def lines_of(short: str) -> list[str]:
    """A name in one line, or a long one in two."""
    at = max(short.rfind(" "), short.rfind("-")) + 1
    return [short[:at].strip(), short[at:]] if at and len(short) > 10 else [short]


def node_box(node: Mapping) -> Box:
    """The card of a node: its name above its year."""
    if node["id"] not in PLACES:
        raise ValueError(f"node {node['id']!r} has no place: give it one in PLACES of show/map_wide.py")
    x, y = PLACES[node["id"]]
    lines = lines_of(node["short"])
    width = max(*(text_width(line, TITLE) for line in lines), 30) + 16
    height = 20 + 13 * len(lines)
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def rails(nodes: Sequence[Mapping]) -> dict[str, Box]:
    """The rail of each node that has one."""
    found = {}
    for node in nodes:
        if node["id"] in RAILS:
            box, y = node_box(node), PLACES[node["id"]][1]
            found[node["id"]] = Box(box.right, y - 3, RAILS[node["id"]], y + 3)
    return found


def regions(nodes: Sequence[Mapping]) -> dict[str, tuple[list[Box], Box]]:
    """For each family the rectangles around its nodes, and the place of its name."""
    cards, tracks = {node["id"]: node_box(node) for node in nodes}, rails(nodes)
    found = {}
    for family in dict.fromkeys(node["family"] for node in nodes):
        parts = []
        for part in REGIONS[family]:
            boxes = [cards[name] for name in part if name in cards]
            for name in part:
                rail, *span = name[1:].split(":")
                if name[0] == "-" and rail in tracks:
                    box = tracks[rail]
                    boxes.append(box._replace(left=float(span[0]), right=float(span[1])) if span else box)
            if boxes:
                parts.append(around(boxes).grown(8))
        first = parts[0]
        x, y = NAME_AT.get(family, (first.left + 8, first.top - 13))
        name = Box(x, y, x + BOLD * text_width(family, LABEL + 1), y + 14)
        parts[0] = first._replace(top=y - 5, right=max(first.right, name.right + 8))
        found[family] = parts, name
    return found


# ---- edges ----


class Line(NamedTuple):
    """What is drawn between two nodes: all theorems of one kind between them."""

    of: tuple[str, str]
    kind: str
    holds: bool
    theorems: list[Mapping]


def lines_between(theorems: Sequence[Mapping]) -> list[Line]:
    """A line for each pair of nodes, kind and outcome, in the order of the first theorem of each."""
    found: dict[tuple, list[Mapping]] = {}
    for theorem in theorems:
        pair = theorem["of"] if theorem["kind"] == "limit" else sorted(theorem["of"])
        found.setdefault((*pair, theorem["kind"], theorem["holds"]), []).append(theorem)
    return [Line(tuple(group[0]["of"]), key[2], key[3], group) for key, group in found.items()]


def _ports(box: Box, rail: Box | None, xs: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    """Where an edge can leave a node, by direction: H from its sides, V from its top and bottom and its rail."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    ends = {
        "H": [(side, y + dy) for side in (box.left, box.right) for dy in (-9, 0, 9)],
        "V": [(x + dx, side) for side in (box.top, box.bottom) for dx in (-18, -9, 0, 9, 18) if abs(dx) < x - box.left],
    }
    if rail:
        ends["H"] = [end for end in ends["H"] if end[0] == box.left]
        ends["V"] += [(at, side) for at in xs if rail.left + 8 < at < rail.right for side in (rail.top, rail.bottom)]
    return ends


def _candidates(a: tuple[Box, Box | None], b: tuple[Box, Box | None]) -> np.ndarray:
    """Ways (n, 4, 2) from one node to another of at most three pieces, across and along by turns."""
    spans = [box.grown(14) for box, _ in (a, b)]
    xs = sorted({span[0] for span in spans} | {span[2] for span in spans})
    near = [(box.left + box.right) / 2 + dx for box, rail in (a, b) if not rail for dx in (-18, -9, 0, 9, 18)]
    first, second = _ports(*a, [*xs, *near]), _ports(*b, [*xs, *near])
    found = []
    for way in ("H", "V"):
        k = way == "V"  # the coordinate that the first piece changes
        for start in first[way]:
            for end in second["V" if way == "H" else "H"]:
                corner = (end[0], start[1]) if way == "H" else (start[0], end[1])
                found.append((start, corner, corner, end))
            for end in second[way]:
                if start[1 - k] == end[1 - k]:
                    found.append((start, start, end, end))
                    continue
                low, high = sorted((start[k], end[k]))
                for at in np.arange(low - 32, high + 33, max(10, (high - low) / 12)):
                    turns = ((at, start[1]), (at, end[1])) if way == "H" else ((start[0], at), (end[0], at))
                    found.append((start, *turns, end))
    return np.array(found, float)


def _loop(box: Box, side: str) -> np.ndarray:
    """The way from a card to itself, over one of its sides."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    if side in ("left", "right"):
        at, out = (box.left, -12) if side == "left" else (box.right, 12)
        return np.array([(at, y - 8), (at + out, y - 8), (at + out, y + 8), (at, y + 8)])
    at, out = (box.top, -10) if side == "top" else (box.bottom, 10)
    return np.array([(x - 10, at), (x - 10, at + out), (x + 10, at + out), (x + 10, at)])


def pieces(ways: np.ndarray) -> np.ndarray:
    """The straight pieces (…, 3, 4) of ways (…, 4, 2), each as a thin box."""
    a, b = ways[..., :-1, :], ways[..., 1:, :]
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], -1)


def hit(parts: np.ndarray, box: Box) -> np.ndarray:
    """Which pieces meet a box."""
    return (
        (parts[..., 0] < box.right)
        & (parts[..., 2] > box.left)
        & (parts[..., 1] < box.bottom)
        & (parts[..., 3] > box.top)
    )


def crossings(parts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How often ways (n, 3, 4) cross others (m, 3, 4): (n,)."""
    p, o = parts[:, :, None, None], others[None, None]
    flat, level = p[..., 1] == p[..., 3], o[..., 1] == o[..., 3]
    inside = (p[..., 0] < o[..., 2]) & (p[..., 2] > o[..., 0]) & (p[..., 1] < o[..., 3]) & (p[..., 3] > o[..., 1])
    return (inside & (flat != level)).sum((1, 2, 3))


def _beside(parts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far ways (n, 3, 4) run beside or over others (m, 3, 4), closer than 12 px."""
    p, o = parts[:, :, None, None], others[None, None]
    along = np.minimum(p[..., 2:], o[..., 2:]) - np.maximum(p[..., :2], o[..., :2])  # (n, 3, m, 3, 2)
    apart = -along.min(-1)
    same = (p[..., 1] == p[..., 3]) == (o[..., 1] == o[..., 3])
    return (np.where(same & (apart < 12), np.maximum(along.max(-1), 0), 0)).sum((1, 2, 3))


def route(nodes: Sequence[Mapping], lines: Sequence[Line], height: float) -> list[np.ndarray]:
    """A way (4, 2) for each line: short, around the cards, across few others, beside none."""
    cards, tracks = {node["id"]: node_box(node) for node in nodes}, rails(nodes)
    names = [name.grown(2) for _, name in regions(nodes).values()]
    options, costs = [], []
    for line in lines:
        first, second = line.of
        if first == second:
            found = np.array([_loop(cards[first], side) for side in ("right", "left", "top", "bottom")])
        else:
            found = _candidates((cards[first], tracks.get(first)), (cards[second], tracks.get(second)))
        parts = pieces(found)
        length = (parts[..., 2:] - parts[..., :2]).sum((1, 2))
        turns = ((parts[..., 2:] - parts[..., :2]).sum(-1) > 0).sum(1)
        cost = length / 40 + 3.0 * turns
        for name, card in cards.items():
            cost += (400 if name in line.of else 120) * hit(parts, card.grown(-1 if name in line.of else 6)).sum(1)
        for name, rail in tracks.items():
            cost += (400 if name in line.of else 4) * hit(parts, rail.grown(-0.5)).sum(1)
            if name not in line.of:  # never along a rail
                cost += 20 * (
                    _beside(parts, pieces(np.array([[(rail.left, rail.top + 3)] * 3 + [(rail.right, rail.top + 3)]])))
                    > 0
                )
        for name in names:
            cost += 30 * hit(parts, name).sum(1)
        cost += 500 * ((found[..., 0].min(1) < 5) | (found[..., 0].max(1) > WIDTH - 4))
        cost += 500 * ((found[..., 1].min(1) < 30) | (found[..., 1].max(1) > height - 4))
        best = np.argsort(cost, kind="stable")[:100]
        options.append(found[best])
        costs.append(cost[best])
    chosen: dict[int, int] = {}
    order = sorted(range(len(lines)), key=lambda i: costs[i][0])
    for _ in range(5):
        before = dict(chosen)
        for i in order:
            others = [options[j][chosen[j]] for j in chosen if j != i]
            cost = costs[i].copy()
            if others:
                parts, taken = pieces(options[i]), pieces(np.array(others))
                cost += 9 * crossings(parts, taken)
                beside = _beside(parts, taken)
                cost += 12 * (beside > 0) + beside / 4
            chosen[i] = int(np.argmin(cost))
        if chosen == before:
            break
    return [options[i][chosen[i]] for i in range(len(lines))]


def count_crossings(nodes: Sequence[Mapping], lines: Sequence[Line], ways: Sequence[np.ndarray]) -> tuple[int, int]:
    """How often edges cross each other, and how often they cross the rail of a third node."""
    parts = [pieces(way[None]) for way in ways]
    mutual = sum(int(crossings(one, other)[0]) for one, other in combinations(parts, 2))
    over = sum(
        int(hit(part[0], rail.grown(-0.5)).any())
        for line, part in zip(lines, parts, strict=True)
        for name, rail in rails(nodes).items()
        if name not in line.of
    )
    return mutual, over


# ---- conditions ----

PITCH = 13  # px from one line of text to the next


class Spot(NamedTuple):
    """A theorem in the drawing: its place on its edge, and the boxes of what is written of it."""

    theorem: Mapping
    x: float
    y: float
    boxes: list[Box]
    quiet: bool


def texts(theorem: Mapping) -> list[str]:
    """What is written of a theorem: its condition, and whether it does not hold."""
    return [theorem["condition"]] + ([] if theorem["holds"] else ["does not hold"])


def middle(way: np.ndarray) -> tuple[float, float, bool]:
    """The middle of a way's longest piece, and whether it runs across."""
    sizes = np.abs(np.diff(way, axis=0)).sum(1)
    k = int(np.argmax(sizes))
    x, y = (way[k] + way[k + 1]) / 2
    return float(x), float(y), bool(way[k][1] == way[k + 1][1])


def _written(theorem: Mapping, x: float, y: float) -> list[Box]:
    """The boxes of a theorem's texts, below each other around a place."""
    found, said = [], texts(theorem)
    for i, text in enumerate(said):
        half, at = text_width(text, LABEL) / 2 + 3, y + (i - (len(said) - 1) / 2) * PITCH
        found.append(Box(x - half, at - 6.5, x + half, at + 6.5))
    return found


def place_labels(
    nodes: Sequence[Mapping], lines: Sequence[Line], ways: Sequence[np.ndarray], height: float
) -> list[list[Spot]]:
    """For each line the place of each of its theorems: on its edge, on no other edge, card or text.

    What is not always written may stand where the texts of edges stand that are not seen with it.
    """
    fixed = [node_box(node).grown(2) for node in nodes] + [rail.grown(2) for rail in rails(nodes).values()]
    fixed += [name.grown(1) for _, name in regions(nodes).values()]
    for line, way in zip(lines, ways, strict=True):
        if not line.holds:
            x, y, _ = middle(way)
            fixed.append(Box(x - 7, y - 7, x + 7, y + 7))
    parts = [pieces(way) for way in ways]
    sizes = [np.abs(np.diff(way, axis=0)).sum() for way in ways]
    wanted = [
        (theorem["id"] not in HEADLINES and theorem["holds"], sizes[i] if line.of[0] != line.of[1] else 0, i, n)
        for i, line in enumerate(lines)
        for n, theorem in enumerate(line.theorems)
    ]
    found: dict[tuple[int, int], Spot] = {}
    wanted.sort(key=lambda want: want[:3])
    for relaxed, _, i, n in wanted:
        line, theorem = lines[i], lines[i].theorems[n]
        quiet = relaxed and theorem["holds"]
        foreign = np.concatenate([parts[j] for j in range(len(lines)) if j != i]) if len(lines) > 1 else parts[i][:0]
        best = None
        dots = [(spot.x, spot.y) for spot in found.values() if spot]
        for x, y, dx, dy, cost in _places(line, ways[i], theorem):
            boxes = _written(theorem, x + dx, y + dy)
            whole = around(boxes)
            if best is not None and cost >= best[0]:
                continue
            if not whole.within(Box(2, 24, WIDTH - 2, height - 2)) or any(whole.meets(other) for other in fixed):
                continue
            under = int(hit(foreign, whole.grown(0.5)).sum())
            if under and not relaxed:
                continue
            cost += 20 * under
            if any(abs(x - a) < 7 and abs(y - b) < 7 for a, b in dots):
                continue
            free = True
            for (j, _), spot in found.items():
                if spot is None:
                    continue
                together = not quiet and not spot.quiet
                if any(whole.meets(box) for box in spot.boxes):
                    if together or set(lines[j].of) & set(line.of):
                        free = False
                        break
                    cost += 2
            if free and (best is None or cost < best[0]):
                best = cost, Spot(theorem, x, y, boxes, quiet)
        found[i, n] = best[1] if best else None
        if best is None and not relaxed:  # no room: it waits until it is chosen
            wanted.append((True, 0, i, n))
    for (i, n), spot in found.items():
        if spot is None:
            x, y, _ = middle(ways[i])
            theorem = lines[i].theorems[n]
            found[i, n] = Spot(theorem, x, y, _clamped(_written(theorem, x, y)), True)
    return [[found[i, n] for n in range(len(line.theorems))] for i, line in enumerate(lines)]


def _clamped(boxes: list[Box]) -> list[Box]:
    """Boxes moved into the drawing, where they stick out at a side."""
    whole = around(boxes)
    by = max(2 - whole.left, 0) - max(whole.right - WIDTH + 2, 0)
    return [box._replace(left=box.left + by, right=box.right + by) for box in boxes]


def _places(line: Line, way: np.ndarray, theorem: Mapping) -> list[tuple[float, float, float, float, float]]:
    """Where a theorem can stand: a point of the edge, the text's distance from it, and how bad that is."""
    half = max(text_width(text, LABEL) for text in texts(theorem)) / 2 + 3
    tall = PITCH / 2 * len(texts(theorem))
    total = np.abs(np.diff(way, axis=0)).sum()
    found = []
    for a, b in pairwise(way):
        size = np.abs(b - a).sum()
        across = a[1] == b[1]
        for t in np.linspace(0, 1, max(2, int(size / 4))) if size else ():
            x, y = a + (b - a) * t
            off = abs(t - 0.5) * (1 if size > 30 else 0.2) + 1.5 * (1 - size / total)
            if line.of[0] == line.of[1]:
                aside = half + (5 if theorem["holds"] else 9)
                above = tall + (5 if theorem["holds"] else 9)
                beside = [(dx, dy) for dx in (aside, -aside) for dy in (-18, -9, 0, 9, 18)]
                over = [(dx, dy) for dx in (0, -half / 2, half / 2) for dy in (above, -above)]
                found += [(x, y, dx, dy, off + abs(dy) / 20) for dx, dy in beside + over]
            elif across:
                if size > 2 * half + 16:
                    found.append((x, y, 0, 0, off + (1 if min(t, 1 - t) * size > half + 5 else 4)))
                for dy in (-tall - 3, tall + 3):
                    for dx in (0, -half / 2, half / 2):
                        found.append((x, y, dx, dy, off + 0.4))
            else:
                for dx in (0, -10, 10, -half / 2, half / 2):
                    found.append((x, y, dx, 0, off + abs(dx) / 60 + (0 if min(t, 1 - t) * size > tall + 3 else 3)))
                for dx in (-half - 4, half + 4):
                    found.append((x, y, dx, 0, off + 0.5))
    return [(float(x), float(y), dx, dy, float(cost)) for x, y, dx, dy, cost in found]
