"""An instructor's copy under another convention is judged by that convention."""

import math

import pytest
import torch

from attncourse.checks import evaluate, exercise
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
