import pytest
import torch

from attncourse.lab.budget import options_at
from attncourse.mechanisms import MECHANISMS, build

FIXED = {"multi_head", "sparse", "mqa"}
SIZES = [(64, 8, 256), (96, 6, 128), (1024, 16, 4096)]  # d_model, n_heads, n_tokens


def kept(name, budget, d_model, n_heads, n_tokens):
    """Numbers that the cache of such a layer really holds of n_tokens tokens, from the cache itself."""
    heads, options = options_at(name, budget, d_model, n_heads, n_tokens)
    with torch.device("meta"):
        return build(name, d_model, heads, **options).new_cache(1, n_tokens).nbytes // 4


@pytest.mark.parametrize("name", sorted(set(MECHANISMS) - FIXED))
@pytest.mark.parametrize("d_model, n_heads, n_tokens", SIZES)
@pytest.mark.parametrize("budget", [1, 1 / 2, 1 / 4, 1 / 8])
def test_a_layer_keeps_no_more_than_its_budget_and_nearly_as_much(name, d_model, n_heads, n_tokens, budget):
    allowed = budget * 2 * d_model * n_tokens
    if name == "gqa" and n_heads == 6 and budget < 1 / 2:
        return  # of the divisors of 6, 1 is next below 6/4: tested below
    numbers = kept(name, budget, d_model, n_heads, n_tokens)
    if name == "linear":  # the nearest of what its heads allow
        heads = [H for H in range(1, d_model // 2 + 1) if d_model % (2 * H) == 0]
        sizes = [d_model * (d_model // H + 1) for H in heads]
        ratio = [max(size / allowed, allowed / size) for size in sizes]
        assert numbers == sizes[ratio.index(min(ratio))]
    else:
        smallest_step = {"gqa": 0, "mla": n_tokens, "sliding_window": 2 * d_model, "performer": 2 * d_model}[name]
        assert allowed - smallest_step <= numbers <= allowed


@pytest.mark.parametrize("d_model, n_heads, n_tokens", SIZES)
def test_what_cannot_be_made_smaller_keeps_what_it_keeps(d_model, n_heads, n_tokens):
    for budget in (1, 1 / 4):
        assert all(options_at(name, budget, d_model, n_heads, n_tokens) == (n_heads, {}) for name in FIXED)
    whole = 2 * d_model * n_tokens
    assert kept("multi_head", 1 / 4, d_model, n_heads, n_tokens) == whole
    assert kept("sparse", 1 / 4, d_model, n_heads, n_tokens) == whole
    assert kept("mqa", 1, d_model, n_heads, n_tokens) == whole // n_heads


def test_one_budget_by_hand():
    """An eighth of 2 · 64 · 256 numbers: 16 a token, 4,096 in all."""
    at = {name: options_at(name, 1 / 8, 64, 8, 256) for name in MECHANISMS}
    assert at["gqa"] == (8, {"n_kv_heads": 1})
    mla = {"kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    assert at["mla"] == (8, mla)
    assert at["sliding_window"] == (8, {"window": 32})
    assert at["performer"] == (8, {"n_features": 56})  # 8 · 56 · 9 = 4,032
    assert at["linear"] == (1, {})  # one head of 64: 64 · 65 = 4,160


def test_key_value_heads_divide_the_heads():
    assert options_at("gqa", 5 / 6, 96, 6, 128) == (6, {"n_kv_heads": 3})
    assert options_at("gqa", 1 / 2, 96, 6, 128) == (6, {"n_kv_heads": 3})
    assert options_at("gqa", 0.49, 96, 6, 128) == (6, {"n_kv_heads": 2})


def test_the_rotated_part_of_mla_is_even_and_at_most_a_head():
    for budget in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16):
        _, options = options_at("mla", budget, 64, 8, 256)
        R = options["qk_rope_head_dim"]
        assert R % 2 == 0 and 2 <= R <= 8 and R + options["kv_lora_rank"] == budget * 128


def test_a_state_and_a_window_depend_on_the_tokens_that_the_budget_is_for():
    short, long = (options_at("sliding_window", 1 / 8, 64, 8, T)[1]["window"] for T in (256, 4096))
    assert (short, long) == (32, 512)
    assert options_at("gqa", 1 / 8, 64, 8, 256) == options_at("gqa", 1 / 8, 64, 8, 4096)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("flash", 1 / 2, 64, 8, 256), "name='flash', but it must be one of multi_head"),
        (("gqa", 0, 64, 8, 256), "budget=0 of multi-head attention's cache; it must be more than 0"),
        (("gqa", 1.5, 64, 8, 256), "budget=1.5"),
        (("gqa", 1 / 2, 64, 7, 256), "64 is not divisible by n_heads=7"),
        (("gqa", 1 / 2, 64, 8, 0), "n_tokens=0"),
        (
            ("gqa", 1 / 16, 64, 8, 256),
            "budget=0.0625 is too small for gqa: it leaves 8 numbers a token of 256, and n_kv",
        ),
        (("mla", 1 / 64, 64, 8, 256), "kv_lora_rank=0"),
        (("sliding_window", 1 / 512, 64, 8, 256), "window=0"),
        (("performer", 1 / 1024, 64, 8, 256), "n_features=0"),
    ],
)
def test_a_budget_that_cannot_be_met_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        options_at(*arguments)
