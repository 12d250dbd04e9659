"""Linear attention: a product of features in place of exp(q·k), so that a state of fixed size replaces the keys.

Katharopoulos et al. 2020, sections 3.2 to 3.4. Differs from the paper: causal attention is also computed in chunks,
which is the same function, and a query whose weights sum to nothing gets zeros.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import (
    at_least_float32,
    check_at_least_one,
    check_padding,
    check_sequence,
    check_tensors,
)
from attncourse.kv_cache import check_cache
from attncourse.multi_head import check_heads, merge_heads, split_heads
from attncourse.positions import RotaryEmbedding, apply_rotary, check_rotary

State = tuple[Tensor, Tensor]  # Σ φ(k) vᵀ, (B, H, M, Dv), and Σ φ(k), (B, H, M)
CHUNK = 64  # tokens at a time: of 32 to 512 the fastest on a CPU; fewer, larger chunks mean fewer kernels to launch


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, above zero everywhere: equation 7."""
    return x.clamp(max=0).exp() + F.relu(x)  # elu(x) + 1 itself rounds to 0 below -17 in float32


def dpfp_features(x: Tensor) -> Tensor:
    """r_i r_(i+1) for r = relu([x, -x]): twice as many features as numbers. Schlag et al. 2021, section 5.3, ν = 1."""
    r = torch.cat([x, -x], -1).relu()
    return r * r.roll(-1, -1)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu_features, "relu": F.relu, "dpfp": dpfp_features}


def linear_attention_parallel(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = True, return_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Σ_j (φ(q_i)·φ(k_j)) v_j / Σ_j φ(q_i)·φ(k_j), equation 4, through all T×S products: the definition, and slow.

    Here and below, query (B, H, T, M) and key (B, H, S, M) are features, never negative, and value is (B, H, S, Dv);
    the output is (B, H, T, Dv), summed in at least float32. With `causal`, sums run up to the token itself, the
    queries being the last T of S positions. A query whose sum is zero gets zeros. Returns (output, weights
    (B, H, T, S)) with `return_weights`. Raises ValueError for shapes or devices that do not fit, TypeError for dtypes.
    """
    dtype = value.dtype
    query, key, value = _checked(query, key, value)
    weights = query @ key.transpose(-2, -1)  # (B, H, T, S)
    if causal:
        weights = weights.tril(key.shape[2] - query.shape[2])
    weights = _divide(weights, weights.sum(-1, keepdim=True))
    output = (weights @ value).to(dtype)
    return (output, weights.to(dtype)) if return_weights else output


def linear_attention_recurrent(
    query: Tensor, key: Tensor, value: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """The same, causal, one token after the other from a state on: the output and the state after it. Equations 16–20.

    state: sums over all earlier tokens, of `LinearState`'s shapes and dtype; None for no token. T = S. Autograd keeps
    every state: training costs memory T·M·Dv.
    """
    dtype = value.dtype
    query, key, value = _checked(query, key, value)
    memory, total = _started(query, key, value, state)
    outputs = []
    for q, k, v in zip(query.unbind(2), key.unbind(2), value.unbind(2), strict=True):
        memory = memory + k[..., :, None] * v[..., None, :]  # (B, H, M, Dv)
        total = total + k  # (B, H, M)
        outputs.append(_divide((q[..., None, :] @ memory)[..., 0, :], (q * total).sum(-1, keepdim=True)))  # (B, H, Dv)
    output = torch.stack(outputs, 2) if outputs else torch.zeros_like(value)
    return output.to(dtype), (memory, total)


def linear_attention_chunked(
    query: Tensor, key: Tensor, value: Tensor, state: State | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, State]:
    """The same, `chunk` tokens at a time: all products inside a chunk, and the state for every token before it.

    Time and memory grow with T, forward and backward. The chunk changes the speed, not the result.
    """
    check_at_least_one(chunk=chunk)
    dtype = value.dtype
    query, key, value = _checked(query, key, value)
    memory, total = _started(query, key, value, state)
    outputs = []
    for q, k, v in zip(query.split(chunk, 2), key.split(chunk, 2), value.split(chunk, 2), strict=True):
        weights = (q @ k.transpose(-2, -1)).tril()  # (B, H, chunk, chunk)
        sums = weights.sum(-1, keepdim=True) + q @ total[..., None]  # (B, H, chunk, 1)
        outputs.append(_divide(weights @ v + q @ memory, sums))
        memory = memory + k.transpose(-2, -1) @ v  # (B, H, M, Dv)
        total = total + k.sum(2)  # (B, H, M)
    return torch.cat(outputs, 2).to(dtype), (memory, total)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = True) -> Tensor:
    """The same at linear cost: causal in chunks; else φ(k)ᵀ v is multiplied first, and no T×S product is made."""
    if causal:
        return linear_attention_chunked(query, key, value)[0]
    dtype = value.dtype
    query, key, value = _checked(query, key, value)
    memory, total = key.transpose(-2, -1) @ value, key.sum(2)  # (B, H, M, Dv), (B, H, M)
    return _divide(query @ memory, query @ total[..., None]).to(dtype)


def _divide(numerator: Tensor, sums: Tensor) -> Tensor:
    # No epsilon, which would shrink every output: features may all be tiny. Nothing divided by nothing is zero, and
    # both fills keep its gradient at zero.
    empty = sums.abs() <= torch.finfo(sums.dtype).tiny
    return (numerator / sums.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def _checked(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_tensors(query, key, value)
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; it needs four axes, (B, H, T, M)")
    return at_least_float32(query), at_least_float32(key), at_least_float32(value)


def _started(query: Tensor, key: Tensor, value: Tensor, state: State | None) -> State:
    """The state to go on from: zeros, or what was given, if it fits."""
    (B, H, T, M), S, Dv = query.shape, key.shape[2], value.shape[-1]
    if T != S:
        raise ValueError(f"there are {T} queries but {S} keys: each token has one of both")
    if state is None:
        return query.new_zeros(B, H, M, Dv), query.new_zeros(B, H, M)
    for name, x, wanted in (("memory", state[0], (B, H, M, Dv)), ("total", state[1], (B, H, M))):
        if x.shape != wanted:
            raise ValueError(f"the state's {name} has shape {tuple(x.shape)}, but these features need {wanted}")
        if x.device != query.device:
            raise ValueError(f"devices differ: the state's {name} {x.device}, the features {query.device}")
        if x.dtype != query.dtype:
            raise TypeError(f"dtypes differ: the state's {name} {x.dtype}, but it must be {query.dtype}")
    return state


class LinearState:
    """What is kept of all earlier tokens: memory Σ φ(k) vᵀ (B, H, M, Dv) and total Σ φ(k) (B, H, M).

    `length` counts the tokens seen, `nbytes` is the size of the storage, which never grows. For inference: what a
    layer stores carries no gradient.
    """

    def __init__(self, memory: Tensor, total: Tensor, length: int = 0):
        self.memory, self.total, self.length = memory, total, length

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, after one token as after a million."""
        return self.memory.untyped_storage().nbytes() + self.total.untyped_storage().nbytes()


class KernelAttention(nn.Module):
    """What `LinearAttention` and Performer share: everything but `features`, the map that a subclass gives."""

    def __init__(self, d_model: int, n_heads: int, *, causal: bool, rotary: RotaryEmbedding | None, bias: bool):
        super().__init__()
        check_heads(d_model, n_heads)
        check_rotary(rotary, d_model // n_heads)
        self.n_heads, self.causal, self.rotary = n_heads, causal, rotary
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def features(self, x: Tensor, *, is_query: bool) -> Tensor:
        """φ of queries or keys: x (..., D), in at least float32, gives (..., M)."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, max_length: int) -> LinearState:
        """The state before the first token, zeros in at least float32; its size does not depend on max_length."""
        check_at_least_one(batch_size=batch_size)
        weight = self.v_proj.weight
        value = at_least_float32(weight.new_zeros(batch_size, self.n_heads, weight.shape[0] // self.n_heads))
        total = torch.zeros_like(self.features(value, is_query=False))  # (B, H, M)
        return LinearState(total.new_zeros(*total.shape, value.shape[-1]), total)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: LinearState | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, H, T, T)) with `return_weights`.

        With a cache, x continues what it has seen, and S counts all tokens so far; else S = T. mask: padding of all S
        tokens, (B, 1, 1, S), True = may attend; what it says of earlier tokens was heeded when they came. Weights are
        built as T×T, and not with a cache, which keeps no keys. A token with nothing to attend to gives zeros before
        o_proj.
        """
        check_sequence("x", x, self.q_proj)
        self._check_cache(cache, return_weights)
        B, T, past = *x.shape[:2], 0 if cache is None else cache.length
        real = check_padding(mask, B, past + T, x.device)  # (B or 1, S) or None
        query = split_heads(self.q_proj(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.k_proj(x), self.n_heads)
        value = split_heads(self.v_proj(x), self.n_heads)
        if self.rotary is not None:
            positions = torch.arange(past, past + T, device=x.device)
            query, key = apply_rotary(query, positions, self.rotary), apply_rotary(key, positions, self.rotary)
        with torch.autocast(x.device.type, enabled=False):  # sums and exponents need float32
            wide = at_least_float32(value)
            query = self.features(at_least_float32(query), is_query=True)  # (B, H, T, M)
            key = self.features(at_least_float32(key), is_query=False)
            if real is not None:
                key = key.masked_fill(~real[:, None, past:, None], 0.0)
            if return_weights:
                output, weights = linear_attention_parallel(query, key, wide, causal=self.causal, return_weights=True)
            elif cache is None:
                output = linear_attention(query, key, wide, causal=self.causal)
            else:
                attend = linear_attention_recurrent if T == 1 else linear_attention_chunked
                output, (memory, total) = attend(query, key, wide, (cache.memory, cache.total))
                cache.memory, cache.total, cache.length = memory.detach(), total.detach(), past + T
        output = self.o_proj(merge_heads(output.to(value.dtype)))  # (B, T, d_model)
        return (output, weights.to(value.dtype)) if return_weights else output

    def _check_cache(self, cache: LinearState | None, return_weights: bool) -> None:
        check_cache(cache, LinearState, self.causal)
        if cache is not None and return_weights:
            raise ValueError("a cache keeps sums, not keys, so there are no weights (B, H, T, S) to return")


class LinearAttention(KernelAttention):
    """Each head: Σ_j (φ(q)·φ(k_j)) v_j / Σ_j φ(q)·φ(k_j), over the tokens up to its own if `causal`, else over all.

    feature_map: "elu" (elu(x) + 1), "relu", "dpfp", or a function of (..., D) that gives (..., M), nothing negative.
    rotary: a `RotaryEmbedding(d_model / n_heads)` that turns queries and keys before the feature map; what they weigh
    then depends on both positions, not on their difference alone. Parameters `q_proj`, `k_proj`, `v_proj`, `o_proj`.
    Raises ValueError where d_model is not divisible by n_heads, or for another name.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        feature_map: str | Callable[[Tensor], Tensor] = "elu",
        causal: bool = True,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__(d_model, n_heads, causal=causal, rotary=rotary, bias=bias)
        if not callable(feature_map) and feature_map not in FEATURE_MAPS:
            names = ", ".join(FEATURE_MAPS)
            raise ValueError(f"feature_map={feature_map!r}, but it must be one of {names}, or a function")
        self.feature_map = feature_map if callable(feature_map) else FEATURE_MAPS[feature_map]

    def features(self, x: Tensor, *, is_query: bool) -> Tensor:
        """φ, the same for queries and keys."""
        if isinstance(self.feature_map, nn.Module):  # a learned map has the layer's dtype
            x = x.to(next((parameter.dtype for parameter in self.feature_map.parameters()), x.dtype))
        return at_least_float32(self.feature_map(x))
