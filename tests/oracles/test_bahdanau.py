"""Additive attention against the paper's equations, written out number by number.

No production implementation is installed to compare with: neither PyTorch nor transformers has additive attention
(the layers of that name in transformers' SwiftFormer are another mechanism). So the oracle is Bahdanau et al. 2014,
appendix A.1.2 and equations 5 and 6, in Python loops over NumPy float64, and its gradients are derived by hand:
no tensor library, no automatic differentiation.
"""

import math

import numpy as np
import pytest
import torch

from attncourse.bahdanau import AdditiveAttention
from tests.oracles.compare import TORCH, close, in_dtypes, on_devices

pytestmark = pytest.mark.oracle(
    mechanism="additive",
    chapter="01_bahdanau",
    module="bahdanau",
    library="numpy",
    equations=True,
    theirs="Bahdanau et al. 2014, appendix A.1.2, equations 5 and 6",
    what="whole, padded, any mask; values of their own, or the keys",
)

QUERY_DIM, KEY_DIM, VALUE_DIM, HIDDEN_DIM = 3, 5, 4, 6


def paper(query, keys, values, W, U, v, mask):
    """Context, weights, and the hidden layer: e_ij = vᵀ tanh(W s_i + U h_j), α_i = softmax(e_i), c_i = Σ_j α_ij h_j."""
    (B, T, n), S, m, A = query.shape, keys.shape[1], keys.shape[2], len(v)
    hidden = np.zeros((B, T, S, A))
    weights = np.zeros((B, T, S))
    context = np.zeros((B, T, values.shape[2]))
    for b in range(B):
        for i in range(T):
            exponentials = {}
            for j in range(S):
                energy = 0.0
                for a in range(A):
                    inner = sum(W[a, k] * query[b, i, k] for k in range(n))
                    inner += sum(U[a, k] * keys[b, j, k] for k in range(m))
                    hidden[b, i, j, a] = math.tanh(inner)
                    energy += v[a] * hidden[b, i, j, a]
                if mask[b, i, j]:
                    exponentials[j] = math.exp(energy)
            for j, exponential in exponentials.items():
                weights[b, i, j] = exponential / sum(exponentials.values())
                context[b, i] += weights[b, i, j] * values[b, j]
    return context, weights, hidden


def paper_gradients(query, keys, values, W, U, v, mask, d_context, d_weights):
    """Gradients of Σ context·d_context + Σ weights·d_weights, by the chain rule, number by number."""
    _, weights, hidden = paper(query, keys, values, W, U, v, mask)
    d_query, d_keys, d_values, d_W, d_U, d_v = (np.zeros_like(x) for x in (query, keys, values, W, U, v))
    B, T, S = weights.shape
    for b in range(B):
        for i in range(T):
            d_alpha = [d_weights[b, i, j] + d_context[b, i] @ values[b, j] for j in range(S)]
            average = sum(weights[b, i, j] * d_alpha[j] for j in range(S))
            for j in range(S):
                d_values[b, j] += weights[b, i, j] * d_context[b, i]
                d_energy = weights[b, i, j] * (d_alpha[j] - average)
                for a in range(len(v)):
                    d_v[a] += d_energy * hidden[b, i, j, a]
                    d_inner = d_energy * v[a] * (1 - hidden[b, i, j, a] ** 2)
                    d_W[a] += d_inner * query[b, i]
                    d_U[a] += d_inner * keys[b, j]
                    d_query[b, i] += d_inner * W[a]
                    d_keys[b, j] += d_inner * U[a]
    return d_query, d_keys, d_values, d_W, d_U, d_v


def make_case(B, T, S, kind):
    rng = np.random.default_rng(B + 10 * T + 100 * S)
    shapes = {
        "query": (B, T, QUERY_DIM),
        "keys": (B, S, KEY_DIM),
        "values": (B, S, VALUE_DIM),
        "W": (HIDDEN_DIM, QUERY_DIM),
        "U": (HIDDEN_DIM, KEY_DIM),
        "v": (HIDDEN_DIM,),
    }
    numbers = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    mask = np.ones((B, T, S), dtype=bool)
    if kind == "padding":
        mask &= (np.arange(S) < S - np.arange(B)[:, None] % S)[:, None]
    if kind == "pattern":
        mask = rng.random((B, T, S)) < 0.6
        mask[0, 0] = False  # one decoder step that may see nothing
    return numbers, mask


def load(numbers, device, dtype):
    attention = AdditiveAttention(QUERY_DIM, KEY_DIM, HIDDEN_DIM).double()
    state = {"query_proj.weight": numbers["W"], "key_proj.weight": numbers["U"], "v": numbers["v"]}
    attention.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    tensors = [torch.from_numpy(numbers[name]) for name in ("query", "keys", "values")]
    return attention.to(device, dtype), [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


@on_devices
@in_dtypes
@pytest.mark.parametrize("kind", ["none", "padding", "pattern"])
@pytest.mark.parametrize(("B", "T", "S"), [(2, 3, 4), (3, 5, 4), (2, 1, 7), (1, 4, 1)])
@pytest.mark.parametrize("separate", [True, False], ids=["values", "keys as values"])
def test_equals_the_paper(separate, B, T, S, kind, dtype, device):
    numbers, mask = make_case(B, T, S, kind)
    if not separate:
        numbers["values"] = numbers["keys"]
    attention, (query, keys, values) = load(numbers, device, dtype)
    given = {"none": None, "padding": mask[:, 0], "pattern": mask}[kind]
    given = None if given is None else torch.from_numpy(given).to(device)
    context, weights = attention(query, keys, values if separate else None, given)

    expected_context, expected_weights, _ = paper(**numbers, mask=mask)
    close(context, expected_context, TORCH[dtype], "context", dtype=dtype)
    close(weights, expected_weights, TORCH[dtype], "weights", dtype=dtype)

    rng = np.random.default_rng(1)
    d_context, d_weights = rng.normal(size=context.shape), rng.normal(size=weights.shape)
    upstream = [torch.from_numpy(d).to(device, dtype) for d in (d_context, d_weights)]
    parameters = [attention.query_proj.weight, attention.key_proj.weight, attention.v]
    wanted = [query, keys, *([values] if separate else []), *parameters]
    actual = torch.autograd.grad([context, weights], wanted, upstream)
    d_query, d_keys, d_values, *d_parameters = paper_gradients(
        **numbers, mask=mask, d_context=d_context, d_weights=d_weights
    )
    expected = [d_query, d_keys, d_values] if separate else [d_query, d_keys + d_values]
    for got, want in zip(actual, [*expected, *d_parameters], strict=True):
        close(got, want, TORCH[dtype], "gradient", gradient=True, dtype=dtype)
