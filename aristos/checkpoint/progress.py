"""Progress of long loads, on stderr. On a terminal one line is rewritten; other outputs get a new line at intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..host import launch_environment

PATIENCE = 2.0  # seconds of reading before progress is shown
PERIODS = {True: 0.2, False: 10.0}  # seconds between lines; True: on a terminal


class Progress:
    """Counts experts and bytes, over all loads of a checkpoint."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0, 0.0
        self._shown, self._since = -PERIODS[False], 0.0
        self._what, self._experts, self._done = "", 0, 0
        self._width = 0  # columns of the line on the terminal

    @contextmanager
    def load(self, what: str, experts: int) -> Iterator[None]:
        """A block that loads `experts` experts. When it ends or fails, the line on a terminal is cleared."""
        self._what, self._experts, self._done, self._since = what, experts, 0, time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - self._since
            if self._width:
                self._show(f"\r{' ' * self._width}\r")
            self._width = 0

    def step(self, size: int) -> None:
        """Count an expert of `size` bytes as read."""
        self._done += 1
        self._bytes += size
        spent = self._seconds + time.monotonic() - self._since
        terminal = launch_environment.on_terminal(sys.stderr)
        if spent < PATIENCE or spent - self._shown < PERIODS[terminal]:
            return
        self._shown = spent
        read = self._bytes / 1e9
        text = f"{self._what}: {self._done} of {self._experts} experts, {read:.1f} GB at {read / spent:.2f} GB/s"
        self._show(f"\r{text.ljust(self._width)}" if terminal else text + "\n")
        self._width = max(self._width, len(text)) if terminal else 0

    def _show(self, text: str) -> None:
        if sys.stderr is not None:
            print(text, end="", file=sys.stderr, flush=True)
