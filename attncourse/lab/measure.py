"""Measure what a function costs: median time, bytes of every tensor it makes, and the most it holds at a time."""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Adds up the storage of every tensor that an operation makes, and remembers the largest."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:  # a view allocates nothing
                size = leaf.untyped_storage().nbytes()
                self.total += size
                self.largest = max(self.largest, size)
        return result


def matmul_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """What a device multiplies fast: float32 on a CPU; on a GPU bfloat16, or float16 where that is only emulated.

    Decided by compute capability: below 8.0 (a T4 has 7.5) there is no hardware for bfloat16, and
    `torch.cuda.is_bf16_supported()` says True all the same.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def allocated_bytes(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes of all tensors that one call makes, and of the largest of them. Counted, not sampled: the same each run."""
    with _Allocations() as allocations:
        function()
    return allocations.total, allocations.largest


def quietly(function: Callable[[], object]) -> object:
    """What a call returns; what it writes to the process's error stream is dropped: PyTorch's profiler has much to say.

    An exception comes through.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        return function()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that one call holds at a time, inside kernels too and what it returns with them; not its inputs.

    On a CPU, from the allocator's own records (PyTorch's profiler); on a GPU (`device`), its allocator's peak.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function()  # noqa: F841
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def profiled() -> torch.profiler.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            kept = function()  # noqa: F841
        return profiler

    profiler = quietly(profiled)
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        held += record.nbytes()  # negative where storage is given back
        peak = max(peak, held)
    return peak


def median_ms(functions: dict[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median milliseconds of one call of each function, taken in turn so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):  # the first round warms up and does not count
        for name, function in functions.items():
            start = _now()
            function()
            if round_:
                times[name].append(1000 * (_now() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
