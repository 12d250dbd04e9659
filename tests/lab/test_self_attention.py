"""The bag task, the reader, and what the committed results say."""

import json
from dataclasses import replace

import pytest
import torch

from attncourse import lab
from attncourse.lab import self_attention as experiment
from attncourse.lab.self_attention import ABILITIES, N_VALUES, RUNS, TASKS, BagReader, Settings, Unscaled, guess, sample
from attncourse.lab.training import seeded
from attncourse.self_attention import SelfAttention

SMALL = Settings(length=4, n_names=8, d_model=12, d_head=8, steps=2, batch_size=3)


@pytest.mark.parametrize("task", TASKS)
def test_targets_by_walking(task):
    tokens, targets = sample(Settings(task), 5, 7, seeded(1, 2))
    assert tokens.shape == (5, 7, 3) and tokens[..., 2].max() < N_VALUES
    for bag, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        places = {name: i for i, (name, _, _) in enumerate(bag)}
        assert len(places) == 7 and {want for _, want, _ in bag} == set(places)  # each wanted once
        for i, (name, want, _) in enumerate(bag):
            assert want != name
            where = {"lookup": places[want], "chain": places[bag[places[want]][1]], "previous": i - 1}[task]
            assert wanted[i] == (bag[where][2] if where >= 0 else -100)


def test_samples_repeat_and_say_what_does_not_fit():
    one, two = (sample(SMALL, 3, 4, seeded(0, 5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match=r"length=9, but .* 8 names"):
        sample(SMALL, 3, 9, seeded(0, 0))
    with pytest.raises(ValueError, match="task='next'"):
        sample(replace(SMALL, task="next"), 3, 4, seeded(0, 0))


def test_unscaled_is_the_layer_without_its_root():
    torch.manual_seed(0)
    plain, scaled = Unscaled(6, 9).double(), SelfAttention(6, 9).double()
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        scaled.q_proj.weight.mul_(3.0)  # √9
    x = torch.randn(2, 5, 6).double()
    for one, two in zip(plain(x, return_weights=True), scaled(x, return_weights=True), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(plain(x), scaled(x))


def test_unit_gives_queries_and_keys_of_variance_one():
    torch.manual_seed(0)
    for unit, variance in ((False, 1 / 3), (True, 1.0)):
        layer = BagReader(replace(SMALL, d_model=256, d_head=256, unit=unit)).layers[0]
        assert layer.q_proj(torch.randn(64, 256)).var().item() == pytest.approx(variance, rel=0.1)


def test_the_reader_ignores_order_unless_it_has_positions():
    tokens, _ = sample(SMALL, 2, 4, seeded(0, 0))
    order = torch.tensor([2, 0, 3, 1])
    for positions in (False, True):
        torch.manual_seed(0)
        model = BagReader(replace(SMALL, positions=positions, layers=2)).double()
        same = torch.allclose(model(tokens[:, order]), model(tokens)[:, order])
        assert same != positions


def test_guesses_are_what_can_be_counted():
    assert guess("chain", 4, n=64) == 1.0  # three of four are ruled out
    assert guess("previous", 2, n=64) == 1.0
    assert 0.25 < guess("previous", 8) < 0.3 < guess("chain", 8) < 0.35


def test_a_run_is_written_and_kept(tmp_path, capsys):
    runs = {"small": SMALL, "deep": replace(SMALL, task="chain", layers=2)}
    first = experiment.run(tmp_path, seeds=(0,), runs=runs)
    assert experiment.run(tmp_path, seeds=(0,), runs=runs) == first
    assert capsys.readouterr().out.count("kept") == 2
    written = json.loads((tmp_path / "self_attention.json").read_text())
    assert written["runs"]["deep/0"]["settings"]["layers"] == 2


def committed():
    return lab.load_result("self_attention")["runs"]


def test_the_committed_runs_are_those_of_the_plan():
    runs = committed()
    assert set(runs) == {f"{name}/{seed}" for name in RUNS for seed in range(3)}
    for run in runs.values():
        assert Settings(**run["settings"]) == RUNS[run["model"]]
        assert run["environment"]["torch"] and run["date"]


def test_what_the_chapter_says_of_the_tasks():
    runs = committed()
    for seed in range(3):
        right = {name: runs[f"{name}/{seed}"]["by_length"] for name in ABILITIES}
        assert min(right["lookup"].values()) > 0.999
        assert all(abs(right["previous"][str(n)] - guess("previous", n)) < 0.02 for n in (4, 8, 16))
        assert all(abs(right["chain, 1 layer"][str(n)] - guess("chain", n)) < 0.02 for n in (4, 8, 16))
        assert right["previous, positions"]["8"] > 0.999 and 0.5 < right["previous, positions"]["16"] < 0.6
        assert right["chain, 2 layers"]["8"] > 0.99 > 0.7 > right["chain, 2 layers"]["16"]
        assert right["chain, 1 layer"]["4"] > 0.99 > 0.6 > right["chain, 2 layers"]["4"]


def steps_needed(run):
    return 10 * (1 + next(i for i, loss in enumerate(run["losses"]) if loss < 0.1))


def test_what_the_chapter_says_of_the_root():
    runs = committed()
    needed = {
        (d, scaled, unit): [
            steps_needed(runs[f"{experiment.scaling_run(d, scaled, unit)}/{seed}"]) for seed in range(3)
        ]
        for d in experiment.SIZES
        for scaled in (True, False)
        for unit in (True, False)
    }
    for d in experiment.SIZES:
        assert min(needed[d, False, True]) > max(needed[d, True, True])
    ratios = [sum(needed[d, False, True]) / sum(needed[d, True, True]) for d in experiment.SIZES]
    assert ratios[0] == pytest.approx(1.27, abs=0.01) and ratios[2] > 2 and ratios == sorted(ratios)
    assert sum(needed[16, False, False]) < sum(needed[16, True, False])
    assert needed[64, False, False] == needed[64, True, False]
    gaps = [b - a for a, b in zip(needed[256, True, False], needed[256, False, False], strict=True)]
    assert min(gaps) == 20 and max(gaps) == 30
    assert min(run["exact"] for name, run in runs.items() if name.startswith("d=")) > 0.997
