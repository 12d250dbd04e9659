"""One small decoder-only model, whose attention is any of `attncourse.MECHANISMS`.

Pre-norm blocks of attention and a two-layer network, RMSNorm, embeddings tied to the output. Letters: B sequences,
T tokens, V different tokens, L layers.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.lab.records import load_weights, save_weights
from attncourse.mechanisms import build
from attncourse.multi_head import check_heads
from attncourse.positions import RotaryEmbedding, sinusoidal

POSITIONS = ("rotary", "alibi", "sinusoidal", "learned", "none")


class Decoder(nn.Module):
    """A language model: tokens (B, T) to logits (B, T, V).

    positions: "rotary" and "alibi" act inside every attention, "sinusoidal" and "learned" are added to the tokens,
    "none" adds nothing; mla turns a part of its keys with any of them. max_length bounds "learned", which has a vector
    for each position; the others go on.
    mechanism and options go to `attncourse.build`. `config` makes the same model again; it can be saved where the
    options are numbers and names.
    """

    def __init__(
        self,
        n_tokens: int,
        *,
        d_model: int = 128,
        n_heads: int = 8,
        n_layers: int = 4,
        max_length: int = 256,
        positions: str = "rotary",
        mechanism: str = "multi_head",
        **options: object,
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}, but it must be one of {', '.join(POSITIONS)}")
        if taken := {"rotary", "alibi", "causal"} & options.keys():
            raise ValueError(f"{', '.join(sorted(taken))}: say it with positions=…; a decoder is always causal")
        self.config = {"n_tokens": n_tokens, "d_model": d_model, "n_heads": n_heads, "n_layers": n_layers}
        self.config |= {"max_length": max_length, "positions": positions, "mechanism": mechanism, **options}
        check_heads(d_model, n_heads)
        if positions == "rotary" and mechanism != "mla":  # which has its own
            options = {"rotary": RotaryEmbedding(d_model // n_heads), **options}
        elif positions == "alibi":
            options = {"alibi": True, **options}
        self.embedding = nn.Embedding(n_tokens, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.positions, self.max_length = positions, max_length
        if positions == "learned":
            self.place = nn.Parameter(torch.randn(max_length, d_model) * d_model**-0.5)
        self.blocks = nn.ModuleList(
            Block(d_model, build(mechanism, d_model, n_heads, **options)) for _ in range(n_layers)
        )
        self.norm = nn.RMSNorm(d_model)

    def new_caches(self, batch_size: int, max_length: int) -> list:
        """An empty cache for each layer."""
        return [block.attention.new_cache(batch_size, max_length) for block in self.blocks]

    def forward(
        self, tokens: Tensor, *, mask: Tensor | None = None, caches: list | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (B, T, V) for the token after each of tokens (B, T), which continue what the caches hold.

        mask: as each attention takes it; with `return_weights` also the weights (B, H, T, S) of every layer.
        """
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens {tuple(tokens.shape)} are {tokens.dtype}; they must be (B, T) and int64")
        x = self.embedding(tokens)  # (B, T, d_model)
        past = caches[0].length if caches else 0
        x = x + self._places(past, past + tokens.shape[1]).to(x)
        weights = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, mask, cache, weights if return_weights else None)
        logits = self.norm(x) @ self.embedding.weight.T  # (B, T, V)
        return (logits, weights) if return_weights else logits

    def _places(self, start: int, end: int) -> Tensor:
        if self.positions == "learned":
            if end > self.max_length:
                raise ValueError(f"there are learned positions for {self.max_length} tokens, but this is number {end}")
            return self.place[start:end]  # (T, d_model)
        if self.positions == "sinusoidal":
            width = self.config["d_model"]
            return (
                sinusoidal(end - start, width, start=start) * width**-0.5
            )  # (T, d_model), as long as a token's vector
        return torch.zeros(())

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, n_new: int, *, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """tokens (B, T) and n_new more, (B, T + n_new), one at a time from a cache.

        temperature 0 takes the likeliest token; above, it draws, with a CPU `generator`.
        """
        if temperature < 0 or not tokens.shape[1]:
            raise ValueError(f"temperature={temperature} must be at least 0, and {tokens.shape[1]} tokens at least 1")
        caches = self.new_caches(tokens.shape[0], tokens.shape[1] + n_new)
        new = tokens
        for _ in range(n_new):
            logits = self(new, caches=caches)[:, -1]  # (B, V)
            if temperature == 0:
                new = logits.argmax(-1, keepdim=True)  # (B, 1)
            else:
                shares = (logits / temperature).softmax(-1).cpu()
                new = torch.multinomial(shares, 1, generator=generator).to(tokens.device)
            tokens = torch.cat([tokens, new], 1)
        return tokens


class Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)), a network `width` wide (default 4 · d_model)."""

    def __init__(self, d_model: int, attention: nn.Module, width: int | None = None):
        super().__init__()
        width = 4 * d_model if width is None else width
        self.attention_norm, self.attention = nn.RMSNorm(d_model), attention
        self.network_norm = nn.RMSNorm(d_model)
        self.up, self.down = nn.Linear(d_model, width, bias=False), nn.Linear(width, d_model, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: object | None = None, weights: list | None = None
    ) -> Tensor:
        """x (B, T, d_model), the same shape back; the attention's weights are added to the list `weights`, if any."""
        attended = self.attention(self.attention_norm(x), mask=mask, cache=cache, return_weights=weights is not None)
        if weights is not None:
            attended, of_this_layer = attended
            weights.append(of_this_layer)
        x = x + attended
        return x + self.down(F.gelu(self.up(self.network_norm(x))))


def next_token_loss(model: nn.Module, tokens: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, in nats, of tokens (B, T + 1) after the first, each predicted from those before it.

    counted (B, T), boolean: only these predictions count.
    """
    logits, wanted = model(tokens[:, :-1]), tokens[:, 1:]  # (B, T, V), (B, T)
    if counted is not None:
        logits, wanted = logits[counted], wanted[counted]
    return F.cross_entropy(logits.flatten(0, -2), wanted.flatten())


def save_decoder(model: Decoder, path: str | Path, provenance: dict) -> None:
    """Write the weights in float16, the config and the provenance to a safetensors file.

    TypeError where the config holds more than numbers and names, as a pattern of sparse attention is.
    """
    if odd := [name for name, value in model.config.items() if not isinstance(value, str | int | float | None)]:
        raise TypeError(f"config holds {', '.join(odd)}, which a file cannot: only numbers and names")
    save_weights(model, path, torch.float16, config=model.config, provenance=provenance)


def load_decoder(path: str | Path) -> tuple[Decoder, dict]:
    """A saved model, in float32 and ready to read, and its provenance."""
    state, about = load_weights(path)
    model = Decoder(**about["config"])
    model.load_state_dict(state)
    return model.eval(), about["provenance"]
