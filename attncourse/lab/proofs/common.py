"""What a theorem of the map is: two computations of the course, and the condition under which they agree.

An `equality` is a function that makes both sides from sizes; a `limit` one that makes them for a quantity that grows.
Its docstring says why it holds. `theorems` measures them all.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
LEAST = 1e-3  # what a broken condition must change at least


class Sides(NamedTuple):
    """Two outputs, and what they were computed from.

    inputs: tensors that both sides read. weights: pairs that stand in the same place on the left and on the right, or
    the same tensor twice. Where there are neither, no gradients are compared: a cache carries none.
    """

    left: Tensor
    right: Tensor
    inputs: Sequence[Tensor] = ()
    weights: Sequence[tuple[Tensor, Tensor]] = ()

    def differences(self) -> dict[str, float]:
        """The largest difference of the outputs, and of the gradients for a random upstream gradient."""
        found = {"outputs": _largest(self.left, self.right)}
        if self.inputs or self.weights:
            upstream = torch.randn_like(self.left)
            left = _gradients(self.left, [*self.inputs, *(pair[0] for pair in self.weights)], upstream)
            right = _gradients(self.right, [*self.inputs, *(pair[1] for pair in self.weights)], upstream)
            found["gradients"] = max(_largest(a, b) for a, b in zip(left, right, strict=True))
        return found

    def compared(self) -> list[str]:
        """What `differences` compares, in words."""
        inputs = ["gradients of the inputs" if len(self.inputs) > 1 else "gradients of the input"]
        return ["output", *(inputs if self.inputs else []), *(["gradients of the weights"] if self.weights else [])]


@dataclass(frozen=True)
class Theorem:
    """An equality: `sides(**sizes)` agree for all sizes, and no longer where `broken` changes the first of them."""

    id: str
    of: tuple[str, str]
    chapter: str
    condition: str
    statement: str
    why: str
    sides: Callable[..., Sides]
    sizes: tuple[dict, ...]
    broken: dict
    otherwise: str
    kind = "equality"

    def measured(self) -> dict:
        """The largest differences of all sizes, by dtype; the difference with the condition broken; the verdict."""
        found = {}
        for dtype in TOLERANCE:
            differences = [self._made(sizes, dtype, Sides.differences) for sizes in self.sizes]
            found[dtype] = {name: max(each[name] for each in differences) for name in differences[0]}
        fits = all(value <= TOLERANCE[dtype] for dtype, of in found.items() for value in of.values())
        changed = self.difference()
        return {
            "compared": self._made(self.sizes[0], torch.float64, Sides.compared),
            "differences": found,
            "otherwise": changed,
            "holds": fits and changed >= LEAST,
        }

    def difference(self, **changed: object) -> float:
        """How far the outputs are apart with the first sizes changed, in float64; unless told, the broken ones."""
        sizes = self.sizes[0] | (changed or self.broken)
        return self._made(sizes, torch.float64, lambda sides: _largest(sides.left, sides.right))

    def _made(self, sizes: dict, dtype: torch.dtype, ask: Callable[[Sides], Any]) -> Any:
        with drawn(0, dtype):
            return ask(self.sides(**sizes))


@dataclass(frozen=True)
class Limit(Theorem):
    """A limit: the sides come together as `quantity` goes through `points`, with a log-log slope in `slopes`.

    The error is that of the outputs, relative and root mean square: a median over seeds.
    """

    quantity: str
    points: tuple[int, ...]
    slopes: tuple[float, float]
    seeds: int = 15
    kind = "limit"

    def measured(self) -> dict:
        """The errors at all points, and their slope; the error with the condition broken; the verdict."""
        errors = [self.error(**{self.quantity: point}) for point in self.points]
        slope = linear_regression([math.log(p) for p in self.points], [math.log(e) for e in errors]).slope
        changed = self.difference()
        return {
            "compared": ["output"],
            "points": dict(zip(self.points, errors, strict=True)),
            "slope": slope,
            "otherwise": changed,
            "holds": self.slopes[0] <= slope <= self.slopes[1] and changed >= max(LEAST, 3 * errors[-1]),
        }

    def difference(self, **changed: object) -> float:
        """The error at the last point with the first sizes changed; unless told, the broken ones."""
        return self.error(**{self.quantity: self.points[-1]} | (changed or self.broken))

    def error(self, **changed: object) -> float:
        """The median over the seeds of the relative error."""
        found = []
        for seed in range(self.seeds):
            with drawn(seed, torch.float64), torch.no_grad():
                left, right, *_ = self.sides(**self.sizes[0] | changed)
            found.append(((left - right).norm() / right.norm()).item())
        return median(found)


def equality(
    chapter: str, *of: str, condition: str, says: str, sizes: Sequence[dict], broken: dict, otherwise: str
) -> Callable[[Callable[..., Sides]], Theorem]:
    """Makes a Theorem of a function of sizes. of: two nodes; broken: changes of the first sizes, in words `otherwise`.

    Condition, statement and id are what the map shows; the docstring is why.
    """
    return lambda sides: Theorem(*_named(sides, of, chapter, condition, says), tuple(sizes), broken, otherwise)


def limit(
    chapter: str,
    *of: str,
    condition: str,
    says: str,
    sizes: dict,
    points: dict[str, Sequence[int]],
    slopes: tuple[float, float],
    broken: dict,
    otherwise: str,
) -> Callable[[Callable[..., Sides]], Limit]:
    """Makes a Limit of a function of sizes and of a quantity. points: {quantity: its values}, growing."""
    ((quantity, values),) = points.items()

    def make(sides: Callable[..., Sides]) -> Limit:
        named = _named(sides, of, chapter, condition, says)
        return Limit(*named, (sizes,), broken, otherwise, quantity, tuple(values), slopes)

    return make


def _named(sides: Callable, of: Sequence[str], chapter: str, condition: str, says: str) -> tuple:
    why = " ".join(inspect.getdoc(sides).split())
    return sides.__name__.replace("_", "-"), tuple(of), chapter, condition, says, why, sides


@contextmanager
def drawn(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """New tensors and layers are of this dtype and drawn from this seed; afterwards all is as before."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def given(*shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers whose gradient is asked for."""
    return (torch.randn(shape) * scale).requires_grad_()


def left_padding(B: int, T: int) -> Tensor:
    """Sequence b of the batch begins with b tokens of padding: (B, 1, 1, T), True = real."""
    return (torch.arange(T) >= torch.arange(B)[:, None])[:, None, None]


def copied(layer: nn.Module, source: nn.Module) -> nn.Module:
    """The layer, with the weights of `source`, which has its names, and may have more."""
    weights = source.state_dict()
    layer.load_state_dict({name: weights[name] for name in layer.state_dict()})
    return layer


def paired(left: nn.Module, right: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights of both that have the same name."""
    others = dict(right.named_parameters())
    return [(weight, others[name]) for name, weight in left.named_parameters() if name in others]


def in_calls(layer: nn.Module, x: Tensor, cache: object, size: int) -> Tensor:
    """What the layer gives for x in calls of `size` tokens, each continuing the cache."""
    return torch.cat([layer(part, cache=cache) for part in x.split(size, 1)], 1)


def _gradients(output: Tensor, of: list[Tensor], upstream: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, of, upstream, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(of, found, strict=True)]


def _largest(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors; infinite where one is no number."""
    if left.shape != right.shape:
        raise ValueError(f"the sides have shapes {tuple(left.shape)} and {tuple(right.shape)}")
    return (left - right).detach().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()
