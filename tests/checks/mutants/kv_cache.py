"""Chapter 11 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/kv_cache.py: the styles differ on purpose (cat, loops,
index_copy, tril, complex numbers), because the check must recognise the mistake and not the code.
"""

import math
import operator

import torch

from attncourse.attention import scaled_dot_product_attention
from attncourse.kv_cache import KVCache
from attncourse.positions import RotaryEmbedding, apply_rotary
from attncourse.quantized_cache import quantize
from tests.checks.mutants import Answers

ANSWERS = Answers("kv_cache")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test

# --- append_tokens: mistakes ------------------------------------------------------------------------------------


def _stored(room, first, new):
    """A room with `new` from position `first` on."""
    room = room.clone()
    room[:, :, first : first + new.shape[2]] = new
    return room


def _cat(room, length, new):
    """The same by joining, for the right place."""
    return torch.cat([room[:, :, :length], new, room[:, :, length + new.shape[2] :]], dim=2)


@mutant("append_tokens", "overwrites_last")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = _stored(room_key, length - 1, key), _stored(room_value, length - 1, value)
    return k, v, k[:, :, :end], v[:, :, :end]


@mutant("append_tokens", "leaves_gap")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = room_key.clone(), room_value.clone()
    for t in range(key.size(2)):
        k[:, :, length + 1 + t], v[:, :, length + 1 + t] = key[:, :, t], value[:, :, t]
    return k, v, k[:, :, :end], v[:, :, :end]


@mutant("append_tokens", "at_start")
def _(room_key, room_value, length, key, value):
    T = key.size(2)
    k = torch.cat([key, room_key[:, :, T:]], dim=2)
    v = torch.cat([value, room_value[:, :, T:]], dim=2)
    return k, v, k[:, :, : length + T], v[:, :, : length + T]


@mutant("append_tokens", "at_end")
def _(room_key, room_value, length, key, value):
    T = key.size(2)
    k, v = room_key.clone(), room_value.clone()
    k[:, :, -T:], v[:, :, -T:] = key, value
    return k, v, k[:, :, : length + T], v[:, :, : length + T]


@mutant("append_tokens", "prepended")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([key, room_key[:, :, :length]], 2)
    values = torch.cat([value, room_value[:, :, :length]], 2)
    end = keys.size(2)
    return torch.cat([keys, room_key[:, :, end:]], 2), torch.cat([values, room_value[:, :, end:]], 2), keys, values


@mutant("append_tokens", "whole_room")
def _(room_key, room_value, length, key, value):
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    return k, v, k, v


@mutant("append_tokens", "new_only")
def _(room_key, room_value, length, key, value):
    return _cat(room_key, length, key), _cat(room_value, length, value), key, value


@mutant("append_tokens", "old_only")
def _(room_key, room_value, length, key, value):
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    return k, v, room_key[:, :, :length], room_value[:, :, :length]


@mutant("append_tokens", "one_less")
def _(room_key, room_value, length, key, value):
    last = length + key.size(2) - 1
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    return k, v, k[:, :, :last], v[:, :, :last]


@mutant("append_tokens", "one_more")
def _(room_key, room_value, length, key, value):
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    seen = torch.arange(k.size(2)) <= length + key.size(2)
    return k, v, k[:, :, seen], v[:, :, seen]


@mutant("append_tokens", "swapped")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = _stored(room_key, length, value), _stored(room_value, length, key)
    return k, v, k[:, :, :end], v[:, :, :end]


@mutant("append_tokens", "value_left")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k = _cat(room_key, length, key)
    return k, room_value, k[:, :, :end], room_value[:, :, :end]


@mutant("append_tokens", "over_heads")
def _(room_key, room_value, length, key, value):
    keys = torch.cat((room_key[:, :, :length], key), dim=1)
    values = torch.cat((room_value[:, :, :length], value), dim=1)
    return _stored(room_key, length, key), _stored(room_value, length, value), keys, values


@mutant("append_tokens", "room_left")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([room_key[:, :, :length], key], dim=2)
    values = torch.cat([room_value[:, :, :length], value], dim=2)
    return room_key, room_value, keys, values


@mutant("append_tokens", "room_cut")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([room_key[:, :, :length], key], dim=2)
    values = torch.cat([room_value[:, :, :length], value], dim=2)
    return keys, values, keys, values


@mutant("append_tokens", "read_first")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    return k[:, :, :end], v[:, :, :end], k, v


@mutant("append_tokens", "added")
def _(room_key, room_value, length, key, value):
    places = torch.arange(length, length + key.size(2))
    k, v = room_key.index_add(2, places, key), room_value.index_add(2, places, value)
    return k, v, k[:, :, : length + key.size(2)], v[:, :, : length + key.size(2)]


@mutant("append_tokens", "rest_cleared")
def _(room_key, room_value, length, key, value):
    k, v = torch.zeros_like(room_key), torch.zeros_like(room_value)
    end = length + key.size(2)
    k[:, :, :length], v[:, :, :length] = room_key[:, :, :length], room_value[:, :, :length]
    k[:, :, length:end], v[:, :, length:end] = key, value
    return k, v, k[:, :, :end], v[:, :, :end]


@mutant("append_tokens", "thrown_away")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    room_key.clone().narrow(2, length, key.size(2)).copy_(key)
    room_value.clone().narrow(2, length, key.size(2)).copy_(value)
    return room_key, room_value, room_key[:, :, :end], room_value[:, :, :end]


@mutant("append_tokens", "behind_room")
def _(room_key, room_value, length, key, value):
    rooms = [torch.cat(both, dim=-2) for both in ((room_key, key), (room_value, value))]
    return *rooms, *(room.narrow(2, 0, length + key.size(2)) for room in rooms)


@mutant("append_tokens", "pushed_in")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([room_key.narrow(2, 0, length), key], dim=2)
    values = torch.cat([room_value.narrow(2, 0, length), value], dim=2)
    k, v = torch.cat([keys, room_key[:, :, length:]], dim=2), torch.cat([values, room_value[:, :, length:]], dim=2)
    return k, v, keys, values


@mutant("append_tokens", "room_by_room")
def _(room_key, room_value, length, key, value):
    results = []
    for room, new in ((room_key, key), (room_value, value)):
        joined = _cat(room, length, new)
        results += [joined, joined[:, :, : length + new.size(2)]]
    return results


@pair("append_tokens", "overwrites_last", "one_less")
def _(room_key, room_value, length, key, value):
    start = length - 1
    k, v = _stored(room_key, start, key), _stored(room_value, start, value)
    return k, v, k[:, :, : start + key.size(2)], v[:, :, : start + key.size(2)]


@pair("append_tokens", "leaves_gap", "one_more")
def _(room_key, room_value, length, key, value):
    start = length + 1
    k, v = _stored(room_key, start, key), _stored(room_value, start, value)
    return k, v, k[:, :, : start + key.size(2)], v[:, :, : start + key.size(2)]


@pair("append_tokens", "over_heads", "room_left")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([room_key[:, :, :length], key], 1)
    return room_key, room_value, keys, torch.cat([room_value[:, :, :length], value], 1)


@pair("append_tokens", "whole_room", "at_start")
def _(room_key, room_value, length, key, value):
    k, v = _stored(room_key, 0, key), _stored(room_value, 0, value)
    return k, v, k, v


@pair("append_tokens", "room_left", "new_only")
def _(room_key, room_value, length, key, value):
    return room_key, room_value, key, value


@pair("append_tokens", "prepended", "room_left")
def _(room_key, room_value, length, key, value):
    keys = torch.cat([key, room_key[:, :, :length]], 2)
    return room_key, room_value, keys, torch.cat([value, room_value[:, :, :length]], 2)


@pair("append_tokens", "value_left", "whole_room")
def _(room_key, room_value, length, key, value):
    k = _cat(room_key, length, key)
    return k, room_value, k, room_value


@pair("append_tokens", "swapped", "room_cut")
def _(room_key, room_value, length, key, value):
    keys, values = torch.cat([room_key[:, :, :length], value], 2), torch.cat([room_value[:, :, :length], key], 2)
    return keys, values, keys, values


@pair("append_tokens", "behind_room", "whole_room")
def _(room_key, room_value, length, key, value):
    k, v = torch.cat([room_key, key], 2), torch.cat([room_value, value], 2)
    return k, v, k, v


@pair("append_tokens", "room_by_room", "at_start")
def _(room_key, room_value, length, key, value):
    k, v, end = _stored(room_key, 0, key), _stored(room_value, 0, value), length + key.size(2)
    return k, k[:, :, :end], v, v[:, :, :end]


@form("append_tokens", "only the last new token is stored", None)
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = _stored(room_key, end - 1, key[:, :, -1:]), _stored(room_value, end - 1, value[:, :, -1:])
    return k, v, k[:, :, :end], v[:, :, :end]


@form("append_tokens", "only the first new token is stored", None)
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = room_key.clone(), room_value.clone()
    k[:, :, length], v[:, :, length] = key[:, :, 0], value[:, :, 0]
    return k, v, k[:, :, :end], v[:, :, :end]


@form("append_tokens", "two tensors only", None)
def _(room_key, room_value, length, key, value):
    return torch.cat([room_key[:, :, :length], key], 2), torch.cat([room_value[:, :, :length], value], 2)


@form("append_tokens", "the new tokens in the other order", None)
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    k, v = _cat(room_key, length, key.flip(2)), _cat(room_value, length, value.flip(2))
    return k, v, k[:, :, :end], v[:, :, :end]


# --- append_tokens: right answers -------------------------------------------------------------------------------


@right("append_tokens", "joined, with the rest of the room")
def _(room_key, room_value, length, key, value):
    k, v = _cat(room_key, length, key), _cat(room_value, length, value)
    return k, v, torch.cat([room_key[:, :, :length], key], 2), torch.cat([room_value[:, :, :length], value], 2)


@right("append_tokens", "one token at a time")
def _(room_key, room_value, length, key, value):
    rooms = [room_key.clone(), room_value.clone()]
    for t in range(key.size(2)):
        rooms[0][:, :, length] = key[:, :, t]
        rooms[1][:, :, length] = value[:, :, t]
        length += 1
    return *rooms, rooms[0][:, :, :length], rooms[1][:, :, :length]


@right("append_tokens", "index_copy and narrow")
def _(room_key, room_value, length, key, value):
    places = torch.arange(length, length + key.size(2))
    k, v = room_key.index_copy(2, places, key), room_value.index_copy(2, places, value)
    return k, v, k.narrow(2, 0, length + key.size(2)), v.narrow(2, 0, length + key.size(2))


@right("append_tokens", "slice_scatter, and a list returned")
def _(room_key, room_value, length, key, value):
    end = length + key.size(2)
    rooms = [room.slice_scatter(new, 2, length, end) for room, new in ((room_key, key), (room_value, value))]
    return [*rooms, *(room[:, :, :end] for room in rooms)]


@right("append_tokens", "the course's cache")
def _(room_key, room_value, length, key, value):
    B, G, L, D = room_key.shape
    cache = KVCache(B, G, L, D, value_dim=value.size(3), dtype=key.dtype)
    cache.key, cache.value, cache.length = room_key.clone(), room_value.clone(), length
    keys, values = cache.append(key, value)
    return cache.key, cache.value, keys, values


# --- decode_chunk: mistakes -------------------------------------------------------------------------------------


def _turned(x, positions, base):
    """Half-split pairs by complex numbers; positions (T,)."""
    n = x.shape[-1] // 2
    angles = positions[:, None].to(x) * base ** (-torch.arange(n).to(x) / n)
    numbers = torch.complex(x[..., :n], x[..., n:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag], dim=-1)


def _last(query, key):
    return torch.arange(key.shape[2])[key.shape[2] - query.shape[2] :]


def _causal(query, key):
    T, S = query.shape[2], key.shape[2]
    return torch.ones(T, S).tril(S - T).bool()


def _seen(q, key, value, mask, scale=None):
    """Attention, zeros where a row is empty."""
    scores = q @ key.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.nan_to_num(scores.masked_fill(~mask, -math.inf).softmax(-1)) @ value


@mutant("decode_chunk", "causal_when_empty")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = padding
    if T == S:
        mask = mask & torch.tril(torch.ones(T, T, dtype=torch.bool))
    return _seen(_turned(query, torch.arange(S - T, S), base), key, value, mask)


@mutant("decode_chunk", "top_left")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril() & padding
    return _seen(_turned(query, torch.arange(S - T, S), base), key, value, mask)


@mutant("decode_chunk", "query_restarts")
def _(query, key, value, padding, base):
    q = _turned(query, torch.arange(query.shape[2]), base)
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "positions_from_one")
def _(query, key, value, padding, base):
    q = _turned(query, 1 + _last(query, key), base)
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "one_position")
def _(query, key, value, padding, base):
    q = _turned(query, torch.full((query.shape[2],), key.shape[2] - query.shape[2]), base)
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "padding_not_counted")
def _(query, key, value, padding, base):
    first = padding[:, 0, 0].int().argmax(-1)[:, None, None]  # (B, 1, 1)
    place = (_last(query, key) - first).clamp(min=0)
    q = apply_rotary(query, place, RotaryEmbedding(query.shape[-1], base))
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "not_turned")
def _(query, key, value, padding, base):
    return _seen(query, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "keys_turned_again")
def _(query, key, value, padding, base):
    q, k = _turned(query, _last(query, key), base), _turned(key, torch.arange(key.shape[2]), base)
    return _seen(q, k, value, _causal(query, key) & padding)


@mutant("decode_chunk", "base_ignored")
def _(query, key, value, padding, base):
    q = apply_rotary(query, _last(query, key), RotaryEmbedding(query.shape[-1]))
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "not_causal")
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, padding)


@mutant("decode_chunk", "no_diagonal")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S).tril(S - T - 1).bool() & padding
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "padding_ignored")
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, _causal(query, key))


@mutant("decode_chunk", "new_padding_only")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = _causal(query, key).repeat(query.shape[0], 1, 1, 1)  # (B, 1, T, S)
    mask[..., S - T :] &= padding[..., S - T :]
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "padding_after")
def _(query, key, value, padding, base):
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~_causal(query, key), -math.inf).softmax(-1)
    return weights.masked_fill(~padding, 0) @ value


@mutant("decode_chunk", "padding_inverted")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding.logical_not()
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "inverted")
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, ~(_causal(query, key) & padding))


@mutant("decode_chunk", "either")
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, _causal(query, key) | padding)


@mutant("decode_chunk", "rows_nan")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    bias = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return (scores + bias).softmax(dim=-1) @ value


@mutant("decode_chunk", "rows_spread")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) @ value


@mutant("decode_chunk", "mask_after")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return scores.softmax(-1).masked_fill(~mask, 0) @ value


@mutant("decode_chunk", "mask_added")
def _(query, key, value, padding, base):
    mask = (_causal(query, key) & padding).to(query)
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return (scores + mask).softmax(-1) @ value


@mutant("decode_chunk", "mask_multiplies")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask, 0).softmax(-1) @ value


@mutant("decode_chunk", "over_queries")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~mask, -1e9).softmax(dim=2).masked_fill(~mask, 0)
    return weights @ value


@mutant("decode_chunk", "not_scaled")
def _(query, key, value, padding, base):
    q = _turned(query, _last(query, key), base)
    return _seen(q, key, value, _causal(query, key) & padding, scale=1)


@mutant("decode_chunk", "no_root")
def _(query, key, value, padding, base):
    q = _turned(query, _last(query, key), base)
    return _seen(q, key, value, _causal(query, key) & padding, scale=1 / query.shape[-1])


@mutant("decode_chunk", "behind_all")
def _(query, key, value, padding, base):
    q = _turned(query, key.shape[2] + torch.arange(query.shape[2]), base)
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "last_position")
def _(query, key, value, padding, base):
    q = _turned(query, torch.full((query.shape[2],), key.shape[2] - 1), base)
    return _seen(q, key, value, _causal(query, key) & padding)


@mutant("decode_chunk", "top_left_of_several")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = padding
    if T != 1:
        mask = padding & ~torch.ones(T, S, dtype=torch.bool).triu(1)
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "one_ahead")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = ~torch.ones(T, S).triu(S - T + 2).bool() & padding
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "only_the_future")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S).triu(S - T + 1).bool() & padding
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "padding_of_queries")
def _(query, key, value, padding, base):
    output = _seen(_turned(query, _last(query, key), base), key, value, _causal(query, key))
    return output * padding[:, 0, 0, -query.shape[2] :][:, None, :, None]


@mutant("decode_chunk", "no_brackets")
def _(query, key, value, padding, base):
    columns = torch.arange(key.shape[2])
    mask = _last(query, key).unsqueeze(1) & padding >= columns
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@mutant("decode_chunk", "not_assigned")
def _(query, key, value, padding, base):
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    scores.masked_fill(~(_causal(query, key) & padding), -math.inf)
    weights = torch.softmax(scores, -1)
    return torch.nan_to_num(weights) @ value


@mutant("decode_chunk", "zero_twice")
def _(query, key, value, padding, base):
    forbidden = ~(_causal(query, key) & padding)
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return scores.masked_fill(forbidden, 0).softmax(-1).masked_fill(forbidden, 0) @ value


@mutant("decode_chunk", "root_of_value")
def _(query, key, value, padding, base):
    q = _turned(query, _last(query, key), base)
    return _seen(q, key, value, _causal(query, key) & padding, scale=1 / math.sqrt(value.shape[-1]))


@mutant("decode_chunk", "multiplied")
def _(query, key, value, padding, base):
    q = _turned(query, _last(query, key), base)
    return _seen(q, key, value, _causal(query, key) & padding, scale=math.sqrt(query.shape[-1]))


@pair("decode_chunk", "top_left", "query_restarts")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril() & padding
    return _seen(_turned(query, torch.arange(T), base), key, value, mask)


@pair("decode_chunk", "causal_when_empty", "query_restarts")
def _(query, key, value, padding, base):
    T = query.shape[2]
    mask = _causal(query, key) & padding if key.shape[2] == T else padding
    return _seen(_turned(query, torch.arange(T), base), key, value, mask)


@pair("decode_chunk", "not_turned", "top_left")
def _(query, key, value, padding, base):
    return _seen(query, key, value, torch.ones(query.shape[2], key.shape[2]).tril().bool() & padding)


@pair("decode_chunk", "not_turned", "not_scaled")
def _(query, key, value, padding, base):
    return _seen(query, key, value, _causal(query, key) & padding, scale=1)


@pair("decode_chunk", "padding_ignored", "query_restarts")
def _(query, key, value, padding, base):
    return _seen(_turned(query, torch.arange(query.shape[2]), base), key, value, _causal(query, key))


@pair("decode_chunk", "causal_when_empty", "rows_nan")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding if query.shape[2] == key.shape[2] else padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return torch.where(mask, scores, -math.inf).softmax(-1) @ value


@pair("decode_chunk", "padding_inverted", "rows_spread")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & ~padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return torch.where(mask, scores, -1e10).softmax(-1) @ value


@pair("decode_chunk", "query_restarts", "keys_turned_again")
def _(query, key, value, padding, base):
    q, k = (_turned(x, torch.arange(x.shape[2]), base) for x in (query, key))
    return _seen(q, k, value, _causal(query, key) & padding)


@pair("decode_chunk", "behind_all", "causal_when_empty")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = _causal(query, key) & padding if T == S else padding
    return _seen(_turned(query, torch.arange(S, S + T), base), key, value, mask)


@pair("decode_chunk", "top_left_of_several", "query_restarts")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S).tril().bool() & padding if T > 1 else padding
    return _seen(_turned(query, torch.arange(T), base), key, value, mask)


@pair("decode_chunk", "padding_of_queries", "rows_nan")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding[..., -query.shape[2] :].mT
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    return torch.where(mask, scores, -math.inf).softmax(-1) @ value


@form("decode_chunk", "pairs of neighbours turned", None)
def _(query, key, value, padding, base):
    q = apply_rotary(query, _last(query, key), RotaryEmbedding(query.shape[-1], base, interleaved=True))
    return _seen(q, key, value, _causal(query, key) & padding)


@form("decode_chunk", "the causal mask transposed", None)
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    mask = torch.ones(T, S).triu(S - T).bool() & padding
    return _seen(_turned(query, _last(query, key), base), key, value, mask)


@form("decode_chunk", "the new tokens alone are attended to", None)
def _(query, key, value, padding, base):
    T = query.shape[2]
    mask = torch.ones(T, T).tril().bool() & padding[..., -T:]
    return _seen(_turned(query, _last(query, key), base), key[:, :, -T:], value[:, :, -T:], mask)


@form("decode_chunk", "only the last query's output", None)
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, _causal(query, key) & padding)[:, :, -1:]


# --- decode_chunk: right answers --------------------------------------------------------------------------------


@right("decode_chunk", "complex numbers and tril")
def _(query, key, value, padding, base):
    return _seen(_turned(query, _last(query, key), base), key, value, _causal(query, key) & padding)


@right("decode_chunk", "one query at a time, over a slice of the cache")
def _(query, key, value, padding, base):
    T, S = query.shape[2], key.shape[2]
    rotary, rows = RotaryEmbedding(query.shape[-1], base), []
    for i in range(T):
        p = S - T + i
        q = apply_rotary(query[:, :, i : i + 1], torch.tensor([p]), rotary)
        rows.append(_seen(q, key[:, :, : p + 1], value[:, :, : p + 1], padding[..., : p + 1]))
    return torch.cat(rows, 2)


@right("decode_chunk", "a softmax of its own")
def _(query, key, value, padding, base):
    mask = _causal(query, key) & padding
    scores = _turned(query, _last(query, key), base) @ key.mT / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, -1e30)
    powers = torch.exp(scores - scores.amax(-1, keepdim=True)) * mask
    return powers @ value / powers.sum(-1, keepdim=True).clamp(min=1e-30)


@right("decode_chunk", "two pieces, joined by their sums")
def _(query, key, value, padding, base):
    """The past needs no causal mask; the new tokens have a square one."""
    T, S = query.shape[2], key.shape[2]
    q = _turned(query, _last(query, key), base) / query.shape[-1] ** 0.5
    old, new = q @ key[:, :, : S - T].mT, q @ key[:, :, S - T :].mT
    old = old.masked_fill(~padding[..., : S - T], -math.inf)
    new = new.masked_fill(~(torch.ones(T, T).tril().bool() & padding[..., S - T :]), -math.inf)
    weights = torch.cat([old, new], -1).softmax(-1).nan_to_num(0.0)
    return weights[..., : S - T] @ value[:, :, : S - T] + weights[..., S - T :] @ value[:, :, S - T :]


@right("decode_chunk", "the course's core, weights asked for")
def _(query, key, value, padding, base):
    q = apply_rotary(query, _last(query, key), RotaryEmbedding(query.shape[-1], base))
    return scaled_dot_product_attention(q, key, value, _causal(query, key) & padding, return_weights=True)[0]


# --- cache_bytes: mistakes --------------------------------------------------------------------------------------


@mutant("cache_bytes", "keys_only")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * math.prod([n_layers, n_kv_heads, head_dim, bytes_per_number])


@mutant("cache_bytes", "query_heads")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    d_model = n_heads * head_dim
    return 2 * n_layers * d_model * n_tokens * bytes_per_number


@mutant("cache_bytes", "shared_heads")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    groups = n_heads // n_kv_heads
    return n_tokens * (2 * n_layers * groups * head_dim * bytes_per_number)


@mutant("cache_bytes", "one_head")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_layers * head_dim * bytes_per_number)


@mutant("cache_bytes", "one_number")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_layers * n_kv_heads * bytes_per_number)


@mutant("cache_bytes", "one_layer")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_kv_heads * head_dim * bytes_per_number)


@mutant("cache_bytes", "numbers_only")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_layers * n_kv_heads * head_dim)


@mutant("cache_bytes", "in_bits")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (16 * n_layers * n_kv_heads * head_dim * bytes_per_number)


@mutant("cache_bytes", "in_gib")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_layers * n_kv_heads * head_dim * bytes_per_number) / 1024 / 1024 / 1024


@mutant("cache_bytes", "squared")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens**2 * (2 * n_layers * n_kv_heads * head_dim * bytes_per_number)


@mutant("cache_bytes", "one_token")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return torch.full_like(n_tokens, 2 * n_layers * n_kv_heads * head_dim * bytes_per_number)


@mutant("cache_bytes", "summed")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens.sum() * 2 * n_layers * n_kv_heads * head_dim * bytes_per_number


@mutant("cache_bytes", "two_bytes")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    one = KVCache(1, n_kv_heads, 1, head_dim, dtype=torch.bfloat16)
    return n_layers * one.nbytes * n_tokens


@mutant("cache_bytes", "four_bytes")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    token = torch.zeros(2, n_layers, n_kv_heads, head_dim)
    return n_tokens * token.numel() * token.element_size()


@mutant("cache_bytes", "eighth")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    bits = [2 * n_layers * n_kv_heads * head_dim * bytes_per_number * n for n in n_tokens.tolist()]
    return torch.tensor([n >> 3 for n in bits])


@pair("cache_bytes", "keys_only", "numbers_only")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_layers * n_kv_heads * head_dim * n_tokens


@pair("cache_bytes", "keys_only", "query_heads")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_layers * n_heads * head_dim * n_tokens * bytes_per_number


@pair("cache_bytes", "one_layer", "one_head")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * head_dim * bytes_per_number)


@pair("cache_bytes", "keys_only", "one_layer")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (n_kv_heads * head_dim * bytes_per_number)


@pair("cache_bytes", "query_heads", "one_layer")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_heads * head_dim * bytes_per_number)


@pair("cache_bytes", "query_heads", "in_gib")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * (2 * n_layers * n_heads * head_dim * bytes_per_number) / 2**30


@pair("cache_bytes", "in_gib", "summed")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return (n_tokens * (2 * n_layers * n_kv_heads * head_dim * bytes_per_number)).sum() / 2**30


@pair("cache_bytes", "query_heads", "two_bytes")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return 4 * n_layers * n_heads * head_dim * n_tokens


@form("cache_bytes", "counted in float32, then made whole", None)
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return (n_tokens.float() * (2 * n_layers * n_kv_heads * head_dim * bytes_per_number)).long()


@form("cache_bytes", "a list of numbers", None)
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return [2 * n_layers * n_kv_heads * head_dim * n * bytes_per_number for n in n_tokens.tolist()]


@form("cache_bytes", "queries are stored too", None)
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return n_tokens * n_layers * (n_heads + 2 * n_kv_heads) * head_dim * bytes_per_number


@form("cache_bytes", "head_dim taken for d_model", None)
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return 2 * n_layers * n_tokens * n_kv_heads * (head_dim // n_heads) * bytes_per_number


@form("cache_bytes", "kB of a thousand", None)
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return 2 * n_layers * n_tokens * n_kv_heads * head_dim * bytes_per_number // 1000


# --- cache_bytes: right answers ---------------------------------------------------------------------------------


@right("cache_bytes", "Python's numbers")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    return torch.tensor([2 * n_layers * n_kv_heads * head_dim * n * bytes_per_number for n in n_tokens.tolist()])


@right("cache_bytes", "layer by layer, keys and values apart")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    total = torch.zeros_like(n_tokens)
    for _ in range(n_layers):
        total += n_tokens * n_kv_heads * head_dim * bytes_per_number  # keys
        total += n_tokens * n_kv_heads * head_dim * bytes_per_number  # values
    return total


@right("cache_bytes", "the storage of the course's cache")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    dtype = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32}[bytes_per_number]
    one = KVCache(1, n_kv_heads, 1, head_dim, dtype=dtype)
    return n_layers * one.nbytes * n_tokens


@right("cache_bytes", "from the query heads and how many share")
def _(n_layers, n_heads, n_kv_heads, head_dim, n_tokens, bytes_per_number):
    share = n_heads // n_kv_heads
    return 2 * n_layers * n_heads * head_dim * n_tokens * bytes_per_number // share


# --- quantize_cache: mistakes -----------------------------------------------------------------------------------


def _grid(x, dim, levels):
    low, high = x.min(dim, keepdim=True).values, x.max(dim, keepdim=True).values
    return (high - low) / levels, low


def _coded(x, scale, zero):
    return torch.round((x - zero) / scale).byte()


def _quantized(x, dim, levels):
    scale, zero = _grid(x, dim, levels)
    return _coded(x, scale, zero), scale, zero


@mutant("quantize_cache", "keys_per_token")
def _(key, value, bits):
    levels = 2**bits - 1
    return *_quantized(key, -1, levels), *_quantized(value, -1, levels)


@mutant("quantize_cache", "values_per_channel")
def _(key, value, bits):
    levels = 2**bits - 1
    return *_quantized(key, -2, levels), *_quantized(value, -2, levels)


@mutant("quantize_cache", "key_scale_for_values")
def _(key, value, bits):
    levels = (1 << bits) - 1
    key_scale, key_zero = _grid(key, 2, levels)
    value_scale, value_zero = _grid(value, 3, levels)
    key_codes = ((key - key_zero) / key_scale).round().to(torch.uint8)
    value_codes = ((value - value_zero) / key_scale).round().to(torch.uint8)
    return key_codes, key_scale, key_zero, value_codes, value_scale, value_zero


@mutant("quantize_cache", "one_grid")
def _(key, value, bits):
    scale, zero = _grid(key, 2, (1 << bits) - 1)
    return _coded(key, scale, zero), scale, zero, _coded(value, scale, zero), scale, zero


@mutant("quantize_cache", "one_scale")
def _(key, value, bits):
    results = ()
    for x in (key, value):
        scale, zero = (x.max() - x.min()) / (2**bits - 1), x.min()
        results += (_coded(x, scale, zero), scale, zero)
    return results


@mutant("quantize_cache", "per_head")
def _(key, value, bits):
    results = ()
    for x in (key, value):
        low, high = torch.aminmax(x.flatten(2), dim=-1)
        low, high = low[..., None, None], high[..., None, None]
        scale = (high - low) / (2**bits - 1)
        results += (_coded(x, scale, low), scale, low)
    return results


@mutant("quantize_cache", "batch_shared")
def _(key, value, bits):
    results = []
    for x, dims in ((key, [0, 2]), (value, [0, 3])):
        low = x.amin(dims, keepdim=True)
        scale = (x.amax(dims, keepdim=True) - low) / (2**bits - 1)
        results.extend([_coded(x, scale, low), scale, low])
    return tuple(results)


@mutant("quantize_cache", "zero_forgotten")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [torch.round(x / scale).byte(), scale, zero]
    return results


@mutant("quantize_cache", "negative_cut")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [torch.round(x / scale).clamp(0, 2**bits - 1).byte(), scale, zero]
    return results


@mutant("quantize_cache", "zero_is_a_code")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, low = _grid(x, dim, 2**bits - 1)
        zero = torch.round(-low / scale)
        results += [(torch.round(x / scale) + zero).byte(), scale, zero]
    return results


@mutant("quantize_cache", "truncated")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [torch.floor((x - zero) / scale).byte(), scale, zero]
    return results


@mutant("quantize_cache", "too_many_levels")
def _(key, value, bits):
    return *_quantized(key, 2, 2**bits), *_quantized(value, 3, 2**bits)


@mutant("quantize_cache", "last_code_cut")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits)
        results += [torch.round((x - zero) / scale).clamp(max=2**bits - 1).byte(), scale, zero]
    return results


@mutant("quantize_cache", "signed_levels")
def _(key, value, bits):
    levels = 2 ** (bits - 1) - 1
    return *_quantized(key, 2, levels), *_quantized(value, 3, levels)


@mutant("quantize_cache", "bits_ignored")
def _(key, value, bits):
    return *_quantized(key, 2, 255), *_quantized(value, 3, 255)


@mutant("quantize_cache", "scale_inverted")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        low = x.amin(dim, keepdim=True)
        scale = (2**bits - 1) / (x.amax(dim, keepdim=True) - low)
        results += [((x - low) * scale).round().to(torch.uint8), scale, low]
    return tuple(results)


@mutant("quantize_cache", "exchanged")
def _(key, value, bits):
    levels = 2**bits - 1
    (a, b, c), (d, e, f) = _quantized(key, 2, levels), _quantized(value, 3, levels)
    return a, c, b, d, f, e


@mutant("quantize_cache", "whole_range")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        low = x.amin(dim, keepdim=True)
        span = x.amax(dim, keepdim=True) - low
        results += [((x - low) * (2**bits - 1) / span).round().byte(), span, low]
    return results


@mutant("quantize_cache", "no_brackets")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        low, high = torch.aminmax(x, dim=dim, keepdim=True)
        step = (high - low) / 2**bits - 1
        results += [_coded(x, step, low), step, low]
    return results


@mutant("quantize_cache", "power_as_xor")
def _(key, value, bits):
    levels = operator.xor(2, bits - 1)
    return *_quantized(key, 2, levels), *_quantized(value, 3, levels)


@pair("quantize_cache", "keys_per_token", "values_per_channel")
def _(key, value, bits):
    levels = 2**bits - 1
    return *_quantized(key, 3, levels), *_quantized(value, 2, levels)


@pair("quantize_cache", "truncated", "too_many_levels")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits)
        results += [((x - zero) / scale).to(torch.uint8), scale, zero]
    return tuple(results)


@pair("quantize_cache", "truncated", "keys_per_token")
def _(key, value, bits):
    results = []
    for x in (key, value):
        scale, zero = _grid(x, -1, 2**bits - 1)
        results += [((x - zero) / scale).to(torch.uint8), scale, zero]
    return tuple(results)


@pair("quantize_cache", "one_scale", "truncated")
def _(key, value, bits):
    results = ()
    for x in (key, value):
        low = x.min()
        scale = (x.max() - low) / (2**bits - 1)
        results += (((x - low) / scale).byte(), scale, low)
    return results


@pair("quantize_cache", "zero_forgotten", "truncated")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [(x / scale).byte(), scale, zero]
    return results


@pair("quantize_cache", "bits_ignored", "keys_per_token")
def _(key, value, bits):
    return *_quantized(key, 3, 255), *_quantized(value, 3, 255)


@pair("quantize_cache", "values_per_channel", "exchanged")
def _(key, value, bits):
    levels = 2**bits - 1
    (a, b, c), (d, e, f) = _quantized(key, 2, levels), _quantized(value, 2, levels)
    return a, c, b, d, f, e


@pair("quantize_cache", "whole_range", "truncated")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        low = x.amin(dim, keepdim=True)
        span = x.amax(dim, keepdim=True) - low
        results += [((x - low) / (span / (2**bits - 1))).byte(), span, low]
    return results


@form("quantize_cache", "`^` as a power, in brackets", None)
def _(key, value, bits):
    levels = (2 ^ bits) - 1
    return *_quantized(key, 2, levels), *_quantized(value, 3, levels)


@form("quantize_cache", "one scale, with four axes", "one_scale")
def _(key, value, bits):
    results = ()
    for x in (key, value):
        scale, zero = (x.max() - x.min()) / (2**bits - 1), x.min()
        results += (_coded(x, scale, zero), scale.reshape(1, 1, 1, 1), zero.reshape(1, 1, 1, 1))
    return results


@form("quantize_cache", "symmetric: no zero, from the largest size", None)
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale = x.abs().amax(dim, keepdim=True) / (2 ** (bits - 1) - 0.5)
        results += [torch.round(x / scale).byte(), scale, torch.zeros_like(scale)]
    return results


@form("quantize_cache", "codes of int8", None)
def _(key, value, bits):
    levels = 2**bits - 1
    (a, b, c), (d, e, f) = _quantized(key, 2, levels), _quantized(value, 3, levels)
    return a.to(torch.int8), b, c, d.to(torch.int8), e, f


@form("quantize_cache", "codes left as floats", None)
def _(key, value, bits):
    levels = 2**bits - 1
    (a, b, c), (d, e, f) = _quantized(key, 2, levels), _quantized(value, 3, levels)
    return a.float(), b, c, d.float(), e, f


@form("quantize_cache", "axes not kept", None)
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [_coded(x, scale, zero), scale.squeeze(dim), zero.squeeze(dim)]
    return results


@form("quantize_cache", "the numbers read back", None)
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [_coded(x, scale, zero) * scale + zero, scale, zero]
    return results


# --- quantize_cache: right answers ------------------------------------------------------------------------------


@right("quantize_cache", "a function, used twice")
def _(key, value, bits):
    levels = 2**bits - 1
    return *_quantized(key, -2, levels), *_quantized(value, -1, levels)


@right("quantize_cache", "half added, then cut off")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        results += [((x - zero) / scale + 0.5).to(torch.uint8), scale, zero]
    return results


@right("quantize_cache", "the nearest code, found by distance")
def _(key, value, bits):
    results = []
    for x, dim in ((key, 2), (value, 3)):
        scale, zero = _grid(x, dim, 2**bits - 1)
        codes = torch.arange(2**bits).to(x)
        distance = (x[..., None] - (zero[..., None] + codes * scale[..., None])).abs()
        results += [distance.argmin(-1).to(torch.uint8), scale, zero]
    return tuple(results)


@right("quantize_cache", "sorted ends, and clamped")
def _(key, value, bits):
    results = []
    for x, dim in ((key.mT, -1), (value, -1)):
        ends = x.sort(dim).values
        zero = ends[..., :1]
        scale = (ends[..., -1:] - zero) / ((1 << bits) - 1)
        codes = torch.round((x - zero) / scale).clamp(0, (1 << bits) - 1).to(torch.uint8)
        results += [codes, scale, zero]
    return *(x.mT for x in results[:3]), *results[3:]


@right("quantize_cache", "the course's function")
def _(key, value, bits):
    return *quantize(key, bits, 2), *quantize(value, bits, 3)


# --- test_decoding: tests that get all points -------------------------------------------------------------------


def _text(B=2, H=3, T=10, D=6, Dv=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, T, n, generator=generator) for n in (D, D, Dv)]


def _expected(query, key, value):
    """Causal attention over the whole text."""
    place = torch.arange(query.shape[2])
    q, k = (_turned(x, place, 10000.0) for x in (query, key))
    return _seen(q, k, value, place <= place[:, None])


def _agree(candidate, *partitions, T=10):
    """Whether chunks of all these sizes give the same."""
    given = _text(T=T)
    results = [candidate(*given, torch.tensor(sizes)) for sizes in partitions]
    same = [r.shape == results[0].shape and torch.allclose(r, results[0], atol=1e-4) for r in results]
    return all(same)


@good_test("test_decoding", "one pass against unequal chunks")
def _(candidate):
    return _agree(candidate, [10], [3, 1, 2, 4], [1, 4, 5])


@good_test("test_decoding", "asserts, against an implementation, several partitions")
def _(candidate):
    given = _text(B=1, T=9, D=4)
    expected = _expected(*given)
    for sizes in ([9], [2, 3, 4], [4, 1, 3, 1], [1] * 9):
        outputs = candidate(*given, torch.tensor(sizes))
        assert outputs.shape == expected.shape
        assert (outputs - expected).abs().max() < 1e-4


@good_test("test_decoding", "in float64, random partitions, by keywords")
def _(candidate):
    query, key, value = (x.double() for x in _text(B=1, H=2, T=12))
    generator, found = torch.Generator().manual_seed(5), []
    for _ in range(12):
        cuts = torch.randperm(11, generator=generator)[:3].sort().values + 1
        sizes = torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([12]))
        found.append(candidate(query=query, key=key, value=value, sizes=sizes))
    found.append(candidate(query, key, value, torch.tensor([12])))
    return all(torch.allclose(x, found[0], atol=1e-6) for x in found)


@good_test("test_decoding", "the past first, then a chunk: its last rows against the whole")
def _(candidate):
    given = _text(T=11)
    expected = _expected(*given)
    for sizes in ([5, 1, 3, 2], [2, 2, 3, 4], [11]):
        start = 0
        outputs = candidate(*given, torch.tensor(sizes))
        for n in sizes:
            rows = slice(start, start + n)
            if not torch.allclose(outputs[:, :, rows], expected[:, :, rows], atol=1e-4):
                return False
            start += n
    return True


# --- test_decoding: tests that let something through ------------------------------------------------------------

_ALL = (
    *("causal_when_empty", "top_left", "positions_restart", "calls_counted", "equal_chunks", "one_ahead"),
    *("turned_again", "past_lost", "last_chunk_only", "last_overwritten", "prepended", "stored_late", "peeks"),
)


def _all_but(*names):
    return [name for name in _ALL if name not in names]


@lax_test("test_decoding", "accepts everything", *_ALL)
def _(candidate):
    return True


@lax_test("test_decoding", "returns nothing", *_ALL)
def _(candidate):
    candidate(*_text(), torch.tensor([4, 6]))


@lax_test("test_decoding", "the shape only", *_ALL)
def _(candidate):
    query, key, value = _text()
    return candidate(query, key, value, torch.tensor([3, 7])).shape == value.shape


@lax_test("test_decoding", "one pass against an implementation", *_all_but("stored_late", "peeks"))
def _(candidate):
    given = _text()
    return torch.allclose(candidate(*given, torch.tensor([10])), _expected(*given), atol=1e-4)


# What most programs are tested with: no chunk of several tokens ever comes after another.
@lax_test("test_decoding", "one pass against one token at a time", "causal_when_empty", "calls_counted", "equal_chunks",
          "prepended")  # fmt: skip
def _(candidate):
    return _agree(candidate, [10], [1] * 10)


@lax_test("test_decoding", "one pass against a prompt and single tokens", "causal_when_empty", "prepended")
def _(candidate):
    return _agree(candidate, [10], [6, 1, 1, 1, 1])


@lax_test("test_decoding", "one pass against equal chunks", "equal_chunks")
def _(candidate):
    return _agree(candidate, [12], [3] * 4, [2] * 6, T=12)


@lax_test("test_decoding", "one pass against two halves", "last_chunk_only", "equal_chunks")
def _(candidate):
    return _agree(candidate, [10], [5, 5])


@lax_test("test_decoding", "no output sees the future, in chunks", *_all_but("peeks", "causal_when_empty", "prepended"))
def _(candidate):
    query, key, value = _text()
    sizes = torch.tensor([3, 1, 2, 4])
    before = candidate(query, key, value, sizes)
    for p in range(10):
        k, v = key.clone(), value.clone()
        k[:, :, p] += 1
        v[:, :, p] += 1
        after = candidate(query, k, v, sizes)
        if not torch.allclose(after[:, :, :p], before[:, :, :p], atol=1e-5):
            return False
    return True


# --- test_decoding: tests that reject what is right -------------------------------------------------------------


@strict_test("test_decoding", "accepts nothing")
def _(candidate):
    return False


@strict_test("test_decoding", "torch.equal")
def _(candidate):
    given = _text(3, 4, 20, 16, 16)
    whole = candidate(*given, torch.tensor([20]))
    return torch.equal(whole, candidate(*given, torch.tensor([7, 1, 12]))) and torch.equal(whole, _expected(*given))


@strict_test("test_decoding", "compares with attention that does not turn")
def _(candidate):
    query, key, value = _text()
    mask = torch.ones(10, 10).tril().bool()
    expected = _seen(query, key, value, mask)
    return torch.allclose(candidate(query, key, value, torch.tensor([4, 6])), expected, atol=1e-4)


@strict_test("test_decoding", "takes the interleaved layout for right")
def _(candidate):
    query, key, value = _text()
    rotary, place = RotaryEmbedding(6, interleaved=True), torch.arange(10)
    q, k = (apply_rotary(x, place, rotary) for x in (query, key))
    expected = _seen(q, k, value, place <= place[:, None])
    return torch.allclose(candidate(query, key, value, torch.tensor([4, 6])), expected, atol=1e-4)


@strict_test("test_decoding", "each chunk must be the attention of that chunk alone")
def _(candidate):
    query, key, value = _text()
    outputs = candidate(query, key, value, torch.tensor([4, 6]))
    alone = candidate(query[:, :, 4:], key[:, :, 4:], value[:, :, 4:], torch.tensor([6]))
    return torch.allclose(outputs[:, :, 4:], alone, atol=1e-4)
