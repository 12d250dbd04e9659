"""The references of chapter 16 agree with the comparison's own models and with what caches store."""

import torch

from attncourse.checks.choosing import largest_batch, matched_width, paired_difference, roofline_ms
from attncourse.lab.choosing import CONTEXT, D_MODEL, MODELS, make_model
from attncourse.lab.costs import bound
from attncourse.multi_head import MultiHeadAttention
from attncourse.sliding_window import SlidingWindowAttention


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_widths_of_the_comparison_are_matched_to_the_nearest():
    models = {name: make_model(name) for name in MODELS}
    attention = torch.tensor([[parameters(block.attention) for block in m.blocks] for m in models.values()])
    widths = matched_width(attention, int(attention[0, 0]), D_MODEL, 4 * D_MODEL)
    theirs = torch.tensor([m.blocks[0].up.out_features for m in models.values()])
    assert set((theirs - widths).tolist()) <= {0, 1}  # one more where the nearest is above
    all_ours = attention.sum(1) + attention.shape[1] * 2 * D_MODEL * widths
    assert (all_ours <= all_ours[0]).all()
    assert (all_ours + attention.shape[1] * 2 * D_MODEL > all_ours[0]).all()


def test_as_many_sequences_fit_as_caches_of_real_layers():
    full, windowed = MultiHeadAttention(8, 2, causal=True), SlidingWindowAttention(8, 2, window=16)

    def taken(n_sequences, n_tokens):
        caches = [full.new_cache(n_sequences, n_tokens)] * 2 + [windowed.new_cache(n_sequences, n_tokens)] * 3
        return sum(cache.nbytes for cache in caches)

    lengths, memory, weights = torch.tensor([5, 16, 40, CONTEXT]), 300_000, 120_000
    found = largest_batch(lengths, memory, weights, 2 * 8 * 4, 2, 3, 16)
    for n_sequences, n_tokens in zip(found.tolist(), lengths.tolist(), strict=True):
        assert weights + taken(n_sequences, n_tokens) <= memory < weights + taken(n_sequences + 1, n_tokens)


def test_pairing_narrows_the_error_where_seeds_move_both():
    shared = torch.tensor([[0.0, 1.0, 2.0]])
    a, b = shared + torch.tensor([[0.1, 0.2, 0.3]]), shared
    mean, error = paired_difference(a, b)
    torch.testing.assert_close(mean, torch.tensor([0.2]))
    torch.testing.assert_close(error, torch.tensor([0.1 / 3**0.5]))
    assert error < ((a.var(1) + b.var(1)) / 3).sqrt() / 5


def test_the_bound_is_that_of_the_measured_costs():
    machine = {"flop_per_s": 3e11, "bytes_per_s": 2e10}
    flop, moved = torch.tensor([8_000_000_000, 5_000_000]), torch.tensor([60_000_000, 40_000_000])
    milliseconds, memory_bound = roofline_ms(flop, moved, **machine)
    for i, traffic in enumerate(memory_bound.tolist()):
        theirs, binds = bound({"flop": int(flop[i]), "bytes": int(moved[i])}, machine)
        torch.testing.assert_close(milliseconds[i].item(), theirs, rtol=1e-5, atol=0)
        assert (binds == "traffic") == traffic
