"""Run what depends on the device, and write what came of it: `python -m scripts.tested_on --device cuda`.

Notebooks and solutions, whose marked outputs are compared with the committed ones, which a CPU printed; comparisons
with production implementations; the mechanisms' own tests; the checks of exercises. All that passed, failed or was
skipped is counted in `attncourse/data/tested_on.json`, with date, device and versions; the book shows it.
With PART… only these are run, and nothing is written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import nbformat
import torch

from attncourse.lab.records import write_json

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "attncourse" / "data" / "tested_on.json"
PARTS = {
    "notebooks": "--nbval-lax --nbval-cell-timeout=120 --dist loadfile notebooks solutions",
    "comparisons": "--dist loadgroup tests/oracles",
    "mechanisms": "--dist loadgroup -m not~browser tests/lab "
    + " ".join(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py"))),
    "checks": "--dist loadgroup tests/checks",
}


def refusal(device: str) -> str:
    """Why nothing can be tested on this device, or ""."""
    if device != "cuda" or torch.cuda.is_available():
        return ""
    built = f"is built for CUDA {torch.version.cuda}, and finds no GPU (see nvidia-smi)"
    why = built if torch.version.cuda else "is built without CUDA (make setup TORCH='…' installs another)"
    return f"No GPU: torch.cuda.is_available() is False. PyTorch {torch.__version__} {why}. Nothing was run."


def about(device: str) -> dict:
    """The device and what runs on it."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version(name) for name in ("numpy", "transformers")}
    if device == "cpu":
        return {"device": "cpu", "name": f"{platform.machine()}, {os.cpu_count()} cores", "versions": versions}
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    found = {"device": device, "name": torch.cuda.get_device_name(), "capability": capability}
    return found | {"versions": versions | {"cuda": torch.version.cuda}}


def counted(report: str, device: str) -> dict[str, int]:
    """Of a JUnit report: how many cases passed, failed, were skipped, and passed with this device's name."""
    counts = Counter(passed=0, failed=0, skipped=0, on_device=0)
    for case in ET.fromstring(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        counts[outcome] += 1
        counts["on_device"] += outcome == "passed" and device in case.get("name", "").partition("[")[2]
    return dict(counts)


def marked() -> int:
    """How many cells of notebooks and solutions have an output that is compared."""
    paths = [path for folder in ("notebooks", "solutions") for path in (ROOT / folder).glob("*.ipynb")]
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells]
    return sum("nbval-check-output" in cell.metadata.get("tags", []) and bool(cell.get("outputs")) for cell in cells)


def run(part: str, device: str, processes: int) -> dict:
    """The counts and seconds of one part. Raises RuntimeError where pytest could not run it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    arguments = [word.replace("~", " ") for word in PARTS[part].split()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", str(processes), f"--junitxml={report}", *arguments]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | hidden)
        seconds = time.perf_counter() - start
        if done.returncode not in (0, 1) or not report.exists():  # 1: some failed
            raise RuntimeError(f"{part}: pytest ended with status {done.returncode}; see above")
        found = counted(report.read_text("utf-8"), device) | {"seconds": round(seconds)}
    return found | ({"outputs_compared": marked()} if part == "notebooks" else {})


def written(content: dict, entry: dict) -> dict:
    """The content with this entry in place of an older one of the same device."""
    others = [one for one in content["runs"] if (one["device"], one["name"]) != (entry["device"], entry["name"])]
    return {"runs": sorted([*others, entry], key=lambda one: (one["device"], one["name"]))}


def main(argv: list[str] | None = None) -> int:
    """Run the parts; returns the exit status: 1 when a test failed, 2 when nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if why := refusal(options.device):
        print(why, file=sys.stderr)
        return 2
    entry = {"date": date.today().isoformat()} | about(options.device)
    parts = {name: run(name, options.device, options.processes) for name in options.parts or PARTS}
    for name, counts in parts.items():
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    if not options.parts:
        before = json.loads(TARGET.read_text("utf-8")) if TARGET.exists() else {"runs": []}
        write_json(TARGET, written(before, entry | {"parts": parts}))
        print(f"written: {TARGET.relative_to(ROOT)}")
    return int(any(counts["failed"] for counts in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
