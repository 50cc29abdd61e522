"""Which devices of a group hold which experts: by rate and memory, and by expert loads if they are known.

The time of a stage on a device is its load over its rate; placing makes the longest of a group short. Without loads all
experts weigh the same and have one copy: giving the next expert to the device that would end first is optimal. With
loads, experts are given out from heavy to light, then moved and swapped.
"""

from __future__ import annotations

import heapq

import numpy as np

from .problem import Problem
from .replicas import replicate


def place(problem: Problem, group: list[int]) -> dict[int, list[int]]:
    """{expert: devices} for one group, which must be able to hold all experts."""
    rate, memory = problem.rate[group], problem.memory[group]
    if problem.loads is None or not problem.loads.any():
        held = shares(problem.experts, rate, memory)
        owner = np.repeat(np.arange(len(group)), held)
        return {e: [group[d]] for e, d in enumerate(owner)}
    return {e: [group[d] for d in devices] for e, devices in enumerate(replicate(problem.loads, rate, memory))}


def shares(experts: int, rate: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """[devices] how many experts of equal weight each holds; no other split has a smaller maximum of held / rate."""
    held = np.zeros(len(rate), np.int64)
    queue = [(1 / r, d) for d, r in enumerate(rate) if memory[d] > 0]
    heapq.heapify(queue)
    for _ in range(experts):
        _, d = heapq.heappop(queue)
        held[d] += 1
        if held[d] < memory[d]:
            heapq.heappush(queue, ((held[d] + 1) / rate[d], d))
    return held
