"""Counts lines of code, without docstrings, comments and blank lines. This program prints them by room.

Files that `aristos.engine.generate` wrote are counted apart, since nobody writes or reads them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "aristos"
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str) -> int:
    """The lines of a Python source that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in _statements(ast.parse(text)):
        if isinstance(node, DESCRIBED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements in it. Expressions, which are most nodes of a file, hold no definition."""
    yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for inside in getattr(node, block, ()):
            yield from _statements(inside)


def is_generated(text: str) -> bool:
    """Whether the first line of a file says that `aristos.engine.generate` wrote the file."""
    return "Written by `python -m aristos.engine.generate`" in text.partition("\n")[0]


def by_room() -> tuple[Counter[str], int]:
    """(room of `aristos/` -> its lines of code, the lines of code in generated files, which no room counts).

    The modules in no room are "loose".
    """
    found: Counter[str] = Counter()
    generated = 0
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if is_generated(text):
            generated += code_lines(text)
        else:
            room = path.relative_to(PACKAGE).parts[0]
            found["loose" if room == path.name else room] += code_lines(text)
    return found, generated


if __name__ == "__main__":
    rooms, generated = by_room()
    for room, lines in rooms.most_common():
        print(f"{room:14s} {lines:6,d}")
    print(f"{'all':14s} {rooms.total():6,d}")
    print(f"{'generated':14s} {generated:6,d}, beside these")
