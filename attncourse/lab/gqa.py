"""The experiments of chapter 13: uptraining (a multi-head model made to share key-value heads), and what a step costs.

`RUNS` convert the trained byte model of `attncourse.lab.language` and go on training it for 5 % of its steps, three
seeds each; the model that is not converted goes on as well. Letters: B sequences, S cached tokens, H query heads, G
key-value heads, D numbers of a head.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from attncourse.gqa import GroupedQueryAttention, group_heads, grouped_query_attention
from attncourse.kv_cache import KVCache
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.language import FILE, held_out_loss, language_loss, load_language_model
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History, train
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads

# --- uptraining


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. method None: the model as it was trained, with n_kv_heads of H."""

    n_kv_heads: int
    method: str | None
    steps: int = 200  # 5 % of the 4,000 that made the model
    batch_size: int = 16
    length: int = 256
    lr: float = 3e-3  # the first training's, as in the paper


RUNS = {
    "not converted": Settings(8, None),
    **{f"G = {G}, mean": Settings(G, "mean") for G in (4, 2, 1)},
    **{f"G = 4, {method}": Settings(4, method) for method in ("first", "random")},
}
N_BYTES_HELD_OUT = 40_000


def convert(model: Decoder, n_kv_heads: int, method: str = "mean", seed: int = 0) -> Decoder:
    """A copy of a decoder of `multi_head` layers in which every layer has n_kv_heads heads of keys and values.

    The rest of the weights are copied. "random" draws other heads for every layer.
    """
    model = copy.deepcopy(model)
    for number, block in enumerate(model.blocks):
        block.attention = group_heads(block.attention, n_kv_heads, method, seed=1000 * seed + number)
    model.config |= {"mechanism": "gqa", "n_kv_heads": n_kv_heads}
    return model


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """The trained byte model, converted as settings say, before any further step."""
    model, _ = load_language_model()
    return model if settings.method is None else convert(model, settings.n_kv_heads, settings.method, seed)


def uptrain(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """A converted model trained further; `seed` decides the examples, other draws than at first, and random heads."""
    model = make_model(settings, seed).to(device)
    loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed + 1, device)
    return model, train(model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=label)


def conversions(n_bytes: int, seeds: Sequence[int] = (0, 1, 2), device: str = "cpu") -> list[dict]:
    """The held-out loss right after conversion, no step taken, for every G and method: means where it is drawn."""
    rows = []
    for G, method in product((4, 2, 1), ("mean", "first", "random")):
        drawn = seeds if method == "random" else seeds[:1]
        losses = [held_out_loss(make_model(Settings(G, method), seed).to(device), n_bytes) for seed in drawn]
        rows.append({"n_kv_heads": G, "method": method, "loss": round(sum(losses) / len(losses), 4)})
    return rows


def head_likeness(model: Decoder, name: str = "k_proj") -> float:
    """Mean cosine between the weights of neighbouring heads, two by two, in one projection of a multi-head decoder."""
    pairs = []
    for block in model.blocks:
        heads = block.attention.get_parameter(f"{name}.weight").unflatten(0, (block.attention.n_heads, -1)).flatten(1)
        pairs.append(torch.cosine_similarity(heads[0::2], heads[1::2]))
    return torch.cat(pairs).mean().item()


def cached_bytes_per_token(model: Decoder) -> int:
    """Bytes that all layers' caches hold for one token of one sequence, from their storage."""
    return sum(cache.nbytes for cache in model.new_caches(1, 1))


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    n_bytes: int = N_BYTES_HELD_OUT,
) -> dict:
    """Everything, into gqa.json in the folder `out`. What was made from the same is kept.

    Of each run: the loss on the first n_bytes held-out bytes `before` any step and at the end (`loss`), the means of
    ten steps' losses, and bytes a token. And `conversions`, with no step taken.
    """
    path = Path(out) / "gqa.json"
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device), "n_bytes": n_bytes}
    shared["model_sha256"] = hashlib.sha256((DATA / FILE).read_bytes()).hexdigest()
    planned = {}
    for seed, (name, settings) in product(seeds, runs.items()):
        planned[f"{name}/{seed}"] = {"model": name, "seed": seed, "settings": asdict(settings)} | shared

    def make(key: str, made_from: dict) -> dict:
        settings, seed = runs[made_from["model"]], made_from["seed"]
        before = held_out_loss(make_model(settings, seed).to(device), n_bytes)
        model, history = uptrain(settings, seed, device=device, label=key)
        losses = torch.tensor(history.losses)
        record = training_record(model, history) | {"bytes_per_token": cached_bytes_per_token(model)}
        record |= {"before": round(before, 4), "loss": round(held_out_loss(model, n_bytes), 4)}
        return record | {"losses": [round(part.mean().item(), 4) for part in losses.split(10)]}

    keep_or_make(path, planned, make)
    content = json.loads(path.read_text())
    made_from = shared | {"seeds": list(seeds)}
    if any(content.get("conversions", {}).get(field) != value for field, value in made_from.items()):
        content["conversions"] = made_from | {"date": date.today().isoformat()}
        content["conversions"]["rows"] = conversions(n_bytes, seeds, device)
        write_json(path, content)
    return content


# --- what a step costs


def decode_step(layer: nn.Module, x: Tensor, cache: KVCache, *, join: bool = False, repeat: bool = False) -> Tensor:
    """One more token x (B, 1, d_model) of a layer without rotation: (B, 1, d_model). For measuring; no length is kept.

    join: make the keys and values so far anew with `cat`, instead of writing into preallocated room. repeat: give each
    query head a copy of its keys and values, instead of laying the heads that share them one below the other.
    """
    S, G = cache.length, cache.key.shape[1]
    query = split_heads(layer.q_proj(x), layer.n_heads)  # (B, H, 1, D)
    key, value = (split_heads(project(x), G) for project in (layer.k_proj, layer.v_proj))  # (B, G, 1, D)
    if join:
        key = torch.cat([cache.key[:, :, :S], key], 2)  # (B, G, S + 1, D)
        value = torch.cat([cache.value[:, :, :S], value], 2)
    else:
        key, value = cache.append(key, value)
        cache.length = S  # so that the next call measures the same
    if repeat:
        key, value = (x.repeat_interleave(layer.n_heads // G, 1) for x in (key, value))  # (B, H, S + 1, D)
    return layer.o_proj(merge_heads(grouped_query_attention(query, key, value)))


WAYS = {
    "MHA": {},
    "GQA": {},
    "GQA, repeated": {"repeat": True},
    "MHA, joined": {"join": True},
    "GQA, joined and repeated": {"join": True, "repeat": True},
}


def filled_cache(layer: nn.Module, S: int, device: str = "cpu", seed: int = 0) -> KVCache:
    """A layer's cache of S random tokens, with room for one more."""
    cache = layer.new_cache(1, S + 1)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, cache.key.shape[1], S, cache.key.shape[3])
    cache.append(*(torch.randn(shape, generator=generator).to(device) for _ in range(2)))
    return cache


@torch.no_grad()
def step_costs(
    S: int,
    d_model: int = 768,
    n_heads: int = 24,
    n_kv_heads: int = 4,
    *,
    ways: Sequence[str] = tuple(WAYS),
    device: str = "cpu",
    repeats: int = 9,
    timed: bool = True,
) -> dict[str, dict]:
    """One layer's step at S cached tokens in each of `WAYS`: "bytes" of all tensors that it makes, "cache" bytes, "ms".

    The sizes are those of a published comparison: 24 heads, 4 of keys and values, d_model 768.
    """
    torch.manual_seed(0)
    mha = MultiHeadAttention(d_model, n_heads, causal=True).to(device)
    layers = {"MHA": mha, "GQA": group_heads(mha, n_kv_heads)}
    caches = {name: filled_cache(layer, S, device) for name, layer in layers.items()}
    x = torch.randn(1, 1, d_model, device=device)
    calls = {way: partial(decode_step, layers[way[:3]], x, caches[way[:3]], **WAYS[way]) for way in ways}
    rows = {way: {"bytes": allocated_bytes(call)[0], "cache": caches[way[:3]].nbytes} for way, call in calls.items()}
    if timed:
        for way, ms in median_ms(calls, repeats).items():
            rows[way]["ms"] = ms
    return rows


@torch.no_grad()
def costs_by_sharing(
    S: int, d_model: int = 1024, n_heads: int = 16, *, device: str = "cpu", repeats: int = 9, timed: bool = True
) -> list[dict]:
    """One layer's step at S cached tokens for every G that divides n_heads, the most first.

    "weights" and "cached" are the bytes that it has to read, of parameters and of the cache; "ms" the median time.
    """
    layers = {G: GroupedQueryAttention(d_model, n_heads, G).to(device) for G in divisors(n_heads)[::-1]}
    caches = {G: filled_cache(layer, S, device) for G, layer in layers.items()}
    x = torch.randn(1, 1, d_model, device=device)
    calls = {str(G): partial(decode_step, layer, x, caches[G]) for G, layer in layers.items()}
    times = median_ms(calls, repeats) if timed else {}
    rows = []
    for G, layer in layers.items():
        weights = sum(p.numel() * p.element_size() for p in layer.parameters())
        cached = caches[G].nbytes // (S + 1) * S
        rows.append({"G": G, "weights": weights, "cached": cached} | ({"ms": times[str(G)]} if timed else {}))
    return rows


def divisors(n: int) -> list[int]:
    """All numbers that divide n, smallest first: how many key-value heads n query heads can share."""
    return [d for d in range(1, n + 1) if n % d == 0]
