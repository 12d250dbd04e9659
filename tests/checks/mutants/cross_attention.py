"""Chapter 04 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/cross_attention.py: the styles differ on purpose (loops,
einsum, matmul, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from attncourse.attention import scaled_dot_product_attention
from tests.checks.mutants import Answers

ANSWERS = Answers("cross_attention")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- cross_scores: mistakes -------------------------------------------------------------------------------------


def _products(query, key):
    return torch.bmm(query, key.permute(0, 2, 1)) / math.sqrt(query.size(2))


@mutant("cross_scores", "keys_from_x")
def _(x, context, q_weight, k_weight):
    return _products(F.linear(x, q_weight), F.linear(x, k_weight))


@mutant("cross_scores", "queries_from_context")
def _(x, context, q_weight, k_weight):
    return _products(F.linear(context, q_weight), F.linear(context, k_weight))


@mutant("cross_scores", "sides_exchanged")
def _(x, context, q_weight, k_weight):
    x, context = context, x
    return _products(F.linear(x, q_weight), F.linear(context, k_weight))


@mutant("cross_scores", "weights_exchanged")
def _(x, context, q_weight, k_weight):
    return _products(F.linear(x, k_weight), F.linear(context, q_weight))


@mutant("cross_scores", "weight_transposed")
def _(x, context, q_weight, k_weight):
    return _products(x @ q_weight, context @ k_weight)


@mutant("cross_scores", "unscaled")
def _(x, context, q_weight, k_weight):
    return torch.einsum("btm,dm,dn,bsn->bts", x, q_weight, k_weight, context)


@mutant("cross_scores", "root_of_d_model")
def _(x, context, q_weight, k_weight):
    return F.linear(x, q_weight) @ F.linear(context, k_weight).mT / q_weight.shape[1] ** 0.5


@mutant("cross_scores", "divided_by_d")
def _(x, context, q_weight, k_weight):
    return F.linear(x, q_weight) @ F.linear(context, k_weight).mT / len(q_weight)


@mutant("cross_scores", "axes_swapped")
def _(x, context, q_weight, k_weight):
    return _products(F.linear(context, k_weight), F.linear(x, q_weight))


@mutant("cross_scores", "returns_weights")
def _(x, context, q_weight, k_weight):
    exponentials = _products(F.linear(x, q_weight), F.linear(context, k_weight)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


@pair("cross_scores", "unscaled", "axes_swapped")
def _(x, context, q_weight, k_weight):
    return F.linear(context, k_weight) @ F.linear(x, q_weight).mT


@pair("cross_scores", "unscaled", "returns_weights")
def _(x, context, q_weight, k_weight):
    return F.softmax(F.linear(x, q_weight) @ F.linear(context, k_weight).mT, dim=-1)


@pair("cross_scores", "keys_from_x", "unscaled")
def _(x, context, q_weight, k_weight):
    return (x @ q_weight.T) @ (x @ k_weight.T).mT


@pair("cross_scores", "weights_exchanged", "unscaled")
def _(x, context, q_weight, k_weight):
    return (x @ k_weight.T) @ (context @ q_weight.T).mT


@pair("cross_scores", "root_of_d_model", "axes_swapped")
def _(x, context, q_weight, k_weight):
    return F.linear(context, k_weight) @ F.linear(x, q_weight).mT / x.shape[-1] ** 0.5


@form("cross_scores", "the context is not projected", None)
def _(x, context, q_weight, k_weight):
    return F.linear(x, q_weight) @ context.mT / math.sqrt(q_weight.shape[0])


@form("cross_scores", "the scale comes from the context's size", None)
def _(x, context, q_weight, k_weight):
    return F.linear(x, q_weight) @ F.linear(context, k_weight).mT / context.shape[-1] ** 0.5


@form("cross_scores", "the scale comes from the number of keys", None)
def _(x, context, q_weight, k_weight):
    return F.linear(x, q_weight) @ F.linear(context, k_weight).mT / context.shape[1] ** 0.5


@form("cross_scores", "the additive score", None)
def _(x, context, q_weight, k_weight):
    return torch.tanh(F.linear(x, q_weight)[:, :, None] + F.linear(context, k_weight)[:, None]).sum(-1)


@form("cross_scores", "softmax over the queries", None)
def _(x, context, q_weight, k_weight):
    return F.softmax(_products(F.linear(x, q_weight), F.linear(context, k_weight)), dim=1)


# --- cross_scores: right answers --------------------------------------------------------------------------------


@right("cross_scores", "one einsum")
def _(x, context, q_weight, k_weight):
    return torch.einsum("btm,dm,dn,bsn->bts", x, q_weight, k_weight, context) / math.sqrt(len(q_weight))


@right("cross_scores", "loops over batch, tokens and context")
def _(x, context, q_weight, k_weight):
    root, rows = math.sqrt(q_weight.shape[0]), []
    for tokens, others in zip(x, context, strict=True):
        keys = [k_weight @ other for other in others]
        rows.append(torch.stack([torch.stack([q_weight @ token @ key / root for key in keys]) for token in tokens]))
    return torch.stack(rows)


@right("cross_scores", "Luong's general score with the product of the weights")
def _(x, context, q_weight, k_weight):
    together = q_weight.T @ k_weight * len(q_weight) ** -0.5  # (d_model, d_context)
    return x @ together @ context.transpose(1, 2)


@right("cross_scores", "F.linear, the keys scaled")
def _(x, context, q_weight, k_weight):
    query = F.linear(x, q_weight)
    key = F.linear(context, k_weight / query.size(-1) ** 0.5)
    return torch.matmul(query, key.mT)


# --- attend_to_context: mistakes --------------------------------------------------------------------------------


def _softmax(scores, mask, axis=-1):
    """Weights by exponentials, rows with no allowed key zero."""
    largest = scores.masked_fill(~mask, -1e30).amax(axis, keepdim=True)
    exponentials = torch.where(mask, (scores - largest).clamp(max=0).exp(), 0.0)
    return exponentials / exponentials.sum(axis, keepdim=True).clamp(min=1e-30)


def _real(lengths, S):
    """(B, S), written sentence by sentence."""
    return torch.tensor([[j < length for j in range(S)] for length in lengths.tolist()])


@mutant("attend_to_context", "lengths_ignored")
def _(query, key, value, context_lengths):
    exponentials = _products(query, key).exp()
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return torch.einsum("bts,bsv->btv", weights, value), weights


@mutant("attend_to_context", "queries_masked")
def _(query, key, value, context_lengths):
    weights = F.softmax(_products(query, key), dim=-1) * _real(context_lengths, query.shape[1])[:, :, None]
    return weights @ value, weights


@mutant("attend_to_context", "wrong_side")
def _(query, key, value, context_lengths):
    mask = _real(context_lengths, key.shape[1]).flip(-1).unsqueeze(1)
    weights = _softmax(_products(query, key), mask)
    return weights @ value, weights


@mutant("attend_to_context", "inverted")
def _(query, key, value, context_lengths):
    mask = torch.arange(key.shape[1]).unsqueeze(0) >= context_lengths.unsqueeze(1)
    weights = torch.nan_to_num(F.softmax(torch.where(mask[:, None], _products(query, key), -math.inf), -1))
    return weights @ value, weights


@mutant("attend_to_context", "one_too_many")
def _(query, key, value, context_lengths):
    mask = torch.arange(key.shape[1]).unsqueeze(0) <= context_lengths.unsqueeze(1)
    weights = _softmax(_products(query, key), mask[:, None])
    return weights @ value, weights


@mutant("attend_to_context", "one_too_few")
def _(query, key, value, context_lengths):
    mask = torch.arange(1, key.shape[1] + 1).unsqueeze(0) < context_lengths.unsqueeze(1)
    weights = _softmax(_products(query, key), mask[:, None])
    return weights @ value, weights


@mutant("attend_to_context", "batch_axis_forgotten")
def _(query, key, value, context_lengths):
    mask = torch.arange(key.shape[1]) < context_lengths
    weights = F.softmax(_products(query, key).masked_fill(~mask, -math.inf), dim=-1).masked_fill(~mask, 0.0)
    return weights @ value, weights


@mutant("attend_to_context", "mask_not_expanded")
def _(query, key, value, context_lengths):
    padding = ~_real(context_lengths, key.shape[1])
    weights = F.softmax(_products(query, key).masked_fill(padding, -math.inf), dim=-1).masked_fill(padding, 0.0)
    return weights @ value, weights


@mutant("attend_to_context", "scores_zeroed")
def _(query, key, value, context_lengths):
    weights = F.softmax(_products(query, key) * _real(context_lengths, key.shape[1]).float().unsqueeze(1), dim=-1)
    return weights @ value, weights


@mutant("attend_to_context", "padding_zeroed")
def _(query, key, value, context_lengths):
    real = _real(context_lengths, key.shape[1])[:, :, None]
    weights = F.softmax(_products(query, key * real), dim=-1)
    return weights @ (value * real), weights


@mutant("attend_to_context", "mask_after")
def _(query, key, value, context_lengths):
    weights = F.softmax(_products(query, key), dim=-1)
    for b, length in enumerate(context_lengths.tolist()):
        weights[b, :, length:] = 0
    return weights @ value, weights


@mutant("attend_to_context", "over_queries")
def _(query, key, value, context_lengths):
    exponentials = _products(query, key).exp()
    weights = exponentials / exponentials.sum(1, keepdim=True) * _real(context_lengths, key.shape[1])[:, None]
    return weights @ value, weights


@mutant("attend_to_context", "unscaled")
def _(query, key, value, context_lengths):
    weights = _softmax(torch.bmm(query, key.mT), _real(context_lengths, key.shape[1])[:, None])
    return weights @ value, weights


@mutant("attend_to_context", "empty_nan")
def _(query, key, value, context_lengths):
    exponentials = _products(query, key).exp() * _real(context_lengths, key.shape[1])[:, None]
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return weights @ value, weights


@mutant("attend_to_context", "empty_uniform")
def _(query, key, value, context_lengths):
    added = (1.0 - _real(context_lengths, key.shape[1]).float()) * -1e9
    weights = F.softmax(_products(query, key) + added.unsqueeze(1), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "unscaled", "lengths_ignored")
def _(query, key, value, context_lengths):
    weights = F.softmax(query @ key.mT, dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "unscaled", "empty_nan")
def _(query, key, value, context_lengths):
    padding = ~_real(context_lengths, key.shape[1])[:, None]
    weights = F.softmax((query @ key.mT).masked_fill(padding, -math.inf), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "inverted", "empty_nan")
def _(query, key, value, context_lengths):
    real = torch.arange(key.shape[1]) < context_lengths[:, None]
    weights = F.softmax(_products(query, key).masked_fill(real[:, None], -math.inf), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "one_too_many", "unscaled")
def _(query, key, value, context_lengths):
    padding = torch.arange(key.shape[1]) > context_lengths[:, None]
    weights = F.softmax((query @ key.mT).masked_fill(padding[:, None], -math.inf), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "queries_masked", "empty_nan")
def _(query, key, value, context_lengths):
    padding = torch.arange(query.shape[1]) >= context_lengths[:, None]
    weights = F.softmax(_products(query, key).masked_fill(padding[:, :, None], -math.inf), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "unscaled", "padding_zeroed")
def _(query, key, value, context_lengths):
    real = (torch.arange(key.shape[1]) < context_lengths[:, None]).unsqueeze(2)
    weights = F.softmax(query @ (key * real).mT, dim=-1)
    return weights @ (value * real), weights


@pair("attend_to_context", "one_too_few", "empty_uniform")
def _(query, key, value, context_lengths):
    padding = torch.arange(key.shape[1]) >= context_lengths[:, None] - 1
    weights = F.softmax(_products(query, key).masked_fill(padding[:, None], -1e9), dim=-1)
    return weights @ value, weights


@pair("attend_to_context", "wrong_side", "empty_nan")
def _(query, key, value, context_lengths):
    S = key.shape[1]
    padding = torch.arange(S) < S - context_lengths[:, None]
    weights = F.softmax(_products(query, key).masked_fill(padding[:, None], -math.inf), dim=-1)
    return weights @ value, weights


@form("attend_to_context", "the first length for every sequence", None)
def _(query, key, value, context_lengths):
    n = int(context_lengths[0])
    weights = F.softmax(_products(query, key)[..., :n], dim=-1)
    return weights @ value[:, :n], F.pad(weights, (0, key.shape[1] - n))


@form("attend_to_context", "cut to the longest context", None)
def _(query, key, value, context_lengths):
    n = int(context_lengths.max())
    weights = _softmax(_products(query, key[:, :n]), _real(context_lengths, n)[:, None])
    return weights @ value[:, :n], weights


@form("attend_to_context", "both sides masked with the context's lengths", None)
def _(query, key, value, context_lengths):
    keys, rows = _real(context_lengths, key.shape[1]), _real(context_lengths, query.shape[1])
    weights = _softmax(_products(query, key), keys[:, None] & rows[:, :, None])
    return weights @ value, weights


@form("attend_to_context", "the weights come first", None)
def _(query, key, value, context_lengths):
    weights = _softmax(_products(query, key), _real(context_lengths, key.shape[1])[:, None])
    return weights, weights @ value


@form("attend_to_context", "the padding zeroed with a fill, empty rows zeros", "scores_zeroed")
def _(query, key, value, context_lengths):
    real = _real(context_lengths, key.shape[1])[:, None]
    weights = F.softmax(_products(query, key).masked_fill(~real, 0.0), dim=-1)
    weights = weights * (context_lengths > 0)[:, None, None]
    return weights @ value, weights


# --- attend_to_context: right answers ---------------------------------------------------------------------------


@right("attend_to_context", "one sequence at a time, its padding cut off")
def _(query, key, value, context_lengths):
    outputs, rows = [], []
    for q, k, v, length in zip(query, key, value, context_lengths.tolist(), strict=True):
        weights = (q @ k[:length].T / math.sqrt(q.shape[-1])).softmax(-1)  # (T, length), perhaps of no columns
        outputs.append(weights @ v[:length])
        rows.append(F.pad(weights, (0, len(k) - length)))
    return torch.stack(outputs), torch.stack(rows)


@right("attend_to_context", "the course's own")
def _(query, key, value, context_lengths):
    mask = torch.arange(key.shape[1]).lt(context_lengths.unsqueeze(1)).unsqueeze(1)
    return scaled_dot_product_attention(query, key, value, mask, return_weights=True)


@right("attend_to_context", "einsum, masked after the softmax and normalised again")
def _(query, key, value, context_lengths):
    real = _real(context_lengths, key.shape[1]).to(query.dtype)
    weights = torch.einsum("btd,bsd->bts", query / math.sqrt(query.shape[-1]), key).softmax(-1)
    weights = torch.einsum("bts,bs->bts", weights, real)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
    return torch.einsum("bts,bsv->btv", weights, value), weights


@right("attend_to_context", "a mask built by cumsum, filled by where")
def _(query, key, value, context_lengths):
    B, T, S = len(query), query.shape[1], key.shape[1]
    mask = (torch.ones(B, S).cumsum(-1) <= context_lengths.view(-1, 1)).unsqueeze(1).expand(B, T, S)
    weights = _softmax(torch.matmul(query * query.shape[-1] ** -0.5, key.mT), mask)
    return torch.bmm(weights, value), weights


# --- image_patches: mistakes ------------------------------------------------------------------------------------


def _cut(images, patch):
    """Every patch (B, C, patch, patch), row by row."""
    return [
        images[:, :, top : top + patch, left : left + patch]
        for top in range(0, images.shape[2], patch)
        for left in range(0, images.shape[3], patch)
    ]


@mutant("image_patches", "only_reshaped")
def _(images, patch):
    B, C, height, width = images.shape
    return images.reshape(B, (height // patch) * (width // patch), C * patch * patch)


@mutant("image_patches", "grid_before_patch")
def _(images, patch):
    B, C = images.shape[:2]
    pieces = images.reshape(B, C, -1, patch * patch)  # of each channel: what stands beside each other in storage
    return torch.cat(pieces.unbind(1), dim=-1) if C > 1 else pieces[:, 0]


@mutant("image_patches", "spread_out")
def _(images, patch):
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    return torch.stack(
        [images[:, :, r::rows, c::columns].flatten(1) for r in range(rows) for c in range(columns)], dim=1
    )


@mutant("image_patches", "columns_first")
def _(images, patch):
    found = []
    for left in range(0, images.shape[3], patch):
        for top in range(0, images.shape[2], patch):
            found.append(images[:, :, top : top + patch, left : left + patch].flatten(1))
    return torch.stack(found, 1)


@mutant("image_patches", "pixels_transposed")
def _(images, patch):
    return torch.stack([piece.mT.flatten(1) for piece in _cut(images, patch)], dim=1)


@mutant("image_patches", "channels_last")
def _(images, patch):
    return torch.stack([piece.permute(0, 2, 3, 1).flatten(1) for piece in _cut(images, patch)], dim=1)


@mutant("image_patches", "channels_apart")
def _(images, patch):
    by_channel = torch.stack([piece.flatten(2) for piece in _cut(images, patch)], dim=2)  # (B, C, N, patch * patch)
    return by_channel.flatten(1, 2)


@mutant("image_patches", "patches_not_flat")
def _(images, patch):
    return torch.stack(_cut(images, patch), dim=1)


@mutant("image_patches", "grid_kept")
def _(images, patch):
    height, width = images.shape[2:]
    found = torch.stack([piece.flatten(1) for piece in _cut(images, patch)], dim=1)
    return found.unflatten(1, (height // patch, width // patch))


@mutant("image_patches", "axes_swapped")
def _(images, patch):
    return torch.stack([piece.flatten(1) for piece in _cut(images, patch)], dim=-1)


@pair("image_patches", "columns_first", "pixels_transposed")
def _(images, patch):
    return torch.stack([piece.flatten(1) for piece in _cut(images.mT, patch)], dim=1)


@pair("image_patches", "channels_last", "columns_first")
def _(images, patch):
    B, C, height, width = images.shape
    grid = images.reshape(B, C, height // patch, patch, width // patch, patch)
    return grid.permute(0, 4, 2, 3, 5, 1).flatten(3).flatten(1, 2)


@pair("image_patches", "channels_last", "pixels_transposed")
def _(images, patch):
    return torch.stack([piece.permute(0, 3, 2, 1).flatten(1) for piece in _cut(images, patch)], dim=1)


@pair("image_patches", "channels_last", "axes_swapped")
def _(images, patch):
    return torch.stack([piece.movedim(1, -1).flatten(1) for piece in _cut(images, patch)], dim=2)


@form("image_patches", "only the first channel", None)
def _(images, patch):
    return torch.stack([piece[:, 0].flatten(1) for piece in _cut(images, patch)], dim=1)


@form("image_patches", "the channels are averaged", None)
def _(images, patch):
    return torch.stack([piece.mean(1).flatten(1) for piece in _cut(images, patch)], dim=1)


@form("image_patches", "patches overlap", None)
def _(images, patch):
    height, width = images.shape[2:]
    found = [
        images[:, :, top : top + patch, left : left + patch].flatten(1)
        for top in range(height - patch + 1)
        for left in range(width - patch + 1)
    ]
    return torch.stack(found, dim=1)


@form("image_patches", "a square image is taken for granted", None)
def _(images, patch):
    B, C, height, _ = images.shape
    n = height // patch
    return images.reshape(B, C, n, patch, n, patch).permute(0, 2, 4, 1, 3, 5).reshape(B, n * n, -1)


@form("image_patches", "an axis of patches each, channels outside", None)
def _(images, patch):
    B, C, height, width = images.shape
    grid = images.reshape(B, C, height // patch, patch, width // patch, patch)
    return grid.transpose(3, 4).reshape(B, -1, C * patch * patch)


# --- image_patches: right answers -------------------------------------------------------------------------------


@right("image_patches", "slices, stacked")
def _(images, patch):
    return torch.stack([piece.flatten(1) for piece in _cut(images, patch)], dim=1)


@right("image_patches", "chunks along the height, then along the width")
def _(images, patch):
    tokens = [piece.flatten(1) for band in images.split(patch, dim=2) for piece in band.split(patch, dim=3)]
    return torch.stack(tokens, dim=1)


@right("image_patches", "unflatten and einsum")
def _(images, patch):
    grid = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, patch, columns, patch)
    return torch.einsum("bcrpsq->brscpq", grid).flatten(3).flatten(1, 2)


@right("image_patches", "every number looked up by its place")
def _(images, patch):
    C, height, width = images.shape[1:]
    columns = width // patch
    n, k = torch.arange(height // patch * columns)[:, None], torch.arange(C * patch * patch)
    y = n // columns * patch + k // patch % patch
    x = n % columns * patch + k % patch
    return images[:, k // (patch * patch), y, x]


# --- CrossHead: mistakes ----------------------------------------------------------------------------------------


class _Head(nn.Module):
    """What most answers share: the layers, the scores and the weights."""

    def __init__(self, d_model, d_context, d_head):
        super().__init__()
        self.d_model, self.root = d_model, math.sqrt(d_head)
        self.q_proj = nn.Linear(d_model, d_head, bias=False)
        self.k_proj = nn.Linear(d_context, d_head, bias=False)
        self.v_proj = nn.Linear(d_context, d_head, bias=False)
        self.o_proj = nn.Linear(d_head, d_model, bias=False)

    def scores(self, x, context):
        return torch.einsum("btd,bsd->bts", self.q_proj(x), self.k_proj(context)) / self.root

    def weights(self, scores, mask):
        return F.softmax(scores, dim=-1) if mask is None else _softmax(scores, mask.unsqueeze(1).expand_as(scores))

    def values(self, x, context):
        return self.v_proj(context)

    def forward(self, x, context, context_mask=None):
        weights = self.weights(self.scores(x, context), context_mask)
        return self.o_proj(weights @ self.values(x, context)), weights


@mutant("CrossHead", "context_unread")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        return super().forward(x, x, context_mask)


@mutant("CrossHead", "keys_from_x")
class _(_Head):
    def scores(self, x, context):
        return torch.bmm(self.q_proj(x), self.k_proj(x).mT) / self.root


@mutant("CrossHead", "values_from_x")
class _(_Head):
    def values(self, x, context):
        return self.v_proj(x)


@mutant("CrossHead", "sides_exchanged")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        return super().forward(context, x, context_mask)


@mutant("CrossHead", "unscaled")
class _(_Head):
    def scores(self, x, context):
        return self.q_proj(x) @ self.k_proj(context).mT


@mutant("CrossHead", "root_of_d_model")
class _(_Head):
    def scores(self, x, context):
        return self.q_proj(x) @ self.k_proj(context).mT / math.sqrt(self.d_model)


@mutant("CrossHead", "mask_ignored")
class _(_Head):
    def weights(self, scores, mask):
        return F.softmax(scores, dim=-1)


@mutant("CrossHead", "mask_inverted")
class _(_Head):
    def weights(self, scores, mask):
        if mask is not None:
            scores = torch.where(mask[:, None], -math.inf, scores)
        return torch.nan_to_num(F.softmax(scores, dim=-1))


@mutant("CrossHead", "queries_masked")
class _(_Head):
    def weights(self, scores, mask):
        weights = F.softmax(scores, dim=-1)
        return weights if mask is None else weights * mask.unsqueeze(2)


@mutant("CrossHead", "mask_not_expanded")
class _(_Head):
    def weights(self, scores, mask):
        if mask is None:
            return F.softmax(scores, dim=-1)
        return F.softmax(scores.masked_fill(~mask, -math.inf), dim=-1).masked_fill(~mask, 0.0)


@mutant("CrossHead", "over_queries")
class _(_Head):
    def weights(self, scores, mask):
        exponentials = scores.exp()
        weights = exponentials / exponentials.sum(1, keepdim=True)
        return weights if mask is None else weights * mask[:, None]


@mutant("CrossHead", "empty_nan")
class _(_Head):
    def weights(self, scores, mask):
        return F.softmax(scores if mask is None else scores.masked_fill(~mask[:, None], -math.inf), dim=2)


@mutant("CrossHead", "empty_uniform")
class _(_Head):
    def weights(self, scores, mask):
        return F.softmax(scores if mask is None else scores.masked_fill(~mask[:, None], -1e9), dim=-1)


@mutant("CrossHead", "not_projected_back")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        weights = self.weights(self.scores(x, context), context_mask)
        return torch.einsum("bts,bsd->btd", weights, self.v_proj(context)), weights


@mutant("CrossHead", "order_swapped")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        output, weights = super().forward(x, context, context_mask)
        return weights, output


@pair("CrossHead", "unscaled", "mask_ignored")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        weights = F.softmax(self.q_proj(x) @ self.k_proj(context).mT, dim=-1)
        return self.o_proj(weights @ self.v_proj(context)), weights


@pair("CrossHead", "root_of_d_model", "empty_nan")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        scores = self.q_proj(x) @ self.k_proj(context).mT / x.shape[-1] ** 0.5
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask[:, None], -math.inf)
        weights = scores.softmax(-1)
        return self.o_proj(weights @ self.v_proj(context)), weights


@pair("CrossHead", "mask_inverted", "empty_nan")
class _(_Head):
    def weights(self, scores, mask):
        return (scores if mask is None else scores.masked_fill(mask[:, None], -math.inf)).softmax(-1)


@pair("CrossHead", "not_projected_back", "mask_ignored")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        weights = F.softmax(self.scores(x, context), dim=-1)
        return weights @ self.v_proj(context), weights


@pair("CrossHead", "unscaled", "empty_nan")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        scores = self.q_proj(x) @ self.k_proj(context).mT
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask[:, None], -math.inf)
        weights = scores.softmax(-1)
        return self.o_proj(weights @ self.v_proj(context)), weights


@pair("CrossHead", "unscaled", "empty_uniform")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        scores = self.q_proj(x) @ self.k_proj(context).mT
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask[:, None], -1e9)
        weights = scores.softmax(-1)
        return self.o_proj(weights @ self.v_proj(context)), weights


@pair("CrossHead", "mask_not_expanded", "empty_nan")
class _(_Head):
    def weights(self, scores, mask):
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)


@form("CrossHead", "the weights masked after the softmax", None)
class _(_Head):
    def weights(self, scores, mask):
        weights = F.softmax(scores, dim=-1)
        return weights if mask is None else torch.einsum("bts,bs->bts", weights, mask.float())


@form("CrossHead", "x and its mask joined with the context", None)
class _(_Head):
    def forward(self, x, context, context_mask=None):
        if x.shape[-1] != context.shape[-1]:
            return super().forward(x, context, context_mask)
        return super().forward(x, torch.cat([context, x], dim=1))


@form("CrossHead", "x is added to the output", None)
class _(_Head):
    def forward(self, x, context, context_mask=None):
        output, weights = super().forward(x, context, context_mask)
        return output + x, weights


@form("CrossHead", "the mask multiplies the scores", None)
class _(_Head):
    def weights(self, scores, mask):
        return F.softmax(scores if mask is None else scores * mask[:, None], dim=-1)


@form("CrossHead", "the values are made with k_proj", None)
class _(_Head):
    def values(self, x, context):
        return self.k_proj(context)


@form("CrossHead", "a mask is expected always", None)
class _(_Head):
    def weights(self, scores, mask):
        return _softmax(scores, mask[:, None])


# --- CrossHead: right answers -----------------------------------------------------------------------------------


@right("CrossHead", "the output projection before the average")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        weights = self.weights(self.scores(x, context), context_mask)
        return torch.einsum("bts,bsm->btm", weights, self.o_proj(self.v_proj(context))), weights


@right("CrossHead", "one sequence at a time, its padding cut off")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        mask = torch.ones(context.shape[:2]).bool() if context_mask is None else context_mask
        outputs, rows = [], []
        for tokens, others, real in zip(x, context, mask, strict=True):
            kept = others[real]
            weights = (self.q_proj(tokens) @ self.k_proj(kept).T / self.root).softmax(-1)
            outputs.append(self.o_proj(weights @ self.v_proj(kept)))
            places = real.nonzero()[:, 0]
            rows.append(weights.new_zeros(len(tokens), len(others)).index_copy(1, places, weights))
        return torch.stack(outputs), torch.stack(rows)


@right("CrossHead", "the course's own function on the projections")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        mask = None if context_mask is None else context_mask[:, None]
        query, key, value = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        output, weights = scaled_dot_product_attention(query, key, value, mask, return_weights=True)
        return self.o_proj(output), weights


@right("CrossHead", "one token at a time, by exponentials")
class _(_Head):
    def forward(self, x, context, context_mask=None):
        key, value, outputs, rows = self.k_proj(context), self.v_proj(context), [], []
        for i in range(x.shape[1]):
            scores = (key * self.q_proj(x[:, i])[:, None]).sum(-1) / self.root  # (B, S)
            mask = torch.ones_like(scores).bool() if context_mask is None else context_mask
            row = _softmax(scores, mask)
            rows.append(row)
            outputs.append((row[..., None] * value).sum(1))
        return self.o_proj(torch.stack(outputs, 1)), torch.stack(rows, 1)
