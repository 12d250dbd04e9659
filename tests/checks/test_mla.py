"""The references of chapter 14, put together, are what the course's own layer computes."""

import torch

from attncourse.checks.mla import absorbed_scores, absorbed_values, cached_numbers, split_up_projection
from attncourse.masks import causal_mask
from attncourse.mla import MultiHeadLatentAttention


def layer():
    torch.manual_seed(3)
    sizes = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
    return MultiHeadLatentAttention(16, 3, **sizes).double()


def test_scores_and_values_of_the_exercises_are_those_of_the_layer():
    attention, x = layer(), torch.randn(2, 9, 16, dtype=torch.float64)
    cache = attention.new_cache(2, 9)
    with torch.no_grad():
        attention(x[:, :7], cache=cache)
        output, weights = attention(x[:, 7:], cache=cache, return_weights=True)  # two queries, nine entries

        query = attention.q_proj(x[:, 7:]).unflatten(-1, (3, 10)).transpose(1, 2)  # (B, H, T, N + R)
        latent, key_rope = attention.kv_a_proj_with_mqa(x).split([12, 4], -1)
        latent = attention.kv_a_layernorm(latent)
        up_key, up_value = split_up_projection(attention.kv_b_proj.weight, 3, 6)
        scores = absorbed_scores(query[..., :6], query[..., 6:], latent, key_rope, up_key)
        ours = scores.masked_fill(~causal_mask(2, 9), float("-inf")).softmax(-1)
        torch.testing.assert_close(ours, weights)
        heads = absorbed_values(ours, latent, up_value)
        torch.testing.assert_close(attention.o_proj(heads.transpose(1, 2).flatten(2)), output)


def test_the_numbers_counted_are_those_that_a_cache_has_room_for():
    cache = layer().float().new_cache(1, 10)
    shape = {"n_layers": 1, "n_heads": 3, "q_lora_rank": 8, "kv_lora_rank": 12, "qk_nope_head_dim": 6}
    shape |= {"qk_rope_head_dim": 4, "v_head_dim": 5}
    numbers, kv_heads = cached_numbers(**{name: torch.tensor([n]) for name, n in shape.items()})
    assert numbers.tolist() == [cache.nbytes // (10 * 4)] == [16]
    torch.testing.assert_close(kv_heads, torch.tensor([1.6]))
