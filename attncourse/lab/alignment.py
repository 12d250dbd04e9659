"""What a translator got right, and where it looked.

Letters: B batch, S source words, T target tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attncourse.lab.numbers import Batch, encode, vocabulary
from attncourse.lab.translate import Translator

UNITS = frozenset(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
TENS = frozenset(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"])


def evaluate(model: Translator, batch: Batch) -> dict:
    """Free-running accuracy: `exact` (whole sentences), `token` (right token at the right place), both `by_length`.

    `by_length` is a list of {words, sentences, exact, token}, one for each number of source words.
    """
    batch = batch.to(next(model.parameters()).device)
    target = batch.target[:, 1:]
    written, _ = model.translate(batch.source, batch.source_mask)
    written = F.pad(written, (0, max(0, target.shape[1] - written.shape[1])))
    real = batch.target_mask[:, 1:]
    hits = ((written[:, : target.shape[1]] == target) & real).sum(-1)  # (B,)
    exact, lengths, words = hits == real.sum(-1), real.sum(-1), batch.source_mask.sum(-1)

    def scores(rows: Tensor) -> dict:
        token = hits[rows].sum() / lengths[rows].sum()
        return {
            "sentences": int(rows.sum()),
            "exact": round(exact[rows].double().mean().item(), 4),
            "token": round(token.item(), 4),
        }

    by_length = [{"words": n, **scores(words == n)} for n in words.unique().tolist()]
    return {**scores(torch.ones_like(exact)), "by_length": by_length}


@torch.no_grad()
def crossing(model: Translator, batch: Batch) -> dict:
    """Where a German model looks when it writes the unit of "ein und zwanzig", which English puts after the ten.

    Over all tens with a unit in `batch`, fed the right translation: shares of unit morphemes whose largest weight is on
    the unit word (`unit_on_unit`) or on the ten (`unit_on_ten`), the same for the ten, and `crossed`: both at home.
    """
    english, german = vocabulary("en"), vocabulary("de")
    on_cpu = batch.to("cpu")
    batch = batch.to(next(model.parameters()).device)
    looks_at = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])[1].argmax(-1).tolist()  # (B, T)
    found = []
    for row, (source, target) in enumerate(zip(on_cpu.source, on_cpu.target, strict=True)):
        words, morphemes = english.decode(source), german.decode(target)
        tens = [j for j in range(len(words) - 1) if words[j] in TENS and words[j + 1] in UNITS]
        ands = [i for i, morpheme in enumerate(morphemes) if morpheme == "und"]
        for j, i in zip(tens, ands, strict=True):
            found.append((looks_at[row][i - 1] - j, looks_at[row][i + 1] - j))  # 0 is the ten, 1 the unit
    n = len(found)
    shares = {
        "unit_on_unit": sum(unit == 1 for unit, _ in found),
        "unit_on_ten": sum(unit == 0 for unit, _ in found),
        "ten_on_ten": sum(ten == 0 for _, ten in found),
        "ten_on_unit": sum(ten == 1 for _, ten in found),
        "crossed": sum(pair == (1, 0) for pair in found),
    }
    return {"pairs": n, **{name: round(count / n, 4) for name, count in shares.items()}}


@torch.no_grad()
def alignment(model: Translator, number: int, language: str) -> dict:
    """What the model writes for `number`, and its attention weights (T, S): row t made token t. Free-running."""
    device = next(model.parameters()).device
    batch = encode([number], language).to(device)
    written, weights = model.translate(batch.source, batch.source_mask)
    target = vocabulary(language).decode(written[0])
    target += ["<eos>"] * (written.shape[1] - len(target))
    rows = [[round(w, 4) for w in row] for row in weights[0].tolist()]
    return {"number": number, "source": vocabulary("en").decode(batch.source[0]), "target": target, "weights": rows}
