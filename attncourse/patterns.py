"""Patterns of sparse attention: which pairs of query and key are seen, and how to lay them out to be scored.

A pattern is a part, or several whose union is seen. A part says which pairs it sees, and lays them out in tiles: rows
of queries that meet columns of keys. The queries of a window stand in blocks, those of a stride in residue classes, so
that a tile holds few pairs that are not seen. Positions are absolute; every part is one of `attncourse.masks`.

Child et al. 2019, section 4.3 (strided, fixed), Beltagy et al. 2020, section 3.1 (dilated, global), Zaheer et al. 2020,
section 2 (random blocks). Differs from the papers: a window counts the token itself.
"""

from dataclasses import dataclass, field
from operator import index

import torch
from torch import Tensor

from attncourse.attention import check_at_least_one
from attncourse.masks import random_blocks

BLOCK = 64  # queries of a window in one tile

Tiles = tuple[Tensor, Tensor]  # positions of queries (N, R) and of keys (N, C); what is out of range is nothing


@dataclass(frozen=True)
class Dilated:
    """`window` keys spaced `dilation` apart, the query's own included; where not causal, on both sides."""

    window: int
    dilation: int

    def __post_init__(self):
        check_at_least_one(window=self.window, dilation=self.dilation)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query at one position sees the key at another, before causality: positions broadcast."""
        distance = query - key
        return (distance % self.dilation == 0) & (distance.abs() < self.window * self.dilation)

    def tiles(self, first: int, end: int, causal: bool) -> list[Tiles]:
        """Blocks within each residue class, with the keys of that class that any of the block's queries sees."""
        reach = min(self.window - 1, (end - 1) // self.dilation)  # no further than there are keys
        n_queries = end - first
        block = min(max(self.window, 16), BLOCK, n_queries)
        start = torch.arange(first, end, block * self.dilation)[:, None] + torch.arange(min(self.dilation, n_queries))
        start = start.reshape(-1, 1)  # (N, 1), where each block begins
        steps = torch.arange(-reach, block if causal else block + reach)
        return [(start + self.dilation * torch.arange(block), start + self.dilation * steps)]


@dataclass(frozen=True)
class Window(Dilated):
    """The last `window` keys, the query's own included; where not causal, those less than `window` away."""

    dilation: int = field(default=1, init=False)


@dataclass(frozen=True)
class Strided:
    """Every `stride`-th key, counted from the query's own."""

    stride: int

    def __post_init__(self):
        check_at_least_one(stride=self.stride)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key) % self.stride == 0

    def tiles(self, first: int, end: int, causal: bool) -> list[Tiles]:
        """The residue classes: tokens that leave the same remainder see each other, and no one else."""
        start = torch.arange(first, min(end, first + self.stride))[:, None]  # (N, 1), a query of each class
        rows = start + torch.arange(0, end - first, self.stride)
        return [(rows, start % self.stride + torch.arange(0, end, self.stride))]


@dataclass(frozen=True)
class Fixed:
    """The query's own block of `block` tokens, and the last `summary` tokens of every block."""

    block: int
    summary: int

    def __post_init__(self):
        check_at_least_one(block=self.block, summary=self.summary)
        if self.summary > self.block:
            raise ValueError(f"summary={self.summary} is larger than block={self.block}")

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query // self.block == key // self.block) | (key % self.block >= self.block - self.summary)

    def tiles(self, first: int, end: int, causal: bool) -> list[Tiles]:
        """Each block with itself and with the summaries of the others."""
        rows = _blocks(first, end, self.block)
        summaries = _blocks(0, end, self.block)[:, -self.summary :].flatten().expand(len(rows), -1)  # (N, summaries)
        others = summaries.masked_fill(summaries // self.block == rows[:, :1] // self.block, -1)
        return [(rows, torch.cat([rows, others], 1))]


@dataclass(frozen=True)
class GlobalTokens:
    """The tokens at the positions `tokens` see every key, and every query sees them.

    Where causal, one that has not come yet is no error; else it raises ValueError.
    """

    tokens: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "tokens", tuple(sorted({index(token) for token in self.tokens})))
        if not self.tokens or self.tokens[0] < 0:
            raise ValueError(f"tokens={self.tokens}, but they must be positions, at least one, from 0 on")

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        tokens = torch.tensor(self.tokens)
        return torch.isin(query, tokens) | torch.isin(key, tokens)

    def tiles(self, first: int, end: int, causal: bool) -> list[Tiles]:
        """Every query with the global keys; and the global queries with all the others."""
        if not causal and self.tokens[-1] >= end:
            raise ValueError(f"global tokens {self.tokens} are not all within 0 … {end - 1}")
        tokens, keys = torch.tensor([self.tokens]), torch.arange(end)[None]
        others = keys.masked_fill(torch.isin(keys, tokens), -1)
        return [(torch.arange(first, end)[None], tokens), (tokens, others)]


@dataclass(frozen=True)
class RandomBlocks:
    """`n_random` earlier blocks of `block` tokens, drawn for each block of queries, as `masks.random_block_mask`."""

    block: int
    n_random: int
    seed: int = 0

    def __post_init__(self):
        check_at_least_one(block=self.block, n_random=self.n_random)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        block = query.clamp(min=0) // self.block
        first = int(block.min())
        chosen = random_blocks(int(block.max()) + 1, self.n_random, self.seed, first=first)
        drawn = chosen[block - first]  # (…, n_random)
        return (drawn == (key // self.block)[..., None]).any(-1)

    def tiles(self, first: int, end: int, causal: bool) -> list[Tiles]:
        """Each block with the blocks drawn for it."""
        rows = _blocks(first, end, self.block)
        n_blocks = -(-end // self.block)
        drawn = random_blocks(n_blocks, self.n_random, self.seed, first=first // self.block)  # (N, n_random)
        keys = drawn[..., None] * self.block + torch.arange(self.block)  # (N, n_random, block)
        return [(rows, keys.flatten(1))]  # those of block -1 are below 0, which is nothing


PARTS = (Window, Dilated, Strided, Fixed, GlobalTokens, RandomBlocks)
Part = Window | Dilated | Strided | Fixed | GlobalTokens | RandomBlocks


def parts_of(pattern: Part | list[Part] | tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of a pattern, checked: TypeError for what is none, ValueError where there is none."""
    parts = tuple(pattern) if isinstance(pattern, list | tuple) else (pattern,)
    if not parts:
        raise ValueError("the pattern has no part: no query would see a key")
    for part in parts:
        if not isinstance(part, PARTS):
            raise TypeError(f"pattern holds {part!r}; its parts are {', '.join(kind.__name__ for kind in PARTS)}")
    return parts


def pattern_mask(T: int, S: int | None = None, *, pattern: Part | list[Part], causal: bool = True) -> Tensor:
    """What the pattern sees, (T, S) boolean: the definition. The queries are the last T of S positions."""
    S = T if S is None else S
    check_at_least_one(T=T, S=S)
    query, key = torch.arange(S - T, S)[:, None], torch.arange(S)
    seen = torch.stack([part.sees(query, key) for part in parts_of(pattern)]).any(0)
    return seen & (key <= query) if causal else seen


def _blocks(first: int, end: int, block: int) -> Tensor:
    """Positions (N, block) of the blocks that hold the positions first … end - 1."""
    return torch.arange(first // block * block, end, block)[:, None] + torch.arange(block)
