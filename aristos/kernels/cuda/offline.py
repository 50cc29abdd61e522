"""Numba-CUDA's compiler without a driver: a kernel and its types to PTX, for a device that need not be here.

The one thing it replaces, while it compiles, is the question which device is there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from ...errors import InputError
from . import compiler as _checked  # noqa: F401  says what is missing where numba-cuda is, or does not fit

_compiler: Any = import_module("numba.cuda.compiler")
_dispatcher: Any = import_module("numba.cuda.dispatcher")
_lock: Any = import_module("numba.cuda.core.compiler_lock").global_compiler_lock
_nvvm_error: Any = import_module("numba.cuda.cudadrv.nvvm").nvvmError


@contextlib.contextmanager
def driverless(cc: tuple) -> Iterator[None]:
    """While inside, Numba-CUDA's compiler believes in a device of this compute capability."""
    device = SimpleNamespace(
        compute_capability=cc, supports_float16=True, supports_bfloat16=True, supports_fp8=cc >= (8, 9)
    )
    before = _dispatcher.get_current_device, _compiler.get_current_device
    _dispatcher.get_current_device = _compiler.get_current_device = lambda: device
    try:
        yield
    finally:
        _dispatcher.get_current_device, _compiler.get_current_device = before


def compiled(kernel: Any, types_: tuple, cc: tuple) -> tuple[Any, list[str]]:
    """(Numba's library of a `cuda.jit` kernel for argument types, its PTX texts); cc: (9, 0), or (9, 0, 'a')."""
    options = getattr(kernel, "targetoptions", {})
    debug = bool(options.get("debug"))

    def compile_(lineinfo: bool) -> tuple[Any, list[str]]:
        library, _ = _compiler._compile_pyfunc_with_fixup(
            kernel.py_func, types_, debug=debug, lineinfo=lineinfo, device=False, abi="numba", cc=cc,
            fastmath=options.get("fastmath", False), opt=options.get("opt", True),
            launch_bounds=options.get("launch_bounds"),
        )  # fmt: skip
        return library, library.get_asm_strs(cc=cc)

    with _lock, driverless(cc):  # two threads must not restore each other's question
        return compile_(False) if debug else with_lines(compile_)


def with_lines(compile_: Callable[[bool], Any]) -> Any:
    """What `compile_` gives with line information, for reports to name lines; without it where that fails.

    numba-cuda 0.30 cannot describe arguments that are tuples of nothing, and NVVM refuses what it writes about the
    variables of some kernels: reports then name lines of the PTX text.
    """
    try:
        return compile_(True)
    except (ZeroDivisionError, _nvvm_error):
        return compile_(False)


def entry_of(ptx: str, name: str) -> str:
    """The entry of a PTX text with one kernel; raises InputError for none or several."""
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    if len(entries) != 1:
        raise InputError(f"expected one kernel in the PTX of {name}, found {entries}")
    return entries[0]
