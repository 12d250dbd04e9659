"""What a quantized cache promises: the same codes however tokens come, half a step of error, and far fewer bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention
from attncourse.gqa import GroupedQueryAttention
from attncourse.kv_cache import KVCache, RollingKVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.mla import LatentCache, MultiHeadLatentAttention
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary
from attncourse.quantized_cache import QuantizedKVCache, dequantize, pack, quantize, unpack
from attncourse.sliding_window import SlidingWindowAttention
from tests.test_bahdanau import assert_equal, normal, on_devices
from tests.test_causal import partitions
from tests.test_self_attention import filled

STORED = ("key_codes", "key_scale", "key_zero", "value_codes", "value_scale", "value_zero")
ALL = (*STORED, "exact_key")
in_bits = pytest.mark.parametrize("bits", [8, 4])


def drawn(*shape, seed, dtype=torch.float64, device="cpu"):
    return normal(*shape, seed=seed, dtype=dtype, device=device).detach()


# --- the quantizer


def test_by_hand():
    """Two bits: codes 0 … 3 over -1 … 2, so the step is 1; 0.6 above the minimum is nearer to 1 than to 0."""
    codes, scale, zero = quantize(torch.tensor([[-1.0, -0.4, 0.4, 2.0]]), 2, 1)
    assert codes.tolist() == [[0, 1, 1, 3]] and codes.dtype == torch.uint8
    assert scale.tolist() == [[1.0]] and zero.tolist() == [[-1.0]]
    assert dequantize(codes, scale, zero).tolist() == [[-1.0, 0.0, 0.0, 2.0]]


@on_devices
@pytest.mark.parametrize("dim", [0, 1, 2, -1, (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_error_is_half_a_step(bits, dim, device):
    x = drawn(6, 7, 8, seed=1, device=device)
    codes, scale, zero = quantize(x, bits, dim)
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    assert torch.equal(zero, low) and codes.shape == x.shape and codes.max() == 2**bits - 1
    assert_equal(scale, (high - low) / (2**bits - 1))
    error = (dequantize(codes, scale, zero) - x).abs() / scale
    assert 0.45 < error.max() <= 0.5 + 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0, 3])
@in_bits
def test_a_narrow_dtype_adds_its_own_rounding_and_no_more(bits, offset, size, dtype):
    """The step is rounded up, never down: else the maximum lies outside of the codes."""
    x = (size * (drawn(200, 9, seed=1) + offset)).to(dtype)
    codes, scale, zero = quantize(x, bits, 1)
    back = dequantize(codes, scale, zero)
    assert scale.dtype == zero.dtype == back.dtype == dtype
    exact = codes.double() * scale.double() + zero.double()
    assert ((exact - x.double()).abs() <= scale.double() * (0.5 + 1e-6)).all()  # before the result is rounded
    assert_rounded_once(back, exact)
    step = (x.double().amax(1) - x.double().amin(1)) / (2**bits - 1)
    assert ((scale[:, 0].double() >= step * (1 - 3e-7)) & (scale[:, 0].double() <= step * 1.02 + 7e-5)).all()


def assert_rounded_once(actual, exact):
    unit = torch.finfo(actual.dtype).eps
    assert ((actual.double() - exact).abs() <= exact.abs() * unit / 2 * 1.001 + 1e-7).all()


def test_the_widest_range_of_float16_does_not_overflow():
    x = torch.tensor([[-65504.0, 0.0, 65504.0]], dtype=torch.float16)
    for bits in (4, 8):
        codes, scale, zero = quantize(x, bits, 1)
        assert codes[0, 2] == 2**bits - 1 and scale.isfinite().all()
        assert (codes.double() * scale.double() + zero.double() - x.double()).abs().max() <= scale.double().max() / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, -3.7, 1e-6, 60000.0])
def test_a_constant_comes_back_exactly(constant, dtype):
    x = torch.full((2, 5), constant, dtype=dtype)
    codes, scale, zero = quantize(x, 4, 1)
    assert codes.eq(0).all() and scale.isfinite().all()
    assert torch.equal(dequantize(codes, scale, zero), x)


def test_a_result_can_be_written_into_a_room():
    codes, scale, zero = quantize(drawn(3, 4, seed=1), 8, 1)
    room = torch.zeros(3, 6, dtype=torch.float64)
    dequantize(codes, scale, zero, out=room[:, 1:5])
    assert torch.equal(room[:, 1:5], dequantize(codes, scale, zero)) and room[:, [0, 5]].eq(0).all()


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_that_make_no_code_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}, but a code in one byte has 1 to 8"):
        quantize(torch.zeros(2), bits, 0)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        quantize(torch.zeros(2, dtype=torch.long), 8, 0)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_packing_keeps_every_code(size):
    codes = torch.randint(0, 16, (3, 4, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 4, -(-size // 2))
    assert torch.equal(unpack(packed, size), codes)


def test_a_byte_holds_two_codes():
    assert pack(torch.tensor([1, 2, 3, 15], dtype=torch.uint8)).tolist() == [1 + 16 * 3, 2 + 16 * 15]


# --- what the cache stores

B, G, D, DV, LENGTH = 2, 3, 6, 5, 21


def fill(cache, key, value, chunks):
    """Appends in pieces; each time, what comes back is what was stored, and the new tokens as they are."""
    start = 0
    for length in chunks:
        end = start + length
        stored = cache.key, cache.value
        returned = cache.append(key[:, :, start:end], value[:, :, start:end])
        for back, old, new in zip(returned, stored, (key, value), strict=True):
            assert torch.equal(back[:, :, :start], old) and torch.equal(back[:, :, start:], new[:, :, start:end])
            assert not back.requires_grad
        start = end
        assert cache.length == end
    return cache


def assert_same_contents(cache, other, tolerance=None):
    for name in ALL:
        found, expected = getattr(cache, name), getattr(other, name)
        if name == "exact_key":  # beyond the unfinished group stands what once was there
            n_exact = cache.length % cache.group_size
            found, expected = found[:, :, :n_exact], expected[:, :, :n_exact]
        if tolerance is None or found.dtype == torch.uint8:
            assert torch.equal(found, expected), name
        else:
            assert_equal(found, expected, tolerance)


@on_devices
@in_bits
@pytest.mark.parametrize("chunks", [[LENGTH], [1] * LENGTH, [3, 5, 13], [6, 0, 15], [20, 1]], ids=str)
@pytest.mark.parametrize("group_size", [1, 4, 7, 30])
def test_keys_are_grouped_from_position_zero_and_values_by_token(group_size, chunks, bits, device):
    """The definition, group by group, against what calls of any size leave; odd sizes, so that packing has a rest."""
    key, value = drawn(B, G, LENGTH, D, seed=1, device=device), drawn(B, G, LENGTH, DV, seed=2, device=device)
    options = {"bits": bits, "group_size": group_size, "value_dim": DV, "dtype": key.dtype, "device": device}
    cache = fill(QuantizedKVCache(B, G, LENGTH + 1, D, **options), key, value, chunks)
    assert cache.max_length == LENGTH + 1
    expected = []
    for start in range(0, LENGTH, group_size):
        group = key[:, :, start : start + group_size]
        whole = group.shape[2] == group_size
        expected.append(dequantize(*quantize(group, bits, 2)) if whole else group)
    assert torch.equal(cache.key, torch.cat(expected, 2))
    assert torch.equal(cache.value, dequantize(*quantize(value, bits, 3)))
    assert (cache.key != key).any() or group_size in (1, 30)  # a group of one is constant: exact
    assert (cache.value != value).any()


@settings(max_examples=250, deadline=None)
@given(
    partitions(LENGTH),
    st.sampled_from([8, 4]),
    st.integers(1, 23),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_chunking_stores_the_same_bits(chunks, bits, group_size, dtype):
    key, value = drawn(B, G, LENGTH, D, seed=1, dtype=dtype), drawn(B, G, LENGTH, DV, seed=2, dtype=dtype)
    caches = [
        QuantizedKVCache(B, G, LENGTH, D, bits=bits, group_size=group_size, value_dim=DV, dtype=dtype) for _ in range(2)
    ]
    assert_same_contents(fill(caches[0], key, value, chunks), fill(caches[1], key, value, [LENGTH]))


def test_what_is_stored_carries_no_gradient():
    cache = QuantizedKVCache(B, G, LENGTH, D, group_size=4, value_dim=DV, dtype=torch.float64)
    returned = cache.append(normal(B, G, 6, D, seed=1), normal(B, G, 6, DV, seed=2))
    assert not any(x.requires_grad for x in (*returned, *(getattr(cache, name) for name in ALL)))


class CountedFromTheCall(QuantizedKVCache):
    """A common mistake: each call quantizes its own tokens in groups, from its first one on."""

    def append(self, key, value):
        held, self.length = self.length, self.length // self.group_size * self.group_size
        result = super().append(key, value)
        self.length = held + key.shape[2]
        return result


def test_the_law_finds_groups_counted_from_a_call():
    key, value = drawn(B, G, 12, D, seed=1), drawn(B, G, 12, D, seed=2)
    make = {"group_size": 4, "dtype": key.dtype}
    whole = fill(QuantizedKVCache(B, G, 12, D, **make), key, value, [12])
    wrong = CountedFromTheCall(B, G, 12, D, **make)
    for start, end in ((0, 3), (3, 8), (8, 12)):
        wrong.append(key[:, :, start:end], value[:, :, start:end])
    with pytest.raises(AssertionError):
        assert_same_contents(wrong, whole)


def test_a_group_is_quantized_once():
    """Later tokens, however large, leave the codes of a finished group alone."""
    key = drawn(B, G, 4, D, seed=1)
    cache = QuantizedKVCache(B, G, 12, D, group_size=4, bits=4, dtype=key.dtype)
    cache.append(key, key)
    before = cache.key, cache.value
    cache.append(100 * drawn(B, G, 7, D, seed=2), 100 * drawn(B, G, 7, D, seed=3))
    for now, then in zip((cache.key, cache.value), before, strict=True):
        assert torch.equal(now[:, :, :4], then)


# --- bytes


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize(("bits", "key_bytes", "value_bytes"), [(8, 7, 5), (4, 4, 3)])
def test_nbytes_counts_everything_stored(bits, key_bytes, value_bytes, dtype, size):
    """Ten groups of 3 keys, each with a scale and a zero for 7 channels; 32 values with one of each; 2 exact keys."""
    cache = QuantizedKVCache(2, 3, 32, 7, bits=bits, group_size=3, value_dim=5, dtype=dtype)
    keys = 10 * 3 * key_bytes + 10 * 2 * 7 * size + 2 * 7 * size
    values = 32 * value_bytes + 32 * 2 * size
    assert cache.nbytes == 2 * 3 * (keys + values)
    tensors = [x for x in vars(cache).values() if isinstance(x, torch.Tensor)]
    assert cache.nbytes == sum(x.untyped_storage().nbytes() for x in tensors)  # nothing is hidden
    before = cache.nbytes
    cache.append(torch.ones(2, 3, 32, 7, dtype=dtype), torch.ones(2, 3, 32, 5, dtype=dtype))
    assert cache.nbytes == before


def test_a_room_shorter_than_a_group_is_exact_for_keys():
    cache = QuantizedKVCache(1, 1, 5, 4, group_size=32, dtype=torch.float32)
    assert cache.nbytes == 5 * 4 * 4 + 5 * 4 + 5 * 2 * 4
    key = drawn(1, 1, 5, 4, seed=1, dtype=torch.float32)
    cache.append(key, key)
    assert torch.equal(cache.key, key) and not torch.equal(cache.value, key)


@pytest.mark.parametrize(
    ("dtype", "bits", "ratio"),
    [(torch.float32, 8, 0.299), (torch.float32, 4, 0.174), (torch.bfloat16, 8, 0.549), (torch.bfloat16, 4, 0.299)],
)
def test_what_it_saves(dtype, bits, ratio):
    """4096 tokens of 64 numbers, groups of 32: near bits / 16 of bfloat16, with 1/32 + 1/64 of it for the steps."""
    plain = KVCache(1, 8, 4096, 64, dtype=dtype)
    cache = QuantizedKVCache.like(plain, bits=bits)
    assert cache.nbytes / plain.nbytes == pytest.approx(ratio, abs=3e-3)


@in_bits
def test_a_step_makes_the_keys_and_values_once(bits):
    """Nothing but the result is made in the cache's dtype; of 4 bits, one byte a number besides, in three pieces."""
    cache = QuantizedKVCache(1, 2, 2100, 64, bits=bits)
    cache.append(torch.randn(1, 2, 2048, 64), torch.randn(1, 2, 2048, 64))
    new = torch.randn(1, 2, 1, 64)
    made, largest = allocated_bytes(lambda: cache.append(new, new))
    result = 2 * 2 * 2049 * 64 * 4
    unpacked = 2 * 2 * 2048 * 64 * 2 if bits == 4 else 0
    assert result + unpacked <= made < (result + unpacked) * 1.03
    assert largest == result / 2


# --- in a layer: the same contents, and outputs within the error that follows from the steps

LAYERS = {
    "causal": lambda: CausalSelfAttention(12, 6),
    "multi-head": lambda: MultiHeadAttention(12, 2, causal=True, rotary=RotaryEmbedding(6)),
    "alibi": lambda: MultiHeadAttention(12, 2, causal=True, alibi=True),
    "grouped": lambda: GroupedQueryAttention(24, 4, 2, rotary=RotaryEmbedding(6)),
    "multi-query": lambda: MultiQueryAttention(24, 4, rotary=RotaryEmbedding(6)),
}
T = 14


def layer_of(name, **options):
    return filled(LAYERS[name](), **options)


def queries(layer, x):
    """(B, H, T, D), as the layer makes them."""
    query = split_heads(layer.q_proj(x), getattr(layer, "n_heads", 1))
    rotary = getattr(layer, "rotary", None)
    return query if rotary is None else apply_rotary(query, torch.arange(x.shape[1]), rotary)


def error_bound(layer, x, cache, allowed):
    """The docstring's bound, for each output (B, T, d_model), from the steps that the cache holds at the end."""
    exact = layer.new_cache(x.shape[0], x.shape[1])
    layer(x, cache=exact)
    query, value = queries(layer, x), exact.value
    n_shared, D = query.shape[1] // value.shape[1], query.shape[3]
    key_step = torch.zeros_like(exact.key)  # (B, G, S, D): none where keys are exact
    n_quantized = cache.length // cache.group_size * cache.group_size
    key_step[:, :, :n_quantized] = cache.key_scale.expand(-1, -1, -1, cache.group_size, -1).flatten(2, 3)
    key_step, value, value_step = (x.repeat_interleave(n_shared, 1) for x in (key_step, value, cache.value_scale))
    epsilon = (query.abs() @ key_step.transpose(2, 3) / (2 * D**0.5)).masked_fill(~allowed, 0).amax(3, keepdim=True)
    seen, values = allowed[..., None], value[:, :, None]  # (B, 1, T, S, 1), (B, H, 1, S, Dv)
    highest = values.masked_fill(~seen, -torch.inf).amax(3)  # (B, H, T, Dv)
    lowest = values.masked_fill(~seen, torch.inf).amin(3)
    step = value_step.transpose(2, 3).masked_fill(~allowed, 0).amax(3, keepdim=True)  # (B, H, T, 1)
    bound = (epsilon / 2).tanh() * (highest - lowest) + step / 2
    bound = bound.masked_fill(~allowed.any(3, keepdim=True), 0)  # a token that sees nothing gives zeros
    return merge_heads(bound) @ layer.o_proj.weight.abs().T


def decode(layer, x, real, chunks, cache):
    outputs, start = [], 0
    for length in chunks:
        end = start + length
        mask = None if real is None else real[..., :end]
        outputs.append(layer(x[:, start:end], mask=mask, cache=cache))
        start = end
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=200, deadline=None)
@given(
    partitions(T), st.integers(0, 9), st.sampled_from([1.0, 30.0]), st.sampled_from([8, 4]), st.sampled_from([1, 4, 5])
)
@torch.no_grad()
def test_any_chunking_is_within_the_error_of_one_exact_pass(name, chunks, padding, size, bits, group_size):
    """Left-padded, with padding as large as the text or far larger."""
    layer, x = layer_of(name), drawn(2, T, layer_of(name).q_proj.in_features, seed=9) / 4
    real = (torch.arange(T) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, T)
    x = torch.where(real[:, 0, 0, :, None], x, size * x)
    cache, at_once = (QuantizedKVCache.like(layer.new_cache(2, T), bits=bits, group_size=group_size) for _ in range(2))
    output, expected = decode(layer, x, real, chunks, cache), layer(x, mask=real)
    assert_equal(layer(x, mask=real, cache=at_once), expected)  # one call: it sees its own tokens exactly
    assert_same_contents(cache, at_once, 1e-11)
    allowed = (torch.ones(T, T).bool().tril() & real).expand(2, 1, T, T)
    bound = error_bound(layer, x, cache, allowed)
    assert ((output - expected).abs() <= bound + 1e-11).all()


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_error_is_there_and_falls_with_the_bits(name):
    """So that the bound above does not pass for nothing."""
    layer = layer_of(name)
    x = drawn(2, T, layer.q_proj.in_features, seed=9) / 4
    error = {}
    for bits in (8, 4):
        cache = QuantizedKVCache.like(layer.new_cache(2, T), bits=bits, group_size=4)
        difference = (decode(layer, x, None, [1] * T, cache) - layer(x)).abs()
        error[bits] = difference.max().item()
        allowed = torch.ones(T, T).bool().tril().expand(2, 1, T, T)
        assert (difference / error_bound(layer, x, cache, allowed)).max() > 0.02
    assert error[4] > 0.01 and 8 < error[4] / error[8] < 40  # 255 / 15 = 17 in the steps


@torch.no_grad()
def test_weights_come_from_the_same_cache():
    layer = layer_of("multi-head")
    x, cache = drawn(2, T, 12, seed=9), None
    results = []
    for return_weights in (False, True):
        cache = QuantizedKVCache.like(layer.new_cache(2, T), bits=4, group_size=4)
        layer(x[:, :-1], cache=cache)
        results.append(layer(x[:, -1:], cache=cache, return_weights=return_weights))
    output, weights = results[1]
    assert_equal(results[0], output)
    assert weights.shape == (2, 2, 1, T)


@in_bits
def test_padding_reaches_its_own_group_and_no_further(bits):
    """A sequence of 3 padding tokens: huge ones cost precision in group 0 of that sequence, and nowhere else."""
    key, value = drawn(2, G, 12, D, seed=1), drawn(2, G, 12, D, seed=2)
    wild = [torch.cat([torch.cat([x[:1, :, :3], 1000 * x[1:, :, :3]]), x[:, :, 3:]], 2) for x in (key, value)]
    make = {"bits": bits, "group_size": 4, "dtype": key.dtype}
    calm, hit = (fill(QuantizedKVCache(2, G, 12, D, **make), *kv, [5, 1, 6]) for kv in ((key, value), wild))
    differs = (calm.key != hit.key).any((1, 3))  # (B, S)
    assert differs.tolist() == [[False] * 12, [True] * 4 + [False] * 8]
    assert torch.equal(calm.value[:, :, 3:], hit.value[:, :, 3:])
    assert ((hit.key - wild[0])[:, :, :4].abs() <= hit.key_scale[:, :, 0] / 2 * (1 + 1e-12)).all()


# --- why keys per channel


def attention_error(key_dims, bits=4, S=1024, seed=0):
    """Relative error of attention with quantized keys, exact values; channel 5 of 64 stands 20 away from zero.

    key_dims: over which axes of (1, G, groups, 32, D) a scale is shared.
    """
    query, key, value = (drawn(1, 4, S, 64, seed=seed + i) for i in range(3))
    key[..., 5] = 20 + 4 * key[..., 5]
    groups = key.unflatten(2, (-1, 32))
    stored = dequantize(*quantize(groups, bits, key_dims)).flatten(2, 3)
    exact, output = (scaled_dot_product_attention(query, k, value) for k in (key, stored))
    return ((output - exact).norm() / exact.norm()).item()


def test_one_outlier_channel_spoils_keys_by_token():
    """Per channel, the large one keeps its large step to itself; per token, all 64 numbers share it."""
    by_channel, by_token = attention_error(3), attention_error(4)
    assert by_token > 3 * by_channel
    assert by_channel < 0.25
    assert attention_error(3, bits=8) < by_channel / 10


# --- what is refused, and what stays


def snapshot(cache):
    return cache.length, [getattr(cache, name).clone() for name in ALL]


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((2, 3, 3, 6), {}, ValueError, "the cache holds 5 of at most 7 tokens, so 3 more do not fit: .*max_length=8"),
        ((1, 3, 1, 6), {}, ValueError, "the cache was made for batch_size=2, but x has 1"),
        ((2, 2, 1, 6), {}, ValueError, r"key has shape \(2, 2, 1, 6\), but the cache takes \(2, 3, 1, 6\)"),
        ((2, 3, 1, 5), {}, ValueError, r"key has shape \(2, 3, 1, 5\), but the cache takes \(2, 3, 1, 6\)"),
        ((2, 3, 1, 6), {"dtype": torch.float64}, TypeError, r"dtypes differ: key torch\.float64, the cache torch\.flo"),
        ((2, 3, 1, 6), {"device": "meta"}, ValueError, "devices differ: key meta, the cache cpu"),
    ],
)
@in_bits
def test_what_does_not_fit_is_refused_and_nothing_is_stored(shape, options, error, message, bits):
    cache = QuantizedKVCache(2, 3, 7, 6, bits=bits, group_size=2, value_dim=5, dtype=torch.float32)
    cache.append(torch.ones(2, 3, 5, 6), torch.ones(2, 3, 5, 5))
    before = snapshot(cache)
    with pytest.raises(error, match=message):
        cache.append(torch.zeros(shape, **options), torch.zeros(*shape[:3], 5, **options))
    with pytest.raises(ValueError, match=r"value has shape \(2, 3, 1, 6\), but the cache takes \(2, 3, 1, 5\)"):
        cache.append(torch.zeros(2, 3, 1, 6), torch.zeros(2, 3, 1, 6))
    after = snapshot(cache)
    assert before[0] == after[0] and all(map(torch.equal, before[1], after[1]))


def test_a_layer_that_refuses_stores_nothing():
    layer = MultiHeadAttention(12, 2, causal=True)
    cache = QuantizedKVCache.like(layer.new_cache(2, 6), group_size=2)
    layer(torch.ones(2, 3, 12), cache=cache)
    before = snapshot(cache)
    for arguments in ({"x": torch.ones(2, 4, 12)}, {"x": torch.ones(2, 2, 12), "mask": torch.ones(2, 3).bool()}):
        with pytest.raises(ValueError, match=r"do not fit|does not broadcast"):
            layer(**arguments, cache=cache)
    after = snapshot(cache)
    assert before[0] == after[0] and all(map(torch.equal, before[1], after[1]))


def test_it_stands_for_a_plain_cache_and_no_other():
    cache = QuantizedKVCache(1, 2, 8, 6)
    with pytest.raises(TypeError, match="cache is a QuantizedKVCache, but this layer keeps a RollingKVCache"):
        SlidingWindowAttention(12, 2, window=4)(torch.zeros(1, 1, 12), cache=cache)
    with pytest.raises(TypeError, match="cache is a RollingKVCache, but this layer keeps a KVCache"):
        MultiHeadAttention(12, 2, causal=True)(torch.zeros(1, 1, 12), cache=RollingKVCache(1, 2, 8, 6))
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        MultiHeadAttention(12, 2)(torch.zeros(1, 1, 12), cache=cache)
    latent = MultiHeadLatentAttention(12, 2, kv_lora_rank=5, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=6)
    with pytest.raises(TypeError, match="cache is a QuantizedKVCache, but this layer keeps a LatentCache"):
        latent(torch.zeros(1, 1, 12), cache=cache)
    assert cache.length == 0


def test_like_takes_the_sizes_of_an_empty_plain_cache():
    plain = KVCache(2, 3, 9, 6, value_dim=5, dtype=torch.bfloat16)
    cache = QuantizedKVCache.like(plain, bits=4, group_size=3)
    other = QuantizedKVCache(2, 3, 9, 6, bits=4, group_size=3, value_dim=5, dtype=torch.bfloat16)
    for name in ALL:
        found, expected = getattr(cache, name), getattr(other, name)
        assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert (cache.bits, cache.group_size) == (4, 3)
    with pytest.raises(TypeError, match="cache is a RollingKVCache; this one stands for a KVCache only"):
        QuantizedKVCache.like(RollingKVCache(2, 3, 9, 6))
    with pytest.raises(TypeError, match="cache is a LatentCache; this one stands for a KVCache only"):
        QuantizedKVCache.like(LatentCache(2, 9, 5, 2))
    with pytest.raises(TypeError, match="cache is a QuantizedKVCache"):
        QuantizedKVCache.like(cache)
    plain.append(torch.zeros(2, 3, 2, 6).bfloat16(), torch.zeros(2, 3, 2, 5).bfloat16())
    with pytest.raises(ValueError, match="the cache holds 2 tokens already"):
        QuantizedKVCache.like(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 2}, "bits=2, but this cache stores 8 or 4"),
        ({"group_size": 0}, "group_size=0, but it must be at least 1"),
        ({"value_dim": 0}, "value_dim=0, but it must be at least 1"),
        ({"max_length": 0}, "max_length=0, but it must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuantizedKVCache(**{"batch_size": 1, "n_kv_heads": 1, "max_length": 4, "head_dim": 4, **options})


def test_under_autocast_it_gives_back_what_the_layer_computes_in():
    cache = QuantizedKVCache(1, 1, 9, 4, group_size=4)
    key = torch.randn(1, 1, 5, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for start, end in ((0, 3), (3, 5)):
            keys, values = cache.append(key[:, :, start:end], key[:, :, start:end])
    assert keys.dtype == values.dtype == torch.bfloat16 and cache.key.dtype == cache.key_scale.dtype == torch.float32
    assert torch.equal(keys, key)  # 3 of an unfinished group, and the 2 that came
    assert torch.equal(cache.key[:, :, 4:], key[:, :, 4:].float())


def test_without_a_choice_a_code_has_8_bits_and_32_tokens_share_a_step():
    plain = KVCache(2, 3, 70, 6)
    for cache in (QuantizedKVCache(2, 3, 70, 6), QuantizedKVCache.like(plain)):
        assert (cache.bits, cache.group_size) == (8, 32)
