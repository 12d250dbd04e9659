"""`attncourse list`: the chapters, the mechanisms and the exercises."""

import argparse
import re
from importlib.util import find_spec
from textwrap import wrap

from attncourse.cli.text import aligned, failed, near

WIDTH = 72  # of a mechanism's options
PARTS = ("chapters", "mechanisms", "exercises")
CHAPTERS = {  # short name -> title, and the modules that it is about
    "start": ("Start here", ()),
    "bahdanau": ("Additive attention", ("bahdanau",)),
    "luong": ("Luong's attention", ("luong",)),
    "self_attention": ("Self-attention", ("self_attention",)),
    "cross_attention": ("Cross-attention", ("cross_attention",)),
    "causal": ("Causal attention", ("causal",)),
    "multi_head": ("Multi-head attention", ("multi_head",)),
    "positions": ("Positions", ("positions",)),
    "sliding_window": ("Sliding-window attention", ("sliding_window",)),
    "sparse": ("Sparse attention", ("sparse", "longformer", "bigbird")),
    "linear": ("Linear attention", ("linear", "performer")),
    "kv_cache": ("The key-value cache", ("kv_cache", "quantized_cache")),
    "mqa": ("Multi-query attention", ("mqa",)),
    "gqa": ("Grouped-query attention", ("gqa",)),
    "mla": ("Multi-head latent attention", ("mla",)),
    "execution": ("Execution", ("execution", "paged_cache")),
    "choosing": ("Choosing", ("lab",)),
    "bugs": ("Bug museum", ("lab",)),
}


def add_to(commands: argparse._SubParsersAction) -> None:
    """The parser of `list`."""
    listing = commands.add_parser(
        "list",
        help="the chapters, the mechanisms and the exercises",
        description="What there is: chapters with their modules, mechanisms with their options, exercises.",
    )
    listing.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help=f"{', '.join(PARTS)}, or a chapter (gqa, or 13), whose exercises are listed; all three by default",
    )
    listing.epilog = (
        "Examples: attncourse list mechanisms; attncourse list gqa. Exit status: 0 done, 2 there is no such list."
    )
    listing.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """One of the lists, or all."""
    what, names = (options.what or "").lower(), list(CHAPTERS)
    if what.isdecimal() and int(what) < len(names):
        what = names[int(what)]
    tables = {"chapters": chapters, "mechanisms": mechanisms, "exercises": exercises}
    if what in names:
        print(exercises(what))
    elif what in tables:
        print(tables[what]())
    elif not what:
        print("\n\n".join(f"{name.upper()}\n{tables[name]()}" for name in PARTS))
    else:
        return failed(
            "list",
            f"there is no list {options.what!r}; {near(what, [*PARTS, *names])}, or a number, 0 to {len(names) - 1}",
            2,
        )
    return 0


def chapters() -> str:
    """A line for each chapter: its modules, and what its exercises ask for."""
    rows = [["", "chapter", "title", "modules", "exercises", "points", "minutes"]]
    for number, (name, (title, modules)) in enumerate(CHAPTERS.items()):
        shown = (m if find_spec(f"attncourse.{m}") else f"{m} (planned)" for m in modules)
        tasks = _exercises(name)
        sums = (len(tasks), sum(task.points for task in tasks), sum(task.minutes for task in tasks))
        rows.append([f"{number:02}", name, title, ", ".join(shown) or "–", *map(str, sums)])
    return aligned(rows, (4, 5, 6))


def mechanisms() -> str:
    """A line for each of `MECHANISMS`: what `build` makes of its name, and with which options where none are given."""
    from attncourse.mechanisms import MECHANISMS, build

    defaults = dict(re.findall(r"^\s*\| (\w+) \| (.+?) \|$", build.__doc__ or "", re.MULTILINE))
    rows = [["mechanism", "class", "options not given"]]
    for name, kind in MECHANISMS.items():
        first, *rest = wrap(defaults.get(name, "–"), WIDTH)
        rows += [[name, kind.__name__, first], *(["", "", line] for line in rest)]
    return f"{aligned(rows)}\n\nattncourse.build(name, d_model, n_heads, …) makes a layer; all have {defaults['all']}."


def exercises(chapter: str | None = None) -> str:
    """A line for each exercise, of all chapters or of one."""
    tasks = [task for name in ([chapter] if chapter else CHAPTERS) for task in _exercises(name)]
    if not tasks:
        return f"Chapter {chapter} has no exercises yet."
    rows = [["exercise", "minutes", "points", "level", "title"]]
    rows += [[t.id, str(t.minutes), str(t.points), "●" * t.difficulty, t.title] for t in tasks]
    n, points, minutes = len(tasks), sum(t.points for t in tasks), sum(t.minutes for t in tasks)
    table = aligned(rows, (1, 2))
    return f"{table}\n\n{n} exercises, {points} points, {minutes // 60} h {minutes % 60} min"


def _exercises(chapter: str) -> list:
    """The exercises of a chapter; none where it has no checks yet."""
    from attncourse import checks

    return checks.exercises(chapter) if chapter in checks.CHAPTERS else []
