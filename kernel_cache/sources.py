"""Finds the source files that a module's compiled code reads. The key of a kernel cache must depend on them.

Compiled code holds functions and constants of its own module and of the modules that its module imports, directly or
not. So its sources are the files of these modules, as far as they belong to the same package or to registered packages
(`packages.py`). Imports are read from the syntax tree; nothing is imported or run.

Some imports do not count: those for type checkers only (`if TYPE_CHECKING`), `import_module`, and the `__init__.py` of
a folder on the way to a module. Imports inside a function count only if the function defines other functions, because
these may be compiled.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import packages

Import = ast.Import | ast.ImportFrom
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# finds calls of overload, but not those in backticks, which are text. Groups: the name with which the first argument
# begins; a dot if it has the form a.b.c
OVERLOAD = re.compile(r"(?<!`)\boverload\(\s*(?:getattr\(\s*)?(\w*)(?:\.\w+(\.))?")


class Statement(NamedTuple):
    """An import statement.

    level: how many folders up a relative import begins, 0: an absolute one, -1: `import a, b`, which has no module.
    bound: what the importing module calls each of the names.
    """

    level: int
    module: str
    names: tuple[str, ...]
    bound: tuple[str, ...]


statements: dict[str, list[Statement]] = {}  # import statements of files by the files' hashes; kept by import_lists.py


@cache
def files(source: Path) -> frozenset[Path]:
    """The file of a module, and those of its package and of registered packages that it imports, directly or not."""
    found, left = {source}, [source]
    while left:
        new = imported(left.pop()) - found
        found |= new
        left += new
    return frozenset(found)


@cache
def importers(package: Path, module: str, name: str) -> frozenset[Path]:
    """The files below a folder that contain `from module import name`, such as modules that register lowerings."""
    return frozenset(
        path
        for path in package.rglob("*.py")
        if name.encode() in path.read_bytes()
        and any((each.level, each.module) == (0, module) and name in each.names for each in _statements(path))
    )


@cache
def lowered(path: Path) -> frozenset[Path] | None:
    """The files whose functions a module lowers by `overload(f)`, `overload(m.f)` and `overload(getattr(m, ...))`.

    Here f is a function, and m a module. What the function's module imports counts too, because that module may have
    imported the function. None if the text does not say which functions these are, or if they are of a package that is
    not registered: then they may be any.
    """
    text, found = path.read_text(encoding="utf-8"), set[Path]()
    calls = set(OVERLOAD.findall(text))
    if not calls:
        return None
    for name, deep in calls:
        imports = [
            each._replace(names=(each.names[each.bound.index(name)],))
            for each in _statements(path)
            if name in each.bound
        ]
        modules = [file for each in imports for file in _targets(each, path, _root(path))]
        if not imports and re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", text, re.MULTILINE):
            modules = [path]
        if deep or not name or not modules:
            return None
        found.update(*map(files, modules)) if imports else found.add(path)
    return frozenset(found)


@cache
def digest(sources: frozenset[Path]) -> str:
    """A hash of files: of their contents and their paths within their packages, not of the packages' locations."""
    whole = hashlib.sha256()
    for place, path in sorted((path.relative_to(_root(path).parent).as_posix(), path) for path in sources):
        whole.update(place.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


@cache
def imported(source: Path) -> frozenset[Path]:
    """The files of the same package and of registered packages that a module imports directly."""
    root = _root(source)
    return frozenset(path for each in _statements(source) for path in _targets(each, source, root)) - {source}


def _root(source: Path) -> Path:
    """The outermost folder of the package that a file belongs to; the file's own folder if it is in no package."""
    root = source.parent
    while (root / "__init__.py").is_file() and (root.parent / "__init__.py").is_file():
        root = root.parent
    return root


def _statements(source: Path) -> list[Statement]:
    """The import statements of a file that count, see the module's docstring. A file of known content is not parsed."""
    content = source.read_bytes()
    key = hashlib.sha256(content).hexdigest()
    if key not in statements:
        statements[key] = [
            Statement(
                node.level if isinstance(node, ast.ImportFrom) else -1,
                (isinstance(node, ast.ImportFrom) and node.module) or "",
                tuple(alias.name for alias in node.names),
                tuple(alias.asname or alias.name for alias in node.names),
            )
            for node in _imports(ast.parse(content, str(source)))
        ]
    return statements[key]


def _imports(node: ast.AST) -> Iterator[Import]:
    """The import statements below a node that count, see the module's docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Import):
            yield child
        elif isinstance(child, FUNCTIONS) and not any(
            isinstance(inner, FUNCTIONS) for inner in ast.walk(child) if inner is not child
        ):
            continue
        elif isinstance(child, ast.If) and _type_checking(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []))
        else:
            yield from _imports(child)


def _type_checking(test: ast.expr) -> bool:
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def _targets(statement: Statement, source: Path, root: Path) -> Iterator[Path]:
    """The files that an import statement names."""
    level, module, names, _ = statement
    if level < 0:
        for name in names:
            yield from _module(_absolute(name, root))
        return
    if level:
        folder = source.parent
        for _ in range(level - 1):
            folder = folder.parent
        base: Path | None = folder.joinpath(*module.split(".")) if module else folder
    else:
        base = _absolute(module, root)
    if base is None:
        return
    for name in names:
        own = list(_module(base / name))
        yield from own or _module(base)


def _absolute(name: str, root: Path) -> Path | None:
    """The path of a module's file or folder, without suffix; None outside this package and the registered ones."""
    first, *rest = name.split(".")
    place = root if first == root.name and (root / "__init__.py").is_file() else packages.root_of(first)
    return None if place is None else place.joinpath(*rest)


def _module(base: Path | None) -> Iterator[Path]:
    """The file of the module at a path without suffix; empty if there is none."""
    if base is not None:
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if path.is_file():
                yield path
                return
