import re

import pytest
import torch
from torch import nn

from attncourse.lab.corpus import to_text
from attncourse.lab.decoder import Decoder, next_token_loss
from attncourse.lab.numbers import is_held_out
from attncourse.lab.tasks import PAD_BYTE, copy_task, number_line, number_task, recall_task, task_accuracy
from attncourse.lab.training import seeded


class Knows(nn.Module):
    """Predicts a given continuation for certain, whatever it reads."""

    def __init__(self, tokens, n_tokens):
        super().__init__()
        self.logits = nn.Parameter(50.0 * nn.functional.one_hot(tokens[:, 1:], n_tokens).float())

    def forward(self, tokens):
        return self.logits


def test_copy_repeats_what_it_showed():
    tokens, counted = copy_task(5, 7, 11, seeded(0, 0))
    assert tokens.shape == (5, 16) and counted.shape == (5, 15)
    assert tokens.dtype == torch.int64 and counted.dtype == torch.bool
    assert (tokens[:, [0, 8]] == 11).all() and torch.equal(tokens[:, 1:8], tokens[:, 9:])
    assert tokens[:, 1:8].max() < 11 and tokens.min() >= 0
    for row, marks in zip(tokens, counted, strict=True):
        assert torch.equal(row[1:][marks], row[1:8])  # what counts is the second copy, all of it


def test_recall_asks_for_what_it_told():
    tokens, counted = recall_task(6, 4, 9, 13, seeded(1, 0), n_queries=3)
    assert tokens.shape == (6, 14) and counted.shape == (6, 13) and counted.sum() == 18
    for row, marks in zip(tokens.tolist(), counted.tolist(), strict=True):
        told = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(told) == 4  # keys are distinct
        assert all(0 <= key < 9 <= value < 22 for key, value in told.items())
        asked = [(row[place], row[place + 1]) for place, mark in enumerate(marks) if mark]
        assert len(dict(asked)) == 3 and all(told[key] == value for key, value in asked)


def test_recall_asks_for_all_in_another_order_by_default():
    tokens, _ = recall_task(50, 5, 5, 3, seeded(2, 0))
    told, asked = tokens[:, 0:10:2], tokens[:, 10::2]
    assert torch.equal(told.sort(-1).values, asked.sort(-1).values)
    assert 0.05 < (told == asked).float().mean() < 0.45  # one in five by chance


@pytest.mark.parametrize("held_out", [False, True])
def test_numbers_are_spelled_and_rightly_split(held_out):
    tokens, counted = number_task(40, seeded(3, 0), max_digits=5, held_out=held_out)
    lengths = set()
    for row, marks in zip(tokens, counted, strict=True):
        line = to_text(row[row != PAD_BYTE])
        number = int(line.split(" = ")[0])
        assert line == number_line(number) and is_held_out(number) == held_out
        assert to_text(row[1:][marks]) == line[line.index("=") + 1 :]
        assert re.fullmatch(r"\d+ = [a-z ]+\n", line)
        lengths.add(len(str(number)))
    assert lengths == ({3, 4, 5} if held_out else {1, 2, 3, 4, 5})


def test_number_line():
    assert number_line(423) == "423 = four hundred twenty three\n"
    assert number_line(0) == "0 = zero\n"


TASKS = {
    "copy": lambda generator: copy_task(8, 5, 20, generator),
    "recall": lambda generator: recall_task(8, 4, 10, 10, generator),
    "number": lambda generator: number_task(8, generator),
}


@pytest.mark.parametrize("task", TASKS)
def test_one_generator_one_batch(task):
    first, again, other = (TASKS[task](seeded(*seed)) for seed in [(4, 0), (4, 0), (4, 1)])
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


@pytest.mark.parametrize("task", TASKS)
def test_they_fit_the_loss_of_the_decoder(task):
    tokens, counted = TASKS[task](seeded(5, 0))
    model = Decoder(256, d_model=16, n_heads=2, n_layers=1)
    assert next_token_loss(model, tokens, counted).isfinite()
    assert 0 <= task_accuracy(model, tokens, counted) <= 1
    assert task_accuracy(Knows(tokens, 256), tokens, counted) == 1
    assert next_token_loss(Knows(tokens, 256), tokens, counted) < 1e-6


def test_accuracy_looks_at_counted_predictions_only():
    tokens, counted = copy_task(6, 5, 20, seeded(6, 0))
    right = Knows(tokens, 21)
    right.logits.data[~counted] = 0
    assert task_accuracy(right, tokens, counted) == 1
    wrong = tokens.clone()
    wrong[0, -1] = (wrong[0, -1] + 1) % 20  # one of the 30 that count
    assert task_accuracy(right, wrong, counted) == pytest.approx(29 / 30)
    with pytest.raises(ValueError, match=r"\(6, 11\).*False everywhere"):
        task_accuracy(right, tokens, torch.zeros_like(counted))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: copy_task(2, 0, 5, g), "length=0"),
        (lambda g: copy_task(2, 3, 0, g), "n_symbols=0"),
        (lambda g: recall_task(2, 6, 5, 5, g), "n_pairs=6 .*n_keys=5"),
        (lambda g: recall_task(2, 3, 5, 5, g, n_queries=4), "n_queries=4.*n_pairs=3"),
        (lambda g: recall_task(2, 3, 5, 0, g), "n_values=0"),
        (lambda g: number_task(0, g), "batch_size=0"),
        (lambda g: number_task(2, g, max_digits=13), "max_digits=13.*1 to 12"),
        (lambda g: number_task(2, g, max_digits=2, held_out=True), "max_digits=2.*3 to 12"),
    ],
)
def test_impossible_tasks_name_their_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call(seeded(7, 0))
