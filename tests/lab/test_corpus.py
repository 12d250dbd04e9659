import hashlib
import heapq
from pathlib import Path

import pytest
import torch

from attncourse.lab import corpus
from attncourse.lab.corpus import from_text, load_corpus, sample_bytes, to_text
from attncourse.lab.training import seeded


def test_the_corpus_is_this_pythons_library():
    text = load_corpus()
    assert text.train.dtype == text.held_out.dtype == torch.uint8
    assert len(text.train) > 2_000_000 and 100_000 < len(text.held_out) < len(text.train) / 8
    assert Path(heapq.__file__).read_text() in to_text(text.held_out)
    assert to_text(text.train[:200]) == (Path(hashlib.__file__).parent / "abc.py").read_text()[:200]


def test_nothing_is_in_both_parts():
    assert not set(corpus.TRAIN) & set(corpus.HELD_OUT)
    assert len(set(corpus.TRAIN)) == len(corpus.TRAIN)


def test_the_hash_is_of_all_bytes_in_order():
    text = load_corpus()
    everything = bytes(text.train.tolist()) + bytes(text.held_out.tolist())
    assert text.sha256 == hashlib.sha256(everything).hexdigest() and len(text.sha256) == 64
    again = load_corpus.__wrapped__()
    assert again.sha256 == text.sha256 and torch.equal(again.train, text.train)
    assert text.provenance() == {
        "train_bytes": len(text.train),
        "held_out_bytes": len(text.held_out),
        "sha256": text.sha256,
    }


def test_a_python_without_its_source(monkeypatch):
    monkeypatch.setattr(corpus, "TRAIN", ["no_such_module"])
    with pytest.raises(FileNotFoundError, match=r"no_such_module\.py"):
        load_corpus.__wrapped__()


def test_samples_are_pieces_of_the_text():
    text = torch.arange(50, dtype=torch.uint8)
    pieces = sample_bytes(text, 500, 7, seeded(0, 0))
    assert pieces.shape == (500, 7) and pieces.dtype == torch.int64
    assert torch.equal(pieces - pieces[:, :1], torch.arange(7).expand(500, 7))
    assert pieces.min() == 0 and pieces.max() == 49  # both ends are drawn
    assert torch.equal(pieces, sample_bytes(text, 500, 7, seeded(0, 0)))


def test_a_piece_may_be_the_whole_text_but_not_more():
    text = torch.arange(9, dtype=torch.uint8)
    assert torch.equal(sample_bytes(text, 2, 9, seeded(0, 0)), text.long().expand(2, 9))
    with pytest.raises(ValueError, match="length=10, but the text has 9 bytes"):
        sample_bytes(text, 2, 10, seeded(0, 0))


def test_bytes_and_text():
    assert from_text("é =").tolist() == [0xC3, 0xA9, 0x20, 0x3D]
    assert to_text(from_text("def f(x): return 'ü'")) == "def f(x): return 'ü'"
    assert to_text(torch.tensor([0xC3, 0x20])) == "� "
