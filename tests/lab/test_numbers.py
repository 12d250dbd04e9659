import random

import pytest
import torch
from num2words import num2words

from attncourse.lab.numbers import (
    BOS,
    EOS,
    PAD,
    Vocabulary,
    encode,
    is_held_out,
    join,
    sample_numbers,
    spell,
    tokenize,
    vocabulary,
)

MANY = [*range(110), *range(110, 2000, 13), 10**6, 10**9, 2 * 10**6, 10**12 - 1]
MANY += [random.Random(n).randrange(10 ** (4 + n % 9)) for n in range(150)]


def test_english_words_lose_only_commas_hyphens_and_and():
    assert tokenize(421, "en") == ["four", "hundred", "twenty", "one"]
    assert tokenize(1_000_021, "en") == ["one", "million", "twenty", "one"]
    assert tokenize(12_300, "en") == ["twelve", "thousand", "three", "hundred"]
    assert tokenize(1000, "en") != tokenize(1001, "en")
    assert len({tuple(tokenize(n, "en")) for n in range(900, 1300)}) == 400  # nothing that tells numbers apart is lost


def test_german_morphemes():
    assert tokenize(421, "de") == ["▁vier", "hundert", "ein", "und", "zwanzig"]
    assert tokenize(101, "de") == ["▁ein", "hundert", "eins"]  # eins, not ein + s
    assert tokenize(717, "de") == ["▁sieben", "hundert", "siebzehn"]
    assert tokenize(2_000_016, "de") == ["▁zwei", "▁Millionen", "▁sechzehn"]


def test_french_words():
    assert tokenize(97, "fr") == ["▁quatre", "-vingt", "-dix", "-sept"]
    assert tokenize(421, "fr") == ["▁quatre", "▁cent", "▁vingt", "▁et", "▁un"]
    assert tokenize(80_000_000, "fr") == ["▁quatre", "-vingts", "▁millions"]


@pytest.mark.parametrize("language", ["de", "fr"])
def test_tokens_give_the_spelling_back_and_are_in_the_vocabulary(language):
    words = vocabulary(language)
    for number in MANY:
        tokens = tokenize(number, language)
        assert join(tokens) == num2words(number, lang=language)
        assert words.decode(words.encode(tokens)) == tokens
    english = vocabulary("en")
    assert all(english.encode(tokenize(number, "en")) for number in MANY)


def test_german_is_cut_into_single_morphemes():
    # Every thousand-block is a list of known pieces: no piece is glued, so there are few of them.
    assert len(vocabulary("de")) == 68
    assert max(len(token.strip("▁")) for token in vocabulary("de").tokens) == len("Milliarden")


def test_spell_refuses_what_the_vocabulary_does_not_cover():
    with pytest.raises(ValueError, match="number=1000000000000"):
        spell(10**12, "de")
    with pytest.raises(ValueError, match="language='es'"):
        spell(1, "es")


def test_the_split_is_fixed_and_about_a_tenth():
    assert [n for n in range(200) if is_held_out(n)] == [108, 110, 140, 154, 155, 159, 170, 189, 193, 194, 195]
    assert 0.09 < sum(map(is_held_out, range(100, 20_000))) / 19_900 < 0.11


def test_sampled_numbers_keep_to_their_side_and_cover_every_digit_count():
    training = sample_numbers(900, 1, max_digits=9)
    test = sample_numbers(700, 2, max_digits=9, held_out=True)
    assert not set(training) & set(test)
    assert not any(map(is_held_out, training)) and all(map(is_held_out, test))
    assert len(set(test)) == len(test)
    assert {d: [len(str(n)) for n in training].count(d) for d in range(1, 10)} == dict.fromkeys(range(1, 10), 100)
    assert {len(str(n)) for n in test} == set(range(3, 10))
    assert training == sample_numbers(900, 1, max_digits=9) != sample_numbers(900, 3, max_digits=9)


def test_batches_are_padded_and_masked():
    batch = encode([7, 421, 1_000_021], "de")
    english, german = vocabulary("en"), vocabulary("de")
    assert batch.source.tolist()[0] == [english.ids["seven"], PAD, PAD, PAD]
    assert batch.source_mask.sum(-1).tolist() == [1, 4, 4]
    assert batch.target.tolist()[0] == [BOS, german.ids["▁sieben"], EOS, PAD, PAD, PAD, PAD]
    assert torch.equal(batch.target_mask, batch.target != PAD) and batch.target_mask.dtype == torch.bool
    assert german.decode(batch.target[1]) == tokenize(421, "de")


def test_take_drops_common_padding_only():
    batch = encode([7, 421, 19], "fr")
    short = batch.take(torch.tensor([2, 0]))
    alone = encode([19, 7], "fr")
    assert all(torch.equal(a, b) for a, b in zip(short, alone, strict=True))
    assert torch.equal(batch.take(torch.tensor([0, 1])).source, batch.source[:2])


def test_vocabulary_decodes_up_to_the_end_and_refuses_strangers():
    words = Vocabulary(["b", "a"])
    assert words.tokens[3:] == ["a", "b"] and words.encode(["b", "a"]) == [4, 3]
    assert words.decode([BOS, 4, EOS, 3]) == ["b"] == words.decode(torch.tensor([4, PAD, 3]))
    with pytest.raises(KeyError):
        words.encode(["c"])
