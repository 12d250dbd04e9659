"""A translator of 2014: a recurrent encoder and decoder, with an attention between them or with one fixed vector.

All read the source with the same two-way GRU and write with the same GRU. In Bahdanau's order the decoder is given a
vector of the same size at each step: with attention an average of the source states, weighted anew at each step;
without, always the same summary of the whole sentence. Nothing else differs. In Luong's order the decoder moves first
and then attends. Letters: B batch, S source words, T target tokens, H the size of the decoder's state, M = 2 × the
encoder's, the size of a source state, A the size of the scoring layer.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncourse.bahdanau import AdditiveAttention, additive_attention
from attncourse.lab.numbers import BOS, EOS, PAD, Batch
from attncourse.lab.records import load_weights, save_weights
from attncourse.luong import attentional_vector

Attend = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
ORDERS = ("bahdanau", "luong", "luong, input feeding")


class Translator(nn.Module):
    """GRU encoder and decoder with an attention between them; `attention=False` replaces the context by the summary.

    attention: True for Bahdanau's, or any module with its forward, made for queries of hidden_dim and keys of twice
    encoder_dim, which is hidden_dim unless given. order says when the decoder attends:
    "bahdanau": with its previous state; the context enters the GRU, and the output layer reads [state; context].
    "luong": with its new state; the output layer reads tanh(W [context; state]) (`attentional`).
    "luong, input feeding": the same, and the GRU reads the vector tanh(…) of the step before.

    Bahdanau et al. 2014, appendix A; Luong et al. 2015, sections 3 and 3.3. Differs from the papers: GRUs of one
    layer; the first decoder state sees both ends of the encoder; Bahdanau's output layer is linear instead of maxout
    and reads the new state instead of the previous one.
    """

    def __init__(
        self,
        n_source: int,
        n_target: int,
        *,
        embed_dim: int = 32,
        hidden_dim: int = 64,
        attention: bool | nn.Module = True,
        encoder_dim: int | None = None,
        order: str = "bahdanau",
    ):
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order={order!r}, but it must be one of {', '.join(ORDERS)}")
        if attention is False and order != "bahdanau":
            raise ValueError(f"order={order!r} attends, but attention=False")
        encoder_dim = hidden_dim if encoder_dim is None else encoder_dim
        self.config = {
            "n_source": n_source,
            "n_target": n_target,
            "embed_dim": embed_dim,
            "hidden_dim": hidden_dim,
            "attention": attention,
            "encoder_dim": encoder_dim,
            "order": order,
        }
        self.order = order
        fed_dim = {"bahdanau": 2 * encoder_dim, "luong": 0, "luong, input feeding": hidden_dim}[order]
        self.source_embedding = nn.Embedding(n_source, embed_dim, padding_idx=PAD)
        self.target_embedding = nn.Embedding(n_target, embed_dim, padding_idx=PAD)
        self.encoder = nn.GRU(embed_dim, encoder_dim, batch_first=True, bidirectional=True)
        self.initial = nn.Linear(2 * encoder_dim, hidden_dim)
        if attention is True:
            attention = AdditiveAttention(hidden_dim, 2 * encoder_dim, hidden_dim)
        self.attention = attention or None
        self.decoder = nn.GRU(embed_dim + fed_dim, hidden_dim, batch_first=True)
        if order == "bahdanau":
            self.output = nn.Linear(hidden_dim + 2 * encoder_dim, n_target)
        else:
            self.attentional = nn.Linear(2 * encoder_dim + hidden_dim, hidden_dim, bias=False)
            self.output = nn.Linear(hidden_dim, n_target)

    def encode(self, source: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Source states (B, S, M) and their summary (B, M): the last forward and the first backward state."""
        if not (source_mask[:, 0].all() and (source_mask[:, :-1] >= source_mask[:, 1:]).all()):
            raise ValueError("source_mask must be True at the words, which come first, and False at the padding")
        packed = nn.utils.rnn.pack_padded_sequence(
            self.source_embedding(source), source_mask.sum(-1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        return states, torch.cat([last[0], last[1]], -1)  # (B, S, M), (B, M)

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
            contexts = summary[:, None].expand(-1, target_in.shape[1], -1)  # (B, T, M)
            hidden, _ = self.decoder(torch.cat([embedded, contexts], -1), state[None])  # (B, T, H)
            return self.output(torch.cat([hidden, contexts], -1)), None
        if self.order == "luong":  # what is attended to never enters the state, so all steps run at once
            hidden, _ = self.decoder(embedded, state[None])  # (B, T, H)
            context, weights = self.attention(hidden, states, mask=source_mask)  # (B, T, M), (B, T, S)
            return self.output(self._read(hidden, context)), weights
        attend = self._attend_to(states, source_mask)
        word_gates, fed_weight = self._split_gates(embedded)
        vector, steps = torch.zeros_like(state), []
        for i, gates in enumerate(word_gates.unbind(1)):  # each step waits for what the one before attended to
            state, context, weights = self._step(i, gates, fed_weight, state, vector, attend)
            vector = self._read(state, context)
            steps.append((state, context, weights))
        hidden, contexts, weights = (torch.stack(part, 1) for part in zip(*steps, strict=True))
        return self.output(self._read(hidden, contexts)), weights

    @torch.no_grad()
    def translate(self, source: Tensor, source_mask: Tensor, max_length: int = 40) -> tuple[Tensor, Tensor | None]:
        """Write greedily, each token fed back: tokens (B, T), padded after <eos>, and weights (B, T, S) or None.

        T is at most `max_length`; it stops when every sentence has ended.
        """
        states, summary = self.encode(source, source_mask)
        state = torch.tanh(self.initial(summary))  # (B, H)
        attend = self._attend_to(states, source_mask) if self.attention else lambda state, i: (summary, None)
        token = source.new_full((source.shape[0],), BOS)
        done = torch.zeros_like(token, dtype=torch.bool)
        tokens, all_weights, vector = [], [], torch.zeros_like(state)
        for i in range(max_length):
            gates, fed_weight = self._split_gates(self.target_embedding(token))
            state, context, weights = self._step(i, gates, fed_weight, state, vector, attend)
            vector = self._read(state, context)
            token = self.output(vector).argmax(-1).masked_fill(done, PAD)  # (B,)
            tokens.append(token)
            all_weights.append(weights)
            done = done | (token == EOS)
            if done.all():
                break
        return torch.stack(tokens, 1), torch.stack(all_weights, 1) if self.attention else None

    def _step(
        self, i: int, gates: Tensor, fed_weight: Tensor, state: Tensor, vector: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One decoder step: new state (B, H), context (B, M), weights (B, S). `vector`: what was read before."""
        if self.order == "bahdanau":
            context, weights = attend(state, i)
            return self._gru_step(gates + context @ fed_weight, state), context, weights
        if self.order == "luong, input feeding":
            gates = gates + vector @ fed_weight
        state = self._gru_step(gates, state)
        return state, *attend(state, i)

    def _read(self, state: Tensor, context: Tensor) -> Tensor:
        """What the output layer reads of states (…, H) and contexts (…, M)."""
        if self.order == "bahdanau":
            return torch.cat([state, context], -1)  # (…, H + M)
        return attentional_vector(context, state, self.attentional.weight)  # (…, H)

    def _attend_to(self, states: Tensor, mask: Tensor) -> Attend:
        """A function of a state (B, H) and the number of the step that gives a context (B, M) and weights (B, S)."""
        if isinstance(self.attention, AdditiveAttention):
            keys = self.attention.key_proj(states)  # (B, S, A), once for all steps

        def attend(state: Tensor, i: int) -> tuple[Tensor, Tensor]:
            if isinstance(self.attention, AdditiveAttention):
                query = self.attention.query_proj(state)[:, None]  # (B, 1, A)
                context, weights = additive_attention(query, keys, states, self.attention.v, mask[:, None])
            else:
                monotonic = getattr(self.attention, "alignment", None) == "monotonic"
                step = {"positions": torch.tensor([i], device=state.device)} if monotonic else {}
                context, weights = self.attention(state[:, None], states, mask=mask, **step)
            return context[:, 0], weights[:, 0]  # (B, M), (B, S)

        return attend

    def _split_gates(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the GRU's gates that the words decide, (…, 3H), and the matrix (…, 3H) for what is fed in."""
        E = embedded.shape[-1]
        word, fed = self.decoder.weight_ih_l0.split([E, self.decoder.input_size - E], 1)
        return F.linear(embedded, word, self.decoder.bias_ih_l0), fed.T

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
    """Write weights, sizes and `provenance` to a safetensors file. An attention that was passed in raises TypeError."""
    if not isinstance(model.config["attention"], bool):
        raise TypeError(f"the file could not say how to make {type(model.attention).__name__}: save its state dict")
    save_weights(model, path, config=model.config, provenance=provenance)


def load_translator(path: str | Path) -> tuple[Translator, dict]:
    """The model that `save_translator` wrote, on the CPU, in evaluation mode, and its provenance."""
    state, about = load_weights(path)
    model = Translator(**about["config"])
    model.load_state_dict(state)
    return model.eval(), about["provenance"]
