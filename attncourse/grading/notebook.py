"""Read notebooks as they come back: any nbformat 4, without ids, without metadata, with cells doubled."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = 20 << 20
MAX_CODE, MAX_CELLS = 900_000, 5000  # bytes of all code cells as JSON, and cells: what one message to a worker holds
MAX_TEXT, MAX_TEXTS = 20_000, 2_000_000  # characters kept of one cell to be read by people, and of a notebook
IMAGE = re.compile(r"data:image/[\w.+-]+;base64,[\w+/=]+")


class NotebookError(ValueError):
    """The file is not a notebook that can be graded; the message says why."""


def code_cells(path: Path) -> list[str]:
    """The source of every code cell of the notebook at `path`, in order."""
    check_size(path.name, path.stat().st_size)
    return cells_of(path.name, path.read_bytes())


def check_size(name: str, size: int) -> None:
    """Raise NotebookError for a file that is too large to be read."""
    if size > MAX_BYTES:
        raise NotebookError(f"{name} has {size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} are read. Clear outputs")


def cells_of(name: str, data: bytes) -> list[str]:
    """The source of every code cell of the notebook `name`, whose content is `data`."""
    return read(name, data)[0]


def read(name: str, data: bytes) -> tuple[list[str], list[tuple[str, str]]]:
    """The source of every code cell, and (id, text) of every cell, of the notebook `name` with the content `data`.

    id: nbgrader's where the cell has one, else the notebook's, else empty; text: cut to MAX_TEXT + 1 characters.
    """
    check_size(name, len(data))
    if not data.strip():
        raise NotebookError(f"{name} is an empty file: download the notebook and hand it in again")
    try:
        cells = json.loads(data.decode("utf-8-sig"))["cells"]
        code = [cell for cell in cells if cell.get("cell_type") == "code"]
        found = ["".join(cell["source"]) for cell in code]
    except UnicodeDecodeError:
        raise NotebookError(f"{name} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        if name.lower().endswith((".html", ".htm")):
            raise NotebookError(f"{name} is a web page, not a notebook: ask for the .ipynb file") from None
        where = f"{name} is cut off or damaged in line {error.lineno} (not whole JSON)"
        raise NotebookError(f"{where}: download it and hand it in again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise NotebookError(f"{name} is JSON, but not a notebook of format 4") from None
    if (size := len(json.dumps(found))) > MAX_CODE:
        raise NotebookError(f"{name} has {size / 1e6:.1f} MB of code; at most {MAX_CODE / 1e6:.1f} are run")
    if len(found) > MAX_CELLS:
        raise NotebookError(f"{name} has {len(found)} code cells; at most {MAX_CELLS} are run")
    return found, list(_texts(cells))


def _texts(cells: list[Any]) -> Iterator[tuple[str, str]]:
    """(id, text) of the cells, whatever is in them, up to MAX_TEXTS characters in all."""
    left = MAX_TEXTS
    for cell in cells:
        source, metadata = cell.get("source"), cell.get("metadata")
        lines = source if isinstance(source, list) else [source]
        text = "".join(line for line in lines if isinstance(line, str))
        text = IMAGE.sub("an image, in the notebook", text)[: min(MAX_TEXT + 1, left)]
        left -= len(text)
        graded = metadata.get("nbgrader") if isinstance(metadata, dict) else None
        ids = [graded.get("grade_id") if isinstance(graded, dict) else None, cell.get("id")]
        yield next((id for id in ids if isinstance(id, str)), ""), text
