"""Updates the tables of results in README.md and docs/.

    python bench/update_readme.py [README.md ...]

Replaces the text between a line <!-- bench/results/NAME/table.md --> (or a file in
experiments/results) and the next line <!-- end --> with the text of that file. Paths are relative
to the root of the repository.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = re.compile(
    r"^(<!-- ((?:bench|experiments)/results/\S+) -->\n).*?^(<!-- end -->)$",
    re.MULTILINE | re.DOTALL,
)


def updated(text: str, root: Path = ROOT) -> str:
    """Return ``text`` with the tables replaced by those in the files under ``root``."""

    def table(found: re.Match[str]) -> str:
        begin, path, end = found.groups()
        try:
            return begin + (root / path).read_text().strip() + "\n" + end
        except OSError as error:
            raise SystemExit(f"{path}: {error.strerror}") from None

    starts = re.findall(r"^<!-- (?:bench|experiments)/results/\S+ -->$", text, re.MULTILINE)
    result, count = SHOWN.subn(table, text)
    if count != len(starts):
        raise SystemExit(f"each of {starts} must be followed by <!-- end --> before the next")
    return result


def main() -> None:
    """Update the files, and print whether they changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    parser.add_argument("readme", nargs="*", type=Path, default=pages)
    for readme in parser.parse_args().readme:
        before = readme.read_text()
        after = updated(before)
        if after != before:
            readme.write_text(after)
        print(f"{readme}: {'up to date' if after == before else 'updated'}")


if __name__ == "__main__":
    main()
