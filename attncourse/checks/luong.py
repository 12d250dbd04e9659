"""Exercises of chapter 02: multiplicative and joined scores, a local window, a hard choice, and a test of your own."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, FLOAT64, one_call
from attncourse.checks.script import Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, ReverseExercise

CHAPTER = "02_luong"


# --- general_score ----------------------------------------------------------------------------------------------


def general_score(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    return query @ weight @ keys.transpose(1, 2)  # (B, T, Dq) @ (Dq, Dk) @ (B, Dk, S) -> (B, T, S)


def faulty_general_score(wrong: frozenset[str]) -> Callable:
    def general_score(query, keys, weight):
        if "weight_transposed" in wrong:
            weight = weight.T
        projected = query if "no_weight" in wrong else torch.einsum("btq,qk->btk", query, weight)
        scores = torch.einsum("btk,bsk->bts", projected, keys)
        if "cosine" in wrong:
            lengths = projected.norm(dim=-1)[:, :, None] * keys.norm(dim=-1)[:, None]
            scores = scores / lengths
        if "scaled" in wrong:
            scores = scores / keys.shape[-1] ** 0.5
        if "tanh" in wrong:
            scores = scores.tanh()
        if "returns_weights" in wrong:
            scores = scores.softmax(-1)
        return scores.transpose(1, 2) if "axes_swapped" in wrong else scores

    return general_score


def general_score_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(500 + seed)

    def arguments(B: int, T: int, S: int, Dq: int, Dk: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, T, Dq, spread=1.5),
            "keys": inputs.normal(B, S, Dk, spread=1.5),
            "weight": inputs.weight(Dq, Dk),
        }

    yield one_call("two queries, three keys", arguments(1, 2, 3, 4, 5))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 4, 7))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    yield one_call("one query", arguments(1, 1, 9, 7, 8))
    loose = arguments(2, 3, 5, 4, 7)
    loose["query"], loose["keys"] = (loose[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("query", "keys"))
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 2, 3, 4, 5).items()}, "float64")


GENERAL_MISCONCEPTIONS = (
    Misconception(
        "weight_transposed",
        "the weight is transposed",
        "The score is qᵀ W k: W has the query's size first, (Dq, Dk). With equal sizes nothing crashes.",
        "By hand",
    ),
    Misconception(
        "no_weight",
        "the weight is left out",
        "That is the dot score. It needs queries and keys of one size, and in one space.",
        "By hand",
    ),
    Misconception(
        "scaled",
        "the scores are divided by the square root of their size",
        "Luong's products are not scaled; that came with the transformer in 2017.",
        "What follows the paper",
    ),
    Misconception(
        "axes_swapped",
        "the query and key axes are swapped",
        "scores[b, i, j] belongs to query i and key j: queries come first, (B, T, S).",
        "The code",
    ),
    Misconception(
        "returns_weights",
        "it returns the weights, after the softmax",
        "Asked for are the scores; they may be negative and need not sum to 1.",
        "The code",
    ),
    Misconception(
        "tanh",
        "a tanh is applied to the scores",
        "The tanh belongs to the concat score, inside v · tanh(…). A product has none.",
        "By hand",
    ),
    Misconception(
        "cosine",
        "queries and keys are divided by their lengths",
        "That is cosine similarity. Here the lengths count: a longer query sharpens its weights.",
        "Play",
    ),
)

GENERAL_SCORE = Exercise(
    id="luong/general_score",
    defines="general_score",
    title="Score with a product and a matrix",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=general_score_scripts,
    reference=general_score,
    faulty=faulty_general_score,
    outputs=(Output("scores", "B T S"),),
    habits=COMMON_HABITS,
    misconceptions=GENERAL_MISCONCEPTIONS,
)

# --- concat_score -----------------------------------------------------------------------------------------------


def concat_score(query: Tensor, keys: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    T, S = query.shape[1], keys.shape[1]
    queries = query[:, :, None].expand(-1, -1, S, -1)  # (B, T, S, Dq)
    pairs = torch.cat([queries, keys[:, None].expand(-1, T, -1, -1)], dim=-1)  # (B, T, S, Dq + Dk)
    return torch.tanh(pairs @ weight.T) @ v  # (B, T, S)


def faulty_concat_score(wrong: frozenset[str]) -> Callable:
    def concat_score(query, keys, weight, v):
        n = keys.shape[-1] if "order_swapped" in wrong else query.shape[-1]
        first, second = weight[:, :n], weight[:, n:]
        if "order_swapped" in wrong:
            first, second = second, first
        q, k = (query @ first.T)[:, :, None], (keys @ second.T)[:, None]
        if "query_left_out" in wrong:
            q = torch.zeros_like(q)
        squash = (lambda x: x) if "no_tanh" in wrong else torch.tanh
        squash = torch.relu if "relu" in wrong else squash
        hidden = squash(q) + squash(k) if "tanh_of_each" in wrong else squash(q + k)
        scores = hidden.sum(-1) if "no_v" in wrong else hidden @ v
        return scores.transpose(1, 2) if "axes_swapped" in wrong else scores

    return concat_score


def concat_score_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(600 + seed)

    def arguments(B: int, T: int, S: int, Dq: int, Dk: int, A: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, T, Dq, spread=2.0),
            "keys": inputs.normal(B, S, Dk, spread=2.0),
            "weight": inputs.normal(A, Dq + Dk, spread=Dq**-0.5),
            "v": inputs.normal(A),
        }

    yield one_call("two queries, three keys", arguments(1, 2, 3, 4, 5, 6))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 4, 7, 6))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield one_call("one query", arguments(1, 1, 9, 8, 7, 6))
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 2, 3, 4, 5, 6).items()}, "float64")


CONCAT_SCORE = Exercise(
    id="luong/concat_score",
    defines="concat_score",
    title="Score a query and a key joined",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=concat_score_scripts,
    reference=concat_score,
    faulty=faulty_concat_score,
    outputs=(Output("scores", "B T S"),),
    habits={"float64": FLOAT64},
    misconceptions=(
        Misconception(
            "order_swapped",
            "the key stands before the query",
            "The weight's first Dq columns belong to the query: [q; k].",
            "By hand",
        ),
        Misconception(
            "no_tanh",
            "there is no tanh",
            "Then the score is a sum of a query part and a key part, and the softmax over the keys removes the first.",
            "Invariants",
        ),
        Misconception(
            "tanh_of_each",
            "tanh is taken of each part, then the parts are added",
            "The layer acts on the joined vector: add the two products first, then tanh.",
            "Invariants",
        ),
        Misconception("relu", "relu instead of tanh", "The paper's layer uses tanh.", "By hand"),
        Misconception(
            "no_v",
            "v is left out",
            "Summing the hidden layer gives every unit the same say; v weighs them.",
            "By hand",
        ),
        Misconception(
            "query_left_out",
            "the query's half is missing",
            "The scores are then the same for every query: join query and key before the product.",
            "By hand",
        ),
        Misconception(
            "axes_swapped",
            "the query and key axes are swapped",
            "scores[b, i, j] belongs to query i and key j: queries come first, (B, T, S).",
            "The code",
        ),
    ),
)

# --- attentional_vector -----------------------------------------------------------------------------------------


def attentional_vector(context: Tensor, state: Tensor, weight: Tensor) -> Tensor:
    return torch.tanh(torch.cat([context, state], dim=-1) @ weight.T)  # (B, T, n)


def faulty_attentional_vector(wrong: frozenset[str]) -> Callable:
    def attentional_vector(context, state, weight):
        parts = [context, state]
        if "order_swapped" in wrong:
            parts.reverse()
        if "context_twice" in wrong:
            parts[1] = parts[0]
        if "state_left_out" in wrong:
            parts[1] = torch.zeros_like(parts[1])
        if "context_left_out" in wrong:
            parts[0] = torch.zeros_like(parts[0])
        matrix = weight if "weight_transposed" in wrong else weight.T
        hidden = torch.cat(parts, -1) @ matrix
        if "no_tanh" in wrong:
            return hidden
        return hidden.sigmoid() if "sigmoid" in wrong else hidden.tanh()

    return attentional_vector


def attentional_vector_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(700 + seed)

    def arguments(B: int, T: int, Dv: int, Dq: int, n: int) -> dict[str, Tensor]:
        return {
            "context": inputs.normal(B, T, Dv, spread=1.5),
            "state": inputs.normal(B, T, Dq, spread=1.5),
            "weight": inputs.normal(n, Dv + Dq, spread=Dv**-0.5),
        }

    yield one_call("two steps", arguments(1, 2, 3, 4, 5))
    yield one_call("a batch, all sizes different", arguments(2, 3, 6, 4, 5))
    yield one_call("equal sizes", arguments(3, 2, 4, 4, 8))
    yield one_call("one query", arguments(1, 1, 9, 8, 7))
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 2, 3, 4, 5).items()}, "float64")


ATTENTIONAL_VECTOR = Exercise(
    id="luong/attentional_vector",
    defines="attentional_vector",
    title="Join context and state",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=attentional_vector_scripts,
    reference=attentional_vector,
    faulty=faulty_attentional_vector,
    outputs=(Output("vector", "B T n"),),
    habits={"float64": FLOAT64},
    misconceptions=(
        Misconception(
            "order_swapped",
            "the state stands before the context",
            "Equation 5 joins [c; h]: the weight's first columns belong to the context.",
            "What follows the paper",
        ),
        Misconception(
            "no_tanh",
            "there is no tanh",
            "Without it this layer and the output layer after it are one linear layer.",
            "What follows the paper",
        ),
        Misconception("sigmoid", "sigmoid instead of tanh", "Equation 5 uses tanh.", "What follows the paper"),
        Misconception(
            "state_left_out",
            "the state does not enter",
            "The context says what was read; the state says what has been written. Both are needed.",
            "What follows the paper",
        ),
        Misconception(
            "context_left_out",
            "the context does not enter",
            "Then the attention is computed and thrown away.",
            "What follows the paper",
        ),
        Misconception(
            "context_twice",
            "the context is joined with itself",
            "Join the context with the state: [c; h].",
            "What follows the paper",
        ),
        Misconception(
            "weight_transposed",
            "the weight is transposed",
            "weight is (n, Dv + Dq), as in nn.Linear: multiply by its transpose.",
            "The code",
        ),
    ),
)

# --- local_weights ----------------------------------------------------------------------------------------------


def local_weights(scores: Tensor, centre: Tensor, window: int) -> Tensor:
    distance = torch.arange(scores.shape[-1]).to(scores) - centre[..., None]  # (B, T, S)
    near = distance.abs() <= window - 1
    weights = scores.masked_fill(~near, float("-inf")).softmax(-1)
    sigma = (window - 1) / 2
    return weights * torch.exp(-(distance**2) / (2 * sigma**2))


def faulty_local_weights(wrong: frozenset[str]) -> Callable:
    def local_weights(scores, centre, window):
        if "centre_rounded" in wrong:
            centre = centre.round()
        offset = 1 if "positions_from_one" in wrong else 0
        distance = torch.arange(scores.shape[-1]).to(scores) + offset - centre.unsqueeze(-1)
        reach = window - 1 + ("too_wide" in wrong) - ("too_narrow" in wrong)
        near = (distance >= -reach) & (distance <= (0 if "past_only" in wrong else reach))
        sigma = float(window - 1) if "sigma_is_reach" in wrong else (window - 1) / 2
        exponent = distance**2 / (sigma**2 if "no_half" in wrong else 2 * sigma**2)
        bell = torch.ones_like(distance) if "no_gaussian" in wrong else torch.exp(-exponent)
        if "softmax_over_all" in wrong:
            weights = scores.softmax(-1).masked_fill(~near, 0.0)
        else:
            weights = scores.masked_fill(~near, float("-inf")).softmax(-1)
        weights = weights * bell
        return weights / weights.sum(-1, keepdim=True) if "renormalised" in wrong else weights

    return local_weights


def local_weights_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(800 + seed)

    def script(name: str, B: int, T: int, S: int, window: int, habit: str | None = None, dtype=torch.float32) -> Script:
        fraction = torch.rand(B, T, generator=inputs.generator)
        centre = (1.5 + fraction * (S - 3)).to(dtype)  # not whole numbers, and a little inside
        scores = inputs.normal(B, T, S, spread=1.5).to(dtype)
        return one_call(name, {"scores": scores, "centre": centre, "window": window}, habit)

    yield script("two queries, seven keys", 1, 2, 7, 3)
    yield script("a batch", 2, 3, 11, 4)
    yield script("as many queries as keys", 2, 9, 9, 3)
    yield script("a window of two", 3, 4, 8, 2)
    yield script("one query", 1, 1, 17, 3)
    yield script("float64", 2, 2, 8, 3, "float64", torch.float64)
    # Both ends are keys, and are inside. Whether |j - p| < W or <= W makes no difference here: both are too wide.
    middle = {"scores": inputs.normal(2, 3, 5, spread=1.5), "centre": torch.full((2, 3), 2.0), "window": 3}
    yield one_call("the window is the sentence", middle)


LOCAL_WEIGHTS = Exercise(
    id="luong/local_weights",
    defines="local_weights",
    title="Look near a predicted place",
    chapter=CHAPTER,
    difficulty=3,
    minutes=15,
    points=3,
    scripts=local_weights_scripts,
    reference=local_weights,
    faulty=faulty_local_weights,
    outputs=(Output("weights", "B T S"),),
    habits={"float64": FLOAT64},
    misconceptions=(
        Misconception(
            "too_wide",
            "the window reaches one key too far",
            "W counts the centre itself, so a key is inside when |j - p| is at most W - 1, the paper's D.",
            "The code",
        ),
        Misconception(
            "too_narrow",
            "the window is one key too narrow",
            "A key is inside when |j - p| is at most W - 1, the paper's D, both ends included.",
            "The code",
        ),
        Misconception(
            "softmax_over_all",
            "the softmax runs over all keys, and the window cuts afterwards",
            "Keys outside have then taken their share. Fill them with -inf first.",
            "The code",
        ),
        Misconception(
            "renormalised",
            "the weights are normalised again after the Gaussian",
            "The paper does not: its rows sum to less than 1, the less the farther the scores look from the centre. "
            "(A Gaussian put into the scores, before the softmax, comes to the same.)",
            "What follows the paper",
        ),
        Misconception(
            "no_gaussian",
            "the Gaussian is missing",
            "It is what gives the predicted centre a gradient: the window's edge has none.",
            "What follows the paper",
        ),
        Misconception(
            "sigma_is_reach",
            "sigma is D",
            "The paper sets sigma to D / 2, that is (W - 1) / 2.",
            "What follows the paper",
        ),
        Misconception(
            "no_half",
            "the 2 of the Gaussian's exponent is missing",
            "exp(-(j - p)² / (2σ²)).",
            "What follows the paper",
        ),
        Misconception(
            "centre_rounded",
            "the centre is rounded",
            "Rounding has no gradient, and the model predicts a place between the words on purpose.",
            "What follows the paper",
        ),
        Misconception(
            "past_only",
            "only keys before the centre are seen",
            "A translator has the whole source: the window reaches to both sides.",
            "The code",
        ),
        Misconception(
            "positions_from_one",
            "positions are counted from 1",
            "Keys stand at 0 … S - 1, here and in the module.",
            "The code",
        ),
    ),
)

# --- straight_through -------------------------------------------------------------------------------------------


def straight_through(scores: Tensor) -> Tensor:
    weights = scores.softmax(-1)
    hard = torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1.0)
    return hard + weights - weights.detach()


def faulty_straight_through(wrong: frozenset[str]) -> Callable:
    def straight_through(scores):
        axis = -2 if "over_queries" in wrong else -1
        weights = scores.softmax(axis)
        if "soft" in wrong:
            return weights
        place = weights.argmin(axis, keepdim=True) if "smallest" in wrong else weights.argmax(axis, keepdim=True)
        hard = torch.zeros_like(weights).scatter(axis, place, 1.0)
        if "no_gradient" in wrong:
            return hard
        if "weights_kept" in wrong:
            return hard + weights
        if "masked_weights" in wrong:
            return hard * weights / weights.detach()
        if "gradient_of_scores" in wrong:
            return hard + scores - scores.detach()
        return hard + weights - weights.detach()

    return straight_through


def straight_through_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(900 + seed)
    yield one_call("two queries, three keys", {"scores": inputs.normal(1, 2, 3, spread=1.5)})
    yield one_call("a batch", {"scores": inputs.normal(2, 3, 5, spread=1.5)})
    yield one_call("as many queries as keys", {"scores": inputs.normal(3, 4, 4, spread=1.5)})
    yield one_call("one query", {"scores": inputs.normal(1, 1, 11, spread=1.5)})
    yield one_call("float64", {"scores": inputs.normal(2, 2, 3, spread=1.5).double()}, "float64")


STRAIGHT_THROUGH = Exercise(
    id="luong/straight_through",
    defines="straight_through",
    title="Choose one key, and still have a gradient",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=straight_through_scripts,
    reference=straight_through,
    faulty=faulty_straight_through,
    outputs=(Output("choice", "B T S"),),
    habits={"float64": FLOAT64},
    compare_gradients=True,
    misconceptions=(
        Misconception(
            "no_gradient",
            "the choice is right, and no gradient reaches the scores",
            "argmax is constant almost everywhere, so it passes no gradient. Add something whose value is zero and "
            "whose gradient is that of the weights.",
            "Soft and hard",
        ),
        Misconception(
            "soft",
            "it returns the softmax weights",
            "Asked for is a choice: 1 at one key and 0 elsewhere.",
            "Soft and hard",
        ),
        Misconception(
            "weights_kept",
            "the weights' value is not taken away again",
            "The value must stay exactly 0 and 1: subtract `weights.detach()`.",
            "Soft and hard",
        ),
        Misconception(
            "masked_weights",
            "only the chosen key gets a gradient",
            "The straight-through gradient is the softmax's own, for every key, as if nothing had been chosen.",
            "Soft and hard",
        ),
        Misconception(
            "gradient_of_scores",
            "the gradient is that of the scores, without the softmax",
            "Pass the softmax weights straight through, not the scores.",
            "Soft and hard",
        ),
        Misconception(
            "over_queries",
            "the choice is made among the queries",
            "Each query chooses one key: the last axis, S.",
            "The code",
        ),
        Misconception(
            "smallest",
            "the smallest weight is chosen",
            "Choose the largest: argmax.",
            "Soft and hard",
        ),
    ),
)

# --- test_general_score, a reverse exercise ---------------------------------------------------------------------


def _by_loops(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    scores = query.new_empty(len(query), query.shape[1], keys.shape[1])
    for b in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            scores[b, i] = keys[b] @ (query[b, i] @ weight)
    return scores


def _by_einsum(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("btq,qk,bsk->bts", query, weight, keys)


def _keys_first(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    return (keys @ weight.T @ query.transpose(1, 2)).transpose(1, 2)


def _in_float64(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    return general_score(query.double(), keys.double(), weight.double()).to(query.dtype)


TEST_GENERAL_SCORE = ReverseExercise(
    id="luong/test_general_score",
    defines="test_general_score",
    title="Write the test: which general score is right?",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=4,
    right={
        "matrix products": general_score,
        "loops": _by_loops,
        "einsum": _by_einsum,
        "keys projected first": _keys_first,
        "computed in float64": _in_float64,
    },
    faulty=faulty_general_score,
    misconceptions=GENERAL_MISCONCEPTIONS,
)

EXERCISES = (GENERAL_SCORE, CONCAT_SCORE, ATTENTIONAL_VECTOR, LOCAL_WEIGHTS, STRAIGHT_THROUGH, TEST_GENERAL_SCORE)
