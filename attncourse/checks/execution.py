"""Exercises of chapter 15: a softmax in two parts and in tiles, a tile of the backward pass, pages, and a test."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, ReverseExercise, Variant

CHAPTER = "15_execution"

WHOLE_SOFTMAX = (
    *("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin"),
    *("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"),
)


# --- merge_softmaxes --------------------------------------------------------------------------------------------


def merge_softmaxes(
    maximum_a: Tensor, total_a: Tensor, weighted_a: Tensor, maximum_b: Tensor, total_b: Tensor, weighted_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    maximum = torch.maximum(maximum_a, maximum_b)  # (B, H, T, 1)
    finite = maximum.masked_fill(maximum == float("-inf"), 0.0)  # -inf - -inf is NaN
    factor_a, factor_b = torch.exp(maximum_a - finite), torch.exp(maximum_b - finite)
    total = factor_a * total_a + factor_b * total_b
    weighted = factor_a * weighted_a + factor_b * weighted_b  # (B, H, T, Dv)
    return maximum, total, weighted


def faulty_merge_softmaxes(wrong: frozenset[str]) -> Callable:
    def merge_softmaxes(maximum_a, total_a, weighted_a, maximum_b, total_b, weighted_b):
        first, second = maximum_a, maximum_b
        if "empty_is_zero" in wrong:
            first, second = (m.masked_fill(m == float("-inf"), 0.0) for m in (first, second))
        maximum = torch.maximum(first, second)
        if "first_maximum" in wrong:
            maximum = first
        if "second_maximum" in wrong:
            maximum = second
        if "smaller" in wrong:
            maximum = torch.minimum(first, second)
        if "maxima_added" in wrong:
            maximum = first + second
        if "one_maximum" in wrong:
            maximum = maximum.max().expand_as(maximum)
        base = maximum
        if "nan_where_empty" not in wrong:  # and whatever the maximum, no key leaves nothing
            base = maximum.masked_fill((first == float("-inf")) & (second == float("-inf")), 0.0)
        a, b = (first - base).exp(), (second - base).exp()
        if "first_maximum" in wrong:
            a = torch.ones_like(a)
        if "second_maximum" in wrong:
            b = torch.ones_like(b)
        if "inverted" in wrong:
            a, b = (base - first).exp(), (base - second).exp()
        if "not_exponentiated" in wrong:
            a, b = first - base, second - base
        if "plain_exp" in wrong:
            a, b = first.exp() / base.exp(), second.exp() / base.exp()
        if "from_zero" in wrong:
            a, b = first.exp(), second.exp()
        if "first_as_it_is" in wrong:
            a = torch.ones_like(a)
        if "second_as_it_is" in wrong:
            b = torch.ones_like(b)
        if "one_in_all" in wrong:
            a, b = a / (a + b), b / (a + b)
        if "second_shrinks" in wrong:
            a, b = torch.ones_like(a), torch.minimum(a, b)
        if "swapped" in wrong:
            a, b = b, a
        if "larger_only" in wrong:
            a, b = (first >= second).to(a), (second > first).to(a)
        total, weighted = a * total_a + b * total_b, a * weighted_a + b * weighted_b
        if wrong & {"total_not_rescaled", "nothing_rescaled"}:
            total = total_a + total_b
        if wrong & {"weighted_not_rescaled", "nothing_rescaled"}:
            weighted = weighted_a + weighted_b
        if "divided_before" in wrong:
            weighted = a * weighted_a / total_a + b * weighted_b / total_b
        if "divided_after" in wrong:
            weighted = weighted / total.masked_fill(total == 0, 1.0)
        if "log_sum" in wrong:
            maximum = base + total.log()
        if "empty_result_zero" in wrong:
            maximum = base
        return maximum, total, weighted

    return merge_softmaxes


def merge_softmaxes_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(15000 + seed)

    def arguments(B: int, H: int, T: int, Dv: int, spread: float = 1.5) -> dict[str, Tensor]:
        given = {}
        for part in "ab":
            given[f"maximum_{part}"] = inputs.normal(B, H, T, 1, spread=spread) - 0.5
            given[f"total_{part}"] = 1 + 3 * torch.rand(B, H, T, 1, generator=inputs.generator)
            given[f"weighted_{part}"] = inputs.normal(B, H, T, Dv, spread=2.0)
        return given

    def without(given: dict[str, Tensor], *places: tuple[str, int]) -> dict[str, Tensor]:
        """The same, with no key in these parts for these queries."""
        for part, query in places:
            given[f"maximum_{part}"][:, :, query] = float("-inf")
            given[f"total_{part}"][:, :, query] = 0.0
            given[f"weighted_{part}"][:, :, query] = 0.0
        return given

    yield one_call("three queries", arguments(1, 1, 3, 2))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 5))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3))
    yield one_call("a part without a key here and there", without(arguments(2, 1, 4, 3), ("a", 1), ("b", 2)))
    given = without(arguments(1, 2, 5, 3), ("a", 0), ("a", 2), ("b", 2), ("b", 4))
    yield one_call("a query without a key in either part", given, gradients=())
    given = arguments(2, 2, 4, 3)
    given["maximum_a"][:, :, 1:] += torch.tensor([200.0, -200.0, 200.0])[:, None]
    given["maximum_b"][:, :, 1:] += torch.tensor([200.0, -200.0, -200.0])[:, None]
    yield one_call("scores far above and far below 0", given)
    yield one_call("one query", arguments(3, 5, 1, 7))
    yield one_call("non-contiguous", {n: strided(t) for n, t in arguments(2, 3, 4, 5).items()}, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 3, 4).items()}, "float64")


def _larger_maximum(call: Call, result: Result) -> bool:
    return torch.equal(result.outputs[0], torch.maximum(call.arguments["maximum_a"], call.arguments["maximum_b"]))


def _nothing_from_nothing(call: Call, result: Result) -> bool:
    given = call.arguments
    for part, other in ("ab", "ba"):
        empty = (given[f"maximum_{part}"] == float("-inf")).squeeze(-1)
        names = ("maximum", "total", "weighted")
        pairs = [(out, given[f"{name}_{other}"]) for name, out in zip(names, result.outputs, strict=True)]
        if not all(torch.allclose(out[empty], kept[empty], rtol=1e-4, atol=1e-5) for out, kept in pairs):
            return False
    return True


MERGE_SOFTMAXES = Exercise(
    id="execution/merge_softmaxes",
    defines="merge_softmaxes",
    title="Merge two parts of a softmax",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=merge_softmaxes_scripts,
    reference=merge_softmaxes,
    faulty=faulty_merge_softmaxes,
    outputs=(Output("maximum", "B H T 1"), Output("total", "B H T 1"), Output("weighted", "B H T Dv")),
    properties=(
        Property("the merged maximum is the larger of the two", _larger_maximum),
        Property("merged with a part that has no key, the other part stays as it is", _nothing_from_nothing),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "nothing_rescaled",
            "the parts are added as they are",
            "Each part counts from its own maximum: exp(s - maximum). Bring both to the larger one first, by the "
            "factor exp(own maximum - larger maximum).",
            "Softmax in parts",
        ),
        Misconception(
            "weighted_not_rescaled",
            "the weighted sums are not rescaled",
            "The total and the weighted sum hold the same exponentials. What multiplies one multiplies the other, or "
            "their quotient is no average.",
            "Softmax in parts",
        ),
        Misconception(
            "total_not_rescaled",
            "the totals are not rescaled",
            "The total and the weighted sum hold the same exponentials. What multiplies one multiplies the other, or "
            "their quotient is no average.",
            "Softmax in parts",
        ),
        Misconception(
            "first_maximum",
            "the first part's maximum stays, and the second part is brought to it",
            "The quotient is the same while nothing overflows. A second part that lies 89 above the first does: "
            "exp(89) is infinite in float32. Take the larger one.",
            "Softmax in parts",
        ),
        Misconception(
            "second_maximum",
            "the second part's maximum replaces the first's",
            "The quotient is the same while nothing overflows. A first part that lies 89 above the second does: "
            "exp(89) is infinite in float32. Take the larger one.",
            "Softmax in parts",
        ),
        Misconception(
            "smaller",
            "both are brought to the smaller maximum",
            "Then the factor of the other part is above 1, and infinite where they lie 89 apart. With the larger one "
            "no factor exceeds 1.",
            "Softmax in parts",
        ),
        Misconception(
            "maxima_added",
            "the two maxima are added",
            "The largest score of both parts is the larger of their maxima: `torch.maximum`.",
            "Softmax in parts",
        ),
        Misconception(
            "one_maximum",
            "all queries share one maximum",
            "`.max()` without an axis is one number for everything, and a query far below it loses its keys: "
            "exp(-200) is 0. `torch.maximum(a, b)` compares place by place.",
            "Softmax in parts",
        ),
        Misconception(
            "inverted",
            "the factors are upside down",
            "A part with a smaller maximum shrinks: exp(own maximum - larger maximum) is at most 1.",
            "By hand",
        ),
        Misconception(
            "swapped",
            "each part is multiplied by the other's factor",
            "The part whose maximum is the larger one has the factor 1.",
            "By hand",
        ),
        Misconception(
            "second_shrinks",
            "it is always the second part that shrinks",
            "The part with the smaller maximum does, and for each query that may be the other one. Give each part a "
            "factor: exp(own maximum - larger maximum).",
            "By hand",
        ),
        Misconception(
            "first_as_it_is",
            "the first part is added as it is, and only the second is rescaled",
            "The first part may have the smaller maximum. Give each part a factor: exp(own maximum - larger maximum).",
            "By hand",
        ),
        Misconception(
            "second_as_it_is",
            "the second part is added as it is, and only the first is rescaled",
            "The second part may have the smaller maximum. Give each part a factor: exp(own maximum - larger maximum).",
            "By hand",
        ),
        Misconception(
            "from_zero",
            "the sums count from 0, not from the larger maximum",
            "exp(89) is infinite in float32. The factor is exp(own maximum - larger maximum), at most 1.",
            "Softmax in parts",
        ),
        Misconception(
            "not_exponentiated",
            "the differences of the maxima are used as factors",
            "exp(s - larger) = exp(s - own) · exp(own - larger): the factor is the exponential of the difference.",
            "Softmax in parts",
        ),
        Misconception(
            "plain_exp",
            "the exponential is taken before the difference",
            "In float32 exp(89) is infinite and exp(-104) is 0: the quotient of two of them is NaN. Subtract the "
            "maxima first, then take the exponential.",
            "Softmax in parts",
        ),
        Misconception(
            "one_in_all",
            "the two factors sum to 1",
            "That is a softmax over the two maxima. The sum is divided away once, at the end, and not here: the part "
            "with the larger maximum keeps its numbers, with the factor 1.",
            "Softmax in parts",
        ),
        Misconception(
            "larger_only",
            "only the part with the larger maximum is kept",
            "The other part has keys too, whose exponentials are smaller and not 0.",
            "Softmax in parts",
        ),
        Misconception(
            "divided_before",
            "each weighted sum is divided by its own total",
            "Then each part is an average, whatever it weighs. Sums add, averages do not: divide once, after all "
            "parts are merged.",
            "Softmax in parts",
        ),
        Misconception(
            "divided_after",
            "the merged weighted sum is divided by the total",
            "That is the last step, after all parts. What is returned here must be fit to be merged again.",
            "Softmax in parts",
        ),
        Misconception(
            "log_sum",
            "the log-sum is returned in place of the maximum",
            "maximum + log(total) is what the backward pass keeps. Here total and weighted belong to the maximum.",
            "Softmax in parts",
        ),
        Misconception(
            "nan_where_empty",
            "two parts without a key give NaN",
            "-inf - -inf is NaN. Subtract a finite number where the larger maximum is -inf: the exponential is 0 then, "
            "as it should be.",
            "Softmax in parts",
        ),
        Misconception(
            "empty_result_zero",
            "where neither part has a key, 0 is returned as the maximum",
            "Replace -inf only in the number that you subtract. What you return stays -inf: the next merge would "
            "take 0 for a score.",
            "Softmax in parts",
        ),
        Misconception(
            "empty_is_zero",
            "a part without a key is taken to have the maximum 0",
            "0 is a score like any other, and larger than many. The maximum of nothing is -inf, and stays so where "
            "both parts are empty: replace it only in the number that you subtract.",
            "Softmax in parts",
        ),
    ),
)

# --- online_attention -------------------------------------------------------------------------------------------


def online_attention(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    S, D = key.shape[2:]
    maximum, total, weighted = query.new_tensor(float("-inf")), 0.0, 0.0
    for start in range(0, S, tile):
        k, v = key[:, :, start : start + tile], value[:, :, start : start + tile]
        scores = query @ k.mT / D**0.5  # (B, H, T, tile)
        larger = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        factor, exponentials = torch.exp(maximum - larger), torch.exp(scores - larger)
        total = factor * total + exponentials.sum(-1, keepdim=True)
        weighted = factor * weighted + exponentials @ v
        maximum = larger
    return weighted / total


def faulty_online_attention(wrong: frozenset[str]) -> Callable:
    def online_attention(query, key, value, tile):
        S, D = key.shape[2:]
        divisor = D if "no_root" in wrong else (value.shape[3] if "root_of_value" in wrong else D) ** 0.5
        if "multiplied" in wrong:
            divisor = 1 / divisor
        if "not_scaled" in wrong:
            divisor = 1
        rows = (*query.shape[:3], 1)
        maximum = query.new_zeros(rows) if "starts_at_zero" in wrong else query.new_full(rows, float("-inf"))
        total, weighted = query.new_zeros(rows), query.new_zeros(*query.shape[:3], value.shape[3])
        parts = []
        end, step = (S // tile * tile if "ragged_dropped" in wrong else S), (1 if "step_one" in wrong else tile)
        for start in [*range(int("first_twice" in wrong)), *range(0, end, step)]:
            stop = start + tile - int("last_key_lost" in wrong and tile > 1)
            k, v = key[:, :, start:stop], value[:, :, start:stop]
            if "values_of_first" in wrong:
                v = value[:, :, : k.shape[2]]
            scores = query @ k.mT / divisor
            top = scores.amax(-1, keepdim=True)
            if "one_maximum" in wrong:
                top = scores.max().expand_as(top)
            larger = torch.maximum(maximum, top)
            if "tile_maximum" in wrong or ("first_maximum" in wrong and not start):
                larger = top
            elif "first_maximum" in wrong:
                larger = maximum
            if "no_maximum" in wrong:
                maximum = larger = torch.zeros_like(top)
            factor = (maximum - larger).exp()
            if "inverted" in wrong and start:
                factor = (larger - maximum).exp()
            shares = (scores - (top if "tile_not_rescaled" in wrong else larger)).exp()
            sums, products = shares.sum(-1, keepdim=True), shares @ v
            own = (scores - scores.amax(-1, keepdim=True)).exp()
            parts.append(own @ v / own.sum(-1, keepdim=True))
            of_total = 1 if wrong & {"total_not_rescaled", "nothing_rescaled"} else factor
            of_weighted = 1 if wrong & {"weighted_not_rescaled", "nothing_rescaled"} else factor
            if "total_overwritten" in wrong:
                of_total = 0
            total = total * of_total + sums
            weighted = weighted * of_weighted + (products / total if "divided_so_far" in wrong else products)
            if "divided_each" in wrong:
                weighted = weighted / total
            if "last_tile" not in wrong and ("maximum_stays" not in wrong or not start):
                maximum = larger
        if "tiles_added" in wrong:
            return sum(parts)
        if "tiles_averaged" in wrong:
            return sum(parts) / len(parts)
        return weighted if wrong & {"divided_each", "divided_so_far", "not_divided"} else weighted / total

    return online_attention


def online_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(15100 + seed)

    def arguments(B: int, H: int, T: int, S: int, D: int, Dv: int, tile: int) -> dict:
        query, key = inputs.normal(B, H, T, D, spread=2.0), inputs.normal(B, H, S, D, spread=1.5)
        return {"query": query, "key": key, "value": inputs.normal(B, H, S, Dv), "tile": tile}

    def apart(B: int, H: int, S: int, Dv: int, tile: int) -> dict:
        """Five queries: scores near 0, far above and far below it, and with the first or the last tile far above.

        All scores are exact in float32, so that the order of the steps does not matter.
        """
        given = arguments(B, H, 5, S, 4, Dv, tile)
        noise = [(given[name][..., 3] * 8).round() / 8 for name in ("query", "key")]
        given["key"][..., :3] = torch.tensor([1.0, 0.0, 0.0])
        given["key"][:, :, :tile, 1], given["key"][:, :, (S - 1) // tile * tile :, 2] = 1.0, 1.0
        given["query"][..., :3] = 300.0 * torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
        given["query"][..., 3], given["key"][..., 3] = noise
        return given

    yield one_call("five keys in tiles of two", arguments(1, 1, 3, 5, 2, 4, 2))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 10, 5, 6, 3))
    yield one_call("all sizes equal, one tile", arguments(4, 4, 4, 4, 4, 4, 4))
    yield one_call("fewer keys than the tile has room for", arguments(1, 2, 4, 3, 5, 2, 7))
    yield one_call("more queries than keys", arguments(2, 1, 7, 6, 3, 2, 4))
    yield one_call("tiles far apart", apart(1, 2, 8, 3, 3))
    yield one_call("one query", arguments(2, 3, 1, 13, 7, 5, 5))
    # Fewer queries than a tile has keys: tiles of queries would hold all 1,440 scores.
    yield replace(one_call("12 queries, 120 keys", arguments(1, 1, 12, 120, 2, 3, 24)), largest=1439)
    loose = {n: strided(x) if isinstance(x, Tensor) else x for n, x in arguments(2, 3, 4, 7, 5, 6, 3).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    double = {n: x.double() if isinstance(x, Tensor) else x for n, x in arguments(1, 2, 3, 5, 4, 3, 2).items()}
    yield one_call("float64", double, "float64")


def _between_the_values(call: Call, result: Result) -> bool:
    value, output = call.arguments["value"], result.outputs[0]
    low, high = value.amin(2, keepdim=True), value.amax(2, keepdim=True)
    return bool(((output >= low - 1e-4) & (output <= high + 1e-4)).all())


ONLINE_ATTENTION = Exercise(
    id="execution/online_attention",
    defines="online_attention",
    title="Attend one tile of keys at a time",
    chapter=CHAPTER,
    difficulty=2,
    minutes=20,
    points=3,
    scripts=online_attention_scripts,
    reference=online_attention,
    faulty=faulty_online_attention,
    outputs=(Output("output", "B H T Dv"),),
    properties=(Property("the output is an average: no number lies outside those of the values", _between_the_values),),
    habits=COMMON_HABITS,
    forbidden=WHOLE_SOFTMAX,
    misconceptions=(
        Misconception(
            "nothing_rescaled",
            "what was summed before is not rescaled",
            "It was counted from the old maximum. Multiply by exp(old maximum - new maximum); if you do, see that the "
            "old maximum is not overwritten before.",
            "Softmax in parts",
        ),
        Misconception(
            "weighted_not_rescaled",
            "the weighted sum is not rescaled when the maximum rises",
            "Total and weighted sum hold the same exponentials. The factor exp(old maximum - new maximum) multiplies "
            "both.",
            "Softmax in parts",
        ),
        Misconception(
            "total_not_rescaled",
            "the total is not rescaled when the maximum rises",
            "Total and weighted sum hold the same exponentials. The factor exp(old maximum - new maximum) multiplies "
            "both.",
            "Softmax in parts",
        ),
        Misconception(
            "maximum_stays",
            "the running maximum stays that of the first tile",
            "Each factor leads from the last maximum to the new one, so the new one must be kept for the next tile: "
            "`maximum = larger` at the end of the loop.",
            "Tiles",
        ),
        Misconception(
            "tile_not_rescaled",
            "the tile's exponentials count from the tile's own maximum",
            "The sums so far were brought to the larger maximum. The new exponentials must count from the same one.",
            "Tiles",
        ),
        Misconception(
            "last_tile",
            "only the last tile counts",
            "The sums before are lost: they are assigned anew, or multiplied by exp(-inf) = 0 because the running "
            "maximum is never updated.",
            "Tiles",
        ),
        Misconception(
            "total_overwritten",
            "the total is that of the last tile",
            "The weighted sum runs over all tiles, and the total must do so too.",
            "Tiles",
        ),
        Misconception(
            "tile_maximum",
            "the running maximum is the last tile's, not the largest so far",
            "The result is right until a later tile lies 89 below an earlier one: then exp(old - new) is infinite in "
            "float32. Take `torch.maximum` of the two.",
            "Tiles",
        ),
        Misconception(
            "first_maximum",
            "the first tile's maximum serves for all tiles",
            "The result is right until a later tile lies 89 above the first: then the exponential is infinite in "
            "float32. The maximum must rise with the scores, and the sums be rescaled.",
            "Tiles",
        ),
        Misconception(
            "no_maximum",
            "no maximum is subtracted",
            "In float32 exp(89) is infinite and exp(-104) is 0. That is what the running maximum is for.",
            "Softmax in parts",
        ),
        Misconception(
            "one_maximum",
            "all queries share one maximum",
            "`.max()` without an axis is one number for everything, and a query far below it loses its keys: "
            "exp(-200) is 0. Take `amax(-1, keepdim=True)`.",
            "Softmax in parts",
        ),
        Misconception(
            "starts_at_zero",
            "the running maximum begins at 0",
            "Where all scores of a query are far below 0, every exponential is 0, and 0/0 is NaN. Before the first "
            "tile the maximum is -inf.",
            "Tiles",
        ),
        Misconception(
            "inverted",
            "the factor is upside down",
            "The sums so far shrink when the maximum rises: exp(old maximum - new maximum) is at most 1.",
            "By hand",
        ),
        Misconception(
            "ragged_dropped",
            "the last, shorter tile is left out",
            "`S // tile` counts whole tiles. Step from 0 to S; a slice ends by itself at the last key.",
            "Tiles",
        ),
        Misconception(
            "last_key_lost",
            "each tile loses its last key",
            "A slice ends before its end: a tile is `[start : start + tile]`.",
            "Tiles",
        ),
        Misconception(
            "first_twice",
            "the first tile is counted twice",
            "If the first tile fills the sums before the loop, the loop begins with the second: `range(tile, S, "
            "tile)`. Or begin with -inf, 0 and zeros.",
            "Tiles",
        ),
        Misconception(
            "step_one",
            "a tile begins at every key, so that most keys are counted several times",
            "Tiles stand side by side: `range(0, S, tile)`.",
            "Tiles",
        ),
        Misconception(
            "values_of_first",
            "each tile's weights meet the first tile's values",
            "The values are cut as the keys are: `[start : start + tile]`.",
            "Tiles",
        ),
        Misconception(
            "divided_each",
            "the weighted sum is divided after each tile",
            "It is divided again and again. Divide once, after the last tile.",
            "Tiles",
        ),
        Misconception(
            "divided_so_far",
            "each tile is divided by the total so far",
            "The total still grows, and what was divided before is then too large. Divide once, after the last tile.",
            "Tiles",
        ),
        Misconception(
            "tiles_averaged",
            "the outputs of the tiles are averaged",
            "Each tile's softmax sums to 1, whatever its scores. A tile counts by its total.",
            "Softmax in parts",
        ),
        Misconception(
            "tiles_added",
            "the outputs of the tiles are added",
            "Each tile's softmax sums to 1. Sums add, averages do not: divide once, after the last tile.",
            "Softmax in parts",
        ),
        Misconception(
            "not_divided",
            "the weighted sum is not divided by the total",
            "It is relative to the maximum. Only the quotient of both sums is the output.",
            "Softmax in parts",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "Tiles change how attention is computed, not what: divide by `D ** 0.5`, as without tiles.",
            "Mechanism or execution",
        ),
        Misconception(
            "no_root",
            "the scores are divided by D, not by √D",
            "A dot product of D numbers spreads out with √D: divide by `D ** 0.5`.",
            "Mechanism or execution",
        ),
        Misconception(
            "root_of_value",
            "the scores are divided by the square root of Dv",
            "The dot product runs over the D numbers of query and key.",
            "Mechanism or execution",
        ),
        Misconception(
            "multiplied",
            "the scores are multiplied by √D, not divided",
            "A dot product of D numbers spreads out with √D: divide by `D ** 0.5`.",
            "Mechanism or execution",
        ),
    ),
)

# --- score_gradients --------------------------------------------------------------------------------------------


def score_gradients(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale = query.shape[3] ** -0.5
    weights = torch.exp(scale * query @ key.mT - log_sum[..., None])  # (B, H, T, S)
    grad_weights = grad_output @ value.mT  # (B, H, T, S)
    row = (grad_output * output).sum(-1, keepdim=True)  # (B, H, T, 1)
    grad_scores = weights * (grad_weights - row)
    grad_query, grad_key = scale * grad_scores @ key, scale * grad_scores.mT @ query
    return grad_scores, grad_query, grad_key, weights.mT @ grad_output


def faulty_score_gradients(wrong: frozenset[str]) -> Callable:
    def score_gradients(query, key, value, output, log_sum, grad_output):
        scale = 1 / query.shape[3] if "no_root" in wrong else query.shape[3] ** -0.5
        scores = query @ key.mT * (1.0 if "scores_not_scaled" in wrong else scale)
        weights = (scores - log_sum[..., None]).exp()
        if "softmax_of_tile" in wrong:
            weights = scores.softmax(-1)
        if "log_not_undone" in wrong:
            weights = scores.exp() / log_sum[..., None]
        if "not_exponentiated" in wrong:
            weights = scores - log_sum[..., None]
        if "maximum_too" in wrong:
            weights = (scores - scores.amax(-1, keepdim=True) - log_sum[..., None]).exp()
        if "not_normalised" in wrong:
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
        grad_weights = grad_output @ value.mT
        row = (grad_output * output).sum(-1, keepdim=True)
        if "row_of_tile" in wrong:
            row = (weights * grad_weights).sum(-1, keepdim=True)
        if "row_of_gradients" in wrong:
            row = grad_weights.sum(-1, keepdim=True)
        if "row_averaged" in wrong:
            row = row / output.shape[3]
        if "one_row" in wrong:
            row = row.sum()
        if "no_row" in wrong:
            row = torch.zeros_like(row)
        inner = grad_weights - row
        if "row_added" in wrong:
            inner = grad_weights + row
        if "sign" in wrong:
            inner = -inner
        grad_scores = weights * inner
        if "no_brackets" in wrong:
            grad_scores = weights * grad_weights - row
        if "like_a_sigmoid" in wrong:
            grad_scores = weights * (1 - weights) * grad_weights
        if "softmax_skipped" in wrong:
            grad_scores = grad_weights
        if "weights_left_out" in wrong:
            grad_scores = inner
        outer = 1.0 if "not_scaled" in wrong else (1 / scale if "outer_upside_down" in wrong else scale)
        grad_query, grad_key = grad_scores @ key * outer, grad_scores.mT @ query * outer
        if "query_not_scaled" in wrong:
            grad_query = grad_scores @ key
        if "key_not_scaled" in wrong:
            grad_key = grad_scores.mT @ query
        if "key_scaled_twice" in wrong:
            grad_key = grad_key * scale
        grad_value = (grad_scores if "value_of_scores" in wrong else weights).mT @ grad_output
        if "value_of_output" in wrong:
            grad_value = weights.mT @ output
        if "scaled_twice" in wrong:
            grad_scores, grad_query, grad_key = grad_scores * scale, grad_query * scale, grad_key * scale
        if "scale_in_scores" in wrong:
            grad_scores = grad_scores * scale
        return grad_scores, grad_query, grad_key, grad_value

    return score_gradients


def score_gradients_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(15200 + seed)

    def arguments(sizes: tuple[int, ...], first: int, n_keys: int, double: bool = False) -> dict[str, Tensor]:
        """S keys from `first` on, of `n_keys` that the output and the log-sum are of."""
        B, H, T, S, D, Dv = sizes
        query, key = inputs.normal(B, H, T, D, spread=1.5), inputs.normal(B, H, n_keys, D, spread=1.5)
        value, grad_output = inputs.normal(B, H, n_keys, Dv, spread=1.5), inputs.normal(B, H, T, Dv, spread=1.5)
        scores = query.double() @ key.double().mT / D**0.5
        output, log_sum = (scores.softmax(-1) @ value.double()).float(), scores.logsumexp(-1).float()
        seen = slice(first, first + S)
        given = {"query": query, "key": key[:, :, seen].clone(), "value": value[:, :, seen].clone()}
        given |= {"output": output, "log_sum": log_sum, "grad_output": grad_output}
        return {name: x.double() for name, x in given.items()} if double else given

    def script(name: str, given: dict[str, Tensor], habit: str | None = None) -> Script:
        return one_call(name, given, habit, gradients=())  # these are the gradients already

    yield script("two keys of four", arguments((1, 1, 3, 2, 2, 4), 1, 4))
    yield script("a tile, all sizes different", arguments((2, 3, 4, 5, 6, 7), 3, 11))
    yield script("all keys in one tile", arguments((2, 1, 4, 6, 3, 5), 0, 6))
    yield script("all sizes equal", arguments((4, 4, 4, 4, 4, 4), 2, 7))
    yield script("more queries than keys", arguments((1, 2, 7, 3, 4, 2), 5, 8))
    yield script("one query", arguments((2, 2, 1, 9, 8, 6), 4, 15))
    loose = {n: x if x.dim() == 3 else strided(x) for n, x in arguments((2, 3, 4, 5, 6, 7), 0, 9).items()}
    yield script("non-contiguous", loose, "non-contiguous")
    yield script("float64", arguments((1, 2, 3, 4, 5, 6), 1, 6, double=True), "float64")
    large = arguments((1, 2, 3, 4, 4, 5), 0, 6)
    large["query"] = (8 * large["query"]).round() / 8
    large["query"][..., 0], large["key"][..., 0] = 200.0, 2.0
    large["key"] = (8 * large["key"]).round() / 8
    scores = large["query"].double() @ large["key"].double().mT / 2
    large["log_sum"] = scores.logsumexp(-1).float()
    yield script("scores of two hundred", large, "extreme")


def _gradients_of_query_and_key_agree(call: Call, result: Result) -> bool:
    """Σ grad_query · query = Σ grad_key · key: both are Σ grad_scores · scores."""
    _, of_query, of_key, _ = result.outputs
    left, right = (of_query * call.arguments["query"]).sum(), (of_key * call.arguments["key"]).sum()
    return torch.allclose(left, right, rtol=1e-3, atol=1e-3)


SCORE_GRADIENTS = Exercise(
    id="execution/score_gradients",
    defines="score_gradients",
    title="Go back through one tile",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    scripts=score_gradients_scripts,
    reference=score_gradients,
    faulty=faulty_score_gradients,
    outputs=(
        Output("grad_scores", "B H T S"),
        Output("grad_query", "B H T D"),
        Output("grad_key", "B H S D"),
        Output("grad_value", "B H S Dv"),
    ),
    properties=(
        Property(
            "query times its gradient, all added up, is key times its gradient, all added up",
            _gradients_of_query_and_key_agree,
        ),
    ),
    habits=COMMON_HABITS
    | {
        "extreme": "Large scores overflow: `exp(89)` is already infinite in float32. Subtract the log-sum before "
        "`exp`; do not divide afterwards."
    },
    misconceptions=(
        Misconception(
            "softmax_of_tile",
            "the softmax is taken over the tile",
            "The weights of all keys sum to 1, and this tile has some of them. The log-sum is of all keys: "
            "exp(score - log_sum).",
            "Backward in tiles",
        ),
        Misconception(
            "not_normalised",
            "the exponentials count from the tile's maximum, and nothing divides them",
            "Subtract the row's log-sum: it holds the maximum and the total of all keys.",
            "Backward in tiles",
        ),
        Misconception(
            "log_not_undone",
            "the exponentials are divided by the logarithm of the total",
            "log_sum is a logarithm. Subtract it before the exponential: exp(score - log_sum).",
            "Backward in tiles",
        ),
        Misconception(
            "maximum_too",
            "the tile's maximum is subtracted beside the log-sum",
            "The log-sum holds the maximum already: exp(score - log_sum) is at most 1 and cannot overflow.",
            "Backward in tiles",
        ),
        Misconception(
            "not_exponentiated",
            "the logarithms of the weights are used as weights",
            "score - log_sum is the logarithm of a weight: take its exponential.",
            "Backward in tiles",
        ),
        Misconception(
            "row_of_tile",
            "the row's sum runs over this tile's keys only",
            "Σ weights · grad_weights runs over all keys, of which a tile sees some. It equals Σ grad_output · output, "
            "and the output is of all keys.",
            "Backward in tiles",
        ),
        Misconception(
            "row_of_gradients",
            "the gradients of the weights are summed, without the weights",
            "The row's number is Σ weights · grad_weights, which is Σ grad_output · output.",
            "Backward in tiles",
        ),
        Misconception(
            "row_averaged",
            "the row's products are averaged, not summed",
            "output · grad_output is a dot product over the Dv numbers: a sum.",
            "Backward in tiles",
        ),
        Misconception(
            "one_row",
            "one number serves for all rows",
            "`.sum()` without an axis adds up everything. Each query has a number of its own: `sum(-1, keepdim=True)`.",
            "Backward in tiles",
        ),
        Misconception(
            "no_row",
            "the softmax's division is forgotten",
            "A higher score also lowers the shares of all other keys. That is what the row's number, "
            "Σ grad_output · output, is subtracted for.",
            "Backward in tiles",
        ),
        Misconception(
            "row_added",
            "the row's number is added, not subtracted",
            "grad_scores = weights · (grad_weights - row).",
            "Backward in tiles",
        ),
        Misconception(
            "sign",
            "the gradient of the scores has the opposite sign",
            "grad_scores = weights · (grad_weights - row), not the other way round.",
            "Backward in tiles",
        ),
        Misconception(
            "no_brackets",
            "the row's number is not multiplied by the weights",
            "Brackets: weights · (grad_weights - row).",
            "Backward in tiles",
        ),
        Misconception(
            "like_a_sigmoid",
            "the derivative is taken to be weights · (1 - weights)",
            "That is each weight's derivative by its own score. By the scores of other keys it is -weight · weight, "
            "and those belong to the sum.",
            "Backward in tiles",
        ),
        Misconception(
            "softmax_skipped",
            "the gradient of the weights is used as that of the scores",
            "Between scores and weights is a softmax: weights · (grad_weights - row).",
            "Backward in tiles",
        ),
        Misconception(
            "weights_left_out",
            "the weights do not multiply the gradient of the scores",
            "grad_scores = weights · (grad_weights - row): a key of small weight moves little.",
            "Backward in tiles",
        ),
        Misconception(
            "scores_not_scaled",
            "the scores are computed without 1/√D",
            "The log-sum is of scaled scores, so the weights come out wrong: scale as the forward pass did.",
            "Backward in tiles",
        ),
        Misconception(
            "no_root",
            "the scale is 1/D, not 1/√D",
            "The forward pass divided by `D ** 0.5`, and the log-sum is of those scores.",
            "Backward in tiles",
        ),
        Misconception(
            "not_scaled",
            "the gradients of query and key lack the factor 1/√D",
            "The scores are q · k / √D: the factor comes back with the chain rule.",
            "Backward in tiles",
        ),
        Misconception(
            "query_not_scaled",
            "the gradient of the queries lacks the factor 1/√D",
            "The scores are q · k / √D, so both gradients have the factor. If you scaled the queries at the beginning, "
            "grad_scores @ key is the gradient of the scaled ones.",
            "Backward in tiles",
        ),
        Misconception(
            "key_not_scaled",
            "the gradient of the keys lacks the factor 1/√D",
            "The scores are q · k / √D, so both gradients have the factor. If you scaled the keys at the beginning, "
            "grad_scores, transposed, @ query is the gradient of the scaled ones.",
            "Backward in tiles",
        ),
        Misconception(
            "key_scaled_twice",
            "the gradient of the keys has the factor 1/√D twice",
            "Queries that were scaled at the beginning bring the factor along: do not multiply by it again.",
            "Backward in tiles",
        ),
        Misconception(
            "outer_upside_down",
            "the gradients of query and key are multiplied by √D, not divided",
            "The scores are q · k / √D, and their derivative by q is k / √D.",
            "Backward in tiles",
        ),
        Misconception(
            "scaled_twice",
            "the factor 1/√D is there twice",
            "grad_scores is the gradient of the scaled scores, and has no factor. The gradients of query and key have "
            "one.",
            "Backward in tiles",
        ),
        Misconception(
            "scale_in_scores",
            "grad_scores has the factor 1/√D in it",
            "Asked for first is the gradient of the scaled scores. The factor belongs to the step from there to query "
            "and key.",
            "Backward in tiles",
        ),
        Misconception(
            "value_of_scores",
            "the gradient of the scores reaches the values",
            "The output is weights · values: the values get weights, transposed, times grad_output.",
            "Backward in tiles",
        ),
        Misconception(
            "value_of_output",
            "the output is passed on to the values, not its gradient",
            "The values get weights, transposed, times grad_output.",
            "Backward in tiles",
        ),
    ),
)

# --- read_blocks ------------------------------------------------------------------------------------------------


def read_blocks(pool_key: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    S = int(lengths.max())
    blocks = pool_key[table]  # (B, n, G, b, D)
    keys = blocks.transpose(1, 2).flatten(2, 3)[:, :, :S]  # (B, G, S, D)
    real = torch.arange(S) < lengths[:, None]  # (B, S)
    return keys.masked_fill(~real[:, None, :, None], 0.0)


def faulty_read_blocks(wrong: frozenset[str]) -> Callable:
    def read_blocks(pool_key, table, lengths):
        (G, b, D), (B, n), S = pool_key.shape[1:], table.shape, int(lengths.max())
        if "first_table" in wrong:
            table = table[:1].expand(B, n)
        if "table_ignored" in wrong:
            table = torch.arange(n).expand(B, n)
        if "in_order" in wrong:
            table = table.sort(-1).values
        if "reversed" in wrong:
            table = table.flip(-1)
        if "one_based" in wrong:
            table = table - 1
        if "numbers_as_places" in wrong or "pool_reshaped" in wrong:
            flat = pool_key.transpose(0, 1).flatten(1, 2)  # (G, N·b, D)
            if "pool_reshaped" in wrong:
                flat = pool_key.reshape(G, -1, D)
            step = 1 if "numbers_as_places" in wrong else b
            blocks = flat[:, table[..., None] * step + torch.arange(b)].movedim(0, 2)  # (B, n, G, b, D)
        else:
            blocks = pool_key[table]
        if "place_reversed" in wrong:
            blocks = blocks.flip(3)
        if "heads_and_places" in wrong:
            keys = blocks.reshape(B, n * b, G, D).transpose(1, 2)
        elif "not_transposed" in wrong:
            keys = blocks.reshape(B, G, n * b, D)
        elif "interleaved" in wrong:
            keys = blocks.permute(0, 2, 3, 1, 4).flatten(2, 3)
        else:
            keys = blocks.transpose(1, 2).flatten(2, 3)
        place = torch.arange(n * b)
        real = place < lengths[:, None] + int("one_more" in wrong) - int("one_less" in wrong)
        if "shortest" in wrong:
            real = place < lengths.min().expand(B, 1)
        if "first_length" in wrong:
            real = place < lengths[:1, None].expand(B, 1)
        if "whole_blocks" in wrong:
            real = place < (lengths[:, None] + b - 1) // b * b
        if "full_blocks_only" in wrong:
            real = place < lengths[:, None] // b * b
        if "not_zeroed" in wrong:
            real = torch.ones_like(real)
        if "inverted" in wrong:
            real = ~real
        if "multiplied" in wrong:
            keys = keys * real[:, None, :, None]
        else:
            keys = keys.masked_fill(~real[:, None, :, None], float("-inf") if "minus_infinity" in wrong else 0.0)
        if "at_the_end" in wrong:
            rows = [torch.cat([k[:, length:S], k[:, :length]], 1) for k, length in zip(keys, lengths, strict=True)]
            return torch.stack(rows)
        return keys if "not_cut" in wrong else keys[:, :, :S]

    return read_blocks


def read_blocks_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(15300 + seed)

    def arguments(N: int, G: int, b: int, D: int, lengths: list[int], n: int, shared: int = 0) -> dict[str, Tensor]:
        """Each sequence in blocks of its own, but for the first `shared`; what is behind its last one is left over."""
        B = len(lengths)
        table = torch.randint(N, (B, n), generator=inputs.generator)
        free = torch.randperm(N, generator=inputs.generator).tolist()
        first = [free.pop() for _ in range(shared)]
        for row, length in zip(table, lengths, strict=True):
            own = [free.pop() for _ in range(-(-length // b) - shared)]
            row[: shared + len(own)] = torch.tensor(first + own)
        pool = inputs.normal(N, G, b, D, spread=2.0)
        return {"pool_key": pool, "table": table, "lengths": torch.tensor(lengths)}

    yield one_call("two sequences", arguments(6, 2, 2, 3, [3, 5], 3))
    yield one_call("three sequences, all sizes different", arguments(13, 4, 5, 2, [12, 17, 3], 6))
    yield one_call("the longest first", arguments(11, 3, 4, 2, [13, 6, 8], 5))
    yield one_call("all sizes equal", arguments(10, 3, 3, 3, [9, 7, 2], 3))
    yield one_call("the first block shared", arguments(9, 2, 4, 3, [6, 11, 9], 3, shared=1))
    yield one_call("a block that is just full", arguments(7, 3, 4, 2, [8, 5], 4))
    yield one_call("one sequence", arguments(8, 5, 3, 7, [14], 6))
    given = arguments(9, 2, 3, 4, [5, 7], 3)
    yield one_call("non-contiguous", given | {"pool_key": strided(given["pool_key"])}, "non-contiguous")
    given = arguments(7, 2, 3, 4, [4, 2], 2)
    yield one_call("float64", given | {"pool_key": given["pool_key"].double()}, "float64")
    given = arguments(8, 2, 3, 4, [4, 7], 3)
    used = torch.zeros(8, 3, dtype=torch.bool)
    for row, length in zip(given["table"], given["lengths"], strict=True):
        for p in range(int(length)):
            used[row[p // 3], p % 3] = True
    spoilt = given["pool_key"].masked_fill(~used[:, None, :, None], float("nan"))
    yield one_call("NaN left over", given | {"pool_key": spoilt}, gradients=())


def _zeros_behind(call: Call, result: Result) -> bool:
    lengths, keys = call.arguments["lengths"], result.outputs[0]
    behind = torch.arange(keys.shape[2]) >= lengths[:, None]
    return bool((keys == 0).masked_select(behind[:, None, :, None].expand_as(keys)).all())


def _first_of_each(call: Call, result: Result) -> bool:
    pool, table, keys = call.arguments["pool_key"], call.arguments["table"], result.outputs[0]
    return bool(torch.equal(keys[:, :, 0], pool[table[:, 0], :, 0]))


READ_BLOCKS = Exercise(
    id="execution/read_blocks",
    defines="read_blocks",
    title="Read keys through a block table",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=read_blocks_scripts,
    reference=read_blocks,
    faulty=faulty_read_blocks,
    outputs=(Output("keys", "B G S D"),),
    properties=(
        Property("a sequence's first key is the first one of the block that its table names first", _first_of_each),
        Property("behind a sequence's last token there are zeros", _zeros_behind),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "not_transposed",
            "blocks and heads are reshaped into each other",
            "Gathered blocks are (B, n, G, b, D). Tokens come from the axes n and b, which must stand side by side "
            "before they become one: exchange n and G first.",
            "A step on pages",
        ),
        Misconception(
            "heads_and_places",
            "a block is read as b tokens of G heads each",
            "The pool is (N, G, b, D): G heads of b tokens each. Exchange the axes before you reshape.",
            "A step on pages",
        ),
        Misconception(
            "interleaved",
            "the tokens of all blocks are interleaved",
            "Token p is in block p // b at place p % b: the block is the slow axis, the place the fast one.",
            "Pages",
        ),
        Misconception(
            "table_ignored",
            "the blocks are read in the order of the pool, whatever the table says",
            "A sequence's blocks lie anywhere in the pool. Its row of the table names them.",
            "Pages",
        ),
        Misconception(
            "first_table",
            "all sequences are read through the first one's table",
            "Each sequence has a row of its own: `table[i]`.",
            "Pages",
        ),
        Misconception(
            "in_order",
            "a sequence's blocks are read in the order of their numbers",
            "A block's number says where it lies, not when it was written. The order is that of the table.",
            "Pages",
        ),
        Misconception(
            "reversed",
            "a sequence's blocks are read from the last to the first",
            "The table begins with the block of the first tokens.",
            "Pages",
        ),
        Misconception(
            "place_reversed",
            "each block is read from its last place to its first",
            "Token p stands at place p % b of its block.",
            "Pages",
        ),
        Misconception(
            "one_based",
            "the table's numbers are counted from 1",
            "Block 0 is the first one of the pool.",
            "Pages",
        ),
        Misconception(
            "numbers_as_places",
            "a block's number is taken for the place of its first token",
            "In a pool laid out as one row of tokens, block k begins at k · b.",
            "Pages",
        ),
        Misconception(
            "pool_reshaped",
            "the pool is reshaped to one row of tokens for each head, without moving its axes",
            "The pool is (N, G, b, D). Bring G to the front first; `reshape` alone mixes heads and blocks.",
            "A step on pages",
        ),
        Misconception(
            "not_zeroed",
            "what is left over behind a sequence's last token is kept",
            "It belongs to another sequence, or to none. Zeros were asked for.",
            "Pages",
        ),
        Misconception(
            "whole_blocks",
            "the rest of a sequence's last block is kept",
            "A block's free places hold what somebody left there. The length counts tokens, not blocks.",
            "Pages",
        ),
        Misconception(
            "full_blocks_only",
            "the tokens of an unfinished last block are left out",
            "`length // b` counts full blocks. The tokens behind them are in one more.",
            "Pages",
        ),
        Misconception(
            "one_more",
            "one token too many is kept",
            "`length` tokens stand at the positions 0 … length - 1: `<`, not `<=`.",
            "Pages",
        ),
        Misconception(
            "one_less",
            "each sequence loses its last token",
            "`length` tokens stand at the positions 0 … length - 1: all below `length` are kept.",
            "Pages",
        ),
        Misconception(
            "shortest",
            "all sequences are as long as the shortest",
            "Each sequence has its own length; the result is as long as the longest.",
            "Pages",
        ),
        Misconception(
            "first_length",
            "all sequences are as long as the first",
            "Each sequence has its own length: `lengths[:, None]` beside the positions.",
            "Pages",
        ),
        Misconception(
            "inverted",
            "the tokens are zeroed and what is left over is kept",
            "`masked_fill` fills where its mask is True: it wants the places behind the last token.",
            "Pages",
        ),
        Misconception(
            "multiplied",
            "what is left over is multiplied by 0",
            "It may be anything, and 0 · NaN is NaN. Overwrite it: `masked_fill`.",
            "Pages",
        ),
        Misconception(
            "minus_infinity",
            "there is -inf behind a sequence's last token",
            "These are keys and not scores: zeros. Their scores are masked later.",
            "A step on pages",
        ),
        Misconception(
            "at_the_end",
            "the shorter sequences stand at the end, with the zeros before them",
            "Token p stands at position p of the result. The zeros are behind.",
            "Pages",
        ),
        Misconception(
            "not_cut",
            "the result is as long as the table, not as the longest sequence",
            "A table has room for n blocks, and the sequences may need fewer. Cut at `lengths.max()`.",
            "Pages",
        ),
    ),
)

# --- blocks_needed ----------------------------------------------------------------------------------------------


def blocks_needed(lengths: Tensor, prompt: Tensor, block_size: int) -> Tensor:
    shared = prompt // block_size  # (P,) full blocks
    in_all = (lengths + block_size - 1) // block_size  # (P, A)
    own = in_all - shared[:, None]  # (P, A)
    return shared + own.sum(1)


def faulty_blocks_needed(wrong: frozenset[str]) -> Callable:
    def blocks_needed(lengths, prompt, block_size):
        def up(n):
            if "whole_only" in wrong:
                return n // block_size
            return n // block_size + 1 if "one_more" in wrong else -(-n // block_size)

        if "lengths_are_own" in wrong:
            lengths = lengths + prompt[:, None]
        full = prompt // block_size
        shared = up(prompt) if wrong & {"unfinished_shared", "unfinished_kept"} else full
        if "nothing_shared" in wrong:
            shared = full = torch.zeros_like(full)
        own = up(lengths) - (shared if "unfinished_shared" in wrong else full)[:, None]
        if "new_block" in wrong:
            own = up(lengths - prompt[:, None])
            shared = up(prompt)
        if "behind_the_copy" in wrong:
            own = up(lengths - prompt[:, None]) + (prompt % block_size > 0).long()[:, None]
        if "counted_again" in wrong:
            own = up(lengths)
        if "rest_only" in wrong:
            own = up(lengths - prompt[:, None])
        if "longest" in wrong:
            own = own.amax(1, keepdim=True).expand_as(own)
        if "tokens_together" in wrong:
            own = up((lengths - full[:, None] * block_size).sum(1, keepdim=True))
        if "one_answer" in wrong:
            own = own[:, :1]
        total = own.sum(0 if "over_prompts" in wrong else 1)
        if "own_only" not in wrong:
            total = total + shared
        if "longest_alone" in wrong:
            total = up(lengths).amax(1)
        return total * block_size if "tokens" in wrong else total

    return blocks_needed


def _own_lengths(implementation: Callable) -> Callable:
    return lambda lengths, prompt, block_size: implementation(lengths + prompt[:, None], prompt, block_size)


def blocks_needed_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(15400 + seed)

    def script(name: str, prompt: list[int], own: list[list[int]], block_size: int) -> Script:
        begun = torch.tensor(prompt)
        return one_call(
            name, {"lengths": begun[:, None] + torch.tensor(own), "prompt": begun, "block_size": block_size}
        )

    # Prompts that end in a block, at its end, or before it is begun; answers that end in one, and at its end.
    yield script("two prompts, three answers each", [5, 8], [[2, 7, 3], [4, 1, 9]], 4)
    yield script("three prompts, four answers each", [12, 7, 0], [[1, 5, 6, 11], [3, 8, 13, 2], [5, 10, 1, 7]], 5)
    yield script("as many answers as prompts", [10, 3, 6], [[2, 9, 4], [3, 6, 1], [8, 3, 5]], 3)
    some = torch.randint(1, 60, (4, 6), generator=inputs.generator).tolist()
    yield script("four prompts, six answers each", [33, 64, 7, 90 + seed % 23], some, 16)
    yield script("one answer", [9, 16, 30], [[7], [8], [1]], 8)
    yield script("one prompt", [1000], [[37, 112, 5, 240, 81, 64, 150, 9]], 16)


def _no_more_than_apart(call: Call, result: Result) -> bool:
    lengths, _, b = call.arguments.values()
    return bool((result.outputs[0] <= (-(-lengths // b)).sum(1)).all()) if result.outputs[0].dim() == 1 else True


def _room_for_all(call: Call, result: Result) -> bool:
    lengths, prompt, b = call.arguments.values()
    tokens = prompt + (lengths - prompt[:, None]).sum(1)
    return bool((result.outputs[0] * b >= tokens).all())


BLOCKS_NEEDED = Exercise(
    id="execution/blocks_needed",
    defines="blocks_needed",
    title="Count the blocks of shared prompts",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=blocks_needed_scripts,
    reference=blocks_needed,
    faulty=faulty_blocks_needed,
    outputs=(Output("blocks", "P"),),
    rtol=0.0,
    properties=(
        Property("sharing never takes more blocks than caches of their own would", _no_more_than_apart),
        Property("there is room for the prompt's tokens and for those of every answer", _room_for_all),
    ),
    misconceptions=(
        Misconception(
            "nothing_shared",
            "nothing is shared",
            "The full blocks of a prompt are the same for all its answers, and stored once.",
            "Pages",
        ),
        Misconception(
            "unfinished_shared",
            "the prompt's unfinished block is shared too",
            "Each answer writes its first token into that block, and each writes another: it needs a copy.",
            "Pages",
        ),
        Misconception(
            "unfinished_kept",
            "the prompt's unfinished block is counted beside its copies",
            "When all answers but one have copied it, the last one is its only user, and writes into it: there are "
            "as many as answers.",
            "Pages",
        ),
        Misconception(
            "new_block",
            "each answer begins with a new block",
            "It goes on where the prompt ends, in the copy of its unfinished block.",
            "Pages",
        ),
        Misconception(
            "behind_the_copy",
            "an answer's tokens begin in a new block, behind the copy of the prompt's unfinished one",
            "The answer goes on in that copy. Only what no longer fits there goes into new blocks.",
            "Pages",
        ),
        Misconception(
            "rest_only",
            "the copies of the prompt's unfinished block are left out",
            "The rest of the prompt and an answer's own tokens lie in its own blocks one behind the other.",
            "Pages",
        ),
        Misconception(
            "counted_again",
            "the prompt is counted once more for each answer",
            "`lengths` has the prompt in it: take its full blocks off.",
            "Pages",
        ),
        Misconception(
            "lengths_are_own",
            "the prompt is added to `lengths`, which has it in it",
            "`lengths` counts all tokens of a sequence, those of the prompt among them.",
            "Pages",
        ),
        Misconception(
            "own_only",
            "the shared blocks are not counted",
            "They are stored once, not never.",
            "Pages",
        ),
        Misconception(
            "whole_only",
            "unfinished last blocks are not counted",
            "A block that holds one token is taken as a whole. Round up: `(n + b - 1) // b`.",
            "Pages",
        ),
        Misconception(
            "one_more",
            "a sequence that ends with a full block gets another one",
            "A block is taken when its first token comes. Round up: `(n + b - 1) // b`, not `n // b + 1`.",
            "Pages",
        ),
        Misconception(
            "tokens_together",
            "the tokens of all answers are rounded up together",
            "No two answers share an unfinished block. Round up for each, then add.",
            "Pages",
        ),
        Misconception(
            "longest_alone",
            "only the longest answer's blocks are counted",
            "Answers share the full blocks of their prompt and nothing else. What is behind is added up over the "
            "answers.",
            "Pages",
        ),
        Misconception(
            "longest",
            "each answer gets the blocks of the longest",
            "That is what padding takes. In pages each has as many blocks as it fills.",
            "Pages",
        ),
        Misconception(
            "one_answer",
            "only the first answer of each prompt is counted",
            "Each of the A answers has blocks of its own: add them up.",
            "Pages",
        ),
        Misconception(
            "over_prompts",
            "the blocks are added up over the prompts",
            "Axis 0 counts prompts, axis 1 answers. Asked for is a number for each prompt.",
            "Pages",
        ),
        Misconception(
            "tokens",
            "it is the room for tokens, not the number of blocks",
            "Each block has room for b tokens. Asked for are blocks.",
            "Pages",
        ),
    ),
    variants={
        "own_lengths": Variant(
            statement="In this copy `lengths` counts the tokens of the answers alone, without the prompt.",
            argument=lambda name, value: value,
            wrap=_own_lengths,
            titles={"lengths_are_own": "the prompt is added to `lengths` twice"},
            explanations={
                "counted_again": "The blocks of a prompt and its answer together hold the prompt's full blocks too, "
                "which are shared: take them off.",
                "lengths_are_own": "A sequence has the tokens of its answer and those of the prompt, these once.",
            },
        )
    },
)

# --- test_online, a reverse exercise ----------------------------------------------------------------------------


def _tiles(key: Tensor, value: Tensor, tile: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(key.split(tile, 2), value.split(tile, 2), strict=True)


def _running(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    return online_attention(query, key, value, tile)


def _merged(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    """All parts first, then merged in pairs."""
    parts = []
    for k, v in _tiles(key, value, tile):
        scores = query @ k.mT * key.shape[3] ** -0.5
        maximum = scores.amax(-1, keepdim=True)
        shares = (scores - maximum).exp()
        parts.append((maximum, shares.sum(-1, keepdim=True), shares @ v))
    while len(parts) > 1:
        parts = [merge_softmaxes(*parts.pop(0), *parts.pop(0)), *parts]
    return parts[0][2] / parts[0][1]


def _by_log_sums(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    """The output so far is an average at every step."""
    output, so_far = query.new_zeros(*query.shape[:3], value.shape[3]), query.new_full(query.shape[:3], float("-inf"))
    for k, v in _tiles(key, value, tile):
        scores = query @ k.mT / key.shape[3] ** 0.5
        both = torch.logaddexp(so_far, scores.logsumexp(-1))
        output = (so_far - both).exp()[..., None] * output + (scores - both[..., None]).exp() @ v
        so_far = both
    return output


def _two_passes(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    """The largest score of each row first, then the sums."""
    scaled = query * key.shape[3] ** -0.5
    maximum = torch.stack([(scaled @ k.mT).amax(-1) for k in key.split(tile, 2)]).amax(0)[..., None]
    total, weighted = 0.0, 0.0
    for k, v in _tiles(key, value, tile):
        shares = (scaled @ k.mT - maximum).exp()
        total, weighted = total + shares.sum(-1, keepdim=True), weighted + shares @ v
    return weighted / total


def _from_the_end(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    return online_attention(query, key.flip(2), value.flip(2), tile)


def _whole(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def _double(query: Tensor, key: Tensor, value: Tensor, tile: int) -> Tensor:
    return online_attention(query.double(), key.double(), value.double(), tile).to(query.dtype)


def faulty_online(wrong: frozenset[str]) -> Callable:
    def online(query, key, value, tile):
        S, D = key.shape[2:]
        maximum = query.new_full((*query.shape[:3], 1), float("-inf"))
        total, weighted = torch.zeros_like(maximum), query.new_zeros(*query.shape[:3], value.shape[3])
        parts = []
        for start in range(0, S // tile * tile or S if "ragged_dropped" in wrong else S, tile):
            stop = min(start + tile, S)
            if "last_key_lost" in wrong and start and stop - start > 1:
                stop = stop - 1
            if "overlap" in wrong and stop < S:
                stop = stop + 1
            k, v = key[:, :, start:stop], value[:, :, start:stop]
            if "values_of_first" in wrong:
                v = value[:, :, : stop - start]
            scores = query @ k.mT / (1.0 if "not_scaled" in wrong else D**0.5)
            top = scores.amax(-1, keepdim=True)
            larger = torch.maximum(maximum, top)
            if "tile_maximum" in wrong:
                larger = top
            if "first_maximum" in wrong and start:
                larger = maximum
            if "no_maximum" in wrong:
                maximum = larger = torch.zeros_like(top)
            factor = (maximum - larger).exp()
            if "inverted" in wrong and start:
                factor = (larger - maximum).clamp(max=20.0).exp()
            shares = (scores - (top if "tile_not_rescaled" in wrong else larger)).exp()
            if "last_tile" in wrong:
                larger, total, weighted = top, total * 0, weighted * 0
                factor, shares = torch.ones_like(factor), (scores - top).exp()
            total = total * (1.0 if "total_not_rescaled" in wrong else factor) + shares.sum(-1, keepdim=True)
            weighted = weighted * (1.0 if "weighted_not_rescaled" in wrong else factor) + shares @ v
            parts.append(scores.softmax(-1) @ v)
            if "maximum_stays" not in wrong or not start:
                maximum = larger
        return sum(parts) / len(parts) if "tiles_averaged" in wrong else weighted / total

    return online


TEST_ONLINE = ReverseExercise(
    id="execution/test_online",
    defines="test_online",
    title="Write the test: do tiles change anything?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    right={
        "a running maximum": _running,
        "all parts first, merged in pairs": _merged,
        "log-sums, an average at every step": _by_log_sums,
        "two passes: the maxima, then the sums": _two_passes,
        "from the last key to the first": _from_the_end,
        "the fused kernel, whatever the tile": _whole,
        "computed in float64": _double,
    },
    faulty=faulty_online,
    misconceptions=(
        Misconception(
            "maximum_stays",
            "the running maximum is not updated after the first tile",
            "Two tiles do not show it, since nothing comes after the second: give three or more.",
            "Tiles",
        ),
        Misconception(
            "weighted_not_rescaled",
            "the weighted sum is not rescaled when the maximum rises",
            "One tile is right. With several, the keys before the highest score count for too much.",
            "Softmax in parts",
        ),
        Misconception(
            "total_not_rescaled",
            "the total is not rescaled when the maximum rises",
            "One tile is right. With several, the output is too small.",
            "Softmax in parts",
        ),
        Misconception(
            "tile_not_rescaled",
            "the tile's exponentials count from the tile's own maximum",
            "Right as long as every tile rises above those before it. Scores in no order show it.",
            "Tiles",
        ),
        Misconception(
            "last_tile",
            "only the last tile counts",
            "One tile is right; any two show it.",
            "Tiles",
        ),
        Misconception(
            "ragged_dropped",
            "a last, shorter tile is left out",
            "Right wherever the tile divides the number of keys.",
            "Tiles",
        ),
        Misconception(
            "last_key_lost",
            "each tile but the first loses its last key",
            "One tile is right, and so are tiles of one key. Give tiles of two or more.",
            "Tiles",
        ),
        Misconception(
            "overlap",
            "the first key of a tile is read in the tile before it too",
            "It counts twice. One tile is right, and where one key has all the weight it hardly shows.",
            "Tiles",
        ),
        Misconception(
            "values_of_first",
            "each tile's weights meet the first tile's values",
            "The total is right, and constant values would hide it.",
            "Tiles",
        ),
        Misconception(
            "inverted",
            "the factor is upside down",
            "When the maximum rises, the sums so far grow in place of shrinking.",
            "By hand",
        ),
        Misconception(
            "tiles_averaged",
            "the outputs of the tiles are averaged",
            "A tile counts by its total. One tile is right.",
            "Softmax in parts",
        ),
        Misconception(
            "no_maximum",
            "no maximum is subtracted",
            "Right for small scores, in any tiles. From 89 on the exponential is infinite in float32.",
            "Softmax in parts",
        ),
        Misconception(
            "first_maximum",
            "the first tile's maximum serves for all tiles",
            "Right until a later tile lies far above the first: give scores that are hundreds apart.",
            "Tiles",
        ),
        Misconception(
            "tile_maximum",
            "the running maximum is the last tile's, not the largest so far",
            "Right until a later tile lies far below an earlier one: give scores that are hundreds apart.",
            "Tiles",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "The same in all tiles, so comparing tiles with each other does not show it: compare once with attention "
            "as a whole.",
            "Mechanism or execution",
        ),
    ),
)

EXERCISES = (MERGE_SOFTMAXES, ONLINE_ATTENTION, SCORE_GRADIENTS, READ_BLOCKS, BLOCKS_NEEDED, TEST_ONLINE)
