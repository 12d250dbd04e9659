"""Chapter 10 as learners write it: every misconception a second time, two mistakes at once, right answers.

Nothing here uses the `faulty` switches of attncourse/checks/linear.py: the styles differ on purpose (loops over tokens,
lower triangles, running sums, einsum), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("linear")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right


def _phi(x):
    return F.elu(x) + 1


def _triangle(T, diagonal=0):
    return torch.ones(T, T).tril(diagonal).bool()


# --- kernel_attention: mistakes ---------------------------------------------------------------------------------


def _quadratic(query, key, value):
    """Normalised causal attention with features as they are given."""
    weights = torch.einsum("bhid,bhjd->bhij", query, key) * _triangle(query.shape[2])
    return (weights / weights.sum(-1, keepdim=True)) @ value


def _one_by_one(query, key, value, divide=True):
    """The same, token by token, with features as they are given."""
    memory, total, outputs = 0, 0, []
    for t in range(query.shape[2]):
        memory = memory + key[:, :, t, :, None] * value[:, :, t, None]
        total = total + key[:, :, t]
        read = torch.einsum("bhd,bhdv->bhv", query[:, :, t], memory)
        outputs.append(read / (query[:, :, t] * total).sum(-1, keepdim=True) if divide else read)
    return torch.stack(outputs, dim=2)


@mutant("kernel_attention", "not_causal")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    return query @ (key.mT @ value) / (query @ key.sum(2)[..., None])


@mutant("kernel_attention", "no_normaliser")
def _(query, key, value):
    return _one_by_one(_phi(query), _phi(key), value, divide=False)


@mutant("kernel_attention", "excludes_self")
def _(query, key, value):
    scores = torch.tril(_phi(query) @ _phi(key).transpose(-2, -1), diagonal=-1)
    return scores @ value / scores.sum(dim=-1, keepdim=True)


@mutant("kernel_attention", "excludes_self_filled")
def _(query, key, value):
    scores = torch.tril(_phi(query) @ _phi(key).transpose(-2, -1), diagonal=-1)
    return scores @ value / (scores.sum(dim=-1, keepdim=True) + 1e-9)


@mutant("kernel_attention", "normaliser_over_all")
def _(query, key, value):
    scores = _phi(query) @ _phi(key).mT
    return scores.tril() @ value / scores.sum(-1, keepdim=True)


@mutant("kernel_attention", "normaliser_of_one")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    return (query @ key.mT).tril() @ value / torch.einsum("bhtd,bhtd->bht", query, key)[..., None]


@mutant("kernel_attention", "divided_by_count")
def _(query, key, value):
    T = query.shape[2]
    outputs = _one_by_one(_phi(query), _phi(key), value, divide=False)
    return torch.stack([outputs[:, :, t] / (t + 1) for t in range(T)], dim=2)


@mutant("kernel_attention", "relu")
def _(query, key, value):
    return _quadratic(F.relu(query), F.relu(key), value)


@mutant("kernel_attention", "elu_alone")
def _(query, key, value):
    return _one_by_one(F.elu(query), F.elu(key), value)


@mutant("kernel_attention", "one_inside")
def _(query, key, value):
    return _quadratic(F.elu(query + 1), F.elu(key + 1), value)


@mutant("kernel_attention", "exponential")
def _(query, key, value):
    return _one_by_one(torch.exp(query), torch.exp(key), value)


@mutant("kernel_attention", "query_not_mapped")
def _(query, key, value):
    return _one_by_one(query, _phi(key), value)


@mutant("kernel_attention", "key_not_mapped")
def _(query, key, value):
    return _quadratic(_phi(query), key, value)


@mutant("kernel_attention", "scaled_first")
def _(query, key, value):
    root = math.sqrt(math.sqrt(query.shape[-1]))
    return _quadratic(_phi(query / root), _phi(key / root), value)


@mutant("kernel_attention", "over_heads")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    memory = torch.cumsum(torch.einsum("bhtd,bhtv->bhtdv", key, value), dim=1)
    total = torch.cumsum(key, dim=1)
    return torch.einsum("bhtd,bhtdv->bhtv", query, memory) / torch.einsum("bhtd,bhtd->bht", query, total)[..., None]


@mutant("kernel_attention", "over_features")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    memory = torch.cumsum(torch.einsum("bhtd,bhtv->bhtdv", key, value), dim=-2)
    total = torch.cumsum(key, dim=-2)
    return torch.einsum("bhtd,bhtdv->bhtv", query, memory) / torch.einsum("bhtd,bhtd->bht", query, total)[..., None]


@mutant("kernel_attention", "looks_ahead")
def _(query, key, value):
    scores = (_phi(query) @ _phi(key).mT).triu()
    return scores / scores.sum(-1, keepdim=True) @ value


@mutant("kernel_attention", "softmax")
def _(query, key, value):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return F.softmax(scores.masked_fill(~_triangle(query.shape[2]), -math.inf), dim=-1) @ value


@mutant("kernel_attention", "map_of_product")
def _(query, key, value):
    weights = _phi(query @ key.mT) * _triangle(query.shape[2])
    return weights @ value / weights.sum(-1, keepdim=True)


@mutant("kernel_attention", "masked_with_inf")
def _(query, key, value):
    scores = _phi(query) @ _phi(key).mT
    scores = torch.where(_triangle(query.shape[2]), scores, -math.inf)
    return scores @ value / scores.sum(dim=-1, keepdim=True)


@mutant("kernel_attention", "softmax_of_features")
def _(query, key, value):
    scores = (_phi(query) @ _phi(key).mT).masked_fill(~_triangle(query.shape[2]), -math.inf)
    return scores.softmax(-1) @ value


@mutant("kernel_attention", "softmax_of_triangle")
def _(query, key, value):
    scores = _phi(query) @ _phi(key).mT
    return torch.softmax(scores.tril(), dim=-1) @ value


@mutant("kernel_attention", "query_left_out")
def _(query, key, value):
    key = _phi(key)
    return (_phi(query) @ key.mT).tril() @ value / key.cumsum(2).sum(-1, keepdim=True)


@mutant("kernel_attention", "mapped_twice")
def _(query, key, value):
    return _one_by_one(_phi(_phi(query)), _phi(_phi(key)), value)


@mutant("kernel_attention", "weights_over_queries")
def _(query, key, value):
    scores = torch.einsum("bhid,bhjd->bhij", _phi(query), _phi(key)) * _triangle(query.shape[2])
    return torch.einsum("bhij,bhjv->bhiv", scores / scores.sum(2, keepdim=True), value)


@mutant("kernel_attention", "divisor_over_queries")
def _(query, key, value):
    scores = (_phi(query) @ _phi(key).mT).tril()
    return scores @ value / scores.sum(dim=-2, keepdim=True)


@pair("kernel_attention", "softmax_of_features", "not_causal")
def _(query, key, value):
    return (_phi(query) @ _phi(key).mT).softmax(-1) @ value


@pair("kernel_attention", "softmax_of_triangle", "elu_alone")
def _(query, key, value):
    return (F.elu(query) @ F.elu(key).mT).tril().softmax(-1) @ value


@pair("kernel_attention", "query_left_out", "normaliser_over_all")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    return (query @ key.mT).tril() @ value / key.sum((2, 3), keepdim=True)


@pair("kernel_attention", "mapped_twice", "no_normaliser")
def _(query, key, value):
    return ((_phi(query) + 1) @ (_phi(key) + 1).mT).tril() @ value


@pair("kernel_attention", "query_not_mapped", "key_not_mapped")
def _(query, key, value):
    return _one_by_one(query, key, value)


@pair("kernel_attention", "not_causal", "no_normaliser")
def _(query, key, value):
    return _phi(query) @ (_phi(key).mT @ value)


@pair("kernel_attention", "no_normaliser", "elu_alone")
def _(query, key, value):
    return (F.elu(query) @ F.elu(key).mT).tril() @ value


@pair("kernel_attention", "no_normaliser", "scaled_first")
def _(query, key, value):
    root = query.shape[-1] ** 0.25
    return (_phi(query / root) @ _phi(key / root).mT).tril() @ value


@pair("kernel_attention", "no_normaliser", "excludes_self")
def _(query, key, value):
    return (_phi(query) @ _phi(key).mT).tril(-1) @ value


@pair("kernel_attention", "over_heads", "no_normaliser")
def _(query, key, value):
    memory = (_phi(key)[..., None] * value[..., None, :]).cumsum(1)
    return (_phi(query)[..., None, :] @ memory).squeeze(-2)


@pair("kernel_attention", "softmax", "not_causal")
def _(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


@form("kernel_attention", "a softmax of the features' products, divided by the root of D", None)
def _(query, key, value):
    scores = _phi(query) @ _phi(key).mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~_triangle(query.shape[2]), -math.inf).softmax(-1) @ value


@form("kernel_attention", "softmax over the features as feature map", None)
def _(query, key, value):
    return _quadratic(query.softmax(-1), key.softmax(-1), value)


@form("kernel_attention", "the query scaled and not the key, before the map", None)
def _(query, key, value):
    return _quadratic(_phi(query / query.shape[-1] ** 0.5), _phi(key), value)


@form("kernel_attention", "the feature map three times", None)
def _(query, key, value):
    return _quadratic(_phi(_phi(_phi(query))), _phi(_phi(_phi(key))), value)


@form("kernel_attention", "the mask before the map: elu(-inf) + 1 = 0", None)
def _(query, key, value):
    scores = (query @ key.mT).masked_fill(~_triangle(query.shape[2]), -math.inf)
    weights = F.elu(scores) + 1
    return weights @ value / weights.sum(-1, keepdim=True)


@form("kernel_attention", "the value goes through the map too", None)
def _(query, key, value):
    return _quadratic(_phi(query), _phi(key), _phi(value))


@form("kernel_attention", "a large epsilon in the divisor", None)
def _(query, key, value):
    scores = (_phi(query) @ _phi(key).mT).tril()
    return scores @ value / (scores.sum(-1, keepdim=True) + 1)


@form("kernel_attention", "one divisor for all tokens", None)
def _(query, key, value):
    scores = (_phi(query) @ _phi(key).mT).tril()
    return scores @ value / scores.sum((-2, -1), keepdim=True)


# --- kernel_attention: right answers ----------------------------------------------------------------------------


@right("kernel_attention", "running sums of all products")
def _(query, key, value):
    query, key = _phi(query), _phi(key)
    memory = torch.einsum("bhtd,bhtv->bhtdv", key, value).cumsum(dim=2)
    read = torch.einsum("bhtd,bhtdv->bhtv", query, memory)
    return read / (query * key.cumsum(dim=2)).sum(-1, keepdim=True)


@right("kernel_attention", "one token at a time")
def _(query, key, value):
    return _one_by_one(_phi(query), _phi(key), value)


@right("kernel_attention", "a boolean mask, weights normalised first")
def _(query, key, value):
    weights = (_phi(query) @ _phi(key).mT).masked_fill(~_triangle(query.shape[2]), 0)
    return weights / weights.sum(-1, keepdim=True) @ value


@right("kernel_attention", "the map in two cases, the query scaled, a small epsilon")
def _(query, key, value):
    query, key = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (query, key))
    query = query / query.shape[-1] ** 0.5
    scores = torch.einsum("bhid,bhjd->bhij", query, key).tril()
    return torch.einsum("bhij,bhjv->bhiv", scores, value) / (scores.sum(-1)[..., None] + 1e-6)


@right("kernel_attention", "a column of ones beside the values")
def _(query, key, value):
    value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
    read = (_phi(query) @ _phi(key).transpose(2, 3)).tril() @ value
    return read[..., :-1] / read[..., -1:]


# --- update_state: mistakes -------------------------------------------------------------------------------------


def _write(key, value, memory, total):
    return memory + torch.einsum("bhd,bhv->bhdv", key, value), total + key


def _read(query, memory, total):
    return torch.einsum("bhd,bhdv->bhv", query, memory) / torch.einsum("bhd,bhd->bh", query, total)[..., None]


@mutant("update_state", "other_order")
def _(query, key, value, memory, total):
    output = (memory * query[..., None]).sum(-2) / (total * query).sum(-1, keepdim=True)
    return output, memory + key[..., None] * value[:, :, None], total + key


@mutant("update_state", "times_mixed")
def _(query, key, value, memory, total):
    divisor = (query * total).sum(-1, keepdim=True)
    memory = memory + key.unsqueeze(-1) @ value.unsqueeze(-2)
    return (query.unsqueeze(-2) @ memory).squeeze(-2) / divisor, memory, total + key


@mutant("update_state", "old_returned")
def _(query, key, value, memory, total):
    return _read(query, *_write(key, value, memory, total)), memory, total


@mutant("update_state", "overwritten")
def _(query, key, value, memory, total):
    memory = key[..., :, None] * value[..., None, :]
    return _read(query, memory, key), memory, key + 0


@mutant("update_state", "memory_left")
def _(query, key, value, memory, total):
    total = total + key
    return _read(query, memory, total), memory, total


@mutant("update_state", "total_left")
def _(query, key, value, memory, total):
    memory = memory + key[..., None] * value[..., None, :]
    return _read(query, memory, total), memory, total


@mutant("update_state", "no_normaliser")
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return torch.einsum("bhd,bhdv->bhv", query, memory), memory, total


@mutant("update_state", "query_left_out")
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return (query[:, :, None] @ memory)[:, :, 0] / total.sum(dim=-1, keepdim=True), memory, total


@mutant("update_state", "query_written")
def _(query, key, value, memory, total):
    memory, total = _write(query, value, memory, total)
    return _read(query, memory, total), memory, total


@mutant("update_state", "key_reads")
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return _read(key, memory, total), memory, total


@mutant("update_state", "outer_transposed")
def _(query, key, value, memory, total):
    memory, total = memory + value[..., :, None] * key[..., None, :], total + key
    return _read(query, memory, total), memory, total


@mutant("update_state", "mapped_again")
def _(query, key, value, memory, total):
    query, key = _phi(query), _phi(key)
    memory, total = _write(key, value, memory, total)
    return _read(query, memory, total), memory, total


@mutant("update_state", "one_divisor")
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return torch.einsum("bhd,bhdv->bhv", query, memory) / torch.sum(query * total), memory, total


@pair("update_state", "query_written", "key_reads")
def _(query, key, value, memory, total):
    memory, total = _write(query, value, memory, total)
    return _read(key, memory, total), memory, total


@pair("update_state", "other_order", "no_normaliser")
def _(query, key, value, memory, total):
    return (query[..., None, :] @ memory).squeeze(-2), *_write(key, value, memory, total)


@pair("update_state", "other_order", "old_returned")
def _(query, key, value, memory, total):
    return _read(query, memory, total), memory, total


@pair("update_state", "total_left", "no_normaliser")
def _(query, key, value, memory, total):
    memory = memory + key[..., None] * value[..., None, :]
    return torch.einsum("bhd,bhdv->bhv", query, memory), memory, total


@pair("update_state", "outer_transposed", "no_normaliser")
def _(query, key, value, memory, total):
    memory = memory + torch.einsum("bhd,bhv->bhvd", key, value)
    return torch.einsum("bhd,bhdv->bhv", query, memory), memory, total + key


@form("update_state", "a running mean of old and new", None)
def _(query, key, value, memory, total):
    memory, total = (memory + key[..., None] * value[..., None, :]) / 2, (total + key) / 2
    return _read(query, memory, total), memory, total


@form("update_state", "the total is returned first", None)
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return _read(query, memory, total), total, memory


@form("update_state", "the output alone", None)
def _(query, key, value, memory, total):
    return _read(query, *_write(key, value, memory, total))


@form("update_state", "the product of numbers at one place, not the outer one", None)
def _(query, key, value, memory, total):
    memory, total = memory + (key.sum(-1, keepdim=True) * value)[..., None, :], total + key
    return _read(query, memory, total), memory, total


@form("update_state", "the norm of the total divides", None)
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return torch.einsum("bhd,bhdv->bhv", query, memory) / total.norm(dim=-1, keepdim=True), memory, total


@form("update_state", "the total grows by 1", None)
def _(query, key, value, memory, total):
    memory = memory + key[..., None] * value[..., None, :]
    return _read(query, memory, total + 1), memory, total + 1


# --- update_state: right answers --------------------------------------------------------------------------------


@right("update_state", "einsum")
def _(query, key, value, memory, total):
    memory, total = _write(key, value, memory, total)
    return _read(query, memory, total), memory, total


@right("update_state", "matrix products with axes of size 1")
def _(query, key, value, memory, total):
    memory = torch.add(memory, key.unsqueeze(-1).matmul(value.unsqueeze(-2)))
    total = torch.add(total, key)
    rows = query.unsqueeze(-2)
    return (rows @ memory / (rows @ total.unsqueeze(-1))).squeeze(-2), memory, total


@right("update_state", "head by head")
def _(query, key, value, memory, total):
    outputs, memories = torch.zeros_like(value), torch.zeros_like(memory)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            memories[b, h] = memory[b, h] + torch.outer(key[b, h], value[b, h])
            outputs[b, h] = query[b, h] @ memories[b, h].clone() / (query[b, h] @ (total + key)[b, h])
    return outputs, memories, total + key


@right("update_state", "the token's own part added to what was there before")
def _(query, key, value, memory, total):
    own = (query * key).sum(-1, keepdim=True)
    read = own * value + torch.einsum("bhd,bhdv->bhv", query, memory)
    divisor = own + (query * total).sum(-1, keepdim=True)
    return read / divisor, memory + key[..., None] * value[..., None, :], total + key


# --- chunk_attention: mistakes ----------------------------------------------------------------------------------


def _parts(query, key, value, chunk):
    return zip(query.split(chunk, 2), key.split(chunk, 2), value.split(chunk, 2), strict=True)


def _state(key, value):
    memory = key.new_zeros(key.shape[0], key.shape[1], key.shape[3], value.shape[3])
    return memory, key.new_zeros(key.shape[0], key.shape[1], key.shape[3], 1)


def _own(q, k, v, diagonal=0):
    """What a chunk reads of itself, and the sum of its weights."""
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * _triangle(q.shape[2], diagonal)
    return scores @ v, scores.sum(-1, keepdim=True)


def _grown(k, v, memory, total):
    return memory + torch.einsum("bhtd,bhtv->bhdv", k, v), total + k.sum(2).unsqueeze(-1)


@mutant("chunk_attention", "state_not_read")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        memories.append(memory)
        outputs.append(_quadratic(q, k, v))
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "never_written")
def _(query, key, value, chunk):
    memory, total = _state(key, value)
    outputs, memories = [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "only_last_chunk")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = k.mT @ v, k.sum(2)[..., None]
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "written_first")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "chunk_not_masked")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        weights = q @ k.mT
        outputs.append((weights @ v + q @ memory) / (weights.sum(-1, keepdim=True) + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "excludes_self")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v, diagonal=-1)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "state_not_in_divisor")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / weight)
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "chunk_not_in_divisor")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        outputs.append((_own(q, k, v)[0] + q @ memory) / (q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "no_normaliser")
def _(query, key, value, chunk):
    memory, outputs, memories = _state(key, value)[0], [], []
    for q, k, v in _parts(query, key, value, chunk):
        outputs.append((q @ k.transpose(-2, -1)).tril() @ v + q @ memory)
        memories.append(memory)
        memory = memory + k.transpose(-2, -1) @ v
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "tail_dropped")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for c in range(query.shape[2] // chunk):
        q, k, v = (x[:, :, c * chunk : (c + 1) * chunk] for x in (query, key, value))
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "memories_after")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memory, total = _grown(k, v, memory, total)
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "last_memory_too")
def _(query, key, value, chunk):
    memory, total = _state(key, value)
    outputs, memories = [], [memory]
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memory, total = _grown(k, v, memory, total)
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "mapped_again")
def _(query, key, value, chunk):
    query, key = _phi(query), _phi(key)
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "memories_shared")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory += k.mT @ v
        total += k.sum(2)[..., None]
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@mutant("chunk_attention", "stacked_in_front")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, dim=2), torch.stack(memories)


@mutant("chunk_attention", "pieces_counted")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in zip(*(torch.chunk(x, chunk, dim=2) for x in (query, key, value)), strict=True):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@pair("chunk_attention", "stacked_in_front", "memories_after")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memory, total = _grown(k, v, memory, total)
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories)


@pair("chunk_attention", "stacked_in_front", "pieces_counted")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in zip(query.chunk(chunk, 2), key.chunk(chunk, 2), value.chunk(chunk, 2), strict=True):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories)


@pair("chunk_attention", "memories_shared", "written_first")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        memories.append(memory)
        memory += k.mT @ v
        total += k.sum(2)[..., None]
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "only the total is written anew", None)
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = memory + k.mT @ v, k.sum(2)[..., None]
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@pair("chunk_attention", "written_first", "memories_after")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        memory, total = _grown(k, v, memory, total)
        memories.append(memory)
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@pair("chunk_attention", "only_last_chunk", "memories_after")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memory, total = k.mT @ v, k.sum(2)[..., None]
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@pair("chunk_attention", "chunk_not_masked", "no_normaliser")
def _(query, key, value, chunk):
    memory, outputs, memories = _state(key, value)[0], [], []
    for q, k, v in _parts(query, key, value, chunk):
        outputs.append(q @ k.mT @ v + q @ memory)
        memories.append(memory)
        memory = memory + k.mT @ v
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@pair("chunk_attention", "state_not_read", "tail_dropped")
def _(query, key, value, chunk):
    memory, outputs, memories = _state(key, value)[0], [], []
    for c in range(query.shape[2] // chunk):
        q, k, v = (x.narrow(2, c * chunk, chunk) for x in (query, key, value))
        outputs.append(_quadratic(q, k, v))
        memories.append(memory)
        memory = memory + k.mT @ v
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "the own part and the state's part are each normalised, then added", None)
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        past = q @ memory / (q @ total).clamp(min=1e-9)
        outputs.append(_quadratic(q, k, v) + past)
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "a token does not see itself, the first one gets zeros", "excludes_self")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v, diagonal=-1)
        outputs.append((own + q @ memory) / (weight + q @ total).clamp(min=1e-6))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "one state for all chunks: the sum over the whole sequence", None)
def _(query, key, value, chunk):
    memory, total = _grown(key, value, *_state(key, value))
    outputs, memories = [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "the memory decays", None)
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, 0.9 * memory, 0.9 * total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@form("chunk_attention", "the memories side by side along the features", None)
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.cat(memories, 2)


@form("chunk_attention", "the memories before the heads", None)
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 1)


# --- chunk_attention: right answers -----------------------------------------------------------------------------


@right("chunk_attention", "split, einsum")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for q, k, v in _parts(query, key, value, chunk):
        own, weight = _own(q, k, v)
        outputs.append((own + q @ memory) / (weight + q @ total))
        memories.append(memory)
        memory, total = _grown(k, v, memory, total)
    return torch.cat(outputs, 2), torch.stack(memories, 2)


@right("chunk_attention", "all chunks at once, zeros behind the last")
def _(query, key, value, chunk):
    T = query.shape[2]
    value = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    q, k, v = (F.pad(x, (0, 0, 0, -T % chunk)).unflatten(2, (-1, chunk)) for x in (query, key, value))
    sums = k.mT @ v  # (B, H, n, D, Dv + 1)
    memories = sums.cumsum(2) - sums
    read = ((q @ k.mT).tril() @ v + q @ memories).flatten(2, 3)[:, :, :T]
    memories = torch.cat([torch.zeros_like(sums[:, :, :1]), sums.cumsum(2)[:, :, :-1]], 2)
    return read[..., :-1] / read[..., -1:], memories[..., :-1]


@right("chunk_attention", "slices, results written into place")
def _(query, key, value, chunk):
    B, H, T, D = query.shape
    output, Dv = torch.empty_like(value), value.shape[-1]
    memories = value.new_empty(B, H, math.ceil(T / chunk), D, Dv)
    memory, total = value.new_zeros(B, H, D, Dv), value.new_zeros(B, H, D)
    for n, start in enumerate(range(0, T, chunk)):
        here = slice(start, start + chunk)
        memories[:, :, n] = memory
        weights = torch.tril(query[:, :, here] @ key[:, :, here].mT)
        divisor = weights.sum(-1) + torch.einsum("bhtd,bhd->bht", query[:, :, here], total)
        output[:, :, here] = (weights @ value[:, :, here] + query[:, :, here] @ memory) / divisor[..., None]
        memory = memory + key[:, :, here].mT @ value[:, :, here]
        total = total + key[:, :, here].sum(dim=2)
    return output, memories


@right("chunk_attention", "token by token, a memory kept at every chunk's begin")
def _(query, key, value, chunk):
    (memory, total), outputs, memories = _state(key, value), [], []
    for t, (q, k, v) in enumerate(_parts(query, key, value, 1)):
        if t % chunk == 0:
            memories.append(memory)
        memory, total = _grown(k, v, memory, total)
        outputs.append(q @ memory / (q @ total))
    return torch.cat(outputs, 2), torch.stack(memories, 2)


# --- random_features: mistakes ----------------------------------------------------------------------------------


def _norm(x):
    return torch.einsum("...d,...d->...", x, x).unsqueeze(-1)


@mutant("random_features", "no_norm")
def _(x, projection):
    return torch.exp(F.linear(x / x.shape[-1] ** 0.25, projection)) / math.sqrt(len(projection))


@mutant("random_features", "no_half")
def _(x, projection):
    x = x * x.shape[-1] ** -0.25
    return torch.exp(F.linear(x, projection) - _norm(x)) / math.sqrt(len(projection))


@mutant("random_features", "norm_added")
def _(x, projection):
    x = x * x.shape[-1] ** -0.25
    return torch.exp(F.linear(x, projection) + 0.5 * _norm(x)) / math.sqrt(len(projection))


@mutant("random_features", "norm_not_scaled")
def _(x, projection):
    return torch.exp(F.linear(x * x.shape[-1] ** -0.25, projection) - _norm(x) / 2) / math.sqrt(len(projection))


@mutant("random_features", "norm_of_products")
def _(x, projection):
    products = F.linear(x * x.shape[-1] ** -0.25, projection)
    return torch.exp(products - products.pow(2).sum(-1, keepdim=True) / 2) / math.sqrt(len(projection))


@mutant("random_features", "no_ratio")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - _norm(x) / 2)


@mutant("random_features", "divided_by_m")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - _norm(x) / 2) / projection.size(0)


@mutant("random_features", "no_scale")
def _(x, projection):
    return torch.exp(x @ projection.T - _norm(x) / 2) / projection.shape[0] ** 0.5


@mutant("random_features", "scaled_by_root")
def _(x, projection):
    x = x / math.sqrt(x.shape[-1])
    return torch.exp(x @ projection.T - _norm(x) / 2) / projection.shape[0] ** 0.5


@mutant("random_features", "trigonometric")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    products = x @ projection.T
    waves = torch.cat([torch.sin(products), torch.cos(products)], dim=-1)
    return torch.exp(_norm(x) / 2) / len(projection) ** 0.5 * waves


@mutant("random_features", "cosine")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(_norm(x) / 2) * torch.cos(x @ projection.T) / len(projection) ** 0.5


@mutant("random_features", "relu")
def _(x, projection):
    return F.relu(x / x.shape[-1] ** 0.25 @ projection.T) / len(projection) ** 0.5


@mutant("random_features", "stabilised_by_token")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    exponents = x @ projection.T - _norm(x) / 2
    return torch.exp(exponents - exponents.max(dim=-1, keepdim=True).values) / len(projection) ** 0.5


@mutant("random_features", "stabilised_by_product")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    products = x @ projection.T
    return torch.exp(products - _norm(x) / 2 - products.max(dim=-1, keepdim=True).values) / len(projection) ** 0.5


@mutant("random_features", "stabilised_over_all")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    features = torch.exp(x @ projection.T - _norm(x) / 2)
    return features / features.max() / len(projection) ** 0.5


@mutant("random_features", "projection_transposed")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection - _norm(x) / 2) / len(projection) ** 0.5


@mutant("random_features", "norm_of_all")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - x.square().sum() / 2) / len(projection) ** 0.5


@mutant("random_features", "epsilon_added")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    ratio = len(projection) ** -0.5
    return ratio * (torch.exp(x @ projection.T - _norm(x) / 2) + 1e-4)


@mutant("random_features", "power_without_brackets")
def _(x, projection):
    x = x / x.shape[-1] ** 1 / 4
    return torch.exp(x @ projection.T - _norm(x) / 2) / projection.shape[0] ** 0.5


@mutant("random_features", "root_without_brackets")
def _(x, projection):
    root = x.shape[-1] ** 1 / 4
    return torch.exp(F.linear(x / root, projection) - _norm(x / root) / 2) / math.sqrt(len(projection))


@mutant("random_features", "product_not_scaled")
def _(x, projection):
    u = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - _norm(u) / 2) / len(projection) ** 0.5


@mutant("random_features", "norm_not_squared")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - x.norm(dim=-1, keepdim=True) / 2) / len(projection) ** 0.5


@mutant("random_features", "squares_averaged")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - (x * x).mean(-1, keepdim=True) / 2) / len(projection) ** 0.5


@mutant("random_features", "divided_by_root_of_D")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - _norm(x) / 2) / math.sqrt(projection.size(1))


@pair("random_features", "power_without_brackets", "no_ratio")
def _(x, projection):
    x = x / x.shape[-1] ** 1 / 4
    return torch.exp(x @ projection.T - x.pow(2).sum(-1)[..., None] / 2)


@pair("random_features", "product_not_scaled", "no_half")
def _(x, projection):
    return torch.exp(x @ projection.T - _norm(x) / math.sqrt(x.shape[-1])) / len(projection) ** 0.5


@pair("random_features", "norm_not_squared", "no_half")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - torch.linalg.vector_norm(x, dim=-1, keepdim=True)) / len(projection) ** 0.5


@pair("random_features", "squares_averaged", "divided_by_root_of_D")
def _(x, projection):
    D = x.shape[-1]
    x = x / D**0.25
    return torch.exp(x @ projection.T - x.square().mean(-1, keepdim=True) / 2) / D**0.5


@pair("random_features", "no_norm", "no_scale")
def _(x, projection):
    return torch.exp(x @ projection.T) / len(projection) ** 0.5


@pair("random_features", "no_ratio", "no_scale")
def _(x, projection):
    return torch.exp(x @ projection.T - _norm(x) / 2)


@pair("random_features", "no_half", "no_ratio")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    return torch.exp(x @ projection.T - _norm(x))


@pair("random_features", "stabilised_by_token", "no_ratio")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    exponents = x @ projection.T - _norm(x) / 2
    return torch.exp(exponents - exponents.amax(-1, keepdim=True))


@pair("random_features", "no_scale", "relu")
def _(x, projection):
    return torch.relu(x @ projection.T) / len(projection) ** 0.5


@pair("random_features", "trigonometric", "no_norm")
def _(x, projection):
    products = x / x.shape[-1] ** 0.25 @ projection.T
    return torch.cat([products.sin(), products.cos()], -1) / len(projection) ** 0.5


@form("random_features", "cosines first, then sines", "trigonometric")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    products = x @ projection.T
    return torch.exp(_norm(x) / 2) * torch.cat([products.cos(), products.sin()], -1) / len(projection) ** 0.5


@form("random_features", "exponentials of both signs", None)
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    products = torch.cat([x @ projection.T, -x @ projection.T], -1)
    return torch.exp(products - _norm(x) / 2) / (2 * len(projection)) ** 0.5


@form("random_features", "a softmax over the features", None)
def _(x, projection):
    return torch.softmax(x / x.shape[-1] ** 0.25 @ projection.T, dim=-1)


@form("random_features", "m where D belongs in the scale", None)
def _(x, projection):
    x = x / projection.shape[0] ** 0.25
    return torch.exp(x @ projection.T - _norm(x) / 2) / len(projection) ** 0.5


@form("random_features", "scaled after the product alone", "norm_not_scaled")
def _(x, projection):
    return torch.exp(x @ projection.T / x.shape[-1] ** 0.25 - _norm(x) / 2) / len(projection) ** 0.5


# --- random_features: right answers -----------------------------------------------------------------------------


@right("random_features", "linear, and the factor inside the exponent")
def _(x, projection):
    x = x * x.shape[-1] ** -0.25
    return torch.exp(F.linear(x, projection) - 0.5 * _norm(x) - 0.5 * math.log(projection.shape[0]))


@right("random_features", "two factors")
def _(x, projection):
    D = x.shape[-1]
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.exp(x @ projection.mT / D**0.25) * torch.exp(-(length**2) / (2 * D**0.5)) / math.sqrt(len(projection))


@right("random_features", "one direction at a time")
def _(x, projection):
    x = x / math.sqrt(math.sqrt(x.size(-1)))
    features = [torch.exp((x * w).sum(-1) - (x * x).sum(-1) / 2) for w in projection]
    return torch.stack(features, dim=-1) / len(features) ** 0.5


@right("random_features", "the square completed: exp(|w|²/2 - |x - w|²/2)")
def _(x, projection):
    x = x / x.shape[-1] ** 0.25
    away = (x[..., None, :] - projection).square().sum(-1)
    return torch.exp((projection.square().sum(-1) - away) / 2) * projection.shape[0] ** -0.5


# --- orthogonal_rows: mistakes ----------------------------------------------------------------------------------


def _haar(matrix):
    """Q with R's diagonal positive."""
    Q, R = torch.linalg.qr(matrix)
    return Q @ torch.diag(torch.sign(torch.diag(R)))


@mutant("orthogonal_rows", "no_signs")
def _(gaussian, norms):
    return torch.diag(norms) @ torch.linalg.qr(gaussian)[0]


@mutant("orthogonal_rows", "signs_on_rows")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return norms.unsqueeze(1) * (torch.sign(torch.diag(R)).unsqueeze(1) * Q)


@mutant("orthogonal_rows", "signs_of_diagonal")
def _(gaussian, norms):
    Q, _ = torch.linalg.qr(gaussian)
    return norms.unsqueeze(1) * (Q * torch.sign(torch.diag(Q)))


@mutant("orthogonal_rows", "norms_on_columns")
def _(gaussian, norms):
    return _haar(gaussian) * norms


@mutant("orthogonal_rows", "norms_left_out")
def _(gaussian, norms):
    return _haar(gaussian)


@mutant("orthogonal_rows", "one_length")
def _(gaussian, norms):
    return _haar(gaussian) * math.sqrt(len(gaussian))


@mutant("orthogonal_rows", "lengths_of_gaussian")
def _(gaussian, norms):
    return _haar(gaussian) * gaussian.pow(2).sum(1, keepdim=True).sqrt()


@mutant("orthogonal_rows", "transposed")
def _(gaussian, norms):
    return norms[:, None] * _haar(gaussian).T


@mutant("orthogonal_rows", "of_transpose")
def _(gaussian, norms):
    return norms[:, None] * _haar(gaussian.T)


@mutant("orthogonal_rows", "not_orthogonal")
def _(gaussian, norms):
    return torch.nn.functional.normalize(gaussian, dim=1) * norms[:, None]


@mutant("orthogonal_rows", "triangle_returned")
def _(gaussian, norms):
    R = torch.linalg.qr(gaussian).R
    return (R * torch.sign(torch.diag(R))).T.mul(norms).T


@mutant("orthogonal_rows", "rows_orthogonalised")
def _(gaussian, norms):
    rows = []
    for vector in gaussian:
        for row in rows:
            vector = vector - (vector @ row) * row
        rows.append(vector / vector.norm())
    return torch.stack(rows) * norms[:, None]


@mutant("orthogonal_rows", "signs_of_all")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return torch.diag(norms) @ (Q * torch.sign(R))


@mutant("orthogonal_rows", "diagonal_multiplies")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return torch.diag(norms) @ Q @ torch.diag(torch.diag(R))


@pair("orthogonal_rows", "no_signs", "norms_left_out")
def _(gaussian, norms):
    return torch.linalg.qr(gaussian).Q


@pair("orthogonal_rows", "no_signs", "transposed")
def _(gaussian, norms):
    Q, _ = torch.linalg.qr(gaussian)
    return torch.diag(norms) @ Q.t()


@pair("orthogonal_rows", "no_signs", "one_length")
def _(gaussian, norms):
    return torch.linalg.qr(gaussian)[0] * len(gaussian) ** 0.5


@pair("orthogonal_rows", "rows_orthogonalised", "no_signs")
def _(gaussian, norms):
    return torch.linalg.qr(gaussian.T)[0].T * norms[:, None]


@pair("orthogonal_rows", "rows_orthogonalised", "norms_left_out")
def _(gaussian, norms):
    rows = []
    for vector in gaussian:
        rows.append(vector - sum((vector @ row) * row for row in rows))
        rows[-1] = rows[-1] / rows[-1].norm()
    return torch.stack(rows)


@pair("orthogonal_rows", "diagonal_multiplies", "norms_left_out")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return Q * torch.diag(R)


@pair("orthogonal_rows", "signs_of_all", "norms_on_columns")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return Q * torch.sign(R) * norms


@pair("orthogonal_rows", "norms_on_columns", "no_signs")
def _(gaussian, norms):
    return torch.linalg.qr(gaussian)[0] * norms


@form("orthogonal_rows", "the nearest orthogonal matrix, by the singular vectors", None)
def _(gaussian, norms):
    U, _, V = torch.linalg.svd(gaussian)
    return norms[:, None] * (U @ V)


@form("orthogonal_rows", "all numbers of Q made positive", None)
def _(gaussian, norms):
    return norms[:, None] * torch.linalg.qr(gaussian)[0].abs()


@form("orthogonal_rows", "the norms divide", None)
def _(gaussian, norms):
    return _haar(gaussian) / norms[:, None]


@form("orthogonal_rows", "Q and R", None)
def _(gaussian, norms):
    return torch.linalg.qr(gaussian)


# --- orthogonal_rows: right answers -----------------------------------------------------------------------------


@right("orthogonal_rows", "diagonal matrices")
def _(gaussian, norms):
    return torch.diag(norms) @ _haar(gaussian)


@right("orthogonal_rows", "column after column (Gram-Schmidt)")
def _(gaussian, norms):
    columns = []
    for j in range(gaussian.shape[1]):
        column = gaussian[:, j]
        for other in columns:
            column = column - (other @ column) * other
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1) * norms[:, None]


@right("orthogonal_rows", "columns turned where R's diagonal is negative")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian, mode="complete")
    return torch.where(torch.diagonal(R) < 0, -Q, Q) * norms.view(-1, 1)


@right("orthogonal_rows", "einsum")
def _(gaussian, norms):
    Q, R = torch.linalg.qr(gaussian)
    return torch.einsum("i,ij,j->ij", norms, Q, torch.sign(torch.diagonal(R)))
