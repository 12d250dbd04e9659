"""Generated tasks for `Decoder`: each gives tokens (B, T + 1) and counted (B, T), as `next_token_loss` takes them.

counted is boolean: True where the prediction of the next token counts, because the tokens before it decide it.
What decides nothing (the first copy, the pairs themselves, padding) does not count. Generators are CPU generators.
Letters: B sequences.
"""

import torch
from torch import Tensor, nn

from attncourse.attention import check_at_least_one
from attncourse.lab.numbers import is_held_out, tokenize

PAD_BYTE = 0


def copy_task(batch_size: int, length: int, n_symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random symbols to repeat: separator, symbols, separator, the same symbols; the second ones count.

    Tokens (B, 2·length + 2), int64: symbols are 0 … n_symbols - 1, the separator is n_symbols, so a model needs
    n_symbols + 1 tokens. counted (B, 2·length + 1), boolean. The token to copy stands length + 1 places back.
    """
    check_at_least_one(batch_size=batch_size, length=length, n_symbols=n_symbols)
    symbols = torch.randint(n_symbols, (batch_size, length), generator=generator)
    separator = torch.full((batch_size, 1), n_symbols)
    tokens = torch.cat([separator, symbols, separator, symbols], 1)  # (B, 2·length + 2)
    counted = torch.arange(2 * length + 1) > length  # the separator at length + 1 predicts the first
    return tokens, counted.repeat(batch_size, 1)


def recall_task(
    batch_size: int,
    n_pairs: int,
    n_keys: int,
    n_values: int,
    generator: torch.Generator,
    n_queries: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Associative recall: n_pairs times a key and its value, then n_queries of these keys, each with its value again.

    Tokens (B, 2·(n_pairs + n_queries)), int64: keys are 0 … n_keys - 1, distinct within a sequence; values are
    n_keys … n_keys + n_values - 1, so a model needs n_keys + n_values tokens. counted is one shorter: True at a queried
    key, where the next token is its value. n_queries defaults to n_pairs; no key is asked twice.
    """
    n_queries = n_pairs if n_queries is None else n_queries
    check_at_least_one(batch_size=batch_size, n_pairs=n_pairs, n_values=n_values, n_queries=n_queries)
    if n_pairs > n_keys:
        raise ValueError(f"n_pairs={n_pairs} distinct keys cannot be drawn from n_keys={n_keys}")
    if n_queries > n_pairs:
        raise ValueError(f"n_queries={n_queries}, but there are only n_pairs={n_pairs} keys to ask for")
    keys = _shuffled(batch_size, n_keys, generator)[:, :n_pairs]  # (B, n_pairs)
    values = n_keys + torch.randint(n_values, (batch_size, n_pairs), generator=generator)
    asked = _shuffled(batch_size, n_pairs, generator)[:, :n_queries]  # (B, n_queries), which pair
    pairs = torch.stack([keys, values], -1)  # (B, n_pairs, 2)
    again = pairs.take_along_dim(asked[..., None], 1)  # (B, n_queries, 2)
    tokens = torch.cat([pairs, again], 1).flatten(1)  # (B, 2·(n_pairs + n_queries))
    place = torch.arange(tokens.shape[1] - 1)
    counted = (place >= 2 * n_pairs) & (place % 2 == 0)
    return tokens, counted.repeat(batch_size, 1)


def number_task(
    batch_size: int, generator: torch.Generator, *, max_digits: int = 3, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Lines like "423 = four hundred twenty three\\n" as bytes; what comes after the equals sign counts.

    Tokens (B, longest line), int64 below 256, filled with PAD_BYTE at the end; counted is one shorter. Every digit
    count up to max_digits (12 at most) is equally likely. held_out: only the numbers that training never shows,
    which have 3 digits or more (`numbers.is_held_out`); else none of them.
    """
    check_at_least_one(batch_size=batch_size)
    fewest = 3 if held_out else 1
    if not fewest <= max_digits <= 12:
        raise ValueError(f"max_digits={max_digits}, but it must be {fewest} to 12")
    lines = []
    while len(lines) < batch_size:
        digits = int(torch.randint(fewest, max_digits + 1, (), generator=generator))
        low = 0 if digits == 1 else 10 ** (digits - 1)
        number = int(torch.randint(low, 10**digits, (), generator=generator))
        while is_held_out(number) != held_out:
            number = int(torch.randint(low, 10**digits, (), generator=generator))
        lines.append(torch.tensor(list(number_line(number).encode())))
    tokens = nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=PAD_BYTE)  # (B, longest line)
    after = (tokens == ord("=")).cumsum(-1).bool()  # from the equals sign on
    return tokens, after[:, :-1] & (tokens[:, 1:] != PAD_BYTE)


def number_line(number: int) -> str:
    """A number from 0 to 999,999,999,999 in digits and in English words: "423 = four hundred twenty three\\n"."""
    return f"{number} = {' '.join(tokenize(number, 'en'))}\n"


@torch.no_grad()
def task_accuracy(model: nn.Module, tokens: Tensor, counted: Tensor) -> float:
    """The share of the counted predictions, from tokens (B, T + 1) and counted (B, T), that are the right token."""
    if not counted.any():
        raise ValueError(f"counted, of shape {tuple(counted.shape)}, is False everywhere: nothing to be right about")
    device = next(model.parameters()).device
    tokens, counted = tokens.to(device), counted.to(device)
    right = model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]  # (B, T)
    return right[counted].double().mean().item()


def _shuffled(batch_size: int, n: int, generator: torch.Generator) -> Tensor:
    """0 … n - 1 in an order of its own for each row, (B, n)."""
    return torch.rand(batch_size, n, generator=generator).argsort(-1)
