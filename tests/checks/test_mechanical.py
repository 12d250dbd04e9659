"""One small edit of a reference is noticed, or listed with the reason why it changes nothing."""

import pytest

from tests.checks import implementations, matrix, mechanical

IDS = [spec.id for spec in implementations()]


def test_every_exercise_is_mutated():
    assert set(mechanical.PARTS) == set(IDS)
    assert {id for id, _ in mechanical.EQUIVALENT} <= set(IDS)


@pytest.mark.parametrize("id", IDS)
def test_every_survivor_is_explained(id):
    total, survived = matrix.survivors(id)
    assert total >= 9
    unexplained = [mutant for mutant in survived if (id, mutant) not in mechanical.EQUIVALENT]
    assert not unexplained, "these mutants pass the check; catch them, or explain them in mechanical.EQUIVALENT"


@pytest.mark.parametrize("id", IDS)
def test_no_explanation_is_stale(id):
    survived = matrix.survivors(id)[1]
    stale = [mutant for of, mutant in mechanical.EQUIVALENT if of == id and mutant not in survived]
    assert not stale, "no such mutant survives: take these out of mechanical.EQUIVALENT"


@pytest.mark.parametrize(("key", "why"), mechanical.EQUIVALENT.items(), ids=lambda value: str(value)[-60:])
def test_what_only_loses_a_habit_gets_advice_and_what_is_equivalent_gets_none(key, why):
    id, mutant = key
    verdict = matrix.survivors(id)[1].get(mutant)
    if verdict is None:
        pytest.skip("stale: test_no_explanation_is_stale says so")
    assert len(why) > 20
    assert bool(verdict.advice) == why.startswith("only advice: "), verdict.advice
