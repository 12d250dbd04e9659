"""What can be said about the book without building it: its files, its markup, and whether a patch is still needed."""

import inspect
import json
import re
import sys
from pathlib import Path

import myst_nb.sphinx_
import nbformat
import pydata_sphinx_theme
import pytest
import sphinx_book_theme
import sphinx_thebe
import sphinxcontrib.katex
import yaml

from tests.book.extensions import load

ROOT = Path(__file__).parents[2]
EXTENSIONS = sorted((ROOT / "book" / "_ext").glob("*.py"))
NOTEBOOKS = sorted(
    path for folder in ("notebooks", "exercises", "solutions") for path in (ROOT / folder).glob("*.ipynb")
)
THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme"
BOOK_THEME = Path(sphinx_book_theme.__file__).parent / "theme" / "sphinx_book_theme"

MYST = {
    "a directive": r"^ *(`{3,}|:{3,}) *\{[\w:-]+\}",
    "a role": r"\{[\w:-]+\}`[^`]+`",
    "a target": r"^ *\([\w-]+\)= *$",
    "a comment": r"^ *% ",
    "a block break": r"^\+\+\+",
    "a substitution": r"\{\{.*\}\}",
    "an image of another host": r"!\[[^\]]*\]\( *https?:|<(img|iframe|script|link|video)\b[^>]*=[\"']?(https?:)?//",
}


def toc_files(node):
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in {"file", "root"})
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from toc_files(child)


def prose(text):
    """Markdown without its code and mathematics, which may look like anything."""
    text = re.sub(r"^( *)(`{3,}|~{3,})(?! *\{).*?^\1\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"(?<!\\)\$[^$\n]+\$", "", text)
    return re.sub(r"(?<![`}])(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


def markup_errors(text):
    return [name for name, pattern in MYST.items() if re.search(pattern, prose(text), re.MULTILINE | re.IGNORECASE)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_notebooks_are_plain_markdown(path):
    """They are read on GitHub, in Colab, JupyterLab and VS Code, where MyST shows raw."""
    cells = nbformat.read(path, as_version=4).cells
    errors = {i: markup_errors(cell.source) for i, cell in enumerate(cells) if cell.cell_type == "markdown"}
    assert not {i: found for i, found in errors.items() if found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```{note}\nx\n```", ["a directive"]),
        (":::{admonition} x\n:::", ["a directive"]),
        ("see {cite}`bahdanau2014`", ["a role"]),
        ("(here)=\n# Title", ["a target"]),
        ("{{ name }}", ["a substitution"]),
        ("![badge](https://example.org/b.svg)", ["an image of another host"]),
        ('<img alt="x" src="https://example.org/b.svg">', ["an image of another host"]),
        ("```python\nd = {a}`b`\n```", []),
        ("`{x}` and `{y}` and $x_{{i}}$, $\\{a\\}$\n\n$$\n\\mathrm{x}_{{ij}}\n$$", []),
        ("<details><summary>Hint</summary>\n\n| a | b |\n| - | - |\n\n</details> [a](https://example.org)", []),
        ("![what it shows](figure.svg)", []),
    ],
)
def test_markup_check_sees_what_it_should(text, expected):
    assert markup_errors(text) == expected


def test_table_of_contents_names_files_that_exist():
    files = list(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    assert len(files) == len(set(files))
    missing = [name for name in files if not any((ROOT / f"{name}{suffix}").exists() for suffix in (".md", ".ipynb"))]
    assert not missing


def test_every_page_and_notebook_is_in_the_table_of_contents():
    listed = set(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    pages = [*(ROOT / "book").rglob("*.md"), *NOTEBOOKS]
    assert not {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages} - listed


def test_bibliography_keys_are_unique_and_complete():
    text = (ROOT / "book" / "references.bib").read_text()
    keys = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    for needed in ("author", "title", "year", "eprint|doi"):  # of a preprint its number, else the DOI
        entries = re.split(r"^@", text, flags=re.MULTILINE)[1:]
        assert all(re.search(rf"^  ({needed}) +=", entry, re.MULTILINE) for entry in entries), needed


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.name)
def test_extensions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 150


@pytest.mark.parametrize(("folder", "package"), [(".", "katex"), ("tests/lighthouse", "lighthouse")])
def test_lock_files_name_no_registry(folder, package):
    lock = (ROOT / folder / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    wanted = json.loads((ROOT / folder / "package.json").read_text())
    wanted = wanted.get("dependencies", {}) | wanted["devDependencies"]
    assert json.loads(lock)["packages"][f"node_modules/{package}"]["version"] == wanted[package]
    assert "omit-lockfile-registry-resolved=true" in (ROOT / folder / ".npmrc").read_text()


# ---- is a patch still needed? Each of these fails when upstream has mended what book/_ext mends. ----

STILL_THERE = {
    "fontawesome.js": (THEME / "static" / "webpack-macros.html", r'<script src="[^"]*scripts/fontawesome\.js'),
    "no theme without scripts": (THEME / "layout.html", r'data-theme="\{\{ default_mode \}\}"'),
    "flash in dark mode": (THEME / "layout.html", r'localStorage\.getItem\("theme"\) \|\| "\{\{ default_mode \}\}"'),
    "search button": (
        THEME / "components" / "search-button-field.html",
        r'<button class="btn search-button-field[^>]* aria-label="\{\{ _\(\'Search\'\) \}\}"',
    ),
    "sidebar region": (THEME / "layout.html", r'<div id="pst-primary-sidebar" class'),
    "description": (BOOK_THEME / "layout.html", r"^(?![\s\S]*page_description)"),
    "thebe": (Path(sphinx_thebe.__file__), r"app\.add_js_file\(filename=\"sphinx-thebe\.js\""),
    "thebe's stylesheet": (Path(sphinx_thebe.__file__), r"app\.add_css_file\(\"sphinx-thebe\.css\"\)"),
    "name of hidden cells": (Path(myst_nb.sphinx_.__file__), r'<summary aria-label="Toggle hidden content">'),
    "html in dark outputs": (
        THEME / "static" / "styles" / "pydata-sphinx-theme.css",
        r"html\[data-theme=dark\] \.bd-content div\.cell_output \.text_html:not\(:has\(table\.dataframe\)\)",
    ),
}


@pytest.mark.parametrize("name", STILL_THERE)
def test_theme_patch_is_still_needed(name):
    path, pattern = STILL_THERE[name]
    assert re.search(pattern, path.read_text()), f"{path.name} no longer needs the patch {name!r}: remove it"


def test_sidebar_arrow_still_has_no_name():
    source = (THEME.parents[1] / "toctree.py").read_text()
    assert "aria-label" not in re.search(r'new_tag\("summary"\).*?details\.insert', source, re.DOTALL).group()


def test_docutils_still_writes_the_withdrawn_role():
    from docutils.writers import _html_base

    assert 'role="doc-biblioentry"' in Path(_html_base.__file__).read_text()


def test_prerenderer_still_brings_another_katex():
    installed = json.loads((ROOT / "package-lock.json").read_text())["packages"]["node_modules/katex"]["version"]
    assert sphinxcontrib.katex.katex_version != installed


def test_prerenderer_still_connects_before_its_server_listens():
    assert "ConnectionRefusedError" not in inspect.getsource(sphinxcontrib.katex.KaTeXServer.start_server_process)


def test_the_icon_font_still_has_every_icon():
    assert (load("attncourse_icons").SOURCE / "fa-solid-900.woff2").stat().st_size > 100_000


def test_icons_are_found_by_name_and_in_stylesheets():
    icons = load("attncourse_icons")
    sheet = '.fa-bars:before,.fa-navicon:before{content:"\\f0c9"}.fa-plus:before{content:"+"}'
    sheet += '.fa-sun:before{content:"\\f185"}'
    own = 'a:after{content:"\\f107"}:root{--icon-bell:"\uf0f3"}'
    assert icons.icons_shown(['<i class="fa-solid fa-navicon fa-plus">'], [sheet, own]) == {
        0xF0C9,
        0x2B,
        0xF107,
        0xF0F3,
    }


def test_every_patch_is_one_of_these():
    """A patch without a test above would outlive its reason."""
    book = load("attncourse_book")
    assert len(book.PATCHES) == 9
    assert all(why and pattern for why, pattern, _ in book.PATCHES)


# ---- the generated pages ----

MATRIX = {
    "exercises": [
        {
            "id": "bahdanau/additive_score",
            "title": "Additive score: the energy",
            "misconceptions": [
                {"name": "no tanh", "caught": True, "named": True},
                {"name": "a | b", "caught": True, "named": False},
            ],
            "pairs": {"total": 3, "caught": 3, "named": 2},
            "mechanical": {"total": 9, "killed": 8, "explained": 1},
            "rewritings": {"total": 4, "passed": 4},
        }
    ],
    "totals": {},
}


def test_matrix_becomes_tables():
    pages = load("attncourse_pages")
    text = pages.matrix_markdown(MATRIX)
    assert "2 misconceptions in 1 exercise: 2 of 2 caught, 1 of 2 named first." in text
    assert (
        "| [Additive score: the energy](#additive-score-the-energy) | 2 of 2 | 1 of 2 | 3 of 3 | 2 of 3 "
        "| 8 of 9, 1 equivalent | 4 of 4 |" in text
    )
    assert "| a \\| b | yes | **no** |" in text


def test_exercises_that_ask_for_a_test_have_a_table_of_their_own():
    numbers = {"right": 5, "wrong": 7, "good_tests": {"total": 4, "told": 4}, "lax_tests": {"total": 9, "told": 8}}
    reverse = {
        "id": "a/test",
        "title": "Write the test",
        "reverse": numbers | {"strict_tests": {"total": 3, "told": 3}},
    }
    markdown = load("attncourse_pages").matrix_markdown
    text = markdown(MATRIX | {"exercises": [*MATRIX["exercises"], reverse]})
    assert (
        "\n| --- | --- | --- | --- | --- |\n| Write the test (`a/test`) | 5 and 7 | 4 of 4 | 8 of 9 | 3 of 3 |\n"
        in text
    )
    assert "2 misconceptions in 1 exercise: " in text
    assert "writes a test" not in markdown(MATRIX)


def test_committed_matrix_becomes_tables():
    pages = load("attncourse_pages")
    if pages.MATRIX.exists():
        matrix = json.loads(pages.MATRIX.read_text())
        text = pages.matrix_markdown(matrix)
        assert all(exercise["title"] in text for exercise in matrix["exercises"])


def test_build_notices_every_change_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import build_book

    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    package = tmp_path / "attncourse" / "data"
    package.mkdir(parents=True)
    seen = {build_book.fingerprint(["attncourse/**/*"])}
    (package / "a.json").write_text("1")
    seen.add(build_book.fingerprint(["attncourse/**/*"]))
    (package / "a.json").write_text("2")
    seen.add(build_book.fingerprint(["attncourse/**/*"]))
    (package / "a.json").rename(package / "b.json")
    seen.add(build_book.fingerprint(["attncourse/**/*"]))
    assert len(seen) == 4
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("x")
    assert build_book.fingerprint(["attncourse/**/*"]) in seen


def test_what_the_tests_notice_becomes_a_table():
    row = {"mutants": 1300, "tried": 160, "killed": 150, "explained": 8, "survivors": ["a"]}
    total = row | {"survivors": 2, "share_killed": 0.9868}
    text = load("attncourse_mutation").mutation_markdown(
        {"total": total, "date": "2026-11-23", "modules": {"gqa": row | {"source": "0"}}}
    )
    assert "160 of 1,300 possible changes were tried, on 2026-11-23: 150 are noticed, 8 change nothing" in text
    assert "That is 98.7 % of those that matter." in text
    assert "\n| `gqa` | 1,300 | 160 | 150 | 8 |" in text
