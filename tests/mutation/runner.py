"""Runs tests against mutants: all tests are collected once, and each mutant is a fork in which one function differs.

A function's code, and its defaults, are replaced in place, so every module that imported it sees the mutant. Only tests
that run one of the mutant's lines are run, first those that killed its neighbours, then the quickest; the first that
fails kills it. A function that runs while tests are collected is different: what was computed with it is already there.
A kill of such a mutant is confirmed in a process that imports everything anew.
"""

import ast
import contextlib
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import pickle
import resource
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.mutants import FUNCTION, MODULES, PACKAGE, ROOT, Mutant, functions, source
from tests.mutation.results import KILLED, SURVIVED, digest

CACHE = ROOT / "_build" / "mutation"
APPARATUS = ("test_cli", "test_timeline", "test_recording")  # they are not about a mechanism
PATHS = {str(PACKAGE / f"{module}.py"): module for module in MODULES}
MEMORY = 4 << 30  # bytes that a mutant may take beyond what the tests have already
BUDGET = 5.0  # seconds (while lines are watched, twice as many as without) of the tests that a mutant gets


def test_files() -> list[Path]:
    """The unit tests that import a mechanism, and the oracles."""
    unit = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.stem not in APPARATUS]
    unit = [path for path in unit if any(f"attncourse.{module}" in _imported(path) for module in MODULES)]
    oracles = sorted((ROOT / "tests" / "oracles").glob("test_*.py"))
    return unit + [path for path in oracles if path.stem not in APPARATUS]


@functools.cache
def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def digests() -> dict[str, str]:
    """What a test depends on, by file: its own text, and that of the oracles' helpers."""
    helpers = [
        path.read_text("utf-8")
        for path in sorted((ROOT / "tests" / "oracles").glob("*.py"))
        if not path.stem.startswith("test_")
    ]
    found = {}
    for path in test_files():
        name = str(path.relative_to(ROOT))
        found[name] = digest(path.read_text("utf-8"), *(helpers if "oracles" in path.parts else []))
    return found


def killer_digests() -> dict[str, str]:
    """What a kill rests on: the text of the test, without its cases, and what its file has besides tests."""
    found = {}
    for path in test_files():
        body = ast.parse(path.read_text("utf-8")).body
        tests = [node for node in body if isinstance(node, FUNCTION) and node.name.startswith("test_")]
        rest = [node for node in body if node not in tests and not isinstance(node, ast.Import | ast.ImportFrom)]
        shared = ast.unparse(ast.Module(rest, []))
        for test in tests:
            found[f"{path.relative_to(ROOT)}::{test.name}"] = digest(ast.unparse(test), shared)
    return found


def warm_up(files: list[Path]) -> None:
    """Import what the tests import from elsewhere, so that no fork has to."""
    for path in files:
        for name in sorted(_imported(path)):
            if name.split(".")[0] not in ("tests", "attncourse", "__future__"):
                with contextlib.suppress(ModuleNotFoundError):  # a name from a module
                    importlib.import_module(name)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking, and nothing is kept
    hypothesis.settings.register_profile(
        "mutation", database=None, derandomize=True, deadline=None, phases=phases, print_blob=False
    )
    hypothesis.settings.load_profile("mutation")


class Session:
    """A pytest plugin: collects, then gives the tests to `work` in place of running them."""

    def __init__(self, work: Callable[["Session"], None]):
        self.work, self.items = work, {}
        self.ran_while_collecting: set[tuple[str, str, str]] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print(report.longreprtext, file=sys.stderr)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.setprofile(None)
        if session.testsfailed:
            raise SystemExit("the tests cannot be collected")
        self.items = {item.nodeid: item for item in session.items}
        self.work(self)
        return True

    def see(self, frame: types.FrameType, event: str, _: Any) -> None:
        """Note which function of a mechanism runs while which test file is imported."""
        if event != "call" or (module := PATHS.get(frame.f_code.co_filename)) is None:
            return
        function, caller = frame.f_code.co_qualname.split(".<locals>")[0], frame
        while caller := caller.f_back:
            path = caller.f_code.co_filename
            if path.startswith(str(ROOT / "tests")) and caller.f_code.co_name == "<module>":
                self.ran_while_collecting.add((module, function, str(Path(path).relative_to(ROOT))))
                return

    def collect(self, files: Iterable[Path | str]) -> int:
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:terminalreporter", "--assert=plain", "--tb=native"]
        sys.setprofile(self.see)
        try:
            return pytest.main([*options, "-p", "no:xdist", "-p", "no:nbval", *map(str, files)], plugins=[self])
        finally:
            sys.setprofile(None)


def run_test(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Whether a test passes, or is skipped."""
    from _pytest.runner import runtestprotocol

    reports = runtestprotocol(item, log=False, nextitem=following)
    return not any(report.failed for report in reports)


def forked(work: Callable[[], Any]) -> tuple[int, int]:
    """Run `work` in a fork: its process and where its result can be read. Nothing that it prints is shown."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    try:
        os.close(read)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        if (sizes := Path("/proc/self/statm")).exists():
            limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("ignore")
        result = work()
        with os.fdopen(write, "wb") as stream:
            stream.write(pickle.dumps(result))
    finally:
        os._exit(0)


def result_of(process: int, read: int) -> Any:
    """What the fork answered; None where it was ended."""
    with os.fdopen(read, "rb") as stream:
        content = stream.read()
    os.waitpid(process, 0)
    return pickle.loads(content) if content else None


@contextlib.contextmanager
def limited(seconds: float):
    """End this process after so many seconds of work, or ten times as many of waiting."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def observe(items: list[pytest.Item]) -> list[dict[str, Any]]:
    """What each test runs: its seconds, and the lines of each module. Raises where one fails."""
    found = []
    for item, following in zip(items, [*items[1:], None], strict=True):
        lines: dict[str, set[int]] = {}

        def trace(frame: types.FrameType, event: str, _: Any, lines=lines) -> Callable | None:
            module = PATHS.get(frame.f_code.co_filename)
            if module is None:
                return None
            seen = lines.setdefault(module, set())
            seen.add(frame.f_lineno)

            def line(frame: types.FrameType, event: str, _: Any) -> Callable:
                seen.add(frame.f_lineno)
                return line

            return line

        forget()
        start = time.process_time()
        sys.settrace(trace)
        passed = run_test(item, following)
        sys.settrace(None)
        seconds = time.process_time() - start
        compiled = "torch.compile" in ast.unparse(_function_of(item))  # runs lines that no trace sees
        found.append(
            {
                "id": item.nodeid,
                "seconds": seconds,
                "passed": passed,
                "compiled": compiled,
                "lines": {module: sorted(seen) for module, seen in lines.items()},
            }
        )
    return found


@functools.cache
def _tests_of(path: Path) -> dict[str, ast.AST]:
    return {node.name: node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, FUNCTION)}


def _function_of(item: pytest.Item) -> ast.AST:
    return _tests_of(item.path).get(item.originalname, ast.Module([], []))


def baseline(session: Session, most: int = 2) -> dict[str, dict[str, Any]]:
    """What each test runs, by its id; kept from run to run for the tests that did not change."""
    kept = CACHE / "baseline.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    sources, texts = digest(*map(source, MODULES)), killer_digests()
    found, waiting = {}, {}
    for id, item in session.items.items():
        key = digest(sources, texts[id.split("[")[0]])
        if before.get(id, {}).get("key") == key:
            found[id] = before[id]
        else:
            waiting.setdefault(id.split("::")[0], []).append((item, key))
    files = list(waiting.items())
    for i in range(0, len(files), most):
        running = [
            (file, new, forked(lambda new=new: observe([item for item, _ in new]))) for file, new in files[i : i + most]
        ]
        for file, new, fork in running:
            for (item, key), test in zip(new, _all_passed(file, result_of(*fork)), strict=True):
                found[item.nodeid] = {**test, "key": key}
        _write(kept, {**before, **found})
    _write(kept, found)
    return {
        id: {
            **test,
            "lines": {module: set(lines) for module, lines in test["lines"].items()},
            "file": id.split("::")[0],
        }
        for id, test in found.items()
    }


def _all_passed(file: str, tests: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    failed = [file] if tests is None else [test["id"] for test in tests if not test["passed"]]
    if failed:
        raise SystemExit(f"these tests fail without any mutant: {', '.join(failed)}")
    return tests or []


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(content, indent=1))
    path.with_suffix(".new").replace(path)


def concerned(mutant: Mutant, tests: dict[str, dict[str, Any]], budget: float = BUDGET) -> list[str]:
    """Tests that run one of the mutant's lines, the quickest first, the module's own first.

    Of the others, as many as the budget of seconds allows: the first cases of each parametrised test, then more.
    """
    own, cases, rank = f"tests/test_{mutant.module}.py", {}, {}
    found = [
        id
        for id, test in tests.items()
        if mutant.lines & test["lines"].get(mutant.module, set())
        or (test["compiled"] and mutant.module in test["lines"])
    ]
    for id in found:
        of = id.split("[")[0]
        rank[id] = cases[of] = cases.get(of, -1) + 1
    found.sort(key=lambda id: (tests[id]["file"] != own, rank[id] // 4, tests[id]["seconds"]))
    spent, order = 0.0, []
    for id in found:
        seconds = 0.0 if tests[id]["file"] == own else tests[id]["seconds"]
        if spent + seconds <= budget:
            spent += seconds
            order.append(id)
    return order


def live(module: str, name: str) -> types.FunctionType:
    """The function object that a qualified name stands for, without what is wrapped around it."""
    found: Any = sys.modules[f"attncourse.{module}"]
    for part in name.split("."):
        found = vars(found)[part]
    while not isinstance(found, types.FunctionType) or hasattr(found, "__wrapped__"):
        found = getattr(found, "__func__", None) or getattr(found, "fget", None) or found.__wrapped__
    return found


def forget() -> None:
    """Empty the caches of functions that keep what they returned."""
    for module in MODULES:
        for value in vars(sys.modules.get(f"attncourse.{module}", types)).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def put_in(mutant: Mutant) -> None:
    """Make the live function the mutant, for every module that has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, defaults, kw_defaults = _compiled(mutant)
    function = live(mutant.module, mutant.function)
    function.__code__ = code
    function.__defaults__ = defaults(function.__globals__)
    function.__kwdefaults__ = kw_defaults(function.__globals__)
    forget()


def _compiled(mutant: Mutant) -> tuple[types.CodeType, Callable, Callable]:
    mutant.tree.decorator_list = []
    tree = ast.Module([mutant.tree], [])
    if "." in mutant.function:  # so that super() means its class
        inside = mutant.tree
        if any(
            isinstance(n, ast.Name) and n.id == "super" for n in ast.walk(functions(mutant.module)[mutant.function])
        ):
            inside.body.append(ast.If(ast.Constant(False), [ast.Expr(ast.Name("__class__", ast.Load()))], []))
        tree = ast.Module([ast.ClassDef(mutant.function.split(".")[0], [], [], [inside], [])], [])
    tree = ast.fix_missing_locations(tree)
    code = compile(tree, str(PACKAGE / f"{mutant.module}.py"), "exec", flags=0, dont_inherit=True)
    for _ in range(2 if "." in mutant.function else 1):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
    arguments = mutant.tree.args

    def value(node: ast.expr, namespace: dict[str, Any]) -> Any:
        expression = ast.fix_missing_locations(ast.Expression(node))
        return eval(compile(expression, "<default>", "eval"), namespace)

    def defaults(namespace: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(value(node, namespace) for node in arguments.defaults)

    def kw_defaults(namespace: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        return {argument.arg: value(node, namespace) for argument, node in pairs if node is not None}

    return code, defaults, kw_defaults


def try_tests(session: Session, mutant: Mutant, order: list[str], seconds: dict[str, float], say: int) -> str | None:
    """The first of these tests that fails with the mutant, or None. `say` gets a byte for each test begun."""
    put_in(mutant)
    items = [session.items[id] for id in order]
    for item, following in zip(items, [*items[1:], None], strict=True):
        os.write(say, b".")
        with limited(10 + 10 * seconds[item.nodeid]):
            if not run_test(item, following):
                return item.nodeid
    return None


class Attempt:
    """One mutant in one fork."""

    def __init__(self, session: Session, mutant: Mutant, order: list[str], seconds: dict[str, float]):
        self.mutant, self.order = mutant, order
        self.running, say = os.pipe()
        os.set_blocking(self.running, False)
        self.process, self.read = forked(lambda: (try_tests(session, mutant, order, seconds, say),))
        os.close(say)

    def result(self) -> tuple[str, str | None]:
        """Killed or survived, and by which test; a test that did not come back is one that failed."""
        answer = result_of(self.process, self.read)
        with os.fdopen(self.running, "rb") as stream:
            begun = len(stream.read() or b"")
        if answer is None:
            return KILLED, self.order[max(begun, 1) - 1]
        return (SURVIVED, None) if answer[0] is None else (KILLED, answer[0])


def jobs(most: int) -> int:
    """One process where the machine is busy with something else."""
    return most if os.getloadavg()[0] < 4 else 1


def run(
    session: Session,
    mutants: list[Mutant],
    tests: dict[str, dict[str, Any]],
    known: dict[str, dict[str, Any]],
    done: Callable[[Mutant, str, str | None], None],
    most: int,
) -> None:
    """The verdict on every mutant, told to `done`. `known`: earlier verdicts, whose tests are tried first."""
    gc.collect()
    gc.freeze()
    killers: dict[str, list[str]] = {}
    seconds = {id: test["seconds"] for id, test in tests.items()}
    waiting, active = list(mutants), []
    while waiting or active:
        while waiting and len(active) < jobs(most):
            mutant = waiting.pop(0)
            order = concerned(mutant, tests)
            if not order:
                done(mutant, SURVIVED, "no test runs it")
                continue
            first = [
                id for id in [known.get(mutant.id, {}).get("by"), *killers.get(mutant.function, [])] if id in order
            ]
            order = list(dict.fromkeys([*first, *order]))
            active.append(Attempt(session, mutant, order, seconds))
        if active:
            process = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid
            if process not in {attempt.process for attempt in active}:
                os.waitpid(process, 0)
            for attempt in [attempt for attempt in active if attempt.process == process]:
                active.remove(attempt)
                verdict, by = attempt.result()
                if by:
                    found = killers.setdefault(attempt.mutant.function, [])
                    if by in found:
                        found.remove(by)
                    if seconds.get(by, 9) < 1:
                        found.insert(0, by)
                    del found[6:]
                done(attempt.mutant, verdict, by)


class _Finder(importlib.machinery.SourceFileLoader):
    """Gives one module with the mutant in it to whoever imports it."""

    def __init__(self, mutant: Mutant):
        self.mutant = mutant
        super().__init__(f"attncourse.{mutant.module}", str(PACKAGE / f"{mutant.module}.py"))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> types.CodeType:
        tree = ast.parse(source(self.mutant.module))
        *owner, name = self.mutant.function.split(".")
        body = (
            next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner[0])
            if owner
            else tree.body
        )
        place = next(i for i, node in enumerate(body) if isinstance(node, FUNCTION) and node.name == name)
        body[place] = self.mutant.tree
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


def fails_anew(mutant: Mutant, ids: list[str]) -> bool:
    """Whether one of these tests fails where everything is imported anew, the mutant with it."""

    def work() -> bool:
        sys.meta_path.insert(0, _Finder(mutant))
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain", "--tb=native"]
        signal.setitimer(signal.ITIMER_PROF, 300)
        return pytest.main([*options, *ids]) in (
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.INTERRUPTED,
            pytest.ExitCode.USAGE_ERROR,
            pytest.ExitCode.INTERNAL_ERROR,
        )

    return result_of(*forked(work)) is not False
