"""The experiments of chapter 12: what one key-value head for all costs in quality, and what a step reads.

Small decoders read bytes, and copy symbols; three seeds each. Multi-head attention; multi-query attention, whose layers
have fewer parameters; multi-query attention whose network is wider by as many (Shazeer 2019 did so); and, as small a
cache in another way, one narrow head, its network wider too. Letters: S cached tokens, H query heads, G key-value
heads, D numbers of a head.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from attncourse.gqa import GroupedQueryAttention, grouped_query_attention
from attncourse.kv_cache import KVCache
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.gqa import cached_bytes_per_token, filled_cache
from attncourse.lab.language import held_out_loss, language_loss
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.tasks import copy_task, task_accuracy
from attncourse.lab.training import History, seeded, train
from attncourse.mqa import MultiQueryAttention
from attncourse.multi_head import merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary

# --- quality


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed.

    n_heads query heads of d_model / 8 numbers each, n_kv_heads of keys and values; network: its width in each layer.
    task: "bytes" (pieces of `length`) or "copy" (`length` symbols of n_symbols).
    """

    n_heads: int
    n_kv_heads: int
    network: int
    d_model: int = 64
    n_layers: int = 2
    steps: int = 240
    batch_size: int = 8
    length: int = 128
    lr: float = 3e-3
    task: str = "bytes"
    n_symbols: int = 200


MODELS = {
    "MHA": Settings(8, 8, 256),
    "MQA": Settings(8, 1, 256),
    "MQA, wider network": Settings(8, 1, 312),
    "one narrow head, wider network": Settings(1, 1, 368),
}
COPY = {"task": "copy", "steps": 200, "batch_size": 16, "length": 12}
RUNS = {f"bytes, {name}": settings for name, settings in MODELS.items()}
RUNS |= {f"copy, {name}": replace(settings, **COPY) for name, settings in MODELS.items()}
RUNS |= {f"copy of 8, {name}": replace(MODELS[name], **COPY, n_symbols=8) for name in ("MHA", "MQA")}
HELD_OUT_BYTES = 40_000


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """A fresh model of 8 heads of d_model / 8 numbers, or of fewer such heads, and of that width of network."""
    torch.manual_seed(seed)
    d_model, head_dim = settings.d_model, settings.d_model // 8
    sizes = {"d_model": d_model, "n_heads": 8, "n_layers": settings.n_layers, "max_length": settings.length}
    sharing = {"mechanism": "multi_head"} if settings.n_heads == settings.n_kv_heads else {"mechanism": "mqa"}
    model = Decoder(N_BYTES, **sizes, **sharing)
    for block in model.blocks:
        if settings.n_heads < 8:
            narrow, attention = settings.n_heads * head_dim, block.attention
            attention.n_heads, attention.rotary = settings.n_heads, RotaryEmbedding(head_dim)
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(attention, name, nn.Linear(d_model, narrow, bias=False))
            attention.o_proj = nn.Linear(narrow, d_model, bias=False)
        if settings.network != 4 * d_model:
            block.up = nn.Linear(d_model, settings.network, bias=False)
            block.down = nn.Linear(settings.network, d_model, bias=False)
    return model


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """A trained model; `seed` decides its first weights and its examples, the same for all models."""
    model = make_model(settings, seed).to(device)
    if settings.task == "bytes":
        loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed, device)
    else:

        def loss_fn(model: nn.Module, step: int) -> Tensor:
            tokens, counted = copy_task(settings.batch_size, settings.length, settings.n_symbols, seeded(seed, step))
            return next_token_loss(model, tokens.to(device), counted.to(device))

    return model, train(model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=label)


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    n_bytes: int = HELD_OUT_BYTES,
) -> dict:
    """Everything, into mqa.json in the folder `out`: losses on the first n_bytes held-out bytes, or on 500 sequences to
    copy with the share of right symbols, and bytes a token.

    What was made from the same is kept.
    """
    path = Path(out) / "mqa.json"
    here = environment(device)
    shared = {"corpus": load_corpus().provenance(), "environment": here, "n_bytes": n_bytes}
    planned = {}
    for seed, (name, settings) in product(seeds, runs.items()):
        made_from = {"model": name, "seed": seed, "settings": asdict(settings)}
        planned[f"{name}/{seed}"] = made_from | (shared if settings.task == "bytes" else {"environment": here})

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        record = training_record(model, history) | {"bytes_per_token": cached_bytes_per_token(model)}
        if settings.task == "bytes":
            record["loss"] = round(held_out_loss(model, n_bytes, settings.length), 4)
        else:
            tokens, counted = copy_task(500, settings.length, settings.n_symbols, seeded(2_000_000, 0))
            with torch.no_grad():
                record["loss"] = round(next_token_loss(model, tokens.to(device), counted.to(device)).item(), 4)
            record["exact"] = round(task_accuracy(model, tokens, counted), 4)
        losses = torch.tensor(history.losses)
        return record | {"losses": [round(part.mean().item(), 4) for part in losses.split(20)]}

    keep_or_make(path, planned, make)
    return json.loads(path.read_text())


# --- what a step reads


class StoredRepeated(MultiQueryAttention):
    """For demonstration only: multi-query attention that caches its key and value after repeating them for every head.

    The outputs are right; what the cache takes, chapter 12 asks.
    """

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        weight = self.k_proj.weight
        return KVCache(batch_size, self.n_heads, max_length, weight.shape[0], dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, *, cache: KVCache) -> Tensor:
        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key, value = (split_heads(project(x), 1) for project in (self.k_proj, self.v_proj))  # (B, 1, T, D)
        if self.rotary is not None:
            positions = torch.arange(cache.length, cache.length + x.shape[1], device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        key, value = (kv.repeat_interleave(self.n_heads, 1) for kv in (key, value))  # (B, H, T, D): too early
        key, value = cache.append(key, value)
        return self.o_proj(merge_heads(grouped_query_attention(query, key, value)))


STEPS = ("MHA", "MQA", "MQA, stored repeated")


@torch.no_grad()
def step_costs(
    S: int, d_model: int = 1024, n_heads: int = 16, *, device: str = "cpu", repeats: int = 9, timed: bool = True
) -> dict[str, dict]:
    """One layer's step at S cached tokens, in each of `STEPS`: bytes of weights and cache that it reads, made tensors.

    "ms" is the median time of the whole layer, "attention_ms" of scores, softmax and sums alone.
    """
    torch.manual_seed(0)
    layers = {
        "MHA": GroupedQueryAttention(d_model, n_heads, n_heads),
        "MQA": MultiQueryAttention(d_model, n_heads),
        "MQA, stored repeated": StoredRepeated(d_model, n_heads),
    }
    x, query = torch.randn(1, 1, d_model), torch.randn(1, n_heads, 1, d_model // n_heads)
    x, query = x.to(device), query.to(device)
    rows, whole, alone = {}, {}, {}
    for name, layer in layers.items():
        cache = filled_cache(layer.to(device), S, device)
        whole[name] = partial(_step, layer, x, cache)
        alone[name] = partial(grouped_query_attention, query, cache.key, cache.value)
        rows[name] = {
            "weights": sum(p.numel() * p.element_size() for p in layer.parameters()),
            "cache": cache.nbytes // (S + 1) * S,
            "made": allocated_bytes(alone[name])[0],
        }
    if timed:
        for field, functions in (("ms", whole), ("attention_ms", alone)):
            for name, ms in median_ms(functions, repeats).items():
                rows[name][field] = ms
    return rows


def _step(layer: nn.Module, x: Tensor, cache: KVCache) -> Tensor:
    """One more token; the cache's length is set back, so that the next call measures the same."""
    output = layer(x, cache=cache)
    cache.length -= 1
    return output
