"""The map and the timeline: what is drawn is what was measured, nothing lies over anything, all can be reached."""

import copy
import gzip
import json
import re
from html import unescape
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest
from bs4 import BeautifulSoup

from attncourse import show
from attncourse.show import map_narrow, map_wide
from attncourse.show.html import static
from attncourse.show.map import FAMILIES
from attncourse.show.map_drawing import layout
from attncourse.show.map_words import heading, numbers, otherwise, power
from attncourse.show.timeline import when
from tests.book.test_structure import load
from tests.show.test_html import contrast, rgb, themes

DATA = files("attncourse") / "data"
PROOF = json.loads((DATA / "map.json").read_text(encoding="utf-8"))
ENTRIES = json.loads((DATA / "timeline.json").read_text(encoding="utf-8"))
NODES, THEOREMS = PROOF["nodes"], PROOF["theorems"]
NAMES = {node["id"]: node for node in NODES}


@pytest.fixture(scope="module")
def output() -> show.Output:
    return show.attention_map(PROOF, ENTRIES)


@pytest.fixture(scope="module")
def page(output) -> BeautifulSoup:
    return BeautifulSoup(output.html, "html.parser")


def doctored(*ids: str) -> dict:
    """The map, with the theorems that do not hold."""
    proof = copy.deepcopy(PROOF)
    for theorem in proof["theorems"]:
        theorem["holds"] = theorem["holds"] and theorem["id"] not in ids
    return proof


# ---- where everything stands ----


def assert_apart(named: list[tuple[str, map_wide.Box]], width: float, height: float) -> None:
    for (one, first), (other, second) in combinations(named, 2):
        assert not first.meets(second), (one, other)
    for name, box in named:
        assert box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height, name


BROKEN = [(), ("gqa-every-head", "performer-is-softmax", "mla-absorbed", "window-sees-all")]


@pytest.mark.parametrize("broken", BROKEN)
def test_no_two_cards_or_texts_of_the_wide_map_overlap(broken):
    lines, _, spots, height = layout(NODES, doctored(*broken)["theorems"])
    named = [(node["id"], map_wide.node_box(node)) for node in NODES]
    named += [(family, name) for family, (_, name) in map_wide.regions(NODES).items()]
    seen = [(spot.theorem["id"], spot.boxes) for of in spots for spot in of if not spot.quiet]
    assert_apart(named + [(i, box) for i, boxes in seen for box in boxes], map_wide.WIDTH, height)
    assert len(seen) >= 15
    assert sum(len(line.theorems) for line in lines) == len(THEOREMS)
    for line, of in zip(lines, spots, strict=True):
        assert [spot.theorem for spot in of] == line.theorems
        for spot in of:
            assert len(spot.boxes) == len(map_wide.texts(spot.theorem))
            for box in spot.boxes:
                assert box.left >= 0 and box.right <= map_wide.WIDTH


def test_every_condition_that_is_always_seen_stands_on_its_own_edge_alone():
    lines, ways, spots, _ = layout(NODES, THEOREMS)
    for i, of in enumerate(spots):
        for spot in of:
            on = map_wide.pieces(ways[i])
            reach = 0.01
            dot = map_wide.Box(spot.x - reach, spot.y - reach, spot.x + reach, spot.y + reach)
            assert map_wide.hit(on, dot).any(), spot.theorem["id"]
            if spot.quiet:
                continue
            for j, way in enumerate(ways):
                strangers = j != i and map_wide.hit(map_wide.pieces(way), map_wide.around(spot.boxes)).any()
                assert not strangers, (spot.theorem["id"], lines[j].of)


def test_edges_cross_seldom():
    lines, ways, *_ = layout(NODES, THEOREMS)
    mutual, over = map_wide.count_crossings(NODES, lines, ways)
    assert mutual <= 18 and over <= 3
    square = np.array([[0, 5], [10, 5], [10, 5], [10, 5]]), np.array([[5, 0], [5, 10], [5, 10], [5, 10]])
    one, other = (map_wide.pieces(way[None].astype(float)) for way in square)
    assert map_wide.crossings(one, other) == [1] and map_wide.crossings(one, one) == [0]


def test_regions_of_families_lie_apart():
    found = map_wide.regions(NODES)
    height = layout(NODES, THEOREMS)[3]
    for (one, (first, _)), (other, (second, _)) in combinations(found.items(), 2):
        assert not any(a.meets(b) for a in first for b in second), (one, other)
    for family, (boxes, name) in found.items():
        assert any(name.within(box) for box in boxes), family
        assert map_wide.around(boxes).within(map_wide.Box(0, 0, map_wide.WIDTH, height)), family
    for node in NODES:
        boxes, _ = found[node["family"]]
        assert any(map_wide.node_box(node).within(box) for box in boxes), node["id"]


def test_the_wide_map_runs_to_the_right_in_time():
    edges = [*map_wide.COLUMNS.values(), map_wide.WIDTH]
    assert edges == sorted(edges) and list(map_wide.COLUMNS) == sorted(map_wide.COLUMNS)
    for node in NODES:
        i = list(map_wide.COLUMNS).index(int(node["date"][:4]))
        assert edges[i] <= map_wide.PLACES[node["id"]][0] < edges[i + 1], node["id"]
    assert set(map_wide.PLACES) == set(NAMES)


def test_lines_pass_beside_the_cards_of_others():
    lines, ways, *_ = layout(NODES, THEOREMS)
    for line, way in zip(lines, ways, strict=True):
        assert ((way[1:] == way[:-1]).any(1)).all()  # across or along
        for node in NODES:
            met = map_wide.hit(map_wide.pieces(way), map_wide.node_box(node).grown(-1)).any()
            assert not met, (line.of, node["id"])


@pytest.mark.parametrize("broken", BROKEN)
def test_the_narrow_map_runs_down_in_time_and_nothing_overlaps(broken):
    theorems = doctored(*broken)["theorems"]
    drawing = map_narrow.draw(NODES, theorems)
    dates = [stop.node["date"] for stop in drawing.stops]
    assert dates == sorted(dates) and [stop.y for stop in drawing.stops] == sorted(stop.y for stop in drawing.stops)
    named = []
    for stop in drawing.stops:
        named += [(stop.node["id"], stop.name), (f"{stop.node['id']}'s year", stop.about)]
        named += [(line, box) for row in stop.rows for line, box in zip(row.lines, row.boxes, strict=True)]
        assert stop.box.bottom - stop.box.top >= 24
    assert_apart(named, map_narrow.WIDTH, drawing.height)
    targets = [(" ".join(row.lines), row.target) for stop in drawing.stops for row in stop.rows]
    assert_apart(targets + [(stop.node["id"], stop.name) for stop in drawing.stops], map_narrow.WIDTH, drawing.height)
    for name, box in targets:  # 266 px wide on a screen of 320, as the book sets it
        assert min(box.bottom - box.top, box.right - box.left) * 266 / map_narrow.WIDTH >= 24, name
    assert sorted(row.index for stop in drawing.stops for row in stop.rows) == list(range(len(theorems)))
    tracks = [x for x, _ in drawing.trunks.values()]
    assert min(tracks) >= 4 and max(tracks) < drawing.spine - 6


def test_trunks_of_one_track_do_not_meet():
    drawing = map_narrow.draw(NODES, THEOREMS)
    begin = {stop.node["id"]: stop.y for stop in drawing.stops}
    spans = [(x, begin[name], branches[-1][0]) for name, (x, branches) in drawing.trunks.items()]
    for (x, top, bottom), (other, first, last) in combinations(spans, 2):
        assert x != other or bottom < first or last < top


# ---- what is said ----


def test_every_theorem_is_drawn_twice_and_listed_once(page):
    for kind in ("wide", "narrow"):
        svg = page.select_one(f".ac-atlas-{kind}")
        assert svg["role"] == "group" and svg["aria-label"] and svg.desc.text
        drawn = {int(part["data-theorem"]): part["aria-label"] for part in svg.select("a[data-theorem]")}
        assert sorted(drawn) == list(range(len(THEOREMS)))
        for i, label in drawn.items():
            assert label == heading(THEOREMS[i], NAMES) or kind == "narrow"
            assert THEOREMS[i]["condition"] in label
            assert all(NAMES[name]["short"] in label for name in THEOREMS[i]["of"])
        lined = {int(i) for line in svg.select(".ac-line") for i in line["data-is"].split()}
        assert lined == set(range(len(THEOREMS)))
        cards = svg.select(".ac-node")
        assert len(cards) == len(NODES)
        assert {card["href"] for card in cards} == {f"../notebooks/{node['chapter']}.html" for node in NODES}
        for card in cards:
            assert card["aria-label"].startswith(" ".join(card.text.split())) and re.search(r"20\d\d", card.text)
    items = page.select(".ac-atlas-list > li")
    assert len(items) == len(THEOREMS)
    for item, theorem in zip(items, THEOREMS, strict=True):
        for part in (heading(theorem, NAMES), theorem["condition"], numbers(theorem), otherwise(theorem)):
            assert part in item.text, part
        assert theorem["id"] in item.text and item.a["href"] == f"../notebooks/{theorem['chapter']}.html"
        assert theorem["statement"].replace("`", "") in item.text


def test_numbers_are_those_of_the_file():
    for theorem in THEOREMS:
        said = numbers(theorem).replace("−", "-")
        found = [float(f"{a or 1}e{b}") for a, b in re.findall(r"(\d*)10(-?\d+)", said.translate(DOWN))]
        if theorem["kind"] == "limit":
            assert all(f"{point['error']:.2g}" in said for point in theorem["points"])
            assert f"{theorem['slope']:.2g}" in said
        else:
            assert sorted(found) == sorted(value for of in theorem["differences"].values() for value in of.values())
        assert f"{theorem['otherwise']['difference']:.2g}" in otherwise(theorem)


DOWN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def test_powers():
    assert [power(x) for x in (1e-6, 1e-15, 0.31, 0.1, 2.4, 0)] == ["10⁻⁶", "10⁻¹⁵", "0.31", "0.1", "2.4", "0"]


def test_data_is_what_the_page_was_given(output, page):
    assert json.loads(page.select_one("script[type='application/json']").string) == output.data
    assert [node["id"] for node in output.data["nodes"]] == [node["id"] for node in map_narrow.in_time(NODES)]
    for theorem, given in zip(output.data["theorems"], THEOREMS, strict=True):
        assert [output.data["nodes"][i]["id"] for i in theorem["of"]] == given["of"]
    gqa = next(node for node in output.data["nodes"] if node["id"] == "gqa")
    assert gqa["about"].startswith("Ainslie and others: ") and gqa["year"] == "2023, cache"
    assert ["Source", "../book/bibliography.html#ainslie2023"] in gqa["links"]
    assert [THEOREMS[i]["id"] for i in gqa["theorems"]] == [t["id"] for t in THEOREMS if "gqa" in t["of"]]


def test_equalities_and_limits_are_told_apart_without_colour(page):
    for kind in ("wide", "narrow"):
        heads = page.select(f".ac-atlas-{kind} .ac-head")
        limits = [theorem for theorem in THEOREMS if theorem["kind"] == "limit"]
        assert len(heads) == len(limits) == len(page.select(f".ac-atlas-{kind} .ac-limit"))
    assert "stroke-dasharray" in re.search(r"\.ac-limit \{[^}]*\}", static("map.css"))[0]


def test_what_does_not_hold_is_drawn_broken_and_said(page):
    ids = ("gqa-every-head", "performer-is-softmax", "mla-absorbed")
    broken = show.attention_map(doctored(*ids), ENTRIES)
    soup = BeautifulSoup(broken.html, "html.parser")
    assert not page.select(".ac-atlas > svg .ac-broken") and "all hold" in page.text
    for kind in ("wide", "narrow"):
        drawn = soup.select(f".ac-atlas-{kind} .ac-broken")
        assert len(drawn) == 3
        for line in drawn:
            assert line["d"].endswith("l8 8m0-8l-8 8")  # a cross
            assert line["d"].count("M") >= 2 or kind == "narrow"  # in a gap
    assert soup.select_one(".ac-atlas-wide").text.count("does not hold") == 3
    assert soup.select_one(".ac-atlas-narrow").text.count("does not hold") == 3
    assert soup.select_one(".ac-atlas-list").text.count("Does not hold.") == 3
    assert "GQA ≠ MHA: G = H" in soup.text and "Performer ↛ MHA: m → ∞" in soup.text
    assert f"{len(THEOREMS) - 3} hold, 3 do not" in soup.text
    assert repr(broken).count("DOES NOT HOLD.") == 3


def test_a_difference_that_is_no_power_of_ten_is_said():
    proof = doctored("gqa-every-head")
    theorem = next(theorem for theorem in proof["theorems"] if theorem["id"] == "gqa-every-head")
    theorem["differences"]["float32"]["outputs"] = 0.873
    assert "outputs by 0.87" in show.attention_map(proof).html


def test_the_text_form_has_every_theorem(output):
    text = repr(output)
    for theorem in THEOREMS:
        assert f"{heading(theorem, NAMES)}. {theorem['statement']}" in text
    assert text.splitlines()[-1].startswith(f"{len(NODES)} mechanisms, {len(THEOREMS)} theorems: ")
    assert f"PyTorch {PROOF['versions']['torch']}" in text and PROOF["date"] in text


def test_it_is_light_and_the_same_each_time(output):
    assert len(gzip.compress(output.html.encode())) <= 30_000
    assert show.attention_map(PROOF, ENTRIES).html == output.html
    assert " id=" not in re.sub(r"<script>.*", "", output.html, flags=re.DOTALL)


def test_links_are_those_of_the_page():
    html = show.attention_map(PROOF, ENTRIES, link=lambda page, anchor: f"x/{page}#{anchor}").html
    assert 'href="x/notebooks/13_gqa#"' in html and "../" not in html
    bare = BeautifulSoup(show.attention_map(PROOF, link=lambda page, anchor: None).html, "html.parser")
    assert not bare.select("[href]") and len(bare.select(".ac-node")) == 2 * len(NODES)


def test_the_list_may_be_open(page):
    assert not page.details.has_attr("open")
    assert "<details open>" in show.attention_map(PROOF, open_list=True).html


def test_texts_cannot_leave_their_place():
    proof = copy.deepcopy(PROOF)
    proof["theorems"][0]["statement"] = evil = "</script><b onclick=x>&"
    assert evil not in show.attention_map(proof).html
    assert unescape("&lt;b onclick=x&gt;") in BeautifulSoup(show.attention_map(proof).html, "html.parser").text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda proof: proof.pop("versions"), "the map lacks 'versions'"),
        (lambda proof: proof.update(nodes=[]), "0 nodes"),
        (lambda proof: proof["nodes"][0].update(family="other"), "of the family 'other'"),
        (lambda proof: proof["nodes"][0].update(date="2014"), "the date '2014'"),
        (lambda proof: proof["nodes"][1].update(id="additive"), "more than one node is called 'additive'"),
        (lambda proof: proof["nodes"].append(NODES[0] | {"id": "new"}), "node 'new' has no place"),
        (lambda proof: proof["theorems"][0].update(of=["gqa", "other"]), r"is of \['gqa', 'other'\]"),
        (lambda proof: proof["theorems"][0].update(kind="guess"), "of the kind 'guess'"),
        (lambda proof: proof["theorems"][0].update(holds="yes"), "holds='yes'"),
        (lambda proof: proof["theorems"][0].update(condition=""), "lacks 'condition'"),
        (lambda proof: proof["theorems"][0].pop("differences"), "lacks 'differences'"),
        (lambda proof: proof["theorems"][0]["differences"]["float32"].update(outputs=float("nan")), "is nan"),
        (lambda proof: proof["theorems"].append(THEOREMS[0]), "more than one theorem"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    proof = copy.deepcopy(PROOF)
    change(proof)
    with pytest.raises(ValueError, match=message):
        show.attention_map(proof)


def test_colours_of_families_can_be_seen():
    css = static("map.css")
    for family in FAMILIES:
        name = "--ac-" + family.split()[0]
        assert f".ac-of-{family.replace(' ', '-')} {{ --ac-kind: var({name}); }}" in css
        light, dark = pair(css, name)
        for colour, paper, text in zip((light, dark), themes("--ac-bg"), themes("--ac-dim"), strict=True):
            tint = [p + (c - p) * 0.1 for c, p in zip(rgb(colour), paper, strict=True)]
            assert contrast(rgb(colour), paper) >= 3 and contrast(rgb(colour), tint) >= 2.9
            assert contrast(text, tint) >= 4.5
    for edge, paper in zip(themes("--ac-edge"), themes("--ac-bg"), strict=True):
        assert contrast(edge, paper) >= 3


def pair(css: str, name: str) -> tuple[str, str]:
    """The light and the dark colour of a variable, which may be one."""
    light, dark, both = re.search(rf"{name}: (?:light-dark\((#\w+), (#\w+)\)|(#\w+))", css).groups()
    return light or both, dark or both


# ---- the book's directives ----


def test_directives_show_both_with_links_of_their_page():
    extension = load("attncourse_map")

    def link(page, anchor):
        return f"to/{page}#{anchor}"

    closed, opened = (extension.outputs("attention-map", options, link) for options in ({}, {"open": None}))
    assert "<details open>" in opened and "<details>" in closed
    for html in (closed, opened, extension.outputs("timeline", {}, link)):
        assert 'href="to/notebooks/13_gqa#"' in html and "../" not in html


def test_anchors_are_those_of_headings():
    anchor_of = load("attncourse_map").anchor_of
    slugs = {"shaw2018": (0, "shaw2018", ""), "13-grouped": (4, "grouped", ""), "1-x": (5, "x", "")}
    assert [anchor_of(slugs, name) for name in ("shaw2018", "13", "14", "")] == ["shaw2018", "grouped", "", ""]


# ---- the timeline ----


def test_the_timeline_says_everything_in_order():
    output = show.timeline(ENTRIES)
    items = BeautifulSoup(output.html, "html.parser").select("ol > li")
    assert len(items) == len(ENTRIES)
    for item, entry in zip(items, ENTRIES, strict=True):
        for part in (entry["title"], entry["who"], entry["what"].replace("`", ""), entry["kind"], when(entry["date"])):
            assert part in item.text, part
        assert item["class"] == [f"ac-{entry['kind']}"] and item.time["datetime"] == entry["date"]
        links = [link["href"] for link in item.select("a")]
        chapter = [f"../notebooks/{entry['chapter']}.html"] if entry["chapter"] else []
        assert links == [*chapter, f"../book/bibliography.html#{entry['source']}"]
        assert f"{entry['date']}  {entry['title']} ({entry['kind']})" in repr(output)
    assert when("2017-06") == "June 2017" and output.data == ENTRIES


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda entries: entries[0].update(kind="book"), "of the kind 'book'"),
        (lambda entries: entries[0].update(date="2014-13"), "the date '2014-13'"),
        (lambda entries: entries[0].pop("what"), "lacks 'what'"),
        (lambda entries: entries.reverse(), "not in the order"),
        (lambda entries: entries.clear(), "no entries"),
    ],
)
def test_what_does_not_fit_the_timeline_is_named(change, message):
    entries = copy.deepcopy(ENTRIES)
    change(entries)
    with pytest.raises(ValueError, match=message):
        show.timeline(entries)
