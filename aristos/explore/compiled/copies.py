"""Copies of the engine's steps that record their accesses. They are separate modules, made from the same files.

The syntax tree of each module is changed before it is executed. Accesses to the state become calls of `recorded.get`
and `recorded.put`. Calls of memory, wire and arithmetic become calls of the functions in `recorded.py`. Each call
passes its site. The bugs of `planted.py` are compiled in, but switched off. Line numbers do not change. The packages'
names contain a hash of the files that define these changes. So Numba's cache keeps this code apart from ordinary code,
and from copies made by other changes.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel_cache.compile import code_key

from . import planted, recorded

PACKAGE = Path(__file__).parents[2]
ENGINE, SUBSTRATE, CPU = "aristos.engine", "aristos.substrate", "aristos.substrate.cpu"
MODULES = {
    ENGINE: ("arrivals", "bells", "bundles", "bounds", "column_runs", "combine", "dispatch", "exchange", "experts",
             "lock", "outbox", "packing", "returns", "routing", "scalars", "staying", "steps", "store", "streams",
             "sums", "tape"),
    SUBSTRATE: ("heartbeat",),
    CPU: ("loop",),
}  # fmt: skip
ORDER = [f"{package}.{name}" for package, names in MODULES.items() for name in names]
LINE_BITS = 16  # bits of a site that hold the line; the bits above hold the module
STATES = ("st", "gs")
SHARED = {  # name of a module in steps -> the functions of it that record
    "mem": {each.__name__ for each in recorded.MEMORY},
    "mpi": set(recorded.WIRE),
    "arithmetic": {each.__name__ for each in recorded.ARITHMETIC},
}


def copied(module: str) -> str:
    """The name of the copy of a module or package."""
    longest = sorted(MODULES, key=len, reverse=True)
    package = next(each for each in longest if module == each or module.startswith(f"{each}."))
    return f"{package}_{_suffix()}{module[len(package) :]}"


@cache
def _suffix() -> str:
    return f"recorded_{code_key(Path(__file__))[:8]}"


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
        if function.attr in SHARED.get(function.value.id, ()):
            node.args.append(self._site(node))
            ast.fix_missing_locations(node)
        return node


def _is_state(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in STATES


class Finder:
    """Finder and loader of the copies."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        original = _originals().get(name)
        if original is None:
            return None
        found = importlib.util.find_spec(original)
        assert found is not None
        assert found.origin is not None
        return importlib.util.spec_from_file_location(name, found.origin, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        original = _originals()[module.__name__]
        file = str(module.__file__)
        change = Recording(original)
        tree = ast.fix_missing_locations(change.visit(ast.parse(Path(file).read_bytes(), file)))
        missing = {bug.name for bug in change._bugs} - set(change.planted)
        if missing:
            raise NotImplementedError(f"{file} lacks the statements of {', '.join(sorted(missing))} in planted.py")
        vars(module).update(get=recorded.get, put=recorded.put, planted=recorded.planted)
        exec(compile(tree, file, "exec"), vars(module))


@cache
def _originals() -> dict[str, str]:
    return {copied(name): name for name in ORDER}


@cache
def loop() -> Any:
    """The recording copy of the module `substrate/cpu/loop.py`."""
    for package, names in MODULES.items():
        made = ModuleType(copied(package))
        made.__path__ = []
        sys.modules[made.__name__] = made
        for path in (PACKAGE / package.partition(".")[2].replace(".", "/")).glob("*.py"):
            name = path.stem
            if name not in names and not name.startswith("_") and f"{package}.{name}" in sys.modules:
                original = sys.modules[f"{package}.{name}"]
                setattr(made, name, original)
                sys.modules[f"{made.__name__}.{name}"] = original
    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        copies = {name: import_module(copied(name)) for name in ORDER}
    finally:
        sys.meta_path.remove(finder)
    replaced = {id(sys.modules[name]): copy for name, copy in copies.items()}
    replaced |= {id(before): after for before, after in vars(recorded.NAMESPACES).values()}
    for copy in copies.values():
        word_to = sys.modules["aristos.engine.layout"].word_to
        vars(copy).setdefault("word_to", word_to)  # for planted bugs
        for key, value in list(vars(copy).items()):
            home = getattr(value, "__module__", None)
            if id(value) in replaced:
                setattr(copy, key, replaced[id(value)])
            elif home in copies and hasattr(copies[home], key):
                setattr(copy, key, getattr(copies[home], key))
    return copies[f"{CPU}.loop"]


@cache
def _functions(module: str) -> list[tuple[int, int, str]]:
    found = importlib.util.find_spec(module)
    assert found is not None
    tree = ast.parse(Path(str(found.origin)).read_bytes())
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
