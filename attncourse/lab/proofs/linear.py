"""Theorems of linear attention: one function in three forms, and what its features estimate."""

import torch

from attncourse.lab.proofs.common import Sides, copied, equality, given, left_padding, limit, paired
from attncourse.linear import (
    LinearAttention,
    elu_features,
    linear_attention,
    linear_attention_chunked,
    linear_attention_parallel,
    linear_attention_recurrent,
)
from attncourse.multi_head import MultiHeadAttention
from attncourse.performer import PerformerAttention, favor_features


@equality(
    "10_linear",
    "linear",
    "linear",
    condition="token by token",
    says="Causal linear attention is a recurrence: a state of fixed size goes from token to token, in place of keys.",
    sizes=[
        dict(B=2, T=11, H=3, M=8, Dv=5, calls=2),
        dict(B=3, T=1, H=2, M=4, Dv=6, calls=1),
        dict(B=1, T=17, H=4, M=9, Dv=3, calls=3),
    ],
    broken=dict(handed_on=False),
    otherwise="the state lost between calls",
)
def linear_recurrent(B, T, H, M, Dv, calls, handed_on=True):
    """φ(q)·φ(k_j) v_j summed over j is φ(q) times the sum of φ(k_j) v_jᵀ, and that sum grows by one term a token. So
    does the divisor's, the sum of φ(k_j)."""
    query, key, value = given(B, H, T, M), given(B, H, T, M), given(B, H, T, Dv)
    features, state, outputs = (elu_features(query), elu_features(key), value), None, []
    for part in zip(*(x.split(-(-T // calls), 2) for x in features), strict=True):
        output, state = linear_attention_recurrent(*part, state if handed_on else None)
        outputs.append(output)
    return Sides(torch.cat(outputs, 2), linear_attention_parallel(*features), [query, key, value])


@equality(
    "10_linear",
    "linear",
    "linear",
    condition="in chunks",
    says="Causal linear attention in chunks is the same function, for any size of the chunk.",
    sizes=[
        dict(B=2, T=11, H=3, M=8, Dv=5, chunk=4),
        dict(B=3, T=1, H=2, M=4, Dv=6, chunk=7),
        dict(B=1, T=17, H=4, M=9, Dv=3, chunk=1),
        dict(B=4, T=6, H=5, M=2, Dv=7, chunk=64),
    ],
    broken=dict(handed_on=False),
    otherwise="each chunk on its own",
)
def linear_chunked(B, T, H, M, Dv, chunk, handed_on=True):
    """A token's keys are those before its chunk, summed in the state, and those inside it, whose products are made."""
    query, key, value = given(B, H, T, M), given(B, H, T, M), given(B, H, T, Dv)
    features = elu_features(query), elu_features(key), value
    if handed_on:
        left = linear_attention_chunked(*features, chunk=chunk)[0]
    else:
        parts = zip(*(x.split(chunk, 2) for x in features), strict=True)
        left = torch.cat([linear_attention_chunked(*part)[0] for part in parts], 2)
    return Sides(left, linear_attention_parallel(*features), [query, key, value])


@equality(
    "10_linear",
    "linear",
    "linear",
    condition="not causal",
    says="Without causality, linear attention needs no T×T products: (φ(Q) φ(K)ᵀ) V is φ(Q) (φ(K)ᵀ V).",
    sizes=[
        dict(B=2, T=11, H=3, M=8, Dv=5),
        dict(B=3, T=1, H=2, M=4, Dv=6),
        dict(B=1, T=17, H=4, M=9, Dv=3),
    ],
    broken=dict(causal=True),
    otherwise="causal on one side",
)
def linear_brackets(B, T, H, M, Dv, causal=False):
    """Products of matrices may be bracketed in any way. A softmax, or a causal mask, between two of them forbids it.
    The divisor moves likewise: the sum of φ(q)·φ(k_j) is φ(q) times the sum of φ(k_j)."""
    query, key, value = given(B, H, T, M), given(B, H, T, M), given(B, H, T, Dv)
    features = elu_features(query), elu_features(key), value
    left = linear_attention(*features, causal=False)
    return Sides(left, linear_attention_parallel(*features, causal=causal), [query, key, value])


@equality(
    "10_linear",
    "performer",
    "linear",
    condition="φ = FAVOR+",
    says="The Performer is linear attention whose feature map is FAVOR+'s random features.",
    sizes=[
        dict(B=2, T=11, H=3, D=4, m=16),
        dict(B=3, T=1, H=2, D=5, m=7),
        dict(B=4, T=9, H=1, D=6, m=12, padded=True),
        dict(B=1, T=17, H=5, D=2, m=8, causal=False),
    ],
    broken=dict(other_seed=3),
    otherwise="features of another draw",
)
def performer_is_linear(B, T, H, D, m, causal=True, padded=False, other_seed=0):
    """The Performer scales a query's features, and that factor cancels in the quotient of the two sums."""
    performer = PerformerAttention(H * D, H, n_features=m, causal=causal)
    projection = PerformerAttention(H * D, H, n_features=m, seed=other_seed).projection

    def features(x):
        return favor_features(x, projection, is_query=False)

    linear = copied(LinearAttention(H * D, H, feature_map=features, causal=causal), performer)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(performer(x, mask=mask), linear(x, mask=mask), [x], paired(performer, linear))


@limit(
    "10_linear",
    "performer",
    "multi_head",
    condition="m → ∞",
    says="The Performer comes to softmax attention as its random features grow in number, as 1/√m.",
    sizes=dict(B=2, T=12, H=3, D=8, scale=0.5),
    points={"m": [16, 64, 256, 1024, 4096]},
    slopes=(-0.65, -0.35),
    broken=dict(random=False),
    otherwise="elu(x) + 1 instead",
)
def performer_is_softmax(m, B, T, H, D, scale, random=True):
    """Each feature estimates exp(q·k / √D) without bias; a mean of m estimates errs as 1/√m, and so does the
    quotient of two such sums. The numbers of a token have a standard deviation of 1/2 here: with larger scores few
    draws dominate the mean, and it takes more of them until this rate shows."""
    seed = int(torch.randint(10**6, ()))
    performer = PerformerAttention(H * D, H, n_features=m, seed=seed) if random else LinearAttention(H * D, H)
    softmax = copied(MultiHeadAttention(H * D, H, causal=True), performer)
    x = scale * torch.randn(B, T, H * D)
    return Sides(performer(x), softmax(x))
