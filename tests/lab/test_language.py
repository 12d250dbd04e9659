import json
import math

import pytest
import torch
from torch import nn

from attncourse import lab
from attncourse.lab import corpus, language
from attncourse.lab.corpus import N_BYTES, load_corpus
from attncourse.lab.decoder import Decoder, load_decoder
from attncourse.lab.language import FILE, MODEL, SETTINGS, held_out_loss, language_loss, load_language_model, run

TINY = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_length": 32, "positions": "rotary"}


class Repeats(nn.Module):
    """Says that the last byte comes again: one share for it, another for each other byte."""

    def __init__(self):
        super().__init__()
        self.certainty = nn.Parameter(torch.tensor(5.0))

    def forward(self, tokens):
        return self.certainty * nn.functional.one_hot(tokens, N_BYTES).float()


def test_held_out_loss_by_hand():
    text = load_corpus().held_out.tolist()
    n_bytes, length = 1000, 100  # 9 whole pieces of 100 predictions: byte 0 to byte 900
    normaliser = torch.tensor(5.0).exp() + N_BYTES - 1
    hits = sum(text[i] == text[i + 1] for i in range(900))
    expected = normaliser.log().item() - 5.0 * hits / 900
    for batch_size in (1, 4, 32):  # the last batch may be smaller
        assert held_out_loss(Repeats(), n_bytes, length, batch_size) == pytest.approx(expected, abs=1e-5)


def test_held_out_loss_reads_all_by_default():
    whole = len(load_corpus().held_out)
    assert held_out_loss(Repeats()) == held_out_loss(Repeats(), whole)
    assert held_out_loss(Repeats()) != held_out_loss(Repeats(), whole // 2)


def test_the_loss_of_a_step_depends_on_seed_and_step_only():
    text, model = load_corpus().train, Decoder(N_BYTES, **TINY)
    loss_fn = language_loss(text, 2, 16, seed=0)
    assert loss_fn(model, 3) == loss_fn(model, 3) == language_loss(text, 2, 16, seed=0)(model, 3)
    assert loss_fn(model, 3) != loss_fn(model, 4)
    assert loss_fn(model, 3) != language_loss(text, 2, 16, seed=1)(model, 3)


def test_a_run_writes_the_model_and_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "SETTINGS", SETTINGS | {"steps": 50, "batch_size": 2, "length": 16})
    monkeypatch.setattr(language, "MODEL", TINY)
    monkeypatch.setattr(language, "held_out_loss", lambda model: held_out_loss(model, 2000, 64))
    record = run(tmp_path)
    assert json.loads((tmp_path / "language.json").read_text()) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language.json", FILE]
    assert len(record["losses"]) == 1 and record["settings"]["steps"] == 50
    model, provenance = load_decoder(tmp_path / FILE)
    assert model.config["d_model"] == 16 and provenance["corpus"] == load_corpus().provenance()
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert held_out_loss(model, 2000, 64) == pytest.approx(record["held_out_loss"], abs=0.01)


def test_the_trained_model_is_the_recorded_one():
    record = lab.load_result("language")
    model, provenance = load_language_model()
    assert {**MODEL, "n_tokens": N_BYTES}.items() <= model.config.items()
    assert record["settings"] == SETTINGS == provenance["settings"] and record["model"] == MODEL
    assert len(record["losses"]) == SETTINGS["steps"] // 50
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    # Another Python has a slightly different library, so the first pages are near, not equal.
    assert held_out_loss(model, 20_000) == pytest.approx(record["held_out_loss"], abs=0.15)


def test_committed_results_say_what_chapter_05_says():
    record, bit = lab.load_result("language"), math.log(2)
    assert record["held_out_loss"] / bit == pytest.approx(1.70, abs=0.005)
    assert record["losses"][-1] / bit == pytest.approx(1.18, abs=0.005)
    assert (len(corpus.TRAIN), len(corpus.HELD_OUT)) == (101, 10)
