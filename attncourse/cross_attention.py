"""Cross-attention: every token of one sequence asks the tokens of another.

Vaswani et al. 2017, section 3.2.3, "encoder-decoder attention", with one head. Differs from the paper: no biases by
default, no dropout; the two sequences may have tokens of different sizes.
"""

from torch import Tensor, nn

from attncourse.attention import check_at_least_one, check_sequence, scaled_dot_product_attention, without_head_axis


class CrossAttention(nn.Module):
    """softmax(Q Kᵀ / √d_head) V W_o, with Q a projection of x, and K and V projections of a context; one head.

    d_model: size of a token of x; d_context: size of a token of the context; d_head: D (default d_model).
    Parameters `q_proj` (reads d_model), `k_proj` and `v_proj` (read d_context), `o_proj`. Sizes below 1: ValueError.
    """

    def __init__(self, d_model: int, d_context: int, d_head: int | None = None, *, bias: bool = False):
        super().__init__()
        d_head = d_model if d_head is None else d_head
        check_at_least_one(d_model=d_model, d_context=d_context, d_head=d_head)
        self.q_proj = nn.Linear(d_model, d_head, bias=bias)
        self.k_proj = nn.Linear(d_context, d_head, bias=bias)
        self.v_proj = nn.Linear(d_context, d_head, bias=bias)
        self.o_proj = nn.Linear(d_head, d_model, bias=bias)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, T, d_model) and context (B, S, d_context) give (B, T, d_model), or (output, weights (B, T, S)).

        mask is boolean, True = may attend, broadcastable to (B, T, S) or (B, 1, T, S): the padding of the *context* is
        (B, 1, S). A token with nothing to attend to gives the output projection's bias, or zeros.
        Raises ValueError for what does not fit, TypeError for dtypes that do not.
        """
        check_sequence("x", x, self.q_proj)
        check_sequence("context", context, self.k_proj)
        if x.shape[0] != context.shape[0]:
            raise ValueError(f"batch sizes differ: x {x.shape[0]}, context {context.shape[0]}")
        query = self.q_proj(x)  # (B, T, D)
        key, value = self.k_proj(context), self.v_proj(context)  # (B, S, D) each
        result = scaled_dot_product_attention(query, key, value, without_head_axis(mask), return_weights=return_weights)
        if return_weights:
            output, weights = result  # (B, T, D), (B, T, S)
            return self.o_proj(output), weights
        return self.o_proj(result)  # (B, T, d_model)
