"""Lets Ctrl-C end calls while the main thread is in the driver, where Python cannot run its signal handler.

A layer's call that waits for a peer would delay Ctrl-C as long as it waits. Python's C code writes the number of each
signal to the process's wakeup fd at once; a thread of this module reads it. If the main thread then runs no Python, the
users of this module end what they have in flight. So the driver call returns, and Python raises KeyboardInterrupt
there. No signal handler is replaced. If the program had set a wakeup fd, as asyncio does, that fd gets every byte too,
and is set again when the last user leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
import weakref
from typing import Any, ClassVar, Protocol

GRACE_SECONDS = 0.3  # time for the main thread to run its handler
POLL_SECONDS = 0.02
NONE = -1  # means that there is no wakeup fd
SEMAPHORE_BYTES = 64  # sizeof(sem_t) is 16 or 32
LIBC = ctypes.CDLL(None)


class User(Protocol):
    """An object whose work in flight can be ended."""

    def interrupt(self) -> None:
        """End what is in flight. A separate thread calls this."""


class Interrupts:
    """The process's wakeup fd, and the thread that reads it as long as there are users."""

    def __init__(self) -> None:
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ends: tuple[socket.socket, socket.socket] | None = None  # the reader's end, and the signal handler's
        self._other = NONE  # the wakeup fd of another library
        self._mark: _Mark | None = None  # the mark of the last Ctrl-C
        os.register_at_fork(after_in_child=self._forget)

    def join(self, user: User) -> None:
        """From now on, let a Ctrl-C that the main thread cannot handle end what `user` has in flight."""
        self._users.add(user)
        self.arm()

    def arm(self) -> None:
        """Set the wakeup fd, which another library may have replaced. Python lets only the main thread do this."""
        if not _is_main():
            return
        if self._ends is None:
            reader, writer = self._ends = socket.socketpair()
            writer.setblocking(False)
            threading.Thread(target=self._run, args=(reader,), name="aristos-interrupts", daemon=True).start()
        mine = self._ends[1].fileno()
        before = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
        if before != mine:
            self._other = before

    def leave(self, user: User) -> None:
        """Remove a user.

        If the last user leaves on the main thread, the old wakeup fd is set again; otherwise a later user sets it.
        """
        self._users.discard(user)
        if not self._users and self._ends is not None and _is_main():
            self._restore(self._ends[1].fileno())
            self._ends[1].close()  # ends the thread that reads
            self._ends = None

    def _restore(self, mine: int) -> None:
        now = signal.set_wakeup_fd(NONE)
        with contextlib.suppress(ValueError, OSError):  # that file may have been closed since
            signal.set_wakeup_fd(self._other if now == mine else now)
        self._other = NONE

    def _forget(self) -> None:
        """Forget the users in a forked child, whose signals are not its parent's."""
        if self._ends is not None and _is_main():
            self._restore(self._ends[1].fileno())
        self._ends = None
        self._users.clear()

    # ------------------------------------------------------------ the thread

    def _run(self, reader: socket.socket) -> None:
        with reader:
            while signals := reader.recv(64):
                self._pass_on(signals)
                for number in set(signals):
                    raises = signal.getsignal(number) is signal.default_int_handler
                    if raises or number == signal.SIGINT:
                        threading.Thread(target=self._follow, args=(raises,), daemon=True).start()

    def _pass_on(self, signals: bytes) -> None:
        if self._other != NONE:
            with contextlib.suppress(OSError):  # the other fd is full, so its reader wakes anyway; or it is closed
                os.write(self._other, signals)

    def _follow(self, raises: bool) -> None:
        """After a SIGINT, end what users have in flight, unless the main thread runs Python again.

        raises: whether the handler is Python's own. If it is not, the program may want to continue. Then only a second
        SIGINT ends the work, and only if the main thread has still run no Python.
        """
        before, mark = self._mark, _Mark()
        self._mark, until = mark, time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            mark.queue()
            if mark.passed():
                return
        if raises or (before is not None and not before.passed()):
            for user in list(self._users):  # each in its own thread, because the driver may block one of them
                threading.Thread(target=user.interrupt, daemon=True).start()


class _Mark:
    """Whether the main thread has run Python since this object was made.

    The main thread calls libc's `sem_post` when it runs its next bytecode. The call happens in C, where no signal can
    raise an exception. The position in the bytecode would not show that Python has run, because a loop that polls
    returns to the same position.
    """

    _kept: ClassVar[list[_Mark]] = []  # kept alive: Python has their addresses even after the asking thread has ended

    def __init__(self) -> None:
        self._semaphore = ctypes.create_string_buffer(SEMAPHORE_BYTES)
        self._queued = False
        LIBC.sem_init(self._semaphore, 0, 0)
        for mark in list(self._kept):
            if mark.passed():
                with contextlib.suppress(ValueError):  # another thread has removed it
                    self._kept.remove(mark)
        self.queue()

    def queue(self) -> None:
        """Ask Python, once, to call `sem_post`. Python's queue may be full at first. Only one thread calls this."""
        if not self._queued:
            post = ctypes.cast(LIBC.sem_post, ctypes.c_void_p)
            self._kept.append(self)
            at = ctypes.cast(self._semaphore, ctypes.c_void_p)
            self._queued = ctypes.pythonapi.Py_AddPendingCall(post, at) == 0
            if not self._queued:
                self._kept.remove(self)

    def passed(self) -> bool:
        """Whether the semaphore was posted. Any thread may ask, because the semaphore is not decremented."""
        value = ctypes.c_int()
        LIBC.sem_getvalue(self._semaphore, ctypes.byref(value))
        return value.value > 0


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


PROCESS = Interrupts()
