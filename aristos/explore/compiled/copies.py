"""Copies of the engine's steps that record their accesses. They are separate modules, made from the same files.

The syntax tree of each module is changed before it is executed. Accesses to the state become calls of `recorded.get`
and `recorded.put`. Calls of memory, wire and arithmetic become calls of the functions in `recorded.py`. Each call
passes its site. The bugs of `planted.py` are compiled in, but switched off. Line numbers do not change.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel_cache import copies, sources

from ...engine.layout import word_to
from ...primitives import arithmetic, memory, wire
from ...substrate.cpu import loop as _needed  # noqa: F401  imports what the copy shares with the package
from . import planted, recorded

NAME, PACKAGE, PRIMITIVES = "aristos_recorded", "aristos", "aristos.primitives"
ENGINE, SUBSTRATE, CPU = "aristos.engine", "aristos.substrate", "aristos.substrate.cpu"
MODULES = {
    ENGINE: ("arrivals", "bells", "bundles", "bounds", "column_runs", "combine", "dispatch", "exchange", "experts",
             "lock", "outbox", "packing", "returns", "routing", "scalars", "staying", "steps", "store", "streams",
             "sums", "tape"),
    SUBSTRATE: ("heartbeat",),
    CPU: ("loop",),
}  # fmt: skip
ORDER = [f"{package}.{name}" for package, names in MODULES.items() for name in names]
ORIGINALS = {f"{NAME}{name.removeprefix(PACKAGE)}": name for name in ORDER}
LINE_BITS = 16  # bits of a site that hold the line; the bits above hold the module
STATES = ("st", "gs")
# name of a module in steps -> the module, and its functions that record
RECORDING: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "mem": (memory, recorded.MEMORY),
    "mpi": (wire, recorded.WIRE),
    "arithmetic": (arithmetic, recorded.ARITHMETIC),
}


class Recording(ast.NodeTransformer):
    """The change of one module's functions."""

    def __init__(self, module: str) -> None:
        self._number = ORDER.index(module)
        self._bugs = [bug for bug in planted.BUGS if bug.function.startswith(f"{module.rpartition('.')[2]}.")]
        self._function = ""
        self.planted: list[str] = []

    def _site(self, node: ast.AST) -> ast.expr:
        line: int = node.lineno  # type: ignore[attr-defined]
        return ast.Constant(self._number << LINE_BITS | line)

    def _call(self, node: ast.AST, name: str, *arguments: ast.expr) -> ast.Call:
        call = ast.Call(ast.Name(name, ast.Load()), [*arguments, self._site(node)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._function = node.name
        node.body = [changed for each in node.body for changed in self._plant(each)]
        return self.generic_visit(node)

    def _plant(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statement itself, or if a bug is planted there, a choice between the statement and the bug."""
        for field in ("body", "orelse"):
            inner = getattr(statement, field, None)
            if isinstance(inner, list):
                setattr(statement, field, [changed for each in inner for changed in self._plant(each)])
        text = ast.unparse(statement)
        for bug in self._bugs:
            if bug.function.endswith(f".{self._function}") and text.startswith(bug.old):
                self.planted.append(bug.name)
                test = ast.parse(f"planted({planted.NUMBERS[bug.name]})", mode="eval").body
                choice = ast.If(test, ast.parse(bug.new).body, [statement])
                for each in ast.walk(choice):
                    if isinstance(each, ast.expr | ast.stmt) and each is not statement:
                        ast.copy_location(each, statement)
                return [ast.fix_missing_locations(choice)]
        return [statement]

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if _is_state(node) and isinstance(node.ctx, ast.Load):
            return self._call(node, "get", node.value, node.slice)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        target = node.targets[0]
        if not _is_state(target):
            if any(_is_state(each) for one in node.targets for each in ast.walk(one)):
                raise NotImplementedError(f"{ast.unparse(node)}: assign words of the state one by one")
            return self.generic_visit(node)
        assert isinstance(target, ast.Subscript)
        value, at = self.visit(node.value), self.visit(target.slice)
        return ast.copy_location(ast.Expr(self._call(node, "put", target.value, at, value)), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if not _is_state(node.target):
            return self.generic_visit(node)
        assert isinstance(node.target, ast.Subscript)
        state, at, more = node.target.value, self.visit(node.target.slice), self.visit(node.value)
        value = ast.BinOp(self._call(node, "get", state, at), node.op, more)
        return ast.copy_location(ast.Expr(self._call(node, "put", state, at, ast.copy_location(value, node))), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
            return node
        if function.value.id in RECORDING and function.attr in RECORDING[function.value.id][1]:
            node.args.append(self._site(node))
            ast.fix_missing_locations(node)
        return node


def _is_state(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in STATES


class Finder(MetaPathFinder, Loader):
    """Finder and loader of the copies."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name not in ORIGINALS:
            return None
        return spec_from_file_location(name, _file(ORIGINALS[name]), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        file = str(module.__file__)
        change = Recording(ORIGINALS[module.__name__])
        tree = ast.fix_missing_locations(change.visit(ast.parse(Path(file).read_bytes(), file)))
        missing = {bug.name for bug in change._bugs} - set(change.planted)
        if missing:
            names = ", ".join(sorted(missing))
            raise NotImplementedError(f"{file} lacks statements that planted.py changes for the bugs {names}")
        vars(module).update(get=recorded.get, put=recorded.put, planted=recorded.planted, word_to=word_to)
        exec(compile(tree, file, "exec"), vars(module))


def _file(module: str) -> Path:
    return Path(str(import_module(module).__file__))


@cache
def module(name: str) -> Any:
    """The recording copy of a module of the package, such as `substrate.cpu.loop`."""
    _make()
    return import_module(f"{NAME}.{name}")


@cache
def _make() -> None:
    """Make the copies. Of their packages all modules that are not in ORDER are those of the package."""
    packages = PRIMITIVES, *MODULES
    replaced = {
        name.removeprefix(f"{PACKAGE}."): module
        for name, module in sys.modules.items()
        if name.rpartition(".")[0] in packages and name not in (*ORDER, *packages)
    }
    for original, functions in RECORDING.values():
        replaced[original.__name__.removeprefix(f"{PACKAGE}.")] = copies.changed(original, NAME, functions)
    again = [name.removeprefix(f"{PACKAGE}.") for name in packages]
    copies.make(NAME, PACKAGE, again, replaced, sources.files(Path(__file__)))
    sys.meta_path.insert(0, Finder())


@cache
def _functions(module: str) -> list[tuple[int, int, str]]:
    tree = ast.parse(_file(module).read_bytes())
    return [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def where(site: int) -> str:
    """The site as `module.function:line`. Site 0 is code of the host, which has no sites."""
    if site == 0:
        return "the host"
    module, line = ORDER[site >> LINE_BITS], site & ((1 << LINE_BITS) - 1)
    name = next((name for first, last, name in _functions(module) if first <= line <= last), "?")
    return f"{module.rpartition('.')[2]}.{name}:{line}"
