"""The machine's memory: one buffer for all devices and the host, allocations with gaps between them, their shadows."""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, MemoryProblem
from . import isa
from . import state as s

PAGE = 1 << s.PAGE_SHIFT
GAP = 2 * PAGE  # bytes between allocations at least, which no access may touch
FIRST_BYTES = 1 << 24
MOST_BYTES = 1 << 36
LEAST_BYTES = 1 << 30
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass
class Allocation:
    number: int
    start: int
    size: int
    device: int  # -1: the host's, mapped by all
    name: str
    freed: bool = False
    dtype: Any = None
    shape: tuple[int, ...] = ()
    itemsize: int = 1


def reserved() -> np.ndarray:
    """[bytes] uint8 of zeros that take no memory until they are touched; as many as the system gives, to MOST_BYTES.

    The place never moves, so the host may hold pointers into it (mapped and managed arrays).
    """
    size = MOST_BYTES
    while True:
        try:
            return np.frombuffer(
                mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE), np.uint8
            )
        except OSError as error:
            size //= 2
            if size < LEAST_BYTES:
                raise MemoryProblem(
                    f"the system gives no {LEAST_BYTES} bytes of address space for the machine's memory ({error}); "
                    "raise the limit (ulimit -v)"
                ) from error


class Memory:
    """data: [bytes] uint8; init: is each byte written; pages: which allocation each 256 bytes belong to."""

    def __init__(self, x: np.ndarray, checked: bool):
        self.x, self.checked = x, checked
        self.allocations: list[Allocation] = [Allocation(0, 0, 0, -1, "")]
        self.table = np.zeros((64, s.A_FIELDS), np.int64)
        self.data = reserved()
        self.covered = FIRST_BYTES  # bytes that init and pages have room for
        self.init = np.zeros(FIRST_BYTES if checked else 8, np.uint8)
        self.pages = np.zeros(FIRST_BYTES // PAGE, np.uint32)
        self.cells = 0
        self.shadow = np.zeros(1 << 16, np.int64)
        self.top = GAP
        self.publish()

    def publish(self) -> None:
        x = self.x
        x[s.MEMORY], x[s.MEMORY_TOP] = self.data.ctypes.data, self.covered
        x[s.INIT], x[s.PAGES] = self.init.ctypes.data, self.pages.ctypes.data
        x[s.ALLOCS], x[s.SHADOW] = self.table.ctypes.data, self.shadow.ctypes.data

    def allocate(self, size: int, device: int, granule: int, name: str, initialised: bool) -> Allocation:
        """Room for `size` bytes; granule: bytes of the smallest item, 1, 2, 4 or 8."""
        start = self.top
        self.top = -(-(start + max(size, 1) + GAP) // GAP) * GAP
        if self.top > len(self.data):
            self.top = start
            raise MemoryProblem(f"an array of {size} bytes does not fit the machine's {len(self.data)}")
        if self.top > self.covered:
            self.grow(min(max(2 * self.covered, self.top), len(self.data)))
        number = len(self.allocations)
        if number == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        cells = -(-size // granule) + 1
        if self.checked and (self.cells + cells) * s.CELL_WORDS > len(self.shadow):
            words = max(2 * len(self.shadow), (self.cells + cells) * s.CELL_WORDS)
            try:
                bigger = np.zeros(words, np.int64)
            except MemoryError as error:
                self.top, wanted = start, self.top
                raise MemoryProblem(
                    f"checking {wanted} bytes of arrays takes {words * 8} bytes of memory; use check=False"
                ) from error
            bigger[: self.cells * s.CELL_WORDS] = self.shadow[: self.cells * s.CELL_WORDS]
            self.shadow = bigger
        self.table[number] = [start, size, s.LIVE_MEMORY, device, granule, self.cells, 0, 0]
        self.cells += cells if self.checked else 0
        self.pages[start // PAGE : -(-(start + max(size, 1)) // PAGE)] = number
        if initialised and self.checked:
            self.init[start : start + size] = 1
        allocation = Allocation(number, start, size, device, name)
        self.allocations.append(allocation)
        self.publish()
        return allocation

    def grow(self, size: int) -> None:
        self.covered = size
        for name, length in (("init", size if self.checked else 8), ("pages", -(-size // PAGE))):
            old = getattr(self, name)
            if length > len(old):
                new = np.zeros(length, old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)

    def free(self, allocation: Allocation) -> None:
        if allocation.freed:
            raise InputError(f"{allocation.name or 'the array'} was freed before")
        allocation.freed = True
        self.table[allocation.number, s.A_STATE] = s.FREED

    def bytes_of(self, allocation: Allocation) -> np.ndarray:
        """[size] uint8: the allocation's bytes, not a copy."""
        return self.data[allocation.start : allocation.start + allocation.size]

    def at(self, address: int) -> Allocation | None:
        """The allocation that an address lies in or nearest behind, freed ones too."""
        place = address - isa.GLOBAL_START
        if not 0 <= place < self.covered:
            return None
        number = int(self.pages[place // PAGE])
        if number:
            return self.allocations[number]
        before = [a for a in self.allocations[1:] if a.start <= place]
        return max(before, key=lambda a: a.start) if before else None
