import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from attncourse import lab
from attncourse.lab.linear import (
    RUNS,
    Recaller,
    Settings,
    attention_error,
    costs,
    decode_costs,
    estimate,
    examples,
    forms,
    leaky_features,
    make_model,
    projection_of,
    read_back,
    recalled,
    run,
    stored_numbers,
    train_model,
)
from attncourse.lab.training import seeded
from attncourse.linear import dpfp_features, elu_features, linear_attention_parallel
from attncourse.performer import favor_features, orthogonal_projection

SMALL = Settings("linear", 2, steps=3, answers=8, d_model=16, n_keys=8, pairs=(2, 4))


# --- the trained layers


def test_models_differ_in_their_attention_alone():
    counts = {name: sum(p.numel() for p in make_model(settings).parameters()) for name, settings in RUNS.items()}
    assert set(counts.values()) == {28_800}


def test_the_state_is_what_the_formula_says():
    for name, settings in RUNS.items():
        if settings.mechanism != "multi_head":
            H, M = settings.n_heads, int(name.rpartition(" ")[2])
            assert stored_numbers(settings, 1) == stored_numbers(settings, 99) == H * M * (64 // H + 1), name
    assert stored_numbers(RUNS["softmax"], 99) == 99 * 2 * 64


def test_a_token_is_read_beside_the_one_before_it_and_none_after():
    model = make_model(SMALL).double().eval()
    tokens, _ = examples(SMALL, 4, 8, seeded(0, 0))
    logits = model(tokens)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 16
    other = model(changed)
    assert torch.equal(other[:, :5], logits[:, :5])
    assert not torch.allclose(other[:, 5], logits[:, 5]) and not torch.allclose(other[:, 6], logits[:, 6])
    alone = Recaller(16, 16, lambda x: 0 * x).double()  # without attention: a token and the one before it
    assert not torch.allclose(alone(changed)[:, 6], alone(tokens)[:, 6])
    assert torch.equal(alone(changed)[:, 7:], alone(tokens)[:, 7:])


def test_examples_have_about_as_many_answers_whatever_the_pairs():
    for n_pairs in (2, 4, 8):
        tokens, counted = examples(SMALL, n_pairs, 16, seeded(0, 0))
        assert counted.sum() == 16 and tokens.shape == (16 // n_pairs, 4 * n_pairs)


def test_training_is_repeatable():
    settings = replace(SMALL, steps=20)
    (model, one), (_, two) = (train_model(settings, 2, progress=False) for _ in range(2))
    assert one.losses == two.losses
    assert recalled(model, settings, n_answers=8).keys() == {"2", "4"}


# --- without training


@pytest.mark.parametrize("n_features", [32, 128])
def test_what_is_read_back_is_as_noisy_as_the_law_says(n_features):
    for n_pairs in (n_features // 2, n_features, 4 * n_features):
        law = ((n_pairs - 1) / n_features) ** 0.5
        assert read_back(n_pairs, n_features) == pytest.approx(law, rel=0.04)
    assert read_back(1, n_features) < 1e-6


def test_estimates_are_biased_without_the_signs_alone():
    x = torch.full((8,), 0.25, dtype=torch.float64)
    true = torch.exp(x @ x / 8**0.5).item()
    for kind, right in (("orthogonal", True), ("independent", True), ("no sign fix", False)):
        projection = projection_of(kind, 8 * 2000, 8)
        found = [estimate(y, y, projection) / true for y in (x, -x)]
        assert (max(abs(share - 1) for share in found) < 0.03) == right, (kind, found)
    with_fix = orthogonal_projection(16, 8, dtype=torch.float64)
    assert torch.equal(projection_of("orthogonal", 16, 8), with_fix)


def test_the_leak_is_that_of_the_keys_and_the_constant():
    query, key, value = torch.randn(3, 1, 1, 8, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    projection, later = orthogonal_projection(64, 16), key.clone()
    later[:, :, -1] *= 3

    def change(features):
        outputs = [
            linear_attention_parallel(
                features(query, projection, is_query=True), features(k, projection, is_query=False), value
            )
            for k in (key, later)
        ]
        return (outputs[0] - outputs[1])[:, :, :-1].abs().max()

    assert change(leaky_features) > 1e-2 and change(favor_features) == 0


def test_errors_fall_as_the_root_of_the_features():
    few, many = attention_error(16, spread=0.25), attention_error(256, spread=0.25)
    assert few / many == pytest.approx(4, rel=0.3)
    assert attention_error(256, spread=1.0) > 0.5


# --- costs


def test_forms_are_one_function():
    q, k, v = torch.randn(3, 1, 2, 70, 8, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    softmax, *linear = (form(q, k, v) for form in forms().values())
    assert all(torch.allclose(output, linear[0]) for output in linear) and not torch.allclose(softmax, linear[0])


def test_costs_leave_out_what_is_too_long():
    rows = costs((8, 16), H=2, D=4, repeats=1, longest={"linear, parallel": 8})
    assert {(row["form"], row["T"]) for row in rows} == {
        (form, T) for form in forms() for T in (8, 16) if (form, T) != ("linear, parallel", 16)
    }
    assert all(row["bytes"] >= 4 * 2 * 4 * row["T"] for row in rows)


def test_decoding_keeps_a_state_that_does_not_grow():
    rows = decode_costs((4, 8), d_model=16, n_heads=2, repeats=1)
    kept = {(row["way"], row["length"]): row["bytes"] for row in rows}
    assert kept["linear, state", 4] == kept["linear, state", 8] == 4 * 2 * (8 * 8 + 8)
    assert kept["softmax, cached", 8] == 4 * 2 * 16 * 9


# --- the files


def test_run_writes_and_keeps(tmp_path, capsys):
    runs = {"small": SMALL, "softmax": replace(SMALL, mechanism="multi_head")}
    result = run(tmp_path, seeds=(0, 1), runs=runs, n_answers=8)
    assert list(result["runs"]) == [f"{name}/{seed}" for name in runs for seed in (0, 1)]
    assert result["runs"]["small/0"]["state"] == 2 * (8 * 8 + 8) and result["runs"]["softmax/0"]["state"] is None
    assert json.loads((tmp_path / "linear.json").read_text()) == result
    capsys.readouterr()
    assert run(tmp_path, seeds=(0, 1), runs=runs, n_answers=8) == result
    assert capsys.readouterr().out.count("kept") == 4


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("linear")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        assert record["settings"] == json.loads(json.dumps(asdict(RUNS[record["model"]]))), key
        assert record["parameters"] == 28_800


def test_committed_results_say_what_the_chapter_says():
    runs = lab.load_result("linear")["runs"]

    def shares(name, pairs=64):
        return [runs[f"{name}/{seed}"]["recalled"][str(pairs)] for seed in (0, 1, 2)]

    def mean(name):
        return sum(shares(name)) / 3

    assert min(shares("softmax")) > 0.999
    for smaller, larger in ((8, 16), (16, 32), (32, 64)):  # more state, more recall, in every seed
        assert all(a < b for a, b in zip(shares(f"elu, M = {smaller}"), shares(f"elu, M = {larger}"), strict=True))
    stated = {
        "elu, M = 8": 0.23,
        "elu, M = 16": 0.60,
        "elu, M = 32": 0.83,
        "elu, M = 64": 0.90,
        "dpfp, M = 16": 0.68,
        "performer, M = 16": 0.18,
    }
    for name, share in stated.items():
        assert mean(name) == pytest.approx(share, abs=0.0051), name
    assert min(shares("dpfp, M = 32")) > 0.995
    assert sorted(shares("performer, M = 256")) == pytest.approx([0.57, 0.60, 0.96], abs=0.0051)
    sizes = {name: runs[f"{name}/0"]["state"] for name in RUNS}
    assert (sizes["elu, M = 16"], sizes["performer, M = 16"], sizes["dpfp, M = 16"]) == (1088, 1088, 1152)
    store = stored_numbers(RUNS["softmax"], 4 * 64 - 1)
    assert 14 < store / sizes["dpfp, M = 32"] < 16  # "a fifteenth"


def test_the_memory_of_the_piece_is_that_of_the_chapter():
    """Twenty-four keys: a flat kernel reads no more back from four times the state; dpfp does from half of it."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(4, (24,), generator=generator)
    keys = {n: 4 * F.normalize(torch.randn(24, n, generator=generator), dim=-1) for n in (8, 32)}

    def right(features):
        weights = features @ features.T
        return (((weights @ F.one_hot(which, 4).float()).argmax(-1)) == which).sum().item()

    assert right(elu_features(keys[8])) == right(elu_features(keys[32])) == 9
    assert right(dpfp_features(keys[8])) == 14
