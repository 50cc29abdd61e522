"""A user's arrays as NumPy views, without a copy if the memory layout allows. Other objects raise InputError."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError

_address_of, _buffer_of = ctypes.addressof, ctypes.c_char.from_buffer


def view(name: str, value: Any) -> np.ndarray:
    """`value`, a NumPy array or an object with `__array_interface__` or with DLPack on the CPU, as a NumPy array."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must be a plain array, got a masked one: pass {name}.filled(...)")
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__array_interface__"):
        try:
            return np.asarray(value)
        except Exception as error:
            raise InputError(f"the __array_interface__ of {name} cannot be read ({error})") from error
    if hasattr(value, "__dlpack__"):
        try:
            return _bfloat16(value) if "bfloat16" in str(getattr(value, "dtype", "")) else np.from_dlpack(value)
        except Exception as error:
            raise InputError(f"the DLPack array {name} cannot be read on the CPU ({error})") from error
    raise InputError(f"{name} must be an array (NumPy, __array_interface__ or DLPack), got {type(value).__name__}")


def _bfloat16(value: Any) -> np.ndarray:
    """A bfloat16 array of PyTorch or JAX as an array of ml_dtypes, because NumPy's DLPack has no bfloat16."""
    import ml_dtypes

    if str(value.dtype) == "torch.bfloat16":
        return np.from_dlpack(value.view(sys.modules["torch"].int16)).view(ml_dtypes.bfloat16)
    return np.asarray(value)


def address(array: np.ndarray) -> int:
    """The address of an array.

    For a contiguous and writable array this takes a third of the time of `array.ctypes.data`.
    """
    buffer: Any = array.view(np.uint16) if array.dtype.kind == "V" else array  # bfloat16 has no buffer
    try:
        return _address_of(_buffer_of(buffer))
    except (TypeError, ValueError):  # the array is read-only or has steps
        return array.ctypes.data


def wrong_dtype(name: str, got: np.dtype, wanted: Any) -> InputError:
    """The error for an array of the wrong dtype.

    An array of uint16 may hold bits of bfloat16; for such an array the message names the conversion.
    """
    advice = "cast it yourself, arrays are never cast silently"
    if got.name in ("uint16", "void16"):
        cast = "" if "bfloat16" in str(wanted) else f".astype({str(wanted)!r})"
        advice = f"if it holds bits of bfloat16, pass {name}.view(ml_dtypes.bfloat16){cast}"
    return InputError(f"{name} must have dtype {wanted}, got {got}: {advice}")


def is_type(array: np.ndarray, dtype: str) -> bool:
    """Whether an array has the dtype of this name, in this machine's byte order. "bfloat16" means that of ml_dtypes."""
    return _native(array.dtype) == dtype


@lru_cache(64)
def _native(dtype: np.dtype) -> str:
    """The name of a dtype in this machine's byte order, else "".

    The name is cached, because NumPy needs microseconds to make it.
    """
    return dtype.name if dtype.isnative else ""


def rows(name: str, value: Any, width: int, dtype: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """(rows [S, width] of `value` [..., width], the leading shape); copied only if strides or alignment require it."""
    array = view(name, value)
    if not is_type(array, dtype):
        raise wrong_dtype(name, array.dtype, dtype)
    if array.ndim < 1 or array.shape[-1] != width:
        raise InputError(f"{name} must have shape [..., {width}], got {list(array.shape)}")
    lead = array.shape[:-1]
    flat = array if array.ndim == 2 else array.reshape(-1, width)
    if flat.size and (flat.strides[1] != flat.itemsize or not flat.flags.aligned):
        flat = np.array(flat, order="C")
    return flat, lead


def weight(name: str, value: Any, shape: tuple[int, ...], *dtypes: str) -> np.ndarray:
    """A weight array as a NumPy array. It must have this shape, and one of the dtypes; its values are not checked."""
    array = view(name, value)
    if not any(is_type(array, dtype) for dtype in dtypes):
        raise wrong_dtype(name, array.dtype, " or ".join(dtypes))
    if array.shape != shape:
        raise InputError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    return array


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, *inputs: Any, contiguous: bool = True) -> None:
    """Raise unless `out` is an array of this shape and dtype that can be written while the inputs are read."""
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out must be a {dtype} array of shape {list(shape)}, got {got}")
    if (contiguous and not out.flags.c_contiguous) or not out.flags.writeable or not out.flags.aligned:
        raise InputError(f"out must be {'contiguous, ' if contiguous else ''}aligned and writable: pass a new array")
    if any(value is not None and np.may_share_memory(out, value) for value in inputs):
        raise InputError("out must not overlap an input: inputs are read while outputs are written")
