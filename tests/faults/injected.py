"""Faults that a rank makes itself: each is a method of `Injected`, called within an operation after a drawn time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine

if TYPE_CHECKING:
    from program import Program

FAULT_AT, CONTINUE_AT, MADE = 2, 3, 5  # words of the page, see program.py


class FaultInUserCode(Exception):
    """What a user's program may raise."""


class Injected:
    """The faults of one rank."""

    def __init__(self, program: Program, faults: list[dict[str, Any]]) -> None:
        self.program, self.faults = program, faults

    def begin(self, number: int) -> None:
        """Faults of an operation that begins now: in this thread, or in another one after a drawn time."""
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
        self.program.row[FAULT_AT] = time.monotonic_ns()
        self.program.row[MADE] += 1
        work(fault)

    def over(self, number: int) -> None:
        """Take back the faults of an operation that has ended here."""
        for fault in self.faults:
            if fault["operation"] == number:
                getattr(self, f"{fault['kind']}_over", lambda fault: None)(fault)

    # ------------------------------------------------------------ signals

    def kill(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def pause(self, fault: dict[str, Any]) -> None:
        """Stop; the driver continues this process."""
        self.program.row[CONTINUE_AT] = time.monotonic_ns() + int(1e9 * fault["seconds"])
        self.stop(fault)

    def interrupt(self, fault: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    # ------------------------------------------------------------ errors

    def error(self, fault: dict[str, Any]) -> None:
        raise FaultInUserCode("of the user")

    def worker(self, fault: dict[str, Any]) -> None:
        """The next worker thread that is released dies of an error."""
        from aristos.substrate.cpu.workers import Workers

        real = Workers.release

        def broken(job: Any, state: Any, number: int) -> int:
            raise FaultInUserCode("of a worker")

        Workers.release = lambda self, work, job, state: real(self, broken, job, state)  # type: ignore[method-assign]

    # ------------------------------------------------------------ the wire

    def _wire(self) -> Any:
        return self.program.moe.runtime._memory._remote._words

    def progress(self, fault: dict[str, Any]) -> None:
        """The progress thread ends."""
        from aristos.primitives import wire

        self._wire()[wire.STOP] = 1

    def put(self, fault: dict[str, Any]) -> None:
        """Each put of this operation takes a while."""
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
        """Fill a file system but for so many bytes."""
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

    def disk_read_only(self, fault: dict[str, Any]) -> None:
        machine.read_only(Path("disk"), True)

    def disk_read_only_over(self, fault: dict[str, Any]) -> None:
        machine.read_only(Path("disk"), False)

    def memory(self, fault: dict[str, Any]) -> None:
        """No more memory than so many bytes above what this process has."""
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + fault["left"], resource.RLIM_INFINITY))

    def memory_over(self, fault: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
