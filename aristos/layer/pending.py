"""A call that runs in the background, and the handle that its caller waits on."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from ..errors import ClosedError, InputError


class PendingCall:
    """A started call. Until `wait`, which may be called once, x and out must not be touched."""

    def __init__(self, done: Any, result: Callable[[float], Any], ended: Callable[[], None]) -> None:
        """done: a queue that gets (seconds, error) when the call ends. ended: called then, before `result`."""
        self._done, self._result, self._ended = done, result, ended
        self._abandoned = False

    def wait(self) -> Any:
        """The call's result, as `MoE.__call__` returns it; raises what the call raised."""
        if self._abandoned:
            raise ClosedError("this layer was closed, and with it the call that start() began")
        if self._done is None:
            raise InputError("wait() was called twice on one started call")
        seconds, error = self._end()
        if error is not None:
            raise error
        return self._result(seconds)

    def abandon(self) -> None:
        """Wait until the call has ended and drop its result: the layer closes."""
        self._end()
        self._abandoned = True

    def _end(self) -> tuple[float, BaseException | None]:
        while True:
            try:
                ended = self._done.get(timeout=0.1)  # the timeout lets Ctrl-C in; wait() can be called again
                break
            except queue.Empty:
                continue
        self._done = None
        self._ended()
        return ended
