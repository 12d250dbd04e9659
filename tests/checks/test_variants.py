"""An instructor's copy under another convention is judged by that convention."""

import math
import re

import pytest
import torch

from attncourse.checks import evaluate, exercise
from attncourse.checks.report import Report
from attncourse.grading.telling import tell
from tests.checks import implementations, matrix

SOFTMAX = "bahdanau/masked_softmax"
VARIANTS = [(spec.id, name) for spec in implementations() for name in spec.variants]


def names(verdict):
    return [mistake.name for mistake in verdict.mistakes]


def forbidding(scores, mask):
    """Right where True forbids."""
    scores = torch.where(mask, -math.inf, scores)
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min))
    return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def test_there_is_a_variant():
    assert (SOFTMAX, "forbid") in VARIANTS


def test_a_right_answer_in_the_variant_passes_there_without_advice_and_not_in_the_original():
    verdict = evaluate(SOFTMAX, forbidding, "forbid")
    assert verdict.passed and verdict.advice == () and verdict.points == 3
    assert names(evaluate(SOFTMAX, forbidding)) == ["mask_inverted"]


@pytest.mark.parametrize("style", list(matrix.rewritings(SOFTMAX)))
def test_right_answers_of_the_original_have_the_mask_inverted_in_the_variant(style):
    verdict = evaluate(SOFTMAX, matrix.answers("bahdanau").rewritings[SOFTMAX, style], "forbid")
    assert not verdict.passed
    assert names(verdict) == ["mask_inverted"]


@pytest.mark.parametrize("name", [m.name for m in exercise(SOFTMAX).misconceptions if m.name != "mask_inverted"])
def test_other_mistakes_are_named_in_the_variant_too(name):
    mutant = matrix.answers("bahdanau").mutants[SOFTMAX, name]
    verdict = evaluate(SOFTMAX, lambda scores, mask: mutant(scores, ~mask), "forbid")
    assert not verdict.passed
    assert names(verdict) == [name]


@pytest.mark.parametrize("name", ["mask_multiplies", "mask_added"])
def test_what_uses_the_mask_as_numbers_is_two_mistakes_where_true_forbids(name):
    """`scores + mask` with True forbidding: the mask is added, and it is in the other sense."""
    verdict = evaluate(SOFTMAX, matrix.answers("bahdanau").mutants[SOFTMAX, name], "forbid")
    assert not verdict.passed
    assert set(names(verdict)) == {name, "mask_inverted"}


def test_habits_give_advice_in_the_variant_too():
    verdict = evaluate(SOFTMAX, lambda scores, mask: forbidding(scores.detach(), mask), "forbid")
    assert verdict.passed and len(verdict.advice) == 1 and "`scores`" in verdict.advice[0]


@pytest.mark.parametrize(("id", "variant"), VARIANTS)
def test_every_variant_says_what_changes_and_judges_its_own_reference_and_mistakes(id, variant):
    original, spec = exercise(id), exercise(id).variant(variant)
    assert original.variants[variant].statement.strip().endswith(".")
    assert (spec.id, spec.points, spec.defines) == (original.id, original.points, original.defines)
    assert evaluate(id, spec.reference, variant).passed
    assert not evaluate(id, original.reference, variant).passed
    for misconception in spec.misconceptions:
        verdict = evaluate(id, spec.faulty(frozenset([misconception.name])), variant)
        assert not verdict.passed and misconception.name in names(verdict)


def test_an_unknown_variant_is_an_error_of_the_instructor():
    with pytest.raises(ValueError, match=r"has no variant 'keep'; it has \['forbid'\]"):
        evaluate(SOFTMAX, forbidding, "keep")
    with pytest.raises(ValueError, match="it has none"):
        evaluate("bahdanau/context_vector", torch.matmul, "forbid")


DENIED = {  # what no text may say in a variant, and the exercise's own texts do say
    (SOFTMAX, "forbid"): "True means: may",
    ("self_attention/scaled_scores", "temperature"): None,
    ("cross_attention/attend_to_context", "left_padded"): "j < length|at 0 and 1|last real token",
    ("causal/look_back_mask", "forbid"): "True means: may|True where the key is not|`<=`",
    ("multi_head/split_into_heads", "interleaved"): r"the heads are interleaved|\(B, T, H, D\), then|gets neighbours",
    ("positions/rotate_pairs", "interleaved"): "use the halves|the turned halves|: `torch.cat`",
    ("positions/rotary_scores", "interleaved"): "use the halves",
    ("sliding_window/near_mask", "before"): r"W \+ 1 … p|< W\b|window \+ 1|counts the token itself: p",
    ("sparse/strided_pattern", "self_not_counted"): r"`< window`|window - 1|window \+ 1|of `window` see",
    ("sparse/global_pattern", "paper"): "< window|window - 1|the paper counts so",
    ("linear/update_state", "exclusive"): None,
    ("kv_cache/cache_bytes", "bits"): "one of float32 four|given in bytes",
    ("gqa/repeat_kv", "tiled"): r"h // n_repeats|right after the key heads|\(B, G, n_repeats, S, D\)|::n_repeats",
    ("mla/cached_numbers", "bytes"): "asked for are numbers|`n_layers [*]",
    ("mla/split_up_projection", "values_first"): "N of keys, then its? ?V|keys come first|cut after|N of keys, then V",
    ("execution/blocks_needed", "own_lengths"): "has the prompt in it|counts all tokens|has it in it",
    ("choosing/matched_width", "gated"): r"has two matrices|// \(?2|divided by 2",
    ("choosing/pareto_front", "score"): "lower loss|of low loss|same loss|lowest|order of losses",
}


@pytest.mark.parametrize(("id", "variant"), VARIANTS)
def test_what_is_told_of_a_mistake_in_a_variant_does_not_deny_the_task(id, variant):
    """A variant that is new needs a line above: read what is told of its exercise's mistakes."""
    denied, spec = DENIED[id, variant], exercise(id)
    changed = spec.variants[variant]
    assert {*changed.titles, *changed.explanations} <= {mistake.name for mistake in spec.misconceptions}
    own, told = (
        [f"{mistake.title}. {mistake.explanation}" for mistake in some.misconceptions]
        for some in (spec, spec.variant(variant))
    )
    if denied:
        assert [text for text in own if re.search(denied, text)]
        assert [text for text in told if re.search(denied, text)] == []
    else:
        assert own == told
    mistake = spec.variant(variant).misconceptions[0]
    verdict = evaluate(id, spec.variant(variant).faulty(frozenset([mistake.name])), variant)
    assert mistake.explanation in str(Report(verdict))
    assert mistake.explanation in [m["explanation"] for m in tell(verdict, [], {}, True)["mistakes"]]


def test_a_published_answer_is_named_where_heads_are_interleaved():
    verdict = evaluate("multi_head/split_into_heads", exercise("multi_head/split_into_heads").reference, "interleaved")
    assert names(verdict) == ["interleaved"] and verdict.mistakes[0].title == "the heads are not interleaved"


def test_nothing_is_asked_of_an_answer_that_a_right_one_in_the_variant_does_not_keep():
    """Where True forbids, the last row is False throughout: "the last query sees every key" says nothing there."""
    right = exercise("causal/look_back_mask").variant("forbid").reference

    def first_key_forbidden(T, S):
        return right(T, S).index_fill(1, torch.tensor(0), True)

    verdict = evaluate("causal/look_back_mask", first_key_forbidden, "forbid")
    assert verdict.kind == "different" and "keeps this" not in verdict.message
    verdict = evaluate("causal/look_back_mask", lambda T, S: ~first_key_forbidden(T, S))
    assert "keeps this, and yours does not: the last query sees every key" in verdict.message
