"""Luong's attention against the paper's equations, written out number by number.

No production implementation is installed to compare with, so the oracle is Luong et al. 2015, sections 3.1 and 3.2 and
equations 5, 7, 9 and 10, in Python loops over NumPy float64: the concatenation is made, the window is a loop from
p - D to p + D, padding is never looked at. Its gradients are derived by hand: no tensor library, no automatic
differentiation. Hard attention's two gradients (Xu et al. 2015) are written out for the key that was drawn.
"""

import math

import numpy as np
import pytest
import torch

from attncourse.luong import HardAttention, LocalAttention, LuongAttention, attentional_vector, surrogate_loss
from tests.oracles.compare import TORCH, close, in_dtypes, on_devices

pytestmark = pytest.mark.oracle(chapter="02_luong", module="luong", library="numpy", equations=True)

QUERY_DIM, VALUE_DIM, HIDDEN_DIM = 3, 4, 6
KEY_DIM = {"dot": QUERY_DIM, "general": 5, "concat": 5}
# alignment, and the paper's D (ours is D + 1); None is global attention
WINDOWS = {"global": (None, 0), "local-m": ("monotonic", 2), "local-p": ("predictive", 2)}
LOCAL = pytest.mark.oracle(mechanism="local", theirs="Luong et al. 2015, section 3.2, equations 7, 9 and 10")
GLOBAL = pytest.mark.oracle(mechanism="luong", theirs="Luong et al. 2015, section 3.1, equation 7")
EQUATIONS = {"global": GLOBAL, "local-m": LOCAL, "local-p": LOCAL}


class Paper:
    """One query against one source without padding, with everything on the way remembered for the gradients."""

    def __init__(self, score, alignment, D, p):
        self.score, self.alignment, self.D, self.p = score, alignment, D, p  # p: the parameters, by the paper's names

    def energy(self, query, key):
        if self.score == "dot":
            return sum(query[k] * key[k] for k in range(len(query)))
        if self.score == "general":
            W = self.p["W_a"]
            return sum(query[a] * W[a, b] * key[b] for a in range(len(query)) for b in range(len(key)))
        joined = np.concatenate([query, key])
        return sum(v * math.tanh(sum(w * x for w, x in zip(row, joined, strict=True))) for v, row in self.rows())

    def rows(self):
        return zip(self.p["v_a"], self.p["W_a"], strict=True)

    def centre(self, query, t, S):
        if self.alignment == "monotonic":
            return t
        hidden = [math.tanh(sum(w * x for w, x in zip(row, query, strict=True))) for row in self.p["W_p"]]
        return S / (1 + math.exp(-sum(v * h for v, h in zip(self.p["v_p"], hidden, strict=True))))

    def forward(self, query, keys, t, allowed):
        """Softmax a over the window, Gaussian g, weights a·g, and the centre. allowed: holes inside the source."""
        S, D = len(keys), self.D
        centre = self.centre(query, t, S) if self.alignment else None
        seen = [s for s in range(S) if allowed[s] and (centre is None or centre - D <= s <= centre + D)]
        exponentials = {s: math.exp(self.energy(query, keys[s])) for s in seen}
        a, g = np.zeros(S), np.ones(S)
        for s in seen:
            a[s] = exponentials[s] / sum(exponentials.values())
        if self.alignment == "predictive":
            g = np.array([math.exp(-((s - centre) ** 2) / (2 * (D / 2) ** 2)) for s in range(S)])
        return a, g, centre

    def backward(self, query, keys, t, allowed, d_weights, d):
        """Add the gradients of Σ weights·d_weights to the arrays in d: query, keys, and the parameters."""
        a, g, centre = self.forward(query, keys, t, allowed)
        d_a = d_weights * g
        average = sum(a[s] * d_a[s] for s in range(len(keys)))
        for s in range(len(keys)):
            self.energy_backward(query, keys, s, a[s] * (d_a[s] - average), d)
        if self.alignment == "predictive":
            S, slope = len(keys), (self.D / 2) ** 2
            d_centre = sum(d_weights[s] * a[s] * g[s] * (s - centre) / slope for s in range(S))
            d_inner = d_centre * S * (centre / S) * (1 - centre / S)
            for i, row in enumerate(self.p["W_p"]):
                hidden = math.tanh(row @ query)
                d["v_p"][i] += d_inner * hidden
                d_row = d_inner * self.p["v_p"][i] * (1 - hidden**2)
                d["W_p"][i] += d_row * query
                d["query"] += d_row * row

    def energy_backward(self, query, keys, s, d_energy, d):
        key = keys[s]
        if self.score == "dot":
            d["query"] += d_energy * key
            d["keys"][s] += d_energy * query
        elif self.score == "general":
            d["query"] += d_energy * (self.p["W_a"] @ key)
            d["keys"][s] += d_energy * (query @ self.p["W_a"])
            d["W_a"] += d_energy * np.outer(query, key)
        else:
            joined = np.concatenate([query, key])
            for i, (v, row) in enumerate(self.rows()):
                hidden = math.tanh(row @ joined)
                d["v_a"][i] += d_energy * hidden
                d_row = d_energy * v * (1 - hidden**2)
                d["W_a"][i] += d_row * joined
                d["query"] += d_row * row[: len(query)]
                d["keys"][s] += d_row * row[len(query) :]


def whole(paper, numbers, mask, d_context, d_weights):
    """Context, weights, and gradients of a batch: each source is cut out of its padding and treated alone."""
    query, keys, values = numbers["query"], numbers["keys"], numbers["values"]
    (B, T, _), S = query.shape, keys.shape[1]
    context, weights = np.zeros((B, T, values.shape[2])), np.zeros((B, T, S))
    total = {name: np.zeros_like(array) for name, array in numbers.items()}
    for b in range(B):
        for t in range(T):
            if not mask[b, t].any():
                continue
            allowed = np.flatnonzero(mask[b, t])
            cut = slice(allowed[0], allowed[-1] + 1)
            inside = mask[b, t, cut]
            a, g, _ = paper.forward(query[b, t], keys[b, cut], t, inside)
            weights[b, t, cut] = a * g
            context[b, t] = sum(a[s] * g[s] * values[b, cut][s] for s in range(len(a)))
            total["values"][b, cut] += np.outer(a * g, d_context[b, t])
            d_w = d_weights[b, t, cut] + values[b, cut] @ d_context[b, t]
            one = {**total, "query": total["query"][b, t], "keys": total["keys"][b, cut]}  # views: added to in place
            paper.backward(query[b, t], keys[b, cut], t, inside, d_w, one)
    return context, weights, total


NAMES = {
    ("general", "W_a"): "key_proj.weight",
    ("concat", "W_a"): "concat_proj.weight",
    ("concat", "v_a"): "v",
    ("any", "W_p"): "position_proj.weight",
    ("any", "v_p"): "position_v",
}


def name_of(score, parameter):
    return NAMES.get((score, parameter)) or NAMES["any", parameter]


def make_case(score, alignment, B, T, S, kind):
    rng = np.random.default_rng(B + 10 * T + 100 * S)
    shapes = {"query": (B, T, QUERY_DIM), "keys": (B, S, KEY_DIM[score]), "values": (B, S, VALUE_DIM)}
    if score == "general":
        shapes |= {"W_a": (QUERY_DIM, KEY_DIM[score])}
    if score == "concat":
        shapes |= {"W_a": (HIDDEN_DIM, QUERY_DIM + KEY_DIM[score]), "v_a": (HIDDEN_DIM,)}
    if alignment == "predictive":
        shapes |= {"W_p": (QUERY_DIM, QUERY_DIM), "v_p": (QUERY_DIM,)}
    numbers = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    mask, index = np.ones((B, T, S), dtype=bool), np.arange(S)
    shown = S - np.arange(B)[:, None] % S
    if kind == "right padding":
        mask &= (index < shown)[:, None]
    if kind == "left padding":
        mask &= (index >= S - shown)[:, None]
    if kind == "pattern":
        mask = rng.random((B, T, S)) < 0.6
        mask[0, 0] = False  # one decoder step that may see nothing
    return numbers, mask


def load(attention, score, numbers, device, dtype):
    parameters = [name for name in numbers if name not in ("query", "keys", "values")]
    state = {name_of(score, name): torch.from_numpy(numbers[name]) for name in parameters}
    attention.double().load_state_dict(state, strict=True)
    attention.to(device, dtype)
    tensors = [torch.from_numpy(numbers[x]).to(device, dtype).requires_grad_() for x in ("query", "keys", "values")]
    return [*tensors, *(attention.get_parameter(name_of(score, name)) for name in parameters)]


def make(score, alignment, D):
    key_dim = KEY_DIM[score]
    if alignment is None:
        return LuongAttention(QUERY_DIM, key_dim, score, hidden_dim=HIDDEN_DIM)
    return LocalAttention(QUERY_DIM, key_dim, window=D + 1, alignment=alignment, score=score, hidden_dim=HIDDEN_DIM)


@pytest.mark.oracle(what="dot, general, concat; whole, padded on either side, any mask")
@on_devices
@in_dtypes
@pytest.mark.parametrize("kind", ["none", "right padding", "left padding", "pattern"])
@pytest.mark.parametrize(("B", "T", "S"), [(2, 3, 4), (3, 8, 7), (2, 1, 9), (1, 4, 1)])
@pytest.mark.parametrize("where", [pytest.param(where, marks=EQUATIONS[where]) for where in WINDOWS])
@pytest.mark.parametrize("score", KEY_DIM)
def test_equals_the_paper(score, where, B, T, S, kind, dtype, device):
    alignment, D = WINDOWS[where]
    numbers, mask = make_case(score, alignment, B, T, S, kind)
    attention = make(score, alignment, D)
    query, keys, values, *parameters = load(attention, score, numbers, device, dtype)
    given = {"none": None, "pattern": mask}.get(kind, mask[:, 0])
    given = None if given is None else torch.from_numpy(given).to(device)
    context, weights = attention(query, keys, values, given)

    rng = np.random.default_rng(1)
    d_context, d_weights = rng.normal(size=context.shape), rng.normal(size=weights.shape)
    paper = Paper(score, alignment, D, numbers)
    expected_context, expected_weights, expected = whole(paper, numbers, mask, d_context, d_weights)
    close(context, expected_context, TORCH[dtype], "context", dtype=dtype)
    close(weights, expected_weights, TORCH[dtype], "weights", dtype=dtype)
    upstream = [torch.from_numpy(d).to(device, dtype) for d in (d_context, d_weights)]
    actual = torch.autograd.grad([context, weights], [query, keys, values, *parameters], upstream)
    for got, want in zip(actual, expected.values(), strict=True):
        close(got, want, TORCH[dtype], "gradient", gradient=True, dtype=dtype)


@pytest.mark.oracle(mechanism="luong", theirs="Luong et al. 2015, equation 5", what="the attentional vector")
@on_devices
@in_dtypes
def test_attentional_vector_equals_the_paper(dtype, device):
    rng = np.random.default_rng(0)
    context, query, weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5)), rng.normal(size=(6, 9))
    d_vector = rng.normal(size=(2, 3, 6))
    vector = np.zeros((2, 3, 6))
    d = [np.zeros_like(x) for x in (context, query, weight)]
    for b in range(2):
        for t in range(3):
            joined = [*context[b, t], *query[b, t]]  # [c; h]: the context first
            for i in range(6):
                vector[b, t, i] = math.tanh(sum(weight[i, j] * joined[j] for j in range(9)))
                d_inner = d_vector[b, t, i] * (1 - vector[b, t, i] ** 2)
                d[0][b, t] += d_inner * weight[i, :4]
                d[1][b, t] += d_inner * weight[i, 4:]
                d[2][i] += d_inner * np.array(joined)
    tensors = [torch.from_numpy(x).to(device, dtype).requires_grad_() for x in (context, query, weight)]
    actual = attentional_vector(*tensors)
    close(actual, vector, TORCH[dtype], "vector", dtype=dtype)
    gradients = torch.autograd.grad(actual, tensors, torch.from_numpy(d_vector).to(device, dtype))
    for got, want in zip(gradients, d, strict=True):
        close(got, want, TORCH[dtype], "gradient", gradient=True, dtype=dtype)


@pytest.mark.oracle(
    mechanism="hard",
    theirs="score-function and straight-through gradients",
    what="dot, general, concat; padded; for the key that was drawn",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize("estimator", ["straight_through", "score_function"])
@pytest.mark.parametrize("score", KEY_DIM)
def test_hard_gradients_equal_their_definitions(score, estimator, dtype, device):
    """For the key that was drawn. Score function: (cost - b) ∂log p + ∂cost. Straight-through: ∂cost · Σ x_s ∂p_s."""
    B, T, S, baseline = 2, 3, 5, 0.3
    numbers, mask = make_case(score, None, B, T, S, "right padding")
    attention = HardAttention(QUERY_DIM, KEY_DIM[score], estimator=estimator, score=score, hidden_dim=HIDDEN_DIM)
    query, keys, values, *parameters = load(attention, score, numbers, device, dtype)
    torch.manual_seed(0)
    context, weights = attention(query, keys, values, torch.from_numpy(mask[:, 0]).to(device))
    cost = context.pow(3).sum(-1)
    loss = surrogate_loss(cost, attention.log_prob, baseline) if estimator == "score_function" else cost
    actual = torch.autograd.grad(loss.sum(), [query, keys, values, *parameters])

    drawn, paper = weights.argmax(-1).cpu().numpy(), Paper(score, None, 0, numbers)
    assert torch.equal(weights.sum(-1), torch.ones_like(cost)) and weights.eq(1).any(-1).all()
    expected = {name: np.zeros_like(array) for name, array in numbers.items()}
    log_prob = np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            k, x, allowed = drawn[b, t], numbers["values"][b], mask[b, t]
            assert allowed[k]
            close(context[b, t], x[k], TORCH[dtype], "context", dtype=dtype)
            a, _, _ = paper.forward(numbers["query"][b, t], numbers["keys"][b], t, allowed)
            log_prob[b, t] = math.log(a[k])
            expected["values"][b, k] += 3 * x[k] ** 2
            if estimator == "score_function":
                d_weights = np.eye(S)[k] / a[k] * (sum(x[k] ** 3) - baseline)
            else:
                d_weights = x @ (3 * x[k] ** 2)
            one = {**expected, "query": expected["query"][b, t], "keys": expected["keys"][b]}
            paper.backward(numbers["query"][b, t], numbers["keys"][b], t, allowed, d_weights, one)
    close(attention.log_prob, log_prob, TORCH[dtype], "logarithm of the probability", dtype=dtype)
    for got, want in zip(actual, expected.values(), strict=True):
        close(got, want, TORCH[dtype], "gradient", gradient=True, scaled=True, dtype=dtype)  # of a cubic cost
