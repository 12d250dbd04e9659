"""Every mechanism that can stand in a decoder, by name: `MECHANISMS`, and `build` to make one."""

import inspect

from torch import nn

from attncourse.gqa import GroupedQueryAttention
from attncourse.linear import LinearAttention
from attncourse.mla import MultiHeadLatentAttention
from attncourse.mqa import MultiQueryAttention
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
    "mqa": MultiQueryAttention,
    "gqa": GroupedQueryAttention,
    "mla": MultiHeadLatentAttention,
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
    | gqa | n_kv_heads=n_heads // 4, at least 1 |
    | mla | kv_lora_rank=d_model // 4, qk_nope_head_dim and v_head_dim d_model // n_heads, qk_rope_head_dim half that |

    Raises ValueError for a name that is none of them, an option that its class has not, and what the class raises.
    """
    if name not in MECHANISMS:
        raise ValueError(f"name={name!r}, but it must be one of {', '.join(MECHANISMS)}")
    if not options.get("causal", True):
        raise ValueError(f"build makes causal layers; for another use {MECHANISMS[name].__name__} itself")
    head_dim = d_model // max(1, n_heads)
    defaults = {
        "sliding_window": {"window": 64},
        "sparse": {"pattern": [Window(64), Strided(64)]},
        "performer": {"n_features": 2 * head_dim},
        "gqa": {"n_kv_heads": max(1, n_heads // 4)},
        "mla": {
            "kv_lora_rank": d_model // 4,
            "qk_nope_head_dim": head_dim,
            "qk_rope_head_dim": head_dim // 2,
            "v_head_dim": head_dim,
        },
    }
    known = [
        option for option in inspect.signature(MECHANISMS[name]).parameters if option not in ("d_model", "n_heads")
    ]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return MECHANISMS[name](d_model, n_heads, **{**defaults.get(name, {}), **options, "causal": True})
