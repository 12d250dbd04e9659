"""Theorems of execution: the same function in tiles, merged in any order."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch.nn.utils.rnn import pad_sequence

from attncourse.attention import scaled_dot_product_attention
from attncourse.execution import Running, attend_part, finish, merge, online_attention, tiled_attention
from attncourse.lab.proofs.common import Sides, equality, given, left_padding
from attncourse.masks import causal_mask
from attncourse.paged_cache import BlockPool, PagedKVCache, paged_attention


@equality(
    "15_execution",
    "online",
    "self_attention",
    condition="in tiles of keys",
    says="A softmax computed tile after tile, with a running maximum and a running sum, is the softmax.",
    sizes=[
        dict(B=2, H=3, T=7, S=11, D=4, Dv=5, tile=4),
        dict(B=3, H=2, T=1, S=9, D=5, Dv=6, tile=2),
        dict(B=1, H=4, T=6, S=13, D=8, Dv=3, tile=20),
        dict(B=4, H=5, T=3, S=8, D=2, Dv=7, tile=1),
    ],
    broken=dict(merged=False),
    otherwise="the mean of the tiles",
)
def online_softmax(B, H, T, S, D, Dv, tile, merged=True):
    """A sum relative to one maximum is brought to another by the factor exp(old - new), and sums add up."""
    query, key, value = given(B, H, T, D), given(B, H, S, D), given(B, H, S, Dv)
    if merged:
        left = online_attention(query, key, value, causal=False, tile=tile)
    else:
        tiles = zip(key.split(tile, 2), value.split(tile, 2), strict=True)
        left = torch.stack([finish(attend_part(query, *each)) for each in tiles]).mean(0)
    right = scaled_dot_product_attention(query, key, value, return_weights=True)[0]
    return Sides(left, right, [query, key, value])


def in_halves(parts: Sequence[Running]) -> Running:
    """All of them merged: each half on its own first, and the second before the first."""
    half = len(parts) // 2
    return merge(in_halves(parts[half:]), in_halves(parts[:half])) if half else parts[0]


@equality(
    "15_execution",
    "online",
    "online",
    condition="any order",
    says="What tiles leave may be merged in any order and with any brackets.",
    sizes=[
        dict(B=2, H=3, T=7, S=11, D=4, Dv=5, tile=4),
        dict(B=3, H=2, T=1, S=9, D=5, Dv=6, tile=2),
        dict(B=1, H=4, T=6, S=13, D=8, Dv=3, tile=1),
    ],
    broken=dict(twice=True),
    otherwise="one tile merged twice",
)
def merged_in_any_order(B, H, T, S, D, Dv, tile, twice=False):
    """The maximum and the sum of two parts are commutative and associative; they are no longer right where parts
    overlap."""
    query, key, value = given(B, H, T, D), given(B, H, S, D), given(B, H, S, Dv)
    parts = [attend_part(query, *each) for each in zip(key.split(tile, 2), value.split(tile, 2), strict=True)]
    shuffled = [parts[i] for i in torch.randperm(len(parts))]
    again = [parts[0]] if twice else []
    return Sides(finish(reduce(merge, again, in_halves(shuffled))), finish(reduce(merge, parts)), [query, key, value])


@equality(
    "15_execution",
    "tiled",
    "multi_head",
    condition="any tiles, one mask",
    says="FlashAttention's tiles change no output and no gradient: it is exact attention.",
    sizes=[
        dict(B=2, H=3, T=7, S=11, D=4, Dv=5, tiles=(3, 4)),
        dict(B=3, H=2, T=1, S=9, D=5, Dv=6, tiles=(2, 4)),
        dict(B=1, H=4, T=13, S=13, D=8, Dv=3, tiles=(20, 5)),
        dict(B=5, H=6, T=8, S=10, D=3, Dv=2, tiles=(1, 7), padded=True),
    ],
    broken=dict(first=True),
    otherwise="queries first, not last",
)
def tiled_is_exact(B, H, T, S, D, Dv, tiles, padded=False, first=False):
    """Forward it is the online softmax. Backward, a tile's weights are made again from the scores and the one number
    that each row kept."""
    query, key, value = given(B, H, T, D), given(B, H, S, D), given(B, H, S, Dv)
    padding = left_padding(B, S) if padded else torch.ones(1, 1, 1, S, dtype=torch.bool)
    left = tiled_attention(query, key, value, padding, query_tile=tiles[0], key_tile=tiles[1])
    seen = padding & (torch.ones(T, S, dtype=torch.bool).tril() if first else causal_mask(T, S))
    right = scaled_dot_product_attention(query, key, value, seen, return_weights=True)[0]
    return Sides(left, right, [query, key, value])


@equality(
    "15_execution",
    "tiled",
    "online",
    condition="any tiles, one mask",
    says="Tiled attention is the online softmax, with the queries in tiles as well and a backward pass of its own.",
    sizes=[
        dict(B=2, H=3, T=7, S=11, D=4, Dv=5, tiles=(3, 4)),
        dict(B=3, H=2, T=1, S=9, D=5, Dv=6, tiles=(2, 4)),
        dict(B=1, H=4, T=6, S=13, D=8, Dv=3, tiles=(20, 5)),
    ],
    broken=dict(causal=False),
    otherwise="one of them not causal",
)
def tiled_is_online(B, H, T, S, D, Dv, tiles, causal=True):
    """Rows of a softmax do not know of each other, so they may be taken in any groups."""
    query, key, value = given(B, H, T, D), given(B, H, S, D), given(B, H, S, Dv)
    left = tiled_attention(query, key, value, causal=causal, query_tile=tiles[0], key_tile=tiles[1])
    return Sides(left, online_attention(query, key, value, tile=tiles[1]), [query, key, value])


@equality(
    "15_execution",
    "paged",
    "online",
    condition="blocks as tiles",
    says="Attention that reads a paged cache block by block is the online softmax, for any lengths at once.",
    sizes=[
        dict(lengths=(11, 4, 7), H=6, G=2, T=1, D=5, b=3),
        dict(lengths=(9, 17), H=4, G=1, T=3, D=8, b=5),
        dict(lengths=(1, 6, 2, 13), H=3, G=3, T=1, D=7, b=2),
    ],
    broken=dict(short=1),
    otherwise="the newest token left out",
)
def paged_is_online(lengths, H, G, T, D, b, short=0):
    """A block is a tile that may stand anywhere in memory; a sequence's length says where its last one ends."""
    pool, outputs, tables = BlockPool(60, b, G, D), [], []
    queries = torch.randn(len(lengths), H, T, D)
    for query, length in zip(queries, lengths, strict=True):
        key, value = torch.randn(2, 1, G, length, D)
        cache = PagedKVCache(pool)
        cache.append(key, value)
        tables.append(cache.table[0])
        key, value = (x.repeat_interleave(H // G, 1) for x in (key, value))  # (1, H, length, D)
        outputs.append(online_attention(query[None], key, value, tile=b))
    left = paged_attention(queries, pool, pad_sequence(tables, batch_first=True), torch.tensor(lengths) - short)
    return Sides(left, torch.cat(outputs))
