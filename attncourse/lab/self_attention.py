"""The experiments of chapter 03: what one self-attention layer can look up, what it cannot, and whether √d matters.

A sequence is a bag of T tokens. Each has a name, which no other token has, the name of a token that it wants, and a
value. The model says a value for every token: that of the token it wants ("lookup"), of the token which that one wants
("chain"), or of the token before it ("previous"). Letters: B sequences, T tokens.
"""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import scaled_dot_product_attention
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.training import History, seeded, train
from attncourse.positions import sinusoidal
from attncourse.self_attention import SelfAttention

N_VALUES = 16
TASKS = ("lookup", "chain", "previous")


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed.

    scaled: whether scores are divided by √d_head. unit: begin with queries, keys and values of variance 1; else with
    PyTorch's own first weights, which give a third of that. n_names: how many different names there are.
    """

    task: str = "lookup"
    layers: int = 1
    positions: bool = False
    scaled: bool = True
    unit: bool = False
    d_head: int = 64
    d_model: int = 64
    length: int = 8
    n_names: int = 16
    steps: int = 600
    batch_size: int = 64
    lr: float = 3e-3


ABILITIES = {
    "lookup": Settings("lookup"),
    "previous": Settings("previous"),
    "previous, positions": Settings("previous", positions=True),
    "chain, 1 layer": Settings("chain"),
    "chain, 2 layers": Settings("chain", layers=2),
}
SIZES = (16, 64, 256)


def scaling_run(d_head: int, scaled: bool, unit: bool) -> str:
    """The name of a run that asks whether the division matters."""
    return f"d={d_head}, {'scaled' if scaled else 'not scaled'}, {'unit variance' if unit else 'as PyTorch begins'}"


RUNS = ABILITIES | {
    scaling_run(d_head, scaled, unit): Settings(
        scaled=scaled, unit=unit, d_head=d_head, length=16, n_names=32, steps=300
    )
    for unit, d_head, scaled in product((True, False), SIZES, (True, False))
}


class Unscaled(SelfAttention):
    """Self-attention that leaves the division by √d_head out; everything else is the same."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None, return_weights: bool = False):
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, D) each
        output, weights = scaled_dot_product_attention(query, key, value, mask, scale=1.0, return_weights=True)
        return (self.o_proj(output), weights) if return_weights else self.o_proj(output)


class BagReader(nn.Module):
    """Tokens (B, T, 3), each a name, a wanted name and a value, to logits (B, T, N_VALUES).

    Layers of self-attention, each added to its normed input; no network between them, and no positions unless asked.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        layer = SelfAttention if settings.scaled else Unscaled
        width = settings.d_model
        self.name, self.want = nn.Embedding(settings.n_names, width), nn.Embedding(settings.n_names, width)
        self.value = nn.Embedding(N_VALUES, width)
        self.positions = settings.positions
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(settings.layers))
        self.layers = nn.ModuleList(layer(width, settings.d_head) for _ in range(settings.layers))
        self.norm, self.read = nn.RMSNorm(width), nn.Linear(width, N_VALUES)
        if settings.unit:  # nn.Linear begins with weights of variance 1 / (3 · inputs)
            with torch.no_grad():
                for layer in self.layers:
                    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
                        projection.weight.mul_(3**0.5)

    def forward(self, tokens: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (B, T, N_VALUES); with `return_weights` also the weights (B, T, T) of every layer."""
        name, want, value = tokens.unbind(-1)  # (B, T) each
        x = self.name(name) + self.want(want) + self.value(value)  # (B, T, d_model)
        if self.positions:
            x = x + sinusoidal(x.shape[1], x.shape[2]).to(x)
        found = []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            attended, weights = layer(norm(x), return_weights=True)
            x = x + attended
            found.append(weights)
        logits = self.read(self.norm(x))
        return (logits, found) if return_weights else logits


def sample(settings: Settings, batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, 3) of a task and the value to be said for each (B, T); -100 where none is asked for."""
    if settings.task not in TASKS:
        raise ValueError(f"task={settings.task!r}, but it must be one of {', '.join(TASKS)}")
    if not 2 <= length <= settings.n_names:
        raise ValueError(f"length={length}, but a token wants another, and there are {settings.n_names} names")
    names = torch.rand(batch_size, settings.n_names, generator=generator).argsort(-1)[:, :length]  # (B, T)
    # A token wants the next one of a hidden ring: so nobody wants itself, and everybody is wanted once.
    ring = torch.rand(batch_size, length, generator=generator).argsort(-1)
    wanted = torch.empty_like(ring).scatter_(1, ring, ring.roll(-1, 1))  # (B, T), the place of the wanted token
    values = torch.randint(N_VALUES, (batch_size, length), generator=generator)
    tokens = torch.stack([names, names.gather(1, wanted), values], -1)  # (B, T, 3)
    if settings.task == "previous":
        return tokens, torch.cat([torch.full_like(values[:, :1], -100), values[:, :-1]], 1)
    source = wanted if settings.task == "lookup" else wanted.gather(1, wanted)
    return tokens, values.gather(1, source)


def value_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the values asked for."""
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def exact(model: nn.Module, settings: Settings, length: int, n: int = 512, seed: int = 99) -> float:
    """Share of right values in `n` fresh sequences of `length` tokens."""
    device = next(model.parameters()).device
    tokens, targets = (part.to(device) for part in sample(settings, n, length, seeded(seed, length)))
    asked = targets != -100
    return (model(tokens).argmax(-1) == targets)[asked].double().mean().item()


def guess(task: str, length: int, n: int = 4096, seed: int = 99) -> float:
    """How often the commonest value is right, among the tokens that pairs of tokens cannot rule out.

    "previous": every token but the one that asks. "chain": neither it, nor the one that it wants, nor the one that
    wants it; this bounds what one layer can do, whose scores compare two tokens at a time.
    """
    tokens, targets = sample(Settings(task), n, length, seeded(seed, length))
    name, want, value = tokens.unbind(-1)  # (B, T) each
    possible = ~torch.eye(length, dtype=torch.bool).expand(n, -1, -1)  # (B, T, T)
    if task == "chain":
        wants = want[:, :, None] == name[:, None]  # (B, T, T): row i wants column j
        possible = possible & ~wants & ~wants.transpose(1, 2)
    counts = possible.float() @ F.one_hot(value, N_VALUES).float()  # (B, T, N_VALUES)
    asked = targets != -100
    return (counts.argmax(-1) == targets)[asked].double().mean().item()


def train_reader(
    settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True
) -> tuple[BagReader, History]:
    """A reader trained on fresh sequences; `seed` decides its first weights and the sequences."""
    torch.manual_seed(seed)
    model = BagReader(settings).to(device)

    def loss_fn(model: nn.Module, step: int) -> Tensor:
        tokens, targets = sample(settings, settings.batch_size, settings.length, seeded(seed, step))
        return value_loss(model, tokens.to(device), targets.to(device))

    return model, train(
        model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=settings.task
    )


@torch.no_grad()
def look(model: BagReader, settings: Settings, seed: int = 99) -> dict[str, float]:
    """Of the first layer's weights on fresh sequences: mean entropy (1 = all equal), and mean largest weight."""
    device = next(model.parameters()).device
    length = settings.length
    tokens, _ = sample(settings, 64, length, seeded(seed, length))
    weights = model(tokens.to(device), return_weights=True)[1][0]  # (B, T, T)
    entropy = torch.special.entr(weights).sum(-1).mean() / torch.tensor(float(length)).log()
    return {"entropy": round(entropy.item(), 4), "largest": round(weights.max(-1).values.mean().item(), 4)}


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
) -> dict:
    """All runs, into self_attention.json in the folder `out`. Finished ones are kept, as in chapter 01."""
    planned = {
        f"{name}/{seed}": {
            "model": name,
            "seed": seed,
            "settings": asdict(settings),
            "environment": environment(device),
        }
        for (name, settings), seed in product(runs.items(), seeds)
    }

    def make(key: str, made_from: dict) -> dict:
        return _one_run(runs[made_from["model"]], made_from["seed"], device)

    return {"runs": keep_or_make(Path(out) / "self_attention.json", planned, make)}


def _one_run(settings: Settings, seed: int, device: str) -> dict:
    torch.manual_seed(seed)
    before = look(BagReader(settings).to(device), settings)
    model, history = train_reader(settings, seed, device=device)
    lengths = (settings.length // 2, settings.length, 2 * settings.length)
    return {
        **training_record(model, history),
        "losses": [round(sum(history.losses[i : i + 10]) / 10, 4) for i in range(0, settings.steps, 10)],
        "exact": round(exact(model, settings, settings.length), 5),
        "by_length": {str(length): round(exact(model, settings, length), 4) for length in lengths},
        "before": before,
        "after": look(model, settings),
    }
