"""The committed map says what the course's modules do now: every theorem is computed again, and each could fail."""

import copy
import dataclasses
import inspect
import json
import math
import re
import textwrap
from pathlib import Path

import pytest
import torch

from attncourse.bahdanau import additive_scores
from attncourse.gqa import grouped_query_attention
from attncourse.lab import theorems
from attncourse.lab.proofs import execution, shared_heads
from attncourse.lab.proofs.caches import quantized_finer
from attncourse.lab.proofs.common import LEAST, TOLERANCE, Limit, Sides, drawn, equality, given, limit
from attncourse.mla import MultiHeadLatentAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.patterns import Strided
from attncourse.quantized_cache import QuantizedKVCache
from attncourse.sliding_window import near_blocks
from attncourse.sparse import _plan

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads(theorems.PATH.read_text(encoding="utf-8"))
BY_ID = {record["id"]: record for record in COMMITTED["theorems"]}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}


def changes(committed: dict, fresh: dict, found: dict) -> list[str]:
    """What differs between a committed record and a fresh one, which was made of what `found` has.

    Numbers may differ in what rounding or another generator moves: a difference must stay below its bound, and not a
    thousand times below; errors, slopes and what a broken condition changes are compared within a factor of 2.
    """
    told = []
    for field in sorted(committed.keys() | fresh.keys()):
        if field in ("differences", "points", "slope", "otherwise"):
            continue
        if committed.get(field) != fresh.get(field):
            told.append(f"{field}: {committed.get(field)} is now {fresh.get(field)}")
    if committed["differences"].keys() != fresh["differences"].keys():
        told.append("differences: other dtypes")
    for name, of in fresh["differences"].items():
        for what in of.keys() | committed["differences"].get(name, {}).keys():
            was, now = committed["differences"].get(name, {}).get(what), found["differences"][DTYPES[name]].get(what)
            if was is None or now is None or now > was:
                told.append(f"{name} {what}: {now} is more than {was}")
            elif of[what] < was / 1001:
                told.append(f"{name} {what}: {was} is stale, now it is {now}")
    if committed["otherwise"]["what"] != fresh["otherwise"]["what"]:
        told.append("otherwise: another condition")
    if not 0.5 <= committed["otherwise"]["difference"] / found["otherwise"] <= 2:
        told.append(f"otherwise: {committed['otherwise']['difference']} is now {found['otherwise']}")
    for was, now in zip(committed.get("points", []), fresh.get("points", []), strict=True):
        if {**was, "error": 0} != {**now, "error": 0} or not 0.5 <= was["error"] / now["error"] <= 2:
            told.append(f"points: {was} is now {now}")
    if "points" in fresh and not fresh["slopes"][0] <= committed["slope"] <= fresh["slopes"][1]:
        told.append(f"slope: {committed['slope']} is not in {fresh['slopes']}")
    return told


@pytest.fixture(scope="module")
def one():
    """A theorem with gradients, what it gives, and its record."""
    theorem = shared_heads.gqa_is_tied
    found = theorem.measured()
    return theorems.record(theorem, found), found


@pytest.mark.parametrize("theorem", theorems.THEOREMS, ids=lambda theorem: theorem.id)
def test_a_theorem_holds_and_is_as_committed(theorem):
    found = theorem.measured()
    assert found["holds"]
    assert found["otherwise"] >= LEAST
    assert changes(BY_ID[theorem.id], theorems.record(theorem, found), found) == [], "run make map"


def test_the_map_is_the_list_in_the_code():
    assert [record["id"] for record in COMMITTED["theorems"]] == [theorem.id for theorem in theorems.THEOREMS]
    assert COMMITTED["nodes"] == [dataclasses.asdict(node) for node in theorems.NODES]
    assert COMMITTED["tolerances"] == {name: TOLERANCE[dtype] for name, dtype in DTYPES.items()}
    assert COMMITTED["least_otherwise"] == LEAST
    pinned = re.search(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)[1]
    assert COMMITTED["versions"]["torch"] == pinned
    assert re.fullmatch(r"3\.\d+", COMMITTED["versions"]["python"])


def test_numbers_have_a_margin():
    """Another processor's rounding, or another generator, shall not decide."""
    for record in COMMITTED["theorems"]:
        assert record["otherwise"]["difference"] >= 5 * LEAST, record["id"]
        for name, of in record["differences"].items():
            assert max(of.values()) <= TOLERANCE[DTYPES[name]], record["id"]
        if record["kind"] == "limit":
            low, high = record["slopes"]
            assert low + 0.05 <= record["slope"] <= high - 0.05, record["id"]
            assert record["otherwise"]["difference"] >= 6 * record["points"][-1]["error"], record["id"]


def test_nodes_are_in_the_course():
    timeline = json.loads((ROOT / "attncourse/data/timeline.json").read_text(encoding="utf-8"))
    dated = {entry["node"]: entry for entry in timeline if entry["node"]}
    sources = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text(encoding="utf-8"), re.M))
    nodes = {node.id: node for node in theorems.NODES}
    assert len(nodes) == len(theorems.NODES)
    for node in theorems.NODES:
        assert (ROOT / f"notebooks/{node.chapter}.ipynb").exists(), node.id
        assert (ROOT / f"attncourse/{node.module}.py").exists(), node.id
        assert node.source in sources, node.id
        entry = dated[node.id]
        assert (node.date, node.source, node.chapter) == (entry["date"], entry["source"], entry["chapter"]), node.id


def test_every_node_has_a_theorem_with_another_and_all_hang_together():
    reached, new = set(), {"additive"}
    while new:
        reached |= new
        new = {node for t in theorems.THEOREMS if set(t.of) & reached for node in t.of} - reached
    assert reached == {node.id for node in theorems.NODES}


def test_what_the_map_shows_of_a_theorem():
    assert len(BY_ID) == len(theorems.THEOREMS)
    for theorem in theorems.THEOREMS:
        assert len(theorem.condition) <= 22, theorem.id
        assert theorem.statement.endswith(".") and theorem.why.endswith("."), theorem.id
        assert (ROOT / f"notebooks/{theorem.chapter}.ipynb").exists(), theorem.id
        assert len(theorem.sizes) == 1 if isinstance(theorem, Limit) else len(theorem.sizes) >= 3, theorem.id
        assert set(theorem.of) <= {node.id for node in theorems.NODES}, theorem.id
    edges = [(theorem.of, theorem.condition) for theorem in theorems.THEOREMS]
    assert len(set(edges)) == len(edges)


@pytest.mark.parametrize("field", ["condition", "statement", "why", "sizes", "of", "chapter", "kind", "compared"])
def test_a_changed_field_is_told(one, field):
    fresh, found = one
    assert changes(fresh, fresh, found) == []
    assert changes({**fresh, field: "doctored"}, fresh, found) != []
    assert changes({name: value for name, value in fresh.items() if name != field}, fresh, found) != []


def test_changed_numbers_are_told(one):
    fresh, found = one
    for name in ("float32", "float64"):
        for what in ("outputs", "gradients"):
            for factor, right in ((10, True), (1000, True), (1e4, False), (1e-9, False)):
                committed = copy.deepcopy(fresh)
                committed["differences"][name][what] *= factor
                assert (changes(committed, fresh, found) == []) is right, (name, what, factor)
    for factor, right in ((1.5, True), (3, False), (0.3, False)):
        committed = copy.deepcopy(fresh)
        committed["otherwise"]["difference"] *= factor
        assert (changes(committed, fresh, found) == []) is right
    committed = copy.deepcopy(fresh)
    committed["holds"] = False
    assert changes(committed, fresh, found) != []


def test_a_limit_s_changed_numbers_are_told():
    found = quantized_finer.measured()
    fresh = theorems.record(quantized_finer, found)
    assert changes(fresh, fresh, found) == []
    for change in ({"slope": -0.5}, {"slopes": [-2, 0]}, {"quantity": "bits"}, {"seeds": 3}):
        assert changes(fresh | change, fresh, found) != []
    committed = copy.deepcopy(fresh)
    committed["points"][2]["error"] *= 3
    assert changes(committed, fresh, found) != []


def made(sides, kind=equality, **options):
    """A theorem of this function, with words that do not matter."""
    words = {"condition": "c", "says": "s.", "broken": {"right": False}, "otherwise": "o"}
    return kind("13_gqa", "gqa", "mqa", **words | options)(sides)


def three_times(T, right=True, factor=3.0):
    """Why."""
    x = given(T)
    return Sides(x + x + x, x * (factor if right else 2.0), [x])


def near_three(m, right=True):
    """Why."""
    x = torch.rand(5) + 1
    return Sides(x * (3 + 1 / m), x * (3 if right else 2))


def raises(T, right=True):
    """Why."""
    raise RuntimeError("broken")


def of_nothing(T, right=True):
    """Why."""
    x = given(T)
    return Sides(x / 0 if T == 2 else x, x, [x])


def slow(m, right=True):
    """Why."""
    x = torch.rand(5) + 1
    return Sides(x * (3 + m**-0.2), x * (3 if right else 2))


def wrong_gradient(T, right=True):
    """Why."""
    x = given(T)
    return Sides(x * 3, x + 2 * x.detach() if right else x, [x])


def wrong_weight(T, right=True):
    """Why."""
    x, w = given(T), given(T)
    return Sides(x * w, x * w.detach() if right else x, [x], [(w, w)])


def other_shape(T, right=True):
    """Why."""
    return Sides(given(T), given(1, T))


def test_a_theorem_that_fails_is_recorded_and_stops_nothing(monkeypatch, tmp_path):
    sizes = [{"T": 3}, {"T": 2}]
    points = {"sizes": {}, "points": {"m": [10, 100, 1000]}, "slopes": (-1.1, -0.9)}
    right = [made(three_times, sizes=sizes), made(near_three, limit, **points)]
    wrong = [
        made(three_times, sizes=[{"T": 3, "factor": 3.1}]),
        made(three_times, sizes=sizes, broken={"T": 4}),  # no condition: it holds otherwise too
        made(raises, sizes=sizes),
        made(of_nothing, sizes=sizes),
        made(wrong_gradient, sizes=sizes),
        made(wrong_weight, sizes=sizes),
        made(other_shape, sizes=sizes),
        made(slow, limit, **points),
        made(near_three, limit, **points | {"broken": {"m": 1000}}),
        made(of_nothing, limit, sizes={}, points={"T": [2, 3]}, slopes=(-1, 0)),
    ]
    monkeypatch.setattr(theorems, "THEOREMS", [*wrong, *right])
    path = tmp_path / "map.json"
    theorems.run(path)

    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    records = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)["theorems"]
    assert [record["holds"] for record in records] == [False] * len(wrong) + [True] * len(right)
    assert records[2]["error"] == "RuntimeError: broken"
    assert records[9]["slope"] is None
    assert records[3]["differences"]["float32"]["outputs"] is None
    for record in records:
        theorems._numbers(record)  # what the command prints


MUTANTS = {  # what is wrong: the function, what stands in it, what it becomes, and whose theorems must tell
    "a window of W - 1": (
        near_blocks,
        "distance < window",
        "distance < window - 1",
        "window-sees-all",
        "sparse-window",
    ),
    "a window of W + 1": (near_blocks, "distance < window", "distance <= window", "window-reach", "sparse-window"),
    "no tanh": (additive_scores, "torch.tanh", "", "concat-is-additive"),
    "many rows ABAB": (
        grouped_query_attention,
        "x.flatten(0, 1)[:, None].expand(-1, n_shared, -1, -1)",
        "x.repeat(1, n_shared, 1, 1).unflatten(1, (G, n_shared)).flatten(0, 1)",
        "gqa-is-tied",
    ),
    "few rows ABAB": (
        grouped_query_attention,
        "query.reshape(B, G, n_shared * T, D)",
        "query.unflatten(1, (n_shared, G)).transpose(1, 2).reshape(B, G, n_shared * T, D)",
        "gqa-is-a-sum",
    ),
    "padding, so not causal": (grouped_query_attention, "else pattern & mask", "else mask", "gqa-one-head"),
    "each call counts from 0": (
        MultiHeadAttention.forward,
        "torch.arange(past, past + T",
        "torch.arange(0, T",
        "cache-of-turned-keys",
    ),
    "each call of MLA counts from 0": (
        MultiHeadLatentAttention.forward,
        "torch.arange(past, past + T",
        "torch.arange(0, T",
        "mla-in-calls",
    ),
    "every second key of a stride": (
        Strided.tiles,
        "torch.arange(0, end, self.stride)",
        "torch.arange(0, end, 2 * self.stride)",
        "sparse-stride-parts",
    ),
}


@pytest.fixture
def nothing_kept():
    """Plans that one program has made are not used by another."""
    _plan.cache_clear()
    yield
    _plan.cache_clear()


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_mechanism_breaks_its_theorem(monkeypatch, mutant):
    function, was, becomes, *names = MUTANTS[mutant]
    text, found = textwrap.dedent(inspect.getsource(function)), {}
    assert text.count(was) == 1
    exec(text.replace(was, becomes), function.__globals__, found)
    monkeypatch.setattr(function, "__code__", found[function.__name__].__code__)  # wherever it was imported
    known = {theorem.id: theorem for theorem in theorems.THEOREMS}
    records = [theorems.measure(known[name]) for name in names]
    assert not any(record["holds"] or "error" in record for record in records)


def test_measuring_leaves_no_trace():
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError), drawn(0, torch.float64):
        assert torch.randn(1).dtype == torch.float64
        raise KeyError
    theorems.measure(shared_heads.gqa_every_head)
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_learner_tries_a_theorem(capsys):
    theorems.check("gqa-every-head")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("G = H: Grouped-query") and told[0].endswith("is multi-head attention. It holds.")
    assert told[1].startswith("float32: outputs differ by less than 1e-0")
    assert "otherwise (G = 2 of H = 4): 0." in told[1]
    assert told[2].startswith("Why: Query head h reads")
    assert told[3] == (
        'Change something yourself, as in check("gqa-every-head", G=2). The first sizes: B=2, T=7, H=4, G=4, D=6'
    )
    theorems.check("gqa-every-head", G=1)
    told = capsys.readouterr().out
    assert told.startswith("gqa-every-head with G=1: the sides differ by ") and float(told.split()[-1]) > 0.1
    theorems.check("quantized-finer")
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("relative error 0.1") and "The first sizes: steps=255, B=2" in told[3]
    theorems.check("quantized-finer", steps=7)
    assert capsys.readouterr().out.startswith("quantized-finer with steps=7: the relative error is 0.1")


def test_what_a_learner_is_told_to_change_breaks_the_theorem(capsys):
    for theorem in theorems.THEOREMS:
        theorems.check(theorem.id, **theorem.broken)
        assert float(capsys.readouterr().out.split()[-1]) >= LEAST, theorem.id


@pytest.mark.parametrize("tile", [1, 6, 11, 20])
def test_parts_may_be_any_number(tile):
    assert execution.merged_in_any_order.difference(tile=tile) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    "name, changed, message",
    [
        ("mla-is", {}, "'mla-is' is no theorem; there is mla-is-mqa, mla-is-gqa$"),
        ("quantised-finer", {}, "there is quantized-finer, "),
        ("xyz", {}, "there is concat-is-additive, .*, paged-is-online$"),
        ("gqa-every-head", {"S": 3}, "gqa-every-head has no S; it has B, T, H, G, D, padded$"),
        ("gqa-every-head", {"S": 3, "G": 1, "R": 2}, "gqa-every-head has no S or R; it has"),
        ("quantized-finer", {"steps": 10}, "steps=10, but a code of n bits has 2"),
    ],
)
def test_what_is_not_there_is_told(name, changed, message):
    with pytest.raises(ValueError, match=message):
        theorems.check(name, **changed)


def test_the_command_writes_the_file_and_tells(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(theorems, "THEOREMS", [shared_heads.gqa_every_head, made(raises, sizes=[{"T": 3}])])
    theorems.main(["--out", str(tmp_path / "map.json")])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("holds  gqa-every-head")
    assert told[1].split() == ["BROKEN", "raises", "RuntimeError:", "broken"]
    assert told[2] == "1 of 2 theorems hold"
    assert len(json.loads((tmp_path / "map.json").read_text(encoding="utf-8"))["theorems"]) == 2


@pytest.mark.parametrize(("difference", "shown"), [(0.0, 1e-7), (1e-8, 1e-7), (3e-7, 1e-5), (9e-6, 1e-5), (2e-5, 1e-3)])
def test_a_bound_leaves_room_for_another_processor_and_stays_in_the_tolerance(difference, shown):
    assert theorems._bound(difference, torch.float32) == shown


@pytest.mark.parametrize("bits", [4, 8])
def test_the_limit_of_quantized_caches_is_that_of_the_cache(bits):
    """Its sides quantize by hand, with any number of bits; the cache has two of them."""
    sizes = quantized_finer.sizes[0]
    with drawn(3, torch.float64):
        by_hand = quantized_finer.sides(2**bits - 1, **sizes).left
    with drawn(3, torch.float64):
        B, T, H, D = (sizes[letter] for letter in "BTHD")
        query, key, value = torch.randn(3, B, H, T, D)
        cache = QuantizedKVCache(B, H, T, D, bits=bits, group_size=T)
        cache.append(key, value)
        scores = query @ cache.key.mT / math.sqrt(D)
        assert torch.allclose(by_hand, scores.softmax(-1) @ cache.value, rtol=0, atol=1e-12)


def test_from_four_bits_to_eight_the_error_falls_by_about_17():
    errors = {point["steps"]: point["error"] for point in BY_ID["quantized-finer"]["points"]}
    assert 15 <= errors[15] / errors[255] <= 19
