"""The command line: ``python -m dynloader COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import dynloader
from dynloader.bench import command as bench

# Each adds itself to the subparsers, and sets ``run``, which returns the exit status.
COMMANDS = (bench,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments``, by default those of the process, name."""
    parser = argparse.ArgumentParser(
        prog="python -m dynloader",
        description="dynloader, a DataLoader that trains on the samples that matter now.",
        epilog="python -m dynloader COMMAND --help tells more of each command.",
    )
    parser.add_argument("--version", action="version", version=dynloader.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    found = parser.parse_args(arguments)
    return int(found.run(found))


if __name__ == "__main__":
    sys.exit(main())
