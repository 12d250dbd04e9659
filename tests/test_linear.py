"""What linear attention promises: three forms of one function, a state that never grows, and a cost that grows with T.

What holds for every feature map is tested on the layers of both modules here; random features in test_performer.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.kv_cache import KVCache
from attncourse.lab.measure import allocated_bytes
from attncourse.linear import (
    CHUNK,
    LinearAttention,
    dpfp_features,
    elu_features,
    linear_attention,
    linear_attention_chunked,
    linear_attention_parallel,
    linear_attention_recurrent,
)
from attncourse.performer import PerformerAttention
from attncourse.positions import RotaryEmbedding
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices
from tests.test_causal import influence, partitions
from tests.test_self_attention import filled

B, T, H, D, M, DV = 2, 7, 3, 4, 5, 6
LAYERS = {
    "elu": lambda *sizes, **options: LinearAttention(*sizes, **options),
    "dpfp": lambda *sizes, **options: LinearAttention(*sizes, feature_map="dpfp", **options),
    "performer": lambda *sizes, **options: PerformerAttention(*sizes, n_features=9, **options),
}
FORMS = {  # from features and a state to the output and the state after it
    "recurrent": linear_attention_recurrent,
    "chunked": linear_attention_chunked,
    "chunks of 3": lambda *given: linear_attention_chunked(*given, chunk=3),
}

in_layers = pytest.mark.parametrize("kind", LAYERS)
in_forms = pytest.mark.parametrize("form", FORMS)


def make(kind, device="cpu", dtype=torch.float64, **options):
    return filled(LAYERS[kind](H * D, H, **options), device, dtype)


def featured(T=T, S=None, M=M, device="cpu", **options):
    """Features and values: what the functions read."""
    S = T if S is None else S
    query, key = normal(B, H, T, M, seed=1, device=device), normal(B, H, S, M, seed=2, device=device)
    value = normal(B, H, S, DV, seed=3, device=device)
    return [x.detach().requires_grad_() for x in (query.exp(), key.exp(), value)]


def state_of(device="cpu"):
    return normal(B, H, M, DV, seed=4, device=device), normal(B, H, M, seed=5, device=device).exp()


# --- the functions


def test_by_hand():
    """Two features, three tokens, one number as value: sums can be done in the head."""
    query = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]]])
    key = torch.tensor([[[[1.0, 1.0], [3.0, 0.0], [0.0, 2.0]]]])
    value = torch.tensor([[[[6.0], [10.0], [-6.0]]]])
    causal = torch.tensor([[[[6.0], [6.0], [(3 * 6 + 3 * 10 + 4 * -6) / 10]]]])
    full = torch.tensor([[[[(6 + 3 * 10) / 4], [(6 + 2 * -6) / 3], [2.4]]]])
    assert_equal(linear_attention_parallel(query, key, value), causal, 1e-6)
    assert_equal(linear_attention(query, key, value), causal, 1e-6)
    assert_equal(linear_attention(query, key, value, causal=False), full, 1e-6)
    output, (memory, total) = linear_attention_recurrent(query, key, value)
    assert_equal(output, causal, 1e-6)
    assert memory.tolist() == [[[[36.0], [-6.0]]]] and total.tolist() == [[[4.0, 3.0]]]


@on_devices
@in_forms
@pytest.mark.parametrize("T", [1, 2, 7, 9])
def test_all_forms_are_one_function_with_one_gradient(form, T, device):
    inputs = featured(T, device=device)
    output, _ = FORMS[form](*inputs)
    expected = linear_attention_parallel(*inputs)
    assert_equal(output, expected)
    assert_all_equal(gradients([output], inputs), gradients([expected], inputs))


@on_devices
def test_states_and_gradients_through_them_agree(device):
    """Recurrent against chunks of many sizes, larger than T as well: outputs, last state, all gradients."""
    inputs, state = featured(device=device), state_of(device)
    output, (memory, total) = linear_attention_recurrent(*inputs, state)
    wanted = gradients([output, memory, total], [*inputs, *state])
    for chunk in (1, 2, 3, T, T + 1, 100):
        got, (got_memory, got_total) = linear_attention_chunked(*inputs, state, chunk=chunk)
        assert_all_equal([got, got_memory, got_total], [output, memory, total])
        assert_all_equal(gradients([got, got_memory, got_total], [*inputs, *state]), wanted)


def test_a_state_stands_for_the_tokens_it_has_seen():
    """Going on from the state after 4 tokens is attention over all 7, gradients into the first 4 included."""
    inputs = featured()
    first, second = [x[:, :, :4] for x in inputs], [x[:, :, 4:] for x in inputs]
    _, state = linear_attention_chunked(*first, chunk=3)
    output, _ = linear_attention_recurrent(*second, state)
    expected = linear_attention_parallel(second[0], *inputs[1:])  # the last 3 of 7 positions
    assert_equal(output, expected)
    assert_all_equal(gradients([output], inputs), gradients([expected], inputs))


@settings(max_examples=40, deadline=None)
@given(partitions(9), st.integers(1, 10), st.booleans())
def test_pieces_of_any_size_equal_one_pass(pieces, chunk, one_by_one):
    inputs, state, outputs, start = [x.detach() for x in featured(9)], None, [], 0
    for length in pieces:
        given = [x[:, :, start : start + length] for x in inputs]
        if one_by_one and length % 2:
            output, state = linear_attention_recurrent(*given, state)
        else:
            output, state = linear_attention_chunked(*given, state, chunk=chunk)
        outputs.append(output)
        start += length
    whole, whole_state = linear_attention_recurrent(*inputs)
    assert_all_equal([torch.cat(outputs, 2), *state], [whole, *whole_state])


@in_forms
def test_no_token_leaves_the_state_as_it_was(form):
    inputs, state = featured(0), state_of()
    output, after = FORMS[form](*inputs, state)
    assert output.shape == (B, H, 0, DV)
    assert_all_equal(after, state)


@pytest.mark.parametrize(("T", "S"), [(3, 7), (1, 5), (6, 4)])
def test_fewer_queries_than_keys_are_the_last_ones(T, S):
    query, key, value = featured(T, S)
    output, weights = linear_attention_parallel(query, key, value, return_weights=True)
    for i in range(T):
        end = S - T + i + 1
        if end <= 0:
            assert output[:, :, i].eq(0).all() and weights[:, :, i].eq(0).all()
            continue
        products = query[:, :, i : i + 1] @ key[:, :, :end].transpose(2, 3)
        assert_equal(weights[:, :, i, :end], (products / products.sum(-1, keepdim=True))[:, :, 0])
        assert weights[:, :, i, end:].eq(0).all()
        assert_equal(output[:, :, i : i + 1], weights[:, :, i : i + 1] @ value)


@pytest.mark.parametrize("causal", [True, False])
def test_narrow_features_give_what_wide_ones_do(causal):
    narrow = [x.detach().bfloat16() for x in featured(T=300)]
    output = linear_attention(*narrow, causal=causal)
    exact = linear_attention_parallel(*(x.double() for x in narrow), causal=causal)
    assert output.dtype == torch.bfloat16
    assert_equal(output.double(), exact, 0.01)


@on_devices
def test_without_causality_the_memory_comes_first(device):
    inputs = featured(4, 6, device=device)
    output, expected = linear_attention(*inputs, causal=False), linear_attention_parallel(*inputs, causal=False)
    assert_equal(output, expected)
    assert_all_equal(gradients([output], inputs), gradients([expected], inputs))


# --- sums: none, tiny and long


@in_forms
def test_a_sum_of_nothing_gives_zeros_and_no_gradient(form):
    """relu may leave a query, or all keys so far, without any feature."""
    query, key, value = (x.detach() for x in featured())
    query[:, 0, 3], key[:, 1, :2] = 0.0, 0.0
    inputs = [x.requires_grad_() for x in (query, key, value)]
    for output in (FORMS[form](*inputs)[0], linear_attention_parallel(*inputs)):
        assert output[:, 0, 3].eq(0).all() and output[:, 1, :2].eq(0).all() and output[:, 2].ne(0).all()
        found = gradients([output], inputs)
        assert all(gradient.isfinite().all() for gradient in found)
        assert found[0][:, 0, 3].eq(0).all() and found[0][:, 1, :2].eq(0).all() and found[2][:, 1, :2].eq(0).all()


def test_nothing_at_all_gives_zeros_without_causality():
    query, key, value = featured()
    key = torch.zeros_like(key).requires_grad_()
    output = linear_attention(query, key, value, causal=False)
    assert output.eq(0).all() and all(g.eq(0).all() for g in gradients([output], [query, key, value]))


@in_forms
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_size_of_features_does_not_matter(form, scale):
    """An epsilon in the normaliser would: the products here are around 1e-30 and 1e30, in float32."""
    query, key, value = (x.detach().float() for x in featured())
    expected = linear_attention_parallel(query, key, value)
    for output in (
        FORMS[form](query * scale, key * scale, value)[0],
        linear_attention_parallel(query * scale, key * scale, value),
        linear_attention(query[:, :, -1:] * scale, key * scale, value, causal=False),
    ):
        assert_equal(output, expected[:, :, -output.shape[2] :], 1e-5)


@in_forms
def test_sums_are_kept_in_float32(form):
    """In bfloat16, 256 + 1 is 256."""
    n = 600
    ones = torch.ones(1, 1, n, 1, dtype=torch.bfloat16)
    output, (memory, total) = FORMS[form](ones, ones, ones)
    assert output.dtype == torch.bfloat16 and memory.dtype == total.dtype == torch.float32
    assert memory.item() == total.item() == n
    count = torch.arange(n).view(1, 1, n, 1).to(torch.bfloat16)  # the mean of 0 … i is i / 2
    exact = linear_attention_parallel(ones.double(), ones.double(), count.double())
    assert_equal(FORMS[form](ones, ones, count)[0].double(), exact, 1.0)  # in bfloat16, 300 has steps of 2
    assert linear_attention_parallel(ones, ones, count).dtype == torch.bfloat16


# --- feature maps


def test_elu_features_are_elu_plus_one_and_stay_above_zero():
    x = torch.linspace(-30, 5, 99, dtype=torch.float64).requires_grad_()
    assert_equal(elu_features(x), F.elu(x) + 1)
    assert_all_equal(gradients([elu_features(x)], [x]), gradients([F.elu(x) + 1], [x]))
    zero = torch.zeros(1, requires_grad=True)
    assert gradients([elu_features(zero)], [zero])[0] == gradients([F.elu(zero) + 1], [zero])[0]
    far = torch.tensor(-20.0)
    assert F.elu(far) + 1 == 0
    torch.testing.assert_close(elu_features(far), far.exp(), rtol=1e-6, atol=0)


def test_dpfp_features_by_hand():
    x = torch.tensor([1.0, -2.0, 3.0])  # relu of (x, -x) is (1, 0, 3, 0, 2, 0)
    assert dpfp_features(x).tolist() == [0, 0, 0, 0, 0, 0]
    assert dpfp_features(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2, 6, 0, 0, 0, 0]
    assert dpfp_features(torch.tensor([2.0, 5.0, -3.0])).tolist() == [10, 0, 0, 0, 0, 6]  # the last meets the first


def test_a_feature_map_may_be_a_function():
    named, own = LinearAttention(12, 3, feature_map="relu"), LinearAttention(12, 3, feature_map=lambda x: x.relu())
    own.load_state_dict(named.state_dict(), strict=True)
    x = normal(B, T, 12, seed=9, dtype=torch.float32)
    assert torch.equal(own(x), named(x))
    wider = LinearAttention(12, 3, feature_map=lambda x: torch.cat([x.exp(), (-x).exp()], -1))
    assert wider.new_cache(B, 1).memory.shape == (B, 3, 8, 4)
    learned = LinearAttention(12, 3, feature_map=torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU()))
    assert "feature_map.0.weight" in dict(learned.named_parameters())
    assert learned.new_cache(B, 1).nbytes == B * 3 * 6 * (4 + 1) * 4


# --- the layers


@on_devices
@in_layers
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"rotary": True}], ids=str)
@pytest.mark.parametrize("padded", [None, B, 1])
def test_both_paths_agree(padded, options, kind, device):
    options = {**options, "rotary": RotaryEmbedding(D)} if "rotary" in options else options
    layer, x = make(kind, device, bias=True, **options), normal(B, T, H * D, seed=9, device=device)
    mask = None if padded is None else (torch.arange(T) >= torch.tensor([[3], [0]])[:padded])[:, None, None].to(device)
    output, weights = layer(x, mask=mask, return_weights=True)
    fused = layer(x, mask=mask)
    assert output.shape == x.shape and weights.shape == (B, H, T, T)
    assert_equal(fused, output)
    sums = weights.sum(-1)
    assert torch.allclose(sums[sums > 0], torch.ones((), dtype=sums.dtype, device=device))
    wanted = [x, *layer.parameters()]
    for got, want in zip(gradients([fused], wanted), gradients([output], wanted), strict=True):
        assert_equal(got, want, 1e-12 * max(1.0, want.abs().max().item()))


@on_devices
@pytest.mark.parametrize("kind", ["elu", "performer"])
def test_nothing_flows_back_from_the_future(kind, device):
    past = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    x = normal(B, T, H * D, seed=9, device=device)
    found = influence(make(kind, device), x)
    assert found[~past].eq(0).all() and found[past].min() > 1e-6
    assert influence(make(kind, device, causal=False), x).min() > 1e-6


@on_devices
@in_layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_future_leaves_earlier_outputs_alone_to_the_last_bit(dtype, kind, device):
    layer = make(kind, device, dtype)
    x = normal(B, CHUNK + 9, H * D, seed=9, device=device, dtype=dtype).detach()
    for start in (4, CHUNK - 1, CHUNK + 3):
        changed = x.clone()
        changed[:, start:] = 7.0
        assert torch.equal(layer(x)[:, :start], layer(changed)[:, :start])
        assert not torch.equal(layer(x)[:, start:], layer(changed)[:, start:])


@settings(max_examples=60, deadline=None)
@given(partitions(8), st.integers(0, 3), st.sampled_from(list(LAYERS)), st.booleans())
def test_any_chunking_equals_one_pass(pieces, padding, kind, rotary):
    layer, x = make(kind, rotary=RotaryEmbedding(D) if rotary else None), normal(B, 8, H * D, seed=9).detach()
    real = (torch.arange(8) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, 8)
    cache, outputs, start = layer.new_cache(B, 8), [], 0
    for length in pieces:
        outputs.append(layer(x[:, start : start + length], mask=real[..., : start + length], cache=cache))
        start += length
    assert cache.length == 8
    assert_equal(torch.cat(outputs, 1), layer(x, mask=real), 1e-10)


@in_layers
def test_long_pieces_equal_one_pass(kind):
    layer, x = make(kind), normal(1, 3 * CHUNK + 5, H * D, seed=9).detach()
    cache = layer.new_cache(1, 1)
    pieces = [layer(piece, cache=cache) for piece in x.split([CHUNK + 7, 1, 0, CHUNK, CHUNK - 4, 1], 1)]
    assert_equal(torch.cat(pieces, 1), layer(x), 1e-10)


@in_layers
def test_padding_changes_nothing_whatever_it_holds(kind):
    """Positions would count padding, and without rotation there are none."""
    layer, x = make(kind), normal(B, T, H * D, seed=9).detach()
    for inside in (50.0, -50.0):
        padded = torch.cat([torch.full((B, 2, H * D), inside, dtype=torch.float64), x], 1)
        real = (torch.arange(T + 2) >= 2)[None, None, None]
        output = layer(padded, mask=real)
        assert_equal(output[:, 2:], layer(x), 1e-10)
        assert output[:, :2].eq(0).all()  # before the first real token there is nothing to see
        assert_equal(make(kind, causal=False)(padded, mask=real)[:, 2:], make(kind, causal=False)(x), 1e-10)


def test_turned_features_do_not_depend_on_the_difference_of_positions_alone():
    """elu is no function of q·k: rotation tells positions, and where the sequence starts changes the weights."""
    layer, x = make("elu", rotary=RotaryEmbedding(D)), normal(B, T, H * D, seed=9).detach()
    shifted = layer(torch.cat([torch.zeros_like(x[:, :3]), x], 1), return_weights=True)[1][..., 3:, 3:]
    whole = layer(x, return_weights=True)[1]
    assert (shifted / shifted.sum(-1, keepdim=True) - whole).abs().max() > 0.01


# --- the state


@in_layers
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 4)])
def test_a_state_never_grows(kind, dtype, size):
    layer = make(kind, dtype=dtype)
    n_features = {"elu": D, "dpfp": 2 * D, "performer": 9}[kind]
    cache = layer.new_cache(B, 10**9)
    bytes_wanted = B * H * n_features * (D + 1) * size
    assert cache.nbytes == bytes_wanted and cache.length == 0
    for n, seen in ((5, 5), (1, 6), (CHUNK + 70, CHUNK + 76)):
        output = layer(normal(B, n, H * D, seed=9, dtype=dtype), cache=cache)
        assert output.dtype == dtype
        assert cache.nbytes == bytes_wanted and cache.length == seen
        assert not cache.memory.requires_grad and not cache.total.requires_grad
    assert cache.memory.shape == (B, H, n_features, D) and cache.total.shape == (B, H, n_features)


def test_a_later_call_leaves_the_gradient_of_an_earlier_one_alone():
    """A state is replaced, not written over: autograd may still need the old one."""
    layer, x = make("elu"), normal(B, 6, H * D, seed=9)
    cache = layer.new_cache(B, 6)
    outputs = [layer(piece, cache=cache) for piece in x.split([2, 1, 3], 1)]
    assert gradients([torch.cat(outputs, 1)], [x])[0].isfinite().all()


def test_a_refused_call_stores_nothing():
    layer = LinearAttention(12, 3)
    cache = layer.new_cache(2, 4)
    layer(torch.ones(2, 3, 12), cache=cache)
    memory, total = cache.memory.clone(), cache.total.clone()
    refusals = [
        ({"x": torch.ones(3, 1, 12)}, ValueError, r"memory has shape \(2, 3, 4, 4\), .* need \(3, 3, 4, 4\)"),
        ({"x": torch.ones(2, 1, 11)}, ValueError, "the last of size 12"),
        ({"mask": torch.ones(2, 1, 1, 1).bool()}, ValueError, r"\(B, 1, 1, S\)=\(2, 1, 1, 4\)"),
        ({"return_weights": True}, ValueError, "a cache keeps sums, not keys"),
    ]
    for arguments, error, message in refusals:
        with pytest.raises(error, match=message):
            layer(**{"x": torch.ones(2, 1, 12), **arguments}, cache=cache)
    with pytest.raises(ValueError, match=r"need \(2, 3, 8, 4\)"):
        LinearAttention(12, 3, feature_map="dpfp")(torch.ones(2, 1, 12), cache=cache)
    with pytest.raises(TypeError, match=r"memory torch\.float32, but it must be torch\.float64"):
        layer.double()(torch.ones(2, 1, 12).double(), cache=cache)
    assert cache.length == 3 and torch.equal(cache.memory, memory) and torch.equal(cache.total, total)


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="cache is a KVCache, but this layer keeps a LinearState"):
        LinearAttention(12, 3)(torch.ones(2, 1, 12), cache=KVCache(2, 3, 4, 4))
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        layer = LinearAttention(12, 3, causal=False)
        layer(torch.ones(2, 1, 12), cache=layer.new_cache(2, 4))
    with pytest.raises(ValueError, match="batch_size=0"):
        LinearAttention(12, 3).new_cache(0, 4)


@in_layers
def test_autocast_keeps_the_sums_in_float32(kind):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](16, 4, rotary=RotaryEmbedding(4)), torch.randn(2, 6, 16)
    cache = layer.new_cache(2, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([4, 1, 1], 1)], 1)
        whole, weights = layer(x, return_weights=True)
    assert pieces.dtype == weights.dtype == torch.bfloat16 and cache.memory.dtype == torch.float32
    assert_equal(pieces, whole, 0.02)
    assert_equal(whole.float(), layer(x), 0.05)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 100, "n_heads": 12}, ValueError, "d_model=100 is not divisible by n_heads=12"),
        ({"n_heads": 0}, ValueError, "n_heads=0, but it must be at least 1"),
        ({"feature_map": "gelu"}, ValueError, "feature_map='gelu', but it must be one of elu, relu, dpfp, or a func"),
        ({"feature_map": None}, ValueError, "feature_map=None, but it must be one of"),
        ({"rotary": RotaryEmbedding(6)}, ValueError, "rotary.dim=6, but a head has 4 numbers"),
        ({"rotary": True}, TypeError, "rotary=True, but it must be a RotaryEmbedding"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        LinearAttention(**{"d_model": 12, "n_heads": 3, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(5, 12)}, ValueError, r"x has shape \(5, 12\); it needs three axes, the last of size 12"),
        ({"x": torch.zeros(2, 5, 12).half()}, TypeError, "x torch.float16, the layer's weights torch.float32"),
        ({"mask": torch.ones(2, 1, 5, 5).bool()}, ValueError, r"\(2, 1, 5, 5\); this mechanism takes padding"),
        ({"mask": torch.ones(5, 5).bool()}, ValueError, r"\(B, 1, 1, S\)=\(2, 1, 1, 5\): a mask of every query"),
        ({"mask": torch.ones(2, 1, 1, 5)}, TypeError, "mask has dtype torch.float32"),
    ],
)
@in_layers
@pytest.mark.parametrize("causal", [False, True])
def test_bad_input_is_refused_with_the_numbers(arguments, error, message, kind, causal):
    with pytest.raises(error, match=message):
        LAYERS[kind](12, 3, causal=causal)(**{"x": torch.zeros(2, 5, 12), **arguments})


def test_features_that_do_not_fit_are_refused():
    query, key, value = (x.detach() for x in featured())
    memory, total = (x.detach() for x in state_of())
    with pytest.raises(ValueError, match="chunk=0, but it must be at least 1"):
        linear_attention_chunked(query, key, value, chunk=0)
    for form in FORMS.values():
        with pytest.raises(ValueError, match="there are 2 queries but 7 keys: each token has one of both"):
            form(query[:, :, :2], key, value)
        with pytest.raises(
            ValueError, match=r"memory has shape \(2, 3, 5, 5\), but these features need \(2, 3, 5, 6\)"
        ):
            form(query, key, value, (memory[..., :5], total))
        with pytest.raises(ValueError, match=r"total has shape \(2, 3, 4\), but these features need \(2, 3, 5\)"):
            form(query, key, value, (memory, total[..., :4]))
        with pytest.raises(TypeError, match=r"total torch\.float32, but it must be torch\.float64"):
            form(query, key, value, (memory, total.float()))
        with pytest.raises(ValueError, match="devices differ: the state's total meta, the features cpu"):
            form(query, key, value, (memory, total.to("meta")))
    both_ways = [partial(linear_attention, causal=causal) for causal in (True, False)]
    for form in (*FORMS.values(), *both_ways, linear_attention_parallel):
        with pytest.raises(ValueError, match="query has D=4 but key has D=5"):
            form(query[..., :4], key, value)
        with pytest.raises(TypeError, match="dtypes differ"):
            form(query.float(), key, value)
        with pytest.raises(ValueError, match=r"query has shape \(2, 7, 5\); it needs four axes, \(B, H, T, M\)"):
            form(query[:, 0], key[:, 0], value[:, 0])


# --- cost


def bytes_of(function, T, n_heads=2):
    """Bytes of a forward pass, of its backward pass, and of the largest tensor of both."""
    query, key, value = (torch.rand(1, n_heads, T, 4).requires_grad_() for _ in range(3))
    forward, largest = allocated_bytes(lambda: function(query, key, value))
    output = function(query, key, value).sum()
    backward, largest_back = allocated_bytes(output.backward)
    return forward, backward, max(largest, largest_back)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_cost_grows_with_the_length_forward_and_backward(causal):
    sizes = {T: bytes_of(lambda *qkv: linear_attention(*qkv, causal=causal), T) for T in (1024, 2048)}
    for once, twice in zip(sizes[1024][:2], sizes[2048][:2], strict=True):
        assert once < twice <= 2.2 * once
    assert sizes[2048][2] < 2048 * 2048 * 4 / 16


def test_the_definition_and_slices_in_a_loop_cost_more():
    """What the test above would catch."""

    def sliced(query, key, value, chunk=CHUNK):
        memory, total, outputs = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4), []
        for i in range(0, query.shape[2], chunk):
            given = [x[:, :, i : i + chunk] for x in (query, key, value)]
            output, (memory, total) = linear_attention_chunked(*given, (memory, total), chunk=chunk)
            outputs.append(output)
        return torch.cat(outputs, 2)

    for function, grows in ((linear_attention_parallel, (True, True)), (sliced, (False, True))):
        sizes = {T: bytes_of(function, T) for T in (1024, 2048)}
        for once, twice, expected in zip(sizes[1024][:2], sizes[2048][:2], grows, strict=True):
            assert (twice > 2.2 * once) == expected


@in_layers
def test_a_layer_makes_no_square_of_the_length(kind):
    layer, x = LAYERS[kind](8, 2), torch.randn(1, 1024, 8)
    _, largest = allocated_bytes(lambda: layer(x).sum().backward())
    assert largest < 1024 * 1024 * 4 / 8
    _, largest = allocated_bytes(lambda: layer(x, return_weights=True))
    assert largest >= 1024 * 1024 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_learned_feature_map_works_in_the_layers_dtype(dtype):
    learned = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Softplus())
    layer = LinearAttention(12, 3, feature_map=learned).to(dtype)
    x = torch.randn(2, 5, 12, dtype=dtype)
    cache = layer.new_cache(2, 5)
    assert cache.memory.dtype == torch.float32 and cache.memory.shape == (2, 3, 6, 4)
    whole = layer(x)
    assert whole.dtype == dtype
    pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([3, 1, 1], 1)], 1)
    torch.testing.assert_close(pieces, whole, atol=2e-2, rtol=0)
