"""Compiled functions that call each other by address.

Numba optimises a function's callees again with every caller, level by level, so that compiling the whole interpreter
would take many minutes. A unit is compiled alone. A call of a unit reads the unit's address from the machine's table
`x`, which is the first argument. All arguments and results are int64.

A unit's place in the table is the place of its name in the sorted list of all units' names, so it does not depend on
the order of imports. Callers contain the place as a constant, so every module with units must be imported before the
first unit is compiled.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernel_cache import code_files, sources
from kernel_cache import compile as compiler

from . import state as s

_units: dict[str, Callable[..., Any]] = {}  # by name, every function marked with `unit`
_compiled: dict[str, Any] = {}  # by name, in sorted order; either all units or none
_lock = threading.Lock()
_I64 = ir.IntType(64)


def names() -> list[str]:
    """The names of all units, in the order of their places in the table."""
    return sorted(_units)


class Locator(code_files.Locator):
    """Says where a unit's code is in the cache.

    A unit is compiled again when its module, a file that this imports, or the list of units' names has changed.
    """

    def get_cache_path(self) -> str:
        """One folder for each state of the sources, so that two checkouts do not overwrite each other's units."""
        key = hashlib.sha256(self.get_source_stamp().encode()).hexdigest()[:16]
        return str(compiler.cache_folder() / "ptxsim" / key)

    def get_source_stamp(self) -> str:
        """A hash of the files that a unit is compiled from, and of the names of all units."""
        return _stamp(self._py_file, tuple(names()))


@cache
def _stamp(file: str, listed: tuple[str, ...]) -> str:
    with compiler.known_imports():
        files = sources.files(Path(file))
    return hashlib.sha256((compiler.digest_of(files) + repr(listed)).encode()).hexdigest()


def unit(function: Callable[..., Any]) -> Any:
    """Make a function a unit. Only compiled code can call the result.

    Raises ValueError if a unit has this name already, or if units were compiled already.
    """
    name = function.__name__
    if name in _units:
        raise ValueError(f"unit {name} of {function.__module__} has the name of one in {_units[name].__module__}")
    if _compiled:
        raise ValueError(f"unit {name} of {function.__module__} comes after units were compiled: import it in core.py")
    _units[name] = function

    def call(typing: Any, *args: Any) -> Any:
        if len(args) != function.__code__.co_argcount:
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            words = [context.cast(builder, v, t, types.int64) for v, t in zip(values, signature.args)]
            number = s.X_FIELDS + names().index(name)
            place = builder.gep(builder.inttoptr(words[0], _I64.as_pointer()), [_I64(number)])
            kind = ir.FunctionType(_I64, [_I64] * len(words)).as_pointer()
            return builder.call(builder.inttoptr(builder.load(place), kind), words)

        return types.int64(*args), codegen

    call.__name__ = name
    parameters = ["typing", *function.__code__.co_varnames[: function.__code__.co_argcount]]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in parameters])  # type: ignore[attr-defined]
    return intrinsic(call)


def kept() -> bool:
    """Whether the cache has the code of every unit. The check takes no time, unlike loading the code."""
    found = (code_files.FunctionCache(_units[name], Locator) for name in names())
    return all(Path(each._cache_file._index_path).exists() for each in found)


def addresses() -> np.ndarray:
    """[units] int64: the address of each unit. The first call compiles the units or loads them from the cache."""
    with _lock:
        if not _compiled:
            if len(_units) > s.UNITS:
                raise ValueError(f"{len(_units)} units do not fit the table's {s.UNITS} places: raise state.UNITS")
            with compiler.compiling(name=__package__):
                made = {}
                for name in names():
                    function = _units[name]
                    signature = types.int64(*[types.int64] * function.__code__.co_argcount)
                    made[name] = compiler.entry(function, signature, Locator)
            _compiled.update(made)
    return np.array([compiled.address for compiled in _compiled.values()], np.int64)


def python_function(name: str) -> Callable[..., Any]:
    """A function with which Python calls the unit of this name."""
    addresses()
    return _compiled[name].ctypes
