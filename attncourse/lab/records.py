"""What every experiment records, and how results are kept: in JSON, a run at a time, each with what made it."""

import json
import math
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attncourse.lab.training import History

DATA = Path(__file__).parent.parent / "data" / "lab"


def environment(device: str) -> dict:
    """What decides the last digits of a run, and its time."""
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "num2words": version("num2words")}
    return {**versions, "device": f"{device} ({name})", "threads": torch.get_num_threads()}


def training_record(model: nn.Module, history: History) -> dict:
    """What a run records of its training: date, parameters, seconds, and the mean loss of the last 20 steps."""
    recent = history.losses[-20:]
    return {
        "date": date.today().isoformat(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(history.seconds, 1),
        "final_loss": round(sum(recent) / len(recent), 5),
    }


def keep_or_make(
    path: Path, planned: dict[str, dict], make: Callable[[str, dict], dict], workers: int = 1
) -> dict[str, dict]:
    """The runs `planned` (key -> what it is made from), written to `path` under "runs" as they are done.

    A run that stands there and was made from the same is kept; the others are `make(key, made_from)`, and what
    no longer belongs to the plan is dropped at the end. Everything else in the file stays. With more than one worker,
    each a process of its own, `make` must be a module's function, or a `partial` of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    kept, made = content.get("runs", {}), {}
    for key, made_from in planned.items():
        if key in kept and all(kept[key].get(field) == value for field, value in made_from.items()):
            made[key] = kept[key]
            print(f"{key}: kept{_summary(made[key])}", flush=True)
    waiting, start = {key: planned[key] for key in planned if key not in made}, time.monotonic()
    for done, (key, result) in enumerate(_results(waiting, make, workers), 1):
        made[key] = planned[key] | result
        write_json(path, content | {"runs": kept | made})
        left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
        bar = f"{'█' * (10 * done // len(waiting)):░<10} {done}/{len(waiting)}  {left:.0f} min left"
        print(f"{bar}  {key}: done{_summary(made[key])}", flush=True)
    made = {key: made[key] for key in planned}
    write_json(path, content | {"runs": made})
    return made


def _results(waiting: dict[str, dict], make: Callable[[str, dict], dict], workers: int) -> Iterator[tuple[str, dict]]:
    """The results of what waits, as they come."""
    if workers == 1:
        yield from ((key, make(key, made_from)) for key, made_from in waiting.items())
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(make, key, made_from): key for key, made_from in waiting.items()}
        try:
            for future in as_completed(futures.copy()):
                yield futures.pop(future), future.result()
        except Exception:
            pool.shutdown(cancel_futures=True)  # what runs, or is queued for a process, is waited for and kept
            left = (future for future in futures if not future.cancelled() and future.exception() is None)
            yield from ((futures[future], future.result()) for future in left)
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _summary(run: dict) -> str:
    exact = f", exact {run['exact']:.3f}" if "exact" in run else ""
    return f"{exact}, {run['seconds']} s"


SMALLEST = {torch.float32: 1e-7, torch.float64: 1e-15}  # a sum in another order moves about as much


def bound(difference: float, dtype: torch.dtype) -> float:
    """What a page says of a largest difference: the power of ten that is at least twice as large.

    Twice, so that another processor's rounding stays below it; never below what rounding alone may move (`SMALLEST`).
    """
    if not math.isfinite(difference) or difference < 0:
        raise ValueError(f"a largest difference is a finite number from 0 on, not {difference}")
    exponent = math.ceil(math.log10(max(2 * difference, SMALLEST[dtype])) - 1e-9)
    return float(f"1e{exponent}")


def write_json(path: Path, content: dict) -> None:
    """Write `content`, lists of plain values on one line each, so that an interruption leaves the last whole file."""
    part = path.with_name(path.name + ".part")
    text = json.dumps(content, ensure_ascii=False, indent=1)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", _one_line, text)  # lists of plain values
    part.write_text(text + "\n")
    os.replace(part, path)


def _one_line(values: re.Match) -> str:
    return "[" + re.sub(r"\s+", " ", values[1]) + "]"


def save_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None, **about: dict) -> None:
    """Write the weights (in `dtype`, if given), and what `about` says of them, to a safetensors file."""
    state = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, {name: json.dumps(value) for name, value in about.items()})


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """The weights, in float32, and what was said of them."""
    with safe_open(path, "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
        return {name: file.get_tensor(name).float() for name in file.keys()}, about  # noqa: SIM118
