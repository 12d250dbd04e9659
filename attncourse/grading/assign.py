"""Make an assignment: choose exercises, draw their variants, write what students get and what instructors need.

Nothing that students get depends on the key, but for the variants, which they are told. Everything is made beside its
place and moved there at the end, so that nothing half-made is left when something fails.
"""

import contextlib
import difflib
import json
import os
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from attncourse.checks import CHAPTERS, exercise, exercises
from attncourse.checks.spec import Exercise, Task
from attncourse.grading import bundle
from attncourse.grading.handout import AssignError, Chapter, Links, Question, course_folder, written
from attncourse.grading.key import Assigned, Assignment, Key

GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?(?:/(?:tree|blob)/([\w.-]+)((?:/[\w.-]+)*))?/?")


@dataclass(frozen=True)
class Made:
    """What was written."""

    assignment: Assignment
    handout: Path
    bundle: Path
    new_key: bool


def assign(
    what: Sequence[str],
    title: str,
    key_path: Path,
    out: Path,
    *,
    variants: bool = False,
    questions: Sequence[Question] = (),
    site: str = "",
    colab: str = "",
    torch: str = "",
    wheel: Path | None = None,
) -> Made:
    """Make the assignment `title` of chapters and exercises, into the folder `out`, and note it in the key.

    site: address of the published book; colab: the folder on GitHub where the hand-out's notebooks will be; torch:
    pip's arguments for it, in the autograders; wheel: of the course's package, else it is built. Raises AssignError
    or KeyFileError, and then has changed nothing.
    """
    id, out, key_path = slug_of(title), Path(out), Path(key_path)
    tasks = choose(what)
    course = course_folder()
    _check_places(out, key_path)
    asked = _placed(questions, tasks)
    opener, raw = _github(colab)
    if set(torch) & set("\"'`$\\\n"):
        raise AssignError(f"torch={torch!r} goes into shell scripts as it is: without quotes, $ and the like")
    if site and not site.startswith("https://"):
        raise AssignError(f"site={site!r} is no address; it must begin with https://")
    new_key, new_out = not key_path.exists(), not out.exists()
    key = Key.make(key_path) if new_key else Key.open(key_path)
    try:
        assigned = tuple(Assigned(task.id, draw(key, id, task) if variants else None, task.points) for task in tasks)
        assignment = _noted(key, Assignment(id, title.strip(), date.today().isoformat(), assigned, _graded(asked)))
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".assign-", dir=out) as name:
            made = Path(name)
            wheel = wheel or bundle.build_wheel(course, made / "build")
            links = Links(f"{raw}{wheel.name}" if raw else wheel.name, site.rstrip("/"), opener)
            chapters = _chapters(assigned, asked)
            handout = made / f"{id}-students.zip"
            _write_handout(handout, assignment, chapters, asked, links, wheel)
            folder = made / f"{id}-instructors"
            bundle.write(
                folder, assignment, asked, key, chapters, links, wheel, torch or bundle.pinned(course, "torch")
            )
            places = [(path, out / path.name) for path in (handout, folder)]
            _keep(key, assignment, places)
    except BaseException:
        if new_out:
            shutil.rmtree(out, ignore_errors=True)
        if new_key:
            key_path.unlink(missing_ok=True)
        raise
    return Made(assignment, out / handout.name, out / folder.name, new_key)


def slug_of(title: str) -> str:
    """A title as part of file names: "Week 3" is "week-3"."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    if not slug or not title.isprintable():
        raise AssignError(f'{title!r} is no title: give one with a letter or a digit, on one line, as --title "Week 3"')
    return slug


def choose(what: Sequence[str]) -> list[Task]:
    """The exercises that chapters (by number or name) and ids stand for, in the order of the book."""
    if not what:
        raise AssignError("nothing is assigned: name chapters (13, or gqa) or exercises (gqa/repeat_kv)")
    named: dict[str, str] = {}
    for word in what:
        for task in _named(word):
            if task.id in named:
                by = "twice" if named[task.id] == word else f"by {named[task.id]!r} and by {word!r}"
                raise AssignError(f"{task.id} is named {by}; name each exercise once")
            named[task.id] = word
    return [task for task in exercises() if task.id in named]


def _named(word: str) -> list[Task]:
    """The exercises of one word of the command line."""
    name = word.strip().lower().removesuffix(".ipynb")
    if name.isdecimal() and name.isascii():
        if int(name) < len(CHAPTERS):
            return exercises(CHAPTERS[int(name)])
        raise AssignError(f"there is no chapter {word}; they are numbered 0 to {len(CHAPTERS) - 1}")
    if "/" not in name:
        name = re.sub(r"^\d\d_", "", name).replace("-", "_")
        if name in CHAPTERS:
            return exercises(name)
        raise AssignError(f"there is no chapter {word!r}; {_near(name, CHAPTERS)}")
    known = {task.id.lower(): task for task in exercises()}
    if name in known:
        return [known[name]]
    chapter = name.split("/")[0]
    among = [id for id in known if id.split("/")[0] == chapter] or list(known)
    said = _near(name, among) if chapter in CHAPTERS else _near(chapter, CHAPTERS)
    raise AssignError(f"there is no exercise {word!r}; {said}")


def _near(name: str, known: Sequence[str]) -> str:
    """ "Did you mean …?", or all the names where none is near."""
    found = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}"


def draw(key: Key, assignment: str, task: Task) -> str | None:
    """The variant that the key gives an exercise in an assignment; None where it has none."""
    if not isinstance(task, Exercise) or not task.variants:
        return None
    return key.choose(sorted(task.variants), "variant", assignment, task.id)


def read_questions(path: Path) -> list[Question]:
    """The questions of a YAML or JSON file: a list of {text, points}, and perhaps id and chapter."""
    try:
        text = Path(path).read_text("utf-8")
        data = json.loads(text) if Path(path).suffix.lower() == ".json" else _yaml(text, path)
    except (OSError, ValueError) as error:
        if isinstance(error, AssignError):
            raise
        raise AssignError(f"cannot read the questions in {path}: {error}") from None
    if isinstance(data, Mapping) and isinstance(data.get("questions"), list):
        data = data["questions"]
    if not isinstance(data, list):
        raise AssignError(f"{path} is no list of questions, each with text and points")
    found = []
    for number, item in enumerate(data, 1):
        if not isinstance(item, Mapping) or not {"text", "points"} <= set(item) <= {"text", "points", "id", "chapter"}:
            raise AssignError(f"question {number} of {path} must have text and points, may have id and chapter")
        found.append(question(item["text"], item["points"], str(item.get("id", "")), str(item.get("chapter", ""))))
    return found


def question(text: Any, points: Any, id: str = "", chapter: str = "") -> Question:
    """A question, or AssignError where it cannot be one."""
    if not isinstance(text, str) or not text.strip():
        raise AssignError("a question has no text")
    try:
        number = float(points)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(points, bool) or not 0 < number <= 1000:
        raise AssignError(f"a question's points must be a number above 0, not {points!r}: {text.strip()[:60]!r}")
    if id and not re.fullmatch(r"[\w-]{1,60}", id, re.ASCII):
        raise AssignError(f"{id!r} is no id of a question: use letters, digits, - and _")
    return Question(id, text.strip(), number, chapter)


# Parts of `assign`


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise AssignError(f"{path} is YAML: pip install pyyaml, or write the questions as JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AssignError(f"{path} is no YAML: {error}") from None


def _check_places(out: Path, key_path: Path) -> None:
    """Raise where something is in the way, or where the key would lie among what is handed out."""
    if out.exists() and not out.is_dir():
        raise AssignError(f"{out} is a file; name a folder: --out DIR")
    if out.is_dir() and (there := sorted(path.name for path in out.iterdir())):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise AssignError(f"{out} is not empty ({there[0]}{more}); name a new folder: --out DIR")
    if key_path.resolve().is_relative_to(out.resolve()):
        raise AssignError(f"the key must not lie in {out}, which is for handing out; name another place: --key FILE")
    if not key_path.parent.is_dir():
        raise AssignError(f"cannot write {key_path}: there is no folder {key_path.parent}")


def _placed(questions: Sequence[Question], tasks: Sequence[Task]) -> list[Question]:
    """The questions with their ids, and the notebook that each stands in."""
    books = list(dict.fromkeys(task.chapter for task in tasks))
    placed, ids = [], set()
    for number, asked in enumerate(questions, 1):
        id, chapter = asked.id or f"question-{number}", books[-1]
        if asked.chapter:
            wanted = {task.chapter for task in _named(asked.chapter)}
            chapter = next((book for book in books if book in wanted), "")
            if not chapter:
                raise AssignError(f"question {id} is for chapter {asked.chapter}, which is not assigned")
        if id in ids:
            raise AssignError(f"two questions have the id {id!r}")
        ids.add(id)
        placed.append(replace(asked, id=id, chapter=chapter))
    return placed


def _graded(questions: Iterable[Question]) -> tuple[Mapping[str, Any], ...]:
    """The questions as the key has them."""
    return tuple(
        {"id": asked.id, "title": asked.title, "text": asked.text, "points": asked.points} for asked in questions
    )


def _noted(key: Key, assignment: Assignment) -> Assignment:
    """The assignment, or the same from the key, where it was made before; raises where that is another one."""
    for known in key.assignments:
        if known.id == assignment.id:
            if replace(known, made=assignment.made) == assignment:
                return known
            raise AssignError(
                f"{key.path} has an assignment {known.id!r} already, of other exercises or questions; choose another "
                "title"
            )
    return assignment


def _keep(key: Key, assignment: Assignment, places: Sequence[tuple[Path, Path]]) -> None:
    """Note the assignment in the key and move everything into its place: all of it, or nothing."""
    known = assignment in key.assignments
    if not known:
        key.add(assignment)
    moved: list[Path] = []
    try:
        for made, place in places:
            os.rename(made, place)
            moved.append(place)
    except BaseException:
        for place in moved:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        if not known:
            key.assignments.remove(assignment)
            with contextlib.suppress(OSError):
                key.save()
        raise


def _chapters(assigned: Sequence[Assigned], asked: Sequence[Question]) -> list[Chapter]:
    """The chapters of an assignment, with what is chosen of each."""
    picked: dict[str, dict[str, Assigned]] = {}
    for item in assigned:
        picked.setdefault(exercise(item.id).chapter, {})[item.id.split("/")[1]] = item
    return [Chapter(name, some, [q for q in asked if q.chapter == name]) for name, some in picked.items()]


def _github(address: str) -> tuple[str, str]:
    """What comes before a notebook's name where Colab opens it, and before a file's name where it is downloaded."""
    if not address:
        return "", ""
    match = GITHUB.fullmatch(address)
    if not match:
        raise AssignError(
            f"{address!r} is no folder on GitHub; it must look like https://github.com/OWNER/NAME/tree/BRANCH/FOLDER"
        )
    owner, name, branch, folder = match[1], match[2], match[3] or "main", match[4] or ""
    place = f"github/{owner}/{name}/blob/{branch}{folder}/"
    return f"https://colab.research.google.com/{place}", f"https://github.com/{owner}/{name}/raw/{branch}{folder}/"


def _write_handout(
    path: Path,
    assignment: Assignment,
    chapters: Sequence[Chapter],
    asked: Sequence[Question],
    links: Links,
    wheel: Path,
) -> None:
    """The zip for students: notebooks, what to do with them, and the package."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        bundle.add(archive, f"{assignment.id}/README.md", _readme(assignment, chapters, asked, links, wheel.name))
        for chapter in chapters:
            book = chapter.book(assignment.title, "students", links)
            bundle.add(archive, f"{assignment.id}/{chapter.name}.ipynb", written(book))
        bundle.add(archive, f"{assignment.id}/{wheel.name}", wheel.read_bytes())


def _readme(
    assignment: Assignment, chapters: Sequence[Chapter], asked: Sequence[Question], links: Links, wheel: str
) -> str:
    """What students are told."""
    points = sum(item.points for item in assignment.exercises) + sum(q.points for q in asked)
    lines = [
        f"# {assignment.title}",
        "",
        f"{points:g} points in all. Hand in every notebook as it is, best not in a zip.",
    ]
    lines += ["", "| notebook | exercises | points | minutes |", "| --- | --- | --- | --- |"]
    for chapter in chapters:
        tasks = [exercise(item.id) for item in chapter.picked.values()]
        worth = sum(item.points for item in chapter.picked.values())
        name = f"{chapter.name}.ipynb"
        shown = f"[{name}]({links.colab}{name})" if links.colab else name
        lines.append(f"| {shown} | {len(tasks)} | {worth} | {sum(task.minutes for task in tasks)} |")
    if links.colab:
        lines += ["", "The links open the notebooks in Colab. Save a copy there: *File, Save a copy in Drive*."]
    lines += [
        "",
        "On your own machine you need Python 3.11 or newer with PyTorch and Jupyter. The first cell of each notebook "
        f"installs the course's package, `{wheel}`, where it is missing; "
        f"`pip install {wheel}` in this folder does the same, and installs PyTorch too.",
        "",
        "Write each answer where it says `# Your code here.`, then run the check below it. A check says what is right, "
        "or which known mistake your answer makes. It stores nothing and sends nothing. The grade comes from other "
        "inputs than the check's, of the same kind.",
    ]
    if any(item.variant for item in assignment.exercises):
        lines += [
            "",
            "Some exercises are under another convention than in the published course, each marked **In this copy**. "
            "An answer to the published form does not pass there.",
        ]
    if asked:
        lines += ["", f"{len(asked)} question{'s' if len(asked) != 1 else ''} in words, graded by hand:", ""]
        lines += [f"- {q.chapter}.ipynb: {q.title} ({q.points:g} point{'s' if q.points != 1 else ''})" for q in asked]
    return "\n".join(lines) + "\n"
