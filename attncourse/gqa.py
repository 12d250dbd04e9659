"""Grouped-query attention: H query heads share G heads of keys and values, so a cache holds G instead of H.

Ainslie et al. 2023, section 2. Differs from the paper: what it calls groups is `n_kv_heads` here. G = H is multi-head
attention, G = 1 is multi-query attention.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import (
    check_mask,
    check_sequence,
    check_shared_heads,
    fused_attention,
    scaled_dot_product_attention,
)
from attncourse.kv_cache import KVCache, check_cache
from attncourse.masks import causal_mask
from attncourse.multi_head import MultiHeadAttention, check_heads, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary, check_rotary

FEW_ROWS = 64


def grouped_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention in which query head h reads key and value head h // (H/G).

    query (B, H, T, D), key (B, G, S, D), value (B, G, S, Dv); G divides H. The queries are the last T of S positions,
    and with `causal` none sees a later key. mask: boolean, True = may attend, broadcastable to (B, H, T, S), ANDed
    with that. Returns (B, H, T, Dv), or (output, weights (B, H, T, S)). A query with no key gets zeros.

    Keys and values are never repeated in memory. Few queries, as in decoding, become H/G · T rows for each key head,
    which then is read once. With Dv unlike D and many queries, PyTorch may fall back to a kernel that builds T×S.
    Raises ValueError for heads or shapes that do not fit, TypeError for dtypes.
    """
    n_shared = check_shared_heads(query, key, value)  # H/G
    (B, H, T, D), (G, S), Dv = query.shape, key.shape[1:3], value.shape[3]
    check_mask(mask, (B, H, T, S), query.device)
    few = T == 1 or T * n_shared <= FEW_ROWS
    if causal and T > 1 and (T < S or mask is not None or return_weights or few):
        pattern = causal_mask(T, S, device=query.device)  # (T, S); the last query sees the last key
        mask = pattern if mask is None else pattern & mask
    if return_weights or few:
        rows = query.reshape(B, G, n_shared * T, D)  # the heads that share keys, one below the other
        if mask is not None:
            mask = _as_rows(mask, T, n_shared)
        result = scaled_dot_product_attention(rows, key, value, mask, scale=scale, return_weights=return_weights)
        if return_weights:
            output, weights = result
            return output.reshape(B, H, T, Dv), weights.reshape(B, H, T, S)
        return result.reshape(B, H, T, Dv)
    # Each key head in a batch of its own; `expand` reads it H/G times, and stores it once.
    query = query.reshape(B * G, n_shared, T, D)
    key, value = (x.flatten(0, 1)[:, None].expand(-1, n_shared, -1, -1) for x in (key, value))  # (B·G, H/G, S, …)
    if mask is None:
        output = fused_attention(query, key, value, scale=scale, causal=causal)
    else:
        output = scaled_dot_product_attention(query, key, value, _by_key_head(mask, B, G, n_shared), scale=scale)
    return output.reshape(B, H, T, Dv)


def _by_key_head(mask: Tensor, B: int, G: int, n_shared: int) -> Tensor:
    """A mask that broadcasts to (B, H, T, S), as one that broadcasts to (B·G, H/G, T, S)."""
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.shape[0] == mask.shape[1] == 1:
        return mask
    heads = 1 if mask.shape[1] == 1 else n_shared
    return mask.expand(B, G * heads, -1, -1).reshape(B * G, heads, *mask.shape[2:])


def _as_rows(mask: Tensor, T: int, n_shared: int) -> Tensor:
    """A mask that broadcasts to (B, H, T, S), as one that broadcasts to (B, G, H/G · T, S)."""
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.shape[1] == mask.shape[2] == 1:
        return mask
    heads = n_shared if mask.shape[1] == 1 else mask.shape[1]
    return mask.expand(-1, heads, T, -1).unflatten(1, (-1, n_shared)).flatten(2, 3)


class GroupedQueryAttention(nn.Module):
    """Multi-head attention whose n_heads query heads share n_kv_heads heads of keys and values.

    rotary: a `RotaryEmbedding(d_model / n_heads)` for queries and keys. Parameters `q_proj`, `k_proj`, `v_proj`,
    `o_proj`, named and laid out as in Hugging Face's Llama. Raises ValueError where sizes do not divide.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        *,
        causal: bool = True,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__()
        check_heads(d_model, n_heads, n_kv_heads)
        head_dim = d_model // n_heads
        check_rotary(rotary, head_dim)
        self.n_heads, self.n_kv_heads, self.causal, self.rotary = n_heads, n_kv_heads, causal, rotary
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache of n_kv_heads heads, of the layer's dtype and on its device."""
        weight = self.k_proj.weight
        head_dim = weight.shape[0] // self.n_kv_heads
        return KVCache(batch_size, self.n_kv_heads, max_length, head_dim, dtype=weight.dtype, device=weight.device)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, S)) with `return_weights`.

        With a cache, x continues what it holds, and S counts all tokens so far; else S = T. A cache is for inference:
        no gradient passes through it. mask is boolean, True = may attend, broadcastable to (B, H, T, S): padding is
        (B, 1, 1, S). Asking for weights builds T×S of them.
        """
        check_sequence("x", x, self.q_proj)
        check_cache(cache, KVCache, self.causal)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        check_mask(mask, (B, self.n_heads, T, past + T), x.device)  # before anything is stored
        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.k_proj(x), self.n_kv_heads)  # (B, G, T, D)
        value = split_heads(self.v_proj(x), self.n_kv_heads)
        if self.rotary is not None:
            positions = torch.arange(past, past + T, device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, G, S, D)
        result = grouped_query_attention(
            query, key, value, mask, causal=self.causal, return_weights=return_weights
        )  # (B, H, T, D), and weights (B, H, T, S)
        if return_weights:
            output, weights = result
            return self.o_proj(merge_heads(output)), weights
        return self.o_proj(merge_heads(result))  # (B, T, d_model)


@torch.no_grad()
def group_heads(
    mha: MultiHeadAttention, n_kv_heads: int, method: str = "mean", *, seed: int = 0
) -> GroupedQueryAttention:
    """A grouped layer from a multi-head one: its first step of uptraining. The given layer stays as it is.

    Query and output projections are copied. Each set of H/G neighbouring key heads, and of value heads, becomes one:
    "mean" of them, the "first" of them, or a "random" new one, drawn by `seed` as `nn.Linear` draws. Ainslie et al.
    2023, section 2.1. Raises ValueError for another method, a G that does not divide H, and a layer that reads another
    sequence or has ALiBi, TypeError for another layer.
    """
    if method not in ("mean", "first", "random"):
        raise ValueError(f"method={method!r}, but it must be mean, first or random")
    if not isinstance(mha, MultiHeadAttention):
        raise TypeError(f"mha is a {type(mha).__name__}, but only a MultiHeadAttention can be converted")
    if mha.crosses or mha.alibi:
        raise ValueError(
            f"alibi={mha.alibi}, reads another sequence={mha.crosses}: neither has a place in grouped heads"
        )
    weight, bias = mha.q_proj.weight, mha.q_proj.bias is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gqa = GroupedQueryAttention(
            weight.shape[0], mha.n_heads, n_kv_heads, causal=mha.causal, rotary=mha.rotary, bias=bias
        ).to(weight)
    for name, old in mha.named_parameters():
        new = gqa.get_parameter(name)
        if name[0] not in "kv":  # q_proj and o_proj
            new.copy_(old)
        elif method != "random":
            heads = old.unflatten(0, (n_kv_heads, mha.n_heads // n_kv_heads, -1))  # (G, H/G, D, …)
            new.copy_((heads.mean(1) if method == "mean" else heads[:, 0]).flatten(0, 1))
    return gqa.train(mha.training)
