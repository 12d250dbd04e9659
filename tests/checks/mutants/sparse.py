"""Chapter 09 as learners write it: every misconception a second time, two mistakes at once, right answers.

Nothing here uses the `faulty` switches of attncourse/checks/sparse.py: the styles differ on purpose (loops, slices,
sets, powers of a matrix), because the check must recognise the mistake and not the code.
"""

import math

import torch
import torch.nn.functional as F

from attncourse import masks
from tests.checks.mutants import Answers

ANSWERS = Answers("sparse")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right

# --- strided_pattern: mistakes ----------------------------------------------------------------------------------


def _by_pairs(T, S, sees):
    """(T, S): what `sees(i, j)` says of the query's position i and the key's position j."""
    return torch.tensor([[bool(sees(i, j)) for j in range(S)] for i in range(S - T, S)])


@mutant("strided_pattern", "from_zero")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for row, i in enumerate(range(S - T, S)):
        mask[row, 0 : i + 1 : stride] = True
        mask[row, max(0, i - window + 1) : i + 1] = True
    return mask


@mutant("strided_pattern", "fixed")
def _(T, S, window, stride):
    return masks.fixed_mask(T, S, block=stride, summary=1)


@mutant("strided_pattern", "no_local")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j) % stride == 0)


@mutant("strided_pattern", "no_stride")
def _(T, S, window, stride):
    ones = torch.ones(T, S)
    return (ones.tril(S - T) * ones.triu(S - T - window + 1)).bool()


@mutant("strided_pattern", "and_for_or")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: i - j in range(0, window, stride))


@mutant("strided_pattern", "not_causal")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: abs(i - j) < window or (i - j) % stride == 0)


@mutant("strided_pattern", "future_open")
def _(T, S, window, stride):
    q, k = torch.meshgrid(torch.arange(S - T, S), torch.arange(S), indexing="ij")
    return (k > q - window) | ((q - k) % stride == 0)


@mutant("strided_pattern", "stride_ahead")
def _(T, S, window, stride):
    q, k = torch.arange(S - T, S).unsqueeze(1), torch.arange(S).unsqueeze(0)
    return (k <= q) & (k > q - window) | ((q - k) % stride == 0)


@mutant("strided_pattern", "too_wide")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j <= window or (i - j) % stride == 0))


@mutant("strided_pattern", "too_narrow")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for row in range(T):
        place = S - T + row
        mask[row, torch.arange(place, -1, -stride)] = True
        mask[row, max(0, place - window + 2) : place] = True
    return mask


@mutant("strided_pattern", "blocks")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i // window == j // window or (i - j) % stride == 0))


@mutant("strided_pattern", "block_ends")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < window or (j + 1) % stride == 0))


@mutant("strided_pattern", "window_ahead")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: abs(i - j) < window or (j <= i and (i - j) % stride == 0))


@mutant("strided_pattern", "dense")
def _(T, S, window, stride):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return behind >= 0 & ((behind < window) | (behind % stride == 0))


@mutant("strided_pattern", "no_brackets")
def _(T, S, window, stride):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return behind >= 0 & (behind < window) | (behind % stride == 0)


@mutant("strided_pattern", "negative_slice")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        p = S - T + i
        mask[i, p - window + 1 : p + 1] = True
        mask[i, p % stride : p + 1 : stride] = True
    return mask


@mutant("strided_pattern", "own_key_lost")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        p = S - T + i
        mask[i, p - window + 1 : p + 1] = True
        for j in range(p - stride, -1, -stride):
            mask[i, j] = True
    return mask


@mutant("strided_pattern", "square")
def _(T, S, window, stride):
    return _by_pairs(T, T, lambda i, j: j <= i and (i - j < window or (i - j) % stride == 0))


@mutant("strided_pattern", "exchanged")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < stride or (i - j) % window == 0))


@mutant("strided_pattern", "top_left")
def _(T, S, window, stride):
    q, k = torch.arange(T)[:, None], torch.arange(S)[None, :]
    return (q >= k) & ((q - k < window) | ((q - k) % stride == 0))


@mutant("strided_pattern", "looks_ahead")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j >= i and (j - i < window or (j - i) % stride == 0))


@mutant("strided_pattern", "inverted")
def _(T, S, window, stride):
    mask = torch.ones(T, S, dtype=torch.bool)
    for row, i in enumerate(range(S - T, S)):
        mask[row, : i + 1].flip(0)[:window] = False
        for j in range(i, -1, -stride):
            mask[row, j] = False
        for j in range(max(0, i - window + 1), i):
            mask[row, j] = False
    return mask


@pair("strided_pattern", "from_zero", "not_causal")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: abs(i - j) < window or j % stride == 0)


@pair("strided_pattern", "from_zero", "no_local")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and j % stride == 0)


@pair("strided_pattern", "from_zero", "too_wide")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j <= window or j % stride == 0))


@pair("strided_pattern", "top_left", "from_zero")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        mask[i, max(0, i - window + 1) : i + 1] = True
        mask[i, : i + 1 : stride] = True
    return mask


@pair("strided_pattern", "top_left", "too_wide")
def _(T, S, window, stride):
    distance = torch.arange(T)[:, None] - torch.arange(S)
    return (distance >= 0) & ((distance <= window) | (distance % stride == 0))


@pair("strided_pattern", "top_left", "no_brackets")
def _(T, S, window, stride):
    behind = torch.arange(T)[:, None] - torch.arange(S)
    return behind >= 0 & (behind < window) | (behind % stride == 0)


@pair("strided_pattern", "top_left", "negative_slice")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        mask[i, i - window + 1 : i + 1] = True
        for j in range(i, -1, -stride):
            mask[i, j] = True
    return mask


@pair("strided_pattern", "top_left", "own_key_lost")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        mask[i, i - window + 1 : i + 1] = True
        for j in range(i - stride, -1, -stride):
            mask[i, j] = True
    return mask


@pair("strided_pattern", "from_zero", "negative_slice")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for row in range(T):
        p = S - T + row
        mask[row, p + 1 - window : p + 1] = True
        mask[row, : p + 1 : stride] = True
    return mask


@pair("strided_pattern", "no_stride", "negative_slice")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for row, p in enumerate(range(S - T, S)):
        mask[row, p - (window - 1) : p + 1] = True
    return mask


@pair("strided_pattern", "no_local", "not_causal")
def _(T, S, window, stride):
    return (torch.arange(S - T, S)[:, None] - torch.arange(S)) % stride == 0


@pair("strided_pattern", "inverted", "future_open")
def _(T, S, window, stride):
    distance = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return (distance >= window) & (distance % stride != 0)


@form("strided_pattern", "the stride counted from the window's far end", None)
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < window or (i - j - window) % stride == 0))


@form("strided_pattern", "`stride` keys left out between two", None)
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < window or (i - j) % (stride + 1) == 0))


@form("strided_pattern", "no brackets at all round one comparison", "no_brackets")
def _(T, S, window, stride):
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    near, far = behind < window, behind % stride == 0
    return behind >= 0 & near | far


@form("strided_pattern", "floats", None)
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < window or (i - j) % stride == 0)).float()


@form("strided_pattern", "the first T rows of the square one", "top_left")
def _(T, S, window, stride):
    distance = torch.arange(S)[:, None] - torch.arange(S)
    return ((distance >= 0) & ((distance < window) | (distance % stride == 0)))[:T]


# --- strided_pattern: right answers -----------------------------------------------------------------------------


@right("strided_pattern", "pair by pair")
def _(T, S, window, stride):
    return _by_pairs(T, S, lambda i, j: j <= i and (i - j < window or (i - j) % stride == 0))


@right("strided_pattern", "slices")
def _(T, S, window, stride):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        last = S - T + i
        mask[i, last % stride : last + 1 : stride] = True
        mask[i, max(0, last + 1 - window) : last + 1] = True
    return mask


@right("strided_pattern", "the masks of the course, united")
def _(T, S, window, stride):
    near, far = masks.sliding_window_mask(T, S, window=window), masks.strided_mask(T, S, stride=stride)
    return masks.combine(near, far)


@right("strided_pattern", "the last rows of the square one, cut by tril")
def _(T, S, window, stride):
    place = torch.arange(S)
    near = torch.ones(S, S).triu(1 - window).bool()
    far = torch.eq(place[:, None] % stride, place % stride)
    return torch.tril((near | far).int())[S - T :].bool()


# --- stride_classes: mistakes -----------------------------------------------------------------------------------


def _filled(x, stride):
    """x with zeros behind it, so that stride divides the tokens."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % stride))


@mutant("stride_classes", "blocks")
def _(x, stride):
    B, H, T, D = x.shape
    return _filled(x, stride).view(B, H, stride, math.ceil(T / stride), D)


@mutant("stride_classes", "not_transposed")
def _(x, stride):
    B, H, T, D = x.shape
    return _filled(x, stride).view(B, H, math.ceil(T / stride), stride, D)


@mutant("stride_classes", "tail_dropped")
def _(x, stride):
    n = x.shape[2] // stride
    return torch.stack([x[:, :, c : n * stride : stride] for c in range(stride)], dim=2)


@mutant("stride_classes", "always_filled")
def _(x, stride):
    B, H, T, D = x.shape
    padded = F.pad(x, (0, 0, 0, stride - T % stride))
    return padded.view(B, H, -1, stride, D).permute(0, 1, 3, 2, 4)


@mutant("stride_classes", "filled_in_front")
def _(x, stride):
    padded = F.pad(x, (0, 0, -x.shape[2] % stride, 0))
    return torch.stack([padded[:, :, c::stride] for c in range(stride)], dim=2)


@mutant("stride_classes", "wraps_around")
def _(x, stride):
    T = x.shape[2]
    n = -(-T // stride)
    places = (torch.arange(stride)[:, None] + stride * torch.arange(n)) % T
    return x[:, :, places]


@mutant("stride_classes", "last_repeated")
def _(x, stride):
    T = x.shape[2]
    n = -(-T // stride)
    places = torch.arange(stride)[:, None] + stride * torch.arange(n)
    return x[:, :, places.clamp(max=T - 1)]


@mutant("stride_classes", "first_only")
def _(x, stride):
    return x[:, :, 0::stride]


@mutant("stride_classes", "classes_first")
def _(x, stride):
    return torch.stack([_filled(x, stride)[:, :, c::stride] for c in range(stride)])


@mutant("stride_classes", "folded")
def _(x, stride):
    B, H, _, D = x.shape
    padded = _filled(x, stride)
    classes = [padded[:, :, c::stride] for c in range(stride)]
    return torch.stack(classes, dim=2).reshape(B, H * stride, -1, D)


@mutant("stride_classes", "last_two_swapped")
def _(x, stride):
    padded = _filled(x, stride)
    return torch.stack([padded[:, :, c::stride].transpose(2, 3) for c in range(stride)], dim=2)


@pair("stride_classes", "tail_dropped", "blocks")
def _(x, stride):
    B, H, T, D = x.shape
    n = T // stride
    return x[:, :, : n * stride].reshape(B, H, stride, n, D)


@pair("stride_classes", "tail_dropped", "not_transposed")
def _(x, stride):
    B, H, T, D = x.shape
    n = T // stride
    return x[:, :, : n * stride].reshape(B, H, n, stride, D)


@pair("stride_classes", "always_filled", "not_transposed")
def _(x, stride):
    B, H, T, D = x.shape
    return F.pad(x, (0, 0, 0, stride - T % stride)).view(B, H, T // stride + 1, stride, D)


@pair("stride_classes", "filled_in_front", "blocks")
def _(x, stride):
    B, H, T, D = x.shape
    return F.pad(x, (0, 0, -T % stride, 0)).view(B, H, stride, -1, D)


@pair("stride_classes", "filled_in_front", "folded")
def _(x, stride):
    padded = F.pad(x, (0, 0, -x.shape[2] % stride, 0))
    return padded.unflatten(2, (-1, stride)).transpose(2, 3).flatten(1, 2)


@form("stride_classes", "the D numbers cut instead of the tokens", None)
def _(x, stride):
    padded = F.pad(x, (0, -x.shape[3] % stride))
    return torch.stack([padded[..., c::stride] for c in range(stride)], dim=2)


@form("stride_classes", "filled with ones", None)
def _(x, stride):
    padded = F.pad(x, (0, 0, 0, -x.shape[2] % stride), value=1.0)
    return padded.unflatten(2, (-1, stride)).transpose(2, 3)


@form("stride_classes", "classes counted back from the last token", None)
def _(x, stride):
    padded = _filled(x.flip(2), stride)
    return padded.unflatten(2, (-1, stride)).transpose(2, 3)


@form("stride_classes", "a list of classes", None)
def _(x, stride):
    return [x[:, :, c::stride] for c in range(stride)]


@form("stride_classes", "stacked without filling up", None)
def _(x, stride):
    return torch.stack([x[:, :, c::stride] for c in range(stride)], dim=2)


# --- stride_classes: right answers ------------------------------------------------------------------------------


@right("stride_classes", "pad, unflatten, transpose")
def _(x, stride):
    return _filled(x, stride).unflatten(2, (-1, stride)).transpose(2, 3)


@right("stride_classes", "slices put into zeros")
def _(x, stride):
    B, H, T, D = x.shape
    classes = torch.zeros(B, H, stride, math.ceil(T / stride), D, dtype=x.dtype)
    for c in range(stride):
        tokens = x[:, :, c::stride]
        classes[:, :, c, : tokens.shape[2]] = tokens
    return classes


@right("stride_classes", "token by token")
def _(x, stride):
    B, H, T, D = x.shape
    classes = x.new_zeros(B, H, stride, -(-T // stride), D)
    for t in range(T):
        classes[:, :, t % stride, t // stride] = x[:, :, t]
    return classes


@right("stride_classes", "an index and a mask")
def _(x, stride):
    T = x.shape[2]
    places = torch.arange(stride)[:, None] + stride * torch.arange((T + stride - 1) // stride)
    return torch.where((places < T)[..., None], x[:, :, places.clamp(max=T - 1)], 0.0)


# --- merge_parts: mistakes --------------------------------------------------------------------------------------


@mutant("merge_parts", "averaged")
def _(outputs, log_sums):
    return outputs.mean(dim=0)


@mutant("merge_parts", "averaged_where_not_empty")
def _(outputs, log_sums):
    n = log_sums.isfinite().sum(0).unsqueeze(-1)
    return outputs.sum(0) / torch.where(n == 0, 1, n)


@mutant("merge_parts", "summed")
def _(outputs, log_sums):
    return sum(outputs)


@mutant("merge_parts", "logs_as_weights")
def _(outputs, log_sums):
    shares = log_sums / log_sums.sum(dim=0, keepdim=True)
    return (shares.unsqueeze(-1) * outputs).sum(dim=0)


@mutant("merge_parts", "over_queries")
def _(outputs, log_sums):
    shares = torch.softmax(log_sums, dim=3)
    return sum(share[..., None] * output for share, output in zip(shares, outputs, strict=True))


@mutant("merge_parts", "over_one")
def _(outputs, log_sums):
    totals = (log_sums - log_sums.logsumexp(0, keepdim=True)).unsqueeze(-1)
    return (F.softmax(torch.where(log_sums.isinf()[..., None], -math.inf, totals), dim=-1) * outputs).sum(0)


@mutant("merge_parts", "over_all")
def _(outputs, log_sums):
    totals = torch.exp(log_sums - torch.max(log_sums))
    return (totals / totals.sum()).unsqueeze(-1).mul(outputs).sum(0)


@mutant("merge_parts", "not_divided")
def _(outputs, log_sums):
    return (torch.exp(log_sums)[..., None] * outputs).sum(0)


@mutant("merge_parts", "relative_to_largest")
def _(outputs, log_sums):
    largest = log_sums.max(dim=0).values
    largest = torch.where(torch.isinf(largest), torch.zeros_like(largest), largest)
    return ((log_sums - largest).exp().unsqueeze(-1) * outputs).sum(dim=0)


@mutant("merge_parts", "largest_only")
def _(outputs, log_sums):
    best = log_sums.argmax(0)
    merged = torch.zeros_like(outputs[0])
    for p in range(len(outputs)):
        merged = torch.where((best == p)[..., None], outputs[p], merged)
    return merged


@mutant("merge_parts", "empty_counts")
def _(outputs, log_sums):
    shares = torch.softmax(log_sums.nan_to_num(neginf=0.0), dim=0)
    return torch.einsum("pbhtd,pbht->bhtd", outputs, shares)


@mutant("merge_parts", "nan_where_empty")
def _(outputs, log_sums):
    shares = torch.exp(log_sums - torch.logsumexp(log_sums, dim=0))
    return (shares[..., None] * outputs).sum(0)


@mutant("merge_parts", "no_last_axis")
def _(outputs, log_sums):
    totals = torch.exp(log_sums)
    return (outputs * (totals / totals.sum(0))).sum(0)


@mutant("merge_parts", "one_maximum")
def _(outputs, log_sums):
    totals = torch.exp(log_sums - log_sums.max())
    return (totals[..., None] * outputs).sum(0) / totals.sum(0).clamp(min=1e-30)[..., None]


@mutant("merge_parts", "plain_exp")
def _(outputs, log_sums):
    totals = torch.exp(log_sums)
    shares = totals / totals.sum(dim=0).clamp(min=1e-12)
    return torch.einsum("pbht,pbhtd->bhtd", shares, outputs)


@mutant("merge_parts", "low_raised")
def _(outputs, log_sums):
    shares = torch.softmax(torch.maximum(log_sums, torch.tensor(-30.0)), dim=0)
    return (shares.unsqueeze(-1) * outputs).sum(dim=0)


@mutant("merge_parts", "empty_low")
def _(outputs, log_sums):
    shares = torch.nan_to_num(log_sums, neginf=-100.0).softmax(0)
    return torch.einsum("pbht,pbhtd->bhtd", shares, outputs)


@pair("merge_parts", "plain_exp", "nan_where_empty")
def _(outputs, log_sums):
    totals = torch.exp(log_sums)
    return ((totals / totals.sum(0)).unsqueeze(-1) * outputs).sum(0)


@pair("merge_parts", "one_maximum", "nan_where_empty")
def _(outputs, log_sums):
    totals = torch.exp(log_sums - log_sums.max())
    return (totals[..., None] * outputs).sum(0) / totals.sum(0)[..., None]


@pair("merge_parts", "one_maximum", "relative_to_largest")
def _(outputs, log_sums):
    totals = torch.exp(log_sums - log_sums.max())
    return (totals[..., None] * outputs).sum(0)


@pair("merge_parts", "plain_exp", "over_all")
def _(outputs, log_sums):
    totals = log_sums.exp()
    return (totals / totals.sum()).unsqueeze(-1).mul(outputs).sum(0)


@pair("merge_parts", "relative_to_largest", "nan_where_empty")
def _(outputs, log_sums):
    return ((log_sums - log_sums.amax(0)).exp().unsqueeze(-1) * outputs).sum(dim=0)


@pair("merge_parts", "over_queries", "no_last_axis")
def _(outputs, log_sums):
    return (log_sums.softmax(-1) * outputs).sum(0)


@pair("merge_parts", "not_divided", "no_last_axis")
def _(outputs, log_sums):
    return (log_sums.exp() * outputs).sum(0)


@pair("merge_parts", "logs_as_weights", "no_last_axis")
def _(outputs, log_sums):
    return (log_sums / log_sums.sum(0, keepdim=True) * outputs).sum(0)


@form("merge_parts", "nothing subtracted, a small number added to the divisor", "plain_exp")
def _(outputs, log_sums):
    totals = log_sums.exp()
    return (outputs * (totals / (totals.sum(0) + 1e-9))[..., None]).sum(0)


@form("merge_parts", "clamped at -100", "low_raised")
def _(outputs, log_sums):
    return (outputs * log_sums.clamp(min=-100).softmax(0)[..., None]).sum(0)


@form("merge_parts", "the largest of all queries of a head is subtracted", "one_maximum")
def _(outputs, log_sums):
    totals = torch.exp(log_sums - log_sums.amax((0, 3), keepdim=True))
    return (totals[..., None] * outputs).sum(0) / totals.sum(0).clamp(min=1e-30)[..., None]


@form("merge_parts", "base 2", None)
def _(outputs, log_sums):
    totals = torch.exp2(log_sums)
    return (totals[..., None] * outputs).sum(0) / totals.sum(0).clamp(min=1e-30)[..., None]


@form("merge_parts", "the log-sums as shares, NaN replaced by zeros", None)
def _(outputs, log_sums):
    shares = (log_sums / log_sums.sum(0)).nan_to_num(0.0)
    return (shares[..., None] * outputs).sum(0)


@form("merge_parts", "folded with a sigmoid the wrong way round", None)
def _(outputs, log_sums):
    merged, total = outputs[0], log_sums[0]
    for output, other in zip(outputs[1:], log_sums[1:], strict=True):
        share = torch.sigmoid(total - other).nan_to_num(0.0)[..., None]
        merged, total = share * output + (1 - share) * merged, torch.logaddexp(total, other)
    return merged


@form("merge_parts", "folded, the total not carried on", None)
def _(outputs, log_sums):
    merged = outputs[0]
    for p in range(1, len(outputs)):
        share = torch.softmax(log_sums[p - 1 : p + 1], 0).nan_to_num(0.0)[..., None]
        merged = share[0] * merged + share[1] * outputs[p]
    return merged


@form("merge_parts", "with an axis P of size 1", None)
def _(outputs, log_sums):
    shares = torch.softmax(log_sums, 0).nan_to_num(0.0)
    return (shares[..., None] * outputs).sum(0, keepdim=True)


@form("merge_parts", "the sum of the totals forgotten, the log of it taken", None)
def _(outputs, log_sums):
    total = torch.logsumexp(log_sums, 0)
    return ((log_sums.exp() / total)[..., None] * outputs).sum(0).nan_to_num(0.0)


# --- merge_parts: right answers ---------------------------------------------------------------------------------


@right("merge_parts", "a softmax over the parts, -inf filled first")
def _(outputs, log_sums):
    shares = log_sums.masked_fill(log_sums == -math.inf, -1e30).softmax(0)
    return torch.einsum("pbht,pbhtd->bhtd", shares, outputs)


@right("merge_parts", "logsumexp of what is not empty")
def _(outputs, log_sums):
    empty = torch.isinf(log_sums)
    nothing = empty.all(0)
    total = log_sums.masked_fill(nothing, 0.0).logsumexp(0)
    shares = torch.exp(log_sums - total)
    return (outputs * shares.unsqueeze(-1)).sum(dim=0)


@right("merge_parts", "one part after the other, with a running maximum")
def _(outputs, log_sums):
    lowest = torch.finfo(log_sums.dtype).min
    largest = torch.full_like(log_sums[0], lowest)
    total, merged = torch.zeros_like(largest), torch.zeros_like(outputs[0])
    for output, log_sum in zip(outputs, log_sums, strict=True):
        new = torch.maximum(largest, log_sum.clamp(min=lowest))
        kept, added = (largest - new).exp(), (log_sum - new).exp()
        total = total * kept + added
        merged = merged * kept[..., None] + output * added[..., None]
        largest = new
    return merged / total.masked_fill(total == 0, 1.0)[..., None]


@right("merge_parts", "two at a time, by a sigmoid")
def _(outputs, log_sums):
    logs = log_sums.clamp(min=-1e4)  # far below any other, and no NaN
    merged, total = outputs[0], logs[0]
    for output, log_sum in zip(outputs[1:], logs[1:], strict=True):
        share = torch.sigmoid(log_sum - total)[..., None]
        merged, total = merged + share * (output - merged), torch.logaddexp(total, log_sum)
    return merged


# --- global_pattern: mistakes -----------------------------------------------------------------------------------


def _window(T, reach):
    """True up to `reach` places to each side, (T, T)."""
    ones = torch.ones(T, T, dtype=torch.bool)
    return ones.tril(reach) & ones.triu(-reach)


def _with_tokens(is_global, window, fill):
    """A window for each sentence; then `fill(mask, t)` for each of its global tokens t."""
    B, T = is_global.shape
    masks = _window(T, window - 1).repeat(B, 1, 1)
    for b in range(B):
        for t in range(T):
            if is_global[b, t]:
                fill(masks[b], t)
    return masks


@mutant("global_pattern", "seen_only")
def _(is_global, window):
    def fill(mask, t):
        mask[:, t] = True

    return _with_tokens(is_global, window, fill)


@mutant("global_pattern", "sees_only")
def _(is_global, window):
    def fill(mask, t):
        mask[t] = True

    return _with_tokens(is_global, window, fill)


@mutant("global_pattern", "both_needed")
def _(is_global, window):
    return _window(is_global.shape[1], window - 1) | torch.einsum("bi,bj->bij", is_global.int(), is_global.int()).bool()


@mutant("global_pattern", "no_global")
def _(is_global, window):
    return torch.stack([_window(len(row), window - 1) for row in is_global])


@mutant("global_pattern", "no_window")
def _(is_global, window):
    return torch.stack([row.logical_or(row.unsqueeze(1)) for row in is_global])


@mutant("global_pattern", "and_for_or")
def _(is_global, window):
    reached = is_global.unsqueeze(1) | is_global.unsqueeze(2)
    return torch.logical_and(_window(is_global.shape[1], window - 1), reached)


@mutant("global_pattern", "causal")
def _(is_global, window):
    def fill(mask, t):
        mask[t], mask[:, t] = True, True

    return torch.tril(_with_tokens(is_global, window, fill).int()).bool()


@mutant("global_pattern", "window_behind")
def _(is_global, window):
    B, T = is_global.shape
    mask = masks.sliding_window_mask(T, window=window).repeat(B, 1, 1)
    mask[is_global] = True
    mask.mT[is_global] = True
    return mask


@mutant("global_pattern", "no_absolute")
def _(is_global, window):
    place = torch.arange(is_global.shape[1])
    return (place > place[:, None] - window) | is_global.unsqueeze(1) | is_global.unsqueeze(2)


@mutant("global_pattern", "half_window")
def _(is_global, window):
    near = _window(is_global.shape[1], window // 2)
    return near | is_global[:, None] | is_global[..., None]


@mutant("global_pattern", "too_wide")
def _(is_global, window):
    near = _window(is_global.shape[1], window)
    return near | is_global[:, None] | is_global[..., None]


@mutant("global_pattern", "too_narrow")
def _(is_global, window):
    near = _window(is_global.shape[1], window - 2)
    return near | is_global[:, None] | is_global[..., None]


@mutant("global_pattern", "of_all_sentences")
def _(is_global, window):
    B, T = is_global.shape
    mask = _window(T, window - 1).repeat(B, 1, 1)
    tokens = is_global.nonzero()[:, 1]
    mask[:, tokens] = True
    mask[:, :, tokens] = True
    return mask


@mutant("global_pattern", "first_sentence")
def _(is_global, window):
    B, T = is_global.shape
    one = _window(T, window - 1) | is_global[0] | is_global[0].unsqueeze(1)
    return one.repeat(B, 1, 1)


@mutant("global_pattern", "no_query_axis")
def _(is_global, window):
    return _window(is_global.shape[1], window - 1) | is_global | is_global.T


@mutant("global_pattern", "inverted")
def _(is_global, window):
    apart = torch.arange(is_global.shape[1])[:, None] - torch.arange(is_global.shape[1])
    others = ~is_global
    return (apart.abs() >= window) & others[:, None] & others[:, :, None]


@pair("global_pattern", "causal", "seen_only")
def _(is_global, window):
    behind = torch.arange(is_global.shape[1])[:, None] - torch.arange(is_global.shape[1])
    return (behind >= 0) & ((behind < window) | is_global[:, None])


@pair("global_pattern", "half_window", "seen_only")
def _(is_global, window):
    return _window(is_global.shape[1], window // 2) | is_global.unsqueeze(1)


@pair("global_pattern", "window_behind", "seen_only")
def _(is_global, window):
    return masks.sliding_window_mask(is_global.shape[1], window=window) | is_global.unsqueeze(1)


@pair("global_pattern", "too_wide", "sees_only")
def _(is_global, window):
    return _window(is_global.shape[1], window) | is_global.unsqueeze(2)


@pair("global_pattern", "of_all_sentences", "seen_only")
def _(is_global, window):
    B, T = is_global.shape
    mask = _window(T, window - 1).repeat(B, 1, 1)
    mask[:, :, torch.where(is_global)[1]] = True
    return mask


@pair("global_pattern", "first_sentence", "seen_only")
def _(is_global, window):
    B, T = is_global.shape
    return (_window(T, window - 1) | is_global[0]).expand(B, T, T)


@pair("global_pattern", "first_sentence", "half_window")
def _(is_global, window):
    B, T = is_global.shape
    tokens, mask = is_global[0].nonzero().flatten(), _window(T, window // 2)
    mask[tokens], mask[:, tokens] = True, True
    return mask.expand(B, T, T)


@pair("global_pattern", "half_window", "both_needed")
def _(is_global, window):
    return _window(is_global.shape[1], window // 2) | (is_global[:, None] & is_global[:, :, None])


@form("global_pattern", "one mask for the batch, the first sentence's", "first_sentence")
def _(is_global, window):
    B, T = is_global.shape
    one = _window(T, window - 1) | is_global[0] | is_global[0][:, None]
    return one.expand(B, T, T) if B > 1 else one


@form("global_pattern", "half of the window on each side, the end not counted", None)
def _(is_global, window):
    return _window(is_global.shape[1], window // 2 - 1) | is_global[:, None] | is_global[:, :, None]


@form("global_pattern", "exclusive or", None)
def _(is_global, window):
    return _window(is_global.shape[1], window - 1) ^ (is_global[:, None] | is_global[:, :, None])


@form("global_pattern", "with a head axis", None)
def _(is_global, window):
    return (_window(is_global.shape[1], window - 1) | is_global[:, None] | is_global[:, :, None])[:, None]


@form("global_pattern", "counts instead of booleans", None)
def _(is_global, window):
    near = _window(is_global.shape[1], window - 1).int()
    return near + is_global[:, None].int() + is_global[:, :, None].int()


@form("global_pattern", "Longformer's numbers: 0 none, 1 near, 2 global", None)
def _(is_global, window):
    near = _window(is_global.shape[1], window - 1).long()
    return torch.where(is_global[:, None] | is_global[:, :, None], 2, near)


# --- global_pattern: right answers ------------------------------------------------------------------------------


@right("global_pattern", "rows and columns filled, sentence by sentence")
def _(is_global, window):
    def fill(mask, t):
        mask[t], mask[:, t] = True, True

    return _with_tokens(is_global, window, fill)


@right("global_pattern", "the masks of the course, united")
def _(is_global, window):
    T = is_global.shape[1]
    near = masks.sliding_window_mask(T, window=window, causal=False)
    return torch.stack([near | masks.global_mask(T, global_tokens=row.nonzero()) for row in is_global])


@right("global_pattern", "not both local and far")
def _(is_global, window):
    local = is_global.logical_not()
    far = _window(is_global.shape[1], window - 1).logical_not()
    return ~(far & local[:, None, :] & local[:, :, None])


@right("global_pattern", "three nested loops")
def _(is_global, window):
    B, T = is_global.shape
    mask = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(T):
                mask[b, i, j] = abs(i - j) < window or is_global[b, i] or is_global[b, j]
    return mask


# --- count_hops: mistakes ---------------------------------------------------------------------------------------


def _walked(mask):
    """Hops by breadth-first walks over lists."""
    T = mask.shape[0]
    hops = [[-1] * T for _ in range(T)]
    for i in range(T):
        hops[i][i] = 0
        front = [i]
        while front:
            new = []
            for k in front:
                for j in range(T):
                    if mask[k, j] and hops[i][j] < 0:
                        hops[i][j] = hops[i][k] + 1
                        new.append(j)
            front = new
    return torch.tensor(hops)


@mutant("count_hops", "transposed")
def _(mask):
    return _walked(mask.T)


@mutant("count_hops", "both_ways")
def _(mask):
    return _walked(mask.logical_or(mask.T))


@mutant("count_hops", "not_zero_for_itself")
def _(mask):
    T = len(mask)
    hops, power = torch.full((T, T), -1), mask.float()
    for n in range(1, T + 1):
        hops[(power > 0) & (hops == -1)] = n
        power = power @ mask.float()
    return hops


@mutant("count_hops", "one_for_itself")
def _(mask):
    reach = mask | torch.eye(len(mask), dtype=torch.bool)
    hops, power = torch.where(reach, 1, -1), reach.float()
    for n in range(2, len(mask)):
        power = (reach.float() @ power).clamp(max=1)
        hops[(power > 0) & (hops < 0)] = n
    return hops


@mutant("count_hops", "one_layer")
def _(mask):
    hops = mask.long() * 2 - 1
    return hops.fill_diagonal_(0)


@mutant("count_hops", "last_layer_missed")
def _(mask):
    hops = _walked(mask)
    return torch.where(hops == len(mask) - 1, -1, hops)


@mutant("count_hops", "fixed_number")
def _(mask):
    reach = torch.eye(len(mask), dtype=torch.bool)
    hops = reach.long() - 1
    for n in range(1, 10):
        new = (mask.float() @ reach.float()).bool() & ~reach
        hops[new] = n
        reach |= new
    return hops


@mutant("count_hops", "from_mask")
def _(mask):
    hops, seen, layer = -torch.ones_like(mask, dtype=torch.long), mask.clone(), 0
    hops[seen] = 0
    while True:
        layer += 1
        new = (mask[:, :, None] & seen[None]).any(dim=1) & ~seen
        if not new.any():
            return hops
        hops[new] = layer
        seen |= new


@mutant("count_hops", "within_a_layer")
def _(mask):
    T = len(mask)
    hops, seen = -torch.ones(T, T, dtype=torch.long), [{i} for i in range(T)]
    for i in range(T):
        hops[i, i] = 0
    for layer in range(1, T):
        for i in range(T):
            for k in range(T):
                if mask[i, k]:
                    seen[i] = seen[i] | seen[k]
            for j in seen[i]:
                if hops[i, j] < 0:
                    hops[i, j] = layer
    return hops


@mutant("count_hops", "doubled")
def _(mask):
    T = len(mask)
    hops = torch.full((T, T), -1).fill_diagonal_(0)
    reach = mask.float() + torch.eye(T)
    for n in range(1, T):
        hops = torch.where((reach > 0) & (hops < 0), n, hops)
        reach = (reach @ reach).clamp(max=1)
    return hops


@mutant("count_hops", "overwritten")
def _(mask):
    T = len(mask)
    hops, reach = torch.full((T, T), -1), torch.eye(T)
    for n in range(1, T):
        reach = ((mask.float() + torch.eye(T)) @ reach).clamp(max=1)
        hops[reach > 0] = n
    return hops


@mutant("count_hops", "between")
def _(mask):
    hops = _walked(mask)
    hops[hops >= 1] -= 1
    return hops


@mutant("count_hops", "never_is_zero")
def _(mask):
    T = len(mask)
    hops, power = torch.zeros(T, T, dtype=torch.long), torch.eye(T)
    for n in range(1, T):
        power = mask.float() @ power
        new = (power > 0) & (hops == 0) & ~torch.eye(T, dtype=torch.bool)
        hops[new] = n
    return hops


@mutant("count_hops", "never_is_T")
def _(mask):
    T = len(mask)
    hops = torch.where(mask, 1, T).fill_diagonal_(0)
    for k in range(T):
        hops = torch.minimum(hops, hops[:, k, None] + hops[k]).clamp(max=T)
    return hops


@pair("count_hops", "transposed", "never_is_zero")
def _(mask):
    T = len(mask)
    hops, power, step = torch.zeros(T, T, dtype=torch.long), torch.eye(T), mask.T.float()
    for n in range(1, T):
        power = (step @ power).clamp(max=1)
        hops[(power > 0) & (hops == 0) & (torch.eye(T) == 0)] = n
    return hops


@pair("count_hops", "never_is_zero", "between")
def _(mask):
    return (_walked(mask) - 1).clamp(min=0)


@pair("count_hops", "never_is_zero", "not_zero_for_itself")
def _(mask):
    T = len(mask)
    hops, power = torch.zeros(T, T, dtype=torch.long), torch.eye(T)
    for n in range(1, T + 1):
        power = (power @ mask.float()).clamp(max=1)
        hops[(hops == 0) & (power > 0)] = n
    return hops


@pair("count_hops", "from_mask", "transposed")
def _(mask):
    T, step = len(mask), mask.T.float()
    reached, hops = mask.T, torch.where(mask.T, 0, -1)
    for n in range(1, T):
        wider = reached | (step @ reached.float() > 0)
        hops[wider & ~reached] = n
        reached = wider
    return hops


@pair("count_hops", "from_mask", "never_is_zero")
def _(mask):
    T, reached = len(mask), mask
    hops = torch.zeros(T, T, dtype=torch.long)
    for n in range(1, T):
        wider = reached | (mask.float() @ reached.float() > 0)
        hops[wider & ~reached] = n
        reached = wider
    return hops


@pair("count_hops", "fixed_number", "never_is_zero")
def _(mask):
    hops, power = torch.zeros(mask.shape, dtype=torch.long), torch.eye(len(mask))
    for n in range(1, 10):
        power = (mask.float() @ power).clamp(max=1)
        hops[(power > 0) & (hops == 0) & (torch.eye(len(mask)) == 0)] = n
    return hops


@pair("count_hops", "one_layer", "never_is_zero")
def _(mask):
    return mask.long().fill_diagonal_(0)


@pair("count_hops", "one_layer", "not_zero_for_itself")
def _(mask):
    return torch.where(mask, 1, -1)


@form("count_hops", "a float", None)
def _(mask):
    return _walked(mask).float()


@form("count_hops", "infinity where it never comes to depend", None)
def _(mask):
    hops = _walked(mask).float()
    return hops.masked_fill(hops < 0, math.inf)


@form("count_hops", "the number of ways", None)
def _(mask):
    T = len(mask)
    return torch.linalg.matrix_power(mask.double(), T - 1).long()


@form("count_hops", "the distance", None)
def _(mask):
    return (torch.arange(len(mask))[:, None] - torch.arange(len(mask))).abs()


@form("count_hops", "three layers at most", None)
def _(mask):
    hops = _walked(mask)
    return torch.where(hops > 3, -1, hops)


@form("count_hops", "counted from 1", None)
def _(mask):
    hops = _walked(mask)
    return torch.where(hops >= 0, hops + 1, hops)


@form("count_hops", "exactly n steps, without the identity, the last n", None)
def _(mask):
    T = len(mask)
    hops, power = torch.full((T, T), -1).fill_diagonal_(0), torch.eye(T)
    for n in range(1, T):
        power = (power @ mask.float()).clamp(max=1)
        hops[power > 0] = n
    return hops


# --- count_hops: right answers ----------------------------------------------------------------------------------


@right("count_hops", "breadth first, with lists")
def _(mask):
    return _walked(mask)


@right("count_hops", "powers of the mask")
def _(mask):
    T = len(mask)
    hops, power = torch.full((T, T), -1).fill_diagonal_(0), mask.float()
    for n in range(1, T):
        hops[(power > 0) & (hops == -1)] = n
        power = (power @ mask.float()).clamp(max=1)
    return hops


@right("count_hops", "shortest ways through each token in turn")
def _(mask):
    T = len(mask)
    far = 10 * T
    hops = torch.where(mask, 1, far).fill_diagonal_(0)
    for k in range(T):
        hops = torch.minimum(hops, hops[:, k : k + 1] + hops[k : k + 1])
    return torch.where(hops < far, hops, -1)


@right("count_hops", "until nothing changes")
def _(mask):
    reach = torch.eye(mask.shape[0], dtype=torch.bool)
    hops, layer = reach.long() - 1, 0
    while True:
        layer += 1
        new = (mask[:, :, None] & reach[None]).any(dim=1) & ~reach
        if not new.any():
            return hops
        hops = torch.where(new, layer, hops)
        reach = reach | new
