"""Shared heads: lines are the module's, bytes a real cache's, and the page says and draws them in every state."""

import pytest
import torch

from attncourse import show
from attncourse.gqa import GroupedQueryAttention, grouped_query_attention
from attncourse.show.sharing import amount, paths
from tests.show.accessible import assert_accessible_and_fits

HEADS, TOKENS = (1, 6, 8, 128), (96, 4096)


def example(**changes) -> show.Output:
    options = {"heads": HEADS, "head_dim": 16, "n_layers": 3, "tokens": TOKENS, "start": (8, 2, 4096)}
    return show.sharing(**(options | changes))


def states(data: dict):
    """Every state, in the order in which the sweep below visits them."""
    for heads, record in enumerate(data["heads"]):
        for step in range(len(record["steps"])):
            for tokens in range(len(data["tokens"])):
                yield heads, step, tokens


def test_there_is_every_divisor():
    for H, record in zip(HEADS, example().data["heads"], strict=True):
        assert [step["G"] for step in record["steps"]] == [G for G in range(H, 0, -1) if H % G == 0]


@pytest.mark.parametrize(("H", "G"), [(8, 8), (8, 2), (8, 1), (6, 3)])
def test_bytes_and_flop_are_those_of_a_layer(H, G):
    layer = GroupedQueryAttention(16 * H, H, G, bias=False).bfloat16()
    data = example().data
    (record,) = (record for record in data["heads"] if record["H"] == H)
    (step,) = (step for step in record["steps"] if step["G"] == G)
    assert int(step["bytes"].replace(",", "")) == layer.new_cache(1, 1).nbytes
    assert step["cache"] == [amount(3 * layer.new_cache(1, S).nbytes) for S in TOKENS]
    multiply_adds = 2 * H * 96 * 16  # scores and sums of 96 tokens
    assert float(step["flop"]) == 2 * multiply_adds / layer.new_cache(1, 96).nbytes


@pytest.mark.parametrize(("H", "G"), [(6, 6), (6, 3), (8, 2), (8, 1)])
def test_lines_join_who_reads_whom(H, G):
    data = example(heads=(6, 8), start=(6, 3, 96)).data
    heads = (6, 8).index(H)
    step = [step["G"] for step in data["heads"][heads]["steps"]].index(G)
    width, left, *_ = data["size"]
    lines = [line.split("L") for line in paths(data, heads, step)["reads"].split("M")[1:]]
    ends = [float(to.split()[0]) for _, to in lines]
    value = torch.randn(1, G, 3, 2)
    for h, end in enumerate(ends):
        reads = torch.autograd.functional.jacobian(
            lambda value, h=h: grouped_query_attention(torch.ones(1, H, 1, 2), torch.ones(1, G, 3, 2), value)[0, h],
            value,
        )
        (g,) = reads.abs().sum((0, 1, 2, 4, 5)).nonzero().flatten().tolist()
        assert end == pytest.approx(left + width * (g + 0.5) / G, abs=0.01)


def test_what_does_not_fit_is_named():
    for changes, message in (
        ({"heads": (8, 4)}, r"heads=\[8, 4\] must be rising"),
        ({"heads": (8, 129)}, "at most 128"),
        ({"tokens": ()}, r"tokens=\[\] must be rising"),
        ({"start": (8, 3, 96)}, r"start=\(8, 3, 96\), but"),
        ({"start": (4, 2, 96)}, r"start=\(4, 2, 96\), but"),
        ({"head_dim": 0}, "head_dim=0"),
    ):
        with pytest.raises(ValueError, match=message):
            example(**changes)


def test_the_text_form_says_the_same():
    text = repr(example())
    for part in ("H = 8, G = 2, grouped-query: query heads 0 to 3 read head 0, 4 to 7 head 1.", "128, 1", "0.75 MiB"):
        assert part in text, part
    assert len(show.sharing().html) < 30_000
    assert amount(2**30) == "1.00 GiB" and amount(2**26) == "64.00 MiB"


def said(data: dict, heads: int, step: int, tokens: int) -> list[str]:
    """The same sentences, written a second time."""
    H = HEADS[heads]
    chosen = data["heads"][heads]["steps"][step]
    n = H // chosen["G"]
    if n == 1:
        who, share = "multi-head: each query head reads one of its own.", "as much as multi-head attention."
    else:
        share = f"1/{n} of multi-head attention's."
        who = "multi-query: all query heads read the same one."
        if chosen["G"] > 1:
            more = ", and so on." if chosen["G"] > 2 else "."
            who = f"grouped-query: query heads 0 to {n - 1} read head 0, {n} to {2 * n - 1} head 1{more}"
    return [
        f"H = {H}, G = {chosen['G']}, {who}",
        f"Cache: {chosen['bytes']} bytes a token and layer. 3 layers, {data['tokens'][tokens]} tokens: "
        f"{chosen['cache'][tokens]}, {share}",
        f"A step of attention: {2 * n / 2:g} FLOP for each byte of the cache that it reads.",
    ]


READ = """(root) => ({
  status: [...root.querySelectorAll("[role=status] p")].map(node => node.textContent),
  paths: Object.fromEntries(["reads", "asks", "keys", "room"].map(
    name => [name, root.querySelector(`.ac-${name}`).getAttribute("d")])),
  counts: [root.querySelector(".ac-n-queries").textContent, root.querySelector(".ac-n-keys").textContent],
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const move = (slider, value) => {{
    slider.value = value;
    slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
  }};
  const seen = [];
  const tokens = [...root.querySelectorAll("input[type=range]")].pop();
  for (const heads of root.querySelectorAll("fieldset input")) {{
    heads.click();
    const slider = root.querySelector(".ac-slider:not([hidden]) input");
    for (let step = 0; step <= +slider.max; step++) {{
      move(slider, step);
      for (let n = 0; n <= +tokens.max; n++) {{
        move(tokens, n);
        seen.push(read(root));
      }}
    }}
  }}
  return seen;
}}"""


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    output = example()
    pages = iter(open_page(output.html).locator(".ac-sharing").evaluate(SWEEP))
    for heads, step, tokens in states(output.data):
        page = next(pages)
        assert page["status"] == said(output.data, heads, step, tokens)
        assert page["paths"] == paths(output.data, heads, step)
        assert page["counts"] == [str(HEADS[heads]), str(output.data["heads"][heads]["steps"][step]["G"])]
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (
        open_page(example().html, java_script_enabled=on).locator(".ac-sharing-heads, .ac-live") for on in (True, False)
    )
    assert live.evaluate_all("nodes => nodes.map(node => node.outerHTML)") == still.evaluate_all(
        "nodes => nodes.map(node => node.outerHTML)"
    )


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "ArrowRight"], "H = 128, G = 2"),
        (["ArrowLeft", "ArrowLeft"], "H = 6, G = 2"),
        (["Tab", "Home"], "H = 6, G = 6"),
        (["End"], "multi-query: all query heads"),
        (["Tab", "ArrowLeft"], "3 layers, 96 tokens"),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
    assert page.get_by_role("slider", name="Key-value heads").count() == 1


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(
        example(caption="Notice <this>.").html, java_script_enabled=False, viewport={"width": 320, "height": 800}
    )
    assert page.locator(".ac-sharing-heads").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for part in ("H = 8, G = 2", "128, 64", "Notice <this>."):
        assert part in text, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    assert_accessible_and_fits(page, ".ac-chips label, summary, .ac-slider:not([hidden]) input")
