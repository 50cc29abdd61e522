"""Live bars, one for each rank: how long its last calls took. `python -m aristos.bench --watch`.

Ranks send their times to rank 0 between timed calls, at most once in SEND_PERIOD and never two messages at a time. Rank
0 draws between timed calls too, so that no thread takes a core from what is measured. Where nothing can be drawn, rank
0 prints a line now and then.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections import defaultdict, deque
from typing import Any

import numpy as np

from ..host import launch_environment

SEND_PERIOD = 0.02  # seconds between two messages of a rank
PERIOD = 0.25  # seconds between two pictures
LINES_PERIOD = 5.0  # seconds between two lines where nothing can be drawn
LAST = 16  # a rank's bar shows the median of this number of its last calls
MOST = 24  # the most bars; if there are more ranks, the slowest ranks get them
WIDTH = 40  # characters of the longest bar
BESIDE = 24  # characters of a line that are not its bar
EIGHTHS, FULL = " ▏▎▍▌▋▊▉", "█"


class Watch:
    """The bars of a job. Every rank has one. comm: a communicator that nothing else uses, or None for one process."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._rank: int = comm.Get_rank() if comm is not None else 0
        self._world: int = comm.Get_size() if comm is not None else 1
        self._sent: Any = None  # the message on its way
        self._buffer = np.zeros(2)  # the key of the call's name, seconds
        self._next = 0.0
        self._headline = self._name = ""
        self._seconds: defaultdict[float, list[deque[float]]] = defaultdict(self._none)  # by the name's key, then rank
        self._live: Any = None

    def _none(self) -> list[deque[float]]:
        return [deque(maxlen=LAST) for _ in range(self._world)]

    def begin(self, suite: str) -> None:
        """Start the picture of a suite, on rank 0."""
        self.headline(suite)
        if launch_environment.passed_to_terminal():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, force_terminal=True)
            self._live = Live(console=console, transient=True, auto_refresh=False)
            self._live.start()

    def headline(self, text: str) -> None:
        """Set the words above the bars, and forget all calls so far."""
        self._headline = text
        self._seconds.clear()

    def end(self) -> None:
        """Remove the picture."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, name: str, seconds: float) -> None:
        """Record one call of this rank, and draw if it is time to. Not collective; call it outside timed code."""
        now = time.monotonic()
        if self._rank == 0:
            self._receive()
            self._name = name
            self._seconds[key(name)][0].append(seconds)
            if now >= self._next:
                self._next = now + (PERIOD if self._live is not None else LINES_PERIOD)
                self._show()
        elif now >= self._next and (self._sent is None or self._sent.Test()):
            self._next = now + SEND_PERIOD
            self._buffer[:] = key(name), seconds
            self._sent = self._comm.Isend(self._buffer, dest=0)

    def _receive(self) -> None:
        """Receive what has arrived."""
        if self._comm is None:
            return
        from mpi4py import MPI

        status, message = MPI.Status(), np.zeros(2)
        while self._comm.Iprobe(MPI.ANY_SOURCE, status=status):
            source = status.Get_source()
            self._comm.Recv(message, source=source)
            self._seconds[float(message[0])][source].append(float(message[1]))

    def _show(self) -> None:
        medians = [float(np.median(each)) if each else 0.0 for each in self._seconds[key(self._name)]]
        title = f"{self._headline}, {self._name}"
        if self._live is not None:
            from rich.text import Text

            console = self._live.console
            lines = "\n".join([title, *bars(medians, min(WIDTH, console.width - BESIDE))])
            self._live.update(Text(encodable(lines, console.encoding)), refresh=True)
        elif known := [each for each in medians if each]:
            late = max(range(self._world), key=medians.__getitem__)
            text = f"median of {len(known)} ranks {1e3 * np.median(known):.3f} ms"
            text += f", slowest rank {late} {1e3 * medians[late]:.3f} ms"
            print(f"# {title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Receive the last messages and free the communicator. Collective."""
        if self._comm is None:
            return
        while self._sent is not None and not self._sent.Test():
            time.sleep(0.001)
        arrived = self._comm.Ibarrier()
        while not arrived.Test():
            if self._rank == 0:
                self._receive()
            time.sleep(0.001)
        if self._rank == 0:
            self._receive()
        self._comm.Free()


def key(name: str) -> float:
    """A number that stands for a call's name in a message."""
    return float(zlib.crc32(name.encode()))


def encodable(text: str, encoding: str) -> str:
    """The text with bars of `#` if a terminal of this encoding has no block characters."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(dict.fromkeys(map(ord, EIGHTHS[1:]), " ") | {ord(FULL): "#"})
    return text


def bars(medians: list[float], width: int = WIDTH) -> list[str]:
    """A line for each rank: its number, a bar and milliseconds.

    medians: [ranks] seconds; 0 for a rank whose times have not arrived. width: characters of the longest bar.
    """
    width = max(width, 1)
    longest = max(medians) or 1.0
    chosen = sorted(sorted(range(len(medians)), key=lambda rank: -medians[rank])[:MOST])
    lines = []
    for rank in chosen:
        whole, part = divmod(round(8 * width * medians[rank] / longest), 8)
        bar = FULL * whole + EIGHTHS[part] * (part > 0)
        lines.append(f"rank {rank:<5d}{bar:<{width}} {1e3 * medians[rank]:10.3f} ms")
    if len(medians) > MOST:
        lines.append(f"the {MOST} slowest of {len(medians)} ranks")
    return lines
