"""The page of devices: what `attncourse/data/tested_on.json` says, and nothing that was not measured."""

import json
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

TESTED = Path(__file__).parents[2] / "attncourse" / "data" / "tested_on.json"
PARTS = ("notebooks", "comparisons", "mechanisms", "checks")


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


def setup(app):
    app.add_directive("tested-on", TestedOn)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
