"""What scaled dot-product attention promises: its two paths agree, empty rows are zero, bad input is named."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import (
    check_at_least_one,
    check_mask,
    check_shared_heads,
    masked_softmax,
    scaled_dot_product_attention,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
B, H, T, S, D, DV = 2, 3, 4, 7, 5, 6
# float32 and float64 differ between the paths by rounding; bfloat16 has eight bits.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2}

on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64", "bfloat16"])
on_both_paths = pytest.mark.parametrize("return_weights", [False, True], ids=["fused", "explicit"])


def inputs(dtype=torch.float64, device="cpu", seed=0, lead=(B, H), T=T, S=S):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((T, D), (S, D), (S, DV))
    tensors = [torch.randn(*lead, *size, generator=generator, dtype=torch.float64) for size in sizes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def random_mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def attend(query, key, value, mask=None, *, return_weights=False, **options):
    """The output alone, from either path."""
    result = scaled_dot_product_attention(query, key, value, mask, return_weights=return_weights, **options)
    return result[0] if return_weights else result


def gradients(output, wanted):
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad(output, wanted, upstream.to(output))


def assert_equal(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# --- by hand


@on_both_paths
def test_small_case_by_hand(return_weights):
    """Scores log 1, log 3 and log 4 after scaling by 1/2 give weights 1/8, 3/8 and 4/8."""
    query = torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    key = torch.zeros(3, 4, dtype=torch.float64)
    key[:, 0] = torch.tensor([1.0, 3.0, 4.0]).double().log()
    value = torch.tensor([[8.0, 0.0], [0.0, 8.0], [16.0, 80.0]], dtype=torch.float64)
    assert_equal(attend(query, key, value, return_weights=return_weights), torch.tensor([[9.0, 43.0]]).double())
    only_two = torch.tensor([[True, True, False]])  # weights 1/4 and 3/4
    assert_equal(
        attend(query, key, value, only_two, return_weights=return_weights), torch.tensor([[2.0, 6.0]]).double()
    )


@on_both_paths
def test_scale_is_the_inverse_root_of_the_head_dimension_unless_given(return_weights):
    query, key, value = inputs()
    default = attend(query, key, value, return_weights=return_weights)
    assert_equal(attend(query, key, value, scale=1 / math.sqrt(D), return_weights=return_weights), default)
    assert_equal(attend(query * 3, key, value, scale=D**-0.5 / 3, return_weights=return_weights), default)
    uniform = attend(query, key, value, scale=0.0, return_weights=return_weights)  # 0 is a scale, not "none given"
    assert_equal(uniform, value.mean(-2, keepdim=True).expand(B, H, T, DV))


def test_weights_are_asked_for_and_only_then_the_matrix_is_built(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    query, key, value = inputs()
    assert isinstance(scaled_dot_product_attention(query, key, value), torch.Tensor)
    assert calls == [1]
    output, weights = scaled_dot_product_attention(query, key, value, return_weights=True)
    assert calls == [1]
    assert_equal(weights @ value, output)


# --- the two paths agree


@on_devices
@in_dtypes
@pytest.mark.parametrize(
    "shape",
    [None, (), (S,), (T, 1), (1, S), (T, S), (H, T, S), (H, 1, S), (B, 1, 1, S), (B, 1, T, S), (B, H, T, S)],
    ids=lambda shape: "no mask" if shape is None else str(shape),
)
def test_fused_equals_explicit(shape, dtype, device):
    """For every mask that broadcasts; about half of its entries, and some whole rows, are forbidden."""
    tensors = inputs(dtype, device)
    mask = None if shape is None else random_mask(*shape, seed=len(shape)).to(device)
    fused, explicit = (attend(*tensors, mask, return_weights=flag) for flag in (False, True))
    assert_equal(fused, explicit, TOLERANCE[dtype])
    for got, want in zip(gradients(fused, tensors), gradients(explicit, tensors), strict=True):
        assert_equal(got, want, TOLERANCE[dtype])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    T=st.integers(1, 9),
    S=st.integers(0, 9),
    density=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 100),
)
def test_fused_equals_explicit_for_any_shape(lead, T, S, density, seed):
    tensors = inputs(lead=lead, T=T, S=S, seed=seed)
    mask = torch.rand((*lead, T, S), generator=torch.Generator().manual_seed(seed)) < density
    fused = attend(*tensors, mask)
    explicit, weights = scaled_dot_product_attention(*tensors, mask, return_weights=True)
    assert_equal(fused, explicit)
    assert_equal(weights.sum(-1), mask.any(-1).double())
    for got, want in zip(gradients(fused, tensors), gradients(explicit, tensors), strict=True):
        assert_equal(got, want)


@on_both_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_of_the_input_is_the_dtype_of_the_output(dtype, return_weights):
    query, key, value = inputs(dtype)
    result = scaled_dot_product_attention(query, key, value, random_mask(T, S), return_weights=return_weights)
    assert all(tensor.dtype == dtype for tensor in (result if return_weights else [result]))


@on_both_paths
def test_float64_is_computed_in_float64(return_weights):
    """Not in float32 and cast back: the definition in exact arithmetic is met to 1e-14."""
    query, key, value = inputs(lead=(), T=1, S=3)
    scores = [math.fsum((q * k).item() for q, k in zip(query[0], row, strict=True)) / math.sqrt(D) for row in key]
    total = math.fsum(math.exp(score) for score in scores)
    expected = sum(math.exp(score) / total * row for score, row in zip(scores, value, strict=True))
    assert_equal(attend(query, key, value, return_weights=return_weights)[0], expected, 1e-14)


# --- empty rows


def mask_with_empty_rows():
    mask = random_mask(B, 1, T, S)
    mask[..., 0] = True
    mask[0, 0, 1] = mask[1, 0, 0] = mask[1, 0, 3] = False
    mask[..., 4] = False  # a key that no query sees
    return mask


@on_devices
@in_dtypes
@on_both_paths
def test_empty_rows_are_zero_and_so_are_their_gradients(return_weights, dtype, device):
    query, key, value = inputs(dtype, device)
    mask = mask_with_empty_rows().to(device)
    empty = ~mask.any(-1).expand(B, H, T)
    assert empty.sum() == 3 * H
    result = scaled_dot_product_attention(query, key, value, mask, return_weights=return_weights)
    output = result[0] if return_weights else result
    assert output[empty].eq(0).all() and output[~empty].ne(0).all()
    if return_weights:
        assert result[1][empty].eq(0).all() and torch.isfinite(result[1]).all()
    d_query, d_key, d_value = gradients(output, (query, key, value))
    assert all(torch.isfinite(gradient).all() for gradient in (d_query, d_key, d_value))
    assert d_query[empty].eq(0).all() and d_query[~empty].ne(0).all()
    for gradient in (d_key, d_value):
        assert gradient[..., 4, :].eq(0).all() and gradient[..., 0, :].ne(0).all()


@on_both_paths
def test_empty_rows_leave_the_others_alone(return_weights):
    """Outputs and gradients are those of a call without the empty queries."""
    query, key, value = inputs(lead=())
    mask = torch.ones(T, S, dtype=torch.bool)
    mask[[1, 3]] = False
    output = attend(query, key, value, mask, return_weights=return_weights)
    without = attend(query[[0, 2]], key, value, return_weights=return_weights)
    assert_equal(output[[0, 2]], without)
    upstream = torch.randn(T, DV, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad(output, (query, key, value), upstream)
    want = torch.autograd.grad(without, (query, key, value), upstream[[0, 2]])
    for one, other in zip(got, want, strict=True):
        assert_equal(one, other)


@on_both_paths
@in_dtypes
def test_nothing_to_attend_to_at_all(dtype, return_weights):
    tensors = inputs(dtype)
    output = attend(*tensors, torch.zeros(T, S, dtype=torch.bool), return_weights=return_weights)
    assert output.eq(0).all()
    assert all(gradient.eq(0).all() for gradient in gradients(output, tensors))
    tensors = inputs(dtype, S=0)
    output = attend(*tensors, return_weights=return_weights)
    assert output.shape == (B, H, T, DV) and output.eq(0).all()
    assert gradients(output, tensors)[0].eq(0).all()


def test_empty_rows_do_not_depend_on_the_kernel(monkeypatch):
    """Some kernels give NaN for an empty row; neither it nor its gradient may come through."""

    def naive(query, key, value, attn_mask, scale, is_causal=False):
        scores = query @ key.transpose(-2, -1) * scale
        return scores.masked_fill(~attn_mask, float("-inf")).softmax(-1) @ value

    tensors = inputs()
    mask = mask_with_empty_rows()
    assert naive(*tensors, mask, 1.0).isnan().any()
    expected = attend(*tensors, mask, return_weights=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", naive)
    output = attend(*tensors, mask)
    assert_equal(output, expected)
    for got, want in zip(gradients(output, tensors), gradients(expected, tensors), strict=True):
        assert_equal(got, want)


@on_both_paths
def test_a_nan_that_came_in_is_not_taken_for_an_empty_row(return_weights):
    query, key, value = (tensor.detach() for tensor in inputs())
    mask = mask_with_empty_rows()
    expected = attend(query, key, value, mask, return_weights=return_weights)
    query[0, 1, 2] = float("nan")
    output = attend(query, key, value, mask, return_weights=return_weights)
    assert output[0, 1, 2].isnan().all()
    expected[0, 1, 2] = output[0, 1, 2] = 0.0
    assert torch.equal(output, expected)


# --- invariants


def test_weights_are_a_distribution_over_the_allowed_keys():
    mask = mask_with_empty_rows().expand(B, H, T, S)
    _, weights = scaled_dot_product_attention(*inputs(), mask, return_weights=True)
    assert_equal(weights.sum(-1), mask.any(-1).double())
    assert weights[~mask].eq(0).all() and weights[mask].gt(0).all()


@on_both_paths
def test_order_of_the_keys_does_not_matter(return_weights):
    tensors = inputs()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    mask = random_mask(B, 1, T, S)
    expected = attend(*tensors, mask, return_weights=return_weights)
    query, key, value = tensors
    actual = attend(query, key[..., order, :], value[..., order, :], mask[..., order], return_weights=return_weights)
    assert_equal(actual, expected)
    for got, want in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        assert_equal(got, want)
    if return_weights:
        weights = scaled_dot_product_attention(*tensors, mask, return_weights=True)[1]
        permuted = [query, key[..., order, :], value[..., order, :], mask[..., order]]
        assert_equal(scaled_dot_product_attention(*permuted, return_weights=True)[1], weights[..., order])


@on_both_paths
def test_order_of_the_queries_is_the_order_of_the_rows(return_weights):
    query, key, value = inputs()
    order = torch.tensor([2, 0, 3, 1])
    mask = random_mask(T, S)
    expected = attend(query, key, value, mask, return_weights=return_weights)[..., order, :]
    assert_equal(attend(query[..., order, :], key, value, mask[order], return_weights=return_weights), expected)


@on_both_paths
def test_the_same_vector_added_to_every_key_changes_nothing(return_weights):
    """query · (key + u) = query · key + query · u: every score of a row moves by the same number."""
    query, key, value = inputs()
    mask = random_mask(T, S)
    u = 3 * torch.randn(D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = attend(query, key, value, mask, return_weights=return_weights)
    assert_equal(attend(query, key + u, value, mask, return_weights=return_weights), expected)


@pytest.mark.parametrize("constant", [-1e4, 7.0, 1e4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_added_to_the_scores_changes_nothing(masked, constant):
    scores = torch.randn(B, T, S, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = random_mask(B, T, S) if masked else None
    assert_equal(masked_softmax(scores + constant, mask), masked_softmax(scores, mask), 1e-11)


@on_both_paths
def test_forbidden_keys_and_values_have_no_influence(return_weights):
    query, key, value = (tensor.detach() for tensor in inputs())
    mask = mask_with_empty_rows()
    expected = attend(query, key, value, mask, return_weights=return_weights)
    key[..., 4, :], value[..., 4, :] = 1e6, -1e6
    assert torch.equal(attend(query, key, value, mask, return_weights=return_weights), expected)


@on_both_paths
def test_inputs_are_left_as_they_were(return_weights):
    tensors = [*inputs(), mask_with_empty_rows()]
    before = [tensor.detach().clone() for tensor in tensors]
    gradients(attend(*tensors, return_weights=return_weights), tensors[:3])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


def test_masked_softmax_by_hand():
    scores = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    scores[0, :2] = torch.tensor([1.0, 3.0]).double().log()
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, False]])
    expected = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    assert_equal(masked_softmax(scores, mask), expected)
    assert_equal(masked_softmax(scores[1]), torch.full((3,), 1 / 3, dtype=torch.float64))


@on_both_paths
def test_gradients_are_those_of_finite_differences(return_weights):
    tensors = inputs(lead=(2,), T=3, S=4)
    mask = random_mask(2, 3, 4)
    mask[0, 1] = False
    assert torch.autograd.gradcheck(
        lambda *args: scaled_dot_product_attention(*args, mask, return_weights=return_weights), tensors
    )


# --- bad input

ZEROS = {name: torch.zeros(shape) for name, shape in (("q", (2, 3, 4, 5)), ("k", (2, 3, 7, 5)), ("v", (2, 3, 7, 6)))}
Q, K, V = ZEROS.values()
BAD = {
    "one axis": (torch.zeros(5), K, V, None, ValueError, ["(5,)", "(2, 3, 7, 5)", "(2, 3, 7, 6)", "two axes"]),
    "one axis, value": (Q, K, torch.zeros(7), None, ValueError, ["(7,)", "two axes"]),
    "batch": (Q, K[:1], V, None, ValueError, ["leading", "(2, 3, 4, 5)", "(1, 3, 7, 5)", "(2, 3, 7, 6)"]),
    "heads": (Q, K, V[:, :1], None, ValueError, ["leading", "(2, 3, 4, 5)", "(2, 1, 7, 6)"]),
    "axes": (Q, K[0], V[0], None, ValueError, ["leading", "(2, 3, 4, 5)", "(3, 7, 5)", "(3, 7, 6)"]),
    "D": (Q[..., :4], K, V, None, ValueError, ["D=4", "D=5", "(2, 3, 4, 4)", "(2, 3, 7, 5)"]),
    "S": (Q, K, V[..., :4, :], None, ValueError, ["7 keys", "4 values", "(2, 3, 4, 6)"]),
    "dtype": (Q, K.double(), V.bfloat16(), None, TypeError, ["torch.float32", "torch.float64", "torch.bfloat16"]),
    "integers": (Q.long(), K.long(), V.long(), None, TypeError, ["torch.int64"]),
    "device": (Q, K.to("meta"), V, None, ValueError, ["query cpu", "key meta", "value cpu"]),
    "device of the mask": (Q, K, V, torch.ones(4, 7, dtype=torch.bool, device="meta"), ValueError, ["cpu", "meta"]),
    "additive mask": (Q, K, V, torch.zeros(4, 7), TypeError, ["torch.float32", "torch.bool"]),
    "0/1 mask": (Q, K, V, torch.ones(4, 7, dtype=torch.long), TypeError, ["torch.int64", "torch.bool"]),
    "mask (S, T)": (Q, K, V, random_mask(7, 4), ValueError, ["(7, 4)", "(2, 3, 4, 7)"]),
    "mask (B, S)": (Q, K, V, random_mask(2, 7), ValueError, ["(2, 7)", "(2, 3, 4, 7)"]),
    "mask (B, T, S)": (Q, K, V, random_mask(2, 4, 7), ValueError, ["(2, 4, 7)", "(2, 3, 4, 7)"]),
    "mask of more axes": (Q, K, V, random_mask(1, 2, 3, 4, 7), ValueError, ["(1, 2, 3, 4, 7)", "(2, 3, 4, 7)"]),
}


@on_both_paths
@pytest.mark.parametrize(("query", "key", "value", "mask", "error", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_named_with_its_numbers(query, key, value, mask, error, said, return_weights):
    with pytest.raises(error) as caught:
        scaled_dot_product_attention(query, key, value, mask, return_weights=return_weights)
    missing = [text for text in said if text not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def test_a_mask_is_checked_right_when_compiled():
    """`m in (1, n)` is answered wrongly by torch.compile as soon as n is a symbol, which it is from the second S on."""

    def checked(x, mask):
        check_mask(mask, (*x.shape, x.shape[-1]))
        return x + 1

    torch._dynamo.reset()
    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    compiled(torch.zeros(2, 8), None)
    compiled(torch.zeros(2, 9), None)
    compiled(torch.zeros(2, 10), torch.ones(1, 10, dtype=torch.bool))


def test_check_mask():
    assert check_mask(None, (2, 3)) is None
    assert check_mask(random_mask(1, 3), (4, 2, 3)) is None
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        check_mask(random_mask(2, 3), (3, 2))
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(2, 3\)"):
        check_mask(random_mask(1, 2, 3), (2, 3))
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        check_mask(torch.ones(2, 3, dtype=torch.uint8), (2, 3))


def test_a_size_that_is_a_fraction_is_a_type_error():
    with pytest.raises(TypeError, match=r"window=2\.5, but it must be an integer"):
        check_at_least_one(block=3, window=2.5)


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (torch.zeros(4, 6), ValueError, r"bias has shape \(4, 6\), which does not broadcast to \(2, 3, 4, 7\)"),
        (torch.zeros(4, 7).double(), TypeError, "dtypes differ: bias torch.float64, query torch.float32"),
        (torch.zeros(4, 7, device="meta"), ValueError, "devices differ: bias meta, query cpu"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(bias, error, message, return_weights):
    query, key = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 7, 5)
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(query, key, key, bias=bias, return_weights=return_weights)


@pytest.mark.parametrize("one", range(3))
def test_a_tensor_of_one_axis_is_refused(one):
    given = [torch.zeros(4, 5)] * 3
    given[one] = torch.zeros(5)
    with pytest.raises(ValueError, match="query, key and value need at least two axes"):
        scaled_dot_product_attention(*given)


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        ((2, 4, 3, 5), (2, 7, 5), "need four axes"),
        ((4, 3, 5), (2, 2, 7, 5), "need four axes"),
        ((2, 4, 3, 5), (2, 0, 7, 5), "query has 4 heads, which do not share 0 key heads evenly"),
        ((2, 0, 3, 5), (2, 2, 7, 5), "query has 0 heads, which do not share 2 key heads evenly"),
        ((2, 4, 3, 5), (2, 3, 7, 5), "query has 4 heads, which do not share 3 key heads evenly"),
        ((2, 4, 8, 5), (2, 2, 7, 5), "there are 8 queries but 7 keys"),
    ],
)
def test_heads_that_cannot_share_are_refused(query, key, message):
    with pytest.raises(ValueError, match=message):
        check_shared_heads(torch.zeros(query), torch.zeros(key), torch.zeros(key))
