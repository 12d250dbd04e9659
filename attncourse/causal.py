"""Causal self-attention: a token sees itself and what came before, never what comes after.

Vaswani et al. 2017, section 3.2.3 ("masked" attention of the decoder). Differs from the paper: the mask is boolean and
aligned by position, so that a piece of a sequence, whose earlier keys stand in a cache, is masked right.
"""

from torch import Tensor, nn

from attncourse.attention import (
    check_at_least_one,
    check_mask,
    check_sequence,
    check_tensors,
    fused_attention,
    scaled_dot_product_attention,
    without_head_axis,
)
from attncourse.kv_cache import KVCache, check_cache
from attncourse.masks import causal_mask


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention in which no query sees a later key. Shapes as in `scaled_dot_product_attention`.

    The T queries are the last T of S positions: the last query sees the last key. A mask is ANDed with that.
    """
    check_tensors(query, key, value)
    T, S = query.shape[-2], key.shape[-2]
    if T == S and mask is None and bias is None and not return_weights:
        return fused_attention(query, key, value, scale=scale, causal=True)  # never makes the T×T mask
    if T > 1:  # a single query is the last position, and sees every key
        check_mask(mask, (*query.shape[:-1], S), query.device)
        pattern = causal_mask(T, S, device=query.device)  # (T, S)
        mask = pattern if mask is None else pattern & mask
    return scaled_dot_product_attention(query, key, value, mask, scale=scale, bias=bias, return_weights=return_weights)


class CausalSelfAttention(nn.Module):
    """Self-attention of one head that looks back only; parameters and sizes as in `SelfAttention`.

    `causal=False` takes the restriction away.
    """

    def __init__(self, d_model: int, d_head: int | None = None, *, causal: bool = True, bias: bool = False):
        super().__init__()
        d_head = d_model if d_head is None else d_head
        check_at_least_one(d_model=d_model, d_head=d_head)
        self.causal = causal
        self.q_proj = nn.Linear(d_model, d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, d_head, bias=bias)
        self.o_proj = nn.Linear(d_head, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache, of the layer's dtype and on its device."""
        weight = self.k_proj.weight
        return KVCache(batch_size, 1, max_length, weight.shape[0], dtype=weight.dtype, device=weight.device)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, T, S)) with `return_weights`.

        With a cache, x continues what the cache holds, and S counts all tokens so far; else S = T. mask is boolean,
        True = may attend, broadcastable to (B, T, S) or (B, 1, T, S), and is ANDed with the causal pattern.
        """
        check_sequence("x", x, self.q_proj)
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, D) each
        mask = without_head_axis(mask)
        check_cache(cache, KVCache, self.causal)
        if cache is not None:
            check_mask(mask, (*x.shape[:2], cache.length + x.shape[1]), x.device)  # before anything is stored
            key, value = (kv[:, 0] for kv in cache.append(key[:, None], value[:, None]))  # (B, S, D) each
        attend = causal_attention if self.causal else scaled_dot_product_attention
        result = attend(query, key, value, mask, return_weights=return_weights)
        if return_weights:
            output, weights = result  # (B, T, D), (B, T, S)
            return self.o_proj(output), weights
        return self.o_proj(result)  # (B, T, d_model)
