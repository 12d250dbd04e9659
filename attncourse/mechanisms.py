"""Every mechanism that can stand in a decoder, by name: `MECHANISMS`, and `build` to make one."""

import inspect

from torch import nn

from attncourse.linear import LinearAttention
from attncourse.multi_head import MultiHeadAttention
from attncourse.performer import PerformerAttention
from attncourse.sliding_window import SlidingWindowAttention
from attncourse.sparse import SparseAttention, Strided, Window

MECHANISMS: dict[str, type[nn.Module]] = {
    "multi_head": MultiHeadAttention,
    "sliding_window": SlidingWindowAttention,
    "sparse": SparseAttention,
    "linear": LinearAttention,
    "performer": PerformerAttention,
}


def build(name: str, d_model: int, n_heads: int, **options: object) -> nn.Module:
    """A causal self-attention layer of the kind `name`, one of `MECHANISMS`.

    options go to its class. What they leave out:

    | mechanism | default |
    | --- | --- |
    | all | causal=True |
    | sliding_window | window=64 |
    | sparse | pattern=[Window(64), Strided(64)] |
    | performer | n_features=2 · d_model / n_heads |

    Raises ValueError for a name that is none of them, an option that its class has not, and what the class raises.
    """
    if name not in MECHANISMS:
        raise ValueError(f"name={name!r}, but it must be one of {', '.join(MECHANISMS)}")
    if not options.get("causal", True):
        raise ValueError(f"build makes causal layers; for another use {MECHANISMS[name].__name__} itself")
    defaults = {
        "sliding_window": {"window": 64},
        "sparse": {"pattern": [Window(64), Strided(64)]},
        "performer": {"n_features": 2 * (d_model // max(1, n_heads))},
    }
    known = [
        option for option in inspect.signature(MECHANISMS[name]).parameters if option not in ("d_model", "n_heads")
    ]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return MECHANISMS[name](d_model, n_heads, **{**defaults.get(name, {}), **options, "causal": True})
