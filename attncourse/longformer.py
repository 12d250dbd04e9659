"""Longformer's attention: a window around every token, and a few global tokens that see all and are seen by all.

Beltagy et al. 2020, section 3.1, and their code where the paper leaves it open. Differs from the paper: W counts the
token itself and means |i - j| < W (theirs, w keys on both sides together, is W = w/2 + 1); no dilation; `causal` may
cut both parts.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import (
    check_at_least_one,
    check_padding,
    check_sequence,
    check_tensors,
    scaled_dot_product_attention,
)
from attncourse.masks import causal_mask, sliding_window_mask
from attncourse.multi_head import check_heads, merge_heads, split_heads
from attncourse.sliding_window import near_blocks

Tensors = tuple[Tensor, Tensor, Tensor]


def longformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_global: Tensor,
    key_global: Tensor,
    value_global: Tensor,
    global_tokens: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    window: int,
    causal: bool = False,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(query keyᵀ / √D) value over the keys less than `window` tokens away and the global ones.

    The row of a global token is softmax(query_global key_globalᵀ / √D) value_global over all keys instead; no other row
    reads those three. All (B, H, T, D), values (B, H, T, Dv). global_tokens: (B, T) boolean, any number in each row,
    None for none. mask: padding, (B, 1, 1, T), True = real; padding is seen by none, is never global, and gets zeros.
    With `causal` no query sees a key after it, global or not.

    Returns (B, H, T, Dv). With at most g global tokens in a row, time and memory grow with T·(W + g). With
    `return_weights` it is (output, weights (B, H, T, T)), by the definition, through T×T masks. Raises ValueError for a
    window below 1, shapes that do not fit and full masks; TypeError for dtypes.
    """
    check_at_least_one(window=window)
    local, of_global = (query, key, value), (query_global, key_global, value_global)
    real, is_global = check_longformer(local, of_global, global_tokens, mask)  # (B, T) each
    if return_weights:
        return _by_definition(local, of_global, real, is_global, window, causal)
    T, device = query.shape[2], query.device
    if T == 0:
        return value
    counts = is_global.sum(1)
    g = max(counts.tolist(), default=0)
    places = (~is_global).int().argsort(stable=True, dim=1)[:, :g]  # (B, g): first a row's global tokens, in order
    found = torch.arange(g, device=device) < counts[:, None]  # (B, g): False where a row has fewer

    # Blocks as in `sliding_window_attention`; beside the near keys stand the g global ones. A global key inside the
    # window would count twice: it is taken out of the window.
    query_sizes, key_sizes, blocks = near_blocks(T, T, window=window, causal=causal, device=device)
    queries, keys, values = query.split(query_sizes, 2), key.split(key_sizes, 2), value.split(key_sizes, 2)
    nears = (real & ~is_global)[:, None, None].split(key_sizes, 3)  # (B, 1, 1, keys) each
    positions = torch.arange(T, device=device)[:, None].split(query_sizes)
    global_key, global_value = _take(key, places), _take(value, places)  # (B, H, g, D or Dv)
    outputs = []
    for here, position, (seen, band) in zip(queries, positions, blocks, strict=True):
        near = band & torch.cat(nears[seen], 3)  # (B, 1, queries, keys)
        far = found[:, None, None].expand(-1, 1, len(position), g)
        if causal:
            far = far & (places[:, None, None] <= position)
        near_and_global = (torch.cat([*x[seen], last], 2) for x, last in ((keys, global_key), (values, global_value)))
        outputs.append(scaled_dot_product_attention(here, *near_and_global, torch.cat([near, far], 3)))
    output = torch.cat(outputs, 2)  # (B, H, T, Dv)

    allowed = found[:, :, None] & real[:, None]  # (B, g, T): what global tokens see
    if causal:
        allowed = allowed & (torch.arange(T, device=device) <= places[:, :, None])
    rows = scaled_dot_product_attention(_take(query_global, places), key_global, value_global, allowed[:, None])
    # Tokens first: then both sides list the global tokens of row 0, of row 1, …
    rows = rows.transpose(1, 2)[found]  # (all global tokens, H, Dv)
    output = output.transpose(1, 2).masked_scatter(is_global[:, :, None, None], rows).transpose(1, 2)
    return output.masked_fill(~real[:, None, :, None], 0.0)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """The tokens of x (B, H, T, D) at places (B, g): (B, H, g, D)."""
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _by_definition(
    local: Tensors, of_global: Tensors, real: Tensor, is_global: Tensor, window: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """The output and its weights (B, H, T, T): two attentions, and each query takes one of them."""
    T, device = real.shape[1], real.device
    near = sliding_window_mask(T, window=window, causal=causal).to(device)
    past = causal_mask(T, device=device) if causal else torch.ones_like(near)
    both_real = (real[:, :, None] & real[:, None])[:, None]  # (B, 1, T, T)
    seen = (near | (past & is_global[:, None, None])) & both_real
    some = scaled_dot_product_attention(*local, seen, return_weights=True)
    every = scaled_dot_product_attention(*of_global, past & both_real, return_weights=True)
    rows = is_global[:, None, :, None]
    return torch.where(rows, every[0], some[0]), torch.where(rows, every[1], some[1])


def check_longformer(
    local: Tensors, of_global: Tensors, global_tokens: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which tokens are real and which of those are global, (B, T) each; raises unless everything fits."""
    check_tensors(*local)
    query, key = local[:2]
    if query.dim() != 4 or query.shape != key.shape:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} need the same four axes, (B, H, T, D)")
    for name, one, other in zip(("query", "key", "value"), local, of_global, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name} has shape {tuple(one.shape)}, but {name}_global has {tuple(other.shape)}")
        if one.dtype != other.dtype:
            raise TypeError(f"dtypes differ: {name} {one.dtype}, {name}_global {other.dtype}")
        if one.device != other.device:
            raise ValueError(f"devices differ: {name} {one.device}, {name}_global {other.device}")
    B, T, device = query.shape[0], query.shape[2], query.device
    real = torch.ones(B, T, dtype=torch.bool, device=device)
    padding = check_padding(mask, B, T, device)
    real = real if padding is None else real & padding
    if global_tokens is None:
        return real, torch.zeros_like(real)
    dtype = getattr(global_tokens, "dtype", type(global_tokens).__name__)
    if dtype != torch.bool:
        raise TypeError(f"global_tokens has dtype {dtype}; it must be torch.bool, (B, T), True at global tokens")
    if global_tokens.shape != (B, T):
        raise ValueError(f"global_tokens has shape {tuple(global_tokens.shape)}; it must be (B, T)={(B, T)}")
    if global_tokens.device != device:
        raise ValueError(f"devices differ: global_tokens {global_tokens.device}, scores {device}")
    return real, real & global_tokens


class LongformerAttention(nn.Module):
    """Multi-head attention to the tokens less than `window` away and to the global tokens, which see every token.

    causal: cut both at the query. Parameters `q_proj`, `k_proj`, `v_proj` for the queries that are not global,
    `q_global_proj`, `k_global_proj`, `v_global_proj` for those that are, copies of the others at first as in the paper;
    `o_proj`. Raises ValueError where d_model is not divisible by n_heads, or for a window below 1.
    """

    def __init__(self, d_model: int, n_heads: int, *, window: int, causal: bool = False, bias: bool = False):
        super().__init__()
        check_heads(d_model, n_heads)
        check_at_least_one(window=window)
        self.n_heads, self.window, self.causal = n_heads, window, causal
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.q_global_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_global_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_global_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)
        self.q_global_proj.load_state_dict(self.q_proj.state_dict())
        self.k_global_proj.load_state_dict(self.k_proj.state_dict())
        self.v_global_proj.load_state_dict(self.v_proj.state_dict())

    def forward(
        self,
        x: Tensor,
        *,
        global_tokens: Tensor | None = None,
        mask: Tensor | None = None,
        cache: None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, T)) with `return_weights`.

        global_tokens: (B, T) boolean, True at global tokens. mask: padding, (B, 1, 1, T), True = real; a padded token
        is not global, and gives zeros before o_proj. Weights are built as T×T. A cache raises ValueError.
        """
        if cache is not None:
            raise ValueError(
                "Longformer takes no cache: it reads whole sequences, and a token that becomes global needs every "
                "earlier key a second time, from k_global_proj; to decode use SlidingWindowAttention"
            )
        check_sequence("x", x, self.q_proj)
        local = self.q_proj, self.k_proj, self.v_proj
        of_global = self.q_global_proj, self.k_global_proj, self.v_global_proj
        heads = [split_heads(project(x), self.n_heads) for project in (*local, *of_global)]  # (B, H, T, D) each
        options = {"window": self.window, "causal": self.causal, "return_weights": return_weights}
        result = longformer_attention(*heads, global_tokens, mask, **options)
        if return_weights:
            output, weights = result  # (B, H, T, D), (B, H, T, T)
            return self.o_proj(merge_heads(output)), weights
        return self.o_proj(merge_heads(result))  # (B, T, d_model)
