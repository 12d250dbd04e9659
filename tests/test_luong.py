"""What Luong's attention promises: forms that are equal, windows that move with the source, choices with gradients."""

import copy
import math

import pytest
import torch

from attncourse.bahdanau import AdditiveAttention
from attncourse.luong import (
    HardAttention,
    LocalAttention,
    LuongAttention,
    attentional_vector,
    choose,
    concat_scores,
    dot_scores,
    gaussian_window,
    general_scores,
    local_weights,
    predicted_centre,
    source_positions,
    straight_through,
    surrogate_loss,
)
from tests.test_bahdanau import (
    BAD,
    KEY_DIM,
    QUERY_DIM,
    VALUE_DIM,
    B,
    S,
    T,
    assert_all_equal,
    assert_equal,
    gradients,
    inputs,
    normal,
    on_devices,
    random_mask,
)

SCORES = ("dot", "general", "concat")
A = 8
KINDS = {  # name -> class and options; the square of all that must hold for all
    "global": (LuongAttention, {}),
    "local-m": (LocalAttention, {"window": 2}),
    "local-p": (LocalAttention, {"window": 3, "alignment": "predictive"}),
    "straight-through": (HardAttention, {}),
    "score function": (HardAttention, {"estimator": "score_function"}),
}
SOFT = ("global", "local-m", "local-p")
of_every_kind = pytest.mark.parametrize("kind", KINDS)
of_every_soft_kind = pytest.mark.parametrize("kind", SOFT)
of_every_score = pytest.mark.parametrize("score", SCORES)
ESTIMATORS = ("straight_through", "score_function")


def make(kind="global", score="general", *, device="cpu", dtype=torch.float64, seed=0, **options):
    """A module with weights large enough to make the alignment uneven; for "dot", keys as large as queries."""
    cls, own = KINDS[kind]
    key_dim = QUERY_DIM if score == "dot" else KEY_DIM
    attention = cls(QUERY_DIM, key_dim, score=score, hidden_dim=A, **{**own, **options}).to(device, dtype)
    for i, parameter in enumerate(attention.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + i, device=device, dtype=dtype).data
    return attention


def inputs_for(score="general", **options):
    query, keys, values = inputs(**options)
    keys = keys[..., :QUERY_DIM].detach().requires_grad_() if score == "dot" else keys
    return query, keys, values


def seeded(attention, *arguments, **options):
    torch.manual_seed(0)
    return attention(*arguments, **options)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


# --- the scores


def test_scores_by_hand():
    query, keys = tensor([[[1.0, 2.0], [0.0, -1.0]]]), tensor([[[3.0, 0.0], [1.0, 1.0], [-2.0, 4.0]]])
    assert_equal(dot_scores(query, keys), tensor([[[3.0, 3.0, 6.0], [0.0, -1.0, -4.0]]]))  # not divided by sqrt(2)
    weight = tensor([[0.0, 10.0], [1.0, 0.0]])  # query^T W key = 10 q1 k2 + q2 k1
    assert_equal(general_scores(query, keys, weight), tensor([[[6.0, 12.0, 36.0], [-3.0, -1.0, 2.0]]]))
    narrow = tensor([[0.0, 0.0, 10.0], [1.0, 0.0, 0.0]])  # two numbers in a query, three in a key
    wide = torch.cat([keys, tensor([[[7.0], [8.0], [9.0]]])], -1)
    assert_equal(general_scores(query, wide, narrow), tensor([[[76.0, 82.0, 86.0], [-3.0, -1.0, 2.0]]]))


def test_concat_by_hand():
    """W adds the query's second number and the key's only one; tanh(artanh x + artanh y) = (x + y) / (1 + xy)."""
    query, keys = tensor([[[9.0, math.atanh(0.5)], [9.0, 0.0]]]), tensor([[[math.atanh(0.25)], [0.0]]])
    scores = concat_scores(query, keys, tensor([[0.0, 1.0, 1.0]]), tensor([100.0]))
    assert_equal(scores, tensor([[[100 * 0.75 / 1.125, 50.0], [25.0, 0.0]]]))


def test_concat_is_the_layer_on_the_concatenation():
    query, keys, _ = inputs()
    weight, v = normal(A, QUERY_DIM + KEY_DIM, seed=0), normal(A, seed=1)
    pairs = torch.cat([query[:, :, None].expand(B, T, S, -1), keys[:, None].expand(B, T, S, -1)], -1)
    slow, fast = torch.tanh(pairs @ weight.T) @ v, concat_scores(query, keys, weight, v)
    assert_equal(fast, slow)
    wanted = [query, keys, weight, v]
    assert_all_equal(gradients([fast], wanted), gradients([slow], wanted))


@on_devices
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_concat_equals_additive_with_its_matrix_split(masked, device):
    attention = make(score="concat", device=device)
    additive = AdditiveAttention(QUERY_DIM, KEY_DIM, A).double().to(device)
    for_query, for_keys = attention.concat_proj.weight.detach().split([QUERY_DIM, KEY_DIM], 1)
    additive.load_state_dict({"query_proj.weight": for_query, "key_proj.weight": for_keys, "v": attention.v.detach()})
    tensors = inputs(device=device)
    mask = random_mask(B, T, S).to(device) if masked else None
    actual, expected = attention(*tensors, mask), additive(*tensors, mask)
    assert_all_equal(actual, expected)
    d_weight, d_v, *d_inputs = gradients(actual, [attention.concat_proj.weight, attention.v, *tensors])
    d_query, d_keys, *expected_d = gradients(
        expected, [additive.query_proj.weight, additive.key_proj.weight, additive.v, *tensors]
    )
    assert_all_equal([d_weight, d_v, *d_inputs], [torch.cat([d_query, d_keys], 1), *expected_d])


@of_every_kind
def test_general_with_the_identity_is_dot(kind):
    dot = make(kind, "dot")
    general = KINDS[kind][0](QUERY_DIM, QUERY_DIM, score="general", **KINDS[kind][1]).double()
    general.load_state_dict({**dot.state_dict(), "key_proj.weight": torch.eye(QUERY_DIM)}, strict=True)
    tensors, mask = inputs_for("dot"), random_mask(B, S)
    actual, expected = seeded(general, *tensors, mask), seeded(dot, *tensors, mask)
    assert_all_equal(actual, expected)
    if kind == "score function":  # the scores have a gradient through log_prob alone
        actual, expected = (actual[0], general.log_prob), (expected[0], dot.log_prob)
    assert_all_equal(gradients(actual, tensors), gradients(expected, tensors))


def test_general_can_project_either_side():
    """qᵀ (W k) = (Wᵀ q)ᵀ k: a decoder projects the keys once, before its first step."""
    attention = make()
    query, keys, _ = inputs()
    expected = attention.scores(query, keys)
    assert_equal(dot_scores(query, attention.key_proj(keys)), expected)
    assert_equal(dot_scores(query @ attention.key_proj.weight, keys), expected)


def test_attentional_vector_by_hand():
    context, query = tensor([[[1.0, 2.0]]]), tensor([[[4.0]]])
    weight = tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.25], [0.0, -1.0, 0.5]])  # [c; h]: the query comes last
    assert_equal(attentional_vector(context, query, weight), tensor([[[1.0, 1.0, 0.0]]]).tanh())


# --- windows


def test_positions_are_counted_in_the_source():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    positions, lengths = source_positions(mask)
    assert positions[:4].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [-2, -1, 0, 1], [-1, 0, 1, 2]]
    assert lengths.tolist() == [4, 2, 2, 3, 0]
    positions, lengths = source_positions(mask[:, :0])
    assert positions.shape == (5, 0) and lengths.eq(0).all()


@pytest.mark.parametrize(("window", "keys"), [(1, [2]), (2, [1, 2, 3]), (3, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4, 5])])
def test_the_window_counts_its_centre(window, keys):
    """W = 1 sees one key, W = 2 three: the paper's D is W - 1."""
    attention = make("local-m", window=window)
    weights = attention(*inputs())[1]
    assert weights[0, 2].nonzero().flatten().tolist() == keys
    distance = (torch.arange(T)[:, None] - torch.arange(S)).abs()
    assert torch.equal(weights > 0, (distance < window).expand(B, T, S))
    assert_equal(weights.sum(-1), torch.ones(B, T).double())


@pytest.mark.parametrize(
    ("centre", "window", "keys"),
    [(2.0, 2, [1, 2, 3]), (2.4, 2, [2, 3]), (1.6, 2, [1, 2]), (2.5, 3, [1, 2, 3, 4]), (0.0, 2, [0, 1]), (6.0, 2, [5])],
)
def test_the_window_around_a_real_number(centre, window, keys):
    """|s - p| ≤ D = W - 1: around 2.4 with D = 1 the keys 2 and 3, not 1, which is 1.4 away."""
    mask = torch.ones(1, 1, S, dtype=torch.bool)
    weights = local_weights(normal(1, 1, S, seed=0), torch.arange(S), tensor([[centre]]), window, mask)
    assert weights[0, 0].nonzero().flatten().tolist() == keys


def test_local_weights_are_a_softmax_among_near_and_allowed_keys():
    scores, mask = tensor([[[0.0, math.log(3), 5.0, math.log(2), 9.0, 7.0]]]), torch.ones(1, 1, S, dtype=torch.bool)
    mask[..., 2] = False
    weights = local_weights(scores, torch.arange(S), tensor([[2.0]]), 2, mask)
    assert_equal(weights, tensor([[[0.0, 0.6, 0.0, 0.4, 0.0, 0.0]]]))


def test_gaussian_by_hand():
    """At the centre 1; one σ away exp(-1/2), two σ away exp(-2)."""
    window = gaussian_window(torch.arange(4), tensor([[1.0, 2.5]]), 0.5)
    powers = [[[2.0, 0.0, 2.0, 8.0], [12.5, 4.5, 0.5, 0.5]]]
    assert_equal(window, torch.exp(-tensor(powers)))


def test_predicted_centre_by_hand():
    """S · sigmoid(v · tanh(W q)): with W q = artanh(1/2) and v = 2 log 3 the sigmoid is 3/4."""
    query, weight, v = tensor([[[1.0], [0.0]]]), tensor([[math.atanh(0.5)]]), tensor([2 * math.log(3)])
    assert_equal(
        predicted_centre(query, torch.tensor([[8], [4]]), weight, v), tensor([[[6.0, 4.0]], [[3.0, 2.0]]])[:, 0]
    )


def test_predictive_weights_are_the_softmax_times_the_gaussian():
    """σ = D / 2 = (W - 1) / 2. Rows sum to less than 1: the paper does not divide again."""
    attention, (query, keys, values) = make("local-p", window=4), inputs()
    mask = torch.arange(S) < torch.tensor([[S], [4]])
    centre = predicted_centre(query, tensor([[S], [4]]), attention.position_proj.weight, attention.position_v)
    softmax = local_weights(attention.scores(query, keys), torch.arange(S), centre, 4, mask[:, None])
    context, weights = attention(query, keys, values, mask)
    assert_equal(softmax.sum(-1), torch.ones(B, T).double())
    assert_equal(weights, softmax * torch.exp(-((torch.arange(S) - centre[..., None]) ** 2) / (2 * 1.5**2)))
    assert_equal(context, weights @ values)
    assert weights.sum(-1).max() < 0.99 and weights.sum(-1).min() > 0.1


@of_every_score
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_a_window_as_long_as_the_source_is_global(masked, score):
    tensors = inputs_for(score)
    mask = random_mask(B, T, S) if masked else None
    everything = make("global", score)
    for kind, tolerance in (("local-m", 0.0), ("local-p", 1e-9)):  # σ of 5e5: the Gaussian is 1 - 1e-11
        attention = make(kind, score, window=S if kind == "local-m" else 10**6)
        attention.load_state_dict(everything.state_dict(), strict=False)
        actual, expected = attention(*tensors, mask), everything(*tensors, mask)
        for got, want in zip(actual, expected, strict=True):
            assert_equal(got, want, tolerance)
        for got, want in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
            assert_equal(got, want, max(tolerance, 1e-12))


def test_predictive_without_the_gaussian_moves_nothing():
    """The window's edges have no gradient: p learns through the Gaussian alone."""
    attention, (query, keys, values) = make("local-p", "dot", window=3), inputs_for("dot")
    parameters = [attention.position_proj.weight, attention.position_v]
    assert all(g.abs().max() > 1e-3 for g in gradients(attention(query, keys, values), parameters))
    wide = make("local-p", "dot", window=10**6)
    parameters = [wide.position_proj.weight, wide.position_v]
    assert all(g.abs().max() < 1e-9 for g in gradients(wide(query, keys, values), parameters))


@pytest.mark.parametrize(
    "positions",
    [torch.tensor(at) for at in ([3, 0, 4], [[3, 0, 4], [5, 5, 1]], [[3], [5]], [[3, 0, 4]], [2], 2)],
    ids=str,
)
def test_positions_say_where_the_window_stands(positions):
    weights = make("local-m")(*inputs(), positions=positions)[1]
    distance = (positions.expand(B, T)[..., None] - torch.arange(S)).abs()
    assert torch.equal(weights > 0, distance < 2)


@of_every_soft_kind
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_step_by_step_is_all_at_once(masked, kind):
    attention, tensors = make(kind), inputs()
    query, keys, values = tensors
    mask = random_mask(B, T, S) if masked else None
    steps = []
    for i in range(T):
        position = {"positions": torch.tensor([i])} if kind == "local-m" else {}
        step = slice(i, i + 1)
        steps.append(attention(query[:, step], keys, values, mask[:, step] if masked else None, **position))
    stepwise, whole = [torch.cat(parts, 1) for parts in zip(*steps, strict=True)], attention(*tensors, mask)
    assert_all_equal(stepwise, whole)
    wanted = [*tensors, *attention.parameters()]
    assert_all_equal(gradients(stepwise, wanted), gradients(whole, wanted))


def test_a_window_past_the_end_gives_zeros():
    """The target can be longer than the source: from step S + W - 1 on nothing is in reach."""
    attention, (query, keys, values) = make("local-m"), inputs(T=5, S=3)
    context, weights = attention(query, keys, values)
    assert weights[:, :4].gt(0).any(-1).all() and context[:, 4].eq(0).all() and weights[:, 4].eq(0).all()
    wanted = [query, keys, values, *attention.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients([context, weights], wanted))


# --- what all kinds share


@of_every_kind
@of_every_score
def test_parameters_have_the_names_and_shapes_of_the_contract(score, kind):
    named = {
        "dot": {},
        "general": {"key_proj.weight": (QUERY_DIM, KEY_DIM)},
        "concat": {"concat_proj.weight": (A, QUERY_DIM + KEY_DIM), "v": (A,)},
    }[score]
    predictive = {"position_proj.weight": (QUERY_DIM, QUERY_DIM), "position_v": (QUERY_DIM,)}
    expected = named | (predictive if kind == "local-p" else {})
    attention = make(kind, score)
    assert {name: tuple(parameter.shape) for name, parameter in attention.state_dict().items()} == expected
    assert {name for name, _ in attention.named_parameters()} == expected.keys()


def test_defaults():
    assert LuongAttention(4, 4).score == "dot" and LocalAttention(4, 5, window=2).score == "general"
    assert LocalAttention(4, 5, window=2).alignment == "monotonic"
    assert HardAttention(4, 5).estimator == "straight_through" and HardAttention(4, 5).score == "general"
    assert LuongAttention(4, 5, "concat").v.shape == (4,)


@of_every_kind
@of_every_score
def test_values_default_to_the_keys(score, kind):
    attention, (query, keys, _) = make(kind, score), inputs_for(score)
    mask = random_mask(B, S)
    default, given = seeded(attention, query, keys, mask=mask), seeded(attention, query, keys, keys, mask)
    assert default[0].shape == (B, T, keys.shape[-1])
    assert_all_equal(default, given)
    assert_all_equal(gradients(default[:1], [keys]), gradients(given[:1], [keys]))


@on_devices
@of_every_kind
def test_context_is_the_values_averaged_with_the_weights(kind, device):
    attention, (query, keys, values) = make(kind, device=device), inputs(device=device)
    context, weights = seeded(attention, query, keys, values, random_mask(B, S).to(device))
    assert_equal(context, sum(weights[:, :, j, None] * values[:, None, j] for j in range(S)))


@on_devices
@of_every_kind
def test_masks_of_every_shape_agree(kind, device):
    """(B, S) is one row of keys for each sequence, whatever its batch; T = S, so that a (T, S) reading would fit."""
    size = 3
    attention, tensors = make(kind, device=device), inputs(B=size, T=size, S=size, device=device)
    of_batch = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool, device=device)
    expected = seeded(attention, *tensors, of_batch[:, None].expand(size, size, size))
    assert_all_equal(seeded(attention, *tensors, of_batch), expected)
    assert_all_equal(seeded(attention, *tensors, of_batch[:, None]), expected)
    pattern = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool, device=device)
    expected = seeded(attention, *tensors, pattern.expand(size, size, size))
    assert_all_equal(seeded(attention, *tensors, pattern[None]), expected)
    assert expected[1].masked_select(~pattern.expand(size, size, size)).eq(0).all()
    expected = seeded(attention, *tensors, pattern[1].expand(size, size, size))
    for row in (pattern[1], pattern[1][None, None]):  # (S,) and (1, 1, S)
        assert_all_equal(seeded(attention, *tensors, row), expected)
    assert_all_equal(seeded(attention, *tensors, of_batch | True), seeded(attention, *tensors))


@on_devices
@of_every_soft_kind
@of_every_score
@pytest.mark.parametrize(("side", "garbage"), [("left", 0.0), ("right", 0.0), ("left", 1e3), ("right", -1e3)])
def test_padding_never_changes_the_result(side, garbage, score, kind, device):
    """One sequence alone, and the same one padded with garbage in a batch: outputs and gradients."""
    attention, (query, keys, values) = make(kind, score, device=device), inputs_for(score, device=device)
    lengths = [4, S]
    shown = [slice(S - n, S) if side == "left" else slice(0, n) for n in lengths]
    mask = torch.zeros(B, S, dtype=torch.bool, device=device)
    for b, span in enumerate(shown):
        mask[b, span] = True
    padded_keys = keys.detach().masked_fill(~mask[..., None], garbage).requires_grad_()
    padded_values = values.detach().masked_fill(~mask[..., None], -garbage).requires_grad_()
    context, weights = attention(query, padded_keys, padded_values, mask)
    d_query, d_keys, d_values = gradients([context], [query, padded_keys, padded_values])
    for b, span in enumerate(shown):
        one = slice(b, b + 1)
        alone_query, alone_keys, alone_values = (
            x.detach().requires_grad_() for x in (query[one], keys[one, span], values[one, span])
        )
        alone = attention(alone_query, alone_keys, alone_values)
        assert_equal(context[one], alone[0])
        assert_equal(weights[one, :, span], alone[1])
        upstream = normal(*context.shape, seed=20, device=device)[one]
        expected = torch.autograd.grad(alone[0], [alone_query, alone_keys, alone_values], upstream)
        assert_all_equal([d_query[one], d_keys[one, span], d_values[one, span]], expected)
    assert weights[~mask[:, None].expand(B, T, S)].eq(0).all()
    assert d_keys[~mask].eq(0).all() and d_values[~mask].eq(0).all()


@of_every_score
def test_order_of_the_keys_matters_only_to_a_window(score):
    tensors, mask = inputs_for(score), random_mask(B, T, S)
    query, keys, values = tensors
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    for kind in SOFT:
        attention = make(kind, score)
        context, weights = attention(query, keys, values, mask)
        permuted = attention(query, keys[:, order], values[:, order], mask[..., order])
        if kind == "global":
            assert_all_equal(permuted, (context, weights[..., order]))
            assert_all_equal(gradients(permuted[:1], tensors), gradients([context], tensors))
        else:
            assert (permuted[0] - context).abs().max() > 0.1


@on_devices
@of_every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_empty_source_gives_zeros_and_finite_gradients(dtype, kind, device):
    attention = make(kind, device=device, dtype=dtype, **({"window": S} if kind == "local-m" else {}))
    tensors = inputs(device=device, dtype=dtype)
    mask = torch.ones(B, T, S, dtype=torch.bool, device=device)
    mask[0] = mask[1, 2] = False
    empty = ~mask.any(-1)
    context, weights = result = seeded(attention, *tensors, mask)
    assert context.dtype == weights.dtype == dtype
    assert context[empty].eq(0).all() and weights[empty].eq(0).all()
    assert context[~empty].ne(0).all() and weights[~empty].ge(0).all() and weights[~empty].gt(0).any(-1).all()
    if kind == "score function":
        assert attention.log_prob.dtype == dtype and attention.log_prob[empty].eq(0).all()
        assert attention.log_prob[~empty].lt(0).all()
        result = [context, attention.log_prob]
    wanted = [*tensors, *attention.parameters()]
    d_query, d_keys, d_values, *others = gradients(result, wanted)
    assert d_query[empty].eq(0).all() and d_query[~empty].ne(0).any(-1).all()
    assert d_keys[0].eq(0).all() and d_values[0].eq(0).all() and d_keys[1].ne(0).any() and d_values[1].ne(0).any()
    assert all(torch.isfinite(g).all() and g.ne(0).any() for g in (d_query, d_keys, d_values, *others))


@of_every_kind
def test_source_of_no_tokens_gives_zeros(kind):
    attention, tensors = make(kind), inputs(S=0)
    for mask in (None, torch.ones(B, 0, dtype=torch.bool)):
        context, weights = attention(*tensors, mask)
        assert context.shape == (B, T, VALUE_DIM) and context.eq(0).all()
        assert weights.shape == (B, T, 0)


# --- hard attention


def test_a_choice_is_one_key_and_never_a_forbidden_one():
    weights = tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1e-3, 0.0, 0.999]]).repeat(500, 1, 1)
    torch.manual_seed(0)
    drawn = choose(weights)
    assert drawn.dtype == weights.dtype and torch.equal(drawn, drawn.bool().double())
    assert drawn.sum(-1).mean(0).tolist() == [1.0, 0.0, 1.0]
    assert drawn[weights == 0].eq(0).all() and 0.4 < drawn[:, 0, 0].mean() < 0.6
    torch.manual_seed(0)
    assert torch.equal(choose(weights), drawn)
    assert choose(weights, sample=False)[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


@of_every_score
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_keys_are_drawn_as_often_as_soft_attention_weighs_them(estimator, score):
    hard = make("straight-through", score, estimator=estimator)
    query, keys, values = inputs_for(score)
    n, mask = 20_000, random_mask(B, S)
    soft = make("global", score)(query, keys, values, mask)[1][:, :1]  # (B, 1, S)
    torch.manual_seed(0)
    context, weights = hard(query[:, :1].expand(B, n, -1), keys, values, mask)
    assert torch.equal(weights.detach(), weights.detach().bool().double()) and weights.sum(-1).eq(1).all()
    assert_equal(context, values.gather(1, weights.argmax(-1, keepdim=True).expand(-1, -1, VALUE_DIM)))
    deviations = (weights.mean(1, keepdim=True) - soft) / (soft * (1 - soft) / n).sqrt().clamp(min=1e-9)
    assert deviations.abs().max() < 4
    assert_equal(hard.log_prob, (weights.detach() * soft).sum(-1).log())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_in_evaluation_the_likeliest_key_is_taken(estimator):
    hard, tensors = make("straight-through", estimator=estimator).eval(), inputs()
    mask = random_mask(B, T, S)
    soft = make()(*tensors, mask)[1]
    for _ in range(3):
        weights = hard(*tensors, mask)[1]
        assert torch.equal(weights.detach(), torch.nn.functional.one_hot(soft.argmax(-1), S).double())
        assert_equal(hard.log_prob, soft.amax(-1).log())


def test_straight_through_has_the_value_of_the_choice_and_the_gradient_of_the_softmax():
    weights, one_hot = normal(2, 5, seed=0), torch.eye(5)[[3, 1]].double()
    upstream = normal(2, 5, seed=1).detach()
    assert torch.equal(straight_through(one_hot, weights), one_hot)
    assert torch.equal(torch.autograd.grad(straight_through(one_hot, weights), weights, upstream)[0], upstream)
    hard, soft, tensors = make("straight-through"), make(), inputs()
    query, keys, values = tensors
    wanted = [query, keys, *hard.parameters()], [query, keys, *soft.parameters()]
    drawn, expected = seeded(hard, *tensors), soft(*tensors)
    assert_all_equal(gradients(drawn, wanted[0]), gradients(expected, wanted[1]))  # for the same upstream gradients
    drawn = seeded(hard, *tensors)
    (d_values,) = gradients(drawn[:1], [values])
    assert_equal(d_values, drawn[1].detach().mT @ normal(B, T, VALUE_DIM, seed=20).detach())


def test_score_function_gives_the_scores_no_gradient_through_the_context():
    hard, (query, keys, values) = make("score function"), inputs()
    context, weights = hard(query, keys, values)
    assert not weights.requires_grad
    assert torch.autograd.grad(context.sum(), query, allow_unused=True, retain_graph=True)[0] is None
    (d_values,) = gradients([context], [values])
    assert_equal(d_values, weights.mT @ normal(B, T, VALUE_DIM, seed=20).detach())


def test_a_used_module_can_be_copied():
    hard, tensors = make("score function"), inputs()
    expected = seeded(hard, *tensors)
    copied = copy.deepcopy(hard)
    assert copied.log_prob is None and hard.log_prob is not None
    assert_all_equal(seeded(copied, *tensors), expected)


def test_surrogate_loss_by_hand():
    cost, log_prob, weight = normal(2, 3, seed=0), normal(2, 3, seed=1), normal(2, 3, seed=2)
    baseline = normal(2, 1, seed=3)
    for b in (0.0, 0.25, baseline):
        d_cost, d_log_prob, d_base = torch.autograd.grad(
            surrogate_loss(cost, log_prob, b), [cost, log_prob, baseline], weight.detach(), allow_unused=True
        )
        assert_equal(d_cost, weight.detach())
        assert_equal(d_log_prob, (weight * (cost - b)).detach())
        assert d_base is None
    assert torch.equal(surrogate_loss(cost, log_prob), cost + cost.detach() * log_prob)


def drawn_gradients(estimator, cost, baseline=0.0, n=40_000):
    """Estimates (n, QUERY_DIM) of the query's gradient, one from each of n choices, and the exact gradient."""
    hard = HardAttention(QUERY_DIM, QUERY_DIM, estimator=estimator, score="dot").double()
    query, keys = normal(1, 1, QUERY_DIM, seed=42), normal(1, S, QUERY_DIM, seed=43).detach()
    values = normal(1, S, VALUE_DIM, seed=44).detach()
    exact = torch.autograd.grad((dot_scores(query, keys).softmax(-1) * cost(values)[:, None]).sum(), query)[0]
    queries = query.detach().expand(1, n, -1).clone().requires_grad_()
    torch.manual_seed(0)
    context, _ = hard(queries, keys, values)
    loss = cost(context)
    if estimator == "score_function":
        loss = surrogate_loss(loss, hard.log_prob, baseline)
    return torch.autograd.grad(loss.sum(), queries)[0][0], exact[0, 0]


def squared(context):
    return (context - 1).square().sum(-1) / 2


def linear(context):
    return context @ torch.arange(1.0, VALUE_DIM + 1, dtype=torch.float64)


def deviations(estimates, exact):
    """How many standard errors the mean is from the exact gradient, in each number."""
    return (estimates.mean(0) - exact).abs() / (estimates.std(0) / len(estimates) ** 0.5).clamp(min=1e-12)


@pytest.mark.parametrize("cost", [squared, linear])
@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_score_function_is_unbiased(baseline, cost):
    estimates, exact = drawn_gradients("score_function", cost, baseline)
    assert exact.abs().max() > 0.5
    assert deviations(estimates, exact).max() < 4


def test_a_baseline_lowers_the_variance():
    without, _ = drawn_gradients("score_function", squared)
    with_one, _ = drawn_gradients("score_function", squared, squared(normal(1, S, VALUE_DIM, seed=44)).mean().item())
    assert with_one.var(0).sum() < 0.8 * without.var(0).sum()


def test_straight_through_is_biased_unless_the_cost_is_linear():
    estimates, exact = drawn_gradients("straight_through", squared)
    bias = (estimates.mean(0) - exact).norm() / exact.norm()
    assert bias > 0.2 and deviations(estimates, exact).max() > 20
    estimates, exact = drawn_gradients("straight_through", linear)
    assert_equal(estimates, exact.expand_as(estimates))  # every single estimate, whatever was drawn


# --- bad input


WRONG = {
    "query_dim": (lambda: LuongAttention(0, 5), ["query_dim=0", "at least 1"]),
    "key_dim": (lambda: LuongAttention(4, -1), ["key_dim=-1", "at least 1"]),
    "hidden_dim": (lambda: LuongAttention(4, 5, "concat", hidden_dim=0), ["hidden_dim=0", "at least 1"]),
    "score": (lambda: LuongAttention(4, 4, "cosine"), ["score='cosine'", '"dot"', '"general"', '"concat"']),
    "dot sizes": (lambda: LuongAttention(4, 5), ["query_dim=4", "key_dim=5", "dot"]),
    "dot sizes, local": (lambda: LocalAttention(4, 5, window=2, score="dot"), ["query_dim=4", "key_dim=5"]),
    "window": (lambda: LocalAttention(4, 5, window=0), ["window=0", "monotonic", "at least 1"]),
    "σ of 0": (lambda: LocalAttention(4, 5, window=1, alignment="predictive"), ["window=1", "predictive", "least 2"]),
    "alignment": (lambda: LocalAttention(4, 5, window=2, alignment="m"), ["alignment='m'", "monotonic", "predictive"]),
    "estimator": (lambda: HardAttention(4, 5, estimator="gumbel"), ["estimator='gumbel'", "score_function"]),
}


@pytest.mark.parametrize(("construct", "said"), WRONG.values(), ids=WRONG)
def test_bad_arguments_are_named(construct, said):
    with pytest.raises(ValueError) as caught:
        construct()
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)


@of_every_kind
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_numbers(case, kind):
    query, keys, values, mask, error, said = BAD[case]
    cls, options = KINDS[kind]
    with pytest.raises(error) as caught:
        cls(4, 5, score="general", **options)(query, keys, values, mask)
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 3), (1, 2, 3), (2,)])
def test_bad_positions_are_named(shape):
    with pytest.raises(ValueError, match="does not broadcast") as caught:
        make("local-m")(*inputs(), positions=torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value) and str((B, T)) in str(caught.value)


def test_predictive_alignment_takes_no_positions():
    with pytest.raises(ValueError, match="computes its own"):
        make("local-p")(*inputs(), positions=torch.tensor(0))


def test_vectors_begin_small_and_on_both_sides_of_zero():
    """As for Bahdanau's v: evenly between -1 and 1, over the root of how many there are."""
    torch.manual_seed(0)
    predicted = LocalAttention(1000, 3, window=2, alignment="predictive").position_v
    for vector in (LuongAttention(4, 3, "concat", hidden_dim=1000).v, predicted):
        scaled = vector.detach() * 1000**0.5
        assert scaled.min() >= -1 and scaled.max() <= 1
        assert abs(scaled.mean()) < 0.1 and abs(scaled.abs().mean() - 0.5) < 0.05
