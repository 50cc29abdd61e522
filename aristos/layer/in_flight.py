"""Keeps arrays of calls alive until the calls have ended on their streams.

When a user drops an array, its library may give the memory to a later array. If the call runs on the library's current
stream, the later use of the memory is ordered after the call. On another stream, and with JAX, nothing orders the two.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class InFlight:
    """Keeps objects until a stream has ended the work queued so far. device: a `CudaDevice`, or an object like it."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._held: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._events: list[int] = []  # events that can be recorded again

    def keep(self, objects: tuple[Any, ...], stream: int) -> None:
        """Keep objects until the stream has ended all work that is queued on it now."""
        event = self._events.pop() if self._events else self._device.event(timed=False)
        self._device.record(event, stream)
        self._held.append((event, objects))

    def drop_ended(self) -> None:
        """Drop the objects of calls that have ended. Does not wait."""
        while self._held and self._device.passed(self._held[0][0]):
            self._events.append(self._held.popleft()[0])

    def __len__(self) -> int:
        return len(self._held)
