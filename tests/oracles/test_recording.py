"""The list of comparisons is the committed one, and what watches over their numbers does so."""

import json
from pathlib import Path

import pytest

from tests.oracles.recording import FIELDS, HERE, TARGET, pins

pytestmark = pytest.mark.oracle(none="of the recording itself")

CASES = """
import pytest
from tests.oracles.recording import compared

@pytest.mark.oracle(mechanism="m", chapter="01_m", module="m", library="torch", theirs="T", what="w")
@pytest.mark.parametrize("T", [3, 4])
def test_equals(T):
    difference = {difference} * (T - 2)
    compared.append({{"dtype": "float32", "of": "outputs", "difference": difference, "scaled": False, "shape": [T, 2]}})
    compared.append({{"dtype": "float32", "of": "gradients", "difference": 0.0, "scaled": True, "shape": [T]}})
"""
SPREAD = ("-n", "2", "--dist", "loadgroup")
ROW = {"id": "m/T/equals", "mechanism": "m", "chapter": "01_m", "module": "m", "library": "torch", "theirs": "T"}
ROW |= {"what": "w", "version": pins()["torch"], "cases": 2, "device": "cpu", "shapes": ["3×2", "4×2"], "scaled": True}
ROW |= {"differences": {"float32": {"outputs": 1e-5, "gradients": 1e-7}}}


@pytest.fixture
def run(pytester, monkeypatch):
    """run(difference, committed row, arguments): the outcomes of two cases, of 1 and 2 times the difference."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(difference, row, *arguments):
        pytester.makepyfile(test_m=CASES.format(difference=difference))
        versions = {"python": "3.11", "torch": pins()["torch"]}
        if row is not None:
            Path("oracles.json").write_text(json.dumps({"versions": versions, "date": "", "comparisons": [row]}))
        plugins = ("-p", "tests.oracles.recording", "-p", "xdist", "-p", "no:cacheprovider")
        return pytester.runpytest_inprocess(*plugins, "--oracles", "oracles.json", *arguments)

    return run


def test_the_list_is_the_committed_one(request):
    oracles = request.config.pluginmanager.get_plugin("oracles")
    if not oracles.files >= set(HERE.glob("test_*.py")):
        pytest.skip("a part of the tests runs")
    assert not oracles.unmarked, "each test here says what it compares with what: @pytest.mark.oracle(...)"
    if oracles.writes:
        pytest.skip("the list is about to be written")
    changed = differing(oracles.committed, oracles.collected)
    assert not changed, "another list than the committed one: `make oracles` measures all and writes it"


def differing(committed, collected):
    """The ids that only one of them has, or where the two do not say the same."""
    none, same = {}, (*FIELDS, "equations", "cases")
    return {
        name
        for name in committed.keys() | collected.keys()
        if any(committed.get(name, none).get(field) != collected.get(name, none).get(field) for field in same)
    }


def test_a_row_that_is_gone_or_new_or_has_other_cases_is_another_list():
    assert not differing({"m": ROW}, {"m": ROW | {"scaled": False}})
    assert (
        differing({"m": ROW}, {})
        == differing({}, {"m": ROW})
        == differing({"m": ROW}, {"m": ROW | {"cases": 3}})
        == {"m"}
    )


def test_the_committed_versions_are_those_of_the_requirements():
    content, pinned = json.loads(TARGET.read_text()), pins()
    committed = {name: number for name, number in content["versions"].items() if name != "python"}
    assert committed == {name: pinned[name] for name in committed}, "`make oracles`, after a change of version"
    assert all(row["version"] == pinned[row["library"]] for row in content["comparisons"])


def test_what_is_as_committed_passes(run):
    result = run(2e-6, ROW)
    result.assert_outcomes(passed=2)
    assert result.ret == 0


@pytest.mark.parametrize("spread", [(), SPREAD], ids=["one process", "two processes"])
def test_all_rows_are_written(run, spread):
    assert run(2e-6, None, "--write-oracles", *spread).ret == 0
    content = json.loads(Path("oracles.json").read_text())
    assert content["comparisons"] == [ROW]
    assert content["versions"].keys() == {"python", "torch"}


def test_a_case_above_its_bound_fails_at_once(run):
    result = run(8e-6, ROW)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*m/T/equals: outputs in float32 differ by 1.6e-05, and oracles.json says at most 1e-05*"]
    )


@pytest.mark.parametrize(
    ("change", "said", "spread"),
    [
        (
            {"differences": {"float32": {"outputs": 1e-2, "gradients": 1e-7}}},
            "outputs in float32 differ by 4e-06, far",
            (),
        ),
        (
            {"differences": ROW["differences"] | {"float64": {"outputs": 1.0}}},
            "outputs in float64 are not compared",
            (),
        ),
        ({"shapes": ["3×2"]}, "shapes ['3×2', '4×2'], not ['3×2']", ()),
        ({"shapes": ["3×2"]}, "shapes ['3×2', '4×2'], not ['3×2']", SPREAD),
    ],
    ids=["stale", "dtype", "shapes", "shapes, two processes"],
)
def test_a_run_fails_for_what_is_committed_otherwise(run, change, said, spread):
    result = run(2e-6, ROW | change, *spread)
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"m/T/equals: {said}" in result.stdout.str() and "`make oracles`" in result.stdout.str()


def test_a_part_of_a_row_is_not_judged(run):
    assert run(2e-6, ROW | {"shapes": ["3×2"]}, "-k", "3").ret == 0


def test_nothing_is_written_of_a_part(run):
    result = run(2e-6, None, "--write-oracles", "-k", "3")
    assert result.ret == pytest.ExitCode.TESTS_FAILED and not Path("oracles.json").exists()
    result.stdout.fnmatch_lines(["*oracles.json is not written: all comparisons must run*"])


def test_a_case_that_compares_nothing_fails(run, pytester):
    pytester.makepyfile(test_n=CASES.format(difference=0).replace("compared.append", "print"))
    run(0, None).assert_outcomes(passed=2, failed=2)
