import json
import math

import pytest
import torch
from torch import nn

from attncourse.lab import bahdanau
from attncourse.lab.alignment import evaluate
from attncourse.lab.numbers import is_held_out
from attncourse.lab.training import History, Progress, learning_rate, progress_line, seeded, train
from attncourse.lab.translate import load_translator


def regression(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))


def fit(model, step):
    x = torch.randn(16, 3, generator=seeded(4, step))
    return (model(x) - x.sum(-1, keepdim=True)).square().mean()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_loss_falls():
    history = train(regression(), fit, 80, lr=0.05)
    assert len(history.losses) == 80 and history.seconds > 0
    assert sum(history.losses[-10:]) < 0.2 * sum(history.losses[:10])


def test_a_seed_gives_the_same_run_and_another_does_not():
    one, other, third = regression(), regression(), regression()
    assert train(one, fit, 10, seed=1).losses == train(other, fit, 10, seed=1).losses
    assert same(one, other)
    train(third, fit, 10, seed=2)  # dropout differs
    assert not same(one, third)


def test_a_continued_run_is_the_uninterrupted_one(tmp_path):
    whole, first, second = regression(), regression(), regression(seed=9)
    losses = train(whole, fit, 30, checkpoint=tmp_path / "whole").losses

    def interrupted(model, step):
        if step == 17:
            raise KeyboardInterrupt
        return fit(model, step)

    with pytest.raises(KeyboardInterrupt):
        train(first, interrupted, 30, checkpoint=tmp_path / "part", checkpoint_every=5)
    steps = []

    def watched(model, step):
        steps.append(step)
        return fit(model, step)

    assert train(second, watched, 30, checkpoint=tmp_path / "part", checkpoint_every=5).losses == losses
    assert steps == list(range(15, 30))
    assert same(whole, second)
    assert train(regression(seed=3), interrupted, 30, checkpoint=tmp_path / "part").losses == losses  # finished


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(regression(), fit, 3, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="'steps': 4"):
        train(regression(), fit, 4, checkpoint=tmp_path / "run")


def test_gradients_are_clipped():
    model = nn.Linear(1, 1, bias=False)
    seen = []
    model.weight.register_hook(lambda grad: seen.append(grad.abs().item()))

    class Optimizer(torch.optim.SGD):
        def __init__(self, parameters, lr, weight_decay):
            super().__init__(parameters, lr=lr)

    with torch.no_grad():
        model.weight.fill_(0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Optimizer)
        train(model, lambda m, step: m.weight.sum() * 100, 1, lr=0.5, warmup=0, clip=2.0)
    assert seen == [100.0] and model.weight.item() == pytest.approx(-0.5 * 2.0, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="by step 3"):
        train(regression(), lambda model, step: fit(model, step) * math.nan, 3)


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, 100, 0.2, 4) for step in range(101)]
    assert rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert rates[52] == pytest.approx(0.1) and rates[100] == pytest.approx(0.0)


def test_progress_is_one_line_in_a_terminal_and_nothing_in_a_log(capsys, monkeypatch):
    assert progress_line(30, 60, History([0.5] * 30, seconds=3.0), "x") == "x █████░░░░░ 30/60  loss 0.500  3 s left"
    train(regression(), fit, 5)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(regression(), fit, 5, label="toy")
    shown = capsys.readouterr().out
    assert "\rtoy ██████████ 5/5" in shown and shown.count("\n") == 1
    assert not Progress(5, enabled=False).terminal


SMALL = {"n_train": 200, "n_test": 70, "max_digits": 4}


def test_the_experiment_is_kept_and_repeats_only_what_is_missing(tmp_path, capsys):
    tiny = bahdanau.Settings(steps=3, batch_size=8, embed_dim=4, hidden_dim=6)
    runs = {"attention": (tiny, ("de",))}
    first = bahdanau.run(tmp_path, seeds=(0,), runs=runs, **SMALL)
    again = bahdanau.run(tmp_path, seeds=(0, 1), runs=runs, **SMALL)
    assert "de/attention/0: kept" in capsys.readouterr().out
    assert json.loads((tmp_path / "bahdanau.json").read_text()) == again
    assert again["runs"]["de/attention/0"] == first["runs"]["de/attention/0"]
    pairs = bahdanau.load_pairs("de", **SMALL)
    model, provenance = load_translator(tmp_path / "bahdanau_de.safetensors")
    scores = evaluate(model, pairs.test)
    assert scores == {name: first["runs"]["de/attention/0"][name] for name in scores}
    assert provenance["data"] == pairs.provenance()
    shown = json.loads((tmp_path / "bahdanau_alignments.json").read_text())["de"]["alignments"]
    assert [entry["number"] for entry in shown] == list(bahdanau.SHOWN) and all(map(is_held_out, bahdanau.SHOWN))


def test_the_committed_german_model_translates():
    model, provenance = bahdanau.load_german()
    record = json.loads((bahdanau.DATA / "bahdanau.json").read_text())["runs"]["de/attention/0"]
    assert provenance["settings"] == record["settings"] and record["exact"] > 0.98
    assert provenance["data"] == record["data"]
    pairs = bahdanau.load_pairs("de", n_train=100, n_test=140)
    assert evaluate(model, pairs.test)["exact"] > 0.95
