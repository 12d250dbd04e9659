import json

import pytest
import torch

from attncourse import lab
from attncourse.lab import positions as experiment
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.positions import (
    KINDS,
    SETTINGS,
    StretchedRotary,
    cost_functions,
    cost_of_mix_up,
    costs,
    interleave_rows,
    losses_by_position,
    make_decoder,
    mix_up,
    run,
    stretched,
    train_decoder,
)
from attncourse.positions import RotaryEmbedding, apply_rotary

SMALL = {"steps": 3, "batch_size": 2, "length": 16, "lr": 3e-3, "d_model": 16, "n_heads": 2, "n_layers": 2}


def decoder(positions="rotary", **changes) -> Decoder:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_length": 16} | changes
    return Decoder(256, positions=positions, **sizes).eval()


def test_decoders_differ_in_their_positions_alone():
    states = {kind: make_decoder(kind, 1, SMALL).state_dict() for kind in KINDS}
    for kind, state in states.items():
        assert state.keys() - states["none"].keys() == ({"place"} if kind == "learned" else set())
        assert all(torch.equal(value, state[name]) for name, value in states["none"].items())
    assert not torch.equal(make_decoder("none", 2, SMALL).embedding.weight, states["none"]["embedding.weight"])


def test_training_is_repeatable_and_lowers_the_loss():
    settings = SMALL | {"steps": 12}
    (_, one), (_, two) = (train_decoder("alibi", 2, settings=settings, progress=False) for _ in range(2))
    assert one.losses == two.losses and one.losses[-1] < one.losses[0]


def test_losses_by_position_are_those_of_each_piece():
    model = decoder()
    losses = losses_by_position(model, length=20, every=8, n_bytes=70, batch_size=3)
    text = load_corpus().held_out[:70].long()
    pieces = torch.stack([text[start : start + 21] for start in range(0, 50, 8)])
    assert losses.mean() == pytest.approx(next_token_loss(model, pieces).item(), abs=1e-5)
    shorter = torch.stack([next_token_loss(model, pieces[:, : t + 2]) * (t + 1) for t in range(20)])
    torch.testing.assert_close(losses.float(), shorter.diff(prepend=torch.zeros(1)).detach(), rtol=0, atol=1e-4)


def test_learned_positions_cannot_go_on():
    with pytest.raises(ValueError, match="learned positions for 16 tokens, but this is number 20"):
        losses_by_position(decoder("learned"), length=20, every=8, n_bytes=70)


def test_reordered_rows_make_the_other_layout_the_same_function():
    model, tokens = decoder(), torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(1))
    right, wrong, converted = (m(tokens) for m in (model, mix_up(model), mix_up(model, convert=True)))
    torch.testing.assert_close(converted, right, rtol=0, atol=1e-5)
    assert (wrong - right).abs().max() > 1e-3
    assert not model.blocks[0].attention.rotary.interleaved  # a copy was changed
    rows = interleave_rows(torch.arange(8.0)[:, None], 2)[:, 0]
    assert rows.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    found = cost_of_mix_up(model, n_bytes=400, length=20)
    assert found.keys() == {"right", "mixed_up", "converted"} and found["converted"] == pytest.approx(
        found["right"], abs=1e-4
    )


def test_interpolation_divides_positions():
    x, positions = torch.randn(7, 8, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    squeezed = apply_rotary(x, positions, StretchedRotary(8, factor=4.0))
    torch.testing.assert_close(squeezed[4], apply_rotary(x[4], torch.tensor(1), RotaryEmbedding(8)))
    assert torch.equal(apply_rotary(x, positions, StretchedRotary(8)), apply_rotary(x, positions, RotaryEmbedding(8)))


def test_a_raised_base_slows_the_slowest_pair_by_the_factor_and_spares_the_fastest():
    model = decoder()  # D = 8
    one = torch.tensor([1])
    old, new = (m.blocks[0].attention.rotary.angles(one)[0] for m in (model, stretched(model, "base", 4)))
    assert new[0] == old[0] == 1 and new[-1].item() == pytest.approx(old[-1].item() / 4)
    with pytest.raises(ValueError, match="how='yarn', but it must be"):
        stretched(model, "yarn", 2)


def test_costs_count_the_bytes_of_the_bias():
    (row,) = costs(lengths=(32,), repeats=1)["rows"]
    parts = row["parts"]
    assert parts["attention"]["time_ratio"] == 1 and parts.keys() == cost_functions(1, 8, 32).keys()
    assert parts["ALiBi's bias"]["largest"] == 4 * 8 * 32 * 32
    both = 2 * 4 * 8 * 32 * 64  # queries and keys, turned
    assert parts["RoPE's rotations"]["bytes"] >= both


def test_run_writes_and_keeps(tmp_path, capsys):
    evaluated = {"length": 24, "every": 16, "bytes": 200}
    arguments = {"seeds": (0,), "settings": SMALL, "evaluated": evaluated, "parts": {"costs": lambda: {"rows": []}}}
    result = run(tmp_path, **arguments)
    written = json.loads((tmp_path / "positions.json").read_text())
    assert written == json.loads(json.dumps(result)) and list(written["runs"]) == [f"{kind}/0" for kind in KINDS]
    for key, record in written["runs"].items():
        assert len(record["by_position"]) == (16 if key == "learned/0" else 24)
        assert len(record["corpus"]["sha256"]) == 64 and ("mix_up" in record) == (key == "rotary/0")
    assert written["costs"]["date"]
    capsys.readouterr()
    assert run(tmp_path, **arguments) == written
    assert capsys.readouterr().out.count("kept") == len(KINDS)


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("positions")
    assert committed["runs"].keys() == {f"{kind}/{seed}" for kind in KINDS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        assert record["settings"] == SETTINGS and record["evaluated"] == experiment.EVALUATED, key
        assert len(record["by_position"]) == (64 if key.startswith("learned") else 512)
    byte_model = committed["byte_model"]
    assert byte_model["tuned_with"] == experiment.TUNED
    assert {(row["how"], row["factor"]) for row in byte_model["stretched"]} == {
        (how, factor) for how in ("as it is", "interpolated", "base") for factor in (2, 4)
    }
    assert len(byte_model["tuned"]) == 9
    for found in (byte_model["mix_up"], *(committed["runs"][f"rotary/{seed}"]["mix_up"] for seed in (0, 1, 2))):
        assert found["converted"] == pytest.approx(found["right"], abs=1e-3) and found["mixed_up"] > found["right"]


def test_committed_results_say_what_the_chapter_says_of_a_larger_base():
    """Before the trained length of 256: nearly free at factor 2, 0.07 nats at factor 4."""
    rows = lab.load_result("positions")["byte_model"]["stretched"]
    before = {(row["how"], row["factor"]): sum(row["by_position"][:256]) / 256 for row in rows}
    assert before["base", 2] - before["as it is", 2] < 0.03
    assert before["base", 4] - before["as it is", 4] == pytest.approx(0.07, abs=0.005)
