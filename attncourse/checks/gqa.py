"""Exercises of chapter 13: key heads repeated, queries put together, attention with both, heads pooled and counted."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, EXTREME, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "13_gqa"
LOW_FILL = "With `softmax`, look at the fill: -100 is not low beside a score of -300, so fill with -inf."


# --- repeat_kv --------------------------------------------------------------------------------------------------


def repeat_kv(x: Tensor, n_repeats: int) -> Tensor:
    B, G, S, D = x.shape
    copies = x[:, :, None].expand(B, G, n_repeats, S, D)
    return copies.reshape(B, G * n_repeats, S, D)  # (B, H, S, D)


def faulty_repeat_kv(wrong: frozenset[str], tiled: bool = False) -> Callable:
    """tiled: asked for are the heads one after the other, then all again."""

    def repeat_kv(x, n_repeats):
        B, G, S, D = x.shape
        n = n_repeats // G if "n_is_total" in wrong else n_repeats
        n = 1 if "not_repeated" in wrong else n + ("one_more" in wrong)
        if "first_only" in wrong:
            x = x[:, :1].expand_as(x)
        if "divided" in wrong:
            x = x / n_repeats
        if n == 0:
            return x[:, :0]
        copies = [x, *[torch.zeros_like(x) if "first_copy_only" in wrong else x] * (n - 1)]
        if "tokens_mixed" in wrong:
            return torch.stack(copies, 3).reshape(B, G * n, S, D)
        if "not_merged" in wrong:
            return torch.stack(copies, 2)
        if "copies_in_tokens" in wrong:
            return torch.cat(copies, 2)
        axis = next((i for i, name in ((0, "over_batch"), (2, "over_tokens"), (3, "over_numbers")) if name in wrong), 1)
        if tiled != ("other_order" in wrong) and axis != 2:  # over the tokens that is "copies_in_tokens"
            return torch.cat(copies, axis)
        return torch.stack(copies, axis + 1).flatten(axis, axis + 1)

    repeat_kv.wrong = wrong  # so that the variant can make it in the other order
    return repeat_kv


def _tiled(implementation: Callable) -> Callable:
    """repeat_kv with the copies in the other order. A known mistake is made anew: a swap of orders undoes one."""
    if hasattr(implementation, "wrong"):
        return faulty_repeat_kv(implementation.wrong, tiled=True)
    return lambda x, n_repeats: implementation(x, n_repeats).unflatten(1, (-1, n_repeats)).transpose(1, 2).flatten(1, 2)


def repeat_kv_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(13000 + seed)

    def arguments(B: int, G: int, S: int, D: int, n_repeats: int) -> dict:
        return {"x": inputs.normal(B, G, S, D), "n_repeats": n_repeats}

    yield one_call("two key heads, each for three queries", arguments(1, 2, 4, 2, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 6, 4))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield one_call("as many repeats as tokens", arguments(3, 2, 4, 5, 4))
    yield one_call("one key head", arguments(3, 1, 4, 5, 6))
    yield one_call("one repeat", arguments(2, 3, 4, 5, 1))
    loose = arguments(2, 3, 4, 5, 2)
    loose["x"] = loose["x"].transpose(1, 2).contiguous().transpose(1, 2)  # as heads are after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    given = arguments(1, 2, 3, 4, 2)
    yield one_call("float64", {**given, "x": given["x"].double()}, "float64")


def _first_head_first(call: Call, result: Result) -> bool:
    return torch.equal(result.outputs[0][:, 0], call.arguments["x"][:, 0])


REPEAT_KV = Exercise(
    id="gqa/repeat_kv",
    defines="repeat_kv",
    title="Repeat each key head for its queries",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=repeat_kv_scripts,
    reference=repeat_kv,
    faulty=faulty_repeat_kv,
    outputs=(Output("repeated", "B G·n_repeats S D"),),
    properties=(Property("head 0 of the result is key head 0", _first_head_first),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "other_order",
            "the copies stand in the other order",
            "Query head h reads key head h // n_repeats, so the copies of a head stand side by side: A A B B. "
            "`repeat` gives A B A B, where it reads key head h mod G. Shapes are the same, and a checkpoint trained "
            "with one is noise with the other.",
            "Which head reads which",
        ),
        Misconception(
            "copies_in_tokens",
            "the copies of a head stand one after the other among its tokens",
            "The copies are right and joined along the wrong axis: more heads are asked for, not more tokens. Heads "
            "are axis 1 of (B, G, S, D). Where the copies have an axis of their own, join it with the heads.",
            "Which head reads which",
        ),
        Misconception(
            "over_tokens",
            "the tokens are repeated, not the heads",
            "Each token then stands n_repeats times in the sequence. The heads are axis 1 of (B, G, S, D).",
            "Which head reads which",
        ),
        Misconception(
            "tokens_mixed",
            "the copies are made along another axis and then reshaped into heads",
            "The shape is right, and a head holds tokens of other places. The new axis comes right after the key "
            "heads, (B, G, n_repeats, S, D), so that `reshape` joins neighbours.",
            "Which head reads which",
        ),
        Misconception(
            "over_batch",
            "the sequences are repeated, not the heads",
            "Axis 0 is the batch. The heads are axis 1 of (B, G, S, D).",
            "Which head reads which",
        ),
        Misconception(
            "over_numbers",
            "the numbers of a head are repeated, not the heads",
            "The last axis is D, what a query is multiplied with. The heads are axis 1 of (B, G, S, D).",
            "Which head reads which",
        ),
        Misconception(
            "first_only",
            "all copies are of the first key head",
            "That is multi-query attention. Here each of the G key heads serves its own n_repeats query heads.",
            "Between one and all",
        ),
        Misconception(
            "first_copy_only",
            "only the first copy of each head is filled, the others are zeros",
            "`::n_repeats` writes one of the copies. Each of the n_repeats query heads needs the key.",
            "Which head reads which",
        ),
        Misconception(
            "divided",
            "the copies are divided by their number",
            "Each query head reads the key as it is: nothing is shared out.",
            "Which head reads which",
        ),
        Misconception(
            "n_is_total",
            "n_repeats is taken for the number of query heads",
            "It is how often each key head stands in the result, H / G. The result has G · n_repeats heads.",
            "Between one and all",
        ),
        Misconception(
            "one_more",
            "each head stands there once too often",
            "n_repeats counts all copies, the first included: with 1 nothing changes.",
            "Which head reads which",
        ),
        Misconception(
            "not_repeated",
            "nothing is repeated",
            "There are G heads still; asked for are G · n_repeats.",
            "Which head reads which",
        ),
        Misconception(
            "not_merged",
            "the copies keep an axis of their own",
            "(B, G, n_repeats, S, D) holds the right numbers; make G and n_repeats one axis of heads.",
            "Which head reads which",
        ),
    ),
    variants={
        "tiled": Variant(
            statement="In this copy query head h reads key head h mod G, as in a library that counts so: the G heads "
            "stand one after the other, then all of them again, A B A B.",
            argument=lambda name, value: value,
            wrap=_tiled,
            explanations={
                "other_order": "Here query head h reads key head h mod G, so all G heads stand one after the other, "
                "n_repeats times over: A B A B. `repeat_interleave` gives A A B B, the chapter's order. Shapes are "
                "the same, and a checkpoint trained with one is noise with the other.",
                "tokens_mixed": "The shape is right, and a head holds tokens of other places. The new axis comes "
                "right before the key heads, (B, n_repeats, G, S, D), so that `reshape` joins neighbours.",
                "first_copy_only": "One of the copies is written. Each of the n_repeats query heads needs the key.",
                "not_merged": "Asked for is one axis of heads: the copies before the key heads, (B, n_repeats, G, S, "
                "D), then make n_repeats and G one axis.",
            },
        )
    },
)

# --- group_queries ----------------------------------------------------------------------------------------------


def group_queries(query: Tensor, n_kv_heads: int) -> Tensor:
    n_sharing = query.shape[1] // n_kv_heads  # query heads that share one key head
    sets = query.unflatten(1, (n_kv_heads, n_sharing))  # (B, G, H/G, T, D)
    return sets.flatten(2, 3)  # (B, G, H/G·T, D)


def faulty_group_queries(wrong: frozenset[str]) -> Callable:
    def group_queries(query, n_kv_heads):
        B, H, T, D = query.shape
        G = H // n_kv_heads if "size_for_count" in wrong else n_kv_heads
        n = H // G
        if "all_for_each" in wrong:
            sets = query.unsqueeze(1).expand(B, G, H, T, D)
        elif "tokens_cut" in wrong:
            sets = query.transpose(1, 2).reshape(B, G, n, T, D)
        elif "other_order" in wrong:
            sets = torch.stack([query[:, g::G] for g in range(G)], 1)
        else:
            sets = torch.stack(query.split(n, 1), 1)
        if "averaged" in wrong:
            sets = sets.mean(2, keepdim=True)
        elif "summed" in wrong:
            sets = sets.sum(2, keepdim=True)
        elif "first_only" in wrong:
            sets = sets[:, :, :1]
        if "not_merged" in wrong:
            return sets
        if "side_by_side" in wrong:
            return sets.movedim(2, 3).flatten(3)
        if "token_major" in wrong:
            sets = sets.transpose(2, 3)
        rows = sets.flatten(2, 3)
        return rows.flatten(0, 1) if "in_batch" in wrong else rows

    return group_queries


def group_queries_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(13100 + seed)

    def arguments(B: int, H: int, T: int, D: int, n_kv_heads: int) -> dict:
        return {"query": inputs.normal(B, H, T, D), "n_kv_heads": n_kv_heads}

    yield one_call("six heads, two key heads", arguments(1, 6, 4, 2, 2))
    yield one_call("a batch, all sizes different", arguments(2, 12, 5, 6, 3))
    yield one_call("as many tokens as heads", arguments(4, 4, 4, 4, 2))
    yield one_call("one key head", arguments(2, 3, 4, 5, 1))
    yield one_call("as many key heads as heads", arguments(2, 3, 4, 5, 3))
    yield one_call("one token", arguments(2, 8, 1, 9, 4))
    loose = arguments(2, 6, 4, 5, 3)
    loose["query"] = loose["query"].transpose(1, 2).contiguous().transpose(1, 2)  # as heads are after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    given = arguments(1, 4, 3, 4, 2)
    yield one_call("float64", {**given, "query": given["query"].double()}, "float64")


def _as_many_queries(call: Call, result: Result) -> bool:
    return torch.equal(result.outputs[0].flatten().sort().values, call.arguments["query"].flatten().sort().values)


GROUP_QUERIES = Exercise(
    id="gqa/group_queries",
    defines="group_queries",
    title="Put the queries of one key head together",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=group_queries_scripts,
    reference=group_queries,
    faulty=faulty_group_queries,
    outputs=(Output("rows", "B G H/G·T D"),),
    properties=(Property("every query is there, once, with its numbers unchanged", _as_many_queries),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "other_order",
            "heads that are G apart share a key head",
            "Query head h reads key head h // (H/G): neighbours share. Taking h mod G has the same shapes and another "
            "meaning.",
            "Which head reads which",
        ),
        Misconception(
            "token_major",
            "the heads of one token stand together, then those of the next token",
            "Asked for are all T queries of the first head, then those of the next: row r·T + t is head r of the set, "
            "token t. That order needs no copy.",
            "Which head reads which",
        ),
        Misconception(
            "tokens_cut",
            "tokens are exchanged with heads before the reshape",
            "Then a key head gets some of the tokens of all heads. Heads come before tokens in (B, H, T, D) already: "
            "cut H in two, and join nothing but neighbours.",
            "Which head reads which",
        ),
        Misconception(
            "size_for_count",
            "n_kv_heads is taken for the number of query heads that share a key head",
            "n_kv_heads is G, the number of key heads. Each is shared by H / G query heads. Some texts call both by "
            "one word.",
            "Between one and all",
        ),
        Misconception(
            "averaged",
            "the queries that share a key head are averaged",
            "Only keys and values are shared. Each head keeps its own query: H/G·T rows for each key head.",
            "Between one and all",
        ),
        Misconception(
            "summed",
            "the queries that share a key head are added",
            "Only keys and values are shared. Each head keeps its own query: H/G·T rows for each key head.",
            "Between one and all",
        ),
        Misconception(
            "first_only",
            "only the first query head of each key head is kept",
            "Only keys and values are shared. Each head keeps its own query: H/G·T rows for each key head.",
            "Between one and all",
        ),
        Misconception(
            "all_for_each",
            "every key head gets the queries of all heads",
            "Each query head reads one key head, and stands in one place: H/G·T rows for each, not H·T.",
            "Which head reads which",
        ),
        Misconception(
            "side_by_side",
            "the heads stand side by side in the numbers",
            "A query of H/G·D numbers meets no key of D. The heads are more rows: join them with the tokens.",
            "Which head reads which",
        ),
        Misconception(
            "in_batch",
            "the key heads are joined with the batch",
            "Some libraries compute so. Here the key heads keep an axis of their own: (B, G, H/G·T, D).",
            "Which head reads which",
        ),
        Misconception(
            "not_merged",
            "heads and tokens are two axes still",
            "(B, G, H/G, T, D) holds the right numbers; make H/G and T one axis of rows, so that one matrix product "
            "with (B, G, S, D) does it all.",
            "Which head reads which",
        ),
    ),
)

# --- grouped_attention ------------------------------------------------------------------------------------------


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    rows = query.reshape(B, G, H // G * T, D)
    scores = (rows @ key.mT).reshape(B, H, T, S) / D**0.5
    allowed = torch.arange(S) <= torch.arange(S - T, S)[:, None]  # (T, S)
    if mask is not None:
        allowed = allowed & mask  # (B, 1, T, S)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~allowed, 0.0)
    output = weights.reshape(B, G, H // G * T, S) @ value  # (B, G, H/G·T, Dv)
    return output.reshape(B, H, T, value.shape[-1])


def faulty_grouped_attention(wrong: frozenset[str]) -> Callable:
    def grouped_attention(query, key, value, mask=None):
        _, H, T, D = query.shape
        G, S = key.shape[1:3]
        n = H // G
        if "first_key_head" in wrong:
            key, value = key[:, :1].expand_as(key), value[:, :1].expand_as(value)
        sets = query.unflatten(1, (n, G)).transpose(1, 2) if "other_order" in wrong else query.unflatten(1, (G, n))
        if "queries_averaged" in wrong:
            sets = sets.mean(2, keepdim=True).expand_as(sets)
        scores = torch.einsum("bgntd,bgsd->bgnts", sets, key)
        if "not_scaled" not in wrong:
            size = value.shape[-1] if "value_size" in wrong else H * D if "width" in wrong else D
            scores = scores / size ** (1.0 if "no_root" in wrong else 0.5)
        row = torch.arange(n * T).view(n, T, 1)
        n_rows = n * T if "rows_are_tokens" in wrong else T
        if "mask_by_token" in wrong:
            row = row // n
        elif not wrong & {"rows_are_tokens", "rows_go_on"}:
            row = row % T
        place = row + (0 if "top_left" in wrong else S - n_rows)
        place = place + int("one_ahead" in wrong) - int("self_left_out" in wrong)
        allowed = place <= torch.arange(S) if "transposed" in wrong else place >= torch.arange(S)
        if "not_causal" in wrong or ("causal_when_empty" in wrong and S > T):
            allowed = torch.ones_like(allowed)
        if mask is not None and "mask_ignored" not in wrong:
            padding = ~mask if "mask_inverted" in wrong else mask
            if "at_the_front" in wrong:
                padding = torch.arange(S) >= (~mask).sum(-1, keepdim=True)
            if "mask_replaces" in wrong:
                allowed = torch.ones_like(allowed)
            if "padding_after" not in wrong:
                seen = padding if "mask_over_heads" in wrong else padding.unsqueeze(1)
                allowed = allowed | seen if "either" in wrong else allowed & seen
            if "blind_padding" in wrong:
                allowed = allowed & mask[..., -T:].mT.unsqueeze(1)
        if "inverted" in wrong:
            allowed = ~allowed
        axis = -2 if "over_queries" in wrong else -1
        if "mask_multiplies" in wrong:
            weights = (scores * allowed).softmax(axis)
        elif "mask_after" in wrong:
            weights = scores.softmax(axis) * allowed
        else:
            # Where a column of -inf would make all NaN, a large number stands for it.
            fill = -1e9 if wrong & {"empty_even", "over_queries"} else float("-inf")
            weights = torch.where(allowed, scores, fill).softmax(axis)
            if not wrong & {"empty_nan", "empty_even"}:
                weights = torch.where(allowed, weights, 0.0)
        if "padding_after" in wrong and mask is not None:
            weights = weights * mask.unsqueeze(1)
        output = torch.einsum("bgnts,bgsv->bgntv", weights, value)
        if "heads_mixed" in wrong:
            return output.flatten(1, 3).unflatten(1, (T, H)).transpose(1, 2)
        merged_otherwise = ("other_order" in wrong) != ("merged_otherwise" in wrong)
        return (output.transpose(1, 2) if merged_otherwise else output).flatten(1, 2)

    return grouped_attention


def grouped_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(13200 + seed)

    def arguments(B: int, H: int, G: int, T: int, S: int, D: int, Dv: int, *lengths: int) -> dict:
        """Sequences of these lengths, padded on the left; of a negative one, on the right."""
        place, real = torch.arange(S), None
        if lengths:
            real = torch.stack([place >= S - n if n > 0 else place < -n for n in lengths])
        return {
            "query": inputs.normal(B, H, T, D, spread=1.7),
            "key": inputs.normal(B, G, S, D, spread=1.7),
            "value": inputs.normal(B, G, S, Dv, spread=2.0),
            "mask": None if real is None else real[:, None, None],  # (B, 1, 1, S)
        }

    yield one_call("six heads, two key heads", arguments(1, 6, 2, 3, 3, 2, 4))
    yield one_call("two queries, five keys", arguments(1, 4, 2, 2, 5, 3, 4))
    yield one_call("padded sequences", arguments(3, 4, 2, 2, 4, 3, 5, 3, 4, 2))
    yield one_call("sequences that begin late", arguments(2, 6, 3, 4, 4, 2, 3, 2, 3))
    yield one_call("as many sequences as key heads", arguments(2, 4, 2, 2, 3, 4, 5, 3, 2))
    yield one_call("padded on the right", arguments(3, 4, 2, 3, 5, 3, 4, -3, -4, 4))
    yield one_call("a batch, all sizes different", arguments(2, 12, 3, 5, 8, 6, 7, 6, 8))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 1))
    yield one_call("one key head", arguments(2, 4, 1, 3, 4, 5, 6))
    yield one_call("as many key heads as heads", arguments(2, 3, 3, 4, 5, 6, 2))
    yield one_call("one query", arguments(2, 8, 4, 1, 9, 10, 11, 9, 6))
    loose = arguments(2, 4, 2, 3, 5, 4, 6)
    for name in ("query", "key", "value"):
        loose[name] = loose[name].transpose(1, 2).contiguous().transpose(1, 2)  # as heads are after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    given = arguments(2, 4, 2, 3, 4, 5, 3, 4, 3)
    double = {name: t if name == "mask" else t.double() for name, t in given.items()}
    yield one_call("float64", double, "float64")
    large = arguments(2, 4, 2, 4, 4, 4, 5, 4, 3)
    yield one_call("scores of a few hundred", large | {"query": large["query"] * 60}, "extreme")


def _seen(call: Call) -> Tensor:
    """The keys that each query may attend to, (B, T, S)."""
    query, key, _, mask = call.arguments.values()
    B, T, S = query.shape[0], query.shape[2], key.shape[2]
    seen = torch.ones(B, T, S, dtype=torch.bool).tril(S - T)
    return seen if mask is None else seen & mask[:, 0]


def _nothing_gives_zeros(call: Call, result: Result) -> bool:
    return not result.outputs[0].movedim(1, 2)[~_seen(call).any(-1)].any()


def _one_key_gives_its_value(call: Call, result: Result) -> bool:
    output, value, seen = result.outputs[0], call.arguments["value"], _seen(call)
    value = value[:, torch.arange(output.shape[1]) // (output.shape[1] // value.shape[1])]  # (B, H, S, Dv)
    own = value.gather(2, seen.int().argmax(-1)[:, None, :, None].expand_as(output))
    one = (seen.sum(-1) == 1)[:, None, :, None]
    return torch.allclose(torch.where(one, output, 0.0), torch.where(one, own, 0.0), atol=1e-4)


GROUPED_ATTENTION = Exercise(
    id="gqa/grouped_attention",
    defines="grouped_attention",
    title="Attend with shared key heads",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    scripts=grouped_attention_scripts,
    reference=grouped_attention,
    faulty=faulty_grouped_attention,
    outputs=(Output("output", "B H T Dv"),),
    properties=(
        Property("a query with no key to attend to gets zeros", _nothing_gives_zeros),
        Property(
            "a query with one key to attend to gets that key's value, of value head h // (H/G)",
            _one_key_gives_its_value,
        ),
    ),
    habits=COMMON_HABITS | {"extreme": f"{EXTREME} {LOW_FILL}"},
    forbidden=("scaled_dot_product_attention", "multi_head_attention_forward"),
    misconceptions=(
        Misconception(
            "other_order",
            "query head h reads key head h mod G",
            "Here it reads key head h // (H/G): neighbours share, A A B B. Shapes are the same, and a checkpoint "
            "trained with one order is noise with the other.",
            "Which head reads which",
        ),
        Misconception(
            "merged_otherwise",
            "the heads come out in another order than they went in",
            "(B, G, H/G, T, Dv) becomes (B, H, T, Dv) by joining axes 1 and 2 as they stand: head g·H/G + r is number "
            "r of key head g. No transpose.",
            "Which head reads which",
        ),
        Misconception(
            "heads_mixed",
            "the outputs go back to heads in another order than the rows came in",
            "The rows stand head after head, all T tokens of each: (B, G, H/G·T, Dv) becomes (B, H, T, Dv) in one "
            "reshape, with H before T and no transpose.",
            "Which head reads which",
        ),
        Misconception(
            "first_key_head",
            "all heads read the first key head",
            "That is multi-query attention. Here H/G query heads share each of the G key heads.",
            "Between one and all",
        ),
        Misconception(
            "queries_averaged",
            "heads that share a key head share a query too",
            "Only keys and values are shared. Each head has a query of its own, and so weights of its own.",
            "Between one and all",
        ),
        Misconception(
            "not_causal",
            "there is no causal mask",
            "A query sees the keys up to its own position, whether or not there is a padding mask.",
            "The code",
        ),
        Misconception(
            "top_left",
            "where T < S, the first query stands at position 0",
            "The queries are the last T of S positions: query t stands at S - T + t, and the last one sees every key. "
            "A cache makes T less than S.",
            "The code",
        ),
        Misconception(
            "rows_are_tokens",
            "the rows of all heads that share a key are taken for positions",
            "Row r·T + t is token t, whatever its head. With H/G·T rows counted as positions, each head sees more or "
            "less of the keys than the one before it. Mask at (B, H, T, S), or repeat the (T, S) mask for each of the "
            "H/G heads.",
            "Which head reads which",
        ),
        Misconception(
            "rows_go_on",
            "the positions go on from head to head: the second head of a set begins where the first ends",
            "Each head has the same T tokens, at the same positions. Mask at (B, H, T, S), or repeat the (T, S) mask "
            "for each of the H/G heads.",
            "Which head reads which",
        ),
        Misconception(
            "mask_by_token",
            "the mask has the rows of one token side by side, and the queries stand head by head",
            "`repeat_interleave` repeats each row of the mask H/G times in a row. The queries stand head after head: "
            "repeat the whole (T, S) mask, or mask at (B, H, T, S).",
            "Which head reads which",
        ),
        Misconception(
            "inverted",
            "the keys that may be seen are hidden, and the others seen",
            "`masked_fill` fills where its mask is True: where True = may attend it wants `~allowed`.",
            "The code",
        ),
        Misconception(
            "transposed",
            "each query sees itself and what comes after it",
            "The row is the query and the column the key: hide the keys that come after the query.",
            "The code",
        ),
        Misconception(
            "one_ahead",
            "a query sees one key too many, the one after its own",
            "Query t stands at S - T + t and sees the keys up to there: `<=` with that position, or `tril(S - T)`.",
            "The code",
        ),
        Misconception(
            "self_left_out",
            "a query does not see its own key",
            "A token may read itself: key S - T + t is allowed too.",
            "By hand",
        ),
        Misconception(
            "causal_when_empty",
            "later keys are hidden only where there is no past",
            "With T = 1 that is right, and so it is overlooked. Where several tokens follow a past, each still sees "
            "nothing after itself.",
            "The code",
        ),
        Misconception(
            "mask_ignored",
            "the mask is not used",
            "Padding then takes part, as if it were text. Where `mask` is given, a key must be allowed by both.",
            "The code",
        ),
        Misconception(
            "mask_replaces",
            "where there is a mask, later keys are not hidden",
            "The mask says what is padding, and nothing about later keys. Both count: start from the causal mask, and "
            "join `mask` to it where there is one.",
            "The code",
        ),
        Misconception(
            "either",
            "a key is seen that one of the two masks allows",
            "It must be allowed by both: join them with `&`, not `|`.",
            "The code",
        ),
        Misconception(
            "padding_after",
            "the weights of padding are set to zero after the softmax",
            "Padding has already taken its share: the rest sums to less than 1. Fill its scores with -inf too.",
            "The code",
        ),
        Misconception(
            "blind_padding",
            "queries that are padding get zeros",
            "Only a query with no key to attend to gets zeros. With padding on the right, a padded query still has the "
            "keys before it.",
            "The code",
        ),
        Misconception(
            "at_the_front",
            "padding is taken to be on the left",
            "How many keys are padding does not say which. Use the mask itself: a key is real where it is True.",
            "The code",
        ),
        Misconception(
            "mask_inverted",
            "the mask is inverted",
            "Here True means: may attend. `masked_fill` fills where its mask is True, so it wants the keys to hide.",
            "The code",
        ),
        Misconception(
            "mask_over_heads",
            "the mask's batch axis lines up with the key heads",
            "Shapes line up on the right: (B, 1, 1, S) beside five axes, (B, G, H/G, T, S), takes B for G. It crashes "
            "unless B is G or 1, and with B = G it is silently wrong. Give the mask one more axis, or go back to "
            "(B, H, T, S) before you mask.",
            "The code",
        ),
        Misconception(
            "mask_after",
            "the weights of forbidden keys are set to zero after the softmax",
            "Those keys have already taken their share: the rest sums to less than 1. Fill their scores with -inf "
            "first.",
            "The code",
        ),
        Misconception(
            "mask_multiplies",
            "the scores of forbidden keys are set to 0",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf before the "
            "softmax.",
            "The code",
        ),
        Misconception(
            "empty_nan",
            "a query with no key to attend to gets NaN",
            "A row of -inf alone gives 0/0. Padding on the left makes such rows: after the softmax, set forbidden "
            "weights to 0.",
            "The code",
        ),
        Misconception(
            "empty_even",
            "a query with no key to attend to gets the mean of all values",
            "A large negative number instead of -inf hides nothing where every key has it: the softmax shares out "
            "evenly. After the softmax, set forbidden weights to 0.",
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
            "A dot product of D numbers spreads out with √D. Divided by D, the weights are nearly equal where D is "
            "large.",
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
            "width",
            "the scores are divided by the square root of H·D",
            "A head's dot product has D terms, however many heads there are: divide by √D.",
            "By hand",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Each query shares out its attention among its keys: softmax over the last axis, the keys.",
            "By hand",
        ),
    ),
)

# --- pool_heads -------------------------------------------------------------------------------------------------


def pool_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    n_sharing = n_heads // n_kv_heads  # heads that become one
    heads = weight.unflatten(0, (n_kv_heads, n_sharing, -1))  # (G, H/G, D, d_model)
    return heads.mean(1).flatten(0, 1)  # (G·D, d_model)


def faulty_pool_heads(wrong: frozenset[str]) -> Callable:
    def pool_heads(weight, n_heads, n_kv_heads):
        G = n_heads // n_kv_heads if "size_for_count" in wrong else n_kv_heads
        if "over_inputs" in wrong:
            weight = weight.T
        H, D = n_heads, len(weight) // n_heads
        n = H // G
        if "neighbours" in wrong:
            sets = torch.stack([weight[r::n] for r in range(n)]).unflatten(1, (G, D)).transpose(0, 1)
        elif "interleaved" in wrong:
            sets = torch.stack([weight[h::H] for h in range(H)]).unflatten(0, (G, n))
        else:
            sets = torch.stack(weight.chunk(H)).unflatten(0, (G, n))  # (G, H/G, D, d_model)
        if "other_order" in wrong:
            sets = sets.flatten(0, 1).unflatten(0, (n, G)).transpose(0, 1)
        if "all_heads" in wrong:
            sets = sets.mean(0, keepdim=True).expand_as(sets)
        if "over_numbers" in wrong:
            return sets.mean(2).flatten(0, 1)
        if "over_sets" in wrong:
            return sets.mean(0).flatten(0, 1)
        if "first_only" in wrong:
            pooled = sets[:, 0]
        else:
            divisor = 1 if "summed" in wrong else H if "divided_by_all" in wrong else n
            divisor = G if "divided_by_kv" in wrong else divisor
            if "overlapping" in wrong:
                sets = torch.stack([sets.flatten(0, 1)[g : g + n] for g in range(G)])
            pooled = sets.sum(1) / divisor
        if "as_many_as_before" in wrong:
            pooled = pooled.repeat_interleave(n, 0)
        if "not_merged" in wrong:
            return pooled
        if "heads_last" in wrong:
            pooled = pooled.transpose(0, 1)
        joined = pooled.flatten(0, 1)
        return joined.T if "over_inputs" in wrong else joined

    return pool_heads


def pool_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(13300 + seed)

    def script(name: str, H: int, G: int, D: int, d_model: int, habit: str | None = None) -> Script:
        weight = inputs.normal(H * D, d_model)
        if habit == "non-contiguous":
            weight = strided(weight)
        given = {"weight": weight.double() if habit == "float64" else weight, "n_heads": H, "n_kv_heads": G}
        return one_call(name, given, habit, gradients=())

    yield script("six heads become two", 6, 2, 2, 3)
    yield script("twelve heads become three, all sizes different", 12, 3, 5, 7)
    yield script("as wide as the model", 4, 2, 3, 12)
    yield script("all sizes equal", 4, 2, 4, 4)
    yield script("four heads become one", 4, 1, 3, 5)
    yield script("as many heads as before", 3, 3, 4, 6)
    yield script("non-contiguous", 6, 3, 4, 5, "non-contiguous")
    yield script("float64", 4, 2, 3, 5, "float64")


def _mean_is_kept(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[0].mean(0), call.arguments["weight"].mean(0), atol=1e-5)


POOL_HEADS = Exercise(
    id="gqa/pool_heads",
    defines="pool_heads",
    title="Pool the key heads of a checkpoint",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=pool_heads_scripts,
    reference=pool_heads,
    faulty=faulty_pool_heads,
    outputs=(Output("pooled", "G·D d_model"),),
    properties=(Property("the mean of all rows stays what it was", _mean_is_kept),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "other_order",
            "heads that are G apart are pooled",
            "Query head h will read key head h // (H/G), so neighbours are pooled: the first H/G heads become key "
            "head 0.",
            "Which head reads which",
        ),
        Misconception(
            "neighbours",
            "neighbouring rows are averaged, not neighbouring heads",
            "Rows h·D … h·D + D - 1 are head h. Row d of the result is the mean of row d of H/G heads: cut the rows "
            "into (G, H/G, D) first.",
            "Converting a checkpoint",
        ),
        Misconception(
            "interleaved",
            "a head is taken to be every H-th row",
            "Rows h·D … h·D + D - 1 are head h: cut the rows into (H, D), the heads outside.",
            "Converting a checkpoint",
        ),
        Misconception(
            "heads_last",
            "the pooled heads are interleaved in the result",
            "Key head 0's D rows come first, then those of key head 1: (G, D, d_model) is flattened as it stands.",
            "Converting a checkpoint",
        ),
        Misconception(
            "over_sets",
            "the sets are averaged with each other, not the heads of a set",
            "In (G, H/G, D, d_model) axis 0 is the sets and axis 1 the heads of a set: the mean runs over axis 1.",
            "Converting a checkpoint",
        ),
        Misconception(
            "overlapping",
            "set g begins at head g",
            "A set has H/G heads, so set g begins at head g · H/G. Here sets overlap, and the last heads are in none.",
            "Which head reads which",
        ),
        Misconception(
            "divided_by_all",
            "the sum is divided by H",
            "H/G heads are added, so divide by H/G.",
            "Converting a checkpoint",
        ),
        Misconception(
            "first_only",
            "the first head of each set is kept",
            "That is another way to convert, and in the paper's comparison the worse one. Asked for is the mean.",
            "Converting a checkpoint",
        ),
        Misconception(
            "summed",
            "the heads are added",
            "The keys would be H/G times as large as what the queries were trained to meet, and the softmax sharper. "
            "Take the mean.",
            "Converting a checkpoint",
        ),
        Misconception(
            "divided_by_kv",
            "the sum is divided by the number of key heads",
            "H/G heads are added, so divide by H/G. G says how many sets there are.",
            "Converting a checkpoint",
        ),
        Misconception(
            "all_heads",
            "every key head is the mean of several sets",
            "Each key head is the mean of its own H/G heads, and the G means differ. Average over the heads of a set "
            "only.",
            "Converting a checkpoint",
        ),
        Misconception(
            "size_for_count",
            "n_kv_heads is taken for the number of heads in a set",
            "n_kv_heads is G, the number of key heads that are left. H / G heads make one of them.",
            "Between one and all",
        ),
        Misconception(
            "over_numbers",
            "the numbers of a head are averaged, not the heads",
            "That leaves one row of each head. Row d of the result is the mean of row d of H/G heads.",
            "Converting a checkpoint",
        ),
        Misconception(
            "over_inputs",
            "the columns are pooled",
            "The weight is laid out as in `nn.Linear`, outputs first: the heads are among the rows. A column belongs "
            "to one number of the input, for all heads.",
            "Converting a checkpoint",
        ),
        Misconception(
            "as_many_as_before",
            "there are as many heads as before",
            "Means in the place of the old heads save nothing: G·D rows are left, and the cache shrinks with them.",
            "Converting a checkpoint",
        ),
        Misconception(
            "not_merged",
            "key heads and their numbers are two axes still",
            "A weight of `nn.Linear` has two axes: make (G, D, d_model) into (G·D, d_model).",
            "Converting a checkpoint",
        ),
    ),
)

# --- heads_in_budget --------------------------------------------------------------------------------------------


def heads_in_budget(
    n_tokens: Tensor, n_heads: int, head_dim: int, n_layers: int, bytes_per_number: int, budget: int
) -> Tensor:
    choices = torch.tensor([g for g in range(1, n_heads + 1) if n_heads % g == 0])
    one_head = 2 * n_layers * head_dim * bytes_per_number * n_tokens  # (N,) bytes of one key-value head
    fits = one_head[:, None] * choices <= budget
    return torch.where(fits, choices, 0).amax(1)  # (N,)


def faulty_heads_in_budget(wrong: frozenset[str]) -> Callable:
    def heads_in_budget(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
        one_head = (1 if "no_head_dim" in wrong else head_dim) * (1 if "keys_only" in wrong else 2)
        if "one_layer" not in wrong:
            one_head *= n_layers
        if "no_bytes" not in wrong:
            one_head *= bytes_per_number

        def fits(g, n):
            needed = one_head * n * (n_heads if "all_heads_cached" in wrong else g)
            most = budget
            if "rounded" in wrong:
                needed, most = torch.tensor([needed, budget]).float().tolist()
            return needed < most if "strict" in wrong else needed <= most

        choices = [g for g in range(1, n_heads + 1) if n_heads % g == 0 or "any_number" in wrong]
        if "powers_of_two" in wrong:
            choices = [g for g in choices if g & (g - 1) == 0]
        if "halved" in wrong:
            choices = [n_heads >> k for k in reversed(range(n_heads.bit_length()))]
        if "fewer_than_all" in wrong:
            choices = [g for g in choices if g < n_heads]
        found = []
        for n in n_tokens.tolist():
            fitting = [g for g in choices if fits(g, n)] or [0]
            if "as_many_as_fit" in wrong:
                fitting.append(budget // (one_head * n))
            best = fitting[0] if "smallest" in wrong else fitting[-1]
            if "rounded_up" in wrong and best < n_heads:
                most = max((g for g in range(n_heads + 1) if fits(g, n)), default=0)
                best = min((g for g in choices if g >= most > 0), default=best)
            if "at_least_one" in wrong:
                best = max(best, 1)
            if "bytes_returned" in wrong:
                best = best * one_head * n
            if "place_in_list" in wrong:
                best = choices.index(best) if best else 0
            if "how_many_fit" in wrong:
                best = len([g for g in choices if fits(g, n)])
            if "sharers" in wrong and best:
                best = n_heads // best
            found.append(best)
        return torch.tensor(found)

    return heads_in_budget


def heads_in_budget_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(13400 + seed)

    def script(name: str, n_tokens: list[int], H: int, D: int, n_layers: int, size: int, budget: int) -> Script:
        given = {"n_tokens": torch.tensor(n_tokens), "n_heads": H, "head_dim": D, "n_layers": n_layers}
        return one_call(name, {**given, "bytes_per_number": size, "budget": budget})

    # Budgets that some lengths fill to the last byte, and that are no number of heads for others.
    yield script("four lengths, eight heads", [5, 10, 30, 50], 8, 2, 3, 2, 960)
    yield script("twelve heads", [6, 8, 20, 33, 60], 12, 4, 5, 2, 80 * 67)
    yield script("six heads of eight", [25, 50, 87, 128, 250], 6, 8, 8, 4, 2**18)
    yield script("twenty-eight heads", [512, 1024, 1250, 2250, 7500, 32768], 28, 8, 3, 1, 3 * 2**17)
    some = torch.randint(200, 2600, (7,), generator=inputs.generator).tolist()
    # float32 cannot tell this budget from 32 MiB.
    yield script("32 MiB but for one byte", [2**11, 2**12, 2**13, 2**18], 64, 8, 4, 2, 2**25 - 1)
    yield script("seven lengths, thirty-six heads", some, 36, 3, 5, 1, 5 * 2**16 + 13 * (seed % 97))


def _divides(call: Call, result: Result) -> bool:
    heads = result.outputs[0]
    return bool((call.arguments["n_heads"] % heads.clamp(min=1) == 0).all())


def _fits(call: Call, result: Result) -> bool:
    n_tokens, _, head_dim, n_layers, size, budget = call.arguments.values()
    return bool((2 * n_layers * head_dim * size * n_tokens * result.outputs[0] <= budget).all())


HEADS_IN_BUDGET = Exercise(
    id="gqa/heads_in_budget",
    defines="heads_in_budget",
    title="Find how many key heads fit",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=heads_in_budget_scripts,
    reference=heads_in_budget,
    faulty=faulty_heads_in_budget,
    outputs=(Output("n_kv_heads", "N"),),
    rtol=0.0,
    properties=(
        Property("the number of key heads divides the number of query heads", _divides),
        Property("the cache of so many key heads is no larger than the budget", _fits),
    ),
    misconceptions=(
        Misconception(
            "keys_only",
            "only the keys are counted",
            "A cache holds a key and a value for every token: twice as many numbers.",
            "The problem",
        ),
        Misconception(
            "one_layer",
            "only one layer is counted",
            "Each layer has keys and values of its own: multiply by n_layers.",
            "The problem",
        ),
        Misconception(
            "no_bytes",
            "numbers are counted, not bytes",
            "The budget is in bytes, and a number takes bytes_per_number of them.",
            "The problem",
        ),
        Misconception(
            "no_head_dim",
            "D is left out",
            "Each key and each value of a head is D numbers: multiply by head_dim.",
            "The problem",
        ),
        Misconception(
            "rounded",
            "the bytes are compared in float32",
            "It has 24 bits: past 16 million, neighbouring whole numbers become one, and a cache one byte too large "
            "fits. Compare whole numbers: multiply, or divide with `//`.",
            "The problem",
        ),
        Misconception(
            "bytes_returned",
            "it is the bytes that so many heads take",
            "Asked for is G: where the bytes are within the budget, take the divisor and not the bytes.",
            "The problem",
        ),
        Misconception(
            "place_in_list",
            "it is the place of the divisor in the list of divisors",
            "`argmax` says where it stands. Asked for is the divisor itself, and 0 where none fits.",
            "The problem",
        ),
        Misconception(
            "how_many_fit",
            "it is how many divisors fit",
            "Asked for is the largest of them.",
            "The problem",
        ),
        Misconception(
            "all_heads_cached",
            "the cache is taken to hold all query heads",
            "Queries are not cached, and keys are stored once for each key head: with G of them, G·D numbers, not H·D.",
            "Between one and all",
        ),
        Misconception(
            "as_many_as_fit",
            "it is how many would fit, no divisor of the query heads and perhaps more than there are",
            "With more key heads than query heads, some would have no reader; and each key head serves H / G query "
            "heads, a whole number. The largest divisor of H that fits is asked for.",
            "Between one and all",
        ),
        Misconception(
            "any_number",
            "the number of key heads need not divide the number of query heads",
            "Each key head serves H / G query heads, a whole number: try the divisors of H only.",
            "Between one and all",
        ),
        Misconception(
            "powers_of_two",
            "only powers of two are tried",
            "H need not be one: with 12 heads, 3 or 6 key heads are as good as 4.",
            "Between one and all",
        ),
        Misconception(
            "halved",
            "H is halved until it fits",
            "That passes over divisors: after 12 heads come 6, 4, 3, 2 and 1. And half of an odd number, rounded, may "
            "be no divisor. Try them all.",
            "Between one and all",
        ),
        Misconception(
            "fewer_than_all",
            "as many key heads as query heads are never tried",
            "With G = H it is multi-head attention, and where that fits nothing need be shared. `range` stops before "
            "its end.",
            "Between one and all",
        ),
        Misconception(
            "smallest",
            "it is the smallest number that fits, not the largest",
            "One key head fits wherever any do. Asked for is the largest number, which shares least.",
            "When to use it",
        ),
        Misconception(
            "rounded_up",
            "it goes up to the next divisor, which does not fit",
            "What fits may be no divisor of H. Then the next smaller divisor is the answer.",
            "Between one and all",
        ),
        Misconception(
            "strict",
            "a cache exactly as large as the budget is refused",
            "It fits: compare with `<=`.",
            "The problem",
        ),
        Misconception(
            "at_least_one",
            "it says 1 where not even one key head fits",
            "Then no number does: return 0, so that whoever asks can tell.",
            "When to use it",
        ),
        Misconception(
            "sharers",
            "it is the number of query heads that share a key head",
            "That is H / G. Asked for is G, the number of key heads. Some texts call both by one word.",
            "Between one and all",
        ),
    ),
)

EXERCISES = (REPEAT_KV, GROUP_QUERIES, GROUPED_ATTENTION, POOL_HEADS, HEADS_IN_BUDGET)
