import pytest
import torch

from attncourse.lab.alignment import alignment, crossing, evaluate
from attncourse.lab.numbers import BOS, EOS, PAD, encode, tokenize, vocabulary
from attncourse.lab.translate import Translator, load_translator, save_translator, translation_loss

NUMBERS = [7, 421, 42_042, 1_000_021, 380]


def translator(attention=True, seed=0):
    torch.manual_seed(seed)
    sizes = {"embed_dim": 5, "hidden_dim": 7, "attention": attention}
    return Translator(len(vocabulary("en")), len(vocabulary("de")), **sizes).double()


def by_hand(model, source, target_in):
    """Logits and weights of one sentence, source (S,), target_in (T,): nn.GRU's equations, one step at a time."""

    def gru(x, h, suffix, module):
        w_i, w_h, b_i, b_h = (
            getattr(module, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        (r_x, z_x, n_x), (r_h, z_h, n_h) = (w_i @ x + b_i).chunk(3), (w_h @ h + b_h).chunk(3)
        z = torch.sigmoid(z_x + z_h)
        return (1 - z) * torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h) + z * h

    words = model.source_embedding(source)
    forward, backward, h = [], [], words.new_zeros(7)
    for word in words:
        forward.append(h := gru(word, h, "", model.encoder))
    h = words.new_zeros(7)
    for word in words.flip(0):
        backward.insert(0, h := gru(word, h, "_reverse", model.encoder))
    states = [torch.cat(pair) for pair in zip(forward, backward, strict=True)]
    summary = torch.cat([forward[-1], backward[0]])
    h, logits, weights = torch.tanh(model.initial(summary)), [], []
    for word in model.target_embedding(target_in):
        context = summary
        if model.attention is not None:
            a = model.attention
            scores = [a.v @ torch.tanh(a.query_proj.weight @ h + a.key_proj.weight @ state) for state in states]
            weights.append(torch.stack(scores).softmax(0))
            context = sum(w * state for w, state in zip(weights[-1], states, strict=True))
        h = gru(torch.cat([word, context]), h, "", model.decoder)
        logits.append(model.output(torch.cat([h, context])))
    return torch.stack(logits), torch.stack(weights) if weights else None


@pytest.mark.parametrize("attention", [True, False])
def test_decode_is_the_loop_written_by_hand(attention):
    model, batch = translator(attention), encode([421], "de")
    logits, weights = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])
    expected, expected_weights = by_hand(model, batch.source[0], batch.target[0, :-1])
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-12)
    if attention:
        torch.testing.assert_close(weights[0], expected_weights, rtol=0, atol=1e-12)
    else:
        assert weights is None
    parameters = list(model.parameters())
    gradients, expected_gradients = (
        torch.autograd.grad(output.square().sum(), parameters) for output in (logits, expected)
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", [True, False])
def test_padding_changes_nothing(attention):
    model, batch = translator(attention), encode(NUMBERS, "de")
    logits, weights = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])
    for row, number in enumerate(NUMBERS):
        alone = encode([number], "de")
        T, S = alone.target.shape[1] - 1, alone.source.shape[1]
        expected, expected_weights = model.decode(alone.source, alone.source_mask, alone.target[:, :-1])
        torch.testing.assert_close(logits[row, :T], expected[0], rtol=0, atol=1e-12)
        if attention:
            torch.testing.assert_close(weights[row, :T, :S], expected_weights[0], rtol=0, atol=1e-12)
            assert not weights[row, :, S:].any()


@pytest.mark.parametrize("attention", [True, False])
def test_translate_feeds_its_own_tokens_back(attention):
    model, batch = translator(attention, seed=3), encode(NUMBERS, "de")
    tokens, weights = model.translate(batch.source, batch.source_mask, max_length=9)
    fed = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], 1)
    logits, expected_weights = model.decode(batch.source, batch.source_mask, fed)
    ended = (tokens == EOS).cumsum(1) - (tokens == EOS).long() > 0
    assert torch.equal(tokens, logits.argmax(-1).masked_fill(ended, PAD))
    if attention:
        torch.testing.assert_close(weights[~ended], expected_weights[~ended], rtol=0, atol=1e-12)


def test_translate_stops_when_all_have_ended():
    model, batch = translator(), encode(NUMBERS, "de")
    with torch.no_grad():
        model.output.bias[EOS] = 1e3
    tokens, weights = model.translate(batch.source, batch.source_mask)
    assert tokens.tolist() == [[EOS]] * len(NUMBERS) and weights.shape == (5, 1, batch.source.shape[1])


def test_the_models_differ_by_the_attention_parameters_alone():
    with_attention, without = translator(), translator(attention=False)
    extra = with_attention.state_dict().keys() - without.state_dict().keys()
    assert extra == {"attention.query_proj.weight", "attention.key_proj.weight", "attention.v"}
    shapes = {name: tensor.shape for name, tensor in without.state_dict().items()}
    assert all(with_attention.state_dict()[name].shape == shape for name, shape in shapes.items())


def test_loss_is_the_mean_over_real_tokens():
    model, batch = translator(), encode([7, 421], "de")
    log_p = model(batch.source, batch.source_mask, batch.target[:, :-1]).log_softmax(-1)
    picked = [log_p[b, t, batch.target[b, t + 1]] for b, length in ((0, 2), (1, 6)) for t in range(length)]
    torch.testing.assert_close(translation_loss(model, batch), -torch.stack(picked).mean())


def test_a_mask_with_a_hole_or_padding_in_front_is_refused():
    model, batch = translator(), encode([421], "de")
    for hole in (0, 2):
        mask = batch.source_mask.clone()
        mask[0, hole] = False
        with pytest.raises(ValueError, match="source_mask"):
            model.decode(batch.source, mask, batch.target[:, :-1])


def test_save_and_load_give_the_same_model(tmp_path):
    model, batch = translator().float(), encode(NUMBERS, "de")
    save_translator(model, tmp_path / "model.safetensors", {"seed": 0})
    loaded, provenance = load_translator(tmp_path / "model.safetensors")
    inputs = batch.source, batch.source_mask, batch.target[:, :-1]
    assert provenance == {"seed": 0} and not loaded.training
    assert torch.equal(loaded(*inputs), model(*inputs))


class Scripted(torch.nn.Module):
    """Writes the given sentences, whatever it reads, and looks where it is told."""

    def __init__(self, tokens, weights=None):
        super().__init__()
        self.tokens, self.weights = tokens, weights
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def translate(self, source, source_mask, max_length=40):
        return self.tokens, self.weights

    def decode(self, source, source_mask, target_in):
        return None, self.weights


def test_evaluate_counts_whole_sentences_and_tokens_by_length():
    batch = encode([7, 421, 5], "de")
    written = batch.target[:, 1:].clone()
    written[1, 2] = BOS  # one of six tokens wrong
    written[2, 1] = written[2, 0]  # does not stop: the end, one of two tokens, is wrong
    scores = evaluate(Scripted(written), batch)
    assert (scores["exact"], scores["token"]) == (round(1 / 3, 4), 0.8)
    assert scores["by_length"] == [
        {"words": 1, "sentences": 2, "exact": 0.5, "token": 0.75},
        {"words": 4, "sentences": 1, "exact": 0.0, "token": round(5 / 6, 4)},
    ]
    longer = torch.cat([batch.target[:, 1:], torch.full((3, 4), PAD)], 1)
    assert evaluate(Scripted(longer), batch)["exact"] == 1.0
    assert evaluate(Scripted(batch.target[:, 1:4]), batch)["exact"] == round(2 / 3, 4)


def test_crossing_counts_where_unit_and_ten_look():
    batch = encode([421, 35], "de")  # four hundred twenty one, thirty five
    looks_at = torch.zeros(2, batch.target.shape[1] - 1, dtype=torch.long)
    looks_at[0, [2, 4]] = torch.tensor([3, 2])  # ein -> one, zwanzig -> twenty: crossed
    looks_at[1, [0, 2]] = torch.tensor([0, 0])  # fünf -> thirty, dreißig -> thirty
    weights = torch.nn.functional.one_hot(looks_at, batch.source.shape[1]).float()
    found = crossing(Scripted(None, weights), batch)
    shares = {"unit_on_unit": 0.5, "unit_on_ten": 0.5, "ten_on_ten": 1.0, "ten_on_unit": 0.0, "crossed": 0.5}
    assert found == {"pairs": 2, **shares}


def test_alignment_gives_a_row_of_weights_for_each_token_written():
    found = alignment(translator().float(), 421, "de")
    assert found["source"] == tokenize(421, "en")
    assert len(found["weights"]) == len(found["target"])
    assert all(abs(sum(row) - 1) < 1e-3 and len(row) == 4 for row in found["weights"])
