"""`attncourse compare`: what mechanisms cost on this machine, at one cache budget."""

import argparse
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from attncourse.cli.text import aligned, count, failed, near

FORMATS = (".svg", ".png", ".pdf")
SHORT = {"mha": "multi_head", "swa": "sliding_window"}
LONG = 30  # seconds of measuring from which on the wait is announced
Row = dict[str, Any]  # of `lab.costs.compare`


def add_to(commands: argparse._SubParsersAction) -> None:
    """The parser of `compare`."""
    compare = commands.add_parser(
        "compare",
        help="what mechanisms cost on this machine, at one cache budget",
        description="Whole layers, at one cache budget: the cache, operations and traffic of a prefill and of a "
        "decoding step, the least time that they take on this machine, and the time measured. multi_head is always "
        "shown, as the reference.",
        epilog="Example: attncourse compare gqa mla sliding_window --tokens 8192 --budget 1/8 --out costs.svg. "
        "Exit status: 0 done, 1 it could not be measured or drawn here, 2 wrong usage or a budget that is too small.",
    )
    compare.add_argument("names", nargs="*", metavar="NAME", help="a mechanism (attncourse list mechanisms); none: all")
    sizes = {"tokens": (4096, "in the cache"), "d-model": (1024, "width of the layer"), "heads": (16, "query heads")}
    for name, (default, about) in sizes.items():
        text = f"{about} (default: %(default)s)"
        compare.add_argument(f"--{name}", type=count, default=default, metavar="N", help=text)
    compare.add_argument(
        "--budget",
        type=share,
        default="1/4",
        metavar="SHARE",
        help="of multi-head attention's cache, as 1/4 or 0.25 (default: %(default)s)",
    )
    compare.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    compare.add_argument(
        "--no-measure", action="store_true", help="runs no layer; the rates of this machine are measured all the same"
    )
    compare.add_argument(
        "--out", type=Path, metavar="FILE", help=f"write a figure too, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    )
    compare.set_defaults(run=run)


def share(text: str) -> Fraction:
    """A part of 1, written 1/4 or 0.25, as argparse wants it read."""
    try:
        part = Fraction(text)
    except (ValueError, ZeroDivisionError):
        part = Fraction(0)
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: more than 0 and at most 1, as 1/4 or 0.25")
    return part


def run(options: argparse.Namespace) -> int:
    """The table, and the figure where one is asked for."""
    import torch

    from attncourse.lab import costs
    from attncourse.lab.measure import matmul_dtype
    from attncourse.mechanisms import MECHANISMS

    names = [name.lower().replace("-", "_") for name in options.names]
    names = [SHORT.get(name, name) for name in names]
    for given, name in zip(options.names, names, strict=True):
        if name not in MECHANISMS:
            return failed("compare", f"there is no mechanism {given!r}; {near(name, list(MECHANISMS))}", 2)
    names = ["multi_head", *(name for name in names or MECHANISMS if name != "multi_head")]
    if why := _cannot_write(options.out):
        return failed("compare", why, 2)
    sizes = {"n_tokens": options.tokens, "d_model": options.d_model, "n_heads": options.heads}
    settings = sizes | {"budget": float(options.budget), "device": options.device}
    try:
        draw = _drawer() if options.out else None
        here = costs.machine(options.device)
        rows = costs.compare(names, **settings, here=here, measure=False)  # what does not fit is said at once
        if not options.no_measure:
            _announce(rows)
            rows = costs.compare(names, **settings, here=here)
    except ValueError as error:
        return failed("compare", error, 2)
    except (ImportError, RuntimeError, AssertionError) as error:  # no matplotlib, no such device, no memory
        return failed("compare", (str(error).splitlines() or [type(error).__name__])[0], 1)
    threads = torch.get_num_threads()
    on = f"float32 on {options.device}, {threads} thread{'s' if threads > 1 else ''}"
    if options.device == "cuda":
        dtype = str(matmul_dtype(options.device)).removeprefix("torch.")
        on = f"{dtype} on {torch.cuda.get_device_name(options.device)}"
    about = f"{options.tokens:,} tokens, d_model {options.d_model:,}, {options.heads} heads, {on}"
    budget = f"budget: {options.budget} of multi-head attention's cache"
    print(f"{about}; {budget}")
    print(f"A product of matrices reaches {here['flop_per_s'] / 1e9:,.1f} GFLOP/s here,", end=" ")
    print(f"a copy {here['bytes_per_s'] / 1e9:,.1f} GB/s.\n\n{table(rows)}")
    if draw:
        try:
            draw(rows, f"{about}\n{budget}", options.out)
        except OSError as error:
            return failed("compare", f"cannot write {options.out}: {error.strerror}", 1)
        print(f"\nFigure: {options.out}")
    return 0


def _cannot_write(out: Path | None) -> str | None:
    """Why the figure cannot be written, if it cannot: said before anything is measured."""
    if out is None:
        return None
    if out.suffix.lower() not in FORMATS:
        return f"cannot write {out}; a figure's name ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if out.is_dir() or not out.parent.is_dir():
        return f"cannot write {out}; name a file in a folder that exists"
    return None


def _announce(rows: list[Row]) -> None:
    """Say how long measuring takes at least, where that is long."""
    seconds = sum(6 * row["prefill"]["bound_ms"] + 16 * row["step"]["bound_ms"] for row in rows) / 1e3
    if seconds > LONG:
        wait = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        print(f"Measuring takes {wait} or more; --no-measure gives the formulas at once.", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """What is kept and what was chosen for it; then a table of a prefill's costs, and one of a step's."""
    lines = [["", "cache", "share", ""]]
    for row in rows:
        chosen = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        about = "; ".join(filter(None, (row["note"], chosen)))
        lines.append([row["mechanism"], f"{row['cache_bytes'] / 1e6:,.2f} MB", f"{row['share']:.1%}", about])
    tables = [aligned(lines, (1, 2))]
    for kind, flop, unit in (("prefill", "GFLOP", 1e9), ("step", "MFLOP", 1e6)):
        lines = [[kind, flop, "MB moved", "at least", "for", "measured"]]
        for row in rows:
            cost = row[kind]
            counts = f"{cost['flop'] / unit:,.1f}", f"{cost['bytes'] / 1e6:,.1f}"
            measured = "–" if cost["ms"] is None else duration(cost["ms"])
            lines.append([row["mechanism"], *counts, duration(cost["bound_ms"]), cost["binds"], measured])
        tables.append(aligned(lines, (1, 2, 3, 5)))
    return "\n\n".join(tables)


def duration(ms: float) -> str:
    """Milliseconds, or seconds from ten on."""
    return f"{ms:,.2f} ms" if ms < 1e4 else f"{ms / 1e3:,.1f} s"


def _drawer() -> Callable[[list[Row], str, Path], None]:
    """What draws the figure; ImportError where matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("a figure needs matplotlib (pip install matplotlib); the table does not") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from attncourse.show.figures import PALETTE, style

    def draw(rows: list[Row], title: str, out: Path) -> None:
        """Bars of what was measured, marks where the roofline is: a panel for each kind of call."""
        names, measured = [row["mechanism"] for row in rows], rows[0]["step"]["ms"] is not None
        with style():
            fig, axes = plt.subplots(2, 1, figsize=(6, 2 + 0.5 * len(rows)))
            for ax, kind, colour in zip(axes, ("prefill", "step"), ("query", "key"), strict=True):
                bounds = [row[kind]["bound_ms"] for row in rows]
                times = [row[kind]["ms"] for row in rows] if measured else bounds
                unit, size = ("s", 1e3) if max(times) >= 1e4 else ("ms", 1)
                ax.barh(names, [ms / size for ms in times], color=PALETTE[colour], alpha=1 if measured else 0.4)
                ax.plot([ms / size for ms in bounds], names, linestyle="", marker="|", markersize=14, color="black")
                ax.set(title=kind, xlabel=unit)
                ax.invert_yaxis()
                ax.grid(axis="y", visible=False)
            marks = (
                "bars: measured; lines: the roofline, no less" if measured else "the roofline, no less; not measured"
            )
            fig.suptitle(f"{title}\n{marks}", fontsize=9)
            fig.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None, dpi=150)
        plt.close(fig)

    return draw
