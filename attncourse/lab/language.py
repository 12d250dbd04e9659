"""The byte-level language model that chapters probe: the standard library's source, read a byte at a time.

Trained once by `make lab`; chapters 05 and later load it, and convert it.
"""

import json
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from attncourse.lab.corpus import N_BYTES, load_corpus, sample_bytes
from attncourse.lab.decoder import Decoder, load_decoder, next_token_loss, save_decoder
from attncourse.lab.records import DATA, environment, write_json
from attncourse.lab.training import seeded, train

SETTINGS = {"steps": 4000, "batch_size": 16, "length": 256, "lr": 3e-3, "seed": 0}
MODEL = {"d_model": 128, "n_heads": 8, "n_layers": 4, "max_length": 256, "positions": "rotary"}
FILE = "language.safetensors"


def load_language_model() -> tuple[Decoder, dict]:
    """The trained model, and where it came from: its `corpus`, `settings`, `environment` and `date`."""
    return load_decoder(DATA / FILE)


@torch.no_grad()
def held_out_loss(model: nn.Module, n_bytes: int | None = None, length: int = 256, batch_size: int = 32) -> float:
    """Mean nats a byte on the first `n_bytes` held-out bytes (default all), in pieces of `length` predictions.

    The first bytes of a piece are predicted from little, so a longer piece gives a lower loss.
    """
    text = load_corpus().held_out[:n_bytes].long()
    pieces = text.unfold(0, length + 1, length)  # (N, length + 1): the last byte of one piece starts the next
    device = next(model.parameters()).device
    batches = [piece.to(device) for piece in pieces.split(batch_size)]
    total = sum(next_token_loss(model, batch).item() * len(batch) for batch in batches)
    return total / len(pieces)


def language_loss(text: Tensor, batch_size: int, length: int, seed: int, device: str = "cpu"):
    """The loss of one step for `train`: next bytes of `batch_size` pieces of `length` bytes, drawn by seed and step."""

    def loss_fn(model: nn.Module, step: int) -> Tensor:
        return next_token_loss(model, sample_bytes(text, batch_size, length + 1, seeded(seed, step)).to(device))

    return loss_fn


def run(out: str | Path = DATA, device: str = "cpu") -> dict:
    """Train the model into `out`: language.safetensors and language.json. Interrupted, it resumes; done, it is kept."""
    out, corpus = Path(out), load_corpus()
    made_from = {"corpus": corpus.provenance(), "settings": SETTINGS, "model": MODEL}
    made_from["environment"] = environment(device)
    if (out / "language.json").exists():
        old = json.loads((out / "language.json").read_text())
        if all(old.get(key) == value for key, value in made_from.items()):
            print(f"language: kept, held-out loss {old['held_out_loss']:.3f}")
            return old
    torch.manual_seed(SETTINGS["seed"])
    model = Decoder(N_BYTES, **MODEL).to(device)
    loss_fn = language_loss(corpus.train, SETTINGS["batch_size"], SETTINGS["length"], SETTINGS["seed"], device)
    part = out / "language.checkpoint"
    history = train(model, loss_fn, SETTINGS["steps"], lr=SETTINGS["lr"], seed=SETTINGS["seed"], checkpoint=part)
    record = made_from | {"date": date.today().isoformat(), "parameters": sum(p.numel() for p in model.parameters())}
    record |= {"seconds": round(history.seconds, 1), "held_out_loss": held_out_loss(model)}
    record["losses"] = [round(sum(history.losses[i : i + 50]) / 50, 4) for i in range(0, SETTINGS["steps"], 50)]
    save_decoder(model.cpu(), out / FILE, {k: record[k] for k in (*made_from, "date", "held_out_loss")})
    write_json(out / "language.json", record)
    part.unlink()
    return record
