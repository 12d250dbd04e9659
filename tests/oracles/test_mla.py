"""Multi-head latent attention against DeepSeek V2 and V3 of transformers, whose weights load strictly.

Both layouts of the rotation, queries with and without compression, padding, and decoding from a latent cache, which
theirs expands at every step. They compute cosines, norms and the softmax in float32, so float64 agrees to 5e-6; float32
to 2e-5. Outputs, weights, and the gradients of inputs and parameters.
"""

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from attncourse.mla import MultiHeadLatentAttention, absorbed_attention
from attncourse.multi_head import merge_heads
from tests.oracles.compare import (
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

pytestmark = pytest.mark.oracle(mechanism="mla", chapter="14_mla", module="mla", library="transformers")

TOLERANCE = {torch.float32: 2e-5, torch.float64: 5e-6}
SIZES = [(4, 12, 6, 4, 8), (3, 8, 4, 6, 4), (2, 20, 10, 2, 3), (6, 6, 4, 2, 9)]  # H, C, N, R, V; V2 takes even N alone

in_kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.oracle(theirs=f"Deepseek{kind[:2]}Attention"))
        for kind in ("V2", "V3", "V3, halves")
    ],
)
with_sizes = pytest.mark.parametrize(("H", "C", "N", "R", "V"), SIZES)
compressed = pytest.mark.parametrize("q_lora_rank", [None, 7], ids=["whole queries", "compressed queries"])


def deepseek(kind, sizes, q_lora_rank, device, dtype, bias=False, **options):
    (H, C, N, R, V), d_model = sizes, 12
    make_config, make, make_rotary = {
        "V2": (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding),
        "V3": (DeepseekV3Config, DeepseekV3Attention, DeepseekV3RotaryEmbedding),
    }[kind[:2]]
    config = make_config(
        hidden_size=d_model,
        num_attention_heads=H,
        num_key_value_heads=H,
        kv_lora_rank=C,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=N,
        qk_rope_head_dim=R,
        v_head_dim=V,
        head_dim=R,
        attention_bias=bias,
        attn_implementation="eager",
        **({} if kind == "V2" else {"rope_interleave": kind == "V3"}),
    )
    theirs = filled(make(config, layer_idx=0), device, dtype, spread=0.5)
    ours = MultiHeadLatentAttention(
        d_model,
        H,
        kv_lora_rank=C,
        qk_nope_head_dim=N,
        qk_rope_head_dim=R,
        v_head_dim=V,
        q_lora_rank=q_lora_rank,
        rope_interleaved=kind != "V3, halves",
        rotary_base=config.rope_parameters["rope_theta"],
        bias=bias,
        **options,
    )
    ours.to(device, dtype).load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, make_rotary(config).to(device)


def call(theirs, x, rotary, start, pattern, cache=None):
    places = torch.arange(start, start + x.shape[1], device=x.device)[None]
    return theirs(
        x,
        attention_mask=forbidding(pattern, x.dtype),
        past_key_values=cache,
        position_embeddings=rotary(x, places),
    )


@pytest.mark.oracle(what="queries whole and compressed; whole, left-padded with bias")
@on_devices
@in_dtypes
@on_both_paths
@compressed
@in_kinds
@with_sizes
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
def test_it_equals_deepseek(padded, H, C, N, R, V, kind, q_lora_rank, return_weights, dtype, device):
    B, T = 2, 11
    ours, theirs, rotary = deepseek(kind, (H, C, N, R, V), q_lora_rank, device, dtype, bias=padded)
    x = sequence(B, T, 12, device=device, dtype=dtype)
    real = real_tokens(B, T, device, left=True) if padded else None
    pattern = causal_pattern(B, T, T, device, real)
    expected = list(call(theirs, x, rotary, 0, pattern))
    mask = None if real is None else real[:, None, None]
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    seen = pattern.any(-1)[:, 0, :, None]
    expected[0], actual[0] = expected[0] * seen, actual[0] * seen
    if return_weights:
        expected[1] = expected[1] * pattern.any(-1, keepdim=True)
    compare(ours, theirs, state, [x], actual, expected[: len(actual)], TOLERANCE[dtype])


@pytest.mark.oracle(
    what="9 tokens cut in three ways, left-padded, absorbed and naive; outputs, and the stored latents and keys"
)
@on_devices
@in_dtypes
@compressed
@in_kinds
@pytest.mark.parametrize("decoding", ["absorbed", "naive"])
@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 4), (3, 5, 1)], ids=str)
def test_a_cache_equals_deepseek_with_its_cache(chunks, decoding, kind, q_lora_rank, dtype, device):
    """Their V3 turns adjacent pairs and stores them as halves: its rotated keys are ours in another order."""
    B, (H, C, N, R, V) = 2, (4, 12, 6, 4, 8)
    ours, theirs, rotary = deepseek(kind, (H, C, N, R, V), q_lora_rank, device, dtype, decoding=decoding)
    x = sequence(B, sum(chunks), 12, device=device, dtype=dtype).detach()
    real = real_tokens(B, sum(chunks), device, left=True)
    cache, their_cache, start = ours.new_cache(B, sum(chunks)), DynamicCache(), 0
    for length in chunks:
        end = start + length
        piece = x[:, start:end]
        pattern = causal_pattern(B, length, end, device, real[:, :end])
        expected, _ = call(theirs, piece, rotary, start, pattern, their_cache)
        actual = ours(piece, mask=real[:, None, None, :end], cache=cache)
        seen = pattern.any(-1)[:, 0, :, None]
        close(actual * seen, expected * seen, TOLERANCE[dtype], f"tokens {start} to {end}")
        start = end
    latent, key = cache.key.split([C, R], -1)
    order = [0, 2, 1, 3] if kind == "V3" else [0, 1, 2, 3]
    close(latent, their_cache.layers[0].keys, TOLERANCE[dtype], "stored latents")
    close(key[..., order], their_cache.layers[0].values, TOLERANCE[dtype], "stored keys")
    stored = sum(t.untyped_storage().nbytes() for t in (their_cache.layers[0].keys, their_cache.layers[0].values))
    assert cache.nbytes == stored == B * sum(chunks) * (C + R) * x.element_size()


@pytest.mark.oracle(what="the absorbed form over a cache, against its pass over the whole")
@on_devices
@in_dtypes
@compressed
@in_kinds
def test_absorbed_gradients_equal_deepseeks(kind, q_lora_rank, dtype, device):
    """The absorbed form over what a cache held, with the gradients of inputs and parameters: theirs in one pass."""
    ours, theirs, rotary = deepseek(kind, (4, 12, 6, 4, 8), q_lora_rank, device, dtype)
    x = sequence(2, 6, 12, device=device, dtype=dtype)
    expected = call(theirs, x, rotary, 0, causal_pattern(2, 6, 6, device))[0]
    positions = torch.arange(6, device=device)
    query, entries = ours._queries(x, positions), ours._entries(x, positions)
    attended = absorbed_attention(query, entries, *ours.up_projections(), scale=ours.scale)
    compare(ours, theirs, state, [x], [ours.o_proj(merge_heads(attended))], [expected], TOLERANCE[dtype])
