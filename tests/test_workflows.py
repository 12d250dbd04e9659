"""The workflows: well formed, with few rights, from known actions, and calling what the Makefile calls."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
SHIPPED = ROOT / "attncourse" / "data" / "assign" / "grade.yml"  # goes into students' repositories
GITHUB_TOKEN = {  # what each job may do; nothing else, and nothing by default
    "build": {"contents": "read", "pages": "read"},
    "deploy": {"pages": "write", "id-token": "write"},
    "colab": {"contents": "write"},
    "release": {"contents": "write"},
    "newest": {"contents": "read", "issues": "write"},
}


def load(name):
    """A workflow; YAML 1.1 reads the key `on` as True."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    return workflow | {"on": workflow.pop(True)}


def tool(name, *arguments):
    """Run a linter of requirements-test.txt; returns its exit status and what it said."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed: run `make setup`"
    done = subprocess.run([found, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"), [("github-workflows", [*WORKFLOWS, SHIPPED]), ("github-issue-forms", FORMS)]
)
def test_they_follow_their_schema(schema, files, tmp_path):
    assert files
    status, said = tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    assert status == 0, said
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(files[0].read_text().replace("runs-on:", "run-on:").replace("body:", "boddy:"))
    assert tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", wrong)[0] == 1


def test_the_security_linter_finds_nothing(tmp_path):
    config = ROOT / ".github" / "zizmor.yml"
    status, said = tool("zizmor", "--offline", "--no-progress", "--config", config, *WORKFLOWS, SHIPPED)
    assert status == 0, said
    wrong = tmp_path / "wrong.yml"  # and finds what is there
    wrong.write_text(WORKFLOWS[-1].read_text().replace("make test", "echo ${{ github.event.pull_request.title }}"))
    assert "template-injection" in tool("zizmor", "--offline", "--no-progress", "--config", config, wrong)[1]


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_jobs_have_the_rights_they_need_and_a_time_limit(name):
    workflow = load(name)
    assert workflow["permissions"] == {}
    assert "pull_request_target" not in workflow["on"]
    for job, content in workflow["jobs"].items():
        assert content["permissions"] == GITHUB_TOKEN[job]
        assert 0 < content["timeout-minutes"] <= 150
        assert "@" not in content["runs-on"] and "latest" not in content["runs-on"]


def test_no_fork_is_named():
    for path in [*WORKFLOWS, *FORMS]:
        assert not re.search(r"github\.com/|github\.io|attncourse/attncourse", path.read_text()), path


def steps(job):
    return "\n".join(step.get("run", step.get("uses", "")) for step in job["steps"])


def test_the_order_is_test_build_stamp_deploy():
    jobs = load("publish")["jobs"]
    done = steps(jobs["build"])
    order = (
        "restrict_unprivileged_userns=0",
        "make test",
        "make pdf slides",
        "scripts.publish",
        "upload-pages-artifact",
    )
    places = [done.index(step) for step in order]
    assert places == sorted(places)
    assert (jobs["deploy"]["needs"], jobs["colab"]["needs"], jobs["release"]["needs"]) == ("build", "deploy", "build")
    assert "default_branch" in jobs["deploy"]["if"] and "pull_request" in jobs["deploy"]["if"]
    assert jobs["release"]["if"] == "github.ref_type == 'tag'"


def test_what_make_test_leaves_out_without_root_is_tested_as_root():
    """It ends with the command; the workflow adds how it spreads over the processors."""
    command = ".venv/bin/python -m pytest tests/grading"
    assert "sudo $(PYTEST) tests/grading" in (ROOT / "Makefile").read_text()
    assert re.search(rf"^sudo .*{re.escape(command)} ", steps(load("publish")["jobs"]["build"]), re.MULTILINE)


def test_the_workflow_makes_the_tree_as_the_dry_run_does():
    """Both call one script, with options that it has; what is uploaded is what it writes."""
    make = (ROOT / "Makefile").read_text()
    assert "-m scripts.publish --repository '$(REPOSITORY)'" in make
    publish = (ROOT / "scripts" / "publish.py").read_text()
    done = steps(load("publish")["jobs"]["build"])
    (command,) = re.findall(r"-m scripts\.publish (.*)", done)
    used = re.findall(r"--[a-z-]+", command)
    assert "--repository" in used and len(used) >= 4
    assert all(f'"{option}"' in publish for option in used)
    uploads = re.findall(r"path: _build/publish/(\w+)", WORKFLOWS[-1].read_text())
    assert sorted(uploads) == ["colab", "site", "wheel"]
    assert all(f'out / "{name}"' in publish for name in uploads)


def test_the_branch_for_colab_is_the_one_that_links_name():
    from scripts.stamp import BRANCH

    done = steps(load("publish")["jobs"]["colab"])
    assert f"--initial-branch {BRANCH}\n" in done
    assert re.search(rf"git push .* {BRANCH}$", done, re.MULTILINE)


def test_newest_versions_are_tried_on_a_schedule():
    workflow = load("newest")
    assert len(workflow["on"]["schedule"]) == 1
    done = steps(workflow["jobs"]["newest"])
    assert "scripts.newest --issue" in done and "GITHUB_STEP_SUMMARY" in done
