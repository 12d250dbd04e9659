"""Longformer's attention against transformers' `LongformerSelfAttention` and the dense layer that follows it.

Its window w is our W = w/2 + 1. It needs T to be a multiple of w, so other lengths are padded for it, and not for us.
Outputs, weights, and the gradients of inputs and parameters, largest difference: 1e-4 in float32; 1e-12 in float64,
where its softmax, float32 whatever the input, is made to keep the dtype.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerAttention as TheirAttention

from attncourse.longformer import LongformerAttention
from tests.oracles.compare import close, compare, filled, in_dtypes, on_both_paths, on_devices, sequence
from tests.oracles.weights import from_longformer

pytestmark = pytest.mark.oracle(
    mechanism="longformer",
    chapter="09_sparse",
    module="longformer",
    library="transformers",
    theirs="LongformerSelfAttention",
)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}

with_sizes = pytest.mark.parametrize(
    ("B", "T", "H", "D", "w"),
    [
        (2, 12, 3, 4, 6),
        (3, 24, 2, 6, 4),
        (4, 32, 1, 8, 8),
        (3, 7, 2, 5, 4),  # T is no multiple of w
        (2, 5, 4, 3, 16),  # the window is wider than the sequence
        (1, 1, 2, 4, 4),
        (2, 70, 2, 4, 32),  # several blocks of ours
        (2, 300, 2, 4, 254),
    ],
)
KINDS = ["no global", "first", "ragged", "all global", "no global, padded", "ragged, padded", "all global, padded"]


def tokens(kind, B, T, device):
    """Which tokens are global, and which are real, (B, T) each, drawn: another number in each row."""
    generator = torch.Generator().manual_seed(11)
    share = torch.tensor([0.4, 0.0, 0.15, 0.7])[:B, None]  # a row of none among them
    is_global = {
        "no global": torch.zeros(B, T, dtype=torch.bool),
        "first": (torch.arange(T) == 0).expand(B, T),
        "ragged": torch.rand(B, T, generator=generator) < share,
        "all global": torch.ones(B, T, dtype=torch.bool),
    }[kind.split(",")[0]]
    real = torch.ones(B, T, dtype=torch.bool)
    if "padded" in kind:  # row 0 at its end, others anywhere
        real = torch.rand(B, T, generator=generator) < 0.75
        real[0] = torch.arange(T) < -(-2 * T // 3)
    return is_global.to(device), real.to(device)


def layers(H, D, w, device, dtype):
    config = LongformerConfig(
        hidden_size=H * D, num_attention_heads=H, attention_window=[w], attention_probs_dropout_prob=0.0
    )
    theirs = TheirAttention(config, layer_id=0)
    theirs.output.LayerNorm = nn.Identity()
    theirs = filled(theirs, device, dtype)
    ours = LongformerAttention(H * D, H, window=w // 2 + 1, bias=True).to(device, dtype)
    ours.load_state_dict(from_longformer(theirs), strict=True)
    return ours, theirs


def run_theirs(theirs, x, is_global, real, w, output_attentions=False):
    """Their outputs for x (B, T, d), padded to a multiple of w: their mask is -1 padding, 0 local, 1 global."""
    T = x.shape[1]
    more = -T % w
    kind = F.pad(torch.where(real, is_global.long(), -1), (0, more), value=-1).to(x.dtype)
    output, *weights = theirs.self(
        F.pad(x, (0, 0, 0, more)),
        attention_mask=kind * 10000,
        is_index_masked=kind < 0,
        is_index_global_attn=kind > 0,
        is_global_attn=bool((kind > 0).any()),
        output_attentions=output_attentions,
    )
    # Where no token is global they leave those projections out: their gradients are zeros here, not missing.
    unused = sum(parameter.sum() for parameter in theirs.parameters())
    return theirs.output.dense(output)[:, :T] + 0 * unused, weights


def keep_dtype(monkeypatch, dtype):
    """Their softmax is float32 whatever the input, in float64 NaN where it has only the lowest number: keep float64."""
    if dtype == torch.float64:
        softmax = F.softmax
        monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype: softmax(scores, dim))


@pytest.mark.oracle(what="global tokens: none, first, ragged, all; padding anywhere; its softmax made to keep float64")
@on_devices
@in_dtypes
@on_both_paths
@pytest.mark.parametrize("kind", KINDS)
@with_sizes
def test_longformer_equals_transformers(B, T, H, D, w, kind, return_weights, dtype, device, monkeypatch):
    keep_dtype(monkeypatch, dtype)
    ours, theirs = layers(H, D, w, device, dtype)
    x = sequence(B, T, H * D, device=device, dtype=dtype)
    is_global, real = tokens(kind, B, T, device)
    expected, _ = run_theirs(theirs, x, is_global, real, w)
    mask = real[:, None, None] if "padded" in kind else None
    result = ours(x, global_tokens=is_global, mask=mask, return_weights=return_weights)
    actual = result[0] if return_weights else result
    compare(ours, theirs, from_longformer, [x], [actual], [expected], TOLERANCE[dtype])


@pytest.mark.oracle(what="weights, put together from its diagonals, columns and rows")
@on_devices
@in_dtypes
@pytest.mark.parametrize("kind", KINDS)
@with_sizes
def test_weights_equal_transformers(B, T, H, D, w, kind, dtype, device, monkeypatch):
    """Theirs come apart: g columns of global keys, then w + 1 diagonals; and the rows of global tokens."""
    keep_dtype(monkeypatch, dtype)
    ours, theirs = layers(H, D, w, device, dtype)
    x = sequence(B, T, H * D, device=device, dtype=dtype).detach()
    is_global, real = tokens(kind, B, T, device)
    _, weights = ours(x, global_tokens=is_global, mask=real[:, None, None], return_weights=True)
    _, (local, *of_global) = run_theirs(theirs, x, is_global, real, w, output_attentions=True)
    expected = torch.zeros(B, H, T, T, dtype=dtype, device=device)
    g = local.shape[-1] - w - 1
    for i in range(T):
        first, last = max(0, i - w // 2), min(T, i + w // 2 + 1)
        expected[:, :, i, first:last] = local[:, i, :, g + first - i + w // 2 : g + last - i + w // 2]
    for b in range(B):
        for n, j in enumerate((is_global & real)[b].nonzero().flatten().tolist()):
            expected[b, :, :, j] += local[b, :T, :, n].T
        for n, j in enumerate((is_global & real)[b].nonzero().flatten().tolist()):
            expected[b, :, j] = of_global[0][b, :, n, :T]
    close(weights, expected, TOLERANCE[dtype], "weights")
