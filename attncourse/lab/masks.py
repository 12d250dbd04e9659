"""Patterns of attention for `show.masks`, made by the functions of `attncourse.masks` at every value of a slider."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attncourse.masks import (
    causal_mask,
    combine,
    dilated_mask,
    fixed_mask,
    global_mask,
    random_block_mask,
    sliding_window_mask,
    strided_mask,
)

WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8)
Pattern = tuple[Callable[..., Tensor], dict[str, Sequence[int]], str]


def patterns(*names: str, T: int = 24, scores: Tensor | None = None) -> dict[str, Pattern]:
    """name -> (function that gives a mask (T, T), its parameters' values, what a query sees), for `show.masks`.

    names: causal, window, sinks + window, blocks, strided + local, fixed, dilated, global + window, random blocks,
    top-k; all of them where none is given. scores (T, T): what top-k ranks, random ones if left out. Only
    "global + window", Longformer's pattern, is not causal.
    """
    if scores is None:
        scores = torch.randn(T, T, generator=torch.Generator().manual_seed(0))
    elif scores.shape != (T, T):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, but T={T} needs ({T}, {T})")
    made: dict[str, Pattern] = {
        "causal": (lambda: causal_mask(T), {}, "Every token up to its own."),
        "window": (
            lambda window: sliding_window_mask(T, window=window),
            {"W": (*WINDOWS, 12, 16, T)},
            "The last W tokens, its own included.",
        ),
        "sinks + window": (
            lambda window, sinks: combine(sliding_window_mask(T, window=window), sinks_mask(T, sinks)),
            {"W": WINDOWS, "sinks": (0, 1, 2, 4)},
            "The last W tokens, and the first ones of the text.",
        ),
        "blocks": (
            lambda block, earlier: block_mask(T, block, earlier),
            {"block": (2, 3, 4, 6, 8, 12), "blocks before": (0, 1, 2)},
            "Its own block up to itself, and so many blocks before it.",
        ),
        "strided + local": (
            lambda window, stride: combine(sliding_window_mask(T, window=window), strided_mask(T, stride=stride)),
            {"W": WINDOWS, "stride": (2, 3, 4, 5, 6, 8)},
            "The last W tokens, and every stride-th one, counted back from its own.",
        ),
        "fixed": (
            lambda block, summary: fixed_mask(T, block=block, summary=summary),
            {"block": (2, 3, 4, 6, 8, 12), "summary": (1, 2)},
            "Its own block up to itself, and the last tokens of every block before.",
        ),
        "dilated": (
            lambda window, dilation: dilated_mask(T, window=window, dilation=dilation),
            {"W": WINDOWS, "dilation": (1, 2, 3, 4)},
            "W tokens, so many positions apart, its own included.",
        ),
        "global + window": (
            lambda window, n_global: both_ways(T, window, n_global),
            {"W": (1, 2, 3, 4, 5, 6), "global": (0, 1, 2, 3)},
            "Less than W tokens back or ahead; the first ones see all, and all see them. Not causal.",
        ),
        "random blocks": (
            lambda block, n_random: combine(
                block_mask(T, block, 1), random_block_mask(T, block=block, n_random=n_random, seed=0)
            ),
            {"block": (2, 3, 4, 6), "random": (0, 1, 2, 3)},
            "Its own block up to itself, the block before, and so many earlier ones drawn at random.",
        ),
        "top-k": (
            lambda k: top_k_mask(scores, k),
            {"k": (1, 2, 3, 4, 5, 6, 8, 12)},
            "The k tokens up to its own with the highest scores: the data choose.",
        ),
    }
    if unknown := set(names) - set(made):
        raise ValueError(f"{', '.join(sorted(unknown))}: the patterns are {', '.join(made)}")
    return {name: made[name] for name in names or made}


def sinks_mask(T: int, n_sinks: int) -> Tensor:
    """True at the first `n_sinks` keys, causal: attention sinks. (T, T)."""
    return global_mask(T, global_tokens=range(n_sinks), causal=True)


def block_mask(T: int, block: int, earlier: int = 0) -> Tensor:
    """True in the query's own block, and in the `earlier` blocks before it, causal. (T, T)."""
    index = torch.arange(T) // block
    return causal_mask(T) & (index[:, None] - index <= earlier)


def both_ways(T: int, window: int, n_global: int) -> Tensor:
    """Longformer's pattern: a window on both sides, and the first `n_global` tokens seeing all and seen by all."""
    near = sliding_window_mask(T, window=window, causal=False)
    return combine(near, global_mask(T, global_tokens=range(n_global)))


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """True at the k keys with the highest scores among those up to the query; at all of them where fewer. (T, T)."""
    causal = causal_mask(len(scores))
    best = scores.masked_fill(~causal, float("-inf")).topk(min(k, len(scores)), dim=-1).indices
    return torch.zeros_like(causal).scatter(-1, best, True) & causal
