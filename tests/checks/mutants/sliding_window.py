"""Chapter 08 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/sliding_window.py: the styles differ on purpose (tril,
triu, loops, slices, unfold), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from tests.checks.mutants import Answers

ANSWERS = Answers("sliding_window")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- near_mask: mistakes ----------------------------------------------------------------------------------------


@mutant("near_mask", "too_wide")
def _(T, S, window):
    ones = torch.ones(T, S)
    return (torch.tril(ones, S - T) - torch.tril(ones, S - T - window - 1)).bool()


@mutant("near_mask", "too_narrow")
def _(T, S, window):
    i, j = torch.arange(T)[:, None] + S - T, torch.arange(S)
    return (j <= i) & (j > i - window + 1)


@mutant("near_mask", "halved")
def _(T, S, window):
    ones = torch.ones(T, S)
    return torch.tril(ones, S - T).bool() & torch.triu(ones, S - T - window // 2).bool()


@mutant("near_mask", "symmetric")
def _(T, S, window):
    return (torch.arange(S) - torch.arange(S - T, S).unsqueeze(-1)).abs() < window


@mutant("near_mask", "future_open")
def _(T, S, window):
    return torch.triu(torch.ones(T, S), diagonal=S - T - window + 1) > 0


@mutant("near_mask", "transposed")
def _(T, S, window):
    ones = torch.ones(T, S, dtype=torch.bool)
    return ones.triu(S - T) & ones.tril(S - T + window - 1)


@mutant("near_mask", "self_left_out")
def _(T, S, window):
    i, j = torch.arange(S - T, S)[:, None], torch.arange(S)[None, :]
    return (j < i) & (i - j < window)


@mutant("near_mask", "whole_before")
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (behind > 0) & (behind <= window)


@mutant("near_mask", "no_brackets")
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (behind >= 0) & behind < window


@mutant("near_mask", "slice_wraps")
def _(T, S, window):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        p = S - T + i
        mask[i, p - window + 1 : p + 1] = True
    return mask


@mutant("near_mask", "blocks")
def _(T, S, window):
    rows = [[j // window == i // window and j <= i for j in range(S)] for i in range(S - T, S)]
    return torch.tensor(rows)


@mutant("near_mask", "two_blocks")
def _(T, S, window):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        place = S - T + i
        start = max(0, (place // window - 1) * window)
        mask[i, start : place + 1] = True
    return mask


@mutant("near_mask", "window_ignored")
def _(T, S, window):
    return torch.tril(torch.ones(T, S), diagonal=S - T).bool()


@mutant("near_mask", "top_left")
def _(T, S, window):
    ones = torch.ones(T, S)
    return torch.tril(ones).bool() & torch.triu(ones, 1 - window).bool()


@mutant("near_mask", "square")
def _(T, S, window):
    place = torch.arange(T)
    behind = place[:, None] - place[None, :]
    return (behind >= 0) & (behind < window)


@mutant("near_mask", "inverted")
def _(T, S, window):
    ones = torch.ones(T, S, dtype=torch.bool)
    return ones.triu(S - T + 1) | ones.tril(S - T - window)


@mutant("near_mask", "floats")
def _(T, S, window):
    return torch.tril(torch.ones(T, S), S - T).triu(S - T - window + 1)


@pair("near_mask", "no_brackets", "top_left")
def _(T, S, window):
    behind = torch.arange(T)[:, None] - torch.arange(S)
    return (behind >= 0) & behind < window


@pair("near_mask", "slice_wraps", "too_wide")
def _(T, S, window):
    mask = torch.zeros(T, S).bool()
    for i, p in enumerate(range(S - T, S)):
        mask[i, p - window : p + 1] = True
    return mask


@pair("near_mask", "slice_wraps", "self_left_out")
def _(T, S, window):
    mask = torch.zeros(T, S).bool()
    for i, p in enumerate(range(S - T, S)):
        mask[i, p - window + 1 : p] = True
    return mask


@pair("near_mask", "slice_wraps", "whole_before")
def _(T, S, window):
    mask = torch.zeros(T, S).bool()
    for i, p in enumerate(range(S - T, S)):
        mask[i, p - window : p] = True
    return mask


@pair("near_mask", "slice_wraps", "top_left")
def _(T, S, window):
    mask = torch.zeros(T, S).bool()
    for i in range(T):
        mask[i, i - window + 1 : i + 1] = True
    return mask


@pair("near_mask", "slice_wraps", "symmetric")
def _(T, S, window):
    mask = torch.zeros(T, S).bool()
    for i, p in enumerate(range(S - T, S)):
        mask[i, p - window + 1 : p + window] = True
    return mask


@pair("near_mask", "slice_wraps", "floats")
def _(T, S, window):
    mask = torch.zeros(T, S)
    for i, p in enumerate(range(S - T, S)):
        mask[i, p - window + 1 : p + 1] = 1
    return mask


@pair("near_mask", "top_left", "whole_before")
def _(T, S, window):
    behind = torch.arange(T)[:, None] - torch.arange(S)
    return (behind > 0) & (behind <= window)


@pair("near_mask", "symmetric", "whole_before")
def _(T, S, window):
    distance = (torch.arange(S - T, S)[:, None] - torch.arange(S)).abs()
    return (distance > 0) & (distance <= window)


@pair("near_mask", "symmetric", "halved")
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return behind.abs() <= window // 2


@pair("near_mask", "symmetric", "too_wide")
def _(T, S, window):
    return (torch.arange(S - T, S)[:, None] - torch.arange(S)).abs() <= window


@pair("near_mask", "top_left", "too_wide")
def _(T, S, window):
    return torch.ones(T, S).tril().triu(-window).bool()


@pair("near_mask", "top_left", "floats")
def _(T, S, window):
    return torch.ones(T, S).tril().triu(1 - window)


@pair("near_mask", "top_left", "symmetric")
def _(T, S, window):
    return (torch.arange(T)[:, None] - torch.arange(S)[None]).abs() < window


@pair("near_mask", "top_left", "window_ignored")
def _(T, S, window):
    return torch.ones(T, S).tril().bool()


@pair("near_mask", "top_left", "blocks")
def _(T, S, window):
    i, j = torch.arange(T)[:, None], torch.arange(S)
    return (i // window == j // window) & (j <= i)


@pair("near_mask", "blocks", "symmetric")
def _(T, S, window):
    return torch.arange(S - T, S)[:, None] // window == torch.arange(S) // window


@pair("near_mask", "inverted", "too_wide")
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (behind < 0) | (behind > window)


@form("near_mask", "or where and belongs", None)
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (behind >= 0) | (behind < window)


@form("near_mask", "no brackets round the first comparison", "window_ignored")
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return behind >= 0 & (behind < window)


@form("near_mask", "only the far edge of the window", None)
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return behind == window - 1


@form("near_mask", "what has left the window", None)
def _(T, S, window):
    return torch.ones(T, S).tril(S - T - window).bool()


@form("near_mask", "every query sees the last keys of all", None)
def _(T, S, window):
    return (torch.arange(S) >= S - window).expand(T, S)


@form("near_mask", "blocks counted from the first query", None)
def _(T, S, window):
    i, j = torch.arange(T)[:, None], torch.arange(S) - (S - T)
    return (i // window == torch.div(j, window, rounding_mode="floor")) & (j <= i)


@form("near_mask", "with axes for batch and heads", None)
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return ((behind >= 0) & (behind < window))[None, None]


@form("near_mask", "to be added to scores", None)
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return torch.zeros(T, S).masked_fill((behind < 0) | (behind >= window), -math.inf)


@form("near_mask", "one of the two comparisons turned round", None)
def _(T, S, window):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (behind >= 0) & (behind > window)


# --- near_mask: right answers -----------------------------------------------------------------------------------


@right("near_mask", "tril and triu")
def _(T, S, window):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T - window + 1)


@right("near_mask", "slices in a loop")
def _(T, S, window):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        end = S - T + i + 1
        mask[i, max(0, end - window) : end] = True
    return mask


@right("near_mask", "a list of lists")
def _(T, S, window):
    return torch.tensor([[0 <= S - T + i - j < window for j in range(S)] for i in range(T)])


@right("near_mask", "the last rows of the square one")
def _(T, S, window):
    square = torch.ones(S, S)
    return (torch.tril(square) - torch.tril(square, -window))[-T:] == 1


@right("near_mask", "membership")
def _(T, S, window):
    seen = torch.arange(S - T, S)[:, None] - torch.arange(window)  # (T, W)
    return (seen[:, :, None] == torch.arange(S)).any(1)


# --- neighbour_blocks: mistakes ---------------------------------------------------------------------------------


def _cut(x, block):
    B, H, T, D = x.shape
    return x.reshape(B, H, T // block, block, D)


def _shifted(own):
    """The block before each one, zeros before the first."""
    return F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :-1]


@mutant("neighbour_blocks", "wraps_around")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([torch.roll(own, shifts=1, dims=2), own], dim=3)


@mutant("neighbour_blocks", "first_repeated")
def _(x, block):
    own = _cut(x, block)
    before = [own[:, :, max(n - 1, 0)] for n in range(own.shape[2])]
    return torch.cat([torch.stack(before, 2), own], dim=-2)


@mutant("neighbour_blocks", "infinite_before")
def _(x, block):
    own = _cut(x, block)
    nothing = torch.full_like(own[:, :, :1], -math.inf)
    return torch.cat([torch.cat([nothing, own[:, :, :-1]], dim=2), own], dim=3)


@mutant("neighbour_blocks", "next_block")
def _(x, block):
    own = _cut(x, block)
    after = F.pad(own, (0, 0, 0, 0, 0, 1))[:, :, 1:]
    return torch.cat([after, own], dim=3)


@mutant("neighbour_blocks", "own_first")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own, _shifted(own)], dim=3)


@mutant("neighbour_blocks", "own_twice")
def _(x, block):
    return _cut(x, block).repeat(1, 1, 1, 2, 1)


@mutant("neighbour_blocks", "one_token")
def _(x, block):
    before = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)
    return torch.cat([_cut(before, block), _cut(x, block)], dim=3)


@mutant("neighbour_blocks", "over_heads")
def _(x, block):
    own = _cut(x, block)
    before = torch.cat([torch.zeros_like(own[:, :1]), own[:, :-1]], dim=1)
    return torch.cat([before, own], dim=3)


@mutant("neighbour_blocks", "strided")
def _(x, block):
    N = x.shape[2] // block
    own = torch.stack([x[:, :, n::N] for n in range(N)], dim=2)
    return torch.cat([_shifted(own), own], dim=3)


@mutant("neighbour_blocks", "block_for_count")
def _(x, block):
    own = torch.stack(x.chunk(block, dim=2), dim=2)
    return torch.cat([_shifted(own), own], dim=3)


@mutant("neighbour_blocks", "alternating")
def _(x, block):
    B, H, T, D = x.shape
    own = _cut(x, block)
    return torch.cat([_shifted(own), own], dim=-1).reshape(B, H, T // block, 2 * block, D)


@mutant("neighbour_blocks", "on_numbers")
def _(x, block):
    own = _cut(x, block)
    return torch.cat((_shifted(own), own), -1)


@mutant("neighbour_blocks", "on_blocks")
def _(x, block):
    own = _cut(x, block)
    return torch.cat((_shifted(own), own), 2)


@mutant("neighbour_blocks", "first_left_out")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own[:, :, :-1], own[:, :, 1:]], dim=3)


@pair("neighbour_blocks", "next_block", "own_first")
def _(x, block):
    own = _cut(x, block)
    after = torch.cat([own[:, :, 1:], torch.zeros_like(own[:, :, -1:])], dim=2)
    return torch.cat([own, after], dim=3)


@pair("neighbour_blocks", "infinite_before", "own_first")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own, F.pad(own, (0, 0, 0, 0, 1, 0), value=-math.inf)[:, :, :-1]], dim=3)


@pair("neighbour_blocks", "infinite_before", "alternating")
def _(x, block):
    own = _cut(x, block)
    before = F.pad(own, (0, 0, 0, 0, 1, 0), value=-math.inf)[:, :, :-1]
    return torch.stack([before, own], dim=-2).flatten(3, 4)


@pair("neighbour_blocks", "infinite_before", "one_token")
def _(x, block):
    before = F.pad(x, (0, 0, 1, 0), value=-math.inf)[:, :, :-1]
    return torch.cat([_cut(before, block), _cut(x, block)], dim=3)


@pair("neighbour_blocks", "wraps_around", "own_first")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own, own.roll(1, dims=2)], dim=3)


@pair("neighbour_blocks", "wraps_around", "alternating")
def _(x, block):
    own = _cut(x, block)
    return torch.stack([own.roll(1, 2), own], dim=-2).flatten(3, 4)


@pair("neighbour_blocks", "wraps_around", "on_numbers")
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own.roll(1, 2), own], dim=4)


@pair("neighbour_blocks", "strided", "wraps_around")
def _(x, block):
    B, H, T, D = x.shape
    own = x.reshape(B, H, block, T // block, D).transpose(2, 3)
    return torch.cat([own.roll(1, 2), own], dim=3)


@pair("neighbour_blocks", "block_for_count", "wraps_around")
def _(x, block):
    B, H, T, D = x.shape
    own = x.reshape(B, H, block, T // block, D)
    return torch.cat([own.roll(1, 2), own], dim=3)


@form("neighbour_blocks", "rolled by one token", None)
def _(x, block):
    return torch.cat([_cut(x.roll(1, 2), block), _cut(x, block)], dim=3)


@form("neighbour_blocks", "the other direction of roll", None)
def _(x, block):
    own = _cut(x, block)
    return torch.cat([own.roll(-1, 2), own], dim=3)


@form("neighbour_blocks", "block and numbers exchanged", None)
def _(x, block):
    B, H, T, D = x.shape
    own = x.reshape(B, H, T // block, D, block)
    return torch.cat([_shifted(own), own], dim=4).mT


@form("neighbour_blocks", "windows that overlap, a step of one token", None)
def _(x, block):
    return F.pad(x, (0, 0, block, 0)).unfold(2, 2 * block, 1).mT


@form("neighbour_blocks", "ones before the first", None)
def _(x, block):
    own = _cut(x, block)
    return torch.cat([torch.cat([torch.ones_like(own[:, :, :1]), own[:, :, :-1]], 2), own], 3)


@form("neighbour_blocks", "the heads joined with the batch", None)
def _(x, block):
    own = _cut(x, block)
    return torch.cat([_shifted(own), own], dim=3).flatten(0, 1)


@form("neighbour_blocks", "zeros after the last one too", None)
def _(x, block):
    own = F.pad(_cut(x, block), (0, 0, 0, 0, 1, 1))
    return torch.cat([own[:, :, :-1], own[:, :, 1:]], dim=3)


# --- neighbour_blocks: right answers ----------------------------------------------------------------------------


@right("neighbour_blocks", "zeros in front, then two slices")
def _(x, block):
    B, H, T, D = x.shape
    padded = torch.cat([x.new_zeros(B, H, block, D), x], dim=2)
    return torch.cat([_cut(padded[:, :, :T], block), _cut(x, block)], dim=3)


@right("neighbour_blocks", "unfold")
def _(x, block):
    return F.pad(x, (0, 0, block, 0)).unfold(2, 2 * block, block).transpose(-1, -2)


@right("neighbour_blocks", "a list of blocks")
def _(x, block):
    blocks = list(x.split(block, dim=2))
    before = [torch.zeros_like(blocks[0]), *blocks[:-1]]
    return torch.stack([torch.cat(two, dim=2) for two in zip(before, blocks, strict=True)], dim=2)


@right("neighbour_blocks", "roll, then zeros")
def _(x, block):
    own = _cut(x, block)
    there = (torch.arange(own.shape[2]) > 0).view(-1, 1, 1)
    return torch.cat([own.roll(1, 2) * there, own], dim=3)


@right("neighbour_blocks", "a gather of positions")
def _(x, block):
    starts = torch.arange(0, x.shape[2], block)[:, None]
    return F.pad(x, (0, 0, block, 0))[:, :, starts + torch.arange(2 * block)]


# --- window_by_blocks: mistakes ---------------------------------------------------------------------------------


def _blocks(x, window, before=True):
    """x (B, H, T, D), filled up with zeros at the end, as (B, H, N, 2W, D): each block after the one before it."""
    B, H, T, D = x.shape
    n_blocks = math.ceil(T / window)
    own = F.pad(x, (0, 0, 0, n_blocks * window - T)).reshape(B, H, n_blocks, window, D)
    return torch.cat([_shifted(own), own], dim=3) if before else own


def _band(window, n_blocks, first=0, last=None, zeros=False):
    """(N, W, 2W), True where a key is between `first` and `last` tokens behind the query, W - 1 by default."""
    i, j = torch.arange(window)[:, None], torch.arange(-window, window)
    band = (i - j >= first) & (i - j <= (window - 1 if last is None else last))
    band = band.repeat(n_blocks, 1, 1)
    if not zeros:
        band[0, :, :window] = False
    return band


def _attend(query, key, value, window, mask, scale=True):
    """Attention of every block to its two blocks of keys, under mask (N, W, 2W)."""
    T = query.shape[2]
    scores = _blocks(query, window, before=False) @ _blocks(key, window).mT
    if scale:
        scores = scores / math.sqrt(query.shape[-1])
    weights = F.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, :T]


def _n(query, window):
    return math.ceil(query.shape[2] / window)


@mutant("window_by_blocks", "all_pairs")
def _(query, key, value, window):
    T = query.shape[2]
    mask = torch.ones(T, T).tril().triu(1 - window)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return F.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=-1) @ value


@mutant("window_by_blocks", "own_block_only")
def _(query, key, value, window):
    T = query.shape[2]
    q, k, v = (_blocks(x, window, before=False) for x in (query, key, value))
    later = torch.ones(window, window).triu(1).bool()
    scores = q @ k.mT / math.sqrt(query.shape[-1])
    return (F.softmax(scores.masked_fill(later, -math.inf), -1) @ v).flatten(2, 3)[:, :, :T]


@mutant("window_by_blocks", "no_band")
def _(query, key, value, window):
    causal = _band(window, _n(query, window), last=2 * window)
    return _attend(query, key, value, window, causal)


@mutant("window_by_blocks", "misaligned")
def _(query, key, value, window):
    ones = torch.ones(window, 2 * window)
    band = ones.tril().triu(1 - window).bool().repeat(_n(query, window), 1, 1)
    band[0, :, :window] = False
    return _attend(query, key, value, window, band)


@mutant("window_by_blocks", "zeros_seen")
def _(query, key, value, window):
    T = query.shape[2]
    ones = torch.ones(window, 2 * window)
    band = ones.tril(window).triu(1).bool()
    scores = _blocks(query, window, before=False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~band, -math.inf).softmax(-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, :T]


@mutant("window_by_blocks", "wraps_around")
def _(query, key, value, window):
    T = query.shape[2]
    q, k, v = (_blocks(x, window, before=False) for x in (query, key, value))
    keys, values = torch.cat([k.roll(1, 2), k], 3), torch.cat([v.roll(1, 2), v], 3)
    band = _band(window, 1, zeros=True)[0]
    scores = (q @ keys.mT / math.sqrt(query.shape[-1])).masked_fill(~band, -math.inf)
    return (scores.softmax(-1) @ values).flatten(2, 3)[:, :, :T]


@mutant("window_by_blocks", "too_wide")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window), last=window))


@mutant("window_by_blocks", "too_narrow")
def _(query, key, value, window):
    rows = []
    for i in range(query.shape[2]):
        seen = slice(max(0, i - window + 2), i + 1)
        scores = query[:, :, i : i + 1] @ key[:, :, seen].mT / math.sqrt(query.shape[-1])
        rows.append(scores.softmax(-1) @ value[:, :, seen] if window > 1 else value[:, :, i : i + 1] * math.nan)
    return torch.cat(rows, 2)


@mutant("window_by_blocks", "self_left_out")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window), first=1))


@mutant("window_by_blocks", "future_open")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window), first=-window))


@mutant("window_by_blocks", "mask_ignored")
def _(query, key, value, window):
    scores = torch.einsum("bhnid,bhnjd->bhnij", _blocks(query, window, False), _blocks(key, window))
    weights = torch.softmax(scores * query.shape[-1] ** -0.5, dim=-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@mutant("window_by_blocks", "mask_multiplies")
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~_band(window, _n(query, window)), 0.0), dim=-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@mutant("window_by_blocks", "mask_after")
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = torch.softmax(scores, dim=-1).masked_fill(~_band(window, _n(query, window)), 0.0)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@mutant("window_by_blocks", "inverted")
def _(query, key, value, window):
    return _attend(query, key, value, window, torch.logical_not(_band(window, _n(query, window))))


@mutant("window_by_blocks", "not_scaled")
def _(query, key, value, window):
    rows = []
    for i in range(query.shape[2]):
        seen = slice(max(0, i - window + 1), i + 1)
        weights = (query[:, :, i : i + 1] @ key[:, :, seen].mT).softmax(-1)
        rows.append(weights @ value[:, :, seen])
    return torch.cat(rows, 2)


@mutant("window_by_blocks", "no_root")
def _(query, key, value, window):
    return _attend(query / math.sqrt(query.shape[-1]), key, value, window, _band(window, _n(query, window)))


@mutant("window_by_blocks", "value_size")
def _(query, key, value, window):
    band = _band(window, _n(query, window))
    return _attend(query / math.sqrt(value.shape[-1]), key, value, window, band, scale=False)


@mutant("window_by_blocks", "over_queries")
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window)), -1e9).softmax(-2)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@mutant("window_by_blocks", "tail_dropped")
def _(query, key, value, window):
    full = query.shape[2] // window * window
    query, key, value = (x[:, :, :full] for x in (query, key, value))
    return _attend(query, key, value, window, _band(window, full // window, zeros=full == 0))


@mutant("window_by_blocks", "tail_zeros")
def _(query, key, value, window):
    output = torch.zeros(*query.shape[:3], value.shape[-1])
    for n in range(query.shape[2] // window):
        own = slice(n * window, (n + 1) * window)
        seen = slice(max(0, (n - 1) * window), (n + 1) * window)
        scores = query[:, :, own] @ key[:, :, seen].mT / math.sqrt(query.shape[-1])
        behind = torch.arange(own.start, own.stop)[:, None] - torch.arange(seen.start, seen.stop)
        scores = scores.masked_fill((behind < 0) | (behind >= window), -math.inf)
        output[:, :, own] = scores.softmax(-1) @ value[:, :, seen]
    return output


@pair("window_by_blocks", "all_pairs", "too_wide")
def _(query, key, value, window):
    T = query.shape[2]
    far = torch.ones(T, T).tril().triu(-window) == 0
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(far, -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "all_pairs", "no_band")
def _(query, key, value, window):
    T = query.shape[2]
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "all_pairs", "not_scaled")
def _(query, key, value, window):
    near = torch.ones(query.shape[2], query.shape[2]).tril().triu(1 - window).bool()
    return torch.where(near, query @ key.mT, -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "all_pairs", "own_block_only")
def _(query, key, value, window):
    place = torch.arange(query.shape[2])
    near = (place[:, None] // window == place // window) & (place[:, None] >= place)
    return torch.where(near, query @ key.mT / query.shape[-1] ** 0.5, -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "misaligned", "zeros_seen")
def _(query, key, value, window):
    i, j = torch.arange(window)[:, None], torch.arange(2 * window)
    band = (j <= i) & (i - j < window)
    return _attend(query, key, value, window, band.expand(_n(query, window), -1, -1))


@pair("window_by_blocks", "zeros_seen", "no_band")
def _(query, key, value, window):
    causal = _band(window, _n(query, window), last=2 * window, zeros=True)
    return _attend(query, key, value, window, causal)


@pair("window_by_blocks", "zeros_seen", "too_wide")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window), last=window, zeros=True))


@pair("window_by_blocks", "zeros_seen", "not_scaled")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window), zeros=True), scale=False)


@pair("window_by_blocks", "zeros_seen", "inverted")
def _(query, key, value, window):
    return _attend(query, key, value, window, ~_band(window, _n(query, window), zeros=True))


@pair("window_by_blocks", "zeros_seen", "tail_dropped")
def _(query, key, value, window):
    full = query.shape[2] // window * window
    query, key, value = (x[:, :, :full] for x in (query, key, value))
    return _attend(query, key, value, window, _band(window, full // window, zeros=True))


@pair("window_by_blocks", "own_block_only", "not_scaled")
def _(query, key, value, window):
    q, k, v = (_blocks(x, window, False) for x in (query, key, value))
    scores = (q @ k.mT).masked_fill(torch.ones(window, window).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).flatten(2, 3)[:, :, : query.shape[2]]


@pair("window_by_blocks", "all_pairs", "no_root")
def _(query, key, value, window):
    near = torch.ones(query.shape[2], query.shape[2]).tril().triu(1 - window).bool()
    return torch.where(near, query @ key.mT / query.shape[-1], -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "all_pairs", "value_size")
def _(query, key, value, window):
    near = torch.ones(query.shape[2], query.shape[2]).tril().triu(1 - window).bool()
    return torch.where(near, query @ key.mT / value.shape[-1] ** 0.5, -math.inf).softmax(-1) @ value


@pair("window_by_blocks", "zeros_seen", "no_root")
def _(query, key, value, window):
    query = query / query.shape[-1] ** 0.5
    return _attend(query, key, value, window, _band(window, _n(query, window), zeros=True))


@pair("window_by_blocks", "mask_ignored", "over_queries")
def _(query, key, value, window):
    weights = (_blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5).softmax(-2)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@pair("window_by_blocks", "mask_ignored", "not_scaled")
def _(query, key, value, window):
    weights = (_blocks(query, window, False) @ _blocks(key, window).mT).softmax(-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@form("window_by_blocks", "zeros in front instead of at the end, and seen", None)
def _(query, key, value, window):
    T, lacking = query.shape[2], -query.shape[2] % window
    query, key, value = (F.pad(x, (0, 0, lacking, 0)) for x in (query, key, value))
    return _attend(query, key, value, window, _band(window, _n(query, window)))[:, :, -T:]


@form("window_by_blocks", "the output's block and token axes exchanged", None)
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window)), -math.inf).softmax(-1)
    return (weights @ _blocks(value, window)).transpose(2, 3).flatten(2, 3)[:, :, : query.shape[2]]


@form("window_by_blocks", "the softmax over the queries of a block, with columns of -inf", "over_queries")
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window)), -math.inf).softmax(-2)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@form("window_by_blocks", "the softmax over the queries, the zeros not hidden", "over_queries")
def _(query, key, value, window):
    # The values of the zeros are zeros: what they get is lost, and no query loses by it.
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window), zeros=True), -1e9).softmax(-2)
    return (weights @ _blocks(value, window)).flatten(2, 3)[:, :, : query.shape[2]]


@form("window_by_blocks", "the last block not cut back", None)
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window)), -math.inf).softmax(-1)
    return (weights @ _blocks(value, window)).flatten(2, 3)


@form("window_by_blocks", "blocks left apart", None)
def _(query, key, value, window):
    scores = _blocks(query, window, False) @ _blocks(key, window).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~_band(window, _n(query, window)), -math.inf).softmax(-1)
    return weights @ _blocks(value, window)


@form("window_by_blocks", "all pairs, the mask from both sides", "all_pairs")
def _(query, key, value, window):
    place = torch.arange(query.shape[2])
    near = (place[:, None] - place).abs() < window
    return torch.where(near, query @ key.mT / query.shape[-1] ** 0.5, -math.inf).softmax(-1) @ value


@form("window_by_blocks", "all pairs, the far values set to zero too late", "all_pairs")
def _(query, key, value, window):
    near = torch.ones(query.shape[2], query.shape[2]).tril().triu(1 - window)
    exponentials = torch.exp(query @ key.mT / query.shape[-1] ** 0.5) * near
    return exponentials / exponentials.sum(-1, keepdim=True) @ value


# --- window_by_blocks: right answers ----------------------------------------------------------------------------


@right("window_by_blocks", "blocks and a band")
def _(query, key, value, window):
    return _attend(query, key, value, window, _band(window, _n(query, window)))


@right("window_by_blocks", "a loop over blocks")
def _(query, key, value, window):
    T, outputs = query.shape[2], []
    for start in range(0, T, window):
        rows, first = torch.arange(start, min(start + window, T)), max(0, start - window)
        q, k, v = query[:, :, rows], key[:, :, first : start + window], value[:, :, first : start + window]
        behind = rows[:, None] - torch.arange(first, first + k.shape[2])
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill((behind < 0) | (behind >= window), -math.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, dim=2)


@right("window_by_blocks", "einsum and an added mask")
def _(query, key, value, window):
    T, N = query.shape[2], _n(query, window)
    q, k, v = _blocks(query, window, False), _blocks(key, window), _blocks(value, window)
    added = torch.zeros(N, window, 2 * window, dtype=query.dtype).masked_fill(~_band(window, N), -torch.inf)
    weights = F.softmax(torch.einsum("bhnid,bhnjd->bhnij", q, k) * query.size(-1) ** -0.5 + added, dim=-1)
    return torch.einsum("bhnij,bhnjd->bhnid", weights, v).reshape(*query.shape[:2], -1, value.shape[-1])[:, :, :T]


@right("window_by_blocks", "filled up in front")
def _(query, key, value, window):
    lacking = -query.shape[2] % window
    query, key, value = (F.pad(x, (0, 0, lacking, 0)) for x in (query, key, value))
    i, j = torch.arange(window)[:, None], torch.arange(-window, window)
    place = torch.arange(0, query.shape[2], window)[:, None, None] + j  # (N, 1, 2W)
    band = (i >= j) & (i - j < window) & ((place >= lacking) | (i == j))  # what is filled up sees itself: no empty row
    return _attend(query, key, value, window, band)[:, :, lacking:]


@right("window_by_blocks", "every token with its own keys")
def _(query, key, value, window):
    keys = F.pad(key, (0, 0, window - 1, 0)).unfold(2, window, 1)  # (B, H, T, D, W)
    values = F.pad(value, (0, 0, window - 1, 0)).unfold(2, window, 1)
    missing = torch.arange(query.shape[2])[:, None] + torch.arange(window) < window - 1
    scores = torch.einsum("bhtd,bhtdw->bhtw", query, keys) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(missing, -math.inf).softmax(-1)
    return torch.einsum("bhtw,bhtdw->bhtd", weights, values)


@right("window_by_blocks", "three blocks, the next one hidden")
def _(query, key, value, window):
    T, N = query.shape[2], _n(query, window)
    q = _blocks(query, window, False)
    k, v = (
        F.pad(x, (0, 0, window, -T % window + window)).unfold(2, 3 * window, window).mT for x in (key, value)
    )  # (B, H, N, 3W, D)
    behind = torch.arange(window)[:, None] - torch.arange(-window, 2 * window)
    hidden = (
        (behind < 0)
        | (behind >= window)
        | (torch.arange(N)[:, None, None] * window - window < -torch.arange(3 * window))
    )
    scores = (q @ k.mT * query.shape[-1] ** -0.5).masked_fill(hidden, -1e9)
    return (scores.softmax(-1) @ v).flatten(2, 3)[:, :, :T]


# --- slot_positions: mistakes -----------------------------------------------------------------------------------


@mutant("slot_positions", "in_order")
def _(length, window):
    positions = torch.full((window,), -1)
    kept = torch.arange(max(0, length - window), length)
    positions[: len(kept)] = kept
    return positions


@mutant("slot_positions", "newest_last")
def _(length, window):
    return torch.arange(length - window, length).clamp(min=-1)


@mutant("slot_positions", "newest_first")
def _(length, window):
    return (length - 1 - torch.arange(window)).clamp(min=-1)


@mutant("slot_positions", "never_rolls")
def _(length, window):
    slots = torch.arange(window)
    return torch.where(slots < length, slots, -1)


@mutant("slot_positions", "one_more")
def _(length, window):
    slots = torch.arange(window)
    positions = length - (length - slots) % window
    return torch.where(positions >= 0, positions, -1)


@mutant("slot_positions", "slots_from_one")
def _(length, window):
    positions = torch.full((window,), -1)
    for p in range(length):
        positions[(p + 1) % window] = p
    return positions


@mutant("slot_positions", "next_round")
def _(length, window):
    newest = length - 1
    if newest < 0:
        return torch.full((window,), -1)
    return newest // window * window + torch.arange(window)


@mutant("slot_positions", "current_round")
def _(length, window):
    positions = length // window * window + torch.arange(window)
    return torch.where(positions < length, positions, -1)


@mutant("slot_positions", "round_for_all")
def _(length, window):
    slots = torch.arange(window)
    return torch.where(slots < length, (length - 1) // window * window + slots, -1)


@mutant("slot_positions", "cleared")
def _(length, window):
    start = (length - 1) // window * window
    positions = start + torch.arange(window)
    return positions.masked_fill(positions >= length, -1).clamp(min=-1)


@mutant("slot_positions", "slot_numbers")
def _(length, window):
    slots = torch.arange(max(0, length - window), length) % window
    return F.pad(slots, (0, window - len(slots)), value=-1)


@mutant("slot_positions", "empty_zero")
def _(length, window):
    positions = torch.zeros(window, dtype=torch.long)
    for p in range(length):
        positions[p % window] = p
    return positions


@mutant("slot_positions", "empty_negative")
def _(length, window):
    return length - 1 - (length - 1 - torch.arange(window)) % window


@pair("slot_positions", "one_more", "empty_negative")
def _(length, window):
    return length - (length - torch.arange(window)) % window


@pair("slot_positions", "current_round", "empty_zero")
def _(length, window):
    positions = length // window * window + torch.arange(window)
    return positions * (positions < length)


@pair("slot_positions", "current_round", "round_for_all")
def _(length, window):
    slots = torch.arange(window)
    return (length // window * window + slots).masked_fill(slots >= length, -1)


@pair("slot_positions", "next_round", "one_more")
def _(length, window):
    return length // window * window + torch.arange(window)


@pair("slot_positions", "never_rolls", "empty_zero")
def _(length, window):
    positions = torch.zeros(window, dtype=torch.long)
    for p in range(min(length, window)):
        positions[p] = p
    return positions


@pair("slot_positions", "newest_last", "empty_zero")
def _(length, window):
    return torch.arange(length - window, length).clamp(min=0)


@pair("slot_positions", "slots_from_one", "empty_zero")
def _(length, window):
    positions = torch.zeros(window, dtype=torch.long)
    for p in range(length):
        positions[(p + 1) % window] = p
    return positions


@pair("slot_positions", "cleared", "empty_zero")
def _(length, window):
    positions = torch.zeros(window, dtype=torch.long)
    for p in range(length):
        if p % window == 0:
            positions = torch.zeros(window, dtype=torch.long)
        positions[p % window] = p
    return positions


@form("slot_positions", "floats", None)
def _(length, window):
    positions = torch.full((window,), -1.0)
    for p in range(length):
        positions[p % window] = p
    return positions


@form("slot_positions", "only the slots in use", None)
def _(length, window):
    return length - 1 - (length - 1 - torch.arange(min(length, window))) % window


@form("slot_positions", "rounds instead of positions", None)
def _(length, window):
    positions = torch.full((window,), -1)
    for p in range(length):
        positions[p % window] = p // window
    return positions


@form("slot_positions", "positions counted from one", None)
def _(length, window):
    positions = torch.full((window,), -1)
    for p in range(1, length + 1):
        positions[(p - 1) % window] = p
    return positions


@form("slot_positions", "every slot the newest", None)
def _(length, window):
    return torch.full((window,), length - 1)


# --- slot_positions: right answers ------------------------------------------------------------------------------


@right("slot_positions", "every token in turn")
def _(length, window):
    positions = torch.full((window,), -1)
    for p in range(length):
        positions[p % window] = p
    return positions


@right("slot_positions", "the last ones, each put into its slot")
def _(length, window):
    kept = torch.arange(max(0, length - window), length)
    positions = torch.full((window,), -1)
    positions[kept % window] = kept
    return positions


@right("slot_positions", "rolled")
def _(length, window):
    kept = torch.arange(length - window, length).clamp(min=-1)
    return kept.roll(length % window)


@right("slot_positions", "this round, or the one before")
def _(length, window):
    positions = length // window * window + torch.arange(window)
    positions = torch.where(positions < length, positions, positions - window)
    return torch.where(positions < 0, -1, positions)


@right("slot_positions", "a rest of the division that keeps its sign, the future hidden")
def _(length, window):
    positions = length - 1 - torch.fmod(length - 1 - torch.arange(window), window)
    return positions.masked_fill(positions >= length, -1)


@right("slot_positions", "the largest position of each slot")
def _(length, window):
    return torch.tensor([max((p for p in range(length) if p % window == s), default=-1) for s in range(window)])


# --- retained_tokens: mistakes ----------------------------------------------------------------------------------


@mutant("retained_tokens", "stays_zero")
def _(n_tokens, windows):
    total = torch.zeros_like(n_tokens)
    for window in windows:
        total + (n_tokens if window is None else n_tokens.clamp(max=window))
    return total


@mutant("retained_tokens", "larger")
def _(n_tokens, windows):
    return sum(n_tokens if w is None else n_tokens.clamp(min=w) for w in windows)


@mutant("retained_tokens", "windows_ignored")
def _(n_tokens, windows):
    return n_tokens * len(windows)


@mutant("retained_tokens", "global_left_out")
def _(n_tokens, windows):
    total = torch.zeros_like(n_tokens)
    for window in windows:
        if window is not None:
            total = total + n_tokens.clamp(max=window)
    return total


@mutant("retained_tokens", "global_capped")
def _(n_tokens, windows):
    widest = max((w for w in windows if w is not None), default=10**9)
    return torch.stack([n_tokens.clamp(max=w or widest) for w in windows]).sum(dim=0)


@mutant("retained_tokens", "always_full")
def _(n_tokens, windows):
    total = 0 * n_tokens
    for window in windows:
        total = total + (n_tokens if window is None else window)
    return total


@mutant("retained_tokens", "one_less")
def _(n_tokens, windows):
    return sum(n_tokens if w is None else n_tokens.clamp(max=w - 1) for w in windows)


@mutant("retained_tokens", "one_more")
def _(n_tokens, windows):
    return sum(n_tokens if w is None else n_tokens.clamp(max=w + 1) for w in windows)


@mutant("retained_tokens", "two_blocks")
def _(n_tokens, windows):
    return sum(n_tokens if w is None else torch.where(n_tokens < 2 * w, n_tokens, 2 * w) for w in windows)


@mutant("retained_tokens", "one_window")
def _(n_tokens, windows):
    local = [w for w in windows if w]
    kept = n_tokens * (len(windows) - len(local))
    return kept + len(local) * n_tokens.clamp(max=local[0]) if local else kept


@mutant("retained_tokens", "cut_for_all")
def _(n_tokens, windows):
    total = 0
    for window in windows:
        if window is not None:
            n_tokens = n_tokens.clamp(max=window)
        total = total + n_tokens
    return total


@mutant("retained_tokens", "largest_only")
def _(n_tokens, windows):
    if None in windows:
        return n_tokens.clone()
    return torch.minimum(n_tokens, torch.tensor(max(windows)))


@mutant("retained_tokens", "averaged")
def _(n_tokens, windows):
    layers = [n_tokens if w is None else n_tokens.clamp(max=w) for w in windows]
    return torch.stack(layers).float().mean(0)


@mutant("retained_tokens", "twice")
def _(n_tokens, windows):
    keys = sum(n_tokens if w is None else n_tokens.clamp(max=w) for w in windows)
    values = sum(n_tokens if w is None else n_tokens.clamp(max=w) for w in windows)
    return keys + values


@mutant("retained_tokens", "one_number")
def _(n_tokens, windows):
    return torch.stack([n_tokens if w is None else n_tokens.clamp(max=w) for w in windows]).sum()


@pair("retained_tokens", "global_left_out", "always_full")
def _(n_tokens, windows):
    return torch.full_like(n_tokens, sum(w for w in windows if w is not None))


@pair("retained_tokens", "always_full", "twice")
def _(n_tokens, windows):
    return 2 * sum(n_tokens * 0 + (n_tokens if w is None else w) for w in windows)


@pair("retained_tokens", "always_full", "one_number")
def _(n_tokens, windows):
    return sum(n_tokens * 0 + (n_tokens if w is None else w) for w in windows).sum()


@pair("retained_tokens", "windows_ignored", "one_number")
def _(n_tokens, windows):
    return n_tokens.sum() * len(windows)


@pair("retained_tokens", "windows_ignored", "twice")
def _(n_tokens, windows):
    return 2 * len(windows) * n_tokens


@pair("retained_tokens", "larger", "twice")
def _(n_tokens, windows):
    return 2 * sum(n_tokens if w is None else torch.clamp(n_tokens, min=w) for w in windows)


@pair("retained_tokens", "larger", "global_left_out")
def _(n_tokens, windows):
    total = torch.zeros_like(n_tokens)
    for window in windows:
        if window is not None:
            total += n_tokens.clamp(min=window)
    return total


@pair("retained_tokens", "larger", "one_number")
def _(n_tokens, windows):
    return sum(n_tokens if w is None else n_tokens.clamp(min=w) for w in windows).sum()


@pair("retained_tokens", "global_left_out", "one_less")
def _(n_tokens, windows):
    return sum((n_tokens.clamp(max=w - 1) for w in windows if w is not None), torch.zeros_like(n_tokens))


@pair("retained_tokens", "always_full", "one_window")
def _(n_tokens, windows):
    local = [w for w in windows if w is not None]
    return n_tokens * windows.count(None) + sum(local[:1]) * len(local)


@pair("retained_tokens", "cut_for_all", "always_full")
def _(n_tokens, windows):
    total = torch.zeros_like(n_tokens)
    for window in windows:
        n_tokens = n_tokens if window is None else torch.full_like(n_tokens, window)
        total = total + n_tokens
    return total


@form("retained_tokens", "cut in place", "cut_for_all")
def _(n_tokens, windows):
    return sum(n_tokens.clone() if w is None else n_tokens.clamp_(max=w).clone() for w in windows)


@form("retained_tokens", "a row for each layer", None)
def _(n_tokens, windows):
    return torch.stack([n_tokens if w is None else n_tokens.clamp(max=w) for w in windows])


@form("retained_tokens", "what is forgotten", None)
def _(n_tokens, windows):
    return sum(n_tokens * 0 if w is None else (n_tokens - w).clamp(min=0) for w in windows)


@form("retained_tokens", "a list of numbers", None)
def _(n_tokens, windows):
    return [sum(n if w is None else min(n, w) for w in windows) for n in n_tokens.tolist()]


@form("retained_tokens", "how far the stack reaches", None)
def _(n_tokens, windows):
    reach = n_tokens if None in windows else torch.full_like(n_tokens, sum(w - 1 for w in windows) + 1)
    return torch.minimum(n_tokens, reach)


@form("retained_tokens", "the window of a global layer taken for 0", "global_left_out")
def _(n_tokens, windows):
    return sum(n_tokens.clamp(max=w or 0) for w in windows)


# --- retained_tokens: right answers -----------------------------------------------------------------------------


@right("retained_tokens", "a loop over layers")
def _(n_tokens, windows):
    total = torch.zeros_like(n_tokens)
    for window in windows:
        total += n_tokens if window is None else torch.clamp(n_tokens, max=window)
    return total


@right("retained_tokens", "Python's numbers")
def _(n_tokens, windows):
    return torch.tensor([sum(min(n, n if w is None else w) for w in windows) for n in n_tokens.tolist()])


@right("retained_tokens", "a large number for None")
def _(n_tokens, windows):
    widths = torch.tensor([2**60 if w is None else w for w in windows])
    return torch.minimum(n_tokens[:, None], widths).sum(-1)


@right("retained_tokens", "global layers counted apart")
def _(n_tokens, windows):
    local = [w for w in windows if w is not None]
    total = (len(windows) - len(local)) * n_tokens
    for w in local:
        total = total + torch.where(n_tokens > w, w, n_tokens)
    return total


@right("retained_tokens", "what has left the windows taken away")
def _(n_tokens, windows):
    forgotten = sum((n_tokens - w).clamp(min=0) for w in windows if w is not None)
    return len(windows) * n_tokens - forgotten
