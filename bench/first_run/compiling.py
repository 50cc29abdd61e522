"""Compile the kernels of a GPU that are neither compiled ahead nor in the cache, on all cores, until a given time.

A layer compiles one kernel at a time, under the lock that its ranks share. Here each process compiles a kernel of its
own.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

from .parts import INCOMPLETE

LATE = "not compiled in time"
MOST = 16  # processes; each takes some 300 MB
FIRST = ("layer_bf16", "begin", "fail", "route", "place", "gemm_bf16", "put_rows", "ping_pong")  # needed first


def listed(arch: str) -> dict[str, Any]:
    """Every shipped kernel of an architecture by name, also those that count events. Those in FIRST come first."""
    from aristos.kernels.cuda.catalogue import kernels
    from aristos.substrate.cuda import counted, persistent

    every = (*kernels(arch), *persistent.kernels(arch), *counted.kernels(arch))
    found = {kernel.name: kernel for kernel in every}

    def place(name: str) -> int:
        return next((i for i, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))

    return {name: found[name] for name in sorted(found, key=lambda name: (place(name), name))}


def places(arch: str) -> dict[str, str]:
    """Where each kernel of `listed` is, by name, as `build.place` says."""
    from aristos.kernels.cuda import build

    return {name: build.place(each, arch) for name, each in listed(arch).items()}


def tally(arch: str, found: dict[str, str]) -> str:
    """A line with the number of kernels in each place."""
    return f"{arch}: " + ", ".join(f"{count} kernels {place}" for place, count in Counter(found.values()).items())


def compile_one(name: str, arch: str) -> float:
    """Compile one kernel and keep it; returns the seconds taken."""
    from aristos.kernels.cuda import build

    start = time.monotonic()
    build.compile_and_keep(listed(arch)[name], arch)
    return time.monotonic() - start


def fill(arch: str, end: float) -> int:
    """Compile what is missing, until `end` on the monotonic clock. Prints where kernels are; returns the exit code."""
    from aristos.kernels.cuda import build

    found = places(arch)
    missing = [name for name, place in found.items() if place == build.NOWHERE]
    failed: dict[str, str] = {}
    if missing:
        count = min(len(os.sched_getaffinity(0)), MOST, len(missing))
        pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        left = {pool.submit(compile_one, name, arch): name for name in missing}
        while left and (time_left := end - time.monotonic()) > 0:
            for done in wait(left, time_left, FIRST_COMPLETED).done:
                name, error = left.pop(done), done.exception()
                failed |= {name: (str(error).splitlines() or [repr(error)])[0]} if error is not None else {}
                found[name] = "compiled here" if error is None else "not compiled"
        found |= dict.fromkeys(left.values(), LATE)
        for worker in list(pool._processes.values()):  # they still compile
            worker.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    print(tally(arch, found), flush=True)
    return 4 if failed else INCOMPLETE if LATE in found.values() else 0
