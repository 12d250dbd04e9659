"""What the commands share: tables, counts, near names, and what to say of a mistake."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows of cells in columns, those of `right` to the right."""
    right = set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row))
        for row in rows
    )
    return "\n".join(map(str.rstrip, lines))


def count(text: str) -> int:
    """A whole number, 1 or more, as argparse wants it read."""
    try:
        number = int(text.replace(",", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return number


def near(name: str, known: Sequence[str]) -> str:
    """ "Did you mean …?", or all the names where none is near."""
    found = difflib.get_close_matches(name.lower(), known, 3)
    return f"did you mean {' or '.join(found)}?" if found else f"it must be one of {', '.join(known)}"


def failed(command: str, message: object, status: int) -> int:
    """Say on the error output what is wrong; returns the exit status."""
    print(f"attncourse {command}: {message}", file=sys.stderr)
    return status
