"""The map of attention: mechanisms in time, and the theorems between them, each drawn as its test came out."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from attncourse.show.html import Output, fragment, prose
from attncourse.show.map_drawing import legend, narrow, wide
from attncourse.show.map_narrow import in_time
from attncourse.show.map_words import Link, beside, heading, numbers, otherwise

FAMILIES = ("alignment", "dot product", "fewer scores", "linear", "cache", "execution")
MONTH = re.compile(r"20\d\d-(0[1-9]|1[0-2])")
NODE_KEYS = ("id", "title", "short", "family", "date", "chapter", "source")
THEOREM_KEYS = ("id", "of", "kind", "condition", "statement", "chapter", "compared", "otherwise", "holds")
ENTRY_KEYS = ("date", "title", "who", "what", "source", "kind")


def attention_map(
    proof: Mapping[str, Any],
    timeline: Sequence[Mapping[str, Any]] = (),
    *,
    link: Link = beside,
    open_list: bool = False,
) -> Output:
    """Mechanisms as places, theorems as lines between them: solid equalities, dashed limits, broken where a test fails.

    proof: the contents of `data/map.json`. timeline: those of `data/timeline.json`, for who and what of a node. link:
    gives the address of a page of the book and an anchor, or None where there is none. Two drawings, of which the page
    shows the one that fits; below them the same as a list, open or not. With a script, hovering, touching and the
    arrow keys tell of a node or a theorem; without, each name leads to its chapter.

    Raises ValueError for records that are no such contents.
    """
    nodes, theorems = _checked(proof)
    check_timeline(timeline)
    ordered = in_time(nodes)
    names = {node["id"]: node for node in nodes}
    entries = {entry["node"]: entry for entry in reversed(timeline) if entry.get("node")}
    records = [_record(node, entries.get(node["id"]), theorems, link) for node in ordered]
    at = {node["id"]: i for i, node in enumerate(ordered)}
    data = {
        "nodes": records,
        "theorems": [
            {"id": theorem["id"], "of": [at[name] for name in theorem["of"]], "name": heading(theorem, names)}
            for theorem in theorems
        ],
    }
    said = _summary(proof)
    items = "".join(_item(theorem, names, link) for theorem in theorems)
    opened = " open" if open_list else ""
    body = (
        f'<figure><div class="ac-atlas">{legend()}{wide(nodes, theorems, at, link)}'
        f"{narrow(nodes, theorems, at, link)}"
        '<div class="ac-live ac-atlas-said" role="status" aria-live="polite"></div></div>'
        f"<figcaption>{escape(said)}</figcaption>"
        f'<details{opened}><summary>The map as a list: {len(theorems)} theorems</summary><ol class="ac-atlas-list">'
        f"{items}</ol></details></figure>"
    )
    html = fragment(body, kind="attention-map", piece="map", script="map.js", data=data, styles=["map.css"])
    lines = [f"{heading(theorem, names)}. {sentence}" for theorem in theorems for sentence in [_plain(theorem)]]
    return Output("\n".join(["The map of attention", *lines, said]), html, data)


# ---- what is given ----


def _checked(proof: Mapping[str, Any]) -> tuple[list, list]:
    """Nodes and theorems, when they are what they must be."""
    for key in ("versions", "date", "nodes", "theorems"):
        if key not in proof:
            raise ValueError(f"the map lacks {key!r}")
    nodes, theorems = proof["nodes"], proof["theorems"]
    if not nodes or not theorems:
        raise ValueError(f"the map has {len(nodes)} nodes and {len(theorems)} theorems, but needs some of both")
    for node in nodes:
        _require("node", node, NODE_KEYS)
        if node["family"] not in FAMILIES:
            raise ValueError(f"node {node['id']!r} is of the family {node['family']!r}, but they are {FAMILIES}")
        if not MONTH.fullmatch(node["date"]):
            raise ValueError(f"node {node['id']!r} has the date {node['date']!r}, but it must be like 2017-06")
    known = _distinct("node", nodes)
    _distinct("theorem", theorems)
    for theorem in theorems:
        _require("theorem", theorem, THEOREM_KEYS)
        where = f"theorem {theorem['id']!r}"
        if len(theorem["of"]) != 2 or not set(theorem["of"]) <= known:
            raise ValueError(f"{where} is of {theorem['of']}, but it must be two of the nodes")
        if theorem["kind"] not in ("equality", "limit"):
            raise ValueError(f"{where} is of the kind {theorem['kind']!r}, but it must be equality or limit")
        if not isinstance(theorem["holds"], bool):
            raise ValueError(f"{where}: holds={theorem['holds']!r} must be true or false")
        needed = ("differences",) if theorem["kind"] == "equality" else ("points", "slope")
        _require("theorem", theorem, needed)
        for dtype, found in (theorem.get("differences") or {}).items():
            for what, value in found.items():
                if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                    raise ValueError(f"{where}: the difference of {what} in {dtype} is {value!r}")
    return nodes, theorems


def _require(what: str, record: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if record.get(key) in (None, "", [], {}):
            raise ValueError(f"{what} {record.get('id') or record.get('title')!r} lacks {key!r}")


def _distinct(what: str, records: Sequence[Mapping[str, Any]]) -> set[str]:
    ids = [record.get("id") for record in records]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"more than one {what} is called {', '.join(sorted(map(repr, twice)))}")
    return set(ids)


def check_timeline(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless every entry has its texts, a month and a kind, and they come in time."""
    for entry in entries:
        _require("the timeline's entry", entry, ENTRY_KEYS)
        if not MONTH.fullmatch(entry["date"]):
            raise ValueError(
                f"the timeline's entry {entry['title']!r} has the date {entry['date']!r}, not like 2017-06"
            )
        if entry["kind"] not in ("idea", "model"):
            raise ValueError(f"the timeline's entry {entry['title']!r} is of the kind {entry['kind']!r}")
    dates = [entry["date"] for entry in entries]
    if dates != sorted(dates):
        raise ValueError("the timeline's entries are not in the order of their dates")


# ---- what is said ----


def _plain(theorem: Mapping[str, Any]) -> str:
    fails = "" if theorem["holds"] else "DOES NOT HOLD. "
    return f"{fails}{theorem['statement']} {numbers(theorem)} {otherwise(theorem)}"


def _summary(proof: Mapping[str, Any]) -> str:
    theorems = proof["theorems"]
    holding = sum(theorem["holds"] for theorem in theorems)
    how = "all hold" if holding == len(theorems) else f"{holding} hold, {len(theorems) - holding} do not"
    versions = " and ".join(f"{_library(name)} {version}" for name, version in proof["versions"].items())
    return (
        f"{len(proof['nodes'])} mechanisms, {len(theorems)} theorems: {how}. Computed with {versions}, {proof['date']}."
    )


def _library(name: str) -> str:
    return {"python": "Python", "torch": "PyTorch"}.get(name, name)


def _anchor(text: str, href: str | None) -> str:
    return f'<a href="{escape(href)}">{escape(text)}</a>' if href else escape(text)


def _chapter(name: str) -> str:
    return f"Chapter {name[:2]}"


def _item(theorem: Mapping[str, Any], names: Mapping[str, Mapping], link: Link) -> str:
    """One theorem of the list, which is also what the panel shows of it."""
    fails = "" if theorem["holds"] else "<b>Does not hold.</b> "
    why = f"<p>{prose(theorem['why'])}</p>" if theorem.get("why") else ""
    compared = ", ".join(theorem["compared"])
    chapter = _anchor(_chapter(theorem["chapter"]), link("notebooks/" + theorem["chapter"], ""))
    return (
        f"<li><p><b>{escape(heading(theorem, names))}</b></p><p>{fails}{prose(theorem['statement'])}</p>{why}"
        f'<p class="ac-dim">Compared: {escape(compared)}. {escape(numbers(theorem))} {escape(otherwise(theorem))}</p>'
        f'<p class="ac-atlas-links">{chapter}'
        f" <code>{escape(theorem['id'])}</code></p></li>"
    )


def _record(node: Mapping, entry: Mapping | None, theorems: Sequence[Mapping], link: Link) -> dict[str, Any]:
    """What the panel says of a node, as plain JSON values."""
    year = f"{node['date'][:4]}, {node['family']}"
    about = f"{entry['who']}: {entry['what']}" if entry else ""
    links = [
        [_chapter(node["chapter"]), link("notebooks/" + node["chapter"], "")],
        ["Source", link("book/bibliography", node["source"])],
        ["Compared with production code", link("book/oracles", node["chapter"][:2])],
    ]
    return {
        "id": node["id"],
        "title": node["title"],
        "year": year,
        "about": about,
        "links": [pair for pair in links if pair[1]],
        "theorems": [i for i, theorem in enumerate(theorems) if node["id"] in theorem["of"]],
    }
