"""The gallery of heads: its numbers against the weights, its refusals, and the page in Chromium."""

import base64
import re
from pathlib import Path

import pytest
import torch

from attncourse import show
from attncourse.masks import causal_mask
from attncourse.show.heads import LEVELS, describe, largest, levels
from attncourse.show.html import two_decimals
from tests.show.accessible import SLIDER

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
TEXT = "  if <a>:\n    b = a\nb"
L, H, T = 2, 3, len(TEXT)


def weights(seed: int = 0) -> torch.Tensor:
    scores = 3 * torch.randn(L, H, T, T, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~causal_mask(T), float("-inf")).softmax(-1)


def example(**options) -> show.Output:
    settings = {"names": {(1, 2): "looks <back>"}, "start": (1, 2), "start_query": 7} | options
    return show.heads(list(TEXT), weights(), **settings)


def stored(output: show.Output, layer: int, head: int) -> list[list[int]]:
    """The rows of one head, of growing length, from what the page was given."""
    flat = list(base64.b64decode(output.data["weights"][layer * H + head]))
    return [flat[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(T)]


def test_every_weight_is_stored_to_a_255th():
    output, given = example(), weights()
    for layer in range(L):
        for head in range(H):
            for i, row in enumerate(stored(output, layer, head)):
                assert torch.tensor(row) / 255 == pytest.approx(given[layer, head, i, : i + 1], abs=0.5 / 255 + 1e-6)
    assert output.data["places"][:11] == [*([0, j] for j in range(10)), [1, 0]]
    assert output.data["tokens"][9] == "⏎" and output.data["tokens"][0] == "·"


def test_status_says_the_largest_weights():
    row = [10, 200, 0, 200, 1, 90]
    assert largest(row) == [3, 1, 5]
    assert largest([1, 0]) == []  # both are 0.00
    shades = torch.zeros(T, T, dtype=torch.long)
    shades[2, :3] = torch.tensor([51, 0, 204])
    data = example().data
    assert describe(data, shades, 0, 1, 2) == "Layer 0, head 1, token 3, «i»: 0.80 on «i» itself, 0.20 on «·» 2 back"
    assert describe(data, shades, 1, 2, 3).endswith("head 2 (looks <back>), token 4, «f»: no weight above 0.00")


def test_heatmap_has_each_visible_weight_once():
    shades = (255 * weights()[0, 0]).round().long()
    paths = levels(shades)
    assert len(paths) == LEVELS
    for n, path in enumerate(paths, 1):
        found = {(int(i), int(j)) for j, i in re.findall(r"M(\d+) (\d+)h1v1h-1z", path)}
        assert found == {(i, j) for i in range(T) for j in range(i + 1) if round(shades[i, j].item() * 16 / 255) == n}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ["ab"] * T}, "single characters"),
        ({"tokens": []}, "single characters"),
        ({"tokens": list(TEXT)[1:]}, "weights have shape"),
        ({"weights": torch.full((L, H, T, T), 1 / T)}, "looks ahead"),
        ({"weights": weights() * 2}, "between 0 and 1"),
        ({"start": (2, 0)}, "2 layers, 3 heads"),
        ({"start_query": T}, "tokens"),
        ({"names": {(0, 3): "x"}}, "names has"),
        ({"caption": " "}, "caption"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"tokens": list(TEXT), "weights": weights(), **change}
    tokens, given = arguments.pop("tokens"), arguments.pop("weights")
    with pytest.raises(ValueError, match=message):
        show.heads(tokens, given, **arguments)


def test_four_layers_of_eight_heads_stay_small():
    big = torch.ones(4, 8, 67, 67).tril()
    output = show.heads(["x"] * 67, big / big.sum(-1, keepdim=True))
    assert len("".join(output.data["weights"])) < 100_000 and len(output.html) < 190_000


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  opacity: [...root.querySelectorAll(".ac-text g rect")].map(n => n.getAttribute("fill-opacity")),
  classes: [...root.querySelectorAll(".ac-text g text")].map(n => n.getAttribute("class")),
  on: [...root.querySelectorAll(".ac-text g")].findIndex(n => n.classList.contains("ac-on")),
  paths: [...root.querySelectorAll(".ac-shades path")].map(n => n.getAttribute("d")),
  frame: root.querySelector(".ac-frame").getAttribute("y"),
})"""


@pytest.mark.browser
def test_every_number_is_pythons(open_page):
    output = example()
    root = open_page(output.html).locator(".ac-heads")
    root.get_by_role("slider").focus()
    for layer, head in ((1, 2), (0, 1), (1, 0)):
        root.get_by_role("group", name="Layer").get_by_role("radio", name=str(layer)).check(force=True)
        root.get_by_role("group", name="Head").get_by_role("radio", name=str(head)).check(force=True)
        rows = stored(output, layer, head)
        shades = torch.zeros(T, T, dtype=torch.long)
        for i, row in enumerate(rows):
            shades[i, : i + 1] = torch.tensor(row)
        root.get_by_role("slider").press("Home")
        for i in range(T):
            page = root.evaluate(READ)
            assert page["status"] == describe(output.data, shades, layer, head, i)
            assert page["opacity"] == [two_decimals(shades[i, j].item() / 255) for j in range(T)]
            assert page["classes"] == [f"ac-t{(s >= 0.54) + (s >= 0.71)}" for s in (shades[i] / 255).tolist()]
            assert page["on"] == i and page["frame"] == str(i) and page["paths"] == levels(shades)
            root.page.keyboard.press("ArrowRight")


@pytest.mark.browser
def test_keyboard_alone_and_clicks(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    start = status.inner_text()
    assert start.startswith("Layer 1, head 2 (looks <back>), token 8, «>»")
    for keys, expected in (
        (["Tab", "ArrowLeft"], "Layer 0, head 2"),
        (["Tab", "Home"], "Layer 0, head 0"),
        (["Tab", "End"], f"token {T}, "),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
    page.locator(".ac-text g").nth(2).click()
    assert "token 3, «i»" in status.inner_text()
    page.locator(".ac-dots").click(position={"x": 30, "y": 16 + 9 * 12 + 4})
    assert "token 13, " in status.inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390])
def test_fits_a_phone_with_large_targets(open_page, width):
    page = open_page(example().html, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.locator(".ac-chips label, summary, input[type=range]").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert len(sizes) == L + H + 2 and min(sizes) >= 24
    assert page.get_by_role("slider").evaluate("(node) => node.clientWidth") >= SLIDER
    letters = page.locator(".ac-letters")
    assert letters.is_hidden()  # 7 px high
    page.set_viewport_size({"width": 900, "height": 800})
    assert letters.is_visible()


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = example(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-text").is_visible() and page.locator(".ac-dots").is_visible()
    page.locator("summary").click()
    said = page.locator("main").inner_text()
    for part in ("Layer 1, head 2 (looks <back>), token 8", "1.00 on «·» itself", "Notice <this>.", "do not explain"):
        assert part in said, part
    assert page.locator(".ac-text rect").nth(7).get_attribute("fill-opacity") == two_decimals(
        stored(output, 1, 2)[7][7] / 255
    )


@pytest.mark.browser
def test_two_on_a_page_do_not_meet(open_page):
    page = open_page(example().html + example(start=(0, 0)).html)
    one, two = page.locator(".ac-heads").all()
    one.get_by_role("slider").press("Home")
    assert "token 1," in one.locator("[role=status]").inner_text()
    assert "Layer 0, head 0, token 8," in two.locator("[role=status]").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for width in (900, 320):
        page.set_viewport_size({"width": width, "height": 800})
        found = page.evaluate("() => axe.run('.ac')")
        assert [rule["id"] for rule in found["violations"]] == []
        assert len(found["passes"]) > 10
