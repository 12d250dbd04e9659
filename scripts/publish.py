"""Make the tree that a fork publishes, from the built book: `make publish-dry-run REPOSITORY=owner/name`.

_build/publish/site/    the book with the fork's own address in it, and the package in site/wheel/
_build/publish/colab/   the branch that Colab opens: executed chapters and solutions, fresh exercises
_build/publish/wheel/   the package, for a release

The publishing workflow runs this very script. Without a repository nothing links to Colab, and there is no branch.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from nbformat import NotebookNode

from scripts.build_book import BUILD, ROOT, SITE
from scripts.stamp import Address, address, anchors, stamp_notebook, stamp_page
from scripts.wheel import build_wheel

EXECUTED = ("notebooks", "solutions")  # exercises are published as a learner first meets them
README = """# Notebooks for Colab

Made by the publishing workflow, which replaces this branch each time: change nothing here.
The course is at {site}; its sources are on the other branches of this repository.

Text and figures: CC BY 4.0 (LICENSE-CONTENT). Code: MIT (LICENSE).
"""


def publish(to: Address, out: Path, site: Path = SITE, outputs: Path = BUILD / ".jupyter_cache") -> Path:
    """Write the tree into `out`; returns the wheel in its site. site: the built book; outputs: of its notebooks.

    Raises ValueError where a page or a link cannot be stamped.
    """
    published, branch, package = out / "site", out / "colab", out / "wheel"
    for folder in (published, branch, package):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(site, published, ignore=shutil.ignore_patterns(".*", "reports"))
    with tempfile.TemporaryDirectory() as folder:
        made = build_wheel(Path(folder))
        for place in (package, published / "wheel"):
            place.mkdir()
            wheel = Path(shutil.copy(made, place))
    sources = {path.relative_to(site / "_sources") for path in site.glob("_sources/**/*.*")}
    notebooks = sorted(path.as_posix() for path in sources if path.suffix == ".ipynb")
    for source in sorted(sources):  # what has none, such as the search, is no page of the course
        page = source.with_suffix(".html").as_posix()
        path = published / page
        path.write_text(stamp_page(path.read_text("utf-8"), page, to, source.suffix == ".ipynb"), "utf-8")
    ids = anchors(published)
    cache = get_cache(outputs)
    for name in notebooks if to.site else ():
        fresh = nbformat.read(ROOT / name, as_version=4)
        copies = {published / "_sources" / name: fresh}
        if to.repository:
            copies[branch / name] = executed(fresh, name, cache) if name.startswith(EXECUTED) else fresh
        for path, notebook in copies.items():
            stamp_notebook(notebook, name, wheel.name, to, ids)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(nbformat.writes(notebook) + "\n", "utf-8")
    if to.repository:
        branch.mkdir(exist_ok=True)
        (branch / "README.md").write_text(README.format(site=to.site), "utf-8")
        for name in ("LICENSE", "LICENSE-CONTENT"):
            shutil.copy(ROOT / name, branch)
    return wheel


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


def check_tag(tag: str, wheel: Path) -> None:
    """Raise ValueError when a release's tag is not the version that its wheel says."""
    version = wheel.name.split("-")[1]
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
    parser.add_argument("--out", type=Path, default=BUILD / "publish")
    options = parser.parse_args(argv)
    try:
        to = address(options.repository, options.site, not options.no_issues)
        if not (SITE / "index.html").exists() or (BUILD / ".unfinished").exists():
            raise ValueError("the book is not built: run `make book`")
        wheel = publish(to, options.out)
        if options.earlier:
            keep_earlier(wheel, options.earlier)
        if options.tag:
            check_tag(options.tag, wheel)
    except ValueError as error:
        print(f"Not published: {error}", file=sys.stderr)
        return 1
    for folder in sorted(path for path in options.out.iterdir() if path.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    print(f"site:  {to.site or 'not known: no notebook says where to get the package'}")
    print(f"colab: {to.colab('notebooks/00_start.ipynb') if to.repository else 'no links'}")
    print(f"wheel: {to.wheel(wheel.name) or wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
