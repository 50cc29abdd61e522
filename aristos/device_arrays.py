"""Arrays on a card: addresses of what a user holds, by `__cuda_array_interface__` or DLPack, without CuPy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError

KINDS = {"float32": "f32", "tf32": "tf32", "bfloat16": "bf16", "float16": "f16"}  # of the arithmetic, by cfg.dtype
LINE = 16  # bytes: what rows must start on
CUDA = (2, 13)  # DLPack's numbers of devices: CUDA, CUDA managed memory
CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's numbers of types; 4 is bfloat16


@dataclass(frozen=True)
class DeviceRows:
    """An array on a card. dtype: 'float32', 'bfloat16', 'int64' and so on; strides: in bytes. stream: its own, or 0."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    stream: int
    owner: Any


def on_device(name: str, value: Any) -> DeviceRows | None:
    """What lies on a card; None for arrays of the host. Raises InputError for what cannot be read."""
    if isinstance(value, np.ndarray):
        return None
    if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in CUDA:
        return _dlpack(name, value)
    if hasattr(value, "__cuda_array_interface__"):
        return _interface(value)
    return None


def _interface(value: Any) -> DeviceRows:
    told = value.__cuda_array_interface__
    dtype = np.dtype(told["typestr"])
    shape = tuple(int(n) for n in told["shape"])
    strides = told.get("strides") or contiguous(shape, dtype.itemsize)
    # bfloat16 has no typestr of its own: who means it passes its bits
    kind = "bfloat16" if dtype.itemsize == 2 and dtype.kind in "uV" else dtype.name
    stream = told.get("stream")
    return DeviceRows(int(told["data"][0]), shape, tuple(strides), kind, 0 if stream in (None, 1) else stream, value)


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
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def _dlpack(name: str, value: Any) -> DeviceRows:
    capsule = value.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    dtype = "bfloat16" if tensor.code == 4 and tensor.bits == 16 else None
    for letter, code in CODES.items():
        if tensor.code == code and tensor.bits in (8, 16, 32, 64) and not (letter == "f" and tensor.bits == 8):
            dtype = np.dtype(f"{letter}{tensor.bits // 8}").name
    if dtype is None or tensor.lanes != 1:
        raise InputError(f"{name}: a DLPack type with code {tensor.code} and {tensor.bits} bits is not known here")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    size = tensor.bits // 8
    strides = contiguous(shape, size)
    if tensor.strides:
        strides = tuple(size * tensor.strides[i] for i in range(tensor.ndim))
    # the capsule is not consumed: what it shares lives as long as the capsule and the array
    return DeviceRows((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, 0, (value, capsule))


def rows(name: str, array: DeviceRows, width: int, dtype: str) -> tuple[tuple[int, ...], int]:
    """(leading shape, bytes between rows) of [..., width]; raises InputError unless rows can be read in place."""
    wanted = "float32" if dtype == "tf32" else dtype
    if array.dtype != wanted:
        raise InputError(f"{name} must have dtype {wanted}, got {array.dtype}: cast it yourself, none is done silently")
    if not array.shape or array.shape[-1] != width:
        raise InputError(f"{name} must have shape [..., {width}], got {list(array.shape)}")
    size = 2 if wanted in ("bfloat16", "float16") else 4
    lead = array.shape[:-1]
    step = array.strides[-2] if len(lead) == 1 and lead[0] > 1 else size * width
    plain = len(lead) == 1 or array.strides == contiguous(array.shape, size) or 0 in lead
    if array.strides[-1] != size or not plain or step % LINE or array.address % LINE or step < size * width:
        raise InputError(
            f"{name} must have rows that follow each other and start on {LINE} bytes, got address"
            f" {array.address:#x} and strides {array.strides}: make a contiguous copy"
        )
    return lead, step


def whole(name: str, array: DeviceRows, shape: tuple[int, ...], dtype: str) -> int:
    """The address of a contiguous array of exactly this shape and dtype; raises InputError."""
    size = np.dtype(dtype).itemsize
    if array.dtype != dtype or array.shape != shape or (array.strides != contiguous(shape, size) and 0 not in shape):
        raise InputError(
            f"{name} must be a contiguous {dtype} array of shape {list(shape)}, got {array.dtype}"
            f" {list(array.shape)} with strides {array.strides}"
        )
    return array.address
