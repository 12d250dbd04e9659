"""Run notebooks and keep only the outputs that nbval compares: those of cells with `# NBVAL_CHECK_OUTPUT`.

python scripts/notebooks.py notebooks/01_bahdanau.ipynb …   (all of notebooks/ when none is named)
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def refresh(path: Path) -> float:
    """Run the notebook at `path` from its own folder and write it back; returns the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        marked = "NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in cell.metadata.get("tags", [])
        texts = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
        if marked and not texts:
            raise SystemExit(f"{path.name}: the cell {cell.id!r} is marked for nbval but prints nothing")
        cell.execution_count = cell.execution_count if marked else None  # nbval takes an output without it for stale
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="".join(texts))] if marked else []
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return seconds


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(f"{path.name}: {refresh(path.resolve()):.0f} s")
