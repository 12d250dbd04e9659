"""A cache in pages: blocks of a common pool, and for each sequence a table of the blocks that hold its tokens.

Nothing is reserved for tokens that may never come, and sequences with the same beginning share its blocks. Kwon et al.
2023 (vLLM's PagedAttention), section 4. Differs from the paper: PyTorch gathers blocks where vLLM's kernel reads them
in place, and nothing is swapped out. Letters: B sequences, G key-value heads, D numbers of a head, b tokens a block.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from attncourse.attention import at_least_float32, check_at_least_one, check_sequence, check_tensors
from attncourse.execution import Running, attend_part, finish, merge
from attncourse.gqa import GroupedQueryAttention
from attncourse.kv_cache import KVCache
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import apply_rotary

TOKENS_AT_A_TIME = 512  # whose blocks `paged_attention` gathers


class BlockPool:
    """Room for n_blocks blocks of block_size tokens: keys (n_blocks, G, b, D) and values (n_blocks, G, b, Dv).

    A block is taken, may get more users, and is free again when the last of them has given it back.
    """

    def __init__(
        self,
        n_blocks: int,
        block_size: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        check_at_least_one(n_blocks=n_blocks, block_size=block_size, n_kv_heads=n_kv_heads)
        check_at_least_one(head_dim=head_dim, value_dim=value_dim)
        self.key = torch.zeros(n_blocks, n_kv_heads, block_size, head_dim, dtype=dtype, device=device)
        self.value = torch.zeros(n_blocks, n_kv_heads, block_size, value_dim, dtype=dtype, device=device)
        self.users = [0] * n_blocks  # how many tables name each block
        self._free = list(range(n_blocks))[::-1]

    @property
    def block_size(self) -> int:
        """How many tokens a block holds."""
        return self.key.shape[2]

    @property
    def n_free(self) -> int:
        """How many blocks nobody uses."""
        return len(self._free)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return (self.key.untyped_storage().nbytes() + self.value.untyped_storage().nbytes()) // len(self.users)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks in use; a shared one counts once."""
        return (len(self.users) - self.n_free) * self.block_bytes

    def take(self) -> int:
        """The number of a free block, now with one user. Raises ValueError where none is free."""
        if not self._free:
            raise ValueError(f"all {len(self.users)} blocks of {self.block_size} tokens are in use: free a cache")
        block = self._free.pop()
        self.users[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user of a block in use. Raises ValueError for a free one, as `give_back` does."""
        self._check_used(block)
        self.users[block] += 1

    def give_back(self, block: int) -> None:
        """One user less; without any, the block is free."""
        self._check_used(block)
        self.users[block] -= 1
        if not self.users[block]:
            self._free.append(block)

    def _check_used(self, block: int) -> None:
        if not self.users[block]:
            raise ValueError(f"block {block} is free")


class PagedKVCache(KVCache):
    """The tokens of `batch_size` sequences of equal length, in blocks of a pool; stands for a `KVCache`.

    `length` counts the tokens seen. A block is taken when its first token comes. For sequences of different lengths
    take a cache for each, on one pool, and `paged_step`. For inference, as `KVCache`.
    """

    used_as = KVCache

    def __init__(self, pool: BlockPool, batch_size: int = 1):
        check_at_least_one(batch_size=batch_size)
        self.pool, self.length = pool, 0
        self.blocks: list[list[int]] = [[] for _ in range(batch_size)]
        self._table: Tensor | None = None  # of `blocks`, until they change

    @property
    def table(self) -> Tensor:
        """(B, n), int64: block table[i, p // b] holds token p of sequence i, at place p % b."""
        if self._table is None:
            table = torch.tensor(self.blocks, dtype=torch.int64, device=self.pool.key.device)
            self._table = table.view(len(self.blocks), len(self.blocks[0]))  # (B, 0) while empty
        return self._table

    @property
    def max_length(self) -> int:
        """How many tokens there is room for now, if no other cache takes blocks."""
        free = self.pool.n_free - self._needed(1)[1]  # less the copies of unfinished blocks that others use too
        if free < 0:
            return self.length
        return (len(self.blocks[0]) + free // len(self.blocks)) * self.pool.block_size

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks, full or not; those it shares too."""
        return sum(map(len, self.blocks)) * self.pool.block_bytes

    @property
    def key(self) -> Tensor:
        """Keys as stored, (B, G, length, D), gathered into a new tensor."""
        return _read(self.pool.key, self.table)[:, :, : self.length]

    @property
    def value(self) -> Tensor:
        """Values as stored, (B, G, length, Dv), gathered into a new tensor."""
        return _read(self.pool.value, self.table)[:, :, : self.length]

    def check_room(self, batch_size: int, n_new: int) -> None:
        """Raise ValueError unless `n_new` more tokens of `batch_size` sequences fit into the pool."""
        self._check_batch(batch_size)
        new, copied = self._needed(n_new)
        if new + copied > self.pool.n_free:
            raise ValueError(
                f"{n_new} more tokens of {batch_size} sequences need {new + copied} blocks of {self.pool.block_size} "
                f"tokens, but {self.pool.n_free} of {len(self.pool.users)} are free: free a cache or take a larger pool"
            )

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys (B, G, T, D) and values (B, G, T, Dv); returns all so far, (B, G, length, …).

        What is returned is gathered into new tensors; `paged_step` reads the blocks instead. What does not fit raises
        ValueError, or TypeError for a dtype, and nothing is stored.
        """
        self._check_new(key, value)
        self.make_room(key.shape[2])
        positions = torch.arange(self.length, self.length + key.shape[2], device=key.device).expand(len(key), -1)
        _write(self.pool, self.table, positions, key, value)
        self.length += key.shape[2]
        return self.key.to(key.dtype), self.value.to(value.dtype)

    def make_room(self, n_new: int) -> None:
        """Take the blocks that n_new more tokens need, and copy an unfinished one that others use too.

        Raises ValueError where the pool has too few; then nothing is taken.
        """
        self.check_room(len(self.blocks), n_new)
        new, copied = self._needed(n_new)
        if copied:  # copy on write
            at = self.length // self.pool.block_size
            for row in self.blocks:
                if self.pool.users[old := row[at]] > 1:
                    row[at] = self.pool.take()
                    self.pool.key[row[at]], self.pool.value[row[at]] = self.pool.key[old], self.pool.value[old]
                    self.pool.give_back(old)
        for row in self.blocks:
            row += [self.pool.take() for _ in range(new // len(self.blocks))]
        if new or copied:
            self._table = None

    def fork(self) -> "PagedKVCache":
        """A second cache with the same tokens, in the same blocks: what either appends, the other does not see."""
        other = PagedKVCache(self.pool, len(self.blocks))
        written = -(-self.length // self.pool.block_size)  # blocks taken in advance are not shared
        other.length, other.blocks = self.length, [row[:written] for row in self.blocks]
        for block in chain(*other.blocks):
            self.pool.share(block)
        return other

    def free(self) -> None:
        """Give all blocks back; the cache is empty then, and can be used again."""
        for block in chain(*self.blocks):
            self.pool.give_back(block)
        self.blocks, self.length, self._table = [[] for _ in self.blocks], 0, None

    def _needed(self, n_new: int) -> tuple[int, int]:
        """How many blocks n_new more tokens need: new ones, and copies of unfinished ones that others use too."""
        b, held = self.pool.block_size, len(self.blocks[0])
        new = max(0, -(-(self.length + n_new) // b) - held)
        writes_on = n_new > 0 and self.length < held * b  # into a block that it holds
        copied = sum(self.pool.users[row[self.length // b]] > 1 for row in self.blocks) if writes_on else 0
        return new * len(self.blocks), copied

    def _rooms(self) -> tuple[Tensor, Tensor]:
        """Views with the sizes, dtype and device of the keys and values that the cache takes."""
        return tuple(pages[:1].expand(len(self.blocks), -1, -1, -1) for pages in (self.pool.key, self.pool.value))


def paged_attention(
    query: Tensor, pool: BlockPool, tables: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    """Causal attention of each sequence's last T queries to its own tokens, read through its table of blocks.

    query (B, H, T, D); tables (B, n), int64: what stands after a sequence's last block does not count, but must name a
    block; lengths (B,), int64: tokens of each sequence, the T queries among them. Query head h reads key head
    h // (H/G). Returns (B, H, T, Dv). Blocks of 512 tokens are gathered at a time, and merged by `execution.merge`.

    Raises ValueError for shapes that do not fit, a length below T or beyond the table, and blocks that do not exist.
    """
    _check_tables(query, pool, tables, lengths)
    (B, H, T, D), G, b = query.shape, pool.key.shape[1], pool.block_size
    rows = query.reshape(B, G, H // G * T, D)  # (B, G, H/G·T, D): as in chapter 13
    last = (lengths[:, None] - T + torch.arange(T, device=query.device)).repeat(1, H // G)  # (B, H/G·T)
    empty = at_least_float32(query.new_zeros(B, G, H // G * T, 1))
    running = Running(empty - torch.inf, empty, empty.expand(-1, -1, -1, pool.value.shape[3]).clone())
    step = max(1, TOKENS_AT_A_TIME // b)
    for first in range(0, -(-int(lengths.max()) // b), step):
        here = (lengths > first * b).nonzero()[:, 0]  # (B',): the sequences that reach so far
        blocks = tables[here, first : first + step]  # (B', c)
        place = first * b + torch.arange(blocks.shape[1] * b, device=query.device)  # (c·b,)
        key, value = (_read(pages, blocks) for pages in (pool.key, pool.value))  # (B', G, c·b, D)
        value.masked_fill_((place >= lengths[here, None])[:, None, :, None], 0.0)  # 0 · NaN, left by others, is NaN
        part = attend_part(rows[here], key, value, place <= last[here, None, :, None], scale=scale)
        for whole, merged in zip(running, merge(Running(*(x[here] for x in running)), part), strict=True):
            whole[here] = merged
    return finish(running).to(pool.value.dtype).reshape(B, H, T, -1)


@torch.no_grad()
def paged_step(layer: nn.Module, x: Tensor, caches: Sequence[PagedKVCache]) -> Tensor:
    """The next T tokens of B sequences of any lengths, each with a cache of its own: x (B, T, d_model), the same back.

    layer: a causal `MultiHeadAttention`, `GroupedQueryAttention` or `MultiQueryAttention`. caches: B of them, of one
    sequence each, on one pool. Equal to the layer called on each sequence with a `KVCache`. Raises TypeError for
    another layer, cache or dtype, ValueError for what does not fit and a pool that is used up; then nothing is stored,
    but blocks may already be taken for it.
    """
    pool = _common_pool(layer, x, caches)
    query, key, value = (
        split_heads(project(x), heads)
        for project, heads in (
            (layer.q_proj, layer.n_heads),
            (layer.k_proj, pool.key.shape[1]),
            (layer.v_proj, pool.key.shape[1]),
        )
    )  # (B, H, T, D), (B, G, T, D) twice
    past = torch.tensor([cache.length for cache in caches], device=x.device)
    positions = past[:, None] + torch.arange(x.shape[1], device=x.device)  # (B, T): each sequence has its own
    if layer.rotary is not None:
        query, key = (apply_rotary(of, positions[:, None], layer.rotary) for of in (query, key))
    for cache in caches:
        cache.make_room(x.shape[1])
    tables = nn.utils.rnn.pad_sequence([cache.table[0] for cache in caches], batch_first=True)  # (B, n)
    _write(pool, tables, positions, key, value)
    for cache in caches:
        cache.length += x.shape[1]
    return layer.o_proj(merge_heads(paged_attention(query.to(pool.key.dtype), pool, tables, past + x.shape[1])))


def _read(pages: Tensor, tables: Tensor) -> Tensor:
    """The tokens of the blocks that tables (B, n) name, as a new tensor (B, G, n·b, D)."""
    blocks = pages.index_select(0, tables.flatten()).unflatten(0, tables.shape)  # (B, n, G, b, D)
    return blocks.transpose(1, 2).flatten(2, 3)


def _write(pool: BlockPool, tables: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> None:
    """Put keys and values (B, G, T, D) of tokens at positions (B, T) into the blocks that the tables (B, n) name."""
    blocks, places = tables.gather(1, positions // pool.block_size), positions % pool.block_size  # (B, T) both
    for pages, new in ((pool.key, key), (pool.value, value)):
        pages[blocks, :, places] = new.transpose(1, 2).detach().to(pages.dtype)  # (B, T, G, D)


def _common_pool(layer: nn.Module, x: Tensor, caches: Sequence[PagedKVCache]) -> BlockPool:
    """The pool of all caches, if they and the layer fit together."""
    if not isinstance(layer, MultiHeadAttention | GroupedQueryAttention):
        raise TypeError(f"layer is a {type(layer).__name__}; paged_step knows multi-head, grouped and multi-query ones")
    check_sequence("x", x, layer.q_proj)
    if not layer.causal or getattr(layer, "alibi", False):
        raise ValueError("paged_step needs a causal layer without ALiBi")
    if not all(isinstance(cache, PagedKVCache) for cache in caches):
        raise TypeError("paged_step takes PagedKVCaches; a layer with another cache is called with it")
    if not caches or len(caches) != x.shape[0] or any(len(cache.blocks) != 1 for cache in caches):
        sizes = [len(cache.blocks) for cache in caches]
        raise ValueError(f"x has {x.shape[0]} sequences; the {len(caches)} caches hold {sizes}: one sequence for each")
    if len({id(cache) for cache in caches}) < len(caches) or len({id(cache.pool) for cache in caches}) > 1:
        raise ValueError("the caches must be different ones on the same pool")
    pool, D = caches[0].pool, layer.q_proj.out_features // layer.n_heads
    G, sizes = layer.k_proj.out_features // D, (pool.key.shape[1], pool.key.shape[3], pool.value.shape[3])
    if sizes != (G, D, D):
        raise ValueError(
            f"the layer makes keys and values of {G} heads of {D} numbers, but the pool takes {sizes[0]} heads of "
            f"{sizes[1]}, and values of {sizes[2]}"
        )
    if pool.key.device != x.device:
        raise ValueError(f"devices differ: x {x.device}, the pool {pool.key.device}")
    if pool.key.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"dtypes differ: x {x.dtype}, the pool {pool.key.dtype}: make another pool")
    return pool


def _check_tables(query: Tensor, pool: BlockPool, tables: Tensor, lengths: Tensor) -> None:
    B, H, T, _ = query.shape
    if not B:
        raise ValueError(f"query has shape {tuple(query.shape)}: there is no sequence in it")
    check_tensors(query[:, :1], pool.key[:1, :1].expand(B, -1, -1, -1), pool.value[:1, :1].expand(B, -1, -1, -1))
    if H % pool.key.shape[1]:
        raise ValueError(f"query has {H} heads, which do not share {pool.key.shape[1]} key heads evenly")
    if tables.dim() != 2 or len(tables) != B or lengths.shape != (B,):
        raise ValueError(f"tables {tuple(tables.shape)} must be (B, n), lengths {tuple(lengths.shape)} (B,), B={B}")
    if T < 1 or int(lengths.min()) < T or int(lengths.max()) > tables.shape[1] * pool.block_size:
        raise ValueError(
            f"lengths {lengths.tolist()} must be at least T={T}, itself 1 or more, and fit into "
            f"{tables.shape[1]} blocks of {pool.block_size}"
        )
    if int(tables.min()) < 0 or int(tables.max()) >= len(pool.users):
        raise ValueError(f"tables name blocks {int(tables.min())} to {int(tables.max())}; there are {len(pool.users)}")
