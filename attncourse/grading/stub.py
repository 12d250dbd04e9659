"""The course as a learner's code sees it in the jail: `check` that does nothing, and what the exercises give."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import attncourse

PACKAGE = Path(attncourse.__file__).parent

# What the worker runs on. None of it holds a reference, an expectation or a seed.
WORKER = (
    *("checks/script.py", "checks/compute.py", "grading/wire.py", "grading/isolation.py", "grading/filters.py"),
    *("grading/users.py", "grading/worker.py"),
)
SHARED = ("attention.py", "masks.py")  # imported by the modules that exercises give

INIT = '''"""The course's package in the grading jail: `check` shows nothing here, the examiner judges."""


def check(id, answer, variant=None):
    return None
'''


def write_stub(folder: Path, given: Iterable[str]) -> None:
    """Write the stub package into `folder`; `given` are names of modules, as in `Exercise.given`."""
    package = folder / "attncourse"
    files = [*WORKER, *SHARED, *(f"{name.removeprefix('attncourse.').replace('.', '/')}.py" for name in given)]
    for name in files:
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent != package:
            (target.parent / "__init__.py").write_text("")
        shutil.copyfile(PACKAGE / name, target)
    (package / "__init__.py").write_text(INIT)
    for path in (package, *package.rglob("*")):  # to be read by another user, whatever the umask
        path.chmod(0o755 if path.is_dir() else 0o644)


def copy_standard_library(source: Path, home: Path) -> None:
    """Put Python's own modules below `home`, a PYTHONHOME: for level B, where they are in a folder closed to others."""
    unneeded = shutil.ignore_patterns(
        *("site-packages", "test", "tests", "idlelib", "ensurepip", "tkinter", "lib2to3", "config-*", "turtledemo")
    )
    library = shutil.copytree(source, home / "lib" / source.name, ignore=unneeded, copy_function=_link)
    for folder in (home, home / "lib", library):
        folder.chmod(0o755)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copyfile(source, target)
        os.chmod(target, 0o644)
