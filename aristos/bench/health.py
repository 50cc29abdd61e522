"""The resources of a process (memory, open files, threads, mapped shared memory), and whether they grow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# allocators, caches and MPI's pools may cause this much growth in the second half of a run
SLACK = {"memory_mib": 64.0, "files": 8.0, "threads": 4.0, "shared": 2.0}


@dataclass(frozen=True)
class Sample:
    """This process's resources at one time. memory_mib: resident memory. shared: files mapped as shared memory."""

    seconds: float
    memory_mib: float
    files: int
    threads: int
    shared: int


def sample(seconds: float) -> Sample:
    """A sample, `seconds` after the beginning."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    shared = {(device, inode) for _, rights, _, device, inode, *_ in maps if rights.endswith("s")}
    files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return Sample(seconds, resident / (1 << 20), files, threads, len(shared))


def growth(samples: list[Sample]) -> dict[str, float]:
    """How much each figure grows over the second half of the samples, by a fitted line; {} for fewer than 8 samples.

    The first half does not count, because it fills caches.
    """
    late = samples[len(samples) // 2 :]
    if len(samples) < 8:
        return {}
    at = np.array([each.seconds for each in late])
    return {name: _slope(at, np.array([getattr(each, name) for each in late], float)) for name in SLACK}


def leaks(samples: list[Sample]) -> list[str]:
    """A text for each figure that grows by more than SLACK."""
    return [
        f"{name} grew by {grown:.1f} in the second half of the run; at most {SLACK[name]:g} is allowed"
        for name, grown in growth(samples).items()
        if grown > SLACK[name]
    ]


def _slope(at: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The rise of the least-squares line from the first time to the last one."""
    spread = at - at.mean()
    return float(spread @ (values - values.mean()) / (spread @ spread) * (at[-1] - at[0])) if spread.any() else 0.0
