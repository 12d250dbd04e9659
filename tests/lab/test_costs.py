"""Costs of whole layers: formulas against counted operations and real caches, the roofline, calls that repeat."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import attncourse
from attncourse import sparse
from attncourse.lab import costs
from attncourse.linear import CHUNK
from attncourse.masks import sliding_window_mask
from attncourse.multi_head import MultiHeadAttention
from attncourse.patterns import Fixed, GlobalTokens, Strided, Window, pattern_mask
from attncourse.positions import RotaryEmbedding

D_MODEL, H, D, B = 48, 6, 8, 2
T = 150  # two whole chunks of a linear layer and a piece, more than any window here
PATTERN = [Window(5), Strided(7)]
LATENT = {"kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
LAYERS = {
    "multi_head": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {},
    "sliding_window": {"window": 9, "n_kv_heads": 3},
    "sparse": {"pattern": PATTERN},
    "linear": {},
    "performer": {"n_features": 11},
    "mla": LATENT,
}


def make(name, **options):
    torch.manual_seed(0)
    return attncourse.build(name, D_MODEL, H, **{**LAYERS[name], **options})


def counted(call):
    """FLOP of every product of matrices that a call makes, as PyTorch counts, with kernels made of such products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def stated(layer, n, kind):
    return costs.layer_costs(layer, n, batch=B)[kind]["flop"]


def test_every_mechanism_is_here():
    assert set(LAYERS) == set(attncourse.MECHANISMS)


@pytest.mark.parametrize("name", ["multi_head", "gqa", "mqa", "mla", "naive"])
def test_flop_of_a_prefill_are_those_counted_and_the_triangle_is_half_the_square(name):
    layer = make("mla", decoding="naive") if name == "naive" else make(name)
    square_less_triangle = T * T - T * (T + 1) // 2
    a_pair = 2 * H * (12 + 12) if name in ("mla", "naive") else 4 * H * D  # V = N + R, so that nothing is padded
    assert counted(costs.prefill_call(layer, T, batch=B)) == stated(layer, T, "prefill") + B * a_pair * (
        square_less_triangle
    )


@pytest.mark.parametrize("name", ["multi_head", "gqa", "mqa", "sliding_window"])
def test_flop_of_a_step_are_those_counted(name):
    layer = make(name)
    assert counted(costs.step_call(layer, T, batch=B, lengths=1)) == stated(layer, T, "step")


def test_flop_of_a_latent_step():
    """The code averages whole entries, R numbers more than values have; the naive way expands the new entry as well."""
    absorbed, naive = make("mla"), make("mla", decoding="naive")
    more = 2 * H * LATENT["qk_rope_head_dim"] * T
    assert counted(costs.step_call(absorbed, T, batch=B, lengths=1)) == stated(absorbed, T, "step") + B * more
    assert counted(costs.step_call(naive, T, batch=B, lengths=1)) == stated(naive, T, "step")
    assert stated(naive, T, "step") > 5 * stated(absorbed, T, "step")


def test_flop_of_padding_are_not_stated():
    """Values of 5 numbers are padded to the 12 of a key: products with zeros are counted, and not stated."""
    layer = make("mla", v_head_dim=5)
    padded = 2 * H * (12 - 5) * T * T + 2 * H * (12 + 5) * (T * T - T * (T + 1) // 2)
    assert counted(costs.prefill_call(layer, T, batch=B)) == stated(layer, T, "prefill") + B * padded


@pytest.mark.parametrize("name, M", [("linear", D), ("performer", 11)])
def test_flop_of_a_state(name, M):
    """A chunk's products fill the square; sums of keys, and in a step every update, are not products of matrices."""
    layer = make(name)
    sizes = [CHUNK, CHUNK, T - 2 * CHUNK]
    empty_half = sum(c * c - c * (c + 1) // 2 for c in sizes)
    sums = 2 * H * M * T
    assert counted(costs.prefill_call(layer, T, batch=B)) == stated(layer, T, "prefill") + B * (
        2 * H * (M + D) * empty_half - sums
    )
    outer, total = 2 * H * M * D, 4 * H * M  # keys times values; the sum of keys, written and read
    assert counted(costs.step_call(layer, T, batch=B)) == stated(layer, T, "step") - B * (outer + total)


@pytest.mark.parametrize("n", [1, 8, 9, 10, T])
def test_pairs_of_a_window_and_of_patterns_are_those_of_their_masks(n):
    window = make("sliding_window")
    assert costs.seen_keys(window, n).tolist() == sliding_window_mask(n, window=9).sum(1).tolist()
    patterns = [PATTERN, [Fixed(6, 2)], [Window(3), GlobalTokens((0, 4))], [Window(1)]]
    for pattern in patterns:
        layer = make("sparse", pattern=pattern)
        assert costs.seen_keys(layer, n).tolist() == pattern_mask(n, pattern=pattern).sum(1).tolist()
    assert costs.seen_keys(make("gqa"), n).tolist() == list(range(1, n + 1))


@pytest.mark.parametrize("name, most", [("sliding_window", 5.0), ("sparse", 6.0)])
def test_tiles_hold_more_pairs_than_are_seen(name, most):
    """Blocks and tiles are rectangles: the code multiplies a few times what is seen, and never the whole square."""
    layer, n = make(name), 600
    projections = 2 * B * n * sum(p.numel() for p in layer.parameters())
    ours, said = (
        x - projections for x in (counted(costs.prefill_call(layer, n, batch=B)), stated(layer, n, "prefill"))
    )
    assert said == B * 4 * H * D * int(costs.seen_keys(layer, n).sum())
    assert said < ours < most * said and ours < B * 4 * H * D * n * n / 2


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("n", [1, 7, T])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_cache_is_as_large_as_a_real_one(name, n, dtype):
    layer = make(name)
    stated = costs.layer_costs(layer, n, batch=B, dtype=dtype)["cache_bytes"]
    assert stated == layer.to(dtype).new_cache(B, n).nbytes


def test_bytes_by_hand():
    """d_model 48: four matrices of 48 × 48, x in and out, and the cache: 2 · 48 numbers a token."""
    found = costs.layer_costs(make("multi_head"), 10, batch=3)
    weights, x, a_token = 4 * 4 * 48 * 48, 4 * 2 * 48 * 3, 4 * 2 * 48 * 3
    assert found["prefill"]["bytes"] == weights + 10 * x + 10 * a_token
    assert found["step"]["bytes"] == weights + x + 10 * a_token
    assert (
        costs.layer_costs(make("multi_head"), 10, batch=3, dtype=torch.bfloat16)["step"]["bytes"] * 2
        == (found["step"]["bytes"])
    )


def test_bytes_of_what_a_step_touches():
    """A window has forgotten the rest, a pattern skips it, a state is read and written, a projection is a weight."""
    small = {name: costs.layer_costs(make(name), 15) for name in ("sliding_window", "sparse", "linear", "performer")}
    x = 4 * 2 * 48
    shared = 4 * (2 * 48 * 48 + 2 * 48 * 24)
    assert small["sliding_window"]["step"]["bytes"] == shared + x + 4 * 2 * 24 * 9
    weights = 4 * 4 * 48 * 48
    assert small["sparse"]["step"]["bytes"] == weights + x + 4 * 2 * 48 * 7  # distances 0 to 4, 7 and 14
    assert small["sparse"]["cache_bytes"] == 4 * 2 * 48 * 15
    state = 4 * H * D * (D + 1)
    assert small["linear"]["step"]["bytes"] == weights + x + 2 * state
    assert small["linear"]["prefill"]["bytes"] == weights + 15 * x + state
    assert small["performer"]["step"]["bytes"] == weights + 4 * 11 * D + x + 2 * 4 * H * 11 * (D + 1)


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_multiplies_all_but_the_weights(name):
    one, four = (costs.layer_costs(make(name), 20, batch=batch) for batch in (1, 4))
    weights = 4 * sum(x.numel() for x in [*make(name).parameters(), *make(name).buffers()])
    assert four["cache_bytes"] == 4 * one["cache_bytes"]
    for kind in costs.KINDS:
        assert four[kind]["flop"] == 4 * one[kind]["flop"]
        assert four[kind]["bytes"] - weights == 4 * (one[kind]["bytes"] - weights)


@pytest.mark.parametrize(
    "layer, error, words",
    [
        (torch.nn.Linear(2, 2), TypeError, "layer is a Linear; costs are known of multi_head"),
        (MultiHeadAttention(8, 2), ValueError, "causal=True"),
    ],
)
def test_what_has_no_costs(layer, error, words):
    with pytest.raises(error, match=words):
        costs.layer_costs(layer, 4)


@pytest.mark.parametrize("sizes", [{"n_tokens": 0}, {"n_tokens": 4, "batch": 0}])
def test_sizes_are_at_least_one(sizes):
    with pytest.raises(ValueError, match="=0, but it must be at least 1"):
        costs.layer_costs(make("gqa"), **sizes)


def test_the_roofline_by_hand():
    machine = {"flop_per_s": 100.0, "bytes_per_s": 20.0}
    assert costs.bound({"flop": 500, "bytes": 20}, machine) == (5000.0, "compute")
    assert costs.bound({"flop": 500, "bytes": 200}, machine) == (10000.0, "traffic")


def test_a_machine_has_two_speeds():
    here = costs.machine(repeats=1)
    assert set(here) == {"flop_per_s", "bytes_per_s"} and all(speed > 1e8 for speed in here.values())


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_calls_repeat(name):
    layer = make(name, **({} if name == "mla" else {"rotary": RotaryEmbedding(D)}))
    prefill, step = costs.prefill_call(layer, 12, batch=B), costs.step_call(layer, 12, batch=B, lengths=1)
    for call, n in ((prefill, 12), (step, 1)):
        first = call()
        assert first.shape == (B, n, D_MODEL) and first.isfinite().all()
        assert torch.equal(call(), first)


@torch.no_grad()
def test_a_prefill_gives_what_the_layer_gives():
    layer = make("gqa")
    torch.manual_seed(3)
    output = costs.prefill_call(layer, 6)()
    torch.manual_seed(3)
    assert torch.allclose(output, layer(torch.randn(1, 6, D_MODEL)), atol=1e-6)


@torch.no_grad()
def test_each_step_of_a_sparse_layer_makes_its_plan_as_decoding_does():
    step = costs.step_call(make("sparse"), 40)
    before = sparse._plan.cache_info().misses
    for _ in range(40):
        step()
    assert sparse._plan.cache_info().misses == before + 40


def test_measuring_gives_each_layer_both_times():
    times = costs.measure_layers({name: make(name) for name in LAYERS}, 16, repeats=1)
    assert list(times) == list(LAYERS)
    assert all(set(ms) == {"prefill_ms", "step_ms"} and min(ms.values()) > 0 for ms in times.values())


SMALL = {"n_tokens": 64, "d_model": 64, "n_heads": 4}
HERE = {"flop_per_s": 1e9, "bytes_per_s": 1e9}


def test_every_mechanism_compared_at_one_budget():
    rows = costs.compare(list(LAYERS), budget=0.25, **SMALL, repeats=1, here=HERE)
    assert [row["mechanism"] for row in rows] == list(LAYERS)
    by_name = {row["mechanism"]: row for row in rows}
    assert {name: row["note"] for name, row in by_name.items() if row["note"]} == {
        "multi_head": "as it is",
        "sparse": "as it is",
        "mqa": "keeps what it keeps",
        "linear": "the nearest size",
    }
    assert all(row["share"] <= 0.25 for row in rows if not row["note"])
    assert by_name["multi_head"]["share"] == by_name["sparse"]["share"] == 1 and by_name["mqa"]["share"] == 0.25
    assert by_name["gqa"]["options"] == {"n_kv_heads": 1} and by_name["sliding_window"]["options"] == {"window": 16}
    assert "n_heads" in by_name["linear"]["options"] and "n_heads" not in by_name["gqa"]["options"]
    for row in rows:
        for kind in costs.KINDS:
            assert set(row[kind]) == {"flop", "bytes", "bound_ms", "binds", "ms"} and row[kind]["ms"] > 0
            assert (row[kind]["bound_ms"], row[kind]["binds"]) == costs.bound(row[kind], HERE)


def test_without_measuring_nothing_runs():
    rows = costs.compare(["mla", "mla", "gqa"], **SMALL, here=HERE, measure=False)
    assert [row["mechanism"] for row in rows] == ["mla", "gqa"]  # each once
    assert all(row[kind]["ms"] is None for row in rows for kind in costs.KINDS)


def test_a_budget_that_is_too_small_is_said():
    with pytest.raises(ValueError, match=r"too small for gqa.*n_kv_heads=0"):
        costs.compare(["gqa"], budget=0.01, **SMALL, here=HERE, measure=False)


def test_layers_of_a_budget_are_drawn_from_a_seed_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    one, other = (costs.layer_at("mla", 0.5, **SMALL)[0] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.q_proj.weight, other.q_proj.weight)


def test_the_grid_has_every_mechanism_at_every_length_and_batch():
    rows = costs.grid((16, 64), (1, 3), d_model=64, n_heads=4, budget=0.5)
    assert len(rows) == 2 * 2 * 2 * len(LAYERS)
    keys = [(row["mechanism"], row["tokens"], row["batch"], row["number_bytes"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        layer, _ = costs.layer_at(row["mechanism"], 0.5, n_tokens=row["tokens"], d_model=64, n_heads=4)
        dtype = torch.float32 if row["number_bytes"] == 4 else torch.bfloat16
        found = costs.layer_costs(layer, row["tokens"], batch=row["batch"], dtype=dtype)
        assert {kind: row[kind] for kind in costs.KINDS} == {kind: found[kind] for kind in costs.KINDS}
