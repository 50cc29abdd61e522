"""`make coverage`: lines run by the uncompiled tests, room by room, and public functions that no test calls.

A function counts as called if one of its lines ran, or if its name stands in a file of tests/: calls by compiled tests
and by tests on ranks are not traced. The report sets no threshold.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "aristos"


def public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """(name, node) of the functions and methods of a module without a leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")
            else:
                yield prefix + node.name, node


def main() -> None:
    data = coverage.Coverage()
    data.load()
    named = set(re.findall(r"\w+", "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))))
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    uncalled: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        _, statements, _, missing, _ = data.analysis2(str(file))
        place = file.relative_to(PACKAGE)
        room = rooms[place.parts[0] if len(place.parts) > 1 else "(top)"]
        room[0] += len(statements)
        room[1] += len(statements) - len(missing)
        ran = set(statements) - set(missing)
        for name, node in public(ast.parse(file.read_text())):
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            if not ran.intersection(body) and name.split(".")[-1] not in named:
                uncalled.append(f"aristos/{place}:{node.lineno} {name}")
    print(f"{'room':12} {'lines':>6} {'run':>6}")
    for name, (lines, run) in sorted(rooms.items()):
        print(f"{name:12} {lines:6} {run / max(lines, 1):6.0%}")
    print(f"\n{len(uncalled)} public functions that no test calls:")
    print("\n".join(uncalled))


if __name__ == "__main__":
    main()
