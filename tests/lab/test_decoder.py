import pytest
import torch
import torch.nn.functional as F

from attncourse.lab.decoder import POSITIONS, Decoder, load_decoder, next_token_loss, save_decoder
from attncourse.lab.training import seeded, train
from attncourse.mechanisms import MECHANISMS
from attncourse.sparse import Strided, Window

N_TOKENS, T = 19, 12
every_position = pytest.mark.parametrize("positions", POSITIONS)


def make(positions="rotary", **options):
    torch.manual_seed(0)
    return Decoder(N_TOKENS, d_model=24, n_heads=3, n_layers=2, max_length=T, positions=positions, **options).eval()


def draw(batch_size=2, length=T, seed=1):
    return torch.randint(N_TOKENS, (batch_size, length), generator=seeded(seed, 0))


@every_position
@pytest.mark.parametrize("chunks", [(1,) * T, (5, 7), (3, 1, 8), (11, 1)])
@torch.no_grad()
def test_any_chunking_equals_one_pass(positions, chunks):
    model, tokens = make(positions), draw()
    caches = model.new_caches(2, T)
    parts = [model(part, caches=caches) for part in tokens.split(chunks, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)
    assert [cache.length for cache in caches] == [T, T]


@every_position
def test_no_logit_depends_on_a_later_token(positions):
    model, tokens = make(positions), draw()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % N_TOKENS
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert ((before - after).abs().amax(-1)[:, 7:] > 1e-4).all()


@pytest.mark.parametrize("positions", [name for name in POSITIONS if name != "none"])
@torch.no_grad()
def test_positions_tell_an_order(positions):
    model, tokens = make(positions), draw(1)
    swapped = tokens[:, [1, 0, *range(2, T)]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-4)


@torch.no_grad()
def test_without_positions_one_layer_sees_a_set():
    torch.manual_seed(0)
    model, tokens = Decoder(N_TOKENS, d_model=24, n_heads=3, n_layers=1, positions="none"), draw(1)
    swapped = tokens[:, [1, 0, *range(2, T)]]
    torch.testing.assert_close(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_learned_positions_end():
    model = make("learned")
    with pytest.raises(ValueError, match=f"for {T} tokens, but this is number {T + 1}"):
        model(draw(length=T + 1))
    caches = model.new_caches(2, T + 1)
    model(draw(), caches=caches)
    with pytest.raises(ValueError, match=f"this is number {T + 1}"):
        model(draw(length=1), caches=caches)
    for positions in set(POSITIONS) - {"learned"}:
        assert make(positions)(draw(length=T + 5)).shape == (2, T + 5, N_TOKENS)


def test_unknown_positions():
    with pytest.raises(ValueError, match=r"positions='rope'.*rotary, alibi"):
        make("rope")


@every_position
@torch.no_grad()
def test_greedy_text_is_the_argmax_of_whole_passes(positions):
    model, tokens = make(positions), draw(length=4)
    expected = tokens
    for _ in range(T - 4):
        expected = torch.cat([expected, model(expected)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(tokens, T - 4), expected)
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_drawn_text_follows_its_generator():
    model, prompt = make(), draw(3, 4)
    first, again, other = (model.generate(prompt, 20, temperature=1.0, generator=seeded(s, 0)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    cold = model.generate(prompt, 20, temperature=1e-4, generator=seeded(3, 0))
    assert torch.equal(cold, model.generate(prompt, 20))


@torch.no_grad()
def test_draws_follow_the_shares():
    model, prompt = make(), draw(1, 4).repeat(4000, 1)
    drawn = model.generate(prompt, 1, temperature=0.7, generator=seeded(4, 0))[:, -1]
    expected = (model(prompt[:1])[0, -1] / 0.7).softmax(-1)
    assert (drawn.bincount(minlength=N_TOKENS) / 4000 - expected).abs().max() < 0.04


@torch.no_grad()
def test_weights_of_every_layer():
    model, tokens = make(), draw()
    logits, weights = model(tokens, return_weights=True)
    torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=1e-5)
    assert [tuple(layer.shape) for layer in weights] == [(2, 3, T, T)] * 2
    for layer in weights:
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 3, T))
        assert (layer.triu(1) == 0).all()


@torch.no_grad()
def test_left_padding_is_masked_away():
    model, tokens = make("none"), draw(1, 8)  # rotary too sees relative positions only, in exact arithmetic
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), tokens], 1)
    mask = (torch.arange(11) >= 3)[None, None, None]  # (B, 1, 1, S)
    torch.testing.assert_close(model(padded, mask=mask)[:, 3:], model(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_loss_is_the_mean_of_what_counts():
    model, tokens = make(), draw(2, 6)
    counted = torch.tensor([[False, True, False, False, True], [False, False, False, True, False]])
    shares = model(tokens[:, :-1]).log_softmax(-1)
    by_hand = [-shares[b, t, tokens[b, t + 1]] for b, t in [(0, 1), (0, 4), (1, 3)]]
    torch.testing.assert_close(next_token_loss(model, tokens, counted), torch.stack(by_hand).mean())
    everything = F.nll_loss(shares.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(next_token_loss(model, tokens), everything)


@every_position
@torch.no_grad()
def test_a_saved_model_comes_back(positions, tmp_path):
    model, tokens = make(positions, bias=True), draw()
    save_decoder(model, tmp_path / "model.safetensors", {"seed": 3, "of": ["a", "test"]})
    loaded, provenance = load_decoder(tmp_path / "model.safetensors")
    assert provenance == {"seed": 3, "of": ["a", "test"]}
    assert loaded.config == model.config and loaded.config["bias"] is True and not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    torch.testing.assert_close(loaded(tokens), model(tokens), atol=0.02, rtol=0.02)  # stored in float16
    halved = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    model.load_state_dict(halved)
    torch.testing.assert_close(loaded(tokens), model(tokens), atol=0, rtol=0)


def test_it_learns_a_sequence_by_heart():
    model, tokens = make(), draw(1, 8)
    history = train(model, lambda m, _: next_token_loss(m, tokens), 60, lr=1e-2, progress=False)
    assert history.losses[0] > 2 and history.losses[-1] < 0.1
    assert torch.equal(model.generate(tokens[:, :2], 6)[:, 2:], tokens[:, 2:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(1, 4, dtype=torch.uint8)), r"tokens \(1, 4\) are torch\.uint8; they must be \(B, T\)"),
        (lambda m: m(torch.zeros(4, dtype=torch.long)), r"tokens \(4,\) are torch\.int64"),
        (lambda m: m.generate(torch.zeros(1, 0, dtype=torch.long), 2), "and 0 tokens at least 1"),
        (lambda m: m.generate(torch.zeros(1, 2, dtype=torch.long), 2, temperature=-1.0), "temperature=-1.0 must be"),
        (lambda m: Decoder(9, d_model=8, n_heads=2, alibi=True), "alibi: say it with positions=…"),
    ],
)
def test_bad_input_is_refused_with_the_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call(Decoder(9, d_model=8, n_heads=2, n_layers=1))


def test_a_pattern_cannot_be_saved_and_the_error_says_so(tmp_path):
    model = Decoder(N_TOKENS, d_model=24, n_heads=3, n_layers=1, mechanism="sparse", pattern=[Window(3)])
    with pytest.raises(TypeError, match="config holds pattern, which a file cannot"):
        save_decoder(model, tmp_path / "x.safetensors", {})


@pytest.mark.parametrize("mechanism", [name for name in MECHANISMS if name != "multi_head"])
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned", "none"])
@torch.no_grad()
def test_every_mechanism_decodes_as_it_reads(mechanism, positions):
    torch.manual_seed(0)
    options = {"sliding_window": {"window": 4}, "sparse": {"pattern": [Window(3), Strided(4)]}}.get(mechanism, {})
    model = Decoder(
        N_TOKENS, d_model=24, n_heads=3, n_layers=2, max_length=T, positions=positions, mechanism=mechanism, **options
    )
    tokens = draw()
    caches = model.new_caches(2, T)
    parts = [model(part, caches=caches) for part in tokens.split([5, 1, 1, T - 7], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)


def test_only_rotary_positions_need_pairs():
    Decoder(N_TOKENS, d_model=12, n_heads=4, n_layers=1, positions="none")
    with pytest.raises(ValueError, match="n_heads=0, but it must be at least 1"):
        Decoder(N_TOKENS, d_model=12, n_heads=0)
