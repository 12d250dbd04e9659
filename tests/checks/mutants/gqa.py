"""Chapter 13 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/gqa.py: the styles differ on purpose (loops over heads,
cat, indices, einsum, matmul), because the check must recognise the mistake and not the code.
"""

import math

import torch

from tests.checks.mutants import Answers

ANSWERS = Answers("gqa")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- repeat_kv: mistakes ----------------------------------------------------------------------------------------


@mutant("repeat_kv", "other_order")
def _(x, n_repeats):
    return x.repeat(1, n_repeats, 1, 1)


@mutant("repeat_kv", "over_tokens")
def _(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=2)


@mutant("repeat_kv", "tokens_mixed")
def _(x, n_repeats):
    B, G, S, D = x.shape
    return x[:, :, :, None, :].expand(B, G, S, n_repeats, D).reshape(B, G * n_repeats, S, D)


@mutant("repeat_kv", "over_batch")
def _(x, n_repeats):
    return x.repeat_interleave(n_repeats, 0)


@mutant("repeat_kv", "over_numbers")
def _(x, n_repeats):
    return torch.repeat_interleave(x, n_repeats, dim=-1)


@mutant("repeat_kv", "first_only")
def _(x, n_repeats):
    B, G, S, D = x.shape
    return x[:, 0, None].expand(B, G * n_repeats, S, D)


@mutant("repeat_kv", "first_copy_only")
def _(x, n_repeats):
    B, G, S, D = x.shape
    out = x.new_zeros(B, G * n_repeats, S, D)
    out[:, ::n_repeats] = x
    return out


@mutant("repeat_kv", "divided")
def _(x, n_repeats):
    return x.repeat_interleave(n_repeats, 1) / n_repeats


@mutant("repeat_kv", "n_is_total")
def _(x, n_repeats):
    return x.repeat_interleave(n_repeats // x.shape[1], 1)


@mutant("repeat_kv", "one_more")
def _(x, n_repeats):
    heads = []
    for g in range(x.shape[1]):
        heads += [x[:, g]] + [x[:, g]] * n_repeats
    return torch.stack(heads, 1)


@mutant("repeat_kv", "not_repeated")
def _(x, n_repeats):
    return x[:, :, None].flatten(1, 2)


@mutant("repeat_kv", "not_merged")
def _(x, n_repeats):
    return x.unsqueeze(2).repeat(1, 1, n_repeats, 1, 1)


@mutant("repeat_kv", "copies_in_tokens")
def _(x, n_repeats):
    return x[:, :, None].expand(-1, -1, n_repeats, -1, -1).flatten(2, 3)


@pair("repeat_kv", "other_order", "over_batch")
def _(x, n_repeats):
    return torch.cat([x] * n_repeats)


@pair("repeat_kv", "other_order", "over_numbers")
def _(x, n_repeats):
    return torch.cat([x] * n_repeats, -1)


@pair("repeat_kv", "other_order", "one_more")
def _(x, n_repeats):
    out = x
    for _ in range(n_repeats):
        out = torch.cat([out, x], 1)
    return out


@pair("repeat_kv", "other_order", "divided")
def _(x, n_repeats):
    return x.repeat(1, n_repeats, 1, 1) / n_repeats


@pair("repeat_kv", "other_order", "n_is_total")
def _(x, n_repeats):
    return x.repeat(1, n_repeats // x.shape[1], 1, 1)


@pair("repeat_kv", "other_order", "first_copy_only")
def _(x, n_repeats):
    B, G, S, D = x.shape
    out = torch.zeros(B, G * n_repeats, S, D)
    out[:, :G] = x
    return out


@form("repeat_kv", "the new axis before the heads", "other_order")
def _(x, n_repeats):
    B, G, S, D = x.shape
    return x[:, None].expand(B, n_repeats, G, S, D).reshape(B, G * n_repeats, S, D)


@form("repeat_kv", "doubled again and again", None)
def _(x, n_repeats):
    while n_repeats > 1:
        x, n_repeats = torch.cat([x, x], 1), n_repeats // 2
    return x


@form("repeat_kv", "the copies in an axis before the heads", None)
def _(x, n_repeats):
    return torch.stack([x] * n_repeats, 1)


# --- repeat_kv: right answers -----------------------------------------------------------------------------------


@right("repeat_kv", "repeat_interleave")
def _(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=1)


@right("repeat_kv", "an index")
def _(x, n_repeats):
    return x[:, torch.arange(x.shape[1] * n_repeats) // n_repeats]


@right("repeat_kv", "a loop")
def _(x, n_repeats):
    return torch.cat([x[:, h // n_repeats, None] for h in range(x.shape[1] * n_repeats)], dim=1)


@right("repeat_kv", "stack and flatten")
def _(x, n_repeats):
    return torch.stack([x] * n_repeats, dim=2).flatten(1, 2)


# --- group_queries: mistakes ------------------------------------------------------------------------------------


@mutant("group_queries", "other_order")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.reshape(B, H // n_kv_heads, n_kv_heads, T, D).transpose(1, 2).reshape(B, n_kv_heads, -1, D)


@mutant("group_queries", "token_major")
def _(query, n_kv_heads):
    sets = query.chunk(n_kv_heads, dim=1)
    return torch.stack([part.transpose(1, 2).flatten(1, 2) for part in sets], dim=1)


@mutant("group_queries", "tokens_cut")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.permute(0, 2, 1, 3).reshape(B, n_kv_heads, H // n_kv_heads * T, D)


@mutant("group_queries", "size_for_count")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.reshape(B, H // n_kv_heads, n_kv_heads * T, D)


@mutant("group_queries", "averaged")
def _(query, n_kv_heads):
    return torch.stack([part.mean(1) for part in query.chunk(n_kv_heads, 1)], 1)


@mutant("group_queries", "summed")
def _(query, n_kv_heads):
    B, _, T, D = query.shape
    return query.view(B, n_kv_heads, -1, T, D).sum(dim=2)


@mutant("group_queries", "first_only")
def _(query, n_kv_heads):
    return query[:, :: query.shape[1] // n_kv_heads]


@mutant("group_queries", "all_for_each")
def _(query, n_kv_heads):
    return torch.stack([query.flatten(1, 2)] * n_kv_heads, 1)


@mutant("group_queries", "side_by_side")
def _(query, n_kv_heads):
    sets = query.chunk(n_kv_heads, dim=1)
    return torch.stack([torch.cat(part.unbind(1), dim=-1) for part in sets], dim=1)


@mutant("group_queries", "in_batch")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.reshape(B * n_kv_heads, H // n_kv_heads * T, D)


@mutant("group_queries", "not_merged")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.view(B, n_kv_heads, H // n_kv_heads, T, D)


@pair("group_queries", "other_order", "token_major")
def _(query, n_kv_heads):
    sets = [query[:, g::n_kv_heads] for g in range(n_kv_heads)]
    return torch.stack([part.transpose(1, 2).flatten(1, 2) for part in sets], dim=1)


@pair("group_queries", "other_order", "averaged")
def _(query, n_kv_heads):
    B, _, T, D = query.shape
    return query.view(B, -1, n_kv_heads, T, D).mean(1)


@pair("group_queries", "other_order", "first_only")
def _(query, n_kv_heads):
    return query[:, :n_kv_heads]


@pair("group_queries", "other_order", "not_merged")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.view(B, H // n_kv_heads, n_kv_heads, T, D).transpose(1, 2)


@pair("group_queries", "size_for_count", "not_merged")
def _(query, n_kv_heads):
    return query.unflatten(1, (-1, n_kv_heads))


@pair("group_queries", "size_for_count", "averaged")
def _(query, n_kv_heads):
    B, _, T, D = query.shape
    return query.view(B, -1, n_kv_heads, T, D).mean(2)


@pair("group_queries", "token_major", "size_for_count")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.view(B, -1, n_kv_heads, T, D).transpose(2, 3).reshape(B, H // n_kv_heads, -1, D)


@pair("group_queries", "all_for_each", "token_major")
def _(query, n_kv_heads):
    rows = query.transpose(1, 2).flatten(1, 2)
    return rows[:, None].repeat(1, n_kv_heads, 1, 1)


@form("group_queries", "the heads exchanged with the tokens, nothing else", None)
def _(query, n_kv_heads):
    return query.transpose(1, 2)


@form("group_queries", "the query heads in reverse", None)
def _(query, n_kv_heads):
    B, _, _, D = query.shape
    return query.flip(1).reshape(B, n_kv_heads, -1, D)


@form("group_queries", "a list of one tensor for each key head", None)
def _(query, n_kv_heads):
    return [part.flatten(1, 2) for part in query.chunk(n_kv_heads, 1)]


# --- group_queries: right answers -------------------------------------------------------------------------------


@right("group_queries", "one reshape")
def _(query, n_kv_heads):
    B, H, T, D = query.shape
    return query.reshape(B, n_kv_heads, H // n_kv_heads * T, D)


@right("group_queries", "chunks")
def _(query, n_kv_heads):
    return torch.stack([part.flatten(1, 2) for part in query.chunk(n_kv_heads, dim=1)], dim=1)


@right("group_queries", "a loop over the heads")
def _(query, n_kv_heads):
    n = query.shape[1] // n_kv_heads
    rows = []
    for g in range(n_kv_heads):
        rows.append(torch.cat([query[:, h] for h in range(g * n, (g + 1) * n)], dim=1))
    return torch.stack(rows, dim=1)


@right("group_queries", "an index")
def _(query, n_kv_heads):
    B, H, _, D = query.shape
    heads = torch.arange(H).view(n_kv_heads, -1)
    return query[:, heads].reshape(B, n_kv_heads, -1, D)


# --- grouped_attention: mistakes --------------------------------------------------------------------------------


def _allowed(query, key, mask, offset=None):
    """(B or 1, 1, T, S), True = may attend."""
    T, S = query.shape[2], key.shape[2]
    causal = torch.ones(T, S).tril(S - T if offset is None else offset).bool()[None, None]
    return causal if mask is None else causal & mask


def _over_heads(query, key, value, allowed, scale=None, of=None):
    """Attention head by head; `of` says which key head a query head reads. Empty rows give zeros."""
    H, G = query.shape[1], key.shape[1]
    outputs = []
    for h in range(H):
        g = h // (H // G) if of is None else of(h)
        scores = query[:, h] @ key[:, g].mT / (query.shape[-1] if scale is None else scale) ** 0.5  # (B, T, S)
        weights = scores.masked_fill(~allowed[:, 0], -math.inf).softmax(-1).nan_to_num()
        outputs.append(weights @ value[:, g])
    return torch.stack(outputs, 1)


@mutant("grouped_attention", "other_order")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask), of=lambda h: h % key.shape[1])


@mutant("grouped_attention", "merged_otherwise")
def _(query, key, value, mask=None):
    B, H, T, _ = query.shape
    output = _over_heads(query, key, value, _allowed(query, key, mask))
    return output.reshape(B, key.shape[1], -1, T, value.shape[-1]).transpose(1, 2).reshape(B, H, T, -1)


@mutant("grouped_attention", "first_key_head")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask), of=lambda h: 0)


@mutant("grouped_attention", "queries_averaged")
def _(query, key, value, mask=None):
    n = query.shape[1] // key.shape[1]
    means = torch.stack([part.mean(1) for part in query.split(n, 1)], 1)
    return _over_heads(means, key, value, _allowed(query, key, mask)).repeat_interleave(n, 1)


@mutant("grouped_attention", "not_causal")
def _(query, key, value, mask=None):
    every = torch.ones(1, 1, query.shape[2], key.shape[2]).bool()
    return _over_heads(query, key, value, every if mask is None else mask.expand(-1, 1, query.shape[2], -1))


@mutant("grouped_attention", "top_left")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask, offset=0))


@mutant("grouped_attention", "rows_are_tokens")
def _(query, key, value, mask=None):
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    scores = query.reshape(B, G, -1, D) @ key.mT / D**0.5  # (B, G, H/G·T, S)
    n_rows = scores.shape[2]
    allowed = torch.ones(n_rows, S).tril(S - n_rows).bool()
    allowed = allowed if mask is None else allowed & mask
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()
    return (weights @ value).reshape(B, H, T, -1)


@mutant("grouped_attention", "causal_when_empty")
def _(query, key, value, mask=None):
    offset = 0 if query.shape[2] == key.shape[2] else key.shape[2]
    return _over_heads(query, key, value, _allowed(query, key, mask, offset))


@mutant("grouped_attention", "mask_ignored")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, None))


@mutant("grouped_attention", "mask_inverted")
def _(query, key, value, mask=None):
    causal = _allowed(query, key, None)
    return _over_heads(query, key, value, causal if mask is None else causal.logical_and(mask.logical_not()))


@mutant("grouped_attention", "mask_over_heads")
def _(query, key, value, mask=None):
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    scores = query.view(B, G, H // G, T, D) @ key[:, :, None].mT / math.sqrt(D)  # (B, G, H/G, T, S)
    allowed = torch.tril(torch.ones(T, S), S - T) > 0
    if mask is not None:
        allowed = allowed & mask
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()
    return (weights @ value[:, :, None]).reshape(B, H, T, -1)


def _rows(query, key):
    """(B, H, T, S) scores, by one matrix product for each key head."""
    B, H, T, D = query.shape
    return (query.reshape(B, key.shape[1], -1, D) @ key.mT).view(B, H, T, -1) * D**-0.5


def _values(weights, value):
    B, H, T, S = weights.shape
    return (weights.reshape(B, value.shape[1], -1, S) @ value).view(B, H, T, -1)


@mutant("grouped_attention", "mask_after")
def _(query, key, value, mask=None):
    return _values(_rows(query, key).softmax(-1).masked_fill(~_allowed(query, key, mask), 0), value)


@mutant("grouped_attention", "mask_multiplies")
def _(query, key, value, mask=None):
    return _values(_rows(query, key).masked_fill(~_allowed(query, key, mask), 0).softmax(-1), value)


@mutant("grouped_attention", "empty_nan")
def _(query, key, value, mask=None):
    scores = _rows(query, key)
    scores = scores.masked_fill(~_allowed(query, key, None), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return _values(torch.softmax(scores, dim=3), value)


@mutant("grouped_attention", "empty_even")
def _(query, key, value, mask=None):
    scores = _rows(query, key).masked_fill(~_allowed(query, key, mask), torch.finfo(torch.float32).min)
    return _values(scores.softmax(dim=-1), value)


@mutant("grouped_attention", "not_scaled")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask), scale=1)


@mutant("grouped_attention", "value_size")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask), scale=value.shape[-1])


@mutant("grouped_attention", "width")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask), scale=query.shape[1] * query.shape[3])


@mutant("grouped_attention", "over_queries")
def _(query, key, value, mask=None):
    allowed = _allowed(query, key, mask)
    weights = _rows(query, key).masked_fill(~allowed, -1e9).softmax(2)
    return _values(weights.masked_fill(~allowed, 0), value)


def _tril(T, S, above=0):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + above)


def _plainly(query, key, value, seen, power=0.5, late=None):
    """With every key head repeated; `seen` may be (T, S) or (B, 1, T, S)."""
    n = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(n, 1).mT / query.shape[-1] ** power
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1).masked_fill(~seen, 0)
    return (weights if late is None else weights * late) @ value.repeat_interleave(n, 1)


def _joined(seen, mask):
    return seen if mask is None else seen & mask


def _by_rows(query, key, value, seen):
    """`seen` is (n·T, S) or (B, 1, n·T, S), for the rows of one key head; the outputs (B, G, n·T, Dv)."""
    B, _, _, D = query.shape
    scores = query.reshape(B, key.shape[1], -1, D) @ key.mT / math.sqrt(D)
    return scores.masked_fill(~seen, -math.inf).softmax(-1).masked_fill(~seen, 0) @ value


@mutant("grouped_attention", "heads_mixed")
def _(query, key, value, mask=None):
    B, H, T, _ = query.shape
    seen = _joined(_tril(T, key.shape[2]), mask)
    seen = seen.repeat(*[1] * (seen.dim() - 2), H // key.shape[1], 1)
    return _by_rows(query, key, value, seen).reshape(B, T, H, -1).transpose(1, 2)


@mutant("grouped_attention", "rows_go_on")
def _(query, key, value, mask=None):
    (B, H, T, _), (G, S) = query.shape, key.shape[1:3]
    seen = _joined(torch.ones(H // G * T, S, dtype=torch.bool).tril(S - T), mask)
    return _by_rows(query, key, value, seen).reshape(B, H, T, -1)


@mutant("grouped_attention", "mask_by_token")
def _(query, key, value, mask=None):
    B, H, T, _ = query.shape
    seen = _joined(_tril(T, key.shape[2]), mask).repeat_interleave(H // key.shape[1], -2)
    return _by_rows(query, key, value, seen).reshape(B, H, T, -1)


@mutant("grouped_attention", "inverted")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, ~_joined(_tril(query.shape[2], key.shape[2]), mask))


@mutant("grouped_attention", "transposed")
def _(query, key, value, mask=None):
    T, S = query.shape[2], key.shape[2]
    return _plainly(query, key, value, _joined(torch.ones(T, S, dtype=torch.bool).triu(S - T), mask))


@mutant("grouped_attention", "one_ahead")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, _joined(_tril(query.shape[2], key.shape[2], 1), mask))


@mutant("grouped_attention", "self_left_out")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, _joined(_tril(query.shape[2], key.shape[2], -1), mask))


@mutant("grouped_attention", "mask_replaces")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, _tril(query.shape[2], key.shape[2]) if mask is None else mask)


@mutant("grouped_attention", "either")
def _(query, key, value, mask=None):
    seen = _tril(query.shape[2], key.shape[2])
    return _plainly(query, key, value, seen if mask is None else seen | mask)


@mutant("grouped_attention", "padding_after")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, _tril(query.shape[2], key.shape[2]), late=mask)


@mutant("grouped_attention", "blind_padding")
def _(query, key, value, mask=None):
    T = query.shape[2]
    output = _plainly(query, key, value, _joined(_tril(T, key.shape[2]), mask))
    return output if mask is None else output * mask[:, :, 0, -T:, None]


@mutant("grouped_attention", "at_the_front")
def _(query, key, value, mask=None):
    S = key.shape[2]
    real = None if mask is None else torch.arange(S) >= S - mask.sum(-1, keepdim=True)
    return _plainly(query, key, value, _joined(_tril(query.shape[2], S), real))


@mutant("grouped_attention", "no_root")
def _(query, key, value, mask=None):
    return _plainly(query, key, value, _joined(_tril(query.shape[2], key.shape[2]), mask), power=1)


@pair("grouped_attention", "other_order", "merged_otherwise")
def _(query, key, value, mask=None):
    G = key.shape[1]
    query = torch.cat([query[:, g::G] for g in range(G)], dim=1)  # and never put back
    return _over_heads(query, key, value, _allowed(query, key, mask))


@pair("grouped_attention", "other_order", "top_left")
def _(query, key, value, mask=None):
    return _over_heads(query, key, value, _allowed(query, key, mask, 0), of=lambda h: h % key.shape[1])


@pair("grouped_attention", "other_order", "empty_nan")
def _(query, key, value, mask=None):
    n = query.shape[1] // key.shape[1]
    scores = query @ key.repeat(1, n, 1, 1).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_allowed(query, key, mask), -math.inf).softmax(-1)
    return weights @ value.repeat(1, n, 1, 1)


@pair("grouped_attention", "top_left", "empty_nan")
def _(query, key, value, mask=None):
    scores = _rows(query, key).masked_fill(~_allowed(query, key, mask, 0), -math.inf)
    return _values(scores.softmax(-1), value)


@pair("grouped_attention", "causal_when_empty", "empty_nan")
def _(query, key, value, mask=None):
    scores = _rows(query, key)
    if query.shape[2] == key.shape[2]:
        scores = scores.masked_fill(~_allowed(query, key, None), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return _values(scores.softmax(-1), value)


@pair("grouped_attention", "mask_ignored", "not_causal")
def _(query, key, value, mask=None):
    return _values(_rows(query, key).softmax(-1), value)


@pair("grouped_attention", "not_scaled", "empty_nan")
def _(query, key, value, mask=None):
    n = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(n, 1).transpose(2, 3)
    weights = scores.masked_fill(~_allowed(query, key, mask), -math.inf).softmax(-1)
    return weights @ value.repeat_interleave(n, 1)


@pair("grouped_attention", "mask_over_heads", "empty_nan")
def _(query, key, value, mask=None):
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    scores = torch.einsum("bgntd,bgsd->bgnts", query.view(B, G, H // G, T, D), key) / D**0.5
    scores = scores.masked_fill(torch.ones(T, S).triu(S - T + 1).bool(), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bgnts,bgsv->bgntv", scores.softmax(-1), value).reshape(B, H, T, -1)


@pair("grouped_attention", "mask_inverted", "empty_nan")
def _(query, key, value, mask=None):
    scores = _rows(query, key).masked_fill(~_allowed(query, key, None), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return _values(scores.softmax(-1), value)


@pair("grouped_attention", "mask_inverted", "not_causal")
def _(query, key, value, mask=None):
    every = torch.ones(1, 1, query.shape[2], key.shape[2]).bool()
    return _over_heads(query, key, value, every if mask is None else ~mask & every)


@form("grouped_attention", "the rows after the first head go on into the future", "rows_go_on")
def _(query, key, value, mask=None):
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    scores = query.reshape(B, G, -1, D) @ key.mT / D**0.5  # (B, G, H/G·T, S)
    allowed = torch.ones(scores.shape[2], S).tril(S - T).bool()
    allowed = allowed if mask is None else allowed & mask
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()
    return (weights @ value).reshape(B, H, T, -1)


@form("grouped_attention", "scores over every key head", None)
def _(query, key, value, mask=None):
    scores = torch.einsum("bhtd,bgsd->bhts", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_allowed(query, key, mask), -math.inf).softmax(-1).nan_to_num()
    return _values(weights, value)


@form("grouped_attention", "values of every key head", None)
def _(query, key, value, mask=None):
    weights = _rows(query, key).masked_fill(~_allowed(query, key, mask), -math.inf).softmax(-1).nan_to_num()
    return torch.einsum("bhts,bgsv->bhtv", weights, value)


@form("grouped_attention", "a boolean mask added to the scores", None)
def _(query, key, value, mask=None):
    return _values((_rows(query, key) + _allowed(query, key, mask)).softmax(-1), value)


@form("grouped_attention", "left with an axis for the sharing heads", None)
def _(query, key, value, mask=None):
    output = _over_heads(query, key, value, _allowed(query, key, mask))
    return output.unflatten(1, (key.shape[1], -1))


@form("grouped_attention", "zeros where the padding is, not where nothing is seen", None)
def _(query, key, value, mask=None):
    allowed = _allowed(query, key, mask)
    weights = _rows(query, key).masked_fill(~allowed, -1e9).softmax(-1)
    if mask is not None:
        weights = weights * mask
    return _values(weights, value)


# --- grouped_attention: right answers ---------------------------------------------------------------------------


@right("grouped_attention", "a loop over the heads")
def _(query, key, value, mask=None):
    n = query.shape[1] // key.shape[1]
    allowed, outputs = _allowed(query, key, mask)[:, 0], []
    for h in range(query.shape[1]):
        scores = query[:, h] @ key[:, h // n].transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1).masked_fill(~allowed, 0)
        outputs.append(weights @ value[:, h // n])
    return torch.stack(outputs, dim=1)


@right("grouped_attention", "einsum with an axis for the sharing heads")
def _(query, key, value, mask=None):
    T, S = query.shape[2], key.shape[2]
    sets = query.unflatten(1, (key.shape[1], -1))
    scores = torch.einsum("bgntd,bgsd->bgnts", sets, key) * query.shape[-1] ** -0.5
    hidden = torch.ones(T, S).triu(S - T + 1).bool()
    if mask is not None:
        hidden = hidden | ~mask.unsqueeze(1)
    weights = torch.where(hidden, 0.0, torch.where(hidden, -math.inf, scores).softmax(-1))
    return torch.einsum("bgnts,bgsv->bgntv", weights, value).flatten(1, 2)


@right("grouped_attention", "keys repeated")
def _(query, key, value, mask=None):
    n = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(n, dim=1), value.repeat_interleave(n, dim=1)
    allowed = _allowed(query, key, mask)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, -math.inf).softmax(-1).masked_fill(~allowed, 0.0) @ value


@right("grouped_attention", "query by query")
def _(query, key, value, mask=None):
    B, H, T, D = query.shape
    G, S = key.shape[1:3]
    rows = []
    for t in range(T):
        end = S - T + t + 1
        scores = query[:, :, t].reshape(B, G, H // G, D) @ key[:, :, :end].mT / D**0.5  # (B, G, H/G, end)
        if mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~mask[..., :end], -math.inf).softmax(-1).masked_fill(~mask[..., :end], 0.0)
        rows.append((weights @ value[:, :, :end]).reshape(B, H, -1))
    return torch.stack(rows, 2)


# --- pool_heads: mistakes ---------------------------------------------------------------------------------------


@mutant("pool_heads", "other_order")
def _(weight, n_heads, n_kv_heads):
    heads = weight.reshape(n_heads, -1, weight.shape[1])
    return torch.cat([heads[g::n_kv_heads].mean(0) for g in range(n_kv_heads)])


@mutant("pool_heads", "neighbours")
def _(weight, n_heads, n_kv_heads):
    return weight.reshape(-1, n_heads // n_kv_heads, weight.shape[1]).mean(1)


@mutant("pool_heads", "interleaved")
def _(weight, n_heads, n_kv_heads):
    heads = weight.reshape(-1, n_heads, weight.shape[1]).transpose(0, 1)  # (H, D, d_model)
    n = n_heads // n_kv_heads
    return torch.cat([heads[g * n : (g + 1) * n].mean(0) for g in range(n_kv_heads)])


@mutant("pool_heads", "heads_last")
def _(weight, n_heads, n_kv_heads):
    pooled = weight.view(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1]).mean(1)
    return pooled.transpose(0, 1).reshape(-1, weight.shape[1])


@mutant("pool_heads", "first_only")
def _(weight, n_heads, n_kv_heads):
    heads = weight.chunk(n_heads)
    return torch.cat(heads[:: n_heads // n_kv_heads])


@mutant("pool_heads", "summed")
def _(weight, n_heads, n_kv_heads):
    heads = weight.chunk(n_heads)
    n = n_heads // n_kv_heads
    return torch.cat([sum(heads[g * n : (g + 1) * n]) for g in range(n_kv_heads)])


@mutant("pool_heads", "divided_by_kv")
def _(weight, n_heads, n_kv_heads):
    heads = weight.reshape(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[-1])
    return heads.sum(1).reshape(-1, weight.shape[-1]) / n_kv_heads


@mutant("pool_heads", "all_heads")
def _(weight, n_heads, n_kv_heads):
    mean = weight.reshape(n_heads, -1, weight.shape[1]).mean(0)
    return mean.repeat(n_kv_heads, 1)


@mutant("pool_heads", "size_for_count")
def _(weight, n_heads, n_kv_heads):
    heads = weight.reshape(n_heads // n_kv_heads, n_kv_heads, -1, weight.shape[1])
    return heads.mean(1).reshape(-1, weight.shape[1])


@mutant("pool_heads", "over_numbers")
def _(weight, n_heads, n_kv_heads):
    return torch.stack([head.mean(0) for head in weight.chunk(n_heads)])


@mutant("pool_heads", "over_inputs")
def _(weight, n_heads, n_kv_heads):
    n = n_heads // n_kv_heads
    return weight.reshape(weight.shape[0], n_kv_heads, n, weight.shape[1] // n_heads).mean(2).flatten(1)


@mutant("pool_heads", "as_many_as_before")
def _(weight, n_heads, n_kv_heads):
    sets = weight.view(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1])
    return sets.mean(1, keepdim=True).expand_as(sets).reshape(weight.shape)


@mutant("pool_heads", "not_merged")
def _(weight, n_heads, n_kv_heads):
    return weight.view(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1]).mean(dim=1)


@mutant("pool_heads", "over_sets")
def _(weight, n_heads, n_kv_heads):
    return weight.reshape(n_kv_heads, -1, len(weight) // n_heads, weight.shape[1]).mean(0).flatten(0, 1)


@mutant("pool_heads", "overlapping")
def _(weight, n_heads, n_kv_heads):
    heads, n = weight.split(len(weight) // n_heads), n_heads // n_kv_heads
    return torch.cat([torch.stack(heads[g : g + n]).mean(0) for g in range(n_kv_heads)])


@mutant("pool_heads", "divided_by_all")
def _(weight, n_heads, n_kv_heads):
    heads, n = weight.chunk(n_heads), n_heads // n_kv_heads
    return torch.cat([sum(heads[g * n : (g + 1) * n]) / n_heads for g in range(n_kv_heads)])


@pair("pool_heads", "other_order", "summed")
def _(weight, n_heads, n_kv_heads):
    return weight.reshape(n_heads // n_kv_heads, -1, weight.shape[1]).sum(0)


@pair("pool_heads", "other_order", "first_only")
def _(weight, n_heads, n_kv_heads):
    return weight[: weight.shape[0] // n_heads * n_kv_heads]


@pair("pool_heads", "other_order", "divided_by_kv")
def _(weight, n_heads, n_kv_heads):
    return weight.reshape(n_heads // n_kv_heads, -1, weight.shape[1]).sum(0) / n_kv_heads


@pair("pool_heads", "neighbours", "summed")
def _(weight, n_heads, n_kv_heads):
    n = n_heads // n_kv_heads
    return sum(weight[r::n] for r in range(n))


@pair("pool_heads", "neighbours", "first_only")
def _(weight, n_heads, n_kv_heads):
    return weight[:: n_heads // n_kv_heads]


@pair("pool_heads", "not_merged", "summed")
def _(weight, n_heads, n_kv_heads):
    return weight.reshape(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1]).sum(1)


@pair("pool_heads", "size_for_count", "summed")
def _(weight, n_heads, n_kv_heads):
    return torch.cat([sum(part.chunk(n_kv_heads)) for part in weight.chunk(n_heads // n_kv_heads)])


@form("pool_heads", "the largest instead of the mean", None)
def _(weight, n_heads, n_kv_heads):
    return weight.view(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1]).amax(1).flatten(0, 1)


@form("pool_heads", "the last head of each set", None)
def _(weight, n_heads, n_kv_heads):
    n = n_heads // n_kv_heads
    return torch.cat(weight.chunk(n_heads)[n - 1 :: n])


@form("pool_heads", "the first heads, as many as are left", None)
def _(weight, n_heads, n_kv_heads):
    return weight[: n_kv_heads * (weight.shape[0] // n_heads)].clone()


@form("pool_heads", "divided by the number of all heads", "divided_by_all")
def _(weight, n_heads, n_kv_heads):
    sets = weight.view(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1])
    return sets.sum(1).flatten(0, 1) / n_heads


# --- pool_heads: right answers ----------------------------------------------------------------------------------


@right("pool_heads", "a reshape of four axes")
def _(weight, n_heads, n_kv_heads):
    D = weight.shape[0] // n_heads
    sets = weight.reshape(n_kv_heads, n_heads // n_kv_heads, D, -1)
    return sets.mean(dim=1).reshape(n_kv_heads * D, -1)


@right("pool_heads", "chunks of chunks")
def _(weight, n_heads, n_kv_heads):
    n = n_heads // n_kv_heads
    return torch.cat([torch.stack(part.chunk(n)).mean(0) for part in weight.chunk(n_kv_heads)])


@right("pool_heads", "a running sum")
def _(weight, n_heads, n_kv_heads):
    D, n = weight.shape[0] // n_heads, n_heads // n_kv_heads
    pooled = torch.zeros(n_kv_heads * D, weight.shape[1], dtype=weight.dtype)
    for h in range(n_heads):
        g = h // n
        pooled[g * D : (g + 1) * D] += weight[h * D : (h + 1) * D] / n
    return pooled


@right("pool_heads", "a matrix of means")
def _(weight, n_heads, n_kv_heads):
    n = n_heads // n_kv_heads
    mean = torch.eye(n_kv_heads, dtype=weight.dtype).repeat_interleave(n, 1) / n  # (G, H)
    return torch.einsum("gh,hdm->gdm", mean, weight.reshape(n_heads, -1, weight.shape[1])).flatten(0, 1)


# --- heads_in_budget: mistakes ----------------------------------------------------------------------------------


def _search(needed, budget, choices):
    """The last of `choices` whose bytes, needed(g), fit; 0 where none does."""
    best = 0
    for g in choices:
        if needed(g) <= budget:
            best = g
    return best


def _divisors(n):
    return [g for g in range(1, n + 1) if n % g == 0]


@mutant("heads_in_budget", "keys_only")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    one = n_layers * head_dim * bytes_per_number
    found = [_search(lambda g: one * g * n, budget, _divisors(n_heads)) for n in n_tokens.tolist()]  # noqa: B023
    return torch.tensor(found)


@mutant("heads_in_budget", "one_layer")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    fits = 2 * head_dim * bytes_per_number * n_tokens[:, None] * choices <= budget
    return (fits * choices).max(1).values


@mutant("heads_in_budget", "no_bytes")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    fits = 2 * n_layers * head_dim * torch.outer(n_tokens, choices) <= budget
    return (fits * choices).amax(-1)


@mutant("heads_in_budget", "all_heads_cached")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    needed = 2 * n_layers * n_heads * head_dim * bytes_per_number * n_tokens
    return torch.where(needed <= budget, n_heads, 0)


def _most(n_tokens, head_dim, n_layers, bytes_per_number, budget):
    """How many key-value heads fit, divisor or not."""
    return budget // (2 * n_layers * head_dim * bytes_per_number * n_tokens)


@mutant("heads_in_budget", "as_many_as_fit")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return _most(n_tokens, head_dim, n_layers, bytes_per_number, budget)


@mutant("heads_in_budget", "any_number")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).clamp(max=n_heads)


@mutant("heads_in_budget", "powers_of_two")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist():
        g, best = 1, 0
        while g <= most and n_heads % g == 0:
            best, g = g, 2 * g
        found.append(best)
    return torch.tensor(found)


@mutant("heads_in_budget", "halved")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for n in n_tokens.tolist():
        g = n_heads
        while 2 * n_layers * g * head_dim * bytes_per_number * n > budget:
            g //= 2
        found.append(g)
    return torch.tensor(found)


@mutant("heads_in_budget", "fewer_than_all")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    most = _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist()
    return torch.tensor([max([g for g in range(1, n_heads) if n_heads % g == 0 and g <= m], default=0) for m in most])


@mutant("heads_in_budget", "smallest")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist():
        found.append(next((g for g in range(1, n_heads + 1) if n_heads % g == 0 and g <= most), 0))
    return torch.tensor(found)


@mutant("heads_in_budget", "rounded_up")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist():
        g = min(most, n_heads)
        while g and n_heads % g:
            g += 1
        found.append(g)
    return torch.tensor(found)


@mutant("heads_in_budget", "strict")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    needed = 2 * n_layers * head_dim * bytes_per_number * n_tokens[:, None] * choices
    return (choices * (needed < budget)).amax(1)


@mutant("heads_in_budget", "at_least_one")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist():
        g = n_heads
        while g > 1 and (g > most or n_heads % g):
            g -= 1
        found.append(g)
    return torch.tensor(found)


@mutant("heads_in_budget", "sharers")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    fits = choices <= _most(n_tokens, head_dim, n_layers, bytes_per_number, budget)[:, None]
    best = (choices * fits).amax(1)
    return torch.where(best > 0, n_heads // best.clamp(min=1), 0)


def _choices(H):
    return torch.tensor([g for g in range(1, H + 1) if H % g == 0])


@mutant("heads_in_budget", "no_head_dim")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    needed = 2 * n_layers * bytes_per_number * n_tokens[:, None] * _choices(n_heads)
    return torch.where(needed <= budget, _choices(n_heads), 0).amax(1)


@mutant("heads_in_budget", "rounded")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    most = (budget / (2 * head_dim * n_layers * bytes_per_number * n_tokens)).floor()
    return torch.where(_choices(n_heads) <= most[:, None], _choices(n_heads), 0).amax(1)


@mutant("heads_in_budget", "bytes_returned")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    needed = 2 * head_dim * n_layers * bytes_per_number * n_tokens[:, None] * _choices(n_heads)
    return needed.masked_fill(needed > budget, 0).amax(1)


@mutant("heads_in_budget", "place_in_list")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    needed = 2 * head_dim * n_layers * bytes_per_number * n_tokens[:, None] * _choices(n_heads)
    return needed.masked_fill(needed > budget, 0).argmax(1)


@mutant("heads_in_budget", "how_many_fit")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    needed = 2 * head_dim * n_layers * bytes_per_number * n_tokens[:, None] * _choices(n_heads)
    return (needed <= budget).sum(1)


@pair("heads_in_budget", "keys_only", "any_number")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return (budget // (n_layers * head_dim * bytes_per_number * n_tokens)).clamp(max=n_heads)


@pair("heads_in_budget", "keys_only", "as_many_as_fit")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return budget // (n_layers * head_dim * bytes_per_number * n_tokens)


@pair("heads_in_budget", "one_layer", "as_many_as_fit")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return torch.div(budget, 2 * head_dim * bytes_per_number * n_tokens, rounding_mode="floor")


@pair("heads_in_budget", "keys_only", "no_bytes")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    fits = n_layers * head_dim * torch.outer(n_tokens, choices) <= budget
    return (fits * choices).amax(-1)


@pair("heads_in_budget", "any_number", "at_least_one")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).clamp(1, n_heads)


@pair("heads_in_budget", "halved", "at_least_one")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for n in n_tokens.tolist():
        g = n_heads
        while g > 1 and 2 * n_layers * g * head_dim * bytes_per_number * n > budget:
            g = g // 2
        found.append(g)
    return torch.tensor(found)


@pair("heads_in_budget", "one_layer", "keys_only")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    fits = head_dim * bytes_per_number * torch.outer(n_tokens, choices) <= budget
    return torch.where(fits, choices, 0).amax(-1)


@pair("heads_in_budget", "powers_of_two", "at_least_one")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist():
        g = 1
        while 2 * g <= most and n_heads % (2 * g) == 0:
            g *= 2
        found.append(g)
    return torch.tensor(found)


@pair("heads_in_budget", "strict", "fewer_than_all")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for n in n_tokens.tolist():
        one = 2 * n_layers * head_dim * bytes_per_number * n
        found.append(max((g for g in range(1, n_heads) if n_heads % g == 0 and g * one < budget), default=0))
    return torch.tensor(found)


@form("heads_in_budget", "one budget for each layer", "one_layer")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    needed = 2 * n_layers * head_dim * bytes_per_number * n_tokens[:, None] * choices
    return (choices * (needed <= budget * n_layers)).amax(1)


@form("heads_in_budget", "only as many as fit for the longest", None)
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    most = int(_most(n_tokens.max(), head_dim, n_layers, bytes_per_number, budget))
    return torch.tensor(max([g for g in _divisors(n_heads) if g <= most], default=0))


@form("heads_in_budget", "the bytes, not the heads", None)
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    return 2 * n_layers * n_heads * head_dim * bytes_per_number * n_tokens


@form("heads_in_budget", "as floats", None)
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    most = _most(n_tokens, head_dim, n_layers, bytes_per_number, budget).tolist()
    return torch.tensor([float(max([g for g in _divisors(n_heads) if g <= m], default=0)) for m in most])


@form("heads_in_budget", "queries counted as a third of the cache", None)
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor(_divisors(n_heads))
    return (choices * (3 * n_layers * head_dim * bytes_per_number * n_tokens[:, None] * choices <= budget)).amax(1)


# --- heads_in_budget: right answers -----------------------------------------------------------------------------


@right("heads_in_budget", "a loop over the lengths")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for n in n_tokens.tolist():
        best = 0
        for g in range(1, n_heads + 1):
            if n_heads % g == 0 and 2 * n_layers * g * head_dim * bytes_per_number * n <= budget:
                best = g
        found.append(best)
    return torch.tensor(found)


@right("heads_in_budget", "down from all heads")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    found = []
    for most in (budget // (2 * n_layers * head_dim * bytes_per_number * n_tokens)).tolist():
        g = min(most, n_heads)
        while g > 0 and n_heads % g != 0:
            g -= 1
        found.append(g)
    return torch.tensor(found)


@right("heads_in_budget", "a running best")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    best = torch.zeros_like(n_tokens)
    for g in range(1, n_heads + 1):
        if n_heads % g == 0:
            fits = n_tokens * (2 * n_layers * g * head_dim * bytes_per_number) <= budget
            best = torch.where(fits, g, best)
    return best


@right("heads_in_budget", "searchsorted")
def _(n_tokens, n_heads, head_dim, n_layers, bytes_per_number, budget):
    choices = torch.tensor([0] + [g for g in range(1, n_heads + 1) if n_heads % g == 0])
    most = budget // (2 * n_layers * head_dim * bytes_per_number * n_tokens)
    return choices[torch.searchsorted(choices, most, right=True) - 1]
