"""The experiment of chapter 01: does a translator forget long sentences, with attention and without?

Number words, English to German and French, three seeds. The test is free-running: the model reads its own output,
and a sentence counts only if every token is right. Letters: B batch, S source words, T target tokens.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attncourse.lab.alignment import alignment, crossing, evaluate
from attncourse.lab.numbers import Batch, encode, join, sample_numbers, vocabulary
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History, seeded, train
from attncourse.lab.translate import Translator, load_translator, save_translator, translation_loss

SHOWN = (423, 799, 992, 42042, 1000021, 123456799)  # held out; 2 to 14 words, crossing tens and units, 799 and 992


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its language and its seed. `attention=False` feeds the fixed summary."""

    attention: bool = True
    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-2
    embed_dim: int = 32
    hidden_dim: int = 64


FIXED = Settings(attention=False)
RUNS = {  # name -> settings and languages; the last three ask whether the comparison is fair
    "attention": (Settings(), ("de", "fr")),
    "fixed": (FIXED, ("de", "fr")),
    "fixed, same parameters": (replace(FIXED, hidden_dim=69), ("de",)),
    "fixed, 3 times the steps": (replace(FIXED, steps=900), ("de",)),
    "fixed, 10 times the steps": (replace(FIXED, steps=3000), ("de",)),
}


@dataclass(frozen=True)
class Pairs:
    """Training and held-out sentences of one language ("de" or "fr")."""

    language: str
    train: Batch
    test: Batch

    def provenance(self) -> dict:
        """How many pairs, and the SHA-256 of all as text, a line each: training, an empty line, test."""
        blocks = ["\n".join(map("\t".join, sentences(part, self.language))) for part in (self.train, self.test)]
        digest = hashlib.sha256("\n\n".join(blocks).encode()).hexdigest()
        return {"train": len(self.train.source), "test": len(self.test.source), "sha256": digest}


def sentences(batch: Batch, language: str) -> list[tuple[str, str]]:
    """The text of each pair: English words without "and", and the other language's spelling."""
    english, other = vocabulary("en"), vocabulary(language)
    rows = zip(batch.source, batch.target, strict=True)
    return [(" ".join(english.decode(source)), join(other.decode(target))) for source, target in rows]


@cache
def load_pairs(language: str, *, n_train: int = 6000, n_test: int = 1400, max_digits: int = 9) -> Pairs:
    """The data: the same for every seed; shared, so do not write into it. Takes about two seconds."""
    train_numbers = sample_numbers(n_train, 1, max_digits=max_digits)
    test_numbers = sample_numbers(n_test, 2, max_digits=max_digits, held_out=True)
    return Pairs(language, encode(train_numbers, language), encode(test_numbers, language))


def train_translator(
    pairs: Pairs, settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True
) -> tuple[Translator, History]:
    """A translator trained on `pairs.train`; `seed` decides its first weights and the order of the sentences."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": settings.embed_dim, "hidden_dim": settings.hidden_dim, "attention": settings.attention}
    model = Translator(len(vocabulary("en")), len(vocabulary(pairs.language)), **sizes).to(device)
    label = "with attention" if settings.attention else "fixed vector"
    options = {"steps": settings.steps, "lr": settings.lr, "progress": progress, "label": label}
    return model, fit(model, pairs, seed, batch_size=settings.batch_size, device=device, **options)


def fit(
    model: Translator, pairs: Pairs, seed: int, *, steps: int, batch_size: int, device: str = "cpu", **options: Any
) -> History:
    """Train `model` on `pairs.train`; `seed` decides the order of the sentences. `options` go to `train`."""

    def loss_fn(model: Translator, step: int) -> Tensor:
        rows = torch.randint(len(pairs.train.source), (batch_size,), generator=seeded(seed, step))
        return translation_loss(model, pairs.train.take(rows).to(device))

    return train(model, loss_fn, steps, seed=seed, **options)


def load_german() -> tuple[Translator, dict]:
    """The German translator with attention, seed 0, trained by `make lab`, and where it came from."""
    return load_translator(DATA / "bahdanau_de.safetensors")


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, tuple[Settings, tuple[str, ...]]] = RUNS,
    **data: int,
) -> dict:
    """All runs, into the folder `out`: bahdanau.json, bahdanau_alignments.json and bahdanau_de.safetensors.

    `data` goes to `load_pairs`. A finished run is kept when the experiment is interrupted and started again; one made
    from other data, or with other settings or versions, is made again.
    """
    out = Path(out)
    planned = {}
    for name, (settings, languages) in runs.items():
        for language, seed in product(languages, seeds):
            made_from = {"language": language, "model": name, "seed": seed, "settings": asdict(settings)}
            made_from |= {"data": load_pairs(language, **data).provenance(), "environment": environment(device)}
            planned[f"{language}/{name}/{seed}"] = made_from

    def make(key: str, made_from: dict) -> dict:
        settings = runs[made_from["model"]][0]
        return _one_run(load_pairs(made_from["language"], **data), settings, device, out, made_from)

    return {"runs": keep_or_make(out / "bahdanau.json", planned, make)}


def _one_run(pairs: Pairs, settings: Settings, device: str, out: Path, made_from: dict) -> dict:
    seed, language = made_from["seed"], pairs.language
    model, history = train_translator(pairs, settings, seed, device=device)
    record = training_record(model, history) | evaluate(model, pairs.test)
    if settings.attention and language == "de":
        record["crossing"] = crossing(model, pairs.test)
    if settings.attention and seed == 0:
        file = out / "bahdanau_alignments.json"
        shown = json.loads(file.read_text()) if file.exists() else {}
        shown[language] = {**made_from, "alignments": [alignment(model, n, language) for n in SHOWN]}
        write_json(file, shown)
        if language == "de":
            save_translator(model, out / "bahdanau_de.safetensors", {**made_from, "date": record["date"]})
    return record
