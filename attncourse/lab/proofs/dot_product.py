"""Theorems of the dot product: one head and many, one sequence and two, and what positions change."""

import torch
from torch.func import functional_call

from attncourse.attention import masked_softmax, scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention, causal_attention
from attncourse.cross_attention import CrossAttention
from attncourse.lab.proofs.common import Sides, copied, equality, given, left_padding, paired
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, alibi_bias, alibi_slopes, apply_rotary
from attncourse.self_attention import SelfAttention


@equality(
    "04_cross_attention",
    "cross_attention",
    "self_attention",
    condition="context = x",
    says="Cross-attention whose context is the sequence itself is self-attention.",
    sizes=[
        dict(B=2, T=7, d_model=6, D=4),
        dict(B=3, T=1, d_model=5, D=8),
        dict(B=4, T=9, d_model=7, D=3, padded=True),
    ],
    broken=dict(own=False),
    otherwise="another sequence",
)
def cross_with_itself(B, T, d_model, D, padded=False, own=True):
    """Keys and values are projections of the context, queries of x: with one sequence for both, they are of x."""
    cross, alone = CrossAttention(d_model, d_model, D), SelfAttention(d_model, D)
    copied(cross, alone)
    x, mask = given(B, T, d_model), left_padding(B, T) if padded else None
    left = cross(x, x if own else given(B, T, d_model), mask)
    return Sides(left, alone(x, mask=mask), [x], paired(cross, alone))


@equality(
    "03_self_attention",
    "self_attention",
    "self_attention",
    condition="tokens shuffled",
    says="Self-attention does not know the order of its tokens: shuffled tokens give shuffled outputs.",
    sizes=[dict(B=2, T=7, d_model=6, D=4), dict(B=3, T=10, d_model=5, D=8), dict(B=1, T=9, d_model=7, D=3)],
    broken=dict(causal=True),
    otherwise="with a causal mask",
)
def shuffled(B, T, d_model, D, causal=False):
    """A softmax and a sum over the keys do not depend on their order, and each query is answered on its own."""
    layer = CausalSelfAttention(d_model, D) if causal else SelfAttention(d_model, D)
    x, order = given(B, T, d_model), torch.randperm(T)
    return Sides(layer(x[:, order]), layer(x)[:, order], [x], paired(layer, layer))


@equality(
    "05_causal",
    "causal",
    "self_attention",
    condition="row i: tokens 0 … i",
    says="Row i of causal attention is the last row of self-attention over the first i + 1 tokens.",
    sizes=[
        dict(B=2, T=7, d_model=6, D=4),
        dict(B=3, T=1, d_model=5, D=8),
        dict(B=4, T=9, d_model=7, D=3, padded=True),
    ],
    broken=dict(ahead=1),
    otherwise="one token more",
)
def causal_is_prefixes(B, T, d_model, D, padded=False, ahead=0):
    """The mask takes from token i exactly the keys that stand after it, and no other token matters to its output."""
    causal, alone = CausalSelfAttention(d_model, D), SelfAttention(d_model, D)
    copied(causal, alone)
    x, mask = given(B, T, d_model), left_padding(B, T) if padded else torch.ones(1, 1, 1, T, dtype=torch.bool)
    ends = [i + 1 + ahead for i in range(T)]
    rows = [alone(x[:, :end], mask=mask[..., :end])[:, i] for i, end in enumerate(ends)]
    return Sides(causal(x, mask=mask), torch.stack(rows, 1), [x], paired(causal, alone))


@equality(
    "06_multi_head",
    "multi_head",
    "self_attention",
    condition="H = 1",
    says="Multi-head attention with one head is self-attention.",
    sizes=[
        dict(B=2, T=7, d_model=6),
        dict(B=3, T=1, d_model=5),
        dict(B=4, T=9, d_model=7, padded=True),
    ],
    broken=dict(H=2),
    otherwise="H = 2",
)
def one_head(B, T, d_model, H=1, padded=False):
    """One head has all d_model numbers of the projections, and there is nothing to split or to merge."""
    heads, alone = MultiHeadAttention(d_model, H), SelfAttention(d_model)
    copied(heads, alone)
    x, mask = given(B, T, d_model), left_padding(B, T) if padded else None
    return Sides(heads(x, mask=mask), alone(x, mask=mask), [x], paired(heads, alone))


@equality(
    "06_multi_head",
    "multi_head",
    "self_attention",
    condition="sum over heads",
    says="Multi-head attention is the sum of H layers of one head, each with its own part of the four matrices.",
    sizes=[
        dict(B=2, T=7, H=3, D=4),
        dict(B=3, T=1, H=2, D=5),
        dict(B=4, T=9, H=5, D=2, padded=True),
    ],
    broken=dict(in_order=False),
    otherwise="W_o's parts in another order",
)
def sum_of_heads(B, T, H, D, padded=False, in_order=True):
    """W_o times the joined heads is a sum over the heads, each times its own D columns of W_o."""
    heads, one = MultiHeadAttention(H * D, H), SelfAttention(H * D, D)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    rows = [getattr(heads, name).weight.split(D) for name in ("q_proj", "k_proj", "v_proj")]  # (D, d_model) each
    columns = heads.o_proj.weight.split(D, 1)  # (d_model, D) each
    names = [f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    parts = zip(*rows, columns if in_order else columns[::-1], strict=True)
    each = [functional_call(one, dict(zip(names, part, strict=True)), x, {"mask": mask}) for part in parts]
    return Sides(heads(x, mask=mask), sum(each), [x], paired(heads, heads))


@equality(
    "06_multi_head",
    "multi_head",
    "causal",
    condition="H = 1, causal",
    says="Causal multi-head attention with one head is causal self-attention.",
    sizes=[
        dict(B=2, T=7, d_model=6),
        dict(B=3, T=1, d_model=5),
        dict(B=4, T=9, d_model=7, padded=True),
    ],
    broken=dict(causal=False),
    otherwise="without the causal mask",
)
def one_causal_head(B, T, d_model, padded=False, causal=True):
    """The causal pattern is the same for every head, so one head has what the layer of one head has."""
    heads, alone = MultiHeadAttention(d_model, 1, causal=causal), CausalSelfAttention(d_model)
    copied(heads, alone)
    x, mask = given(B, T, d_model), left_padding(B, T) if padded else None
    return Sides(heads(x, mask=mask), alone(x, mask=mask), [x], paired(heads, alone))


@equality(
    "06_multi_head",
    "multi_head",
    "cross_attention",
    condition="H = 1, two sequences",
    says="Multi-head attention that reads another sequence with one head is cross-attention.",
    sizes=[
        dict(B=2, T=3, S=7, d_model=6, d_context=8),
        dict(B=3, T=1, S=5, d_model=4, d_context=9),
        dict(B=4, T=6, S=9, d_model=7, d_context=5, padded=True),
    ],
    broken=dict(H=2),
    otherwise="H = 2",
)
def one_crossing_head(B, T, S, d_model, d_context, H=1, padded=False):
    """Where keys and values come from does not depend on how they are split into heads."""
    heads, cross = MultiHeadAttention(d_model, H, d_context=d_context), CrossAttention(d_model, d_context)
    copied(heads, cross)
    x, context, mask = given(B, T, d_model), given(B, S, d_context), left_padding(B, S) if padded else None
    left, right = heads(x, context, mask=mask), cross(x, context, mask)
    return Sides(left, right, [x, context], paired(heads, cross))


@equality(
    "07_positions",
    "rope",
    "multi_head",
    condition="all at one place",
    says="RoPE with every token at the same position is attention without positions.",
    sizes=[dict(B=2, T=7, H=3, D=4), dict(B=3, T=1, H=2, D=8), dict(B=1, T=9, H=5, D=2)],
    broken=dict(step=1),
    otherwise="positions 5, 6, 7, …",
)
def rope_at_one_place(B, T, H, D, step=0):
    """A query and a key turned by the same angles have the product that they had before."""
    layer, rotary = MultiHeadAttention(H * D, H), RotaryEmbedding(D)
    x, positions = given(B, T, H * D), 5 + step * torch.arange(T)
    query, key, value = (split_heads(project(x), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    turned = apply_rotary(query, positions, rotary), apply_rotary(key, positions, rotary)
    left = layer.o_proj(merge_heads(scaled_dot_product_attention(*turned, value)))
    return Sides(left, layer(x), [x], paired(layer, layer))


@equality(
    "07_positions",
    "rope",
    "rope",
    condition="positions + p",
    says="RoPE sees distances alone: all positions moved by the same number change nothing.",
    sizes=[dict(B=2, T=7, H=3, D=4, p=11), dict(B=3, T=1, H=2, D=8, p=50), dict(B=1, T=9, H=5, D=2, p=6)],
    broken=dict(p_keys=0),
    otherwise="the queries' alone",
)
def rope_moved(B, T, H, D, p, p_keys=None):
    """The product of a vector turned by m angles with one turned by n depends on m - n alone."""
    layer, rotary = MultiHeadAttention(H * D, H, rotary=RotaryEmbedding(D)), RotaryEmbedding(D)
    x, positions = given(B, T, H * D), torch.arange(T)
    query, key, value = (split_heads(project(x), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    query = apply_rotary(query, positions + p, rotary)
    key = apply_rotary(key, positions + (p if p_keys is None else p_keys), rotary)
    left = layer.o_proj(merge_heads(scaled_dot_product_attention(query, key, value)))
    return Sides(left, layer(x), [x], paired(layer, layer))


@equality(
    "07_positions",
    "rope",
    "rope",
    condition="rows reordered",
    says="RoPE on halves is RoPE on neighbours, with the rows of the query and key projections reordered.",
    sizes=[dict(B=2, T=7, H=3, D=4), dict(B=3, T=9, H=2, D=10), dict(B=4, T=5, H=1, D=8)],
    broken=dict(reordered=False),
    otherwise="rows as they were",
)
def rope_layouts(B, T, H, D, reordered=True):
    """A score adds up the products of all pairs, whichever two places of the vector a pair has."""
    halves = MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D))
    neighbours = MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D, interleaved=True))
    x, weights = given(B, T, H * D), dict(halves.named_parameters())
    # Numbers i and i + D/2 of a head become its numbers 2i and 2i + 1.
    order = torch.arange(H * D).view(H, 2, D // 2).mT.flatten() if reordered else torch.arange(H * D)
    weights |= {name: weights[name][order] for name in ("q_proj.weight", "k_proj.weight")}
    return Sides(halves(x), functional_call(neighbours, weights, x), [x], paired(halves, halves))


@equality(
    "07_positions",
    "alibi",
    "multi_head",
    condition="slopes 0",
    says="ALiBi with slopes of 0 is attention without positions.",
    sizes=[
        dict(B=2, T=7, H=3, D=4, slope=0.0),
        dict(B=3, T=1, H=2, D=5, slope=0.0),
        dict(B=4, T=9, H=6, D=3, slope=0.0, padded=True),
    ],
    broken=dict(slope=1.0),
    otherwise="the slopes of the paper",
)
def alibi_without_slopes(B, T, H, D, slope, padded=False):
    """ALiBi adds slope times distance to a score, and nothing else."""
    layer = MultiHeadAttention(H * D, H, causal=True)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    heads = [split_heads(project(x), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj)]
    bias = slope * alibi_bias(H, T).to(x.dtype)  # (H, T, T)
    left = layer.o_proj(merge_heads(causal_attention(*heads, mask, bias=bias)))
    return Sides(left, layer(x, mask=mask), [x], paired(layer, layer))


@equality(
    "07_positions",
    "alibi",
    "alibi",
    condition="causal",
    says="Where attention is causal, ALiBi's bias may depend on the key's place alone: slope · j will do.",
    sizes=[
        dict(B=2, T=7, H=3, D=4),
        dict(B=3, T=1, H=2, D=5),
        dict(B=4, T=9, H=6, D=3, padded=True),
    ],
    broken=dict(causal=False),
    otherwise="not causal",
)
def alibi_of_keys(B, T, H, D, padded=False, causal=True):
    """The two differ by slope · i, the same for all keys of a row, and a softmax does not see such a number. After the
    query the distance grows again, so this needs the causal mask."""
    layer = MultiHeadAttention(H * D, H, causal=causal, alibi=True)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    query, key, value = (split_heads(project(x), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    bias = alibi_slopes(H)[:, None, None] * torch.arange(T)  # (H, 1, T)
    scores = query @ key.mT * D**-0.5 + bias  # (B, H, T, T)
    seen = torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)
    weights = masked_softmax(scores, seen if mask is None else seen & mask)
    right = layer.o_proj(merge_heads(weights @ value))
    return Sides(layer(x, mask=mask), right, [x], paired(layer, layer))
