"""The figures of the last run, results.json: how many mutants of each module were made, tried, killed, explained."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from tests.mutation.mutants import MODULES

PATH = Path(__file__).with_name("results.json")
REASONS = Path(__file__).with_name("explained.json")  # why no test can kill a mutant: reason, module, mutants
KILLED, SURVIVED = "killed", "survived"
HOW = "mutants: all that can be made; tried: a sample of them, drawn with a fixed seed; explained: in explained.json"


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def load() -> dict[str, Any]:
    return json.loads(PATH.read_text("utf-8")) if PATH.exists() else {"modules": {}}


def reasons() -> dict[str, dict[str, list[str]]]:
    return json.loads(REASONS.read_text("utf-8"))


def explained(module: str) -> set[str]:
    """The mutants of a module that are listed as equivalent."""
    return {id for modules in reasons().values() for id in modules.get(module, [])}


def row(module: str, made: int, verdicts: dict[str, dict[str, Any]], source: str) -> dict[str, Any]:
    """A module's figures, and a few kills that the ordinary tests repeat."""
    survived = {id for id, verdict in verdicts.items() if verdict["verdict"] == SURVIVED}
    kills = sorted((verdict["by"], id) for id, verdict in verdicts.items() if verdict["verdict"] == KILLED)
    own = [kill for kill in kills if kill[0].startswith(f"tests/test_{module}.py")] or kills
    return {
        "source": source,
        "mutants": made,
        "tried": len(verdicts),
        "killed": len(kills),
        "explained": len(survived & explained(module)),
        "survivors": sorted(survived - explained(module)),
        "sample": [{"mutant": id, "killed_by": by} for by, id in random.Random(module).sample(own, min(3, len(own)))],
    }


def share(rows: list[dict[str, Any]]) -> float:
    """What part of the mutants that are not equivalent is killed."""
    killed, survived = sum(row["killed"] for row in rows), sum(len(row["survivors"]) for row in rows)
    return killed / max(killed + survived, 1)


def repeated(count: int) -> list[tuple[str, str, str]]:
    """(module, mutant, test that kills it) for some modules, drawn with a fixed seed."""
    rows = load()["modules"]
    chosen = random.Random(8).sample(sorted(rows), min(count, len(rows)))
    return [(module, kill["mutant"], kill["killed_by"]) for module in chosen for kill in rows[module]["sample"][:1]]


def write(rows: dict[str, dict[str, Any]], versions: dict[str, str], date: str) -> None:
    before = load()["modules"]
    modules = {module: rows.get(module, before.get(module)) for module in MODULES if module in rows or module in before}
    every = list(modules.values())
    total = {
        "mutants": sum(row["mutants"] for row in every),
        "tried": sum(row["tried"] for row in every),
        "killed": sum(row["killed"] for row in every),
        "explained": sum(row["explained"] for row in every),
        "survivors": sum(len(row["survivors"]) for row in every),
        "share_killed": round(share(every), 4),
    }
    content = {"how": HOW, "versions": versions, "date": date, "total": total, "modules": modules}
    PATH.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
