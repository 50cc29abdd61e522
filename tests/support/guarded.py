"""Arrays next to protected pages, so that a read or write beyond such an array ends the process."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from aristos.primitives.buffers import LINE

PAGE = mmap.PAGESIZE
FILL = 0xFF  # every byte beside an array; read as floats, such bytes are NaN
SIDES = ("far", "end", "start")
_libc = ctypes.CDLL(None, use_errno=True)


class Arrays:
    """The arrays of one call.

    side: "end": arrays end where a protected page begins; "start": arrays begin where a protected page ends; "far": the
    same memory without protected pages.
    """

    def __init__(self, side: str) -> None:
        assert side in SIDES
        self.side = side
        self._beside: list[tuple[str, np.ndarray]] = []

    def empty(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32, align: int = 1) -> np.ndarray:
        """An array full of FILL. align: its address is a multiple of this; "end" may then leave a gap, which `check`
        reads.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        inner = max(1, -(-nbytes // PAGE)) * PAGE
        memory = np.frombuffer(mmap.mmap(-1, inner + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        memory[:] = FILL
        if self.side != "far":
            for page in (memory.ctypes.data, memory.ctypes.data + PAGE + inner):
                if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        at = PAGE + ((inner - nbytes) // align * align if self.side == "end" else 0)
        self._beside += [(name, memory[PAGE:at]), (name, memory[at + nbytes : PAGE + inner])]
        return memory[at : at + nbytes].view(dtype).reshape(shape)

    def copy(self, name: str, values: Any, align: int = 1) -> np.ndarray:
        """A copy of an array."""
        values = np.asarray(values)
        made = self.empty(name, values.shape, values.dtype, align)
        made[...] = values
        return made

    def rows(self, name: str, values: Iterable[Any], align: int = 1) -> tuple[int, list[np.ndarray]]:
        """Guarded copies of rows. Returns (address of an array of the rows' addresses, the rows)."""
        return self._listed(name, [self.copy(name, row, align) for row in values])

    def empty_rows(self, name: str, count: int, width: int, dtype: Any = np.float32) -> tuple[int, list[np.ndarray]]:
        """The same for rows full of FILL."""
        return self._listed(name, [self.empty(name, (width,), dtype) for _ in range(count)])

    def _listed(self, name: str, rows: list[np.ndarray]) -> tuple[int, list[np.ndarray]]:
        table = self.copy(f"addresses of {name}", np.array([row.ctypes.data for row in rows], np.int64))
        return table.ctypes.data, rows

    def at(self, name: str, values: Any) -> int:
        """The address of a copy of an array."""
        return int(self.copy(name, values).ctypes.data)

    def space(self, name: str, nbytes: int) -> int:
        """The address of `nbytes` bytes that start on a cache line."""
        return int(self.empty(name, (nbytes,), np.uint8, LINE).ctypes.data)

    def check(self) -> None:
        """Check that no byte beside an array was written."""
        for name, beside in self._beside:
            assert (beside == FILL).all(), f"bytes beside {name} were written"
