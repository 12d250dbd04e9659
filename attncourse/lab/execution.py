"""The experiments of chapter 15: one decoder executed in several ways, what each holds in memory, and a served pool.

`WAYS` compute the same causal attention. The decoder is trained with each of them from the same weights on the same
bytes, three seeds each, in float32 and in float64. Requests of drawn lengths are served from reserved room and from
blocks: counted in tokens, nothing is computed for them. Letters: B sequences, T tokens, H heads, D numbers of a head.
"""

import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncourse.attention import check_at_least_one
from attncourse.execution import online_attention, tiled_attention
from attncourse.gqa import GroupedQueryAttention
from attncourse.kv_cache import KVCache
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.language import language_loss
from attncourse.lab.measure import allocated_bytes, median_ms, peak_bytes, quietly
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History, train
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.paged_cache import BlockPool, PagedKVCache, paged_step
from attncourse.positions import apply_rotary

# --- one attention, several executions


def whole_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention as its equation says it, with all T×T scores in memory: (B, H, T, D) three times, T = S."""
    T = query.shape[2]
    later = torch.ones(T, T, dtype=torch.bool, device=query.device).triu(1)
    scores = query @ key.mT * query.shape[3] ** -0.5  # (B, H, T, T)
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by PyTorch's fused kernel."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "whole": whole_attention,
    "online": online_attention,
    "tiled": tiled_attention,
    "fused": fused_attention,
}


class Executed(nn.Module):
    """A causal multi-head layer whose attention is computed by a function of query, key and value (B, H, T, D)."""

    def __init__(self, layer: MultiHeadAttention, attend: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        if not layer.causal or layer.alibi:
            raise ValueError(f"causal={layer.causal}, alibi={layer.alibi}: only causal attention without ALiBi is here")
        self.layer, self.attend = layer, attend

    def forward(self, x: Tensor, *, mask: None = None, cache: None = None, return_weights: bool = False) -> Tensor:
        """x (B, T, d_model), the same back. ValueError for a mask, a cache or weights."""
        if mask is not None or cache is not None or return_weights:
            raise ValueError("this layer is for training: it takes no mask and no cache, and gives no weights")
        layer = self.layer
        query, key, value = (
            split_heads(project(x), layer.n_heads) for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        if layer.rotary is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            query, key = (apply_rotary(of, positions, layer.rotary) for of in (query, key))
        return layer.o_proj(merge_heads(self.attend(query, key, value)))


def executed(model: Decoder, way: str, **tiles: int) -> Decoder:
    """A copy of a decoder of `multi_head` layers whose attention is computed in one of `WAYS`; tiles: its sizes."""
    model, attend = copy.deepcopy(model), partial(WAYS[way], **tiles)
    for block in model.blocks:
        block.attention = Executed(block.attention, attend)
    return model


# --- training


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. tile: queries and keys of a tile, a quarter of the length."""

    way: str
    dtype: str = "float32"
    steps: int = 200
    batch_size: int = 4
    length: int = 256
    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2
    tile: int = 64
    lr: float = 3e-3


RUNS = {
    f"{way}, {dtype}": Settings(way, dtype)
    for dtype, ways in (("float32", ("whole", "tiled", "fused")), ("float64", ("whole", "tiled")))
    for way in ways
}


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """The model before its first step: for one seed the same weights in every way and dtype."""
    torch.manual_seed(seed)
    sizes = {name: getattr(settings, name) for name in ("d_model", "n_heads", "n_layers")}
    model = Decoder(N_BYTES, max_length=settings.length, **sizes)
    tiles = {"query_tile": settings.tile, "key_tile": settings.tile} if settings.way == "tiled" else {}
    tiles |= {"tile": settings.tile} if settings.way == "online" else {}
    return executed(model, settings.way, **tiles).to(getattr(torch, settings.dtype))


def train_one(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """One run. `seed` decides the weights and the examples; the way decides nothing but rounding."""
    model = make_model(settings, seed).to(device)
    loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed, device)
    return model, train(model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=label)


def largest_gap(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """The largest difference of two runs' losses so far, after each step."""
    gaps, largest = [], 0.0
    for x, y in zip(a, b, strict=True):
        largest = max(largest, abs(x - y))
        gaps.append(largest)
    return gaps


# --- memory and time


def inputs(T: int, *, H: int = 4, D: int = 32, device: str = "cpu", grad: bool = False, seed: int = 0) -> list[Tensor]:
    """Random query, key and value (1, H, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, H, T, D, generator=generator).to(device).requires_grad_(grad) for _ in range(3)]


def call_of(way: str, given: Sequence[Tensor]) -> Callable[[], object]:
    """A call of one way, forward; and backward too where the inputs ask for gradients."""
    if not given[0].requires_grad:
        return lambda: WAYS[way](*given)
    upstream = torch.ones_like(given[2])
    return lambda: torch.autograd.grad(WAYS[way](*given), given, upstream)


def attention_peaks(
    lengths: Sequence[int], ways: Sequence[str] = tuple(WAYS), *, grad: bool = False, device: str = "cpu", **sizes: int
) -> list[dict]:
    """The most bytes that attention holds at a time beyond its inputs, in each way; with grad, backward too."""
    return [
        {"way": way, "T": T, "bytes": peak_bytes(call_of(way, inputs(T, device=device, grad=grad, **sizes)), device)}
        for way, T in product(ways, lengths)
    ]


def step_peaks(
    lengths: Sequence[int], ways: Sequence[str] = ("whole", "tiled", "fused"), *, device: str = "cpu"
) -> list[dict]:
    """The most bytes that a training step of the small decoder holds at a time beyond its weights: one sequence."""
    rows = []
    for way, T in product(ways, lengths):
        model = make_model(Settings(way, length=T)).to(device)
        tokens = torch.randint(N_BYTES, (1, T + 1), generator=torch.Generator().manual_seed(0)).to(device)
        held = peak_bytes(lambda model=model, tokens=tokens: next_token_loss(model, tokens).backward(), device)
        rows.append({"way": way, "T": T, "bytes": held})
    return rows


def growth(rows: Sequence[dict], way: str) -> float:
    """The slope of log bytes against log T from the shortest length of a way to its longest: 1 linear, 2 quadratic."""
    found = sorted((row["T"], row["bytes"]) for row in rows if row["way"] == way)
    (short, few), (long, many) = found[0], found[-1]
    return math.log(many / few) / math.log(long / short)


def times(
    T: int,
    ways: Sequence[str] = tuple(WAYS),
    *,
    grad: bool = False,
    device: str = "cpu",
    repeats: int = 5,
    **sizes: int,
) -> dict[str, float]:
    """Median milliseconds of attention in each way, taken in turn; with grad, its backward pass too."""
    given = inputs(T, device=device, grad=grad, **sizes)
    return median_ms({way: call_of(way, given) for way in ways}, repeats)


def saved_bytes(way: str, T: int, device: str = "cpu", **sizes: int) -> int:
    """Bytes that one way keeps from its forward pass for the backward pass, beside query, key and value."""
    given, kept = inputs(T, device=device, grad=True, **sizes), {}
    known = {x.untyped_storage().data_ptr() for x in given}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = WAYS[way](*given)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def traffic(T: int, D: int, tile: int) -> dict[str, float]:
    """Bytes that one head's forward pass moves between memory and chip, in 16 bits, and the room that a tile takes.

    "whole": scores written, read, weights written, read; "tiled": keys and values read once for each tile of queries;
    both: queries, keys, values in and outputs out. No mask. "room": a tile of queries, keys and values in 16 bits,
    its scores and its sum of values in 32. Square tiles.
    """
    ends, again = 2 * 2 * T * D, 2 * 2 * T * D  # queries and outputs; keys and values
    room = 2 * 3 * tile * D + 4 * (tile * tile + tile * D)
    return {"whole": ends + again + 2 * 4 * T * T, "tiled": ends + again * -(-T // tile), "room": room}


# --- a pool of blocks


@dataclass(frozen=True)
class Request:
    """A prompt of so many tokens, and the answer that it will get; a server does not know the second."""

    prompt: int
    answer: int


def draw_requests(n: int, seed: int = 0, *, max_length: int = 2048) -> list[Request]:
    """n requests of log-normal lengths, medians 160 and 130 tokens, at least one and together at most max_length."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, 2, generator=generator).mul(1.0).add(torch.tensor([160.0, 130.0]).log()).exp().long()
    prompts = drawn[:, 0].clamp(1, max_length - 1)
    answers = drawn[:, 1].clamp(min=1).minimum(max_length - prompts)
    return [Request(prompt, answer) for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True)]


POLICIES = ("reserved", "known", "paged")


def serve(
    requests: Sequence[Request], room: int, policy: str, *, max_length: int = 2048, block_size: int = 16
) -> dict[str, float]:
    """Serve all requests from a cache with room for so many tokens; counted in steps of one token for all that run.

    "reserved": a request takes max_length tokens of room when it begins. "known": it takes what prompt and answer will
    need, as if someone knew. "paged": it takes blocks as it grows; where none is free, the request that came last gives
    up its blocks, waits, and reads its own text again. Returns `steps`; over the steps at which others waited,
    how many ran (`running`) and the share of room that held tokens (`used`); `evicted` and `read_again`, tokens.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}, but it must be one of {', '.join(POLICIES)}")
    check_at_least_one(room=room, max_length=max_length, block_size=block_size)
    if (longest := max(_taken(policy, r.prompt + r.answer, r, max_length, block_size) for r in requests)) > room:
        raise ValueError(f"a request takes {longest} tokens of room, but there are {room}")
    waiting, running = deque(requests), []  # running: [request, tokens held]
    steps = evicted = read_again = 0
    ran, used = [], []
    while waiting or running:
        taken = sum(_taken(policy, held, request, max_length, block_size) for request, held in running)
        while waiting:  # first come, first served
            more = _taken(policy, waiting[0].prompt + 1, waiting[0], max_length, block_size)
            if taken + more > room:
                break
            taken += more
            request = waiting.popleft()
            running.append([request, request.prompt])
        for one in running:
            one[1] += 1  # a token is written for each
        while sum(_taken(policy, held, request, max_length, block_size) for request, held in running) > room:
            request, held = running.pop()  # only pages grow beyond what was taken
            written = held - 1 - request.prompt  # its token of this step found no room
            waiting.appendleft(Request(held - 1, request.answer - written))
            evicted, read_again = evicted + 1, read_again + held - 1
        steps += 1
        if waiting:
            ran.append(len(running))
            used.append(sum(held for _, held in running) / room)
        running = [one for one in running if one[1] < one[0].prompt + one[0].answer]
    mean_of = {"running": statistics.fmean(ran or [0]), "used": statistics.fmean(used or [0])}
    return {"steps": steps, **mean_of, "evicted": evicted, "read_again": read_again}


def _taken(policy: str, held: int, request: Request, max_length: int, block_size: int) -> int:
    """Tokens of room that a request takes while it holds so many."""
    if policy == "paged":
        return -(-held // block_size) * block_size
    return max_length if policy == "reserved" else request.prompt + request.answer


def cache_bytes(
    lengths: Sequence[int],
    max_length: int,
    block_size: int,
    *,
    G: int = 8,
    D: int = 64,
    dtype: torch.dtype = torch.float32,
) -> dict[str, int]:
    """Bytes of a layer's caches for sequences of these lengths: reserved, padded to the longest, paged, written."""
    reserved = KVCache(len(lengths), G, max_length, D, dtype=dtype)
    padded = KVCache(len(lengths), G, max(lengths), D, dtype=dtype)
    pool = BlockPool(sum(-(-n // block_size) for n in lengths), block_size, G, D, dtype=dtype)
    for n in lengths:
        PagedKVCache(pool).append(*torch.zeros(2, 1, G, n, D, dtype=dtype))
    return {
        "reserved": reserved.nbytes,
        "padded": padded.nbytes,
        "paged": pool.used_bytes,
        "written": sum(lengths) * reserved.nbytes // (len(lengths) * max_length),
    }


def sampled_answers(prompt: int, answers: Sequence[int], block_size: int, *, G: int = 8, D: int = 64) -> dict[str, int]:
    """Bytes of one layer's blocks for several answers to one prompt: each with its own copy of it, and sharing it."""
    own = sum(-(-(prompt + n) // block_size) for n in answers)
    pool = BlockPool(own + len(answers) + 1, block_size, G, D)
    first = PagedKVCache(pool)
    first.append(*torch.zeros(2, 1, G, prompt, D))
    caches = [first, *(first.fork() for _ in answers[1:])]
    for cache, n in zip(caches, answers, strict=True):
        cache.append(*torch.zeros(2, 1, G, n, D))
    return {"own": own * pool.block_bytes, "shared": pool.used_bytes, "named": sum(cache.nbytes for cache in caches)}


@torch.no_grad()
def page_step_costs(
    S: int, block_size: int = 16, *, d_model: int = 512, n_heads: int = 8, n_kv_heads: int = 2, **how: object
) -> dict[str, dict]:
    """One grouped layer's step after S tokens, from a plain cache and from blocks: "bytes" of new tensors, and "ms".

    "plain": `KVCache`. "blocks, through the layer": a `PagedKVCache`, whose `append` gathers all tokens. "blocks, by
    paged_step": gathered a few blocks at a time. how: device, and repeats of the timing (0: none).
    """
    device, repeats = how.get("device", "cpu"), how.get("repeats", 5)
    torch.manual_seed(0)
    layer = GroupedQueryAttention(d_model, n_heads, n_kv_heads).to(device)
    D, x = d_model // n_heads, torch.randn(1, 1, d_model, device=device)
    pool = BlockPool(2 * (S // block_size + 1), block_size, n_kv_heads, D, device=device)
    plain, pages, others = layer.new_cache(1, S + 1), PagedKVCache(pool), PagedKVCache(pool)
    past = torch.randn(2, 1, n_kv_heads, S, D, device=device)
    for cache in (plain, pages, others):
        cache.append(*past)

    def step(cache: KVCache) -> Tensor:
        cache.length = S  # each call adds the same token again
        return paged_step(layer, x, [cache]) if cache is others else layer(x, cache=cache)

    names = ("plain", "blocks, through the layer", "blocks, by paged_step")
    calls = {name: partial(step, cache) for name, cache in zip(names, (plain, pages, others), strict=True)}
    rows = {name: {"bytes": allocated_bytes(call)[0]} for name, call in calls.items()}
    for name, ms in (median_ms(calls, repeats) if repeats else {}).items():
        rows[name]["ms"] = ms
    return rows


def serving(seeds: Sequence[int] = (0, 1, 2), n: int = 200, room: int = 16384, max_length: int = 2048) -> list[dict]:
    """Every policy, and pages of several sizes, on the same requests."""
    kinds = [("reserved", 1), ("known", 1), *(("paged", size) for size in (1, 16, 64, 256, 1024, max_length))]
    rows = []
    for seed, (policy, size) in product(seeds, kinds):
        drawn = draw_requests(n, seed, max_length=max_length)
        found = serve(drawn, room, policy, max_length=max_length, block_size=size)
        held = statistics.fmean(r.prompt + r.answer for r in drawn)
        row = {"policy": policy, "block_size": size if policy == "paged" else None, "seed": seed, "mean_length": held}
        rows.append({key: round(x, 4) if isinstance(x, float) else x for key, x in (row | found).items()})
    return rows


# --- kernels


def offered(query: Tensor, key: Tensor, value: Tensor) -> dict[str, bool]:
    """Which of PyTorch's kernels take a causal call with these inputs on their device."""
    found = {}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel(getattr(SDPBackend, name)):
                fused_attention(query, key, value)
            found[name] = True
        except RuntimeError:
            found[name] = False
    return found


def kernel_of(query: Tensor, key: Tensor, value: Tensor, **options: object) -> str:
    """The kernel that PyTorch picks for a call, by its operation's name, or "?"."""

    def call() -> list[str]:
        with torch.profiler.profile() as profiler:
            F.scaled_dot_product_attention(query, key, value, **options)
        return [event.name for event in profiler.events()]

    start = "aten::_scaled_dot_product_"
    names = [name.removeprefix(start) for name in quietly(call) if name.startswith(start)]
    return names[0] if names else "?"


def flex(T: int = 2048, H: int = 8, D: int = 64, window: int = 256, device: str = "cpu", repeats: int = 5) -> dict:
    """PyTorch's flex_attention, compiled, with a causal window: what compiling took, then ms beside two fused calls."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    given = inputs(T, H=H, D=D, device=device)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < window)

    start = time.perf_counter()
    blocks = create_block_mask(seen, None, None, T, T, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    with torch.no_grad():
        first = compiled(*given, block_mask=blocks)
    took = time.perf_counter() - start
    place = torch.arange(T, device=device)
    mask = seen(None, None, place[:, None], place)
    calls = {
        "flex": lambda: compiled(*given, block_mask=blocks),
        "mask": lambda: F.scaled_dot_product_attention(*given, attn_mask=mask),
        "causal": lambda: fused_attention(*given),
    }
    with torch.no_grad():
        error = (first - calls["mask"]()).abs().max().item()
        ms = median_ms(calls, repeats)
    return {
        "T": T,
        "window": window,
        "compile_seconds": round(took, 1),
        "error": error,
        "ms": {name: round(x, 3) for name, x in ms.items()},
    }


def try_flex(seconds: float = 10, T: int = 1024, device: str = "cpu") -> tuple[dict | None, str]:
    """`flex` in a process of its own that may take so long: its result and "", or None and what happened instead."""
    code = f"import json, torch; torch.set_num_threads({torch.get_num_threads()}); from attncourse.lab import execution"
    code += f"; print(json.dumps(execution.flex({T}, device={device!r}, repeats=3)))"
    try:
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"stopped: compiling took longer than {seconds:g} s"
    except OSError as error:
        return None, f"no process could be started: {error}"
    if child.returncode:
        return None, (child.stderr.strip().splitlines() or ["it ended without a word"])[-1][:160]
    return json.loads(child.stdout.splitlines()[-1]), ""


# --- the file


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    lengths: Sequence[int] = (256, 512, 1024, 2048),
    n_requests: int = 200,
    compiled: bool = True,
) -> dict:
    """Everything, into execution.json in the folder `out`. What was made from the same is kept.

    Of each run every step's loss, of a step's memory `peaks`, of the pool `serving`, and what `flex` did, where it
    could be compiled.
    """
    path = Path(out) / "execution.json"
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device)}
    planned = {}
    for seed, (name, settings) in product(seeds, runs.items()):
        planned[f"{name}/{seed}"] = {"model": name, "seed": seed, "settings": asdict(settings)} | shared

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_one(settings, made_from["seed"], device=device, label=key)
        digits = 9 if settings.dtype == "float32" else 15
        return training_record(model, history) | {"losses": [float(f"{x:.{digits}g}") for x in history.losses]}

    keep_or_make(path, planned, make)
    content = json.loads(path.read_text())
    parts = {
        "peaks": ({"lengths": list(lengths)}, lambda: step_peaks(lengths, device=device)),
        "serving": (
            {"seeds": list(seeds), "n": n_requests, "room": 16384, "max_length": 2048},
            lambda: serving(seeds, n_requests),
        ),
    }
    if compiled:
        parts["flex"] = ({"T": 2048, "window": 256}, lambda: flex(device=device))
    for name, (settings, measure) in parts.items():
        made_from = settings | {"environment": shared["environment"]}
        if any(content.get(name, {}).get(field) != value for field, value in made_from.items()):
            content[name] = made_from | {"date": date.today().isoformat(), "result": measure()}
            write_json(path, content)
    return content
