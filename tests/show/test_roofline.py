"""The roofline's piece: every number is the formulas', in every state, with and without scripts."""

from itertools import pairwise, product

import pytest

from attncourse import show
from attncourse.lab import costs, load_result
from attncourse.show.roofline import KINDS, MACHINES, PARTS, describe, figure, mark, paths, si
from tests.show.accessible import assert_accessible_and_fits

TOKENS, BATCHES = (64, 1024), (1, 8)
GRID = costs.grid(TOKENS, BATCHES, d_model=64, n_heads=4)
NAMES = list(costs.MECHANISMS)
HERE = {"flop_per_s": 4e9, "bytes_per_s": 1e9}
OWN = "CPU, 1 thread, as measured"


def measured(**changes):
    """As the benchmark writes it: prefill and step of 64 tokens, a batch of them, and the step alone of 1,024."""
    rows = []
    for row in GRID:
        if row["number_bytes"] == 4 and (row["tokens"], row["batch"]) != (1024, 8):
            times = {kind: 2 * costs.bound(row[kind], HERE)[0] for kind in KINDS}
            if row["tokens"] == 1024 or row["batch"] == 8:
                times["prefill"] = None
            rows.append(row | {kind: row[kind] | {"ms": times[kind]} for kind in KINDS})
    parts = {"rows": [row for row in rows if row["batch"] == 1], "batched": [r for r in rows if r["batch"] == 8]}
    about = {"environment": {"device": "cpu (x86_64)", "threads": 1}, "settings": {"dtype": "float32"}}
    return {"machine": HERE, **about, **parts} | changes


START = {"machine": 0, "tokens": 64, "batch": 1, "mechanism": "gqa"}


def example(**changes) -> show.Output:
    return show.roofline(GRID, measured(), **({"start": START} | changes))


def said(machine: int, tokens: int, batch: int, name: str) -> list[str]:
    """What the page must say, from the formulas alone."""
    label, speeds = [(OWN, HERE), *MACHINES.items()][machine]
    rows = [
        row
        for row in GRID
        if (row["tokens"], row["batch"], row["number_bytes"]) == (tokens, batch, 2 if machine else 4)
    ]
    ridge = speeds["flop_per_s"] / speeds["bytes_per_s"]
    lines = [
        f"{label}: {si(speeds['flop_per_s'], 'FLOP/s')} and {si(speeds['bytes_per_s'], 'B/s')}; "
        f"the ceilings meet at {figure(ridge)} FLOP a byte."
    ]
    (row,) = (row for row in rows if row["mechanism"] == name)
    for kind in KINDS:
        flop, moved = row[kind]["flop"], row[kind]["bytes"]
        least = max(flop / speeds["flop_per_s"], moved / speeds["bytes_per_s"])
        binds = "Compute" if flop / moved > ridge else "Traffic"
        line = f"{name}, {kind}: {si(flop, 'FLOP')}, {si(moved, 'B')}, {figure(flop / moved)} FLOP a byte. "
        line += f"{binds} binds: at least {si(least, 's')}"
        timed = (tokens, batch) == (64, 1) or (kind == "step" and (tokens, batch) != (1024, 8))
        lines.append(line + (f"; measured {si(2 * least, 's')}" if timed and not machine else ""))
    waits = [sum(row[kind]["flop"] / row[kind]["bytes"] <= ridge for row in rows) for kind in KINDS]
    lines.append(f"{tokens:,} tokens, batch {batch}: traffic binds {waits[0]} of 8 prefills and {waits[1]} of 8 steps")
    return lines


def states():
    return product(range(3), range(len(TOKENS)), range(len(BATCHES)), range(len(NAMES)))


def test_every_state_says_what_the_formulas_give():
    data = example().data
    for machine, tokens, batch, mechanism in states():
        expected = said(machine, TOKENS[tokens], BATCHES[batch], NAMES[mechanism])
        assert describe(data, machine, tokens, batch, mechanism) == expected


def test_marks_stand_on_the_ceilings_and_measured_ones_below():
    """Under the slanted ceiling height rises with FLOP a byte; under the flat one it is the same for all."""
    for record in example().data["machines"]:
        calls = [call for by_batch in record["calls"] for pairs in by_batch for pair in pairs for call in pair]
        flat = {call[1] for call in calls if call[5]}
        assert len(flat) <= 1
        slanted = sorted({(call[0], call[1]) for call in calls if not call[5]})
        rises = [(y1 - y0) / (x0 - x1) for (x0, y0), (x1, y1) in pairwise(slanted) if x1 - x0 > 5]
        assert rises and max(rises) - min(rises) < 0.1
        assert all(call[8] > call[1] for call in calls if len(call) > 7)
    calls = example().data["machines"][0]["calls"][0][0]
    falls = {round(call[8] - call[1], 1) for pair in calls for call in pair}  # half the speed each
    assert max(falls) - min(falls) <= 0.2


def test_only_the_measured_machine_has_measured_points():
    data = example().data
    lengths = [{len(c) for b in record["calls"] for ps in b for p in ps for c in p} for record in data["machines"]]
    assert lengths == [{7, 9}, {7}, {7}]


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0321, "32.1 m"),
        (1, "1.00 "),
        (999.4, "999 "),
        (999.6, "1.00 k"),
        (1.306e-6, "1.31 µ"),
        (68_727_000_000, "68.7 G"),
    ],
)
def test_three_figures_and_a_prefix(value, text):
    assert si(value, "s") == f"{text}s"


@pytest.mark.parametrize(
    "value, text", [(0.5, "0.500"), (9.996, "10.0"), (99.96, "100"), (1881.2, "1,881"), (4, "4.00")]
)
def test_three_figures(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"start": START | {"tokens": 65}}, r"tokens=65 is none of \[64, 1024\]"),
        ({"start": START | {"batch": 2}}, "batch=2 is none of"),
        ({"start": START | {"mechanism": "mha"}}, "mechanism='mha' is none of"),
        ({"start": START | {"machine": 3}}, "machine=3, but there are 3"),
        ({"title": ""}, "title=''"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        example(**changes)


def test_a_grid_with_a_hole_is_named():
    with pytest.raises(ValueError, match="the grid lacks "):
        show.roofline(GRID[1:], measured(), start=START)


def test_a_measured_gpu_has_16_bit_numbers():
    environment = {"device": "cuda (NVIDIA H200)", "threads": 1}
    output = show.roofline(
        GRID, measured(environment=environment, settings={"dtype": "bfloat16"}), machines={}, start=START
    )
    (record,) = output.data["machines"]
    assert record["name"] == "cuda (NVIDIA H200), as measured"
    row = next(row for row in GRID if (row["mechanism"], row["number_bytes"]) == ("gqa", 2))
    assert record["calls"][0][0][NAMES.index("gqa")][1][3] == si(row["step"]["bytes"], "B")


def test_the_committed_measurements_go_with_the_formulas():
    """The file's FLOP and bytes are those of today's formulas, and its grid is that of the piece."""
    result = load_result("roofline")
    settings = result["settings"]
    sizes = {"d_model": settings["d_model"], "n_heads": settings["heads"], "budget": settings["budget"]}
    found = {
        (row["mechanism"], row["tokens"], row["batch"]): row for row in costs.grid(**sizes) if row["number_bytes"] == 4
    }
    for row in [{"batch": 1} | row for row in result["rows"]] + result["batched"]:
        today = found[row["mechanism"], row["tokens"], row["batch"]]
        for kind in KINDS:
            assert {name: row[kind][name] for name in ("flop", "bytes")} == today[kind]
    output = show.roofline(costs.grid(), result)
    assert len(output.html) < 80_000 and output.html == show.roofline(costs.grid(), result).html


READ = """(root) => ({
  said: [...root.querySelectorAll(".ac-live p, .ac-live li")].map(node => node.textContent),
  marks: [...root.querySelectorAll(".ac-prefill, .ac-step")].map(node => node.getAttribute("d")),
  roofs: [...root.querySelectorAll(".ac-roof")].map(node => node.classList.contains("ac-here")),
})"""
SWEEP = f"""(root) => {{
  const read = {READ};
  const [machine, batch] = ["Machine", "Batch"].map(name =>
    [...root.querySelectorAll("fieldset")].find(node => node.textContent.startsWith(name)).querySelectorAll("input"));
  const slider = root.querySelector("input[type=range]");
  const box = root.querySelector("select");
  const seen = [];
  for (const input of machine) {{
    input.click();
    for (let t = 0; t <= +slider.max; t++) {{
      slider.value = t;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
      for (const other of batch) {{
        other.click();
        for (let m = 0; m < box.length; m++) {{
          box.selectedIndex = m;
          box.dispatchEvent(new Event("change", {{ bubbles: true }}));
          seen.push(read(root));
        }}
      }}
    }}
  }}
  return seen;
}}"""


def numbers(path: str) -> list[float]:
    """The numbers of a path, so that 12 and 12.0 are the same."""
    cleaned = "".join(c if c in "0123456789.-" else " " for c in path.replace("-", " -"))
    return [float(part) for part in cleaned.split()]


@pytest.mark.browser
def test_every_number_and_every_mark_in_every_state_is_pythons(open_page):
    output = example()
    pages = iter(open_page(output.html).locator(".ac-roofline").evaluate(SWEEP))
    for machine, tokens, batch, mechanism in states():
        page = next(pages)
        assert page["said"] == describe(output.data, machine, tokens, batch, mechanism)
        for drawn, expected in zip(page["marks"], paths(output.data, machine, tokens, batch, mechanism), strict=True):
            assert numbers(drawn) == pytest.approx(numbers(expected), abs=1e-3)
        assert page["roofs"] == [i == machine for i in range(3)]
    assert next(pages, None) is None


@pytest.mark.browser
def test_the_script_starts_where_python_drew(open_page):
    live, still = (open_page(example().html, java_script_enabled=on).locator(".ac-roofline") for on in (True, False))
    for selector in (".ac-live p", ".ac-live li"):
        assert live.locator(selector).all_text_contents() == still.locator(selector).all_text_contents()
    for part in PARTS:
        for kind in KINDS:
            one, two = (root.locator(f".ac-{kind}.ac-{part}").get_attribute("d") for root in (live, still))
            assert numbers(one) == pytest.approx(numbers(two), abs=1e-3) and (one == "") == (two == "")


@pytest.mark.browser
def test_keyboard_alone(open_page):
    page = open_page(example().html)
    lines = page.locator(".ac-live p, .ac-live li")
    assert lines.all_text_contents() == said(0, 64, 1, "gqa")
    page.keyboard.press("Tab")
    page.keyboard.press("End")  # of the mechanisms
    assert lines.all_text_contents() == said(0, 64, 1, NAMES[-1])
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert lines.all_text_contents() == said(0, 1024, 1, NAMES[-1])
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert lines.all_text_contents() == said(0, 1024, 8, NAMES[-1])
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert lines.all_text_contents() == said(2, 1024, 8, NAMES[-1])


@pytest.mark.browser
def test_without_scripts_all_is_there(open_page):
    output = example(caption="Notice <this>.")
    page = open_page(output.html, java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-roofs").is_visible() and page.locator(".ac-controls").inner_text() == ""
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for part in (*said(0, 64, 1, "gqa"), "sliding_window", "H200", "Notice <this>."):
        assert part in text, part
    assert page.locator("tbody tr").count() == 2 * len(NAMES)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    page = open_page(example().html + example(title="Another").html, f' data-theme="{theme}"')
    page.locator("details").evaluate_all("nodes => nodes.forEach(node => (node.open = true))")
    assert_accessible_and_fits(page, "input, select, summary", widths=(900, 390, 320))


def test_marks_are_squares_and_circles():
    assert mark(0, 10, 20, 2) == "M8 18h4v4h-4z" and "a2 2 0" in mark(1, 10, 20, 2)
