"""Sparse attention: each query sees a chosen few keys, and only those are scored.

What is seen is a pattern of one or more parts (`attncourse.patterns`). Each part is a softmax of its own over its
tiles, and log-sum-exp merges the softmaxes exactly into one.

Child et al. 2019, section 4.3, with parts of later papers beside theirs. Every head sees the whole pattern, as the
"merged" head of section 5.1 does; the paper's other two ways give a part to each layer, or to each head.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from attncourse.attention import (
    at_least_float32,
    check_padding,
    check_sequence,
    check_tensors,
    scaled_dot_product_attention,
)
from attncourse.kv_cache import KVCache, check_cache
from attncourse.multi_head import check_heads, merge_heads, split_heads
from attncourse.patterns import (
    Dilated,
    Fixed,
    GlobalTokens,
    Part,
    RandomBlocks,
    Strided,
    Window,
    parts_of,
    pattern_mask,
)
from attncourse.positions import RotaryEmbedding, apply_rotary, check_rotary

__all__ = [
    "Dilated",
    "Fixed",
    "GlobalTokens",
    "RandomBlocks",
    "SparseAttention",
    "Strided",
    "Window",
    "merge_parts",
    "pattern_mask",
    "softmax_part",
    "sparse_attention",
]


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    pattern: Part | list[Part],
    causal: bool = True,
) -> Tensor:
    """Scaled dot-product attention over the pairs that the pattern sees, and no later key where causal.

    query (B, H, T, D), key (B, H, S, D), value (B, H, S, Dv), the queries being the last T of S positions. mask:
    padding of the keys, (B, 1, 1, S), True = may attend. Returns (B, H, T, Dv); a query with padding only gets zeros.

    Only tiles are scored: their pairs, not T·S, are the cost. Raises ValueError for a pattern that leaves a query
    without a key, shapes that do not fit and full masks; TypeError for dtypes, and for a part that is none.
    """
    parts = parts_of(pattern)
    check_tensors(query, key, value)
    if query.dim() != 4 or query.shape[2] > key.shape[2]:
        raise ValueError(f"query {tuple(query.shape)} must be (B, H, T, D), with T at most S={key.shape[2]}")
    padding = check_padding(mask, query.shape[0], key.shape[2], query.device)  # (B or 1, S) or None
    T, S, dtype = query.shape[2], key.shape[2], value.dtype
    if T == 0:
        return value[:, :, :0]
    plan = _plan(parts, S - T, S, causal, query.device)
    # In float32 at least, as fused kernels do inside: a bfloat16 score of 8 is off by up to 0.03, its weight by 3 %.
    query, key, value = (at_least_float32(x) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        return _by_tiles(query, key, value, padding, plan).to(dtype)


def _by_tiles(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, plan: list) -> Tensor:
    T, outputs, log_sums = query.shape[2], [], []
    for rows, columns, allowed, place, index in plan:
        if padding is not None:
            allowed = allowed & padding[:, columns][:, None, :, None]  # (B or 1, 1, N, R, C)
        tiles = query[:, :, rows], key[:, :, columns], value[:, :, columns]  # (B, H, N, R or C, D or Dv)
        output, log_sum = softmax_part(*tiles, allowed)  # (B, H, N, R, Dv), (B, H, N, R)
        output, log_sum = (x.flatten(2, 3)[:, :, place] for x in (output, log_sum))
        if len(place) < T:
            nothing = torch.finfo(query.dtype).min
            output = value.new_zeros(*query.shape[:3], value.shape[-1]).index_copy(2, index, output)
            log_sum = query.new_full(query.shape[:3], nothing).index_copy(2, index, log_sum)
        outputs.append(output)
        log_sums.append(log_sum)
    return merge_parts(outputs, log_sums)


def softmax_part(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (…, R, Dv) over the allowed pairs, and the logarithm of its sum of exponentials, (…, R).

    A row with nothing allowed has output 0 and the smallest number as its logarithm.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (…, R, C)
    scores.masked_fill_(~allowed, float("-inf"))
    limits = torch.finfo(scores.dtype)
    peak = scores.detach().amax(-1, keepdim=True).clamp(min=limits.min)  # (…, R, 1)
    shares = scores.sub_(peak).exp_()  # in place: the tiles are most of the memory
    total = shares.sum(-1, keepdim=True).clamp(min=limits.tiny)
    return shares @ value / total, (peak + total.log())[..., 0].clamp(min=limits.min)


def merge_parts(outputs: list[Tensor], log_sums: list[Tensor]) -> Tensor:
    """One softmax from softmaxes over disjoint keys: outputs (…, Dv) weighted by the softmax of their log-sums (…)."""
    weights = torch.stack(log_sums).softmax(0)[..., None]  # (P, …, 1)
    return sum(weight * output for weight, output in zip(weights, outputs, strict=True))


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept outlives this call, and training needs it too
def _plan(
    parts: tuple[Part, ...], first: int, end: int, causal: bool, device: torch.device
) -> list[tuple[Tensor, ...]]:
    """For each set of tiles: rows (N, R) and columns (N, C) to gather, which pairs count (N, R, C), and where rows go.

    A pair that an earlier part sees does not count again. Rows count from the first query.
    """
    plan, seen = [], torch.zeros(end - first, dtype=torch.bool)
    for p, part in enumerate(parts):
        for rows, columns in part.tiles(first, end, causal):
            inside, exists = (rows >= first) & (rows < end), (columns >= 0) & (columns < end)
            used = inside.any(1)
            rows, columns, inside, exists = rows[used], columns[used], inside[used], exists[used]
            rows, inside = rows[:, inside.any(0)], inside[:, inside.any(0)]
            if not rows.numel():
                continue
            query, key = rows[:, :, None], columns[:, None]  # (N, R, 1), (N, 1, C)
            allowed = part.sees(query, key) & inside[:, :, None] & exists[:, None]  # (N, R, C)
            for other in parts[:p]:
                allowed &= ~other.sees(query, key)
            if causal:
                allowed &= key <= query
            position = (rows - first).flatten()
            place = inside.flatten().nonzero()[:, 0]
            place = place[position[place].argsort()]  # where in the tiles the queries are, in their order
            seen[position[place]] |= allowed.any(-1).flatten()[place]
            rows, columns = (rows - first).clamp(0, end - first - 1), columns.clamp(0, end - 1)
            plan.append(tuple(x.to(device) for x in (rows, columns, allowed, place, position[place])))
    if not seen.all():
        empty = first + int((~seen).nonzero()[0])
        raise ValueError(f"the pattern leaves query {empty} without a key: add Window(1), the token itself, to {parts}")
    return plan


class SparseAttention(nn.Module):
    """Multi-head attention in which each token sees what `pattern` says: a part, or several whose union is seen.

    For example `[Window(64), Strided(64)]`. Parts: `Window`, `Dilated`, `Strided`, `Fixed`, `GlobalTokens`,
    `RandomBlocks`. rotary: a `RotaryEmbedding(d_model / n_heads)` for queries and keys. Parameters `q_proj`, `k_proj`,
    `v_proj`, `o_proj`. Raises ValueError where sizes do not divide, TypeError for a part that is none.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        pattern: Part | list[Part],
        causal: bool = True,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__()
        check_heads(d_model, n_heads)
        check_rotary(rotary, d_model // n_heads)
        self.n_heads, self.pattern, self.causal, self.rotary = n_heads, parts_of(pattern), causal, rotary
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache, of the layer's dtype and on its device: a pattern may come back to any token, so all stay."""
        weight = self.k_proj.weight
        head_dim = weight.shape[0] // self.n_heads
        return KVCache(batch_size, self.n_heads, max_length, head_dim, dtype=weight.dtype, device=weight.device)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, S)) with `return_weights`.

        With a cache, x continues what it holds, and S counts all tokens so far; else S = T. mask: padding of all S
        tokens, (B, 1, 1, S), True = may attend. Weights are built as T×S.
        """
        check_sequence("x", x, self.q_proj)
        check_cache(cache, KVCache, self.causal)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        check_padding(mask, B, past + T, x.device)  # before anything is stored
        query, key, value = (
            split_heads(project(x), self.n_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary is not None:
            positions = torch.arange(past, past + T, device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        if T:
            _plan(self.pattern, past, past + T, self.causal, x.device)  # a query without a key: found before storing
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H, S, D)
        if return_weights:
            allowed = pattern_mask(T, past + T, pattern=self.pattern, causal=self.causal).to(x.device)
            allowed = allowed if mask is None else allowed & mask
            output, weights = scaled_dot_product_attention(query, key, value, allowed, return_weights=True)
            return self.o_proj(merge_heads(output)), weights
        output = sparse_attention(query, key, value, mask, pattern=self.pattern, causal=self.causal)
        return self.o_proj(merge_heads(output))  # (B, T, d_model)
