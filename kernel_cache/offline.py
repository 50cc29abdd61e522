"""Runs Numba-CUDA's compiler without a driver or a GPU: it compiles a kernel for argument types to PTX.

During compilation only the query for the current device is replaced. Importing this module does not import Numba-CUDA.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from . import operators
from .errors import input_error


def capability(arch: str) -> tuple[Any, ...]:
    """The compute capability of an architecture: (9, 0) for sm_90, (9, 0, 'a') for sm_90a."""
    match = re.fullmatch(r"sm_(\d+)(\d)([af]?)", arch)
    if match is None:
        raise input_error(f"arch must look like 'sm_90', got {arch!r}")
    major, minor, feature = match.groups()
    return (int(major), int(minor), feature) if feature else (int(major), int(minor))


@contextlib.contextmanager
def driverless(cc: tuple[Any, ...]) -> Iterator[None]:
    """A block in which Numba-CUDA's compiler finds a current device of this compute capability."""
    compiler: Any = import_module("numba.cuda.compiler")
    dispatcher: Any = import_module("numba.cuda.dispatcher")
    device = SimpleNamespace(
        compute_capability=cc, supports_float16=True, supports_bfloat16=True, supports_fp8=cc >= (8, 9)
    )
    before = dispatcher.get_current_device, compiler.get_current_device
    dispatcher.get_current_device = compiler.get_current_device = lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device, compiler.get_current_device = before


def compiled(kernel: Any, types_: tuple[Any, ...], cc: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """Compile a `cuda.jit` kernel for argument types. Returns (Numba's library, its PTX texts). cc: such as (9, 0)."""
    compiler: Any = import_module("numba.cuda.compiler")
    lock: Any = import_module("numba.cuda.core.compiler_lock").global_compiler_lock
    options = getattr(kernel, "targetoptions", {})
    debug = bool(options.get("debug"))

    def compile_(lineinfo: bool) -> tuple[Any, list[str]]:
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel.py_func,
            types_,
            debug=debug,
            lineinfo=lineinfo,
            device=False,
            abi="numba",
            cc=cc,
            fastmath=options.get("fastmath", False),
            opt=options.get("opt", True),
            launch_bounds=options.get("launch_bounds"),
        )
        return library, library.get_asm_strs(cc=cc)

    with lock, driverless(cc), operators.remembered():  # two threads must not restore each other's replacement
        return compile_(False) if debug else with_lines(compile_)


def with_lines(compile_: Callable[[bool], Any]) -> Any:
    """Call `compile_` with line information (True), or if that fails, without (False). Returns its result.

    With line information, reports name source lines; without it, lines of the PTX text. numba-cuda 0.30 cannot describe
    arguments that are empty tuples, and NVVM rejects numba-cuda's debug information for variables of some kernels.
    """
    nvvm_error: Any = import_module("numba.cuda.cudadrv.nvvm").nvvmError
    try:
        return compile_(True)
    except (ZeroDivisionError, nvvm_error):
        return compile_(False)


def entry_of(ptx: str, name: str) -> str:
    """The name of the only kernel in a PTX text. Raises InputError if the text has no kernel, or several."""
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    if len(entries) != 1:
        raise input_error(f"the PTX of {name} must have one kernel, got {entries}")
    return entries[0]
