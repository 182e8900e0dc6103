"""``python -m dynloader report``."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

HELP = "write an HTML page that compares trainings"
DESCRIPTION = """\
Writes an HTML file that opens offline, its figures as PNG, and the samples of each run as CSV.
The page shows accuracy against samples and seconds, the kept fraction and how the selection
changes, scores, overhead, the kept share of each class, and samples worth a look.

RUN is a folder that a training wrote:

    log = loader.log_to("runs/ucb-0", name="UCB")
    for epoch in range(epochs):
        ...                                # train
        log.add(accuracy=accuracy)         # after each epoch
    log.write_images(train_set)            # at the end, if the samples are images

Runs with the same name count as seeds of one method, unless their datasets differ in size. RUN
may also be a folder that contains such folders. Damaged runs are skipped, with a message that
gives the reason.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "report",
        help=HELP,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/report"), help="output folder (default: runs/report)"
    )
    parser.add_argument(
        "--title", default="Training on the samples that matter now", help="title of the page"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report and print its path; return the exit status."""
    try:
        from dynloader.report.page import write_report
    except ImportError as error:
        print(f"the report needs {error.name}: pip install 'dynloader[report]'", file=sys.stderr)
        return 1
    path, errors = None, []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        try:
            path = write_report(options.runs, options.out, title=options.title)
        except (ValueError, OSError) as error:
            errors = [error]
    for each in [*(warning.message for warning in found), *errors]:
        print(f"python -m dynloader report: {' '.join(str(each).split())}", file=sys.stderr)
    if path is None:
        return 2
    print(path)
    return 0
