"""What is said of the map's nodes and theorems, and where their links lead."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Link = Callable[[str, str], str | None]


def beside(page: str, anchor: str = "") -> str:
    """The address of a page of the book (`notebooks/13_gqa`), as seen from any page of one of its folders."""
    return f"../{page}.html" + (f"#{anchor}" if anchor else "")


def heading(theorem: Mapping[str, Any], names: Mapping[str, Mapping]) -> str:
    """`GQA = multi-head if G = H`: between whom a theorem is, and when."""
    first, second = (names[name]["short"] for name in theorem["of"])
    sign = "=" if theorem["kind"] == "equality" else "→"
    if not theorem["holds"]:
        sign = "≠" if theorem["kind"] == "equality" else "↛"
    pair = f"{first} {sign} {second}" if first != second else f"{first} {sign} itself"
    return f"{pair}: {theorem['condition']}"


def named(theorem: Mapping, names: Mapping[str, Mapping]) -> str:
    """The heading, and that it fails where it does."""
    return heading(theorem, names) + ("" if theorem["holds"] else ", does not hold")


def spoken(node: Mapping, about: str, theorems: Sequence[Mapping]) -> str:
    """The name of a node's link: what is seen of it, its full name, and how much is behind it."""
    count = sum(node["id"] in theorem["of"] for theorem in theorems)
    return f"{node['short']} {about}: {node['title']}, {count} theorem{'s' * (count != 1)}"


def power(value: float) -> str:
    """A power of ten as such, anything else with two figures."""
    if value and math.isclose(exponent := math.log10(value), round(exponent), abs_tol=1e-9) and value < 0.01:
        return "10" + str(round(exponent)).translate(SUPERSCRIPT)
    return f"{value:.2g}"


def numbers(theorem: Mapping[str, Any]) -> str:
    """What was measured, in a sentence or two."""
    if theorem["kind"] == "limit":
        ((quantity, _), *_) = theorem["points"][0].items()
        points = ", ".join(f"{point['error']:.2g} at {quantity} = {point[quantity]:,}" for point in theorem["points"])
        told = f"Relative error: {points}; it falls as {quantity} to the power {theorem['slope']:.2g}."
        return told.replace("-", "−")
    parts = [
        " and ".join(f"{what} by {power(value)}" for what, value in found.items()) + f" in {dtype}"
        for dtype, found in theorem["differences"].items()
    ]
    return f"Differ at most: {'; '.join(parts)}."


def otherwise(theorem: Mapping[str, Any]) -> str:
    """What the same comparison gives when the condition is broken."""
    broken = theorem["otherwise"]
    return f"Otherwise ({broken['what']}): the outputs differ by {broken['difference']:.2g}."
