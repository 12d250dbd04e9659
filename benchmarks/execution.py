"""What execution changes: `python benchmarks/execution.py [--tokens N …] [--out FILE] [--device cuda]`.

Causal attention of 8 heads of 64, batch 1: all scores, the online softmax, tiles, and PyTorch's fused kernel, forward,
and forward with backward; time, and the most bytes held. Then one decoding step of 16 query heads on 4 key-value heads
of 64 for 8 sequences: a plain cache for each, a padded batch, and pages. A softmax that has all its scores is measured
up to 8,192 tokens.

Times are medians of calls taken in turn within one process, on one thread (float32); a GPU runs 16 bits. Prints a
table and says which targets are reached; with --out writes it all, with what it ran on.
"""

import argparse
import sys
from datetime import date
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.attention import scaled_dot_product_attention
from attncourse.execution import online_attention, tiled_attention
from attncourse.gqa import GroupedQueryAttention
from attncourse.lab.measure import matmul_dtype, median_ms, peak_bytes
from attncourse.lab.records import environment, write_json
from attncourse.masks import causal_mask
from attncourse.paged_cache import BlockPool, PagedKVCache, paged_step
from attncourse.positions import RotaryEmbedding

H, D = 8, 64
TOKENS = [512, 1024, 2048, 4096, 8192]
LENGTHS = [250, 500, 750, 1000, 1500, 2000, 3000, 4000]  # of the sequences that decode together
TARGET = 1.6  # times the fused kernel's time, forward, from 2,048 tokens on


def all_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition: T×T scores and weights in memory."""
    mask = causal_mask(query.shape[-2], device=query.device)
    return scaled_dot_product_attention(query, key, value, mask, return_weights=True)[0]


FORMS = {
    "all scores": all_scores,
    "online softmax": online_attention,
    "tiles": tiled_attention,
    "fused": partial(F.scaled_dot_product_attention, is_causal=True),
}


def forward(form, given: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return form(*given)


def forward_backward(form, given: list[Tensor]) -> None:
    torch.autograd.grad(form(*given).sum(), given)


def attention(T: int, device: str, repeats: int) -> list[dict]:
    """A row for each form and pass at T tokens."""
    dtype, rows = matmul_dtype(device), []
    given = [torch.randn(1, H, T, D, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    for kind, run in (("forward", forward), ("forward and backward", forward_backward)):
        calls = {name: partial(run, form, given) for name, form in FORMS.items()}
        times = median_ms(calls, repeats)
        for name, ms in times.items():
            row = {"form": name, "pass": kind, "tokens": T, "ms": round(ms, 3)}
            row |= {"of_fused": round(ms / times["fused"], 2), "peak_bytes": peak_bytes(calls[name], device)}
            rows.append(row)
            about = f"{ms:10.1f} ms {row['of_fused']:7.2f} x fused {row['peak_bytes'] / 1e6:10.1f} MB"
            print(f"{kind:22}{name:16}{T:7}{about}", flush=True)
    return rows


@torch.no_grad()
def steps(device: str, repeats: int) -> list[dict]:
    """One more token for sequences of different lengths: each alone, as a left-padded batch, and in pages."""
    dtype = matmul_dtype(device)
    torch.manual_seed(0)
    layer = GroupedQueryAttention(1024, 16, 4, rotary=RotaryEmbedding(64)).to(device, dtype).eval()
    B, longest = len(LENGTHS), max(LENGTHS) + 1
    x = torch.randn(B, 1, 1024, device=device, dtype=dtype)
    plain = [layer.new_cache(1, n + 1) for n in LENGTHS]
    padded, pool = layer.new_cache(B, longest), BlockPool(1200, 16, 4, 64, dtype=dtype, device=device)
    pages = [PagedKVCache(pool) for _ in LENGTHS]
    real = torch.zeros(B, 1, 1, longest, dtype=torch.bool, device=device)
    for i, n in enumerate(LENGTHS):
        key, value = torch.randn(2, 1, 4, n, 64, device=device, dtype=dtype)
        plain[i].append(key, value), pages[i].append(key, value)
        padded.key[i, :, longest - 1 - n : -1], padded.value[i, :, longest - 1 - n : -1] = key[0], value[0]
        real[i, ..., longest - 1 - n :] = True

    def each_alone() -> None:
        for i, cache in enumerate(plain):
            cache.length = LENGTHS[i]
            layer(x[i : i + 1], cache=cache)

    def as_a_batch() -> None:
        padded.length = longest - 1
        layer(x, mask=real, cache=padded)

    def in_pages() -> None:
        for n, cache in zip(LENGTHS, pages, strict=True):
            cache.length = n
        paged_step(layer, x, pages)

    calls = {"each alone, plain caches": each_alone, "padded batch": as_a_batch, "pages": in_pages}
    held = {
        "each alone, plain caches": len(LENGTHS) * plain[-1].nbytes,  # each reserves what the longest may need
        "padded batch": padded.nbytes,
        "pages": pool.used_bytes,
    }
    rows = []
    for name, ms in median_ms(calls, repeats).items():
        rows.append(
            {"form": name, "ms": round(ms, 3), "bytes": held[name], "made_bytes": peak_bytes(calls[name], device)}
        )
        print(f"step of {B}, {name:26}{ms:10.2f} ms {held[name] / 1e6:10.1f} MB held", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    for T in options.tokens:
        rows += attention(T, options.device, options.repeats)
    decoding = steps(options.device, 3 * options.repeats)
    if options.device == "cpu":
        for row in rows:
            if row["form"] == "tiles" and row["pass"] == "forward" and row["tokens"] >= 2048:
                word = "reached" if row["of_fused"] <= TARGET else "MISSED"
                print(f"tiles at {row['tokens']}: {row['of_fused']} times the fused kernel (target {TARGET}) {word}")
    if options.out:
        settings = {"heads": H, "head_dim": D, "batch": 1, "lengths": LENGTHS, "n_kv_heads": 4, "block_size": 16}
        content = {"date": date.today().isoformat(), "environment": environment(options.device), "settings": settings}
        write_json(options.out, content | {"rows": rows, "steps": decoding})


if __name__ == "__main__":
    main()
