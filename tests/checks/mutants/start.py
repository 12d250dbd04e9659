"""Chapter 00 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/start.py: the styles differ on purpose (loops, einsum,
matmul, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("start")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- pair_scores: mistakes --------------------------------------------------------------------------------------


@mutant("pair_scores", "axes_swapped")
def _(query, keys):
    return torch.einsum("btd,bsd->bst", query, keys)


@mutant("pair_scores", "keys_reshaped")
def _(query, keys):
    return torch.bmm(query, keys.contiguous().view(keys.size(0), keys.size(2), keys.size(1)))


@mutant("pair_scores", "axes_reversed")
def _(query, keys):
    return torch.matmul(query, keys.transpose(0, 2))  # what keys.T is


@mutant("pair_scores", "not_summed")
def _(query, keys):
    return torch.einsum("btd,bsd->btsd", query, keys)


@mutant("pair_scores", "averaged")
def _(query, keys):
    return (query.unsqueeze(2) * keys.unsqueeze(1)).mean(dim=-1)


@mutant("pair_scores", "scaled")
def _(query, keys):
    return torch.bmm(query, keys.mT) / math.sqrt(keys.shape[-1])


@mutant("pair_scores", "cosine")
def _(query, keys):
    return F.cosine_similarity(query[:, :, None], keys[:, None], dim=-1)


@mutant("pair_scores", "returns_weights")
def _(query, keys):
    exponentials = torch.exp(torch.einsum("btd,bsd->bts", query, keys))
    return exponentials / exponentials.sum(dim=2, keepdim=True)


@mutant("pair_scores", "batch_summed")
def _(query, keys):
    return torch.einsum("btd,bsd->ts", query, keys)


@mutant("pair_scores", "across_sentences")
def _(query, keys):
    return torch.tensordot(query, keys, dims=([2], [2]))


@pair("pair_scores", "axes_swapped", "scaled")
def _(query, keys):
    return keys @ query.transpose(1, 2) / query.shape[-1] ** 0.5


@pair("pair_scores", "keys_reshaped", "scaled")
def _(query, keys):
    B, S, D = keys.shape
    return query @ keys.reshape(B, D, S) / math.sqrt(D)


@pair("pair_scores", "scaled", "returns_weights")
def _(query, keys):
    return F.softmax(query @ keys.mT / math.sqrt(query.size(-1)), dim=-1)


@pair("pair_scores", "axes_swapped", "returns_weights")
def _(query, keys):
    return torch.softmax(keys @ query.mT, dim=-1)


@pair("pair_scores", "cosine", "returns_weights")
def _(query, keys):
    return (F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).mT).softmax(-1)


@form("pair_scores", "summed over the axis before the last", None)
def _(query, keys):
    return (query[:, :, None] * keys[:, None]).sum(-2)


@form("pair_scores", "softmax over the queries", None)
def _(query, keys):
    return torch.softmax(query @ keys.mT, dim=1)


@form("pair_scores", "the distance of query and key", None)
def _(query, keys):
    return torch.cdist(query, keys)


@form("pair_scores", "keys viewed as (B, D, S) in an einsum", "keys_reshaped")
def _(query, keys):
    B, S, D = keys.shape
    return torch.einsum("btd,bds->bts", query, keys.reshape(B, D, S))


# --- pair_scores: right answers ---------------------------------------------------------------------------------


@right("pair_scores", "three loops and a dot product")
def _(query, keys):
    return torch.stack(
        [
            torch.stack([torch.stack([torch.dot(q, k) for k in ks]) for q in qs])
            for qs, ks in zip(query, keys, strict=True)
        ]
    )


@right("pair_scores", "einsum")
def _(query, keys):
    return torch.einsum("btd,bsd->bts", query, keys)


@right("pair_scores", "broadcast, multiply, sum")
def _(query, keys):
    return (query.unsqueeze(2) * keys.unsqueeze(1)).sum(dim=-1)


@right("pair_scores", "bmm, keys first, then transposed")
def _(query, keys):
    return torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2)


# --- softmax: mistakes ------------------------------------------------------------------------------------------


@mutant("softmax", "temperature_ignored")
def _(scores, temperature):
    return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))


@mutant("softmax", "temperature_multiplies")
def _(scores, temperature):
    exponentials = torch.exp(temperature * scores)
    return exponentials / torch.einsum("bts->bt", exponentials)[..., None]


@mutant("softmax", "temperature_after")
def _(scores, temperature):
    exponentials = torch.exp(scores)
    return exponentials / (temperature * exponentials.sum(dim=-1, keepdim=True))


@mutant("softmax", "over_queries")
def _(scores, temperature):
    exponentials = torch.exp(scores / temperature)
    return exponentials / exponentials.sum(dim=1, keepdim=True)


@mutant("softmax", "over_all")
def _(scores, temperature):
    sentences = [torch.exp(scores[b] / temperature) for b in range(scores.shape[0])]
    return torch.stack([sentence / sentence.sum() for sentence in sentences])


@mutant("softmax", "exp_only")
def _(scores, temperature):
    return torch.pow(math.e, scores / temperature)


@mutant("softmax", "no_sum")
def _(scores, temperature):
    scores = scores / temperature
    return torch.exp(scores - scores.max(dim=-1, keepdim=True).values)


@mutant("softmax", "no_exp")
def _(scores, temperature):
    rows = (scores / temperature).reshape(-1, scores.shape[-1])
    return torch.stack([row / row.sum() for row in rows]).reshape(scores.shape)


@mutant("softmax", "hard")
def _(scores, temperature):
    return F.one_hot(torch.argmax(scores / temperature, dim=-1), scores.shape[-1]).to(scores.dtype)


@mutant("softmax", "logarithm")
def _(scores, temperature):
    scores = scores / temperature
    return scores - torch.log(torch.exp(scores).sum(dim=-1, keepdim=True))


@pair("softmax", "temperature_multiplies", "exp_only")
def _(scores, temperature):
    return (scores * temperature).exp()


@pair("softmax", "temperature_ignored", "over_queries")
def _(scores, temperature):
    exponentials = scores.exp()
    return exponentials / exponentials.sum(-2, keepdim=True)


@pair("softmax", "temperature_ignored", "exp_only")
def _(scores, temperature):
    return torch.exp(scores)


@pair("softmax", "temperature_ignored", "no_sum")
def _(scores, temperature):
    return torch.exp(scores - scores.amax(-1, keepdim=True))


@pair("softmax", "temperature_multiplies", "over_queries")
def _(scores, temperature):
    exponentials = (scores * temperature).exp()
    return exponentials / exponentials.sum(dim=-2, keepdim=True)


@pair("softmax", "temperature_ignored", "over_all")
def _(scores, temperature):
    exponentials = scores.exp()
    return exponentials / exponentials.sum((1, 2), keepdim=True)


@form("softmax", "the exponentials divided by the temperature", "temperature_ignored")
def _(scores, temperature):
    exponentials = torch.exp(scores) / temperature
    return exponentials / exponentials.sum(-1, keepdim=True)


@form("softmax", "only the numerator divided by the temperature", None)
def _(scores, temperature):
    return torch.exp(scores / temperature) / torch.exp(scores).sum(-1, keepdim=True)


@form("softmax", "the sign of the scores turned", None)
def _(scores, temperature):
    exponentials = torch.exp(-scores / temperature)
    return exponentials / exponentials.sum(-1, keepdim=True)


@form("softmax", "powers of 2", None)
def _(scores, temperature):
    powers = 2 ** (scores / temperature)
    return powers / powers.sum(-1, keepdim=True)


@form("softmax", "divided by the sum over the batch", None)
def _(scores, temperature):
    exponentials = torch.exp(scores / temperature)
    return exponentials / exponentials.sum(0, keepdim=True)


# --- softmax: right answers -------------------------------------------------------------------------------------


@right("softmax", "row by row")
def _(scores, temperature):
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]):
        exponentials = torch.exp((row - row.max()) / temperature)
        rows.append(exponentials / exponentials.sum())
    return torch.stack(rows).reshape(scores.shape)


@right("softmax", "logsumexp")
def _(scores, temperature):
    scaled = scores / temperature
    return torch.exp(scaled - torch.logsumexp(scaled, dim=-1, keepdim=True))


@right("softmax", "one over the sum of differences")
def _(scores, temperature):
    differences = (scores[..., None, :] - scores[..., :, None]) / temperature  # (B, T, S, S): s_l - s_j
    return 1 / torch.exp(differences.clamp(max=80)).sum(-1)


@right("softmax", "the largest score from a sorted copy, einsum for the sum")
def _(scores, temperature):
    largest = scores.sort(dim=-1).values[..., -1:]
    exponentials = ((scores - largest) * (1 / temperature)).exp()
    return exponentials / torch.einsum("bts->bt", exponentials).unsqueeze(-1)


# --- padding_mask: mistakes -------------------------------------------------------------------------------------


@mutant("padding_mask", "inverted")
def _(lengths, S):
    return torch.arange(S)[None] >= lengths[:, None]


@mutant("padding_mask", "one_too_many")
def _(lengths, S):
    return torch.arange(S)[None] <= lengths[:, None]


@mutant("padding_mask", "one_too_few")
def _(lengths, S):
    return torch.arange(1, S + 1)[None] < lengths[:, None]


@mutant("padding_mask", "padding_first")
def _(lengths, S):
    mask = torch.zeros(len(lengths), S, dtype=torch.bool)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        if length:
            row[-length:] = True
    return mask


@mutant("padding_mask", "longest_for_all")
def _(lengths, S):
    return (torch.arange(S) < max(lengths.tolist())).repeat(len(lengths), 1)


@mutant("padding_mask", "all_true")
def _(lengths, S):
    return torch.full((lengths.numel(), S), True)


@mutant("padding_mask", "last_only")
def _(lengths, S):
    mask = torch.zeros(lengths.shape[0], S, dtype=torch.bool)
    for b in range(lengths.shape[0]):
        if lengths[b] > 0:
            mask[b, lengths[b] - 1] = True
    return mask


@mutant("padding_mask", "transposed")
def _(lengths, S):
    return torch.arange(S)[:, None] < lengths


@mutant("padding_mask", "query_axis")
def _(lengths, S):
    return torch.arange(S) < lengths[:, None, None]


@mutant("padding_mask", "floats")
def _(lengths, S):
    mask = torch.zeros(len(lengths), S)
    for b, length in enumerate(lengths):
        mask[b, :length] = 1
    return mask


@mutant("padding_mask", "integers")
def _(lengths, S):
    return torch.tensor([[1] * n + [0] * (S - n) for n in lengths.tolist()])


@mutant("padding_mask", "additive")
def _(lengths, S):
    return torch.where(torch.arange(S) < lengths[:, None], 0.0, -math.inf)


@pair("padding_mask", "inverted", "one_too_many")
def _(lengths, S):
    return torch.arange(S) > lengths[:, None]


@pair("padding_mask", "inverted", "one_too_few")
def _(lengths, S):
    return torch.arange(S) >= lengths[:, None] - 1


@pair("padding_mask", "inverted", "floats")
def _(lengths, S):
    mask = torch.ones(len(lengths), S)
    for b, length in enumerate(lengths):
        mask[b, :length] = 0.0
    return mask


@pair("padding_mask", "one_too_many", "transposed")
def _(lengths, S):
    return torch.arange(S)[:, None] <= lengths[None]


@pair("padding_mask", "inverted", "transposed")
def _(lengths, S):
    return torch.arange(S)[:, None] >= lengths


@form("padding_mask", "a causal mask", None)
def _(lengths, S):
    return torch.ones(len(lengths), S).tril().bool()


@form("padding_mask", "the positions, padding as 0", None)
def _(lengths, S):
    return torch.arange(S) * (torch.arange(S) < lengths[:, None])


@form("padding_mask", "as long as the longest sentence", None)
def _(lengths, S):
    return torch.arange(lengths.max()) < lengths[:, None]


# --- padding_mask: right answers --------------------------------------------------------------------------------


@right("padding_mask", "filled in a loop")
def _(lengths, S):
    mask = torch.zeros(len(lengths), S, dtype=torch.bool)
    for b, length in enumerate(lengths):
        mask[b, :length] = True
    return mask


@right("padding_mask", "lists of booleans")
def _(lengths, S):
    return torch.tensor([[j < n for j in range(S)] for n in lengths.tolist()])


@right("padding_mask", "a running sum of ones, expanded")
def _(lengths, S):
    places = torch.ones(len(lengths), S, dtype=torch.long).cumsum(dim=1)  # 1 … S
    return ~(places > lengths.unsqueeze(1).expand(-1, S))


# --- head_contexts: mistakes ------------------------------------------------------------------------------------


def _by_head(weights, values):
    """Contexts (B, H, T, D), one head after another."""
    return torch.stack([weights[:, h] @ values[:, :, h] for h in range(weights.shape[1])], dim=1)


@mutant("head_contexts", "output_reshaped")
def _(weights, values):
    B, H, T, _ = weights.shape
    return _by_head(weights, values).reshape(B, T, H, -1)


@mutant("head_contexts", "values_reshaped")
def _(weights, values):
    B, S, H, D = values.shape
    contexts = torch.matmul(weights, values.contiguous().view(B, H, S, D))
    return torch.permute(contexts, (0, 2, 1, 3))


@mutant("head_contexts", "heads_first")
def _(weights, values):
    return _by_head(weights, values)


@mutant("head_contexts", "heads_summed")
def _(weights, values):
    return sum(weights[:, h] @ values[:, :, h] for h in range(weights.shape[1]))


@mutant("head_contexts", "heads_merged")
def _(weights, values):
    return torch.cat([weights[:, h] @ values[:, :, h] for h in range(weights.shape[1])], dim=-1)


@mutant("head_contexts", "weights_transposed")
def _(weights, values):
    return torch.matmul(weights.transpose(2, 3), values.transpose(1, 2)).transpose(1, 2)


@mutant("head_contexts", "not_summed")
def _(weights, values):
    return weights.transpose(1, 2)[..., None] * values.transpose(1, 2)[:, None]  # (B, T, H, S, D)


@mutant("head_contexts", "uniform")
def _(weights, values):
    return values.mean(dim=1, keepdim=True).repeat(1, weights.shape[2], 1, 1)


@mutant("head_contexts", "one_head")
def _(weights, values):
    heads = [weights[:, 0] @ values[:, :, h] for h in range(values.shape[2])]
    return torch.stack(heads, dim=2)


@mutant("head_contexts", "heads_mixed")
def _(weights, values):
    B, S, H, D = values.shape
    mean = weights.sum(1) / weights.shape[1]  # (B, T, S)
    return (mean @ values.reshape(B, S, H * D)).reshape(B, -1, H, D)


@pair("head_contexts", "output_reshaped", "heads_merged")
def _(weights, values):
    B, _, T, _ = weights.shape
    return _by_head(weights, values).reshape(B, T, -1)


@pair("head_contexts", "values_reshaped", "output_reshaped")
def _(weights, values):
    B, S, H, D = values.shape
    return (weights @ values.reshape(B, H, S, D)).reshape(B, -1, H, D)


@pair("head_contexts", "values_reshaped", "heads_first")
def _(weights, values):
    B, S, H, D = values.shape
    return weights @ values.reshape(B, H, S, D)


@pair("head_contexts", "weights_transposed", "heads_first")
def _(weights, values):
    return weights.mT @ values.transpose(1, 2)


@pair("head_contexts", "heads_first", "not_summed")
def _(weights, values):
    return weights[..., None] * values.transpose(1, 2)[:, :, None]


@form("head_contexts", "the mean over the heads", None)
def _(weights, values):
    return _by_head(weights, values).mean(1)


@form("head_contexts", "the keys added without weights", None)
def _(weights, values):
    return values.sum(1, keepdim=True).expand(-1, weights.shape[2], -1, -1)


@form("head_contexts", "queries before the sentences", None)
def _(weights, values):
    return _by_head(weights, values).permute(2, 0, 1, 3)


@form("head_contexts", "merged, heads inside", None)
def _(weights, values):
    return _by_head(weights, values).permute(0, 2, 3, 1).flatten(2)


# --- head_contexts: right answers -------------------------------------------------------------------------------


@right("head_contexts", "head by head")
def _(weights, values):
    return torch.stack([weights[:, h] @ values[:, :, h] for h in range(weights.shape[1])], dim=2)


@right("head_contexts", "broadcast, multiply, sum")
def _(weights, values):
    weights = weights.permute(0, 2, 3, 1)  # (B, T, S, H)
    return (weights[..., None] * values[:, None]).sum(dim=2)


@right("head_contexts", "bmm over sentences and heads together")
def _(weights, values):
    B, H, T, S = weights.shape
    D = values.shape[-1]
    contexts = torch.bmm(weights.reshape(B * H, T, S), values.permute(0, 2, 1, 3).reshape(B * H, S, D))
    return contexts.reshape(B, H, T, D).permute(0, 2, 1, 3)


@right("head_contexts", "loops over everything but the numbers of a head")
def _(weights, values):
    B, H, T, S = weights.shape
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([sum(weights[b, h, i, j] * values[b, j, h] for j in range(S)) for h in range(H)])
                    for i in range(T)
                ]
            )
            for b in range(B)
        ]
    )
