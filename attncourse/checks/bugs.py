"""Exercises of chapter 17: five tests, each for a part of attention where public code has been wrong."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.checks.spec import Misconception, ReverseExercise
from attncourse.linear import linear_attention_recurrent
from attncourse.performer import favor_features
from attncourse.positions import RotaryEmbedding, apply_rotary

CHAPTER = "17_bugs"


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


# --- test_shared_heads ------------------------------------------------------------------------------------------


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n = query.shape[1] // key.shape[1]
    return _attend(query, key.repeat_interleave(n, 1), value.repeat_interleave(n, 1))


def _expanded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    (B, G, S), n = key.shape[:3], query.shape[1] // key.shape[1]
    key, value = (x[:, :, None].expand(B, G, n, S, -1).reshape(B, G * n, S, -1) for x in (key, value))
    return _attend(query, key, value)


def _heads_as_an_axis(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = query.unflatten(1, (key.shape[1], -1))  # (B, G, H/G, T, D)
    scores = torch.einsum("bgntd,bgsd->bgnts", grouped, key) * query.shape[-1] ** -0.5
    return torch.einsum("bgnts,bgsv->bgntv", scores.softmax(-1), value).flatten(1, 2)


def _heads_as_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    B, H, T, D = query.shape
    return _attend(query.reshape(B, key.shape[1], -1, D), key, value).reshape(B, H, T, -1)


def _head_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n = query.shape[1] // key.shape[1]
    heads = [_attend(query[:, h], key[:, h // n], value[:, h // n]) for h in range(query.shape[1])]
    return torch.stack(heads, 1)


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def _grouped_in_float64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _head_by_head(query.double(), key.double(), value.double()).to(query.dtype)


def faulty_shared_heads(wrong: frozenset[str]) -> Callable:
    def shared_heads(query, key, value):
        (B, H), (G, S) = query.shape[:2], key.shape[1:3]
        n = H // G
        head = torch.arange(H)
        reads, value_reads = head // n, head // n
        if "tiled" in wrong:
            reads = value_reads = head % G
        if "values_tiled" in wrong:
            value_reads = head % G
        if "first_head" in wrong:
            reads = value_reads = torch.zeros_like(head)
        if "last_ones" in wrong:
            reads = value_reads = head.clamp(max=G - 1)
        if "size_for_count" in wrong:
            reads = value_reads = (head // G).clamp(max=G - 1)
        if "queries_averaged" in wrong:
            query = query.unflatten(1, (G, n)).mean(2).repeat_interleave(n, 1)
        if "averaged" in wrong:
            key, value = (x.mean(1, keepdim=True).expand(x.shape) for x in (key, value))
        k, v = key[:, reads], value[:, value_reads]
        if "repeats_batch" in wrong:
            k, v = (x.transpose(0, 1).repeat_interleave(n, 0).reshape(B, H, S, -1) for x in (key, value))
        if "repeats_time" in wrong:
            k, v = (x.repeat_interleave(n, 2).view(B, H, S, -1) for x in (key, value))
        output = _attend(query * H**-0.5 if "scaled_by_width" in wrong else query, k, v)
        return output.unflatten(1, (G, n)).transpose(1, 2).flatten(1, 2) if "output_reordered" in wrong else output

    return shared_heads


TEST_SHARED_HEADS = ReverseExercise(
    id="bugs/test_shared_heads",
    defines="test_shared_heads",
    title="Write the test: which head does a head share?",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    too_strict=(
        "Query head h reads key-value head h // (H/G), there is no mask, and scores are divided by √D. Right code "
        "rounds: `torch.allclose(…, atol=1e-4)`."
    ),
    right={
        "each key head repeated, one after the other": _repeated,
        "expanded, then reshaped": _expanded,
        "the heads that share as an axis of their own": _heads_as_an_axis,
        "the heads that share as more rows": _heads_as_rows,
        "one head at a time": _head_by_head,
        "the fused kernel": _fused,
        "computed in float64": _grouped_in_float64,
    },
    faulty=faulty_shared_heads,
    misconceptions=(
        Misconception(
            "tiled",
            "query head h reads key-value head h mod G: ABAB, not AABB",
            "`repeat` lays whole copies side by side, `repeat_interleave` repeats each head. One key-value head, or as "
            "many as query heads, show no difference.",
            "Heads in the wrong order",
        ),
        Misconception(
            "values_tiled",
            "the keys are repeated in the right order, the values are not",
            "The weights are right, and meet the values of another head. A test that looks at weights, or that gives "
            "all heads the same values, sees nothing.",
            "Heads in the wrong order",
        ),
        Misconception(
            "output_reordered",
            "each head is right, and the outputs come back in another order",
            "The axis of groups and the axis inside a group changed places when they were joined. A sum or a mean over "
            "the heads does not show it.",
            "Heads in the wrong order",
        ),
        Misconception(
            "size_for_count",
            "the number of key-value heads is taken for the size of a group: h // G",
            "Right wherever H = G², such as four heads over two. `G` is a count in some code and a size in other code.",
            "Heads in the wrong order",
        ),
        Misconception(
            "first_head",
            "all query heads read the first key-value head",
            "That is multi-query attention. With G = 1 it is right.",
            "Heads in the wrong order",
        ),
        Misconception(
            "last_ones",
            "each query head takes the next key-value head, and the last one serves all that are left",
            "Right for G = 1 and for G = H, and the first head is always right.",
            "Heads in the wrong order",
        ),
        Misconception(
            "averaged",
            "the key-value heads are averaged into one",
            "Averaging the heads of a trained model is how it is converted. Attention reads them as they are.",
            "Heads in the wrong order",
        ),
        Misconception(
            "queries_averaged",
            "the query heads of a group are averaged",
            "They share keys and values, and each keeps its own query: two heads of a group differ.",
            "Five properties",
        ),
        Misconception(
            "repeats_batch",
            "the heads are brought to the front, copied and not put back, so a sequence reads another one's heads",
            "The shape comes out right after a `reshape`. With B = 1 it is right: give two sequences.",
            "Five properties",
        ),
        Misconception(
            "repeats_time",
            "the copies are made along the tokens, so a head sees only some of them",
            "The shape comes out right after a `view`. With one key, or G = H, it is right.",
            "Five properties",
        ),
        Misconception(
            "scaled_by_width",
            "the scores are divided by √(H·D), not by √D",
            "It is the same for all heads: comparing the candidate with itself, G = H against G < H, shows nothing. "
            "Compare once with attention written out.",
            "Which test catches which bug",
        ),
    ),
)

# --- test_near_mask_with_cache ----------------------------------------------------------------------------------


def _by_distance(T: int, S: int, window: int) -> Tensor:
    distance = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (distance >= 0) & (distance < window)


def _two_triangles(T: int, S: int, window: int) -> Tensor:
    every = torch.ones(T, S, dtype=torch.bool)
    return every.tril(S - T) & every.triu(S - T - window + 1)


def _last_rows(T: int, S: int, window: int) -> Tensor:
    """The mask of the whole text, cut to its last rows."""
    every = torch.ones(S, S).tril()
    return (every - every.tril(-window) > 0)[S - T :]


def _row_by_row(T: int, S: int, window: int) -> Tensor:
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        newest = S - T + i
        mask[i, max(0, newest - window + 1) : newest + 1] = True
    return mask


def _counted_back(T: int, S: int, window: int) -> Tensor:
    """The places of the keys of each query, filled in; places before the text are cut off."""
    reach = min(window, S)
    places = torch.arange(S - T, S)[:, None] - torch.arange(reach) + reach  # (T, reach), at least 1
    return torch.zeros(T, S + reach).scatter(1, places, 1.0)[:, reach:].bool()


def _as_lists(T: int, S: int, window: int) -> Tensor:
    return torch.tensor([[p - window < j <= p for j in range(S)] for p in range(S - T, S)])


def faulty_near_mask(wrong: frozenset[str]) -> Callable:
    def near_mask(T, S, window):
        past = 0 if "top_left" in wrong else S - T
        query, key = torch.arange(past, past + T)[:, None], torch.arange(S)
        nearest, reach = 0, window
        if "one_too_many" in wrong:
            reach = window + 1
        if "one_too_few" in wrong:
            reach = window - 1
        if "self_excluded" in wrong:
            nearest, reach = 1, window + 1
        if "half_each_side" in wrong:
            reach = window // 2 + 1
        if ("window_when_empty" in wrong and S > T) or ("single_sees_all" in wrong and T == 1):
            reach = S
        if "two_sided" in wrong:
            nearest = 1 - window
        allowed = (query - key >= nearest) & (query - key < reach)
        if "own_block" in wrong:
            allowed = (query >= key) & (query // window == key // window)
        if "two_blocks" in wrong:
            allowed = (query >= key) & (query // window - key // window <= 1)
        if "start_wrapped" in wrong:  # mask[i, p - window + 1 : p + 1]: a negative start counts from the end
            first = query - window + 1
            allowed = (key >= torch.where(first < 0, first + S, first)) & (key <= query)
        if "past_lost" in wrong:
            allowed = allowed & (key >= S - T)
        return ~allowed if "inverted" in wrong else allowed

    return near_mask


TEST_NEAR_MASK = ReverseExercise(
    id="bugs/test_near_mask_with_cache",
    defines="test_near_mask_with_cache",
    title="Write the test: how far does a window reach?",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    too_strict=(
        "The contract has no two readings: T is at least 1 and at most S, query i stands at position S − T + i, and "
        "`window` counts the query's own token. Compare what is boolean with `torch.equal`."
    ),
    right={
        "distances": _by_distance,
        "two triangles": _two_triangles,
        "the last rows of the whole text's mask": _last_rows,
        "one row at a time": _row_by_row,
        "keys counted back from the query": _counted_back,
        "lists of numbers": _as_lists,
    },
    faulty=faulty_near_mask,
    misconceptions=(
        Misconception(
            "one_too_many",
            "a query sees `window` tokens and its own: one too many",
            "Some libraries say how far a window looks back, others how many keys it holds. Count the True in a late "
            "row.",
            "A window off by one",
        ),
        Misconception(
            "one_too_few",
            "a query sees one token too few, as with a rolling cache that keeps window − 1",
            "Count the True in a late row. A window of one token then sees nothing.",
            "A window off by one",
        ),
        Misconception(
            "self_excluded",
            "a query sees the `window` tokens before it, and not itself",
            "The number of keys is right, except at the start. Look at which ones they are.",
            "A window off by one",
        ),
        Misconception(
            "half_each_side",
            "`window` is taken for both sides together: half of it, and the query's own token",
            "Right for a window of one or two. Longer ones show it.",
            "A window off by one",
        ),
        Misconception(
            "top_left",
            "the mask is aligned at the top left: query 0 stands at position 0",
            "Right without a past, T = S. With a cache the new tokens see the oldest keys.",
            "A mask that shows the wrong keys",
        ),
        Misconception(
            "past_lost",
            "the new tokens see one another, and nothing that was there before",
            "Right without a past. With a cache, a query's window reaches into it.",
            "A mask that shows the wrong keys",
        ),
        Misconception(
            "window_when_empty",
            "with a past, there is no window: all keys up to the query",
            "Right in training and for the prompt. Give fewer queries than keys.",
            "A mask that shows the wrong keys",
        ),
        Misconception(
            "single_sees_all",
            "a single query sees every key, whatever the window",
            "Code that gives no mask for one new token: the last token may see all, but not beyond its window. Give "
            "T = 1 with more keys than the window holds.",
            "A mask that shows the wrong keys",
        ),
        Misconception(
            "two_sided",
            "the window reaches forward too",
            "Right for the last query, which has nothing after it, and so for T = 1.",
            "A window off by one",
        ),
        Misconception(
            "start_wrapped",
            "rows at the start of the text are cut from a negative place, which counts from the end",
            "Right once `window` tokens are there, the query's own among them, and for a window twice as long as the "
            "text. Give queries from the start, T = S, and a window of 3.",
            "A window off by one",
        ),
        Misconception(
            "own_block",
            "a query sees its own block of `window` tokens, not the last `window`",
            "Right for the last token of a block, and where the window covers the text.",
            "A window off by one",
        ),
        Misconception(
            "two_blocks",
            "a query sees its own block of `window` tokens and the block before it",
            "At least `window` keys, and up to twice as many. In the first two blocks it is plain causal attention.",
            "A window off by one",
        ),
        Misconception(
            "inverted",
            "True means forbidden",
            "`nn.MultiheadAttention` means that by True, `scaled_dot_product_attention` the opposite. Here True = may "
            "attend.",
            "Five properties",
        ),
    ),
)

# --- test_half_masking ------------------------------------------------------------------------------------------


def _nan_cleared(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    return scores.masked_fill(~(mask & padding), float("-inf")).softmax(-1).nan_to_num(0.0)


def _lowest_number(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    allowed = mask & padding
    filled = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return filled.softmax(-1).masked_fill(~allowed, 0.0)


def _masks_added(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """What forbids is -inf in each of two masks; -inf + -inf is -inf."""
    infinite = [torch.where(m, 0.0, float("-inf")).to(scores.dtype) for m in (mask, padding)]
    nothing = ~(mask & padding).any(-1, keepdim=True)
    return (scores + infinite[0] + infinite[1]).softmax(-1).masked_fill(nothing, 0.0)


def _by_exponentials(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    wide = scores if scores.dtype == torch.float64 else scores.float()
    allowed = (mask & padding).expand(scores.shape)
    largest = torch.where(allowed, wide, float("-inf")).amax(-1, keepdim=True)
    shares = torch.where(allowed, (wide - largest).clamp(max=0).exp(), 0.0)
    total = shares.sum(-1, keepdim=True)
    return torch.where(total > 0, shares / total, 0.0).to(scores.dtype)


def _chosen_keys(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """One row at a time, and only its allowed keys."""
    allowed, weights = (mask & padding).expand(scores.shape), torch.zeros_like(scores)
    for b, t in torch.cartesian_prod(*map(torch.arange, (scores.shape[0], scores.shape[2]))).tolist():
        keys = allowed[b, 0, t].nonzero()[:, 0]
        weights[b, :, t, keys] = scores[b, :, t, keys].softmax(-1)
    return weights


def _fused_identity(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """The scores are what the identity makes of them, the weights too."""
    identity = torch.eye(scores.shape[-1], dtype=scores.dtype).expand(*scores.shape[:2], -1, -1)
    return F.scaled_dot_product_attention(scores, identity, identity, attn_mask=mask & padding, scale=1.0)


def _masked_in_float64(scores: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    return _lowest_number(scores.double(), mask, padding).to(scores.dtype)


def faulty_half_masking(wrong: frozenset[str]) -> Callable:
    def half_masking(scores, mask, padding):
        dtype, lowest = scores.dtype, torch.finfo(scores.dtype).min
        if "base_two" in wrong:
            scores = scores * math.log(2)
        if "padding_of_queries" in wrong:
            padding = padding[..., -scores.shape[2] :].mT
        allowed = (mask if "padding_ignored" in wrong else mask & padding).expand(scores.shape)
        empty = ~allowed.any(-1, keepdim=True)
        if wrong & {"no_maximum", "maximum_of_all"}:
            largest = 0.0 if "no_maximum" in wrong else scores.amax(-1, keepdim=True)
            shares = (scores - largest).exp().masked_fill(~allowed, 0.0)
            total = shares.sum(-1, keepdim=True)
            return shares / total.masked_fill(total == 0, 1.0)
        fill = float("-inf")
        if "minus_billion" in wrong:
            fill = -1e9
        if "small_fill" in wrong:
            fill = -1e4
        if "zero_fill" in wrong:
            fill = 0.0
        if "row_spread" in wrong:
            fill = lowest
        filled = scores.masked_fill(~allowed, fill)
        if "minima_added" in wrong:
            filled = scores + torch.where(mask, 0.0, lowest).to(dtype) + torch.where(padding, 0.0, lowest).to(dtype)
        if "after_softmax" in wrong:
            return scores.softmax(-1).masked_fill(~allowed, 0.0)
        weights = filled.softmax(-2).nan_to_num(0.0) if "over_queries" in wrong else filled.softmax(-1)
        if not wrong & {"nan_row", "row_spread", "minima_added"}:
            weights = weights.masked_fill(empty, 0.0)
        return weights.float() if "returns_float32" in wrong and dtype == torch.float16 else weights

    return half_masking


TEST_HALF_MASKING = ReverseExercise(
    id="bugs/test_half_masking",
    defines="test_half_masking",
    title="Write the test: does a mask hold in float16?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    too_strict=(
        "Right code rounds: compare float16 with `atol=2e-3`, wider ones with `atol=1e-4`, both sides in one dtype. A "
        "row with no allowed key is all zeros, no NaN. Give only finite scores of size up to 30,000, in which "
        "float16 has steps of 16: what you compare with must begin from the same rounded scores."
    ),
    right={
        "minus infinity, and NaN made 0": _nan_cleared,
        "the dtype's lowest number, and what is forbidden made 0": _lowest_number,
        "two masks of minus infinity added": _masks_added,
        "exponentials in float32": _by_exponentials,
        "a softmax over the allowed keys alone": _chosen_keys,
        "the fused kernel": _fused_identity,
        "computed in float64": _masked_in_float64,
    },
    faulty=faulty_half_masking,
    misconceptions=(
        Misconception(
            "minus_billion",
            "−1e9 is filled in, which float16 cannot hold: it raises an error there",
            "Float16 ends at 65,504. In float32 and float64 the fill is right: call the candidate with float16.",
            "Minus a billion",
        ),
        Misconception(
            "small_fill",
            "−1e4 is filled in, which is not below every score",
            "It fits into float16. Where the allowed scores are lower, −20,000, all weight goes to what is forbidden.",
            "Minus a billion",
        ),
        Misconception(
            "zero_fill",
            "forbidden scores become 0, as when a mask multiplies the scores",
            "exp(0) = 1: a score of 0 is an ordinary one. The row sums to 1, so look at the forbidden keys.",
            "Minus a billion",
        ),
        Misconception(
            "nan_row",
            "a row with no allowed key is NaN",
            "A softmax over nothing but −inf divides 0 by 0. The contract says zeros.",
            "Rows that see nothing",
        ),
        Misconception(
            "row_spread",
            "a row with no allowed key spreads its weight over forbidden keys",
            "All scores are the same lowest number, so all weights are the same, and no NaN warns of it.",
            "Rows that see nothing",
        ),
        Misconception(
            "minima_added",
            "two masks of the lowest number are added, and a row with no allowed key is wrong",
            "Twice the lowest number is −inf, so what only one mask forbids wins: the row attends to it, or is NaN.",
            "Rows that see nothing",
        ),
        Misconception(
            "no_maximum",
            "no maximum is subtracted: exp is infinite from 11.1 on in float16",
            "And from 89 on in float32. Small scores do not show it.",
            "Minus a billion",
        ),
        Misconception(
            "maximum_of_all",
            "the maximum is taken over forbidden keys too, and a row under a large one becomes zeros",
            "What is forbidden must not matter: change the forbidden scores to something large, and nothing may move.",
            "Which test catches which bug",
        ),
        Misconception(
            "after_softmax",
            "the mask comes after the softmax, and the rows no longer sum to 1",
            "The forbidden keys took their share before. A row with an allowed key sums to 1.",
            "Five properties",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Its columns sum to 1. A row with an allowed key does.",
            "Rows that see nothing",
        ),
        Misconception(
            "base_two",
            "the weights are powers of 2, not of e: exp2, and the factor log2(e) forgotten",
            "Rows sum to 1, forbidden keys weigh 0, and a constant does not matter. Compare once with the softmax.",
            "Which test catches which bug",
        ),
        Misconception(
            "padding_of_queries",
            "the padding hides queries, not keys: an axis too early",
            "Then what is real attends to padding, and the rows of padding are empty. Give one sequence padding.",
            "Rows that see nothing",
        ),
        Misconception(
            "padding_ignored",
            "the padding is ignored",
            "A key must be allowed by both masks. Give a padding that forbids what `mask` allows.",
            "Five properties",
        ),
        Misconception(
            "returns_float32",
            "float16 goes in and float32 comes out",
            "The values are right and the memory doubles. Compare the dtype too.",
            "Five properties",
        ),
    ),
)

# --- test_causal_features ---------------------------------------------------------------------------------------


def _features(x: Tensor, projection: Tensor) -> Tensor:
    u = x * x.shape[-1] ** -0.25
    return (u @ projection.T - u.square().sum(-1, keepdim=True) / 2).exp()


def _triangle(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    weights = (_features(query, projection) @ _features(key, projection).mT).tril()
    return weights @ value / weights.sum(-1, keepdim=True)


def _states(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    mapped = (favor_features(x, projection, is_query=is_query) for x, is_query in ((query, True), (key, False)))
    return linear_attention_recurrent(*mapped, value)[0]


def _running_sums(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    query, key = (_features(x, projection) for x in (query, key))
    memory = (key[..., None] * value[..., None, :]).cumsum(2)  # (B, H, T, M, Dv)
    return torch.einsum("bhtm,bhtmv->bhtv", query, memory) / (query * key.cumsum(2)).sum(-1, keepdim=True)


def _running_maximum(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    """A maximum that looks back only; the sums are rescaled when it rises."""
    mapped, u = favor_features(query, projection, is_query=True), key * key.shape[-1] ** -0.25
    exponents = u @ projection.T - u.square().sum(-1, keepdim=True) / 2  # (B, H, T, M)
    maxima = exponents.amax(-1).cummax(-1).values[..., None, None]  # (B, H, T, 1, 1)
    memory, before, outputs = 0.0, maxima[:, :, 0], []
    joined = torch.cat([value, torch.ones_like(value[..., :1])], -1)  # the total is one more value
    for t in range(key.shape[2]):
        share = (exponents[:, :, t, :, None] - maxima[:, :, t]).exp() * joined[:, :, t, None]
        memory = memory * (before - maxima[:, :, t]).exp() + share
        before = maxima[:, :, t]
        summed = (mapped[:, :, t, None] @ memory)[:, :, 0]
        outputs.append(summed[..., :-1] / summed[..., -1:])
    return torch.stack(outputs, 2)


def _by_logarithms(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    exponents = []
    for x in (query, key):
        u = x * x.shape[-1] ** -0.25
        exponents.append(u @ projection.T - u.square().sum(-1, keepdim=True) / 2)
    similarities = torch.logsumexp(exponents[0][:, :, :, None] + exponents[1][:, :, None], -1)  # (B, H, T, T)
    later = torch.ones(similarities.shape[-2:]).triu(1).bool()
    return similarities.masked_fill(later, float("-inf")).softmax(-1) @ value


def _features_in_float64(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    return _triangle(*(x.double() for x in (query, key, value, projection))).to(query.dtype)


def faulty_causal_features(wrong: frozenset[str]) -> Callable:
    def causal_features(query, key, value, projection):
        D = key.shape[-1]

        def features(x, is_query):
            u = x * D ** (-0.5 if "no_root" in wrong else -0.25)
            products, half_square = u @ projection.T, u.square().sum(-1, keepdim=True) / 2
            if "no_norm" in wrong:
                half_square = half_square * 0
            if "no_half" in wrong:
                half_square = half_square * 2
            largest = 0.0
            if "maximum_of_all" in wrong:
                largest = products.amax(-1 if is_query else (-2, -1), keepdim=True)
            if "maximum_per_key" in wrong:
                largest = products.amax(-1, keepdim=True)
            return (products - half_square - largest).exp() + (1e-4 if wrong & {"maximum_of_all", "floor"} else 0)

        query, key = features(query, True), features(key, False)
        if "over_heads" in wrong:
            memory, total = (key[..., None] * value[..., None, :]).cumsum(1), key.cumsum(1)
            return torch.einsum("bhtm,bhtmv->bhtv", query, memory) / (query * total).sum(-1, keepdim=True)
        products = query @ key.mT
        weights = products.tril(-1 if "own_unseen" in wrong else 0)
        if "not_causal" in wrong:
            weights = products
        if "sums_restart" in wrong:
            part = torch.arange(weights.shape[-1]) // 16
            weights = weights * (part[:, None] == part)
        total = products if "total_of_all" in wrong else weights
        total = total.sum(-1, keepdim=True)
        if "epsilon" in wrong:
            total = total + 1e-6
        return weights @ value / total.masked_fill(total == 0, 1.0)

    return causal_features


TEST_CAUSAL_FEATURES = ReverseExercise(
    id="bugs/test_causal_features",
    defines="test_causal_features",
    title="Write the test: do features see the future?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    too_strict=(
        "A feature is exp(w·u − |u|²/2) with u = x / D^(1/4); what it gives is not softmax attention but an estimate "
        "of it. Compare with a tolerance (`torch.allclose(…, atol=1e-3)`), and only on inputs that the task allows: "
        "queries and keys of D up to 8 numbers, each between −4 and 4, values between −10 and 10, and a projection "
        "of plain `torch.randn`, with 16 rows or more."
    ),
    right={
        "a triangle of weights": _triangle,
        "a state, one token after the other": _states,
        "running sums": _running_sums,
        "a running maximum, the sums rescaled": _running_maximum,
        "by logarithms": _by_logarithms,
        "computed in float64": _features_in_float64,
    },
    faulty=faulty_causal_features,
    misconceptions=(
        Misconception(
            "maximum_of_all",
            "the keys' maximum runs over all tokens, and 1e-4 is added to the features: a later, larger key leaks",
            "A later key that raises the maximum lowers the features of all earlier ones, beside a constant that "
            "stays. Make the last key larger than all others, and watch the outputs before it.",
            "A maximum over the future",
        ),
        Misconception(
            "maximum_per_key",
            "each key's own maximum is subtracted",
            "No future leaks. But keys share a sum, and a factor of each key's own changes the weights.",
            "A maximum over the future",
        ),
        Misconception(
            "epsilon",
            "1e-6 is added to the sum that divides, which is not small beside it",
            "Where a query points away from the keys the sum is smaller than that. The first token sees itself "
            "alone: its output is its value, however small the sum. Give queries and keys of several units.",
            "A maximum over the future",
        ),
        Misconception(
            "floor",
            "1e-4 is added to every feature",
            "No future leaks, and unlike keys get a share that they should not have. Queries and keys of several units "
            "have smaller features than that.",
            "A maximum over the future",
        ),
        Misconception(
            "own_unseen",
            "a token does not see itself",
            "The sums are read before the token is added. The first output is then zeros, not the first value.",
            "Five properties",
        ),
        Misconception(
            "not_causal",
            "every token sees all others",
            "Change the last token, and no earlier output may move.",
            "Five properties",
        ),
        Misconception(
            "total_of_all",
            "the sum that divides runs over all keys",
            "Early outputs become too small, and change when a later key does. With equal values, the outputs must be "
            "that value.",
            "Five properties",
        ),
        Misconception(
            "sums_restart",
            "the sums start again every 16 tokens",
            "A chunk forgot the state of the one before it. Texts of up to 16 tokens do not show it.",
            "Which test catches which bug",
        ),
        Misconception(
            "no_norm",
            "the term |u|²/2 is missing from the exponent",
            "For a query it cancels. Keys share a sum: long ones count for too much.",
            "Which test catches which bug",
        ),
        Misconception(
            "no_half",
            "the exponent subtracts |u|², not |u|²/2",
            "For a query it cancels. Keys share a sum: long ones count for too little.",
            "Which test catches which bug",
        ),
        Misconception(
            "no_root",
            "queries and keys are divided by √D each, not by D^(1/4)",
            "Their product is then divided by D. Only a comparison of values shows it.",
            "Which test catches which bug",
        ),
        Misconception(
            "over_heads",
            "the sums run over the heads, not over the tokens",
            "The axes of heads and tokens are exchanged in the cumulative sum. A change of a later token moves nothing "
            "before it, and a change of an earlier one nothing after it.",
            "Five properties",
        ),
    ),
)

# --- test_rotation_with_cache -----------------------------------------------------------------------------------


def _turn(x: Tensor, positions: Tensor, interleaved: bool = False) -> Tensor:
    return apply_rotary(x, positions, RotaryEmbedding(x.shape[-1], interleaved=interleaved))


def _stored_turned(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    return faulty_rotation(frozenset())(query, key, sizes)


def _turned_when_read(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    """The cache holds keys that are not turned."""
    scores = query.new_zeros(*query.shape[:3], key.shape[2])
    for end, n in zip(sizes.cumsum(0).tolist(), sizes.tolist(), strict=True):
        q = _turn(query[:, :, end - n : end], torch.arange(end - n, end))
        scores[:, :, end - n : end, :end] = q @ _turn(key[:, :, :end], torch.arange(end)).mT
    return scores.tril()


def _in_one_pass(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    place = torch.arange(query.shape[2])
    return (_turn(query, place) @ _turn(key, place).mT).tril()


def _pairs_rearranged(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    """Pairs put side by side and left so, in queries and keys alike: a product does not mind the order."""
    query, key = (torch.stack(x.chunk(2, -1), -1).flatten(-2) for x in (query, key))
    place = torch.arange(query.shape[2])
    return (_turn(query, place, interleaved=True) @ _turn(key, place, interleaved=True).mT).tril()


def _by_distances(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    """Only the queries are turned, for each key by its distance."""
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    turned = _turn(query[:, :, :, None].expand(-1, -1, -1, key.shape[2], -1), distance.expand(*query.shape[:2], -1, -1))
    return torch.einsum("bhtsd,bhsd->bhts", turned, key).tril()


def _by_complex_numbers(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    angles = RotaryEmbedding(query.shape[-1]).angles(torch.arange(query.shape[2]), query.dtype)
    turns = torch.polar(torch.ones_like(angles), angles)
    query, key = (torch.complex(*x.chunk(2, -1)) * turns for x in (query, key))
    return (query @ key.mH).real.tril()


def _shifted(query: Tensor, key: Tensor, sizes: Tensor) -> Tensor:
    """All positions count from 1, which leaves every distance as it is."""
    place = torch.arange(1, query.shape[2] + 1)
    return (_turn(query, place) @ _turn(key, place).mT).tril()


def faulty_rotation(wrong: frozenset[str]) -> Callable:
    def turn(x, place, is_query):
        if "heads_for_tokens" in wrong:
            return _turn(x.transpose(1, 2), torch.arange(x.shape[1])).transpose(1, 2)
        if "two_angles" in wrong:
            angles = RotaryEmbedding(x.shape[-1]).angles(place, x.dtype).repeat(1, 2)  # laid out for halves
            neighbours = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
            return x * angles.cos() + neighbours * angles.sin()
        interleaved = "interleaved" in wrong or ("layouts_mixed" in wrong and is_query)
        if "exponent" in wrong:
            frequencies = 10000.0 ** (-torch.arange(x.shape[-1] // 2) / x.shape[-1])
            angles = (place[:, None] * frequencies).to(x.dtype)
            (a, b), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        return _turn(x, -place if is_query and "queries_backwards" in wrong else place, interleaved)

    def rotation(query, key, sizes):
        stored, rows, done = key[:, :, :0], [], 0
        for call, n in enumerate(sizes.tolist()):
            q, k = (x[:, :, done : done + n] for x in (query, key))
            start = done
            if "positions_restart" in wrong:
                start = 0
            if "calls_counted" in wrong:
                start = call
            if "last_chunk_counted" in wrong:
                start = int(sizes[call - 1]) if call else 0
            if "one_ahead" in wrong:
                start = done + (call > 0)
            place = torch.arange(start, start + n)
            if "one_position" in wrong and call:
                place = place[:1].expand(n)
            if "turned_again" in wrong and call:
                stored = turn(stored, torch.arange(done), False)
            q = turn(q, place - start if "queries_restart" in wrong else place, True)
            if "keys_not_turned" not in wrong:
                k = turn(k, place, False)
            stored, done = torch.cat([stored, k], 2), done + n
            rows.append(F.pad((q @ stored.mT).tril(done - n), (0, key.shape[2] - done)))
        return torch.cat(rows, 2)

    return rotation


TEST_ROTATION = ReverseExercise(
    id="bugs/test_rotation_with_cache",
    defines="test_rotation_with_cache",
    title="Write the test: do positions go on?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    given=("attncourse.positions",),
    too_strict=(
        "Right scores turn half-split pairs, are divided by nothing, and are 0 where the key comes after the query "
        "(`.tril()`). The sizes are at least 1 and add up to T. Right code rounds: `torch.allclose(…, atol=1e-4)`."
    ),
    right={
        "turned, then stored": _stored_turned,
        "turned when they are read": _turned_when_read,
        "one pass, whatever the sizes": _in_one_pass,
        "pairs rearranged, in queries and keys alike": _pairs_rearranged,
        "the queries turned by distances, the keys not at all": _by_distances,
        "complex numbers": _by_complex_numbers,
        "positions that count from 1": _shifted,
    },
    faulty=faulty_rotation,
    misconceptions=(
        Misconception(
            "positions_restart",
            "positions start at 0 in every chunk",
            "Inside a chunk all distances are right. Between chunks they are not: compare with one pass.",
            "Positions that start again",
        ),
        Misconception(
            "queries_restart",
            "the queries' positions start at 0 in every chunk, the keys' go on",
            "The stored keys are right. The new queries stand at the wrong place, in their own chunk too.",
            "Positions that start again",
        ),
        Misconception(
            "one_position",
            "with a past, all tokens of a chunk get the position of its first",
            "Right for a prompt with one token at a time after it, which is how most code is tried out. Give a chunk "
            "of several tokens after another chunk.",
            "Positions that start again",
        ),
        Misconception(
            "calls_counted",
            "positions grow by one for each call, not for each token",
            "Right in one pass, and for one token at a time. Give chunks of several, one after the other.",
            "Positions that start again",
        ),
        Misconception(
            "last_chunk_counted",
            "positions go on from the size of the last chunk alone, not of all before it",
            "Right for two chunks. Give three or more.",
            "Positions that start again",
        ),
        Misconception(
            "one_ahead",
            "after the first chunk, positions are one too far",
            "Inside a chunk all distances are right, and between the later chunks too: a gap lies after the first.",
            "Positions that start again",
        ),
        Misconception(
            "turned_again",
            "the stored keys are turned again at every call",
            "Either the cache holds turned keys, or it turns them when they are read. Both together turn them twice.",
            "Positions that start again",
        ),
        Misconception(
            "layouts_mixed",
            "queries turn interleaved pairs, keys half-split ones",
            "The same in all chunks, so comparing chunks shows nothing. Compare once with scores of your own, or see "
            "whether they depend on the distance alone.",
            "Pairs, halves and heads",
        ),
        Misconception(
            "interleaved",
            "queries and keys turn interleaved pairs, and these weights are half-split",
            "Chunks agree, and scores depend on the distance alone. Only scores of your own show it, for D of 4 or "
            "more.",
            "Pairs, halves and heads",
        ),
        Misconception(
            "two_angles",
            "neighbours make a pair, and its two numbers turn by different angles",
            "The table of angles is laid out for halves. Chunks agree. A turn keeps the length of a vector, and this "
            "does not; with D = 2 it does.",
            "Pairs, halves and heads",
        ),
        Misconception(
            "heads_for_tokens",
            "the axis of heads is taken for the tokens: head 3 is turned as if it stood at position 3",
            "In a score both turns cancel, so no position is left. Chunks agree, and no score depends on the distance.",
            "Pairs, halves and heads",
        ),
        Misconception(
            "exponent",
            "pair i turns by base^(−i/D) a position, not by base^(−2i/D)",
            "Chunks agree, and scores depend on the distance alone. Only scores of your own show it, for D of 4 or "
            "more.",
            "Which test catches which bug",
        ),
        Misconception(
            "queries_backwards",
            "queries turn the other way",
            "Scores then depend on the sum of both positions, not on their difference. Chunks agree.",
            "Five properties",
        ),
        Misconception(
            "keys_not_turned",
            "the keys are never turned",
            "Scores then depend on the query's position alone. Chunks agree.",
            "Five properties",
        ),
    ),
)

EXERCISES = (TEST_SHARED_HEADS, TEST_NEAR_MASK, TEST_HALF_MASKING, TEST_CAUSAL_FEATURES, TEST_ROTATION)
