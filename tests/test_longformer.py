"""What Longformer's attention promises: a window and global keys in one softmax, at a cost that grows with T."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.lab.measure import allocated_bytes
from attncourse.longformer import LongformerAttention, longformer_attention
from attncourse.multi_head import MultiHeadAttention
from attncourse.sliding_window import SlidingWindowAttention, sliding_window_attention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices
from tests.test_causal import influence
from tests.test_self_attention import filled

B, T, H, D, DV = 3, 11, 2, 4, 5
on_both_paths = pytest.mark.parametrize("return_weights", [False, True], ids=["blocks", "explicit"])
both_ways = pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])


def make(device="cpu", window=3, **options):
    return filled(LongformerAttention(H * D, H, window=window, **options), device)


def six(B=B, T=T, device="cpu", dtype=torch.float64):
    """query, key, value, and the three that global tokens read."""
    sizes = (D, D, DV, D, D, DV)
    return [normal(B, H, T, size, seed=30 + i, device=device, dtype=dtype) for i, size in enumerate(sizes)]


def drawn(B, T, share, seed=1):
    """(B, T) boolean: another number of True in each row, in row 1 none."""
    chosen = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share
    chosen[1:2] = False
    return chosen


def as_mask(real):
    return real[:, None, None]


def output_of(function, *arguments, return_weights, **options):
    result = function(*arguments, return_weights=return_weights, **options)
    return result[0] if return_weights else result


# --- the definition


@on_devices
@both_ways
@on_both_paths
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_every_row_is_a_softmax_over_a_set_of_keys(window, padded, return_weights, causal, device):
    """Query by query: the keys that it sees are a set, so a global key inside the window is in it once."""
    tensors, is_global = six(device=device), drawn(B, T, 0.35)
    real = ~drawn(B, T, 0.3, seed=2) if padded else torch.ones(B, T, dtype=torch.bool)
    options = {"window": window, "causal": causal, "return_weights": return_weights}
    result = longformer_attention(*tensors, is_global.to(device), as_mask(real).to(device), **options)
    expected = torch.zeros(B, H, T, DV, dtype=torch.float64, device=device)
    expected_weights = torch.zeros(B, H, T, T, dtype=torch.float64, device=device)
    for b in range(B):
        for i in real[b].nonzero().flatten().tolist():
            row_is_global = bool(is_global[b, i])
            keys = set(range(T)) if row_is_global else {j for j in range(T) if abs(i - j) < window or is_global[b, j]}
            keys = sorted(j for j in keys if real[b, j] and (j <= i or not causal))
            query, key, value = tensors[3:] if row_is_global else tensors[:3]
            weights = (key[b, :, keys] @ query[b, :, i, :, None] / D**0.5).softmax(1)  # (H, keys, 1)
            expected_weights[b, :, i, keys] = weights[..., 0]
            expected[b, :, i] = (weights * value[b, :, keys]).sum(1)
    if return_weights:
        assert_equal(result[1], expected_weights)
    output = result[0] if return_weights else result
    assert_equal(output, expected)
    assert_all_equal(gradients([output], tensors), gradients([expected], tensors))


@pytest.mark.parametrize("where", [4, 0, 10])
def test_a_global_key_inside_the_window_counts_once(where):
    """Keys of zeros weigh the same, and the values count them: at most 5 near keys, and the global one."""
    query, key = normal(1, 1, T, D, seed=1), torch.zeros(1, 1, T, D).double()
    value = torch.eye(T).double()[None, None]
    is_global = (torch.arange(T) == where)[None]
    weights = longformer_attention(query, key, value, query, key, value, is_global, window=3)[0, 0]
    seen = (torch.arange(T)[:, None] - torch.arange(T)).abs() < 3
    seen[:, where] = seen[where] = True
    assert_equal(weights, seen / seen.sum(1, keepdim=True).double())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 45),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    st.sampled_from([None, "own", "shared"]),
    st.integers(0, 9),
)
def test_blocks_equal_the_definition(B, T, window, causal, share, padding, seed):
    tensors, is_global = six(B, T), drawn(B, T, share, seed)
    mask = None if padding is None else as_mask(~drawn(B if padding == "own" else 1, T, 0.4, seed + 50))
    options = {"window": window, "causal": causal}
    output = longformer_attention(*tensors, is_global, mask, **options)
    expected, _ = longformer_attention(*tensors, is_global, mask, **options, return_weights=True)
    assert_equal(output, expected)
    assert_all_equal(gradients([output], tensors), gradients([expected], tensors))


@on_devices
@both_ways
@pytest.mark.parametrize(("T", "window"), [(300, 130), (300, 128), (257, 40)])
def test_long_windows_go_through_blocks_of_128(T, window, causal, device):
    tensors, is_global = six(2, T, device), drawn(2, T, 0.02).to(device)
    options = {"window": window, "causal": causal}
    output = longformer_attention(*tensors, is_global, **options)
    expected, _ = longformer_attention(*tensors, is_global, **options, return_weights=True)
    assert_equal(output, expected)
    assert_all_equal(gradients([output], tensors), gradients([expected], tensors))


# --- the layer


@on_devices
@both_ways
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_both_paths_agree(bias, padded, causal, device):
    layer, x = make(device, causal=causal, bias=bias), normal(B, T, H * D, seed=9, device=device)
    is_global = drawn(B, T, 0.3).to(device)
    mask = as_mask(~drawn(B, T, 0.3, seed=2)).to(device) if padded else None
    output, weights = layer(x, global_tokens=is_global, mask=mask, return_weights=True)
    blocks = layer(x, global_tokens=is_global, mask=mask)
    assert output.shape == x.shape and weights.shape == (B, H, T, T)
    assert_equal(blocks, output)
    wanted = [x, *layer.parameters()]
    assert_all_equal(gradients([blocks], wanted), gradients([output], wanted))


@on_both_paths
@both_ways
def test_all_global_with_equal_projections_is_full_attention(causal, return_weights):
    """A new layer's global projections are copies of the others, so it needs none of ours."""
    full = filled(MultiHeadAttention(H * D, H, causal=causal, bias=True))
    state, x = full.state_dict(), normal(B, T, H * D, seed=9)
    layer = LongformerAttention(H * D, H, window=2, causal=causal, bias=True).double()
    for name in ("q", "k", "v"):
        state |= {f"{name}_global_proj.{kind}": state[f"{name}_proj.{kind}"] for kind in ("weight", "bias")}
    layer.load_state_dict(state, strict=True)
    every = torch.ones(B, T, dtype=torch.bool)
    assert_equal(output_of(layer, x, global_tokens=every, return_weights=return_weights), full(x))
    mask = as_mask(torch.arange(T) < torch.tensor([T, 3, 7])[:, None])
    output = output_of(layer, x, global_tokens=every, mask=mask, return_weights=return_weights)
    real = mask[:, 0, 0, :, None]
    assert_equal(output * real, full(x, mask=mask) * real)


def test_a_new_layer_has_equal_projections():
    layer = LongformerAttention(8, 2, window=3, bias=True)
    state = layer.state_dict()
    for name in ("q", "k", "v"):
        for kind in ("weight", "bias"):
            one, other = state[f"{name}_proj.{kind}"], state[f"{name}_global_proj.{kind}"]
            assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


@on_both_paths
@both_ways
def test_a_window_over_everything_is_full_attention(causal, return_weights):
    full, layer = filled(MultiHeadAttention(H * D, H, causal=causal)), make(window=T, causal=causal)
    layer.load_state_dict(full.state_dict(), strict=False)
    x = normal(B, T, H * D, seed=9)
    assert_equal(output_of(layer, x, return_weights=return_weights), full(x))


@on_devices
@on_both_paths
@both_ways
@pytest.mark.parametrize("given", [False, True], ids=["None", "all False"])
def test_no_global_tokens_is_a_sliding_window(given, causal, return_weights, device):
    layer, x = make(device, causal=causal), normal(B, T, H * D, seed=9, device=device)
    window = SlidingWindowAttention(H * D, H, window=3, causal=causal).to(device, torch.float64)
    window.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "global" not in name})
    none = torch.zeros(B, T, dtype=torch.bool, device=device) if given else None
    output, expected = output_of(layer, x, global_tokens=none, return_weights=return_weights), window(x)
    assert_equal(output, expected)
    mine = [x, *(parameter for name, parameter in layer.named_parameters() if "global" not in name)]
    assert_all_equal(gradients([output], mine), gradients([expected], [x, *window.parameters()]))
    mask = as_mask(torch.arange(T) < torch.tensor([T, 3, 7])[:, None]).to(device)
    real = mask[:, 0, 0, :, None]
    output = output_of(layer, x, global_tokens=none, mask=mask, return_weights=return_weights)
    assert_equal(output, window(x, mask=mask) * real)


@on_both_paths
def test_which_projections_a_row_reads(return_weights):
    """A global row reads the global projections alone, the others never do: not even for a global key."""
    layer, x = make(), normal(1, T, H * D, seed=9)
    is_global = torch.isin(torch.arange(T), torch.tensor([2, 7]))
    output = output_of(layer, x, global_tokens=is_global[None], return_weights=return_weights)[0]
    for row in range(T):
        for name, parameter in layer.named_parameters():
            if name != "o_proj.weight":
                reached = torch.autograd.grad(output[row].sum(), parameter, retain_graph=True)[0].abs().max()
                assert (reached > 1e-6) == (("global" in name) == bool(is_global[row])), (row, name)
                assert reached > 1e-6 or reached == 0


@on_devices
@on_both_paths
@both_ways
def test_the_jacobian_is_zero_outside_the_pattern(causal, return_weights, device):
    """Causal: nothing of the future, not from a global token and not to one."""
    layer, x = make(device, causal=causal), 0.3 * normal(1, T, H * D, seed=9, device=device)
    is_global = torch.isin(torch.arange(T), torch.tensor([2, 7])).to(device)
    index = torch.arange(T, device=device)
    seen = ((index[:, None] - index).abs() < 3) | is_global | is_global[:, None]
    seen = seen & (index <= index[:, None]) if causal else seen
    found = influence(lambda x: output_of(layer, x, global_tokens=is_global[None], return_weights=return_weights), x)
    assert found[~seen].eq(0).all() and found[seen].min() > 1e-6


# --- rows of a batch and padding


@on_both_paths
@both_ways
def test_rows_do_not_depend_on_each_other(causal, return_weights):
    """Another number of global tokens and of real tokens in each row, and each is what it is alone."""
    layer, x = make(causal=causal), normal(4, T, H * D, seed=9)
    is_global = drawn(4, T, torch.tensor([[0.1], [0.0], [0.5], [1.0]]))
    real = torch.arange(T) < torch.tensor([T, 8, 5, 9])[:, None]
    output = output_of(layer, x, global_tokens=is_global, mask=as_mask(real), return_weights=return_weights)
    for b, n in enumerate(real.sum(1).tolist()):
        own = is_global[b, None, :n]
        alone = output_of(layer, x[b, None, :n], global_tokens=own, return_weights=return_weights)
        assert_equal(output[b, None, :n], alone)


@on_devices
@on_both_paths
def test_padding_has_no_influence_and_gives_zeros(return_weights, device):
    layer, x = make(device), normal(B, T, H * D, seed=9, device=device)
    is_global, real = drawn(B, T, 0.4).to(device), ~drawn(B, T, 0.4, seed=2).to(device)
    real[2] = False  # and one row of padding alone
    options = {"mask": as_mask(real), "return_weights": return_weights}
    output = output_of(layer, x, global_tokens=is_global, **options)
    assert output[~real].eq(0).all() and output[real].abs().min() > 1e-6
    changed = torch.where(real[..., None], x, 1e4)
    assert_equal(output_of(layer, changed, global_tokens=is_global, **options), output)
    # A padded token is no global token, whatever is said of it.
    assert_equal(output_of(layer, x, global_tokens=is_global | ~real, **options), output)
    reached = torch.autograd.grad(output.abs().sum(), x)[0]
    assert reached[~real].eq(0).all() and reached.isfinite().all()


def test_weights_are_those_of_the_output():
    layer, x = make(), normal(B, T, H * D, seed=9)
    is_global, real = drawn(B, T, 0.3), ~drawn(B, T, 0.3, seed=2)
    _, weights = layer(x, global_tokens=is_global, mask=as_mask(real), return_weights=True)
    assert_equal(weights.sum(-1), real[:, None].expand(B, H, T).double())
    assert weights.masked_select(~as_mask(real)).eq(0).all()


# --- what it costs


def cost(T, g, window, backward):
    """Bytes of all tensors, and of the largest, with g global tokens spread over T."""
    tensors = six(2, T, dtype=torch.float32)
    is_global = torch.zeros(2, T, dtype=torch.bool)
    is_global[:, torch.arange(g) * (T // max(g, 1))] = True

    def run():
        output = longformer_attention(*tensors, is_global, window=window)
        if backward:
            torch.autograd.grad(output.sum(), tensors)

    return allocated_bytes(run)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("g", [0, 1, 8])
@pytest.mark.parametrize("window", [8, 100])
def test_bytes_grow_with_the_length_and_no_tensor_with_its_square(window, g, backward):
    (total, _), (twice, _), (four_times, largest) = (cost(T, g, window, backward) for T in (1024, 2048, 4096))
    assert 1.9 < twice / total < 2.1 and 1.9 < four_times / twice < 2.1
    assert largest < 4096 * 4096 / 8  # a T×T mask of one batch row has one byte a pair


def test_bytes_grow_with_the_global_tokens():
    base, one, two = (cost(1024, g, 8, False)[0] for g in (0, 64, 128))
    assert 0.9 < (two - one) / (one - base) < 1.1


def test_one_global_token_costs_little_beside_the_window():
    query, key, value = six(2, 2048, dtype=torch.float32)[:3]
    near, _ = allocated_bytes(lambda: sliding_window_attention(query, key, value, window=16, causal=False))
    assert cost(2048, 1, 16, False)[0] < 1.5 * near


# --- what is refused


def test_parameters_have_the_names_and_shapes_of_the_contract():
    names = ["q_proj", "k_proj", "v_proj", "q_global_proj", "k_global_proj", "v_global_proj", "o_proj"]
    layer = LongformerAttention(8, 2, window=3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {f"{n}.weight": (8, 8) for n in names}
    layer = LongformerAttention(8, 2, window=3, bias=True)
    assert {name for name, _ in layer.named_parameters()} == {f"{n}.{k}" for n in names for k in ("weight", "bias")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 100, "n_heads": 12}, "d_model=100 is not divisible by n_heads=12"),
        ({"window": 0}, "window=0, but it must be at least 1"),
        ({"n_heads": 0}, "n_heads=0, but it must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LongformerAttention(**{"d_model": 8, "n_heads": 2, "window": 3, **options})


@on_both_paths
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(5, 8)}, ValueError, r"x has shape \(5, 8\); it needs three axes, the last of size 8"),
        ({"x": torch.zeros(2, 5, 8).half()}, TypeError, "x torch.float16, the layer's weights torch.float32"),
        ({"global_tokens": torch.zeros(2, 5)}, TypeError, "global_tokens has dtype torch.float32"),
        ({"global_tokens": torch.zeros(2, 5).long()}, TypeError, "global_tokens has dtype torch.int64"),
        ({"global_tokens": [0]}, TypeError, "global_tokens has dtype list"),
        ({"global_tokens": torch.ones(5).bool()}, ValueError, r"shape \(5,\); it must be \(B, T\)=\(2, 5\)"),
        ({"global_tokens": torch.ones(2, 4).bool()}, ValueError, r"shape \(2, 4\); it must be \(B, T\)=\(2, 5\)"),
        ({"mask": torch.ones(2, 1, 5, 5).bool()}, ValueError, r"mask has shape \(2, 1, 5, 5\); this mechanism takes"),
        ({"mask": torch.ones(2, 5).bool()}, ValueError, r"\(B, 1, 1, S\)=\(2, 1, 1, 5\)"),
        ({"mask": torch.ones(2, 1, 1, 5)}, TypeError, "mask has dtype torch.float32"),
        ({"cache": object()}, ValueError, "Longformer takes no cache: it reads whole sequences"),
    ],
)
def test_bad_input_is_refused_with_the_numbers(arguments, error, message, return_weights):
    with pytest.raises(error, match=message):
        LongformerAttention(8, 2, window=3)(**{"x": torch.zeros(2, 5, 8), **arguments}, return_weights=return_weights)


@pytest.mark.parametrize(
    ("index", "tensor", "error", "message"),
    [
        (
            0,
            torch.zeros(1, 2, 5, 8),
            ValueError,
            r"query \(1, 2, 5, 8\) and key \(1, 2, 6, 8\) need the same four axes",
        ),
        (1, torch.zeros(1, 2, 6, 7), ValueError, "query has D=8 but key has D=7"),
        (
            3,
            torch.zeros(1, 2, 5, 8),
            ValueError,
            r"query has shape \(1, 2, 6, 8\), but query_global has \(1, 2, 5, 8\)",
        ),
        (
            5,
            torch.zeros(1, 2, 6, 7),
            ValueError,
            r"value has shape \(1, 2, 6, 8\), but value_global has \(1, 2, 6, 7\)",
        ),
        (4, torch.zeros(1, 2, 6, 8).double(), TypeError, "key torch.float32, key_global torch.float64"),
        (2, torch.zeros(1, 2, 6, 8).double(), TypeError, "key torch.float32, value torch.float64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(index, tensor, error, message):
    tensors = [torch.zeros(1, 2, 6, 8) for _ in range(6)]
    tensors[index] = tensor
    with pytest.raises(error, match=message):
        longformer_attention(*tensors, window=2)
    with pytest.raises(ValueError, match="window=0, but it must be at least 1"):
        longformer_attention(*tensors, window=0)


def test_under_autocast_both_paths_agree():
    torch.manual_seed(0)
    layer, x = LongformerAttention(16, 4, window=3), torch.randn(2, 20, 16)
    is_global = drawn(2, 20, 0.2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x, global_tokens=is_global)
        expected, _ = layer(x, global_tokens=is_global, return_weights=True)
    assert output.dtype == torch.bfloat16
    assert_equal(output.float(), expected.float(), 0.02)


@both_ways
def test_one_row_of_padding_stands_for_all(causal):
    tensors, real = six(), (torch.arange(T) < T - 3)[None]
    for is_global in (None, drawn(B, T, 0.35)):
        options = {"window": 3, "causal": causal}
        alone = longformer_attention(*tensors, is_global, as_mask(real), **options)
        assert_equal(alone, longformer_attention(*tensors, is_global, as_mask(real.expand(B, T)), **options))


def test_no_token_gives_no_output():
    tensors = six(T=0)
    assert longformer_attention(*tensors, torch.zeros(B, 0, dtype=torch.bool), window=3).shape == (B, H, 0, DV)
