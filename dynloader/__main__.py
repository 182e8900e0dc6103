"""The command line: ``python -m dynloader COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import dynloader
from dynloader.cli import _bench, _demo, _info, _report

# Each has an add_to() that registers a subparser, whose ``run`` returns the exit status.
COMMANDS = (_info, _demo, _bench, _report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: command-line arguments; None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dynloader",
        description="dynloader: a DataLoader that trains on the samples that matter now.",
        epilog="New here? Start with info, then demo. More: python -m dynloader COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=dynloader.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    found = parser.parse_args(arguments)
    if not hasattr(found, "run"):
        parser.print_help()
        return 2
    return int(found.run(found))


if __name__ == "__main__":
    sys.exit(main())
