"""The instructor's key: the one secret of a course, and what was assigned with it.

The solutions are public, so what a student must not know is which inputs an answer is asked with, and which variant of
an exercise another student got. Both derive from the key's secret. The file is JSON, for its owner's eyes only.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from attncourse.checks import Task, exercise

Choice = TypeVar("Choice")
SECRET_BYTES = 32


class KeyFileError(ValueError):
    """The key cannot be used; the message says why and what helps."""


@dataclass(frozen=True)
class Assigned:
    """One exercise of an assignment: under a variant, or None for the public form; worth `points`."""

    id: str
    variant: str | None
    points: int

    def task(self) -> Task:
        """The exercise's specification, in this variant and with these points."""
        task = exercise(self.id) if self.variant is None else exercise(self.id).variant(self.variant)
        return replace(task, points=self.points)


@dataclass(frozen=True)
class Assignment:
    """What was handed out together. questions: free text, {"id", "title", "text", "points"} each, graded by hand."""

    id: str
    title: str
    made: str
    exercises: tuple[Assigned, ...]
    questions: tuple[Mapping[str, Any], ...] = field(default=())


class Key:
    """A key in its file. `Key.make` writes a new one, `Key.open` reads one; `add` appends an assignment and saves."""

    def __init__(self, path: Path, secret: bytes, assignments: Sequence[Assignment] = ()):
        self.path, self.assignments = Path(path), list(assignments)
        self._secret = secret

    @classmethod
    def make(cls, path: Path) -> "Key":
        """A new key at `path`, which must not exist yet: a lost key cannot be made again."""
        key = cls(path, secrets.token_bytes(SECRET_BYTES))
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise KeyFileError(f"{path} exists already; it is kept as it is") from None
        except OSError as error:
            raise KeyFileError(f"cannot write {path}: {error.strerror}") from None
        key.save()
        return key

    @classmethod
    def open(cls, path: Path) -> "Key":
        """The key at `path`. Raises KeyFileError where it is no key, or where others can read it."""
        path = Path(path)
        try:
            mode, text = path.stat().st_mode, path.read_text("utf-8")
        except FileNotFoundError:
            raise KeyFileError(f"there is no key {path}; `attncourse assign … --key {path}` makes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read {path}: {error}") from None
        if os.name == "posix" and mode & 0o077:
            raise KeyFileError(f"others can read {path} (mode {mode & 0o777:03o}); keep it secret: chmod 600 {path}")
        try:
            data = json.loads(text)
            secret = bytes.fromhex(data["secret"])
            assignments = [_assignment(item) for item in data["assignments"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeyFileError(f"{path} is no key of this course: {type(error).__name__}: {error}") from None
        if len(secret) != SECRET_BYTES:
            raise KeyFileError(f"the secret in {path} has {len(secret)} bytes, but it must have {SECRET_BYTES}")
        return cls(path, secret, assignments)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        data = {"secret": self._secret.hex(), "assignments": [asdict(assignment) for assignment in self.assignments]}
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")  # mode 600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(handle)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def add(self, assignment: Assignment) -> None:
        """Append an assignment, whose id must be new, and save."""
        if any(known.id == assignment.id for known in self.assignments):
            raise KeyFileError(f"{self.path} has an assignment {assignment.id!r} already")
        for assigned in assignment.exercises:
            assigned.task()
        self.assignments.append(assignment)
        self.save()

    def assignment(self, id: str | None = None) -> Assignment:
        """The assignment called `id`, or the newest."""
        if not self.assignments:
            raise KeyFileError(f"{self.path} has no assignment yet; `attncourse assign … --key {self.path}` adds one")
        if id is None:
            return self.assignments[-1]
        for assignment in self.assignments:
            if assignment.id == id:
                return assignment
        known = ", ".join(assignment.id for assignment in self.assignments)
        raise KeyFileError(f"{self.path} has no assignment {id!r}; it has {known}")

    def seeds(self, assignment: str, exercise: str) -> tuple[int, int]:
        """Two seeds of 63 bits for an exercise of an assignment, with different remainders by 4.

        As the public seeds 0 and 1 have: where only sizes vary, some exercises take them in turns by the seed.
        """
        digest = self._digest("seeds", assignment, exercise)
        first, second = (int.from_bytes(digest[i : i + 8], "big") >> 1 for i in (0, 8))
        return first, second // 4 * 4 + (first + 1) % 4

    def choose(self, options: Sequence[Choice], *about: str) -> Choice:
        """One of the options, always the same for the same `about`: an assignment, an exercise and a student, say."""
        if not options:
            raise ValueError("there is nothing to choose from: options is empty")
        return options[int.from_bytes(self._digest("choose", *about), "big") % len(options)]

    def _digest(self, *about: str) -> bytes:
        return hmac.new(self._secret, json.dumps(about).encode(), hashlib.sha256).digest()

    def __repr__(self) -> str:
        return f"<Key {self.path}: {len(self.assignments)} assignments>"  # never the secret


def _assignment(data: Mapping[str, Any]) -> Assignment:
    """An assignment as the file has it; raises for anything that is not one."""
    exercises = tuple(Assigned(item["id"], item.get("variant"), int(item["points"])) for item in data["exercises"])
    for assigned in exercises:
        if assigned.points < 0:
            raise ValueError(f"{assigned.id} has {assigned.points} points")
        assigned.task()
    questions = tuple(
        {
            "id": str(item["id"]),
            "title": str(item.get("title", item["id"])),
            **({"text": str(item["text"])} if "text" in item else {}),
            "points": float(item["points"]),
        }
        for item in data.get("questions", ())
    )
    return Assignment(str(data["id"]), str(data["title"]), str(data.get("made", "")), exercises, questions)
