"""What a layer costs, by formula and by measurement: operations, bytes moved, milliseconds, and the roofline.

A whole layer, its projections included, does one of two things. A prefill reads n tokens into an empty cache; a step
reads token n, with n - 1 in the cache. A multiply-add is 2 FLOP, and only matrix products count: not softmax, norms,
rotation or features. Bytes are the least traffic: weights once, x in and out, and what of the cache is read or written.

Letters: H heads, G key-value heads, D numbers of a head, N, R and V of a latent head's key, its rotated part and its
value, C of the latent, M features. Roofline: Williams et al. 2009.
"""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attncourse.attention import check_at_least_one
from attncourse.lab.budget import options_at
from attncourse.lab.measure import matmul_dtype, median_ms
from attncourse.linear import CHUNK, KernelAttention, LinearState
from attncourse.mechanisms import MECHANISMS, build
from attncourse.mla import MultiHeadLatentAttention
from attncourse.patterns import Dilated, Strided, pattern_mask
from attncourse.positions import RotaryEmbedding
from attncourse.sliding_window import SlidingWindowAttention
from attncourse.sparse import SparseAttention

KINDS = ("prefill", "step")
NOTES = {"multi_head": "as it is", "sparse": "as it is", "mqa": "keeps what it keeps", "linear": "the nearest size"}
Machine = dict[str, float]


def layer_costs(
    layer: nn.Module, n_tokens: int, *, batch: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, int] | int]:
    """{"prefill": {"flop", "bytes"}, "step": {"flop", "bytes"}, "cache_bytes"} of a layer of `MECHANISMS`.

    With P weights in the projections, of a prefill of n tokens and of a step that makes them n:

    | layer | FLOP for each pair seen | other FLOP for each token | numbers kept of n tokens |
    | --- | --- | --- | --- |
    | multi_head, sparse | 4·H·D | 2·P | 2·H·D·n |
    | gqa, mqa | 4·H·D | 2·P | 2·G·D·n |
    | sliding_window | 4·H·D | 2·P | 2·G·D·min(W, n) |
    | mla, prefill | 2·H·(N + R + V) | 2·P | (C + R)·n |
    | mla, absorbed step | 2·H·(C + R + C) | 2·P | |
    | linear, performer | 2·H·(M + D) in a chunk | 2·P + 4·H·M·(D + 1), performer 4·H·M·D more | H·M·(D + 1) |

    A causal layer sees n·(n + 1)/2 pairs in a prefill, and n in a step; a window or a pattern fewer. A naive mla's step
    expands all n entries. A step of sparse reads what it sees, a state is read and written, others read all they keep.
    dtype: of weights, cache and x; a state is at least float32. Zeros that pad values for a kernel do not count.
    Raises TypeError for a layer that is none of these, ValueError where it is not causal.
    """
    check_at_least_one(n_tokens=n_tokens, batch=batch)
    if not isinstance(layer, tuple(MECHANISMS.values())):
        raise TypeError(f"layer is a {type(layer).__name__}; costs are known of {', '.join(MECHANISMS)}")
    if not layer.causal:
        raise ValueError("costs are those of causal layers: causal=True")
    size, n = dtype.itemsize, n_tokens
    projections = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    weights = size * sum(x.numel() for x in itertools.chain(layer.parameters(), layer.buffers()))
    x_in_and_out = 2 * size * layer.o_proj.out_features * batch
    if isinstance(layer, KernelAttention):
        found = _kernel_costs(layer, n)
        size = max(size, 4)
    elif isinstance(layer, MultiHeadLatentAttention):
        found = _latent_costs(layer, n)
    else:
        found = _softmax_costs(layer, n)
    prefill, step, kept, touched = found
    return {
        "prefill": {
            "flop": batch * (2 * projections * n + prefill),
            "bytes": weights + x_in_and_out * n + batch * size * kept,
        },
        "step": {
            "flop": batch * (2 * projections + step),
            "bytes": weights + x_in_and_out + batch * size * touched,
        },
        "cache_bytes": batch * size * kept,
    }


def seen_keys(layer: nn.Module, n_tokens: int) -> Tensor:
    """How many keys each of n_tokens queries sees in a layer of softmax attention, itself included: (n_tokens,)."""
    before = torch.arange(1, n_tokens + 1)
    if isinstance(layer, SlidingWindowAttention):
        return before.clamp(max=layer.window)
    if not isinstance(layer, SparseAttention):
        return before
    if all(isinstance(part, Dilated | Strided) for part in layer.pattern):  # the distance alone decides
        last = pattern_mask(1, n_tokens, pattern=layer.pattern)[0]
        return last.flip(0).cumsum(0)  # as far as there are keys
    return torch.stack([pattern_mask(1, n, pattern=layer.pattern).sum() for n in before.tolist()])


def _softmax_costs(layer: nn.Module, n: int) -> tuple[int, int, int, int]:
    """FLOP beside the projections of a prefill and of a step, numbers kept, and numbers of them that a step touches."""
    seen = seen_keys(layer, n)
    a_pair = 4 * layer.q_proj.out_features  # query·key and weight·value: 2·H·D each
    a_token = layer.k_proj.out_features + layer.v_proj.out_features
    last = int(seen[-1])
    kept = min(layer.window, n) if isinstance(layer, SlidingWindowAttention) else n
    return a_pair * int(seen.sum()), a_pair * last, a_token * kept, a_token * last


def _latent_costs(layer: MultiHeadLatentAttention, n: int) -> tuple[int, int, int, int]:
    H, C, R = layer.n_heads, layer.kv_lora_rank, layer.qk_rope_head_dim
    expanded = 2 * H * (layer.qk_nope_head_dim + R + layer.v_head_dim)
    if layer.decoding == "absorbed":  # queries and outputs go through kv_b_proj's weights, once a token
        step = 2 * H * (C + R + C) * n
    else:
        step = expanded * n + 2 * layer.kv_b_proj.weight.numel() * (n - 1)
    kept = (C + R) * n
    return expanded * n * (n + 1) // 2, step, kept, kept


def _kernel_costs(layer: KernelAttention, n: int) -> tuple[int, int, int, int]:
    H, D = layer.n_heads, layer.v_proj.out_features // layer.n_heads
    M = layer.features(layer.v_proj.weight.new_zeros(1, D), is_query=False).shape[-1]
    state = H * M * (D + 1)
    a_token = 4 * state  # a multiply-add to write each of its numbers, one to read it
    projection = getattr(layer, "projection", None)
    if projection is not None:
        a_token += 2 * 2 * H * projection.numel()  # features of the query and of the key
    whole, rest = divmod(n, CHUNK)
    pairs = whole * CHUNK * (CHUNK + 1) // 2 + rest * (rest + 1) // 2
    return a_token * n + 2 * H * (M + D) * pairs, a_token, state, 2 * state


def bound(costs: dict[str, int], machine: Machine) -> tuple[float, str]:
    """The roofline: no less than so many milliseconds, and which of "compute" and "traffic" binds.

    costs: flop and bytes, as of a prefill or a step of `layer_costs`; machine: as `machine()` gives it.
    """
    compute, traffic = 1e3 * costs["flop"] / machine["flop_per_s"], 1e3 * costs["bytes"] / machine["bytes_per_s"]
    return max(compute, traffic), "compute" if compute >= traffic else "traffic"


def machine(device: str = "cpu", dtype: torch.dtype | None = None, *, repeats: int = 15) -> Machine:
    """{"flop_per_s", "bytes_per_s"} that a large product of matrices and a copy reach here, the best of `repeats`.

    dtype: of the matrices, else `matmul_dtype`: float32 on a CPU, 16 bits on a GPU. A copy's bytes are those read and
    those written.
    """
    gpu = torch.device(device).type == "cuda"
    dtype = dtype or matmul_dtype(device)
    n, n_bytes = (8192, 2**30) if gpu else (1024, 2**26)
    matrix = torch.randn(n, n, device=device, dtype=dtype)
    source = torch.ones(n_bytes // 4, device=device)
    product, target = torch.empty_like(matrix), torch.empty_like(source)
    with torch.no_grad():
        flop = 2 * n**3 / _least_seconds(lambda: torch.mm(matrix, matrix, out=product), repeats)
        moved = 2 * n_bytes / _least_seconds(lambda: target.copy_(source), repeats)
    return {"flop_per_s": flop, "bytes_per_s": moved}


def _least_seconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call: the least, since a ceiling is what is reached when nothing disturbs."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def prefill_call(layer: nn.Module, n_tokens: int, *, batch: int = 1) -> Callable[[], Tensor]:
    """A function that reads n_tokens random tokens into an empty cache, the same one each time."""
    x, cache = _tokens(layer, n_tokens, batch), layer.new_cache(batch, n_tokens)

    def call() -> Tensor:
        cache.length = 0
        if isinstance(cache, LinearState):
            cache.memory, cache.total = torch.zeros_like(cache.memory), torch.zeros_like(cache.total)
        return layer(x, cache=cache)

    return call


def step_call(layer: nn.Module, n_tokens: int, *, batch: int = 1, lengths: int = 17) -> Callable[[], Tensor]:
    """A function that reads one random token after those of a full cache, whose length is set back for it.

    It ends with n_tokens, or up to lengths - 1 fewer, in turn: a sparse layer keeps the plans of 16 lengths, and in
    decoding each length is new. lengths=1 for what must not change, a CUDA graph.
    """
    x, cache = _tokens(layer, 1, batch), layer.new_cache(batch, n_tokens)
    rooms = (cache.memory, cache.total) if isinstance(cache, LinearState) else (cache.key, cache.value)
    for room in rooms:
        room.copy_(torch.rand_like(room))
    pasts = itertools.cycle(n_tokens - 1 - i for i in range(min(lengths, n_tokens)))

    def call() -> Tensor:
        cache.length = next(pasts)
        if isinstance(cache, LinearState):
            cache.memory, cache.total = rooms
        return layer(x, cache=cache)

    return call


def _tokens(layer: nn.Module, n: int, batch: int) -> Tensor:
    return torch.randn(batch, n, layer.o_proj.out_features).to(layer.o_proj.weight)


def graphed(call: Callable[[], Tensor]) -> Callable[[], object]:
    """The call as a CUDA graph, which is launched at once."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.no_grad()
def measure_layers(
    layers: dict[str, nn.Module], n_tokens: int, *, device: str = "cpu", repeats: int = 5, batch: int = 1
) -> dict[str, dict[str, float]]:
    """{name: {"prefill_ms", "step_ms"}} of layers, moved to the device: medians of calls taken in turn.

    A prefill of n_tokens, and a step that makes them n_tokens. The layers get `matmul_dtype`, and on a GPU steps are
    CUDA graphs, so that launches do not count.
    """
    gpu = torch.device(device).type == "cuda"
    layers = {name: layer.to(device, matmul_dtype(device) if gpu else None).eval() for name, layer in layers.items()}
    prefills = {name: prefill_call(layer, n_tokens, batch=batch) for name, layer in layers.items()}
    steps = {name: step_call(layer, n_tokens, batch=batch, lengths=1 if gpu else 17) for name, layer in layers.items()}
    if gpu:
        steps = {name: graphed(step) for name, step in steps.items()}
    step_ms, prefill_ms = median_ms(steps, 3 * repeats), median_ms(prefills, repeats)
    return {name: {"prefill_ms": prefill_ms[name], "step_ms": step_ms[name]} for name in layers}


def layer_at(
    name: str, budget: float, *, d_model: int, n_heads: int, n_tokens: int, seed: int = 0
) -> tuple[nn.Module, dict[str, int]]:
    """A layer that keeps no more than `budget` times multi-head attention's cache of n_tokens, and what was chosen.

    Sizes are `options_at`'s; queries and keys are rotated. What was chosen has "n_heads" where it is not as given.
    """
    heads, options = options_at(name, budget, d_model, n_heads, n_tokens)
    rotary = {} if name == "mla" else {"rotary": RotaryEmbedding(d_model // heads)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = build(name, d_model, heads, **options, **rotary)
    return layer, ({} if heads == n_heads else {"n_heads": heads}) | options


def compare(
    names: Sequence[str],
    *,
    n_tokens: int = 4096,
    budget: float = 0.25,
    d_model: int = 1024,
    n_heads: int = 16,
    device: str = "cpu",
    batch: int = 1,
    repeats: int = 5,
    measure: bool = True,
    here: Machine | None = None,
) -> list[dict]:
    """A row for each mechanism at one cache budget, a share of multi-head attention's cache of n_tokens.

    Rows have "mechanism", "options" (what `options_at` chose), "note", "cache_bytes", "share" of multi-head
    attention's cache, and of "prefill" and "step": flop, bytes, bound_ms and binds (the roofline's), and ms, measured,
    or None without `measure`. note: what does not follow the budget: "as it is" for multi_head and sparse, "keeps what
    it keeps" for mqa, "the nearest size" for linear. here: the machine, as `machine()` gives it, else measured.
    Numbers are of `matmul_dtype(device)`. Raises ValueError where a mechanism has no size for the budget.
    """
    dtype = matmul_dtype(device)
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_tokens": n_tokens}
    built = {name: layer_at(name, budget, **sizes) for name in dict.fromkeys(names)}
    whole = layer_costs(layer_at("multi_head", 1, **sizes)[0], n_tokens, batch=batch, dtype=dtype)["cache_bytes"]
    layers = {name: layer for name, (layer, _) in built.items()}
    here = machine(device) if here is None else here
    times = measure_layers(layers, n_tokens, device=device, repeats=repeats, batch=batch) if measure else {}
    rows = []
    for name, (layer, options) in built.items():
        costs = layer_costs(layer, n_tokens, batch=batch, dtype=dtype)
        row = {"mechanism": name, "options": options, "note": NOTES.get(name, ""), "cache_bytes": costs["cache_bytes"]}
        row["share"] = costs["cache_bytes"] / whole
        for kind in KINDS:
            bound_ms, binds = bound(costs[kind], here)
            ms = times[name][f"{kind}_ms"] if measure else None
            row[kind] = costs[kind] | {"bound_ms": bound_ms, "binds": binds, "ms": ms}
        rows.append(row)
    return rows


def grid(
    tokens: Sequence[int] = (512, 1024, 2048, 4096, 16_384, 131_072),
    batches: Sequence[int] = (1, 16, 64),
    *,
    budget: float = 0.25,
    d_model: int = 1024,
    n_heads: int = 16,
) -> list[dict]:
    """The formulas for every mechanism at one budget, for all these lengths and batches: what `show.roofline` draws.

    Rows have "mechanism", "tokens", "batch", "number_bytes" (4 for float32, 2 for bfloat16), and of "prefill" and
    "step" flop and bytes. The budget is a share of multi-head attention's cache of as many tokens.
    """
    rows, layers = [], {}
    for n, name in itertools.product(tokens, MECHANISMS):
        sizes = {"d_model": d_model, "n_heads": n_heads, "n_tokens": n}
        key = name, str(options_at(name, budget, **sizes))  # many are the same at every length
        layer = layers[key] = layers.get(key) or layer_at(name, budget, **sizes)[0]
        for batch, dtype in itertools.product(batches, (torch.float32, torch.bfloat16)):
            found = layer_costs(layer, n, batch=batch, dtype=dtype)
            row = {"mechanism": name, "tokens": n, "batch": batch, "number_bytes": dtype.itemsize}
            rows.append(row | {kind: found[kind] for kind in KINDS})
    return rows
