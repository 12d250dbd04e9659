"""What the cache promises: everything appended, in order, in storage that was there from the start."""

import pytest
import torch

from attncourse.kv_cache import KVCache, RollingKVCache
from tests.test_bahdanau import normal


def test_appending_returns_everything_so_far_without_copying():
    cache = KVCache(2, 3, 6, 4, value_dim=5, dtype=torch.float64)
    key, value = normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 5, seed=2)
    start = 0
    for length in (2, 1, 3):
        keys, values = cache.append(key[:, :, start : start + length], value[:, :, start : start + length])
        start += length
        assert cache.length == start
        assert torch.equal(keys, key[:, :, :start]) and torch.equal(values, value[:, :, :start])
        assert keys.data_ptr() == cache.key.data_ptr() and values.data_ptr() == cache.value.data_ptr()
        assert not keys.requires_grad and not values.requires_grad


def test_nbytes_counts_the_storage():
    assert KVCache(2, 3, 6, 4).nbytes == 2 * 3 * 6 * (4 + 4) * 4
    assert KVCache(2, 3, 6, 4, value_dim=1, dtype=torch.bfloat16).nbytes == 2 * 3 * 6 * (4 + 1) * 2


def test_what_does_not_fit_is_refused():
    cache = KVCache(2, 3, 6, 4)
    with pytest.raises(ValueError, match="holds 0 of at most 6 tokens, so 7 more do not fit"):
        cache.append(torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 4))
    with pytest.raises(ValueError, match="made for batch_size=2, but x has 1"):
        cache.append(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
    with pytest.raises(ValueError, match=r"key has shape \(3, 1, 4\); it needs four axes"):
        cache.append(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match=r"value has shape \(2, 3, 1, 5\), but the cache takes \(2, 3, 1, 4\)"):
        cache.append(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 5))
    with pytest.raises(ValueError, match="devices differ: value meta, the cache cpu"):
        cache.append(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4, device="meta"))
    assert cache.length == 0 and not cache.key.any() and not cache.value.any()


SIZES = {"batch_size": 2, "n_kv_heads": 3, "max_length": 6, "head_dim": 4, "value_dim": 5}


@pytest.mark.parametrize("name", SIZES)
def test_each_size_must_be_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name}=0, but it must be at least 1"):
        KVCache(**{**SIZES, name: 0})


@pytest.mark.parametrize("lengths", [[2, 3], [2, 1], [1, 1]], ids=str)
@pytest.mark.parametrize("kind", [KVCache, RollingKVCache])
def test_under_autocast_what_comes_back_is_as_narrow_as_what_came_last(kind, lengths):
    """The first tokens are stored wide; then the layer computes in bfloat16, and so must all that it reads."""
    cache = kind(2, 3, 4 + 2, 4)
    narrow, start = normal(2, 3, 5, 4, seed=1).bfloat16(), 0
    cache.append(narrow[:, :, : lengths[0]].float(), -narrow[:, :, : lengths[0]].float())
    start = lengths[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys, values, *_ = cache.append(narrow[:, :, start : sum(lengths)], -narrow[:, :, start : sum(lengths)])
    assert torch.equal(keys, narrow[:, :, : sum(lengths)]) and torch.equal(values, -keys)
    assert keys.dtype == values.dtype == torch.bfloat16 and cache.key.dtype == torch.float32


@pytest.mark.parametrize("kind", [KVCache, RollingKVCache])
def test_all_that_a_cache_gives_is_where_it_stands(kind):
    """The device meta has no numbers, and PyTorch refuses to mix it with another."""
    cache, new = kind(2, 3, 6, 4, device="meta"), torch.zeros(2, 3, 4, 4, device="meta")
    for length in (4, 1, 1):
        given = cache.append(new[:, :, :length], new[:, :, :length])
        assert all(tensor.device.type == "meta" for tensor in (*given, cache.key, cache.value))


# --- the cache that rolls


@pytest.mark.parametrize("chunks", [[1] * 11, [11], [3, 1, 4, 3], [2, 9], [9, 2], [5, 5, 0, 1]], ids=str)
@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_a_rolling_cache_gives_each_chunk_what_its_tokens_may_see(chunks, window):
    cache = RollingKVCache(2, 3, window, 4, value_dim=5, dtype=torch.float64)
    key, value = normal(2, 3, 11, 4, seed=1), normal(2, 3, 11, 5, seed=2)
    storage, start = cache.key.data_ptr(), 0
    for length in chunks:
        end = start + length
        keys, values, positions = cache.append(key[:, :, start:end], value[:, :, start:end])
        assert sorted(positions.tolist()) == list(range(max(0, start - window + 1), end))
        assert torch.equal(keys, key[:, :, positions]) and torch.equal(values, value[:, :, positions])
        assert not keys.requires_grad and not values.requires_grad
        if length != 1:
            assert positions.tolist() == sorted(positions.tolist())
        start = end
        kept = torch.arange(max(0, end - window), end)
        assert torch.equal(cache.key[:, :, kept % window], key[:, :, kept])
        assert torch.equal(cache.value[:, :, kept % window], value[:, :, kept])
        assert cache.length == start and cache.key.data_ptr() == storage


def test_one_token_sees_the_storage_itself():
    cache = RollingKVCache(2, 3, 4, 4)
    for _ in range(6):
        keys, values, _ = cache.append(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4))
    assert keys.data_ptr() == cache.key.data_ptr() and values.data_ptr() == cache.value.data_ptr()


def test_a_rolling_cache_does_not_grow():
    cache = RollingKVCache(2, 3, 6, 4, value_dim=1, dtype=torch.bfloat16)
    cache.append(torch.zeros(2, 3, 100, 4, dtype=torch.bfloat16), torch.zeros(2, 3, 100, 1, dtype=torch.bfloat16))
    assert cache.nbytes == 2 * 3 * 6 * (4 + 1) * 2 and cache.length == 100


def test_a_rolling_cache_shorter_than_its_window_is_a_plain_one():
    cache = RollingKVCache(2, 3, 6, 4, max_length=4)
    assert cache.nbytes == 2 * 3 * 4 * (4 + 4) * 4
    cache.append(torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 3, 4))
    with pytest.raises(ValueError, match="holds 3 of at most 4 tokens, so 2 more do not fit"):
        cache.append(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    with pytest.raises(ValueError, match="made for batch_size=2, but x has 1"):
        RollingKVCache(2, 3, 6, 4).append(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
    with pytest.raises(ValueError, match="window=0, but it must be at least 1"):
        RollingKVCache(2, 3, 0, 4)
