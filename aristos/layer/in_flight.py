"""Arrays of calls that have not ended on their streams: kept alive until they have.

A library may give the memory of an array that its user has dropped to a later array. On the library's current stream
that is ordered after the call; on another stream, or for JAX, nothing orders it.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class InFlight:
    """Keeps objects until what was queued on a stream before them is done. device: a `CudaDevice`, or its like."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._held: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._events: list[int] = []  # recorded before, and free again

    def keep(self, objects: tuple[Any, ...], stream: int) -> None:
        """Keep objects until all work that is in the stream now is done."""
        event = self._events.pop() if self._events else self._device.event(timed=False)
        self._device.record(event, stream)
        self._held.append((event, objects))

    def drop_ended(self) -> None:
        """Drop what calls that have ended read and wrote. Waits for nothing."""
        while self._held and self._device.passed(self._held[0][0]):
            self._events.append(self._held.popleft()[0])

    def __len__(self) -> int:
        return len(self._held)
