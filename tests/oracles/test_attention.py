"""The shared core against PyTorch's own attention: the functional one and `nn.MultiheadAttention`.

Outputs, weights and the gradients of every input agree to 1e-5 in float32 and 1e-12 in float64 (largest difference).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncourse.attention import scaled_dot_product_attention
from tests.oracles.compare import TORCH, close, in_dtypes, on_both_paths, on_devices

pytestmark = pytest.mark.oracle(
    mechanism="self_attention", chapter="03_self_attention", module="attention", library="torch"
)

# leading axes, T, S, D, Dv
SHAPES = {
    "T<S": ((2, 3), 4, 7, 5, 6),
    "T>S": ((3, 2), 8, 5, 4, 3),
    "square": ((2, 2), 6, 6, 8, 8),
    "one query": ((2, 3), 1, 9, 5, 4),
    "one key": ((2, 3), 4, 1, 5, 6),
    "three axes": ((3,), 5, 7, 4, 6),
    "two axes": ((), 5, 7, 4, 6),
    "five axes": ((2, 1, 3), 4, 6, 5, 7),
    "longer": ((1, 2), 40, 70, 16, 24),
}
MASKS = ["none", "queries by keys", "keys", "everything"]


def random_mask(shape, seed=0):
    """About two in three allowed, and every row allows at least one key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.65
    mask[..., seed % shape[-1]] = True
    return mask


def inputs(shape, device, dtype, seed=0):
    lead, T, S, D, Dv = shape
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(*lead, *size, generator=generator, dtype=torch.float64) for size in ((T, D), (S, D), (S, Dv))
    ]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def mask_for(kind, lead, T, S, device):
    shape = {"queries by keys": (T, S), "keys": (*lead[:1], *(1 for _ in lead[1:]), 1, S), "everything": (*lead, T, S)}
    return None if kind == "none" else random_mask(shape[kind]).to(device)


def like(tensor, seed):
    """A fixed random upstream gradient."""
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(tensor)


def gradients(outputs, wanted):
    return torch.autograd.grad(sum((out * like(out, 7 + i)).sum() for i, out in enumerate(outputs)), wanted)


def torch_attention(query, key, value, mask, scale, backend):
    if backend == "default":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    # An additive mask and the plain kernel: another way through PyTorch than ours.
    additive = None if mask is None else torch.zeros(mask.shape).to(query).masked_fill(~mask, float("-inf"))
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=additive, scale=scale)


@pytest.mark.oracle(
    theirs="scaled_dot_product_attention",
    what="three kinds of masks and none, two scales, two of its kernels; its weights from an identity as values",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("backend", ["default", "math"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_torch_functional(shape, kind, backend, return_weights, dtype, device):
    lead, T, S, *_ = shape
    tensors = inputs(shape, device, dtype)
    mask = mask_for(kind, lead, T, S, device)
    for scale in (None, 0.4):
        expected = [torch_attention(*tensors, mask, scale, backend)]
        actual = scaled_dot_product_attention(*tensors, mask, scale=scale, return_weights=return_weights)
        if return_weights:
            identity = torch.eye(S).to(tensors[0]).expand(*lead, S, S)
            expected.append(torch_attention(*tensors[:2], identity, mask, scale, backend))
        else:
            actual = [actual]
        for got, want in zip(actual, expected, strict=True):
            close(got, want, TORCH[dtype], "output")
        for got, want in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
            close(got, want, TORCH[dtype], "gradient", gradient=True)


def ours_as_multi_head(module, query, key, value, mask, return_weights):
    """`nn.MultiheadAttention` with its own weights, and our core in the middle."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    heads = [
        F.linear(x, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)  # (B, H, T, D)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    ]
    result = scaled_dot_product_attention(*heads, mask, return_weights=return_weights)
    output, attention = result if return_weights else (result, None)
    output = module.out_proj(output.transpose(1, 2).flatten(2))  # (B, T, d_model)
    return (output, attention) if return_weights else (output,)


def compare_with_multi_head(module, query, key, value, mask, return_weights, dtype, **forbidden):
    expected = module(query, key, value, need_weights=return_weights, average_attn_weights=False, **forbidden)
    expected = expected if return_weights else expected[:1]
    actual = ours_as_multi_head(module, query, key, value, mask, return_weights)
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        close(got, want, TORCH[dtype], "output")
    wanted = [*dict.fromkeys((query, key, value)), *module.parameters()]
    for got, want in zip(gradients(actual, wanted), gradients(expected, wanted), strict=True):
        close(got, want, TORCH[dtype], "gradient", gradient=True)


def multi_head(device, dtype, d_model=15, n_heads=3, **options):
    module = nn.MultiheadAttention(d_model, n_heads, batch_first=True, **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():  # its own initial biases are zero, which would hide them
        parameter.data = 0.25 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.to(device, dtype)


def sequences(*sizes, device, dtype):
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def padding(B, S, device):
    """True at real keys: sequence b loses its last b keys."""
    return (torch.arange(S)[None] < S - torch.arange(B)[:, None]).to(device)


@pytest.mark.oracle(
    theirs="MultiheadAttention",
    what="our function inside its layer: whole, padded, masked, both; with bias and without",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", ["none", "padding", "pattern", "both"])
def test_equals_multihead_attention_on_one_sequence(kind, bias, return_weights, dtype, device):
    """Its masks are the other way round: True forbids."""
    B, T = 2, 5
    module = multi_head(device, dtype, bias=bias)
    (x,) = sequences((B, T, 15), device=device, dtype=dtype)
    mask, forbidden = torch.ones(B, 1, T, T, dtype=torch.bool, device=device), {}
    if kind in ("padding", "both"):
        forbidden["key_padding_mask"] = ~padding(B, T, device)
        mask = mask & padding(B, T, device)[:, None, None]
    if kind in ("pattern", "both"):
        pattern = torch.ones(T, T, dtype=torch.bool, device=device).tril()
        forbidden["attn_mask"] = ~pattern
        mask = mask & pattern
    mask = None if kind == "none" else mask
    compare_with_multi_head(module, x, x, x, mask, return_weights, dtype, **forbidden)


@pytest.mark.oracle(
    theirs="MultiheadAttention", what="our function inside its layer, keys and values of other widths: whole, padded"
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("T", "S"), [(4, 7), (8, 3), (1, 6)])
def test_equals_multihead_attention_across_sequences(T, S, padded, return_weights, dtype, device):
    """Queries of 15 numbers, keys of 10, values of 8."""
    B = 3
    module = multi_head(device, dtype, kdim=10, vdim=8)
    query, key, value = sequences((B, T, 15), (B, S, 10), (B, S, 8), device=device, dtype=dtype)
    real = padding(B, S, device)
    mask = real[:, None, None] if padded else None
    forbidden = {"key_padding_mask": ~real} if padded else {}
    compare_with_multi_head(module, query, key, value, mask, return_weights, dtype, **forbidden)
