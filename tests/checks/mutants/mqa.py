"""Chapter 12 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/mqa.py: the styles differ on purpose (views, chunks, loops
over heads, tril, einsum, plain Python), because the check must recognise the mistake and not the code.
"""

import math

import torch

from tests.checks.mutants import Answers

ANSWERS = Answers("mqa")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- split_one_key: mistakes ------------------------------------------------------------------------------------


@mutant("split_one_key", "viewed")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, n_heads + 2, T, -1)
    return heads[:, :-2], heads[:, [-2]], heads[:, [-1]]


@mutant("split_one_key", "interleaved")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, T, -1, n_heads + 2).permute(0, 3, 1, 2)
    return heads[:, :-2], heads[:, -2:-1], heads[:, -1:]


@mutant("split_one_key", "value_first")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, T, n_heads + 2, -1).transpose(1, 2)
    return heads[:, :-2], heads[:, [-1]], heads[:, [-2]]


@mutant("split_one_key", "queries_last")
def _(fused, n_heads):
    D = fused.shape[-1] // (n_heads + 2)
    key, value, query = fused.split([D, D, n_heads * D], dim=-1)
    return query.unflatten(-1, (n_heads, D)).transpose(1, 2), key[:, None], value[:, None]


@mutant("split_one_key", "key_for_value")
def _(fused, n_heads):
    D = fused.shape[-1] // (n_heads + 2)
    query = fused[..., : n_heads * D].unflatten(-1, (n_heads, D)).transpose(1, 2)
    key = fused[..., n_heads * D : (n_heads + 1) * D].unsqueeze(1)
    return query, key, key


@mutant("split_one_key", "two_of_them")
def _(fused, n_heads):
    B, T, width = fused.shape
    heads = fused.reshape(B, T, n_heads, width // n_heads).transpose(1, 2)
    return heads[:, :-2], heads[:, -2:-1], heads[:, -1:]


@mutant("split_one_key", "repeated")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, T, n_heads + 2, -1).transpose(1, 2)
    return heads[:, :-2], heads[:, -2:-1].repeat(1, n_heads, 1, 1), heads[:, -1:].repeat(1, n_heads, 1, 1)


@mutant("split_one_key", "no_axis")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, T, n_heads + 2, -1).transpose(1, 2)
    return heads[:, :-2], heads[:, -2], heads[:, -1]


@mutant("split_one_key", "not_transposed")
def _(fused, n_heads):
    B, T, width = fused.shape
    heads = fused.reshape(B, T, n_heads + 2, width // (n_heads + 2))
    return heads[:, :, :-2], heads[:, :, [-2]], heads[:, :, [-1]]


@mutant("split_one_key", "queries_viewed")
def _(fused, n_heads):
    B, T, width = fused.shape
    D = width // (n_heads + 2)
    query, key, value = fused.split([n_heads * D, D, D], dim=-1)
    return query.reshape(B, n_heads, T, D), key.unsqueeze(1), value.unsqueeze(1)


@mutant("split_one_key", "one_too_early")
def _(fused, n_heads):
    heads = fused.unflatten(-1, (n_heads + 2, -1)).movedim(2, 1)
    return heads[:, :-2], heads[:, n_heads - 1 : n_heads], heads[:, n_heads : n_heads + 1]


@pair("split_one_key", "viewed", "value_first")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, n_heads + 2, T, -1)
    return heads[:, :-2], heads[:, [-1]], heads[:, [-2]]


@pair("split_one_key", "no_axis", "not_transposed")
def _(fused, n_heads):
    heads = fused.unflatten(-1, (n_heads + 2, -1))
    return heads[:, :, :n_heads], heads[:, :, n_heads], heads[:, :, n_heads + 1]


@pair("split_one_key", "viewed", "no_axis")
def _(fused, n_heads):
    B, T, _ = fused.shape
    heads = fused.reshape(B, n_heads + 2, T, -1)
    return heads[:, :-2], heads[:, -2], heads[:, -1]


@pair("split_one_key", "queries_last", "not_transposed")
def _(fused, n_heads):
    heads = fused.unflatten(-1, (n_heads + 2, -1))
    return heads[:, :, 2:], heads[:, :, :1], heads[:, :, 1:2]


@pair("split_one_key", "value_first", "not_transposed")
def _(fused, n_heads):
    heads = fused.unflatten(-1, (n_heads + 2, -1))
    return heads[:, :, :-2], heads[:, :, -1:], heads[:, :, -2:-1]


@pair("split_one_key", "two_of_them", "viewed")
def _(fused, n_heads):
    B, T, width = fused.shape
    heads = fused.reshape(B, n_heads, T, width // n_heads)
    return heads[:, :-2], heads[:, -2:-1], heads[:, -1:]


@form("split_one_key", "three equal parts, as in multi-head attention", None)
def _(fused, n_heads):
    query, key, value = fused.chunk(3, dim=-1)
    return query.unflatten(-1, (n_heads, -1)).transpose(1, 2), key[:, None], value[:, None]


@form("split_one_key", "the two left out of the size of a head", None)
def _(fused, n_heads):
    D = fused.shape[-1] // n_heads
    query = fused[..., : n_heads * D].unflatten(-1, (n_heads, D)).transpose(1, 2)
    return query, fused[..., None, -2 * D : -D].transpose(1, 2), fused[..., None, -D:].transpose(1, 2)


@form("split_one_key", "a list of heads", None)
def _(fused, n_heads):
    return fused.unflatten(-1, (n_heads + 2, -1)).transpose(1, 2)


# --- split_one_key: right answers -------------------------------------------------------------------------------


@right("split_one_key", "a view, then lists as indices")
def _(fused, n_heads):
    B, T, width = fused.shape
    heads = fused.reshape(B, T, n_heads + 2, width // (n_heads + 2)).transpose(1, 2)
    return heads[:, :-2], heads[:, [-2]], heads[:, [-1]]


@right("split_one_key", "three parts first")
def _(fused, n_heads):
    D = fused.shape[-1] // (n_heads + 2)
    query, key, value = fused.split([n_heads * D, D, D], dim=-1)
    return query.unflatten(-1, (n_heads, D)).transpose(1, 2), key.unsqueeze(1), value.unsqueeze(1)


@right("split_one_key", "head by head")
def _(fused, n_heads):
    heads = fused.chunk(n_heads + 2, dim=-1)
    return torch.stack(heads[:-2], dim=1), heads[-2][:, None], heads[-1][:, None]


@right("split_one_key", "from the end")
def _(fused, n_heads):
    D = fused.shape[-1] // (n_heads + 2)
    query = fused[..., : -2 * D].unflatten(-1, (-1, D)).movedim(2, 1)
    return query, fused[:, None, :, -2 * D : -D], fused[:, None, :, -D:]


# --- rows_of_heads: mistakes ------------------------------------------------------------------------------------


def _rows(query):
    B, H, T, D = query.shape
    return query.reshape(B, 1, H * T, D)


def _causal(query, S):
    T = query.shape[2]
    return torch.ones(T, S).tril(S - T).bool()


@mutant("rows_of_heads", "rows_are_tokens")
def _(query, S):
    n = query.shape[1] * query.shape[2]
    return _rows(query), torch.ones(n, S).tril(S - n).bool()


@mutant("rows_of_heads", "mask_by_token")
def _(query, S):
    return _rows(query), _causal(query, S).repeat_interleave(query.shape[1], dim=0)


@mutant("rows_of_heads", "token_major")
def _(query, S):
    rows = query.transpose(1, 2).flatten(1, 2).unsqueeze(1)
    return rows, torch.cat([_causal(query, S)] * query.shape[1])


@mutant("rows_of_heads", "tokens_cut")
def _(query, S):
    return _rows(query.transpose(2, 3).reshape(query.shape)), _causal(query, S).repeat(query.shape[1], 1)


@mutant("rows_of_heads", "no_axis")
def _(query, S):
    return query.flatten(1, 2), _causal(query, S).repeat(query.shape[1], 1)


@mutant("rows_of_heads", "one_head")
def _(query, S):
    return _rows(query), _causal(query, S)


@mutant("rows_of_heads", "top_left")
def _(query, S):
    mask = torch.tril(torch.ones(query.shape[2], S, dtype=torch.bool))
    return _rows(query), torch.cat([mask] * query.shape[1])


@mutant("rows_of_heads", "square")
def _(query, S):
    _, H, T, _ = query.shape
    mask = torch.tril(torch.ones(T, T, dtype=torch.bool), S - T)
    return _rows(query), mask.repeat(H, 1)


@mutant("rows_of_heads", "not_causal")
def _(query, S):
    return _rows(query), torch.ones(query.shape[1] * query.shape[2], S, dtype=torch.bool)


@mutant("rows_of_heads", "transposed")
def _(query, S):
    mask = torch.ones(query.shape[2], S).triu(S - query.shape[2]).bool()
    return _rows(query), mask.repeat(query.shape[1], 1)


@mutant("rows_of_heads", "self_left_out")
def _(query, S):
    mask = torch.ones(query.shape[2], S).tril(S - query.shape[2] - 1).bool()
    return _rows(query), mask.repeat(query.shape[1], 1)


@mutant("rows_of_heads", "inverted")
def _(query, S):
    return _rows(query), ~_causal(query, S).repeat(query.shape[1], 1)


@mutant("rows_of_heads", "floats")
def _(query, S):
    T = query.shape[2]
    return _rows(query), torch.tril(torch.ones(T, S), S - T).repeat(query.shape[1], 1)


def _tril(T, S, above=0):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + above)


@mutant("rows_of_heads", "rows_go_on")
def _(query, S):
    _, H, T, _ = query.shape
    return query.flatten(1, 2)[:, None], torch.ones(H * T, S, dtype=torch.bool).tril(S - T)


@mutant("rows_of_heads", "head_for_token")
def _(query, S):
    _, H, T, _ = query.shape
    token = torch.arange(H * T) // T
    return query.flatten(1, 2)[:, None], torch.arange(S) <= (S - T + token)[:, None]


@mutant("rows_of_heads", "sign")
def _(query, S):
    _, H, T, _ = query.shape
    return query.flatten(1, 2)[:, None], torch.ones(T, S, dtype=torch.bool).tril(T - S).repeat(H, 1)


@mutant("rows_of_heads", "one_ahead")
def _(query, S):
    _, H, T, _ = query.shape
    return query.flatten(1, 2)[:, None], _tril(T, S, 1).repeat(H, 1)


@mutant("rows_of_heads", "added")
def _(query, S):
    _, H, T, _ = query.shape
    return query.flatten(1, 2)[:, None], torch.full((T, S), -math.inf).triu(S - T + 1).repeat(H, 1)


@pair("rows_of_heads", "token_major", "mask_by_token")
def _(query, S):
    rows = query.transpose(1, 2).flatten(1, 2).unsqueeze(1)
    return rows, _causal(query, S).repeat_interleave(query.shape[1], dim=0)


@pair("rows_of_heads", "rows_are_tokens", "top_left")
def _(query, S):
    return _rows(query), torch.ones(query.shape[1] * query.shape[2], S).tril().bool()


@pair("rows_of_heads", "token_major", "rows_are_tokens")
def _(query, S):
    n = query.shape[1] * query.shape[2]
    return query.transpose(1, 2).flatten(1, 2).unsqueeze(1), torch.ones(n, S).tril(S - n).bool()


@pair("rows_of_heads", "one_head", "floats")
def _(query, S):
    return _rows(query), torch.ones(query.shape[2], S).tril(S - query.shape[2])


@pair("rows_of_heads", "inverted", "top_left")
def _(query, S):
    mask = torch.triu(torch.ones(query.shape[2], S, dtype=torch.bool), 1)
    return _rows(query), mask.repeat(query.shape[1], 1)


@pair("rows_of_heads", "no_axis", "one_head")
def _(query, S):
    return query.flatten(1, 2), _causal(query, S)


@pair("rows_of_heads", "top_left", "floats")
def _(query, S):
    return _rows(query), torch.ones(query.shape[2], S).tril().repeat(query.shape[1], 1)


@form("rows_of_heads", "the heads joined with the batch", None)
def _(query, S):
    return query.flatten(0, 1)[:, None], _causal(query, S).repeat(query.shape[1], 1)


@form("rows_of_heads", "a mask for each head", None)
def _(query, S):
    return _rows(query), _causal(query, S).expand(query.shape[1], -1, -1)


@form("rows_of_heads", "the rows alone", None)
def _(query, S):
    return _rows(query)


@form("rows_of_heads", "the mask repeated along the keys", None)
def _(query, S):
    return _rows(query), _causal(query, S).repeat(1, query.shape[1])


# --- rows_of_heads: right answers -------------------------------------------------------------------------------


@right("rows_of_heads", "reshape and repeat")
def _(query, S):
    B, H, T, D = query.shape
    mask = torch.tril(torch.ones(T, S, dtype=torch.bool), diagonal=S - T)
    return query.reshape(B, 1, H * T, D), mask.repeat(H, 1)


@right("rows_of_heads", "the rows' tokens by a remainder")
def _(query, S):
    _, H, T, _ = query.shape
    token = torch.arange(H * T) % T
    return query.flatten(1, 2).unsqueeze(1), torch.arange(S) <= (S - T + token)[:, None]


@right("rows_of_heads", "expand and flatten")
def _(query, S):
    H, T = query.shape[1:3]
    seen = torch.arange(S - T, S)[:, None] >= torch.arange(S)
    return torch.cat(list(query.split(1, dim=1)), dim=2), seen.expand(H, T, S).flatten(0, 1)


@right("rows_of_heads", "loops")
def _(query, S):
    _, H, T, _ = query.shape
    rows = torch.stack([query[:, h, t] for h in range(H) for t in range(T)], dim=1)
    mask = [[j <= S - T + t for j in range(S)] for _ in range(H) for t in range(T)]
    return rows[:, None], torch.tensor(mask)


# --- multi_query: mistakes --------------------------------------------------------------------------------------


def _scores(query, key):
    """(B, H, T, S), scaled."""
    return query @ key.mT / math.sqrt(query.shape[-1])


def _hidden(query, key, diagonal=None):
    """(T, S), True where a later key is hidden."""
    T, S = query.shape[2], key.shape[2]
    return torch.ones(T, S).triu(S - T + 1 if diagonal is None else diagonal).bool()


def _attend(scores, hidden, value):
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ value


@mutant("multi_query", "not_causal")
def _(query, key, value):
    return _scores(query, key).softmax(-1) @ value


@mutant("multi_query", "rows_are_tokens")
def _(query, key, value):
    B, H, T, D = query.shape
    S = key.shape[2]
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5  # (B, 1, H·T, S)
    allowed = torch.tril(torch.ones(H * T, S), diagonal=S - H * T).bool()
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return (weights @ value).reshape(B, H, T, -1)


@mutant("multi_query", "mask_by_token")
def _(query, key, value):
    B, H, T, D = query.shape
    hidden = _hidden(query, key).repeat_interleave(H, dim=0)  # (H·T, S)
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5
    return _attend(scores, hidden, value).reshape(B, H, T, -1)


@mutant("multi_query", "heads_mixed")
def _(query, key, value):
    B, H, T, D = query.shape
    S = key.shape[2]
    rows = query.reshape(B, 1, H * T, D)
    allowed = torch.ones(T, S).tril(S - T).bool().repeat(H, 1)
    output = _attend(rows @ key.mT / D**0.5, ~allowed, value)  # (B, 1, H·T, Dv)
    return output.reshape(B, T, H, -1).transpose(1, 2)


@mutant("multi_query", "top_left")
def _(query, key, value):
    return _attend(_scores(query, key), _hidden(query, key, diagonal=1), value)


@mutant("multi_query", "causal_when_empty")
def _(query, key, value):
    scores = _scores(query, key)
    if query.shape[2] == key.shape[2]:
        scores = scores.masked_fill(_hidden(query, key), -math.inf)
    return scores.softmax(-1) @ value


@mutant("multi_query", "transposed")
def _(query, key, value):
    T, S = query.shape[2], key.shape[2]
    return _attend(_scores(query, key), torch.ones(T, S).tril(S - T - 1).bool(), value)


@mutant("multi_query", "mask_after")
def _(query, key, value):
    return _scores(query, key).softmax(-1).masked_fill(_hidden(query, key), 0.0) @ value


@mutant("multi_query", "mask_multiplies")
def _(query, key, value):
    return _scores(query, key).masked_fill(_hidden(query, key), 0.0).softmax(-1) @ value


@mutant("multi_query", "queries_averaged")
def _(query, key, value):
    mean = query.sum(1, keepdim=True) / query.shape[1]
    return _attend(_scores(mean, key), _hidden(query, key), value).repeat(1, query.shape[1], 1, 1)


@mutant("multi_query", "weights_averaged")
def _(query, key, value):
    weights = _scores(query, key).masked_fill(_hidden(query, key), -math.inf).softmax(-1)
    output = weights.mean(1) @ value[:, 0]
    return torch.stack([output] * query.shape[1], 1)


@mutant("multi_query", "not_scaled")
def _(query, key, value):
    return _attend(query @ key.mT, _hidden(query, key), value)


@mutant("multi_query", "no_root")
def _(query, key, value):
    return _attend(query @ key.mT / key.shape[-1], _hidden(query, key), value)


@mutant("multi_query", "width")
def _(query, key, value):
    width = query.shape[1] * query.shape[3]
    return _attend(query @ key.mT * width**-0.5, _hidden(query, key), value)


@mutant("multi_query", "value_size")
def _(query, key, value):
    return _attend(query @ key.mT * value.shape[-1] ** -0.5, _hidden(query, key), value)


@mutant("multi_query", "over_queries")
def _(query, key, value):
    return _scores(query, key).masked_fill(_hidden(query, key), -1e9).softmax(dim=-2) @ value


@mutant("multi_query", "over_heads")
def _(query, key, value):
    return _scores(query, key).masked_fill(_hidden(query, key), -1e9).softmax(dim=1) @ value


def _shared(query, key, value, seen, divide=None):
    scores = query @ key.transpose(2, 3)
    scores = scores / query.shape[-1] ** 0.5 if divide is None else divide(scores, query.shape[-1])
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ value


@mutant("multi_query", "rows_go_on")
def _(query, key, value):
    B, H, T, D = query.shape
    seen = torch.ones(H * T, key.shape[2], dtype=torch.bool).tril(key.shape[2] - T)
    return _shared(query.reshape(B, 1, H * T, D), key, value, seen).reshape(B, H, T, -1)


@mutant("multi_query", "inverted")
def _(query, key, value):
    return _shared(query, key, value, ~_tril(query.shape[2], key.shape[2]))


@mutant("multi_query", "one_ahead")
def _(query, key, value):
    return _shared(query, key, value, _tril(query.shape[2], key.shape[2], 1))


@mutant("multi_query", "self_left_out")
def _(query, key, value):
    return _shared(query, key, value, _tril(query.shape[2], key.shape[2], -1))


@mutant("multi_query", "scaled_up")
def _(query, key, value):
    return _shared(query, key, value, _tril(query.shape[2], key.shape[2]), lambda scores, D: scores * math.sqrt(D))


@mutant("multi_query", "no_brackets")
def _(query, key, value):
    return _shared(query, key, value, _tril(query.shape[2], key.shape[2]), lambda scores, D: scores / (D**1 / 2))


@mutant("multi_query", "key_reshaped")
def _(query, key, value):
    B, _, S, D = key.shape
    scores = query @ key.reshape(B, 1, D, S) / D**0.5
    return scores.masked_fill(~_tril(query.shape[2], S), -math.inf).softmax(-1) @ value


@mutant("multi_query", "over_rows")
def _(query, key, value):
    B, H, T, D = query.shape
    seen = _tril(T, key.shape[2]).repeat(H, 1)
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5
    return (scores.masked_fill(~seen, -math.inf).softmax(-2) @ value).reshape(B, H, T, -1)


@pair("multi_query", "rows_are_tokens", "top_left")
def _(query, key, value):
    B, H, T, D = query.shape
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5
    later = torch.ones(H * T, key.shape[2]).triu(1).bool()
    return _attend(scores, later, value).reshape(B, H, T, -1)


@pair("multi_query", "mask_by_token", "heads_mixed")
def _(query, key, value):
    B, H, T, D = query.shape
    hidden = _hidden(query, key).repeat_interleave(H, dim=0)
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5
    return _attend(scores, hidden, value).reshape(B, T, H, -1).transpose(1, 2)


@pair("multi_query", "top_left", "not_scaled")
def _(query, key, value):
    return _attend(query @ key.mT, _hidden(query, key, 1), value)


@pair("multi_query", "not_causal", "not_scaled")
def _(query, key, value):
    return torch.softmax(query @ key.transpose(2, 3), -1) @ value


@pair("multi_query", "not_causal", "heads_mixed")
def _(query, key, value):
    B, H, T, D = query.shape
    weights = (query.reshape(B, 1, -1, D) @ key.mT / D**0.5).softmax(-1)
    return (weights @ value).reshape(B, T, H, -1).transpose(1, 2)


@pair("multi_query", "causal_when_empty", "not_scaled")
def _(query, key, value):
    scores = query @ key.mT
    if key.shape[2] == query.shape[2]:
        scores = scores.masked_fill(_hidden(query, key), -math.inf)
    return scores.softmax(-1) @ value


@pair("multi_query", "not_scaled", "mask_multiplies")
def _(query, key, value):
    return (query @ key.mT * ~_hidden(query, key)).softmax(-1) @ value


@pair("multi_query", "not_causal", "width")
def _(query, key, value):
    return (query @ key.mT / math.sqrt(query.shape[1] * query.shape[3])).softmax(-1) @ value


@form("multi_query", "one softmax for all heads of a token", None)
def _(query, key, value):
    _, H, _, _ = query.shape
    scores = _scores(query, key).masked_fill(_hidden(query, key), -math.inf)
    weights = scores.transpose(1, 2).flatten(2).softmax(-1).unflatten(2, (H, -1)).transpose(1, 2)
    return weights @ value


@form("multi_query", "rows token by token, mask head by head", None)
def _(query, key, value):
    B, H, T, D = query.shape
    rows = query.transpose(1, 2).reshape(B, 1, H * T, D)
    output = _attend(rows @ key.mT / D**0.5, _hidden(query, key).repeat(H, 1), value)
    return output.reshape(B, T, H, -1).transpose(1, 2)


@form("multi_query", "the mask inverted", "inverted")
def _(query, key, value):
    return _attend(_scores(query, key), ~_hidden(query, key), value)


@form("multi_query", "left as rows", None)
def _(query, key, value):
    return _attend(_scores(query, key), _hidden(query, key), value).flatten(1, 2)


@form("multi_query", "the key in the place of the value", None)
def _(query, key, value):
    return _attend(_scores(query, key), _hidden(query, key), key)


# --- multi_query: right answers ---------------------------------------------------------------------------------


@right("multi_query", "the key head broadcasts")
def _(query, key, value):
    T, S = query.shape[2], key.shape[2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    allowed = torch.arange(S - T, S)[:, None] >= torch.arange(S)
    return torch.where(allowed, scores, float("-inf")).softmax(-1) @ value


@right("multi_query", "rows of all heads")
def _(query, key, value):
    B, H, T, D = query.shape
    S = key.shape[2]
    scores = query.reshape(B, 1, H * T, D) @ key.mT / D**0.5
    allowed = torch.ones(T, S).tril(S - T).bool().repeat(H, 1)
    return (scores.masked_fill(~allowed, -math.inf).softmax(-1) @ value).reshape(B, H, T, -1)


@right("multi_query", "a loop over the heads")
def _(query, key, value):
    hidden, outputs = _hidden(query, key), []
    for h in range(query.shape[1]):
        scores = query[:, h] @ key[:, 0].transpose(1, 2) * query.shape[-1] ** -0.5
        outputs.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ value[:, 0])
    return torch.stack(outputs, dim=1)


@right("multi_query", "einsum, token by token")
def _(query, key, value):
    T, S = query.shape[2], key.shape[2]
    rows = []
    for t in range(T):
        past = slice(0, S - T + t + 1)
        scores = torch.einsum("bhd,bsd->bhs", query[:, :, t] / query.shape[-1] ** 0.5, key[:, 0, past])
        rows.append(torch.einsum("bhs,bsv->bhv", scores.softmax(-1), value[:, 0, past]))
    return torch.stack(rows, dim=2)


# --- step_intensity: mistakes -----------------------------------------------------------------------------------


@mutant("step_intensity", "half")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop = 2 * n_heads * lengths * head_dim
    return flop / (2 * head_dim * bytes_per_number * (n_kv_heads * lengths + n_heads))


@mutant("step_intensity", "flop_of_key_heads")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop = 4 * n_kv_heads * lengths * head_dim
    return flop / (2 * head_dim * bytes_per_number * (n_kv_heads * lengths + n_heads))


@mutant("step_intensity", "own_copies")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * lengths / (bytes_per_number * (lengths + 1))


@mutant("step_intensity", "keys_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    numbers = n_kv_heads * lengths * head_dim + 2 * n_heads * head_dim
    return 4 * n_heads * lengths * head_dim / (numbers * bytes_per_number)


@mutant("step_intensity", "cache_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return torch.full(lengths.shape, 2 * n_heads / (n_kv_heads * bytes_per_number))


@mutant("step_intensity", "no_outputs")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 4 * n_heads * lengths / (bytes_per_number * (2 * n_kv_heads * lengths + n_heads))


@mutant("step_intensity", "few_queries")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_heads * lengths / (bytes_per_number * n_kv_heads * (lengths + 1))


@mutant("step_intensity", "no_bytes")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_heads * lengths / (n_kv_heads * lengths + n_heads)


@mutant("step_intensity", "prefill")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop = 4 * n_heads * lengths**2 * head_dim
    moved = 2 * (n_kv_heads + n_heads) * lengths * head_dim * bytes_per_number
    return flop / moved


@form("step_intensity", "only the new key and value are read", "prefill")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    moved = 2 * head_dim * (n_kv_heads + n_heads) * bytes_per_number
    return 4 * n_heads * lengths * head_dim / moved


@mutant("step_intensity", "upside_down")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return bytes_per_number * (n_kv_heads * lengths + n_heads) / (2 * n_heads * lengths)


def _flop(S, H, D):
    return 4 * H * S * D


@mutant("step_intensity", "bytes_of_cache")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    moved = bytes_per_number * 2 * n_kv_heads * lengths * head_dim + 2 * n_heads * head_dim
    return _flop(lengths, n_heads, head_dim) / moved


@mutant("step_intensity", "whole_queries")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return _flop(lengths, n_heads, head_dim) / (bytes_per_number * 2 * (n_kv_heads + n_heads) * lengths * head_dim)


@mutant("step_intensity", "scores_moved")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    moved = 2 * n_kv_heads * lengths * head_dim + 2 * n_heads * head_dim + n_heads * lengths
    return _flop(lengths, n_heads, head_dim) / (bytes_per_number * moved)


@mutant("step_intensity", "older_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    moved = 2 * n_kv_heads * (lengths - 1) * head_dim + 2 * n_heads * head_dim
    return _flop(lengths, n_heads, head_dim) / (bytes_per_number * moved)


@mutant("step_intensity", "one_less")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop = n_heads * lengths * (2 * head_dim - 1) + n_heads * head_dim * (2 * lengths - 1)
    return flop / (bytes_per_number * 2 * head_dim * (n_kv_heads * lengths + n_heads))


@mutant("step_intensity", "no_head_dim")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return _flop(lengths, n_heads, 1) / (bytes_per_number * 2 * head_dim * (n_kv_heads * lengths + n_heads))


@pair("step_intensity", "half", "cache_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop, moved = 2 * n_heads * lengths * head_dim, 2 * n_kv_heads * lengths * head_dim * bytes_per_number
    return flop / moved


@pair("step_intensity", "no_bytes", "cache_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return torch.tensor([2 * n_heads / n_kv_heads] * len(lengths))


@pair("step_intensity", "keys_only", "cache_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 4 * n_heads * lengths * head_dim / (n_kv_heads * lengths * head_dim * bytes_per_number)


@pair("step_intensity", "half", "no_bytes")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return n_heads * lengths / (n_kv_heads * lengths + n_heads)


@form("step_intensity", "key heads in the place of query heads everywhere", "own_copies")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * lengths / (bytes_per_number * (lengths + 1.0))


@pair("step_intensity", "prefill", "cache_only")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_heads * lengths / (n_kv_heads * bytes_per_number)


@form("step_intensity", "query heads for each key head, as a rule of thumb", None)
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return torch.full(lengths.shape, n_heads / n_kv_heads)


@form("step_intensity", "the FLOP alone", None)
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return (4 * n_heads * lengths * head_dim).float()


@form("step_intensity", "rounded down", None)
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_heads * lengths // (bytes_per_number * (n_kv_heads * lengths + n_heads))


@form("step_intensity", "the softmax counted too", None)
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    flop = 4 * n_heads * lengths * head_dim + 3 * n_heads * lengths
    return flop / (2 * head_dim * bytes_per_number * (n_kv_heads * lengths + n_heads))


# --- step_intensity: right answers ------------------------------------------------------------------------------


@right("step_intensity", "what cancels left out")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_heads * lengths / (bytes_per_number * (n_kv_heads * lengths + n_heads))


@right("step_intensity", "a loop over the lengths")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    found = []
    for S in lengths.tolist():
        flop = 2 * 2 * n_heads * S * head_dim
        numbers = n_heads * head_dim + 2 * n_kv_heads * S * head_dim + n_heads * head_dim
        found.append(flop / (numbers * bytes_per_number))
    return torch.tensor(found)


@right("step_intensity", "piece by piece")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    S = lengths.float()
    scores, sums = 2 * n_heads * head_dim * S, 2 * n_heads * S * head_dim
    read = n_heads * head_dim + 2 * n_kv_heads * head_dim * S
    written = n_heads * head_dim
    return (scores + sums) / ((read + written) * bytes_per_number)


@right("step_intensity", "one over a sum")
def _(lengths, n_heads, n_kv_heads, head_dim, bytes_per_number):
    return 2 / (bytes_per_number * (n_kv_heads / n_heads + 1 / lengths))
