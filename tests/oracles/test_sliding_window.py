"""Sliding-window attention against Hugging Face's Mistral: grouped heads, rotary positions, its own mask and cache.

Mistral's weights load strictly. Its mask is made by transformers (`create_sliding_window_causal_mask`), so that the
window's convention is compared as well. Outputs, weights, gradients of inputs and parameters: 1e-5 in float32; 1e-6 in
float64, since it computes cosines and the softmax in float32.
"""

import pytest
import torch
from transformers import DynamicCache, MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

from attncourse.positions import RotaryEmbedding
from attncourse.sliding_window import SlidingWindowAttention
from tests.oracles.compare import (
    HUGGING_FACE,
    as_list,
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

pytestmark = pytest.mark.oracle(library="transformers", theirs="MistralAttention", chapter="08_sliding_window")


def mistral(H, G, D, window, device, dtype):
    config = MistralConfig(
        hidden_size=H * D,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        num_hidden_layers=1,
        sliding_window=window,
        attn_implementation="eager",
    )
    rotary = RotaryEmbedding(D, MistralRotaryEmbedding(config).config.rope_parameters["rope_theta"])
    ours = SlidingWindowAttention(H * D, H, window=window, n_kv_heads=G, rotary=rotary).to(device, dtype)
    theirs = filled(MistralAttention(config, layer_idx=0), device, dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return config, ours, theirs, MistralRotaryEmbedding(config).to(device)


def their_pattern(config, x, real, cache=None):
    """What transformers lets each query see, (B, 1, T, S)."""
    start = 0 if cache is None else cache.get_seq_length()
    places = torch.arange(start, start + x.shape[1], device=x.device)[None]
    mask = create_sliding_window_causal_mask(
        config=config, inputs_embeds=x, attention_mask=real, past_key_values=cache, position_ids=places
    )
    return (mask == 0).expand(x.shape[0], 1, *mask.shape[2:])


@pytest.mark.oracle(
    mechanism="sliding_window", module="sliding_window", what="its own mask, shared heads; whole, left-padded"
)
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize(
    ("B", "T", "H", "G", "D", "window"),
    [(2, 11, 4, 2, 6, 3), (3, 40, 3, 3, 4, 17), (2, 7, 6, 1, 2, 7), (1, 150, 4, 2, 2, 130)],
)
def test_it_equals_mistral(B, T, H, G, D, window, padded, return_weights, dtype, device):
    config, ours, theirs, rotary = mistral(H, G, D, window, device, dtype)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    real = real_tokens(B, T, device, left=True) if padded else torch.ones(B, T, dtype=torch.bool, device=device)
    pattern = their_pattern(config, x, real)
    expected = list(theirs(x, rotary(x, torch.arange(T, device=device)[None]), forbidding(pattern, dtype)))
    mask = real[:, None, None] if padded else None
    actual = as_list(ours(x, mask=mask, return_weights=return_weights), return_weights)
    seen = pattern.any(-1)[:, 0, :, None] & real[..., None]  # (B, T, 1): what a padded query sees is not defined there
    expected[0], actual[0] = expected[0] * seen, actual[0] * seen
    if return_weights:
        expected[1], actual[1] = (weights * seen[:, None] for weights in (expected[1], actual[1]))
    compare(ours, theirs, state, [x], actual, expected[: len(actual)], HUGGING_FACE[dtype])


@pytest.mark.oracle(
    mechanism="rolling_cache",
    module="kv_cache",
    what="14 tokens cut in four ways, three windows, left-padded; outputs, and the stored keys and values",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize("chunks", [(1,) * 14, (5, 1, 1, 4, 3), (2, 12), (9, 1, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("window", [2, 4, 6])
def test_a_rolling_cache_equals_mistral_with_its_cache(window, chunks, dtype, device):
    """Theirs keeps W - 1 entries, since a new token brings itself; ours keeps W, and the last W - 1 are the same."""
    B, H, G, D = 2, 4, 2, 4
    config, ours, theirs, rotary = mistral(H, G, D, window, device, dtype)
    x = sequence(B, 14, H * D, device=device, dtype=dtype).detach()
    real = real_tokens(B, 14, device, left=True)
    cache, their_cache, start = ours.new_cache(B, 14), DynamicCache(config=config), 0
    for length in chunks:
        end = start + length
        piece, positions = x[:, start:end], rotary(x, torch.arange(start, end, device=device)[None])
        pattern = their_pattern(config, piece, real[:, :end], their_cache)
        expected, _ = theirs(piece, positions, forbidding(pattern, dtype), past_key_values=their_cache)
        actual = ours(piece, mask=real[:, None, None, :end], cache=cache)
        seen = pattern.any(-1)[:, 0, :, None] & real[:, start:end, None]
        close(actual * seen, expected * seen, HUGGING_FACE[dtype], f"tokens {start} to {end}")
        kept = torch.arange(max(0, end - window + 1), end, device=device)
        close(cache.key[:, :, kept % window], their_cache.layers[0].keys, HUGGING_FACE[dtype], "stored keys")
        close(cache.value[:, :, kept % window], their_cache.layers[0].values, HUGGING_FACE[dtype], "stored values")
        start = end
