"""Grade a class: every notebook once, in as many processes as wanted, with a record of each that outlives the run.

A record is written whole or not at all, under a hash of everything its verdicts depend on. So a run that was killed
goes on where it was, a notebook that did not change is not run again, and two runs at once cannot mix: a lock keeps
the second one out.
"""

import atexit
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import attncourse
from attncourse.checks import exercise
from attncourse.checks.judge import SEEDS, Verdict
from attncourse.grading import isolation
from attncourse.grading.examiner import Exam, Grade, Workers, exercises_in, grade, refuse_open, variant_in
from attncourse.grading.intake import Notebook, Submission
from attncourse.grading.key import Assigned, Assignment, Key
from attncourse.grading.telling import tell

FORM = 1  # of the records
MAX_ERRORS = 50  # of cells, told of one student
MAX_WORKERS = 6  # forking processes that one grading process keeps, one for each chapter


class ClassError(RuntimeError):
    """The class cannot be graded; the message says why and what helps."""


@dataclass(frozen=True)
class Work:
    """What everyone was to do. seeds: by exercise; hidden: whether they are a key's, and so secret."""

    title: str
    exercises: tuple[Assigned, ...]
    seeds: Mapping[str, tuple[int, ...]]
    hidden: bool
    questions: tuple[Mapping[str, Any], ...] = ()

    @property
    def possible(self) -> float:
        """The points of all exercises and questions."""
        return sum(e.points for e in self.exercises) + sum(question["points"] for question in self.questions)


def assigned_work(key: Key, assignment: Assignment) -> Work:
    """The work of an assignment, with the key's hidden inputs."""
    seeds = {assigned.id: key.seeds(assignment.id, assigned.id) for assigned in assignment.exercises}
    return Work(assignment.title, assignment.exercises, seeds, True, assignment.questions)


def work_found(submissions: Iterable[Submission], title: str | None = None) -> Work:
    """Without a key: the chapters that half of the students' notebooks are about, or else all that are found.

    An exercise is in the variant that most of its notebooks name.
    """
    counts: Counter[str] = Counter()
    variants: dict[str, Counter[str | None]] = {}
    tasks, students = {}, 0
    for submission in submissions:
        books = [(book.cells, exercises_in(book.cells)) for book in submission.notebooks if book.cells]
        found = [task for _, some in books for task in some]
        tasks |= {task.id: task for task in found}
        for cells, some in books:
            for task in some:
                variants.setdefault(task.id, Counter())[variant_in(task, cells)] += 1
        counts.update({task.chapter for task in found})
        students += bool(found)
    if not counts:
        raise ClassError("no notebook has an exercise of this course in it")
    chapters = {chapter for chapter, n in counts.items() if 2 * n >= students} or set(counts)
    chosen = sorted((task for task in tasks.values() if task.chapter in chapters), key=lambda task: task.chapter)
    exercises = tuple(Assigned(task.id, variants[task.id].most_common(1)[0][0], task.points) for task in chosen)
    return Work(title or ", ".join(sorted(chapters)), exercises, {task.id: SEEDS for task in chosen}, False)


@dataclass(frozen=True)
class Job:
    """One notebook and the exercises of one chapter to look for in it: all that a grading process needs to know."""

    hash: str
    cells: tuple[str, ...]
    exercises: tuple[Assigned, ...]
    chapter: tuple[Assigned, ...]
    seeds: Mapping[str, tuple[int, ...]] = field(repr=False)  # a repr ends in the logs of a cluster
    hidden: bool
    level: str


@dataclass(frozen=True)
class Graded:
    """A submission with what was found. exercises: as `telling.tell` gives them, in the order of the assignment."""

    submission: Submission
    exercises: tuple[dict, ...]
    cell_errors: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    isolation: str = ""
    new: bool = False
    failed: str = ""
    protection: Mapping[str, str] = field(default_factory=dict)
    left: str = ""

    @property
    def points(self) -> int:
        return sum(exercise["points"] for exercise in self.exercises)


@cache
def fingerprint() -> str:
    """Of the package's version, and of the code that verdicts come from: a mended check grades anew."""
    package = Path(attncourse.__file__).parent
    judging = ("examiner", "filters", "isolation", "notebook", "stub", "telling", "users", "wire", "worker")
    paths = [*package.glob("*.py"), *package.glob("checks/*.py"), *(package / f"grading/{name}.py" for name in judging)]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return f"{attncourse.__version__} {digest.hexdigest()[:16]}"


def plan(submission: Submission, work: Work, level: str) -> list[Job]:
    """The jobs of a submission: for each chapter, the notebooks that define its exercises.

    Where two notebooks define an exercise, the one with more of its chapter counts, then the last by name. A chapter
    that no notebook names anything of has no job: it was not attempted.
    """
    books = [book for book in submission.notebooks if book.cells is not None]
    if not books:
        return []
    chapters: dict[str, list[Assigned]] = {}
    for assigned in work.exercises:
        chapters.setdefault(assigned.id.split("/")[0], []).append(assigned)
    jobs = []
    for chapter in chapters.values():
        if not any(_names(book, assigned) for book in books for assigned in chapter):
            continue
        shares = [sum(_mentions(book, assigned) for assigned in chapter) for book in books]
        split: dict[int, list[Assigned]] = {}
        for assigned in chapter:
            best = max(range(len(books)), key=lambda i, a=assigned: (_mentions(books[i], a), shares[i], i))
            split.setdefault(best, []).append(assigned)
        jobs += [_job(books[i], some, chapter, work, level) for i, some in sorted(split.items())]
    return jobs


def _names(book: Notebook, assigned: Assigned) -> bool:
    defines = exercise(assigned.id).defines
    return any(re.search(rf"\b{defines}\b", cell) for cell in book.cells or ())


def _mentions(book: Notebook, assigned: Assigned) -> bool:
    defines = exercise(assigned.id).defines
    return any(re.search(rf"\b(def|class)\s+{defines}\b", cell) for cell in book.cells or ())


def _job(book: Notebook, some: Sequence[Assigned], chapter: Sequence[Assigned], work: Work, level: str) -> Job:
    seeds = {assigned.id: tuple(work.seeds[assigned.id]) for assigned in chapter}
    asked = [[a.id, a.variant, a.points, list(seeds[a.id])] for a in some]
    given = sorted({name for a in chapter for name in exercise(a.id).given})
    text = json.dumps([FORM, book.cells, asked, given, work.hidden, fingerprint(), level])
    hash = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Job(hash, tuple(book.cells or ()), tuple(some), tuple(chapter), seeds, work.hidden, level)


# In a grading process


@dataclass
class _Bench:
    """What a grading process keeps from one job to the next."""

    workers: OrderedDict[tuple, Workers] = field(default_factory=OrderedDict)
    exams: dict[tuple, Exam] = field(default_factory=dict)

    def close(self) -> None:
        while self.workers:
            self.workers.popitem()[1].__exit__()


_bench = _Bench()
atexit.register(lambda: _bench.close())


def grade_job(job: Job) -> dict:
    """Grade one notebook: a record, or {"failed": why} where the machine could not. Runs in any process."""
    try:
        return _grade(job)
    except Exception as error:  # whatever it is, it must not end the class
        _bench.close()
        try:
            return _grade(job)  # a worker may have been killed from outside
        except Exception:
            return {"hash": job.hash, "failed": f"{type(error).__name__}: {error}"}


def _grade(job: Job) -> dict:
    """The record of a job. Its worker and its questions are kept for the next."""
    key = (job.chapter, tuple(job.seeds.items()))
    if key not in _bench.exams:
        _bench.exams[key] = Exam([assigned.task() for assigned in job.chapter], job.seeds)
    exam = copy(_bench.exams[key])
    wanted = {assigned.id for assigned in job.exercises}
    exam.exercises = tuple(task for task in exam.exercises if task.id in wanted)
    place = (tuple(exam.given), job.level)
    if place not in _bench.workers:
        while len(_bench.workers) >= MAX_WORKERS:
            _bench.workers.popitem(last=False)[1].__exit__()
        _bench.workers[place] = Workers(exam.given, job.level)
    _bench.workers.move_to_end(place)
    return _record(job, grade(job.cells, exam, _bench.workers[place]))


def _record(job: Job, found: Grade) -> dict:
    variants = {assigned.id: assigned.variant for assigned in job.exercises}
    told = [tell(verdict, job.cells, found.cell_errors, job.hidden) for verdict in found.verdicts]
    return {
        "form": FORM,
        "hash": job.hash,
        "graded_by": fingerprint(),
        "isolation": found.isolation,
        "protection": found.protection,
        "left_behind": found.left,
        "seconds": round(found.seconds, 3),
        "slow": _is_slow(found),
        "exercises": [exercise | {"variant": variants[exercise["id"]]} for exercise in told],
        "cell_errors": {str(i): text for i, text in sorted(found.cell_errors.items())},
    }


def _is_slow(found: Grade) -> bool:
    """Whether anything in a notebook was stopped for its time, which other work on the machine may have taken."""
    said = [*found.cell_errors.values(), *(verdict.message for verdict in found.verdicts)]
    return any("it ran too long" in text or "used up its time" in text for text in said)


class InThisProcess(Executor):
    """Runs what is submitted at once: for a single submission, where another process takes longer to start."""

    def __init__(self, workers: int = 1):
        super().__init__()

    def submit(self, function: Callable, /, *arguments: Any, **named: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments, **named))
        return future


def local_pool(workers: int) -> Executor:
    """Processes of this machine, which end when the one that started them does."""
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(os.getpid(),))


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    if sys.platform.startswith("linux"):
        isolation.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)


# In the process that runs the class


class Records:
    """The records in a folder: one file each, whole or not there."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # of a run that was killed
            left.unlink(missing_ok=True)

    def get(self, hash: str) -> dict | None:
        """The record under this hash, if it is there and whole."""
        try:
            record = json.loads((self.folder / f"{hash}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(record, dict) and record.get("form") == FORM and record.get("hash") == hash
        return record if whole else None

    def put(self, record: dict) -> None:
        """Keep a record. When this returns, it is on the disk."""
        write_whole(self.folder / f"{record['hash']}.json", json.dumps(record, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one at every moment, whatever happens."""
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder `out`; raises ClassError while another run holds it. The system lets go when a run ends."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(out / ".lock", "a+", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            file.seek(0)
            raise ClassError(
                f"another run is grading into {out} (process {file.read(20).strip() or 'unknown'}); wait for it, or "
                "give this one a folder of its own: --out DIR"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def grade_class(
    submissions: Sequence[Submission],
    work: Work,
    out: Path,
    *,
    level: str = "auto",
    private: Iterable[Path] = (),
    workers: int = 1,
    pool: Callable[[int], Executor] = local_pool,
    choose: Callable[[str], str] = isolation.choose,
    ahead: int = 2,
    told: Callable[[Graded], None] = lambda graded: None,
) -> list[Graded]:
    """Grade every submission that has no record in `out` yet; all of them, in the order of the submissions.

    level, private: as for `examiner.Workers`; pool(n): an executor of n processes that can run `grade_job`, choose: the
    level that they can have, ahead: jobs submitted for each at a time; told: called with each student who is done. What
    was stopped for its time while others ran is graded again at the end, alone, and that counts: so grades do not
    depend on the number of processes. The caller holds `alone_in(out)`.
    """
    try:
        level = choose(level)
        if level == "B":
            refuse_open(private)
    except RuntimeError as error:
        raise ClassError(str(error)) from None
    records = Records(out / "records")
    plans = {submission.student: plan(submission, work, level) for submission in submissions}
    by_hash = {job.hash: job for jobs in plans.values() for job in jobs}
    known = {hash: record for hash in by_hash if (record := records.get(hash)) is not None}
    kept = frozenset(known)
    done: dict[str, Graded] = {}
    again: list[Job] = []
    crowded = False

    def look() -> None:
        for submission in submissions:
            jobs = plans[submission.student]
            if submission.student not in done and all(job.hash in known for job in jobs):
                new = any(job.hash not in kept for job in jobs)
                done[submission.student] = _graded(submission, [known[job.hash] for job in jobs], work, new)
                told(done[submission.student])

    def arrived(record: dict) -> None:
        if record.get("slow") and crowded:
            again.append(by_hash[record["hash"]])
            return
        if "failed" not in record:
            records.put(record)
        known[record["hash"]] = record
        look()

    look()
    todo = [job for hash, job in by_hash.items() if hash not in known]
    crowded = min(workers, len(todo)) > 1
    width = max(1, min(workers, len(todo)))
    _run(todo, pool, width, arrived, ahead * width)
    crowded = False
    _run(again, pool, 1, arrived, 1)
    return [done[submission.student] for submission in submissions]


def _run(
    jobs: Sequence[Job],
    pool: Callable[[int], Executor],
    width: int,
    arrived: Callable[[dict], None],
    ahead: int,
) -> None:
    """Have all jobs done, `ahead` of them submitted at a time.

    Where a process dies, those it may have died of run again, one at a time.
    """
    waiting = list(jobs)
    while waiting:
        suspects, waiting = _run_until_broken(waiting, pool(width), ahead, arrived)
        while suspects:
            guilty, suspects = _run_until_broken(suspects, pool(1), 1, arrived)
            for job in guilty:
                arrived({"hash": job.hash, "failed": "its grading process was killed, twice: too little memory?"})


def _run_until_broken(
    jobs: Sequence[Job], executor: Executor, ahead: int, arrived: Callable[[dict], None]
) -> tuple[list[Job], list[Job]]:
    """Run the jobs, `ahead` of them submitted at a time.

    Returns those that were under way when a process died, and those not begun: both empty, normally.
    """
    queue = list(reversed(jobs))
    before = set(multiprocessing.active_children())
    running: dict[Future, Job] = {}
    try:
        while queue or running:
            while queue and len(running) < ahead:  # few, since all are suspected when a process dies
                running[executor.submit(grade_job, queue[-1])] = queue[-1]
                queue.pop()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                arrived(_result(future, running[future]))
                del running[future]
        executor.shutdown()
        return [], []
    except BrokenExecutor:
        executor.shutdown(wait=False)
        return list(running.values()), queue[::-1]
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise


def _result(future: Future, job: Job) -> dict:
    try:
        return future.result()
    except (BrokenExecutor, ClassError):
        raise
    except Exception as error:  # an executor of another kind has reasons of its own
        return {"hash": job.hash, "failed": f"{type(error).__name__}: {error}"}


def _graded(submission: Submission, records: Sequence[dict], work: Work, new: bool) -> Graded:
    """A student's exercises out of the records of the notebooks."""
    found = {exercise["id"]: exercise for record in records for exercise in record.get("exercises", ())}
    failed = "; ".join(record["failed"] for record in records if "failed" in record)
    blank = {a.id: _untouched(a, work.hidden) for a in work.exercises if a.id not in found}
    errors = [
        f"Code cell {int(i) + 1}: {(text.splitlines() or [''])[-1]}"
        for record in records
        for i, text in record.get("cell_errors", {}).items()
    ]
    problems = [book.problem for book in submission.notebooks if book.problem]
    if not records and any(book.cells is not None for book in submission.notebooks):
        problems.append("No exercise of this assignment is in what was handed in")
    elif records and not problems and not failed:
        chapters = dict.fromkeys(a.id.split("/")[0] for a in work.exercises)
        there = {id.split("/")[0] for id in found}
        problems += [f"No exercise of {name} is in what was handed in" for name in chapters if name not in there]
    return Graded(
        submission,
        tuple(found.get(a.id) or blank[a.id] for a in work.exercises),
        tuple(dict.fromkeys(errors))[:MAX_ERRORS],
        tuple(filter(None, (submission.problem, *problems))),
        sum(record.get("seconds", 0.0) for record in records),
        records[0].get("isolation", "") if records else "",
        new,
        failed,
        records[0].get("protection", {}) if records else {},
        "; ".join(record["left_behind"] for record in records if record.get("left_behind")),
    )


def _untouched(assigned: Assigned, hidden: bool) -> dict:
    """What is said of an exercise where there is no notebook to look at."""
    verdict = Verdict(assigned.task(), "not attempted", "")
    return tell(verdict, (), {}, hidden) | {"variant": assigned.variant}
