"""The experiments of chapter 07: what each kind of positions is worth, and what happens beyond the trained length.

Small decoders that differ in their positions alone read the standard library's bytes, three seeds each, and predict
at positions they were never trained on. The byte model of `lab.language` shows what mixing up RoPE's two layouts costs,
and what two ways to stretch it give. Letters: T positions of a piece, N pieces.
"""

import copy
import hashlib
import json
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import scaled_dot_product_attention
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.language import FILE, held_out_loss, language_loss, load_language_model
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History, train
from attncourse.positions import RotaryEmbedding, alibi_bias, apply_rotary

KINDS = ("none", "sinusoidal", "learned", "rotary", "alibi")
SETTINGS = {"steps": 800, "batch_size": 32, "length": 64, "lr": 3e-3, "d_model": 64, "n_heads": 4, "n_layers": 2}
EVALUATED = {"length": 512, "every": 64, "bytes": 80_000}
TUNED = {"steps": 40, "batch_size": 4, "length": 512, "lr": 3e-4}


def make_decoder(positions: str, seed: int = 0, settings: dict = SETTINGS) -> Decoder:
    """A fresh decoder; with one seed, only the vectors of "learned" are more than what every kind has."""
    sizes = {name: settings[name] for name in ("d_model", "n_heads", "n_layers")}
    torch.manual_seed(seed)
    shared = Decoder(N_BYTES, positions="none", max_length=settings["length"], **sizes)
    model = Decoder(N_BYTES, positions=positions, max_length=settings["length"], **sizes)
    model.load_state_dict(shared.state_dict(), strict=False)  # "learned" keeps its own vectors
    return model


def train_decoder(
    positions: str, seed: int = 0, *, settings: dict = SETTINGS, device: str = "cpu", progress: bool = True
) -> tuple[Decoder, History]:
    """A decoder trained on the corpus; `seed` decides its first weights and the bytes it sees."""
    model = make_decoder(positions, seed, settings).to(device)
    loss_fn = language_loss(load_corpus().train, settings["batch_size"], settings["length"], seed, device)
    options = {"lr": settings["lr"], "seed": seed, "progress": progress, "label": positions}
    return model, train(model, loss_fn, settings["steps"], **options)


@torch.no_grad()
def losses_by_position(
    model: nn.Module, length: int = 512, every: int = 64, n_bytes: int | None = 80_000, batch_size: int = 16
) -> Tensor:
    """Mean nats at each position (length,) of held-out pieces that begin `every` bytes apart.

    So positions p and p + every predict the same bytes, but for a few at the ends: their losses can be compared. The
    model must be causal: then a shorter piece would give the same losses.
    """
    text = load_corpus().held_out[:n_bytes].long()
    pieces = text.unfold(0, length + 1, every)  # (N, length + 1)
    device, total = next(model.parameters()).device, torch.zeros(length, dtype=torch.float64)
    for piece in pieces.split(batch_size):
        piece = piece.to(device)
        logits = model(piece[:, :-1])  # (B, length, V)
        losses = F.cross_entropy(logits.transpose(1, 2), piece[:, 1:], reduction="none")  # (B, length)
        total += losses.double().sum(0).cpu()
    return total / len(pieces)


# --- two layouts of the same rotation


def interleave_rows(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of q_proj or k_proj (H·D, d_model) for a half-split RoPE, in the order that an interleaved one needs.

    In each head, row i goes to row 2i and row i + D/2 to row 2i + 1. The scores stay what they were.
    """
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (H·D, d_model)


def mix_up(model: Decoder, convert: bool = False) -> Decoder:
    """A copy whose rotary layout is interleaved instead of half-split; `convert` also reorders the rows to match."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        attention = block.attention
        attention.rotary.interleaved = True
        for projection in (attention.q_proj, attention.k_proj) if convert else ():
            projection.weight.data = interleave_rows(projection.weight.data, attention.n_heads)
    return model


@torch.no_grad()
def cost_of_mix_up(model: Decoder, n_bytes: int | None = 80_000, length: int = 64) -> dict[str, float]:
    """Held-out nats a byte with the right layout, with the other one, and with the other one and reordered rows."""
    models = {"right": model, "mixed_up": mix_up(model), "converted": mix_up(model, convert=True)}
    return {name: round(held_out_loss(each, n_bytes, length), 4) for name, each in models.items()}


# --- two ways to stretch RoPE


class StretchedRotary(RotaryEmbedding):
    """RoPE whose positions are divided by `factor`: position interpolation, Chen et al. 2023, section 2.3."""

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False, *, factor: float = 1.0):
        super().__init__(dim, base, interleaved)
        self.factor = factor

    def angles(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return super().angles(positions, dtype) / self.factor


def stretched(model: Decoder, how: str, factor: float) -> Decoder:
    """A copy that reads `factor` times as far: "as it is", "interpolated" (positions / factor), or "base".

    "base" raises RoPE's base by factor^(D / (D - 2)): the slowest pair then turns `factor` times slower, the fastest as
    before (Peng et al. 2023, section 3.1, there called NTK-aware).
    """
    if how not in ("as it is", "interpolated", "base"):
        raise ValueError(f'how={how!r}, but it must be "as it is", "interpolated" or "base"')
    model = copy.deepcopy(model)
    for block in model.blocks:
        old = block.attention.rotary
        base = old.base * factor ** (old.dim / (old.dim - 2)) if how == "base" else old.base
        divide_by = factor if how == "interpolated" else 1.0
        block.attention.rotary = StretchedRotary(old.dim, base, old.interleaved, factor=divide_by)
    return model


def tune(model: Decoder, seed: int, settings: dict = TUNED, device: str = "cpu", progress: bool = True) -> History:
    """Train `model` in place for a few more steps, on longer pieces."""
    loss_fn = language_loss(load_corpus().train, settings["batch_size"], settings["length"], seed + 100, device)
    return train(model.to(device), loss_fn, settings["steps"], lr=settings["lr"], seed=seed, progress=progress)


def byte_model(device: str = "cpu", seeds: tuple[int, ...] = (0, 1, 2), n_bytes: int = 40_000) -> dict:
    """The trained byte model beyond its 256 bytes, untouched and stretched, also with a little more training."""
    model, _ = load_language_model()
    model = model.to(device)
    trained = model.max_length
    result = {"mix_up": cost_of_mix_up(model, n_bytes, trained), "stretched": [], "tuned": []}
    for factor in (2, 4):
        length = factor * trained
        for how in ("as it is", "interpolated", "base"):
            losses = losses_by_position(stretched(model, how, factor), length, 256, n_bytes, batch_size=8)
            row = {"how": how, "factor": factor, "length": length, "by_position": rounded(losses)}
            result["stretched"].append(row)
    for how, seed in product(("as it is", "interpolated", "base"), seeds):
        longer = stretched(model, how, 2)
        history = tune(longer, seed, device=device, progress=False)
        losses = losses_by_position(longer, 2 * trained, 256, n_bytes, batch_size=8)
        row = {"how": how, "factor": 2, "seed": seed, "seconds": round(history.seconds, 1)}
        result["tuned"].append(row | {"by_position": rounded(losses)})
    return result


# --- what positions cost


def cost_functions(B: int, H: int, T: int, D: int = 64, device: str = "cpu") -> dict:
    """Attention of H heads over T tokens: plain, with RoPE's rotations, with ALiBi's bias; and those two alone.

    PyTorch's fused kernel on a CPU takes a bias (1, H, T, T); one of three axes makes it fall back to whole matrices.
    The course's function adds the axis, so the last entry calls PyTorch's own.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(B, H, T, D, generator=generator).to(device) for _ in range(3))
    rotary, positions = RotaryEmbedding(D), torch.arange(T, device=device)

    def turn() -> tuple[Tensor, Tensor]:
        return apply_rotary(query, positions, rotary), apply_rotary(key, positions, rotary)

    def bias() -> Tensor:
        return alibi_bias(H, T).to(device)

    attend = scaled_dot_product_attention
    return {
        "attention": lambda: attend(query, key, value),
        "RoPE's rotations": turn,
        "ALiBi's bias": bias,
        "attention with RoPE": lambda: attend(*turn(), value),
        "attention with ALiBi": lambda: attend(query, key, value, bias=bias()),
        "the same, bias of three axes": lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=bias()),
    }


@torch.no_grad()
def costs(lengths: tuple[int, ...] = (128, 512, 2048), repeats: int = 21, device: str = "cpu") -> dict:
    """Time as a ratio to plain attention's (medians, in turn) and bytes of all new tensors, for each length T."""
    B, H, D = 1, 8, 64
    rows = []
    for T in lengths:
        functions = cost_functions(B, H, T, D, device)
        ms = median_ms(functions, repeats)
        row = {"T": T, "microseconds_attention": round(1000 * ms["attention"], 1), "parts": {}}
        for name, function in functions.items():
            total, largest = allocated_bytes(function)
            ratio = round(ms[name] / ms["attention"], 2)
            row["parts"][name] = {"time_ratio": ratio, "bytes": total, "largest": largest}
        rows.append(row)
    return {"B": B, "H": H, "D": D, "dtype": "float32", "repeats": repeats, "rows": rows}


# --- all of it


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    settings: dict = SETTINGS,
    evaluated: dict = EVALUATED,
    parts: dict | None = None,
) -> dict:
    """Everything, into positions.json in the folder `out`. What was made from the same is kept.

    parts: name -> function, what is measured besides the training (default: the byte model, and the costs).
    """
    path = Path(out) / "positions.json"
    shared = {"corpus": load_corpus().provenance(), "environment": environment(device)}
    planned = {
        f"{kind}/{seed}": {"positions": kind, "seed": seed, "settings": settings, "evaluated": evaluated, **shared}
        for kind, seed in product(KINDS, seeds)
    }
    keep_or_make(path, planned, lambda key, made_from: _one_run(made_from, device))
    content = json.loads(path.read_text())
    if parts is None:
        parts = {"byte_model": partial(byte_model, device), "costs": partial(costs, device=device)}
    for name, measure in parts.items():
        made_from = {"environment": environment(device)}
        if name == "byte_model":
            made_from |= shared | {"tuned_with": TUNED, "model_sha256": _sha256(DATA / FILE)}
        if any(content.get(name, {}).get(field) != value for field, value in made_from.items()):
            content[name] = made_from | {"date": date.today().isoformat(), **measure()}
        write_json(path, content)
    return content


def _one_run(made_from: dict, device: str) -> dict:
    settings, evaluated = made_from["settings"], made_from["evaluated"]
    model, history = train_decoder(made_from["positions"], made_from["seed"], settings=settings, device=device)
    length = settings["length"] if made_from["positions"] == "learned" else evaluated["length"]
    losses = losses_by_position(model, length, evaluated["every"], evaluated["bytes"])
    record = training_record(model, history) | {"by_position": rounded(losses)}
    if made_from["positions"] == "rotary":
        record["mix_up"] = cost_of_mix_up(model, evaluated["bytes"], settings["length"])
    return record


def rounded(losses: Tensor) -> list[float]:
    """Losses as a result keeps them."""
    return [round(loss, 3) for loss in losses.tolist()]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
