"""Mutants of C++ in clang-format's layout: spaces around operators, but none inside templates."""

from __future__ import annotations

import re

from mutation.mutant import Mutant, replaced

_OPERATORS = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " + ": " - ",
    " - ": " + ",
    " * ": " / ",
    " / ": " * ",
    " % ": " / ",
    " << ": " >> ",
    " >> ": " << ",
    " & ": " | ",
    " | ": " & ",
    " ^ ": " | ",
    " += ": " -= ",
    " -= ": " += ",
    " *= ": " += ",
    " |= ": " ^= ",
    " ^= ": " |= ",
    " >>= ": " <<= ",
}
_OPERATOR = re.compile("|".join(re.escape(old) for old in sorted(_OPERATORS, key=len)[::-1]))
_HEX = r"0x[0-9a-fA-F]+"
_NUMBER = re.compile(rf"(?<![\w.])({_HEX}|\d+\.\d+(?:e[+-]?\d+)?|\d+)(?=[uf]?\b)(?!\.\w)(?!p)")
_NOT = re.compile(r"(?<![\w)])[!~](?=[\w(])")
_FLAG = re.compile(r"\b(true|false)\b")
_STATEMENT = re.compile(
    r"^\s*((?:if \([^;]*?\) )?)"
    r"([\w:]+(?:(?:\.|->)\w+|\[[^;=]*?\]|<[^;=]*?>)*(?:\(.*\)| [-+*|^>]*=[^=].*);)\s*$"
)
_DECLARED = re.compile(r"\b(struct|class)\s+(?:alignas\(\d+\)\s+)?(\w+)[^;]*\{")
_DEFINED = re.compile(r"(\w+|operator\(\))\([^;]*$|(\w+|operator\(\))\([^;]*\)[^;]*\{")
_KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "alignas"}
_SKIPPED = re.compile(r"^\s*(#|static_assert|namespace|using|template|prefetch_to|DYNLOADER_IN|//)")


def mutants(text: str) -> list[Mutant]:
    """Return all mutants of a header, in the order of its lines."""
    found: list[Mutant] = []
    offset, owner, function = 0, "", ""
    for row in text.splitlines(keepends=True):
        code = row.split("//")[0].rstrip()
        if declared := _DECLARED.search(code):
            owner, function = declared[2], ""
        elif row.startswith("}"):
            owner, function = "", ""
        elif code.endswith(("{", ",", "(", "}")) and ("DYNLOADER_FN" in code or code[:1].isalpha()):
            names = re.findall(r"(operator\(\)|\w+)\(", code)
            names = [name for name in names if name not in _KEYWORDS]
            function = names[0] if names else function
        where = ".".join(part for part in (owner, function) if part)
        if not _SKIPPED.match(code):
            found += _of_line(text, offset, code, where)
        offset += len(row)
    return found


def _of_line(text: str, offset: int, code: str, where: str) -> list[Mutant]:
    changes: list[tuple[int, int, str]] = []
    for match in _OPERATOR.finditer(code):
        changes.append((*match.span(), _OPERATORS[match[0]]))
    for match in _NUMBER.finditer(code):
        changes += [(*match.span(1), new) for new in _near(match[1])]
    for match in _NOT.finditer(code):
        changes.append((*match.span(), ""))
    for match in _FLAG.finditer(code):
        changes.append((*match.span(), "false" if match[0] == "true" else "true"))
    if (statement := _STATEMENT.match(code)) and not statement[2].startswith("return"):
        changes.append((*statement.span(2), ";"))
    if test := re.match(r"\s*if \((.*)\) (?:\{|return|\w.*;)", code):
        changes.append((*test.span(1), f"!({test[1]})"))
    return [
        replaced(text, where, offset + start, offset + stop, new) for start, stop, new in changes
    ]


def _near(number: str) -> list[str]:
    if number.startswith("0x"):
        value = int(number, 16)
        return [hex(value + 1), hex(value - 1)] if value else ["0x1"]
    if "." in number:
        return [repr(float(number) + 1), repr(float(number) - 1)]
    return [str(int(number) + 1), str(int(number) - 1)] if int(number) else ["1"]
