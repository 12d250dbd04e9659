"""Chapter 14 as learners write it: every misconception a second time, two mistakes at once, right answers.

Nothing here uses the `faulty` switches of attncourse/checks/mla.py: the styles differ on purpose (loops over heads,
keys and values expanded first, rotations by complex numbers), because the check must recognise the mistake and not the
code.
"""

import math

import torch
import torch.nn.functional as F

from attncourse.positions import RotaryEmbedding, apply_rotary
from tests.checks.mutants import Answers

ANSWERS = Answers("mla")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right


# --- cached_numbers: mistakes -----------------------------------------------------------------------------------


def _one_by_one(count):
    """Model after model, in Python's numbers: `count` gives what a layer caches."""

    def cached_numbers(*columns):
        numbers, kv_heads = [], []
        for L, H, Q, C, N, R, V in zip(*(column.tolist() for column in columns), strict=True):
            layer = count(H, Q, C, N, R, V)
            numbers.append(L * layer)
            kv_heads.append(layer / (2 * V))
        return torch.tensor(numbers), torch.tensor(kv_heads)

    return cached_numbers


mutant("cached_numbers", "rope_left_out")(_one_by_one(lambda H, Q, C, N, R, V: C))
mutant("cached_numbers", "heads_multiplied")(_one_by_one(lambda H, Q, C, N, R, V: H * (C + R)))
mutant("cached_numbers", "rope_per_head")(_one_by_one(lambda H, Q, C, N, R, V: C + H * R))
mutant("cached_numbers", "doubled")(_one_by_one(lambda H, Q, C, N, R, V: (C + R) + (C + R)))
mutant("cached_numbers", "latent_doubled")(_one_by_one(lambda H, Q, C, N, R, V: C + C + R))
mutant("cached_numbers", "expanded")(_one_by_one(lambda H, Q, C, N, R, V: H * (N + R) + H * V))
mutant("cached_numbers", "expanded_rope_shared")(_one_by_one(lambda H, Q, C, N, R, V: H * N + H * V + R))
mutant("cached_numbers", "query_added")(_one_by_one(lambda H, Q, C, N, R, V: Q + C + R))
mutant("cached_numbers", "nope_added")(_one_by_one(lambda H, Q, C, N, R, V: C + (N + R)))
mutant("cached_numbers", "query_latent")(_one_by_one(lambda H, Q, C, N, R, V: Q + R))


@mutant("cached_numbers", "layers_left_out")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    cached = kv_rank + rope
    return cached, cached / v / 2


@mutant("cached_numbers", "key_alone")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), (kv_rank + rope) / v


@mutant("cached_numbers", "head_of_query")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * kv_rank + layers * rope, (kv_rank + rope) / (nope + rope) / 2


@mutant("cached_numbers", "wide_key")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    key, value = nope + rope, v
    return layers * (kv_rank + rope), (kv_rank + rope) / (key + value)


@mutant("cached_numbers", "against_all_heads")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    mla, mha = layers * (kv_rank + rope), layers * heads * v * 2
    return mla, mla / mha


@mutant("cached_numbers", "all_layers_compared")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    numbers = layers * (kv_rank + rope)
    return numbers, numbers / (2 * v)


@mutant("cached_numbers", "upside_down")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    numbers = layers * (kv_rank + rope)
    return numbers, 2 * v * layers / numbers


@mutant("cached_numbers", "whole_heads")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), torch.div(kv_rank + rope, 2 * v, rounding_mode="floor")


@mutant("cached_numbers", "returned_swapped")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    numbers = layers * (kv_rank + rope)
    return numbers / layers / (2 * v), numbers


@mutant("cached_numbers", "numbers_doubled")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return 2 * layers * (kv_rank + rope), (kv_rank + rope) / (2 * v)


@mutant("cached_numbers", "rope_of_one_layer")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return rope + kv_rank * layers, (rope + kv_rank) / (2 * v)


@mutant("cached_numbers", "rope_not_compared")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    numbers = torch.stack([kv_rank, rope]).sum(0) * layers
    return numbers, kv_rank / v / 2


@mutant("cached_numbers", "rounded_down")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    cached = kv_rank + rope
    kv_heads = [float(int(n / (2 * size))) for n, size in zip(cached.tolist(), v.tolist(), strict=True)]
    return layers * cached, torch.tensor(kv_heads)


@mutant("cached_numbers", "no_brackets")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), (kv_rank + rope) * v * 0.5


pair("cached_numbers", "doubled", "rope_left_out")(_one_by_one(lambda H, Q, C, N, R, V: 2 * C))
pair("cached_numbers", "expanded", "rope_left_out")(_one_by_one(lambda H, Q, C, N, R, V: H * (N + V)))
pair("cached_numbers", "heads_multiplied", "rope_left_out")(_one_by_one(lambda H, Q, C, N, R, V: H * C))
pair("cached_numbers", "heads_multiplied", "doubled")(_one_by_one(lambda H, Q, C, N, R, V: 2 * H * (C + R)))
pair("cached_numbers", "query_added", "rope_left_out")(_one_by_one(lambda H, Q, C, N, R, V: C + Q))
pair("cached_numbers", "rope_per_head", "doubled")(_one_by_one(lambda H, Q, C, N, R, V: 2 * (C + H * R)))


@pair("cached_numbers", "against_all_heads", "upside_down")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), 2 * heads * v / (kv_rank + rope)  # "57 times smaller"


@pair("cached_numbers", "rope_left_out", "key_alone")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * kv_rank, kv_rank / v


@pair("cached_numbers", "rope_left_out", "whole_heads")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * kv_rank, kv_rank // (2 * v)


@pair("cached_numbers", "rope_of_one_layer", "key_alone")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * kv_rank + rope, (kv_rank + rope) / v


@pair("cached_numbers", "rope_left_out", "no_brackets")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * kv_rank, kv_rank / 2 * v


@pair("cached_numbers", "rope_not_compared", "key_alone")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), kv_rank / v


@pair("cached_numbers", "numbers_doubled", "rope_left_out")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return 2 * kv_rank * layers, kv_rank / (v + v)


@form("cached_numbers", "the numbers alone", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope)


@form("cached_numbers", "floats and lists", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return [n * (c + r) for n, c, r in zip(layers.tolist(), kv_rank.tolist(), rope.tolist(), strict=True)]


@form("cached_numbers", "numbers as floats", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers.float() * (kv_rank + rope), (kv_rank + rope) / (2 * v)


@form("cached_numbers", "the second result in float64", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), (kv_rank + rope).double() / (2 * v)


@form("cached_numbers", "rounded to the nearest head", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope), ((kv_rank + rope) / (2 * v)).round()


@form("cached_numbers", "all models added up", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return (layers * (kv_rank + rope)).sum(), (kv_rank + rope) / (2 * v)


@form("cached_numbers", "half of the rotary key for each of key and value", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * (kv_rank + rope // 2), (kv_rank + rope // 2) / (2 * v)


@form("cached_numbers", "the latent left out", None)
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return layers * rope, rope / (2 * v)


# --- cached_numbers: right answers ------------------------------------------------------------------------------


right("cached_numbers", "model after model")(_one_by_one(lambda H, Q, C, N, R, V: C + R))


@right("cached_numbers", "both from the total")
def _(n_layers, n_heads, q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim):
    numbers = n_layers * kv_lora_rank + n_layers * qk_rope_head_dim
    of_one_head = n_layers * (v_head_dim + v_head_dim)
    return numbers, numbers / of_one_head


@right("cached_numbers", "einsum, and a stack of two")
def _(n_layers, *shape):
    _, _, latent, _, rotary, value = shape
    both = torch.stack([latent, rotary])
    return torch.einsum("m,im->m", n_layers, both), both.sum(0).div(value).mul(0.5)


@right("cached_numbers", "a list of two")
def _(layers, heads, q_rank, kv_rank, nope, rope, v):
    return [(kv_rank + rope) * layers, (kv_rank + rope).float() / v.float() / 2.0]


# --- split_up_projection: mistakes ------------------------------------------------------------------------------


def _sizes(weight, n_heads, nope_dim):
    """V and C."""
    return len(weight) // n_heads - nope_dim, weight.shape[1]


@mutant("split_up_projection", "keys_of_all_first")
def _(weight, n_heads, nope_dim):
    keys = n_heads * nope_dim
    return weight[:keys].unflatten(0, (n_heads, -1)), weight[keys:].unflatten(0, (n_heads, -1))


@mutant("split_up_projection", "heads_inside")
def _(weight, n_heads, nope_dim):
    heads = torch.stack([weight[h::n_heads] for h in range(n_heads)])
    return heads[:, :nope_dim], heads[:, nope_dim:]


@mutant("split_up_projection", "values_first")
def _(weight, n_heads, nope_dim):
    heads = weight.unflatten(0, (n_heads, -1))
    return heads[:, -nope_dim:], heads[:, :-nope_dim]


@mutant("split_up_projection", "halved")
def _(weight, n_heads, nope_dim):
    return weight.unflatten(0, (n_heads, -1)).chunk(2, dim=1)


@mutant("split_up_projection", "alternating")
def _(weight, n_heads, nope_dim):
    return tuple(weight.unflatten(0, (n_heads, -1, 2)).unbind(2))


@mutant("split_up_projection", "transposed")
def _(weight, n_heads, nope_dim):
    by_head = weight.T.unflatten(1, (n_heads, -1)).transpose(0, 1)  # (H, C, N + V)
    return by_head[..., :nope_dim], by_head[..., nope_dim:]


@mutant("split_up_projection", "columns_cut")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    both = weight.reshape(C, n_heads, nope_dim + V).permute(1, 2, 0)
    return both[:, :nope_dim], both[:, nope_dim:]


@mutant("split_up_projection", "returned_swapped")
def _(weight, n_heads, nope_dim):
    V, _ = _sizes(weight, n_heads, nope_dim)
    key, value = weight.unflatten(0, (n_heads, -1)).split([nope_dim, V], dim=1)
    return value, key


@form("split_up_projection", "pieces of n_heads rows side by side", "heads_inside")
def _(weight, n_heads, nope_dim):
    heads = torch.stack(weight.split(n_heads), dim=1)
    return heads[:, :nope_dim], heads[:, nope_dim:]


@form("split_up_projection", "pieces of n_heads rows taken for heads", None)
def _(weight, n_heads, nope_dim):
    heads = torch.stack(weight.split(n_heads))
    return heads[:, :nope_dim], heads[:, nope_dim:]


@pair("split_up_projection", "keys_of_all_first", "values_first")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    return weight[n_heads * V :].reshape(n_heads, nope_dim, C), weight[: n_heads * V].reshape(n_heads, V, C)


@pair("split_up_projection", "keys_of_all_first", "transposed")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    keys, values = weight.T[:, : n_heads * nope_dim], weight.T[:, n_heads * nope_dim :]
    return keys.reshape(C, n_heads, nope_dim).transpose(0, 1), values.reshape(C, n_heads, V).transpose(0, 1)


@pair("split_up_projection", "halved", "transposed")
def _(weight, n_heads, nope_dim):
    return [part.mT for part in weight.unflatten(0, (n_heads, -1)).chunk(2, dim=1)]


@pair("split_up_projection", "values_first", "returned_swapped")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    both = weight.reshape(n_heads, -1, C)
    return both[:, :V], both[:, V:]


@pair("split_up_projection", "columns_cut", "transposed")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    both = weight.reshape(C, n_heads, nope_dim + V).transpose(0, 1)
    return both[..., :nope_dim], both[..., nope_dim:]


@form("split_up_projection", "a loop over heads that forgets to move on", None)
def _(weight, n_heads, nope_dim):
    V, _ = _sizes(weight, n_heads, nope_dim)
    return (
        torch.stack([weight[:nope_dim] for _ in range(n_heads)]),
        torch.stack([weight[nope_dim : nope_dim + V] for _ in range(n_heads)]),
    )


@form("split_up_projection", "a step of N instead of N + V", None)
def _(weight, n_heads, nope_dim):
    V, _ = _sizes(weight, n_heads, nope_dim)
    keys = [weight[h * nope_dim : (h + 1) * nope_dim] for h in range(n_heads)]
    values = [weight[h * nope_dim + nope_dim : h * nope_dim + nope_dim + V] for h in range(n_heads)]
    return torch.stack(keys), torch.stack(values)


@form("split_up_projection", "the last N rows for values", None)
def _(weight, n_heads, nope_dim):
    both = weight.unflatten(0, (n_heads, -1))
    return both[:, :nope_dim], both[:, -nope_dim:]


@form("split_up_projection", "heads flattened again", None)
def _(weight, n_heads, nope_dim):
    both = weight.unflatten(0, (n_heads, -1))
    return both[:, :nope_dim].flatten(0, 1), both[:, nope_dim:].flatten(0, 1)


# --- split_up_projection: right answers -------------------------------------------------------------------------


@right("split_up_projection", "a loop over heads")
def _(weight, n_heads, nope_dim):
    V, _ = _sizes(weight, n_heads, nope_dim)
    keys, values = [], []
    for head in weight.chunk(n_heads):
        keys.append(head[:nope_dim])
        values.append(head[nope_dim : nope_dim + V])
    return torch.stack(keys), torch.stack(values)


@right("split_up_projection", "reshape and split")
def _(weight, n_heads, nope_dim):
    V, C = _sizes(weight, n_heads, nope_dim)
    return weight.reshape(n_heads, nope_dim + V, C).split([nope_dim, V], dim=1)


@right("split_up_projection", "by the numbers of the rows")
def _(weight, n_heads, nope_dim):
    rows = torch.arange(len(weight)).unflatten(0, (n_heads, -1))
    return weight[rows[:, :nope_dim]], weight[rows[:, nope_dim:]]


@right("split_up_projection", "from the columns of the transpose")
def _(weight, n_heads, nope_dim):
    both = weight.T.unflatten(1, (n_heads, -1))  # (C, H, N + V)
    return both[..., :nope_dim].permute(1, 2, 0), both[..., nope_dim:].permute(1, 2, 0)


# --- absorb_query: mistakes -------------------------------------------------------------------------------------


def _each_head(query, weights):
    """Head after head, with the weight (N, C) that each is given."""
    return torch.stack([query[:, h] @ weight for h, weight in enumerate(weights)], dim=1)


@mutant("absorb_query", "transposed")
def _(query_nope, up_key):
    return torch.einsum("bhtn,hcn->bhtc", query_nope, up_key)


@mutant("absorb_query", "reshaped")
def _(query_nope, up_key):
    H, N, C = up_key.shape
    return torch.einsum("bhtn,hcn->bhtc", query_nope, up_key.reshape(H, C, N))


@mutant("absorb_query", "inverse")
def _(query_nope, up_key):
    return _each_head(query_nope, [torch.linalg.pinv(weight).T for weight in up_key])


@mutant("absorb_query", "one_head")
def _(query_nope, up_key):
    return query_nope @ up_key[0]


@mutant("absorb_query", "heads_summed")
def _(query_nope, up_key):
    return torch.einsum("bhtn,knc->bhtc", query_nope, up_key)


@mutant("absorb_query", "heads_averaged")
def _(query_nope, up_key):
    return F.linear(query_nope, up_key.mean(0).T)


@mutant("absorb_query", "time_for_heads")
def _(query_nope, up_key):
    return torch.einsum("bthn,hnc->bthc", query_nope, up_key)


@mutant("absorb_query", "scaled")
def _(query_nope, up_key):
    return torch.einsum("bhtn,hnc->bhtc", query_nope, up_key) / math.sqrt(query_nope.shape[-1])


@pair("absorb_query", "transposed", "one_head")
def _(query_nope, up_key):
    return query_nope @ up_key[0].T


@pair("absorb_query", "transposed", "scaled")
def _(query_nope, up_key):
    return query_nope @ up_key.mT * query_nope.shape[-1] ** -0.5


@pair("absorb_query", "one_head", "scaled")
def _(query_nope, up_key):
    return query_nope @ up_key[0] / query_nope.shape[-1] ** 0.5


@pair("absorb_query", "heads_summed", "scaled")
def _(query_nope, up_key):
    return torch.einsum("bhtn,knc->bhtc", query_nope, up_key) / query_nope.shape[-1] ** 0.5


@pair("absorb_query", "inverse", "scaled")
def _(query_nope, up_key):
    return query_nope @ torch.linalg.pinv(up_key).mT / query_nope.shape[-1] ** 0.5


@form("absorb_query", "the letter for heads left out of the result", None)
def _(query_nope, up_key):
    return torch.einsum("bhtn,hnc->btc", query_nope, up_key)


@form("absorb_query", "heads behind queries", None)
def _(query_nope, up_key):
    return torch.einsum("bhtn,hnc->bthc", query_nope, up_key)


@form("absorb_query", "zeros behind the query, up to C", None)
def _(query_nope, up_key):
    return F.pad(query_nope, (0, up_key.shape[2] - up_key.shape[1]))


@form("absorb_query", "divided by the root of C", None)
def _(query_nope, up_key):
    return query_nope @ up_key / up_key.shape[2] ** 0.5


@form("absorb_query", "a key of the last head for all", None)
def _(query_nope, up_key):
    return query_nope @ up_key[-1]


@form("absorb_query", "made as long as the query was", None)
def _(query_nope, up_key):
    absorbed = query_nope @ up_key
    return absorbed * query_nope.norm(dim=-1, keepdim=True) / absorbed.norm(dim=-1, keepdim=True)


# --- absorb_query: right answers --------------------------------------------------------------------------------


@right("absorb_query", "a product for all heads")
def _(query_nope, up_key):
    return query_nope @ up_key


@right("absorb_query", "head after head")
def _(query_nope, up_key):
    return _each_head(query_nope, up_key)


@right("absorb_query", "products number by number, then a sum")
def _(query_nope, up_key):
    return (query_nope[..., None] * up_key[None, :, None]).sum(-2)


@right("absorb_query", "W transposed, from the left")
def _(query_nope, up_key):
    return (up_key.transpose(1, 2)[None] @ query_nope.transpose(2, 3)).transpose(2, 3)


@right("absorb_query", "einsum with letters of its own")
def _(query_nope, up_key):
    return torch.einsum("hij,bhti->bhtj", up_key, query_nope)


# --- absorbed_scores: mistakes ----------------------------------------------------------------------------------


def _neighbours_turned(x, start=0):
    """Pairs 2i and 2i + 1 as complex numbers, turned by their token's position, counted from `start`."""
    n = x.shape[-1] // 2
    angles = (start + torch.arange(x.shape[-2]))[:, None] * 10000.0 ** (-torch.arange(n) / n)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], n, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).to(x)


def _halves_turned(x, start=0):
    """Pairs i and i + n, turned likewise."""
    n = x.shape[-1] // 2
    angles = (start + torch.arange(x.shape[-2]))[:, None] * 10000.0 ** (-torch.arange(n) / n)
    cos, sin = angles.cos().to(x).repeat(1, 2), angles.sin().to(x).repeat(1, 2)
    return x * cos + torch.cat([-x[..., n:], x[..., :n]], -1) * sin


def _position(query_rope, key_rope, start=None, turn=_neighbours_turned):
    """The rotary part of the products; the queries' positions begin at `start`, by default at S - T."""
    start = key_rope.shape[-2] - query_rope.shape[-2] if start is None else start
    return torch.einsum("bhtr,bsr->bhts", turn(query_rope, start), turn(key_rope))


def _content(query_nope, latent, up_key):
    """The other part, with keys expanded as in prefill."""
    return torch.einsum("bhtn,bhsn->bhts", query_nope, torch.einsum("bsc,hnc->bhsn", latent, up_key))


def _root(query_nope, query_rope):
    return math.sqrt(query_nope.shape[-1] + query_rope.shape[-1])


@mutant("absorbed_scores", "transposed")
def _(query_nope, query_rope, latent, key_rope, up_key):
    absorbed = torch.einsum("bhtn,hcn->bhtc", query_nope, up_key)
    products = absorbed @ latent.unsqueeze(1).mT + _position(query_rope, key_rope)
    return products / _root(query_nope, query_rope)


@mutant("absorbed_scores", "reshaped")
def _(query_nope, query_rope, latent, key_rope, up_key):
    H, N, C = up_key.shape
    keys = latent.unsqueeze(1) @ up_key.reshape(H, C, N)
    return (query_nope @ keys.mT + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "one_head")
def _(query_nope, query_rope, latent, key_rope, up_key):
    keys = latent @ up_key[0].T
    content = torch.einsum("bhtn,bsn->bhts", query_nope, keys)
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "heads_summed")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = torch.einsum("bhtn,knc,bsc->bhts", query_nope, up_key, latent)
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "latent_as_key")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = torch.einsum("bhtc,bsc->bhts", query_nope, latent)
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "latent_cut")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = torch.einsum("bhtn,bsn->bhts", query_nope, latent[..., : query_nope.shape[-1]])
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "rope_left_out")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return _content(query_nope, latent, up_key) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "key_not_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = key_rope.shape[1] - query_rope.shape[2]
    position = torch.einsum("bhtr,bsr->bhts", _neighbours_turned(query_rope, start), key_rope)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "query_not_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = query_rope @ _neighbours_turned(key_rope).mT.unsqueeze(1)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "query_restarts")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _position(query_rope, key_rope, start=0)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "query_behind_all")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _position(query_rope, key_rope, start=latent.shape[1])
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "other_layout")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _position(query_rope, key_rope, turn=_halves_turned)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "latent_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = _content(query_nope, _neighbours_turned(latent), up_key)
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "both_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = _position(query_nope @ up_key, latent)
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "nope_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    keys = _neighbours_turned(torch.einsum("bsc,hnc->bhsn", latent, up_key))
    content = _neighbours_turned(query_nope, start) @ keys.mT
    return (content + _position(query_rope, key_rope)) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "no_scale")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return _content(query_nope, latent, up_key) + _position(query_rope, key_rope)


@mutant("absorbed_scores", "root_of_nope")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return (_content(query_nope, latent, up_key) + _position(query_rope, key_rope)) / query_nope.size(-1) ** 0.5


@mutant("absorbed_scores", "root_of_latent")
def _(query_nope, query_rope, latent, key_rope, up_key):
    query = torch.cat([query_nope @ up_key, _neighbours_turned(query_rope, latent.size(1) - query_rope.size(2))], -1)
    key = torch.cat([latent, _neighbours_turned(key_rope)], -1)  # what the cache holds
    return torch.einsum("bhtx,bsx->bhts", query, key) / math.sqrt(query.shape[-1])


@mutant("absorbed_scores", "parts_scaled_apart")
def _(query_nope, query_rope, latent, key_rope, up_key):
    N, R = query_nope.shape[-1], query_rope.shape[-1]
    return _content(query_nope * N**-0.5, latent, up_key) + _position(query_rope * R**-0.5, key_rope)


@mutant("absorbed_scores", "divided_without_root")
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return products / (query_nope.shape[-1] + query_rope.shape[-1])


@mutant("absorbed_scores", "returns_weights")
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return torch.softmax(products / _root(query_nope, query_rope), dim=3)


@mutant("absorbed_scores", "batch_for_heads")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    query = torch.cat([query_nope @ up_key, _neighbours_turned(query_rope, start)], dim=-1)
    key = torch.cat([latent, _neighbours_turned(key_rope)], dim=-1)
    return query @ key.transpose(-2, -1) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "one_too_far")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2] + 1  # as if S did not count the first of the new tokens
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope, start=start)
    return products / _root(query_nope, query_rope)


@mutant("absorbed_scores", "one_too_near")
def _(query_nope, query_rope, latent, key_rope, up_key):
    last = latent.shape[1] - 1
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope, last - query_rope.shape[2])
    return products / _root(query_nope, query_rope)


def _at_one_place(query_rope, key_rope, place):
    """The rotary part of the products, every query turned by `place`."""
    queries = [_neighbours_turned(query_rope[:, :, i : i + 1], place) for i in range(query_rope.shape[2])]
    return torch.cat(queries, dim=2) @ _neighbours_turned(key_rope)[:, None].mT


@mutant("absorbed_scores", "one_position")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _at_one_place(query_rope, key_rope, latent.shape[1] - query_rope.shape[2])
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "last_position")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _at_one_place(query_rope, key_rope, latent.shape[1] - 1)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "normalised_again")
def _(query_nope, query_rope, latent, key_rope, up_key):
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return products / _root(query_nope, query_rope)


@mutant("absorbed_scores", "position_divided_alone")
def _(query_nope, query_rope, latent, key_rope, up_key):
    root = _root(query_nope, query_rope)
    return query_nope @ up_key @ latent[:, None].mT + _position(query_rope, key_rope) / root


@mutant("absorbed_scores", "content_divided_alone")
def _(query_nope, query_rope, latent, key_rope, up_key):
    scores = _content(query_nope / _root(query_nope, query_rope), latent, up_key)
    return scores + _position(query_rope, key_rope)


@mutant("absorbed_scores", "content_left_out")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return _position(query_rope, key_rope) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "root_without_brackets")
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return products / (query_nope.shape[-1] + math.sqrt(query_rope.shape[-1]))


@mutant("absorbed_scores", "multiplied")
def _(query_nope, query_rope, latent, key_rope, up_key):
    root = _root(query_nope, query_rope)
    return _content(root * query_nope, latent, up_key) + _position(root * query_rope, key_rope)


@mutant("absorbed_scores", "root_of_c")
def _(query_nope, query_rope, latent, key_rope, up_key):
    absorbed = torch.einsum("bhtn,hnc->bhtc", query_nope, up_key)
    content = torch.einsum("bhtc,bsc->bhts", absorbed, latent)
    return (content + _position(query_rope, key_rope)) * absorbed.shape[-1] ** -0.5


@mutant("absorbed_scores", "masked")
def _(query_nope, query_rope, latent, key_rope, up_key):
    scores = (_content(query_nope, latent, up_key) + _position(query_rope, key_rope)) / _root(query_nope, query_rope)
    T, S = scores.shape[2:]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return torch.where(seen, scores, -math.inf)


@pair("absorbed_scores", "masked", "returns_weights")
def _(query_nope, query_rope, latent, key_rope, up_key):
    scores = (_content(query_nope, latent, up_key) + _position(query_rope, key_rope)) / _root(query_nope, query_rope)
    T, S = scores.shape[2:]
    return (scores + torch.full((T, S), -math.inf).triu(S - T + 1)).softmax(-1)


@pair("absorbed_scores", "query_restarts", "position_divided_alone")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _position(query_rope, key_rope, start=0)
    return _content(query_nope, latent, up_key) + position / _root(query_nope, query_rope)


@pair("absorbed_scores", "last_position", "no_scale")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _at_one_place(query_rope, key_rope, latent.shape[1] - 1)
    return query_nope @ up_key @ latent[:, None].mT + position


@pair("absorbed_scores", "batch_for_heads", "root_of_latent")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    query = torch.cat([query_nope @ up_key, _neighbours_turned(query_rope, start)], dim=-1)
    key = torch.cat([latent, _neighbours_turned(key_rope)], dim=-1)
    return query @ key.mT / query.shape[-1] ** 0.5


@pair("absorbed_scores", "whole_turned", "query_restarts")
def _(query_nope, query_rope, latent, key_rope, up_key):
    keys = torch.cat([latent[:, None] @ up_key.mT, torch.stack([key_rope] * len(up_key), dim=1)], dim=-1)
    query = torch.cat([query_nope, query_rope], dim=-1)
    return _neighbours_turned(query) @ _neighbours_turned(keys).mT / query.shape[-1] ** 0.5


@pair("absorbed_scores", "key_not_turned", "query_not_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = query_rope @ key_rope[:, None].mT
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@pair("absorbed_scores", "rope_left_out", "root_of_nope")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return query_nope @ up_key @ latent[:, None].mT / math.sqrt(query_nope.shape[-1])


@pair("absorbed_scores", "rope_left_out", "latent_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return query_nope @ up_key @ _neighbours_turned(latent)[:, None].mT / _root(query_nope, query_rope)


@pair("absorbed_scores", "rope_left_out", "nope_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    keys = _neighbours_turned(latent[:, None] @ up_key.mT)
    query = _neighbours_turned(query_nope, latent.shape[1] - query_nope.shape[2])
    return query @ keys.mT / _root(query_nope, query_rope)


@pair("absorbed_scores", "other_layout", "query_restarts")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _position(query_rope, key_rope, start=0, turn=_halves_turned)
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@pair("absorbed_scores", "query_restarts", "no_scale")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return _content(query_nope, latent, up_key) + _position(query_rope, key_rope, start=0)


@pair("absorbed_scores", "other_layout", "root_of_latent")
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope, turn=_halves_turned)
    return products / math.sqrt(latent.shape[-1] + key_rope.shape[-1])


@pair("absorbed_scores", "transposed", "no_scale")
def _(query_nope, query_rope, latent, key_rope, up_key):
    return query_nope @ up_key.mT @ latent[:, None].mT + _position(query_rope, key_rope)


@pair("absorbed_scores", "one_head", "root_of_nope")
def _(query_nope, query_rope, latent, key_rope, up_key):
    content = query_nope @ (latent @ up_key[0].T)[:, None].mT
    return (content + _position(query_rope, key_rope)) / query_nope.shape[-1] ** 0.5


@pair("absorbed_scores", "key_not_turned", "query_restarts")
def _(query_nope, query_rope, latent, key_rope, up_key):
    position = _neighbours_turned(query_rope, 0) @ key_rope[:, None].mT
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@pair("absorbed_scores", "latent_turned", "key_not_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    position = _neighbours_turned(query_rope, start) @ key_rope[:, None].mT
    content = query_nope @ up_key @ _neighbours_turned(latent)[:, None].mT
    return (content + position) / _root(query_nope, query_rope)


@form("absorbed_scores", "each key turned by the query's position", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    position = torch.einsum(
        "bhtr,bsr->bhts", _neighbours_turned(query_rope, start), _neighbours_turned(key_rope, start)
    )
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@mutant("absorbed_scores", "whole_turned")
def _(query_nope, query_rope, latent, key_rope, up_key):
    H = up_key.shape[0]
    keys = torch.cat([latent[:, None] @ up_key.mT, key_rope[:, None].expand(-1, H, -1, -1)], dim=-1)
    query = torch.cat([query_nope, query_rope], dim=-1)
    start = latent.shape[1] - query_nope.shape[2]
    return _neighbours_turned(query, start) @ _neighbours_turned(keys).mT / query.shape[-1] ** 0.5


@form("absorbed_scores", "absorbed query and latent turned with the rotary part, as one vector of C + R", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    query, key = torch.cat([query_nope @ up_key, query_rope], -1), torch.cat([latent, key_rope], -1)
    return _position(query, key) / _root(query_nope, query_rope)


@form("absorbed_scores", "the rotary part first in the query only", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    turned = _neighbours_turned(query_rope, latent.shape[1] - query_nope.shape[2])
    query = torch.cat([turned, query_nope @ up_key], -1)
    key = torch.cat([latent, _neighbours_turned(key_rope)], -1)
    return query @ key[:, None].mT / _root(query_nope, query_rope)


@form("absorbed_scores", "the parts multiplied", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    return _content(query_nope, latent, up_key) * _position(query_rope, key_rope) / _root(query_nope, query_rope)


@form("absorbed_scores", "later keys get a large negative number", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    scores = (_content(query_nope, latent, up_key) + _position(query_rope, key_rope)) / _root(query_nope, query_rope)
    T, S = scores.shape[2:]
    return scores.masked_fill(torch.arange(S) > torch.arange(S - T, S)[:, None], -1e9)


@form("absorbed_scores", "keys counted from 1, queries from 0", "one_too_near")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2]
    position = _neighbours_turned(query_rope, start) @ _neighbours_turned(key_rope, 1)[:, None].mT
    return (query_nope @ up_key @ latent[:, None].mT + position) / _root(query_nope, query_rope)


@form("absorbed_scores", "turned the other way round, the query alone", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    T, S = query_nope.shape[2], latent.shape[1]
    rotary = RotaryEmbedding(query_rope.shape[-1], interleaved=True)
    query = apply_rotary(query_rope, -torch.arange(S - T, S), rotary)
    position = query @ apply_rotary(key_rope, torch.arange(S), rotary)[:, None].mT
    return (_content(query_nope, latent, up_key) + position) / _root(query_nope, query_rope)


@form("absorbed_scores", "scaled by mscale too, as YaRN does", None)
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return products / _root(query_nope, query_rope) * (0.1 * math.log(40) + 1) ** 2


# --- absorbed_scores: right answers -----------------------------------------------------------------------------


@right("absorbed_scores", "keys expanded first")
def _(query_nope, query_rope, latent, key_rope, up_key):
    products = _content(query_nope, latent, up_key) + _position(query_rope, key_rope)
    return products / _root(query_nope, query_rope)


@right("absorbed_scores", "one product of C + R numbers, as the cache holds them")
def _(query_nope, query_rope, latent, key_rope, up_key):
    rotary = RotaryEmbedding(key_rope.shape[-1], interleaved=True)
    positions = torch.arange(latent.shape[1])
    cache = torch.cat([latent, apply_rotary(key_rope, positions, rotary)], dim=-1)
    last = positions[len(positions) - query_rope.shape[2] :]
    query = torch.cat([query_nope @ up_key, apply_rotary(query_rope, last, rotary)], dim=-1)
    return query @ cache.unsqueeze(1).mT / _root(query_nope, query_rope)


@right("absorbed_scores", "positions counted from 1")
def _(query_nope, query_rope, latent, key_rope, up_key):
    start = latent.shape[1] - query_nope.shape[2] + 1
    position = _neighbours_turned(query_rope, start) @ _neighbours_turned(key_rope, 1)[:, None].mT
    return (query_nope @ up_key @ latent[:, None].mT + position) / _root(query_nope, query_rope)


@right("absorbed_scores", "neighbours read, halves written, as one library does")
def _(query_nope, query_rope, latent, key_rope, up_key):
    query, key = (torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1) for x in (query_rope, key_rope))
    products = _content(query_nope, latent, up_key) + _position(query, key, turn=_halves_turned)
    return products / _root(query_nope, query_rope)


@right("absorbed_scores", "the query scaled first, head after head")
def _(query_nope, query_rope, latent, key_rope, up_key):
    root = _root(query_nope, query_rope)
    position = _position(query_rope / root, key_rope)
    heads = [query_nope[:, h] / root @ up_key[h] @ latent.mT + position[:, h] for h in range(len(up_key))]
    return torch.stack(heads, dim=1)


# --- absorbed_values: mistakes ----------------------------------------------------------------------------------


def _values(latent, up_value):
    """The values of all heads, as in prefill: (B, H, S, V)."""
    return torch.einsum("bsc,hvc->bhsv", latent, up_value)


@mutant("absorbed_values", "transposed")
def _(weights, latent, up_value):
    return weights @ latent.unsqueeze(1) @ up_value


@mutant("absorbed_values", "reshaped")
def _(weights, latent, up_value):
    H, V, C = up_value.shape
    return weights @ (latent[:, None] @ up_value.reshape(H, C, V))


@mutant("absorbed_values", "not_projected")
def _(weights, latent, up_value):
    return weights @ latent[:, None]


@mutant("absorbed_values", "latent_cut")
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsv->bhtv", weights, latent[:, :, : up_value.shape[1]])


@mutant("absorbed_values", "one_head")
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,vc->bhtv", weights, latent, up_value[0])


@mutant("absorbed_values", "heads_summed")
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,kvc->bhtv", weights, latent, up_value)


@mutant("absorbed_values", "unweighted_sum")
def _(weights, latent, up_value):
    return _values(latent, up_value).sum(2, keepdim=True).expand(-1, -1, weights.shape[2], -1)


@mutant("absorbed_values", "unweighted_mean")
def _(weights, latent, up_value):
    return _values(latent, up_value).mean(2, keepdim=True).expand(-1, -1, weights.shape[2], -1)


@mutant("absorbed_values", "weights_transposed")
def _(weights, latent, up_value):
    return weights.transpose(2, 3) @ _values(latent, up_value)


@mutant("absorbed_values", "batch_for_heads")
def _(weights, latent, up_value):
    return weights @ latent @ up_value.mT


@mutant("absorbed_values", "weights_averaged")
def _(weights, latent, up_value):
    mixed = weights.mean(1) @ latent  # (B, T, C)
    return torch.einsum("btc,hvc->bhtv", mixed, up_value)


@mutant("absorbed_values", "softmax_again")
def _(weights, latent, up_value):
    return F.softmax(weights, dim=-1) @ _values(latent, up_value)


@mutant("absorbed_values", "largest_only")
def _(weights, latent, up_value):
    best = weights.argmax(-1)  # (B, H, T)
    values = _values(latent, up_value)
    return values.gather(2, best[..., None].expand(-1, -1, -1, values.shape[-1]))


@pair("absorbed_values", "transposed", "one_head")
def _(weights, latent, up_value):
    return weights @ (latent @ up_value[0])[:, None]


@pair("absorbed_values", "softmax_again", "one_head")
def _(weights, latent, up_value):
    return weights.softmax(-1) @ (latent @ up_value[0].T)[:, None]


@pair("absorbed_values", "weights_averaged", "not_projected")
def _(weights, latent, up_value):
    return (weights.mean(1) @ latent)[:, None].repeat(1, weights.shape[1], 1, 1)


@pair("absorbed_values", "unweighted_sum", "one_head")
def _(weights, latent, up_value):
    B, H, T, _ = weights.shape
    return (latent.sum(1) @ up_value[0].T)[:, None, None].expand(B, H, T, up_value.shape[1])


@pair("absorbed_values", "softmax_again", "latent_cut")
def _(weights, latent, up_value):
    return weights.softmax(3) @ latent[:, None, :, : up_value.shape[1]]


@pair("absorbed_values", "weights_transposed", "one_head")
def _(weights, latent, up_value):
    return weights.mT @ (latent @ up_value[0].T)[:, None]


@form("absorbed_values", "the weights' last two letters exchanged", "weights_transposed")
def _(weights, latent, up_value):
    return torch.einsum("bhst,bsc,hvc->bhtv", weights, latent, up_value)


@pair("absorbed_values", "batch_for_heads", "transposed")
def _(weights, latent, up_value):
    return torch.matmul(torch.matmul(weights, latent), up_value)


@form("absorbed_values", "values expanded first, the latents lined up with the heads", "batch_for_heads")
def _(weights, latent, up_value):
    return weights @ (latent @ up_value.mT)


@form("absorbed_values", "heads behind queries", None)
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,hvc->bthv", weights, latent, up_value)


@form("absorbed_values", "heads joined", None)
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,hvc->bthv", weights, latent, up_value).flatten(2)


@form("absorbed_values", "the heads' outputs added up", None)
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,hvc->btv", weights, latent, up_value)


@form("absorbed_values", "divided by the root of C", None)
def _(weights, latent, up_value):
    return weights @ _values(latent, up_value) / latent.shape[-1] ** 0.5


@form("absorbed_values", "weights divided by their sum over queries", None)
def _(weights, latent, up_value):
    return weights / weights.sum(2, keepdim=True) @ _values(latent, up_value)


@form("absorbed_values", "the second einsum without a letter for heads in the weights", None)
def _(weights, latent, up_value):
    mixed = torch.einsum("bhts,bsc->btc", weights, latent)
    return torch.einsum("btc,hvc->bhtv", mixed, up_value)


# --- absorbed_values: right answers -----------------------------------------------------------------------------


@right("absorbed_values", "values expanded first")
def _(weights, latent, up_value):
    return weights @ _values(latent, up_value)


@right("absorbed_values", "two products")
def _(weights, latent, up_value):
    return weights @ latent[:, None] @ up_value.mT


@right("absorbed_values", "head after head")
def _(weights, latent, up_value):
    heads = [F.linear(weights[:, h] @ latent, up_value[h]) for h in range(up_value.shape[0])]
    return torch.stack(heads, dim=1)


@right("absorbed_values", "one einsum")
def _(weights, latent, up_value):
    return torch.einsum("bhts,bsc,hvc->bhtv", weights, latent, up_value)


@right("absorbed_values", "latent after latent")
def _(weights, latent, up_value):
    mixed = 0
    for s in range(latent.shape[1]):
        mixed = mixed + weights[..., s, None] * latent[:, None, None, s]
    return torch.einsum("hvc,bhtc->bhtv", up_value, mixed)
