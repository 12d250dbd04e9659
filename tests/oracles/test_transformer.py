"""Self-, cross-, causal and multi-head attention against production layers, with copied weights.

PyTorch's `nn.MultiheadAttention` (1e-5 in float32, 1e-12 in float64, largest difference), and from transformers Llama
(rotary, halves; with and without its cache; its weights load strictly), GPT-J (rotary, interleaved), BLOOM and MPT
(ALiBi). Those compute cosines and the softmax in float32 whatever the input, so float64 agrees to 1e-6. Outputs,
weights, and the gradients of inputs and parameters.
"""

import pytest
import torch
from torch import nn
from transformers import BloomConfig, DynamicCache, GPTJConfig, LlamaConfig, MptConfig
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from attncourse.causal import CausalSelfAttention
from attncourse.cross_attention import CrossAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding
from attncourse.self_attention import SelfAttention
from tests.oracles.compare import (
    HUGGING_FACE,
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
from tests.oracles.weights import from_bloom, from_gptj, from_mpt, from_torch

ONE_HEAD = [
    pytest.param(kind, marks=pytest.mark.oracle(mechanism=module, chapter=f"{number}_{module}", module=module))
    for kind, number, module in (
        ("self", "03", "self_attention"),
        ("causal", "05", "causal"),
        ("cross", "04", "cross_attention"),
    )
]
with_sizes = pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 7, 3, 4), (1, 1, 2, 6), (3, 33, 4, 2), (2, 5, 1, 8)])


@pytest.mark.oracle(
    mechanism="multi_head",
    chapter="06_multi_head",
    module="multi_head",
    library="torch",
    theirs="MultiheadAttention",
    what="whole, padded, causal, both; with bias and without",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", ["whole", "padded", "causal", "causal, padded"])
@with_sizes
def test_multi_head_equals_torch(B, T, H, D, kind, bias, return_weights, dtype, device):
    theirs = filled(nn.MultiheadAttention(H * D, H, bias=bias, batch_first=True), device, dtype)
    ours = MultiHeadAttention(H * D, H, causal="causal" in kind, bias=bias).to(device, dtype)
    ours.load_state_dict(from_torch(theirs), strict=True)
    x, options, mask = sequence(B, T, H * D, device=device, dtype=dtype), {}, None
    if "padded" in kind:
        real = real_tokens(B, T, device)
        options["key_padding_mask"], mask = ~real, real[:, None, None]
    if "causal" in kind:
        options["attn_mask"] = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)  # True forbids
    expected = theirs(x, x, x, need_weights=True, average_attn_weights=False, **options)
    expected = list(expected) if return_weights else [expected[0]]
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_torch, [x], actual, expected, TORCH[dtype])


@pytest.mark.oracle(
    mechanism="multi_head",
    chapter="06_multi_head",
    module="multi_head",
    library="torch",
    theirs="MultiheadAttention",
    what="a context of another length and width: whole, padded",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("T", "S"), [(4, 7), (8, 3), (1, 6), (5, 5)])
def test_multi_head_across_equals_torch(T, S, padded, return_weights, dtype, device):
    B, H, D, d_context = 3, 3, 4, 10
    theirs = nn.MultiheadAttention(H * D, H, bias=True, batch_first=True, kdim=d_context, vdim=d_context)
    theirs = filled(theirs, device, dtype)
    ours = MultiHeadAttention(H * D, H, d_context=d_context, bias=True).to(device, dtype)
    ours.load_state_dict(from_torch(theirs), strict=True)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    context = sequence(B, S, d_context, device=device, dtype=dtype, seed=6)
    real = real_tokens(B, S, device)
    options = {"key_padding_mask": ~real} if padded else {}
    mask = real[:, None, None] if padded else None
    expected = theirs(x, context, context, need_weights=True, average_attn_weights=False, **options)
    expected = list(expected) if return_weights else [expected[0]]
    actual = as_list(ours(x, context, mask=mask, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_torch, [x, context], actual, expected, TORCH[dtype])


@pytest.mark.oracle(library="torch", theirs="MultiheadAttention", what="its layer with one head: whole, padded")
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ONE_HEAD)
@pytest.mark.parametrize(("B", "T", "S"), [(2, 6, 4), (3, 1, 5), (2, 21, 34)])
def test_one_head_equals_torch(B, T, S, kind, padded, return_weights, dtype, device):
    """The layers of one head: PyTorch's with one head, its weights (B, 1, T, S) without that axis."""
    d_model, d_context = 6, 6 if kind != "cross" else 9
    theirs = nn.MultiheadAttention(d_model, 1, bias=True, batch_first=True, kdim=d_context, vdim=d_context)
    theirs = filled(theirs, device, dtype)
    make = {"self": SelfAttention, "causal": CausalSelfAttention}.get(kind)
    ours = make(d_model, bias=True) if make else CrossAttention(d_model, d_context, bias=True)
    ours.to(device, dtype).load_state_dict(from_torch(theirs), strict=True)
    x = sequence(B, T, d_model, device=device, dtype=dtype)
    inputs = [x] if make else [x, sequence(B, S, d_context, device=device, dtype=dtype, seed=6)]
    S = inputs[-1].shape[1]
    real = real_tokens(B, S, device)
    options = {"key_padding_mask": ~real} if padded else {}
    if kind == "causal":
        options["attn_mask"] = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
    output, weights = theirs(x, inputs[-1], inputs[-1], need_weights=True, average_attn_weights=False, **options)
    expected = [output, weights[:, 0]] if return_weights else [output]
    for mask in (real[:, None], real[:, None, None]) if padded else (None,):
        actual = as_list(ours(*inputs, mask=mask, return_weights=return_weights), return_weights)
        compare(ours, theirs, from_torch, inputs, actual, expected, TORCH[dtype])


def llama(H, D, device, dtype, base=10000.0):
    config = LlamaConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        num_key_value_heads=H,
        head_dim=D,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        attn_implementation="eager",
    )
    ours = MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D, base)).to(device, dtype)
    theirs = filled(LlamaAttention(config, layer_idx=0), device, dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, LlamaRotaryEmbedding(config).to(device)


@pytest.mark.oracle(
    mechanism="rope",
    chapter="07_positions",
    module="positions",
    library="transformers",
    theirs="LlamaAttention",
    what="rotation by halves, two bases; whole, left-padded",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@with_sizes
def test_rotary_equals_llama(B, T, H, D, padded, base, return_weights, dtype, device):
    ours, theirs, rotary = llama(H, D, device, dtype, base)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    real = real_tokens(B, T, device, left=True) if padded else None
    pattern = causal_pattern(B, T, T, device, real)
    expected = list(theirs(x, rotary(x, torch.arange(T, device=device)[None]), forbidding(pattern, dtype)))
    mask = None if real is None else real[:, None, None]
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    seen = pattern.any(-1)[:, 0, :, None]  # (B, T, 1): a padded query sees nothing, which we define and Llama does not
    expected[0] = expected[0] * seen
    actual[0] = actual[0] * seen
    if return_weights:
        expected[1] = expected[1] * pattern.any(-1, keepdim=True)
    compare(ours, theirs, state, [x], actual, expected[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    mechanism="kv_cache",
    chapter="11_kv_cache",
    module="kv_cache",
    library="transformers",
    theirs="LlamaAttention",
    what="9 tokens cut in three ways, left-padded; outputs, and the stored keys and values",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 4), (3, 5, 1)], ids=str)
def test_a_cache_equals_llama_with_its_cache(chunks, dtype, device):
    B, H, D = 2, 3, 4
    ours, theirs, rotary = llama(H, D, device, dtype)
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


@pytest.mark.oracle(
    mechanism="rope",
    chapter="07_positions",
    module="positions",
    library="transformers",
    theirs="GPTJAttention",
    what="rotation of neighbours",
)
@on_devices
@in_dtypes
@on_both_paths
@with_sizes
def test_interleaved_rotary_equals_gptj(B, T, H, D, return_weights, dtype, device):
    config = GPTJConfig(n_embd=H * D, n_head=H, rotary_dim=D, n_positions=64, attn_pdrop=0.0, resid_pdrop=0.0)
    theirs = filled(GPTJAttention(config, layer_idx=0), device, dtype)
    ours = MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D, interleaved=True)).to(device, dtype)
    ours.load_state_dict(from_gptj(theirs), strict=True)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    places = torch.arange(T, device=device)[None]
    added = forbidding(causal_pattern(B, T, T, device), torch.float32)
    expected = theirs(x, attention_mask=added, position_ids=places)
    actual = as_list(ours(x, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_gptj, [x], actual, list(expected)[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    mechanism="alibi",
    chapter="07_positions",
    module="positions",
    library="transformers",
    theirs="BloomAttention",
    what="powers of two of heads, and other numbers",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 7, 4, 4), (1, 12, 6, 2), (3, 5, 1, 8), (2, 9, 3, 4)])
def test_alibi_equals_bloom(B, T, H, D, return_weights, dtype, device):
    """BLOOM adds slope · key position, which differs from -slope · distance by the same number in a whole row."""
    config = BloomConfig(hidden_size=H * D, n_head=H, hidden_dropout=0.0)
    theirs = filled(BloomAttention(config, layer_idx=0), device, dtype, spread=0.25)
    ours = MultiHeadAttention(H * D, H, causal=True, alibi=True, bias=True).to(device, dtype)
    ours.load_state_dict(from_bloom(theirs), strict=True)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    slopes = build_alibi_tensor(torch.ones(B, T, device=device), H, dtype)
    added = forbidding(causal_pattern(B, T, T, device), dtype)
    expected = theirs(x, torch.zeros_like(x), slopes, added)
    actual = as_list(ours(x, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_bloom, [x], actual, list(expected)[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    mechanism="alibi",
    chapter="07_positions",
    module="positions",
    library="transformers",
    theirs="MptAttention",
    what="powers of two of heads",
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 7, 4, 4), (3, 5, 1, 8), (2, 20, 8, 2)])
def test_alibi_equals_mpt(B, T, H, D, return_weights, dtype, device):
    """For a power of two of heads. For others MPT takes the slopes in another order than the paper and BLOOM."""
    config = MptConfig(d_model=H * D, n_heads=H, max_seq_len=32)
    theirs = filled(MptAttention(config, layer_idx=0), device, dtype)
    ours = MultiHeadAttention(H * D, H, causal=True, alibi=True).to(device, dtype)
    ours.load_state_dict(from_mpt(theirs), strict=True)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    bias = build_mpt_alibi_tensor(H, 32, device=device)
    expected = theirs(x, bias, attention_mask=~causal_pattern(B, T, T, device))
    actual = as_list(ours(x, return_weights=return_weights), return_weights)
    compare(ours, theirs, from_mpt, [x], actual, list(expected)[: len(actual)], HUGGING_FACE[dtype])
