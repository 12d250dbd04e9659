"""What positions promise: rotations keep lengths and depend on differences, slopes fall off, sinusoids differ."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding, alibi_bias, alibi_slopes, apply_rotary, sinusoidal
from tests.test_bahdanau import assert_equal, normal, on_devices
from tests.test_self_attention import filled

LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])


# --- rotations


@LAYOUTS
def test_rotation_by_hand(interleaved):
    """D=4 and base 100: pair 0 turns by p, pair 1 by p / 10."""
    rotary = RotaryEmbedding(4, 100.0, interleaved)
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]] if interleaved else [[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    p = 3
    a, b = float(p), p / 10
    expected = [math.cos(a), math.sin(a), math.cos(b), math.sin(b)]
    order = [0, 1, 2, 3] if interleaved else [0, 2, 1, 3]
    got = apply_rotary(x, torch.tensor([p]), rotary)
    assert_equal(got, torch.tensor([[expected[i] for i in order]], dtype=torch.float64))


@on_devices
@LAYOUTS
@settings(max_examples=30, deadline=None)
@given(shift=st.integers(-500, 500), base=st.sampled_from([100.0, 10000.0]))
def test_scores_depend_on_the_difference_of_positions_alone(interleaved, device, shift, base):
    rotary = RotaryEmbedding(8, base, interleaved)
    query, key = normal(2, 3, 5, 8, seed=1, device=device), normal(2, 3, 6, 8, seed=2, device=device)
    i, j = torch.arange(5, device=device), torch.arange(6, device=device) * 2

    def scores(i, j):
        return apply_rotary(query, i, rotary) @ apply_rotary(key, j, rotary).transpose(-1, -2)

    assert_equal(scores(i + shift, j + shift), scores(i, j), 1e-10)
    assert (scores(i + 1, j) - scores(i, j)).abs().max() > 0.1


@LAYOUTS
def test_rotation_keeps_lengths_and_position_0_leaves_alone(interleaved):
    rotary = RotaryEmbedding(6, interleaved=interleaved)
    x = normal(2, 7, 6, seed=1)
    turned = apply_rotary(x, torch.arange(7), rotary)
    assert_equal(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def test_the_two_layouts_are_a_permutation_apart():
    x, positions = normal(2, 7, 6, seed=1), torch.arange(7)
    order = torch.tensor([0, 2, 4, 1, 3, 5])  # pairs (0, 1) (2, 3) (4, 5) as halves
    halves = apply_rotary(x[..., order], positions, RotaryEmbedding(6))
    assert_equal(halves, apply_rotary(x, positions, RotaryEmbedding(6, interleaved=True))[..., order])


def test_positions_may_differ_by_sequence():
    rotary, x = RotaryEmbedding(4), normal(2, 3, 5, 4, seed=1)
    positions = torch.tensor([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])[:, None]  # (B, 1, T)
    turned = apply_rotary(x, positions, rotary)
    for b in range(2):
        assert_equal(turned[b], apply_rotary(x[b], positions[b, 0], rotary))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_far_positions_stay_exact(dtype):
    """At position 40,000 an angle kept in bfloat16 would be off by more than a turn."""
    rotary = RotaryEmbedding(4).to(dtype)
    x, position = torch.ones(1, 4, dtype=dtype), torch.tensor([40000])
    turned = apply_rotary(x, position, rotary)
    exact = apply_rotary(x.double(), position, RotaryEmbedding(4))
    assert turned.dtype == dtype
    assert_equal(turned.double(), exact, {torch.bfloat16: 0.02, torch.float32: 5e-3, torch.float64: 1e-12}[dtype])


def test_what_would_turn_wrongly_without_a_word_is_refused():
    x, rotary = torch.zeros(4, 4, 8, 6), RotaryEmbedding(6)
    with pytest.raises(ValueError, match=r"positions have shape \(4, 8\), .* \(4, 4, 8\)"):  # (B, T) with B = H
        apply_rotary(x, torch.arange(8).repeat(4, 1), rotary)
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        apply_rotary(x.long(), torch.arange(8), rotary)


def test_a_rotary_embedding_adds_nothing_to_the_state_dict():
    layer = MultiHeadAttention(12, 3, rotary=RotaryEmbedding(4))
    assert list(layer.state_dict()) == [f"{name}_proj.weight" for name in "qkvo"]
    assert not list(RotaryEmbedding(4).state_dict()) and not list(RotaryEmbedding(4).parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryEmbedding(5), "dim=5, but numbers are turned in pairs"),
        (lambda: RotaryEmbedding(0), "dim=0, but numbers are turned in pairs"),
        (lambda: RotaryEmbedding(4, base=0), "base=0, but it must be positive"),
        (lambda: apply_rotary(torch.zeros(2, 6), torch.arange(2), RotaryEmbedding(4)), r"\(2, 6\); .* rotary.dim=4"),
        (
            lambda: apply_rotary(torch.zeros(2, 4), torch.arange(3), RotaryEmbedding(4)),
            r"\(3,\), .* broadcast to \(2,\)",
        ),
        (lambda: sinusoidal(3, 5), "d_model=5 is odd"),
        (lambda: sinusoidal(0, 4), "n_positions=0"),
        (lambda: alibi_slopes(0), "n_heads=0"),
        (lambda: alibi_bias(2, 3, 0), "S=0"),
    ],
)
def test_bad_input_is_refused_with_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- sinusoids


def test_sinusoids_by_the_formula():
    table = sinusoidal(5, 6)
    assert table.shape == (5, 6) and table.dtype == torch.float32
    for p in range(5):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_a_shift_of_sinusoids_is_a_rotation_that_depends_on_the_shift_alone():
    table, rotary = sinusoidal(20, 8).double(), RotaryEmbedding(8, interleaved=True)
    swapped = table.unflatten(1, (4, 2)).flip(-1).flatten(1)  # (cos, sin): an angle of its own
    assert_equal(apply_rotary(swapped[:15], torch.tensor([5]), rotary), swapped[5:], 1e-6)


# --- ALiBi


@pytest.mark.parametrize(
    ("n_heads", "first", "last"), [(8, 1 / 2, 1 / 256), (16, 2**-0.5, 1 / 256), (1, 1 / 256, 1 / 256)]
)
def test_slopes_of_a_power_of_two(n_heads, first, last):
    slopes = alibi_slopes(n_heads)
    assert slopes.shape == (n_heads,)
    assert slopes[0].item() == pytest.approx(first) and slopes[-1].item() == pytest.approx(last)
    ratios = slopes[1:] / slopes[:-1]
    assert_equal(ratios, torch.full_like(ratios, 2 ** (-8 / n_heads)), 1e-6)


def test_slopes_of_12_heads_are_those_of_8_and_every_second_of_16():
    assert_equal(alibi_slopes(12), torch.cat([alibi_slopes(8), alibi_slopes(16)[:8:2]]), 0)


@pytest.mark.parametrize(("T", "S"), [(4, 4), (2, 5), (1, 6)])
def test_bias_is_minus_slope_times_distance(T, S):
    bias, slopes = alibi_bias(4, T, S), alibi_slopes(4)
    assert bias.shape == (4, T, S)
    for h in range(4):
        for i in range(T):
            for j in range(S):
                assert bias[h, i, j].item() == pytest.approx(-slopes[h].item() * abs(S - T + i - j))


# --- what attention does without them, and with them


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_without_positions_permuting_tokens_permutes_outputs(positions):
    options = {"rotary": {"rotary": RotaryEmbedding(4)}, "alibi": {"alibi": True}}.get(positions, {})
    layer, x = filled(MultiHeadAttention(12, 3, **options)), normal(2, 5, 12, seed=9)
    order = torch.tensor([3, 0, 4, 1, 2])
    difference = (layer(x[:, order]) - layer(x)[:, order]).abs().max()
    assert difference < 1e-12 if positions == "none" else difference > 0.1


def test_sinusoids_may_start_anywhere():
    assert torch.equal(sinusoidal(4, 6, start=3), sinusoidal(7, 6)[3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_angles_are_float32_or_wider_and_stand_with_their_positions(dtype):
    rotary = RotaryEmbedding(8)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    angles = rotary.angles(torch.tensor([3, 257]), dtype)
    assert angles.dtype == wanted
    assert_equal(angles[:, 1].double(), torch.tensor([0.3, 25.7]).double(), 1e-5)
    assert rotary.angles(torch.arange(3, device="meta"), dtype).device.type == "meta"
    assert alibi_bias(3, 5, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="T=0, but it must be at least 1"):
        alibi_bias(3, 0, 5)


def test_positions_may_wait_on_another_device():
    turned = apply_rotary(torch.zeros(2, 3, 8, device="meta"), torch.arange(3), RotaryEmbedding(8))
    assert turned.device.type == "meta" and turned.shape == (2, 3, 8)


def test_a_rotation_says_what_it_is():
    assert repr(RotaryEmbedding(8, 500, True)) == "RotaryEmbedding(8, base=500, interleaved=True)"
    assert repr(RotaryEmbedding(4)) == "RotaryEmbedding(4, base=10000, interleaved=False)"
