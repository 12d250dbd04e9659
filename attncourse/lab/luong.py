"""The experiments of chapter 02: which score, which order, which window; and what hard attention costs in training.

Number words, English to German, three seeds, one decoder. Only what is named differs between runs: the rest has the
same first weights and sees the same sentences in the same order. The encoder's states are as large as the decoder's
state, so that a dot product needs no projection. Letters: B batch, S source words, T target tokens.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from attncourse.attention import masked_softmax
from attncourse.bahdanau import AdditiveAttention, additive_scores
from attncourse.lab.alignment import alignment, crossing, evaluate
from attncourse.lab.bahdanau import SHOWN, Pairs, fit, load_pairs
from attncourse.lab.measure import allocated_bytes, median_ms
from attncourse.lab.numbers import vocabulary
from attncourse.lab.records import DATA, environment, keep_or_make, training_record, write_json
from attncourse.lab.training import History
from attncourse.lab.translate import Translator
from attncourse.luong import HardAttention, LocalAttention, LuongAttention, dot_scores, surrogate_loss


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides its seed. `score` is a name that `make_attention` knows."""

    score: str = "dot"
    window: int | None = None
    order: str = "bahdanau"
    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-2
    embed_dim: int = 32
    hidden_dim: int = 64


RUNS = {
    "additive": Settings("additive"),
    "dot": Settings("dot"),
    "general": Settings("general"),
    "concat": Settings("concat"),
    "local-m": Settings("local-m", window=3),
    "local-p": Settings("local-p", window=3),
    "hard": Settings("hard"),
    "dot, Luong's order": Settings("dot", order="luong"),
    "general, Luong's order": Settings("general", order="luong"),
    "concat, Luong's order": Settings("concat", order="luong"),
    "dot, input feeding": Settings("dot", order="luong, input feeding"),
    "general, input feeding": Settings("general", order="luong, input feeding"),
    "concat, input feeding": Settings("concat", order="luong, input feeding"),
}
SHOWN_RUNS = ("additive", "dot", "general", "local-m", "local-p", "hard", "general, Luong's order")


def make_attention(score: str, size: int, window: int | None = None) -> nn.Module:
    """A module for queries and keys of one size. The local and hard ones score as "general" does."""
    makers = {
        "additive": lambda: AdditiveAttention(size, size, size),
        "dot": lambda: LuongAttention(size, size, "dot"),
        "general": lambda: LuongAttention(size, size, "general"),
        "concat": lambda: LuongAttention(size, size, "concat"),
        "local-m": lambda: LocalAttention(size, size, window=window, alignment="monotonic"),
        "local-p": lambda: LocalAttention(size, size, window=window, alignment="predictive"),
        "hard": lambda: HardAttention(size, size, estimator="straight_through"),
    }
    if score not in makers:
        raise ValueError(f"score={score!r}, but it must be one of {', '.join(makers)}")
    return makers[score]()


def make_translator(pairs: Pairs, settings: Settings, seed: int = 0) -> Translator:
    """A fresh translator; with one seed, every part but the attention has the same weights whatever the score."""
    torch.manual_seed(seed + 1000)
    attention = make_attention(settings.score, settings.hidden_dim, settings.window)
    torch.manual_seed(seed)
    sizes = {"embed_dim": settings.embed_dim, "hidden_dim": settings.hidden_dim}
    sizes |= {"encoder_dim": settings.hidden_dim // 2, "attention": attention, "order": settings.order}
    return Translator(len(vocabulary("en")), len(vocabulary(pairs.language)), **sizes)


def train_translator(
    pairs: Pairs, settings: Settings, seed: int = 0, *, device: str = "cpu", progress: bool = True
) -> tuple[Translator, History]:
    """A translator trained on `pairs.train`; `seed` decides its first weights and the order of the sentences."""
    model = make_translator(pairs, settings, seed).to(device)
    options = {"steps": settings.steps, "lr": settings.lr, "progress": progress, "label": settings.score}
    return model, fit(model, pairs, seed, batch_size=settings.batch_size, device=device, **options)


# --- what a decoder step costs


def step_functions(B: int, S: int, size: int = 64, window: int = 3) -> dict[str, Callable[[], object]]:
    """One decoder step (one query a sentence) with each score, keys projected anew or, "… once", projected before."""
    torch.manual_seed(0)
    query, keys = torch.randn(B, 1, size), torch.randn(B, S, size)
    mask = torch.ones(B, S, dtype=torch.bool)
    modules = {name: make_attention(name, size, window) for name in ("dot", "general", "additive", "concat")}
    modules |= {name: make_attention(name, size, window).eval() for name in ("local-m", "local-p", "hard")}
    functions = {name: partial(module, query, keys, mask=mask) for name, module in modules.items()}
    projected = {name: modules[name].key_proj(keys).detach() for name in ("general", "additive")}

    def general() -> Tensor:
        return masked_softmax(dot_scores(query, projected["general"]), mask[:, None]) @ keys

    def additive() -> Tensor:
        scores = additive_scores(modules["additive"].query_proj(query), projected["additive"], modules["additive"].v)
        return masked_softmax(scores, mask[:, None]) @ keys

    return functions | {"general, keys projected once": general, "additive, keys projected once": additive}


@torch.no_grad()
def costs(sizes: tuple[tuple[int, int], ...] = ((1, 14), (64, 14), (64, 256)), repeats: int = 201) -> dict:
    """Cost of a decoder step for each (B, S): time as a ratio to dot's (medians, in turn), bytes of all new tensors.

    "microseconds" is dot's own median on this machine, for the order of magnitude only.
    """
    rows = []
    for B, S in sizes:
        functions = step_functions(B, S)
        ms = median_ms(functions, repeats)
        row = {"B": B, "S": S, "microseconds_dot": round(1000 * ms["dot"], 1), "repeats": repeats, "steps": {}}
        for name, function in functions.items():
            total, largest = allocated_bytes(function)
            row["steps"][name] = {"time_ratio": round(ms[name] / ms["dot"], 2), "bytes": total, "largest": largest}
        rows.append(row)
    return {"size": 64, "window": 3, "dtype": "float32", "rows": rows}


# --- the gradient through a choice


ESTIMATORS = ("straight_through", "score_function", "score_function, baseline")


class Problem:
    """One query, five keys and a cost of the chosen value, small enough to add up over all choices.

    cost "squared": |context - target|² / 2; "linear": target · context. The gradient is the expected cost's, with
    respect to the query, so it passes through the scores and the softmax.
    """

    def __init__(self, cost: str = "squared", seed: int = 3):
        generator = torch.Generator().manual_seed(seed)
        normal = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.query, self.keys, self.values, self.target = normal(1, 1, 4), normal(1, 5, 4), normal(1, 5, 3), normal(3)
        if cost not in ("squared", "linear"):
            raise ValueError(f'cost={cost!r}, but it must be "squared" or "linear"')
        self.kind = cost

    def cost(self, context: Tensor) -> Tensor:
        """Cost (B, T) of contexts (B, T, 3)."""
        if self.kind == "linear":
            return context @ self.target
        return (context - self.target).square().sum(-1) / 2

    def expected(self) -> tuple[Tensor, Tensor]:
        """The expected cost and its gradient (4,), by adding up over the choices."""
        query = self.query.clone().requires_grad_()
        probabilities = dot_scores(query, self.keys).softmax(-1)[0, 0]  # (5,)
        expected = (probabilities * self.cost(self.values)[0]).sum()
        return expected.detach(), torch.autograd.grad(expected, query)[0][0, 0]

    def estimates(self, estimator: str, n: int, seed: int = 0) -> Tensor:
        """n independent estimates (n, 4), each from one choice, by `HardAttention` and autograd."""
        kind, _, baseline = estimator.partition(", ")
        attention = HardAttention(4, 4, estimator=kind, score="dot")
        query = self.query.expand(1, n, 4).clone().requires_grad_()  # n queries that are the same: n choices at once
        torch.manual_seed(seed)
        context, _ = attention(query, self.keys, self.values)
        loss = self.cost(context)  # (1, n)
        if kind == "score_function":
            loss = surrogate_loss(loss, attention.log_prob, self.expected()[0] if baseline else 0.0)
        return torch.autograd.grad(loss.sum(), query)[0][0]

    def enumerated(self, estimator: str) -> tuple[float, float]:
        """Bias and standard deviation of one estimate, exactly, as shares of the gradient's length."""
        probabilities = dot_scores(self.query, self.keys).softmax(-1)[0, 0]
        _, gradient = self.expected()
        each = torch.stack([self._estimate_of(estimator, k) for k in range(5)])  # (5, 4)
        mean = probabilities @ each
        variance = probabilities @ (each - mean).square().sum(-1)
        length = gradient.norm()
        return ((mean - gradient).norm() / length).item(), (variance.sqrt() / length).item()

    def _estimate_of(self, estimator: str, k: int) -> Tensor:
        """The estimate (4,) when key k is chosen, from the definitions."""
        kind, _, baseline = estimator.partition(", ")
        query = self.query.clone().requires_grad_()
        probabilities = dot_scores(query, self.keys).softmax(-1)[0, 0]
        chosen = self.values[0, k].clone().requires_grad_()
        cost = self.cost(chosen)
        if kind == "straight_through":  # the slope of the cost at the chosen value, times the softmax's own gradient
            slope = torch.autograd.grad(cost, chosen)[0]
            surrogate = probabilities @ (self.values[0] @ slope)
        else:
            surrogate = (cost.detach() - (self.expected()[0] if baseline else 0.0)) * probabilities[k].log()
        return torch.autograd.grad(surrogate, query)[0][0, 0]


def estimators(
    samples: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096), repeats: int = 200, problems: int = 20
) -> dict:
    """Bias, spread, and the error of an average of n estimates, all as shares of the exact gradient's length.

    "bias" and "spread" are enumerated, for one problem and for each of `problems` others ("…_by_problem"). "error" is
    measured: the root mean square over `repeats` averages of n of the distance to the exact gradient; "mean_offset" is
    the distance of all of them together.
    """
    result = {}
    for cost, estimator in product(("squared", "linear"), ESTIMATORS):
        problem = Problem(cost)
        _, gradient = problem.expected()
        bias, spread = problem.enumerated(estimator)
        rows = []
        for n in samples:
            draws = problem.estimates(estimator, n * repeats, seed=n).view(repeats, n, 4).mean(1)  # (repeats, 4)
            error = (draws - gradient).square().sum(-1).mean().sqrt() / gradient.norm()
            offset = (draws.mean(0) - gradient).norm() / gradient.norm()
            rows.append({"samples": n, "error": round(error.item(), 5), "mean_offset": round(offset.item(), 5)})
        others = [Problem(cost, other).enumerated(estimator) for other in range(problems)]
        result[f"{cost}, {estimator}"] = {
            "bias": round(bias, 5),
            "spread": round(spread, 5),
            "averages": rows,
            "bias_by_problem": [round(other, 4) for other, _ in others],
            "spread_by_problem": [round(other, 4) for _, other in others],
        }
    return {"dtype": "float64", "repeats": repeats, "problem": 3, "estimators": result}


def run(
    out: str | Path = DATA,
    device: str = "cpu",
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: dict[str, Settings] = RUNS,
    repeats: int = 201,
    **data: int,
) -> dict:
    """Everything, into the folder `out`: luong.json and luong_alignments.json. Finished runs are kept (see Bahdanau's).

    `data` goes to `load_pairs`; `repeats` to `costs`.
    """
    out, pairs = Path(out), load_pairs("de", **data)
    path = out / "luong.json"
    shared = {"data": pairs.provenance(), "environment": environment(device)}
    planned = {
        f"{name}/{seed}": {"language": "de", "model": name, "seed": seed, "settings": asdict(settings), **shared}
        for (name, settings), seed in product(runs.items(), seeds)
    }

    def make(key: str, made_from: dict) -> dict:
        return _one_run(pairs, runs[made_from["model"]], device, out, made_from)

    keep_or_make(path, planned, make)
    content, here = json.loads(path.read_text()), environment("cpu")
    for name, measure in (("costs", partial(costs, repeats=repeats)), ("estimators", estimators)):
        if content.get(name, {}).get("environment") != here:  # times differ each time: kept until something else does
            content[name] = {"date": date.today().isoformat(), "environment": here, **measure()}
    write_json(path, content)
    return content


def _one_run(pairs: Pairs, settings: Settings, device: str, out: Path, made_from: dict) -> dict:
    model, history = train_translator(pairs, settings, made_from["seed"], device=device)
    record = {
        **training_record(model, history),
        "attention_parameters": sum(p.numel() for p in model.attention.parameters()),
        **evaluate(model, pairs.test),
        "crossing": crossing(model, pairs.test),
    }
    if made_from["seed"] == 0 and made_from["model"] in SHOWN_RUNS:
        file = out / "luong_alignments.json"
        shown = json.loads(file.read_text()) if file.exists() else {}
        shown[made_from["model"]] = {**made_from, "alignments": [alignment(model, n, "de") for n in SHOWN]}
        write_json(file, shown)
    return record
