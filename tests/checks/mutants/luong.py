"""Chapter 02 as learners write it: every misconception a second time, two mistakes at once, right answers, tests.

Nothing here uses the `faulty` switches of attncourse/checks/luong.py: the styles differ on purpose (loops, einsum,
matmul, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("luong")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test

# --- general_score: mistakes ------------------------------------------------------------------------------------


@mutant("general_score", "weight_transposed")
def _(query, keys, weight):
    return torch.bmm(F.linear(query, weight), keys.transpose(1, 2))  # F.linear multiplies by weight.T


@mutant("general_score", "no_weight")
def _(query, keys, weight):
    return torch.bmm(query, keys.permute(0, 2, 1))


@mutant("general_score", "scaled")
def _(query, keys, weight):
    return (query @ weight) @ keys.mT * keys.size(-1) ** -0.5


@mutant("general_score", "axes_swapped")
def _(query, keys, weight):
    return torch.bmm(keys, (query @ weight).transpose(1, 2))


@mutant("general_score", "returns_weights")
def _(query, keys, weight):
    exponentials = torch.exp(torch.einsum("btq,qk,bsk->bts", query, weight, keys))
    return exponentials / exponentials.sum(dim=2, keepdim=True)


@mutant("general_score", "tanh")
def _(query, keys, weight):
    rows = [torch.tanh(query[b] @ weight @ keys[b].T) for b in range(query.shape[0])]
    return torch.stack(rows)


@mutant("general_score", "cosine")
def _(query, keys, weight):
    return F.cosine_similarity((query @ weight).unsqueeze(2), keys.unsqueeze(1), dim=-1)


@pair("general_score", "weight_transposed", "scaled")
def _(query, keys, weight):
    return F.linear(query, weight) @ keys.mT / math.sqrt(keys.shape[-1])


@pair("general_score", "scaled", "axes_swapped")
def _(query, keys, weight):
    return torch.einsum("bsk,qk,btq->bst", keys, weight, query).div(keys.shape[-1] ** 0.5)


@pair("general_score", "scaled", "returns_weights")
def _(query, keys, weight):
    return F.softmax(query @ weight @ keys.mT / math.sqrt(keys.shape[-1]), dim=-1)


@pair("general_score", "no_weight", "cosine")
def _(query, keys, weight):
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).mT


@pair("general_score", "no_weight", "scaled")
def _(query, keys, weight):
    return query @ keys.mT / query.shape[-1] ** 0.5


@pair("general_score", "weight_transposed", "axes_swapped")
def _(query, keys, weight):
    return keys @ weight @ query.mT


@form("general_score", "divided by the square root of the queries' size", None)
def _(query, keys, weight):
    return query @ weight @ keys.mT / query.shape[-1] ** 0.5


@form("general_score", "divided by the size itself", None)
def _(query, keys, weight):
    return query @ weight @ keys.mT / keys.shape[-1]


@form("general_score", "softmax over the queries", None)
def _(query, keys, weight):
    return F.softmax(query @ weight @ keys.mT, dim=1)


@form("general_score", "queries divided by their lengths before the product", None)
def _(query, keys, weight):
    return F.normalize(query, dim=-1) @ weight @ F.normalize(keys, dim=-1).mT


@form("general_score", "keys reshaped where they should be transposed", None)
def _(query, keys, weight):
    B, S, Dk = keys.shape
    return query @ weight @ keys.reshape(B, Dk, S)


# --- general_score: right answers -------------------------------------------------------------------------------


@right("general_score", "loops over batch, queries and keys")
def _(query, keys, weight):
    return torch.stack([torch.stack([torch.stack([q @ weight @ k for k in ks]) for q in qs])
                        for qs, ks in zip(query, keys, strict=True)])  # fmt: skip


@right("general_score", "einsum")
def _(query, keys, weight):
    return torch.einsum("btq,qk,bsk->bts", query, weight, keys)


@right("general_score", "keys projected first, baddbmm")
def _(query, keys, weight):
    projected = F.linear(keys, weight)  # (B, S, Dq)
    B, T, S = query.shape[0], query.shape[1], keys.shape[1]
    return torch.baddbmm(query.new_zeros(B, T, S), query, projected.transpose(1, 2))


@right("general_score", "multiply and sum")
def _(query, keys, weight):
    pairs = query[:, :, None, :, None] * keys[:, None, :, None, :]  # (B, T, S, Dq, Dk)
    return (pairs * weight).sum((-2, -1))


@right("general_score", "F.bilinear on all pairs")
def _(query, keys, weight):
    T, S = query.shape[1], keys.shape[1]
    queries = query.unsqueeze(2).expand(-1, -1, S, -1).contiguous()
    return F.bilinear(queries, keys.unsqueeze(1).expand(-1, T, -1, -1).contiguous(), weight[None]).squeeze(-1)


# --- concat_score: mistakes -------------------------------------------------------------------------------------


def _joined(query, keys):
    """All pairs [q; k], (B, T, S, Dq + Dk)."""
    T, S = query.shape[1], keys.shape[1]
    return torch.cat([query.unsqueeze(2).repeat(1, 1, S, 1), keys.unsqueeze(1).repeat(1, T, 1, 1)], dim=3)


@mutant("concat_score", "order_swapped")
def _(query, keys, weight, v):
    T, S = query.shape[1], keys.shape[1]
    pairs = torch.cat([keys.unsqueeze(1).expand(-1, T, -1, -1), query.unsqueeze(2).expand(-1, -1, S, -1)], dim=-1)
    return torch.tanh(F.linear(pairs, weight)) @ v


@mutant("concat_score", "no_tanh")
def _(query, keys, weight, v):
    return torch.einsum("btsd,ad,a->bts", _joined(query, keys), weight, v)


@mutant("concat_score", "tanh_of_each")
def _(query, keys, weight, v):
    n = query.size(-1)
    of_query = torch.tanh(torch.einsum("btd,ad->bta", query, weight[:, :n])) @ v
    of_keys = torch.tanh(torch.einsum("bsd,ad->bsa", keys, weight[:, n:])) @ v
    return of_query[:, :, None] + of_keys[:, None, :]


@mutant("concat_score", "relu")
def _(query, keys, weight, v):
    return F.relu(F.linear(_joined(query, keys), weight)).matmul(v)


@mutant("concat_score", "no_v")
def _(query, keys, weight, v):
    return torch.tanh(torch.einsum("btsd,ad->btsa", _joined(query, keys), weight)).sum(dim=-1)


@mutant("concat_score", "query_left_out")
def _(query, keys, weight, v):
    one = torch.tanh(F.linear(keys, weight[:, query.shape[-1] :])) @ v  # (B, S)
    return one.unsqueeze(1).repeat(1, query.shape[1], 1)


@mutant("concat_score", "axes_swapped")
def _(query, keys, weight, v):
    B, T, S = query.shape[0], query.shape[1], keys.shape[1]
    rows = []
    for b in range(B):
        for j in range(S):
            for i in range(T):
                rows.append(v @ torch.tanh(weight @ torch.cat([query[b, i], keys[b, j]])))
    return torch.stack(rows).view(B, S, T)


@pair("concat_score", "no_tanh", "order_swapped")
def _(query, keys, weight, v):
    T, S = query.shape[1], keys.shape[1]
    pairs = torch.cat([keys[:, None].expand(-1, T, -1, -1), query[:, :, None].expand(-1, -1, S, -1)], dim=-1)
    return pairs @ weight.T @ v


@pair("concat_score", "relu", "no_v")
def _(query, keys, weight, v):
    return F.linear(_joined(query, keys), weight).clamp(min=0).sum(-1)


@pair("concat_score", "no_v", "axes_swapped")
def _(query, keys, weight, v):
    return torch.tanh(F.linear(_joined(query, keys).transpose(1, 2), weight)).sum(-1)


@pair("concat_score", "tanh_of_each", "no_v")
def _(query, keys, weight, v):
    q, k = torch.tanh(query @ weight[:, : query.shape[-1]].T), torch.tanh(keys @ weight[:, query.shape[-1] :].T)
    return q.sum(-1)[:, :, None] + k.sum(-1)[:, None]


@form("concat_score", "tanh after v", None)
def _(query, keys, weight, v):
    return torch.tanh(_joined(query, keys) @ weight.T @ v)


@form("concat_score", "sigmoid", None)
def _(query, keys, weight, v):
    return torch.sigmoid(_joined(query, keys) @ weight.T) @ v


@form("concat_score", "the keys' half is missing", None)
def _(query, keys, weight, v):
    one = torch.tanh(query @ weight[:, : query.shape[-1]].T) @ v
    return one[:, :, None].expand(-1, -1, keys.shape[1])


@form("concat_score", "softmax of the scores", None)
def _(query, keys, weight, v):
    return torch.softmax(torch.tanh(_joined(query, keys) @ weight.T) @ v, dim=-1)


@form("concat_score", "hidden layer averaged instead of v", None)
def _(query, keys, weight, v):
    return torch.tanh(_joined(query, keys) @ weight.T).mean(-1)


# --- concat_score: right answers --------------------------------------------------------------------------------


@right("concat_score", "loops over batch, queries and keys")
def _(query, keys, weight, v):
    rows = []
    for qs, ks in zip(query, keys, strict=True):
        rows.append(torch.stack([torch.stack([v @ torch.tanh(weight @ torch.cat([q, k])) for k in ks]) for q in qs]))
    return torch.stack(rows)


@right("concat_score", "weight split in two")
def _(query, keys, weight, v):
    first, second = weight.split([query.shape[-1], keys.shape[-1]], dim=1)
    return (torch.tanh(F.linear(query, first).unsqueeze(2) + F.linear(keys, second).unsqueeze(1)) * v).sum(-1)


@right("concat_score", "einsum on joined pairs")
def _(query, keys, weight, v):
    return torch.einsum("btsa,a->bts", torch.tanh(torch.einsum("btsd,ad->btsa", _joined(query, keys), weight)), v)


@right("concat_score", "padded with zeros, then added")
def _(query, keys, weight, v):
    pairs = F.pad(query, (0, keys.shape[-1])).unsqueeze(2) + F.pad(keys, (query.shape[-1], 0)).unsqueeze(1)
    return F.linear(torch.tanh(F.linear(pairs, weight)), v[None]).squeeze(-1)


# --- attentional_vector: mistakes -------------------------------------------------------------------------------


@mutant("attentional_vector", "order_swapped")
def _(context, state, weight):
    return torch.tanh(F.linear(torch.cat((state, context), 2), weight))


@mutant("attentional_vector", "no_tanh")
def _(context, state, weight):
    n = context.shape[-1]
    return F.linear(context, weight[:, :n]) + F.linear(state, weight[:, n:])


@mutant("attentional_vector", "sigmoid")
def _(context, state, weight):
    return 1 / (1 + torch.exp(-F.linear(torch.cat([context, state], -1), weight)))


@mutant("attentional_vector", "state_left_out")
def _(context, state, weight):
    return torch.tanh(torch.einsum("btc,nc->btn", context, weight[:, : context.shape[2]]))


@mutant("attentional_vector", "context_left_out")
def _(context, state, weight):
    return torch.tanh(state @ weight[:, -state.shape[2] :].T)


@mutant("attentional_vector", "context_twice")
def _(context, state, weight):
    return torch.tanh(torch.cat([context] * 2, dim=-1) @ weight.mT)


@mutant("attentional_vector", "weight_transposed")
def _(context, state, weight):
    return torch.tanh(torch.einsum("btd,dn->btn", torch.cat([context, state], dim=2), weight))


@pair("attentional_vector", "order_swapped", "no_tanh")
def _(context, state, weight):
    return torch.cat([state, context], dim=-1) @ weight.T


@pair("attentional_vector", "state_left_out", "no_tanh")
def _(context, state, weight):
    return F.linear(context, weight[:, : context.shape[-1]])


@pair("attentional_vector", "order_swapped", "sigmoid")
def _(context, state, weight):
    return F.sigmoid(F.linear(torch.cat([state, context], dim=-1), weight))


@form("attentional_vector", "tanh before the weight", None)
def _(context, state, weight):
    return F.linear(torch.tanh(torch.cat([context, state], dim=-1)), weight)


@form("attentional_vector", "context and state added", None)
def _(context, state, weight):
    return torch.tanh(F.linear(context + state, weight))


@form("attentional_vector", "joined along the time axis", None)
def _(context, state, weight):
    return torch.tanh(F.linear(torch.cat([context, state], dim=1), weight))


@form("attentional_vector", "relu", None)
def _(context, state, weight):
    return torch.relu(F.linear(torch.cat([context, state], dim=-1), weight))


# --- attentional_vector: right answers --------------------------------------------------------------------------


@right("attentional_vector", "loops over batch and steps")
def _(context, state, weight):
    rows = [
        torch.tanh(weight @ torch.cat([context[b, i], state[b, i]]))
        for b in range(context.shape[0])
        for i in range(context.shape[1])
    ]
    return torch.stack(rows).reshape(context.shape[0], context.shape[1], weight.shape[0])


@right("attentional_vector", "weight split in two")
def _(context, state, weight):
    for_context, for_state = weight[:, : context.shape[-1]], weight[:, context.shape[-1] :]
    return torch.tanh(F.linear(context, for_context) + F.linear(state, for_state))


@right("attentional_vector", "einsum, tanh by sigmoid")
def _(context, state, weight):
    hidden = torch.einsum("btd,nd->btn", torch.cat([context, state], dim=2), weight)
    return 2 * torch.sigmoid(2 * hidden) - 1


# --- local_weights: mistakes ------------------------------------------------------------------------------------


def _local(scores, centre, inside, sigma):
    """The three steps, for what is inside."""
    distance = torch.arange(scores.shape[-1], dtype=scores.dtype) - centre.unsqueeze(-1)
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True)) * inside(distance)
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return weights * torch.exp(-0.5 * (distance / sigma) ** 2)


@mutant("local_weights", "too_wide")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() <= window, (window - 1) / 2)


@mutant("local_weights", "too_narrow")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: (d >= 2 - window) & (d <= window - 2), (window - 1) / 2)


@mutant("local_weights", "softmax_over_all")
def _(scores, centre, window):
    p, D = centre[:, :, None], window - 1
    positions = torch.arange(scores.shape[2]).to(scores)
    weights = F.softmax(scores, dim=2) * torch.exp(-2 * (positions - p) ** 2 / D**2)
    weights[(positions - p).abs() > D] = 0
    return weights


@mutant("local_weights", "renormalised")
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]
    scores = scores - 2 * distance**2 / (window - 1) ** 2
    return scores.masked_fill(distance.abs() > window - 1, -math.inf).softmax(-1)


@mutant("local_weights", "no_gaussian")
def _(scores, centre, window):
    outside = (torch.arange(scores.shape[-1]) - centre.unsqueeze(-1)).abs() > window - 1
    exponentials = torch.where(outside, 0.0, scores.exp())
    return exponentials / exponentials.sum(-1, keepdim=True)


@mutant("local_weights", "sigma_is_reach")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() <= window - 1, window - 1)


@mutant("local_weights", "no_half")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() <= window - 1, (window - 1) / 2 / math.sqrt(2))


@mutant("local_weights", "centre_rounded")
def _(scores, centre, window):
    return _local(scores, centre.round(), lambda d: d.abs() < window, (window - 1) / 2)  # whole: < W is <= W - 1


@mutant("local_weights", "past_only")
def _(scores, centre, window):
    rows = torch.zeros_like(scores)
    B, T, S = scores.shape
    for b in range(B):
        for i in range(T):
            p = centre[b, i].item()
            inside = [j for j in range(S) if p - (window - 1) <= j <= p]
            row = scores[b, i, inside].softmax(0)
            for weight, j in zip(row, inside, strict=True):
                rows[b, i, j] = weight * math.exp(-2 * (j - p) ** 2 / (window - 1) ** 2)
    return rows


@mutant("local_weights", "positions_from_one")
def _(scores, centre, window):
    return _local(scores, centre - 1, lambda d: d.abs() <= window - 1, (window - 1) / 2)


@pair("local_weights", "softmax_over_all", "no_gaussian")
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]) - centre[..., None]
    return scores.softmax(-1) * (distance.abs() <= window - 1)


@pair("local_weights", "too_narrow", "past_only")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: (d <= 0) & (d >= 2 - window), (window - 1) / 2)


@pair("local_weights", "sigma_is_reach", "no_half")
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]
    weights = scores.masked_fill(distance.abs() > window - 1, -torch.inf).softmax(-1)
    return weights * torch.exp(-(distance**2) / (window - 1) ** 2)


@pair("local_weights", "positions_from_one", "too_wide")
def _(scores, centre, window):
    return _local(scores, centre - 1, lambda d: d.abs() <= window, (window - 1) / 2)


@form("local_weights", "sigma is half the window", None)
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() <= window - 1, window / 2)


@form("local_weights", "W - 2 words before and after", "too_narrow")
def _(scores, centre, window):
    reach = window - 2
    return _local(scores, centre, lambda d: d.abs() <= reach, (window - 1) / 2)


@form("local_weights", "|j - p| < W - 1", "too_narrow")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() < window - 1, (window - 1) / 2)


@form("local_weights", "|j - p| < W", "too_wide")
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() < window, (window - 1) / 2)


@form("local_weights", "the window is W in all, W / 2 to each side", None)
def _(scores, centre, window):
    return _local(scores, centre, lambda d: d.abs() <= window / 2, (window - 1) / 2)


@form("local_weights", "the Gaussian added to the weights", None)
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]
    weights = scores.masked_fill(distance.abs() > window - 1, -math.inf).softmax(-1)
    return weights + torch.exp(-2 * distance**2 / (window - 1) ** 2)


@form("local_weights", "distances not squared", None)
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]
    weights = scores.masked_fill(distance.abs() > window - 1, -math.inf).softmax(-1)
    return weights * torch.exp(-2 * distance.abs() / (window - 1) ** 2)


@form("local_weights", "the centre is cut to a whole number", None)
def _(scores, centre, window):
    return _local(scores, centre.floor(), lambda d: d.abs() <= window - 1, (window - 1) / 2)


# --- local_weights: right answers -------------------------------------------------------------------------------


@right("local_weights", "loops, one row at a time")
def _(scores, centre, window):
    D, rows = window - 1, []
    for row, p in zip(scores.flatten(0, 1), centre.flatten(), strict=True):
        weights = []
        inside = [j for j in range(len(row)) if abs(j - p.item()) <= D]
        largest = max(row[j] for j in inside)
        total = sum(torch.exp(row[j] - largest) for j in inside)
        for j in range(len(row)):
            bell = torch.exp(-((j - p) ** 2) / (2 * (D / 2) ** 2))
            weights.append(torch.exp(row[j] - largest) / total * bell if j in inside else row[j] * 0)
        rows.append(torch.stack(weights))
    return torch.stack(rows).reshape(scores.shape)


@right("local_weights", "logsumexp of what is inside, all in the exponent")
def _(scores, centre, window):
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]
    scores = torch.where(distance.abs() <= window - 1, scores, -math.inf)
    return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True) - 2 * (distance / (window - 1)) ** 2)


@right("local_weights", "softmax over all, divided by what is inside")
def _(scores, centre, window):
    positions = torch.arange(0, scores.shape[-1], 1.0, dtype=scores.dtype).expand_as(scores)
    distance = positions - centre.unsqueeze(2)
    weights = F.softmax(scores, dim=-1) * distance.abs().le(window - 1).to(scores.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * torch.exp(-torch.square(distance) / (2 * ((window - 1) / 2) ** 2))


@right("local_weights", "sparse rows gathered, softmaxed, scattered")
def _(scores, centre, window):
    low = (centre - (window - 1)).ceil().long()  # (B, T); 2 W - 1 places hold everything inside
    places = low[..., None] + torch.arange(2 * window - 1)
    distance = places.to(scores) - centre[..., None]
    real = (places >= 0) & (places < scores.shape[-1]) & (distance <= window - 1)
    near = scores.gather(-1, places.clamp(0, scores.shape[-1] - 1)).masked_fill(~real, -torch.inf)
    weights = near.softmax(-1) * torch.exp(-2 * distance**2 / (window - 1) ** 2)
    return torch.zeros_like(scores).scatter_add(-1, places.clamp(0, scores.shape[-1] - 1), weights * real)


# --- straight_through: mistakes ---------------------------------------------------------------------------------


@mutant("straight_through", "no_gradient")
def _(scores):
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


@mutant("straight_through", "soft")
def _(scores):
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


@mutant("straight_through", "weights_kept")
def _(scores):
    return F.softmax(scores, dim=-1) + F.one_hot(scores.argmax(-1), scores.shape[-1])


@mutant("straight_through", "masked_weights")
def _(scores):
    weights = scores.softmax(-1)
    hard = F.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
    kept = torch.where(hard == 1, weights, torch.zeros_like(weights))
    return kept / kept.sum(-1, keepdim=True).detach()


class _ScoresGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@mutant("straight_through", "gradient_of_scores")
def _(scores):
    return _ScoresGradient.apply(scores)


@mutant("straight_through", "over_queries")
def _(scores):
    weights = scores.softmax(1)
    choice = F.one_hot(weights.argmax(1), weights.shape[1]).transpose(1, 2)
    return weights + (choice - weights).detach()


@mutant("straight_through", "smallest")
def _(scores):
    weights = F.softmax(scores, dim=-1)
    hard = torch.zeros_like(weights).scatter(-1, scores.min(-1, keepdim=True).indices, 1.0)
    return weights + (hard - weights).detach()


@pair("straight_through", "soft", "over_queries")
def _(scores):
    return torch.softmax(scores, dim=1)


@pair("straight_through", "no_gradient", "over_queries")
def _(scores):
    return F.one_hot(scores.argmax(1), scores.shape[1]).transpose(1, 2).float().to(scores.dtype)


@pair("straight_through", "no_gradient", "smallest")
def _(scores):
    return torch.zeros_like(scores).scatter_(-1, scores.argmin(-1, keepdim=True), 1)


@pair("straight_through", "weights_kept", "smallest")
def _(scores):
    return scores.softmax(-1) + F.one_hot(scores.argmin(-1), scores.shape[-1])


@pair("straight_through", "gradient_of_scores", "smallest")
def _(scores):
    hard = F.one_hot(scores.argmin(-1), scores.shape[-1]).to(scores)
    return scores + (hard - scores).detach()


@form("straight_through", "one_hot left as integers", None)
def _(scores):
    return F.one_hot(scores.argmax(-1), scores.shape[-1])


@form("straight_through", "sampled instead of the largest", None)
def _(scores):
    weights = scores.softmax(-1)
    place = torch.multinomial(weights.flatten(0, 1), 1).view(*scores.shape[:2], 1)
    return torch.zeros_like(weights).scatter(-1, place, 1.0) + weights - weights.detach()


@form("straight_through", "F.gumbel_softmax, hard", None)
def _(scores):
    return F.gumbel_softmax(scores, hard=True)


@form("straight_through", "the places instead of a choice", None)
def _(scores):
    return scores.argmax(-1)


@form("straight_through", "all of it detached", "no_gradient")
def _(scores):
    weights = scores.detach().softmax(-1)
    return torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1.0) + weights - weights.detach()


@form("straight_through", "the gradient of the log of the weights", None)
def _(scores):
    logs = scores.log_softmax(-1)
    return F.one_hot(logs.argmax(-1), logs.shape[-1]) + logs - logs.detach()


@form("straight_through", "the gradient twice as large", None)
def _(scores):
    weights = scores.softmax(-1)
    return F.one_hot(weights.argmax(-1), weights.shape[-1]) + 2 * (weights - weights.detach())


@form("straight_through", "no gradient for the largest", None)
def _(scores):
    weights = scores.softmax(-1)
    hard = torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1.0)
    return hard + (weights - weights.detach()) * (1 - hard)


# --- straight_through: right answers ----------------------------------------------------------------------------


@right("straight_through", "one_hot, one detach")
def _(scores):
    weights = F.softmax(scores, dim=-1)
    return weights + (F.one_hot(scores.argmax(-1), scores.shape[-1]) - weights).detach()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores.softmax(-1))
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores)

    @staticmethod
    def backward(ctx, gradient):
        (weights,) = ctx.saved_tensors
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))


@right("straight_through", "torch.autograd.Function")
def _(scores):
    return _StraightThrough.apply(scores)


@right("straight_through", "loops")
def _(scores):
    rows = []
    for row in scores.flatten(0, 1):
        weights = row.softmax(0)
        best = max(range(len(row)), key=lambda j, row=row: row[j].item())
        rows.append(torch.stack([(1.0 if j == best else 0.0) + w - w.detach() for j, w in enumerate(weights)]))
    return torch.stack(rows).reshape(scores.shape)


@right("straight_through", "compared with the largest, no_grad")
def _(scores):
    weights = torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))
    with torch.no_grad():
        correction = (weights == weights.max(-1, keepdim=True).values).to(weights) - weights
    return weights + correction


# --- test_general_score: tests that get all points --------------------------------------------------------------


def _inputs(B, T, S, Dq, Dk, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, Dq), (B, S, Dk), (Dq, Dk)
    return [torch.randn(shape, generator=generator) * spread for shape in shapes]


@good_test("test_general_score", "asserts, against loops")
def _(candidate):
    for sizes in ((2, 3, 5, 4, 7), (1, 4, 4, 4, 4)):
        query, keys, weight = _inputs(*sizes)
        scores = candidate(query, keys, weight)
        B, T, S, Dq, Dk = sizes
        assert scores.shape == (B, T, S)
        for b in range(B):
            for i in range(T):
                for j in range(S):
                    expected = sum(query[b, i, x] * weight[x, y] * keys[b, j, y] for x in range(Dq) for y in range(Dk))
                    assert abs(scores[b, i, j] - expected) < 1e-4


@good_test("test_general_score", "returns, against einsum")
def _(candidate):
    given = _inputs(3, 4, 4, 4, 4)
    try:
        return torch.allclose(candidate(*given), torch.einsum("btq,bsk,qk->bts", *given), atol=1e-4)
    except RuntimeError:
        return False


@good_test("test_general_score", "properties, then one number by hand")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 7)
    scores = candidate(query, keys, weight)
    if scores.shape != (2, 3, 5):
        return False
    doubled = candidate(2 * query, keys, weight), candidate(query, 3 * keys, weight), candidate(query, keys, -weight)
    linear = all(
        torch.allclose(changed, factor * scores, atol=1e-3) for changed, factor in zip(doubled, (2, 3, -1), strict=True)
    )
    by_hand = (query[1, 2] * (weight @ keys[1, 3])).sum()
    return linear and torch.isclose(scores[1, 2, 3], by_hand, atol=1e-4)


@good_test("test_general_score", "one number in, by keywords")
def _(candidate):
    first, second = torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)
    first[..., 0], second[..., 1] = 3.0, 5.0
    weight = torch.tensor([[11.0, 13.0], [17.0, 19.0]])
    assert candidate(query=first, keys=second, weight=weight).item() == 3 * 13 * 5
    return candidate(torch.ones(2, 3, 4), torch.ones(2, 5, 6), weight=torch.ones(4, 6)).shape == (2, 3, 5)


# --- test_general_score: tests that let something through -------------------------------------------------------

_ALL = ("weight_transposed", "no_weight", "scaled", "axes_swapped", "returns_weights", "tanh", "cosine")


@lax_test("test_general_score", "accepts everything", *_ALL)
def _(candidate):
    return True


@lax_test("test_general_score", "returns nothing", *_ALL)
def _(candidate):
    candidate(*_inputs(1, 3, 3, 3, 3))


@lax_test("test_general_score", "the shape only, equal sizes", *_ALL)
def _(candidate):
    assert candidate(*_inputs(2, 3, 3, 4, 4)).shape == (2, 3, 3)


# Where the sizes of queries and keys differ, a transposed and a missing weight raise, and so are rejected.
@lax_test("test_general_score", "the shape only, sizes that differ", "scaled", "returns_weights", "tanh", "cosine")
def _(candidate):
    return candidate(*_inputs(2, 3, 5, 4, 6)).shape == (2, 3, 5)


@lax_test("test_general_score", "a weight that is the identity", "weight_transposed", "no_weight")
def _(candidate):
    query, keys, _ = _inputs(2, 3, 5, 4, 4)
    return candidate(query, keys, torch.eye(4)).allclose(query @ keys.mT, atol=1e-4)


@lax_test("test_general_score", "the sum of all scores", "axes_swapped")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 4)
    return torch.isclose(candidate(query, keys, weight).sum(), (query @ weight @ keys.mT).sum(), atol=1e-3)


@lax_test("test_general_score", "that the scores are linear in the query", "weight_transposed", "no_weight", "scaled",
          "axes_swapped")  # fmt: skip
def _(candidate):
    query, keys, weight = _inputs(2, 3, 3, 4, 4)
    return torch.allclose(candidate(2 * query, keys, weight), 2 * candidate(query, keys, weight), atol=1e-4)


@lax_test("test_general_score", "the first score of all", "axes_swapped")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 4)
    assert abs(candidate(query, keys, weight)[0, 0, 0] - query[0, 0] @ weight @ keys[0, 0]) < 1e-4


@lax_test("test_general_score", "the sign of every score", "scaled", "tanh", "cosine")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 4)
    return torch.equal(candidate(query, keys, weight) > 0, query @ weight @ keys.mT > 0)


# --- test_general_score: tests that reject what is right --------------------------------------------------------


@strict_test("test_general_score", "accepts nothing")
def _(candidate):
    return False


@strict_test("test_general_score", "torch.equal")
def _(candidate):
    query, keys, weight = _inputs(2, 9, 11, 33, 40)
    return torch.equal(candidate(query, keys, weight), query @ weight @ keys.mT)


@strict_test("test_general_score", "a tolerance of nothing")
def _(candidate):
    query, keys, weight = _inputs(2, 9, 11, 33, 40)
    assert (candidate(query, keys, weight) - query @ weight @ keys.mT).abs().max() == 0


@strict_test("test_general_score", "takes a mistake for right: transposed")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 4)
    return torch.allclose(candidate(query, keys, weight), query @ weight.T @ keys.mT, atol=1e-4)


@strict_test("test_general_score", "expects a scale")
def _(candidate):
    query, keys, weight = _inputs(2, 3, 5, 4, 4)
    return torch.allclose(candidate(query, keys, weight), query @ weight @ keys.mT / 2, atol=1e-4)
