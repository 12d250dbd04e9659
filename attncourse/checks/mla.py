"""Exercises of chapter 14: what a latent cache holds, the up-projection split and absorbed, scores and values."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call, strided
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, Variant
from attncourse.positions import RotaryEmbedding, apply_rotary

CHAPTER = "14_mla"


# --- cached_numbers ---------------------------------------------------------------------------------------------


def cached_numbers(
    n_layers: Tensor,
    n_heads: Tensor,
    q_lora_rank: Tensor,
    kv_lora_rank: Tensor,
    qk_nope_head_dim: Tensor,
    qk_rope_head_dim: Tensor,
    v_head_dim: Tensor,
) -> tuple[Tensor, Tensor]:
    in_a_layer = kv_lora_rank + qk_rope_head_dim  # (M,): one latent and one rotary key, whatever n_heads is
    return n_layers * in_a_layer, in_a_layer / (2 * v_head_dim)


def faulty_cached_numbers(wrong: frozenset[str], bytes_each: int = 1) -> Callable:
    """bytes_each: what every number is multiplied by in the first output."""

    def cached_numbers(L, H, Q, C, N, R, V):
        latent, rotary = C, 0 * R if "rope_left_out" in wrong else R
        if "latent_doubled" in wrong:
            latent = 2 * C
        if wrong & {"expanded", "expanded_rope_shared"}:
            latent = H * (N + V)
        if wrong & {"rope_per_head", "expanded"}:
            rotary = H * rotary
        if "query_latent" in wrong:
            latent = Q
        layer = latent + rotary
        if "query_added" in wrong:
            layer = layer + Q
        if "nope_added" in wrong:
            layer = layer + N
        times = (H if "heads_multiplied" in wrong else 1) * (2 if "doubled" in wrong else 1)
        layer, layers = times * layer, 1 if "layers_left_out" in wrong else L
        numbers = bytes_each * layer * layers
        if "rope_of_one_layer" in wrong:
            numbers = numbers - bytes_each * times * rotary * (layers - 1)
        if "numbers_doubled" in wrong:
            numbers = 2 * numbers
        head = 2 * V
        for name, other in (
            ("key_alone", V),
            ("head_of_query", 2 * (N + R)),
            ("wide_key", N + R + V),
            ("against_all_heads", 2 * H * V),
        ):
            head = other if name in wrong else head
        compared = latent if "rope_not_compared" in wrong else layer
        above = L * compared if "all_layers_compared" in wrong else compared
        if "upside_down" in wrong:
            above, head = head, above
        kv_heads = above // head if "whole_heads" in wrong else above / head
        if "rounded_down" in wrong:
            kv_heads = kv_heads.floor()
        if "no_brackets" in wrong:
            kv_heads = above / 2 * V
        return (kv_heads, numbers) if "returned_swapped" in wrong else (numbers, kv_heads)

    cached_numbers.wrong = wrong  # so that the variant can make it in the other unit
    return cached_numbers


def _in_bytes(implementation: Callable) -> Callable:
    """cached_numbers with two bytes for each number in its first output. A known mistake is made anew."""
    if hasattr(implementation, "wrong"):
        return faulty_cached_numbers(implementation.wrong, bytes_each=2)

    def cached_numbers(*shapes):
        numbers, kv_heads = implementation(*shapes)
        return 2 * numbers, kv_heads

    return cached_numbers


def cached_numbers_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(14000 + seed)
    names = ("n_layers", "n_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

    def script(name: str, *models: tuple[int, ...]) -> Script:
        columns = [torch.tensor(column) for column in zip(*models, strict=True)]
        return one_call(name, dict(zip(names, columns, strict=True)))

    def drawn() -> tuple[int, ...]:
        """A shape like that of a published model, its latent larger than a head."""
        low, high = (30, 8, 700, 300, 90, 40, 150), (60, 29, 900, 600, 140, 70, 220)
        pairs = zip(low, high, strict=True)
        return tuple(int(torch.randint(a, b, (1,), generator=inputs.generator)) for a, b in pairs)

    yield script("a small model", (3, 4, 32, 24, 8, 6, 10))
    yield script("two small models", (2, 5, 40, 20, 12, 4, 14), (7, 3, 16, 36, 10, 8, 9))
    yield script("the shapes of DeepSeek-V2 and V3", (60, 128, 1536, 512, 128, 64, 128),
                 (61, 128, 1536, 512, 128, 64, 128))  # fmt: skip
    yield script("five drawn shapes", *(drawn() for _ in range(5)))


def _more_than_the_latent(call: Call, result: Result) -> bool:
    return bool((result.outputs[0] > call.arguments["n_layers"] * call.arguments["kv_lora_rank"]).all())


def _as_much_as_gqa(call: Call, result: Result) -> bool:
    numbers, kv_heads = result.outputs
    stored = kv_heads * 2 * call.arguments["v_head_dim"] * call.arguments["n_layers"]
    ratio = numbers / stored
    return bool(((ratio - ratio.round()).abs() < 1e-3).all() and (ratio > 0.5).all())


CACHED_NUMBERS = Exercise(
    id="mla/cached_numbers",
    defines="cached_numbers",
    title="Count what the cache holds",
    chapter=CHAPTER,
    difficulty=1,
    minutes=10,
    points=2,
    scripts=cached_numbers_scripts,
    reference=cached_numbers,
    faulty=faulty_cached_numbers,
    outputs=(Output("numbers", "M"), Output("kv_heads", "M")),
    rtol=1e-6,
    properties=(
        Property("every layer keeps more than the latent alone", _more_than_the_latent),
        Property(
            "`numbers` and `kv_heads` fit together: GQA caches kv_heads · 2 · v_head_dim · n_layers numbers",
            _as_much_as_gqa,
        ),
    ),
    misconceptions=(
        Misconception(
            "rope_left_out",
            "the rotary key is left out",
            "Positions cannot go into the latent, so one rotated key of `qk_rope_head_dim` numbers is cached beside "
            "it. Many calculators forget it: 512 instead of 576 for DeepSeek-V3.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "heads_multiplied",
            "everything is counted once for every head",
            "All heads read the same latent and the same rotary key. The number of heads does not appear in the cache.",
            "One latent for all heads",
        ),
        Misconception(
            "rope_per_head",
            "every head has a rotary key of its own",
            "Every head has a rotary *query*. The rotary key is one for all heads, as in MQA.",
            "One latent for all heads",
        ),
        Misconception(
            "doubled",
            "keys and values are counted apart",
            "That is the 2 of MHA and GQA. Here keys and values both come from one latent, which is stored once.",
            "One latent for all heads",
        ),
        Misconception(
            "numbers_doubled",
            "the numbers are doubled, and the comparison is not",
            "If that 2 stands for keys and values: both come from one latent, which is stored once. If it stands for "
            "bytes: asked for are numbers.",
            "One latent for all heads",
        ),
        Misconception(
            "latent_doubled",
            "there is one latent for keys and one for values",
            "One latent serves both: the up-projection makes keys and values of the same C numbers.",
            "One latent for all heads",
        ),
        Misconception(
            "expanded",
            "the keys and values of all heads are counted",
            "That is what the latent could be expanded to, and what MHA would cache. MLA caches what they are made of.",
            "Down and up",
        ),
        Misconception(
            "expanded_rope_shared",
            "the up-projected keys and values of all heads are counted, with one rotary key",
            "Cached is the latent, before the up-projection. Keys and values need not exist at all while decoding.",
            "Down and up",
        ),
        Misconception(
            "query_added",
            "the query's latent is counted too",
            "A query is used once, at its own step, and nothing of it is kept. `q_lora_rank` saves parameters, not "
            "cache.",
            "Down and up",
        ),
        Misconception(
            "nope_added",
            "the key's part without position is counted beside the latent",
            "That part is made from the latent by the up-projection, so it is not stored.",
            "Down and up",
        ),
        Misconception(
            "layers_left_out",
            "it is the number of one layer",
            "Every layer has a latent of its own for every token: multiply by `n_layers`.",
            "In real models",
        ),
        Misconception(
            "key_alone",
            "a key-value head is counted as one vector",
            "A key-value head of GQA caches a key and a value: 2 · v_head_dim numbers.",
            "In real models",
        ),
        Misconception(
            "head_of_query",
            "the key-value head is as wide as MLA's query head",
            "MLA's queries have N + R numbers. Asked for is a comparison with key-value heads of `v_head_dim` numbers.",
            "In real models",
        ),
        Misconception(
            "wide_key",
            "the key-value head has a key of N + R numbers and a value of V",
            "That is the shape of MLA's own expanded heads. Asked for is a comparison with key-value heads whose key "
            "and value have `v_head_dim` numbers each.",
            "In real models",
        ),
        Misconception(
            "against_all_heads",
            "it is compared with keys and values of all heads",
            "That gives the share of an MHA cache, a number below 1. Asked for is how many key-value heads of GQA "
            "cache as much.",
            "In real models",
        ),
        Misconception(
            "all_layers_compared",
            "all layers are compared with one layer of GQA",
            "Compare layer with layer, or all with all: `n_layers` cancels.",
            "In real models",
        ),
        Misconception(
            "upside_down",
            "the comparison is upside down",
            "MLA's numbers go above, those of one key-value head below: the result is a number of heads.",
            "In real models",
        ),
        Misconception(
            "whole_heads",
            "the comparison is rounded down",
            "`//` gives whole numbers. DeepSeek-V3 caches as much as 2.25 key-value heads: divide with `/`.",
            "In real models",
        ),
        Misconception(
            "returned_swapped",
            "the two results are returned in the other order",
            "First what is cached, then the key-value heads.",
            "In real models",
        ),
        Misconception(
            "rope_of_one_layer",
            "the rotary key is counted for one layer only",
            "Every layer keeps a latent and a rotary key, so n_layers multiplies both, with brackets round the sum: "
            "`n_layers * (kv_lora_rank + qk_rope_head_dim)`.",
            "In real models",
        ),
        Misconception(
            "rope_not_compared",
            "the rotary key is left out of the comparison",
            "The GQA model is to cache as much as MLA does. In a layer that is C + R numbers, not C.",
            "In real models",
        ),
        Misconception(
            "rounded_down",
            "the comparison is rounded down",
            "The result need not be whole: DeepSeek-V3 caches as much as 2.25 key-value heads. Divide with `/`, and "
            "do not round (`//`, `floor` and `int` do).",
            "In real models",
        ),
        Misconception(
            "no_brackets",
            "the divisor has no brackets",
            "Python goes from left to right: `x / 2 * v` is (x / 2) · v. Write `x / (2 * v)`.",
            "In real models",
        ),
        Misconception(
            "query_latent",
            "the query's latent is counted, not that of keys and values",
            "Cached is what later queries read: the latent of keys and values, `kv_lora_rank` numbers. A query is "
            "used at its own step only.",
            "Down and up",
        ),
    ),
    variants={
        "bytes": Variant(
            statement="In this copy the first result is in bytes: every cached number is in bfloat16, 2 bytes.",
            argument=lambda name, value: value,
            wrap=_in_bytes,
            titles={"numbers_doubled": "the bytes are doubled, and the comparison is not"},
            explanations={
                "numbers_doubled": "A number takes 2 bytes, and no other 2 belongs there: keys and values both come "
                "from one latent, which is stored once.",
                "rope_of_one_layer": "Every layer keeps a latent and a rotary key, so n_layers multiplies both, with "
                "brackets round the sum: `2 * n_layers * (kv_lora_rank + qk_rope_head_dim)`.",
            },
        )
    },
)

# --- split_up_projection ----------------------------------------------------------------------------------------


def split_up_projection(weight: Tensor, n_heads: int, nope_dim: int) -> tuple[Tensor, Tensor]:
    by_head = weight.unflatten(0, (n_heads, -1))  # (H, N + V, C)
    return by_head[:, :nope_dim], by_head[:, nope_dim:]  # (H, N, C), (H, V, C)


def faulty_split_up_projection(wrong: frozenset[str], values_stand_first: bool = False) -> Callable:
    """values_stand_first: whether each head's rows of values stand before those of keys in what is given."""

    def split_up_projection(weight, n_heads, nope_dim):
        (rows, C), H, N = weight.shape, n_heads, nope_dim
        both = rows // H
        V = both - N
        values_first = values_stand_first != ("values_first" in wrong)
        if "columns_cut" in wrong:
            weight = weight.reshape(C, rows).T
        if "keys_of_all_first" in wrong:
            first, second = weight.split((H * V, H * N) if values_first else (H * N, H * V))
            first, second = first.reshape(H, -1, C), second.reshape(H, -1, C)
        else:
            heads_inside = "heads_inside" in wrong
            by_head = weight.reshape(both, H, C).transpose(0, 1) if heads_inside else weight.reshape(H, both, C)
            if "alternating" in wrong:
                first, second = by_head[:, 0::2], by_head[:, 1::2]
            elif "halved" in wrong:
                first, second = by_head[:, : both // 2], by_head[:, both // 2 :]
            else:
                first, second = by_head.split((V, N) if values_first else (N, V), 1)
        up_key, up_value = (second, first) if values_first else (first, second)
        if "transposed" in wrong:
            up_key, up_value = up_key.transpose(1, 2), up_value.transpose(1, 2)
        return (up_value, up_key) if "returned_swapped" in wrong else (up_key, up_value)

    split_up_projection.wrong = wrong  # so that the variant can make it in the other layout
    return split_up_projection


def _values_before_keys(implementation: Callable) -> Callable:
    """split_up_projection for heads whose rows of values stand first. A known mistake is made anew."""
    if hasattr(implementation, "wrong"):
        return faulty_split_up_projection(implementation.wrong, values_stand_first=True)

    def split_up_projection(weight, n_heads, nope_dim):
        by_head = weight.unflatten(0, (n_heads, -1))
        keys_first = torch.cat([by_head[:, -nope_dim:], by_head[:, :-nope_dim]], dim=1)
        return implementation(keys_first.flatten(0, 1), n_heads, nope_dim)

    return split_up_projection


def split_up_projection_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(14100 + seed)

    def arguments(H: int, N: int, V: int, C: int) -> dict:
        return {"weight": inputs.weight(H * (N + V), C), "n_heads": H, "nope_dim": N}

    yield one_call("two heads, values wider than keys", arguments(2, 3, 5, 4))
    yield one_call("three heads, keys wider than values", arguments(3, 6, 4, 7))
    yield one_call("keys and values of one size", arguments(3, 5, 5, 8))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4))
    yield one_call("many heads", arguments(7, 2, 6, 9))
    yield one_call("one head", arguments(1, 6, 10, 12))
    loose = arguments(2, 5, 3, 6)
    yield one_call("non-contiguous", {**loose, "weight": strided(loose["weight"])}, "non-contiguous")
    wide = arguments(2, 3, 5, 4)
    yield one_call("float64", {**wide, "weight": wide["weight"].double()}, "float64")


def _rows_keep_their_heads(call: Call, result: Result) -> bool:
    """Whether head h's key and value rows are those of its own part of the weight, in any order."""
    weight, H = call.arguments["weight"], call.arguments["n_heads"]
    given = weight.unflatten(0, (H, -1)).sum(1)
    return torch.allclose(torch.cat(result.outputs, 1).sum(1), given, rtol=1e-3, atol=1e-4)


SPLIT_UP_PROJECTION = Exercise(
    id="mla/split_up_projection",
    defines="split_up_projection",
    title="Split the up-projection",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=split_up_projection_scripts,
    reference=split_up_projection,
    faulty=faulty_split_up_projection,
    outputs=(Output("up_key", "H N C"), Output("up_value", "H V C")),
    properties=(
        Property(
            "head h gets rows h·(N + V) … h·(N + V) + N + V - 1 of the weight, and no others", _rows_keep_their_heads
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "keys_of_all_first",
            "the rows are cut into keys of all heads, then values of all heads",
            "Each head's rows stand together: its N of keys, then its V of values, then the next head. Cut by head "
            "first, and inside a head second.",
            "Down and up",
        ),
        Misconception(
            "heads_inside",
            "heads alternate row by row",
            "Rows h·(N + V) … belong to head h, all of them in one piece: `reshape(n_heads, N + V, C)`, heads first. "
            "(`chunk(n_heads)` cuts n_heads pieces; `split(n_heads)` cuts pieces of n_heads rows.)",
            "Down and up",
        ),
        Misconception(
            "values_first",
            "the rows of keys and those of values are taken for each other",
            "In each head the N rows of keys come first, then the V rows of values. With N = V nothing crashes.",
            "Down and up",
        ),
        Misconception(
            "halved",
            "each head's rows are cut in the middle",
            "A key's part without position has N numbers, a value V, and the two may differ: cut after `nope_dim` "
            "rows.",
            "Down and up",
        ),
        Misconception(
            "alternating",
            "rows of keys and values alternate",
            "They stand in two blocks: N of keys, then V of values.",
            "Down and up",
        ),
        Misconception(
            "transposed",
            "the two parts are transposed",
            "Asked for are the rows as they are, (H, N, C) and (H, V, C): a row makes one number of a key from the "
            "C of a latent.",
            "Down and up",
        ),
        Misconception(
            "columns_cut",
            "the weight is read as if it were (C, H·(N + V))",
            "`nn.Linear` keeps (outputs, inputs): the rows are the outputs, and the heads lie there. A reshape to "
            "(C, …) cuts the stored numbers into other rows.",
            "Down and up",
        ),
        Misconception(
            "returned_swapped",
            "values are returned before keys",
            "Return the keys' part first, then the values'.",
            "Down and up",
        ),
    ),
    variants={
        "values_first": Variant(
            statement="In this copy each head's rows hold the V of values first, then the N of keys. Return keys "
            "first all the same.",
            argument=lambda name, value: value,
            wrap=_values_before_keys,
            titles={"keys_of_all_first": "the rows are cut into values of all heads, then keys of all heads"},
            explanations={
                "keys_of_all_first": "Each head's rows stand together: its V of values, then its N of keys, then the "
                "next head. Cut by head first, and inside a head second.",
                "values_first": "In each head the V rows of values come first here, then the N rows of keys. With N = "
                "V nothing crashes.",
                "halved": "A key's part without position has N numbers, a value V, and the two may differ: cut "
                "`nope_dim` rows before the end.",
                "alternating": "They stand in two blocks: V of values, then N of keys.",
            },
        )
    },
)

# --- absorb_query -----------------------------------------------------------------------------------------------


def absorb_query(query_nope: Tensor, up_key: Tensor) -> Tensor:
    return torch.einsum("bhtn,hnc->bhtc", query_nope, up_key)


def _used_weight(up: Tensor, wrong: frozenset[str]) -> Tensor:
    """An up-projection (H, N, C) as the mistakes use it: what stands in its place, with the same axes."""
    H, N, C = up.shape
    if "transposed" in wrong:
        up = up.transpose(1, 2)
    if "reshaped" in wrong:
        up = up.reshape(H, C, N).transpose(1, 2)
    if "inverse" in wrong:
        up = torch.linalg.pinv(up).transpose(1, 2)
    if "one_head" in wrong:
        up = up[:1].expand_as(up)
    if "heads_summed" in wrong:
        up = up.sum(0, keepdim=True).expand_as(up)
    if "heads_averaged" in wrong:
        up = up.mean(0, keepdim=True).expand_as(up)
    return up


def faulty_absorb_query(wrong: frozenset[str]) -> Callable:
    def absorb_query(query_nope, up_key):
        used = _used_weight(up_key, wrong)
        query = query_nope / up_key.shape[1] ** 0.5 if "scaled" in wrong else query_nope
        if "time_for_heads" in wrong:
            return (query.transpose(1, 2) @ used).transpose(1, 2)
        return query @ used

    return absorb_query


def _well_posed(inputs: Inputs, *shape: int) -> Tensor:
    """Weights (H, N, C) whose inverses hold no large numbers, for the mistake that inverts them."""
    while True:
        weight = inputs.weight(*shape)
        if torch.linalg.cond(weight).max() < 30:
            return weight


def absorb_query_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(14200 + seed)

    def arguments(B: int, H: int, T: int, N: int, C: int) -> dict[str, Tensor]:
        return {"query_nope": inputs.normal(B, H, T, N, spread=2.0), "up_key": _well_posed(inputs, H, N, C)}

    yield one_call("two heads, three queries", arguments(1, 2, 3, 4, 6))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 5, 8))
    yield one_call("all sizes equal", arguments(3, 3, 3, 3, 3))
    yield one_call("a latent smaller than a head", arguments(2, 4, 3, 7, 5))
    yield one_call("one query, as when generating", arguments(2, 3, 1, 8, 16))
    loose = {name: strided(tensor) for name, tensor in arguments(2, 3, 4, 5, 8).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 3, 4, 6).items()}, "float64")


def _same_products(call: Call, result: Result) -> bool:
    """Whether a latent meets an absorbed query with the product that its up-projected key gives."""
    query, up = call.arguments.values()
    latent = torch.cos(torch.arange(1, up.shape[-1] + 1)).to(up)
    wanted = torch.einsum("bhtn,hn->bht", query, up @ latent)
    return torch.allclose(result.outputs[0] @ latent, wanted, rtol=1e-3, atol=1e-3)


ABSORB_QUERY = Exercise(
    id="mla/absorb_query",
    defines="absorb_query",
    title="Absorb the up-projection into the query",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=absorb_query_scripts,
    reference=absorb_query,
    faulty=faulty_absorb_query,
    outputs=(Output("absorbed", "B H T C"),),
    properties=(
        Property(
            "for any latent c, absorbed query times c is query times up-projected key: (Wᵀq) · c = q · (W c)",
            _same_products,
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "transposed",
            "the up-projection is transposed",
            "A head's weight is (N, C): N, the query's numbers, is the axis to sum over, and C is left. `query @ W` "
            "does it; `query @ W.mT` fits only where N = C.",
            "Absorbed",
        ),
        Misconception(
            "reshaped",
            "the up-projection is reshaped where its axes are to stay",
            "`reshape(H, C, N)` cuts the stored numbers into other rows. Only a transpose exchanges axes, and here "
            "none is needed.",
            "Absorbed",
        ),
        Misconception(
            "inverse",
            "the up-projection is inverted",
            "Nothing is undone: q · (W c) = (Wᵀq) · c moves W from one side of the product to the other, and there it "
            "is transposed. An inverse would give other scores.",
            "Absorbed",
        ),
        Misconception(
            "one_head",
            "the first head's up-projection is used for all",
            "Each head has its own part of the up-projection, (H, N, C). That is what lets heads differ though they "
            "share a latent.",
            "One latent for all heads",
        ),
        Misconception(
            "heads_summed",
            "the up-projections of all heads are added up",
            "In the einsum both need the same letter for heads, and the result too: else one of them is summed over. "
            "Head h of the query meets head h of the weight.",
            "Absorbed",
        ),
        Misconception(
            "heads_averaged",
            "the up-projections of all heads are averaged",
            "Each head has its own part of the up-projection; no head uses a mean of them.",
            "One latent for all heads",
        ),
        Misconception(
            "time_for_heads",
            "queries are taken for heads",
            "The query is (B, H, T, N): heads are axis 1 and queries axis 2. It lines up with (H, N, C) as it is.",
            "The code",
        ),
        Misconception(
            "scaled",
            "the result is divided by √N",
            "The scale belongs to the whole score, with √(N + R), and comes after both parts are added. Here is only "
            "the product.",
            "Absorbed",
        ),
    ),
)

# --- absorbed_scores --------------------------------------------------------------------------------------------


def absorbed_scores(query_nope: Tensor, query_rope: Tensor, latent: Tensor, key_rope: Tensor, up_key: Tensor) -> Tensor:
    (T, R), S = query_rope.shape[2:], latent.shape[1]
    rotary = RotaryEmbedding(R, interleaved=True)
    turned_query = apply_rotary(query_rope, torch.arange(S - T, S), rotary)  # (B, H, T, R): the last T of S positions
    turned_key = apply_rotary(key_rope, torch.arange(S), rotary)  # (B, S, R)
    absorbed = torch.einsum("bhtn,hnc->bhtc", query_nope, up_key)
    by_content = torch.einsum("bhtc,bsc->bhts", absorbed, latent)
    by_position = torch.einsum("bhtr,bsr->bhts", turned_query, turned_key)
    return (by_content + by_position) / (query_nope.shape[-1] + R) ** 0.5


def faulty_absorbed_scores(wrong: frozenset[str]) -> Callable:
    def absorbed_scores(query_nope, query_rope, latent, key_rope, up_key):
        N, C, R = query_nope.shape[-1], latent.shape[-1], query_rope.shape[-1]
        T, S = query_nope.shape[-2], latent.shape[-2]

        def turned(x, positions):
            rotary = RotaryEmbedding(x.shape[-1], interleaved="other_layout" not in wrong)
            return apply_rotary(x, positions, rotary)

        start = 0 if "query_restarts" in wrong else S if "query_behind_all" in wrong else S - T
        start = start + ("one_too_far" in wrong) - ("one_too_near" in wrong)
        query_positions, key_positions = start + torch.arange(T), torch.arange(S)
        if "one_position" in wrong:
            query_positions = query_positions[:1].expand(T)
        if "last_position" in wrong:
            query_positions = query_positions[-1:].expand(T)
        if "normalised_again" in wrong:
            latent = torch.nn.functional.rms_norm(latent, (C,))
        used = _used_weight(up_key, wrong)

        def shared(x):
            """What all heads read, beside an axis for heads: (B, 1, S, …)."""
            return x if "batch_for_heads" in wrong else x[:, None]

        read = shared(turned(latent, key_positions) if wrong & {"latent_turned", "both_turned"} else latent)
        keys = read @ used.transpose(1, 2) if wrong & {"nope_turned", "whole_turned"} else None  # (B, H, S, N)
        if "nope_turned" in wrong:
            by_content = turned(query_nope, query_positions) @ turned(keys, key_positions).transpose(2, 3)
        elif "latent_as_key" in wrong:
            by_content = query_nope @ read.mT
        elif "latent_cut" in wrong:
            by_content = query_nope @ read[..., :N].mT
        else:
            absorbed = query_nope @ used
            if "both_turned" in wrong:
                absorbed = turned(absorbed, query_positions)
            by_content = absorbed @ read.mT
        rotary_query = query_rope if "query_not_turned" in wrong else turned(query_rope, query_positions)
        rotary_key = key_rope if "key_not_turned" in wrong else turned(key_rope, key_positions)
        by_position = rotary_query @ shared(rotary_key).mT
        if "parts_scaled_apart" in wrong:
            by_content, by_position = by_content / N**0.5, by_position / R**0.5
        scores = by_content if "rope_left_out" in wrong else by_content + by_position
        if "whole_turned" in wrong:
            whole_query = turned(torch.cat([query_nope, query_rope], -1), query_positions)
            whole_key = torch.cat([keys, shared(key_rope).expand(*keys.shape[:-1], R)], -1)
            scores = whole_query @ turned(whole_key, key_positions).mT
        divisor = (N + R) ** 0.5
        if "content_left_out" in wrong:
            scores = by_position
        for name, other in (
            ("root_without_brackets", N + R**0.5),
            ("multiplied", 1 / divisor),
            ("root_of_c", C**0.5),
            ("no_scale", 1.0),
            ("parts_scaled_apart", 1.0),
            ("root_of_nope", N**0.5),
            ("root_of_latent", (C + R) ** 0.5),
            ("divided_without_root", N + R),
        ):
            divisor = other if name in wrong else divisor
        scores = scores / divisor
        if "position_divided_alone" in wrong:
            scores = by_content + by_position / divisor
        if "content_divided_alone" in wrong:
            scores = by_content / divisor + by_position
        if "masked" in wrong:
            scores = scores.masked_fill(key_positions > torch.arange(S - T, S)[:, None], float("-inf"))
        return scores.softmax(-1) if "returns_weights" in wrong else scores

    return absorbed_scores


def absorbed_scores_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(14300 + seed)

    def arguments(B: int, H: int, T: int, S: int, N: int, R: int, C: int) -> dict[str, Tensor]:
        return {
            "query_nope": inputs.normal(B, H, T, N, spread=2.0),
            "query_rope": inputs.normal(B, H, T, R, spread=2.0),
            "latent": inputs.normal(B, S, C, spread=1.2),
            "key_rope": inputs.normal(B, S, R, spread=1.2),
            "up_key": inputs.weight(H, N, C),
        }

    # N, R and C are even, so that a rotation of the wrong part is a mistake with a name and not an error.
    yield one_call("two queries, three keys", arguments(1, 2, 2, 3, 6, 4, 8))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 7, 6, 4, 10))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4, 4))
    yield one_call("as many queries as keys", arguments(1, 3, 5, 5, 4, 6, 8))
    yield one_call("one query, as when generating", arguments(1, 2, 1, 13, 6, 8, 14))
    loose = {name: strided(tensor) for name, tensor in arguments(2, 3, 4, 5, 6, 8, 10).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 2, 3, 6, 4, 8).items()}, "float64")


def _same_position_is_no_turn(call: Call, result: Result) -> bool:
    query_nope, query_rope, latent, key_rope, up_key = call.arguments.values()
    T, S = query_nope.shape[2], latent.shape[1]
    products = query_nope @ (latent[:, None] @ up_key.mT).mT + query_rope @ key_rope[:, None].mT
    plain = products / (query_nope.shape[-1] + query_rope.shape[-1]) ** 0.5
    same = (torch.arange(S - T, S)[:, None] == torch.arange(S)).expand_as(plain)
    return torch.allclose(result.outputs[0][same], plain[same], rtol=1e-3, atol=1e-3)


ABSORBED_SCORES = Exercise(
    id="mla/absorbed_scores",
    defines="absorbed_scores",
    title="Score the latents",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    scripts=absorbed_scores_scripts,
    reference=absorbed_scores,
    faulty=faulty_absorbed_scores,
    given=("attncourse.positions",),
    outputs=(Output("scores", "B H T S"),),
    atol=1e-4,
    properties=(
        Property(
            "where a query and a key stand at one position, p_i = j, the rotations cancel, and the score is "
            "(q · W c + q_rope · k_rope) / √(N + R) (look at the positions, at both parts and at the divisor)",
            _same_position_is_no_turn,
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "transposed",
            "the up-projection is transposed",
            "A head's weight is (N, C): the query's N numbers are summed over, and C is left. With N = C nothing "
            "crashes. Exercise 3 is this step.",
            "Absorbed",
        ),
        Misconception(
            "reshaped",
            "the up-projection is reshaped where its axes are to stay",
            "`reshape(H, C, N)` cuts the stored numbers into other rows. Only a transpose exchanges axes.",
            "Absorbed",
        ),
        Misconception(
            "one_head",
            "the first head's up-projection is used for all",
            "All heads share the latent, and each reads it through its own part of the up-projection, (H, N, C).",
            "One latent for all heads",
        ),
        Misconception(
            "heads_summed",
            "the up-projections of all heads are added up",
            "In the einsum the query and the weight need the same letter for heads, and the result too: else one of "
            "them is summed over.",
            "Absorbed",
        ),
        Misconception(
            "latent_as_key",
            "the query meets the latent itself, with no up-projection",
            "A latent is no key: a key is W c. Move W to the query first, (Wᵀq) · c. Without it the product does not "
            "even fit, unless N = C.",
            "Down and up",
        ),
        Misconception(
            "latent_cut",
            "the latent's first N numbers are taken for the key",
            "A latent is no key: every number of a key is made from all C of the latent, by the head's own "
            "up-projection.",
            "Down and up",
        ),
        Misconception(
            "rope_left_out",
            "the rotary part is missing",
            "A score has two parts: content, through the latent, and position, query_rope · key_rope. Without the "
            "second the model does not know where a key stands.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "key_not_turned",
            "the rotary key is not rotated",
            "`key_rope` is given as it leaves the projection. Rotate key j by position j; then the product takes the "
            "distance.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "query_not_turned",
            "the rotary query is not rotated",
            "Query and key are both rotated, each by its own position. With the key alone the score depends on where "
            "the key stands, and not on the distance.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "query_restarts",
            "the queries' positions start at 0 again",
            "The queries are the last T of S positions: query i stands at S - T + i, key j at j. A cache makes T less "
            "than S. (Keys counted from S - T come to the same.)",
            "Absorbed",
        ),
        Misconception(
            "query_behind_all",
            "the queries stand behind all S keys",
            "The S keys include those of the T queries themselves: query i stands at S - T + i, and the last query at "
            "the last key's position.",
            "Absorbed",
        ),
        Misconception(
            "other_layout",
            "the rotation pairs number m with number m + R/2",
            "That is Llama's layout. DeepSeek's pairs are neighbours, 2m and 2m + 1: `RotaryEmbedding(R, "
            "interleaved=True)`.",
            "What follows the paper",
        ),
        Misconception(
            "latent_turned",
            "the rotation is applied to the latent",
            "Then a matrix that depends on the position stands between W and c, and W cannot move to the query. The "
            "latent stays as it is; only the R numbers beside it are rotated.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "both_turned",
            "latent and absorbed query are rotated",
            "This depends on distances, but it is another score: keys made from a rotated latent are not rotated "
            "keys. Only the R numbers beside the latent are rotated.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "nope_turned",
            "the keys made from the latent are rotated too",
            "“nope” says it: this part has no position. Rotated it could not be absorbed, and every key would have to "
            "be made at every step.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "whole_turned",
            "the whole key and query are rotated, all N + R numbers",
            "Only the R numbers of the rotary part are. Rotated whole, as in chapter 07, the keys made from the latent "
            "carry a position, and the up-projection cannot move to the query.",
            "Why the rotation stands apart",
        ),
        Misconception(
            "batch_for_heads",
            "the latents of the batch are lined up with the heads",
            "Shapes line up on the right: (B, S, C) beside (B, H, T, C) pairs sequences with heads. Give what all "
            "heads share an axis of size 1 for them: `latent[:, None]`, and `key_rope[:, None]` too.",
            "The code",
        ),
        Misconception(
            "no_scale",
            "the scores are not divided by √(N + R)",
            "A score is a sum of N + R products, so its spread grows with the root of that.",
            "Absorbed",
        ),
        Misconception(
            "root_of_nope",
            "the scores are divided by √N alone",
            "The whole key of a head has N + R numbers, the rotary ones included: divide by √(N + R).",
            "Absorbed",
        ),
        Misconception(
            "root_of_latent",
            "the scores are divided by √(C + R)",
            "Absorbing changes how a score is computed and not its value: it is still a product of N + R numbers, so "
            "√(N + R), though the absorbed query has C.",
            "Absorbed",
        ),
        Misconception(
            "parts_scaled_apart",
            "each part is divided by the root of its own size",
            "The two parts are one product of N + R numbers, cut in two. Add them, then divide by √(N + R).",
            "Absorbed",
        ),
        Misconception(
            "divided_without_root",
            "the scores are divided by N + R",
            "Divide by the square root: √(N + R).",
            "Absorbed",
        ),
        Misconception(
            "returns_weights",
            "it returns the weights, after the softmax",
            "Asked for are the scores; they may be negative and need not sum to 1.",
            "The code",
        ),
        Misconception(
            "one_too_far",
            "the queries stand one position too far from the keys",
            "Positions count from 0 for both: the last query stands at S - 1, as the last key does. The distance "
            "of a query to its own token's key is 0.",
            "Absorbed",
        ),
        Misconception(
            "one_too_near",
            "the queries stand one position before the keys of their own tokens",
            "Queries and keys count positions alike, both from 0: query i stands at S - T + i, key j at j.",
            "Absorbed",
        ),
        Misconception(
            "one_position",
            "all queries are rotated by the first one's position",
            "Each query has a position of its own: `torch.arange(S - T, S)`.",
            "Absorbed",
        ),
        Misconception(
            "last_position",
            "all queries are rotated by the last position",
            "S - 1 is the position of the last query alone. With one query nothing else shows; several queries have "
            "each a position of their own: `torch.arange(S - T, S)`.",
            "Absorbed",
        ),
        Misconception(
            "normalised_again",
            "the latent is normalised a second time",
            "`latent` is given normalised already, as a cache holds it.",
            "Down and up",
        ),
        Misconception(
            "position_divided_alone",
            "only the position is divided by √(N + R)",
            "Without brackets `/` takes the last part only. The whole sum is divided: `(content + position) / …`.",
            "Absorbed",
        ),
        Misconception(
            "content_divided_alone",
            "only the content is divided by √(N + R)",
            "The whole sum is divided: add the two parts first, then divide.",
            "Absorbed",
        ),
        Misconception(
            "content_left_out",
            "the content is missing",
            "A score has two parts: content, (Wᵀq) · c, and position. Without the first the model does not know what "
            "stands there.",
            "Absorbed",
        ),
        Misconception(
            "root_without_brackets",
            "the root is taken of R alone",
            "A power binds tighter than a sum: `N + R ** 0.5` is N + √R. Write `(N + R) ** 0.5`.",
            "Absorbed",
        ),
        Misconception(
            "multiplied",
            "the scores are multiplied by √(N + R), not divided",
            "Divide by `(N + R) ** 0.5`, or multiply by `(N + R) ** -0.5`.",
            "Absorbed",
        ),
        Misconception(
            "root_of_c",
            "the scores are divided by √C",
            "Absorbing changes how a score is computed and not its value: it is still a product of N + R numbers, so "
            "√(N + R), though the absorbed query has C.",
            "Absorbed",
        ),
        Misconception(
            "masked",
            "later keys are masked",
            "Asked for are the scores of all S keys, later ones too. In a model the mask comes next, and then the "
            "softmax.",
            "Absorbed",
        ),
    ),
)

# --- absorbed_values --------------------------------------------------------------------------------------------


def absorbed_values(weights: Tensor, latent: Tensor, up_value: Tensor) -> Tensor:
    mixed = weights @ latent[:, None]  # (B, H, T, C): a weighted mean of latents, for each head and query
    return torch.einsum("bhtc,hvc->bhtv", mixed, up_value)


def faulty_absorbed_values(wrong: frozenset[str]) -> Callable:
    def absorbed_values(weights, latent, up_value):
        V, S = up_value.shape[1], latent.shape[1]
        used = _used_weight(up_value, wrong)
        if "softmax_again" in wrong:
            weights = weights.softmax(-1)
        if "weights_averaged" in wrong:
            weights = weights.mean(1, keepdim=True).expand_as(weights)
        if "unweighted_sum" in wrong:
            weights = torch.ones_like(weights)
        if "unweighted_mean" in wrong:
            weights = torch.full_like(weights, 1 / S)
        if "largest_only" in wrong:
            weights = (weights == weights.amax(-1, keepdim=True)).to(weights)
        shared = latent if "batch_for_heads" in wrong else latent[:, None]
        mixed = (weights.mT if "weights_transposed" in wrong else weights) @ shared
        if "not_projected" in wrong:
            return mixed
        if "latent_cut" in wrong:
            return mixed[..., :V]
        return mixed @ used.transpose(1, 2)

    return absorbed_values


def absorbed_values_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(14400 + seed)

    def arguments(B: int, H: int, T: int, S: int, C: int, V: int) -> dict[str, Tensor]:
        scores = inputs.normal(B, H, T, S, spread=2.0)
        later = torch.arange(S) > torch.arange(S - T, S)[:, None]
        return {
            "weights": scores.masked_fill(later, float("-inf")).softmax(-1),
            "latent": inputs.normal(B, S, C, spread=2.0),
            "up_value": inputs.weight(H, V, C),
        }

    yield one_call("two queries, three keys", arguments(1, 2, 2, 3, 5, 4))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 6, 8, 5))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 4))
    yield one_call("as many queries as keys", arguments(2, 3, 5, 5, 7, 4))
    yield one_call("one query, as when generating", arguments(2, 3, 1, 11, 12, 7))
    loose = {name: strided(tensor) for name, tensor in arguments(2, 3, 4, 6, 8, 5).items()}
    yield one_call("non-contiguous", loose, "non-contiguous")
    yield one_call("float64", {n: t.double() for n, t in arguments(1, 2, 2, 3, 5, 4).items()}, "float64")


def _outputs_are_averages(call: Call, result: Result) -> bool:
    _, latent, up_value = call.arguments.values()
    values = latent[:, None] @ up_value.mT  # (B, H, S, V)
    lowest, highest = values.amin(2, keepdim=True) - 1e-3, values.amax(2, keepdim=True) + 1e-3
    return bool(((result.outputs[0] > lowest) & (result.outputs[0] < highest)).all())


ABSORBED_VALUES = Exercise(
    id="mla/absorbed_values",
    defines="absorbed_values",
    title="Weigh the latents, then project up",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=absorbed_values_scripts,
    reference=absorbed_values,
    faulty=faulty_absorbed_values,
    outputs=(Output("output", "B H T V"),),
    properties=(
        Property(
            "an output is an average of the head's up-projected values: between their smallest and their largest",
            _outputs_are_averages,
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "transposed",
            "the up-projection is transposed",
            "A head's weight is (V, C): the latent's C numbers are summed over, and V is left. `mixed @ W.mT` does "
            "it; `mixed @ W` fits only where V = C.",
            "Absorbed",
        ),
        Misconception(
            "reshaped",
            "the up-projection is reshaped where it should be transposed",
            "`reshape(H, C, V)` cuts the stored numbers into other rows; `.mT` exchanges the axes.",
            "Absorbed",
        ),
        Misconception(
            "not_projected",
            "the mixed latent is returned, with no up-projection",
            "A latent is no value: after the weighted sum, each head's own up-projection makes V numbers of its C.",
            "Down and up",
        ),
        Misconception(
            "latent_cut",
            "the mixed latent's first V numbers are taken for the value",
            "A latent is no value: every number of a value is made from all C of the latent, by the head's own "
            "up-projection.",
            "Down and up",
        ),
        Misconception(
            "one_head",
            "the first head's up-projection is used for all",
            "All heads share the latent, and each reads it through its own part of the up-projection, (H, V, C).",
            "One latent for all heads",
        ),
        Misconception(
            "heads_summed",
            "the up-projections of all heads are added up",
            "In the einsum the mixed latent and the weight need the same letter for heads, and the result too: else "
            "one of them is summed over.",
            "Absorbed",
        ),
        Misconception(
            "unweighted_sum",
            "the latents are added up, without the weights",
            "The weights say how much of each latent a query takes: `weights @ latent`, with an axis for heads put "
            "into the latent.",
            "Absorbed",
        ),
        Misconception(
            "unweighted_mean",
            "every latent gets the same weight",
            "A plain mean does not look at the weights: a query takes much of one latent and little of another.",
            "Absorbed",
        ),
        Misconception(
            "weights_transposed",
            "the weights are summed over the queries",
            "weights[b, h, i, j] belongs to query i and key j, so the sum runs over the last axis. With T = S nothing "
            "crashes.",
            "Absorbed",
        ),
        Misconception(
            "batch_for_heads",
            "the latents of the batch are lined up with the heads",
            "Shapes line up on the right: (B, S, C) beside (B, H, T, S) pairs sequences with heads. Give the latent an "
            "axis of size 1 for the heads: `latent[:, None]`.",
            "The code",
        ),
        Misconception(
            "weights_averaged",
            "all heads use the mean of their weights",
            "The latent is shared, the weights are not: each head looks where it wants.",
            "One latent for all heads",
        ),
        Misconception(
            "softmax_again",
            "the weights go through a softmax again",
            "They are given after the softmax: they sum to 1 already, and forbidden keys have 0.",
            "Absorbed",
        ),
        Misconception(
            "largest_only",
            "each query takes only the latent of its largest weight",
            "Attention is a weighted mean of all latents, which is also what makes the weights trainable.",
            "Absorbed",
        ),
    ),
)

EXERCISES = (CACHED_NUMBERS, SPLIT_UP_PROJECTION, ABSORB_QUERY, ABSORBED_SCORES, ABSORBED_VALUES)
