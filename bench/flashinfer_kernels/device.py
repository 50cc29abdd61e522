"""Arrays of a CUDA device as FlashInfer's functions take them: DLPack tensors in memory of the CUDA runtime."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

CPU, CUDA = 1, 2  # DLPack's numbers of devices
KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's numbers of types, by NumPy's kind
NARROW = {"bfloat16": 4, "float8_e4m3fn": 10}  # those of ml_dtypes' types
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind


@cache
def runtime() -> Any:
    """The CUDA runtime: that of ptxsim, under `ptxsim run`."""
    return ctypes.CDLL("libcudart.so.13")


class DLTensor(ctypes.Structure):
    """DLPack's structure of that name."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLPack's DLManagedTensor; nothing is freed, since the process ends after one call."""

    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Tensor:
    """A copy of a NumPy array on the device, or with on_host the array itself. written: the device gets the values."""

    def __init__(self, values: np.ndarray, on_host: bool = False, written: bool = True):
        self.values, self.on_host = np.ascontiguousarray(values), on_host
        self.pointer = ctypes.c_void_p(self.values.ctypes.data)
        if on_host:
            return
        self.pointer = ctypes.c_void_p()
        check(runtime().cudaMalloc(ctypes.byref(self.pointer), ctypes.c_size_t(self.values.nbytes)))
        if written:
            self.copy(TO_DEVICE)

    def copy(self, kind: int) -> None:
        """Copy the values between the device and NumPy's array."""
        here, size = ctypes.c_void_p(self.values.ctypes.data), ctypes.c_size_t(self.values.nbytes)
        to, source = (self.pointer, here) if kind == TO_DEVICE else (here, self.pointer)
        check(runtime().cudaMemcpy(to, source, size, kind))

    def read(self) -> np.ndarray:
        """The values as they are now on the device."""
        self.copy(TO_HOST)
        return self.values

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU if self.on_host else CUDA), 0

    def __dlpack__(self, **_: Any) -> Any:
        shape = (ctypes.c_int64 * self.values.ndim)(*self.values.shape)
        strides = (ctypes.c_int64 * self.values.ndim)(*(step // self.values.itemsize for step in self.values.strides))
        dtype = self.values.dtype
        self.kept = Managed(
            DLTensor(
                self.pointer,
                *self.__dlpack_device__(),
                self.values.ndim,
                NARROW[dtype.name] if dtype.name in NARROW else KINDS[dtype.kind],
                8 * self.values.itemsize,
                1,
                shape,
                strides,
                0,
            )
        )
        self.shape_and_strides = shape, strides
        return new_capsule(ctypes.addressof(self.kept), b"dltensor", None)


def check(status: int) -> None:
    """Raise an error if a call of the CUDA runtime failed."""
    if status:
        raise RuntimeError(f"the CUDA runtime returned the status {status}")


def empty(shape: Any, dtype: Any) -> Tensor:
    """An array of the device that nothing has written."""
    return Tensor(np.zeros(shape, dtype), written=False)
