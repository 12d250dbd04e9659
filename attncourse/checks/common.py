"""What the specifications of several chapters share: advice on habits, and properties of weights."""

import torch
from torch import Tensor

from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Property

NON_CONTIGUOUS = (
    "Your code fails on a transposed (non-contiguous) input, usually because of `.view`: use `.reshape`, or an "
    "operation that needs no particular memory layout."
)
FLOAT64 = "For float64 inputs the result is not float64, or not right: do not fix a dtype; take it from the inputs."
EXTREME = (
    "Large scores overflow: `exp(89)` is already infinite in float32. Subtract each row's largest allowed score "
    "before `exp`; the weights stay the same."
)
COMMON_HABITS = {"non-contiguous": NON_CONTIGUOUS, "float64": FLOAT64}


def _weights_sum_to_one(call: Call, result: Result) -> bool:
    sums = result.outputs[-1].sum(-1)
    return torch.allclose(torch.where(sums == 0, torch.ones_like(sums), sums), torch.ones_like(sums), atol=1e-4)


def _no_weight_is_negative(call: Call, result: Result) -> bool:
    return bool((result.outputs[-1] >= 0).all())


def _forbidden_keys_get_nothing(call: Call, result: Result) -> bool:
    mask, weights = call.arguments["mask"], result.outputs[-1]
    if mask is None:
        return True
    return bool((weights.masked_select(~(mask if mask.dim() == 3 else mask[:, None]).expand_as(weights)) == 0).all())


FORBIDDEN_KEYS = Property("a key that the mask forbids gets weight exactly 0", _forbidden_keys_get_nothing)
NOT_NEGATIVE = Property("no weight is negative", _no_weight_is_negative)
SUM_TO_ONE = Property("the weights of each query sum to 1 over the keys (or 0 with no key)", _weights_sum_to_one)


def one_call(name: str, arguments: dict, habit: str | None = None, gradients: tuple[str, ...] | None = None) -> Script:
    """A script of one call; gradients are wanted of every floating-point tensor, unless they are named."""
    if gradients is None:
        gradients = tuple(n for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point())
    return Script(name, (Call(arguments, gradients=gradients),), habit)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, stored with the last two axes exchanged."""
    return tensor.mT.contiguous().mT
