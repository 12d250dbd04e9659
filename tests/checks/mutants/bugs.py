"""Chapter 17 as learners write it: tests that find every bug, tests that miss some, tests that reject what is right.

Nothing here uses the implementations of attncourse/checks/bugs.py: what a test compares with is written anew.
"""

import math

import torch
import torch.nn.functional as F

from attncourse.masks import sliding_window_mask
from attncourse.performer import orthogonal_projection
from attncourse.positions import RotaryEmbedding, apply_rotary
from tests.checks.mutants import Answers

ANSWERS = Answers("bugs")
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test


def _normal(*shapes, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(shape, generator=generator) for shape in shapes]


def _close(one, other, atol=1e-4):
    return one.shape == other.shape and torch.allclose(one, other, atol=atol)


def _all_but(every, *names):
    return [name for name in every if name not in names]


# --- test_shared_heads: tests that get all points ---------------------------------------------------------------


def _heads(B=2, H=6, G=2, T=3, S=5, D=4, Dv=7, seed=0):
    return _normal((B, H, T, D), (B, G, S, D), (B, G, S, Dv), seed=seed)


def _by_head(query, key, value):
    """The output of every head, from the definition."""
    n, outputs = query.shape[1] // key.shape[1], []
    for h in range(query.shape[1]):
        scores = torch.einsum("btd,bsd->bts", query[:, h], key[:, h // n]) / math.sqrt(query.shape[-1])
        outputs.append(scores.softmax(-1) @ value[:, h // n])
    return torch.stack(outputs, 1)


@good_test("test_shared_heads", "against one head after the other")
def _(candidate):
    given = _heads()
    return _close(candidate(*given), _by_head(*given))


@good_test("test_shared_heads", "asserts, several sizes, by keywords, the fused kernel")
def _(candidate):
    for H, G in ((6, 3), (8, 2), (4, 4), (5, 1)):
        query, key, value = _heads(H=H, G=G, seed=H)
        expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        output = candidate(query=query, key=key, value=value)
        assert output.shape == expected.shape
        assert (output - expected).abs().max() < 1e-4


@good_test("test_shared_heads", "whose value a head returns: one marked key-value head after the other")
def _(candidate):
    query, key, value = _heads(H=8, G=2)
    before = candidate(query, key, value)
    for g in range(2):
        k, v = key.clone(), value.clone()
        k[:, g], v[:, g] = -k[:, g], v[:, g] + 5
        moved = (candidate(query, k, v) - before).abs().amax((0, 2, 3)) > 1e-3
        assert moved.tolist() == [h // 4 == g for h in range(8)]
    return _close(before, _by_head(query, key, value))


@good_test("test_shared_heads", "in float64, against G = H with the heads copied, and that against attention")
def _(candidate):
    query, key, value = (x.double() for x in _heads(H=6, G=3))
    copied = [torch.stack([x[:, h // 2] for h in range(6)], 1) for x in (key, value)]
    full = (query @ copied[0].mT / 2).softmax(-1) @ copied[1]
    return _close(candidate(query, *copied), full) and _close(candidate(query, key, value), full)


# --- test_shared_heads: tests that let something through --------------------------------------------------------

_SHARED = (
    *("tiled", "values_tiled", "output_reordered", "size_for_count", "first_head", "last_ones", "averaged"),
    *("queries_averaged", "repeats_batch", "repeats_time", "scaled_by_width"),
)


@lax_test("test_shared_heads", "the shape only", *_SHARED)
def _(candidate):
    return candidate(*_heads()).shape == (2, 6, 3, 7)


@lax_test(
    "test_shared_heads",
    "as many key-value heads as query heads",
    *_all_but(_SHARED, "size_for_count", "first_head", "averaged", "repeats_batch", "scaled_by_width"),
)
def _(candidate):
    given = _heads(H=4, G=4)
    return _close(candidate(*given), _by_head(*given))


@lax_test(
    "test_shared_heads", "one key-value head", *_all_but(_SHARED, "queries_averaged", "repeats_time", "scaled_by_width")
)
def _(candidate):
    given = _heads(B=1, H=4, G=1)
    return _close(candidate(*given), _by_head(*given))


@lax_test("test_shared_heads", "four heads over two", "size_for_count")
def _(candidate):
    given = _heads(H=4, G=2)
    return _close(candidate(*given), _by_head(*given))


@lax_test(
    "test_shared_heads",
    "a group against G = H, no attention written out",
    "first_head",
    "averaged",
    "repeats_batch",
    "scaled_by_width",
)
def _(candidate):
    query, key, value = _heads(H=6, G=2)
    copied = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    return _close(candidate(query, key, value), candidate(query, *copied))


@lax_test(
    "test_shared_heads",
    "the first head only",
    *_all_but(_SHARED, "averaged", "queries_averaged", "repeats_time", "scaled_by_width"),
)
def _(candidate):
    given = _heads(B=1)
    return _close(candidate(*given)[:, 0], _by_head(*given)[:, 0])


@lax_test("test_shared_heads", "the mean over the heads", "output_reordered")
def _(candidate):
    given = _heads()
    return _close(candidate(*given).mean(1), _by_head(*given).mean(1))


@lax_test("test_shared_heads", "all values the same in each head", "values_tiled")
def _(candidate):
    query, key, value = _heads()
    value = value[:, :1].repeat(1, 2, 1, 1)
    return _close(candidate(query, key, value), _by_head(query, key, value))


@lax_test("test_shared_heads", "equal query heads", "first_head", "averaged", "queries_averaged", "scaled_by_width")
def _(candidate):
    query, key, value = _heads()
    query = query[:, :1].repeat(1, 6, 1, 1)
    output = candidate(query, key, value)
    return all(_close(output[:, h], output[:, h + 1]) for h in (0, 1, 3, 4))


@lax_test("test_shared_heads", "one sequence", "repeats_batch")
def _(candidate):
    given = _heads(B=1)
    return _close(candidate(*given), _by_head(*given))


@lax_test(
    "test_shared_heads", "one sequence, one key", "queries_averaged", "repeats_batch", "repeats_time", "scaled_by_width"
)
def _(candidate):
    given = _heads(B=1, S=1)
    return _close(candidate(*given), _by_head(*given))


# --- test_shared_heads: tests that reject what is right ---------------------------------------------------------


@strict_test("test_shared_heads", "takes ABAB for right")
def _(candidate):
    query, key, value = _heads()
    return _close(candidate(query, key, value), _by_head(query, key.repeat(1, 3, 1, 1), value.repeat(1, 3, 1, 1)))


@strict_test("test_shared_heads", "torch.equal")
def _(candidate):
    given = _heads(S=40, D=16)
    return torch.equal(candidate(*given), _by_head(*given))


@strict_test("test_shared_heads", "forgets the root of D")
def _(candidate):
    query, key, value = _heads()
    return _close(candidate(query, key, value), _by_head(2 * query, key, value))


# --- test_near_mask_with_cache: tests that get all points -------------------------------------------------------


def _window(T, S, window):
    return torch.tensor([[0 <= S - T + i - j < window for j in range(S)] for i in range(T)])


@good_test("test_near_mask_with_cache", "against the definition, with a past and without, one query too")
def _(candidate):
    sizes = ((4, 13, 5), (6, 6, 3), (1, 9, 4), (3, 8, 1), (5, 7, 20))
    return all(torch.equal(candidate(T, S, window), _window(T, S, window)) for T, S, window in sizes)


@good_test("test_near_mask_with_cache", "every size up to seven, against the course's mask, by keywords")
def _(candidate):
    for S in range(1, 8):
        for T in range(1, S + 1):
            for window in (1, 3, 4)[: 1 + S // 2]:
                mask = candidate(T=T, S=S, window=window)
                assert mask.shape == (T, S)
                assert (mask == sliding_window_mask(T, S, window=window)).all()


@good_test("test_near_mask_with_cache", "two properties: the last rows of the whole, and the whole by hand")
def _(candidate):
    whole = candidate(9, 9, 3)
    by_hand = [[max(0, i - 2) <= j <= i for j in range(9)] for i in range(9)]
    return whole.tolist() == by_hand and all(torch.equal(candidate(T, 9, 3), whole[9 - T :]) for T in range(1, 9))


@good_test("test_near_mask_with_cache", "how many keys, the newest, and no gap")
def _(candidate):
    for T, S, window in ((4, 12, 3), (1, 12, 5), (7, 7, 4)):
        mask = candidate(T, S, window)
        for i, row in enumerate(mask):
            keys = row.nonzero().flatten().tolist()
            newest = S - T + i
            assert keys and keys[-1] == newest
            assert keys == list(range(keys[0], newest + 1))
            assert len(keys) == min(window, newest + 1)
    return True


# --- test_near_mask_with_cache: tests that let something through ------------------------------------------------

_NEAR = (
    *("one_too_many", "one_too_few", "self_excluded", "half_each_side", "top_left", "past_lost"),
    *("window_when_empty", "single_sees_all", "two_sided", "start_wrapped", "own_block", "two_blocks", "inverted"),
)


@lax_test("test_near_mask_with_cache", "the shape only", *_NEAR)
def _(candidate):
    return candidate(4, 9, 3).shape == (4, 9)


@lax_test("test_near_mask_with_cache", "no past", "top_left", "past_lost", "window_when_empty", "single_sees_all")
def _(candidate):
    return torch.equal(candidate(8, 8, 3), _window(8, 8, 3))


@lax_test("test_near_mask_with_cache", "never the start of the text", "start_wrapped")
def _(candidate):
    sizes = ((4, 13, 3), (2, 12, 5), (1, 12, 4))
    return all(torch.equal(candidate(T, S, window), _window(T, S, window)) for T, S, window in sizes)


@lax_test("test_near_mask_with_cache", "several queries, never one", "single_sees_all", "start_wrapped")
def _(candidate):
    return all(torch.equal(candidate(T, 12, 5), _window(T, 12, 5)) for T in (2, 3, 7))


@lax_test("test_near_mask_with_cache", "one query, as when decoding", "two_sided", "start_wrapped")
def _(candidate):
    return torch.equal(candidate(1, 12, 5), _window(1, 12, 5))


@lax_test(
    "test_near_mask_with_cache",
    "a window that covers everything",
    *_all_but(_NEAR, "self_excluded", "top_left", "past_lost", "two_sided", "inverted"),
)
def _(candidate):
    return torch.equal(candidate(4, 9, 20), torch.ones(4, 9).tril(5).bool())


@lax_test("test_near_mask_with_cache", "nothing of the future", *_all_but(_NEAR, "two_sided", "inverted"))
def _(candidate):
    mask = candidate(4, 9, 3)
    return not mask.triu(6).any()


@lax_test(
    "test_near_mask_with_cache",
    "how many keys the last row has",
    "self_excluded",
    "single_sees_all",
    "two_sided",
    "start_wrapped",
)
def _(candidate):
    return bool(candidate(3, 10, 4)[-1].sum() == 4)


@lax_test(
    "test_near_mask_with_cache",
    "a window of one",
    "half_each_side",
    "past_lost",
    "single_sees_all",
    "two_sided",
    "start_wrapped",
    "own_block",
)
def _(candidate):
    return torch.equal(candidate(3, 8, 1), torch.eye(8)[5:].bool())


@lax_test("test_near_mask_with_cache", "a window of two", "half_each_side")
def _(candidate):
    return all(torch.equal(candidate(T, 9, 2), _window(T, 9, 2)) for T in (1, 4, 9))


@lax_test(
    "test_near_mask_with_cache",
    "the last rows of the whole",
    *_all_but(_NEAR, "top_left", "past_lost", "window_when_empty", "single_sees_all"),
)
def _(candidate):
    whole = candidate(10, 10, 4)
    return all(torch.equal(candidate(T, 10, 4), whole[10 - T :]) for T in range(1, 10))


# --- test_near_mask_with_cache: tests that reject what is right -------------------------------------------------


@strict_test("test_near_mask_with_cache", "counts the window without the token itself")
def _(candidate):
    return torch.equal(candidate(4, 9, 3), _window(4, 9, 4))


@strict_test("test_near_mask_with_cache", "True = forbidden")
def _(candidate):
    return torch.equal(candidate(4, 9, 3), ~_window(4, 9, 3))


@strict_test("test_near_mask_with_cache", "aligned at the top left")
def _(candidate):
    return torch.equal(candidate(4, 9, 3), torch.ones(4, 9).tril().triu(-2).bool())


@strict_test("test_near_mask_with_cache", "expects a full window at the start of the text too")
def _(candidate):
    return bool((candidate(6, 6, 3).sum(-1) == 3).all())


# --- test_half_masking: tests that get all points ---------------------------------------------------------------


def _scores(B=2, H=2, T=5, S=7, seed=0):
    """Scores, a causal mask of the last T of S tokens, and left padding which leaves the first queries nothing."""
    (scores,) = _normal((B, H, T, S), seed=seed, spread=2.0)
    padding = torch.arange(S) >= torch.tensor([0, S - T + 2])[:B, None, None, None]
    return scores, torch.ones(T, S).tril(S - T).bool(), padding


def _exact(scores, mask, padding):
    """In float64, from the definition; rounded to the dtype of the scores."""
    allowed = (mask & padding).expand(scores.shape)
    wide = scores.double().masked_fill(~allowed, -math.inf)
    shares = (wide - wide.amax(-1, keepdim=True)).exp().nan_to_num(0.0)
    return (shares / shares.sum(-1, keepdim=True).clamp(min=1.0)).to(scores.dtype)


def _same(candidate, scores, mask, padding):
    weights = candidate(scores, mask, padding)
    atol = 2e-3 if scores.dtype == torch.float16 else 1e-4
    expected = _exact(scores, mask, padding)
    return (
        weights.dtype == scores.dtype and weights.shape == scores.shape and torch.allclose(weights, expected, atol=atol)
    )


@good_test("test_half_masking", "against float64: two dtypes, low scores, loud forbidden ones, empty rows")
def _(candidate):
    scores, mask, padding = _scores()
    allowed = mask & padding
    for given in (scores, scores - 20000, torch.where(allowed, scores, 500.0), 30 * scores):
        for dtype in (torch.float16, torch.float32):
            if not _same(candidate, given.to(dtype), mask, padding):
                return False
    return True


@good_test("test_half_masking", "four properties, in float16, with asserts")
def _(candidate):
    scores, mask, padding = _scores(T=6, S=8)
    scores = (16 * scores).round().half()
    allowed = (mask & padding).expand(scores.shape)
    weights = candidate(scores, mask, padding)
    assert weights.dtype == torch.float16
    assert (weights[~allowed] == 0).all()
    sums = weights.float().sum(-1)
    assert torch.allclose(sums, allowed.any(-1).float(), atol=5e-3)
    # One constant more changes nothing; nor do the forbidden scores.
    steps = (scores / 16).round() * 16
    lower = candidate(steps - 24000, mask, padding)
    assert torch.allclose(lower, candidate(steps, mask, padding), atol=2e-3)
    other = torch.where(allowed, scores, torch.tensor(25000.0).half())
    assert torch.allclose(candidate(other, mask, padding), weights, atol=2e-3)
    # A step of log 2 doubles a weight.
    two = torch.tensor([0.0, math.log(2)]).half()[None, None, None]
    return torch.allclose(
        candidate(two, mask[-1:, :2], padding[:1, ..., :2])[0, 0, 0].float(), torch.tensor([1, 2]) / 3, atol=2e-3
    )


@good_test("test_half_masking", "row by row, on lists of numbers")
def _(candidate):
    scores, mask, padding = _scores(B=2, H=1, T=4, S=6)
    scores[0] -= 15000
    scores[1, :, 3] += torch.where((mask & padding)[1, 0, 3], 0.0, 60000.0 / 4)
    scores = scores.half()
    weights = candidate(scores, mask, padding)
    if weights.dtype != torch.float16:
        return False
    for b in range(2):
        for t in range(4):
            row = scores[b, 0, t].tolist()
            seen = [j for j in range(6) if mask[t, j] and padding[b, 0, 0, j]]
            shares = {j: math.exp(row[j] - max(row[i] for i in seen)) for j in seen}
            for j in range(6):
                expected = shares[j] / sum(shares.values()) if j in seen else 0.0
                if not abs(weights[b, 0, t, j].item() - expected) < 2e-3:
                    return False
    large = torch.tensor([[[[20.0, 21.0]]]]).half()
    true = torch.ones(1, 2).bool()
    return abs(candidate(large, true, true[None, None])[0, 0, 0, 1].item() - 0.731) < 2e-3


# --- test_half_masking: tests that let something through --------------------------------------------------------

_MASKING = (
    *("minus_billion", "small_fill", "zero_fill", "nan_row", "row_spread", "minima_added", "no_maximum"),
    *("maximum_of_all", "after_softmax", "over_queries", "base_two", "padding_of_queries", "padding_ignored"),
    "returns_float32",
)


@lax_test("test_half_masking", "the shape only, in float32", *_MASKING)
def _(candidate):
    scores, mask, padding = _scores()
    return candidate(scores, mask, padding).shape == scores.shape


@lax_test(
    "test_half_masking",
    "float32, small scores, no empty row",
    *("minus_billion", "small_fill", "nan_row", "row_spread", "minima_added", "no_maximum", "maximum_of_all"),
    "returns_float32",
)
def _(candidate):
    scores, mask, padding = _scores()
    return _same(candidate, scores[:1], mask, padding[:1] & (torch.arange(7) > 0))


@lax_test(
    "test_half_masking",
    "float32, small scores, empty rows",
    "minus_billion",
    "small_fill",
    "no_maximum",
    "maximum_of_all",
    "returns_float32",
)
def _(candidate):
    return _same(candidate, *_scores())


@lax_test("test_half_masking", "float16, small scores, empty rows", "small_fill", "no_maximum", "maximum_of_all")
def _(candidate):
    scores, mask, padding = _scores()
    return _same(candidate, scores.half(), mask, padding)


@lax_test("test_half_masking", "all in float32 afterwards", "returns_float32")
def _(candidate):
    scores, mask, padding = _scores()
    for given in (scores, scores - 20000, torch.where(mask & padding, scores, 500.0)):
        weights = candidate(given.half(), mask, padding).float()
        if not torch.allclose(weights, _exact(given.half().float(), mask, padding), atol=2e-3):
            return False
    return True


@lax_test("test_half_masking", "float16, low scores too, none of the forbidden ones larger", "maximum_of_all")
def _(candidate):
    scores, mask, padding = _scores()
    return all(_same(candidate, x.half(), mask, padding) for x in (scores, scores - 20000))


@lax_test(
    "test_half_masking",
    "rows sum to 1 or 0",
    "small_fill",
    "zero_fill",
    "no_maximum",
    "maximum_of_all",
    "base_two",
    "padding_of_queries",
    "returns_float32",
)
def _(candidate):
    scores, mask, padding = _scores()
    sums = candidate(scores.half(), mask, padding).float().sum(-1)
    return torch.allclose(sums, (mask & padding).any(-1).expand(sums.shape).float(), atol=5e-3)


@lax_test("test_half_masking", "four laws, no softmax written out", "base_two")
def _(candidate):
    """The dtype stays; forbidden keys and empty rows weigh 0; a constant and forbidden scores do not matter."""
    scores, mask, padding = _scores()
    allowed = (mask & padding).expand(scores.shape)
    for dtype in (torch.float16, torch.float32):
        steps = (16 * scores.round()).to(dtype)
        weights = candidate(steps, mask, padding)
        assert weights.dtype == dtype and (weights[~allowed] == 0).all()
        assert torch.allclose(weights.float().sum(-1), allowed.any(-1).float(), atol=5e-3)
        for other in (steps - 20000, torch.where(allowed, steps, steps + 500)):
            assert torch.allclose(candidate(other, mask, padding), weights, atol=2e-3)


@lax_test("test_half_masking", "no NaN", *_all_but(_MASKING, "minus_billion", "nan_row"))
def _(candidate):
    scores, mask, padding = _scores()
    return not candidate(scores.half(), mask, padding).isnan().any()


@lax_test(
    "test_half_masking",
    "forbidden keys have no weight, in float16",
    "small_fill",
    "no_maximum",
    "maximum_of_all",
    "after_softmax",
    "over_queries",
    "base_two",
    "returns_float32",
)
def _(candidate):
    scores, mask, padding = _scores()
    weights = candidate(scores.half(), mask, padding)
    return bool((weights[~(mask & padding).expand(weights.shape)] == 0).all())


@lax_test(
    "test_half_masking",
    "no padding at all",
    "nan_row",
    "row_spread",
    "minima_added",
    "padding_of_queries",
    "padding_ignored",
)
def _(candidate):
    scores, mask, padding = _scores()
    padding = torch.ones_like(padding)
    given = torch.where(mask, scores, 500.0)
    return all(_same(candidate, x.half(), mask, padding) for x in (scores, scores - 20000, given, 30 * scores))


# --- test_half_masking: tests that reject what is right ---------------------------------------------------------


@strict_test("test_half_masking", "expects NaN where there is no key")
def _(candidate):
    scores, mask, padding = _scores()
    expected = scores.masked_fill(~(mask & padding), -math.inf).softmax(-1)
    return torch.allclose(candidate(scores, mask, padding), expected, atol=1e-4, equal_nan=True)


@strict_test("test_half_masking", "expects an even row where there is no key")
def _(candidate):
    scores, mask, padding = _scores()
    expected = scores.masked_fill(~(mask & padding), torch.finfo(torch.float32).min).softmax(-1)
    return torch.allclose(candidate(scores, mask, padding), expected, atol=1e-4)


@strict_test("test_half_masking", "float16 with a tolerance of float32")
def _(candidate):
    scores, mask, padding = _scores(T=30, S=40)
    expected = _exact(scores.half().float(), mask, padding)
    return torch.allclose(candidate(scores.half(), mask, padding).float(), expected, atol=1e-6)


@strict_test("test_half_masking", "lowers the scores in float16, and compares with those before")
def _(candidate):
    scores, mask, padding = _scores()
    expected = _exact(scores, mask, padding)
    return torch.allclose(candidate((scores - 20000).half(), mask, padding).float(), expected, atol=2e-3)


# --- test_causal_features: tests that get all points ------------------------------------------------------------


def _texts(B=2, H=3, T=20, D=4, Dv=5, M=32, spread=2.0, seed=0):
    query, key, value, projection = _normal((B, H, T, D), (B, H, T, D), (B, H, T, Dv), (M, D), seed=seed)
    return *((spread * x).clamp(-4, 4) for x in (query, key)), value, projection


def _estimated(query, key, value, projection):
    """Token by token, in float64."""
    query, key, value, projection = (x.double() for x in (query, key, value, projection))
    u, v = (x / query.shape[-1] ** 0.25 for x in (query, key))
    q, k = ((x @ projection.T - (x * x).sum(-1, keepdim=True) / 2).exp() for x in (u, v))
    outputs = []
    for t in range(query.shape[2]):
        similar = torch.einsum("bhm,bhsm->bhs", q[:, :, t], k[:, :, : t + 1])
        outputs.append(torch.einsum("bhs,bhsv->bhv", similar, value[:, :, : t + 1]) / similar.sum(-1, keepdim=True))
    return torch.stack(outputs, 2).float()


def _looks_back(candidate, given, T, atol=1e-4):
    """Whether a change of the last key and value leaves all outputs before it."""
    query, key, value, projection = given
    later, other = key.clone(), value.clone()
    later[:, :, T - 1], other[:, :, T - 1] = 4.0, 3.0
    before, after = candidate(query, key, value, projection), candidate(query, later, other, projection)
    return _close(before[:, :, : T - 1], after[:, :, : T - 1], atol)


@good_test("test_causal_features", "values at several units, more than 16 tokens")
def _(candidate):
    given = _texts(spread=3.0)
    return _close(candidate(*given), _estimated(*given), 1e-3)


@good_test("test_causal_features", "no leak, the first is its value, and the values")
def _(candidate):
    for seed in range(3):
        given = _texts(T=33, D=6, spread=3.0, seed=seed)
        outputs = candidate(*given)
        assert _looks_back(candidate, given, 33)
        assert torch.allclose(outputs[:, :, 0], given[2][:, :, 0], atol=1e-3)
        assert torch.allclose(outputs, _estimated(*given), atol=1e-3)


@good_test("test_causal_features", "orthogonal directions, float64, by keywords, large last keys")
def _(candidate):
    query, key, value, _ = (x.double() for x in _texts(B=1, T=40, D=8, spread=2.5))
    projection = orthogonal_projection(24, 8, dtype=torch.float64)
    key[:, :, 30:] = 4.0
    outputs = candidate(query=query, key=key, value=value, projection=projection)
    return _close(outputs.float(), _estimated(query, key, value, projection), 1e-3)


# --- test_causal_features: tests that let something through -----------------------------------------------------

_FEATURES = (
    *("maximum_of_all", "maximum_per_key", "epsilon", "floor", "own_unseen", "not_causal", "total_of_all"),
    *("sums_restart", "no_norm", "no_half", "no_root", "over_heads"),
)


@lax_test("test_causal_features", "the shape only", *_FEATURES)
def _(candidate):
    return candidate(*_texts()).shape == (2, 3, 20, 5)


@lax_test("test_causal_features", "a change of the last value only", *_all_but(_FEATURES, "not_causal"))
def _(candidate):
    query, key, value, projection = _texts()
    other = value.clone()
    other[:, :, -1] += 3
    before, after = candidate(query, key, value, projection), candidate(query, key, other, projection)
    return _close(before[:, :, :-1], after[:, :, :-1])


@lax_test(
    "test_causal_features", "a change of the last key and value", *_all_but(_FEATURES, "not_causal", "total_of_all")
)
def _(candidate):
    return _looks_back(candidate, _texts(), 20)


@lax_test(
    "test_causal_features",
    "the last key made larger than all others",
    *_all_but(_FEATURES, "maximum_of_all", "not_causal", "total_of_all"),
)
def _(candidate):
    return _looks_back(candidate, _texts(spread=1.0), 20)


@lax_test(
    "test_causal_features",
    "values of small numbers, few tokens, a wide tolerance",
    "maximum_of_all",
    "epsilon",
    "floor",
    "sums_restart",
)
def _(candidate):
    given = _texts(T=6, spread=0.5)
    return _close(candidate(*given), _estimated(*given), 0.05)


@lax_test("test_causal_features", "values of small numbers, few tokens", "epsilon", "floor", "sums_restart")
def _(candidate):
    given = _texts(T=6, spread=0.5)
    return _close(candidate(*given), _estimated(*given), 1e-3)


@lax_test("test_causal_features", "values of several units, few tokens", "sums_restart")
def _(candidate):
    given = _texts(T=12, spread=3.0)
    return _close(candidate(*given), _estimated(*given), 1e-3)


@lax_test("test_causal_features", "values of one unit", "epsilon", "floor")
def _(candidate):
    given = _texts(spread=1.0)
    return _close(candidate(*given), _estimated(*given), 1e-3)


@lax_test(
    "test_causal_features",
    "the first output is the first value",
    *_all_but(_FEATURES, "own_unseen", "not_causal", "total_of_all", "over_heads"),
)
def _(candidate):
    given = _texts(spread=3.0)
    return _close(candidate(*given)[:, :, 0], given[2][:, :, 0], 1e-3)


@lax_test(
    "test_causal_features",
    "equal values stay what they are",
    *_all_but(_FEATURES, "epsilon", "own_unseen", "total_of_all"),
)
def _(candidate):
    query, key, value, projection = _texts(spread=3.0)
    return _close(candidate(query, key, torch.ones_like(value), projection), torch.ones_like(value), 1e-3)


# --- test_causal_features: tests that reject what is right ------------------------------------------------------


@strict_test("test_causal_features", "expects softmax attention itself")
def _(candidate):
    query, key, value, projection = _texts(M=64, spread=1.0)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return _close(candidate(query, key, value, projection), expected, 0.05)


@strict_test("test_causal_features", "takes the query and key as they are, without D^(1/4)")
def _(candidate):
    query, key, value, projection = _texts()
    return _close(candidate(query, key, value, projection), _estimated(query * 2**0.5, key * 2**0.5, value, projection))


@strict_test("test_causal_features", "torch.equal")
def _(candidate):
    given = _texts()
    return torch.equal(candidate(*given), _estimated(*given))


@strict_test("test_causal_features", "keys of hundreds, which have no features left")
def _(candidate):
    query, key, value, projection = _texts()
    return bool(candidate(query, 200 * key, value, projection).isfinite().all())


# --- test_rotation_with_cache: tests that get all points --------------------------------------------------------


def _pairs(B=2, H=3, T=10, D=6, seed=0):
    return _normal((B, H, T, D), (B, H, T, D), seed=seed)


def _turned(x, positions):
    return apply_rotary(x, positions, RotaryEmbedding(x.shape[-1]))


def _products(query, key):
    place = torch.arange(query.shape[2])
    return (_turned(query, place) @ _turned(key, place).mT).tril()


@good_test("test_rotation_with_cache", "several partitions, against one pass of one's own")
def _(candidate):
    given = _pairs()
    expected = _products(*given)
    return all(_close(candidate(*given, torch.tensor(n)), expected) for n in ([10], [3, 1, 2, 4], [1] * 10))


@good_test("test_rotation_with_cache", "one partition, unequal chunks, in float64, written out")
def _(candidate):
    query, key = (x.double() for x in _pairs(B=1, T=9, D=4))
    scores = candidate(query=query, key=key, sizes=torch.tensor([2, 3, 4]))
    for t in range(9):
        for s in range(9):
            expected = torch.zeros(1, 3, dtype=torch.float64)
            for i, frequency in enumerate((1.0, 0.01)) if s <= t else ():
                angle = (t - s) * frequency
                (a, b), (c, d) = ((x[:, :, p, i], x[:, :, p, i + 2]) for x, p in ((query, t), (key, s)))
                expected += (a * c + b * d) * math.cos(angle) + (a * d - b * c) * math.sin(-angle) * -1
            if not torch.allclose(scores[:, :, t, s], expected, atol=1e-4):
                return False
    return True


@good_test("test_rotation_with_cache", "chunks against one pass, and one pass against the course's rotation")
def _(candidate):
    given = _pairs(T=12, D=8)
    whole = candidate(*given, torch.tensor([12]))
    assert _close(whole, _products(*given))
    for sizes in ([5, 7], [7, 4, 1], [2, 2, 2, 6]):
        assert _close(candidate(*given, torch.tensor(sizes)), whole)


@good_test("test_rotation_with_cache", "the newest scores alone, after chunks that shrink")
def _(candidate):
    given = _pairs()
    return _close(candidate(*given, torch.tensor([5, 4, 1]))[:, :, -1], _products(*given)[:, :, -1])


# --- test_rotation_with_cache: tests that let something through -------------------------------------------------

_ROTATION = (
    *("positions_restart", "queries_restart", "one_position", "calls_counted", "last_chunk_counted", "one_ahead"),
    *("turned_again", "layouts_mixed", "interleaved", "two_angles", "heads_for_tokens", "exponent"),
    *("queries_backwards", "keys_not_turned"),
)


def _agree(candidate, *partitions, T=10, D=6):
    given = _pairs(T=T, D=D)
    results = [candidate(*given, torch.tensor(sizes)) for sizes in partitions]
    return all(_close(x, results[0]) for x in results)


@lax_test("test_rotation_with_cache", "the shape only", *_ROTATION)
def _(candidate):
    return candidate(*_pairs(), torch.tensor([4, 6])).shape == (2, 3, 10, 10)


@lax_test(
    "test_rotation_with_cache",
    "one pass against an implementation",
    "positions_restart",
    "queries_restart",
    "one_position",
    "calls_counted",
    "last_chunk_counted",
    "one_ahead",
    "turned_again",
)
def _(candidate):
    given = _pairs()
    return _close(candidate(*given, torch.tensor([10])), _products(*given))


@lax_test("test_rotation_with_cache", "two chunks, against an implementation", "last_chunk_counted")
def _(candidate):
    given = _pairs()
    return all(_close(candidate(*given, torch.tensor(n)), _products(*given)) for n in ([4, 6], [7, 3]))


@lax_test(
    "test_rotation_with_cache",
    "chunks against one pass",
    *("layouts_mixed", "interleaved", "two_angles", "heads_for_tokens", "exponent", "queries_backwards"),
    "keys_not_turned",
)
def _(candidate):
    return _agree(candidate, [10], [3, 1, 2, 4], [1] * 10)


@lax_test("test_rotation_with_cache", "one token at a time, against an implementation", "one_position", "calls_counted")
def _(candidate):
    given = _pairs()
    return _close(candidate(*given, torch.tensor([1] * 10)), _products(*given))


@lax_test("test_rotation_with_cache", "a prompt and single tokens, against an implementation", "one_position")
def _(candidate):
    given = _pairs()
    return _close(candidate(*given, torch.tensor([6, 1, 1, 1, 1])), _products(*given))


@lax_test("test_rotation_with_cache", "two numbers a head", "layouts_mixed", "interleaved", "two_angles", "exponent")
def _(candidate):
    given = _pairs(D=2)
    expected = _products(*given)
    return all(_close(candidate(*given, torch.tensor(n)), expected) for n in ([10], [3, 1, 2, 4], [1] * 10))


@lax_test(
    "test_rotation_with_cache",
    "the same token everywhere: only the distance counts",
    "interleaved",
    "heads_for_tokens",
    "exponent",
)
def _(candidate):
    query, key = (x[:, :, :1].repeat(1, 1, 10, 1) for x in _pairs())
    scores = candidate(query, key, torch.tensor([3, 1, 2, 4]))
    return all(
        torch.allclose(row, row[..., :1].expand(row.shape), atol=1e-4)
        for row in (scores.diagonal(-d, -2, -1) for d in range(10))
    )


@lax_test(
    "test_rotation_with_cache",
    "a token with itself: the plain product",
    *_all_but(_ROTATION, "queries_restart", "layouts_mixed", "two_angles", "queries_backwards", "keys_not_turned"),
)
def _(candidate):
    query, key = _pairs()
    scores = candidate(query, key, torch.tensor([3, 1, 2, 4]))
    return torch.allclose(scores.diagonal(0, -2, -1), (query * key).sum(-1), atol=1e-4)


# --- test_rotation_with_cache: tests that reject what is right --------------------------------------------------


@strict_test("test_rotation_with_cache", "takes the interleaved layout for right")
def _(candidate):
    query, key = _pairs()
    place, rotary = torch.arange(10), RotaryEmbedding(6, interleaved=True)
    expected = (apply_rotary(query, place, rotary) @ apply_rotary(key, place, rotary).mT).tril()
    return _close(candidate(query, key, torch.tensor([4, 6])), expected)


@strict_test("test_rotation_with_cache", "forgets that later keys have the score 0")
def _(candidate):
    query, key = _pairs()
    place = torch.arange(10)
    return _close(candidate(query, key, torch.tensor([4, 6])), _turned(query, place) @ _turned(key, place).mT)


@strict_test("test_rotation_with_cache", "expects scores divided by the root of D")
def _(candidate):
    query, key = _pairs()
    return _close(candidate(query, key, torch.tensor([4, 6])), _products(query, key) / 6**0.5)


@strict_test("test_rotation_with_cache", "torch.equal")
def _(candidate):
    given = _pairs(D=16, T=20)
    return torch.equal(candidate(*given, torch.tensor([20])), candidate(*given, torch.tensor([7, 13])))
