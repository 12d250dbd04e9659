"""Tiles and pages against production: PyTorch's fused attention and its gradients, Llama with its caches.

The fused kernels are FlashAttention themselves, so the logarithm of each row's sum, which they keep for the backward
pass, can be compared too.
"""

from functools import reduce

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from attncourse.execution import attend_part, finish, merge, online_attention, tiled_attention, tiled_forward
from attncourse.masks import causal_mask
from attncourse.paged_cache import BlockPool, PagedKVCache, paged_step
from tests.oracles.compare import TORCH, close, in_dtypes, on_devices, real_tokens, sequence
from tests.oracles.test_gqa import HUGGING_FACE, llama

pytestmark = pytest.mark.oracle(chapter="15_execution", module="execution", library="torch")

SIZES = [(2, 3, 7, 7, 4, 6), (1, 2, 65, 65, 8, 8), (2, 1, 33, 70, 16, 16), (3, 4, 1, 50, 2, 2)]  # B, H, T, S, D, Dv
with_sizes = pytest.mark.parametrize(("B", "H", "T", "S", "D", "Dv"), SIZES)
FORMS = {
    "online": lambda *given, **options: online_attention(*given, tile=16, **options),
    "tiled": lambda *given, **options: tiled_attention(*given, query_tile=8, key_tile=16, **options),
}


@pytest.mark.oracle(
    theirs="scaled_dot_product_attention", what="all, causal, padded, both; T ≤ S, values of another width"
)
@on_devices
@in_dtypes
@pytest.mark.parametrize("kind", ["all", "causal", "padded", "causal, padded"])
@pytest.mark.parametrize("form", [pytest.param(form, marks=pytest.mark.oracle(mechanism=form)) for form in FORMS])
@with_sizes
def test_tiles_equal_the_fused_kernel(B, H, T, S, D, Dv, form, kind, dtype, device):
    given = tuple(
        sequence(B, H, *shape, device=device, dtype=dtype, seed=i) for i, shape in enumerate(((T, D), (S, D)))
    )
    given += (sequence(B, H, S, Dv, device=device, dtype=dtype, seed=9),)
    causal = "causal" in kind
    mask = real_tokens(B, S, device)[:, None, None] if "padded" in kind else None
    pattern = causal_mask(T, S, device=device) if causal else torch.ones(T, S, dtype=torch.bool, device=device)
    if causal and mask is None and T == S:  # the kernel's own flag, whose alignment differs otherwise
        expected = F.scaled_dot_product_attention(*given, is_causal=True)
    else:
        expected = F.scaled_dot_product_attention(*given, pattern if mask is None else pattern & mask)
    output = FORMS[form](*given, mask, causal=causal)
    close(output, expected, TORCH[dtype], "output")
    grad = sequence(*output.shape, device=device, dtype=dtype, seed=11).detach()
    wanted, found = (torch.autograd.grad(of, given, grad) for of in (expected, output))
    for name, got, want in zip(("query", "key", "value"), found, wanted, strict=True):
        close(got, want, TORCH[dtype], f"gradient of {name}", gradient=True)


@pytest.mark.oracle(
    mechanism="tiled",
    theirs="_scaled_dot_product_flash_attention_for_cpu",
    what="outputs and the logarithms of the rows' sums, causal and not; merged parts too",
)
@in_dtypes
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 65, 300])
def test_what_is_kept_for_the_backward_pass_equals_the_kernels(T, causal, dtype):
    given = [sequence(2, 3, T, 8, device="cpu", dtype=dtype, seed=i).detach() for i in range(3)]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    expected, their_log_sum = flash(*given, 0.0, causal)
    output, log_sum = tiled_forward(*given, None, causal, 8**-0.5, 16, 32)
    close(output, expected, TORCH[dtype], "output")
    close(log_sum[..., 0], their_log_sum.to(dtype), TORCH[dtype], "log-sum-exp")
    if not causal:
        query, key, value = given
        parts = [attend_part(query, *kv) for kv in zip(key.split(16, 2), value.split(16, 2), strict=True)]
        running = reduce(merge, parts)
        close(finish(running), expected, TORCH[dtype], "output of merged parts")
        log_sum = running.maximum + running.total.log()
        close(log_sum[..., 0], their_log_sum.to(dtype), TORCH[dtype], "log-sum-exp of merged parts")


@pytest.mark.oracle(
    mechanism="paged",
    module="paged_cache",
    library="transformers",
    theirs="LlamaAttention",
    what="three sequences of different lengths in one pool, three sizes of blocks; outputs, stored keys and values",
)
@on_devices
@in_dtypes
@pytest.mark.parametrize(("H", "G"), [(4, 2), (6, 1), (4, 4)])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_pages_equal_llama_with_a_cache_for_each_sequence(block_size, H, G, dtype, device):
    """Three sequences of different lengths decode together through pages; Llama decodes each alone."""
    D, lengths = 4, (2, 5, 11)
    ours, theirs, rotary = llama(H, G, D, device, dtype)
    x = sequence(3, 16, H * D, device=device, dtype=dtype).detach()
    pool = BlockPool(60, block_size, G, D, dtype=dtype, device=device)
    caches, their_caches = [PagedKVCache(pool) for _ in lengths], [DynamicCache() for _ in lengths]

    def llama_reads(i, start, end):
        pattern = causal_mask(end - start, end, device=device)
        added = torch.zeros(pattern.shape, dtype=dtype, device=device).masked_fill(~pattern, torch.finfo(dtype).min)
        places = rotary(x, torch.arange(start, end, device=device)[None])
        return theirs(x[i : i + 1, start:end], places, added[None, None], past_key_values=their_caches[i])[0]

    for i, n in enumerate(lengths):
        close(ours(x[i : i + 1, :n], cache=caches[i]), llama_reads(i, 0, n), HUGGING_FACE[dtype], "prefill")
    for n_new in (1, 1, 2, 1):
        starts = [cache.length for cache in caches]
        new = torch.stack([x[i, start : start + n_new] for i, start in enumerate(starts)])
        output = paged_step(ours, new, caches)
        for i, start in enumerate(starts):
            expected = llama_reads(i, start, start + n_new)
            close(output[i : i + 1], expected, HUGGING_FACE[dtype], f"sequence {i} from token {start}")
            close(caches[i].key, their_caches[i].layers[0].keys, HUGGING_FACE[dtype], "stored keys")
            close(caches[i].value, their_caches[i].layers[0].values, HUGGING_FACE[dtype], "stored values")
