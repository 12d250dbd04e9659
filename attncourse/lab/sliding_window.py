"""The experiments of chapter 08: what a window costs a model, how far a stack of them reaches, what loops allocate.

Small decoders whose layers are local, global or mixed copy and recall at growing distance, and read bytes; three seeds
each. The trained byte model of `lab.language` is given windows that it was not trained with. A layer's window is an int
W or None, for a layer that sees everything. Letters: T tokens, L layers.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import fused_attention
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.language import FILE, held_out_loss, language_loss, load_language_model
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.positions import losses_by_position
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.tasks import copy_task, recall_task, task_accuracy
from attncourse.lab.training import History, seeded, train
from attncourse.masks import combine, sliding_window_mask
from attncourse.mechanisms import build
from attncourse.sliding_window import BLOCK, sliding_window_attention

# --- stacks of local and global layers


def windowed(model: Decoder, windows: Sequence[int | None]) -> Decoder:
    """A copy of a decoder of `multi_head` layers whose layer l sees windows[l] tokens, with the weights it had."""
    if len(windows) != len(model.blocks):
        raise ValueError(f"there are {len(windows)} windows for {len(model.blocks)} layers")
    model = copy.deepcopy(model)
    for block, window in zip(model.blocks, windows, strict=True):
        if window is not None:
            old = block.attention
            options = {"window": window, "rotary": old.rotary}
            block.attention = build("sliding_window", model.config["d_model"], old.n_heads, **options)
            block.attention.load_state_dict(old.state_dict())
            block.attention.to(old.q_proj.weight.device)
    return model


def nominal_reach(windows: Sequence[int]) -> int:
    """How many tokens back the last layer's output depends on, at most: the sum of W - 1."""
    return sum(window - 1 for window in windows)


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. task: "copy" (length symbols), "recall" (length pairs) or "bytes"."""

    task: str
    windows: tuple[int | None, ...]
    length: int
    steps: int
    batch_size: int
    lr: float = 3e-3
    d_model: int = 64
    n_heads: int = 4
    n_symbols: int = 16


STACKS = {"local": (8, 8), "local, then global": (8, None), "global, then local": (None, 8), "global": (None, None)}
DISTANCES = (3, 6, 9, 13, 14, 15, 27)  # so far before the token that predicts stands what it has to copy
BYTE_STACKS = {"local": (16,) * 4, "three local, one global": (16, 16, 16, None), "global": (None,) * 4}
RUNS = {
    **{
        f"copy {distance}, {name}": Settings("copy", STACKS[name], distance, 200, 16)
        for distance, name in product(DISTANCES, ("local", "local, then global", "global"))
    },
    **{f"recall, {name}": Settings("recall", windows, 8, 300, 64) for name, windows in STACKS.items()},
    **{f"bytes, {name}": Settings("bytes", windows, 128, 300, 8) for name, windows in BYTE_STACKS.items()},
}


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """A fresh model; with one seed and task the same first weights, whatever its windows."""
    torch.manual_seed(seed)
    n_tokens = {"copy": settings.n_symbols + 1, "recall": 2 * settings.n_symbols, "bytes": N_BYTES}[settings.task]
    sizes = {"d_model": settings.d_model, "n_heads": settings.n_heads, "n_layers": len(settings.windows)}
    return windowed(Decoder(n_tokens, max_length=settings.length, **sizes), settings.windows)


def examples(settings: Settings, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (B, T + 1) of the task "copy" or "recall", and which predictions count, (B, T)."""
    if settings.task == "copy":
        return copy_task(batch_size, settings.length, settings.n_symbols, generator)
    return recall_task(batch_size, settings.length, settings.n_symbols, settings.n_symbols, generator)


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """A trained model; `seed` decides its first weights and its examples."""
    model = make_model(settings, seed).to(device)
    if settings.task == "bytes":
        loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed, device)
    else:

        def loss_fn(model: nn.Module, step: int) -> Tensor:
            tokens, counted = examples(settings, settings.batch_size, seeded(seed, step))
            return next_token_loss(model, tokens.to(device), counted.to(device))

    options = {"lr": settings.lr, "seed": seed, "progress": progress, "label": label}
    return model, train(model, loss_fn, settings.steps, **options)


@torch.no_grad()
def recall_by_distance(model: nn.Module, settings: Settings, n: int = 1000) -> dict[str, float]:
    """Share of values recalled, by how far before the question the value stands; n sequences of their own."""
    tokens, _ = examples(settings, n, seeded(1_000_000, 0))
    first_question = 2 * settings.length
    asked = torch.arange(first_question, tokens.shape[1] - 1, 2)  # places of the questions
    keys = tokens[:, 0:first_question:2]  # (n, pairs)
    pair = (tokens[:, asked][:, :, None] == keys[:, None]).int().argmax(-1)  # (n, questions)
    distance = asked - (2 * pair + 1)
    device = next(model.parameters()).device
    right = (model(tokens[:, :-1].to(device)).argmax(-1).cpu() == tokens[:, 1:])[:, asked]
    return {str(d): round(right[distance == d].double().mean().item(), 4) for d in distance.unique().tolist()}


def evaluate(model: Decoder, settings: Settings, n_bytes: int | None = 40_000) -> dict:
    """Share of right answers; for recall also by distance; for bytes the held-out loss and the gradient's shares."""
    if settings.task == "bytes":
        text = load_corpus().held_out
        shares = gradient_shares(model, text, settings.length)
        loss = held_out_loss(model, n_bytes, settings.length)
        return {"loss": round(loss, 4), "gradient": [float(f"{share:.4g}") for share in shares.tolist()]}
    found = {"exact": round(task_accuracy(model, *examples(settings, 500, seeded(2_000_000, 0))), 4)}
    if settings.task == "recall":
        found["by_distance"] = recall_by_distance(model, settings)
    return found


# --- how far back a prediction reaches


def gradient_shares(model: Decoder, text: Tensor, length: int, n_pieces: int = 128) -> Tensor:
    """How the gradient of a prediction's loss is spread over the tokens it read, by distance: shares (length,), sum 1.

    The gradient is taken in each token's vector, for the last prediction of n_pieces pieces of a text (N,), and its
    norm averaged over the pieces. Distance 0 is the last token read. An exact 0 means: no path.
    """
    pieces = text.long().unfold(0, length + 1, max(1, (len(text) - length) // n_pieces))[:n_pieces]
    device, total = next(model.parameters()).device, torch.zeros(length, dtype=torch.float64)
    for piece in pieces.split(32):
        piece = piece.to(device)
        x = model.embedding(piece[:, :-1]).detach().requires_grad_()  # (B, length, d_model)
        hidden = x
        for block in model.blocks:
            hidden = block(hidden, None, None, None)
        logits = model.norm(hidden[:, -1]) @ model.embedding.weight.T  # (B, 256)
        loss = F.cross_entropy(logits, piece[:, -1], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        total += gradient.norm(dim=-1).double().sum(0).cpu()
    return (total / total.sum()).flip(0)


# --- windows for a model that was trained without


@torch.no_grad()
def loss_with_sinks(
    model: Decoder, window: int, sinks: int, n_bytes: int | None = 40_000, length: int = 256, batch_size: int = 16
) -> float:
    """Held-out nats a byte where every layer sees the last `window` tokens and the first `sinks` of the piece.

    Through a T×T mask: what is asked here is the loss, not the cost.
    """
    near = sliding_window_mask(length, window=window)
    first = (torch.arange(length) < sinks).expand(length, -1)
    causal = sliding_window_mask(length, window=length)
    device = next(model.parameters()).device
    mask = combine(combine(near, first), causal, how="and").to(device)  # (T, T)
    pieces = load_corpus().held_out[:n_bytes].long().unfold(0, length + 1, length)
    losses = []
    for piece in pieces.split(batch_size):
        piece = piece.to(device)
        logits = model(piece[:, :-1], mask=mask).transpose(1, 2)
        losses.append(F.cross_entropy(logits, piece[:, 1:], reduction="none").flatten())
    return torch.cat(losses).double().mean().item()


def byte_model(
    device: str = "cpu", n_bytes: int = 40_000, windows: Sequence[int] = (4, 8, 16, 32, 64, 128, 256)
) -> dict:
    """The trained byte model with windows: its loss, with the last layer global, with sinks, and past 256 bytes."""
    model, _ = load_language_model()
    model = model.to(device)
    L, trained = len(model.blocks), model.max_length
    found = {"loss": [], "long": []}
    for window in windows:
        row = {"window": window}
        for name, mix in (("all", [window] * L), ("last_global", [window] * (L - 1) + [None])):
            row[name] = round(held_out_loss(windowed(model, mix), n_bytes, trained), 4)
        found["loss"].append(row)
    found["sinks"] = {str(n): round(loss_with_sinks(model, 32, n, n_bytes, trained), 4) for n in (0, 1, 4)}
    shares = gradient_shares(model, load_corpus().held_out, trained)
    found["gradient"] = [float(f"{share:.4g}") for share in shares.tolist()]
    for window in (None, 256, 128, 64):
        losses = losses_by_position(windowed(model, [window] * L), 4 * trained, trained, n_bytes // 2, batch_size=4)
        found["long"].append({"window": window, "by_position": [round(loss, 3) for loss in losses.tolist()]})
    return found


# --- the same window computed in four ways


# Linear forward; but under autograd each slice's gradient is as long as the whole of `key`: quadratic backward.
def sliced_window(query: Tensor, key: Tensor, value: Tensor, window: int, block: int = BLOCK) -> Tensor:
    """For demonstration only: causal window attention by a loop that slices its keys, all heads (B, H, T, D).

    What it costs, chapter 08 asks and counts.
    """
    T, outputs = query.shape[2], []
    for start in range(0, T, block):
        end, first = min(start + block, T), max(0, start - window + 1)
        mask = sliding_window_mask(end - start, end - first, window=window).to(query.device)
        near_key, near_value = key[:, :, first:end], value[:, :, first:end]
        outputs.append(fused_attention(query[:, :, start:end], near_key, near_value, mask))
    return torch.cat(outputs, 2)


def ways(T: int, window: int, device: str = "cpu", H: int = 8, D: int = 64) -> dict[str, Callable]:
    """Functions of query, key, value (1, H, T, D): no window, and the same window in three ways."""
    mask = sliding_window_mask(T, window=window).to(device)
    return {
        "no window": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "a T×T mask": lambda q, k, v: fused_attention(q, k, v, mask),
        "blocks, sliced": partial(sliced_window, window=window),
        "blocks, cut once": partial(sliding_window_attention, window=window),
    }


def costs(T: int, window: int = 256, repeats: int = 5, device: str = "cpu", timed: bool = True) -> dict[str, dict]:
    """For each of `ways`: milliseconds and bytes of all tensors made, of a forward pass, and with its backward pass."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 8, T, 64, generator=generator).to(device) for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in given]
    with torch.no_grad():
        out_gradient = torch.randn(1, 8, T, 64, generator=generator).to(device)

    def forward(way: Callable) -> Tensor:
        with torch.no_grad():
            return way(*given)

    def both(way: Callable) -> tuple[Tensor, ...]:
        return torch.autograd.grad(way(*leaves), leaves, out_gradient)

    functions = ways(T, window, device)
    rows = {name: {} for name in functions}
    for kind, call in (("forward", forward), ("both", both)):
        calls = {name: partial(call, way) for name, way in functions.items()}
        times = median_ms(calls, repeats) if timed else {}
        for name, function in calls.items():
            rows[name][f"{kind}_bytes"] = allocated_bytes(function)[0]
            if timed:
                rows[name][f"{kind}_ms"] = times[name]
    return rows


# --- all of it


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    parts: dict | None = None,
) -> dict:
    """Everything, into sliding_window.json in the folder `out`. What was made from the same is kept.

    parts: name -> function, what is measured besides the training (default: the byte model).
    """
    path = Path(out) / "sliding_window.json"
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device)}
    planned = {}
    for (name, settings), seed in product(runs.items(), seeds):
        made_from = {"model": name, "seed": seed, "settings": json.loads(json.dumps(asdict(settings)))}
        corpus = shared if settings.task == "bytes" else {"environment": shared["environment"]}
        planned[f"{name}/{seed}"] = made_from | corpus

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        return training_record(model, history) | evaluate(model, settings)

    keep_or_make(path, planned, make)
    content = json.loads(path.read_text())
    for name, measure in ({"byte_model": partial(byte_model, device)} if parts is None else parts).items():
        made_from = shared | {"model_sha256": hashlib.sha256((DATA / FILE).read_bytes()).hexdigest()}
        if any(content.get(name, {}).get(field) != value for field, value in made_from.items()):
            content[name] = made_from | {"date": date.today().isoformat(), **measure()}
            write_json(path, content)
    return content
