"""What latent attention promises: absorbed equals expanded, the cache holds C + R numbers, prefill stays fused."""

import pytest
import torch

from attncourse.attention import scaled_dot_product_attention
from attncourse.kv_cache import KVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.masks import causal_mask
from attncourse.mla import LatentCache, MultiHeadLatentAttention, absorbed_attention, expanded_attention
from attncourse.positions import RotaryEmbedding, apply_rotary
from tests.test_bahdanau import assert_equal, normal
from tests.test_causal import influence

B, H, C, N, R, V, D_MODEL = 2, 3, 10, 5, 4, 7, 12
SIZES = {"kv_lora_rank": C, "qk_nope_head_dim": N, "qk_rope_head_dim": R, "v_head_dim": V}


def make(**options):
    torch.manual_seed(1)
    layer = MultiHeadLatentAttention(D_MODEL, H, **{**SIZES, **options}).double()
    with torch.no_grad():
        for norm in (m for m in layer.modules() if isinstance(m, torch.nn.RMSNorm)):
            norm.weight.copy_(normal(*norm.weight.shape, seed=3))
    return layer


def parts(T, S, Dv=V):
    return (
        normal(B, H, T, N + R, seed=1),
        normal(B, 1, S, C + R, seed=2),
        normal(H, N, C, seed=3),
        normal(H, Dv, C, seed=4),
    )


def by_definition(query, entries, up_key, up_value, mask, causal):
    """Head by head: keys and values made of every latent, then attention."""
    latent, key_rope = entries[:, 0, :, :C], entries[:, 0, :, C:]
    T, S = query.shape[2], latent.shape[1]
    pattern = causal_mask(T, S) if causal else torch.ones(T, S, dtype=torch.bool)
    pattern = pattern if mask is None else pattern & mask
    pattern = pattern.expand(B, H, T, S)
    outputs = []
    for h in range(H):
        key, value = torch.cat([latent @ up_key[h].T, key_rope], -1), latent @ up_value[h].T
        outputs.append(scaled_dot_product_attention(query[:, h], key, value, pattern[:, h], scale=0.3))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("attend", [expanded_attention, absorbed_attention])
@pytest.mark.parametrize("masked", ["none", "padding", "by head", "nothing"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 8), (4, 8), (6, 6), (3, 20)])
@pytest.mark.parametrize("Dv", [V, 20, 2])
def test_both_forms_are_attention_over_projected_latents(Dv, T, S, causal, masked, attend):
    inputs = parts(T, S, Dv)
    mask = {
        "none": None,
        "padding": normal(B, 1, 1, S, seed=6) > -0.5,
        "by head": normal(B, H, T, S, seed=6) > -0.5,
        "nothing": torch.zeros(B, 1, T, S, dtype=torch.bool),
    }[masked]
    expected = by_definition(*inputs, mask, causal)
    output = attend(*inputs, mask, scale=0.3, causal=causal)
    assert_equal(output, expected, 1e-11)
    weighted, weights = attend(*inputs, mask, scale=0.3, causal=causal, return_weights=True)
    assert_equal(weighted, expected, 1e-11)
    assert weights.shape == (B, H, T, S)
    wanted = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True)
    got = torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        assert_equal(a, torch.zeros_like(a) if b is None else b, 1e-9)


@pytest.mark.parametrize("q_lora_rank", [None, 6])
@pytest.mark.parametrize("interleaved", [True, False])
def test_absorbed_and_naive_decoding_are_equal(interleaved, q_lora_rank):
    x, outputs = normal(B, 9, D_MODEL, seed=9).detach(), []
    for decoding in ("absorbed", "naive"):
        layer = make(decoding=decoding, q_lora_rank=q_lora_rank, rope_interleaved=interleaved)
        cache = layer.new_cache(B, 9)
        outputs.append(torch.cat([layer(piece, cache=cache) for piece in x.split([3, 1, 1, 4], 1)], 1))
        assert_equal(outputs[-1], layer(x), 1e-11)
    assert_equal(*outputs, 1e-11)


def test_an_entry_is_the_normed_latent_and_the_turned_key():
    layer, x = make(), normal(B, 6, D_MODEL, seed=9).detach()
    cache = layer.new_cache(B, 8)
    layer(x[:, :2], cache=cache)
    layer(x[:, 2:], cache=cache)
    raw = x @ layer.kv_a_proj_with_mqa.weight.T
    latent = raw[..., :C] / (raw[..., :C].square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.kv_a_layernorm.weight
    key = apply_rotary(raw[..., C:], torch.arange(6), RotaryEmbedding(R, interleaved=True))
    assert_equal(cache.key[:, 0, :6], torch.cat([latent, key], -1).detach(), 1e-12)
    assert cache.value.data_ptr() == cache.key.data_ptr() and cache.value.shape == (B, 1, 8, C)


def test_the_cache_holds_a_latent_and_one_key_and_nothing_else():
    layer = make()
    assert layer.new_cache(B, 9).nbytes == B * 9 * (C + R) * 8
    assert layer.bfloat16().new_cache(B, 9).nbytes == B * 9 * (C + R) * 2


def test_a_step_expands_nothing_and_the_naive_one_does():
    """Bytes of the largest tensor that one step makes: the counts tell the two apart, so they can fail."""
    sizes = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    S, H = 500, 8
    largest = {}
    for decoding in ("absorbed", "naive"):
        layer = MultiHeadLatentAttention(64, H, **sizes, decoding=decoding)
        cache = layer.new_cache(1, S + 9)
        with torch.no_grad():
            layer(torch.zeros(1, S, 64), cache=cache)
            _, largest[decoding] = allocated_bytes(
                lambda layer=layer, cache=cache: layer(torch.zeros(1, 1, 64), cache=cache)
            )
    assert largest["absorbed"] <= 4 * H * (S + 9)  # the scores
    assert largest["naive"] >= 4 * H * S * 32


def test_a_prefill_makes_no_scores():
    """Values are padded to the keys' width, so the fused kernel runs; with weights asked for, T×T is made."""
    sizes = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    layer, x, T = MultiHeadLatentAttention(32, 4, **sizes), torch.zeros(1, 512, 32), 512
    with torch.no_grad():
        assert allocated_bytes(lambda: layer(x))[1] < 4 * 4 * T * T / 4
        assert allocated_bytes(lambda: layer(x, cache=layer.new_cache(1, T)))[1] < 4 * 4 * T * T / 4
        assert allocated_bytes(lambda: layer(x, return_weights=True))[1] >= 4 * 4 * T * T


@pytest.mark.parametrize(("T", "absorbs"), [(1, True), (170, True), (171, False)])
def test_many_queries_over_a_past_expand_instead(T, absorbs):
    """DeepSeek-V3's sizes: absorbing costs 768 numbers more a score and query, expanding 512 · 256 an entry."""
    with torch.device("meta"):
        layer = MultiHeadLatentAttention(
            8, 1, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
        )
    assert layer._absorbs(T) is absorbs
    layer.decoding = "naive"
    assert not layer._absorbs(T)


def test_the_scale_counts_both_parts_of_a_key():
    assert make().scale == (N + R) ** -0.5
    layer = make(scale=0.5)
    x = normal(B, 5, D_MODEL, seed=9)
    _, weights = layer(x, return_weights=True)
    _, halved = make(scale=0.25)(x, return_weights=True)
    ratio = (weights[..., -1, 1:] / weights[..., -1, :1]).log() / (halved[..., -1, 1:] / halved[..., -1, :1]).log()
    assert_equal(ratio, torch.full_like(ratio, 2.0), 1e-8)


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_flows_back_from_the_future(causal):
    found = influence(make(causal=causal), normal(B, 7, D_MODEL, seed=9))
    past = torch.ones(7, 7, dtype=torch.bool).tril() | (not causal)
    assert found[~past].eq(0).all() and found[past].min() > 1e-6


def test_a_cache_is_where_the_weights_are():
    with torch.device("meta"):
        layer = MultiHeadLatentAttention(D_MODEL, H, **SIZES)
    assert layer.new_cache(1, 3).key.device.type == "meta"


@pytest.mark.parametrize("decoding", ["absorbed", "naive"])
def test_no_new_tokens(decoding):
    layer, x = make(decoding=decoding), normal(B, 3, D_MODEL, seed=9).detach()
    cache = layer.new_cache(B, 9)
    layer(x, cache=cache)
    output, weights = layer(x[:, :0], cache=cache, return_weights=True)
    assert output.shape == (B, 0, D_MODEL) and weights.shape == (B, H, 0, 3) and cache.length == 3


@pytest.mark.parametrize("interleaved", [True, False])
def test_the_rotation_has_the_given_base_and_layout(interleaved):
    layer, x = make(rotary_base=50.0, rope_interleaved=interleaved), normal(B, 6, D_MODEL, seed=9).detach()
    cache = layer.new_cache(B, 6)
    layer(x, cache=cache)
    raw = x @ layer.kv_a_proj_with_mqa.weight.T
    key = apply_rotary(raw[..., C:], torch.arange(6), RotaryEmbedding(R, 50.0, interleaved))
    assert_equal(cache.key[:, 0, :, C:], key.detach(), 1e-12)


def test_norms_and_biases():
    layer = make(q_lora_rank=6, bias=True)
    assert [m.eps for m in layer.modules() if isinstance(m, torch.nn.RMSNorm)] == [1e-6, 1e-6]
    biases = {name for name, _ in layer.named_parameters() if name.endswith("bias")}
    assert biases == {"q_a_proj.bias", "kv_a_proj_with_mqa.bias", "o_proj.bias"}


def test_a_first_call_expands():
    x = normal(B, 4, D_MODEL, seed=9).detach()
    assert torch.equal(make()(x), make(decoding="naive")(x))


@pytest.mark.parametrize("attend", [expanded_attention, absorbed_attention])
def test_each_sequence_is_attended_by_itself(attend):
    """Also where there are as many of them as a padded value has numbers."""
    query, entries = normal(20, H, 3, N + R, seed=1), normal(20, 1, 5, C + R, seed=2)
    *_, up_key, up_value = parts(3, 5, 20)
    alone = [attend(query[i : i + 1], entries[i : i + 1], up_key, up_value, scale=0.3) for i in range(20)]
    assert_equal(attend(query, entries, up_key, up_value, scale=0.3), torch.cat(alone), 1e-11)


def test_under_autocast_entries_come_back_as_narrow_as_they_came():
    cache, narrow = LatentCache(B, 9, C, R), normal(B, 1, 5, C + R, seed=2).detach().bfloat16()
    cache.append(narrow[:, :, :3].float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entries = cache.append(narrow[:, :, 3:])
    assert torch.equal(entries, narrow) and entries.dtype == torch.bfloat16 and cache.key.dtype == torch.float32


@pytest.mark.parametrize("name", ["batch_size", "max_length", "kv_lora_rank", "qk_rope_head_dim"])
def test_each_size_of_a_cache_must_be_at_least_one(name):
    sizes = {"batch_size": B, "max_length": 9, "kv_lora_rank": C, "qk_rope_head_dim": R}
    with pytest.raises(ValueError, match=f"{name}=0, but it must be at least 1"):
        LatentCache(**{**sizes, name: 0})


@pytest.mark.parametrize("attend", [expanded_attention, absorbed_attention])
def test_parts_that_do_not_fit_are_refused(attend):
    query, entries, up_key, up_value = parts(3, 3)
    with pytest.raises(ValueError, match=r"query turns 3 numbers, entries 4: query \(2, 3, 3, 8\)"):
        attend(query[..., :-1], entries, up_key, up_value, scale=1.0)
    with pytest.raises(ValueError, match=r"they must be \(B, H, T, N \+ R\)"):
        attend(query[:, :2], entries, up_key, up_value, scale=1.0)
    for wrong in (entries[:, 0], entries.expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match=r"they must be \(B, H, T, N \+ R\)"):
            attend(query, wrong, up_key, up_value, scale=1.0)
    with pytest.raises(ValueError, match=r"they must be \(B, H, T, N \+ R\)"):
        attend(query[:, :, 0], entries, up_key, up_value, scale=1.0)


def test_what_cannot_be_is_refused():
    for name, message in {
        "kv_lora_rank": "kv_lora_rank=0, but it must be at least 1",
        "v_head_dim": "v_head_dim=0, but it must be at least 1",
        "qk_rope_head_dim": "qk_rope_head_dim=0, but numbers are turned in pairs",
        "q_lora_rank": "q_lora_rank=0, but it must be at least 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            make(**{name: 0})
    with pytest.raises(ValueError, match="qk_rope_head_dim=5, but numbers are turned in pairs: it must be even"):
        make(qk_rope_head_dim=5)
    with pytest.raises(ValueError, match="decoding='fast', but it must be absorbed or naive"):
        make(decoding="fast")
    layer = make()
    with pytest.raises(TypeError, match="cache is a KVCache, but this layer keeps a LatentCache"):
        layer(normal(B, 1, D_MODEL, seed=1), cache=KVCache(B, 1, 9, C + R, dtype=torch.float64))
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        make(causal=False)(normal(B, 1, D_MODEL, seed=1), cache=layer.new_cache(B, 9))
    with pytest.raises(ValueError, match=r"key has shape \(2, 1, 1, 9\), but the cache takes \(2, 1, 1, 14\)"):
        LatentCache(B, 9, C, R, dtype=torch.float64).append(torch.zeros(B, 1, 1, 9, dtype=torch.float64))
