"""Messages written by the learner's process itself, of every wrong form: the run goes on, and nothing is gained."""

import json
from dataclasses import replace

import pytest
import torch

from attncourse.checks import exercise
from attncourse.checks.judge import ask, judge
from attncourse.checks.script import Call, Failure, Reply, Result
from attncourse.grading import examiner
from attncourse.grading.telling import tell
from tests.grading.test_attacks import FULL, NO_CONTEXT, SOLVED

SAY = """
def say(message):
    import os, struct, json
    text = json.dumps(message).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack(">II", len(text), 0) + text)
        except OSError:
            pass
def d(**items):
    return {"_": "dict", "items": list(map(list, items.items()))}
"""

FROM_A_CELL = [
    "say(5)",
    "say([])",
    "say(d())",
    "say(d(cell='first'))",
    "say(d(cell=[1]))",
    "say(d(cell=10**12))",
    "say(d(cell=-5))",
    "say(d(cell=1.0))\nimport os; os._exit(0)",
    "say(d(cell=10**6))\nimport os; os._exit(0)",
    "say(d(errors=d(**{'99999': 'y', '-1': 'y'}), candidates=d()))",
    "say(d(errors=5, candidates=5))",
    "say(d(errors=d(), candidates=None))",
    "say(d(errors=d()))",
    "say(d(errors=d(x='y'), candidates=d(context_vector='many')))",
    "say(d(errors=d(**{'9' * 4000: 'y'}), candidates=d(context_vector=-1)))",
    "say(d(errors=[], candidates=[]))",
    "say(d(failed='x'))",
]


@pytest.mark.parametrize("forged", FROM_A_CELL)
def test_from_a_cell(forged, graded):
    """What is forged may cost the learner points: whoever speaks for the worker is out of step with it."""
    grade = graded([SAY + forged, *SOLVED])
    assert 0 <= grade.points <= FULL and len(grade.verdicts) == 5


@pytest.mark.parametrize("forged", ["say(5)", "say(d(cell=0))", "say(d(errors=d(), candidates=d(context_vector=1)))"])
def test_from_a_cell_without_an_answer(forged, graded):
    grade = graded([SAY + forged, *NO_CONTEXT])
    assert next(v for v in grade.verdicts if v.exercise.id == "bahdanau/context_vector").points == 0


FROM_AN_ANSWER = [
    "reply=3",
    "reply={'_': 'Reply', 'fields': d(results=3, failure=None)}",
    "reply={'_': 'Reply', 'fields': d(results={'_': 'tuple', 'items': [1]}, failure=None)}",
    "reply={'_': 'Reply', 'fields': d(results={'_': 'tuple', 'items': []}, failure=7)}",
    "reply={'_': 'Reply', 'fields': d(results={'_': 'tuple', 'items': [{'_': 'Result', 'fields': d(type='Tensor', "
    "outputs={'_': 'tuple', 'items': []}, gradients=None, inputs=None)}]}, failure=None)}",
    "reply={'_': 'Reply', 'fields': d(results={'_': 'tuple', 'items': [{'_': 'Result', 'fields': d(type='Tensor', "
    "outputs={'_': 'tuple', 'items': []}, gradients=[], inputs=d(other=None))}]}, failure=None)}",
]


@pytest.mark.parametrize("forged", FROM_AN_ANSWER)
def test_from_an_answer(forged, graded):
    answer = f"{SAY}\ndef context_vector(weights, values):\n    say(d({forged}))\n    return weights\n"
    grade = graded([*NO_CONTEXT, answer])
    assert grade.points == FULL - 1


def right(**changes):
    """A right reply to a call of the context vector, with changes."""
    weights, values = torch.randn(1, 2, 3), torch.randn(1, 3, 4)
    call = Call({"weights": weights, "values": values}, gradients=("weights", "values"))
    fields = {
        "type": "Tensor",
        "outputs": (weights @ values,),
        "gradients": {"weights": weights, "values": values},
        "inputs": {"weights": weights, "values": values},
    }
    return Reply((Result(**{**fields, **changes}),)), (call,)


def test_a_right_reply_is_well_formed():
    for changes in ({}, {"gradients": {}}, {"gradients": {"weights": None}}, {"inputs": {}}, {"outputs": ()}):
        assert examiner._well_formed(*right(**changes))


MALFORMED = {
    "type": [None, 3],
    "outputs": [None, [torch.ones(2)], (1,), (None,), torch.ones(2)],
    "gradients": [None, [], {"weights": 3}, {"weights": torch.ones(1)}, {"other": torch.ones(1, 2, 3)}],
    "inputs": [None, 3, {"weights": None}, {"weights": torch.ones(1, 2, 3).double()}, {"other": torch.ones(1, 2, 3)}],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in MALFORMED.items() for v in values])
def test_a_reply_of_another_form_is_refused(field, value):
    assert not examiner._well_formed(*right(**{field: value}))


STRANGE = {
    "type": ["", "NoneType", "x" * 10**6, "\N{COLLISION SYMBOL}", "tuple"],
    "outputs": [
        (torch.full((1, 2, 4), number).to(dtype),)
        for number in (float("nan"), float("inf"), 3e38)
        for dtype in (torch.float32, torch.float16, torch.int64, torch.bool)
    ]
    + [(torch.zeros(shape),) for shape in ((), (0,), (1, 2, 0), (1,) * 8, (0, 1 << 26))]
    + [(), (torch.zeros(1, 2, 4),) * 1000],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in STRANGE.items() for v in values])
def test_a_reply_of_the_right_form_is_judged_whatever_it_holds(field, value):
    task = exercise("bahdanau/context_vector")
    question = ask(task, (0,))
    n = next(i for i, script in enumerate(question.scripts) if len(script.calls) == 1 and script.habit is None)
    result = replace(question.expected[n].results[0], **{field: value})
    replies = [*question.expected[:n], Reply((result,)), *question.expected[n + 1 :]]
    assert examiner._well_formed(replies[n], question.scripts[n].calls)
    verdict = judge(task, question, replies)
    assert not verdict.passed and verdict.points == 0
    assert len(json.dumps(tell(verdict, SOLVED, {}, True))) < 30_000


def test_the_number_of_results_must_be_right():
    reply, calls = right()
    failure = Failure("ValueError", "no")
    assert not examiner._well_formed(Reply(()), calls)
    assert not examiner._well_formed(Reply(reply.results * 2), calls)
    assert not examiner._well_formed(Reply(reply.results * 2, failure), calls)
    assert examiner._well_formed(Reply((), failure), calls)
    assert not examiner._well_formed(Reply((), Failure("ValueError", None)), calls)
    assert not examiner._well_formed(None, calls)


def test_the_gradients_may_be_views_of_one_number(graded):
    """The gradient of a sum is one number expanded, which once could not be sent."""
    answer = "def context_vector(weights, values):\n    return weights.sum() + values.sum()"
    grade = graded([*NO_CONTEXT, answer])
    verdict = next(v for v in grade.verdicts if v.exercise.id == "bahdanau/context_vector")
    assert verdict.kind == "shape", verdict.message
    assert exercise("bahdanau/context_vector").points == 1 and grade.points == FULL - 1
