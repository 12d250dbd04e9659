"""Three surprises of chapter 16's comparison, looked into.

Narrow windows lead on bytes: the same models trained longer, and where in a text they lead. Recall fades far back, and
a model with a local and a global layer does not recall: the same without rotation, and the second trained longer.
"""

from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attncourse.lab.choosing import (
    CONTEXT,
    HELD_OUT_BYTES,
    MODELS,
    TASKS,
    Comparer,
    Settings,
    evaluate,
    examples,
    make_model,
    train_model,
)
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import next_token_loss
from attncourse.lab.records import DATA, environment, keep_or_make, training_record
from attncourse.lab.training import History, seeded, train

LONGER = {"bytes": ("MHA", "window, 1/16"), "recall": ("window 1/16 and MQA",)}
STEPS = {"bytes": (TASKS["bytes"].steps, 4 * TASKS["bytes"].steps), "recall": (4 * TASKS["recall"].steps,)}
WINDOWS = ("window, 1/2", "window, 1/4", "window, 1/8", "window, 1/16")
NOT_TURNED = ("MHA", "window 1/16 and MQA")


@torch.no_grad()
def loss_by_place(model: Comparer, n_bytes: int = HELD_OUT_BYTES, width: int = 16) -> list[float]:
    """Nats a byte on held-out bytes, by the byte's place in its piece of CONTEXT, in classes of `width` places.

    The mean of the classes is `held_out_loss`. In the first class a token sees at most `width` tokens, itself included:
    there a window of `width` hides nothing.
    """
    pieces = load_corpus().held_out[:n_bytes].long().unfold(0, CONTEXT + 1, CONTEXT)  # (N, CONTEXT + 1)
    pieces = pieces.to(next(model.parameters()).device)
    logits = torch.cat([model(part[:, :-1]) for part in pieces.split(32)])  # (N, CONTEXT, n_tokens)
    losses = F.cross_entropy(logits.mT, pieces[:, 1:], reduction="none")  # (N, CONTEXT)
    return [round(part.mean().item(), 4) for part in losses.split(width, 1)]


def given_a_window(model: Comparer, name: str) -> Comparer:
    """The weights of a model without windows in the model `name` of `MODELS`, which has them."""
    windowed = make_model(name).to(next(model.parameters()).device)
    windowed.load_state_dict(model.state_dict())
    return windowed.eval()


def without_rotation(model: Comparer) -> Comparer:
    """The same model, whose queries and keys are not turned: no score depends on a distance."""
    for block in model.blocks:
        block.attention.rotary = None
    return model


def train_not_turned(
    name: str, settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True, label: str = ""
) -> tuple[Comparer, History]:
    """`choosing.train_model` on recall, without rotation: the same first weights, the same examples."""
    model = without_rotation(make_model(name, 2 * settings.n_symbols, seed)).to(device)

    def loss_fn(model: nn.Module, step: int) -> torch.Tensor:
        length = settings.lengths[step % len(settings.lengths)]
        tokens, counted = examples(settings, length, settings.tokens, seeded(seed, step))
        return next_token_loss(model, tokens.to(device), counted.to(device))

    return model, train(model, loss_fn, settings.steps, lr=settings.lr, seed=seed, progress=progress, label=label)


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    longer: dict[str, tuple[str, ...]] = LONGER,
    steps: dict[str, tuple[int, ...]] = STEPS,
    not_turned: tuple[str, ...] = NOT_TURNED,
    tasks: dict[str, Settings] = TASKS,
) -> dict:
    """Everything, into choosing_why.json in the folder `out`. What was made from the same is kept."""
    here, planned = environment(device), {}
    for seed in seeds:
        kinds = [(f"recall, {name}, not turned", name, tasks["recall"], {"turned": False}) for name in not_turned]
        for task, names in longer.items():
            for n, name in product(steps[task], names):
                kinds.append((f"{task}, {name}, {n} steps", name, replace(tasks[task], steps=n), {}))
        for key, name, settings, more in kinds:
            made_from = {"model": name, "seed": seed, "layers": [list(layer) for layer in MODELS[name]]} | more
            made_from |= {"settings": asdict(settings) | {"lengths": list(settings.lengths)}, "environment": here}
            if settings.task == "bytes":
                made_from["corpus"] = load_corpus().provenance()
            planned[f"{key}/{seed}"] = made_from
    return keep_or_make(Path(out) / "choosing_why.json", planned, partial(_make, device=device))


def _make(key: str, made_from: dict, device: str) -> dict:
    """One run. On bytes it has the loss by place, and of the model without windows what windows make of it."""
    settings = Settings(**(made_from["settings"] | {"lengths": tuple(made_from["settings"]["lengths"])}))
    make = train_model if made_from.get("turned", True) else train_not_turned
    model, history = make(made_from["model"], settings, made_from["seed"], device=device, label=key)
    record = training_record(model, history) | evaluate(model, settings)
    if settings.task == "bytes":
        record["by_place"] = loss_by_place(model)
        if made_from["model"] == "MHA":
            record["windowed"] = {name: evaluate(given_a_window(model, name), settings)["loss"] for name in WINDOWS}
    losses = torch.tensor(history.losses)
    return record | {"losses": [round(part.mean().item(), 4) for part in losses.split(20)]}
