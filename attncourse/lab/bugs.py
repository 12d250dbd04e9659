"""The bug museum: real bugs of public code, each cut down to its cause, and the tests that find such bugs.

One small layer, `layer()`, is made of exchangeable parts. A bug is one part replaced by a wrong one, written for this
course in as few lines as show the cause. Five properties that hold for any right layer, whoever wrote it, are measured
on it: `PROPERTIES`. `EXHIBITS` says where each bug was found. `python -m attncourse.lab.bugs` measures all of them.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import at_least_float32, masked_softmax
from attncourse.masks import causal_mask, sliding_window_mask
from attncourse.mla import absorbed_attention, expanded_attention
from attncourse.multi_head import merge_heads, split_heads
from attncourse.performer import favor_features, orthogonal_projection
from attncourse.positions import RotaryEmbedding, apply_rotary, sinusoidal

Layer = Callable[..., Tensor]
D_MODEL, H, G, D, W = 32, 4, 2, 8, 3
N, R, C, FEATURES = 8, 4, 12, 16  # of the latent layer, and of the kernel layer
T, B = 8, 3
HALVES, PAIRS = RotaryEmbedding(D), RotaryEmbedding(D, interleaved=True)


# ---- the layer, and its parts as they should be ----


class Cache:
    """Keys and values of all tokens so far, or whatever a layer stores in their place."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens seen."""
        return 0 if self.key is None else self.key.shape[2]

    @property
    def nbytes(self) -> int:
        """What the stored tensors take."""
        return sum(x.numel() * x.element_size() for x in (self.key, self.value) if x is not None)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store what is new; returns all."""
        self.key = key if self.key is None else torch.cat([self.key, key], 2)
        self.value = value if self.value is None else torch.cat([self.value, value], 2)
        return self.key, self.value


def positions(real: Tensor, T: int) -> Tensor:
    """Real tokens are counted from 0, those in the cache too; padding counts nothing. real (B, S) gives (B, T)."""
    return (real.cumsum(-1) - 1).clamp_min(0)[:, -T:]


def rotate(x: Tensor, place: Tensor) -> Tensor:
    """Number i with number i + D/2, angles in at least float32."""
    return apply_rotary(x, place[:, None], HALVES)


def stored(kv: Tensor) -> Tensor:
    """What is kept of keys and values: the G heads as they are."""
    return kv


def share(kv: Tensor, n_heads: int) -> Tensor:
    """Query head h gets key-value head h // (H/G): AABB."""
    return kv.repeat_interleave(n_heads // kv.shape[1], 1)


def allowed(T: int, S: int, cached: bool) -> Tensor:
    """The last query sees the last key, with a cache and without."""
    return causal_mask(T, S)


def allowed_near(T: int, S: int, cached: bool) -> Tensor:
    """W keys, the token's own among them."""
    return sliding_window_mask(T, S, window=W)


def hide(real: Tensor, T: int) -> Tensor:
    """Padding is hidden as a key: (B, S) as (B, 1, 1, S)."""
    return real[:, None, None]


def weigh(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys, among those allowed; a row without one is zero."""
    return masked_softmax(scores, mask)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weigh: Callable) -> Tensor:
    """Scaled dot-product attention, weights by `weigh`."""
    return weigh(query @ key.mT * query.shape[-1] ** -0.5, mask) @ value


def projection(x: Tensor) -> Tensor:
    """The random rows of the kernel layer."""
    return orthogonal_projection(FEATURES, D, seed=0, dtype=at_least_float32(x).dtype, device=x.device)


def key_features(key: Tensor, rows: Callable = projection) -> Tensor:
    """FAVOR+'s, nothing taken from other keys."""
    return favor_features(key, rows(key), is_query=False)


def kernel_attend(key_features: Callable = key_features, rows: Callable = projection) -> Callable:
    """An `attend` that estimates softmax attention from random features."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weigh: Callable) -> Tensor:
        products = favor_features(query, rows(query), is_query=True) @ key_features(key).mT
        products = products.masked_fill(~mask, 0.0)
        sums = products.sum(-1, keepdim=True)
        return (products / sums.masked_fill(sums == 0, 1.0) @ value.to(products.dtype)).to(value.dtype)

    return attend


def merge(x: Tensor) -> Tensor:
    """The heads of one token side by side: (B, H, T, D) as (B, T, H·D)."""
    return merge_heads(x)


PARTS: dict[str, Callable] = {
    part.__name__: part for part in (positions, rotate, stored, share, allowed, hide, weigh, attend, merge)
}


def drawn(*shape: int, seed: int) -> Tensor:
    """Standard normals in float64, the same on every device."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    name: drawn(D_MODEL, width, seed=seed) * D_MODEL**-0.5
    for seed, (name, width) in enumerate(
        {
            "query": H * D,
            "key": G * D,
            "value": G * D,
            "out": D_MODEL,
            "latent": C,
            "key_rope": R,
            "latent_query": H * (N + R),
        }.items()
    )
}
UP_KEY, UP_VALUE = drawn(H, N, C, seed=20) * C**-0.5, drawn(H, D, C, seed=21) * C**-0.5


def layer(*, absolute: bool = False, **replaced: Callable) -> Layer:
    """A grouped, causal, rotary attention layer with one part or more replaced, by name.

    It is called as f(x, cache=None, real=None, offset=0): x (B, T, 32) continues the cache; real (B, S) marks, of all
    S tokens so far, those that are no padding; offset is added to all positions. absolute: a sinusoid is added to the
    tokens, and nothing is rotated.
    """
    part = {**PARTS, **replaced}

    def run(x: Tensor, *, cache: Cache | None = None, real: Tensor | None = None, offset: int = 0) -> Tensor:
        T, S = x.shape[1], x.shape[1] + (cache.length if cache else 0)
        weight = {name: w.to(x) for name, w in WEIGHTS.items()}
        real = torch.ones(len(x), S, dtype=torch.bool, device=x.device) if real is None else real
        place = part["positions"](real, T) + offset  # (B, T)
        if absolute:
            x = x + sinusoidal(S, D_MODEL).to(x)[place]
        query = split_heads(x @ weight["query"], H)  # (B, H, T, D)
        key, value = split_heads(x @ weight["key"], G), split_heads(x @ weight["value"], G)  # (B, G, T, D)
        if not absolute:
            query, key = part["rotate"](query, place), part["rotate"](key, place)
        key, value = part["stored"](key), part["stored"](value)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, G, S, D)
        key, value = part["share"](key, H), part["share"](value, H)  # (B, H, S, D)
        pattern = part["allowed"](T, S, cache is not None).to(x.device)  # (T, S)
        mask = (pattern & part["hide"](real, T)).expand(len(x), H, T, S)
        output = part["attend"](query, key, value, mask, part["weigh"])  # (B, H, T, D)
        return part["merge"](output) @ weight["out"]  # (B, T, d_model)

    return run


def latent_layer(scale: Callable[[int], float]) -> Layer:
    """Latent attention, called like `layer()`: expanded for many queries, absorbed for one, with scale(T) for T."""
    rotary = RotaryEmbedding(R, interleaved=True)

    def run(x: Tensor, *, cache: Cache | None = None, real: Tensor | None = None, offset: int = 0) -> Tensor:
        T, S = x.shape[1], x.shape[1] + (cache.length if cache else 0)
        weight = {name: w.to(x) for name, w in WEIGHTS.items()}
        real = torch.ones(len(x), S, dtype=torch.bool, device=x.device) if real is None else real
        place = (positions(real, T) + offset)[:, None]  # (B, 1, T)
        query, query_rope = split_heads(x @ weight["latent_query"], H).split([N, R], -1)
        query = torch.cat([query, apply_rotary(query_rope, place, rotary)], -1)  # (B, H, T, N + R)
        key_rope = apply_rotary((x @ weight["key_rope"])[:, None], place, rotary)
        entries = torch.cat([(x @ weight["latent"])[:, None], key_rope], -1)  # (B, 1, T, C + R)
        if cache is not None:
            entries = cache.append(entries, entries[..., :0])[0]  # (B, 1, S, C + R)
        way = expanded_attention if T > 1 else absorbed_attention
        output = way(query, entries, UP_KEY.to(x), UP_VALUE.to(x), hide(real, T), scale=scale(T))
        return merge_heads(output) @ weight["out"]

    return run


# ---- the parts as they were ----


def share_in_turn(kv: Tensor, n_heads: int) -> Tensor:
    """ABAB: query head h gets key-value head h mod G."""
    return kv.repeat(1, n_heads // kv.shape[1], 1, 1)


def merge_without_transpose(x: Tensor) -> Tensor:
    """The shape is right; a row holds one head of several tokens."""
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


def hide_by_tiling(real: Tensor, T: int) -> Tensor:
    """One mask for each head, flat, as `nn.MultiheadAttention` wants them: but sample b's head h is b·H + h there."""
    B, S = real.shape
    return real.repeat(H, 1).view(B, H, 1, S)


def allowed_top_left(T: int, S: int, cached: bool) -> Tensor:
    """What `is_causal=True` of PyTorch's function draws: query 0 sees key 0."""
    return torch.ones(T, S, dtype=torch.bool).tril()


def allowed_all_if_cached(T: int, S: int, cached: bool) -> Tensor:
    """With a cache there is one new token, which may see everything. Or so it was thought."""
    return torch.ones(T, S, dtype=torch.bool) if cached else causal_mask(T, S)


def allowed_inverted(T: int, S: int, cached: bool) -> Tensor:
    """True where it is forbidden, given to a function that reads True as allowed."""
    return torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)


def allowed_near_and_one(T: int, S: int, cached: bool) -> Tensor:
    """W tokens back, and the token itself."""
    return sliding_window_mask(T, S, window=W + 1)


def weigh_minus_a_billion(scores: Tensor, mask: Tensor) -> Tensor:
    """A number for minus infinity."""
    return scores.masked_fill(~mask, -1e9).softmax(-1)


def weigh_to_nan(scores: Tensor, mask: Tensor) -> Tensor:
    """A row of minus infinities divides 0 by 0."""
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def hide_queries(real: Tensor, T: int) -> Tensor:
    """An axis too early: (B, 1, T, 1) hides what padding would ask, not what it would answer."""
    return real[:, -T:][:, None, :, None]


def weigh_ten_thousand(scores: Tensor, mask: Tensor) -> Tensor:
    """The fill that kept the axis above from being noticed."""
    return scores.masked_fill(~mask, -10000.0).softmax(-1)


def weigh_over_queries(scores: Tensor, mask: Tensor) -> Tensor:
    """Each key shares itself out among the queries."""
    return masked_softmax(scores.mT, mask.mT).mT


def key_features_less_their_maximum(key: Tensor, epsilon: float = 1e-4) -> Tensor:
    """The largest exponent of all keys, early and late, is taken from each."""
    u = at_least_float32(key) * key.shape[-1] ** -0.25
    exponents = u @ projection(key).mT - u.square().sum(-1, keepdim=True) / 2
    largest = exponents.amax((-1, -2), keepdim=True)
    return ((exponents - largest).exp() + epsilon) / math.sqrt(FEATURES)


def positions_restart(real: Tensor, T: int) -> Tensor:
    """Counted from 0 in every call."""
    return torch.arange(T, device=real.device).expand(len(real), T)


def positions_with_padding(real: Tensor, T: int) -> Tensor:
    """Padding at the left counts."""
    return torch.arange(real.shape[1], device=real.device)[-T:].expand(len(real), T)


def rotate_in_its_dtype(x: Tensor, place: Tensor) -> Tensor:
    """Positions and angles in the dtype of x: bfloat16 has eight bits for them."""
    frequencies = 10000.0 ** (-torch.arange(0, D, 2, device=x.device) / D)
    angles = place[:, None, :, None].to(x.dtype) * frequencies.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


def rotate_pairs(x: Tensor, place: Tensor) -> Tensor:
    """Number 2i with number 2i + 1, for weights that were made for halves."""
    return apply_rotary(x, place[:, None], PAIRS)


def rotate_pairs_by_halves(x: Tensor, place: Tensor) -> Tensor:
    """Pairs of neighbours, whose two numbers are turned by different angles: that is no rotation."""
    frequencies = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64, device=x.device) / D)
    angles = (place[:, None, :, None] * frequencies).repeat(1, 1, 1, 2).to(at_least_float32(x).dtype)
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return x * angles.cos().to(x) + turned * angles.sin().to(x)


def rotate_by_head(x: Tensor, place: Tensor) -> Tensor:
    """Along the wrong axis: head h is turned as if it stood at position h, and no token by its own."""
    heads = torch.arange(x.shape[1], device=x.device)
    return apply_rotary(x.transpose(1, 2), heads, HALVES).transpose(1, 2)


def stored_repeated(kv: Tensor) -> Tensor:
    """Copied for every query head, and only then stored."""
    return share(kv, H)


def attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weigh: Callable) -> Tensor:
    """A function knows no `eval()`: it drops whenever it is told to."""
    return F.dropout(weigh(query @ key.mT * query.shape[-1] ** -0.5, mask), 0.1, training=True) @ value


def scale_of_keys(T: int) -> float:
    """A query meets keys of N + R numbers, whatever the form that computes it."""
    return (N + R) ** -0.5


def scale_of_entries(T: int) -> float:
    """For a prompt, the size of what the cache keeps."""
    return (C + R) ** -0.5 if T > 1 else (N + R) ** -0.5


def directions(n_draws: int, *, signs: bool, seed: int = 0) -> Tensor:
    """Orthogonal directions (n_draws, D, D) from QR; without the signs of R, whichever the routine prefers."""
    q, r = torch.linalg.qr(drawn(n_draws, D, D, seed=seed))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None] if signs else q
    return q.mT  # a direction in every row


def drawn_rows(n_draws: int, *, signs: bool) -> Tensor:
    """The directions at the lengths of normal vectors: (n_draws, D, D)."""
    return directions(n_draws, signs=signs) * drawn(n_draws, D, D, seed=1).norm(dim=-1, keepdim=True)


# ---- five properties: each gives how far a layer is from having it ----


def tokens(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Input of a layer, spread out."""
    return (2 * drawn(*shape, D_MODEL, seed=99)).to(device)


def far(difference: Tensor) -> float:
    """The largest absolute number; NaN counts as infinitely far."""
    return difference.detach().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def influence(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> float:
    """Largest norm of ∂y_i/∂x_j where token i should not see token j; infinite where it should and does not."""
    x = tokens(1, T, device=device).requires_grad_()
    y = f(x) @ tokens(1)[0].to(x)  # (1, T): a mixture of each output's numbers
    rows = torch.stack([torch.autograd.grad(y[0, i], x, retain_graph=True)[0][0].norm(dim=-1) for i in range(T)])
    sees = exhibit.sees(T, T, False).to(device)
    return math.inf if (sees & (rows == 0)).any() else far(rows.masked_fill(sees, 0.0))


def chunks(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> float:
    """A sequence in one pass, against 3, 1 and 4 tokens with a cache; without padding and with it."""
    x, whole = tokens(B, T, device=device), torch.ones(B, T, dtype=torch.bool, device=device)
    errors = []
    for real in (whole, lengths_as_mask((8, 5, 6), left=True, device=device)):
        cache, pieces = Cache(), []
        for piece in x.split((3, 1, 4), 1):
            pieces.append(f(piece, cache=cache, real=real[:, : cache.length + piece.shape[1]]))
        errors.append(far((torch.cat(pieces, 1) - f(x, real=real))[real]))
    return max(errors)


def order(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> float:
    """Sequences of a batch in another order; and all positions 5 later, where only differences should count."""
    x, real = tokens(B, T, device=device), lengths_as_mask((8, 5, 6), left=False, device=device)
    turned = f(x.flip(0), real=real.flip(0)).flip(0)
    found = far((turned - f(x, real=real))[real])
    return found if exhibit.absolute else max(found, far(f(x, offset=5) - f(x)))


def padding(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> float:
    """Sequences of 8, 5 and 0 tokens, padded at the left, against each alone; what sees nothing must be zero."""
    x, real = tokens(B, T, device=device), lengths_as_mask((8, 5, 0), left=True, device=device)
    together = f(x, real=real)
    alone = torch.zeros_like(together)
    for b, n in enumerate((8, 5)):
        alone[b, T - n :] = f(x[b : b + 1, T - n :])[0]
    return far(together - alone)


def low_precision(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> float:
    """float16 and bfloat16 far into a text, against float64: the error of the outputs in units of one rounding."""
    errors = []
    for dtype in (torch.float16, torch.bfloat16):
        x = tokens(B, T, device=device).to(dtype)
        offset = {} if exhibit.absolute else {"offset": 4000}
        exact = f(x.double(), **offset)
        errors.append(far(f(x, **offset).double() - exact) / exact.abs().max().item() / torch.finfo(dtype).eps)
    return max(errors)


def lengths_as_mask(lengths: tuple[int, ...], *, left: bool, device: str = "cpu") -> Tensor:
    """True for the last (left) or first so many of T tokens: (B, T)."""
    place = torch.arange(T, device=device)
    place = place.flip(0) if left else place
    return place < torch.tensor(lengths, device=device)[:, None]


@dataclass(frozen=True)
class Property:
    """A test that needs no other implementation: what it is called, what it measures, how much it lets pass."""

    title: str
    measure: Callable[[Layer, "Exhibit", str], float]
    tolerance: float


PROPERTIES = {
    "influence": Property("influence by gradient", influence, 1e-12),
    "chunks": Property("chunks", chunks, 1e-9),
    "order": Property("shift and order", order, 1e-9),
    "padding": Property("padding and empty rows", padding, 1e-9),
    "low_precision": Property("low precision", low_precision, 16.0),
}


def tested(f: Layer, exhibit: "Exhibit", device: str = "cpu") -> dict[str, float]:
    """How far a layer is from each property; a test that cannot even run is infinitely far."""
    found = {}
    for name, test in PROPERTIES.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                found[name] = test.measure(f, exhibit, device)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                found[name] = math.inf
    return found


def caught(found: dict[str, float]) -> list[str]:
    """The properties that a layer lacks."""
    return [name for name, value in found.items() if value > PROPERTIES[name].tolerance]


# ---- the exhibits ----


@dataclass(frozen=True)
class Exhibit:
    """A bug: where it was found, and the layer with it and without.

    wrong and right: the part that differs. shows: in which call outputs differ ("whole", "chunks", "padded",
    "bfloat16, at 4,000"). number, measure: another number, where outputs do not tell. library: the installed one's
    error, where it is still there. needs: what finds the bug if no property does. also: where else it was reported.
    """

    name: str
    title: str
    section: str
    project: str
    source: str
    reported: str
    state: str
    happened: str
    wrong: Callable
    right: Callable
    replaces: str = ""
    shows: str = "whole"
    number: str = "largest difference of outputs"
    measure: Callable[[], float] | None = None
    library: Callable[[str], float] | None = None
    needs: str = "another implementation"
    more: dict[str, Any] = field(default_factory=dict)
    absolute: bool = False
    sees: Callable = allowed
    also: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """Such as "issue 108108" or "pull request 7274"."""
        *_, kind, number = self.source.split("/")
        return f"{'issue' if kind == 'issues' else 'pull request'} {number}"

    @property
    def elsewhere(self) -> str:
        """Such as "onnx/onnx#7274, …": the way GitHub writes it."""
        return ", ".join("#".join(re.split("/(?:issues|pull)/", path)) for path in self.also)

    def layer(self, *, wrong: bool) -> Layer:
        """The layer with the bug, or the same without."""
        part = self.wrong if wrong else self.right
        if self.replaces == "scale":
            return latent_layer(part)
        if self.replaces == "key_features":
            return layer(attend=kernel_attend(part), absolute=self.absolute)
        if self.replaces == "directions":
            lines = drawn_rows(FEATURES // D, signs=not wrong).flatten(0, 1)

            def rows(x: Tensor) -> Tensor:
                return lines.to(x.device, at_least_float32(x).dtype)

            return layer(attend=kernel_attend(partial(key_features, rows=rows), rows), absolute=self.absolute)
        return layer(**{self.replaces: part}, **(self.more if wrong else {}), absolute=self.absolute)

    def difference(self, device: str = "cpu") -> float:
        """The number that shows the bug: how far the wrong layer's outputs are from the right one's, or `measure`."""
        if self.measure is not None:
            return self.measure()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = [SITUATIONS[self.shows](self.layer(wrong=wrong), device) for wrong in (True, False)]
        return far(outputs[0].double() - outputs[1].double())


def _in_chunks(f: Layer, device: str) -> Tensor:
    cache = Cache()
    return torch.cat([f(piece, cache=cache) for piece in tokens(B, T, device=device).float().split((3, 1, 4), 1)], 1)


SITUATIONS: dict[str, Callable[[Layer, str], Tensor]] = {
    "whole": lambda f, device: f(tokens(B, T, device=device).float()),
    "chunks": _in_chunks,
    "padded": lambda f, device: f(
        tokens(B, T, device=device).float(), real=lengths_as_mask((8, 5, 0), left=True, device=device)
    ),
    "bfloat16, at 4,000": lambda f, device: f(tokens(B, T, device=device).bfloat16(), offset=4000),
}


def leaning(*, signs: bool = False) -> float:
    """Relative error of the estimate of exp(q·k / √D), the mean of 4,000 draws, for two vectors along (1, 1, …, 1).

    The scatter of that mean is below one hundredth.
    """
    query = key = torch.full((D,), 0.5 * D**-0.5, dtype=torch.float64)  # already times D^(-1/4)
    rows = drawn_rows(4000, signs=signs)
    estimates = (rows @ (query + key) - (query.square().sum() + key.square().sum()) / 2).exp().mean()
    return abs(estimates.item() / (query @ key).exp().item() - 1)


def stored_share() -> float:
    """Bytes stored, against what the layer needs."""
    sizes = []
    for part in (stored_repeated, stored):
        cache = Cache()
        layer(stored=part)(tokens(B, T), cache=cache)
        sizes.append(cache.nbytes)
    return sizes[0] / sizes[1]


def _library_alignment(device: str) -> float:
    query, key, value = tokens(3, T, device=device).float()[:, None].unbind(0)
    ours = attend(query[:, -3:], key, value, causal_mask(3, T).to(device), weigh)
    theirs = F.scaled_dot_product_attention(query[:, -3:], key, value, is_causal=True)
    return far(theirs - ours)


def _library_empty_rows(device: str) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(D_MODEL, H, batch_first=True).to(device).requires_grad_(False)
    x, everything = tokens(1, T, device=device).float(), torch.ones(1, T, dtype=torch.bool, device=device)
    return far(attention(x, x, x, key_padding_mask=everything, need_weights=True)[0])


def _library_dropout(device: str) -> float:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    attention, x = Attention().eval(), tokens(1, T, device=device).float()
    return far(attention(x) - attention(x))


def _github(path: str) -> str:
    return f"https://github.com/{path}"


EXHIBITS = {
    exhibit.name: exhibit
    for exhibit in (
        Exhibit(
            "shared_heads",
            "ABAB for AABB",
            "Heads in the wrong order",
            "ONNX",
            _github("onnx/onnx/pull/7274"),
            "2025-09",
            "mended since: the reference at commit 04138e0 repeats in place",
            "The standard's attention operator tiled the shared heads; PyTorch repeats each in its place.",
            share_in_turn,
            share,
            "share",
            also=("apple/axlearn/pull/842", "ekzhang/jax-js/pull/180"),
        ),
        Exhibit(
            "merged_heads",
            "A reshape without a transpose",
            "Heads in the wrong order",
            "transformer-from-scratch",
            _github("jsbaan/transformer-from-scratch/pull/6"),
            "2025-05",
            "fixed 2026-03",
            "The heads were joined before their axis was moved, so a row held pieces of several tokens.",
            merge_without_transpose,
            merge,
            "merge",
        ),
        Exhibit(
            "tiled_masks",
            "Another sample's padding",
            "Heads in the wrong order",
            "CLIP4Clip",
            _github("ArrowLuo/CLIP4Clip/issues/22"),
            "2021-07",
            "fixed 2021-07 by pull request 24",
            "Masks were tiled, not repeated, so heads of one sample got the padding of others.",
            hide_by_tiling,
            hide,
            "hide",
            shows="padded",
            also=("line/lighthouse/pull/77",),
        ),
        Exhibit(
            "alignment",
            "A triangle from the wrong corner",
            "A mask that shows the wrong keys",
            "PyTorch",
            _github("pytorch/pytorch/issues/108108"),
            "2023-08",
            "open; documented",
            "With fewer queries than keys, is_causal=True lets the first query see the first key only.",
            allowed_top_left,
            allowed,
            "allowed",
            shows="chunks",
            library=_library_alignment,
            also=("pytorch/pytorch/issues/103082", "pytorch/pytorch/issues/144858"),
        ),
        Exhibit(
            "skipped_mask",
            "No mask, because there is a cache",
            "A mask that shows the wrong keys",
            "TinyLLM",
            _github("Mikyx-1/TinyLLM/issues/17"),
            "2026-07",
            "fixed 2026-07 by pull request 18",
            "The causal mask was applied only without a cache, so a prompt read into one saw its own future.",
            allowed_all_if_cached,
            allowed,
            "allowed",
            shows="chunks",
        ),
        Exhibit(
            "inverted_mask",
            "True means forbidden",
            "A mask that shows the wrong keys",
            "LLMs-from-scratch",
            _github("rasbt/LLMs-from-scratch/pull/1062"),
            "2026-08",
            "fixed 2026-08",
            "A mask that marks what is forbidden went to a function that reads what is allowed.",
            allowed_inverted,
            allowed,
            "allowed",
        ),
        Exhibit(
            "window",
            "One key too many",
            "A window off by one",
            "transformers",
            _github("huggingface/transformers/issues/39408"),
            "2025-07",
            "fixed 2025-08 by pull request 40163",
            "A window of W keys was given to FlashAttention as W keys to the left, besides the token's own.",
            allowed_near_and_one,
            allowed_near,
            "allowed",
            sees=allowed_near,
            also=("huggingface/transformers/issues/29623", "vllm-project/vllm/issues/3385"),
        ),
        Exhibit(
            "half_fill",
            "A number that float16 does not have",
            "Minus a billion",
            "darts",
            _github("unit8co/darts/pull/3087"),
            "2026-04",
            "fixed 2026-04",
            "Forbidden scores were filled with -1e9, and float16 ends at -65,504.",
            weigh_minus_a_billion,
            weigh,
            "weigh",
            shows="padded",
            also=(
                "facebookresearch/fairseq/issues/3575",
                "tatp22/linformer-pytorch/pull/19",
                "huggingface/transformers/pull/27114",
                "NVIDIA-NeMo/Automodel/pull/2658",
            ),
        ),
        Exhibit(
            "empty_rows",
            "Nothing divided by nothing",
            "Rows that see nothing",
            "PyTorch",
            _github("pytorch/pytorch/issues/160064"),
            "2025-08",
            "open; the fused function gives zeros since pull requests 131060 and 133882",
            "Asked for weights, nn.MultiheadAttention gives NaN where a row may see nothing.",
            weigh_to_nan,
            weigh,
            "weigh",
            shows="padded",
            library=_library_empty_rows,
        ),
        Exhibit(
            "padding_axis",
            "A mask on the wrong axis",
            "Rows that see nothing",
            "hyunwoongko/transformer",
            _github("hyunwoongko/transformer/pull/40"),
            "2025-10",
            "open",
            "The decoder's padding was hidden as a query; a finite fill made its rows averages instead of NaN.",
            hide_queries,
            hide,
            "hide",
            shows="padded",
            more={"weigh": weigh_ten_thousand},
        ),
        Exhibit(
            "softmax_axis",
            "Weights that do not sum to one",
            "Rows that see nothing",
            "labml's annotated implementations",
            _github("labmlai/annotated_deep_learning_paper_implementations/issues/146"),
            "2022-09",
            "open; confirmed by the author, and mended in the code since",
            "The softmax ran over the queries instead of the keys; images came out as good as before.",
            weigh_over_queries,
            weigh,
            "weigh",
        ),
        Exhibit(
            "future_maximum",
            "A maximum over all keys",
            "A maximum over the future",
            "performer-pytorch",
            _github("lucidrains/performer-pytorch/issues/82"),
            "2022-01",
            "open",
            "Keys were made small by the largest exponent of all keys, which tells early outputs about late tokens.",
            key_features_less_their_maximum,
            key_features,
            "key_features",
            absolute=True,
        ),
        Exhibit(
            "leaning_directions",
            "Directions that lean one way",
            "A maximum over the future",
            "performer-pytorch",
            _github("lucidrains/performer-pytorch/issues/8"),
            "2020-10",
            "closed: an option, off by default",
            "Random directions came from QR without the signs of R, and so preferred one half of the space.",
            directions,
            directions,
            "directions",
            number="relative error of the mean of 4,000 estimates",
            measure=leaning,
            needs="a mean of many draws",
            absolute=True,
            also=("idiap/fast-transformers/issues/87",),
        ),
        Exhibit(
            "restarted",
            "Position 0 for every new token",
            "Positions that start again",
            "mlx-vlm",
            _github("Blaizzy/mlx-vlm/issues/1983"),
            "2026-08",
            "fixed 2026-08 by pull request 1993",
            "Positions were counted inside each call, so every generated token stood at position 0.",
            positions_restart,
            positions,
            "positions",
            shows="chunks",
            also=("lucidrains/rotary-embedding-torch/issues/11",),
        ),
        Exhibit(
            "counted_padding",
            "Padding that counts",
            "Positions that start again",
            "nnsight",
            _github("ndif-team/nnsight/issues/672"),
            "2026-06",
            "fixed 2026-06 by pull request 673",
            "Padding at the left moved every token of a shorter prompt to a later learned position.",
            positions_with_padding,
            positions,
            "positions",
            shows="padded",
            absolute=True,
        ),
        Exhibit(
            "low_angles",
            "Angles in bfloat16",
            "Positions that start again",
            "transformers",
            _github("huggingface/transformers/pull/29285"),
            "2024-02",
            "fixed 2024-02",
            "Under autocast positions and angles were computed in bfloat16, which knows no odd number above 256.",
            rotate_in_its_dtype,
            rotate,
            "rotate",
            shows="bfloat16, at 4,000",
        ),
        Exhibit(
            "other_pairs",
            "Pairs for halves",
            "Pairs, halves and heads",
            "nanotron",
            _github("huggingface/nanotron/issues/241"),
            "2024-11",
            "open; pull request 427 of 2026 would mend it",
            "Converted weights were laid out for one way of pairing numbers, whichever way the model used.",
            rotate_pairs,
            rotate,
            "rotate",
        ),
        Exhibit(
            "half_angles",
            "Two angles for one pair",
            "Pairs, halves and heads",
            "V-JEPA 2",
            _github("facebookresearch/vjepa2/pull/15"),
            "2025-06",
            "open",
            "Numbers were paired with their neighbours, and angles laid out as if for halves.",
            rotate_pairs_by_halves,
            rotate,
            "rotate",
        ),
        Exhibit(
            "rotated_heads",
            "Heads that have positions",
            "Pairs, halves and heads",
            "xformers",
            _github("facebookresearch/xformers/issues/841"),
            "2023-08",
            "open",
            "The axis that was taken for the tokens held the heads, so no token was turned by its position.",
            rotate_by_head,
            rotate,
            "rotate",
        ),
        Exhibit(
            "repeated_cache",
            "A cache of copies",
            "Memory, mode and scale",
            "torchtune",
            _github("meta-pytorch/torchtune/issues/38"),
            "2023-11",
            "fixed 2024-11 by pull request 1961",
            "Shared heads were copied for every query head before they were stored.",
            stored_repeated,
            stored,
            "stored",
            number="bytes stored, as a multiple of what is needed",
            measure=stored_share,
            needs="a count of bytes",
        ),
        Exhibit(
            "dropout",
            "Dropout that does not stop",
            "Memory, mode and scale",
            "PyTorch, and modules that call it",
            _github("pytorch/pytorch/issues/124464"),
            "2024-04",
            "closed: documented",
            "The functional form has no notion of eval(): modules passed on dropout_p as it was.",
            attend_with_dropout,
            attend,
            "attend",
            library=_library_dropout,
        ),
        Exhibit(
            "latent_scale",
            "The scale of what is stored",
            "Memory, mode and scale",
            "vLLM",
            _github("vllm-project/vllm/pull/41569"),
            "2026-05",
            "fixed 2026-05",
            "Prompts were scaled by the size of the latent entry, 576, instead of the size of a key, 192.",
            scale_of_entries,
            scale_of_keys,
            "scale",
        ),
    )
}


def measured(device: str = "cpu") -> list[dict[str, Any]]:
    """Of every exhibit: its number, its properties with the bug and without, what catches it, and the seconds."""
    _library_empty_rows(device)  # torch imports more at the first such call, which no exhibit shall pay for
    rows = []
    for exhibit in EXHIBITS.values():
        start = time.perf_counter()
        wrong, right = (tested(exhibit.layer(wrong=wrong), exhibit, device) for wrong in (True, False))
        rows.append(
            {
                "name": exhibit.name,
                "difference": exhibit.difference(device),
                "wrong": wrong,
                "right": right,
                "caught": caught(wrong),
                "library": None if exhibit.library is None else exhibit.library(device),
                "seconds": time.perf_counter() - start,
            }
        )
    return rows


def main() -> None:
    """Print the exhibits, what was measured, and how long it took."""
    rows = measured("cuda" if torch.cuda.is_available() else "cpu")
    for row in rows:
        exhibit = EXHIBITS[row["name"]]
        print(f"{row['name']:20}{row['seconds']:6.2f} s {row['difference']:10.3g}  {exhibit.source}")
        print(f"{'':20}caught by: {', '.join(row['caught']) or exhibit.needs}")
    print(f"{len(rows)} exhibits, {sum(row['seconds'] for row in rows):.2f} s")


if __name__ == "__main__":
    main()
