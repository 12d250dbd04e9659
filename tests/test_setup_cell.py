"""The set-up cell: the same in every notebook, silent where the package is, clear where it is not."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from scripts import setup_cell

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(
    path for folder in ("notebooks", "solutions", "exercises") for path in (ROOT / folder).glob("*.ipynb")
)
ADDRESS = "https://example.org/course/attncourse-0.1.0-py3-none-any.whl"


@pytest.fixture
def pip(monkeypatch):
    """Calls that the cell makes, in place of making them; `.reply` is what it gets back."""
    calls = SimpleNamespace(made=[], reply=SimpleNamespace(returncode=0, stderr=""))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.made.append(command) or calls.reply)
    return calls


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_notebook_begins_with_it(path):
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert cell.source == setup_cell.SOURCE, "run: python -m scripts.setup_cell; make exercises"
    assert (cell.id, cell.metadata, cell.outputs) == ("install", {"tags": ["remove-cell"]}, [])


def test_where_the_package_is_it_does_nothing(pip):
    exec(setup_cell.source(ADDRESS), {})
    assert not pip.made


def test_without_package_and_address_it_stops_with_a_sentence(tmp_path):
    (tmp_path / "attncourse").mkdir()  # a folder of that name, such as a clone, is not the package
    command = [sys.executable, "-E", "-S", "-c", setup_cell.SOURCE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("The package attncourse is not installed here")
    assert "make book" in done.stderr


def test_with_an_address_it_asks_pip_for_two_packages_and_no_dependencies(pip, missing):
    exec(setup_cell.source(ADDRESS), {})
    assert pip.made == [[sys.executable, "-m", "pip", "install", "-qq", "--no-deps", ADDRESS, "num2words"]]


def test_when_pip_fails_it_names_the_address_and_the_reason(pip, missing):
    pip.reply = SimpleNamespace(returncode=1, stderr="WARNING: once more\nERROR: no network\n")
    with pytest.raises(SystemExit, match=f"{ADDRESS} could not be installed. ERROR: no network$"):
        exec(setup_cell.source(ADDRESS), {})


def test_an_address_replaces_the_placeholder_and_nothing_else():
    stamped = setup_cell.source(ADDRESS)
    assert setup_cell.UNSTAMPED not in stamped
    assert stamped.replace(ADDRESS, "") == setup_cell.SOURCE


def test_it_is_formatted_as_notebooks_are():
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "84", "-"]
    done = subprocess.run(command, input=setup_cell.SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == setup_cell.SOURCE


@pytest.mark.parametrize("address", ["http://example.org/a.whl", "file:///a.whl", 'https://example.org/"', "a.whl"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="address="):
        setup_cell.source(address)


def test_stamping_inserts_updates_and_is_done_once():
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# Title"), new.new_code_cell("x = 1", id="x")])
    assert setup_cell.stamp(notebook)
    assert not setup_cell.stamp(notebook)
    assert setup_cell.stamp(notebook, ADDRESS)
    notebook.cells.append(notebook.cells.pop(1))  # moved away, it comes back
    assert setup_cell.stamp(notebook)
    assert [cell.get("id") for cell in notebook.cells][1:] == ["install", "x"]
    assert notebook.cells[1].source == setup_cell.SOURCE


def test_a_notebook_without_it_is_noticed(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "a.ipynb")
    monkeypatch.setattr(setup_cell, "ROOT", tmp_path)
    assert setup_cell.main(["--check"]) == 1
    assert "notebooks/a.ipynb does not begin" in capsys.readouterr().err
    assert setup_cell.main([]) == 0
    assert setup_cell.main(["--check"]) == 0
