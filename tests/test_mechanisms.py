"""`build` makes a causal layer of every kind, and says what it cannot make."""

import pytest
import torch

import attncourse
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding
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
    with pytest.raises(ValueError, match="d_model=100 is not divisible by n_heads=12"):
        attncourse.build("multi_head", 100, 12)
