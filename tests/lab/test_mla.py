import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attncourse import lab
from attncourse.lab.corpus import load_corpus
from attncourse.lab.mla import (
    RUNS,
    SIZES,
    Settings,
    both_ways,
    cached_numbers,
    cost_layers,
    decode_step,
    filled_cache,
    latent,
    layers_of,
    make_model,
    multiply_adds,
    pairs,
    run,
    step_costs,
    train_model,
)
from attncourse.lab.training import seeded
from attncourse.mla import absorbed_attention

TINY = {"steps": 3, "batch_size": 2, "length": 16, "d_model": 16, "n_heads": 2}


# --- one budget, several mechanisms


def test_names_of_runs_say_what_is_cached():
    for name, settings in RUNS.items():
        said = int(name.removeprefix(f"{settings.task}, ").split(", ")[1])
        assert cached_numbers(make_model(settings)) == said, name


def test_runs_are_alike_but_for_their_layers_and_the_longer_ones_for_their_steps():
    for task in ("bytes", "recall"):
        plain = [s for name, s in RUNS.items() if s.task == task and not name.endswith("longer")]
        assert len({json.dumps(asdict(replace(s, mechanism="", options={}, turned=True))) for s in plain}) == 1
        rest = [
            sum(p.numel() for p in make_model(s).parameters())
            - sum(p.numel() for layer in layers_of(make_model(s)) for p in layer.parameters())
            for s in plain
        ]
        assert len(set(rest)) == 1
    for name, settings in RUNS.items():
        if name.endswith("longer"):
            assert replace(settings, steps=400) == RUNS[name.removesuffix(", longer")]


def test_matched_parameters_are_within_three_per_cent():
    def parameters(name):
        return sum(p.numel() for p in layers_of(make_model(RUNS[f"bytes, {name}"]))[0].parameters())

    for mine, theirs in (("MLA, 32, parameters of GQA", "GQA, 32"), ("MLA, 16, parameters of MQA", "MQA, 16")):
        assert parameters(mine) == pytest.approx(parameters(theirs), rel=0.03)


@torch.no_grad()
def test_a_key_that_is_not_turned_knows_no_distance():
    settings = Settings("bytes", "mla", latent(6, 4), **TINY)
    tokens = torch.randint(256, (1, 9))
    for turned in (True, False):
        layer = layers_of(make_model(replace(settings, turned=turned)))[0]
        x = torch.randn(1, 1, 16).expand(1, 9, 16)  # nine times one token
        _, weights = layer(x, return_weights=True)
        assert torch.allclose(weights[0, :, -1], torch.full((2, 9), 1 / 9), atol=1e-6) is not turned
    one, other = (make_model(replace(settings, turned=turned)) for turned in (True, False))
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in other.parameters())
    assert not torch.allclose(one(tokens), other(tokens), atol=1e-4)


def test_pairs_ask_every_key_again():
    tokens, counted = pairs(Settings("recall", "mqa", n_keys=8, length=8), seeded(0, 0), n_pairs=4, answers=12)
    assert tokens.shape == (3, 16) and counted.sum() == 12
    for row in tokens.tolist():
        written = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert dict(zip(row[8::2], row[9::2], strict=True)) == written


@pytest.mark.parametrize("task", ["bytes", "recall"])
def test_training_is_repeatable_and_lowers_the_loss(task):
    options = TINY | {"steps": 30, "n_keys": 16, "lr": 1e-2}
    settings = Settings(task, "mla", latent(6, 4), **options)
    (_, one), (_, two) = (train_model(settings, 2, progress=False) for _ in range(2))
    _, other = train_model(settings, 3, progress=False)
    assert one.losses == two.losses != other.losses
    assert sum(one.losses[-5:]) < sum(one.losses[:5])


def test_run_writes_resumes_and_keeps(tmp_path, capsys):
    runs = {
        "bytes, MQA": Settings("bytes", "mqa", **TINY),
        "recall, MLA": Settings("recall", "mla", latent(6, 4), **(TINY | {"n_keys": 16})),
    }
    written = run(tmp_path, seeds=(0,), runs=runs)
    assert json.loads((tmp_path / "mla.json").read_text()) == written
    one, two = written["runs"]["bytes, MQA/0"], written["runs"]["recall, MLA/0"]
    assert one["corpus"] == load_corpus().provenance() and one["loss"] > 0 and one["cached_numbers"] == 16
    assert "corpus" not in two and 0 <= two["exact"] <= 1 and two["cached_numbers"] == 10
    capsys.readouterr()
    assert run(tmp_path, seeds=(0,), runs=runs) == written
    assert capsys.readouterr().out.count("kept") == 2


# --- costs


@torch.no_grad()
def test_multiply_adds_are_those_that_are_counted():
    for name, layer in cost_layers(d_model=48, n_heads=6, n_kv_heads=2).items():
        cache, x = filled_cache(layer, 32), torch.randn(1, 1, 48)
        with FlopCounterMode(display=False) as counter:
            decode_step(layer, x, cache)
        if not layer.__class__.__name__.startswith("MultiHeadLatent"):
            continue  # a fused kernel for one query is not counted
        counted = counter.get_total_flops() / 2
        C, N, R, V = (SIZES[letter] for letter in "CNRV")
        needed, done = (2 * C + R, 2 * (C + R)) if name == "MLA, absorbed" else (N + R + V, N + R + V)
        rest = multiply_adds(layer, 33) - 33 * 6 * needed
        assert counted in (rest, rest + 33 * 6 * done), name  # a fused kernel may not be counted


@torch.no_grad()
def test_latent_layers_take_the_same_step_and_the_cache_stays_as_long():
    layers = cost_layers(d_model=48, n_heads=6, n_kv_heads=2)
    x, results = torch.randn(1, 1, 48), []
    for name in ("MLA, naive", "MLA, absorbed"):
        cache = filled_cache(layers[name], 9)
        results += [decode_step(layers[name], x, cache), decode_step(layers[name], x, cache)]
        assert cache.length == 9
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)


def test_costs_count_cache_and_tensors():
    rows = step_costs(40, d_model=96, n_heads=6, n_kv_heads=2, timed=False)
    assert list(rows) == ["MHA", "GQA", "MLA, naive", "MLA, absorbed"]
    assert [row["cached"] // 160 for row in rows.values()] == [192, 64, 192, 192]
    assert rows["MLA, naive"]["made"] > 3 * rows["MLA, absorbed"]["made"]
    assert all("ms" not in row for row in rows.values())
    assert step_costs(4, d_model=96, n_heads=6, n_kv_heads=2, repeats=1)["MHA"]["ms"] > 0


def test_both_ways_are_the_two_functions():
    rows = both_ways(3, 64, 4, timed=False)
    assert rows["expanded"]["made"] > rows["absorbed"]["made"]
    many = both_ways(64, 64, 4, timed=False)
    assert many["absorbed"]["made"] > many["expanded"]["made"]
    assert absorbed_attention.__name__ == "absorbed_attention" and both_ways(1, 8, 2, repeats=1)["absorbed"]["ms"] > 0


# --- committed


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("mla")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        settings = RUNS[record["model"]]
        assert record["settings"] == json.loads(json.dumps(asdict(settings))), key
        assert record["date"] and len(record["losses"]) == settings.steps // 10
        assert ("corpus" in record) == (settings.task == "bytes")
        assert record["cached_numbers"] == cached_numbers(make_model(settings))


def test_committed_results_say_what_the_chapter_says():
    runs = lab.load_result("mla")["runs"]

    def results(name, field):
        return torch.tensor([runs[f"{name}/{seed}"][field] for seed in (0, 1, 2)])

    def loss(name):
        return results(f"bytes, {name}", "loss")

    def exact(name):
        return results(f"recall, {name}", "exact")

    assert (loss("GQA, 32") < loss("MHA, 128")).all() and (loss("MQA, 16") < loss("MHA, 128")).all()
    gap = loss("MLA, 16") - loss("MQA, 16")
    assert gap.min() > 0.1 and gap.mean().item() == pytest.approx(0.17, abs=0.005)
    assert (loss("MLA, 32") > loss("GQA, 32")).all() and (loss("MLA, 32") - loss("GQA, 32")).mean() < 0.045
    closed = (loss("MLA, 16") - loss("MLA, 16, C = R = 8")).mean() / gap.mean()
    assert closed.item() == pytest.approx(0.5, abs=0.02)
    lost = (loss("MLA, 16, not turned") - loss("MLA, 16")).mean().item()
    assert lost == pytest.approx(0.11, abs=0.005)
    assert (exact("MLA, 16") < 0.97).all() and (exact("MLA, 32") < exact("GQA, 32")).all()
    for name in ("MLA, 16, not turned", "MLA, 16, longer", "MLA, 16, parameters of MQA, longer", "MQA, 16"):
        assert (exact(name) > 0.9995).all(), name
    for first, second in (("MHA, 128", "MQA, 16"), ("MQA, 16", "MLA, 32"), ("MLA, 32", "MLA, 16")):
        starts = [results(f"recall, {name}", "losses").lt(1).float().argmax(-1) for name in (first, second)]
        assert starts[0].float().mean() < starts[1].float().mean()
