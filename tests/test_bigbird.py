"""What BigBird promises: its pattern pair by pair, each block once, whatever the path, at a cost linear in T."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.attention import scaled_dot_product_attention
from attncourse.bigbird import BigBirdAttention, bigbird_attention, bigbird_mask
from attncourse.causal import causal_attention
from attncourse.lab.measure import allocated_bytes
from attncourse.masks import random_block_mask, random_blocks
from attncourse.multi_head import MultiHeadAttention
from tests.test_bahdanau import assert_all_equal, assert_equal, gradients, normal, on_devices
from tests.test_causal import influence
from tests.test_self_attention import filled

B, T, H, D, D_VALUE = 2, 17, 3, 4, 5
BLOCK = 3  # 17 tokens are five blocks and two tokens

on_causal = pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])
# Tokens and their block: several blocks, a last one of 1, 2 or all its tokens, three blocks, two, one, less than one.
on_sizes = pytest.mark.parametrize(
    ("T", "block"), [(17, 3), (16, 3), (18, 3), (9, 3), (5, 3), (3, 3), (2, 3), (1, 1), (7, 1)]
)


def make(device="cpu", **options):
    layer = filled(BigBirdAttention(H * D, H, **{"block": BLOCK, "n_random": 1, **options}), device)
    for parameter in layer.parameters():
        parameter.data *= 0.5  # with more, 17 tokens are so uneven that some weights vanish
    return layer


def heads(T=T, device="cpu"):
    """Query, key and value, (B, H, T, …)."""
    return [normal(B, H, T, size, seed=i, device=device) for i, size in enumerate((D, D, D_VALUE))]


def any_blocks(*shape, n_blocks, seed=0):
    """A table (…, N, r) of any blocks at all: the own, neighbours, global ones, the same again, later ones, none."""
    return torch.randint(-1, n_blocks, shape, generator=torch.Generator().manual_seed(seed))


def some_padding(T, kind):
    """(B or 1, 1, 1, T) or None. `hard`: a sequence has no token at all, the other none but one."""
    index = torch.arange(T)
    real = {
        "left": index >= torch.tensor([[0], [T // 2]]),
        "right": index < torch.tensor([[T], [T // 2]]),
        "shared": (index % 4 != 1)[None],
        "hard": (index == T // 2) & torch.tensor([[False], [True]]),
    }
    return None if kind is None else real[kind][:, None, None]


# --- the pattern


def brute_force(T, random, block, causal):
    """The pattern cell by cell, from sets of blocks."""
    last = (T - 1) // block

    def sees(i, j):
        mine, other = i // block, j // block
        global_blocks = {0} if causal else {0, last}
        reached = {mine - 1, mine, mine + 1} | global_blocks | set(random[mine].tolist())
        return (other in reached or mine in global_blocks) and not (causal and j > i)

    return torch.tensor([[sees(i, j) for j in range(T)] for i in range(T)])


@on_sizes
@on_causal
@pytest.mark.parametrize("r", [0, 1, 3])
def test_the_pattern_is_its_definition(T, block, causal, r):
    N = -(-T // block)
    for random in (any_blocks(N, r, n_blocks=N), random_blocks(N, r, seed=5)):
        actual = bigbird_mask(T, random, block=block, causal=causal)
        assert actual.dtype == torch.bool and actual.tolist() == brute_force(T, random, block, causal).tolist()
    by_head = any_blocks(H, N, r, n_blocks=N)
    expected = [bigbird_mask(T, random, block=block, causal=causal).tolist() for random in by_head]
    assert bigbird_mask(T, by_head, block=block, causal=causal).tolist() == expected


def test_the_pattern_by_hand():
    """Six blocks of one token; block 3 draws 1, block 4 draws what it sees anyway."""
    random = torch.tensor([[-1], [-1], [-1], [1], [3], [-1]])
    rows = ["111111", "111001", "111101", "111111", "100111", "111111"]
    causal = ["1", "11", "111", "1111", "10011", "100011"]
    both = bigbird_mask(6, random, block=1).int().tolist()
    assert ["".join(map(str, row)) for row in both] == rows
    cut = bigbird_mask(6, random, block=1, causal=True).int().tolist()
    assert ["".join(map(str, row)) for row in cut] == [row.ljust(6, "0") for row in causal]


def test_random_blocks_are_those_of_the_mask_and_of_every_shorter_table():
    table = random_blocks(20, 3, seed=7)
    assert table.shape == (20, 3) and table.dtype == torch.int64
    assert [sorted(set(row) - {-1}) for row in table.tolist()] == [
        row.nonzero().flatten().tolist() for row in random_block_mask(20, block=1, n_random=3, seed=7)
    ]
    assert table[1].tolist() == [0, -1, -1]
    for n in range(1, 20):
        assert torch.equal(random_blocks(n, 3, seed=7), table[:n])
    assert random_blocks(4, 0, seed=7).shape == (4, 0)


# --- blocks equal the mask


@on_devices
@on_sizes
@on_causal
@pytest.mark.parametrize("padding", [None, "left", "right", "shared", "hard"])
@pytest.mark.parametrize("by_head", [False, True], ids=["one table", "by head"])
def test_blocks_equal_the_dense_mask(T, block, causal, padding, by_head, device):
    inputs, N = heads(T, device), -(-T // block)
    random = any_blocks(*([H] if by_head else []), N, 2, n_blocks=N)
    mask = some_padding(T, padding)
    pattern = bigbird_mask(T, random, block=block, causal=causal)
    mask, allowed = (None, pattern) if mask is None else (mask.to(device), pattern & mask)
    actual = bigbird_attention(*inputs, random.to(device), mask, block=block, causal=causal)
    expected, _ = scaled_dot_product_attention(*inputs, allowed.to(device), return_weights=True)
    assert_equal(actual, expected)
    assert_all_equal(gradients([actual], inputs), gradients([expected], inputs))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 24), st.integers(1, 6), st.integers(0, 4), st.booleans(), st.integers(0, 99))
def test_any_table_counts_a_block_once(data, T, block, r, causal, seed):
    N = -(-T // block)
    random = any_blocks(N, r, n_blocks=N, seed=seed)
    inputs = heads(T)
    actual = bigbird_attention(*inputs, random, block=block, causal=causal)
    expected, _ = scaled_dot_product_attention(*inputs, brute_force(T, random, block, causal), return_weights=True)
    assert_equal(actual, expected)


@on_causal
def test_naming_a_block_that_is_seen_anyway_changes_nothing(causal):
    N = 6
    nothing = torch.full((N, 3), -1)
    own = torch.arange(N)[:, None]
    again = torch.cat([own, own, (own - 1).clamp(min=0)], 1)
    expected = bigbird_attention(*heads(), nothing, block=BLOCK, causal=causal)
    for random in (again, torch.zeros(N, 3).long(), torch.zeros(N, 0).long()):
        assert torch.equal(bigbird_attention(*heads(), random, block=BLOCK, causal=causal), expected)


@on_devices
@on_causal
def test_all_blocks_random_is_dense_attention(causal, device):
    inputs = heads(device=device)
    random = torch.arange(6).expand(6, 6)
    attend = causal_attention if causal else scaled_dot_product_attention
    assert_equal(bigbird_attention(*inputs, random, block=BLOCK, causal=causal), attend(*inputs))


@pytest.mark.parametrize(
    ("causal", "options"),
    [
        *[(causal, {"block": block, "n_random": 0}) for causal in (False, True) for block in (6, 9, 17, 40)],
        (True, {"n_random": 5}),
    ],
    ids=str,
)
def test_few_blocks_or_all_of_them_are_multi_head_attention(causal, options):
    """Of three blocks, each is global or beside the others. Drawing all earlier ones is all that causality allows."""
    layer, x = make(causal=causal, **options), normal(B, T, H * D, seed=9)
    dense = MultiHeadAttention(H * D, H, causal=causal).double()
    dense.load_state_dict(layer.state_dict(), strict=True)
    actual, expected = layer(x), dense(x)
    assert_equal(actual, expected)
    wanted = [[x, *module.parameters()] for module in (layer, dense)]
    assert_all_equal(gradients([actual], wanted[0]), gradients([expected], wanted[1]))


# --- the layer


@on_devices
@on_causal
@pytest.mark.parametrize("padding", [None, "left", "right", "shared", "hard"])
def test_both_paths_agree(causal, padding, device):
    layer, x = make(device, causal=causal, bias=True, n_random=2), normal(B, T, H * D, seed=9, device=device)
    mask = some_padding(T, padding)
    mask = None if mask is None else mask.to(device)
    output, weights = layer(x, mask=mask, return_weights=True)
    blocks = layer(x, mask=mask)
    assert weights.shape == (B, H, T, T)
    pattern = brute_force(T, random_blocks(6, 2, seed=0), BLOCK, causal).to(device)
    allowed = (pattern if mask is None else pattern & mask).expand(B, H, T, T)
    assert weights[~allowed].eq(0).all() and weights[allowed].gt(0).all()
    assert_equal(blocks, output)
    wanted = [x, *layer.parameters()]
    assert_all_equal(gradients([blocks], wanted), gradients([output], wanted))


@on_devices
@on_causal
def test_the_jacobian_is_zero_outside_the_pattern(causal, device):
    layer, x = make(device, causal=causal), normal(B, T, H * D, seed=9, device=device)
    found = influence(layer, x)
    pattern = brute_force(T, random_blocks(6, 1, seed=0), BLOCK, causal).to(device)
    assert not pattern.all()
    assert found[~pattern].eq(0).all() and found[pattern].min() > 1e-6
    if causal:
        assert found.triu(1).eq(0).all()


@pytest.mark.parametrize("length", range(1, T))
def test_a_causal_prefix_does_not_depend_on_what_follows(length):
    layer, x = make(causal=True, n_random=2), normal(B, T, H * D, seed=9).detach()
    assert_equal(layer(x[:, :length]), layer(x)[:, :length])


def test_the_seed_chooses_the_blocks():
    x = normal(B, 30, H * D, seed=9)
    assert torch.equal(make()(x), make(seed=0)(x))
    outputs = {make(seed=seed)(x).sum().item() for seed in range(10)}
    assert len(outputs) == 10


def test_padding_has_no_influence():
    layer, x = make(n_random=2), normal(B, T, H * D, seed=9).detach()
    mask = some_padding(T, "shared")
    changed = x.masked_fill(~mask[:, 0, 0, :, None], 100.0)
    real = mask[0, 0, 0]
    assert torch.equal(layer(x, mask=mask)[:, real], layer(changed, mask=mask)[:, real])


def test_right_padding_equals_a_shorter_sequence_where_causal():
    layer, x = make(causal=True, n_random=2), normal(B, T, H * D, seed=9).detach()
    mask = (torch.arange(T) < 10)[None, None, None]
    assert_equal(layer(x, mask=mask)[:, :10], layer(x[:, :10]))


@on_devices
@on_causal
def test_a_token_with_nothing_to_see_gives_zeros_and_no_gradient(causal, device):
    layer, x = make(device, causal=causal), normal(B, T, H * D, seed=9, device=device)
    mask = some_padding(T, "hard").to(device)
    output = layer(x, mask=mask)
    assert output[0].eq(0).all()
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient[0].eq(0).all() and gradient.isfinite().all()


# --- cost


@on_causal
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_memory_is_linear_forward_and_backward(causal, padded):
    """Counted bytes of every tensor made: twice the tokens make at most twice of them, and no tensor is T×T."""
    block, width = 16, 8
    layer = BigBirdAttention(width, 2, block=block, n_random=2, causal=causal)

    def forward_and_backward(T):
        x = torch.randn(1, T, width, requires_grad=True)
        mask = torch.arange(T)[None, None, None] >= 5 if padded else None
        return allocated_bytes(lambda: torch.autograd.grad(layer(x, mask=mask).sum(), [x, *layer.parameters()]))

    (total, largest), (total_twice, largest_twice) = forward_and_backward(1024), forward_and_backward(2048)
    assert total_twice <= 2.1 * total and largest_twice <= 2 * largest
    assert largest_twice < 2048 * 2048  # bytes: a boolean T×T has more, and scores four times as many


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 100, "n_heads": 12}, "d_model=100 is not divisible by n_heads=12"),
        ({"n_heads": 0}, "n_heads=0, but it must be at least 1"),
        ({"block": 0}, "block=0, but it must be at least 1"),
        ({"n_random": -1}, "n_random=-1, but it must be at least 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BigBirdAttention(**{"d_model": 12, "n_heads": 3, "block": 4, "n_random": 1, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(5, 12)}, ValueError, r"x has shape \(5, 12\); it needs three axes, the last of size 12"),
        ({"x": torch.zeros(2, 5, 12).half()}, TypeError, "x torch.float16, the layer's weights torch.float32"),
        ({"mask": torch.ones(5, 5).bool()}, ValueError, r"mask has shape \(5, 5\).*\(B, 1, 1, S\)=\(2, 1, 1, 5\)"),
        ({"mask": torch.ones(2, 1, 5, 5).bool()}, ValueError, "mask of every query and key would cost T×S"),
        ({"mask": torch.ones(2, 1, 1, 5)}, TypeError, "mask has dtype torch.float32"),
        ({"cache": object()}, ValueError, "takes no cache: it reads whole sequences"),
    ],
)
@on_causal
@pytest.mark.parametrize("return_weights", [False, True], ids=["blocks", "explicit"])
def test_bad_input_is_refused_with_the_numbers(arguments, error, message, causal, return_weights):
    layer = BigBirdAttention(12, 3, block=2, n_random=1, causal=causal)
    with pytest.raises(error, match=message):
        layer(**{"x": torch.zeros(2, 5, 12), "return_weights": return_weights, **arguments})


@pytest.mark.parametrize(
    ("random", "error", "message"),
    [
        (
            torch.zeros(5, 2).long(),
            ValueError,
            r"random has shape \(5, 2\); 17 tokens in blocks of 3 need \(N, r\)=\(6",
        ),
        (torch.zeros(7, 2).long(), ValueError, r"random has shape \(7, 2\)"),
        (torch.zeros(6).long(), ValueError, r"random has shape \(6,\)"),
        (torch.zeros(1, 3, 6, 2).long(), ValueError, r"random has shape \(1, 3, 6, 2\)"),
        (torch.zeros(3, 5, 2).long(), ValueError, r"random has shape \(3, 5, 2\)"),
        (torch.full((6, 2), 6), ValueError, "random names blocks 6 … 6, but there are 0 … 5, and -1 for none"),
        (torch.full((6, 2), -2), ValueError, "random names blocks -2 … -2, but there are 0 … 5"),
        (torch.zeros(6, 2), TypeError, "random has dtype torch.float32; it must hold indices"),
        (torch.zeros(6, 2).bool(), TypeError, "random has dtype torch.bool"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(random, error, message):
    with pytest.raises(error, match=message):
        bigbird_attention(*heads(), random, block=BLOCK)
    with pytest.raises(error, match=message):
        bigbird_mask(T, random, block=BLOCK)


def test_heads_that_do_not_fit_are_refused():
    query, key, value = heads()
    random = torch.zeros(6, 2).long()
    with pytest.raises(ValueError, match=r"\(2, 6, 2\).*\(H, N, r\)=\(3, 6, r\)"):
        bigbird_attention(query, key, value, random.expand(2, 6, 2), block=BLOCK)
    with pytest.raises(ValueError, match="need the same four axes"):
        bigbird_attention(query[0], key[0], value[0], random, block=BLOCK)
    with pytest.raises(ValueError, match=r"query \(2, 3, 4, 4\) and key \(2, 3, 17, 4\)"):
        bigbird_attention(query[:, :, :4], key, value, random, block=BLOCK)
    with pytest.raises(ValueError, match=r"mask has shape \(17, 17\); this mechanism takes padding"):
        bigbird_attention(query, key, value, random, torch.ones(T, T).bool(), block=BLOCK)
    with pytest.raises(ValueError, match="block=0, but it must be at least 1"):
        bigbird_attention(query, key, value, random, block=0)
    with pytest.raises(ValueError, match="block=-1, but it must be at least 1"):
        bigbird_mask(T, random, block=-1)
    with pytest.raises(ValueError, match="T=0, but it must be at least 1"):
        bigbird_mask(0, random, block=BLOCK)
    with pytest.raises(TypeError, match="dtypes differ"):
        bigbird_attention(query.float(), key, value, random, block=BLOCK)
    with pytest.raises(ValueError, match="n_random=-1, but it must be at least 0"):
        random_blocks(4, -1, seed=0)
    with pytest.raises(ValueError, match="n_blocks=0, but it must be at least 1"):
        random_blocks(0, 1, seed=0)


def test_no_token_gives_no_output():
    layer = make()
    assert layer(torch.zeros(B, 0, H * D).double()).shape == (B, 0, H * D)
