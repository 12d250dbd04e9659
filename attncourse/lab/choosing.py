"""The comparison of chapter 16: every causal mechanism at the same cache, parameters, data and steps.

One small decoder, whose attention is what differs, learns bytes, associative recall and copying; three seeds each. A
budget is how much one layer may keep of a sequence of `CONTEXT` tokens, as a share of what multi-head attention keeps.
What a mechanism saves in its own parameters goes to the networks between. Letters: T tokens, H heads, D numbers of a
head, L layers.
"""

import os
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.lab.budget import options_at
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Block, next_token_loss
from attncourse.lab.language import held_out_loss, language_loss
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.tasks import copy_task, recall_task, task_accuracy
from attncourse.lab.training import History, seeded, train
from attncourse.mechanisms import build
from attncourse.patterns import Strided, Window
from attncourse.positions import RotaryEmbedding

D_MODEL, N_HEADS, N_LAYERS = 64, 8, 2
CONTEXT = 256  # tokens of every sequence at its longest: where caches are compared
Layer = tuple[str, float]  # a mechanism, and its budget as a share of multi-head attention's cache
MODELS: dict[str, tuple[Layer, ...]] = {  # the layers from the first to the last, repeated to N_LAYERS
    "MHA": (("multi_head", 1),),
    "sparse": (("sparse", 1),),
    "GQA, 1/2": (("gqa", 1 / 2),),
    "MLA, 1/2": (("mla", 1 / 2),),
    "window, 1/2": (("sliding_window", 1 / 2),),
    "GQA, 1/4": (("gqa", 1 / 4),),
    "MLA, 1/4": (("mla", 1 / 4),),
    "window, 1/4": (("sliding_window", 1 / 4),),
    "MQA, 1/8": (("mqa", 1 / 8),),
    "MLA, 1/8": (("mla", 1 / 8),),
    "window, 1/8": (("sliding_window", 1 / 8),),
    "linear, 1/8": (("linear", 1 / 8),),
    "performer, 1/8": (("performer", 1 / 8),),
    "window, 1/16": (("sliding_window", 1 / 16),),
    "linear, 1/57": (("linear", 1 / 57),),
    "window 1/16 and MQA": (("sliding_window", 1 / 16), ("mqa", 1 / 8)),
    "linear 1/57 and MQA": (("linear", 1 / 57), ("mqa", 1 / 8)),
}


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its model and its seed. A step reads about `tokens` tokens.

    lengths: of the sequences, taken in turn: pieces of so many bytes, so many pairs to recall, or symbols to copy.
    """

    task: str
    lengths: tuple[int, ...]
    steps: int
    tokens: int
    lr: float = 5e-3
    n_symbols: int = 64  # to copy; keys, and as many values, to recall


TASKS = {
    "bytes": Settings("bytes", (CONTEXT,), 400, 2048),
    "recall": Settings("recall", (8, 16, 32, 64), 300, 4096),
    "copy": Settings("copy", (16, 32, 64, 127), 300, 2048),
}
HELD_OUT_BYTES = 40_000


class Comparer(nn.Module):
    """A decoder for the comparison: tokens (B, T) to logits (B, T, n_tokens).

    Each token is read with the one before it, as through the short convolution in front of many linear layers: without
    it two layers must first find out how to bring a value and its key together (chapter 08), and minutes are too few.
    """

    def __init__(self, n_tokens: int, layers: tuple[Layer, ...], width: int):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, D_MODEL)
        nn.init.normal_(self.embedding.weight, std=D_MODEL**-0.5)
        self.before = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.blocks = nn.ModuleList(
            Block(D_MODEL, make_attention(*layers[i % len(layers)]), width) for i in range(N_LAYERS)
        )
        self.norm = nn.RMSNorm(D_MODEL)

    def forward(self, tokens: Tensor) -> Tensor:
        now = self.embedding(tokens)  # (B, T, d_model)
        x = now + self.before(F.pad(now, (0, 0, 1, 0))[:, :-1])
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


def make_attention(mechanism: str, budget: float) -> nn.Module:
    """A causal layer that keeps a share `budget` of what multi-head attention keeps of CONTEXT tokens."""
    n_heads, options = options_at(mechanism, budget, D_MODEL, N_HEADS, CONTEXT)
    if mechanism == "sparse":
        options = {"pattern": [Window(16), Strided(16)]}
    if mechanism != "mla":  # which has its own rotation
        options["rotary"] = RotaryEmbedding(D_MODEL // n_heads)
    return build(mechanism, D_MODEL, n_heads, **options)


def make_model(name: str, n_tokens: int = N_BYTES, seed: int = 0) -> Comparer:
    """A fresh model of `MODELS`, of as many parameters as that of multi-head attention, within a hundredth."""
    torch.manual_seed(seed)
    layers = MODELS[name]
    spared = sum(_parameters(make_attention("multi_head", 1)) for _ in range(N_LAYERS))
    spared -= sum(_parameters(make_attention(*layers[i % len(layers)])) for i in range(N_LAYERS))
    width = 4 * D_MODEL + round(spared / (2 * D_MODEL * N_LAYERS))
    torch.manual_seed(seed)
    return Comparer(n_tokens, layers, width)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def cached_bytes(model: Comparer, n_tokens: int = CONTEXT) -> int:
    """Bytes of the caches of all layers together, in float32, of one sequence of n_tokens: of their storages.

    A window's room is at most the sequence's length; a state's does not depend on it.
    """
    return sum(block.attention.new_cache(1, n_tokens).nbytes for block in model.blocks)


def examples(settings: Settings, length: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of `length` pairs, all asked again, or symbols to copy, with about `tokens` tokens in all."""
    if settings.task == "recall":
        n = settings.n_symbols
        return recall_task(max(1, tokens // (4 * length)), length, n, n, generator)
    return copy_task(max(1, tokens // (2 * length + 2)), length, settings.n_symbols, generator)


def train_model(
    name: str, settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Comparer, History]:
    """A trained model; `seed` decides its first weights and its examples, the same for all models."""
    n_tokens = {"bytes": N_BYTES, "recall": 2 * settings.n_symbols, "copy": settings.n_symbols + 1}[settings.task]
    model = make_model(name, n_tokens, seed).to(device)
    if settings.task == "bytes":
        (length,) = settings.lengths
        loss_fn = language_loss(load_corpus().train, settings.tokens // length, length, seed, device)
    else:

        def loss_fn(model: nn.Module, step: int) -> Tensor:
            length = settings.lengths[step % len(settings.lengths)]
            tokens, counted = examples(settings, length, settings.tokens, seeded(seed, step))
            return next_token_loss(model, tokens.to(device), counted.to(device))

    options = {"lr": settings.lr, "seed": seed, "progress": progress, "label": label}
    return model, train(model, loss_fn, settings.steps, **options)


@torch.no_grad()
def recalled_by_distance(model: Comparer, settings: Settings, n: int = 400, width: int = 16) -> list[float]:
    """Share of values recalled, by how many tokens before the question their key stands, in classes of `width` tokens.

    n sequences of the most pairs; the first class is 0 to width - 1.
    """
    n_pairs = max(settings.lengths)
    tokens, _ = examples(settings, n_pairs, 4 * n_pairs * n, seeded(3_000_000, 0))  # (n, 4 · n_pairs)
    device = next(model.parameters()).device
    asked = torch.arange(2 * n_pairs, 4 * n_pairs, 2)  # places of the questions
    guess = torch.cat([model(part.to(device)).argmax(-1).cpu() for part in tokens[:, :-1].split(100)])
    right = guess[:, asked] == tokens[:, asked + 1]  # (n, n_pairs)
    keys = tokens[:, : 2 * n_pairs : 2]
    place = 2 * (tokens[:, asked, None] == keys[:, None]).int().argmax(-1)  # of the key that is asked for
    distance = (asked - place) // width
    return [round(right[distance == i].float().mean().item(), 4) for i in range(4 * n_pairs // width)]


def evaluate(model: Comparer, settings: Settings, n_bytes: int = HELD_OUT_BYTES) -> dict:
    """What a trained model reaches: "loss" in nats, and what its task adds.

    bytes: on held-out bytes. recall: "exact", of the most pairs, and "by_distance". copy: "exact" of the longest, and
    "by_length".
    """
    if settings.task == "bytes":
        return {"loss": round(held_out_loss(model, n_bytes, settings.lengths[0]), 4)}
    device = next(model.parameters()).device
    by_length = {}
    for length in settings.lengths:
        tokens, counted = examples(settings, length, 50_000, seeded(2_000_000, length))
        by_length[str(length)] = round(task_accuracy(model, tokens, counted), 4)
    with torch.no_grad():
        loss = next_token_loss(model, tokens.to(device), counted.to(device)).item()
    found = {"loss": round(loss, 4), "exact": by_length[str(length)], "by_length": by_length}
    return found | ({"by_distance": recalled_by_distance(model, settings)} if settings.task == "recall" else {})


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    models: tuple[str, ...] = tuple(MODELS),
    tasks: dict[str, Settings] = TASKS,
    workers: int | None = None,
) -> dict:
    """Everything, into choosing.json in the folder `out`. What was made from the same is kept.

    workers: how many processes train at once; by default one for each core, and on a GPU one.
    """
    here, planned = environment(device), {}
    for seed, (task, settings), name in product(seeds, tasks.items(), models):
        made_from = {"model": name, "task": task, "seed": seed, "layers": [list(layer) for layer in MODELS[name]]}
        made_from |= {"settings": asdict(settings) | {"lengths": list(settings.lengths)}, "environment": here}
        if task == "bytes":
            made_from["corpus"] = load_corpus().provenance()
        planned[f"{task}, {name}/{seed}"] = made_from
    workers = workers or (os.cpu_count() or 1 if device == "cpu" else 1)
    make = partial(_make, device=device, progress=workers == 1)  # one line cannot show the steps of two
    return keep_or_make(Path(out) / "choosing.json", planned, make, workers)


def _make(key: str, made_from: dict, device: str, progress: bool) -> dict:
    """One run, in a process of its own, perhaps."""
    torch.set_num_threads(made_from["environment"]["threads"])
    settings = made_from["settings"]
    settings = Settings(**(settings | {"lengths": tuple(settings["lengths"])}))
    options = {"device": device, "progress": progress, "label": key}
    model, history = train_model(made_from["model"], settings, made_from["seed"], **options)
    record = training_record(model, history) | {"cached_bytes": cached_bytes(model)}
    record |= evaluate(model, settings)
    losses = torch.tensor(history.losses)
    return record | {"losses": [round(part.mean().item(), 4) for part in losses.split(20)]}
