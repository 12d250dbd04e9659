"""Make the tree that a fork publishes, from the built book: `make publish-dry-run REPOSITORY=owner/name`.

_build/publish/site/    the book with the fork's own address in it, and the package in site/wheel/; PDF and slides
                        too, where `make pdf slides` has made them of this very book
_build/publish/colab/   the branch that Colab opens: executed chapters and solutions, fresh exercises
_build/publish/wheel/   the package, for a release

The publishing workflow runs this very script. Without a repository nothing links to Colab, and there is no branch.
"""

import argparse
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from nbformat import NotebookNode

from scripts.build_book import BUILD, DERIVED, ROOT, SITE, files, fingerprint
from scripts.stamp import (
    Address,
    address,
    anchors,
    not_found,
    sitemap,
    stamp_downloads,
    stamp_first,
    stamp_notebook,
    stamp_page,
)
from scripts.wheel import build_wheel

EXECUTED = ("notebooks", "solutions")  # exercises are published as a learner first meets them
DOWNLOADS = {"attncourse.pdf": "the book as one PDF", "slides": "slides of each chapter"}  # of _build
README = """# Notebooks for Colab

Made by the publishing workflow, which replaces this branch each time: change nothing here.
The course is at {site}; its sources are on the other branches of this repository.

In Colab:

| chapter | exercises | solutions |
| --- | --- | --- |
{rows}

Text and figures: CC BY 4.0 (LICENSE-CONTENT). Code: MIT (LICENSE).
"""


def publish(
    to: Address, out: Path, site: Path = SITE, outputs: Path = BUILD / ".jupyter_cache", downloads: Iterable[Path] = ()
) -> Path:
    """Write the tree into `out`; returns the wheel in its site.

    site: the built book; outputs: of its notebooks; downloads: the book's PDF, and its folder of slides.
    Raises ValueError where a page or a link cannot be stamped.
    """
    published, branch, package = out / "site", out / "colab", out / "wheel"
    for folder in (published, branch, package):
        shutil.rmtree(folder, ignore_errors=True)
    # The last two are templates of the theme, which it copies with its styles.
    left_out = (".*", "reports", "webpack-macros.html", "sbt-webpack-macros.html")
    shutil.copytree(site, published, ignore=shutil.ignore_patterns(*left_out))
    with tempfile.TemporaryDirectory() as folder:
        built = build_wheel(Path(folder))
        for place in (package, published / "wheel"):
            place.mkdir()
            wheel = Path(shutil.copy(built, place))
    write_pages(to, published, add_downloads(downloads, published))
    if to.site:
        write_notebooks(to, published, branch if to.repository else None, wheel.name, outputs)
    return wheel


def write_pages(to: Address, site: Path, links: dict[str, str]) -> None:
    """Stamp the pages of a copy of the book, in place, and list them for search engines. links: to downloads."""
    sources = pages(site)
    for page, source in sources.items():
        html = stamp_page((site / page).read_text("utf-8"), page, to, source.suffix == ".ipynb")
        (site / page).write_text(stamp_downloads(html, page, links), "utf-8")
    first = site / "index.html"
    first.write_text(stamp_first(first.read_text("utf-8"), to), "utf-8")
    if to.site:
        (site / "sitemap.xml").write_text(sitemap(sources, to), "utf-8")
        (site / "404.html").write_text(not_found(to), "utf-8")  # by the name that GitHub Pages looks for
        if urlsplit(to.site).path == "/":  # read at a host's root only
            (site / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {to.site}sitemap.xml\n", "utf-8")


def write_notebooks(to: Address, site: Path, branch: Path | None, wheel: str, outputs: Path) -> None:
    """Stamp the notebooks that the site has to download, and write those of the branch, executed."""
    ids, cache, titles = anchors(site), get_cache(outputs), {}
    for name in (source.as_posix() for source in pages(site).values() if source.suffix == ".ipynb"):
        fresh = nbformat.read(ROOT / name, as_version=4)
        titles[name] = fresh.cells[0].source.partition("\n")[0].removeprefix("# ")
        copies = {site / "_sources" / name: fresh}
        if branch:
            copies[branch / name] = executed(fresh, name, cache) if name.startswith(EXECUTED) else fresh
        for path, notebook in copies.items():
            stamp_notebook(notebook, name, wheel, to, ids)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(nbformat.writes(notebook) + "\n", "utf-8")
    if branch:
        branch.mkdir(exist_ok=True)
        (branch / "README.md").write_text(README.format(site=to.site, rows=rows(titles, to)), "utf-8")
        for name in ("LICENSE", "LICENSE-CONTENT"):
            shutil.copy(ROOT / name, branch)


def rows(titles: dict[str, str], to: Address) -> str:
    """The notebooks as rows of a table: a chapter, its exercises and its solutions. titles: by their paths."""
    lines = []
    for name, title in titles.items():
        if name.startswith("notebooks/"):
            texts = {name: f"{Path(name).stem[:2]} {title}"}
            texts |= {name.replace("notebooks", folder): folder for folder in ("exercises", "solutions")}
            cells = [f"[{text}]({to.colab(path)})" if path in titles else "" for path, text in texts.items()]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pages(site: Path) -> dict[str, Path]:
    """The pages of the course and their sources; what has none, such as the search, is no page of it."""
    sources = sorted(path.relative_to(site / "_sources") for path in site.glob("_sources/**/*.*"))
    return {source.with_suffix(".html").as_posix(): source for source in sources}


def made(build: Path, site: Path) -> list[Path]:
    """Which downloads are there and no older than what the book is made from: others are of another book.

    The pages themselves are no measure, since each build writes some of them again.
    """
    sources = [ROOT / source for source in pages(site).values()]
    sources += files(pattern for _, patterns in DERIVED.values() for pattern in patterns)
    newest = max(path.stat().st_mtime for path in sources)
    found = []
    for name in DOWNLOADS:
        parts = list((build / name).glob("*.html")) if name == "slides" else [build / name]
        if parts and all(path.exists() and path.stat().st_mtime >= newest for path in parts):
            found.append(build / name)
    return found


def changed(build: Path, site: Path) -> list[str]:
    """What the book is made from that is not as it was when it was built, by contents: a checkout changes the times."""
    found = [
        name.as_posix()
        for name in pages(site).values()
        if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != (site / "_sources" / name).read_bytes()
    ]
    for name, (_, patterns) in DERIVED.items():
        stamp = build / f".{name.replace(' ', '-')}.sha256"
        if not stamp.is_file() or stamp.read_text() != fingerprint(patterns):
            found.append(f"what the {name} come from")
    return found


def add_downloads(paths: Iterable[Path], site: Path) -> dict[str, str]:
    """Copy them into the site; returns the text of a link to each by its path there."""
    links = {}
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, site / path.name)
            links[f"{path.name}/index.html"] = DOWNLOADS[path.name]
        else:
            shutil.copy(path, site)
            links[path.name] = f"{DOWNLOADS[path.name]} ({path.stat().st_size / 1e6:.1f} MB)"
    return links


def executed(notebook: NotebookNode, name: str, cache: JupyterCacheBase) -> NotebookNode:
    """A copy of the notebook with the outputs that the book shows; ValueError when the book was built from another."""
    try:
        _, merged = cache.merge_match_into_notebook(notebook, nb_meta=())
    except KeyError:
        raise ValueError(f"{name} has changed since the book was built: run `make book`") from None
    for cell, source in zip(merged.cells, notebook.cells, strict=True):
        cell.metadata = source.metadata  # not the times at which it ran
    return merged


def keep_earlier(wheel: Path, earlier: Path) -> None:
    """Put wheels of earlier versions beside this one: copies of notebooks that learners saved point to them."""
    for path in sorted(earlier.glob("*.whl")):
        if path.name != wheel.name:
            shutil.copy(path, wheel.parent)


def check_tag(tag: str) -> None:
    """Raise ValueError when a release's tag is not the package's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"the tag {tag} releases version {version}: change pyproject.toml, or tag it v{version}")


def main(argv: list[str] | None = None) -> int:
    """Make the tree and say what is in it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", default="", metavar="OWNER/NAME", help="the fork on GitHub")
    parser.add_argument("--site", default="", help="where the pages lie, when not where GitHub puts them")
    parser.add_argument("--no-issues", action="store_true", help="leave out the links to report an error")
    parser.add_argument("--earlier", type=Path, metavar="FOLDER", help="wheels of earlier releases, to be kept")
    parser.add_argument("--tag", default="", help="of the release; must say the package's version")
    parser.add_argument("--check", action="store_true", help="look at these options only, and make nothing")
    parser.add_argument("--out", type=Path, default=BUILD / "publish")
    options = parser.parse_args(argv)
    try:
        to = address(options.repository, options.site, not options.no_issues)
        if options.tag:
            check_tag(options.tag)
        if options.earlier and not options.earlier.is_dir():
            raise ValueError(f"there is no folder {options.earlier}, which --earlier names")
        if options.check:
            print(f"This can be published at {to.site or 'any address'}")
            return 0
        if not (SITE / "index.html").exists() or (BUILD / ".unfinished").exists():
            raise ValueError("the book is not built: run `make book`")
        if moved := changed(BUILD, SITE):
            more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
            raise ValueError(f"the book is older than {', '.join(moved[:3])}{more}: run `make book`")
        downloads = made(BUILD, SITE)
        wheel = publish(to, options.out, downloads=downloads)
        if options.earlier:
            keep_earlier(wheel, options.earlier)
    except ValueError as error:
        print(f"Not published: {error}", file=sys.stderr)
        return 1
    for folder in sorted(path for path in options.out.iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        print(f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
    left_out = [
        f"{text} ({'older than the sources of the book' if (BUILD / name).exists() else 'not made yet'})"
        for name, text in DOWNLOADS.items()
        if BUILD / name not in downloads
    ]
    if left_out:
        print(f"Without {' and '.join(left_out)}: run `make pdf slides` first, and they are part of the site.")
    print(f"site:  {to.site or 'not known: no notebook says where to get the package'}")
    print(f"colab: {to.colab('notebooks/00_start.ipynb') if to.repository else 'no links'}")
    print(f"wheel: {to.wheel(wheel.name) or wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
