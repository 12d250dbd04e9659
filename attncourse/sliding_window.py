"""Sliding-window attention: a token sees the last W tokens, itself included, at a cost that grows with T·W.

Beltagy et al. 2020, section 3.1; causal as in Mistral 7B (Jiang et al. 2023, section 2). Differs from the papers: W
counts the token itself, and without causality means |i - j| < W.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from attncourse.attention import (
    check_at_least_one,
    check_padding,
    check_sequence,
    check_shared_heads,
    fused_attention,
    scaled_dot_product_attention,
)
from attncourse.gqa import grouped_query_attention
from attncourse.kv_cache import RollingKVCache, check_cache
from attncourse.masks import sliding_window_mask
from attncourse.multi_head import check_heads, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary, check_rotary

BLOCK = 128  # queries at a time, at most


def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, window: int, causal: bool = True
) -> Tensor:
    """softmax(query keyᵀ / √D) value over the keys less than `window` tokens away; with `causal`, none after the query.

    query (B, H, T, D), key (B, G, S, D), value (B, G, S, Dv), the queries being the last T of S positions. G divides
    H, and query head h reads key head h // (H/G). mask: padding of the keys, (B, 1, 1, S), True = may attend, and
    nothing else. Returns (B, H, T, Dv); a query with no key gets zeros.

    It goes through blocks of queries, each with the keys that any of them sees, so time and memory grow with T·W.
    Raises ValueError for a window below 1, heads or shapes that do not fit and full masks; TypeError for dtypes.
    """
    check_at_least_one(window=window)
    padding = check_grouped(query, key, value, mask)  # (B or 1, S) or None
    (B, H, T, D), (G, S), n_shared = query.shape, key.shape[1:3], query.shape[1] // key.shape[1]
    if T == 0:
        return value.new_zeros(B, H, 0, value.shape[-1])
    if T == 1 and window >= S:  # a decoding step: it sees every key, in whatever order they are stored
        return grouped_query_attention(query, key, value, mask, causal=False)
    query_sizes, key_sizes, blocks = near_blocks(T, S, window=window, causal=causal, device=query.device)
    # One split for all blocks: had each a slice of its own, each gradient would be as long as the keys.
    queries, keys, values = query.split(query_sizes, 2), key.split(key_sizes, 2), value.split(key_sizes, 2)
    reals = None if padding is None else padding[:, None, None].split(key_sizes, 3)  # (B or 1, 1, 1, keys) each
    outputs = []
    for queries_here, (near, allowed) in zip(queries, blocks, strict=True):
        near_key, near_value = torch.cat(keys[near], 2), torch.cat(values[near], 2)  # (B, G, keys, D or Dv)
        rows = queries_here.shape[2]
        grouped = queries_here.reshape(B, G, n_shared * rows, D)  # the heads that share keys, one below the other
        allowed = allowed.repeat(n_shared, 1)  # (H/G · queries, keys)
        if reals is None:
            output = fused_attention(grouped, near_key, near_value, allowed)  # no row is empty
        else:
            allowed = allowed & torch.cat(reals[near], 3)
            output = scaled_dot_product_attention(grouped, near_key, near_value, allowed)
        outputs.append(output.reshape(B, H, rows, value.shape[-1]))
    return torch.cat(outputs, 2)  # (B, H, T, Dv)


def near_blocks(
    T: int, S: int, *, window: int, causal: bool, device: torch.device | None = None
) -> tuple[list[int], list[int], list[tuple[slice, Tensor]]]:
    """How to cut T queries, the last of S positions, and S keys into blocks, a few of keys for each of queries.

    Returns the sizes of the blocks of queries and of keys, and for each block of queries which blocks of keys hold what
    any of them sees, a slice, and which of those each sees, boolean (queries, keys).
    """
    window = min(window, S)  # a longer one sees no more, and shall not cost more
    block, past, reach = min(max(window, 16), BLOCK), S - T, window - 1
    before = -(-reach // block) * block  # whole blocks; after a block they reach as far, where not causal
    after = 0 if causal else before
    distance = torch.arange(block, device=device)[:, None] - torch.arange(-before, block + after, device=device)
    band = (distance < window) & (distance >= (0 if causal else -reach))  # (block, before + block + after)
    offset = past % block or block
    edges = [0, *range(offset, S, block), S]  # where blocks of keys begin and end: at those of queries
    blocks = []
    for start in range(past, S, block):
        end = min(start + block, S)
        first = (max(0, start - reach) - offset) // block + 1
        last = -(-((end if causal else min(S, end + reach)) - offset) // block) + 1
        columns = slice(edges[first] - start + before, edges[last] - start + before)
        blocks.append((slice(first, last), band[: end - start, columns]))
    sizes = [end - start for start, end in pairwise(edges)]
    return sizes[-len(blocks) :], sizes, blocks


def check_grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """What heads (B, H, T, D), (B, G, S, D), (B, G, S, Dv) must fit in, and the padding as (B or 1, S) or None."""
    check_shared_heads(query, key, value)
    return check_padding(mask, query.shape[0], key.shape[2], query.device)


class SlidingWindowAttention(nn.Module):
    """Multi-head attention in which a token sees the last `window` tokens, its own included.

    n_kv_heads: how many heads of keys and values the query heads share (default n_heads). causal=False: tokens less
    than `window` away, on both sides. rotary: a `RotaryEmbedding(d_model / n_heads)` for queries and keys. Parameters
    `q_proj`, `k_proj`, `v_proj`, `o_proj`, named and laid out as in Hugging Face's Mistral. Raises ValueError where
    sizes do not divide.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        window: int,
        n_kv_heads: int | None = None,
        causal: bool = True,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_heads(d_model, n_heads, n_kv_heads)
        check_at_least_one(window=window)
        head_dim = d_model // n_heads
        check_rotary(rotary, head_dim)
        self.n_heads, self.n_kv_heads, self.window, self.causal = n_heads, n_kv_heads, window, causal
        self.rotary = rotary
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> RollingKVCache:
        """An empty cache for the last `window` tokens, or max_length where it is less, like the layer's weights."""
        weight = self.k_proj.weight
        head_dim = weight.shape[0] // self.n_kv_heads
        return RollingKVCache(
            batch_size,
            self.n_kv_heads,
            self.window,
            head_dim,
            max_length=max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cache: RollingKVCache | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, S)) with `return_weights`.

        With a cache, x continues what it has seen, and S counts all tokens so far; else S = T. mask: padding of all S
        tokens, (B, 1, 1, S), True = may attend. Weights are built as T×S, and not with a cache, which forgets keys.
        """
        check_sequence("x", x, self.q_proj)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        check_padding(mask, B, past + T, x.device)  # before anything is stored
        self._check_cache(cache, return_weights)
        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.k_proj(x), self.n_kv_heads)  # (B, G, T, D)
        value = split_heads(self.v_proj(x), self.n_kv_heads)
        if self.rotary is not None:
            positions = torch.arange(past, past + T, device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        if return_weights:
            return self._with_weights(query, key, value, mask)
        if cache is not None:
            key, value, seen = cache.append(key, value)  # (B, G, S', D), positions (S',)
            mask = None if mask is None else mask[..., seen]
        output = sliding_window_attention(query, key, value, mask, window=self.window, causal=self.causal)
        return self.o_proj(merge_heads(output))  # (B, T, d_model)

    def _check_cache(self, cache: RollingKVCache | None, return_weights: bool) -> None:
        check_cache(cache, RollingKVCache, self.causal)
        if cache is not None and cache.window != self.window:
            raise ValueError(
                f"the cache keeps {cache.window} tokens, the layer's window is {self.window}: use new_cache"
            )
        if cache is not None and return_weights:
            raise ValueError("a cache forgets keys, so there are no weights (B, H, T, S) to return: call without it")

    def _with_weights(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same through the T×T mask."""
        allowed = sliding_window_mask(query.shape[2], window=self.window, causal=self.causal).to(query.device)
        allowed = allowed if padding is None else allowed & padding
        output, weights = grouped_query_attention(query, key, value, allowed, causal=False, return_weights=True)
        return self.o_proj(merge_heads(output)), weights
