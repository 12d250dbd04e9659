"""The command line: `attncourse grade NOTEBOOK…`, `attncourse kv MODEL…`."""

import argparse
import json
import os
import sys
from pathlib import Path

from attncourse import __version__

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}  # of a cached number, scales left out


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 something could not be done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="attncourse", description="An executable course on attention.")
    parser.add_argument("--version", action="version", version=f"attncourse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    grade = commands.add_parser(
        "grade",
        help="grade exercise notebooks",
        description="Grade exercise notebooks: each runs in a jail, and its answers are judged as `check` does.",
    )
    grade.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="an .ipynb file")
    grade.add_argument("--out", type=Path, metavar="FILE", help="where to write the results (default: grades.json)")
    grade.add_argument(
        "--isolation", choices=("A", "C"), default="A", help="A: jailed (default); C: not isolated, own work only"
    )
    grade.add_argument("--seed", type=int, default=0, help="of the inputs; 0, the default, gives those of `check`")
    grade.epilog = "Exit status: 0 all graded, 1 a file could not be graded, 2 wrong usage."
    kv = commands.add_parser(
        "kv",
        help="how much memory a model's cache takes",
        description="Bytes of the cache of keys and values of published models, from their configurations.",
    )
    kv.add_argument("models", nargs="*", metavar="MODEL", help="a name, in upper or lower case; none lists them all")
    kv.add_argument(
        "--tokens",
        type=_count,
        default=131072,
        metavar="N",
        help="tokens a sequence, of named models (default: %(default)s)",
    )
    kv.add_argument("--dtype", choices=BITS, default="bf16", help="of a number, without scales (default: %(default)s)")
    kv.add_argument(
        "--batch", type=_count, default=1, metavar="N", help="sequences at once, of named models (default: %(default)s)"
    )
    kv.epilog = (
        "Example: attncourse kv DeepSeek-V3 Gemma-3-27b-it --tokens 32768 --dtype fp8. "
        "Exit status: 0 done, 2 wrong usage or an unknown model."
    )
    options = parser.parse_args(argv)
    if options.command == "kv":
        return _kv(options.models, options.tokens, options.dtype, options.batch)
    try:
        return _grade(options.notebooks, options.out or Path("grades.json"), options.isolation, options.seed)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _count(text: str) -> int:
    """A whole number, 1 or more, as argparse wants it read."""
    try:
        count = int(text.replace(",", ""))
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return count


def _kv(names: list[str], tokens: int, dtype: str, batch: int) -> int:
    from attncourse import models

    bits = BITS[dtype]
    try:
        records = [models.find_model(name) for name in names or models.load_models()]
    except ValueError as error:
        print(f"attncourse kv: {error}. `attncourse kv` lists them all.", file=sys.stderr)
        return 2
    if not names:
        header = ["model", "made by", "layers", "bytes a token", "evidence", "attention"]
        rows = [
            [
                r["name"],
                r["maker"],
                str(r["n_layers"]),
                f"{models.bytes_per_token(r, bits):,}",
                r["evidence"],
                models.kind(r),
            ]
            for r in records
        ]
        print(
            f"{_aligned([header, *rows], right=(2, 3))}\n\nBytes a token in {dtype}, as long as every window has room."
        )
        return 0
    rows = []
    for record in records:
        counts = (models.kv_cache_bytes, models.all_global_bytes, models.multi_head_bytes)
        sizes = (f"{batch * count(record, tokens, bits) / 2**30:,.2f}" for count in counts)
        token = f"{models.bytes_per_token(record, bits):,}"
        rows.append([record["name"], str(record["n_layers"]), token, *sizes, models.kind(record)])
    header = ["model", "layers", "bytes a token", "cache", "all global", "full MHA", "attention"]
    sequences = "a sequence" if batch == 1 else f"each of {batch:,} sequences"
    print(f"{tokens:,} tokens in {sequences}, {dtype}; caches in GiB\n")
    print(_aligned([header, *rows], right=(1, 2, 3, 4, 5)))
    print("\nAll global: if every layer kept every token. Full MHA: and each head had its own key and value.\n")
    for record in records:
        print(f"{record['name']}: {record['source']} ({record['source_date']}, evidence: {record['evidence']})")
        if tokens > record.get("max_context", tokens):
            print(f"  made for at most {record['max_context']:,} tokens")
        if "note" in record:
            print(f"  {record['note']}")
    return 0


def _aligned(rows: list[list[str]], right: tuple[int, ...]) -> str:
    """Rows of cells in columns, those of `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row))
        for row in rows
    )
    return "\n".join(map(str.rstrip, lines))


def _grade(paths: list[Path], out: Path, level: str, seed: int) -> int:
    from attncourse.grading import results
    from attncourse.grading.examiner import Exam, Workers, exercises_in, grade
    from attncourse.grading.notebook import NotebookError, code_cells

    read, records, failed = {}, {}, 0

    def write() -> None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):  # now, not after the grading
        print(f"attncourse grade: cannot write {out}; name a file in a folder that exists: --out FILE", file=sys.stderr)
        return 2
    for path in paths:
        try:
            cells = code_cells(path)
            chosen = exercises_in(cells)
            if not chosen:
                raise NotebookError(f"{path.name} has no exercise of this course in it")
            read[path] = (cells, chosen)
        except (NotebookError, OSError) as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            print(f"{path}: {why}", file=sys.stderr)
            records[str(path)], failed = {"score": 0, "tests": [], "output": why}, failed + 1
    exams: dict[tuple[str, ...], Exam] = {}
    given = {name for _, chosen in read.values() for exercise in chosen for name in exercise.given}
    try:
        with Workers(given, level) as workers:
            for path, (cells, chosen) in read.items():
                key = tuple(exercise.id for exercise in chosen)
                if key not in exams:
                    exams[key] = Exam(chosen, seeds=(2 * seed, 2 * seed + 1))
                graded = grade(cells, exams[key], workers)
                records[str(path)] = results.to_json(graded)
                write()
                print(f"{path}\n{results.to_text(graded)}")
    except RuntimeError as error:
        print(f"attncourse grade: {error}", file=sys.stderr)
        return 1
    write()
    print(f"Results of {len(records)} notebook{'s' if len(records) != 1 else ''}: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
