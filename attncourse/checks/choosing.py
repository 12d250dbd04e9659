"""Exercises of chapter 16: time bounded, sequences counted, parameters matched, models compared, seeds paired."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "16_choosing"


# --- roofline_ms ------------------------------------------------------------------------------------------------


def roofline_ms(flop: Tensor, moved: Tensor, flop_per_s: float, bytes_per_s: float) -> tuple[Tensor, Tensor]:
    compute = flop / flop_per_s  # (N,) seconds
    transfer = moved / bytes_per_s  # (N,)
    slower = torch.maximum(compute, transfer)  # the device does both at once
    return 1000 * slower, transfer > compute


def faulty_roofline_ms(wrong: frozenset[str]) -> Callable:
    def roofline_ms(flop, moved, flop_per_s, bytes_per_s):
        flop, moved = flop.double(), moved.double()
        if "doubled" in wrong:
            flop = 2 * flop
        if "bits" in wrong:
            moved = 8 * moved
        peak, rate = (bytes_per_s, flop_per_s) if "swapped" in wrong else (flop_per_s, bytes_per_s)
        compute, transfer = flop / peak, moved / rate
        if "whole_seconds" in wrong:
            compute, transfer = compute.floor(), transfer.floor()
        slower = torch.maximum(compute, transfer)
        if "added" in wrong:
            slower = compute + transfer
        elif "faster" in wrong:
            slower = torch.minimum(compute, transfer)
        elif "compute_only" in wrong:
            slower = compute
        elif "transfer_only" in wrong:
            slower = transfer
        elif "attainable" in wrong:
            slower = torch.minimum(torch.full_like(flop, peak), flop / moved * rate) / 1000
        elif "upside_down" in wrong:
            slower = torch.maximum(peak / flop, rate / moved)
        sides = (moved, flop) if "counts_compared" in wrong else (transfer, compute)
        if "ridge_upside_down" in wrong:
            sides = torch.full_like(flop, rate / peak), flop / moved
        if "intensity_floored" in wrong or "ridge_floored" in wrong:
            ridge, intensity = torch.full_like(flop, peak / rate), flop / moved
            sides = (
                ridge.floor() if "ridge_floored" in wrong else ridge,
                intensity.floor() if "intensity_floored" in wrong else intensity,
            )
        if "one_for_all" in wrong:
            sides = sides[0].sum().expand_as(flop), sides[1].sum().expand_as(flop)
            slower = transfer if sides[0][0] > sides[1][0] else compute
        low, high = sides if "inverted" not in wrong else sides[::-1]
        bound = low >= high if "tie" in wrong else low > high
        if "through_attainable" in wrong:
            slower = slower.masked_fill(flop == 0, float("nan"))
        unit = 1 if "seconds" in wrong else 1e-3 if "divided" in wrong else 1e6 if "microseconds" in wrong else 1e3
        return (unit * slower).float(), bound

    return roofline_ms


def roofline_ms_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(16000 + seed)

    def script(name: str, flop: list[int], moved: list[int], flop_per_s: float, bytes_per_s: float) -> Script:
        counts = {"flop": torch.tensor(flop), "moved": torch.tensor(moved)}
        return one_call(name, {**counts, "flop_per_s": flop_per_s, "bytes_per_s": bytes_per_s})

    yield script("two pieces of work", [6000, 3000], [1000, 1250], 1e6, 2.5e5)
    # Powers of two, so that both take exactly as long, however that is compared.
    yield script("the second at the ridge", [2**15, 2**14, 2**12], [2**9, 2**11, 2**13], 2.0**20, 2.0**17)
    # The ridge is 13.33: the third piece has 13.64 FLOP a byte, the fourth 13.14.
    flop, moved = [0, 500_000, 90_000, 92_000, 2_000_000], [40_000, 60_000, 6_600, 7_000, 9_000]
    yield script("a copy, and four more", flop, moved, 4e8, 3e7)
    large = [7_000_000_000_000, 16_000_000_000, 2_100_000_000_000, 300_000_000_000, 1_400_000_000]
    read = [15_000_000_000, 16_000_000_000, 3_000_000_000, 6_000_000_000, 90_000_000]
    yield script("five on a large device", large, read, 989e12, 4.8e12)
    moved = (1e5 * 10 ** inputs.normal(6, spread=0.5)).long() + 1000
    side = torch.tensor([1, -1, 1, -1, -1, 1]) * (0.5 + inputs.normal(6).abs())  # never near the ridge, 25
    yield script("six of all kinds", (moved * 25 * 2**side).long().tolist(), moved.tolist(), 5e9, 2e8)


def _no_faster_than_either(call: Call, result: Result) -> bool:
    flop, moved, flop_per_s, bytes_per_s = call.arguments.values()
    most = 1000 * torch.maximum(flop / flop_per_s, moved / bytes_per_s)
    return bool((result.outputs[0] >= 0.999 * most).all())


ROOFLINE_MS = Exercise(
    id="choosing/roofline_ms",
    defines="roofline_ms",
    title="Bound the time by the roofline",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=roofline_ms_scripts,
    reference=roofline_ms,
    faulty=faulty_roofline_ms,
    outputs=(Output("milliseconds", "N"), Output("memory_bound", "N")),
    atol=0.0,
    properties=(Property("no piece of work is faster than either ceiling allows", _no_faster_than_either),),
    misconceptions=(
        Misconception(
            "added",
            "the two times are added",
            "The roofline supposes that a device computes while it reads and writes, so the longer of the two times "
            "counts. The sum is for a device that does one after the other.",
            "Play",
        ),
        Misconception(
            "faster",
            "the shorter of the two times is taken",
            "All FLOP must be done and all bytes moved: the work ends when the slower of the two has ended.",
            "Play",
        ),
        Misconception(
            "compute_only",
            "only the FLOP count",
            "A decoding step has few FLOP for each byte, and waits for memory. Take the larger of the two times.",
            "Measure",
        ),
        Misconception(
            "transfer_only",
            "only the bytes count",
            "Prefill has many FLOP for each byte, and waits for arithmetic. Take the larger of the two times.",
            "Measure",
        ),
        Misconception(
            "one_for_all",
            "all pieces of work are bound by the same ceiling",
            "Each piece has FLOP and bytes of its own: compare the two times number by number (`torch.maximum`), not "
            "their sums.",
            "Play",
        ),
        Misconception(
            "swapped",
            "FLOP are divided by bytes a second, and bytes by FLOP a second",
            "A time is an amount divided by the rate of the same thing.",
            "Play",
        ),
        Misconception(
            "seconds",
            "the time is in seconds",
            "FLOP divided by FLOP a second are seconds. Asked for are milliseconds: times 1000.",
            "Measure",
        ),
        Misconception(
            "divided",
            "the seconds are divided by 1000",
            "A second has 1000 milliseconds: multiply.",
            "Measure",
        ),
        Misconception(
            "microseconds",
            "the time is in microseconds",
            "Asked for are milliseconds, a thousandth of a second: times 1000.",
            "Measure",
        ),
        Misconception(
            "attainable",
            "the first result is how many FLOP a second are attainable, not the time",
            "That is the height of the roof. The time is FLOP divided by it, or the larger of two times.",
            "Play",
        ),
        Misconception(
            "upside_down",
            "rates are divided by amounts",
            "That is how often a second the work could be done. The time is the amount divided by the rate.",
            "Play",
        ),
        Misconception(
            "doubled",
            "the FLOP are doubled",
            "`flop` counts multiplications and additions already: FLOP are not multiply-adds.",
            "Measure",
        ),
        Misconception(
            "bits",
            "the bytes are counted as bits",
            "Amount and rate are both in bytes: nothing is to be multiplied by 8.",
            "Measure",
        ),
        Misconception(
            "whole_seconds",
            "the times are rounded down to whole seconds",
            "`//` drops what stands after the point; most work takes less than a second. Use `/`.",
            "Measure",
        ),
        Misconception(
            "through_attainable",
            "work without FLOP gets NaN",
            "A copy has no FLOP, so its intensity is 0, nothing is attainable, and 0/0 is NaN. Its time is that of its "
            "bytes: take the larger of two times instead.",
            "Play",
        ),
        Misconception(
            "inverted",
            "`memory_bound` is True where arithmetic takes longer",
            "It is True where the bytes take longer than the FLOP.",
            "Play",
        ),
        Misconception(
            "tie",
            "where both take as long, `memory_bound` is the other way round",
            "At the ridge neither waits for the other. Here that counts as not bound by memory: ask for longer, `>`.",
            "Play",
        ),
        Misconception(
            "counts_compared",
            "`memory_bound` compares bytes with FLOP",
            "One byte takes as long as many FLOP. Compare the two times; or FLOP a byte with the ridge, "
            "`flop_per_s / bytes_per_s`.",
            "Play",
        ),
        Misconception(
            "ridge_upside_down",
            "`memory_bound` compares FLOP a byte with bytes a FLOP",
            "The ridge is in FLOP a byte, as the intensity is: `flop_per_s / bytes_per_s`.",
            "Play",
        ),
        Misconception(
            "intensity_floored",
            "the intensity is rounded down",
            "`//` drops what stands after the point, and work just beside the ridge falls on the wrong side. Use `/`.",
            "Play",
        ),
        Misconception(
            "ridge_floored",
            "the ridge is rounded down",
            "`flop_per_s // bytes_per_s` drops what stands after the point, and work just below the ridge falls on the "
            "wrong side. Use `/`.",
            "Play",
        ),
    ),
)

# --- largest_batch ----------------------------------------------------------------------------------------------


def largest_batch(
    n_tokens: Tensor, memory: int, weights: int, token_bytes: int, n_full: int, n_window: int, window: int
) -> Tensor:
    in_window = n_tokens.clamp(max=window)  # (N,) tokens that a layer with a window keeps
    kept = n_full * n_tokens + n_window * in_window  # (N,) tokens, all layers together
    left = memory - weights
    fitting = left // (token_bytes * kept)  # (N,)
    return fitting.clamp(min=0)  # the weights alone may be too large


def faulty_largest_batch(wrong: frozenset[str]) -> Callable:
    def largest_batch(n_tokens, memory, weights, token_bytes, n_full, n_window, window):
        n = n_tokens.max().expand_as(n_tokens) if "longest_for_all" in wrong else n_tokens
        if "kinds_exchanged" in wrong:
            n_full, n_window = n_window, n_full
        in_window = n.clamp(max=window)
        if "window_raised" in wrong:
            in_window = n.clamp(min=window)
        elif "window_always" in wrong:
            in_window = torch.full_like(n, window)
        elif "window_ignored" in wrong:
            in_window = n
        elif "window_forgotten" in wrong:
            in_window = torch.zeros_like(n)
        everywhere = in_window if "window_everywhere" in wrong else n
        kept = everywhere if "one_layer" in wrong else n_full * everywhere + n_window * in_window
        each = kept * (1 if "tokens_not_bytes" in wrong else token_bytes) * (2 if "doubled" in wrong else 1)
        if "one_batch" in wrong:
            each = each.sum().expand_as(n)
        left = memory - weights
        if "weights_ignored" in wrong:
            left = memory
        elif "weights_each" in wrong:
            left, each = memory, each + weights
        if "strict" in wrong:
            left -= 1
        if wrong & {"rounded", "nearest", "negative_truncated"}:
            quotient = left / (each if "rounded" in wrong else each.double())  # float32 or float64
            if "nearest" in wrong:
                fitting = quotient.round().long()
            elif "negative_truncated" in wrong:
                fitting = quotient.trunc().long()
            else:
                fitting = (quotient.ceil() if "rounded_up" in wrong else quotient.floor()).long()
        elif "no_brackets" in wrong:
            fitting = left // token_bytes * (each // token_bytes)
        else:
            fitting = -(-left // each) if "rounded_up" in wrong else left // each
        if "negative" not in wrong and "negative_truncated" not in wrong:
            fitting = fitting.clamp(min=1 if "at_least_one" in wrong else 0)
        return fitting * n if "tokens" in wrong else fitting

    return largest_batch


def largest_batch_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(16100 + seed)

    def script(
        name: str, n_tokens: list[int], memory: int, weights: int, token_bytes: int, full: int, windows: int, W: int
    ) -> Script:
        given = {"n_tokens": torch.tensor(n_tokens), "memory": memory, "weights": weights, "token_bytes": token_bytes}
        return one_call(name, {**given, "n_full": full, "n_window": windows, "window": W})

    yield script("two lengths", [4, 10], 1000, 300, 5, 2, 3, 6)
    yield script("no windows", [3, 8, 50], 5000, 1400, 8, 4, 0, 16)
    yield script("nothing but windows", [2, 16, 17, 400], 9999, 2000, 12, 0, 6, 16)
    yield script("weights that do not fit", [1, 5, 20, 80], 4000, 4700, 3, 3, 2, 10)
    yield script("room for one, or for none", [10, 40, 44, 300, 2000], 8000, 2240, 16, 4, 5, 40)
    per = 4096 * 32 * 8192  # bytes of one sequence of 8192; float32 cannot tell 64 of them from one byte less
    yield script("64 sequences but for one byte", [8192, 4096, 2048, 512, 64], 80 * 10**9, 80 * 10**9 - 64 * per + 1,
                 4096, 32, 0, 4096)  # fmt: skip
    yield script("a device of 80 GB", [1000, 4096, 8192, 32768, 131072], 80 * 10**9, 16_060_000_000, 4096, 8, 40, 4096)
    some = torch.randint(5, 600, (6,), generator=inputs.generator).tolist()
    yield script("six lengths", some, 2_000_000 + 137 * (seed % 97), 300_000, 24, 5, 9, 100)


def _at_least_none(call: Call, result: Result) -> bool:
    return bool((result.outputs[0] >= 0).all())


def _fits(call: Call, result: Result) -> bool:
    n_tokens, memory, weights, token_bytes, n_full, n_window, window = call.arguments.values()
    each = token_bytes * (n_full * n_tokens + n_window * n_tokens.clamp(max=window))
    n = result.outputs[0]
    return bool(((n == 0) | (weights + n * each <= memory)).all())


LARGEST_BATCH = Exercise(
    id="choosing/largest_batch",
    defines="largest_batch",
    title="Find the largest batch",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=largest_batch_scripts,
    reference=largest_batch,
    faulty=faulty_largest_batch,
    outputs=(Output("sequences", "N"),),
    rtol=0.0,
    atol=0.0,
    properties=(
        Property("a number of sequences is not negative", _at_least_none),
        Property("weights and caches together take no more than the memory", _fits),
    ),
    misconceptions=(
        Misconception(
            "weights_ignored",
            "the weights take no room",
            "They lie in the same memory, once, however many sequences there are: caches get what is left.",
            "By hand",
        ),
        Misconception(
            "weights_each",
            "every sequence has weights of its own",
            "All sequences share the weights. Only caches are added for each.",
            "By hand",
        ),
        Misconception(
            "window_ignored",
            "layers with a window keep all tokens",
            "They keep the last `window` tokens, or all while there are fewer.",
            "By hand",
        ),
        Misconception(
            "window_always",
            "layers with a window keep `window` tokens of a shorter sequence too",
            "A sequence of fewer tokens has no more to keep: take the smaller of the two.",
            "By hand",
        ),
        Misconception(
            "window_raised",
            "layers with a window keep the larger of `n_tokens` and `window`",
            "They keep the smaller. `clamp(min=W)` raises to W; `clamp(max=W)` lowers to it.",
            "By hand",
        ),
        Misconception(
            "window_forgotten",
            "layers with a window keep nothing",
            "They keep up to `window` tokens each: count them beside the layers that keep all.",
            "By hand",
        ),
        Misconception(
            "window_everywhere",
            "all layers have the window",
            "`n_full` layers keep all tokens. In a long text most of the cache is theirs.",
            "By hand",
        ),
        Misconception(
            "kinds_exchanged",
            "the two kinds of layers are exchanged",
            "`n_full` layers keep all tokens, `n_window` layers keep the last `window`.",
            "By hand",
        ),
        Misconception(
            "one_layer",
            "one layer is counted",
            "`token_bytes` is what one token takes in one layer, and every layer has a cache of its own.",
            "By hand",
        ),
        Misconception(
            "tokens_not_bytes",
            "bytes are divided by tokens",
            "Each token takes `token_bytes` in each layer: multiply by it before you divide.",
            "By hand",
        ),
        Misconception(
            "no_brackets",
            "it is divided by one factor and multiplied by the rest",
            "`a // b * c` divides by b only. Put what divides in brackets.",
            "By hand",
        ),
        Misconception(
            "doubled",
            "keys and values are counted twice",
            "`token_bytes` is all that a token leaves in a layer's cache, key and value together.",
            "By hand",
        ),
        Misconception(
            "longest_for_all",
            "the longest length is taken for all",
            "Each of the N lengths is a question of its own: how many sequences of that length fit?",
            "By hand",
        ),
        Misconception(
            "one_batch",
            "the N lengths share the memory",
            "Each length is a question of its own, in which all sequences have that length.",
            "By hand",
        ),
        Misconception(
            "tokens",
            "it is how many tokens fit, not how many sequences",
            "Asked for are sequences, each of n_tokens tokens.",
            "By hand",
        ),
        Misconception(
            "rounded_up",
            "it is rounded up",
            "The last sequence does not fit then. Round down.",
            "By hand",
        ),
        Misconception(
            "nearest",
            "it is rounded to the nearest",
            "Then the last sequence may not fit. Round down.",
            "By hand",
        ),
        Misconception(
            "strict",
            "sequences that fill the memory to the last byte are refused",
            "They fit: no more than the memory is asked for.",
            "By hand",
        ),
        Misconception(
            "rounded",
            "the division is done in float32",
            "It has 24 bits, and bytes have more digits: a quotient just below 64 becomes 64. Divide whole numbers "
            "with `//`.",
            "By hand",
        ),
        Misconception(
            "negative",
            "where the weights alone are too large, it is a negative number",
            "Then no sequence fits: return 0.",
            "When to use it",
        ),
        Misconception(
            "negative_truncated",
            "where the weights alone are too large, it is a negative number, cut towards 0",
            "Then no sequence fits: return 0. `clamp(min=0)` comes last.",
            "When to use it",
        ),
        Misconception(
            "at_least_one",
            "it says 1 where not even one sequence fits",
            "Return 0, so that whoever asks can tell.",
            "When to use it",
        ),
    ),
)

# --- matched_width ----------------------------------------------------------------------------------------------


def matched_width(attention: Tensor, reference: int, d_model: int, width: int) -> Tensor:
    n_layers = attention.shape[1]
    spared = n_layers * reference - attention.sum(1)  # (N,) parameters, all layers together
    one_wider = n_layers * 2 * d_model  # parameters of one more unit in every network
    return width + spared // one_wider  # (N,)


def faulty_matched_width(wrong: frozenset[str], n_matrices: int = 2) -> Callable:
    """n_matrices: of each network, (width, d_model) or its transpose."""

    def matched_width(attention, reference, d_model, width):
        L = attention.shape[0] if "n_is_models" in wrong else attention.shape[1]
        total = L * attention[:, 0] if "first_layer" in wrong else attention.sum(1)
        spared = (1 if "reference_once" in wrong else L) * reference - total
        if "kept" in wrong:
            spared = total
        if "sign" in wrong:
            spared = -spared
        if "never_narrower" in wrong:
            spared = spared.clamp(min=0)
        one_wider = n_matrices - ("one_too_few" in wrong) + ("one_too_many" in wrong)
        one_wider *= width if "by_width" in wrong else d_model
        if "one_network" not in wrong:
            one_wider *= L * (L if "spread_twice" in wrong else 1)
        if "proportional" in wrong:
            spared, one_wider = width * (L * reference - total), total
        elif "rounded_early" in wrong:  # what the layers give, added
            unit = one_wider if "one_network" in wrong else one_wider // L
            spared = ((reference - attention) // unit).sum(1)
            one_wider = 1 if "one_network" in wrong else L
        times = 1
        if "no_brackets" in wrong:
            one_wider, times = n_matrices - ("one_too_few" in wrong), d_model * (1 if "one_network" in wrong else L)
        elif "layers_multiplied" in wrong:
            one_wider, times = one_wider // L, L
        quotient = (spared if "rounded" in wrong else spared.double()) / one_wider  # float32 or float64
        if "mean_rounded" in wrong:
            quotient = (reference - total // L).double() / (one_wider / L)
        if "nearest" in wrong:
            quotient = quotient.round()
        elif "rounded_up" in wrong:
            quotient = quotient.ceil()
        wider = (quotient.trunc() if "towards_zero" in wrong else quotient.floor()).long() * times
        return wider if "only_added" in wrong else width + wider

    matched_width.wrong = wrong  # so that the variant can make it with three matrices
    return matched_width


def _gated(implementation: Callable) -> Callable:
    """matched_width for three matrices: two of one and a half times the size. A known mistake is made anew."""
    if hasattr(implementation, "wrong"):
        return faulty_matched_width(implementation.wrong, n_matrices=3)
    return lambda attention, reference, d_model, width: implementation(attention, reference, 3 * d_model // 2, width)


def matched_width_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(16200 + seed)

    def script(name: str, attention: list[list[int]] | Tensor, reference: int, d_model: int, width: int) -> Script:
        given = {"attention": torch.as_tensor(attention), "reference": reference, "d_model": d_model}
        return one_call(name, {**given, "width": width})

    def some(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=inputs.generator)

    yield script("two models of two layers", [[30, 34], [64, 25]], 64, 4, 16)
    yield script("some have more than the reference", [[150, 150, 149], [40, 50, 61], [300, 20, 30]], 144, 6, 20)
    yield script("a mean that is not whole", [[41, 40], [56, 57]], 64, 4, 16)
    yield script("one layer", [[100], [256], [290], [7]], 256, 8, 32)
    yield script("all sizes equal", some(30, 80, 4, 4), 64, 4, 4 * 4)
    yield script("four models of five layers", some(200, 700, 4, 5), 576, 12, 40)
    yield script("the chapter's layers", [[12288, 12288], [10240, 10240], [9216, 9216], [12800, 16384], [18432, 9216]],
                 16384, 64, 256)  # fmt: skip
    # What is spared is one less than a multiple, and float32 cannot tell.
    large = torch.tensor([[41_943_041, *[41_943_040] * 31], [33_554_433, *[50_331_648] * 31]])
    yield script("32 large layers", large, 67_108_864, 4096, 14336)


def _no_larger(call: Call, result: Result) -> bool:
    attention, reference, _, width = call.arguments.values()
    more = attention.sum(1) > attention.shape[1] * reference
    return bool((result.outputs[0][more] < width).all())


MATCHED_WIDTH = Exercise(
    id="choosing/matched_width",
    defines="matched_width",
    title="Match the parameters",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=matched_width_scripts,
    reference=matched_width,
    faulty=faulty_matched_width,
    outputs=(Output("width", "N"),),
    rtol=0.0,
    atol=0.0,
    properties=(Property("a model whose attention has more parameters gets narrower networks", _no_larger),),
    misconceptions=(
        Misconception(
            "one_too_few",
            "a matrix of the network is left out",
            "One more unit adds a row to the first matrix and a column to the last, d_model numbers each, and as many "
            "for every matrix between d_model and the width.",
            "Invariants",
        ),
        Misconception(
            "one_too_many",
            "a matrix too many is counted in each network",
            "Here a network has two matrices, into the width and back. A gated one has three.",
            "Invariants",
        ),
        Misconception(
            "one_network",
            "all that is spared goes to one network",
            "The model has as many networks as layers, all of the same width: divide by the number of layers too.",
            "Invariants",
        ),
        Misconception(
            "no_brackets",
            "it is divided by 2 and multiplied by the rest",
            "`a // 2 * d_model * n_layers` divides by 2 only. Put what divides in brackets.",
            "Invariants",
        ),
        Misconception(
            "layers_multiplied",
            "it is multiplied by the number of layers",
            "`a // (2 * d_model) * L` multiplies by L. Put L in the brackets.",
            "Invariants",
        ),
        Misconception(
            "n_is_models",
            "the number of models is taken for the number of layers",
            "`attention` is (N, L): axis 0 is the models, axis 1 the layers.",
            "One comparison",
        ),
        Misconception(
            "spread_twice",
            "it is divided by the number of layers twice",
            "Either take the mean over the layers, or divide the sum by their number. Not both.",
            "Invariants",
        ),
        Misconception(
            "first_layer",
            "all layers are taken to be as the first",
            "A stack may mix its layers, such as windows and full attention: add up what each has.",
            "One comparison",
        ),
        Misconception(
            "reference_once",
            "the reference is counted as one layer",
            "`reference` is the attention of one layer, and the reference model has as many layers as the others.",
            "One comparison",
        ),
        Misconception(
            "kept",
            "it is not compared with the reference",
            "What attention has and the reference has too is in both models. Only the difference goes to the networks.",
            "One comparison",
        ),
        Misconception(
            "sign",
            "the difference has the wrong sign",
            "An attention with fewer parameters leaves more to the networks: they become wider.",
            "One comparison",
        ),
        Misconception(
            "never_narrower",
            "networks never become narrower",
            "An attention with more parameters than the reference takes them from the networks. Else its model is the "
            "larger one.",
            "One comparison",
        ),
        Misconception(
            "by_width",
            "it is divided by the width, not by d_model",
            "One more unit costs as many parameters as it has inputs and outputs: d_model each.",
            "Invariants",
        ),
        Misconception(
            "proportional",
            "the width grows as the attention shrinks",
            "Parameters are added and taken away, not multiplied: so many are spared, and a unit costs so many.",
            "Invariants",
        ),
        Misconception(
            "only_added",
            "it is how much wider, not how wide",
            "Add it to `width`.",
            "Invariants",
        ),
        Misconception(
            "nearest",
            "it is rounded to the nearest",
            "Then some models have more parameters than the reference. Asked for is the largest width with no more.",
            "Invariants",
        ),
        Misconception(
            "rounded_up",
            "it is rounded up",
            "Then the model has more parameters than the reference. Asked for is the largest width with no more.",
            "Invariants",
        ),
        Misconception(
            "rounded_early",
            "each layer is rounded by itself",
            "What two layers spare may be enough for a unit together. Add first, then divide and round once.",
            "Invariants",
        ),
        Misconception(
            "mean_rounded",
            "the mean over the layers is rounded before it is compared",
            "A mean that is rounded down leaves too much to the networks, and the model becomes too large. Add up, "
            "subtract, and divide once.",
            "Invariants",
        ),
        Misconception(
            "towards_zero",
            "a negative number is rounded towards 0",
            "`int` and `trunc` make -0.5 to 0, which leaves the model too large. `//` and `floor` go down: -1.",
            "Invariants",
        ),
        Misconception(
            "rounded",
            "the division is done in float32",
            "It has 24 bits, and parameters have more digits: a quotient just below 3072 becomes 3072. Divide whole "
            "numbers with `//`.",
            "Invariants",
        ),
    ),
    variants={
        "gated": Variant(
            statement="In this copy each network is gated, as SwiGLU: it has three matrices, two from d_model into the "
            "width and one back.",
            argument=lambda name, value: value,
            wrap=_gated,
            titles={"no_brackets": "it is divided by 3 and multiplied by the rest"},
            explanations={
                "one_too_few": "One more unit adds a row to each of the two matrices into the width and a column to "
                "the one back, d_model numbers each.",
                "one_too_many": "A gated network has three matrices, two into the width and one back.",
                "no_brackets": "`a // 3 * d_model * n_layers` divides by 3 only. Put what divides in brackets.",
                "layers_multiplied": "`a // (3 * d_model) * L` multiplies by L. Put L in the brackets.",
                "by_width": "One more unit is two rows and a column, each as long as the network's input: d_model.",
            },
        )
    },
)

# --- pareto_front -----------------------------------------------------------------------------------------------


def pareto_front(cost: Tensor, loss: Tensor) -> Tensor:
    no_dearer = cost <= cost[:, None]  # (N, N): [i, j] says something of model j beside model i
    no_worse = loss <= loss[:, None]
    ahead = (cost < cost[:, None]) | (loss < loss[:, None])
    beaten = (no_dearer & no_worse & ahead).any(1)  # (N,)
    return ~beaten


def faulty_pareto_front(wrong: frozenset[str]) -> Callable:
    def pareto_front(cost, loss):
        cost = -cost if "dearer_wins" in wrong else cost
        loss = -loss if "other_direction" in wrong else loss
        N, order = len(cost), cost.argsort(stable=True)
        no_dearer, cheaper = cost <= cost[:, None], cost < cost[:, None]
        no_worse, better = loss <= loss[:, None], loss < loss[:, None]
        beats = no_dearer & no_worse & (cheaper | better)
        if "no_brackets" in wrong:
            beats = no_dearer & no_worse & cheaper | better
        elif "either" in wrong:
            beats = (no_dearer | no_worse) & ~torch.eye(N).bool() if "twins_dropped" in wrong else cheaper | better
        elif "strict" in wrong:
            beats = cheaper & better
        elif "equal_loss_kept" in wrong:
            beats = no_dearer & better
        elif "equal_cost_kept" in wrong:
            beats = cheaper & no_worse
        elif "twins_dropped" in wrong:
            beats = no_dearer & no_worse & ~torch.eye(N, dtype=torch.bool)
        elif "beats_itself" in wrong:
            beats = no_dearer & no_worse
        if "by_all" in wrong:
            front = beats.sum(1) != N - 1
        elif "beats_none" in wrong:
            front = ~beats.any(0)
        elif "cheapest" in wrong:
            front = cost == cost.min()
        elif "best" in wrong:
            front = loss == loss.min()
        elif "none_beaten" in wrong:
            front = torch.ones(N, dtype=torch.bool)
        elif "given_order" in wrong:
            front = torch.cat([torch.ones(1).bool(), loss[1:] < loss.cummin(0).values[:-1]])
        elif "in_loss_order" in wrong:
            by_loss = loss.argsort(stable=True)
            front = torch.ones(N).bool()
            sorted_cost = cost[by_loss]
            before = sorted_cost.cummin(0).values[:-1]
            kept = sorted_cost[1:] <= before if "equal_cost_kept" in wrong else sorted_cost[1:] < before
            front[by_loss[1:]] = kept
        elif "in_cost_order" in wrong or "neighbour" in wrong:
            sorted_loss = loss[order]
            before = sorted_loss if "neighbour" in wrong else sorted_loss.cummin(0).values
            kept = sorted_loss[1:] <= before[:-1] if "equal_loss_kept" in wrong else sorted_loss[1:] < before[:-1]
            kept = torch.cat([torch.ones(1, dtype=torch.bool), kept])
            front = torch.empty_like(kept)
            front[order] = kept
        else:
            front = ~beats.any(1)
        if "hull" in wrong:
            front = front & ~_above_a_chord(cost[front], loss[front], cost, loss)
        if "second_twin" in wrong:
            front = front & ~((cost == cost[:, None]) & (loss == loss[:, None])).tril(-1).any(1)
        if "sorted" in wrong:
            front = front[order]
        elif "put_back_wrong" in wrong:
            front = front[order][order]
        return ~front if "inverted" in wrong else front

    return pareto_front


def _above_a_chord(front_cost: Tensor, front_loss: Tensor, cost: Tensor, loss: Tensor) -> Tensor:
    """Whether each point (N,) lies above the line between two points of the front, one cheaper and one dearer."""
    x, y = front_cost.double(), front_loss.double()
    line = y[:, None] + (y - y[:, None]) * (cost.double()[:, None, None] - x[:, None]) / (x - x[:, None])
    between = (x[:, None] < cost[:, None, None]) & (cost[:, None, None] < x)
    return (between & (loss[:, None, None] > line + 1e-9)).any((1, 2))


def pareto_front_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(16300 + seed)

    def script(name: str, cost: list[int], loss: list[float]) -> Script:
        return one_call(name, {"cost": torch.tensor(cost), "loss": torch.tensor(loss)}, gradients=())

    yield script("one model", [7], [2.5])
    yield script("four models", [4, 1, 3, 2], [2.0, 3.0, 2.5, 3.5])
    yield script("equal costs, equal losses", [6, 4, 2, 4, 6], [1.5, 2.25, 3.0, 2.0, 2.0])
    yield script("the lowest loss at two costs", [5, 9, 3, 7], [2.0, 2.0, 3.0, 2.5])
    yield script("twins in front and behind", [8, 2, 5, 2, 8, 5], [2.0, 3.0, 3.5, 3.0, 2.0, 3.5])
    yield script("a front that bends inwards", [64, 8, 32, 16, 48, 4, 24], [1.0, 2.75, 2.25, 2.5, 2.0, 3.0, 3.5])
    yield script("all alike", [3, 3, 3, 3, 3, 3, 3, 3], [2.0] * 8)
    order = torch.randperm(9, generator=inputs.generator)
    bytes_kept = torch.tensor([2304, 4096, 8192, 16384, 18432, 32768, 65536, 65536, 131072])[order]
    losses = torch.tensor([2.61, 2.48, 2.53, 2.4, 2.4, 2.31, 2.29, 2.33, 2.3])[order]
    yield script("nine models of the chapter's sizes", bytes_kept.tolist(), losses.tolist())
    cost = torch.randint(1, 8, (12,), generator=inputs.generator)
    steps = torch.randint(8, 16, (12,), generator=inputs.generator)
    yield script("twelve models", cost.tolist(), (steps / 4).tolist())


def _not_empty(call: Call, result: Result) -> bool:
    return bool(result.outputs[0].any())


PARETO_FRONT = Exercise(
    id="choosing/pareto_front",
    defines="pareto_front",
    title="Find the models that no other beats",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=pareto_front_scripts,
    reference=pareto_front,
    faulty=faulty_pareto_front,
    outputs=(Output("front", "N"),),
    properties=(Property("there is always a model that no other beats", _not_empty),),
    misconceptions=(
        Misconception(
            "strict",
            "a model is beaten only by one that is better in both",
            "One that costs as much and has a lower loss beats it too, and so does a cheaper one of the same loss: no "
            "worse in either, better in at least one.",
            "One comparison",
        ),
        Misconception(
            "equal_loss_kept",
            "of two with the same loss, the dearer one stays",
            "The cheaper one is as good: no worse in either, better in one. It beats the other.",
            "One comparison",
        ),
        Misconception(
            "equal_cost_kept",
            "of two that cost the same, the worse one stays",
            "The better one costs no more: no worse in either, better in one. It beats the other.",
            "One comparison",
        ),
        Misconception(
            "twins_dropped",
            "two models that are equal in both beat each other",
            "Neither is better in anything. Both stay, unless a third beats them.",
            "One comparison",
        ),
        Misconception(
            "second_twin",
            "of two models that are equal in both, only the first stays",
            "Neither beats the other: both stay. In the order of (cost, loss), keep a model that equals the last one "
            "kept too.",
            "One comparison",
        ),
        Misconception(
            "beats_itself",
            "every model beats itself",
            "It is no worse than itself in either, but better in nothing. Ask for one strictly smaller number.",
            "One comparison",
        ),
        Misconception(
            "either",
            "a model is beaten by any that is better in one of the two",
            "Then a dear model of low loss and a cheap one of high loss beat each other. It must be no worse in the "
            "other too: a trade is no defeat.",
            "One comparison",
        ),
        Misconception(
            "no_brackets",
            "`|` has no brackets",
            "`&` binds tighter than `|`: `a & b & c | d` is True wherever d is. Write `a & b & (c | d)`.",
            "One comparison",
        ),
        Misconception(
            "none_beaten",
            "no model is ever beaten",
            "Your three conditions are never all True. All must be asked of the same pair the same way round, j beside "
            "i: `cost < cost[:, None]` has j along axis 1. And one j that beats i is enough: `any`.",
            "One comparison",
        ),
        Misconception(
            "by_all",
            "a model is beaten only if all others beat it",
            "One is enough: `any`, not `all`.",
            "One comparison",
        ),
        Misconception(
            "beats_none",
            "it is the models that beat no other",
            "In the matrix of who beats whom, one axis is the beaten model and the other the one that beats it: look "
            "along the other axis. Or both comparisons are the wrong way round. A model is in front if none beats it.",
            "One comparison",
        ),
        Misconception(
            "cheapest",
            "only the cheapest stays",
            "A dearer model with a lower loss is not beaten by it.",
            "When to use it",
        ),
        Misconception(
            "best",
            "only the lowest loss stays",
            "A cheaper model with a higher loss is not beaten by it.",
            "When to use it",
        ),
        Misconception(
            "other_direction",
            "the quality is read the wrong way round",
            "A lower loss is better.",
            "One comparison",
        ),
        Misconception(
            "dearer_wins",
            "a higher cost counts as better",
            "Bytes are what one pays: fewer are better.",
            "One comparison",
        ),
        Misconception(
            "in_cost_order",
            "models of the same cost are taken one after the other",
            "In the order of costs, each that is better than all before it is kept. Among equal costs a worse one may "
            "come first and stay, and the second of two twins is dropped. Compare equal costs with each other.",
            "One comparison",
        ),
        Misconception(
            "in_loss_order",
            "models of the same loss are taken one after the other",
            "In the order of losses, each that is cheaper than all before it is kept. Among equal losses a dearer one "
            "may come first and stay, and the second of two twins is dropped. Compare equal losses with each other.",
            "One comparison",
        ),
        Misconception(
            "given_order",
            "each is compared only with those before it",
            "The models stand in no particular order: compare with all, or sort by cost first.",
            "One comparison",
        ),
        Misconception(
            "neighbour",
            "each is compared with the next cheaper one only",
            "That one may be bad itself. Compare with the best of all that are no dearer.",
            "One comparison",
        ),
        Misconception(
            "hull",
            "models above a line between two others are left out",
            "That is the convex hull. A model beside a straight line is still beaten by none: no model stands on the "
            "line there.",
            "One comparison",
        ),
        Misconception(
            "sorted",
            "the answers stand in the order of the costs",
            "Put each back where its model stands: `front[order] = kept`.",
            "One comparison",
        ),
        Misconception(
            "put_back_wrong",
            "the answers are put back with the order instead of its inverse",
            "`kept[order]` sorts a second time. Write `front[order] = kept`, or `kept[order.argsort()]`.",
            "One comparison",
        ),
        Misconception(
            "inverted",
            "it is the models that are beaten",
            "True is for those that none beats.",
            "One comparison",
        ),
    ),
    variants={
        "score": Variant(
            statement="In this copy the second argument is a score, such as the share of values recalled: higher is "
            "better.",
            argument=lambda name, value: -value if name == "loss" else value,
            wrap=lambda implementation: lambda cost, score: implementation(cost, -score),
            titles={
                "equal_loss_kept": "of two with the same score, the dearer one stays",
                "best": "only the highest score stays",
                "in_loss_order": "models of the same score are taken one after the other",
            },
            explanations={
                "strict": "One that costs as much and has a higher score beats it too, and so does a cheaper one of "
                "the same score: no worse in either, better in at least one.",
                "second_twin": "Neither beats the other: both stay. In the order of cost, and of the best score "
                "first, keep a model that equals the last one kept too.",
                "beats_itself": "It is no worse than itself in either, but better in nothing. Ask for one strict "
                "comparison.",
                "either": "Then a dear model of high score and a cheap one of low score beat each other. It must be "
                "no worse in the other too: a trade is no defeat.",
                "cheapest": "A dearer model with a higher score is not beaten by it.",
                "best": "A cheaper model with a lower score is not beaten by it.",
                "other_direction": "A higher score is better.",
                "in_loss_order": "In the order of scores, each that is cheaper than all before it is kept. Among "
                "equal scores a dearer one may come first and stay, and the second of two twins is dropped. Compare "
                "equal scores with each other.",
            },
        )
    },
)

# --- paired_difference ------------------------------------------------------------------------------------------


def paired_difference(losses_a: Tensor, losses_b: Tensor) -> tuple[Tensor, Tensor]:
    difference = losses_a - losses_b  # (M, n) seed by seed
    n = difference.shape[1]
    error = difference.std(1) / n**0.5  # (M,)
    return difference.mean(1), error


def faulty_paired_difference(wrong: frozenset[str]) -> Callable:
    def paired_difference(losses_a, losses_b):
        a, b = (losses_a.mT, losses_b.mT) if "over_tasks" in wrong else (losses_a, losses_b)
        if "sorted" in wrong:
            a, b = a.sort(1).values, b.sort(1).values
        if "sign" in wrong:
            a, b = b, a
        difference = a - b
        if "relative" in wrong:
            difference = difference / (a if "sign" in wrong else b)
        if "absolute" in wrong:
            difference = difference.abs()
        n, correction = a.shape[1], 0 if "population" in wrong else 1
        deviations = [x - x.mean(1, keepdim=True) for x in (difference, a, b)]
        variance, *of_each = ((x**2).sum(1) / (n - correction) for x in deviations)  # NaN, no warning, where n is 1
        root = variance.sqrt()
        if "unpaired" in wrong:
            root = (of_each[0] + of_each[1]).sqrt()
        elif "one_covariance" in wrong:
            root = ((of_each[0] + of_each[1] + variance) / 2).sqrt()
        elif "errors_added" in wrong:
            root = of_each[0].sqrt() + of_each[1].sqrt()
        elif "spreads_subtracted" in wrong:
            root = of_each[0].sqrt() - of_each[1].sqrt()
        elif "only_a" in wrong:
            root = (of_each[1] if "sign" in wrong else of_each[0]).sqrt()
        if "variance" in wrong:
            root = root**2
        if "divided_by_n" in wrong or "variance" in wrong:
            error = root / n
        elif "no_brackets" in wrong:
            error = root / n / 2
        elif "not_divided" in wrong:
            error = root
        elif "n_is_tasks" in wrong:
            error = root / a.shape[0] ** 0.5
        elif "twice_corrected" in wrong:
            error = root / (n - 1) ** 0.5
        elif "root_forgotten" in wrong:
            error = root**2 / n**0.5
        elif "multiplied" in wrong:
            error = root * n**0.5
        elif "all_counted" in wrong:
            error = root / a.numel() ** 0.5
        else:
            error = root / n**0.5
        middle = difference.median(1).values if "median" in wrong else difference.mean(1)
        error = 1.96 * error if "interval" in wrong else error
        return (error, middle) if "exchanged" in wrong else (middle, error)

    return paired_difference


def paired_difference_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(16400 + seed)

    def arguments(M: int, n: int) -> dict:
        """Losses that a seed moves for both models, as the same examples and first weights do."""
        shared = 2.5 + inputs.normal(M, 1) + inputs.normal(M, n, spread=0.5).abs()
        a, b = (shared + 0.4 * inputs.normal(M, 1) + inputs.normal(M, n, spread=0.2) for _ in range(2))
        return {"losses_a": a.abs() + 0.1, "losses_b": b.abs() + 0.1}

    def script(name: str, M: int, n: int) -> Script:
        return one_call(name, arguments(M, n), gradients=())

    yield one_call(
        "one task, three seeds",
        {"losses_a": torch.tensor([[2.4, 2.9, 2.1]]), "losses_b": torch.tensor([[2.5, 2.75, 2.5]])},
        gradients=(),
    )
    yield script("two tasks, four seeds", 2, 4)
    yield script("as many tasks as seeds", 3, 3)
    yield script("five tasks, two seeds", 5, 2)
    yield script("four tasks, seven seeds", 4, 7)
    loose = {name: strided(value) for name, value in arguments(3, 5).items()}
    yield one_call("non-contiguous", loose, "non-contiguous", gradients=())
    exact = {name: value.double() for name, value in arguments(2, 3).items()}
    yield one_call("float64", exact, "float64", gradients=())


def _mean_of_the_difference(call: Call, result: Result) -> bool:
    a, b = call.arguments.values()
    return torch.allclose(result.outputs[0], a.mean(1) - b.mean(1), rtol=1e-3, atol=1e-4)


def _not_negative(call: Call, result: Result) -> bool:
    return bool((result.outputs[1] >= 0).all())


PAIRED_DIFFERENCE = Exercise(
    id="choosing/paired_difference",
    defines="paired_difference",
    title="Compare seed by seed",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=paired_difference_scripts,
    reference=paired_difference,
    faulty=faulty_paired_difference,
    outputs=(Output("mean", "M"), Output("error", "M")),
    properties=(
        Property("the mean of the differences is the difference of the means", _mean_of_the_difference),
        Property("a standard error is not negative", _not_negative),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "unpaired",
            "the standard error is that of unpaired runs",
            "√(s_a²/n + s_b²/n) is right where the seeds of the two have nothing in common. Here a seed gives both the "
            "same examples: what it does to both is in both spreads, and cancels in the difference. Take the spread "
            "of the differences.",
            "Invariants",
        ),
        Misconception(
            "one_covariance",
            "the covariance is subtracted once",
            "The variance of a difference is s_a² + s_b² - 2·cov: twice. The spread of the differences has it already.",
            "Invariants",
        ),
        Misconception(
            "errors_added",
            "the two standard errors are added",
            "Errors that have nothing in common add as squares, √(e_a² + e_b²); these runs share their seeds. Take the "
            "spread of the differences.",
            "Invariants",
        ),
        Misconception(
            "spreads_subtracted",
            "one spread is subtracted from the other",
            "Spreads do not subtract, and a standard error is not negative. Subtract the losses, then take the spread.",
            "Invariants",
        ),
        Misconception(
            "only_a",
            "the error is that of the first model's losses",
            "The second model varies too. Asked for is the error of the difference.",
            "Train it",
        ),
        Misconception(
            "population",
            "the standard deviation divides by n",
            "The mean is of the same few runs, so divide by n - 1: `std` does (`correction=1`), numpy's does not.",
            "Train it",
        ),
        Misconception(
            "not_divided",
            "it is the standard deviation of the differences, not of their mean",
            "That says how far one seed lies from the mean. The mean of n seeds is surer: divide by √n.",
            "Train it",
        ),
        Misconception(
            "divided_by_n",
            "it is divided by n, not √n",
            "The variance of a mean is s²/n, so its root is s/√n.",
            "Train it",
        ),
        Misconception(
            "multiplied",
            "it is multiplied by √n",
            "More seeds make the mean surer: divide.",
            "Train it",
        ),
        Misconception(
            "no_brackets",
            "the power has no brackets",
            "`n**1/2` is (n**1)/2, and dividing by n and by 2 is not dividing by √n. Write `n**0.5`.",
            "Train it",
        ),
        Misconception(
            "twice_corrected",
            "it is divided by √(n - 1)",
            "Once is enough: the n - 1 stands in the standard deviation. The mean has n numbers: √n.",
            "Train it",
        ),
        Misconception(
            "variance",
            "it is the variance of the mean, without the root",
            "A standard error has the unit of the losses: take the square root of s²/n.",
            "Train it",
        ),
        Misconception(
            "root_forgotten",
            "it is the variance that is divided by √n",
            "`var` is s². Take its root, or `std`.",
            "Train it",
        ),
        Misconception(
            "n_is_tasks",
            "n is taken to be the number of tasks",
            "The mean is over the seeds, the last axis: n is how many there are of them.",
            "Train it",
        ),
        Misconception(
            "all_counted",
            "n is taken to be the number of all losses",
            "Each task has a mean of its own, over n seeds.",
            "Train it",
        ),
        Misconception(
            "over_tasks",
            "it is over the tasks, not over the seeds",
            "Axis 0 is the tasks, axis 1 the seeds. Losses of different tasks have no common mean.",
            "Train it",
        ),
        Misconception(
            "sign",
            "it is b minus a",
            "Asked for is a minus b: negative where the first model has the lower loss.",
            "Train it",
        ),
        Misconception(
            "absolute",
            "the differences lose their sign",
            "Then seeds that disagree do not cancel, and noise alone looks like a difference.",
            "Train it",
        ),
        Misconception(
            "relative",
            "the differences are divided by the second model's loss",
            "Asked for is the difference itself, in nats.",
            "Train it",
        ),
        Misconception(
            "sorted",
            "the losses are sorted before they are paired",
            "Then the luckiest run of one is compared with the luckiest of the other. A pair is the same seed: leave "
            "each in its column.",
            "Invariants",
        ),
        Misconception(
            "median",
            "it is the median of the differences",
            "The standard error that is asked for belongs to the mean.",
            "Train it",
        ),
        Misconception(
            "interval",
            "the error is multiplied by 1.96",
            "That is half of a 95 % interval, and with so few seeds too narrow a one. Asked for is the standard error.",
            "Train it",
        ),
        Misconception(
            "exchanged",
            "the two results are in each other's place",
            "The mean comes first, then its standard error.",
            "Train it",
        ),
    ),
)

EXERCISES = (ROOFLINE_MS, LARGEST_BATCH, MATCHED_WIDTH, PARETO_FRONT, PAIRED_DIFFERENCE)
