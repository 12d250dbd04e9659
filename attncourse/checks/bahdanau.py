"""Exercises of chapter 01: additive attention, piece by piece, then inside a decoder."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attncourse.bahdanau import AdditiveAttention
from attncourse.checks.common import (
    COMMON_HABITS,
    EXTREME,
    FLOAT64,
    FORBIDDEN_KEYS,
    NOT_NEGATIVE,
    SUM_TO_ONE,
)
from attncourse.checks.script import Call, Construct, Load, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Variant

CHAPTER = "01_bahdanau"

# --- additive_score ---------------------------------------------------------------------------------------------


def additive_score(query: Tensor, keys: Tensor, query_weight: Tensor, key_weight: Tensor, v: Tensor) -> Tensor:
    projected_query = query @ query_weight.T  # (B, T, A)
    projected_keys = keys @ key_weight.T  # (B, S, A)
    hidden = torch.tanh(projected_query[:, :, None, :] + projected_keys[:, None, :, :])  # (B, T, S, A)
    return hidden @ v  # (B, T, S)


def faulty_additive_score(wrong: frozenset[str]) -> Callable:
    def additive_score(query, keys, query_weight, key_weight, v):
        if "swapped_weights" in wrong:
            query_weight, key_weight = key_weight, query_weight
        q, k = (query @ query_weight.T).unsqueeze(2), (keys @ key_weight.T).unsqueeze(1)
        squash = torch.tanh
        for name, function in (("no_tanh", lambda x: x), ("relu", torch.relu), ("sigmoid", torch.sigmoid)):
            squash = function if name in wrong else squash
        hidden = squash(q) + squash(k) if "tanh_of_each" in wrong else squash(q + k)
        scores = hidden.sum(-1) if "no_v" in wrong else (hidden * v).sum(-1)
        if "scaled" in wrong:
            scores = scores / v.numel() ** 0.5
        if "returns_weights" in wrong:
            scores = scores.softmax(-1)
        return scores.transpose(1, 2) if "axes_swapped" in wrong else scores

    return additive_score


def additive_score_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(seed)

    def arguments(B: int, T: int, S: int, Dq: int, Dk: int, A: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, T, Dq, spread=2.0),
            "keys": inputs.normal(B, S, Dk, spread=2.0),
            "query_weight": inputs.weight(A, Dq),
            "key_weight": inputs.weight(A, Dk),
            "v": inputs.normal(A),
        }

    def script(name: str, arguments: dict[str, Tensor], habit: str | None = None) -> Script:
        return Script(name, (Call(arguments, gradients=tuple(arguments)),), habit)

    yield script("two queries, three keys", arguments(1, 2, 3, 4, 5, 6))
    yield script("a batch, all sizes different", arguments(2, 3, 5, 4, 7, 6))
    yield script("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield script("one query", arguments(1, 1, 9, 8, 7, 6))
    loose = arguments(2, 3, 5, 4, 7, 6)
    loose["query"], loose["keys"] = (loose[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("query", "keys"))
    yield script("non-contiguous", loose, "non-contiguous")
    yield script("float64", {n: t.double() for n, t in arguments(2, 2, 3, 4, 5, 6).items()}, "float64")


ADDITIVE_SCORE = Exercise(
    id="bahdanau/additive_score",
    defines="additive_score",
    title="Score every key against every query",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=additive_score_scripts,
    reference=additive_score,
    faulty=faulty_additive_score,
    outputs=(Output("scores", "B T S"),),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "no_tanh",
            "there is no tanh",
            "Without it v·(Wq + Uk) = v·Wq + v·Uk. The first part is the same for every key, so the softmax over "
            "the keys removes it: the query no longer matters.",
            "By hand",
        ),
        Misconception(
            "relu", "relu instead of tanh", "The paper squashes the sum with tanh, between -1 and 1.", "By hand"
        ),
        Misconception(
            "sigmoid",
            "sigmoid instead of tanh",
            "Sigmoid runs from 0 to 1 and is half as steep in its argument; tanh is centred at 0.",
            "By hand",
        ),
        Misconception(
            "tanh_of_each",
            "tanh is taken of each part, then the parts are added",
            "Then v·tanh(Wq) is again the same for every key and cancels in the softmax. Add first, then tanh: the "
            "nonlinearity is what lets query and key interact.",
            "By hand",
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
            "Asked for are the scores; the softmax comes in the next exercise, where the mask does.",
            "The code",
        ),
        Misconception(
            "no_v",
            "v is left out",
            "Summing the hidden layer gives every unit the same say; v weighs them.",
            "By hand",
        ),
        Misconception(
            "swapped_weights",
            "query_weight and key_weight are exchanged",
            "query_weight projects queries and key_weight projects keys. With equal sizes nothing crashes, and the "
            "scores are wrong.",
            "The code",
        ),
        Misconception(
            "scaled",
            "the scores are divided by the square root of their size",
            "That belongs to scaled dot products. Here tanh bounds every term, and v learns the scale.",
            "The code",
        ),
    ),
)

# --- masked_softmax ---------------------------------------------------------------------------------------------


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    scores = scores.masked_fill(~mask, float("-inf"))
    largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)  # a finite number in empty rows
    exponentials = torch.exp(scores - largest)  # forbidden keys: exp(-inf) = 0
    total = exponentials.sum(-1, keepdim=True)
    return exponentials / total.clamp(min=torch.finfo(scores.dtype).tiny)


def faulty_masked_softmax(wrong: frozenset[str]) -> Callable:
    def masked_softmax(scores, mask):
        if "mask_inverted" in wrong:
            mask = ~mask
        if "mask_ignored" in wrong:
            mask = torch.ones_like(mask)
        axis = -2 if "over_queries" in wrong else -1
        fill = -1e9 if "empty_rows_uniform" in wrong else float("-inf")
        if "mask_multiplies" in wrong:
            scores = scores * mask
        elif "mask_added" in wrong:
            scores = scores + mask
        elif "mask_after" not in wrong:
            scores = scores.masked_fill(~mask, fill)
        if "hard" in wrong:
            weights = nn.functional.one_hot(scores.argmax(axis), scores.shape[axis]).to(scores)
            weights = weights.movedim(-1, axis)
        elif "no_normaliser" in wrong:
            weights = scores.exp()
        else:
            exponentials = (scores - scores.amax(axis, keepdim=True)).exp()
            weights = exponentials / exponentials.sum(axis, keepdim=True)
        if "mask_after" in wrong:
            weights = weights * mask
        if wrong & {"empty_rows_nan", "empty_rows_uniform", "mask_multiplies", "mask_added"}:
            return weights
        return weights.masked_fill(~mask.any(axis, keepdim=True), 0.0)

    return masked_softmax


def masked_softmax_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(100 + seed)

    def script(name: str, scores: Tensor, mask: Tensor, habit: str | None = None) -> Script:
        return Script(name, (Call({"scores": scores, "mask": mask}, gradients=("scores",)),), habit)

    yield script("two queries, three keys", inputs.normal(1, 2, 3, spread=3.0), inputs.mask(1, 2, 3))
    yield script("a batch", inputs.normal(2, 3, 5, spread=3.0), inputs.mask(2, 3, 5))
    yield script("as many queries as keys", inputs.normal(3, 4, 4, spread=3.0), inputs.mask(3, 4, 4))
    empty = inputs.mask(2, 3, 4)
    empty[0, 1], empty[1, 2] = False, True
    yield script("a query with no allowed key, another with all", inputs.normal(2, 3, 4, spread=3.0), empty)
    yield script("one query", inputs.normal(1, 1, 11, spread=3.0), inputs.mask(1, 1, 11))
    scores, mask = inputs.normal(2, 3, 5, spread=200.0), inputs.mask(2, 3, 5)
    yield script("scores of a few hundred", scores.masked_fill(~mask, -900.0), mask, "extreme")
    scores, mask = inputs.normal(2, 2, 4), inputs.mask(2, 2, 4)
    yield script("large forbidden scores", scores.masked_fill(~mask, 300.0), mask, "extreme forbidden")
    yield script("float64", inputs.normal(2, 2, 3).double(), inputs.mask(2, 2, 3), "float64")


MASKED_SOFTMAX = Exercise(
    id="bahdanau/masked_softmax",
    defines="masked_softmax",
    title="Turn scores into weights, among the allowed keys",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=masked_softmax_scripts,
    reference=masked_softmax,
    faulty=faulty_masked_softmax,
    outputs=(Output("weights", "B T S"),),
    properties=(FORBIDDEN_KEYS, NOT_NEGATIVE, SUM_TO_ONE),
    habits={
        "extreme": EXTREME,
        "extreme forbidden": "A large score at a forbidden key spoils the row: take the maximum over the allowed keys "
        "only, or the allowed exponentials vanish beside it.",
        "float64": FLOAT64,
    },
    forbidden=(
        *("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin"),
        "scaled_dot_product_attention",
    ),
    misconceptions=(
        Misconception(
            "mask_ignored",
            "the mask is not used",
            "Padding then takes part in the average, and the same sentence gives another result in another batch.",
            "Predict, run, explain",
        ),
        Misconception(
            "mask_inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "The code",
        ),
        Misconception(
            "mask_multiplies",
            "the scores are multiplied by the mask",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. Forbidden scores must be -inf.",
            "Predict, run, explain",
        ),
        Misconception(
            "mask_after",
            "the weights are masked after the softmax and not normalised again",
            "The forbidden keys have already taken their share, so the rest sums to less than 1.",
            "Predict, run, explain",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Each query divides its attention among the keys: normalise over the last axis, S.",
            "The code",
        ),
        Misconception(
            "empty_rows_nan",
            "a query with no allowed key is not taken care of",
            "Nothing is left to sum there, and 0/0 (or inf - inf) is NaN, which spreads through the network. Make that "
            "row zeros.",
            "The code",
        ),
        Misconception(
            "empty_rows_uniform",
            "a query with no allowed key attends to all forbidden ones equally",
            "Filling with a large negative number makes the row constant, and the softmax of a constant row is "
            "uniform. Fill with -inf and make empty rows zeros.",
            "The code",
        ),
        Misconception(
            "mask_added",
            "the boolean mask is added to the scores",
            "True counts as 1, a factor of e for such a key, and forbidden keys still take part.",
            "Predict, run, explain",
        ),
        Misconception(
            "hard",
            "all weight goes to the largest score",
            "That is hard attention: it has no gradient. The softmax spreads the weight smoothly.",
            "The problem",
        ),
        Misconception(
            "no_normaliser",
            "the exponentials are not divided by their sum",
            "Weights of one query must sum to 1, else the context grows with the number of keys.",
            "By hand",
        ),
    ),
    variants={
        "forbid": Variant(
            statement="In this copy the mask has the opposite sense: True marks a key that is forbidden.",
            argument=lambda name, value: ~value if name == "mask" else value,
            wrap=lambda implementation: lambda scores, mask: implementation(scores, ~mask),
            explanations={
                "mask_inverted": "Here True means: forbidden, as in `nn.MultiheadAttention`. In the chapter it means: "
                "may attend.",
            },
        )
    },
)

# --- context_vector ---------------------------------------------------------------------------------------------


def context_vector(weights: Tensor, values: Tensor) -> Tensor:
    return weights @ values  # (B, T, S) @ (B, S, Dv) -> (B, T, Dv)


def faulty_context_vector(wrong: frozenset[str]) -> Callable:
    def context_vector(weights, values):
        if "weights_transposed" in wrong:
            weights = weights.mT
        if "softmax_again" in wrong:
            weights = weights.softmax(-1)
        if "renormalised" in wrong:
            weights = weights / weights.sum(-1, keepdim=True)
        if "uniform" in wrong:
            weights = torch.full_like(weights, 1 / weights.shape[-1])
        if "unweighted_sum" in wrong:
            weights = torch.ones_like(weights)
        if "hard" in wrong:
            weights = nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
        if weights.shape[-1] != values.shape[1]:  # a product of matrices would say so too
            raise ValueError(f"{weights.shape[-1]} weights for {values.shape[1]} values")
        parts = weights[..., None] * values[:, None]  # (B, T, S, Dv)
        if "not_summed" in wrong:
            return parts
        context = parts.amax(2) if "maximum" in wrong else parts.sum(2)
        if "divided" in wrong:
            context = context / values.shape[1]
        return context.sum(1) if "queries_summed" in wrong else context

    return context_vector


def context_vector_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(200 + seed)

    def script(name: str, B: int, T: int, S: int, Dv: int, habit: str | None = None, dtype=torch.float32) -> Script:
        weights = inputs.normal(B, T, S, spread=1.5).softmax(-1)
        arguments = {"weights": weights.to(dtype), "values": inputs.normal(B, S, Dv, spread=2.0).to(dtype)}
        return Script(name, (Call(arguments, gradients=("weights", "values")),), habit)

    yield script("two queries, three keys", 1, 2, 3, 4)
    yield script("a batch, all sizes different", 2, 3, 5, 4)
    yield script("all sizes equal", 4, 4, 4, 4)
    yield script("one query", 1, 1, 9, 8)
    weights = inputs.normal(2, 3, 4, spread=1.5).softmax(-1)
    weights[0, 1] = 0.0
    arguments = {"weights": weights, "values": inputs.normal(2, 4, 11, spread=2.0)}
    yield Script("a query with no allowed key", (Call(arguments, gradients=("weights", "values")),))
    yield script("float64", 2, 2, 3, 4, "float64", torch.float64)


CONTEXT_VECTOR = Exercise(
    id="bahdanau/context_vector",
    defines="context_vector",
    title="Average the values with the weights",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=context_vector_scripts,
    reference=context_vector,
    faulty=faulty_context_vector,
    outputs=(Output("context", "B T Dv"),),
    habits={"float64": FLOAT64},
    misconceptions=(
        Misconception(
            "uniform",
            "every value counts the same",
            "This is the plain mean: the weights are there to say how much each value counts.",
            "The problem",
        ),
        Misconception(
            "unweighted_sum",
            "the values are summed without their weights",
            "Multiply each value by its weight before adding.",
            "By hand",
        ),
        Misconception(
            "hard",
            "only the value with the largest weight is kept",
            "That is hard attention. The context is an average of all values, so that gradients reach all of them.",
            "The problem",
        ),
        Misconception(
            "softmax_again",
            "the softmax is taken a second time",
            "The weights already sum to 1; a second softmax flattens them towards uniform.",
            "The code",
        ),
        Misconception(
            "renormalised",
            "the weights are divided by their sum again",
            "They already sum to 1; and a query with no allowed key has sum 0, where 0/0 is NaN.",
            "The code",
        ),
        Misconception(
            "weights_transposed",
            "the weights are transposed",
            "weights is (B, T, S): row i belongs to query i, and its S numbers multiply the S values.",
            "The code",
        ),
        Misconception(
            "divided",
            "the sum is divided by the number of keys",
            "The weights already make it an average; dividing again shrinks it.",
            "By hand",
        ),
        Misconception(
            "maximum",
            "the largest weighted value is taken instead of the sum",
            "The context is the sum over the keys, in each dimension.",
            "By hand",
        ),
        Misconception(
            "queries_summed",
            "the contexts of all queries are added together",
            "Each query has a context of its own: (B, T, Dv). Sum over the keys only.",
            "The code",
        ),
        Misconception(
            "not_summed",
            "the weighted values are not summed",
            "After multiplying, add over the key axis: one vector for each query.",
            "The code",
        ),
    ),
)

# --- AdditiveAttention ------------------------------------------------------------------------------------------


def faulty_attention(wrong: frozenset[str]) -> type:
    class Attention(nn.Module):
        def __init__(self, query_dim, key_dim, hidden_dim):
            super().__init__()
            self.query_proj = nn.Linear(query_dim, hidden_dim, bias=False)
            self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
            self.v = nn.Parameter(torch.zeros(hidden_dim))

        def forward(self, query, keys, values=None, mask=None):
            projected_keys = self.key_proj(keys)
            scores = faulty_additive_score(wrong)(query, keys, self.query_proj.weight, self.key_proj.weight, self.v)
            with_mask = wrong
            if mask is None:  # learners write `if mask is not None`: what they do to a mask is then not done
                mask, with_mask = torch.ones(keys.shape[:2], dtype=torch.bool), wrong - {"mask_inverted"}
            allowed = mask[:, None].expand_as(scores)
            weights = faulty_masked_softmax(with_mask)(scores, allowed)
            if values is None or "values_ignored" in wrong:
                values = keys
            if "projected_values" in wrong:
                values = projected_keys
            context = weights @ values
            shown = scores if "returns_scores" in wrong else weights
            return (shown, context) if "order_swapped" in wrong else (context, shown)

    return Attention


def attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(300 + seed)

    def script(name: str, sizes: tuple[int, ...], mask: Tensor | None, values: int | None, habit: str | None = None):
        B, T, S, Dq, Dk, A = sizes
        state = {
            "query_proj.weight": inputs.weight(A, Dq),
            "key_proj.weight": inputs.weight(A, Dk),
            "v": inputs.normal(A, spread=1.5),
        }
        arguments = {
            "query": inputs.normal(B, T, Dq, spread=2.0),
            "keys": inputs.normal(B, S, Dk, spread=2.0),
            "values": None if values is None else inputs.normal(B, S, values, spread=2.0),
            "mask": mask,
        }
        wanted = tuple(name for name in ("query", "keys", "values") if arguments[name] is not None)
        construct = Construct({"query_dim": Dq, "key_dim": Dk, "hidden_dim": A})
        return Script(name, (construct, Load(state), Call(arguments, gradients=wanted)), habit)

    yield script("no mask, no values", (1, 2, 3, 4, 5, 6), None, None)
    yield script("a padded source", (2, 3, 4, 5, 6, 7), inputs.padding(4, 2), None)
    yield script("values of their own", (3, 2, 5, 4, 6, 7), inputs.padding(5, 1, 3), 8)
    yield script("all sizes equal", (4, 4, 4, 4, 4, 4), inputs.padding(4, 1, 3, 2), 4)
    yield script("an empty source", (2, 2, 3, 4, 5, 6), inputs.padding(3, 0), 7)
    yield script("one query", (1, 1, 9, 8, 7, 6), inputs.padding(9), None)


ATTENTION = Exercise(
    id="bahdanau/attention",
    defines="Attention",
    title="Put the pieces together in a module",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=attention_scripts,
    reference=AdditiveAttention,
    faulty=faulty_attention,
    outputs=(Output("context", "B T Dv"), Output("weights", "B T S")),
    properties=(FORBIDDEN_KEYS, NOT_NEGATIVE, SUM_TO_ONE),
    misconceptions=(
        Misconception(
            "order_swapped",
            "the weights are returned first",
            "Return (context, weights): every attention module of the course keeps this order.",
            "The code",
        ),
        Misconception(
            "values_ignored",
            "the values argument is not used",
            "Scores come from the keys, the context from the values. Only when none are given are they the keys.",
            "The code",
        ),
        Misconception(
            "projected_values",
            "the projected keys are averaged instead of the values",
            "key_proj serves the scores only; the context averages the values as they came.",
            "The code",
        ),
        Misconception(
            "returns_scores",
            "the scores are returned in place of the weights",
            "The second result is what the softmax gave: each row sums to 1.",
            "The code",
        ),
        *(
            misconception
            for exercise, names in (
                (ADDITIVE_SCORE, ("no_tanh", "tanh_of_each")),
                (MASKED_SOFTMAX, ("mask_ignored", "mask_inverted", "over_queries", "empty_rows_nan", "mask_after")),
            )
            for misconception in exercise.misconceptions
            if misconception.name in names
        ),
    ),
)

# --- AttentionDecoder -------------------------------------------------------------------------------------------


class AttentionDecoder(nn.Module):
    def __init__(self, embed_dim: int, key_dim: int, state_dim: int, hidden_dim: int):
        super().__init__()
        self.attention = AdditiveAttention(state_dim, key_dim, hidden_dim)
        self.cell = nn.GRUCell(embed_dim + key_dim, state_dim)

    def begin(self, keys: Tensor, mask: Tensor, state: Tensor) -> None:
        self.keys, self.mask, self.state = keys, mask, state

    def step(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = self.attention(self.state[:, None], self.keys, mask=self.mask)  # (B, 1, Dk), (B, 1, S)
        self.state = self.cell(torch.cat([embedding, context[:, 0]], dim=-1), self.state)  # (B, state_dim)
        return self.state, weights[:, 0]


def faulty_decoder(wrong: frozenset[str]) -> type:
    class AttentionDecoder(nn.Module):
        def __init__(self, embed_dim, key_dim, state_dim, hidden_dim):
            super().__init__()
            self.attention = AdditiveAttention(state_dim, key_dim, hidden_dim)
            self.cell = nn.GRUCell(embed_dim + key_dim, state_dim)

        def begin(self, keys, mask, state):
            self.keys, self.mask, self.state = keys, mask, state

        def step(self, embedding):
            old = torch.zeros_like(self.state) if "state_restarted" in wrong else self.state
            mask = None if "mask_ignored" in wrong else self.mask
            context, weights = self.attention(old[:, None], self.keys, mask=mask)
            context, weights = context[:, 0], weights[:, 0]
            if "context_left_out" in wrong:
                context = torch.zeros_like(context)
            if "mean_context" in wrong:
                shown = self.mask[..., None].to(self.keys)
                context = (self.keys * shown).sum(1) / shown.sum(1)
            parts = [context, embedding] if "parts_swapped" in wrong else [embedding, context]
            before = torch.zeros_like(old) if "cell_without_state" in wrong else old
            new = self.cell(torch.cat(parts, -1), before)
            if "query_is_new_state" in wrong:
                _, weights = self.attention(new[:, None], self.keys, mask=mask)
                weights = weights[:, 0]
            if "state_not_kept" not in wrong:
                self.state = new
            return old if "returns_old_state" in wrong else new, weights

    return AttentionDecoder


def decoder_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(400 + seed)

    def script(name: str, embed_dim: int, key_dim: int, state_dim: int, A: int, lengths: tuple[int, ...], n_steps: int):
        state = {
            "attention.query_proj.weight": inputs.weight(A, state_dim) * 2,
            "attention.key_proj.weight": inputs.weight(A, key_dim),
            "attention.v": inputs.normal(A, spread=2.0),
            "cell.weight_ih": inputs.weight(3 * state_dim, embed_dim + key_dim),
            "cell.weight_hh": inputs.weight(3 * state_dim, state_dim),
            "cell.bias_ih": inputs.normal(3 * state_dim, spread=0.5),
            "cell.bias_hh": inputs.normal(3 * state_dim, spread=0.5),
        }
        B, S = len(lengths), max(lengths)
        begin = {
            "keys": inputs.normal(B, S, key_dim, spread=2.0),
            "mask": inputs.padding(*lengths),
            "state": inputs.normal(B, state_dim),
        }
        construct = Construct({"embed_dim": embed_dim, "key_dim": key_dim, "state_dim": state_dim, "hidden_dim": A})
        steps = [Call({"embedding": inputs.normal(B, embed_dim)}, "step", ("embedding",)) for _ in range(n_steps)]
        return Script(name, (construct, Load(state), Call(begin, "begin"), *steps))

    yield script("two steps", 2, 4, 5, 6, (3, 2), 2)
    yield script("one sentence", 7, 9, 10, 6, (8,), 2)
    yield script("all sizes equal", 4, 4, 4, 4, (4, 2, 3, 1), 2)
    yield script("three steps, a longer source", 5, 4, 6, 7, (6, 3, 4), 3)


DECODER = Exercise(
    id="bahdanau/decoder",
    defines="AttentionDecoder",
    title="One decoder step, in Bahdanau's order",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    scripts=decoder_scripts,
    reference=AttentionDecoder,
    faulty=faulty_decoder,
    outputs=(Output("state", "B state_dim"), Output("weights", "B S")),
    given=("attncourse.bahdanau",),
    misconceptions=(
        Misconception(
            "query_is_new_state",
            "the weights come from the new state",
            "Bahdanau's decoder looks before it moves: the query is the previous state. Attending with the new "
            "state is Luong's order, in the next chapter.",
            "What follows the paper",
        ),
        Misconception(
            "state_not_kept",
            "the new state is not kept for the next step",
            "Without `self.state = …` every step starts from the same place, and the second step repeats the first.",
            "The code",
        ),
        Misconception(
            "state_restarted",
            "the state starts from zeros in every step",
            "The state given to `begin`, then the one of the last step, carries what has been said so far.",
            "The code",
        ),
        Misconception(
            "cell_without_state",
            "the GRU cell does not get the previous state",
            "`self.cell(inputs, state)`: without its second argument a GRUCell starts from zeros.",
            "The code",
        ),
        Misconception(
            "parts_swapped",
            "the context comes before the embedding",
            "The cell's weights expect [embedding; context]. With trained weights the order matters.",
            "The code",
        ),
        Misconception(
            "context_left_out",
            "the context does not reach the cell",
            "Then the source is forgotten: the decoder is a language model that computes weights for nothing.",
            "The problem",
        ),
        Misconception(
            "mean_context",
            "the context is the plain mean of the source",
            "That is a fixed vector again. Use the context that the attention returns, another in each step.",
            "The problem",
        ),
        Misconception(
            "mask_ignored",
            "the mask is not used",
            "Padding then takes part in the average. Give `mask=self.mask` to the attention.",
            "Predict, run, explain",
        ),
        Misconception(
            "returns_old_state",
            "the previous state is returned",
            "Return the state after the cell: the next word is predicted from it.",
            "The code",
        ),
    ),
)

EXERCISES = (ADDITIVE_SCORE, MASKED_SOFTMAX, CONTEXT_VECTOR, ATTENTION, DECODER)
