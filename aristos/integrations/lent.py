"""Arrays that share a tensor's memory for the time of one call. Making one takes a third of the time of `Tensor.numpy`.

A model that decodes calls its layers with tensors at few addresses, so arrays are kept by address. An array does not
keep its tensor alive, and is used only while the tensor lives.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import torch

from .masters import as_numpy

KEPT = 1024  # the most arrays that are kept
DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.int64: np.dtype(np.int64),
}


def lent(tensor: torch.Tensor) -> np.ndarray:
    """An array of the memory of a tensor on the CPU, for a call that ends while the tensor still exists."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None or not tensor.is_contiguous() or not tensor.numel():
        return as_numpy(tensor)
    return _at(tensor.data_ptr(), tensor.shape, dtype)


@lru_cache(KEPT)
def _at(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array of a shape and a dtype at an address."""
    nbytes = dtype.itemsize * int(np.prod(shape))
    memory: Any = (ctypes.c_char * nbytes).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)
