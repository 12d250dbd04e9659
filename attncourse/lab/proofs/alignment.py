"""Theorems of alignment: what the mechanisms of 2014 and 2015 are to each other and to what came later."""

import torch
from torch.func import functional_call

from attncourse.attention import masked_softmax
from attncourse.bahdanau import AdditiveAttention
from attncourse.cross_attention import CrossAttention
from attncourse.lab.proofs.common import Sides, copied, equality, given, left_padding, limit, paired
from attncourse.luong import HardAttention, LocalAttention, LuongAttention, choose, surrogate_loss
from attncourse.sliding_window import SlidingWindowAttention


@equality(
    "02_luong",
    "luong",
    "additive",
    condition="concat, W split",
    says="Luong's concat score is Bahdanau's additive score, with its one matrix cut in two.",
    sizes=[
        dict(B=2, T=3, S=7, query_dim=6, key_dim=6, A=5),
        dict(B=3, T=1, S=8, query_dim=4, key_dim=9, A=6),
        dict(B=4, T=5, S=6, query_dim=7, key_dim=3, A=2, padded=True),
    ],
    broken=dict(exchanged=True),
    otherwise="the halves exchanged",
)
def concat_is_additive(B, T, S, query_dim, key_dim, A, padded=False, exchanged=False):
    """A matrix times a concatenation is a sum: W [q; k] = W_q q + W_k k, with the columns of W in two parts. Both
    ways of writing Luong's score are compared with Bahdanau's."""
    concat = LuongAttention(query_dim, key_dim, "concat", hidden_dim=A)
    additive = AdditiveAttention(query_dim, key_dim, A)
    query, keys, mask = given(B, T, query_dim), given(B, S, key_dim), left_padding(B, S)[:, 0] if padded else None
    halves = concat.concat_proj.weight.split([query_dim, key_dim], 1)
    for_query, for_keys = reversed(halves) if exchanged else halves
    weights = {"query_proj.weight": for_query, "key_proj.weight": for_keys, "v": concat.v}
    pairs = query[:, :, None].expand(-1, -1, S, -1), keys[:, None].expand(-1, T, -1, -1)
    scores = concat.concat_proj(torch.cat(pairs, -1)).tanh() @ concat.v  # (B, T, S): joined, as Luong writes it
    left = torch.stack([masked_softmax(scores, mask) @ keys, concat(query, keys, mask=mask)[0]])
    right = functional_call(additive, weights, (query, keys), {"mask": mask})[0].expand_as(left)
    return Sides(left, right, [query, keys], paired(concat, concat))


@equality(
    "04_cross_attention",
    "luong",
    "cross_attention",
    condition="W = WqᵀWk / √D",
    says="Luong's general score is the scaled dot product of one head, whose two projections are multiplied into one.",
    sizes=[
        dict(B=2, T=3, S=7, d_model=6, d_context=8, D=4),
        dict(B=3, T=1, S=5, d_model=9, d_context=4, D=6),
        dict(B=4, T=6, S=9, d_model=5, d_context=7, D=3, padded=True),
    ],
    broken=dict(scaled=False),
    otherwise="not divided by √D",
)
def general_is_one_head(B, T, S, d_model, d_context, D, padded=False, scaled=True):
    """(Wq x)·(Wk c) / √D = xᵀ (WqᵀWk / √D) c. The values and the output are projected on both sides.
    Such a W has rank D at most; general's own W may have any."""
    cross, general = CrossAttention(d_model, d_context, D), LuongAttention(d_model, d_context, "general")
    x, context, mask = given(B, T, d_model), given(B, S, d_context), left_padding(B, S)[:, 0] if padded else None
    product = cross.q_proj.weight.T @ cross.k_proj.weight * (D**-0.5 if scaled else 1.0)  # (d_model, d_context)
    inputs = x, context, cross.v_proj(context)
    left = cross.o_proj(functional_call(general, {"key_proj.weight": product}, inputs, {"mask": mask})[0])
    return Sides(left, cross(x, context, mask), [x, context], paired(cross, cross))


@equality(
    "02_luong",
    "local",
    "luong",
    condition="monotonic, W ≥ T, S",
    says="Luong's monotonic local attention, with a window over the whole source, is his global attention.",
    sizes=[
        dict(B=2, T=3, S=7, query_dim=6, key_dim=8, W=7),
        dict(B=3, T=1, S=8, query_dim=4, key_dim=5, W=8),
        dict(B=4, T=9, S=6, query_dim=7, key_dim=3, W=10, padded=True),
    ],
    broken=dict(W=2),
    otherwise="W = 2",
)
def local_sees_all(B, T, S, query_dim, key_dim, W, padded=False):
    """No key is further than W - 1 from its query's position, so the window forbids nothing."""
    local = LocalAttention(query_dim, key_dim, window=W)
    everywhere = copied(LuongAttention(query_dim, key_dim, "general"), local)
    query, keys, mask = given(B, T, query_dim), given(B, S, key_dim), left_padding(B, S)[:, 0] if padded else None
    left, right = (layer(query, keys, mask=mask)[0] for layer in (local, everywhere))
    return Sides(left, right, [query, keys], paired(local, everywhere))


@limit(
    "02_luong",
    "local",
    "luong",
    condition="predictive, W → ∞",
    says="Local attention that predicts its centre comes to global attention as its window widens, as 1/W².",
    sizes=dict(B=2, T=3, S=9, query_dim=6, key_dim=8),
    points={"W": [16, 32, 64, 128, 256, 512]},
    slopes=(-2.3, -1.8),
    broken=dict(W=4),
    otherwise="W = 4",
)
def predictive_sees_all(B, T, S, query_dim, key_dim, W):
    """Once W > S the window cuts nothing off, and only the Gaussian is left. One of σ = (W - 1) / 2 is 1 - d² / 2σ²
    near its middle, so what it takes off a weight falls as 1/W²."""
    local = LocalAttention(query_dim, key_dim, window=W, alignment="predictive")
    everywhere = copied(LuongAttention(query_dim, key_dim, "general"), local)
    query, keys = torch.randn(B, T, query_dim), torch.randn(B, S, key_dim)
    return Sides(local(query, keys)[0], everywhere(query, keys)[0])


@equality(
    "08_sliding_window",
    "local",
    "sliding_window",
    condition="one sequence, one head",
    says="Luong's local attention of a sequence to itself is a two-sided sliding window with one head.",
    sizes=[
        dict(B=2, T=17, D=4, W=3),
        dict(B=3, T=1, D=5, W=2),
        dict(B=1, T=19, D=6, W=7),
    ],
    broken=dict(more=1),
    otherwise="W + 1 on one side",
)
def local_is_a_window(B, T, D, W, more=0):
    """The centre of step t is position t, and both see what is less than W away; general's matrix is WqᵀWk / √D."""
    window = SlidingWindowAttention(D, 1, window=W, causal=False)
    local = LocalAttention(D, D, window=W + more)
    x = given(B, T, D)
    product = window.q_proj.weight.T @ window.k_proj.weight * D**-0.5
    near = functional_call(local, {"key_proj.weight": product}, (x, x, window.v_proj(x)))[0]
    return Sides(window.o_proj(near), window(x), [x], paired(window, window))


@equality(
    "02_luong",
    "hard",
    "luong",
    condition="in expectation",
    says="Hard attention, averaged over all its choices with their probabilities, is soft attention; its "
    "gradients too, where the cost is linear in the context.",
    sizes=[
        dict(B=2, T=3, S=7, query_dim=6, key_dim=8),
        dict(B=3, T=1, S=5, query_dim=4, key_dim=9),
        dict(B=4, T=6, S=8, query_dim=7, key_dim=3, padded=True),
    ],
    broken=dict(likeliest=True),
    otherwise="the likeliest choice alone",
)
def hard_in_expectation(B, T, S, query_dim, key_dim, padded=False, likeliest=False):
    """A choice s gives value s with probability p_s, and Σ p_s value_s is the soft average. The score-function
    estimator, averaged in the same way, is the gradient of that average. For another cost the estimator gives the
    gradient of the expected cost, which is not the cost of the average."""
    soft = LuongAttention(query_dim, key_dim, "general")
    query, keys, mask = given(B, T, query_dim), given(B, S, key_dim), left_padding(B, S)[:, 0] if padded else None
    right, weights = soft(query, keys, mask=mask)  # (B, T, key_dim), (B, T, S)
    chances = choose(weights, sample=False) if likeliest else weights.detach()
    log_prob = weights.masked_fill(weights == 0, 1.0).log()
    cost = keys[:, None].expand(B, T, S, key_dim)  # what each choice gives
    estimates = surrogate_loss(cost, (log_prob - log_prob.detach())[..., None])  # the value of cost, and its gradient
    return Sides((chances[..., None] * estimates).sum(2), right, [query, keys], paired(soft, soft))


@limit(
    "02_luong",
    "hard",
    "luong",
    condition="n draws, n → ∞",
    says="The mean of n draws of hard attention comes to soft attention, as 1/√n.",
    sizes=dict(B=2, T=3, S=7, query_dim=6, key_dim=8),
    points={"n": [16, 64, 256, 1024, 4096]},
    slopes=(-0.65, -0.35),
    broken=dict(draws=False),
    otherwise="the likeliest key, no draw",
)
def hard_draws(n, B, T, S, query_dim, key_dim, draws=True):
    """Each draw is right on average, and the error of a mean of n independent draws falls with the root of n."""
    hard, soft = HardAttention(query_dim, key_dim).train(draws), LuongAttention(query_dim, key_dim, "general")
    copied(soft, hard)
    query, keys = torch.randn(B, T, query_dim), torch.randn(B, S, key_dim)
    each = hard(query.repeat(n, 1, 1), keys.repeat(n, 1, 1))[0]  # (n·B, T, key_dim)
    return Sides(each.unflatten(0, (n, B)).mean(0), soft(query, keys)[0])
