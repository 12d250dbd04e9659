"""Small edits of a syntax tree, each a mistake of one keystroke or one forgotten piece."""

import ast
import copy
from collections.abc import Iterator
from itertools import combinations


def edits(name: str, tree: ast.Module, methods: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """(id, edited tree) for every edit inside the function, or inside these methods of the class."""
    before = ast.unparse(tree)
    nodes = list(ast.walk(tree))
    place = {id(node): i for i, node in enumerate(nodes)}
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and (not methods or n.name in methods)]
    for function in functions:
        parameters = [a.arg for a in function.args.args if a.arg != "self"]
        own = {n.attr for n in ast.walk(function) if is_self(n)}
        label = f"{name}.{function.name}" if methods else name
        for statement in _statements(function):
            for node in _expressions(statement):
                for replacement in replacements(node, parameters, sorted(own)):
                    edited = copy.deepcopy(tree)
                    there = list(ast.walk(edited))
                    line, target = there[place[id(statement)]], there[place[id(node)]]
                    Replace(target, copy.deepcopy(replacement)).visit(edited)
                    ast.fix_missing_locations(edited)
                    if ast.unparse(edited) == before:
                        continue
                    after = "(deleted)" if isinstance(replacement, ast.Pass) else head(line)
                    if isinstance(replacement, ast.If):
                        after = "if True:"
                    try:
                        compile(edited, "<mutant>", "exec")
                    except (SyntaxError, ValueError, TypeError):
                        continue
                    yield f"{label}: {head(statement)} -> {after}", edited


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Every statement but the docstring and guards that only raise: those hold messages, not mathematics."""
    waiting = list(function.body)
    while waiting:
        statement = waiting.pop(0)
        if isinstance(statement, ast.Expr) and (
            isinstance(statement.value, ast.Constant) or _calls_a_check(statement.value)
        ):
            continue
        if isinstance(statement, ast.If) and all(isinstance(inner, ast.Raise) for inner in statement.body):
            continue
        yield statement
        waiting = [*getattr(statement, "body", []), *getattr(statement, "orelse", []), *waiting]


def _calls_a_check(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and "check" in ast.unparse(value.func)


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The statement itself and the expressions of its own line."""
    yield statement
    parts = [statement.test] if isinstance(statement, ast.If) else [statement]
    for part in parts:
        for node in ast.walk(part):
            if node is not statement and isinstance(node, ast.expr):
                yield node


def head(statement: ast.AST) -> str:
    return ast.unparse(statement).splitlines()[0]


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _is_module(node: ast.AST) -> bool:
    """torch, torch.nn.functional and the like: what stands before a function, not before a method."""
    return isinstance(node, ast.Name) and node.id in {"torch", "nn", "F", "math"}


OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
OTHER_COMPARISON = {  # the opposite, or off by one
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
}


def replacements(node: ast.AST, parameters: list[str], own: list[str]) -> Iterator[ast.AST]:
    """What can stand for `node`, each a mistake of one keystroke or one forgotten piece."""
    match node:
        case ast.Assign() | ast.AugAssign() | ast.Expr():
            yield ast.Pass()  # deleted
        case ast.If():
            yield ast.Pass()
            yield ast.If(test=ast.Constant(True), body=node.body, orelse=[])
        case ast.IfExp():
            yield node.body
            yield node.orelse
            yield ast.IfExp(test=node.test, body=node.orelse, orelse=node.body)
        case ast.Call():
            yield from _calls(node)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            yield from (number(other) for other in (-value - 1, -value + 1, value) if other != -value)
        case ast.UnaryOp():
            yield node.operand
        case ast.BinOp():
            yield node.left
            yield node.right
            for operator in OPERATORS:
                if not isinstance(node.op, operator):
                    yield ast.BinOp(node.left, operator(), node.right)
            yield ast.BinOp(node.right, node.op, node.left)
        case ast.BoolOp():
            yield from node.values
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.Compare(ops=[operator]):
            if other := OTHER_COMPARISON.get(type(operator)):
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (number(other) for other in (value - 1, value + 1))
        case ast.Constant(value=float(value)):
            yield from (ast.Constant(other) for other in (value + 1.0, value * 2) if other != value)
        case ast.Constant(value="-inf"):
            yield from (ast.Constant("inf"), ast.Constant("-1e9"))
        case ast.Subscript(ctx=ast.Load()):
            yield node.value
        case ast.Name(ctx=ast.Load(), id=name) if name in parameters:
            yield from (ast.Name(other, ast.Load()) for other in parameters if other != name)
        case ast.Attribute(ctx=ast.Load(), attr=name) if is_self(node):
            yield from (ast.Attribute(node.value, other, ast.Load()) for other in own if other != name)
        case ast.Attribute(ctx=ast.Load()) if not _is_module(node.value):
            yield node.value  # x.T -> x; for a method, its call is handled as a call
        case ast.Tuple() | ast.List():
            yield from _sequences(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    method = isinstance(node.func, ast.Attribute) and not _is_module(node.func.value) and not is_self(node.func)
    if method:
        yield node.func.value  # x.clamp(…) -> x
    yield from node.args  # tanh(x) -> x
    for i, j in combinations(range(len(node.args)), 2):
        arguments = list(node.args)
        arguments[i], arguments[j] = arguments[j], arguments[i]
        yield ast.Call(node.func, arguments, node.keywords)
    for i in range(len(node.args)):
        if len(node.args) + len(node.keywords) > 1:
            yield ast.Call(node.func, node.args[:i] + node.args[i + 1 :], node.keywords)
    for i in range(len(node.keywords)):
        yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


def _sequences(node: ast.Tuple | ast.List) -> Iterator[ast.AST]:
    """One element left out, or two beside each other exchanged; in an index, `:` and None change places."""
    for i in range(len(node.elts)):
        if isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
            yield type(node)(node.elts[:i] + node.elts[i + 1 :], node.ctx)
    for i in range(len(node.elts) - 1):
        elements = list(node.elts)
        elements[i], elements[i + 1] = elements[i + 1], elements[i]
        yield type(node)(elements, node.ctx)


def number(value: int) -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


class Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST):
        self.target, self.replacement = target, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        return self.replacement if node is self.target else self.generic_visit(node)
