"""What grouped-query attention promises: two special cases, nothing repeated, and heads that convert."""

import pytest
import torch
import torch.nn.functional as F

from attncourse.attention import scaled_dot_product_attention
from attncourse.gqa import GroupedQueryAttention, group_heads, grouped_query_attention
from attncourse.lab.measure import allocated_bytes
from attncourse.masks import causal_mask
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding
from tests.test_bahdanau import assert_equal, normal
from tests.test_causal import influence

B, H, D = 2, 6, 4


def heads(T, S, G=2, Dv=5):
    return normal(B, H, T, D, seed=1), normal(B, G, S, D, seed=2), normal(B, G, S, Dv, seed=3)


def repeated(query, key, value, mask, causal):
    """The definition: every query head with a copy of its key head."""
    n = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(n, 1) for x in (key, value))
    T, S = query.shape[2], key.shape[2]
    pattern = causal_mask(T, S) if causal and T else torch.ones(T, S, dtype=torch.bool)
    return scaled_dot_product_attention(
        query, key, value, pattern if mask is None else pattern & mask, return_weights=True
    )


MASKS = {
    "none": None,
    "padding": lambda T, S: normal(B, 1, 1, S, seed=4) > -0.5,
    "one padding": lambda T, S: normal(1, 1, 1, S, seed=4) > -0.5,
    "by head": lambda T, S: normal(B, H, T, S, seed=4) > -0.5,
    "by head, all queries": lambda T, S: normal(1, H, 1, S, seed=4) > -0.5,
    "a pattern": lambda T, S: normal(T, S, seed=4) > -0.5,
    "queries alone": lambda T, S: normal(B, 1, T, 1, seed=4) > -0.5,
    "three axes": lambda T, S: normal(H, 1, S, seed=4) > -0.5,
    "nothing allowed": lambda T, S: torch.zeros(B, 1, T, S, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 7), (3, 7), (5, 5), (70, 70), (40, 90), (0, 3)])
@pytest.mark.parametrize("G", [1, 2, 6])
def test_it_is_attention_with_the_heads_repeated(G, T, S, causal, mask):
    query, key, value = heads(T, S, G)
    mask = MASKS[mask] and MASKS[mask](T, S)
    expected, weights = repeated(query, key, value, mask, causal)
    assert_equal(grouped_query_attention(query, key, value, mask, causal=causal), expected, 1e-12)
    output, found = grouped_query_attention(query, key, value, mask, causal=causal, return_weights=True)
    assert_equal(output, expected, 1e-12)
    assert_equal(found, weights, 1e-12)
    inputs = [query, key, value]
    if T:
        wanted = torch.autograd.grad(expected.square().sum(), inputs)
        got = torch.autograd.grad(grouped_query_attention(*inputs, mask, causal=causal).square().sum(), inputs)
        for a, b in zip(got, wanted, strict=True):
            assert_equal(a, b, 1e-10)


@pytest.mark.parametrize("T", [3, 40])
def test_as_many_sequences_as_heads_are_told_apart(T):
    query, key, value = normal(6, 6, T, D, seed=1), normal(6, 2, T, D, seed=2), normal(6, 2, T, 5, seed=3)
    mask = normal(6, 6, T, T, seed=4) > -0.5
    assert_equal(grouped_query_attention(query, key, value, mask), repeated(query, key, value, mask, True)[0], 1e-12)


def test_the_scale_reaches_both_paths():
    query, key, value = heads(70, 70)
    real = normal(B, 1, 1, 70, seed=4) > -0.5
    for n, mask in ((1, None), (70, None), (70, real)):
        pattern = causal_mask(n, 70) if mask is None else causal_mask(n, 70) & mask
        repeats = (x.repeat_interleave(3, 1) for x in (key, value))
        expected = scaled_dot_product_attention(query[:, :, -n:], *repeats, pattern, scale=0.9)
        assert_equal(grouped_query_attention(query[:, :, -n:], key, value, mask, scale=0.9), expected, 1e-12)


@pytest.mark.parametrize("T", [1, 8, 600])
def test_keys_are_never_repeated_in_memory(T):
    """Nothing as large as the keys of all query heads is made; with repeated heads it is, so the count can fail."""
    S, G, H, D = 2000, 2, 16, 32
    query, key, value = torch.zeros(1, H, T, D), torch.zeros(1, G, S, D), torch.zeros(1, G, S, D)
    if T == 600:
        key, value = key[:, :, :T], value[:, :, :T]  # a prefill, through the fused kernel
    all_heads = H * key.shape[2] * D * 4
    made, largest = allocated_bytes(lambda: grouped_query_attention(query, key, value))
    assert largest < all_heads / 2 if T < 600 else largest <= all_heads  # the output itself has that size
    assert made < 2.5 * all_heads
    copies = (x.repeat_interleave(H // G, 1) for x in (key, value))
    twice, _ = allocated_bytes(lambda: F.scaled_dot_product_attention(query, *copies))
    assert twice > made + 2 * all_heads * 0.9


@pytest.mark.parametrize("T", [1, 8])
def test_a_mask_is_not_copied_for_each_key_head(T):
    B, H, G, S, D = 3, 16, 8, 2000, 32
    query, key, value = torch.zeros(B, H, T, D), torch.zeros(B, G, S, D), torch.zeros(B, G, S, D)
    real = torch.ones(B, 1, 1, S, dtype=torch.bool)
    _, largest = allocated_bytes(lambda: grouped_query_attention(query, key, value, real))
    assert largest <= 4 * max(B * H // G * T * S, B * H * T * D)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 7), (2, 7), (3, 3)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_heads", [64, 71])
def test_many_heads_share_one_key_head(n_heads, causal, T, S):
    """More heads than rows are few: Falcon 7B has 71, and a step is still one query, at the last position."""
    query, key, value = normal(B, n_heads, T, D, seed=1), normal(B, 1, S, D, seed=2), normal(B, 1, S, 5, seed=3)
    for mask in (None, normal(B, 1, 1, S, seed=4) > -0.5):
        expected, _ = repeated(query, key, value, mask, causal)
        assert_equal(grouped_query_attention(query, key, value, mask, causal=causal), expected, 1e-12)


def test_a_head_for_each_query_head_is_multi_head_attention():
    rotary = RotaryEmbedding(D)
    mha = MultiHeadAttention(H * D, H, causal=True, rotary=rotary, bias=True).double()
    gqa = GroupedQueryAttention(H * D, H, H, rotary=rotary, bias=True).double()
    gqa.load_state_dict(mha.state_dict(), strict=True)
    x = normal(B, 9, H * D, seed=5)
    assert_equal(gqa(x), mha(x), 1e-12)
    assert_equal(gqa(x, return_weights=True)[1], mha(x, return_weights=True)[1], 1e-12)


def test_one_head_for_all_is_multi_query_attention():
    mqa, gqa = MultiQueryAttention(H * D, H).double(), GroupedQueryAttention(H * D, H, 1).double()
    gqa.load_state_dict(mqa.state_dict(), strict=True)
    x = normal(B, 9, H * D, seed=5)
    assert torch.equal(gqa(x), mqa(x))
    assert mqa.new_cache(B, 8).nbytes * H == MultiHeadAttention(H * D, H, causal=True).double().new_cache(B, 8).nbytes


@pytest.mark.parametrize("G", [1, 2, 3, 6])
def test_the_cache_holds_the_shared_heads_alone(G):
    assert GroupedQueryAttention(H * D, H, G).new_cache(B, 9).nbytes == B * 9 * 2 * G * D * 4
    assert GroupedQueryAttention(H * D, H, G).bfloat16().new_cache(B, 9).nbytes == B * 9 * 2 * G * D * 2


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_flows_back_from_the_future(causal):
    torch.manual_seed(0)
    layer = GroupedQueryAttention(H * D, H, 2, causal=causal).double()
    found = influence(layer, normal(B, 7, H * D, seed=9))
    past = torch.ones(7, 7, dtype=torch.bool).tril() | (not causal)
    assert found[~past].eq(0).all() and found[past].min() > 1e-6


# --- converting a multi-head layer


def multi_head(**options):
    torch.manual_seed(2)
    return MultiHeadAttention(H * D, H, causal=True, rotary=RotaryEmbedding(D), **options).double()


@pytest.mark.parametrize("method", ["mean", "first"])
def test_a_converted_layer_reads_pooled_heads(method):
    mha = multi_head(bias=True)
    before = {name: tensor.clone() for name, tensor in mha.state_dict().items()}
    gqa = group_heads(mha, 2, method)
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        old, new = mha.get_parameter(name), gqa.get_parameter(name)
        for g in range(2):
            of_set = [old[h * D : (h + 1) * D] for h in range(3 * g, 3 * g + 3)]
            expected = sum(of_set) / 3 if method == "mean" else of_set[0]
            assert_equal(new[g * D : (g + 1) * D], expected, 1e-15)
    for name in ("q_proj.weight", "o_proj.weight", "q_proj.bias", "o_proj.bias"):
        assert torch.equal(gqa.get_parameter(name), mha.get_parameter(name))
        assert gqa.get_parameter(name).data_ptr() != mha.get_parameter(name).data_ptr()
    assert all(torch.equal(mha.state_dict()[name], tensor) for name, tensor in before.items())
    assert gqa.causal and gqa.rotary is mha.rotary and all(p.requires_grad for p in gqa.parameters())


@pytest.mark.parametrize("method", ["mean", "first"])
def test_heads_that_are_equal_already_convert_without_loss(method):
    mha = multi_head()
    with torch.no_grad():
        for proj in (mha.k_proj, mha.v_proj):
            one = proj.weight.unflatten(0, (2, 3, D))[:, :1]
            proj.weight.copy_(one.expand(-1, 3, -1, -1).flatten(0, 2))
    x = normal(B, 9, H * D, seed=5)
    assert_equal(group_heads(mha, 2, method)(x), mha(x), 1e-12)


def test_converting_to_as_many_heads_changes_nothing():
    mha, x = multi_head(), normal(B, 9, H * D, seed=5)
    for method in ("mean", "first"):
        assert_equal(group_heads(mha, H, method)(x), mha(x), 1e-12)


def test_random_heads_are_drawn_by_their_seed():
    mha, state = multi_head(), torch.random.get_rng_state()
    a, b, c = (group_heads(mha, 2, "random", **options) for options in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(a.k_proj.weight, b.k_proj.weight) and not torch.equal(a.k_proj.weight, c.k_proj.weight)
    assert torch.equal(a.q_proj.weight, mha.q_proj.weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert a.k_proj.weight.abs().max() <= (H * D) ** -0.5  # as nn.Linear draws


def test_a_converted_layer_keeps_its_mode_and_direction():
    gqa = group_heads(MultiHeadAttention(24, 6, causal=False).eval(), 2)
    assert not gqa.causal and not gqa.training
    with pytest.raises(ValueError, match="reads another sequence=True: neither has a place"):
        group_heads(MultiHeadAttention(24, 6, d_context=24), 2)


def test_a_cache_is_where_the_weights_are():
    with torch.device("meta"):
        layer = GroupedQueryAttention(24, 6, 2)
    assert layer.new_cache(1, 3).key.device.type == "meta"


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="n_heads=6 is not divisible by n_kv_heads=4"):
        GroupedQueryAttention(24, 6, 4)
    with pytest.raises(ValueError, match="d_model=100 is not divisible by n_heads=12"):
        GroupedQueryAttention(100, 12, 4)
    with pytest.raises(ValueError, match="n_kv_heads=0, but it must be at least 1"):
        GroupedQueryAttention(24, 6, 0)
    with pytest.raises(ValueError, match=r"rotary\.dim=6, but a head has 4 numbers"):
        MultiQueryAttention(24, 6, rotary=RotaryEmbedding(6))
    query, key, value = heads(5, 7)
    with pytest.raises(ValueError, match="query has 5 heads, which do not share 2 key heads evenly"):
        grouped_query_attention(query[:, :5], key, value)
    with pytest.raises(ValueError, match="there are 5 queries but 4 keys"):
        grouped_query_attention(query, key[:, :, :4], value[:, :, :4])
    with pytest.raises(ValueError, match=r"mask has shape \(2, 7\), which does not broadcast to \(2, 6, 5, 7\)"):
        grouped_query_attention(query, key, value, torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="method='median', but it must be mean, first or random"):
        group_heads(multi_head(), 2, "median")
    with pytest.raises(ValueError, match="n_heads=6 is not divisible by n_kv_heads=4"):
        group_heads(multi_head(), 4)
    with pytest.raises(ValueError, match="alibi=True, reads another sequence=False: neither has a place"):
        group_heads(MultiHeadAttention(24, 6, causal=True, alibi=True), 2)
    with pytest.raises(TypeError, match="mha is a GroupedQueryAttention"):
        group_heads(GroupedQueryAttention(24, 6, 6), 2)


def test_options_reach_the_layer_of_one_key_head():
    one = MultiQueryAttention(24, 6, causal=False, rotary=RotaryEmbedding(4), bias=True).double()
    same = GroupedQueryAttention(24, 6, 1, causal=False, rotary=RotaryEmbedding(4), bias=True).double()
    same.load_state_dict(one.state_dict(), strict=True)
    x = normal(B, 5, 24, seed=1)
    assert_equal(one(x), same(x))
    assert influence(one, x).min() > 0
