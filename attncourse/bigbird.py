"""BigBird: blocks of tokens see their neighbours, two global blocks and a few random ones, at a cost that grows with T.

Zaheer et al. 2020, section 2 and appendix D (blocks). Differs from the paper: random blocks are earlier ones, drawn
once for all heads, so that they depend on neither the length nor the future; `causal` may cut. As in the paper a block
reached in two ways counts once; transformers, in eval, takes block 0 for every random block and counts it each time.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import (
    check_at_least_one,
    check_padding,
    check_sequence,
    check_tensors,
    fused_attention,
    scaled_dot_product_attention,
)
from attncourse.masks import causal_mask, combine, global_mask, random_blocks, sliding_window_mask
from attncourse.multi_head import check_heads, merge_heads, split_heads


def bigbird_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    random: Tensor,
    mask: Tensor | None = None,
    *,
    block: int,
    causal: bool = False,
) -> Tensor:
    """softmax(query keyᵀ / √D) value over the keys of a few blocks: `bigbird_mask` without its T×T.

    query, key (B, H, T, D), value (B, H, T, Dv), cut into N = ⌈T / block⌉ blocks, the last one shorter where T is no
    multiple. Every query sees the first and the last block, its own and both beside it; the queries of the first and
    the last block see all. random (N, r), or (H, N, r) for heads that differ: the blocks that each block of queries
    sees besides, -1 for none. causal: nothing after the query, and of the global blocks only the first.
    mask: padding of the keys, (B, 1, 1, T), True = may attend, and nothing else; a query with no key gets zeros.
    Returns (B, H, T, Dv).

    Raises ValueError for shapes that do not fit, blocks that do not exist and full masks; TypeError for dtypes.
    """
    check_tensors(query, key, value)
    if query.dim() != 4 or query.shape != key.shape:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} need the same four axes, (B, H, T, D)")
    B, H, T, _ = query.shape
    check_padding(mask, B, T, query.device)
    check_random(random, T, block, H)
    if random.dim() == 3:  # heads that differ, one by one
        heads = zip(query.split(1, 1), key.split(1, 1), value.split(1, 1), random, strict=True)
        return torch.cat([bigbird_attention(*head, mask, block=block, causal=causal) for head in heads], 1)
    # One split for all blocks: had each a slice of its own, each gradient would be as long as x.
    queries, keys, values = (x.split(block, 2) for x in (query, key, value))
    reals = None if mask is None else mask.split(block, 3)
    outputs = []
    for n, drawn in enumerate(random.tolist()):
        seen = blocks_seen(n, len(keys), drawn, causal)
        near_key, near_value = (torch.cat([x[c] for c in seen], 2) for x in (keys, values))  # (B, H, keys, D or Dv)
        # The queries' own block is the last that a causal one sees, so the last query sees the last key.
        allowed = causal_mask(queries[n].shape[2], near_key.shape[2], device=query.device) if causal else None
        if reals is None:
            output = fused_attention(queries[n], near_key, near_value, allowed)  # no row is empty
        else:
            real = torch.cat([reals[c] for c in seen], 3)  # (B or 1, 1, 1, keys)
            allowed = real if allowed is None else allowed & real
            output = scaled_dot_product_attention(queries[n], near_key, near_value, allowed)
        outputs.append(output)  # (B, H, block, Dv)
    return torch.cat(outputs, 2)  # (B, H, T, Dv)


def blocks_seen(n: int, n_blocks: int, drawn: list[int], causal: bool) -> list[int]:
    """The blocks of keys that block n of the queries sees, each once and in order. drawn: its random ones."""
    last = n_blocks - 1
    if not causal and n in (0, last):
        return list(range(n_blocks))
    reached = {0, n - 1, n, *drawn} if causal else {0, n - 1, n, n + 1, last, *drawn}
    return sorted(c for c in reached if 0 <= c <= (n if causal else last))


def bigbird_mask(T: int, random: Tensor, *, block: int, causal: bool = False) -> Tensor:
    """The pattern of `bigbird_attention`, True where a query sees a key: (T, T), or (H, T, T) for heads that differ."""
    check_at_least_one(T=T)
    check_random(random, T, block)
    N = random.shape[-2]
    near = sliding_window_mask(N, window=2, causal=causal)  # (N, N), as are all until they are spread over tokens
    everywhere = global_mask(N, global_tokens=[0] if causal else [0, N - 1])
    drawn = (random[..., None].cpu() == torch.arange(N)).any(-2)  # (…, N, N)
    blocks = combine(near, everywhere, drawn)
    tokens = blocks.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :T, :T]  # (…, T, T)
    return tokens & causal_mask(T) if causal else tokens


def check_random(random: Tensor, T: int, block: int, n_heads: int | None = None) -> None:
    """Raise unless `random` names blocks of T tokens, for n_heads heads where it names them by head."""
    check_at_least_one(block=block)
    if random.is_floating_point() or random.dtype == torch.bool:
        raise TypeError(f"random has dtype {random.dtype}; it must hold indices of blocks, which are integers")
    N = max(1, -(-T // block))
    fits = random.dim() == 2 or (random.dim() == 3 and n_heads in (None, random.shape[0]))
    if not fits or random.shape[-2] != N:
        raise ValueError(
            f"random has shape {tuple(random.shape)}; {T} tokens in blocks of {block} need "
            f"(N, r)=({N}, r), or (H, N, r)=({'H' if n_heads is None else n_heads}, {N}, r)"
        )
    if random.numel() and (random.min() < -1 or random.max() >= N):
        least, most = int(random.min()), int(random.max())
        raise ValueError(f"random names blocks {least} … {most}, but there are 0 … {N - 1}, and -1 for none")


class BigBirdAttention(nn.Module):
    """Multi-head attention in which blocks of tokens see their neighbours, the global blocks and random ones.

    causal: none after the token itself, and only the first block is global. Random blocks are drawn from the earlier
    ones, by `random_blocks`. Raises ValueError where sizes do not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        block: int,
        n_random: int,
        seed: int = 0,
        causal: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        check_heads(d_model, n_heads)
        check_at_least_one(block=block)
        if n_random < 0:
            raise ValueError(f"n_random={n_random}, but it must be at least 0")
        self.n_heads, self.block, self.n_random, self.seed, self.causal = n_heads, block, n_random, seed, causal
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: object = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, T)) with `return_weights`.

        mask: padding, (B, 1, 1, T), True = may attend. Weights are built as T×T. There is no cache.
        """
        check_sequence("x", x, self.q_proj)
        B, T, _ = x.shape
        check_padding(mask, B, T, x.device)
        if cache is not None:
            raise ValueError(
                "BigBirdAttention takes no cache: it reads whole sequences, in blocks from the first token, and its "
                "global tokens see the last; to decode, use SparseAttention with RandomBlocks in its pattern"
            )
        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.k_proj(x), self.n_heads)
        value = split_heads(self.v_proj(x), self.n_heads)
        random = random_blocks(max(1, -(-T // self.block)), self.n_random, self.seed)  # (N, r)
        if return_weights:
            allowed = bigbird_mask(T, random, block=self.block, causal=self.causal).to(x.device)
            allowed = allowed if mask is None else allowed & mask
            output, weights = scaled_dot_product_attention(query, key, value, allowed, return_weights=True)
            return self.o_proj(merge_heads(output)), weights
        output = bigbird_attention(query, key, value, random, mask, block=self.block, causal=self.causal)
        return self.o_proj(merge_heads(output))  # (B, T, d_model)
