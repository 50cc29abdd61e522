"""Hashes of what determines the code of a kernel: its sources, the types of its arguments, its options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernel_cache import sources
from kernel_cache.compile import _read, source_key

CATALOGUE = Path(__file__).with_name("catalogue.py")  # imports all kernels, and chooses their tiles and sizes
READ = ("debug", "opt", "fastmath", "launch_bounds")  # the options that kernel_cache/offline.py gives to the compiler


def kernel_key(kernel: Any) -> str:
    """Hash of a kernel's sources, types and options. The kernel's PTX depends on these and on the compiler."""
    return _hash((*_sources(kernel, source_key), kernel.types, kernel.function.targetoptions))


def ahead_key(kernel: Any) -> str:
    """A hash of the same things as `kernel_key`. It is equal on the machine that compiles ahead and on this one.

    `kernel_key` may differ: another release of Numba-CUDA may print types and options differently, and the other
    machine's clock may run ahead of this machine's, so that files seem newer than they are.
    """
    options = [(name, kernel.function.targetoptions.get(name)) for name in READ]
    return _hash((*_sources(kernel, _digest), [str(each) for each in kernel.types], options))


def edited(kernel: Any) -> bool:
    """Whether a source of the kernel was edited after this process started. The process may run the older source."""
    return not _own(kernel, _digest).startswith(_own(kernel, source_key))


def _sources(kernel: Any, key: Callable[[Path], str]) -> tuple[str, str]:
    return _own(kernel, key), sources.digest(sources.files(CATALOGUE))


def _digest(source: Path) -> str:
    """Hash of the contents of the files that `source_key` hashes. It does not depend on the files' times."""
    return sources.digest(_read(source))


def _own(kernel: Any, key: Callable[[Path], str]) -> str:
    code = kernel.function.py_func.__code__
    source = Path(code.co_filename)
    return key(source) if source.is_file() else repr((code.co_code, code.co_consts, code.co_names))


def _hash(what: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]
