"""Library functions that an exercise asks a learner to write are stopped, and named, however they are called."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from attncourse.checks import compute, exercise
from attncourse.checks.common import one_call
from tests.grading.test_attacks import FULL, without

SOFTMAX = exercise("bahdanau/masked_softmax")
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention")
aten = torch.ops.aten


def with_functions_off(call):
    with torch._C.DisableTorchFunction():
        return call()


def in_a_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def without_modes(call):
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return call()


def traced(function, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(function, x)


def run(function, forbidden, x):
    """The failure of an answer that calls `function` on x."""
    return compute.run(function, one_call("any", {"x": x}), forbidden).failure


X = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
ALIAS = F.softmax
COMPILED = torch.compile(lambda x: torch.softmax(x, -1), backend="eager")

SOFTMAXES = {
    "torch._softmax": lambda x: torch._softmax(x, -1, False),
    "an alias": lambda x: ALIAS(x, -1),
    "getattr": lambda x: getattr(torch, "soft" + "max")(x, -1),
    "the unbound method": lambda x: torch.Tensor.softmax(x, -1),
    "the C module's method": lambda x: torch._C.TensorBase.softmax(x, -1),
    "torch._C._VariableFunctions": lambda x: torch._C._VariableFunctions.softmax(x, -1),
    "torch.ops.aten": lambda x: aten.softmax(x, -1),
    "an overload": lambda x: aten.softmax.int(x, -1),
    "the kernel": lambda x: aten._softmax.default(x, -1, False),
    "the safe kernel": lambda x: aten._safe_softmax(x, -1),
    "the masked kernel": lambda x: torch._masked_softmax(x, x > 99, -1),
    "log_softmax's kernel": lambda x: aten._log_softmax(x, -1, False).exp(),
    "F.gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "nn.Softmax": nn.Softmax(-1),
    "nn.MultiheadAttention": lambda x: nn.MultiheadAttention(8, 2)(x[0], x[0], x[0])[1],
    "functions off": lambda x: with_functions_off(lambda: torch.softmax(x, -1)),
    "torch.compile": COMPILED,
    "torch.func.vmap": lambda x: torch.func.vmap(lambda row: torch.softmax(row, -1))(x),
}


@pytest.mark.parametrize("way", SOFTMAXES)
def test_softmax(way):
    failure = run(SOFTMAXES[way], SOFTMAX.forbidden, X)
    assert failure.type == "ForbiddenCall"
    assert failure.message.endswith("is what this exercise asks you to write; use more basic operations")


def test_softmax_in_a_script():
    """It gets no points, but TorchScript swallows the text that names the function."""
    failure = run(traced(lambda x: torch.softmax(x, -1), X), SOFTMAX.forbidden, X)
    assert failure.type == "RuntimeError" and "TorchScript" in failure.message


ATTENTIONS = {
    "torch._C._nn": lambda x: torch._C._nn.scaled_dot_product_attention(x, x, x),
    "torch.ops.aten": lambda x: aten.scaled_dot_product_attention(x, x, x),
    "an overload": lambda x: aten.scaled_dot_product_attention.default(x, x, x),
    "the plain kernel": lambda x: torch._scaled_dot_product_attention_math(x, x, x)[0],
    "the fused kernel": lambda x: aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0],
    "functions off": lambda x: with_functions_off(lambda: F.scaled_dot_product_attention(x, x, x)),
    "functions off, with a mask": lambda x: with_functions_off(
        lambda: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(4, 4).double().float())
    ),
    "nn.MultiheadAttention": lambda x: nn.MultiheadAttention(8, 2)(x[0], x[0], x[0])[0],
    "nn.TransformerEncoderLayer": lambda x: nn.TransformerEncoderLayer(8, 2)(x[0]),
}


@pytest.mark.parametrize("way", ATTENTIONS)
def test_attention(way):
    assert run(ATTENTIONS[way], ATTENTION, X).type == "ForbiddenCall"


OTHERS = {
    "einsum.default": (("einsum",), lambda x: aten.einsum.default("abcd,abed->abce", [x, x])),
    "torch._VF.einsum": (("einsum",), lambda x: torch._VF.einsum("abcd,abed->abce", [x, x])),
    "im2col": (("unfold",), lambda x: torch._C._nn.im2col(x, (2, 2), (1, 1), (0, 0), (1, 1))),
    "unfold's kernel": (("unfold",), lambda x: with_functions_off(lambda: x.unfold(2, 2, 2))),
    "pixel_unshuffle": (("pixel_unshuffle",), lambda x: with_functions_off(lambda: F.pixel_unshuffle(x, 1))),
}


@pytest.mark.parametrize("way", OTHERS)
def test_others(way):
    forbidden, function = OTHERS[way]
    assert run(function, forbidden, X).type == "ForbiddenCall"


@pytest.mark.parametrize("around", [in_a_thread, without_modes])
def test_what_still_gets_round(around):
    """The instructor guide says so: who means to get round it can, in a process of their own."""
    assert run(lambda x: around(lambda: torch.softmax(x, -1)), SOFTMAX.forbidden, X) is None


def test_what_is_not_forbidden_is_not_stopped():
    assert run(lambda x: (x - x.amax(-1, keepdim=True)).exp(), SOFTMAX.forbidden, X) is None
    assert run(lambda x: torch.softmax(x, -1) @ x.mT @ x, ATTENTION, X) is None
    assert run(lambda x: x.logsumexp(-1), SOFTMAX.forbidden, X) is None


@pytest.mark.parametrize("call", ["torch._softmax(x, -1, False)", "torch.ops.aten.softmax(x, -1)", "off(x)"])
def test_the_verdict_names_it(call, graded):
    answer = (
        "import torch\ndef off(x):\n    with torch._C.DisableTorchFunction():\n        return torch.softmax(x, -1)\n"
        "def masked_softmax(scores, mask):\n    x = scores.masked_fill(~mask, -1e30)\n"
        f"    return {call} * mask\n"
    )
    grade = graded([*without("masked_softmax"), answer])
    verdict = next(verdict for verdict in grade.verdicts if verdict.exercise.id == SOFTMAX.id)
    assert verdict.kind == "forbidden" and "`softmax` is what this exercise asks you to write" in verdict.message
    assert grade.points == FULL - SOFTMAX.points
