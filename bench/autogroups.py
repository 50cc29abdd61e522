"""Measures whether Linux shares a core fairly between sessions: `python bench/autogroups.py [--seconds 5]`.

The program takes half a minute. On each of two cores one session has a process that only yields and one that naps;
another session has a busy process. With autogroups (sched(7)) the scheduler treats each session as a group, so the busy
session should get half of both cores. If it gets almost nothing, ranks that share cores can stop for minutes:
docs/decisions.md, 21.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from aristos.doctor.cores import autogroups


def yields() -> NoReturn:
    while True:
        os.sched_yield()


def naps(seconds: float) -> NoReturn:
    while True:
        time.sleep(seconds)


def busy() -> NoReturn:
    while True:
        pass


def session(cores: list[int], *loops: Callable[[], object]) -> int:
    """Start a session with an endless process for each of `loops` on each core; returns the pid of its leader."""
    leader = os.fork()
    if leader == 0:
        os.setsid()
        for core in cores:
            for loop in loops:
                if os.fork() == 0:
                    os.sched_setaffinity(0, {core})
                    loop()
        signal.pause()
    return leader


def seconds_of(leader: int) -> float:
    """Processor time of the session's processes, in seconds."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def share(cores: list[int], nap: float, seconds: float) -> float:
    """The share of the cores' time that a busy session gets beside one that yields, and naps for `nap` seconds."""
    leaders = [session(cores, yields, lambda: naps(nap)), session(cores, busy)]
    try:
        time.sleep(seconds)
        return seconds_of(leaders[1]) / seconds / len(cores)
    finally:
        for leader in leaders:
            os.killpg(leader, signal.SIGKILL)
            os.waitpid(leader, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement (%(default)s)")
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    print(f"Linux {os.uname().release}, autogroups {'on' if autogroups() else 'off'}, cores {cores}")
    print("| nap | share of the busy session |\n| ---: | ---: |")
    for nap in (50e-6, 1e-3, 5e-3, 20e-3):
        print(f"| {nap * 1e3:g} ms | {share(cores, nap, asked.seconds):.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
