"""`python -m attncourse.lab [NAME …]`: run experiments and write their results into the package's data."""

import argparse
import importlib
from pathlib import Path

EXPERIMENTS = (
    "bahdanau",
    "luong",
    "self_attention",
    "causal",
    "cross_attention",
    "language",
    "multi_head",
    "positions",
    "sliding_window",
    "sparse",
    "linear",
    "kv_cache",
    "mqa",
    "gqa",
    "mla",
    "execution",
    "choosing",
    "choosing_why",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m attncourse.lab", description=__doc__)
    parser.add_argument(
        "experiments", nargs="*", metavar="NAME", help=f"which to run (default all): {', '.join(EXPERIMENTS)}"
    )
    parser.add_argument("--device", default="cpu", help="where to train: cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data" / "lab", help="folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.experiments) - set(EXPERIMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    for name in options.experiments or EXPERIMENTS:
        importlib.import_module(f"attncourse.lab.{name}").run(out=options.out, device=options.device)


if __name__ == "__main__":
    main()
