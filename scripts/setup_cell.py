"""The set-up cell: the first code cell of every notebook, and where the publishing workflow writes its address.

python -m scripts.setup_cell           put it into every notebook of notebooks/ and solutions/
python -m scripts.setup_cell --check   exit 1 when one has another

exercises/ get it from solutions/, by scripts/exercises.py. The cell is plain Python: the grader, nbclient, nbval and
a script made from the notebook run it as it stands.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
ID = "install"
METADATA = {"tags": ["remove-cell"]}  # the book does not show it
UNSTAMPED = 'WHEEL = ""'
SOURCE = """
# Installs the course's package where it is missing, as in Colab, and touches
# no other package. Where it is there, does nothing.
import importlib.util
import subprocess
import sys

WHEEL = ""  # the address of the package
found = importlib.util.find_spec("attncourse")
if found is None or found.origin is None:  # a mere folder of that name
    if not WHEEL:
        sys.exit(
            "The package attncourse is not installed here, and this copy of the "
            "notebook does not say where to get it. In Colab: open it from the "
            "published book. On your own machine: run `make book` in the course's "
            "folder, then open it with `.venv/bin/jupyter lab`."
        )
    install = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", WHEEL]
    pip = subprocess.run([*install, "num2words"], capture_output=True, text=True)
    if pip.returncode:
        reason = pip.stderr.strip().rpartition("\\n")[2]
        sys.exit(f"Run this cell again: {WHEEL} could not be installed. {reason}")
    importlib.invalidate_caches()
""".strip()


def source(address: str = "") -> str:
    """The cell's code, with the wheel's address where one is given."""
    if not address:
        return SOURCE
    if not address.startswith(("https://", "http://127.0.0.1:")) or set(address) & set("\"'\\ \n"):
        raise ValueError(f"address={address!r} is no plain https address of a wheel")
    return SOURCE.replace(UNSTAMPED, f'WHEEL = "{address}"', 1)


def stamp(notebook: NotebookNode, address: str = "") -> bool:
    """Make the set-up cell the first code cell of a notebook; returns whether that changed it."""
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    wanted = nbformat.v4.new_code_cell(source(address), id=ID, metadata=nbformat.from_dict(METADATA))
    if notebook.cells[first : first + 1] == [wanted]:
        return False
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != ID]
    notebook.cells.insert(first, wanted)
    nbformat.validate(notebook)
    return True


def notebooks() -> list[Path]:
    """The notebooks that are written by hand."""
    return sorted(path for folder in ("notebooks", "solutions") for path in (ROOT / folder).glob("*.ipynb"))


def main(argv: list[str] | None = None) -> int:
    """Put the cell into the notebooks, or check them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, and fail when a notebook has another")
    check = parser.parse_args(argv).check
    changed = []
    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        if stamp(notebook):
            changed.append(path.relative_to(ROOT))
            if not check:
                path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    if check:
        for path in changed:
            print(f"{path} does not begin with the set-up cell; run: python -m scripts.setup_cell", file=sys.stderr)
        return 1 if changed else 0
    print(f"{len(notebooks())} notebooks, {len(changed)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
