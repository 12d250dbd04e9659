"""Boolean masks (T, S), True where query i may attend to key j, built from absolute positions.

The queries are the last T of S positions: query i stands at position S - T + i, so the last query sees the
last key (bottom-right alignment, which is what decoding with a cache needs). S defaults to T. With T > S the
first T - S queries stand before every key.
"""

from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from attncourse.attention import check_at_least_one


def causal_mask(T: int, S: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """True where the key is not after the query. (T, S)."""
    query, key = _positions(T, S, device)
    return key <= query


def sliding_window_mask(T: int, S: int | None = None, *, window: int, causal: bool = True) -> Tensor:
    """True where the key is among the last `window` tokens, the query's own included. (T, S).

    Causal: query - window < key <= query. Not causal: |query - key| < window.
    """
    check_at_least_one(window=window)
    query, key = _positions(T, S)
    distance = query - key
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def strided_mask(T: int, S: int | None = None, *, stride: int, causal: bool = True) -> Tensor:
    """True at every `stride`-th key counted back from the query, the query's own included. (T, S).

    Child et al. 2019, section 4.3, second head; its first is a `sliding_window_mask` of stride + 1 keys.
    """
    check_at_least_one(stride=stride)
    query, key = _positions(T, S)
    return _cut((query - key) % stride == 0, query, key, causal)


def fixed_mask(T: int, S: int | None = None, *, block: int, summary: int, causal: bool = True) -> Tensor:
    """True in the query's own block of `block` tokens, and at the last `summary` tokens of every block. (T, S).

    Child et al. 2019, section 4.3, both heads of the fixed pattern together.
    """
    check_at_least_one(block=block, summary=summary)
    if summary > block:
        raise ValueError(f"summary={summary} is larger than block={block}")
    query, key = _positions(T, S)
    return _cut((query // block == key // block) | (key % block >= block - summary), query, key, causal)


def dilated_mask(T: int, S: int | None = None, *, window: int, dilation: int, causal: bool = True) -> Tensor:
    """True at `window` keys spaced `dilation` apart, the query's own included. (T, S).

    Beltagy et al. 2020, section 3.1. Differs from the paper: `window` counts keys on one side, self included.
    """
    check_at_least_one(window=window, dilation=dilation)
    query, key = _positions(T, S)
    distance = query - key
    reached = (distance % dilation == 0) & (distance.abs() < window * dilation)
    return _cut(reached, query, key, causal)


def global_mask(T: int, S: int | None = None, *, global_tokens: Sequence[int] | Tensor, causal: bool = False) -> Tensor:
    """True where the query or the key is one of `global_tokens`, given as absolute positions. (T, S).

    Beltagy et al. 2020, section 3.1. Follows the paper: global attention is symmetric.
    """
    query, key = _positions(T, S)
    tokens = torch.as_tensor(global_tokens).flatten()
    n = key.numel()
    if tokens.numel() and (tokens.dtype == torch.bool or tokens.is_floating_point()):
        raise TypeError(f"global_tokens has dtype {tokens.dtype}; it must hold positions, which are integers")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= n):
        raise ValueError(f"global_tokens {tokens.tolist()} are not all within 0 … {n - 1}")
    return _cut(torch.isin(query, tokens) | torch.isin(key, tokens), query, key, causal)


def random_blocks(n_blocks: int, n_random: int, seed: int, *, first: int = 0) -> Tensor:
    """Up to `n_random` earlier blocks for each of `n_blocks` blocks, (n_blocks, n_random) int64, -1 for none.

    The draw for a block depends on `seed` and the block's index alone, so more blocks have the same rows before them.
    Block b has b earlier blocks; where that is fewer than n_random, all are taken. Rows begin with the block `first`.
    Zaheer et al. 2020, section 2. Differs from the paper: only earlier blocks are drawn, which is what makes
    the pattern independent of the length and usable when decoding.
    """
    check_at_least_one(n_blocks=n_blocks)
    if n_random < 0:
        raise ValueError(f"n_random={n_random}, but it must be at least 0")
    drawn = [_drawn(block, n_random, seed) for block in range(first, n_blocks)]
    return torch.tensor(drawn, dtype=torch.int64).reshape(n_blocks - first, n_random)


@lru_cache(maxsize=1 << 16)
def _drawn(block: int, n_random: int, seed: int) -> tuple[int, ...]:
    """The earlier blocks drawn for one block, filled with -1."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
    found = torch.randperm(block, generator=generator)[:n_random].tolist()
    return (*found, *[-1] * (n_random - len(found)))


def random_block_mask(T: int, S: int | None = None, *, block: int, n_random: int, seed: int) -> Tensor:
    """True in up to `n_random` earlier blocks of `block` tokens, drawn for each block of queries. (T, S).

    The blocks are those of `random_blocks`: a longer sequence has the same pattern in its prefix.
    """
    check_at_least_one(block=block)
    query, key = _positions(T, S)
    n_blocks = -(-key.numel() // block)
    chosen = (random_blocks(n_blocks, n_random, seed)[..., None] == torch.arange(n_blocks)).any(1)  # (blocks, blocks)
    return chosen[query.clamp(min=0) // block, key // block] & (query >= 0)


def combine(*masks: Tensor, how: str = "or") -> Tensor:
    """Union (`how="or"`) or intersection (`how="and"`) of masks that broadcast to each other."""
    if not masks:
        raise ValueError("combine needs at least one mask")
    if how not in ("or", "and"):
        raise ValueError(f'how={how!r}, but it must be "or" or "and"')
    for mask in masks:
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask has dtype {mask.dtype}; it must be torch.bool")
    shapes = [tuple(mask.shape) for mask in masks]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        raise ValueError(f"masks of shapes {', '.join(map(str, shapes))} do not broadcast to each other") from error
    return reduce(torch.logical_or if how == "or" else torch.logical_and, masks)


def _positions(T: int, S: int | None, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Absolute positions of the queries (T, 1) and the keys (1, S)."""
    S = T if S is None else S
    check_at_least_one(T=T, S=S)
    return torch.arange(S - T, S, device=device)[:, None], torch.arange(S, device=device)[None]


def _cut(mask: Tensor, query: Tensor, key: Tensor, causal: bool) -> Tensor:
    return mask & (key <= query) if causal else mask
