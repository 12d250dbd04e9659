import json
from dataclasses import asdict

import pytest
import torch

from attncourse import lab
from attncourse.kv_cache import KVCache
from attncourse.lab.decoder import Decoder
from attncourse.lab.kv_cache import (
    FACTORS,
    STORAGES,
    CopyingKVCache,
    RoundedKVCache,
    Storage,
    attention_cost,
    attention_rates,
    channel_spread,
    decoding_calls,
    device_rates,
    held_out_pieces,
    loss_from_caches,
    rounded,
    run,
    runs,
    step_costs,
    with_outlier,
)
from attncourse.lab.measure import allocated_bytes
from attncourse.multi_head import MultiHeadAttention
from attncourse.quantized_cache import QuantizedKVCache


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(256, d_model=16, n_heads=2, n_layers=2).double().eval()


# --- the calls, counted


def test_calls_are_counted_as_the_formulas_say():
    d, layer = 16, MultiHeadAttention(16, 2, causal=True).double()
    x = numbers(1, 12, d)
    cached, anew = (decoding_calls(layer, x, 5, cached=on) for on in (True, False))
    assert [(c["first"], c["end"], c["kept"]) for c in cached] == [
        (0, 5, 5),
        *((n, n + 1, n + 1) for n in range(5, 12)),
    ]
    assert [(c["first"], c["end"], c["kept"]) for c in anew] == [(0, n, 0) for n in range(5, 13)]
    for one, all_ in zip(cached[1:], anew[1:], strict=True):
        S = one["end"]
        assert one["multiply_adds"] == 4 * d**2 + 2 * S * d
        assert all_["multiply_adds"] == 4 * S * d**2 + 2 * S**2 * d
        assert one["bytes"] == 2 * 8 * d * S and all_["bytes"] == 0


def test_chunks_of_a_prompt():
    layer, x = MultiHeadAttention(16, 2, causal=True).double(), numbers(1, 10, 16)
    calls = decoding_calls(layer, x, 8, chunk=3)
    assert [(c["first"], c["end"]) for c in calls] == [(0, 3), (3, 6), (6, 8), (8, 9), (9, 10)]


# --- a cache that is copied


def test_a_copied_cache_gives_the_same_and_makes_itself_anew():
    layer, x = MultiHeadAttention(16, 2, causal=True).double(), numbers(1, 9, 16)
    cache = CopyingKVCache(1, 2, 9, 8, dtype=torch.float64)
    parts = torch.cat([layer(part, cache=cache) for part in x.split([4, 1, 3, 1], dim=1)], 1)
    torch.testing.assert_close(parts, layer(x))
    new = numbers(1, 2, 1, 8)
    for kind, made in ((CopyingKVCache, 2 * 8 * 2 * 8 * 9), (KVCache, 0)):
        cache = kind(1, 2, 9, 8, dtype=torch.float64)
        cache.append(numbers(1, 2, 8, 8), numbers(1, 2, 8, 8))
        assert allocated_bytes(lambda cache=cache: cache.append(new, new))[0] == made


def test_steps_are_timed_in_three_ways():
    rows = step_costs((4, 8), d_model=16, n_heads=2, repeats=1)
    made = {(row["way"], row["length"]): row["bytes"] for row in rows}
    assert len(rows) == 6 and all(row["ms"] > 0 for row in rows)
    assert made["cache, in place", 4] == made["cache, in place", 8] < made["cache, copied", 4]
    assert made["cache, copied", 8] - made["cache, copied", 4] == 2 * 4 * 16 * 4  # four tokens more, copied


# --- the memory wall


def test_intensity_is_two_flop_for_each_number_of_the_cache_and_query_that_shares_it():
    assert attention_cost(1, 10**6, H=32, D=128)["intensity"] == pytest.approx(1, rel=1e-5)
    assert attention_cost(1, 10**6, H=32, G=8, D=128)["intensity"] == pytest.approx(4, rel=1e-4)
    assert attention_cost(1, 10**6, H=32, G=8, D=128, bytes_each=4)["intensity"] == pytest.approx(2, rel=1e-4)
    whole = attention_cost(7, 7, H=2, D=3)
    assert whole["flop"] == 4 * 28 * 2 * 3 and whole["bytes"] == 2 * (2 * 2 * 7 * 3 + 2 * 2 * 7 * 3)


def test_rates_are_measured():
    rates = device_rates(repeats=1)
    assert rates["bytes_per_s"] > 1e7 and rates["flop_per_s"] > 1e7
    rows = attention_rates(64, (1, 64), H=2, D=8, repeats=1)
    assert [row["T"] for row in rows] == [1, 64] and rows[1]["flop"] == 4 * 64 * 65 // 2 * 2 * 8


# --- fewer bits


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_caches_are_quantized_ones(bits):
    """The cache of the experiment and the one of the chapter hold the same, and give the same outputs."""
    model, pieces = small_model(), torch.randint(256, (3, 41), generator=torch.Generator().manual_seed(0))
    storage = Storage(bits, group_size=8)
    one = loss_from_caches(model, pieces, lambda cache: RoundedKVCache.like(cache, storage))
    two = loss_from_caches(model, pieces, lambda cache: QuantizedKVCache.like(cache, bits=bits, group_size=8))
    assert one == pytest.approx(two, abs=1e-12)
    assert one != pytest.approx(loss_from_caches(model, pieces), abs=1e-9)


def test_an_exact_cache_gives_the_loss_of_one_pass():
    model, pieces = small_model(), torch.randint(256, (3, 21), generator=torch.Generator().manual_seed(0))
    losses = [loss_from_caches(model, pieces, chunk=chunk) for chunk in (1, 6, 20)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-12)
    exact = loss_from_caches(model, pieces, lambda cache: RoundedKVCache.like(cache, Storage(None)))
    assert exact == pytest.approx(losses[0], abs=1e-12)


def test_late_is_the_same_rounding_at_another_time():
    x = numbers(1, 2, 16, 8)
    stored = {}
    for along in ("token", "token, late"):
        cache = RoundedKVCache(1, 2, 20, 8, storage=Storage(4, along, along, 8), dtype=torch.float64)
        for part in x.split(1, 2):
            cache.append(part, part)
        stored[along] = [cache.key[:, :, :16].clone(), cache.append(x[:, :, :1], x[:, :, :1])[0][:, :, :16]]
    now, late = stored["token"], stored["token, late"]
    assert torch.equal(now[0][:, :, :15], rounded(x, 4, "token")[:, :, :15])
    assert torch.equal(late[0][:, :, 8:], x[:, :, 8:]) and torch.equal(late[0][:, :, :8], now[0][:, :, :8])
    assert torch.equal(late[1], now[1])  # both groups are full: all is rounded


def test_an_outlier_changes_the_keys_and_not_the_function():
    model, pieces = small_model(), torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))
    changed = with_outlier(model, 16, pair=3)
    assert loss_from_caches(changed, pieces) == pytest.approx(loss_from_caches(model, pieces), abs=1e-12)
    assert channel_spread(changed, pieces)["key"] > 5 * channel_spread(model, pieces)["key"]
    assert channel_spread(changed, pieces)["value"] == channel_spread(model, pieces)["value"]
    with pytest.raises(ValueError, match="pair=4, but a head of 8 numbers has 4"):
        with_outlier(model, 2, pair=4)


def test_slices_do_not_overlap():
    one, two = held_out_pieces(0, 4, 16), held_out_pieces(1, 4, 16)
    assert one.shape == two.shape == (4, 17) and torch.equal(one[0, -1], one[1, 0]) and not torch.equal(one, two)


# --- the files


def test_run_writes_and_keeps(tmp_path, capsys):
    planned = {"exact": (Storage(None), 1), "4 bits": (Storage(4), 1), "4 bits, outlier": (Storage(4), 8)}
    result = run(tmp_path, slices=(0, 1), planned_runs=planned, n_pieces=1)
    assert list(result["runs"]) == [f"{name}/{n}" for name in planned for n in (0, 1)]
    assert json.loads((tmp_path / "kv_cache.json").read_text()) == result
    capsys.readouterr()
    assert run(tmp_path, slices=(0, 1), planned_runs=planned, n_pieces=1) == result
    assert capsys.readouterr().out.count("kept") == 6


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("kv_cache")["runs"]
    assert committed.keys() == {f"{name}/{n}" for name in runs() for n in (0, 1, 2)}
    for key, record in committed.items():
        storage, factor = runs()[key.rpartition("/")[0]]
        assert record["storage"] == asdict(storage) and record["factor"] == factor, key


def test_committed_results_say_what_the_chapter_says():
    committed = lab.load_result("kv_cache")["runs"]

    def above(name):
        return [committed[f"{name}/{n}"]["loss"] - committed[f"exact/{n}"]["loss"] for n in range(3)]

    def mean(name):
        return sum(above(name)) / 3

    stated = {
        "4 bits, keys per channel": 0.002,
        "4 bits, keys per token, late": 0.003,
        "4 bits, keys per token": 0.014,
        "2 bits, keys per channel": 0.084,
        "2 bits, keys per token, late": 0.144,
        "2 bits, keys per token": 0.620,
        "2 bits, values per token, late": 0.032,
        "2 bits, values per channel": 0.035,
    }
    for name, loss in stated.items():
        assert mean(name) == pytest.approx(loss, abs=0.00051), name
    assert max(map(abs, above("8 bits, keys per channel"))) < 2e-4
    assert [loss < 0 for loss in above("4 bits, keys per channel")].count(True) == 1
    for bits in (4, 3, 2):  # the axis, matched: a third to two fifths
        gain = 1 - mean(f"{bits} bits, keys per channel") / mean(f"{bits} bits, keys per token, late")
        assert 0.30 < gain < 0.43, bits
    for better, worse in (
        ("2 bits, keys per channel", "2 bits, keys per token, late"),
        ("2 bits, values per token, late", "2 bits, values per channel"),
    ):
        assert all(a < b for a, b in zip(above(better), above(worse), strict=True))
    for factor in FACTORS:  # per channel, not even a rounding changes
        assert above(f"4 bits, keys per channel, outlier × {factor}") == above("4 bits, keys per channel")
    assert min(above("4 bits, keys per token, outlier × 32")) > 1
    assert above("exact, outlier × 32") == [0, 0, 0]
    spread = [committed[f"exact/{n}"]["spread"] for n in range(3)]
    assert all(2 < s["key"] < 2.1 and 1.2 < s["value"] < 1.3 for s in spread)
    assert len({committed[f"exact/{n}"]["pair"] for n in range(3)}) == 3 and len(STORAGES) == 18
