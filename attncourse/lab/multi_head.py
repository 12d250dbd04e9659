"""The experiments of chapter 06: what heads buy at equal parameters, what they look at, what removing them costs.

Two parts. `RUNS` trains small decoders that differ in the number of heads only, three seeds each. `heads` looks at the
trained byte model of `attncourse.lab.language`: statistics of every head's weights on held-out text, and the held-out
loss without it. Letters: B sequences, T tokens, H heads, L layers, D numbers of a head, K places.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.language import held_out_loss, language_loss, load_language_model
from attncourse.lab.measure import median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History, seeded, train
from attncourse.multi_head import MultiHeadAttention

HEADS = (1, 2, 4, 8)
Head = tuple[int, int]  # layer and head, both from 0

# --- part 1: heads of d / H against one head of d


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. task: "places" or "bytes"."""

    task: str
    n_heads: int
    n_layers: int
    steps: int
    batch_size: int
    length: int
    lr: float = 5e-3
    d_model: int = 64
    n_places: int = 4
    n_symbols: int = 16


RUNS = {
    **{f"places, H = {H}": Settings("places", H, 1, 300, 32, 32) for H in HEADS},
    **{f"bytes, H = {H}": Settings("bytes", H, 2, 250, 16, 128) for H in HEADS},
}


def places_task(
    batch_size: int, length: int, n_places: int, n_symbols: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Read several places at once: random symbols, and at each token the n_places symbols before it, nearest first.

    Tokens (B, T) and answers (B, T - n_places, n_places), int64: those of token n_places come first.
    """
    tokens = torch.randint(n_symbols, (batch_size, length), generator=generator)
    answers = tokens.unfold(1, n_places, 1)[:, :-1].flip(-1)  # (B, T - K, K)
    return tokens, answers


def places_logits(model: Decoder, tokens: Tensor, n_places: int) -> Tensor:
    """Logits (B, T - K, K, n_symbols): the model's tokens are n_symbols for each place, so one layer answers all."""
    return model(tokens)[:, n_places:].unflatten(-1, (n_places, -1))


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """A fresh decoder; with one seed, the same first weights whatever the number of heads."""
    torch.manual_seed(seed)
    n_tokens = N_BYTES if settings.task == "bytes" else settings.n_places * settings.n_symbols
    sizes = {"d_model": settings.d_model, "n_heads": settings.n_heads, "n_layers": settings.n_layers}
    return Decoder(n_tokens, **sizes, max_length=settings.length)


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True
) -> tuple[Decoder, History]:
    """A decoder trained on its task; `seed` decides its first weights and the examples, in every run alike."""
    model = make_model(settings, seed).to(device)
    if settings.task == "bytes":
        loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed, device)
    else:

        def loss_fn(model: nn.Module, step: int) -> Tensor:
            tokens, answers = (part.to(device) for part in _places(settings, settings.batch_size, seeded(seed, step)))
            logits = places_logits(model, tokens, settings.n_places)
            return F.cross_entropy(logits.flatten(0, 2), answers.flatten())

    options = {
        "lr": settings.lr,
        "seed": seed,
        "progress": progress,
        "label": f"{settings.n_heads} head{'s' * (settings.n_heads > 1)}",
    }
    return model, train(model, loss_fn, settings.steps, **options)


def _places(settings: Settings, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return places_task(batch_size, settings.length, settings.n_places, settings.n_symbols, generator)


@torch.no_grad()
def evaluate(model: Decoder, settings: Settings, n_bytes: int | None = None) -> dict:
    """The share of tokens with every place right ("exact") and "by_place"; of bytes, the share right and the "loss"."""
    device = next(model.parameters()).device
    if settings.task == "bytes":
        right = total = 0
        for piece in _pieces(load_corpus().held_out[:n_bytes], settings.length):
            piece = piece.to(device)
            right += (model(piece[:, :-1]).argmax(-1) == piece[:, 1:]).sum().item()
            total += piece[:, 1:].numel()
        return {"exact": round(right / total, 4), "loss": round(held_out_loss(model, n_bytes, settings.length), 4)}
    tokens, answers = (part.to(device) for part in _places(settings, 512, torch.Generator().manual_seed(1_000_000)))
    right = places_logits(model, tokens, settings.n_places).argmax(-1) == answers  # (B, T - K, K)
    by_place = right.double().mean((0, 1)).tolist()
    return {"exact": round(right.all(-1).double().mean().item(), 4), "by_place": [round(p, 4) for p in by_place]}


def _pieces(text: Tensor, length: int, batch_size: int = 16) -> Iterable[Tensor]:
    """A text (N,) in pieces of `length` predictions, in batches (B, length + 1)."""
    return text.long().unfold(0, length + 1, length).split(batch_size)


@torch.no_grad()
def place_weights(model: Decoder, settings: Settings) -> list[list[float]]:
    """The mean weight of each head of the first layer on the symbols 1, 2, … n_places back: [head][place]."""
    tokens, _ = _places(settings, 256, torch.Generator().manual_seed(1_000_000))
    _, (weights, *_) = model(tokens.to(next(model.parameters()).device), return_weights=True)
    places = range(1, settings.n_places + 1)
    stripes = [weights.diagonal(-place, -2, -1)[..., settings.n_places - place :].mean((0, 2)) for place in places]
    return [[round(x, 4) for x in row] for row in torch.stack(stripes, -1).tolist()]


@torch.no_grad()
def costs(
    heads: Iterable[int] = (1, 2, 4, 8, 16, 32),
    B: int = 4,
    T: int = 256,
    d_model: int = 256,
    device: str = "cpu",
    repeats: int = 9,
) -> list[dict]:
    """One layer on x (B, T, d_model) for each number of heads: multiply-adds (counted), weights, and milliseconds.

    "explicit" builds the weights, "fused" does not; medians, taken in turn.
    """
    x, layers = torch.randn(B, T, d_model, device=device), {}
    for H in heads:
        layers[H] = MultiHeadAttention(d_model, H).to(device)
    calls = {f"explicit {H}": lambda layer=layer: layer(x, return_weights=True) for H, layer in layers.items()}
    calls |= {f"fused {H}": lambda layer=layer: layer(x) for H, layer in layers.items()}
    ms, rows = median_ms(calls, repeats), []
    for H, layer in layers.items():
        with FlopCounterMode(display=False) as counter:
            layer(x, return_weights=True)
        row = {"heads": H, "parameters": sum(p.numel() for p in layer.parameters())}
        row |= {"multiply_adds": counter.get_total_flops() // 2, "weights": B * H * T * T}
        rows.append(row | {"explicit_ms": ms[f"explicit {H}"], "fused_ms": ms[f"fused {H}"]})
    return rows


# --- part 2: the heads of the trained byte model

# A real piece of the held-out text (heapq.py), in which names come back: what the chapter's gallery shows.
PASSAGE = """\
    if heap:
        returnitem = heap[0]
        heap[0] = lastelt"""
N_LOOKED, N_REMOVED, LENGTH = 32, 16_384, 256  # pieces for the statistics, bytes for the losses, bytes of a piece
SPACE, NEWLINE = ord(" "), ord("\n")

STATISTICS = {
    "self": "the byte itself",
    "previous": "the byte before",
    "near": "2 to 8 bytes back",
    "first": "the first byte of the piece",
    "same": "earlier bytes that are the same",
    "after same": "bytes that followed an earlier same byte",
    "newline": "the newline bytes",
    "indent": "spaces that begin a line",
}


def relations(tokens: Tensor) -> dict[str, Tensor]:
    """For tokens (B, T), which earlier bytes j stand in which relation to byte i: boolean masks (B, T, T), by name.

    They overlap: the byte before may be a newline. All but "self" leave the byte itself out.
    """
    B, T = tokens.shape
    i, j = torch.arange(T)[:, None], torch.arange(T)
    before, same = j < i, tokens[:, :, None] == tokens[:, None]  # (T, T), (B, T, T)
    came_after = F.pad(same[..., :-1], (1, 0))  # j - 1 is the same byte as i
    starts = torch.ones_like(tokens, dtype=torch.bool)  # whether only spaces stand between the line's start and j
    for t in range(T):
        fresh = t == 0 or tokens[:, t - 1] == NEWLINE
        starts[:, t] = (tokens[:, t] == SPACE) & (fresh | (starts[:, t - 1] if t else False))
    every = {
        "self": (i == j).expand(B, T, T),
        "previous": (j == i - 1).expand(B, T, T),
        "near": ((j <= i - 2) & (j >= i - 8)).expand(B, T, T),
        "first": (before & (j == 0)).expand(B, T, T),
        "same": same & before,
        "after same": came_after & before,
        "newline": (tokens == NEWLINE)[:, None] & before,
        "indent": starts[:, None] & before,
    }
    return every


@torch.no_grad()
def statistics(model: Decoder, tokens: Tensor, first: int = 64) -> dict:
    """What each head looks at on tokens (B, T): means over the queries from byte `first` on, as lists [layer][head].

    "weight": the share of a head's weights on each relation of `STATISTICS`; "even": what even weights would give;
    "keys": exp(entropy), how many keys a query reads as if evenly; "distance": the mean distance, in bytes.
    """
    device = next(model.parameters()).device
    _, layers = model(tokens.to(device), return_weights=True)  # L times (B, H, T, T)
    layers = [weights[:, :, first:].double().cpu() for weights in layers]
    T = tokens.shape[1]
    back = torch.arange(T)[:, None] - torch.arange(T)  # (T, T)
    even = (back >= 0).double() / (torch.arange(T) + 1)[:, None]
    masks = {name: mask[:, None, first:] for name, mask in relations(tokens).items()}  # (B, 1, T - first, T)

    def mean(of: Callable[[Tensor], Tensor]) -> list[list[float]]:
        return [[round(x, 4) for x in of(weights).mean((0, 2)).tolist()] for weights in layers]

    return {
        "weight": {name: mean(lambda w, m=mask: (w * m).sum(-1)) for name, mask in masks.items()},
        "even": {name: round((even[first:] * mask).sum(-1).mean().item(), 4) for name, mask in masks.items()},
        "keys": mean(lambda w: torch.special.entr(w).sum(-1).exp()),
        "distance": mean(lambda w: (w * back[first:].clamp(min=0)).sum(-1)),
    }


@torch.no_grad()
def repeated_scores(model: Decoder, n: int = 16, half: int = 96, seed: int = 0) -> dict[str, list[list[float]]]:
    """On random printable bytes said twice: weight on the byte that came next the first time ("induction"), and on the
    same byte there ("duplicate"), means over the second time, as lists [layer][head].

    Nothing but the repetition says where to look: text's own habits are gone (Olsson et al. 2022).
    """
    once = torch.randint(33, 127, (n, half), generator=torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device
    _, layers = model(torch.cat([once, once], 1).to(device), return_weights=True)
    found = {"induction": [], "duplicate": []}
    for weights in layers:
        for name, shift in (("induction", half - 1), ("duplicate", half)):
            stripe = weights.diagonal(-shift, -2, -1)[..., -half:]  # (B, H, half): query i, key i - shift
            found[name].append([round(x, 4) for x in stripe.mean((0, 2)).tolist()])
    return found


def labels(statistics: dict, repeated: dict) -> list[list[str]]:
    """A short name for each head, [layer][head], from `statistics` and `repeated_scores`: the first rule that holds.

    The rules and their limits are this course's own, made to be checked and not to be clever. "mixed": none holds.
    """
    weight, even = statistics["weight"], statistics["even"]

    def name(layer: int, head: int) -> str:
        share = {relation: values[layer][head] for relation, values in weight.items()}
        times = {relation: share[relation] / even[relation] for relation in share}
        rules = {
            "induction": repeated["induction"][layer][head] >= 0.1 or times["after same"] >= 2,
            "same byte": repeated["duplicate"][layer][head] >= 0.1 or times["same"] >= 2,
            "byte before": share["previous"] >= 0.4,
            "first byte": share["first"] >= 0.3,
            "line breaks": share["newline"] >= 0.2,
            "indentation": times["indent"] >= 2,
            "last few bytes": share["self"] + share["previous"] + share["near"] >= 0.7,
            "spread out": statistics["keys"][layer][head] >= 24,
        }
        return next((label for label, holds in rules.items() if holds), "mixed")

    shape = len(statistics["keys"]), len(statistics["keys"][0])
    return [[name(layer, head) for head in range(shape[1])] for layer in range(shape[0])]


@contextmanager
def removed(model: Decoder, heads: Collection[Head], means: Tensor | None = None) -> Iterator[None]:
    """While it lasts, these (layer, head) give zeros to the output projection; or, with means (L, H, D), their mean."""
    hooks = []
    for layer, block in enumerate(model.blocks):
        chosen = sorted({head for at, head in heads if at == layer})
        if not chosen:
            continue
        H = block.attention.n_heads

        def replace(module: nn.Module, given: tuple, chosen=tuple(chosen), layer=layer, H=H) -> tuple[Tensor]:
            output = given[0].unflatten(-1, (H, -1)).clone()  # (B, T, H, D)
            for head in chosen:
                output[..., head, :] = 0.0 if means is None else means[layer, head].to(output)
            return (output.flatten(-2),)

        hooks.append(block.attention.o_proj.register_forward_pre_hook(replace))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_outputs(model: Decoder, tokens: Tensor) -> Tensor:
    """The mean output of every head before the output projection, over tokens (B, T): (L, H, D)."""
    seen: list[Tensor] = []

    def look(module: nn.Module, given: tuple) -> None:
        seen.append(given[0].mean((0, 1)))

    hooks = [block.attention.o_proj.register_forward_pre_hook(look) for block in model.blocks]
    try:
        model(tokens.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).unflatten(-1, (model.blocks[0].attention.n_heads, -1))


@torch.no_grad()
def piece_losses(model: Decoder, text: Tensor, length: int = LENGTH) -> Tensor:
    """Mean nats a byte in each piece of a text (N,), on the CPU in float64: (pieces,)."""
    device, losses = next(model.parameters()).device, []
    for pieces in _pieces(text, length):
        pieces = pieces.to(device)
        logits, wanted = model(pieces[:, :-1]), pieces[:, 1:]  # (B, T, V), (B, T)
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        losses.append(each.double().mean(1).cpu())
    return torch.cat(losses)


def all_heads(model: Decoder) -> list[Head]:
    """Every (layer, head)."""
    return list(product(range(len(model.blocks)), range(model.blocks[0].attention.n_heads)))


def cost_of(
    model: Decoder, heads: Collection[Head], text: Tensor, whole: Tensor, means: Tensor | None = None
) -> tuple[float, float]:
    """By how much the loss on a text rises without these heads, and that mean's standard error over the pieces."""
    with removed(model, heads, means):
        rise = piece_losses(model, text) - whole
    return rise.mean().item(), (rise.std() / len(rise) ** 0.5).item()


def rank_correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Spearman's: the correlation of the ranks, ties given their mean rank."""

    def ranks(values: Iterable[float]) -> Tensor:
        values = torch.tensor(list(values), dtype=torch.float64)
        below, equal = (values[None] < values[:, None]).sum(1), (values[None] == values[:, None]).sum(1)
        return below + (equal - 1) / 2

    return torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1].item()


COUNTS = (1, 2, 4, 8, 12, 16, 24, 32)


def heads(model: Decoder, n_looked: int = N_LOOKED, n_removed: int = N_REMOVED, counts: Iterable[int] = COUNTS) -> dict:
    """Statistics, the cost of each head, and of several, on held-out text; lists are [layer][head].

    The single costs, and the orders made from them, come from the text's first part; the costs of several heads from
    another, half as long, so that an order is not judged on the text that chose it.
    """
    text = load_corpus().held_out
    looked = text[: n_looked * LENGTH].long().view(n_looked, LENGTH)
    first, second = text[:n_removed], text[n_removed : n_removed + n_removed // 2]
    every, result = all_heads(model), {"statistics": statistics(model, looked), "repeated": repeated_scores(model)}
    result["labels"] = labels(result["statistics"], result["repeated"])
    shape = (len(model.blocks), model.blocks[0].attention.n_heads)

    whole, means = piece_losses(model, first), mean_outputs(model, looked)
    single = {head: cost_of(model, [head], first, whole) for head in every}
    averaged = {head: cost_of(model, [head], first, whole, means)[0] for head in every}
    result["single"] = {
        "loss": round(whole.mean().item(), 5),
        "cost": _grid((round(single[head][0], 5) for head in every), shape),
        "standard_error": _grid((round(single[head][1], 5) for head in every), shape),
        "cost_of_the_mean": _grid((round(averaged[head], 5) for head in every), shape),
    }
    whole, by_cost = piece_losses(model, second), sorted(every, key=lambda head: single[head][0])
    orders = {"cheapest first": by_cost, "dearest first": by_cost[::-1]}
    for seed in range(3):
        shuffled = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
        orders[f"random {seed}"] = [every[k] for k in shuffled]
    counts = [count for count in counts if count <= len(every)]
    several = {
        name: [round(cost_of(model, order[:count], second, whole)[0], 4) for count in counts]
        for name, order in orders.items()
    }
    sums = [round(sum(single[head][0] for head in by_cost[:count]), 4) for count in counts]
    alone = {}  # only one head left in a layer (Michel et al. 2019)
    for layer in range(shape[0]):
        left = []
        for kept in range(shape[1]):
            others = [(layer, head) for head in range(shape[1]) if head != kept]
            left.append(round(cost_of(model, others, second, whole)[0], 4))
        alone[str(layer)] = left
    no_layer = [
        round(cost_of(model, [(layer, head) for head in range(shape[1])], second, whole)[0], 4)
        for layer in range(shape[0])
    ]
    result["several"] = {"loss": round(whole.mean().item(), 5), "counts": counts, "cost": several}
    result["several"] |= {"sum_of_single, cheapest first": sums, "order": [list(head) for head in by_cost]}
    result["several"] |= {"one_left": alone, "none_left": no_layer}
    return result


def _grid(values: Iterable[float], shape: tuple[int, int]) -> list[list[float]]:
    values = list(values)
    return [values[layer * shape[1] : (layer + 1) * shape[1]] for layer in range(shape[0])]


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    n_bytes: int = 65_536,
    with_heads: bool = True,
) -> dict:
    """Everything, into `out`/multi_head.json. Finished runs are kept; so is `heads`, while the model is the same."""
    path, planned = Path(out) / "multi_head.json", {}
    for (name, settings), seed in product(runs.items(), seeds):
        made_from = {"model": name, "seed": seed, "settings": asdict(settings), "environment": environment(device)}
        if settings.task == "bytes":
            made_from |= {"corpus": load_corpus().provenance(), "n_bytes": n_bytes}
        planned[f"{name}/{seed}"] = made_from

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device)
        return training_record(model, history) | evaluate(model, settings, n_bytes)

    keep_or_make(path, planned, make)
    content = json.loads(path.read_text())
    if with_heads:
        model, trained = load_language_model()
        made_from = {"model": trained, "corpus": load_corpus().provenance(), "environment": environment(device)}
        made_from |= {"n_looked": N_LOOKED, "n_removed": N_REMOVED, "length": LENGTH}
        old = content.get("heads", {})
        if not all(old.get(key) == value for key, value in made_from.items()):
            content["heads"] = made_from | {"date": date.today().isoformat(), **heads(model.to(device))}
            write_json(path, content)
    return content
