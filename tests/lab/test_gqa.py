import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

from attncourse import lab
from attncourse.gqa import GroupedQueryAttention
from attncourse.lab import gqa as experiment
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.gqa import (
    RUNS,
    WAYS,
    Settings,
    cached_bytes_per_token,
    conversions,
    convert,
    costs_by_sharing,
    decode_step,
    divisors,
    filled_cache,
    head_likeness,
    run,
    step_costs,
    uptrain,
)
from attncourse.multi_head import MultiHeadAttention

SMALL = {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_length": 32}
TINY = {"steps": 3, "batch_size": 2, "length": 16}


@pytest.fixture
def small_model(monkeypatch):
    """A fresh small decoder in place of the trained byte model."""
    torch.manual_seed(0)
    model = Decoder(256, **SMALL).eval()
    first = copy.deepcopy(model)
    monkeypatch.setattr(experiment, "load_language_model", lambda: (copy.deepcopy(first), {}))
    return model


# --- conversion


@torch.no_grad()
def test_convert_shares_heads_in_every_layer_and_keeps_the_model(small_model):
    tokens = load_corpus().held_out[:40].long().view(2, 20)
    expected = small_model(tokens)
    half = convert(small_model, 2)
    assert all(type(block.attention) is GroupedQueryAttention for block in half.blocks)
    assert all(block.attention.n_kv_heads == 2 for block in half.blocks)
    assert torch.equal(small_model(tokens), expected) and not torch.allclose(half(tokens), expected, atol=1e-3)
    torch.testing.assert_close(convert(small_model, 4)(tokens), expected, rtol=0, atol=1e-5)
    assert Decoder(**half.config).load_state_dict(half.state_dict())
    caches = half.new_caches(2, 20)
    parts = torch.cat([half(part, caches=caches) for part in tokens.split((3, 1, 16), 1)], 1)
    torch.testing.assert_close(parts, half(tokens), rtol=0, atol=1e-5)


def test_random_heads_differ_by_layer_and_seed(small_model):
    one, again, other = (convert(small_model, 1, "random", seed) for seed in (0, 0, 1))
    keys = [[block.attention.k_proj.weight for block in model.blocks] for model in (one, again, other)]
    assert torch.equal(keys[0][0], keys[1][0]) and torch.equal(keys[0][1], keys[1][1])
    assert not torch.equal(keys[0][0], keys[0][1]) and not torch.equal(keys[0][0], keys[2][0])
    assert torch.equal(one.blocks[0].attention.q_proj.weight, small_model.blocks[0].attention.q_proj.weight)


def test_bytes_a_token_are_those_of_the_key_value_heads(small_model):
    assert cached_bytes_per_token(small_model) == 2 * 2 * 4 * 4 * 4  # layers, key and value, heads, numbers, bytes
    assert cached_bytes_per_token(convert(small_model, 1)) == 2 * 2 * 1 * 4 * 4


def test_head_likeness_is_one_for_equal_heads_and_near_zero_for_random_ones(small_model):
    assert abs(head_likeness(small_model)) < 0.3
    with torch.no_grad():
        for block in small_model.blocks:
            block.attention.k_proj.weight.copy_(block.attention.k_proj.weight[:4].repeat(4, 1))
    assert head_likeness(small_model) == pytest.approx(1)
    assert abs(head_likeness(small_model, "v_proj")) < 0.3


def test_conversions_have_a_row_for_every_choice(small_model):
    rows = conversions(600, seeds=(0, 1))
    assert [(row["n_kv_heads"], row["method"]) for row in rows] == [
        (G, method) for G in (4, 2, 1) for method in ("mean", "first", "random")
    ]
    four = {row["loss"] for row in rows if row["n_kv_heads"] == 4 and row["method"] != "random"}
    assert len(four) == 1  # four heads stay four


def test_uptraining_is_repeatable_and_lowers_the_loss(small_model):
    settings = Settings(1, "mean", **(TINY | {"steps": 25}))
    (_, one), (_, two) = (uptrain(settings, 2, progress=False) for _ in range(2))
    _, other = uptrain(settings, 3, progress=False)
    assert one.losses == two.losses != other.losses
    assert sum(one.losses[-5:]) < sum(one.losses[:5])


def test_runs_differ_in_the_conversion_alone():
    assert len({replace(settings, n_kv_heads=0, method=None) for settings in RUNS.values()}) == 1
    assert {settings.n_kv_heads for settings in RUNS.values()} == {8, 4, 2, 1}


# --- costs


@torch.no_grad()
def test_every_way_takes_the_same_step():
    torch.manual_seed(0)
    for layer in (MultiHeadAttention(24, 6, causal=True), GroupedQueryAttention(24, 6, 2)):
        cache, x = filled_cache(layer, 9), torch.randn(1, 1, 24)
        outputs = [decode_step(layer, x, cache, **options) for options in WAYS.values()]
        assert cache.length == 9
        for output in outputs:
            torch.testing.assert_close(output, layer(x, cache=cache), rtol=0, atol=1e-5)
            cache.length = 9


def test_repeating_makes_as_much_as_multi_head_attention_caches():
    costs = step_costs(128, 48, 12, 3, timed=False)
    assert costs["MHA"]["cache"] == 4 * costs["GQA"]["cache"]
    assert costs["GQA, repeated"]["bytes"] > costs["MHA"]["cache"] * 0.99
    assert costs["GQA, joined and repeated"]["bytes"] > costs["MHA, joined"]["bytes"]
    longer = step_costs(256, 48, 12, 3, timed=False)
    assert longer["GQA"]["bytes"] - costs["GQA"]["bytes"] < 128 * 12 * 4 * 4  # scores at most, no keys


def test_costs_by_sharing_count_what_is_read():
    rows = costs_by_sharing(10, 24, 6, timed=False)
    assert [row["G"] for row in rows] == [6, 3, 2, 1]
    for row in rows:
        assert row["cached"] == 2 * 10 * row["G"] * 4 * 4
        assert row["weights"] == 2 * 24 * (24 + row["G"] * 4) * 4
    assert all(row["ms"] > 0 for row in costs_by_sharing(10, 24, 6, repeats=1))
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


# --- the files


def test_run_writes_and_keeps(tmp_path, capsys, small_model):
    runs = {"not converted": Settings(4, None, **TINY), "G = 1, mean": Settings(1, "mean", **TINY)}
    arguments = {"seeds": (0,), "runs": runs, "n_bytes": 600}
    result = run(tmp_path, **arguments)
    written = json.loads((tmp_path / "gqa.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert list(written["runs"]) == ["not converted/0", "G = 1, mean/0"]
    converted = written["runs"]["G = 1, mean/0"]
    assert converted["corpus"] == load_corpus().provenance() and len(converted["losses"]) == 1
    assert converted["before"] > 0 and converted["bytes_per_token"] == 64
    capsys.readouterr()
    assert run(tmp_path, **arguments) == written
    assert capsys.readouterr().out.count("kept") == 2


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("gqa")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        assert record["settings"] == asdict(RUNS[record["model"]]), key
        assert len(record["losses"]) == 20 and record["date"]
        assert record["bytes_per_token"] == 4 * 2 * record["settings"]["n_kv_heads"] * 16 * 4
    assert len(committed["conversions"]["rows"]) == 9 and committed["conversions"]["date"]


def test_committed_results_say_what_the_chapter_says():
    committed = lab.load_result("gqa")

    def losses(name, field="loss"):
        return torch.tensor([committed["runs"][f"{name}/{seed}"][field] for seed in (0, 1, 2)])

    control = losses("not converted")
    assert (control > losses("not converted", "before")).all() and control.mean() < 1.24
    for G, price, mended in ((4, 0.08, 0.96), (2, 0.26, 0.90), (1, 0.44, 0.84)):
        loss, before = losses(f"G = {G}, mean"), losses(f"G = {G}, mean", "before")
        assert (loss - control).mean().item() == pytest.approx(price, abs=0.005)
        assert ((before - loss) / (before - control)).mean().item() == pytest.approx(mended, abs=0.006)
        assert loss.max() - loss.min() < 0.02
    ahead = losses("G = 4, first") - losses("G = 4, mean")
    assert ahead.min() > 0.006 and ahead.max() < 0.0135
    assert (losses("G = 4, random") > losses("G = 1, mean")).all()
    curves = {method: losses(f"G = 4, {method}", "losses").mean(0) for method in ("mean", "first", "random")}
    assert curves["first"][0] < curves["mean"][0] < curves["random"][0]
    crossed = (curves["mean"] < curves["first"]).nonzero()[0].item()
    assert 2 <= crossed <= 7 and (curves["random"] > curves["mean"] + 0.3).all()
    assert (losses("not converted", "losses").mean(0) < torch.stack(list(curves.values()))).all()
    assert losses("not converted", "losses").mean(0)[5] > losses("not converted", "losses").mean(0)[0] + 0.1

    right_after = {(row["n_kv_heads"], row["method"]): row["loss"] for row in committed["conversions"]["rows"]}
    assert right_after[4, "mean"] == pytest.approx(3.27, abs=0.005)
    assert right_after[4, "first"] < right_after[4, "mean"] < right_after[4, "random"]
    assert all(right_after[1, method] > 4 for method in ("mean", "first", "random"))

    first_training = lab.load_result("language")["losses"]
    end = losses("G = 1, mean", "final_loss").mean()
    step = next(50 * n + 25 for n, loss in enumerate(first_training) if loss <= end)
    assert 400 <= step <= 500
