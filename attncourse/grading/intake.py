"""What is to be graded: the submissions in a folder, or in a zip as Canvas, Moodle or Gradescope export it.

Names and contents come from learners. Nothing is unpacked by its path: members of a zip, and of a student's zip within
it, are read in memory, links are not followed, and sizes are limited before anything is read.
"""

import io
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from attncourse.grading.notebook import MAX_BYTES, NotebookError, check_size
from attncourse.grading.notebook import read as read_notebook

MAX_FILES = 200_000  # in the folder or zip, and in the zips of one student
MAX_NOTEBOOKS = 40  # of one student
MAX_TOTAL = 200 << 20  # bytes read of one student, so that nobody takes another's share
MAX_RATIO = 200  # of a zip's member that unpacks to more than a megabyte
MAX_DEPTH = 12
MAX_NAME = 250  # characters of one part of a path, which systems have too
IGNORED = ("__MACOSX", ".ipynb_checkpoints")
METADATA = "submission_metadata.yml"
BROKEN = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error)  # no whole zip

# name_LATE_user_file_title.ipynb; without a name where marking is anonymous; a text or a link instead of a file.
CANVAS = re.compile(
    r"(?P<name>.*?)(?:(?:^|_)(?P<late>LATE))?(?:^|_)(?P<user>anon_\w+?|\d+)_(?:(?P<file>\d+)_(?P<rest>.+)|(?:text|link)\.html)"
)
# The participant, in this assignment; a name has no underscore there. Some sites leave the folders out.
MOODLE = re.compile(r"(?P<name>[^_]*)_(?P<user>\d+)_assignsubmission_(?:file|onlinetext)_?(?P<rest>.*)")
GRADESCOPE = re.compile(r"submission_\d+")
COPY = re.compile(r"(?P<base>.+)-(?P<n>\d{1,4})")  # what Canvas puts after the name of a later attempt
ATTEMPT = re.compile(r"(?:attempt|try|submission)?[ _-]*(\d{1,4})", re.IGNORECASE)


class IntakeError(ValueError):
    """There is nothing to grade there; the message says why and what helps."""


@dataclass(frozen=True)
class Notebook:
    """One file of a student: its code cells, or the reason why there are none; and (id, text) of all its cells."""

    name: str
    cells: tuple[str, ...] | None
    problem: str = ""
    attempt: int = 0
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Submission:
    """What one student handed in.

    student: unique and stable; name: as it is shown; late: as the system marked it; notebooks: those that count, by
    name; older: names of those that a later attempt replaces; ids: (column of Canvas's gradebook, value) by which the
    student is known, the column empty where it may be any.
    """

    student: str
    name: str
    attempt: int
    late: bool
    notebooks: tuple[Notebook, ...]
    older: tuple[str, ...] = ()
    ids: tuple[tuple[str, str], ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _File:
    """One file in the folder or zip: the parts of its path, and how to read it.

    read: takes the name under which its errors speak of it; raises NotebookError.
    """

    parts: tuple[str, ...]
    read: Callable[[str], bytes]
    order: int


@dataclass(frozen=True)
class _Owned:
    """A file and whose it is. attempt: of the files with the same `title` and owner the highest counts.

    own: what its owner called it, where that is known to differ; problem: why it must not be read.
    """

    owner: str
    name: str
    ids: tuple[tuple[str, str], ...]
    late: bool
    title: str
    attempt: tuple[int, int]
    file: _File
    own: str = ""
    problem: str = ""

    @property
    def called(self) -> str:
        return self.own or self.file.parts[-1]

    def is_a(self, *kinds: str) -> bool:
        return self.file.parts[-1].lower().endswith(kinds)


def find_submissions(path: Path, leave_out: Path | None = None) -> list[Submission]:
    """The submissions in a notebook, a folder of notebooks, a folder of students' folders, or a zip; by student.

    leave_out: a folder that holds none, such as the one where results are written. Raises IntakeError where there are
    none. What is wrong with one student's files is told in that submission.
    """
    path = Path(path)
    if path.is_dir():
        files = list(_files_of_folder(path, leave_out))
    elif not path.exists():
        raise IntakeError(f"there is no {path}")
    elif path.suffix.lower() == ".ipynb":
        files = [_File((shown(os.fsencode(path.name)),), lambda name: _read_file(path, name), 0)]
    else:
        files = _without_wrapper(list(_files_of_zip(path)))
    files = [file for file in files if not _is_ignored(file)]
    groups: dict[str, list[_Owned]] = defaultdict(list)
    for item in _owned(files):
        groups[item.owner].append(item)
    if not groups:
        raise IntakeError(
            f"{path} holds no submission: notebooks (.ipynb), a folder for each student, or a zip as Canvas, Moodle or "
            "Gradescope export it"
        )
    return [_submission(items) for _, items in sorted(groups.items())]


def shown(raw: bytes) -> str:
    """A file's name as text that can be printed, whatever its bytes: UTF-8, else one character for each byte."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return printable(text)


def printable(text: str) -> str:
    """Text of a learner, with what steers a terminal or turns the writing direction as \\x1b: visible and harmless."""
    text = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_ignored(file: _File) -> bool:
    """Whether the file is nobody's work: what systems and editors leave behind."""
    return any(part in IGNORED or (part.startswith(".") and part != "..") for part in file.parts)


# Where files come from


def _files_of_folder(root: Path, leave_out: Path | None) -> Iterator[_File]:
    """Every file below `root`, in a fixed order; links to folders are files that cannot be read."""
    count, left = 0, leave_out.resolve() if leave_out else None
    for folder, folders, names in os.walk(os.fsencode(root)):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        inside = os.path.relpath(folder, os.fsencode(root))
        above = () if inside == b"." else tuple(shown(part) for part in inside.split(os.sep.encode()))
        folders[:] = sorted(name for name in folders if name not in links and not name.startswith(b"."))
        if leave_out:
            folders[:] = [name for name in folders if Path(os.fsdecode(folder), os.fsdecode(name)).resolve() != left]
        if len(above) >= MAX_DEPTH:
            folders.clear()
        for name in sorted(names + links):
            count += 1
            if count > MAX_FILES:
                raise IntakeError(f"{root} holds more than {MAX_FILES} files; is it the folder of the submissions?")
            path = Path(os.fsdecode(os.path.join(folder, name)))
            parts = (*above, shown(name), "a link that is not followed") if name in links else (*above, shown(name))
            yield _File(parts, lambda name, path=path: _read_file(path, name), count)


def _read_file(path: Path, name: str) -> bytes:
    """A regular file's bytes; a link, a pipe or a device is not opened."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        why = "a symbolic link" if path.is_symlink() else f"unreadable ({error.strerror})"
        raise NotebookError(f"{name} is {why}; it was not read") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise NotebookError(f"{name} is no file; it was not read")
        check_size(name, found.st_size)
        return file.read(MAX_BYTES + 1)


def _files_of_zip(path: Path) -> Iterator[_File]:
    """Every member of the zip, to be read in memory."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise IntakeError(f"{path} is neither a folder, nor a notebook, nor a whole zip: {error}") from None
    if (count := len(archive.infolist())) > MAX_FILES:
        raise IntakeError(f"{path} holds {count} files; at most {MAX_FILES} are read")
    return _members(archive)


def _members(archive: zipfile.ZipFile) -> Iterator[_File]:
    for order, member in enumerate(archive.infolist()):
        name = member.orig_filename.replace("\\", "/")
        if member.flag_bits & 0x800 == 0:  # not declared as UTF-8, and often is
            name = _recoded(name)
        parts = tuple(_short(printable(part)) for part in name.split("/") if part not in ("", "."))
        if name.endswith("/") or not parts:
            continue
        yield _File(parts[:MAX_DEPTH], lambda name, member=member: _read_member(archive, member, name), order)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:150]}…{name[-50:]}"


def _recoded(name: str) -> str:
    """A name that was read as code page 437, read again as UTF-8 where it is that."""
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bytes:
    """A member's bytes, unpacked only as far as the limits go, whatever its header says."""
    if "\0" in member.orig_filename or ".." in member.orig_filename.replace("\\", "/").split("/"):
        raise NotebookError(f"the path of {name} leads out of its folder; it was not read")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise NotebookError(f"{name} is a symbolic link; it was not read")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotebookError(f"{name} is encrypted, or packed in an unusual way; it was not read")
    check_size(name, member.file_size)
    if member.file_size > 1 << 20 and member.file_size > MAX_RATIO * member.compress_size:
        raise NotebookError(
            f"{name} unpacks from {member.compress_size} to {member.file_size} bytes, as a zip bomb does; not read"
        )
    try:
        with archive.open(member) as file:
            return file.read(MAX_BYTES + 1)
    except (*BROKEN, zlib.error, EOFError, RuntimeError) as error:
        raise NotebookError(f"{name} is damaged in the zip: {printable(str(error))}") from None


def _without_wrapper(files: list[_File]) -> list[_File]:
    """A zip's files without the one folder that holds everything, unless that is the only student's."""
    counted = [file for file in files if not _is_ignored(file)]
    tops = {file.parts[0] for file in counted}
    inside = {file.parts[1] if len(file.parts) > 1 else None for file in counted}
    if len(tops) != 1 or None in inside or MOODLE.fullmatch(next(iter(tops))):
        return files
    known = any(CANVAS.fullmatch(name) or MOODLE.fullmatch(name) or GRADESCOPE.fullmatch(name) for name in inside)
    if len(inside) < 2 and not known:
        return files
    return [_File(file.parts[1:], file.read, file.order) for file in counted]


# Whose they are


def _owned(files: list[_File]) -> Iterator[_Owned]:
    """The files, each with whose it is; those that are nobody's left out."""
    metadata = next((file for file in files if file.parts == (METADATA,)), None)  # deeper ones are students' own
    owner = _gradescope(_metadata(metadata)) if metadata else _by_name(_canvas(files))
    return (item for file in files for item in owner(file))


@dataclass(frozen=True)
class _Canvas:
    """What the name of a file in Canvas's zip says. sure: whether no other student can be meant."""

    name: str
    late: bool
    user: str
    file: int
    rest: str
    sure: bool = True


def _canvas(files: Iterable[_File]) -> dict[_File, _Canvas]:
    """How to read the names that Canvas gives. A student may be called x_77, and a title may begin with numbers.

    So where two names have the same number, one that can be read another way is; what is not sure even then is kept
    apart, under name and number.
    """
    read: dict[_File, _Canvas] = {}
    other: dict[_File, _Canvas] = {}
    names: dict[str, set[str]] = defaultdict(set)
    plain: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if len(file.parts) == 1 and (match := CANVAS.fullmatch(file.parts[0])):
            late, rest = bool(match["late"]), match["rest"] or ""
            read[file] = _Canvas(match["name"], late, match["user"], int(match["file"] or 0), rest)
            names[match["user"]].add(match["name"])
            if (more := re.match(r"(\d+)_(.+)", rest)) and not late:
                name = f"{match['name']}_{match['user']}"
                other[file] = _Canvas(name, late, match["file"], int(more[1]), more[2])
            else:
                plain[match["user"]].add(match["name"])
    for file, found in read.items():
        if len(names[found.user]) > 1 and not (len(plain[found.user]) == 1 and found.name in plain[found.user]):
            second = other.get(file)
            if second and len(plain[found.user]) == 1 and not names.get(second.user, {second.name}) - {second.name}:
                read[file] = second
            else:
                read[file] = replace(found, sure=False)
    return read


def _by_name(canvas: Mapping[_File, _Canvas]) -> Callable[[_File], Iterator[_Owned]]:
    """Whose a file is, by the names that Canvas and Moodle give, else by its folder or its own name."""
    return lambda file: _of_name(file, canvas.get(file))


def _of_name(file: _File, canvas: _Canvas | None) -> Iterator[_Owned]:
    parts = tuple(part for part in file.parts if part != "..")
    stem, _, kind = parts[-1].rpartition(".")
    if moodle := MOODLE.fullmatch(parts[0]):
        title = "/".join((*parts[1:],)) or moodle["rest"]
        yield _Owned(moodle["user"], moodle["name"], (), False, title, (0, file.order), file, title.rpartition("/")[2])
    elif canvas:
        (title, _, kind), n = canvas.rest.rpartition("."), 0
        if copy := COPY.fullmatch(title):
            title, n = copy["base"], int(copy["n"])
        owner = canvas.user if canvas.sure else f"{canvas.name}_{canvas.user}"
        ids = (("ID", canvas.user),) if canvas.sure else ()
        title, attempt = f"{title}.{kind}", (n, canvas.file)
        yield _Owned(owner, canvas.name or canvas.user, ids, canvas.late, title, attempt, file, canvas.rest)
    elif len(parts) > 1:
        numbers = [ATTEMPT.fullmatch(part) for part in parts[1:-1]]
        n = next((int(match[1]) for match in reversed(numbers) if match), 0)
        yield _Owned(parts[0], parts[0], (("", parts[0]),), False, parts[-1], (n, file.order), file)
    elif kind.lower() in ("ipynb", "zip"):
        yield _Owned(stem or parts[0], stem or parts[0], (("", stem),), False, stem, (0, file.order), file)


def _gradescope(metadata: dict) -> Callable[[_File], Iterator[_Owned]]:
    """Whose a file is, by Gradescope's list of submitters: each member of a group has the same submission.

    Where two people go by one number, address or name, they are kept apart, and no row of a gradebook is theirs.
    """
    people: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in metadata.values():
        for who in _submitters(entry):
            people[next(filter(None, who), "")].add(who)

    def owners(file: _File) -> Iterator[_Owned]:
        parts = tuple(part for part in file.parts if part != "..")
        if len(parts) < 2 or not GRADESCOPE.fullmatch(parts[0]):
            return
        entry = metadata.get(parts[0])
        history = entry.get(":history") if isinstance(entry, dict) else None
        n = len(history) + 1 if isinstance(history, list) else 1
        for sid, email, name in _submitters(entry) or [("", "", "")]:
            student = sid or email or name or parts[0]
            ids = tuple(id for id in (("SIS User ID", sid), ("SIS Login ID", email)) if id[1])
            if len(people[student]) > 1:
                student, ids = f"{student}_{parts[0]}", ()
            order = (n, int(parts[0].split("_")[1]))
            yield _Owned(student, name or student, ids, False, "/".join(parts[1:]), order, file)

    return owners


def _submitters(entry: object) -> list[tuple[str, str, str]]:
    """(number, address, name) of each submitter in an entry of Gradescope's list, empty where they are not text."""
    found = entry.get(":submitters") if isinstance(entry, dict) else None
    people = [who for who in found if isinstance(who, dict)] if isinstance(found, list) else []
    texts = [[who.get(f":{field}") for field in ("sid", "email", "name")] for who in people]
    return [tuple(_short(printable(t)) if isinstance(t, str) else "" for t in text) for text in texts]


def _metadata(file: _File) -> dict:
    """Gradescope's list, as text only: no tag of it makes an object."""
    try:
        import yaml
    except ImportError:
        raise IntakeError("Gradescope's list of submitters is YAML: pip install pyyaml, then grade again") from None
    try:
        data = yaml.load(file.read(METADATA).decode("utf-8"), Loader=yaml.BaseLoader)
    except (NotebookError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise IntakeError(f"{METADATA} cannot be read: {printable(str(error))[:200]}") from None
    if not isinstance(data, dict):
        raise IntakeError(f"{METADATA} is not the list that Gradescope exports")
    return data


# What counts


def _submission(items: list[_Owned]) -> Submission:
    """One student's files: of those with the same title the latest counts, unless they are about different things."""
    budget = [MAX_TOTAL, MAX_FILES]
    all_items = [opened for item in items for opened in _opened(item, budget)]
    if not (items := [item for item in all_items if item.is_a(".ipynb", ".zip")]):
        return _without_notebook(all_items)
    first = min(items, key=lambda item: item.file.order)
    notebooks: list[tuple[tuple, Notebook]] = []
    older: list[str] = []
    by_title: dict[str, list[_Owned]] = defaultdict(list)
    for item in items:
        by_title[item.title].append(item)
    too_many = len(by_title) > MAX_NOTEBOOKS
    for title, same in sorted(by_title.items())[:MAX_NOTEBOOKS]:
        same.sort(key=lambda item: item.attempt)
        kept = [(same[-1], _read(same[-1], budget))]
        for item in reversed(same[:-1][-MAX_NOTEBOOKS:]):
            defined = [_defined(notebook) for _, notebook in kept]
            mine = _read(item, budget)
            if _defined(mine) and all(names and names.isdisjoint(_defined(mine)) for names in defined):
                kept.append((item, mine))
            else:
                older.append("/".join(item.file.parts))
        notebooks += [((title, item.attempt), notebook) for item, notebook in kept]
    ordered = tuple(notebook for _, notebook in sorted(notebooks, key=lambda pair: pair[0]))
    problem = f"more than {MAX_NOTEBOOKS} notebooks; the rest was not read" if too_many else ""
    attempt = max(item.attempt[0] for item in items)
    replaced = set(older)
    late = any(item.late and "/".join(item.file.parts) not in replaced for item in items)
    return Submission(first.owner, first.name, attempt, late, ordered, tuple(sorted(older)), first.ids, problem)


def _without_notebook(items: list[_Owned]) -> Submission:
    names = ", ".join(item.called for item in items[:3]) + (" …" if len(items) > 3 else "")
    problem = f"no notebook (.ipynb) was handed in, only {names}"
    late = any(item.late for item in items)
    return Submission(items[0].owner, items[0].name, 0, late, (), ids=items[0].ids, problem=problem)


def _opened(item: _Owned, budget: list[int]) -> list[_Owned]:
    """The file; in a zip's place what is in it, as if handed in without it. A zip that stays one has a problem."""
    if not item.is_a(".zip"):
        return [item]
    try:
        archive = zipfile.ZipFile(io.BytesIO(_bytes(item, budget)))
        budget[1] -= len(archive.infolist())
        if budget[1] < 0:
            raise NotebookError(f"{item.called} was not opened: more than {MAX_FILES} files in zips")
        inside = [file for file in _members(archive) if not _is_ignored(file)]
    except NotebookError as error:
        return [replace(item, problem=str(error))]
    except BROKEN as error:
        return [replace(item, problem=f"{item.called} is not a whole zip: {error}")]
    found = []
    for file in inside:
        within = _File((*item.file.parts, *file.parts), file.read, item.file.order)
        each = replace(item, title=file.parts[-1], file=within, own="")
        refusal = f"{each.called} is a zip within the zip {item.called}; it was not opened: hand in the notebooks"
        found.append(replace(each, problem=refusal) if each.is_a(".zip") else each)
    return found or [replace(item, problem=f"{item.called} holds no file")]


def _bytes(item: _Owned, budget: list[int]) -> bytes:
    """A file's content. budget: bytes, and files in zips, that may still be read of this student; is taken from."""
    if item.problem:
        raise NotebookError(item.problem)
    if ".." in item.file.parts:
        raise NotebookError(f"the path of {item.called} leads out of its folder; it was not read")
    if budget[0] <= 0:
        raise NotebookError(f"{item.called} was not read: the notebooks have more than {MAX_TOTAL >> 20} MB in all")
    data = item.file.read(item.called)
    budget[0] -= len(data)
    return data


def _read(item: _Owned, budget: list[int]) -> Notebook:
    """A student's notebook, or what is wrong with the file."""
    name = item.file.parts[-1]
    try:
        code, texts = read_notebook(item.called, _bytes(item, budget))
        return Notebook(name, tuple(code), attempt=item.attempt[0], texts=tuple(texts))
    except NotebookError as error:
        return Notebook(name, None, printable(str(error)), item.attempt[0])


def _defined(notebook: Notebook) -> frozenset[str]:
    """The names that a notebook's cells define."""
    return frozenset(_names(notebook.cells or ()))


def _names(cells: Iterable[str]) -> Iterator[str]:
    for cell in cells:
        yield from re.findall(r"^(?:def|class)\s+(\w+)", cell, re.MULTILINE)
