"""What a paged cache promises: a plain cache's outputs, blocks only for tokens that came, and nothing leaks between."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attncourse
from attncourse.causal import CausalSelfAttention
from attncourse.execution import attend_part
from attncourse.gqa import GroupedQueryAttention, grouped_query_attention
from attncourse.lab.measure import allocated_bytes
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.paged_cache import BlockPool, PagedKVCache, paged_attention, paged_step
from attncourse.positions import RotaryEmbedding
from tests.test_bahdanau import assert_equal, normal, on_devices
from tests.test_causal import partitions

H, D, T, DOUBLE = 4, 4, 14, {"dtype": torch.float64}
ROTARY = RotaryEmbedding(D)
LAYERS = {
    "multi_head": (MultiHeadAttention, {"causal": True}, H),
    "gqa": (GroupedQueryAttention, {"n_kv_heads": 2}, 2),
    "mqa": (MultiQueryAttention, {}, 1),
}
with_layers = pytest.mark.parametrize("name", LAYERS)


def make(name, device="cpu"):
    torch.manual_seed(1)
    kind, options, G = LAYERS[name]
    return kind(H * D, H, **options, rotary=ROTARY).to(device).double(), G


def pool_for(G, n_blocks=60, block_size=4, device="cpu"):
    return BlockPool(n_blocks, block_size, G, D, device=device, **DOUBLE)


@with_layers
@settings(max_examples=40, deadline=None)
@given(chunks=partitions(T), block_size=st.integers(1, 16), padding=st.integers(0, T - 1))
def test_any_chunking_equals_one_pass(name, chunks, block_size, padding):
    layer, G = make(name)
    x = normal(2, T, H * D, seed=2).detach()
    real = (torch.arange(T) >= torch.tensor([0, padding])[:, None])[:, None, None]
    plain, cache = layer.new_cache(2, T), PagedKVCache(pool_for(G, 40, block_size), 2)
    for start, end in pairwise([0, *torch.tensor(chunks).cumsum(0).tolist()]):
        piece, mask = x[:, start:end], real[..., :end]
        assert_equal(layer(piece, mask=mask, cache=cache), layer(piece, mask=mask, cache=plain))
        assert cache.length == end and cache.table.shape == (2, -(-end // block_size))
    assert torch.equal(cache.key, plain.key) and torch.equal(cache.value, plain.value)
    assert cache.nbytes == cache.pool.used_bytes == 2 * -(-T // block_size) * block_size * G * D * 2 * 8


def test_every_layer_that_takes_a_plain_cache_takes_pages():
    x = normal(2, 9, H * D, seed=2).detach()
    layers = [attncourse.build("sparse", H * D, H), CausalSelfAttention(H * D)]
    for layer, pool in zip(layers, (BlockPool(9, 4, H, D, **DOUBLE), BlockPool(9, 4, 1, H * D, **DOUBLE)), strict=True):
        layer.double()
        cache = PagedKVCache(pool, 2)
        assert_equal(torch.cat([layer(piece, cache=cache) for piece in x.split([4, 1, 4], 1)], 1), layer(x))
    with pytest.raises(TypeError, match="cache is a PagedKVCache, but this layer keeps a LatentCache"):
        attncourse.build("mla", H * D, H)(x.float(), cache=PagedKVCache(pool_for(1), 2))


@on_devices
@with_layers
def test_a_step_of_sequences_of_different_lengths(name, device):
    """As if each sequence were alone, with one new token or several, over block borders."""
    layer, G = make(name, device)
    lengths = [1, 4, 7, 13]
    x = normal(4, 20, H * D, seed=2, device=device).detach()
    caches = [PagedKVCache(pool_for(G, device=device)) for _ in lengths][:1]
    caches += [PagedKVCache(caches[0].pool) for _ in lengths[1:]]
    for i, (n, cache) in enumerate(zip(lengths, caches, strict=True)):
        layer(x[i : i + 1, :n], cache=cache)
    for n_new in (1, 1, 3):
        new = torch.stack([x[i, cache.length : cache.length + n_new] for i, cache in enumerate(caches)])
        output = paged_step(layer, new, caches)
        for i, cache in enumerate(caches):
            assert_equal(output[i], layer(x[i : i + 1, : cache.length])[0, -n_new:])


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.9])
def test_paged_attention_is_grouped_attention(T, scale):
    pool = BlockPool(300, 4, 2, D, value_dim=5, **DOUBLE)
    query = normal(3, H, T, D, seed=1).detach()
    lengths, caches = torch.tensor([3, 530, 8]), []  # 530 tokens: more than are gathered at a time
    for i, n in enumerate(lengths.tolist()):
        caches.append(PagedKVCache(pool))
        caches[-1].append(normal(1, 2, n, D, seed=10 + i), normal(1, 2, n, 5, seed=20 + i))
    tables = torch.nn.utils.rnn.pad_sequence([cache.table[0] for cache in caches], batch_first=True)
    output = paged_attention(query, pool, tables, lengths, scale=scale)
    for i, cache in enumerate(caches):
        expected = grouped_query_attention(query[i : i + 1], cache.key, cache.value, scale=scale)
        assert_equal(output[i : i + 1], expected, 1e-12)


def test_what_stands_in_other_places_is_not_read():
    """NaN in free blocks, behind a sequence's last token, and in a neighbour: 0 · NaN would be NaN."""
    layer, G = make("gqa")
    pool = pool_for(G)
    pool.key.fill_(float("nan")), pool.value.fill_(float("nan"))
    x = normal(2, 12, H * D, seed=2).detach()
    caches = [PagedKVCache(pool), PagedKVCache(pool)]
    for i, n in enumerate((2, 9)):
        layer(x[i : i + 1, :n], cache=caches[i])
    pool.value[caches[1].table[0, 0]] = float("nan")  # spoils the second sequence alone
    output = paged_step(layer, x[:, 10:11], caches)
    assert output[1].isnan().any()
    assert_equal(output[0], layer(torch.cat([x[:1, :2], x[:1, 10:11]], 1))[0, -1:])


@with_layers
@settings(max_examples=30, deadline=None)
@given(prefix=st.integers(0, 11), actions=st.lists(st.integers(0, 3), max_size=12), block_size=st.integers(1, 5))
def test_forks_share_what_is_common_and_never_see_each_other(name, prefix, actions, block_size):
    layer, G = make(name)
    pool = pool_for(G, 100, block_size)
    x = normal(1, 12, H * D, seed=2).detach()
    caches, histories = [PagedKVCache(pool)], [x[:, :prefix]]
    if prefix:
        layer(x[:, :prefix], cache=caches[0])
    for step, action in enumerate(actions):
        i = action % len(caches)
        if action == 3:
            caches.append(caches[i].fork())
            histories.append(histories[i])
        else:
            new = normal(1, 1, H * D, seed=100 + step).detach()
            histories[i] = torch.cat([histories[i], new], 1)
            assert_equal(paged_step(layer, new, [caches[i]]), layer(histories[i])[:, -1:])
    used = {block for cache in caches for row in cache.blocks for block in row}
    assert pool.used_bytes == len(used) * pool.block_bytes
    for cache, history in zip(caches, histories, strict=True):
        plain = layer.new_cache(1, 40)
        if history.shape[1]:
            layer(history, cache=plain)
        assert_equal(cache.key, plain.key[:, :, : plain.length])
        assert cache.length == plain.length
    for cache in caches:
        cache.free()
    assert pool.n_free == 100 and not any(pool.users)


def test_a_shared_prefix_is_stored_once():
    """16 answers to a prompt of 30 tokens, blocks of 4: 7 whole blocks once, and the unfinished one copied by each."""
    layer, G = make("gqa")
    pool = pool_for(G)
    prompt = PagedKVCache(pool)
    layer(normal(1, 30, H * D, seed=2).detach(), cache=prompt)
    answers = [prompt.fork() for _ in range(16)]
    assert pool.used_bytes == 8 * pool.block_bytes
    paged_step(layer, normal(16, 1, H * D, seed=3).detach(), answers)
    assert pool.used_bytes == (8 + 16) * pool.block_bytes
    prompt.free()
    assert pool.used_bytes == (7 + 16) * pool.block_bytes
    assert answers[0].nbytes == 8 * pool.block_bytes
    left = answers.pop()
    for answer in answers:
        answer.free()
    assert pool.used_bytes == left.nbytes
    paged_step(layer, normal(1, 1, H * D, seed=4).detach(), [left])  # its block is its own: nothing is copied
    assert pool.used_bytes == left.nbytes == 8 * pool.block_bytes


def test_blocks_taken_in_advance_are_not_shared():
    """Room that was made and not written, as after a step that failed: each fork takes its own."""
    pool = BlockPool(20, 4, 1, 2)
    new = torch.arange(48.0).view(6, 1, 1, 4, 2)
    for held in (0, 1, 4):
        one = PagedKVCache(pool)
        one.append(new[0][:, :, :held], new[0][:, :, :held])
        one.make_room(8)
        two = one.fork()
        assert len(two.blocks[0]) == -(-held // 4)
        one.append(new[1], new[1]), two.append(new[2], new[2])
        assert torch.equal(one.key[:, :, held:], new[1]) and torch.equal(two.key[:, :, held:], new[2])
        assert torch.equal(one.key[:, :, :held], new[0][:, :, :held]) and torch.equal(
            two.key[:, :, :held], one.key[:, :, :held]
        )
        one.free(), two.free()
        assert pool.n_free == 20


def test_a_step_gathers_blocks_and_not_the_cache():
    pool = BlockPool(1024, 16, 2, 32)
    cache = PagedKVCache(pool)
    cache.append(torch.zeros(1, 2, 16000, 32), torch.zeros(1, 2, 16000, 32))
    query = torch.zeros(1, 8, 1, 32)
    largest = allocated_bytes(lambda: paged_attention(query, pool, cache.table, torch.tensor([16000])))[1]
    assert largest <= 512 * 2 * 32 * 4 < cache.nbytes / 60


def test_a_pool_that_is_used_up_refuses_and_loses_nothing():
    layer, G = make("gqa")
    pool = pool_for(G, 4)
    x = normal(2, 20, H * D, seed=2).detach()
    cache, other = PagedKVCache(pool), PagedKVCache(pool)
    layer(x[:1, :7], cache=cache)
    layer(x[1:, :5], cache=other)
    assert pool.n_free == 0 and cache.max_length == 8
    with pytest.raises(ValueError, match="2 more tokens of 1 sequences need 1 blocks of 4 tokens, but 0 of 4 are free"):
        layer(x[:1, 7:9], cache=cache)
    with pytest.raises(ValueError, match="0 of 4 are free"):
        paged_step(layer, x[:, 5:7] * 1, [other, cache][::-1])
    assert cache.length == 7 and other.length == 5
    paged_step(layer, torch.stack([x[0, 7:8], x[1, 5:6]]), [cache, other])
    other.free()
    assert other.length == 0 and other.nbytes == 0
    assert_equal(layer(x[:1, 8:12], cache=cache), layer(x[:1, :12])[:, -4:])
    with pytest.raises(ValueError, match="all 1 blocks of 4 tokens are in use"):
        one = BlockPool(1, 4, 1, 2)
        one.take(), one.take()


def test_what_does_not_fit_is_refused():
    layer, G = make("gqa")
    x, pool = normal(2, 1, H * D, seed=2).detach(), pool_for(G)
    one, two = PagedKVCache(pool), PagedKVCache(pool)
    with pytest.raises(ValueError, match="x has 2 sequences; the 1 caches hold"):
        paged_step(layer, x, [one])
    with pytest.raises(ValueError, match="one sequence for each"):
        paged_step(layer, x, [PagedKVCache(pool, 2), one])
    with pytest.raises(ValueError, match="different ones on the same pool"):
        paged_step(layer, x, [one, one])
    with pytest.raises(ValueError, match="different ones on the same pool"):
        paged_step(layer, x, [one, PagedKVCache(pool_for(G))])
    with pytest.raises(ValueError, match="4 heads of 4 numbers, but the pool takes 2 heads of 4"):
        paged_step(make("multi_head")[0], x, [one, two])
    with pytest.raises(ValueError, match="without ALiBi"):
        paged_step(MultiHeadAttention(16, 2, causal=True, alibi=True).double(), x, [one, two])
    for name in ("sparse", "linear", "performer"):
        with pytest.raises(TypeError, match="paged_step knows"):
            paged_step(attncourse.build(name, 16, 4).double(), x, [one, two])
    with pytest.raises(TypeError, match="takes PagedKVCaches"):
        paged_step(layer, x, [one, layer.new_cache(1, 4)])
    for wrong in (BlockPool(9, 4, 1, 8, **DOUBLE), BlockPool(9, 4, 2, 4, value_dim=5, **DOUBLE), BlockPool(9, 4, 2, 4)):
        caches = [PagedKVCache(wrong), PagedKVCache(wrong)]
        with pytest.raises((ValueError, TypeError), match="the pool"):
            paged_step(layer, x, caches)
        assert caches[0].length == 0 and wrong.n_free == 9
    with pytest.raises(ValueError, match="block 3 is free"):
        pool_for(1).share(3)
    with pytest.raises(ValueError, match="block 3 is free"):
        pool_for(1).give_back(3)
    with pytest.raises(ValueError, match="a causal layer"):
        paged_step(GroupedQueryAttention(16, 4, 2, causal=False).double(), x, [one, two])
    with pytest.raises(TypeError, match="SlidingWindowAttention; paged_step knows"):
        paged_step(attncourse.build("sliding_window", 16, 4).double(), x, [one, two])
    sizes = {"n_blocks": 3, "block_size": 4, "n_kv_heads": 1, "head_dim": 2, "value_dim": 5}
    for name in sizes:
        with pytest.raises(ValueError, match=f"{name}=0, but it must be at least 1"):
            BlockPool(**{**sizes, name: 0})
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 15\); it needs three axes, the last of size 16"):
        paged_step(layer, x[..., 1:], [one, two])
    with pytest.raises(ValueError, match="batch_size=1, but x has 2"):
        layer(x, cache=one)
    with pytest.raises(TypeError, match=r"the cache torch\.float64"):
        one.append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    query, table = torch.zeros(1, 4, 1, 4, **DOUBLE), torch.zeros(1, 2, dtype=torch.int64)
    for tables, lengths, message in (
        (table[:, :1], torch.tensor([5]), r"lengths \[5\] must be at least T=1.*fit into 1 blocks of 4"),
        (table, torch.tensor([0]), r"lengths \[0\] must be at least T=1"),
        (table + 60, torch.tensor([5]), "tables name blocks 60 to 60; there are 60"),
        (table[0], torch.tensor([5]), r"tables \(2,\) must be \(B, n\)"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_attention(query, pool, tables, lengths)
    with pytest.raises(ValueError, match="3 heads, which do not share 2"):
        paged_attention(query[:, :3], pool, table, torch.tensor([5]))


def test_a_table_stands_where_its_pool_does():
    cache = PagedKVCache(BlockPool(3, 4, 2, 4, device="meta"))
    cache.make_room(5)
    assert cache.table.device.type == "meta" and cache.table.shape == (1, 2)


def test_what_the_storage_takes_and_how_much_fits():
    assert BlockPool(3, 4, 2, 6, value_dim=5).block_bytes == 2 * 4 * (6 + 5) * 4
    assert PagedKVCache(BlockPool(9, 4, 2, 4), 2).max_length == 16
    cache = PagedKVCache(BlockPool(3, 4, 2, 4))
    cache.append(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    assert cache.table.shape == (1, 2)
    cache.free()
    assert cache.table.shape == (1, 0) and cache.key.shape == (1, 2, 0, 4)


def test_a_fork_that_cannot_be_copied_is_refused_and_says_so():
    cache, one = PagedKVCache(BlockPool(1, 4, 2, 4)), torch.ones(1, 2, 1, 4)
    cache.append(one, one)
    fork = cache.fork()
    fork.check_room(1, 0)
    assert fork.max_length == fork.length == 1
    with pytest.raises(ValueError, match="need 1 blocks of 4 tokens, but 0 of 1 are free"):
        fork.append(one, one)
    assert fork.length == 1


def test_one_block_may_be_longer_than_what_is_gathered_and_scores_far_below_zero():
    pool = BlockPool(1, 600, 2, 4)
    cache = PagedKVCache(pool)
    cache.append(torch.full((1, 2, 3, 4), -1000.0), torch.ones(1, 2, 3, 4))
    assert paged_attention(torch.ones(1, 2, 1, 4), pool, cache.table, torch.tensor([3])).eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_layer_steps_as_with_a_plain_cache(dtype):
    torch.manual_seed(0)
    layer, x = GroupedQueryAttention(16, 4, 2).to(dtype), normal(1, 601, 16, seed=2).detach().to(dtype)
    cache, plain = PagedKVCache(BlockPool(151, 4, 2, 4, dtype=dtype)), layer.new_cache(1, 601)
    layer(x[:, :600], cache=cache), layer(x[:, :600], cache=plain)
    output = paged_step(layer, x[:, 600:], [cache])
    assert output.dtype == dtype
    assert_equal(output.float(), layer(x[:, 600:], cache=plain).float(), 0.02)


def test_a_step_leaves_no_gradient_and_the_random_generator_alone():
    layer, state = GroupedQueryAttention(16, 4, 2), torch.get_rng_state()
    cache, x = PagedKVCache(BlockPool(2, 4, 2, 4)), torch.ones(1, 2, 16, requires_grad=True)
    assert not paged_step(layer, x, [cache]).requires_grad and not cache.pool.key.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    kept = cache.append(torch.ones(1, 2, 1, 4, requires_grad=True), torch.ones(1, 2, 1, 4, requires_grad=True))
    assert not any(x.requires_grad for x in kept)


def test_autocast_writes_into_a_wide_pool():
    torch.manual_seed(0)
    layer, x = GroupedQueryAttention(16, 4, 2), normal(1, 4, 16, seed=2).detach().float()
    cache, plain = PagedKVCache(BlockPool(2, 4, 2, 4)), layer.new_cache(1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x[:, :3], cache=cache), layer(x[:, :3], cache=plain))
        assert_equal(paged_step(layer, x[:, 3:], [cache]), layer(x[:, 3:], cache=plain), 0.02)


@pytest.mark.parametrize(("table", "length", "T"), [([[-1]], 1, 1), ([[0]], 2, 3), ([[0]], 2, 0)])
def test_tables_and_lengths_out_of_range_are_refused(table, length, T):
    with pytest.raises(ValueError, match=r"at least T|tables name blocks"):
        paged_attention(torch.zeros(1, 2, T, 4), BlockPool(1, 4, 2, 4), torch.tensor(table), torch.tensor([length]))


def test_an_empty_part_of_a_table_is_no_part():
    """`attend_part` of a query without a key gives -inf and 0, which merging leaves out."""
    running = attend_part(torch.ones(1, 2), torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, dtype=torch.bool))
    assert running.maximum.item() == float("-inf") and running.total.item() == 0 and running.weighted.eq(0).all()
