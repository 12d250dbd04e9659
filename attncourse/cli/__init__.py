"""The command line: `attncourse list`, `compare`, `kv`, `check`, `assign` and `grade`."""

import argparse
import os
import sys

from attncourse import __version__
from attncourse.cli import assign, compare, grading, kv, listing

COMMANDS = (listing, compare, kv, assign, grading)  # each adds its parsers, which know what to run


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 something could not be done, 2 wrong usage, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="attncourse",
        description="An executable course on attention.",
        epilog="`attncourse COMMAND --help` has the options, an example and the exit status of each.",
    )
    parser.add_argument("--version", action="version", version=f"attncourse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_to(commands)
    options = parser.parse_args(argv)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `attncourse list | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
