"""The experiments of chapter 09: what a pattern lets a small model recall, who can reach whom, how weights are spread.

Small decoders whose two layers see all tokens, a fixed pattern, or the k keys with the highest scores look up pairs at
any distance; three seeds each. Letters: B sequences, T tokens, P pairs, K keys kept, L layers, H heads.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attncourse.attention import fused_attention, scaled_dot_product_attention
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.language import FILE, held_out_loss, load_language_model
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.sliding_window import windowed
from attncourse.lab.training import History, seeded, train
from attncourse.masks import causal_mask
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.patterns import (
    Dilated,
    Fixed,
    GlobalTokens,
    Part,
    RandomBlocks,
    Strided,
    Window,
    pattern_mask,
)
from attncourse.positions import apply_rotary
from attncourse.sparse import sparse_attention

# --- recall through a pattern


class TopKAttention(MultiHeadAttention):
    """For comparison only: causal, and each query of each head keeps the k keys with the highest scores.

    All scores are computed to find them, so this costs more than what it is compared with, not less. No cache.
    """

    def __init__(self, *arguments, k: int, **options):
        super().__init__(*arguments, causal=True, **options)
        self.k = k

    def forward(self, x: Tensor, *, mask: None = None, cache: None = None, return_weights: bool = False) -> Tensor:
        """x (B, T, d_model), the same shape back. Neither masks nor weights."""
        query, key, value = (
            split_heads(project(x), self.n_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        positions = torch.arange(x.shape[1], device=x.device)
        query, key = (apply_rotary(part, positions, self.rotary) for part in (query, key))
        kept = best_keys(query.detach(), key.detach(), self.k)  # (B, H, T, T)
        return self.o_proj(merge_heads(scaled_dot_product_attention(query, key, value, kept)))


def keep_best(model: Decoder, k: int) -> Decoder:
    """A copy of a decoder of `multi_head` layers with rotary positions that keeps k keys, with the weights it had."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        old = block.attention
        block.attention = TopKAttention(model.config["d_model"], old.n_heads, k=k, rotary=old.rotary)
        block.attention.load_state_dict(old.state_dict())
        block.attention.to(old.q_proj.weight.device)
    return model


def best_keys(query: Tensor, key: Tensor, k: int) -> Tensor:
    """True at the k keys up to each query with the highest products, or all where fewer: (…, T, T) from (…, T, D)."""
    causal = causal_mask(query.shape[-2], device=query.device)
    scores = (query @ key.transpose(-2, -1)).masked_fill(~causal, float("-inf"))
    best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & causal


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. Both pattern and top_k None: every earlier token is seen."""

    pattern: tuple[Part, ...] | None = None
    top_k: int | None = None
    n_pairs: int = 16
    n_values: int = 8
    n_layers: int = 2
    steps: int = 400
    batch_size: int = 16
    lr: float = 5e-3
    d_model: int = 64
    n_heads: int = 2

    def record(self) -> dict:
        """As plain JSON values, the pattern in words."""
        return {**vars(self), "pattern": None if self.pattern is None else in_words(self.pattern)}


RUNS = {
    "dense": Settings(),
    "window": Settings((Window(8),)),
    "dilated": Settings((Dilated(8, 4),)),
    "window + global": Settings((Window(5), GlobalTokens((0, 1, 2)))),
    "window + random": Settings((Window(5), RandomBlocks(3, 1))),
    "window + stride": Settings((Window(5), Strided(6))),
    "window + fixed": Settings((Window(4), Fixed(8, 1))),
    "top-8": Settings(top_k=8),
    "top-2": Settings(top_k=2),
    "window + stride, four times as long": Settings((Window(5), Strided(6)), steps=1600),
    "window + stride, four times as long, half the rate": Settings((Window(5), Strided(6)), steps=1600, lr=2.5e-3),
}


def in_words(parts: Sequence[Part]) -> str:
    """A pattern as it is written in code: `Window(7) + Strided(8)`."""

    def one(part: Part) -> str:
        values = [vars(part)[name] for name, field in part.__dataclass_fields__.items() if field.init]
        return f"{type(part).__name__}({', '.join(map(str, values))})"

    return " + ".join(map(one, parts))


def lookup_task(
    batch_size: int, n_pairs: int, n_values: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Associative recall with a pair in each token: P pairs in any order, then P questions, each a key.

    Tokens (B, 2·P), int64: question k is token k, the pair of key k and value v is token P + k·n_values + v. Every key
    has one pair; a question may come twice. Also the answers, the values (B, P), and where the pair asked for stands
    (B, P). One layer that sees the pair can answer: what is tested is who sees it.
    """
    keys = torch.rand(batch_size, n_pairs, generator=generator).argsort(-1)  # (B, P)
    values = torch.randint(n_values, (batch_size, n_pairs), generator=generator)
    asked = torch.randint(n_pairs, (batch_size, n_pairs), generator=generator)
    tokens = torch.cat([n_pairs + keys * n_values + values, keys.gather(1, asked)], 1)  # (B, 2·P)
    return tokens, values.gather(1, asked), asked


def lookup_logits(model: nn.Module, tokens: Tensor, settings: Settings) -> Tensor:
    """Logits of the questions' values, (B, P, n_values)."""
    return model(tokens)[:, settings.n_pairs :, : settings.n_values]


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """A fresh model; with one seed the same first weights, whatever it sees."""
    torch.manual_seed(seed)
    n_tokens = settings.n_pairs * (1 + settings.n_values)
    sizes = {"d_model": settings.d_model, "n_heads": settings.n_heads, "n_layers": settings.n_layers}
    options = {} if settings.pattern is None else {"mechanism": "sparse", "pattern": settings.pattern}
    model = Decoder(n_tokens, **sizes, **options)
    return model if settings.top_k is None else keep_best(model, settings.top_k)


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """A trained model; `seed` decides its first weights and its examples."""
    model = make_model(settings, seed).to(device)
    sizes = settings.batch_size, settings.n_pairs, settings.n_values

    def loss_fn(model: nn.Module, step: int) -> Tensor:
        tokens, answers, _ = (part.to(device) for part in lookup_task(*sizes, seeded(seed, step)))
        return F.cross_entropy(lookup_logits(model, tokens, settings).flatten(0, 1), answers.flatten())

    options = {"lr": settings.lr, "seed": seed, "progress": progress, "label": label}
    return model, train(model, loss_fn, settings.steps, **options)


@torch.no_grad()
def evaluate(model: Decoder, settings: Settings, n: int = 500) -> dict:
    """The share of values recalled on n sequences of their own: "exact", and by how far back the pair stands.

    For a pattern also by the layers needed to reach the pair ("by_hops": [share of the questions, share recalled];
    "more": more than the model has, or none is enough). by_distance: in steps of 4, [share recalled], from distance 1.
    """
    P, device = settings.n_pairs, next(model.parameters()).device
    tokens, answers, asked = lookup_task(n, P, settings.n_values, seeded(1_000_000, 0))
    right = torch.cat(
        [
            lookup_logits(model, part.to(device), settings).argmax(-1).cpu() == answer
            for part, answer in zip(tokens.split(100), answers.split(100), strict=True)
        ]
    )  # (n, P)
    place = torch.arange(P, 2 * P)
    distance = place - asked
    bins = [right[(distance >= a) & (distance < a + 4)].double().mean().item() for a in range(1, 2 * P, 4)]
    found = {"exact": round(right.double().mean().item(), 4), "by_distance": [round(share, 4) for share in bins]}
    if settings.pattern is not None:
        mask = pattern_mask(2 * P, pattern=settings.pattern)
        needed = hops(mask)[place, asked]  # (n, P)
        needed = torch.where((needed < 0) | (needed > settings.n_layers), settings.n_layers + 1, needed)
        found["by_hops"] = {}
        for layers in range(1, settings.n_layers + 2):
            chosen = needed == layers
            name = str(layers) if layers <= settings.n_layers else "more"
            recalled = round(right[chosen].double().mean().item(), 4) if chosen.any() else None
            found["by_hops"][name] = [round(chosen.double().mean().item(), 4), recalled]
        found["keys_per_question"] = round(mask[P:].sum(-1).double().mean().item(), 2)
    return found


# --- who can reach whom

# About 23 keys a query at 256 tokens, each.
CONNECTED = {
    "window": (Window(24),),
    "window + stride": (Window(16), Strided(16)),
    "window + fixed": (Window(16), Fixed(16, 1)),
    "dilated": (Dilated(30, 4),),
    "window + random": (Window(12), RandomBlocks(12, 1)),
    "window + global": (Window(16), GlobalTokens(tuple(range(8)))),
}


def hops(mask: Tensor) -> Tensor:
    """Layers with this mask (T, T) until a token depends on another: (T, T) int64, 0 for itself, -1 for never."""
    step = mask.float()
    reached = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    needed = torch.where(reached, 0, -1)
    for layer in range(1, len(mask)):
        new = (step @ reached.float() > 0) & ~reached
        if not new.any():
            break
        needed[new] = layer
        reached = reached | new
    return needed


def connectivity(pattern: Sequence[Part], T: int = 256, causal: bool = True) -> dict:
    """How a pattern connects T tokens: keys per query, shares of the pairs reached after 1, 2, … layers, mean, largest.

    Pairs are those of two tokens that may ever be connected: causal, those with the key before the query.
    """
    mask = pattern_mask(T, pattern=pattern, causal=causal)
    needed = hops(mask)
    pairs = torch.ones(T, T, dtype=torch.bool).tril(-1) if causal else ~torch.eye(T, dtype=torch.bool)
    needed = needed[pairs]
    found = needed[needed > 0]
    shares = [(found <= layers).sum().item() / needed.numel() for layers in range(1, int(found.max()) + 1)]
    mean, largest = found.double().mean().item(), int(found.max())
    return {
        "keys": mask.sum().item() / T,
        "shares": shares,
        "mean": mean,
        "largest": largest,
        "all": bool((needed > 0).all()),
    }


# --- how weights are spread


@torch.no_grad()
def mass_of_k(model: Decoder, tokens: Tensor, ks: Sequence[int] = (4, 16, 64), first: int = 128) -> dict[str, Tensor]:
    """How much of a query's weight the K best keys hold, and how much the last K: mean shares, (L, H) for each K.

    On tokens (B, T), over the queries from `first` on. Keys of the dict: "best 16", "last 16".
    """
    _, layers = model(tokens, return_weights=True)
    found: dict[str, list[Tensor]] = {f"{kind} {k}": [] for kind, k in product(("best", "last"), ks)}
    for weights in layers:  # (B, H, T, T)
        T = weights.shape[-1]
        ordered = weights[:, :, first:].sort(-1, descending=True).values
        back = torch.arange(T, device=weights.device)[first:, None] - torch.arange(T, device=weights.device)
        for k in ks:
            found[f"best {k}"].append(ordered[..., :k].sum(-1).mean((0, 2)).cpu())
            near = (back >= 0) & (back < k)
            found[f"last {k}"].append((weights[:, :, first:] * near).sum(-1).mean((0, 2)).cpu())
    return {name: torch.stack(values) for name, values in found.items()}


def byte_model(device: str = "cpu", n_bytes: int = 16_384, ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> dict:
    """The trained byte model, nothing trained anew: its held-out loss where every head keeps K keys, the best or last.

    Also how much of their weight these hold, on 16 pieces of held-out text.
    """
    model, _ = load_language_model()
    model, rows = model.to(device), []
    for k in ks:
        row = {"k": k, "best": held_out_loss(keep_best(model, k), n_bytes)}
        row["last"] = held_out_loss(windowed(model, [k] * len(model.blocks)), n_bytes)
        rows.append({name: round(value, 4) for name, value in row.items()})
    mass = mass_of_k(model, pieces(16).to(device), ks)
    shares = {name: [[round(x, 4) for x in row] for row in of_heads.tolist()] for name, of_heads in mass.items()}
    return {"n_bytes": n_bytes, "loss": round(held_out_loss(model, n_bytes), 4), "kept": rows, "mass": shares}


def pieces(n: int, length: int = 256) -> Tensor:
    """n pieces of the held-out text, evenly spaced: (n, length) int64."""
    text = load_corpus().held_out.long()
    return text.unfold(0, length, (len(text) - length) // n)[:n]


# --- cost


def costs(
    T: int, pattern: Sequence[Part], repeats: int = 5, device: str = "cpu", H: int = 8, D: int = 64
) -> dict[str, dict]:
    """Dense causal attention, the pattern as a T×T mask, and the pattern's tiles, all forward on (1, H, T, D).

    "pairs": scored for each head (of the tiles, counted by their multiplications); "bytes": of all tensors made,
    without what a kernel holds inside; "ms": medians, taken in turn.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, H, T, D, generator=generator).to(device) for _ in range(3))
    mask = pattern_mask(T, pattern=pattern).to(device)
    ways: dict[str, Callable] = {
        "dense, causal": lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True),
        "the pattern as a T×T mask": lambda: fused_attention(query, key, value, mask),
        "the pattern in tiles": partial(sparse_attention, query, key, value, pattern=pattern),
    }
    with torch.no_grad():
        times = median_ms(ways, repeats)
        made = {name: allocated_bytes(way)[0] for name, way in ways.items()}
        with FlopCounterMode(display=False) as counter:
            ways["the pattern in tiles"]()
    scored = [T * (T + 1) // 2, T * T, counter.get_total_flops() // (4 * H * D)]
    return {
        name: {"pairs": pairs, "seen": int(mask.sum()), "bytes": made[name], "ms": times[name]}
        for name, pairs in zip(ways, scored, strict=True)
    }


# --- all of it


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    parts: dict[str, Callable[[], dict]] | None = None,
) -> dict:
    """Everything, into sparse.json in the folder `out`. What was made from the same is kept.

    parts: name -> function, what is measured besides the training (default: the byte model).
    """
    path, planned = Path(out) / "sparse.json", {}
    for (name, settings), seed in product(runs.items(), seeds):
        made_from = {"model": name, "seed": seed, "settings": settings.record(), "environment": environment(device)}
        planned[f"{name}/{seed}"] = made_from

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        return training_record(model, history) | evaluate(model, settings)

    keep_or_make(path, planned, make)
    content = json.loads(path.read_text())
    for name, measure in ({"byte_model": partial(byte_model, device)} if parts is None else parts).items():
        made_from = {"corpus": load_corpus().provenance(), "environment": environment(device)}
        made_from["model_sha256"] = hashlib.sha256((DATA / FILE).read_bytes()).hexdigest()
        if any(content.get(name, {}).get(field) != value for field, value in made_from.items()):
            content[name] = made_from | {"date": date.today().isoformat(), **measure()}
            write_json(path, content)
    return content
