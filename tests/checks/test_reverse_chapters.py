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


def shared(B, H, G, T, S, D, Dv):
    return drawn((B, H, T, D), (B, G, S, D), (B, G, S, Dv))


def lengths(*numbers):
    return list(numbers)


def masked(B, H, T, S):
    """Scores, a causal mask and left padding: empty rows, very low scores, high ones under a mask; in float16."""
    (scores,), mask = drawn((B, H, T, S)), torch.ones(T, S).tril(S - T).bool()
    padding = torch.ones(B, 1, 1, S).bool()
    padding[-1, ..., : S - T + 2] = False  # the last sequence's first two queries see nothing
    scores[:, :, 2 % T] += torch.where(mask[2 % T], 0.0, 300.0)
    scores[:, :, -1] -= 20000
    return [scores.half(), mask, padding]


def random_features(B, H, T, D, Dv, M, spread):
    query, key, value, projection = drawn((B, H, T, D), (B, H, T, D), (B, H, T, Dv), (M, D))
    return [*((spread / 2 * x).clamp(-4, 4) for x in (query, key)), value, projection / 2]


def turned(B, H, sizes, D):
    return [*drawn((B, H, sum(sizes), D), (B, H, sum(sizes), D)), torch.tensor(sizes)]


INPUTS = {  # the first shows every mistake but those below; what is allowed is said in the exercise
    "luong/test_general_score": (scores, [(2, 3, 5, 4, 4), (2, 3, 5, 4, 7), (1, 1, 1, 1, 1), (4, 8, 6, 32, 16)]),
    "causal/test_look_back": (attention, [(2, 3, 6, 4, 5), (2, 5, 5, 4, 4), (1, 1, 7, 2, 3), (3, 1, 1, 4, 2)]),
    "positions/test_rotate_pairs": (rotation, [(2, 5, 6, 3, 50.0), (1, 1, 2, 0, 10000.0), (3, 4, 8, 90, 10000.0)]),
    "kv_cache/test_decoding": (chunks, [(2, 3, (3, 1, 2, 4), 6, 5), (1, 1, (1,), 2, 3), (1, 2, (5, 1, 1), 4, 6)]),
    "execution/test_online": (tiles, [(2, 3, 4, 8, 4, 5, 3, 40.0), (1, 1, 1, 1, 1, 1, 1), (1, 2, 5, 7, 6, 4, 9)]),
    "bugs/test_shared_heads": (shared, [(2, 6, 2, 3, 4, 5, 7), (1, 1, 1, 1, 1, 1, 1), (3, 4, 4, 2, 6, 4, 4)]),
    "bugs/test_near_mask_with_cache": (lengths, [(5, 16, 3), (1, 9, 2), (1, 1, 1), (6, 6, 50), (7, 7, 1), (4, 9, 9)]),
    "bugs/test_half_masking": (masked, [(2, 3, 6, 9), (1, 1, 1, 2), (1, 1, 4, 4), (3, 2, 7, 20)]),
    "bugs/test_causal_features": (
        random_features,
        [(2, 3, 20, 4, 5, 16, 3.0), (1, 1, 1, 2, 1, 16, 1.0), (1, 2, 50, 8, 3, 24, 4.0)],
    ),
    "bugs/test_rotation_with_cache": (turned, [(2, 3, (3, 1, 2, 4), 6), (1, 1, (1,), 2), (1, 2, (1, 5, 1, 30), 8)]),
}
LATER = {  # another input shows them: one query, and queries at the start of the text
    ("bugs/test_near_mask_with_cache", "single_sees_all"),
    ("bugs/test_near_mask_with_cache", "start_wrapped"),
}
DTYPES = [(id, dtype) for id in INPUTS for dtype in (torch.float32, torch.float64)]
given_ids = pytest.mark.parametrize("id", REVERSE)


def test_every_reverse_exercise_is_here():
    assert INPUTS.keys() == REVERSE.keys()


def as_type(arguments, dtype):
    return [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


@pytest.mark.parametrize(("id", "dtype"), [*DTYPES, ("bugs/test_half_masking", torch.float16)])
def test_right_ones_agree(id, dtype):
    make, sizes = INPUTS[id]
    for size in sizes:
        arguments = as_type(make(*size), dtype)
        results = {name: implementation(*arguments) for name, implementation in REVERSE[id].right.items()}
        first = next(iter(results.values()))
        assert first.dtype in (dtype, torch.bool)
        for name, result in results.items():
            assert (result.shape, result.dtype) == (first.shape, first.dtype), (name, size)
            assert torch.allclose(result, first, atol=1e-3 if dtype == torch.float16 else 1e-4), (name, size)


def apart(one, other, least):
    """Whether two results differ; None is that of an implementation that raised an error."""
    if one is None or other is None:
        return one is not other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return True
    return not (one.double() - other.double()).abs().max() < least


def result_of(implementation, arguments):
    try:
        return implementation(*arguments)
    except RuntimeError:  # a fill that float16 cannot hold
        return None


@given_ids
def test_wrong_ones_differ_from_right_ones_and_from_each_other(id):
    spec, (make, sizes) = REVERSE[id], INPUTS[id]
    arguments = [make(*size) for size in sizes]
    right = [next(iter(spec.right.values()))(*given) for given in arguments]
    faulty = {m.name: spec.faulty(frozenset([m.name])) for m in spec.misconceptions}
    found = {name: [result_of(wrong, given) for given in arguments] for name, wrong in faulty.items()}
    for name, wrong in found.items():
        shown = [apart(*both, 0.01) for both in zip(wrong, right, strict=True)]
        assert shown[0] is ((id, name) not in LATER) and any(shown), name
    for a, b in itertools.combinations(found, 2):
        assert any(apart(*both, 1e-3) for both in zip(found[a], found[b], strict=True)), (a, b)
    sound = [spec.faulty(frozenset())(*given) for given in arguments]
    assert not any(apart(*both, 1e-3) for both in zip(sound, right, strict=True))


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
        assert REVERSE[id].too_strict in verdict.message, words
