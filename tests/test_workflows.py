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
        "actions/configure-pages",
        "restrict_unprivileged_userns=0",
        "make setup",
        "scripts.publish --check",
        "make test",
        "make pdf slides",
        "scripts.publish --repository",
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
    check, command = (re.findall(r"--[a-z-]+", line) for line in re.findall(r"-m scripts\.publish (.*)", done))
    assert check[0] == "--check" and {"--repository", "--site", "--tag"} <= set(check) & set(command)
    assert all(f'"{option}"' in publish for option in check + command)
    uploads = re.findall(r"path: _build/publish/(\w+)", WORKFLOWS[-1].read_text())
    assert sorted(uploads) == ["colab", "site", "wheel"]
    assert all(f'out / "{name}"' in publish for name in uploads)


def test_the_branch_for_colab_is_the_one_that_links_name():
    from scripts.stamp import BRANCH

    done = steps(load("publish")["jobs"]["colab"])
    assert f"--initial-branch {BRANCH}\n" in done
    assert re.search(rf"git push .* {BRANCH}$", done, re.MULTILINE)


def run_step(job, name, releases, folder):
    """Run a step of the workflow as Actions does, with a gh that knows these releases; returns its status and calls.

    releases: the names of their assets by tag. A wheel called broken is listed, and cannot be fetched.
    """
    (step,) = (step for step in load("publish")["jobs"][job]["steps"] if step.get("name") == name)
    gh = folder / "gh"
    gh.write_text(f"""#!{sys.executable}
import sys
releases, (_, _, verb, tag, *rest) = {releases!r}, sys.argv
open("calls", "a").write(" ".join([verb, tag, *rest]) + "\\n")
if verb == "list":
    print("".join(name + "\\n" for name in releases), end="")
elif verb == "view":
    tag in releases or sys.exit("release not found")
    print(*(name for name in releases[tag] if name.endswith(".whl")), sep="\\n", end="")
elif verb == "download":
    "*.whl" in rest and any(name.endswith(".whl") for name in releases[tag]) or sys.exit("no assets match")
    "broken.whl" in releases[tag] and sys.exit("connection reset")
elif verb == "create":
    tag in releases and sys.exit("a release with the same tag name already exists")
""")
    gh.chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "GITHUB_REF_NAME": "v2"}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    status = subprocess.run(shell, cwd=folder, env=environment, capture_output=True).returncode
    calls = (folder / "calls").read_text().splitlines()
    return status, [call.split(" --")[0] for call in calls if not call.startswith(("list", "view"))]


@pytest.mark.parametrize(
    ("releases", "status", "fetched"),
    [
        ({"v2": ["a.whl"], "v1": ["notes.pdf"], "v0": ["b.whl"]}, 0, ["download v2", "download v0"]),
        ({"v2": []}, 0, []),
        ({}, 0, []),
        ({"v2": ["broken.whl"], "v1": ["a.whl"]}, 1, ["download v2"]),
    ],
)
def test_earlier_packages_are_fetched_or_the_build_fails(releases, status, fetched, tmp_path):
    name = "Fetch the packages of earlier releases"
    (step,) = (step for step in load("publish")["jobs"]["build"]["steps"] if step.get("name") == name)
    assert step["shell"] == "bash"  # Actions then sets pipefail too
    assert run_step("build", name, releases, tmp_path) == (status, fetched)


@pytest.mark.parametrize(
    ("releases", "done"), [({"v1": ["a.whl"]}, "create v2 wheel/b.whl"), ({"v2": []}, "upload v2 wheel/b.whl")]
)
def test_a_release_is_made_once_and_its_package_replaced(releases, done, tmp_path):
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "b.whl").touch()
    assert run_step("release", "Attach it", releases, tmp_path) == (0, [done])


def test_what_pages_are_deployed_from_is_kept_for_a_week():
    """A deployment may wait for a person, or be run again."""
    (upload,) = (step for step in load("publish")["jobs"]["build"]["steps"] if "pages-artifact" in step.get("uses", ""))
    assert upload["with"]["retention-days"] == 7


def test_newest_versions_are_tried_on_a_schedule():
    workflow = load("newest")
    assert len(workflow["on"]["schedule"]) == 1
    done = steps(workflow["jobs"]["newest"])
    assert "scripts.newest --issue" in done and "GITHUB_STEP_SUMMARY" in done
