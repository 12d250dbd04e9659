"""What random features promise: an unbiased estimate whose error falls with m^(-1/2), and nothing from the future.

What a Performer shares with linear attention, layers, states and cost, is tested in test_linear.
"""

import math
from itertools import pairwise

import pytest
import torch

from attncourse.causal import causal_attention
from attncourse.linear import LinearAttention, linear_attention
from attncourse.performer import PerformerAttention, favor_features, orthogonal_projection
from attncourse.positions import RotaryEmbedding
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices

B, T, H, D = 2, 7, 3, 4


def projection_of(n_features, dim, seed=0, device="cpu"):
    return orthogonal_projection(n_features, dim, seed=seed, dtype=torch.float64, device=device)


def kernel(x, y, projection):
    """The estimate of exp(x·y / √D)."""
    return (favor_features(x, projection, is_query=False) * favor_features(y, projection, is_query=False)).sum(-1)


# --- directions


@pytest.mark.parametrize(("n_features", "dim"), [(4, 4), (3, 5), (11, 4), (1, 1), (64, 32)])
def test_rows_of_a_block_are_orthogonal(n_features, dim):
    rows = projection_of(n_features, dim)
    assert rows.shape == (n_features, dim)
    for block in rows.split(dim):
        products = block @ block.T
        assert_equal(products, products.diagonal().diag(), 1e-10)
    if n_features >= 2 * dim:
        assert (rows[:dim] @ rows[dim : 2 * dim].T).abs().max() > 0.1  # blocks know nothing of each other


def test_lengths_and_directions_are_those_of_normal_rows():
    """Moments of one entry over many seeds, within four standard errors: mean 0, second 1, fourth 3, none alike."""
    drawn = torch.stack([projection_of(3, 3, seed) for seed in range(2000)])  # (2000, 3, 3)
    for moments, expected in ((drawn, 0.0), (drawn**2, 1.0), (drawn**4, 3.0), (drawn.square().sum(-1), 3.0)):
        assert ((moments.mean(0) - expected).abs() < 4 * moments.std(0) / math.sqrt(2000)).all()
    lengths = drawn.norm(dim=-1)
    assert lengths.std() > 0.5 and torch.corrcoef(lengths.T).fill_diagonal_(0).abs().max() < 0.1


def test_a_seed_gives_the_same_rows_and_more_features_extend_fewer():
    rows = projection_of(11, 4, seed=3)
    assert torch.equal(rows, projection_of(11, 4, seed=3))
    assert torch.equal(rows[:6], projection_of(6, 4, seed=3))
    assert (rows - projection_of(11, 4, seed=4)).abs().min() > 1e-6
    state = torch.get_rng_state()
    assert torch.equal(orthogonal_projection(11, 4, seed=3), rows.float())
    assert torch.equal(torch.get_rng_state(), state)


# --- the estimate


@on_devices
@pytest.mark.parametrize("is_query", [True, False], ids=["query", "key"])
def test_features_follow_the_formula(is_query, device):
    x, rows = normal(2, 3, 5, seed=1, device=device), projection_of(7, 5, device=device)
    features = favor_features(x, rows, is_query=is_query)
    assert features.shape == (2, 3, 7)
    for b in range(2):
        for t in range(3):
            u = [number.item() / 5**0.25 for number in x[b, t]]
            exponents = [
                sum(w * n for w, n in zip(row.tolist(), u, strict=True)) - sum(n * n for n in u) / 2 for row in rows
            ]
            largest = max(exponents) if is_query else 0.0
            expected = [math.exp(e - largest) / math.sqrt(7) for e in exponents]
            assert_equal(features[b, t], torch.tensor(expected, dtype=torch.float64, device=device))


def estimates(projections):
    """The estimate of exp(x·y/√D) at x = y = (½, ½, ½, ½), where it should be √e, for each projection."""
    half = torch.full((4,), 0.5, dtype=torch.float64)
    return torch.stack([kernel(half, half, rows) for rows in projections])


def test_the_estimate_is_unbiased_and_would_not_be_without_signs():
    seeds = range(1500)
    found = estimates(projection_of(4, 4, seed) for seed in seeds)
    error = found.std() / math.sqrt(len(seeds))
    assert (found.mean() - math.exp(0.5)).abs() < 3 * error and error < 0.07

    def without_signs(seed):
        gaussian, other = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return torch.linalg.qr(gaussian)[0] * other.norm(dim=1, keepdim=True)

    biased = estimates(without_signs(seed) for seed in seeds)
    assert math.exp(0.5) - biased.mean() > 8 * biased.std() / math.sqrt(len(seeds))


def moderate(*shape, seed, device="cpu"):
    """Vectors half as long as normal ones: with long ones a few rare features hold most of the variance."""
    return normal(*shape, seed=seed, device=device).detach() / 2


def test_the_error_falls_with_the_root_of_the_number_of_features():
    query, key = moderate(40, 8, seed=1), moderate(40, 8, seed=2)
    exact = ((query * key).sum(-1) / math.sqrt(8)).exp()
    counts = [8, 32, 128, 512]
    errors = []
    for m in counts:
        wrong = torch.stack([kernel(query, key, projection_of(m, 8, seed)) - exact for seed in range(60)])
        errors.append(wrong.square().mean().sqrt().item())
    for fewer, more in pairwise(errors):
        assert 1.6 < fewer / more < 2.5  # four times the features, half the error
    assert -0.55 < math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0]) < -0.45


def test_orthogonal_rows_err_less_than_independent_ones():
    query, key = moderate(40, 8, seed=1), moderate(40, 8, seed=2)
    exact = ((query * key).sum(-1) / math.sqrt(8)).exp()

    def error(draw):
        return torch.stack([kernel(query, key, draw(seed)) - exact for seed in range(400)]).square().mean()

    independent = error(lambda seed: normal(8, 8, seed=seed).detach())
    assert error(lambda seed: projection_of(8, 8, seed)) < 0.9 * independent


def attended(query, key, value, projection, causal=True):
    query, key = favor_features(query, projection, is_query=True), favor_features(key, projection, is_query=False)
    return linear_attention(query, key, value, causal=causal)


@on_devices
def test_it_comes_close_to_softmax_attention(device):
    query, key, value = (moderate(B, H, 12, 8, seed=seed, device=device) for seed in (1, 2, 3))
    exact = causal_attention(query, key, value)
    errors = []
    for m in (16, 256, 4096):
        outputs = [attended(query, key, value, projection_of(m, 8, seed, device)) for seed in range(8)]
        errors.append((torch.stack(outputs) - exact).square().mean().sqrt().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.03, errors


# --- the stabiliser


def test_a_factor_of_a_query_cancels_in_outputs_and_gradients():
    inputs = [normal(B, H, T, D, seed=seed) for seed in (1, 2, 3)]
    rows = projection_of(6, D)
    key = favor_features(inputs[1], rows, is_query=False)
    stable = attended(*inputs, rows)
    plain = linear_attention(favor_features(inputs[0], rows, is_query=False), key, inputs[2])
    assert_equal(stable, plain)
    assert_all_equal(gradients([stable], inputs), gradients([plain], inputs))


@on_devices
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
def test_long_queries_and_keys_stay_finite(scale, causal, device):
    """float32, heads of 64. Without the maximum, exp(w·q) of a query of length 10 · √64 is already infinite or zero."""
    inputs = [
        (size * normal(1, 2, 9, 64, seed=seed, device=device, dtype=torch.float32)).detach().requires_grad_()
        for seed, size in ((1, scale), (2, scale), (3, 1.0))
    ]
    output = attended(*inputs, orthogonal_projection(128, 64, device=device), causal)
    assert output.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients([output], inputs))
    if scale == 1000.0:
        assert output.eq(0).all()  # no feature of such a key is left: it weighs nothing


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_late_key_moves_no_earlier_output_by_a_bit(dtype, device):
    query, key, value = (normal(B, H, T, D, seed=seed, device=device, dtype=dtype).detach() for seed in (1, 2, 3))
    rows = projection_of(16, D, device=device)
    changed = key.clone()
    changed[:, :, -1] *= 30.0
    assert torch.equal(attended(query, key, value, rows)[:, :, :-1], attended(query, changed, value, rows)[:, :, :-1])

    def by_maximum_of_all_keys(key):
        """As often published: exponents less the maximum over all keys, and an epsilon in the sum."""
        u = key * D**-0.25
        exponents = u @ rows.to(dtype).T - u.square().sum(-1, keepdim=True) / 2
        features = (exponents - exponents.amax((-2, -1), keepdim=True)).exp()
        products = (favor_features(query, rows, is_query=True) @ features.transpose(-2, -1)).tril()
        return products @ value / (products.sum(-1, keepdim=True) + 1e-6)

    changed[:, :, -1] = 12.0 * rows[0].to(dtype) / rows[0].norm()  # a key along a row, so that its exponent is large
    changed[:, :, :-1] *= 3.0
    before = changed.clone()
    before[:, :, -1] = key[:, :, -1] * 3.0
    leaked = (by_maximum_of_all_keys(changed) - by_maximum_of_all_keys(before))[:, :, :-1]
    assert leaked.abs().max() > 1e-3
    assert torch.equal(
        attended(query, before, value, rows)[:, :, :-1], attended(query, changed, value, rows)[:, :, :-1]
    )


# --- the layer


def test_a_projection_is_no_parameter_and_goes_where_the_layer_goes():
    layer = PerformerAttention(12, 3, n_features=10, seed=5)
    assert list(layer.state_dict()) == [f"{name}_proj.weight" for name in "qkvo"]
    assert len(list(layer.parameters())) == 4
    assert torch.equal(layer.projection, orthogonal_projection(10, 4, seed=5))
    assert layer.double().projection.dtype == torch.float64
    linear = LinearAttention(12, 3)
    linear.load_state_dict(layer.state_dict(), strict=True)
    other = PerformerAttention(12, 3, n_features=10, seed=6).double()
    other.load_state_dict(layer.state_dict(), strict=True)
    x = normal(B, T, 12, seed=9)
    assert (other(x) - layer(x)).abs().max() > 1e-4


def test_making_a_layer_draws_its_weights_alone():
    """The same seed of the weights, the same weights, whatever the features."""
    torch.manual_seed(0)
    few = PerformerAttention(12, 3, n_features=2, seed=1)
    torch.manual_seed(0)
    many = PerformerAttention(12, 3, n_features=50, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), many.parameters(), strict=True))


def test_narrow_inputs_are_mapped_in_float32():
    """An exponent of 20 in bfloat16 is off by up to 0.06, and the feature by 6 per cent."""
    x, rows = 3 * normal(50, 64, seed=1, dtype=torch.bfloat16).detach(), orthogonal_projection(32, 64)
    for is_query in (True, False):
        features = favor_features(x, rows, is_query=is_query)
        assert features.dtype == torch.float32
        assert torch.equal(features, favor_features(x.float(), rows, is_query=is_query))


def test_turned_features_depend_on_differences_up_to_the_estimate():
    """Where the sequence starts changes the weights less and less, the more features there are."""
    x = moderate(1, 6, 8, seed=9)
    later = torch.cat([torch.zeros(1, 3, 8).double(), x], 1)
    changes = []
    for m in (16, 256, 4096):
        errors = []
        for seed in range(8):
            torch.manual_seed(0)
            layer = PerformerAttention(8, 1, n_features=m, seed=seed, rotary=RotaryEmbedding(8)).double()
            with torch.no_grad():
                shifted = layer(later, return_weights=True)[1][..., 3:, 3:]
                errors.append(shifted / shifted.sum(-1, keepdim=True) - layer(x, return_weights=True)[1])
        changes.append(torch.stack(errors).square().mean().sqrt().item())
    assert changes[0] > 2 * changes[1] > 4 * changes[2] and changes[2] < 0.002, changes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerformerAttention(12, 3, n_features=0), "n_features=0, but it must be at least 1"),
        (lambda: PerformerAttention(100, 12, n_features=8), "d_model=100 is not divisible by n_heads=12"),
        (lambda: PerformerAttention(12, 3, n_features=8, rotary=RotaryEmbedding(6)), "a head has 4 numbers"),
        (lambda: orthogonal_projection(-1, 4), "n_features=-1"),
        (lambda: orthogonal_projection(4, 0), "dim=0"),
        (
            lambda: favor_features(torch.zeros(2, 5), torch.zeros(7, 4), is_query=True),
            r"x has shape \(2, 5\), but the projection \(m, D\) is \(7, 4\)",
        ),
        (lambda: favor_features(torch.zeros(2, 4), torch.zeros(4), is_query=True), r"projection \(m, D\) is \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_projection_is_of_seed_0_unless_told_otherwise_and_stands_where_it_is_wanted():
    assert torch.equal(orthogonal_projection(9, 4), orthogonal_projection(9, 4, seed=0))
    assert torch.equal(PerformerAttention(12, 3, n_features=9).projection, orthogonal_projection(9, 4))
    assert orthogonal_projection(9, 4, device="meta").device.type == "meta"
