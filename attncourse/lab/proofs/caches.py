"""Theorems of caches: what may be stored instead of computed again, and what fewer slots or bits cost."""

import torch

from attncourse.attention import scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention, causal_attention
from attncourse.cross_attention import CrossAttention
from attncourse.gqa import GroupedQueryAttention
from attncourse.lab.proofs.common import Sides, copied, equality, in_calls, limit
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.paged_cache import BlockPool, PagedKVCache
from attncourse.positions import RotaryEmbedding, apply_rotary
from attncourse.quantized_cache import QuantizedKVCache, dequantize, quantize
from attncourse.sliding_window import SlidingWindowAttention


@equality(
    "11_kv_cache",
    "kv_cache",
    "causal",
    condition="any calls",
    says="A sequence in several calls with a cache, token by token or in pieces, gives what one pass gives.",
    sizes=[
        dict(B=2, T=11, D=6, size=1),
        dict(B=3, T=1, D=5, size=2),
        dict(B=4, T=17, D=7, size=5),
    ],
    broken=dict(kept=False),
    otherwise="an empty cache for each call",
)
def cache_in_calls(B, T, D, size, kept=True):
    """An earlier token's key and value do not depend on later tokens, so they may be stored instead of made again."""
    layer, x = CausalSelfAttention(D), torch.randn(B, T, D)
    if kept:
        return Sides(in_calls(layer, x, layer.new_cache(B, T), size), layer(x))
    alone = [layer(part, cache=layer.new_cache(B, T)) for part in x.split(size, 1)]
    return Sides(torch.cat(alone, 1), layer(x))


@equality(
    "11_kv_cache",
    "kv_cache",
    "rope",
    condition="positions go on",
    says="A key may be stored after RoPE has turned it: it never has to be turned again.",
    sizes=[
        dict(B=2, T=11, H=3, D=4, size=1),
        dict(B=3, T=1, H=2, D=8, size=2),
        dict(B=4, T=17, H=5, D=6, size=3),
    ],
    broken=dict(restarts=True),
    otherwise="each call counts from 0",
)
def cache_of_turned_keys(B, T, H, D, size, restarts=False):
    """A key is turned by its own position alone, and that does not change when tokens follow."""
    layer = MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D))
    x, cache, outputs = torch.randn(B, T, H * D), layer.new_cache(B, T), []
    for part in x.split(size, 1):
        query, key, value = (split_heads(project(part), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
        positions = torch.arange(part.shape[1]) + (0 if restarts else cache.length)
        query, key = (apply_rotary(each, positions, layer.rotary) for each in (query, key))
        outputs.append(layer.o_proj(merge_heads(causal_attention(query, *cache.append(key, value)))))
    left = torch.stack([torch.cat(outputs, 1), in_calls(layer, x, layer.new_cache(B, T), size)])
    return Sides(left, layer(x).expand_as(left))


@equality(
    "11_kv_cache",
    "kv_cache",
    "cross_attention",
    condition="one new token",
    says="A decoding step is cross-attention: the new token asks, and all tokens so far are the context.",
    sizes=[dict(B=2, T=11, D=6), dict(B=3, T=1, D=5), dict(B=4, T=17, D=7)],
    broken=dict(new=2),
    otherwise="two new tokens",
)
def step_is_crossing(B, T, D, new=1):
    """The newest token may see every token, so nothing is left for the causal mask to hide."""
    layer, cross = CausalSelfAttention(D), CrossAttention(D, D)
    copied(cross, layer)
    x, cache = torch.randn(B, T, D), layer.new_cache(B, T)
    if x.shape[1] > new:
        layer(x[:, :-new], cache=cache)
    return Sides(layer(x[:, -new:], cache=cache), cross(x[:, -new:], x))


@equality(
    "08_sliding_window",
    "rolling_cache",
    "sliding_window",
    condition="W slots",
    says="A cache of W slots, each overwritten after W tokens, gives what a window of W gives in one pass.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, W=5, size=1),
        dict(B=3, T=1, H=2, D=8, W=4, size=2),
        dict(B=4, T=19, H=5, D=6, W=7, size=3),
    ],
    broken=dict(more=1),
    otherwise="a window of W + 1",
)
def rolling_cache(B, T, H, D, W, size, more=0):
    """The key that a new token overwrites is W tokens old, and no later query may see it."""
    rotary = RotaryEmbedding(D)
    layer = SlidingWindowAttention(H * D, H, window=W, rotary=rotary)
    one_pass = copied(SlidingWindowAttention(H * D, H, window=W + more, rotary=rotary), layer)
    x = torch.randn(B, T, H * D)
    return Sides(in_calls(layer, x, layer.new_cache(B, T), size), one_pass(x))


@equality(
    "08_sliding_window",
    "rolling_cache",
    "kv_cache",
    condition="W ≥ T",
    says="A rolling cache that has a slot for every token never rolls: it is the plain cache.",
    sizes=[
        dict(B=2, T=11, H=3, D=4, W=11, size=1),
        dict(B=3, T=1, H=2, D=8, W=4, size=2),
        dict(B=4, T=17, H=5, D=6, W=20, size=3),
    ],
    broken=dict(W=4),
    otherwise="W = 4",
)
def rolling_without_rolling(B, T, H, D, W, size):
    """Token p stands in slot p % W, which is p while p < W, and nothing is overwritten."""
    rolling = SlidingWindowAttention(H * D, H, window=W)
    plain = copied(MultiHeadAttention(H * D, H, causal=True), rolling)
    x = torch.randn(B, T, H * D)
    return Sides(*(in_calls(layer, x, layer.new_cache(B, T), size) for layer in (rolling, plain)))


@equality(
    "11_kv_cache",
    "quantized_cache",
    "kv_cache",
    condition="all in one call",
    says="What a call appends is exact in that call: in one call, a quantized cache gives what the plain one gives.",
    sizes=[
        dict(B=2, T=11, H=3, D=4, bits=4, size=11),
        dict(B=3, T=1, H=2, D=8, bits=8, size=2),
        dict(B=4, T=37, H=5, D=6, bits=8, size=40),
    ],
    broken=dict(size=1),
    otherwise="token by token",
)
def quantized_in_one_call(B, T, H, D, bits, size):
    """Only what is stored has fewer bits, and in the first call nothing is read back."""
    layer, x = MultiHeadAttention(H * D, H, causal=True), torch.randn(B, T, H * D)
    fewer = QuantizedKVCache.like(layer.new_cache(B, T), bits=bits, group_size=4)
    return Sides(in_calls(layer, x, fewer, size), in_calls(layer, x, layer.new_cache(B, T), size))


@limit(
    "11_kv_cache",
    "quantized_cache",
    "kv_cache",
    condition="more steps",
    says="The error of a quantized cache falls as one over the number of steps, 2^bits − 1: from 4 bits to 8, by "
    "255 / 15 = 17.",
    sizes=dict(B=2, T=32, H=3, D=8),
    points={"steps": [7, 15, 31, 63, 127, 255]},
    slopes=(-1.1, -0.9),
    broken=dict(offset=False),
    otherwise="read without the offset",
)
def quantized_finer(steps, B, T, H, D, offset=True):
    """A number is at most half a step off, a step is the range over their number, and small errors of keys and values
    reach the output in proportion."""
    if steps + 1 != 2 ** steps.bit_length():
        raise ValueError(f"steps={steps}, but a code of n bits has 2^n - 1: 1, 3, 7, …, 255")
    query, key, value = torch.randn(3, B, H, T, D)
    # As `QuantizedKVCache` has it: keys by channel, over a group of tokens; values by token.
    stored = (quantize(x, steps.bit_length(), dim) for x, dim in ((key, 2), (value, 3)))
    read = (dequantize(codes, scale, zero if offset else torch.zeros_like(zero)) for codes, scale, zero in stored)
    return Sides(scaled_dot_product_attention(query, *read), scaled_dot_product_attention(query, key, value))


@equality(
    "15_execution",
    "paged",
    "kv_cache",
    condition="by its table",
    says="A cache in blocks of a common pool, read through its table, is the plain cache.",
    sizes=[
        dict(B=2, T=11, H=6, G=3, D=4, b=5, size=1),
        dict(B=3, T=1, H=2, G=1, D=8, b=4, size=2),
        dict(B=4, T=17, H=5, G=5, D=6, b=1, size=3),
    ],
    broken=dict(moved=True),
    otherwise="keys moved, not the table",
)
def paged_cache(B, T, H, G, D, b, size, moved=False):
    """The table says in which block and at which place a token stands, and attention reads tokens, not addresses."""
    layer, x = GroupedQueryAttention(H * D, H, G, rotary=RotaryEmbedding(D)), torch.randn(B, T, H * D)
    pool = BlockPool(B * (T // b + 1), b, G, D)
    cache, plain = PagedKVCache(pool, B), layer.new_cache(B, T)
    in_calls(layer, x[:, : T // 2], cache, size), in_calls(layer, x[:, : T // 2], plain, size)
    if moved:
        pool.key.copy_(pool.key.roll(1, 0))
    return Sides(in_calls(layer, x[:, T // 2 :], cache, size), in_calls(layer, x[:, T // 2 :], plain, size))
