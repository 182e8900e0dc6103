"""Mutants of Python: comparisons, arithmetic, constants, conditions, results, statements."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from mutation.mutant import Mutant, replaced

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
# Changing one of these comparisons is the same as negating it.
_HAVE_AN_OPPOSITE = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
# zip(strict=True) guards against programming errors, which no test can provoke from outside.
_SKIPPED_KEYWORDS = {"strict"}


def mutants(text: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    found = _Mutator(text).found
    return sorted(found, key=lambda mutant: mutant.line)


class _Mutator:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Mutant] = []
        starts = [0]
        for line in text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        # The parser counts columns in bytes.
        self._starts = starts
        self._lines = text.splitlines()
        self._walk(ast.parse(text), "", set())

    def _offset(self, line: int, column: int) -> int:
        row = self._lines[line - 1]
        return self._starts[line - 1] + len(row.encode()[:column].decode())

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.end_lineno, node.end_col_offset)

    def _source(self, node: ast.expr | ast.stmt) -> str:
        return self.text[self._start(node) : self._end(node)]

    def _replace(self, function: str, node: ast.expr | ast.stmt, new: str) -> None:
        self.found.append(replaced(self.text, function, self._start(node), self._end(node), new))

    def _replace_between(
        self, function: str, left: ast.expr, right: ast.expr, old: str, new: str
    ) -> None:
        start, stop = self._end(left), self._start(right)
        word = rf"\b{old}\b".replace(" ", r"\s+") if old[0].isalpha() else re.escape(old)
        changed = re.sub(word, new, self.text[start:stop], count=1)
        self.found.append(replaced(self.text, function, start, stop, changed))

    def _walk(self, node: ast.AST, function: str, bound: set[str]) -> None:
        """Mutate ``node`` and its children; ``bound`` contains the names with a value so far."""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
            bound = set()
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        if isinstance(node, ast.stmt):
            self._statement(node, function, bound)
        if isinstance(node, ast.expr):
            self._expression(node, function)
        for child in self._children(node):
            self._walk(child, function, bound)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)

    def _children(self, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return  # messages are not mutated
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.keyword) and node.arg in _SKIPPED_KEYWORDS:
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "ops", "op", "ctx"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child

    def _statement(self, node: ast.stmt, function: str, bound: set[str]) -> None:
        if isinstance(node, ast.Return):
            if node.value is not None and not _is_none(node.value):
                self._replace(function, node, "return None")
        elif isinstance(node, ast.If | ast.While):
            self._negate(function, node.test)
        elif isinstance(node, ast.Expr):
            is_docstring = isinstance(node.value, ast.Constant)
            if not is_docstring:
                self._replace(function, node, "pass")
        elif isinstance(node, ast.Raise | ast.Break | ast.Continue | ast.Delete | ast.AugAssign):
            self._replace(function, node, "pass")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            # Deleting the first assignment of a name always breaks the code.
            is_first = any(isinstance(x, ast.Name) and x.id not in bound for x in targets)
            is_tuple = any(isinstance(x, ast.Tuple) for x in targets)
            if function and not is_first and not is_tuple and node.value is not None:
                self._replace(function, node, "pass")

    def _negate(self, function: str, test: ast.expr) -> None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], _HAVE_AN_OPPOSITE):
            return
        if ast.unparse(test) != "TYPE_CHECKING":
            self._replace(function, test, f"not ({self._source(test)})")

    def _expression(self, node: ast.expr, function: str) -> None:
        if isinstance(node, ast.Compare):
            left = node.left
            for operator, right in zip(node.ops, node.comparators, strict=True):
                self._replace_between(function, left, right, *_COMPARISONS[type(operator)])
                left = right
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self._replace_between(function, node.left, node.right, *_ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                self._replace_between(function, left, right, old, new)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            self._replace(function, node, f"({self._source(node.operand)})")
        elif isinstance(node, ast.IfExp):
            self._negate(function, node.test)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            for generator in node.generators:
                for test in generator.ifs:
                    self._negate(function, test)
        elif isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, bool):
                self._replace(function, node, str(not value))
            elif isinstance(value, int | float):
                for new in (value + 1, value - 1):
                    self._replace(function, node, repr(new) if new >= 0 else f"({new!r})")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
