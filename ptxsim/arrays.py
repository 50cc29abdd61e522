"""Arrays in the machine's memory, with the interface of NumPy's and of Numba-CUDA's device arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import actors, isa, kernels
from . import state as s
from .address_space import Allocation
from .errors import InputError
from .runner import Runner


class DeviceArray:
    """An array in a device's memory, or in mapped host memory (device -1). Kernels of every device may use it.

    shape, dtype, strides, size, ndim, nbytes, reshape, ravel, view and T mean the same as in NumPy's arrays, alloc_size
    and split the same as in Numba-CUDA's. ptr: the array's address on the machine.
    """

    def __init__(
        self,
        machine: Runner,
        allocation: Allocation,
        offset: int,
        shape: tuple[int, ...],
        dtype: Any,
        strides: tuple[int, ...],
    ):
        self.machine, self.allocation, self.offset = machine, allocation, offset
        self.shape, self.dtype, self.strides = shape, np.dtype(dtype), strides

    @property
    def ptr(self) -> int:
        """The address at which kernels find the array."""
        return isa.GLOBAL_START + self.allocation.start + self.offset

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def alloc_size(self) -> int:
        """Bytes of all elements, under the name that Numba-CUDA uses."""
        return self.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def simt_type(self) -> tuple[Any, ...]:
        """(dtype, ndim, layout) of the array as a kernel argument."""
        flags = self._view().flags
        return self.dtype, self.ndim, "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"

    @property
    def _numba_type_(self) -> Any:
        """The array's Numba type, for kernels launched as k[grid, block](...)."""
        return kernels.type_of(self)

    @property
    def __cuda_array_interface__(self) -> dict[Any, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ptr, False),
            "strides": self.strides,
            "version": 3,
            "descr": self.dtype.descr,
        }

    def _view(self) -> np.ndarray:
        if self.allocation.freed:
            raise InputError(f"the array {self.allocation.name} was freed")
        data = self.machine.memory.bytes_of(self.allocation)
        return np.ndarray(self.shape, self.dtype, data, self.offset, self.strides)

    def copy_to_host(self, ary: np.ndarray | None = None, stream: Any = 0) -> np.ndarray:
        """Run the queued launches of the array's device, then copy the array to a new NumPy array or to `ary`.

        Queued launches of other devices run only if one of these launches waits for them. If the array lies in host
        memory, the queued launches of all devices run.
        """
        self._finish()
        if ary is None:
            return self._view().copy()
        ary[...] = self._view().reshape(ary.shape)
        return ary

    def copy_to_device(self, ary: Any, stream: Any = 0) -> None:
        """Run the queued launches as `copy_to_host` does, then overwrite the array with the values of `ary`."""
        self._finish()
        if isinstance(ary, DeviceArray):
            ary = ary._view()
        self._view()[...] = np.asarray(ary).reshape(self.shape)
        self._written(...)

    def _finish(self) -> None:
        device = self.allocation.device
        self.machine.finish(device if device >= 0 else None)

    def free(self) -> None:
        """Free the memory. The checker reports kernels that touch it later."""
        with self.machine.lock:
            self.machine.memory.free(self.allocation)

    def _written(self, key: Any) -> None:
        """Mark the elements that an index selects as initialised, for the checker."""
        if self.machine.check:
            init = self.machine.memory.init[self.allocation.start : self.allocation.start + self.allocation.size]
            size = self.dtype.itemsize
            np.ndarray(self.shape, f"V{size}", init, self.offset, self.strides)[key] = np.void(b"\1" * size)

    def _with(self, view: np.ndarray) -> DeviceArray:
        base = self._view()
        offset = self.offset + view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return DeviceArray(self.machine, self.allocation, offset, view.shape, view.dtype, view.strides)

    def __getitem__(self, key: Any) -> Any:
        self._finish()
        found = self._view()[key]
        if isinstance(found, np.ndarray):
            return self._with(found)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._finish()
        if isinstance(value, DeviceArray):
            value = value.copy_to_host()
        self._view()[key] = value
        self._written(key)

    def reshape(self, *shape: Any, order: str = "C") -> DeviceArray:
        """A view with another shape."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return self._with(self._view().reshape(wanted, order=order))  # type: ignore[call-overload]

    def ravel(self, order: str = "C") -> DeviceArray:
        """A view with one dimension."""
        return self._with(self._view().ravel(order))  # type: ignore[arg-type]

    def view(self, dtype: Any) -> DeviceArray:
        """A view of the same bytes with another dtype."""
        return self._with(self._view().view(dtype))

    @property
    def T(self) -> DeviceArray:
        """The transpose, a view."""
        return self._with(self._view().T)

    def split(self, section: int, stream: Any = 0) -> list[DeviceArray]:
        """The array cut into views of `section` elements each. The last view may be shorter."""
        return [self[at : at + section] for at in range(0, self.size, section)]

    def load(self, index: Any, order: str = "acquire", scope: str = "sys") -> Any:
        """Read one element as the actor whose turn it is (see Machine.actor).

        order: weak, relaxed, acquire or release. scope: cta, gpu or sys.
        """
        bits = self._access(index, order, scope, False, 0)
        return np.array([bits], np.uint64).view(np.uint8)[: self.dtype.itemsize].view(self.dtype)[0]

    def store(self, index: Any, value: Any, order: str = "release", scope: str = "sys") -> None:
        """Set one element as the actor whose turn it is. order, scope: see `load`."""
        raw = np.array([value], self.dtype).tobytes()
        self._access(index, order, scope, True, int.from_bytes(raw, "little"))

    def _access(self, index: Any, order: str, scope: str, write: bool, bits: int) -> int:
        actors.check_order(self.machine, order, scope)
        old, races = actors.access(self.machine, *self._element(index), order, scope, write, bits)
        if races:
            self.machine.host_race(f"{self.allocation.name or 'array'}[{index}]", write)
        return old

    def _element(self, index: Any) -> tuple[int, int, int]:
        """(offset in the machine's memory, bytes, address of the checker's cell) of one element."""
        view = self._view()
        item = view[index if isinstance(index, tuple) else (index,)]
        if np.ndim(item) != 0 or view.dtype.itemsize not in (1, 2, 4, 8):
            raise InputError(f"an actor reads and writes single numbers, got index {index!r} of dtype {view.dtype}")
        flat = np.ravel_multi_index(np.atleast_1d(index) % np.array(view.shape), view.shape)
        at = np.unravel_index(flat, view.shape)
        offset = self.offset + sum(int(i) * step for i, step in zip(at, self.strides))
        row = self.machine.memory.table[self.allocation.number]
        cell = self.machine.x[s.SHADOW] + (row[s.A_SHADOW] + offset // row[s.A_GRANULE]) * s.CELL_WORDS * 8
        return self.allocation.start + offset, view.dtype.itemsize, int(cell)


def granule_of(dtype: np.dtype) -> int:
    """Bytes of the smallest part of an element that a thread may access alone: 1, 2, 4 or 8."""
    if dtype.subdtype is not None:
        return granule_of(dtype.subdtype[0])
    if dtype.fields is not None:
        return min((granule_of(np.dtype(f[0])) for f in dtype.fields.values()), default=1)
    size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return size if size in (1, 2, 4, 8) else 1
