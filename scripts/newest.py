"""Install the newest versions, run the checks, report: `make newest`, in a fresh clone. The weekly workflow runs it.

Writes _build/newest.md: which versions are not the pinned ones, which checks passed, and the end of what failed said.
--issue opens an issue with it, or updates the open one, or closes that when all is well. Plain Python: it runs first.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "_build" / "newest.md"
TITLE = "The newest versions of what the course needs"
STEPS = {  # name: what runs; the first must pass for the others to run
    "set-up": ["scripts/setup.sh", "test"],
    "unit tests": ["make", "unit"],
    "notebooks": ["make", "notebooks-run"],
    "book and pages": ["make", "pages"],
}
LINES = 40  # of what a failed step said
BODY = 60_000  # characters, of an issue's 65,536
Results = dict[str, tuple[int, str]]


def run(command: list[str]) -> tuple[int, str]:
    """Run a step with the pins off; its exit status and what it said, which is shown as well."""
    environment = os.environ | {"NEWEST": "1"}
    step = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = []
    for line in step.stdout:
        print(line, end="", flush=True)
        said.append(line)
    return step.wait(), "".join(said)


def run_steps(steps: dict[str, list[str]]) -> Results:
    """Run the steps one after the other, and none after a first one that fails."""
    results: Results = {}
    for name, command in steps.items():
        results[name] = run(command)
        if len(results) == 1 and results[name][0]:
            break
    return results


def pinned() -> dict[str, str]:
    """The packages that requirements name, by their lower-case names, and their versions."""
    lines = "\n".join((ROOT / name).read_text("utf-8") for name in ("requirements.txt", "requirements-test.txt"))
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE)}


def installed() -> dict[str, str]:
    """Every package of .venv and its version; nothing where there is none."""
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"],
        capture_output=True,
        text=True,
    )
    packages = json.loads(done.stdout) if done.returncode == 0 else []
    return {package["name"].lower(): package["version"] for package in packages}


def report(pins: dict[str, str], versions: dict[str, str], results: Results) -> str:
    """The report as Markdown: steps, moved versions, and the end of what each failed step said."""
    rows = [f"| {name} | {'passed' if status == 0 else 'failed'} |" for name, (status, _) in results.items()]
    rows += [f"| {name} | not run |" for name in STEPS if name not in results]
    moved = [(name, pin, versions[name]) for name, pin in sorted(pins.items()) if versions.get(name, pin) != pin]
    text = ["| check | with the newest versions |", "| --- | --- |", *rows, ""]
    text += [f"{len(moved)} of {len(pins)} packages are not the pinned version.", ""]
    if moved:
        text += ["| package | pinned | newest that fits |", "| --- | --- | --- |"]
        text += [f"| {name} | {pin} | {version} |" for name, pin, version in moved]
    for name, (status, said) in results.items():
        if status:
            end = re.sub(r"\x1b\[[\d;]*m", "", said).strip().splitlines()[-LINES:]
            text += ["", f"The end of what {name} said:", "", "~~~text", *(line[:500] for line in end), "~~~"]
    return "\n".join(text)[:BODY] + "\n"


def gh(*arguments: str) -> str:
    """What GitHub's command line answers; raises CalledProcessError when it fails."""
    return subprocess.run(["gh", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def tell(failed: bool) -> str:
    """Open, update or close the issue; returns what was done."""
    if not json.loads(gh("repo", "view", "--json", "hasIssuesEnabled"))["hasIssuesEnabled"]:
        return "issues are switched off in this repository: the report is in the summary only"
    issues = json.loads(gh("issue", "list", "--search", f'"{TITLE}" in:title', "--json", "number,title"))
    number = next((str(issue["number"]) for issue in issues if issue["title"] == TITLE), None)
    if failed and number is None:
        return "opened " + gh("issue", "create", "--title", TITLE, "--body-file", str(REPORT)).strip()
    if failed:
        return "updated " + gh("issue", "edit", number, "--body-file", str(REPORT)).strip()
    if number:
        gh("issue", "close", number, "--comment", "All checks pass with the newest versions.")
        return f"closed #{number}"
    return "no issue is open, and none is needed"


def main(argv: list[str] | None = None) -> int:
    """Run everything and report; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--issue", action="store_true", help="open, update or close an issue, with gh")
    options = parser.parse_args(argv)
    if (ROOT / ".venv").exists():
        print("There is a .venv already, whose versions this would change: run it in a fresh clone.", file=sys.stderr)
        return 2
    results = run_steps(STEPS)
    failed = any(status for status, _ in results.values())
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report(pinned(), installed(), results), "utf-8")
    print(f"\n{REPORT.read_text('utf-8')}\nWritten to {REPORT}")
    if options.issue:
        print(tell(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
