"""Print the built book as one PDF: `python -m scripts.pdf [PAGE …] [--site FOLDER] [--out FILE]`, after `make book`.

Chromium prints the document of `scripts/one_document.py` twice: the first time to learn on which page each page of the
book begins, the second time with these numbers in the contents.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser
from pypdf import PdfReader

from scripts import chromium
from scripts.one_document import HOME, Page, document

ROOT = Path(__file__).resolve().parent.parent
PLACE = r'data-page="([^"]+)">'  # what stands before a page number


def numbers(pdf: Path, pages: list[Page], html: str) -> dict[str, int]:
    """On which page of the PDF, counted from 1, each page of the book begins, and all else that `html` numbers."""
    reader = PdfReader(pdf)
    found = {key.lstrip("/"): place for key, place in reader.named_destinations.items()}
    missing = [page.path for page in pages if page.anchor not in found]
    if missing:
        raise ValueError(f"{len(missing)} pages of the book are not in {pdf.name}: {', '.join(missing)}")
    wanted = dict.fromkeys([page.anchor for page in pages] + re.findall(PLACE, html))
    return {anchor: reader.get_destination_page_number(found[anchor]) + 1 for anchor in wanted if anchor in found}


def numbered(html: str, begins: dict[str, int]) -> str:
    """The document with page numbers in its contents and links; 0 where none is known yet, which takes as much room."""
    return re.sub(PLACE, lambda m: f"{m[0]}{begins.get(m[1], 0)}", html)


def print_book(site: Path, out: Path, browser: Browser, only: Sequence[str] = ()) -> dict[str, int]:
    """Write the PDF of the book built at `site` to `out`; returns where each page begins. Loads files only.

    Raises ValueError where something asks another host, and where the contents would be wrong.
    """
    html, pages = document(site, only)
    out.parent.mkdir(parents=True, exist_ok=True)
    source, unfinished = out.with_suffix(".html"), out.with_suffix(".unfinished.pdf")
    foreign, begins = [], {}
    sheet = browser.new_page(java_script_enabled=False, color_scheme="light")
    sheet.set_default_timeout(600_000)
    sheet.on("request", lambda request: request.url.startswith(("file:", "data:")) or foreign.append(request.url))
    for final in (False, True):
        source.write_text(numbered(html, begins), encoding="utf-8")
        sheet.goto(source.as_uri(), wait_until="load")
        sheet.pdf(path=unfinished, prefer_css_page_size=True, tagged=final, outline=final, print_background=True)
        before, begins = begins, numbers(unfinished, pages, html)
    sheet.close()
    source.unlink()
    if foreign:
        raise ValueError(f"the book asks other hosts for {', '.join(sorted(set(foreign)))}")
    if before != begins:
        raise ValueError("the page numbers moved between two printings: the contents would be wrong")
    unfinished.replace(out)
    return begins


def main(argv: list[str] | None = None) -> int:
    """Print the book and say where it is; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as notebooks/00_start (default: all)")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html", help="the built book")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "attncourse.pdf", help="the PDF")
    options = parser.parse_args(argv)
    if not (options.site / HOME).exists():
        sys.exit(f"{options.site / HOME} does not exist: run `make book`")
    with chromium.started() as browser:
        print_book(options.site.resolve(), options.out.resolve(), browser, options.pages)
    count, size = len(PdfReader(options.out).pages), options.out.stat().st_size
    print(f"{count} pages, {size / 1e6:.1f} MB: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
