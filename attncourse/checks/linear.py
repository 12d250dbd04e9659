"""Exercises of chapter 10: attention by a kernel, a state, chunks, random features and their orthogonal directions."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, FLOAT64, NON_CONTIGUOUS, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant

CHAPTER = "10_linear"


def _first_output_is_first_value(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[0][:, :, 0], call.arguments["value"][:, :, 0], rtol=1e-3, atol=1e-4)


def _outputs_are_averages(call: Call, result: Result) -> bool:
    value, output = call.arguments["value"], result.outputs[0]
    lowest, highest = value.cummin(2).values, value.cummax(2).values
    return bool(((output > lowest - 1e-3) & (output < highest + 1e-3)).all())


FIRST_IS_ITS_VALUE = Property(
    "the first token sees only itself, so its output is its own value", _first_output_is_first_value
)
AVERAGES = Property(
    "an output is an average of the values up to its token: never below the smallest, never above the largest",
    _outputs_are_averages,
)


# --- kernel_attention -------------------------------------------------------------------------------------------


def kernel_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key = F.elu(query) + 1, F.elu(key) + 1  # (B, H, T, D), every number positive
    similarities = (query @ key.mT).tril()  # (B, H, T, T), 0 for later keys
    return similarities @ value / similarities.sum(-1, keepdim=True)  # (B, H, T, Dv)


def faulty_kernel_attention(wrong: frozenset[str]) -> Callable:
    of_products = {"masked_with_inf", "map_of_product", "softmax_of_features", "softmax_of_triangle"}
    of_products |= {"weights_over_queries", "divisor_over_queries"}

    def feature_map(x):
        if "relu" in wrong:
            return x.clamp(min=0)
        if "exponential" in wrong:
            return x.exp()
        x = x + 1 if "one_inside" in wrong else x
        return torch.where(x > 0, x, x.exp() - 1) + (not wrong & {"elu_alone", "one_inside"})

    def kernel_attention(query, key, value):
        T, D = key.shape[2:]
        if "softmax" in wrong:
            scores = torch.einsum("bhtd,bhsd->bhts", query, key) / D**0.5
            later = torch.ones(T, T, dtype=torch.bool).triu(1)
            return scores.masked_fill(later & ("not_causal" not in wrong), float("-inf")).softmax(-1) @ value
        if "scaled_first" in wrong:
            query, key = query / D**0.25, key / D**0.25
        q = query if "query_not_mapped" in wrong else feature_map(query)
        k = key if "key_not_mapped" in wrong else feature_map(key)
        if "mapped_twice" in wrong:
            q, k = feature_map(q), feature_map(k)
        if wrong & of_products:
            products = torch.einsum("bhtd,bhsd->bhts", *((query, key) if "map_of_product" in wrong else (q, k)))
            products = feature_map(products) if "map_of_product" in wrong else products
            everything = torch.ones(T, T, dtype=torch.bool)
            hidden = everything.triu(0 if "excludes_self" in wrong else 1) & ("not_causal" not in wrong)
            hidden = everything.tril(-1) if "looks_ahead" in wrong else hidden
            filled_with_inf = wrong & {"masked_with_inf", "softmax_of_features"}
            weights = products.masked_fill(hidden, float("-inf") if filled_with_inf else 0.0)
            if wrong & {"softmax_of_features", "softmax_of_triangle"}:
                return weights.softmax(-1) @ value
            if "weights_over_queries" in wrong:
                return weights / weights.sum(-2, keepdim=True) @ value
            divisor = weights.sum(-2 if "divisor_over_queries" in wrong else -1, keepdim=True)
            return weights @ value / (1.0 if "no_normaliser" in wrong else divisor)
        axis = 1 if "over_heads" in wrong else 2
        written = k[..., None] * value[..., None, :]  # (B, H, T, D, Dv)

        def held(x: Tensor, axis: int) -> Tensor:
            if "not_causal" in wrong:
                return x.sum(axis, keepdim=True).expand_as(x)
            return x.flip(axis).cumsum(axis).flip(axis) if "looks_ahead" in wrong else x.cumsum(axis)

        memory, total = held(written, 3 if "over_features" in wrong else axis), held(k, axis)
        if wrong & {"excludes_self", "excludes_self_filled"}:
            memory, total = memory - written, total - k
        if "normaliser_over_all" in wrong:
            total = k.sum(2, keepdim=True).expand_as(k)
        if "normaliser_of_one" in wrong:
            total = k
        output = (q[..., None] * memory).sum(3)
        if "no_normaliser" in wrong:
            return output
        divisor = (total if "query_left_out" in wrong else q * total).sum(3, keepdim=True)
        if "divided_by_count" in wrong:
            divisor = torch.arange(1, T + 1).to(output)[:, None]
        output = output / divisor
        return output.masked_fill(divisor == 0, 0.0) if "excludes_self_filled" in wrong else output

    return kernel_attention


def _far_from_zero(query: Tensor, key: Tensor) -> bool:
    """Whether no feature map of the known mistakes has a normaliser near 0, where rounding would hide which it is."""
    maps = [lambda x: F.elu(x) + 1, torch.relu, F.elu, lambda x: F.elu(x + 1), lambda x: x]
    right, others = maps[0], maps[1:]
    for of_query, of_key in [(right, maps[-1]), *((f, g) for f in others for g in (f, right))]:
        terms = (of_query(query) @ of_key(key).mT).tril()  # (T, T)
        if (terms.sum(-1).abs() < 0.1 * terms.abs().sum(-1) + 0.05).any():
            return False
    return True


def _one_head(inputs: Inputs, T: int, D: int) -> tuple[Tensor, Tensor]:
    """A query and a key (T, D), of both signs."""
    while True:
        query, key = (inputs.normal(T, D, spread=1.2) + 0.6 for _ in range(2))
        if _far_from_zero(query, key):
            return query, key


def kernel_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(10000 + seed)

    def arguments(B: int, H: int, T: int, D: int, Dv: int) -> dict[str, Tensor]:
        heads = [_one_head(inputs, T, D) for _ in range(B * H)]
        query, key = (torch.stack(side).unflatten(0, (B, H)) for side in zip(*heads, strict=True))
        return {"query": query, "key": key, "value": inputs.normal(B, H, T, Dv, spread=2.0)}

    yield one_call("two heads, four tokens", arguments(1, 2, 4, 3, 2))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 4, 6))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    yield one_call("one token", arguments(2, 3, 1, 8, 9))
    loose = {name: strided(tensor) for name, tensor in arguments(2, 3, 4, 5, 6).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 3, 4, 5).items()}, "float64")


KERNEL_ATTENTION = Exercise(
    id="linear/kernel_attention",
    defines="kernel_attention",
    title="Attend with a kernel",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=kernel_attention_scripts,
    reference=kernel_attention,
    faulty=faulty_kernel_attention,
    outputs=(Output("output", "B H T Dv"),),
    properties=(FIRST_IS_ITS_VALUE, AVERAGES),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "not_causal",
            "every token sees all tokens",
            "Sums over all keys make one state for every query. Causal attention has one for each token: a running "
            "sum up to it, or a lower triangle of similarities.",
            "Two orders of multiplication",
        ),
        Misconception(
            "no_normaliser",
            "the sum is not divided by the similarities' sum",
            "Without the divisor the output is no average: it grows with the length of the sequence. Divide by "
            "φ(q) · Σ φ(k).",
            "Two orders of multiplication",
        ),
        Misconception(
            "excludes_self",
            "a token does not see itself",
            "Here attention is inclusive: j ≤ i. Exclusive, the first token has nothing to read, and its output is "
            "0/0: NaN.",
            "The code",
        ),
        Misconception(
            "excludes_self_filled",
            "a token does not see itself, and the first one gets zeros",
            "An epsilon hides that the first token reads nothing. Here attention is inclusive: j ≤ i, so that the "
            "divisor is never 0.",
            "The code",
        ),
        Misconception(
            "normaliser_over_all",
            "the divisor sums over all keys, later ones too",
            "Numerator and divisor need the same keys, j ≤ i. Else the weights of early tokens sum to less than 1, "
            "and by how much depends on the future.",
            "Two orders of multiplication",
        ),
        Misconception(
            "normaliser_of_one",
            "the divisor holds only the token's own key",
            "The divisor runs along like the numerator: the sum of φ(q) · φ(k) over every key up to the token.",
            "Two orders of multiplication",
        ),
        Misconception(
            "query_left_out",
            "the divisor is the sum of the keys, without the query",
            "A key's weight is φ(q) · φ(k), so the weights' sum is φ(q) · Σ φ(k): the same query in both.",
            "Two orders of multiplication",
        ),
        Misconception(
            "weights_over_queries",
            "the weights sum to 1 over the queries",
            "In (B, H, T, T) the keys are the last axis, the queries the one before. A query's weights sum to 1 over "
            "its keys: `.sum(-1, keepdim=True)`.",
            "Two orders of multiplication",
        ),
        Misconception(
            "divisor_over_queries",
            "the divisor sums over the queries",
            "`.sum(-2)` adds up the queries of one key. A query's divisor is a sum over its keys, the last axis: "
            "`.sum(-1, keepdim=True)`.",
            "Two orders of multiplication",
        ),
        Misconception(
            "divided_by_count",
            "the sum is divided by the number of tokens so far",
            "That makes a mean of products, not a weighted mean: the similarities are no weights until their own sum "
            "divides them.",
            "Two orders of multiplication",
        ),
        Misconception(
            "relu",
            "the feature map is relu",
            "relu gives zeros, and where all products are zero the output is 0/0. It also has no gradient there. "
            "elu(x) + 1 is positive everywhere.",
            "What follows the paper",
        ),
        Misconception(
            "elu_alone",
            "the feature map lacks the + 1",
            "elu goes down to -1, so weights would be negative and the divisor can be 0. With + 1 all features are "
            "positive.",
            "What follows the paper",
        ),
        Misconception(
            "one_inside",
            "the 1 is added before the elu",
            "elu(x + 1) still goes down to -1. Add 1 to the result: elu(x) + 1.",
            "What follows the paper",
        ),
        Misconception(
            "exponential",
            "the feature map is exp",
            "It is positive too, but grows fast: one large number decides. Asked for is elu(x) + 1, which equals "
            "exp(x) only below 0.",
            "What follows the paper",
        ),
        Misconception(
            "query_not_mapped",
            "the query does not go through the feature map",
            "The similarity is φ(q) · φ(k). With a raw query it can be negative, and the divisor can be 0.",
            "By hand",
        ),
        Misconception(
            "key_not_mapped",
            "the key does not go through the feature map",
            "The similarity is φ(q) · φ(k). With a raw key it can be negative, and the divisor can be 0.",
            "By hand",
        ),
        Misconception(
            "mapped_twice",
            "the feature map is applied twice",
            "Once is enough: φ(φ(x)) adds 1 to every feature, since all of them are positive, and the weights move "
            "closer to each other.",
            "By hand",
        ),
        Misconception(
            "map_of_product",
            "the feature map is applied to the product of query and key",
            "φ(q · k) cannot be taken apart, so nothing could be summed before the query comes. Map query and key, "
            "then multiply: φ(q) · φ(k).",
            "Two orders of multiplication",
        ),
        Misconception(
            "masked_with_inf",
            "later similarities are set to minus infinity",
            "That is for a softmax, whose exp makes it 0. Here the similarities are the weights: 0 is what forbids.",
            "Two orders of multiplication",
        ),
        Misconception(
            "scaled_first",
            "query and key are scaled before the feature map",
            "The kernel has no √D. After the map a factor on the query would cancel; before it, it bends the features.",
            "What follows the paper",
        ),
        Misconception(
            "over_heads",
            "the running sums run over the heads",
            "The axes are (B, H, T, …): tokens are axis 2. Axis 1 adds the keys of other heads, and nothing crashes.",
            "Three ways",
        ),
        Misconception(
            "over_features",
            "the products of key and value are summed along the features",
            "k vᵀ for every token is (B, H, T, D, Dv): axis -2 is D there, while for the keys it is T. Count from the "
            "left: axis 2.",
            "Three ways",
        ),
        Misconception(
            "looks_ahead",
            "a token sees itself and what comes after",
            "The sum runs to the token, not from it: `tril`, not `triu`; j ≤ i.",
            "Two orders of multiplication",
        ),
        Misconception(
            "softmax_of_features",
            "a softmax stands in place of the division",
            "The features replace its exponential. Divide the similarities by their sum.",
            "Two orders of multiplication",
        ),
        Misconception(
            "softmax_of_triangle",
            "a softmax of the lower triangle stands in place of the division",
            "The features replace its exponential. Divide the similarities by their sum. And exp(0) is 1, so later "
            "keys count too.",
            "Two orders of multiplication",
        ),
        Misconception(
            "softmax",
            "the weights are a softmax of the raw scores",
            "That is chapter 05. The kernel puts φ(q) · φ(k) in place of exp(q · k / √D), so that the sums over the "
            "keys can be kept.",
            "The problem",
        ),
    ),
)

# --- update_state -----------------------------------------------------------------------------------------------


def update_state(
    query: Tensor, key: Tensor, value: Tensor, memory: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    memory = memory + key[..., None] * value[..., None, :]  # (B, H, M, Dv)
    total = total + key  # (B, H, M)
    read = (query[..., None, :] @ memory)[..., 0, :]  # (B, H, Dv)
    return read / (query * total).sum(-1, keepdim=True), memory, total


def faulty_update_state(wrong: frozenset[str], exclusive: bool = False) -> Callable:
    """exclusive: the memory is to be read before it is written; "other_order" means the other order of the two."""
    reads_first = exclusive != ("other_order" in wrong)
    total_read_first = reads_first != ("times_mixed" in wrong)

    def update_state(query, key, value, memory, total):
        if "mapped_again" in wrong:
            query, key = (torch.where(x > 0, x + 1, x.exp()) for x in (query, key))
        written, reader = query if "query_written" in wrong else key, key if "key_reads" in wrong else query
        product = torch.einsum("bhd,bhv->bhdv", written, value)
        product = product.mT if "outer_transposed" in wrong else product
        old_memory, old_total = (
            (torch.zeros_like(memory), torch.zeros_like(total)) if "overwritten" in wrong else (memory, total)
        )
        new_memory = old_memory if "memory_left" in wrong else old_memory + product
        new_total = old_total if "total_left" in wrong else old_total + written
        divisor = total if total_read_first else new_total
        divisor = divisor if "query_left_out" in wrong else reader * divisor
        output = torch.einsum("bhd,bhdv->bhv", reader, memory if reads_first else new_memory)
        if "no_normaliser" not in wrong:
            output = output / (divisor.sum() if "one_divisor" in wrong else divisor.sum(-1, keepdim=True))
        return (output, memory, total) if "old_returned" in wrong else (output, new_memory, new_total)

    update_state.wrong = wrong  # so that the variant can make it in the other order
    return update_state


def _reading_first(implementation: Callable) -> Callable:
    """update_state that reads the memory before it writes. A known mistake is made anew, for this order."""
    if hasattr(implementation, "wrong"):
        return faulty_update_state(implementation.wrong, exclusive=True)

    def update_state(query, key, value, memory, total):
        output, *_ = implementation(query, torch.zeros_like(key), value, memory, total)  # writes nothing
        return (output, *implementation(query, key, value, memory, total)[1:])

    return update_state


def update_state_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(10100 + seed)

    def features(*shape: int) -> Tensor:
        return inputs.normal(*shape, spread=0.8).exp()

    def arguments(B: int, H: int, M: int, Dv: int) -> dict[str, Tensor]:
        """What three tokens left in the state, and a fourth."""
        keys, values = features(B, H, 3, M), inputs.normal(B, H, 3, Dv, spread=2.0)
        return {
            "query": features(B, H, M),
            "key": features(B, H, M),
            "value": inputs.normal(B, H, Dv, spread=2.0),
            "memory": keys.mT @ values,
            "total": keys.sum(2),
        }

    yield one_call("two heads, two features", arguments(1, 2, 2, 3))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 4))
    yield one_call("more numbers in a value than features", arguments(3, 2, 4, 7))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4))
    loose = arguments(2, 3, 4, 5)
    yield one_call("non-contiguous", {name: strided(tensor) for name, tensor in loose.items()}, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 3, 4).items()}, "float64")


def _memory_grows_by_one_product(call: Call, result: Result) -> bool:
    given, (_, memory, _) = call.arguments, result.outputs
    product = given["key"][..., None] * given["value"][..., None, :]
    return torch.allclose(memory - given["memory"], product, rtol=1e-3, atol=1e-4)


def _total_grows_by_the_key(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[2] - call.arguments["total"], call.arguments["key"], rtol=1e-3, atol=1e-4)


UPDATE_STATE = Exercise(
    id="linear/update_state",
    defines="update_state",
    title="Update the state by one token",
    chapter=CHAPTER,
    difficulty=1,
    minutes=10,
    points=2,
    scripts=update_state_scripts,
    reference=update_state,
    faulty=faulty_update_state,
    outputs=(Output("output", "B H Dv"), Output("memory", "B H M Dv"), Output("total", "B H M")),
    properties=(
        Property("the memory grows by the product k vᵀ of the new token", _memory_grows_by_one_product),
        Property("the total grows by the key of the new token", _total_grows_by_the_key),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "other_order",
            "reading and writing are in the other order",
            "Inclusive attention writes the token, then reads, so that a token sees itself. Exclusive attention reads "
            "first. The task says which is meant.",
            "A state of fixed size",
        ),
        Misconception(
            "times_mixed",
            "memory and total are read at different times",
            "Both are read before the token is written, or both after it. Else the divisor belongs to other weights "
            "than the sum.",
            "A state of fixed size",
        ),
        Misconception(
            "old_returned",
            "the state that is returned is the old one",
            "The next token finds nothing of this one. Return the new memory and the new total.",
            "A state of fixed size",
        ),
        Misconception(
            "overwritten",
            "the state holds the new token alone",
            "The state is a sum over all tokens so far: add to what is there.",
            "A state of fixed size",
        ),
        Misconception(
            "memory_left",
            "the token is not written into the memory",
            "Both parts of the state grow: the memory by k vᵀ, the total by k.",
            "Three ways",
        ),
        Misconception(
            "total_left",
            "the token is not added to the total",
            "Both parts of the state grow: the memory by k vᵀ, the total by k. Without it the weights sum to more "
            "than 1.",
            "Three ways",
        ),
        Misconception(
            "no_normaliser",
            "the output is not divided",
            "What is read is a sum, which grows with every token. Divide by q · total.",
            "Two orders of multiplication",
        ),
        Misconception(
            "query_left_out",
            "the divisor is the sum of the total, without the query",
            "A key's weight is q · k, so the weights' sum is q · total: the same query in both.",
            "Two orders of multiplication",
        ),
        Misconception(
            "one_divisor",
            "one divisor serves all sequences and heads",
            "`.sum()` without an axis adds everything. Each head of each sequence has a divisor of its own: sum over "
            "the last axis and keep it.",
            "Two orders of multiplication",
        ),
        Misconception(
            "query_written",
            "the query is written instead of the key",
            "Keys and values are stored; the query reads, and is forgotten.",
            "Three ways",
        ),
        Misconception(
            "key_reads",
            "the key reads instead of the query",
            "Keys and values are stored; the query reads them.",
            "Three ways",
        ),
        Misconception(
            "outer_transposed",
            "the product of key and value is transposed",
            "The memory is (M, Dv): row m holds the values, weighted by feature m of their keys. With M = Dv nothing "
            "crashes.",
            "By hand",
        ),
        Misconception(
            "mapped_again",
            "the feature map is applied a second time",
            "What is given are features already: φ has been applied to the query and the key.",
            "Three ways",
        ),
    ),
    variants={
        "exclusive": Variant(
            statement="In this copy a token does not see itself: read the memory and the total as they are given, "
            "then write. What is returned is the output, and the state with the token in it.",
            argument=lambda name, value: value,
            wrap=_reading_first,
        )
    },
)

# --- chunk_attention --------------------------------------------------------------------------------------------


def chunk_attention(query: Tensor, key: Tensor, value: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    memory = torch.zeros_like(key.mT @ value)  # (B, H, M, Dv)
    total = torch.zeros_like(key.sum(2))  # (B, H, M)
    outputs, memories = [], []
    for q, k, v in zip(*(x.split(chunk, dim=2) for x in (query, key, value)), strict=True):
        weights = (q @ k.mT).tril()  # (B, H, chunk, chunk)
        divisor = weights.sum(-1, keepdim=True) + q @ total[..., None]  # (B, H, chunk, 1)
        outputs.append((weights @ v + q @ memory) / divisor)
        memories.append(memory)
        memory, total = memory + k.mT @ v, total + k.sum(2)
    return torch.cat(outputs, dim=2), torch.stack(memories, dim=2)


def faulty_chunk_attention(wrong: frozenset[str]) -> Callable:
    def chunk_attention(query, key, value, chunk):
        if "mapped_again" in wrong:
            query, key = (torch.where(x > 0, x + 1, x.exp()) for x in (query, key))
        T = query.shape[2]
        if "pieces_counted" in wrong:
            chunk = math.ceil(T / chunk)
        ones = torch.ones_like(value[..., :1])  # their weighted sum is the normaliser
        value = torch.cat([value, ones], dim=-1)
        memory = torch.zeros(*key.shape[:2], key.shape[3], value.shape[3], dtype=key.dtype)
        outputs, memories = [], []
        for start in range(0, T - T % chunk if "tail_dropped" in wrong else T, chunk):
            q, k, v = (x[:, :, start : start + chunk] for x in (query, key, value))
            scores = torch.einsum("bhtd,bhsd->bhts", q, k)
            if "chunk_not_masked" not in wrong:
                scores = torch.tril(scores, -1 if "excludes_self" in wrong else 0)
            before, grown = memory, torch.einsum("bhsd,bhsv->bhdv", k, v)
            if "only_last_chunk" in wrong:
                memory = grown
            elif "never_written" not in wrong:
                memory = memory + grown
            own, past = scores @ v, q @ (memory if "written_first" in wrong else before)
            if "state_not_read" in wrong:
                past = torch.zeros_like(past)
            divisor = 0
            if "chunk_not_in_divisor" not in wrong:
                divisor = divisor + own[..., -1:]
            if "state_not_in_divisor" not in wrong:
                divisor = divisor + past[..., -1:]
            output = (own + past)[..., :-1]
            outputs.append(output if "no_normaliser" in wrong else output / divisor)
            memories.append((memory if "memories_after" in wrong else before)[..., :-1])
        if "last_memory_too" in wrong:
            memories.append(memory[..., :-1])
        if "memories_shared" in wrong:
            memories = [memory[..., :-1]] * len(memories)
        return torch.cat(outputs, 2), torch.stack(memories, 0 if "stacked_in_front" in wrong else 2)

    return chunk_attention


def chunk_attention_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(10200 + seed)

    def arguments(B: int, H: int, T: int, M: int, Dv: int, chunk: int) -> dict:
        query, key = (inputs.normal(B, H, T, M, spread=0.8).exp() for _ in range(2))
        return {"query": query, "key": key, "value": inputs.normal(B, H, T, Dv, spread=2.0), "chunk": chunk}

    yield one_call("three chunks of two", arguments(1, 2, 6, 4, 5, 2))
    yield one_call("three chunks and a rest", arguments(2, 3, 7, 5, 4, 2))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield one_call("three chunks of three", arguments(2, 2, 9, 4, 5, 3))
    yield one_call("chunks of one", arguments(2, 3, 5, 4, 6, 1))
    yield one_call("a chunk longer than the sequence", arguments(2, 3, 6, 5, 7, 8))
    loose = arguments(2, 3, 5, 4, 6, 2)
    loose |= {name: strided(loose[name]) for name in ("query", "key", "value")}
    yield one_call("non-contiguous", loose, "non-contiguous")
    wide = {n: v.double() if isinstance(v, Tensor) else v for n, v in arguments(1, 2, 3, 4, 5, 2).items()}
    yield one_call("float64", wide, "float64")


def _first_memory_is_empty(call: Call, result: Result) -> bool:
    return bool((result.outputs[1][:, :, 0] == 0).all())


CHUNK_ATTENTION = Exercise(
    id="linear/chunk_attention",
    defines="chunk_attention",
    title="Work in chunks",
    chapter=CHAPTER,
    difficulty=3,
    minutes=25,
    points=4,
    scripts=chunk_attention_scripts,
    reference=chunk_attention,
    faulty=faulty_chunk_attention,
    outputs=(Output("output", "B H T Dv"), Output("memories", "B H n M Dv")),
    properties=(
        Property("the memory before the first chunk is all zeros", _first_memory_is_empty),
        FIRST_IS_ITS_VALUE,
        AVERAGES,
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "state_not_read",
            "the chunks do not see each other",
            "A token sees its own chunk and all before it. Those before are in the state: add q · memory to the sum "
            "and q · total to the divisor.",
            "Three ways",
        ),
        Misconception(
            "never_written",
            "the state stays empty",
            "After a chunk, add its keys and values to the state: kᵀ v to the memory, the sum of k to the total.",
            "Three ways",
        ),
        Misconception(
            "only_last_chunk",
            "the state holds only the chunk before",
            "The state is a sum over all chunks so far: add to it.",
            "A state of fixed size",
        ),
        Misconception(
            "written_first",
            "a chunk reads the state after it was written there itself",
            "Then its tokens count twice, and a token sees later ones of its chunk. Read the state, then write.",
            "Three ways",
        ),
        Misconception(
            "chunk_not_masked",
            "within its chunk a token sees later ones",
            "The product of queries and keys of one chunk is a small T × T matrix, and needs its lower triangle.",
            "Three ways",
        ),
        Misconception(
            "excludes_self",
            "a token does not see itself",
            "Here attention is inclusive: the triangle keeps its diagonal. Exclusive, the first token reads nothing, "
            "and its output is 0/0: NaN.",
            "The code",
        ),
        Misconception(
            "state_not_in_divisor",
            "the divisor counts the own chunk alone",
            "The weights of earlier chunks are in the sum, so they belong in the divisor: add q · total.",
            "Two orders of multiplication",
        ),
        Misconception(
            "chunk_not_in_divisor",
            "the divisor counts the earlier chunks alone",
            "In the first chunk the total is 0, and the output is x/0. Add the row sums of the chunk's own weights.",
            "Two orders of multiplication",
        ),
        Misconception(
            "no_normaliser",
            "the output is not divided",
            "What is read is a sum, which grows with every token. Divide by the sum of the weights: the chunk's own "
            "and q · total.",
            "Two orders of multiplication",
        ),
        Misconception(
            "tail_dropped",
            "the tokens after the last whole chunk are dropped",
            "The last chunk may be shorter: there are ⌈T / chunk⌉, also when `chunk` is more than T.",
            "Three ways",
        ),
        Misconception(
            "memories_after",
            "the memories are those after each chunk",
            "Asked for is what a chunk finds there when it begins. The first memory is all zeros.",
            "Three ways",
        ),
        Misconception(
            "memories_shared",
            "the noted memories change afterwards, and all are the last one",
            "`memory += …` edits the tensor that stands in the list already. `memory = memory + …` makes a new one.",
            "Three ways",
        ),
        Misconception(
            "last_memory_too",
            "there is one memory too many, the one after the last chunk",
            "Asked for is what each chunk finds when it begins: as many memories as chunks.",
            "Three ways",
        ),
        Misconception(
            "stacked_in_front",
            "the memories are stacked along a new first axis",
            "`torch.stack` without `dim` puts n in front. Asked for is axis 2: `torch.stack(memories, 2)`.",
            "Three ways",
        ),
        Misconception(
            "pieces_counted",
            "`chunk` is taken for the number of chunks",
            "`Tensor.chunk(n)` cuts into n pieces. `Tensor.split(chunk, dim=2)` cuts into pieces of that length.",
            "Three ways",
        ),
        Misconception(
            "mapped_again",
            "the feature map is applied a second time",
            "What is given are features already: φ has been applied to the queries and the keys.",
            "Three ways",
        ),
    ),
)

# --- random_features --------------------------------------------------------------------------------------------


def random_features(x: Tensor, projection: Tensor) -> Tensor:
    x = x / x.shape[-1] ** 0.25  # queries and keys both: together the 1/√D of the scores
    exponents = x @ projection.T - (x**2).sum(-1, keepdim=True) / 2  # (..., m)
    return exponents.exp() / projection.shape[0] ** 0.5


def faulty_random_features(wrong: frozenset[str]) -> Callable:
    def random_features(x, projection):
        m, D = projection.shape
        scale = D ** (0.0 if "no_scale" in wrong else -0.5 if "scaled_by_root" in wrong else -0.25)
        if wrong & {"power_without_brackets", "root_without_brackets"}:
            scale = 1 / (4 * D) if "power_without_brackets" in wrong else 4 / D
        matrix = projection if "projection_transposed" in wrong else projection.T
        products = torch.einsum("...d,dm->...m", x if "product_not_scaled" in wrong else x * scale, matrix)
        measured = products if "norm_of_products" in wrong else x if "norm_not_scaled" in wrong else x * scale
        norm = measured.square().sum(-1, keepdim=True)
        if "squares_averaged" in wrong:
            norm = norm / measured.shape[-1]
        if "norm_not_squared" in wrong:
            norm = norm.sqrt()
        norm = norm if "no_half" in wrong else norm / 2
        if "norm_of_all" in wrong:
            norm = norm.sum()
        if "no_norm" in wrong:
            norm = torch.zeros_like(norm)
        ratio = 1.0 if "no_ratio" in wrong else 1 / m if "divided_by_m" in wrong else 1 / math.sqrt(m)
        if "divided_by_root_of_D" in wrong:
            ratio = 1 / math.sqrt(D)
        if "relu" in wrong:
            return ratio * products.clamp(min=0)
        if "trigonometric" in wrong:
            return ratio * norm.exp() * torch.cat([products.sin(), products.cos()], -1)
        if "cosine" in wrong:
            return ratio * norm.exp() * products.cos()
        exponents = products + norm if "norm_added" in wrong else products - norm
        if "stabilised_by_token" in wrong:
            exponents = exponents - exponents.amax(-1, keepdim=True)
        if "stabilised_by_product" in wrong:
            exponents = exponents - products.amax(-1, keepdim=True)
        if "stabilised_over_all" in wrong:
            exponents = exponents - exponents.amax()
        return ratio * (exponents.exp() + 1e-4 * ("epsilon_added" in wrong))

    return random_features


def random_features_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(10300 + seed)

    def arguments(m: int, *shape: int) -> dict[str, Tensor]:
        return {"x": inputs.normal(*shape, spread=1.2), "projection": inputs.normal(m, shape[-1])}

    yield one_call("two vectors, five features", arguments(5, 2, 3))
    yield one_call("a batch with heads, all sizes different", arguments(6, 2, 3, 5, 4))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4))
    yield one_call("fewer features than numbers", arguments(3, 2, 4, 8))
    yield one_call("one vector", arguments(11, 1, 9))
    loose = arguments(6, 2, 3, 4, 5)
    yield one_call("non-contiguous", {name: strided(tensor) for name, tensor in loose.items()}, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(5, 3, 4).items()}, "float64")


def _features_are_positive(call: Call, result: Result) -> bool:
    return bool((result.outputs[0] > 0).all())


def _longer_means_smaller(call: Call, result: Result) -> bool:
    """Features of x, less what the product gives, fall with the length of x: exp(-|x|² / 2√D) / √m."""
    x, projection = call.arguments["x"].double(), call.arguments["projection"].double()
    left = result.outputs[0].double() / (x @ projection.T / x.shape[-1] ** 0.25).exp()  # (..., m)
    return torch.allclose(left, left[..., :1].expand_as(left), rtol=1e-2)


RANDOM_FEATURES = Exercise(
    id="linear/random_features",
    defines="random_features",
    title="Map to random features",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=random_features_scripts,
    reference=random_features,
    faulty=faulty_random_features,
    outputs=(Output("features", "… m"),),
    properties=(
        Property("every feature is positive", _features_are_positive),
        Property(
            "features of one vector differ only by exp(w · u): divide it out, and all m are equal",
            _longer_means_smaller,
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "no_norm",
            "the squared norm is missing",
            "E[exp(w · (q + k))] is exp(|q + k|² / 2), which is exp(q · k) only after both norms are taken off: "
            "subtract |x|² / 2 in the exponent.",
            "Random features",
        ),
        Misconception(
            "no_half",
            "the squared norm is not halved",
            "The exponent takes |x|² / 2: |q + k|² / 2 = q · k + |q|² / 2 + |k|² / 2.",
            "Random features",
        ),
        Misconception(
            "norm_added",
            "the squared norm is added",
            "It is taken off: |q + k|² / 2 = q · k + |q|² / 2 + |k|² / 2, and only q · k may stay. Added it stands "
            "with sines and cosines.",
            "Random features",
        ),
        Misconception(
            "norm_not_scaled",
            "the squared norm is that of x before the scaling",
            "One x stands in both places: divide it by D^¼ first, then take product and norm of the result.",
            "Random features",
        ),
        Misconception(
            "norm_not_squared",
            "the norm is not squared",
            "The exponent takes off |u|² / 2, not |u| / 2.",
            "Random features",
        ),
        Misconception(
            "squares_averaged",
            "the squares are averaged",
            "Sum them: |u|² is the sum of the D squares, `.sum(-1)`, not their mean.",
            "Random features",
        ),
        Misconception(
            "norm_of_products",
            "the squared norm is that of the projection",
            "|W x|² is another number, and grows with m. Take the norm of x itself, divided by D^¼.",
            "Random features",
        ),
        Misconception(
            "norm_of_all",
            "one norm is taken of all vectors together",
            "`.sum()` without an axis adds everything. Each vector has its own length: sum over the last axis and keep "
            "it, so that it lines up with the m features.",
            "Random features",
        ),
        Misconception(
            "no_ratio",
            "the features are not divided by √m",
            "The product of two feature vectors is a sum of m terms. Only with 1/√m on each side is it a mean, which "
            "estimates the kernel. Normalised attention hides this; the kernel does not.",
            "Random features",
        ),
        Misconception(
            "divided_by_m",
            "the features are divided by m",
            "Both sides carry the factor, so each takes 1/√m: together 1/m.",
            "Random features",
        ),
        Misconception(
            "divided_by_root_of_D",
            "the features are divided by √D",
            "m is the number of features, `projection.shape[0]`.",
            "Random features",
        ),
        Misconception(
            "no_scale",
            "x is not divided by D^¼",
            "The softmax kernel is exp(q · k / √D). Query and key each bring D^-¼ of it.",
            "Random features",
        ),
        Misconception(
            "scaled_by_root",
            "x is divided by √D",
            "Query and key both go through this map: √D twice divides their product by D. Each takes D^¼.",
            "Random features",
        ),
        Misconception(
            "power_without_brackets",
            "the power has no brackets, and x is divided by 4D",
            "A power binds first, then / goes from left to right: `x / D**1/4` is (x / D) / 4. Write `D**0.25`.",
            "Random features",
        ),
        Misconception(
            "root_without_brackets",
            "the power has no brackets, and x is divided by D/4",
            "`D**1/4` is (D**1)/4. Write `D**0.25`.",
            "Random features",
        ),
        Misconception(
            "product_not_scaled",
            "the product takes x before the scaling",
            "The exponent is w · u - |u|² / 2: w · u, not w · x.",
            "Random features",
        ),
        Misconception(
            "trigonometric",
            "it gives sines and cosines",
            "They estimate the same kernel, but can be negative, and are worst where the kernel is small: a divisor "
            "near 0 or below. The features here are exponentials.",
            "Random features",
        ),
        Misconception(
            "cosine",
            "it gives cosines instead of exponentials",
            "Cosines can be negative, and their estimate is worst where the kernel is small. The features here are "
            "exponentials.",
            "Random features",
        ),
        Misconception(
            "relu",
            "it gives the relu of the product",
            "That is Performer's other map. It is a kernel of its own and estimates no softmax.",
            "Random features",
        ),
        Misconception(
            "stabilised_by_token",
            "each token's largest exponent is subtracted",
            "For a query the factor cancels in the normaliser. For keys it does not: each key would count by "
            "another factor. Asked for is the plain map.",
            "Random features",
        ),
        Misconception(
            "stabilised_by_product",
            "each token's largest product is subtracted",
            "For a query the factor cancels in the normaliser. For keys it does not: each key would count by "
            "another factor. Asked for is the plain map.",
            "Random features",
        ),
        Misconception(
            "stabilised_over_all",
            "the largest exponent of all is subtracted",
            "It cancels in the normaliser, but in causal attention an early token's features would hang on later ones. "
            "Asked for is the plain map.",
            "Random features",
        ),
        Misconception(
            "epsilon_added",
            "1e-4 is added to every feature",
            "A common implementation does, against a divisor of 0. It adds a little attention to every key, and over a "
            "long sequence that sums up. Asked for is the plain map.",
            "Random features",
        ),
        Misconception(
            "projection_transposed",
            "the projection is transposed",
            "It is (m, D), one direction w in each row: multiply by its transpose. With m = D nothing crashes.",
            "Random features",
        ),
    ),
)

# --- orthogonal_rows --------------------------------------------------------------------------------------------


def orthogonal_rows(gaussian: Tensor, norms: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(gaussian)
    directions = Q * R.diagonal().sign()  # column j times the sign of R[j, j]
    return norms[:, None] * directions  # row i has length norms[i]


def faulty_orthogonal_rows(wrong: frozenset[str]) -> Callable:
    def orthogonal_rows(gaussian, norms):
        D = gaussian.shape[0]
        of_rows = "rows_orthogonalised" in wrong
        given = gaussian.T if of_rows or "of_transpose" in wrong else gaussian
        Q, R = torch.linalg.qr(given)
        if "triangle_returned" in wrong:
            Q = R
        signs = R.diagonal().sign()
        if "signs_of_diagonal" in wrong:
            signs = Q.diagonal().sign()
        if "no_signs" in wrong:
            signs = torch.ones_like(signs)
        if "diagonal_multiplies" in wrong:
            signs = R.diagonal()
        if "signs_of_all" in wrong:
            Q = Q * R.sign()
        elif "signs_on_rows" in wrong:
            Q = signs[:, None] * Q
        else:
            Q = Q * signs
        rows = Q.T if of_rows else Q
        if "not_orthogonal" in wrong:
            rows = given / given.norm(dim=1, keepdim=True)
        if "transposed" in wrong:
            rows = rows.T
        if "one_length" in wrong:
            norms = torch.full_like(norms, D**0.5)
        if "lengths_of_gaussian" in wrong:
            norms = given.norm(dim=1)
        if "norms_left_out" in wrong:
            return rows
        return rows * norms if "norms_on_columns" in wrong else rows * norms[:, None]

    return orthogonal_rows


def orthogonal_rows_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(10400 + seed)

    def arguments(D: int) -> dict[str, Tensor]:
        """A matrix far from singular, whose R has both signs on its diagonal."""
        while True:
            gaussian = inputs.normal(D, D)
            Q, R = torch.linalg.qr(gaussian)
            signs = R.diagonal().sign()
            mixed = signs.abs().min() > 0 and signs.min() < signs.max()
            if mixed and torch.linalg.cond(gaussian) < 60 and (Q.diagonal().sign() * signs).sum().abs() < D:
                break
        return {"gaussian": gaussian, "norms": inputs.normal(D, D).norm(dim=1)}

    def script(name: str, given: dict[str, Tensor], habit: str | None = None) -> Script:
        return one_call(name, given, habit, gradients=())  # drawn once, and not trained

    yield script("three directions", arguments(3))
    yield script("four directions", arguments(4))
    yield script("six directions", arguments(6))
    yield script("non-contiguous", {n: strided(t) if n == "gaussian" else t for n, t in arguments(5).items()},
                 "non-contiguous")  # fmt: skip
    yield script("float64", {n: t.double() for n, t in arguments(4).items()}, "float64")


def _rows_have_the_lengths(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[0].norm(dim=1), call.arguments["norms"], rtol=1e-3, atol=1e-3)


def _rows_are_orthogonal(call: Call, result: Result) -> bool:
    rows = result.outputs[0]
    products = rows @ rows.T
    lengths = rows.norm(dim=1)
    return bool(((products / (lengths[:, None] * lengths) - torch.eye(len(rows)).to(rows)).abs() < 1e-3).all())


def _triangle_has_a_positive_diagonal(call: Call, result: Result) -> bool:
    rows, gaussian = result.outputs[0], call.arguments["gaussian"]
    triangle = (rows / call.arguments["norms"][:, None]).T @ gaussian
    return bool((triangle.diagonal() > 0).all() and (triangle.tril(-1).abs() < 1e-3).all())


ORTHOGONAL_ROWS = Exercise(
    id="linear/orthogonal_rows",
    defines="orthogonal_rows",
    title="Make random directions orthogonal",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=orthogonal_rows_scripts,
    reference=orthogonal_rows,
    faulty=faulty_orthogonal_rows,
    outputs=(Output("projection", "D D"),),
    atol=1e-4,
    properties=(
        Property("any two rows are orthogonal", _rows_are_orthogonal),
        Property("row i has the length norms[i]", _rows_have_the_lengths),
        Property(
            "the rows divided by their lengths are the Q of the given matrix = QR, with R's diagonal positive",
            _triangle_has_a_positive_diagonal,
        ),
    ),
    habits={"non-contiguous": NON_CONTIGUOUS, "float64": FLOAT64},
    misconceptions=(
        Misconception(
            "no_signs",
            "the sign fix is missing",
            "The QR routine chooses the signs in R by its own rule, so the directions are not uniform and the estimate "
            "is biased. Multiply Q's columns by the signs of R's diagonal.",
            "Random features",
        ),
        Misconception(
            "signs_on_rows",
            "the signs multiply the rows of Q",
            "R[j, j] goes with column j of Q: `Q * signs`, which lines up with the last axis.",
            "Random features",
        ),
        Misconception(
            "signs_of_diagonal",
            "the signs are those of Q's diagonal",
            "What makes the decomposition unique is a positive diagonal of R: take the signs there.",
            "Random features",
        ),
        Misconception(
            "signs_of_all",
            "the signs of all of R multiply, not those of its diagonal",
            "`R.sign()` is (D, D), and 0 below the diagonal, so it wipes out part of Q. `R.diagonal().sign()` is (D,), "
            "one sign for each column.",
            "Random features",
        ),
        Misconception(
            "diagonal_multiplies",
            "the diagonal itself multiplies, not its sign",
            "The columns then differ in length, and the rows are no longer orthogonal. `R.diagonal().sign()` is 1 or "
            "-1, and changes no length.",
            "Random features",
        ),
        Misconception(
            "norms_on_columns",
            "the norms multiply the columns",
            "(D,) beside (D, D) lines up with the columns, and then the rows are no longer orthogonal. "
            "`norms[:, None]` lines up with the rows.",
            "Random features",
        ),
        Misconception(
            "norms_left_out",
            "every row has length 1",
            "The lengths of independent Gaussian rows vary. Give row i the length norms[i], or the kernel's estimate "
            "is off.",
            "Random features",
        ),
        Misconception(
            "one_length",
            "every row has length √D",
            "That is the usual length, and a known variant. Asked for are the lengths that are given.",
            "Random features",
        ),
        Misconception(
            "lengths_of_gaussian",
            "the rows have the lengths of the Gaussian matrix's rows",
            "Those are drawn together with the directions. Use `norms`, which are drawn apart from them.",
            "Random features",
        ),
        Misconception(
            "transposed",
            "the columns of Q are taken as rows",
            "Both are orthogonal, and a test would not tell them apart by that. Asked for are the rows of Q.",
            "Random features",
        ),
        Misconception(
            "of_transpose",
            "the transposed matrix is decomposed",
            "Its Q is another matrix. Give `torch.linalg.qr` the matrix as it is.",
            "Random features",
        ),
        Misconception(
            "rows_orthogonalised",
            "the rows of `gaussian` are orthogonalised",
            "That is the QR of the transposed matrix. It is just as random, but here the matrix is decomposed as it "
            "is; the rows of that Q are taken.",
            "Random features",
        ),
        Misconception(
            "not_orthogonal",
            "the rows are scaled, but not made orthogonal",
            "Random rows are nearly orthogonal only in many dimensions. QR makes them exactly so, and the estimate "
            "better with the same number of features.",
            "How many features",
        ),
        Misconception(
            "triangle_returned",
            "R takes the place of Q",
            "`torch.linalg.qr` returns Q, then R. Q has the orthogonal rows; R is triangular.",
            "Random features",
        ),
    ),
)

EXERCISES = (KERNEL_ATTENTION, UPDATE_STATE, CHUNK_ATTENTION, RANDOM_FEATURES, ORTHOGONAL_ROWS)
