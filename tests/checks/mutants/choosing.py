"""Chapter 16 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/choosing.py: the styles differ on purpose (loops over
lists, Python's numbers, `where`, `stack`, sorting), because the check must recognise the mistake and not the code.
"""

import math
import statistics

import torch

from tests.checks.mutants import Answers

ANSWERS = Answers("choosing")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- roofline_ms: mistakes --------------------------------------------------------------------------------------


def _times(flop, moved, flop_per_s, bytes_per_s):
    return flop / flop_per_s * 1e3, moved / bytes_per_s * 1e3


@mutant("roofline_ms", "added")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return a + b, b > a


@mutant("roofline_ms", "faster")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.stack([a, b]).amin(0), b > a


@mutant("roofline_ms", "compute_only")
def _(flop, moved, flop_per_s, bytes_per_s):
    ridge = flop_per_s / bytes_per_s
    return 1000 * flop / flop_per_s, flop < ridge * moved


@mutant("roofline_ms", "transfer_only")
def _(flop, moved, flop_per_s, bytes_per_s):
    ridge = flop_per_s / bytes_per_s
    return 1000 * moved / bytes_per_s, flop < ridge * moved


@mutant("roofline_ms", "one_for_all")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    if b.sum() > a.sum():
        return b, torch.ones_like(b).bool()
    return a, torch.zeros_like(a).bool()


@mutant("roofline_ms", "swapped")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = 1000 * flop / bytes_per_s, 1000 * moved / flop_per_s
    return torch.maximum(a, b), b > a


@mutant("roofline_ms", "seconds")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / flop_per_s, moved / bytes_per_s
    return torch.where(b > a, b, a), b > a


@mutant("roofline_ms", "divided")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / flop_per_s, moved / bytes_per_s
    return torch.maximum(a, b) / 1000, b > a


@mutant("roofline_ms", "microseconds")
def _(flop, moved, flop_per_s, bytes_per_s):
    times = torch.stack([flop / flop_per_s, moved / bytes_per_s])
    return times.max(0).values * 10**6, times[1] > times[0]


@mutant("roofline_ms", "attainable")
def _(flop, moved, flop_per_s, bytes_per_s):
    intensity = flop / moved
    return (intensity * bytes_per_s).clamp(max=flop_per_s), intensity * bytes_per_s < flop_per_s


@mutant("roofline_ms", "upside_down")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop_per_s / flop, bytes_per_s / moved
    return 1000 * torch.maximum(a, b), b < a


@mutant("roofline_ms", "doubled")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(2 * flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), b > a


@mutant("roofline_ms", "bits")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved * 8, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), b > a


@mutant("roofline_ms", "through_attainable")
def _(flop, moved, flop_per_s, bytes_per_s):
    attainable = (flop / moved * bytes_per_s).clamp(max=flop_per_s)
    return 1000 * flop / attainable, attainable < flop_per_s


@mutant("roofline_ms", "inverted")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), a > b


@mutant("roofline_ms", "tie")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    slower = torch.maximum(a, b)
    return slower, slower == b


@mutant("roofline_ms", "counts_compared")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), flop / moved < 1


@mutant("roofline_ms", "ridge_upside_down")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), flop / moved < bytes_per_s / flop_per_s


@mutant("roofline_ms", "intensity_floored")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    intensity = torch.tensor([f // m for f, m in zip(flop.tolist(), moved.tolist(), strict=True)])
    return torch.maximum(a, b), intensity < flop_per_s / bytes_per_s


@mutant("roofline_ms", "ridge_floored")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.where(a < b, b, a), flop / moved < flop_per_s // bytes_per_s


@mutant("roofline_ms", "whole_seconds")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop // flop_per_s, moved // bytes_per_s
    return torch.maximum(a, b) * 1000, b > a


@form("roofline_ms", "both rounded down", "ridge_floored")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), flop // moved < flop_per_s // bytes_per_s


@pair("roofline_ms", "intensity_floored", "tie")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), flop // moved <= flop_per_s / bytes_per_s


@pair("roofline_ms", "inverted", "tie")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    slower = torch.maximum(a, b)
    return slower, slower == a


@pair("roofline_ms", "seconds", "added")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / flop_per_s, moved / bytes_per_s
    return a + b, b > a


@pair("roofline_ms", "seconds", "tie")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / flop_per_s, moved / bytes_per_s
    return torch.where(a > b, a, b), ~(a > b)


@pair("roofline_ms", "seconds", "faster")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / flop_per_s, moved / bytes_per_s
    return torch.where(a < b, a, b), b > a


@pair("roofline_ms", "through_attainable", "seconds")
def _(flop, moved, flop_per_s, bytes_per_s):
    attainable = (flop / moved * bytes_per_s).clamp(max=flop_per_s)
    return flop / attainable, attainable < flop_per_s


@pair("roofline_ms", "inverted", "faster")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.minimum(a, b), b < a


@pair("roofline_ms", "counts_compared", "inverted")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.maximum(a, b), flop > moved


@form("roofline_ms", "which binds as 0 and 1", None)
def _(flop, moved, flop_per_s, bytes_per_s):
    times = torch.stack(_times(flop, moved, flop_per_s, bytes_per_s))
    return tuple(times.max(0))


@form("roofline_ms", "the time alone", None)
def _(flop, moved, flop_per_s, bytes_per_s):
    return torch.maximum(*_times(flop, moved, flop_per_s, bytes_per_s))


@form("roofline_ms", "Python's max", None)
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return max(a, b), b > a


@form("roofline_ms", "the largest of all", None)
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.max(torch.stack([a, b])), b > a


@form("roofline_ms", "FLOP in teraflop", None)
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = flop / 1e12 / flop_per_s, moved / 1e9 / bytes_per_s
    return 1000 * torch.maximum(a, b), b > a


# --- roofline_ms: right answers ---------------------------------------------------------------------------------


@right("roofline_ms", "where")
def _(flop, moved, flop_per_s, bytes_per_s):
    a, b = _times(flop, moved, flop_per_s, bytes_per_s)
    return torch.where(b > a, b, a), b > a


@right("roofline_ms", "a loop")
def _(flop, moved, flop_per_s, bytes_per_s):
    pairs = [(f / flop_per_s, m / bytes_per_s) for f, m in zip(flop.tolist(), moved.tolist(), strict=True)]
    return torch.tensor([1000 * max(p) for p in pairs]), torch.tensor([p[1] > p[0] for p in pairs])


@right("roofline_ms", "by the ridge")
def _(flop, moved, flop_per_s, bytes_per_s):
    memory_bound = flop / moved < flop_per_s / bytes_per_s
    seconds = torch.where(memory_bound, moved / bytes_per_s, flop / flop_per_s)
    return seconds * 1000, memory_bound


@right("roofline_ms", "stacked")
def _(flop, moved, flop_per_s, bytes_per_s):
    found = torch.stack([flop / flop_per_s, moved / bytes_per_s], 1).max(1)
    return found.values * 1e3, found.indices == 1


@right("roofline_ms", "clamped")
def _(flop, moved, flop_per_s, bytes_per_s):
    transfer = moved / bytes_per_s
    seconds = (flop / flop_per_s).clamp(min=transfer)
    return 1000 * seconds, flop / flop_per_s < transfer


# --- largest_batch: mistakes ------------------------------------------------------------------------------------


def _kept(n_tokens, n_full, n_window, window):
    """Tokens (N,) in all layers together."""
    return n_full * n_tokens + n_window * torch.where(n_tokens < window, n_tokens, window)


@mutant("largest_batch", "weights_ignored")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return memory // (token_bytes * _kept(n_tokens, n_full, n_window, window))


@mutant("largest_batch", "weights_each")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return memory // (weights + token_bytes * _kept(n_tokens, n_full, n_window, window))


@mutant("largest_batch", "window_ignored")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return torch.clamp((memory - weights) // (token_bytes * n_tokens * (n_full + n_window)), min=0)


@mutant("largest_batch", "window_always")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * (n_full * n_tokens + n_window * window)
    return ((memory - weights) // each).relu()


@mutant("largest_batch", "window_raised")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * (n_full * n_tokens + n_window * n_tokens.maximum(torch.tensor(window)))
    return ((memory - weights) // each).relu()


@mutant("largest_batch", "window_forgotten")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return max(memory - weights, 0) // (token_bytes * n_tokens * n_full)


@mutant("largest_batch", "window_everywhere")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    found = []
    for n in n_tokens.tolist():
        each = token_bytes * (n_full + n_window) * min(n, window)
        found.append(max(0, (memory - weights) // each))
    return torch.tensor(found)


@mutant("largest_batch", "kinds_exchanged")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * _kept(n_tokens, n_window, n_full, window)
    return ((memory - weights) // each).clamp(min=0)


@mutant("largest_batch", "one_layer")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return torch.tensor([max(0, (memory - weights) // (token_bytes * n)) for n in n_tokens.tolist()])


@mutant("largest_batch", "doubled")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = 2 * token_bytes * _kept(n_tokens, n_full, n_window, window)
    return torch.tensor([max(0, (memory - weights) // e) for e in each.tolist()])


@mutant("largest_batch", "longest_for_all")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    longest = int(n_tokens.max())
    each = token_bytes * (n_full * longest + n_window * min(longest, window))
    return torch.full_like(n_tokens, max(0, (memory - weights) // each))


@mutant("largest_batch", "tokens")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * _kept(n_tokens, n_full, n_window, window)
    return ((memory - weights) // each).clamp(min=0) * n_tokens


@mutant("largest_batch", "rounded_up")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = (token_bytes * _kept(n_tokens, n_full, n_window, window)).tolist()
    return torch.tensor([max(0, math.ceil((memory - weights) / e)) for e in each])


@mutant("largest_batch", "strict")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    found = []
    for each in (token_bytes * _kept(n_tokens, n_full, n_window, window)).tolist():
        n = 0
        while weights + (n + 1) * each < memory:
            n += 1
        found.append(n)
    return torch.tensor(found)


@mutant("largest_batch", "rounded")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * _kept(n_tokens, n_full, n_window, window)
    return torch.floor((memory - weights) / each).clamp(min=0).to(torch.int64)


@mutant("largest_batch", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (token_bytes * _kept(n_tokens, n_full, n_window, window))


@mutant("largest_batch", "at_least_one")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = (token_bytes * _kept(n_tokens, n_full, n_window, window)).tolist()
    return torch.tensor([max(1, (memory - weights) // e) for e in each])


@mutant("largest_batch", "negative_truncated")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = (token_bytes * _kept(n_tokens, n_full, n_window, window)).tolist()
    return torch.tensor([int((memory - weights) / e) for e in each])


@mutant("largest_batch", "no_brackets")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return max(memory - weights, 0) // token_bytes * _kept(n_tokens, n_full, n_window, window)


@mutant("largest_batch", "tokens_not_bytes")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return torch.tensor([max(0, (memory - weights) // k) for k in _kept(n_tokens, n_full, n_window, window).tolist()])


@mutant("largest_batch", "nearest")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = (token_bytes * _kept(n_tokens, n_full, n_window, window)).tolist()
    return torch.tensor([max(0, round((memory - weights) / e)) for e in each])


@mutant("largest_batch", "one_batch")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    together = token_bytes * int(_kept(n_tokens, n_full, n_window, window).sum())
    return torch.full_like(n_tokens, max(0, (memory - weights) // together))


@pair("largest_batch", "negative", "tokens_not_bytes")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // _kept(n_tokens, n_full, n_window, window)


@pair("largest_batch", "negative", "no_brackets")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // token_bytes * _kept(n_tokens, n_full, n_window, window)


@pair("largest_batch", "rounded", "negative_truncated")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return ((memory - weights) / (token_bytes * _kept(n_tokens, n_full, n_window, window))).long()


@pair("largest_batch", "negative", "nearest")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * _kept(n_tokens, n_full, n_window, window)
    return torch.round((memory - weights) / each.double()).long()


@pair("largest_batch", "window_ignored", "weights_ignored")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return memory // (token_bytes * (n_full + n_window) * n_tokens)


@pair("largest_batch", "window_always", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (token_bytes * (n_full * n_tokens + n_window * window))


@pair("largest_batch", "window_ignored", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (token_bytes * n_tokens * (n_full + n_window))


@pair("largest_batch", "doubled", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (2 * token_bytes * _kept(n_tokens, n_full, n_window, window))


@pair("largest_batch", "rounded", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return ((memory - weights) / (token_bytes * _kept(n_tokens, n_full, n_window, window))).floor().long()


@pair("largest_batch", "one_layer", "negative")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (token_bytes * n_tokens)


@pair("largest_batch", "one_layer", "window_everywhere")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return ((memory - weights) // (token_bytes * n_tokens.clamp(max=window))).clamp(min=0)


@pair("largest_batch", "weights_ignored", "doubled")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return memory // (token_bytes * 2 * _kept(n_tokens, n_full, n_window, window))


@form("largest_batch", "all lengths in one batch", None)
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) // (token_bytes * _kept(n_tokens, n_full, n_window, window)).sum()


@form("largest_batch", "as a fraction", None)
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory - weights) / (token_bytes * _kept(n_tokens, n_full, n_window, window))


@form("largest_batch", "the window as a share of the layers", None)
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * (n_full * n_tokens + n_window * (n_tokens - window).clamp(min=0))
    return ((memory - weights) // each.clamp(min=1)).clamp(min=0)


@form("largest_batch", "the weights added to what is left", None)
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    return (memory + weights) // (token_bytes * _kept(n_tokens, n_full, n_window, window))


# --- largest_batch: right answers -------------------------------------------------------------------------------


@right("largest_batch", "a loop over the lengths")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    found = []
    for n in n_tokens.tolist():
        each = token_bytes * (n_full * n + n_window * min(n, window))
        found.append(max(0, (memory - weights) // each))
    return torch.tensor(found)


@right("largest_batch", "one more until it is full")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    found = []
    for n in n_tokens.tolist():
        each, taken, count = token_bytes * (n_full * n + n_window * min(n, window)), weights, 0
        while taken + each <= memory:
            taken, count = taken + each, count + 1
        found.append(count)
    return torch.tensor(found)


@right("largest_batch", "minimum and where")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    short = torch.minimum(n_tokens, torch.tensor(window))
    each = token_bytes * n_full * n_tokens + token_bytes * n_window * short
    return torch.where(each + weights <= memory, (memory - weights) // each, 0)


@right("largest_batch", "float64, rounded down")
def _(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
    each = token_bytes * (n_full * n_tokens + n_window * n_tokens.clamp(max=window))
    return (max(memory - weights, 0) / each.double()).floor().long()


# --- matched_width: mistakes ------------------------------------------------------------------------------------


def _spared(attention, reference):
    return (reference - attention).sum(dim=1)


@mutant("matched_width", "one_too_few")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // (attention.shape[1] * d_model)


@mutant("matched_width", "one_too_many")
def _(attention, reference, d_model, width):
    return width + torch.div(_spared(attention, reference), 3 * d_model * attention.shape[1], rounding_mode="floor")


@mutant("matched_width", "one_network")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // (2 * d_model)


@mutant("matched_width", "spread_twice")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    mean = (reference - attention).double().mean(1)
    return width + (mean / (2 * d_model * L)).floor().long()


@mutant("matched_width", "first_layer")
def _(attention, reference, d_model, width):
    return width + (reference - attention[:, 0]) // (2 * d_model)


@mutant("matched_width", "reference_once")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    return width + (reference - attention.sum(1)) // (2 * d_model * L)


@mutant("matched_width", "kept")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    return width + sum(attention[:, i] for i in range(L)) // (2 * L * d_model)


@mutant("matched_width", "sign")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    return width + (attention - reference).sum(1) // (2 * d_model * L)


@mutant("matched_width", "never_narrower")
def _(attention, reference, d_model, width):
    wider = _spared(attention, reference) // (2 * d_model * attention.shape[1])
    return (width + wider).clamp(min=width)


@mutant("matched_width", "by_width")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // (2 * width * attention.shape[1])


@mutant("matched_width", "proportional")
def _(attention, reference, d_model, width):
    whole = reference * attention.shape[1]
    return torch.tensor([width * whole // sum(row) for row in attention.tolist()])


@mutant("matched_width", "only_added")
def _(attention, reference, d_model, width):
    return torch.tensor([(len(row) * reference - sum(row)) // (2 * d_model * len(row)) for row in attention.tolist()])


@mutant("matched_width", "nearest")
def _(attention, reference, d_model, width):
    found = []
    for row in attention.tolist():
        spared = sum(reference - layer for layer in row)
        found.append(width + round(spared / (2 * d_model * len(row))))
    return torch.tensor(found)


@mutant("matched_width", "rounded_up")
def _(attention, reference, d_model, width):
    each = 2 * d_model * attention.shape[1]
    return width + (_spared(attention, reference).double() / each).ceil().long()


@mutant("matched_width", "towards_zero")
def _(attention, reference, d_model, width):
    found = []
    for row in attention.tolist():
        found.append(width + int((len(row) * reference - sum(row)) / (2 * d_model * len(row))))
    return torch.tensor(found)


@mutant("matched_width", "rounded")
def _(attention, reference, d_model, width):
    each = 2 * d_model * attention.shape[1]
    return width + torch.floor(_spared(attention, reference) / each).int().long()


@mutant("matched_width", "rounded_early")
def _(attention, reference, d_model, width):
    wider = (reference - attention) // (2 * d_model)  # (N, L)
    return width + wider.double().mean(1).floor().long()


@mutant("matched_width", "no_brackets")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // 2 * d_model * attention.shape[1]


@mutant("matched_width", "layers_multiplied")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    return width + _spared(attention, reference) // (2 * d_model) * L


@mutant("matched_width", "mean_rounded")
def _(attention, reference, d_model, width):
    means = [sum(row) // len(row) for row in attention.tolist()]
    return torch.tensor([width + (reference - mean) // (2 * d_model) for mean in means])


@mutant("matched_width", "n_is_models")
def _(attention, reference, d_model, width):
    n = len(attention)
    return width + (n * reference - attention.sum(1)) // (2 * d_model * n)


@pair("matched_width", "one_too_few", "one_network")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // d_model


@pair("matched_width", "no_brackets", "one_network")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // 2 * d_model


@pair("matched_width", "layers_multiplied", "only_added")
def _(attention, reference, d_model, width):
    return _spared(attention, reference) // (2 * d_model) * attention.shape[1]


@pair("matched_width", "mean_rounded", "one_too_few")
def _(attention, reference, d_model, width):
    return width + (reference - attention.sum(1) // attention.shape[1]) // d_model


@pair("matched_width", "rounded", "towards_zero")
def _(attention, reference, d_model, width):
    return width + ((reference - attention.float().mean(1)) / (2 * d_model)).long()


@pair("matched_width", "sign", "rounded_up")
def _(attention, reference, d_model, width):
    return width - _spared(attention, reference) // (2 * d_model * attention.shape[1])


@pair("matched_width", "reference_once", "one_network")
def _(attention, reference, d_model, width):
    return width + (reference - attention.sum(1)) // (2 * d_model)


@pair("matched_width", "one_too_few", "rounded_up")
def _(attention, reference, d_model, width):
    found = []
    for row in attention.tolist():
        found.append(width + math.ceil((len(row) * reference - sum(row)) / (d_model * len(row))))
    return torch.tensor(found)


@pair("matched_width", "only_added", "one_network")
def _(attention, reference, d_model, width):
    return _spared(attention, reference) // (d_model + d_model)


@pair("matched_width", "one_too_few", "towards_zero")
def _(attention, reference, d_model, width):
    each = d_model * attention.shape[1]
    return (width + (_spared(attention, reference).double() / each).trunc()).long()


@pair("matched_width", "kept", "sign")
def _(attention, reference, d_model, width):
    return width + (-attention.sum(1)) // (2 * d_model * attention.shape[1])


@pair("matched_width", "by_width", "one_network")
def _(attention, reference, d_model, width):
    return width + _spared(attention, reference) // (2 * width)


@pair("matched_width", "rounded_early", "one_network")
def _(attention, reference, d_model, width):
    for layer in attention.unbind(1):
        width = width + (reference - layer) // (2 * d_model)
    return width


@form("matched_width", "a width for each layer", None)
def _(attention, reference, d_model, width):
    return width + (reference - attention) // (2 * d_model)


@form("matched_width", "as floats", None)
def _(attention, reference, d_model, width):
    return (width + _spared(attention, reference) / (2 * d_model * attention.shape[1])).floor()


@form("matched_width", "the width as it was", None)
def _(attention, reference, d_model, width):
    return torch.full((len(attention),), width)


# --- matched_width: right answers -------------------------------------------------------------------------------


@right("matched_width", "a loop over the models")
def _(attention, reference, d_model, width):
    found = []
    for row in attention.tolist():
        spared = sum(reference - layer for layer in row)
        found.append(width + spared // (2 * d_model * len(row)))
    return torch.tensor(found)


@right("matched_width", "torch.div with floor")
def _(attention, reference, d_model, width):
    each = d_model * 2 * attention.shape[1]
    return torch.div((reference - attention).sum(1), each, rounding_mode="floor") + width


@right("matched_width", "all parameters, then the width")
def _(attention, reference, d_model, width):
    L = attention.shape[1]
    networks = L * (reference + 2 * d_model * width) - attention.sum(1)
    return networks // (2 * d_model * L)


@right("matched_width", "float64, rounded down")
def _(attention, reference, d_model, width):
    spared = (reference - attention).double().mean(1)
    return (width + spared / (2 * d_model)).floor().long()


@right("matched_width", "search")
def _(attention, reference, d_model, width):
    found = []
    for row in attention.tolist():
        here, most = width, len(row) * (reference + 2 * d_model * width)
        while sum(row) + len(row) * 2 * d_model * here > most:
            here -= 1
        while sum(row) + len(row) * 2 * d_model * (here + 1) <= most:
            here += 1
        found.append(here)
    return torch.tensor(found)


# --- pareto_front: mistakes -------------------------------------------------------------------------------------


def _front(cost, loss, beats):
    """True where no other model beats this one; beats(c, q, cost, loss): does (c, q) beat (cost, loss)?"""
    models = list(zip(cost.tolist(), loss.tolist(), strict=True))
    kept = []
    for i, here in enumerate(models):
        kept.append(not any(beats(*other, *here) for j, other in enumerate(models) if j != i))
    return torch.tensor(kept)


def _beats(c, q, cost, loss):
    return c <= cost and q <= loss and (c, q) != (cost, loss)


@mutant("pareto_front", "strict")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c < cost and q < loss)


@mutant("pareto_front", "equal_loss_kept")
def _(cost, loss):
    kept = [bool((loss[cost <= cost[i]] >= loss[i]).all()) for i in range(len(cost))]
    return torch.tensor(kept)


@mutant("pareto_front", "equal_cost_kept")
def _(cost, loss):
    kept = [bool((cost[loss <= loss[i]] >= cost[i]).all()) for i in range(len(cost))]
    return torch.tensor(kept)


@mutant("pareto_front", "twins_dropped")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c <= cost and q <= loss)


@mutant("pareto_front", "beats_itself")
def _(cost, loss):
    return ~((cost[None] <= cost[:, None]) & (loss[None] <= loss[:, None])).any(dim=1)


@mutant("pareto_front", "either")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c < cost or q < loss)


@mutant("pareto_front", "by_all")
def _(cost, loss):
    models = list(zip(cost.tolist(), loss.tolist(), strict=True))
    kept = []
    for i, here in enumerate(models):
        kept.append(not all(_beats(*other, *here) for j, other in enumerate(models) if j != i))
    return torch.tensor(kept)


@mutant("pareto_front", "beats_none")
def _(cost, loss):
    worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # column model is no better than row model
    same = (cost[:, None] == cost) & (loss[:, None] == loss)
    return ~(worse & ~same).any(1)


@mutant("pareto_front", "cheapest")
def _(cost, loss):
    return torch.tensor([c == min(cost.tolist()) for c in cost.tolist()])


@mutant("pareto_front", "best")
def _(cost, loss):
    return loss <= loss.min()


@mutant("pareto_front", "other_direction")
def _(cost, loss):
    return _front(cost, -loss, _beats)


@mutant("pareto_front", "dearer_wins")
def _(cost, loss):
    return _front(-cost, loss, _beats)


@mutant("pareto_front", "none_beaten")
def _(cost, loss):
    # The last comparison is the other way round than the first two.
    return _front(cost, loss, lambda c, q, cost, loss: c <= cost and q <= loss and (c > cost or q > loss))


@mutant("pareto_front", "second_twin")
def _(cost, loss):
    order = sorted(range(len(cost)), key=lambda i: (cost[i].item(), loss[i].item()))
    front, lowest = torch.zeros(len(cost), dtype=torch.bool), math.inf
    for i in order:
        if loss[i].item() < lowest:
            front[i], lowest = True, loss[i].item()
    return front


@mutant("pareto_front", "put_back_wrong")
def _(cost, loss):
    order = cost.argsort(stable=True)
    kept = _front(cost[order], loss[order], _beats)
    return torch.stack([kept[place] for place in order.tolist()])


@mutant("pareto_front", "given_order")
def _(cost, loss):
    kept, lowest = [], math.inf
    for q in loss.tolist():
        kept.append(q < lowest)
        lowest = min(lowest, q)
    return torch.tensor(kept)


@mutant("pareto_front", "no_brackets")
def _(cost, loss):
    c, q = cost.unsqueeze(1), loss.unsqueeze(1)
    return ~torch.any((c >= cost) & (q >= loss) & (c > cost) | (q > loss), dim=1)


@mutant("pareto_front", "in_cost_order")
def _(cost, loss):
    front, lowest = torch.zeros(len(cost), dtype=torch.bool), math.inf
    for i in sorted(range(len(cost)), key=lambda i: cost[i].item()):
        if loss[i] < lowest:
            front[i], lowest = True, loss[i].item()
    return front


@mutant("pareto_front", "neighbour")
def _(cost, loss):
    front, before = torch.zeros(len(cost), dtype=torch.bool), math.inf
    for i in sorted(range(len(cost)), key=lambda i: cost[i].item()):
        front[i], before = loss[i].item() < before, loss[i].item()
    return front


@mutant("pareto_front", "hull")
def _(cost, loss):
    front = _front(cost, loss, _beats)
    points = sorted({(c, q) for c, q, f in zip(cost.tolist(), loss.tolist(), front.tolist(), strict=True) if f})
    hull = []
    for x, y in points:  # Andrew's chain
        while len(hull) > 1:
            (a, b), (c, d) = hull[-2:]
            if (c - a) * (y - b) < (d - b) * (x - a):
                hull.pop()
            else:
                break
        hull.append((x, y))
    return torch.tensor([(c, q) in hull for c, q in zip(cost.tolist(), loss.tolist(), strict=True)])


@mutant("pareto_front", "sorted")
def _(cost, loss):
    order = torch.sort(cost, stable=True).indices
    return _front(cost[order], loss[order], _beats)


@mutant("pareto_front", "inverted")
def _(cost, loss):
    return (
        (cost <= cost[:, None]) & (loss <= loss[:, None]) & ((cost != cost[:, None]) | (loss != loss[:, None]))
    ).any(1)


@pair("pareto_front", "in_cost_order", "sorted")
def _(cost, loss):
    loss = loss[torch.sort(cost, stable=True).indices]
    before = torch.cat([torch.tensor([math.inf]), loss.cummin(0).values[:-1]])
    return loss < before


@pair("pareto_front", "in_cost_order", "equal_loss_kept")
def _(cost, loss):
    order = cost.argsort(stable=True)
    front = torch.zeros(len(cost), dtype=torch.bool)
    front[order] = loss[order] == loss[order].cummin(0).values
    return front


@pair("pareto_front", "in_cost_order", "put_back_wrong")
def _(cost, loss):
    order = cost.argsort(stable=True)
    before = torch.cat([torch.tensor([math.inf]), loss[order].cummin(0).values[:-1]])
    return (loss[order] < before)[order]


@pair("pareto_front", "in_loss_order", "equal_cost_kept")
def _(cost, loss):
    order = loss.argsort(stable=True)
    front = torch.zeros(len(cost), dtype=torch.bool)
    front[order] = cost[order] == cost[order].cummin(0).values
    return front


@pair("pareto_front", "no_brackets", "beats_none")
def _(cost, loss):
    c, q = cost[:, None], loss[:, None]
    return ~((cost <= c) & (loss <= q) & (cost < c) | (loss < q)).any(0)


@pair("pareto_front", "neighbour", "sorted")
def _(cost, loss):
    loss = loss[cost.argsort(stable=True)]
    return torch.cat([torch.tensor([True]), loss.diff() < 0])


@pair("pareto_front", "strict", "inverted")
def _(cost, loss):
    return ((cost < cost[:, None]) & (loss < loss[:, None])).any(1)


@pair("pareto_front", "twins_dropped", "inverted")
def _(cost, loss):
    others = ~torch.eye(len(cost)).bool()
    return ((cost <= cost[:, None]) & (loss <= loss[:, None]) & others).any(1)


@pair("pareto_front", "strict", "other_direction")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c < cost and q > loss)


@pair("pareto_front", "strict", "beats_none")
def _(cost, loss):
    return ~((cost < cost[:, None]) & (loss < loss[:, None])).any(0)


@pair("pareto_front", "either", "twins_dropped")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c <= cost or q <= loss)


@form("pareto_front", "both comparisons the wrong way round", "beats_none")
def _(cost, loss):
    return _front(cost, loss, lambda c, q, cost, loss: c >= cost and q >= loss and (c > cost or q > loss))


@form("pareto_front", "all in the place of any", "none_beaten")
def _(cost, loss):
    ahead = (cost < cost[:, None]) | (loss < loss[:, None])
    return ~((cost <= cost[:, None]) & (loss <= loss[:, None]) & ahead).all(1)


@form("pareto_front", "places instead of True and False", None)
def _(cost, loss):
    return _front(cost, loss, _beats).nonzero().flatten()


@form("pareto_front", "the smallest product", None)
def _(cost, loss):
    return cost * loss == (cost * loss).min()


@form("pareto_front", "below both medians", None)
def _(cost, loss):
    return (cost <= cost.median()) & (loss <= loss.median())


@form("pareto_front", "as numbers", None)
def _(cost, loss):
    return _front(cost, loss, _beats).float()


@mutant("pareto_front", "in_loss_order")
def _(cost, loss):
    front, lowest = torch.zeros(len(cost), dtype=torch.bool), math.inf
    for i in sorted(range(len(cost)), key=lambda i: loss[i].item()):
        if cost[i] < lowest:
            front[i], lowest = True, cost[i].item()
    return front


# --- pareto_front: right answers --------------------------------------------------------------------------------


@right("pareto_front", "a loop")
def _(cost, loss):
    kept = []
    for c, q in zip(cost, loss, strict=True):
        beats = (cost <= c) & (loss <= q) & ((cost < c) | (loss < q))
        kept.append(not beats.any())
    return torch.tensor(kept)


@right("pareto_front", "sets of numbers")
def _(cost, loss):
    return _front(cost, loss, _beats)


@right("pareto_front", "the best of all that are no dearer, and cheaper")
def _(cost, loss):
    lowest = torch.stack([loss[cost <= c].min() for c in cost])
    cheapest = torch.stack([cost[loss <= q].min() for q in loss])
    return (loss == lowest) & (cost == cheapest)


@right("pareto_front", "sorted by both")
def _(cost, loss):
    order = sorted(range(len(cost)), key=lambda i: (cost[i].item(), loss[i].item()))
    front, last = torch.zeros(len(cost), dtype=torch.bool), (None, math.inf)
    for i in order:
        here = (cost[i].item(), loss[i].item())
        if here[1] < last[1] or here == last:
            front[i], last = True, here
    return front


@right("pareto_front", "three comparisons of whole matrices")
def _(cost, loss):
    c, q = cost.unsqueeze(1), loss.unsqueeze(1)
    beaten = ((cost < c) & (loss <= q)) | ((cost <= c) & (loss < q))
    return beaten.sum(1) == 0


# --- paired_difference: mistakes --------------------------------------------------------------------------------


def _mean(a, b):
    return a.mean(1) - b.mean(1)


@mutant("paired_difference", "unpaired")
def _(losses_a, losses_b):
    n = losses_a.shape[1]
    return _mean(losses_a, losses_b), torch.sqrt(losses_a.var(1) / n + losses_b.var(1) / n)


@mutant("paired_difference", "one_covariance")
def _(losses_a, losses_b):
    errors = []
    for a, b in zip(losses_a, losses_b, strict=True):
        cov = torch.cov(torch.stack([a, b]))
        errors.append(((cov[0, 0] + cov[1, 1] - cov[0, 1]) / len(a)).sqrt())
    return _mean(losses_a, losses_b), torch.stack(errors)


@mutant("paired_difference", "spreads_subtracted")
def _(losses_a, losses_b):
    return _mean(losses_a, losses_b), (losses_a.std(1) - losses_b.std(1)) / losses_a.shape[1] ** 0.5


@mutant("paired_difference", "errors_added")
def _(losses_a, losses_b):
    return _mean(losses_a, losses_b), (losses_a.std(1) + losses_b.std(1)) / losses_a.shape[1] ** 0.5


@mutant("paired_difference", "only_a")
def _(losses_a, losses_b):
    return _mean(losses_a, losses_b), losses_a.std(1) / losses_a.shape[1] ** 0.5


@mutant("paired_difference", "population")
def _(losses_a, losses_b):
    d = (losses_a - losses_b).numpy()
    return torch.from_numpy(d.mean(1)), torch.from_numpy(d.std(1)) / d.shape[1] ** 0.5


@mutant("paired_difference", "not_divided")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1)


@mutant("paired_difference", "divided_by_n")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1) / d.shape[1]


@mutant("paired_difference", "no_brackets")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1) / d.shape[1] ** 1 / 2


@mutant("paired_difference", "twice_corrected")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(-1) / math.sqrt(d.shape[1] - 1)


@mutant("paired_difference", "variance")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.var(-1) / d.shape[1]


@mutant("paired_difference", "n_is_tasks")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1) / math.sqrt(len(d))


@mutant("paired_difference", "over_tasks")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    error = d.std(0) / len(d) ** 0.5 if len(d) > 1 else torch.full((d.shape[1],), math.nan)
    return d.mean(0), error


@mutant("paired_difference", "sign")
def _(losses_a, losses_b):
    d = losses_b - losses_a
    return d.mean(1), d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "absolute")
def _(losses_a, losses_b):
    d = (losses_a - losses_b).abs()
    return d.mean(1), d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "relative")
def _(losses_a, losses_b):
    d = losses_a / losses_b - 1
    return d.mean(1), d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "sorted")
def _(losses_a, losses_b):
    d = torch.sort(losses_a).values - torch.sort(losses_b).values
    return d.mean(1), d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "median")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    middle = [statistics.median_low(row) for row in d.tolist()]
    return torch.tensor(middle), d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "interval")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), 1.96 * d.std(1) / d.shape[1] ** 0.5


@mutant("paired_difference", "root_forgotten")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), torch.var(d, dim=1) / math.sqrt(d.shape[1])


@mutant("paired_difference", "multiplied")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(-1), d.std(-1) * math.sqrt(d.shape[-1])


@mutant("paired_difference", "all_counted")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return _mean(losses_a, losses_b), d.std(1) / math.sqrt(len(d.flatten()))


@mutant("paired_difference", "exchanged")
def _(losses_a, losses_b):
    error, mean = torch.std_mean(losses_a - losses_b, 1)
    return error / losses_a.shape[1] ** 0.5, mean


@pair("paired_difference", "exchanged", "not_divided")
def _(losses_a, losses_b):
    return torch.std_mean(losses_a - losses_b, dim=1)


@pair("paired_difference", "unpaired", "root_forgotten")
def _(losses_a, losses_b):
    return _mean(losses_a, losses_b), (losses_a.var(1) + losses_b.var(1)) / losses_a.shape[1] ** 0.5


@pair("paired_difference", "unpaired", "population")
def _(losses_a, losses_b):
    n = losses_a.shape[1]
    variance = losses_a.var(1, correction=0) + losses_b.var(1, correction=0)
    return _mean(losses_a, losses_b), (variance / n).sqrt()


@pair("paired_difference", "unpaired", "no_brackets")
def _(losses_a, losses_b):
    variance = losses_a.var(1) + losses_b.var(1)
    return _mean(losses_a, losses_b), variance**0.5 / losses_a.shape[1] ** 1 / 2


@pair("paired_difference", "unpaired", "not_divided")
def _(losses_a, losses_b):
    return _mean(losses_a, losses_b), torch.hypot(losses_a.std(1), losses_b.std(1))


@pair("paired_difference", "unpaired", "divided_by_n")
def _(losses_a, losses_b):
    variance = losses_a.var(1) + losses_b.var(1)
    return _mean(losses_a, losses_b), variance.sqrt() / losses_a.shape[1]


@pair("paired_difference", "population", "not_divided")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), (d**2).mean(1).sub(d.mean(1) ** 2).sqrt()


@pair("paired_difference", "sign", "unpaired")
def _(losses_a, losses_b):
    error = ((losses_a.var(1) + losses_b.var(1)) / losses_a.shape[1]).sqrt()
    return _mean(losses_b, losses_a), error


@pair("paired_difference", "interval", "unpaired")
def _(losses_a, losses_b):
    error = ((losses_a.var(1) + losses_b.var(1)) / losses_a.shape[1]).sqrt()
    return _mean(losses_a, losses_b), 1.96 * error


@pair("paired_difference", "over_tasks", "not_divided")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(0), d.std(0) if len(d) > 1 else torch.full((d.shape[1],), math.nan)


@form("paired_difference", "one error for all tasks", None)
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std() / d.numel() ** 0.5


@form("paired_difference", "the axis kept", None)
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1, keepdim=True), d.std(1, keepdim=True) / d.shape[1] ** 0.5


@form("paired_difference", "the mean of the absolute deviations", None)
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), (d - d.mean(1, keepdim=True)).abs().mean(1) / d.shape[1] ** 0.5


@form("paired_difference", "n counts both models", None)
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1) / (2 * d.shape[1]) ** 0.5


# --- paired_difference: right answers ---------------------------------------------------------------------------


@right("paired_difference", "step by step")
def _(losses_a, losses_b):
    n = losses_a.shape[-1]
    d = losses_a - losses_b
    mean = d.sum(-1) / n
    squares = ((d - mean[:, None]) ** 2).sum(-1)
    return mean, (squares / (n * (n - 1))).sqrt()


@right("paired_difference", "a loop")
def _(losses_a, losses_b):
    found = []
    for a, b in zip(losses_a.double(), losses_b.double(), strict=True):
        d = (a - b).tolist()
        found.append((statistics.fmean(d), statistics.stdev(d) / math.sqrt(len(d))))
    return tuple(torch.tensor(found, dtype=losses_a.dtype).T)


@right("paired_difference", "the population's deviation, corrected in the root")
def _(losses_a, losses_b):
    d = losses_a - losses_b
    return d.mean(1), d.std(1, correction=0) / (d.shape[1] - 1) ** 0.5


@right("paired_difference", "with the covariance")
def _(losses_a, losses_b):
    n = losses_a.shape[1]
    a, b = (x - x.mean(1, keepdim=True) for x in (losses_a, losses_b))
    variance = losses_a.var(1) + losses_b.var(1) - 2 * (a * b).sum(1) / (n - 1)
    return losses_a.mean(1) - losses_b.mean(1), (variance / n) ** 0.5
