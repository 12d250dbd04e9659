"""Submissions to grade in tests: notebooks of chapter 1, right, wrong and hostile, and zips as systems export them."""

import io
import json
import re
import zipfile
from pathlib import Path

from attncourse.grading.notebook import code_cells

ROOT = Path(__file__).parents[2]
SOLVED = code_cells(ROOT / "solutions" / "01_bahdanau.ipynb")
FRESH = code_cells(ROOT / "exercises" / "01_bahdanau.ipynb")
FULL = 13

UNIFORM = "def context_vector(weights, values):\n    return (weights * 0 + 1 / weights.shape[-1]) @ values"
NO_TANH = (
    "def additive_score(query, keys, query_weight, key_weight, v):\n"
    "    return ((query @ query_weight.T)[:, :, None] + (keys @ key_weight.T)[:, None]) @ v"
)
TELLS_INPUTS = (
    "def context_vector(weights, values):\n"
    "    raise type('Zq' + ''.join(f'{x:.3f}' for x in values.flatten()[:5].tolist()), (Exception,), {})(\n"
    "        'inputs: ' + str(values.flatten()[:5].tolist()))"
)


def notebook(cells):
    """A notebook of these code cells, as bytes."""
    made = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": cell} for cell in cells
    ]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}).encode()


def with_answer(code):
    """The solved cells, with one answer replaced by `code`."""
    name = re.match(r"(?:def|class) (\w+)", code)[1]
    found = re.compile(rf"^(?:def|class) {name}\b", re.MULTILINE)
    i = next(i for i, cell in enumerate(SOLVED) if found.search(cell))
    return [*SOLVED[:i], code, *SOLVED[i + 1 :]]


def marked(text, cells=SOLVED):
    """The same cells and a comment, so that no two notebooks are the same."""
    return notebook([*cells, f"# {text}"])


def zipped(members, path):
    """A zip at `path` of {name: bytes}, or of ZipInfo in a name's place."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path.write_bytes(data.getvalue())
    return path
