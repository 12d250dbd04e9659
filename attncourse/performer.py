"""Performer: linear attention whose random features estimate exp(q·k / √D) without bias (FAVOR+).

Choromanski et al. 2021, sections 2.2 to 2.4. Differs from the paper: the features are drawn once, from a seed, and
never again; all heads share them; nothing is added to the features or to the sum that normalises.
"""

import math

import torch
from torch import Tensor

from attncourse.attention import at_least_float32, check_at_least_one
from attncourse.linear import KernelAttention
from attncourse.positions import RotaryEmbedding


def orthogonal_projection(
    n_features: int, dim: int, *, seed: int = 0, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Random rows (n_features, dim), each as if of independent standard normals, every `dim` of them orthogonal.

    The same on every device; more features extend fewer. Section 2.4, after Yu et al. 2016.
    """
    check_at_least_one(n_features=n_features, dim=dim)
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-n_features // dim)):
        gaussian, other = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # QR may choose signs, so q alone prefers some directions; with the signs of r's diagonal all are alike.
        blocks.append(q * r.diagonal().sign() * other.norm(dim=1, keepdim=True))  # a direction, a length
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return torch.cat(blocks)[:n_features].to(device, dtype)  # (n_features, dim)


def favor_features(x: Tensor, projection: Tensor, *, is_query: bool) -> Tensor:
    """exp(w·u - |u|²/2) / √m for every row w of projection (m, D) and u = x D^(-1/4): x (..., D) gives (..., m).

    The mean over projections of φ(q)·φ(k) is exp(q·k / √D). In at least float32, as is what it returns. A query's
    features are divided by their maximum instead of exp(|u|²/2): attention divides by the sum over keys, where such a
    factor cancels. Keys share that sum, so what is taken from them would have to be the same for all, and their
    maximum, over all tokens, would tell early outputs about late keys: nothing is. Their exponents stay below |w|²/2,
    which float32 holds (88) up to about D = 100; above, one key may make every later output, and a cache, infinite. A
    key longer than some (2·88·√D)^(1/2) gets features that are zero.

    Raises ValueError where D is not the projection's. Section 2.3, lemma 1.
    """
    if projection.dim() != 2 or x.shape[-1] != projection.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, but the projection (m, D) is {tuple(projection.shape)}")
    u = at_least_float32(x) * x.shape[-1] ** -0.25
    products = u @ projection.to(u.dtype).T  # (..., m)
    shift = products.detach().amax(-1, keepdim=True) if is_query else u.square().sum(-1, keepdim=True) / 2
    return (products - shift).exp() / math.sqrt(projection.shape[0])


class PerformerAttention(KernelAttention):
    """Each head: an estimate of softmax attention from `n_features` random features, at linear cost.

    n_features: the estimate's error falls with its root. seed: of the projection, which is no parameter and not in the
    state dict; layers may share one. causal: look back only. rotary: a `RotaryEmbedding(d_model / n_heads)`; as
    exp(q·k) is estimated, weights depend on differences of positions up to the estimate's error. Parameters `q_proj`,
    `k_proj`, `v_proj`, `o_proj`. Raises ValueError where d_model is not divisible by n_heads, or n_features < 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_features: int,
        causal: bool = True,
        seed: int = 0,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__(d_model, n_heads, causal=causal, rotary=rotary, bias=bias)
        projection = orthogonal_projection(n_features, d_model // n_heads, seed=seed)
        self.register_buffer("projection", projection, persistent=False)  # (n_features, D)

    def features(self, x: Tensor, *, is_query: bool) -> Tensor:
        """FAVOR+'s random features."""
        return favor_features(x, self.projection, is_query=is_query)
