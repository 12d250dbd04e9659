"""Exercises of chapter 07: a table of sines, turned pairs, a slope for every head, turned scores, and a test."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attncourse.checks.common import COMMON_HABITS, one_call
from attncourse.checks.script import Call, Result, Script
from attncourse.checks.spec import Exercise, Inputs, Misconception, Output, Property, ReverseExercise, Variant

CHAPTER = "07_positions"


# --- sine_table -------------------------------------------------------------------------------------------------


def sine_table(n_positions: int, d_model: int) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)  # (d_model / 2,)
    angles = torch.arange(n_positions)[:, None] * frequencies  # (n_positions, d_model / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def faulty_sine_table(wrong: frozenset[str]) -> Callable:
    def sine_table(n_positions, d_model):
        positions = torch.arange(n_positions, dtype=torch.float64) + ("positions_from_one" in wrong)
        even = torch.arange(0, d_model, 2, dtype=torch.float64)
        odd = even + 1 if "own_exponent" in wrong else even
        size = max(d_model - 2, 1) if "reaches_end" in wrong else d_model
        size = size * 2 if "exponent_half" in wrong else size
        size = size / 2 if "exponent_twice" in wrong else size
        sines = torch.sin(positions[:, None] / 10000 ** (even / size))
        cosines = torch.cos(positions[:, None] / 10000 ** (odd / size))
        parts = (cosines, sines) if "cosine_first" in wrong else (sines, cosines)
        table = torch.cat(parts, 1) if "halves" in wrong else torch.stack(parts, 2).flatten(1)
        return table.float()

    return sine_table


def sine_table_scripts(seed: int) -> Iterator[Script]:
    # No number of the answer depends on chance: the seed changes the sizes alone.
    more = seed % 4
    for name, n_positions, d_model in (
        ("three positions, four columns", 3, 4),
        ("more columns than positions", 5 + more, 12),
        ("as many columns as positions", 6, 6),
        ("eight columns", 10 + more, 8 + 2 * more),
        ("two columns", 7 + more, 2),
        ("one position", 1, 14),
    ):
        yield one_call(name, {"n_positions": n_positions, "d_model": d_model})


def _pairs_lie_on_a_circle(call: Call, result: Result) -> bool:
    table = result.outputs[0]
    return torch.allclose(table[:, 0::2] ** 2 + table[:, 1::2] ** 2, torch.ones(()), atol=1e-3)


def _position_0_is_known(call: Call, result: Result) -> bool:
    row = result.outputs[0][0]
    return bool((row[0::2].abs() < 1e-4).all() and ((row[1::2] - 1).abs() < 1e-4).all())


def _later_pairs_are_slower(call: Call, result: Result) -> bool:
    row = result.outputs[0][1:2]  # position 1; empty where there is none
    angles = torch.atan2(row[:, 0::2], row[:, 1::2])
    first, falling = (angles[:, :1] - 1).abs() < 1e-3, angles[:, 1:] < angles[:, :-1]
    return bool(first.all() and falling.all() and (angles > 0).all())


SINE_TABLE = Exercise(
    id="positions/sine_table",
    defines="sine_table",
    title="Build the table of sines",
    chapter=CHAPTER,
    difficulty=1,
    minutes=10,
    points=1,
    scripts=sine_table_scripts,
    reference=sine_table,
    faulty=faulty_sine_table,
    outputs=(Output("table", "n_positions d_model"),),
    atol=1e-4,
    properties=(
        Property("the row of position 0 is 0, 1, 0, 1, …", _position_0_is_known),
        Property(
            "columns 2i and 2i + 1 are sine and cosine of one angle: their squares sum to 1", _pairs_lie_on_a_circle
        ),
        Property(
            "at position 1 the first pair's angle is 1, and those of later pairs fall towards 0",
            _later_pairs_are_slower,
        ),
    ),
    misconceptions=(
        Misconception(
            "halves",
            "all sines come first, then all cosines",
            "The paper alternates: column 2i is a sine, column 2i + 1 its cosine. Both orders hold the same numbers, "
            "but a model trained with one cannot read the other.",
            "By hand",
        ),
        Misconception(
            "cosine_first",
            "the cosines stand in the even columns",
            "Columns 0, 2, 4, … are sines: the row of position 0 begins 0, 1.",
            "By hand",
        ),
        Misconception(
            "own_exponent",
            "a cosine has another frequency than its sine",
            "The two columns of a pair share one angle. Only then does a shift of the position turn the pair.",
            "By hand",
        ),
        Misconception(
            "exponent_half",
            "the exponent is i / d_model instead of 2i / d_model",
            "i counts pairs, so 2i / d_model runs from 0 to nearly 1, and the frequencies from 1 to nearly 1/10000.",
            "What follows the paper",
        ),
        Misconception(
            "exponent_twice",
            "the exponent is twice too large",
            "`arange(0, d_model, 2)` is 2i already, and d_model is the whole vector, not half of it: twice too large, "
            "the frequencies fall to nearly 1/10000².",
            "What follows the paper",
        ),
        Misconception(
            "reaches_end",
            "the last frequency is exactly 1/10000",
            "The exponent is 2i / d_model, whose last value is (d_model - 2) / d_model, a little less than 1.",
            "What follows the paper",
        ),
        Misconception(
            "positions_from_one",
            "positions are counted from 1",
            "The first row is position 0: sines 0, cosines 1.",
            "By hand",
        ),
    ),
)

# --- rotate_pairs -----------------------------------------------------------------------------------------------


def rotate_pairs(x: Tensor, positions: Tensor, base: float) -> Tensor:
    D = x.shape[-1]
    frequencies = base ** (-torch.arange(0, D, 2).to(x) / D)  # (D / 2,)
    angles = positions[..., None] * frequencies  # (T, D / 2)
    first, second = x.chunk(2, dim=-1)
    turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
    return torch.cat(turned, dim=-1)  # (B, H, T, D)


def faulty_rotate_pairs(wrong: frozenset[str], interleaved: bool = False) -> Callable:
    """interleaved: the layout asked for; the mistakes "other_layout" and "angles_of_other_layout" mean the other."""
    neighbours = interleaved != ("other_layout" in wrong)
    angles_of_neighbours = neighbours != ("angles_of_other_layout" in wrong)

    def halves(x, of_neighbours):
        return (x[..., 0::2], x[..., 1::2]) if of_neighbours else x.chunk(2, -1)

    def joined(first, second, of_neighbours):
        return torch.stack([first, second], -1).flatten(-2) if of_neighbours else torch.cat([first, second], -1)

    def rotate_pairs(x, positions, base):
        D = x.shape[-1]
        exponents = torch.arange(0, D, 2).to(x) / D
        exponents = exponents / 2 if "exponent_half" in wrong else exponents
        exponents = exponents * 2 if "exponent_twice" in wrong else exponents
        frequencies = (10000.0 if "base_ignored" in wrong else base) ** -exponents
        if "last_pair_left_out" in wrong:
            frequencies = torch.cat([frequencies[:-1], torch.zeros_like(frequencies[-1:])])
        if "offset_ignored" in wrong:
            positions = torch.arange(x.shape[-2])
        if "positions_from_one" in wrong:
            positions = positions + 1
        angles = positions[..., None] * frequencies
        angles = (
            joined(-angles, -angles, angles_of_neighbours)
            if "backwards" in wrong
            else joined(angles, angles, angles_of_neighbours)
        )  # one for each number, (T, D)
        (cos, cos_), (sin, sin_) = halves(angles.cos(), neighbours), halves(angles.sin(), neighbours)
        first, second = halves(x, neighbours)
        turned = first * cos + second * sin if "no_minus" in wrong else first * cos - second * sin
        other = (turned if "overwritten" in wrong else first) * sin_ + second * cos_
        return joined(turned, other, neighbours != ("laid_out_otherwise" in wrong))

    rotate_pairs.wrong = wrong  # so that the variant can make it in the other layout
    return rotate_pairs


def _neighbours(implementation: Callable) -> Callable:
    """rotate_pairs for pairs of neighbours. A known mistake is made anew: "the other layout" is another one there."""
    if hasattr(implementation, "wrong"):
        return faulty_rotate_pairs(implementation.wrong, interleaved=True)

    def rotate_pairs(x, positions, base):
        turned = implementation(torch.cat([x[..., 0::2], x[..., 1::2]], -1), positions, base)
        return torch.stack(turned.chunk(2, -1), -1).flatten(-2)

    return rotate_pairs


def rotate_pairs_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(3100 + seed)

    def arguments(B: int, H: int, T: int, D: int, base: float, positions: Tensor | None = None) -> dict:
        if positions is None:  # in order, with gaps, and not from 0
            positions = 1 + torch.randperm(28, generator=inputs.generator)[:T].sort().values
        return {"x": inputs.normal(B, H, T, D, spread=1.5), "positions": positions, "base": base}

    yield one_call("three tokens, two pairs", arguments(1, 2, 3, 4, 100.0))
    yield one_call("a batch, all sizes different", arguments(2, 3, 5, 6, 1000.0))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 20.0))
    yield one_call("positions from 0", arguments(2, 3, 6, 8, 10000.0, torch.arange(6)))
    yield one_call("one token", arguments(1, 2, 1, 48, 50.0))
    yield one_call("positions out of order", arguments(1, 3, 4, 10, 500.0, torch.tensor([9, 2, 30, 0])))
    loose = arguments(2, 3, 5, 8, 300.0)
    loose["x"] = loose["x"].transpose(1, 2).contiguous().transpose(1, 2)
    yield one_call("non-contiguous", loose, "non-contiguous")
    wide = arguments(1, 2, 3, 4, 100.0)
    yield one_call("float64", {**wide, "x": wide["x"].double()}, "float64")


def _lengths_are_kept(call: Call, result: Result) -> bool:
    return torch.allclose(result.outputs[0].norm(dim=-1), call.arguments["x"].norm(dim=-1), rtol=1e-3)


def _position_0_is_left(call: Call, result: Result) -> bool:
    there = call.arguments["positions"] == 0
    return torch.allclose(result.outputs[0][..., there, :], call.arguments["x"][..., there, :], atol=1e-3)


_OTHER = {
    "other_layout": "Half-split pairs number i with i + D/2, interleaved pairs 2i with 2i + 1: use the second here."
}

ROTATE_MISCONCEPTIONS = (
    Misconception(
        "other_layout",
        "it pairs numbers in the other layout",
        "Half-split pairs number i with i + D/2, interleaved pairs 2i with 2i + 1. The shape is the same and the "
        "scores are not: use the halves.",
        "Two layouts",
    ),
    Misconception(
        "angles_of_other_layout",
        "the pairs are of one layout and the angles of the other",
        "Both numbers of a pair turn by one angle. For half-split pairs the angles are joined, `cat([a, a])`; "
        "`repeat_interleave` is for neighbours.",
        "Two layouts",
    ),
    Misconception(
        "laid_out_otherwise",
        "the turned halves are laid out as neighbours",
        "Both numbers stay in their places: `torch.cat`, not `stack` and `flatten`, which are for pairs of neighbours.",
        "Two layouts",
    ),
    Misconception(
        "backwards",
        "the pairs turn backwards",
        "The first number becomes first · cos - second · sin: the minus stands there, not with the second.",
        "Turning pairs",
    ),
    Misconception(
        "no_minus",
        "the minus sign is missing",
        "first · cos - second · sin and first · sin + second · cos: without the minus it is no rotation, and lengths "
        "change.",
        "Turning pairs",
    ),
    Misconception(
        "overwritten",
        "the first number is overwritten before the second is computed",
        "Both need the old values: `x.chunk` and slices give views, so keep the two results apart and join them at the "
        "end.",
        "Turning pairs",
    ),
    Misconception(
        "exponent_half",
        "the exponent is i / D instead of 2i / D",
        "i counts pairs, of which there are D/2: with 2i / D the frequencies run from 1 to nearly 1/base.",
        "Turning pairs",
    ),
    Misconception(
        "exponent_twice",
        "the exponent is twice too large",
        "`arange(0, D, 2)` is 2i already, and D is the whole head, not half of it: twice too large, the slowest pairs "
        "hardly turn at all.",
        "Turning pairs",
    ),
    Misconception(
        "positions_from_one",
        "positions are counted from 1",
        "A token at position p turns by p times the frequency, and position 0 not at all. Scores hide this; keys in a "
        "cache do not.",
        "Turning pairs",
    ),
    Misconception(
        "offset_ignored",
        "the given positions are not used",
        "A token that comes after a hundred others stands at position 100, wherever it lies in x: use `positions`.",
        "Invariants",
    ),
    Misconception(
        "base_ignored",
        "the base is 10000, whatever is given",
        "Models differ in their base: take the argument.",
        "In real models",
    ),
    Misconception(
        "last_pair_left_out",
        "the last pair is not turned",
        "It is the slowest, and moves too: there are D/2 frequencies, i = 0 … D/2 - 1.",
        "Turning pairs",
    ),
)

ROTATE_PAIRS = Exercise(
    id="positions/rotate_pairs",
    defines="rotate_pairs",
    title="Turn the pairs",
    chapter=CHAPTER,
    difficulty=2,
    minutes=15,
    points=3,
    scripts=rotate_pairs_scripts,
    reference=rotate_pairs,
    faulty=faulty_rotate_pairs,
    outputs=(Output("turned", "B H T D"),),
    atol=1e-4,
    properties=(
        Property("turning keeps the length of every vector", _lengths_are_kept),
        Property("a token at position 0 is not turned", _position_0_is_left),
    ),
    habits=COMMON_HABITS,
    misconceptions=ROTATE_MISCONCEPTIONS,
    variants={
        "interleaved": Variant(
            statement="In this copy pairs are neighbours: number 2i goes with number 2i + 1, before and after turning.",
            argument=lambda name, value: value,
            wrap=_neighbours,
            titles={"laid_out_otherwise": "the turned neighbours are laid out as halves"},
            explanations={
                **_OTHER,
                "laid_out_otherwise": "Both numbers stay in their places: `stack` and `flatten`, not `torch.cat`, "
                "which is for halves.",
            },
        )
    },
)

# --- slope_bias -------------------------------------------------------------------------------------------------


def slope_bias(n_heads: int, T: int, S: int) -> Tensor:
    slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)  # (H,)
    distance = (torch.arange(S - T, S)[:, None] - torch.arange(S)).abs()  # (T, S)
    return -slopes[:, None, None] * distance  # (H, T, S)


def faulty_slope_bias(wrong: frozenset[str]) -> Callable:
    def slope_bias(n_heads, T, S):
        heads = torch.arange(n_heads) + (0 if "slopes_from_zero" in wrong else 1)
        slopes = 0.5 ** (heads * (1.0 if "slopes_of_eight" in wrong else 8 / n_heads))
        if "power_of_8_alone" in wrong:
            slopes = heads / n_heads * 0.5**8
        if "slopes_reversed" in wrong:
            slopes = slopes.flip(0)
        queries = torch.arange(T) + (0 if "top_left" in wrong else S - T)
        behind = queries.unsqueeze(1) - torch.arange(S)  # (T, S), negative for later keys
        distance = behind if "signed" in wrong else behind.abs()
        if "keys_only" in wrong:
            distance = -torch.arange(S).expand(T, S)
        if "future_left" in wrong:
            distance = distance.masked_fill(behind < 0, 0)
        if "self_lowered" in wrong:
            distance = distance + 1
        bias = slopes.view(-1, 1, 1) * (distance if "raised" in wrong else -distance)
        return bias.masked_fill(behind < 0, float("-inf")) if "future_forbidden" in wrong else bias

    return slope_bias


def slope_bias_scripts(seed: int) -> Iterator[Script]:
    # No number of the answer depends on chance: the seed changes the sizes alone.
    more = seed % 4
    for name, n_heads, T, S in (
        ("two heads, three queries, four keys", 2, 3, 4),
        ("four heads", 4, 3, 7 + more),
        ("as many of each", 8, 8, 8),
        ("as many queries as keys", 4, 5 + more, 5 + more),
        ("sixteen heads", 16, 5, 6 + more),
        ("one query", 4, 1, 11 + more),
        ("one head", 1, 3, 5 + more),
    ):
        yield one_call(name, {"n_heads": n_heads, "T": T, "S": S})


def _own_key_is_left(call: Call, result: Result) -> bool:
    return bool((result.outputs[0].diagonal(call.arguments["S"] - call.arguments["T"], 1, 2).abs() < 1e-6).all())


def _last_slope_is_known(call: Call, result: Result) -> bool:
    return bool((result.outputs[0][-1, -1, -2] + 2**-8).abs() < 1e-5)  # the last query and the key before it


def _nothing_is_raised(call: Call, result: Result) -> bool:
    return bool((result.outputs[0] <= 0).all())


SLOPE_BIAS = Exercise(
    id="positions/slope_bias",
    defines="slope_bias",
    title="Lower the scores with the distance",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=slope_bias_scripts,
    reference=slope_bias,
    faulty=faulty_slope_bias,
    outputs=(Output("bias", "H T S"),),
    properties=(
        Property("no score is raised", _nothing_is_raised),
        Property("a key at the query's own position is left as it is", _own_key_is_left),
        Property(
            "in the last head a key at distance 1 is lowered by 1/256, for any number of heads", _last_slope_is_known
        ),
    ),
    misconceptions=(
        Misconception(
            "top_left",
            "the queries are taken for the first positions",
            "The queries are the last T of S positions: query i stands at S - T + i. With a cache, T is less than S.",
            "A slope instead of an angle",
        ),
        Misconception(
            "raised",
            "distant keys are raised instead of lowered",
            "The bias is minus slope times distance: the farther, the lower.",
            "A slope instead of an angle",
        ),
        Misconception(
            "signed",
            "later keys are raised",
            "The distance has no sign: |i - j|. The bias is no mask, and a later key is lowered as an earlier one is.",
            "A slope instead of an angle",
        ),
        Misconception(
            "future_forbidden",
            "it forbids later keys too",
            "That is the mask's work, and this is a bias: every number is finite.",
            "A slope instead of an angle",
        ),
        Misconception(
            "future_left",
            "later keys are not lowered",
            "Behind a causal mask nobody sees it. Attention that reads to both sides needs the distance there too.",
            "A slope instead of an angle",
        ),
        Misconception(
            "keys_only",
            "the bias is slope times the key's position",
            "Under a causal mask the softmax comes to the same, since adding one number to a row changes nothing. "
            "Asked for is the distance.",
            "A slope instead of an angle",
        ),
        Misconception(
            "self_lowered",
            "the distance is one too large",
            "A query's own key is at distance 0 and is not lowered.",
            "A slope instead of an angle",
        ),
        Misconception(
            "slopes_from_zero",
            "the first slope is 1",
            "Heads are counted from 1 here: the slopes are 2^(-8/H), 2^(-16/H), …, 2^(-8).",
            "A slope instead of an angle",
        ),
        Misconception(
            "slopes_of_eight",
            "the slopes are 1/2, 1/4, 1/8, … for any number of heads",
            "Those are the slopes of eight heads. For H heads the exponents are -8h/H, and the last slope is 2^(-8).",
            "A slope instead of an angle",
        ),
        Misconception(
            "power_of_8_alone",
            "the power takes only -8",
            "Brackets: `2.0 ** (-8 * h / H)`.",
            "A slope instead of an angle",
        ),
        Misconception(
            "slopes_reversed",
            "the slopes are in the other order",
            "The first head has the steepest slope.",
            "A slope instead of an angle",
        ),
    ),
)

# --- rotary_scores ----------------------------------------------------------------------------------------------


def rotary_scores(query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor, base: float) -> Tensor:
    turned_query = rotate_pairs(query, query_positions, base)  # (B, H, T, D)
    turned_key = rotate_pairs(key, key_positions, base)  # (B, H, S, D)
    return turned_query @ turned_key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, H, T, S)


def faulty_rotary_scores(wrong: frozenset[str], interleaved: bool = False) -> Callable:
    """interleaved: the layout asked for."""
    turn = faulty_rotate_pairs(wrong & {"other_layout", "backwards", "base_ignored"}, interleaved)

    def rotary_scores(query, key, query_positions, key_positions, base):
        if wrong & {"query_restarts", "positions_ignored"}:
            query_positions = torch.arange(query.shape[-2])
        if "positions_ignored" in wrong:
            key_positions = torch.arange(key.shape[-2])
        if "key_backwards" in wrong:
            key_positions = -key_positions
        q = query if "query_not_turned" in wrong else turn(query, query_positions, base)
        k = key if "key_not_turned" in wrong else turn(key, key_positions, base)
        scores = torch.einsum("bhtd,bhsd->bhts", q, k)
        if "no_scale" not in wrong:
            scores = scores / query.shape[-1] ** (1.0 if "divided_by_d" in wrong else 0.5)
        return scores.softmax(-1) if "returns_weights" in wrong else scores

    rotary_scores.wrong = wrong  # so that the variant can make it in the other layout
    return rotary_scores


def _scores_of_neighbours(implementation: Callable) -> Callable:
    """rotary_scores for pairs of neighbours. A known mistake is made anew, as for rotate_pairs."""
    if hasattr(implementation, "wrong"):
        return faulty_rotary_scores(implementation.wrong, interleaved=True)

    def rotary_scores(query, key, query_positions, key_positions, base):
        query, key = (torch.cat([x[..., 0::2], x[..., 1::2]], -1) for x in (query, key))
        return implementation(query, key, query_positions, key_positions, base)

    return rotary_scores


def rotary_scores_scripts(seed: int) -> Iterator[Script]:
    inputs = Inputs(3300 + seed)

    def arguments(B: int, H: int, T: int, S: int, D: int, base: float, start: int) -> dict:
        return {
            "query": inputs.normal(B, H, T, D, spread=1.5),
            "key": inputs.normal(B, H, S, D, spread=1.5),
            "query_positions": start + torch.arange(S - T, S),  # the last T of S
            "key_positions": start + torch.arange(S),
            "base": base,
        }

    yield one_call("two queries, three keys", arguments(1, 2, 2, 3, 4, 100.0, 4))
    yield one_call("a batch, all sizes different", arguments(2, 3, 4, 7, 6, 1000.0, 0))
    yield one_call("all sizes equal", arguments(4, 4, 4, 4, 4, 20.0, 3))
    yield one_call("one query, as when generating", arguments(1, 2, 1, 13, 32, 50.0, 0))
    anywhere = arguments(2, 1, 3, 5, 8, 200.0, 0)
    anywhere["query_positions"] = torch.randperm(20, generator=inputs.generator)[:3]
    anywhere["key_positions"] = torch.randperm(20, generator=inputs.generator)[:5]
    yield one_call("positions out of order", anywhere)
    loose = arguments(2, 3, 4, 6, 8, 300.0, 2)
    loose |= {n: loose[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("query", "key")}
    yield one_call("non-contiguous", loose, "non-contiguous")
    wide = arguments(1, 2, 2, 3, 4, 100.0, 4)
    yield one_call("float64", wide | {n: wide[n].double() for n in ("query", "key")}, "float64")


def _same_position_is_no_turn(call: Call, result: Result) -> bool:
    given = call.arguments
    plain = given["query"] @ given["key"].mT / given["query"].shape[-1] ** 0.5
    same = (given["query_positions"][:, None] == given["key_positions"]).expand_as(plain)
    return torch.allclose(result.outputs[0][same], plain[same], rtol=1e-3, atol=1e-3)


ROTARY_SCORES = Exercise(
    id="positions/rotary_scores",
    defines="rotary_scores",
    title="Score turned queries and keys",
    chapter=CHAPTER,
    difficulty=2,
    minutes=10,
    points=2,
    scripts=rotary_scores_scripts,
    reference=rotary_scores,
    faulty=faulty_rotary_scores,
    outputs=(Output("scores", "B H T S"),),
    atol=1e-4,
    properties=(
        Property(
            "a query and a key at one position score as if neither were turned: q · k / √D", _same_position_is_no_turn
        ),
    ),
    habits=COMMON_HABITS,
    misconceptions=(
        Misconception(
            "query_restarts",
            "the queries' positions start at 0 again",
            "While a model writes, one new query meets many cached keys. It stands behind them: use `query_positions`.",
            "Invariants",
        ),
        Misconception(
            "positions_ignored",
            "queries and keys are both counted from 0, whatever is given",
            "The first query is rarely at the first key's position. Use the positions that are given.",
            "Invariants",
        ),
        Misconception(
            "key_not_turned",
            "only the queries are turned",
            "Then the score depends on the query's own position and not on the distance. Turn both.",
            "Turning pairs",
        ),
        Misconception(
            "query_not_turned",
            "only the keys are turned",
            "Then the score depends on the key's own position and not on the distance. Turn both.",
            "Turning pairs",
        ),
        Misconception(
            "key_backwards",
            "queries and keys turn in opposite directions",
            "Both turn the same way, and their product takes the difference of the angles. Turned in opposite "
            "directions it takes the sum.",
            "Invariants",
        ),
        Misconception(
            "other_layout",
            "it pairs numbers in the other layout",
            "Half-split pairs number i with i + D/2, interleaved pairs 2i with 2i + 1. The scores differ: use "
            "the halves.",
            "Two layouts",
        ),
        Misconception(
            "base_ignored",
            "the base is 10000, whatever is given",
            "Models differ in their base: take the argument.",
            "In real models",
        ),
        Misconception(
            "backwards",
            "the pairs turn backwards",
            "Look at your `rotate_pairs` first: exercise 2 must pass.",
            "Turning pairs",
        ),
        Misconception(
            "divided_by_d",
            "the scores are divided by D",
            "Divide once by √D, or query and key by D^¼ each.",
            "The code",
        ),
        Misconception(
            "no_scale",
            "the scores are not divided by √D",
            "A turned vector is as long as before, so the scale of chapter 03 is needed as before.",
            "The code",
        ),
        Misconception(
            "returns_weights",
            "it returns the weights, after the softmax",
            "Asked for are the scores; they may be negative and need not sum to 1.",
            "The code",
        ),
    ),
    variants={
        "interleaved": Variant(
            statement="In this copy pairs are neighbours: number 2i goes with number 2i + 1.",
            argument=lambda name, value: value,
            wrap=_scores_of_neighbours,
            explanations=_OTHER,
        )
    },
)

# --- test_rotate_pairs, a reverse exercise ----------------------------------------------------------------------


def _with_half_turned(x: Tensor, positions: Tensor, base: float) -> Tensor:
    x = x.to(_float(x))
    frequencies = 1.0 / base ** (torch.arange(0, x.shape[-1], 2).to(x) / x.shape[-1])
    angles = torch.cat([positions[..., None] * frequencies] * 2, dim=-1)  # (T, D)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def _by_complex_numbers(x: Tensor, positions: Tensor, base: float) -> Tensor:
    first, second = x.to(_float(x)).chunk(2, dim=-1)
    exponents = torch.arange(x.shape[-1] // 2).to(first) / (x.shape[-1] // 2)
    angles = positions[..., None] * base**-exponents
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def _by_matrices(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """One D x D matrix for every position."""
    x = x.to(_float(x))
    n = x.shape[-1] // 2
    angles = positions[..., None].to(x) * torch.exp(-math.log(base) / n * torch.arange(n).to(x))
    cos, sin = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())  # (T, D/2, D/2)
    matrices = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)  # (T, D, D)
    return (matrices @ x[..., None])[..., 0]


def _by_loops(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """One pair after the other."""
    turned, n = x.to(_float(x), copy=True), x.shape[-1] // 2
    for i in range(n):
        angle = positions.to(turned) * base ** (-i / n)
        turned[..., i] = x[..., i] * angle.cos() - x[..., i + n] * angle.sin()
        turned[..., i + n] = x[..., i] * angle.sin() + x[..., i + n] * angle.cos()
    return turned


def _in_float64(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return rotate_pairs(x.double(), positions, base).to(_float(x))


def _float(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


TEST_ROTATE_PAIRS = ReverseExercise(
    id="positions/test_rotate_pairs",
    defines="test_rotate_pairs",
    title="Write the test: which rotation is right?",
    chapter=CHAPTER,
    difficulty=3,
    minutes=20,
    points=4,
    right={
        "halves": rotate_pairs,
        "x · cos + (half turned) · sin": _with_half_turned,
        "complex numbers": _by_complex_numbers,
        "rotation matrices": _by_matrices,
        "loops": _by_loops,
        "computed in float64": _in_float64,
    },
    faulty=faulty_rotate_pairs,
    misconceptions=ROTATE_MISCONCEPTIONS,
)

EXERCISES = (SINE_TABLE, ROTATE_PAIRS, SLOPE_BIAS, ROTARY_SCORES, TEST_ROTATE_PAIRS)
