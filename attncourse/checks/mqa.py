"""Exercises of chapter 12: one key cut from a fused projection, heads as rows, attention with them, FLOP a byte."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, EXTREME, one_call
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property

CHAPTER = "12_mqa"
LOW_FILL = "With `softmax`, look at the fill: -100 is not low beside a score of -300, so fill with -inf."


# --- split_one_key ----------------------------------------------------------------------------------------------


def split_one_key(fused: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = fused.unflatten(2, (n_heads + 2, -1)).transpose(1, 2)  # (B, H + 2, T, D)
    return heads[:, :n_heads], heads[:, n_heads : n_heads + 1], heads[:, n_heads + 1 :]


def faulty_split_one_key(wrong: frozenset[str]) -> Callable:
    def split_one_key(fused, n_heads):
        B, T, width = fused.shape
        H = n_heads - 2 if "two_of_them" in wrong else n_heads
        D = width // (H + 2)
        if "viewed" in wrong:
            heads = fused.reshape(B, H + 2, T, D)
        elif "interleaved" in wrong:
            heads = torch.stack([fused[..., h :: H + 2] for h in range(H + 2)], 1)
        else:
            heads = torch.stack(fused.split(D, -1), 1)
        if "one_too_early" in wrong:
            heads = heads[:, [*range(H), H - 1, H]]
        if "value_first" in wrong:
            heads = torch.cat([heads[:, :H], heads[:, H:].flip(1)], 1)
        if "queries_last" in wrong:
            heads = heads.roll(-2, 1)
        query, key, value = heads.tensor_split((H, H + 1), 1)
        if "queries_viewed" in wrong:
            query = fused[..., : H * D].reshape(B, H, T, D)
        if "key_for_value" in wrong:
            value = key.clone()
        if "repeated" in wrong:
            key, value = key.expand_as(query), value.expand_as(query)
        if "not_transposed" in wrong:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if "no_axis" in wrong:
            axis = 2 if "not_transposed" in wrong else 1
            key, value = key.select(axis, 0), value.select(axis, 0)
        return query, key, value

    return split_one_key


def split_one_key_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(12000 + seed)

    def arguments(B: int, T: int, H: int, D: int) -> dict:
        return {"fused": inputs.normal(B, T, (H + 2) * D), "n_heads": H}

    yield one_call("three heads of two numbers", arguments(1, 4, 3, 2))
    yield one_call("a batch, all sizes different", arguments(2, 5, 4, 6))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3))
    yield one_call("as many tokens as heads and key and value", arguments(2, 7, 5, 4))
    yield one_call("one token", arguments(3, 1, 6, 5))
    yield one_call("non-contiguous", {"fused": inputs.normal(2, 12, 5).mT, "n_heads": 4}, "non-contiguous")
    given = arguments(1, 3, 3, 4)
    yield one_call("float64", {**given, "fused": given["fused"].double()}, "float64")


def _first_token(call: Call, result: Result) -> bool:
    """Of the first token: queries, key and value in the order of the projection."""
    parts = torch.cat([output[:, :, 0].flatten(1) for output in result.outputs], 1)
    return torch.equal(parts, call.arguments["fused"][:, 0])


SPLIT_ONE_KEY = Exercise(
    id="mqa/split_one_key",
    defines="split_one_key",
    title="Cut one key from a fused projection",
    chapter=CHAPTER,
    difficulty=1,
    minutes=10,
    points=2,
    scripts=split_one_key_scripts,
    reference=split_one_key,
    faulty=faulty_split_one_key,
    outputs=(Output("query", "B H T D"), Output("key", "B 1 T D"), Output("value", "B 1 T D")),
    properties=(Property("a token's queries, key and value side by side are its row of the projection", _first_token),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "viewed",
            "the numbers are cut into (B, H + 2, T, D) without a transpose",
            "`view` and `reshape` keep the order of the numbers, so a head gets numbers of several tokens. Cut the "
            "last axis first, (B, T, H + 2, D), then exchange the heads with T.",
            "The code",
        ),
        Misconception(
            "queries_viewed",
            "the queries are cut into (B, H, T, D) without a transpose",
            "The right numbers are cut off, but `reshape` keeps their order, so a head gets numbers of several tokens. "
            "Cut the last axis first, (B, T, H, D), then exchange the heads with T.",
            "The code",
        ),
        Misconception(
            "interleaved",
            "the heads are interleaved",
            "(B, T, D, H + 2) gives head h every (H + 2)-th number. Here a head gets D neighbours: cut the width into "
            "(H + 2, D), the heads outside.",
            "What follows the paper",
        ),
        Misconception(
            "value_first",
            "key and value are in each other's place",
            "After the H queries comes the key, then the value. They have one shape, so nothing crashes.",
            "What follows the paper",
        ),
        Misconception(
            "queries_last",
            "key and value are taken from the front",
            "The H queries come first, the key and the value after them.",
            "What follows the paper",
        ),
        Misconception(
            "key_for_value",
            "the value is the key once more",
            "Of the H + 2 heads the last but one is the key and the last is the value.",
            "One key for all heads",
        ),
        Misconception(
            "one_too_early",
            "the last query is taken for the key, and the key for the value",
            "Heads count from 0: the queries are heads 0 … H - 1, the key is head H and the value is head H + 1.",
            "What follows the paper",
        ),
        Misconception(
            "two_of_them",
            "n_heads is taken to count key and value too",
            "n_heads is H, the number of query heads. The projection has H + 2 heads: D is its width over H + 2.",
            "One key for all heads",
        ),
        Misconception(
            "repeated",
            "key and value are repeated for every head",
            "Then a cache stores H copies of each. They keep one head, (B, 1, T, D), which broadcasts.",
            "One key for all heads",
        ),
        Misconception(
            "no_axis",
            "key and value have no axis for heads",
            "An index drops its axis; a slice of one keeps it: `heads[:, -2:-1]` is (B, 1, T, D). Without it (B, T, D) "
            "lines up with (B, H, T, D) as if B were H.",
            "The code",
        ),
        Misconception(
            "not_transposed",
            "the heads stay after the tokens",
            "The shape is (B, T, H, D). A matrix product works on the last two axes: tokens and numbers must stand "
            "there, the heads before them. With T = H nothing crashes.",
            "The code",
        ),
    ),
)

# --- rows_of_heads ----------------------------------------------------------------------------------------------


def rows_of_heads(query: Tensor, S: int) -> tuple[Tensor, Tensor]:
    _, H, T, _ = query.shape
    rows = query.flatten(1, 2).unsqueeze(1)  # (B, 1, H·T, D)
    place = torch.arange(S - T, S)[:, None]  # (T, 1): the queries are the last T of S positions
    seen = torch.arange(S) <= place  # (T, S)
    return rows, seen.repeat(H, 1)  # (H·T, S)


def faulty_rows_of_heads(wrong: frozenset[str]) -> Callable:
    def rows_of_heads(query, S):
        B, H, T, D = query.shape
        if "token_major" in wrong:
            rows = torch.cat([query[:, :, t] for t in range(T)], 1)
        elif "tokens_cut" in wrong:
            rows = query.mT.reshape(B, H * T, D)
        else:
            rows = torch.cat(query.unbind(1), 1)
        rows = rows if "no_axis" in wrong else rows.unsqueeze(1)
        token, n_keys = torch.arange(T), T if "square" in wrong else S
        if "rows_go_on" in wrong:
            place = torch.arange(H * T) + (0 if "top_left" in wrong else S - T)
        elif "rows_are_tokens" in wrong:
            place = torch.arange(H * T) + (0 if "top_left" in wrong else S - H * T)
        elif "head_for_token" in wrong:
            place = torch.arange(H).repeat_interleave(T) + (0 if "top_left" in wrong else S - T)
        else:
            place = token.repeat_interleave(H) if "mask_by_token" in wrong else token.repeat(H)
            place = place + (0 if "top_left" in wrong else T - S if "sign" in wrong else S - T)
        if "one_head" in wrong:
            place = place[:T]
        place = place + int("one_ahead" in wrong)
        ahead = torch.arange(n_keys) - place.unsqueeze(1)  # > 0: a later key
        seen = -ahead <= 0 if "transposed" in wrong else ahead <= 0
        if "self_left_out" in wrong:
            seen = seen & (ahead != 0)
        if "not_causal" in wrong:
            seen = torch.ones_like(seen)
        if "inverted" in wrong:
            seen = ~seen
        if "added" in wrong:
            return rows, torch.where(seen, 0.0, float("-inf"))
        return rows, seen.float() if "floats" in wrong else seen

    return rows_of_heads


def rows_of_heads_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(12100 + seed)

    def arguments(B: int, H: int, T: int, D: int, S: int) -> dict:
        return {"query": inputs.normal(B, H, T, D), "S": S}

    yield one_call("two heads, three tokens", arguments(1, 2, 3, 2, 3))
    yield one_call("two heads, two tokens after three", arguments(1, 2, 2, 3, 5))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 5, 7))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield one_call("more keys than rows", arguments(2, 2, 3, 4, 10))
    yield one_call("one token", arguments(2, 5, 1, 11, 6))
    loose = arguments(2, 3, 4, 5, 6)
    loose["query"] = loose["query"].transpose(1, 2).contiguous().transpose(1, 2)  # as heads are after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    given = arguments(1, 2, 3, 4, 5)
    yield one_call("float64", {**given, "query": given["query"].double()}, "float64")


def _heads_see_alike(call: Call, result: Result) -> bool:
    H = call.arguments["query"].shape[1]
    by_head = result.outputs[1].unflatten(0, (H, -1))
    return bool((by_head == by_head[:1]).all())


def _last_token_sees_all(call: Call, result: Result) -> bool:
    H = call.arguments["query"].shape[1]
    return bool(result.outputs[1].unflatten(0, (H, -1))[:, -1].all())


ROWS_OF_HEADS = Exercise(
    id="mqa/rows_of_heads",
    defines="rows_of_heads",
    title="Make rows of all heads",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=rows_of_heads_scripts,
    reference=rows_of_heads,
    faulty=faulty_rows_of_heads,
    outputs=(Output("rows", "B 1 H·T D"), Output("mask", "H·T S")),
    properties=(
        Property("a token sees the same keys in every head", _heads_see_alike),
        Property("the last token of every head sees all keys", _last_token_sees_all),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "rows_are_tokens",
            "each row of the mask stands one position after the row above it",
            "Rows are not positions: row h·T + t is token t, whatever its head. The pattern of T rows begins anew with "
            "each head.",
            "Heads as rows",
        ),
        Misconception(
            "rows_go_on",
            "the positions go on from head to head: the second head begins where the first ends",
            "Each head has the same T tokens, at the same positions. The pattern of T rows begins anew with each head: "
            "build (T, S), then repeat it H times.",
            "Heads as rows",
        ),
        Misconception(
            "head_for_token",
            "the number of the head stands for that of the token",
            "In row h·T + t the token is t: `row % T`. `row // T` is the head.",
            "Heads as rows",
        ),
        Misconception(
            "mask_by_token",
            "the mask has the rows of one token side by side",
            "`repeat_interleave` repeats each row H times in a row. The queries stand head after head, all T tokens of "
            "each: repeat the whole (T, S) mask H times.",
            "Heads as rows",
        ),
        Misconception(
            "token_major",
            "the rows stand token by token, all heads of each",
            "Asked for is head after head, all T tokens of each: that order needs no copy, and the outputs go back to "
            "(B, H, T, Dv) in one reshape.",
            "Heads as rows",
        ),
        Misconception(
            "tokens_cut",
            "tokens are exchanged with numbers before the reshape",
            "A row then holds one number of several tokens. (B, H, T, D) has heads and tokens side by side already: "
            "join axes 1 and 2, and exchange nothing.",
            "Heads as rows",
        ),
        Misconception(
            "no_axis",
            "the rows have no axis for the key head",
            "(B, H·T, D) beside a key of (B, 1, S, D) lines up B with 1 and fails, or worse. Asked for is "
            "(B, 1, H·T, D): one key head, H·T rows.",
            "Heads as rows",
        ),
        Misconception(
            "one_head",
            "the mask has the rows of one head only",
            "There are H·T rows of queries, and each needs a row of the mask: the (T, S) mask, H times.",
            "Heads as rows",
        ),
        Misconception(
            "top_left",
            "where T < S, the first token stands at position 0",
            "The queries are the last T of S positions: token t stands at S - T + t, and the last one sees every key. "
            "A cache makes T less than S.",
            "The code",
        ),
        Misconception(
            "sign",
            "the past is subtracted, not added",
            "S - T tokens stand before the first query, so token t stands at S - T + t: `tril(S - T)`. `tril(T - S)` "
            "hides the past and more.",
            "The code",
        ),
        Misconception(
            "one_ahead",
            "a token sees one key too many, the one after its own",
            "Token t stands at S - T + t and sees the keys up to there: `<=` with that position, or `tril(S - T)`.",
            "The code",
        ),
        Misconception(
            "square",
            "each row of the mask has T columns",
            "There are S keys, those of the past included: one column for each.",
            "The code",
        ),
        Misconception(
            "not_causal",
            "every key is visible",
            "A token sees the keys up to its own position, in every head.",
            "The code",
        ),
        Misconception(
            "transposed",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: a key may be seen that is not after the query.",
            "The code",
        ),
        Misconception(
            "self_left_out",
            "a token does not see itself",
            "A token may read itself; else the first one has nothing to read, and its softmax is NaN.",
            "By hand",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "The code",
        ),
        Misconception(
            "added",
            "the mask holds 0 and -inf",
            "Such a mask is added to the scores. Asked for is a boolean one, True = may attend: a comparison gives it.",
            "The code",
        ),
        Misconception(
            "floats",
            "the mask holds the floats 1 and 0",
            "A comparison gives booleans already. PyTorch *adds* a float mask to the scores, so that 1 and 0 hide "
            "nothing.",
            "The code",
        ),
    ),
)

# --- multi_query ------------------------------------------------------------------------------------------------


def multi_query(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    _, H, T, D = query.shape
    S = key.shape[2]
    scores = query.flatten(1, 2) @ key[:, 0].mT / D**0.5  # (B, H·T, S)
    later = torch.arange(S) > torch.arange(S - T, S)[:, None]  # (T, S)
    scores = scores.unflatten(1, (H, T)).masked_fill(later, float("-inf"))  # (B, H, T, S)
    output = scores.softmax(3).flatten(1, 2) @ value[:, 0]  # (B, H·T, Dv)
    return output.unflatten(1, (H, T))


def faulty_multi_query(wrong: frozenset[str]) -> Callable:
    def multi_query(query, key, value):
        _, H, T, D = query.shape
        S, Dv = key.shape[2], value.shape[3]
        if "queries_averaged" in wrong:
            query = query.mean(1, keepdim=True).expand_as(query)
        if "key_reshaped" in wrong:
            key = key.reshape(len(key), 1, D, S).mT
        scores = torch.einsum("bhtd,bsd->bhts", query, key.squeeze(1))
        if "not_scaled" not in wrong:
            size = Dv if "value_size" in wrong else H * D if "width" in wrong else D
            divisor = D / 2 if "no_brackets" in wrong else size ** (1.0 if "no_root" in wrong else 0.5)
            scores = scores * divisor if "scaled_up" in wrong else scores / divisor
        row = torch.arange(H * T).view(H, T, 1)
        if "mask_by_token" in wrong:
            row = row // H
        elif not wrong & {"rows_are_tokens", "rows_go_on"}:
            row = row % T
        n_rows = H * T if "rows_are_tokens" in wrong else T
        place = row + (0 if "top_left" in wrong else S - n_rows)
        place = place + int("one_ahead" in wrong) - int("self_left_out" in wrong)
        allowed = torch.arange(S) >= place if "transposed" in wrong else torch.arange(S) <= place
        if "not_causal" in wrong or ("causal_when_empty" in wrong and S > T):
            allowed = torch.ones_like(allowed)
        if "inverted" in wrong:
            allowed = ~allowed
        if "mask_multiplies" in wrong:
            scores = scores * allowed
        elif "mask_after" not in wrong:
            # A column of -inf, over the queries, would make all NaN: nothing to recognise it by.
            joint = wrong & {"over_queries", "over_heads"}
            scores = torch.where(allowed, scores, -1e9 if joint else float("-inf"))
        if "over_rows" in wrong:
            weights = scores.flatten(1, 2).softmax(1).unflatten(1, (H, T))
        else:
            weights = scores.softmax(1 if "over_heads" in wrong else 2 if "over_queries" in wrong else 3)
        if "mask_after" in wrong:
            weights = weights * allowed
        if "weights_averaged" in wrong:
            weights = weights.mean(1, keepdim=True).expand_as(weights)
        output = torch.einsum("bhts,bsv->bhtv", weights, value.squeeze(1))
        if "heads_mixed" in wrong:
            return output.flatten(1, 2).unflatten(1, (T, H)).transpose(1, 2)
        return output

    return multi_query


def multi_query_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(12200 + seed)

    def arguments(B: int, H: int, T: int, S: int, D: int, Dv: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, H, T, D, spread=1.7),
            "key": inputs.normal(B, 1, S, D, spread=1.7),
            "value": inputs.normal(B, 1, S, Dv, spread=2.0),
        }

    yield one_call("two heads, three tokens", arguments(1, 2, 3, 3, 2, 4))
    yield one_call("two queries, five keys", arguments(1, 3, 2, 5, 4, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 7, 5, 6))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield one_call("more keys than rows", arguments(2, 2, 3, 9, 4, 5))
    yield one_call("one head", arguments(2, 1, 4, 6, 3, 5))
    yield one_call("one query", arguments(2, 5, 1, 9, 10, 11))
    loose = {n: x.transpose(1, 2).contiguous().transpose(1, 2) for n, x in arguments(2, 3, 4, 5, 6, 4).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: x.double() for n, x in arguments(2, 2, 3, 4, 5, 3).items()}, "float64")
    large = arguments(2, 3, 4, 4, 4, 5)
    yield one_call("scores of a few hundred", large | {"query": large["query"] * 60}, "extreme")


def _first_sees_itself(call: Call, result: Result) -> bool:
    query, key, value = call.arguments.values()
    if query.shape[2] < key.shape[2]:
        return True
    return torch.allclose(result.outputs[0][:, :, 0], value[:, :, 0].expand_as(result.outputs[0][:, :, 0]), atol=1e-4)


MULTI_QUERY = Exercise(
    id="mqa/multi_query",
    defines="multi_query",
    title="Attend with one key head",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    scripts=multi_query_scripts,
    reference=multi_query,
    faulty=faulty_multi_query,
    outputs=(Output("output", "B H T Dv"),),
    properties=(
        Property(
            "with no past, the first token sees itself alone: its output is its value, in all heads", _first_sees_itself
        ),
    ),
    habits=COMMON_HABITS | {"extreme": f"{EXTREME} {LOW_FILL}"},
    forbidden=("scaled_dot_product_attention", "multi_head_attention_forward"),
    misconceptions=(
        Misconception(
            "not_causal",
            "there is no causal mask",
            "Every token then sees the whole sequence, the token it has to predict included.",
            "The code",
        ),
        Misconception(
            "rows_are_tokens",
            "the rows of all heads are taken for positions",
            "Row h·T + t is token t, whatever its head. With H·T rows counted as positions, each head sees more or "
            "less of the keys than the one before it. Mask at (B, H, T, S), or repeat the (T, S) mask H times.",
            "Heads as rows",
        ),
        Misconception(
            "rows_go_on",
            "the positions go on from head to head: the second head begins where the first ends",
            "Each head has the same T tokens, at the same positions. Mask at (B, H, T, S), or repeat the (T, S) mask H "
            "times.",
            "Heads as rows",
        ),
        Misconception(
            "mask_by_token",
            "the mask has the rows of one token side by side, and the queries stand head by head",
            "`repeat_interleave` repeats each row of the mask H times in a row. The queries stand head after head, all "
            "T tokens of each: repeat the whole (T, S) mask H times.",
            "Heads as rows",
        ),
        Misconception(
            "heads_mixed",
            "the outputs go back to heads in another order than the rows came in",
            "The rows stand head after head, all T tokens of each: (B, H·T, Dv) becomes (B, H, T, Dv) in one reshape, "
            "with H before T and no transpose.",
            "Heads as rows",
        ),
        Misconception(
            "top_left",
            "where T < S, the first query stands at position 0",
            "The queries are the last T of S positions: query t stands at S - T + t, and the last one sees every key. "
            "A cache makes T less than S.",
            "The code",
        ),
        Misconception(
            "inverted",
            "the keys that may be seen are hidden, and the others seen",
            "`masked_fill` fills where its mask is True: where True = may attend it wants `~mask`. The last query, "
            "which may see all, is left with nothing: NaN.",
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
            "A token may read itself; else the first one has nothing to read, and its softmax is NaN.",
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
            "transposed",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: hide the keys that come after the query.",
            "The code",
        ),
        Misconception(
            "mask_after",
            "the weights of later keys are set to zero after the softmax",
            "The later keys have already taken their share: the rest sums to less than 1. Fill their scores with -inf "
            "first.",
            "The code",
        ),
        Misconception(
            "mask_multiplies",
            "the scores of later keys are set to 0",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf before the "
            "softmax.",
            "The code",
        ),
        Misconception(
            "queries_averaged",
            "all heads ask with the mean of the queries",
            "Only the key and the value are shared. Each head has a query of its own, and so weights of its own.",
            "One key for all heads",
        ),
        Misconception(
            "weights_averaged",
            "all heads use the mean of the weights",
            "Only the key and the value are shared. Each head sums the values with its own weights.",
            "One key for all heads",
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
            "scaled_up",
            "the scores are multiplied by √D, not divided",
            "They grow with √D already. Where the division stands in brackets or a power, read it again: `/ D**0.5` or "
            "`* D**-0.5`.",
            "By hand",
        ),
        Misconception(
            "no_brackets",
            "the power has no brackets: the scores are divided by D/2",
            "`D**1/2` is (D**1)/2. Write `D**0.5`.",
            "By hand",
        ),
        Misconception(
            "key_reshaped",
            "the key is reshaped to (B, 1, D, S), not transposed",
            "`reshape` keeps the order of the numbers, so a column holds numbers of several keys. Exchange the last "
            "two axes: `key.transpose(2, 3)`.",
            "By hand",
        ),
        Misconception(
            "width",
            "the scores are divided by the square root of H·D",
            "A head's dot product has D terms, however many heads there are: divide by √D.",
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
            "the softmax runs over the queries",
            "Each query shares out its attention among its keys: softmax over the last axis, the keys.",
            "By hand",
        ),
        Misconception(
            "over_rows",
            "the softmax runs over the rows, the queries of all heads",
            "Each query shares out its attention among its keys: softmax over the last axis, the keys.",
            "By hand",
        ),
        Misconception(
            "over_heads",
            "the softmax runs over the heads",
            "Heads do not compete for a key. Each query of each head shares out its attention among the keys: the last "
            "axis.",
            "By hand",
        ),
    ),
)

# --- step_intensity ---------------------------------------------------------------------------------------------


def step_intensity(lengths: Tensor, n_heads: int, n_kv_heads: int, head_dim: int, bytes_per_number: int) -> Tensor:
    flop = 4 * n_heads * lengths * head_dim  # (N,) two products; in each a multiplication and an addition
    cache = 2 * n_kv_heads * lengths * head_dim  # (N,) numbers: keys and values
    ends = 2 * n_heads * head_dim  # numbers: the queries read, the outputs written
    return flop / (bytes_per_number * (cache + ends))  # (N,)


def faulty_step_intensity(wrong: frozenset[str]) -> Callable:
    def step_intensity(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
        S = lengths.double()
        query = S if "prefill" in wrong else torch.ones_like(S)  # how many queries
        flop = 4 * (n_kv_heads if "flop_of_key_heads" in wrong else n_heads) * query * S * head_dim
        if "half" in wrong:
            flop = flop / 2
        if "no_head_dim" in wrong:
            flop = flop / head_dim
        cached_heads = n_heads if "own_copies" in wrong else n_kv_heads
        cache = (1 if "keys_only" in wrong else 2) * cached_heads * S * head_dim
        one = (n_kv_heads if "few_queries" in wrong else n_heads) * head_dim * query
        n_ends = 0 if "cache_only" in wrong else 1 if "no_outputs" in wrong else 2
        size = 1 if "no_bytes" in wrong else bytes_per_number
        moved = cache * size + n_ends * one if "bytes_of_cache" in wrong else size * (cache + n_ends * one)
        if "scores_moved" in wrong:
            moved = moved + size * n_heads * query * S
        if "whole_queries" in wrong:
            moved = moved + size * 2 * n_heads * head_dim * (S - 1)
        if "older_only" in wrong:
            moved = moved - size * cache / S
        if "one_less" in wrong:
            flop = flop - n_heads * (S + head_dim)
        return (moved / flop if "upside_down" in wrong else flop / moved).float()

    return step_intensity


def step_intensity_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(12300 + seed)

    def script(name: str, lengths: list[int], H: int, G: int, D: int, size: int) -> Script:
        given = {"lengths": torch.tensor(lengths), "n_heads": H, "n_kv_heads": G, "head_dim": D}
        return one_call(name, {**given, "bytes_per_number": size})

    yield script("two lengths, one key head", [3, 10], 4, 1, 2, 2)
    yield script("three lengths, two key heads of six", [2, 7, 30], 6, 2, 5, 4)
    yield script("as many key heads as heads", [1, 12, 50, 400], 3, 3, 8, 2)
    yield script("one key head of 32", [1, 64, 512, 4096, 131072], 32, 1, 128, 2)
    some = torch.randint(2, 300, (6,), generator=inputs.generator).tolist()
    yield script("six lengths, eight key heads of 64", some, 64, 8, 16, 4)
    yield script("a cache of one byte a number", [5, 25], 12, 4, 3, 1)


def _less_than_the_limit(call: Call, result: Result) -> bool:
    _, n_heads, n_kv_heads, _, size = call.arguments.values()
    return bool((result.outputs[0] < 2 * n_heads / (n_kv_heads * size)).all())


def _grows(call: Call, result: Result) -> bool:
    ordered = result.outputs[0][call.arguments["lengths"].argsort()]
    return bool((ordered.diff() >= 0).all())


STEP_INTENSITY = Exercise(
    id="mqa/step_intensity",
    defines="step_intensity",
    title="Count the FLOP for each byte",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=step_intensity_scripts,
    reference=step_intensity,
    faulty=faulty_step_intensity,
    outputs=(Output("intensity", "N"),),
    properties=(
        Property("it grows with the length", _grows),
        Property("it stays below 2·H / (G · bytes_per_number), however long the cache is", _less_than_the_limit),
    ),
    misconceptions=(
        Misconception(
            "half",
            "there are half as many FLOP",
            "Two products count, the scores and the weighted sum of the values, and in each a multiplication and an "
            "addition for every number: 2 · 2 · H · S · D.",
            "What a step reads",
        ),
        Misconception(
            "flop_of_key_heads",
            "only as many heads compute as there are key heads",
            "Every query head computes its own scores and its own sum: H of them. Sharing saves bytes, no FLOP.",
            "What a step reads",
        ),
        Misconception(
            "own_copies",
            "it is the number of multi-head attention, where no key is shared",
            "The cache holds G heads, and a step reads each once, for all the query heads that share it; and all H "
            "query heads compute.",
            "What a step reads",
        ),
        Misconception(
            "keys_only",
            "only the keys are read from the cache",
            "The weighted sum reads the values too: 2 · G · S · D numbers.",
            "What a step reads",
        ),
        Misconception(
            "cache_only",
            "queries and outputs are left out of the bytes",
            "In a long text they hardly count, and in a short one they do: H·D numbers are read and H·D written.",
            "What a step reads",
        ),
        Misconception(
            "no_outputs",
            "only one of queries and outputs is counted",
            "H·D numbers of the queries are read, and H·D of the outputs are written. Both cross the memory.",
            "What a step reads",
        ),
        Misconception(
            "few_queries",
            "queries and outputs are counted for the key heads only",
            "Queries and outputs have H heads. Only keys and values have G.",
            "One key for all heads",
        ),
        Misconception(
            "no_bytes",
            "numbers are counted, not bytes",
            "Each number takes bytes_per_number bytes: 2 in bfloat16, 4 in float32.",
            "What a step reads",
        ),
        Misconception(
            "bytes_of_cache",
            "the bytes of queries and outputs are counted as one each",
            "All numbers that cross the memory take bytes_per_number bytes. Put the sum in brackets.",
            "What a step reads",
        ),
        Misconception(
            "whole_queries",
            "there are queries and outputs for all S tokens",
            "In a decoding step one token is new: each head has one query and one output.",
            "What a step reads",
        ),
        Misconception(
            "scores_moved",
            "the scores are counted too",
            "They are computed and used in one place: nothing of them crosses the memory in this count.",
            "What a step reads",
        ),
        Misconception(
            "older_only",
            "the new token's key and value are not read",
            "`lengths` counts the new token too, and it attends to itself: S keys and S values.",
            "What a step reads",
        ),
        Misconception(
            "one_less",
            "a sum of D products is counted as D - 1 additions",
            "That is exact. Here each product counts with its addition, as 2 FLOP: 2·D for a dot product of D numbers.",
            "What a step reads",
        ),
        Misconception(
            "no_head_dim",
            "the FLOP lack D",
            "A dot product of D numbers is 2·D FLOP, and a weighted value has D numbers.",
            "What a step reads",
        ),
        Misconception(
            "prefill",
            "it grows in proportion to the length",
            "That is so in prefill, where S queries share each key that is read. In a decoding step one query of each "
            "head meets all S keys of the cache: FLOP and bytes both grow with S, and their ratio nears a limit.",
            "What a step reads",
        ),
        Misconception(
            "upside_down",
            "it is bytes for each FLOP",
            "Asked for are FLOP divided by bytes: how much a device computes with what it has read.",
            "What a step reads",
        ),
    ),
)

EXERCISES = (SPLIT_ONE_KEY, ROWS_OF_HEADS, MULTI_QUERY, STEP_INTENSITY)
