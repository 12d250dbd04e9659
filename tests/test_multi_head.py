"""What multi-head attention promises: heads are slices, one head is single-head attention, chunks equal one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention
from attncourse.cross_attention import CrossAttention
from attncourse.kv_cache import RollingKVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding
from attncourse.self_attention import SelfAttention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices, random_mask
from tests.test_causal import influence, partitions
from tests.test_self_attention import filled

B, T, S, H, D, D_CONTEXT = 2, 5, 7, 3, 4, 10


def make(device="cpu", n_heads=H, **options):
    return filled(MultiHeadAttention(H * D, n_heads, **options), device)


# --- split and merge


def test_a_head_is_a_slice_of_every_token():
    x = normal(B, T, H * D, seed=1)
    heads = split_heads(x, H)
    assert heads.shape == (B, H, T, D)
    for h in range(H):
        assert torch.equal(heads[:, h], x[..., h * D : (h + 1) * D])


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_merging_undoes_splitting(B, T, H, D):
    x = torch.arange(B * T * H * D).view(B, T, H * D)
    assert torch.equal(merge_heads(split_heads(x, H)), x)


def test_split_and_merge_refuse_with_the_numbers():
    with pytest.raises(ValueError, match="d_model=10 is not divisible by n_heads=3"):
        split_heads(torch.zeros(2, 5, 10), 3)
    with pytest.raises(ValueError, match="d_model=10 is not divisible by n_heads=0"):
        split_heads(torch.zeros(2, 5, 10), 0)
    with pytest.raises(ValueError, match=r"x has shape \(5, 10\); it needs three axes"):
        split_heads(torch.zeros(5, 10), 2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 10\); it needs four axes"):
        merge_heads(torch.zeros(2, 5, 10))


# --- the layer


@on_devices
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"rotary": True}, {"causal": True, "alibi": True}], ids=str)
@pytest.mark.parametrize("shape", [None, (T, T), (B, 1, 1, T), (H, 1, T), (B, H, T, T), (T,)], ids=str)
def test_both_paths_agree(shape, options, device):
    options = {**options, "rotary": RotaryEmbedding(D)} if "rotary" in options else options
    layer, x = make(device, bias=True, **options), normal(B, T, H * D, seed=9, device=device)
    mask = None if shape is None else random_mask(*shape).to(device)
    output, weights = layer(x, mask=mask, return_weights=True)
    fused = layer(x, mask=mask)
    assert output.shape == x.shape and weights.shape == (B, H, T, T)
    assert_equal(fused, output)
    wanted = [x, *layer.parameters()]
    assert_all_equal(gradients([fused], wanted), gradients([output], wanted))


@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_one_head_equals_single_head_attention(kind):
    x, context = normal(B, T, H * D, seed=9), normal(B, S, D_CONTEXT, seed=8)
    if kind == "cross":
        many, one, inputs = make(n_heads=1, d_context=D_CONTEXT), CrossAttention(H * D, D_CONTEXT), [x, context]
    else:
        many, inputs = make(n_heads=1, causal=kind == "causal"), [x]
        one = (CausalSelfAttention if kind == "causal" else SelfAttention)(H * D)
    one.double().load_state_dict(many.state_dict(), strict=True)
    output, weights = many(*inputs, return_weights=True)
    expected, expected_weights = one(*inputs, return_weights=True)
    assert_all_equal([output, weights[:, 0]], [expected, expected_weights])


def test_the_output_is_a_sum_over_heads():
    """Joining the heads and projecting equals projecting each with its columns of o_proj, and adding."""
    layer, x = make(), normal(B, T, H * D, seed=9)
    heads = [split_heads(project(x), H) for project in (layer.q_proj, layer.k_proj, layer.v_proj)]
    outputs = scaled_dot_product_attention(*heads)  # (B, H, T, D)
    columns = layer.o_proj.weight.split(D, 1)
    assert_equal(layer(x), sum(outputs[:, h] @ columns[h].T for h in range(H)))


def test_the_number_of_parameters_does_not_depend_on_the_number_of_heads():
    sizes = {sum(p.numel() for p in MultiHeadAttention(24, n).parameters()) for n in (1, 2, 3, 4, 6, 8, 12, 24)}
    assert sizes == {4 * 24 * 24}


@on_devices
@pytest.mark.parametrize("options", [{}, {"alibi": True}, {"rotary": True}], ids=str)
def test_nothing_flows_back_from_the_future(options, device):
    options = {"rotary": RotaryEmbedding(D)} if "rotary" in options else options
    layer, x = make(device, causal=True, **options), normal(B, T, H * D, seed=9, device=device)
    past = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    found = influence(layer, x)
    assert found[~past].eq(0).all() and found[past].min() > 1e-6


@settings(max_examples=80, deadline=None)
@given(partitions(8), st.integers(0, 3), st.sampled_from(["none", "rotary", "interleaved", "alibi"]))
def test_any_chunking_equals_one_pass(chunks, padding, positions):
    options = {
        "none": {},
        "rotary": {"rotary": RotaryEmbedding(D)},
        "interleaved": {"rotary": RotaryEmbedding(D, 500.0, True)},
        "alibi": {"alibi": True},
    }[positions]
    layer, x = make(causal=True, **options), normal(B, 8, H * D, seed=9).detach()
    real = (torch.arange(8) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, 8)
    cache, outputs, start = layer.new_cache(B, 8), [], 0
    for length in chunks:
        outputs.append(layer(x[:, start : start + length], mask=real[..., : start + length], cache=cache))
        start += length
    assert_equal(torch.cat(outputs, 1), layer(x, mask=real))


@pytest.mark.parametrize("options", [{"rotary": True}, {"alibi": True}], ids=str)
def test_left_padding_moves_positions_and_changes_nothing(options):
    """Positions count from the start of the row, padding included, and only differences of positions matter."""
    options = {"rotary": RotaryEmbedding(D)} if "rotary" in options else options
    layer, x = make(causal=True, **options), normal(B, T, H * D, seed=9).detach()
    padded = torch.cat([torch.full((B, 2, H * D), 50.0, dtype=torch.float64), x], 1)
    real = (torch.arange(T + 2) >= 2)[None, None, None]
    assert_equal(layer(padded, mask=real)[:, 2:], layer(x), 1e-9)


def test_a_cache_stores_keys_and_values_of_every_head():
    layer = MultiHeadAttention(H * D, H, causal=True)
    cache = layer.new_cache(B, 9)
    assert cache.nbytes == B * 9 * 2 * H * D * 4
    assert layer.bfloat16().new_cache(B, 9).nbytes == B * 9 * 2 * H * D * 2


def test_a_refused_call_stores_nothing():
    layer = MultiHeadAttention(12, 3, causal=True)
    cache = layer.new_cache(2, 4)
    for arguments in ({"mask": torch.ones(3, 9).bool()}, {"x": torch.ones(2, 5, 12)}, {"x": torch.ones(2, 2, 11)}):
        with pytest.raises(ValueError):
            layer(**{"x": torch.ones(2, 3, 12), **arguments}, cache=cache)
    with pytest.raises(TypeError, match=r"key torch\.float64, the cache torch\.float32"):
        layer.double()(torch.ones(2, 3, 12).double(), cache=cache)
    with pytest.raises(ValueError, match=r"key has shape \(2, 1, 3, 12\), but the cache takes \(2, 3, 3, 4\)"):
        MultiHeadAttention(12, 1, causal=True)(torch.ones(2, 3, 12), cache=cache)
    assert cache.length == 0 and cache.key.eq(0).all() and cache.value.eq(0).all()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 100, "n_heads": 12}, "d_model=100 is not divisible by n_heads=12"),
        ({"n_heads": 0}, "n_heads=0, but it must be at least 1"),
        ({"rotary": RotaryEmbedding(6)}, "rotary.dim=6, but a head has 4 numbers"),
        ({"d_context": 5, "causal": True}, "d_context=5 reads another sequence"),
        ({"d_context": 5, "rotary": RotaryEmbedding(4)}, "d_context=5 reads another sequence"),
        ({"d_context": 0}, "d_context=0, but it must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"d_model": 12, "n_heads": 3, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(5, 12)}, ValueError, r"x has shape \(5, 12\); it needs three axes, the last of size 12"),
        ({"x": torch.zeros(2, 5, 12).half()}, TypeError, "x torch.float16, the layer's weights torch.float32"),
        ({"context": torch.zeros(2, 7, 12)}, ValueError, "make it with d_context=… to read another"),
        (
            {"mask": torch.ones(2, 4, 5, 5).bool()},
            ValueError,
            r"\(2, 4, 5, 5\), which does not broadcast to \(2, 3, 5, 5\)",
        ),
        ({"mask": torch.ones(5, 5)}, TypeError, "mask has dtype torch.float32"),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_bad_input_is_refused_with_the_numbers(arguments, error, message, causal):
    with pytest.raises(error, match=message):
        MultiHeadAttention(12, 3, causal=causal)(**{"x": torch.zeros(2, 5, 12), **arguments})


def test_a_layer_that_crosses_needs_a_context():
    layer = MultiHeadAttention(12, 3, d_context=10)
    with pytest.raises(ValueError, match=r"give context \(B, S, 10\)"):
        layer(torch.zeros(2, 5, 12))
    with pytest.raises(ValueError, match="batch sizes differ: x 2, context 3"):
        layer(torch.zeros(2, 5, 12), torch.zeros(3, 7, 10))
    with pytest.raises(ValueError, match=r"context has shape \(2, 7, 12\); it needs three axes, the last of size 10"):
        layer(torch.zeros(2, 5, 12), torch.zeros(2, 7, 12))


@pytest.mark.parametrize("options", [{}, {"d_context": 12}], ids=str)
def test_a_cache_needs_causal_attention(options):
    layer = MultiHeadAttention(12, 3, **options)
    context = [torch.zeros(2, 4, 12)] if options else []
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        layer(torch.zeros(2, 1, 12), *context, cache=layer.new_cache(2, 6))


@pytest.mark.parametrize(
    "layer", [MultiHeadAttention(12, 3, causal=True), CausalSelfAttention(12)], ids=["many", "one"]
)
def test_a_cache_of_another_kind_is_refused_and_stores_nothing(layer):
    cache = RollingKVCache(2, 3, 4, 4)
    with pytest.raises(TypeError, match="cache is a RollingKVCache, but this layer keeps a KVCache: use new_cache"):
        layer(torch.zeros(2, 2, 12), cache=cache)
    assert cache.length == 0


def test_slopes_do_not_keep_attention_from_being_fused():
    """PyTorch wants a bias of four axes, and with three builds every matrix of scores."""
    layer, x = MultiHeadAttention(16, 4, causal=True, alibi=True), torch.randn(3, 128, 16)
    _, largest = allocated_bytes(lambda: layer(x))
    assert largest == 4 * 128 * 128 * 4  # the bias, of all heads; scores would have the batch as well


def test_a_cache_works_under_autocast():
    torch.manual_seed(0)
    layer, x = MultiHeadAttention(16, 4, causal=True, rotary=RotaryEmbedding(4)), torch.randn(2, 6, 16)
    cache = layer.new_cache(2, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([4, 1, 1], 1)], 1)
        whole = layer(x)
    assert pieces.dtype == torch.bfloat16
    assert_equal(pieces, whole, 0.02)


def test_slopes_are_made_on_the_device_of_the_layer_and_for_no_token_too():
    layer = MultiHeadAttention(12, 3, causal=True, alibi=True)
    assert layer(torch.zeros(2, 0, 12)).shape == (2, 0, 12)
    assert layer.to("meta")(torch.zeros(2, 5, 12, device="meta")).device.type == "meta"
