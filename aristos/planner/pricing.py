"""The group that is worth most at given prices of devices, found by compiled dynamic programming over devices."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import jit

NOTHING = -np.inf


@jit
def price(worth, memory, speed, last, each, least_memory, need):
    """Find the most valuable group of each size: ([sizes + 1] worth, [sizes + 1, devices] whether a device is in it).

    worth: [devices]. memory, speed: [devices] in whole units. last: [devices] True for the last device of its cell.
    each: the fewest devices that a group may have in a cell that it touches. least_memory: units that a group needs.
    need: [sizes + 1] units of speed that a group of this size needs, -1 if groups of this size are not allowed. A size
    without a group has worth -inf.
    """
    n, most, top = len(worth), len(need) - 1, need.max()
    best = np.full((each + 1, most + 1, least_memory + 1, top + 1), NOTHING)
    best[0, 0, 0, 0] = 0.0
    took = np.zeros((n, each + 1, most + 1, least_memory + 1, top + 1), np.bool_)
    for i in range(n - 1, -1, -1):
        if last[i]:  # no later device is in the cell of device i
            best[1:each] = NOTHING
            best[each] = best[0]
        m, r, w = memory[i], speed[i], worth[i]
        for size in range(most, 0, -1):
            for had in range(each + 1):
                then = best[min(had + 1, each), size - 1]
                now, mark = best[had, size], took[i, had, size]
                for left in range(least_memory + 1):
                    source, line, flag = then[max(0, left - m)], now[left], mark[left]
                    for q in range(min(r, top + 1)):
                        if source[0] + w > line[q]:
                            line[q] = source[0] + w
                            flag[q] = True
                    for q in range(r, top + 1):
                        if source[q - r] + w > line[q]:
                            line[q] = source[q - r] + w
                            flag[q] = True
    value = np.full(most + 1, NOTHING)
    inside = np.zeros((most + 1, n), np.bool_)
    for size in range(1, most + 1):
        if need[size] < 0 or best[0, size, least_memory, need[size]] == NOTHING:
            continue
        value[size] = best[0, size, least_memory, need[size]]
        had, count, left, q = 0, size, least_memory, need[size]
        for i in range(n):
            if took[i, had, count, left, q]:
                inside[size, i] = True
                had, count = min(had + 1, each), count - 1
                left, q = max(0, left - memory[i]), max(0, q - speed[i])
            if last[i]:
                had = 0
    return value, inside
