"""Multi-query attention: all query heads share one head of keys and one of values.

Shazeer 2019, section 3. Differs from the paper: scores are scaled by D ** -0.5, which its code leaves to the
projections. What reads the one head is `gqa.grouped_query_attention` with G = 1.
"""

from attncourse.gqa import GroupedQueryAttention
from attncourse.positions import RotaryEmbedding


class MultiQueryAttention(GroupedQueryAttention):
    """Multi-head attention whose n_heads query heads share one head of keys and values: G = 1.

    k_proj and v_proj each give d_model / n_heads numbers a token, and the cache keeps both. The rest is as in
    `GroupedQueryAttention`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        causal: bool = True,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
    ):
        super().__init__(d_model, n_heads, 1, causal=causal, rotary=rotary, bias=bias)
