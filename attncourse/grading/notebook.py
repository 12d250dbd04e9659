"""Read notebooks as they come back: any nbformat 4, without ids, without metadata, with cells doubled."""

import json
from pathlib import Path

MAX_BYTES = 20 << 20


class NotebookError(ValueError):
    """The file is not a notebook that can be graded; the message says why."""


def code_cells(path: Path) -> list[str]:
    """The source of every code cell of the notebook at `path`, in order."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise NotebookError(
            f"{path.name} has {size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} are read. Clear outputs"
        )
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell.get("cell_type") == "code"]
        return ["".join(cell["source"]) for cell in code]
    except UnicodeDecodeError:
        raise NotebookError(f"{path.name} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        if path.suffix.lower() in (".html", ".htm"):
            raise NotebookError(f"{path.name} is a web page, not a notebook: ask for the .ipynb file") from None
        raise NotebookError(f"{path.name} is not whole JSON: {error}") from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise NotebookError(f"{path.name} is JSON, but not a notebook of format 4") from None
