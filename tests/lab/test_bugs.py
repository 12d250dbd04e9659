"""The bug museum: every bug does harm, every repaired layer is what its definition says, and the tests catch what they
should."""

import inspect
import math
import re
import time
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attncourse.lab import bugs
from attncourse.lab.bugs import EXHIBITS, PROPERTIES, SITUATIONS, D, G, H, T, W

ROOT = Path(__file__).parents[2]
ROWS = {row["name"]: row for row in bugs.measured()}
BY_LAYER = [name for name, exhibit in EXHIBITS.items() if exhibit.measure is None]

CAUGHT = {
    "shared_heads": [],
    "merged_heads": ["influence", "chunks", "padding"],
    "tiled_masks": ["order", "padding"],
    "alignment": ["chunks"],
    "skipped_mask": ["chunks"],
    "inverted_mask": ["influence", "chunks", "padding"],
    "window": ["influence"],
    "half_fill": ["padding", "low_precision"],
    "empty_rows": ["padding"],
    "padding_axis": ["padding"],
    "softmax_axis": ["influence", "chunks"],
    "future_maximum": ["influence", "chunks", "padding"],
    "leaning_directions": [],
    "restarted": ["chunks"],
    "counted_padding": ["padding"],
    "low_angles": ["low_precision"],
    "other_pairs": [],
    "half_angles": ["order"],
    "rotated_heads": [],
    "repeated_cache": [],
    "dropout": ["chunks", "order", "padding", "low_precision"],
    "latent_scale": ["chunks"],
}


@pytest.mark.parametrize("name", BY_LAYER)
def test_the_bug_changes_outputs(name):
    assert ROWS[name]["difference"] > 0.1


def test_the_other_bugs_have_a_number_of_their_own():
    assert ROWS["repeated_cache"]["difference"] == H / G
    assert ROWS["leaning_directions"]["difference"] > 0.05 > 5 * bugs.leaning(signs=True)


@pytest.mark.parametrize("name", EXHIBITS)
def test_which_properties_catch_it(name):
    assert ROWS[name]["caught"] == CAUGHT[name]


def test_every_property_finds_a_bug_that_no_other_finds():
    alone = [found[0] for found in CAUGHT.values() if len(found) == 1]
    assert set(alone) == set(PROPERTIES)


@pytest.mark.parametrize("name", EXHIBITS)
def test_what_is_caught_is_far_above_the_tolerance_and_what_is_not_far_below(name):
    for side in ("wrong", "right"):
        for test, value in ROWS[name][side].items():
            tolerance = PROPERTIES[test].tolerance
            assert value < tolerance / 4 or value > tolerance * 10, (side, test)


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_repaired_layer_has_every_property(name):
    assert bugs.caught(ROWS[name]["right"]) == []


# ---- mutants of the layer and of the tests' own blind spots ----


def found_in(name, **parts):
    """What catches the layer with these parts, tested as the exhibit is."""
    return bugs.caught(bugs.tested(bugs.layer(absolute=EXHIBITS[name].absolute, **parts), EXHIBITS[name]))


@pytest.mark.parametrize(
    "name, sees",
    [
        ("window", lambda T, S, cached: bugs.sliding_window_mask(T, S, window=W - 1)),
        ("window", lambda T, S, cached: bugs.sliding_window_mask(T, S, window=1)),
        ("alignment", lambda T, S, cached: bugs.sliding_window_mask(T, S, window=1)),
        ("alignment", lambda T, S, cached: bugs.causal_mask(T, S) & (torch.arange(S) > 0)),
    ],
    ids=["a window one short", "only itself, of a window", "only itself", "the first token unseen"],
)
def test_influence_finds_what_should_be_seen_and_is_not(name, sees):
    assert "influence" in found_in(name, allowed=sees)


def test_chunks_find_padding_that_counts_or_is_seen_behind_a_cache_only():
    def hide(real, T):
        return bugs.hide(real, T) | (real.shape[1] > T)

    def positions(real, T):
        return (bugs.positions_with_padding if real.shape[1] > T else bugs.positions)(real, T)

    assert found_in("alignment", hide=hide) == ["chunks"]
    assert found_in("counted_padding", positions=positions) == ["chunks"]
    assert found_in("counted_padding") == found_in("alignment") == []


def test_an_error_of_any_common_kind_is_infinitely_far_and_so_is_a_layer_of_zeros():
    for kind in (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError):

        def broken(x, kind=kind, **_):
            raise kind("cannot run")

        assert set(bugs.tested(broken, EXHIBITS["alignment"]).values()) == {math.inf}
    for zeros in (lambda x, **_: x * 0, lambda x, **_: torch.zeros_like(x)):
        assert bugs.caught(bugs.tested(zeros, EXHIBITS["alignment"])) == ["influence", "low_precision"]


def test_the_leaning_layer_is_run_with_rows_of_its_own():
    exhibit, x = EXHIBITS["leaning_directions"], bugs.tokens(1, T)
    assert (exhibit.layer(wrong=True)(x) - exhibit.layer(wrong=False)(x)).abs().max() > 0.01
    assert ROWS["leaning_directions"]["wrong"] != ROWS["leaning_directions"]["right"]


def test_all_exhibits_take_seconds():
    start = time.process_time()  # of this process alone: the machine may be busy
    assert len(bugs.measured()) == len(EXHIBITS)
    assert time.process_time() - start < 5


# ---- what is right, by definition: loops over single numbers ----


def by_definition(x, *, real, offset=0, near=None, absolute=False, weight_of=None):
    """The grouped layer, one query at a time. x (B, T, 32) in float64, real (B, T)."""
    w = bugs.WEIGHTS
    out = torch.zeros_like(x)
    for b in range(len(x)):
        place = {j: n for n, j in enumerate(real[b].nonzero()[:, 0].tolist())}
        rows = {}
        for j, p in place.items():
            row = x[b, j]
            if absolute:
                angle = [p * 10000.0 ** (-2 * (i // 2) / 32) for i in range(32)]
                row = row + torch.tensor(
                    [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angle)], dtype=x.dtype
                )
            rows[j] = row

        def turned(vector, p):
            if absolute:
                return vector
            new = vector.clone()
            for i in range(D // 2):
                angle = (p + offset) * 10000.0 ** (-2 * i / D)
                a, c = vector[i], vector[i + D // 2]
                new[i] = a * math.cos(angle) - c * math.sin(angle)
                new[i + D // 2] = a * math.sin(angle) + c * math.cos(angle)
            return new

        for i in place:
            heads = []
            for h in range(H):
                g = h // (H // G)
                query = turned((rows[i] @ w["query"])[h * D : (h + 1) * D], place[i])
                total, sums = torch.zeros(D, dtype=x.dtype), 0.0
                for j in place:
                    if j > i or (near is not None and i - j >= near):
                        continue
                    key = turned((rows[j] @ w["key"])[g * D : (g + 1) * D], place[j])
                    value = (rows[j] @ w["value"])[g * D : (g + 1) * D]
                    weight = math.exp(query @ key / D**0.5) if weight_of is None else weight_of(query, key)
                    total, sums = total + weight * value, sums + weight
                heads.append(total / sums)
            out[b, i] = torch.cat(heads) @ w["out"]
    return out


def padded():
    return bugs.tokens(3, T), bugs.lengths_as_mask((8, 5, 0), left=True)


@pytest.mark.parametrize("offset", [0, 7])
def test_the_layer_by_definition(offset):
    x, real = padded()
    ours = bugs.layer()(x, real=real, offset=offset)
    assert (ours - by_definition(x, real=real, offset=offset)).abs().max() < 1e-12


def test_the_layer_with_a_window_and_with_absolute_positions_by_definition():
    x, real = padded()
    ours = bugs.layer(allowed=bugs.allowed_near)(x, real=real)
    assert (ours - by_definition(x, real=real, near=W)).abs().max() < 1e-12
    ours = bugs.layer(absolute=True)(x, real=real)
    assert (ours - by_definition(x, real=real, absolute=True)).abs().max() < 1e-6  # its sinusoids are float32


def test_the_kernel_layer_by_definition():
    rows = bugs.orthogonal_projection(bugs.FEATURES, D, seed=0, dtype=torch.float64)

    def weight_of(query, key):
        """The mean over directions of φ(q)·φ(k), nothing taken off."""
        q, k = query * D**-0.25, key * D**-0.25
        return sum(math.exp(row @ (q + k) - (q @ q + k @ k) / 2) for row in rows) / len(rows)

    x, real = padded()
    ours = EXHIBITS["future_maximum"].layer(wrong=False)(x, real=real)
    expected = by_definition(x, real=real, absolute=True, weight_of=weight_of)
    assert (ours - expected).abs().max() < 1e-5


def test_the_latent_layer_by_definition():
    """Every head's keys and values expanded, scaled by the root of a key's size; chunks take the absorbed form too."""
    x = bugs.tokens(2, T)
    w, n, r = bugs.WEIGHTS, bugs.N, bugs.R
    latent, query = x @ w["latent"], (x @ w["latent_query"]).unflatten(-1, (H, n + r))
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    turn = torch.polar(torch.ones_like(angle), angle)

    def turned(pairs):
        return torch.view_as_real(torch.view_as_complex(pairs.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    key_rope = turned(x @ w["key_rope"])
    heads = []
    for h in range(H):
        key = torch.cat([latent @ bugs.UP_KEY[h].T, key_rope], -1)
        asked = torch.cat([query[:, :, h, :n], turned(query[:, :, h, n:])], -1)
        scores = (asked @ key.mT / (n + r) ** 0.5).masked_fill(torch.ones(T, T).triu(1) == 1, -math.inf)
        heads.append(scores.softmax(-1) @ (latent @ bugs.UP_VALUE[h].T))
    expected = torch.cat(heads, -1) @ w["out"]
    exhibit = EXHIBITS["latent_scale"]
    assert (exhibit.layer(wrong=False)(x) - expected).abs().max() < 1e-12
    assert (exhibit.layer(wrong=True)(x) - expected).abs().max() > 0.01


# ---- single bugs, each by what it is known for ----


def test_abab():
    kv = torch.arange(G).view(1, G, 1, 1)
    assert bugs.share(kv, H).flatten().tolist() == [0, 0, 1, 1]
    assert bugs.share_in_turn(kv, H).flatten().tolist() == [0, 1, 0, 1]


def test_masks_tiled_go_to_other_samples_and_to_their_own_in_a_batch_of_one():
    real = bugs.lengths_as_mask((8, 5, 2), left=False)
    tiled, right = bugs.hide_by_tiling(real, T), bugs.hide(real, T).expand(3, H, 1, T)
    assert tiled[:, :, 0].sum(-1).tolist() == [[8, 5, 2, 8], [5, 2, 8, 5], [2, 8, 5, 2]]
    assert torch.equal(bugs.hide_by_tiling(real[:1], T), right[:1])


@pytest.mark.parametrize("rows, keys", [(1, 8), (3, 8), (8, 8)])
def test_the_switch_of_the_installed_pytorch_draws_from_the_top_left(rows, keys):
    query, key, value = torch.randn(3, 1, 1, keys, D).unbind(0)
    switched = F.scaled_dot_product_attention(query[:, :, :rows], key, value, is_causal=True)
    mask = bugs.allowed_top_left(rows, keys, True)
    drawn = F.scaled_dot_product_attention(query[:, :, :rows], key, value, attn_mask=mask)
    torch.testing.assert_close(switched, drawn, atol=1e-5, rtol=0)
    assert (rows == keys) == torch.equal(mask, bugs.allowed(rows, keys, True))


def test_single_tokens_hide_the_skipped_mask():
    x, f = bugs.tokens(1, T), EXHIBITS["skipped_mask"].layer(wrong=True)
    cache = bugs.Cache()
    steps = torch.cat([f(token, cache=cache) for token in x.split(1, 1)], 1)
    assert (steps - bugs.layer()(x)).abs().max() < 1e-12


def test_a_window_off_by_one_is_right_within_the_window():
    x, f = bugs.tokens(1, T), EXHIBITS["window"].layer(wrong=True)
    assert (f(x[:, :W]) - bugs.layer()(x[:, :W])).abs().max() < 1e-12


def test_minus_a_billion_fits_float32_and_bfloat16_alone():
    mask = torch.ones(2, 2, dtype=torch.bool).tril()
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(
            bugs.weigh_minus_a_billion(torch.zeros(2, 2, dtype=dtype), mask)[0], torch.eye(2)[0].to(dtype)
        )
    with pytest.raises(RuntimeError, match="overflow"):
        bugs.weigh_minus_a_billion(torch.zeros(2, 2, dtype=torch.half), mask)


def test_the_installed_pytorch_gives_nan_only_where_weights_are_asked_for():
    attention = nn.MultiheadAttention(D, 1, batch_first=True)
    x, everything = torch.randn(1, T, D), torch.ones(1, T, dtype=torch.bool)
    assert ROWS["empty_rows"]["library"] == math.inf
    quiet = attention(x, x, x, key_padding_mask=everything, need_weights=False)[0]
    assert quiet.isfinite().all()
    nothing = torch.zeros(T, T, dtype=torch.bool)
    assert (F.scaled_dot_product_attention(x, x, x, attn_mask=nothing) == 0).all()


def test_libraries_that_still_do_it():
    found = {name: row["library"] for name, row in ROWS.items() if row["library"] is not None}
    assert set(found) == {"alignment", "empty_rows", "dropout"} and min(found.values()) > 0.1


def test_the_finite_fill_hides_the_wrong_axis():
    """With minus infinity the same mask gives NaN, which someone would have seen."""
    x, real = padded()
    loud = bugs.layer(hide=bugs.hide_queries, weigh=bugs.weigh_to_nan)(x, real=real)
    assert loud.isnan().any() and EXHIBITS["padding_axis"].layer(wrong=True)(x, real=real).isfinite().all()


def test_a_late_key_moves_early_outputs_unless_epsilon_is_zero():
    key = bugs.tokens(2, T)[..., :D]
    other = key.clone()
    other[:, -1] = bugs.projection(key)[0] * D**0.25  # the key whose first exponent is as large as one can be

    def shares(key, epsilon):
        found = bugs.key_features_less_their_maximum(key, epsilon)[:, :-1]
        return found / found.sum(1, keepdim=True)

    assert (shares(other, 1e-4) - shares(key, 1e-4)).abs().max() > 1e-3
    assert (shares(other, 0.0) - shares(key, 0.0)).abs().max() < 1e-9


def test_detaching_the_maximum_blinds_the_gradient_but_not_the_chunks(monkeypatch):
    amax = torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda x, *args, **kwargs: amax(x, *args, **kwargs).detach())
    exhibit = EXHIBITS["future_maximum"]
    found = bugs.tested(exhibit.layer(wrong=True), exhibit)
    assert found["influence"] == 0 and "chunks" in bugs.caught(found)


def test_directions_without_signs_stand_in_one_half():
    wrong, right = (bugs.directions(2000, signs=signs) for signs in (False, True))
    assert torch.allclose(wrong @ wrong.mT, torch.eye(D, dtype=wrong.dtype).expand(2000, D, D), atol=1e-9)
    assert (wrong[:, 0, 0] < 0).double().mean() in (0, 1)
    assert abs((right[:, 0, 0] < 0).double().mean() - 0.5) < 0.05


def test_padding_that_counts_does_no_harm_to_rotations():
    x, real = padded()
    shifted = bugs.layer(positions=bugs.positions_with_padding)(x, real=real)
    assert (shifted - bugs.layer()(x, real=real)).abs().max() < 1e-12


def test_bfloat16_cannot_tell_far_positions_apart():
    assert torch.tensor([4000.0, 4001.0]).bfloat16().unique().numel() == 1
    assert ROWS["low_angles"]["right"]["low_precision"] < 2 < 100 < ROWS["low_angles"]["wrong"]["low_precision"]


def test_one_permutation_of_the_weights_makes_pairs_of_halves(monkeypatch):
    """What a conversion has to do, and did not: queries and keys reordered, and the bug is none."""
    new_order = torch.tensor([i // 2 + (i % 2) * (D // 2) for i in range(D)])
    x, right = bugs.tokens(1, T), bugs.layer()(bugs.tokens(1, T))
    for name, heads in (("query", H), ("key", G)):
        reordered = bugs.WEIGHTS[name].unflatten(1, (heads, D))[..., new_order].flatten(1)
        monkeypatch.setitem(bugs.WEIGHTS, name, reordered)
    assert (EXHIBITS["other_pairs"].layer(wrong=True)(x) - right).abs().max() < 1e-12


def test_two_angles_for_one_pair_keep_no_length_and_heads_hold_no_position():
    x = bugs.tokens(1, T)[:, None, :, :D]
    place = torch.arange(T)[None]
    for part, keeps in ((bugs.rotate, True), (bugs.rotate_pairs, True), (bugs.rotate_pairs_by_halves, False)):
        assert keeps == torch.allclose(part(x, place).norm(dim=-1), x.norm(dim=-1)), part.__name__
    heads = bugs.tokens(1, T).unflatten(-1, (H, D)).transpose(1, 2)
    assert torch.equal(bugs.rotate_by_head(heads, place), bugs.rotate_by_head(heads, place + 5))
    assert torch.equal(bugs.rotate_by_head(heads, place).flip(2), bugs.rotate_by_head(heads.flip(2), place))


def test_copies_change_no_output():
    x, real = padded()
    assert torch.equal(EXHIBITS["repeated_cache"].layer(wrong=True)(x, real=real), bugs.layer()(x, real=real))


# ---- sources, and the printed table ----


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_exhibit_has_a_source_a_date_and_a_state(name):
    exhibit = EXHIBITS[name]
    assert exhibit.name == name and exhibit.replaces and exhibit.shows in SITUATIONS
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", exhibit.source)
    assert re.fullmatch(r"20\d\d-\d\d", exhibit.reported)
    assert re.match(r"open|closed|fixed 20\d\d-\d\d|mended", exhibit.state)
    assert exhibit.happened.endswith(".") and len(exhibit.happened) < 120
    assert exhibit.reference in (
        f"issue {exhibit.source.split('/')[-1]}",
        f"pull request {exhibit.source.split('/')[-1]}",
    )


def test_other_reports_are_written_as_github_writes_them():
    also = [path for exhibit in EXHIBITS.values() for path in exhibit.also]
    assert len(set(also)) == len(also) > 8
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+/(issues|pull)/\d+", path) for path in also)
    assert EXHIBITS["shared_heads"].elsewhere == "apple/axlearn#842, ekzhang/jax-js#180"
    assert EXHIBITS["dropout"].elsewhere == ""


def test_there_are_enough_and_none_twice():
    assert len({exhibit.source for exhibit in EXHIBITS.values()}) == len(EXHIBITS) >= 10
    assert len({exhibit.title for exhibit in EXHIBITS.values()}) == len(EXHIBITS)


def test_the_wrong_lines_are_few():
    for exhibit in EXHIBITS.values():
        assert len(inspect.getsource(exhibit.wrong).splitlines()) <= 12, exhibit.name


def test_the_chapter_cites_every_source_under_its_heading():
    cells = nbformat.read(ROOT / "notebooks" / "17_bugs.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for exhibit in EXHIBITS.values():
        section = re.search(rf"^## {re.escape(exhibit.section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
        assert exhibit.source in section, exhibit.name


def test_the_command_prints_every_exhibit(capsys):
    bugs.main()
    out = capsys.readouterr().out
    assert all(exhibit.source in out for exhibit in EXHIBITS.values())
    assert f"{len(EXHIBITS)} exhibits, " in out
