"""Exercises of chapter 03: three projections of one sequence, scaled scores, attention with a mask, one whole head."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attncourse.checks.common import COMMON_HABITS, EXTREME, FORBIDDEN_KEYS, NOT_NEGATIVE, SUM_TO_ONE, one_call, strided
from attncourse.checks.script import Call, Construct, Load, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Variant

CHAPTER = "03_self_attention"

WHOLE_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention")


# --- project_tokens ---------------------------------------------------------------------------------------------


def project_tokens(x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key = x @ q_weight.T, x @ k_weight.T  # (B, T, D) each
    value = x @ v_weight.T  # (B, T, Dv)
    return query, key, value


def faulty_project_tokens(wrong: frozenset[str]) -> Callable:
    def apply(x, weight):
        if "weight_transposed" in wrong:
            return torch.einsum("btm,md->btd", x, weight)
        if "weight_reshaped" in wrong:
            return torch.einsum("btm,md->btd", x, weight.reshape(weight.shape[1], weight.shape[0]))
        return torch.einsum("btm,dm->btd", x, weight)

    def project_tokens(x, q_weight, k_weight, v_weight):
        if "one_weight" in wrong:
            k_weight = v_weight = q_weight
        query = apply(x, q_weight)
        key = apply(query if "chained" in wrong else x, k_weight)
        value = apply(key if "chained" in wrong else x, v_weight)
        if "value_not_projected" in wrong:
            value = x.clone()
        if "query_scaled" in wrong:
            query = query / query.shape[-1] ** 0.5
        if "query_key_exchanged" in wrong:
            query, key = key, query
        if "key_value_exchanged" in wrong:
            key, value = value, key
        return query, key, value

    return project_tokens


def project_tokens_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1100 + seed)

    def arguments(B: int, T: int, d_model: int, D: int, Dv: int) -> dict[str, Tensor]:
        return {
            "x": inputs.normal(B, T, d_model, spread=1.5),
            "q_weight": inputs.weight(D, d_model),
            "k_weight": inputs.weight(D, d_model),
            "v_weight": inputs.weight(Dv, d_model),
        }

    yield one_call("two tokens", arguments(1, 2, 4, 3, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 6, 4, 5))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    yield one_call("one token", arguments(1, 1, 9, 7, 8))
    loose = arguments(2, 3, 6, 4, 5)
    yield one_call("non-contiguous", loose | {"x": strided(loose["x"])}, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 3, 5, 4, 4).items()}, "float64")


PROJECT_TOKENS = Exercise(
    id="self_attention/project_tokens",
    defines="project_tokens",
    title="Make query, key and value from one sequence",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=project_tokens_scripts,
    reference=project_tokens,
    faulty=faulty_project_tokens,
    outputs=(Output("query", "B T D"), Output("key", "B T D"), Output("value", "B T Dv")),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "weight_transposed",
            "the weights are transposed",
            "nn.Linear stores its weight with the outputs first, (D, d_model), and multiplies by the transpose. With "
            "equal sizes nothing crashes.",
            "By hand",
        ),
        Misconception(
            "weight_reshaped",
            "the weights are reshaped where they should be transposed",
            "`reshape` keeps the numbers in the order in which they are stored and cuts them into other rows. "
            "`.T` exchanges rows and columns.",
            "By hand",
        ),
        Misconception(
            "one_weight",
            "one weight makes all three",
            "Query, key and value each have a matrix of their own. With one for all, a token asks for exactly "
            "what it offers.",
            "The problem",
        ),
        Misconception(
            "query_key_exchanged",
            "query and key are in each other's place",
            "Return (query, key, value). Exchanged, the scores are transposed: each token is asked by those that it "
            "should ask.",
            "The code",
        ),
        Misconception(
            "key_value_exchanged",
            "key and value are in each other's place",
            "Return (query, key, value). Keys are compared, values are averaged.",
            "The code",
        ),
        Misconception(
            "value_not_projected",
            "the value is the token itself",
            "The value has a matrix of its own: what a token gives away need not be what it is.",
            "By hand",
        ),
        Misconception(
            "chained",
            "each projection reads the one before",
            "All three read x: three products side by side, not one after another.",
            "The code",
        ),
        Misconception(
            "query_scaled",
            "the query is already divided by the square root of D",
            "Asked for are the plain projections; the division belongs to the scores, in the next exercise.",
            "Why divide by the root of d",
        ),
    ),
)

# --- scaled_scores ----------------------------------------------------------------------------------------------


def scaled_scores(query: Tensor, key: Tensor) -> Tensor:
    products = query @ key.transpose(1, 2)  # (B, T, S)
    return products / query.shape[-1] ** 0.5


def faulty_scaled_scores(wrong: frozenset[str]) -> Callable:
    def scaled_scores(query, key):
        (B, T, D), S = query.shape, key.shape[1]
        divisor = D**0.5
        for name, other in (
            ("unscaled", 1.0),
            ("divided_by_d", D),
            ("half_d", 2 * D),
            ("multiplied", D**-0.5),
            ("root_of_t", T**0.5),
            ("root_of_s", S**0.5),
        ):
            divisor = other if name in wrong else divisor
        if "cosine" in wrong:
            query, key = query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)
        if "key_reshaped" in wrong:
            key = key.reshape(B, D, S).transpose(1, 2)
        scores = torch.einsum("btd,bsd->bts", query, key)
        scores = scores / divisor
        if "returns_weights" in wrong:
            scores = scores.softmax(-1)
        return scores.transpose(1, 2) if "axes_swapped" in wrong else scores

    return scaled_scores


def scaled_scores_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1200 + seed)

    def arguments(B: int, T: int, S: int, D: int) -> dict[str, Tensor]:
        return {"query": inputs.normal(B, T, D, spread=1.5), "key": inputs.normal(B, S, D, spread=1.5)}

    yield one_call("two queries, three keys", arguments(1, 2, 3, 5))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 6))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4))
    yield one_call("as many queries as keys", arguments(2, 5, 5, 7))
    yield one_call("one query", arguments(1, 1, 9, 8))
    loose = {name: strided(tensor) for name, tensor in arguments(2, 3, 5, 6).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 2, 3, 5).items()}, "float64")


SCALED_SCORES = Exercise(
    id="self_attention/scaled_scores",
    defines="scaled_scores",
    title="Score every key against every query, scaled",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=scaled_scores_scripts,
    reference=scaled_scores,
    faulty=faulty_scaled_scores,
    outputs=(Output("scores", "B T S"),),
    habits=COMMON_HABITS,
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        Misconception(
            "unscaled",
            "the products are not divided by the square root of D",
            "A sum of D products of unit numbers has variance D. Undivided, scores grow with D, the softmax nears a "
            "choice of one key, and its gradient vanishes.",
            "Why divide by the root of d",
        ),
        Misconception(
            "divided_by_d",
            "the products are divided by D",
            "The variance of the sum is D, so its spread is the square root of D. Divided by D, the weights come "
            "near uniform as D grows. (Query and key each divided by the root of D come to the same.)",
            "Why divide by the root of d",
        ),
        Misconception(
            "half_d",
            "the products are divided by D and by 2",
            "`D**1/2` is D / 2, because the power comes first, and `products / D**1/2` is products / D / 2; write "
            "`D ** 0.5`.",
            "Why divide by the root of d",
        ),
        Misconception(
            "multiplied",
            "the products are multiplied by the square root of D",
            "The scale shrinks the scores: divide, or multiply by D ** -0.5.",
            "Why divide by the root of d",
        ),
        Misconception(
            "root_of_t",
            "the scale comes from the number of queries",
            "D is the last axis, the size of one query: how many queries there are must not change a score.",
            "Why divide by the root of d",
        ),
        Misconception(
            "root_of_s",
            "the scale comes from the number of keys",
            "D is the last axis, the size of one key: how many keys there are must not change a score.",
            "Why divide by the root of d",
        ),
        Misconception(
            "axes_swapped",
            "the query and key axes are swapped",
            "scores[b, i, j] belongs to query i and key j: queries come first, (B, T, S).",
            "The code",
        ),
        Misconception(
            "key_reshaped",
            "the keys are reshaped where they should be transposed",
            "`key.reshape(B, D, S)` cuts the stored numbers into other rows; `key.transpose(1, 2)` exchanges the axes.",
            "The code",
        ),
        Misconception(
            "returns_weights",
            "it returns the weights, after the softmax",
            "Asked for are the scores; they may be negative and need not sum to 1.",
            "The code",
        ),
        Misconception(
            "cosine",
            "queries and keys are divided by their own lengths",
            "That is cosine similarity. Here the lengths count: do not divide by them.",
            "By hand",
        ),
    ),
    variants={
        "temperature": Variant(
            statement="In this copy the scores have a temperature of 3: divide by it as well as by the square root "
            "of D.",
            argument=lambda name, value: value,
            wrap=lambda implementation: lambda query, key: implementation(query / 3, key),
        )
    },
)

# --- masked_attention -------------------------------------------------------------------------------------------


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (B, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
    return weights @ value, weights


def faulty_masked_attention(wrong: frozenset[str]) -> Callable:
    def masked_attention(query, key, value, mask):
        (_, T, D), Dv = query.shape, value.shape[-1]
        if "mask_inverted" in wrong:
            mask = ~mask
        if "mask_ignored" in wrong:
            mask = torch.ones_like(mask)
        divisor = D**0.5
        for name, other in (
            ("unscaled", 1.0),
            ("divided_by_d", D),
            ("multiplied", D**-0.5),
            ("root_of_t", T**0.5),
            ("root_of_dv", Dv**0.5),
        ):
            divisor = other if name in wrong else divisor
        scores = torch.einsum("btd,bsd->bts", query, key)
        if "scaled_after" not in wrong:
            scores = scores / divisor
        if "mask_multiplies" in wrong:
            scores = scores * mask
        elif "mask_added" in wrong:
            scores = scores + mask
        elif "mask_after" not in wrong:
            scores = scores.masked_fill(~mask, -1e9 if "empty_rows_uniform" in wrong else float("-inf"))
        axis = -2 if "over_queries" in wrong else -1
        if "hard" in wrong:
            weights = nn.functional.one_hot(scores.argmax(axis), scores.shape[axis]).to(scores).movedim(-1, axis)
        else:
            weights = scores if "no_softmax" in wrong else scores.softmax(axis)
        if "mask_after" in wrong:
            weights = weights * mask
        if not wrong & {"empty_rows_nan", "empty_rows_uniform", "mask_multiplies", "mask_added"}:
            weights = weights.masked_fill(~mask, 0.0)
        if "scaled_after" in wrong:
            weights = weights / divisor
        read = weights.transpose(1, 2) if "weights_transposed" in wrong else weights
        return torch.bmm(read, value), weights

    return masked_attention


def masked_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1300 + seed)

    def arguments(B: int, T: int, S: int, D: int, Dv: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, T, D, spread=1.5),
            "key": inputs.normal(B, S, D, spread=1.5),
            "value": inputs.normal(B, S, Dv, spread=1.5),
            "mask": inputs.mask(B, T, S),
        }

    yield one_call("two queries, three keys", arguments(1, 2, 3, 4, 5))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 6, 4))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    empty = arguments(2, 3, 4, 5, 6)
    empty["mask"][0, 1], empty["mask"][1, 2] = False, True
    yield one_call("a query with no allowed key, another with all", empty)
    yield one_call("one query", arguments(1, 1, 11, 7, 8))
    loose = arguments(2, 3, 5, 6, 4)
    yield one_call(
        "non-contiguous", loose | {name: strided(loose[name]) for name in ("query", "key", "value")}, "non-contiguous"
    )
    double = arguments(2, 2, 3, 5, 4)
    yield one_call("float64", {n: t.double() if t.is_floating_point() else t for n, t in double.items()}, "float64")
    # Whole numbers and D = 4: the scores are exact, so that every right order of the steps gives the same weights.
    large = arguments(2, 3, 5, 4, 6)
    large["query"], large["key"] = (10 * large["query"]).round(), (10 * large["key"]).round()
    large["mask"][:] = True  # only overflow shows here; forbidden keys have the script below
    yield one_call("scores of a few hundred", large, "extreme")
    large = arguments(2, 2, 4, 4, 5)
    large["query"] = large["query"].abs() + 1
    large["key"][:, :-1] = -300.0
    large["key"][:, -1], large["mask"][..., -1], large["mask"][..., 0] = 300.0, False, True
    yield one_call("large forbidden scores", large, "extreme forbidden")


EMPTY_ROWS_NAN = Misconception(
    "empty_rows_nan",
    "a query with no allowed key is not taken care of",
    "The softmax of a row of -inf is NaN, and so is a row of zeros divided by its sum; it spreads through the network. "
    "Make that row zeros.",
    "The code",
)
EMPTY_ROWS_UNIFORM = Misconception(
    "empty_rows_uniform",
    "a query with no allowed key attends to all forbidden ones equally",
    "Filling with a large negative number makes the row constant, and the softmax of a constant row is "
    "uniform. Fill with -inf and make empty rows zeros.",
    "The code",
)
MASK_IGNORED = Misconception(
    "mask_ignored",
    "the mask is not used",
    "Forbidden keys then take part in the average: with padding, the same sentence gives another result in another "
    "batch.",
    "Predict, run, explain",
)
MASK_INVERTED = Misconception(
    "mask_inverted",
    "the mask is inverted",
    "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
    "The code",
)
MASK_AFTER = Misconception(
    "mask_after",
    "the weights are masked after the softmax and not normalised again",
    "The forbidden keys have already taken their share, so the rest sums to less than 1.",
    "Predict, run, explain",
)
OVER_QUERIES = Misconception(
    "over_queries",
    "the softmax runs over the queries",
    "Each query divides its attention among the keys: normalise over the last axis, S.",
    "The code",
)
UNSCALED = Misconception(
    "unscaled",
    "the scores are not divided by the square root of D",
    "Undivided, the scores' spread grows with the square root of D: the softmax nears a choice of one key, and its "
    "gradient vanishes.",
    "Why divide by the root of d",
)

MASKED_ATTENTION = Exercise(
    id="self_attention/masked_attention",
    defines="masked_attention",
    title="Attend, with a mask",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=masked_attention_scripts,
    reference=masked_attention,
    faulty=faulty_masked_attention,
    outputs=(Output("output", "B T Dv"), Output("weights", "B T S")),
    properties=(FORBIDDEN_KEYS, NOT_NEGATIVE, SUM_TO_ONE),
    habits=COMMON_HABITS
    | {
        "extreme": EXTREME,
        "extreme forbidden": "A large score at a forbidden key spoils the row: forbid before the softmax, with "
        "-inf, so that it cannot push the allowed keys to zero.",
    },
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        UNSCALED,
        Misconception(
            "divided_by_d",
            "the scores are divided by D",
            "Their spread is the square root of D. Divided by D, the weights come near uniform as D grows.",
            "Why divide by the root of d",
        ),
        Misconception(
            "multiplied",
            "the scores are multiplied by the square root of D",
            "The scale shrinks the scores: divide, or multiply by D ** -0.5.",
            "Why divide by the root of d",
        ),
        Misconception(
            "root_of_t",
            "the scale comes from the number of queries",
            "D is the last axis, the size of one query. How many queries there are must not change a weight.",
            "Why divide by the root of d",
        ),
        Misconception(
            "root_of_dv",
            "the scale comes from the size of the values",
            "The sum that needs taming runs over the D numbers of a query and a key; the values have no part in it.",
            "Why divide by the root of d",
        ),
        Misconception(
            "scaled_after",
            "the weights are divided, not the scores",
            "The scale belongs inside the softmax. Divided after it, the weights no longer sum to 1 and are as sharp "
            "as before.",
            "Why divide by the root of d",
        ),
        OVER_QUERIES,
        Misconception(
            "no_softmax",
            "there is no softmax",
            "The scores themselves are used as weights: they may be negative and do not sum to 1.",
            "By hand",
        ),
        MASK_IGNORED,
        MASK_INVERTED,
        Misconception(
            "mask_multiplies",
            "forbidden scores are set to 0",
            "Whether multiplied by the mask or filled with 0: a score of 0 is not “no attention”, because exp(0) = 1 "
            "still takes its share. Forbidden scores must be -inf.",
            "Predict, run, explain",
        ),
        Misconception(
            "mask_added",
            "the boolean mask is added to the scores",
            "True counts as 1, so allowed keys gain a factor of e and forbidden ones still take part.",
            "Predict, run, explain",
        ),
        MASK_AFTER,
        EMPTY_ROWS_NAN,
        EMPTY_ROWS_UNIFORM,
        Misconception(
            "hard",
            "all weight goes to the largest score",
            "That is a temperature of nearly 0: hard attention, which has no gradient. The softmax spreads the weight.",
            "Temperature",
        ),
    ),
)

# --- OneHead ----------------------------------------------------------------------------------------------------


class OneHead(nn.Module):
    def __init__(self, d_model: int, d_head: int):
        super().__init__()
        self.q_proj = nn.Linear(d_model, d_head, bias=False)
        self.k_proj = nn.Linear(d_model, d_head, bias=False)
        self.v_proj = nn.Linear(d_model, d_head, bias=False)
        self.o_proj = nn.Linear(d_head, d_model, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, D) each
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (B, T, T)
        if mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
        return self.o_proj(weights @ value), weights  # (B, T, d_model), (B, T, T)


def faulty_one_head(wrong: frozenset[str]) -> type:
    class OneHead(nn.Module):
        def __init__(self, d_model, d_head):
            super().__init__()
            self.q_proj = nn.Linear(d_model, d_head, bias=False)
            self.k_proj = nn.Linear(d_model, d_head, bias=False)
            self.v_proj = nn.Linear(d_model, d_head, bias=False)
            self.o_proj = nn.Linear(d_head, d_model, bias=False)

        def forward(self, x, mask=None):
            query = self.q_proj(x)
            key = query if "key_is_query" in wrong else self.k_proj(x)
            if "query_key_exchanged" in wrong:
                query, key = key, query
            value = self.k_proj(x) if "value_is_key" in wrong else self.v_proj(x)
            if "value_not_projected" in wrong:
                value = x
            if "root_of_d_model" in wrong:
                query = query * (query.shape[-1] / x.shape[-1]) ** 0.5
            inside = wrong
            if mask is None:  # learners write `if mask is not None`: what they do to a mask is then not done
                mask, inside = torch.ones(1, 1, x.shape[1], dtype=torch.bool), wrong - {"mask_inverted"}
            mask = mask.expand(x.shape[0], x.shape[1], x.shape[1])
            output, weights = faulty_masked_attention(inside)(query, key, value, mask)
            output = output if "not_projected_back" in wrong else self.o_proj(output)
            if "residual_added" in wrong:
                output = output + x
            return (weights, output) if "order_swapped" in wrong else (output, weights)

    return OneHead


def one_head_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1400 + seed)

    def script(name: str, B: int, T: int, d_model: int, D: int, mask: Tensor | None) -> Script:
        state = {
            "q_proj.weight": inputs.weight(D, d_model),
            "k_proj.weight": inputs.weight(D, d_model),
            "v_proj.weight": inputs.weight(D, d_model),
            "o_proj.weight": inputs.weight(d_model, D),
        }
        call = Call({"x": inputs.normal(B, T, d_model, spread=1.5), "mask": mask}, gradients=("x",))
        return Script(name, (Construct({"d_model": d_model, "d_head": D}), Load(state), call))

    yield script("three tokens, no mask", 1, 3, 4, 5, None)
    yield script("a mask of its own for every query", 2, 4, 6, 5, inputs.mask(2, 4, 4))
    yield script("a padded batch", 3, 5, 4, 7, inputs.padding(5, 2, 3)[:, None])
    yield script("all sizes equal", 4, 4, 4, 4, inputs.mask(4, 4, 4))
    empty = inputs.mask(2, 3, 3)
    empty[0, 1], empty[1, 2] = False, True
    yield script("a token with nothing to attend to", 2, 3, 6, 4, empty)
    yield script("one token", 1, 1, 40, 9, None)


ONE_HEAD = Exercise(
    id="self_attention/OneHead",
    defines="OneHead",
    title="Build one head of self-attention",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=one_head_scripts,
    reference=OneHead,
    faulty=faulty_one_head,
    outputs=(Output("output", "B T d_model"), Output("weights", "B T T")),
    properties=(FORBIDDEN_KEYS, NOT_NEGATIVE, SUM_TO_ONE),
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        UNSCALED,
        Misconception(
            "root_of_d_model",
            "the scale comes from d_model",
            "The scores are sums over the D numbers of a query and a key, so the scale is the square root of d_head: "
            "the last axis of the query, not of x.",
            "Why divide by the root of d",
        ),
        Misconception(
            "key_is_query",
            "the keys are made with q_proj",
            "With one matrix for both, scores are symmetric and a token usually attends to itself most. k_proj is "
            "there so that a token can ask for something other than itself.",
            "The problem",
        ),
        Misconception(
            "query_key_exchanged",
            "q_proj and k_proj are exchanged",
            "The scores come out transposed: every token is then read by the tokens that it should read.",
            "The code",
        ),
        Misconception(
            "value_is_key",
            "the values are made with k_proj",
            "Keys are compared, values are averaged: v_proj makes the values.",
            "The code",
        ),
        Misconception(
            "value_not_projected",
            "the tokens themselves are averaged instead of the values",
            "What is averaged is v_proj(x). Where d_head equals d_model nothing crashes.",
            "By hand",
        ),
        Misconception(
            "not_projected_back",
            "o_proj is left out",
            "The average of the values has d_head numbers; o_proj brings it back to d_model.",
            "The code",
        ),
        Misconception(
            "weights_transposed",
            "the values are averaged with the transposed weights",
            "Row i of the weights belongs to query i and multiplies the values. In self-attention the weights are "
            "square, so the transposed ones do not crash.",
            "By hand",
        ),
        Misconception(
            "residual_added",
            "x is added to the output",
            "The sum with x belongs to the block around the attention, not to the attention.",
            "The code",
        ),
        Misconception(
            "order_swapped",
            "the weights are returned first",
            "Return (output, weights): every attention module of the course keeps this order.",
            "The code",
        ),
        MASK_IGNORED,
        MASK_INVERTED,
        OVER_QUERIES,
        EMPTY_ROWS_NAN,
        EMPTY_ROWS_UNIFORM,
    ),
)

EXERCISES = (PROJECT_TOKENS, SCALED_SCORES, MASKED_ATTENTION, ONE_HEAD)
