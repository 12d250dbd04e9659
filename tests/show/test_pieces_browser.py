"""The outputs in Chromium: keyboard, Python's numbers, 320 px, no scripts, twice on a page, as notebooks insert it."""

import json
import re

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
import torch

from attncourse import masks, show
from attncourse.show.html import two_decimals

pytestmark = pytest.mark.browser


def weights(T: int, S: int, seed: int) -> torch.Tensor:
    return (3 * torch.randn(T, S, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def example_alignment() -> show.Output:
    short = {"source": ["four", "hundred", "twenty", "one"], "target": ["vier", "hundert", "ein", "und", "zwanzig"]}
    long = {"title": "Long", "source": [f"source{j}" for j in range(24)], "target": [f"word{i}" for i in range(25)]}
    ties = {"title": "Ties", "source": [*"abcdefg", "</script><b>"], "target": ["even", "none"]}
    return show.alignment(
        [
            short | {"weights": weights(5, 4, 0)},
            long | {"weights": weights(25, 24, 1)},
            ties | {"weights": [[0.125] * 8, [0.0] * 8]},
        ]
    )


def example_figure() -> show.Output:
    with show.style():
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3], label="loss")
        ax.legend()
    return show.figure(fig, alt="A line.", caption="It rises.", table={"step": [1, 2, 3], "loss": [1, 2, 3]})


def example_questions(folder, names: str = "ab") -> show.Output:
    options = [
        {"text": "`first`", "feedback": "No, `this` is <wrong>."},
        {"text": "second", "feedback": "Yes.", "correct": True},
    ]
    record = {"questions": [{"id": name, "prompt": f"Prompt {name}?", "options": options} for name in names]}
    (folder / "q.json").write_text(json.dumps(record), encoding="utf-8")
    return show.questions("q", folder=folder)


def everything(folder) -> list[show.Output]:
    predictions = [
        show.predict("How many?", "`128`"),
        show.predict("Which?", "This.", options=["`this`", f"`{'layer.' * 12}`"]),
    ]
    return [
        example_alignment(),
        example_figure(),
        show.source(masks),
        example_questions(folder),
        *predictions,
    ]


def content(*outputs: show.Output) -> str:
    return "".join(output._repr_mimebundle_()["text/html"] for output in outputs)


READ = """(root) => ({
  bars: [...root.querySelectorAll(".ac-bars li")].map(item => [item.querySelector(".ac-word").textContent,
    item.lastChild.textContent, parseFloat(item.querySelector(".ac-bar span").style.height)]),
  status: root.querySelector("[role=status]").textContent,
  marked: [...root.querySelectorAll(".ac-map:not([hidden]) .ac-on .ac-end:not(.ac-arrow)")].map(n => n.textContent),
  cells: [...root.querySelectorAll(".ac-map:not([hidden]) .ac-on :is(.ac-t0, .ac-t1, .ac-t2)")].map(n => n.textContent),
  table: [...root.querySelectorAll("details > .ac-scroll:not([hidden]) tbody tr")].map(
    row => [...row.querySelectorAll("td")].map(n => n.textContent)),
})"""


def test_every_number_is_pythons(open_page):
    output = example_alignment()
    root = open_page(content(output)).locator(".ac-alignment")
    for k, example in enumerate(output.data["examples"]):
        root.locator("select").select_option(index=k)
        root.locator("input").first.focus()
        source, target = example["source"], example["target"]
        for i, (word, row) in enumerate(zip(target, example["weights"], strict=True)):
            page = root.evaluate(READ)
            numbers = [two_decimals(weight) for weight in row]
            assert [bar[:2] for bar in page["bars"]] == [list(pair) for pair in zip(source, numbers, strict=True)]
            assert [bar[2] for bar in page["bars"]] == pytest.approx([100 * weight for weight in row], abs=1e-3)
            assert page["marked"] == [word]
            assert page["table"][i] == numbers and len(page["table"]) == len(target)
            assert page["cells"] == ([n for n in numbers if n != "0.00"] if len(source) <= 10 else [])
            best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:3]
            said = ", ".join(f"{numbers[j]} on «{source[j]}»" for j in best if numbers[j] != "0.00")
            where = f"output word {i + 1} of {len(target)}, «{word}»: "
            assert page["status"] == where + (said or "no weight on any source word")
            root.page.keyboard.press("ArrowRight")


def test_keyboard_alone(open_page):
    page = open_page(content(example_alignment()))
    status = page.locator("[role=status]")
    for keys, expected in (
        (["Tab"], "1 of 5"),
        (["ArrowDown"], None),  # the second example
        (["Tab", "End"], "25 of 25"),
        (["ArrowLeft"], "24 of 25"),
        (["Home"], "1 of 25"),
        (["ArrowRight", "ArrowDown"], "3 of 25"),
    ):
        for key in keys:
            page.keyboard.press(key)
        if expected:
            assert f"output word {expected}" in status.inner_text()
    focused = page.evaluate("getComputedStyle(document.activeElement.nextSibling).outlineStyle")
    assert focused == "solid"
    assert status.get_attribute("aria-live") == "polite"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "ac-scroll"  # the heatmap scrolls by keyboard


def test_a_finger_is_told_nothing_of_keys(open_page):
    legend = [
        open_page(content(example_alignment()), **options).locator("legend").inner_text()
        for options in ({}, {"is_mobile": True, "has_touch": True})
    ]
    assert legend == ["Choose the output word (arrow keys, Home, End)", "Choose the output word"]


def test_a_click_on_the_heatmap_chooses_its_row(open_page):
    page = open_page(content(example_alignment()))
    page.locator(".ac-map:visible .ac-row").nth(3).locator(".ac-frame").click()
    assert "output word 4 of 5" in page.locator("[role=status]").inner_text()


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_overflows_and_targets_are_large(open_page, tmp_path, width):
    page = open_page(content(*everything(tmp_path)), viewport={"width": width, "height": 800})
    page.locator("details").evaluate_all("nodes => nodes.forEach(node => (node.open = true))")
    for k in range(3):
        page.locator("select").select_option(index=k)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.locator(".ac-chips label, .ac-list label, button, select, summary, input[type=text]").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 24


def test_without_scripts_all_is_there(open_page, tmp_path):
    page = open_page(content(*everything(tmp_path)), java_script_enabled=False, viewport={"width": 320, "height": 800})
    assert page.locator(".ac-map:visible svg").count() == 1
    assert page.locator(".ac-map:visible .ac-row").count() == 5
    assert page.locator(".ac-controls").inner_text() == ""
    for summary in page.locator("summary").all():
        summary.click()
    text = page.locator("main").inner_text()
    for part in ("The answer is B.", "No, this is <wrong>.", "128", "It rises.", "word24", "def causal_mask"):
        assert part in text, part
    assert page.locator("input, button, select, fieldset").count() == 0


def test_questions_answer_by_keyboard(open_page, tmp_path):
    page = open_page(content(example_questions(tmp_path)))
    first = page.locator(".ac-question").first
    status = first.locator("[role=status]")
    assert page.locator("legend").first.inner_text() == "Question 1 of 2\nPrompt a?"
    first.locator("button").press("Enter")
    assert status.inner_text() == "Choose an answer first."
    first.locator("input").first.press("Space")
    page.keyboard.press("Enter")
    assert status.inner_text() == "✗ Not this one. No, this is <wrong>."
    first.locator("input").first.press("ArrowDown")
    assert status.inner_text() == ""
    page.keyboard.press("Enter")
    assert status.inner_text() == "✓ Right. Yes."
    assert page.locator("details").count() == 0 and page.locator(".ac-question").nth(1).locator(":checked").count() == 0


def test_predict_wants_a_guess_first(open_page):
    page = open_page(content(show.predict("How `many`?", "`128`, <always>")))
    assert "128" not in page.locator("main").inner_text()
    page.get_by_label("How many?").press("Enter")
    assert page.locator("[role=status]").inner_text() == "Write down your guess first."
    page.get_by_label("How many?").fill("<b>5</b>")
    page.keyboard.press("Enter")
    assert re.sub(r"\s+", " ", page.locator("[role=status]").inner_text()) == "Your guess <b>5</b> Answer 128, <always>"


def test_right_answers_at_the_first_try_are_counted(open_page, tmp_path):
    """Where there are many: a chapter has five."""
    page = open_page(content(example_questions(tmp_path, "abcde")))
    assert page.locator(".ac-questions > [role=status]").count() == 0
    page = open_page(content(example_questions(tmp_path, "abcdef")))
    count = page.locator(".ac-questions > [role=status]")
    for n, form in enumerate(page.locator("form").all()):
        form.get_by_role("button").click()  # nothing is chosen: no try
        for option in ([0, 1], [1, 0], [1], [1], [1], [1])[n]:  # the second is right
            form.get_by_role("radio").nth(option).check()
            form.get_by_role("button").click()
        todo = f", {5 - n} to go" if n < 5 else ""
        assert count.inner_text() == f"{n} of 6 right at the first try{todo}."


@pytest.mark.parametrize("outputs", ["questions", "predict"])
def test_an_answer_below_the_window_comes_into_it(open_page, tmp_path, outputs):
    two = show.predict("Which?", "This.", options=["this", "that"])
    output = example_questions(tmp_path) if outputs == "questions" else two
    page = open_page(f'{content(output)}<div style="height: 2000px">', viewport={"width": 1000, "height": 300})
    page.get_by_role("radio").first.check()
    button = page.get_by_role("button").first
    button.evaluate("node => scrollTo(0, node.getBoundingClientRect().bottom + scrollY - innerHeight)")
    button.press("Enter")
    answer = page.locator("form [role=status]").first.bounding_box()
    assert answer["height"] > 20 and answer["y"] + answer["height"] <= 300


def test_marks_are_seen_in_forced_colours(open_page):
    page = open_page(content(example_alignment()), forced_colors="active")
    assert page.evaluate("matchMedia('(forced-colors: active)').matches")
    for mark in (".ac-bar span", ".ac-chips :checked + span"):
        colour = page.locator(mark).first.evaluate("node => getComputedStyle(node).backgroundColor")
        assert colour not in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"), mark


def test_predict_ends_with_its_button_until_something_is_said(open_page):
    page = open_page(content(show.predict("How many?", "`128`")))
    below = page.locator("form").evaluate(
        "(form) => form.getBoundingClientRect().bottom - form.querySelector('button').getBoundingClientRect().bottom"
    )
    assert below < 4


def test_predict_with_options(open_page):
    page = open_page(content(show.predict("Which?", "This.", options=["`this`", "that"])))
    page.get_by_role("button", name="Reveal").click()
    assert "guess first" in page.locator("[role=status]").inner_text()
    page.get_by_role("radio", name="this").check()
    page.get_by_role("button", name="Reveal").click()
    assert re.sub(r"\s+", " ", page.locator("[role=status]").inner_text()) == "Your guess this Answer This."


def test_two_of_each_on_one_page_do_not_meet(open_page, tmp_path):
    page = open_page(content(*everything(tmp_path), *everything(tmp_path)))
    one, two = page.locator(".ac-alignment").all()
    one.locator("input").first.press("End")
    assert "5 of 5" in one.locator("[role=status]").inner_text()
    assert "1 of 5" in two.locator("[role=status]").inner_text()
    one, two = page.locator(".ac-questions").all()
    one.locator("input").first.check()
    two.locator("input").nth(1).check()
    assert one.locator("input").first.is_checked()


def test_as_jupyterlab_inserts_it(open_page, tmp_path):
    """Markup set as innerHTML, then each script made anew: pieces run, and those already there do not run twice."""
    page = open_page('<div id="a"></div><div id="b"></div>')
    for place in "ab":
        page.evaluate(
            """([place, html]) => {
              const host = document.getElementById(place);
              host.innerHTML = html;
              for (const old of host.querySelectorAll("script")) {
                const script = document.createElement("script");
                for (const {name, value} of old.attributes) script.setAttribute(name, value);
                script.textContent = old.textContent;
                old.replaceWith(script);
              }
            }""",
            [place, content(example_alignment(), example_questions(tmp_path))],
        )
    assert page.locator(".ac-chips").count() == 2 and page.locator("form").count() == 4


@pytest.mark.parametrize(
    "attributes, system, expected",
    [
        ("", "light", "light"),
        ("", "dark", "dark"),
        (' data-theme="dark"', "light", "dark"),
        (' data-theme="light"', "dark", "light"),
        (' theme="dark"', "light", "dark"),
        (' data-content_root="./"', "dark", "light"),
    ],
)
def test_theme_of_the_host(open_page, attributes, system, expected):
    page = open_page(content(show.predict("p", "a")), attributes, color_scheme=system)
    colour = page.locator(".ac-piece").evaluate("node => getComputedStyle(node).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[expected]
