"""The mask lab's patterns against loops that follow what their sentences say."""

from itertools import product

import pytest
import torch

from attncourse.lab.masks import patterns, top_k_mask

T = 24


def random_block(seed: int, row: int, n_random: int) -> set[int]:
    """The earlier blocks that `random_block_mask` draws for a block of queries."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
    return set(torch.randperm(row, generator=generator)[:n_random].tolist())


def best(scores: torch.Tensor, query: int, k: int) -> set[int]:
    return set(sorted(range(query + 1), key=lambda key: -scores[query, key].item())[:k])


SCORES = torch.randn(T, T, generator=torch.Generator().manual_seed(0))
SEES = {  # whether query i sees key j, for the values of the pattern's parameters
    "causal": lambda i, j: j <= i,
    "window": lambda i, j, window: i - window < j <= i,
    "sinks + window": lambda i, j, window, sinks: j <= i and (i - j < window or j < sinks),
    "blocks": lambda i, j, block, earlier: j <= i and j >= (i // block - earlier) * block,
    "strided + local": lambda i, j, window, stride: j <= i and (i - j < window or (i - j) % stride == 0),
    "fixed": lambda i, j, block, n: j <= i and (i // block == j // block or j % block >= block - n),
    "dilated": lambda i, j, window, dilation: i - j in range(0, window * dilation, dilation),
    "global + window": lambda i, j, window, n: abs(i - j) < window or i < n or j < n,
    "random blocks": lambda i, j, block, n: (
        j <= i and (j // block >= i // block - 1 or j // block in random_block(0, i // block, n))
    ),
    "top-k": lambda i, j, k: j in best(SCORES, i, k),
}


def test_every_pattern_has_a_rule_here():
    assert list(patterns()) == list(SEES)
    assert list(patterns("top-k", "causal")) == ["top-k", "causal"]


@pytest.mark.parametrize("name", SEES)
def test_every_mask_is_what_its_sentence_says(name):
    make, parameters, note = patterns(name)[name]
    assert note.endswith(".") and len(parameters) <= 2
    for values in product(*parameters.values()):
        expected = [[SEES[name](i, j, *values) for j in range(T)] for i in range(T)]
        assert make(*values).tolist() == expected, values


def test_length_and_scores_are_given():
    scores = torch.tensor([[0.0, 9, 9], [1, 2, 9], [3, 1, 2]])
    assert top_k_mask(scores, 2).tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    made = patterns("top-k", "window", T=3, scores=scores)
    assert made["top-k"][0](1).tolist() == [[True, False, False], [False, True, False], [True, False, False]]
    assert made["window"][0](2).shape == (3, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="windows: the patterns are causal"):
        patterns("windows")
    with pytest.raises(ValueError, match=r"needs \(24, 24\)"):
        patterns("top-k", scores=torch.zeros(3, 3))
