"""What the cache promises: everything appended, in order, in storage that was there from the start."""

import pytest
import torch

from attncourse.kv_cache import KVCache
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
        assert not keys.requires_grad


def test_nbytes_counts_the_storage():
    assert KVCache(2, 3, 6, 4).nbytes == 2 * 3 * 6 * (4 + 4) * 4
    assert KVCache(2, 3, 6, 4, value_dim=1, dtype=torch.bfloat16).nbytes == 2 * 3 * 6 * (4 + 1) * 2


def test_what_does_not_fit_is_refused():
    cache = KVCache(2, 3, 6, 4)
    with pytest.raises(ValueError, match="holds 0 of at most 6 tokens, so 7 more do not fit"):
        cache.append(torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 4))
    with pytest.raises(ValueError, match="made for batch_size=2, but x has 1"):
        cache.append(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
    with pytest.raises(ValueError, match="max_length=0, but it must be at least 1"):
        KVCache(2, 3, 0, 4)
    assert cache.length == 0
