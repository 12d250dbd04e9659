"""What was tested on which device, and when results were last computed: what the committed records say."""

import json
import re
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
TESTED = ROOT / "attncourse" / "data" / "tested_on.json"
PARTS = ("notebooks", "comparisons", "mechanisms", "checks")
VERIFIED = (  # what, the records with their dates, the command that makes them
    ("Mechanisms against other implementations", "attncourse/data/oracles.json", "make oracles"),
    ("Theorems of the map", "attncourse/data/map.json", "make map"),
    ("Whether the tests notice changes", "tests/mutation/results.json", "make mutation"),
    ("Experiments and measurements", "attncourse/data/lab/*.json", "make lab, make bench"),
)


def tested_markdown(content):
    """A table of the runs, one of their counts, and a line for a kind of device that none was made on."""
    rows = ["| device | tested on | Python, PyTorch, CUDA |", "| --- | --- | --- |"]
    counts = [
        "| device | what ran | passed | failed | skipped | with the device's name | seconds |",
        "| --- " * 7 + "|",
    ]
    for run in content["runs"]:
        versions = ", ".join(run["versions"][name] for name in ("python", "torch", "cuda") if name in run["versions"])
        capability = f", compute capability {run['capability']}" if "capability" in run else ""
        kind = "GPU" if run["device"] == "cuda" else "CPU"
        rows.append(f"| {kind}: {run['name']}{capability} | {run['date']} | {versions} |")
        for part in PARTS:
            found = run["parts"][part]
            numbers = [found[name] for name in ("passed", "failed", "skipped", "on_device", "seconds")]
            counts.append(f"| {run['name']} | {part} | {' | '.join(f'{n:,}' for n in numbers)} |")
    made = {run["device"] for run in content["runs"]}
    rows += [
        f"| {kind} | not measured yet | |" for device, kind in (("cpu", "CPU"), ("cuda", "GPU")) if device not in made
    ]
    compared = [
        f"{run['name']}: {run['parts']['notebooks']['outputs_compared']:,} marked outputs of notebooks and solutions "
        "were compared with the committed ones."
        for run in content["runs"]
    ]
    return "\n".join([*rows, "", *(counts if made else []), "", *compared])


class TestedOn(SphinxDirective):
    """The tables."""

    def run(self):
        self.env.note_dependency(str(TESTED))
        return self.parse_text_to_nodes(tested_markdown(json.loads(TESTED.read_text("utf-8"))))


def verified() -> str:
    """A table of when each kind of result was last computed: the dates stand in the committed records."""
    lines = ["| what | last verified | again with |", "| --- | --- | --- |"]
    for what, pattern, command in VERIFIED:
        found = [re.findall(r'"date": "(\d{4}-\d\d-\d\d)"', path.read_text("utf-8")) for path in ROOT.glob(pattern)]
        dates = sorted(date for dates in found for date in dates)
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines.append(f"| {what} | {span} | `{'`, `'.join(command.split(', '))}` |")
    return "\n".join(lines)


class Verified(SphinxDirective):
    def run(self):
        for _, pattern, _ in VERIFIED:
            for path in ROOT.glob(pattern):
                self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(verified())


def setup(app):
    app.add_directive("last-verified", Verified)
    app.add_directive("tested-on", TestedOn)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
