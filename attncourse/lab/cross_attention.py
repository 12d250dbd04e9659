"""The experiments of chapter 04: a transformer that translates number words, and text that reads an image.

The translator does chapter 01's task with the parameters of Bahdanau's model, about, and no recurrence: self-attention
reads the source, causal self-attention what is written, and cross-attention, one head a layer, is the only way from one
to the other. The images are of `attncourse.lab.scenes`. Letters: B batch, S source words, T target tokens.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attncourse.attention import scaled_dot_product_attention
from attncourse.causal import CausalSelfAttention
from attncourse.cross_attention import CrossAttention
from attncourse.kv_cache import KVCache
from attncourse.lab import scenes
from attncourse.lab.alignment import alignment, crossing, evaluate
from attncourse.lab.bahdanau import SHOWN, Pairs, fit, load_pairs
from attncourse.lab.numbers import BOS, EOS, PAD, vocabulary
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History
from attncourse.positions import sinusoidal
from attncourse.self_attention import SelfAttention

Read = Callable[[Tensor], tuple[Tensor, Tensor]]


def remember(cross: CrossAttention, context: Tensor, mask: Tensor | None = None) -> Read:
    """`cross` as a function of x alone, with output and weights: keys and values of the context are projected now."""
    key, value = cross.k_proj(context), cross.v_proj(context)  # (B, S, D) each

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        output, weights = scaled_dot_product_attention(cross.q_proj(x), key, value, mask, return_weights=True)
        return cross.o_proj(output), weights  # (B, T, d_model), (B, T, S)

    return read


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)); every source word sees every other."""

    def __init__(self, d_model: int):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(d_model), SelfAttention(d_model)
        self.network_norm, self.network = nn.RMSNorm(d_model), network(d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, d_model) and the padding mask (B, 1, S) give the same shape as x."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.network(self.network_norm(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, then cross-attention to the source, then a network, each added to x."""

    def __init__(self, d_model: int):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(d_model), CausalSelfAttention(d_model)
        self.cross_norm, self.cross = nn.RMSNorm(d_model), CrossAttention(d_model, d_model)
        self.network_norm, self.network = nn.RMSNorm(d_model), network(d_model)

    def forward(self, x: Tensor, read: Read, cache: KVCache | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, d_model) and the weights (B, T, S) of `read`, which stands for the cross-attention."""
        x = x + self.attention(self.attention_norm(x), cache=cache)
        found, weights = read(self.cross_norm(x))
        x = x + found
        return x + self.network(self.network_norm(x)), weights


def network(d_model: int) -> nn.Module:
    """Two layers, the one between twice as wide."""
    return nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model))


class TransformerTranslator(nn.Module):
    """A transformer encoder and decoder of one head, with the interface of `attncourse.lab.translate.Translator`.

    Vaswani et al. 2017. Differs from the paper: one head, norms (RMS) before each part and after the last block,
    networks twice as wide instead of four times, no dropout. `shown_layer` says of which layer `decode` and `translate`
    give the cross-attention's weights: the last.
    """

    def __init__(self, n_source: int, n_target: int, *, d_model: int = 52, n_layers: int = 2):
        super().__init__()
        self.d_model, self.shown_layer = d_model, -1
        self.source_embedding = nn.Embedding(n_source, d_model, padding_idx=PAD)
        self.target_embedding = nn.Embedding(n_target, d_model, padding_idx=PAD)
        self.encoder = nn.ModuleList(EncoderBlock(d_model) for _ in range(n_layers))
        self.encoder_norm = nn.RMSNorm(d_model)
        self.decoder = nn.ModuleList(DecoderBlock(d_model) for _ in range(n_layers))
        self.decoder_norm = nn.RMSNorm(d_model)
        self.output = nn.Linear(d_model, n_target)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """A state for every source word, (B, S, d_model)."""
        x = self.source_embedding(source) + self._places(0, source.shape[1])
        for block in self.encoder:
            x = block(x, source_mask[:, None])
        return self.encoder_norm(x)

    def forward(self, source: Tensor, source_mask: Tensor, target_in: Tensor) -> Tensor:
        """Logits (B, T, n_target) for the token after each of `target_in` (B, T), which starts with <bos>.

        source (B, S), source_mask (B, S) boolean, True = a word.
        """
        return self.decode(source, source_mask, target_in)[0]

    def decode(self, source: Tensor, source_mask: Tensor, target_in: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, n_target), all at once, and the cross-attention's weights (B, T, S), when fed `target_in`."""
        states = self.encode(source, source_mask)
        reads = [partial(b.cross, context=states, mask=source_mask[:, None], return_weights=True) for b in self.decoder]
        logits, weights = self._write(target_in, 0, reads, [None] * len(reads))
        return logits, weights[self.shown_layer]

    @torch.no_grad()
    def translate(self, source: Tensor, source_mask: Tensor, max_length: int = 40) -> tuple[Tensor, Tensor]:
        """Write greedily, each token fed back: tokens (B, T), padded after <eos>, and weights (B, T, S).

        The source's keys and values are projected once, those of what is written stand in caches. T is at most
        `max_length`; it stops when every sentence has ended.
        """
        states = self.encode(source, source_mask)
        reads = [remember(block.cross, states, source_mask[:, None]) for block in self.decoder]
        caches = [block.attention.new_cache(len(source), max_length) for block in self.decoder]
        token = source.new_full((len(source), 1), BOS)
        done = torch.zeros_like(token, dtype=torch.bool)
        tokens, all_weights = [], []
        for i in range(max_length):
            logits, weights = self._write(token, i, reads, caches)  # (B, 1, n_target)
            token = logits.argmax(-1).masked_fill(done, PAD)  # (B, 1)
            tokens.append(token)
            all_weights.append(weights[self.shown_layer])
            done = done | (token == EOS)
            if done.all():
                break
        return torch.cat(tokens, 1), torch.cat(all_weights, 1)

    def _write(self, target_in: Tensor, start: int, reads: list, caches: list) -> tuple[Tensor, list[Tensor]]:
        """Logits for tokens (B, T) from position `start` on, and every layer's cross-attention weights."""
        x = self.target_embedding(target_in) + self._places(start, start + target_in.shape[1])
        weights = []
        for block, read, cache in zip(self.decoder, reads, caches, strict=True):
            x, of_this_layer = block(x, read, cache)
            weights.append(of_this_layer)
        return self.output(self.decoder_norm(x)), weights

    def _places(self, start: int, end: int) -> Tensor:
        return sinusoidal(end, self.d_model)[start:].to(self.output.weight)  # (T, d_model)


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. The defaults are Bahdanau's steps, batch and learning rate."""

    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-2
    d_model: int = 52
    n_layers: int = 2


RUNS = {
    "300 steps": Settings(),
    "300 steps, lr 0.003": Settings(lr=3e-3),
    "900 steps": Settings(steps=900),
    "900 steps, lr 0.003": Settings(steps=900, lr=3e-3),
}
SHOWN_RUN = "900 steps, lr 0.003"


def train_translator(
    pairs: Pairs, settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True
) -> tuple[TransformerTranslator, History]:
    """A translator trained on `pairs.train`; `seed` decides its first weights and the order of the sentences."""
    torch.manual_seed(seed)
    sizes = {"d_model": settings.d_model, "n_layers": settings.n_layers}
    model = TransformerTranslator(len(vocabulary("en")), len(vocabulary(pairs.language)), **sizes).to(device)
    options = {"steps": settings.steps, "lr": settings.lr, "progress": progress, "label": "transformer"}
    return model, fit(model, pairs, seed, batch_size=settings.batch_size, device=device, **options)


def step_functions(B: int, S: int, size: int = 64) -> dict[str, Callable[[], object]]:
    """One decoding step (one query a sequence) of cross-attention: the context projected anew, or projected before."""
    torch.manual_seed(0)
    cross, x, context = CrossAttention(size, size), torch.randn(B, 1, size), torch.randn(B, S, size)
    return {"anew": partial(cross, x, context, return_weights=True), "once": partial(remember(cross, context), x)}


def multiply_adds(function: Callable[[], object]) -> int:
    """Multiply-adds of all matrix products in one call, counted."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    reader_steps: int = 1000,
    scenes_data: dict[str, int] | None = None,
    **data: int,
) -> dict:
    """Everything, into `out`: cross_attention.json, its _alignments.json and its _reader.safetensors.

    Finished runs are kept (see Bahdanau's). `data` goes to `load_pairs`, `scenes_data` to `scenes.load`.
    """
    out, pairs, scenes_data = Path(out), load_pairs("de", **data), scenes_data or {}
    images = scenes.provenance(**scenes_data)
    shared, planned = {"environment": environment(device)}, {}
    for (name, settings), seed in product(runs.items(), seeds):
        made_from = {"language": "de", "model": name, "seed": seed, "settings": asdict(settings)}
        planned[f"{name}/{seed}"] = made_from | {"data": pairs.provenance(), **shared}
    for seed in seeds:
        made_from = {"model": "reader", "seed": seed, "settings": {"steps": reader_steps, "batch_size": 64, "lr": 3e-3}}
        planned[f"reader/{seed}"] = made_from | {"data": images, **shared}

    def make(key: str, made_from: dict) -> dict:
        if made_from["model"] == "reader":
            return _one_reader(made_from, scenes_data, device, out)
        return _one_run(pairs, runs[made_from["model"]], device, out, made_from)

    return {"runs": keep_or_make(out / "cross_attention.json", planned, make)}


def _one_run(pairs: Pairs, settings: Settings, device: str, out: Path, made_from: dict) -> dict:
    model, history = train_translator(pairs, settings, made_from["seed"], device=device)
    record = training_record(model, history) | evaluate(model, pairs.test) | {"crossing": crossing(model, pairs.test)}
    if made_from["seed"] == 0 and made_from["model"] == SHOWN_RUN:
        shown = {**made_from, "alignments": [alignment(model, n, "de") for n in SHOWN]}
        write_json(out / "cross_attention_alignments.json", shown)
    model.shown_layer = 0
    return record | {"crossing_first_layer": crossing(model, pairs.test)}


def _one_reader(made_from: dict, scenes_data: dict, device: str, out: Path) -> dict:
    seed, steps = made_from["seed"], made_from["settings"]["steps"]
    model, history = scenes.train_reader(seed, steps=steps, device=device, **scenes_data)
    record = training_record(model, history) | scenes.score(model, scenes.load(**scenes_data)[1])
    if seed == 0:
        path = out / "cross_attention_reader.safetensors"
        scenes.save_reader(model, path, made_from | {"date": record["date"]})
    return record
