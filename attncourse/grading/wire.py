"""Messages between examiner and worker: JSON and raw tensor bytes, never pickle.

A message is two lengths, a JSON text, and the bytes of its tensors one after another. Whatever comes from a worker
may be forged: `receive` raises `ProtocolError` for anything that is not of this form or larger than allowed.
"""

import json
import math
import socket
import struct
import time
from typing import Any

import torch
from torch import Tensor

from attncourse.checks.script import Call, Construct, Failure, Load, Outcome, Reply, Result, Script

LENGTHS = struct.Struct(">II")
MAX_TEXT, MAX_BYTES, MAX_ITEMS = 1 << 20, 1 << 23, 10_000  # right replies have up to 17 kB of tensors
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
}
CLASSES = {"construct": Construct, "load": Load, "call": Call}
CLASSES |= {kind.__name__: kind for kind in (Script, Reply, Result, Failure, Outcome)}
NAMES = {kind: name for name, kind in (*CLASSES.items(), *DTYPES.items())}


class ProtocolError(Exception):
    """The other side sent something that is no message, or went away."""


def send(channel: socket.socket, message: Any) -> None:
    """Send one message: dicts, lists, strings, numbers, None, tensors, and the classes of `checks.script`."""
    channel.sendall(encode(message))


def encode(message: Any) -> bytes:
    """A message as `send` sends it."""
    blobs: list[bytes] = []
    text = json.dumps(_plain(message, blobs), separators=(",", ":")).encode()
    data = b"".join(blobs)
    if len(text) > MAX_TEXT or len(data) > MAX_BYTES:
        raise ProtocolError(f"the message is too large: {len(text)} bytes of text, {len(data)} of tensors")
    return LENGTHS.pack(len(text), len(data)) + text + data


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """The next message, or TimeoutError once `time.monotonic()` passes `deadline`."""
    n_text, n_data = LENGTHS.unpack(_read(channel, LENGTHS.size, deadline))
    if n_text > MAX_TEXT or n_data > MAX_BYTES:
        raise ProtocolError(f"a message of {n_text} and {n_data} bytes is too large")
    text, data = _read(channel, n_text, deadline), _read(channel, n_data, deadline)
    try:
        return _rebuild(json.loads(text), _Blobs(data), 0)
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError, OverflowError) as error:
        raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from None


def _read(channel: socket.socket, n: int, deadline: float | None) -> bytes:
    parts = []
    while n:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        try:
            part = channel.recv(min(n, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise ProtocolError(f"the channel broke: {error}") from None
        if not part:
            raise ProtocolError("the channel was closed")
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def _plain(value: Any, blobs: list[bytes]) -> Any:
    kind = type(value)  # first: whether something is an instance of Tensor takes long to find out
    if value is None or kind in (str, int, float, bool):
        return value
    if kind in NAMES:
        return {"_": NAMES[kind], "fields": _plain(vars(value), blobs)}
    if isinstance(value, dict):
        return {"_": "dict", "items": [[key, _plain(item, blobs)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"_": "tuple", "items": [_plain(item, blobs) for item in value]}
    if isinstance(value, list):
        return [_plain(item, blobs) for item in value]
    if isinstance(value, Tensor):
        if value.dtype not in NAMES:
            raise ProtocolError(f"tensors of {value.dtype} are not sent")
        known = value.view(torch.int16) if value.dtype == torch.bfloat16 else value  # to NumPy
        blobs.append(torch.Tensor.numpy(known, force=True).tobytes())
        return {"_": "tensor", "dtype": NAMES[value.dtype], "shape": list(value.shape), "stride": list(value.stride())}
    if isinstance(value, (int, float, str)):
        return value
    raise ProtocolError(f"a {kind.__name__} is not sent")


class _Blobs:
    """The tensors' bytes, taken off the front; counts what it makes, so that small text cannot make much."""

    def __init__(self, data: bytes):
        self.data, self.at, self.items = memoryview(data), 0, 0

    def tensor(self, dtype: torch.dtype, shape: list[int], stride: list[int]) -> Tensor:
        if len(shape) > 8 or not all([isinstance(n, int) and 0 <= n <= MAX_BYTES for n in (*shape, *stride)]):
            raise ValueError("a shape or stride is out of range")
        size = math.prod(shape) * dtype.itemsize
        if size > len(self.data) - self.at:
            raise ValueError("a tensor is longer than its bytes")
        if not size:
            return torch.empty(shape, dtype=dtype)
        tensor = torch.frombuffer(bytearray(self.data[self.at : self.at + size]), dtype=dtype).view(shape)
        self.at += size
        if list(tensor.stride()) == stride or not _is_dense(shape, stride):
            return tensor
        return torch.empty_strided(shape, stride, dtype=dtype).copy_(tensor)


def _is_dense(shape: list[int], stride: list[int]) -> bool:
    """Whether the elements fill their memory without gaps, and no two share a place: a permutation of axes."""
    expected = 1
    for step, n in sorted(zip(stride, shape, strict=True)):
        if n != 1:
            if step != expected:
                return False
            expected *= n
    return True


def _rebuild(value: Any, blobs: _Blobs, depth: int) -> Any:
    blobs.items += 1
    if blobs.items > MAX_ITEMS or depth > 20:
        raise ValueError("too many or too deep values")
    if isinstance(value, str):  # half a character would fail where it is written
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_rebuild(item, blobs, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value["_"]
    if kind == "tensor":
        return blobs.tensor(DTYPES[value["dtype"]], value["shape"], value["stride"])
    if kind == "dict":
        return {str(key): _rebuild(item, blobs, depth + 1) for key, item in value["items"]}
    if kind == "tuple":
        return tuple(_rebuild(item, blobs, depth + 1) for item in value["items"])
    return CLASSES[kind](**_rebuild(value["fields"], blobs, depth + 1))
