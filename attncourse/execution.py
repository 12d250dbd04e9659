"""The same attention, executed better: a softmax in parts, and attention in tiles that never stores its scores.

Nothing here changes the result of `attention.scaled_dot_product_attention`, but for rounding. Milakov and Gimelshein
2018 (the softmax in one pass); Dao et al. 2022, algorithms 1, 2 and 4 (FlashAttention); tiles in the order of Dao
2023's forward pass, queries outside, in both passes. Letters: T queries, the last of S keys; D, Dv numbers of a head.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attncourse.attention import at_least_float32, check_at_least_one, check_mask, check_tensors


class Running(NamedTuple):
    """What some of the keys leave of a row's softmax. All three fit to `maximum`, and merging two changes it.

    maximum (..., T, 1): the largest score, -inf where no key is allowed. total (..., T, 1): Σ exp(score - maximum).
    weighted (..., T, Dv): Σ exp(score - maximum) value.
    """

    maximum: Tensor
    total: Tensor
    weighted: Tensor


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, *, scale: float | None = None
) -> Running:
    """What the keys of one part leave, in at least float32.

    query (..., T, D), key (..., S, D), value (..., S, Dv), S at least 1; allowed: boolean, broadcastable to
    (..., T, S).
    """
    query, key, value = (at_least_float32(x) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)  # (..., T, S)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        maximum = scores.amax(-1, keepdim=True).detach()  # (..., T, 1): any number would do, so no gradient passes
        shares = (scores - _finite(maximum)).exp()
        return Running(maximum, shares.sum(-1, keepdim=True), shares @ value)


def merge(a: Running, b: Running) -> Running:
    """What the keys of both leave: each is brought to the larger maximum, then they are added.

    In any order and with any brackets the same, but for rounding.
    """
    maximum = torch.maximum(a.maximum, b.maximum)
    shift = _finite(maximum)
    of_a, of_b = (a.maximum - shift).exp(), (b.maximum - shift).exp()  # at most 1; 0 for a part without a key
    return Running(maximum, of_a * a.total + of_b * b.total, of_a * a.weighted + of_b * b.weighted)


def finish(running: Running) -> Tensor:
    """The output (..., T, Dv): weighted / total. A row with no key gives zeros."""
    return running.weighted / running.total.masked_fill(running.total == 0, 1.0)


def online_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    tile: int = 256,
) -> Tensor:
    """Attention that reads `tile` keys at a time and keeps what `Running` holds: the definition of the tiled form.

    query (..., T, D), key (..., S, D), value (..., S, Dv), with equal leading axes; where causal, the queries are the
    last T of S. mask: boolean, True = may attend, broadcastable to (..., T, S). Returns (..., T, Dv).

    It holds T×tile scores at a time; the gradient, which PyTorch takes by itself, keeps those of all tiles. Raises
    ValueError for shapes that do not fit and for tile=0, TypeError for dtypes.
    """
    _check(query, key, value, mask, causal, tile=tile)
    T, S = query.shape[-2], key.shape[-2]
    if S == 0:
        return (query @ key.mT) @ value
    parts = (
        attend_part(
            query,
            key[..., columns, :],
            value[..., columns, :],
            _allowed(mask, slice(0, T), columns, T, S, causal, query.device),
            scale=scale,
        )
        for columns in _slices(S, tile)
    )
    return finish(reduce(merge, parts)).to(value.dtype)


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    query_tile: int = 256,
    key_tile: int = 256,
) -> Tensor:
    """Attention in tiles, as FlashAttention: O(T) numbers are kept, and a tile of scores at a time (backward: two).

    query (..., T, D), key (..., S, D), value (..., S, Dv), with equal leading axes; where causal, the queries are the
    last T of S, and tiles above the diagonal are skipped. mask: boolean, True = may attend, broadcastable to
    (..., T, S), and read in tiles. Returns (..., T, Dv); a query with no allowed key gets zeros.

    Sums are in at least float32. Raises ValueError for shapes that do not fit and for a tile of 0, TypeError for
    dtypes. Dao et al. 2022, algorithms 2 and 4. Differs from the paper: queries are the
    outer loop (Dao 2023 has it so forward, keys outside backward), there is no dropout, and PyTorch's matrix products
    take the place of a kernel.
    """
    _check(query, key, value, mask, causal, query_tile=query_tile, key_tile=key_tile)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Tiled.apply(query, key, value, mask, causal, scale, query_tile, key_tile)


def tiled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    query_tile: int,
    key_tile: int,
) -> tuple[Tensor, Tensor]:
    """The output (..., T, Dv), and the logarithm of each row's sum of exponentials (..., T, 1): 0 for an empty row.

    Arguments as `tiled_attention` has them, unchecked; scale is a number.
    """
    T, S = query.shape[-2], key.shape[-2]
    output = value.new_empty(*query.shape[:-1], value.shape[-1])
    log_sum = at_least_float32(query.new_empty(*query.shape[:-1], 1))
    for rows in _slices(T, query_tile):
        part = at_least_float32(query[..., rows, :]) * scale  # (..., t, D)
        maximum = part.new_full((*part.shape[:-1], 1), float("-inf"))
        total, weighted = torch.zeros_like(maximum), part.new_zeros(*part.shape[:-1], value.shape[-1])
        for columns in _slices(_end(rows, T, S, causal), key_tile):
            scores = _scores(part, key, mask, rows, columns, T, S, causal)  # (..., t, s)
            larger = torch.maximum(maximum, scores.amax(-1, keepdim=True))
            shift = _finite(larger)
            shares, rescale = scores.sub_(shift).exp_(), (maximum - shift).exp_()
            total.mul_(rescale).add_(shares.sum(-1, keepdim=True))
            weighted.mul_(rescale).add_(shares @ at_least_float32(value[..., columns, :]))
            maximum = larger
            del scores, shares  # before the next tile is made
        empty = total == 0
        output[..., rows, :] = weighted / total.masked_fill(empty, 1.0)
        log_sum[..., rows, :] = (maximum + total.log()).masked_fill(empty, 0.0)
    return output, log_sum


def tiled_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    grad_output: Tensor,
    causal: bool,
    scale: float,
    query_tile: int,
    key_tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value from that of the output (..., T, Dv), and what the forward pass kept.

    Arguments as `tiled_attention` has them, unchecked; scale is a number.
    A tile's weights are computed again, exp(score - log_sum). The softmax's gradient needs of each row only
    Σ_j weight · ∂weight = output · grad_output, one number.
    """
    T, S = query.shape[-2], key.shape[-2]
    of_query, of_key, of_value = (torch.zeros_like(at_least_float32(x)) for x in (query, key, value))
    for rows in _slices(T, query_tile):
        part = at_least_float32(query[..., rows, :]) * scale  # (..., t, D)
        grad = at_least_float32(grad_output[..., rows, :])  # (..., t, Dv)
        dot = (grad * output[..., rows, :]).sum(-1, keepdim=True)  # (..., t, 1)
        for columns in _slices(_end(rows, T, S, causal), key_tile):
            scores = _scores(part, key, mask, rows, columns, T, S, causal)  # (..., t, s)
            weights = scores.sub_(log_sum[..., rows, :]).exp_()
            of_value[..., columns, :] += weights.mT @ grad
            of_weights = grad @ at_least_float32(value[..., columns, :]).mT  # (..., t, s)
            of_scores = weights.mul_(of_weights.sub_(dot))
            of_query[..., rows, :] += of_scores @ at_least_float32(key[..., columns, :]) * scale
            of_key[..., columns, :] += of_scores.mT @ part
            del scores, weights, of_weights, of_scores  # before the next tile is made
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


class _Tiled(torch.autograd.Function):
    """Joins the two passes: between them the inputs, the output and one number a row are kept."""

    @staticmethod
    def forward(ctx, query, key, value, mask, *settings):
        with torch.autocast(query.device.type, enabled=False):
            output, log_sum = tiled_forward(query, key, value, mask, *settings)
        ctx.save_for_backward(query, key, value, mask, output, log_sum)
        ctx.settings = settings
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        with torch.autocast(grad_output.device.type, enabled=False):
            gradients = tiled_gradients(*ctx.saved_tensors, grad_output, *ctx.settings)
        return *gradients, None, None, None, None, None


def _scores(
    part: Tensor, key: Tensor, mask: Tensor | None, rows: slice, columns: slice, T: int, S: int, causal: bool
) -> Tensor:
    """One tile of scores (..., t, s) of scaled queries, -inf where the query may not attend."""
    scores = part @ at_least_float32(key[..., columns, :]).mT
    allowed = _allowed(mask, rows, columns, T, S, causal, part.device)
    return scores if allowed is None else scores.masked_fill_(~allowed, float("-inf"))


def _allowed(
    mask: Tensor | None, rows: slice, columns: slice, T: int, S: int, causal: bool, device: torch.device
) -> Tensor | None:
    """Which pairs of a tile may meet, broadcastable to (..., t, s); None where all may."""
    allowed = None
    if mask is not None:  # an axis of one stands for all rows, or all columns
        mask = torch.atleast_2d(mask)
        allowed = mask[..., rows if mask.shape[-2] > 1 else slice(None), columns if mask.shape[-1] > 1 else slice(None)]
    if causal and columns.stop - 1 > S - T + rows.start:  # the tile reaches beyond its first query
        place = torch.arange(S - T + rows.start, S - T + rows.stop, device=device)[:, None]
        earlier = torch.arange(columns.start, columns.stop, device=device) <= place  # (t, s)
        allowed = earlier if allowed is None else allowed & earlier
    return allowed


def _slices(n: int, size: int) -> Iterator[slice]:
    """0 … n - 1 in pieces of `size`; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _end(rows: slice, T: int, S: int, causal: bool) -> int:
    """How many keys the last of these queries may see."""
    return S - T + rows.stop if causal else S


def _finite(maximum: Tensor) -> Tensor:
    """The maximum, with 0 for -inf: -inf minus -inf is NaN, and exp(-inf - 0) is the 0 that is meant."""
    return maximum.masked_fill(maximum == float("-inf"), 0.0)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, **tiles: int) -> None:
    check_tensors(query, key, value)
    check_mask(mask, (*query.shape[:-1], key.shape[-2]), query.device)
    check_at_least_one(**tiles)
    if causal and query.shape[-2] > key.shape[-2]:
        raise ValueError(
            f"there are {query.shape[-2]} queries but {key.shape[-2]} keys: where causal, they are the last of them"
        )
