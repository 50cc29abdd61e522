"""Dynamic programming over all subsets of devices, compiled, for the exact solution of small problems."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import jit

from .terms import comm_us, pi_us, share_mib

INFINITE = np.inf


@jit
def stages(alpha, beta, rate, memory, experts, work, grows, crossings, payload):
    """[2**n] pi + max C of every set of devices, us; infinite for a set that cannot hold all experts.

    alpha, beta: [n, n]. rate: [n]. memory: [n] int64. work: layer_cost. grows: whether pi grows with the set.
    """
    n = len(rate)
    found = np.full(1 << n, INFINITE)
    members = np.empty(n, np.int64)
    for mask in range(1, 1 << n):
        size, total, held = 0, 0.0, 0
        for i in range(n):
            if mask >> i & 1:
                members[size] = i
                size += 1
                total += rate[i]
                held += memory[i]
        if held < experts:
            continue
        share = share_mib(payload, size)
        longest = 0.0
        for a in range(size):
            alphas, betas = 0.0, 0.0
            for b in range(size):
                alphas += alpha[members[a], members[b]]
                betas += beta[members[a], members[b]]
            longest = max(longest, comm_us(crossings, alphas, betas, share))
        found[mask] = pi_us(work, size, total, grows) + longest
    return found


@jit
def bottlenecks(stage, items, most, cap):
    """[2**items, most + 1]: entry [set, k] is the longest stage of the best partition of the set into exactly k groups.

    stage: [2**items] the stage of every set. Sets with a stage above cap are not used.
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
    """[k] the groups, as bit masks, of a partition of all items that reaches best[-1, k]."""
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
