"""Compiled functions that call each other by address.

Numba optimises everything a function calls again with it, at every level; the interpreter would take many minutes to
compile. A unit is compiled alone; calls of it read its address from the machine's table `x`, its first argument. All
arguments and results are int64.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import caching
from numba.extending import intrinsic

from ..primitives import compile as compiler
from . import state as s

# A unit's place in the table is compiled into its callers, so it must not depend on the order of imports.
NAMES = (
    "exact", "compact", "report", "race", "fence", "read", "read_latest", "wrote", "check", "loads", "stores",
    "atomics", "count_access", "start_copy", "finish_copies", "calculate_integers", "calculate_floats",
    "calculate_conversions", "arrive", "settle", "arrive_grid", "settle_grid", "multiply", "together",
    "matrices", "select", "move", "call", "give_back", "end_lanes", "stop_launch", "gather", "resolve",
    "memory", "special", "printf", "spinning", "start_block", "admit", "bury", "run", "host_access",
    "host_entry", "proxy_fence", "agent_access", "mbarrier", "settle_phase", "time_out", "bulk", "land",
    "fence_of_proxies", "warpgroup", "touch",
)  # fmt: skip
_units: dict[str, Callable] = {}
_compiled: dict[str, Any] = {}
_lock = threading.Lock()
_I64 = ir.IntType(64)
FOLDER = Path(__file__).parent


@cache
def sources(name: str) -> frozenset[str]:
    """The modules of this package that a module's compiled code depends on, itself among them."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^from \.(\w+) import", text, re.M))
    for line in re.findall(r"^from \. import (.+)$", text, re.M):
        names |= {word.split(" as ")[0].strip() for word in line.split(",")}
    names = {n for n in names if (FOLDER / f"{n}.py").exists()} - {name, "lower", "ptx", "arrays", "machine"}
    return frozenset({name}).union(*(sources(n) for n in names))


class Locator(caching.UserProvidedCacheLocator):
    """Keeps a unit by its name; it is compiled again when a module that it is made of changes."""

    def get_cache_path(self) -> str:
        """One folder for each state of the sources, so that two checkouts do not overwrite each other's."""
        key = hashlib.sha256((compiler.versions() + self.get_source_stamp()).encode()).hexdigest()[:16]
        return str(compiler.root() / "simt" / key)

    def get_source_stamp(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(sources(Path(self._py_file).stem)):
            digest.update((FOLDER / f"{name}.py").read_bytes())
        return digest.hexdigest()


def unit(function: Callable) -> Any:
    """Make a function a unit; what is returned can be called from compiled code only."""
    number = s.X_FIELDS + NAMES.index(function.__name__)
    _units[function.__name__] = function

    def call(typing: Any, *args: Any) -> Any:
        if len(args) != function.__code__.co_argcount:
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            words = [context.cast(builder, v, t, types.int64) for v, t in zip(values, signature.args)]
            place = builder.gep(builder.inttoptr(words[0], _I64.as_pointer()), [_I64(number)])
            kind = ir.FunctionType(_I64, [_I64] * len(words)).as_pointer()
            return builder.call(builder.inttoptr(builder.load(place), kind), words)

        return types.int64(*args), codegen

    call.__name__ = function.__name__
    names = ["typing", *function.__code__.co_varnames[: function.__code__.co_argcount]]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return intrinsic(call)


def addresses() -> np.ndarray:
    """[units] int64: where each unit is; compiled, or loaded from the cache, at the first call."""
    with _lock:
        if not _compiled:
            from . import host, interpreter  # noqa: F401  (they import every unit)

            with compiler.compiling():
                for name in NAMES:
                    function = _units[name]
                    signature = types.int64(*[types.int64] * function.__code__.co_argcount)
                    _compiled[name] = compiler.entry(function, signature, Locator)
    return np.array([_compiled[name].address for name in NAMES], np.int64)


def python_function(name: str) -> Callable:
    """A unit as a function of Python, by its name."""
    addresses()
    return _compiled[name].ctypes
