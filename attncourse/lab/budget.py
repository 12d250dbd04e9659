"""Every mechanism at one budget: the options with which a layer keeps no more than so much of a sequence.

Letters: H heads, G key-value heads, D numbers of a head, C and R latent and rotary numbers, W window, M features.
"""

import math

from attncourse.attention import check_at_least_one
from attncourse.mechanisms import MECHANISMS
from attncourse.multi_head import check_heads


def options_at(name: str, budget: float, d_model: int, n_heads: int, n_tokens: int) -> tuple[int, dict[str, int]]:
    """The number of heads and the options of a layer that keeps `budget` times what multi-head attention would.

    Both keep n_tokens tokens; multi-head attention 2 · d_model numbers of each. The nearest size from below is taken:

    | mechanism | what is chosen | numbers kept |
    | --- | --- | --- |
    | multi_head, sparse, mqa | nothing: they keep what they keep | 2·d_model·n_tokens; mqa 2·D·n_tokens |
    | gqa | n_kv_heads, a divisor of n_heads | 2·G·D·n_tokens |
    | mla | C + R numbers a token, a quarter of them R: at least 2, and no more than D | (C + R)·n_tokens |
    | sliding_window | window | 2·d_model·W |
    | linear | n_heads: fewer heads have larger states | H·D·(D + 1), the nearest |
    | performer | n_features | H·M·(D + 1) |

    Raises ValueError where the smallest size is more than the budget allows; that of linear has no such size.
    """
    if name not in MECHANISMS:
        raise ValueError(f"name={name!r}, but it must be one of {', '.join(MECHANISMS)}")
    check_heads(d_model, n_heads)
    check_at_least_one(n_tokens=n_tokens)
    if not 0 < budget <= 1:
        raise ValueError(f"budget={budget} of multi-head attention's cache; it must be more than 0 and at most 1")
    D, numbers = d_model // n_heads, budget * 2 * d_model * n_tokens
    a_token, each = int(numbers / n_tokens + 1e-9), {}
    if name == "gqa":
        fitting = [G for G in range(1, n_heads + 1) if n_heads % G == 0 and a_token // (2 * D) >= G]
        each = {"n_kv_heads": max(fitting, default=0)}
    elif name == "mla":
        R = max(2, min(D, a_token // 4) // 2 * 2)
        each = {"kv_lora_rank": a_token - R, "qk_rope_head_dim": R, "qk_nope_head_dim": D, "v_head_dim": D}
    elif name == "sliding_window":
        each = {"window": int(numbers / (2 * d_model) + 1e-9)}
    elif name == "performer":
        each = {"n_features": int(numbers / (n_heads * (D + 1)) + 1e-9)}
    elif name == "linear":
        heads = [H for H in range(1, d_model // 2 + 1) if d_model % (2 * H) == 0]  # an even D: it may be rotated
        if not heads:
            raise ValueError(f"d_model={d_model} cannot be cut into heads of an even size")
        n_heads = min(heads, key=lambda H: abs(math.log(d_model * (d_model // H + 1) / numbers)))
    if each and min(each.values()) < 1:
        small = ", ".join(f"{option}={size}" for option, size in each.items() if size < 1)
        raise ValueError(
            f"budget={budget:g} is too small for {name}: it leaves {a_token} numbers a token of {n_tokens}, and "
            f"{small}; give a larger one"
        )
    return n_heads, each
