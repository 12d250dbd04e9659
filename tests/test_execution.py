"""What execution promises: the same attention, whatever the parts and tiles, with O(T) memory, and no NaN."""

from functools import reduce
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import scaled_dot_product_attention
from attncourse.execution import attend_part, finish, merge, online_attention, tiled_attention, tiled_forward
from attncourse.lab.measure import allocated_bytes, peak_bytes
from attncourse.masks import causal_mask
from tests.test_bahdanau import assert_equal, normal, on_devices

B, H, D, DV = 2, 3, 4, 5
FORMS = {
    "online": lambda *given, **options: online_attention(*given, tile=4, **options),
    "online, one tile": online_attention,
    "tiled": lambda *given, **options: tiled_attention(*given, query_tile=3, key_tile=4, **options),
    "tiled, other sizes": lambda *given, **options: tiled_attention(*given, query_tile=5, key_tile=2, **options),
    "tiled, one tile": tiled_attention,
}
MASKS = {
    "none": None,
    "padding": lambda T, S: normal(B, 1, 1, S, seed=4) > -0.5,
    "one padding": lambda T, S: normal(S, seed=4) > -0.5,
    "by head": lambda T, S: normal(B, H, T, S, seed=4) > -0.5,
    "by query": lambda T, S: normal(B, 1, T, 1, seed=4) > -0.5,
    "a pattern": lambda T, S: normal(T, S, seed=4) > -0.5,
    "nothing allowed": lambda T, S: torch.zeros(B, 1, T, S, dtype=torch.bool),
}


def tensors(T, S, device="cpu", dtype=torch.float64):
    options = {"device": device, "dtype": dtype}
    return tuple(
        normal(B, H, n, width, seed=seed, **options) for seed, (n, width) in enumerate([(T, D), (S, D), (S, DV)])
    )


def whole(query, key, value, mask=None, *, causal=True, scale=None):
    """The definition, from all scores."""
    T, S = query.shape[-2], key.shape[-2]
    pattern = causal_mask(T, S, device=query.device) if causal and T else torch.ones(T, S, dtype=torch.bool)
    pattern = pattern.to(query.device) if mask is None else pattern.to(query.device) & mask
    return scaled_dot_product_attention(query, key, value, pattern, scale=scale, return_weights=True)[0]


@on_devices
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 7), (3, 8), (5, 5), (13, 13), (6, 11)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_attention(form, T, S, causal, mask, device):
    given = tensors(T, S, device)
    mask = MASKS[mask] and MASKS[mask](T, S).to(device)
    expected = whole(*given, mask, causal=causal)
    output = FORMS[form](*given, mask, causal=causal)
    assert_equal(output, expected, 1e-12)
    grad = normal(*output.shape, seed=9, device=device)
    wanted = torch.autograd.grad(expected, given, grad)
    for a, b in zip(torch.autograd.grad(output, given, grad), wanted, strict=True):
        assert_equal(a, b, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_scale_is_used_by_both_passes(form):
    given = tensors(6, 9)
    output, expected = FORMS[form](*given, scale=0.9), whole(*given, scale=0.9)
    assert_equal(output, expected, 1e-12)
    for a, b in zip(torch.autograd.grad(output.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True):
        assert_equal(a, b, 1e-12)


def test_the_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(FORMS["tiled"], tensors(4, 6))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 2)])
def test_any_leading_axes(form, lead):
    given = normal(*lead, 5, D, seed=1), normal(*lead, 7, D, seed=2), normal(*lead, 7, DV, seed=3)
    output, expected = FORMS[form](*given), whole(*given)
    assert_equal(output, expected, 1e-12)
    for a, b in zip(torch.autograd.grad(output.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True):
        assert_equal(a, b, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_no_queries_and_no_keys(form):
    query, key, value = tensors(3, 4)
    assert FORMS[form](query[:, :, :0], key, value).shape == (B, H, 0, DV)
    output = FORMS[form](query, key[:, :, :0], value[:, :, :0], causal=False)
    assert_equal(output, torch.zeros(B, H, 3, DV, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_scores_too_large_for_exp_are_no_matter(form):
    """exp(89) is infinite in float32: only the running maximum keeps sums finite, wherever the largest score stands."""
    query, key, value = (x.detach().float() for x in tensors(7, 9))
    for at in (0, 4, 8):
        large = key.clone()
        large[:, :, at] *= 1000
        assert_equal(FORMS[form](query, large, value), whole(query, large, value), 1e-5)
    shifted = torch.cat([key, torch.full_like(key[..., :1], -3000.0)], -1)  # every score far below 0
    query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
    assert_equal(FORMS[form](query, shifted, value), whole(query, shifted, value), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_sums_are_wide_where_the_inputs_are_narrow(form, dtype):
    query = torch.zeros(1, 1, 1, D, dtype=dtype)
    key, value = torch.zeros(1, 1, 3000, D, dtype=dtype), torch.ones(1, 1, 3000, DV, dtype=dtype)
    output = FORMS[form](query, key, value)
    assert output.dtype == dtype and output.eq(1).all()  # 3,000 ones: a bfloat16 sum stops at 256
    part = attend_part(query, key, value)
    assert {x.dtype for x in part} == {torch.float32} and part.total.eq(3000).all()
    given = tensors(9, 9, dtype=dtype)
    wide = [x.detach().float().requires_grad_() for x in given]
    output, expected = FORMS[form](*given), whole(*wide)
    assert_equal(output.float(), expected, 0.02)
    grads = torch.autograd.grad(output.sum(), given)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert a.dtype == dtype
        assert_equal(a.float(), b, 0.05)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 9), max_size=6), order=st.randoms(use_true_random=False))
def test_merging_is_associative_and_in_any_order(cuts, order):
    """Any cut into parts, empty ones too, merged in any order and by any brackets, is the whole."""
    query, key, value = (x.detach() for x in tensors(3, 9))
    allowed = normal(B, H, 3, 9, seed=7) > 0
    edges = [0, *sorted(cuts), 9]
    parts = [
        attend_part(query, key[:, :, a:b], value[:, :, a:b], allowed[..., a:b]) for a, b in pairwise(edges) if b > a
    ]
    parts += [attend_part(query, key, value, torch.zeros(9, dtype=torch.bool))]  # a part where nothing is allowed
    order.shuffle(parts)
    while len(parts) > 1:
        i = order.randrange(len(parts) - 1)
        parts[i : i + 2] = [merge(*parts[i : i + 2])]
    assert_equal(finish(parts[0]), whole(query, key, value, allowed, causal=False), 1e-12)


def test_a_merge_that_forgets_to_rescale_is_seen():
    """The test above is able to fail."""
    query, key, value = (x.detach() for x in tensors(3, 9))
    parts = [attend_part(query, key[:, :, a : a + 3], value[:, :, a : a + 3]) for a in (0, 3, 6)]

    def forgetful(a, b):
        return merge(a, b)._replace(total=a.total + b.total)

    difference = finish(reduce(forgetful, parts)) - whole(query, key, value, causal=False)
    assert difference.abs().max() > 0.1


def test_memory_grows_with_tokens_and_not_with_their_square():
    """Counted: no tensor is as large as the scores, forward or backward, and the most that is held is linear."""

    def step(T, form):
        given = [torch.ones(1, 2, T, 8, requires_grad=True) for _ in range(3)]
        return lambda: form(*given).sum().backward()

    def tiled(*given):
        return tiled_attention(*given, query_tile=64, key_tile=64)

    assert allocated_bytes(step(2048, tiled))[1] <= 2 * 2048 * 8 * 4  # as large as the inputs
    assert allocated_bytes(step(2048, whole))[1] >= 2 * 2048**2 * 4
    assert peak_bytes(step(2048, tiled)) < 2.5 * peak_bytes(step(1024, tiled))
    assert peak_bytes(step(1024, whole)) > 3 * peak_bytes(step(512, whole))


def test_tiles_above_the_diagonal_are_skipped():
    query, key, value = (x.detach() for x in tensors(64, 64))
    made = allocated_bytes(lambda: tiled_attention(query, key, value, query_tile=8, key_tile=8))[0]
    all_of_it = allocated_bytes(lambda: tiled_attention(query, key, value, causal=False, query_tile=8, key_tile=8))[0]
    assert made < 0.7 * all_of_it


def test_inputs_stay_as_they_are_and_a_second_gradient_is_refused():
    given = tensors(5, 5)
    before = [x.detach().clone() for x in given]
    output = tiled_attention(*given)
    (first,) = torch.autograd.grad(output.square().sum(), given[0], create_graph=True)
    for x, old in zip(given, before, strict=True):
        assert torch.equal(x, old)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("form", [online_attention, tiled_attention])
def test_what_does_not_fit_is_refused(form):
    query, key, value = tensors(5, 4)
    with pytest.raises(ValueError, match="there are 5 queries but 4 keys: where causal"):
        form(query, key, value)
    with pytest.raises(ValueError, match="there are 4 keys but 3 values"):
        form(query, key, value[:, :, :3], causal=False)
    with pytest.raises(TypeError, match="True where a query may attend"):
        form(query, key, value, torch.ones(4), causal=False)
    with pytest.raises(ValueError, match="does not broadcast"):
        form(query, key, value, torch.ones(6, 4, dtype=torch.bool), causal=False)
    size = {"tile": 0} if form is online_attention else {"key_tile": 0}
    with pytest.raises(ValueError, match="tile=0, but it must be at least 1"):
        form(query, key, value, causal=False, **size)


@pytest.mark.parametrize("form", [online_attention, tiled_attention])
def test_autocast_leaves_the_sums_wide(form):
    given = [x.detach().float().requires_grad_() for x in tensors(9, 9)]
    (wanted,) = torch.autograd.grad(form(*given).sum(), given[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = form(*given)
        if form is tiled_attention:  # its own backward pass; PyTorch's, of the other, is to be called outside
            (found,) = torch.autograd.grad(output.sum(), given[0])
            assert_equal(found, wanted, 1e-5)
    assert output.dtype == torch.float32
    assert_equal(output, whole(*given), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_scale_of_zero_weighs_all_keys_alike(form):
    query, key, value = tensors(3, 3)
    output = FORMS[form](query, key, value, causal=False, scale=0.0)
    assert_equal(output, value.mean(2, keepdim=True).expand(-1, -1, 3, -1), 1e-12)


def test_the_backward_pass_sums_wide_and_from_a_wide_logarithm():
    query, key = torch.zeros(1, 1, 2000, 3, dtype=torch.bfloat16), torch.zeros(1, 1, 1, 3, dtype=torch.bfloat16)
    value = torch.zeros(1, 1, 1, 3, dtype=torch.bfloat16, requires_grad=True)
    (found,) = torch.autograd.grad(tiled_attention(query, key, value, causal=False, query_tile=1).sum(), value)
    assert found.eq(2000).all()  # a bfloat16 sum of ones stops at 256
    query, key = torch.full((1, 1, 1, 3), 10.0).bfloat16(), torch.full((1, 1, 3, 3), 5.0).bfloat16()
    value = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    (found,) = torch.autograd.grad(tiled_attention(query, key, value).sum(), value)
    assert_equal(found.float(), torch.full((1, 1, 3, 3), 1 / 3), 2e-3)
    assert tiled_forward(query, key, value, None, False, 0.5, 2, 2)[1].dtype == torch.float32


def test_the_online_form_holds_one_tile_of_scores():
    query, key, value = (torch.ones(1, 1, 512, 8) for _ in range(3))
    assert allocated_bytes(lambda: online_attention(query, key, value, tile=16))[1] <= 512 * 16 * 4
    with pytest.raises(ValueError, match="query_tile=0"):
        tiled_attention(query, key, value, query_tile=0)
