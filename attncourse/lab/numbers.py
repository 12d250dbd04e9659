"""Number words as a translation task: English to German or French, in words and morphemes.

Small, yet it has what real translation has: sentences of 1 to 19 words, words that swap places (forty-two is
"zweiundvierzig", two and forty), several words for one (ninety is "quatre-vingt-dix", four twenty ten), agreement
("cent" and "cents"). The spelling is num2words' own, slips included ("einhunderteinstausend" for 101,000).
Letters: N pairs, B batch, S source words, T target tokens.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from num2words import num2words
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
WORD_START = "▁"  # stands for the space before a written word, as in SentencePiece
GERMAN_MORPHEMES = """
    null eins eine ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn
    siebzehn achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig und hundert tausend
    Millionen Million Milliarden Milliarde
"""
# The longest piece that fits comes first.
_MORPHEME = re.compile("|".join(sorted(GERMAN_MORPHEMES.split(), key=len, reverse=True)))


def spell(number: int, language: str) -> str:
    """num2words' spelling of `number`, 0 to 999,999,999,999, in "en", "de" or "fr"."""
    if not 0 <= number < 10**12:
        raise ValueError(f"number={number}, but it must be 0 to 999,999,999,999")
    if language not in ("en", "de", "fr"):
        raise ValueError(f'language={language!r}, but it must be "en", "de" or "fr"')
    return num2words(number, lang=language)


def tokenize(number: int, language: str) -> list[str]:
    """The tokens of `number`; German and French ones give the spelling back, character for character, with `join`.

    English: words, split at spaces and hyphens; commas and "and" are dropped, since they carry nothing.
    German: morphemes, the longest first, "▁" where a written word starts: 421 is ▁vier hundert ein und zwanzig.
    French: words with "▁" before them, parts of a word with their hyphen: 97 is ▁quatre -vingt -dix -sept.
    """
    text = spell(number, language)
    if language == "en":
        return [word for word in re.split(r"[ ,-]+", text) if word != "and"]
    if language == "de":
        tokens = [piece for word in text.split(" ") for piece in _mark(_MORPHEME.findall(word))]
    else:
        tokens = re.findall(r"▁[^▁-]+|-[^▁-]+", WORD_START + text.replace(" ", WORD_START))
    if join(tokens) != text:
        raise ValueError(f"the tokens {tokens} do not spell {text!r}")
    return tokens


def _mark(pieces: list[str]) -> list[str]:
    return [WORD_START + pieces[0], *pieces[1:]] if pieces else []


def join(tokens: Iterable[str]) -> str:
    """The written text of German or French `tokens`."""
    return "".join(tokens).replace(WORD_START, " ").removeprefix(" ")


class Vocabulary:
    """Tokens and their ids; ids 0, 1 and 2 are padding, beginning and end of a sentence."""

    def __init__(self, tokens: Iterable[str]):
        self.tokens = ["<pad>", "<bos>", "<eos>", *sorted(set(tokens))]
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of `tokens`; a token that is not in the vocabulary raises KeyError."""
        return [self.ids[token] for token in tokens]

    def decode(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Tokens up to the first end of sentence or padding, without the beginning mark."""
        tokens = []
        for i in ids.tolist() if isinstance(ids, Tensor) else ids:
            if i in (PAD, EOS):
                break
            if i != BOS:
                tokens.append(self.tokens[i])
        return tokens


@cache
def vocabulary(language: str) -> Vocabulary:
    """Every token that the numbers below 10**12 need: the same list in every run."""
    numbers = [base + scale * n for n in range(1000) for scale in (1, 1000) for base in (0, 10**6)]
    numbers += [10**6, 2 * 10**6, 10**9, 2 * 10**9, 80 * 10**6, 200 * 10**6]
    return Vocabulary(token for number in numbers for token in tokenize(number, language))


def is_held_out(number: int) -> bool:
    """Whether `number` is kept for testing: about one in ten from 100 up, by a hash, so the same on every machine.

    All below 100 are trained on: they are the dictionary ("zero" occurs nowhere else).
    """
    return number >= 100 and int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") % 10 == 0


def sample_numbers(count: int, seed: int, *, max_digits: int = 9, held_out: bool = False) -> list[int]:
    """About `count` random numbers, as many of each digit count up to `max_digits`; all held out, or none of them.

    Held-out numbers have 3 digits or more and are distinct; where a digit count has too few, all of them are taken.
    """
    rng, numbers = random.Random(seed), []
    lengths = range(3 if held_out else 1, max_digits + 1)
    for digits in lengths:
        low, high = 0 if digits == 1 else 10 ** (digits - 1), 10**digits
        share = count // len(lengths)
        if digits <= 4:  # few numbers: list them
            pool = [n for n in range(low, high) if is_held_out(n) == held_out]
            numbers += rng.sample(pool, min(share, len(pool))) if held_out else rng.choices(pool, k=share)
        else:
            drawn: dict[int, None] = {}  # a set that keeps its order
            while len(drawn) < share:
                n = rng.randrange(low, high)
                if is_held_out(n) == held_out:
                    drawn[n] = None
            numbers += drawn
    return numbers


class Batch(NamedTuple):
    """Sentences as padded ids, and masks that are True at real tokens.

    source, source_mask (B, S); target, target_mask (B, T + 1), from <bos> to <eos>.
    """

    source: Tensor
    source_mask: Tensor
    target: Tensor
    target_mask: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))

    def take(self, rows: Tensor) -> "Batch":
        """The sentences `rows` (B,), without the columns that are padding in all of them."""
        source_mask, target_mask = self.source_mask[rows], self.target_mask[rows]
        S, T = int(source_mask.sum(-1).max()), int(target_mask.sum(-1).max())
        return Batch(self.source[rows, :S], source_mask[:, :S], self.target[rows, :T], target_mask[:, :T])


def encode(numbers: Sequence[int], language: str) -> Batch:
    """`numbers` in English and in `language` ("de" or "fr"), as one padded batch."""
    english, other = vocabulary("en"), vocabulary(language)
    source = _pad([english.encode(tokenize(n, "en")) for n in numbers])
    target = _pad([[BOS, *other.encode(tokenize(n, language)), EOS] for n in numbers])
    return Batch(source, source != PAD, target, target != PAD)


def _pad(rows: list[list[int]]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
