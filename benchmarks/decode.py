"""What a decoding step costs: `python benchmarks/decode.py [--tokens N …] [--out FILE] [--device cuda]`.

Whole layers, projections included, of 16 heads of 128 (d_model 2048), batch 1, each with a preallocated cache that
holds N tokens; one more is read at a time. Multi-head, grouped (4 key-value heads), multi-query and latent attention
(512 + 64 numbers, absorbed and naive), and Hugging Face's Llama and DeepSeek-V3 layers with the same weights and their
own cache. Then a prefill, with the bytes of the largest tensor that it makes.

Times are medians of calls taken in turn within one process, on one thread. A GPU runs 16 bits and replays CUDA graphs,
so that launches do not count; its table has the share of the memory bandwidth that a copy reaches. Prints a table and
says which targets are reached; with --out writes it all, with what it ran on.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from attncourse.gqa import GroupedQueryAttention
from attncourse.lab.measure import allocated_bytes, matmul_dtype, median_ms
from attncourse.lab.records import environment, write_json
from attncourse.mla import MultiHeadLatentAttention
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding

D_MODEL, H, D, G = 2048, 16, 128, 4
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
TOKENS = {"cpu": [8192], "cuda": [32768, 131072]}
PREFILL = 2048
# At 8,192 tokens on a CPU: (slower, faster, how many times).
TARGETS = [
    ("multi_head", "gqa", 1.8),
    ("multi_head", "mqa", 3.0),
    ("mla, naive", "mla, absorbed", 20.0),
    ("multi_head", "mla, absorbed", 1.0),
    ("Hugging Face, Llama", "multi_head", 1.3),
    ("Hugging Face, DeepSeek-V3", "mla, absorbed", 10.0),
]
Step = Callable[[], object]


def layers(device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Every layer that is measured, with random weights; the two latent ones share theirs."""
    rotary = RotaryEmbedding(D)
    torch.manual_seed(0)
    found = {
        "multi_head": MultiHeadAttention(D_MODEL, H, causal=True, rotary=rotary),
        "gqa": GroupedQueryAttention(D_MODEL, H, G, rotary=rotary),
        "mqa": MultiQueryAttention(D_MODEL, H, rotary=rotary),
        "mla, absorbed": MultiHeadLatentAttention(D_MODEL, H, **LATENT),
        "mla, naive": MultiHeadLatentAttention(D_MODEL, H, **LATENT, decoding="naive"),
    }
    found["mla, naive"].load_state_dict(found["mla, absorbed"].state_dict())
    return {name: layer.to(device, dtype).eval() for name, layer in found.items()}


def our_step(layer: nn.Module, n: int, x: Tensor) -> Step:
    """One token after n in a full cache; its length is set back, so that every call does the same."""
    cache = layer.new_cache(1, n + 1)
    cache.key.normal_()
    if cache.value.untyped_storage().data_ptr() != cache.key.untyped_storage().data_ptr():
        cache.value.normal_()

    def step() -> Tensor:
        cache.length = n
        return layer(x, cache=cache)

    return step


def their_steps(ours: dict[str, nn.Module], n: int, x: Tensor) -> dict[str, Step]:
    """The layers of transformers with our weights, and `DynamicCache`, which is made longer by each step."""
    from transformers import DeepseekV3Config, DynamicCache, LlamaConfig
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    shape = {"hidden_size": D_MODEL, "num_attention_heads": H, "num_key_value_heads": H, "attn_implementation": "sdpa"}
    llama = LlamaConfig(**shape, head_dim=D)
    deepseek = DeepseekV3Config(**shape, **LATENT, q_lora_rank=None, head_dim=LATENT["qk_rope_head_dim"])
    kinds = {
        "Hugging Face, Llama": (LlamaAttention(llama, 0), LlamaRotaryEmbedding(llama), "multi_head", (H, D), (H, D)),
        "Hugging Face, DeepSeek-V3": (
            DeepseekV3Attention(deepseek, 0),
            DeepseekV3RotaryEmbedding(deepseek),
            "mla, naive",
            (1, LATENT["kv_lora_rank"]),
            (1, LATENT["qk_rope_head_dim"]),
        ),
    }
    found = {}
    for name, (layer, rotary, same, key, value) in kinds.items():
        layer.load_state_dict(ours[same].state_dict(), strict=True)
        layer, rotary = layer.to(x).eval(), rotary.to(x.device)
        cache = DynamicCache()
        stored = [torch.randn(1, heads, n, width, device=x.device, dtype=x.dtype) for heads, width in (key, value)]
        cache.update(*stored, 0)

        def step(layer=layer, rotary=rotary, cache=cache) -> Tensor:
            if extra := cache.get_seq_length() - n:
                cache.crop(-extra)
            positions = rotary(x, torch.full((1, 1), n, device=x.device))
            return layer(x, position_embeddings=positions, attention_mask=None, past_key_values=cache)[0]

        found[name] = step
    return found


def graphed(step: Step) -> Step:
    """The step as a CUDA graph, which is launched at once."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    ms = median_ms({"copy": lambda: target.copy_(source)}, 9)["copy"]
    return 2 * source.untyped_storage().nbytes() / ms * 1e3


def measure(n: int, device: str, repeats: int) -> list[dict]:
    """A row for each layer at n tokens."""
    dtype = matmul_dtype(device)
    ours = layers(device, dtype)
    x = torch.randn(1, 1, D_MODEL, device=device, dtype=dtype)
    steps = {name: our_step(layer, n, x) for name, layer in ours.items()}
    if device == "cuda":
        steps = {name: graphed(step) for name, step in steps.items()}
    else:
        steps |= their_steps(ours, n, x)
    rows, times, bandwidth = [], median_ms(steps, repeats), copy_bandwidth(device)
    for name, ms in times.items():
        row = {"layer": name, "tokens": n, "ms": round(ms, 4)}
        if name in ours:
            weights = sum(p.numel() * p.element_size() for p in ours[name].parameters())
            row |= {"cache_bytes": ours[name].new_cache(1, n).nbytes, "weight_bytes": weights}
            row["share_of_copy"] = round((row["cache_bytes"] + weights) / ms * 1e3 / bandwidth, 3)
        rows.append(row)
        about = f"{row['cache_bytes'] / 1e6:10.1f} MB   {row['share_of_copy']:6.2f} of a copy" if name in ours else ""
        print(f"{name:28}{n:8}{ms:12.3f} ms {times['multi_head'] / ms:8.2f}x {about}", flush=True)
    return rows


def prefill(n: int, device: str, repeats: int) -> list[dict]:
    """A prefill of n tokens into an empty cache: ms, and bytes of the largest tensor that it makes."""
    dtype = matmul_dtype(device)
    x = torch.randn(1, n, D_MODEL, device=device, dtype=dtype)
    calls = {
        name: lambda layer=layer: layer(x, cache=layer.new_cache(1, n))
        for name, layer in layers(device, dtype).items()
        if name != "mla, naive"
    }
    times, rows = median_ms(calls, repeats), []
    for name, ms in times.items():
        largest = allocated_bytes(calls[name])[1]
        rows.append({"layer": name, "tokens": n, "ms": round(ms, 3), "largest_tensor_bytes": largest})
        print(
            f"prefill, {name:19}{n:8}{ms:12.1f} ms {times['multi_head'] / ms:8.2f}x {largest / 1e6:10.1f} MB",
            flush=True,
        )
    return rows


def verdicts(rows: list[dict]) -> list[str]:
    """What each target asks for and what was measured, as lines."""
    at, lines = {row["layer"]: row["ms"] for row in rows if row["tokens"] == 8192}, []
    for slower, faster, target in TARGETS:
        ratio = at[slower] / at[faster]
        word = "reached" if ratio >= target else "MISSED"
        lines.append(f"{faster} against {slower}: {ratio:.2f} times faster (target {target}) {word}")
    return lines


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, nargs="+", help="in the cache (default: 8192; 32768 131072 on a GPU)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    for n in options.tokens or TOKENS[options.device]:
        rows += measure(n, options.device, options.repeats)
    prefills = prefill(PREFILL, options.device, 3)
    if options.device == "cpu" and any(row["tokens"] == 8192 for row in rows):
        print("\n" + "\n".join(verdicts(rows)))
    if options.out:
        settings = {"d_model": D_MODEL, "heads": H, "head_dim": D, "n_kv_heads": G, "latent": LATENT, "batch": 1}
        content = {"date": date.today().isoformat(), "environment": environment(options.device), "settings": settings}
        write_json(options.out, content | {"rows": rows, "prefill": prefills})


if __name__ == "__main__":
    main()
