"""Progress of long loads, on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

PATIENCE = 2.0  # seconds of reading before anything is shown
PERIODS = {True: 0.2, False: 10.0}  # seconds between lines: on a terminal, elsewhere


class Progress:
    """Counts experts and bytes over all loads of a checkpoint."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0, 0.0
        self._shown, self._since = -PERIODS[False], 0.0

    def begin(self, what: str, experts: int) -> None:
        """A load of so many experts begins."""
        self._what, self._experts, self._done, self._since = what, experts, 0, time.monotonic()

    def step(self, size: int) -> None:
        """One expert of `size` bytes was read."""
        self._done += 1
        self._bytes += size
        spent = self._seconds + time.monotonic() - self._since
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if sys.stderr is None or spent < PATIENCE or spent - self._shown < PERIODS[terminal]:
            return
        self._shown = spent
        read = self._bytes / 1e9
        text = f"{self._what}: {self._done} of {self._experts} experts, {read:.1f} GB at {read / spent:.2f} GB/s"
        print(f"\r{text}  " if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The load has ended."""
        self._seconds += time.monotonic() - self._since
