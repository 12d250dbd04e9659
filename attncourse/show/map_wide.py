"""The wide drawing of the map of attention: families are regions, time runs to the right, edges are routed around."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

WIDTH = 720

# The left edge of each year's column, and where the last one ends. Nothing of the map is of 2016.
COLUMNS = {2014: 0, 2015: 84, 2017: 160, 2018: 352, 2019: 384, 2020: 428, 2021: 536, 2022: 584, 2023: 620, 2024: 664}

# The middle of each node, by hand: in its year's column, in its family's region. A test holds them apart.
PLACES = {
    "additive": (42, 86),
    "hard": (132, 74),
    "luong": (116, 166),
    "local": (132, 256),
    "linear": (478, 76),
    "performer": (478, 138),
    "sparse": (396, 212),
    "bigbird": (513, 212),
    "longformer": (474, 266),
    "sliding_window": (502, 320),
    "self_attention": (188, 432),
    "cross_attention": (188, 512),
    "causal": (322, 394),
    "multi_head": (346, 480),
    "rope": (566, 494),
    "alibi": (566, 440),
    "kv_cache": (222, 660),
    "mqa": (402, 626),
    "gqa": (650, 642),
    "mla": (684, 580),
    "rolling_cache": (644, 696),
    "quantized_cache": (672, 746),
    "online": (366, 814),
    "tiled": (588, 814),
    "paged": (641, 814),
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


def regions(nodes: Sequence[Mapping]) -> dict[str, tuple[Box, Box]]:
    """For each family the rectangle around its nodes, and in its head the place of its name."""
    found = {}
    for family in dict.fromkeys(node["family"] for node in nodes):
        boxes = [node_box(node) for node in nodes if node["family"] == family]
        left, top = min(box.left for box in boxes) - 8, min(box.top for box in boxes) - 26
        name = Box(left + 8, top + 5, left + 8 + BOLD * text_width(family, LABEL + 1), top + 19)
        right = max(*(box.right for box in boxes), name.right) + 8
        found[family] = Box(left, top, right, max(box.bottom for box in boxes) + 8), name
    return found


# ---- edges ----

STEPS = np.linspace(0, 1, 21, dtype=np.float32)
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


def curve(points: np.ndarray, t: np.ndarray = STEPS) -> np.ndarray:
    """Places on cubic curves: points (…, 4, 2) give (…, t, 2)."""
    t = t[:, None]
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # (4, t, 1)
    return np.einsum("...kd,ktx->...td", points, weights)


def _anchors(box: Box) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where an edge can leave a card, and the direction in which it leaves."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    w, h = (box.right - box.left) / 2, (box.bottom - box.top) / 2
    found = []
    for dx, dy in SIDES.values():
        for part in (-0.66, -0.33, 0, 0.33, 0.66):
            place = (x + dx * w + part * w * (dx == 0), y + dy * h + part * h * (dy == 0))
            found.append((np.array(place), np.array((dx, dy), float)))
    return found


def _candidates(a: Box, b: Box) -> np.ndarray:
    """Cubic curves (n, 4, 2) from one card to another."""
    found = []
    for start, out in _anchors(a):
        for end, back in _anchors(b):
            apart = np.hypot(*(end - start))
            for pull in (0.3, 0.5, 0.8):
                reach = max(14, pull * apart)
                found.append((start, start + out * reach, end + back * reach, end))
    return np.array(found, np.float32)


def _loops(box: Box) -> np.ndarray:
    """Curves (n, 4, 2) from a card to itself, over each of its sides."""
    found = []
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    w, h = (box.right - box.left) / 2, (box.bottom - box.top) / 2
    for dx, dy in SIDES.values():
        for reach in (22, 30):
            along = np.array((dy, dx), float) * (8 if dx else 14)
            middle = np.array((x + dx * w, y + dy * h))
            out = np.array((dx, dy), float) * reach
            found.append((middle - along, middle - 1.6 * along + out, middle + 1.6 * along + out, middle + along))
    return np.array(found, np.float32)


def _inside(places: np.ndarray, box: Box) -> np.ndarray:
    """Which of the places (…, 2) lie in a rectangle."""
    x, y = places[..., 0], places[..., 1]
    return (x > box.left) & (x < box.right) & (y > box.top) & (y < box.bottom)


class Line(NamedTuple):
    """What is drawn between two nodes: all theorems of one kind between them, one below the other."""

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


def route(nodes: Sequence[Mapping], lines: Sequence[Line], height: float) -> list[np.ndarray]:
    """A cubic curve (4, 2) for each line: short, around the cards, apart from the others."""
    boxes = {node["id"]: node_box(node) for node in nodes}
    names = [name for _, name in regions(nodes).values()]
    points, options, costs = [], [], []
    for line in lines:
        first, second = line.of
        found = _loops(boxes[first]) if first == second else _candidates(boxes[first], boxes[second])
        places = curve(found)
        cost = _shape(places) if first != second else np.zeros(len(found))
        for name, box in boxes.items():
            grown = box.grown(-1 if name in line.of else 7)
            cost += 12 * _inside(places, grown).sum(1)
        for name in names:
            cost += 2 * _inside(places, name.grown(2)).sum(1)
        x, y = places[..., 0], places[..., 1]
        cost += 100 * ((x.min(1) < 5) | (x.max(1) > WIDTH - 5) | (y.min(1) < 28) | (y.max(1) > height - 5))
        best = _varied(found, cost)
        options.append(curve(found[best]))
        costs.append(cost[best])
        points.append(found[best])
    chosen, before = [0] * len(lines), None
    for _ in range(4):
        if chosen == before or len(lines) == 1:
            break
        before = list(chosen)
        for i in sorted(range(len(lines)), key=lambda i: costs[i][0]):
            others = np.stack([options[j][chosen[j]] for j in range(len(lines)) if j != i])
            chosen[i] = int(np.argmin(costs[i] + _conflicts(options[i], others)))
    return [points[i][chosen[i]] for i in range(len(lines))]


def _varied(found: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The best few curves of each way to leave one card and to reach the other, best first."""
    signs = np.sign(np.round(np.concatenate([found[:, 1] - found[:, 0], found[:, 2] - found[:, 3]], 1)))
    ways: dict[tuple, int] = {}
    best = []
    for i in np.argsort(cost, kind="stable"):
        if cost[i] > cost.min() + 20:
            break
        way = tuple(signs[i])
        ways[way] = ways.get(way, 0) + 1
        if ways[way] <= 3:
            best.append(i)
    return np.array(best)


def _shape(places: np.ndarray) -> np.ndarray:
    """What is bad about curves (n, t, 2) alone: their length, and how much they turn."""
    steps = np.diff(places, axis=1)
    length = np.hypot(steps[..., 0], steps[..., 1]).sum(1)
    angles = np.arctan2(steps[..., 1], steps[..., 0])
    turns = np.abs((np.diff(angles, axis=1) + np.pi) % (2 * np.pi) - np.pi).sum(1)
    return length / 60 + 1.2 * turns**1.5


def _conflicts(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much curves (n, t, 2) disturb others (m, t, 2): running beside one costs more than crossing it."""
    x = places[:, ::2, None, 0] - others[..., 0].ravel()
    y = places[:, ::2, None, 1] - others[..., 1].ravel()
    apart = (x * x + y * y).reshape(len(places), -1, *others.shape[:2]).min(3)  # (n, t, m)
    near = (apart < 49).sum((1, 2))
    same = (apart[:, [0, -1]] < 9).sum((1, 2))
    return 0.6 * near + 1.5 * same


# ---- conditions ----


PITCH = 13  # px from one line of text to the next


def texts(line: Line) -> list[str]:
    """What is written at a line: its conditions, and whether they do not hold."""
    return [theorem["condition"] for theorem in line.theorems] + ([] if line.holds else ["does not hold"])


def label_boxes(line: Line, x: float, y: float, align: float = 0) -> list[Box]:
    """The place of each condition of a line, below each other around (x, y); align -1: they end there, 1: begin."""
    found = []
    written = texts(line)
    for i, text in enumerate(written):
        width = text_width(text, LABEL) + 4
        left = x - width / 2 + align * width / 2
        middle = y + (i - (len(written) - 1) / 2) * PITCH
        found.append(Box(left, middle - 6.5, left + width, middle + 6.5))
    return found


def place_labels(
    nodes: Sequence[Mapping], lines: Sequence[Line], curves: Sequence[np.ndarray], height: float
) -> list[list[Box] | None]:
    """The boxes of each line's conditions: on its curve or beside it, where they meet no card or text; else None."""
    fixed = [node_box(node).grown(2) for node in nodes] + [name.grown(2) for _, name in regions(nodes).values()]
    places = [curve(points, np.linspace(0, 1, 60)) for points in curves]
    fixed += [
        Box(x - 7, y - 7, x + 7, y + 7)
        for line, ps in zip(lines, places, strict=True)
        for x, y in [ps[30]]
        if not line.holds
    ]
    lengths = [np.hypot(*np.diff(place, axis=0).T).sum() for place in places]
    order = sorted(range(len(lines)), key=lambda i: lengths[i] - 40 * len(lines[i].theorems))
    best: dict[int, list[Box]] = {}
    for _ in range(4):
        taken, found = list(fixed), {}
        for i in order:
            if boxes := _label(i, lines[i], places, lengths[i], taken, Box(2, 28, WIDTH - 2, height - 2)):
                found[i] = boxes
                taken.append(around(boxes))
        if len(found) > len(best):
            best = found
        if len(best) == len(lines):
            break
        order.sort(key=lambda i: i in found)  # who found no room chooses first
    return [best.get(i) for i in range(len(lines))]


def _label(
    i: int, line: Line, places: Sequence[np.ndarray], length: float, taken: Sequence[Box], frame: Box
) -> list[Box] | None:
    """The best free place for the conditions of line i."""
    every = np.concatenate(places)
    own = np.repeat(np.arange(len(places)), len(places[0])) == i
    tall = PITCH / 2 * len(texts(line)) + 3
    best, found = math.inf, None
    for t in range(2, 58, 2):
        x, y = places[i][t]
        for dx, dy, align in ((0, 0, 0), (0, -tall, 0), (0, tall, 0), (5, 0, 1), (-5, 0, -1)):
            boxes = label_boxes(line, x + dx, y + dy, align)
            whole = around(boxes)
            if any(whole.meets(other) for other in taken) or not whole.within(frame):
                continue
            covered = _inside(every, whole)
            cost = 1.5 * (covered & ~own).sum() + 0.05 * (covered & own).sum() * length / 60 * (align == 0)
            cost += 2 * abs(t / 60 - 0.5) + 0.6 * (dy != 0) + 0.3 * (dx != 0)
            if cost < best:
                best, found = cost, boxes
    return found
