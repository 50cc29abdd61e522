"""The machine's memory: one buffer for all devices and the host, allocations with gaps between, and checker cells."""

from __future__ import annotations

import bisect
import collections
import contextlib
import ctypes
import math
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import isa
from . import state as s
from .errors import InputError, MemoryProblem

PAGE = 1 << s.PAGE_SHIFT
GAP = 2 * PAGE  # the fewest bytes between allocations, which no access may touch
MOST_BYTES = 1 << 36
LEAST_BYTES = 1 << 30
CELL_BYTES = s.CELL_WORDS * 8
SHADOW_BYTES = MOST_BYTES // 8 * 3 * CELL_BYTES  # space for the cells of 4-byte items, also wide ones (wide.py)
WIDE = 16  # the most bytes of a wide cell
BELOW = 1 << 20  # for an address at most so many bytes below the memory, reports name the nearest array
QUARANTINE_BYTES = 1 << 28  # freed memory that is not reused yet, so that accesses to it are reported
LARGE_BYTES = 1 << 28  # for more bytes of cells than this, an allocation checks that the computer has enough memory
MOST_MADE = 1 << 24  # at most so many bytes of an array, of its cells and so on get their pages when the array is made
POPULATE_WRITE = 23  # Linux' MADV_POPULATE_WRITE, for which Python has no name
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass
class Allocation:
    """A part of the machine's memory that was allocated.

    start: offset in the machine's memory. size, itemsize: bytes. dtype, shape: those of the array, for reports.
    """

    number: int
    start: int
    size: int
    device: int  # -1 for host memory, which all devices map
    name: str
    freed: bool = False
    dtype: Any = None
    shape: tuple[int, ...] = ()
    itemsize: int = 1


class Reserved:
    """Reserved address space.

    bytes: [size] uint8 of zeros, which take no memory until they are touched. If the system refuses `size`,
    there are fewer bytes.

    The space never moves, so the host may hold pointers into it (mapped and managed arrays). at: the address at which
    the space should begin; if the system refuses it, the space is elsewhere.
    """

    advise: Callable[[int, int, int], None]

    def __init__(self, size: int, at: int | None = None):
        if at is not None and self.placed(size, at):
            return
        while True:
            try:
                self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
                break
            except OSError as error:
                size //= 2
                if size < LEAST_BYTES:
                    raise MemoryProblem(
                        f"the system refuses {LEAST_BYTES} bytes of address space for the machine's memory ({error}): "
                        "raise the limit (ulimit -v)"
                    ) from error
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.advise = self.map.madvise

    def placed(self, size: int, at: int) -> bool:
        """Reserve the space, or part of it, from an address on, for as long as the process lives. False if refused."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        while size >= LEAST_BYTES:
            found = libc.mmap(at, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
            if found == at:
                self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at))
                self.advise = partial(advised, libc, at)
                return True
            if found not in (None, ctypes.c_void_p(-1).value):
                libc.munmap(found, size)
            size //= 2
        return False

    def clear(self, start: int, end: int) -> None:
        """Set bytes to zero. Whole pages are returned to the system."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            self.bytes[start:end] = 0
            return
        self.bytes[start:first] = 0
        self.bytes[last:end] = 0
        self.advise(mmap.MADV_DONTNEED, first, last - first)

    def expect(self, start: int, end: int) -> None:
        """Make the pages of bytes that will be read and then written. This only saves time.

        Such a page would cost two page faults, for the read and for the write. Pages of more than MOST_MADE bytes are
        left alone, because some may never be touched.
        """
        if end - start <= MOST_MADE:
            first, last = start // mmap.PAGESIZE * mmap.PAGESIZE, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # an old system, or not Linux
                self.advise(POPULATE_WRITE, first, last - first)


class FreeRuns:
    """The free numbers of a range, as runs of consecutive numbers. `take` uses the lowest run that is long enough."""

    def __init__(self, start: int, end: int):
        self.free = [(start, end)]

    def take(self, length: int) -> int:
        """Take `length` consecutive numbers. Returns the first, or -1 if no free run is long enough."""
        for number, (start, end) in enumerate(self.free):
            if end - start >= length:
                self.free[number : number + 1] = [(start + length, end)] if end - start > length else []
                return start
        return -1

    def take_at(self, start: int, length: int) -> None:
        """Take the consecutive numbers from `start` on, which must be free."""
        at = bisect.bisect(self.free, (start, math.inf)) - 1
        first, end = self.free[at]
        self.free[at : at + 1] = [run for run in ((first, start), (start + length, end)) if run[0] < run[1]]

    def apart(self, length: int, count: int, distance: int) -> int:
        """The lowest number from which `count` runs of `length` numbers, `distance` apart, are all free; -1 if none."""

        def free(start: int) -> bool:
            at = bisect.bisect(self.free, (start, math.inf)) - 1
            return at >= 0 and start + length <= self.free[at][1]

        starts = sorted({start - distance * number for start, _ in self.free for number in range(count)})
        return next((one for one in starts if all(free(one + distance * number) for number in range(count))), -1)

    def give(self, start: int, length: int) -> None:
        """Make `length` numbers from `start` on free again."""
        at = bisect.bisect(self.free, (start, 0))
        end = start + length
        if at < len(self.free) and self.free[at][0] == end:
            end = self.free.pop(at)[1]
        if at and self.free[at - 1][1] == start:
            at -= 1
            start = self.free.pop(at)[0]
        self.free.insert(at, (start, end))


def advised(libc: Any, at: int, option: int, start: int, length: int) -> None:
    """Give the system advice about bytes of the space that begins at an address."""
    libc.madvise(at + start, length, option)


def span(size: int) -> int:
    """Bytes of an allocation, including the gap after it."""
    return -(-(max(size, 1) + GAP) // GAP) * GAP


def cells_for(size: int, granule: int) -> tuple[int, int]:
    """The cells of an allocation of `size` bytes: (one for each item, with those of wide cells, the most wide ones)."""
    return -(-size // WIDE) * WIDE // granule + 1, -(-size // (2 * granule)) + 1


def available() -> int:
    """Bytes of the computer's memory that are available, or of its whole memory if the system does not report this."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Memory:
    """The memory of a machine, and the tables that describe the memory.

    data: [bytes] uint8. init: for each byte 0 if it was never written, 1 if it was, 2 if a copy under way will write
    it. pages: for each 256 bytes the number of their allocation. shadow: the cells of the checker.
    """

    def __init__(self, x: np.ndarray, checked: bool, at: int | None = None):
        self.x, self.checked = x, checked
        self.allocations: dict[int, Allocation] = {}
        self.numbers: list[int] = []  # numbers of released allocations, to be reused
        self.table = np.zeros((64, s.A_FIELDS), np.int64)
        self.whole = Reserved(MOST_BYTES, at)
        self.data = self.whole.bytes
        self.pages = Reserved(max(len(self.data) // PAGE * 4, LEAST_BYTES)).bytes.view(np.uint32)
        self.known = Reserved(len(self.data)) if checked else None
        self.init = self.known.bytes if self.known else np.zeros(8, np.uint8)
        self.cells = Reserved(SHADOW_BYTES) if checked else None
        self.shadow = self.cells.bytes if self.cells else np.zeros(8, np.uint8)
        self.runs = FreeRuns(GAP, len(self.data) // GAP * GAP)
        self.cell_runs = FreeRuns(0, len(self.shadow) // CELL_BYTES)
        self.quarantine: collections.deque[Allocation] = collections.deque()
        self.quarantined = 0  # bytes
        self.publish()

    def publish(self) -> None:
        """Write the addresses of the tables into x."""
        x = self.x
        x[s.MEMORY], x[s.MEMORY_TOP] = self.data.ctypes.data, len(self.data)
        x[s.INIT], x[s.PAGES] = self.init.ctypes.data, self.pages.ctypes.data
        x[s.ALLOCS], x[s.SHADOW] = self.table.ctypes.data, self.shadow.ctypes.data

    def allocate(
        self, size: int, device: int, granule: int, name: str, initialised: bool, at: int | None = None
    ) -> Allocation:
        """Allocate `size` bytes; granule: bytes of the smallest item, 1, 2, 4 or 8. Raises MemoryProblem.

        initialised: whether the bytes count as written. at: their offset in the machine's memory, which must be free
        there; None: anywhere.
        """
        narrow, wide = cells_for(size, granule) if self.checked else (0, 0)
        cells = narrow + wide
        if narrow * CELL_BYTES > LARGE_BYTES and narrow * CELL_BYTES > available():
            raise MemoryProblem(
                f"the checker needs {CELL_BYTES} bytes for each item of an array: {narrow * CELL_BYTES} bytes for this"
                f" array of {size} bytes, but {available()} are free. Use check=False, smaller arrays, or free() some"
            )
        start = self.runs.take(span(size)) if at is None else at
        if start < 0:
            raise MemoryProblem(f"an array of {size} bytes does not fit the machine's memory of {len(self.data)} bytes")
        shadow = self.cell_runs.take(cells) if cells else 0
        if shadow < 0:
            if at is None:
                self.runs.give(start, span(size))
            raise MemoryProblem(f"the checker's cells for an array of {size} bytes do not fit; use check=False")
        if at is not None:
            self.runs.take_at(at, span(size))
        self.whole.expect(start, start + size)
        if self.cells is not None and self.known is not None:
            self.known.expect(start, start + size)
            self.cells.expect(shadow * CELL_BYTES, (shadow + narrow) * CELL_BYTES)
            first = shadow + narrow
            self.cells.expect(first * CELL_BYTES, (first + size // WIDE + 1) * CELL_BYTES)
        number = self.numbers.pop() if self.numbers else len(self.allocations) + 1
        if number == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self.table[number] = [start, size, s.LIVE_MEMORY, granule, shadow, s.UNDECIDED, shadow + narrow]
        self.pages[start // PAGE : -(-(start + max(size, 1)) // PAGE)] = number
        if initialised and self.checked:
            self.init[start : start + size] = 1
        allocation = self.allocations[number] = Allocation(number, start, size, device, name)
        self.publish()
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Free an allocation. Its memory is reused later. Raises InputError if it was freed before."""
        if allocation.freed:
            raise InputError(f"{allocation.name or 'the array'} was freed before")
        allocation.freed = True
        self.table[allocation.number, s.A_STATE] = s.FREED
        self.quarantine.append(allocation)
        self.quarantined += span(allocation.size)
        while self.quarantined > QUARANTINE_BYTES and len(self.quarantine) > 1:
            self.release(self.quarantine.popleft())

    def release(self, allocation: Allocation) -> None:
        """Make freed memory available again."""
        start, size, number = allocation.start, allocation.size, allocation.number
        self.quarantined -= span(size)
        self.whole.clear(start, start + size)
        self.pages[start // PAGE : -(-(start + max(size, 1)) // PAGE)] = 0
        if self.known is not None and self.cells is not None:
            self.known.clear(start, start + size)
            cells, shadow = sum(cells_for(size, int(self.table[number, s.A_GRANULE]))), self.table[number, s.A_SHADOW]
            self.cells.clear(int(shadow) * CELL_BYTES, int(shadow + cells) * CELL_BYTES)
            self.cell_runs.give(int(shadow), int(cells))
        self.runs.give(start, span(size))
        del self.allocations[number]
        self.numbers.append(number)

    def bytes_of(self, allocation: Allocation) -> np.ndarray:
        """[size] uint8: a view of the allocation's bytes."""
        return self.data[allocation.start : allocation.start + allocation.size]

    def at(self, address: int) -> Allocation | None:
        """The allocation that holds an address, or else the nearest allocation. Either may be a freed one.

        Returns None if there is no allocation, or if the address lies neither in the machine's memory nor close below.
        """
        place = address - isa.GLOBAL_START
        if not -BELOW <= place < len(self.data):
            return None
        number = int(self.pages[place // PAGE]) if place >= 0 else 0
        if number:
            return self.allocations[number]
        return min(
            self.allocations.values(), key=lambda a: max(a.start - place, place - (a.start + a.size)), default=None
        )
