"""What attention over long contexts costs: `python benchmarks/long_context.py [--out FILE] [--device cuda]`.

Each mechanism of chapters 08 to 10 as a function of query, key and value (batch 1, 8 heads of 64), forward, and forward
and backward, beside PyTorch's causal attention without any pattern at the same length. Times are medians of calls taken
in turn within one process, on one thread (a GPU: float16, against its flash kernel and a compiled `flex_attention`).
What depends on the length alone (sparse's plan, BigBird's random blocks) is made before, and counts in neither.
Peaks are the most bytes held at a time beyond the inputs. Then growth: slopes of log time against log length.

Prints a table and says which targets are reached; with --out writes it all, with what it ran on.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.bigbird import bigbird_attention
from attncourse.lab.measure import median_ms, peak_bytes
from attncourse.lab.records import environment, write_json
from attncourse.linear import elu_features, linear_attention
from attncourse.masks import random_blocks, sliding_window_mask
from attncourse.performer import favor_features, orthogonal_projection
from attncourse.sliding_window import sliding_window_attention
from attncourse.sparse import Strided, Window, sparse_attention

H, D = 8, 64
WINDOW, BLOCK, N_RANDOM = 256, 64, 3  # BigBird: two global blocks, three of the window, three random ones
LENGTHS = {"cpu": [1024, 2048, 4096, 8192, 16384], "cuda": [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]}
LONGEST_MASK = 8192  # a dense window mask: as far as it is worth waiting
PASSES = ("forward", "forward and backward")
# At n = 8192 on a CPU: how many times faster than causal attention without a pattern, the steepest slope, the most MB.
TARGETS = {
    ("sliding_window", "forward"): (6.0, 1.15, 64),
    ("sliding_window", "forward and backward"): (6.0, 1.15, 256),
    ("sparse", "forward"): (3.0, 1.5, None),
    ("bigbird", "forward"): (2.0, 1.5, None),
    ("linear", "forward"): (10.0, 1.25, None),
}
SLOPE_UP_TO = {"linear": 8192}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def mechanisms(n: int, device: str) -> dict[str, Attention]:
    """Every function of query, key and value that is measured at length n."""
    root = math.isqrt(n)
    random = random_blocks(-(-n // BLOCK), N_RANDOM, seed=0).to(device)
    projection = orthogonal_projection(D, D, device=torch.device(device))

    def performer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        features = favor_features(query, projection, is_query=True), favor_features(key, projection, is_query=False)
        return linear_attention(*features, value)

    def masked_window(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    found: dict[str, Attention] = {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "sliding_window": lambda q, k, v: sliding_window_attention(q, k, v, window=WINDOW),
        "sparse": lambda q, k, v: sparse_attention(q, k, v, pattern=[Window(root), Strided(root)]),
        "bigbird": lambda q, k, v: bigbird_attention(q, k, v, random, block=BLOCK),
        "linear": lambda q, k, v: linear_attention(elu_features(q), elu_features(k), v),
        "performer": performer,
    }
    if n <= LONGEST_MASK:
        mask = sliding_window_mask(n, window=WINDOW).to(device)
        found["masked_window"] = masked_window
    if device == "cuda":
        found["flex_window"] = flex_window(n)
    return found


def flex_window(n: int) -> Attention:
    """PyTorch's compiled block-sparse kernel with the same window."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    blocks = create_block_mask(
        lambda b, h, i, j: (i >= j) & (i - j < WINDOW), None, None, n, n, device="cuda", _compile=True
    )
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


def calls(n: int, device: str) -> dict[tuple[str, str], Callable[[], object]]:
    """What is called, for each mechanism and pass."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    inputs = [torch.randn(1, H, n, D, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    upstream = torch.ones_like(inputs[0])

    def forward(attend: Attention) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.no_grad():
                return attend(*inputs)

        return call

    def both(attend: Attention) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*inputs), inputs, upstream)

    found = {}
    for name, attend in mechanisms(n, device).items():
        found[name, PASSES[0]] = forward(attend)
        found[name, PASSES[1]] = both(attend)
    return found


def measure(n: int, device: str, repeats: int) -> list[dict]:
    """A row for each mechanism and pass at length n."""
    rows = []
    everything = calls(n, device)
    for kind in PASSES:
        some = {name: call for (name, of), call in everything.items() if of == kind}
        times = median_ms(some, repeats)
        for name, call in some.items():
            row = {"mechanism": name, "pass": kind, "n": n, "ms": round(times[name], 3)}
            rows.append(row | {"sdpa_ms": round(times["sdpa"], 3), "peak_bytes": peak_bytes(call, device)})
            show(rows[-1])
    return rows


def show(row: dict) -> None:
    speed = row["sdpa_ms"] / row["ms"]
    name, kind, n = row["mechanism"], row["pass"], row["n"]
    print(f"{name:16}{kind:22}{n:8}{row['ms']:12.1f} ms {speed:7.1f}x {row['peak_bytes'] / 1e6:9.1f} MB", flush=True)


def slopes(rows: list[dict]) -> dict[str, dict[str, float]]:
    """For each mechanism and pass, the slope of log ms against log n (least squares), over all its lengths."""
    found: dict[str, dict[str, float]] = {}
    for name, kind in dict.fromkeys((row["mechanism"], row["pass"]) for row in rows):
        points = [
            (math.log(row["n"]), math.log(row["ms"]))
            for row in rows
            if (row["mechanism"], row["pass"]) == (name, kind) and row["n"] <= SLOPE_UP_TO.get(name, row["n"])
        ]
        if len(points) < 2:
            continue
        mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
        covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
        found.setdefault(name, {})[kind] = round(covariance / sum((x - mean_x) ** 2 for x, _ in points), 3)
    return found


def verdicts(rows: list[dict], steepness: dict[str, dict[str, float]]) -> list[str]:
    """What each target asks for and what was measured, as lines."""
    at = {(row["mechanism"], row["pass"]): row for row in rows if row["n"] == 8192}
    lines = []
    for (name, kind), (faster, slope, megabytes) in TARGETS.items():
        row = at[name, kind]
        found = [("times faster", row["sdpa_ms"] / row["ms"], faster, 1), ("slope", steepness[name][kind], slope, -1)]
        if megabytes is not None:
            found.append(("MB at the most", row["peak_bytes"] / 1e6, megabytes, -1))
        for what, value, target, sign in found:
            word = "reached" if sign * value >= sign * target else "MISSED"
            lines.append(f"{name}, {kind}, {what}: {value:.2f} (target {target}) {word}")
    ratio = at["performer", "forward"]["ms"] / at["linear", "forward"]["ms"]
    word = "reached" if ratio <= 3 else "MISSED"
    lines.append(f"performer, forward, times slower than linear: {ratio:.2f} (target 3) {word}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    for n in options.lengths or LENGTHS[options.device]:
        rows += measure(n, options.device, options.repeats)
    steepness = slopes(rows)
    print("\nslopes of log time against log length:")
    for name, of in steepness.items():
        print(f"{name:16}" + "   ".join(f"{kind} {slope:.2f}" for kind, slope in of.items()))
    print()
    if options.device == "cpu" and any(row["n"] == 8192 for row in rows):
        print("\n".join(verdicts(rows, steepness)))
    if options.out:
        settings = {"heads": H, "head_dim": D, "window": WINDOW, "block": BLOCK, "random_blocks": N_RANDOM}
        content = {"date": date.today().isoformat(), "environment": environment(options.device), "settings": settings}
        write_json(options.out, content | {"slopes": steepness, "rows": rows})


if __name__ == "__main__":
    main()
