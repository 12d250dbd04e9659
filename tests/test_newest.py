"""Trying the newest versions: pins come off except those with a reason; the report says what moved and what failed."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from scripts import newest

ROOT = Path(__file__).parents[1]


def shell(text, unset=False):
    """What set-up's `unpinned` makes of requirements."""
    (function,) = re.findall(r"^unpinned\(\) .*$", (ROOT / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    script = f"set -eu\n{'unset NEWEST' if unset else 'NEWEST=1'}\n{function}\nunpinned"
    return subprocess.run(["bash", "-c", script], input=text, capture_output=True, text=True, check=True).stdout


def test_pins_with_a_reason_stay():
    text = "torch==2.13.0\njupyter-book==1.0.4.post1  # 2 is another program\n"
    assert shell(text) == "torch\njupyter-book==1.0.4.post1  # 2 is another program\n"
    assert shell(text, unset=True) == text


def test_jupyter_book_keeps_its_pin():
    """The second version is a rewrite without this book's files: each week it would fail, for a known reason."""
    assert "\njupyter-book==1" in shell((ROOT / "requirements.txt").read_text())


def test_all_requirements_are_compared():
    pins = newest.pinned()
    assert pins["torch"] and pins["jupyter-book"].startswith("1.") and pins["pytest"]
    lines = [*(ROOT / "requirements.txt").open(), *(ROOT / "requirements-test.txt").open()]
    assert len(pins) == sum("==" in line and not line.startswith("#") for line in lines)


def test_the_report_says_what_moved_and_what_failed():
    said = "\n".join(f"\x1b[31mline {i}\x1b[0m" for i in range(100))
    results = {"set-up": (0, "installed"), "unit tests": (1, said), "notebooks": (0, "")}
    text = newest.report(
        {"numpy": "2.4.6", "torch": "2.13.0"}, {"numpy": "2.5.0", "torch": "2.13.0", "x": "1"}, results
    )
    assert "| set-up | passed |\n| unit tests | failed |\n| notebooks | passed |\n| book and pages | not run |" in text
    assert "1 of 2 packages are not the pinned version." in text
    assert "| numpy | 2.4.6 | 2.5.0 |" in text and "| torch |" not in text
    assert "The end of what unit tests said:\n\n~~~text\nline 60\n" in text and text.endswith("line 99\n~~~\n")
    assert "installed" not in text


def test_nothing_runs_after_a_set_up_that_failed(capfd):
    steps = {"set-up": ["sh", "-c", 'echo "pins off: $NEWEST"; exit 3'], "unit tests": ["echo", "ran"]}
    assert newest.run_steps(steps) == {"set-up": (3, "pins off: 1\n")}
    steps["set-up"] = ["true"]
    assert newest.run_steps(steps | {"last": ["false"]}) == {
        "set-up": (0, ""),
        "unit tests": (0, "ran\n"),
        "last": (1, ""),
    }


@pytest.fixture
def gh(monkeypatch):
    """GitHub's command line, in place of it: what is asked, and the issues that are open."""
    asked, state = [], {"enabled": True, "issues": []}

    def answer(*arguments):
        asked.append(arguments)
        answers = {"repo": {"hasIssuesEnabled": state["enabled"]}, "list": state["issues"]}
        return json.dumps(answers.get(arguments[0], answers.get(arguments[1], "")))

    monkeypatch.setattr(newest, "gh", answer)
    return asked, state


@pytest.mark.parametrize(
    ("open_issue", "failed", "done"),
    [(False, True, "create"), (True, True, "edit"), (True, False, "close"), (False, False, None)],
)
def test_one_issue_is_opened_updated_and_closed(gh, open_issue, failed, done):
    asked, state = gh
    state["issues"] = [{"number": 3, "title": "another"}]
    state["issues"] += [{"number": 7, "title": newest.TITLE}] if open_issue else []
    newest.tell(failed)
    changed = [arguments for arguments in asked if arguments[1] not in {"list", "view"}]
    assert [arguments[:2] for arguments in changed] == ([("issue", done)] if done else [])
    if done in {"edit", "close"}:
        assert changed[0][2] == "7"


def test_where_issues_are_off_nothing_is_asked_of_them(gh):
    asked, state = gh
    state["enabled"] = False
    assert "switched off" in newest.tell(failed=True)
    assert len(asked) == 1


def test_an_environment_that_is_there_is_left_alone(monkeypatch, tmp_path, capsys):
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(newest, "ROOT", tmp_path)
    monkeypatch.setattr(newest, "run_steps", lambda steps: pytest.fail("it ran"))
    assert newest.main([]) == 2
    assert "fresh clone" in capsys.readouterr().err
