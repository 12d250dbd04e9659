"""Every mechanism that can stand in a decoder, by name: `MECHANISMS`, and `build` to make one."""

from torch import nn

from attncourse.multi_head import MultiHeadAttention

MECHANISMS: dict[str, type[nn.Module]] = {"multi_head": MultiHeadAttention}


def build(name: str, d_model: int, n_heads: int, **options: object) -> nn.Module:
    """A causal self-attention layer of the kind `name`, one of `MECHANISMS`.

    options go to its class. What they leave out:

    | mechanism | default |
    | --- | --- |
    | all | causal=True |

    Raises ValueError for a name that is none of them, and what the class raises.
    """
    if name not in MECHANISMS:
        raise ValueError(f"name={name!r}, but it must be one of {', '.join(MECHANISMS)}")
    if not options.get("causal", True):
        raise ValueError(f"build makes causal layers; for another use {MECHANISMS[name].__name__} itself")
    return MECHANISMS[name](d_model, n_heads, **{**options, "causal": True})
