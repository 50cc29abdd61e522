"""Threads that run the steps of a call. They are parked between calls, and leave a call before it returns."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

from ...engine import codes, words


class Workers:
    """Workers 1..n-1 of a rank. The thread that makes the call is worker 0."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: list[queue.SimpleQueue[Any]] = []
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._out = 0
        self._gathering = threading.Lock()
        for number in range(1, count):
            inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(number, inbox), name=f"aristos-worker-{number}", daemon=True
            )
            try:
                thread.start()
            except BaseException:
                self.close()
                raise
            self._jobs.append(inbox)
            self._threads.append(thread)

    def _serve(self, number: int, inbox: queue.SimpleQueue[Any]) -> None:
        while (item := inbox.get()) is not None:
            work, job, state = item
            try:
                while work(job, state, number) == codes.PAUSED:
                    pass
                self._done.put(None)
            except BaseException as error:
                state[words.FAILED] = codes.CAUSE_ERROR
                self._done.put(error)

    def release(self, work: Any, job: np.ndarray, state: np.ndarray) -> None:
        """Let as many parked workers run this call as the job says. work: the compiled loop of a worker."""
        self._out = min(int(job[words.WORKERS]), self.count) - 1
        for inbox in self._jobs[: self._out]:
            inbox.put((work, job, state))

    def gather(self) -> None:
        """Wait until the released workers have left the call, which has ended or failed. Raises their first error."""
        first: BaseException | None = None
        with self._gathering:  # two threads may wait here, if a started call and its user's own thread both fail
            while self._out:
                error = self._done.get()
                self._out -= 1
                first = first or error
        if first is not None:
            raise first

    def close(self) -> None:
        """End the threads."""
        for inbox in self._jobs:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._jobs, self._threads = [], []
