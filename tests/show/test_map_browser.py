"""The map in Chromium: no text over another as drawn, keyboard, pointer, touch, both themes, no scripts."""

import pytest

from attncourse import show
from attncourse.show.map_words import heading
from tests.show.accessible import assert_accessible_and_fits
from tests.show.test_map import ENTRIES, NAMES, NODES, PROOF, THEOREMS

pytestmark = pytest.mark.browser
FRAGMENT = show.attention_map(PROOF, ENTRIES, link=lambda page, anchor: f"#{page}").html
BOXES = """(svg) => [
  ...svg.querySelectorAll(".ac-node, .ac-theorem:not(.ac-quiet), .ac-region-name"),
].flatMap((part) => {
  const mark = part.querySelector(".ac-card");
  const found = mark ? [mark] : part.tagName === "text" ? [part] : [...part.querySelectorAll("text")];
  return found.map((node) => node.getBBox()).map(({ x, y, width, height }) => [x, y, x + width, y + height]);
})"""


def status(page) -> str:
    return page.locator(".ac-atlas-said").inner_text()


def node(page, name: str):
    return page.locator(f"svg:visible .ac-node[data-node='{order().index(name)}']")


def order() -> list[str]:
    return [node["id"] for node in sorted(NODES, key=lambda node: node["date"])]


@pytest.mark.parametrize(("width", "kind"), [(900, "wide"), (390, "narrow")])
def test_no_text_runs_over_another_as_drawn(open_page, width, kind):
    page = open_page(FRAGMENT, viewport={"width": width, "height": 800})
    svg = page.locator(".ac-atlas > svg:visible")
    assert svg.count() == 1 and f"ac-atlas-{kind}" in svg.get_attribute("class")
    boxes = svg.evaluate(BOXES)
    right, bottom = map(float, svg.get_attribute("viewBox").split()[2:])
    for i, (left, top, end, under) in enumerate(boxes):
        assert left >= 0 and top >= 0 and end <= right and under <= bottom
        for x, y, far, low in boxes[i + 1 :]:
            # The box of a line of text holds the room for its highest and lowest letters.
            apart = min(end, far) - max(left, x) <= 0.5 or min(under, low) - max(top, y) <= 2.5
            assert apart, (kind, boxes[i], (x, y, far, low))


def test_keyboard_alone_goes_along_time_and_across_it(open_page):
    page = open_page(FRAGMENT)
    page.keyboard.press("Tab")
    assert status(page).startswith("Additive attention (2014, alignment)")
    names = order()
    for name in names[1:4]:
        page.keyboard.press("ArrowRight")
        assert status(page).startswith(f"{NAMES[name]['title']} (")
    page.keyboard.press("End")
    assert "Multi-head latent attention (2024, cache)" in status(page)
    page.keyboard.press("ArrowRight")
    own = [theorem for theorem in THEOREMS if "mla" in theorem["of"]]
    for theorem in own:
        page.keyboard.press("ArrowDown")
        assert status(page).startswith(heading(theorem, NAMES)) and theorem["statement"] in status(page)
    page.keyboard.press("ArrowDown")
    assert "Multi-head latent attention (2024, cache)" in status(page)
    page.keyboard.press("ArrowUp")
    assert status(page).startswith(heading(own[-1], NAMES))
    page.keyboard.press("ArrowLeft")  # along the theorem, to its earlier end
    other = min((name for name in own[-1]["of"]), key=names.index)
    assert status(page).startswith(f"{NAMES[other]['title']} (")
    page.keyboard.press("Home")
    assert status(page).startswith("Additive attention")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#notebooks/01_bahdanau"
    assert page.locator("svg:visible a[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    assert status(page).startswith("Choose a mechanism")


def test_on_a_phone_time_runs_down(open_page):
    page = open_page(FRAGMENT, viewport={"width": 390, "height": 800})
    page.keyboard.press("Tab")
    for name in order()[1:]:
        page.keyboard.press("ArrowDown")
        assert status(page).startswith(f"{NAMES[name]['title']} (")
        part, panel = node(page, name).bounding_box(), page.locator(".ac-atlas-said").bounding_box()
        assert part["y"] + 24 <= panel["y"], name  # what has the focus is not under the panel
    page.keyboard.press("ArrowRight")
    assert status(page).startswith(heading(next(t for t in THEOREMS if "mla" in t["of"]), NAMES))


def test_a_node_lights_its_theorems_and_tells_of_them(open_page):
    page = open_page(FRAGMENT)
    node(page, "gqa").hover()
    own = [theorem for theorem in THEOREMS if "gqa" in theorem["of"]]
    lit = page.locator("svg:visible .ac-theorem.ac-lit")
    assert lit.count() == len(own)
    others = {name for theorem in own for name in theorem["of"]}
    assert page.locator("svg:visible .ac-node.ac-lit").count() == len(others)
    for theorem in own:
        assert heading(theorem, NAMES) in status(page)
    assert "Ainslie and others: " in status(page)
    links = page.locator(".ac-atlas-said a").evaluate_all("nodes => nodes.map((a) => [a.text, a.getAttribute('href')])")
    assert ["Chapter 13", "#notebooks/13_gqa"] in links and ["Source", "#book/bibliography"] in links
    page.mouse.move(2, 2)
    assert status(page).startswith("Choose a mechanism") and lit.count() == 0


def test_every_theorem_tells_its_numbers(open_page):
    page = open_page(FRAGMENT)
    said = page.evaluate(
        """() => [...document.querySelectorAll(".ac-atlas-wide a[data-theorem]")].map((part) => {
          part.focus();
          return [+part.dataset.theorem, document.querySelector(".ac-atlas-said").textContent];
        })"""
    )
    assert sorted(i for i, _ in said) == list(range(len(THEOREMS)))
    items = page.locator(".ac-atlas-list > li").evaluate_all("nodes => nodes.map((node) => node.textContent)")
    for i, text in said:
        assert text == items[i] + "Close"


def test_the_keyboard_keeps_its_help_and_its_place(open_page):
    page = open_page(FRAGMENT)
    page.keyboard.press("Tab")
    assert page.get_by_text("Enter opens the chapter").is_visible() and "Enter" not in status(page)
    for name in (r"Luong = additive", "Close"):
        page.get_by_role("button", name=name).press("Enter")
        assert page.evaluate("document.activeElement.className").startswith("ac-live ac-atlas-said")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.matches('.ac-node')")


def test_a_click_or_a_touch_chooses_and_stays(open_page):
    for options in ({}, {"has_touch": True, "viewport": {"width": 390, "height": 800}}):
        page = open_page(FRAGMENT, **options)
        mqa = node(page, "mqa").locator(".ac-name").first
        (mqa.tap if options else mqa.click)()
        assert page.evaluate("location.hash") == "" and status(page).startswith("Multi-query attention (2019")
        page.mouse.move(2, 2)
        assert status(page).startswith("Multi-query attention")
        page.get_by_role("button", name="GQA = MQA: G = 1").click()
        assert "G = 1" in status(page) and "the outputs differ by" in status(page)
        page.get_by_role("button", name="Close").click()
        assert status(page).startswith("Choose a mechanism")


def test_without_scripts_the_map_has_links_and_the_list_has_all(open_page):
    page = open_page(FRAGMENT, java_script_enabled=False, viewport={"width": 320, "height": 800})
    link = node(page, "gqa")
    assert link.get_attribute("href") == "#notebooks/13_gqa"
    assert page.locator(".ac-atlas-said").is_hidden()
    page.locator("summary").click()
    text = page.locator("main").inner_text()
    for theorem in THEOREMS:
        assert theorem["statement"].replace("`", "") in text


def test_a_finger_is_told_nothing_of_keys(open_page):
    assert open_page(FRAGMENT).get_by_text("arrow keys").is_visible()
    phone = open_page(FRAGMENT, viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True)
    assert not phone.get_by_text("arrow keys").is_visible()
    assert status(phone).strip() == "Choose a mechanism or a condition: here you read what is known of it."


def test_nothing_moves_for_who_asked_for_less(open_page):
    page = open_page(FRAGMENT, reduced_motion="reduce")
    assert node(page, "gqa").evaluate("part => getComputedStyle(part).transitionDuration") == "0s"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_it_fits_a_phone(open_page, theme):
    fragment = show.attention_map(PROOF, ENTRIES, open_list=True).html + show.timeline(ENTRIES).html
    page = open_page(fragment, f' data-theme="{theme}"')
    assert_accessible_and_fits(page, "summary, svg:visible .ac-node, .ac-atlas-list a, .ac-timeline-list a")
    page.set_viewport_size({"width": 900, "height": 800})
    node(page, "gqa").click()
    assert_accessible_and_fits(page, ".ac-atlas-said button, .ac-atlas-said a")


def test_twice_on_a_page(open_page):
    page = open_page(FRAGMENT + FRAGMENT)
    page.locator(".ac-attention-map").nth(1).locator("svg:visible .ac-node").first.click()
    first, second = page.locator(".ac-atlas-said").all_inner_texts()
    assert first.startswith("Choose") and second.startswith("Additive attention")
