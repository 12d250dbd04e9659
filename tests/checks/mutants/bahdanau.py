"""Chapter 01 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/bahdanau.py: the styles differ on purpose (loops,
einsum, matmul, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from attncourse.bahdanau import AdditiveAttention
from tests.checks.mutants import Answers

ANSWERS = Answers("bahdanau")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- additive_score: mistakes -----------------------------------------------------------------------------------


@mutant("additive_score", "no_tanh")
def _(query, keys, query_weight, key_weight, v):
    of_query = torch.einsum("btd,ad,a->bt", query, query_weight, v)
    of_keys = torch.einsum("bsd,ad,a->bs", keys, key_weight, v)
    return of_query[:, :, None] + of_keys[:, None, :]


@mutant("additive_score", "relu")
def _(query, keys, query_weight, key_weight, v):
    B, T, S = query.shape[0], query.shape[1], keys.shape[1]
    scores = torch.zeros(B, T, S, dtype=query.dtype)
    for b in range(B):
        for i in range(T):
            for j in range(S):
                hidden = query_weight @ query[b, i] + key_weight @ keys[b, j]
                scores[b, i, j] = torch.dot(v, hidden.clamp(min=0))
    return scores


@mutant("additive_score", "sigmoid")
def _(query, keys, query_weight, key_weight, v):
    q, k = F.linear(query, query_weight), F.linear(keys, key_weight)
    hidden = 1 / (1 + torch.exp(-(q.unsqueeze(2) + k.unsqueeze(1))))
    return torch.einsum("btsa,a->bts", hidden, v)


@mutant("additive_score", "tanh_of_each")
def _(query, keys, query_weight, key_weight, v):
    of_query = torch.matmul(torch.tanh(torch.matmul(query, query_weight.t())), v)
    of_keys = torch.matmul(torch.tanh(torch.matmul(keys, key_weight.t())), v)
    return of_query.unsqueeze(-1) + of_keys.unsqueeze(-2)


@mutant("additive_score", "axes_swapped")
def _(query, keys, query_weight, key_weight, v):
    columns = []
    for j in range(keys.shape[1]):
        hidden = torch.tanh(F.linear(query, query_weight) + F.linear(keys[:, j : j + 1], key_weight))
        columns.append(hidden @ v)
    return torch.stack(columns, dim=1)


@mutant("additive_score", "returns_weights")
def _(query, keys, query_weight, key_weight, v):
    hidden = torch.tanh(F.linear(query, query_weight)[:, :, None] + F.linear(keys, key_weight)[:, None])
    exponentials = torch.exp(torch.einsum("a,btsa->bts", v, hidden))
    return exponentials / exponentials.sum(dim=2, keepdim=True)


@mutant("additive_score", "no_v")
def _(query, keys, query_weight, key_weight, v):
    hidden = torch.tanh(
        torch.einsum("btd,ad->bta", query, query_weight)[:, :, None]
        + torch.einsum("bsd,ad->bsa", keys, key_weight)[:, None]
    )
    return torch.einsum("btsa->bts", hidden)


@mutant("additive_score", "swapped_weights")
def _(query, keys, query_weight, key_weight, v):
    q = torch.einsum("btd,ad->bta", query, key_weight)
    k = torch.einsum("bsd,ad->bsa", keys, query_weight)
    return torch.einsum("btsa,a->bts", torch.tanh(q.unsqueeze(2) + k.unsqueeze(1)), v)


@mutant("additive_score", "scaled")
def _(query, keys, query_weight, key_weight, v):
    rows = []
    for i in range(query.shape[1]):
        hidden = torch.tanh(keys @ key_weight.mT + (query[:, i] @ query_weight.mT)[:, None])
        rows.append((hidden @ v) / math.sqrt(query_weight.shape[0]))
    return torch.stack(rows, dim=1)


@pair("additive_score", "no_tanh", "axes_swapped")
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return (k.unsqueeze(2) + q.unsqueeze(1)) @ v


@pair("additive_score", "relu", "no_v")
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return F.relu(q.unsqueeze(2) + k.unsqueeze(1)).sum(dim=-1)


@pair("additive_score", "no_tanh", "returns_weights")
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return F.softmax((q.unsqueeze(2) + k.unsqueeze(1)) @ v, dim=-1)


@pair("additive_score", "scaled", "axes_swapped")
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return torch.tanh(k.unsqueeze(2) + q.unsqueeze(1)) @ (v / v.shape[0] ** 0.5)


@form("additive_score", "softmax over the queries", None)
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return F.softmax(torch.tanh(q.unsqueeze(2) + k.unsqueeze(1)) @ v, dim=1)


@form("additive_score", "tanh after v", None)
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return torch.tanh((q.unsqueeze(2) + k.unsqueeze(1)) @ v)


@form("additive_score", "query and keys multiplied instead of added", None)
def _(query, keys, query_weight, key_weight, v):
    q, k = query @ query_weight.T, keys @ key_weight.T
    return torch.tanh(q.unsqueeze(2) * k.unsqueeze(1)) @ v


# --- additive_score: right answers ------------------------------------------------------------------------------


@right("additive_score", "loops over batch, queries and keys")
def _(query, keys, query_weight, key_weight, v):
    return torch.stack(
        [
            torch.stack([torch.stack([v @ torch.tanh(query_weight @ q + key_weight @ k) for k in ks]) for q in qs])
            for qs, ks in zip(query, keys, strict=True)
        ]
    )


@right("additive_score", "einsum")
def _(query, keys, query_weight, key_weight, v):
    q = torch.einsum("btd,ad->bta", query, query_weight)
    k = torch.einsum("bsd,ad->bsa", keys, key_weight)
    return torch.einsum("btsa,a->bts", torch.tanh(q[:, :, None] + k[:, None]), v)


@right("additive_score", "one product with the weights side by side")
def _(query, keys, query_weight, key_weight, v):
    T, S = query.shape[1], keys.shape[1]
    both = torch.cat(
        [query.unsqueeze(2).expand(-1, -1, S, -1), keys.unsqueeze(1).expand(-1, T, -1, -1)], dim=-1
    )  # (B, T, S, Dq + Dk)
    return F.linear(torch.tanh(F.linear(both, torch.cat([query_weight, key_weight], dim=1))), v[None]).squeeze(-1)


@right("additive_score", "in float64, rounded back, tanh by exponentials")
def _(query, keys, query_weight, key_weight, v):
    q, k = query.double() @ query_weight.double().mT, keys.double() @ key_weight.double().mT
    hidden = 1 - 2 / (torch.exp(2 * (q[:, :, None] + k[:, None])) + 1)
    return (hidden * v.double()).sum(-1).to(query.dtype)


# --- masked_softmax: mistakes -----------------------------------------------------------------------------------


def _finite_rows(weights):
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights)


@mutant("masked_softmax", "mask_ignored")
def _(scores, mask):
    return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))


@mutant("masked_softmax", "mask_inverted")
def _(scores, mask):
    scores = torch.where(mask, torch.tensor(-math.inf), scores)
    largest = scores.max(dim=-1, keepdim=True).values
    weights = torch.exp(scores - largest)
    return _finite_rows(weights / weights.sum(dim=-1, keepdim=True))


@mutant("masked_softmax", "mask_multiplies")
def _(scores, mask):
    exponentials = torch.exp(torch.einsum("bts,bts->bts", scores, mask.to(scores.dtype)))
    return exponentials / torch.einsum("bts->bt", exponentials).unsqueeze(-1)


@mutant("masked_softmax", "mask_after")
def _(scores, mask):
    exponentials = torch.exp(scores - scores.max(dim=2, keepdim=True)[0])
    weights = torch.div(exponentials, exponentials.sum(dim=2, keepdim=True))
    weights[~mask] = 0
    return weights


@mutant("masked_softmax", "over_queries")
def _(scores, mask):
    kept = torch.exp(scores - scores.max()) * mask.float()
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1e-30)


@mutant("masked_softmax", "empty_rows_nan")
def _(scores, mask):
    exponentials = torch.where(mask, torch.exp(scores), 0.0)
    return exponentials / exponentials.sum(-1)[..., None]


@mutant("masked_softmax", "empty_rows_uniform")
def _(scores, mask):
    scores = scores + (1.0 - mask.to(scores)) * -1e9
    exponentials = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return exponentials / exponentials.sum(-1, keepdim=True)


@mutant("masked_softmax", "mask_added")
def _(scores, mask):
    scores = torch.add(scores, mask.float())
    return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))


@mutant("masked_softmax", "hard")
def _(scores, mask):
    weights = torch.zeros_like(scores)
    B, T, S = scores.shape
    for b in range(B):
        for i in range(T):
            allowed = [j for j in range(S) if mask[b, i, j]]
            if allowed:
                weights[b, i, max(allowed, key=lambda j, b=b, i=i: scores[b, i, j].item())] = 1
    return weights


@mutant("masked_softmax", "no_normaliser")
def _(scores, mask):
    return torch.exp(scores) * mask


@pair("masked_softmax", "mask_inverted", "over_queries")
def _(scores, mask):
    kept = torch.exp(scores - scores.max()) * (~mask)
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1e-30)


@pair("masked_softmax", "mask_ignored", "over_queries")
def _(scores, mask):
    exponentials = torch.exp(scores - scores.amax(1, keepdim=True))
    return exponentials / exponentials.sum(1, keepdim=True)


@pair("masked_softmax", "over_queries", "empty_rows_nan")
def _(scores, mask):
    scores = scores.masked_fill(mask == 0, float("-inf"))
    exponentials = torch.exp(scores - scores.amax(1, keepdim=True))
    return exponentials / exponentials.sum(1, keepdim=True)


@pair("masked_softmax", "mask_inverted", "empty_rows_uniform")
def _(scores, mask):
    scores = scores.masked_fill(mask, -1e9)
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


@pair("masked_softmax", "mask_inverted", "no_normaliser")
def _(scores, mask):
    return torch.where(mask, 0.0, scores.exp())


@pair("masked_softmax", "mask_ignored", "no_normaliser")
def _(scores, mask):
    return torch.exp(scores)


@pair("masked_softmax", "mask_ignored", "hard")
def _(scores, mask):
    return (torch.arange(scores.shape[-1]) == scores.argmax(-1, keepdim=True)).float()


@pair("masked_softmax", "mask_inverted", "mask_multiplies")
def _(scores, mask):
    exponentials = (scores * (1 - mask.float())).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


@pair("masked_softmax", "over_queries", "mask_after")
def _(scores, mask):
    exponentials = torch.exp(scores)
    return exponentials / exponentials.sum(-2, keepdim=True) * mask


@form("masked_softmax", "inverted, and rows that the right mask leaves empty are zeros", "mask_inverted")
def _(scores, mask):
    scores = scores.masked_fill(mask, -math.inf)
    weights = torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))
    return torch.where(mask.any(-1, keepdim=True), weights, 0.0)


@form("masked_softmax", "the largest score subtracted, the sum forgotten", "no_normaliser")
def _(scores, mask):
    scores = scores.masked_fill(~mask, -math.inf)
    return torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=-1e30))


@form("masked_softmax", "scores multiplied by the mask, empty rows zeros", "mask_multiplies")
def _(scores, mask):
    exponentials = (scores * mask).exp()
    return exponentials / exponentials.sum(-1, keepdim=True) * mask.any(-1, keepdim=True)


@form("masked_softmax", "scores multiplied by the mask, then the weights too", None)
def _(scores, mask):
    exponentials = (scores * mask).exp()
    return exponentials / exponentials.sum(-1, keepdim=True) * mask


@form("masked_softmax", "boolean mask added, empty rows zeros", "mask_added")
def _(scores, mask):
    exponentials = (scores + mask).exp()
    return exponentials / exponentials.sum(-1, keepdim=True) * mask.any(-1, keepdim=True)


@form("masked_softmax", "argmax, an empty row points at key 0", "hard")
def _(scores, mask):
    best = scores.masked_fill(~mask, -math.inf).argmax(-1)
    return F.one_hot(best, scores.shape[-1]).to(scores.dtype)


@form("masked_softmax", "finfo.min as fill", "empty_rows_uniform")
def _(scores, mask):
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


@form("masked_softmax", "-10000 added to forbidden scores", "empty_rows_uniform")
def _(scores, mask):
    scores = scores + (~mask) * -1e4
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


@form("masked_softmax", "0 times -inf", None)
def _(scores, mask):
    scores = scores + (1 - mask.float()) * -math.inf
    exponentials = torch.exp(scores)
    return exponentials / exponentials.sum(-1, keepdim=True)


@form("masked_softmax", "one softmax over all queries and keys", None)
def _(scores, mask):
    exponentials = scores.exp() * mask
    return exponentials / exponentials.sum((-2, -1), keepdim=True)


# --- masked_softmax: right answers ------------------------------------------------------------------------------


@right("masked_softmax", "loops, Python numbers gathered by row")
def _(scores, mask):
    rows = []
    for row, allowed in zip(scores.reshape(-1, scores.shape[-1]), mask.reshape(-1, mask.shape[-1]), strict=True):
        weights = torch.zeros_like(row)
        if allowed.any():
            chosen = row[allowed]
            exponentials = torch.exp(chosen - chosen.max())
            weights = weights.masked_scatter(allowed, exponentials / exponentials.sum())
        rows.append(weights)
    return torch.stack(rows).reshape(scores.shape)


@right("masked_softmax", "logsumexp and where")
def _(scores, mask):
    some = mask.any(-1, keepdim=True)
    open_rows = torch.where(mask | ~some, scores, -math.inf)  # an empty row is computed, then thrown away
    weights = torch.exp(open_rows - torch.logsumexp(open_rows, -1, keepdim=True))
    return torch.where(some, weights, 0.0)


@right("masked_softmax", "exponentials times the mask, einsum for the sum")
def _(scores, mask):
    allowed = mask.to(scores.dtype)
    lowest = scores.detach().amin()
    largest = torch.where(mask, scores, lowest).amax(-1, keepdim=True)
    exponentials = torch.where(mask, scores - largest, 0.0).exp() * allowed
    total = torch.einsum("bts,bts->bt", exponentials, allowed)
    return exponentials / (total + (total == 0)).unsqueeze(-1)


@right("masked_softmax", "sorted copy gives the maximum, in place on a clone")
def _(scores, mask):
    work = scores.clone()
    work[~mask] = -torch.inf
    work = work - work.sort(dim=-1, descending=True).values[..., :1].nan_to_num(neginf=0.0)
    work = work.exp()
    total = work.sum(dim=-1, keepdim=True)
    return work / torch.where(total > 0, total, torch.ones_like(total))


# --- context_vector: mistakes -----------------------------------------------------------------------------------


@mutant("context_vector", "uniform")
def _(weights, values):
    return values.mean(dim=1, keepdim=True).repeat(1, weights.shape[1], 1)


@mutant("context_vector", "unweighted_sum")
def _(weights, values):
    return torch.einsum("bsd->bd", values)[:, None].expand(-1, weights.shape[1], -1)


@mutant("context_vector", "hard")
def _(weights, values):
    best = weights.max(dim=-1).indices
    return torch.stack([values[b][best[b]] for b in range(values.shape[0])])


@mutant("context_vector", "softmax_again")
def _(weights, values):
    return torch.bmm(F.softmax(weights, dim=2), values)


@mutant("context_vector", "renormalised")
def _(weights, values):
    shares = torch.stack([row / row.sum() for row in weights.flatten(0, 1)]).view_as(weights)
    return torch.einsum("bts,bsd->btd", shares, values)


@mutant("context_vector", "weights_transposed")
def _(weights, values):
    return torch.bmm(weights.permute(0, 2, 1), values)


@mutant("context_vector", "divided")
def _(weights, values):
    return (weights.unsqueeze(-1) * values.unsqueeze(1)).mean(dim=2)


@mutant("context_vector", "maximum")
def _(weights, values):
    return torch.einsum("bts,bsd->btsd", weights, values).amax(dim=-2)


@mutant("context_vector", "queries_summed")
def _(weights, values):
    return torch.einsum("bts,bsd->bd", weights, values)


@mutant("context_vector", "not_summed")
def _(weights, values):
    return torch.einsum("bts,bsd->btsd", weights, values)


@pair("context_vector", "softmax_again", "divided")
def _(weights, values):
    return (F.softmax(weights, dim=-1).unsqueeze(-1) * values.unsqueeze(1)).mean(2)


@pair("context_vector", "weights_transposed", "divided")
def _(weights, values):
    return torch.bmm(weights.transpose(1, 2), values) / values.shape[1]


@pair("context_vector", "softmax_again", "queries_summed")
def _(weights, values):
    return torch.bmm(F.softmax(weights, dim=-1), values).sum(dim=1)


@form("context_vector", "values multiplied from the left", None)
def _(weights, values):
    return values @ weights


@form("context_vector", "divided by the number of queries", None)
def _(weights, values):
    return torch.bmm(weights, values) / weights.shape[1]


@form("context_vector", "softmax again, over the queries", None)
def _(weights, values):
    return torch.bmm(F.softmax(weights, dim=1), values)


@form("context_vector", "queries averaged", None)
def _(weights, values):
    return torch.bmm(weights, values).mean(1)


# --- context_vector: right answers ------------------------------------------------------------------------------


@right("context_vector", "loops")
def _(weights, values):
    contexts = []
    for b in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            contexts.append(sum(weights[b, i, j] * values[b, j] for j in range(values.shape[1])))
    return torch.stack(contexts).reshape(weights.shape[0], weights.shape[1], values.shape[2])


@right("context_vector", "einsum")
def _(weights, values):
    return torch.einsum("bts,bsd->btd", weights, values)


@right("context_vector", "multiply and sum")
def _(weights, values):
    return (weights.unsqueeze(-1) * values.unsqueeze(1)).sum(2)


@right("context_vector", "values transposed, matrix product from the left")
def _(weights, values):
    return torch.bmm(values.permute(0, 2, 1), weights.permute(0, 2, 1)).transpose(1, 2)


# --- attention: mistakes ----------------------------------------------------------------------------------------


class _Parameters(nn.Module):
    """The constructor that all answers share: one linear layer each, and v as a vector."""

    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.v = nn.Parameter(torch.randn(hidden_dim))

    def scores(self, query, keys):
        hidden = torch.tanh(self.query_proj(query).unsqueeze(2) + self.key_proj(keys).unsqueeze(1))
        return torch.einsum("btsa,a->bts", hidden, self.v)


def _softmax(scores, mask, axis=-1):
    """Right along the last axis; mask (B, S) or None."""
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), -math.inf)
    return _finite_rows(F.softmax(scores, dim=axis))


@mutant("attention", "order_swapped")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = _softmax(self.scores(query, keys), mask)
        return weights, torch.bmm(weights, keys if values is None else values)


@mutant("attention", "values_ignored")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = _softmax(self.scores(query, keys), mask)
        return torch.einsum("bts,bsd->btd", weights, keys), weights


@mutant("attention", "projected_values")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        q, k = self.query_proj(query), self.key_proj(keys)
        scores = torch.stack([torch.tanh(q[:, i : i + 1] + k) @ self.v for i in range(q.shape[1])], dim=1)
        weights = _softmax(scores, mask)
        return weights @ k, weights


@mutant("attention", "returns_scores")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        weights = _softmax(scores, mask)
        return weights @ (keys if values is None else values), scores


@mutant("attention", "no_tanh")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = (self.query_proj(query) @ self.v)[:, :, None] + (self.key_proj(keys) @ self.v)[:, None]
        weights = _softmax(scores, mask)
        return weights @ (keys if values is None else values), weights


@mutant("attention", "tanh_of_each")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        q, k = torch.tanh(self.query_proj(query)), torch.tanh(self.key_proj(keys))
        weights = _softmax(torch.einsum("btsa,a->bts", q[:, :, None] + k[:, None], self.v), mask)
        return weights @ (keys if values is None else values), weights


@mutant("attention", "mask_ignored")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = torch.softmax(self.scores(query, keys), -1)
        return weights.matmul(values if values is not None else keys), weights


@mutant("attention", "mask_inverted")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = torch.where(mask.unsqueeze(1), -math.inf, scores)
        weights = torch.nan_to_num(torch.softmax(scores, -1))
        return weights @ (values if values is not None else keys), weights


@mutant("attention", "over_queries")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = _softmax(self.scores(query, keys), mask, axis=1)
        return weights @ (values if values is not None else keys), weights


@mutant("attention", "empty_rows_nan")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = scores + torch.zeros_like(scores).masked_fill(~mask[:, None], -math.inf)
        weights = F.softmax(scores, dim=2)
        return weights @ (keys if values is None else values), weights


@mutant("attention", "mask_after")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = F.softmax(self.scores(query, keys), dim=-1)
        if mask is not None:
            weights = weights * mask.unsqueeze(1).float()
        return weights @ (keys if values is None else values), weights


@pair("attention", "order_swapped", "mask_ignored")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = F.softmax(self.scores(query, keys), dim=-1)
        return weights, weights @ (keys if values is None else values)


@pair("attention", "no_tanh", "mask_ignored")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        hidden = self.query_proj(query)[:, :, None] + self.key_proj(keys)[:, None]
        weights = F.softmax(hidden @ self.v, dim=-1)
        return weights @ (keys if values is None else values), weights


@pair("attention", "returns_scores", "order_swapped")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        return scores, _softmax(scores, mask) @ (keys if values is None else values)


@pair("attention", "values_ignored", "empty_rows_nan")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not().unsqueeze(1), -math.inf)
        weights = scores.softmax(-1)
        return weights @ keys, weights


@pair("attention", "mask_ignored", "values_ignored")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = F.softmax(self.scores(query, keys), dim=-1)
        return weights @ keys, weights


@form("attention", "projected keys stand in for values only where none are given", "projected_values")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        query, keys = self.query_proj(query), self.key_proj(keys)
        weights = _softmax(torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1)) @ self.v, mask)
        return weights @ (keys if values is None else values), weights


@form("attention", "the masked scores are returned", "returns_scores")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -math.inf)
        return _finite_rows(scores.softmax(-1)) @ (keys if values is None else values), scores


@form("attention", "masked with -1e9", None)
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -1e9)
        weights = scores.softmax(-1)
        return weights @ (keys if values is None else values), weights


@form("attention", "divided by the square root of hidden_dim", None)
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = _softmax(self.scores(query, keys) / self.v.shape[0] ** 0.5, mask)
        return weights @ (keys if values is None else values), weights


@form("attention", "the mask multiplies the scores", None)
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        scores = self.scores(query, keys)
        if mask is not None:
            scores = scores * mask[:, None]
        weights = scores.softmax(-1)
        return weights @ (keys if values is None else values), weights


# --- attention: right answers -----------------------------------------------------------------------------------


@right("attention", "einsum and torch's own softmax")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        q = torch.einsum("btd,ad->bta", query, self.query_proj.weight)
        k = torch.einsum("bsd,ad->bsa", keys, self.key_proj.weight)
        scores = torch.einsum("btsa,a->bts", torch.tanh(q[:, :, None] + k[:, None]), self.v)
        if mask is not None:
            scores = torch.where(mask[:, None], scores, -math.inf)
        weights = torch.nan_to_num(torch.softmax(scores, -1), nan=0.0)
        return torch.einsum("bts,bsd->btd", weights, keys if values is None else values), weights


@right("attention", "one query at a time")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        if values is None:
            values = keys
        if mask is None:
            mask = keys.new_ones(keys.shape[:2], dtype=torch.bool)
        projected, contexts, rows = self.key_proj(keys), [], []
        for i in range(query.shape[1]):
            scores = (torch.tanh(self.query_proj(query[:, i, None]) + projected) * self.v).sum(-1)  # (B, S)
            top = scores.masked_fill(~mask, -1e30).max(dim=1, keepdim=True).values
            kept = torch.where(mask, (scores - top).clamp(max=0).exp(), 0.0)
            row = kept / kept.sum(1, keepdim=True).clamp(min=1e-30)
            rows.append(row)
            contexts.append((row.unsqueeze(-1) * values).sum(1))
        return torch.stack(contexts, 1), torch.stack(rows, 1)


@right("attention", "masked after the softmax and normalised again")
class _(_Parameters):
    def forward(self, query, keys, values=None, mask=None):
        weights = F.softmax(self.scores(query, keys), dim=-1)
        if mask is not None:
            weights = weights * mask.unsqueeze(-2)
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return [weights.bmm(keys if values is None else values), weights]


@right("attention", "v kept inside a method, loops over the batch")
class _(_Parameters):
    def one(self, query, keys, values, mask):
        scores = torch.stack([torch.tanh(self.key_proj(keys) + self.query_proj(q)).mv(self.v) for q in query])
        weights = torch.zeros_like(scores)
        if mask.any():
            weights = weights.index_copy(1, mask.nonzero()[:, 0], scores[:, mask].softmax(-1))
        return weights @ values, weights

    def forward(self, query, keys, values=None, mask=None):
        values = keys if values is None else values
        mask = torch.ones(keys.shape[:2]).bool() if mask is None else mask
        pairs = [self.one(*parts) for parts in zip(query, keys, values, mask, strict=True)]
        return torch.stack([context for context, _ in pairs]), torch.stack([weights for _, weights in pairs])


# --- decoder: mistakes ------------------------------------------------------------------------------------------


class _Decoder(nn.Module):
    """What most answers share: the layers and `begin`."""

    def __init__(self, embed_dim, key_dim, state_dim, hidden_dim):
        super().__init__()
        self.attention = AdditiveAttention(state_dim, key_dim, hidden_dim)
        self.cell = nn.GRUCell(embed_dim + key_dim, state_dim)

    def begin(self, keys, mask, state):
        self.keys = keys
        self.mask = mask
        self.state = state

    def look(self, state, mask=True):
        """The context (B, key_dim) and weights (B, S) of one query."""
        context, weights = self.attention(state.unsqueeze(1), self.keys, None, self.mask if mask else None)
        return context.squeeze(1), weights.squeeze(1)


@mutant("decoder", "query_is_new_state")
class _(_Decoder):
    def step(self, embedding):
        context, _ = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return self.state, self.look(self.state)[1]


@mutant("decoder", "state_not_kept")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        state = self.cell(torch.hstack([embedding, context]), self.state)
        return state, weights


@mutant("decoder", "state_restarted")
class _(_Decoder):
    def step(self, embedding):
        state = torch.zeros(embedding.shape[0], self.cell.hidden_size)
        context, weights = self.look(state)
        self.state = self.cell(torch.hstack([embedding, context]), state)
        return self.state, weights


@mutant("decoder", "cell_without_state")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]))
        return self.state, weights


@mutant("decoder", "parts_swapped")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([context, embedding]), self.state)
        return self.state, weights


@mutant("decoder", "context_left_out")
class _(_Decoder):
    def step(self, embedding):
        _, weights = self.look(self.state)
        self.state = self.cell(F.pad(embedding, (0, self.keys.shape[2])), self.state)
        return self.state, weights


@mutant("decoder", "mean_context")
class _(_Decoder):
    def step(self, embedding):
        _, weights = self.look(self.state)
        means = [keys[allowed].mean(dim=0) for keys, allowed in zip(self.keys, self.mask, strict=True)]
        self.state = self.cell(torch.hstack([embedding, torch.stack(means)]), self.state)
        return self.state, weights


@mutant("decoder", "mask_ignored")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.attention(self.state.unsqueeze(1), self.keys)
        self.state = self.cell(torch.cat((embedding, context.squeeze(1)), 1), self.state)
        return self.state, weights.squeeze(1)


@mutant("decoder", "returns_old_state")
class _(_Decoder):
    def step(self, embedding):
        before = self.state
        context, weights = self.look(before)
        self.state = self.cell(torch.hstack([embedding, context]), before)
        return before, weights


@pair("decoder", "parts_swapped", "mask_ignored")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state, mask=False)
        self.state = self.cell(torch.hstack([context, embedding]), self.state)
        return self.state, weights


@pair("decoder", "query_is_new_state", "mask_ignored")
class _(_Decoder):
    def step(self, embedding):
        context, _ = self.look(self.state, mask=False)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return self.state, self.look(self.state, mask=False)[1]


@pair("decoder", "cell_without_state", "parts_swapped")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([context, embedding]))
        return self.state, weights


@pair("decoder", "mask_ignored", "state_not_kept")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state, mask=False)
        return self.cell(torch.hstack([embedding, context]), self.state), weights


@form("decoder", "begin forgets the state it is given", None)
class _(_Decoder):
    def begin(self, keys, mask, state):
        super().begin(keys, mask, torch.zeros_like(state))

    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return self.state, weights


@form("decoder", "the mean counts the padding too", "mean_context")
class _(_Decoder):
    def step(self, embedding):
        _, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, self.keys.mean(1)]), self.state)
        return self.state, weights


@form("decoder", "the context of the new state is shown and the old one's is used", None)
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(torch.zeros_like(self.state))
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return self.state, weights


@form("decoder", "the weights come first", None)
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return weights, self.state


@form("decoder", "the context is returned for the state", None)
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return context, weights


# --- decoder: right answers -------------------------------------------------------------------------------------


@right("decoder", "squeeze and hstack")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        self.state = self.cell(torch.hstack([embedding, context]), self.state)
        return self.state, weights


@right("decoder", "the GRU's gates written out")
class _(_Decoder):
    def step(self, embedding):
        context, weights = self.look(self.state)
        x = torch.cat([embedding, context], dim=1)
        from_x = x @ self.cell.weight_ih.T + self.cell.bias_ih
        from_state = self.state @ self.cell.weight_hh.T + self.cell.bias_hh
        (rx, zx, nx), (rh, zh, nh) = from_x.chunk(3, dim=1), from_state.chunk(3, dim=1)
        keep = torch.sigmoid(zx + zh)
        new = torch.tanh(nx + torch.sigmoid(rx + rh) * nh)
        self.state = keep * self.state + (1 - keep) * new
        return self.state, weights


@right("decoder", "the context from the weights, a dictionary for memory")
class _(_Decoder):
    def begin(self, keys, mask, state):
        self.memory = {"keys": keys, "mask": mask, "state": state}

    def step(self, embedding):
        memory = self.memory
        _, weights = self.attention(memory["state"][:, None, :], memory["keys"], mask=memory["mask"][:, None, :])
        weights = weights[:, 0, :]
        context = torch.einsum("bs,bsd->bd", weights, memory["keys"])
        memory["state"] = self.cell(torch.cat((embedding, context), dim=-1), memory["state"])
        return memory["state"], weights
