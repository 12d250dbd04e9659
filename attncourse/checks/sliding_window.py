"""Exercises of chapter 08: a window's mask, blocks with a neighbour, attention by blocks, and what caches keep."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "08_sliding_window"


# --- near_mask --------------------------------------------------------------------------------------------------


def near_mask(T: int, S: int, window: int) -> Tensor:
    query = torch.arange(S - T, S)[:, None]  # (T, 1): the queries are the last T of S positions
    behind = query - torch.arange(S)  # (T, S): how far the key lies behind the query
    return (behind >= 0) & (behind < window)


def faulty_near_mask(wrong: frozenset[str], before: bool = False) -> Callable:
    """before: the window asked for counts the keys before the token, not the token itself."""

    def near_mask(T, S, window):
        n = window + int(before) + ("too_wide" in wrong) - ("too_narrow" in wrong)  # keys, the token's own included
        if "halved" in wrong:
            n = window // 2 + 1
        if "square" in wrong:
            S = T
        place = torch.arange(T).unsqueeze(1) + (0 if "top_left" in wrong else S - T)
        key = torch.arange(S)
        distance = key - place if "transposed" in wrong else place - key
        nearest = int(bool(wrong & {"self_left_out", "whole_before"}))
        later = distance < nearest
        if "symmetric" in wrong:
            distance, later = distance.abs(), distance.abs() < nearest
        reach, size = n + ("whole_before" in wrong), max(n, 1)
        far, start = distance >= reach, place - reach + 1
        if "blocks" in wrong:
            far, start = place // size != key // size, place // size * size
        elif "two_blocks" in wrong:
            far, start = place // size - key // size > 1, (place // size - 1) * size
        if "window_ignored" in wrong:
            far = torch.zeros_like(far)
        elif "slice_wraps" in wrong and "transposed" not in wrong:
            far = far | ((start < 0) & (key < start + S))
        mask = ~far if "future_open" in wrong else ~(far | later)
        if "no_brackets" in wrong:
            mask = ((distance >= nearest) & distance) < reach
        if "inverted" in wrong:
            mask = ~mask
        return mask.float() if "floats" in wrong else mask

    near_mask.wrong = wrong  # so that the variant can make it in the other convention
    return near_mask


def _keys_before(implementation: Callable) -> Callable:
    """near_mask for a window of keys before the token. A known mistake is made anew: half of W is another number."""
    if hasattr(implementation, "wrong"):
        return faulty_near_mask(implementation.wrong, before=True)
    return lambda T, S, window: implementation(T, S, window + 1)


def near_mask_scripts(seed: int) -> Iterator[Script]:
    # No number of the answer depends on chance: the seed changes the sizes alone.
    more = seed % 4
    for name, T, S, window in (
        ("three queries, five keys, a window of two", 3, 5, 2),
        ("as many queries as keys, a window of three", 6, 6, 3),
        ("all sizes equal", 4, 4, 4),
        ("a longer past", 5 + more, 9 + 2 * more, 4),
        ("a wide window", 7, 13 + more, 5 + more),
        ("a window wider than the sequence", 4, 6, 15),
        ("a window of one", 3, 4 + more, 1),
        ("one query", 1, 8, 3 + more),
    ):
        yield one_call(name, {"T": T, "S": S, "window": window})


def _places(call: Call) -> Tensor:
    return torch.arange(call.arguments["S"] - call.arguments["T"], call.arguments["S"])


def _no_later_key(call: Call, result: Result) -> bool:
    return not result.outputs[0][torch.arange(call.arguments["S"]) > _places(call)[:, None]].any()


def _sees_itself(call: Call, result: Result) -> bool:
    return bool(result.outputs[0].gather(1, _places(call)[:, None]).all())


def _as_many_everywhere(call: Call, result: Result) -> bool:
    seen = result.outputs[0].sum(-1)[_places(call) >= call.arguments["window"]]
    return bool((seen == seen[:1]).all())


NEAR_MASK = Exercise(
    id="sliding_window/near_mask",
    defines="near_mask",
    title="Mark the keys in the window",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=2,
    scripts=near_mask_scripts,
    reference=near_mask,
    faulty=faulty_near_mask,
    outputs=(Output("mask", "T S"),),
    properties=(
        Property("no query sees a later key", _no_later_key),
        Property("every query sees the key at its own position", _sees_itself),
        Property("all queries with a full window before them see equally many keys", _as_many_everywhere),
    ),
    misconceptions=(
        Misconception(
            "too_wide",
            "the window is one key too wide",
            "Here W counts the token itself: position p sees p - W + 1 … p, which are W keys. "
            "Some libraries see W before it, W + 1 keys in all.",
            "What W counts",
        ),
        Misconception(
            "too_narrow",
            "the window is one key too narrow",
            "Position p sees p - W + 1 … p, which are W keys with its own: p - j < W for key j.",
            "What W counts",
        ),
        Misconception(
            "halved",
            "the window reaches back W // 2 keys",
            "Longformer divides its window between both sides, w/2 keys each. A causal window has one side, and all of "
            "W lies there.",
            "What W counts",
        ),
        Misconception(
            "symmetric",
            "the window reaches forwards too",
            "Asked for is the causal window. The distance without a sign, |i - j| < W, is the one of both sides, and "
            "shows a token the tokens that it has to predict.",
            "What a window sees",
        ),
        Misconception(
            "future_open",
            "only the near end of the past is cut: every later key is visible",
            "A window has two ends: p - j < W leaves out what is too far back, p - j >= 0 what comes later.",
            "What a window sees",
        ),
        Misconception(
            "transposed",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: count back from the query.",
            "What a window sees",
        ),
        Misconception(
            "self_left_out",
            "a token does not see itself",
            "A token may read itself; else the first one has nothing to read, and its softmax is NaN.",
            "By hand",
        ),
        Misconception(
            "whole_before",
            "the whole window lies before the token, which is not in it",
            "Here W counts the token itself: p - W + 1 … p. Compare the distance with 0 and W so: `0 <= d < W`.",
            "What W counts",
        ),
        Misconception(
            "blocks",
            "each token sees its own block instead of a window that moves with it",
            "Cut into blocks, the first token of a block sees nothing but itself. A window moves: every query, where "
            "there are enough, sees equally many keys.",
            "What a window sees",
        ),
        Misconception(
            "two_blocks",
            "each token sees its own block and all of the block before",
            "That is a block window, which some libraries compute: it reaches back between W and 2W - 1 keys, by the "
            "token's place in its block. A window reaches equally far everywhere.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "window_ignored",
            "the window is not used",
            "This is the causal mask: the far past is visible. p - j must be less than W too. If you wrote that: `&` "
            "binds tighter than `<` and `>=`, so put each comparison in brackets.",
            "The problem",
        ),
        Misconception(
            "no_brackets",
            "a comparison has no brackets",
            "`a & b < W` means `(a & b) < W`, because `&` binds tighter than `<`. Put each comparison in brackets.",
            "The code",
        ),
        Misconception(
            "slice_wraps",
            "a slice begins below 0",
            "Python counts it from the end, and the first rows stay empty. Begin at `max(0, p - window + 1)`.",
            "By hand",
        ),
        Misconception(
            "top_left",
            "where T < S, the first query stands at position 0",
            "The queries are the last T of S positions: query i stands at S - T + i, and the last one sees the last "
            "key. A cache makes T less than S.",
            "The code",
        ),
        Misconception(
            "square",
            "the mask is (T, T)",
            "There are S keys, those of the past included: one row for each query, one column for each key.",
            "The code",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "The code",
        ),
        Misconception(
            "floats",
            "it holds the floats 1 and 0",
            "A comparison gives booleans already. PyTorch *adds* a float mask to the scores, so that 1 and 0 hide "
            "nothing.",
            "The code",
        ),
    ),
    variants={
        "before": Variant(
            statement="In this copy the window counts the keys *before* the token, and the token itself comes on top: "
            "a window of 2 shows three keys.",
            argument=lambda name, value: value,
            wrap=_keys_before,
            explanations={
                "too_wide": "Here W counts the keys before the token: position p sees p - W … p, which are W + 1 keys.",
                "too_narrow": "Position p sees p - W … p, which are W keys and its own: p - j <= W for key j. In the "
                "chapter W counts the token itself.",
                "symmetric": "Asked for is the causal window. The distance without a sign, |i - j| <= W, is the one "
                "of both sides, and shows a token the tokens that it has to predict.",
                "future_open": "A window has two ends: p - j <= W leaves out what is too far back, p - j >= 0 what "
                "comes later.",
                "whole_before": "The token itself comes on top of its W keys: p - W … p. Compare the distance with 0 "
                "and W so: `0 <= d <= W`.",
                "two_blocks": "That is a block window, which some libraries compute: how far it reaches back depends "
                "on the token's place in its block. A window reaches equally far everywhere.",
                "window_ignored": "This is the causal mask: the far past is visible. p - j must be at most W too. If "
                "you wrote that: `&` binds tighter than `<=` and `>=`, so put each comparison in brackets.",
                "no_brackets": "`a & b <= W` means `(a & b) <= W`, because `&` binds tighter than `<=`. Put each "
                "comparison in brackets.",
                "slice_wraps": "Python counts it from the end, and the first rows stay empty. Begin at `max(0, p - "
                "window)`.",
            },
        )
    },
)

# --- neighbour_blocks -------------------------------------------------------------------------------------------


def neighbour_blocks(x: Tensor, block: int) -> Tensor:
    own = x.unflatten(2, (-1, block))  # (B, H, N, block, D)
    before = torch.cat([torch.zeros_like(own[:, :, :1]), own[:, :, :-1]], dim=2)
    return torch.cat([before, own], dim=3)  # (B, H, N, 2·block, D)


def faulty_neighbour_blocks(wrong: frozenset[str]) -> Callable:
    def neighbour_blocks(x, block):
        B, H, T, D = x.shape
        N = T // block
        if "block_for_count" in wrong:
            N, block = block, N
        own = x.reshape(B, H, block, N, D).transpose(2, 3) if "strided" in wrong else x.reshape(B, H, N, block, D)
        fill = float("-inf") if "infinite_before" in wrong else 0.0
        before = torch.full_like(own, fill)
        if "wraps_around" in wrong:
            before = own.roll(1, 2)
        elif "next_block" in wrong:
            before[:, :, : N - 1] = own[:, :, 1:]
        elif "over_heads" in wrong:
            before[:, 1:] = own[:, : H - 1]
        elif "one_token" in wrong:
            before = F.pad(x, (0, 0, 1, -1), value=fill).reshape(B, H, N, block, D)
        elif "own_twice" in wrong:
            before = own
        else:
            before[:, :, 1:] = own[:, :, : N - 1]
            if "first_repeated" in wrong:
                before[:, :, 0] = own[:, :, 0]
        if "first_left_out" in wrong:
            before, own = before[:, :, 1:], own[:, :, 1:]
        both = (own, before) if "own_first" in wrong else (before, own)
        if "on_numbers" in wrong:
            return torch.cat(both, 4)
        if "on_blocks" in wrong:
            return torch.cat(both, 2)
        if "alternating" in wrong:
            return torch.stack(both, 4).flatten(3, 4)
        return torch.cat(both, 3)

    return neighbour_blocks


def neighbour_blocks_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(8100 + seed)

    def arguments(B: int, H: int, N: int, block: int, D: int) -> dict:
        return {"x": inputs.normal(B, H, N * block, D), "block": block}

    yield one_call("three blocks of two tokens", arguments(1, 2, 3, 2, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 5, 6))
    yield one_call("two blocks", arguments(2, 3, 2, 3, 4))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield one_call("one block", arguments(2, 3, 1, 4, 5))
    yield one_call("blocks of one token", arguments(2, 3, 5, 1, 4))
    loose = arguments(2, 3, 2, 4, 5)
    loose["x"] = loose["x"].transpose(1, 2).contiguous().transpose(1, 2)  # as heads are after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    wide = arguments(1, 2, 3, 2, 4)
    yield one_call("float64", {**wide, "x": wide["x"].double()}, "float64")


def _nothing_before_the_first(call: Call, result: Result) -> bool:
    return not result.outputs[0][:, :, 0, : call.arguments["block"]].any()


def _own_block_last(call: Call, result: Result) -> bool:
    own = result.outputs[0][:, :, :, call.arguments["block"] :]
    return torch.equal(own.flatten(2, 3), call.arguments["x"])


NEIGHBOUR_BLOCKS = Exercise(
    id="sliding_window/neighbour_blocks",
    defines="neighbour_blocks",
    title="Put each block after the one before it",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=neighbour_blocks_scripts,
    reference=neighbour_blocks,
    faulty=faulty_neighbour_blocks,
    outputs=(Output("blocks", "B H T/block 2·block D"),),
    properties=(
        Property("the second half of every row of tokens is the block itself, in order", _own_block_last),
        Property("nothing stands before the first block: zeros", _nothing_before_the_first),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "wraps_around",
            "the last block stands before the first",
            "`roll` moves the last block to the front, and the first tokens would read the end of the text. Nothing "
            "stands before the first block: zeros.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "first_repeated",
            "the first block stands before itself",
            "Its keys would count twice. Nothing stands before the first block: zeros.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "infinite_before",
            "the first block has -inf before it",
            "These are tokens, not scores: zeros. The scores are masked later.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "next_block",
            "each block stands with the one after it",
            "A causal window reaches back: the neighbour is the block before, so shift by one towards the end.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "own_first",
            "the block itself comes first",
            "The block before comes first, then the block itself: the tokens are in the order of their positions.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "own_twice",
            "each block stands beside itself",
            "The first half must be shifted by one block: block n gets block n - 1.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "one_token",
            "the neighbour is shifted by one token, not by one block",
            "Cut into blocks first, then shift along the axis of blocks.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "over_heads",
            "the shift runs over the heads",
            "The axes are (B, H, T/block, block, D): blocks are axis 2.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "strided",
            "a block holds every n-th token",
            "A block is `block` tokens in a row: the axis of blocks comes first, (…, T/block, block, D), in one "
            "`reshape` without a transpose.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "block_for_count",
            "block is taken for the number of blocks",
            "`block` is the size of one. There are T / block of them.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "alternating",
            "tokens of the two blocks alternate",
            "A `stack`, or a `cat` of the last axis with a reshape, puts them in turn. All tokens of the block before "
            "come first: `cat` along the axis of tokens in a block.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "on_numbers",
            "the two blocks are joined along the numbers",
            "That makes tokens of 2·D numbers. The neighbour's tokens are more tokens: join along axis 3.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "on_blocks",
            "the two are joined along the axis of blocks",
            "That makes twice as many blocks. Each block gets twice as many tokens: join along axis 3.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "first_left_out",
            "the first block is left out",
            "It has no neighbour, and queries all the same: it gets zeros before it.",
            "Blocks instead of a mask",
        ),
    ),
)

# --- window_by_blocks -------------------------------------------------------------------------------------------


def window_by_blocks(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    T = query.shape[2]
    query, key, value = (F.pad(x, (0, 0, 0, -T % window)) for x in (query, key, value))  # N·W tokens each
    queries = query.unflatten(2, (-1, window))  # (B, H, N, W, D)
    keys, values = neighbour_blocks(key, window), neighbour_blocks(value, window)  # (B, H, N, 2W, D or Dv)
    column = torch.arange(2 * window)
    behind = torch.arange(window, 2 * window)[:, None] - column  # (W, 2W)
    real = torch.arange(queries.shape[2])[:, None, None] * window + column >= window  # (N, 1, 2W)
    near = (behind >= 0) & (behind < window) & real  # (N, W, 2W)
    scores = queries @ keys.transpose(3, 4) / query.shape[3] ** 0.5  # (B, H, N, W, 2W)
    weights = scores.masked_fill(~near, float("-inf")).softmax(4)
    return (weights @ values).flatten(2, 3)[:, :, :T]  # (B, H, T, Dv)


def faulty_window_by_blocks(wrong: frozenset[str]) -> Callable:
    def window_by_blocks(query, key, value, window):
        T, n_tail = query.shape[2], query.shape[2] % window
        if "tail_dropped" in wrong:
            T -= n_tail
            query, key, value = query[:, :, :T], key[:, :, :T], value[:, :, :T]
        N = 1 if "all_pairs" in wrong else -(-T // window)
        W = T if "all_pairs" in wrong else window
        lacking = N * W - T
        place = torch.arange(N * W).view(N, W, 1)
        if "all_pairs" in wrong:
            queries, keys, values = (x.unsqueeze(2) for x in (query, key, value))
            key_place = torch.arange(T).view(1, 1, T)
        else:
            queries = F.pad(query, (0, 0, 0, lacking)).unflatten(2, (N, W))
            key_place = torch.arange(-W, W) + (torch.arange(N) * W)[:, None]  # (N, 2W)
            source = key_place % (N * W) if "wraps_around" in wrong else key_place + W
            front = 0 if "wraps_around" in wrong else W
            keys, values = (F.pad(x, (0, 0, front, lacking))[:, :, source] for x in (key, value))
            key_place = key_place[:, None]
        behind = place - key_place  # (N, W, 2W), or (1, T, T)
        if "misaligned" in wrong and "all_pairs" not in wrong:
            behind = behind - window
        reach = window + ("too_wide" in wrong) - ("too_narrow" in wrong)
        near = behind < (2 * window + T if "no_band" in wrong else reach)
        if "own_block_only" in wrong:
            near = near & (place // window == torch.div(key_place, window, rounding_mode="floor"))
        if "future_open" not in wrong:
            near = near & (behind >= ("self_left_out" in wrong))
        if not wrong & {"zeros_seen", "wraps_around"}:
            near = near & (key_place >= 0)
        if "inverted" in wrong:
            near = ~near
        scores = torch.einsum("bhnid,bhnjd->bhnij", queries, keys)
        if "not_scaled" not in wrong:
            size = (value if "value_size" in wrong else query).shape[-1]
            scores = scores / size ** (1.0 if "no_root" in wrong else 0.5)
        if "mask_multiplies" in wrong:
            scores = scores * near
        elif not wrong & {"mask_ignored", "mask_after"}:
            # A column of -inf, which every block has, would make all NaN: nothing to recognise it by.
            scores = torch.where(near, scores, -1e9 if "over_queries" in wrong else float("-inf"))
        weights = scores.softmax(-2 if "over_queries" in wrong else -1)
        if "mask_after" in wrong:
            weights = weights * near
        output = (weights @ values).flatten(2, 3)[:, :, :T]
        if "tail_zeros" in wrong and n_tail:
            output = F.pad(output[:, :, : query.shape[2] - query.shape[2] % window], (0, 0, 0, T % window))
        return output

    return window_by_blocks


def window_by_blocks_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(8200 + seed)

    def arguments(B: int, H: int, T: int, D: int, Dv: int, window: int) -> dict:
        return {
            "query": inputs.normal(B, H, T, D, spread=1.7),
            "key": inputs.normal(B, H, T, D, spread=1.7),
            "value": inputs.normal(B, H, T, Dv, spread=2.0),
            "window": window,
        }

    yield one_call("six tokens, a window of two", arguments(1, 1, 6, 2, 3, 2))
    yield one_call("a last block that is not full", arguments(1, 2, 7, 3, 4, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 9, 5, 6, 4))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3, 3))
    yield one_call("a window wider than the sequence", arguments(2, 1, 3, 4, 5, 7))
    yield one_call("a window of one", arguments(1, 2, 5, 4, 3, 1))
    yield one_call("one token", arguments(1, 2, 1, 24, 25, 4))
    # In head 0 the first two blocks give NaN in any way of computing. What comes later may not touch the first block,
    # not even with a weight of 0. Head 1 is finite, so that an answer which does is told from one that is all NaN.
    far = arguments(1, 2, 12, 5, 4, 3)
    far["query"][:, 0, :6] = far["value"][:, 0, :3] = float("inf")
    yield one_call("infinite values far outside the window", far, gradients=())
    loose = arguments(2, 3, 5, 4, 6, 2)
    loose = {n: x.transpose(1, 2).contiguous().transpose(1, 2) if n != "window" else x for n, x in loose.items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    double = arguments(1, 2, 5, 4, 3, 2)
    yield one_call("float64", {n: x.double() if n != "window" else x for n, x in double.items()}, "float64")


def _first_sees_itself(call: Call, result: Result) -> bool:
    value, output = call.arguments["value"][:, :, 0], result.outputs[0][:, :, 0]
    return not ((output - value).abs() > 1e-4)[value.isfinite()].any()


def _window_of_one(call: Call, result: Result) -> bool:
    return call.arguments["window"] > 1 or torch.allclose(result.outputs[0], call.arguments["value"], atol=1e-4)


WINDOW_BY_BLOCKS = Exercise(
    id="sliding_window/window_by_blocks",
    defines="window_by_blocks",
    title="Attend by blocks",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    scripts=window_by_blocks_scripts,
    reference=window_by_blocks,
    faulty=faulty_window_by_blocks,
    outputs=(Output("output", "B H T Dv"),),
    properties=(
        Property("the first token sees itself alone: its output is its value", _first_sees_itself),
        Property("with a window of one the output is the value", _window_of_one),
    ),
    habits=COMMON_HABITS,
    forbidden=("scaled_dot_product_attention",),
    misconceptions=(
        Misconception(
            "all_pairs",
            "tokens far outside the window touch the output",
            "0 times infinity is NaN, and the check puts infinity where no block has to look: it came through. All "
            "T × T pairs, most of them masked, cost more than no window at all. Give each block of queries the keys "
            "and values of its own block and the one before.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "own_block_only",
            "each block sees nothing before it",
            "The first query of a block then sees itself alone. Its window lies almost wholly in the block before.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "no_band",
            "each token sees all of the block before",
            "Two blocks hold every key that a window needs, and others. Inside them a band is left: 0 <= i - j < W.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "misaligned",
            "the band begins W keys too early",
            "Of the 2W keys the last W are the block itself: row i stands at column W + i, not at column i. With the "
            "band where it is, each token sees keys of the block before, and none of its own.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "zeros_seen",
            "the first block sees the zeros before it",
            "A key of zeros has the score 0, and exp(0) = 1 takes its share. In the first block the first half of the "
            "keys is not there: hide it.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "wraps_around",
            "the first block sees the last one",
            "Nothing stands before the first block. `roll` shows it the end of the sequence: the future.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "too_wide",
            "the window is one key too wide",
            "Here W counts the token itself: token i sees i - W + 1 … i, which are W keys.",
            "What W counts",
        ),
        Misconception(
            "too_narrow",
            "the window is one key too narrow",
            "Here W counts the token itself: token i sees i - W + 1 … i, which are W keys.",
            "What W counts",
        ),
        Misconception(
            "self_left_out",
            "a token does not see itself",
            "The first one then has no key at all, and its softmax is 0/0: NaN. The others lose the token they stand "
            "at.",
            "By hand",
        ),
        Misconception(
            "future_open",
            "later keys of the same block are visible",
            "A band has two edges: i - j < W cuts the past, i - j >= 0 the future.",
            "What a window sees",
        ),
        Misconception(
            "mask_ignored",
            "there is no mask inside the blocks",
            "Every query then sees both blocks: zeros, keys that are too far and keys that come later.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "mask_multiplies",
            "the scores outside the window are set to 0",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf before the "
            "softmax.",
            "By hand",
        ),
        Misconception(
            "mask_after",
            "the weights outside the window are set to zero after the softmax",
            "Those keys have already taken their share: the rest sums to less than 1. Fill their scores with -inf "
            "first.",
            "By hand",
        ),
        Misconception(
            "inverted",
            "only keys outside the window are seen: the mask is inverted",
            "`masked_fill` fills where its mask is True, so it wants the keys to hide: `~near` where True = may "
            "attend.",
            "The code",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "Asked for is scaled dot-product attention: without it the scores grow with D, and the softmax saturates.",
            "By hand",
        ),
        Misconception(
            "no_root",
            "the scores are divided by D, not by √D",
            "A dot product of D numbers spreads out with √D. Divided by D, the scores are nearly equal where D is "
            "large, and so are the weights.",
            "By hand",
        ),
        Misconception(
            "value_size",
            "the scores are divided by the square root of the value's size",
            "The dot product sums over the D numbers of a query and a key: `query.shape[-1]`. A value may have more or "
            "fewer.",
            "By hand",
        ),
        Misconception(
            "over_queries",
            "the shares sum to 1 over the queries",
            "Each query shares out its attention among its keys: softmax over the last axis, the keys.",
            "By hand",
        ),
        Misconception(
            "tail_dropped",
            "the tokens of the last block are left out where it is not full",
            "T need not be a multiple of W. Fill up the last block with zeros at the end, which no real query sees, "
            "and cut the output back to T.",
            "Blocks instead of a mask",
        ),
        Misconception(
            "tail_zeros",
            "the output is zero in the last block where it is not full",
            "`T // W` counts the full blocks only. Fill up the last block with zeros at the end, which no real query "
            "sees, and cut the output back to T.",
            "Blocks instead of a mask",
        ),
    ),
)

# --- slot_positions ---------------------------------------------------------------------------------------------


def slot_positions(length: int, window: int) -> Tensor:
    slot, newest = torch.arange(window), length - 1
    positions = newest - (newest - slot) % window  # the last position that falls on each slot
    return positions.masked_fill(positions < 0, -1)  # (W,)


def faulty_slot_positions(wrong: frozenset[str]) -> Callable:
    def slot_positions(length, window):
        if "one_more" in wrong:
            length = length + 1
        held = [-1] * window
        for position in range(length):
            slot = position + ("slots_from_one" in wrong)
            if "never_rolls" in wrong:
                if slot < window:
                    held[slot] = position
                continue
            if "cleared" in wrong and slot % window == 0:
                held = [-1] * window
            held[slot % window] = position
        kept = list(range(max(0, length - window), length))
        missing = [-1] * (window - len(kept))
        if "slot_numbers" in wrong:
            held = [position % window for position in kept] + missing
        if "in_order" in wrong:
            held = kept + missing
        if "newest_last" in wrong:
            held = missing + kept
        if "newest_first" in wrong:
            held = kept[::-1] + missing
        if "next_round" in wrong:
            held = [s + window * ((length - 1) // window) if length else -1 for s in range(window)]
        if wrong & {"current_round", "round_for_all"}:
            begin = length // window * window if "current_round" in wrong else (length - 1) // window * window
            reached = length if "round_for_all" in wrong else length - begin  # slots below this one are filled
            held = [begin + s if s < reached else -1 for s in range(window)]
        if "empty_zero" in wrong:
            held = [max(position, 0) for position in held]
        if "empty_negative" in wrong:
            held = [s - window if position < 0 else position for s, position in enumerate(held)]
        return torch.tensor(held)

    return slot_positions


def slot_positions_scripts(seed: int) -> Iterator[Script]:
    # No number of the answer depends on chance: the seed changes the sizes alone.
    more = seed % 4
    for name, length, window in (
        ("six tokens, four slots", 6, 4),
        ("three tokens, five slots", 3, 5),
        ("as many tokens as slots", 4, 4),
        ("one token more than slots", 7, 6),
        ("two full rounds", 10, 5),
        ("several rounds", 23 + 5 * more, 7),
        ("one slot", 5 + more, 1),
        ("one token", 1, 3 + more),
        ("no token yet", 0, 3),
    ):
        yield one_call(name, {"length": length, "window": window})


def _the_last_ones(call: Call, result: Result) -> bool:
    held, (length, window) = result.outputs[0], call.arguments.values()
    return sorted(held[held >= 0].tolist()) == list(range(max(0, length - window), length))


def _slots_stay(call: Call, result: Result) -> bool:
    held = result.outputs[0]
    return bool(((held < 0) | (held % call.arguments["window"] == torch.arange(len(held)))).all())


SLOT_POSITIONS = Exercise(
    id="sliding_window/slot_positions",
    defines="slot_positions",
    title="Say what a rolling cache holds",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=slot_positions_scripts,
    reference=slot_positions,
    faulty=faulty_slot_positions,
    outputs=(Output("positions", "window"),),
    rtol=0.0,
    properties=(
        Property("the slots hold the last tokens seen, as many as fit, each once", _the_last_ones),
        Property("position p stands in slot p % W", _slots_stay),
    ),
    misconceptions=(
        Misconception(
            "in_order",
            "the slots hold the positions in order, the oldest first",
            "Then every new token would move all others. In a rolling cache a token stays in its slot, p % W, until "
            "another takes its place.",
            "A cache that rolls",
        ),
        Misconception(
            "newest_last",
            "the newest position stands in the last slot",
            "Then every new token would move all others. In a rolling cache a token stays in its slot, p % W, until "
            "another takes its place.",
            "A cache that rolls",
        ),
        Misconception(
            "newest_first",
            "the newest position stands in slot 0",
            "Then every new token would move all others. In a rolling cache a token stays in its slot, p % W, until "
            "another takes its place.",
            "A cache that rolls",
        ),
        Misconception(
            "never_rolls",
            "the first W positions stay for ever",
            "A window sees the *last* W tokens: position W takes the place of position 0.",
            "A cache that rolls",
        ),
        Misconception(
            "one_more",
            "it holds a position that has not been seen",
            "`length` tokens have the positions 0 … length - 1: the newest is length - 1.",
            "A cache that rolls",
        ),
        Misconception(
            "slots_from_one",
            "each position stands one slot too far",
            "Position 0 stands in slot 0, position p in slot p % W; the *next* one will go to slot length % W.",
            "A cache that rolls",
        ),
        Misconception(
            "next_round",
            "slots not reached in this round hold positions of the future",
            "They still hold the round before, W less: what is there are the newest position and the W - 1 before it.",
            "A cache that rolls",
        ),
        Misconception(
            "current_round",
            "only the current round is there",
            "Slots that it has not reached yet still hold the round before: subtract W there.",
            "A cache that rolls",
        ),
        Misconception(
            "round_for_all",
            "it holds positions that have not been seen, in slots not reached in this round",
            "They still hold the round before, W less. Compare the *position* with `length`, not the slot.",
            "A cache that rolls",
        ),
        Misconception(
            "cleared",
            "the cache is emptied at the start of each round",
            "A new token takes the place of one old one. The others stay, and the window still sees them.",
            "A cache that rolls",
        ),
        Misconception(
            "slot_numbers",
            "it gives the slot of each position, not the position in each slot",
            "Entry s of the answer is a position: the last one p with p % W = s.",
            "A cache that rolls",
        ),
        Misconception(
            "empty_zero",
            "empty slots say 0",
            "0 is a position, that of the first token: a mask made from it would show zeros as keys. Asked for is -1.",
            "A cache that rolls",
        ),
        Misconception(
            "empty_negative",
            "empty slots hold other negative numbers",
            "The formula runs on below 0, to positions before the text. Asked for is -1 in all of them.",
            "A cache that rolls",
        ),
    ),
)

# --- retained_tokens --------------------------------------------------------------------------------------------


def retained_tokens(n_tokens: Tensor, windows: tuple[int | None, ...]) -> Tensor:
    layers = [n_tokens if window is None else n_tokens.clamp(max=window) for window in windows]
    return torch.stack(layers).sum(0)  # (N,)


def faulty_retained_tokens(wrong: frozenset[str]) -> Callable:
    def retained_tokens(n_tokens, windows):
        local = [window for window in windows if window is not None]
        kept = []
        seen = n_tokens
        for window in windows:
            if "windows_ignored" in wrong:
                window = None
            if window is None and "global_left_out" in wrong:
                continue
            if window is None and "global_capped" in wrong and local:
                window = max(local)
            if window is not None:
                if "one_window" in wrong:
                    window = local[0]
                window = window * (2 if "two_blocks" in wrong else 1)
                window = window + ("one_more" in wrong) - ("one_less" in wrong)
            if window is None:
                kept.append(seen)
            elif "always_full" in wrong:
                kept.append(torch.full_like(n_tokens, window))
            else:
                smaller_or_larger = torch.maximum if "larger" in wrong else torch.minimum
                kept.append(smaller_or_larger(seen, torch.tensor(window)))
            if "cut_for_all" in wrong:
                seen = kept[-1]
        total = sum(kept, torch.zeros_like(n_tokens))
        if "largest_only" in wrong and kept:
            total = torch.stack(kept).amax(0)
        if "twice" in wrong:
            total = 2 * total
        if "stays_zero" in wrong:
            total = torch.zeros_like(n_tokens)
        if "averaged" in wrong:
            total = total / len(windows)
        return total.sum() if "one_number" in wrong else total

    return retained_tokens


def retained_tokens_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(8400 + seed)

    def script(name: str, n_tokens: list[int], windows: tuple[int | None, ...]) -> Script:
        return one_call(name, {"n_tokens": torch.tensor(n_tokens), "windows": windows})

    yield script("two lengths; a local layer and a global one", [3, 10], (4, None))
    yield script("three lengths; five local layers, then a global one", [2, 9, 40], (8, 8, 8, 8, 8, None))
    yield script("two widths", [1, 5, 12, 50], (6, 16, None, 6, None))
    yield script("local layers only", [4, 7, 300], (7, 7, 3))
    yield script("global layers only", [5, 11, 1, 64, 20], (None, None, None))
    some = torch.randint(1, 99, (6,), generator=inputs.generator).tolist()
    width = int(torch.randint(20, 60, (1,), generator=inputs.generator))
    yield script("six lengths, twelve layers", some, (*[width] * 5, None) * 2)


def _no_more_than_there_are(call: Call, result: Result) -> bool:
    n_tokens, windows = call.arguments.values()
    return bool((result.outputs[0] <= len(windows) * n_tokens).all())


RETAINED_TOKENS = Exercise(
    id="sliding_window/retained_tokens",
    defines="retained_tokens",
    title="Count what all layers keep",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=retained_tokens_scripts,
    reference=retained_tokens,
    faulty=faulty_retained_tokens,
    outputs=(Output("total", "N"),),
    rtol=0.0,
    properties=(Property("L layers never keep more than L times the tokens seen", _no_more_than_there_are),),
    misconceptions=(
        Misconception(
            "stays_zero",
            "the total stays 0",
            "If a line says `total + …` alone: it makes a new tensor and does not change `total`. Write `total = total "
            "+ …`.",
            "Local and global layers",
        ),
        Misconception(
            "windows_ignored",
            "every layer keeps all tokens",
            "A local layer forgets what has left its window: it keeps W tokens at most.",
            "Local and global layers",
        ),
        Misconception(
            "global_left_out",
            "the global layers are left out",
            "None stands for a layer without a window, which keeps every token. In long texts these are most of the "
            "total.",
            "Local and global layers",
        ),
        Misconception(
            "global_capped",
            "a global layer keeps no more than the widest window",
            "None stands for a layer without a window: it keeps every token.",
            "Local and global layers",
        ),
        Misconception(
            "always_full",
            "a local layer keeps W tokens even where fewer have been seen",
            "Room is not content: after n tokens it holds n, up to W. It is the smaller of the two.",
            "Local and global layers",
        ),
        Misconception(
            "larger",
            "the larger of the two is taken",
            "`clamp(min=W)`, or `clamp(W)`, raises to W. The cache holds at most W: `clamp(max=W)`.",
            "Local and global layers",
        ),
        Misconception(
            "one_less",
            "a local layer keeps W - 1 tokens",
            "One library stores W - 1, because the newest key comes on top. Asked for is the window's own count, the "
            "newest included: W.",
            "What W counts",
        ),
        Misconception(
            "one_more",
            "a local layer keeps W + 1 tokens",
            "W counts the newest token too: W are kept.",
            "What W counts",
        ),
        Misconception(
            "two_blocks",
            "a local layer keeps 2W tokens",
            "Two blocks are what a block of queries is computed with. To go on, the next token needs the last W only.",
            "A cache that rolls",
        ),
        Misconception(
            "one_window",
            "all local layers get the first one's window",
            "Each layer has an entry of its own.",
            "Local and global layers",
        ),
        Misconception(
            "cut_for_all",
            "what one layer keeps is all that the next one gets",
            "Each layer gets all n tokens, whatever the layer before has kept. In a loop, give the smaller number a "
            "name of its own, and do not edit `n_tokens` in place.",
            "Local and global layers",
        ),
        Misconception(
            "largest_only",
            "only the largest layer counts",
            "Every layer has keys and values of its own, so every layer has a cache: add them up.",
            "Local and global layers",
        ),
        Misconception(
            "averaged",
            "it is the mean over the layers",
            "Asked for is what all layers keep together, a whole number.",
            "Local and global layers",
        ),
        Misconception(
            "twice",
            "keys and values are counted apart",
            "A token that is kept has a key and a value. Asked for are tokens; bytes come later, and there the 2 "
            "belongs.",
            "Local and global layers",
        ),
        Misconception(
            "one_number",
            "the lengths are added up too",
            "Each length is a question of its own: one total for each, (N,). Add over the layers only.",
            "Local and global layers",
        ),
    ),
)

EXERCISES = (NEAR_MASK, NEIGHBOUR_BLOCKS, WINDOW_BY_BLOCKS, SLOT_POSITIONS, RETAINED_TOKENS)
