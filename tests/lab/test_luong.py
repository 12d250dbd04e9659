import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from attncourse import lab
from attncourse.bahdanau import AdditiveAttention
from attncourse.lab import bahdanau as first
from attncourse.lab import luong as experiment
from attncourse.lab.luong import (
    ESTIMATORS,
    RUNS,
    SHOWN_RUNS,
    Problem,
    Settings,
    costs,
    estimators,
    make_attention,
    make_translator,
    run,
    train_translator,
)
from attncourse.lab.numbers import BOS, EOS, PAD, encode, vocabulary
from attncourse.lab.translate import ORDERS, Translator, save_translator
from attncourse.luong import HardAttention, LocalAttention, LuongAttention

NUMBERS = [7, 421, 42_042, 1_000_021, 380]
HIDDEN, ENCODER = 6, 3  # source states as large as the decoder's: a dot product fits
MODULES = {
    "additive": lambda: AdditiveAttention(HIDDEN, 2 * ENCODER, 5),
    "dot": lambda: LuongAttention(HIDDEN, 2 * ENCODER, "dot"),
    "concat": lambda: LuongAttention(HIDDEN, 2 * ENCODER, "concat"),
    "local-m": lambda: LocalAttention(HIDDEN, 2 * ENCODER, window=2),
    "local-p": lambda: LocalAttention(HIDDEN, 2 * ENCODER, window=2, alignment="predictive"),
    "hard": lambda: HardAttention(HIDDEN, 2 * ENCODER),
}
SMALL = {"n_train": 40, "n_test": 21, "max_digits": 5}
every_module = pytest.mark.parametrize("attention", MODULES)
every_order = pytest.mark.parametrize("order", ORDERS)


def translator(attention="dot", order="bahdanau", seed=0):
    torch.manual_seed(seed)
    sizes = {"embed_dim": 5, "hidden_dim": HIDDEN, "encoder_dim": ENCODER}
    model = Translator(
        len(vocabulary("en")), len(vocabulary("de")), attention=MODULES[attention](), order=order, **sizes
    )
    return model.double().eval()  # hard attention takes the likeliest word


def by_hand(model, states, summary, target_in):
    """Logits and weights of one sentence (S, M) and (M,): the order of the equations, step by step."""

    def gru(x, h):
        w_i, w_h, b_i, b_h = (
            getattr(model.decoder, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        (r_x, z_x, n_x), (r_h, z_h, n_h) = (w_i @ x + b_i).chunk(3), (w_h @ h + b_h).chunk(3)
        z = torch.sigmoid(z_x + z_h)
        return (1 - z) * torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h) + z * h

    def attend(h, i):
        local = isinstance(model.attention, LocalAttention) and model.attention.alignment == "monotonic"
        given = {"positions": torch.tensor([[i]])} if local else {}
        context, w = model.attention(h[None, None], states[None], **given)
        weights.append(w[0, 0])
        return context[0, 0]

    h, logits, weights = torch.tanh(model.initial(summary)), [], []
    vector = torch.zeros_like(h)
    for i, word in enumerate(model.target_embedding(target_in)):
        if model.order == "bahdanau":
            context = attend(h, i)
            h = gru(torch.cat([word, context]), h)
            vector = torch.cat([h, context])
        else:
            h = gru(torch.cat([word, vector]) if "feeding" in model.order else word, h)
            vector = torch.tanh(model.attentional.weight @ torch.cat([attend(h, i), h]))
        logits.append(model.output(vector))
    return torch.stack(logits), torch.stack(weights)


@every_module
@every_order
def test_decode_follows_its_order(order, attention):
    model, batch = translator(attention, order), encode(NUMBERS, "de")
    logits, weights = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])
    total, expected_total = 0, 0
    for row, number in enumerate(NUMBERS):
        alone = encode([number], "de")
        states, summary = model.encode(alone.source, alone.source_mask)
        expected, expected_weights = by_hand(model, states[0], summary[0], alone.target[0, :-1])
        (T, S), got = expected_weights.shape, logits[row]
        torch.testing.assert_close(got[:T], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[row, :T, :S], expected_weights, rtol=0, atol=1e-12)
        assert not weights[row, :, S:].any()
        total, expected_total = total + got[:T].square().sum(), expected_total + expected.square().sum()
    parameters = list(model.parameters())
    gradients, expected = (
        torch.autograd.grad(x, parameters, allow_unused=True, retain_graph=True) for x in (total, expected_total)
    )
    for gradient, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-10)


@every_module
@every_order
def test_translate_feeds_its_own_tokens_back(order, attention):
    model, batch = translator(attention, order, seed=3), encode(NUMBERS, "de")
    tokens, weights = model.translate(batch.source, batch.source_mask, max_length=9)
    fed = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], 1)
    logits, expected_weights = model.decode(batch.source, batch.source_mask, fed)
    ended = (tokens == EOS).cumsum(1) - (tokens == EOS).long() > 0
    assert torch.equal(tokens, logits.argmax(-1).masked_fill(ended, PAD))
    torch.testing.assert_close(weights[~ended], expected_weights[~ended], rtol=0, atol=1e-12)


def test_additive_passed_in_is_the_translator_of_chapter_01():
    torch.manual_seed(0)
    own = Translator(20, 30, embed_dim=5, hidden_dim=7).double()
    given = Translator(20, 30, embed_dim=5, hidden_dim=7, attention=AdditiveAttention(7, 14, 7)).double()
    given.load_state_dict(own.state_dict(), strict=True)
    source, target = torch.randint(3, 20, (2, 4)), torch.randint(3, 30, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(own(source, mask, target), given(source, mask, target))


def test_bad_orders_are_named():
    with pytest.raises(ValueError, match="order='keras', but it must be one of bahdanau, luong"):
        Translator(20, 30, order="keras")
    with pytest.raises(ValueError, match="order='luong' attends, but attention=False"):
        Translator(20, 30, attention=False, order="luong")


def test_a_translator_with_its_own_attention_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="make LuongAttention: save its state dict"):
        save_translator(translator(), tmp_path / "model.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_only_the_attention_differs_between_scores():
    pairs = first.load_pairs("de", **SMALL)
    models = {name: make_translator(pairs, settings, seed=1) for name, settings in RUNS.items()}
    shared = {name: value for name, value in models["dot"].state_dict().items()}
    for name in ("additive", "general", "concat", "local-m", "local-p", "hard"):
        state = models[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in shared.items())
        assert {key.split(".")[0] for key in state.keys() - shared.keys()} == {"attention"}
    assert not any(True for _ in models["dot"].attention.parameters())
    with pytest.raises(ValueError, match="score='cosine'"):
        make_attention("cosine", 4)


def test_training_is_repeatable_and_lowers_the_loss():
    pairs = first.load_pairs("de", **SMALL)
    settings = replace(RUNS["hard"], steps=12, batch_size=8, hidden_dim=8, embed_dim=4)
    (_, one), (_, two) = (train_translator(pairs, settings, seed=2, progress=False) for _ in range(2))
    assert one.losses == two.losses and one.losses[-1] < one.losses[0] - 0.1


def test_costs_count_bytes_and_compare_with_dot():
    (row,) = costs(sizes=((2, 5),), repeats=3)["rows"]
    assert row["steps"]["dot"]["time_ratio"] == 1 and all(step["time_ratio"] > 0 for step in row["steps"].values())
    counted = {name: step["bytes"] for name, step in row["steps"].items()}
    assert counted == {
        name: step["bytes"] for name, step in costs(sizes=((2, 5),), repeats=1)["rows"][0]["steps"].items()
    }
    assert counted["dot"] == counted["general, keys projected once"]  # two dot products, if the keys are at hand
    projected = 4 * 2 * 5 * 64
    assert counted["general"] - counted["dot"] == projected
    assert counted["additive"] == counted["concat"] == counted["additive, keys projected once"] + projected


@pytest.mark.parametrize("cost", ["squared", "linear"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_enumerated_bias_and_spread_are_those_of_many_samples(estimator, cost):
    problem = Problem(cost)
    _, gradient = problem.expected()
    length = gradient.norm()
    bias, spread = problem.enumerated(estimator)
    estimates = problem.estimates(estimator, 50_000)
    standard_error = spread / 50_000**0.5
    assert abs((estimates.mean(0) - gradient).norm() / length - bias) < 4 * standard_error + 1e-12
    assert abs(estimates.var(0).sum().sqrt() / length - spread) < 0.02 * spread + 1e-12
    assert (bias < 1e-12) == (estimator != "straight_through" or cost == "linear")
    assert (spread < 1e-12) == (estimator == "straight_through" and cost == "linear")


def test_exact_gradient_is_the_slope_of_the_expected_cost():
    problem, step = Problem(), 1e-5
    _, gradient = problem.expected()
    for i in range(4):
        at = []
        for sign in (1, -1):
            shifted = Problem()
            shifted.query[0, 0, i] += sign * step
            at.append(shifted.expected()[0])
        torch.testing.assert_close((at[0] - at[1]) / (2 * step), gradient[i], rtol=0, atol=1e-8)


def test_errors_fall_with_the_square_root_of_the_samples_down_to_the_bias():
    found = estimators(samples=(4, 64), repeats=400, problems=2)["estimators"]
    assert found.keys() == {f"{cost}, {estimator}" for cost in ("squared", "linear") for estimator in ESTIMATORS}
    for name, result in found.items():
        for row in result["averages"]:
            expected = (result["bias"] ** 2 + result["spread"] ** 2 / row["samples"]) ** 0.5
            assert row["error"] == pytest.approx(expected, rel=0.15, abs=1e-4), name
        assert len(result["bias_by_problem"]) == 2


def test_run_writes_keeps_and_drops(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "estimators", partial(estimators, samples=(2,), repeats=2, problems=1))
    small = Settings("dot", steps=2, batch_size=8, hidden_dim=8, embed_dim=4)
    runs = {"dot": small, "local-m": replace(small, score="local-m", window=2)}
    result = run(tmp_path, seeds=(0, 1), runs=runs, repeats=1, **SMALL)
    written = json.loads((tmp_path / "luong.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert list(written["runs"]) == ["dot/0", "dot/1", "local-m/0", "local-m/1"]
    one = written["runs"]["local-m/1"]
    assert {"exact", "token", "by_length", "crossing", "parameters", "seconds", "date", "environment"} <= one.keys()
    assert one["settings"] == {**vars(small), "score": "local-m", "window": 2} and len(one["data"]["sha256"]) == 64
    assert written["costs"]["rows"] and written["estimators"]["estimators"]
    assert json.loads((tmp_path / "luong_alignments.json").read_text()).keys() == runs.keys()

    capsys.readouterr()
    assert run(tmp_path, seeds=(0, 1), runs=runs, repeats=1, **SMALL) == written  # dates and times too: nothing is new
    assert capsys.readouterr().out.count("kept") == 4
    fewer = run(tmp_path, seeds=(0,), runs={"dot": replace(small, steps=3)}, repeats=1, **SMALL)
    assert list(fewer["runs"]) == ["dot/0"] and fewer["runs"]["dot/0"]["settings"]["steps"] == 3
    assert capsys.readouterr().out.count("done") == 1


def test_committed_results_are_those_of_the_experiment():
    committed, shown = lab.load_result("luong"), lab.load_result("luong_alignments")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    data = first.load_pairs("de").provenance()
    for key, record in committed["runs"].items():
        assert record["settings"] == vars(RUNS[record["model"]]) and record["data"] == data, key
    assert shown.keys() == set(SHOWN_RUNS)
    for name, example in shown.items():
        assert example["settings"] == vars(RUNS[name]) and len(example["alignments"]) == len(first.SHOWN)
    _, gradient = Problem().expected()
    assert gradient.norm() > 0.4
    for name, result in committed["estimators"]["estimators"].items():
        cost, _, estimator = name.partition(", ")
        bias, spread = Problem(cost).enumerated(estimator)
        assert (result["bias"], result["spread"]) == (round(bias, 5), round(spread, 5))
