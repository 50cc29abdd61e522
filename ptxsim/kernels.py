"""Makes the PTX of a `cuda.jit` kernel, and the bytes of its parameters, without a driver.

Numba-CUDA's own compiler makes the PTX, through kernel_cache/offline.py.
"""

from __future__ import annotations

import importlib
import struct
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernel_cache import offline
from kernel_cache.errors import quoted

from . import isa, linking
from .errors import EnvironmentProblem, InputError, own

MOST_SHOWN = 20  # parameters whose types a message has
_compiled: Any = weakref.WeakKeyDictionary()  # dispatcher -> {(types, compute capability): (PTX, entry)}


def numba_cuda() -> Any:
    """numba.cuda of the numba-cuda package. Raises EnvironmentProblem if it is missing or cannot work."""
    try:
        import numba_cuda  # noqa: F401
        from numba import config, cuda
    except ImportError as error:
        raise EnvironmentProblem(
            f"running cuda.jit kernels needs numba-cuda: pip install 'aristos[simt]' ({error})"
        ) from error
    if getattr(config, "ENABLE_CUDASIM", False):
        raise EnvironmentProblem("Numba's CUDA simulator replaces its compiler: unset NUMBA_ENABLE_CUDASIM")
    if not hasattr(np, "row_stack"):
        raise EnvironmentProblem(f"numba-cuda 0.30 needs numpy<2.5, and {np.__version__} is installed")
    return cuda


def part(name: str) -> Any:
    """A module of numba.cuda."""
    numba_cuda()
    return importlib.import_module(f"numba.cuda.{name}")


def type_of(value: Any) -> Any:
    """The Numba type of a kernel argument. A `DeviceArray` has the type that a NumPy array like it has."""
    types, numpy_support = part("types"), part("np.numpy_support")
    typeof, purpose = part("typing.typeof").typeof, part("typing.typeof").Purpose.argument

    kind = getattr(value, "simt_type", None)
    if kind is not None:
        dtype, ndim, layout = kind
        if dtype.fields is not None and ndim == 0:
            return numpy_support.from_dtype(dtype)
        return types.Array(numpy_support.from_dtype(dtype), ndim, layout)
    if isinstance(value, tuple):
        from numba.core import types as core

        if hasattr(value, "_fields"):
            return typeof(value, purpose)
        return core.BaseTuple.from_types([type_of(item) for item in value])
    return typeof(value, purpose)


@dataclass
class Compiled:
    """A compiled kernel: its PTX, the name of its entry, the types that it was declared with, and Numba's library."""

    ptx: str
    entry: str
    types: tuple[Any, ...]
    library: Any


def compiled(kernel: Any, types_: tuple[Any, ...], cc: tuple[Any, ...]) -> Compiled:
    """A kernel compiled for argument types and a compute capability. It is compiled only once."""
    known = _compiled.setdefault(kernel, {})
    if (types_, cc) not in known:
        numba_cuda()
        declared = declared_types(kernel, types_)
        library, texts = offline.compiled(kernel, declared, cc)
        files = [*(getattr(kernel, "targetoptions", {}).get("link") or ()), *library._linking_files]
        ptx = linking.joined([*texts, *(linking.of_file(file, cc) for file in dict.fromkeys(files))])
        with own():
            entry = offline.entry_of(ptx, kernel.py_func.__name__)
        known[types_, cc] = Compiled(ptx, entry, declared, library)
    return known[types_, cc]


def declared_types(kernel: Any, types_: tuple[Any, ...]) -> tuple[Any, ...]:
    """The argument types of a kernel's first declared signature that fits; without signatures the arguments' own types.

    Raises InputError if no declared signature takes the arguments.
    """
    sigs = [sig for sig in (getattr(kernel, "overloads", None) or {}) if len(sig) == len(types_)]
    if types_ in sigs or getattr(kernel, "_can_compile", True):
        return types_
    if len(sigs) == 1:  # like Numba, take a kernel's only signature unchecked
        return sigs[0]
    context = part("descriptor").cuda_target.typing_context
    for sig in sigs:
        if all(context.can_convert(ours, theirs) is not None for ours, theirs in zip(types_, sig)):
            return sig
    raise InputError(f"no signature of {kernel.py_func.__name__} takes {types_}; it has {sigs}")


def flatten(type_: Any, value: Any, found: list[Any]) -> None:
    """Append to `found` the numbers that a kernel gets for an argument, in Numba's order."""
    types = part("types")
    if isinstance(type_, types.Array):
        found += [0, 0, value.size, value.dtype.itemsize, value.ptr, *value.shape, *value.strides]
    elif isinstance(type_, types.Record):
        found.append(value.ptr)
    elif isinstance(type_, types.BaseTuple):
        for inner, item in zip(type_, value):
            flatten(inner, item, found)
    elif isinstance(type_, types.EnumMember):
        flatten(type_.dtype, value.value, found)
    elif isinstance(type_, types.Complex):
        half = np.float32 if type_ == types.complex64 else np.float64
        found += [half(value.real), half(value.imag)]
    elif isinstance(type_, (types.NPDatetime, types.NPTimedelta)):
        found.append(int(np.asarray(value).view(np.int64)))
    elif type_ == types.float16:
        found.append(int(np.float16(value).view(np.uint16)))
    elif isinstance(type_, types.Float):
        found.append(np.float32(value) if type_ == types.float32 else np.float64(value))
    elif isinstance(type_, (types.Integer, types.Boolean, types.CPointer)):
        found.append(int(value))
    else:
        raise InputError(f"a kernel's argument must be a number, an array or a tuple of these, got type {type_}")


def fits(number: Any, param: Any) -> None:
    """Raise InputError unless the number fits the parameter."""
    wanted = f"parameter {param.name} is a .{param.type} of {param.size} byte{'s'[: param.size != 1]}"
    if isinstance(number, (bytes, np.void)):
        return
    if isinstance(number, (float, np.floating)):
        if param.type[0] in "us" or param.size not in (2, 4, 8):
            raise InputError(f"{wanted}, got the float {number}")
        return
    if param.size > 8:
        raise InputError(f"{wanted}: give its {param.size} bytes, as bytes or a structure, got {quoted(number)}")
    bits = 8 * param.size
    integer = isinstance(number, (int, np.integer, np.bool_))
    if integer and bits < 64 and int(number) >= isa.GLOBAL_START:
        raise InputError(f"{wanted}, got an array's address")
    if not integer or not -(1 << (bits - 1)) <= int(number) < 1 << bits:
        raise InputError(f"{wanted}, got {quoted(number)}")


def pack(numbers: list[Any], params: list[Any]) -> bytes:
    """The bytes of a kernel's parameters. numbers: ints, floats, or bytes for structures."""
    if len(numbers) != len(params):
        many = f"{len(params)} parameter{'s'[: len(params) != 1]}"
        types = f" ({', '.join(f'.{param.type}' for param in params[:MOST_SHOWN])})" if params else ""
        raise InputError(f"the kernel has {many}{types}, got {len(numbers)}")
    data = b""
    for number, param in zip(numbers, params):
        fits(number, param)
        data += b"\0" * (-len(data) % param.align)
        if isinstance(number, (bytes, np.void)):
            part = bytes(number) if isinstance(number, bytes) else number.tobytes()
            if len(part) != param.size:
                raise InputError(f"parameter {param.name} has {param.size} bytes, got {len(part)}")
            data += part
        elif isinstance(number, (float, np.floating)) or param.type in ("f32", "f64"):
            if param.size == 2:
                data += np.float16(number).tobytes()
            else:
                data += struct.pack("<f" if param.size == 4 else "<d", float(number))
        else:
            data += (int(number) & ((1 << (8 * param.size)) - 1)).to_bytes(param.size, "little")
    return data
