"""Published models, and how many bytes their caches hold: `data/models.json`, one record for each model.

A record's `n_layers` layers are of four kinds; a kind that is not named has none, and the rest are global.

| field | what such a layer keeps of one sequence |
| --- | --- |
| `n_global_layers` | every token |
| `n_local_layers` | the last `window` tokens, the newest among them |
| `n_linear_layers` | a state: `linear_state_numbers` in `linear_state_dtype`, and `linear_conv_numbers` |
| `n_shared_layers` | nothing: it reads an earlier layer's cache |

A token is `kv_lora_rank + qk_rope_head_dim` numbers in a layer (MLA), else `n_kv_heads` keys of `head_dim` and values
of `v_head_dim` (of `head_dim`, if it is not named); `local_n_kv_heads` and `local_head_dim` stand for local layers that
differ. `index_head_dim` is an indexer's key in each global layer, a byte a number and 4 bytes of scale, as in
DeepSeek-V3.2's reference code. Sizes of states are those that transformers 5.23 keeps.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from numbers import Real
from typing import Any

import torch

Model = str | Mapping[str, Any]  # a name, or a record


@cache
def load_models() -> dict[str, dict[str, Any]]:
    """The records of `data/models.json` by name, in its order."""
    text = (files("attncourse") / "data" / "models.json").read_text(encoding="utf-8")
    return {record["name"]: record for record in json.loads(text)["models"]}


def find_model(name: str) -> dict[str, Any]:
    """The record of a model, in upper or lower case. Raises ValueError, with the nearest names, if there is none."""
    names = {known.casefold(): known for known in load_models()}
    key = str(name).strip().casefold()
    if key in names:
        return load_models()[names[key]]
    near = [known for folded, known in names.items() if key and key in folded]
    near += [names[folded] for folded in difflib.get_close_matches(key, names, n=5, cutoff=0.3)]
    hint = f"the nearest names: {', '.join(dict.fromkeys(near[:5]))}" if near else "there is none like it"
    raise ValueError(f"no model is named {name!r}; {hint}")


def kv_cache_bytes(model: Model, n_tokens: int, dtype: torch.dtype | float = torch.bfloat16) -> int:
    """Bytes of one sequence's cache after `n_tokens` tokens, all layers together.

    model: a name, or a record with the fields above. dtype: of the cached numbers, or how many bits each takes (4, or
    4.5 with the scales of a quantized cache). It counts what must be kept: no unused room, no weights. Raises
    ValueError for a name or sizes that do not fit, TypeError for what is no dtype and no number.
    """
    _check_tokens(n_tokens)
    bits, total = _bits(dtype), 0
    for part in cached_layers(model):
        kept = n_tokens if part["window"] is None else min(n_tokens, part["window"])
        total += part["layers"] * kept * (part["numbers"] * bits + 8 * part["index_bytes"])
    return math.ceil(total / 8) + state_bytes(model, dtype)


def state_bytes(model: Model, dtype: torch.dtype | float = torch.bfloat16) -> int:
    """The part of the cache that does not grow: the states of linear layers, 0 without such layers."""
    record = _record(model)
    layers, bits = record.get("n_linear_layers") or 0, _bits(dtype)
    state_dtype = record.get("linear_state_dtype")
    state = (record.get("linear_state_numbers") or 0) * (_bits(getattr(torch, state_dtype)) if state_dtype else bits)
    return math.ceil(layers * (state + (record.get("linear_conv_numbers") or 0) * bits) / 8)


def bytes_per_token(model: Model, dtype: torch.dtype | float = torch.bfloat16) -> int:
    """Bytes that a token adds, as long as every window has room.

    Past a model's window its local layers add nothing: only `kv_cache_bytes` says how much a context takes.
    """
    return kv_cache_bytes(model, 1, dtype) - state_bytes(model, dtype)


def all_global_bytes(model: Model, n_tokens: int, dtype: torch.dtype | float = torch.bfloat16) -> int:
    """Bytes of the same cache if every layer kept every token: no window, no linear layer, none shared."""
    record = _record(model)
    n_global = _size(record, "n_layers") - (record.get("n_local_layers") or 0)
    kept = {"window": max(1, n_tokens), "n_global_layers": n_global, "n_linear_layers": 0, "n_shared_layers": 0}
    return kv_cache_bytes({**record, **kept}, n_tokens, dtype)


def multi_head_bytes(model: Model, n_tokens: int, dtype: torch.dtype | float = torch.bfloat16) -> int:
    """Bytes if, besides, each query head had its own key and value: what a saving is often measured against.

    Of an MLA model: keys of `qk_nope_head_dim` numbers. No such model exists.
    """
    _check_tokens(n_tokens)
    record = _record(model)
    layers, heads = _size(record, "n_layers"), _size(record, "n_heads")
    if record.get("kv_lora_rank") is not None:
        numbers = layers * (_size(record, "qk_nope_head_dim") + _size(record, "v_head_dim"))
    else:
        local = record.get("n_local_layers") or 0
        numbers = local * _head_numbers(record, "local_") + (layers - local) * _head_numbers(record)
    return math.ceil(n_tokens * heads * numbers * _bits(dtype) / 8)


def _check_tokens(n_tokens: int) -> None:
    if isinstance(n_tokens, bool) or not isinstance(n_tokens, Real) or n_tokens < 0 or n_tokens % 1 != 0:
        raise ValueError(f"n_tokens={n_tokens}, but it must be a whole number, 0 or more")


def cached_layers(model: Model) -> list[dict[str, Any]]:
    """The layers whose cache grows, kind by kind, as dicts: `layers`, `window`, `numbers`, `index_bytes`.

    `window` is None where every token is kept; the last two are those of a token in one layer. Raises ValueError for a
    record that lacks a size, or whose kinds of layers do not add up.
    """
    record = _record(model)
    n_layers = _size(record, "n_layers")
    kinds = {kind: record.get(f"n_{kind}_layers") for kind in ("global", "local", "linear", "shared")}
    if kinds["global"] is None:
        kinds["global"] = n_layers - sum(count or 0 for count in kinds.values())
    if sum(count or 0 for count in kinds.values()) != n_layers or min(count or 0 for count in kinds.values()) < 0:
        counts = ", ".join(f"n_{kind}_layers={count}" for kind, count in kinds.items() if count is not None)
        raise ValueError(f"{_name(record)}: {counts}, but n_layers={n_layers}")
    found = []
    if kinds["local"]:
        local = {"layers": kinds["local"], "window": _size(record, "window")}
        found.append({**local, "numbers": _numbers(record, "local_"), "index_bytes": 0})
    if kinds["global"]:
        index = record.get("index_head_dim")
        index_bytes = index + 4 * math.ceil(index / 128) if index else 0
        everything = {"layers": kinds["global"], "window": None}
        found.append({**everything, "numbers": _numbers(record), "index_bytes": index_bytes})
    return found


def kind(model: Model) -> str:
    """What a model's layers are, in a few words: "GQA, 52 of 62 local (1,024)", "MLA, 20 of 27 linear"."""
    record = _record(model)
    words = [record["attention"]]
    for name in ("local", "linear", "shared"):
        if count := record.get(f"n_{name}_layers"):
            window = f" ({record['window']:,})" if name == "local" else ""
            words.append(f"{count} of {record['n_layers']} {name}{window}")
    return ", ".join(words)


def growth(
    models: Model | Sequence[Model] | None = None,
    tokens: Sequence[int] = tuple(2**i for i in range(10, 21)),
    dtype: torch.dtype | float = torch.bfloat16,
) -> dict[str, Any]:
    """The caches of some models (all of them, if none is named) at some contexts: what `show.models` draws."""
    models = [models] if isinstance(models, str | Mapping) else models
    records = [_record(model) for model in (load_models() if models is None else models)]
    return {
        "tokens": list(tokens),
        "models": [
            {"name": record["name"], "kind": kind(record), "bytes": [kv_cache_bytes(record, n, dtype) for n in tokens]}
            for record in records
        ],
    }


def _numbers(record: Mapping[str, Any], local: str = "") -> int:
    """Numbers that one layer caches for a token."""
    if record.get("kv_lora_rank") is not None:
        return _size(record, "kv_lora_rank") + _size(record, "qk_rope_head_dim")
    return _size(record, f"{local}n_kv_heads", "n_kv_heads") * _head_numbers(record, local)


def _head_numbers(record: Mapping[str, Any], local: str = "") -> int:
    """Numbers of one head's key and value."""
    head_dim = _size(record, f"{local}head_dim", "head_dim")
    return head_dim + (record.get("v_head_dim") or head_dim)


def _record(model: Model) -> Mapping[str, Any]:
    return find_model(model) if isinstance(model, str) else model


def _name(record: Mapping[str, Any]) -> str:
    return record.get("name", "the record")


def _size(record: Mapping[str, Any], *names: str) -> int:
    """The first of these fields that has a value. Raises ValueError unless it is a whole number, 1 or more."""
    value = next((record[name] for name in names if record.get(name) is not None), None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{_name(record)}: {names[-1]}={value}, but it must be a whole number, 1 or more")
    return value


def _bits(dtype: torch.dtype | float) -> float:
    """Bits of one number."""
    if isinstance(dtype, torch.dtype):
        return 4 if "int4" in str(dtype) else 8 * dtype.itemsize  # torch counts a byte for the dtypes of half a byte
    if isinstance(dtype, bool) or not isinstance(dtype, int | float):
        raise TypeError(f"dtype={dtype!r}, but it must be a torch dtype, or how many bits a number takes")
    if not 0 < dtype <= 64:
        raise ValueError(f"dtype={dtype}: a number takes more than 0 and at most 64 bits")
    return dtype
