"""`make coverage`: the lines of each room that the uncompiled tests run, and public functions that no test reaches.

Compiled code, tests on ranks and the PTX machine are not traced. So a function counts as reached in four cases: one of
its lines ran; its name is in a file of tests/; a reached function, or code outside functions, uses its name; or a
decorator with arguments lists it, as for suites and deliberate bugs. All other functions are dead, untested, or
methods that another package calls. No threshold is set.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("aristos", "kernel_cache", "ptxsim")


@dataclass(frozen=True)
class Function:
    """A function or method. name: its name with those of its classes before it. ran: whether one of its lines ran."""

    place: str
    name: str
    node: ast.FunctionDef
    ran: bool

    @property
    def last(self) -> str:
        return self.name.split(".")[-1]

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))


def functions(tree: ast.AST, place: str, ran: set[int], prefix: str = "") -> Iterator[Function]:
    """The functions and methods of a module, but no functions inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, place, ran, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            yield Function(f"{place}:{node.lineno}", prefix + node.name, node, bool(ran.intersection(body)))
        else:
            yield from functions(node, place, ran, prefix)


def names_in(node: ast.AST, inside: bool) -> Iterator[str]:
    """Names that a piece of code uses. Those in its functions count only if `inside`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, ast.Constant) and isinstance(child.value, str) and child.value.isidentifier():
            yield child.value
        if isinstance(child, ast.FunctionDef) and not inside:
            if any(isinstance(each, ast.Call) for each in child.decorator_list):
                yield child.name
            continue
        yield from names_in(child, inside)


def unreached(found: list[Function], named: set[str]) -> list[Function]:
    """The public functions that cannot be reached from the names in `named` and from the lines that ran."""
    named, left = set(named), list(found)
    while True:
        now = [each for each in left if each.ran or each.last in named]
        if not now:
            return [each for each in left if each.public]
        left = [each for each in left if not (each.ran or each.last in named)]
        for each in now:
            named.update(names_in(each.node, inside=True))


def main() -> None:
    data = coverage.Coverage()
    data.load()
    named = set(re.findall(r"\w+", "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))))
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    found: list[Function] = []
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        _, statements, _, missing, _ = data.analysis2(str(file))
        place = file.relative_to(ROOT)
        package, *inside = place.parts
        room = rooms[package if package != "aristos" else inside[0] if len(inside) > 1 else "(top)"]
        room[0] += len(statements)
        room[1] += len(statements) - len(missing)
        tree = ast.parse(file.read_text())
        named.update(names_in(tree, inside=False))
        found += functions(tree, place.as_posix(), set(statements) - set(missing))
    print(f"{'room':12} {'lines':>6} {'run':>6}")
    for name, (lines, run) in sorted(rooms.items()):
        print(f"{name:12} {lines:6} {run / max(lines, 1):6.0%}")
    lost = unreached(found, named)
    print(f"\n{len(lost)} public functions that no test reaches:")
    classes: dict[str, list[Function]] = defaultdict(list)
    for each in lost:
        classes[each.place.split(":")[0] + each.name.rpartition(".")[0]].append(each)
    for some in classes.values():  # the methods of a class on one line
        print(f"{some[0].place} {some[0].name}", *(each.last for each in some[1:]))


if __name__ == "__main__":
    main()
