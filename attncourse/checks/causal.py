"""Exercises of chapter 05: the causal mask, attention under it, the shifted loss, ragged batches, and a test."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, ReverseExercise, Variant

CHAPTER = "05_causal"


# --- look_back_mask ---------------------------------------------------------------------------------------------


def look_back_mask(T: int, S: int) -> Tensor:
    query = torch.arange(S - T, S)[:, None]  # (T, 1): the queries are the last T of S positions
    key = torch.arange(S)  # (S,)
    return key <= query  # (T, S)


def faulty_look_back_mask(wrong: frozenset[str]) -> Callable:
    def look_back_mask(T, S):
        if "square" in wrong:
            S = T
        place = torch.arange(T)[:, None] + (0 if "top_left" in wrong else S - T)
        behind = place - torch.arange(S)  # (T, S): how far the key lies behind the query
        if "transposed" in wrong:
            behind = -behind
        mask = behind >= ("no_diagonal" in wrong) - ("one_too_far" in wrong)
        if "last_only" in wrong:
            mask = behind == 0
        if "inverted" in wrong:
            mask = ~mask
        if "additive" in wrong:
            return torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        return mask.float() if "floats" in wrong else mask

    return look_back_mask


def look_back_mask_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(5000 + seed)

    def script(name: str, T: int, S: int) -> Script:
        return Script(name, (Call({"T": T, "S": S}),))

    yield script("two queries, five keys", 2, 5)
    yield script("as many queries as keys", 4, 4)
    yield script("three queries, seven keys", 3, 7)
    T, past = (int(n) for n in torch.randint(2, 9, (2,), generator=inputs.generator))
    yield script("a longer past", T, T + past)
    yield script("one query", 1, 6)


def _one_key_more(call: Call, result: Result) -> bool:
    seen = result.outputs[0].sum(-1)
    return bool((seen.diff() == 1).all())


def _flip(mask: Tensor) -> Tensor:
    """The same mask where True forbids; a mask to be added to scores says the same either way."""
    if mask.dtype == torch.bool:
        return ~mask
    return 1 - mask if (mask == 1).any() else mask


LOOK_BACK_MASK = Exercise(
    id="causal/look_back_mask",
    defines="look_back_mask",
    title="Mark what each token may see",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=2,
    scripts=look_back_mask_scripts,
    reference=look_back_mask,
    faulty=faulty_look_back_mask,
    outputs=(Output("mask", "T S"),),
    properties=(
        Property("the last query sees every key", lambda call, result: bool(result.outputs[0][-1].all())),
        Property("each query sees one key more than the query before it", _one_key_more),
    ),
    misconceptions=(
        Misconception(
            "top_left",
            "where T < S, the first query stands at position 0",
            "The queries are the last T of S positions: query i stands at S - T + i. With T = S that is the same; with "
            "a past in a cache, the newest token would see only the oldest key.",
            "Predict, run, explain",
        ),
        Misconception(
            "transposed",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: True where the key is not after the query.",
            "Who can influence whom",
        ),
        Misconception(
            "no_diagonal",
            "a token does not see itself",
            "A token may read itself; else the first one has nothing to read, and its softmax is NaN.",
            "By hand",
        ),
        Misconception(
            "one_too_far",
            "each token sees one token of the future",
            "That one token is the one to be predicted: the loss falls to nearly nothing, and the model copies.",
            "A model that peeks",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "What follows the paper",
        ),
        Misconception(
            "last_only",
            "a token sees itself only",
            "All earlier keys are visible too: compare with `<=`, not `==`.",
            "By hand",
        ),
        Misconception(
            "square",
            "the mask is (T, T)",
            "There are S keys, those of the past included: one row for each query, one column for each key.",
            "The code",
        ),
        Misconception(
            "floats",
            "it holds the floats 1 and 0",
            "A comparison gives booleans already. PyTorch *adds* a float mask to the scores, so that 1 and 0 hide "
            "nothing.",
            "What follows the paper",
        ),
        Misconception(
            "additive",
            "it holds 0 and -inf, to be added to scores",
            "That is the other common form of a mask. In this course a mask is boolean.",
            "What follows the paper",
        ),
    ),
    variants={
        "forbid": Variant(
            statement="In this copy the mask has the opposite sense: True marks a key that is forbidden.",
            argument=lambda name, value: value,
            wrap=lambda implementation: lambda T, S: _flip(implementation(T, S)),
            explanations={
                "transposed": "The row is the query and the column the key: True where the key is after the query.",
                "inverted": "Here True means: forbidden, as in `nn.MultiheadAttention`. In the chapter it means: may "
                "attend.",
                "last_only": "All earlier keys are visible too, and only later ones are forbidden: compare with `>`, "
                "not `!=`.",
            },
        )
    },
)

# --- look_back_attention ----------------------------------------------------------------------------------------


def look_back_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    T, S = query.shape[1], key.shape[1]
    scores = query @ key.mT / query.shape[-1] ** 0.5  # (B, T, S)
    later = torch.ones(T, S).triu(S - T + 1).bool()  # (T, S)
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value  # (B, T, Dv)


def faulty_look_back_attention(wrong: frozenset[str]) -> Callable:
    def look_back_attention(query, key, value):
        allowed = faulty_look_back_mask(wrong)(query.shape[1], key.shape[1])
        if "not_causal" in wrong:
            allowed = torch.ones_like(allowed)
        if "recent_only" in wrong:  # the three newest places that a query may see
            allowed = allowed & torch.ones_like(allowed).triu(key.shape[1] - query.shape[1] - 2)
        scores = torch.einsum("btd,bsd->bts", query, key)
        if "not_scaled" not in wrong:
            scores = scores / query.shape[-1] ** 0.5
        if "mask_multiplies" in wrong:
            scores = scores * allowed
        elif "mask_added" in wrong:
            scores = scores + allowed
        elif "mask_after" not in wrong:
            scores = torch.where(allowed, scores, float("-inf"))
        weights = scores.softmax(1 if "over_queries" in wrong else 2)
        if "mask_after" in wrong:
            weights = weights * allowed
        return weights @ value

    return look_back_attention


def look_back_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(5100 + seed)

    def arguments(B: int, T: int, S: int, D: int, Dv: int) -> dict[str, Tensor]:
        return {
            "query": inputs.normal(B, T, D, spread=1.7),
            "key": inputs.normal(B, S, D, spread=1.7),
            "value": inputs.normal(B, S, Dv, spread=2.0),
        }

    yield one_call("three tokens", arguments(1, 3, 3, 4, 2))
    yield one_call("two queries, five keys", arguments(2, 2, 5, 3, 4))
    yield one_call("a batch, all sizes different", arguments(2, 3, 6, 5, 4))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    yield one_call("one query", arguments(1, 1, 9, 8, 7))
    loose = {name: tensor.mT.contiguous().mT for name, tensor in arguments(2, 3, 5, 4, 6).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {name: t.double() for name, t in arguments(2, 2, 3, 4, 5).items()}, "float64")


def _first_sees_itself(call: Call, result: Result) -> bool:
    value, T = call.arguments["value"], call.arguments["query"].shape[1]
    return value.shape[1] != T or torch.allclose(result.outputs[0][:, 0], value[:, 0], atol=1e-4)


LEAKS = (
    Misconception(
        "not_causal",
        "there is no causal mask",
        "Every token then sees the whole sequence, the token it has to predict included.",
        "The problem",
    ),
    Misconception(
        "mask_after",
        "the weights of later keys are set to zero after the softmax",
        "The later keys have already taken their share: the rest sums to less than 1, and how much less tells of the "
        "future. Fill their scores with -inf first, or normalise again.",
        "Three ways to hide the future",
    ),
    Misconception(
        "mask_multiplies",
        "the scores of later keys are set to 0",
        "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf before the softmax.",
        "Three ways to hide the future",
    ),
    Misconception(
        "transposed",
        "each token sees itself and what comes after it",
        "The row is the query and the column the key: allowed is the key that is not after the query.",
        "Who can influence whom",
    ),
    Misconception(
        "one_too_far",
        "each token sees one token of the future",
        "That one token is the one to be predicted: the loss falls to nearly nothing, and the model copies.",
        "A model that peeks",
    ),
    Misconception(
        "over_queries",
        "the softmax runs over the queries",
        "Each query divides its attention among the keys, the last axis. Over the queries, a later query changes what "
        "an earlier one gets: the future leaks in.",
        "By hand",
    ),
    Misconception(
        "no_diagonal",
        "a token does not see itself",
        "The first one then has no key at all, and its softmax is 0/0: NaN. The others lose the token they stand at.",
        "By hand",
    ),
    Misconception(
        "recent_only",
        "a token sees only itself and the two before it",
        "Nothing of the past is forbidden: the last query sees every key.",
        "The problem",
    ),
    Misconception(
        "top_left",
        "where T < S, the first query stands at position 0",
        "The queries are the last T of S positions: query i stands at S - T + i, and the last one sees every key. "
        "PyTorch's `is_causal` makes this mistake where T and S differ.",
        "Predict, run, explain",
    ),
)

LOOK_BACK_ATTENTION = Exercise(
    id="causal/look_back_attention",
    defines="look_back_attention",
    title="Attend without seeing the future",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=3,
    scripts=look_back_attention_scripts,
    reference=look_back_attention,
    faulty=faulty_look_back_attention,
    outputs=(Output("output", "B T Dv"),),
    properties=(Property("with T = S the first token sees itself alone: its output is its value", _first_sees_itself),),
    habits=COMMON_HABITS,
    forbidden=("scaled_dot_product_attention",),
    misconceptions=(
        *LEAKS,
        Misconception(
            "inverted",
            "only later keys are seen: the mask is inverted",
            "`masked_fill` fills where its mask is True, so it wants the forbidden keys: `~mask` where True = may "
            "attend. Here the last token sees nothing at all, and its softmax is NaN.",
            "Three ways to hide the future",
        ),
        Misconception(
            "mask_added",
            "the boolean mask is added to the scores",
            "True counts as 1, so visible keys gain a factor of e and later ones still take part.",
            "Three ways to hide the future",
        ),
        Misconception(
            "not_scaled",
            "the scores are not divided by the square root of D",
            "Asked for is scaled dot-product attention: without it the scores grow with D, and the softmax saturates.",
            "By hand",
        ),
    ),
)

# --- shifted_loss -----------------------------------------------------------------------------------------------


def shifted_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    logs = logits[:, :-1].log_softmax(-1)  # (B, T - 1, V): the last logits predict what is not there
    wanted = tokens[:, 1:, None]  # (B, T - 1, 1)
    return -logs.gather(-1, wanted).squeeze(-1).mean(-1)  # (B,)


def faulty_shifted_loss(wrong: frozenset[str]) -> Callable:
    def shifted_loss(logits, tokens):
        n = tokens.shape[1]
        if "wraps_around" in wrong:
            predicted, wanted = logits, tokens.roll(-1, 1)
        elif "not_shifted" in wrong:
            predicted, wanted = logits, tokens
        elif "first_left_out" in wrong:
            predicted, wanted = logits[:, 1:], tokens[:, 1:]
        elif "backwards" in wrong:
            predicted, wanted = logits[:, 1:], tokens[:, :-1]
        elif "shifted_twice" in wrong:
            predicted, wanted = logits[:, :-2], tokens[:, 2:]
        else:
            predicted, wanted = logits[:, : n - 1], tokens[:, 1:]
        if "reshaped" in wrong:
            B, n_predictions, V = predicted.shape
            predicted = predicted.reshape(B, V, n_predictions).mT
        axis = 1 if "over_places" in wrong else -1
        logs = (predicted.softmax(axis) if "softmax_twice" in wrong else predicted).log_softmax(axis)
        losses = torch.take_along_dim(logs, wanted[..., None], -1).squeeze(-1)
        if "no_log" in wrong:
            losses = losses.exp()
        elif "bits" in wrong:
            losses = losses / torch.log(torch.tensor(2.0)).to(losses)
        if "sign_forgotten" not in wrong:
            losses = -losses
        if "summed" in wrong:
            return losses.sum(-1)
        if "divided_by_T" in wrong:
            return losses.sum(-1) / n
        if "last_only" in wrong:
            return losses[:, -1]
        return losses.mean() if "one_number" in wrong else losses.mean(-1)

    return shifted_loss


def shifted_loss_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(5200 + seed)

    def arguments(B: int, T: int, V: int) -> dict[str, Tensor]:
        tokens = torch.randint(V, (B, T), generator=inputs.generator)
        tokens[:, -1] = (tokens[:, 0] + 1) % V  # the last and the first differ, so that their losses do
        return {"logits": inputs.normal(B, T, V, spread=2.0), "tokens": tokens}

    yield one_call("one sequence of four tokens", arguments(1, 4, 5))
    yield one_call("a batch, all sizes different", arguments(2, 5, 7))
    yield one_call("more tokens than there are different ones", arguments(3, 8, 4))
    yield one_call("all sizes equal", arguments(5, 5, 5))
    loose = arguments(2, 4, 6)
    loose["logits"] = loose["logits"].mT.contiguous().mT
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {**(given := arguments(2, 4, 5)), "logits": given["logits"].double()}, "float64")
    large = arguments(2, 4, 5)
    large["logits"] = inputs.normal(2, 4, 5, spread=150.0)
    yield one_call("logits of a few hundred", large, "extreme")


SHIFTED_LOSS = Exercise(
    id="causal/shifted_loss",
    defines="shifted_loss",
    title="Score the prediction of the next token",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=shifted_loss_scripts,
    reference=shifted_loss,
    faulty=faulty_shifted_loss,
    outputs=(Output("loss", "B"),),
    habits={
        **COMMON_HABITS,
        "extreme": "Large logits spoil it: a share that rounds to 0 has the logarithm -inf. Use `log_softmax`, or "
        "`cross_entropy` on the logits, which never compute the share.",
    },
    misconceptions=(
        Misconception(
            "not_shifted",
            "each token is predicted from itself",
            "The logits at place i have seen token i. They predict token i + 1: drop the last logits and the first "
            "token.",
            "A model that peeks",
        ),
        Misconception(
            "first_left_out",
            "each token is predicted from itself, the first left out",
            "Leave out the last logits and the first token.",
            "A model that peeks",
        ),
        Misconception(
            "backwards",
            "each token predicts the one before it",
            "The shift goes the other way: logits without the last, `logits[:, :-1]`, tokens without the first, "
            "`tokens[:, 1:]`.",
            "Train it",
        ),
        Misconception(
            "wraps_around",
            "the last token predicts the first",
            "`roll` moves the first token to the end. The last logits predict a token that is not there: leave them "
            "out.",
            "Train it",
        ),
        Misconception(
            "shifted_twice",
            "each token predicts the one after the next",
            "The shift is one place. It is done twice when a library shifts the tokens that were already shifted.",
            "What follows the paper",
        ),
        Misconception(
            "reshaped",
            "the logits are reshaped where they should be transposed",
            "`cross_entropy` wants the axis V second: move it there with `.mT` (or flatten the first two axes). "
            "`reshape(B, V, …)` cuts the numbers into other rows.",
            "Train it",
        ),
        Misconception(
            "over_places",
            "the softmax runs over the places",
            "Each place shares out its probability among the V tokens: V is the last axis.",
            "Train it",
        ),
        Misconception(
            "softmax_twice",
            "the softmax is taken twice",
            "`cross_entropy` and `log_softmax` take logits, and have the softmax inside. Given shares, they flatten "
            "them.",
            "Train it",
        ),
        Misconception(
            "no_log",
            "the share itself stands where its logarithm should",
            "Cross-entropy is -log of the share of the right token: from 0 for certainty, without an upper bound.",
            "The problem",
        ),
        Misconception(
            "sign_forgotten",
            "the sign is missing",
            "The logarithm of a share is negative. A loss is to be made small, so take its negative.",
            "The problem",
        ),
        Misconception(
            "bits",
            "the logarithm has base 2",
            "Then the loss is in bits. Asked for are nats, the natural logarithm, as PyTorch counts.",
            "The problem",
        ),
        Misconception(
            "summed",
            "the losses are summed",
            "Asked for is the mean over the T - 1 predictions of a sequence: a sum grows with its length.",
            "The problem",
        ),
        Misconception(
            "divided_by_T",
            "the sum is divided by T",
            "T tokens make T - 1 predictions: the first one is predicted by nothing.",
            "Train it",
        ),
        Misconception(
            "last_only",
            "only the last token is predicted",
            "Under a causal mask every place is an example: one sequence gives T - 1 predictions at once.",
            "Parallel and one by one",
        ),
        Misconception(
            "one_number",
            "the mean runs over the batch too",
            "Here each sequence keeps its own loss: (B,). Take the mean over the last axis only.",
            "Train it",
        ),
    ),
)

# --- ragged_mask ------------------------------------------------------------------------------------------------


def ragged_mask(lengths: Tensor, T: int) -> Tensor:
    place = torch.arange(T)
    real = place >= T - lengths[:, None]  # (B, T): the padding stands in front
    causal = place[:, None] >= place  # (T, T)
    return causal & real[:, None]  # (B, T, T)


def faulty_ragged_mask(wrong: frozenset[str]) -> Callable:
    def ragged_mask(lengths, T):
        query, key = torch.arange(T)[:, None], torch.arange(T)[None]
        past = key < query if "no_diagonal" in wrong else key <= query
        if "future_seen" in wrong:
            past = past.mT
        if "not_causal" in wrong:
            past = torch.ones_like(past)
        length = (T - lengths if "length_is_padding" in wrong else lengths)[:, None, None]
        start = 0 if "right_padded" in wrong else T - length  # of the real tokens
        first = start + int("first_hidden" in wrong) - int("one_pad_seen" in wrong)
        real = (key >= first) & (key < start + length)
        if "padding_ignored" in wrong:
            real = torch.ones_like(real)
        if "no_query_axis" in wrong:
            real = real[:, 0]  # (B, T)
        elif "queries_hidden" in wrong:
            real = real.mT  # (B, T, 1)
        mask = past | real if "either" in wrong else past & real
        if "padding_sees_itself" in wrong:
            mask = mask | torch.eye(T, dtype=torch.bool)
        return ~mask if "inverted" in wrong else mask

    return ragged_mask


def ragged_mask_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(5300 + seed)

    def script(name: str, lengths: Tensor, T: int) -> Script:
        return one_call(name, {"lengths": lengths, "T": T})

    yield script("one sentence of two in five places", torch.tensor([2]), 5)
    yield script("a full one and a shorter one", torch.tensor([6, 4]), 6)
    yield script("three sentences", torch.randperm(6, generator=inputs.generator)[:3] + 1, 7)
    yield script("all sizes equal", torch.randperm(4, generator=inputs.generator) + 1, 4)
    yield script("five sentences", torch.tensor([4, 1, 3, 2, 5]), 6)


def _as_many_as_stand_before(call: Call, result: Result) -> bool:
    lengths, T = call.arguments["lengths"], call.arguments["T"]
    wanted = (torch.arange(T) + 1 - T + lengths[:, None]).clamp(min=0)
    return torch.equal(result.outputs[0].sum(-1), wanted)


RAGGED_MASK = Exercise(
    id="causal/ragged_mask",
    defines="ragged_mask",
    title="Hide the future and the padding",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=3,
    scripts=ragged_mask_scripts,
    reference=ragged_mask,
    faulty=faulty_ragged_mask,
    outputs=(Output("mask", "B T T"),),
    properties=(
        Property("the n-th real token of a sentence sees n keys, and padding sees none", _as_many_as_stand_before),
    ),
    misconceptions=(
        Misconception(
            "right_padded",
            "the padding stands at the end",
            "Here it stands in front, so that the newest tokens of all sentences share the last place: the real ones "
            "are at T - length … T - 1.",
            "Invariants",
        ),
        Misconception(
            "length_is_padding",
            "a length is taken for the number of padding places",
            "A sentence of length n has T - n places of padding in front.",
            "Invariants",
        ),
        Misconception(
            "not_causal",
            "the future is not hidden",
            "The lengths hide the padding only. A token must not see a later one either: both conditions, with `&`.",
            "Invariants",
        ),
        Misconception(
            "future_seen",
            "each token sees itself and what comes after it",
            "The row is the query and the column the key: True where the key is not after the query.",
            "Who can influence whom",
        ),
        Misconception(
            "padding_ignored",
            "the padding is not hidden",
            "Then a sentence gives other results beside a longer one, because its padding takes part.",
            "Invariants",
        ),
        Misconception(
            "queries_hidden",
            "the padding is hidden as queries, not as keys",
            "`real[:, :, None]` empties the rows of padding; with padding in front, real tokens still see it. The keys "
            "are the last axis: `real[:, None]`.",
            "Invariants",
        ),
        Misconception(
            "no_query_axis",
            "the lengths' mask has no axis for the queries",
            "Shapes line up on the right: (B, T) beside (T, T) takes the batch for queries, and fits only where B is 1 "
            "or T. `real[:, None]` is (B, 1, T).",
            "Invariants",
        ),
        Misconception(
            "either",
            "one of the two conditions is enough",
            "A key must be real *and* not later: `&`, not `|`.",
            "Invariants",
        ),
        Misconception(
            "one_pad_seen",
            "one place of padding is seen",
            "The first real token stands at T - length, counted from 0.",
            "Invariants",
        ),
        Misconception(
            "first_hidden",
            "the first real token is hidden",
            "It stands at T - length, counted from 0, and is real: `>=`, not `>`.",
            "Invariants",
        ),
        Misconception(
            "no_diagonal",
            "a token does not see itself",
            "A token may read itself; else the first one has nothing to read.",
            "By hand",
        ),
        Misconception(
            "padding_sees_itself",
            "padding sees itself",
            "Many programs do this, so that no row is empty and none becomes NaN. Asked for here are empty rows: the "
            "course's attention gives zeros there.",
            "Invariants",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "Here True means: may attend. `nn.MultiheadAttention` says the opposite, which is where this comes from.",
            "Invariants",
        ),
    ),
)

# --- test_look_back, a reverse exercise -------------------------------------------------------------------------


def _by_prefix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    past, rows = key.shape[1] - query.shape[1], []
    for i in range(query.shape[1]):
        seen = past + i + 1
        scores = torch.einsum("bd,bsd->bs", query[:, i], key[:, :seen]) * query.shape[-1] ** -0.5
        rows.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), value[:, :seen]))
    return torch.stack(rows, 1)


def _normalised_again(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    T, S = query.shape[1], key.shape[1]
    allowed = torch.ones(T, S).tril(S - T).to(query)
    scores = torch.einsum("btd,bsd->bts", query, key) / query.shape[-1] ** 0.5
    largest = torch.where(allowed > 0, scores, float("-inf")).amax(-1, keepdim=True)
    exponentials = (scores - largest).clamp(max=0).exp() * allowed
    return exponentials @ value / exponentials.sum(-1, keepdim=True)


def _mask_added(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    T, S = query.shape[1], key.shape[1]
    later = torch.full((T, S), float("-inf"), dtype=query.dtype).triu(S - T + 1)
    return (torch.baddbmm(later, query / query.shape[-1] ** 0.5, key.mT)).softmax(-1) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    allowed = torch.ones(query.shape[1], key.shape[1]).tril(key.shape[1] - query.shape[1]).bool()
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def _in_float64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return look_back_attention(query.double(), key.double(), value.double()).to(query.dtype)


TEST_LOOK_BACK = ReverseExercise(
    id="causal/test_look_back",
    defines="test_look_back",
    title="Write the test: does it see the future?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    right={
        "masked before the softmax": look_back_attention,
        "one query at a time": _by_prefix,
        "masked after the softmax, normalised again": _normalised_again,
        "a mask that is added": _mask_added,
        "the fused kernel": _fused,
        "computed in float64": _in_float64,
    },
    faulty=faulty_look_back_attention,
    misconceptions=LEAKS,
)

EXERCISES = (LOOK_BACK_MASK, LOOK_BACK_ATTENTION, SHIFTED_LOSS, RAGGED_MASK, TEST_LOOK_BACK)
