"""Luong's attention: scores that are products, a window on the source, and a hard choice instead of an average.

Letters: B batch, T queries (decoder steps), S keys (source positions), A the size of concat's layer, W window.
Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation"; hard attention: Xu et al. 2015.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.attention import check_source, masked_softmax
from attncourse.bahdanau import additive_scores


def dot_scores(query: Tensor, keys: Tensor) -> Tensor:
    """score[i, j] = query[i] · keys[j], not scaled: (B, T, D), (B, S, D) -> (B, T, S). Section 3.1."""
    return query @ keys.mT


def general_scores(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """score[i, j] = query[i]ᵀ W keys[j], not scaled, with W (query_dim, key_dim): (B, T, S). Section 3.1."""
    return dot_scores(query, F.linear(keys, weight))  # W keys[j]: (B, S, query_dim)


def concat_scores(query: Tensor, keys: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    """score[i, j] = v · tanh(W [query[i]; keys[j]]), with W (A, query_dim + key_dim) and v (A,): (B, T, S).

    Section 3.1. W times a concatenation is a sum of two products, so this is Bahdanau's score with W split in two.
    """
    for_query, for_keys = weight.split([query.shape[-1], keys.shape[-1]], dim=1)
    return additive_scores(F.linear(query, for_query), F.linear(keys, for_keys), v)


def attentional_vector(context: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """tanh(W [context; query]), what the output layer reads: (..., Dv), (..., query_dim) -> (..., n). Equation 5.

    weight (n, Dv + query_dim); the query is the decoder's new state. Follows the paper.
    """
    return torch.tanh(F.linear(torch.cat([context, query], -1), weight))


def source_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each key stands in its source, counted from 0, and how long the source is, by a mask (..., S).

    A source runs from the first allowed key to the last, so padding on either side shifts nothing and a hole inside
    keeps its place. Returns positions (..., S), negative in front of the source, and lengths (...,).
    """
    S, before = mask.shape[-1], mask.cumsum(-1).eq(0).sum(-1, keepdim=True)
    after = mask.flip(-1).cumsum(-1).eq(0).sum(-1)
    return torch.arange(S, device=mask.device) - before, (S - before[..., 0] - after).clamp(min=0)


def predicted_centre(query: Tensor, lengths: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    """p = S · sigmoid(v · tanh(W query)), between 0 and the source's length: (B, T). Equation 9.

    query (B, T, query_dim), lengths broadcastable to (B, T), weight (n, query_dim), v (n,). Follows the paper.
    """
    return lengths * torch.sigmoid(torch.tanh(F.linear(query, weight)) @ v)


def gaussian_window(positions: Tensor, centre: Tensor, sigma: float) -> Tensor:
    """exp(-(s - p)² / 2σ²) for positions s, broadcastable to (B, T, S), and centres p (B, T). Equation 10."""
    return torch.exp(-((positions - centre[..., None]) ** 2) / (2 * sigma**2))  # (B, T, S)


def local_weights(scores: Tensor, positions: Tensor, centre: Tensor, window: int, mask: Tensor) -> Tensor:
    """Softmax of scores (B, T, S) over the allowed keys at most W - 1 from the centre (B, T). Section 3.2."""
    near = (positions - centre.detach()[..., None]).abs() <= window - 1  # (B, T, S)
    return masked_softmax(scores, mask & near)


def choose(weights: Tensor, sample: bool = True) -> Tensor:
    """One key for each row of weights (..., S), as a one-hot row: drawn with them as probabilities, or the likeliest.

    A row of zeros stays zeros. The choice has no gradient.
    """
    rows = weights.detach().flatten(0, -2)  # (rows, S)
    if rows.numel() == 0:
        return torch.zeros_like(weights)
    empty = rows.sum(-1, keepdim=True) == 0
    picked = torch.multinomial(rows.masked_fill(empty, 1.0), 1) if sample else rows.argmax(-1, keepdim=True)
    return torch.zeros_like(rows).scatter(-1, picked, 1.0).masked_fill(empty, 0.0).view_as(weights)


def straight_through(one_hot: Tensor, weights: Tensor) -> Tensor:
    """The value of one_hot, the gradient of weights: as if nothing had been chosen. Bengio et al. 2013."""
    return one_hot + (weights - weights.detach())


def surrogate_loss(cost: Tensor, log_prob: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """A loss whose gradient estimates that of the expected cost: cost + (cost - baseline) · log p(choice).

    The second term's factor is a constant to autograd. cost: all that the choice had an influence on, of log_prob's
    shape; a baseline that does not depend on the choice lowers the variance and adds no bias.
    Xu et al. 2015, section 4.1. Differs from the paper: no entropy term.
    """
    return cost + (cost - baseline).detach() * log_prob


class LuongAttention(nn.Module):
    """Global attention: score "dot", "general" (`key_proj`) or "concat" (`concat_proj` and `v`), softmax, average.

    query_dim, key_dim: sizes of one query and one key, equal for "dot"; hidden_dim: A, by default query_dim.
    Luong et al. 2015, section 3.1. Differs from the paper: padding is masked; no score by location.
    """

    def __init__(self, query_dim: int, key_dim: int, score: str = "dot", *, hidden_dim: int | None = None):
        super().__init__()
        hidden_dim = query_dim if hidden_dim is None else hidden_dim
        for name, size in (("query_dim", query_dim), ("key_dim", key_dim), ("hidden_dim", hidden_dim)):
            if size < 1:
                raise ValueError(f"{name}={size}, but it must be at least 1")
        if score not in ("dot", "general", "concat"):
            raise ValueError(f'score={score!r}, but it must be "dot", "general" or "concat"')
        if score == "dot" and query_dim != key_dim:
            raise ValueError(f'score="dot" needs equal sizes, but query_dim={query_dim} and key_dim={key_dim}')
        self.query_dim, self.key_dim, self.score = query_dim, key_dim, score
        if score == "general":
            self.key_proj = nn.Linear(key_dim, query_dim, bias=False)
        if score == "concat":
            self.concat_proj = nn.Linear(query_dim + key_dim, hidden_dim, bias=False)
            self.v = nn.Parameter(torch.empty(hidden_dim).uniform_(-1, 1) * hidden_dim**-0.5)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of query (B, T, query_dim) against keys (B, S, key_dim)."""
        if self.score == "dot":
            return dot_scores(query, keys)
        if self.score == "general":
            return general_scores(query, keys, self.key_proj.weight)
        return concat_scores(query, keys, self.concat_proj.weight, self.v)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend from query (B, T, query_dim) to keys (B, S, key_dim): (context (B, T, Dv), weights (B, T, S)).

        values (B, S, Dv) default to the keys. mask is boolean, True = may attend: (B, S), one row of keys for
        every query, or broadcastable to (B, T, S). A query with no allowed key gets zeros.
        """
        values, mask = check_source(query, keys, values, mask, self.query_dim, self.key_dim)
        weights = masked_softmax(self.scores(query, keys), mask)
        return weights @ values, weights  # (B, T, Dv), (B, T, S)


class LocalAttention(LuongAttention):
    """Attention to a window on the source: around the query's own position, or around one that it predicts.

    window: W counts the centre, so up to 2W - 1 keys. alignment "monotonic": centre p = t, a softmax in the window.
    "predictive": p = S · sigmoid(v · tanh(W q)) (`position_proj`, `position_v`), and the softmax is multiplied by a
    Gaussian around p with σ = (W - 1) / 2, so that rows sum to less than 1 and p has a gradient; W is at least 2.
    Luong et al. 2015, section 3.2. Differs from the paper: its D is W - 1; S and positions are counted in the source
    without its padding, from 0; a window past the end of the source gives zeros; all scores are computed and then
    masked, so that a window saves no time here.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        *,
        window: int,
        alignment: str = "monotonic",
        score: str = "general",
        hidden_dim: int | None = None,
    ):
        super().__init__(query_dim, key_dim, score, hidden_dim=hidden_dim)
        if alignment not in ("monotonic", "predictive"):
            raise ValueError(f'alignment={alignment!r}, but it must be "monotonic" or "predictive"')
        least = 2 if alignment == "predictive" else 1
        if window < least:
            raise ValueError(f"window={window}, but {alignment} alignment needs at least {least}")
        self.window, self.alignment = window, alignment
        if alignment == "predictive":
            self.position_proj = nn.Linear(query_dim, query_dim, bias=False)
            self.position_v = nn.Parameter(torch.empty(query_dim).uniform_(-1, 1) * query_dim**-0.5)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `LuongAttention.forward`; positions, broadcastable to (B, T), say which decoder step each query is.

        They default to 0 … T - 1, so a decoder that runs step by step gives them. Only for monotonic alignment.
        """
        values, mask = check_source(query, keys, values, mask, self.query_dim, self.key_dim)
        if mask is None:
            mask = torch.ones(1, 1, keys.shape[1], dtype=torch.bool, device=keys.device)
        key_positions, lengths = source_positions(mask)  # broadcastable to (B, T, S) and (B, T)
        scores = self.scores(query, keys)
        if self.alignment == "monotonic":
            centre = self._steps(query, positions)  # (B, T)
            weights = local_weights(scores, key_positions, centre, self.window, mask)
        else:
            if positions is not None:
                raise ValueError("positions are given, but predictive alignment computes its own from the query")
            centre = predicted_centre(query, lengths, self.position_proj.weight, self.position_v)  # (B, T)
            weights = local_weights(scores, key_positions, centre, self.window, mask)
            weights = weights * gaussian_window(key_positions, centre, (self.window - 1) / 2)
        return weights @ values, weights  # (B, T, Dv), (B, T, S)

    @staticmethod
    def _steps(query: Tensor, positions: Tensor | None) -> Tensor:
        B, T = query.shape[:2]
        if positions is None:
            positions = torch.arange(T, device=query.device)
        if positions.dim() > 2 or any(p not in (1, n) for p, n in zip(positions.shape[::-1], (T, B), strict=False)):
            raise ValueError(f"positions have shape {tuple(positions.shape)}, which does not broadcast to {(B, T)}")
        return positions.expand(B, T)


class HardAttention(LuongAttention):
    """Attention that reads one key: drawn with the softmax as probabilities in training, the likeliest in evaluation.

    The weights are one-hot, and choosing has no gradient. estimator "straight_through" lets autograd pretend that the
    choice was the softmax: biased unless the loss is linear in the context, little variance. "score_function" gives
    the scores no gradient through the context; use `surrogate_loss(cost, attention.log_prob)`: unbiased, noisy.
    `log_prob` (B, T) is the log-probability of the last forward's choices, 0 for a query with no allowed key.
    Xu et al. 2015, section 4.1. Differs from the paper: the score is Luong's, and no average of both is mixed in.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        *,
        estimator: str = "straight_through",
        score: str = "general",
        hidden_dim: int | None = None,
    ):
        super().__init__(query_dim, key_dim, score, hidden_dim=hidden_dim)
        if estimator not in ("straight_through", "score_function"):
            raise ValueError(f'estimator={estimator!r}, but it must be "straight_through" or "score_function"')
        self.estimator = estimator
        self.log_prob: Tensor | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "log_prob": None}  # it belongs to one forward: copies and pickles go without

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `LuongAttention.forward`, with one-hot weights; sets `log_prob`."""
        values, mask = check_source(query, keys, values, mask, self.query_dim, self.key_dim)
        probabilities = masked_softmax(self.scores(query, keys), mask)
        one_hot = choose(probabilities, sample=self.training)
        chosen = (one_hot * probabilities).sum(-1)  # (B, T)
        self.log_prob = chosen.masked_fill(chosen == 0, 1.0).log()
        weights = straight_through(one_hot, probabilities) if self.estimator == "straight_through" else one_hot
        return weights @ values, weights  # (B, T, Dv), (B, T, S)
