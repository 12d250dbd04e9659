"""Exercises of chapter 06: split into heads, join them again, attend with all of them, and remove some."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, FLOAT64, one_call
from attncourse.checks.script import Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Variant

CHAPTER = "06_multi_head"


# --- split_into_heads -------------------------------------------------------------------------------------------


def split_into_heads(x: Tensor, n_heads: int) -> Tensor:
    B, T, d_model = x.shape
    D = d_model // n_heads
    return x.reshape(B, T, n_heads, D).transpose(1, 2)  # (B, H, T, D)


def faulty_split_into_heads(wrong: frozenset[str], interleaved: bool = False) -> Callable:
    """interleaved: whether head h is to get the numbers h, h + H, h + 2H, …"""

    def split_into_heads(x, n_heads):
        B, T, d_model = x.shape
        count, size = n_heads, d_model // n_heads
        if "size_for_count" in wrong:
            count, size = size, count
        if "viewed" in wrong:
            heads = x.reshape(B, count, T, size)
        elif interleaved != ("interleaved" in wrong):
            heads = x.unflatten(2, (size, count)).movedim(3, 1)
        else:
            heads = x.unflatten(2, (count, size)).movedim(2, 1)
        if "last_two_swapped" in wrong:
            heads = heads.mT
        if "not_transposed" in wrong:
            heads = heads.movedim(1, 2)
        if "batch_swapped" in wrong:
            heads = heads.transpose(0, 1)
        return heads.flatten(0, 1) if "heads_in_batch" in wrong else heads

    split_into_heads.wrong = wrong  # so that the variant can make it in the other order
    return split_into_heads


def split_into_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(6000 + seed)

    def arguments(B: int, T: int, H: int, D: int) -> dict:
        return {"x": inputs.normal(B, T, H * D), "n_heads": H}

    yield one_call("two heads of three numbers", arguments(1, 4, 2, 3))
    yield one_call("a batch, all sizes different", arguments(2, 5, 3, 4))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4))
    yield one_call("one token", arguments(3, 1, 4, 6))
    yield one_call("non-contiguous", {"x": inputs.normal(2, 6, 5).mT, "n_heads": 3}, "non-contiguous")
    yield one_call("float64", {"x": inputs.normal(2, 3, 8).double(), "n_heads": 4}, "float64")


def _interleaved(implementation: Callable) -> Callable:
    """split_into_heads where head h has h, h + H, h + 2H, …, moved together first. A known mistake is made anew."""
    if hasattr(implementation, "wrong"):
        return faulty_split_into_heads(implementation.wrong, interleaved=True)
    return lambda x, n_heads: implementation(x.unflatten(-1, (-1, n_heads)).mT.flatten(-2), n_heads)


SPLIT_INTO_HEADS = Exercise(
    id="multi_head/split_into_heads",
    defines="split_into_heads",
    title="Split the width into heads",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=split_into_heads_scripts,
    reference=split_into_heads,
    faulty=faulty_split_into_heads,
    outputs=(Output("heads", "B H T D"),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "viewed",
            "the numbers are cut into (B, H, T, D) without a transpose",
            "`view` and `reshape` keep the order of the numbers, so a head gets numbers of several tokens. Cut the "
            "last axis first, (B, T, H, D), then exchange T and H.",
            "Split and merge",
        ),
        Misconception(
            "interleaved",
            "the heads are interleaved",
            "(B, T, D, H) gives head h the numbers h, h + H, h + 2H, … Here a head gets neighbours: cut the width into "
            "(H, D), the heads outside.",
            "Split and merge",
        ),
        Misconception(
            "not_transposed",
            "the heads stay after the tokens",
            "The shape is (B, T, H, D). A matrix product works on the last two axes: tokens and numbers must stand "
            "there, the heads before them. With T = H nothing crashes.",
            "Split and merge",
        ),
        Misconception(
            "size_for_count",
            "n_heads is taken for the size of a head",
            "n_heads says how many heads there are, H. Each has D = d_model / H numbers.",
            "Split and merge",
        ),
        Misconception(
            "last_two_swapped",
            "tokens and numbers are in each other's place",
            "Asked for is (B, H, T, D): exchange the axes T and H, which are 1 and 2, and leave D last.",
            "Split and merge",
        ),
        Misconception(
            "batch_swapped",
            "the heads stand before the batch",
            "Asked for is (B, H, T, D): the batch stays first, as everywhere in the course.",
            "Split and merge",
        ),
        Misconception(
            "heads_in_batch",
            "batch and heads are one axis",
            "Some libraries compute with (B·H, T, D). Here the heads keep an axis of their own.",
            "Split and merge",
        ),
    ),
    variants={
        "interleaved": Variant(
            statement="In this copy the heads are interleaved: head h gets the numbers h, h + H, h + 2H, … of every "
            "token, where H is n_heads.",
            argument=lambda name, value: value,
            wrap=_interleaved,
            titles={"interleaved": "the heads are not interleaved"},
            explanations={
                "viewed": "`view` and `reshape` keep the order of the numbers, so a head gets numbers of several "
                "tokens. Cut the last axis first, (B, T, D, H), then put the heads before the tokens.",
                "interleaved": "(B, T, H, D) gives a head neighbours, as in the chapter. Here head h gets the numbers "
                "h, h + H, h + 2H, …: cut the width into (D, H), the heads inside.",
                "last_two_swapped": "Asked for is (B, H, T, D): from (B, T, D, H), put the heads before the tokens "
                "and leave D last.",
            },
        )
    },
)

# --- join_heads -------------------------------------------------------------------------------------------------


def join_heads(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)  # (B, T, H·D)


def faulty_join_heads(wrong: frozenset[str]) -> Callable:
    def join_heads(x):
        B, H, T, D = x.shape
        if "reversed" in wrong:
            x = x.flip(1)
        if "first_only" in wrong:
            return x[:, 0]
        if "summed" in wrong:
            return x.sum(1)
        if "averaged" in wrong:
            return x.sum(1) / H
        if "tokens_joined" in wrong:
            return x.reshape(B, H * T, D)
        if "not_flattened" in wrong:
            return x.movedim(1, 2)
        if "reshaped" in wrong:
            return x.reshape(B, T, H * D)
        if "last_two_swapped" in wrong:
            return x.mT.reshape(B, T, H * D)
        if "interleaved" in wrong:
            return x.movedim(1, 3).flatten(2)
        return torch.cat(x.unbind(1), -1)

    return join_heads


def join_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(6100 + seed)
    yield one_call("two heads of three numbers", {"x": inputs.normal(1, 2, 4, 3)})
    yield one_call("a batch, all sizes different", {"x": inputs.normal(2, 3, 5, 4)})
    yield one_call("all sizes equal", {"x": inputs.normal(4, 4, 4, 4)})
    yield one_call("one token", {"x": inputs.normal(3, 4, 1, 6)})
    yield one_call("non-contiguous", {"x": inputs.normal(2, 3, 4, 5).mT}, "non-contiguous")
    yield one_call("float64", {"x": inputs.normal(2, 4, 3, 2).double()}, "float64")


JOIN_HEADS = Exercise(
    id="multi_head/join_heads",
    defines="join_heads",
    title="Put the heads side by side again",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=join_heads_scripts,
    reference=join_heads,
    faulty=faulty_join_heads,
    outputs=(Output("x", "B T H·D"),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "reshaped",
            "the heads are reshaped without a transpose",
            "`reshape` keeps the order of the numbers, and here a token's numbers stand far apart: T must come before "
            "H. Exchange axes 1 and 2 first. The shape is right either way.",
            "Split and merge",
        ),
        Misconception(
            "interleaved",
            "the heads are interleaved",
            "Number d of all heads stands together. The heads come one after the other: head 0's numbers, then head "
            "1's, in the order in which they were cut.",
            "Split and merge",
        ),
        Misconception(
            "last_two_swapped",
            "the wrong axes are exchanged before the reshape",
            "Exchange T and H, axes 1 and 2; `.mT` exchanges T and D.",
            "Split and merge",
        ),
        Misconception(
            "reversed",
            "the heads stand in reverse order",
            "Head 0 comes first: the output projection's first D columns belong to it.",
            "Split and merge",
        ),
        Misconception(
            "summed",
            "the heads are added",
            "Side by side, each keeps its numbers, and the output projection learns how to mix them. A sum gives all "
            "the same mix.",
            "What follows the paper",
        ),
        Misconception(
            "averaged",
            "the heads are averaged",
            "Side by side, each keeps its numbers, and the output projection learns how to mix them. A mean loses what "
            "sets them apart.",
            "What follows the paper",
        ),
        Misconception(
            "first_only",
            "only the first head is kept",
            "All heads are joined: (B, T, H·D).",
            "Split and merge",
        ),
        Misconception(
            "tokens_joined",
            "the heads are joined along the tokens",
            "That makes H·T tokens. The heads of one token stand side by side in its last axis.",
            "Split and merge",
        ),
        Misconception(
            "not_flattened",
            "the last two axes are not joined",
            "(B, T, H, D) holds the right numbers; make H and D one axis: `flatten(2)` or a `reshape`.",
            "Split and merge",
        ),
    ),
)

# --- all_heads --------------------------------------------------------------------------------------------------


def all_heads(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor, o_weight: Tensor, n_heads: int, mask: Tensor
) -> Tensor:
    query = split_into_heads(x @ q_weight.T, n_heads)  # (B, H, T, D)
    key = split_into_heads(x @ k_weight.T, n_heads)
    value = split_into_heads(x @ v_weight.T, n_heads)
    scores = query @ key.mT / query.shape[-1] ** 0.5  # (B, H, T, T)
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
    return join_heads(weights @ value) @ o_weight.T  # (B, T, d_model)


def faulty_all_heads(wrong: frozenset[str]) -> Callable:
    def all_heads(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
        width = q_weight.shape[0]
        if "one_head" in wrong:
            n_heads = 1
        split = faulty_split_into_heads(wrong & {"viewed"})
        projections = [q_weight, k_weight, v_weight]
        if "weights_transposed" in wrong:
            projections = [weight.T for weight in projections]
        query, key, value = (split(torch.einsum("btm,nm->btn", x, weight), n_heads) for weight in projections)
        scores = torch.einsum("bhtd,bhsd->bhts", query, key)
        if "not_scaled" not in wrong:
            scores = scores / (width if "scaled_by_width" in wrong else query.shape[-1]) ** 0.5
        allowed = mask if "mask_over_heads" in wrong else mask[:, None]
        if "mask_inverted" in wrong:
            allowed = ~allowed
        if "mask_multiplies" in wrong:
            scores = scores * allowed
        elif not wrong & {"mask_ignored", "mask_after"}:
            scores = scores.masked_fill(~allowed, float("-inf"))
        weights = scores.softmax(-2 if "over_queries" in wrong else -1)
        if "mask_after" in wrong:
            weights = weights * allowed
        if "weights_averaged" in wrong:
            weights = weights.mean(1, keepdim=True).expand_as(weights)
        joined = faulty_join_heads(wrong & {"reshaped"})(weights @ value)
        if "o_left_out" in wrong:
            return joined
        return joined @ (o_weight if "o_transposed" in wrong else o_weight.T)

    return all_heads


def all_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(6200 + seed)

    def arguments(B: int, T: int, H: int, D: int) -> dict:
        weights = {f"{name}_weight": inputs.weight(H * D, H * D) for name in "qkvo"}
        for name in ("q_weight", "k_weight"):
            weights[name] = weights[name] * 1.4
        return {"x": inputs.normal(B, T, H * D, spread=1.5), **weights, "n_heads": H, "mask": inputs.mask(B, T, T)}

    yield one_call("one sentence, two heads", arguments(1, 3, 2, 2))
    yield one_call("two sentences, three heads", arguments(2, 4, 3, 2))
    yield one_call("as many sentences as heads", arguments(2, 5, 2, 3))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3))
    given = arguments(2, 3, 2, 4)
    yield one_call("float64", {n: v.double() if n[0] in "xqkvo" else v for n, v in given.items()}, "float64")


ALL_HEADS = Exercise(
    id="multi_head/all_heads",
    defines="all_heads",
    title="Attend with all heads at once",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    scripts=all_heads_scripts,
    reference=all_heads,
    faulty=faulty_all_heads,
    outputs=(Output("output", "B T d_model"),),
    habits={"float64": FLOAT64},
    forbidden=("scaled_dot_product_attention", "multi_head_attention_forward"),
    misconceptions=(
        Misconception(
            "one_head",
            "there is one head of the full width",
            "One softmax then decides for all numbers. Split queries, keys and values, so that each head has weights "
            "of its own.",
            "The problem",
        ),
        Misconception(
            "viewed",
            "the heads are split without a transpose",
            "A head then holds numbers of several tokens, and even the mask means nothing. Cut the width into "
            "(H, D), then exchange T and H.",
            "Split and merge",
        ),
        Misconception(
            "reshaped",
            "the heads are joined without a transpose",
            "The result has the right shape and mixes tokens. Exchange H and T before the reshape.",
            "Split and merge",
        ),
        Misconception(
            "scaled_by_width",
            "the scores are divided by the square root of d_model",
            "A head's dot product has D terms, not d_model: divide by the square root of D = d_model / H. The larger "
            "divisor flattens every softmax.",
            "What follows the paper",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "They grow with D, and the softmax saturates: its gradient fades.",
            "What follows the paper",
        ),
        Misconception(
            "mask_over_heads",
            "the mask's batch axis lines up with the heads",
            "Shapes line up on the right: (B, T, T) beside (B, H, T, T) takes B for H. It crashes unless B is "
            "H or 1, and with B = H it is silently wrong. `mask[:, None]` is (B, 1, T, T).",
            "The code",
        ),
        Misconception(
            "mask_ignored",
            "the mask is not used",
            "Forbidden keys then take part in every head.",
            "The code",
        ),
        Misconception(
            "mask_after",
            "the weights are masked after the softmax and not normalised again",
            "The forbidden keys have already taken their share, so the rest sums to less than 1.",
            "The code",
        ),
        Misconception(
            "mask_multiplies",
            "the scores are multiplied by the mask",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. Forbidden scores must be -inf.",
            "The code",
        ),
        Misconception(
            "mask_inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "What follows the paper",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Each query of each head divides its attention among the keys: the last axis.",
            "The code",
        ),
        Misconception(
            "weights_averaged",
            "all heads use the mean of their weights",
            "`nn.MultiheadAttention` returns that mean to look at; it does not compute with it. Each head averages its "
            "values with weights of its own.",
            "What single heads do",
        ),
        Misconception(
            "weights_transposed",
            "the projections' weights are transposed",
            "They are laid out as in `nn.Linear`, outputs first: `x @ weight.T`. All are square, so nothing crashes.",
            "What follows the paper",
        ),
        Misconception(
            "o_transposed",
            "the output weight is transposed",
            "It is laid out as in `nn.Linear`, outputs first: multiply by `o_weight.T`. It is square: nothing crashes.",
            "What follows the paper",
        ),
        Misconception(
            "o_left_out",
            "the output projection is missing",
            "Without it no number of the output reads more than one head: the heads are never mixed.",
            "What follows the paper",
        ),
    ),
)

# --- keep_heads -------------------------------------------------------------------------------------------------


def keep_heads(heads: Tensor, o_weight: Tensor, keep: Tensor) -> Tensor:
    kept = heads * keep[:, None, None]  # (B, H, T, D), zeros where a head is removed
    return join_heads(kept) @ o_weight.T  # (B, T, d_model)


def faulty_keep_heads(wrong: frozenset[str]) -> Callable:
    def keep_heads(heads, o_weight, keep):
        H, D = heads.shape[1], heads.shape[3]
        if "inverted" in wrong:
            keep = ~keep
        if "keep_ignored" in wrong:
            keep = torch.ones_like(keep)
        places = keep if "over_numbers" in wrong else keep[:, None] if "over_tokens" in wrong else keep[:, None, None]
        n_kept = int(keep.sum())
        if "o_transposed" in wrong:
            o_weight = o_weight.T
        if "columns_shifted" in wrong:
            heads, o_weight = heads[:, keep], o_weight[:, : n_kept * D]
        elif "mean_left" in wrong:
            heads = torch.where(places, heads, heads.mean(2, keepdim=True))
        elif "zeroed_after" not in wrong:
            heads = torch.where(places, heads, torch.zeros_like(heads))
        if "rescaled" in wrong:
            heads = heads * H / n_kept
        joined = faulty_join_heads(wrong & {"reshaped", "interleaved"})(heads)
        output = joined if "o_left_out" in wrong else joined @ o_weight.T
        if "zeroed_after" in wrong:
            output = (output.unflatten(-1, (H, -1)) * keep[:, None]).flatten(-2)
        return output

    return keep_heads


def keep_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(6300 + seed)

    def arguments(B: int, H: int, T: int, D: int, *removed: int) -> dict[str, Tensor]:
        keep = torch.ones(H, dtype=torch.bool)
        keep[list(removed)] = False
        return {
            "heads": inputs.normal(B, H, T, D, spread=1.5),
            "o_weight": inputs.weight(H * D, H * D),
            "keep": keep,
        }

    yield one_call("two heads, the first removed", arguments(1, 2, 3, 2, 0))
    yield one_call("three heads, the middle one removed", arguments(2, 3, 4, 2, 1))
    yield one_call("all sizes equal, the second removed", arguments(4, 4, 4, 4, 1))
    yield one_call("four heads, one left", arguments(2, 4, 3, 3, 0, 2, 3))
    yield one_call("none removed", arguments(2, 3, 5, 4))
    loose = arguments(2, 3, 4, 5, 2)
    loose["heads"] = loose["heads"].mT.contiguous().mT
    yield one_call("non-contiguous", loose, "non-contiguous")
    given = arguments(2, 2, 3, 4, 1)
    yield one_call("float64", {n: t.double() if n != "keep" else t for n, t in given.items()}, "float64")


KEEP_HEADS = Exercise(
    id="multi_head/keep_heads",
    defines="keep_heads",
    title="Remove heads",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=keep_heads_scripts,
    reference=keep_heads,
    faulty=faulty_keep_heads,
    outputs=(Output("output", "B T d_model"),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "inverted",
            "the heads to be kept are removed",
            "keep is True where a head stays.",
            "Remove a head",
        ),
        Misconception(
            "keep_ignored",
            "no head is removed",
            "The numbers of a head whose keep is False must be 0 before the output projection.",
            "Remove a head",
        ),
        Misconception(
            "over_tokens",
            "tokens are removed instead of heads",
            "Shapes line up on the right: `keep[:, None]`, (H, 1), lines up with the tokens. `keep[:, None, None]`, "
            "(H, 1, 1), lines up with the heads of (B, H, T, D). With T = H nothing crashes.",
            "Remove a head",
        ),
        Misconception(
            "over_numbers",
            "numbers are removed from every head, instead of heads",
            "Shapes line up on the right: (H,) lines up with D. `keep[:, None, None]`, (H, 1, 1), lines up with the "
            "heads of (B, H, T, D). With D = H nothing crashes.",
            "Remove a head",
        ),
        Misconception(
            "zeroed_after",
            "the output is zeroed, after the projection",
            "The output projection mixes the heads: no part of its result belongs to one head. Remove it before.",
            "What follows the paper",
        ),
        Misconception(
            "columns_shifted",
            "the heads that stay move to the front, away from their columns",
            "Columns h·D … h·D + D - 1 of the output weight belong to head h. Put zeros in a removed head's place, or "
            "take its columns away with it.",
            "Remove a head",
        ),
        Misconception(
            "rescaled",
            "the heads that stay are scaled up",
            "Dropout does that in training, at random. A removed head leaves the others as they are.",
            "Remove a head",
        ),
        Misconception(
            "mean_left",
            "a removed head is replaced by its mean over the tokens",
            "That is mean ablation, another experiment. Asked for are zeros.",
            "Remove a head",
        ),
        Misconception(
            "reshaped",
            "the heads are joined without a transpose",
            "The result has the right shape and mixes tokens. Exchange H and T before the reshape.",
            "Split and merge",
        ),
        Misconception(
            "interleaved",
            "the heads are joined interleaved",
            "The heads come one after the other: the output weight's first D columns belong to head 0.",
            "Split and merge",
        ),
        Misconception(
            "o_transposed",
            "the output weight is transposed",
            "It is laid out as in `nn.Linear`, outputs first: multiply by `o_weight.T`. It is square: nothing crashes.",
            "What follows the paper",
        ),
        Misconception(
            "o_left_out",
            "the output projection is missing",
            "Join the heads, then multiply by `o_weight.T`: what counts is what a head adds to the output.",
            "What follows the paper",
        ),
    ),
)

EXERCISES = (SPLIT_INTO_HEADS, JOIN_HEADS, ALL_HEADS, KEEP_HEADS)
