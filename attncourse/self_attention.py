"""Self-attention: every token of a sequence asks all tokens of the same sequence.

Vaswani et al. 2017, section 3.2.1, with one head. Differs from the paper: no biases by default, no dropout.
"""

from torch import Tensor, nn

from attncourse.attention import check_at_least_one, check_sequence, scaled_dot_product_attention, without_head_axis


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d_head) V W_o, with Q, K and V three projections of one x; one head, no positions.

    d_model: size of a token; d_head: D, size of a query, key or value (default d_model).
    Parameters `q_proj`, `k_proj`, `v_proj` (d_model to d_head) and `o_proj` (back). Sizes below 1: ValueError.
    """

    def __init__(self, d_model: int, d_head: int | None = None, *, bias: bool = False):
        super().__init__()
        d_head = d_model if d_head is None else d_head
        check_at_least_one(d_model=d_model, d_head=d_head)
        self.q_proj = nn.Linear(d_model, d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, d_head, bias=bias)
        self.o_proj = nn.Linear(d_head, d_model, bias=bias)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) gives (B, T, d_model), or (output, weights (B, T, T)) with `return_weights`.

        mask is boolean, True = may attend, broadcastable to (B, T, T) or (B, 1, T, T). A token with nothing to attend
        to gives the output projection's bias, or zeros. There is nothing to cache: an earlier token's output depends on
        later ones. What does not fit raises ValueError, or TypeError for a dtype.
        """
        if cache is not None:
            raise ValueError("a cache needs causal attention: here an earlier token's output depends on later ones")
        check_sequence("x", x, self.q_proj)
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, D) each
        result = scaled_dot_product_attention(query, key, value, without_head_axis(mask), return_weights=return_weights)
        if return_weights:
            output, weights = result  # (B, T, D), (B, T, T)
            return self.o_proj(output), weights
        return self.o_proj(result)  # (B, T, d_model)
