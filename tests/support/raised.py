"""Finds the package's errors that a function can raise, from its source and that of the functions it calls.

Calls are followed if their target is known without running code: functions and classes by the names of the function's
module, methods of `self` and `super()`, and methods of attributes of `self` whose class an `__init__` states. Other
calls (of arguments, or of results of calls) are not followed, so a function may raise errors that are not found. An
error that an `except` around the call catches is not counted.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache, cached_property
from types import FunctionType, ModuleType
from typing import Any

from aristos.errors import AristosError, InputError, PeerInputError

Errors = frozenset[type[BaseException]]
Key = tuple[FunctionType, type | None]
AGREES = {"agree": PeerInputError, "input_error": InputError}  # they raise an error given to them
PACKAGES = ("aristos", "kernel_cache")


@cache
def raised(function: Any, owner: type | None = None) -> Errors:
    """The classes of AristosError that a function, or a method of the class `owner`, can raise."""
    return frozenset(each for each in _of_function(function, owner, ()) if issubclass(each, AristosError))


def _of_function(found: Any, owner: type | None, above: tuple[Key, ...]) -> set[type[BaseException]]:
    if isinstance(found, property | cached_property):
        found = found.fget if isinstance(found, property) else found.func
    outer = getattr(found, "__func__", found)
    function = inspect.unwrap(outer)
    errors: set[type[BaseException]] = set()
    if function is not outer and _is_ours(outer):  # it calls a method of a part of the object
        errors = _read(outer, owner, above, inner=outer.__code__)
        owner = getattr(sys.modules[function.__module__], function.__qualname__.split(".")[0], owner)
    return errors | (_read(function, owner, above) if _is_ours(function) else set())


def _is_ours(function: Any) -> bool:
    return isinstance(function, FunctionType) and function.__module__.startswith(PACKAGES)


def _read(
    function: FunctionType, owner: type | None, above: tuple[Key, ...], inner: Any = None
) -> set[type[BaseException]]:
    key = (function, owner)
    tree = _tree(inner or function.__code__)
    if key in above or tree is None:
        return set()
    return _Reader(function, owner, (*above, key)).of(tree.body)


@cache
def _tree(code: Any) -> ast.FunctionDef | None:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(code))).body
    except (OSError, SyntaxError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


@cache
def _attributes(owner: type) -> dict[str, type]:
    """Attributes of `self` that an `__init__` sets to an argument or a local of a known class, or to a new object."""
    found: dict[str, type] = {}
    for base in reversed(owner.__mro__):
        made = vars(base).get("__init__")
        if not _is_ours(made) or (tree := _tree(made.__code__)) is None:
            continue
        names = {each.arg: each.annotation for each in [*tree.args.args, *tree.args.kwonlyargs]}
        for node in ast.walk(tree):
            for target, value in _assigned(node):
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                    stated = node.annotation if isinstance(node, ast.AnnAssign) else names.get(getattr(value, "id", ""))
                    stated = value.func if stated is None and isinstance(value, ast.Call) else stated
                    kind = made.__globals__.get(getattr(stated, "id", ""))
                    if isinstance(kind, type):
                        found[target.attr] = kind
    return found


def _assigned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts)
            else:
                yield target, node.value


class _Reader:
    """Reads the body of one function."""

    def __init__(self, function: FunctionType, owner: type | None, above: tuple[Key, ...]) -> None:
        self.names = vars(builtins) | function.__globals__
        self.function, self.owner, self.above = function, owner, above

    def of(self, nodes: list[Any]) -> set[type[BaseException]]:
        return {error for node in nodes for error in self._of_node(node)}

    def _of_node(self, node: ast.AST) -> set[type[BaseException]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            return set()
        if isinstance(node, ast.Try):
            return self._of_try(node)
        found: set[type[BaseException]] = set()
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = self._value(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            if isinstance(error, type) and issubclass(error, BaseException):
                found.add(error)
        if isinstance(node, ast.Call):
            found |= self._of_call(node)
        return found | self.of(list(ast.iter_child_nodes(node)))

    def _of_try(self, node: ast.Try) -> set[type[BaseException]]:
        caught = tuple(error for handler in node.handlers for error in self._caught(handler))
        inside = {error for error in self.of(node.body) if not issubclass(error, caught)}
        return inside | self.of(node.handlers) | self.of(node.orelse) | self.of(node.finalbody)

    def _caught(self, handler: ast.ExceptHandler) -> Iterator[type[BaseException]]:
        """The errors that a handler does not raise again."""
        if any(isinstance(each, ast.Raise) and each.exc is None for each in ast.walk(handler)):
            return
        named = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        for each in named:
            error = BaseException if each is None else self._value(each)
            if isinstance(error, type) and issubclass(error, BaseException):
                yield error

    def _of_call(self, call: ast.Call) -> set[type[BaseException]]:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        found = {AGREES[name]} if name in AGREES else set()
        target, owner = self._method(call.func) if isinstance(call.func, ast.Attribute) else (None, None)
        target = target or self._value(call.func)
        if isinstance(target, type):
            if target.__module__.startswith(PACKAGES) and not issubclass(target, BaseException):
                for each in ("__init__", "__post_init__"):
                    found |= _of_function(getattr(target, each, None), target, self.above)
            return found
        return found | _of_function(target, owner, self.above)

    def _method(self, func: ast.Attribute) -> tuple[Any, type | None]:
        """The method of `self`, of one of its attributes, or of `super()`, and the class that has it."""
        place, owner = func.value, self.owner
        if owner is None:
            return None, None
        if isinstance(place, ast.Attribute) and getattr(place.value, "id", "") == "self":
            owner, place = _attributes(owner).get(place.attr), place.value
        if isinstance(place, ast.Name) and place.id in ("self", "cls") and owner is not None:
            return inspect.getattr_static(owner, func.attr, None), owner
        if isinstance(place, ast.Call) and getattr(place.func, "id", "") == "super":
            for base in self.owner.__mro__[1:] if self.owner else ():
                if func.attr in vars(base) and vars(base)[func.attr] is not self.function:
                    return vars(base)[func.attr], self.owner
        return None, None

    def _value(self, node: ast.AST) -> Any:
        """The object that a name, or an attribute of a module or a class, has in the function's module."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            inner = self._value(node.value)
            if isinstance(inner, ModuleType | type):
                return getattr(inner, node.attr, None)
        return None
