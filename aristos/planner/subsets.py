"""Dynamic programming over all subsets of devices, compiled: what makes small problems exact.

Its functions call nothing outside this file, so that Numba's cache, which sees this file's hash, is never stale.
"""

from __future__ import annotations

import numpy as np

from ..primitives.compile import jit

INFINITE = np.inf


@jit
def stages(alpha, beta, rate, memory, experts, cost_of_pi, grows, crossings, payload):
    """[2**n] pi + max C of every set of devices in us, infinite where it cannot hold all experts.

    alpha, beta: [n, n]. rate: [n]. memory: [n] int64. cost_of_pi: layer_cost. grows: whether pi grows with the set.
    """
    n = len(rate)
    found = np.full(1 << n, INFINITE)
    members = np.empty(n, np.int64)
    for mask in range(1, 1 << n):
        size, total, room = 0, 0.0, 0
        for i in range(n):
            if mask >> i & 1:
                members[size] = i
                size += 1
                total += rate[i]
                room += memory[i]
        if room < experts:
            continue
        share = payload / size
        longest = 0.0
        for a in range(size):
            near, wide = 0.0, 0.0
            for b in range(size):
                near += alpha[members[a], members[b]]
                wide += beta[members[a], members[b]]
            longest = max(longest, near + wide * share)
        found[mask] = (size if grows else 1) * cost_of_pi / total + crossings * longest
    return found


@jit
def bottlenecks(stage, items, most, cap):
    """[2**items, most + 1] the least longest stage of a partition of each set of items into exactly k groups.

    stage: [2**items] of every set. Sets with a stage above cap are never used.
    """
    best = np.full((1 << items, most + 1), INFINITE)
    best[0, 0] = 0.0
    for whole in range(1, 1 << items):
        low = whole & -whole
        rest = whole ^ low
        sub = rest
        while True:
            group = sub | low
            mine = stage[group]
            if mine <= cap:
                left = whole ^ group
                for k in range(1, most + 1):
                    longest = max(mine, best[left, k - 1])
                    best[whole, k] = min(best[whole, k], longest)
            if sub == 0:
                break
            sub = (sub - 1) & rest
    return best


@jit
def trace(stage, best, items, k):
    """[k] the groups, as sets, of a partition of all items that reaches best[-1, k]."""
    groups = np.zeros(k, np.int64)
    whole = (1 << items) - 1
    for left_groups in range(k, 0, -1):
        low = whole & -whole
        rest = whole ^ low
        sub = rest
        while True:
            group = sub | low
            if max(stage[group], best[whole ^ group, left_groups - 1]) <= best[whole, left_groups]:
                groups[left_groups - 1] = group
                whole ^= group
                break
            if sub == 0:
                break
            sub = (sub - 1) & rest
    return groups
