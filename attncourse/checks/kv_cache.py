"""Exercises of chapter 11: a cache's room, a chunk decoded through it, its bytes, its codes, and a test of chunking."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, EXTREME, one_call
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, ReverseExercise, Variant
from attncourse.positions import RotaryEmbedding, apply_rotary

CHAPTER = "11_kv_cache"


# --- append_tokens ----------------------------------------------------------------------------------------------


def append_tokens(
    room_key: Tensor, room_value: Tensor, length: int, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    end = length + key.shape[2]
    room_key, room_value = room_key.clone(), room_value.clone()
    room_key[:, :, length:end] = key
    room_value[:, :, length:end] = value
    return room_key, room_value, room_key[:, :, :end], room_value[:, :, :end]


def faulty_append_tokens(wrong: frozenset[str]) -> Callable:
    def store(before, length, new, written):
        """The room after, and what is read from it."""
        T = new.shape[2]
        room, first, end = before.clone(), length, length + T
        if "overwrites_last" in wrong:
            first = length - 1
        if "leaves_gap" in wrong:
            first = length + 1
        if "at_start" in wrong:
            first = 0
        if "at_end" in wrong:
            first = before.shape[2] - T
        if "rest_cleared" in wrong:
            room[:, :, length:] = 0
        if written and "prepended" in wrong:
            room[:, :, T:end] = before[:, :, :length]
            room[:, :, :T] = new
        elif written and "added" in wrong:
            room[:, :, first : first + T] += new
        elif written and "thrown_away" not in wrong:
            room[:, :, first : first + T] = new
        if "behind_room" in wrong:
            room = torch.cat([before, new], 2)
        if "pushed_in" in wrong:
            room = torch.cat([before[:, :, :length], new, before[:, :, length:]], 2)
        read = room[:, :, : end - ("one_less" in wrong) + ("one_more" in wrong)]
        if "whole_room" in wrong:
            read = room
        if "new_only" in wrong:
            read = room[:, :, length:end]
        if "old_only" in wrong:
            read = room[:, :, :length]
        if "over_heads" in wrong:
            read = torch.cat([before[:, :, :length], new], 1)
        if "room_left" in wrong:
            room = before.clone()
        return room[:, :, :end] if "room_cut" in wrong else room, read

    def append_tokens(room_key, room_value, length, key, value):
        if "swapped" in wrong:
            key, value = value, key
        keys, read_keys = store(room_key, length, key, written=True)
        values, read_values = store(room_value, length, value, written="value_left" not in wrong)
        if "read_first" in wrong:
            return read_keys, read_values, keys, values
        if "room_by_room" in wrong:
            return keys, read_keys, values, read_values
        return keys, values, read_keys, read_values

    return append_tokens


def append_tokens_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(11000 + seed)

    def script(name: str, sizes: tuple[int, ...], length: int, D: int, Dv: int, habit: str | None = None) -> Script:
        B, G, L, T = sizes
        arguments = {  # what stands behind `length` is left over from another text
            "room_key": inputs.normal(B, G, L, D, spread=2.0),
            "room_value": inputs.normal(B, G, L, Dv, spread=2.0),
            "length": length,
            "key": inputs.normal(B, G, T, D, spread=2.0),
            "value": inputs.normal(B, G, T, Dv, spread=2.0),
        }
        if habit == "non-contiguous":  # as heads are after a split
            for n in ("key", "value"):
                arguments[n] = arguments[n].transpose(1, 2).contiguous().transpose(1, 2)
        if habit == "float64":
            arguments = {n: x.double() if isinstance(x, Tensor) else x for n, x in arguments.items()}
        return one_call(name, arguments, habit, gradients=())  # a cache is for inference

    yield script("two tokens behind three", (1, 2, 8, 2), 3, 3, 4)
    yield script("a batch, all sizes different", (2, 3, 13, 4), 5, 6, 7)
    yield script("an empty room", (2, 3, 9, 4), 0, 5, 6)
    yield script("as many new tokens as old ones", (2, 3, 10, 4), 4, 5, 5)
    yield script("all sizes equal", (4, 4, 11, 4), 4, 4, 4)
    yield script("one token", (1, 2, 12, 1), 6, 17, 18)
    yield script("the last free places", (1, 2, 14, 3), 11, 19, 20)
    yield script("non-contiguous", (2, 3, 9, 4), 2, 5, 6, "non-contiguous")
    yield script("float64", (1, 2, 7, 2), 3, 3, 4, "float64")


def _past_stays(call: Call, result: Result) -> bool:
    length = call.arguments["length"]
    rooms = zip(result.outputs[:2], (call.arguments["room_key"], call.arguments["room_value"]), strict=True)
    return all(torch.equal(after[:, :, :length], before[:, :, :length]) for after, before in rooms)


def _newest_is_last(call: Call, result: Result) -> bool:
    read = zip(result.outputs[2:], (call.arguments["key"], call.arguments["value"]), strict=True)
    return all(torch.equal(tokens[:, :, -1], new[:, :, -1]) for tokens, new in read)


APPEND_TOKENS = Exercise(
    id="kv_cache/append_tokens",
    defines="append_tokens",
    title="Append tokens to a cache",
    chapter=CHAPTER,
    difficulty=1,
    minutes=10,
    points=2,
    scripts=append_tokens_scripts,
    reference=append_tokens,
    faulty=faulty_append_tokens,
    outputs=(
        Output("room_key", "B G L D"),
        Output("room_value", "B G L Dv"),
        Output("keys", "B G length+T D"),
        Output("values", "B G length+T Dv"),
    ),
    properties=(
        Property("the tokens that were in the cache stay where they are", _past_stays),
        Property("the last key and value returned are the last new ones", _newest_is_last),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "overwrites_last",
            "the first new token is written over the last old one",
            "`length` tokens stand at the positions 0 … length - 1. The next free one is `length`.",
            "By hand",
        ),
        Misconception(
            "leaves_gap",
            "a place stays free between the old tokens and the new ones",
            "`length` tokens stand at the positions 0 … length - 1, so the next one goes to `length`. Attention would "
            "read whatever is in the gap.",
            "By hand",
        ),
        Misconception(
            "at_start",
            "the new tokens are always written at position 0",
            "They replace the beginning of the text. Write at `length`, where the last call stopped.",
            "By hand",
        ),
        Misconception(
            "at_end",
            "the new tokens are written at the end of the room",
            "The room is longer than the text. The next free place is `length`; what lies behind is not read yet.",
            "By hand",
        ),
        Misconception(
            "prepended",
            "the new tokens stand before the old ones",
            "Then every stored token moves at each call, and a causal mask, which goes by the order, hides the wrong "
            "ones. New tokens go behind.",
            "By hand",
        ),
        Misconception(
            "whole_room",
            "attention reads the whole room",
            "Behind the newest token lie zeros or an old text. A key of zeros has the score 0, and exp(0) = 1 takes "
            "its share. Return the first `length` + T tokens.",
            "The code",
        ),
        Misconception(
            "new_only",
            "attention reads the new tokens alone",
            "That is attention without a past. The cache is there to give back all tokens so far.",
            "Prefill and decode",
        ),
        Misconception(
            "old_only",
            "attention reads the old tokens alone",
            "A token sees itself too: store first, then read.",
            "Prefill and decode",
        ),
        Misconception(
            "one_less",
            "the newest token is not read",
            "A slice ends before its end: `length` + T tokens are `[:, :, : length + T]`.",
            "By hand",
        ),
        Misconception(
            "one_more",
            "one token too many is read",
            "A slice ends before its end: `length` + T tokens are `[:, :, : length + T]`. Behind them lies what is not "
            "text.",
            "By hand",
        ),
        Misconception(
            "swapped",
            "keys are stored as values, and values as keys",
            "Where both have one size nothing crashes. Look at the order of the arguments.",
            "The code",
        ),
        Misconception(
            "value_left",
            "the values are not stored",
            "A token is a key and a value. With new keys over old values, attention looks right and brings nothing.",
            "The code",
        ),
        Misconception(
            "over_heads",
            "old and new tokens are joined along the heads",
            "Axis 1 counts heads, axis 2 tokens. Joined along axis 1 the new tokens look like more heads.",
            "The code",
        ),
        Misconception(
            "room_left",
            "the rooms are returned as they were",
            "What is returned as keys and values is right, and the next call finds nothing of it. Write into the rooms "
            "that you return.",
            "Prefill and decode",
        ),
        Misconception(
            "room_cut",
            "the rooms are cut to the tokens they hold",
            "A room of full size stays one: the next token needs the places behind. A room that grows by a token must "
            "be made anew, and all of it copied, at every step.",
            "Measure",
        ),
        Misconception(
            "read_first",
            "what is read comes before the rooms",
            "Returned are both rooms first, then the keys and values so far.",
            "The code",
        ),
        Misconception(
            "added",
            "the new tokens are added to what stood there",
            "That looks right as long as the room is full of zeros. After another text it is not: assign, with `=`.",
            "The code",
        ),
        Misconception(
            "rest_cleared",
            "the room behind the new tokens is emptied",
            "Nobody reads it, and clearing it writes to the whole room at every token. Leave it as it is.",
            "Measure",
        ),
        Misconception(
            "thrown_away",
            "the new tokens are in none of the results",
            "If you wrote them into `room.clone()[…]`: that copy has no name and is gone at once. Give the copy a"
            " name, write into it, and return it.",
            "The code",
        ),
        Misconception(
            "behind_room",
            "the new tokens are put behind the whole room",
            "The room has free places already, from `length` on. Put behind its end, the new tokens make it grow "
            "at every step, and a leftover of another text lies before them.",
            "By hand",
        ),
        Misconception(
            "pushed_in",
            "the new tokens are pushed in, and the room grows",
            "They take the places from `length` on, and what stood there is gone. The room keeps its size.",
            "By hand",
        ),
        Misconception(
            "room_by_room",
            "each room is followed by what is read from it",
            "Returned are both rooms first, then the keys and values so far.",
            "The code",
        ),
    ),
)

# --- decode_chunk -----------------------------------------------------------------------------------------------


def decode_chunk(query: Tensor, key: Tensor, value: Tensor, padding: Tensor, base: float) -> Tensor:
    T, S, D = query.shape[2], key.shape[2], query.shape[3]
    positions = torch.arange(S - T, S)  # (T,)
    turned = apply_rotary(query, positions, RotaryEmbedding(D, base))  # (B, H, T, D)
    allowed = (torch.arange(S) <= positions[:, None]) & padding  # (B, 1, T, S)
    scores = turned @ key.transpose(2, 3) / D**0.5  # (B, H, T, S)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return weights.masked_fill(~allowed, 0.0) @ value  # (B, H, T, Dv)


def faulty_decode_chunk(wrong: frozenset[str]) -> Callable:
    def decode_chunk(query, key, value, padding, base):
        (T, D), S = query.shape[2:], key.shape[2]
        rotary = RotaryEmbedding(D, 10000.0 if "base_ignored" in wrong else base)
        place = torch.arange(T) + (0 if "query_restarts" in wrong else S - T) + ("positions_from_one" in wrong)
        if "behind_all" in wrong:
            place = place + T
        if "one_position" in wrong:
            place = place[:1].expand(T)
        if "last_position" in wrong:
            place = place[-1:].expand(T)
        if "padding_not_counted" in wrong:
            place = place - padding[:, :, 0].int().argmax(-1, keepdim=True)  # (B, 1, T)
        q = query if "not_turned" in wrong else apply_rotary(query, place, rotary)
        k = apply_rotary(key, torch.arange(S), rotary) if "keys_turned_again" in wrong else key
        behind = torch.arange(T)[:, None] + (0 if "top_left" in wrong else S - T) - torch.arange(S)
        causal = behind >= int("no_diagonal" in wrong)
        if "one_ahead" in wrong:
            causal = behind >= -1
        if "only_the_future" in wrong:
            causal = behind < 0
        if "top_left_of_several" in wrong and T > 1:
            causal = torch.ones_like(causal).tril()
        if "not_causal" in wrong or ("causal_when_empty" in wrong and S > T):
            causal = torch.ones_like(causal)
        real = ~padding if "padding_inverted" in wrong else padding
        if "new_padding_only" in wrong:
            real = torch.cat([torch.ones_like(real[..., : S - T]), real[..., S - T :]], -1)
        if "padding_ignored" in wrong:
            real = torch.ones_like(real)
        if "padding_of_queries" in wrong:
            real = real[..., S - T :].mT
        allowed = causal | real if "either" in wrong else causal & real
        if "no_brackets" in wrong:
            allowed = torch.arange(S) <= torch.arange(S - T, S)[:, None] & padding
        if "padding_after" in wrong:
            allowed = causal
        if "inverted" in wrong:
            allowed = ~allowed
        late = real if "padding_after" in wrong else 1
        scores = q @ k.mT
        if "not_scaled" not in wrong:
            size = value.shape[-1] if "root_of_value" in wrong else D
            scores = scores / size ** (1.0 if "no_root" in wrong else -0.5 if "multiplied" in wrong else 0.5)
        axis = -2 if "over_queries" in wrong else -1
        if "not_assigned" in wrong:
            return scores.softmax(axis) @ value
        if "zero_twice" in wrong:
            return ((scores * allowed).softmax(axis) * allowed) @ value
        if "mask_added" in wrong:
            return ((scores + allowed).softmax(axis) * late) @ value
        if "mask_multiplies" in wrong:
            return ((scores * allowed).softmax(axis) * late) @ value
        if "mask_after" in wrong:
            return (scores.softmax(axis) * allowed * late) @ value
        scores = torch.where(allowed, scores, -1e9 if wrong & {"rows_spread", "over_queries"} else float("-inf"))
        weights = scores.softmax(axis)
        if not wrong & {"rows_nan", "rows_spread"}:
            weights = torch.where(allowed, weights, 0.0)
        return (weights * late) @ value

    return decode_chunk


def decode_chunk_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(11100 + seed)

    def arguments(H: int, T: int, S: int, D: int, Dv: int, lengths: tuple[int, ...], base: float) -> dict:
        """lengths: how many of the S tokens of each sequence are real; the padding stands in front of them."""
        B = len(lengths)
        real = torch.arange(S) >= S - torch.tensor(lengths)[:, None]
        return {
            "query": inputs.normal(B, H, T, D, spread=1.6),
            "key": inputs.normal(B, H, S, D, spread=1.6),
            "value": inputs.normal(B, H, S, Dv, spread=2.0),
            "padding": real[:, None, None],
            "base": base,
        }

    def with_tensors(given: dict, change: Callable[[Tensor], Tensor]) -> dict:
        return given | {name: change(given[name]) for name in ("query", "key", "value")}

    yield one_call("two new tokens, five keys", arguments(1, 2, 5, 4, 3, (4,), 20.0))
    yield one_call("a batch, all sizes different", arguments(3, 4, 8, 6, 5, (8, 6), 50.0))
    yield one_call("an empty cache", arguments(2, 5, 5, 4, 3, (5, 3), 30.0))
    yield one_call("padding among the new tokens", arguments(2, 4, 7, 6, 3, (2, 7, 5), 20.0))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, (4, 3, 2, 4), 10.0))
    yield one_call("one new token", arguments(2, 1, 9, 24, 25, (7,), 100.0))
    loose = arguments(3, 4, 6, 4, 5, (6, 4), 20.0)
    loose = with_tensors(loose, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))  # as heads after a split
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", with_tensors(arguments(2, 2, 5, 4, 3, (4,), 20.0), Tensor.double), "float64")
    large = arguments(2, 3, 6, 4, 5, (6, 5), 20.0)
    large["query"] = large["query"] * 60
    yield one_call("scores of a few hundred", large, "extreme")


def _padding_gives_zeros(call: Call, result: Result) -> bool:
    T = call.arguments["query"].shape[2]
    real = call.arguments["padding"][:, 0, 0, -T:]  # (B, T)
    return not result.outputs[0].transpose(1, 2)[~real].any()


def _first_is_its_value(call: Call, result: Result) -> bool:
    output, value, padding = result.outputs[0], call.arguments["value"], call.arguments["padding"][:, 0, 0]
    past = value.shape[2] - output.shape[2]
    firsts = [(b, int(real.int().argmax())) for b, real in enumerate(padding)]
    return all(torch.allclose(output[b, :, p - past], value[b, :, p], atol=1e-4) for b, p in firsts if p >= past)


DECODE_CHUNK = Exercise(
    id="kv_cache/decode_chunk",
    defines="decode_chunk",
    title="Decode a chunk of tokens",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    given=("attncourse.positions",),
    scripts=decode_chunk_scripts,
    reference=decode_chunk,
    faulty=faulty_decode_chunk,
    outputs=(Output("output", "B H T Dv"),),
    properties=(
        Property("a token of padding sees nothing: its output is zeros", _padding_gives_zeros),
        Property("the first real token sees itself alone: its output is its value", _first_is_its_value),
    ),
    habits=COMMON_HABITS | {"extreme": EXTREME},
    forbidden=("scaled_dot_product_attention",),
    misconceptions=(
        Misconception(
            "causal_when_empty",
            "the mask is causal only while the cache is empty",
            "With a past, the new tokens of one chunk see each other's future. One new token at a time hides it: it "
            "has no later token beside it. Mask by positions in every call.",
            "Any chunking",
        ),
        Misconception(
            "top_left",
            "the causal mask begins at the top left: the first query sees the first key alone",
            "The queries are the last T of S positions: query i stands at S - T + i. PyTorch's `is_causal=True` is "
            "aligned at the top left, and so is `tril()` without a diagonal.",
            "Any chunking",
        ),
        Misconception(
            "query_restarts",
            "the queries' positions start at 0 in every chunk",
            "The keys were turned at positions counted from the beginning of the text, and a score depends on the "
            "distance. Turn query i by S - T + i.",
            "Any chunking",
        ),
        Misconception(
            "positions_from_one",
            "the queries stand one position too far",
            "Positions count from 0: the last query stands at S - 1, as the last key does.",
            "Any chunking",
        ),
        Misconception(
            "one_position",
            "all queries of the chunk are turned by one position",
            "`length` is the position of the chunk's first token only. Each token has a position of its own.",
            "Any chunking",
        ),
        Misconception(
            "padding_not_counted",
            "the queries' positions are counted from the first real token",
            "Here the keys were turned at positions that count the padding too. Queries and keys must count alike.",
            "Any chunking",
        ),
        Misconception(
            "not_turned",
            "the queries are not turned",
            "The keys in the cache are turned already, the queries are not. A score depends on the distance only where "
            "both are.",
            "Prefill and decode",
        ),
        Misconception(
            "keys_turned_again",
            "the keys are turned a second time",
            "A cache holds keys that were turned when they came in. Turned again, they stand at twice their position.",
            "Prefill and decode",
        ),
        Misconception(
            "base_ignored",
            "the base is 10000, whatever is given",
            "Models differ in their base: `RotaryEmbedding(D, base)`.",
            "In real models",
        ),
        Misconception(
            "not_causal",
            "later tokens are visible",
            "The padding hides places that are no text. A query must not see a later token either: both conditions, "
            "with `&`.",
            "Any chunking",
        ),
        Misconception(
            "no_diagonal",
            "a token does not see itself",
            "A token may read itself: `<=`, not `<`.",
            "By hand",
        ),
        Misconception(
            "padding_ignored",
            "the padding is not hidden",
            "Then a sequence gives other results beside a longer one, because its padding takes part.",
            "Any chunking",
        ),
        Misconception(
            "new_padding_only",
            "padding is hidden among the new tokens alone",
            "The padding in front of a short sequence is in the cache, and stays there. The mask has a column for each "
            "of the S keys.",
            "Any chunking",
        ),
        Misconception(
            "padding_after",
            "the padding is masked after the softmax, not before it",
            "It makes the empty rows zeros, but padding has already taken its share of all other rows. Forbid it with "
            "the later keys, before the softmax.",
            "Any chunking",
        ),
        Misconception(
            "padding_inverted",
            "the padding is seen and the text hidden",
            "Here True means: may attend. Other libraries mark the padding with True.",
            "Any chunking",
        ),
        Misconception(
            "inverted",
            "only forbidden keys are seen: the mask is inverted",
            "`masked_fill` fills where its mask is True, so it wants the keys to hide: `~allowed` where True = may "
            "attend.",
            "Any chunking",
        ),
        Misconception(
            "either",
            "one of the two conditions is enough",
            "A key must be real *and* not later: `&`, not `|`.",
            "Any chunking",
        ),
        Misconception(
            "rows_nan",
            "a query that may see nothing is not taken care of",
            "In front of a short sequence stand queries of padding, which see no key. The softmax of a row of -inf is "
            "NaN. Make that row zeros.",
            "Any chunking",
        ),
        Misconception(
            "rows_spread",
            "a query that may see nothing attends to all keys equally",
            "Filling with a large negative number makes its row constant, and the softmax of a constant row is "
            "uniform. Make that row zeros.",
            "Any chunking",
        ),
        Misconception(
            "mask_after",
            "the weights are masked after the softmax and not normalised again",
            "The forbidden keys have already taken their share. Fill their scores with -inf first.",
            "By hand",
        ),
        Misconception(
            "mask_added",
            "the boolean mask is added to the scores",
            "True counts as 1 and False as 0, which forbids nothing. Fill the scores of forbidden keys with -inf.",
            "By hand",
        ),
        Misconception(
            "mask_multiplies",
            "the scores of forbidden keys are set to 0",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf before the "
            "softmax.",
            "By hand",
        ),
        Misconception(
            "over_queries",
            "the shares sum to 1 over the queries",
            "Each query shares out its attention among its keys: softmax over the last axis, the keys.",
            "By hand",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "Asked for is scaled dot-product attention, with a cache as without.",
            "By hand",
        ),
        Misconception(
            "no_root",
            "the scores are divided by D, not by √D",
            "A dot product of D numbers spreads out with √D: divide by `D ** 0.5`.",
            "By hand",
        ),
        Misconception(
            "behind_all",
            "the queries stand behind all S keys",
            "S counts the new tokens too: the cache holds their keys already. Query i stands at S - T + i, and "
            "the last one at S - 1.",
            "Any chunking",
        ),
        Misconception(
            "last_position",
            "all queries of the chunk are turned by the last position",
            "S - 1 is the position of the chunk's last token only. Each token has a position of its own.",
            "Any chunking",
        ),
        Misconception(
            "top_left_of_several",
            "the causal mask begins at the top left, and one new token sees all",
            "`is_causal = T > 1` is right for a prompt and for one token. Between them, several new tokens behind"
            " others, the first query sees the first key alone. Query i stands at S - T + i.",
            "Any chunking",
        ),
        Misconception(
            "one_ahead",
            "each query sees one key too many, the next token's",
            "`tril(S - T)` is the mask: position p sees the keys 0 … p.",
            "Any chunking",
        ),
        Misconception(
            "only_the_future",
            "only later keys are seen",
            "The causal mask is inverted: `triu(S - T + 1)` marks what is forbidden. True means: may attend.",
            "Any chunking",
        ),
        Misconception(
            "padding_of_queries",
            "the padding hides queries, not keys",
            "`padding` is (B, 1, 1, S): its last axis counts the keys. No real query may attend to keys of padding.",
            "Any chunking",
        ),
        Misconception(
            "no_brackets",
            "a comparison has no brackets",
            "`a <= b & c` means `a <= (b & c)`, since `&` binds tighter. Put the comparison in brackets.",
            "Any chunking",
        ),
        Misconception(
            "not_assigned",
            "no mask takes effect",
            "If you filled the scores: `masked_fill` returns a new tensor and does not change `scores`. Write "
            "`scores = scores.masked_fill(…)`.",
            "By hand",
        ),
        Misconception(
            "zero_twice",
            "the scores of forbidden keys are set to 0, and then their weights",
            "Before the softmax a score of 0 still takes its share, exp(0) = 1, from the allowed keys. It must be"
            " -inf there.",
            "By hand",
        ),
        Misconception(
            "root_of_value",
            "the scores are divided by the root of the value's size",
            "The dot product has D numbers, the size of a key: divide by √D.",
            "By hand",
        ),
        Misconception(
            "multiplied",
            "the scores are multiplied by √D, not divided",
            "Divide by `D ** 0.5`, or multiply by `D ** -0.5`.",
            "By hand",
        ),
    ),
)

# --- cache_bytes ------------------------------------------------------------------------------------------------


def cache_bytes(
    n_layers: int, n_heads: int, n_kv_heads: int, head_dim: int, n_tokens: Tensor, bytes_per_number: int
) -> Tensor:
    n_keys = n_layers * n_kv_heads * n_tokens  # (N,)
    numbers = 2 * n_keys * head_dim  # as many values as keys
    return numbers * bytes_per_number


def faulty_cache_bytes(wrong: frozenset[str], bits: bool = False) -> Callable:
    """bits: the last argument counts bits, not bytes."""

    def cache_bytes(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, size):
        heads = n_heads // n_kv_heads if "shared_heads" in wrong else n_kv_heads
        heads = n_heads if "query_heads" in wrong else 1 if "one_head" in wrong else heads
        numbers = n_tokens * heads * (1 if "one_layer" in wrong else n_layers)
        if "one_number" not in wrong:
            numbers = numbers * head_dim
        if "keys_only" not in wrong:
            numbers = numbers * 2
        if "squared" in wrong:
            numbers = numbers * n_tokens
        each = 2 if "two_bytes" in wrong else 4 if "four_bytes" in wrong else size
        total = numbers if "numbers_only" in wrong else numbers * each
        if "eighth" in wrong:
            total = total // 8
        if "in_bits" in wrong:
            total = total if bits else total * 8
        elif bits and not wrong & {"numbers_only", "two_bytes", "four_bytes"}:
            total = total // 8
        if "in_gib" in wrong:
            total = total / 2**30
        if "one_token" in wrong:
            total = total // n_tokens
        return total.sum() if "summed" in wrong else total

    cache_bytes.wrong = wrong  # so that the variant can make it in the other unit
    return cache_bytes


def _bits_a_number(implementation: Callable) -> Callable:
    """cache_bytes for bits instead of bytes. A known mistake is made anew: ignoring the size, it divides nothing."""
    if hasattr(implementation, "wrong"):
        return faulty_cache_bytes(implementation.wrong, bits=True)
    return lambda *given: implementation(*given) // 8


def cache_bytes_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(11200 + seed)

    def arguments(layers: int, H: int, G: int, D: int, n_tokens: list[int], size: int) -> dict:
        return {
            "n_layers": layers,
            "n_heads": H,
            "n_kv_heads": G,
            "head_dim": D,
            "n_tokens": torch.tensor(n_tokens),
            "bytes_per_number": size,
        }

    more = [int(n) for n in torch.randint(2, 9, (3,), generator=inputs.generator)]
    yield one_call("three layers, two key-value heads of twelve", arguments(3, 12, 2, 5, [7], 4))
    yield one_call("one length after the other", arguments(5, 14, 2, 6, [1, 10, 100, 1000], 2))
    yield one_call("a head of keys for every query head", arguments(4, 6, 6, 3, [8, 11 + more[0]], 2))
    yield one_call("one head of keys", arguments(6, 8, 1, 4, [9, 13 + more[1]], 4))
    yield one_call("one byte a number", arguments(7, 24, 4, 16, [5, 64 * more[2]], 1))
    yield one_call("the sizes of Llama 3 8B", arguments(32, 32, 8, 128, [1, 8192, 131072], 2))
    yield one_call("more bytes than a float32 can count", arguments(61, 28, 7, 96, [1, 131071], 2))


def _twice_as_many(call: Call, result: Result) -> bool:
    n_tokens, total = call.arguments["n_tokens"], result.outputs[0]
    return torch.equal(total * n_tokens[0], total[0] * n_tokens)


CACHE_BYTES = Exercise(
    id="kv_cache/cache_bytes",
    defines="cache_bytes",
    title="Count the bytes of a cache",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=cache_bytes_scripts,
    reference=cache_bytes,
    faulty=faulty_cache_bytes,
    outputs=(Output("bytes", "N"),),
    properties=(Property("twice as many tokens take twice as many bytes", _twice_as_many),),
    misconceptions=(
        Misconception(
            "keys_only",
            "it counts keys or values, not both",
            "Each token leaves a key and a value in every layer: twice as many numbers.",
            "By hand",
        ),
        Misconception(
            "query_heads",
            "it counts the query heads",
            "Queries are used once and forgotten. What is stored has `n_kv_heads` heads, which may be fewer.",
            "In real models",
        ),
        Misconception(
            "shared_heads",
            "it counts how many query heads share a key-value head",
            "`n_heads / n_kv_heads` query heads read each stored head. How many are stored is `n_kv_heads` itself.",
            "In real models",
        ),
        Misconception(
            "one_head",
            "it counts one head",
            "Every key-value head stores a key and a value of its own.",
            "By hand",
        ),
        Misconception(
            "one_number",
            "it counts one number for each key",
            "A key of one head is `head_dim` numbers.",
            "By hand",
        ),
        Misconception(
            "one_layer",
            "it counts one layer",
            "Every layer has a cache of its own.",
            "By hand",
        ),
        Misconception(
            "numbers_only",
            "it counts numbers, not bytes",
            "A number of bfloat16 takes two bytes, one of float32 four. Multiply by the size of a number.",
            "By hand",
        ),
        Misconception(
            "in_bits",
            "it counts bits",
            "A byte is eight bits, and bytes are asked for.",
            "Fewer bits",
        ),
        Misconception(
            "in_gib",
            "it counts GiB",
            "Asked for are bytes, whole numbers. A GiB is 2^30 of them.",
            "In real models",
        ),
        Misconception(
            "squared",
            "it grows with the square of the tokens",
            "That is the number of scores in prefill. A cache holds each token once: it grows with the tokens.",
            "What is computed again",
        ),
        Misconception(
            "one_token",
            "it counts one token",
            "Those are the bytes that each token adds. Multiply by the tokens.",
            "By hand",
        ),
        Misconception(
            "summed",
            "the lengths are added up",
            "One answer for each length: N of them.",
            "By hand",
        ),
        Misconception(
            "two_bytes",
            "every number takes two bytes, whatever is given",
            "Sizes differ: multiply by the last argument, which gives the size.",
            "By hand",
        ),
        Misconception(
            "four_bytes",
            "every number takes four bytes, whatever is given",
            "Sizes differ: multiply by the last argument, which gives the size.",
            "By hand",
        ),
        Misconception(
            "eighth",
            "it is divided by 8 once too often",
            "A byte is eight bits. A size given in bytes is not divided, one given in bits is divided once.",
            "Fewer bits",
        ),
    ),
    variants={
        "bits": Variant(
            statement="In this copy the last argument is the number of *bits* a stored number takes: 16, 8 or 4. Asked "
            "for are bytes all the same.",
            argument=lambda name, value: value * 4 if name == "bytes_per_number" else value,
            wrap=_bits_a_number,
            explanations={
                "numbers_only": "A number of 16 bits takes two bytes, one of 4 bits half a byte. Multiply by the size "
                "of a number, and divide by the 8 bits of a byte.",
                "in_bits": "The last argument is in bits here, and bytes are asked for: divide by 8.",
                "eighth": "The size is given in bits: divide by 8 once.",
            },
        )
    },
)

# --- quantize_cache ---------------------------------------------------------------------------------------------


def quantize_cache(key: Tensor, value: Tensor, bits: int) -> tuple[Tensor, ...]:
    results = []
    for x, axis in ((key, 2), (value, 3)):  # a range for each channel of the keys, for each token of the values
        zero = x.amin(axis, keepdim=True)
        scale = (x.amax(axis, keepdim=True) - zero) / (2**bits - 1)
        codes = ((x - zero) / scale).round().to(torch.uint8)
        results += [codes, scale, zero]
    return tuple(results)


def faulty_quantize_cache(wrong: frozenset[str]) -> Callable:
    def steps(x, axes, bits):
        """scale and zero."""
        if "per_head" in wrong:
            axes = (2, 3)
        if "batch_shared" in wrong:
            axes = (0, *axes)
        if "one_scale" in wrong:
            axes = (0, 1, 2, 3)
        keep = "one_scale" not in wrong
        levels = 2 ** (8 if "bits_ignored" in wrong else bits) - 1
        if wrong & {"too_many_levels", "last_code_cut"}:
            levels = levels + 1
        if "signed_levels" in wrong:
            levels = levels // 2
        if "power_as_xor" in wrong:
            levels = 2 ^ bits - 1
        zero = x.amin(axes, keepdim=keep)
        if "no_brackets" in wrong:
            return (x.amax(axes, keepdim=keep) - zero) / 2**bits - 1, zero
        return (x.amax(axes, keepdim=keep) - zero) / levels, zero

    def codes_of(x, scale, zero, bits):
        numbers = (x if wrong & {"zero_forgotten", "negative_cut"} else x - zero) / scale
        if "zero_is_a_code" in wrong:
            numbers = (x / scale).round() + (-zero / scale).round()
        if wrong & {"negative_cut", "last_code_cut"}:
            numbers = numbers.clamp(0, 2**bits - 1)
        return (numbers if "truncated" in wrong else numbers.round()).to(torch.uint8)

    def quantize_cache(key, value, bits):
        key_scale, key_zero = steps(key, (3,) if "keys_per_token" in wrong else (2,), bits)
        value_scale, value_zero = steps(value, (2,) if "values_per_channel" in wrong else (3,), bits)
        if "one_grid" in wrong:
            value_scale, value_zero = key_scale, key_zero
        read_with = key_scale if "key_scale_for_values" in wrong else value_scale
        results = []
        grids = (key, key_scale, key_scale, key_zero), (value, read_with, value_scale, value_zero)
        for x, used, scale, zero in grids:
            codes = codes_of(x, used, zero, bits)
            if "zero_is_a_code" in wrong:
                zero = (-zero / scale).round()
            if "scale_inverted" in wrong:
                scale = 1 / scale
            if "whole_range" in wrong:
                scale = scale * (2**bits - 1)
            results += [codes, zero, scale] if "exchanged" in wrong else [codes, scale, zero]
        return tuple(results)

    return quantize_cache


def quantize_cache_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(11300 + seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=inputs.generator)

    def grid(shape: tuple[int, ...], axis: int, zero: Tensor, step: Tensor, levels: int) -> Tensor:
        """Numbers whose codes are sure: at most 0.4 of a step from one, with the first and the last in every range."""
        codes = torch.randint(0, levels + 1, shape, generator=inputs.generator)
        ends = torch.rand(shape, generator=inputs.generator).argsort(axis)
        codes = codes.masked_fill(ends == 0, 0).masked_fill(ends == 1, levels)
        off = uniform(-0.4, 0.4, *shape)
        off = torch.where(codes == 0, off.abs(), torch.where(codes == levels, -off.abs(), off))
        off = off.masked_fill(ends < 2, 0.0)
        return zero + (codes + off) * step

    def script(name: str, sizes: tuple[int, ...], bits: int, habit: str | None = None) -> Script:
        B, G, S, D, Dv = sizes
        levels = 2**bits - 1
        key_range = uniform(8.0, 12.0, B, G, 1, D)
        key_range[..., 0] *= 6  # a channel of large numbers, as real keys have
        key = grid((B, G, S, D), 2, uniform(-4.0, -3.0, B, G, 1, D), key_range / levels, levels)
        value_step = uniform(1.0, 3.0, B, G, S, 1) / levels
        value = grid((B, G, S, Dv), 3, uniform(-1.5, -0.5, B, G, S, 1), value_step, levels)
        if habit == "float64":
            key, value = key.double(), value.double()
        if habit == "non-contiguous":
            key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value))
        return one_call(name, {"key": key, "value": value, "bits": bits}, habit, gradients=())

    yield script("six tokens, two bits", (1, 2, 6, 4, 3), 2)
    yield script("a batch, all sizes different", (2, 3, 7, 5, 6), 4)
    yield script("keys and values of one size", (2, 3, 6, 5, 5), 4)
    yield script("all sizes equal", (4, 4, 4, 4, 4), 3)
    yield script("eight bits", (1, 2, 5, 6, 6), 8)
    yield script("non-contiguous", (2, 3, 5, 4, 6), 4, "non-contiguous")
    yield script("float64", (1, 2, 6, 4, 5), 4, "float64")


def _last_code_is_used(call: Call, result: Result) -> bool:
    last = 2 ** call.arguments["bits"] - 1
    return all(int(codes.max()) == last and int(codes.min()) == 0 for codes in (result.outputs[0], result.outputs[3]))


def _half_a_step(call: Call, result: Result) -> bool:
    outputs = result.outputs
    triples = zip((call.arguments["key"], call.arguments["value"]), (outputs[:3], outputs[3:]), strict=True)
    return all(
        bool(((codes * scale + zero - x).abs() <= 0.51 * scale.abs() + 1e-4).all())
        for x, (codes, scale, zero) in triples
    )


QUANTIZE_CACHE = Exercise(
    id="kv_cache/quantize_cache",
    defines="quantize_cache",
    title="Quantize keys and values",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=quantize_cache_scripts,
    reference=quantize_cache,
    faulty=faulty_quantize_cache,
    outputs=(
        Output("key_codes", "B G S D"),
        Output("key_scale", "B G 1 D"),
        Output("key_zero", "B G 1 D"),
        Output("value_codes", "B G S Dv"),
        Output("value_scale", "B G S 1"),
        Output("value_zero", "B G S 1"),
    ),
    properties=(
        Property("codes · scale + zero is at most half a step from what was given", _half_a_step),
        Property("the smallest number of a range has the code 0, the largest 2^bits - 1", _last_code_is_used),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "keys_per_token",
            "the keys have a scale for each token",
            "A few channels of the keys hold large numbers in every token, and would set each token's scale: nothing "
            "is left for the others. Keys get a range for each channel, over the tokens.",
            "Fewer bits",
        ),
        Misconception(
            "values_per_channel",
            "the values have a scale for each channel",
            "Values have no such channels, and they come one token at a time: a range for each token, over its "
            "numbers, is final when the token comes.",
            "Fewer bits",
        ),
        Misconception(
            "key_scale_for_values",
            "the values' codes are made with the keys' scale",
            "Whoever reads them multiplies by the values' own scale, and gets other numbers. Look for a name left over "
            "from the keys.",
            "Fewer bits",
        ),
        Misconception(
            "one_grid",
            "scale and zero of the keys are used for the values too",
            "Keys and values have different ranges, and the values' belong to tokens: measure them anew.",
            "Fewer bits",
        ),
        Misconception(
            "one_scale",
            "one scale serves all numbers",
            "One large number then sets the step of everything: `min()` and `max()` without an axis look at the whole "
            "tensor.",
            "Fewer bits",
        ),
        Misconception(
            "per_head",
            "one scale serves a whole head",
            "One large channel then sets the step of all. The range runs over one axis: tokens for keys, a token's "
            "numbers for values.",
            "Fewer bits",
        ),
        Misconception(
            "batch_shared",
            "the sequences of the batch share their scales",
            "Then a sequence is stored otherwise beside another one. Each has its own ranges.",
            "Fewer bits",
        ),
        Misconception(
            "zero_forgotten",
            "the zero is not subtracted",
            "Codes count the steps from the smallest number: (x - zero) / scale. Without it, negative numbers leave "
            "the codes' range and wrap round.",
            "Fewer bits",
        ),
        Misconception(
            "negative_cut",
            "the zero is not subtracted, and what is negative gets the code 0",
            "Codes count the steps from the smallest number: (x - zero) / scale. Cut off at 0, all numbers below 0 "
            "look alike.",
            "Fewer bits",
        ),
        Misconception(
            "zero_is_a_code",
            "the zero is the code that stands for 0, not a number",
            "That is another convention: (codes - zero) · scale. Here codes · scale + zero gives the number back, so "
            "the zero is the smallest number itself.",
            "Fewer bits",
        ),
        Misconception(
            "truncated",
            "codes are cut off, not rounded",
            "Turning a float into an integer rounds towards zero: the error grows from half a step to a whole one, "
            "always to one side. Round first.",
            "Fewer bits",
        ),
        Misconception(
            "too_many_levels",
            "the range is divided into 2^bits steps",
            "2^bits codes have 2^bits - 1 steps between them. With one more, the largest number has a code that does "
            "not fit: 16 in four bits, and 256 in a byte is 0.",
            "Fewer bits",
        ),
        Misconception(
            "last_code_cut",
            "the range is divided into 2^bits steps, and the largest number gets a smaller one's code",
            "2^bits codes have 2^bits - 1 steps between them. With one more, the largest number has no code, and is "
            "cut off.",
            "Fewer bits",
        ),
        Misconception(
            "signed_levels",
            "half of the codes are not used",
            "2^(bits - 1) - 1 belongs to signed codes, which run to both sides of 0. These run from 0 to 2^bits - 1.",
            "Fewer bits",
        ),
        Misconception(
            "bits_ignored",
            "it makes 8 bits, whatever is asked for",
            "A code in a byte may use fewer values: 2^bits of them.",
            "Fewer bits",
        ),
        Misconception(
            "scale_inverted",
            "it returns steps per number, not the size of a step",
            "Reading multiplies: codes · scale + zero. So the scale is the range divided by the steps.",
            "Fewer bits",
        ),
        Misconception(
            "exchanged",
            "scale and zero are in each other's place",
            "Returned are codes, scale, zero, first of the keys, then of the values.",
            "Fewer bits",
        ),
        Misconception(
            "whole_range",
            "the scale returned is the whole range, not one step of it",
            "Reading multiplies: codes · scale + zero. So the scale is the range divided by 2^bits - 1.",
            "Fewer bits",
        ),
        Misconception(
            "no_brackets",
            "the number of steps has no brackets",
            "`x / 2**bits - 1` is (x / 2^bits) - 1. Write `x / (2**bits - 1)`.",
            "Fewer bits",
        ),
        Misconception(
            "power_as_xor",
            "`^` is no power in Python",
            "It compares bits, and after the subtraction: for four bits `2 ^ bits - 1` is 2 ^ 3, which is 1. A power "
            "is `2**bits`.",
            "Fewer bits",
        ),
    ),
)

# --- test_decoding, a reverse exercise --------------------------------------------------------------------------


def _turn(x: Tensor, positions: Tensor) -> Tensor:
    return apply_rotary(x, positions, RotaryEmbedding(x.shape[-1]))


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~allowed, 0.0) @ value


def _by_cat(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    return faulty_decoding(frozenset())(query, key, value, sizes)


def _by_room(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    room_key, room_value = torch.zeros_like(key), torch.zeros_like(value)
    outputs, length = [], 0
    for n in sizes.tolist():
        end = length + n
        new, place = slice(length, end), torch.arange(length, end)
        room_key[:, :, new], room_value[:, :, new] = _turn(key[:, :, new], place), value[:, :, new]
        allowed = torch.arange(end) <= place[:, None]
        outputs.append(_attend(_turn(query[:, :, new], place), room_key[:, :, :end], room_value[:, :, :end], allowed))
        length = end
    return torch.cat(outputs, 2)


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    """Whatever the sizes: one token sees all before it, so no mask is needed."""
    place, outputs = torch.arange(query.shape[2]), []
    turned, keys = _turn(query, place), _turn(key, place)
    for p in range(query.shape[2]):
        weights = torch.einsum("bhd,bhsd->bhs", turned[:, :, p], keys[:, :, : p + 1]) * query.shape[-1] ** -0.5
        outputs.append(torch.einsum("bhs,bhsv->bhv", weights.softmax(-1), value[:, :, : p + 1]))
    return torch.stack(outputs, 2)


def _one_pass(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    place = torch.arange(query.shape[2])
    return _attend(_turn(query, place), _turn(key, place), value, place <= place[:, None])


def _turned_when_read(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    """The cache holds keys that are not turned."""
    outputs = []
    for end, n in zip(sizes.cumsum(0).tolist(), sizes.tolist(), strict=True):
        q = _turn(query[:, :, end - n : end], torch.arange(end - n, end))
        allowed = torch.ones(n, end).tril(end - n).bool()
        outputs.append(_attend(q, _turn(key[:, :, :end], torch.arange(end)), value[:, :, :end], allowed))
    return torch.cat(outputs, 2)


def _fused(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    place = torch.arange(key.shape[2])
    turned, keys, outputs, length = _turn(query, place), _turn(key, place), [], 0
    for q in turned.split(sizes.tolist(), 2):
        n, length = q.shape[2], length + q.shape[2]
        allowed = torch.ones(n, length, dtype=torch.bool).tril(length - n)
        seen = keys[:, :, :length], value[:, :, :length]
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, *seen, attn_mask=allowed))
    return torch.cat(outputs, 2)


def _in_float64(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    return _by_cat(query.double(), key.double(), value.double(), sizes).to(query.dtype)


def faulty_decoding(wrong: frozenset[str]) -> Callable:
    def decode(query, key, value, sizes):
        stored_key, stored_value = key[:, :, :0], value[:, :, :0]
        outputs, done, before = [], 0, 0
        for call, n in enumerate(sizes.tolist()):
            q, k, v = (x[:, :, done : done + n] for x in (query, key, value))
            start = done
            if "positions_restart" in wrong:
                start = 0
            if "calls_counted" in wrong:
                start = call
            if "equal_chunks" in wrong:
                start = call * n
            if "one_ahead" in wrong:
                start = done + (call > 0)
            place = torch.arange(start, start + n)
            q, k = _turn(q, place), _turn(k, place)
            if "turned_again" in wrong:
                stored_key = _turn(stored_key, torch.arange(stored_key.shape[2]))
            kept = slice(0, None)
            if "past_lost" in wrong:
                kept = slice(done, None)
            if "last_chunk_only" in wrong:
                kept = slice(stored_key.shape[2] - before, None)
            if "last_overwritten" in wrong:
                kept = slice(0, max(0, stored_key.shape[2] - 1))
            old_key, old_value = stored_key[:, :, kept], stored_value[:, :, kept]
            order = slice(None, None, -1 if "prepended" in wrong else 1)
            stored_key = torch.cat([old_key, k][order], 2)
            stored_value = torch.cat([old_value, v][order], 2)
            past = stored_key.shape[2] - n
            allowed = torch.ones(n, n + past).tril(0 if "top_left" in wrong else past).bool()
            if "peeks" in wrong or ("causal_when_empty" in wrong and call > 0):
                allowed = torch.ones_like(allowed)
            if "stored_late" in wrong:
                allowed[:, past:] = False
            outputs.append(_attend(q, stored_key, stored_value, allowed))
            done, before = done + n, n
        return torch.cat(outputs, 2)

    return decode


TEST_DECODING = ReverseExercise(
    id="kv_cache/test_decoding",
    defines="test_decoding",
    title="Write the test: does chunking change anything?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    given=("attncourse.positions",),
    right={
        "new keys joined to the old ones": _by_cat,
        "a room written in place": _by_room,
        "one token at a time, whatever the sizes": _one_by_one,
        "one pass, whatever the sizes": _one_pass,
        "keys turned when they are read": _turned_when_read,
        "the fused kernel with a mask": _fused,
        "computed in float64": _in_float64,
    },
    faulty=faulty_decoding,
    misconceptions=(
        Misconception(
            "causal_when_empty",
            "the mask is causal only while the cache is empty",
            "One pass is right, and so is a prompt with one token at a time after it: a single new token needs no "
            "mask. Give a chunk of several tokens after another chunk.",
            "Any chunking",
        ),
        Misconception(
            "top_left",
            "the causal mask is aligned at the top left",
            "One pass is right. After a first chunk, the new tokens see the oldest keys and not the newest.",
            "Any chunking",
        ),
        Misconception(
            "positions_restart",
            "positions start at 0 in every chunk",
            "One pass is right. After a first chunk, queries and keys are turned as if the text began again.",
            "Any chunking",
        ),
        Misconception(
            "calls_counted",
            "positions grow by one for each call",
            "Right for one token at a time, wrong after a longer chunk: the cache must count tokens, not calls.",
            "Any chunking",
        ),
        Misconception(
            "equal_chunks",
            "the position is the chunk's number times its size",
            "Right for chunks of one size, whatever it is. Give chunks of several sizes.",
            "Any chunking",
        ),
        Misconception(
            "one_ahead",
            "after the first chunk, positions are one too far",
            "`length` tokens stand at 0 … length - 1; the next one stands at `length`.",
            "Any chunking",
        ),
        Misconception(
            "turned_again",
            "the stored keys are turned again in every call",
            "A cache holds keys that were turned when they came in. One pass stores nothing before, and is right.",
            "Any chunking",
        ),
        Misconception(
            "past_lost",
            "each chunk sees itself alone",
            "The cache is never read. Compare with one pass.",
            "Any chunking",
        ),
        Misconception(
            "last_chunk_only",
            "each chunk sees itself and the one before it",
            "Two chunks do not show it: give three or more.",
            "Any chunking",
        ),
        Misconception(
            "last_overwritten",
            "each chunk is written over the last stored token",
            "The next free place is `length`, not length - 1. In one pass nothing is stored yet, and it is right.",
            "By hand",
        ),
        Misconception(
            "prepended",
            "new keys are stored before the old ones",
            "Attention does not mind the order of keys, but the mask does: it hides the wrong ones, as soon as a later "
            "chunk has several tokens.",
            "By hand",
        ),
        Misconception(
            "stored_late",
            "a chunk is stored after it has attended",
            "Then no token sees its own chunk, nor itself. The first chunk sees nothing.",
            "Prefill and decode",
        ),
        Misconception(
            "peeks",
            "there is no causal mask",
            "Every token sees its whole chunk. One token at a time is right; one pass is not.",
            "Any chunking",
        ),
    ),
)

EXERCISES = (APPEND_TOKENS, DECODE_CHUNK, CACHE_BYTES, QUANTIZE_CACHE, TEST_DECODING)
