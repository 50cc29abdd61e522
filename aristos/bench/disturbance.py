"""Whether timed calls had their cores, measured by how long threads of this process were ready but had no core.

Linux counts that time for every thread (/proc/self/task/*/schedstat). Without these files the calling thread's
processor time is compared with the wall time, if the thread was switched out against its will (getrusage). A thread
that sleeps loses no time. A thread that polls gives its core to any other thread that wants it, and the time until the
polling thread runs again is counted. The counts do not include time that a hypervisor takes. So calls are also compared
with earlier and later calls of the same row, in ROUNDS rounds whose medians must not differ by more than SPREAD.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH = 0.9  # a share of a core; a call in which a rank had less counts as disturbed
FEW = 0.25  # a share of the calls; if more are disturbed, repeated calls would be disturbed too
MANY = 0.05  # a share of the calls; if more are disturbed, so is the p95, and the table's row is marked
WORKS = 0.25  # a share of the calls' time; a thread that wanted a core for less time is not counted
ROUNDS = 3  # parts of a row's calls, in the order in which they ran
SPREAD = 0.2  # a share of the middle median; a row is marked if its rounds' medians lie farther apart
CORE_SHARE = "share of its core that the rank had in the call"
PAIR_SHARE = "share of its core that each end of the pair had, in the samples that were kept"
SENTENCE = (
    "disturbed: times that may be wrong. Either the named rank had only the named share of its core, because other"
    " processes or ranks ran there, or the medians of early, middle and late calls differ by the named share"
)


class Guard:
    """A watch on calls of one thread, which makes the Guard.

    For each call: `arm`, `begin`, the call itself, `end`. After the last call: `shares`.
    """

    def __init__(self) -> None:
        me = threading.get_native_id()
        self._main = _opened(me)
        tasks = os.listdir("/proc/self/task") if self._main is not None else []
        self._others = [file for task in tasks if int(task) != me and (file := _opened(int(task))) is not None]
        self._seconds: list[float] = []
        self._lost: list[list[float]] = []  # for each call, seconds that each thread lacked a core, the caller first
        self._ran = np.zeros(len(self._others))
        self._before: list[tuple[float, float]] = []
        self._start = (0.0, 0.0)

    def arm(self) -> None:
        """Read the counts of the other threads. Call it before the barrier, because it is slower than `begin`."""
        self._before = [_read(file) for file in self._others]

    def begin(self) -> None:
        """Read the calling thread's counts."""
        self._start = _rusage() if self._main is None else _read(self._main)

    def end(self, seconds: float) -> None:
        """Note a call that took `seconds`, after its `begin`."""
        if self._main is None:
            ran, switched = _rusage()
            lost = max(0.0, seconds - (ran - self._start[0])) if switched > self._start[1] else 0.0
        else:
            lost = _read(self._main)[1] - self._start[1]
        after = [_read(file) for file in self._others]
        self._ran += [b[0] - a[0] + b[1] - a[1] for a, b in zip(self._before, after)]
        self._lost.append([lost, *(b[1] - a[1] for a, b in zip(self._before, after))])
        self._seconds.append(seconds)

    def shares(self) -> NDArray[np.float64]:
        """Return [calls]: the share of a core that one thread had in each call, and end the watch.

        The thread is the one that waited longest for a core, among threads that worked.
        """
        for file in [self._main, *self._others]:
            if file is not None:
                os.close(file)
        seconds = np.array(self._seconds)
        if not len(seconds):
            return seconds
        works = np.concatenate([[True], self._ran > WORKS * seconds.sum()])
        lost = np.array(self._lost)[:, works].max(axis=1)
        return np.clip(1 - lost / np.maximum(seconds, 1e-9), 0.0, 1.0)


def _opened(task: int) -> int | None:
    try:
        return os.open(f"/proc/self/task/{task}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(file: int) -> tuple[float, float]:
    """(seconds that a thread ran, seconds that it was ready without a core); zeros if the thread has ended."""
    with contextlib.suppress(OSError, ValueError):
        ran, lost, _ = os.pread(file, 80, 0).split()
        return int(ran) * 1e-9, int(lost) * 1e-9
    return 0.0, 0.0


def _rusage() -> tuple[float, float]:
    """(processor seconds of this thread, how often it was switched out against its will)."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_utime + used.ru_stime, float(used.ru_nivcsw)


def mark(core: NDArray[np.float64] | None, *times: NDArray[np.float64]) -> dict[str, Any]:
    """The mark of a record: {"disturbed": text}, or {} if few calls lacked a core and the rounds agree.

    core: [world, iterations] share of a core that each rank had, or None. times: [world, iterations] seconds, one array
    for each kind of call in the record.
    """
    if core is not None and core.size and np.mean(core.min(axis=0) < ENOUGH) > MANY:
        mean = core.mean(axis=1)
        return {"disturbed": f"rank {mean.argmin()}: {mean.min():.0%}"}
    apart = max((spread(each) for each in times), default=0.0)
    return {"disturbed": f"rounds: {apart:.0%}"} if apart > SPREAD else {}


def spread(times: NDArray[np.float64]) -> float:
    """(largest - least) / middle of the medians of ROUNDS rounds; 0 if there are fewer calls than rounds.

    times: [world, iterations] seconds, NaN for calls that were not run. The slowest rank counts.
    """
    slowest = times.max(axis=0)
    slowest = slowest[np.isfinite(slowest)]
    if len(slowest) < ROUNDS:
        return 0.0
    medians = [np.median(part) for part in np.array_split(slowest, ROUNDS)]
    return float(np.ptp(medians) / np.median(medians))


def doubtful(times: NDArray[np.float64], core: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows of a table `mark` marks, for pictures. times, core: [..., rank, iteration], NaN for calls not run."""
    found = np.zeros(times.shape[:-2], bool)
    for place in np.ndindex(found.shape):
        ran = np.isfinite(times[place]).all(axis=0)
        found[place] = bool(ran.any() and mark(core[place][:, ran], times[place][:, ran]))
    return found


def mark_pairs(core: NDArray[np.float64], pairs: NDArray[np.bool_]) -> dict[str, Any]:
    """What `mark` returns, for samples that pairs of ranks took.

    core: [origin, target, end] share of a core. pairs: [origin, target] the pairs that count.
    """
    shares = np.where(pairs[..., None] & np.isfinite(core), core, 1.0)
    origin, target, end = np.unravel_index(shares.argmin(), shares.shape)
    least = float(shares[origin, target, end])
    return {"disturbed": f"rank {(origin, target)[end]}: {least:.0%}"} if least < ENOUGH else {}


def crowded(hosts: Sequence[str], masks: Sequence[frozenset[int]]) -> str:
    """A line of text if some host has more ranks than cores that they may use, else an empty text."""
    for host in dict.fromkeys(hosts):
        here = [mask for each, mask in zip(hosts, masks) if each == host]
        cores = len(frozenset().union(*here))
        if len(here) > cores:
            cores_of = f"{cores} core{'s' * (cores > 1)} of {host}"
            return f"more ranks than cores: {len(here)} ranks share {cores_of}, so they often wait for each other"
    return ""
