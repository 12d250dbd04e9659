"""The shared core: attention as a masked softmax over scores, then a weighted sum of values.

Letters, here and in every module: B batch, H heads, T queries, S keys, D head dimension.
A mask is boolean and True means "may attend", as in PyTorch's `scaled_dot_product_attention`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` broadcasts to the shape `to`."""
    # Compared with ==, not `in (1, n)`, which torch.compile answers wrongly where n is a symbol.
    return len(shape) <= len(to) and all(m == 1 or m == n for m, n in zip(shape[::-1], to[::-1], strict=False))


def check_mask(mask: Tensor | None, shape: tuple[int, ...], device: torch.device | None = None) -> None:
    """Raise unless `mask` is boolean (TypeError), broadcastable to `shape` and on `device` (ValueError)."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; it must be torch.bool, True where a query may attend")
    if not broadcasts(mask.shape, shape):
        wanted = (shape[0], *[1] * (len(shape) - 2), shape[-1])
        hint = f"; padding (B, S) is given as (B, …, 1, S)={wanted}" if mask.shape == (shape[0], shape[-1]) else ""
        raise ValueError(f"mask has shape {tuple(mask.shape)}, which does not broadcast to {tuple(shape)}{hint}")
    if device is not None and mask.device != device:
        raise ValueError(f"devices differ: mask {mask.device}, scores {device}")


def check_padding(
    mask: Tensor | None, batch_size: int, n_keys: int, device: torch.device | None = None
) -> Tensor | None:
    """The padding that a mechanism of linear cost takes, (B, 1, 1, S) boolean, as (B or 1, S); None stays None.

    A mask of every query and key would itself be T×S: it raises ValueError, and TypeError where it is not boolean.
    """
    if mask is None:
        return None
    fits = mask.dim() == 4 and (mask.shape[0] == 1 or mask.shape[0] == batch_size) and mask.shape[1:] == (1, 1, n_keys)
    if mask.dtype == torch.bool and not fits:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; this mechanism takes padding of the keys alone, "
            f"(B, 1, 1, S)={(batch_size, 1, 1, n_keys)}: a mask of every query and key would cost T×S"
        )
    check_mask(mask, (batch_size, 1, 1, n_keys), device)
    return mask[:, 0, 0]


def masked_softmax(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of `scores` (..., T, S), among the keys that `mask` allows.

    Forbidden keys get weight 0. A row with no allowed key is all zeros, not NaN, and so is its gradient.
    """
    if mask is None:
        return scores.softmax(-1)
    check_mask(mask, scores.shape, scores.device)
    # An empty row is NaN after the softmax; the second fill makes it, and its gradient, exactly zero.
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)


def check_source(
    query: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None, query_dim: int, key_dim: int
) -> tuple[Tensor, Tensor | None]:
    """What a decoder's attention is given, checked: the values (B, S, Dv) and the mask with three axes, or None.

    query (B, T, query_dim) and keys (B, S, key_dim); values default to the keys. mask is boolean, True = may attend:
    (B, S), one row of keys for every query, or broadcastable to (B, T, S). What does not fit raises ValueError or,
    for a mask that is not boolean, TypeError.
    """
    values = keys if values is None else values
    for name, tensor, size in (("query", query, query_dim), ("keys", keys, key_dim), ("values", values, None)):
        size = tensor.shape[-1] if size is None else size
        if tensor.dim() != 3 or tensor.shape[-1] != size:
            hint = ". A mask is passed by name: mask=…" if tensor.dtype == torch.bool else ""
            wanted = f"the last of size {size}" if name != "values" else "(B, S, Dv)"
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs three axes, {wanted}{hint}")
    if not query.shape[0] == keys.shape[0] == values.shape[0]:
        raise ValueError(f"batch sizes differ: query {query.shape[0]}, keys {keys.shape[0]}, values {values.shape[0]}")
    if keys.shape[1] != values.shape[1]:
        raise ValueError(f"there are {keys.shape[1]} keys but {values.shape[1]} values")
    if mask is not None and mask.dim() == 2:
        if mask.shape != keys.shape[:2]:
            raise ValueError(
                f"a two-axis mask marks keys and has shape (B, S)={tuple(keys.shape[:2])}, "
                f"but this one has {tuple(mask.shape)}; for a (T, S) pattern give (1, T, S)"
            )
        mask = mask[:, None]  # (B, 1, S)
    check_mask(mask, (*query.shape[:2], keys.shape[1]), query.device)
    return values, mask


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(query keyᵀ · scale + bias) value, over the keys that `mask` allows.

    query (..., T, D), key (..., S, D), value (..., S, Dv), with equal leading axes, usually (B, H);
    mask boolean, broadcastable to (..., T, S); scale defaults to D ** -0.5; bias, a number for each score (as ALiBi
    adds), of the query's dtype and broadcastable to (..., T, S).
    Returns the output (..., T, Dv), or (output, weights (..., T, S)) with `return_weights`, which builds the
    T×S matrix; without it PyTorch's fused kernel runs. A query with no allowed key gets zeros.

    Raises ValueError for shapes or devices that do not fit, TypeError for dtypes that do not.
    Vaswani et al. 2017, equation 1. Differs from the paper: empty rows are defined.
    """
    check_tensors(query, key, value)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if bias is not None:
        _check_bias(bias, query, key)
    if not return_weights:
        if mask is None:
            return fused_attention(query, key, value, bias, scale=scale)
        check_mask(mask, (*query.shape[:-1], key.shape[-2]), query.device)
        mask = torch.atleast_2d(mask)  # what the kernel needs
        # Kernels disagree about empty rows (0 or NaN, by device and version), so none sees one: an empty row
        # attends to everything, and its output is then set to zero, which makes its gradient zero too.
        empty = ~mask.any(-1, keepdim=True)  # (..., T, 1)
        allowed = mask | empty
        added = allowed if bias is None else bias.masked_fill(~allowed, float("-inf"))
        output = fused_attention(query, key, value, added, scale=scale)
        return output.masked_fill(empty, 0.0)
    scores = query @ key.transpose(-2, -1) * scale  # (..., T, S)
    weights = masked_softmax(scores if bias is None else scores + bias, mask)
    return weights @ value, weights  # (..., T, Dv), (..., T, S)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """PyTorch's function, given the four axes that its fused kernels need: with any other number it builds T×S scores.

    added: a boolean mask, or numbers for the scores. causal: top-left aligned as PyTorch has it, so only for T = S.
    """
    lead = query.shape[:-2]
    if len(lead) != 2:
        n = math.prod(lead)
        query, key, value = (x.reshape(n, 1, *x.shape[-2:]) for x in (query, key, value))
        if added is not None and added.dim() > 2:
            added = added.expand(*lead, *added.shape[-2:]).reshape(n, 1, *added.shape[-2:])
    elif added is not None and added.dim() == 3:
        added = added[None]  # (1, H, T, S)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale, is_causal=causal)
    return output if len(lead) == 2 else output.reshape(*lead, *output.shape[-2:])


def check_sequence(name: str, x: Tensor, projection: nn.Linear) -> None:
    """Raise unless x is (B, T, d) with the width, the dtype and the device that `projection` reads."""
    if x.dim() != 3 or x.shape[-1] != projection.in_features:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it needs three axes, the last of size {projection.in_features}"
        )
    if x.device != projection.weight.device:
        raise ValueError(f"devices differ: {name} {x.device}, the layer's weights {projection.weight.device}")
    if x.dtype != projection.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"dtypes differ: {name} {x.dtype}, the layer's weights {projection.weight.dtype}")


def check_at_least_one(**sizes: int) -> None:
    """Raise ValueError for a size below 1, by its name, and TypeError for a fraction."""
    for name, size in sizes.items():
        if isinstance(size, float):
            raise TypeError(f"{name}={size}, but it must be an integer")
        if size < 1:
            raise ValueError(f"{name}={size}, but it must be at least 1")


def at_least_float32(x: Tensor) -> Tensor:
    """x, widened where it is narrower: a bfloat16 sum of ones stops growing at 256."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_head_axis(mask: Tensor | None) -> Tensor | None:
    """What a layer of one head makes of a mask (B, 1, T, S): the same without the axis of heads. Others stay."""
    return mask[:, 0] if mask is not None and mask.dim() == 4 and mask.shape[1] == 1 else mask


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless query (..., T, D), key (..., S, D), value (..., S, Dv) fit: ValueError, or TypeError for dtypes."""
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ValueError(f"query, key and value need at least two axes (T, D): {shapes}")
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(f"leading axes differ: {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query has D={query.shape[-1]} but key has D={key.shape[-1]}: {shapes}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"there are {key.shape[-2]} keys but {value.shape[-2]} values: {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"dtypes differ: query {query.dtype}, key {key.dtype}, value {value.dtype}")
    if not query.is_floating_point():
        raise TypeError(f"query, key and value have dtype {query.dtype}; they must be floating-point")
    if not query.device == key.device == value.device:
        raise ValueError(f"devices differ: query {query.device}, key {key.device}, value {value.device}")


def check_shared_heads(query: Tensor, key: Tensor, value: Tensor) -> int:
    """How many query heads share each key head, H/G, for query (B, H, T, D), key (B, G, S, D) and value (B, G, S, Dv).

    Raises ValueError where the shapes or the heads do not fit, or where there are more queries than keys: they are the
    last of them; TypeError for dtypes.
    """
    if query.dim() != 4 or key.dim() != 4:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} need four axes, (B, H, T, D)")
    H, G = query.shape[1], key.shape[1]
    if G < 1 or H < 1 or H % G:
        raise ValueError(f"query has {H} heads, which do not share {G} key heads evenly")
    check_tensors(query[:, :: H // G], key, value)
    if query.shape[2] > key.shape[2]:
        raise ValueError(f"there are {query.shape[2]} queries but {key.shape[2]} keys: they are the last of them")
    return H // G


def _check_bias(bias: Tensor, query: Tensor, key: Tensor) -> None:
    shape = (*query.shape[:-1], key.shape[-2])
    if not broadcasts(bias.shape, shape):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, which does not broadcast to {tuple(shape)}")
    if bias.dtype != query.dtype:
        raise TypeError(f"dtypes differ: bias {bias.dtype}, query {query.dtype}; a boolean pattern is a mask")
    if bias.device != query.device:
        raise ValueError(f"devices differ: bias {bias.device}, query {query.device}")
