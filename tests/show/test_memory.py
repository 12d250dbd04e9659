"""A state as a memory: the numbers are those of linear attention, and the page says and draws them in every state."""

import pytest
import torch
import torch.nn.functional as F

from attncourse import show
from attncourse.linear import dpfp_features, elu_features, linear_attention_parallel
from tests.show.accessible import assert_accessible_and_fits

LETTERS = "BADCABBDCA"
N = len(LETTERS)
KEYS = 4 * F.normalize(torch.randn(N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=-1)
FEATURES = {"elu + 1": elu_features(KEYS), "DPFP": dpfp_features(KEYS)}
KEPT = (KEYS @ KEYS.T / 6**0.5).exp()
VALUES = F.one_hot(torch.tensor(["ABCD".index(letter) for letter in LETTERS]), 4).double()


def example(**changes) -> show.Output:
    return show.memory(LETTERS, FEATURES, **({"kept": KEPT, "start": (1, 5)} | changes))


def answers(kind: int, n: int) -> torch.Tensor:
    """What n keys get when they are asked, by the modules: (n, 4)."""
    if kind == len(FEATURES):
        key = KEYS[None, None, :n]
        return F.scaled_dot_product_attention(key, key, VALUES[None, None, :n])[0, 0]
    features = list(FEATURES.values())[kind][None, None, :n]
    return linear_attention_parallel(features, features, VALUES[None, None, :n], causal=False)[0, 0]


def test_numbers_are_those_of_attention():
    data = example().data
    assert [record["name"] for record in data["memories"]] == [*FEATURES, "softmax, all kept"]
    for kind, record in enumerate(data["memories"]):
        for n in range(1, N + 1):
            expected = answers(kind, n)
            right = (expected * VALUES[:n]).sum(-1)
            assert record["shares"][n - 1] == pytest.approx((100 * right).tolist(), abs=0.5 + 1e-6)
            assert record["means"][n - 1] == pytest.approx(right.mean().item(), abs=1e-4)
            assert record["read"][n - 1] == "".join(map(str, expected.argmax(-1).tolist()))


def test_the_state_is_the_sum_of_products():
    record = example().data["memories"][0]
    for n in (1, 4, N):
        state = FEATURES["elu + 1"][:n].T @ VALUES[:n]  # (M, V)
        levels = torch.tensor([int(level) for level in record["states"][n - 1]]).view(4, 6).T
        torch.testing.assert_close(levels.double(), 9 * state / state.max(), rtol=0, atol=0.5 + 1e-6)
    assert [len(state) for state in record["states"]] == [24] * N  # it never grows


def test_softmax_reads_more_back_than_a_flat_kernel():
    flat, _, kept = example().data["memories"]
    assert kept["means"][-1] > flat["means"][-1] and kept["states"] is None


def test_what_does_not_fit_is_named():
    for changes, message in (
        ({"start": (3, 1)}, r"start=\(3, 1\), but there are 3 memories"),
        ({"start": (0, 0)}, r"1 to 10 pairs"),
        ({"kept": KEPT[:3]}, r"kept \(3, 10\) must be \(10, 10\)"),
    ):
        with pytest.raises(ValueError, match=message):
            example(**changes)
    for features in (FEATURES["DPFP"][:4], -FEATURES["DPFP"], torch.zeros(N, 3), torch.ones(N, 65)):
        with pytest.raises(ValueError, match="mine: features"):
            show.memory(LETTERS, {"mine": features})
    with pytest.raises(ValueError, match="at least one kind"):
        show.memory(LETTERS, {})
    with pytest.raises(ValueError, match="single characters"):
        show.memory(["AB"], FEATURES)
    with pytest.raises(ValueError, match="at most 32 and 5"):
        show.memory("ABCDEF" + LETTERS[:4], FEATURES)


def test_the_text_form_says_the_same():
    output = example()
    text = repr(output)
    assert said(output.data, 1, 5) in text and "DPFP" in text.split("Right letters")[1]
    assert len(output.html) < 40_000


def said(data: dict, kind: int, n: int) -> str:
    record, M = data["memories"][kind], data["memories"][kind]["features"]
    right = sum("ABCD"[int(read)] == letter for read, letter in zip(record["read"][n - 1], LETTERS, strict=False))
    stored = f"State: {M} × 4 + {M} = {5 * M} numbers" if M else f"Stored: {n} keys and {n} values"
    mean = (answers(kind, n) * VALUES[:n]).sum(-1).mean().item()
    pairs = "1 pair" if n == 1 else f"{n} pairs"
    return f"{record['name']}: {pairs} written, {right} read back right. Mean share {mean:.2f}. {stored}."


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  shades: [...root.querySelectorAll(".ac-shade")].map(node => node.getAttribute("d")),
  none: !root.querySelector(".ac-none").hasAttribute("hidden"),
  bars: [...root.querySelectorAll(".ac-store g")].map(node => ({
    height: +node.children[0].getAttribute("height"),
    bottom: +node.children[0].getAttribute("y") + +node.children[0].getAttribute("height"),
    said: [node.children[1].textContent, node.children[2].textContent],
    later: node.classList.contains("ac-later"),
  })),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const slider = root.querySelector("input[type=range]");
  const seen = [];
  for (const memory of root.querySelectorAll("fieldset input")) {{
    memory.click();
    for (let n = 0; n <= +slider.max; n++) {{
      slider.value = n;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
      seen.push(read(root));
    }}
  }}
  return seen;
}}"""


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    from attncourse.show.memory import shades

    output = example()
    pages = iter(open_page(output.html).locator(".ac-memory").evaluate(SWEEP))
    for kind, record in enumerate(output.data["memories"]):
        for n in range(1, N + 1):
            page = next(pages)
            assert page["status"] == said(output.data, kind, n)
            assert page["shades"] == shades(output.data, record, n)
            assert page["none"] == (record["states"] is None)
            for i, bar in enumerate(page["bars"]):
                share = record["shares"][n - 1][i] if i < n else 0
                read = "ABCD"[int(record["read"][n - 1][i])] if i < n else ""
                assert bar["height"] == pytest.approx(60 * share / 100) and bar["later"] == (i >= n)
                assert bar["said"] == [LETTERS[i], "✓" if read == LETTERS[i] else read]
            assert len({round(bar["bottom"], 6) for bar in page["bars"]}) == 1
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (open_page(example().html, java_script_enabled=on).locator(".ac-memory") for on in (True, False))
    assert live.locator(".ac-live").inner_text() == still.locator(".ac-live").inner_text()
    for selector, names in ((".ac-shade", ("d",)), ("g rect", ("y", "height"))):
        for one, two in zip(live.locator(selector).all(), still.locator(selector).all(), strict=True):
            for name in names:
                a, b = one.get_attribute(name), two.get_attribute(name)
                assert a == b if name == "d" else float(a) == pytest.approx(float(b))
    assert live.locator(".ac-read").all_inner_texts() == still.locator(".ac-read").all_inner_texts()


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "ArrowLeft"], "elu + 1: 5 pairs written"),
        (["Tab", "ArrowRight", "ArrowRight"], "elu + 1: 7 pairs written"),
        (["Home"], "1 pair written, 1 read back right"),
        (["Shift+Tab", "End"], "softmax, all kept: 1 pair written"),
        (["Tab", "End"], "Stored: 10 keys and 10 values"),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
    assert page.get_by_role("slider", name="Pairs written").count() == 1


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    page = open_page(
        example(caption="Notice <this>.").html, java_script_enabled=False, viewport={"width": 320, "height": 800}
    )
    assert page.locator(".ac-store").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for part in ("DPFP: 5 pairs written", "softmax, all kept", "Notice <this>."):
        assert part in text, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    assert_accessible_and_fits(page, ".ac-chips label, summary, input[type=range]")
