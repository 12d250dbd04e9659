"""What a sliding window promises: the masked result at a cost that grows with T·W, and any chunking equals one pass."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import fused_attention, scaled_dot_product_attention
from attncourse.causal import causal_attention
from attncourse.kv_cache import KVCache, RollingKVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.masks import sliding_window_mask
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding
from attncourse.sliding_window import SlidingWindowAttention, sliding_window_attention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices
from tests.test_causal import influence, partitions
from tests.test_self_attention import filled

B, H, G, D, DV = 2, 4, 2, 6, 5


def heads(T, S=None, G=G, device="cpu"):
    S = T if S is None else S
    return [
        normal(B, *shape, seed=seed, device=device) for seed, shape in enumerate([(H, T, D), (G, S, D), (G, S, DV)], 1)
    ]


def dense(query, key, value, *, window, causal, padding=None):
    """The definition: the T×S mask."""
    n_shared = query.shape[1] // key.shape[1]
    mask = sliding_window_mask(query.shape[2], key.shape[2], window=window, causal=causal).to(query.device)
    mask = mask if padding is None else mask & padding
    key, value = (x.repeat_interleave(n_shared, 1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, mask, return_weights=True)[0]


# --- the function


@on_devices
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize(
    ("T", "S", "window"),
    [(1, 1, 1), (7, 7, 1), (10, 10, 3), (33, 33, 40), (5, 17, 4), (1, 9, 4), (1, 9, 9), (5, 300, 129), (257, 257, 128)],
)
def test_it_equals_the_masked_definition(T, S, window, G, causal, device):
    inputs = heads(T, S, G, device)
    padding = (torch.arange(S) >= torch.tensor([0, S // 3])[:, None])[:, None, None].to(device)
    for mask in (None, padding, padding[:1]):
        actual = sliding_window_attention(*inputs, mask, window=window, causal=causal)
        expected = dense(*inputs, window=window, causal=causal, padding=mask)
        assert_equal(actual, expected)
        assert_all_equal(gradients([actual], inputs), gradients([expected], inputs))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 50), st.booleans())
def test_any_size_equals_the_masked_definition(T, before, window, causal):
    inputs = heads(T, T + before)
    actual = sliding_window_attention(*inputs, window=window, causal=causal)
    assert_equal(actual, dense(*inputs, window=window, causal=causal))


def test_a_window_of_one_returns_the_values():
    query, key, value = heads(6, G=H)
    assert_equal(sliding_window_attention(query, key, value, window=1), value)


def test_query_heads_share_keys_in_order():
    """Heads 0 and 1 read key head 0, heads 2 and 3 key head 1: AABB, not ABAB."""
    query, key, value = heads(6)
    shared = sliding_window_attention(query, key, value, window=3)
    for h in range(H):
        alone = [x[:, [i]] for x, i in ((query, h), (key, h // 2), (value, h // 2))]
        assert_equal(shared[:, [h]], sliding_window_attention(*alone, window=3))


def test_a_query_whose_keys_are_all_padding_gets_zeros_and_no_gradient():
    inputs = heads(9)
    real = torch.arange(9) >= 5
    output = sliding_window_attention(*inputs, real.expand(B, 1, 1, 9), window=2)
    assert output[:, :, :5].eq(0).all() and output[:, :, 5:].abs().min() > 0
    for gradient in gradients([output], inputs):
        assert gradient[:, :, :5].eq(0).all() and gradient.isfinite().all()


def test_nothing_to_read_gives_nothing():
    assert sliding_window_attention(*heads(0), window=3).shape == (B, H, 0, DV)


# --- what it costs


def bytes_of(function, T, backward):
    """Bytes made, and the largest tensor, forward or in the backward pass alone."""
    inputs = [torch.zeros(1, 2, T, 8, requires_grad=True) for _ in range(3)]
    if not backward:
        return allocated_bytes(lambda: function(*inputs))
    output = function(*inputs)
    return allocated_bytes(lambda: torch.autograd.grad(output.sum(), inputs))


def masked(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, sliding_window_mask(query.shape[2], window=16)[None, None])


def sliced(query, key, value):
    """A window by blocks that cuts its keys anew for each block: no T×T anywhere, but each gradient is as long as T."""
    outputs = []
    for start in range(0, query.shape[2], 16):
        near = slice(max(0, start - 16), start + 16)
        outputs.append(causal_attention(query[:, :, start : start + 16], key[:, :, near], value[:, :, near]))
    return torch.cat(outputs, 2)


def windowed(query, key, value):
    return sliding_window_attention(query, key, value, window=16)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bytes_grow_with_the_length(backward):
    (small, _), (large, largest) = (bytes_of(windowed, T, backward) for T in (2048, 4096))
    assert 1.5 < large / small < 2.2
    assert largest < 4096 * 4096 / 4  # in bytes: not even booleans for each pair


def test_the_same_counts_find_a_mask_and_a_sliced_loop():
    """The structural test can fail: a mask makes T×T booleans, slices make a backward pass that grows with T²."""
    assert bytes_of(masked, 4096, False)[1] >= 4096 * 4096
    (small, _), (large, _) = (bytes_of(sliced, T, True) for T in (2048, 4096))
    assert large / small > 3


def test_a_window_longer_than_the_text_costs_no_more():
    query, key, value = (x.detach() for x in heads(10))
    for causal in (True, False):
        made = [
            allocated_bytes(lambda w=w, c=causal: sliding_window_attention(query, key, value, window=w, causal=c))
            for w in (10, 10**6)
        ]
        assert made[0] == made[1]


# --- the layer


def make(device="cpu", window=4, n_kv_heads=G, **options):
    return filled(SlidingWindowAttention(H * D, H, window=window, n_kv_heads=n_kv_heads, **options), device)


@on_devices
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_both_paths_agree(padded, causal, device):
    layer = make(device, causal=causal, rotary=RotaryEmbedding(D), bias=True)
    x = normal(B, 9, H * D, seed=9, device=device)
    mask = (torch.arange(9) >= torch.tensor([0, 3])[:, None])[:, None, None].to(device) if padded else None
    output, weights = layer(x, mask=mask, return_weights=True)
    assert weights.shape == (B, H, 9, 9)
    assert not weights[..., ~sliding_window_mask(9, window=4, causal=causal).to(device)].any()
    wanted = [x, *layer.parameters()]
    blocked = layer(x, mask=mask)
    assert_equal(blocked, output)
    for found, expected in zip(gradients([blocked], wanted), gradients([output], wanted), strict=True):
        assert_equal(found, expected, 1e-11)  # of sizes near 50


def test_a_window_as_long_as_the_text_is_causal_attention():
    many = filled(MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D)))
    layer, x = make(window=9, n_kv_heads=H, rotary=RotaryEmbedding(D)), normal(B, 9, H * D, seed=9)
    layer.load_state_dict(many.state_dict(), strict=True)
    assert_equal(layer(x), many(x))


@on_devices
@pytest.mark.parametrize("causal", [True, False])
def test_influence_ends_with_the_window(causal, device):
    layer, x = make(device, causal=causal, window=3), normal(B, 8, H * D, seed=9, device=device)
    seen = sliding_window_mask(8, window=3, causal=causal).to(device)
    found = influence(layer, x)
    assert found[~seen].eq(0).all() and found[seen].min() > 1e-6


@settings(max_examples=200, deadline=None)
@given(partitions(14), st.integers(0, 5), st.sampled_from([1, 2, 4, 5, 14, 20]), st.booleans())
def test_any_chunking_equals_one_pass(chunks, padding, window, turned):
    layer = make(window=window, rotary=RotaryEmbedding(D) if turned else None)
    x = normal(B, 14, H * D, seed=9).detach()
    real = (torch.arange(14) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, 14)
    cache, outputs, start = layer.new_cache(B, 14), [], 0
    for length in chunks:
        outputs.append(layer(x[:, start : start + length], mask=real[..., : start + length], cache=cache))
        start += length
    assert_equal(torch.cat(outputs, 1), layer(x, mask=real))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="window=0, but it must be at least 1"):
        SlidingWindowAttention(12, 3, window=0)
    with pytest.raises(ValueError, match="d_model=100 is not divisible by n_heads=12"):
        SlidingWindowAttention(100, 12, window=4)
    with pytest.raises(ValueError, match="n_heads=4 is not divisible by n_kv_heads=3"):
        SlidingWindowAttention(12, 4, window=4, n_kv_heads=3)
    with pytest.raises(ValueError, match=r"rotary\.dim=6, but a head has 4 numbers"):
        SlidingWindowAttention(12, 3, window=4, rotary=RotaryEmbedding(6))
    query, key, value = heads(5, 7)
    with pytest.raises(ValueError, match="window=-1, but it must be at least 1"):
        sliding_window_attention(query, key, value, window=-1)
    with pytest.raises(ValueError, match="query has 3 heads, which do not share 2 key heads evenly"):
        sliding_window_attention(query[:, :3], key, value, window=2)
    with pytest.raises(ValueError, match="there are 5 queries but 4 keys"):
        sliding_window_attention(query, key[:, :, :4], value[:, :, :4], window=2)
    with pytest.raises(ValueError, match=r"need four axes, \(B, H, T, D\)"):
        sliding_window_attention(query[0], key[0], value[0], window=2)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            torch.ones(5, 5).bool(),
            ValueError,
            r"\(5, 5\); this mechanism takes padding .* \(B, 1, 1, S\)=\(2, 1, 1, 5\)",
        ),
        (torch.ones(2, 1, 5, 5).bool(), ValueError, r"\(2, 1, 5, 5\); this mechanism takes padding of the keys alone"),
        (torch.ones(2, 1, 1, 4).bool(), ValueError, r"\(2, 1, 1, 4\); this mechanism takes padding"),
        (torch.ones(2, 1, 1, 5), TypeError, "mask has dtype torch.float32"),
    ],
)
def test_a_mask_that_is_no_padding_is_refused(mask, error, message):
    with pytest.raises(error, match=message):
        SlidingWindowAttention(12, 3, window=4)(torch.zeros(2, 5, 12), mask=mask)


def test_a_cache_that_does_not_fit_is_refused_and_stores_nothing():
    layer, x = SlidingWindowAttention(12, 3, window=4), torch.zeros(2, 2, 12)
    with pytest.raises(ValueError, match="the cache keeps 5 tokens, the layer's window is 4"):
        layer(x, cache=RollingKVCache(2, 3, 5, 4))
    with pytest.raises(TypeError, match="cache is a KVCache, but this layer keeps a RollingKVCache: use new_cache"):
        layer(x, cache=KVCache(2, 3, 9, 4))
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        SlidingWindowAttention(12, 3, window=4, causal=False)(x, cache=layer.new_cache(2, 9))
    cache = layer.new_cache(2, 9)
    with pytest.raises(ValueError, match="a cache forgets keys, so there are no weights"):
        layer(x, cache=cache, return_weights=True)
    with pytest.raises(ValueError, match="this mechanism takes padding"):
        layer(x, cache=cache, mask=torch.ones(2, 1, 1, 5).bool())
    assert cache.length == 0 and cache.key.eq(0).all()


def test_a_decoding_step_makes_no_copy_of_the_window():
    layer = SlidingWindowAttention(16, 4, window=512, n_kv_heads=1)
    cache = layer.new_cache(1, 10_000)
    with torch.no_grad():
        layer(torch.randn(1, 700, 16), cache=cache)
        _, largest = allocated_bytes(lambda: layer(torch.randn(1, 1, 16), cache=cache))
    assert largest < cache.nbytes / 2


def test_it_does_not_rely_on_how_a_kernel_lays_out_its_result(monkeypatch):
    """Kernels for a GPU give (B, T, H, D) in memory."""

    def transposed(*inputs):
        return fused_attention(*inputs).transpose(1, 2).contiguous().transpose(1, 2)

    inputs = heads(40)
    expected = sliding_window_attention(*inputs, window=5)
    monkeypatch.setattr("attncourse.sliding_window.fused_attention", transposed)
    assert_equal(sliding_window_attention(*inputs, window=5), expected)


def test_it_compiles_as_one_graph():
    layer, x = SlidingWindowAttention(24, 4, window=5, n_kv_heads=2), torch.randn(2, 40, 24)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_equal(compiled(x), layer(x), 1e-6)
