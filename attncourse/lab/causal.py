"""The experiment of chapter 05, models that peek at what they shall predict; and tools that show who sees whom.

Small byte models of the standard library's source, three seeds. A peeking model and the honest one of the same seed
have the same first weights and read the same bytes in the same order. Letters: B sequences, T tokens.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import masked_softmax
from attncourse.lab.corpus import N_BYTES, from_text, load_corpus, sample_bytes, to_text
from attncourse.lab.decoder import Decoder
from attncourse.lab.records import DATA, environment, keep_or_make
from attncourse.lab.training import History, seeded, train
from attncourse.masks import causal_mask
from attncourse.multi_head import MultiHeadAttention, merge_heads, split_heads
from attncourse.positions import apply_rotary

# --- who can influence whom


def influence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """How much each output depends on each input: the norm of the Jacobian ∂y_i/∂x_j, (T, T), from autograd.

    function: x (1, T, d) to y (1, T, n), without a cache. An entry that is exactly 0 is a dependence that is not there.
    """
    jacobian = torch.autograd.functional.jacobian(function, x)  # (1, T, n, 1, T, d)
    return jacobian[0, :, :, 0].square().sum((1, 3)).sqrt()  # (T, T)


def body(model: Decoder) -> Callable[[Tensor], Tensor]:
    """The layers of a model, between its embedding and its logits, as one function of x (B, T, d_model)."""

    def layers(x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x, None, None, None)
        return model.norm(x)

    return layers


# --- ways to hide the future


def hide(scores: Tensor, way: str) -> Tensor:
    """Weights (..., T, T) from scores (..., T, T), the future hidden in one of `WAYS`; only the first two are right."""
    past = causal_mask(scores.shape[-1]).to(scores.device)  # (T, T)
    match way:
        case "before the softmax":
            return masked_softmax(scores, past)
        case "after, renormalised":
            weights = scores.softmax(-1) * past
            return weights / weights.sum(-1, keepdim=True)
        case "after the softmax":
            return scores.softmax(-1) * past
        case "multiplied onto scores":
            return (scores * past).softmax(-1)
        case "one token open":
            return masked_softmax(scores, torch.ones_like(past).tril(1))
        case "not at all":
            return scores.softmax(-1)
    raise ValueError(f"way={way!r}, but it must be one of {', '.join(WAYS)}")


WAYS = (
    "before the softmax",
    "after, renormalised",
    "after the softmax",
    "multiplied onto scores",
    "one token open",
    "not at all",
)


class PeekingAttention(nn.Module):
    """For demonstration only: a multi-head layer that hides the future in one of `WAYS`, right or wrong.

    It takes over the projections of `attention`. There is no cache: where the future leaks, an earlier token's output
    changes when later tokens come, so nothing of it can be kept.
    """

    def __init__(self, attention: MultiHeadAttention, way: str):
        super().__init__()
        if way not in WAYS:
            raise ValueError(f"way={way!r}, but it must be one of {', '.join(WAYS)}")
        self.attention, self.way = attention, way

    def forward(
        self, x: Tensor, *, mask: None = None, cache: None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, T)) with `return_weights`."""
        if mask is not None or cache is not None:
            raise ValueError(f"an attention that hides the future {self.way!r} takes neither mask nor cache")
        layer = self.attention
        query, key, value = (split_heads(p(x), layer.n_heads) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        if layer.rotary is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            query, key = apply_rotary(query, positions, layer.rotary), apply_rotary(key, positions, layer.rotary)
        weights = hide(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, self.way)  # (B, H, T, T)
        output = layer.o_proj(merge_heads(weights @ value))  # (B, T, d_model)
        return (output, weights) if return_weights else output


# --- models that peek


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. way: see `hide`. shift: how far ahead the wanted byte stands (1)."""

    way: str = "before the softmax"
    shift: int = 1
    steps: int = 400
    batch_size: int = 8
    length: int = 128
    lr: float = 3e-3
    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2


RUNS = {
    "honest": Settings(),
    "one token open": Settings("one token open"),
    "multiplied onto scores": Settings("multiplied onto scores"),
    "after the softmax": Settings("after the softmax"),
    "targets not shifted": Settings(shift=0),
}
PROMPTS = ("import ", "def __init__(self, ", "    return ")


def make_model(settings: Settings, seed: int = 0) -> Decoder:
    """A fresh model; with one seed the same first weights, however the future is hidden."""
    torch.manual_seed(seed)
    sizes = {"d_model": settings.d_model, "n_heads": settings.n_heads, "n_layers": settings.n_layers}
    model = Decoder(N_BYTES, max_length=settings.length, **sizes)
    if settings.way != "before the softmax":
        for block in model.blocks:
            block.attention = PeekingAttention(block.attention, settings.way)
    return model


def shifted_loss(model: nn.Module, tokens: Tensor, shift: int = 1) -> Tensor:
    """The loss of training: a byte predicted at each place of tokens (B, T + 1) in one pass, `shift` places ahead."""
    logits, wanted = model(tokens[:, :-1]), tokens[:, shift : tokens.shape[1] - 1 + shift]  # (B, T, 256), (B, T)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def train_model(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Decoder, History]:
    """A model trained on the corpus; `seed` decides its first weights and the pieces that it reads."""
    model, text = make_model(settings, seed).to(device), load_corpus().train

    def loss_fn(model: nn.Module, step: int) -> Tensor:
        tokens = sample_bytes(text, settings.batch_size, settings.length + 1, seeded(seed, step))
        return shifted_loss(model, tokens.to(device), settings.shift)

    options = {"lr": settings.lr, "seed": seed, "progress": progress, "label": label}
    return model, train(model, loss_fn, settings.steps, **options)


@torch.no_grad()
def evaluate(model: nn.Module, settings: Settings, n_pieces: int = 256) -> dict[str, float]:
    """Nats a byte of the same held-out predictions made twice: "shown", in one pass as in training, and "in use".

    In use the model is given the prefix alone, since no later byte exists yet. The prefixes have a quarter, a half and
    three quarters of the trained length. "exact": the share of bytes that is right in use, the likeliest taken.
    """
    device = next(model.parameters()).device
    pieces = sample_bytes(load_corpus().held_out, n_pieces, settings.length + 1, seeded(0, 0)).to(device)
    prefixes = [settings.length * quarters // 4 for quarters in (1, 2, 3)]
    last = torch.tensor(prefixes) - 1
    shown = model(pieces[:, :-1])[:, last]  # (B, 3, 256)
    in_use = torch.stack([model(pieces[:, :length])[:, -1] for length in prefixes], 1)  # (B, 3, 256)
    wanted, right = pieces[:, last + settings.shift], pieces[:, last + 1]  # (B, 3): what training asks, the next byte
    return {
        "shown": round(F.cross_entropy(shown.flatten(0, 1), wanted.flatten()).item(), 4),
        "in_use": round(F.cross_entropy(in_use.flatten(0, 1), right.flatten()).item(), 4),
        "exact": round((in_use.argmax(-1) == right).float().mean().item(), 4),
    }


@torch.no_grad()
def generate_whole(
    model: nn.Module, tokens: Tensor, n_new: int, *, temperature: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """What `Decoder.generate` gives, (B, T + n_new), with no cache: for each new token the whole text is read again."""
    for _ in range(n_new):
        logits = model(tokens)[:, -1]  # (B, V)
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator).to(tokens.device)
        tokens = torch.cat([tokens, new], 1)
    return tokens


def write(model: nn.Module, prompt: str, length: int = 128, *, temperature: float = 0.0, seed: int = 0) -> str:
    """`prompt` continued byte by byte, to `length` bytes in all."""
    tokens = from_text(prompt)[None].to(next(model.parameters()).device)
    n_new = length - tokens.shape[1]
    return to_text(generate_whole(model, tokens, n_new, temperature=temperature, generator=seeded(seed, 0))[0])


def run(
    out: str | Path = DATA, device: str = "cpu", seeds: tuple[int, ...] = (0, 1, 2), runs: dict[str, Settings] = RUNS
) -> dict:
    """All runs, into causal.json of the folder `out`. A finished run is kept (see the one of chapter 01)."""
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device)}
    planned = {
        f"{name}/{seed}": {"model": name, "seed": seed, "settings": asdict(settings), **shared}
        for (name, settings), seed in product(runs.items(), seeds)
    }

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]]
        model, history = train_model(settings, made_from["seed"], device=device, label=key)
        losses = torch.tensor(history.losses)
        record = {
            "date": date.today().isoformat(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(history.seconds, 1),
            "losses": [round(part.mean().item(), 4) for part in losses.split(10)],
            **evaluate(model, settings),
        }
        if made_from["seed"] == 0:
            record["written"] = {
                prompt: {
                    "greedy": write(model, prompt, settings.length),
                    "drawn": write(model, prompt, settings.length, temperature=0.8),
                }
                for prompt in PROMPTS
            }
        return record

    return {"runs": keep_or_make(Path(out) / "causal.json", planned, make)}


# --- what the past is worth


@torch.no_grad()
def bits_by_context(model: nn.Module, text: Tensor, longest: int = 256, n_bytes: int = 20_000) -> dict[int, float]:
    """Bits a byte by the number of bytes read before: 1, 2, 4 … longest, each a mean from there down to the one before.

    Pieces of `longest` bytes, and shorter ones for the first few, from all over a text (N,): about n_bytes of each.
    """
    device, bits = next(model.parameters()).device, {}
    for length in (min(16, longest), longest):
        pieces = text.long().unfold(0, length + 1, length)  # (N / length, length + 1)
        pieces = pieces[:: max(1, len(pieces) * length // n_bytes)].to(device)
        losses = [
            F.cross_entropy(model(part[:, :-1]).transpose(1, 2), part[:, 1:], reduction="none")
            for part in pieces.split(16)
        ]
        by_place = torch.cat(losses).mean(0) / math.log(2)  # (length,)
        for context in (2**i for i in range(length.bit_length())):
            bits.setdefault(context, by_place[context // 2 : context].mean().item())
    return bits


def ngram_bits(train_text: Tensor, held_out: Tensor, longest: int, strength: float = 32.0) -> list[float]:
    """Bits a byte on held_out (M,) of byte n-grams counted in train_text (N,), for n = 1 … longest (at most 7).

    A byte after h, the n - 1 bytes before it, has the share (count(h, byte) + strength · shorter) / (count(h) +
    strength), where `shorter` is its share by n - 1; below 1-grams it is 1/256.
    """
    seen, asked = train_text.long(), held_out.long()
    here, there = torch.zeros_like(seen), torch.zeros_like(asked)  # all the text as contexts of no byte
    shorter, bits = torch.full((len(asked),), 1 / N_BYTES, dtype=torch.float64), []
    for n in range(1, longest + 1):
        of_context = _counts(here, there)
        here, there = here * N_BYTES + seen[n - 1 :], there * N_BYTES + asked[n - 1 :]  # n bytes as one number
        shorter = (_counts(here, there) + strength * shorter) / (of_context + strength)
        bits.append(-shorter.log2().mean().item())
        here, there, shorter = here[:-1], there[:-1], shorter[1:]  # each is the context of the byte after it
    return bits


def _counts(seen: Tensor, asked: Tensor) -> Tensor:
    """How often each number of `asked` occurs in `seen`."""
    values, counts = seen.unique(return_counts=True)
    place = torch.searchsorted(values, asked).clamp(max=len(values) - 1)
    return torch.where(values[place] == asked, counts[place], 0)
