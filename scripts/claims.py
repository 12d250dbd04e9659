"""Recompute the audited claims: `python -m scripts.claims` checks `attncourse/data/claims.yml`, writes `claims.json`.

The package reads the JSON, so that it needs no YAML parser. A formula is arithmetic over its claim's inputs, over the
steps before it, `kv_cache_bytes(model, n_tokens)`, and `lab(file, key, …)`: a number of a committed result.
"""

import ast
import json
import math
import operator
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from attncourse.lab import load_result
from attncourse.models import kv_cache_bytes

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "attncourse" / "data" / "claims.yml"
TARGET = SOURCE.with_suffix(".json")
BIBLIOGRAPHY = ROOT / "book" / "references.bib"

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.NotEq: operator.ne,
}


def lab(file: str, *keys: Any) -> Any:
    """What stands under the keys in the committed result `data/lab/<file>.json`."""
    found = load_result(file)
    for key in keys:
        found = found[key]
    return found


def count(values: Any, wanted: Any) -> int:
    """How often `wanted` stands in lists of lists."""
    return sum(count(value, wanted) if isinstance(value, list) else value == wanted for value in values)


FUNCTIONS = {
    "abs": abs,
    "count": count,
    "exp": math.exp,
    "kv_cache_bytes": kv_cache_bytes,
    "lab": lab,
    "max": max,
    "mean": lambda *values: fmean(values),
    "min": min,
    "sin": math.sin,
    "cos": math.cos,
    "sqrt": math.sqrt,
    "sum_of_first": lambda values, n: sum(values[:n]),
}


def evaluate(formula: str, values: Mapping[str, Any]) -> Any:
    """The value of a formula: numbers, texts, names of `values`, arithmetic and the functions above, nothing else.

    Raises ValueError for anything else.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=right) if abs(value(right)) <= 64:
                return value(left) ** value(right)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(value, arguments))
        raise ValueError(f"{ast.unparse(node)!r} in the formula {formula!r} is not allowed, or has no value")

    return value(ast.parse(formula, mode="eval").body)


def recompute(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each of the claim's steps, the claim's own formula last: name, formula, numbers (text), computed, value, unit."""
    values, lines = dict(claim.get("inputs", {})), []
    steps = [*claim.get("steps", []), claim | {"name": "result", "value": claim.get("recomputed")}]
    for step in steps if claim.get("formula") else []:
        computed = evaluate(step["formula"], values)
        line = {key: step[key] for key in ("name", "formula", "value", "unit", "tolerance", "what") if key in step}
        lines.append(line | {"numbers": put_in(step["formula"], values), "computed": computed})
        values[step["name"]] = computed
    return lines


def differs(line: Mapping[str, Any]) -> bool:
    """Whether what was computed is further from what the file says than it allows (not at all, if it does not say)."""
    return not abs(line["computed"] - line["value"]) <= line.get("tolerance", 0)


def put_in(formula: str, values: Mapping[str, Any]) -> str:
    """The formula as people write it, with numbers for names."""

    class Names(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.Call:
            node.args = [self.visit(argument) for argument in node.args]
            return node

        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.Name(id=number(values[node.id])) if node.id in values else node

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Name(id=f'"{node.value}"' if isinstance(node.value, str) else number(node.value))

    return people(ast.unparse(Names().visit(ast.parse(formula, mode="eval"))))


def people(formula: str) -> str:
    """× and ^ for Python's signs."""
    return formula.replace("**", "^").replace("*", "×")


def number(value: float) -> str:
    """A number for people: groups of three digits, and no more than five figures of a fraction."""
    if isinstance(value, bool) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"


def labels(bibliography: str) -> dict[str, str]:
    """ "Ainslie et al. 2023" for each key of a BibTeX file."""
    found = {}
    for entry in re.split(r"^@\w+\{", bibliography, flags=re.MULTILINE)[1:]:
        field = {name: text for name, text in re.findall(r"^  (author|year) += \{(.*)\},$", entry, re.MULTILINE)}
        names = [name.split(",")[0].strip("{} ") for name in field["author"].split(" and ")]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        found[entry.split(",")[0]] = f"{who} {field['year']}"
    return found


def source(said_by: Any, known: Mapping[str, str]) -> dict[str, str]:
    """Who says it: an entry of the bibliography, an address with a text, or a text alone."""
    if isinstance(said_by, str):
        return {"key": said_by, "text": known[said_by]} if said_by in known else {"text": said_by}
    return dict(said_by)


def records() -> list[dict[str, Any]]:
    """The claims as the package wants them: with names of their sources, and their formulas' numbers put in.

    Raises ValueError for a number that does not come out.
    """
    known, made = labels(BIBLIOGRAPHY.read_text("utf-8")), []
    for claim in yaml.safe_load(SOURCE.read_text("utf-8")):
        lines = recompute(claim)
        if wrong := [f"{line['name']} = {line['computed']}, not {line['value']}" for line in lines if differs(line)]:
            raise ValueError(f"{claim['id']}: {'; '.join(wrong)}")
        texts = ("name", "numbers", "unit", "what")
        steps = [
            {key: line[key] for key in texts if key in line}
            | {"formula": people(line["formula"]), "value": number(line["value"])}
            for line in lines
        ]
        same = ("id", "title", "chapter", "claim", "baseline", "verdict", "evidence", "checked", "where", "told", "why")
        made.append(
            {key: claim[key] for key in same if key in claim}
            | {"said_by": [source(one, known) for one in claim["said_by"]], "steps": steps}
        )
    return made


def text() -> str:
    """What `claims.json` has to be."""
    return json.dumps({"claims": records()}, ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    """Check, and write; returns the exit status."""
    try:
        TARGET.write_text(text(), "utf-8")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(json.loads(TARGET.read_text('utf-8'))['claims'])} claims recomputed: {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
