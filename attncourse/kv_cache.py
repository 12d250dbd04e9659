"""The cache of keys and values: what decoding keeps, so that a token is projected once.

Preallocated, and written in place. Chapter 11 is about it; causal layers use it from chapter 05 on.
"""

import torch
from torch import Tensor

from attncourse.attention import check_at_least_one


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
        if batch_size != self.key.shape[0]:
            raise ValueError(f"the cache was made for batch_size={self.key.shape[0]}, but x has {batch_size}")
        if self.length + n_new > self.max_length:
            raise ValueError(
                f"the cache holds {self.length} of at most {self.max_length} tokens, so {n_new} more do not fit: "
                f"make it with max_length={self.length + n_new} or more"
            )

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys (B, G, T, D) and values (B, G, T, Dv); returns all so far, (B, G, length, …).

        They are views where the dtypes agree; under autocast new keys may be narrower than what is stored. What does
        not fit raises ValueError, or TypeError for a dtype, and nothing is stored.
        """
        self.check_room(key.shape[0], key.shape[2])
        for name, new, room in (("key", key, self.key), ("value", value, self.value)):
            wanted = (*room.shape[:2], key.shape[2], room.shape[3])
            if new.shape != wanted:
                raise ValueError(f"{name} has shape {tuple(new.shape)}, but the cache takes {wanted}")
            if new.device != room.device:
                raise ValueError(f"devices differ: {name} {new.device}, the cache {room.device}")
            if new.dtype != room.dtype and not torch.is_autocast_enabled(new.device.type):
                raise TypeError(f"dtypes differ: {name} {new.dtype}, the cache {room.dtype}: make another cache")
        end = self.length + key.shape[2]
        self.key[:, :, self.length : end] = key.detach()
        self.value[:, :, self.length : end] = value.detach()
        self.length = end
        return self.key[:, :, :end].to(key.dtype), self.value[:, :, :end].to(value.dtype)
