"""Theorems of fewer scores: when a pattern is full, and when two names are one pattern."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from attncourse.bigbird import BigBirdAttention
from attncourse.causal import CausalSelfAttention
from attncourse.execution import attend_part, finish, merge
from attncourse.lab.proofs.common import Sides, copied, equality, given, left_padding, paired
from attncourse.longformer import LongformerAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.patterns import Fixed, GlobalTokens, RandomBlocks, Strided, Window, pattern_mask
from attncourse.positions import RotaryEmbedding
from attncourse.sliding_window import SlidingWindowAttention
from attncourse.sparse import SparseAttention, sparse_attention


def global_copies(layer: LongformerAttention) -> dict[str, Tensor]:
    """Weights of a Longformer whose global projections are its local ones: one tensor each, so gradients add up."""
    weights = dict(layer.named_parameters())
    return {name: weights[name.replace("_global", "")] for name in weights}


def real_rows(sides: Sequence[Tensor], mask: Tensor | None) -> Sequence[Tensor]:
    """Both sides with zeros for the padding: Longformer gives it zeros, the others what the real tokens say."""
    return sides if mask is None else [side * mask[:, 0, 0, :, None] for side in sides]


@equality(
    "08_sliding_window",
    "sliding_window",
    "multi_head",
    condition="W ≥ T",
    says="A window at least as long as the sequence forbids nothing: it is multi-head attention.",
    sizes=[
        dict(B=2, T=37, H=3, D=4, W=37),
        dict(B=3, T=1, H=2, D=6, W=5),
        dict(B=4, T=21, H=5, D=2, W=40, padded=True),
        dict(B=1, T=19, H=4, D=8, W=23, causal=False),
    ],
    broken=dict(W=3),
    otherwise="W = 3",
)
def window_sees_all(B, T, H, D, W, causal=True, padded=False):
    """Two tokens of a sequence are at most T - 1 apart, and the window lets through what is at most W - 1 apart."""
    rotary = RotaryEmbedding(D)
    near = SlidingWindowAttention(H * D, H, window=W, causal=causal, rotary=rotary)
    every = copied(MultiHeadAttention(H * D, H, causal=causal, rotary=rotary), near)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(near(x, mask=mask), every(x, mask=mask), [x], paired(near, every))


@equality(
    "08_sliding_window",
    "sliding_window",
    "sliding_window",
    condition="L·(W - 1) + 1 tokens",
    says="L layers of windows read no further back than L · (W - 1) tokens: with those alone before it, the last token "
    "gets the same.",
    sizes=[
        dict(B=2, T=11, H=3, D=4, W=3, L=2),
        dict(B=3, T=9, H=2, D=6, W=1, L=2),
        dict(B=1, T=40, H=2, D=8, W=9, L=4),
    ],
    broken=dict(less=1),
    otherwise="one token less",
)
def window_reach(B, T, H, D, W, L, less=0):
    """Each layer reaches W - 1 tokens back from what the layer above it reads. RoPE counts distances alone, so the
    part may begin at position 0."""
    layers = [SlidingWindowAttention(H * D, H, window=W, rotary=RotaryEmbedding(D)) for _ in range(L)]
    x, weights = given(B, T, H * D), [(weight, weight) for layer in layers for weight in layer.parameters()]
    whole, part = x, x[:, max(T - L * (W - 1) - 1 + less, 0) :]
    for layer in layers:
        whole, part = layer(whole), layer(part)
    return Sides(part[:, -1], whole[:, -1], [x], weights)


@equality(
    "09_sparse",
    "sparse",
    "sliding_window",
    condition="pattern = Window(W)",
    says="Sparse attention with a window as its only part is sliding-window attention.",
    sizes=[
        dict(B=2, T=37, H=3, D=4, W=5),
        dict(B=3, T=1, H=2, D=6, W=4),
        dict(B=4, T=35, H=5, D=2, W=9, padded=True),
        dict(B=1, T=19, H=4, D=8, W=3, causal=False),
    ],
    broken=dict(more=1),
    otherwise="Window(W + 1)",
)
def sparse_window(B, T, H, D, W, causal=True, padded=False, more=0):
    """Both let a token see the same keys; that one scores tiles and the other blocks does not matter."""
    sparse = SparseAttention(H * D, H, pattern=Window(W + more), causal=causal)
    window = copied(SlidingWindowAttention(H * D, H, window=W, causal=causal), sparse)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(sparse(x, mask=mask), window(x, mask=mask), [x], paired(sparse, window))


@equality(
    "09_sparse",
    "sparse",
    "causal",
    condition="stride 1",
    says="A stride of 1 skips no key: strided attention is causal attention.",
    sizes=[
        dict(B=2, T=23, D=6, stride=1),
        dict(B=3, T=1, D=5, stride=1),
        dict(B=4, T=9, D=7, stride=1, padded=True),
    ],
    broken=dict(stride=2),
    otherwise="stride 2",
)
def sparse_stride_one(B, T, D, stride, padded=False):
    """Every distance is a multiple of 1, so every earlier key is seen."""
    sparse, causal = SparseAttention(D, 1, pattern=Strided(stride)), CausalSelfAttention(D)
    copied(causal, sparse)
    x, mask = given(B, T, D), left_padding(B, T) if padded else None
    return Sides(sparse(x, mask=mask), causal(x, mask=mask), [x], paired(sparse, causal))


@equality(
    "09_sparse",
    "sparse",
    "causal",
    condition="stride s, in s parts",
    says="Strided attention is causal attention inside each of s sequences, tokens r, r + s, r + 2s, …, "
    "which never meet.",
    sizes=[
        dict(B=2, T=23, D=6, stride=4),
        dict(B=3, T=3, D=5, stride=7),
        dict(B=4, T=12, D=7, stride=3),
    ],
    broken=dict(offset=1),
    otherwise="in s + 1 parts",
)
def sparse_stride_parts(B, T, D, stride, offset=0):
    """Two tokens are a multiple of s apart exactly where their positions leave the same remainder."""
    sparse, causal = SparseAttention(D, 1, pattern=Strided(stride)), CausalSelfAttention(D)
    copied(causal, sparse)
    x, step = given(B, T, D), stride + offset
    right = torch.zeros_like(x)
    for r in range(min(step, T)):
        right = right.index_copy(1, torch.arange(r, T, step), causal(x[:, r::step]))
    return Sides(sparse(x), right, [x], paired(sparse, causal))


@equality(
    "09_sparse",
    "sparse",
    "multi_head",
    condition="block ≥ T",
    says="The fixed pattern with one block for the whole sequence is causal multi-head attention.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, block=23),
        dict(B=3, T=1, H=2, D=5, block=1),
        dict(B=4, T=9, H=5, D=2, block=16, padded=True),
    ],
    broken=dict(block=4),
    otherwise="blocks of 4",
)
def sparse_one_block(B, T, H, D, block, padded=False):
    """A token sees all of its own block, and there is no other."""
    sparse, every = SparseAttention(H * D, H, pattern=Fixed(block, 1)), MultiHeadAttention(H * D, H, causal=True)
    copied(every, sparse)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(sparse(x, mask=mask), every(x, mask=mask), [x], paired(sparse, every))


@equality(
    "09_sparse",
    "longformer",
    "multi_head",
    condition="all tokens global",
    says="Longformer with every token global, and global projections that are copies, is multi-head attention.",
    sizes=[
        dict(B=2, T=17, H=3, D=4, W=2, n_global=17),
        dict(B=3, T=1, H=2, D=6, W=3, n_global=1),
        dict(B=4, T=9, H=5, D=2, W=1, n_global=9, padded=True),
    ],
    broken=dict(n_global=1),
    otherwise="the first token global",
)
def longformer_all_global(B, T, H, D, W, n_global, padded=False):
    """A global token sees all tokens, so with all of them global no score is left out."""
    longformer = LongformerAttention(H * D, H, window=W)
    every = copied(MultiHeadAttention(H * D, H), longformer)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    is_global = (torch.arange(T) < n_global).expand(B, T)
    left = functional_call(longformer, global_copies(longformer), x, {"global_tokens": is_global, "mask": mask})
    return Sides(*real_rows((left, every(x, mask=mask)), mask), [x], paired(longformer, every))


@equality(
    "09_sparse",
    "longformer",
    "sliding_window",
    condition="no global tokens",
    says="Longformer without global tokens is a two-sided sliding window.",
    sizes=[
        dict(B=2, T=37, H=3, D=4, W=5, n_global=0),
        dict(B=3, T=1, H=2, D=6, W=4, n_global=0),
        dict(B=4, T=19, H=5, D=2, W=3, n_global=0, padded=True),
    ],
    broken=dict(n_global=1),
    otherwise="the first token global",
)
def longformer_no_global(B, T, H, D, W, n_global, padded=False):
    """What is left is the window, and both count a token as near when it is less than W away."""
    longformer = LongformerAttention(H * D, H, window=W)
    window = copied(SlidingWindowAttention(H * D, H, window=W, causal=False), longformer)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    is_global = (torch.arange(T) < n_global).expand(B, T)
    sides = longformer(x, global_tokens=is_global, mask=mask), window(x, mask=mask)
    return Sides(*real_rows(sides, mask), [x], paired(longformer, window))


@equality(
    "09_sparse",
    "longformer",
    "sparse",
    condition="one set of weights",
    says="Longformer, its global tokens without weights of their own, is a sparse pattern: a window and global tokens.",
    sizes=[
        dict(B=2, T=37, H=3, D=4, W=5, tokens=(0, 9)),
        dict(B=3, T=7, H=2, D=6, W=4, tokens=(6,)),
        dict(B=1, T=19, H=5, D=2, W=3, tokens=(2, 8, 13)),
    ],
    broken=dict(shared=False),
    otherwise="global weights of their own",
)
def longformer_is_sparse(B, T, H, D, W, tokens, shared=True):
    """Both see |i - j| < W and all pairs with a global token, each pair once."""
    longformer = LongformerAttention(H * D, H, window=W)
    pattern = [Window(W), GlobalTokens(tokens)]
    sparse = SparseAttention(H * D, H, pattern=pattern, causal=False)
    weights = dict(longformer.named_parameters())
    mine = global_copies(longformer) if shared else weights | {"q_global_proj.weight": given(H * D, H * D)}
    x, is_global = given(B, T, H * D), torch.isin(torch.arange(T), torch.tensor(tokens)).expand(B, T)
    left = functional_call(longformer, mine, x, {"global_tokens": is_global})
    own = {name: weights[name] for name, _ in sparse.named_parameters()}
    return Sides(left, functional_call(sparse, own, x), [x], [(weight, weight) for weight in own.values()])


@equality(
    "09_sparse",
    "bigbird",
    "multi_head",
    condition="r ≥ blocks",
    says="BigBird that draws as many random blocks as there are is full attention, here causal.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, block=3, r=8),
        dict(B=3, T=1, H=2, D=6, block=4, r=1),
        dict(B=4, T=19, H=5, D=2, block=1, r=20, padded=True),
    ],
    broken=dict(r=1),
    otherwise="one random block",
)
def bigbird_all_blocks(B, T, H, D, block, r, padded=False):
    """Random blocks are drawn from the earlier ones without repeats: enough draws take all, each counted once."""
    bigbird = BigBirdAttention(H * D, H, block=block, n_random=r, causal=True)
    every = copied(MultiHeadAttention(H * D, H, causal=True), bigbird)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(bigbird(x, mask=mask), every(x, mask=mask), [x], paired(bigbird, every))


@equality(
    "09_sparse",
    "bigbird",
    "longformer",
    condition="block 1, none drawn",
    says="BigBird in blocks of one token, with no random ones, is Longformer with W = 2 and both ends global.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, r=0),
        dict(B=3, T=4, H=2, D=6, r=0),
        dict(B=1, T=19, H=5, D=2, r=0),
    ],
    broken=dict(r=2),
    otherwise="two blocks drawn",
)
def bigbird_is_longformer(B, T, H, D, r):
    """What is left of BigBird's blocks is a token, its two neighbours, and the first and the last token."""
    bigbird = BigBirdAttention(H * D, H, block=1, n_random=r)
    longformer = LongformerAttention(H * D, H, window=2)
    shared = {name: bigbird.get_parameter(name.replace("_global", "")) for name, _ in longformer.named_parameters()}
    x, ends = given(B, T, H * D), torch.isin(torch.arange(T), torch.tensor([0, T - 1])).expand(B, T)
    right = functional_call(longformer, shared, x, {"global_tokens": ends})
    return Sides(bigbird(x), right, [x], paired(bigbird, bigbird))


@equality(
    "09_sparse",
    "bigbird",
    "sparse",
    condition="block 1",
    says="BigBird in blocks of one token is a sparse pattern: a window, global tokens and random tokens.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, r=2, seed=7),
        dict(B=3, T=5, H=2, D=6, r=1, seed=8),
        dict(B=4, T=19, H=5, D=2, r=3, seed=9, padded=True),
    ],
    broken=dict(other_seed=5),
    otherwise="another seed",
)
def bigbird_is_sparse(B, T, H, D, r, seed, padded=False, other_seed=None):
    """Both draw by the same rule from the same seed, and a pair that is seen in two ways counts once."""
    bigbird = BigBirdAttention(H * D, H, block=1, n_random=r, seed=seed)
    drawn = RandomBlocks(1, r, seed if other_seed is None else other_seed)
    sparse = SparseAttention(H * D, H, pattern=[Window(2), GlobalTokens((0, T - 1)), drawn], causal=False)
    copied(sparse, bigbird)
    x, mask = given(B, T, H * D), left_padding(B, T) if padded else None
    return Sides(bigbird(x, mask=mask), sparse(x, mask=mask), [x], paired(bigbird, sparse))


@equality(
    "09_sparse",
    "sparse",
    "online",
    condition="parts are disjoint",
    says="Sparse attention merges its parts as online softmax merges its tiles: each part is a softmax of its own.",
    sizes=[
        dict(B=2, T=23, H=3, D=4, W=3, stride=4),
        dict(B=3, T=1, H=2, D=6, W=2, stride=5),
        dict(B=1, T=19, H=5, D=8, W=6, stride=7),
    ],
    broken=dict(disjoint=False),
    otherwise="pairs of both counted twice",
)
def sparse_merges_online(B, T, H, D, W, stride, disjoint=True):
    """Sums of exponentials over disjoint keys add up; a key in two parts would count twice."""
    query, key, value = given(B, H, T, D), given(B, H, T, D), given(B, H, T, D)
    window, strided = pattern_mask(T, pattern=Window(W)), pattern_mask(T, pattern=Strided(stride))
    parts = window, strided & ~window if disjoint else strided
    left = sparse_attention(query, key, value, pattern=[Window(W), Strided(stride)])
    right = finish(merge(*(attend_part(query, key, value, allowed) for allowed in parts)))
    return Sides(left, right, [query, key, value])
