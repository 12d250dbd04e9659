"""Extensions of the book as modules, which import each other by name."""

import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load(name):
    folder = str(ROOT / "book" / "_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)
