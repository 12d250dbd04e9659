"""What the comparisons measure: held against `attncourse/data/oracles.json` as they run and at the end, or written.

A pytest plugin that tests/conftest.py loads, so that the controller of pytest-xdist has it as well. The marker
`oracle` says what a test compares with what, `close` of compare.py appends to `compared`, and a case's numbers travel
as its `user_properties`. A row is all that one test measures against one implementation. What fails: a case above its
row's bound; at the end, a complete row more than 1,000 times below it, or with other shapes. A part of the tests may
run alone. What CUDA gives is not judged, since the bounds are the CPU's.
"""

import json
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TARGET = ROOT / "attncourse" / "data" / "oracles.json"
FIELDS = ("id", "mechanism", "chapter", "module", "library", "theirs", "what")
REMEDY = "`make oracles` measures all and writes it"
compared: list[dict] = []  # in the running case


def row_of(item):
    """What the test's markers say, or None if they say that it is no comparison."""
    row = {}
    for mark in reversed(list(item.iter_markers("oracle"))):
        row |= mark.kwargs
    theirs = "equations" if row.get("equations") else row.get("theirs")
    name = getattr(item, "originalname", item.name).removeprefix("test_")
    return {"id": f"{row.get('mechanism')}/{theirs}/{name}"} | row if row and "none" not in row else None


def device_of(item):
    return item.callspec.params.get("device", "cpu") if hasattr(item, "callspec") else "cpu"


def pins():
    """The versions that the requirements name."""
    text = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-test.txt"))
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, re.MULTILINE))


def other_versions(versions):
    """A sentence about what is installed in another version, or nothing."""
    found = {name: version(name).split("+")[0] for name in versions if name != "python"}
    others = [f"{name} {found[name]} (not {versions[name]})" for name in found if found[name] != versions[name]]
    return f" Note that this is {', '.join(others)}." if others else ""


def numbers(row):
    return [(dtype, of, number) for dtype, found in row["differences"].items() for of, number in found.items()]


def widen(row, dtype, of, difference):
    """The larger difference stays."""
    found = row["differences"].setdefault(dtype, {})
    found[of] = max(found.get(of, 0.0), difference)


def texts(shapes):
    """ "2×7×12", fewer axes and smaller ones first."""
    return ["×".join(map(str, shape)) for shape in sorted(shapes, key=lambda shape: (len(shape), shape))]


def pytest_addoption(parser):
    parser.addoption("--write-oracles", action="store_true", help="write what all of tests/oracles measures")
    parser.addoption("--oracles", type=Path, default=TARGET, help="the file of what was measured")


def pytest_configure(config):
    config.pluginmanager.register(Oracles(config), "oracles")


class Oracles:
    """What is committed, collected and measured."""

    def __init__(self, config):
        self.config, self.target, self.writes = config, config.getoption("oracles"), config.getoption("write_oracles")
        self.content = json.loads(self.target.read_text()) if self.target.exists() else {"comparisons": []}
        self.committed = {row["id"]: row for row in self.content["comparisons"] if row["device"] == "cpu"}
        self.files, self.unmarked, self.collected = set(), set(), {}  # rows by id, with the number of their cases
        self.measured, self.problems = {}, []

    @pytest.hookimpl(tryfirst=True)  # before -k and -m take some away
    def pytest_collection_modifyitems(self, items):
        for item in items:
            self.files.add(item.path)
            row, marked = row_of(item), any(item.iter_markers("oracle"))
            if row and not set(FIELDS) - row.keys():
                there = self.collected.setdefault(row["id"], row | {"cases": 0})
                assert there.keys() - {"cases"} == row.keys() and all(there[key] == row[key] for key in row), row
                there["cases"] += device_of(item) == "cpu"
            elif row or (item.path.parent == HERE and not marked):
                self.unmarked.add(f"{item.path.name}::{item.name.split('[')[0]}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        compared.clear()
        result = yield
        if row := row_of(item):
            assert compared, "a comparison goes through `close` of tests/oracles/compare.py"
            case = {"id": row["id"], "device": device_of(item), "differences": {}}
            case["scaled"] = any(one["scaled"] for one in compared)
            case["shapes"] = [one["shape"] for one in compared if one["of"] == "outputs"]
            for one in compared:
                widen(case, one["dtype"], one["of"], one["difference"])
            item.user_properties.append(("oracle", case))
            self.check_bounds(case)
        return result

    def check_bounds(self, case):
        bounds = self.committed.get(case["id"], {"differences": {}})["differences"]
        for dtype, of, difference in numbers(case):
            bound = bounds.get(dtype, {}).get(of, float("inf"))
            if difference > bound and case["device"] == "cpu" and not self.writes:
                what = f"{of} in {dtype} differ by {difference:.2g}, and {self.target.name} says at most {bound:g}"
                otherwise = other_versions(self.content["versions"])
                pytest.fail(f"{case['id']}: {what}.{otherwise} If that is right: {REMEDY}.", pytrace=False)

    def pytest_runtest_logreport(self, report):
        for case in [case for name, case in report.user_properties if name == "oracle"]:
            if report.when == "call" and report.passed:
                none = {"cases": 0, "scaled": False, "shapes": set(), "differences": {}}
                row = self.measured.setdefault((case["id"], case["device"]), none)
                row["cases"] += 1
                row["scaled"] |= case["scaled"]
                row["shapes"] |= set(map(tuple, case["shapes"]))
                for number in numbers(case):
                    widen(row, *number)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.collected |= getattr(node, "workeroutput", {}).get("oracles", {})

    def pytest_sessionfinish(self, session):
        if hasattr(self.config, "workeroutput"):  # a worker: the controller does the rest
            self.config.workeroutput["oracles"] = self.collected
            return
        self.problems = self.write(session) if self.writes else self.differences()
        if self.problems and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.problems:
            terminalreporter.section("comparisons with other implementations", red=True)
            terminalreporter.write_line("\n".join(self.problems))

    def differences(self):
        """What complete rows measured that the committed file does not say."""
        from attncourse.lab.records import SMALLEST

        smallest, problems = {str(dtype): least for dtype, least in SMALLEST.items()}, []
        for (name, device), row in self.measured.items():
            committed = self.committed.get(name, {"cases": None})
            if device != "cpu" or row["cases"] != committed["cases"]:
                continue
            said = {(dtype, of): bound for dtype, of, bound in numbers(committed)}
            for dtype, of, difference in numbers(row):
                bound = said.pop((dtype, of), float("inf"))
                if 1000 * max(difference, smallest[f"torch.{dtype}"]) < bound:
                    problems.append(f"{name}: {of} in {dtype} differ by {difference:.2g}, far less than {bound:g}")
            problems += [f"{name}: {of} in {dtype} are not compared any more" for dtype, of in said]
            for key, now in (("shapes", texts(row["shapes"])), ("scaled", row["scaled"])):
                problems += [f"{name}: {key} {now}, not {committed[key]}"] if now != committed[key] else []
        if problems:
            otherwise = other_versions(self.content["versions"])
            problems.append(f"{self.target.name} is not what was measured: {REMEDY}.{otherwise}")
        return problems

    def write(self, session):
        """Write all rows, or say why not."""
        from attncourse.lab.records import write_json

        ran = {name: row["cases"] for (name, device), row in self.measured.items() if device == "cpu"}
        missing = [name for name, row in self.collected.items() if ran.get(name) != row["cases"]]
        if session.exitstatus or missing or any(".py" in argument for argument in self.config.args):
            return [f"{self.target.name} is not written: all comparisons must run, and pass. {missing or ''}"]
        pinned, rows = pins(), []
        used = sorted({"torch", *(row["library"] for row in self.collected.values())})
        versions = {"python": ".".join(platform.python_version_tuple()[:2])} | {name: pinned[name] for name in used}
        if otherwise := other_versions(versions):
            return [f"{self.target.name} is not written.{otherwise}"]
        for (name, device), row in sorted(self.measured.items(), key=lambda entry: entry[0][1]):  # the CPU's first
            said = {
                field: self.collected[name][field] for field in (*FIELDS, "equations") if field in self.collected[name]
            }
            said |= {"version": pinned[said["library"]], "cases": row["cases"], "device": device}
            rows.append(said | {"shapes": texts(row["shapes"]), "scaled": row["scaled"], "differences": rounded(row)})
        rows.sort(key=lambda row: row["chapter"])
        kept = [] if any(row["device"] != "cpu" for row in rows) else self.content["comparisons"]
        rows += [row for row in kept if row["device"] != "cpu"]  # another machine's
        write_json(self.target, {"versions": versions, "date": date.today().isoformat(), "comparisons": rows})
        return []


def rounded(row):
    """The powers of ten above a row's differences, outputs first."""
    import torch

    from attncourse.lab.records import bound

    found = {}
    for dtype, of, number in sorted(numbers(row), key=lambda one: (one[0], one[1] == "gradients")):
        found.setdefault(dtype, {})[of] = bound(number, getattr(torch, dtype))
    return found
