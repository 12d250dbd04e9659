"""The audited claims of `data/claims.json`: as a table in a notebook, step by step, and as a page of the book."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from attncourse.show.html import Output, fragment, table

CHAPTERS = {  # module -> notebook and title, in the course's order
    "bahdanau": ("01_bahdanau", "Additive attention"),
    "luong": ("02_luong", "Luong's attention"),
    "self_attention": ("03_self_attention", "Self-attention"),
    "cross_attention": ("04_cross_attention", "Cross-attention"),
    "causal": ("05_causal", "Causal attention"),
    "multi_head": ("06_multi_head", "Multi-head attention"),
    "positions": ("07_positions", "Positions"),
    "sliding_window": ("08_sliding_window", "Sliding window"),
    "sparse": ("09_sparse", "Sparse attention"),
    "linear": ("10_linear", "Linear attention"),
    "kv_cache": ("11_kv_cache", "The key-value cache"),
    "mqa": ("12_mqa", "Multi-query attention"),
    "gqa": ("13_gqa", "Grouped-query attention"),
    "mla": ("14_mla", "Multi-head latent attention"),
    "execution": ("15_execution", "Execution"),
    "choosing": ("16_choosing", "Choosing"),
}
VERDICTS = ("holds", "holds with its baseline named", "misleading", "wrong", "unsupported", "opinion")
CHECKED = {  # how the source was read
    "original": "We read the source.",
    "copy": "We read the source in a copy of its text.",
    "secondary": "We did not read the source; others quote it.",
    "none": "No source is named.",
}


@cache
def load_claims() -> dict[str, dict[str, Any]]:
    """The claims of `data/claims.json` by id, in its order."""
    text = (files("attncourse") / "data" / "claims.json").read_text(encoding="utf-8")
    return {claim["id"]: claim for claim in json.loads(text)["claims"]}


def claims(*ids: str, chapter: str | None = None) -> Output:
    """Claims as a table: what is told and by whom, the verdict, what comes out, against what, and why.

    ids: which claims, in this order; or chapter: a module's name, such as "mla", for all of its claims. Raises
    ValueError for an unknown id, for a chapter without claims, and unless exactly one of the two is given.
    """
    if bool(ids) == (chapter is not None):
        raise ValueError(f"claims needs ids or a chapter, one of the two, but got ids={ids} and chapter={chapter!r}")
    chosen = [find(name) for name in ids] or [claim for claim in load_claims().values() if claim["chapter"] == chapter]
    if not chosen:
        there = ", ".join(sorted({claim["chapter"] for claim in load_claims().values()}))
        raise ValueError(f"no claim belongs to the chapter {chapter!r}; there are claims for {there}")
    header = ["told", "verdict", "recomputed", "compared with", "why"]
    rows = [
        [f"{plain(claim['claim'])} ({said_by(claim)})", verdict(claim), outcome(claim), claim["baseline"], claim["why"]]
        for claim in chosen
    ]
    rows = [[plain(cell) for cell in row] for row in rows]
    caption = f"{len(chosen)} audited claim{'s' if len(chosen) > 1 else ''}; a narrow screen scrolls sideways."
    lines = [caption]
    for told, *rest in rows:
        lines += ["", told, *(f"  {name}: {text}" for name, text in zip(header[1:], rest, strict=True))]
    return Output("\n".join(lines), _html(caption, header, rows))


def claim_steps(id: str) -> Output:
    """How a claim's number comes about: each step's formula, the same with numbers, and what comes out.

    Raises ValueError for an unknown id, and for a claim without a number.
    """
    claim = find(id)
    if not claim["steps"]:
        raise ValueError(f"the claim {id!r} has no number: it is {claim['verdict']}")
    header = ["step", "formula", "with numbers", "comes to"]
    last = {"name": "the claim", "what": f"told is {claim['told']}" if "told" in claim else claim["title"]}
    rows = [
        [plain(f"{step['name']}: {step['what']}"), step["formula"], step["numbers"], quantity(step)]
        for step in [*claim["steps"][:-1], claim["steps"][-1] | last]
    ]
    caption = f"{plain(claim['claim'])} ({said_by(claim)}) Verdict: {verdict(claim)}. {plain(claim['why'])}"
    text = [caption, *(f"  {first}: {formula} = {numbers} = {value}" for first, formula, numbers, value in rows)]
    return Output("\n".join(text), _html(caption, header, rows))


def find(id: str) -> dict[str, Any]:
    """The claim of that id. Raises ValueError, with the ids there are, if there is none."""
    if id not in load_claims():
        raise ValueError(f"no claim has the id {id!r}; there are {', '.join(load_claims())}")
    return load_claims()[id]


def _html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = f"<figure><figcaption>{escape(caption)}</figcaption>{table(header, rows, caption)}</figure>"
    return fragment(body, kind="claims", styles=["claims.css"])


def said_by(claim: Mapping[str, Any]) -> str:
    """Who says it, and where."""
    where = f", {claim['where']}" if "where" in claim else ""
    return "; ".join(source["text"] for source in claim["said_by"]) + where


def quantity(step: Mapping[str, Any]) -> str:
    """A value with its unit."""
    if not step["unit"]:
        return step["value"]
    space = "\u00a0" if len(step["unit"]) < 4 or step["unit"][0] == "%" else " "
    return f"{step['value']}{space}{step['unit']}"


def outcome(claim: Mapping[str, Any]) -> str:
    """What comes out, or that nothing was computed."""
    return quantity(claim["steps"][-1]) if claim["steps"] else "nothing to compute"


def verdict(claim: Mapping[str, Any]) -> str:
    """The verdict, in words, and how it is known."""
    return f"{claim['verdict']} ({claim['evidence']})"


def plain(text: str) -> str:
    """Without the backquotes of code."""
    return text.replace("`", "")


# --- the page of the book


def claims_markdown(records: Sequence[Mapping[str, Any]], notebooks: Collection[str]) -> str:
    """Markdown for the page of claims: how many there are of each verdict, then every claim, chapter by chapter.

    notebooks: which there are, such as "08_sliding_window"; the title of a chapter that is there links to it.
    """
    counts = Counter(claim["verdict"] for claim in records)
    rows = ["## All verdicts", "", f"{len(records)} claims.", "", "| verdict | claims |", "| --- | --- |"]
    rows += [f"| {verdict} | {counts[verdict]} |" for verdict in VERDICTS if counts[verdict]]
    for chapter, (notebook, title) in CHAPTERS.items():
        there = [claim for claim in records if claim["chapter"] == chapter]
        if there:
            rows += ["", f"## {notebook[:2]} {title}", ""]
            rows += [f"[Chapter {notebook[:2]}](../notebooks/{notebook}.ipynb)", ""] if notebook in notebooks else []
        for claim in there:
            rows += _card(claim)
    return "\n".join(rows)


def _card(claim: Mapping[str, Any]) -> list[str]:
    """One claim: a heading, what is told, the verdict, what it rests on, and the steps of its number to open."""
    said = "; ".join(map(_source, claim["said_by"])) + (f", {claim['where']}" if "where" in claim else "")
    lines = ["", f"### {claim['title']}", "", f"“{claim['claim']}” ({said})", ""]
    lines += [f"**{claim['verdict'].capitalize()}.** {claim['why']}", "", f"- Compared with: {claim['baseline']}."]
    if claim["steps"]:
        told = f" (told: {claim['told']})" if "told" in claim else ""
        lines += [f"- Recomputed: {_calculation(claim['steps'][-1])}{told}."]
    lines += [f"- Known from: {claim['evidence']}. {CHECKED[claim['checked']]}", ""]
    if claim["steps"][1:]:
        lines += [f"<details><summary>Steps to “{claim['title']}”</summary>", ""]
        lines += [f"- {step['name']} = {_calculation(step)}{_what(step)}" for step in claim["steps"][:-1]]
        lines += ["", "</details>", ""]
    return lines


def _calculation(step: Mapping[str, Any]) -> str:
    """The formula, the same with numbers where it has names, and what comes out."""
    parts = dict.fromkeys([f"`{step['formula']}`", f"`{step['numbers']}`"])
    return f"{' = '.join(parts)} = **{quantity(step)}**"


def _what(step: Mapping[str, Any]) -> str:
    return f": {step['what']}" if "what" in step else ""


def _source(source: Mapping[str, str]) -> str:
    link = f"bibliography.md#{source['key']}" if "key" in source else source.get("url")
    return f"[{source['text']}]({link})" if link else source["text"]
