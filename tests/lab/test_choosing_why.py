import json

import pytest
import torch

from attncourse import lab
from attncourse.lab.choosing import CONTEXT, Settings, evaluate, make_model
from attncourse.lab.choosing_why import LONGER, given_a_window, loss_by_place, run, train_not_turned, without_rotation
from attncourse.lab.corpus import N_BYTES
from attncourse.lab.language import held_out_loss

BYTES = 8 * CONTEXT + 1
TINY = {"bytes": Settings("bytes", (16,), 2, 32), "recall": Settings("recall", (2, 4), 2, 32, n_symbols=8)}


@torch.no_grad()
def test_loss_by_place_averages_to_the_held_out_loss_and_a_window_hides_nothing_at_first():
    model = make_model("MHA")
    places = loss_by_place(model, BYTES)
    assert len(places) == 16
    assert sum(places) / 16 == pytest.approx(held_out_loss(model, BYTES, CONTEXT), abs=1e-3)
    windowed = loss_by_place(given_a_window(model, "window, 1/16"), BYTES)
    assert windowed[0] == pytest.approx(places[0], abs=2e-4) and windowed[1] != places[1]


@torch.no_grad()
def test_a_window_given_afterwards_changes_what_is_seen_and_no_weight():
    model, tokens = make_model("MHA"), torch.randint(N_BYTES, (1, 40))
    windowed = given_a_window(model, "window, 1/16")
    for name, weight in model.state_dict().items():
        assert torch.equal(windowed.state_dict()[name], weight)
    difference = (windowed(tokens) - model(tokens)).abs().amax(-1)[0]
    assert difference[:16].max() < 1e-4 < difference[16:].min()


@torch.no_grad()
def test_without_rotation_no_score_depends_on_a_distance():
    for turned in (True, False):
        layer = (make_model("MHA") if turned else without_rotation(make_model("MHA"))).blocks[0].attention
        _, weights = layer(torch.randn(1, 1, 64).expand(1, 9, 64), return_weights=True)  # nine times one token
        assert torch.allclose(weights[0, :, -1], torch.full((8, 9), 1 / 9), atol=1e-6) is not turned


def test_training_without_rotation_is_repeatable():
    (model, one), (_, two) = (train_not_turned("MHA", TINY["recall"], 1, progress=False) for _ in range(2))
    assert one.losses == two.losses and model.blocks[0].attention.rotary is None
    assert 0 <= evaluate(model, TINY["recall"])["exact"] <= 1


def test_run_writes_and_keeps(tmp_path, capsys):
    longer = {"bytes": ("MHA",), "recall": ("window 1/16 and MQA",)}
    options = {"longer": longer, "steps": {"bytes": (1,), "recall": (3,)}, "not_turned": ("MHA",)}
    options |= {"seeds": (0,), "tasks": TINY}
    made = run(tmp_path, **options)
    assert json.loads((tmp_path / "choosing_why.json").read_text())["runs"] == made
    assert set(made["bytes, MHA, 1 steps/0"]["windowed"]) == {f"window, 1/{n}" for n in (2, 4, 8, 16)}
    assert made["recall, MHA, not turned/0"]["turned"] is False
    capsys.readouterr()
    assert run(tmp_path, **options) == made
    assert capsys.readouterr().out.count("kept") == len(made) == 3


def probes(key, field):
    runs = lab.load_result("choosing_why")["runs"]
    return torch.tensor([runs[f"{key}/{seed}"][field] for seed in range(3)]).double()


def test_committed_results_say_what_the_chapter_says():
    mha, window = (
        {n: probes(f"bytes, {name}, {n} steps", "by_place") for n in (400, 1600)} for name in LONGER["bytes"]
    )
    for n in (400, 1600):
        assert (window[n][:, 0] < mha[n][:, 0]).all()  # where a window of 16 hides nothing
    assert (window[400].mean(1) < mha[400].mean(1) - 0.05).all()
    assert (window[1600].mean(1) > mha[1600].mean(1)).all()  # longer, the order has turned
    runs = lab.load_result("choosing_why")["runs"]
    for seed in range(3):
        run = runs[f"bytes, MHA, 400 steps/{seed}"]
        assert min(run["windowed"].values()) > run["loss"] - 0.002  # a window given afterwards gains nothing
        committed = lab.load_result("choosing")["runs"]
        assert committed[f"bytes, MHA/{seed}"]["losses"] == run["losses"]
    assert probes("recall, MHA, not turned", "by_distance").min() > 0.95


def test_committed_results_say_what_the_chapter_says_of_the_mixture():
    committed = lab.load_result("choosing")["runs"]
    name = "window 1/16 and MQA"
    short = torch.tensor([committed[f"recall, {name}/{seed}"]["exact"] for seed in range(3)])
    assert (probes(f"recall, {name}, not turned", "exact") > 3 * short.max()).all()
    longer = probes(f"recall, {name}, 1200 steps", "exact").sort().values
    assert longer[0] < 0.1 and longer[1] > 1 / 3
