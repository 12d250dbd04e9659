"""One training loop for every model of the course, and its progress line.

The loop knows nothing of the model or the data: `loss_fn(model, step)` gives the loss of one step. It must depend on
nothing but its arguments (draw the batch with `seeded(seed, step)`), so that a run continued from a checkpoint is the
run that was never interrupted.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class History:
    """The loss of every step so far (`losses`), and the `seconds` of training, over all continuations."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def seeded(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one step of one run: the same numbers whenever it is asked for again."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Up in a line to `peak` over `warmup` steps, then down a half cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, int], Tensor],
    steps: int,
    *,
    lr: float = 3e-3,
    warmup: int = 20,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: bool = True,
    label: str = "",
) -> History:
    """Train `model` in place: AdamW, `learning_rate`, gradients clipped to norm `clip`, `steps` in all.

    `seed` sets torch's generator (for dropout, say); the model is made before, by the caller. With `checkpoint`, a
    file, the run is written there every `checkpoint_every` steps and at its end, and a later call continues it; a
    checkpoint of other settings raises ValueError. A loss that is not finite raises FloatingPointError.
    """
    settings = {"steps": steps, "lr": lr, "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "seed": seed}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    history, path = History(), Path(checkpoint) if checkpoint else None
    torch.manual_seed(seed)
    if path and path.exists():
        _load(path, model, optimizer, history, settings)
    model.train()
    line, start, pending = Progress(steps, label, progress), time.perf_counter() - history.seconds, []
    first = len(history.losses)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup)
        optimizer.zero_grad()
        loss = loss_fn(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        pending.append(loss.detach())  # read in groups: reading one makes a GPU wait
        save = path and ((step + 1) % checkpoint_every == 0 or step + 1 == steps)
        if save or line.due() or step + 1 == steps:
            history.losses += torch.stack(pending).tolist()
            pending, history.seconds = [], time.perf_counter() - start
            if not all(map(math.isfinite, history.losses[first:])):
                raise FloatingPointError(f"the loss is no longer finite by step {step + 1}: try a smaller lr than {lr}")
            line.show(step + 1, history, first)
        if save:
            _save(path, model, optimizer, history, settings)
    line.close()
    model.eval()
    return history


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: History, settings: dict) -> None:
    rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng, "settings": settings}
    part = path.with_name(path.name + ".part")  # renamed when whole: an interruption leaves the last good file
    torch.save(state | {"losses": history.losses, "seconds": history.seconds}, part)
    os.replace(part, path)


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: History, settings: dict) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise ValueError(f"{path} was made with {state['settings']}, not with {settings}: give another file")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    history.losses, history.seconds = state["losses"], state["seconds"]
    torch.set_rng_state(state["rng"]["cpu"])
    if torch.cuda.is_available() and len(state["rng"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])


class Progress:
    """A line with the loss and the time left: rewritten in a terminal or a notebook, absent elsewhere (a log)."""

    def __init__(self, steps: int, label: str = "", enabled: bool = True):
        self.steps, self.label, self.handle, self.last = steps, label, None, 0.0
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.notebook = enabled and hasattr(shell, "kernel")
        self.terminal = enabled and not self.notebook and sys.stdout.isatty()

    def due(self) -> bool:
        """Whether half a second has passed since the line was shown."""
        return (self.notebook or self.terminal) and time.perf_counter() - self.last > 0.5

    def show(self, done: int, history: History, first: int = 0) -> None:
        """Show that `done` steps are done, in a run that began (or was continued) at step `first`."""
        self.last = time.perf_counter()
        self.write(progress_line(done, self.steps, history, self.label))

    def write(self, text: str) -> None:
        if self.terminal:
            sys.stdout.write(f"\r{text:<78}")
            sys.stdout.flush()
        elif self.notebook:
            from IPython.display import display  # only here: the course runs without IPython

            if self.handle is None:
                self.handle = display({"text/plain": text}, raw=True, display_id=True)
            else:
                self.handle.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        if self.terminal:
            sys.stdout.write("\n")


def progress_line(done: int, steps: int, history: History, label: str = "") -> str:
    """For example `██████░░░░ 360/600  loss 0.412  9 s left`; the loss is the mean of the last 20 steps."""
    recent = history.losses[-20:]
    bar = "█" * (10 * done // steps)
    left = f"{history.seconds / done * (steps - done):.0f} s left" if done < steps else f"{history.seconds:.0f} s"
    return f"{label} {bar:░<10} {done}/{steps}  loss {sum(recent) / len(recent):.3f}  {left}".strip()
