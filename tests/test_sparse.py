"""What sparse attention promises: every pattern equals its mask, alone and together, and costs what its tiles hold."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse import masks
from attncourse import sparse as sparse_module
from attncourse.attention import scaled_dot_product_attention
from attncourse.kv_cache import RollingKVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding
from attncourse.sliding_window import sliding_window_attention
from attncourse.sparse import (
    Dilated,
    Fixed,
    GlobalTokens,
    RandomBlocks,
    SparseAttention,
    Strided,
    Window,
    merge_parts,
    pattern_mask,
    softmax_part,
    sparse_attention,
)
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices
from tests.test_causal import influence, partitions
from tests.test_self_attention import filled

B, H, D, DV = 2, 3, 4, 5

# Each part, and the mask that defines it.
DEFINED = {
    "window": (Window(5), lambda T, S, causal: masks.sliding_window_mask(T, S, window=5, causal=causal)),
    "dilated": (Dilated(3, 4), lambda T, S, causal: masks.dilated_mask(T, S, window=3, dilation=4, causal=causal)),
    "strided": (Strided(7), lambda T, S, causal: masks.strided_mask(T, S, stride=7, causal=causal)),
    "fixed": (Fixed(6, 2), lambda T, S, causal: masks.fixed_mask(T, S, block=6, summary=2, causal=causal)),
    "global": (GlobalTokens((0, 3)), lambda T, S, causal: masks.global_mask(T, S, global_tokens=(0, 3), causal=causal)),
    "random": (RandomBlocks(4, 2, 3), lambda T, S, _: masks.random_block_mask(T, S, block=4, n_random=2, seed=3)),
}
SETS = [names for n in (1, 2, 3, 6) for names in combinations(DEFINED, n) if names != ("random",)]


def heads(T, S=None, device="cpu"):
    S = T if S is None else S
    sizes = [(B, H, T, D), (B, H, S, D), (B, H, S, DV)]
    return [normal(*size, seed=seed, device=device) for seed, size in enumerate(sizes)]


@on_devices
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_every_pattern_equals_dense_attention_with_its_mask(names, causal, device):
    pattern = [DEFINED[name][0] for name in names]
    for T, S in [(40, 40), (5, 33), (1, 20), (23, 90)]:
        mask = masks.combine(*(DEFINED[name][1](T, S, causal) for name in names)).to(device)
        assert torch.equal(pattern_mask(T, S, pattern=pattern, causal=causal).to(device), mask)
        inputs = heads(T, S, device)
        padding = (torch.arange(S) >= torch.tensor([0, S // 4])[:, None])[:, None, None].to(device)
        for real in (None, padding):
            seen = mask if real is None else mask & real
            actual = sparse_attention(*inputs, real, pattern=pattern, causal=causal)
            expected, _ = scaled_dot_product_attention(*inputs, seen, return_weights=True)
            assert_equal(actual, expected)
            assert_all_equal(gradients([actual], inputs), gradients([expected], inputs))


def test_blocks_of_one_token_that_are_all_summaries_see_everything():
    inputs = heads(9)
    whole, _ = scaled_dot_product_attention(*inputs, masks.causal_mask(9), return_weights=True)
    assert_equal(sparse_attention(*inputs, pattern=Fixed(1, 1)), whole)


@pytest.mark.parametrize("name", DEFINED)
def test_queries_may_stand_before_every_key(name):
    part, mask = DEFINED[name]
    assert torch.equal(pattern_mask(9, 6, pattern=part), mask(9, 6, True))


def test_more_global_tokens_than_a_head_has_numbers():
    inputs, tokens = heads(11), (0, 2, 3, 5, 7, 8)
    mask = masks.combine(
        masks.global_mask(11, global_tokens=tokens), masks.sliding_window_mask(11, window=2, causal=False)
    )
    whole, _ = scaled_dot_product_attention(*inputs, mask, return_weights=True)
    assert_equal(sparse_attention(*inputs, pattern=[Window(2), GlobalTokens(tokens)], causal=False), whole)


def test_the_future_is_hidden_unless_told_otherwise():
    inputs, pattern = heads(11), [Window(3), Strided(4)]
    assert_equal(sparse_attention(*inputs, pattern=pattern), sparse_attention(*inputs, pattern=pattern, causal=True))
    assert torch.equal(pattern_mask(11, pattern=pattern), pattern_mask(11, pattern=pattern, causal=True))


def test_the_order_of_the_parts_does_not_matter():
    inputs, parts = heads(30), [part for part, _ in DEFINED.values()]
    assert_equal(sparse_attention(*inputs, pattern=parts), sparse_attention(*inputs, pattern=parts[::-1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_any_size_of_window_and_stride(T, before, window, stride, causal):
    inputs, pattern = heads(T, T + before), [Window(window), Strided(stride)]
    mask = pattern_mask(T, T + before, pattern=pattern, causal=causal)
    actual = sparse_attention(*inputs, pattern=pattern, causal=causal)
    assert_equal(actual, scaled_dot_product_attention(*inputs, mask, return_weights=True)[0])


def test_a_window_alone_is_a_sliding_window():
    inputs = heads(20)
    for causal in (True, False):
        expected = sliding_window_attention(*inputs, window=6, causal=causal)
        assert_equal(sparse_attention(*inputs, pattern=Window(6), causal=causal), expected)


def test_float32_stays_close():
    single = [x.detach().float() for x in heads(50)]
    pattern = [part for part, _ in DEFINED.values()]
    output = sparse_attention(*single, pattern=pattern)
    expected = sparse_attention(*(x.double() for x in single), pattern=pattern)
    assert output.dtype == torch.float32
    assert_equal(output.double(), expected, 1e-5)


# --- merging


def test_parts_merge_into_one_softmax():
    query, key, value = heads(6, 11)
    allowed = torch.ones(6, 11, dtype=torch.bool)
    cuts = [slice(0, 4), slice(4, 5), slice(5, 11)]
    parts = [softmax_part(query, key[:, :, cut], value[:, :, cut], allowed[:, cut]) for cut in cuts]
    assert_equal(merge_parts(*zip(*parts, strict=True)), softmax_part(query, key, value, allowed)[0])


def test_scores_far_apart_merge_without_overflow():
    query, key, value = heads(6, 11)
    allowed = torch.ones(6, 11, dtype=torch.bool)
    parts = [
        softmax_part(300 * query, key[:, :, cut], value[:, :, cut], allowed[:, cut]) for cut in (slice(7), slice(7, 11))
    ]
    whole = softmax_part(300 * query, key, value, allowed)[0]
    assert whole.isfinite().all()
    assert_equal(merge_parts(*zip(*parts, strict=True)), whole, 1e-10)


def test_a_part_with_nothing_weighs_nothing():
    query, key, value = heads(6, 11)
    whole = softmax_part(query, key, value, torch.ones(6, 11, dtype=torch.bool))
    nothing = softmax_part(query, key, value, torch.zeros(6, 11, dtype=torch.bool))
    merged = merge_parts([whole[0], nothing[0]], [whole[1], nothing[1]])
    assert_equal(merged, whole[0])
    empty = merge_parts([nothing[0], nothing[0]], [nothing[1], nothing[1]])
    assert empty.eq(0).all()
    for gradient in gradients([empty], [query, key, value]):
        assert gradient.eq(0).all()


# --- what it costs


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ([Window(16), Dilated(16, 4), GlobalTokens((0,)), RandomBlocks(16, 2)], 2.2),  # linear
        ("strided", 3.1),  # T·√T with a stride of √T: 2.83 and a little
    ],
    ids=["linear", "strided"],
)
def test_bytes_grow_as_the_pattern_does(pattern, most, backward):
    made = {}
    for T in (2048, 4096):
        parts = [Window(int(T**0.5)), Strided(int(T**0.5))] if pattern == "strided" else pattern
        inputs = [torch.zeros(1, 2, T, 8, requires_grad=True) for _ in range(3)]
        output = sparse_attention(*inputs, pattern=parts)
        again = (lambda o=output, i=inputs: torch.autograd.grad(o.sum(), i)) if backward else None
        sparse_module._plan.cache_clear()  # the plan counts as well
        made[T] = allocated_bytes(again or (lambda i=inputs, p=parts: sparse_attention(*i, pattern=p)))
    assert made[4096][0] / made[2048][0] < most
    assert made[4096][1] < 4096 * 4096  # in bytes: less than a boolean for each pair


@pytest.mark.parametrize(
    ("pattern", "most"),
    [([Window(64), Strided(64)], 4.0), ([Window(64), RandomBlocks(16, 2)], 1.5)],
    ids=["stride", "random"],
)
def test_a_decoding_step_costs_what_it_sees(pattern, most):
    """Four times the keys: a stride sees up to four times as many of them, random blocks no more."""
    made = []
    for S in (4096, 16384):
        query, key = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, S, 8)
        sparse_attention(query, key[:, :, 1:], key[:, :, 1:], pattern=pattern)  # the step before, another plan
        made.append(allocated_bytes(lambda q=query, k=key: sparse_attention(q, k, k, pattern=pattern))[0])
    assert made[1] < most * made[0]
    assert made[0] < 4096 * 8 * 4  # one copy of the keys


def test_a_window_longer_than_the_text_costs_no_more():
    inputs = [x.detach() for x in heads(10)]
    made = []
    for window in (10, 10**6):
        sparse_module._plan.cache_clear()
        made.append(allocated_bytes(lambda w=window: sparse_attention(*inputs, pattern=[Window(w), Dilated(w, 3)]))[0])
    assert made[1] <= 1.1 * made[0]


def test_inference_before_training_leaves_training_be():
    layer, x = make(), normal(B, 21, H * D, seed=9)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_summed_in_float32(dtype):
    inputs = [(3 * x).detach().to(dtype) for x in heads(200)]
    output = sparse_attention(*inputs, pattern=[Window(14), Strided(14)])
    exact = sparse_attention(*(x.double() for x in inputs), pattern=[Window(14), Strided(14)])
    assert output.dtype == dtype
    assert torch.equal(output, exact.to(dtype)) or (output.double() - exact).abs().max() <= 0.01 * exact.abs().max()


def test_a_refused_call_stores_nothing():
    layer, x = make(pattern=RandomBlocks(4, 1)), normal(B, 3, H * D, seed=9).detach()
    cache = layer.new_cache(B, 9)
    for options in ({"cache": cache}, {"return_weights": True}, {}):
        with pytest.raises(ValueError, match="leaves query 0 without a key"):
            layer(x, **options)
    with pytest.raises(TypeError, match="cache is a RollingKVCache, but this layer keeps a KVCache: use new_cache"):
        make()(x, cache=RollingKVCache(B, H, 4, D, dtype=torch.float64))
    assert cache.length == 0


# --- the layer


def make(device="cpu", **options):
    options = {"pattern": [Window(3), Strided(4)], **options}
    return filled(SparseAttention(H * D, H, **options), device)


@on_devices
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_both_paths_agree(padded, causal, device):
    layer = make(device, causal=causal, rotary=RotaryEmbedding(D), bias=True)
    x = normal(B, 11, H * D, seed=9, device=device)
    mask = (torch.arange(11) >= torch.tensor([0, 3])[:, None])[:, None, None].to(device) if padded else None
    output, weights = layer(x, mask=mask, return_weights=True)
    assert not weights[..., ~pattern_mask(11, pattern=layer.pattern, causal=causal).to(device)].any()
    wanted, tiled = [x, *layer.parameters()], layer(x, mask=mask)
    assert_equal(tiled, output)
    for found, expected in zip(gradients([tiled], wanted), gradients([output], wanted), strict=True):
        assert_equal(found, expected, 1e-11)


def test_weights_with_a_cache_are_the_last_rows():
    layer, x = make(), normal(B, 11, H * D, seed=9).detach()
    cache, (output, weights) = layer.new_cache(B, 11), layer(x, return_weights=True)
    layer(x[:, :7], cache=cache)
    later, later_weights = layer(x[:, 7:], cache=cache, return_weights=True)
    assert_equal(later, output[:, 7:])
    assert_equal(later_weights, weights[:, :, 7:])


def test_a_pattern_of_everything_is_multi_head_attention():
    for causal in (True, False):
        many = filled(MultiHeadAttention(H * D, H, causal=causal, rotary=RotaryEmbedding(D)))
        layer, x = make(pattern=Strided(1), causal=causal, rotary=RotaryEmbedding(D)), normal(B, 9, H * D, seed=9)
        layer.load_state_dict(many.state_dict(), strict=True)
        assert_equal(layer(x), many(x))


def test_influence_follows_the_pattern():
    layer, x = make(), normal(B, 9, H * D, seed=9)
    seen, found = pattern_mask(9, pattern=layer.pattern), influence(layer, x)
    assert found[~seen].eq(0).all() and found[seen].min() > 1e-6


@settings(max_examples=200, deadline=None)
@given(partitions(13), st.integers(0, 5), st.sampled_from(SETS[:-1]), st.booleans())
def test_any_chunking_equals_one_pass(chunks, padding, names, turned):
    parts = [Window(1), *(DEFINED[name][0] for name in names)]
    layer = make(pattern=parts, rotary=RotaryEmbedding(D) if turned else None)
    x = normal(B, 13, H * D, seed=9).detach()
    real = (torch.arange(13) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, 13)
    cache, outputs, start = layer.new_cache(B, 13), [], 0
    for length in chunks:
        outputs.append(layer(x[:, start : start + length], mask=real[..., : start + length], cache=cache))
        start += length
    assert_equal(torch.cat(outputs, 1), layer(x, mask=real))


def test_the_pattern_of_a_prefix_does_not_depend_on_the_length():
    for part, _ in DEFINED.values():
        assert torch.equal(pattern_mask(20, pattern=part), pattern_mask(50, pattern=part)[:20, :20])


# --- what is refused


@pytest.mark.parametrize(
    ("make_part", "message"),
    [
        (lambda: Window(0), "window=0, but it must be at least 1"),
        (lambda: Dilated(2, 0), "dilation=0, but it must be at least 1"),
        (lambda: Strided(0), "stride=0, but it must be at least 1"),
        (lambda: Fixed(4, 5), "summary=5 is larger than block=4"),
        (lambda: Fixed(0, 1), "block=0, but it must be at least 1"),
        (lambda: Fixed(4, 0), "summary=0, but it must be at least 1"),
        (lambda: RandomBlocks(2, 0), "n_random=0, but it must be at least 1"),
        (lambda: pattern_mask(0, 5, pattern=Window(2)), "T=0, but it must be at least 1"),
        (lambda: pattern_mask(5, 0, pattern=Window(2)), "S=0, but it must be at least 1"),
        (lambda: GlobalTokens((3, -1)), r"tokens=\(-1, 3\), but they must be positions"),
        (lambda: GlobalTokens(()), r"tokens=\(\), but they must be positions, at least one"),
        (lambda: RandomBlocks(0, 1), "block=0, but it must be at least 1"),
        (lambda: SparseAttention(12, 3, pattern=[]), "the pattern has no part"),
        (lambda: SparseAttention(100, 12, pattern=Window(2)), "d_model=100 is not divisible by n_heads=12"),
        (lambda: sparse_attention(*heads(5), pattern=RandomBlocks(2, 1)), "leaves query 0 without a key: add Window"),
        (
            lambda: sparse_attention(*heads(5), pattern=[Window(2), GlobalTokens((5,))], causal=False),
            r"global tokens \(5,\) are not all within 0 … 4",
        ),
        (lambda: sparse_attention(*heads(7, 5), pattern=Window(2)), "must be .*, with T at most S=5"),
        (
            lambda: sparse_attention(*heads(5), torch.ones(5, 5).bool(), pattern=Window(2)),
            "this mechanism takes padding of the keys alone",
        ),
        (
            lambda: sparse_attention(
                *heads(5), torch.ones(B, 1, 1, 5, dtype=torch.bool, device="meta"), pattern=Window(2)
            ),
            "devices differ: mask meta",
        ),
        (lambda: sparse_attention(*heads(5)[:2], heads(4)[2], pattern=Window(2)), "there are 5 keys but 4 values"),
        (lambda: make(causal=False)(torch.zeros(2, 1, 12).double(), cache=make().new_cache(2, 4)), "causal=True"),
    ],
)
def test_what_cannot_be_is_refused(make_part, message):
    with pytest.raises(ValueError, match=message):
        make_part()


def test_a_part_that_is_none_is_refused():
    with pytest.raises(TypeError, match="pattern holds 'strided'; its parts are Window, Dilated, Strided, Fixed"):
        SparseAttention(12, 3, pattern=["strided"])
    with pytest.raises(TypeError, match="dtypes differ"):
        sparse_attention(*heads(5)[:2], heads(5)[2].float(), pattern=Window(2))
