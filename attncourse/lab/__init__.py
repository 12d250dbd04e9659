"""The laboratory: small tasks, one training loop, and the experiments of `make lab`."""

import json
from importlib.resources import files
from typing import Any


def load_result(name: str) -> Any:
    """The committed result `data/lab/<name>.json` of an experiment, with its provenance."""
    return json.loads((files("attncourse") / "data" / "lab" / f"{name}.json").read_text(encoding="utf-8"))
