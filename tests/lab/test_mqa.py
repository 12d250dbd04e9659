import json
from dataclasses import asdict, replace

import pytest
import torch

from attncourse import lab
from attncourse.lab.corpus import load_corpus
from attncourse.lab.mqa import (
    MODELS,
    RUNS,
    STEPS,
    StoredRepeated,
    make_model,
    run,
    step_costs,
    train_model,
)
from attncourse.mqa import MultiQueryAttention
from attncourse.positions import RotaryEmbedding

TINY = {"d_model": 32, "network": 128, "n_layers": 1, "steps": 12, "batch_size": 4, "length": 6}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# --- quality


def test_models_differ_in_what_is_said_alone():
    models = {name: make_model(settings) for name, settings in MODELS.items()}
    counts = {name: parameters(model) for name, model in models.items()}
    full = counts.pop("MHA")
    assert counts.pop("MQA") < 0.9 * full and set(counts.values()) == {full}
    for name, model in models.items():
        attention, settings = model.blocks[0].attention, MODELS[name]
        assert attention.q_proj.out_features == 8 * settings.n_heads
        assert attention.k_proj.out_features == attention.v_proj.out_features == 8 * settings.n_kv_heads
        assert model.blocks[1].up.out_features == settings.network
    assert len({replace(s, n_heads=8, n_kv_heads=8, network=256) for s in MODELS.values()}) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_causal_and_decodes_from_its_cache(name):
    model, tokens = make_model(MODELS[name]), torch.randint(256, (2, 7))
    whole, caches = model(tokens), model.new_caches(2, 7)
    parts = torch.cat([model(part, caches=caches) for part in tokens.split((3, 1, 3), 1)], 1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(tokens[:, :4]), whole[:, :4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["bytes", "copy"])
def test_training_is_repeatable_and_lowers_the_loss(task):
    settings = replace(MODELS["MQA"], **TINY, task=task, n_symbols=8)
    (_, one), (_, two) = (train_model(settings, 2, progress=False) for _ in range(2))
    assert one.losses == two.losses and sum(one.losses[-3:]) < sum(one.losses[:3])


# --- what a step reads


@torch.no_grad()
def test_storing_after_repeating_is_right_and_saves_nothing():
    torch.manual_seed(0)
    options = {"rotary": RotaryEmbedding(6)}
    good, bad = MultiQueryAttention(24, 4, **options), StoredRepeated(24, 4, **options)
    bad.load_state_dict(good.state_dict())
    x, one, two = torch.randn(2, 9, 24), good.new_cache(2, 9), bad.new_cache(2, 9)
    for part in x.split((4, 1, 3, 1), 1):
        torch.testing.assert_close(bad(part, cache=two), good(part, cache=one))
    assert two.nbytes == 4 * one.nbytes


def test_costs_are_those_of_the_sizes():
    costs = step_costs(20, 32, 4, timed=False)
    assert tuple(costs) == STEPS
    assert [costs[way]["cache"] for way in STEPS] == [4 * 2 * 32 * 20, 4 * 2 * 8 * 20, 4 * 2 * 32 * 20]
    assert [costs[way]["weights"] for way in STEPS] == [4 * 4 * 32**2, *[4 * 2 * (32**2 + 8 * 32)] * 2]
    timed = step_costs(20, 32, 4, repeats=1)
    assert all(row["ms"] > 0 and row["attention_ms"] > 0 for row in timed.values())
    assert step_costs(2000, 64, 4, timed=False)["MQA"]["made"] < 2 * 4 * 4 * 2001  # scores, and no copy of a key


# --- the file


def test_run_writes_and_keeps(tmp_path, capsys):
    tiny = TINY | {"steps": 2, "n_symbols": 8}
    runs = {task: replace(MODELS["MQA"], **tiny, task=task) for task in ("bytes", "copy")}
    result = run(tmp_path, seeds=(0,), runs=runs, n_bytes=200)
    assert json.loads((tmp_path / "mqa.json").read_text()) == json.loads(json.dumps(result))
    assert result["runs"]["bytes/0"]["corpus"] == load_corpus().provenance()
    assert result["runs"]["bytes/0"]["bytes_per_token"] == 4 * 2 * 4 and 0 <= result["runs"]["copy/0"]["exact"] <= 1
    capsys.readouterr()
    assert run(tmp_path, seeds=(0,), runs=runs, n_bytes=200) == result
    assert capsys.readouterr().out.count("kept") == 2


def test_committed_results_are_those_of_the_experiment():
    runs = lab.load_result("mqa")["runs"]
    assert runs.keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in runs.items():
        settings = RUNS[record["model"]]
        assert record["settings"] == asdict(settings), key
        assert record["parameters"] == parameters(make_model(settings)) and record["date"]
        assert record["bytes_per_token"] == 4 * 2 * 2 * 8 * settings.n_kv_heads


def test_committed_results_say_what_the_chapter_says():
    runs = lab.load_result("mqa")["runs"]

    def losses(task, name, field="loss"):
        return torch.tensor([runs[f"{task}, {name}/{seed}"][field] for seed in (0, 1, 2)])

    others = [name for name in MODELS if name != "MHA"]
    full = losses("copy", "MHA")
    for name in ("MQA", "MQA, wider network"):
        more = losses("copy", name) - full
        assert more.min() > 0.5 and more.max() < 0.9
        assert (losses("copy", "one narrow head, wider network") < losses("copy", name)).all()
    for name in others:
        assert losses("copy", name).min() > full.max() + 0.3 and losses("copy", name, "exact").min() > 0.99
    assert (losses("copy of 8", "MQA") - losses("copy of 8", "MHA")).abs().max() < 0.01
    differences = [losses("bytes", name) - losses("bytes", "MHA") for name in others]
    assert all(d.min() < 0 < d.max() for d in differences)  # the order changes with the seed
    spreads = [(losses("bytes", name).max() - losses("bytes", name).min()).item() for name in MODELS]
    assert min(spreads) > 0.035 and max(spreads) < 0.11
