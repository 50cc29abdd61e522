"""Arrays in the machine's memory, as a user sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from . import isa, kernels
from .address_space import Allocation

if TYPE_CHECKING:
    from .machine import Machine


class DeviceArray:
    """An array in a device's memory, or in mapped host memory (device -1); kernels of every device may use it.

    shape, dtype, strides, size, ndim, nbytes: as NumPy's. ptr: its address on the machine.
    """

    def __init__(self, machine: Machine, allocation: Allocation, offset: int, shape: tuple[int, ...], dtype: Any,
                 strides: tuple[int, ...]):  # fmt: skip
        self.machine, self.allocation, self.offset = machine, allocation, offset
        self.shape, self.dtype, self.strides = shape, np.dtype(dtype), strides

    @property
    def ptr(self) -> int:
        return isa.GLOBAL_START + self.allocation.start + self.offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def alloc_size(self) -> int:
        return self.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def simt_type(self) -> tuple:
        """(dtype, ndim, layout) of the array as a kernel argument."""
        flags = self._view().flags
        return self.dtype, self.ndim, "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"

    @property
    def _numba_type_(self) -> Any:
        """What Numba takes the array for, where it is an argument of a kernel launched the ordinary way."""
        return kernels.type_of(self)

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.ptr, False), "strides": self.strides,
                "version": 3, "descr": self.dtype.descr}  # fmt: skip

    def _view(self) -> np.ndarray:
        if self.allocation.freed:
            raise InputError(f"the array {self.allocation.name} was freed")
        data = self.machine.memory.bytes_of(self.allocation)
        return np.ndarray(self.shape, self.dtype, data, self.offset, self.strides)

    def copy_to_host(self, ary: np.ndarray | None = None, stream: Any = 0) -> np.ndarray:
        """What the array holds, in a new NumPy array or in `ary`; what was launched runs first."""
        self.machine.finish()
        if ary is None:
            return self._view().copy()
        ary[...] = self._view().reshape(ary.shape)
        return ary

    def copy_to_device(self, ary: Any, stream: Any = 0) -> None:
        """Overwrite the array; what was launched runs first."""
        self.machine.finish()
        if isinstance(ary, DeviceArray):
            ary = ary._view()
        self._view()[...] = np.asarray(ary).reshape(self.shape)
        self._written(...)

    def free(self) -> None:
        """Give the memory back; a kernel that touches it later is reported."""
        with self.machine.lock:
            self.machine.memory.free(self.allocation)

    def _written(self, key: Any) -> None:
        """Tell the checker that the elements of a key have been written."""
        if self.machine.check:
            init = self.machine.memory.init[self.allocation.start : self.allocation.start + self.allocation.size]
            size = self.dtype.itemsize
            np.ndarray(self.shape, f"V{size}", init, self.offset, self.strides)[key] = np.void(b"\1" * size)

    def _with(self, view: np.ndarray) -> DeviceArray:
        base = self._view()
        offset = self.offset + view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return DeviceArray(self.machine, self.allocation, offset, view.shape, view.dtype, view.strides)

    def __getitem__(self, key: Any) -> Any:
        self.machine.finish()
        found = self._view()[key]
        if isinstance(found, np.ndarray):
            return self._with(found)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.machine.finish()
        if isinstance(value, DeviceArray):
            value = value.copy_to_host()
        self._view()[key] = value
        self._written(key)

    def reshape(self, *shape: Any, order: str = "C") -> DeviceArray:
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return self._with(self._view().reshape(wanted, order=order))  # type: ignore[call-overload]

    def ravel(self, order: str = "C") -> DeviceArray:
        return self._with(self._view().ravel(order))  # type: ignore[arg-type]

    def view(self, dtype: Any) -> DeviceArray:
        return self._with(self._view().view(dtype))

    @property
    def T(self) -> DeviceArray:
        return self._with(self._view().T)

    def split(self, section: int, stream: Any = 0) -> list[DeviceArray]:
        return [self[at : at + section] for at in range(0, self.size, section)]

    def load(self, index: Any, order: str = "acquire", scope: str = "sys") -> Any:
        """One element, as the running actor's thread sees it (see Machine.actor)."""
        return self.machine.actor_load(self, index, order, scope)

    def store(self, index: Any, value: Any, order: str = "release", scope: str = "sys") -> None:
        """Set one element, as the running actor's thread."""
        self.machine.actor_store(self, index, value, order, scope)
