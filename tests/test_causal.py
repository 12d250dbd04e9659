"""What causal attention promises: nothing flows back from the future, and any chunking equals one pass."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.causal import CausalSelfAttention, causal_attention
from attncourse.self_attention import SelfAttention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices, random_mask
from tests.test_self_attention import filled

B, T, D_MODEL, D_HEAD = 2, 6, 6, 4


def make(device="cpu", dtype=torch.float64, **options):
    return filled(CausalSelfAttention(D_MODEL, D_HEAD, **options), device, dtype)


def influence(layer, x):
    """(T, T): the largest |∂ output_i / ∂ x_j|, over batch and features."""
    jacobian = torch.autograd.functional.jacobian(layer, x)  # (B, T, d, B, T, d)
    return jacobian.abs().amax((0, 2, 3, 5))


@on_devices
@pytest.mark.parametrize("return_weights", [False, True], ids=["fused", "explicit"])
def test_the_jacobian_is_zero_outside_the_mask(return_weights, device):
    layer, x = make(device), normal(B, T, D_MODEL, seed=9, device=device)
    found = influence(lambda x: layer(x, return_weights=True)[0] if return_weights else layer(x), x)
    past = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    assert found[~past].eq(0).all()
    assert found[past].min() > 1e-6
    without = make(device, causal=False)
    assert influence(without, x).min() > 1e-6


def test_the_future_leaves_earlier_outputs_alone():
    layer, x = make(), normal(B, T, D_MODEL, seed=9)
    changed = x.detach().clone()
    changed[:, 4:] = 100.0
    assert torch.equal(layer(x)[:, :4], layer(changed)[:, :4])
    assert (layer(x)[:, 4:] - layer(changed)[:, 4:]).abs().min() > 1e-3


@on_devices
@pytest.mark.parametrize("shape", [None, (T, T), (B, 1, T), (B, 1, 1, T), (B, T, T)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_both_paths_agree(causal, shape, device):
    layer, x = make(device, causal=causal), normal(B, T, D_MODEL, seed=9, device=device)
    mask = None if shape is None else random_mask(*shape).to(device)
    output, weights = layer(x, mask=mask, return_weights=True)
    fused = layer(x, mask=mask)
    assert_equal(fused, output)
    wanted = [x, *layer.parameters()]
    assert_all_equal(gradients([fused], wanted), gradients([output], wanted))
    if causal:
        assert weights.triu(1).eq(0).all()


def test_without_the_restriction_it_is_self_attention():
    layer, own = make(causal=False), SelfAttention(D_MODEL, D_HEAD).double()
    own.load_state_dict(layer.state_dict(), strict=True)
    x = normal(B, T, D_MODEL, seed=9)
    assert_equal(layer(x), own(x))


@on_devices
@pytest.mark.parametrize(("T", "S"), [(3, 7), (1, 5), (5, 5), (6, 4)])
@pytest.mark.parametrize("return_weights", [False, True], ids=["fused", "explicit"])
def test_fewer_queries_than_keys_are_the_last_ones(T, S, return_weights, device):
    """The last query sees the last key; with more queries than keys the first ones stand before every key."""
    query = normal(B, T, 4, seed=1, device=device)
    key, value = normal(B, S, 4, seed=2, device=device), normal(B, S, 3, seed=3, device=device)
    result = causal_attention(query, key, value, return_weights=return_weights)
    output = result[0] if return_weights else result
    for i in range(T):
        end = S - T + i + 1
        if end <= 0:
            assert output[:, i].eq(0).all()
            continue
        scores = query[:, i : i + 1] @ key[:, :end].transpose(1, 2) / 2
        assert_equal(output[:, i : i + 1], scores.softmax(-1) @ value[:, :end])


@st.composite
def partitions(draw, length):
    cuts = draw(st.sets(st.integers(1, length - 1)))
    ends = [0, *sorted(cuts), length]
    return [b - a for a, b in pairwise(ends)]


@settings(max_examples=60, deadline=None)
@given(partitions(9), st.integers(0, 3))
def test_any_chunking_equals_one_pass(chunks, padding):
    """Also with the second sequence padded on the left."""
    layer, x = make(), normal(B, 9, D_MODEL, seed=9).detach()
    real = torch.arange(9) >= torch.tensor([0, padding])[:, None]  # (B, 9)
    cache, outputs, start = layer.new_cache(B, 9), [], 0
    for length in chunks:
        outputs.append(layer(x[:, start : start + length], mask=real[:, None, : start + length], cache=cache))
        start += length
    whole = layer(x, mask=real[:, None])
    assert cache.length == 9
    assert_equal(torch.cat(outputs, 1), whole)


def test_a_cache_stores_keys_and_values_and_nothing_else():
    layer = make(dtype=torch.float32)
    cache = layer.new_cache(B, 10)
    layer(normal(B, 3, D_MODEL, seed=9, dtype=torch.float32), cache=cache)
    assert cache.length == 3
    assert cache.nbytes == B * 10 * 2 * D_HEAD * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 3, 6)}, "the cache holds 4 of at most 6 tokens, so 3 more do not fit: .*max_length=7"),
        ({"x": torch.zeros(3, 1, 6)}, "the cache was made for batch_size=2, but x has 3"),
        (
            {"mask": torch.ones(2, 3, dtype=torch.bool)},
            r"mask has shape \(2, 3\), which does not broadcast to \(2, 2, 6\)",
        ),
    ],
)
def test_what_does_not_fit_the_cache_is_refused_and_nothing_is_stored(arguments, message):
    layer = CausalSelfAttention(6)
    cache = layer.new_cache(2, 6)
    layer(torch.ones(2, 4, 6), cache=cache)
    before = cache.key.clone()
    with pytest.raises(ValueError, match=message):
        layer(**{"x": torch.ones(2, 2, 6), **arguments}, cache=cache)
    assert cache.length == 4 and torch.equal(cache.key, before)


def test_a_cache_needs_causal_attention():
    layer = CausalSelfAttention(6, causal=False)
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        layer(torch.zeros(2, 1, 6), cache=layer.new_cache(2, 6))


@pytest.mark.parametrize("T", [1, 4])
def test_bad_input_is_refused_with_the_numbers(T):
    layer = CausalSelfAttention(6)
    with pytest.raises(TypeError, match=r"mask has dtype torch\.float32"):
        layer(torch.zeros(2, T, 6), mask=torch.ones(T, T))
    with pytest.raises(ValueError, match=r"x has shape \(2, 6\)"):
        layer(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="query has D=4 but key has D=5"):
        causal_attention(torch.zeros(T, 4), torch.zeros(T, 5), torch.zeros(T, 5))
    with pytest.raises(ValueError, match="devices differ: mask meta, scores cpu"):
        causal_attention(*[torch.zeros(T, 4)] * 3, torch.ones(T, T, dtype=torch.bool, device="meta"))
