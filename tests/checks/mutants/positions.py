"""Chapter 07 as learners write it: every misconception a second time, two mistakes at once, right answers, tests.

Nothing here uses the `faulty` switches of attncourse/checks/positions.py: the styles differ on purpose (loops, complex
numbers, matrices, other orders), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from attncourse.positions import RotaryEmbedding, alibi_bias, apply_rotary, sinusoidal
from tests.checks.mutants import Answers

ANSWERS = Answers("positions")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test

# --- sine_table: mistakes ---------------------------------------------------------------------------------------


def _table(n_positions, d_model, angle, even=math.sin, odd=math.cos):
    """Number by number: angle(position, column)."""
    return torch.tensor(
        [[(odd if c % 2 else even)(angle(p, c)) for c in range(d_model)] for p in range(n_positions)],
        dtype=torch.float32,
    )


@mutant("sine_table", "halves")
def _(n_positions, d_model):
    inverse = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    angles = torch.outer(torch.arange(n_positions).float(), inverse)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@mutant("sine_table", "cosine_first")
def _(n_positions, d_model):
    angles = torch.arange(n_positions).unsqueeze(1) * 10000 ** (-torch.arange(0, d_model, 2).float() / d_model)
    table = torch.zeros(n_positions, d_model)
    table[:, 0::2], table[:, 1::2] = torch.cos(angles), torch.sin(angles)
    return table


@mutant("sine_table", "own_exponent")
def _(n_positions, d_model):
    angles = torch.arange(n_positions)[:, None] / 10000 ** (torch.arange(d_model) / d_model)
    angles[:, 0::2] = angles[:, 0::2].sin()
    angles[:, 1::2] = angles[:, 1::2].cos()
    return angles


@mutant("sine_table", "exponent_half")
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: p / 10000 ** ((c // 2) / d_model))


@mutant("sine_table", "exponent_twice")
def _(n_positions, d_model):
    i = torch.arange(0, d_model, 2)
    angles = torch.arange(n_positions)[:, None] / torch.pow(10000, 2 * i / d_model)
    table = torch.empty(n_positions, d_model)
    table[:, i], table[:, i + 1] = angles.sin(), angles.cos()
    return table


@mutant("sine_table", "reaches_end")
def _(n_positions, d_model):
    n = d_model // 2
    step = math.log(10000.0) / max(n - 1, 1)
    angles = torch.arange(n_positions)[:, None] * torch.exp(torch.arange(n) * -step)
    return torch.stack((angles.sin(), angles.cos()), -1).reshape(n_positions, d_model)


@mutant("sine_table", "positions_from_one")
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: (p + 1) / 10000 ** (2 * (c // 2) / d_model))


@pair("sine_table", "own_exponent", "exponent_twice")
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, i: p / 10000 ** (2 * i / d_model))


@pair("sine_table", "halves", "exponent_half")
def _(n_positions, d_model):
    angles = torch.arange(n_positions)[:, None] / 10000 ** (torch.arange(d_model // 2) / d_model)
    return torch.hstack([angles.sin(), angles.cos()])


@pair("sine_table", "halves", "reaches_end")
def _(n_positions, d_model):
    angles = torch.arange(n_positions)[:, None] * 10000.0 ** -torch.linspace(0, 1, d_model // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@pair("sine_table", "positions_from_one", "own_exponent")
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: (p + 1) / 10000 ** (c / d_model))


@form("sine_table", "frequencies upside down", None)
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: p * 10000 ** (2 * (c // 2) / d_model))


@form("sine_table", "base 1000", None)
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: p / 1000 ** (2 * (c // 2) / d_model))


@form("sine_table", "sines everywhere", None)
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: p / 10000 ** (2 * (c // 2) / d_model), odd=math.sin)


@form("sine_table", "positions and columns exchanged", None)
def _(n_positions, d_model):
    return _table(d_model, n_positions, lambda c, p: p / 10000 ** (2 * (c // 2) / d_model))


@form("sine_table", "positions divided by their number", None)
def _(n_positions, d_model):
    return _table(n_positions, d_model, lambda p, c: p / n_positions / 10000 ** (2 * (c // 2) / d_model))


@form("sine_table", "a logarithm to base ten", None)
def _(n_positions, d_model):
    i = torch.arange(0, d_model, 2)
    angles = torch.arange(n_positions)[:, None] * torch.exp(-i / d_model * math.log10(10000))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


@form("sine_table", "in float64", None)
def _(n_positions, d_model):
    angles = torch.arange(n_positions)[:, None] / 10000 ** (torch.arange(0, d_model, 2).double() / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


# --- sine_table: right answers ----------------------------------------------------------------------------------


@right("sine_table", "loops")
def _(n_positions, d_model):
    table = torch.zeros(n_positions, d_model)
    for p in range(n_positions):
        for i in range(d_model // 2):
            table[p, 2 * i] = math.sin(p / 10000 ** (2 * i / d_model))
            table[p, 2 * i + 1] = math.cos(p / 10000 ** (2 * i / d_model))
    return table


@right("sine_table", "exponential of a logarithm, slices filled")
def _(n_positions, d_model):
    table = torch.zeros(n_positions, d_model)
    position = torch.arange(0, n_positions).float().unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
    table[:, 0::2] = torch.sin(position * div_term)
    table[:, 1::2] = torch.cos(position * div_term)
    return table


@right("sine_table", "a cosine is a sine a quarter turn later")
def _(n_positions, d_model):
    columns = torch.arange(d_model)
    angles = torch.arange(n_positions)[:, None] / 10000 ** ((columns - columns % 2) / d_model)
    return torch.sin(angles + (columns % 2) * math.pi / 2)


@right("sine_table", "powers of one complex number for each pair")
def _(n_positions, d_model):
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2).double() / d_model)
    turn = torch.polar(torch.ones_like(frequencies), frequencies)
    rows = [torch.ones_like(turn)]
    for _ in range(n_positions - 1):
        rows.append(rows[-1] * turn)
    table = torch.view_as_real(torch.stack(rows)).flip(-1)  # imaginary part, the sine, first
    return table.reshape(n_positions, d_model).float()


@right("sine_table", "the course's module")
def _(n_positions, d_model):
    return sinusoidal(n_positions, d_model)


# --- rotate_pairs: mistakes -------------------------------------------------------------------------------------


def _angles(x, positions, base):
    return torch.outer(positions.to(x), 1.0 / base ** (torch.arange(0, x.shape[-1], 2).to(x) / x.shape[-1]))


def _half_turned(x):
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def _with_angles(x, angles):
    """x · cos + (half turned) · sin, angles (T, D/2)."""
    angles = torch.cat((angles, angles), dim=-1)
    return x * angles.cos() + _half_turned(x) * angles.sin()


def _neighbours_turned(x, angles):
    """Complex numbers of neighbours, angles (T, D/2)."""
    numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@mutant("rotate_pairs", "other_layout")
def _(x, positions, base):
    return _neighbours_turned(x, _angles(x, positions, base))


@mutant("rotate_pairs", "angles_of_other_layout")
def _(x, positions, base):
    angles = _angles(x, positions, base).repeat_interleave(2, dim=-1)
    return x * torch.cos(angles) + _half_turned(x) * torch.sin(angles)


@mutant("rotate_pairs", "laid_out_otherwise")
def _(x, positions, base):
    turned = torch.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = _with_angles(x, _angles(x, positions, base)).tensor_split(2, dim=-1)
    return turned


@mutant("rotate_pairs", "backwards")
def _(x, positions, base):
    angles = torch.cat([_angles(x, positions, base)] * 2, dim=-1)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([second, -first], -1) * angles.sin()


@mutant("rotate_pairs", "no_minus")
def _(x, positions, base):
    angles = torch.cat([_angles(x, positions, base)] * 2, dim=-1)
    return x * angles.cos() + x.roll(x.shape[-1] // 2, dims=-1) * angles.sin()


@mutant("rotate_pairs", "overwritten")
def _(x, positions, base):
    x, angles = x.clone(), _angles(x, positions, base)
    n = x.shape[-1] // 2
    x[..., :n] = x[..., :n] * angles.cos() - x[..., n:] * angles.sin()
    x[..., n:] = x[..., :n] * angles.sin() + x[..., n:] * angles.cos()
    return x


@mutant("rotate_pairs", "exponent_half")
def _(x, positions, base):
    D = x.shape[-1]
    frequencies = torch.exp(-math.log(base) * torch.arange(D // 2).to(x) / D)
    return _with_angles(x, positions.unsqueeze(-1) * frequencies)


@mutant("rotate_pairs", "exponent_twice")
def _(x, positions, base):
    D = x.shape[-1]
    return _with_angles(x, positions.unsqueeze(-1) / base ** (2 * torch.arange(0, D, 2) / D))


@mutant("rotate_pairs", "positions_from_one")
def _(x, positions, base):
    return _with_angles(x, _angles(x, positions + 1, base))


@mutant("rotate_pairs", "offset_ignored")
def _(x, positions, base):
    return _with_angles(x, _angles(x, torch.arange(x.size(2)), base))


@mutant("rotate_pairs", "base_ignored")
def _(x, positions, base):
    return _with_angles(x, _angles(x, positions, 10000))


@mutant("rotate_pairs", "last_pair_left_out")
def _(x, positions, base):
    D, turned = x.shape[-1], x.clone()
    for i in range(D // 2 - 1):
        angle = positions * base ** (-2 * i / D)
        turned[..., i] = x[..., i] * angle.cos() - x[..., i + D // 2] * angle.sin()
        turned[..., i + D // 2] = x[..., i] * angle.sin() + x[..., i + D // 2] * angle.cos()
    return turned


@pair("rotate_pairs", "other_layout", "angles_of_other_layout")
def _(x, positions, base):
    angles = torch.cat([_angles(x, positions, base)] * 2, dim=-1)
    quarter = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * angles.cos() + quarter * angles.sin()


@pair("rotate_pairs", "other_layout", "backwards")
def _(x, positions, base):
    return _neighbours_turned(x, -_angles(x, positions, base))


@pair("rotate_pairs", "backwards", "exponent_half")
def _(x, positions, base):
    frequencies = base ** (-torch.arange(x.shape[-1] // 2).to(x) / x.shape[-1])
    return _with_angles(x, -positions[:, None] * frequencies)


@pair("rotate_pairs", "other_layout", "exponent_twice")
def _(x, positions, base):
    return _neighbours_turned(x, positions[:, None] / base ** (2 * torch.arange(0, x.shape[-1], 2) / x.shape[-1]))


@pair("rotate_pairs", "offset_ignored", "base_ignored")
def _(x, positions, base):
    return _with_angles(x, _angles(x, torch.arange(x.shape[-2]), 10000.0))


@pair("rotate_pairs", "offset_ignored", "positions_from_one")
def _(x, positions, base):
    return _with_angles(x, _angles(x, torch.arange(1, x.shape[-2] + 1), base))


@pair("rotate_pairs", "other_layout", "offset_ignored")
def _(x, positions, base):
    return _neighbours_turned(x, _angles(x, torch.arange(x.shape[-2]), base))


@pair("rotate_pairs", "other_layout", "overwritten")
def _(x, positions, base):
    x, angles = x.clone(), _angles(x, positions, base)
    x[..., 0::2] = x[..., 0::2] * angles.cos() - x[..., 1::2] * angles.sin()
    x[..., 1::2] = x[..., 0::2] * angles.sin() + x[..., 1::2] * angles.cos()
    return x


@form("rotate_pairs", "degrees", None)
def _(x, positions, base):
    return _with_angles(x, torch.deg2rad(_angles(x, positions, base)))


@form("rotate_pairs", "frequencies upside down", None)
def _(x, positions, base):
    return _with_angles(x, positions[:, None] * base ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1]))


@form("rotate_pairs", "the exponent reaches 1", None)
def _(x, positions, base):
    return _with_angles(x, positions[:, None] * base ** -torch.linspace(0, 1, x.shape[-1] // 2))


@form("rotate_pairs", "sines and cosines exchanged", None)
def _(x, positions, base):
    return _with_angles(x, math.pi / 2 - _angles(x, positions, base))


@form("rotate_pairs", "half-split in, neighbours out", "laid_out_otherwise")
def _(x, positions, base):
    turned = _with_angles(x, _angles(x, positions, base))
    return torch.stack(turned.chunk(2, -1), -1).flatten(-2)


@form("rotate_pairs", "the half turned without its minus, backwards", None)
def _(x, positions, base):
    angles = torch.cat([_angles(x, positions, base)] * 2, dim=-1)
    return x * angles.cos() - x.roll(x.shape[-1] // 2, dims=-1) * angles.sin()


@form("rotate_pairs", "the first pair is not turned", None)
def _(x, positions, base):
    angles = _angles(x, positions, base)
    angles[:, 0] = 0
    return _with_angles(x, angles)


@form("rotate_pairs", "sines and cosines added", None)
def _(x, positions, base):
    angles = _angles(x, positions, base)
    return x + torch.cat([angles.sin(), angles.cos()], dim=-1)


@form("rotate_pairs", "turned along the heads", None)
def _(x, positions, base):
    return _with_angles(x.transpose(1, 2), _angles(x, positions, base)[: x.shape[1]]).transpose(1, 2)


@form("rotate_pairs", "counted from 0, from the first position given", "offset_ignored")
def _(x, positions, base):
    return _with_angles(x, _angles(x, positions - positions[0], base))


# --- rotate_pairs: right answers --------------------------------------------------------------------------------


@right("rotate_pairs", "x · cos + (half turned) · sin")
def _(x, positions, base):
    return _with_angles(x, _angles(x, positions, base))


@right("rotate_pairs", "complex numbers")
def _(x, positions, base):
    numbers = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * _angles(x, positions, base))
    return torch.cat([numbers.real, numbers.imag], -1)


@right("rotate_pairs", "a matrix for every position")
def _(x, positions, base):
    D = x.shape[-1]
    matrices = []
    for p in positions.tolist():
        matrix = torch.zeros(D, D, dtype=x.dtype)
        for i in range(D // 2):
            angle = p * base ** (-2 * i / D)
            matrix[i, i] = matrix[i + D // 2, i + D // 2] = math.cos(angle)
            matrix[i + D // 2, i] = math.sin(angle)
            matrix[i, i + D // 2] = -math.sin(angle)
        matrices.append(matrix)
    return torch.einsum("bhtd,ted->bhte", x, torch.stack(matrices))


@right("rotate_pairs", "an axis for the halves, and einsum")
def _(x, positions, base):
    angles = _angles(x, positions, base)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])  # (2, 2, T, D/2)
    return torch.einsum("ijtn,bhtjn->bhtin", turns, x.unflatten(-1, (2, -1))).flatten(-2)


@right("rotate_pairs", "sorted into neighbours, turned, sorted back")
def _(x, positions, base):
    n = x.shape[-1] // 2
    order = torch.arange(2 * n).view(2, n).T.flatten()  # 0, n, 1, n + 1, …
    return _neighbours_turned(x[..., order], _angles(x, positions, base))[..., order.argsort()]


@right("rotate_pairs", "the course's module")
def _(x, positions, base):
    return apply_rotary(x, positions, RotaryEmbedding(x.shape[-1], base))


# --- slope_bias: mistakes ---------------------------------------------------------------------------------------


def _slopes(n_heads):
    first = 2 ** (-8 / n_heads)
    return torch.tensor([first ** (h + 1) for h in range(n_heads)])


def _biased(slopes, T, S, bias):
    """Number by number: bias(slope, i, j), i the query's own position."""
    return torch.tensor([[[bias(m, i, j) for j in range(S)] for i in range(S - T, S)] for m in slopes.tolist()])


@mutant("slope_bias", "top_left")
def _(n_heads, T, S):
    offsets = torch.arange(S)[None, :] - torch.arange(T)[:, None]
    return -torch.einsum("h,ts->hts", _slopes(n_heads), offsets.abs().float())


@mutant("slope_bias", "raised")
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: m * abs(i - j))


@mutant("slope_bias", "signed")
def _(n_heads, T, S):
    offsets = torch.arange(S)[None, :] - torch.arange(S - T, S)[:, None]
    return offsets * _slopes(n_heads)[:, None, None]


@mutant("slope_bias", "future_forbidden")
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: m * (j - i) if j <= i else -math.inf)


@mutant("slope_bias", "future_left")
def _(n_heads, T, S):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return torch.einsum("h,ts->hts", _slopes(n_heads), -F.relu(behind.float()))


@mutant("slope_bias", "keys_only")
def _(n_heads, T, S):
    return (_slopes(n_heads)[:, None, None] * torch.arange(S)).repeat(1, T, 1)


@mutant("slope_bias", "self_lowered")
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: -m * (abs(i - j) + 1))


@mutant("slope_bias", "slopes_from_zero")
def _(n_heads, T, S):
    slopes = torch.pow(2.0, -8.0 * torch.arange(n_heads) / n_heads)
    return _biased(slopes, T, S, lambda m, i, j: -m * abs(i - j))


@mutant("slope_bias", "slopes_of_eight")
def _(n_heads, T, S):
    slopes = torch.tensor([1 / 2 ** (h + 1) for h in range(n_heads)])
    return -slopes.view(-1, 1, 1) * (torch.arange(S - T, S).view(-1, 1) - torch.arange(S)).abs()


@mutant("slope_bias", "power_of_8_alone")
def _(n_heads, T, S):
    slopes = torch.tensor([2**-8 * h / n_heads for h in range(1, n_heads + 1)])
    return _biased(slopes, T, S, lambda m, i, j: -m * abs(i - j))


@mutant("slope_bias", "slopes_reversed")
def _(n_heads, T, S):
    return _biased(_slopes(n_heads).flip(0), T, S, lambda m, i, j: -m * abs(j - i))


@pair("slope_bias", "top_left", "future_forbidden")
def _(n_heads, T, S):
    offsets = torch.arange(S)[None, :] - torch.arange(T)[:, None]
    bias = offsets * _slopes(n_heads)[:, None, None]
    return bias.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(), -math.inf)


@pair("slope_bias", "top_left", "slopes_of_eight")
def _(n_heads, T, S):
    distance = (torch.arange(T)[:, None] - torch.arange(S)).abs()
    return torch.stack([-distance / 2 ** (h + 1) for h in range(n_heads)])


@pair("slope_bias", "top_left", "future_left")
def _(n_heads, T, S):
    return _slopes(n_heads)[:, None, None] * (torch.arange(S) - torch.arange(T)[:, None]).clamp(max=0)


@pair("slope_bias", "top_left", "signed")
def _(n_heads, T, S):
    return (torch.arange(S) - torch.arange(T)[:, None]) * _slopes(n_heads)[:, None, None]


@pair("slope_bias", "raised", "signed")
def _(n_heads, T, S):
    return (torch.arange(S - T, S)[:, None] - torch.arange(S)) * _slopes(n_heads)[:, None, None]


@pair("slope_bias", "slopes_from_zero", "slopes_of_eight")
def _(n_heads, T, S):
    slopes = torch.tensor([2.0**-h for h in range(n_heads)])
    return _biased(slopes, T, S, lambda m, i, j: -m * abs(j - i))


@pair("slope_bias", "keys_only", "raised")
def _(n_heads, T, S):
    return -_slopes(n_heads)[:, None, None] * torch.arange(S).expand(T, S)


@form("slope_bias", "one slope for all heads", None)
def _(n_heads, T, S):
    return _biased(torch.full((n_heads,), 2.0**-8), T, S, lambda m, i, j: -m * abs(j - i))


@form("slope_bias", "slopes evenly spaced", None)
def _(n_heads, T, S):
    return _biased(torch.arange(1, n_heads + 1) / n_heads, T, S, lambda m, i, j: -m * abs(j - i))


@form("slope_bias", "later keys are 0 by a tril of the wrong corner", None)
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: -m * abs(i - j)).tril()


@form("slope_bias", "the distance is squared", None)
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: -m * (i - j) ** 2)


@form("slope_bias", "slopes without the 8", None)
def _(n_heads, T, S):
    slopes = 2.0 ** -(torch.arange(1, n_heads + 1) / n_heads)
    return _biased(slopes, T, S, lambda m, i, j: -m * abs(j - i))


@form("slope_bias", "one row for all queries", None)
def _(n_heads, T, S):
    return _slopes(n_heads)[:, None, None] * torch.arange(S)


@form("slope_bias", "exponentials of the bias", None)
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: math.exp(-m * abs(j - i)))


@form("slope_bias", "counted back from the last key", None)
def _(n_heads, T, S):
    return _biased(_slopes(n_heads), T, S, lambda m, i, j: -m * (S - 1 - j))


# --- slope_bias: right answers ----------------------------------------------------------------------------------


@right("slope_bias", "loops")
def _(n_heads, T, S):
    bias = torch.zeros(n_heads, T, S)
    for h in range(n_heads):
        for i in range(T):
            for j in range(S):
                bias[h, i, j] = -(2 ** (-8 * (h + 1) / n_heads)) * abs(S - T + i - j)
    return bias


@right("slope_bias", "all positions, then the last rows")
def _(n_heads, T, S):
    everything = -torch.cdist(torch.arange(S)[:, None].float(), torch.arange(S)[:, None].float(), p=1)
    return (_slopes(n_heads)[:, None, None] * everything)[:, S - T :]


@right("slope_bias", "the smaller of both signs")
def _(n_heads, T, S):
    behind = torch.arange(S).unsqueeze(0) - torch.arange(S)[S - T :].unsqueeze(1)
    slopes = torch.logspace(-8 / n_heads, -8, n_heads, base=2.0)
    return torch.einsum("h,ts->hts", slopes, torch.minimum(behind, -behind).to(slopes))


@right("slope_bias", "slopes by repeated product, rows unfolded")
def _(n_heads, T, S):
    slopes = torch.full((n_heads,), 2 ** (-8 / n_heads)).cumprod(0)
    line = -torch.arange(-S + 1, S).abs().float()  # distance 0 in the middle
    rows = line.unfold(0, S, 1).flip(0)  # (S, S)
    return slopes[:, None, None] * rows[-T:]


@right("slope_bias", "the course's module")
def _(n_heads, T, S):
    return alibi_bias(n_heads, T, S)


# --- rotary_scores: mistakes ------------------------------------------------------------------------------------


def _turned(x, positions, base):
    return _with_angles(x, _angles(x, positions, base))


@mutant("rotary_scores", "query_restarts")
def _(query, key, query_positions, key_positions, base):
    q = _turned(query, torch.arange(query.size(2)), base)
    return q @ _turned(key, key_positions, base).mT / math.sqrt(query.size(-1))


@mutant("rotary_scores", "positions_ignored")
def _(query, key, query_positions, key_positions, base):
    q, k = (_turned(x, torch.arange(x.shape[-2]), base) for x in (query, key))
    return torch.einsum("...td,...sd->...ts", q, k) * query.shape[-1] ** -0.5


@mutant("rotary_scores", "key_not_turned")
def _(query, key, query_positions, key_positions, base):
    return _turned(query, query_positions, base) @ key.transpose(2, 3) / query.shape[3] ** 0.5


@mutant("rotary_scores", "query_not_turned")
def _(query, key, query_positions, key_positions, base):
    return query @ _turned(key, key_positions, base).transpose(2, 3) / query.shape[3] ** 0.5


@mutant("rotary_scores", "key_backwards")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, -key_positions, base)
    return torch.einsum("bhtd,bhsd->bhts", q, k).div(math.sqrt(query.shape[-1]))


@mutant("rotary_scores", "other_layout")
def _(query, key, query_positions, key_positions, base):
    q = _neighbours_turned(query, _angles(query, query_positions, base))
    k = _neighbours_turned(key, _angles(key, key_positions, base))
    return q @ k.mT / math.sqrt(q.shape[-1])


@mutant("rotary_scores", "base_ignored")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, 1e4), _turned(key, key_positions, 1e4)
    return q @ k.mT / math.sqrt(q.shape[-1])


@mutant("rotary_scores", "backwards")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, -query_positions, base), _turned(key, -key_positions, base)
    return torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(query.shape[-1])


@mutant("rotary_scores", "divided_by_d")
def _(query, key, query_positions, key_positions, base):
    root = math.sqrt(query.size(-1))
    return _turned(query / root, query_positions, base) @ _turned(key / root, key_positions, base).mT


@mutant("rotary_scores", "no_scale")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1)


@mutant("rotary_scores", "returns_weights")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)


@pair("rotary_scores", "query_restarts", "no_scale")
def _(query, key, query_positions, key_positions, base):
    return _turned(query, torch.arange(query.shape[2]), base) @ _turned(key, key_positions, base).mT


@pair("rotary_scores", "query_not_turned", "key_not_turned")
def _(query, key, query_positions, key_positions, base):
    return query @ key.mT / query.shape[-1] ** 0.5


@pair("rotary_scores", "positions_ignored", "no_scale")
def _(query, key, query_positions, key_positions, base):
    q, k = (_turned(x, torch.arange(x.shape[2]), base) for x in (query, key))
    return q @ k.mT


@pair("rotary_scores", "other_layout", "no_scale")
def _(query, key, query_positions, key_positions, base):
    q = _neighbours_turned(query, _angles(query, query_positions, base))
    return q @ _neighbours_turned(key, _angles(key, key_positions, base)).mT


@pair("rotary_scores", "no_scale", "returns_weights")
def _(query, key, query_positions, key_positions, base):
    return (_turned(query, query_positions, base) @ _turned(key, key_positions, base).mT).softmax(-1)


@form("rotary_scores", "query half-split, key interleaved", None)
def _(query, key, query_positions, key_positions, base):
    k = _neighbours_turned(key, _angles(key, key_positions, base))
    return _turned(query, query_positions, base) @ k.mT / query.shape[-1] ** 0.5


@form("rotary_scores", "complex numbers, without the conjugate", None)
def _(query, key, query_positions, key_positions, base):
    q = torch.complex(*query.chunk(2, -1)) * torch.exp(1j * _angles(query, query_positions, base))
    k = torch.complex(*key.chunk(2, -1)) * torch.exp(1j * _angles(key, key_positions, base))
    return (q @ k.mT).real / math.sqrt(query.shape[-1])


@form("rotary_scores", "divided by the number of pairs", None)
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return q @ k.mT / math.sqrt(q.shape[-1] / 2)


@form("rotary_scores", "divided by the size itself", "divided_by_d")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return q @ k.mT / q.shape[-1]


@form("rotary_scores", "keys turned with the queries' positions", None)
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, query_positions, base)
    return q @ k.mT / math.sqrt(q.shape[-1])


@form("rotary_scores", "query and key exchanged", None)
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return k @ q.mT / math.sqrt(q.shape[-1])


@form("rotary_scores", "the keys are turned twice", None)
def _(query, key, query_positions, key_positions, base):
    k = _turned(_turned(key, key_positions, base), key_positions, base)
    return _turned(query, query_positions, base) @ k.mT / query.shape[-1] ** 0.5


@form("rotary_scores", "later keys forbidden", None)
def _(query, key, query_positions, key_positions, base):
    scores = _turned(query, query_positions, base) @ _turned(key, key_positions, base).mT / query.shape[-1] ** 0.5
    return scores.masked_fill(key_positions > query_positions[:, None], -math.inf)


# --- rotary_scores: right answers -------------------------------------------------------------------------------


@right("rotary_scores", "both turned, then multiplied and summed")
def _(query, key, query_positions, key_positions, base):
    q, k = _turned(query, query_positions, base), _turned(key, key_positions, base)
    return (q.unsqueeze(3) * k.unsqueeze(2)).mean(-1) * q.shape[-1] ** 0.5


@right("rotary_scores", "complex numbers, with the conjugate")
def _(query, key, query_positions, key_positions, base):
    q = torch.complex(*query.chunk(2, -1)) * torch.exp(1j * _angles(query, query_positions, base))
    k = torch.complex(*key.chunk(2, -1)) * torch.exp(1j * _angles(key, key_positions, base))
    return torch.einsum("bhtn,bhsn->bhts", q, k.conj()).real / math.sqrt(query.shape[-1])


@right("rotary_scores", "the difference of the positions alone")
def _(query, key, query_positions, key_positions, base):
    D = query.shape[-1]
    frequencies = base ** (-torch.arange(0, D, 2).to(query) / D)
    angles = (query_positions[:, None] - key_positions)[..., None] * frequencies  # (T, S, D/2)
    (a, b), (c, d) = query[:, :, :, None].chunk(2, -1), key[:, :, None].chunk(2, -1)
    return ((a * c + b * d) * angles.cos() + (a * d - b * c) * angles.sin()).sum(-1) / D**0.5


@right("rotary_scores", "only the queries turned, by the difference, key by key")
def _(query, key, query_positions, key_positions, base):
    columns = []
    for j, p in enumerate(key_positions):
        q = _turned(query, query_positions - p, base)  # (B, H, T, D)
        columns.append((q * key[:, :, j : j + 1]).sum(-1) / math.sqrt(query.shape[-1]))
    return torch.stack(columns, dim=-1)


@right("rotary_scores", "the course's module")
def _(query, key, query_positions, key_positions, base):
    rotary = RotaryEmbedding(query.shape[-1], base)
    scores = apply_rotary(query, query_positions, rotary) @ apply_rotary(key, key_positions, rotary).mT
    return scores / math.sqrt(query.shape[-1])


# --- test_rotate_pairs: tests that get all points ---------------------------------------------------------------


def _given(B=2, H=3, T=4, D=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, H, T, D, generator=generator), torch.tensor([7, 2, 5, 11, 3, 8][:T])


@good_test("test_rotate_pairs", "returns, against complex numbers")
def _(candidate):
    x, positions = _given()
    turns = torch.exp(1j * positions[:, None] * 50.0 ** (-torch.arange(3) / 3))
    numbers = torch.complex(x[..., :3], x[..., 3:]) * turns
    expected = torch.cat([numbers.real, numbers.imag], dim=-1)
    turned = candidate(x, positions, 50.0)
    return turned.shape == expected.shape and torch.allclose(turned, expected, atol=1e-4)


@good_test("test_rotate_pairs", "asserts, number by number")
def _(candidate):
    x, positions = _given(D=8)
    turned = candidate(x, positions, 200.0)
    assert turned.shape == x.shape
    for t, p in enumerate(positions.tolist()):
        for i in range(4):
            angle = p * 200 ** (-2 * i / 8)
            first, second = x[:, :, t, i], x[:, :, t, i + 4]
            assert (turned[:, :, t, i] - first * math.cos(angle) + second * math.sin(angle)).abs().max() < 1e-4
            assert (turned[:, :, t, i + 4] - first * math.sin(angle) - second * math.cos(angle)).abs().max() < 1e-4


@good_test("test_rotate_pairs", "one pair at a time, unit vectors in")
def _(candidate):
    D, base = 6, 30.0
    turned = candidate(torch.eye(D)[None, :, None], torch.tensor([3]), base=base)[0, :, 0]  # row n: what n becomes
    for i in range(D // 2):
        angle, row = 3 * base ** (-2 * i / D), torch.zeros(D)
        row[i], row[i + D // 2] = math.cos(angle), math.sin(angle)
        assert torch.allclose(turned[i], row, atol=1e-4)
        row[i], row[i + D // 2] = -math.sin(angle), math.cos(angle)
        assert torch.allclose(turned[i + D // 2], row, atol=1e-4)


@good_test("test_rotate_pairs", "in float64, by keywords, against matrices")
def _(candidate):
    x, positions = _given(B=1, H=2, T=5, D=4)
    expected = []
    for t, p in enumerate(positions.tolist()):
        a, b = p, p / math.sqrt(80)
        matrix = torch.tensor([
            [math.cos(a), 0, -math.sin(a), 0], [0, math.cos(b), 0, -math.sin(b)],
            [math.sin(a), 0, math.cos(a), 0], [0, math.sin(b), 0, math.cos(b)],
        ], dtype=torch.float64)  # fmt: skip
        expected.append(x[:, :, t].double() @ matrix.T)
    return torch.allclose(candidate(x=x.double(), positions=positions, base=80.0), torch.stack(expected, 2), atol=1e-5)


# --- test_rotate_pairs: tests that let something through --------------------------------------------------------

_ALL = (
    *("other_layout", "angles_of_other_layout", "laid_out_otherwise", "backwards", "no_minus", "overwritten"),
    *("exponent_half", "exponent_twice", "positions_from_one", "offset_ignored", "base_ignored", "last_pair_left_out"),
)


def _all_but(*names):
    return [name for name in _ALL if name not in names]


def _expected(x, positions, base):
    n = x.shape[-1] // 2
    numbers = torch.complex(x[..., :n], x[..., n:]) * torch.exp(
        1j * positions[:, None] * base ** (-torch.arange(n) / n)
    )
    return torch.cat([numbers.real, numbers.imag], dim=-1)


@lax_test("test_rotate_pairs", "accepts everything", *_ALL)
def _(candidate):
    return True


@lax_test("test_rotate_pairs", "returns nothing", *_ALL)
def _(candidate):
    candidate(*_given(), 50.0)


@lax_test("test_rotate_pairs", "the shape only", *_ALL)
def _(candidate):
    x, positions = _given()
    return candidate(x, positions, 50.0).shape == x.shape


@lax_test("test_rotate_pairs", "lengths are kept", *_all_but("angles_of_other_layout", "no_minus", "overwritten"))
def _(candidate):
    x, positions = _given()
    return torch.allclose(candidate(x, positions, 50.0).norm(dim=-1), x.norm(dim=-1), atol=1e-4)


@lax_test("test_rotate_pairs", "position 0 is left alone", *_all_but("positions_from_one", "laid_out_otherwise"))
def _(candidate):
    x, _ = _given()
    return torch.allclose(candidate(x, torch.arange(4), 50.0)[:, :, 0], x[:, :, 0], atol=1e-5)


# What most people test first: every rotation by anything keeps it, so most mistakes do.
@lax_test(
    "test_rotate_pairs", "a shift of both positions leaves the scores alone",
    *_all_but("angles_of_other_layout", "no_minus", "overwritten"),
)  # fmt: skip
def _(candidate):
    (query, positions), (key, _) = _given(), _given(seed=1)
    scores = [candidate(query, positions + n, 50.0) @ candidate(key, positions + n, 50.0).mT for n in (0, 9)]
    return torch.allclose(*scores, atol=1e-3)


@lax_test(
    "test_rotate_pairs", "one token at position 1, two numbers",
    *("other_layout", "angles_of_other_layout", "laid_out_otherwise"),
    *("exponent_half", "exponent_twice", "base_ignored"),
)  # fmt: skip
def _(candidate):
    turned = candidate(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([1]), 10000.0).flatten()
    expected = torch.tensor([3 * math.cos(1) - 4 * math.sin(1), 3 * math.sin(1) + 4 * math.cos(1)])
    return torch.allclose(turned, expected, atol=1e-4)


@lax_test("test_rotate_pairs", "positions from 0, base 10000", "offset_ignored", "base_ignored")
def _(candidate):
    x, _ = _given()
    return torch.allclose(candidate(x, torch.arange(4), 10000.0), _expected(x, torch.arange(4), 1e4), atol=1e-4)


@lax_test(
    "test_rotate_pairs", "the first pair only", "exponent_half", "exponent_twice", "base_ignored", "last_pair_left_out"
)
def _(candidate):
    x, positions = _given()
    turned = candidate(x, positions, 50.0)
    return torch.allclose(turned[..., [0, 3]], _expected(x, positions, 50.0)[..., [0, 3]], atol=1e-4)


@lax_test("test_rotate_pairs", "the first half of the numbers only", "overwritten")
def _(candidate):
    x, positions = _given()
    assert torch.allclose(candidate(x, positions, 50.0)[..., :3], _expected(x, positions, 50.0)[..., :3], atol=1e-4)


# --- test_rotate_pairs: tests that reject what is right ---------------------------------------------------------


@strict_test("test_rotate_pairs", "accepts nothing")
def _(candidate):
    return False


@strict_test("test_rotate_pairs", "torch.equal")
def _(candidate):
    x, positions = _given(3, 5, 6, 32)
    return torch.equal(candidate(x, positions, 50.0), _expected(x, positions, 50.0))


@strict_test("test_rotate_pairs", "takes the interleaved layout for right")
def _(candidate):
    x, positions = _given()
    return torch.allclose(candidate(x, positions, 50.0), _neighbours_turned(x, _angles(x, positions, 50.0)), atol=1e-4)


@strict_test("test_rotate_pairs", "turns the other way itself")
def _(candidate):
    x, positions = _given()
    return torch.allclose(candidate(x, positions, 50.0), _expected(x, -positions, 50.0), atol=1e-4)


@strict_test("test_rotate_pairs", "every number changes")
def _(candidate):
    x, _ = _given()
    return bool((candidate(x, torch.arange(4), 50.0) != x).all())
