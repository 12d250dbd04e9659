"""A class is graded once, whatever happens: killed, started again, in any order, by any number of processes."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from attncourse import cli
from attncourse.grading import classroom, isolation
from attncourse.grading.classroom import ClassError, alone_in, grade_class, plan, work_found
from attncourse.grading.classroom import InThisProcess as Inline
from attncourse.grading.intake import find_submissions
from attncourse.grading.key import Assigned
from tests.grading.a_class import FRESH, FULL, NO_TANH, ROOT, SOLVED, UNIFORM, marked, notebook, with_answer
from tests.grading.conftest import skip_unless_root

EXPECTED = {
    "ann": FULL,
    "bob": FULL - 1,
    "cyd": FULL - 2,
    "dan": 0,
    "eve": 0,
    "fay": 0,
    "gus": FULL,
    "hal": FULL,
    "ida": FULL - 1,
    "jan": 0,
}
FILES = {
    "ann": marked("ann"),
    "bob": marked("bob", with_answer(UNIFORM)),
    "cyd": marked("cyd", with_answer(NO_TANH)),
    "dan": marked("dan", FRESH),
    "eve": b"",
    "fay": notebook(SOLVED)[:4000],
    "gus": marked("gus", ["import os\nos._exit(0)", *SOLVED]),
    "hal": notebook([*SOLVED, "# ann"]),  # what ann handed in
    "ida": marked("ida", with_answer("def context_vector(w, v):\n    import os\n    os._exit(0)")),
    "jan": notebook(["print('hello')"]),
}


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "submissions", FILES)


def fill(folder, files):
    folder.mkdir()
    for student, data in files.items():
        (folder / f"{student}.ipynb").write_bytes(data)
    return folder


def essence(graded):
    """What must not depend on how a class was run."""
    return {
        item.submission.student: (item.points, item.exercises, item.cell_errors, item.problems, item.failed)
        for item in graded
    }


@pytest.fixture(scope="module")
def first(work, tmp_path_factory):
    """The class graded in this process, and where."""
    out = tmp_path_factory.mktemp("first")
    submissions = find_submissions(fill(out / "submissions", FILES))
    return out, submissions, grade_class(submissions, work, out, pool=Inline)


def test_points(first):
    _, _, graded = first
    assert {item.submission.student: item.points for item in graded} == EXPECTED
    assert not [item.failed for item in graded if item.failed]
    named = {item.submission.student: [m["name"] for e in item.exercises for m in e["mistakes"]] for item in graded}
    assert named["bob"] == ["uniform"] and len(named["cyd"]) == 1
    assert graded[6].cell_errors[0].startswith("Code cell 1: skipped: its process ended")
    assert graded[9].problems == ("No exercise of this assignment is in what was handed in",)
    assert graded[4].problems == ("eve.ipynb is an empty file: download the notebook and hand it in again",)


def test_there_is_one_record_for_each_different_notebook(first, work):
    out, _, graded = first
    records = [json.loads(path.read_text("utf-8")) for path in (out / "records").iterdir()]
    assert len(records) == 6  # ann's and hal's are the same; two cannot be read, one has no exercise
    for record in records:
        assert (
            not record["slow"]
            and record["isolation"] == "A"
            and record["protection"]["files"] == "closed (namespace)"
            and record["hash"]
            and record["graded_by"] == classroom.fingerprint()
        )
    assert {item.isolation for item in graded} == {"A", ""}


def test_two_processes_and_another_order_give_the_same(first, work, tmp_path):
    _, submissions, graded = first
    shuffled = [*submissions]
    random.Random(3).shuffle(shuffled)
    assert essence(grade_class(shuffled, work, tmp_path, workers=2)) == essence(graded)


def test_grading_again_grades_only_what_changed(first, work, tmp_path):
    out, _, graded = first
    shutil.copytree(out / "records", tmp_path / "records")
    again = fill(tmp_path / "s", FILES | {"bob": marked("bob mended"), "kim": marked("kim")})
    (again / "dan.ipynb").unlink()
    (tmp_path / "records" / f"{plan(graded[2].submission, work, 'A')[0].hash}.json").write_text('{"form": 1, "ha')
    seen = []

    class Counting(Inline):
        def submit(self, function, job):
            seen.append(job.cells[-1])
            return super().submit(function, job)

    found = grade_class(find_submissions(again), work, tmp_path, pool=Counting)
    assert sorted(seen) == ["# bob mended", "# cyd", "# kim"]
    changed = {item.submission.student: item.points for item in found if item.new}
    assert changed == {"bob": FULL, "cyd": FULL - 2, "kim": FULL}
    assert {item.submission.student: item.points for item in found} == {
        student: points for student, points in EXPECTED.items() if student != "dan"
    } | {"bob": FULL, "kim": FULL}


def test_what_a_record_depends_on(first, work, key, monkeypatch):
    _, submissions, _ = first
    ann = submissions[0]
    worth = replace(work, exercises=(Assigned(work.exercises[0].id, None, 7), *work.exercises[1:]))
    reseeded = replace(work, seeds={id: (5, 6) for id in work.seeds})
    comment = replace(ann.notebooks[0], cells=(*ann.notebooks[0].cells, "#"))
    plans = [
        plan(ann, work, "A"),
        plan(ann, work, "C"),
        plan(ann, worth, "A"),
        plan(ann, reseeded, "A"),
        plan(ann, replace(work, hidden=False), "A"),
        plan(replace(ann, notebooks=(comment,)), work, "A"),
    ]
    monkeypatch.setattr(classroom, "fingerprint", lambda: "another version")
    plans.append(plan(ann, work, "A"))
    assert len({jobs[0].hash for jobs in plans}) == len(plans)
    assert plan(replace(ann, student="zed", late=True), work, "A")[0].hash == plans[-1][0].hash


def test_each_chapter_is_graded_in_its_own_notebook(tmp_path):
    from attncourse.grading.notebook import code_cells

    chapter = code_cells(ROOT / "solutions" / "02_luong.ipynb")
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / "01.ipynb").write_bytes(notebook(SOLVED))
    (folder / "02.ipynb").write_bytes(notebook(chapter))
    (tmp_path / "bob.ipynb").write_bytes(notebook([*SOLVED, *chapter]))
    submissions = find_submissions(tmp_path)
    found = work_found(submissions)
    assert found.title == "01_bahdanau, 02_luong" and not found.hidden
    plans = {s.student: plan(s, found, "A") for s in submissions}
    assert [{a.id.split("/")[0] for a in job.exercises} for job in plans["ann"]] == [{"bahdanau"}, {"luong"}]
    assert [len(job.cells) for job in plans["ann"]] == [len(SOLVED), len(chapter)]
    assert [len(job.cells) for job in plans["bob"]] == [len(SOLVED) + len(chapter)] * 2
    graded = grade_class(submissions, found, tmp_path / "out", pool=Inline)
    assert {item.points for item in graded} == {found.possible}
    (folder / "02.ipynb").unlink()
    submissions = find_submissions(tmp_path, leave_out=tmp_path / "out")
    assert [job.chapter[0].id.split("/")[0] for job in plan(submissions[0], found, "A")] == ["bahdanau"]
    ann, bob = grade_class(submissions, found, tmp_path / "out", pool=Inline)
    assert ann.problems == ("No exercise of luong is in what was handed in",) and not bob.problems and not ann.new


def test_without_a_key_a_stray_notebook_does_not_change_the_assignment(first, tmp_path):
    stray = {"zoe": (ROOT / "solutions" / "13_gqa.ipynb").read_bytes()}
    submissions = find_submissions(fill(tmp_path / "s", FILES | stray))
    assert {a.id.split("/")[0] for a in work_found(submissions).exercises} == {"bahdanau"}
    with pytest.raises(ClassError, match="no notebook has an exercise"):
        work_found([])


def test_without_a_key_the_class_has_the_variant_that_most_notebooks_name(tmp_path):
    call = 'def repeat_kv(x, n_repeats):\n    ...\ncheck("gqa/repeat_kv", repeat_kv{})'
    published, tiled, unknown = (notebook([call.format(end)]) for end in ("", ', "tiled"', ', "no such"'))
    for files, variant in (([tiled, tiled, published], "tiled"), ([tiled, unknown, published], None)):
        folder = fill(tmp_path / str(variant), dict(zip(("ann", "bob", "cyd"), files, strict=True)))
        found = {assigned.id: assigned.variant for assigned in work_found(find_submissions(folder)).exercises}
        assert found.pop("gqa/repeat_kv") == variant and set(found.values()) == {None}


def test_a_second_run_at_once_is_kept_out(tmp_path):
    with alone_in(tmp_path), pytest.raises(ClassError, match=rf"process {os.getpid()}.*--out DIR"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_grading_process_that_is_killed_costs_nothing(first, work, tmp_path):
    _, submissions, graded = first
    killed = []

    def kill(item):
        if item.new and not killed:
            for process in multiprocessing.active_children():
                killed.append(process.pid)
                process.kill()

    found = grade_class(submissions[:3], work, tmp_path, workers=1, told=kill)
    assert killed and essence(found) == essence(graded[:3])


def test_a_job_that_kills_its_process_is_given_up_and_tried_again_next_time(first, work, tmp_path, monkeypatch):
    _, submissions, _ = first
    some = [s for s in submissions if s.student in ("ann", "bob")]

    def fails(job):
        raise MemoryError("no room")

    class Failing(Inline):
        def submit(self, function, job):
            future = Future()
            try:
                future.set_result(fails(job) if job.cells[-1] == "# bob" else function(job))
            except MemoryError as error:
                future.set_exception(error)
            return future

    ann, bob = grade_class(some, work, tmp_path, pool=Failing)
    assert (ann.points, ann.failed) == (FULL, "") and bob.failed == "MemoryError: no room"
    ann, bob = grade_class(some, work, tmp_path, pool=Inline)
    assert not ann.new and bob.new and (bob.points, bob.failed) == (FULL - 1, "")


def test_what_ran_out_of_time_in_a_crowd_is_graded_again_alone(first, work, tmp_path):
    _, submissions, graded = first
    asked = []

    class Crowded(Inline):
        def submit(self, function, job):
            asked.append(job.cells[-1])
            future = super().submit(function, job)
            if job.cells[-1] == "# bob" and asked.count("# bob") == 1:
                late = [exercise | {"points": 0, "kind": "raised"} for exercise in future.result()["exercises"]]
                record = future.result() | {"slow": True, "exercises": late}
                future = Future()
                future.set_result(record)
            return future

    found = grade_class(submissions[:3], work, tmp_path, pool=Crowded, workers=2)
    assert asked.count("# bob") == 2 and asked[-1] == "# bob" and len(asked) == 4
    assert essence(found) == essence(graded[:3])
    for item in grade_class(submissions[:3], work, tmp_path, pool=Crowded, workers=2):
        assert not item.new


def test_a_machine_that_cannot_isolate_refuses_and_says_what_helps(first, work, tmp_path, monkeypatch):
    _, submissions, _ = first
    monkeypatch.setattr(isolation, "available", lambda: "namespaces are refused")
    monkeypatch.setattr(isolation, "available_to_root", lambda: "level B needs root")
    with pytest.raises(ClassError, match=r"namespaces are refused, and level B needs root.*--isolation C"):
        grade_class(submissions, work, tmp_path, pool=Inline)
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_namespaces_root_grades_at_level_b(first, work, key, tmp_path, monkeypatch):
    skip_unless_root()
    _, submissions, graded = first
    monkeypatch.setattr(isolation, "available", lambda: "namespaces are refused")
    found = grade_class(submissions[:3], work, tmp_path, pool=Inline, private=[key.path])
    assert {item.isolation for item in found} == {"B"} and set(found[0].protection) == set(graded[0].protection)
    assert essence(found) == essence(graded[:3]) and all(item.new for item in found)
    monkeypatch.setattr(isolation, "closed_to_others", lambda path: None)
    with pytest.raises(ClassError, match=r"course\.key can be read by every user.*chmod 600"):
        grade_class(submissions, work, tmp_path, pool=Inline, private=[key.path])


def children(pid):
    """All that descend from a process."""
    above = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(") ")
            above[int(name.split(" ")[0])] = int(rest.split()[1])
    found, news = set(), {pid}
    while news:
        news = {child for child, parent in above.items() if parent in news} - found
        found |= news
    return found


def alive(pids):
    """Those of the processes that still run."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
                found.add(pid)
    return found


def name_of(pid):
    """How a process was started; nothing for multiprocessing's own helper, which stays."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return "" if b"resource_tracker" in words else f"{pid} {words!r}"
    return ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_at_any_moment_it_finishes_with_nothing_lost_or_doubled(first, folder, key, work, tmp_path):
    _, _, graded = first
    for i in range(3):
        (folder / f"more{i}.ipynb").write_bytes(marked(f"more {i}"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "attncourse.cli", "grade", str(folder), "--key", str(key.path), "--out", str(out)]
    chance, records = random.Random(), {}
    for turn in range(2):
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path
        )
        wanted, end = len(records) + chance.choice((0, 1, 2)), time.monotonic() + 120
        while len(list(out.glob("records/*.json"))) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(chance.random() * (2 if wanted == len(records) else 0.2))
        family = children(process.pid)
        process.kill()
        process.communicate(timeout=20)
        end = time.monotonic() + 10
        while (left := alive(family)) and time.monotonic() < end:
            time.sleep(0.02)
        assert not left, f"turn {turn}"
        now = {path.name: path.read_bytes() for path in out.glob("records/*.json")}
        assert all(json.loads(data)["exercises"] for data in now.values())
        assert {name: now[name] for name in records} == records
        records = now
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("records/*.json")}
    done = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if "/13  " in line]
    everyone = sorted([*FILES, *(f"more{i}" for i in range(3))])
    assert sorted(lines) == everyone
    after = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert len(after) == 9 and {name: after[name] for name in before} == before
    for ending in ("feedback/*.html", "results/*.json"):
        assert sorted(path.stem for path in out.glob(ending)) == everyone
    for item in graded:
        result = json.loads((out / "results" / f"{item.submission.student}.json").read_text("utf-8"))
        assert result["score"] == EXPECTED[item.submission.student] == sum(test["score"] for test in result["tests"])
    assert not list(out.rglob("*.tmp"))


# The command


def run(capsys, *arguments):
    code = cli.main(["grade", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


@pytest.fixture
def graded_once(first, tmp_path):
    """A folder in which everything is graded already."""
    shutil.copytree(first[0] / "records", tmp_path / "out" / "records")
    return tmp_path / "out"


def test_the_command_says_one_line_a_student_and_writes_everything(capsys, graded_once, folder, key):
    code, out, error = run(capsys, folder, "--key", key.path, "--out", graded_once)
    assert (code, error) == (0, "")
    assert out[0] == "Week 1: 10 submissions, 5 exercises of 1 chapter; hidden inputs"
    assert "  13/13  ann: as before" in out and "  12/13  bob: as before" in out
    assert "   0/13  eve: eve.ipynb is an empty file: download the notebook and hand it in again" in out
    assert len(out) == 1 + len(FILES) + 2 and out[-1].startswith("Written: ")
    assert sorted(path.name for path in graded_once.iterdir()) == [
        *(".assignment", ".lock", "adjustments.csv", "feedback", "gradebook.csv", "records", "results", "summary.html"),
    ]
    table = (graded_once / "gradebook.csv").read_text("utf-8").splitlines()
    assert table[:3] == [
        "Student,ID,SIS User ID,SIS Login ID,Section,Week 1",
        "    Points Possible,,,,,13",
        "ann,,,ann,,13",
    ]


def test_adjustments_survive_grading_again_and_count(capsys, graded_once, folder, key):
    arguments = (folder, "--key", key.path, "--out", graded_once)
    assert run(capsys, *arguments)[0] == 0
    path = graded_once / "adjustments.csv"
    text = path.read_text("utf-8") + "override,bob,bahdanau/context_vector,1,\noverride,zed,,5,\nexcuse,eve,,,\n"
    path.write_text(text, "utf-8")
    code, _, error = run(capsys, *arguments)
    assert code == 0 and error == "adjustments.csv names students who are not among the submissions: zed\n"
    assert path.read_text("utf-8") == text
    table = (graded_once / "gradebook.csv").read_text("utf-8")
    assert "\nbob,,,bob,,13\n" in table and "\neve,,,eve,,EX\n" in table
    result = json.loads((graded_once / "results" / "bob.json").read_text("utf-8"))
    assert result["score"] == 13 and "set by the instructor" in result["output"]
    path.write_text(text + "bonus,ann,,1\n", "utf-8")
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, []) and "'bonus' is none of" in error


def test_what_is_no_longer_handed_in_leaves_the_pages_but_not_the_records(capsys, graded_once, folder, key):
    arguments = (folder, "--key", key.path, "--out", graded_once)
    run(capsys, *arguments)
    (folder / "ann.ipynb").unlink()
    (folder / "bob.ipynb").unlink()
    run(capsys, *arguments)
    assert not (graded_once / "feedback" / "ann.html").exists()
    assert len(list((graded_once / "records").iterdir())) == 6


def test_a_class_without_a_key(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "grade_class", partial(grade_class, pool=Inline))
    for student in EXPECTED:
        if student not in ("ann", "eve"):
            (folder / f"{student}.ipynb").unlink()
    code, out, _ = run(capsys, folder, "--out", tmp_path / "out", "--title", "Warm-up", "--workers", "1")
    assert code == 0
    assert out[0] == "Warm-up: 2 submissions, 5 exercises of 1 chapter; public inputs, since there is no key"
    assert "  13/13  ann" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}", "--key", "{folder}/no.key"], "there is no key"),
        (["{folder}", "--assignment", "week-1"], "give --key FILE too"),
        (["{folder}", "--key", "{key}", "--assignment", "week-7"], "it has week-1"),
        (["{folder}", "--seed", "3"], "--seed is for single notebooks"),
        (["{folder}/ann.ipynb", "{folder}/bob.ipynb", "--key", "{key}"], "--key is for a class"),
        (["{folder}", "--key", "{key}", "--gradebook", "{folder}/ann.ipynb"], "not a gradebook that Canvas exported"),
        (["{folder}/ann.ipynb", "--key", "{key}", "--out", "{folder}/bob.ipynb"], "is a file"),
        (["{folder}/no.zip", "--key", "{key}"], "there is no"),
    ],
)
def test_wrong_usage_of_a_class(arguments, words, capsys, folder, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, *(text.format(folder=folder, key=key.path) for text in arguments))
    assert (code, out) == (2, []) and words in error and error.startswith("attncourse grade: ")


def test_stopping_a_class_leaves_no_process(first, work, tmp_path):
    _, submissions, _ = first

    def stop(item):
        if item.new:
            raise KeyboardInterrupt

    before, handler = children(os.getpid()), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        grade_class(submissions, work, tmp_path, workers=1, told=stop)
    end = time.monotonic() + 10
    while (left := {name_of(pid) for pid in alive(children(os.getpid()) - before)} - {""}) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left
    assert signal.getsignal(signal.SIGINT) is handler
