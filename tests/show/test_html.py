"""Outputs: both forms, escaping, numbers, size, and colours that can be read."""

import json
import re
from importlib.resources import files

import pytest
import torch

import attncourse.masks
from attncourse import show
from attncourse.attention import masked_softmax
from attncourse.show.html import number, prose, static, text_table, to_columns, two_decimals
from attncourse.show.pieces import DARK_FLIP, LIGHT_FLIP

STATIC = sorted(path.name for path in (files("attncourse.show") / "static").iterdir())
EVIL = "</script><b onclick=x>&\"'"


def html(output: show.Output) -> str:
    bundle = output._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == repr(output) != ""
    return bundle["text/html"]


def alignment(**changes) -> show.Output:
    example = {"source": ["one", "two"], "target": ["un"], "weights": [[0.25, 0.75]]} | changes
    return show.alignment([example])


def size(*names: str) -> int:
    return sum(len(static(name).encode()) for name in names)


def test_styles_and_scripts_are_small():
    shared = size("course.css", "pieces.css", "course.js")
    assert shared <= 11_000  # in every piece
    assert shared + size("alignment.js", "recall.js") <= 16_000
    assert size("scores.css", "scores.js") <= 5_000
    pieces = ["alignment.js", "recall.js", "rotation.css", "rotation.js", "scores.css", "scores.js"]
    pieces += ["steps.css", "steps.js"]
    assert size("steps.css", "steps.js") <= 2_500
    assert size("rotation.css", "rotation.js") <= 4_000
    pieces += ["heads.css", "heads.js"]
    assert size("heads.css", "heads.js") <= 5_000
    pieces += ["masks.css", "masks.js"]
    assert size("masks.css", "masks.js") <= 8_000
    pieces += ["memory.css", "memory.js"]
    assert size("memory.css", "memory.js") <= 3_500
    pieces += ["models.css", "models.js"]
    assert size("models.css", "models.js") <= 5_000
    pieces += ["latent.css", "latent.js"]
    assert size("latent.css", "latent.js") <= 3_000
    pieces += ["sharing.css", "sharing.js"]
    assert size("sharing.css", "sharing.js") <= 4_500
    pieces += ["online.css", "online.js"]
    assert size("online.css", "online.js") <= 5_500
    pieces += ["decoding.css", "decoding.js", "claims.css", "comparison.css"]
    assert size("decoding.css", "decoding.js") <= 4_000 and size("claims.css") <= 1_000 >= size("comparison.css")
    pieces += ["roofline.css", "roofline.js"]
    assert size("roofline.css", "roofline.js") <= 5_000
    pieces += ["map.css", "map.js", "timeline.css"]
    assert size("map.css", "map.js") <= 12_500 and size("timeline.css") <= 1_500
    assert shared + size(*pieces) == size(*STATIC)


def test_nothing_asks_another_host_or_keeps_anything():
    for name in STATIC:
        found = re.search(r"https?:|//\w|@import|url\(|fetch|XMLHttp|Storage|cookie|innerHTML|eval", static(name))
        assert not found, (name, found)


def test_every_rule_is_scoped():
    css = re.sub(r"\[[^]]*\]", "", "".join(static(name) for name in STATIC if name.endswith(".css")))
    for selectors in re.findall(r"([^{}]+)\{", css):
        for selector in re.sub(r", (?=[^(]*\))", " or ", selectors).split(", "):
            assert ".ac" in selector or selector.strip().startswith(("@media", "@container")), selector


def test_tokens_cannot_leave_their_place():
    output = alignment(source=[EVIL, "two"], title=EVIL)
    page = html(output)
    assert EVIL not in page and "<b onclick" not in page
    assert page.count("</script>") == 2  # the JSON's and the library's
    record = re.search(r'<script type="application/json">(.*?)</script>', page)[1]
    assert json.loads(record) == output.data
    assert output.data["examples"][0]["source"][0] == EVIL


def test_alignment_rounds_to_four_decimals_and_shows_two():
    weights = torch.rand(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[1] = 0.125  # a tie: Python's own format would say 0.12, JavaScript 0.13
    output = alignment(source=list("abcdefgh"), target=list("xyz"), weights=weights)
    given = output.data["examples"][0]["weights"]
    assert given == [[round(float(w), 4) for w in row] for row in weights]
    cells = re.findall(r"<td>([^<]*)</td>", html(output))
    assert cells == [two_decimals(w) for row in given for w in row]
    assert cells[8:16] == ["0.13"] * 8


def test_alignment_is_deterministic_and_has_no_ids():
    assert html(alignment()) == html(alignment())
    assert " id=" not in re.sub(r"<script>.*", "", html(alignment()), flags=re.DOTALL)


def test_only_the_first_heatmap_shows_without_scripts():
    example = {"source": ["a"], "target": ["b"], "weights": [[1]]}
    page = html(show.alignment([example, example | {"title": "Second"}]))
    assert page.count('<div class="ac-map">') == 1 and page.count('<div class="ac-map" hidden>') == 1
    assert page.count("<table>") == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": [[0.5, 0.5], [0.5, 0.5]]}, "weights have 2 rows"),
        ({"weights": [[0.5, 0.5, 0.0]]}, r"of \[3\] numbers"),
        ({"weights": [[0.5, float("nan")]]}, "weight nan"),
        ({"weights": [[-0.5, 1.5]]}, "weight -0.5"),
        ({"source": ["one", ""]}, "source must be a list of words"),
        ({"target": []}, "target must be a list of words"),
    ],
)
def test_alignment_says_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        alignment(**changes)


def test_alignment_needs_its_keys_and_an_example():
    with pytest.raises(ValueError, match="lacks target"):
        show.alignment([{"source": ["a"], "weights": [[1]]}])
    with pytest.raises(ValueError, match="at least one"):
        show.alignment([])


def test_source_shows_file_and_code():
    output = show.source(masked_softmax)
    page = html(output)
    assert repr(output).startswith("def masked_softmax(") and repr(output).endswith("0.0)\n")
    assert "<code>attncourse/attention.py</code> · <code>masked_softmax</code>" in page
    assert 'role="region" tabindex="0" aria-label="Source of attncourse/attention.py, masked_softmax"' in page
    assert 'aria-label="Source of attncourse/masks.py"' in html(show.source(attncourse.masks))
    text = re.sub(r"<[^>]+>", "", re.search(r"<pre>(.*)</pre>", page, re.DOTALL)[1])
    assert text.replace("&gt;", ">").replace("&lt;", "<").replace("&quot;", '"').replace("&amp;", "&") == repr(output)
    assert repr(show.source(attncourse.masks)).startswith('"""Boolean masks')


@pytest.mark.parametrize("obj", [3, json.dumps, json, len])
def test_source_is_of_this_package(obj):
    with pytest.raises(ValueError, match=r"no source to show|not in the package"):
        show.source(obj)


def test_predict_both_forms():
    output = show.predict("How long is `h`?", "128 < 256", options=["`a`", "b"])
    page = html(output)
    assert "<summary>Reveal the answer</summary>" in page and "128 &lt; 256" in page and "<code>a</code>" in page
    assert repr(output) == "Predict first: How long is `h`?\n  – `a`\n  – b\nAnswer: 128 < 256"
    with pytest.raises(ValueError, match="at least two"):
        show.predict("p", "a", options=["one"])
    with pytest.raises(ValueError, match="answer=''"):
        show.predict("p", "")


def test_prose_reads_code_and_nothing_else():
    assert prose("`a<b` *c* $d$ <i>") == "<code>a&lt;b</code> *c* $d$ &lt;i&gt;"


def test_numbers():
    values = [None, float("nan"), True, 3, 3.0, 0.123456, 12345.6, 1e-7, "x"]
    assert [number(v) for v in values] == ["–", "–", "yes", "3", "3", "0.1235", "12,346", "1e-07", "x"]
    assert [two_decimals(x) for x in (0.125, 0.005, 0.995, 1.0, 0.0049)] == ["0.13", "0.01", "0.99", "1.00", "0.00"]


def test_tables_of_columns_and_of_rows_agree():
    columns = to_columns({"a": torch.tensor([1, 2]), "b": [0.5, 1.5]})
    assert columns == to_columns([{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]) == (["a", "b"], [["1", "0.5"], ["2", "1.5"]])
    assert text_table(*columns) == "a    b\n1  0.5\n2  1.5"
    with pytest.raises(ValueError, match=r"differ in length: \{'a': 1, 'b': 2\}"):
        to_columns({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="row 1 of the table has the keys"):
        to_columns([{"a": 1}, {"b": 1}])


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def rgb(colour: str) -> list[float]:
    digits = colour.lstrip("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def contrast(one: list[float], other: list[float]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def themes(name: str) -> list[list[float]]:
    """The light and the dark colour of a variable or class of course.css."""
    pair = re.search(re.escape(name) + r"[^;}]*light-dark\((#\w+), (#\w+)\)", static("course.css"))
    return [rgb(colour) for colour in pair.groups()]


def test_numbers_on_cells_can_be_read_at_every_weight():
    for theme, (paper, heat) in enumerate(zip(themes("--ac-bg"), themes("--ac-heat"), strict=True)):
        for hundredths in range(101):
            weight = hundredths / 100
            cell = [p + (h - p) * weight for p, h in zip(paper, heat, strict=True)]
            black = weight >= DARK_FLIP if theme else weight < LIGHT_FLIP
            assert contrast(cell, [0.0] * 3 if black else [1.0] * 3) >= 4.5, (theme, weight)


@pytest.mark.parametrize("name", ["--ac-fg", "--ac-dim", ".ac-s", ".ac-m", ".ac-k", ".ac-f", ".ac-b"])
def test_text_can_be_read(name):
    for colour, *papers in zip(themes(name), themes("--ac-bg"), themes("--ac-soft"), strict=True):
        assert all(contrast(colour, paper) >= 4.5 for paper in papers)


@pytest.mark.parametrize("name", ["--ac-edge", "--ac-heat", "--ac-focus"])
def test_edges_and_marks_can_be_seen(name):
    for colour, *papers in zip(themes(name), themes("--ac-bg"), themes("--ac-soft"), strict=True):
        assert all(contrast(colour, paper) >= 3 for paper in papers)


@pytest.mark.parametrize("name", show.PALETTE)
def test_palette_on_white_and_on_dark(name):
    for paper in ("#ffffff", "#121212", "#14181e"):
        assert contrast(rgb(show.PALETTE[name]), rgb(paper)) >= 3
