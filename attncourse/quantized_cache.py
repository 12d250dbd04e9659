"""A cache of fewer bits: keys and values as codes of 8 or 4 bits, each with the step and the offset that read it.

Liu et al. 2024 (KIVI), section 3: keys per channel, since a few channels hold large numbers in every token; values per
token. Differs from the paper: 8 or 4 bits, not 2; a value has one step for a whole head, not one for each 32 numbers;
and only the unfinished group of keys stays exact, where the paper keeps up to 128 tokens, and their values. As in the
paper, what a call appends is exact in that call.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.attention import at_least_float32, check_at_least_one
from attncourse.kv_cache import KVCache


def quantize(x: Tensor, bits: int, dim: int | Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """codes = round((x - zero) / scale), zero = min x, scale = (max x - min x) / (2^bits - 1), over the axes `dim`.

    Codes are uint8, 0 … 2^bits - 1; scale and zero have x's dtype, and 1 along `dim`. What a code stands for is at most
    half a step, scale / 2, from its number; `dequantize` rounds it to x's dtype, which in bfloat16 costs about as much
    again at 8 bits. A scale that the dtype cannot hold is rounded up, so that the maximum has a code. It is at least
    the dtype's smallest normal number: a constant gives codes 0 and comes back exactly.

    A number that is not finite spoils all that share its step.

    Raises ValueError for bits, TypeError for an x of integers.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}, but a code in one byte has 1 to 8")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; quantize takes floating-point numbers")
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    wide, levels, limits = at_least_float32(x), 2**bits - 1, torch.finfo(x.dtype)
    low = wide.amin(dims, keepdim=True)
    step = (wide.amax(dims, keepdim=True) - low) / levels
    scale = step.to(x.dtype)
    scale = torch.where(scale < step, scale * (1 + limits.eps), scale).clamp(min=limits.tiny)
    codes = ((wide - low) / scale).round()
    return codes.to(torch.uint8), scale, low.to(x.dtype)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, *, out: Tensor | None = None) -> Tensor:
    """zero + codes · scale, in the dtype of scale, rounded once; written into `out` where it is given."""
    return torch.addcmul(zero, codes, scale, out=out)


def pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in a byte, (..., D) as (..., ⌈D / 2⌉): the first half of the axis low, the second high."""
    n_bytes = (codes.shape[-1] + 1) // 2
    low, high = codes[..., :n_bytes], codes[..., n_bytes:]
    return low | F.pad(high, (0, n_bytes - high.shape[-1])) << 4  # an odd D leaves the last high half empty


def unpack(packed: Tensor, size: int) -> Tensor:
    """The inverse of `pack`: (..., ⌈size / 2⌉) as (..., size)."""
    return torch.cat([packed & 15, packed >> 4], -1)[..., :size]


class QuantizedKVCache(KVCache):
    """Room for `max_length` keys (B, G, S, D) and values (B, G, S, Dv) in codes of 8 or 4 bits; stands for a `KVCache`.

    Keys get a scale and a zero for each channel and each `group_size` tokens, counted from position 0: a group is
    quantized when its last token comes, once, and stays exact until then. Values get them for each token, at once. So
    what is stored does not depend on how the tokens were cut into calls. What a call appends, it gets back exact.

    Error: a stored number is at most half a step off (`quantize`), so a score q·k / √D is at most
    ε = Σ_d |q_d| scale_d / (2 √D) off, with the scales of its key's group. Then a number of an output is at most
    tanh(ε / 2) · (max v - min v) + max scale_v / 2 off: the largest ε and the extremes over the tokens that it sees.

    Left padding: the cache knows no mask. Padding shares a group with at most group_size - 1 real tokens of its own
    sequence, and widens their steps to its own range. Later groups, values and other sequences do not notice.

    A call reads all keys and values so far into new tensors of the cache's dtype, which its caller drops: the memory
    falls that a layer holds between calls, not the time of a step. `nbytes` is the size of all storage: codes, scales,
    zeros, and room for group_size - 1 exact keys. For inference, as `KVCache`.
    """

    used_as = KVCache

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        bits: int = 8,
        group_size: int = 32,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        check_at_least_one(batch_size=batch_size, n_kv_heads=n_kv_heads, max_length=max_length)
        check_at_least_one(head_dim=head_dim, group_size=group_size, value_dim=value_dim)
        if bits not in (8, 4):
            raise ValueError(f"bits={bits}, but this cache stores 8 or 4")
        self.bits, self.group_size, self.length = bits, group_size, 0
        self._value_dim = value_dim

        def room(*shape: int, dtype: torch.dtype | None = dtype) -> Tensor:
            return torch.zeros(batch_size, n_kv_heads, *shape, dtype=dtype, device=device)

        n_groups = max_length // group_size  # a group that no more tokens can finish is never quantized
        key_bytes, value_bytes = ((size * bits + 7) // 8 for size in (head_dim, value_dim))
        self.exact_key = room(min(group_size - 1, max_length), head_dim)
        self.key_codes = room(n_groups, group_size, key_bytes, dtype=torch.uint8)
        self.key_scale, self.key_zero = room(n_groups, 1, head_dim), room(n_groups, 1, head_dim)
        self.value_codes = room(max_length, value_bytes, dtype=torch.uint8)
        self.value_scale, self.value_zero = room(max_length, 1), room(max_length, 1)

    @classmethod
    def like(cls, cache: KVCache, *, bits: int = 8, group_size: int = 32) -> "QuantizedKVCache":
        """One of the sizes, dtype and device of an empty KVCache, as a layer's `new_cache` gives."""
        if type(cache) is not KVCache:
            raise TypeError(f"cache is a {type(cache).__name__}; this one stands for a KVCache only")
        if cache.length:
            raise ValueError(f"the cache holds {cache.length} tokens already: quantize an empty one")
        batch_size, n_kv_heads, max_length, head_dim = cache.key.shape
        return cls(
            batch_size,
            n_kv_heads,
            max_length,
            head_dim,
            bits=bits,
            group_size=group_size,
            value_dim=cache.value.shape[3],
            dtype=cache.key.dtype,
            device=cache.key.device,
        )

    @property
    def key(self) -> Tensor:
        """Keys as stored, (B, G, length, D): read from their codes, the unfinished group exact."""
        return self._read_keys(self.length)

    @property
    def value(self) -> Tensor:
        """Values as stored, (B, G, length, Dv): read from their codes."""
        return self._read_values(self.length)

    @property
    def max_length(self) -> int:
        """How many tokens there is room for."""
        return self.value_codes.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, full or not."""
        storage = (self.exact_key, self.key_codes, self.key_scale, self.key_zero)
        storage += (self.value_codes, self.value_scale, self.value_zero)
        return sum(tensor.untyped_storage().nbytes() for tensor in storage)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys (B, G, T, D) and values (B, G, T, Dv); returns all so far, (B, G, length, …).

        Earlier ones are as stored, the new ones as given. What does not fit raises ValueError, or TypeError for a
        dtype, and nothing is stored.
        """
        self._check_new(key, value)
        start, end = self.length, self.length + key.shape[2]
        keys, values = self._read_keys(end), self._read_values(end)
        keys[:, :, start:], values[:, :, start:] = key.detach(), value.detach()
        self._store_keys(keys[:, :, start - start % self.group_size :])
        self._store_values(values[:, :, start:])
        self.length = end
        return keys.to(key.dtype), values.to(value.dtype)

    def _store_keys(self, key: Tensor) -> None:
        """key: the exact ones of the unfinished group, then the new ones."""
        first, n_groups = self.length // self.group_size, key.shape[2] // self.group_size
        n_quantized = n_groups * self.group_size
        if n_groups:
            groups = key[:, :, :n_quantized].unflatten(2, (n_groups, -1))  # (B, G, n_groups, group_size, D)
            codes, scale, zero = quantize(groups, self.bits, 3)
            new = slice(first, first + n_groups)
            self.key_codes[:, :, new] = codes if self.bits == 8 else pack(codes)
            self.key_scale[:, :, new], self.key_zero[:, :, new] = scale, zero
        rest = key[:, :, n_quantized:]
        self.exact_key[:, :, : rest.shape[2]] = rest

    def _store_values(self, value: Tensor) -> None:
        codes, scale, zero = quantize(value, self.bits, 3)
        new = slice(self.length, self.length + value.shape[2])
        self.value_codes[:, :, new] = codes if self.bits == 8 else pack(codes)
        self.value_scale[:, :, new], self.value_zero[:, :, new] = scale, zero

    def _read_keys(self, room: int) -> Tensor:
        """The keys so far, with room for `room` tokens in all."""
        B, G, _, D = self.exact_key.shape
        n_groups, n_exact = divmod(self.length, self.group_size)
        n_quantized = self.length - n_exact
        keys = self.exact_key.new_empty(B, G, room, D)
        if n_groups:
            codes, scale, zero = (x[:, :, :n_groups] for x in (self.key_codes, self.key_scale, self.key_zero))
            codes = codes if self.bits == 8 else unpack(codes, D)
            dequantize(codes, scale, zero, out=keys[:, :, :n_quantized].unflatten(2, (n_groups, -1)))
        keys[:, :, n_quantized : self.length] = self.exact_key[:, :, :n_exact]
        return keys

    def _read_values(self, room: int) -> Tensor:
        B, G, _, Dv = self._rooms()[1].shape
        values = self.value_scale.new_empty(B, G, room, Dv)
        codes, scale, zero = (x[:, :, : self.length] for x in (self.value_codes, self.value_scale, self.value_zero))
        codes = codes if self.bits == 8 else unpack(codes, Dv)
        dequantize(codes, scale, zero, out=values[:, :, : self.length])
        return values

    def _rooms(self) -> tuple[Tensor, Tensor]:
        """Views with the sizes, dtype and device of the keys and values that the cache takes."""
        return self.exact_key, self.value_scale.expand(*self.value_scale.shape[:3], self._value_dim)
