"""Every exercise whose answer is a test: right ones agree, wrong ones differ, and tests of the test get what is due.

`test_reverse.py` goes deeper with one of them.
"""

import itertools

import pytest
import torch

from attncourse.checks import Report, exercise
from tests.checks import matrix, reverse_exercises

REVERSE = {spec.id: spec for spec in reverse_exercises()}


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(shape, generator=generator) for shape in shapes]


def scores(B, T, S, Dq, Dk):
    return drawn((B, T, Dq), (B, S, Dk), (Dq, Dk))


def attention(B, T, S, D, Dv):
    return drawn((B, T, D), (B, S, D), (B, S, Dv))


def rotation(B, T, D, start, base):
    return [*drawn((B, T, D)), torch.arange(start, start + T), base]


def chunks(B, H, sizes, D, Dv):
    T = sum(sizes)
    return [*drawn((B, H, T, D), (B, H, T, D), (B, H, T, Dv)), torch.tensor(sizes)]


def tiles(B, H, T, S, D, Dv, tile, apart=1.0):
    """With `apart`, the first two queries have scores hundreds apart, in opposite orders."""
    query, key, value = drawn((B, H, T, D), (B, H, S, D), (B, H, S, Dv))
    if apart > 1:
        query[:, :, 0] *= apart
        query[:, :, 1] = -query[:, :, 0]
    return [query, key, value, tile]


INPUTS = {  # the first shows every mistake; what is allowed is said in the exercise
    "luong/test_general_score": (scores, [(2, 3, 5, 4, 4), (2, 3, 5, 4, 7), (1, 1, 1, 1, 1), (4, 8, 6, 32, 16)]),
    "causal/test_look_back": (attention, [(2, 3, 6, 4, 5), (2, 5, 5, 4, 4), (1, 1, 7, 2, 3), (3, 1, 1, 4, 2)]),
    "positions/test_rotate_pairs": (rotation, [(2, 5, 6, 3, 50.0), (1, 1, 2, 0, 10000.0), (3, 4, 8, 90, 10000.0)]),
    "kv_cache/test_decoding": (chunks, [(2, 3, (3, 1, 2, 4), 6, 5), (1, 1, (1,), 2, 3), (1, 2, (5, 1, 1), 4, 6)]),
    "execution/test_online": (tiles, [(2, 3, 4, 8, 4, 5, 3, 40.0), (1, 1, 1, 1, 1, 1, 1), (1, 2, 5, 7, 6, 4, 9)]),
}
given_ids = pytest.mark.parametrize("id", REVERSE)


def test_every_reverse_exercise_is_here():
    assert INPUTS.keys() == REVERSE.keys()


def as_type(arguments, dtype):
    return [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


@given_ids
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_ones_agree(id, dtype):
    make, sizes = INPUTS[id]
    for size in sizes:
        arguments = as_type(make(*size), dtype)
        results = {name: implementation(*arguments) for name, implementation in REVERSE[id].right.items()}
        first = next(iter(results.values()))
        for name, result in results.items():
            assert (result.shape, result.dtype) == (first.shape, dtype), (name, size)
            assert torch.allclose(result, first, atol=1e-4), (name, size)


@given_ids
def test_wrong_ones_differ_from_right_ones_and_from_each_other(id):
    spec, (make, sizes) = REVERSE[id], INPUTS[id]
    arguments = make(*sizes[0])
    right = next(iter(spec.right.values()))(*arguments)
    found = {m.name: spec.faulty(frozenset([m.name]))(*arguments) for m in spec.misconceptions}
    for name, wrong in found.items():
        assert wrong.shape != right.shape or not (wrong - right).abs().max() < 0.01, name
    for a, b in itertools.combinations(found, 2):
        assert found[a].shape != found[b].shape or not torch.allclose(found[a], found[b], atol=1e-3), (a, b)
    assert torch.allclose(spec.faulty(frozenset())(*arguments), right, atol=1e-4)


@given_ids
def test_a_good_test_gets_all_points(id):
    for words, verdict in matrix.learners_tests(id)["good"].items():
        assert verdict.passed and verdict.points == exercise(id).points, (words, verdict.message)


@given_ids
def test_a_lax_test_is_told_what_it_lets_through(id):
    spec, lax = REVERSE[id], matrix.answers(id.split("/")[0]).lax
    for words, verdict in matrix.learners_tests(id)["lax"].items():
        missed, _ = lax[id, words]
        assert verdict.kind == "misses" and {m.name for m in verdict.mistakes} == missed, words
        assert verdict.points < spec.points
        n = len(spec.misconceptions)
        assert f"rejects {n - len(missed)} of {n} wrong ones" in str(Report(verdict)), words


@given_ids
def test_a_test_that_rejects_a_right_one_gets_nothing(id):
    for words, verdict in matrix.learners_tests(id)["strict"].items():
        assert (verdict.kind, verdict.points, verdict.mistakes) == ("too strict", 0, ()), words
