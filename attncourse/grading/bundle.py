"""What instructors need of an assignment: points, reference, and autograders for Gradescope, nbgrader and GitHub."""

import csv
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import attncourse
from attncourse.checks import exercise
from attncourse.grading.handout import ANSWER, STUB, AssignError, Chapter, Links, Question, course_folder, written
from attncourse.grading.key import Assignment, Key

SHIPPED = Path(attncourse.__file__).parent / "data" / "assign"
EPOCH = {"SOURCE_DATE_EPOCH": "315532800"}  # the dates inside a wheel: the same sources give the same bytes
NEEDED = ("numpy", "matplotlib", "ipython")  # beside torch, where notebooks are graded
KEY_NAME = "instructor.key"


def build_wheel(course: Path, folder: Path) -> Path:
    """The wheel of the course's package, built from a copy of its sources so that the checkout stays as it is."""
    copied = folder / "source"
    shutil.copytree(course / "attncourse", copied / "attncourse", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(course / name, copied)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    if _has_setuptools():  # then nothing has to be downloaded
        command.append("--no-build-isolation")
    command += ["--wheel-dir", str(folder), str(copied)]
    built = subprocess.run(command, capture_output=True, text=True, env=os.environ | EPOCH)
    if built.returncode:
        reason = (built.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise AssignError(f"the course's package could not be packed: {reason}; try pip install 'setuptools>=77'")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def add(archive: zipfile.ZipFile, name: str, content: str | bytes, mode: int = 0o644) -> None:
    """Put a file into a zip, always with the same date, so that equal contents are equal zips."""
    member = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    member.external_attr, member.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
    archive.writestr(member, content)


def write(
    folder: Path,
    assignment: Assignment,
    asked: Sequence[Question],
    key: Key,
    chapters: Sequence[Chapter],
    links: Links,
    wheel: Path,
    torch: str,
) -> None:
    """Write the instructors' folder, which only its owner can read."""
    folder.mkdir(mode=0o700)
    secret = f"{assignment.id}-gradescope-SECRET.zip"
    described = json.dumps(_described(assignment, asked), indent=1, ensure_ascii=False) + "\n"
    (folder / "assignment.json").write_text(described, "utf-8")
    (folder / "points.csv").write_text(_points(assignment, asked), "utf-8")
    (folder / "README.md").write_text(_readme(assignment, asked, secret), "utf-8")
    (folder / "reference").mkdir()
    for chapter in chapters:
        book = chapter.book(assignment.title, "reference", links)
        (folder / "reference" / f"{chapter.name}.ipynb").write_text(written(book), "utf-8")
    gradescope(folder / secret, assignment, key, wheel, torch)
    nbgrader(folder / "nbgrader", assignment, chapters, links)
    github(folder / "github", described, wheel, torch)


def _described(assignment: Assignment, asked: Sequence[Question]) -> dict:
    """The assignment as the key has it, with what people want to read. It holds nothing secret."""
    data = asdict(assignment)
    for item in data["exercises"]:
        task = exercise(item["id"])
        item |= {"title": task.title, "notebook": f"{task.chapter}.ipynb", "minutes": task.minutes}
    texts = {q.id: q for q in asked}
    data["questions"] = [
        {**item, "text": texts[item["id"]].text, "notebook": f"{texts[item['id']].chapter}.ipynb"}
        for item in data["questions"]
    ]
    return data


def _rows(assignment: Assignment, asked: Sequence[Question]) -> list[list[str]]:
    rows = [["notebook", "exercise", "title", "variant", "graded", "points"]]
    for item in assignment.exercises:
        task = exercise(item.id)
        rows.append([f"{task.chapter}.ipynb", item.id, task.title, item.variant or "", "by program", str(item.points)])
    rows += [[f"{q.chapter}.ipynb", q.id, q.title, "", "by hand", f"{q.points:g}"] for q in asked]
    total = sum(item.points for item in assignment.exercises) + sum(q.points for q in asked)
    return [*rows, ["", "", "all", "", "", f"{total:g}"]]


def _points(assignment: Assignment, asked: Sequence[Question]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(_rows(assignment, asked))
    return text.getvalue()


def _readme(assignment: Assignment, asked: Sequence[Question], secret: str) -> str:
    """What instructors are told."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in _rows(assignment, asked)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
    text = (SHIPPED / "instructors.md").read_text("utf-8")
    for name, value in {"TITLE": assignment.title, "TABLE": table, "ID": assignment.id, "SECRET": secret}.items():
        text = text.replace(f"@{name}@", value)
    return text


def gradescope(path: Path, assignment: Assignment, key: Key, wheel: Path, torch: str) -> None:
    """The zip that Gradescope makes an autograder of. It holds the key, with this assignment alone."""
    requirements = "".join(f"{pinned(course_folder(), name)}\n" for name in NEEDED)
    with zipfile.ZipFile(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b"), "w") as archive:
        add(archive, "setup.sh", shipped("setup.sh", torch), 0o755)
        add(archive, "run_autograder", shipped("run_autograder", torch), 0o755)
        add(archive, "requirements.txt", requirements)
        add(archive, KEY_NAME, _key_of(key, assignment), 0o600)
        add(archive, wheel.name, wheel.read_bytes())
        add(archive, "SECRET.md", shipped("secret.md", torch))


def _key_of(key: Key, assignment: Assignment) -> str:
    """A key's file with one of its assignments."""
    data = json.loads(key.path.read_text("utf-8"))
    return json.dumps({"secret": data["secret"], "assignments": [asdict(assignment)]}, indent=1) + "\n"


def nbgrader(folder: Path, assignment: Assignment, chapters: Sequence[Chapter], links: Links) -> None:
    """A course folder of nbgrader: the sources of the assignment, and its settings."""
    source = folder / "source" / assignment.id
    source.mkdir(parents=True)
    for chapter in chapters:
        (source / f"{chapter.name}.ipynb").write_text(written(chapter.book(assignment.title, "source", links)), "utf-8")
    stub = "\n".join(STUB)
    (folder / "nbgrader_config.py").write_text(
        "# What `nbgrader` reads in this folder.\n"
        "c = get_config()\n"
        'c.CourseDirectory.course_id = "attncourse"\n'
        f'c.ClearSolutions.code_stub = {{"python": {stub!r}}}\n'
        f"c.ClearSolutions.text_stub = {ANSWER!r}\n"
        "c.ClearSolutions.enforce_metadata = True\n"
        "c.ExecutePreprocessor.timeout = 120  # seconds for a cell\n",
        "utf-8",
    )


def github(folder: Path, described: str, wheel: Path, torch: str) -> None:
    """What a repository needs that grades on push: a workflow, the assignment without the key, the package."""
    (folder / ".github" / "workflows").mkdir(parents=True)
    (folder / ".github" / "attncourse").mkdir()
    (folder / ".github" / "workflows" / "grade.yml").write_text(shipped("grade.yml", torch), "utf-8")
    (folder / ".github" / "attncourse" / "assignment.json").write_text(described, "utf-8")
    shutil.copy(wheel, folder / ".github" / "attncourse")


def pinned(course: Path, package: str) -> str:
    """A package with its version in the course's requirements."""
    lines = (course / "requirements.txt").read_text("utf-8").splitlines()
    found = [line.split("#")[0].strip() for line in lines if line.startswith(f"{package}==")]
    return found[0] if found else package


def shipped(name: str, torch: str) -> str:
    """A file of `data/assign`, with what pip is asked for to install torch."""
    return (SHIPPED / name).read_text("utf-8").replace("@TORCH@", torch)
