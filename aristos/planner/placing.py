"""Which devices of a group hold which experts, by rate, memory, and expert loads if they are known.

A device's time in a stage is its load over its rate; placing makes the longest time in a group short. Experts of equal
load all have the same number of copies: the number with which that longest time is shortest. If loads are known,
experts are given to devices from heavy to light, then moved and swapped, and hot experts have copies. A copy has the
load that the layer gives it: of c copies, a source uses the one with number (the source's number mod c).
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from .problem import Problem
from .replicas import held_loads, replicate

MOST_COPIES = 1 << 18  # the most copies of all experts of one group together
TRIES = 24  # at most this many numbers of copies are tried
SMALL = 1e-12  # relative; sums differ in their last bits


def place(problem: Problem, group: list[int]) -> dict[int, list[int]]:
    """{expert: devices, ascending} for one group, which must be able to hold all experts."""
    return {e: [group[d] for d in devices] for e, devices in enumerate(places(problem, np.asarray(group, np.int64)))}


def places(problem: Problem, group: NDArray[np.int64]) -> list[list[int]]:
    """[experts] for each expert, which devices hold it: their indices in `group`, ascending."""
    rate, memory = problem.rate[group], problem.memory[group]
    if problem.loads is None or not problem.loads.any():
        return alike(problem.experts, rate, memory)
    return replicate(problem.loads, rate, memory, sources=len(group))


def alike(experts: int, rate: np.ndarray, memory: np.ndarray) -> list[list[int]]:
    """`places` for experts of equal load.

    Copies are made if there are more devices than experts. Then every device with memory holds an expert or a copy,
    except slow devices that would make the stage longer.
    """
    loads, n = np.ones(experts), len(rate)

    def longest(placement: list[list[int]]) -> float:
        return float((held_loads(placement, loads, n, n) / rate).max())

    best: list[list[int]] = []
    value = np.inf
    for copies in numbers(experts, memory):
        held = shares(copies * experts, rate, np.minimum(memory, experts))
        found: list[list[int]] = [[] for _ in range(experts)]
        for at, d in enumerate(np.repeat(np.arange(n), held)):
            # a device holds at most `experts` copies that follow each other, so no two are of the same expert
            found[at % experts].append(int(d))
        if (mine := longest(found)) < value * (1 - SMALL):
            best, value = found, mine
    idle = np.flatnonzero((np.bincount([d for each in best for d in each], minlength=n) == 0) & (memory > 0))
    if len(idle) and (memory > 0).sum() > experts:
        filled = [list(each) for each in best]
        for at, d in enumerate(idle):
            filled[at % experts].append(int(d))
        filled = [sorted(each) for each in filled]
        best = filled if longest(filled) <= value * (1 + SMALL) else best
    return best


def numbers(experts: int, memory: np.ndarray) -> list[int]:
    """Numbers of copies per expert to try: one, the most that fit, and numbers that divide the number of sources."""
    n = len(memory)
    if (memory > 0).sum() <= experts:
        return [1]
    most = min(int(np.minimum(memory, experts).sum()) // experts, n, max(1, MOST_COPIES // experts))
    even = [c for c in range(2, most + 1) if n % c == 0]
    return sorted({1, most, *even[-TRIES:]})


def shares(experts: int, rate: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """[devices] number of equally heavy experts on each device; no other split has a smaller maximum of held / rate."""
    held = np.zeros(len(rate), np.int64)
    queue = [(1 / r, d) for d, r in enumerate(rate) if memory[d] > 0]
    heapq.heapify(queue)
    for _ in range(experts):
        _, d = heapq.heappop(queue)
        held[d] += 1
        if held[d] < memory[d]:
            heapq.heappush(queue, ((held[d] + 1) / rate[d], d))
    return held
