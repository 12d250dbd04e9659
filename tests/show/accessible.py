"""What every interactive piece must be, in a browser: free of what axe finds, and fit for a phone and a finger."""

from pathlib import Path

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
LEAST = 24  # pixels of the smaller side of what is pressed: WCAG 2.2, 2.5.8
SLIDER = 180  # pixels of its length on the narrowest screen, along which a finger finds one place of several
SIDES = "nodes => nodes.map(node => node.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"


def assert_accessible_and_fits(page, pressed, widths=(900, 320)):
    """No violation and no sideways scrolling at any width; `pressed` selects what must be large enough."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for width in widths:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = page.evaluate("() => axe.run('.ac')")
        assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found["violations"]] == []
        assert len(found["passes"]) > 8  # or axe saw nothing
        if width < 500:
            lengths = page.locator("input[type=range]:visible").evaluate_all("nodes => nodes.map((n) => n.clientWidth)")
            assert min(lengths, default=SLIDER) >= SLIDER
    assert min(page.locator(pressed).evaluate_all(SIDES)) >= LEAST
