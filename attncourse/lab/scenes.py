"""Small images with coloured shapes, questions about them, and a model whose words read image patches.

An image is a grid of 4 × 4 patches; two or three of them hold a shape each, all of different colours and different
shapes, everything else is noise. Letters: B images, T words of a question, S = 16 patches, P pixels on a patch's side.
"""

import hashlib
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.cross_attention import CrossAttention
from attncourse.lab.records import DATA, load_weights, save_weights
from attncourse.lab.training import History, seeded, train

GRID, P = 4, 8
COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.1, 0.7, 0.2), "blue": (0.2, 0.4, 0.95), "yellow": (0.95, 0.85, 0.2)}
SHAPES = ("circle", "square", "triangle", "cross")
ANSWERS = (*COLOURS, *SHAPES, "yes", "no")
KINDS = ("colour", "shape", "both")
WORDS = ("<pad>", "what", "colour", "shape", "is", "the", "there", "a", "?", *COLOURS, *SHAPES)
LENGTH = 6  # words of the longest question


class Scene(NamedTuple):
    """What an image shows: for each object its patch (0 to 15, row by row), its colour and its shape."""

    objects: tuple[tuple[int, str, str], ...]


class Questions(NamedTuple):
    """images (B, 3, 32, 32), words (B, T) padded with 0, words_mask (B, T), answers (B,), kinds (B,).

    `scenes` and `texts` say the same in words.
    """

    images: Tensor
    words: Tensor
    words_mask: Tensor
    answers: Tensor
    kinds: Tensor
    scenes: list[Scene]
    texts: list[str]

    def to(self, device: str | torch.device) -> "Questions":
        return Questions(*(part.to(device) if isinstance(part, Tensor) else part for part in self))


def draw(scene: Scene, generator: torch.Generator) -> Tensor:
    """The image (3, 32, 32): shapes of slightly different size and place within their patch, on grey noise."""
    image = 0.12 + 0.05 * torch.rand(3, GRID * P, GRID * P, generator=generator)
    row, column = torch.meshgrid(torch.arange(P) + 0.5, torch.arange(P) + 0.5, indexing="ij")
    for patch, colour, shape in scene.objects:
        shift = torch.rand(2, generator=generator) - 0.5
        radius = 2.9 + 0.7 * torch.rand((), generator=generator)
        y, x = row - P / 2 - shift[0], column - P / 2 - shift[1]
        inside = {
            "circle": x.square() + y.square() < radius.square(),
            "square": torch.maximum(x.abs(), y.abs()) < 0.9 * radius,
            "triangle": (y < 0.9 * radius) & (2 * x.abs() < y + radius),
            "cross": (torch.minimum(x.abs(), y.abs()) < 0.35 * radius) & (torch.maximum(x.abs(), y.abs()) < radius),
        }[shape]
        top, left = P * (patch // GRID), P * (patch % GRID)
        tile = image[:, top : top + P, left : left + P]
        tile[:, inside] += torch.tensor(COLOURS[colour])[:, None]
    return image.clamp(0, 1)


def ask(scene: Scene, kind: str, rng: random.Random) -> tuple[str, str]:
    """A question of one of `KINDS` about the scene, and its answer. Half of the answers to "both" are yes."""
    _, colour, shape = rng.choice(scene.objects)
    if kind == "colour":
        return f"what colour is the {shape} ?", colour
    if kind == "shape":
        return f"what shape is {colour} ?", shape
    if rng.random() < 0.5:
        return f"is there a {colour} {shape} ?", "yes"
    others = [other for _, _, other in scene.objects if other != shape]
    return f"is there a {colour} {rng.choice(others)} ?", "no"


def make(n: int, seed: int) -> Questions:
    """n images with a question each, as many of each kind."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes, texts, answers, kinds = [], [], [], []
    for i in range(n):
        count = rng.choice((2, 3))
        places, colours = rng.sample(range(GRID * GRID), count), rng.sample(list(COLOURS), count)
        scenes.append(Scene(tuple(zip(places, colours, rng.sample(SHAPES, count), strict=True))))
        kinds.append(i % len(KINDS))
        text, answer = ask(scenes[-1], KINDS[i % len(KINDS)], rng)
        texts.append(text)
        answers.append(ANSWERS.index(answer))
    images = torch.stack([draw(scene, generator) for scene in scenes])
    words = torch.tensor([encode(text) for text in texts])
    return Questions(images, words, words > 0, torch.tensor(answers), torch.tensor(kinds), scenes, texts)


def encode(text: str) -> list[int]:
    """The ids of a question's words, padded to `LENGTH`; an unknown word raises ValueError."""
    ids = [WORDS.index(word) for word in text.split()]
    return ids + [0] * (LENGTH - len(ids))


@cache
def load(n_train: int = 3000, n_test: int = 900) -> tuple[Questions, Questions]:
    """Training and test questions, on different images: the same in every run. Takes about two seconds."""
    return make(n_train, 1), make(n_test, 2)


def provenance(**data: int) -> dict:
    """How many questions of `load`, and the SHA-256 of all as text, with what their images show."""
    parts = load(**data)
    lines = [f"{scene.objects}\t{text}" for part in parts for scene, text in zip(part.scenes, part.texts, strict=True)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"train": len(parts[0].texts), "test": len(parts[1].texts), "sha256": digest}


def patches(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, height, width) as tokens (B, S, C·patch·patch), the patches row by row."""
    return F.unfold(images, patch, stride=patch).mT


class Reader(nn.Module):
    """Words that read an image: every word is a query of one cross-attention over the patches; then they are added up.

    No word sees another before the sum, so where a word reads depends on that word and the image alone. Patches get no
    positions, so the image is a set of patches.
    """

    def __init__(self, d_model: int = 32, d_image: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), d_model, padding_idx=0)
        self.see = nn.Sequential(nn.Linear(3 * P * P, d_image), nn.GELU(), nn.Linear(d_image, d_image))
        self.cross = CrossAttention(d_model, d_image)
        self.network = nn.Sequential(
            nn.RMSNorm(d_model), nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model)
        )
        self.output = nn.Sequential(
            nn.RMSNorm(d_model), nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, len(ANSWERS))
        )

    def look(self, images: Tensor) -> Tensor:
        """The tokens (B, S, d_image) of images (B, 3, height, width)."""
        return self.see(4 * (patches(images, P) - 0.2))

    def read(self, image: Tensor, words: Tensor, mask: Tensor, context_mask: Tensor | None = None) -> tuple:
        """Logits (B, 10) for the answers and where each word reads, (B, T, S), from an image's tokens (B, S, d_image).

        words (B, T); mask (B, T), True = a word; context_mask (B, S), True = a patch of the image.
        """
        x = self.embedding(words)  # (B, T, d_model)
        allowed = None if context_mask is None else context_mask[:, None]
        found, weights = self.cross(x, image, allowed, return_weights=True)
        x = x + found
        x = x + self.network(x)
        return self.output((x * mask[..., None]).sum(1)), weights

    def forward(self, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, 10) for the answers to questions words (B, T) about images (B, 3, 32, 32)."""
        return self.read(self.look(images), words, mask)[0]


def train_reader(seed: int, *, steps: int = 1000, device: str = "cpu", **data: int) -> tuple[Reader, History]:
    """A reader trained on the questions of `load`; `seed` decides its first weights and the order of the questions."""
    torch.manual_seed(seed)
    model, asked = Reader().to(device), load(**data)[0].to(device)

    def loss_fn(model: Reader, step: int) -> Tensor:
        rows = torch.randint(len(asked.images), (64,), generator=seeded(seed, step)).to(device)
        logits = model(asked.images[rows], asked.words[rows], asked.words_mask[rows])
        return F.cross_entropy(logits, asked.answers[rows])

    return model, train(model, loss_fn, steps, lr=3e-3, seed=seed, label="reader")


@torch.no_grad()
def score(model: Reader, asked: Questions) -> dict:
    """Shares of right answers, over all and by kind of question; and how often a word's largest weight is at home.

    "home": of the words that name the colour or the shape of an object of the image, those whose largest weight lies on
    its patch; "home_by_word": the same for each word.
    """
    asked = asked.to(next(model.parameters()).device)
    logits, weights = model.read(model.look(asked.images), asked.words, asked.words_mask)
    right, looks_at = (logits.argmax(-1) == asked.answers).double(), weights.argmax(-1).tolist()
    home: dict[str, list[bool]] = {word: [] for word in (*COLOURS, *SHAPES)}
    for row, (scene, text) in enumerate(zip(asked.scenes, asked.texts, strict=True)):
        for t, word in enumerate(text.split()):
            for patch, *names in scene.objects:
                if word in names:
                    home[word].append(looks_at[row][t] == patch)
    by_word = {word: round(sum(found) / len(found), 4) for word, found in home.items() if found}
    found = [hit for hits in home.values() for hit in hits]
    by_kind = {kind: round(right[asked.kinds == i].mean().item(), 4) for i, kind in enumerate(KINDS)}
    share = {"home": round(sum(found) / len(found), 4), "home_by_word": by_word}
    return {"exact": round(right.mean().item(), 4), "by_kind": by_kind, **share}


def save_reader(model: Reader, path: str | Path, provenance: dict) -> None:
    """Write the weights in float16 and the provenance to a safetensors file."""
    save_weights(model, path, torch.float16, provenance=provenance)


def load_reader(path: str | Path | None = None) -> tuple[Reader, dict]:
    """The reader trained by `make lab`, seed 0, in float32 and ready to read, and its provenance."""
    state, about = load_weights(path or DATA / "cross_attention_reader.safetensors")
    model = Reader()
    model.load_state_dict(state)
    return model.eval(), about["provenance"]
