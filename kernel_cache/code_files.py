"""Numba's cache of compiled functions, kept in private files with hashes (`private.py`).

For each function Numba keeps an index, which is a pickle, and a file for each signature. Numba itself reads these files
unchecked, wherever they lie. Here they are read only if nobody but this user could have written them, and if they are
whole. A damaged file counts as missing. A locator says in which folder the files lie.
"""

from __future__ import annotations

import inspect
import itertools
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import caching

from . import private


class Locator(caching.UserProvidedCacheLocator):
    """Says where a function's code is kept. Derived classes choose the folder and the sources that code depends on.

    function: the Python function. source: the path of its file.
    """

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        self._py_file, self._lineno = source, function.__code__.co_firstlineno

    def ensure_cache_path(self) -> None:
        """Make the folder. Raises EnvironmentProblem if others can write to it."""
        private.make(Path(self.get_cache_path()))


unkept: list[str] = []  # the functions whose code this process could not keep on disk


class FunctionCache(caching.FunctionCache):
    """The cache of one function's compiled code, in the folder of its locator."""

    def __init__(self, function: Callable[..., Any], locator: type[Locator], parts: type[Parts] | None = None) -> None:
        self._name, self._py_func = repr(function), function
        self._impl = (parts or Parts)(function, locator(function, inspect.getfile(function)))
        self._cache_path = self._impl.locator.get_cache_path()
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)
        self.enable()

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep compiled code on disk.

        If that fails, as on a full disk, this process continues, and the next process compiles the function again.
        """
        try:
            super().save_overload(signature, data)
        except OSError as error:
            unkept.append(self._name)
            if len(unkept) == 1:
                warnings.warn(
                    f"kernels cannot be kept in {self._cache_path}: {error}; set ARISTOS_CACHE to a writable folder",
                    stacklevel=2,
                )


class Parts(caching.CompileResultCacheImpl):
    """Converts a compiled function to bytes and back, as Numba does, but uses the locator that it is given."""

    suffix = ""  # file names have no suffix

    def __init__(self, function: Callable[..., Any], locator: Locator) -> None:
        self._lineno, self._locator = function.__code__.co_firstlineno, locator
        name = f"{Path(locator._py_file).stem}.{function.__qualname__}{self.suffix}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _Files(caching.IndexDataCacheFile):
    """The index and the code of one function."""

    def save(self, key: Any, data: Any) -> None:
        """Write code to a file, and only then name the file in the index.

        So the index never gives a signature the code of another one.
        """
        overloads = self._load_index()
        taken = set(overloads.values())
        name = overloads.get(key) or next(n for n in map(self._data_name, itertools.count(1)) if n not in taken)
        self._save_data(name, data)
        if key not in overloads:
            self._save_index({**overloads, key: name})

    def _load_index(self) -> dict[Any, Any]:
        try:
            data = private.read(Path(self._index_path))
        except FileNotFoundError:
            return {}
        stamp, overloads = pickle.loads(data) if data else (None, {})
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, Any]) -> None:
        private.write(Path(self._index_path), self._dump((self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        data = private.read(Path(self._data_path(name)))
        if data is None:
            raise FileNotFoundError(name)  # Numba compiles the function and writes the file again
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        private.write(Path(self._data_path(name)), self._dump(data))
