"""Exercises of chapter 04: scores between two sequences, padding of the context, patches of an image, a whole head."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attncourse.checks.common import COMMON_HABITS, FLOAT64, NOT_NEGATIVE, SUM_TO_ONE, one_call, strided
from attncourse.checks.script import Call, Construct, Load, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "04_cross_attention"

WHOLE_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention")


# --- cross_scores -----------------------------------------------------------------------------------------------


def cross_scores(x: Tensor, context: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
    query = x @ q_weight.T  # (B, T, D)
    key = context @ k_weight.T  # (B, S, D)
    return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (B, T, S)


def faulty_cross_scores(wrong: frozenset[str]) -> Callable:
    def apply(tokens, weight):
        return torch.einsum("btm,md->btd" if "weight_transposed" in wrong else "btm,dm->btd", tokens, weight)

    def cross_scores(x, context, q_weight, k_weight):
        if "weights_exchanged" in wrong:
            q_weight, k_weight = k_weight, q_weight
        asking, asked = (context, x) if "sides_exchanged" in wrong else (x, context)
        if "keys_from_x" in wrong:
            asked = x
        if "queries_from_context" in wrong:
            asking = context
        query, key = apply(asking, q_weight), apply(asked, k_weight)
        divisor = query.shape[-1] ** 0.5
        for name, other in (("unscaled", 1), ("root_of_d_model", x.shape[-1] ** 0.5), ("divided_by_d", divisor**2)):
            divisor = other if name in wrong else divisor
        scores = torch.einsum("btd,bsd->bts", query, key) / divisor
        if "returns_weights" in wrong:
            scores = scores.softmax(-1)
        return scores.transpose(1, 2) if "axes_swapped" in wrong else scores

    return cross_scores


def cross_scores_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1600 + seed)

    def arguments(B: int, T: int, S: int, d_model: int, d_context: int, D: int) -> dict[str, Tensor]:
        return {
            "x": inputs.normal(B, T, d_model, spread=1.5),
            "context": inputs.normal(B, S, d_context, spread=1.5),
            "q_weight": inputs.weight(D, d_model),
            "k_weight": inputs.weight(D, d_context),
        }

    yield one_call("two tokens ask three", arguments(1, 2, 3, 4, 5, 6))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 4, 7, 6))
    yield one_call("tokens of one size", arguments(2, 3, 5, 4, 4, 6))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield one_call("one token asks", arguments(1, 1, 9, 8, 7, 6))
    loose = arguments(2, 3, 5, 4, 7, 6)
    yield one_call(
        "non-contiguous", loose | {name: strided(loose[name]) for name in ("x", "context")}, "non-contiguous"
    )
    yield one_call("float64", {n: t.double() for n, t in arguments(2, 2, 3, 4, 5, 6).items()}, "float64")


CROSS_SCORES = Exercise(
    id="cross_attention/cross_scores",
    defines="cross_scores",
    title="Score one sequence against another",
    chapter=CHAPTER,
    difficulty=1,
    minutes=5,
    points=1,
    scripts=cross_scores_scripts,
    reference=cross_scores,
    faulty=faulty_cross_scores,
    outputs=(Output("scores", "B T S"),),
    habits=COMMON_HABITS,
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        Misconception(
            "keys_from_x",
            "the keys come from x",
            "That is self-attention: x asks itself, and the context is never read. Keys come from the context.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "queries_from_context",
            "the queries come from the context",
            "That is self-attention of the context. The queries come from x, which reads it.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "sides_exchanged",
            "the context asks and x is asked",
            "x is the sequence that reads: its queries, the context's keys. The scores are (B, T, S), with T tokens "
            "of x first.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "weights_exchanged",
            "q_weight and k_weight are exchanged",
            "q_weight projects x and k_weight projects the context. Where the tokens of both have one size, nothing "
            "crashes.",
            "The code",
        ),
        Misconception(
            "weight_transposed",
            "the weights are transposed",
            "nn.Linear stores its weight with the outputs first, (D, d_model), and multiplies by the transpose. With "
            "equal sizes nothing crashes.",
            "The code",
        ),
        Misconception(
            "unscaled",
            "the products are not divided by the square root of D",
            "A sum of D products grows with D, in cross-attention as in self-attention.",
            "By hand",
        ),
        Misconception(
            "root_of_d_model",
            "the scale comes from d_model",
            "The sum runs over the D numbers of a query and a key: the root of the query's last axis, not of x's.",
            "By hand",
        ),
        Misconception(
            "divided_by_d",
            "the products are divided by D",
            "The spread of the sum is the square root of D; divided by D, the weights come near uniform as D grows.",
            "By hand",
        ),
        Misconception(
            "axes_swapped",
            "the query and key axes are swapped",
            "scores[b, i, j] belongs to token i of x and token j of the context: x comes first, (B, T, S).",
            "Two sequences, two lengths",
        ),
        Misconception(
            "returns_weights",
            "it returns the weights, after the softmax",
            "Asked for are the scores; the softmax comes in the next exercise, where the padding does.",
            "The code",
        ),
    ),
)

# --- attend_to_context ------------------------------------------------------------------------------------------


def attend_to_context(query: Tensor, key: Tensor, value: Tensor, context_lengths: Tensor) -> tuple[Tensor, Tensor]:
    real = torch.arange(key.shape[1]) < context_lengths[:, None]  # (B, S)
    padding = ~real[:, None]  # (B, 1, S)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (B, T, S)
    weights = scores.masked_fill(padding, float("-inf")).softmax(-1).masked_fill(padding, 0.0)
    return weights @ value, weights


def faulty_attend_to_context(wrong: frozenset[str]) -> Callable:
    def attend_to_context(query, key, value, context_lengths):
        B, T, S = query.shape[0], query.shape[1], key.shape[1]
        n = T if "queries_masked" in wrong else S
        positions, lengths = torch.arange(n).view(1, n), context_lengths.view(B, 1)
        if "batch_axis_forgotten" in wrong:
            if B not in (1, n):
                raise RuntimeError(f"{n} positions for {B} lengths")
            lengths = context_lengths
        lengths = lengths + int("one_too_many" in wrong) - int("one_too_few" in wrong)
        mask = positions >= n - lengths if "wrong_side" in wrong else positions < lengths
        if "inverted" in wrong:
            mask = ~mask
        if "lengths_ignored" in wrong:
            mask = torch.ones_like(mask)
        if "mask_not_expanded" in wrong:
            mask = mask.unsqueeze(0)
        else:
            mask = mask.unsqueeze(2) if "queries_masked" in wrong else mask.unsqueeze(1)
        mask = mask.expand(B, T, S)
        scores = torch.einsum("btd,bsd->bts", query, key)
        if "unscaled" not in wrong:
            scores = scores * query.shape[-1] ** -0.5
        if "padding_zeroed" in wrong and not wrong & {"queries_masked", "mask_not_expanded"}:
            value = value * mask[:, 0, :, None]
        if wrong & {"scores_zeroed", "padding_zeroed"}:
            scores = scores.masked_fill(~mask, 0.0)
        elif "mask_after" not in wrong:
            scores = scores.masked_fill(~mask, -1e9 if "empty_uniform" in wrong else float("-inf"))
        weights = scores.softmax(-2 if "over_queries" in wrong else -1)
        if not wrong & {"empty_nan", "empty_uniform", "scores_zeroed", "padding_zeroed"}:
            weights = weights.masked_fill(~mask, 0.0)
        return torch.einsum("bts,bsd->btd", weights, value), weights

    return attend_to_context


def attend_to_context_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1700 + seed)

    def arguments(T: int, S: int, D: int, Dv: int, *lengths: int) -> dict[str, Tensor]:
        B = len(lengths)
        return {
            "query": inputs.normal(B, T, D, spread=1.5),
            "key": inputs.normal(B, S, D, spread=1.5),
            "value": inputs.normal(B, S, Dv, spread=1.5),
            "context_lengths": torch.tensor(lengths),
        }

    yield one_call("two queries, a context of three, two of them real", arguments(2, 3, 4, 5, 2))
    yield one_call("a batch, all sizes different", arguments(3, 5, 6, 4, 5, 2))
    yield one_call("a long query, a short context", arguments(7, 4, 5, 6, 1, 4, 2))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 3, 1, 4, 2))
    yield one_call("a context of padding only", arguments(3, 4, 5, 6, 0, 3))
    yield one_call("one query", arguments(1, 12, 8, 9, 7))
    loose = arguments(3, 5, 6, 4, 5, 2)
    yield one_call(
        "non-contiguous", loose | {name: strided(loose[name]) for name in ("query", "key", "value")}, "non-contiguous"
    )
    double = arguments(2, 3, 5, 4, 1, 3)
    yield one_call("float64", {n: t.double() if t.is_floating_point() else t for n, t in double.items()}, "float64")


def _left_padded(implementation: Callable) -> Callable:
    """An implementation for a right-padded context, made to read one that is padded on the left."""

    def attend_to_context(query, key, value, context_lengths):
        output, weights = implementation(query, key.flip(1), value.flip(1), context_lengths)
        return output, weights.flip(-1)

    return attend_to_context


def _no_more_keys_than_tokens(call: Call, result: Result) -> bool:
    read = (result.outputs[-1] != 0).sum(-1)  # (B, T)
    return bool((read <= call.arguments["context_lengths"][:, None]).all())


ATTEND_TO_CONTEXT = Exercise(
    id="cross_attention/attend_to_context",
    defines="attend_to_context",
    title="Attend to a padded context",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=attend_to_context_scripts,
    reference=attend_to_context,
    faulty=faulty_attend_to_context,
    outputs=(Output("output", "B T Dv"), Output("weights", "B T S")),
    properties=(
        Property("a query reads at most as many keys as its context has real tokens", _no_more_keys_than_tokens),
        NOT_NEGATIVE,
        SUM_TO_ONE,
    ),
    habits=COMMON_HABITS,
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        Misconception(
            "lengths_ignored",
            "the padding is not masked",
            "Padding then takes part in the average, and the same pair of sequences gives another result in another "
            "batch.",
            "Whose padding",
        ),
        Misconception(
            "queries_masked",
            "the queries are masked instead of the keys",
            "The lengths are those of the context, and its tokens are the keys: mask the axis S. A padded query may "
            "compute what it likes; nobody reads it.",
            "Whose padding",
        ),
        Misconception(
            "wrong_side",
            "the padding is looked for on the other side",
            "The text of the exercise says on which side of the real tokens the padding stands.",
            "Whose padding",
        ),
        Misconception(
            "inverted",
            "the mask is inverted",
            "It attends to the padding and to nothing else. True means: may attend.",
            "The code",
        ),
        Misconception(
            "one_too_many",
            "one token of padding is read",
            "Positions are counted from 0: a context of 2 real tokens has them at 0 and 1, so j < length.",
            "Whose padding",
        ),
        Misconception(
            "one_too_few",
            "the last real token is left out",
            "Positions are counted from 0: a context of 2 real tokens has them at 0 and 1, so j < length.",
            "Whose padding",
        ),
        Misconception(
            "batch_axis_forgotten",
            "the lengths run along the keys, not along the batch",
            "Each sequence has one length. `lengths[:, None]` is (B, 1), to compare with all S positions; without "
            "the new axis, position j is compared with the length of sequence j.",
            "Whose padding",
        ),
        Misconception(
            "mask_not_expanded",
            "the mask's first axis is taken for the queries",
            "A mask (B, S) lines up with the last two axes of the scores, (T, S), and with T = B nothing crashes: "
            "every sequence gets the masks of all. Give it an axis for the queries, (B, 1, S).",
            "Whose padding",
        ),
        Misconception(
            "scores_zeroed",
            "the padding's scores are set to 0",
            "A score of 0 is not “no attention”: exp(0) = 1 still takes its share. They must be -inf.",
            "Predict, run, explain",
        ),
        Misconception(
            "padding_zeroed",
            "the padding's keys and values are set to 0",
            "A key of zeros has the score 0, and exp(0) = 1 still takes its share of the weights; the rest sums to "
            "less than 1. Its score must be -inf.",
            "Predict, run, explain",
        ),
        Misconception(
            "mask_after",
            "the weights are masked after the softmax and not normalised again",
            "The padding has already taken its share, so the rest sums to less than 1.",
            "Predict, run, explain",
        ),
        Misconception(
            "over_queries",
            "the softmax runs over the queries",
            "Each query divides its attention among the keys: normalise over the last axis, S.",
            "The code",
        ),
        Misconception(
            "unscaled",
            "the scores are not divided by the square root of D",
            "A sum of D products grows with D, in cross-attention as in self-attention.",
            "By hand",
        ),
        Misconception(
            "empty_nan",
            "a context of padding only is not taken care of",
            "The softmax of a row of -inf is NaN, which spreads through the network. Make those rows zeros.",
            "Whose padding",
        ),
        Misconception(
            "empty_uniform",
            "a context of padding only is read as if it were real",
            "Filling with a large negative number makes the row constant, and the softmax of a constant row is "
            "uniform. Fill with -inf and make such rows zeros.",
            "Whose padding",
        ),
    ),
    variants={
        "left_padded": Variant(
            statement="In this copy the context is padded on the left: its last `context_lengths[b]` tokens are real.",
            argument=lambda name, value: value,
            wrap=_left_padded,
            titles={"one_too_few": "the first real token is left out"},
            explanations={
                "one_too_many": "Positions are counted from 0: of 5 places, a context of 2 real tokens has 3 and 4, "
                "so j >= S - length.",
                "one_too_few": "Positions are counted from 0: of 5 places, a context of 2 real tokens has 3 and 4, so "
                "j >= S - length.",
            },
        )
    },
)

# --- image_patches ----------------------------------------------------------------------------------------------


def image_patches(images: Tensor, patch: int) -> Tensor:
    B, C, height, width = images.shape
    rows, columns = height // patch, width // patch
    grid = images.reshape(B, C, rows, patch, columns, patch)
    by_patch = grid.permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, C, patch, patch)
    return by_patch.reshape(B, rows * columns, C * patch * patch)


def faulty_image_patches(wrong: frozenset[str]) -> Callable:
    def image_patches(images, patch):
        B, C, height, width = images.shape
        rows, columns = height // patch, width // patch
        n_numbers = C * patch**2
        if "only_reshaped" in wrong:
            by_patch = images.reshape(B, rows, columns, C, patch, patch)
        elif "grid_before_patch" in wrong:
            by_patch = images.reshape(B, C, rows, columns, patch, patch).movedim(1, 3)
        elif "spread_out" in wrong:
            by_patch = torch.einsum("bcprqs->brscpq", images.reshape(B, C, patch, rows, patch, columns))
        else:
            by_patch = torch.einsum("bcrpsq->brscpq", images.reshape(B, C, rows, patch, columns, patch))
        if "columns_first" in wrong:
            by_patch = by_patch.transpose(1, 2)
        if "pixels_transposed" in wrong:
            by_patch = by_patch.transpose(4, 5)
        if "channels_last" in wrong:
            by_patch = by_patch.movedim(3, 5)
        if "channels_apart" in wrong:
            return by_patch.movedim(3, 1).reshape(B, -1, patch**2)
        if "patches_not_flat" in wrong:
            return by_patch.flatten(1, 2)
        if "grid_kept" in wrong:
            return by_patch.flatten(3)
        flat = by_patch.reshape(B, rows * columns, n_numbers)
        return flat.transpose(1, 2) if "axes_swapped" in wrong else flat

    return image_patches


def image_patches_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1800 + seed)

    def arguments(B: int, C: int, height: int, width: int, patch: int) -> dict[str, Tensor | int]:
        return {"images": inputs.normal(B, C, height, width), "patch": patch}

    yield one_call("two rows of three patches", arguments(1, 3, 4, 6, 2))
    yield one_call("a batch, all sizes different", arguments(2, 3, 8, 4, 2))
    yield one_call("all sizes equal", arguments(3, 3, 9, 9, 3))
    yield one_call("patches of three by three", arguments(2, 4, 6, 9, 3))
    yield one_call("one channel", arguments(3, 1, 9, 12, 3))
    yield one_call("one patch", arguments(2, 4, 5, 5, 5))
    loose = arguments(2, 3, 4, 6, 2)
    yield one_call("non-contiguous", loose | {"images": strided(loose["images"])}, "non-contiguous")
    double = arguments(1, 3, 4, 6, 2)
    yield one_call("float64", double | {"images": double["images"].double()}, "float64")


IMAGE_PATCHES = Exercise(
    id="cross_attention/image_patches",
    defines="image_patches",
    title="Cut an image into patches, as tokens",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=image_patches_scripts,
    reference=image_patches,
    faulty=faulty_image_patches,
    outputs=(Output("patches", "B N C·patch·patch"),),
    habits={
        "non-contiguous": "Your code fails on a transposed (non-contiguous) image, usually because of `.view`: use "
        "`.reshape`, or an operation that needs no particular memory layout.",
        "float64": FLOAT64,
    },
    forbidden=("unfold", "pixel_unshuffle"),
    misconceptions=(
        Misconception(
            "only_reshaped",
            "the image is reshaped, and no axis moves",
            "`reshape` cuts the numbers in the order in which they are stored, along whole rows of pixels. Name the "
            "two parts of height and width first, then bring the parts of one patch together.",
            "Text that reads an image",
        ),
        Misconception(
            "grid_before_patch",
            "height and width are split as (rows, columns, patch, patch)",
            "`reshape` only cuts: the height becomes (rows, patch), then the width becomes (columns, patch), in this "
            "order. Moving the axes is the next step.",
            "Text that reads an image",
        ),
        Misconception(
            "spread_out",
            "each patch collects pixels from all over the image",
            "The height splits into (rows, patch): which row of patches comes first, the place in the patch second. "
            "The other way round, neighbours in a token are far apart in the image.",
            "Text that reads an image",
        ),
        Misconception(
            "columns_first",
            "the patches go down the columns",
            "They are read like text: left to right, then the next row.",
            "Text that reads an image",
        ),
        Misconception(
            "pixels_transposed",
            "the pixels inside a patch go down its columns",
            "Within a patch and a channel, pixels are read like text too: left to right, then the next row.",
            "Text that reads an image",
        ),
        Misconception(
            "channels_last",
            "the channels are the innermost axis of a patch",
            "Asked for is channel, row, column, as the image is stored. Another order needs other weights after it.",
            "Text that reads an image",
        ),
        Misconception(
            "channels_apart",
            "each channel makes patches of its own",
            "A token holds all channels of its place: C times patch times patch numbers.",
            "Text that reads an image",
        ),
        Misconception(
            "patches_not_flat",
            "the patches keep their own axes",
            "A token is one vector: flatten channel, row and column into the last axis.",
            "Text that reads an image",
        ),
        Misconception(
            "grid_kept",
            "rows and columns of patches stay two axes",
            "Attention reads a sequence: the two axes of the grid become one, N.",
            "Text that reads an image",
        ),
        Misconception(
            "axes_swapped",
            "the patches stand on the last axis",
            "Tokens come first and their numbers last, (B, N, C·patch·patch), as everywhere in the course.",
            "Text that reads an image",
        ),
    ),
)

# --- CrossHead --------------------------------------------------------------------------------------------------


class CrossHead(nn.Module):
    def __init__(self, d_model: int, d_context: int, d_head: int):
        super().__init__()
        self.q_proj = nn.Linear(d_model, d_head, bias=False)
        self.k_proj = nn.Linear(d_context, d_head, bias=False)
        self.v_proj = nn.Linear(d_context, d_head, bias=False)
        self.o_proj = nn.Linear(d_head, d_model, bias=False)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        query = self.q_proj(x)  # (B, T, D)
        key, value = self.k_proj(context), self.v_proj(context)  # (B, S, D) each
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # (B, T, S)
        if context_mask is None:
            weights = scores.softmax(-1)
        else:
            padding = ~context_mask[:, None]  # (B, 1, S)
            weights = scores.masked_fill(padding, float("-inf")).softmax(-1).masked_fill(padding, 0.0)
        return self.o_proj(weights @ value), weights  # (B, T, d_model), (B, T, S)


def faulty_cross_head(wrong: frozenset[str]) -> type:
    class CrossHead(nn.Module):
        def __init__(self, d_model, d_context, d_head):
            super().__init__()
            self.q_proj = nn.Linear(d_model, d_head, bias=False)
            self.k_proj = nn.Linear(d_context, d_head, bias=False)
            self.v_proj = nn.Linear(d_context, d_head, bias=False)
            self.o_proj = nn.Linear(d_head, d_model, bias=False)

        def forward(self, x, context, context_mask=None):
            asking, compared, read = x, context, context
            if "sides_exchanged" in wrong:
                asking, compared, read = context, x, x
            if wrong & {"keys_from_x", "context_unread"}:
                compared = x
            if wrong & {"values_from_x", "context_unread"}:
                read = x
            query, key, value = self.q_proj(asking), self.k_proj(compared), self.v_proj(read)
            divisor = (x if "root_of_d_model" in wrong else query).shape[-1] ** 0.5
            scores = torch.einsum("btd,bsd->bts", query, key)
            if "unscaled" not in wrong:
                scores = scores / divisor
            axis = -2 if "over_queries" in wrong else -1
            if context_mask is None or "mask_ignored" in wrong:
                weights = scores.softmax(axis)
            else:
                mask = ~context_mask if "mask_inverted" in wrong else context_mask
                if "queries_masked" in wrong:
                    mask = mask.unsqueeze(-1)
                elif "mask_not_expanded" not in wrong:
                    mask = mask.unsqueeze(1)
                forbidden = ~mask.expand_as(scores)
                fill = -1e9 if "empty_uniform" in wrong else float("-inf")
                weights = scores.masked_fill(forbidden, fill).softmax(axis)
                if not wrong & {"empty_nan", "empty_uniform"}:
                    weights = weights.masked_fill(forbidden, 0.0)
            output = torch.bmm(weights, value)
            output = output if "not_projected_back" in wrong else self.o_proj(output)
            return (weights, output) if "order_swapped" in wrong else (output, weights)

    return CrossHead


def cross_head_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(1900 + seed)

    def script(name: str, sizes: tuple[int, ...], mask: Tensor | None) -> Script:
        B, T, S, d_model, d_context, D = sizes
        state = {
            "q_proj.weight": inputs.weight(D, d_model),
            "k_proj.weight": inputs.weight(D, d_context),
            "v_proj.weight": inputs.weight(D, d_context),
            "o_proj.weight": inputs.weight(d_model, D),
        }
        arguments = {
            "x": inputs.normal(B, T, d_model, spread=1.5),
            "context": inputs.normal(B, S, d_context, spread=1.5),
            "context_mask": mask,
        }
        construct = Construct({"d_model": d_model, "d_context": d_context, "d_head": D})
        return Script(name, (construct, Load(state), Call(arguments, gradients=("x", "context"))))

    yield script("two tokens read three", (1, 2, 3, 4, 5, 6), None)
    yield script("a padded context", (2, 3, 5, 4, 6, 7), inputs.padding(5, 2))
    yield script("tokens of one size, padding anywhere", (2, 5, 3, 4, 4, 6), inputs.mask(2, 3))
    yield script("tokens of one size, as many on both sides", (3, 4, 4, 6, 6, 5), inputs.padding(4, 1, 3))
    yield script("all sizes equal", (4, 4, 4, 4, 4, 4), inputs.padding(4, 1, 3, 2))
    yield script("a context of padding only", (2, 2, 3, 4, 5, 6), inputs.padding(3, 0))
    yield script("one token reads", (1, 1, 12, 8, 7, 6), None)


def _padding_gets_nothing(call: Call, result: Result) -> bool:
    mask, weights = call.arguments["context_mask"], result.outputs[-1]
    return mask is None or bool((weights.masked_select(~mask[:, None].expand_as(weights)) == 0).all())


_SHARED = {misconception.name: misconception for misconception in ATTEND_TO_CONTEXT.misconceptions}

CROSS_HEAD = Exercise(
    id="cross_attention/CrossHead",
    defines="CrossHead",
    title="Build one head of cross-attention",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=cross_head_scripts,
    reference=CrossHead,
    faulty=faulty_cross_head,
    outputs=(Output("output", "B T d_model"), Output("weights", "B T S")),
    properties=(
        Property("the context's padding gets weight exactly 0", _padding_gets_nothing),
        NOT_NEGATIVE,
        SUM_TO_ONE,
    ),
    forbidden=WHOLE_ATTENTION,
    misconceptions=(
        Misconception(
            "context_unread",
            "keys and values come from x",
            "That is self-attention: the context is never read. x gives the queries, and the context all the rest.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "keys_from_x",
            "the keys come from x",
            "The queries are compared with the tokens of the context: k_proj reads the context.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "values_from_x",
            "the values come from x",
            "What is read back is the context's: v_proj reads it too. The weights belong to its S tokens.",
            "Two sequences, two lengths",
        ),
        Misconception(
            "sides_exchanged",
            "the context reads x",
            "x is the sequence that reads, and the output has its length T: x gives the queries.",
            "Two sequences, two lengths",
        ),
        _SHARED["unscaled"],
        Misconception(
            "root_of_d_model",
            "the scale comes from d_model",
            "The scores are sums over the D numbers of a query and a key, so the scale is the square root of d_head.",
            "By hand",
        ),
        Misconception(
            "mask_ignored",
            "the mask is not used",
            "Padding then takes part in the average, and the same pair of sequences gives another result in another "
            "batch.",
            "Whose padding",
        ),
        Misconception(
            "mask_inverted",
            "the mask is inverted",
            "Here True means: may attend. `key_padding_mask` of `nn.MultiheadAttention` says the opposite, which is "
            "where this comes from.",
            "The code",
        ),
        Misconception(
            "queries_masked",
            "the queries are masked instead of the keys",
            "The mask is that of the context, and its tokens are the keys: `context_mask[:, None]` is (B, 1, S). "
            "With T = S the other side does not crash.",
            "Whose padding",
        ),
        _SHARED["mask_not_expanded"],
        _SHARED["over_queries"],
        _SHARED["empty_nan"],
        _SHARED["empty_uniform"],
        Misconception(
            "not_projected_back",
            "o_proj is left out",
            "The average of the values has d_head numbers; o_proj brings it back to d_model.",
            "The code",
        ),
        Misconception(
            "order_swapped",
            "the weights are returned first",
            "Return (output, weights): every attention module of the course keeps this order.",
            "The code",
        ),
    ),
)

EXERCISES = (CROSS_SCORES, ATTEND_TO_CONTEXT, IMAGE_PATCHES, CROSS_HEAD)
