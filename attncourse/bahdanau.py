"""Additive attention: a small network scores every key against the query (Bahdanau et al. 2014).

Letters: B batch, T queries (decoder steps), S keys (source positions), A the size of the scoring layer.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import check_source, masked_softmax


def additive_scores(query: Tensor, keys: Tensor, v: Tensor) -> Tensor:
    """score[i, j] = v · tanh(query[i] + keys[j]), for a query and keys already projected to A dimensions.

    query (B, T, A), keys (B, S, A), v (A,) -> (B, T, S). Builds a (B, T, S, A) tensor.
    Bahdanau et al. 2014, appendix A.1.2. Follows the paper.
    """
    hidden = torch.tanh(query[:, :, None] + keys[:, None])  # (B, T, S, A)
    return hidden @ v  # (B, T, S)


def additive_attention(
    query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights softmax_j(score[i, j]) over the keys, and the values averaged with them.

    query (B, T, A) and keys (B, S, A) are projected, values (B, S, Dv) are not; mask boolean, True = may
    attend, broadcastable to (B, T, S). Returns context (B, T, Dv) and weights (B, T, S).
    Bahdanau et al. 2014, equations 5 and 6. Differs from the paper: padding is masked.
    """
    weights = masked_softmax(additive_scores(query, keys, v), mask)  # (B, T, S)
    return weights @ values, weights  # (B, T, Dv), (B, T, S)


class AdditiveAttention(nn.Module):
    """Additive attention with its three parameters: `query_proj` (W_a), `key_proj` (U_a) and `v` (v_a).

    query_dim, key_dim: sizes of one query and one key; hidden_dim: A, the size of the scoring layer.
    Bahdanau et al. 2014, appendix A.1.2. Follows the paper: no biases, no scaling.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int):
        super().__init__()
        for name, size in (("query_dim", query_dim), ("key_dim", key_dim), ("hidden_dim", hidden_dim)):
            if size < 1:
                raise ValueError(f"{name}={size}, but it must be at least 1")
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.v = nn.Parameter(torch.empty(hidden_dim).uniform_(-1, 1) * hidden_dim**-0.5)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend from query (B, T, query_dim) to keys (B, S, key_dim): (context (B, T, Dv), weights (B, T, S)).

        values (B, S, Dv) default to the keys. mask is boolean, True = may attend: (B, S), one row of keys for
        every query, or broadcastable to (B, T, S). A query with no allowed key gets zeros.
        """
        values, mask = check_source(query, keys, values, mask, self.query_proj.in_features, self.key_proj.in_features)
        return additive_attention(self.query_proj(query), self.key_proj(keys), values, self.v, mask)
