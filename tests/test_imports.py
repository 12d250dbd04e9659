"""Dependencies point one way: a mechanism never imports the apparatus around it."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "attncourse"
MECHANISMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
MAY_IMPORT = {  # part of the package -> other parts
    "mechanism": {"mechanism"},
    "checks": {"mechanism", "checks"},
    "lab": {"mechanism", "lab"},
    "show": {"show", "root"},
    "grading": {"mechanism", "checks", "grading", "root"},
    "cli": {"mechanism", "checks", "grading", "lab", "show", "cli", "root"},
    "root": {"checks", "mechanism"},
}


def part(module: str) -> str:
    """The part of the package that a dotted name belongs to."""
    names = module.split(".")
    if len(names) == 1:
        return "root"
    return "mechanism" if names[1] in MECHANISMS else names[1] if names[1] in MAY_IMPORT else "root"


def imported(path: Path) -> set[str]:
    """Every module of the course that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "attncourse"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = part(".".join(["attncourse", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"))
    wrong = {name for name in imported(path) if part(name) not in MAY_IMPORT[own]}
    assert not wrong, f"{own} may import {sorted(MAY_IMPORT[own])}"


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_needs_torch_and_nothing_else(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= {"torch", "attncourse"} | sys.stdlib_module_names
