"""The exercise notebooks: in step with the solutions and with the specifications, harmless when fresh."""

import re
from pathlib import Path

import nbformat
import pytest

from attncourse.checks import evaluate, exercises
from scripts import exercises as script

ROOT = Path(__file__).parents[1]
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def run(path):
    """Run a notebook's code cells, checks left out; the names they defined."""
    namespace = {"__name__": "notebook"}
    for cell in cells(path):
        if not cell.source.startswith("check("):
            exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), namespace)
    return namespace


def test_exercises_are_in_step_with_solutions():
    assert script.main(["--check"]) == 0, "run: make exercises"


def test_a_change_of_a_solution_notebook_is_noticed(tmp_path, monkeypatch):
    text = SOLUTIONS[0].read_text("utf-8")
    (tmp_path / SOLUTIONS[0].name).write_text(text.replace("minutes", "hours", 1), "utf-8")
    monkeypatch.setattr(script, "SOLUTIONS", tmp_path)
    assert script.main(["--check"]) == 1


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_solution_passes_and_every_fresh_exercise_is_not_attempted(path):
    solved, fresh = run(path), run(ROOT / "exercises" / path.name)
    chosen = [exercise for exercise in exercises() if exercise.chapter == path.stem]
    assert chosen
    for exercise in chosen:
        verdict = evaluate(exercise.id, solved[exercise.defines])
        assert (verdict.kind, verdict.advice) == ("passed", ()), exercise.id
        assert evaluate(exercise.id, fresh[exercise.defines]).kind == "not attempted", exercise.id


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_no_solution_is_left_in_the_exercises(path):
    text = (ROOT / "exercises" / path.name).read_text("utf-8")
    assert "SOLUTION" not in text
    answers = [cell for cell in cells(path) if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell in answers:
        hidden = re.search(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.DOTALL)[1]
        longest = max((line.strip() for line in hidden.splitlines()), key=len)
        assert longest not in text


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_notebook_says_what_the_specification_says(path):
    prose = {cell.id.removesuffix("-task"): cell.source for cell in cells(path, "markdown")}
    graded = {
        cell.metadata.nbgrader.grade_id.removesuffix("-check"): cell
        for cell in cells(path)
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    chosen = [exercise for exercise in exercises() if exercise.chapter == path.stem]
    assert {exercise.id.split("/")[1] for exercise in chosen} == set(graded)
    for n, exercise in enumerate(chosen, 1):
        slug = exercise.id.split("/")[1]
        task, check = prose[slug], graded[slug]
        dots = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
        points = f"{exercise.points} point{'s' if exercise.points > 1 else ''}"
        assert task.startswith(f"## {n}. {exercise.title}\n")
        assert f"`{exercise.id}` · difficulty {dots} · {exercise.minutes} minutes · {points}" in task
        assert f"| {n} {exercise.title} | {dots} | {exercise.minutes} | {exercise.points} |" in prose["title"]
        assert len(re.findall(r"<details><summary>Hint \d</summary>", task)) == 3
        anchor = re.sub(r"[^a-z0-9]+", "-", f"{n} {exercise.title}".lower().replace("'", "")).strip("-")
        assert f"[Solution](../solutions/{path.name}#{anchor})" in task
        assert check.source == f'check("{exercise.id}", {exercise.defines})'
        assert check.metadata.nbgrader.points == exercise.points
