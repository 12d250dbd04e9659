"""Take pictures of built pages, to look at: light and dark, wide and 390 px, in pieces a viewer can show.

python -m scripts.look notebooks/00_start [PAGE …] [--out FOLDER] [--site FOLDER]   (after make book)
"""

import argparse
import sys
import tempfile
from pathlib import Path

from scripts import chromium

ROOT = Path(__file__).resolve().parent.parent
PIECE, OVERLAP = 1600, 80  # pixels of height in one picture, and of it what the picture before has too
VIEWS = {"light": ("light", 1280), "dark": ("dark", 1280), "narrow": ("light", 390), "narrow-dark": ("dark", 390)}


def main(argv: list[str] | None = None) -> int:
    """Write the pictures and print their paths; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", metavar="PAGE", help="such as notebooks/00_start")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: a new one)")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html", help="the built book")
    options = parser.parse_args(argv)
    out = options.out or Path(tempfile.mkdtemp(prefix="attncourse-look-"))
    out.mkdir(parents=True, exist_ok=True)
    with chromium.started() as browser:
        for name in options.pages:
            path = (options.site / name).with_suffix(".html")
            if not path.exists():
                sys.exit(f"{path} does not exist: run `make book`")
            for view, (scheme, width) in VIEWS.items():
                page = browser.new_page(
                    viewport={"width": width, "height": PIECE}, color_scheme=scheme, reduced_motion="reduce"
                )
                page.goto(path.resolve().as_uri(), wait_until="load")
                height = page.evaluate("() => document.documentElement.scrollHeight")
                for i, top in enumerate(range(0, height, PIECE - OVERLAP)):
                    page.evaluate("(top) => window.scrollTo({top, behavior: 'instant'})", top)
                    picture = out / f"{path.parent.name}-{path.stem}-{view}-{i:02}.png"
                    page.screenshot(path=picture)
                    print(picture)
                page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
