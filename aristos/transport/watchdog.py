"""A thread that ends the job when a blocking MPI call takes too long."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import EnvironmentProblem
from .limits import TIMEOUT

Calling = Callable[[], tuple[int, int, list[int]]]
UNKNOWN = "a rank is missing or in another collective call, or the network fails: see the output of all ranks"
NAMED = 8  # most ranks that a message names
POLL = 0.25  # seconds
ENDED_SECONDS = 1.0  # a wait must last this long before it gives up a rank whose process has ended
ENDED_POLLS = 4  # consecutive polls that must find the process ended: its last words may not have been read yet


class _EndedPeer:
    """Counts the polls of one wait that find an awaited rank ended."""

    def __init__(self) -> None:
        self._wait: object = None
        self._polls = 0

    def confirmed(self, wait: tuple[Any, ...], seconds: float, ended: Callable[[], bool]) -> bool:
        """Poll a wait that has lasted for `seconds`; True once enough polls in a row have found a rank ended."""
        if wait != self._wait:
            self._wait, self._polls = wait, 0
        if seconds >= ENDED_SECONDS:
            self._polls = self._polls + 1 if ended() else 0
        return self._polls >= ENDED_POLLS


class Watchdog:
    """Calls `abort` if a blocking MPI call passes its limit, or soon after an awaited rank of this machine has ended.

    abort: ends the job. Its argument is the message, which says which rank waits for what. name: this rank's name, for
    messages.
    """

    def __init__(self, abort: Callable[[str], object], name: str) -> None:
        self._abort, self._name = abort, name
        self.suspects: Callable[[], str] = str  # returns a clause about ranks that do not run, or an empty text
        self.ended: Callable[[], set[int]] = set  # ranks that are known to have ended
        self._collective, self._put = _EndedPeer(), _EndedPeer()
        self._wait: tuple[str, float, float, str] | None = None  # what is awaited, since when, the limit, its name
        self._calls: tuple[Calling, Callable[[], float]] | None = None
        self._thread: threading.Thread | None = None
        self.problem: Exception | None = None  # the error if the thread cannot be started; then waits call `check`
        self._end = threading.Event()

    @contextlib.contextmanager
    def watch(self, what: str, limit: float, name: str = "") -> Iterator[None]:
        """Bound the MPI calls in the block to `limit` seconds.

        what: what is awaited. name: the parameter that sets the limit, if any. Both are for the message.
        """
        self._start()
        outer, self._wait = self._wait, (what, time.monotonic(), limit, name)
        try:
            yield
        finally:
            self._wait = outer

    def calls(self, calling: Calling | None, limit: Callable[[], float]) -> None:
        """Bound the puts and flushes that compiled code makes. calling: see RmaWindow.calling."""
        self._calls = None if calling is None else (calling, limit)
        if calling is not None:
            self._start()

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="aristos-watchdog", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no more threads: raised on all ranks after they have met
            self.problem = error
        else:
            self._thread, self.problem = thread, None

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(POLL):
            self.check()

    def check(self) -> None:
        """Give up waits that have lasted too long."""
        wait = self._wait
        if wait is not None:
            what, since, limit, name = wait
            seconds = time.monotonic() - since
            if seconds > limit or self._collective.confirmed(wait, seconds, lambda: bool(self.ended())):
                self._report(since, limit, what, UNKNOWN, name)
        if self._calls is not None:
            self._check_calls(*self._calls)

    def _check_calls(self, calling: Calling, limit: Callable[[], float]) -> None:
        try:
            peer, since_ns, others = calling()
        except EnvironmentProblem as failure:
            self._end_job(f"ends: {failure}")
            return
        seconds = time.monotonic() - since_ns * 1e-9
        lost = peer >= 0 and self._put.confirmed((peer, since_ns), seconds, lambda: peer in self.ended())
        if peer < 0 or (seconds <= limit() and not lost):
            return
        what = f"rank {peer} to receive the data of a put (MPI_Put, MPI_Win_flush)"
        if others:
            what += f"; puts to {' and '.join(f'rank {r}' for r in others[:NAMED])} are under way too"
        why = f"rank {peer} is stopped, has ended, or makes no progress in MPI: see the output of rank {peer}"
        self._report(since_ns * 1e-9, limit(), what, why, TIMEOUT)

    def _report(self, since: float, limit: float, what: str, why: str, name: str = "") -> None:
        waited = f"{time.monotonic() - since:.1f} s ({name or 'limit'} {limit:g} s)"
        why += f", or raise {name}=" if name else ""
        known = ""
        with contextlib.suppress(Exception):  # the job ends in any case
            known = self.suspects()
        self._end_job(f"waited {waited} for {what}; {known or why}")

    def _end_job(self, why: str) -> None:
        self._abort(f"aristos: {self._name} {why}; aborting the job")
