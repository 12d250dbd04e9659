"""The experiments of chapter 10: what a state of fixed size forgets, random features' errors, and what each form costs.

`RUNS` trains one layer on associative recall, three seeds each: softmax attention, and linear attention whose state has
different sizes at the same number of parameters. The rest takes no training: pairs written into a state and read back,
estimates of the softmax's kernel, times and bytes. Letters: T tokens, H heads, D numbers of a head, M features.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import fused_attention
from attncourse.lab.decoder import next_token_loss
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.tasks import recall_task, task_accuracy
from attncourse.lab.training import History, seeded, train
from attncourse.linear import (
    LinearAttention,
    elu_features,
    linear_attention_chunked,
    linear_attention_parallel,
    linear_attention_recurrent,
)
from attncourse.mechanisms import build
from attncourse.multi_head import MultiHeadAttention
from attncourse.performer import favor_features, orthogonal_projection

# --- recall against the size of the state


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. A step asks `answers` keys, in sequences of one of `pairs` in turn."""

    mechanism: str
    n_heads: int
    options: dict = field(default_factory=dict)
    steps: int = 800
    answers: int = 256
    lr: float = 1e-2
    d_model: int = 64
    n_keys: int = 64
    pairs: tuple[int, ...] = (4, 8, 16, 32, 64)


RUNS = {
    "softmax": Settings("multi_head", 4),
    **{f"elu, M = {64 // H}": Settings("linear", H) for H in (8, 4, 2, 1)},
    **{f"dpfp, M = {128 // H}": Settings("linear", H, {"feature_map": "dpfp"}) for H in (8, 4, 1)},
    **{f"performer, M = {M}": Settings("performer", 4, {"n_features": M}) for M in (16, 64, 256)},
}


class Recaller(nn.Module):
    """One layer of attention that can answer `recall_task` alone: tokens (B, T) to logits (B, T, n_tokens).

    It reads each token beside the one before it, so that a value knows its key: what a short convolution does in front
    of many linear layers. A softmax decoder builds that in a layer of its own (chapter 08).
    """

    def __init__(self, n_tokens: int, d_model: int, attention: nn.Module):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, d_model // 2)
        self.attention = attention
        self.norm, self.out_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.out = nn.Linear(d_model, n_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        now = self.embedding(tokens)  # (B, T, d_model/2)
        x = torch.cat([now, F.pad(now, (0, 0, 1, 0))[:, :-1]], -1)  # (B, T, d_model)
        return self.out(self.out_norm(x + self.attention(self.norm(x))))


def make_model(settings: Settings, seed: int = 0) -> Recaller:
    """A fresh model, of the same number of parameters whatever the mechanism and its state."""
    torch.manual_seed(seed)
    attention = build(settings.mechanism, settings.d_model, settings.n_heads, **settings.options)
    return Recaller(2 * settings.n_keys, settings.d_model, attention)


def examples(settings: Settings, n_pairs: int, n_answers: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of n_pairs pairs and as many questions, about n_answers in all; as many values as keys."""
    n_sequences = max(1, n_answers // n_pairs)
    return recall_task(n_sequences, n_pairs, settings.n_keys, settings.n_keys, generator)


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Recaller, History]:
    """A trained model; `seed` decides its first weights and its examples."""
    model = make_model(settings, seed).to(device)

    def loss_fn(model: nn.Module, step: int) -> Tensor:
        n_pairs = settings.pairs[step % len(settings.pairs)]
        tokens, counted = examples(settings, n_pairs, settings.answers, seeded(seed, step))
        return next_token_loss(model, tokens.to(device), counted.to(device))

    return model, train(model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=label)


def recalled(model: Recaller, settings: Settings, pairs: Iterable[int] | None = None, n_answers: int = 6400) -> dict:
    """Share of values recalled, by the number of pairs in the sequence: a string of it -> share."""
    return {
        str(n): round(task_accuracy(model, *examples(settings, n, n_answers, seeded(1_000_000, n))), 4)
        for n in (pairs or settings.pairs)
    }


def stored_numbers(settings: Settings, n_tokens: int) -> int:
    """How many numbers the layer keeps of n_tokens tokens of one sequence, from its cache's own count of bytes."""
    cache = make_model(settings).attention.new_cache(1, n_tokens)
    return cache.nbytes // 4


# --- without training


@torch.no_grad()
def read_back(n_pairs: int, n_features: int, *, n_values: int = 64, trials: int = 20, seed: int = 0) -> float:
    """Write n_pairs random pairs into a memory Σ k vᵀ, ask for each key again: |what comes out - v| / |v|, a mean.

    Keys are random directions of n_features numbers, of both signs, and nothing is normalised: the simplest memory. The
    error is close to ((n_pairs - 1) / n_features)^(1/2), the length of the other pairs' share.
    """
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(trials, n_pairs, n_features, generator=generator), dim=-1)
    values = torch.randn(trials, n_pairs, n_values, generator=generator)
    memory = keys.mT @ values  # (trials, n_features, n_values)
    wrong = keys @ memory - values
    return (wrong.norm(dim=-1) / values.norm(dim=-1)).mean().item()


def projection_of(kind: str, n_features: int, dim: int, seed: int = 0) -> Tensor:
    """Random rows (n_features, dim), float64. kind: "orthogonal", "independent", or "no sign fix", Q as QR gives it.

    The last is wrong, and here to be looked at: QR routines choose signs by a rule, so Q alone prefers some directions.
    """
    if kind == "orthogonal":
        return orthogonal_projection(n_features, dim, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    if kind == "independent":
        return torch.randn(n_features, dim, generator=generator, dtype=torch.float64)
    n_blocks = -(-n_features // dim)
    gaussian, other = torch.randn(2, n_blocks, dim, dim, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(gaussian)
    return (q * other.norm(dim=-1, keepdim=True)).flatten(0, 1)[:n_features]


def estimate(query: Tensor, key: Tensor, projection: Tensor) -> float:
    """What the features of one query and one key (D,) make of exp(q·k / √D); keys' features have no stabiliser."""
    features = (favor_features(x, projection, is_query=False) for x in (query, key))
    return torch.dot(*features).item()


def leaky_features(x: Tensor, projection: Tensor, *, is_query: bool) -> Tensor:
    """For demonstration only: random features; those of keys (B, H, T, D) are divided by e^(largest w·u of *all* keys).

    A factor that is the same for all keys cancels in the weights, unless something is added to the features. Public
    code adds 1e-4, and so does this: one long key, however late, then drowns the features of earlier ones in it.
    """
    u = x * x.shape[-1] ** -0.25
    products = u @ projection.T.to(u)  # (B, H, T, m)
    largest = products.amax(-1 if is_query else (-2, -1), keepdim=True)
    features = (products - u.square().sum(-1, keepdim=True) / 2 - largest).exp() + 1e-4
    return features / projection.shape[0] ** 0.5


@torch.no_grad()
def attention_error(
    n_features: int, kind: str = "orthogonal", *, spread: float = 1.0, T: int = 64, D: int = 16, trials: int = 10
) -> float:
    """How far attention through random features is from softmax attention, as a share of its length: root mean square.

    Causal, on random queries and keys (1, 1, T, D) of standard deviation `spread`, a new projection in each trial.
    """
    squares = []
    for trial in range(trials):
        generator = torch.Generator().manual_seed(trial)
        query, key, value = torch.randn(3, 1, 1, T, D, generator=generator, dtype=torch.float64)
        projection = projection_of(kind, n_features, D, seed=1000 + trial)
        exact = fused_attention(spread * query, spread * key, value, torch.ones(T, T, dtype=torch.bool).tril())
        mapped = (favor_features(spread * x, projection, is_query=asks) for x, asks in ((query, True), (key, False)))
        estimated = linear_attention_parallel(*mapped, value)
        squares.append((estimated - exact).square().sum() / exact.square().sum())
    return torch.stack(squares).mean().sqrt().item()


# --- what each form costs


def forms() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Causal attention of query, key, value (B, H, T, D): fused softmax, and linear attention in its three forms."""

    def linear(form: Callable) -> Callable:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            output = form(elu_features(q), elu_features(k), v)
            return output if isinstance(output, Tensor) else output[0]

        return attend

    return {
        "softmax, fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "linear, parallel": linear(linear_attention_parallel),
        "linear, recurrent": linear(linear_attention_recurrent),
        "linear, in chunks": linear(linear_attention_chunked),
    }


def costs(
    lengths: Sequence[int],
    *,
    H: int = 8,
    D: int = 64,
    repeats: int = 5,
    device: str = "cpu",
    longest: dict | None = None,
) -> list[dict]:
    """Forward pass on (1, H, T, D): milliseconds (medians, in turn) and bytes of all tensors made, for each of `forms`.

    longest: form -> the largest T at which to run it.
    """
    rows = []
    for T in lengths:
        given = torch.randn(3, 1, H, T, D, generator=torch.Generator().manual_seed(0)).to(device).unbind(0)
        calls = {name: partial(form, *given) for name, form in forms().items() if (longest or {}).get(name, T) >= T}
        with torch.no_grad():
            times = median_ms(calls, repeats)
            for name, call in calls.items():
                rows.append({"form": name, "T": T, "ms": times[name], "bytes": allocated_bytes(call)[0]})
    return rows


@torch.no_grad()
def decode_costs(
    lengths: Sequence[int], *, d_model: int = 256, n_heads: int = 4, repeats: int = 7, device: str = "cpu"
) -> list[dict]:
    """The layer's time for one more token after `length` of them, in ms: all recomputed, with a cache, with a state.

    One sequence. "bytes": what the cache or state stores.
    """
    torch.manual_seed(0)
    softmax = MultiHeadAttention(d_model, n_heads, causal=True).to(device)
    linear = LinearAttention(d_model, n_heads).to(device)
    rows = []
    for length in lengths:
        x = torch.randn(1, length + 1, d_model, device=device)
        cache, state = softmax.new_cache(1, length + 1), linear.new_cache(1, length + 1)
        softmax(x[:, :-1], cache=cache)
        linear(x[:, :-1], cache=state)

        def with_cache(x: Tensor = x, cache: object = cache, length: int = length) -> None:
            cache.length = length  # each call adds the same token again
            softmax(x[:, -1:], cache=cache)

        calls = {
            "softmax, all recomputed": lambda x=x: softmax(x),
            "softmax, cached": with_cache,
            "linear, state": lambda x=x, state=state: linear(x[:, -1:], cache=state),
        }
        times = median_ms(calls, repeats)
        stored = {"softmax, all recomputed": 0, "softmax, cached": cache.nbytes, "linear, state": state.nbytes}
        rows += [{"way": way, "length": length, "ms": times[way], "bytes": stored[way]} for way in calls]
    return rows


# --- all of it


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    n_answers: int = 6400,
) -> dict:
    """Every training, into linear.json in the folder `out`. What was made from the same is kept."""
    path, planned = Path(out) / "linear.json", {}
    for (name, settings), seed in product(runs.items(), seeds):
        made_from = {"model": name, "seed": seed, "settings": json.loads(json.dumps(asdict(settings)))}
        planned[f"{name}/{seed}"] = made_from | {"environment": environment(device)}

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        record = training_record(model, history)
        return record | {
            "state": stored_numbers(settings, 1) if settings.mechanism != "multi_head" else None,
            "recalled": recalled(model, settings, n_answers=n_answers),
        }

    keep_or_make(path, planned, make)
    return json.loads(path.read_text())
