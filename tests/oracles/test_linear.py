"""Linear attention and FAVOR+ against the quadratic forms of their papers, in float64, one query at a time.

Outputs, weights, and the gradients of inputs and parameters, largest difference: 1e-5 in float32, 1e-12 in float64.
"""

import math

import pytest
import torch

from attncourse.linear import (
    LinearAttention,
    linear_attention,
    linear_attention_chunked,
    linear_attention_parallel,
    linear_attention_recurrent,
)
from attncourse.performer import PerformerAttention
from attncourse.positions import RotaryEmbedding
from tests.oracles.compare import TORCH, close, filled, in_dtypes, on_devices, real_tokens, sequence
from tests.oracles.weights import upstream_of

pytestmark = pytest.mark.oracle(chapter="10_linear", library="torch", equations=True)

with_sizes = pytest.mark.parametrize(
    ("B", "T", "H", "D"), [(2, 7, 3, 4), (1, 1, 2, 6), (2, 33, 1, 2), (3, 5, 2, 8), (1, 150, 2, 4)]
)


def elu_map(layer, x):
    return torch.where(x > 0, x + 1, x.exp())


def dpfp_map(layer, x):
    r = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], -1)
    n = r.shape[-1]
    return torch.stack([r[..., i] * r[..., (i + 1) % n] for i in range(n)], -1)


def favor_map(layer, x):
    """exp(-|x|²/2) / √m · exp(w·x) for every row w, at x D^(-1/4)."""
    rows, x = layer.projection.double(), x / x.shape[-1] ** 0.25
    outside = torch.exp(-torch.einsum("...d,...d->...", x, x) / 2)[..., None] / math.sqrt(len(rows))
    return outside * torch.exp(torch.einsum("md,...d->...m", rows, x))


def turned(x, interleaved=False):
    """RoPE of (T, D) by complex numbers: number i and number i + D/2 are one."""
    T, D = x.shape
    pairs = torch.complex(x[:, : D // 2].contiguous(), x[:, D // 2 :].contiguous())
    angles = torch.arange(T, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles).to(x.device)
    return torch.cat([pairs.real, pairs.imag], -1)


def quadratic(layer, weights, x, feature_map, real):
    """The layer by its equation: every sum written out, for each sequence, head and query. Output and weights."""
    (B, T, width), H = x.shape, layer.n_heads
    D = width // H
    rows, all_weights = [], []
    for b in range(B):
        heads, head_weights = [], []
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            query, key, value = (
                x[b] @ weights[f"{name}_proj.weight"][part].T + weights[f"{name}_proj.bias"][part] for name in "qkv"
            )
            if layer.rotary is not None:
                query, key = turned(query), turned(key)
            query, key = feature_map(layer, query), feature_map(layer, key)
            outputs, alphas = [], []
            for i in range(T):
                seen = torch.arange(T, device=x.device) <= i if layer.causal else torch.ones_like(real[b])
                similarities = torch.einsum("m,sm->s", query[i], key) * (seen & real[b])
                total = similarities.sum()
                alpha = similarities / total if total > 0 else torch.zeros_like(similarities)
                outputs.append(torch.einsum("s,sd->d", alpha, value))
                alphas.append(alpha)
            heads.append(torch.stack(outputs))
            head_weights.append(torch.stack(alphas))
        rows.append(torch.cat(heads, -1) @ weights["o_proj.weight"].T + weights["o_proj.bias"])
        all_weights.append(torch.stack(head_weights))
    return torch.stack(rows), torch.stack(all_weights)


KINDS = {
    "elu": (lambda width, H, **options: LinearAttention(width, H, **options), elu_map),
    "dpfp": (lambda width, H, **options: LinearAttention(width, H, feature_map="dpfp", **options), dpfp_map),
    "performer": (lambda width, H, **options: PerformerAttention(width, H, n_features=11, **options), favor_map),
}
LINEAR = pytest.mark.oracle(
    mechanism="linear", module="linear", theirs="Katharopoulos et al. 2020, equation 4, with elu and DPFP features"
)
PERFORMER = pytest.mark.oracle(
    mechanism="performer",
    module="performer",
    theirs="Choromanski et al. 2020, the positive features in a quadratic form",
)
EQUATIONS = {"elu": LINEAR, "dpfp": LINEAR, "performer": PERFORMER}

# dpfp in float64 alone: a sum of it may be close to zero, and its quotient magnifies float32's rounding.
CASES = [
    pytest.param(kind, dtype, marks=EQUATIONS[kind], id=f"{kind}-{dtype}")
    for kind in KINDS
    for dtype in TORCH
    if (kind, dtype) != ("dpfp", torch.float32)
]


@pytest.mark.oracle(what="causal and both ways, rotated and not, left-padded")
@on_devices
@with_sizes
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("rotary", [False, True], ids=["", "rotary"])
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_layers_follow_their_equations(kind, rotary, causal, B, T, H, D, dtype, device):
    make, feature_map = KINDS[kind]
    layer = make(H * D, H, causal=causal, rotary=RotaryEmbedding(D) if rotary else None, bias=True)
    layer = filled(layer, device, dtype)
    x, real = sequence(B, T, H * D, device=device, dtype=dtype), real_tokens(B, T, device, left=True)
    exact_x = x.detach().double().requires_grad_()
    exact = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    expected, expected_weights = quadratic(layer, exact, exact_x, feature_map, real)
    output, weights = layer(x, mask=real[:, None, None], return_weights=True)
    fused = layer(x, mask=real[:, None, None])
    close(fused, expected, TORCH[dtype], "output", dtype=dtype)
    close(output, expected, TORCH[dtype], "output beside weights", dtype=dtype)
    close(weights, expected_weights, TORCH[dtype], "weights", dtype=dtype)
    upstream = upstream_of(expected, 0)
    wanted = torch.autograd.grad(expected, [exact_x, *exact.values()], upstream, allow_unused=True)
    found = torch.autograd.grad(fused, [x, *layer.parameters()], upstream.to(dtype))
    for name, got, want in zip(["x", *exact], found, wanted, strict=True):
        want = torch.zeros_like(got).double() if want is None else want
        close(got, want, TORCH[dtype], f"gradient of {name}", gradient=True, scaled=True, dtype=dtype)


@pytest.mark.oracle(
    mechanism="linear",
    module="linear",
    theirs="Katharopoulos et al. 2020, equation 4",
    what="recurrent, parallel and chunked forms, causal and both ways",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize(("B", "H", "T", "M", "Dv"), [(2, 3, 11, 5, 4), (1, 1, 1, 1, 1), (2, 1, 131, 7, 3)])
def test_all_forms_follow_equation_4(B, H, T, M, Dv, dtype, device):
    query, key = (sequence(B, H, T, M, device=device, dtype=dtype, seed=i).detach().exp() for i in (1, 2))
    value = sequence(B, H, T, Dv, device=device, dtype=dtype, seed=3).detach()
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    exact = [x.double().requires_grad_() for x in (query, key, value)]
    products = torch.einsum("bhtm,bhsm->bhts", exact[0], exact[1])
    sees = torch.tensor([[s <= t for s in range(T)] for t in range(T)], device=device)
    forms = {
        True: [
            linear_attention_parallel,
            linear_attention,
            lambda *qkv: linear_attention_recurrent(*qkv)[0],
            lambda *qkv: linear_attention_chunked(*qkv, chunk=4)[0],
            lambda *qkv: linear_attention_chunked(*qkv)[0],
        ],
        False: [
            lambda *qkv: linear_attention(*qkv, causal=False),
            lambda *qkv: linear_attention_parallel(*qkv, causal=False),
        ],
    }
    for causal in (True, False):
        kept = products * sees if causal else products
        expected = torch.einsum("bhts,bhsd->bhtd", kept, exact[2]) / torch.einsum("bhts->bht", kept)[..., None]
        upstream = upstream_of(expected, 1)
        wanted = torch.autograd.grad(expected, exact, upstream, retain_graph=True)
        for form in forms[causal]:
            output = form(*inputs)
            close(output, expected, TORCH[dtype], "output", dtype=dtype)
            found = torch.autograd.grad(output, inputs, upstream.to(dtype))
            for name, got, want in zip(("query", "key", "value"), found, wanted, strict=True):
                close(got, want, TORCH[dtype], f"gradient of {name}", gradient=True, scaled=True, dtype=dtype)
