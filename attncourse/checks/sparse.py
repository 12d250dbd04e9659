"""Exercises of chapter 09: two patterns, the reshape and the merge that make sparse attention cheap, and hops."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, FLOAT64, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "09_sparse"


# --- strided_pattern --------------------------------------------------------------------------------------------


def strided_pattern(T: int, S: int, window: int, stride: int) -> Tensor:
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)  # (T, S): how far the key lies behind the query
    near = behind < window
    far = behind % stride == 0
    return (behind >= 0) & (near | far)


def faulty_strided_pattern(wrong: frozenset[str]) -> Callable:
    def strided_pattern(T, S, window, stride):
        if "exchanged" in wrong:
            window, stride = stride, window
        if "square" in wrong:
            S = T
        first = 0 if "top_left" in wrong else S - T
        query, key = torch.arange(first, first + T)[:, None], torch.arange(S)
        behind = key - query if "looks_ahead" in wrong else query - key
        past = behind >= 0
        width = window + ("too_wide" in wrong) - ("too_narrow" in wrong)
        near = (behind.abs() if "not_causal" in wrong else behind) < width
        if wrong & {"negative_slice", "own_key_lost"}:
            begin = query - width + 1
            near = near & (key >= torch.where(begin < 0, begin + S, begin))  # as Python reads a slice
        far = behind % stride == 0
        if "own_key_lost" in wrong:
            far = far & (behind != 0)
        if "from_zero" in wrong:
            far = (key % stride == 0).expand(T, S)
        if "fixed" in wrong or "block_ends" in wrong:
            far = (key % stride == stride - 1).expand(T, S)
        if "fixed" in wrong:
            near = query // stride == key // stride
        elif "blocks" in wrong:
            near = query // window == key // window
        if "no_local" in wrong:
            mask = far
        elif "no_stride" in wrong:
            mask = near
        elif "stride_ahead" in wrong:
            mask = near & past | far
        elif "window_ahead" in wrong:
            mask = (behind.abs() < width) | far & past
        elif "dense" in wrong:
            mask = past
        elif "no_brackets" in wrong:
            mask = behind >= far
        else:
            mask = near & far if "and_for_or" in wrong else near | far
        if not wrong & {"not_causal", "future_open", "stride_ahead", "window_ahead"}:
            mask = mask & past
        return ~mask if "inverted" in wrong else mask

    return strided_pattern


def strided_pattern_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(9000 + seed)

    def script(name: str, T: int, S: int, window: int, stride: int) -> Script:
        return Script(name, (Call({"T": T, "S": S, "window": window, "stride": stride}),))

    yield script("seven tokens", 7, 7, 2, 3)
    yield script("three queries, eight keys", 3, 8, 2, 3)
    yield script("nine queries, eleven keys", 9, 11, 3, 4)
    yield script("a stride smaller than the window", 8, 9, 4, 3)
    yield script("all sizes equal", 4, 4, 4, 4)
    T, past, window, more = (int(n) for n in torch.randint(2, 6, (4,), generator=inputs.generator))
    yield script("a longer past", T + 6, T + 6 + past, window, window + more)
    yield script("one query", 1, 10, 3, 4)


def _sees_itself(call: Call, result: Result) -> bool:
    mask = result.outputs[0]
    return bool(mask.diagonal(mask.shape[1] - mask.shape[0]).all())


def _moves_with_the_query(call: Call, result: Result) -> bool:
    mask = result.outputs[0]
    return torch.equal(mask[1:, 1:], mask[:-1, :-1])


def _near_ones_seen(call: Call, result: Result) -> bool:
    mask, window = result.outputs[0], call.arguments["window"]
    newest = mask.shape[1] - mask.shape[0]
    return all(mask.diagonal(newest - back).all() for back in range(min(window, mask.shape[1])))


def _far_ones_seen(call: Call, result: Result) -> bool:
    mask, stride = result.outputs[0], call.arguments["stride"]
    newest = mask.shape[1] - mask.shape[0]
    return all(mask.diagonal(newest - back).all() for back in range(0, mask.shape[1], stride))


def _nothing_later(call: Call, result: Result) -> bool:
    mask = result.outputs[0]
    return not mask.triu(mask.shape[1] - mask.shape[0] + 1).any()


STRIDED_PATTERN = Exercise(
    id="sparse/strided_pattern",
    defines="strided_pattern",
    title="Mark the strided pattern",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=strided_pattern_scripts,
    reference=strided_pattern,
    faulty=faulty_strided_pattern,
    outputs=(Output("mask", "T S"),),
    properties=(
        Property("no query sees a later key", _nothing_later),
        Property("every query sees itself", _sees_itself),
        Property("every query sees its own key, and those just before it that the window reaches", _near_ones_seen),
        Property("every query sees the keys `stride`, 2·`stride`, … places before it", _far_ones_seen),
        Property("the pattern moves with the query: each row is the one above, one place on", _moves_with_the_query),
    ),
    misconceptions=(
        Misconception(
            "from_zero",
            "the stride is counted from position 0",
            "Here it is counted back from each query: (query - key) % stride == 0. With `key % stride == 0` all "
            "queries see the same far keys.",
            "By hand",
        ),
        Misconception(
            "fixed",
            "this is the fixed pattern",
            "The fixed pattern sees its own block of `stride` tokens, and the last token of each block before it. The "
            "strided one has a window, and every stride-th key counted back from the query.",
            "Who sees whom",
        ),
        Misconception(
            "no_local",
            "the window is missing",
            "Near the query every key is visible, not only every stride-th. Without the window a token does not see "
            "the one just before it.",
            "By hand",
        ),
        Misconception(
            "no_stride",
            "only the window is there",
            "The keys `stride`, 2·`stride`, … places back are visible too, all the way to the start.",
            "By hand",
        ),
        Misconception(
            "and_for_or",
            "a key must be in the window and on the stride",
            "One of the two is enough: the pattern is their union, `|`. Only the cut at the query needs `&`.",
            "By hand",
        ),
        Misconception(
            "not_causal",
            "it looks ahead as far as it looks back",
            "The pattern is causal: a key after the query is never visible, neither near nor on the stride.",
            "What follows the paper",
        ),
        Misconception(
            "future_open",
            "every later key is visible",
            "For a later key query - key is negative, and so smaller than any window. Cut at the query as well: "
            "query - key >= 0.",
            "What follows the paper",
        ),
        Misconception(
            "stride_ahead",
            "the stride goes on after the query",
            "The cut at the query must hold for both parts. `&` binds tighter than `|`: put brackets round "
            "`near | far`.",
            "What follows the paper",
        ),
        Misconception(
            "window_ahead",
            "the window reaches ahead as far as back",
            "The cut at the query must hold for both parts. `&` binds tighter than `|`: put brackets round "
            "`near | far`.",
            "What follows the paper",
        ),
        Misconception(
            "dense",
            "every earlier key is visible",
            "That is plain causal attention. It comes of a missing bracket too: Python reads `behind >= 0 & …` as "
            "`behind >= (0 & …)`, so put brackets round every comparison.",
            "Who sees whom",
        ),
        Misconception(
            "no_brackets",
            "a comparison has no brackets",
            "`a >= 0 & b` means `a >= (0 & b)`. Put each comparison in brackets.",
            "What follows the paper",
        ),
        Misconception(
            "negative_slice",
            "a slice begins below 0",
            "Python counts it from the end, and the windows of the first rows stay empty. Begin at "
            "`max(0, p - window + 1)`.",
            "What follows the paper",
        ),
        Misconception(
            "own_key_lost",
            "a slice begins below 0, and the first queries do not even see themselves",
            "Python counts it from the end, and the windows of the first rows stay empty, their own key included. "
            "Begin at `max(0, p - window + 1)`.",
            "What follows the paper",
        ),
        Misconception(
            "too_wide",
            "the window is one key too wide",
            "`window` counts the query's own token: distances 0 … window - 1, so `< window`.",
            "What follows the paper",
        ),
        Misconception(
            "too_narrow",
            "the window is one key too narrow",
            "`window` counts the query's own token and the window - 1 before it: `< window`.",
            "What follows the paper",
        ),
        Misconception(
            "blocks",
            "the window is a block",
            "Tokens of the same block of `window` see each other here, so a block's first token has no window at all. "
            "A window moves with the query.",
            "Who sees whom",
        ),
        Misconception(
            "block_ends",
            "the far keys are the last ones of blocks",
            "These are the summaries of the fixed pattern, the same for all queries. In the strided pattern each query "
            "counts back from itself.",
            "Who sees whom",
        ),
        Misconception(
            "exchanged",
            "window and stride are exchanged",
            "The first number, `window`, says how many keys are near; the second, `stride`, which of the others are "
            "seen.",
            "By hand",
        ),
        Misconception(
            "top_left",
            "where T < S, the first query stands at position 0",
            "The queries are the last T of S positions: query i stands at S - T + i, and the last one at the last key.",
            "What follows the paper",
        ),
        Misconception(
            "square",
            "the mask is (T, T)",
            "There are S keys, those before the first query included: one row for each query, one column for each key.",
            "The code",
        ),
        Misconception(
            "looks_ahead",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: count query - key, from 0 up.",
            "Who sees whom",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "What follows the paper",
        ),
    ),
    variants={
        "self_not_counted": Variant(
            statement="In this copy `window` does not count the token itself: it is the number of keys just before it "
            "that are visible, as in FlashAttention.",
            argument=lambda name, value: value,
            wrap=lambda implementation: lambda T, S, window, stride: implementation(T, S, window + 1, stride),
            explanations={
                "negative_slice": "Python counts it from the end, and the windows of the first rows stay empty. Begin "
                "at `max(0, p - window)`.",
                "own_key_lost": "Python counts it from the end, and the windows of the first rows stay empty, their "
                "own key included. Begin at `max(0, p - window)`.",
                "too_wide": "`window` counts the keys before the query's own: distances 0 … window, so `<= window`.",
                "too_narrow": "`window` counts the keys before the query's own, which is visible too: `<= window`. In "
                "the chapter it counts the query's own.",
                "blocks": "Tokens of the same block see each other here, so a block's first token has no window at "
                "all. A window moves with the query.",
            },
        )
    },
)

# --- stride_classes ---------------------------------------------------------------------------------------------


def stride_classes(x: Tensor, stride: int) -> Tensor:
    B, H, T, D = x.shape
    missing = -T % stride
    whole = torch.cat([x, x.new_zeros(B, H, missing, D)], 2)  # (B, H, T + missing, D)
    return whole.reshape(B, H, -1, stride, D).transpose(2, 3)  # (B, H, stride, n, D)


def faulty_stride_classes(wrong: frozenset[str]) -> Callable:
    def stride_classes(x, stride):
        B, H, T, D = x.shape
        missing = stride - T % stride if "always_filled" in wrong else (stride - T % stride) % stride
        fill = torch.zeros_like(x[:, :, :1]).expand(B, H, missing, D)
        if "last_repeated" in wrong:
            fill = x[:, :, -1:].expand(B, H, missing, D)
        elif "wraps_around" in wrong:
            fill = x[:, :, :missing]
        if "tail_dropped" in wrong:
            x = x[:, :, : T - T % stride]
        else:
            x = torch.cat([fill, x] if "filled_in_front" in wrong else [x, fill], 2)
        n = x.shape[2] // stride
        if "first_only" in wrong:
            return x[:, :, ::stride]
        classes = x.reshape(B, H, stride, n, D) if "blocks" in wrong else x.unflatten(2, (n, stride)).movedim(3, 2)
        if "not_transposed" in wrong:
            classes = classes.movedim(2, 3)
        if "last_two_swapped" in wrong:
            classes = classes.mT
        if "classes_first" in wrong:
            return classes.movedim(2, 0)
        return classes.flatten(1, 2) if "folded" in wrong else classes

    return stride_classes


def stride_classes_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(9100 + seed)

    def arguments(B: int, H: int, T: int, D: int, stride: int) -> dict:
        return {"x": inputs.normal(B, H, T, D), "stride": stride}

    yield one_call("six tokens in two classes", arguments(1, 1, 6, 2, 2))
    yield one_call("seven tokens in three classes", arguments(1, 2, 7, 2, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 11, 5, 4))
    yield one_call("a whole number of classes", arguments(3, 2, 12, 5, 3))
    yield one_call("all axes of the result equal", arguments(2, 2, 4, 2, 2))
    yield one_call("as many classes as tokens", arguments(3, 2, 5, 4, 5))
    loose = arguments(2, 3, 7, 4, 3)
    yield one_call("non-contiguous", {**loose, "x": strided(loose["x"])}, "non-contiguous")
    given = arguments(2, 2, 5, 3, 2)
    yield one_call("float64", {**given, "x": given["x"].double()}, "float64")


def _first_tokens_first(call: Call, result: Result) -> bool:
    x, stride = call.arguments["x"], call.arguments["stride"]
    return torch.allclose(result.outputs[0][:, :, :, 0], x[:, :, :stride], atol=1e-5)


def _nothing_added(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[0].sum((2, 3)), call.arguments["x"].sum(2), atol=1e-4)


STRIDE_CLASSES = Exercise(
    id="sparse/stride_classes",
    defines="stride_classes",
    title="Sort tokens into residue classes",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=stride_classes_scripts,
    reference=stride_classes,
    faulty=faulty_stride_classes,
    outputs=(Output("classes", "B H stride n D"),),
    properties=(
        Property("place 0 of class c holds token c", _first_tokens_first),
        Property("every token is there once, beside zeros: the sum over all places is the sum of x", _nothing_added),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "blocks",
            "the tokens are cut into blocks of neighbours",
            "A reshape to (stride, n) keeps neighbours together: class 0 would hold tokens 0, 1, 2 … Class c holds "
            "tokens c, c + stride, c + 2·stride …",
            "Residue classes",
        ),
        Misconception(
            "not_transposed",
            "the classes are not moved in front of the places",
            "After the reshape the axes are (n, stride): row m holds tokens m·stride … m·stride + stride - 1, one of "
            "each class. Exchange these two axes.",
            "Residue classes",
        ),
        Misconception(
            "tail_dropped",
            "the tokens that fill no whole row are dropped",
            "With T = 7 and stride = 3, token 6 is lost. Fill up to the next multiple of stride instead.",
            "Residue classes",
        ),
        Misconception(
            "always_filled",
            "zeros are added where none are missing",
            "If stride divides T, nothing is missing: `-T % stride` is 0, and stride - T % stride is a whole stride.",
            "Residue classes",
        ),
        Misconception(
            "filled_in_front",
            "the zeros stand in front of the first token",
            "Then token 0 is no longer the first of class 0. Here the zeros come after the last token.",
            "Residue classes",
        ),
        Misconception(
            "wraps_around",
            "the empty places hold the first tokens again",
            "They hold zeros: a token that stands in two places would be a key twice.",
            "Residue classes",
        ),
        Misconception(
            "last_repeated",
            "the empty places hold the last token again",
            "They hold zeros: a token that stands in several places would be a key several times.",
            "Residue classes",
        ),
        Misconception(
            "first_only",
            "only class 0 is there",
            "`x[:, :, ::stride]` is one class of `stride`. Every token belongs to a class.",
            "Residue classes",
        ),
        Misconception(
            "classes_first",
            "the classes are the first axis",
            "`torch.stack` puts its new axis in front, unless `dim` says where: the classes stand after the heads.",
            "Residue classes",
        ),
        Misconception(
            "folded",
            "heads and classes are one axis",
            "The attention function does not mind, but asked for are two axes: (B, H, stride, n, D).",
            "Residue classes",
        ),
        Misconception(
            "last_two_swapped",
            "the last two axes are exchanged",
            "A token's D numbers stay together as the last axis. What moves in front of the places are the classes.",
            "Residue classes",
        ),
    ),
)

# --- merge_parts ------------------------------------------------------------------------------------------------


def merge_parts(outputs: Tensor, log_sums: Tensor) -> Tensor:
    largest = log_sums.amax(0).clamp(min=torch.finfo(log_sums.dtype).min)  # (B, H, T), finite: -inf - -inf is NaN
    shares = torch.exp(log_sums - largest)  # (P, B, H, T)
    total = shares.sum(0).clamp(min=1)  # the largest part adds 1, so the sum is less only where all are empty
    return (shares[..., None] * outputs).sum(0) / total[..., None]  # (B, H, T, D)


def faulty_merge_parts(wrong: frozenset[str]) -> Callable:
    def merge_parts(outputs, log_sums):
        empty = log_sums == float("-inf")  # (P, B, H, T)
        if "empty_counts" in wrong:
            log_sums = log_sums.masked_fill(empty, 0.0)
        if "averaged" in wrong:
            weights = torch.full_like(log_sums, 1 / len(log_sums))
        elif "averaged_where_not_empty" in wrong:
            weights = (~empty).to(log_sums) / (~empty).sum(0).clamp(min=1)
        elif "summed" in wrong:
            weights = torch.ones_like(log_sums)
        elif "logs_as_weights" in wrong:
            weights = log_sums / log_sums.sum(0)
        elif "over_queries" in wrong:
            weights = log_sums.softmax(-1)
        elif "over_one" in wrong:
            weights = log_sums[..., None].softmax(-1).squeeze(-1)
        elif "over_all" in wrong:
            totals = (log_sums if "plain_exp" in wrong else log_sums - log_sums.amax()).exp()
            weights = totals / totals.sum()
        elif "not_divided" in wrong:
            weights = log_sums.exp()
        elif "largest_only" in wrong:
            weights = torch.nn.functional.one_hot(log_sums.argmax(0), len(log_sums)).movedim(-1, 0).to(log_sums)
        else:
            if "low_raised" in wrong:
                log_sums = log_sums.clamp(min=-20.0)
            elif "empty_low" in wrong:
                log_sums = log_sums.masked_fill(empty, -50.0)
            if "plain_exp" in wrong:
                totals = log_sums.exp()
            else:
                totals = (log_sums - (log_sums.amax() if "one_maximum" in wrong else log_sums.amax(0))).exp()
            weights = totals if "relative_to_largest" in wrong else totals / totals.sum(0)
            if "nan_where_empty" not in wrong:
                weights = weights.masked_fill(empty.all(0) | (totals.sum(0) == 0), 0.0)
        if "no_last_axis" in wrong:
            return (weights * outputs).sum(0)
        return torch.einsum("pbht,pbhtd->bhtd", weights, outputs)

    return merge_parts


def merge_parts_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(9200 + seed)

    def arguments(P: int, B: int, H: int, T: int, D: int, spread: float = 1.5) -> dict[str, Tensor]:
        outputs, log_sums = inputs.normal(P, B, H, T, D), inputs.normal(P, B, H, T, spread=spread) + 0.5
        return {"outputs": outputs, "log_sums": log_sums}

    def with_empty(given: dict[str, Tensor], *places: tuple[int, int]) -> dict[str, Tensor]:
        """The same, without keys for these parts and queries."""
        for part, query in places:
            given["log_sums"][part, :, :, query] = float("-inf")
            given["outputs"][part, :, :, query] = 0.0
        return given

    def with_logs(given: dict[str, Tensor], *logs: tuple[float, ...]) -> dict[str, Tensor]:
        """The same, with these log-sums of the parts, one tuple for each query."""
        given["log_sums"] = torch.tensor(logs).T[:, None, None].expand_as(given["log_sums"]).contiguous()
        return given

    yield one_call("two parts, three queries", arguments(2, 1, 1, 3, 2))
    yield one_call("three parts, all sizes different", arguments(3, 2, 5, 4, 6))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield one_call("two parts, some of them empty", with_empty(arguments(2, 1, 2, 4, 3), (0, 1), (1, 2)))
    yield one_call("three parts, some of them empty", with_empty(arguments(3, 2, 1, 5, 2), (0, 0), (1, 2), (2, 2)))
    given = with_empty(arguments(2, 1, 3, 4, 2), (0, 1), (1, 1), (1, 3))
    yield one_call("a query for which all parts are empty", given, gradients=("log_sums",))
    low = with_logs(arguments(2, 2, 1, 2, 3), (0.0, 1.0), (-200.0, -202.0))
    yield one_call("two queries, one with very low log-sums", low)
    nothing = float("-inf")
    low = with_logs(arguments(2, 1, 2, 3, 4), (-200.0, nothing), (nothing, nothing), (-201.0, -199.0))
    low = with_empty(low, (1, 0), (0, 1), (1, 1))
    yield one_call("very low log-sums and empty parts", low, gradients=("log_sums",))
    yield one_call("one query", arguments(4, 3, 5, 1, 7))
    loose = {name: strided(tensor) for name, tensor in arguments(3, 2, 3, 4, 5).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {name: t.double() for name, t in arguments(2, 2, 3, 4, 5).items()}, "float64")
    large = arguments(3, 1, 2, 5, 4, spread=3.0)
    large["log_sums"] = large["log_sums"] + 200
    yield one_call("log-sums of two hundred", large, "extreme")


def _between_the_parts(call: Call, result: Result) -> bool:
    outputs, empty = call.arguments["outputs"], (call.arguments["log_sums"] == float("-inf"))[..., None]
    low = outputs.masked_fill(empty, float("inf")).amin(0)
    high = outputs.masked_fill(empty, float("-inf")).amax(0)
    inside = (result.outputs[0] >= low - 1e-4) & (result.outputs[0] <= high + 1e-4)
    return bool((inside | empty.all(0)).all())


def _nearer_to_the_larger(call: Call, result: Result) -> bool:
    outputs, log_sums = call.arguments["outputs"], call.arguments["log_sums"]
    if len(outputs) != 2:
        return True
    first, second = (result.outputs[0] - outputs).norm(dim=-1)
    nearer = torch.where(log_sums[0] > log_sums[1], first <= second + 1e-4, second <= first + 1e-4)
    return bool((nearer | (log_sums == float("-inf")).all(0)).all())


MERGE_PARTS = Exercise(
    id="sparse/merge_parts",
    defines="merge_parts",
    title="Merge attention over disjoint sets of keys",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=merge_parts_scripts,
    reference=merge_parts,
    faulty=faulty_merge_parts,
    outputs=(Output("output", "B H T D"),),
    properties=(
        Property("the merged output is an average: it lies between the outputs of its parts", _between_the_parts),
        Property("of two parts, the one with the larger log-sum counts for more", _nearer_to_the_larger),
    ),
    habits={
        "non-contiguous": COMMON_HABITS["non-contiguous"],
        "float64": FLOAT64,
        "extreme": "Large log-sums overflow, low ones vanish: in float32 `exp(89)` is infinite, and `exp(-104)` is 0. "
        "Subtract the largest of the parts' log-sums before `exp`; the shares stay the same.",
    },
    misconceptions=(
        Misconception(
            "averaged",
            "the parts are averaged",
            "A part counts by the total of its exponentials, exp(log_sum), not by its being there: one key with a high "
            "score outweighs many with low ones.",
            "Parts that add up",
        ),
        Misconception(
            "averaged_where_not_empty",
            "the parts that have keys are averaged",
            "A part counts by the total of its exponentials, exp(log_sum), not by its being there.",
            "Parts that add up",
        ),
        Misconception(
            "summed",
            "the outputs are added",
            "Each is an average already, divided by the total of its own part. Multiply each by its share of the whole "
            "total first.",
            "Parts that add up",
        ),
        Misconception(
            "logs_as_weights",
            "the log-sums are used as shares",
            "They are logarithms, and may be negative. The totals are exp(log_sums), and a share is one total divided "
            "by their sum: a softmax over the parts.",
            "Parts that add up",
        ),
        Misconception(
            "over_queries",
            "the shares sum to 1 over the queries",
            "`softmax(-1)` runs over T. For each query the parts share: the first axis.",
            "Parts that add up",
        ),
        Misconception(
            "over_one",
            "every share is 1",
            "`softmax(-1)` of (P, B, H, T, 1) runs over an axis of size 1, and a share of one thing is 1. The parts "
            "share: axis 0.",
            "Parts that add up",
        ),
        Misconception(
            "over_all",
            "the shares sum to 1 over everything",
            "A sum without an axis runs over parts, batch, heads and queries. For each query the parts share: axis 0.",
            "Parts that add up",
        ),
        Misconception(
            "not_divided",
            "the weighted outputs are not divided by the total",
            "exp(log_sum) turns each part's average back into a sum. Divide by the sum of all totals to have an "
            "average again.",
            "Parts that add up",
        ),
        Misconception(
            "relative_to_largest",
            "each part is weighted against the largest, and the sum not divided",
            "Subtracting the largest log-sum only keeps `exp` from overflowing. The sum of the weights must still be "
            "divided away.",
            "Parts that add up",
        ),
        Misconception(
            "largest_only",
            "only the part with the largest log-sum counts",
            "That is a hard choice. The other parts have keys too, and each has its share.",
            "Parts that add up",
        ),
        Misconception(
            "empty_counts",
            "an empty part counts as if its log-sum were 0",
            "A part without keys has the total 0, and log 0 is -inf: its share is exp(-inf) = 0. A log-sum of 0 is the "
            "total 1.",
            "Parts that add up",
        ),
        Misconception(
            "nan_where_empty",
            "where all parts are empty it gives NaN",
            "A softmax of nothing but -inf is 0/0, and -inf - -inf is NaN too. A query with no key at all gets zeros.",
            "Parts that add up",
        ),
        Misconception(
            "one_maximum",
            "one maximum is subtracted for all queries",
            "A query far below it gets exp(-200) = 0 in every part, and loses its keys. Subtract each query's own "
            "largest: `log_sums.amax(0)`.",
            "Parts that add up",
        ),
        Misconception(
            "plain_exp",
            "nothing is subtracted before `exp`",
            "Large log-sums overflow, low ones vanish: in float32 `exp(89)` is infinite, and `exp(-104)` is 0. "
            "Subtract each query's own largest, `log_sums.amax(0)`: the shares stay the same.",
            "Parts that add up",
        ),
        Misconception(
            "low_raised",
            "very low log-sums are raised",
            "The shares of two parts at -200 and -202 are 0.88 and 0.12. Only -inf is an empty part.",
            "Parts that add up",
        ),
        Misconception(
            "empty_low",
            "an empty part counts as if its log-sum were a low number",
            "A number such as -50 is not low enough: beside a part at -200 it is the larger one. Fill with the lowest "
            "number there is, `torch.finfo(log_sums.dtype).min`.",
            "Parts that add up",
        ),
        Misconception(
            "no_last_axis",
            "the shares have no axis for the D numbers",
            "Shapes line up on the right: (P, B, H, T) beside (P, B, H, T, D) takes T for D. It crashes, unless all "
            "are equal, and then it is silently wrong. `shares[..., None]` is (P, B, H, T, 1).",
            "Parts that add up",
        ),
    ),
)

# --- global_pattern ---------------------------------------------------------------------------------------------


def global_pattern(is_global: Tensor, window: int) -> Tensor:
    place = torch.arange(is_global.shape[1])
    near = (place[:, None] - place).abs() < window  # (T, T)
    return near | is_global[:, :, None] | is_global[:, None, :]  # (B, T, T)


def faulty_global_pattern(wrong: frozenset[str]) -> Callable:
    def global_pattern(is_global, window):
        B, T = is_global.shape
        apart = torch.arange(T)[:, None] - torch.arange(T)[None]
        width = window + ("too_wide" in wrong) - ("too_narrow" in wrong)
        if "half_window" in wrong:
            width = window // 2 + 1
        near = (apart if wrong & {"window_behind", "no_absolute"} else apart.abs()) < width
        if "window_behind" in wrong:
            near = near & (apart >= 0)
        if "of_all_sentences" in wrong:
            is_global = is_global.any(0).expand(B, T)
        elif "first_sentence" in wrong:
            is_global = is_global[:1].expand(B, T)
        if "no_query_axis" in wrong:
            sees, seen = is_global.mT, is_global  # fits where B is 1 or T
        else:
            sees, seen = is_global[:, :, None], is_global[:, None]
        if "seen_only" in wrong:
            glob = seen
        elif "sees_only" in wrong:
            glob = sees
        else:
            glob = sees & seen if "both_needed" in wrong else sees | seen
        if "no_global" in wrong:
            mask = near.expand(B, T, T)
        elif "no_window" in wrong:
            mask = glob.expand(B, T, T)
        else:
            mask = near & glob if "and_for_or" in wrong else near | glob
        if "causal" in wrong:
            mask = mask & (apart >= 0)
        return ~mask if "inverted" in wrong else mask

    return global_pattern


def global_pattern_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(9300 + seed)

    def script(name: str, window: int, T: int, *tokens: tuple[int, ...]) -> Script:
        """A batch of sentences, each with these tokens global."""
        is_global = torch.zeros(len(tokens), T, dtype=torch.bool)
        for row, places in zip(is_global, tokens, strict=True):
            row[list(places)] = True
        return one_call(name, {"is_global": is_global, "window": window})

    yield script("six tokens, the second global", 2, 6, (1,))
    yield script("two sentences, each with its own", 3, 8, (0,), (2, 6))
    yield script("three sentences, one without", 2, 7, (4,), (), (0, 5))
    yield script("a wider window", 4, 11, (9,), (3,))
    yield script("as many sentences as tokens", 2, 5, (0,), (3,), (), (1, 2), (4,))
    drawn = [tuple(torch.randperm(12, generator=inputs.generator)[:n].tolist()) for n in (1, 2, 3)]
    yield script("three sentences, drawn", 3, 12, *drawn)


def _symmetric(call: Call, result: Result) -> bool:
    return torch.equal(result.outputs[0], result.outputs[0].mT)


def _neighbours_see_each_other(call: Call, result: Result) -> bool:
    mask = result.outputs[0]
    return bool(mask.diagonal(1, 1, 2).all() and mask.diagonal(-1, 1, 2).all())


def _a_global_token_sees_all(call: Call, result: Result) -> bool:
    return bool(result.outputs[0][call.arguments["is_global"]].all())


GLOBAL_PATTERN = Exercise(
    id="sparse/global_pattern",
    defines="global_pattern",
    title="Mark Longformer's pattern",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=global_pattern_scripts,
    reference=global_pattern,
    faulty=faulty_global_pattern,
    outputs=(Output("mask", "B T T"),),
    properties=(
        Property("a global token sees every token of its sentence", _a_global_token_sees_all),
        Property("it is symmetric: who is seen sees back", _symmetric),
        Property("tokens that stand side by side see each other", _neighbours_see_each_other),
    ),
    misconceptions=(
        Misconception(
            "seen_only",
            "global tokens are seen by all, but do not see all",
            "Global attention goes both ways: the row of a global token is full as well as its column. `is_global[:, "
            ":, None]` is the part that is missing.",
            "Longformer",
        ),
        Misconception(
            "sees_only",
            "global tokens see all, but are not seen by all",
            "Global attention goes both ways: the column of a global token is full as well as its row. `is_global[:, "
            "None]` is the part that is missing.",
            "Longformer",
        ),
        Misconception(
            "both_needed",
            "global tokens see only each other",
            "One of the two, query or key, has to be global: `|`, not `&`.",
            "Longformer",
        ),
        Misconception(
            "no_global",
            "there are no global tokens",
            "This is the window alone. The tokens where is_global is True see all and are seen by all.",
            "Longformer",
        ),
        Misconception(
            "no_window",
            "the window is missing",
            "Tokens that are not global see their neighbours too: |i - j| < window.",
            "Longformer",
        ),
        Misconception(
            "and_for_or",
            "a pair must be near and global",
            "One of the two is enough: the pattern is the union of window and global tokens.",
            "Longformer",
        ),
        Misconception(
            "causal",
            "nothing later is seen",
            "Longformer's pattern is not causal: an encoder reads the whole text, in both directions.",
            "Longformer",
        ),
        Misconception(
            "window_behind",
            "the window looks back only",
            "It reaches as far ahead as back: |i - j| < window, with the absolute value.",
            "Longformer",
        ),
        Misconception(
            "no_absolute",
            "every later token counts as near",
            "For a later token i - j is negative, and so smaller than any window. The distance has no sign: take the "
            "absolute value.",
            "Longformer",
        ),
        Misconception(
            "half_window",
            "half of the window lies on each side",
            "Longformer's paper counts so: |i - j| <= w/2. In this course |i - j| < window, so that `window` counts "
            "the token itself and what lies on one side; w = 2·(window - 1).",
            "What follows the paper",
        ),
        Misconception(
            "too_wide",
            "the window is one token too wide on each side",
            "`window` counts the token itself: distances 0 … window - 1, so `< window`.",
            "What follows the paper",
        ),
        Misconception(
            "too_narrow",
            "the window is one token too narrow on each side",
            "`window` counts the token itself and the window - 1 on each side of it: `< window`.",
            "What follows the paper",
        ),
        Misconception(
            "of_all_sentences",
            "a token that is global in one sentence is global in all",
            "Each sentence has its own global tokens, its own row of is_global. Keep the batch axis; `nonzero()[:, 1]` "
            "loses it.",
            "Longformer",
        ),
        Misconception(
            "first_sentence",
            "all sentences use the first one's global tokens",
            "Keep the batch axis: `is_global[:, :, None]`, not `is_global[0]`.",
            "Longformer",
        ),
        Misconception(
            "no_query_axis",
            "is_global gets no axis for the queries or keys",
            "Shapes line up on the right: (B, T) beside (T, T) takes the batch for queries, and fits only where B is 1 "
            "or T. `is_global[:, :, None]` is (B, T, 1), `is_global[:, None]` is (B, 1, T).",
            "Longformer",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend.",
            "Who sees whom",
        ),
    ),
    variants={
        "paper": Variant(
            statement="In this copy `window` is Longformer's, an even number: each token sees window / 2 tokens on "
            "each side of it, |i - j| <= window / 2.",
            argument=lambda name, value: 2 * (value - 1) if name == "window" else value,
            wrap=lambda implementation: lambda is_global, window: implementation(is_global, window // 2 + 1),
            titles={"half_window": "half of the window is halved again"},
            explanations={
                "no_window": "Tokens that are not global see their neighbours too: |i - j| <= window / 2.",
                "window_behind": "It reaches as far ahead as back: |i - j| <= window / 2, with the absolute value.",
                "half_window": "window / 2 tokens lie on each side: |i - j| <= window / 2.",
                "too_wide": "`window` counts the tokens on both sides, and not the token itself: distances 0 … window "
                "/ 2.",
                "too_narrow": "`window` counts the tokens on both sides, and not the token itself: distances 0 … "
                "window / 2, so `<= window // 2`.",
            },
        )
    },
)

# --- count_hops -------------------------------------------------------------------------------------------------


def count_hops(mask: Tensor) -> Tensor:
    T = len(mask)
    reached = torch.eye(T, dtype=torch.bool)  # what each token depends on: at first itself
    hops = torch.full((T, T), -1).masked_fill(reached, 0)
    for layer in range(1, T):  # the longest way without a circle has T - 1 steps
        wider = reached | (mask.float() @ reached.float() > 0)  # i sees k, and k depends on j
        hops[wider & ~reached] = layer
        reached = wider
    return hops


def faulty_count_hops(wrong: frozenset[str]) -> Callable:
    def count_hops(mask):
        T = len(mask)
        if "transposed" in wrong:
            mask = mask.T
        if "both_ways" in wrong:
            mask = mask | mask.T
        itself = torch.eye(T, dtype=torch.bool)
        hops = torch.where(itself, 0, -1)
        reached, layers = itself, range(1, T)
        if "from_mask" in wrong:
            reached, hops = mask, torch.where(mask, 0, -1)
        elif "not_zero_for_itself" in wrong:
            reached, hops, layers = mask, torch.where(mask, 1, -1), range(2, T)
        if "one_layer" in wrong:
            layers = range(layers.start, 2)
        elif "last_layer_missed" in wrong:
            layers = range(layers.start, T - 1)
        elif "fixed_number" in wrong:
            layers = range(layers.start, min(T, 10))
        for layer in layers:
            if "within_a_layer" in wrong:
                wider = reached.clone()
                for i in range(T):
                    wider[i] |= wider[mask[i]].any(0)
            elif "doubled" in wrong:
                step = mask | itself if layer == 1 else reached
                wider = step.float() @ step.float() > 0 if layer > 1 else step
            else:
                wider = (mask[:, :, None] & reached[None]).any(1) | reached
            hops = torch.where(wider if "overwritten" in wrong else wider & ~reached, layer, hops)
            reached = wider
        if "one_for_itself" in wrong:
            hops = torch.where(itself, 1, hops)
        if "between" in wrong:
            hops = torch.where(hops > 0, hops - 1, hops)
        if "never_is_zero" in wrong:
            hops = hops.clamp(min=0)
        elif "never_is_T" in wrong:
            hops = torch.where(hops < 0, T, hops)
        return hops

    return count_hops


def count_hops_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(9400 + seed)

    def script(name: str, mask: Tensor) -> Script:
        return one_call(name, {"mask": mask})

    def edges(T: int, *seen: tuple[int, int]) -> Tensor:
        mask = torch.eye(T, dtype=torch.bool)
        for i, j in seen:
            mask[i, j] = True
        return mask

    def drawn(T: int, n: int) -> Tensor:
        """n pairs drawn at random; no token sees itself, and the last one is seen by nobody."""
        mask = torch.zeros(T * T, dtype=torch.bool)
        mask[torch.randperm(T * T, generator=inputs.generator)[:n]] = True
        mask = mask.view(T, T) & ~torch.eye(T, dtype=torch.bool)
        mask[:, -1] = False
        return mask

    yield script("three tokens, each sees itself and the one before", edges(3, (1, 0), (2, 1)))
    yield script("five tokens, two apart from the rest", edges(5, (0, 1), (1, 4), (3, 2)))
    yield script("each sees the next one, not itself", torch.ones(7, 7).triu(1).tril(1).bool())
    behind = torch.arange(9)[:, None] - torch.arange(9)
    yield script("a strided pattern", (behind >= 0) & ((behind < 2) | (behind % 4 == 0)))
    yield script("pairs drawn at random", drawn(8, 14))
    yield script("more pairs drawn at random", drawn(10, 16))
    yield script("a chain of 13, each sees the one before", torch.ones(13, 13).tril(-1).triu(-1).bool())


def _one_hop_where_seen(call: Call, result: Result) -> bool:
    mask = call.arguments["mask"]
    return torch.equal(result.outputs[0] == 1, mask & ~torch.eye(len(mask), dtype=torch.bool))


def _never_only_without_a_way(call: Call, result: Result) -> bool:
    mask, hops = call.arguments["mask"], result.outputs[0]
    reached = torch.eye(len(mask), dtype=torch.bool) | mask
    for _ in mask:
        reached = reached.float() @ reached.float() > 0
    return not (reached & (hops < 0)).any()


def _one_more_than_what_it_sees(call: Call, result: Result) -> bool:
    mask, hops = call.arguments["mask"], result.outputs[0]
    hops = torch.where(hops < 0, 10 * len(mask), hops)
    through = torch.where(mask[:, :, None], hops + 1, 20 * len(mask)).amin(1)  # the best of the tokens that i sees
    return bool((hops <= through).all())


COUNT_HOPS = Exercise(
    id="sparse/count_hops",
    defines="count_hops",
    title="Count the layers between two tokens",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=3,
    scripts=count_hops_scripts,
    reference=count_hops,
    faulty=faulty_count_hops,
    outputs=(Output("hops", "T T"),),
    properties=(
        Property("it is 0 for a token and itself", lambda call, result: not result.outputs[0].diag().any()),
        Property("it is 1 for the other tokens that a token sees, and only there", _one_hop_where_seen),
        Property("it is -1 only if no way leads from i to j, not even one of T - 1 steps", _never_only_without_a_way),
        Property("a token needs at most one layer more than any token that it sees", _one_more_than_what_it_sees),
    ),
    misconceptions=(
        Misconception(
            "transposed",
            "it counts the layers until j depends on i",
            "The row is the query: mask[i, j] says that i sees j, and then i depends on j after one layer.",
            "How many hops",
        ),
        Misconception(
            "both_ways",
            "every pair is taken to see each other",
            "Seeing goes one way: that i sees j does not make j depend on i. A causal pattern never looks ahead.",
            "How many hops",
        ),
        Misconception(
            "not_zero_for_itself",
            "a token is counted as a layer or more away from itself",
            "The input of a token is there before any layer, so i depends on i after 0 layers. Start from the "
            "identity, not from the mask.",
            "How many hops",
        ),
        Misconception(
            "from_mask",
            "the count starts with the mask as layer 0",
            "What a token sees it depends on after one layer. Start from the identity: only the token itself is there "
            "after 0 layers.",
            "How many hops",
        ),
        Misconception(
            "one_for_itself",
            "a token is one layer away from itself",
            "The input of a token is there before any layer, so i depends on i after 0 layers, whether it sees itself "
            "or not.",
            "How many hops",
        ),
        Misconception(
            "one_layer",
            "only what one layer reaches is counted",
            "A second layer reads what the first has gathered: what i sees, and what that has seen before. Go on until "
            "nothing new is reached.",
            "How many hops",
        ),
        Misconception(
            "last_layer_missed",
            "the last layer is missing",
            "Among T tokens the longest shortest way has T - 1 steps: layers 1 … T - 1, which is `range(1, T)`.",
            "How many hops",
        ),
        Misconception(
            "fixed_number",
            "a fixed number of layers",
            "The longest shortest way among T tokens has T - 1 steps: `range(1, T)`, with T from the mask.",
            "How many hops",
        ),
        Misconception(
            "within_a_layer",
            "a layer reads what the same layer has written",
            "All tokens of a layer are computed at once, from the layer before. Keep the old table until the new one "
            "is complete.",
            "How many hops",
        ),
        Misconception(
            "doubled",
            "the reach is squared, which is more than one layer",
            "`reached @ reached` doubles the number of layers each time. One more layer is `mask @ reached`.",
            "How many hops",
        ),
        Misconception(
            "overwritten",
            "the count of a pair is overwritten by later layers",
            "What a layer reaches, later ones reach too. Write down only what is new: `wider & ~reached`.",
            "How many hops",
        ),
        Misconception(
            "between",
            "it counts the tokens in between",
            "Asked for are layers, which are steps: one if i sees j itself, two if one token stands between.",
            "How many hops",
        ),
        Misconception(
            "never_is_zero",
            "what never comes to depend is given as 0",
            "0 layers means: at once. What no number of layers reaches is -1.",
            "How many hops",
        ),
        Misconception(
            "never_is_T",
            "what never comes to depend is given as T",
            "T looks like a number of layers that would do. What no number of layers reaches is -1.",
            "How many hops",
        ),
    ),
)

EXERCISES = (STRIDED_PATTERN, STRIDE_CLASSES, MERGE_PARTS, GLOBAL_PATTERN, COUNT_HOPS)
