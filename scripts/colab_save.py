"""What Colab makes of a notebook that is opened there, run and saved; and what some learners then do to it.

As seen in notebooks that come back: nbformat 4.0, so no cell ids; a badge cell in front; Colab's own metadata in place
of the cells'; source as lists of lines. Learners copy answer cells, move them, and leave fresh copies behind.
"""

import copy
import json
import uuid

BADGE = (
    '<a href="https://colab.research.google.com/github/owner/name/blob/main/notebook.ipynb" target="_parent">'
    '<img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>'
)


def colab_save(notebook: dict, fresh: dict | None = None) -> str:
    """The text of the file that comes back: `notebook` after Colab, its answers doubled and moved.

    fresh: the exercise as it was handed out; its empty answers then stand after the learner's own.
    """
    saved = copy.deepcopy(dict(notebook))
    cells = _disorder(saved["cells"], copy.deepcopy(fresh["cells"]) if fresh else [])
    badge = {"cell_type": "markdown", "source": BADGE, "metadata": {"id": "view-in-github", "colab_type": "text"}}
    saved["cells"] = [badge, *(_rewritten(cell, n) for n, cell in enumerate(cells, 1))]
    saved["nbformat_minor"] = 0
    saved["metadata"] = {
        "colab": {"provenance": [], "include_colab_link": True},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return json.dumps(saved, indent=2, ensure_ascii=False)


def _is_answer(cell: dict) -> bool:
    return bool(cell["metadata"].get("nbgrader", {}).get("solution"))


def _disorder(cells: list[dict], fresh: list[dict]) -> list[dict]:
    """Each answer twice, neighbours swapped, the last check in front of its answer, fresh answers at the end."""
    places = [i for i, cell in enumerate(cells) if _is_answer(cell)]
    answers = [cells[i] for i in places]
    answers[0 : len(answers) // 2 * 2] = [answers[i ^ 1] for i in range(len(answers) // 2 * 2)]
    moved = list(cells)
    for place, answer in zip(places, answers, strict=True):
        moved[place] = answer
    doubled = [cell for cell in moved for _ in range(2 if _is_answer(cell) else 1)]
    checks = [i for i, cell in enumerate(doubled) if cell["metadata"].get("nbgrader", {}).get("grade")]
    if checks:
        doubled.insert(checks[-1] - 2, doubled.pop(checks[-1]))
    return doubled + [cell for cell in fresh if _is_answer(cell)]


def _rewritten(cell: dict, n: int) -> dict:
    """A cell as Colab writes it: no id of its own, Colab's metadata, source as a list of lines."""
    lines = "".join(cell["source"]).splitlines(keepends=True)
    written = {"cell_type": cell["cell_type"], "source": lines, "metadata": {"id": uuid.UUID(int=n).hex[-12:]}}
    if cell["cell_type"] == "code":
        written |= {"execution_count": n, "outputs": cell.get("outputs", [])}
        written["metadata"]["colab"] = {"base_uri": "https://localhost:8080/"}
        written["metadata"]["outputId"] = str(uuid.UUID(int=n))
    return written
