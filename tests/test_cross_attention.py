"""What cross-attention promises: the context is a set of any length, and its padding has no influence."""

import pytest
import torch

from attncourse.cross_attention import CrossAttention
from attncourse.self_attention import SelfAttention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices, random_mask
from tests.test_self_attention import filled

B, T, S, D_MODEL, D_CONTEXT, D_HEAD = 2, 3, 7, 6, 5, 4


def make(device="cpu", **options):
    return filled(CrossAttention(D_MODEL, D_CONTEXT, D_HEAD, **options), device)


def inputs(device="cpu", T=T, S=S):
    return normal(B, T, D_MODEL, seed=9, device=device), normal(B, S, D_CONTEXT, seed=8, device=device)


@on_devices
@pytest.mark.parametrize("shape", [None, (T, S), (B, 1, S), (B, T, S), (B, 1, 1, S), (B, 1, T, S)], ids=str)
def test_both_paths_agree(shape, device):
    layer, (x, context) = make(device), inputs(device)
    mask = None if shape is None else random_mask(*shape).to(device)
    output, weights = layer(x, context, mask, return_weights=True)
    fused = layer(x, context, mask=mask)
    assert output.shape == (B, T, D_MODEL) and weights.shape == (B, T, S)
    assert_equal(fused, output)
    wanted = [x, context, *layer.parameters()]
    assert_all_equal(gradients([fused], wanted), gradients([output], wanted))


def test_reading_itself_is_self_attention():
    crossing, x = filled(CrossAttention(D_MODEL, D_MODEL, D_HEAD)), normal(B, T, D_MODEL, seed=9)
    own = SelfAttention(D_MODEL, D_HEAD).double()
    own.load_state_dict(crossing.state_dict(), strict=True)
    assert_equal(crossing(x, x), own(x))


def test_the_order_of_the_context_does_not_matter():
    layer, (x, context) = make(), inputs()
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    assert_equal(layer(x, context[:, order]), layer(x, context))


def test_queries_do_not_see_each_other():
    layer, (x, context) = make(), inputs()
    one_by_one = torch.cat([layer(x[:, i : i + 1], context) for i in range(T)], 1)
    assert_equal(one_by_one, layer(x, context))


def test_padding_of_the_context_has_no_influence():
    layer, (x, context) = make(), inputs()
    padded = torch.cat([context, torch.full((B, 2, D_CONTEXT), 1e4, dtype=torch.float64)], 1)
    mask = (torch.arange(S + 2) < S).expand(B, 1, S + 2)
    assert_equal(layer(x, padded, mask), layer(x, context))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 5)}, ValueError, r"x has shape \(2, 3, 5\); it needs three axes, the last of size 6"),
        ({"context": torch.zeros(2, 7, 6)}, ValueError, r"context has shape \(2, 7, 6\); .* the last of size 5"),
        ({"context": torch.zeros(3, 7, 5)}, ValueError, "batch sizes differ: x 2, context 3"),
        ({"context": torch.zeros(2, 7, 5).double()}, TypeError, "context torch.float64"),
        (
            {"mask": torch.ones(2, 3).bool()},
            ValueError,
            r"mask has shape \(2, 3\), which does not broadcast to \(2, 3, 7\)",
        ),
        ({"mask": torch.ones(3, 7).int()}, TypeError, "mask has dtype torch.int32"),
    ],
)
def test_bad_input_is_refused_with_the_numbers(arguments, error, message):
    given = {"x": torch.zeros(2, 3, 6), "context": torch.zeros(2, 7, 5), **arguments}
    with pytest.raises(error, match=message):
        CrossAttention(6, 5)(**given)


@pytest.mark.parametrize(
    ("sizes", "wrong"),
    [((0, 5), "d_model=0"), ((0, 5, 4), "d_model=0"), ((6, 0), "d_context=0"), ((6, 5, 0), "d_head=0")],
)
def test_sizes_below_one_are_refused(sizes, wrong):
    with pytest.raises(ValueError, match=f"{wrong}, but it must be at least 1"):
        CrossAttention(*sizes)
