"""Multi-head attention: H attentions side by side, each in its own d_model / H numbers of the projections.

Vaswani et al. 2017, section 3.2.2. Differs from the paper: no biases by default, no dropout, and what the paper has not
but models ship, a causal pattern aligned for a cache, and positions by rotation or ALiBi.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import check_at_least_one, check_mask, check_sequence, scaled_dot_product_attention
from attncourse.causal import causal_attention
from attncourse.kv_cache import KVCache, check_cache
from attncourse.positions import RotaryEmbedding, alibi_bias, apply_rotary, check_rotary


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H·D) as (B, H, T, D): head h gets numbers h·D … h·D + D - 1 of every token."""
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; it needs three axes, (B, T, d_model)")
    if n_heads < 1 or x.shape[-1] % n_heads:
        raise ValueError(f"d_model={x.shape[-1]} is not divisible by n_heads={n_heads}")
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, H, T, D)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) as (B, T, H·D), the inverse of `split_heads`."""
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it needs four axes, (B, H, T, D)")
    return x.transpose(1, 2).flatten(2)  # (B, T, H·D)


def check_heads(d_model: int, n_heads: int, n_kv_heads: int = 1) -> None:
    """Raise ValueError unless n_heads heads share d_model numbers evenly, and n_kv_heads key-value heads evenly."""
    check_at_least_one(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)
    if d_model % n_heads:
        raise ValueError(f"d_model={d_model} is not divisible by n_heads={n_heads}")
    if n_heads % n_kv_heads:
        raise ValueError(f"n_heads={n_heads} is not divisible by n_kv_heads={n_kv_heads}")


class MultiHeadAttention(nn.Module):
    """Each head: softmax(Q Kᵀ / √D) V with D = d_model / n_heads; the heads joined, then projected.

    causal: look back only. d_context: the width of another sequence to read keys and values from (cross-attention).
    rotary: a `RotaryEmbedding(D)` that turns queries and keys; alibi: subtract slope · distance from the scores.
    Parameters `q_proj`, `k_proj`, `v_proj`, `o_proj`, named and laid out as in Hugging Face's Llama. Raises
    ValueError where d_model is not divisible by n_heads, or the options contradict each other.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        causal: bool = False,
        d_context: int | None = None,
        rotary: RotaryEmbedding | None = None,
        alibi: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        check_heads(d_model, n_heads)
        check_rotary(rotary, d_model // n_heads)
        if d_context is not None and (causal or rotary is not None or alibi):
            raise ValueError(f"d_context={d_context} reads another sequence: causal, rotary and alibi have no meaning")
        d_source = d_model if d_context is None else d_context
        check_at_least_one(d_context=d_source)
        self.n_heads, self.causal, self.crosses, self.alibi = n_heads, causal, d_context is not None, alibi
        self.rotary = rotary
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_source, d_model, bias=bias)
        self.v_proj = nn.Linear(d_source, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache, of the layer's dtype and on its device."""
        weight = self.k_proj.weight
        head_dim = weight.shape[0] // self.n_heads
        return KVCache(batch_size, self.n_heads, max_length, head_dim, dtype=weight.dtype, device=weight.device)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, S)) with `return_weights`.

        Keys and values come from context (B, S, d_context) where the layer has a d_context, else from x and what the
        cache holds, which x continues. mask is boolean, True = may attend, broadcastable to (B, H, T, S), and ANDed
        with the causal pattern: padding is (B, 1, 1, S). A token with nothing to attend to gives zeros before o_proj.
        """
        check_sequence("x", x, self.q_proj)
        source = self._source(x, context)
        check_cache(cache, KVCache, self.causal)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        S = past + source.shape[1]
        check_mask(mask, (B, self.n_heads, T, S), x.device)  # before anything is stored

        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.k_proj(source), self.n_heads)
        value = split_heads(self.v_proj(source), self.n_heads)
        if self.rotary is not None:
            positions = torch.arange(past, past + T, device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H, S, D)
        bias = alibi_bias(self.n_heads, T, S, device=x.device).to(query.dtype) if self.alibi and T else None
        attend = causal_attention if self.causal else scaled_dot_product_attention
        result = attend(query, key, value, mask, bias=bias, return_weights=return_weights)
        if return_weights:
            output, weights = result  # (B, H, T, D), (B, H, T, S)
            return self.o_proj(merge_heads(output)), weights
        return self.o_proj(merge_heads(result))  # (B, T, d_model)

    def _source(self, x: Tensor, context: Tensor | None) -> Tensor:
        if not self.crosses:
            if context is not None:
                raise ValueError("this layer reads one sequence: make it with d_context=… to read another")
            return x
        if context is None:
            raise ValueError(f"this layer reads another sequence: give context (B, S, {self.k_proj.in_features})")
        check_sequence("context", context, self.k_proj)
        if x.shape[0] != context.shape[0]:
            raise ValueError(f"batch sizes differ: x {x.shape[0]}, context {context.shape[0]}")
        return context
