"""What self-attention promises: it sees a set, masks work in every shape, errors give the numbers."""

import pytest
import torch

from attncourse.attention import scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention
from attncourse.lab.measure import allocated_bytes
from attncourse.self_attention import SelfAttention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices, random_mask

B, T, D_MODEL, D_HEAD = 2, 5, 6, 4


def filled(module, device="cpu", dtype=torch.float64):
    """The layer with weights large enough to make the attention uneven."""
    module.to(device, dtype)
    for i, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=i, device=device, dtype=dtype).data
    return module


def make(device="cpu", dtype=torch.float64, **options):
    return filled(SelfAttention(D_MODEL, D_HEAD, **options), device, dtype)


def test_by_hand():
    """Two tokens, the unit vectors; all projections the identity: weights are softmax of (1, 0) / √2."""
    layer = SelfAttention(2).double()
    for parameter in layer.parameters():
        parameter.data = torch.eye(2, dtype=torch.float64)
    output, weights = layer(torch.eye(2, dtype=torch.float64)[None], return_weights=True)
    own = 1 / (1 + torch.exp(torch.tensor(-(2**-0.5), dtype=torch.float64)))
    expected = torch.stack([torch.stack([own, 1 - own]), torch.stack([1 - own, own])])[None]
    assert_equal(weights, expected)
    assert_equal(output, expected)


@on_devices
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [None, (T, T), (B, 1, T), (B, T, T), (B, 1, 1, T), (1, 1, T, T), (B, 1, T, T)], ids=str
)
def test_both_paths_agree(shape, bias, device):
    layer, x = make(device, bias=bias), normal(B, T, D_MODEL, seed=9, device=device)
    mask = None if shape is None else random_mask(*shape).to(device)
    output, weights = layer(x, mask=mask, return_weights=True)
    fused = layer(x, mask=mask)
    assert output.shape == (B, T, D_MODEL) and weights.shape == (B, T, T)
    assert_equal(fused, output)
    wanted = [x, *layer.parameters()]
    assert_all_equal(gradients([fused], wanted), gradients([output], wanted))
    if mask is not None:
        allowed = mask[:, 0] if mask.dim() == 4 else mask
        assert weights.masked_select(~allowed.expand_as(weights)).eq(0).all()


def test_permuting_the_tokens_permutes_the_outputs():
    layer, x = make(), normal(B, T, D_MODEL, seed=9)
    order = torch.tensor([3, 0, 4, 1, 2])
    output, weights = layer(x, return_weights=True)
    moved, moved_weights = layer(x[:, order], return_weights=True)
    assert_equal(moved, output[:, order])
    assert_equal(moved_weights, weights[:, order][:, :, order])
    assert (moved - output).abs().max() > 0.1


def test_one_token_gives_its_own_value():
    layer, x = make(), normal(B, 1, D_MODEL, seed=9)
    assert_equal(layer(x), layer.o_proj(layer.v_proj(x)))


def test_masking_tokens_equals_leaving_them_out():
    layer, x = make(), normal(B, T, D_MODEL, seed=9)
    keep = torch.tensor([True, False, True, True, False])
    assert_equal(layer(x, mask=keep)[:, keep], layer(x[:, keep]))


@pytest.mark.parametrize("return_weights", [False, True])
def test_a_token_that_may_see_nothing_gives_the_output_bias_and_no_gradient(return_weights):
    layer, x = make(bias=True), normal(B, T, D_MODEL, seed=9)
    mask = torch.ones(B, T, T, dtype=torch.bool)
    mask[:, 2] = False
    result = layer(x, mask=mask, return_weights=return_weights)
    output = result[0] if return_weights else result
    assert_equal(output[:, 2], layer.o_proj.bias.expand(B, -1))
    query_gradient = torch.autograd.grad(output[:, 2].sum(), x)[0]
    assert query_gradient.eq(0).all()


def test_the_state_dict_has_four_matrices():
    assert list(SelfAttention(6).state_dict()) == [f"{name}_proj.weight" for name in "qkvo"]
    assert SelfAttention(6, 4).q_proj.weight.shape == (4, 6)
    assert SelfAttention(6).o_proj.weight.shape == (6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(5, 6)}, ValueError, r"x has shape \(5, 6\); it needs three axes, the last of size 6"),
        ({"x": torch.zeros(2, 5, 7)}, ValueError, r"x has shape \(2, 5, 7\)"),
        ({"x": torch.zeros(2, 5, 6).double()}, TypeError, "x torch.float64, the layer's weights torch.float32"),
        ({"mask": torch.ones(5, 5)}, TypeError, "mask has dtype torch.float32; it must be torch.bool"),
        (
            {"mask": torch.ones(5, 4).bool()},
            ValueError,
            r"mask has shape \(5, 4\), which does not broadcast to \(2, 5, 5\)",
        ),
        ({"mask": torch.ones(2, 3, 5, 5).bool()}, ValueError, r"mask has shape \(2, 3, 5, 5\)"),
    ],
)
@pytest.mark.parametrize("return_weights", [False, True])
def test_bad_input_is_refused_with_the_numbers(arguments, error, message, return_weights):
    with pytest.raises(error, match=message):
        SelfAttention(6)(**{"x": torch.zeros(2, 5, 6), **arguments}, return_weights=return_weights)


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="devices differ: x meta, the layer's weights cpu"):
        SelfAttention(6)(torch.zeros(2, 5, 6, device="meta"))
    with pytest.raises(ValueError, match="devices differ: mask meta, scores cpu"):
        SelfAttention(6)(torch.zeros(2, 5, 6), mask=torch.ones(5, 5, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("kind", [SelfAttention, CausalSelfAttention])
@pytest.mark.parametrize(
    ("sizes", "wrong"), [((0,), "d_model=0"), ((0, 4), "d_model=0"), ((6, 0), "d_head=0"), ((-1,), "d_model=-1")]
)
def test_sizes_below_one_are_refused(sizes, wrong, kind):
    with pytest.raises(ValueError, match=f"{wrong}, but it must be at least 1"):
        kind(*sizes)


def test_autocast_may_change_the_dtype():
    layer = SelfAttention(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.zeros(2, 5, 6)).dtype == torch.bfloat16
        assert layer(torch.zeros(2, 5, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [SelfAttention(16), CausalSelfAttention(16)], ids=["self", "causal"])
def test_without_weights_no_matrix_of_scores_is_made(layer):
    """PyTorch fuses four axes only, and with three builds T×T without a word."""
    x = torch.randn(1, 256, 16)
    _, largest = allocated_bytes(lambda: layer(x))
    assert largest <= 256 * 16 * 4
    _, largest = allocated_bytes(lambda: layer(x, return_weights=True))
    assert largest == 256 * 256 * 4


@pytest.mark.parametrize("scale", [None, 1.0, 100.0])
def test_equal_keys_give_the_mean_value_whatever_the_scale(scale):
    query, key, value = normal(B, 3, 4, seed=1), normal(B, 1, 4, seed=2).expand(B, T, 4), normal(B, T, 2, seed=3)
    output = scaled_dot_product_attention(query, key, value, scale=scale)
    assert_equal(output, value.mean(1, keepdim=True).expand(B, 3, 2))


def test_a_vector_added_to_every_key_changes_nothing():
    query, key, value = normal(B, 3, 4, seed=1), normal(B, T, 4, seed=2), normal(B, T, 2, seed=3)
    moved = scaled_dot_product_attention(query, key + normal(B, 1, 4, seed=4), value)
    assert_equal(moved, scaled_dot_product_attention(query, key, value))


def test_a_cache_is_refused_by_a_layer_that_sees_the_future():
    cache = CausalSelfAttention(6).new_cache(2, 4)
    with pytest.raises(ValueError, match="a cache needs causal attention"):
        SelfAttention(6)(torch.zeros(2, 1, 6), cache=cache)
    assert cache.length == 0
