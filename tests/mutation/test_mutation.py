"""What was found about the unit and oracle tests holds for the modules as they are; a few kills are repeated."""

import subprocess
import sys
import warnings

import pytest

from tests.mutation import results
from tests.mutation.mutants import MODULES, ROOT, mutants, source
from tests.mutation.results import digest

ROWS = results.load()["modules"]
REMEDY = "`make mutation MODULES={}` tries its mutants and writes results.json"


def test_every_mechanism_is_mutated():
    assert list(ROWS) == MODULES
    for reason, modules in results.reasons().items():
        assert len(reason) > 20 and set(modules) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_mutant_is_killed_or_explained(module):
    row = ROWS[module]
    assert row["survivors"] == [], REMEDY.format(module)
    assert row["tried"] == row["killed"] + row["explained"] > 0
    assert row["explained"] == len(results.explained(module)), REMEDY.format(module)
    assert row["killed"] >= 0.8 * row["tried"], "too much is explained: see that it is equivalent"


@pytest.mark.parametrize("module", MODULES)
def test_the_figures_are_of_the_module_as_it_is(module):
    """Another text with as many mutants is only told: trying them takes minutes."""
    if ROWS[module]["source"] == digest(source(module)):
        return
    assert len(mutants(module)) == ROWS[module]["mutants"], REMEDY.format(module)
    warnings.warn(f"{module}.py has changed since its mutants were tried: {REMEDY.format(module)}", stacklevel=1)


def test_some_mutants_are_killed_again():
    """By the tests that killed them before, in a process of its own."""
    command = [sys.executable, "-m", "tests.mutation", "--repeat", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": killed: ") >= 5, done.stdout


def test_the_share_that_is_killed():
    total = results.load()["total"]
    assert total["share_killed"] >= 0.95
    assert total["killed"] == sum(row["killed"] for row in ROWS.values())
