"""Chapter 03 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/self_attention.py: the styles differ on purpose (loops,
einsum, matmul, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from attncourse.attention import scaled_dot_product_attention
from tests.checks.mutants import Answers

ANSWERS = Answers("self_attention")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- project_tokens: mistakes -----------------------------------------------------------------------------------


@mutant("project_tokens", "weight_transposed")
def _(x, q_weight, k_weight, v_weight):
    return x @ q_weight, x @ k_weight, x @ v_weight


@mutant("project_tokens", "weight_reshaped")
def _(x, q_weight, k_weight, v_weight):
    d_model = x.shape[-1]
    return tuple(torch.matmul(x, weight.view(d_model, -1)) for weight in (q_weight, k_weight, v_weight))


@mutant("project_tokens", "one_weight")
def _(x, q_weight, k_weight, v_weight):
    query = F.linear(x, q_weight)
    return query, query.clone(), query.clone()


@mutant("project_tokens", "query_key_exchanged")
def _(x, q_weight, k_weight, v_weight):
    query, key, value = (F.linear(x, weight) for weight in (k_weight, q_weight, v_weight))
    return query, key, value


@mutant("project_tokens", "key_value_exchanged")
def _(x, q_weight, k_weight, v_weight):
    q, k, v = F.linear(x, q_weight), F.linear(x, k_weight), F.linear(x, v_weight)
    return q, v, k


@mutant("project_tokens", "value_not_projected")
def _(x, q_weight, k_weight, v_weight):
    return F.linear(x, q_weight), F.linear(x, k_weight), x


@mutant("project_tokens", "chained")
def _(x, q_weight, k_weight, v_weight):
    found = []
    for weight in (q_weight, k_weight, v_weight):
        x = x @ weight.mT
        found.append(x)
    return tuple(found)


@mutant("project_tokens", "query_scaled")
def _(x, q_weight, k_weight, v_weight):
    D = k_weight.shape[0]
    return F.linear(x, q_weight) * D**-0.5, F.linear(x, k_weight), F.linear(x, v_weight)


@pair("project_tokens", "weight_reshaped", "key_value_exchanged")
def _(x, q_weight, k_weight, v_weight):
    q, k, v = (x @ weight.reshape(x.shape[-1], weight.shape[0]) for weight in (q_weight, k_weight, v_weight))
    return q, v, k


@pair("project_tokens", "query_scaled", "query_key_exchanged")
def _(x, q_weight, k_weight, v_weight):
    key, query = F.linear(x, q_weight) / math.sqrt(len(q_weight)), F.linear(x, k_weight)
    return query, key, F.linear(x, v_weight)


@pair("project_tokens", "weight_reshaped", "value_not_projected")
def _(x, q_weight, k_weight, v_weight):
    return x @ q_weight.view(x.shape[-1], -1), x @ k_weight.view(x.shape[-1], -1), x


@pair("project_tokens", "one_weight", "value_not_projected")
def _(x, q_weight, k_weight, v_weight):
    return x @ q_weight.T, x @ q_weight.T, x


@form("project_tokens", "k_weight makes the values too", None)
def _(x, q_weight, k_weight, v_weight):
    return F.linear(x, q_weight), F.linear(x, k_weight), F.linear(x, k_weight)


@form("project_tokens", "the key is the token itself", None)
def _(x, q_weight, k_weight, v_weight):
    return F.linear(x, q_weight), x, F.linear(x, v_weight)


@form("project_tokens", "joined in one tensor", None)
def _(x, q_weight, k_weight, v_weight):
    return torch.cat([F.linear(x, weight) for weight in (q_weight, k_weight, v_weight)], dim=-1)


@form("project_tokens", "the value is divided by the square root of D too", None)
def _(x, q_weight, k_weight, v_weight):
    return tuple(F.linear(x, weight) / len(weight) ** 0.5 for weight in (q_weight, k_weight, v_weight))


@form("project_tokens", "the weight is multiplied from the left", None)
def _(x, q_weight, k_weight, v_weight):
    return q_weight @ x.mT, k_weight @ x.mT, v_weight @ x.mT


# --- project_tokens: right answers ------------------------------------------------------------------------------


@right("project_tokens", "F.linear")
def _(x, q_weight, k_weight, v_weight):
    return F.linear(x, q_weight), F.linear(x, k_weight), F.linear(x, v_weight)


@right("project_tokens", "einsum")
def _(x, q_weight, k_weight, v_weight):
    return [torch.einsum("btm,dm->btd", x, weight) for weight in (q_weight, k_weight, v_weight)]


@right("project_tokens", "one product with the weights under each other, then split")
def _(x, q_weight, k_weight, v_weight):
    every = x @ torch.cat([q_weight, k_weight, v_weight]).T
    return every.split([len(q_weight), len(k_weight), len(v_weight)], dim=-1)


@right("project_tokens", "loops over batch and tokens")
def _(x, q_weight, k_weight, v_weight):
    def project(weight):
        return torch.stack([torch.stack([weight @ token for token in sequence]) for sequence in x])

    return project(q_weight), project(k_weight), project(v_weight)


# --- scaled_scores: mistakes ------------------------------------------------------------------------------------


@mutant("scaled_scores", "unscaled")
def _(query, key):
    return torch.bmm(query, key.permute(0, 2, 1))


@mutant("scaled_scores", "divided_by_d")
def _(query, key):
    root = math.sqrt(query.shape[-1])
    return (query / root) @ (key / root).mT


@mutant("scaled_scores", "half_d")
def _(query, key):
    return torch.bmm(query, key.mT) / query.size(-1) ** 1 / 2


@mutant("scaled_scores", "multiplied")
def _(query, key):
    return torch.einsum("btd,bsd->bts", query, key) * math.sqrt(key.size(-1))


@mutant("scaled_scores", "root_of_t")
def _(query, key):
    return query @ key.mT / query.shape[1] ** 0.5


@mutant("scaled_scores", "root_of_s")
def _(query, key):
    d_k = key.mT.shape[-1]  # the last axis, after transposing
    return query @ key.mT / math.sqrt(d_k)


@mutant("scaled_scores", "axes_swapped")
def _(query, key):
    return torch.bmm(key, query.transpose(1, 2)) / query.size(2) ** 0.5


@mutant("scaled_scores", "key_reshaped")
def _(query, key):
    B, S, D = key.shape
    return query @ key.reshape(B, D, S) / math.sqrt(D)


@mutant("scaled_scores", "returns_weights")
def _(query, key):
    exponentials = torch.exp(query @ key.mT * query.shape[-1] ** -0.5)
    return exponentials / exponentials.sum(dim=2, keepdim=True)


@mutant("scaled_scores", "cosine")
def _(query, key):
    return F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / math.sqrt(query.shape[-1])


@pair("scaled_scores", "unscaled", "axes_swapped")
def _(query, key):
    return key @ query.mT


@pair("scaled_scores", "unscaled", "cosine")
def _(query, key):
    return F.cosine_similarity(query.unsqueeze(2), key.unsqueeze(1), dim=-1)


@pair("scaled_scores", "unscaled", "returns_weights")
def _(query, key):
    return F.softmax(query @ key.mT, dim=-1)


@pair("scaled_scores", "root_of_s", "returns_weights")
def _(query, key):
    return F.softmax(query @ key.mT / math.sqrt(key.shape[1]), dim=-1)


@pair("scaled_scores", "unscaled", "key_reshaped")
def _(query, key):
    return query @ key.reshape(key.shape[0], key.shape[2], key.shape[1])


@pair("scaled_scores", "divided_by_d", "axes_swapped")
def _(query, key):
    return torch.einsum("bsd,btd->bst", key, query).div(query.shape[-1])


@form("scaled_scores", "softmax over the queries", None)
def _(query, key):
    return F.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=1)


@form("scaled_scores", "divided by half of D", None)
def _(query, key):
    root = key.shape[-1] ** 1 / 2
    return query @ key.mT / root


@form("scaled_scores", "divided by the square root of all numbers of a query", None)
def _(query, key):
    return query @ key.mT / (query.shape[1] * query.shape[2]) ** 0.5


@form("scaled_scores", "the scale comes from the batch", None)
def _(query, key):
    return query @ key.mT / math.sqrt(query.shape[0])


@form("scaled_scores", "scaled twice, query and scores", "divided_by_d")
def _(query, key):
    query = query / math.sqrt(query.shape[-1])
    return query @ key.mT / math.sqrt(query.shape[-1])


@form("scaled_scores", "the negative distance", None)
def _(query, key):
    return -torch.cdist(query, key) / math.sqrt(query.shape[-1])


@form("scaled_scores", "the fourth root", None)
def _(query, key):
    return query @ key.mT / query.shape[-1] ** 0.25


# --- scaled_scores: right answers -------------------------------------------------------------------------------


@right("scaled_scores", "loops over batch, queries and keys")
def _(query, key):
    D = query.shape[-1]
    return torch.stack(
        [torch.stack([torch.stack([q @ k / math.sqrt(D) for k in ks]) for q in qs])
         for qs, ks in zip(query, key, strict=True)]
    )  # fmt: skip


@right("scaled_scores", "einsum, the query scaled first")
def _(query, key):
    return torch.einsum("btd,bsd->bts", query * query.shape[-1] ** -0.5, key)


@right("scaled_scores", "baddbmm")
def _(query, key):
    B, T, D = query.shape
    nothing = query.new_zeros(B, T, key.shape[1])
    return torch.baddbmm(nothing, query, key.permute(0, 2, 1), beta=0, alpha=1 / math.sqrt(D))


@right("scaled_scores", "multiply and sum, both divided by the fourth root")
def _(query, key):
    root = query.shape[-1] ** 0.25
    return ((query / root)[:, :, None] * (key / root)[:, None]).sum(-1)


# --- masked_attention: mistakes ---------------------------------------------------------------------------------


def _softmax(scores, mask, axis=-1):
    """Weights by exponentials, rows with no allowed key zero."""
    largest = scores.masked_fill(~mask, -1e30).amax(axis, keepdim=True)
    exponentials = torch.where(mask, (scores - largest).clamp(max=0).exp(), 0.0)
    return exponentials / exponentials.sum(axis, keepdim=True).clamp(min=1e-30)


def _products(query, key):
    return torch.bmm(query, key.permute(0, 2, 1))


@mutant("masked_attention", "unscaled")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key), mask)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "divided_by_d")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key) / query.shape[2], mask)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "multiplied")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key) * math.sqrt(query.shape[2]), mask)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "root_of_t")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key) / math.sqrt(query.size(1)), mask)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "root_of_dv")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key) / math.sqrt(value.size(-1)), mask)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "scaled_after")
def _(query, key, value, mask):
    weights = _softmax(_products(query, key), mask) / math.sqrt(query.size(-1))
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "over_queries")
def _(query, key, value, mask):
    scores = _products(query, key) / math.sqrt(query.size(-1))
    kept = scores.exp() * mask
    weights = kept / kept.sum(dim=1, keepdim=True).clamp(min=1e-20)
    return torch.bmm(weights, value), weights


@mutant("masked_attention", "no_softmax")
def _(query, key, value, mask):
    weights = _products(query, key) / math.sqrt(query.size(-1)) * mask
    return weights @ value, weights


@mutant("masked_attention", "mask_ignored")
def _(query, key, value, mask):
    exponentials = torch.exp(_products(query, key) / math.sqrt(query.size(-1)))
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return torch.einsum("bts,bsv->btv", weights, value), weights


@mutant("masked_attention", "mask_inverted")
def _(query, key, value, mask):
    scores = torch.where(mask, -math.inf, _products(query, key) / math.sqrt(query.size(-1)))
    weights = F.softmax(scores, dim=2).nan_to_num(0.0)
    return weights @ value, weights


@mutant("masked_attention", "mask_multiplies")
def _(query, key, value, mask):
    exponentials = torch.exp(_products(query, key) / math.sqrt(query.size(-1)) * mask.float())
    weights = exponentials / exponentials.sum(2, keepdim=True)
    return weights @ value, weights


@mutant("masked_attention", "mask_added")
def _(query, key, value, mask):
    weights = F.softmax(mask.to(query.dtype) + _products(query, key) / math.sqrt(query.size(-1)), dim=-1)
    return weights @ value, weights


@mutant("masked_attention", "mask_after")
def _(query, key, value, mask):
    weights = F.softmax(_products(query, key) / math.sqrt(query.size(-1)), dim=-1)
    weights[~mask] = 0
    return weights @ value, weights


@mutant("masked_attention", "empty_rows_nan")
def _(query, key, value, mask):
    added = torch.zeros(mask.shape).masked_fill(mask.logical_not(), -math.inf)
    weights = F.softmax(_products(query, key) / math.sqrt(query.size(-1)) + added, dim=-1)
    return weights @ value, weights


@mutant("masked_attention", "empty_rows_uniform")
def _(query, key, value, mask):
    scores = _products(query, key) / math.sqrt(query.size(-1)) + (1.0 - mask.float()) * -1e9
    weights = F.softmax(scores, dim=-1)
    return weights @ value, weights


@mutant("masked_attention", "hard")
def _(query, key, value, mask):
    scores, weights = _products(query, key), torch.zeros(mask.shape)
    for b, i in mask.any(-1).nonzero().tolist():
        allowed = mask[b, i].nonzero()[:, 0]
        weights[b, i, allowed[scores[b, i, allowed].argmax()]] = 1.0
    return weights @ value, weights


@pair("masked_attention", "unscaled", "mask_ignored")
def _(query, key, value, mask):
    weights = F.softmax(query @ key.mT, dim=-1)
    return weights @ value, weights


@pair("masked_attention", "unscaled", "mask_inverted")
def _(query, key, value, mask):
    weights = _softmax(query @ key.mT, ~mask)
    return weights @ value, weights


@pair("masked_attention", "unscaled", "mask_added")
def _(query, key, value, mask):
    weights = F.softmax(query @ key.mT + mask, dim=-1)
    return weights @ value, weights


@pair("masked_attention", "unscaled", "empty_rows_nan")
def _(query, key, value, mask):
    weights = F.softmax((query @ key.mT).masked_fill(mask == 0, float("-inf")), dim=-1)
    return weights @ value, weights


@pair("masked_attention", "unscaled", "empty_rows_uniform")
def _(query, key, value, mask):
    weights = F.softmax((query @ key.mT).masked_fill(mask == 0, -1e9), dim=-1)
    return weights @ value, weights


@pair("masked_attention", "mask_inverted", "empty_rows_nan")
def _(query, key, value, mask):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    weights = F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)
    return weights @ value, weights


@pair("masked_attention", "mask_inverted", "empty_rows_uniform")
def _(query, key, value, mask):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    weights = F.softmax(scores.masked_fill(mask, -1e9), dim=-1)
    return weights @ value, weights


@pair("masked_attention", "over_queries", "mask_ignored")
def _(query, key, value, mask):
    weights = F.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=1)
    return weights @ value, weights


@pair("masked_attention", "divided_by_d", "mask_after")
def _(query, key, value, mask):
    weights = F.softmax(query @ key.mT / query.shape[-1], dim=-1) * mask
    return weights @ value, weights


@form("masked_attention", "-inf, and then no softmax", "no_softmax")
def _(query, key, value, mask):
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~mask, -math.inf)
    return weights @ value, weights


@form("masked_attention", "the weights come first", None)
def _(query, key, value, mask):
    weights = _softmax(query @ key.mT / math.sqrt(query.shape[-1]), mask)
    return weights, weights @ value


@form("masked_attention", "the scores stand in for the weights", None)
def _(query, key, value, mask):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return _softmax(scores, mask) @ value, scores


@form("masked_attention", "exponentials, not divided by their sum", None)
def _(query, key, value, mask):
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).exp() * mask
    return weights @ value, weights


@form("masked_attention", "sigmoid for softmax", None)
def _(query, key, value, mask):
    weights = torch.sigmoid(query @ key.mT / math.sqrt(query.shape[-1])) * mask
    return weights @ value, weights


@form("masked_attention", "scores multiplied by the mask, then the weights too", None)
def _(query, key, value, mask):
    weights = F.softmax(query @ key.mT / math.sqrt(query.shape[-1]) * mask, dim=-1) * mask
    return weights @ value, weights


@form("masked_attention", "forbidden scores filled with 0", "mask_multiplies")
def _(query, key, value, mask):
    weights = F.softmax((query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~mask, 0), dim=-1)
    return weights @ value, weights


@form("masked_attention", "the output alone", None)
def _(query, key, value, mask):
    return _softmax(query @ key.mT / math.sqrt(query.shape[-1]), mask) @ value


@form("masked_attention", "one softmax over all queries and keys", None)
def _(query, key, value, mask):
    kept = (query @ key.mT / math.sqrt(query.shape[-1])).exp() * mask
    weights = kept / kept.sum((1, 2), keepdim=True)
    return weights @ value, weights


@form("masked_attention", "finfo.min as fill", "empty_rows_uniform")
def _(query, key, value, mask):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    weights = F.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1)
    return weights @ value, weights


# --- masked_attention: right answers ----------------------------------------------------------------------------


@right("masked_attention", "the course's own")
def _(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, mask, return_weights=True)


@right("masked_attention", "one query at a time, only the allowed keys gathered")
def _(query, key, value, mask):
    (B, T, D), S = query.shape, key.shape[1]
    rows = []
    for b in range(B):
        for i in range(T):
            allowed, row = mask[b, i].nonzero()[:, 0], query.new_zeros(S)
            if len(allowed):
                row = row.index_copy(0, allowed, (key[b, allowed] @ query[b, i] / math.sqrt(D)).softmax(0))
            rows.append(row)
    weights = torch.stack(rows).reshape(B, T, S)
    return weights @ value, weights


@right("masked_attention", "exponentials and einsum, the query scaled first")
def _(query, key, value, mask):
    scores = torch.einsum("btd,bsd->bts", query * query.shape[-1] ** -0.5, key)
    largest = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    exponentials = torch.where(mask, scores - largest, -math.inf).exp()
    total = exponentials.sum(-1, keepdim=True)
    weights = exponentials / torch.where(total > 0, total, 1.0)
    return torch.einsum("bts,bsv->btv", weights, value), weights


@right("masked_attention", "empty rows opened, then thrown away")
def _(query, key, value, mask):
    some = mask.any(dim=-1, keepdim=True)
    scores = torch.baddbmm(torch.zeros(()).to(query), query, key.mT, alpha=query.shape[-1] ** -0.5)
    weights = F.softmax(scores.masked_fill(~(mask | ~some), -math.inf), dim=-1) * some
    return weights.bmm(value), weights


# --- OneHead: mistakes ------------------------------------------------------------------------------------------


class _Head(nn.Module):
    """What most answers share: the layers, the scores and the weights."""

    def __init__(self, d_model, d_head):
        super().__init__()
        self.d_model, self.d_head = d_model, d_head
        self.q_proj = nn.Linear(d_model, d_head, bias=False)
        self.k_proj = nn.Linear(d_model, d_head, bias=False)
        self.v_proj = nn.Linear(d_model, d_head, bias=False)
        self.o_proj = nn.Linear(d_head, d_model, bias=False)

    def scores(self, x):
        return torch.einsum("btd,bsd->bts", self.q_proj(x), self.k_proj(x)) / math.sqrt(self.d_head)

    def weights(self, scores, mask, axis=-1):
        return _softmax(scores, torch.ones_like(scores).bool() if mask is None else mask.expand_as(scores), axis)

    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return self.o_proj(weights @ self.v_proj(x)), weights


@mutant("OneHead", "unscaled")
class _(_Head):
    def scores(self, x):
        return self.q_proj(x) @ self.k_proj(x).mT


@mutant("OneHead", "root_of_d_model")
class _(_Head):
    def scores(self, x):
        return self.q_proj(x) @ self.k_proj(x).mT / math.sqrt(x.shape[-1])


@mutant("OneHead", "key_is_query")
class _(_Head):
    def scores(self, x):
        q, k = self.q_proj(x), self.q_proj(x)
        return torch.bmm(q, k.mT) / self.d_head**0.5


@mutant("OneHead", "query_key_exchanged")
class _(_Head):
    def scores(self, x):
        return super().scores(x).transpose(1, 2)


@mutant("OneHead", "value_is_key")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return self.o_proj(weights @ self.k_proj(x)), weights


@mutant("OneHead", "value_not_projected")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return self.o_proj(weights @ x), weights


@mutant("OneHead", "not_projected_back")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return torch.einsum("bts,bsd->btd", weights, self.v_proj(x)), weights


@mutant("OneHead", "weights_transposed")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return self.o_proj(torch.einsum("bst,bsd->btd", weights, self.v_proj(x))), weights


@mutant("OneHead", "residual_added")
class _(_Head):
    def forward(self, x, mask=None):
        output, weights = super().forward(x, mask)
        return x + output, weights


@mutant("OneHead", "order_swapped")
class _(_Head):
    def forward(self, x, mask=None):
        output, weights = super().forward(x, mask)
        return weights, output


@mutant("OneHead", "mask_ignored")
class _(_Head):
    def forward(self, x, mask=None):
        weights = F.softmax(self.scores(x), dim=-1)
        return self.o_proj(weights @ self.v_proj(x)), weights


@mutant("OneHead", "mask_inverted")
class _(_Head):
    def forward(self, x, mask=None):
        scores = self.scores(x)
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf)
        weights = torch.nan_to_num(F.softmax(scores, dim=-1))
        return self.o_proj(weights @ self.v_proj(x)), weights


@mutant("OneHead", "over_queries")
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        return super().weights(scores, mask, axis=1)


@mutant("OneHead", "empty_rows_nan")
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        if mask is not None:
            scores = torch.where(mask, scores, -math.inf)
        return F.softmax(scores, dim=axis)


@mutant("OneHead", "empty_rows_uniform")
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        return F.softmax(scores if mask is None else scores.masked_fill(~mask, -1e9), dim=-1)


@pair("OneHead", "unscaled", "mask_ignored")
class _(_Head):
    def forward(self, x, mask=None):
        weights = F.softmax(self.q_proj(x) @ self.k_proj(x).mT, dim=-1)
        return self.o_proj(weights @ self.v_proj(x)), weights


@pair("OneHead", "root_of_d_model", "empty_rows_nan")
class _(_Head):
    def forward(self, x, mask=None):
        scores = self.q_proj(x) @ self.k_proj(x).mT / self.d_model**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        return self.o_proj(weights @ self.v_proj(x)), weights


@pair("OneHead", "not_projected_back", "unscaled")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.q_proj(x) @ self.k_proj(x).mT, mask)
        return weights @ self.v_proj(x), weights


@pair("OneHead", "mask_inverted", "empty_rows_nan")
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        return (scores if mask is None else scores.masked_fill(mask, -math.inf)).softmax(axis)


@pair("OneHead", "residual_added", "order_swapped")
class _(_Head):
    def forward(self, x, mask=None):
        output, weights = super().forward(x, mask)
        return weights, x + output


@pair("OneHead", "not_projected_back", "empty_rows_nan")
class _(_Head):
    def forward(self, x, mask=None):
        scores = self.scores(x)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        return weights @ self.v_proj(x), weights


@pair("OneHead", "unscaled", "empty_rows_uniform")
class _(_Head):
    def forward(self, x, mask=None):
        scores = self.q_proj(x) @ self.k_proj(x).mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        weights = scores.softmax(-1)
        return self.o_proj(weights @ self.v_proj(x)), weights


@pair("OneHead", "weights_transposed", "empty_rows_nan")
class _(_Head):
    def forward(self, x, mask=None):
        scores = self.scores(x)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        return self.o_proj(weights.mT @ self.v_proj(x)), weights


@form("OneHead", "the mask multiplies the scores", None)
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        return F.softmax(scores if mask is None else scores * mask, dim=-1)


@form("OneHead", "the weights masked after the softmax", None)
class _(_Head):
    def forward(self, x, mask=None):
        weights = F.softmax(self.scores(x), dim=-1)
        weights = weights if mask is None else weights * mask
        return self.o_proj(weights @ self.v_proj(x)), weights


@form("OneHead", "no softmax", None)
class _(_Head):
    def weights(self, scores, mask, axis=-1):
        return scores if mask is None else scores * mask


@form("OneHead", "divided by d_head", None)
class _(_Head):
    def scores(self, x):
        return self.q_proj(x) @ self.k_proj(x).mT / self.d_head


@form("OneHead", "the weights are kept to itself", None)
class _(_Head):
    def forward(self, x, mask=None):
        return super().forward(x, mask)[0]


# --- OneHead: right answers -------------------------------------------------------------------------------------


@right("OneHead", "the output projection before the average")
class _(_Head):
    def forward(self, x, mask=None):
        weights = self.weights(self.scores(x), mask)
        return torch.einsum("bts,bsm->btm", weights, self.o_proj(self.v_proj(x))), weights


@right("OneHead", "the four weights used directly, two of them multiplied into one")
class _(_Head):
    def forward(self, x, mask=None):
        asks = self.q_proj.weight.T @ self.k_proj.weight / math.sqrt(len(self.q_proj.weight))  # (d_model, d_model)
        weights = self.weights(torch.einsum("btm,mn,bsn->bts", x, asks, x), mask)
        return F.linear(weights @ x, self.o_proj.weight @ self.v_proj.weight), weights


@right("OneHead", "one token at a time")
class _(_Head):
    def forward(self, x, mask=None):
        B, T, _ = x.shape
        mask = torch.ones(B, T, T).bool() if mask is None else mask.expand(B, T, T)
        key, value, outputs, rows = self.k_proj(x), self.v_proj(x), [], []
        for i in range(T):
            query = self.q_proj(x[:, i])  # (B, D)
            row = _softmax((key @ query[..., None])[..., 0] / math.sqrt(self.d_head), mask[:, i])
            rows.append(row)
            outputs.append(self.o_proj((row[..., None] * value).sum(1)))
        return torch.stack(outputs, 1), torch.stack(rows, 1)


@right("OneHead", "the course's own function on the projections")
class _(_Head):
    def forward(self, x, mask=None):
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        output, weights = scaled_dot_product_attention(query, key, value, mask, return_weights=True)
        return self.o_proj(output), weights
