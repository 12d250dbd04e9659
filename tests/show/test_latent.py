"""Latent attention's piece: the numbers are those of the modules, and the page says and draws them in every state."""

from itertools import product

import pytest
import torch

from attncourse import show
from attncourse.mechanisms import build
from attncourse.mla import MultiHeadLatentAttention
from attncourse.show.latent import SLIDERS, absorbs_up_to, costs, describe, lines, rectangles
from tests.show.accessible import assert_accessible_and_fits

V3 = {"H": 128, "C": 512, "R": 64, "N": 128, "V": 128}
LITE = V3 | {"H": 16}


def layer(H: int, C: int, R: int, N: int, V: int) -> MultiHeadLatentAttention:
    with torch.device("meta"):
        sizes = {"kv_lora_rank": C, "qk_rope_head_dim": R, "qk_nope_head_dim": N, "v_head_dim": V}
        return build("mla", 8, H, **sizes)


def test_what_is_cached_is_what_the_modules_cache():
    for sizes in (V3, LITE, {"H": 8, "C": 64, "R": 16, "N": 32, "V": 192}):
        found = costs(**sizes)
        assert found["MLA, absorbed"][0] == found["MLA, naive"][0] == layer(**sizes).new_cache(1, 1).nbytes // 4
        H, V = sizes["H"], sizes["V"]
        for name, G in (("MHA", H), ("GQA, 8 heads", 8), ("MQA", 1)):
            with torch.device("meta"):
                other = build("gqa", H * V, H, n_kv_heads=G)
            assert found[name][0] == other.new_cache(1, 1).nbytes // 4


def test_the_border_is_the_modules():
    for C, N, V in product((64, 128, 512), (32, 128), (32, 256)):
        most = absorbs_up_to(C, N, V)
        latent = layer(8, C, 16, N, V)
        if most is None:
            assert latent._absorbs(10**9)
        else:
            assert (most == 0 or latent._absorbs(most)) and not latent._absorbs(most + 1)


def test_numbers_that_the_chapter_tells():
    assert lines(**V3)["MLA, absorbed"] == ["576", "1,152", "278,528", "241.8"]
    assert lines(**LITE)["MLA, absorbed"][3] == "30.2"
    assert lines(**V3)["MHA"][3] == "1.0" and lines(**V3)["GQA, 8 heads"][3] == "16.0"
    assert lines(**V3)["MQA"][3] == "128.0" and absorbs_up_to(512, 128, 128) == 170
    assert "MHA has 56.9 times as many" in describe(**V3)
    assert rectangles(**V3)["vector"][0] == pytest.approx(2 * rectangles(**V3)["mha"][0])


def test_what_does_not_fit_is_named():
    for start in ({"H": 128}, V3 | {"C": 500}, V3 | {"D": 1}):
        with pytest.raises(ValueError, match="H 8/16/32/64/128"):
            show.latent(start)


def test_it_is_small():
    assert len(show.latent().html) < 25_000 and show.latent().html == show.latent().html


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  cells: [...root.querySelectorAll("tbody tr")].map(row => [...row.querySelectorAll("td")].map(td => td.textContent)),
  sizes: ["mha", "gqa", "mqa", "vector", "rope"].map(name => {
    const node = root.querySelector(`.ac-${name}`);
    return [+node.getAttribute("width"), +node.getAttribute("height")];
  }),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const sliders = [...root.querySelectorAll("input[type=range]")];
  const seen = [];
  function sweep(n) {{
    if (n === sliders.length) return seen.push(read(root));
    for (let i = 0; i <= +sliders[n].max; i++) {{
      sliders[n].value = i;
      sliders[n].dispatchEvent(new Event("input", {{ bubbles: true }}));
      sweep(n + 1);
    }}
  }}
  sweep(0);
  return seen;
}}"""


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    pages = iter(open_page(show.latent().html).locator(".ac-latent").evaluate(SWEEP))
    for values in product(*(sizes for _, sizes in SLIDERS.values())):
        sizes = dict(zip(SLIDERS, values, strict=True))
        page = next(pages)
        assert page["status"] == describe(**sizes)
        assert page["cells"] == list(lines(**sizes).values())
        for drawn, expected in zip(page["sizes"], rectangles(**sizes).values(), strict=True):
            assert drawn == pytest.approx(expected)
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (
        open_page(show.latent(LITE).html, java_script_enabled=on).locator(".ac-latent") for on in (True, False)
    )
    assert live.locator(".ac-live").inner_text() == still.locator(".ac-live").inner_text() == describe(**LITE)
    assert live.locator("tbody").inner_text() == still.locator("tbody").inner_text()
    for name in ("mha", "gqa", "mqa", "vector", "rope"):
        for attribute in ("x", "y", "width", "height"):
            one, two = (float(root.locator(f".ac-{name}").get_attribute(attribute)) for root in (live, still))
            assert one == pytest.approx(two, abs=1e-3)


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(show.latent().html)
    status = page.locator("[role=status]")
    sizes = dict(V3)
    for keys, change in (
        (["Tab", "Home"], {"H": 8}),
        (["ArrowRight"], {"H": 16}),
        (["Tab", "End"], {"C": 1024}),
        (["Tab", "ArrowLeft"], {"R": 32}),
        (["Tab", "Tab", "End"], {"V": 256}),
    ):
        for key in keys:
            page.keyboard.press(key)
        sizes |= change
        assert status.inner_text() == describe(**sizes)
    assert page.get_by_role("slider").count() == 5


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = show.latent(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-cached").is_visible() and page.locator(".ac-controls").inner_text() == ""
    text = page.locator("main").inner_text()
    for part in (describe(**V3), "MLA, absorbed", "278,528", "Notice <this>."):
        assert part in text, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(show.latent().html + show.latent(LITE, title="Another").html, f' data-theme="{theme}"')
    assert_accessible_and_fits(page, "input[type=range]")
