"""Theorems of shared heads: multi-query, grouped-query and latent attention, which keep fewer keys and values."""

import torch
from torch.func import functional_call

from attncourse.attention import masked_softmax
from attncourse.gqa import GroupedQueryAttention, group_heads, grouped_query_attention
from attncourse.lab.proofs.common import Sides, equality, given, left_padding, paired
from attncourse.masks import causal_mask
from attncourse.mla import MultiHeadLatentAttention, absorbed_attention, expanded_attention
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary


@equality(
    "13_gqa",
    "gqa",
    "multi_head",
    condition="G = H",
    says="Grouped-query attention with a key-value head for every query head is multi-head attention.",
    sizes=[
        dict(B=2, T=7, H=4, G=4, D=6),
        dict(B=3, T=1, H=2, G=2, D=8),
        dict(B=5, T=9, H=3, G=3, D=4, padded=True),
    ],
    broken=dict(G=2),
    otherwise="G = 2 of H = 4",
)
def gqa_every_head(B, T, H, G, D, padded=False):
    """Query head h reads key-value head h // (H/G), which is head h: no one shares."""
    rotary = RotaryEmbedding(D)
    every = MultiHeadAttention(H * D, H, causal=True, rotary=rotary)
    grouped = group_heads(every, G, "first")
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(grouped(x, mask=mask), every(x, mask=mask), [x], paired(grouped, every))


@equality(
    "13_gqa",
    "gqa",
    "multi_head",
    condition="rows repeated: AABB",
    says="Any grouped-query attention is multi-head attention whose neighbouring heads have the same keys and values.",
    sizes=[
        dict(B=2, T=7, H=6, G=3, D=4),
        dict(B=3, T=1, H=4, G=2, D=5),
        dict(B=4, T=9, H=6, G=2, D=3, padded=True),
        dict(B=2, T=33, H=6, G=3, D=4, padded=True),
    ],
    broken=dict(neighbours=False),
    otherwise="repeated ABAB",
)
def gqa_is_tied(B, T, H, G, D, padded=False, neighbours=True):
    """Query heads that share a key-value head are neighbours, so each head's rows stand H/G times, one after the
    other: AABB. The gradient of a shared row is the sum of those of its copies."""
    grouped, every = GroupedQueryAttention(H * D, H, G), MultiHeadAttention(H * D, H, causal=True)
    head = torch.arange(H) // (H // G) if neighbours else torch.arange(H) % G
    weights = dict(grouped.named_parameters())
    tied = {name: weights[name].unflatten(0, (G, D))[head].flatten(0, 1) for name in ("k_proj.weight", "v_proj.weight")}
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    right = functional_call(every, weights | tied, x, {"mask": mask})
    return Sides(grouped(x, mask=mask), right, [x], paired(grouped, grouped))


@equality(
    "13_gqa",
    "gqa",
    "mqa",
    condition="G = 1",
    says="Grouped-query attention with one key-value head is multi-query attention.",
    sizes=[
        dict(B=2, T=7, H=4, G=1, D=6),
        dict(B=3, T=1, H=2, G=1, D=8),
        dict(B=5, T=9, H=3, G=1, D=4, padded=True),
    ],
    broken=dict(G=2),
    otherwise="G = 2",
)
def gqa_one_head(B, T, H, G, D, padded=False):
    """Every query head reads head h // (H/1) = 0. The right side is Shazeer's formula, whose keys and values have no
    axis of heads."""
    rotary = RotaryEmbedding(D)
    grouped, one = GroupedQueryAttention(H * D, H, G, rotary=rotary), MultiQueryAttention(H * D, H, rotary=rotary)
    state = grouped.state_dict()
    one.load_state_dict(state | {name: state[name][:D] for name in ("k_proj.weight", "v_proj.weight")})  # head 0
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    query, key = (apply_rotary(y, torch.arange(T), rotary) for y in (split_heads(one.q_proj(x), H), one.k_proj(x)))
    scores = torch.einsum("bhtd,bsd->bhts", query, key) * D**-0.5  # the one head of keys has no axis of heads
    weights = masked_softmax(scores, causal_mask(T) if mask is None else causal_mask(T) & mask)
    right = one.o_proj(merge_heads(torch.einsum("bhts,bsd->bhtd", weights, one.v_proj(x))))
    return Sides(grouped(x, mask=mask), right, [x], paired(grouped, one))


@equality(
    "13_gqa",
    "gqa",
    "mqa",
    condition="sum over G",
    says="Grouped-query attention is the sum of G multi-query layers, each with its own H/G query heads.",
    sizes=[
        dict(B=2, T=7, H=6, G=3, D=4),
        dict(B=3, T=1, H=4, G=2, D=5),
        dict(B=4, T=9, H=6, G=2, D=3, padded=True),
    ],
    broken=dict(in_order=False),
    otherwise="their keys in another order",
)
def gqa_is_a_sum(B, T, H, G, D, padded=False, in_order=True):
    """Heads that share keys and values are a multi-query layer, and W_o times the joined heads is a sum over the
    groups, each times its own columns of W_o."""
    grouped, one = GroupedQueryAttention(H * D, H, G), MultiQueryAttention(H * D, H // G)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    heads = {"q_proj": H // G * D, "k_proj": D, "v_proj": D}  # how many rows a group has
    of = {name: getattr(grouped, name).weight.split(rows) for name, rows in heads.items()}
    of["o_proj"] = grouped.o_proj.weight.split(H // G * D, 1)
    if not in_order:
        of["k_proj"] = of["k_proj"][::-1]
    parts = [{f"{name}.weight": weights[g] for name, weights in of.items()} for g in range(G)]
    right = sum(functional_call(one, part, x, {"mask": mask}) for part in parts)
    return Sides(grouped(x, mask=mask), right, [x], paired(grouped, grouped))


@equality(
    "12_mqa",
    "mqa",
    "multi_head",
    condition="keys, values tied",
    says="Multi-query attention is multi-head attention whose heads all have the same keys and values.",
    sizes=[
        dict(B=2, T=7, H=4, D=6),
        dict(B=3, T=1, H=2, D=8),
        dict(B=5, T=9, H=3, D=4, padded=True),
    ],
    broken=dict(tied=("v_proj.weight",)),
    otherwise="the values alone tied",
)
def mqa_is_tied(B, T, H, D, padded=False, tied=("k_proj.weight", "v_proj.weight")):
    """One head of keys, read H times, is H heads with the same rows of weights."""
    one, every = MultiQueryAttention(H * D, H), MultiHeadAttention(H * D, H, causal=True)
    rows, weights = dict(one.named_parameters()), dict(every.named_parameters())
    weights |= {name: rows[name] for name in ("q_proj.weight", "o_proj.weight")}
    weights |= {name: rows[name].repeat(H, 1) for name in tied}
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(one(x, mask=mask), functional_call(every, weights, x, {"mask": mask}), [x], paired(one, one))


def latent_parts(B, T, H, C, N, R, V):
    """A query (B, H, T, N + R), entries (B, 1, T, C + R), and up-projections of keys (H, N, C) and values (H, V, C)."""
    scale = C**-0.5
    return given(B, H, T, N + R), given(B, 1, T, C + R), given(H, N, C, scale=scale), given(H, V, C, scale=scale)


@equality(
    "14_mla",
    "mla",
    "mla",
    condition="weights absorbed",
    says="MLA may expand every key, or move the up-projection to the query: naive and absorbed are one function.",
    sizes=[
        dict(B=2, T=7, H=3, C=5, N=4, R=2, V=6),
        dict(B=3, T=1, H=2, C=9, N=5, R=4, V=7),
        dict(B=5, T=9, H=4, C=8, N=3, R=6, V=2, padded=True),
    ],
    broken=dict(own=False),
    otherwise="by another head's matrix",
)
def mla_absorbed(B, T, H, C, N, R, V, padded=False, own=True):
    """q · (U c) = (Uᵀ q) · c: a product of three may be bracketed either way, as nothing stands between U and c."""
    parts, mask = latent_parts(B, T, H, C, N, R, V), left_padding(B, T) if padded else None
    query, entries, up_key, up_value = parts
    left = expanded_attention(*parts, mask, scale=(N + R) ** -0.5)
    right = absorbed_attention(
        query, entries, up_key if own else up_key.roll(1, 0), up_value, mask, scale=(N + R) ** -0.5
    )
    return Sides(left, right, parts[:2], [(weight, weight) for weight in parts[2:]])


@equality(
    "14_mla",
    "mla",
    "mqa",
    condition="keys of C + R",
    says="Absorbed MLA is multi-query attention: all heads read one key of C + R numbers, its first C as the value.",
    sizes=[
        dict(B=2, T=7, H=3, C=5, N=4, R=2, V=6),
        dict(B=3, T=1, H=2, C=9, N=5, R=4, V=7),
        dict(B=5, T=9, H=4, C=8, N=3, R=6, V=2, padded=True),
    ],
    broken=dict(own_scale=False),
    otherwise="divided by √(C + R)",
)
def mla_is_mqa(B, T, H, C, N, R, V, padded=False, own_scale=True):
    """With the up-projection moved to the query, what is left to read is the same for every head. Scores are still
    divided by √(N + R), the width of the keys that were never made. Each head then projects its average up by its own
    matrix."""
    parts, mask = latent_parts(B, T, H, C, N, R, V), left_padding(B, T) if padded else None
    query, entries, up_key, up_value = parts
    left = expanded_attention(*parts, mask, scale=(N + R) ** -0.5)
    query_nope, query_rope = query.split([N, R], -1)
    query = torch.cat([torch.einsum("bhtn,hnc->bhtc", query_nope, up_key), query_rope], -1)  # (B, H, T, C + R)
    scale = (N + R) ** -0.5 if own_scale else (C + R) ** -0.5
    average = grouped_query_attention(query, entries, entries[..., :C], mask, scale=scale)  # (B, H, T, C), with G = 1
    right = torch.einsum("bhtc,hvc->bhtv", average, up_value)
    return Sides(left, right, parts[:2], [(weight, weight) for weight in parts[2:]])


@equality(
    "14_mla",
    "mla",
    "kv_cache",
    condition="any calls",
    says="MLA reads its cache of latents absorbed, call after call, and gives what one pass that expands all keys "
    "gives.",
    sizes=[
        dict(B=2, T=11, H=3, C=9, N=4, R=2, V=6, size=1),
        dict(B=3, T=1, H=2, C=7, N=5, R=4, V=3, size=2),
        dict(B=4, T=13, H=5, C=8, N=6, R=6, V=4, size=3),
    ],
    broken=dict(kept=False),
    otherwise="an empty cache for each call",
)
def mla_in_calls(B, T, H, C, N, R, V, size, kept=True):
    """A token's latent and its rotated key depend on that token and its position alone, so they may be stored; and the
    up-projections may be moved to the query and the output."""
    widths = dict(kv_lora_rank=C, qk_nope_head_dim=N, qk_rope_head_dim=R, v_head_dim=V)
    layer = MultiHeadLatentAttention(H * N, H, **widths)
    x, cache = torch.randn(B, T, H * N), layer.new_cache(B, T)
    calls = [layer(part, cache=cache if kept else layer.new_cache(B, T)) for part in x.split(size, 1)]
    return Sides(torch.cat(calls, 1), layer(x))


@equality(
    "14_mla",
    "mla",
    "multi_head",
    condition="latent = token",
    says="MLA whose latent is the token itself is multi-head attention, rotation and norm aside.",
    sizes=[
        dict(B=2, T=7, H=3, D=4),
        dict(B=3, T=1, H=2, D=5),
        dict(B=5, T=9, H=4, D=2, padded=True),
    ],
    broken=dict(C=6),
    otherwise="its first half alone",
)
def mla_of_tokens(B, T, H, D, C=None, padded=False):
    """The up-projections are then the rows of the key and value projections, head by head, and C is d_model."""
    layer = MultiHeadAttention(H * D, H, causal=True)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    up_key, up_value = (project.weight.unflatten(0, (H, D))[..., :C] for project in (layer.k_proj, layer.v_proj))
    query, entries = split_heads(layer.q_proj(x), H), x[:, None, :, :C]  # (B, 1, T, C), where R = 0
    left = layer.o_proj(merge_heads(expanded_attention(query, entries, up_key, up_value, mask, scale=D**-0.5)))
    return Sides(left, layer(x, mask=mask), [x], paired(layer, layer))


@equality(
    "14_mla",
    "mla",
    "gqa",
    condition="latent = all G heads",
    says="MLA can be any grouped-query attention, rotation and norm aside: its latent holds the G keys and values.",
    sizes=[
        dict(B=2, T=7, H=6, G=3, D=4),
        dict(B=3, T=1, H=4, G=2, D=5),
        dict(B=5, T=9, H=8, G=2, D=3, padded=True),
    ],
    broken=dict(neighbours=False),
    otherwise="heads picked ABAB",
)
def mla_is_gqa(B, T, H, G, D, padded=False, neighbours=True):
    """An up-projection of zeros and ones picks from the latent the part that a query head reads."""
    layer = GroupedQueryAttention(H * D, H, G)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    latent = torch.cat([layer.k_proj(x), layer.v_proj(x)], -1)[:, None]  # (B, 1, T, 2·G·D)
    pick = torch.eye(2 * G * D).unflatten(0, (2 * G, D))  # (2·G, D, 2·G·D)
    head = torch.arange(H) // (H // G) if neighbours else torch.arange(H) % G
    query = split_heads(layer.q_proj(x), H)
    left = absorbed_attention(query, latent, pick[head], pick[G + head], mask, scale=D**-0.5)
    return Sides(layer.o_proj(merge_heads(left)), layer(x, mask=mask), [x], paired(layer, layer))
