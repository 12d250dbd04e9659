"""Chapter 06 as learners write it: every misconception a second time, two mistakes at once, right answers.

Nothing here uses the `faulty` switches of attncourse/checks/multi_head.py: the styles differ on purpose (view, chunk,
loops over heads, einsum), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("multi_head")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- split_into_heads: mistakes ---------------------------------------------------------------------------------


@mutant("split_into_heads", "viewed")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, n_heads, T, d_model // n_heads)


@mutant("split_into_heads", "interleaved")
def _(x, n_heads):
    return torch.stack([x[:, :, h::n_heads] for h in range(n_heads)], dim=1)


@mutant("split_into_heads", "not_transposed")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, T, n_heads, d_model // n_heads)


@mutant("split_into_heads", "size_for_count")
def _(x, n_heads):
    return x.reshape(x.shape[0], x.shape[1], -1, n_heads).permute(0, 2, 1, 3)


@mutant("split_into_heads", "last_two_swapped")
def _(x, n_heads):
    return torch.stack([part.transpose(1, 2) for part in x.chunk(n_heads, dim=2)], dim=1)


@mutant("split_into_heads", "batch_swapped")
def _(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1))


@mutant("split_into_heads", "heads_in_batch")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, T, n_heads, -1).permute(0, 2, 1, 3).reshape(B * n_heads, T, d_model // n_heads)


@pair("split_into_heads", "interleaved", "not_transposed")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, T, d_model // n_heads, n_heads).transpose(2, 3)


@pair("split_into_heads", "viewed", "last_two_swapped")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, n_heads, T, d_model // n_heads).transpose(-2, -1)


@pair("split_into_heads", "batch_swapped", "heads_in_batch")
def _(x, n_heads):
    return torch.cat(x.chunk(n_heads, dim=-1), dim=0)


@pair("split_into_heads", "size_for_count", "not_transposed")
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.reshape(B, T, d_model // n_heads, n_heads)


@form("split_into_heads", "the width is not cut, but repeated", None)
def _(x, n_heads):
    return x[:, None].expand(-1, n_heads, -1, -1)


@form("split_into_heads", "the tokens are cut, not the width", None)
def _(x, n_heads):
    return torch.stack(x.tensor_split(n_heads, dim=1), dim=1) if x.shape[1] % n_heads == 0 else x


@form("split_into_heads", "reshaped from (B, d_model, T)", None)
def _(x, n_heads):
    B, T, d_model = x.shape
    return x.transpose(1, 2).reshape(B, n_heads, T, d_model // n_heads)


@form("split_into_heads", "a list of heads", None)
def _(x, n_heads):
    return list(x.chunk(n_heads, dim=-1))


# --- split_into_heads: right answers ----------------------------------------------------------------------------


@right("split_into_heads", "chunk and stack")
def _(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)


@right("split_into_heads", "slices in a loop")
def _(x, n_heads):
    D = x.shape[2] // n_heads
    heads = x.new_empty(x.shape[0], n_heads, x.shape[1], D)
    for h in range(n_heads):
        heads[:, h] = x[..., h * D : (h + 1) * D]
    return heads


@right("split_into_heads", "unflatten and permute")
def _(x, n_heads):
    return x.unflatten(2, (n_heads, -1)).permute(0, 2, 1, 3)


@right("split_into_heads", "contiguous, then view")
def _(x, n_heads):
    B, T, d_model = x.size()
    return x.contiguous().view(B, T, n_heads, d_model // n_heads).transpose(1, 2)


# --- join_heads: mistakes ---------------------------------------------------------------------------------------


@mutant("join_heads", "reshaped")
def _(x):
    return x.contiguous().view(x.shape[0], x.shape[2], -1)


@mutant("join_heads", "interleaved")
def _(x):
    B, H, T, D = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, T, D * H)


@mutant("join_heads", "last_two_swapped")
def _(x):
    B, H, T, D = x.shape
    return x.transpose(2, 3).contiguous().view(B, T, H * D)


@mutant("join_heads", "reversed")
def _(x):
    return torch.cat([x[:, h] for h in reversed(range(x.shape[1]))], dim=-1)


@mutant("join_heads", "summed")
def _(x):
    return torch.einsum("bhtd->btd", x)


@mutant("join_heads", "averaged")
def _(x):
    return x.mean(dim=1)


@mutant("join_heads", "first_only")
def _(x):
    return x.transpose(1, 2)[:, :, 0]


@mutant("join_heads", "tokens_joined")
def _(x):
    return torch.cat(x.unbind(1), dim=1)


@mutant("join_heads", "not_flattened")
def _(x):
    return torch.stack(list(x.unbind(1)), dim=2)


@pair("join_heads", "reversed", "tokens_joined")
def _(x):
    return torch.cat(x.unbind(1)[::-1], dim=1)


@pair("join_heads", "reversed", "interleaved")
def _(x):
    return x.flip(1).permute(0, 2, 3, 1).flatten(2)


@form("join_heads", "concatenated along the batch", None)
def _(x):
    return torch.cat(x.unbind(1), dim=0)


@form("join_heads", "the largest of the heads", None)
def _(x):
    return x.amax(1)


@form("join_heads", "axes 1 and 3 exchanged before the reshape", None)
def _(x):
    B, H, T, D = x.shape
    return x.transpose(1, 3).reshape(B, T, H * D)


@form("join_heads", "transposed, then squeezed instead of joined", "not_flattened")
def _(x):
    return x.transpose(1, 2).squeeze(-1)


# --- join_heads: right answers ----------------------------------------------------------------------------------


@right("join_heads", "cat")
def _(x):
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


@right("join_heads", "transpose, contiguous, view")
def _(x):
    B, H, T, D = x.shape
    return x.transpose(1, 2).contiguous().view(B, T, H * D)


@right("join_heads", "permute and flatten")
def _(x):
    return x.permute(0, 2, 1, 3).flatten(start_dim=2)


@right("join_heads", "one token at a time")
def _(x):
    return torch.stack([x[:, :, t].reshape(x.shape[0], -1) for t in range(x.shape[2])], dim=1)


# --- all_heads: mistakes ----------------------------------------------------------------------------------------


def _cut(x, weight, n_heads):
    B, T, _ = x.shape
    return F.linear(x, weight).view(B, T, n_heads, -1).transpose(1, 2)


def _glue(x):
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


def _weights(query, key, mask, scale=None):
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scores.masked_fill(mask.logical_not(), -math.inf), dim=-1)


@mutant("all_heads", "one_head")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = F.linear(x, q_weight), F.linear(x, k_weight), F.linear(x, v_weight)
    return F.linear(_weights(query, key, mask) @ value, o_weight)


@mutant("all_heads", "viewed")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    B, T, width = x.shape
    query, key, value = (F.linear(x, w).view(B, n_heads, T, width // n_heads) for w in (q_weight, k_weight, v_weight))
    return _glue(_weights(query, key, mask.unsqueeze(1)) @ value) @ o_weight.T


@mutant("all_heads", "reshaped")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear((_weights(query, key, mask.unsqueeze(1)) @ value).reshape(x.shape), o_weight)


@mutant("all_heads", "scaled_by_width")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask[:, None], 1 / math.sqrt(x.shape[-1])) @ value), o_weight)


@mutant("all_heads", "not_scaled")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask[:, None], 1) @ value), o_weight)


@mutant("all_heads", "mask_over_heads")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = torch.where(mask, query @ key.mT / math.sqrt(query.shape[-1]), -math.inf)
    return F.linear(_glue(F.softmax(scores, dim=-1) @ value), o_weight)


@mutant("all_heads", "mask_ignored")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    outputs = []
    for q, k, v in zip(q_weight.chunk(n_heads), k_weight.chunk(n_heads), v_weight.chunk(n_heads), strict=True):
        scores = (x @ q.T) @ (x @ k.T).mT / len(q) ** 0.5
        outputs.append(scores.softmax(-1) @ (x @ v.T))
    return torch.cat(outputs, -1) @ o_weight.T


@mutant("all_heads", "mask_after")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    weights = F.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1)
    return F.linear(_glue(weights.masked_fill(~mask[:, None], 0) @ value), o_weight)


@mutant("all_heads", "mask_multiplies")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return F.linear(_glue(F.softmax(scores.masked_fill(~mask[:, None], 1e-9), dim=-1) @ value), o_weight)


@mutant("all_heads", "mask_inverted")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(mask[:, None], -torch.inf)
    return F.linear(_glue(F.softmax(scores, dim=-1) @ value), o_weight)


@mutant("all_heads", "over_queries")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~mask[:, None], -torch.inf)
    return F.linear(_glue(F.softmax(scores, dim=2) @ value), o_weight)


@mutant("all_heads", "weights_averaged")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key = (_cut(x, w, n_heads) for w in (q_weight, k_weight))
    return F.linear(_weights(query, key, mask[:, None]).mean(1) @ F.linear(x, v_weight), o_weight)


@mutant("all_heads", "weights_transposed")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    B, T, _ = x.shape
    query, key, value = ((x @ w).view(B, T, n_heads, -1).transpose(1, 2) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask[:, None]) @ value), o_weight)


@mutant("all_heads", "o_transposed")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return _glue(_weights(query, key, mask[:, None]) @ value) @ o_weight


@mutant("all_heads", "o_left_out")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return _glue(_weights(query, key, mask[:, None]) @ value)


@pair("all_heads", "weights_transposed", "o_transposed")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = ((x @ w).unflatten(-1, (n_heads, -1)).transpose(1, 2) for w in (q_weight, k_weight, v_weight))
    return _glue(_weights(query, key, mask[:, None]) @ value) @ o_weight


@pair("all_heads", "viewed", "reshaped")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    B, T, width = x.shape
    query, key, value = (F.linear(x, w).view(B, n_heads, T, width // n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear((_weights(query, key, mask[:, None]) @ value).reshape(B, T, width), o_weight)


@pair("all_heads", "mask_ignored", "not_scaled")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue((query @ key.mT).softmax(-1) @ value), o_weight)


@pair("all_heads", "mask_inverted", "not_scaled")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, ~mask[:, None], 1.0) @ value), o_weight)


@pair("all_heads", "mask_over_heads", "mask_inverted")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return F.linear(_glue(scores.masked_fill(mask, -math.inf).softmax(-1) @ value), o_weight)


@pair("all_heads", "one_head", "not_scaled")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    scores = F.linear(x, q_weight) @ F.linear(x, k_weight).mT
    return F.linear(scores.masked_fill(~mask, -math.inf).softmax(-1) @ F.linear(x, v_weight), o_weight)


@pair("all_heads", "reshaped", "o_left_out")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return (_weights(query, key, mask[:, None]) @ value).reshape(x.shape)


@pair("all_heads", "mask_after", "mask_over_heads")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) * mask @ value), o_weight)


@form("all_heads", "the mask added to the scores", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    scores = query @ key.mT / query.shape[-1] ** 0.5 + mask[:, None]
    return F.linear(_glue(scores.softmax(-1) @ value), o_weight)


@form("all_heads", "the heads interleaved", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (
        F.linear(x, w).unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2) for w in (q_weight, k_weight, v_weight)
    )
    return F.linear((_weights(query, key, mask[:, None]) @ value).permute(0, 2, 3, 1).flatten(2), o_weight)


@form("all_heads", "queries and keys exchanged", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (k_weight, q_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask[:, None]) @ value), o_weight)


@form("all_heads", "the mask taken from the wrong side", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask.mT[:, None]) @ value), o_weight)


@form("all_heads", "divided by the number of heads", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (_cut(x, w, n_heads) for w in (q_weight, k_weight, v_weight))
    return F.linear(_glue(_weights(query, key, mask[:, None], n_heads**-0.5) @ value), o_weight)


@form("all_heads", "tokens left as a middle axis: attention among the heads of one token", None)
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    query, key, value = (F.linear(x, w).unflatten(-1, (n_heads, -1)) for w in (q_weight, k_weight, v_weight))
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)  # (B, T, H, H)
    return F.linear((weights @ value).flatten(2), o_weight)


# --- all_heads: right answers -----------------------------------------------------------------------------------


@right("all_heads", "one head at a time")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    output = 0
    weights = zip(*(w.chunk(n_heads, dim=d) for w, d in ((q_weight, 0), (k_weight, 0), (v_weight, 0), (o_weight, 1))),
                  strict=True)  # fmt: skip
    for q, k, v, o in weights:
        scores = (x @ q.T) @ (x @ k.T).mT / len(q) ** 0.5
        output = output + scores.masked_fill(~mask, -math.inf).softmax(-1) @ (x @ v.T) @ o.T
    return output


@right("all_heads", "einsum")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    q, k, v = (w.view(n_heads, -1, x.shape[-1]) for w in (q_weight, k_weight, v_weight))  # (H, D, d_model)
    query, key, value = (torch.einsum("btm,hdm->bhtd", x, w) for w in (q, k, v))
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) / query.shape[-1] ** 0.5
    weights = torch.where(mask.unsqueeze(1), scores, -math.inf).softmax(-1)
    output = torch.einsum("bhts,bhsd->bthd", weights, value)
    return torch.einsum("bthd,mhd->btm", output, o_weight.view(-1, n_heads, output.shape[-1]))


@right("all_heads", "heads in the batch, bmm")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    B, T, width = x.shape
    D = width // n_heads
    query, key, value = (_cut(x, w, n_heads).reshape(B * n_heads, T, D) for w in (q_weight, k_weight, v_weight))
    scores = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(D)
    weights = scores.masked_fill(~mask.repeat_interleave(n_heads, dim=0), -1e9).softmax(-1)
    output = torch.bmm(weights, value).view(B, n_heads, T, D)
    return F.linear(_glue(output), o_weight)


@right("all_heads", "one product for queries, keys and values")
def _(x, q_weight, k_weight, v_weight, o_weight, n_heads, mask):
    B, T, width = x.shape
    together = F.linear(x, torch.cat([q_weight, k_weight, v_weight])).view(B, T, 3, n_heads, width // n_heads)
    query, key, value = together.permute(2, 0, 3, 1, 4)
    weights = _weights(query, key, mask[:, None])
    return F.linear((weights @ value).transpose(1, 2).flatten(2), o_weight)


# --- keep_heads: mistakes ---------------------------------------------------------------------------------------


@mutant("keep_heads", "inverted")
def _(heads, o_weight, keep):
    heads = heads.clone()
    heads[:, keep] = 0
    return F.linear(_glue(heads), o_weight)


@mutant("keep_heads", "keep_ignored")
def _(heads, o_weight, keep):
    return torch.einsum("bhtd,mhd->btm", heads, o_weight.unflatten(1, (heads.shape[1], -1)))


@mutant("keep_heads", "over_tokens")
def _(heads, o_weight, keep):
    return F.linear(_glue(heads * keep.unsqueeze(-1)), o_weight)


@mutant("keep_heads", "over_numbers")
def _(heads, o_weight, keep):
    return F.linear(_glue(heads * keep), o_weight)


@mutant("keep_heads", "zeroed_after")
def _(heads, o_weight, keep):
    D = heads.shape[-1]
    output = F.linear(_glue(heads), o_weight).clone()
    for h in range(len(keep)):
        if not keep[h]:
            output[..., h * D : (h + 1) * D] = 0
    return output


@mutant("keep_heads", "columns_shifted")
def _(heads, o_weight, keep):
    joined = _glue(heads[:, keep])
    return joined @ o_weight[:, : joined.shape[-1]].T


@mutant("keep_heads", "rescaled")
def _(heads, o_weight, keep):
    share = keep.float().mean().to(heads)
    return F.linear(_glue(heads * keep.view(1, -1, 1, 1) / share), o_weight)


@mutant("keep_heads", "mean_left")
def _(heads, o_weight, keep):
    gate = keep[:, None, None].to(heads)
    return F.linear(_glue(heads * gate + heads.mean(dim=-2, keepdim=True) * (1 - gate)), o_weight)


@mutant("keep_heads", "reshaped")
def _(heads, o_weight, keep):
    B, H, T, D = heads.shape
    return F.linear((heads * keep[None, :, None, None]).reshape(B, T, H * D), o_weight)


@mutant("keep_heads", "interleaved")
def _(heads, o_weight, keep):
    return F.linear((heads * keep[:, None, None]).permute(0, 2, 3, 1).flatten(2), o_weight)


@mutant("keep_heads", "o_transposed")
def _(heads, o_weight, keep):
    return _glue(heads * keep[:, None, None]) @ o_weight


@mutant("keep_heads", "o_left_out")
def _(heads, o_weight, keep):
    return _glue(heads.masked_fill(~keep[:, None, None], 0.0))


@pair("keep_heads", "inverted", "o_transposed")
def _(heads, o_weight, keep):
    return _glue(heads * ~keep[:, None, None]) @ o_weight


@pair("keep_heads", "inverted", "o_left_out")
def _(heads, o_weight, keep):
    return _glue(heads.masked_fill(keep[:, None, None], 0.0))


@pair("keep_heads", "over_tokens", "o_transposed")
def _(heads, o_weight, keep):
    return _glue(heads * keep[:, None]) @ o_weight


@pair("keep_heads", "reshaped", "o_transposed")
def _(heads, o_weight, keep):
    B, H, T, D = heads.shape
    return (heads * keep[:, None, None]).reshape(B, T, H * D) @ o_weight


@pair("keep_heads", "rescaled", "o_left_out")
def _(heads, o_weight, keep):
    return _glue(heads * keep[:, None, None]) * len(keep) / keep.sum()


@form("keep_heads", "the heads that stay are joined, the weight is cut to their number of rows", None)
def _(heads, o_weight, keep):
    joined = _glue(heads[:, keep])
    return joined @ o_weight[: joined.shape[-1]]


@form("keep_heads", "one output for each head", None)
def _(heads, o_weight, keep):
    parts = o_weight.unflatten(1, (heads.shape[1], -1))
    return torch.einsum("bhtd,mhd->bhtm", heads * keep[:, None, None], parts)


@form("keep_heads", "zeros where the output weight's rows are, not its columns", "zeroed_after")
def _(heads, o_weight, keep):
    rows = keep.repeat_interleave(heads.shape[-1])[:, None]
    return F.linear(_glue(heads), o_weight * rows)


@form("keep_heads", "the mean over all heads in a removed one's place", None)
def _(heads, o_weight, keep):
    return F.linear(_glue(torch.where(keep[:, None, None], heads, heads.mean(1, keepdim=True))), o_weight)


@form("keep_heads", "-inf instead of 0", None)
def _(heads, o_weight, keep):
    return F.linear(_glue(heads.masked_fill(~keep[:, None, None], -math.inf)), o_weight)


# --- keep_heads: right answers ----------------------------------------------------------------------------------


@right("keep_heads", "a sum over the heads that stay")
def _(heads, o_weight, keep):
    columns = o_weight.chunk(len(keep), dim=1)
    return sum(heads[:, h] @ columns[h].T for h in range(len(keep)) if keep[h])


@right("keep_heads", "the columns of removed heads are zero")
def _(heads, o_weight, keep):
    return F.linear(_glue(heads), o_weight * keep.repeat_interleave(heads.shape[-1]))


@right("keep_heads", "einsum with keep as a letter")
def _(heads, o_weight, keep):
    parts = o_weight.unflatten(1, (heads.shape[1], heads.shape[3]))
    return torch.einsum("bhtd,mhd,h->btm", heads, parts, keep.to(heads.dtype))


@right("keep_heads", "both cut to what stays")
def _(heads, o_weight, keep):
    return _glue(heads[:, keep]) @ o_weight[:, keep.repeat_interleave(heads.shape[3])].T


@right("keep_heads", "masked_fill")
def _(heads, o_weight, keep):
    return torch.cat(heads.masked_fill(~keep[None, :, None, None], 0).unbind(1), dim=2) @ o_weight.mT
