"""NVIDIA's libraries, which the rivals call by ctypes: which copy is used, and errors for calls that fail.

A library that this process has loaded already is used again, so that PyTorch or CuPy and a suite share one copy. Else
the module looks in wheels (`nvidia/*/lib`, and `torch/lib` if PyTorch has its own copy), then in the loader's path.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...errors import EnvironmentProblem

FOLDERS = ("nvidia/*/lib", "torch/lib")  # below an entry of sys.path


def loaded(name: str, maps: Path = Path("/proc/self/maps")) -> str:
    """The path of a library that this process has loaded, by its file name; '' if it is not loaded."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return ""
    return next((path for line in lines if (path := line[line.find("/") :]).endswith(f"/{name}")), "")


def candidates(names: tuple[str, ...]) -> Iterator[str]:
    """Paths and names to try, the best first. names: file names, the best first."""
    yield from filter(None, map(loaded, names))
    for name in names:
        for entry in filter(None, sys.path):
            yield from sorted(str(path) for folder in FOLDERS for path in Path(entry).glob(f"{folder}/{name}"))
    yield from names


class Library:
    """One of NVIDIA's libraries.

    noun: the library's name in messages. names: its file names, the best first. status: the name of the type that its
    functions return. path: the file in use. Raises EnvironmentProblem if no file can be loaded.
    """

    def __init__(self, noun: str, names: tuple[str, ...], status: str) -> None:
        self.noun, self.status = noun, status
        for candidate in candidates(names):
            try:
                self._library: Any = ctypes.CDLL(candidate)
            except OSError:
                continue
            self.path = loaded(Path(candidate).name) or candidate
            return
        raise EnvironmentProblem(
            f"{noun} is not installed ({' or '.join(names)}): pip install 'aristos[cuda12]' or 'aristos[cuda13]'"
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. arguments: ctypes values. Raises EnvironmentProblem unless it returns 0."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise EnvironmentProblem(f"{name} of {self.path} failed with {self.status} {status}")

    def number(self, name: str, *arguments: Any) -> int:
        """The int that a function writes to its last argument."""
        found = ctypes.c_int()
        self.call(name, *arguments, ctypes.byref(found))
        return found.value


class Described(Protocol):
    """What computes beside Aristos. used: its versions and files."""

    used: str


T = TypeVar("T", bound=Described)


def or_why(make: Callable[[Any], T], gpu: Any) -> tuple[T | None, str]:
    """(what `make` makes for the GPU, its `used`) or (None, why there is none). Collective if `make` is."""
    try:
        made = make(gpu)
        return made, made.used
    except EnvironmentProblem as missing:
        return None, str(missing)
