"""Exercises whose answer is a test: what gets points, what is said, and that no strategy gets points without work."""

import itertools
import random
from collections import Counter
from math import comb

import numpy as np
import pytest
import torch

from attncourse.checks import Report, compute, evaluate, exercise, reverse
from attncourse.checks.script import Failure, Outcome
from tests.checks import matrix, reverse_exercises

ID = "luong/test_general_score"
SPEC = exercise(ID)
POINTS = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4}  # of 4, for so many of the seven wrong ones
ANSWERS = matrix.answers("luong")
GOOD = [words for id, words in ANSWERS.good if id == ID]
LAX = [words for id, words in ANSWERS.lax if id == ID]
STRICT = [words for id, words in ANSWERS.strict if id == ID]


def given(B=2, T=3, S=5, Dq=4, Dk=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((B, T, Dq), (B, S, Dk), (Dq, Dk))]


def good(candidate):
    """A good test, to spoil."""
    query, keys, weight = given()
    scores = candidate(query, keys, weight)
    return scores.shape == (2, 3, 5) and torch.allclose(scores, query @ weight @ keys.mT, atol=1e-4)


# --- the exercise itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", reverse_exercises(), ids=lambda spec: spec.id)
def test_enough_right_and_wrong_ones_and_enough_tests_of_the_test(spec):
    assert len(spec.right) >= 4 and len(spec.misconceptions) >= 5
    verdicts = matrix.learners_tests(spec.id)
    assert len(verdicts["good"]) >= 3 and len(verdicts["lax"]) >= 5 and len(verdicts["strict"]) >= 3


SIZES = [(2, 3, 5, 4, 7), (1, 1, 1, 1, 1), (3, 4, 4, 4, 4), (1, 2, 3, 5, 5), (4, 8, 6, 32, 16), (2, 2, 3, 64, 64)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_ones_agree(sizes, dtype):
    inputs = [t.to(dtype) for t in given(*sizes)]
    expected = torch.einsum("btq,bsk,qk->bts", *inputs)
    for name, implementation in SPEC.right.items():
        scores = implementation(*inputs)
        assert (scores.shape, scores.dtype) == (expected.shape, dtype), name
        assert torch.allclose(scores, expected, atol=1e-4), name


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4, 5), (1, 0, 3, 4, 5), (1, 2, 0, 4, 5)])
def test_right_ones_agree_on_what_is_empty(sizes):
    shapes = {tuple(implementation(*given(*sizes)).shape) for implementation in SPEC.right.values()}
    assert shapes == {sizes[:3]}


def test_right_ones_agree_on_strided_and_whole_number_inputs():
    strided = [t.mT.contiguous().mT for t in given()]
    whole = [(3 * t).round().to(torch.int64) for t in given()]
    for inputs in (strided, whole):
        expected = torch.einsum("btq,bsk,qk->bts", *inputs)
        assert all(torch.allclose(f(*inputs), expected, atol=1e-4) for f in SPEC.right.values())


@pytest.mark.parametrize("name", [m.name for m in SPEC.misconceptions])
def test_every_wrong_one_differs_from_every_right_one_on_one_input(name):
    scores = SPEC.faulty(frozenset([name]))(*given())
    for implementation in SPEC.right.values():
        right = implementation(*given())
        assert scores.shape != right.shape or (scores - right).abs().max() > 0.1


def test_wrong_ones_differ_from_each_other():
    found = {m.name: SPEC.faulty(frozenset([m.name]))(*given()) for m in SPEC.misconceptions}
    for a, b in itertools.combinations(found, 2):
        assert found[a].shape != found[b].shape or not torch.allclose(found[a], found[b], atol=1e-2), (a, b)


def test_the_switches_all_off_are_right():
    assert good(SPEC.faulty(frozenset()))


def test_names_and_numbers_in_the_statement():
    assert (len(SPEC.right), len(SPEC.misconceptions), SPEC.points) == (5, 7, 4)  # said in the exercise notebook
    assert reverse.MAX_AXIS == 64


# --- good, lax and strict tests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", GOOD)
def test_a_good_test_gets_all_points(words):
    verdict = matrix.learners_tests(ID)["good"][words]
    assert verdict.passed and verdict.points == 4, verdict.message
    assert str(Report(verdict)) == f"✓ {ID}: correct (4 of 4 points)"


@pytest.mark.parametrize("words", LAX)
def test_a_lax_test_gets_its_share_and_is_told_what_it_lets_through(words):
    missed, _ = ANSWERS.lax[ID, words]
    verdict = matrix.learners_tests(ID)["lax"][words]
    assert verdict.kind == "misses" and not verdict.passed
    assert {m.name for m in verdict.mistakes} == missed and len(verdict.mistakes) == len(missed)
    assert verdict.points == POINTS[7 - len(missed)]
    text, html = str(Report(verdict)), Report(verdict)._repr_html_()
    assert f"rejects {7 - len(missed)} of 7 wrong ones" in text
    for mistake in SPEC.misconceptions:
        for said in (text, html.replace("&#x27;", "'")):
            assert (f"– {mistake.title}" in said) == (mistake.name in missed)


@pytest.mark.parametrize("words", STRICT)
def test_a_test_that_rejects_a_right_one_gets_nothing(words):
    verdict = matrix.learners_tests(ID)["strict"][words]
    assert (verdict.kind, verdict.points, verdict.mistakes) == ("too strict", 0, ())
    advised = "tolerance" in verdict.message  # some are accepted: the last digits differ
    assert advised != ("rejects all 5 right implementations, so either True and False" in verdict.message)


def test_a_test_that_returns_nothing_is_asked_for_its_return():
    assert "is a `return` or an `assert` missing?" in evaluate(ID, lambda candidate: None).message


def test_a_test_of_asserts_alone_that_finds_something_is_not_asked_for_its_return():
    def test(candidate):
        assert candidate(*given()).shape == (2, 3, 5)

    verdict = evaluate(ID, test)
    assert verdict.kind == "misses" and 0 < verdict.share < 1
    assert "None" not in verdict.message


def test_a_number_is_no_answer_of_a_test():
    verdict = evaluate(ID, lambda candidate: torch.zeros(()))
    assert verdict.kind == "raised" and "returned a torch.float32, not True or False" in verdict.message


def test_too_strict_names_the_right_ones_it_rejects():
    verdict = evaluate(ID, ANSWERS.strict[ID, "torch.equal"])
    assert "computed in float64" in verdict.message and "rejects 3 of 5" in verdict.message


def test_a_strict_and_lax_test_is_too_strict():
    def test(candidate):
        return torch.equal(candidate(*given(2, 9, 9, 33, 33)).mT, SPEC.right["matrix products"](*given()).mT)

    assert evaluate(ID, test).kind == "too strict"


SETS = [names for n in (1, 3, 6) for names in itertools.combinations([m.name for m in SPEC.misconceptions], n)]


@pytest.mark.parametrize("missed", SETS, ids="+".join)
def test_points_are_the_share_of_wrong_ones_found_rounded_down(missed):
    for copies in (1, 5):
        asked = reverse.candidates(SPEC, 3, copies)
        outcomes = [Outcome(c.mistake is None or c.name in missed) for c in asked]
        verdict = reverse.judge(SPEC, asked, outcomes)
        assert verdict.points == POINTS[7 - len(missed)]
        assert {m.name for m in verdict.mistakes} == set(missed)


def test_no_share_of_points_loses_one_to_rounding():
    for points, wrong in itertools.product(range(1, 11), range(1, 31)):
        for found in range(wrong + 1):
            assert int(points * (found / wrong)) == points * found // wrong


# --- what a test may return, raise and do -----------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [bool, np.bool_, torch.tensor, lambda x: torch.tensor([[x]])])
def test_true_may_be_pythons_numpys_or_a_tensor_of_one(wrap):
    assert evaluate(ID, lambda candidate: wrap(bool(good(candidate)))).passed


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("True", "the test returned a str, not True or False"),
        (1, "the test returned a int, not True or False"),
        ((True, True), "the test returned a tuple"),
        (good, "the test returned a function"),
        (torch.tensor([True, False]), "RuntimeError: Boolean value of Tensor with more than one value is ambiguous"),
        (np.array([True, False]), "ValueError: The truth value of an array with more than one element is ambiguous"),
    ],
)
def test_anything_else_is_told(returned, said):
    verdict = evaluate(ID, lambda candidate: returned)
    assert (verdict.kind, verdict.points) == ("raised", 0)
    assert said in verdict.message
    assert verdict.message.startswith("On a right implementation your test itself raised an error: ")


@pytest.mark.parametrize("stub", [None, ...])
def test_no_test_is_not_attempted(stub):
    assert evaluate(ID, stub).kind == "not attempted"


def test_a_test_not_yet_written_is_not_attempted():
    def test_general_score(candidate):
        raise NotImplementedError

    verdict = evaluate(ID, test_general_score)
    assert verdict.kind == "not attempted" and verdict.points == 0


def test_not_implemented_later_is_an_error_like_others():
    """Else a test could look at all implementations, and then say that there was none."""
    calls = []

    def test_general_score(candidate):
        calls.append(candidate)
        if len(calls) > 1:
            raise NotImplementedError
        return True

    assert evaluate(ID, test_general_score).kind == "raised"


def test_crashing_on_wrong_ones_rejects_them():
    def test(candidate):
        query, keys, weight = given()
        difference = (candidate(query, keys, weight) - query @ weight @ keys.mT).abs().max()  # raises when swapped
        return [True][int(difference > 1e-4)]  # IndexError on wrong ones

    assert evaluate(ID, test).passed


def test_an_implementation_that_raises_is_rejected():
    def test(candidate):
        query, keys, weight = given(2, 3, 5, 4, 6)  # without the weight, or with its transpose, nothing fits
        return candidate(query, keys, weight).isfinite().all()

    assert {m.name for m in evaluate(ID, test).mistakes} == {
        *("scaled", "axes_swapped", "returns_weights", "tanh", "cosine")
    }


def test_an_error_on_right_ones_is_the_tests_own_and_its_line_is_said():
    def test(candidate):
        scores = candidate(*given())
        return scores[17] > 0

    verdict = evaluate(ID, test)
    assert (verdict.kind, verdict.points) == ("raised", 0)
    assert "`return scores[17] > 0`: IndexError: index 17 is out of bounds" in verdict.message


def test_a_long_error_is_cut():
    def test(candidate):
        raise ValueError("x" * 5000)

    assert len(evaluate(ID, test).message) < 600


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (lambda: True, "takes 0 positional arguments but 1 was given"),
        (lambda candidate, expected: True, "missing 1 required positional argument: 'expected'"),
        (lambda candidate: exit(), "SystemExit"),
        (lambda candidate: candidate(), "the implementation raised an error when called with"),
        (lambda candidate: candidate(*given()[:2]), "when called with (2, 3, 4), (2, 5, 4)"),
        (lambda candidate: candidate("query", "keys", "weight"), "inputs must be tensors, numbers or None"),
        (lambda candidate: candidate(*(t.numpy() for t in given())), "inputs must be tensors, numbers or None"),
        (lambda candidate: candidate(*given(), mask=None), "when called with (2, 3, 4), (2, 5, 4), (4, 4), None"),
        (lambda candidate: candidate(*given(1, 65, 1, 1, 1)), "inputs are limited to 64 along an axis"),
        (lambda candidate: candidate(*given(8, 64, 64, 64, 8)), "20000 numbers in all"),
    ],
)
def test_misuse_is_explained(test, said):
    verdict = evaluate(ID, test)
    assert (verdict.kind, verdict.points) == ("raised", 0)
    assert said in verdict.message and "CandidateRaised" not in verdict.message


@pytest.mark.parametrize("shape", [(64, 64, 64, 0), (1, 1, 1, 1, 1)])
def test_no_result_is_made_that_is_much_larger_than_its_inputs(shape):
    call = reverse.trial(reverse.Candidate("never called", pytest.fail, None))
    with pytest.raises(compute.CandidateRaised, match="limited to 64 along an axis, 4 axes and 20000 numbers in all"):
        call(torch.zeros(shape))


def test_sizes_up_to_the_limit_are_taken_and_fast():
    assert evaluate(ID, lambda candidate: candidate(*given(1, 64, 64, 64, 64)).shape == (1, 64, 64)).kind == "misses"


def test_a_test_may_change_its_inputs():
    def test(candidate):
        query, keys, weight = given()
        expected = query @ weight @ keys.mT
        scores = candidate(query, keys, weight)
        for tensor in (query, keys, weight):
            tensor.zero_()
        zeros = candidate(query, keys, weight)
        return scores.allclose(expected, atol=1e-4) if scores.shape == (2, 3, 5) and not zeros.any() else False

    assert {m.name for m in evaluate(ID, test).mistakes} <= {"cosine"}


def test_an_implementation_cannot_change_the_tests_inputs(monkeypatch):
    def vandal(query, keys, weight):
        return query.zero_() @ weight @ keys.mT

    query = given()[0]
    reverse.trial(reverse.Candidate("vandal", vandal, None))(query, *given()[1:])
    assert torch.equal(query, given()[0])


def test_inputs_that_want_gradients_are_taken():
    assert evaluate(ID, lambda c: good(lambda *given: c(*(t.requires_grad_() for t in given)))).passed


def test_calls_are_counted_for_each_implementation():
    for n, kind in ((reverse.MAX_CALLS - 1, "passed"), (reverse.MAX_CALLS, "raised")):

        def test(candidate, n=n):
            for _ in range(n):
                candidate(*given(1, 1, 1, 1, 1))
            return good(candidate)

        verdict = evaluate(ID, test)
        assert verdict.kind == kind
    assert f"may call an implementation {reverse.MAX_CALLS} times, not more" in verdict.message


def test_an_endless_number_of_calls_ends():
    def test(candidate):
        while True:
            candidate(*given(1, 1, 1, 1, 1))

    assert evaluate(ID, test).kind == "raised"


def test_the_tests_random_numbers_are_the_same_for_every_implementation():
    seen = []

    def test(candidate):
        seen.append((torch.rand(()).item(), random.random()))
        if len(seen) % 2:
            raise AssertionError  # Python's stream is put back then, too
        return good(candidate)

    before, pythons = torch.get_rng_state(), random.getstate()
    evaluate(ID, test)
    assert len(seen) > 2 and len(set(seen)) == 1
    assert torch.equal(before, torch.get_rng_state()) and random.getstate() == pythons


def test_what_a_test_prints_does_not_matter(capsys):
    assert evaluate(ID, lambda candidate: print("✓ passed") or good(candidate)).passed


def test_there_is_no_variant():
    with pytest.raises(ValueError, match="has no variant 'forbid'; it has none"):
        evaluate(ID, good, "forbid")


# --- the order, and strategies instead of tests -----------------------------------------------------------------


def test_the_order_depends_on_the_seed_and_right_ones_are_among_them():
    orders = {tuple(c.name for c in reverse.candidates(SPEC, seed)) for seed in range(50)}
    assert len(orders) == 50
    everything = sorted([*SPEC.right, *(m.name for m in SPEC.misconceptions)])
    assert all(sorted(order) == everything for order in orders)
    places = Counter(i for seed in range(200) for i, c in enumerate(reverse.candidates(SPEC, seed)) if not c.mistake)
    assert set(places) == set(range(12)) and min(places.values()) > 40


def test_one_seed_gives_one_order():
    assert [c.name for c in reverse.candidates(SPEC, 7)] == [c.name for c in reverse.candidates(SPEC, 7)]


def test_in_grading_nobody_knows_the_order_and_no_behaviour_is_more_frequent():
    orders = [reverse.exam_candidates(SPEC) for _ in range(20)]
    assert len({tuple(c.name for c in order) for order in orders}) == 20
    for order in orders:
        counts = Counter("right" if c.mistake is None else c.name for c in order)
        assert len(counts) == 8 and set(counts.values()) == {5}
        assert {c.name for c in order if c.mistake is None} == set(SPEC.right)


def points_of(strategy, seed):
    """The points of what answers True or False by `strategy(generator)`, an iterator of answers, seeing nothing."""
    asked = reverse.candidates(SPEC, seed, copies=len(SPEC.right))
    answers = strategy(random.Random(seed))
    return reverse.judge(SPEC, asked, [Outcome(next(answers)) for _ in asked]).points


def coin(chance):
    def strategy(generator):
        while True:
            yield generator.random() < chance

    return strategy


def one_rejected_in(n):
    return lambda generator: itertools.cycle([False] + [True] * (n - 1))


BLIND = {
    "always True": lambda generator: itertools.repeat(True),
    "always False": lambda generator: itertools.repeat(False),
    "True and False in turn": lambda generator: itertools.cycle([True, False]),
    "the first five": lambda generator: itertools.chain([True] * 5, itertools.repeat(False)),
    "the last five": lambda generator: itertools.chain([False] * 35, itertools.repeat(True)),
    "the first rejected": lambda generator: itertools.chain([False], itertools.repeat(True)),
    "one in eight accepted": lambda generator: itertools.cycle([True] + [False] * 7),
    "one in eight rejected": one_rejected_in(8),
    "one in three rejected": one_rejected_in(3),
    **{f"True with chance {chance}": coin(chance) for chance in (0.1, 0.3, 0.5, 0.7, 0.9)},
}


@pytest.mark.parametrize("name", BLIND)
def test_no_answers_given_blindly_get_points(name):
    assert {points_of(BLIND[name], seed) for seed in range(150)} == {0}


def test_even_the_best_guess_is_hopeless():
    """Rejecting m of the 40 gives a point if all are wrong ones, among them every copy of two of the seven or more."""

    def chance(m):
        ways = sum(  # to choose all copies of just n of the seven, by inclusion and exclusion
            (-1) ** (k - n) * comb(k, n) * comb(7, k) * comb(35 - 5 * k, m - 5 * k)
            for n in range(2, 8)
            for k in range(n, m // 5 + 1)
        )
        return ways / comb(40, m)

    assert max(chance(m) for m in range(10, 36)) < 1 / 700


def signature(candidate, digits):
    scores = candidate(*given())
    return tuple(scores.shape), tuple((scores.double().flatten() * 10**digits).round().tolist())


WATCHING = {
    "accepts what it has seen before": lambda seen, new: seen[new] > 0,
    "accepts what it has not seen before": lambda seen, new: seen[new] == 0,
    "accepts what comes most often so far": lambda seen, new: seen[new] + 1 >= max(seen.values(), default=0),
    "accepts the first behaviour": lambda seen, new: not seen or next(iter(seen)) == new,
}


@pytest.mark.parametrize("digits", [3, 12], ids=["rounded", "to the last bit"])
@pytest.mark.parametrize("name", WATCHING)
def test_remembering_what_others_returned_gets_no_points(name, digits):
    for seed in range(30):
        seen = Counter()

        def test(candidate, seen=seen):
            new = signature(candidate, digits)
            accepted = WATCHING[name](seen, new)
            seen[new] += 1
            return accepted

        asked = reverse.candidates(SPEC, seed, copies=len(SPEC.right))
        if name == "accepts the first behaviour" and asked[0].mistake is None and digits == 3:
            continue  # in one case of eight it has guessed right: that is what a coin of eight sides can do
        verdict = reverse.judge(SPEC, asked, [compute.run_test(test, reverse.trial(c)) for c in asked])
        assert verdict.points == 0, (seed, verdict.kind)


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_the_words_of_an_error_do_not_tell_which_implementation_it_is():
    said = Counter()

    def test(candidate):
        for arguments in ((), (1,), given()[:2], [t[0] for t in given()], [t.flatten() for t in given()]):
            try:
                candidate(*arguments)
                said[len(arguments), "returned"] += 1
            except Exception as error:
                said[len(arguments), f"{type(error).__name__} {error}"] += 1
        return True

    evaluate(ID, test)
    for _, words in said:
        assert not any(name in words for name in ("_by_", "keys_first", "float64", "general_score", "einsum", "mat1"))
    assert len([words for n, words in said if n == 0]) == len([words for n, words in said if n == 1]) == 1


@pytest.mark.parametrize("outcomes", [0, 11, 13])
def test_the_number_of_outcomes_must_be_right(outcomes):
    asked = reverse.candidates(SPEC, 0)
    with pytest.raises((ValueError, IndexError)):
        reverse.judge(SPEC, asked, [Outcome(True)] * outcomes)


def test_a_forged_failure_is_only_text():
    asked = reverse.candidates(SPEC, 0)
    verdict = reverse.judge(SPEC, asked, [Outcome(True, Failure("<b>", "<script>", 10**9, "`x`"))] * len(asked))
    assert verdict.kind == "raised" and verdict.points == 0
    assert "<script>" not in Report(verdict)._repr_html_()
