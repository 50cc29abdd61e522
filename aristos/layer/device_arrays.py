"""Reads a user's arrays in GPU memory by `__cuda_array_interface__` or DLPack. CuPy is not needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..row_types import ROW_TYPES
from .streams import LEGACY

LINE = 16  # bytes that rows are aligned to
CUDA = (2, 13)  # DLPack's numbers of devices: CUDA, CUDA managed memory
CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's numbers of types; 4 is bfloat16


BITS = ("bfloat16", "uint16", "void16")  # types of bfloat16 rows: CuPy and NumPy have no bfloat16 and pass its bits


@dataclass(frozen=True)
class DeviceRows:
    """An array in GPU memory. dtype: the name of the type, such as float32. strides: the strides in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    owner: Any
    read_only: bool = False
    device: int | None = None  # CUDA's number of the array's GPU; None if the array does not say it

    @property
    def end(self) -> int:
        """The address behind the array's last byte."""
        return self.address + _size(self.dtype) + sum((n - 1) * step for n, step in zip(self.shape, self.strides))


def _exports_dlpack(value: Any) -> bool:
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in CUDA


def is_on_device(value: Any) -> bool:
    """Whether an array lies in GPU memory, by the protocols that `on_device` reads."""
    return not isinstance(value, np.ndarray) and (_exports_dlpack(value) or hasattr(value, "__cuda_array_interface__"))


def on_device(name: str, value: Any, stream: int = 0) -> DeviceRows | None:
    """An array in GPU memory; None for host arrays. Raises InputError for an array that cannot be read.

    stream: the call's stream. An exporter of DLPack makes this stream wait for the exporter's own work.
    """
    if not is_on_device(value):
        return None
    return _dlpack(name, value, stream) if _exports_dlpack(value) else _interface(name, value)


def _interface(name: str, value: Any) -> DeviceRows:
    interface = value.__cuda_array_interface__
    try:
        (address, read_only), text = interface["data"], interface["typestr"]
        shape = tuple(int(n) for n in interface["shape"])
        dtype = np.dtype(text)
        strides = tuple(int(n) for n in interface.get("strides") or contiguous(shape, dtype.itemsize))
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"the __cuda_array_interface__ of {name} must have data, shape and a typestr,"
            f" got {interface!r:.200} ({error})"
        ) from error
    stream = interface.get("stream")
    problem = "a mask" if interface.get("mask") is not None else ""
    problem = problem or ("a byte order that is not this machine's" if not dtype.isnative else "")
    problem = problem or (f"{len(strides)} strides for {len(shape)} dimensions" if len(strides) != len(shape) else "")
    problem = problem or ("stream 0, which the interface forbids" if stream == 0 else "")
    if problem:
        raise InputError(f"{name} cannot be read, because it has {problem}: shape {list(shape)}, typestr {text!r}")
    _check_shape(name, shape)
    return DeviceRows(int(address or 0), shape, strides, dtype.name, value, bool(read_only))


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0:
        raise InputError(f"{name} must have no negative size, got shape {list(shape)}")


def overlap(a: DeviceRows, b: DeviceRows) -> bool:
    """Whether the address ranges of two arrays overlap."""
    return 0 not in a.shape and 0 not in b.shape and a.address < b.end and b.address < a.end


def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of a C-contiguous array."""
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class _Tensor(ctypes.Structure):
    """DLTensor of DLPack's dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _dlpack(name: str, value: Any, stream: int) -> DeviceRows:
    try:
        # If the exporter's work is on another stream, the call's stream waits for it. If it is on the same one, there
        # is no wait, so the call can be captured in a graph.
        capsule = value.__dlpack__(stream=stream or LEGACY)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    except (BufferError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the DLPack capsule of {name} cannot be read: {type(error).__name__}: {error}") from error
    dtype = "bfloat16" if tensor.code == 4 and tensor.bits == 16 else None
    for letter, code in CODES.items():
        if tensor.code == code and tensor.bits in (8, 16, 32, 64) and not (letter == "f" and tensor.bits == 8):
            dtype = np.dtype(f"{letter}{tensor.bits // 8}").name
    if dtype is None or tensor.lanes != 1:
        raise InputError(
            f"{name} must have a DLPack type that Aristos knows, got code {tensor.code}, {tensor.bits} bits and"
            f" {tensor.lanes} lanes"
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    _check_shape(name, shape)
    size = tensor.bits // 8
    strides = contiguous(shape, size)
    if tensor.strides:
        strides = tuple(size * tensor.strides[i] for i in range(tensor.ndim))
    # the capsule stays unconsumed, so the memory lives as long as the capsule and the array
    return DeviceRows(
        (tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, (value, capsule), device=tensor.device_id
    )


def _walked(array: DeviceRows, axes: int) -> list[tuple[int, int, int]]:
    """(length, stride, stride in a contiguous array) for each of the first `axes` axes that is longer than 1.

    Exporters may give any stride to an axis of length 1.
    """
    size = 1 if not array.shape else _size(array.dtype)
    triples = zip(array.shape[:axes], array.strides, contiguous(array.shape, size))
    return [each for each in triples if each[0] > 1]


def _size(dtype: str) -> int:
    return 2 if dtype in BITS else np.dtype(dtype).itemsize


def rows(name: str, array: DeviceRows, width: int, dtype: str) -> tuple[tuple[int, ...], int]:
    """(leading shape, bytes between rows) of an array [..., width].

    Raises InputError unless it can be read in place.
    """
    wanted = ROW_TYPES[dtype].stored
    if array.dtype != wanted and not (wanted == "bfloat16" and array.dtype in BITS):
        raise InputError(
            f"{name} must have dtype {wanted}, got {array.dtype}: cast it yourself, arrays are never cast silently"
        )
    if not array.shape or array.shape[-1] != width:
        raise InputError(f"{name} must have shape [..., {width}], got {list(array.shape)}")
    size, lead = _size(array.dtype), array.shape[:-1]
    if 0 in lead:
        return lead, size * width
    walked = _walked(array, len(lead))
    step = walked[0][1] if len(walked) == 1 else size * width
    plain = len(walked) <= 1 or all(stride == packed for _, stride, packed in walked)
    if (
        (width > 1 and array.strides[-1] != size)
        or not plain
        or step % LINE
        or array.address % LINE
        or step < size * width
    ):
        raise InputError(
            f"{name} must have contiguous rows that start at multiples of {LINE} bytes, got address"
            f" {array.address:#x} and strides {array.strides}: make a contiguous copy"
        )
    return lead, step


def whole(name: str, array: DeviceRows, shape: tuple[int, ...], dtype: str) -> int:
    """The address of `array`; raises InputError unless it is contiguous and has this shape and dtype."""
    plain = all(stride == packed for _, stride, packed in _walked(array, len(array.shape))) or 0 in shape
    if array.dtype != dtype or array.shape != shape or not plain:
        raise InputError(
            f"{name} must be a contiguous {dtype} array of shape {list(shape)}, got {array.dtype}"
            f" {list(array.shape)} with strides {array.strides}"
        )
    if array.address % _size(dtype):
        raise InputError(f"{name} must start at a multiple of {_size(dtype)} bytes, got address {array.address:#x}")
    return array.address


def writable(name: str, array: DeviceRows) -> None:
    """Raise InputError for an array that its owner exports as read-only."""
    if array.read_only:
        raise InputError(f"{name} must be writable, got a read-only array")
