"""Multi-head latent attention: one small vector a token makes the keys and values of all heads, and only it is kept.

DeepSeek-AI 2024 (DeepSeek-V2), section 2.1 and appendix C. Follows the paper, with the norms of its section 3.1.2;
`absorbed_attention` is the form that section 2.1.2 describes in words, but no product of weights is made. Letters: C
numbers of the latent, R of the rotated part, N of a head's other keys, V of its values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import (
    check_at_least_one,
    check_mask,
    check_sequence,
    scaled_dot_product_attention,
)
from attncourse.causal import causal_attention
from attncourse.gqa import grouped_query_attention
from attncourse.kv_cache import KVCache, check_cache
from attncourse.multi_head import merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary


class LatentCache(KVCache):
    """Room for `max_length` entries (B, 1, S, C + R) of one layer: a token's normed latent, then its rotated key.

    For every head the entry is the key, and its first C numbers are the value: `value` is a view of `key`. The rest is
    as in `KVCache`.
    """

    def __init__(
        self,
        batch_size: int,
        max_length: int,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        check_at_least_one(batch_size=batch_size, max_length=max_length)
        check_at_least_one(kv_lora_rank=kv_lora_rank, qk_rope_head_dim=qk_rope_head_dim)
        size = (batch_size, 1, max_length, kv_lora_rank + qk_rope_head_dim)
        self.key = torch.zeros(size, dtype=dtype, device=device)
        self.value = self.key[..., :kv_lora_rank]
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, full or not."""
        return self.key.untyped_storage().nbytes()

    def append(self, entries: Tensor) -> Tensor:
        """Store new entries (B, 1, T, C + R); returns all so far, (B, 1, length, C + R), a view as in `KVCache`."""
        self._check_new(entries, entries[..., : self.value.shape[-1]])
        end = self.length + entries.shape[2]
        self.key[:, :, self.length : end] = entries.detach()  # and so the values, a view of it
        self.length = end
        return self.key[:, :, :end].to(entries.dtype)


def expanded_attention(
    query: Tensor,
    entries: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool = True,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Multi-head attention with every head's keys and values projected up from the entries: the naive way.

    query (B, H, T, N + R), its last R numbers rotated; entries (B, 1, S, C + R) as a `LatentCache` keeps them; up_key
    (H, N, C), up_value (H, V, C); mask boolean, broadcastable to (B, H, T, S), ANDed with the causal pattern. Returns
    (B, H, T, V), or (output, weights (B, H, T, S)). Costs C · H · (N + V) multiplications for each of S entries.
    """
    _check_parts(query, entries, up_key)
    H, C, V = query.shape[1], up_key.shape[2], up_value.shape[1]
    latent, key_rope = entries.split([C, entries.shape[-1] - C], -1)  # (B, 1, S, C), (B, 1, S, R)
    up = torch.cat([up_key, up_value], 1).flatten(0, 1)  # (H·(N+V), C)
    key, value = split_heads(F.linear(latent[:, 0], up), H).split([up_key.shape[1], V], -1)  # (B, H, S, N), (…, V)
    key = torch.cat([key, key_rope.expand(-1, H, -1, -1)], -1)  # (B, H, S, N + R)
    width = max(key.shape[-1], V)  # fused kernels want values as wide as keys; zeros change neither
    query, key, value = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    if causal:
        result = causal_attention(query, key, value, mask, scale=scale, return_weights=return_weights)
    else:
        result = scaled_dot_product_attention(query, key, value, mask, scale=scale, return_weights=return_weights)
    return (result[0][..., :V], result[1]) if return_weights else result[..., :V]


def absorbed_attention(
    query: Tensor,
    entries: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool = True,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same as `expanded_attention`, with the up-projections moved to the queries and to the outputs.

    qᵀ (U c) = (Uᵀ q)ᵀ c, so a query projected to C numbers meets the latents as they are, and latents averaged by the
    weights are projected up once: multi-query attention over the entries. No entry is expanded, which pays for few
    queries. Asking for weights builds the scores (B, H, T, S).
    """
    _check_parts(query, entries, up_key)
    N, C = up_key.shape[1:]
    query_nope, query_rope = query.split([N, query.shape[-1] - N], -1)
    query_latent = torch.einsum("bhtn,hnc->bhtc", query_nope, up_key)
    query = torch.cat([query_latent, query_rope], -1)  # (B, H, T, C + R)
    # The whole entry as its value, and its first C numbers kept: fused kernels want values as wide as keys.
    result = grouped_query_attention(
        query, entries, entries, mask, causal=causal, scale=scale, return_weights=return_weights
    )
    latent, weights = result if return_weights else (result, None)
    output = torch.einsum("bhtc,hvc->bhtv", latent[..., :C], up_value)
    return (output, weights) if return_weights else output


def _check_parts(query: Tensor, entries: Tensor, up_key: Tensor) -> None:
    H, N, C = up_key.shape
    shapes = f"query {tuple(query.shape)}, entries {tuple(entries.shape)}, up_key {(H, N, C)}"
    if query.dim() != 4 or entries.dim() != 4 or query.shape[1] != H or entries.shape[1] != 1:
        raise ValueError(f"they must be (B, H, T, N + R), (B, 1, S, C + R) and (H, N, C): {shapes}")
    if query.shape[-1] - N != entries.shape[-1] - C:
        raise ValueError(f"query turns {query.shape[-1] - N} numbers, entries {entries.shape[-1] - C}: {shapes}")


class MultiHeadLatentAttention(nn.Module):
    """Attention whose keys and values come from a latent of kv_lora_rank numbers, and a rotated key that heads share.

    A head's query and key have qk_nope_head_dim numbers without and qk_rope_head_dim (even) with rotation, its value
    v_head_dim. q_lora_rank: queries come from a latent too. scale: of the scores, default (N + R) ** -0.5.
    decoding: "absorbed", where that costs less than expanding what a cache holds, or always "naive". Norms have epsilon
    1e-6. Parameters `q_proj` (or `q_a_proj`, `q_a_layernorm`, `q_b_proj`), `kv_a_proj_with_mqa`, `kv_a_layernorm`,
    `kv_b_proj`, `o_proj`, named and laid out as in Hugging Face's DeepSeek V2 and V3. Raises ValueError for sizes.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None = None,
        rope_interleaved: bool = True,
        rotary_base: float = 10000.0,
        scale: float | None = None,
        decoding: str = "absorbed",
        causal: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        C, N, R, V = kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim
        check_at_least_one(d_model=d_model, n_heads=n_heads, kv_lora_rank=C, qk_nope_head_dim=N, v_head_dim=V)
        if R < 2 or R % 2:
            raise ValueError(f"qk_rope_head_dim={R}, but numbers are turned in pairs: it must be even and at least 2")
        if decoding not in ("absorbed", "naive"):
            raise ValueError(f"decoding={decoding!r}, but it must be absorbed or naive")
        self.n_heads, self.causal, self.decoding = n_heads, causal, decoding
        self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = C, N, R, V
        self.scale = (N + R) ** -0.5 if scale is None else scale
        self.rotary = RotaryEmbedding(R, rotary_base, rope_interleaved)
        if q_lora_rank is None:
            self.q_proj = nn.Linear(d_model, n_heads * (N + R), bias=False)
        else:
            check_at_least_one(q_lora_rank=q_lora_rank)
            self.q_a_proj = nn.Linear(d_model, q_lora_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(q_lora_rank, n_heads * (N + R), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d_model, C + R, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(C, eps=1e-6)
        self.kv_b_proj = nn.Linear(C, n_heads * (N + V), bias=False)
        self.o_proj = nn.Linear(n_heads * V, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> LatentCache:
        """An empty cache of C + R numbers a token, of the layer's dtype and on its device."""
        weight = self.kv_b_proj.weight
        sizes = batch_size, max_length, self.kv_lora_rank, self.qk_rope_head_dim
        return LatentCache(*sizes, dtype=weight.dtype, device=weight.device)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: LatentCache | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, S)) with `return_weights`.

        With a cache, x continues what it holds, and S counts all tokens so far; else S = T. A cache is for inference:
        no gradient passes through it. mask is boolean, True = may attend, broadcastable to (B, H, T, S): padding is
        (B, 1, 1, S). Asking for weights builds T×S of them.
        """
        check_sequence("x", x, self.kv_a_proj_with_mqa)
        check_cache(cache, LatentCache, self.causal)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        check_mask(mask, (B, self.n_heads, T, past + T), x.device)  # before anything is stored
        positions = torch.arange(past, past + T, device=x.device)
        query, entries = self._queries(x, positions), self._entries(x, positions)
        if cache is not None:
            entries = cache.append(entries)  # (B, 1, S, C + R)
        attend = absorbed_attention if past and self._absorbs(T) else expanded_attention
        result = attend(
            query,
            entries,
            *self.up_projections(),
            mask,
            scale=self.scale,
            causal=self.causal,
            return_weights=return_weights,
        )  # (B, H, T, V), and weights (B, H, T, S)
        if return_weights:
            output, weights = result
            return self.o_proj(merge_heads(output)), weights
        return self.o_proj(merge_heads(result))  # (B, T, d_model)

    def up_projections(self) -> tuple[Tensor, Tensor]:
        """What makes keys (H, N, C) and values (H, V, C) of a latent: the rows of kv_b_proj, head by head."""
        by_head = self.kv_b_proj.weight.unflatten(0, (self.n_heads, -1))  # (H, N + V, C)
        return tuple(by_head.split([self.qk_nope_head_dim, self.v_head_dim], 1))

    def _queries(self, x: Tensor, positions: Tensor) -> Tensor:
        flat = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        query, to_turn = split_heads(flat, self.n_heads).split([self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
        return torch.cat([query, apply_rotary(to_turn, positions, self.rotary)], -1)  # (B, H, T, N + R)

    def _entries(self, x: Tensor, positions: Tensor) -> Tensor:
        latent, key = self.kv_a_proj_with_mqa(x).split([self.kv_lora_rank, self.qk_rope_head_dim], -1)
        key = apply_rotary(key, positions, self.rotary)
        return torch.cat([self.kv_a_layernorm(latent), key], -1)[:, None]  # (B, 1, T, C + R)

    def _absorbs(self, T: int) -> bool:
        """Whether T queries cost less on latents than the expansion, which narrows 2C numbers a score to N + V."""
        C, N, V = self.kv_lora_rank, self.qk_nope_head_dim, self.v_head_dim
        return self.decoding == "absorbed" and T * (2 * C - N - V) < C * (N + V)
