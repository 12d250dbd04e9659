"""Run notebooks as Colab would: `python -m scripts.colab_check [NOTEBOOK…]` (all of them when none is named).

An environment with Colab's versions (.venv-colab, made once), the course's wheel from an address, and each notebook
alone in an empty folder. Then what Colab saves is graded, and must get the points of the original. What differs from
Colab: this machine's Python, torch as in requirements.txt, no GPU, a `google.colab` that is only a name.
"""

import argparse
import contextlib
import copy
import functools
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from attncourse.grading.examiner import Exam, Workers, exercises_in, grade
from attncourse.grading.notebook import code_cells
from scripts import setup_cell
from scripts.colab_save import colab_save
from scripts.wheel import build_wheel

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-colab"
PYTHON = ENVIRONMENT / "bin" / "python"
ADDED = {"attncourse", "num2words"}  # all that a notebook may add to the environment

# From Colab's published list of August 2026, as far as the course meets them. torch is installed before these.
PACKAGES = """
pip==24.1.2
ipython==7.34.0
ipykernel==6.17.1
ipywidgets==7.7.1
widgetsnbextension==3.6.10
jupyterlab_widgets==3.0.16
jupyter_client==7.4.9
jupyter_core==5.9.1
traitlets==5.7.1
pyzmq==26.2.1
tornado==6.5.7
psutil==5.9.5
debugpy==1.8.15
nest-asyncio==1.6.0
notebook==6.5.7
nbformat==5.11.1
nbclient==0.10.4
matplotlib-inline==0.2.2
numpy==2.1.3
matplotlib==3.10.0
contourpy==1.3.3
cycler==0.12.1
pillow==11.3.0
Pygments==2.21.0
safetensors==0.8.0
"""

# Where notebooks ask `"google.colab" in sys.modules`.
KERNEL = "import google.colab; from ipykernel import kernelapp; kernelapp.launch_new_instance()"


@dataclass
class Run:
    """One notebook's run. error: nothing when all went well. points: as made and as saved, where it has exercises."""

    name: str
    seconds: float
    error: str = ""
    points: str = ""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would make the package importable from the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    local = ",".join(filter(None, [kept.get("no_proxy") or kept.get("NO_PROXY"), "127.0.0.1"]))
    quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # the debugger's warning at each start of a kernel
    return kept | quiet | {"no_proxy": local, "NO_PROXY": local}


def ask(code: str, cwd: Path) -> str:
    """What a line of Python prints in the Colab-like environment."""
    command = [PYTHON, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=clean_environment(), check=True, capture_output=True, text=True
    ).stdout.strip()


def pip(*arguments: str) -> None:
    """Run pip in the Colab-like environment; what it says is shown only when it fails."""
    done = subprocess.run([PYTHON, "-m", "pip", *arguments], env=clean_environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip {shlex.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def make_environment() -> None:
    """Make .venv-colab, unless one with these very packages is there."""
    torch = (
        os.environ.get("TORCH")
        or re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE).group()
    )
    stamp, wanted = ENVIRONMENT / "attncourse.stamp", torch + PACKAGES
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Making {ENVIRONMENT.name} (once, some minutes)", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip("install", *shlex.split(torch))
    pip("install", *PACKAGES.split())
    stamp.write_text(wanted)


def freeze() -> dict[str, str]:
    """Every package of the environment and its version."""
    code = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    return dict(json.loads(ask(code, ENVIRONMENT)))


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of a file, served on this machine while the context lasts."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(path.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{path.name}"
        server.shutdown()


def kernel_in(folder: Path) -> KernelSpecManager:
    """A kernel of the environment that believes it is in Colab."""
    package = folder / "fake" / "google" / "colab"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text('"""Only a name."""\n')
    (package.parent / "__init__.py").write_text("")
    spec = folder / "kernels" / "colab"
    spec.mkdir(parents=True, exist_ok=True)
    argv = [str(PYTHON), "-c", KERNEL, "-f", "{connection_file}"]
    record = {"argv": argv, "display_name": "Colab", "language": "python", "env": {"PYTHONPATH": str(folder / "fake")}}
    (spec / "kernel.json").write_text(json.dumps(record))
    return KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)


def execute(notebook: nbformat.NotebookNode, folder: Path, specs: KernelSpecManager, timeout: int) -> None:
    """Run a notebook from top to bottom in a folder; raises what nbclient raises."""
    manager = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs)
    client = NotebookClient(notebook, km=manager, timeout=timeout, resources={"metadata": {"path": str(folder)}})
    client.owns_km = True  # else its kernel stays until this program ends, with half a gigabyte
    client.execute(env=clean_environment())


def run(path: Path, address: str, folder: Path, specs: KernelSpecManager) -> Run:
    """Run the notebook at `path` alone in an empty folder, the package installed by its own first cell."""
    name = path.relative_to(ROOT).as_posix()
    pip("uninstall", "--yes", *ADDED)
    before, work = freeze(), Path(tempfile.mkdtemp(dir=folder))
    found = ask("import importlib.util; print(importlib.util.find_spec('attncourse'))", work)
    if found != "None":
        return Run(name, 0, f"the package is importable before the notebook installs it: {found}")
    original = nbformat.read(path, as_version=4)
    if setup_cell.stamp(copy.deepcopy(original)):
        return Run(name, 0, "it does not begin with the set-up cell; run: python -m scripts.setup_cell")
    notebook = copy.deepcopy(original)
    setup_cell.stamp(notebook, address)
    start, error = time.perf_counter(), ""
    try:
        execute(notebook, work, specs, timeout=300)
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except (CellTimeoutError, DeadKernelError) as failure:
        error = str(failure)
    seconds = time.perf_counter() - start
    error = error or moved_packages(before, freeze()) or wrong_origin(work) or other_outputs(original, notebook)
    return Run(name, seconds, error, "" if error else graded(path, notebook))


def moved_packages(before: dict[str, str], after: dict[str, str]) -> str:
    """What is wrong when the notebook changed a package that was there, or brought more than its own."""
    moved = {name for name in before | after if before.get(name) != after.get(name)} - ADDED
    return f"it changed packages: {', '.join(sorted(moved))}" if moved else ""


def wrong_origin(work: Path) -> str:
    """What is wrong when the package was not taken from the wheel."""
    origin = ask("import attncourse; print(attncourse.__file__)", work)
    return "" if Path(origin).is_relative_to(ENVIRONMENT) else f"the package came from {origin}"


def other_outputs(original: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> str:
    """What is wrong when a cell warned, or a cell whose output is committed printed something else."""
    for old, new in zip(original.cells, executed.cells, strict=True):
        streams = [output for output in new.get("outputs", []) if output.output_type == "stream"]
        said = {name: "".join(s.text for s in streams if s.name == name) for name in ("stdout", "stderr")}
        if said["stderr"]:
            return f"the cell {old.id!r} warned: {said['stderr'].strip()}"
        if old.get("outputs") and said["stdout"] != "".join(output.text for output in old.outputs):
            return f"the cell {old.id!r} printed something else: {said['stdout'].strip()}"
    return ""


def graded(path: Path, executed: nbformat.NotebookNode) -> str:
    """Points of the original and of the executed notebook as Colab saves it: "13 = 13". "" without exercises."""
    if path.parent.name == "notebooks":
        return ""
    fresh = nbformat.read(ROOT / "exercises" / path.name, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / path.name
        saved.write_text(colab_save(executed, fresh), encoding="utf-8")
        cells = code_cells(path), code_cells(saved)
    exams = [Exam(exercises_in(some), seeds=(0, 1)) for some in cells]
    with Workers(exams[0].given) as workers:
        before, after = (grade(some, exam, workers) for some, exam in zip(cells, exams, strict=True))
    same = [(v.exercise.id, v.kind) for v in before.verdicts] == [(v.exercise.id, v.kind) for v in after.verdicts]
    return f"{before.points} {'=' if same and before.points == after.points else '≠'} {after.points}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the notebooks and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    folders = ("notebooks", "solutions", "exercises")
    every = [path for name in folders for path in sorted((ROOT / name).glob("*.ipynb"))]
    chosen = [path.resolve() for path in parser.parse_args(argv).notebooks] or every
    make_environment()
    runs = []
    with tempfile.TemporaryDirectory(prefix="attncourse-colab-") as temporary:
        folder = Path(temporary)
        specs = kernel_in(folder)
        with served(build_wheel(folder / "wheel")) as address:
            print(f"{'notebook':<34} {'s':>5}  ok   points, original and as Colab saves it", flush=True)
            for path in chosen:
                runs.append(run(path, address, folder, specs))
                last = runs[-1]
                ok = not last.error and "≠" not in last.points
                print(f"{last.name:<34} {last.seconds:5.1f}  {'ok ' if ok else 'NO '}  {last.points}", flush=True)
                if last.error:
                    print(f"    {last.error}", file=sys.stderr)
    failed = [one.name for one in runs if one.error or "≠" in one.points]
    print(f"{len(runs)} notebooks in {sum(one.seconds for one in runs):.0f} s, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
