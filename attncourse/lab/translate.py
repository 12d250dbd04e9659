"""A translator of 2014: a recurrent encoder and decoder, with Bahdanau's attention or with one fixed vector.

Both read the source with the same two-way GRU and write with the same GRU. At each step the decoder is given a vector
of the same size: with attention an average of the source states, weighted anew at each step; without, always the
same summary of the whole sentence. Nothing else differs. Letters: B batch, S source words, T target tokens,
H the size of a GRU state, A the size of the scoring layer.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attncourse.bahdanau import AdditiveAttention, additive_attention
from attncourse.lab.numbers import BOS, EOS, PAD, Batch


class Translator(nn.Module):
    """GRU encoder and decoder; `attention=False` replaces the context by the fixed summary.

    Bahdanau et al. 2014, appendix A. Differs from the paper: the first decoder state sees both ends of the encoder
    instead of one, the output layer is linear instead of maxout and reads the new state instead of the previous one.
    """

    def __init__(
        self, n_source: int, n_target: int, *, embed_dim: int = 32, hidden_dim: int = 64, attention: bool = True
    ):
        super().__init__()
        self.config = {
            "n_source": n_source,
            "n_target": n_target,
            "embed_dim": embed_dim,
            "hidden_dim": hidden_dim,
            "attention": attention,
        }
        self.source_embedding = nn.Embedding(n_source, embed_dim, padding_idx=PAD)
        self.target_embedding = nn.Embedding(n_target, embed_dim, padding_idx=PAD)
        self.encoder = nn.GRU(embed_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.initial = nn.Linear(2 * hidden_dim, hidden_dim)
        self.attention = AdditiveAttention(hidden_dim, 2 * hidden_dim, hidden_dim) if attention else None
        self.decoder = nn.GRU(embed_dim + 2 * hidden_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim + 2 * hidden_dim, n_target)

    def encode(self, source: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Source states (B, S, 2H) and their summary (B, 2H): the last forward and the first backward state."""
        if not (source_mask[:, 0].all() and (source_mask[:, :-1] >= source_mask[:, 1:]).all()):
            raise ValueError("source_mask must be True at the words, which come first, and False at the padding")
        packed = nn.utils.rnn.pack_padded_sequence(
            self.source_embedding(source), source_mask.sum(-1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        return states, torch.cat([last[0], last[1]], -1)  # (B, S, 2H), (B, 2H)

    def forward(self, source: Tensor, source_mask: Tensor, target_in: Tensor) -> Tensor:
        """Logits (B, T, n_target) for the token after each of `target_in` (B, T), which starts with <bos>.

        source (B, S), source_mask (B, S) boolean, True = a word.
        """
        return self.decode(source, source_mask, target_in)[0]

    def decode(self, source: Tensor, source_mask: Tensor, target_in: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, n_target) and attention weights (B, T, S), None without attention, when fed `target_in`."""
        states, summary = self.encode(source, source_mask)
        state = torch.tanh(self.initial(summary))  # (B, H)
        embedded = self.target_embedding(target_in)  # (B, T, E)
        if self.attention is None:
            contexts = summary[:, None].expand(-1, target_in.shape[1], -1)  # (B, T, 2H)
            hidden, _ = self.decoder(torch.cat([embedded, contexts], -1), state[None])  # (B, T, H)
            return self.output(torch.cat([hidden, contexts], -1)), None
        keys = self.attention.key_proj(states)  # (B, S, A), once for all steps
        word_gates, context_weight = self._split_gates(embedded)
        steps = []
        for gates in word_gates.unbind(1):  # the query is the state before the step, so steps cannot run at once
            context, weights = self._attend(state, keys, states, source_mask)
            state = self._gru_step(gates + context @ context_weight, state)
            steps.append((state, context, weights))
        hidden, contexts, weights = (torch.stack(part, 1) for part in zip(*steps, strict=True))
        return self.output(torch.cat([hidden, contexts], -1)), weights

    @torch.no_grad()
    def translate(self, source: Tensor, source_mask: Tensor, max_length: int = 40) -> tuple[Tensor, Tensor | None]:
        """Write greedily, each token fed back: tokens (B, T), padded after <eos>, and weights (B, T, S) or None.

        T is at most `max_length`; it stops when every sentence has ended.
        """
        states, summary = self.encode(source, source_mask)
        state = torch.tanh(self.initial(summary))  # (B, H)
        keys = self.attention.key_proj(states) if self.attention else None  # (B, S, A)
        token = source.new_full((source.shape[0],), BOS)
        done = torch.zeros_like(token, dtype=torch.bool)
        tokens, all_weights, context = [], [], summary
        for _ in range(max_length):
            if self.attention:
                context, weights = self._attend(state, keys, states, source_mask)
                all_weights.append(weights)
            gates, context_weight = self._split_gates(self.target_embedding(token))
            state = self._gru_step(gates + context @ context_weight, state)
            token = self.output(torch.cat([state, context], -1)).argmax(-1).masked_fill(done, PAD)  # (B,)
            tokens.append(token)
            done = done | (token == EOS)
            if done.all():
                break
        return torch.stack(tokens, 1), torch.stack(all_weights, 1) if all_weights else None

    def _attend(self, state: Tensor, keys: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        query = self.attention.query_proj(state)[:, None]  # (B, 1, A)
        context, weights = additive_attention(query, keys, states, self.attention.v, mask[:, None])
        return context[:, 0], weights[:, 0]  # (B, 2H), (B, S)

    def _split_gates(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the GRU's gates that the words decide, (…, 3H), and the matrix (2H, 3H) for the context."""
        word, context = self.decoder.weight_ih_l0.split([embedded.shape[-1], 2 * self.decoder.hidden_size], 1)
        return F.linear(embedded, word, self.decoder.bias_ih_l0), context.T

    def _gru_step(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step of a GRU whose input is already projected: gates (B, 3H), state (B, H) -> state (B, H)."""
        new_reset, new_update, new = gates.chunk(3, -1)
        old_reset, old_update, old = F.linear(state, self.decoder.weight_hh_l0, self.decoder.bias_hh_l0).chunk(3, -1)
        update = torch.sigmoid(new_update + old_update)
        candidate = torch.tanh(new + torch.sigmoid(new_reset + old_reset) * old)
        return candidate + update * (state - candidate)


def translation_loss(model: Translator, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats for each real target token."""
    logits = model(batch.source, batch.source_mask, batch.target[:, :-1])  # (B, T, n_target)
    return F.cross_entropy(logits.flatten(0, 1), batch.target[:, 1:].flatten(), ignore_index=PAD)


def save_translator(model: Translator, path: str | Path, provenance: dict) -> None:
    """Write weights, sizes and `provenance` to a safetensors file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, {"config": json.dumps(model.config), "provenance": json.dumps(provenance)})


def load_translator(path: str | Path) -> tuple[Translator, dict]:
    """The model that `save_translator` wrote, on the CPU, in evaluation mode, and its provenance."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = Translator(**json.loads(metadata["config"]))
    model.load_state_dict(state)
    return model.eval(), json.loads(metadata["provenance"])
