"""The best partition of a small problem, by dynamic programming over all partitions.

F* = min over k of kappa B_k + T(k), where B_k is the least time of the longest stage over all partitions into exactly k
groups. With `crossing`, the all-reduce's link depends on the partition. Take the pairs of devices from slow to fast
links, and join the devices of each pair: n - 1 pairs join two components. The slowest crossing pair is one of these,
and all slower pairs are inside groups. Each of these pairs gives a problem of its own, with merged devices.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import subsets
from .cost import allreduce_us, evaluate, slowest_link
from .problem import Problem
from .terms import slowness

MOST = 16  # devices; one more device takes three times the time and twice the memory
MOST_WITH_TIME = 18  # devices, if the deadline is at least SECONDS_WITH_TIME
SECONDS_WITH_TIME = 30.0
SLACK = 1e-9  # relative; added to the incumbent, because sums of floats differ in their last bits


def solve(problem: Problem, objective: str, allreduce: str, incumbent: list[list[int]]) -> list[list[int]]:
    """Groups of an optimal partition. incumbent: any partition; partitions that cannot beat it are skipped."""
    stage = subsets.stages(
        problem.alpha_us,
        problem.beta_us_per_mib,
        problem.rate,
        problem.memory,
        problem.experts,
        problem.layer_cost,
        objective == "work_conserving",
        problem.crossings,
        problem.payload_mib,
    )
    best, best_us = incumbent, evaluate(problem, incumbent, objective, allreduce).objective_us
    for pair, components in variants(problem, allreduce):
        groups, value = _best(problem, stage, pair, components, best_us, allreduce == "crossing")
        if groups is not None and value < best_us:
            best, best_us = groups, value
    return best


def variants(problem: Problem, allreduce: str) -> Iterator[tuple[tuple[int, int] | None, list[int]]]:
    """Problems, one of which contains the best partition: (slowest pair, bit masks of devices that stay together).

    The pair is None for one group of all devices.
    """
    n = problem.n
    single = [1 << i for i in range(n)]
    if allreduce == "any" or n == 1:
        yield slowest_link(problem), single
        return
    yield None, [(1 << n) - 1]
    component = list(range(n))
    for i, j in pairs_from_slow(problem):
        a, b = component[i], component[j]
        if a == b:
            continue
        masks: dict[int, int] = {}
        for device, c in enumerate(component):
            masks[c] = masks.get(c, 0) | 1 << device
        yield (i, j), list(masks.values())
        component = [a if c == b else c for c in component]


def pairs_from_slow(problem: Problem) -> Iterator[tuple[int, int]]:
    """All pairs i < j, the slowest link of the all-reduce first; equal ones are in the order of (i, j)."""
    row, column = np.triu_indices(problem.n, 1)
    key = slowness(problem.alpha_us[row, column], problem.beta_us_per_mib[row, column], problem.gradient_mib)
    for at in np.argsort(-key, kind="stable"):
        yield int(row[at]), int(column[at])


def _best(
    problem: Problem,
    stage: np.ndarray,
    pair: tuple[int, int] | None,
    components: list[int],
    incumbent_us: float,
    apart: bool,
) -> tuple[list[list[int]] | None, float]:
    """The best partition that keeps each component in one group, and its F.

    apart: whether the two devices of the pair must be in different groups."""
    items = len(components)
    devices = np.zeros(1 << items, np.int64)
    for bit, mask in enumerate(components):
        devices[1 << bit : 2 << bit] = devices[: 1 << bit] | mask
    mine = stage[devices]
    if apart and pair is not None:
        both = 1 << pair[0] | 1 << pair[1]
        mine[(devices & both) == both] = np.inf
    most = min(items, int(problem.memory.sum()) // problem.experts)
    reduce_us = np.zeros(most + 1)
    if pair is not None:
        link = problem.alpha_us[pair], problem.beta_us_per_mib[pair]
        reduce_us = np.array([allreduce_us(problem, k, *link) for k in range(most + 1)])
    cap = incumbent_us * (1 + SLACK) / problem.kappa if problem.kappa > 0 else np.inf
    best = subsets.bottlenecks(mine, items, most, cap)
    total = (
        problem.kappa * best[-1] + reduce_us if problem.kappa > 0 else np.where(best[-1] < np.inf, reduce_us, np.inf)
    )
    total[0] = np.inf
    k = int(np.argmin(total))
    if not np.isfinite(total[k]):
        return None, np.inf
    groups = [int(devices[g]) for g in subsets.trace(mine, best, items, k)]
    return sorted([i for i in range(problem.n) if g >> i & 1] for g in groups), float(total[k])
