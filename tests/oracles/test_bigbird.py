"""BigBird against transformers' `BigBirdBlockSparseAttention`, with copied weights and the blocks that it drew.

Outputs, weights, and the gradients of inputs and parameters: 1e-4 in float32, 1e-12 in float64, largest difference.

It draws random blocks only in training. In eval every random block is block 0, which is global, so its keys come
1 + r times into each softmax: another attention than the one it was trained with. At a length of 1024 its draw may
also name the last block, which is global too. We follow the paper, where the keys of a query are a set.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

from attncourse import bigbird
from attncourse.attention import scaled_dot_product_attention
from attncourse.bigbird import BigBirdAttention, bigbird_mask
from attncourse.multi_head import merge_heads, split_heads
from tests.oracles.compare import (
    as_list,
    close,
    compare,
    filled,
    in_dtypes,
    on_both_paths,
    on_devices,
    real_tokens,
    sequence,
)
from tests.oracles.weights import from_bigbird

pytestmark = pytest.mark.oracle(
    mechanism="bigbird",
    chapter="09_sparse",
    module="bigbird",
    library="transformers",
    theirs="BigBirdBlockSparseAttention",
)

B, H, D = 2, 3, 4
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# Blocks, their size and how many are random, for each of its three plans of drawing: all from the first 2r + 5 blocks,
# half of them from the first r + 5, all from all. Few sizes are long enough for it to find the blocks it wants.
SIZES = [(12, 2, 3), (9, 5, 1), (21, 3, 8), (7, 4, 2), (6, 1, 1)]
with_sizes = pytest.mark.parametrize(("N", "block", "r"), SIZES)


def both(block, r, device, dtype, training=True, bias=True):
    """Our layer and theirs, with the same weights."""
    config = BigBirdConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        block_size=block,
        num_random_blocks=r,
        use_bias=bias,
    )
    modules = {"attention": BigBirdBlockSparseAttention(config, seed=4), "dense": nn.Linear(H * D, H * D, bias=bias)}
    theirs = filled(nn.ModuleDict(modules), device, dtype).train(training)
    ours = BigBirdAttention(H * D, H, block=block, n_random=r, bias=bias).to(device, dtype)
    ours.load_state_dict(from_bigbird(theirs), strict=True)
    return ours, theirs


def run(theirs, x, real, block):
    """Their output (B, T, d_model), weights (B, H, T, T) and random blocks (H, N, r), -1 where they draw none."""
    attention, drawn = theirs["attention"], []

    def recorded(draw, *args, **kwargs):
        table = draw(attention, *args, **kwargs)
        drawn.extend(table if isinstance(table, list) else [table])  # all heads at once, or one a call
        return table

    for name in ("_bigbird_block_rand_mask", "_bigbird_block_rand_mask_with_head"):
        setattr(attention, name, partial(recorded, getattr(type(attention), name)))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(real.to(x.dtype), block)
    output, weights = attention(x, band, rows, columns, blocked, blocked)
    random = torch.stack([torch.as_tensor(table) for table in drawn]).long()  # (H, N - 2, r)
    random = random[:, : real.shape[1] // block - 2]  # it draws for 4096 tokens, and takes what 1024 need
    return theirs["dense"](output), weights, F.pad(random, (0, 0, 1, 1), value=-1)


@pytest.mark.oracle(
    what="in training, over the random blocks that it drew: whole, padded on either side; with bias and without"
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("padded", ["whole", "padded", "left-padded"])
@with_sizes
def test_bigbird_equals_transformers(N, block, r, padded, bias, return_weights, dtype, device, monkeypatch):
    ours, theirs = both(block, r, device, dtype, bias=bias)
    x = sequence(B, N * block, H * D, device=device, dtype=dtype)
    real = real_tokens(B, N * block, device, left="left" in padded)
    real = real | (padded == "whole")
    *expected, random = run(theirs, x, real, block)
    assert random.shape == (H, N, r) and random[:, 1:-1].min() > 0
    monkeypatch.setattr(bigbird, "random_blocks", lambda *_: random)
    mask = None if padded == "whole" else real[:, None, None]
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    rows = real[:, :, None]  # a padded query sees what others see here, and nothing there
    actual = [tensor * seen for tensor, seen in zip(actual, (rows, rows[:, None]), strict=False)]
    expected = [tensor * seen for tensor, seen in zip(expected, (rows, rows[:, None]), strict=True)][: len(actual)]
    compare(ours, theirs, from_bigbird, [x], actual, expected, TOLERANCE[dtype])


def counting(ours, x, counts):
    """The layer's output with key j counted counts[..., i, j] times by query i: a number's log added to its score."""
    heads = [split_heads(project(x), H) for project in (ours.q_proj, ours.k_proj, ours.v_proj)]
    return ours.o_proj(merge_heads(scaled_dot_product_attention(*heads, counts > 0, bias=counts.clamp(min=1).log())))


@pytest.mark.oracle(what="in eval, with block 0 counted 1 + r times, as it does")
@on_devices
@with_sizes
def test_in_eval_transformers_counts_block_0_once_more_for_each_random_block(N, block, r, device):
    T = N * block
    ours, theirs = both(block, r, device, torch.float64, training=False)
    x = sequence(B, T, H * D, device=device, dtype=torch.float64)
    output, _, random = run(theirs, x, torch.ones(B, T, dtype=torch.bool, device=device), block)
    assert random[:, 1:-1].eq(0).all()
    counts = bigbird_mask(T, random[0], block=block).double().to(device)
    pattern = counting(ours, x, counts)
    counts[block:-block, :block] = 1 + r  # queries between the global blocks, keys of block 0
    close(counting(ours, x, counts), output, 1e-12, "block 0 counted 1 + r times")
    assert (pattern - output)[:, block:-block].abs().amax((0, 2)).min() > 1e-3, "every token between differs"


@pytest.mark.oracle(what="at 1,024 tokens, with the last block counted twice where it was drawn, as it does")
@on_devices
def test_at_1024_tokens_transformers_counts_the_last_block_twice_where_it_draws_it(device):
    """Its table for the paper's lengths is drawn for 4096 tokens, of which block 15 is not the last."""
    block, r, T = 64, 3, 1024
    ours, theirs = both(block, r, device, torch.float64)
    x = sequence(1, T, H * D, device=device, dtype=torch.float64)
    output, _, random = run(theirs, x, torch.ones(1, T, dtype=torch.bool, device=device), block)
    counts = bigbird_mask(T, random, block=block).double().to(device)  # (H, T, T)
    pattern = counting(ours, x, counts)
    twice = (random == 15).any(-1).repeat_interleave(block, 1).to(device)  # (H, T)
    counts[..., -block:] += twice[..., None]
    close(counting(ours, x, counts), output, 1e-12, "block 15 counted twice")
    differs = (pattern - output).abs().amax((0, 2)) > 1e-6
    assert 0 < twice.any(0).sum() < T and torch.equal(differs, twice.any(0))
