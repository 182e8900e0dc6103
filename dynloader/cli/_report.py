"""``python -m dynloader report``."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

HELP = "write a page about one or several trainings"
DESCRIPTION = """\
Writes one HTML file that opens offline, its figures as PNG, and the samples of each run as
CSV: accuracy against samples and seconds, what was kept and how much that changed, scores,
overhead, kept of each class, and the samples that are worth a look.

RUN is a folder that a training wrote:

    log = loader.log_to("runs/ucb-0", name="UCB")
    for epoch in range(epochs):
        ...                                # the training
        log.add(accuracy=accuracy)         # after each epoch
    log.write_images(train_set)          # at the end, where the samples are images

Runs of one name are seeds of one method. A folder of such folders is read as all of them.
A damaged run is left out, with a line that tells why.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help=HELP,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/report"), help="default: runs/report"
    )
    parser.add_argument("--title", default="Training on the samples that matter now")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write it, and say where."""
    try:
        from dynloader.report.page import write_report
    except ImportError as error:
        print(f"the report needs {error.name}: pip install 'dynloader[report]'", file=sys.stderr)
        return 1
    path, told = None, []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        try:
            path = write_report(options.runs, options.out, title=options.title)
        except (ValueError, OSError) as error:
            told = [error]
    for each in [*(warning.message for warning in found), *told]:
        print(f"python -m dynloader report: {' '.join(str(each).split())}", file=sys.stderr)
    if path is None:
        return 2
    print(path)
    return 0
