"""What additive attention promises: masks in every shape, padding without influence, parameters with known names."""

from itertools import pairwise

import pytest
import torch

from attncourse.bahdanau import AdditiveAttention, additive_attention, additive_scores

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
B, T, S = 2, 3, 6
QUERY_DIM, KEY_DIM, VALUE_DIM, HIDDEN_DIM = 4, 5, 7, 8

on_devices = pytest.mark.parametrize("device", DEVICES)


def normal(*shape, seed, device="cpu", dtype=torch.float64):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(device, dtype).requires_grad_()


def make(device="cpu", dtype=torch.float64, seed=0):
    """A module with weights large enough to make the alignment uneven."""
    attention = AdditiveAttention(QUERY_DIM, KEY_DIM, HIDDEN_DIM).to(device, dtype)
    for i, parameter in enumerate(attention.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + i, device=device, dtype=dtype).data
    return attention


def inputs(B=B, T=T, S=S, **options):
    return (
        normal(B, T, QUERY_DIM, seed=10, **options),
        normal(B, S, KEY_DIM, seed=11, **options),
        normal(B, S, VALUE_DIM, seed=12, **options),
    )


def random_mask(*shape, seed=1):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., 1] = True
    return mask


def gradients(result, wanted):
    upstream = [normal(*x.shape, seed=20 + i, device=x.device, dtype=x.dtype) for i, x in enumerate(result)]
    return torch.autograd.grad(result, wanted, upstream)


def assert_equal(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def assert_all_equal(actual, expected):
    for got, want in zip(actual, expected, strict=True):
        assert_equal(got, want)


# --- the scores


def test_scores_by_hand():
    """tanh(artanh a) = a, so with v = (10, 100) a score is 10·a + 100·b."""
    query = torch.tensor([[[0.5, 0.0], [0.0, -0.25]]], dtype=torch.float64).atanh()
    keys = torch.tensor([[[0.0, 0.0], [0.0, 0.75], [0.5, 0.25]]], dtype=torch.float64).atanh()
    scores = additive_scores(query, keys, torch.tensor([10.0, 100.0], dtype=torch.float64))
    twice = (0.5 + 0.5) / (1 + 0.5 * 0.5)  # tanh(x + y) = (tanh x + tanh y) / (1 + tanh x tanh y)
    less = (0.75 - 0.25) / (1 - 0.75 * 0.25)
    expected = [[[5.0, 80.0, 10 * twice + 25], [-25.0, 100 * less, 5.0]]]
    assert_equal(scores, torch.tensor(expected, dtype=torch.float64))


def test_concat_of_query_and_key_is_the_same_score():
    """v · tanh([W_q W_k] [query; key]): a concatenation times a matrix is a sum of two products."""
    attention = make()
    query, keys, _ = inputs()
    joint = torch.cat([attention.query_proj.weight, attention.key_proj.weight], dim=1)  # (A, query_dim + key_dim)
    pairs = torch.cat([query[:, :, None].expand(B, T, S, -1), keys[:, None].expand(B, T, S, -1)], dim=-1)
    scores = torch.tanh(pairs @ joint.T) @ attention.v
    assert_equal(additive_scores(attention.query_proj(query), attention.key_proj(keys), attention.v), scores)
    assert_equal(attention(query, keys)[1], scores.softmax(-1))


def test_without_tanh_the_weights_do_not_depend_on_the_query():
    """v · (W s + U h) = v · W s + v · U h: the first term is the same for every key, so softmax drops it."""
    attention = make()
    query, keys, _ = inputs()
    linear = (attention.query_proj(query)[:, :, None] + attention.key_proj(keys)[:, None]) @ attention.v
    weights = linear.softmax(-1)
    assert_equal(weights, weights[:, :1].expand(B, T, S))
    assert torch.autograd.grad(weights, query, normal(B, T, S, seed=3))[0].abs().max() < 1e-12
    # With it they do, by far more than rounding: between any two queries, and in the gradient.
    weights = attention(query, keys)[1]
    for one, next_one in pairwise(range(T)):
        assert (weights[:, one] - weights[:, next_one]).abs().amax(-1).min() > 0.05
    assert torch.autograd.grad(weights, query, normal(B, T, S, seed=3))[0].abs().min() > 1e-4


# --- the module and the function


@on_devices
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_keys_projected_once_give_what_the_module_gives(masked, device):
    """A decoder projects the keys before its first step and then calls the function at each."""
    attention = make(device)
    query, keys, values = inputs(device=device)
    mask = random_mask(B, T, S).to(device) if masked else None
    whole = attention(query, keys, values, mask)
    projected = attention.key_proj(keys)
    steps = [
        additive_attention(
            attention.query_proj(query[:, i : i + 1]),
            projected,
            values,
            attention.v,
            mask[:, i : i + 1] if masked else None,
        )
        for i in range(T)
    ]
    stepwise = [torch.cat(parts, dim=1) for parts in zip(*steps, strict=True)]
    assert_all_equal(stepwise, whole)
    wanted = [query, keys, values, *attention.parameters()]
    assert_all_equal(gradients(stepwise, wanted), gradients(whole, wanted))


def test_values_default_to_the_keys():
    attention = make()
    query, keys, _ = inputs()
    mask = random_mask(B, S)
    default, given = attention(query, keys, mask=mask), attention(query, keys, keys, mask)
    assert default[0].shape == (B, T, KEY_DIM)
    assert_all_equal(default, given)
    assert_all_equal(gradients(default, [query, keys]), gradients(given, [query, keys]))


def test_context_is_the_values_averaged_with_the_weights():
    attention = make()
    query, keys, values = inputs()
    context, weights = attention(query, keys, values, random_mask(B, S))
    expected = sum(weights[:, :, j, None] * values[:, None, j] for j in range(S))
    assert_equal(context, expected)
    assert_equal(weights.sum(-1), torch.ones(B, T).double())
    assert_equal(attention(query, keys, 3 * values, random_mask(B, S))[0], 3 * context)


def test_parameters_have_the_names_and_shapes_of_the_contract():
    attention = AdditiveAttention(QUERY_DIM, KEY_DIM, HIDDEN_DIM)
    shapes = {name: tuple(tensor.shape) for name, tensor in attention.state_dict().items()}
    assert shapes == {
        "query_proj.weight": (HIDDEN_DIM, QUERY_DIM),
        "key_proj.weight": (HIDDEN_DIM, KEY_DIM),
        "v": (HIDDEN_DIM,),
    }
    assert {name for name, _ in attention.named_parameters()} == set(shapes), "all three are trained"
    other = make()
    other.load_state_dict(make(seed=7).state_dict(), strict=True)
    assert_all_equal(other(*inputs()), make(seed=7)(*inputs()))


def test_a_new_module_starts_with_moderate_and_different_weights():
    torch.manual_seed(0)
    attention = AdditiveAttention(64, 64, 256)
    bound = 256**-0.5
    assert attention.v.abs().max() <= bound and 0.8 * bound < attention.v.std() * 3**0.5 < 1.2 * bound
    assert abs(attention.v.mean()) < 0.2 * bound


def test_gradients_are_those_of_finite_differences():
    attention = make()
    mask = random_mask(B, T, S)
    mask[0, 1] = False
    names, parameters = zip(*attention.named_parameters(), strict=True)

    def run(query, keys, values, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(attention, state, (query, keys, values, mask))

    assert torch.autograd.gradcheck(run, [*inputs(), *parameters])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtype_of_the_input_is_the_dtype_of_the_output(dtype):
    context, weights = make(dtype=dtype)(*inputs(dtype=dtype), random_mask(B, S))
    assert context.dtype == weights.dtype == dtype
    exact = make()(*inputs(), random_mask(B, S))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert_equal(context.double(), exact[0], tolerance)
    assert_equal(weights.double(), exact[1], tolerance)


# --- masks


@on_devices
def test_masks_of_every_shape_agree(device):
    """(B, S) is one row of keys for each sequence, whatever its batch; T = S, so that a (T, S) reading would fit."""
    size = 3
    attention = make(device)
    query, keys, values = inputs(B=size, T=size, S=size, device=device)
    keys_of_batch = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool, device=device)
    full = keys_of_batch[:, None].expand(size, size, size)
    expected = attention(query, keys, values, full)
    assert_all_equal(attention(query, keys, values, keys_of_batch), expected)
    assert_all_equal(attention(query, keys, values, keys_of_batch[:, None]), expected)
    assert torch.equal(expected[1] > 0, full)

    pattern = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool, device=device)
    expected = attention(query, keys, values, pattern.expand(size, size, size))
    assert_all_equal(attention(query, keys, values, pattern[None]), expected)
    assert torch.equal(expected[1] > 0, pattern.expand(size, size, size))

    for row in (pattern[1], pattern[1][None, None]):  # (S,) and (1, 1, S)
        expected = attention(query, keys, values, pattern[1].expand(size, size))
        assert_all_equal(attention(query, keys, values, row), expected)
    assert_all_equal(attention(query, keys, values, full | True), attention(query, keys, values))


@on_devices
@pytest.mark.parametrize("garbage", [0.0, 1e3, -1e3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_the_result(side, garbage, device):
    """One sequence alone, and the same one padded with garbage in a batch: outputs and gradients."""
    attention = make(device)
    query, keys, values = inputs(device=device)
    lengths = [4, S]
    shown = [slice(S - n, S) if side == "left" else slice(0, n) for n in lengths]
    mask = torch.zeros(B, S, dtype=torch.bool, device=device)
    for b, span in enumerate(shown):
        mask[b, span] = True
    padded_keys = keys.detach().masked_fill(~mask[..., None], garbage).requires_grad_()
    padded_values = values.detach().masked_fill(~mask[..., None], -garbage).requires_grad_()
    context, weights = attention(query, padded_keys, padded_values, mask)
    d_keys, d_values = gradients([context], [padded_keys, padded_values])
    for b, span in enumerate(shown):
        one = slice(b, b + 1)
        alone_keys, alone_values = (x[one, span].detach().requires_grad_() for x in (keys, values))
        alone = attention(query[one], alone_keys, alone_values)
        assert_equal(context[one], alone[0])
        assert_equal(weights[one, :, span], alone[1])
        upstream = normal(*context.shape, seed=20, device=device)[one]
        expected = torch.autograd.grad(alone[0], [alone_keys, alone_values], upstream)
        assert_equal(d_keys[one, span], expected[0])
        assert_equal(d_values[one, span], expected[1])
    assert weights[~mask[:, None].expand(B, T, S)].eq(0).all()
    assert d_keys[~mask].eq(0).all() and d_values[~mask].eq(0).all()


def test_order_of_the_keys_does_not_matter():
    attention = make()
    query, keys, values = inputs()
    mask = random_mask(B, T, S)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    context, weights = attention(query, keys, values, mask)
    permuted = attention(query, keys[:, order], values[:, order], mask[..., order])
    assert_all_equal(permuted, (context, weights[..., order]))
    wanted = [query, keys, values]
    assert_all_equal(gradients(permuted[:1], wanted), gradients([context], wanted))


def test_each_query_and_each_sequence_stands_alone():
    attention = make()
    query, keys, values = inputs()
    mask = random_mask(B, T, S)
    context, weights = attention(query, keys, values, mask)
    for b in range(B):
        for i in range(T):
            one, step = slice(b, b + 1), slice(i, i + 1)
            alone = attention(query[one, step], keys[one], values[one], mask[one, step])
            assert_all_equal(alone, (context[one, step], weights[one, step]))


def test_one_key_gets_all_the_weight():
    attention = make()
    query, keys, values = inputs(S=1)
    context, weights = attention(query, keys, values)
    assert weights.eq(1).all()
    assert_equal(context, values.expand(B, T, VALUE_DIM))
    query, keys, values = inputs()
    only = torch.zeros(B, S, dtype=torch.bool)
    only[0, 2] = only[1, 5] = True
    context, weights = attention(query, keys, values, only)
    assert_equal(weights, only[:, None].expand(B, T, S).double())
    assert_equal(context, torch.stack([values[0, 2], values[1, 5]])[:, None].expand(B, T, VALUE_DIM))


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_empty_source_gives_zeros_and_finite_gradients(dtype, device):
    attention = make(device, dtype)
    tensors = inputs(device=device, dtype=dtype)
    mask = torch.ones(B, T, S, dtype=torch.bool, device=device)
    mask[0] = mask[1, 2] = False
    empty = ~mask.any(-1)
    context, weights = result = attention(*tensors, mask)
    assert context[empty].eq(0).all() and weights[empty].eq(0).all()
    assert context[~empty].ne(0).all() and weights[~empty].gt(0).all()
    d_query, *others = gradients(result, [*tensors, *attention.parameters()])
    assert d_query[empty].eq(0).all() and d_query[~empty].ne(0).all()
    assert all(torch.isfinite(gradient).all() and gradient.ne(0).any() for gradient in others)
    assert all(gradient[0].eq(0).all() and gradient[1].ne(0).all() for gradient in others[:2])  # keys, values


def test_source_of_no_tokens_gives_zeros():
    attention = make()
    query, keys, values = tensors = inputs(S=0)
    for mask in (None, torch.ones(B, 0, dtype=torch.bool)):
        context, weights = attention(query, keys, values, mask)
        assert context.shape == (B, T, VALUE_DIM) and context.eq(0).all()
        assert weights.shape == (B, T, 0)
        wanted = [*tensors, *attention.parameters()]
        assert all(gradient.eq(0).all() for gradient in gradients([context], wanted))


# --- bad input


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((0, 5, 8), "query_dim=0"), ((4, -1, 8), "key_dim=-1"), ((4, 5, 0), "hidden_dim=0")],
)
def test_bad_sizes_are_named(sizes, said):
    with pytest.raises(ValueError, match=f"{said}, but it must be at least 1"):
        AdditiveAttention(*sizes)


Q, K, V = torch.zeros(2, 3, 4), torch.zeros(2, 6, 5), torch.zeros(2, 6, 7)
BAD = {
    "query without steps": (Q[:, 0], K, V, None, ValueError, ["query", "(2, 4)", "three axes", "size 4"]),
    "query size": (Q[..., :3], K, V, None, ValueError, ["query", "(2, 3, 3)", "size 4"]),
    "query and keys swapped": (K, Q, None, None, ValueError, ["query", "(2, 6, 5)", "size 4"]),
    "keys size": (Q, Q, None, None, ValueError, ["keys", "(2, 3, 4)", "size 5"]),
    "keys axes": (Q, K[0], V, None, ValueError, ["keys", "(6, 5)", "three axes"]),
    "values axes": (Q, K, V[0], None, ValueError, ["values", "(6, 7)", "three axes"]),
    "batch of the query": (Q[:1], K, V, None, ValueError, ["query 1", "keys 2", "values 2"]),
    "batch of the values": (Q, K, V[:1], None, ValueError, ["query 2", "keys 2", "values 1"]),
    "number of values": (Q, K, V[:, :4], None, ValueError, ["6 keys", "4 values"]),
    "mask (B, T)": (Q, K, V, random_mask(2, 3), ValueError, ["(2, 6)", "(2, 3)", "(1, T, S)"]),
    "mask (T, S)": (Q, K, V, random_mask(3, 6), ValueError, ["(2, 6)", "(3, 6)", "(1, T, S)"]),
    "mask (1, S)": (Q, K, V, random_mask(1, 6), ValueError, ["(2, 6)", "(1, 6)"]),
    "mask (B, S, T)": (Q, K, V, random_mask(2, 6, 3), ValueError, ["(2, 6, 3)", "(2, 3, 6)"]),
    "mask with heads": (Q, K, V, random_mask(2, 1, 3, 6), ValueError, ["(2, 1, 3, 6)", "(2, 3, 6)"]),
    "float mask": (Q, K, V, torch.ones(2, 6), TypeError, ["torch.float32", "torch.bool"]),
    "integer mask": (Q, K, V, torch.ones(2, 3, 6).long(), TypeError, ["torch.int64", "torch.bool"]),
    "mask elsewhere": (Q, K, V, torch.ones(2, 6, dtype=torch.bool, device="meta"), ValueError, ["meta", "cpu"]),
}


@pytest.mark.parametrize(("query", "keys", "values", "mask", "error", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_named_with_its_numbers(query, keys, values, mask, error, said):
    attention = AdditiveAttention(4, 5, 8)
    with pytest.raises(error) as caught:
        attention(query, keys, values, mask)
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)


def test_one_number_of_each_kind_is_enough_and_v_begins_small_and_on_both_sides_of_zero():
    assert AdditiveAttention(1, 1, 1)(torch.ones(1, 1, 1), torch.ones(1, 2, 1))[1].shape == (1, 1, 2)
    torch.manual_seed(0)
    v = AdditiveAttention(2, 3, 1000).v.detach() * 1000**0.5
    assert v.min() >= -1 and v.max() <= 1 and abs(v.mean()) < 0.1 and abs(v.abs().mean() - 0.5) < 0.05
