"""The experiments of chapter 14: what a cache budget buys in each mechanism, and what a decoding step costs.

`RUNS` train small models that are alike but for their attention, three seeds each: byte models, and one layer that
recalls pairs. Letters: H heads, G key-value heads, D numbers of a head; of latent attention C, R, N and V as in
`attncourse.mla`; S cached tokens, T tokens.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.language import held_out_loss, language_loss
from attncourse.lab.linear import Recaller
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.tasks import recall_task, task_accuracy
from attncourse.lab.training import History, seeded, train
from attncourse.mechanisms import build
from attncourse.mla import MultiHeadLatentAttention, absorbed_attention, expanded_attention
from attncourse.positions import RotaryEmbedding

# --- one budget, several mechanisms


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. task: "bytes" (a decoder of 2 layers) or "recall" (one layer).

    turned: False leaves the shared key of latent attention, and the queries' part that meets it, where they are.
    """

    task: str
    mechanism: str
    options: dict = field(default_factory=dict)
    turned: bool = True
    steps: int = 300
    batch_size: int = 8
    length: int = 128
    lr: float = 3e-3
    d_model: int = 64
    n_heads: int = 8
    n_keys: int = 64


def latent(C: int, R: int, N: int = 8, V: int = 8) -> dict:
    """The options of latent attention, by its letters."""
    return {"kv_lora_rank": C, "qk_rope_head_dim": R, "qk_nope_head_dim": N, "v_head_dim": V}


LAYERS = {  # of d_model 64 and 8 heads; the number is what they cache of a token
    "MHA, 128": ("multi_head", {}),
    "GQA, 32": ("gqa", {"n_kv_heads": 2}),
    "MLA, 32": ("mla", latent(24, 8)),
    "MLA, 32, parameters of GQA": ("mla", latent(28, 4, 4, 4)),
    "MQA, 16": ("mqa", {}),
    "MLA, 16": ("mla", latent(12, 4)),
    "MLA, 16, parameters of MQA": ("mla", latent(12, 4, 4, 6)),
}
RECALL = {"steps": 400, "length": 64, "lr": 1e-2}
RUNS = {
    **{f"bytes, {name}": Settings("bytes", *layer) for name, layer in LAYERS.items()},
    "bytes, MLA, 16, C = R = 8": Settings("bytes", "mla", latent(8, 8)),
    "bytes, MLA, 16, not turned": Settings("bytes", *LAYERS["MLA, 16"], turned=False),
    **{f"recall, {name}": Settings("recall", *layer, **RECALL) for name, layer in LAYERS.items()},
    "recall, MLA, 16, not turned": Settings("recall", *LAYERS["MLA, 16"], turned=False, **RECALL),
    **{
        f"recall, {name}, longer": Settings("recall", *LAYERS[name], **(RECALL | {"steps": 1200}))
        for name in ("MLA, 16", "MLA, 16, parameters of MQA")
    },
}


class NoRotation(RotaryEmbedding):
    """A rotation by nothing, whatever the position: to see what is lost without."""

    def angles(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros_like(super().angles(positions, dtype))


def make_model(settings: Settings, seed: int = 0) -> nn.Module:
    """A fresh model: a `Decoder` of 2 layers for bytes, a `Recaller` for pairs."""
    torch.manual_seed(seed)
    if settings.task == "recall":
        layer = build(settings.mechanism, settings.d_model, settings.n_heads, **settings.options)
        model = Recaller(2 * settings.n_keys, settings.d_model, layer)
    else:
        sizes = {"d_model": settings.d_model, "n_heads": settings.n_heads, "n_layers": 2, "max_length": settings.length}
        model = Decoder(N_BYTES, mechanism=settings.mechanism, **sizes, **settings.options)
    if not settings.turned:
        for layer in layers_of(model):
            layer.rotary = NoRotation(layer.qk_rope_head_dim)
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The attention layers of a model that `make_model` made."""
    return [model.attention] if isinstance(model, Recaller) else [block.attention for block in model.blocks]


def cached_numbers(model: nn.Module) -> int:
    """How many numbers one layer caches of one token, from the bytes of its cache."""
    layer = layers_of(model)[0]
    return layer.new_cache(1, 1).nbytes // next(layer.parameters()).element_size()


def pairs(
    settings: Settings, generator: torch.Generator, n_pairs: int | None = None, answers: int = 256
) -> tuple[Tensor, Tensor]:
    """Sequences of n_pairs (default `length`) pairs out of n_keys keys and as many values, every key asked again."""
    n_pairs = n_pairs or settings.length
    return recall_task(answers // n_pairs, n_pairs, settings.n_keys, settings.n_keys, generator)


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[nn.Module, History]:
    """A trained model; `seed` decides its first weights and its examples."""
    model = make_model(settings, seed).to(device)
    if settings.task == "bytes":
        loss_fn = language_loss(load_corpus().train, settings.batch_size, settings.length, seed, device)
    else:

        def loss_fn(model: nn.Module, step: int) -> Tensor:
            n_pairs = settings.length >> (step % 5)  # from 64 down to 4 in turn: short ones teach the trick
            tokens, counted = pairs(settings, seeded(seed, step), n_pairs)
            return next_token_loss(model, tokens.to(device), counted.to(device))

    options = {"lr": settings.lr, "seed": seed, "progress": progress, "label": label}
    return model, train(model, loss_fn, settings.steps, **options)


def evaluate(model: nn.Module, settings: Settings, n_bytes: int = 40_000) -> dict:
    """The held-out loss on n_bytes bytes, or the share of values recalled in 100 sequences of their own."""
    if settings.task == "bytes":
        return {"loss": round(held_out_loss(model, n_bytes, settings.length), 4)}
    return {"exact": round(task_accuracy(model, *pairs(settings, seeded(1_000_000, 0), answers=6400)), 4)}


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
) -> dict:
    """Every run, into mla.json in the folder `out`; what was made from the same is kept.

    Of each: a layer's cached numbers a token, its parameters, the loss or the share recalled, and means of ten losses.
    """
    shared, planned = {"environment": environment(device)}, {}
    for seed, (name, settings) in product(seeds, runs.items()):
        about = shared | ({"corpus": load_corpus().provenance()} if settings.task == "bytes" else {})
        planned[f"{name}/{seed}"] = {"model": name, "seed": seed, "settings": asdict(settings)} | about

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        record = training_record(model, history) | {"cached_numbers": cached_numbers(model)}
        record["layer_parameters"] = sum(p.numel() for p in layers_of(model)[0].parameters())
        losses = [round(part.mean().item(), 4) for part in torch.tensor(history.losses).split(10)]
        return record | evaluate(model, settings) | {"losses": losses}

    return {"runs": keep_or_make(Path(out) / "mla.json", planned, make)}


# --- what a step costs


SIZES = {"C": 160, "R": 32, "N": 32, "V": 32}  # with 24 heads, d_model 768: a published run's 192 numbers a token
DECODINGS = ("naive", "absorbed")


def cost_layers(
    d_model: int = 768, n_heads: int = 24, n_kv_heads: int = 4, device: str = "cpu"
) -> dict[str, nn.Module]:
    """MHA, GQA, and latent attention that decodes in both ways with the same weights."""
    torch.manual_seed(0)
    layers = {
        "MHA": build("multi_head", d_model, n_heads),
        "GQA": build("gqa", d_model, n_heads, n_kv_heads=n_kv_heads),
    }
    layers |= {f"MLA, {way}": build("mla", d_model, n_heads, **latent(**SIZES), decoding=way) for way in DECODINGS}
    layers["MLA, absorbed"].load_state_dict(layers["MLA, naive"].state_dict())
    return {name: layer.to(device) for name, layer in layers.items()}


def decode_step(layer: nn.Module, x: Tensor, cache: object) -> Tensor:
    """One more token x (B, 1, d_model), after which the cache counts as many tokens as before. For measuring."""
    output = layer(x, cache=cache)
    cache.length -= 1
    return output


def filled_cache(layer: nn.Module, S: int, device: str = "cpu", seed: int = 0) -> object:
    """A layer's cache of S random tokens, with room for one more."""
    cache, generator = layer.new_cache(1, S + 1), torch.Generator().manual_seed(seed)
    names = ("key",) if isinstance(layer, MultiHeadLatentAttention) else ("key", "value")
    rooms = [getattr(cache, name)[:, :, :S].shape for name in names]
    cache.append(*(torch.randn(shape, generator=generator).to(device) for shape in rooms))
    return cache


def multiply_adds(layer: nn.Module, S: int) -> int:
    """Multiply-adds of one decoding step with S tokens to attend to, projections included, from the sizes alone."""
    projected = sum(p.numel() for name, p in layer.named_parameters() if p.dim() == 2 and name != "kv_b_proj.weight")
    H = layer.n_heads
    if not isinstance(layer, MultiHeadLatentAttention):
        return projected + 2 * S * layer.o_proj.in_features
    C, R, N, V = layer.kv_lora_rank, layer.rotary.dim, layer.qk_nope_head_dim, layer.v_head_dim
    if layer.decoding == "naive":
        return projected + S * H * (C * (N + V) + N + R + V)
    return projected + H * (N + V) * C + S * H * (2 * C + R)


@torch.no_grad()
def step_costs(S: int, *, device: str = "cpu", repeats: int = 9, timed: bool = True, **sizes: int) -> dict[str, dict]:
    """One layer's decoding step, the new token the S-th, in each of `cost_layers` (sizes: its own).

    "cached": bytes of the cache of S tokens, "multiply_adds", "made": bytes of all tensors that the step makes, "ms".
    """
    layers = cost_layers(device=device, **sizes)
    x = torch.randn(1, 1, layers["MHA"].q_proj.in_features, device=device)
    caches = {name: filled_cache(layer, S - 1, device) for name, layer in layers.items()}
    calls = {name: partial(decode_step, layer, x, caches[name]) for name, layer in layers.items()}
    times = median_ms(calls, repeats) if timed else {}
    return {
        name: {
            "cached": caches[name].nbytes,
            "multiply_adds": multiply_adds(layer, S),
            "made": allocated_bytes(calls[name])[0],
            **({"ms": times[name]} if timed else {}),
        }
        for name, layer in layers.items()
    }


@torch.no_grad()
def both_ways(
    T: int, S: int, n_heads: int = 24, *, device: str = "cpu", repeats: int = 7, timed: bool = True
) -> dict[str, dict]:
    """The last T of S positions attend, expanding the entries or not, at the sizes of `cost_layers`: "made", "ms"."""
    C, R, N, V = SIZES.values()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    given = draw(1, n_heads, T, N + R), draw(1, 1, S, C + R), draw(n_heads, N, C), draw(n_heads, V, C)
    attend: dict[str, Callable] = {"expanded": expanded_attention, "absorbed": absorbed_attention}
    calls = {name: partial(function, *given, scale=(N + R) ** -0.5) for name, function in attend.items()}
    times = median_ms(calls, repeats) if timed else {}
    return {
        name: {"made": allocated_bytes(call)[0]} | ({"ms": times[name]} if timed else {})
        for name, call in calls.items()
    }
