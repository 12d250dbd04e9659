"""Chapter 15 as learners write it: every misconception a second time, two mistakes at once, and right answers.

Nothing here uses the `faulty` switches of attncourse/checks/execution.py: the styles differ on purpose (stack, split,
einsum, loops over tokens, whole numbers in Python), because the check must recognise the mistake and not the code.
"""

import math

import torch

from attncourse.execution import Running, attend_part, finish, merge, tiled_gradients
from attncourse.paged_cache import BlockPool, PagedKVCache
from tests.checks.mutants import Answers

ANSWERS = Answers("execution")
mutant, pair, form, right = ANSWERS.mutant, ANSWERS.pair, ANSWERS.form, ANSWERS.right
good_test, lax_test, strict_test = ANSWERS.good_test, ANSWERS.lax_test, ANSWERS.strict_test

# --- merge_softmaxes: mistakes ----------------------------------------------------------------------------------


def _gap(own, other):
    """How far a maximum lies below the larger of the two, at most 0; 0 too where neither part has a key."""
    return (own - other).nan_to_num(nan=0.0).clamp(max=0.0)


def _without_nan(maximum):
    return torch.where(maximum.isinf(), torch.zeros_like(maximum), maximum)


@mutant("merge_softmaxes", "nothing_rescaled")
def _(m1, l1, w1, m2, l2, w2):
    return torch.where(m1 > m2, m1, m2), l1 + l2, w1 + w2


@mutant("merge_softmaxes", "weighted_not_rescaled")
def _(m1, l1, w1, m2, l2, w2):
    total = _gap(m1, m2).exp() * l1 + _gap(m2, m1).exp() * l2
    return torch.stack([m1, m2]).amax(0), total, torch.stack([w1, w2]).sum(0)


@mutant("merge_softmaxes", "total_not_rescaled")
def _(m1, l1, w1, m2, l2, w2):
    return torch.max(m1, m2), l1 + l2, _gap(m1, m2).exp() * w1 + _gap(m2, m1).exp() * w2


@mutant("merge_softmaxes", "first_maximum")
def _(m1, l1, w1, m2, l2, w2):
    factor = torch.exp(m2 - m1).masked_fill((m1 == m2) & m1.isinf(), 0.0)
    return m1, l1 + factor * l2, w1 + factor * w2


@mutant("merge_softmaxes", "second_maximum")
def _(m1, l1, w1, m2, l2, w2):
    factor = torch.exp(m1 - m2).masked_fill((m1 == m2) & m1.isinf(), 0.0)
    return m2, factor * l1 + l2, factor * w1 + w2


@mutant("merge_softmaxes", "smaller")
def _(m1, l1, w1, m2, l2, w2):
    low = torch.stack([m1, m2]).amin(0)
    none = m1.isinf() & m2.isinf()
    a, b = (torch.exp(m - low).masked_fill(none, 0.0) for m in (m1, m2))
    return low, a * l1 + b * l2, a * w1 + b * w2


@mutant("merge_softmaxes", "maxima_added")
def _(m1, l1, w1, m2, l2, w2):
    none = m1.isinf() & m2.isinf()
    a, b = (torch.exp(m - (m1 + m2)).masked_fill(none, 0.0) for m in (m1, m2))
    return m1 + m2, a * l1 + b * l2, a * w1 + b * w2


@mutant("merge_softmaxes", "one_maximum")
def _(m1, l1, w1, m2, l2, w2):
    top = torch.maximum(m1.max(), m2.max())
    return (
        top.expand_as(m1),
        (m1 - top).exp() * l1 + (m2 - top).exp() * l2,
        (m1 - top).exp() * w1 + (m2 - top).exp() * w2,
    )


@mutant("merge_softmaxes", "inverted")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    shift = _without_nan(m)
    return m, l1 / (m1 - shift).exp() + l2 / (m2 - shift).exp(), w1 / (m1 - shift).exp() + w2 / (m2 - shift).exp()


@mutant("merge_softmaxes", "swapped")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    of_second, of_first = ((x - _without_nan(m)).exp() for x in (m1, m2))
    return m, of_first * l1 + of_second * l2, of_first * w1 + of_second * w2


@mutant("merge_softmaxes", "second_shrinks")
def _(m1, l1, w1, m2, l2, w2):
    top, low = torch.maximum(m1, m2), torch.minimum(m1, m2)
    factor = torch.exp(low - _without_nan(top))
    return top, l1 + factor * l2, w1 + factor * w2


@mutant("merge_softmaxes", "not_exponentiated")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    shift = _without_nan(m)
    return m, (m1 - shift) * l1 + (m2 - shift) * l2, (m1 - shift) * w1 + (m2 - shift) * w2


@mutant("merge_softmaxes", "plain_exp")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    e = torch.exp(_without_nan(m))
    return m, torch.exp(m1) / e * l1 + torch.exp(m2) / e * l2, torch.exp(m1) / e * w1 + torch.exp(m2) / e * w2


@mutant("merge_softmaxes", "one_in_all")
def _(m1, l1, w1, m2, l2, w2):
    a, b = torch.stack([m1, m2]).softmax(0)
    return torch.maximum(m1, m2), a * l1 + b * l2, a * w1 + b * w2


@mutant("merge_softmaxes", "larger_only")
def _(m1, l1, w1, m2, l2, w2):
    first = m1 >= m2
    return torch.where(first, m1, m2), torch.where(first, l1, l2), torch.where(first, w1, w2)


@mutant("merge_softmaxes", "divided_before")
def _(m1, l1, w1, m2, l2, w2):
    a, b = _gap(m1, m2).exp(), _gap(m2, m1).exp()
    return torch.maximum(m1, m2), a * l1 + b * l2, a * (w1 / l1) + b * (w2 / l2)


@mutant("merge_softmaxes", "divided_after")
def _(m1, l1, w1, m2, l2, w2):
    a, b = _gap(m1, m2).exp(), _gap(m2, m1).exp()
    total = a * l1 + b * l2
    return torch.maximum(m1, m2), total, (a * w1 + b * w2) / torch.where(total > 0, total, 1.0)


@mutant("merge_softmaxes", "log_sum")
def _(m1, l1, w1, m2, l2, w2):
    a, b = _gap(m1, m2).exp(), _gap(m2, m1).exp()
    return torch.logaddexp(m1 + l1.log(), m2 + l2.log()), a * l1 + b * l2, a * w1 + b * w2


@mutant("merge_softmaxes", "nan_where_empty")
def _(m1, l1, w1, m2, l2, w2):
    both = torch.stack([m1, m2])
    m = both.amax(0)
    a, b = torch.exp(both - m)
    return m, a * l1 + b * l2, a * w1 + b * w2


@mutant("merge_softmaxes", "empty_is_zero")
def _(m1, l1, w1, m2, l2, w2):
    m1, m2 = m1.nan_to_num(neginf=0.0), m2.nan_to_num(neginf=0.0)
    m = torch.maximum(m1, m2)
    a, b = torch.exp(m1 - m), torch.exp(m2 - m)
    return m, a * l1 + b * l2, a * w1 + b * w2


@pair("merge_softmaxes", "nan_where_empty", "weighted_not_rescaled")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    return m, torch.exp(m1 - m) * l1 + torch.exp(m2 - m) * l2, w1 + w2


@pair("merge_softmaxes", "nan_where_empty", "total_not_rescaled")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    return m, l1 + l2, torch.exp(m1 - m) * w1 + torch.exp(m2 - m) * w2


@pair("merge_softmaxes", "nan_where_empty", "swapped")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    return m, torch.exp(m2 - m) * l1 + torch.exp(m1 - m) * l2, torch.exp(m2 - m) * w1 + torch.exp(m1 - m) * w2


@pair("merge_softmaxes", "nan_where_empty", "first_maximum")
def _(m1, l1, w1, m2, l2, w2):
    factor = torch.exp(m2 - m1)
    return m1, l1 + factor * l2, w1 + factor * w2


@pair("merge_softmaxes", "weighted_not_rescaled", "divided_after")
def _(m1, l1, w1, m2, l2, w2):
    total = _gap(m1, m2).exp() * l1 + _gap(m2, m1).exp() * l2
    return torch.maximum(m1, m2), total, (w1 + w2) / total.clamp(min=1e-30)


@form("merge_softmaxes", "the log-sum, with two totals of 1", None)
def _(m1, l1, w1, m2, l2, w2):
    log_sum = torch.logaddexp(m1 + l1.log(), m2 + l2.log())
    return log_sum, torch.ones_like(log_sum), (w1 + w2) / (l1 + l2)


@form("merge_softmaxes", "one row decides for all: if", None)
def _(m1, l1, w1, m2, l2, w2):
    if (m1 > m2).all():
        return m1, l1 + torch.exp(m2 - m1) * l2, w1 + torch.exp(m2 - m1) * w2
    return m2, l2 + torch.exp(m1 - m2) * l1, w2 + torch.exp(m1 - m2) * w1


@form("merge_softmaxes", "the axis of size 1 lost", None)
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)[..., 0]
    a, b = _gap(m1, m2).exp(), _gap(m2, m1).exp()
    return m, (a * l1 + b * l2)[..., 0], a * w1 + b * w2


@mutant("merge_softmaxes", "first_as_it_is")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    factor = torch.exp(m2 - _without_nan(m))
    return m, l1 + factor * l2, w1 + factor * w2


@mutant("merge_softmaxes", "second_as_it_is")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.stack([m1, m2]).amax(0)
    factor = torch.exp(m1 - m.masked_fill(m.isinf(), 0.0))
    return m, torch.addcmul(l2, factor, l1), torch.addcmul(w2, factor, w1)


@mutant("merge_softmaxes", "from_zero")
def _(m1, l1, w1, m2, l2, w2):
    parts = [(m1.exp() * l1, m1.exp() * w1), (m2.exp() * l2, m2.exp() * w2)]
    total, weighted = (sum(both) for both in zip(*parts, strict=True))
    return torch.where(m1 > m2, m1, m2), total, weighted


@mutant("merge_softmaxes", "empty_result_zero")
def _(m1, l1, w1, m2, l2, w2):
    m = _without_nan(torch.max(m1, m2))
    a, b = torch.exp(m1 - m), torch.exp(m2 - m)
    return m, a * l1 + b * l2, a * w1 + b * w2


# --- merge_softmaxes: right answers -----------------------------------------------------------------------------


@right("merge_softmaxes", "stacked, with a sum over the parts")
def _(m1, l1, w1, m2, l2, w2):
    m, total, weighted = torch.stack([m1, m2]), torch.stack([l1, l2]), torch.stack([w1, w2])
    largest = m.amax(0)
    factors = (m - largest.clamp(min=torch.finfo(m.dtype).min)).exp()
    return largest, (factors * total).sum(0), (factors * weighted).sum(0)


@right("merge_softmaxes", "a loop over the parts, folded in one by one")
def _(m1, l1, w1, m2, l2, w2):
    m = torch.maximum(m1, m2)
    total, weighted = torch.zeros_like(l1), torch.zeros_like(w1)
    for own, part, products in ((m1, l1, w1), (m2, l2, w2)):
        factor = torch.exp(own - torch.where(torch.isneginf(m), torch.zeros_like(m), m))
        total = total + factor * part
        weighted = torch.addcmul(weighted, factor, products)
    return m, total, weighted


@right("merge_softmaxes", "the larger part keeps its numbers")
def _(m1, l1, w1, m2, l2, w2):
    first = m1 >= m2
    top, low = torch.where(first, m1, m2), torch.where(first, m2, m1)
    factor = torch.exp(low - top.masked_fill(top.isinf(), 0.0))
    total = torch.where(first, l1, l2) + factor * torch.where(first, l2, l1)
    return top, total, torch.where(first, w1, w2) + factor * torch.where(first, w2, w1)


@right("merge_softmaxes", "the course's function")
def _(*arguments):
    return tuple(merge(Running(*arguments[:3]), Running(*arguments[3:])))


# --- online_attention: mistakes ---------------------------------------------------------------------------------


def _pieces(query, key, value, tile, scale=None):
    """(scores, values) of each tile."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    for k, v in zip(key.split(tile, dim=2), value.split(tile, dim=2), strict=True):
        yield torch.einsum("bhtd,bhsd->bhts", query, k) * scale, v


def _attend(query, key, value, tile, scale=None):
    """Right, for the given scale: the output so far, and the logarithm of its sum."""
    output, log_sum = None, None
    for scores, v in _pieces(query, key, value, tile, scale):
        new = scores.logsumexp(-1, keepdim=True)
        own = torch.exp(scores - new) @ v
        if output is None:
            output, log_sum = own, new
        else:
            both = torch.logaddexp(log_sum, new)
            output = output * torch.exp(log_sum - both) + own * torch.exp(new - both)
            log_sum = both
    return output


def _soft(scores):
    e = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


@mutant("online_attention", "nothing_rescaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        m = torch.maximum(m, s.max(-1, keepdim=True).values)
        p = (s - m).exp()
        total, weighted = total + p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


@mutant("online_attention", "weighted_not_rescaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.max(-1, keepdim=True).values)
        p = (s - new).exp()
        total = total * (m - new).exp() + p.sum(-1, keepdim=True)
        weighted = weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "total_not_rescaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.max(-1, keepdim=True).values)
        p = (s - new).exp()
        total = total + p.sum(-1, keepdim=True)
        weighted = weighted * (m - new).exp() + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "maximum_stays")
def _(query, key, value, tile):
    first, *others = _pieces(query, key, value, tile)
    m = first[0].amax(-1, keepdim=True)
    p = (first[0] - m).exp()
    total, weighted = p.sum(-1, keepdim=True), p @ first[1]
    for s, v in others:
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p, shrink = (s - new).exp(), (m - new).exp()
        total, weighted = total * shrink + p.sum(-1, keepdim=True), weighted * shrink + p @ v
    return weighted / total


@mutant("online_attention", "last_tile")
def _(query, key, value, tile):
    m = torch.full((*query.shape[:-1], 1), -torch.inf)  # and so it stays
    total, weighted = torch.zeros_like(m), torch.zeros_like(query[..., :1])
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        total = torch.exp(m - new) * total + torch.exp(s - new).sum(-1, keepdim=True)
        weighted = torch.exp(m - new) * weighted + torch.exp(s - new) @ v
    return weighted / total


@mutant("online_attention", "total_overwritten")
def _(query, key, value, tile):
    m, weighted = torch.tensor(-torch.inf), 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = (s - new).exp()
        total = p.sum(-1, keepdim=True)
        weighted = weighted * (m - new).exp() + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "tile_not_rescaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        own = s.amax(-1, keepdim=True)
        new = torch.maximum(m, own)
        p = torch.exp(s - own)
        total = torch.exp(m - new) * total + p.sum(-1, keepdim=True)
        weighted = torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "tile_maximum")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = s.amax(-1, keepdim=True)
        p = torch.exp(s - new)
        total = torch.exp(m - new) * total + p.sum(-1, keepdim=True)
        weighted = torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "first_maximum")
def _(query, key, value, tile):
    m, total, weighted = None, 0, 0
    for s, v in _pieces(query, key, value, tile):
        if m is None:
            m = s.amax(-1, keepdim=True)
        p = torch.exp(s - m)
        total, weighted = total + p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


@mutant("online_attention", "no_maximum")
def _(query, key, value, tile):
    parts = [(s.exp(), v) for s, v in _pieces(query, key, value, tile)]
    return sum(p @ v for p, v in parts) / sum(p.sum(-1, keepdim=True) for p, _ in parts)


@mutant("online_attention", "one_maximum")
def _(query, key, value, tile):
    m, total, weighted = -math.inf, 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = max(m, s.max().item())
        shrink, p = math.exp(m - new), torch.exp(s - new)
        total, weighted = shrink * total + p.sum(-1, keepdim=True), shrink * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "starts_at_zero")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(0.0), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        total = torch.exp(m - new) * total + p.sum(-1, keepdim=True)
        weighted = torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "inverted")
def _(query, key, value, tile):
    m = None
    for s, v in _pieces(query, key, value, tile):
        own = s.amax(-1, keepdim=True)
        if m is None:
            m, p = own, torch.exp(s - own)
            total, weighted = p.sum(-1, keepdim=True), p @ v
            continue
        new = torch.maximum(m, own)
        p = torch.exp(s - new)
        total = torch.exp(new - m) * total + p.sum(-1, keepdim=True)
        weighted = torch.exp(new - m) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "ragged_dropped")
def _(query, key, value, tile):
    n = key.shape[2] // tile
    if n == 0:
        return torch.full_like(query[..., :1] @ value[:, :, :1], math.nan)
    return _attend(query, key[:, :, : n * tile], value[:, :, : n * tile], tile)


@mutant("online_attention", "last_key_lost")
def _(query, key, value, tile):
    kept = [p for p in range(key.shape[2]) if p % tile < tile - 1]
    return _attend(query, key[:, :, kept], value[:, :, kept], max(1, tile - 1))


@mutant("online_attention", "divided_each")
def _(query, key, value, tile):
    m, total, output = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        total = torch.exp(m - new) * total + p.sum(-1, keepdim=True)
        output = (torch.exp(m - new) * output + p @ v) / total
        m = new
    return output


@mutant("online_attention", "divided_so_far")
def _(query, key, value, tile):
    m, total, output = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        total = torch.exp(m - new) * total + p.sum(-1, keepdim=True)
        output = torch.exp(m - new) * output + (p / total) @ v
        m = new
    return output


@mutant("online_attention", "tiles_averaged")
def _(query, key, value, tile):
    return torch.stack([_soft(s) @ v for s, v in _pieces(query, key, value, tile)]).mean(0)


@mutant("online_attention", "tiles_added")
def _(query, key, value, tile):
    return torch.stack([_soft(s) @ v for s, v in _pieces(query, key, value, tile)]).sum(0)


@mutant("online_attention", "not_divided")
def _(query, key, value, tile):
    m, weighted = torch.tensor(-torch.inf), 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        weighted = torch.exp(m - new) * weighted + torch.exp(s - new) @ v
        m = new
    return weighted


@mutant("online_attention", "not_scaled")
def _(query, key, value, tile):
    return _attend(query, key, value, tile, scale=1.0)


@mutant("online_attention", "no_root")
def _(query, key, value, tile):
    return _attend(query, key, value, tile, scale=1 / key.shape[-1])


@mutant("online_attention", "root_of_value")
def _(query, key, value, tile):
    return _attend(query, key, value, tile, scale=value.shape[-1] ** -0.5)


@mutant("online_attention", "multiplied")
def _(query, key, value, tile):
    return _attend(query, key, value, tile, scale=key.shape[-1] ** 0.5)


@pair("online_attention", "ragged_dropped", "not_scaled")
def _(query, key, value, tile):
    n = key.shape[2] // tile
    if n == 0:
        return torch.full_like(query[..., :1] @ value[:, :, :1], math.nan)
    return _attend(query, key[:, :, : n * tile], value[:, :, : n * tile], tile, scale=1.0)


@pair("online_attention", "nothing_rescaled", "not_divided")
def _(query, key, value, tile):
    m, weighted = torch.tensor(-torch.inf), 0
    for s, v in _pieces(query, key, value, tile):
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        weighted = weighted + torch.exp(s - m) @ v
    return weighted


@pair("online_attention", "nothing_rescaled", "not_scaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile, scale=1.0):
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = (s - m).exp()
        total, weighted = total + p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


@pair("online_attention", "total_overwritten", "nothing_rescaled")
def _(query, key, value, tile):
    m, weighted = torch.tensor(-torch.inf), 0
    for s, v in _pieces(query, key, value, tile):
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - m)
        total, weighted = p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


@pair("online_attention", "tiles_averaged", "not_scaled")
def _(query, key, value, tile):
    return torch.stack([_soft(s) @ v for s, v in _pieces(query, key, value, tile, 1.0)]).mean(0)


@pair("online_attention", "tile_not_rescaled", "nothing_rescaled")
def _(query, key, value, tile):
    total = weighted = 0
    for s, v in _pieces(query, key, value, tile):
        p = torch.exp(s - s.amax(-1, keepdim=True))
        total, weighted = total + p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


@form("online_attention", "the old maximum is overwritten before the factor", "nothing_rescaled")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        total = torch.exp(m - m) * total + torch.exp(s - m).sum(-1, keepdim=True)
        weighted = torch.exp(m - m) * weighted + torch.exp(s - m) @ v
    return weighted / total


@form("online_attention", "the old maximum in the exponentials", None)
def _(query, key, value, tile):
    m, total, weighted = None, 0, 0
    for s, v in _pieces(query, key, value, tile):
        m = s.amax(-1, keepdim=True) if m is None else m
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - m)
        total, weighted = torch.exp(m - new) * total + p.sum(-1, keepdim=True), torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@form("online_attention", "the maximum over the queries", "one_maximum")
def _(query, key, value, tile):
    m, total, weighted = torch.tensor(-torch.inf), 0, 0
    for s, v in _pieces(query, key, value, tile):
        new = torch.maximum(m, s.amax((-2, -1), keepdim=True))
        p = torch.exp(s - new)
        total, weighted = torch.exp(m - new) * total + p.sum(-1, keepdim=True), torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@form("online_attention", "the sums assigned anew in each tile", None)
def _(query, key, value, tile):
    m = torch.tensor(-torch.inf)
    for s, v in _pieces(query, key, value, tile):
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - m)
        total, weighted = p.sum(-1, keepdim=True), p @ v
    return weighted / total


@mutant("online_attention", "first_twice")
def _(query, key, value, tile):
    pieces = list(_pieces(query, key, value, tile))
    m = pieces[0][0].amax(-1, keepdim=True)
    p = torch.exp(pieces[0][0] - m)
    total, weighted = p.sum(-1, keepdim=True), p @ pieces[0][1]
    for s, v in pieces:
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        total, weighted = torch.exp(m - new) * total + p.sum(-1, keepdim=True), torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "step_one")
def _(query, key, value, tile):
    m = query.new_full((*query.shape[:3], 1), -torch.inf)
    total, weighted = torch.zeros_like(m), 0
    for start in range(key.size(2)):
        k, v = key[:, :, start : start + tile], value[:, :, start : start + tile]
        s = query @ k.mT / math.sqrt(query.size(3))
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new)
        total, weighted = torch.exp(m - new) * total + p.sum(-1, keepdim=True), torch.exp(m - new) * weighted + p @ v
        m = new
    return weighted / total


@mutant("online_attention", "values_of_first")
def _(query, key, value, tile):
    read = torch.arange(key.size(2)) % tile
    return _attend(query, key, value[:, :, read], tile)


@form("online_attention", "all scores, put together from tiles", None)
def _(query, key, value, tile):
    scores = torch.cat([s for s, _ in _pieces(query, key, value, tile)], -1)
    return _soft(scores) @ value


@form("online_attention", "tiles of queries, with all keys", None)
def _(query, key, value, tile):
    return torch.cat([_soft(q @ key.mT / math.sqrt(q.size(3))) @ value for q in query.split(tile, 2)], 2)


# --- online_attention: right answers ----------------------------------------------------------------------------


@right("online_attention", "log-sums, an average at every step")
def _(query, key, value, tile):
    return _attend(query, key, value, tile)


@right("online_attention", "parts first, merged from the end")
def _(query, key, value, tile):
    parts = []
    for scores, v in _pieces(query, key, value, tile):
        m = scores.amax(-1, keepdim=True)
        p = torch.exp(scores - m)
        parts.append((m, p.sum(-1, keepdim=True), p @ v))
    m, total, weighted = parts.pop()
    while parts:
        other, more, products = parts.pop()
        top = torch.maximum(m, other)
        total = torch.exp(m - top) * total + torch.exp(other - top) * more
        weighted = torch.exp(m - top) * weighted + torch.exp(other - top) * products
        m = top
    return weighted / total


@right("online_attention", "two passes over the tiles")
def _(query, key, value, tile):
    m = torch.cat([s.amax(-1, keepdim=True) for s, _ in _pieces(query, key, value, tile)], -1).amax(-1, keepdim=True)
    shares = [(torch.exp(s - m), v) for s, v in _pieces(query, key, value, tile)]
    return sum(p @ v for p, v in shares) / sum(p.sum(-1, keepdim=True) for p, _ in shares)


@right("online_attention", "a column of ones carries the total")
def _(query, key, value, tile):
    both = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    m, summed = query.new_full((*query.shape[:3], 1), -math.inf), 0
    for scores, v in _pieces(query, key, both, tile):
        new = torch.maximum(m, scores.amax(-1, keepdim=True))
        summed = torch.exp(m - new) * summed + torch.exp(scores - new) @ v
        m = new
    return summed[..., :-1] / summed[..., -1:]


@right("online_attention", "the course's parts")
def _(query, key, value, tile):
    parts = [attend_part(query, k, v) for k, v in zip(key.split(tile, 2), value.split(tile, 2), strict=True)]
    running = parts[0]
    for part in parts[1:]:
        running = merge(running, part)
    return finish(running)


# --- score_gradients: mistakes ----------------------------------------------------------------------------------


def _weights(query, key, log_sum, scale=None):
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * (query.size(-1) ** -0.5 if scale is None else scale)
    return torch.exp(scores - log_sum.unsqueeze(-1))


def _inner(value, output, grad_output):
    """What the weights multiply."""
    return (
        torch.einsum("bhtv,bhsv->bhts", grad_output, value)
        - torch.einsum("bhtv,bhtv->bht", grad_output, output)[..., None]
    )


def _passed_on(query, key, grad_scores, scale=None):
    """Gradients of queries and keys."""
    scale = query.size(-1) ** -0.5 if scale is None else scale
    of_query = torch.einsum("bhts,bhsd->bhtd", grad_scores, key)
    return of_query * scale, torch.einsum("bhts,bhtd->bhsd", grad_scores, query) * scale


def _back(query, key, value, output, log_sum, grad_output, *, weights=None, inner=None, scores=None):
    """All four, with what is given in place of the right one."""
    weights = _weights(query, key, log_sum) if weights is None else weights
    inner = _inner(value, output, grad_output) if inner is None else inner
    scores = weights * inner if scores is None else scores
    return scores, *_passed_on(query, key, scores), weights.transpose(2, 3) @ grad_output


@mutant("score_gradients", "softmax_of_tile")
def _(query, key, value, output, log_sum, grad_output):
    weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.size(3)), dim=-1)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@mutant("score_gradients", "not_normalised")
def _(query, key, value, output, log_sum, grad_output):
    scores = query @ key.transpose(2, 3) / math.sqrt(query.size(3))
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@mutant("score_gradients", "log_not_undone")
def _(query, key, value, output, log_sum, grad_output):
    weights = torch.exp(query @ key.transpose(2, 3) / math.sqrt(query.size(3))) / log_sum.unsqueeze(3)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@mutant("score_gradients", "not_exponentiated")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum).log()
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@mutant("score_gradients", "row_of_tile")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    inner = grad_output @ value.transpose(2, 3)
    inner = inner - torch.einsum("bhts,bhts->bht", weights, inner)[..., None]
    return _back(query, key, value, output, log_sum, grad_output, inner=inner)


@mutant("score_gradients", "row_of_gradients")
def _(query, key, value, output, log_sum, grad_output):
    inner = grad_output @ value.transpose(2, 3)
    return _back(query, key, value, output, log_sum, grad_output, inner=inner - inner.sum(3, keepdim=True))


@mutant("score_gradients", "row_averaged")
def _(query, key, value, output, log_sum, grad_output):
    inner = grad_output @ value.transpose(2, 3) - (output * grad_output).mean(3, keepdim=True)
    return _back(query, key, value, output, log_sum, grad_output, inner=inner)


@mutant("score_gradients", "one_row")
def _(query, key, value, output, log_sum, grad_output):
    inner = grad_output @ value.transpose(2, 3) - torch.dot(output.flatten(), grad_output.flatten())
    return _back(query, key, value, output, log_sum, grad_output, inner=inner)


@mutant("score_gradients", "no_row")
def _(query, key, value, output, log_sum, grad_output):
    inner = torch.einsum("bhtv,bhsv->bhts", grad_output, value)
    return _back(query, key, value, output, log_sum, grad_output, inner=inner)


@mutant("score_gradients", "row_added")
def _(query, key, value, output, log_sum, grad_output):
    return _back(query, key, value, output, log_sum, grad_output, inner=_inner(value, -output, grad_output))


@mutant("score_gradients", "sign")
def _(query, key, value, output, log_sum, grad_output):
    row = (grad_output * output).sum(3, keepdim=True)
    inner = row - grad_output @ value.transpose(2, 3)
    return _back(query, key, value, output, log_sum, grad_output, inner=inner)


@mutant("score_gradients", "no_brackets")
def _(query, key, value, output, log_sum, grad_output):
    grad_weights = grad_output @ value.transpose(2, 3)
    scores = _weights(query, key, log_sum) * grad_weights - (grad_output * output).sum(3, keepdim=True)
    return _back(query, key, value, output, log_sum, grad_output, scores=scores)


@mutant("score_gradients", "like_a_sigmoid")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    scores = (weights - weights**2) * (grad_output @ value.transpose(2, 3))
    return _back(query, key, value, output, log_sum, grad_output, scores=scores)


@mutant("score_gradients", "softmax_skipped")
def _(query, key, value, output, log_sum, grad_output):
    return _back(query, key, value, output, log_sum, grad_output, scores=grad_output @ value.transpose(2, 3))


@mutant("score_gradients", "weights_left_out")
def _(query, key, value, output, log_sum, grad_output):
    return _back(query, key, value, output, log_sum, grad_output, scores=_inner(value, output, grad_output))


@mutant("score_gradients", "scores_not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum, scale=1.0)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@mutant("score_gradients", "no_root")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum, scale=1 / key.size(3))
    scores = weights * _inner(value, output, grad_output)
    return scores, *_passed_on(query, key, scores, 1 / key.size(3)), weights.mT @ grad_output


@mutant("score_gradients", "not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    scores, _, _, of_value = _back(query, key, value, output, log_sum, grad_output)
    return scores, *_passed_on(query, key, scores, 1.0), of_value


@mutant("score_gradients", "query_not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    scaled = query / math.sqrt(query.size(3))
    weights = torch.exp(scaled @ key.transpose(2, 3) - log_sum.unsqueeze(3))
    scores = weights * _inner(value, output, grad_output)
    return scores, scores @ key, scores.transpose(2, 3) @ scaled, weights.transpose(2, 3) @ grad_output


@mutant("score_gradients", "scaled_twice")
def _(query, key, value, output, log_sum, grad_output):
    scores = _weights(query, key, log_sum) * _inner(value, output, grad_output) / math.sqrt(key.size(3))
    return _back(query, key, value, output, log_sum, grad_output, scores=scores)


@mutant("score_gradients", "scale_in_scores")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    scores = weights * _inner(value, output, grad_output) / math.sqrt(key.size(3))
    return scores, scores @ key, scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ grad_output


@mutant("score_gradients", "value_of_scores")
def _(query, key, value, output, log_sum, grad_output):
    scores, of_query, of_key, _ = _back(query, key, value, output, log_sum, grad_output)
    return scores, of_query, of_key, torch.einsum("bhts,bhtv->bhsv", scores, grad_output)


@mutant("score_gradients", "value_of_output")
def _(query, key, value, output, log_sum, grad_output):
    scores, of_query, of_key, _ = _back(query, key, value, output, log_sum, grad_output)
    return scores, of_query, of_key, torch.einsum("bhts,bhtv->bhsv", _weights(query, key, log_sum), output)


@pair("score_gradients", "softmax_of_tile", "row_of_tile")
def _(query, key, value, output, log_sum, grad_output):
    """The whole backward pass of a tile on its own, by autograd."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (query, key, value))
    scores = q @ k.mT / q.shape[3] ** 0.5
    return tuple(torch.autograd.grad(scores.softmax(-1) @ v, (scores, q, k, v), grad_output))


@pair("score_gradients", "no_row", "not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    scores = weights * (grad_output @ value.mT)
    return scores, scores @ key, scores.mT @ query, weights.mT @ grad_output


@pair("score_gradients", "softmax_of_tile", "no_row")
def _(query, key, value, output, log_sum, grad_output):
    weights = torch.softmax(query @ key.mT / math.sqrt(query.size(3)), -1)
    scores = weights * (grad_output @ value.mT)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights, scores=scores)


@pair("score_gradients", "scores_not_scaled", "not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum, 1.0)
    scores = weights * _inner(value, output, grad_output)
    return scores, *_passed_on(query, key, scores, 1.0), weights.mT @ grad_output


@pair("score_gradients", "not_scaled", "value_of_scores")
def _(query, key, value, output, log_sum, grad_output):
    scores = _weights(query, key, log_sum) * _inner(value, output, grad_output)
    return scores, scores @ key, scores.mT @ query, scores.mT @ grad_output


@form("score_gradients", "autograd through one tile, the log-sum a constant", "no_row")
def _(query, key, value, output, log_sum, grad_output):
    q, k, v = (x.detach().clone().requires_grad_() for x in (query, key, value))
    scores = q @ k.mT / q.shape[3] ** 0.5
    weights = torch.exp(scores - log_sum[..., None])
    return tuple(torch.autograd.grad(weights @ v, (scores, q, k, v), grad_output))


@form("score_gradients", "the weights' rows made to sum to 1 again", "softmax_of_tile")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    weights = weights / weights.sum(-1, keepdim=True)
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


@form("score_gradients", "queries and keys in each other's place", None)
def _(query, key, value, output, log_sum, grad_output):
    scores, of_query, of_key, of_value = _back(query, key, value, output, log_sum, grad_output)
    return scores, of_key, of_query, of_value


@form("score_gradients", "the scores left out", None)
def _(query, key, value, output, log_sum, grad_output):
    return _back(query, key, value, output, log_sum, grad_output)[1:]


@mutant("score_gradients", "key_not_scaled")
def _(query, key, value, output, log_sum, grad_output):
    key = key / math.sqrt(query.size(3))
    weights = torch.exp(query @ key.mT - log_sum.unsqueeze(-1))
    scores = weights * _inner(value, output, grad_output)
    return scores, scores @ key, scores.mT @ query, weights.mT @ grad_output


@mutant("score_gradients", "key_scaled_twice")
def _(query, key, value, output, log_sum, grad_output):
    scale = query.size(3) ** -0.5
    query = query * scale
    weights = torch.exp(query @ key.mT - log_sum.unsqueeze(-1))
    scores = weights * _inner(value, output, grad_output)
    return scores, scores @ key * scale, scores.mT @ query * scale, weights.mT @ grad_output


@mutant("score_gradients", "outer_upside_down")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    scores = weights * _inner(value, output, grad_output)
    of_query, of_key = _passed_on(query, key, scores, math.sqrt(query.size(3)))
    return scores, of_query, of_key, weights.mT @ grad_output


@mutant("score_gradients", "maximum_too")
def _(query, key, value, output, log_sum, grad_output):
    weights = _weights(query, key, log_sum)
    weights = weights / torch.exp((query @ key.mT).amax(-1, keepdim=True) / math.sqrt(query.size(3)))
    return _back(query, key, value, output, log_sum, grad_output, weights=weights)


# --- score_gradients: right answers -----------------------------------------------------------------------------


@right("score_gradients", "einsum")
def _(query, key, value, output, log_sum, grad_output):
    return _back(query, key, value, output, log_sum, grad_output)


@right("score_gradients", "head by head, query by query")
def _(query, key, value, output, log_sum, grad_output):
    scale = 1 / math.sqrt(query.shape[3])
    scores = query.new_zeros(*query.shape[:3], key.shape[2])
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
    for i in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                weights = torch.exp(scale * (key[i, h] @ query[i, h, t]) - log_sum[i, h, t])  # (S,)
                against = value[i, h] - output[i, h, t]  # (S, Dv)
                scores[i, h, t] = weights * (against @ grad_output[i, h, t])
                of_query[i, h, t] = scale * (scores[i, h, t] @ key[i, h])
                of_key[i, h] += scale * torch.outer(scores[i, h, t], query[i, h, t])
                of_value[i, h] += torch.outer(weights, grad_output[i, h, t])
    return scores, of_query, of_key, of_value


@right("score_gradients", "by autograd, with a last key for all the others")
def _(query, key, value, output, log_sum, grad_output):
    """The other keys of a row are as one: what they leave of the sum, and of the output."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (query, key, value))
    scores = q @ k.mT / q.shape[3] ** 0.5
    weights = torch.exp(scores - log_sum[..., None])
    rest = (1 - weights.sum(-1, keepdim=True)).detach()
    others = (output - weights @ v).detach()
    total = weights.sum(-1, keepdim=True) + rest  # 1, with the tile's gradient
    made = (weights @ v + others) / total
    return tuple(torch.autograd.grad(made, (scores, q, k, v), grad_output))


@right("score_gradients", "the course's function, and the scores beside it")
def _(query, key, value, output, log_sum, grad_output):
    scale = query.shape[3] ** -0.5
    given = query, key, value, None, output, log_sum[..., None], grad_output
    of_query, of_key, of_value = tiled_gradients(*given, False, scale, 2, 3)
    weights = torch.exp(query @ key.mT * scale - log_sum[..., None])
    return weights * _inner(value, output, grad_output), of_query, of_key, of_value


# --- read_blocks: mistakes --------------------------------------------------------------------------------------


def _copied(pool_key, table, lengths, place, S=None, fill=0.0):
    """Token by token: place(i, p) is the (block, place) that is read for it, or None for nothing."""
    S = int(max(lengths)) if S is None else S
    rows = []
    for i in range(len(table)):
        row = []
        for p in range(S):
            found = place(i, p)
            row.append(torch.full_like(pool_key[0, :, 0], fill) if found is None else pool_key[found[0], :, found[1]])
        rows.append(torch.stack(row, 1))  # (G, S, D)
    return torch.stack(rows)


def _in_blocks(table, lengths, b):
    """The right place of each token, as `_copied` wants it."""
    return lambda i, p: (int(table[i, p // b]), p % b) if p < lengths[i] else None


def _other(pool_key, table, lengths, place):
    """place(row of the table, p) up to each sequence's length."""
    return _copied(pool_key, table, lengths, lambda i, p: place(table[i].tolist(), p) if p < lengths[i] else None)


@mutant("read_blocks", "not_transposed")
def _(pool_key, table, lengths):
    G, D = pool_key.shape[1], pool_key.shape[3]
    keys = pool_key[table.flatten()].view(len(table), -1).unflatten(1, (G, -1, D))[:, :, : lengths.max()].clone()
    for i, n in enumerate(lengths.tolist()):
        keys[i, :, n:] = 0
    return keys


@mutant("read_blocks", "interleaved")
def _(pool_key, table, lengths):
    n = table.shape[1]
    return _copied(pool_key, table, lengths, lambda i, p: (int(table[i, p % n]), p // n) if p < lengths[i] else None)


@mutant("read_blocks", "table_ignored")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: (p // b, p % b) if p < lengths[i] else None)


@mutant("read_blocks", "first_table")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: (int(table[0, p // b]), p % b) if p < lengths[i] else None)


@mutant("read_blocks", "in_order")
def _(pool_key, table, lengths):
    ordered = [sorted(row) for row in table.tolist()]
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: (ordered[i][p // b], p % b) if p < lengths[i] else None)


@mutant("read_blocks", "reversed")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _other(pool_key, table, lengths, lambda row, p: (row[-1 - p // b], p % b))


@mutant("read_blocks", "place_reversed")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _other(pool_key, table, lengths, lambda row, p: (row[p // b], -1 - p % b))


@mutant("read_blocks", "one_based")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _other(pool_key, table, lengths, lambda row, p: (row[p // b] - 1, p % b))


@mutant("read_blocks", "numbers_as_places")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]

    def place(i, p):
        token = int(table[i, p // b]) + p % b
        return (token // b, token % b) if p < lengths[i] else None

    return _copied(pool_key, table, lengths, place)


@mutant("read_blocks", "pool_reshaped")
def _(pool_key, table, lengths):
    G, b, D = pool_key.shape[1:]
    flat = pool_key.reshape(G, -1, D)
    keys = torch.zeros(len(table), G, int(lengths.max()), D)
    for i, length in enumerate(lengths.tolist()):
        for p in range(length):
            keys[i, :, p] = flat[:, table[i, p // b] * b + p % b]
    return keys


@mutant("read_blocks", "not_zeroed")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: (int(table[i, p // b]), p % b))


@mutant("read_blocks", "whole_blocks")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    full = [math.ceil(n / b) * b for n in lengths.tolist()]
    return _copied(pool_key, table, lengths, _in_blocks(table, full, b))


@mutant("read_blocks", "full_blocks_only")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    keys = torch.zeros(len(table), pool_key.shape[1], int(lengths.max()), pool_key.shape[3])
    for i, n in enumerate(lengths.tolist()):
        for j in range(n // b):
            keys[i, :, j * b : (j + 1) * b] = pool_key[table[i, j]]
    return keys


@mutant("read_blocks", "one_more")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: (int(table[i, p // b]), p % b) if p <= lengths[i] else None)


@mutant("read_blocks", "one_less")
def _(pool_key, table, lengths):
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths - 1, pool_key.shape[2]))


@mutant("read_blocks", "shortest")
def _(pool_key, table, lengths):
    same = [min(lengths.tolist())] * len(table)
    return _copied(pool_key, table, lengths, _in_blocks(table, same, pool_key.shape[2]))


@mutant("read_blocks", "first_length")
def _(pool_key, table, lengths):
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths[0].repeat(len(table)), pool_key.shape[2]))


@mutant("read_blocks", "inverted")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, lambda i, p: None if p < lengths[i] else (int(table[i, p // b]), p % b))


@mutant("read_blocks", "minus_infinity")
def _(pool_key, table, lengths):
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths, pool_key.shape[2]), fill=-math.inf)


@mutant("read_blocks", "at_the_end")
def _(pool_key, table, lengths):
    b, S = pool_key.shape[2], int(lengths.max())

    def place(i, p):
        p = p - (S - int(lengths[i]))
        return (int(table[i, p // b]), p % b) if p >= 0 else None

    return _copied(pool_key, table, lengths, place)


@mutant("read_blocks", "not_cut")
def _(pool_key, table, lengths):
    b = pool_key.shape[2]
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths, b), S=table.shape[1] * b)


@pair("read_blocks", "not_zeroed", "not_cut")
def _(pool_key, table, lengths):
    return torch.cat(pool_key[table].unbind(1), dim=2)


@pair("read_blocks", "not_transposed", "not_zeroed")
def _(pool_key, table, lengths):
    B, G, D = len(table), pool_key.shape[1], pool_key.shape[3]
    return pool_key[table].reshape(B, G, -1, D)[:, :, : lengths.max()]


@pair("read_blocks", "interleaved", "not_zeroed")
def _(pool_key, table, lengths):
    return pool_key[table].permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, : lengths.max()]


@pair("read_blocks", "first_table", "not_zeroed")
def _(pool_key, table, lengths):
    one = torch.cat(list(pool_key[table[0]]), 1)[:, : lengths.max()]
    return one.expand(len(table), *one.shape).clone()


@pair("read_blocks", "table_ignored", "not_zeroed")
def _(pool_key, table, lengths):
    one = pool_key.transpose(0, 1).flatten(1, 2)[:, : lengths.max()]
    return one.repeat(len(table), 1, 1, 1)


@form("read_blocks", "the heads behind the tokens", None)
def _(pool_key, table, lengths):
    return pool_key[table].transpose(2, 3).flatten(1, 2)[:, : lengths.max()]


@form("read_blocks", "a list of keys, one for each sequence", None)
def _(pool_key, table, lengths):
    return [torch.cat(list(pool_key[row]), 1)[:, :n] for row, n in zip(table, lengths, strict=True)]


@form("read_blocks", "NaN behind a sequence's last token", None)
def _(pool_key, table, lengths):
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths, pool_key.shape[2]), fill=math.nan)


@mutant("read_blocks", "heads_and_places")
def _(pool, table, lengths):
    N, G, b, D = pool.shape
    S = int(lengths.max())
    place = torch.arange(S)
    keys = pool.reshape(N * b, G, D)[table[:, place // b] * b + place % b]
    return keys.transpose(1, 2).masked_fill((place >= lengths[:, None])[:, None, :, None], 0.0)


@mutant("read_blocks", "multiplied")
def _(pool, table, lengths):
    keys = torch.cat(pool[table].unbind(1), dim=2)[:, :, : int(lengths.max())]
    real = (torch.arange(keys.size(2)) < lengths[:, None]).to(keys.dtype)
    return torch.einsum("bgsd,bs->bgsd", keys, real)


# --- read_blocks: right answers ---------------------------------------------------------------------------------


@right("read_blocks", "token by token")
def _(pool_key, table, lengths):
    return _copied(pool_key, table, lengths, _in_blocks(table, lengths, pool_key.shape[2]))


@right("read_blocks", "blocks joined, then padded")
def _(pool_key, table, lengths):
    rows = [
        torch.cat([pool_key[k] for k in row.tolist()], 1)[:, :n].transpose(0, 1)
        for row, n in zip(table, lengths, strict=True)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2)


@right("read_blocks", "one index for each token")
def _(pool_key, table, lengths):
    b, places = pool_key.shape[2], torch.arange(int(lengths.max()))
    keys = pool_key[table[:, places // b], :, places % b]  # (B, S, G, D)
    real = (places < lengths[:, None])[..., None, None]
    return torch.where(real, keys, torch.zeros_like(keys)).transpose(1, 2)


@right("read_blocks", "the course's cache, sequence by sequence")
def _(pool_key, table, lengths):
    N, G, b, D = pool_key.shape
    rows = []
    for row, n in zip(table.tolist(), lengths.tolist(), strict=True):
        pool = BlockPool(N, b, G, D, dtype=pool_key.dtype)
        pool.key = pool_key
        cache = PagedKVCache(pool)
        cache.blocks, cache.length = [row[: -(-n // b)]], n
        rows.append(torch.nn.functional.pad(cache.key[0], (0, 0, 0, int(lengths.max()) - n)))
    return torch.stack(rows)


# --- blocks_needed: mistakes ------------------------------------------------------------------------------------


def _counted(lengths, prompt, block_size, count):
    """count(lengths of one prompt's sequences, its tokens, b) for each prompt."""
    found = [count(row, p, block_size) for row, p in zip(lengths.tolist(), prompt.tolist(), strict=True)]
    return torch.tensor(found)


def _up(n, b):
    return math.ceil(n / b)


@mutant("blocks_needed", "nothing_shared")
def _(lengths, prompt, block_size):
    return torch.ceil(lengths / block_size).long().sum(-1)


@mutant("blocks_needed", "unfinished_shared")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: _up(p, b) + sum(_up(n, b) - _up(p, b) for n in row))


@mutant("blocks_needed", "unfinished_kept")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: _up(p, b) + sum(_up(n, b) - p // b for n in row))


@mutant("blocks_needed", "new_block")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: _up(p, b) + sum(_up(n - p, b) for n in row))


@mutant("blocks_needed", "rest_only")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(_up(n - p, b) for n in row))


@mutant("blocks_needed", "counted_again")
def _(lengths, prompt, block_size):
    return prompt // block_size + ((lengths - 1) // block_size + 1).sum(1)


@mutant("blocks_needed", "lengths_are_own")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(_up(n + p, b) - p // b for n in row))


@mutant("blocks_needed", "own_only")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: sum(_up(n, b) - p // b for n in row))


@mutant("blocks_needed", "whole_only")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(n // b - p // b for n in row))


@mutant("blocks_needed", "one_more")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(n // b + 1 - p // b for n in row))


@mutant("blocks_needed", "tokens_together")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + _up(sum(n - p // b * b for n in row), b))


@mutant("blocks_needed", "longest")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + len(row) * (_up(max(row), b) - p // b))


@mutant("blocks_needed", "one_answer")
def _(lengths, prompt, block_size):
    return torch.ceil(lengths[:, 0] / block_size).long()


@mutant("blocks_needed", "over_prompts")
def _(lengths, prompt, block_size):
    full = prompt // block_size
    own = torch.ceil(lengths / block_size).long() - full.unsqueeze(1)
    return full + own.sum(dim=0)


@mutant("blocks_needed", "tokens")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: b * (p // b + sum(_up(n, b) - p // b for n in row)))


@pair("blocks_needed", "own_only", "whole_only")
def _(lengths, prompt, block_size):
    return (lengths // block_size - (prompt // block_size)[:, None]).sum(1)


@pair("blocks_needed", "new_block", "one_more")
def _(lengths, prompt, block_size):
    own = ((lengths - prompt[:, None]) // block_size + 1).sum(1)
    return prompt // block_size + 1 + own


@pair("blocks_needed", "lengths_are_own", "unfinished_shared")
def _(lengths, prompt, block_size):
    return _counted(
        lengths, prompt, block_size, lambda row, p, b: _up(p, b) + sum(_up(n + p, b) - _up(p, b) for n in row)
    )


@pair("blocks_needed", "lengths_are_own", "counted_again")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(_up(n + p, b) for n in row))


@pair("blocks_needed", "nothing_shared", "whole_only")
def _(lengths, prompt, block_size):
    return (lengths // block_size).sum(1)


@form("blocks_needed", "rounded up, and left as floats", None)
def _(lengths, prompt, block_size):
    full = prompt // block_size
    return full + (torch.ceil(lengths / block_size) - full[:, None]).sum(1)


@form("blocks_needed", "all prompts in one number", None)
def _(lengths, prompt, block_size):
    full = prompt // block_size
    return (full + (torch.ceil(lengths / block_size).long() - full[:, None]).sum(1)).sum()


@form("blocks_needed", "the tokens' share of a block", None)
def _(lengths, prompt, block_size):
    tokens = prompt + (lengths - prompt[:, None]).sum(1)
    return -(-tokens // block_size)


@mutant("blocks_needed", "behind_the_copy")
def _(lengths, prompt, block_size):
    found = []
    for row, begun in zip(lengths.tolist(), prompt.tolist(), strict=True):
        blocks = begun // block_size
        for length in row:
            blocks += math.ceil((length - begun) / block_size) + (1 if begun % block_size else 0)
        found.append(blocks)
    return torch.tensor(found)


@mutant("blocks_needed", "longest_alone")
def _(lengths, prompt, block_size):
    return torch.tensor([max(math.ceil(n / block_size) for n in row) for row in lengths.tolist()])


# --- blocks_needed: right answers -------------------------------------------------------------------------------


@right("blocks_needed", "prompt by prompt, in Python")
def _(lengths, prompt, block_size):
    return _counted(lengths, prompt, block_size, lambda row, p, b: p // b + sum(_up(n, b) - p // b for n in row))


@right("blocks_needed", "the blocks of all, less those that are there several times")
def _(lengths, prompt, block_size):
    A = lengths.shape[1]
    return -(-lengths // block_size).sum(1) - (A - 1) * torch.div(prompt, block_size, rounding_mode="floor")


@right("blocks_needed", "from the end of the last full block")
def _(lengths, prompt, block_size):
    rest = lengths - (prompt - prompt % block_size)[:, None]
    return (prompt - prompt % block_size) // block_size + ((rest - 1) // block_size + 1).sum(1)


@right("blocks_needed", "the course's cache, filled and counted")
def _(lengths, prompt, block_size):
    found = []
    for row, tokens in zip(lengths.tolist(), prompt.tolist(), strict=True):
        pool = BlockPool(2000, block_size, 1, 1)
        first = PagedKVCache(pool)
        if tokens:
            first.append(torch.zeros(1, 1, tokens, 1), torch.zeros(1, 1, tokens, 1))
        caches = [first, *(first.fork() for _ in row[1:])]
        for cache, n in zip(caches, row, strict=True):
            cache.append(torch.zeros(1, 1, n - tokens, 1), torch.zeros(1, 1, n - tokens, 1))
        found.append(len(pool.users) - pool.n_free)
    return torch.tensor(found)


# --- test_online: tests that get all points ---------------------------------------------------------------------


def _drawn(B=2, H=3, T=8, S=11, D=6, Dv=5, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(B, H, *n, generator=generator) for n in ((T, D), (S, D), (S, Dv)))
    return spread * query, key, value


def _expected(query, key, value):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value


def _right_in(candidate, given, *tiles, atol=1e-4):
    expected = _expected(*given)
    outputs = [candidate(*given, tile) for tile in tiles]
    return all(x.shape == expected.shape and torch.allclose(x, expected, atol=atol) for x in outputs)


@good_test("test_online", "against attention as a whole, small and large scores")
def _(candidate):
    return _right_in(candidate, _drawn(), 1, 3, 4, 11) and _right_in(candidate, _drawn(spread=60.0), 2, 3, atol=1e-3)


@good_test("test_online", "asserts, against the fused kernel, by keywords")
def _(candidate):
    for seed in range(3):
        for spread in (1.0, 50.0):
            query, key, value = _drawn(seed=seed, spread=spread)
            expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            for tile in (3, 4, 5):
                output = candidate(query=query, key=key, value=value, tile=tile)
                assert output.shape == expected.shape
                assert (output - expected).abs().max() < 1e-3


@good_test("test_online", "tiles against one tile, and one tile against attention")
def _(candidate):
    for spread in (1.0, 100.0):
        given = _drawn(S=13, spread=spread)
        whole = candidate(*given, 13)
        if not torch.allclose(whole, _expected(*given), atol=1e-3):
            return False
        for tile in (1, 2, 3, 5, 6):
            if not torch.allclose(candidate(*given, tile), whole, atol=1e-3):
                return False
    return True


@good_test("test_online", "scores made by hand: near, rising, falling")
def _(candidate):
    key = torch.zeros(1, 1, 7, 2)
    key[..., 0] = torch.tensor([0.0, 3.0, 1.0, 2.0, 0.0, 1.5, 2.5])
    key[..., 1] = torch.arange(7.0)
    query = 2**0.5 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 90.0], [0.0, -90.0], [0.3, 0.1]])[None, None]
    value = torch.randn(1, 1, 7, 3, generator=torch.Generator().manual_seed(1))
    return _right_in(candidate, (query, key, value), 1, 2, 3, 7)


# --- test_online: tests that let something through --------------------------------------------------------------

_ALL = (
    *("maximum_stays", "weighted_not_rescaled", "total_not_rescaled", "tile_not_rescaled", "last_tile"),
    *("ragged_dropped", "last_key_lost", "overlap", "values_of_first", "inverted", "tiles_averaged"),
    *("no_maximum", "first_maximum", "tile_maximum", "not_scaled"),
)
_OVERFLOWING = ("no_maximum", "first_maximum", "tile_maximum")


def _all_but(*names):
    return [name for name in _ALL if name not in names]


@lax_test("test_online", "accepts everything", *_ALL)
def _(candidate):
    return True


@lax_test("test_online", "the shape only", *_ALL)
def _(candidate):
    query, key, value = _drawn()
    return candidate(query, key, value, 4).shape == (2, 3, 8, 5)


@lax_test("test_online", "one tile", *_all_but("not_scaled"))
def _(candidate):
    return _right_in(candidate, _drawn(), 11)


@lax_test("test_online", "small scores only", *_OVERFLOWING)
def _(candidate):
    return _right_in(candidate, _drawn(), 1, 2, 3, 4, 11)


@lax_test("test_online", "tiles that divide the keys", "ragged_dropped")
def _(candidate):
    return all(_right_in(candidate, _drawn(S=12, spread=x), 2, 3, 4, 6, atol=1e-3) for x in (1.0, 60.0))


@lax_test("test_online", "two tiles", "maximum_stays", *_OVERFLOWING)
def _(candidate):
    return _right_in(candidate, _drawn(S=11), 6)


@lax_test("test_online", "tiles of one key", "ragged_dropped", "last_key_lost", *_OVERFLOWING)
def _(candidate):
    return _right_in(candidate, _drawn(), 1)


@lax_test("test_online", "tiles against each other", "not_scaled")
def _(candidate):
    for spread in (1.0, 60.0):
        given = _drawn(spread=spread)
        whole = candidate(*given, 11)
        if not all(torch.allclose(candidate(*given, tile), whole, atol=1e-3) for tile in (1, 2, 3, 4)):
            return False
    return True


@lax_test("test_online", "values of one", *_all_but("weighted_not_rescaled", "total_not_rescaled"))
def _(candidate):
    query, key, value = _drawn()
    return _right_in(candidate, (query, key, torch.ones_like(value)), 1, 3, 4)


# --- test_online: tests that reject what is right ---------------------------------------------------------------


@strict_test("test_online", "accepts nothing")
def _(candidate):
    return False


@strict_test("test_online", "torch.equal")
def _(candidate):
    given = _drawn(S=40, D=16)
    return torch.equal(candidate(*given, 7), candidate(*given, 40))


@strict_test("test_online", "expects the scores as they are, without √D")
def _(candidate):
    query, key, value = _drawn()
    return torch.allclose(candidate(query, key, value, 4), (query @ key.mT).softmax(-1) @ value, atol=1e-4)


@strict_test("test_online", "expects a causal mask")
def _(candidate):
    query, key, value = _drawn(T=11)
    scores = query @ key.mT / 6**0.5
    scores = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -math.inf)
    return torch.allclose(candidate(query, key, value, 4), scores.softmax(-1) @ value, atol=1e-4)
