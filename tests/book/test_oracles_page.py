"""The page of comparisons says what the committed file says, and each compared chapter leads to its part of it."""

import json
import re

import nbformat
import pytest

from tests.book.extensions import ROOT, load

PAGE = load("attncourse_oracles")
CONTENT = json.loads(PAGE.ORACLES.read_text("utf-8"))
CHAPTERS = sorted({row["chapter"] for row in CONTENT["comparisons"]})
ROW = {"mechanism": "rope", "chapter": "07_positions", "module": "positions", "library": "torch", "version": "2.1"}
ROW |= {"theirs": "Theirs", "what": "a | b", "cases": 1200, "device": "cpu", "shapes": ["1×2"], "scaled": True}
ROW |= {"differences": {"float32": {"outputs": 1e-05, "gradients": 1e-06}}}
CAUSAL = ROW | {"mechanism": "causal", "module": "causal", "chapter": "05_causal", "equations": True, "cases": 34}
CAUSAL |= {"library": "numpy", "theirs": "equation 1", "scaled": False, "shapes": [f"1×{n}" for n in range(1, 12)]}
CAUSAL |= {"differences": ROW["differences"] | {"float64": {"outputs": 1e-15}}}


def test_comparisons_become_totals_and_tables():
    text = PAGE.oracles_markdown({"date": "2026-01-02", "comparisons": [ROW, CAUSAL, CAUSAL]}, {"05_causal"})
    assert "3 comparisons in 1,268 cases, measured on 2026-01-02." in text
    assert "| equations, in NumPy 2.1 | 2 | 68 |\n| PyTorch 2.1 | 1 | 1,200 |" in text
    assert "## 05 Causal attention\n\n[Chapter 05](../notebooks/05_causal.ipynb)\n\n| ours |" in text
    assert "## 07 Positions\n\n| ours |" in text
    assert "| `positions`, RoPE | `Theirs`, PyTorch 2.1 | a \\| b | 1,200: 1×2 | 1e−5, 1e−6 relative | none |" in text
    many = "1×1, 1×2, 1×3, 1×4, … 1×8, 1×9, 1×10, 1×11 (11 in all)"
    assert f"| `causal` | equation 1, in NumPy 2.1 | a \\| b | 34: {many} | 1e−5, 1e−6 | 1e−15, none |" in text


def test_another_device_is_named():
    assert PAGE.theirs(ROW | {"device": "cuda"}) == "`Theirs`, PyTorch 2.1, on CUDA"


def test_every_committed_comparison_is_on_the_page():
    text = PAGE.oracles_markdown(CONTENT, set())
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(CONTENT["comparisons"]) == int(re.search(r"(\d+) comparisons in", text)[1])
    assert {line.count(" | ") for line in rows} == {5}
    assert all(row["what"].replace("|", "\\|") in text and row["theirs"] in text for row in CONTENT["comparisons"])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_compared_chapter_leads_to_its_table(chapter):
    """By the anchor that MyST gives the heading."""
    cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    links = [link for cell in cells for link in re.findall(r"\]\(\.\./book/oracles\.md([^)]*)\)", cell.source)]
    assert links == ["#" + load("attncourse_pages").slug(PAGE.TITLES[chapter])]


def test_chapters_with_a_mechanism_are_compared():
    assert [chapter[:2] for chapter in CHAPTERS] == [f"{number:02}" for number in range(1, 16)]
