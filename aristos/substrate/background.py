"""The thread on which `MoE.start` runs its calls, so that `start` returns at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Background:
    """One thread that runs calls in order, and keeps the result or error of each."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aristos-background", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            try:
                done.put((call(), None))
            except BaseException as error:
                done.put((None, error))

    def submit(self, call: Callable[[], Any]) -> queue.SimpleQueue[Any]:
        """Run `call` on the thread. The returned queue gets (result, None) or (None, error)."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((call, done))
        return done

    def close(self) -> None:
        """End the thread."""
        self._calls.put(None)
        self._thread.join()
