"""Mutation testing reports the changes that a test misses, and no others."""

from __future__ import annotations

import json
import subprocess
import sys

from mutation import native, python, run
from mutation.mutant import Mutant

SOURCE = '''\
"""A module."""

def clamp(x: int, most: int = 3) -> int:
    """At most so much: 1 or 2."""
    if x > most and not x == 7:
        raise ValueError(f"x must be at most {most + 1}")
    x = x * 2
    return -x
'''

HEADER = """\
struct Counter {
  int64_t count;
  // 1 + 2
  DYNLOADER_FN bool add(int64_t n) {
    count += n;
    if (n < 0x10u && !done) return false;
    return count << 2 == 1.5;
  }
};
"""


def changes(mutants: list[Mutant]) -> list[str]:
    return [mutant.change for mutant in mutants]


def test_mutants_of_python() -> None:
    found = python.mutants(SOURCE)
    if_line, raise_line = (
        "if x > most and not x == 7:",
        'raise ValueError(f"x must be at most {most + 1}")',
    )
    assert set(changes(found)) == {
        "def clamp(x: int, most: int = 3) -> int: -> def clamp(x: int, most: int = 4) -> int:",
        "def clamp(x: int, most: int = 3) -> int: -> def clamp(x: int, most: int = 2) -> int:",
        f"{if_line} -> if not (x > most and not x == 7):",
        f"{if_line} -> if x >= most and not x == 7:",
        f"{if_line} -> if x > most or not x == 7:",
        f"{if_line} -> if x > most and (x == 7):",
        f"{if_line} -> if x > most and not x != 7:",
        f"{if_line} -> if x > most and not x == 8:",
        f"{if_line} -> if x > most and not x == 6:",
        f"{raise_line} -> pass",
        "x = x * 2 -> pass",
        "x = x * 2 -> x = x / 2",
        "x = x * 2 -> x = x * 3",
        "x = x * 2 -> x = x * 1",
        "return -x -> return None",
        "return -x -> return (x)",
    }
    assert {mutant.function for mutant in found} == {"clamp"}
    for mutant in found:
        compile(mutant.text, "mutant", "exec")
        old, new = SOURCE.splitlines(), mutant.text.splitlines()
        assert [i for i in range(len(old)) if old[i] != new[i]] == [mutant.line - 1]


def test_mutants_of_a_header() -> None:
    found = native.mutants(HEADER)
    assert set(changes(found)) == {
        "count += n; -> count -= n;",
        "count += n; -> ;",
        "if (n < 0x10u && !done) return false; -> if (n <= 0x10u && !done) return false;",
        "if (n < 0x10u && !done) return false; -> if (n < 0x11u && !done) return false;",
        "if (n < 0x10u && !done) return false; -> if (n < 0xfu && !done) return false;",
        "if (n < 0x10u && !done) return false; -> if (n < 0x10u || !done) return false;",
        "if (n < 0x10u && !done) return false; -> if (n < 0x10u && done) return false;",
        "if (n < 0x10u && !done) return false; -> if (n < 0x10u && !done) return true;",
        "if (n < 0x10u && !done) return false; -> if (!(n < 0x10u && !done)) return false;",
        "return count << 2 == 1.5; -> return count >> 2 == 1.5;",
        "return count << 2 == 1.5; -> return count << 3 == 1.5;",
        "return count << 2 == 1.5; -> return count << 1 == 1.5;",
        "return count << 2 == 1.5; -> return count << 2 != 1.5;",
        "return count << 2 == 1.5; -> return count << 2 == 2.5;",
        "return count << 2 == 1.5; -> return count << 2 == 0.5;",
    }
    assert {mutant.function for mutant in found} == {"Counter.add"}


def test_changes_that_are_not_judged() -> None:
    entry, *others = json.loads(run.EQUIVALENT.read_text())
    for each in (entry, *others):
        assert set(each) == {"file", "function", "change", "kind", "reason"}
        assert each["kind"] in run.KINDS
        assert each["reason"].endswith(".")
    excuses = run.Excuses()
    excused = Mutant(entry["function"], 7, entry["change"], "")
    other = Mutant(entry["function"], 7, "x -> y", "")
    # The folder and the line do not matter.
    assert excuses.kind(f"dynloader/anywhere/{entry['file']}", excused) == entry["kind"]
    assert excuses.kind(f"dynloader/{entry['file']}", other) is None
    stale = excuses.stale([(entry["file"], other)])
    assert f"{entry['file']} {entry['function']}: {entry['change']}" in stale
    assert not any(
        text.startswith(f"{entry['file']} ") for text in excuses.stale([("x.py", other)])
    )


def test_it_separates_detected_from_undetected_changes() -> None:
    """The planted test passes consistent numbers to ``share_of``, and checks a single result."""
    planted = ["--function", "share_of", "--tests", "tests/mutation/planted.py"]
    found = subprocess.run(
        [sys.executable, run.__file__, "dynloader/sampling/_share.py", *planted],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 1, found.stderr
    *survived, of_file, _ = found.stdout.splitlines()
    assert of_file == "dynloader/sampling/_share.py: 8 changes: 6 killed, 2 survived (75 % killed)"
    assert all(line.startswith("dynloader/sampling/_share.py:") for line in survived)
    names = {line.split(" share_of: ")[1] for line in survived}
    assert any(change.startswith("raise ValueError(") for change in names)
    refused = "if len(sizes) != num_replicas or sizes[rank] != batch_size:"
    assert f"{refused} -> {refused.replace('or', 'and')}" in names
