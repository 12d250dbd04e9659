"""Every mask against its definition, pair by pair, and the alignment that they share: the last query sees the last key.

The definitions below are written over one query position i and one key position j, with loops and sets, on purpose in
another way than the module.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.masks import (
    causal_mask,
    combine,
    dilated_mask,
    fixed_mask,
    global_mask,
    random_block_mask,
    random_blocks,
    sliding_window_mask,
    strided_mask,
)

SIZES = [(1, 1), (2, 2), (9, 9), (13, 13), (1, 7), (4, 11), (5, 6), (7, 3), (11, 10), (6, 1)]
on_sizes = pytest.mark.parametrize(("T", "S"), SIZES)
on_causal = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
deterministic = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def brute_force(T, S, sees):
    """The mask, cell by cell: query t stands at position S - T + t."""
    return torch.tensor([[sees(S - T + t, j) for j in range(S)] for t in range(T)])


def assert_same(actual, expected):
    assert actual.dtype == torch.bool
    assert actual.tolist() == expected.tolist()


# --- each against its definition


@on_sizes
def test_causal(T, S):
    assert_same(causal_mask(T, S), brute_force(T, S, lambda i, j: not j > i))


@on_sizes
@on_causal
@pytest.mark.parametrize("window", [1, 2, 3, 6, 20])
def test_sliding_window(T, S, window, causal):
    def sees(i, j):
        before = [i - k for k in range(window)]  # the token itself is the first of them
        after = [] if causal else [i + k for k in range(window)]
        return j in before + after

    assert_same(sliding_window_mask(T, S, window=window, causal=causal), brute_force(T, S, sees))


@on_sizes
@on_causal
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 20])
def test_strided(T, S, stride, causal):
    def sees(i, j):
        before = set(range(i, -1, -stride))
        after = set() if causal else set(range(i, S, stride))
        return j in before | after

    assert_same(strided_mask(T, S, stride=stride, causal=causal), brute_force(T, S, sees))


@on_sizes
@on_causal
@pytest.mark.parametrize(("block", "summary"), [(1, 1), (3, 1), (4, 2), (5, 5), (20, 3)])
def test_fixed(T, S, block, summary, causal):
    def sees(i, j):
        starts = range(-2 * block * (T + 1), S + 1, block)
        (own,) = (range(start, start + block) for start in starts if start <= i < start + block)
        summaries = [start + block - 1 - k for start in starts for k in range(summary)]
        return (j in own or j in summaries) and not (causal and j > i)

    assert_same(fixed_mask(T, S, block=block, summary=summary, causal=causal), brute_force(T, S, sees))


@on_sizes
@on_causal
@pytest.mark.parametrize(("window", "dilation"), [(1, 3), (2, 1), (3, 2), (2, 5), (20, 2)])
def test_dilated(T, S, window, dilation, causal):
    def sees(i, j):
        before = [i - k * dilation for k in range(window)]
        after = [] if causal else [i + k * dilation for k in range(window)]
        return j in before + after

    assert_same(dilated_mask(T, S, window=window, dilation=dilation, causal=causal), brute_force(T, S, sees))


@on_sizes
@on_causal
@pytest.mark.parametrize("tokens", [[], [0], [0, 2], [-1], [0, 0, -1]], ids=str)
def test_global(T, S, tokens, causal):
    tokens = [t % S for t in tokens if t < S]  # -1 stands for the last position here

    def sees(i, j):
        return (i in tokens or j in tokens) and not (causal and j > i)

    expected = brute_force(T, S, sees)
    assert_same(global_mask(T, S, global_tokens=tokens, causal=causal), expected)
    assert_same(global_mask(T, S, global_tokens=torch.tensor(tokens, dtype=torch.int32), causal=causal), expected)


def test_global_is_symmetric_unless_told_otherwise():
    mask = global_mask(6, global_tokens=[1, 4])
    assert_same(mask, mask.T)
    assert_same(global_mask(6, global_tokens=[1, 4], causal=True), mask.tril())


# --- random blocks


def drawn(mask, block):
    """The earlier blocks that each block of queries sees, after checking that it sees whole blocks."""
    n = -(-len(mask) // block)
    rows = []
    for b in range(n):
        mine = mask[b * block : (b + 1) * block]
        assert (mine == mine[:1]).all(), "queries of one block see the same keys"
        keys = mine[0].nonzero().flatten().tolist()
        blocks = sorted({j // block for j in keys})
        assert keys == [j for c in blocks for j in range(c * block, (c + 1) * block)], "whole blocks only"
        rows.append(blocks)
    return rows


@pytest.mark.parametrize("n_random", [0, 1, 2, 5, 100])
@pytest.mark.parametrize(("T", "block"), [(24, 3), (25, 3), (10, 1), (7, 20), (16, 4)])
def test_random_blocks_are_distinct_earlier_whole_blocks(T, block, n_random):
    for seed in range(5):
        for b, blocks in enumerate(drawn(random_block_mask(T, block=block, n_random=n_random, seed=seed), block)):
            assert len(blocks) == min(n_random, b)
            assert all(0 <= c < b for c in blocks)


def test_random_blocks_prefix_of_a_longer_sequence_is_the_same():
    longest = random_block_mask(60, block=4, n_random=2, seed=11)
    for T in range(1, 60):
        assert_same(random_block_mask(T, block=4, n_random=2, seed=11), longest[:T, :T])


def test_random_blocks_depend_on_the_seed_alone():
    make = partial(random_block_mask, 48, block=4, n_random=2)
    state = torch.get_rng_state()
    first = make(seed=0)
    torch.manual_seed(99)
    assert_same(make(seed=0), first)
    torch.set_rng_state(state)
    make(seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert len({str(make(seed=seed).tolist()) for seed in range(20)}) == 20


def test_random_blocks_every_earlier_block_can_be_drawn_and_rows_are_drawn_apart():
    """Over 300 seeds block 6 draws each of its six earlier blocks about 100 times (2 of 6), and each pair of them."""
    draws = [drawn(random_block_mask(28, block=4, n_random=2, seed=seed), 4) for seed in range(300)]
    counts = [sum(c in rows[6] for rows in draws) for c in range(6)]
    assert all(60 < count < 140 for count in counts), counts
    assert len({tuple(rows[6]) for rows in draws}) == 15
    # Block 5 draws 2 of 5 and block 6 draws 2 of 6: were they drawn together, they would often be the same pair.
    assert sum(rows[5] == rows[6] for rows in draws) < 50


def test_random_blocks_of_a_seed_stay_what_they_are():
    """Pinned: a model trained with a seed must find the same pattern in every later version."""
    expected = {
        0: [[], [0], [0, 1], [0, 1], [1, 2], [1, 3], [0, 2], [0, 5]],
        1: [[], [0], [0, 1], [0, 2], [2, 3], [0, 3], [0, 1], [3, 6]],
    }
    for seed, blocks in expected.items():
        assert drawn(random_block_mask(24, block=3, n_random=2, seed=seed), 3) == blocks


def test_random_blocks_may_begin_anywhere():
    whole = random_blocks(7, 2, 5)
    for first in range(8):
        assert torch.equal(random_blocks(7, 2, 5, first=first), whole[first:])


# --- alignment: the rows of (T, S) are the last rows of the square mask

MASKS = {
    "causal": lambda a, b, seed: causal_mask,
    "sliding window": lambda a, b, seed: partial(sliding_window_mask, window=a),
    "sliding window, both sides": lambda a, b, seed: partial(sliding_window_mask, window=a, causal=False),
    "strided": lambda a, b, seed: partial(strided_mask, stride=a),
    "strided, both sides": lambda a, b, seed: partial(strided_mask, stride=a, causal=False),
    "fixed": lambda a, b, seed: partial(fixed_mask, block=a, summary=min(a, b)),
    "fixed, both sides": lambda a, b, seed: partial(fixed_mask, block=a, summary=min(a, b), causal=False),
    "dilated": lambda a, b, seed: partial(dilated_mask, window=a, dilation=b),
    "dilated, both sides": lambda a, b, seed: partial(dilated_mask, window=a, dilation=b, causal=False),
    "global": lambda a, b, seed: partial(global_mask, global_tokens=[0], causal=True),
    "global, both sides": lambda a, b, seed: partial(global_mask, global_tokens=[0]),
    "random blocks": lambda a, b, seed: partial(random_block_mask, block=a, n_random=b, seed=seed),
}
on_masks = pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
SEES_ITSELF = [name for name in MASKS if not name.startswith(("global", "random"))]


@on_masks
@deterministic
@given(S=st.integers(1, 40), data=st.data(), a=st.integers(1, 9), b=st.integers(1, 4), seed=st.integers(0, 1000))
def test_fewer_queries_are_the_last_rows_of_the_square(make, S, data, a, b, seed):
    T = data.draw(st.integers(1, S))
    mask = make(a, b, seed)
    square = mask(S)
    assert square.shape == (S, S)
    assert_same(mask(S, S), square)
    assert_same(mask(T, S), square[S - T :])


@on_masks
@deterministic
@given(S=st.integers(1, 12), extra=st.integers(1, 12), a=st.integers(1, 5), b=st.integers(1, 3), seed=st.integers(0, 9))
def test_more_queries_than_keys_end_with_the_square(make, S, extra, a, b, seed):
    mask = make(a, b, seed)
    tall = mask(S + extra, S)
    assert tall.shape == (S + extra, S)
    assert_same(tall[extra:], mask(S))


@pytest.mark.parametrize("name", [name for name in MASKS if "both" not in name])
def test_causal_masks_never_see_ahead_and_queries_before_every_key_see_nothing(name):
    for a, b in ((1, 1), (3, 2), (4, 3)):
        mask = MASKS[name](a, b, 0)
        for T, S in SIZES:
            assert not (mask(T, S) & ~causal_mask(T, S)).any()
            assert not mask(T, S)[: max(0, T - S)].any()


@on_sizes
@pytest.mark.parametrize("name", SEES_ITSELF)
def test_the_last_query_sees_the_last_key(name, T, S):
    for a, b in ((1, 1), (2, 1), (3, 2)):
        mask = MASKS[name](a, b, 0)(T, S)
        assert mask[-1, -1]
        own = min(T, S)  # and every query that stands at a key sees its own
        assert mask[-own:, -own:].diagonal().all()


# --- relations between them


@pytest.mark.parametrize("window", [1, 2, 5, 8, 9])
def test_window_counts_the_token_itself(window):
    rows = sliding_window_mask(8, window=window).sum(-1).tolist()
    assert rows == [min(i + 1, window) for i in range(8)]
    both = sliding_window_mask(8, window=window, causal=False).sum(-1).tolist()
    assert both == [min(i, window - 1) + 1 + min(7 - i, window - 1) for i in range(8)]


@on_sizes
def test_special_cases(T, S):
    for window in (S, S + 1, S + 50):
        assert_same(sliding_window_mask(T, S, window=window), causal_mask(T, S))
    if S > 1:
        assert not torch.equal(sliding_window_mask(T, S, window=S - 1), causal_mask(T, S))
    assert_same(strided_mask(T, S, stride=1), causal_mask(T, S))
    assert_same(dilated_mask(T, S, window=3, dilation=1), sliding_window_mask(T, S, window=3))
    assert_same(fixed_mask(T, S, block=4, summary=4), causal_mask(T, S))
    assert_same(fixed_mask(T, S, block=S, summary=1), causal_mask(T, S))
    assert_same(global_mask(T, S, global_tokens=range(S), causal=True), causal_mask(T, S))
    assert not global_mask(T, S, global_tokens=[]).any()


def test_all_earlier_random_blocks_and_the_own_block_make_causal():
    everything = random_block_mask(17, block=3, n_random=6, seed=0)
    own = fixed_mask(17, block=3, summary=1) & (torch.arange(17)[:, None] // 3 == torch.arange(17) // 3)
    assert_same(combine(everything, own), causal_mask(17))


def test_combine():
    a = torch.tensor([[True, True], [False, False]])
    b = torch.tensor([[True, False], [True, False]])
    c = torch.tensor([[False, False], [False, True]])
    assert combine(a, b).tolist() == [[True, True], [True, False]]
    assert combine(a, b, how="or").tolist() == [[True, True], [True, False]]
    assert combine(a, b, how="and").tolist() == [[True, False], [False, False]]
    assert combine(a, b, c).tolist() == [[True, True], [True, True]]
    assert combine(a, b, c, how="and").tolist() == [[False, False], [False, False]]
    assert combine(a, how="and").tolist() == combine(a).tolist() == a.tolist()
    padding = torch.tensor([[[[True, False]]], [[[True, True]]]])  # (B, 1, 1, S)
    assert combine(padding, a, how="and").tolist() == [[[[True, False], [False, False]]], [[[True, True], [False] * 2]]]
    assert a.tolist() == [[True, True], [False, False]], "left as it was"


# --- bad input

BAD = {
    "T=0": (partial(causal_mask, 0), ["T=0", "at least 1"]),
    "T=-2": (partial(sliding_window_mask, -2, 4, window=2), ["T=-2", "at least 1"]),
    "S=0": (partial(causal_mask, 3, 0), ["S=0", "at least 1"]),
    "window": (partial(sliding_window_mask, 4, window=0), ["window=0", "at least 1"]),
    "stride": (partial(strided_mask, 4, stride=-3), ["stride=-3", "at least 1"]),
    "block": (partial(fixed_mask, 4, block=0, summary=1), ["block=0", "at least 1"]),
    "summary": (partial(fixed_mask, 4, block=2, summary=0), ["summary=0", "at least 1"]),
    "summary and block": (partial(fixed_mask, 8, block=3, summary=4), ["summary=4", "block=3"]),
    "dilated window": (partial(dilated_mask, 4, window=0, dilation=1), ["window=0", "at least 1"]),
    "dilation": (partial(dilated_mask, 4, window=2, dilation=-1), ["dilation=-1", "at least 1"]),
    "token after the end": (partial(global_mask, 2, 6, global_tokens=[1, 6]), ["[1, 6]", "0 … 5"]),
    "token before the start": (partial(global_mask, 6, global_tokens=[-1, 3]), ["[-1, 3]", "0 … 5"]),
    "random block": (partial(random_block_mask, 4, block=0, n_random=1, seed=0), ["block=0", "at least 1"]),
    "n_random": (partial(random_block_mask, 4, block=2, n_random=-1, seed=0), ["n_random=-1", "at least 0"]),
    "how": (partial(combine, causal_mask(2), how="xor"), ["'xor'", '"or"', '"and"']),
    "no mask": (combine, ["at least one mask"]),
    "shapes": (partial(combine, causal_mask(3, 4), causal_mask(4, 3)), ["(3, 4)", "(4, 3)"]),
}
WRONG_TYPE = {
    "float mask": (partial(combine, causal_mask(2), torch.zeros(2, 2)), ["torch.float32", "torch.bool"]),
    "integer mask": (partial(combine, torch.ones(2, 2).long(), how="and"), ["torch.int64", "torch.bool"]),
    "tokens as a mask": (partial(global_mask, 3, global_tokens=torch.tensor([True, False, True])), ["torch.bool"]),
    "tokens as a list of booleans": (partial(global_mask, 3, global_tokens=[True, False, True]), ["torch.bool"]),
    "fractional tokens": (partial(global_mask, 3, global_tokens=[0.0, 1.5]), ["torch.float32"]),
}


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_bad_values_are_named_with_their_numbers(make, said):
    with pytest.raises(ValueError) as caught:
        make()
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(("make", "said"), WRONG_TYPE.values(), ids=WRONG_TYPE)
def test_wrong_types_are_named(make, said):
    with pytest.raises(TypeError) as caught:
        make()
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)
