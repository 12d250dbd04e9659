"""The cache of keys and values: what decoding keeps, so that a token is projected once.

Preallocated, and written in place. Chapter 11 is about it; causal layers use it from chapter 05 on, and chapter 08
needs the one that rolls.
"""

import torch
from torch import Tensor

from attncourse.attention import check_at_least_one
from attncourse.models import kv_cache_bytes as kv_cache_bytes  # what published models keep, by this module's name


def check_cache(cache: object | None, kind: type, causal: bool) -> None:
    """Raise unless cache is None, or of the kind that a causal layer keeps: TypeError, or ValueError if not causal."""
    if cache is None:
        return
    if not causal:
        raise ValueError("a cache needs causal=True: else an earlier token's output depends on later ones")
    # a rolling cache is a KVCache, and gives back other things; a quantized one gives back the same
    if getattr(cache, "used_as", type(cache)) is not kind:
        raise TypeError(f"cache is a {type(cache).__name__}, but this layer keeps a {kind.__name__}: use new_cache")


class KVCache:
    """Room for `max_length` keys (B, G, S, D) and values (B, G, S, Dv) of one layer; empty at first.

    `length` counts the tokens seen, which is also the position of the next one. `nbytes` is the size of the storage.
    For inference: what is stored carries no gradient.
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        check_at_least_one(batch_size=batch_size, n_kv_heads=n_kv_heads, max_length=max_length)
        check_at_least_one(head_dim=head_dim, value_dim=value_dim)
        self.key = torch.zeros(batch_size, n_kv_heads, max_length, head_dim, dtype=dtype, device=device)
        self.value = torch.zeros(batch_size, n_kv_heads, max_length, value_dim, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_length(self) -> int:
        """How many tokens there is room for."""
        return self.key.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, full or not."""
        return self.key.untyped_storage().nbytes() + self.value.untyped_storage().nbytes()

    def check_room(self, batch_size: int, n_new: int) -> None:
        """Raise ValueError unless `n_new` more tokens of `batch_size` sequences fit."""
        self._check_batch(batch_size)
        if self.length + n_new > self.max_length:
            raise ValueError(
                f"the cache holds {self.length} of at most {self.max_length} tokens, so {n_new} more do not fit: "
                f"make it with max_length={self.length + n_new} or more"
            )

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys (B, G, T, D) and values (B, G, T, Dv); returns all so far, (B, G, length, …).

        They are views where the dtypes agree; under autocast new keys may be narrower than what is stored, and then
        each call copies all of it: make the cache in the narrower dtype. What does not fit raises
        ValueError, or TypeError for a dtype, and nothing is stored.
        """
        self._check_new(key, value)
        end = self.length + key.shape[2]
        self.key[:, :, self.length : end] = key.detach()
        self.value[:, :, self.length : end] = value.detach()
        self.length = end
        return self.key[:, :, :end].to(key.dtype), self.value[:, :, :end].to(value.dtype)

    def _rooms(self) -> tuple[Tensor, Tensor]:
        """Tensors with the sizes, dtype and device of the keys and values that the cache takes."""
        return self.key, self.value

    def _check_batch(self, batch_size: int) -> None:
        made_for = self._rooms()[0].shape[0]
        if batch_size != made_for:
            raise ValueError(f"the cache was made for batch_size={made_for}, but x has {batch_size}")

    def _check_new(self, key: Tensor, value: Tensor) -> None:
        if key.dim() != 4:
            raise ValueError(f"key has shape {tuple(key.shape)}; it needs four axes, (B, G, T, D)")
        self.check_room(key.shape[0], key.shape[2])
        for name, new, room in zip(("key", "value"), (key, value), self._rooms(), strict=True):
            wanted = (*room.shape[:2], key.shape[2], room.shape[3])
            if new.shape != wanted:
                raise ValueError(f"{name} has shape {tuple(new.shape)}, but the cache takes {wanted}")
            if new.device != room.device:
                raise ValueError(f"devices differ: {name} {new.device}, the cache {room.device}")
            if new.dtype != room.dtype and not torch.is_autocast_enabled(new.device.type):
                raise TypeError(f"dtypes differ: {name} {new.dtype}, the cache {room.dtype}: make another cache")


class RollingKVCache(KVCache):
    """Keys and values of the last `window` tokens: token p stands in slot p % window, where it replaces p - window.

    `length` still counts all tokens seen. max_length, where it is less than window, is the room: then nothing rolls,
    and more tokens are refused. `nbytes` does not grow. For inference, as `KVCache`.
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        window: int,
        head_dim: int,
        *,
        max_length: int | None = None,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        check_at_least_one(window=window)
        room = window if max_length is None else min(window, max_length)
        super().__init__(batch_size, n_kv_heads, room, head_dim, value_dim=value_dim, dtype=dtype, device=device)
        self.window = window

    def check_room(self, batch_size: int, n_new: int) -> None:
        """Raise ValueError for another batch size, or for more tokens than a cache shorter than its window holds."""
        if self.max_length < self.window:
            super().check_room(batch_size, n_new)
        self._check_batch(batch_size)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store new keys (B, G, T, D) and values (B, G, T, Dv); returns what these T tokens may see, and where it was.

        That is keys (B, G, S, D), values (B, G, S, Dv) and their positions (S,). One token sees the storage itself, in
        the order of its slots. More see up to window - 1 tokens from before, and themselves, in the order of positions.
        """
        self._check_new(key, value)
        if key.shape[2] == 1:
            return self._append_one(key, value)
        start, end = self.length, self.length + key.shape[2]
        before = torch.arange(max(0, start - self.window + 1), start, device=key.device)
        old_key, old_value = (room[:, :, before % self.window] for room in (self.key, self.value))
        kept = torch.arange(max(start, end - self.window), end, device=key.device)
        self.key[:, :, kept % self.window] = key[:, :, kept - start].detach().to(self.key.dtype)
        self.value[:, :, kept % self.window] = value[:, :, kept - start].detach().to(self.value.dtype)
        self.length = end
        return (
            torch.cat([old_key.to(key.dtype), key.detach()], 2),
            torch.cat([old_value.to(value.dtype), value.detach()], 2),
            torch.arange(start - len(before), end, device=key.device),
        )

    def _append_one(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slot = self.length % self.window
        self.key[:, :, slot], self.value[:, :, slot] = key[:, :, 0].detach(), value[:, :, 0].detach()
        self.length += 1
        slots = torch.arange(min(self.length, self.window), device=key.device)
        positions = self.length - 1 - (slot - slots) % self.window
        seen = self.key[:, :, : len(slots)], self.value[:, :, : len(slots)]
        return seen[0].to(key.dtype), seen[1].to(value.dtype), positions
