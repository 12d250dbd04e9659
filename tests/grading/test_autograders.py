"""The autograders of an assignment, run as Gradescope and GitHub run them, in folders laid out like theirs."""

import ctypes
import json
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from attncourse.grading import gradescope
from attncourse.grading.assign import Question, assign
from attncourse.grading.key import Key
from tests.grading.conftest import skip_unless_root
from tests.grading.leaks import leaks

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("assign")
FULL = 12
UNSHARE = {"x86_64": (0xC000003E, 272), "aarch64": (0xC00000B7, 97)}


@pytest.fixture(scope="module")
def made(tmp_path_factory, built_wheel):
    folder = tmp_path_factory.mktemp("course")
    return assign(
        ["gqa", "positions/rotary_scores"],
        "Week 3",
        folder / "key",
        folder / "out",
        variants=True,
        questions=[Question("essay", "Why?", 4.0)],
        wheel=built_wheel[0],
    )


@pytest.fixture
def autograder(made, tmp_path):
    """A folder as Gradescope makes it, and as setup.sh leaves it, with this environment in the place of a new one."""
    root = tmp_path / "autograder"
    for name in ("source", "submission", "results", "env/bin"):
        (root / name).mkdir(parents=True)
    tmp_path.chmod(0o755)
    (path,) = made.bundle.glob("*gradescope-SECRET.zip")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(root / "source")
    (wheel,) = (root / "source").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "source" / "package")
    python = root / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return root


def run(root, isolation="A", before=None):
    """Run the autograder; what it returned and the results, None where there are none."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"ATTNCOURSE_AUTOGRADER": str(root)}
    env |= {"ATTNCOURSE_ISOLATION": isolation} if isolation else {}
    command = ["bash", str(root / "source" / "run_autograder")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, preexec_fn=before)
    place = root / "results" / "results.json"
    return done, json.loads(place.read_text("utf-8")) if place.exists() else None


def refuse_namespaces():
    """In a child: let the kernel answer unshare with EPERM, as in a container that Docker's own filter guards."""
    arch, number = UNSHARE[platform.machine()]
    allow, refuse = 0x7FFF0000, 0x00050001  # the second: an error, EPERM
    code = [(0x20, 0, 0, 4), (0x15, 0, 3, arch), (0x20, 0, 0, 0), (0x15, 0, 1, number)]
    code += [(6, 0, 0, refuse), (6, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 and libc.prctl(38, 1, 0, 0, 0):
        os._exit(3)
    if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(filter)), 0, 0):
        os._exit(3)


def hand_in(made, root, folder="reference"):
    for path in (made.bundle / folder).glob("*.ipynb"):
        shutil.copy(path, root / "submission")


def check_full(results):
    assert results["score"] == FULL
    assert [test["score"] for test in results["tests"]] == [2, 1, 1, 4, 2, 2]
    assert [test["max_score"] for test in results["tests"]] == [2, 1, 1, 4, 2, 2]
    assert results["stdout_visibility"] == "hidden" and results["visibility"] == "visible"


def test_gradescope_gets_the_results_where_it_expects_them_and_the_key_stays_closed(made, autograder):
    hand_in(made, autograder)
    (autograder / "source").chmod(0o755)
    (autograder / "source" / "instructor.key").chmod(0o644)  # as an unpacked zip may be
    done, results = run(autograder)
    assert done.returncode == 0, done.stderr
    check_full(results)
    assert results["extra_data"]["isolation"] == "A"
    assert stat.S_IMODE((autograder / "source").stat().st_mode) == 0o700
    assert stat.S_IMODE((autograder / "source" / "instructor.key").stat().st_mode) == 0o600
    assert [path.name for path in (autograder / "results").iterdir()] == ["results.json"]


def test_where_namespaces_are_refused_another_user_runs_the_answers(made, autograder):
    skip_unless_root()
    hand_in(made, autograder)
    done, results = run(autograder, isolation="", before=refuse_namespaces)
    assert done.returncode == 0, done.stderr
    check_full(results)
    assert results["extra_data"]["isolation"] == "B"


def test_where_the_machine_cannot_isolate_nobody_gets_points_or_zero_by_accident(made, autograder):
    hand_in(made, autograder)
    done, results = run(autograder, isolation="A", before=refuse_namespaces)
    assert done.returncode == 1 and results is None
    assert "The autograder failed, not the submission" in done.stderr and "namespaces are refused" in done.stderr


def test_the_package_that_students_get_holds_no_secret_either(made):
    key = Key.open(made.handout.parents[1] / "key")
    assert leaks(made.handout.read_bytes(), key) == set()


def test_a_submission_without_notebooks_is_told_so(autograder):
    (autograder / "submission" / "answer.py").write_text("print()")
    (autograder / "submission" / "link.ipynb").symlink_to(autograder / "source" / "instructor.key")
    (autograder / "submission" / "submission_metadata.yml").write_text("submission_1: {}")
    (autograder / "source" / "instructor.key").chmod(0o600)
    assert gradescope.main([str(autograder)]) == 0
    results = json.loads((autograder / "results" / "results.json").read_text("utf-8"))
    assert results["score"] == 0 and "no notebook" in results["output"] and len(results["tests"]) == 6


def test_the_workflows_step_grades_what_is_in_the_repository(made, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(made.bundle / "github", repository)
    (repository / "work").mkdir()
    for path in (made.bundle / "reference").glob("*.ipynb"):
        shutil.copy(path, repository / "work")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, words in (("python", ""), ("attncourse", "-m attncourse.cli")):
        (bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (bin / name).chmod(0o755)
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "grade.yml").read_text("utf-8"))
    (step,) = (step for step in workflow["jobs"]["grade"]["steps"] if step.get("name") == "Grade")
    env = {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"GITHUB_REPOSITORY": "class/someone", "RUNNER_TEMP": str(tmp_path), "ATTNCOURSE_KEY": ""}
    env |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "TMPDIR": str(tmp_path)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub runs a step
    done = subprocess.run(command, cwd=repository, env=os.environ | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert f"**{FULL}** of {FULL} points" in summary and "| gqa/repeat_kv | 1 of 1 |" in summary
    assert [path.suffix for path in (tmp_path / "feedback").iterdir()] == [".html"]
    assert not [path for path in tmp_path.glob("tmp.*/key")]
