"""The experiments of chapter 11: what decoding costs with and without a cache, and what fewer bits do to a model.

Calls are counted and timed one by one. The trained byte model of `lab.language` reads held-out text a token at a time
from caches whose keys and values are rounded in several ways; three slices of text each. Letters: T tokens of a call, S
tokens so far, D numbers a head.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attncourse.kv_cache import KVCache
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.language import FILE, load_language_model
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make
from attncourse.lab.training import seeded
from attncourse.multi_head import MultiHeadAttention
from attncourse.quantized_cache import dequantize, quantize

# --- the calls of a decoder, counted


@torch.no_grad()
def decoding_calls(layer: nn.Module, x: Tensor, n_prompt: int, *, cached: bool = True, chunk: int = 0) -> list[dict]:
    """What one layer does to read n_prompt tokens of x (1, T, d_model), and then the others one by one.

    For each call: `first` and `end` of the tokens it projects, `kept`, how many are stored after it, the multiply-adds
    that PyTorch counted (it counts whole rectangles of scores, masked or not), and the bytes of the cache that are
    in use. cached=False projects everything anew in each call. chunk: the prompt in pieces of that many tokens.
    """
    T, calls = x.shape[1], []
    cache = layer.new_cache(1, T)
    per_token = cache.nbytes // cache.max_length
    prompt = list(range(0, n_prompt, chunk or n_prompt)) if cached else [0]
    firsts = [*prompt, *range(n_prompt, T)]
    for first, end in zip(firsts, [*firsts[1:], T], strict=True):
        first = first if cached else 0
        with FlopCounterMode(display=False) as counter:
            # with its weights: PyTorch cannot count inside every fused kernel
            layer(x[:, first:end], cache=cache if cached else None, return_weights=True)
        call = {"first": first, "end": end, "kept": cache.length, "multiply_adds": counter.get_total_flops() // 2}
        calls.append(call | {"bytes": per_token * cache.length})
    return calls


# --- the same step in several ways, timed


class CopyingKVCache(KVCache):
    """For demonstration only: a cache without spare room, which copies all it holds to append a token."""

    used_as = KVCache

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.append`; max_length only bounds it."""
        self._check_new(key, value)
        before = (x[:, :, : self.length] for x in (self.key, self.value))
        self.key, self.value = (
            torch.cat([old, new.detach()], 2) for old, new in zip(before, (key, value), strict=True)
        )
        self.length += key.shape[2]
        return self.key, self.value

    def check_room(self, batch_size: int, n_new: int) -> None:
        """Raise ValueError for another batch size; there is always room."""
        self._check_batch(batch_size)


def step_costs(
    lengths: Sequence[int], *, d_model: int = 256, n_heads: int = 4, repeats: int = 7, device: str = "cpu"
) -> list[dict]:
    """One layer's time for one more token after `length` of them, in ms, and the bytes of all tensors made on the way.

    Ways: everything anew, from a cache that is copied to grow, from one that is written in place. One sequence.
    """
    torch.manual_seed(0)
    layer = MultiHeadAttention(d_model, n_heads, causal=True).to(device)
    rows = []
    for length in lengths:
        x = torch.randn(1, length + 1, d_model, device=device)
        caches = [layer.new_cache(1, length + 1)]
        caches.append(CopyingKVCache(1, n_heads, length + 1, d_model // n_heads, device=device))
        with torch.no_grad():
            for cache in caches:
                layer(x[:, :-1], cache=cache)

        def step(cache: KVCache, x: Tensor = x, length: int = length) -> None:
            cache.length = length  # each call adds the same token again
            layer(x[:, -1:], cache=cache)

        calls = {
            "everything anew": lambda x=x: layer(x),
            "cache, copied": lambda cache=caches[1]: step(cache),
            "cache, in place": lambda cache=caches[0]: step(cache),
        }
        with torch.no_grad():
            times = median_ms(calls, repeats)
            made = {way: allocated_bytes(call)[0] for way, call in calls.items()}
        rows += [{"way": way, "length": length, "ms": times[way], "bytes": made[way]} for way in calls]
    return rows


# --- the memory wall


def attention_cost(T: int, S: int, *, H: int, D: int, G: int | None = None, bytes_each: float = 2) -> dict[str, float]:
    """FLOP, bytes and FLOP a byte of attention alone: T queries, the last of S positions, H heads on G of keys.

    FLOP: 2 for each multiply-add of scores and sums, masked pairs left out, the softmax not counted. Bytes: each
    query, key and value read once, each output written once, nothing else.
    """
    G = H if G is None else G
    pairs = T * S - T * (T - 1) // 2
    flop, moved = 4 * pairs * H * D, bytes_each * (2 * G * S * D + 2 * H * T * D)
    return {"flop": flop, "bytes": moved, "intensity": flop / moved}


def device_rates(device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 5) -> dict[str, float]:
    """What this device reaches: bytes a second of a large copy (read and written), FLOP a second of a large product."""
    n, size = (1 << 28, 8192) if torch.device(device).type == "cuda" else (1 << 24, 1024)
    source, target = torch.ones(n, dtype=dtype, device=device), torch.empty(n, dtype=dtype, device=device)
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind(0)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    rounds = [median_ms(calls, 1) for _ in range(repeats)]
    ms = {name: min(times[name] for times in rounds) for name in calls}  # a roof is what the device can do
    moved = 2 * source.nbytes
    return {"bytes_per_s": moved / ms["copy"] * 1e3, "flop_per_s": 2 * size**3 / ms["matmul"] * 1e3}


def attention_rates(
    S: int = 2048,
    T: Sequence[int] = (1, 4, 16, 64, 256, 2048),
    *,
    H: int = 8,
    D: int = 64,
    repeats: int = 5,
    device: str = "cpu",
) -> list[dict]:
    """Attention alone on this device: T queries against S keys in float32; ms, FLOP a byte and FLOP a second."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, H, S, D, generator=generator).to(device).unbind(0)
    calls = {}
    for n in T:  # T < S: no mask, a few pairs more than are counted
        given = (query[:, :, :n].contiguous(), key, value)
        calls[n] = lambda given=given, n=n: F.scaled_dot_product_attention(*given, is_causal=n == S)
    with torch.no_grad():
        ms = median_ms(calls, repeats)
    rows = []
    for n in T:
        cost = attention_cost(n, S, H=H, D=D, bytes_each=4)
        rows.append({"T": n, "S": S, "ms": ms[n], **cost, "flop_per_s": cost["flop"] / ms[n] * 1e3})
    return rows


# --- fewer bits


@dataclass(frozen=True)
class Storage:
    """How many bits keys and values are kept in (None: exact), and along what a scale is shared.

    "channel": one channel's numbers in a group of tokens, once the group is full; "token": one token's numbers in a
    head, at once; "token, late": the same, once its group is full, so that as many recent tokens are exact.
    """

    bits: int | None
    key: str = "channel"
    value: str = "token"
    group_size: int = 32


def rounded(x: Tensor, bits: int, along: str, group_size: int = 32) -> Tensor:
    """x (B, G, S, D) as it comes back from codes of `bits` bits; S a multiple of group_size for "channel"."""
    if along != "channel":
        return dequantize(*quantize(x, bits, 3))
    groups = x.unflatten(2, (-1, group_size))  # (B, G, n, group_size, D)
    return dequantize(*quantize(groups, bits, 3)).flatten(2, 3)


class RoundedKVCache(KVCache):
    """A KVCache whose contents are rounded as `storage` says, in their old dtype: to see what it does, not to save.

    What a call appends stays exact in that call, as in `QuantizedKVCache`; an unfinished group stays exact too.
    """

    used_as = KVCache

    def __init__(self, *sizes: int, storage: Storage, **options: object):
        super().__init__(*sizes, **options)
        self.storage, self.done = storage, {"key": 0, "value": 0}

    @classmethod
    def like(cls, cache: KVCache, storage: Storage) -> "RoundedKVCache":
        """One of the sizes, dtype and device of an empty KVCache."""
        return cls(*cache.key.shape, storage=storage, dtype=cache.key.dtype, device=cache.key.device)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.append`: earlier tokens as stored, the new ones as given."""
        for name in () if self.storage.bits is None else ("key", "value"):
            along, room = getattr(self.storage, name), getattr(self, name)
            start, end = self.done[name], self.length
            if along != "token":
                end -= end % self.storage.group_size
            if end > start:
                part = room[:, :, start:end]
                room[:, :, start:end] = rounded(part, self.storage.bits, along, self.storage.group_size)
                self.done[name] = end
        return super().append(key, value)


def held_out_pieces(slice_number: int, n_pieces: int = 64, length: int = 256, n_slices: int = 3) -> Tensor:
    """One of several slices of the held-out text, in pieces (n_pieces, length + 1)."""
    text = load_corpus().held_out
    start = slice_number * (len(text) // n_slices)
    return text[start : start + n_pieces * length + 1].long().unfold(0, length + 1, length)


@torch.no_grad()
def loss_from_caches(
    model: Decoder, pieces: Tensor, convert: Callable[[KVCache], KVCache] = lambda cache: cache, chunk: int = 1
) -> float:
    """Mean nats a token of pieces (N, T + 1), read `chunk` tokens a call; `convert` makes a cache of an empty one."""
    device = next(model.parameters()).device
    pieces = pieces.to(device)
    inputs, wanted = pieces[:, :-1], pieces[:, 1:]
    caches = [convert(cache) for cache in model.new_caches(*inputs.shape)]
    logits = torch.cat([model(part, caches=caches) for part in inputs.split(chunk, 1)], 1)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item()


def with_outlier(model: Decoder, factor: float, pair: int = 0) -> Decoder:
    """The same function with an outlier in its keys: two channels of every head `factor` times as large.

    The channels are the `pair` that RoPE turns together; the queries' are divided by the factor, so that every score
    stays the same.
    """
    model = copy.deepcopy(model)
    for block in model.blocks:
        attention = block.attention
        D = attention.k_proj.weight.shape[0] // attention.n_heads
        if not 0 <= pair < D // 2:
            raise ValueError(f"pair={pair}, but a head of {D} numbers has {D // 2}")
        with torch.no_grad():
            for projection, by in ((attention.k_proj, factor), (attention.q_proj, 1 / factor)):
                heads = projection.weight.unflatten(0, (-1, D))  # (H, D, d_model)
                heads[:, [pair, pair + D // 2]] *= by
    return model


def channel_spread(model: Decoder, pieces: Tensor) -> dict[str, float]:
    """How uneven the channels of keys and values are: the largest channel's range over the median's, a head's mean."""
    device, found = next(model.parameters()).device, {}
    caches = model.new_caches(len(pieces), pieces.shape[1] - 1)
    with torch.no_grad():
        model(pieces[:, :-1].to(device), caches=caches)
    for name in ("key", "value"):
        kept = torch.stack([getattr(cache, name) for cache in caches])  # (L, B, H, S, D)
        ranges = kept.amax((1, 3)) - kept.amin((1, 3))  # (L, H, D)
        found[name] = round((ranges.amax(-1) / ranges.median(-1).values).mean().item(), 2)
    return found


STORAGES = {
    "exact": Storage(None),
    **{f"{bits} bits, keys per {key}": Storage(bits, key) for bits, key in product((8, 4, 3, 2), ("channel", "token"))},
    **{f"{bits} bits, values per channel": Storage(bits, value="channel") for bits in (4, 3, 2)},
    **{f"{bits} bits, keys per token, late": Storage(bits, "token, late") for bits in (4, 3, 2)},
    **{f"{bits} bits, values per token, late": Storage(bits, value="token, late") for bits in (4, 3, 2)},
}
FACTORS = (2, 4, 8, 16, 32)


def runs() -> dict[str, tuple[Storage, float]]:
    """What is measured: name -> storage, and the factor of the outlier (1: none)."""
    plain = {name: (storage, 1) for name, storage in STORAGES.items()}
    for factor, name in product(FACTORS, ("4 bits, keys per channel", "4 bits, keys per token")):
        plain[f"{name}, outlier × {factor}"] = (STORAGES[name], factor)
    return plain | {f"exact, outlier × {FACTORS[-1]}": (STORAGES["exact"], FACTORS[-1])}


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    slices: Sequence[int] = (0, 1, 2),
    planned_runs: dict[str, tuple[Storage, float]] | None = None,
    n_pieces: int = 64,
) -> dict:
    """The byte model read through every storage, into kv_cache.json in the folder `out`; no training."""
    path, planned = Path(out) / "kv_cache.json", {}
    planned_runs = runs() if planned_runs is None else planned_runs
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device), "n_pieces": n_pieces}
    shared["model_sha256"] = hashlib.sha256((DATA / FILE).read_bytes()).hexdigest()
    for (name, (storage, factor)), slice_number in product(planned_runs.items(), slices):
        made_from = {"storage": asdict(storage), "factor": factor, "slice": slice_number, "seed": slice_number}
        planned[f"{name}/{slice_number}"] = made_from | shared
    model = load_language_model()[0].to(device)

    def make(key: str, made_from: dict) -> dict:
        start, (storage, factor) = time.perf_counter(), planned_runs[key.rpartition("/")[0]]
        pieces = held_out_pieces(made_from["slice"], n_pieces)
        pair = torch.randint(
            model.config["d_model"] // model.config["n_heads"] // 2, (), generator=seeded(made_from["seed"], 0)
        )
        changed = with_outlier(model, factor, pair.item()) if factor != 1 else model
        loss = loss_from_caches(changed, pieces, lambda cache: RoundedKVCache.like(cache, storage))
        record = {"date": date.today().isoformat(), "pair": pair.item(), "loss": round(loss, 5)}
        if storage.bits is None:
            record["spread"] = channel_spread(changed, pieces)
        return record | {"seconds": round(time.perf_counter() - start, 1)}

    keep_or_make(path, planned, make)
    return json.loads(path.read_text())
