"""Pieces to which Python has to react: native Jupyter controls that run the learner's own code again."""

import contextlib
import io
import linecache
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attncourse.show.html import Output, fragment, number, prose, require_text, scroll, text_table
from attncourse.show.html import table as html_table
from attncourse.show.vectors import (
    RADIUS,
    ScoreFunction,
    check_keys,
    most,
    picture,
    rounded,
    score,
    scores,
    shown,
    softmax,
    vector,
    weights_table,
)

STATIC = "ATTNCOURSE_STATIC"  # the book's build sets it to 1: no kernel will answer the reader
SLOW = 0.15  # seconds: a function slower than this runs when the slider is let go, not while it moves


@dataclass(frozen=True)
class Slider:
    """A number from `low` to `high` in steps, for `live`: a labelled number box with a slider beside it.

    An int where all four numbers are ints, else a float.
    """

    label: str
    low: float
    high: float
    start: float
    step: float = 0.1

    def __post_init__(self):
        require_text(label=self.label)
        if not (self.low <= self.start <= self.high and self.low < self.high and self.step > 0):
            raise ValueError(f"{self.label}: start={self.start} must be between {self.low} and {self.high}, step > 0")

    @property
    def whole(self) -> bool:
        return all(isinstance(x, int) for x in (self.low, self.high, self.start, self.step))

    @property
    def initial(self) -> float:
        return self.start if self.whole else float(self.start)

    @property
    def says(self) -> str:
        return f"{self.label} ({number(self.low)} to {number(self.high)})"

    def widgets(self, module: Any, width: int) -> tuple[Any, Any]:
        """What holds the value, and what is shown. width: of the label, in characters."""
        kind = "Int" if self.whole else "Float"
        options = {"min": self.low, "max": self.high, "step": self.step, "value": self.start}
        # A slider of ipywidgets has no name for a screen reader; the native number box has its label.
        box = getattr(module, f"Bounded{kind}Text")(**_labelled(module, self.label, width, 11), **options)
        slider = getattr(module, f"{kind}Slider")(readout=False, **options)

        def follow(change: Any) -> None:
            slider.value = change["new"]

        def lead(change: Any) -> None:
            box.value = round(change["new"], 6)  # the browser's 0.1 + 0.2 is no number for a reader

        box.observe(follow, "value")
        slider.observe(lead, "value")
        return box, module.HBox([box, slider], layout=module.Layout(flex_flow="row wrap"))


@dataclass(frozen=True)
class Choice:
    """One of several named values, for `live`: a labelled native select. options: texts, or name -> value."""

    label: str
    options: Sequence[str] | Mapping[str, Any]
    start: str | None = None  # a name; the first, if not given

    def __post_init__(self):
        require_text(label=self.label)
        if not self.options or (self.start is not None and self.start not in self.options):
            raise ValueError(f"{self.label}: start={self.start!r} must be one of the options {list(self.options)}")

    @property
    def named(self) -> dict[str, Any]:
        return dict(self.options) if isinstance(self.options, Mapping) else {name: name for name in self.options}

    @property
    def initial(self) -> Any:
        return self.named[self.start if self.start is not None else next(iter(self.named))]

    @property
    def says(self) -> str:
        return f"{self.label} ({', '.join(self.named)})"

    def widgets(self, module: Any, width: int) -> tuple[Any, Any]:
        """What holds the value, and what is shown. width: of the label, in characters."""
        index = list(self.named).index(self.start) if self.start is not None else 0
        options = list(self.named.items())
        wide = 6 + max(map(len, self.named))
        box = module.Dropdown(options=options, index=index, **_labelled(module, self.label, width, wide))
        return box, box


def _labelled(module: Any, label: str, width: int, rest: int) -> dict[str, Any]:
    """The arguments that give a widget its label, in a column as wide as the longest."""
    layout = module.Layout(width=f"{width + rest}ch", max_width="100%")
    return {"description": label, "style": {"description_width": f"{width}ch"}, "layout": layout}


class Live:
    """Controls and the result of a function; `controls` holds the widget of each argument, `output` the last result."""

    def __init__(self, function: Callable[..., Any], controls: Mapping[str, Slider | Choice]):
        import ipywidgets

        self.function = function
        width = max(len(control.label) for control in controls.values())
        made = {name: control.widgets(ipywidgets, width) for name, control in controls.items()}
        self.controls = {name: box for name, (box, _) in made.items()}
        # An HTML widget, not an Output widget: one message a result, no flicker, the same in every front end.
        self.result = ipywidgets.HTML(layout=ipywidgets.Layout(min_width="0"))
        self.box = ipywidgets.VBox([*(row for _, row in made.values()), self.result])
        began = time.perf_counter()
        self.update()
        if time.perf_counter() - began > SLOW:
            for _, row in made.values():
                for widget in getattr(row, "children", ()):
                    if widget.has_trait("continuous_update"):
                        widget.continuous_update = False
        for widget in self.controls.values():
            widget.observe(self.update, "value")

    def update(self, change: Any = None) -> None:
        """Run the function with the controls' values and show what it gives."""
        self.output = run(self.function, {name: widget.value for name, widget in self.controls.items()})
        self.result.value = self.output.html

    def __repr__(self) -> str:
        return self.output.text

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)


def live(
    function: Callable[..., Any],
    controls: Mapping[str, Slider | Choice],
    static: Output | Callable[[], Output] | None = None,
) -> "Live | Output":
    """A function's result under controls: in a notebook that runs, each change calls the function again.

    function takes the controls' values by name and returns an output of `show`, a number or a text; what it prints is
    shown as well. If it raises, the error and its line stand where the result was, and the controls go on working.

        def drawn(temperature):
            weights = my_softmax(scores / temperature)
            return show.table({"word": words, "weight": weights}, caption=f"Temperature {temperature}")

        show.live(drawn, {"temperature": show.Slider("Temperature", low=0.1, high=4, start=1)})

    `live_score` and `live_temperature` are two such pieces, ready made.

    In the book (environment variable ATTNCOURSE_STATIC=1), without a kernel and without ipywidgets it returns `static`
    (an output, or a function that makes one), by default the function's result at the start. No script of a result runs
    in a live notebook, so an interactive piece shows its static form there; give those to `static`. The widgets are
    those of ipywidgets 7.7 and 8.
    """
    if not controls or not all(isinstance(control, (Slider, Choice)) for control in controls.values()):
        raise ValueError("controls must be a dict: an argument's name -> show.Slider(…) or show.Choice(…)")
    if not is_static():
        return Live(function, controls)
    if isinstance(static, Output):
        output = static
    else:  # an error stops the build
        function, arguments = (static, {}) if static else (function, {n: c.initial for n, c in controls.items()})
        output = call(function, arguments)
    note = f"In a notebook that runs, you can change: {'; '.join(c.says for c in controls.values())}."
    html = output.html + fragment(f'<p class="ac-dim">{escape(note)}</p>', kind="note")
    return Output(f"{output.text}\n{note}", html, output.data)


def is_static() -> bool:
    """Whether no kernel will answer: the book's build, no kernel, or no ipywidgets."""
    return os.environ.get(STATIC, "0") not in ("", "0") or not has_kernel() or find_spec("ipywidgets") is None


def has_kernel() -> bool:
    """Whether this is a notebook's process, and not a plain one or a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Output:
    """What the function prints and returns, or the error that it raises, as an output."""
    try:
        return call(function, arguments)
    except Exception as error:  # the learner's code: anything may come
        return failure(error)


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Output:
    """What the function prints and returns, as an output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        output = to_output(function(**arguments))
    if not (text := printed.getvalue()):
        return output
    block = scroll(f"<pre>{escape(text)}</pre>", "Printed by the function")
    return Output(f"{text}{output.text}", fragment(block, kind="text") + output.html, output.data)


def to_output(value: Any) -> Output:
    """Any result of a function as an output."""
    if isinstance(value, Output):
        return value
    if "matplotlib.figure" in sys.modules and isinstance(value, sys.modules["matplotlib.figure"].Figure):
        raise TypeError("the function returned a bare figure; return show.figure(fig, alt=…, caption=…)")
    if value is None:
        return Output("", "")
    text = value if isinstance(value, str) else repr(value)
    return Output(text, fragment(scroll(f"<pre>{escape(text)}</pre>", "Result of the function"), kind="text"))


def failure(error: Exception) -> Output:
    """The error in words: its type and message, and the last line of the learner's own code that led to it."""
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    text = f"✗ The function raised {message}"
    package, libraries = str(Path(__file__).parents[1]), (os.path.dirname(traceback.__file__), "site-packages")
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(package) and not any(part in frame.filename for part in libraries)
    ]
    if own:
        line = (own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno)).strip()
        text += f"\nin {own[-1].name}, line {own[-1].lineno}: {line}"
    return Output(text, fragment(f'<pre class="ac-error" role="alert">{escape(text)}</pre>', kind="text"))


def live_score(
    score_function: ScoreFunction,
    keys: Tensor | Sequence[Sequence[float]],
    *,
    name: str = "your score",
    key_labels: Sequence[str] | None = None,
    title: str = "Which key does your score prefer?",
    caption: str = "The wider the band behind a key, the larger its weight.",
) -> "Live | Output":
    """The learner's score function of queries (N, 2) and keys (S, 2), tried on one query that controls turn.

    Each change calls the function again with N = 1. In the book: `show.scores` with this function alone.
    """
    tensor, labels = check_keys(keys, key_labels)
    require_text(name=name, title=title, caption=caption)
    unit = RADIUS / max(3.0, *tensor.norm(dim=-1).tolist())

    def drawn(degrees: float, length: float, temperature: float) -> Output:
        query = vector(length, degrees)[None].to(tensor)  # (1, 2)
        raw = score(score_function, query, tensor, name)[0]
        now = [(rounded(s), rounded(w)) for s, w in zip(raw, softmax(raw, temperature), strict=True)]
        said = f"{name}: largest weight {most(labels, [weight for _, weight in now])}."
        plane = picture(tensor, labels, now, degrees, length, unit, (1, 2, 3), title)
        body = (
            f'<figure><p class="ac-title">{escape(title)}</p>{plane}'
            f'<p role="status">{escape(said)}</p><figcaption>{prose(caption)}</figcaption></figure>'
        )
        rows = [[label, shown(s), shown(w)] for label, (s, w) in zip(labels, now, strict=True)]
        text = f"{title}\n{text_table(['key', 'score', 'weight'], rows)}\n{said}"
        html = fragment(body, kind="piece ac-scores", styles=["pieces.css", "scores.css"])
        return Output(text, html, {"scores": [s for s, _ in now], "weights": [w for _, w in now]})

    controls = {
        "degrees": Slider("Direction of q (°)", 0, 359, 30, 1),
        "length": Slider("Length of q", 0.1, 3.0, 1.0),
        "temperature": Slider("Temperature", 0.1, 4.0, 1.0),
    }
    return live(
        drawn,
        controls,
        lambda: scores(keys, {name: score_function}, key_labels=key_labels, title=title, caption=caption),
    )


def live_temperature(
    values: Tensor | Sequence[float],
    labels: Sequence[str] | None = None,
    *,
    softmax_function: Callable[[Tensor], Tensor] | None = None,
    caption: str = "Low temperatures pick one key, high ones spread the weight evenly.",
) -> "Live | Output":
    """softmax(scores / temperature) of given scores (S,), with its entropy, under a control for the temperature.

    softmax_function: the learner's own softmax of a tensor (S,). In the book: a table of five temperatures.
    """
    values = torch.as_tensor(values).detach().cpu().double()
    if values.dim() != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"the scores must be a list of at least two finite numbers, shape (S,), not {values.tolist()}")
    _, labels = check_keys(torch.zeros(len(values), 2), labels)
    require_text(caption=caption)

    def weigh(temperature: float) -> tuple[list[float], float]:
        weights = (softmax_function or (lambda x: x.softmax(-1)))(values / temperature)
        if not isinstance(weights, Tensor) or weights.shape != values.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(f"the softmax of {len(values)} scores must have shape {tuple(values.shape)}, not {got}")
        weights = weights.tolist()
        return weights, -sum(w * math.log2(w) for w in weights if w > 0)

    def drawn(temperature: float) -> Output:
        weights, entropy = weigh(temperature)
        said = (
            f"Entropy {shown(entropy)} bits of at most {shown(math.log2(len(weights)))}: "
            f"as spread as an even choice among {shown(2**entropy)} of {len(weights)} keys."
        )
        rows = list(zip(labels, values.tolist(), weights, strict=True))
        numbers = weights_table([(escape(label), value, weight) for label, value, weight in rows], caption)
        status = f'<p role="status">{escape(said)}</p>'
        body = f"<figure>{numbers}{status}<figcaption>{prose(caption)}</figcaption></figure>"
        html = fragment(body, kind="piece ac-scores", styles=["pieces.css", "scores.css"])
        cells = [[label, shown(value), shown(weight)] for label, value, weight in rows]
        text = f"{text_table(['key', 'score', 'weight'], cells)}\n{said}"
        return Output(text, html, {"weights": weights, "entropy": entropy})

    def at_five() -> Output:
        header, rows = ["temperature", *labels, "entropy, bits"], []
        for temperature in (0.25, 0.5, 1.0, 2.0, 4.0):
            weights, entropy = weigh(temperature)
            rows.append([number(temperature), *map(shown, weights), shown(entropy)])
        body = f"<figure><figcaption>{prose(caption)}</figcaption>{html_table(header, rows, caption)}</figure>"
        return Output(f"{caption}\n{text_table(header, rows)}", fragment(body, kind="table"))

    return live(drawn, {"temperature": Slider("Temperature", 0.1, 5.0, 1.0)}, at_five)
