"""`build` makes a causal layer of every kind, and says what it cannot make."""

import pytest
import torch

import attncourse
from attncourse.multi_head import MultiHeadAttention
from attncourse.patterns import Strided, Window
from attncourse.positions import RotaryEmbedding
from tests.test_any_chunking import LAYERS, make
from tests.test_bahdanau import assert_equal, normal


@pytest.mark.parametrize("name", attncourse.MECHANISMS)
def test_every_mechanism_is_causal_and_any_chunking_equals_one_pass(name):
    torch.manual_seed(0)
    layer = attncourse.build(name, 12, 3).double()
    assert isinstance(layer, attncourse.MECHANISMS[name])
    x = normal(2, 150, 12, seed=1).detach()  # more than twice the default window and stride
    whole, changed = layer(x), x.clone()
    changed[:, 100:] = 9.0
    assert whole.shape == x.shape
    assert_equal(layer(changed)[:, :100], whole[:, :100])
    cache = layer.new_cache(2, 150)
    assert_equal(torch.cat([layer(piece, cache=cache) for piece in x.split([70, 1, 1, 78], 1)], 1), whole)
    assert cache.length == 150 and cache.nbytes > 0


@pytest.mark.parametrize("name", sorted({*LAYERS} - {"sparse", "linear", "performer"}))  # whose autocast has no meta
def test_what_a_layer_makes_is_on_its_device(name):
    """The device meta has no numbers, and PyTorch refuses to mix it with another."""
    layer = make(name).to("meta")
    x = torch.zeros(2, 14, 16, dtype=torch.float64, device="meta")
    real = torch.ones(2, 1, 1, 14, dtype=torch.bool, device="meta")
    results = [layer(x), layer(x, mask=real), *layer(x, mask=real, return_weights=True)]
    cache = layer.new_cache(2, 14)
    results += [layer(x[:, :5], cache=cache), layer(x[:, 5:6], cache=cache), layer(x[:, 6:], mask=real, cache=cache)]
    assert {result.device.type for result in results} == {"meta"}
    with pytest.raises(ValueError, match="devices differ: mask cpu"):
        layer(x, mask=torch.ones(2, 1, 1, 14, dtype=torch.bool))


def test_what_options_leave_out_is_as_the_table_says():
    build = attncourse.build
    assert build("sliding_window", 24, 2).window == 64
    assert build("sparse", 24, 2).pattern == (Window(64), Strided(64))
    for n_heads in (1, 2, 3):
        assert build("performer", 24, n_heads).projection.shape[-2] == 2 * 24 // n_heads
    for n_heads, n_kv_heads in ((3, 1), (8, 2), (12, 3), (20, 5)):
        assert build("gqa", 2 * n_heads, n_heads).n_kv_heads == n_kv_heads
    for n_heads, head_dim in ((1, 40), (2, 20)):
        cache = build("mla", 40, n_heads).new_cache(1, 1)
        assert cache.value.shape[-1] == 10 and cache.key.shape[-1] == 10 + head_dim // 2
        assert build("mla", 40, n_heads).o_proj.weight.shape == (40, n_heads * head_dim)


def test_options_reach_the_class():
    layer = attncourse.build("multi_head", 12, 3, rotary=RotaryEmbedding(4), bias=True)
    assert isinstance(layer, MultiHeadAttention)
    assert layer.rotary.dim == 4 and layer.q_proj.bias is not None and layer.causal


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="name='multihead', but it must be one of multi_head"):
        attncourse.build("multihead", 12, 3)
    with pytest.raises(ValueError, match="build makes causal layers"):
        attncourse.build("multi_head", 12, 3, causal=False)
    with pytest.raises(ValueError, match="linear has no option alibi; it has feature_map, causal, rotary, bias"):
        attncourse.build("linear", 12, 3, alibi=True)
    with pytest.raises(ValueError, match="linear has no option alibi, nothing, window; it has feature_map"):
        attncourse.build("linear", 12, 3, window=3, alibi=True, nothing=0)
    with pytest.raises(ValueError, match="n_heads=0, but it must be at least 1"):
        attncourse.build("multi_head", 12, 0)
    with pytest.raises(ValueError, match="d_model=100 is not divisible by n_heads=12"):
        attncourse.build("multi_head", 100, 12)
