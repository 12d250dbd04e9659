"""Grouped- and multi-query attention against production layers, with copied weights.

Hugging Face's Llama with fewer key-value heads (its weights load strictly), with and without its cache, and Falcon's
multi-query attention, whose fused projection is converted. Both compute the softmax or cosines in float32, so float64
agrees to 5e-6 (an angle of 70 radians is known to 4e-6). Outputs, weights, and the gradients of inputs and parameters.
PyTorch's `enable_gqa` holds the function.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, FalconConfig, LlamaConfig
from transformers.models.falcon.modeling_falcon import FalconAttention, FalconRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from attncourse.gqa import GroupedQueryAttention, grouped_query_attention
from attncourse.mqa import MultiQueryAttention
from attncourse.positions import RotaryEmbedding
from tests.oracles.compare import (
    TORCH,
    as_list,
    causal_pattern,
    close,
    compare,
    filled,
    forbidding,
    in_dtypes,
    on_both_paths,
    on_devices,
    real_tokens,
    sequence,
    state,
)
from tests.oracles.weights import from_falcon

pytestmark = pytest.mark.oracle(library="transformers")

HUGGING_FACE = {torch.float32: 1e-5, torch.float64: 5e-6}
SIZES = [(2, 7, 4, 2, 4), (1, 1, 6, 3, 2), (3, 33, 8, 1, 2), (2, 40, 4, 4, 6), (2, 70, 6, 2, 2)]  # B, T, H, G, D
MQA = pytest.mark.oracle(mechanism="mqa", chapter="12_mqa", module="mqa")
GQA = pytest.mark.oracle(mechanism="gqa", chapter="13_gqa", module="gqa")
with_sizes = pytest.mark.parametrize(
    ("B", "T", "H", "G", "D"), [pytest.param(*sizes, marks=MQA if sizes[3] == 1 else GQA) for sizes in SIZES]
)


def llama(H, G, D, device, dtype, bias=False):
    config = LlamaConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        attention_bias=bias,
        attn_implementation="eager",
    )
    rotary = RotaryEmbedding(D, config.rope_parameters["rope_theta"])
    if G == 1:
        ours = MultiQueryAttention(H * D, H, rotary=rotary, bias=bias)
    else:
        ours = GroupedQueryAttention(H * D, H, G, rotary=rotary, bias=bias)
    theirs = filled(LlamaAttention(config, layer_idx=0), device, dtype)
    ours.to(device, dtype).load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, LlamaRotaryEmbedding(config).to(device)


@pytest.mark.oracle(theirs="LlamaAttention", what="whole, left-padded; with bias and without")
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@with_sizes
def test_it_equals_llama(B, T, H, G, D, padded, bias, return_weights, dtype, device):
    ours, theirs, rotary = llama(H, G, D, device, dtype, bias)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    real = real_tokens(B, T, device, left=True) if padded else None
    pattern = causal_pattern(B, T, T, device, real)
    expected = list(theirs(x, rotary(x, torch.arange(T, device=device)[None]), forbidding(pattern, dtype)))
    mask = None if real is None else real[:, None, None]
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    seen = pattern.any(-1)[:, 0, :, None]  # (B, T, 1): a padded query sees nothing, which we define and Llama does not
    expected[0], actual[0] = expected[0] * seen, actual[0] * seen
    if return_weights:
        expected[1] = expected[1] * pattern.any(-1, keepdim=True)
    compare(ours, theirs, state, [x], actual, expected[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    theirs="LlamaAttention", what="9 tokens cut in three ways, left-padded; outputs, and the stored keys and values"
)
@on_devices
@in_dtypes
@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 4), (3, 5, 1)], ids=str)
@pytest.mark.parametrize(("H", "G"), [pytest.param(4, 2, marks=GQA), pytest.param(6, 1, marks=MQA)])
def test_a_cache_equals_llama_with_its_cache(H, G, chunks, dtype, device):
    B, D = 2, 4
    ours, theirs, rotary = llama(H, G, D, device, dtype)
    x = sequence(B, sum(chunks), H * D, device=device, dtype=dtype).detach()
    real = real_tokens(B, sum(chunks), device, left=True)
    cache, their_cache, start = ours.new_cache(B, sum(chunks)), DynamicCache(), 0
    for length in chunks:
        end = start + length
        positions = rotary(x, torch.arange(start, end, device=device)[None])
        pattern = causal_pattern(B, length, end, device, real[:, :end])
        piece = x[:, start:end]
        expected, _ = theirs(piece, positions, forbidding(pattern, dtype), past_key_values=their_cache)
        actual = ours(piece, mask=real[:, None, None, :end], cache=cache)
        seen = pattern.any(-1)[:, 0, :, None]
        close(actual * seen, expected * seen, HUGGING_FACE[dtype], f"tokens {start} to {end}")
        close(cache.key[:, :, :end], their_cache.layers[0].keys, HUGGING_FACE[dtype], "stored keys")
        close(cache.value[:, :, :end], their_cache.layers[0].values, HUGGING_FACE[dtype], "stored values")
        start = end
    theirs_stored = sum(
        t.untyped_storage().nbytes() for t in (their_cache.layers[0].keys, their_cache.layers[0].values)
    )
    assert cache.nbytes == theirs_stored  # both hold G heads: the repetition is not stored


@pytest.mark.oracle(
    mechanism="mqa", chapter="12_mqa", module="mqa", theirs="FalconAttention", what="with bias and without"
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 7, 3, 4), (1, 1, 2, 6), (3, 33, 4, 2), (2, 70, 5, 2)])
def test_multi_query_equals_falcon(B, T, H, D, bias, return_weights, dtype, device):
    config = FalconConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        multi_query=True,
        new_decoder_architecture=False,
        alibi=False,
        bias=bias,
        attention_dropout=0.0,
        attn_implementation="eager",
    )
    theirs = filled(FalconAttention(config, layer_idx=0), device, dtype)
    rotary = FalconRotaryEmbedding(config).to(device)
    base = config.rope_parameters["rope_theta"]
    ours = MultiQueryAttention(H * D, H, rotary=RotaryEmbedding(D, base), bias=bias).to(device, dtype)
    ours.load_state_dict(from_falcon(theirs), strict=True)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    positions = rotary(x, torch.arange(T, device=device)[None])
    added = forbidding(causal_pattern(B, T, T, device), dtype)
    expected = list(theirs(x, None, added, position_embeddings=positions, output_attentions=True))
    actual = as_list(ours(x, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_falcon, [x], actual, expected[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    mechanism="gqa",
    chapter="13_gqa",
    module="gqa",
    library="torch",
    theirs="scaled_dot_product_attention",
    what="its `enable_gqa`; causal and not, T ≤ S",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize(("T", "S"), [(1, 9), (5, 9), (40, 64), (70, 70)])
@pytest.mark.parametrize(("H", "G"), [(6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_function_equals_torchs_with_enable_gqa(causal, H, G, T, S, dtype, device):
    query, key, value = (
        sequence(2, heads, n, D, device=device, dtype=dtype, seed=heads + D)
        for heads, n, D in ((H, T, 4), (G, S, 4), (G, S, 4))
    )
    pattern = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T) if causal else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=pattern, enable_gqa=True)
    actual = grouped_query_attention(query, key, value, causal=causal)
    close(actual, expected, TORCH[dtype])
    wanted = torch.autograd.grad(expected.square().sum(), [query, key, value])
    for name, got, want in zip(
        "qkv", torch.autograd.grad(actual.square().sum(), [query, key, value]), wanted, strict=True
    ):
        close(got, want, 10 * TORCH[dtype], f"gradient of {name}", gradient=True)
