"""What the comparisons with other implementations share: sizes, inputs, filled weights, and `close`, which judges all.

Largest differences: 1e-5 in float32 and 1e-12 in float64 against PyTorch and against written-out equations. Layers of
transformers compute cosines and the softmax in float32 whatever the input, so float64 agrees to 1e-6 there.
"""

import pytest
import torch

from tests.oracles.recording import compared
from tests.oracles.weights import gradients_of, upstream_of

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TORCH = {torch.float32: 1e-5, torch.float64: 1e-12}
HUGGING_FACE = {torch.float32: 1e-5, torch.float64: 1e-6}

on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize("dtype", TORCH, ids=["float32", "float64"])
on_both_paths = pytest.mark.parametrize("return_weights", [False, True], ids=["fused", "explicit"])


def filled(module, device, dtype, spread=0.35):
    """The module with random weights and biases, large enough to make the attention uneven."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.to(device, dtype).eval()


def sequence(*shape, device, dtype, seed=5):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(device, dtype).requires_grad_()


def real_tokens(B, S, device, left=False):
    """(B, S), True at real tokens: sequence b has b of S padded."""
    index = torch.arange(S).flip(0) if left else torch.arange(S)
    return (index[None] < S - torch.arange(B)[:, None].clamp(max=S - 1)).to(device)


def close(actual, expected, tolerance, what="", *, gradient=False, scaled=False, dtype=None):
    """Assert that no two numbers differ by more than the tolerance, and record the largest difference.

    gradient: whether these are gradients, not outputs. scaled: divide both by the largest number expected, if that is
    above 1 (gradients of sums over many tokens are far from 1). dtype: ours, where `expected` is float64 whatever ours
    is; else both have one dtype.
    """
    expected = torch.as_tensor(expected)
    ours = actual.dtype
    assert ours == (dtype or expected.dtype), f"{what}: {ours}"
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
    if dtype or not expected.is_floating_point():
        actual, expected = actual.to(expected.device, torch.float64), expected.double()
    scale = max(1.0, expected.abs().max().item()) if scaled else 1.0
    difference = (actual / scale - expected / scale).abs().max().item()
    assert difference <= tolerance, f"{what}: largest difference {difference:.2e}"
    if ours.is_floating_point:
        one = {"dtype": str(ours).removeprefix("torch."), "of": "gradients" if gradient else "outputs"}
        compared.append(one | {"difference": difference, "scaled": scaled, "shape": list(actual.shape)})


def compare(ours, theirs, convert, inputs, actual, expected, tolerance):
    """Outputs, and the gradients of inputs and of every parameter."""
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        close(got, want, tolerance, f"output {i}")
    wanted = gradients_of(expected, inputs, theirs, convert)
    names = [name for name, _ in ours.named_parameters()]
    upstream = [upstream_of(output, i) for i, output in enumerate(actual)]
    found = torch.autograd.grad(actual, [*inputs, *ours.parameters()], upstream)
    named = dict(zip([*(f"input {i}" for i in range(len(inputs))), *names], found, strict=True))
    assert named.keys() == wanted.keys()
    for name, gradient in named.items():
        close(gradient, wanted[name], tolerance, f"gradient of {name}", gradient=True, scaled=True)


def as_list(result, return_weights):
    return list(result) if return_weights else [result]


def forbidding(pattern, dtype):
    """What transformers adds to the scores: 0 where allowed, else the lowest number that its float32 softmax takes."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(pattern.shape, dtype=dtype, device=pattern.device).masked_fill(~pattern, lowest)


def causal_pattern(B, T, S, device, real=None):
    pattern = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T).expand(B, 1, T, S)
    return pattern if real is None else pattern & real[:, None, None]


def state(module):
    return dict(module.named_parameters())
