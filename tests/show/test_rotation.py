"""Turning pairs: the numbers are those of complex multiplication, and the page says and draws them in every state."""

import cmath
import math

import pytest
import torch

from attncourse import show
from attncourse.positions import RotaryEmbedding, apply_rotary
from tests.show.accessible import assert_accessible_and_fits

QUERY, KEY = torch.tensor([1.0, 0.9, -0.8, 0.7, 0.3, 0.2]), torch.tensor([1.0, -0.8, 0.9, 0.6, 0.1, 0.4])
N_DISTANCES, N_SHIFTS = 9, 4


def turn(base, interleaved=False, D=6):
    rotary = RotaryEmbedding(D, base, interleaved)
    return lambda x, positions: apply_rotary(x, positions, rotary)


TURNS = {"halves": turn(100.0), "interleaved": turn(100.0, True), "slow": turn(10000.0)}
PAIRS = {"halves": ((0, 3), (1, 4), (2, 5)), "interleaved": ((0, 1), (2, 3), (4, 5))}
PAIRS["slow"] = PAIRS["halves"]


def example(**changes) -> show.Output:
    settings = {"n_distances": N_DISTANCES, "n_shifts": N_SHIFTS, "start": (2, 1)} | changes
    return show.rotation(QUERY, KEY, TURNS, **settings)


def true_pairs(vector, name, position) -> list[complex]:
    """Each pair as a complex number, multiplied by a number of length 1."""
    base = 10000.0 if name == "slow" else 100.0
    rates = [base ** (-2 * p / 6) for p in range(3)]
    return [
        complex(vector[i], vector[j]) * cmath.exp(1j * rate * position)
        for (i, j), rate in zip(PAIRS[name], rates, strict=True)
    ]


def states():
    for t, name in enumerate(TURNS):
        for d in range(N_DISTANCES):
            for n in range(N_SHIFTS):
                yield t, name, d, n


def test_numbers_are_complex_multiplication():
    data = example().data
    for t, name, d, n in states():
        record = data["turns"][t]
        query, key = true_pairs(QUERY.tolist(), name, n + d), true_pairs(KEY.tolist(), name, n)
        shares = [(q * k.conjugate()).real / 6**0.5 for q, k in zip(query, key, strict=True)]
        assert record["pairs"] == [list(pair) for pair in PAIRS[name]]
        for given, wanted in ((record["query"][n + d], query), (record["key"][n], key)):
            assert given == [pytest.approx([z.real, z.imag], abs=0.0005 + 1e-6) for z in wanted]
        assert record["shares"][n][d] == pytest.approx(shares, abs=0.005 + 1e-6)
        assert record["scores"][n][d] == pytest.approx(sum(shares), abs=0.005 + 1e-6)


def test_the_score_is_the_same_wherever_both_stand():
    for record in example().data["turns"]:
        assert all(row == record["scores"][0] for row in record["scores"])
        assert record["query"][0] != record["query"][1]
    halves, interleaved, _ = (record["scores"][0] for record in example().data["turns"])
    assert halves[0] == interleaved[0] and halves[1:] != interleaved[1:]


def test_what_does_not_turn_is_named():
    for wrong in (lambda x, p: 2 * x, lambda x, p: x, lambda x, p: x + 1, lambda x, p: x.roll(1, -1)):
        with pytest.raises(ValueError, match="mine: position 1 does not turn pairs"):
            show.rotation(QUERY, KEY, {"mine": wrong})
    with pytest.raises(ValueError, match=r"mine: 6 vectors of 6 numbers must stay \(6, 6\), but became \(6, 3\)"):
        show.rotation(QUERY, KEY, {"mine": lambda x, p: x[:, :3]})
    with pytest.raises(ValueError, match=r"must be \(D,\) with D even"):
        show.rotation(QUERY[:5], KEY[:5], TURNS)
    with pytest.raises(ValueError, match=r"start=\(9, 0\) must lie within n_distances=9"):
        example(start=(9, 0))
    with pytest.raises(ValueError, match="at least one function"):
        show.rotation(QUERY, KEY, {})


def test_the_text_form_says_the_same():
    text = repr(example())
    record = example().data["turns"][0]
    assert f"halves: query at position 3, key at 1, distance 2. Score {shown(record['scores'][1][2])}; before" in text
    assert text.count("\n") > 6 and len(example().html) < 60_000


def shown(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


READ = """(root) => ({
  status: root.querySelector("[role=status]").textContent,
  cells: [...root.querySelectorAll(".ac-pairs > div")].map(cell => ({
    said: ["which", "rate", "adds"].map(name => cell.querySelector(`.ac-${name}`).textContent),
    tips: ["query", "key"].map(role => ["cx", "cy"].map(name =>
      +cell.querySelector(`.ac-${role} circle`).getAttribute(name))),
  })),
  here: ["cx", "cy"].map(name => +root.querySelector(".ac-here").getAttribute(name)),
  curve: root.querySelector(".ac-scored").getAttribute("d"),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const [distance, shift] = root.querySelectorAll("input[type=range]");
  const seen = [];
  const move = (slider, value) => {{
    slider.value = value;
    slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
  }};
  for (const turn of root.querySelectorAll("fieldset input")) {{
    turn.click();
    for (let d = 0; d <= +distance.max; d++) {{
      move(distance, d);
      for (let n = 0; n <= +shift.max; n++) {{
        move(shift, n);
        seen.push(read(root));
      }}
    }}
  }}
  return seen;
}}"""


@pytest.mark.browser
def test_every_number_in_every_state_is_pythons(open_page):
    output = example()
    data = output.data
    pages = open_page(output.html).locator(".ac-rotation").evaluate(SWEEP)
    assert len(pages) == 3 * N_DISTANCES * N_SHIFTS
    zero, per = data["y"]
    for page, (t, name, d, n) in zip(pages, states(), strict=True):
        record = data["turns"][t]
        score = record["scores"][n][d]
        again = f"; before both moved on it was {shown(record['scores'][0][d])}" if n else ""
        where = f"query at position {n + d}, key at {n}, distance {d}"
        assert page["status"] == f"{name}: {where}. Score {shown(score)}{again}."
        for p, cell in enumerate(page["cells"]):
            first, second = PAIRS[name][p]
            rate = f"{record['rates'][p]} rad a position"
            assert cell["said"] == [f"numbers {first}, {second}", rate, shown(record["shares"][n][d][p])]
            for tip, (x, y) in zip(cell["tips"], (record["query"][n + d][p], record["key"][n][p]), strict=True):
                assert tip == pytest.approx([x * data["unit"], -y * data["unit"]], abs=1e-6)
        assert page["here"] == pytest.approx([data["x"][d], zero - per * score], abs=1e-6)
        heights = [float(part.split(" ")[1]) for part in page["curve"][1:].split("L")]
        assert heights == pytest.approx([zero - per * s for s in record["scores"][n]], abs=1e-6)


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (open_page(example().html, java_script_enabled=on).locator(".ac-rotation") for on in (True, False))
    for selector in (".ac-live", ".ac-pairs"):
        assert live.locator(selector).inner_text() == still.locator(selector).inner_text()
    for selector in (".ac-query circle", ".ac-key circle", ".ac-query text", ".ac-key text", ".ac-here"):
        names = ("x", "y") if selector.endswith("text") else ("cx", "cy")
        for one, two in zip(live.locator(selector).all(), still.locator(selector).all(), strict=True):
            for name in names:
                assert math.isclose(float(one.get_attribute(name)), float(two.get_attribute(name)), abs_tol=0.06)


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab", "ArrowRight"], "interleaved: query at position 3, key at 1, distance 2."),
        (["Tab", "ArrowRight", "ArrowRight"], "interleaved: query at position 5, key at 1, distance 4."),
        (["Home"], "distance 0."),
        (["Tab", "End"], f"query at position {N_SHIFTS - 1}, key at {N_SHIFTS - 1}, distance 0."),
        (["Shift+Tab", "End"], f"distance {N_DISTANCES - 1}."),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert expected in status.inner_text()
    assert page.get_by_role("slider", name="Distance").count() == 1
    assert page.get_by_role("slider", name="Shift of both").count() == 1


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = example(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-plane:visible").count() == 3 and page.locator(".ac-curve").is_visible()
    assert page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    said = page.locator("main").inner_text()
    for part in ("distance 2. Score", "numbers 0, 3", "Notice <this>.", shown(output.data["turns"][2]["scores"][0][8])):
        assert part in said, part


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("summary").first.click()
    assert_accessible_and_fits(page, ".ac-chips label, summary, input[type=range]")
