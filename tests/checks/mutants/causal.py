"""Chapter 05 as learners write it: every misconception a second time, two mistakes at once, right answers, tests.

Nothing here uses the `faulty` switches of attncourse/checks/causal.py: the styles differ on purpose (loops, triu, tril,
comparisons), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("causal")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test

# --- look_back_mask: mistakes -----------------------------------------------------------------------------------


@mutant("look_back_mask", "top_left")
def _(T, S):
    return torch.tril(torch.ones(T, S)).bool()


@mutant("look_back_mask", "transposed")
def _(T, S):
    return torch.triu(torch.ones(T, S, dtype=torch.bool), diagonal=S - T)


@mutant("look_back_mask", "no_diagonal")
def _(T, S):
    return torch.arange(S) < torch.arange(S - T, S).unsqueeze(1)


@mutant("look_back_mask", "one_too_far")
def _(T, S):
    return torch.ones(T, S).tril(diagonal=S - T + 1) == 1


@mutant("look_back_mask", "inverted")
def _(T, S):
    return torch.triu(torch.ones(T, S), diagonal=S - T + 1) > 0


@mutant("look_back_mask", "last_only")
def _(T, S):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        mask[i, S - T + i] = True
    return mask


@mutant("look_back_mask", "square")
def _(T, S):
    positions = torch.arange(T)
    return positions[:, None] >= positions[None, :]


@mutant("look_back_mask", "floats")
def _(T, S):
    return torch.tril(torch.ones(T, S), diagonal=S - T)


@mutant("look_back_mask", "additive")
def _(T, S):
    return torch.full((T, S), -math.inf).triu(S - T + 1)


@pair("look_back_mask", "top_left", "inverted")
def _(T, S):
    return torch.triu(torch.ones(T, S), diagonal=1).bool()


@pair("look_back_mask", "top_left", "transposed")
def _(T, S):
    return torch.triu(torch.ones(T, S)).bool()


@pair("look_back_mask", "top_left", "floats")
def _(T, S):
    return torch.tril(torch.ones(T, S))


@pair("look_back_mask", "top_left", "additive")
def _(T, S):
    return torch.triu(torch.ones(T, S) * float("-inf"), diagonal=1)


@pair("look_back_mask", "inverted", "floats")
def _(T, S):
    return torch.triu(torch.ones(T, S), diagonal=S - T + 1)


@pair("look_back_mask", "no_diagonal", "floats")
def _(T, S):
    return torch.tril(torch.ones(T, S), diagonal=S - T - 1)


@form("look_back_mask", "integers", None)
def _(T, S):
    return torch.tril(torch.ones(T, S, dtype=torch.long), diagonal=S - T)


@form("look_back_mask", "with a batch and a head axis", None)
def _(T, S):
    return torch.ones(1, 1, T, S).tril(S - T).bool()


@form("look_back_mask", "all True", None)
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool)


@form("look_back_mask", "one row too few, the last query left out", None)
def _(T, S):
    return torch.ones(S, S).tril()[S - T : -1].bool()


@form("look_back_mask", "the first T rows of the square one", "top_left")
def _(T, S):
    return torch.ones(S, S).tril()[:T].bool()


@form("look_back_mask", "queries counted from T - S", None)
def _(T, S):
    return torch.arange(S) <= torch.arange(T)[:, None] - (S - T)


# --- look_back_mask: right answers ------------------------------------------------------------------------------


@right("look_back_mask", "tril with a diagonal")
def _(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(diagonal=S - T)


@right("look_back_mask", "loops")
def _(T, S):
    return torch.tensor([[j <= S - T + i for j in range(S)] for i in range(T)])


@right("look_back_mask", "the last rows of the square one")
def _(T, S):
    return torch.tril(torch.ones(S, S))[-T:].bool()


@right("look_back_mask", "not triu")
def _(T, S):
    return torch.logical_not(torch.triu(torch.ones(T, S), diagonal=1 + S - T))


@right("look_back_mask", "all of the past, then a triangle")
def _(T, S):
    past, triangle = torch.ones(T, S - T), torch.tril(torch.ones(T, T))
    return torch.cat([past, triangle], dim=1) != 0


# --- look_back_attention: mistakes ------------------------------------------------------------------------------


def _scores(query, key):
    return torch.bmm(query, key.transpose(1, 2)) / math.sqrt(query.size(-1))


def _past(scores, diagonal=0):
    """1 where the key is not after the query, and 0 elsewhere."""
    T, S = scores.shape[-2:]
    return torch.tril(torch.ones(T, S), diagonal=S - T + diagonal)


def _hidden(scores, mask):
    """Weights among the keys where mask is not 0."""
    return F.softmax(scores.masked_fill(mask == 0, -math.inf), dim=-1)


@mutant("look_back_attention", "not_causal")
def _(query, key, value):
    return F.softmax(_scores(query, key), dim=-1) @ value


@mutant("look_back_attention", "mask_after")
def _(query, key, value):
    weights = torch.tril(F.softmax(_scores(query, key), dim=-1), diagonal=key.shape[1] - query.shape[1])
    return torch.bmm(weights, value)


@mutant("look_back_attention", "mask_multiplies")
def _(query, key, value):
    scores = _scores(query, key)
    return F.softmax(torch.tril(scores, scores.shape[2] - scores.shape[1]), dim=-1) @ value


@mutant("look_back_attention", "transposed")
def _(query, key, value):
    scores = _scores(query, key)
    T, S = scores.shape[1:]
    return _hidden(scores, torch.triu(torch.ones(T, S), diagonal=S - T)) @ value


@mutant("look_back_attention", "one_too_far")
def _(query, key, value):
    scores = _scores(query, key)
    return _hidden(scores, _past(scores, 1)) @ value


@mutant("look_back_attention", "over_queries")
def _(query, key, value):
    scores = _scores(query, key)
    scores = scores.masked_fill(_past(scores) == 0, -torch.inf)
    exponentials = torch.exp(scores)
    return exponentials / exponentials.sum(dim=1, keepdim=True) @ value


@mutant("look_back_attention", "no_diagonal")
def _(query, key, value):
    scores = _scores(query, key)
    return _hidden(scores, _past(scores, -1)) @ value


@mutant("look_back_attention", "top_left")
def _(query, key, value):
    scores = _scores(query, key)
    return _hidden(scores, torch.tril(torch.ones(scores.shape[1:]))) @ value


@mutant("look_back_attention", "recent_only")
def _(query, key, value):
    T, S = query.shape[1], key.shape[1]
    rows = []
    for i in range(T):
        newest = S - T + i
        seen = slice(max(0, newest - 2), newest + 1)
        weights = F.softmax(query[:, i : i + 1] @ key[:, seen].mT / math.sqrt(query.shape[2]), dim=-1)
        rows.append(weights @ value[:, seen])
    return torch.cat(rows, dim=1)


@mutant("look_back_attention", "inverted")
def _(query, key, value):
    scores = _scores(query, key)
    return F.softmax(scores.masked_fill(_past(scores).bool(), -math.inf), dim=-1) @ value


@mutant("look_back_attention", "mask_added")
def _(query, key, value):
    scores = _scores(query, key)
    return torch.softmax(scores + _past(scores), dim=-1) @ value


@mutant("look_back_attention", "not_scaled")
def _(query, key, value):
    scores = torch.einsum("btd,bsd->bts", query, key)
    return torch.einsum("bts,bsv->btv", _hidden(scores, _past(scores)), value)


@pair("look_back_attention", "not_causal", "not_scaled")
def _(query, key, value):
    return torch.softmax(query @ key.mT, -1) @ value


@pair("look_back_attention", "top_left", "not_scaled")
def _(query, key, value):
    scores = query @ key.mT
    return _hidden(scores, torch.tril(torch.ones_like(scores))) @ value


@pair("look_back_attention", "top_left", "mask_after")
def _(query, key, value):
    return torch.tril(torch.softmax(_scores(query, key), -1)) @ value


@pair("look_back_attention", "top_left", "mask_multiplies")
def _(query, key, value):
    return torch.softmax(torch.tril(_scores(query, key)), -1) @ value


@pair("look_back_attention", "recent_only", "not_scaled")
def _(query, key, value):
    scores = query @ key.mT
    return _hidden(scores, _past(scores) - _past(scores, -3)) @ value


@pair("look_back_attention", "mask_after", "not_scaled")
def _(query, key, value):
    weights = torch.softmax(query @ key.mT, -1)
    return weights * _past(weights) @ value


@pair("look_back_attention", "inverted", "not_scaled")
def _(query, key, value):
    scores = query @ key.mT
    return torch.softmax(torch.where(_past(scores) == 1, -math.inf, scores), -1) @ value


@pair("look_back_attention", "one_too_far", "not_scaled")
def _(query, key, value):
    scores = query @ key.mT
    return _hidden(scores, _past(scores, 1)) @ value


@form("look_back_attention", "filled with 1e-9 instead of -1e9", "mask_multiplies")
def _(query, key, value):
    scores = _scores(query, key)
    return torch.softmax(scores.masked_fill(_past(scores) == 0, 1e-9), -1) @ value


@form("look_back_attention", "filled with 0", "mask_multiplies")
def _(query, key, value):
    scores = _scores(query, key)
    return torch.softmax(scores.masked_fill(_past(scores) == 0, 0.0), -1) @ value


@form("look_back_attention", "the later values set to zero, not their weights", None)
def _(query, key, value):
    return torch.softmax(_scores(query, key), -1) @ (value * _past(_scores(query, key))[-1, :, None])


@form("look_back_attention", "itself left out, -1e9 instead of -inf", None)
def _(query, key, value):
    scores = _scores(query, key)
    return torch.softmax(scores.masked_fill(_past(scores, -1) == 0, -1e9), -1) @ value


@form("look_back_attention", "divided by D", None)
def _(query, key, value):
    scores = query @ key.mT / query.shape[-1]
    return _hidden(scores, _past(scores)) @ value


@form("look_back_attention", "the weights instead of the output", None)
def _(query, key, value):
    scores = _scores(query, key)
    return _hidden(scores, _past(scores))


@form("look_back_attention", "is_causal of the fused kernel", None)
def _(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


@form("look_back_attention", "scaled before the softmax and after it", None)
def _(query, key, value):
    scores = _scores(query, key)
    return _hidden(scores, _past(scores)) @ value / math.sqrt(query.shape[-1])


# --- look_back_attention: right answers -------------------------------------------------------------------------


@right("look_back_attention", "loops, the keys cut")
def _(query, key, value):
    B, T, D = query.shape
    S = key.shape[1]
    rows = []
    for b in range(B):
        for i in range(T):
            n = S - T + i + 1
            weights = F.softmax(key[b, :n] @ query[b, i] / D**0.5, dim=0)
            rows.append((weights[:, None] * value[b, :n]).sum(0))
    return torch.stack(rows).reshape(B, T, value.shape[2])


@right("look_back_attention", "masked after the softmax, normalised again")
def _(query, key, value):
    weights = torch.softmax(_scores(query, key), -1)
    weights = weights * _past(weights).to(weights.dtype)
    return weights / weights.sum(-1, keepdim=True) @ value


@right("look_back_attention", "a mask of -inf, added")
def _(query, key, value):
    scores = torch.einsum("btd,bsd->bts", query / query.shape[-1] ** 0.5, key)
    T, S = scores.shape[1:]
    return torch.einsum("bts,bsv->btv", F.softmax(scores + torch.full((T, S), -math.inf).triu(S - T + 1), -1), value)


@right("look_back_attention", "exponentials, cumulative where T = S")
def _(query, key, value):
    exponentials = torch.exp(_scores(query, key))
    T, S = exponentials.shape[1:]
    allowed = torch.arange(S) <= torch.arange(T)[:, None] + (S - T)
    total = torch.stack([exponentials[:, i, : S - T + i + 1].sum(-1) for i in range(T)], dim=1)
    return (exponentials * allowed) @ value / total[..., None]


@right("look_back_attention", "filled with -1e9")
def _(query, key, value):
    scores = _scores(query, key)
    return F.softmax(scores.masked_fill(_past(scores) == 0, -1e9), dim=-1) @ value


# --- shifted_loss: mistakes -------------------------------------------------------------------------------------


def _each(predicted, wanted):
    """Cross-entropies (B, n) of logits (B, n, V) and tokens (B, n)."""
    return F.cross_entropy(predicted.transpose(1, 2), wanted, reduction="none")


@mutant("shifted_loss", "not_shifted")
def _(logits, tokens):
    return _each(logits, tokens).mean(-1)


@mutant("shifted_loss", "first_left_out")
def _(logits, tokens):
    return torch.stack([F.cross_entropy(row[1:], t[1:]) for row, t in zip(logits, tokens, strict=True)])


@mutant("shifted_loss", "backwards")
def _(logits, tokens):
    return _each(logits[:, 1:], tokens[:, :-1]).mean(-1)


@mutant("shifted_loss", "wraps_around")
def _(logits, tokens):
    wanted = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    return _each(logits, wanted).mean(1)


@mutant("shifted_loss", "shifted_twice")
def _(logits, tokens):
    logits, tokens = logits[:, :-1], tokens[:, 1:]
    return _each(logits[:, :-1], tokens[:, 1:]).mean(-1)


@mutant("shifted_loss", "reshaped")
def _(logits, tokens):
    B, T, V = logits.shape
    return F.cross_entropy(logits[:, :-1].reshape(B, V, T - 1), tokens[:, 1:], reduction="none").mean(1)


@mutant("shifted_loss", "over_places")
def _(logits, tokens):
    shifted = logits[:, :-1]
    logs = shifted - shifted.logsumexp(dim=1, keepdim=True)
    return -torch.take_along_dim(logs, tokens[:, 1:].unsqueeze(-1), dim=2).mean((1, 2))


@mutant("shifted_loss", "softmax_twice")
def _(logits, tokens):
    return _each(F.softmax(logits, dim=-1)[:, :-1], tokens[:, 1:]).mean(-1)


@mutant("shifted_loss", "no_log")
def _(logits, tokens):
    shares = F.softmax(logits[:, :-1], dim=-1)
    return -shares.gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2).mean(1)


@mutant("shifted_loss", "sign_forgotten")
def _(logits, tokens):
    logs = F.log_softmax(logits, dim=-1)
    return torch.stack([sum(row[i, t[i + 1]] for i in range(len(t) - 1)) / (len(t) - 1)
                        for row, t in zip(logs, tokens, strict=True)])  # fmt: skip


@mutant("shifted_loss", "bits")
def _(logits, tokens):
    return _each(logits[:, :-1], tokens[:, 1:]).mean(-1) / math.log(2)


@mutant("shifted_loss", "summed")
def _(logits, tokens):
    return _each(logits[:, :-1], tokens[:, 1:]).sum(-1)


@mutant("shifted_loss", "divided_by_T")
def _(logits, tokens):
    losses = [F.cross_entropy(row[:-1], t[1:], reduction="sum") / len(t) for row, t in zip(logits, tokens, strict=True)]
    return torch.stack(losses)


@mutant("shifted_loss", "last_only")
def _(logits, tokens):
    return F.cross_entropy(logits[:, -2], tokens[:, -1], reduction="none")


@mutant("shifted_loss", "one_number")
def _(logits, tokens):
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


@pair("shifted_loss", "not_shifted", "one_number")
def _(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@pair("shifted_loss", "not_shifted", "summed")
def _(logits, tokens):
    return _each(logits, tokens).sum(1)


@pair("shifted_loss", "sign_forgotten", "no_log")
def _(logits, tokens):
    return torch.softmax(logits, -1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(-1)


@pair("shifted_loss", "softmax_twice", "one_number")
def _(logits, tokens):
    shares = torch.softmax(logits[:, :-1], dim=-1)
    return F.cross_entropy(shares.flatten(0, 1), tokens[:, 1:].flatten())


@pair("shifted_loss", "reshaped", "one_number")
def _(logits, tokens):
    B, T, V = logits.shape
    return F.cross_entropy(logits[:, :-1].reshape(B, V, T - 1), tokens[:, 1:])


@pair("shifted_loss", "backwards", "summed")
def _(logits, tokens):
    return _each(logits[:, 1:], tokens[:, :-1]).sum(-1)


@form("shifted_loss", "perplexity", None)
def _(logits, tokens):
    return _each(logits[:, :-1], tokens[:, 1:]).mean(-1).exp()


@form("shifted_loss", "one loss for each prediction", None)
def _(logits, tokens):
    return _each(logits[:, :-1], tokens[:, 1:])


@form("shifted_loss", "the logits themselves, without a softmax", None)
def _(logits, tokens):
    return -logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(-1)


@form("shifted_loss", "the softmax over time, the last logits included", None)
def _(logits, tokens):
    return -logits.log_softmax(1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(-1)


@form("shifted_loss", "log_softmax, then cross_entropy", None)
def _(logits, tokens):
    return -_each(logits.log_softmax(-1)[:, :-1], tokens[:, 1:]).mean(-1)


@form("shifted_loss", "the first prediction left out too", None)
def _(logits, tokens):
    return _each(logits[:, 1:-1], tokens[:, 2:]).mean(-1)


# --- shifted_loss: right answers --------------------------------------------------------------------------------


@right("shifted_loss", "cross_entropy on a transposed tensor")
def _(logits, tokens):
    return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none").mean(-1)


@right("shifted_loss", "cross_entropy on flat tensors, put back in rows")
def _(logits, tokens):
    B, T, V = logits.shape
    losses = F.cross_entropy(logits[:, :-1].reshape(-1, V), tokens[:, 1:].reshape(-1), reduction="none")
    return losses.view(B, T - 1).sum(dim=1) / (T - 1)


@right("shifted_loss", "one sequence at a time")
def _(logits, tokens):
    return torch.stack([F.cross_entropy(row[:-1], t[1:]) for row, t in zip(logits, tokens, strict=True)])


@right("shifted_loss", "logsumexp minus the right logit, by one-hot")
def _(logits, tokens):
    predicted = logits[:, : tokens.shape[1] - 1]
    chosen = (predicted * F.one_hot(tokens[:, 1:], logits.shape[-1])).sum(-1)
    return (torch.logsumexp(predicted, -1) - chosen).mean(1)


@right("shifted_loss", "nll_loss, ignoring the last place")
def _(logits, tokens):
    wanted = torch.full_like(tokens, -100)
    wanted[:, :-1] = tokens[:, 1:]
    losses = F.nll_loss(F.log_softmax(logits, -1).mT, wanted, ignore_index=-100, reduction="none")
    return losses.sum(-1) / (tokens.shape[1] - 1)


# --- ragged_mask: mistakes --------------------------------------------------------------------------------------


def _triangle(T):
    return torch.tril(torch.ones(T, T)).bool()


def _real(lengths, T):
    """True at real tokens, (B, T): the last `length` places."""
    return torch.arange(T).flip(0) < lengths.unsqueeze(1)


@mutant("ragged_mask", "right_padded")
def _(lengths, T):
    return _triangle(T) & (torch.arange(T) < lengths[:, None])[:, None, :]


@mutant("ragged_mask", "length_is_padding")
def _(lengths, T):
    rows = [[[n <= j <= i for j in range(T)] for i in range(T)] for n in lengths.tolist()]
    return torch.tensor(rows)


@mutant("ragged_mask", "not_causal")
def _(lengths, T):
    return _real(lengths, T)[:, None].repeat(1, T, 1)


@mutant("ragged_mask", "future_seen")
def _(lengths, T):
    return torch.triu(torch.ones(T, T)).bool().logical_and(_real(lengths, T)[:, None])


@mutant("ragged_mask", "padding_ignored")
def _(lengths, T):
    return _triangle(T).expand(len(lengths), T, T)


@mutant("ragged_mask", "queries_hidden")
def _(lengths, T):
    return _triangle(T) & _real(lengths, T).unsqueeze(-1)


@mutant("ragged_mask", "no_query_axis")
def _(lengths, T):
    return torch.logical_and(_triangle(T), _real(lengths, T))


@mutant("ragged_mask", "either")
def _(lengths, T):
    return torch.logical_or(_triangle(T), _real(lengths, T)[:, None])


@mutant("ragged_mask", "one_pad_seen")
def _(lengths, T):
    return _triangle(T) & (torch.arange(T) >= (T - lengths - 1)[:, None])[:, None]


@mutant("ragged_mask", "first_hidden")
def _(lengths, T):
    return _triangle(T)[None] & (torch.arange(T)[None, None] > T - lengths[:, None, None])


@mutant("ragged_mask", "no_diagonal")
def _(lengths, T):
    mask = torch.zeros(len(lengths), T, T, dtype=torch.bool)
    for b, n in enumerate(lengths.tolist()):
        for i in range(T - n, T):
            mask[b, i, T - n : i] = True
    return mask


@mutant("ragged_mask", "padding_sees_itself")
def _(lengths, T):
    mask = _triangle(T) & _real(lengths, T)[:, None]
    mask[:, torch.arange(T), torch.arange(T)] = True
    return mask


@mutant("ragged_mask", "inverted")
def _(lengths, T):
    return torch.triu(torch.ones(T, T), diagonal=1).bool() | (torch.arange(T) < T - lengths[:, None])[:, None]


@pair("ragged_mask", "right_padded", "not_causal")
def _(lengths, T):
    return (torch.arange(T) < lengths[:, None])[:, None].expand(-1, T, -1)


@pair("ragged_mask", "queries_hidden", "right_padded")
def _(lengths, T):
    return _triangle(T) & (torch.arange(T) < lengths[:, None])[:, :, None]


@pair("ragged_mask", "inverted", "right_padded")
def _(lengths, T):
    return ~(_triangle(T) & (torch.arange(T) < lengths[:, None])[:, None])


@pair("ragged_mask", "not_causal", "queries_hidden")
def _(lengths, T):
    return _real(lengths, T)[:, :, None].expand(-1, -1, T)


@pair("ragged_mask", "length_is_padding", "not_causal")
def _(lengths, T):
    return (torch.arange(T) >= lengths[:, None])[:, None].repeat(1, T, 1)


@pair("ragged_mask", "either", "right_padded")
def _(lengths, T):
    return _triangle(T) | (torch.arange(T) < lengths[:, None])[:, None]


@form("ragged_mask", "with a head axis", None)
def _(lengths, T):
    return (_triangle(T) & _real(lengths, T)[:, None])[:, None]


@form("ragged_mask", "floats", None)
def _(lengths, T):
    return (_triangle(T) & _real(lengths, T)[:, None]).float()


@form("ragged_mask", "keys and queries both, with or", None)
def _(lengths, T):
    real = _real(lengths, T)
    return _triangle(T) & (real[:, None] | real[:, :, None])


@form("ragged_mask", "the batch axis lost: the longest for all", None)
def _(lengths, T):
    return (_triangle(T) & _real(lengths.amax()[None], T)[:, None]).expand(len(lengths), T, T)


@form("ragged_mask", "the triangle stands at the top left of the real part", None)
def _(lengths, T):
    shift = (T - lengths)[:, None, None]
    key, query = torch.arange(T), torch.arange(T)[:, None]
    return (key >= shift) & (key <= query + shift)


# --- ragged_mask: right answers ---------------------------------------------------------------------------------


@right("ragged_mask", "loops")
def _(lengths, T):
    return torch.tensor([[[T - n <= j <= i for j in range(T)] for i in range(T)] for n in lengths.tolist()])


@right("ragged_mask", "keys and queries both hidden")
def _(lengths, T):
    real = _real(lengths, T)
    return _triangle(T) & real[:, None] & real[:, :, None]


@right("ragged_mask", "a triangle of each length, put at the bottom right")
def _(lengths, T):
    mask = torch.zeros(len(lengths), T, T, dtype=torch.bool)
    for b, n in enumerate(lengths):
        mask[b, T - n :, T - n :] = torch.tril(torch.ones(n, n)) == 1
    return mask


@right("ragged_mask", "two limits on the key")
def _(lengths, T):
    key = torch.arange(T).expand(len(lengths), T, T)
    not_later = key <= torch.arange(T)[:, None]
    return torch.logical_and(not_later, key.ge((T - lengths).view(-1, 1, 1)))


# --- test_look_back: tests that get all points ------------------------------------------------------------------


def _given(B, T, S, D, Dv, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, D), (B, S, D), (B, S, Dv)
    return [torch.randn(shape, generator=generator) * spread for shape in shapes]


@good_test("test_look_back", "properties: nothing later matters, everything earlier does")
def _(candidate):
    for T, S in ((5, 5), (3, 7)):
        query, key, value = _given(2, T, S, 4, 6)
        before = candidate(query, key, value)
        for j in range(S):
            later_query, later_key, later_value = query.clone(), key.clone(), value.clone()
            later_key[:, j] += 1
            later_value[:, j] -= 2
            if j >= S - T:
                later_query[:, j - (S - T)] += 1
            moved = (candidate(later_query, later_key, later_value) - before).abs().amax((0, 2)) > 1e-5  # (T,)
            if not torch.equal(moved, torch.arange(S - T, S) >= j):
                return False
    return True


@good_test("test_look_back", "asserts, against loops")
def _(candidate):
    for B, T, S, D, Dv in ((2, 4, 4, 3, 5), (1, 2, 6, 4, 4)):
        query, key, value = _given(B, T, S, D, Dv, spread=2.0)
        output = candidate(query, key, value)
        assert output.shape == (B, T, Dv)
        for b in range(B):
            for i in range(T):
                n = S - T + i + 1
                weights = torch.softmax(key[b, :n] @ query[b, i] / math.sqrt(D), 0)
                assert torch.allclose(output[b, i], weights @ value[b, :n], atol=1e-4)


@good_test("test_look_back", "the fused kernel with a mask")
def _(candidate):
    given = _given(2, 3, 8, 4, 5)
    expected = F.scaled_dot_product_attention(*given, attn_mask=torch.ones(3, 8).tril(5).bool())
    return torch.allclose(candidate(*given), expected, atol=1e-4)


@good_test("test_look_back", "a sequence cut short gives the same, and the last query sees all")
def _(candidate):
    query, key, value = _given(2, 5, 9, 4, 3)
    whole = candidate(query, key, value)
    for n in range(1, 5):
        part = candidate(query[:, :n], key[:, : 4 + n], value[:, : 4 + n])
        if not torch.allclose(part, whole[:, :n], atol=1e-5):
            return False
    one = candidate(query[:, -1:], key, value)
    weights = torch.softmax(query[:, -1:] @ key.mT / 2, -1)
    return torch.allclose(one, weights @ value, atol=1e-5)


@good_test("test_look_back", "values that name their position")
def _(candidate):
    T, S = 4, 6
    query, key, _ = _given(1, T, S, 3, 1)
    weights = candidate(query, key, torch.eye(S)[None])[0]  # the output is then the weights
    seen = weights > 1e-6
    return torch.equal(seen, torch.ones(T, S).tril(S - T).bool()) and torch.allclose(weights.sum(-1), torch.ones(T))


# --- test_look_back: tests that let something through -----------------------------------------------------------

_ALL = (
    *("not_causal", "mask_after", "mask_multiplies", "transposed", "one_too_far", "over_queries", "no_diagonal"),
    "recent_only",
)


@lax_test("test_look_back", "accepts everything", *_ALL, "top_left")
def _(candidate):
    return True


@lax_test("test_look_back", "returns nothing", *_ALL, "top_left")
def _(candidate):
    candidate(*_given(1, 3, 3, 4, 4))


@lax_test("test_look_back", "the shape only", *_ALL, "top_left")
def _(candidate):
    assert candidate(*_given(2, 3, 5, 4, 6)).shape == (2, 3, 6)


@lax_test("test_look_back", "as many queries as keys, against a mask before the softmax", "top_left")
def _(candidate):
    query, key, value = _given(2, 5, 5, 4, 3)
    weights = (query @ key.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
    return torch.allclose(candidate(query, key, value), weights @ value, atol=1e-4)


@lax_test("test_look_back", "only the values of the future change", "mask_after", "over_queries", "no_diagonal",
          "recent_only", "top_left")  # fmt: skip
def _(candidate):
    query, key, value = _given(2, 5, 5, 4, 3)
    before = candidate(query, key, value)
    value[:, 3:] += 5
    return torch.equal(before[:, 1:3], candidate(query, key, value)[:, 1:3])


@lax_test("test_look_back", "keys and values of the future change, the queries do not", "over_queries", "no_diagonal",
          "recent_only", "top_left")  # fmt: skip
def _(candidate):
    query, key, value = _given(2, 5, 5, 4, 3)
    before = candidate(query, key, value)
    key[:, 3:], value[:, 3:] = 2 * key[:, 3:] + 1, value[:, 3:] + 5
    return torch.allclose(before[:, 1:3], candidate(query, key, value)[:, 1:3], atol=1e-5)


@lax_test("test_look_back", "all of the future changes, the future is two tokens on", "one_too_far", "no_diagonal",
          "recent_only", "top_left")  # fmt: skip
def _(candidate):
    query, key, value = _given(2, 6, 6, 4, 3)
    before = candidate(query, key, value)
    for tensor in (query, key, value):
        tensor[:, 4:] += 3
    return torch.allclose(before[:, 1:3], candidate(query, key, value)[:, 1:3], atol=1e-5)


@lax_test("test_look_back", "nothing later matters, T = S", "no_diagonal", "recent_only", "top_left")
def _(candidate):
    query, key, value = _given(2, 5, 5, 4, 3)
    before = candidate(query, key, value)
    for i in range(1, 4):
        later = [tensor.clone() for tensor in (query, key, value)]
        for tensor in later:
            tensor[:, i + 1 :] += 1
        if not torch.allclose(before[:, 1 : i + 1], candidate(*later)[:, 1 : i + 1], atol=1e-5):
            return False
    return True


@lax_test("test_look_back", "the first token gives its own value", "recent_only", "top_left")
def _(candidate):
    query, key, value = _given(3, 4, 4, 5, 2)
    return torch.allclose(candidate(query, key, value)[:, 0], value[:, 0], atol=1e-5)


@lax_test("test_look_back", "equal values give themselves back", "not_causal", "mask_multiplies", "transposed",
          "one_too_far", "recent_only", "top_left")  # fmt: skip
def _(candidate):
    query, key, _ = _given(2, 4, 4, 3, 1)
    return torch.allclose(candidate(query, key, torch.ones(2, 4, 3)), torch.ones(2, 4, 3), atol=1e-5)


# --- test_look_back: tests that reject what is right ------------------------------------------------------------


@strict_test("test_look_back", "accepts nothing")
def _(candidate):
    return False


@strict_test("test_look_back", "torch.equal")
def _(candidate):
    query, key, value = _given(2, 9, 9, 33, 40)
    weights = (query @ key.mT / 33**0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1)
    return torch.equal(candidate(query, key, value), weights @ value)


@strict_test("test_look_back", "is_causal of the fused kernel, T and S differ")
def _(candidate):
    given = _given(2, 3, 7, 4, 5)
    return torch.allclose(candidate(*given), F.scaled_dot_product_attention(*given, is_causal=True), atol=1e-4)


@strict_test("test_look_back", "expects no scale")
def _(candidate):
    query, key, value = _given(2, 4, 4, 9, 3)
    weights = (query @ key.mT).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf).softmax(-1)
    return torch.allclose(candidate(query, key, value), weights @ value, atol=1e-4)


@strict_test("test_look_back", "NaN in the future: 0 times NaN is NaN")
def _(candidate):
    query, key, value = _given(2, 4, 4, 3, 3)
    value[:, 2:] = math.nan
    return candidate(query, key, value)[:, :2].isfinite().all()
