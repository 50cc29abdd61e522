"""Which errors of the package a function can raise, read from its source and from that of what it calls.

Calls are followed where their target is known without running anything: functions and classes by the names of the
function's module, methods of `self`, `super()` and of the class itself. Other calls (of arguments, of attributes)
are not, so more errors may come than are found. An error that an `except` around the call catches is not counted.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache, cached_property
from types import FunctionType, ModuleType
from typing import Any

from aristos.errors import AristosError, InputError, PeerInputError

Errors = frozenset[type[BaseException]]
AGREES = {"agree": {PeerInputError}, "input_error": {InputError}}  # functions that raise errors by another way


@cache
def raised(function: Any, owner: type | None = None) -> Errors:
    """The classes of AristosError that a function, or a method of the class `owner`, can raise."""
    return frozenset(each for each in _of_function(function, owner, ()) if issubclass(each, AristosError))


def _of_function(found: Any, owner: type | None, above: tuple[Any, ...]) -> set[type[BaseException]]:
    function = inspect.unwrap(found.func if isinstance(found, cached_property) else found)
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType) or not function.__module__.startswith(("aristos", "kernel_cache")):
        return set()
    key = (function, owner)
    if key in above:
        return set()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return set()
    if not isinstance(tree.body[0], ast.FunctionDef):
        return set()
    return _Reader(function, owner, (*above, key)).of(tree.body[0].body)


class _Reader:
    """Reads the body of one function."""

    def __init__(self, function: FunctionType, owner: type | None, above: tuple[Any, ...]) -> None:
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
            target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            error = self._value(target)
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
        found = set(AGREES.get(name, ()))
        target, owner = self._value(call.func), None
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name | ast.Call):
            method = self._method(call.func)
            if method is not None:
                target, owner = method, self.owner
        if isinstance(target, type):
            if target.__module__.startswith(("aristos", "kernel_cache")) and not issubclass(target, BaseException):
                for each in ("__init__", "__post_init__"):
                    found |= _of_function(getattr(target, each, None), target, self.above)
            return found
        return found | _of_function(target, owner, self.above)

    def _method(self, func: ast.Attribute) -> Any:
        """The method of `self`, `cls` or `super()` that is called."""
        if self.owner is None:
            return None
        if isinstance(func.value, ast.Name) and func.value.id in ("self", "cls"):
            return inspect.getattr_static(self.owner, func.attr, None)
        if isinstance(func.value, ast.Call) and getattr(func.value.func, "id", "") == "super":
            for base in self.owner.__mro__[1:]:
                if func.attr in vars(base) and vars(base)[func.attr] is not self.function:
                    return vars(base)[func.attr]
        return None

    def _value(self, node: ast.AST) -> Any:
        """The object that a name, or an attribute of a module or a class, has in the function's module."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            inner = self._value(node.value)
            if isinstance(inner, ModuleType | type):
                return getattr(inner, node.attr, None)
        return None
