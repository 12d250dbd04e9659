"""Mechanical mutants of a module: one small edit of one function or method each.

`tests.edits` has the mistakes of one keystroke that the exercises' checks are tested with. What a module has besides,
is edited here: guards and the errors they raise, defaults, loops, contexts, slices, chained comparisons. Not edited are
docstrings, annotations, and texts that only an error's message holds.
"""

import ast
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.edits import OTHER_COMPARISON, Replace, head, is_self, replacements

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "attncourse"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
OTHER_ERROR = {"ValueError": "TypeError", "TypeError": "ValueError"}
OTHER_OPERATOR = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mod},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitXor: ast.BitOr},
}
COMMUTE = (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)
SYMMETRIC = ("transpose", "maximum", "minimum", "max", "min")  # exchanging these functions' arguments changes nothing
NEVER = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.arguments, ast.comprehension)


@dataclass(frozen=True)
class Mutant:
    """One edit. `id` is "Class.method: line before -> line after"; `lines` are those that a test must run to see it."""

    module: str
    function: str
    id: str
    lines: frozenset[int]
    tree: FUNCTION


@cache
def source(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text("utf-8")


@cache
def functions(module: str) -> dict[str, FUNCTION]:
    """The functions of a module and the methods of its classes, by qualified name."""
    found = {}
    for node in ast.parse(source(module)).body:
        if isinstance(node, FUNCTION):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": inner for inner in node.body if isinstance(inner, FUNCTION)}
    return found


@cache
def mutants(module: str) -> dict[str, Mutant]:
    """All mutants of a module by id, in the order of the source. Two that read the same are numbered."""
    found: dict[str, Mutant] = {}
    for name, function in functions(module).items():
        seen = {ast.unparse(function)}
        for text, lines, tree in edits(function):
            written = ast.unparse(tree)
            if written in seen or not _compiles(tree):
                continue
            seen.add(written)
            id, number = f"{name}: {text}", 2
            while id in found:
                id, number = f"{name}: {text} [{number}]", number + 1
            found[id] = Mutant(module, name, id, lines, tree)
    return found


def edits(function: FUNCTION) -> Iterator[tuple[str, frozenset[int], FUNCTION]]:
    """What is edited, the lines that it stands on, and the edited function."""
    place = {id(node): i for i, node in enumerate(ast.walk(function))}
    own = sorted({node.attr for node in ast.walk(function) if is_self(node)})
    for statement, nodes in _statements(function):
        whole = statement is function
        lines = _lines(function.body) if whole else _lines([statement], head_only=True)
        for node in nodes:
            for replacement in _replacements(node, function, own):
                edited, new = copy.deepcopy(function), copy.deepcopy(replacement)
                there = list(ast.walk(edited))
                line = new if node is statement else there[place[id(statement)]]
                Replace(there[place[id(node)]], new).visit(edited)
                ast.fix_missing_locations(edited)
                after = f"def {function.name}({ast.unparse(edited.args)})" if whole else head(line)
                after = "(deleted)" if isinstance(new, ast.Pass) else after
                before = f"def {function.name}({ast.unparse(function.args)})" if whole else head(statement)
                yield f"{before} -> {after}", lines, edited


def _compiles(tree: FUNCTION) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(ast.Module([tree], []), "<mutant>", "exec")
        except (SyntaxError, ValueError, TypeError):
            return False
    return True


def _lines(statements: list[ast.stmt], head_only: bool = False) -> frozenset[int]:
    found: set[int] = set()
    for statement in statements:
        inner = getattr(statement, "body", None) if head_only else None
        end = inner[0].lineno - 1 if isinstance(inner, list) else statement.end_lineno
        found |= set(range(statement.lineno, max(end, statement.lineno) + 1))
    return frozenset(found)


def _statements(function: FUNCTION) -> Iterator[tuple[ast.stmt, list[ast.AST]]]:
    """The function itself, for its defaults, and every statement, with what may be edited of its own line."""
    messages = _message_names(function)
    yield function, _nodes([*function.args.defaults, *filter(None, function.args.kw_defaults)])
    waiting: list[ast.stmt] = list(function.body)
    while waiting:
        statement = waiting.pop(0)
        inner = [statement] if isinstance(statement, ast.Try) else []
        for name in ("body", "orelse", "finalbody"):
            waiting[:0] = getattr(statement, name, [])
        waiting[:0] = [line for handler in getattr(statement, "handlers", []) for line in handler.body]
        if inner or isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # the docstring
        if isinstance(statement, ast.Assign) and _targets(statement) <= messages:
            continue
        match statement:
            case ast.Raise():
                yield statement, [statement]
            case ast.If(test=test) | ast.While(test=test):
                yield statement, [statement, *_nodes([test])]
            case ast.For(iter=iter):
                yield statement, [statement, *_nodes([iter])]
            case ast.With(items=items):
                yield statement, [statement, *_nodes([item.context_expr for item in items])]
            case ast.FunctionDef(args=arguments):
                yield statement, _nodes([*arguments.defaults, *filter(None, arguments.kw_defaults)])
            case ast.AnnAssign(value=value):
                yield statement, _nodes([value] if value else [])
            case _:
                yield statement, [statement, *_nodes(list(ast.iter_child_nodes(statement)))]


def _nodes(roots: list[ast.AST]) -> list[ast.AST]:
    return [node for root in roots for node in ast.walk(root) if not isinstance(node, NEVER)]


def _targets(statement: ast.Assign) -> set[str]:
    names = [node for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.expr)]
    return {node.id if isinstance(node, ast.Name) else "" for node in names if not isinstance(node, ast.Tuple)}


def _message_names(function: FUNCTION) -> set[str]:
    """Names that nothing reads but what is raised, and other such names."""
    parameters = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    texts = [node for node in ast.walk(function) if isinstance(node, ast.Raise)]
    found: set[str] = set()
    while True:
        inside = {id(node) for text in texts for node in ast.walk(text)}
        reads: dict[str, bool] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                reads[node.id] = reads.get(node.id, True) and id(node) in inside
        if (names := {name for name, raised in reads.items() if raised} - parameters) == found:
            return found
        found = names
        texts += [statement for statement in assigned if _targets(statement) <= found]


def _replacements(node: ast.AST, function: FUNCTION, own: list[str]) -> Iterator[ast.AST]:
    """What can stand for `node`. One other name or operator is tried, not all: most would only break a shape."""
    match node:
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name)) as error) if name in OTHER_ERROR:
            yield ast.Pass()
            other = ast.Call(ast.Name(OTHER_ERROR[name], ast.Load()), error.args, error.keywords)
            yield ast.Raise(other, node.cause)
        case ast.Return(value=value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.For() | ast.While() | ast.Delete() | ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.With():
            yield ast.If(ast.Constant(True), node.body, [])
        case ast.AugAssign(op=operator):
            yield ast.Pass()
            yield ast.Assign([node.target], node.value)
            yield ast.AugAssign(node.target, OTHER_OPERATOR[type(operator)](), node.value)
        case ast.BinOp(op=operator):
            yield from (node.left, node.right)
            if not isinstance(operator, COMMUTE):
                yield ast.BinOp(node.right, operator, node.left)
            yield ast.BinOp(node.left, OTHER_OPERATOR[type(operator)](), node.right)
        case ast.Compare(ops=[ast.In() | ast.NotIn() as operator]):
            other = ast.NotIn if isinstance(operator, ast.In) else ast.In
            yield ast.Compare(node.left, [other()], node.comparators)
        case ast.Compare(ops=[_, _, *_]):
            yield from _chained(node)
        case ast.Slice():
            for part in ("lower", "upper", "step"):
                if getattr(node, part) is not None:
                    kept = {name: getattr(node, name) for name in ("lower", "upper", "step") if name != part}
                    yield ast.Slice(**kept)
        case ast.ListComp(generators=[one]) | ast.SetComp(generators=[one]) | ast.GeneratorExp(generators=[one]):
            if one.ifs:
                yield type(node)(node.elt, [ast.comprehension(one.target, one.iter, [], 0)])
        case ast.DictComp(generators=[one]) if one.ifs:
            yield ast.DictComp(node.key, node.value, [ast.comprehension(one.target, one.iter, [], 0)])
        case ast.Call(args=arguments):
            first, *_ = [*arguments, None]
            near = {ast.dump(pair) for pair in _neighbours_exchanged(node)}
            for other in replacements(node, [], []):
                exchanged = isinstance(other, ast.Call) and len(other.args) == len(arguments)
                exchanged = exchanged and len(other.keywords) == len(node.keywords)
                symmetric = ast.unparse(node.func).split(".")[-1] in SYMMETRIC
                if exchanged and symmetric:
                    continue
                if (other in arguments and other is not first) or (exchanged and ast.dump(other) not in near):
                    continue
                yield other
        case ast.Name(ctx=ast.Load(), id=name):
            yield from (ast.Name(other, ast.Load()) for other in _next(name, _of_the_same_kind(name, function)))
        case ast.Attribute(ctx=ast.Load(), attr=name) if is_self(node):
            yield from (ast.Attribute(node.value, other, ast.Load()) for other in _next(name, own))
        case ast.Attribute(attr=name) if name not in ("T", "mT"):
            return
        case ast.Subscript(slice=ast.Constant()):
            return  # the number is edited
        case _:
            yield from replacements(node, [], [])


def _neighbours_exchanged(node: ast.Call) -> Iterator[ast.Call]:
    for i in range(len(node.args) - 1):
        first, second = node.args[i : i + 2]
        yield ast.Call(node.func, [*node.args[:i], second, first, *node.args[i + 2 :]], node.keywords)


def _chained(node: ast.Compare) -> Iterator[ast.AST]:
    """a < b < c: one comparison off by one or the opposite, or the first or last left out."""
    for i, operator in enumerate(node.ops):
        if other := OTHER_COMPARISON.get(type(operator)):
            yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
    yield ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])
    yield ast.Compare(node.left, node.ops[:-1], node.comparators[:-1])


def _next(name: str, names: list[str]) -> list[str]:
    """The name after this one, and after the last the first; none where there is no other."""
    return [names[(names.index(name) + 1) % len(names)]] if name in names and len(names) > 1 else []


def _of_the_same_kind(name: str, function: FUNCTION) -> list[str]:
    """The parameters that a name can be mistaken for: those annotated as it is."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    kinds = {argument.arg: ast.unparse(argument.annotation) if argument.annotation else "" for argument in every}
    kinds.pop("self", None)
    return [other for other in kinds if name in kinds and kinds[other] == kinds[name]]
