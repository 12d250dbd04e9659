"""Prefill and decoding step of every mechanism: `python benchmarks/roofline.py [--out FILE] [--device cuda]`.

Whole layers of 16 heads of 64 (d_model 1024), rotated, at a quarter of multi-head attention's cache, beside multi-head
attention itself. A prefill reads n tokens into an empty cache; a step ends with n in the cache. Steps are also measured
of a batch, in which the weights are read once for all sequences. Beside each time stand the FLOP and the bytes of
`attncourse.lab.costs`, and the least time that the roofline of this machine allows.

Times are medians of calls taken in turn within one process, on one thread, float32. A GPU runs 16 bits, and its steps
replay CUDA graphs. Prints a table; with --out writes it all, with what it ran on: data/lab/roofline.json.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from attncourse.lab import costs
from attncourse.lab.measure import matmul_dtype, median_ms
from attncourse.lab.records import environment, write_json
from attncourse.mechanisms import MECHANISMS

D_MODEL, H, BUDGET = 1024, 16, 1 / 4
PREFILLS = {"cpu": [512, 1024, 2048, 4096], "cuda": [1024, 4096, 16384]}
STEPS = {"cpu": [512, 1024, 2048, 4096, 16384], "cuda": [1024, 4096, 16384, 131072]}
BATCHED = {"cpu": (16, 2048), "cuda": (64, 4096)}  # sequences, and tokens of each


def measured(n: int, kinds: Sequence[str], batch: int, device: str, repeats: int, here: costs.Machine) -> list[dict]:
    """A row for each mechanism at n tokens: costs, and ms of the kinds of call that are measured."""
    gpu = device == "cuda"
    dtype = matmul_dtype(device)
    sizes = {"n_tokens": n, "d_model": D_MODEL, "n_heads": H}
    about = {"batch": batch, "device": device, "measure": False, "here": here}
    rows = costs.compare(list(MECHANISMS), budget=BUDGET, **sizes, **about)
    layers = {}
    for name in MECHANISMS:
        layer, _ = costs.layer_at(name, BUDGET, **sizes)
        layers[name] = layer.to(device, dtype).eval()
    for kind in kinds:
        if kind == "prefill":
            calls = {name: costs.prefill_call(layer, n, batch=batch) for name, layer in layers.items()}
            times = median_ms(calls, repeats)
        else:
            lengths = 1 if gpu else 17
            calls = {name: costs.step_call(layer, n, batch=batch, lengths=lengths) for name, layer in layers.items()}
            calls = {name: costs.graphed(call) for name, call in calls.items()} if gpu else calls
            times = median_ms(calls, 5 * repeats)
        for row in rows:
            cost = row[kind]
            cost["ms"] = round(times[row["mechanism"]], 4)
            print(
                f"{kind:8}{row['mechanism']:16}{n:8}{batch:5}{cost['flop'] / 1e9:12.3f} GFLOP"
                f"{cost['bytes'] / 1e6:10.1f} MB{cost['bound_ms']:11.3f} ms at least ({cost['binds']})"
                f"{cost['ms']:11.3f} ms",
                flush=True,
            )
    return [_row(row, n) for row in rows]


def _row(row: dict, n: int) -> dict:
    """One row as it is written, without digits that mean nothing."""
    row = {"mechanism": row["mechanism"], "tokens": n} | row | {"share": round(row["share"], 4)}
    return row | {kind: row[kind] | {"bound_ms": round(row[kind]["bound_ms"], 4)} for kind in costs.KINDS}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3, help="of a prefill; five times as many of a step")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, repeats = options.device, options.repeats
    here = costs.machine(device)
    print(f"{here['flop_per_s'] / 1e9:.1f} GFLOP/s in a product, {here['bytes_per_s'] / 1e9:.2f} GB/s in a copy")
    rows = []
    for n in STEPS[device]:
        kinds = costs.KINDS if n in PREFILLS[device] else ("step",)
        rows += measured(n, kinds, 1, device, repeats, here)
    batch, n = BATCHED[device]
    batched = measured(n, ("step",), batch, device, repeats, here)
    if options.out:
        settings = {"d_model": D_MODEL, "heads": H, "budget": BUDGET, "batch": 1, "repeats": repeats}
        settings["dtype"] = str(matmul_dtype(device)).removeprefix("torch.")
        content = {"date": date.today().isoformat(), "environment": environment(device), "settings": settings}
        here = {name: round(speed) for name, speed in here.items()}
        write_json(
            options.out, content | {"machine": here, "rows": rows, "batched": [{"batch": batch} | r for r in batched]}
        )


if __name__ == "__main__":
    main()
