"""Positions: what tells attention, which sees a set, that it reads a sequence.

Sinusoids are added to the tokens (Vaswani et al. 2017, section 3.5), rotations turn queries and keys (RoPE, Su et al.
2021, section 3.2), and ALiBi lowers the scores of distant keys (Press et al. 2021, section 3).
"""

import torch
from torch import Tensor, nn

from attncourse.attention import broadcasts, check_at_least_one


def sinusoidal(n_positions: int, d_model: int, *, start: int = 0) -> Tensor:
    """Sines and cosines (n_positions, d_model) to add to the tokens: column 2i is sin(p ω_i), column 2i+1 cos(p ω_i).

    ω_i = 10000^(-2i / d_model), and p counts from `start`. An odd d_model raises ValueError. Vaswani et al. 2017,
    section 3.5; follows the paper.
    """
    check_at_least_one(n_positions=n_positions, d_model=d_model)
    angles = torch.arange(start, start + n_positions, dtype=torch.float64)[:, None] * _frequencies(
        d_model, 10000.0
    )  # (N, d_model/2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(torch.get_default_dtype())  # (N, d_model)


class RotaryEmbedding(nn.Module):
    """Which pairs of numbers RoPE turns, and how fast: pair i by base^(-2i/dim) radians a position.

    dim: size of what is turned (D), even. interleaved=False pairs number i with number i + dim/2 (Llama as Hugging
    Face stores it); True pairs 2i with 2i + 1 (the paper, GPT-J, DeepSeek). Nothing of it is in the state dict.
    Su et al. 2021, section 3.2.2. Differs from the paper: the halves are the default, as in what models ship.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim={dim}, but numbers are turned in pairs: it must be even and at least 2")
        if not base > 0:
            raise ValueError(f"base={base}, but it must be positive")
        self.dim, self.base, self.interleaved = dim, float(base), interleaved

    def angles(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Radians (..., dim/2) for positions (...). Never below float32: bfloat16 cannot tell position 256 from 257."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return positions[..., None].to(dtype) * _frequencies(self.dim, self.base, dtype, positions.device)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base:g}, interleaved={self.interleaved}"


def check_rotary(rotary: RotaryEmbedding | None, head_dim: int) -> None:
    """Raise unless rotary is None or turns vectors of head_dim numbers: TypeError, or ValueError for their size."""
    if rotary is not None and not isinstance(rotary, RotaryEmbedding):
        raise TypeError(f"rotary={rotary!r}, but it must be a RotaryEmbedding({head_dim})")
    if rotary is not None and rotary.dim != head_dim:
        raise ValueError(f"rotary.dim={rotary.dim}, but a head has {head_dim} numbers")


def apply_rotary(x: Tensor, positions: Tensor, rotary: RotaryEmbedding) -> Tensor:
    """Turn every pair of x (..., T, D) by its token's position times the pair's frequency.

    positions: absolute, (T,), or with as many axes as x has before D: those of each sequence, for x (B, H, T, D), are
    (B, 1, T). The product of two turned vectors depends on the difference of their positions alone. Raises ValueError
    where D is not rotary.dim or the positions do not fit, TypeError where x holds no floating-point numbers.
    """
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; it must be floating-point")
    if x.shape[-1] != rotary.dim:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must be rotary.dim={rotary.dim}")
    lead = x.shape[:-1]
    if positions.dim() not in (1, len(lead)) or not broadcasts(positions.shape, lead):
        shape = tuple(positions.shape)
        raise ValueError(f"positions have shape {shape}, which is neither (T,) nor does it broadcast to {tuple(lead)}")
    angles = rotary.angles(positions.to(x.device), x.dtype)  # (..., T, D/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = (x[..., 0::2], x[..., 1::2]) if rotary.interleaved else x.chunk(2, -1)
    turned = first * cos - second * sin, first * sin + second * cos  # (..., T, D/2) each
    return torch.stack(turned, -1).flatten(-2) if rotary.interleaved else torch.cat(turned, -1)  # (..., T, D)


def alibi_slopes(n_heads: int) -> Tensor:
    """One slope for each head, (H,): 2^(-8/H), 2^(-16/H), …, 2^(-8) for a power of two.

    For another H: those of the largest power of two below it, then every second one of twice that power.
    Press et al. 2021, section 3. Differs from the paper for such H: follows the authors' code.
    """
    check_at_least_one(n_heads=n_heads)
    power = 2 ** (n_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * (n_heads - power), 2)]
    return torch.tensor(slopes)


def alibi_bias(n_heads: int, T: int, S: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """-slope · distance for every head, query and key, (H, T, S), to add to the scores.

    The queries are the last T of S positions (S defaults to T). It is no mask: a later key gets -slope · distance too.
    Press et al. 2021, section 3. Differs from the paper: there later keys are always masked.
    """
    S = T if S is None else S
    check_at_least_one(T=T, S=S)
    distance = (torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)).abs()  # (T, S)
    return -alibi_slopes(n_heads).to(device)[:, None, None] * distance  # (H, T, S)


def _frequencies(
    dim: int, base: float, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """base^(-2i/dim), (dim/2,): radians a position."""
    if dim % 2:
        raise ValueError(f"d_model={dim} is odd, but sines and cosines come in pairs")
    return base ** (-torch.arange(0, dim, 2, dtype=dtype, device=device) / dim)
