"""Controls that run the learner's code: with ipywidgets 7.7 and 8, without it, in the book, in a real kernel."""

import math
import os
import sys
import time

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
import torch

from attncourse import show
from attncourse.show import widgets

ipywidgets = pytest.importorskip("ipywidgets")

KEYS = torch.tensor([[1.6, 0.2], [0.3, 1.2], [-1.0, 0.9]])


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """As in a notebook's process."""
    monkeypatch.delenv(widgets.STATIC, raising=False)
    monkeypatch.setattr(widgets, "has_kernel", lambda: True)


def double(x):
    return f"twice: {2 * x}"


SLIDER = show.Slider("Amount", 0, 5, 1, 1)


def test_a_change_calls_the_function_and_shows_its_result():
    calls = []

    def function(x, word):
        calls.append((x, word))
        return f"{word} {x} < 9"

    piece = show.live(function, {"x": show.Slider("Amount", 0, 2, 1), "word": show.Choice("Word", ["a", "b"], "b")})
    assert calls == [(1, "b")] and "b 1.0 &lt; 9" in piece.result.value and repr(piece) == "b 1.0 < 9"
    piece.controls["x"].value = 1.5
    piece.controls["word"].value = "a"
    assert calls[1:] == [(1.5, "b"), (1.5, "a")] and "a 1.5 &lt; 9" in piece.result.value
    piece.controls["x"].value = 1.5
    assert len(calls) == 3


def test_slider_and_number_box_hold_the_same():
    piece = show.live(double, {"x": show.Slider("Amount", 0, 1, 0.5)})
    box, slider = piece.box.children[0].children
    assert box is piece.controls["x"] and isinstance(slider, ipywidgets.FloatSlider)
    slider.value = 0.1 + 0.2
    assert box.value == 0.3 and piece.output.text == "twice: 0.6"
    box.value = 0.8
    assert slider.value == 0.8
    box.value = 7
    assert box.value == slider.value == 1


def test_whole_numbers_stay_whole():
    piece = show.live(double, {"x": SLIDER})
    assert isinstance(piece.controls["x"], ipywidgets.BoundedIntText) and piece.output.text == "twice: 2"
    assert repr(SLIDER.initial) == "1" and repr(show.Slider("Amount", 0, 5, 1).initial) == "1.0"


def test_choices_pass_values():
    piece = show.live(double, {"x": show.Choice("Amount", {"one": 1, "many": 40}, start="many")})
    assert piece.output.text == "twice: 80"
    piece.controls["x"].label = "one"
    assert piece.output.text == "twice: 2"


def test_every_control_has_a_label():
    piece = show.live(lambda a, b: "", {"a": SLIDER, "b": show.Choice("Kind", ["x"])})
    assert [box.description for box in piece.controls.values()] == ["Amount", "Kind"]
    native = (ipywidgets.BoundedIntText, ipywidgets.BoundedFloatText, ipywidgets.Dropdown)  # label for=…, in 7 and 8
    assert all(isinstance(box, native) for box in piece.controls.values())


def broken(x):
    print("before")
    if x > 1:
        return 1 / (x - x)  # the learner's line
    return "fine"


def test_an_error_is_text_and_the_controls_go_on():
    piece = show.live(broken, {"x": SLIDER})
    assert piece.output.text == "before\nfine"
    piece.controls["x"].value = 2
    assert piece.output.text.startswith("✗ The function raised ZeroDivisionError: division by zero\nin broken, line ")
    assert "return 1 / (x - x)  # the learner's line" in piece.output.text
    assert "attncourse" not in piece.output.text and 'role="alert"' in piece.result.value
    piece.controls["x"].value = 1
    assert piece.output.text == "before\nfine"


def test_the_line_is_the_learners_own():
    """Not the library's in which it ended."""

    def function(x):
        return torch.zeros(2) @ torch.zeros(3)

    text = show.live(function, {"x": SLIDER}).output.text
    assert "RuntimeError" in text and text.endswith("return torch.zeros(2) @ torch.zeros(3)")


def test_an_error_cannot_leave_its_place():
    def function(x):
        raise KeyError("<script>")

    assert "<script>" not in show.live(function, {"x": SLIDER}).result.value


def test_what_a_function_may_return():
    def outcome(value):
        return show.live(lambda x: value, {"x": SLIDER}).output

    table = show.table({"a": [1]}, caption="c")
    assert outcome(table) is table
    assert outcome(None).text == "" and outcome(torch.tensor([1.0])).text == "tensor([1.])"
    assert "return show.figure(fig, alt=" in outcome(plt.figure()).text
    plt.close("all")


def test_a_slow_function_waits_for_the_slider(monkeypatch):
    assert show.live(double, {"x": SLIDER}).box.children[0].children[1].continuous_update is True
    monkeypatch.setattr(widgets, "SLOW", 0.01)
    slow = show.live(lambda x: time.sleep(0.02), {"x": SLIDER})
    assert slow.box.children[0].children[1].continuous_update is False


def test_a_change_is_answered_quickly():
    piece = show.live_score(lambda q, k: q @ k.T, KEYS)
    began = time.perf_counter()
    for degree in range(20):
        piece.controls["degrees"].value = 100 + degree
    assert time.perf_counter() - began < 2  # about 1 ms each; a drag must not queue up
    assert len(piece.result.value) < 20_000


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: show.Slider("A", 0, 1, 2), "start=2 must be between 0 and 1"),
        (lambda: show.Slider("", 0, 1, 0), "label="),
        (lambda: show.Slider("A", 0, 1, 0, 0), "step > 0"),
        (lambda: show.Choice("A", []), "one of the options"),
        (lambda: show.Choice("A", ["x"], "y"), "start='y'"),
        (lambda: show.live(double, {}), "controls must be"),
        (lambda: show.live(double, {"x": (0, 1)}), "controls must be"),
    ],
)
def test_says_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def count_widgets(monkeypatch) -> list:
    made = []
    monkeypatch.setattr(ipywidgets.Widget, "__init__", lambda self, **settings: made.append(self))
    return made


def in_the_book(monkeypatch):
    monkeypatch.setenv(widgets.STATIC, "1")


def in_no_notebook(monkeypatch):
    monkeypatch.setattr(widgets, "has_kernel", lambda: False)


def without_ipywidgets(monkeypatch):
    monkeypatch.setattr(widgets, "find_spec", lambda name: None)


@pytest.mark.parametrize("where", [in_the_book, in_no_notebook, without_ipywidgets])
def test_static_makes_no_widget(monkeypatch, where):
    made = count_widgets(monkeypatch)
    where(monkeypatch)
    note = "In a notebook that runs, you can change: Amount (0 to 5); Kind (a, b)."
    controls = {"x": SLIDER, "kind": show.Choice("Kind", ["a", "b"])}
    output = show.live(lambda x, kind: f"{x}{kind}", controls)
    assert set(output._repr_mimebundle_()) == {"text/plain", "text/html"} and not made
    assert repr(output) == f"1a\n{note}" and note in output.html
    still = show.table({"a": [1]}, caption="In its place")
    for static in (still, lambda: still):
        output = show.live(lambda x, kind: 1 / 0, controls, static)
        assert "In its place" in output.html and repr(output).endswith(note) and not made


def test_an_error_stops_the_book(monkeypatch):
    in_the_book(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        show.live(lambda x: 1 / 0, {"x": SLIDER})


def test_static_is_off_by_0_and_nothing(monkeypatch):
    for value in ("", "0"):
        monkeypatch.setenv(widgets.STATIC, value)
        assert not widgets.is_static()


def cosine(q, k):
    return torch.nn.functional.cosine_similarity(q[:, None], k[None], dim=-1)


def test_live_score_agrees_with_the_explorer(monkeypatch):
    piece = show.live_score(cosine, KEYS, name="cosine")
    in_the_book(monkeypatch)
    static = show.live_score(cosine, KEYS, name="cosine")
    assert 'data-ac="scores"' in static.html and "Direction of q (°) (0 to 359)" in static.html
    record = static.data["scores"][0]
    for n, length in enumerate((0.5, 1, 2)):
        for t, temperature in enumerate((0.5, 1, 2)):
            for degree in (0, 45, 195):
                for name, value in (("degrees", degree), ("length", length), ("temperature", temperature)):
                    piece.controls[name].value = value
                assert piece.output.data["scores"] == record["scores"][n][degree // 15]
                assert piece.output.data["weights"] == record["weights"][t][n][degree // 15]
    assert piece.output.text.splitlines()[-1].startswith("cosine: largest weight ")


def test_live_score_says_what_shape_it_wants():
    piece = show.live_score(lambda q, k: (q * k).sum(-1), KEYS)
    wanted = "your score: 1 queries and 3 keys need scores of shape (1, 3), but they have (3,)"
    assert wanted in piece.output.text


def test_live_temperature_and_entropy(monkeypatch):
    scores = torch.tensor([2.0, 1.0, -1.0])
    piece = show.live_temperature(scores, ["cat", "sat", "mat"])
    for temperature in (1.0, 0.1, 3.0):
        piece.controls["temperature"].value = temperature
        weights = (scores.double() / temperature).softmax(-1)
        assert piece.output.data["weights"] == pytest.approx(weights.tolist())
        entropy = torch.distributions.Categorical(probs=weights).entropy().item() / math.log(2)
        assert piece.output.data["entropy"] == pytest.approx(entropy, abs=1e-6)
        assert f"Entropy {entropy:.2f} bits of at most 1.58: as spread as an even choice among" in repr(piece)
    in_the_book(monkeypatch)
    static = show.live_temperature(scores, ["cat", "sat", "mat"])
    assert static.html.count('<th scope="row">') == 5 and '<th scope="row">0.25</th><td>0.98</td>' in static.html


def test_live_temperature_with_the_learners_softmax():
    def unfinished(x):
        return x.exp().sum()

    assert "must have shape (3,), not ()" in show.live_temperature([1.0, 2, 3], softmax_function=unfinished).output.text
    with pytest.raises(ValueError, match="at least two finite numbers"):
        show.live_temperature([float("inf"), 1.0])


NOTEBOOK = (
    "import os, sys\n"
    "os.environ['ATTNCOURSE_STATIC'] = '1'\n"
    "from attncourse import show\n"
    "show.live(lambda x: x, {'x': show.Slider('Amount', 0, 5, 1, 1)})",
    "print('ipywidgets' in sys.modules)",
    "del os.environ['ATTNCOURSE_STATIC']\n"
    "def f(x):\n"
    "    return 1 / x\n"
    "piece = show.live(f, {'x': show.Slider('Amount', 0, 5, 1, 1)})\n"
    "piece",
    "piece.controls['x'].value = 4\nprint(piece.output)\npiece.controls['x'].value = 0\nprint(piece.output)",
)


def test_in_a_real_kernel(monkeypatch, tmp_path):
    """The book's output has no widget, nor does anything load ipywidgets; a live one has, and answers."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    static, loaded, live, changed = (cell.outputs for cell in notebook.cells)
    assert [set(output.data) for output in static] == [{"text/plain", "text/html"}]
    assert loaded[0].text == "False\n"
    view = "application/vnd.jupyter.widget-view+json"
    assert [view in output.data for output in live] == [True]
    shown = "".join(output.text for output in changed)
    assert shown.startswith("0.25\n✗ The function raised ZeroDivisionError: ")
    assert shown.endswith("in f, line 3: return 1 / x\n")
