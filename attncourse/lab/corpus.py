"""A text that every machine has: the Python standard library's own source, as bytes.

It differs a little between Python versions, so a result records `sha256`, and a reader's machine can say whether it
reads the same text. Letters: B sequences of T bytes.
"""

import argparse
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

N_BYTES = 256
TRAIN = """
abc argparse ast base64 bdb bisect bz2 cmd code codecs codeop compileall configparser contextlib copy copyreg
dataclasses datetime difflib dis doctest enum filecmp fileinput fnmatch ftplib functools getopt getpass gettext
gzip hashlib hmac imaplib inspect io ipaddress linecache locale lzma mailbox mimetypes modulefinder netrc ntpath
numbers opcode operator optparse os pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint
profile pstats py_compile pyclbr random reprlib runpy sched selectors shelve shutil site smtplib socket
socketserver ssl statistics string stringprep subprocess symtable tabnanny tarfile tempfile threading timeit trace
traceback tracemalloc types typing uuid warnings wave weakref webbrowser zipapp zipimport _collections_abc
_pydecimal _pyio _strptime
""".split()  # noqa: SIM905
HELD_OUT = "calendar csv fractions glob graphlib heapq queue shlex stat textwrap".split()  # noqa: SIM905


@dataclass(frozen=True)
class Corpus:
    """Bytes (N,) to train on and bytes (M,) held out, both uint8, with the SHA-256 of all."""

    train: Tensor
    held_out: Tensor
    sha256: str

    def provenance(self) -> dict:
        """What a result records of the text it was made from."""
        return {"train_bytes": len(self.train), "held_out_bytes": len(self.held_out), "sha256": self.sha256}


@cache
def load_corpus() -> Corpus:
    """The source of the modules `TRAIN` and `HELD_OUT`, joined in that order. Shared, so do not write into it.

    Raises FileNotFoundError where this Python came without its library's source.
    """
    folder = Path(argparse.__file__).parent
    parts = [b"".join((folder / f"{name}.py").read_bytes() for name in names) for names in (TRAIN, HELD_OUT)]
    train, held_out = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts)
    return Corpus(train, held_out, hashlib.sha256(b"".join(parts)).hexdigest())


def sample_bytes(text: Tensor, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Pieces of a text (N,), drawn with a CPU generator: (batch_size, length), int64."""
    if length > len(text):
        raise ValueError(f"length={length}, but the text has {len(text)} bytes")
    starts = torch.randint(len(text) - length + 1, (batch_size, 1), generator=generator)
    return text[starts + torch.arange(length)].long()  # (B, length)


def to_text(tokens: Tensor) -> str:
    """Bytes (T,) as a string; what is no UTF-8 becomes �."""
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")


def from_text(text: str) -> Tensor:
    """A string as its bytes, (T,), int64."""
    return torch.tensor(list(text.encode()), dtype=torch.int64)
