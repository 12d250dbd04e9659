"""The law of every cache: any chunking of a sequence gives the outputs of one pass. And that this test is able to fail.

Hypothesis draws partitions and left padding for every mechanism that keeps a cache. The three famous bugs of chunked
decoding break the law, and each is shown to be caught, by few partitions.
"""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import attncourse
from attncourse.causal import CausalSelfAttention
from attncourse.masks import causal_mask
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding, apply_rotary
from tests.test_bahdanau import assert_equal, normal
from tests.test_causal import partitions

B, T, H, D = 2, 14, 4, 4
ROTARY = RotaryEmbedding(D)
LAYERS = {
    "multi_head": {"rotary": ROTARY},
    "sliding_window": {"rotary": ROTARY, "window": 4, "n_kv_heads": 2},
    "sparse": {"rotary": ROTARY},
    "linear": {},
    "performer": {},
    "mqa": {"rotary": ROTARY},
    "gqa": {"rotary": ROTARY, "n_kv_heads": 2},
    "mla": {},
    "mla, naive": {"decoding": "naive", "q_lora_rank": 5, "rope_interleaved": False},
    "causal": None,
}


def make(name):
    torch.manual_seed(1)
    options = LAYERS[name]
    if options is None:
        return CausalSelfAttention(H * D).double()
    return attncourse.build(name.split(",")[0], H * D, H, **options).double()


def read(layer, x, real, chunks):
    """The outputs of x (B, T, d_model), read in pieces through a cache."""
    cache, outputs = layer.new_cache(len(x), x.shape[1]), []
    for start, end in pairwise([0, *torch.tensor(chunks).cumsum(0).tolist()]):
        outputs.append(layer(x[:, start:end], mask=real[..., :end], cache=cache))
    assert cache.length == x.shape[1]
    return torch.cat(outputs, 1)


def left_padded(padding):
    return (torch.arange(T) >= torch.tensor([0, padding])[:, None])[:, None, None]  # (B, 1, 1, T)


def test_every_mechanism_with_a_cache_is_here():
    assert {name.split(",")[0] for name in LAYERS} >= set(attncourse.MECHANISMS)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=200, deadline=None)
@given(partitions(T), st.integers(0, 5))
@example([T], 3)
@example([1] * T, 3)
def test_any_chunking_equals_one_pass(name, chunks, padding):
    layer, x, real = make(name), normal(B, T, H * D, seed=9).detach(), left_padded(padding)
    assert_equal(read(layer, x, real, chunks), layer(x, mask=real), 1e-10)


@pytest.mark.parametrize("chunks", [[1] * T, [6, 1, 7], [5, 9]], ids=str)
def test_it_holds_for_many_heads_that_share_one(chunks):
    torch.manual_seed(1)
    layer = attncourse.build("mqa", 71 * 2, 71, rotary=RotaryEmbedding(2)).double()
    x, real = normal(B, T, 71 * 2, seed=9).detach(), left_padded(3)
    assert_equal(read(layer, x, real, chunks), layer(x, mask=real), 1e-10)


class Faulty(MultiHeadAttention):
    """A decoder's attention as much public code has it, with one of three bugs."""

    def __init__(self, bug):
        super().__init__(H * D, H, causal=True, rotary=ROTARY)
        self.bug = bug

    def forward(self, x, *, mask=None, cache=None):
        past, new = (0 if cache is None else cache.length), x.shape[1]
        heads = [proj(x).unflatten(-1, (H, D)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        start = 0 if self.bug == "restarted positions" else past
        places = torch.arange(start, start + new)
        query, key = (apply_rotary(x, places, self.rotary) for x in heads[:2])
        value = heads[2]
        if cache is not None:
            key, value = cache.append(key, value)
        pattern = causal_mask(new, past + new)
        if self.bug == "is_causal only when the cache is empty" and past:
            pattern = torch.ones_like(pattern)
        elif self.bug == "top-left aligned":  # what SDPA's is_causal=True means for T < S
            pattern = torch.ones_like(pattern).tril()
        allowed = pattern if mask is None else pattern & mask
        empty = ~allowed.any(-1, keepdim=True)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed | empty).masked_fill(empty, 0)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


BUGS = ["is_causal only when the cache is empty", "top-left aligned", "restarted positions"]


def broken_by(layer, chunks, padding=0):
    x, real = normal(B, T, H * D, seed=9).detach(), left_padded(padding)
    return (read(layer, x, real, chunks) - layer(x, mask=real)).abs().max().item() > 1e-3


@pytest.mark.parametrize("bug", BUGS)
def test_the_law_catches_each_famous_bug(bug):
    torch.manual_seed(1)
    layer = Faulty(bug).double()
    assert broken_by(layer, [6, 8]) and broken_by(layer, [6, 8], padding=3) and broken_by(layer, [3, 4, 7])
    assert not broken_by(layer, [T])  # one pass cannot show it, which is why it lives in public code
    assert broken_by(layer, [1] * T) == (bug != BUGS[0])  # nor do single tokens show the first


def test_without_a_bug_the_same_layer_keeps_the_law():
    torch.manual_seed(1)
    layer = Faulty(None).double()
    assert not any(broken_by(layer, chunks, 3) for chunks in ([6, 8], [1] * T, [3, 4, 7], [T]))


@pytest.mark.parametrize("name", LAYERS)
def test_bad_input_leaves_a_cache_unchanged(name):
    layer, x = make(name), normal(B, T, H * D, seed=9).detach()
    cache = layer.new_cache(B, T)
    layer(x[:, :5], cache=cache)
    other = make("linear" if name != "linear" and name != "performer" else "gqa")
    bad = [
        (ValueError, lambda: layer(x[:1, :2], cache=cache)),
        (ValueError, lambda: layer(x[:, :2, :-1], cache=cache)),
        (ValueError, lambda: layer(x[:, :2], mask=torch.ones(B, 1, 1, 4, dtype=torch.bool), cache=cache)),
        (TypeError, lambda: layer(x[:, :2], mask=torch.ones(B, 1, 1, 7), cache=cache)),
        (
            ValueError,
            lambda: layer(x[:, :2], mask=torch.ones(B, 1, 1, 7, dtype=torch.bool, device="meta"), cache=cache),
        ),
        (TypeError, lambda: layer(x[:, :2].float(), cache=cache)),
        (TypeError, lambda: layer(x[:, :2], cache=other.new_cache(B, T))),
    ]
    for error, call in bad:
        with pytest.raises(error):
            call()
        assert cache.length == 5
    again = layer.new_cache(B, T)
    layer(x[:, :5], cache=again)
    assert_equal(layer(x[:, 5:], cache=cache), layer(x[:, 5:], cache=again))


@pytest.mark.parametrize("name", ["multi_head", "mqa", "gqa", "mla"])
def test_a_cache_that_is_too_short_says_how_long_it_must_be(name):
    layer, x = make(name), normal(B, T, H * D, seed=9).detach()
    cache = layer.new_cache(B, 6)
    layer(x[:, :5], cache=cache)
    with pytest.raises(ValueError, match=r"holds 5 of at most 6 tokens, so 3 more do not fit: .*max_length=8"):
        layer(x[:, 5:8], cache=cache)
    assert cache.length == 5
