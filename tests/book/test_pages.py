"""Every page of the built book, in a browser: offline, without errors, accessible, and fit for a phone.

A page is loaded once with scripts and once without; the tests then look at what was seen.
"""

import gzip
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from matplotlib.image import imread

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
AXE_OPTIONS = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "rules": {"region": {"enabled": True}, "target-size": {"enabled": True}},
    "resultTypes": ["violations"],
}
MAX_WEIGHT = 500_000
FORMULAS = """
() => [...document.querySelectorAll("article .math")]
    .filter((formula) => !formula.closest("details:not([open])"))
    .map((formula) => {
        const typeset = formula.querySelectorAll(".katex-html");
        const box = typeset.length ? typeset[0].getBoundingClientRect() : {width: 0, height: 0};
        return {text: formula.textContent.slice(0, 80), typeset: typeset.length, width: box.width, height: box.height};
    })
"""
KINDS = ("book/intro", "notebooks/01_bahdanau", "exercises/01_bahdanau", "book/checks", "book/claims", "search")
TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
FOCUS = """() => {
    // What the ring may be drawn on: the element, what it is in or before, what is in it.
    const near = (e) => [
        e, e.parentElement, e.closest("li"), e.closest(".sd-card"), e.firstElementChild, e.nextElementSibling,
    ];
    const drawn = ["outlineStyle", "boxShadow", "borderColor", "backgroundColor", "textDecorationLine", "stroke"];
    const look = (e) => near(e).map((node) => {
        const style = node && node.getBoundingClientRect().height > 2 && getComputedStyle(node); // seen
        return style && drawn.map((name) => style[name]).join();
    });
    const still = document.createElement("style");
    still.textContent = "* { transition: none !important; scroll-behavior: auto !important; }";
    document.head.append(still);
    const before = new Map([...document.querySelectorAll("*")].filter((e) => e.tabIndex >= 0).map((e) => [e, look(e)]));
    window.focusFaults = () => {
        const e = document.activeElement, was = before.get(e), is = look(e), faults = [];
        if (e === document.body) return null;
        if (was && is.every((style, i) => style === was[i])) faults.push("looks as before");
        const boxes = [...e.getClientRects()].filter(({ width, height }) => width && height);
        const seen = boxes.map((box) => {
            const [top, bottom] = [Math.max(0, box.top), Math.min(innerHeight, box.bottom)];
            return document.elementFromPoint(box.left + box.width / 2, (top + bottom) / 2);
        });
        const parts = [e, ...(e.labels || [])];
        const own = (top) => top && (parts.some((part) => part.contains(top)) || top.contains(e));
        if (boxes.length && !seen.some(own)) faults.push("covered");
        return faults.map((fault) => `${fault}: ${e.outerHTML.slice(0, 120)}`);
    };
}"""

pytestmark = pytest.mark.browser  # all of it: what needs no browser still needs the built book


@dataclass
class Visit:
    """What one page did."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)
    weight: int = 0
    theme: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def visit(browser, address):
    """visit(page): load it once in light and in dark, wide and narrow, and remember what happened."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    axe = AXE.read_text()
    sheet = context.new_page()

    def run_axe():
        sheet.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        if not sheet.evaluate("() => 'axe' in window"):
            sheet.evaluate(axe)
        result = sheet.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS)
        return [
            f"{rule['id']}: {' '.join(map(str, node['target']))} {node['failureSummary']} {node['html'][:200]}"
            for rule in result["violations"]
            for node in rule["nodes"]
        ]

    @cache
    def load(page):
        seen = Visit()
        listeners = {
            "request": lambda request: seen.requests.append(request.url),
            "pageerror": lambda error: seen.errors.append(str(error)),
            "console": lambda message: message.type == "error" and seen.errors.append(message.text),
            "requestfailed": lambda request: seen.errors.append(f"{request.url}: {request.failure}"),
        }
        for event, listener in listeners.items():
            sheet.on(event, listener)
        sheet.set_viewport_size({"width": 1280, "height": 900})
        sheet.emulate_media(color_scheme="light")
        sheet.goto(f"{address}/{page}", wait_until="load")
        for theme in ("light", "dark"):
            sheet.emulate_media(color_scheme=theme)
            seen.violations[theme] = run_axe()
            seen.theme[theme] = sheet.evaluate("() => document.documentElement.dataset.theme")
        for width in (390, 320):
            sheet.set_viewport_size({"width": width, "height": 800})
            seen.widths[width] = sheet.evaluate("() => document.documentElement.scrollWidth")
        seen.violations["dark, 320 px"] = run_axe()
        for event, listener in listeners.items():
            sheet.remove_listener(event, listener)
        seen.weight = weight(page, seen.requests, address)
        return seen

    yield load
    context.close()


def weight(page, requests, address):
    """Bytes that a browser fetches for a page when the server compresses, figures left out."""
    total = 0
    for url in set(requests):
        path = SITE / unquote(urlsplit(url).path).lstrip("/")
        if not url.startswith(address) or not path.is_file() or path.suffix in {".png", ".svg", ".jpg"}:
            continue
        content = path.read_bytes()
        if path.suffix == ".html":
            content = re.sub(rb"<svg.*?</svg>", b"", content, flags=re.DOTALL)
        total += len(content) if path.suffix == ".woff2" else len(gzip.compress(content))
    return total


@cache
def soup(page):
    return BeautifulSoup((SITE / page).read_text(), "html.parser")


def test_the_book_is_built(site):
    assert (site / "book" / "intro.html").exists()


def test_the_first_page_leads_to_the_landing_page(site):
    html = BeautifulSoup((site / "index.html").read_text(), "html.parser")
    assert html.html["lang"] == "en"
    assert html.title.text
    assert html.find("a")["href"] == "book/intro.html"
    said = {tag["property"]: tag["content"] for tag in html.find_all("meta", property=re.compile("^og:"))}
    landing = soup("book/intro.html").find("meta", attrs={"name": "description"})
    assert said["og:description"] == html.find("meta", attrs={"name": "description"})["content"] == landing["content"]
    assert (site / said["og:image"]).exists()


def test_axe_is_at_work(browser):
    """A picture without alternative, and grey text on grey: axe must object, or its silence means nothing."""
    sheet = browser.new_page()
    sheet.set_content(
        "<html lang=en><title>t</title><main><img src=data:,><p style='color:#999;background:#888'>Some text."
    )
    sheet.evaluate(AXE.read_text())
    found = sheet.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS)["violations"]
    sheet.close()
    assert {"image-alt", "color-contrast"} <= {rule["id"] for rule in found}


def test_asks_no_other_host(visit, address, page):
    foreign = [url for url in visit(page).requests if not url.startswith((address, "data:", "blob:"))]
    assert not foreign


def test_no_page_errors(visit, page):
    assert not visit(page).errors


@pytest.mark.parametrize("mode", ["light", "dark", "dark, 320 px"])
def test_axe_finds_nothing(visit, page, mode):
    seen = visit(page)
    assert not seen.violations[mode], "\n".join(seen.violations[mode])


def test_follows_the_colour_scheme(visit, page):
    if soup(page).find("article"):
        assert visit(page).theme == {"light": "light", "dark": "dark"}


@pytest.mark.parametrize("width", [390, 320])
def test_no_sideways_scrolling(visit, page, width):
    assert visit(page).widths[width] <= width


@pytest.fixture
def keyboard(browser, address):
    """keyboard(page): a sheet with that page, for who has no mouse."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")

    def load(page):
        sheet = context.new_page()
        sheet.goto(f"{address}/{page}.html")
        sheet.evaluate(TWO_FRAMES)
        return sheet

    yield load
    context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_focus_is_seen_wherever_tab_goes(keyboard, kind):
    sheet = keyboard(kind)
    sheet.evaluate(FOCUS)
    reached, faults = 0, []
    for _ in range(1000):
        sheet.keyboard.press("Tab")
        if (found := sheet.evaluate("focusFaults()")) is None:
            break
        reached += 1
        faults += found
    assert reached > 30 and not faults, "\n".join(faults)


def test_boxes_of_show_are_stops_while_they_scroll(keyboard):
    sheet = keyboard("notebooks/01_bahdanau")
    sheet.locator("article details").evaluate_all("nodes => nodes.forEach((node) => (node.open = true))")
    seen = """nodes => nodes.filter((box) => box.checkVisibility())
        .map((box) => [box.scrollWidth > box.clientWidth, box.tabIndex == 0])"""
    for width in (1280, 320):
        sheet.set_viewport_size({"width": width, "height": 800})
        sheet.evaluate(TWO_FRAMES)
        boxes = sheet.locator("article .ac-scroll").evaluate_all(seen)
        assert {(True, True), (False, False)} == set(map(tuple, boxes))


def test_code_is_copied_and_not_what_it_printed(keyboard):
    sheet = keyboard("notebooks/01_bahdanau")
    assert sheet.locator(".cell_input .copybtn").count() > 3 and sheet.locator(".cell_output .copybtn").count() == 0
    assert keyboard("book/how_to_use").locator(".copybtn").count() > 0


def test_tab_goes_on_from_a_copy_button(keyboard):
    sheet = keyboard("notebooks/01_bahdanau")
    button = sheet.locator(".copybtn:visible").first
    button.press("Enter")
    sheet.wait_for_timeout(100)
    sheet.keyboard.press("Tab")
    after = """button => document.activeElement != document.body
        && button.compareDocumentPosition(document.activeElement) == Node.DOCUMENT_POSITION_FOLLOWING
        && document.querySelector("article").contains(document.activeElement)"""
    assert button.evaluate(after)


def test_is_light(visit, page, record_property):
    record_property("weight", {page: visit(page).weight})
    assert visit(page).weight <= MAX_WEIGHT


def test_the_icons_are_drawn(site, browser, address):
    """The font is cut down to what pages name: an icon that it has not would be an empty box."""
    font = TTFont(site / "_static" / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.woff2")
    sheet = browser.new_page()
    sheet.goto(f"{address}/notebooks/03_self_attention.html")
    drawn = sheet.evaluate(
        "() => Array.from(document.querySelectorAll('i.fa-solid, span.fa-solid'),"
        "                 (icon) => getComputedStyle(icon, '::before').content)"
    )
    sheet.close()
    characters = {ord(content.strip('"')) for content in drawn if content != "none"}
    assert len(characters) >= 8
    assert characters <= font.getBestCmap().keys()


@pytest.fixture(scope="module")
def without_scripts(browser):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def test_mathematics_shows_without_scripts(without_scripts, address, page):
    without_scripts.goto(f"{address}/{page}")
    formulas = without_scripts.evaluate(FORMULAS)
    for formula in formulas:
        assert formula["typeset"] == 1 and formula["width"] > 0 and formula["height"] > 0, formula
    fonts = without_scripts.evaluate("[...document.fonts].filter((f) => f.status == 'loaded').map((f) => f.family)")
    assert not formulas or any("KaTeX" in family for family in fonts)


def test_loads_no_script_for_mathematics(page):
    scripts = " ".join(script.get("src", "") or script.text for script in soup(page).find_all("script"))
    assert "mathjax" not in scripts.lower() and "katex" not in scripts.lower()
    assert not soup(page).select(".katex-error")


def test_links_resolve(page):
    broken = []
    for link in soup(page).select("a[href], link[href], img[src], script[src]"):
        target = link.get("href") or link.get("src")
        if urlsplit(target).scheme:
            continue
        path, fragment = urldefrag(urljoin(f"/{page}", target))
        path = unquote(urlsplit(path).path).lstrip("/")
        there = (SITE / path).is_file()
        if there and fragment and path.endswith(".html"):
            there = soup(path).find(id=unquote(fragment))
        if not there:
            broken.append(target)
    assert not broken


def test_figures_have_alternatives(page):
    article, descriptions = soup(page).find("article") or soup(page), []
    for image in article.find_all("img"):
        assert image.get("alt") is not None, image
        descriptions += [image["alt"]] if soup(page).find("article") else []  # elsewhere only the logo
    for drawing in article.find_all("svg"):
        if drawing.find_parent(class_="katex") or drawing.get("aria-hidden") == "true":
            continue
        hidden = any(parent.get("aria-hidden") == "true" for parent in drawing.parents)
        named = " ".join(soup(page).find(id=name).text for name in drawing.get("aria-labelledby", "").split())
        named = drawing.get("aria-label") or named or (drawing.find("title") and drawing.find("title").text)
        assert hidden or (drawing.get("role") and named), str(drawing)[:200]
        more = drawing.find("desc")
        descriptions += [] if hidden else [f"{named}. {more.text if more else ''}"]
    for text in descriptions:
        assert not re.search(r"\.(svg|png|jpe?g|gif|webp)\b|\w/\w+/", text), f"a file name is no description: {text}"
        assert len(text.split()) >= 6, f"that says not what it shows: {text!r}"


def test_has_language_title_and_description(page):
    html = soup(page)
    assert html.html.get("lang") == "en"
    assert html.title.text.strip()
    if page != "search.html":
        assert len(html.find("meta", attrs={"name": "description"})["content"]) > 40
        assert len(html.find("article").find_all("h1")) == 1


def test_can_be_shared(page):
    """Open Graph's tags, with a picture that is there; addresses come when a fork publishes."""
    html = soup(page)
    said = {tag["property"]: tag["content"] for tag in html.find_all("meta", property=re.compile("^og:"))}
    assert said["og:title"] and said["og:site_name"] == "attncourse" and len(said["og:image:alt"].split()) > 5
    assert "not set" not in said["og:title"], "Sphinx's word for a project without a name"
    description = html.find("meta", attrs={"name": "description"})
    assert said.get("og:description") == (description and description["content"])
    assert (SITE / page).parent.joinpath(said["og:image"]).resolve() == SITE / "_static" / "card.png"
    assert "og:url" not in said and not html.find("link", rel="canonical")


def test_waits_for_one_stylesheet_and_no_script(page):
    links = [link["href"] for link in soup(page).find_all("link", rel="stylesheet") if "media" not in link.attrs]
    assert len(links) == 1 and "_static/book.css?v=" in links[0]
    scripts = soup(page).find("head").find_all("script", src=True)
    assert scripts and all(script.has_attr("defer") or script.get("type") == "module" for script in scripts)


def test_the_stylesheet_has_the_colours_of_code(site):
    """The theme writes them when the build ends, and so does the one stylesheet: later."""
    sheet = (site / "_static" / "book.css").read_text()
    assert all(f'html[data-theme="{theme}"] .highlight .k' in sheet for theme in ("light", "dark"))


def test_the_picture_to_share_has_its_size(site):
    assert imread(site / "_static" / "card.png").shape[:2] == (630, 1200)
