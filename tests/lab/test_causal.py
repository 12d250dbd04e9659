import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from attncourse import lab
from attncourse.causal import CausalSelfAttention
from attncourse.lab.causal import (
    PROMPTS,
    RUNS,
    WAYS,
    PeekingAttention,
    Settings,
    bits_by_context,
    body,
    evaluate,
    generate_whole,
    hide,
    influence,
    make_model,
    ngram_bits,
    run,
    shifted_loss,
    train_model,
    write,
)
from attncourse.lab.corpus import load_corpus, sample_bytes
from attncourse.lab.decoder import POSITIONS, Decoder, next_token_loss
from attncourse.lab.training import seeded
from attncourse.masks import causal_mask
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding

SMALL = Settings(steps=4, batch_size=2, length=16, d_model=16, n_heads=2, n_layers=2)
every_way = pytest.mark.parametrize("way", WAYS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed, 0), dtype=torch.float64)


# --- the proof, as a test


def test_influence_is_the_slope_of_each_output():
    torch.manual_seed(0)
    layer, x, step = CausalSelfAttention(5, 3).double(), draw(1, 4, 5), 1e-6
    slopes = torch.zeros(4, 4, dtype=torch.float64)
    with torch.no_grad():
        for j in range(4):
            for c in range(5):
                up, down = x.clone(), x.clone()
                up[0, j, c] += step
                down[0, j, c] -= step
                slopes[:, j] += ((layer(up) - layer(down)) / (2 * step))[0].square().sum(-1)
    torch.testing.assert_close(influence(layer, x), slopes.sqrt(), rtol=0, atol=1e-7)


def test_causal_layers_have_a_triangular_jacobian():
    torch.manual_seed(0)
    layers = {
        "one head": CausalSelfAttention(12, 7),
        "many heads": MultiHeadAttention(12, 3, causal=True),
        "rotary": MultiHeadAttention(12, 3, causal=True, rotary=RotaryEmbedding(4)),
        "alibi": MultiHeadAttention(12, 3, causal=True, alibi=True),
    }
    past = causal_mask(9)
    for name, layer in layers.items():
        for seed in (0, 1):
            norms = influence(layer.double(), 3 * draw(1, 9, 12, seed=seed))
            assert (norms[~past] == 0).all(), name
            assert (norms[past] > 0).all(), name


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_whole_model_has_a_triangular_jacobian(positions):
    torch.manual_seed(0)
    model = Decoder(256, d_model=16, n_heads=2, n_layers=3, positions=positions).double()
    norms = influence(body(model), draw(1, 7, 16))
    assert (norms.triu(1) == 0).all() and (norms[causal_mask(7)] > 0).all()


# --- ways to hide the future


def test_two_ways_are_right_and_four_are_not():
    scores, past = 3 * draw(2, 6, 6), causal_mask(6)
    right = hide(scores, "before the softmax")
    torch.testing.assert_close(hide(scores, "after, renormalised"), right, rtol=0, atol=1e-12)
    assert (right[:, ~past] == 0).all()
    for way in WAYS[2:]:
        assert (hide(scores, way) - right).abs().max() > 0.05, way
    changed = scores.clone()
    changed[:, 0, 1:] = scores[:, 0, :1] + torch.arange(5.0)  # every score that query 0 must not see
    for way in ("before the softmax", "after, renormalised", "multiplied onto scores"):
        torch.testing.assert_close(hide(changed, way)[:, 0], hide(scores, way)[:, 0], rtol=0, atol=1e-9)
    for way in ("after the softmax", "one token open", "not at all"):
        assert (hide(changed, way) - hide(scores, way))[:, 0].abs().max() > 0.01, way


def test_what_each_way_does_to_a_row():
    scores = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 0.25], [0.0, 1.0, 2.0]]).double()
    e = [math.exp(score) for score in (0.5, 2.0, -1.0)]
    rows = {way: hide(scores, way)[0].tolist() for way in WAYS}
    assert rows["before the softmax"] == rows["after, renormalised"] == [1, 0, 0]
    assert rows["after the softmax"] == pytest.approx([e[0] / sum(e), 0, 0])
    assert rows["multiplied onto scores"] == pytest.approx([e[0] / (e[0] + 2), *[1 / (e[0] + 2)] * 2])
    assert rows["one token open"] == pytest.approx([e[0] / (e[0] + e[1]), e[1] / (e[0] + e[1]), 0])
    assert rows["not at all"] == pytest.approx([number / sum(e) for number in e])


def test_renormalising_fails_in_floating_point():
    scores = torch.zeros(2, 2)
    scores[0, 1] = 120.0
    assert hide(scores, "before the softmax")[0].tolist() == [1, 0]
    assert hide(scores, "after, renormalised")[0].isnan().all()


@pytest.mark.parametrize("rotary", [None, RotaryEmbedding(4)])
def test_the_layer_is_multi_head_attention_with_another_mask(rotary):
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3, causal=True, rotary=rotary).double()
    bidirectional = MultiHeadAttention(12, 3, rotary=rotary).double()
    bidirectional.load_state_dict(attention.state_dict())
    x = draw(2, 7, 12)
    for way, expected in (("before the softmax", attention), ("not at all", bidirectional)):
        output, weights = PeekingAttention(attention, way)(x, return_weights=True)
        torch.testing.assert_close(output, expected(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, expected(x, return_weights=True)[1], rtol=0, atol=1e-12)
        assert torch.equal(PeekingAttention(attention, way)(x), output)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_leaks_add_up_over_layers(n_layers):
    model = make_model(replace(SMALL, way="one token open", n_layers=n_layers)).double()
    norms = influence(body(model), draw(1, 8, 16))
    i, j = norms.nonzero(as_tuple=True)
    assert (j - i).max() == n_layers


def test_a_peeking_layer_says_what_it_cannot_do():
    attention = MultiHeadAttention(12, 3, causal=True)
    with pytest.raises(ValueError, match="way='sideways', but it must be one of before the softmax"):
        PeekingAttention(attention, "sideways")
    with pytest.raises(ValueError, match="way='sideways'"):
        hide(torch.zeros(2, 2), "sideways")
    layer = PeekingAttention(attention, "one token open")
    with pytest.raises(ValueError, match="'one token open' takes neither mask nor cache"):
        layer(torch.zeros(1, 2, 12), cache=attention.new_cache(1, 2))


# --- models that peek


def test_only_the_way_differs_between_models():
    honest = make_model(SMALL, seed=3).state_dict()
    for way in WAYS[1:]:
        other = make_model(replace(SMALL, way=way), seed=3).state_dict()
        other = {name.replace("attention.attention.", "attention."): value for name, value in other.items()}
        assert other.keys() == honest.keys() and all(torch.equal(other[name], honest[name]) for name in honest)
    assert not torch.equal(make_model(SMALL, seed=4).embedding.weight, honest["embedding.weight"])


def test_the_loss_of_training():
    model, tokens = make_model(SMALL), sample_bytes(load_corpus().train, 3, 17, seeded(0, 0))
    torch.testing.assert_close(shifted_loss(model, tokens), next_token_loss(model, tokens))
    shares = model(tokens[:, :-1]).log_softmax(-1)
    itself = -shares.gather(-1, tokens[:, :-1, None]).mean()
    torch.testing.assert_close(shifted_loss(model, tokens, shift=0), itself)


def test_shown_and_in_use_agree_for_an_honest_model_only():
    found = {way: evaluate(make_model(replace(SMALL, way=way)), replace(SMALL, way=way), 8) for way in WAYS}
    for way in WAYS[:2]:
        assert found[way]["shown"] == pytest.approx(found[way]["in_use"], abs=2e-4)
    for way in WAYS[2:]:
        assert abs(found[way]["shown"] - found[way]["in_use"]) > 1e-3, way


def test_in_use_is_the_next_byte_after_three_prefixes():
    class Counts(nn.Module):
        """Gives each byte of the text before it the share of its count, and 1 to every other."""

        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, tokens):
            return (1 + nn.functional.one_hot(tokens, 256).cumsum(1)).log() * self.one

    pieces = sample_bytes(load_corpus().held_out, 5, 17, seeded(0, 0)).tolist()
    losses, right, itself = [], [], []
    for piece in pieces:
        for length in (4, 8, 12):
            counts = Counter(piece[:length])
            losses.append(math.log(256 + length) - math.log(1 + counts[piece[length]]))
            itself.append(math.log(256 + length) - math.log(1 + counts[piece[length - 1]]))
            best = max(counts.values())
            right.append(piece[length] == min(byte for byte in counts if counts[byte] == best))
    found = evaluate(Counts(), SMALL, 5)
    assert found["shown"] == found["in_use"] == pytest.approx(sum(losses) / 15, abs=1e-4)
    assert found["exact"] == pytest.approx(sum(right) / 15, abs=1e-4)
    assert evaluate(Counts(), replace(SMALL, shift=0), 5)["shown"] == pytest.approx(sum(itself) / 15, abs=1e-4)


def test_writing_with_and_without_a_cache():
    model, prompt = make_model(SMALL).eval(), torch.tensor([[10, 20, 30]])
    assert torch.equal(generate_whole(model, prompt, 9), model.generate(prompt, 9))
    drawn = [f(prompt, 9, temperature=1.0, generator=seeded(1, 0)) for f in (_whole(model), model.generate)]
    assert torch.equal(*drawn)
    assert len(write(model, "import ", 20).encode("utf-8", "replace")) >= 20


def _whole(model):
    return lambda *arguments, **options: generate_whole(model, *arguments, **options)


def test_training_is_repeatable_and_the_leak_pays_at_once():
    settings = replace(SMALL, steps=80, d_model=32, n_layers=1)
    (_, one), (_, two) = (train_model(replace(settings, steps=5), seed=2, progress=False) for _ in range(2))
    assert one.losses == two.losses
    (_, honest), (_, peeking) = (
        train_model(replace(settings, way=way), seed=2, progress=False) for way in (WAYS[0], "one token open")
    )
    assert sum(peeking.losses[-10:]) / 10 < sum(honest.losses[-10:]) / 10 - 0.3


# --- counting


def test_ngrams_by_hand():
    text, held_out, strength = torch.tensor([1, 2, 1, 3, 1, 2]), torch.tensor([1, 2, 3]), 2.0
    one = {byte: (Counter(text.tolist())[byte] + 2 / 256) / 8 for byte in range(256)}
    after_1 = {2: (2 + strength * one[2]) / (3 + strength)}  # 1 is followed by 2, 3, 2
    after_2 = {3: (0 + strength * one[3]) / (1 + strength)}  # the last 2 has no follower
    expected = [
        -sum(math.log2(one[byte]) for byte in (1, 2, 3)) / 3,
        -(math.log2(after_1[2]) + math.log2(after_2[3])) / 2,
    ]
    assert ngram_bits(text, held_out, 2, strength) == pytest.approx(expected)


def test_ngram_shares_sum_to_one():
    text = load_corpus().train[:800]
    for n in (1, 3):
        start = text[500 : 500 + n - 1]
        bits = [ngram_bits(text, torch.cat([start, torch.tensor([byte])]), n)[-1] for byte in range(256)]
        assert sum(2**-b for b in bits) == pytest.approx(1)


def test_bits_by_context_by_hand():
    model, text = make_model(SMALL), load_corpus().held_out[:340]
    found = bits_by_context(model, text, longest=32)
    assert list(found) == [1, 2, 4, 8, 16, 32]
    places = {length: [] for length in (16, 32)}
    for length, losses in places.items():
        for start in range(0, 340 - length, length):
            piece = text[start : start + length + 1].long()
            shares = model(piece[None, :-1])[0].log_softmax(-1)
            losses.append(-shares[range(length), piece[1:]].detach() / math.log(2))
    short, long = (torch.stack(losses).mean(0) for losses in places.values())
    assert found[1] == pytest.approx(short[0].item(), abs=1e-4)
    assert found[8] == pytest.approx(short[4:8].mean().item(), abs=1e-4)
    assert found[32] == pytest.approx(long[16:].mean().item(), abs=1e-4)


# --- the run


def test_run_writes_and_keeps(tmp_path, capsys):
    runs = {"honest": SMALL, "one token open": replace(SMALL, way="one token open")}
    result = run(tmp_path, seeds=(0, 1), runs=runs)
    written = json.loads((tmp_path / "causal.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert list(written["runs"]) == ["honest/0", "honest/1", "one token open/0", "one token open/1"]
    one = written["runs"]["one token open/0"]
    assert one["corpus"] == load_corpus().provenance() and one["settings"]["way"] == "one token open"
    assert one["written"].keys() == set(PROMPTS) and "written" not in written["runs"]["honest/1"]
    capsys.readouterr()
    assert run(tmp_path, seeds=(0, 1), runs=runs) == result
    assert capsys.readouterr().out.count("kept") == 4


def test_committed_results_are_those_of_the_experiment():
    runs = lab.load_result("causal")["runs"]
    assert runs.keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    assert len({record["corpus"]["sha256"] for record in runs.values()}) == 1
    for key, record in runs.items():
        assert record["settings"] == vars(RUNS[record["model"]]), key
        honest = runs[f"honest/{record['seed']}"]
        if record["model"] == "honest":
            assert record["shown"] == pytest.approx(record["in_use"], abs=1e-3)
        else:  # what the chapter says of them
            assert record["in_use"] > honest["in_use"], key
            assert record["shown"] < record["in_use"], key
