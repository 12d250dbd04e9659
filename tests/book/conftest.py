"""The built book and a server for it."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"


def built_pages() -> list[str]:
    """Every page of the built book, as a path below the site. The first, index.html, only leads to another."""
    pages = (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    found = sorted(page for page in pages if not page.startswith("_") and page != "index.html")
    return found or ["(the book is not built)"]  # fails in `site`: no page at all must not pass in silence


def pytest_generate_tests(metafunc):
    """A page's tests go to one process, which loads it once."""
    if "page" in metafunc.fixturenames:
        pages = [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in built_pages()]
        metafunc.parametrize("page", pages)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").exists():
        pytest.fail("the book is not built: run `make book`")
    return SITE


@pytest.fixture(scope="session")
def address(site):
    """The address of a server of the built book, on this machine only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
