"""Code of learners beyond the known mistakes: what the check says about it, and that it survives it."""

import linecache
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attncourse.bahdanau import AdditiveAttention
from attncourse.checks import Report, check, evaluate, exercise, exercises
from attncourse.checks.judge import DETACHES, EDITS_INPUTS, WRONG_GRADIENT

SCORE, SOFTMAX, CONTEXT = "bahdanau/additive_score", "bahdanau/masked_softmax", "bahdanau/context_vector"
ATTENTION, DECODER = "bahdanau/attention", "bahdanau/decoder"
IDS = [spec.id for spec in exercises()]


def additive_score(query, keys, query_weight, key_weight, v):
    """A right answer, to spoil."""
    return torch.tanh((query @ query_weight.T)[:, :, None] + (keys @ key_weight.T)[:, None]) @ v


def masked_softmax(scores, mask):
    """A right answer, to spoil."""
    scores = torch.where(mask, scores, -math.inf)
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min))
    return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


class Attention(nn.Module):
    """A right answer, to spoil."""

    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.v = nn.Parameter(torch.randn(hidden_dim))

    def forward(self, query, keys, values=None, mask=None):
        scores = additive_score(query, keys, self.query_proj.weight, self.key_proj.weight, self.v)
        mask = torch.ones_like(keys[..., 0]).bool() if mask is None else mask
        weights = masked_softmax(scores, mask[:, None])
        return weights @ (keys if values is None else values), weights


class Decoder(nn.Module):
    """All but the step."""

    def __init__(self, embed_dim, key_dim, state_dim, hidden_dim):
        super().__init__()
        self.attention = AdditiveAttention(state_dim, key_dim, hidden_dim)
        self.cell = nn.GRUCell(embed_dim + key_dim, state_dim)

    def begin(self, keys, mask, state):
        self.keys, self.mask, self.state = keys, mask, state


class AttentionDecoder(Decoder):
    """A right answer, to spoil."""

    def step(self, embedding):
        context, weights = self.attention(self.state[:, None], self.keys, mask=self.mask)
        self.state = self.cell(torch.cat([embedding, context[:, 0]], -1), self.state)
        return self.state, weights[:, 0]


def test_what_is_spoilt_below_is_right():
    for id, answer in (
        (SCORE, additive_score),
        (SOFTMAX, masked_softmax),
        (ATTENTION, Attention),
        (DECODER, AttentionDecoder),
    ):
        verdict = evaluate(id, answer)
        assert verdict.passed and not verdict.advice


# --- not attempted ----------------------------------------------------------------------------------------------


def stub(*arguments):
    raise NotImplementedError


class StubClass(nn.Module):
    def __init__(self, *arguments):
        super().__init__()
        raise NotImplementedError("write me")


class StubStep(AttentionDecoder):
    def step(self, embedding):
        raise NotImplementedError


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("answer", [None, ..., stub, StubClass], ids=["None", "Ellipsis", "function", "class"])
def test_not_attempted_is_no_error(id, answer):
    verdict = evaluate(id, answer)
    assert verdict.kind == "not attempted"
    assert verdict.points == 0 and not verdict.passed
    assert str(Report(verdict)).startswith(f"○ {id}: not attempted yet")


def test_a_method_not_yet_written_is_not_attempted():
    assert evaluate(DECODER, StubStep).kind == "not attempted"


# --- forbidden calls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "softmax",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: x.softmax(-1),
        lambda x: F.softmax(x, dim=-1),
        lambda x: nn.Softmax(dim=-1)(x),
        lambda x: torch.log_softmax(x, -1).exp(),
        lambda x: F.softmin(-x, dim=-1),
        lambda x: torch.special.softmax(x, -1),
        lambda x: torch.special.log_softmax(x, -1).exp(),
        lambda x: F.scaled_dot_product_attention(x, torch.eye(x.shape[-1]), torch.eye(x.shape[-1])),
    ],
)
def test_the_librarys_own_softmax_is_forbidden_however_it_is_called(softmax):
    def masked_softmax(scores, mask):
        weights = softmax(scores.masked_fill(~mask, -math.inf))
        return weights.nan_to_num(0.0)

    verdict = evaluate(SOFTMAX, masked_softmax)
    assert verdict.kind == "forbidden"
    assert "asks you to write" in verdict.message
    assert verdict.mistakes == () and verdict.difference is None


def test_softmax_is_allowed_where_it_is_not_the_question():
    class WithSoftmax(Attention):
        def forward(self, query, keys, values=None, mask=None):
            scores = additive_score(query, keys, self.query_proj.weight, self.key_proj.weight, self.v)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None], -math.inf)
            weights = F.softmax(scores, dim=-1).nan_to_num(0.0)
            return weights @ (keys if values is None else values), weights

    assert evaluate(ATTENTION, WithSoftmax).passed


# --- habits: advice, never points -------------------------------------------------------------------------------


def advice(id, answer):
    verdict = evaluate(id, answer)
    assert verdict.passed and verdict.points == exercise(id).points, verdict.message
    return verdict.advice


@pytest.mark.parametrize(
    "cut", [lambda t: t.detach(), lambda t: t.data, lambda t: torch.tensor(t.tolist(), dtype=t.dtype)]
)
def test_detaching_gets_advice(cut):
    assert advice(SOFTMAX, lambda scores, mask: masked_softmax(cut(scores), mask)) == (
        DETACHES.format(names="`scores`"),
    )


def test_the_detached_inputs_are_named():
    def answer(query, keys, query_weight, key_weight, v):
        return additive_score(query, keys.detach(), query_weight, key_weight, v.detach())

    assert advice(SCORE, answer) == (DETACHES.format(names="`keys` or `v`"),)


def test_no_grad_gets_advice():
    assert advice(CONTEXT, torch.no_grad()(lambda weights, values: weights @ values)) == (
        DETACHES.format(names="`weights` or `values`"),
    )


def test_detached_weights_inside_a_module_get_advice():
    class Detached(Attention):
        def forward(self, query, keys, values=None, mask=None):
            _, weights = super().forward(query, keys, values, mask)
            weights = weights.detach()
            return weights @ (keys if values is None else values), weights

    assert advice(ATTENTION, Detached) == (DETACHES.format(names="`query` or `keys`"),)


def test_an_input_edited_in_place_gets_advice():
    def answer(scores, mask):
        scores[~mask] = -math.inf
        return masked_softmax(scores, mask)

    assert advice(SOFTMAX, answer) == (EDITS_INPUTS,)


def test_a_mask_edited_in_place_gets_advice():
    def answer(scores, mask):
        weights = masked_softmax(scores, mask)
        mask.logical_not_()
        return weights

    assert advice(SOFTMAX, answer) == (EDITS_INPUTS,)


def test_values_edited_in_place_inside_a_module_get_advice():
    class Editing(Attention):
        def forward(self, query, keys, values=None, mask=None):
            result = super().forward(query, keys, values, mask)
            keys *= 0
            return result

    assert advice(ATTENTION, Editing) == (EDITS_INPUTS,)


def test_no_maximum_subtracted_gets_advice():
    def answer(scores, mask):
        exponentials = scores.exp() * mask
        return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-30)

    assert exercise(SOFTMAX).habits["extreme"] in advice(SOFTMAX, answer)


def test_maximum_over_forbidden_keys_gets_advice():
    def answer(scores, mask):
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp() * mask
        return exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-30)

    assert advice(SOFTMAX, answer) == (exercise(SOFTMAX).habits["extreme forbidden"],)


def test_a_gradient_that_is_nan_behind_a_right_output_gets_advice():
    def answer(scores, mask):
        exponentials = (scores - scores.masked_fill(~mask, -1e30).amax(-1, keepdim=True)).exp().masked_fill(~mask, 0)
        return (exponentials / exponentials.sum(-1, keepdim=True)).nan_to_num(0.0)  # 0/0 in an empty row

    assert advice(SOFTMAX, answer) == (WRONG_GRADIENT.format(names="`scores`"),)


def test_an_object_instead_of_the_class_is_told_so():
    verdict = evaluate(ATTENTION, exercise(ATTENTION).reference(4, 5, 6))
    assert verdict.kind == "type"
    assert "give it the class itself" in verdict.message


def test_view_on_a_transposed_input_gets_advice():
    def answer(query, keys, query_weight, key_weight, v):
        B, T, D = query.shape
        q = query.view(B * T, D) @ query_weight.T
        return torch.tanh(q.view(B, T, 1, -1) + (keys @ key_weight.T)[:, None]) @ v

    assert advice(SCORE, answer) == (exercise(SCORE).habits["non-contiguous"],)


def test_an_axis_squeezed_away_where_there_is_one_query_is_a_wrong_shape():
    for id, answer in (
        (SCORE, lambda *given: additive_score(*given).squeeze(1)),
        (SOFTMAX, lambda *given: masked_softmax(*given).squeeze(1)),
        (CONTEXT, lambda weights, values: (weights @ values).squeeze(1)),
    ):
        verdict = evaluate(id, answer)
        assert verdict.kind == "shape"
        assert "a `.squeeze()` without an axis" in verdict.message


def test_a_placeholder_left_below_an_answer_is_told_so():
    def answer(weights, values):
        context = weights @ values
        raise NotImplementedError
        return context

    verdict = evaluate(CONTEXT, answer)
    assert verdict.kind == "raised"
    assert "Your code reached the placeholder" in verdict.message


def test_an_answer_that_calls_an_unwritten_one_is_told_which():
    def my_softmax(scores):
        """Not written yet."""
        raise NotImplementedError

    verdict = evaluate(CONTEXT, lambda weights, values: my_softmax(weights) @ values)
    assert verdict.kind == "raised"
    assert "It calls your `my_softmax`, which is not written yet" in verdict.message


def test_an_error_of_torch_is_no_unattempted_exercise():
    verdict = evaluate(CONTEXT, lambda weights, values: (weights > 0) @ (values > 0))
    assert verdict.kind == "raised"
    assert "not implemented for 'Bool'" in verdict.message


def test_a_state_edited_in_place_changes_what_was_returned_before():
    class Edited(exercise(DECODER).reference):
        def step(self, embedding):
            context, weights = self.attention(self.state[:, None], self.keys, mask=self.mask)
            with torch.no_grad():
                self.state.copy_(self.cell(torch.cat([embedding, context[:, 0]], -1), self.state))
            return self.state, weights[:, 0]

    assert not evaluate(DECODER, Edited).passed


def test_renamed_parameters_are_told_by_name():
    class Renamed(nn.Module):
        def __init__(self, query_dim, key_dim, hidden_dim):
            super().__init__()
            self.W = nn.Linear(query_dim, hidden_dim)

    message = evaluate(ATTENTION, Renamed).message
    assert "must keep its parameters `query_proj.weight` (6, 4)" in message
    assert "yours has `W.weight` (6, 4), `W.bias` (6,)" in message


def test_the_courses_own_class_does_not_pass_the_check(capsys):
    own = exercise(ATTENTION).reference
    for answer in (own, type("Mine", (own,), {})):
        assert not check(ATTENTION, answer).passed
    assert "write it yourself" in capsys.readouterr().out


def test_squeeze_of_everything_loses_the_batch_axis_and_points():
    verdict = evaluate(SCORE, lambda *given: additive_score(*given).squeeze())
    assert verdict.kind == "shape"
    assert "scores has shape (2, 3); it should be (B, T, S) = (1, 2, 3): 2 axes instead of 3" in verdict.message


@pytest.mark.parametrize(("id", "right"), [(SCORE, additive_score), (SOFTMAX, masked_softmax)])
def test_a_cast_to_float32_gets_advice(id, right):
    def answer(*given):
        return right(*(t.float() if t.is_floating_point() else t for t in given))

    assert advice(id, answer) == (exercise(id).habits["float64"],)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_dtype_comes_before_values(dtype):
    verdict = evaluate(SCORE, lambda *given: additive_score(*(t.to(dtype) for t in given)))
    assert verdict.kind == "dtype"
    assert str(dtype) in verdict.message and "torch.float32" in verdict.message


# --- what is returned -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: None, "returns None; it should return a tensor (scores). Is a `return` missing?"),
        (lambda t: t.tolist(), "returns a list of list; it should return a tensor"),
        (lambda t: t.sum().item(), "returns a float; it should return a tensor"),
        (lambda t: t.detach().numpy(), "returns a ndarray; it should return a tensor"),
        (lambda t: (t,), "returns a tuple of 1; it should return a tensor"),
        (lambda t: (t, t), "returns a tuple of 2; it should return a tensor"),
        (lambda t: (t, None), "returns a tuple of Tensor, NoneType; it should return a tensor"),
        (lambda t: (), "returns a tuple of nothing; it should return a tensor"),
        (lambda t: {"scores": t}, "returns a dict; it should return a tensor"),
        (lambda t: iter([t]), "returns a list_iterator; it should return a tensor"),
    ],
)
def test_what_is_no_tensor_is_said_to_be_none(spoil, said):
    verdict = evaluate(SCORE, lambda *given: spoil(additive_score(*given)))
    assert verdict.kind == "type"
    assert verdict.message.startswith(f"`additive_score` {said}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda context, weights: context,
            "returns a Tensor; it should return a tuple of 2 tensors (context, weights)",
        ),
        (lambda context, weights: (context, weights, weights), "returns a tuple of 3; it should return a tuple of 2"),
        (lambda context, weights: (context, None), "returns a tuple of Tensor, NoneType; it should return"),
        (lambda context, weights: None, "returns None; it should return a tuple of 2 tensors"),
    ],
)
def test_the_wrong_number_of_outputs(spoil, said):
    class Spoilt(Attention):
        def forward(self, *given):
            return spoil(*super().forward(*given))

    verdict = evaluate(ATTENTION, Spoilt)
    assert verdict.kind == "type"
    assert said in verdict.message


def test_a_list_of_two_tensors_is_as_good_as_a_tuple():
    class Listing(Attention):
        def forward(self, *given):
            return list(super().forward(*given))

    assert evaluate(ATTENTION, Listing).passed


def test_the_method_that_returns_nothing_is_named():
    class Silent(AttentionDecoder):
        def step(self, embedding):
            super().step(embedding)

    verdict = evaluate(DECODER, Silent)
    assert verdict.kind == "type"
    assert verdict.message.startswith("`step` returns None; it should return a tuple of 2 tensors (state, weights)")


def test_what_begin_returns_does_not_matter():
    class Chatty(AttentionDecoder):
        def begin(self, keys, mask, state):
            super().begin(keys, mask, state)
            return self

    assert evaluate(DECODER, Chatty).passed


def test_booleans_are_another_dtype():
    assert evaluate(SOFTMAX, lambda scores, mask: mask.clone()).kind == "dtype"


def test_nan_everywhere_is_said_before_any_value():
    def answer(scores, mask):
        exponentials = torch.exp(scores + (1 - mask.float()) * -math.inf)  # 0 times -inf
        return exponentials / exponentials.sum(-1, keepdim=True)

    verdict = evaluate(SOFTMAX, answer)
    assert verdict.kind == "nan"
    assert verdict.message.startswith("weights[0, 0, 0] is nan, when called with scores (1, 2, 3), mask (1, 2, 3)")


def test_one_nan_row_in_one_script_is_enough():
    def answer(scores, mask):
        return masked_softmax(scores, mask).masked_fill(~mask.any(-1, keepdim=True), math.nan)

    verdict = evaluate(SOFTMAX, answer)
    assert verdict.kind == "nan"
    assert [mistake.name for mistake in verdict.mistakes] == ["empty_rows_nan"]


# --- what raises ------------------------------------------------------------------------------------------------

CELL = """\
def helper(keys):
    return keys[99]

def additive_score(query, keys, query_weight, key_weight, v):
    projected = query @ query_weight.T
    return helper(keys)
"""


def run_cell(source, filename):
    """Define what a notebook cell defines, its source known to linecache as IPython does it."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = {"torch": torch, "nn": nn}
    exec(compile(source, filename, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("filename", ["<ipython-input-7-0123456789ab>", "/tmp/ipykernel_4711/1234567890.py"])
def test_the_learners_own_line_is_said_also_from_a_cell(filename):
    verdict = evaluate(SCORE, run_cell(CELL, filename)["additive_score"])
    assert verdict.kind == "raised"
    assert verdict.message.startswith("IndexError: index 99 is out of bounds")
    assert "in line 2 of the cell, `return keys[99]`" in verdict.message
    assert "The call had query (1, 2, 4), keys (1, 3, 5)" in verdict.message


def test_an_error_inside_torch_is_said_at_the_learners_line():
    cell = "def context_vector(weights, values):\n    x = weights\n    return torch.nn.functional.linear(values, x)\n"
    verdict = evaluate(CONTEXT, run_cell(cell, "<ipython-input-8-0123456789ab>")["context_vector"])
    assert "in line 3 of the cell, `return torch.nn.functional.linear(values, x)`" in verdict.message


@pytest.mark.parametrize("place", ["site-packages", "dist-packages"])
def test_the_line_is_not_one_of_a_library_that_calls_the_learner(place):
    """torch calls a module's forward, and Colab keeps torch in dist-packages."""
    library = run_cell("def call(function):\n    return lambda *given: function(*given)\n", f"/usr/{place}/torch/x.py")
    answer = run_cell(CELL, "<ipython-input-9-0123456789ab>")["additive_score"]
    verdict = evaluate(SCORE, library["call"](answer))
    assert "in line 2 of the cell, `return keys[99]`" in verdict.message


@pytest.mark.parametrize("error", [IndexError, RuntimeError, AssertionError, ZeroDivisionError, RecursionError])
def test_errors_of_any_type_are_reported(error):
    def answer(scores, mask):
        raise error("<b>so it is</b>")

    verdict = evaluate(SOFTMAX, answer)
    assert verdict.kind == "raised" and verdict.mistakes == ()
    assert verdict.message.startswith(f"{error.__name__}: <b>so it is</b>")


def test_endless_recursion_is_reported():
    def answer(scores, mask):
        return answer(scores, mask)

    assert evaluate(SOFTMAX, answer).kind == "raised"


@pytest.mark.parametrize("leave", [sys.exit, exit, quit])
def test_leaving_python_is_an_error_and_the_check_goes_on(leave):
    verdict = evaluate(SOFTMAX, lambda scores, mask: leave(3))
    assert verdict.kind == "raised"
    assert verdict.message.startswith("SystemExit: 3")


def test_too_few_parameters():
    verdict = evaluate(SCORE, lambda query, keys: query)
    assert verdict.kind == "raised"
    assert "takes 2 positional arguments but 5 were given" in verdict.message


def test_sizes_written_as_numbers_fail_where_sizes_differ():
    def answer(query, keys, query_weight, key_weight, v):
        q, k = (query @ query_weight.T).reshape(-1, 2, 1, 6), (keys @ key_weight.T).reshape(-1, 1, 3, 6)
        return torch.tanh(q + k) @ v

    verdict = evaluate(SCORE, answer)
    assert verdict.kind == "raised"
    assert "is invalid for input of size" in verdict.message


def test_parameters_under_other_names_fail_strictly():
    class Renamed(nn.Module):
        def __init__(self, query_dim, key_dim, hidden_dim):
            super().__init__()
            self.W = nn.Linear(query_dim, hidden_dim, bias=False)
            self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
            self.v = nn.Parameter(torch.randn(hidden_dim))

    verdict = evaluate(ATTENTION, Renamed)
    assert verdict.kind == "raised"
    assert "must keep its parameters `query_proj.weight` (6, 4)" in verdict.message
    assert "`W.weight` (6, 4)" in verdict.message


def test_a_bias_too_many_fails_strictly():
    class Biased(Attention):
        def __init__(self, query_dim, key_dim, hidden_dim):
            super().__init__(query_dim, key_dim, hidden_dim)
            self.key_proj = nn.Linear(key_dim, hidden_dim)

    assert "`key_proj.bias` (6,). Leave `__init__` as it was" in evaluate(ATTENTION, Biased).message


def test_a_missing_method_is_reported():
    class NoStep(Decoder):
        pass

    verdict = evaluate(DECODER, NoStep)
    assert verdict.kind == "raised"
    assert verdict.message.startswith("AttributeError: 'NoStep' object has no attribute 'step'")


def test_the_call_that_raised_is_the_one_said():
    class FailsToBegin(AttentionDecoder):
        def begin(self, keys, mask, state):
            raise ValueError("no")

    verdict = evaluate(DECODER, FailsToBegin)
    assert verdict.message.endswith("The call had keys (2, 3, 4), mask (2, 3), state (2, 5).")


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("answer", ["additive_score", 3, torch.ones(2), [len]], ids=lambda value: type(value).__name__)
def test_what_cannot_be_called_is_said_so(id, answer):
    verdict = evaluate(id, answer)
    assert verdict.kind == "type"
    assert f"`{exercise(id).defines}` is a {type(answer).__name__}" in verdict.message


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize(
    "answer", [print, object, nn.Linear, nn.Module, len, torch.tanh, lambda *a, **k: torch.ones(())]
)
def test_nothing_callable_breaks_the_check(id, answer):
    verdict = evaluate(id, answer)
    assert not verdict.passed
    assert str(Report(verdict)) and Report(verdict)._repr_html_()


def test_random_numbers_are_the_same_in_every_run_and_the_learners_own_go_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it reseeds the learner's GPU"))
    seen = []

    def answer(scores, mask):
        seen.append(torch.rand(()).item())
        return masked_softmax(scores, mask)

    state = torch.get_rng_state()
    assert evaluate(SOFTMAX, answer).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(seen)) == 1


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    evaluate(CONTEXT, torch.matmul)
    assert torch.get_num_threads() == before
