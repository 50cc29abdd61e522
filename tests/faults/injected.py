"""Faults that a rank makes itself: each is a method of `Injected`, called within an operation after a drawn time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

if TYPE_CHECKING:
    from program import Program

FAULT_AT, CONTINUE_AT, MADE = 2, 3, 5  # places of words in a rank's row of the page (program.py)


def _ahead() -> int:
    """By how many ns this process's CLOCK_MONOTONIC is ahead of the driver's; see `machine.started_earlier`."""
    before, seconds = map(int, os.environ.get("ARISTOS_FAULT_CLOCK", "0 0").split())
    ahead = 10**9 * seconds
    return ahead if time.monotonic_ns() - before >= ahead else 0


AHEAD = _ahead()


def now() -> int:
    """ns on the driver's CLOCK_MONOTONIC."""
    return time.monotonic_ns() - AHEAD


def doubled(n: int) -> int:
    return 2 * n


def mean(n: int) -> float:
    return np.arange(n).mean()


def addresses(runtime: Any, peer: int, word: str) -> list[int]:
    """Addresses where this rank reads a word from a peer: one in the peer's line, or one in each of its records.

    There are none of a word that such a peer does not write: only remote peers write links, coded words and bells, and
    only local ones marks. Of a coded word, the address is that of its value, without the complement. A bell is a byte
    of the word at the address.
    """
    from aristos.engine import layout, words

    job, st = runtime._blank_job(), runtime.state
    if word.startswith("coded") or word == "bell":
        if not st[words.remote(job, peer)]:
            return []
        if word == "bell":
            return [int(st[words.BELLS]) + peer // 8 * 8] if st[words.BELLS] else []
        number = getattr(words, word.removeprefix("coded_"))
        region = (words.region_from if number < words.ANNOUNCED else words.stream_from)(job, peer)
        return [int(words.coded_value(words.coded_word(st[region], number)))]
    if word.isupper():
        return [int(layout.word_from(job, st, peer, getattr(words, word)))]
    if word == "index":
        return [int(layout.index_from(job, st, peer, i)) for i in range(job[words.RING_ROWS])]
    if word in ("link", "mark"):
        number, at = (words.RING_ROWS, layout.link_from) if word == "link" else (words.WORLD, layout.mark_from)
        written = bool(st[words.remote(job, peer)]) == (word == "link")
        return [int(at(job, st, peer, i)) for i in range(job[number]) if written]
    find = getattr(words, word)
    if word == "announced_count":
        return [int(find(layout.announcement_from(job, st, peer, epoch), 0)) for epoch in range(2)]
    if word.startswith("announced"):
        return [int(find(layout.announcement_from(job, st, peer, epoch))) for epoch in range(2)]
    record = layout.record_from if word.startswith("record") else layout.return_record_from
    return [int(find(record(job, st, peer, tile))) for tile in range(job[words.RING_RECORDS])]


class FaultInUserCode(Exception):
    """An error like one that a user's program may raise."""


class Injected:
    """The faults of one rank."""

    def __init__(self, program: Program, faults: list[dict[str, Any]]) -> None:
        self.program, self.faults = program, faults

    def begin(self, number: int) -> None:
        """Make the faults of the operation that begins: now in this thread, or after a drawn time in another one."""
        for fault in self.faults:
            if fault["operation"] != number or fault.get("driver"):
                continue
            work = getattr(self, fault["kind"])
            if fault.get("at_once"):
                self._make(work, fault)
            else:
                threading.Thread(target=self._later, args=(work, fault), daemon=True).start()

    def _later(self, work: Any, fault: dict[str, Any]) -> None:
        time.sleep(fault["after"])
        self._make(work, fault)

    def _make(self, work: Any, fault: dict[str, Any]) -> None:
        self.program.row[FAULT_AT] = now()
        self.program.row[MADE] += 1
        work(fault)

    def over(self, number: int) -> None:
        """Undo the faults of an operation that has ended on this rank."""
        for fault in self.faults:
            if fault["operation"] == number:
                getattr(self, f"{fault['kind']}_over", lambda fault: None)(fault)

    # ------------------------------------------------------------ signals

    def kill(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def pause(self, fault: dict[str, Any]) -> None:
        """Stop this process, which the driver continues later."""
        self.program.row[CONTINUE_AT] = now() + int(1e9 * fault["seconds"])
        self.stop(fault)

    def interrupt(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    # ------------------------------------------------------------ errors

    def error(self, fault: dict[str, Any]) -> None:
        raise FaultInUserCode("of the user")

    def worker(self, fault: dict[str, Any]) -> None:
        """Let the next worker thread that is released die of an error."""
        from aristos.substrate.cpu.workers import Workers

        real = Workers.release

        def broken(job: Any, state: Any, number: int) -> int:
            raise FaultInUserCode("of a worker")

        Workers.release = lambda self, work, job, state: real(self, broken, job, state)  # type: ignore[method-assign]

    # ------------------------------------------------------------ words

    def word(self, fault: dict[str, Any]) -> None:
        """Overwrite a word that the next rank that writes it has written for this one, again and again for a while.

        All places of a word in records or tables are overwritten at once. They lie equally far apart.
        """
        rank, size = self.program.rank, self.program.comm.size
        # An index has a row's place in its lower half: -1 is no place.
        value = fault["value"] if fault["word"] != "index" else -1
        until = time.monotonic() + fault["seconds"]
        peers = [(rank + n) % size for n in range(1, size)]
        found = [addresses(self.program.moe.runtime, peer, fault["word"]) for peer in peers]
        places = next(filter(None, found), [])
        cells = np.zeros(0, np.int64)
        if places:
            step = (places[1] - places[0]) // 8 if len(places) > 1 else 1
            assert places == list(range(places[0], places[-1] + 1, 8 * step))
            whole = (ctypes.c_int64 * ((places[-1] - places[0]) // 8 + 1)).from_address(places[0])
            cells = np.frombuffer(whole, np.int64)[::step]

        def damage() -> None:
            while True:
                cells[:] = value
                if time.monotonic() > until:
                    return

        if not fault["at_once"]:
            damage()
            return
        threading.Thread(target=damage, daemon=True).start()

    # ------------------------------------------------------------ the wire

    def _wire(self) -> Any:
        return self.program.moe.runtime._memory._remote._words

    def progress(self, fault: dict[str, Any]) -> None:
        """End the progress thread."""
        from aristos.primitives import wire

        self._wire()[wire.STOP] = 1

    def put(self, fault: dict[str, Any]) -> None:
        """Make each put of this operation slow."""
        from aristos.primitives import wire

        words = self._wire()
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 9)
        self.usual = int(words[wire.PUT])
        real = kind(self.usual)

        def late(*arguments: int) -> int:
            time.sleep(fault["seconds"])
            return int(real(*arguments))

        self.late = kind(late)
        words[wire.PUT] = ctypes.cast(self.late, ctypes.c_void_p).value

    def put_over(self, fault: dict[str, Any]) -> None:
        from aristos.primitives import wire

        self._wire()[wire.PUT] = self.usual

    # ------------------------------------------------------------ memory and disks

    @staticmethod
    def _fill(path: str, left: int) -> None:
        """Fill a file system until `left` bytes are free."""
        with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        free = os.statvfs(path)
        with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
            file.write(bytes(free.f_bavail * free.f_frsize))
        os.truncate(path, max(0, os.path.getsize(path) - left))

    def shm_full(self, fault: dict[str, Any]) -> None:
        self._fill("/dev/shm/filler", fault["left"])

    def shm_full_over(self, fault: dict[str, Any]) -> None:
        os.unlink("/dev/shm/filler")

    def disk_full(self, fault: dict[str, Any]) -> None:
        self._fill("disk/filler", fault["left"])

    def disk_full_over(self, fault: dict[str, Any]) -> None:
        os.unlink("disk/filler")

    def cache_full(self, fault: dict[str, Any]) -> None:
        """Compile functions, some or all of which cannot be stored."""
        shutil.rmtree("disk/cache", ignore_errors=True)
        self.fill_cache(lambda: self.disk_full(fault))

    def cache_full_over(self, fault: dict[str, Any]) -> None:
        self.disk_full_over(fault)
        self.fill_cache(lambda: None)  # a partly stored file must do no harm

    def fill_cache(self, before: Any) -> None:
        """Compile into a cache on the job's disk.

        before: called between the choice of the cache and the compilation.
        """
        import numba

        from kernel_cache import compile as compiling

        usual = compiling.cache_folder()
        os.environ["ARISTOS_CACHE"] = "disk/cache"
        compiling.cache_folder.cache_clear()
        compiling.cache_folder()
        before()
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            for plain in (doubled, mean):
                function = compiling.jit(plain)
                compiling.warm_up([(function, (numba.int64,))])
                assert function(9) == plain(9)
        os.environ["ARISTOS_CACHE"] = str(usual.parent)
        compiling.cache_folder.cache_clear()
        compiling.cache_folder()

    def clock(self, fault: dict[str, Any]) -> None:
        """Set the clock that Python reads."""
        seconds = fault["seconds"]
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + seconds
        time.time_ns = lambda: real_ns() + 10**9 * seconds

    def disk_read_only(self, fault: dict[str, Any]) -> None:
        machine.read_only(Path("disk"), True)

    def disk_read_only_over(self, fault: dict[str, Any]) -> None:
        machine.read_only(Path("disk"), False)

    def memory(self, fault: dict[str, Any]) -> None:
        """Limit this process's memory to `left` bytes more than it has."""
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + fault["left"], resource.RLIM_INFINITY))

    def memory_over(self, fault: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
