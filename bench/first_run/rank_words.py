"""Under mpirun, writes on the report's page, before the job ends, what each rank waits for.

MPI itself may hang. So the ranks, which share a node, exchange texts by files in the report's folder. A thread of each
rank writes as soon as one rank is about to end the job, or shortly before the report's time (`--minutes`) is over. Rank
0's thread makes the page.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import processes

NOTICE = 8.0  # seconds before the report's time is over
PERIOD = 0.2  # seconds between two looks at the folder
GATHER = 3.0  # seconds that rank 0 waits for the others' words; a GPU's state is copied within 2
SHOWN = 60  # lines of a rank's stderr


class RankWords:
    """The words of this rank, and on rank 0 those of all ranks.

    stem: the start of the names of the report's files. write: called on rank 0 with the part that runs and every rank's
    text.
    """

    def __init__(self, stem: Path, rank: int, ranks: int, write: Callable[[Any, list[str]], None]) -> None:
        self._files = [stem.with_name(f"{stem.name}.rank-{each}") for each in range(ranks)]
        self._asked = stem.with_name(f"{stem.name}.asked")
        self.rank, self._write = rank, write
        self._part: Any = None
        self._said: list[str] = []
        self._has_asked = False
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._files[rank].unlink(missing_ok=True)  # a report that was killed may have left it
        self._asked.unlink(missing_ok=True)

    def start(self, end: float) -> None:
        """Begin to watch.

        All ranks must have made their objects. end: when the report's time is over, on the monotonic clock.
        """
        threading.Thread(target=self._watch, args=(end - NOTICE,), daemon=True, name="rank words").start()

    def stop(self) -> None:
        self._stopped.set()

    @contextlib.contextmanager
    def following(self, part: Any) -> Iterator[None]:
        """Run a part in the `with` block, and keep what it writes to stderr. After an error the part still counts as
        running, since the job ends."""
        self._part, self._said = part, []
        with contextlib.redirect_stderr(_Kept(sys.stderr, self._said)):
            yield
        with self._lock:
            self._part = None

    def ask(self) -> None:
        """Let every rank write, and wait a bounded time for the page.

        Later calls, for example by exit handlers, do nothing.
        """
        if self._part is None or self._has_asked:
            return
        self._has_asked = True
        end = time.monotonic() + 2 * GATHER + PERIOD
        with contextlib.suppress(OSError):
            self._asked.touch()
        while self._asked.exists() and time.monotonic() < end:
            time.sleep(PERIOD / 4)
        for file in (self._files[self.rank], self._asked):  # they are still here if rank 0 has not read them
            file.unlink(missing_ok=True)

    def _watch(self, end: float) -> None:
        while not self._asked.exists() and time.monotonic() < end:
            if self._stopped.wait(PERIOD):
                return
        if self._part is None:
            return
        processes.kept(self._files[self.rank], self._text())
        if self.rank == 0:
            self._gather()

    def _text(self) -> str:
        from aristos.substrate import attach

        said = "".join(self._said).splitlines()[-SHOWN:]
        return "\n".join([*said, *(line for line in attach.standing().splitlines() if line not in said)])

    def _gather(self) -> None:
        end = time.monotonic() + GATHER
        while not all(file.exists() for file in self._files) and time.monotonic() < end:
            time.sleep(PERIOD / 4)
        with self._lock:
            if self._part is not None:
                self._write(self._part, [_read(rank, file) for rank, file in enumerate(self._files)])
        for file in (*self._files, self._asked):
            file.unlink(missing_ok=True)


def _read(rank: int, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return f"rank {rank} wrote nothing within {GATHER:g} s: its process has ended, or hangs in a call"


class _Kept(io.TextIOBase):
    """A stream that also keeps what is written."""

    def __init__(self, stream: Any, texts: list[str]) -> None:
        self._stream, self._texts = stream, texts

    def write(self, text: str) -> int:
        self._texts.append(text)
        self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return int(self._stream.fileno())
