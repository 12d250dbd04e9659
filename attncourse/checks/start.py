"""Exercises of chapter 00: shapes, the softmax, a mask from lengths, and an einsum to read."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, NOT_NEGATIVE, SUM_TO_ONE
from attncourse.checks.script import Call, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property

CHAPTER = "00_start"

# --- pair_scores ------------------------------------------------------------------------------------------------


def pair_scores(query: Tensor, keys: Tensor) -> Tensor:
    return query @ keys.mT  # (B, T, D) @ (B, D, S) -> (B, T, S)


def faulty_pair_scores(wrong: frozenset[str]) -> Callable:
    def pair_scores(query, keys):
        B, S, D = keys.shape
        if "cosine" in wrong:
            query, keys = query / query.norm(dim=-1, keepdim=True), keys / keys.norm(dim=-1, keepdim=True)
        if "keys_reshaped" in wrong:
            keys = keys.reshape(B, D, S).mT
        elif "axes_reversed" in wrong:
            keys = keys.permute(2, 1, 0).mT
        if "axes_swapped" in wrong:
            query, keys = keys, query
        if "scaled" in wrong:
            query = query / D**0.5
        if "averaged" in wrong:
            query = query / D
        if "not_summed" in wrong:
            scores = query[:, :, None] * keys[:, None]
        elif "across_sentences" in wrong:
            scores = torch.einsum("btd,csd->btcs", query, keys)
        else:
            scores = query @ keys.mT
        if "batch_summed" in wrong:
            scores = scores.sum(0)
        return scores.softmax(-1) if "returns_weights" in wrong else scores

    return pair_scores


def pair_scores_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1000 + seed)

    def arguments(B: int, T: int, S: int, D: int) -> dict[str, Tensor]:
        return {"query": inputs.normal(B, T, D, spread=1.5), "keys": inputs.normal(B, S, D, spread=1.5)}

    def script(name: str, arguments: dict[str, Tensor], habit: str | None = None) -> Script:
        return Script(name, (Call(arguments, gradients=tuple(arguments)),), habit)

    yield script("two queries, three keys", arguments(1, 2, 3, 4))
    yield script("a batch, all sizes different", arguments(2, 3, 5, 4))
    yield script("all sizes equal", arguments(4, 4, 4, 4))
    yield script("one query", arguments(1, 1, 9, 8))
    strided = {name: tensor.mT.contiguous().mT for name, tensor in arguments(2, 3, 4, 5).items()}
    yield script("transposed inputs", strided, "non-contiguous")
    yield script("float64", {name: tensor.double() for name, tensor in arguments(2, 2, 3, 4).items()}, "float64")


PAIR_SCORES = Exercise(
    id="start/pair_scores",
    defines="pair_scores",
    title="Compare every query with every key",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=pair_scores_scripts,
    reference=pair_scores,
    faulty=faulty_pair_scores,
    outputs=(Output("scores", "B T S"),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "axes_swapped",
            "the query and key axes are swapped",
            "scores[b, i, j] belongs to query i and key j: queries come first, (B, T, S).",
            "Shapes",
        ),
        Misconception(
            "keys_reshaped",
            "the keys are reshaped where they should be transposed",
            "Both give (B, D, S). `reshape` reads the numbers in the same order and cuts them into other rows, so each "
            "key is torn apart; a transpose (`.mT`) moves them.",
            "Shapes",
        ),
        Misconception(
            "axes_reversed",
            "all three axes of the keys are reversed",
            "`.T` reverses every axis, the batch too, and with equal sizes nothing crashes. `.mT` exchanges the last "
            "two only.",
            "Shapes",
        ),
        Misconception(
            "not_summed",
            "the products are not summed",
            "A dot product is one number: multiply along D, then add along D. The axis D goes away.",
            "Shapes",
        ),
        Misconception(
            "averaged",
            "the products are averaged instead of summed",
            "A dot product is the sum over D. The mean is smaller by a factor of D.",
            "Shapes",
        ),
        Misconception(
            "scaled",
            "the scores are divided by the square root of D",
            "Many models do that, and chapter 03 says why. Asked for here is the plain dot product.",
            "Shapes",
        ),
        Misconception(
            "cosine",
            "queries and keys are brought to length 1",
            "That is the cosine of their angle. A dot product keeps the lengths: a longer key scores higher.",
            "Shapes",
        ),
        Misconception(
            "returns_weights",
            "it returns the weights, after the softmax",
            "Asked for are the scores; the softmax is the next exercise.",
            "Softmax by hand",
        ),
        Misconception(
            "batch_summed",
            "the sentences of the batch are added together",
            "B stands in every shape of the course: what happens to one sentence must not depend on another. In an "
            "einsum, keep the letter `b` on both sides.",
            "Einsum",
        ),
        Misconception(
            "across_sentences",
            "queries are compared with the keys of other sentences",
            "Only keys of the same sentence count: one letter for the batch, `b`, in both inputs.",
            "Einsum",
        ),
    ),
)

# --- softmax ----------------------------------------------------------------------------------------------------


def softmax_with_temperature(scores: Tensor, temperature: float) -> Tensor:
    scaled = scores / temperature
    exponentials = torch.exp(scaled - scaled.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def faulty_softmax(wrong: frozenset[str]) -> Callable:
    def softmax_with_temperature(scores, temperature):
        axes = (-2, -1) if "over_all" in wrong else (-2,) if "over_queries" in wrong else (-1,)
        if "temperature_multiplies" in wrong:
            scores = scores * temperature
        elif not wrong & {"temperature_ignored", "temperature_after"}:
            scores = scores / temperature
        largest = scores.amax(axes, keepdim=True)
        if "no_exp" in wrong:
            weights = scores / scores.sum(axes, keepdim=True)
        elif "hard" in wrong:
            weights = (scores == largest).to(scores)
        elif "no_sum" in wrong:
            weights = (scores - largest).exp()
        elif "exp_only" in wrong:
            weights = scores.exp()
        else:
            weights = scores.exp() / scores.exp().sum(axes, keepdim=True)
        if "logarithm" in wrong:
            weights = weights.log()
        return weights / temperature if "temperature_after" in wrong else weights

    return softmax_with_temperature


def softmax_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1100 + seed)

    def script(name: str, scores: Tensor, temperature: float, habit: str | None = None) -> Script:
        return Script(name, (Call({"scores": scores, "temperature": temperature}, gradients=("scores",)),), habit)

    yield script("two queries, three keys", inputs.normal(1, 2, 3, spread=2.0), 0.5)
    yield script("a batch, a high temperature", inputs.normal(2, 3, 5, spread=3.0), 2.5)
    yield script("as many queries as keys", inputs.normal(3, 4, 4, spread=2.0), 1.7)
    yield script("temperature 1", inputs.normal(2, 2, 4, spread=2.0), 1.0)
    yield script("one query", inputs.normal(1, 1, 11), 0.8)
    yield script("scores of a few hundred", inputs.normal(2, 3, 5, spread=200.0), 0.5, "extreme")
    strided = inputs.normal(2, 4, 3).mT
    yield script("transposed scores", strided, 1.5, "non-contiguous")
    yield script("float64", inputs.normal(2, 2, 3).double(), 0.7, "float64")


SOFTMAX = Exercise(
    id="start/softmax",
    defines="softmax_with_temperature",
    title="Turn scores into weights, at a temperature",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=softmax_scripts,
    reference=softmax_with_temperature,
    faulty=faulty_softmax,
    outputs=(Output("weights", "B T S"),),
    properties=(NOT_NEGATIVE, SUM_TO_ONE),
    habits={
        "extreme": "Large scores overflow: `exp(89)` is already infinite in float32. Subtract each row's largest score "
        "before `exp`; the weights stay the same.",
        **COMMON_HABITS,
    },
    forbidden=(
        *("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin"),
        "scaled_dot_product_attention",
    ),
    misconceptions=(
        Misconception(
            "temperature_ignored",
            "the temperature is not used",
            "Divide the scores by it before the exponential. A factor on all exponentials would cancel in the "
            "division.",
            "Temperature",
        ),
        Misconception(
            "temperature_multiplies",
            "the scores are multiplied by the temperature",
            "Then a high temperature sharpens. Divide: a high temperature brings the scores closer together.",
            "Temperature",
        ),
        Misconception(
            "temperature_after",
            "the weights are divided by the temperature, after the softmax",
            "Then they sum to 1 over the temperature, and their ratios stay. The temperature acts on the scores.",
            "Temperature",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Each query divides its weight among the keys: normalise over the last axis, S.",
            "Softmax by hand",
        ),
        Misconception(
            "over_all",
            "one softmax runs over all queries and keys of a sentence",
            "Each row is a softmax of its own and sums to 1: sum over the last axis only.",
            "Softmax by hand",
        ),
        Misconception(
            "exp_only",
            "the exponentials are not divided by their sum",
            "The weights of one query must sum to 1: divide by the row's sum, kept as an axis of size 1.",
            "Softmax by hand",
        ),
        Misconception(
            "no_sum",
            "the largest score is subtracted, and the sum is forgotten",
            "Subtracting the maximum keeps `exp` finite and makes the largest exponential 1. The division by the sum "
            "is still to come.",
            "Softmax by hand",
        ),
        Misconception(
            "no_exp",
            "the scores themselves are divided by their sum",
            "Scores can be negative, and their sum can be near 0. The exponential makes every one positive first.",
            "Softmax by hand",
        ),
        Misconception(
            "hard",
            "all weight goes to the largest score",
            "That is the limit of a temperature near 0. It has no gradient; the softmax spreads the weight smoothly.",
            "Temperature",
        ),
        Misconception(
            "logarithm",
            "it returns the logarithms of the weights",
            "That is a log-softmax: its numbers are negative. Take `exp` of it, or divide the exponentials.",
            "Softmax by hand",
        ),
    ),
)

# --- padding_mask -----------------------------------------------------------------------------------------------


def mask_from_lengths(lengths: Tensor, S: int) -> Tensor:
    positions = torch.arange(S)  # (S,)
    return positions < lengths[:, None]  # (B, S)


def faulty_padding_mask(wrong: frozenset[str]) -> Callable:
    def mask_from_lengths(lengths, S):
        positions = torch.arange(S)
        if "one_too_many" in wrong:
            positions = positions - 1
        if "one_too_few" in wrong:
            positions = positions + 1
        if "padding_first" in wrong:
            positions = positions.flip(0)
        if "longest_for_all" in wrong:
            lengths = lengths.amax().expand_as(lengths)
        mask = (positions == lengths[:, None] - 1) if "last_only" in wrong else positions < lengths[:, None]
        if "all_true" in wrong:
            mask = torch.ones_like(mask)
        if "inverted" in wrong:
            mask = ~mask
        if "additive" in wrong:
            mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        elif "floats" in wrong:
            mask = mask.float()
        elif "integers" in wrong:
            mask = mask.long()
        if "transposed" in wrong:
            mask = mask.mT
        return mask[:, None] if "query_axis" in wrong else mask

    return mask_from_lengths


def padding_mask_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1200 + seed)

    def script(name: str, B: int, S: int, habit: str | None = None) -> Script:
        lengths = torch.randperm(S - 2, generator=inputs.generator)[:B] + 1  # all different, 1 … S - 2
        return Script(name, (Call({"lengths": lengths, "S": S}),), habit)

    yield script("two sentences, four places", 2, 4)
    yield script("more places than sentences", 3, 7)
    yield script("four sentences", 4, 6)
    yield Script("an empty sentence and a full one", (Call({"lengths": torch.tensor([0, 3, 5, 2, 5]), "S": 5}),))
    yield script("one sentence", 1, 4)


PADDING_MASK = Exercise(
    id="start/padding_mask",
    defines="mask_from_lengths",
    title="Make a mask from the lengths of sentences",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=padding_mask_scripts,
    reference=mask_from_lengths,
    faulty=faulty_padding_mask,
    outputs=(Output("mask", "B S"),),
    properties=(
        Property(
            "a row has as many True as its sentence has words",
            lambda call, result: torch.equal(result.outputs[0].sum(-1), call.arguments["lengths"]),
        ),
    ),
    misconceptions=(
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. Words are True and padding is False.",
            "Masks",
        ),
        Misconception(
            "one_too_many",
            "one place of padding counts as a word",
            "Positions count from 0, so a sentence of 3 words has positions 0, 1 and 2: `<`, not `<=`.",
            "Masks",
        ),
        Misconception(
            "one_too_few",
            "the last word counts as padding",
            "Positions count from 0, so position 2 holds the third word of a sentence of 3: compare with the length "
            "itself.",
            "Masks",
        ),
        Misconception(
            "padding_first",
            "the padding stands in front",
            "Here the words come first and the padding after them.",
            "Masks",
        ),
        Misconception(
            "longest_for_all",
            "every sentence is as long as the longest",
            "Each row has a length of its own: `lengths[:, None]` is (B, 1) and gives one to each row.",
            "Masks",
        ),
        Misconception(
            "all_true",
            "every place counts as a word",
            "The lengths are not used, so nothing is hidden and padding takes part.",
            "Masks",
        ),
        Misconception(
            "last_only",
            "only the last word is True",
            "All words may be attended to: compare with `<`, not `==`.",
            "Masks",
        ),
        Misconception(
            "transposed",
            "the axes are swapped",
            "One row for each sentence, one column for each place: (B, S). Give `lengths` the new axis, not the "
            "positions.",
            "Shapes",
        ),
        Misconception(
            "query_axis",
            "there is an axis too many",
            "Asked for is (B, S). The axis of the queries is added where the mask is used, as `mask[:, None]`.",
            "Masks",
        ),
        Misconception(
            "floats",
            "it holds the floats 1 and 0",
            "A comparison gives booleans already. PyTorch *adds* a float mask to the scores, so that 1 and 0 hide "
            "nothing.",
            "Masks",
        ),
        Misconception(
            "integers",
            "it holds the integers 1 and 0",
            "A comparison gives booleans already, and `~` of an integer is not “not”: `~1` is -2.",
            "Masks",
        ),
        Misconception(
            "additive",
            "it holds 0 and -inf, to be added to scores",
            "That is the other common form of a mask. In this course a mask is boolean.",
            "Masks",
        ),
    ),
)

# --- head_contexts ----------------------------------------------------------------------------------------------


def head_contexts(weights: Tensor, values: Tensor) -> Tensor:
    by_head = weights @ values.transpose(1, 2)  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)
    return by_head.transpose(1, 2)  # (B, T, H, D)


def faulty_head_contexts(wrong: frozenset[str]) -> Callable:
    def head_contexts(weights, values):
        B, H, T, _ = weights.shape
        S, D = values.shape[1], values.shape[3]
        if "weights_transposed" in wrong:
            weights = weights.mT
        if "uniform" in wrong:
            weights = torch.full_like(weights, 1 / S)
        elif "one_head" in wrong:
            weights = weights[:, :1].expand_as(weights)
        elif "heads_mixed" in wrong:
            weights = weights.mean(1, keepdim=True).expand_as(weights)
        if weights.shape[-1] != S:  # a product of matrices would say so too
            raise ValueError(f"{weights.shape[-1]} weights for {S} values")
        by_head = values.reshape(B, H, S, D) if "values_reshaped" in wrong else values.permute(0, 2, 1, 3)
        contexts = weights[..., None] * by_head[:, :, None]  # (B, H, T, S, D)
        if "not_summed" not in wrong:
            contexts = contexts.sum(3)
        if "output_reshaped" in wrong:
            contexts = contexts.reshape(B, T, H, *contexts.shape[3:])
        elif "heads_first" not in wrong:
            contexts = contexts.transpose(1, 2)
        if "heads_summed" in wrong:
            contexts = contexts.sum(1 if "heads_first" in wrong else 2)
        elif "heads_merged" in wrong:
            contexts = contexts.flatten(2, 3)
        return contexts

    return head_contexts


def head_contexts_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1300 + seed)

    def arguments(B: int, H: int, T: int, S: int, D: int) -> dict[str, Tensor]:
        weights = inputs.normal(B, H, T, S, spread=1.5).softmax(-1)
        return {"weights": weights, "values": inputs.normal(B, S, H, D, spread=2.0)}

    def script(name: str, arguments: dict[str, Tensor], habit: str | None = None) -> Script:
        return Script(name, (Call(arguments, gradients=tuple(arguments)),), habit)

    yield script("two heads, three queries", arguments(1, 2, 3, 4, 5))
    yield script("a batch, all sizes different", arguments(2, 3, 4, 5, 6))
    yield script("as many queries as keys", arguments(3, 2, 4, 4, 5))
    yield script("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield script("one of each", arguments(1, 1, 1, 9, 8))
    strided = {name: tensor.mT.contiguous().mT for name, tensor in arguments(2, 3, 4, 5, 6).items()}
    yield script("transposed inputs", strided, "non-contiguous")
    yield script("float64", {name: tensor.double() for name, tensor in arguments(2, 2, 3, 4, 5).items()}, "float64")


HEAD_CONTEXTS = Exercise(
    id="start/head_contexts",
    defines="head_contexts",
    title="Read an einsum and write it without",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=head_contexts_scripts,
    reference=head_contexts,
    faulty=faulty_head_contexts,
    outputs=(Output("contexts", "B T H D"),),
    habits=COMMON_HABITS,
    forbidden=("einsum",),
    misconceptions=(
        Misconception(
            "output_reshaped",
            "the result is reshaped where it should be transposed",
            "(B, H, T, D) becomes (B, T, H, D) by moving axes: `.transpose(1, 2)`. `reshape` keeps the numbers in "
            "their order, so that heads and queries are mixed up.",
            "Shapes",
        ),
        Misconception(
            "values_reshaped",
            "the values are reshaped where they should be transposed",
            "(B, S, H, D) becomes (B, H, S, D) by moving axes: `.transpose(1, 2)`. `reshape` gives a head the numbers "
            "of other heads.",
            "Shapes",
        ),
        Misconception(
            "heads_first",
            "the heads come before the queries",
            "The letters after the arrow are the axes of the result, in order: `bthd`.",
            "Einsum",
        ),
        Misconception(
            "heads_summed",
            "the heads are added together",
            "`h` stands after the arrow, so it stays. Only `s` is missing there, so only the keys are summed over.",
            "Einsum",
        ),
        Misconception(
            "heads_merged",
            "the heads are merged into one axis",
            "`h` and `d` are two letters, so they are two axes. Chapter 06 merges them.",
            "Einsum",
        ),
        Misconception(
            "weights_transposed",
            "the weights are transposed",
            "`bhts`: the rows belong to queries, the columns to keys. Summed over are the columns.",
            "Einsum",
        ),
        Misconception(
            "not_summed",
            "the weighted values are not summed",
            "`s` is missing after the arrow: add along the keys.",
            "Einsum",
        ),
        Misconception(
            "uniform",
            "every value counts the same",
            "This is the plain mean: multiply each value by its weight.",
            "Einsum",
        ),
        Misconception(
            "one_head",
            "the first head's weights serve all heads",
            "`h` stands in both inputs: head h weighs with its own weights.",
            "Einsum",
        ),
        Misconception(
            "heads_mixed",
            "the weights are averaged over the heads",
            "`h` stands in both inputs: head h weighs with its own weights.",
            "Einsum",
        ),
    ),
)

EXERCISES = (PAIR_SCORES, SOFTMAX, PADDING_MASK, HEAD_CONTEXTS)
