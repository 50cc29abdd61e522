"""Keeps the main thread in a C call, as the CUDA driver may. Python's signal handlers cannot run meanwhile."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None)
CONTENDED = 2  # glibc's value of a mutex that a thread waits for


class Blocked:
    """`enter` waits in C until another thread calls `end`."""

    def __init__(self) -> None:
        self._mutex = ctypes.create_string_buffer(256)
        LIBC.pthread_mutex_init(self._mutex, None)
        LIBC.pthread_mutex_lock(self._mutex)

    def enter(self) -> None:
        LIBC.pthread_mutex_lock(self._mutex)

    @property
    def entered(self) -> bool:
        """Whether a thread waits in C now."""
        return ctypes.c_int.from_buffer(self._mutex).value == CONTENDED

    def end(self) -> None:
        LIBC.pthread_mutex_unlock(self._mutex)


def blocked(body: Callable[[], object]) -> None:
    """Run `body` on another thread while this thread waits in C."""
    wait = Blocked()

    def run() -> None:
        while not wait.entered:
            time.sleep(0.001)
        try:
            body()
        finally:
            wait.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait.enter()
    thread.join()
