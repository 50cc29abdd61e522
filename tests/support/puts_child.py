"""Runs the probe's child process with a device whose memory is the host's: `python puts_child.py HOW 0`.

HOW is fine: puts work; dies: MPI may not read the memory, like a GPU's for an MPI without CUDA support; waits: MPI
waits for the kernel; elsewhere: other bytes arrive; or refuses: MPI returns an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
import time

import numpy as np

from aristos.kernels.cuda.put_probe import LINE, STEP
from aristos.substrate.cuda import device_puts

LIBC = ctypes.CDLL(None, use_errno=True)


class HostDevice:
    """A device in host memory; its kernel is a thread."""

    def __init__(self, how: str) -> None:
        self.how, self.over = how, threading.Event()

    def allocate(self, nbytes: int) -> int:
        self.memory = mmap.mmap(-1, nbytes)
        self.row = np.frombuffer(self.memory, np.uint64)
        return self.row.ctypes.data

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        self.flags = np.zeros(nbytes, np.uint8)
        return self.flags, self.flags.ctypes.data

    def load(self, kernel: object) -> object:
        return kernel

    def launch(
        self, kernel: object, grid: int, shared: int, row: int, words: int, flags_at: int, limit: int, stream: int
    ) -> None:
        def run() -> None:
            self.row[:] = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(STEP)
            if self.how == "elsewhere":
                self.row[words // 2] += np.uint64(1)
            if self.how == "dies":
                assert LIBC.mprotect(ctypes.c_void_p(row), ctypes.c_size_t(8 * words), 0) == 0
            flags = self.flags.view(np.int64)
            flags[0] = 1
            until = time.monotonic() + limit / 1e9
            while flags[LINE // 8] == 0 and time.monotonic() < until:
                time.sleep(1e-3)
            self.over.set()

        threading.Thread(target=run, daemon=True).start()

    def synchronize(self, stream: int) -> None:
        self.over.wait()

    def current(self) -> contextlib.AbstractContextManager[None]:
        if self.how == "waits":
            self.over.wait()
        if self.how == "refuses":
            raise RuntimeError("MPI_ERR_BUFFER: invalid buffer pointer")
        return contextlib.nullcontext()


if __name__ == "__main__":
    if sys.argv[1] == "waits":
        device_puts.STUCK_SECONDS = 1.0
    device_puts.main(int(sys.argv[2]), lambda ordinal: HostDevice(sys.argv[1]))
