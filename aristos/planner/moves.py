"""The loops of the search, compiled: the best cuts of an order of devices, and moves of single devices.

Its functions call nothing outside this file, so that Numba's cache, which sees this file's hash, is never stale.
"""

from __future__ import annotations

import numpy as np

from ..primitives.compile import jit

INFINITE = np.inf
SHARPNESS = 12.0  # of the mean that stands in for the longest stage: a shorter one among equals counts a little
SHORT_OF_MEMORY = 4.0  # a stage counts so many times longer for each whole set of experts that has no room


@jit
def chain(distance):
    """Average linkage by nearest-neighbour chains. distance: [n, n], destroyed. -> [n - 1, 2] merged clusters.

    Cluster c < n is device c; a merged one keeps its first cluster's number.
    """
    n = len(distance)
    size = np.ones(n, np.int64)
    merged = np.zeros((max(n - 1, 0), 2), np.int64)
    alive = np.ones(n, np.bool_)
    stack = np.zeros(n, np.int64)
    depth, done = 0, 0
    while done < n - 1:
        if depth == 0:
            for c in range(n):
                if alive[c]:
                    stack[0] = c
                    depth = 1
                    break
        top = stack[depth - 1]
        best, nearest = INFINITE, -1
        if depth > 1:
            nearest = stack[depth - 2]
            best = distance[top, nearest]
        for c in range(n):
            if alive[c] and c != top and distance[top, c] < best:
                best, nearest = distance[top, c], c
        if depth > 1 and nearest == stack[depth - 2]:
            a, b = min(top, nearest), max(top, nearest)
            depth -= 2
            merged[done, 0], merged[done, 1] = a, b
            done += 1
            for c in range(n):
                if alive[c] and c != a and c != b:
                    d = (size[a] * distance[a, c] + size[b] * distance[b, c]) / (size[a] + size[b])
                    distance[a, c] = distance[c, a] = d
            size[a] += size[b]
            alive[b] = False
        else:
            stack[depth] = nearest
            depth += 1
    return merged


@jit
def cuts(best, starts, begin, end, order, alpha, beta, rate, memory, experts, work, grows, crossings, payload):
    """Best cuts of the first begin..end - 1 devices of an order into groups of neighbours, given those of fewer.

    best, starts: [most + 1, n + 1], written: the longest stage of k groups that cover the first b devices, and where
    the last of them begins. best is infinite at first but for best[0, 0] = 0.
    """
    n, most = len(order), len(best) - 1
    near, wide = np.zeros(n), np.zeros(n)
    for last in range(begin, end):  # groups order[first:last], grown downwards
        near[:], wide[:] = 0.0, 0.0
        total, room = 0.0, 0
        for first in range(last - 1, -1, -1):
            i = order[first]
            total += rate[i]
            room += memory[i]
            for at in range(first + 1, last):
                j = order[at]
                near[first] += alpha[i, j]
                near[at] += alpha[i, j]
                wide[first] += beta[i, j]
                wide[at] += beta[i, j]
            if room < experts:
                continue
            size = last - first
            share = payload / size
            longest = 0.0
            for at in range(first, last):
                longest = max(longest, near[at] + wide[at] * share)
            stage = (size if grows else 1) * work / total + crossings * longest
            for k in range(1, most + 1):
                value = max(stage, best[k - 1, first])
                if value < best[k, last]:
                    best[k, last] = value
                    starts[k, last] = first


@jit
def _blend(stage, size, groups):
    """A soft longest stage."""
    longest, used = 0.0, 0
    for g in range(groups):
        if size[g] > 0:
            used += 1
            longest = max(longest, stage[g])
    if longest == 0.0:
        return 0.0
    total = 0.0
    for g in range(groups):
        if size[g] > 0:
            total += (stage[g] / longest) ** SHARPNESS
    return longest * (total / used) ** (1 / SHARPNESS)


@jit
def _reduce(where, k, link, pairs, alpha, beta, gradient):
    """T_rho: over the given link, or with link[0] < 0 over the first of `pairs` that crosses groups."""
    if k <= 1:
        return 0.0
    i, j = link[0], link[1]
    if i < 0:
        for at in range(len(pairs)):
            if where[pairs[at, 0]] != where[pairs[at, 1]]:
                i, j = pairs[at, 0], pairs[at, 1]
                break
    return 2.0 * (k - 1) * (alpha[i, j] + beta[i, j] * gradient / k)


@jit
def _stage(g, leaving, coming, list_of, size, near, wide, alpha, beta, rate, memory, total, room, numbers):
    """The stage of group g without `leaving` and with `coming` (-1: nobody), longer where memory is short.

    near, wide: [n, groups] sums of alpha and beta to a group's members.
    """
    experts, work, grows, crossings, payload = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    s, r, m = size[g], total[g], room[g]
    if leaving >= 0:
        s, r, m = s - 1, r - rate[leaving], m - memory[leaving]
    if coming >= 0:
        s, r, m = s + 1, r + rate[coming], m + memory[coming]
    if s == 0:
        return 0.0
    share = payload / s
    longest = 0.0
    for at in range(size[g]):
        i = list_of[g, at]
        if i == leaving:
            continue
        a, b = near[i, g], wide[i, g]
        if leaving >= 0:
            a, b = a - alpha[i, leaving], b - beta[i, leaving]
        if coming >= 0:
            a, b = a + alpha[i, coming], b + beta[i, coming]
        longest = max(longest, a + b * share)
    if coming >= 0:
        a, b = near[coming, g], wide[coming, g]
        if leaving >= 0:
            a, b = a - alpha[coming, leaving], b - beta[coming, leaving]
        longest = max(longest, a + b * share)
    time = (s if grows > 0 else 1.0) * work / r + crossings * longest
    if m < experts:
        time *= 1 + SHORT_OF_MEMORY * (1 + (experts - m) / experts)
    return time


@jit
def anneal(
    where, groups, alpha, beta, rate, memory, numbers, link, pairs, gradient, kappa, nearest, steps, hot, cold, seed
):
    """Move and swap devices from `where` on, cooling from hot to cold (shares of F); the best feasible labels found.

    where: [n] labels below `groups`, some of which may be empty. numbers: experts, layer_cost, 1 if pi grows with the
    group, crossings, payload. nearest: [n, q] each device's nearest. -> ([n] labels, F)
    """
    n = len(where)
    np.random.seed(seed)
    where = where.copy()
    size, room = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    total, stage = np.zeros(groups), np.zeros(groups)
    list_of, place = np.zeros((groups, n), np.int64), np.zeros(n, np.int64)
    near, wide = np.zeros((n, groups)), np.zeros((n, groups))
    for i in range(n):
        g = where[i]
        list_of[g, size[g]] = i
        place[i] = size[g]
        size[g] += 1
        total[g] += rate[i]
        room[g] += memory[i]
        for j in range(n):
            near[j, g] += alpha[j, i]
            wide[j, g] += beta[j, i]
    k = 0
    for g in range(groups):
        k += size[g] > 0
        stage[g] = _stage(g, -1, -1, list_of, size, near, wide, alpha, beta, rate, memory, total, room, numbers)
    now = kappa * _blend(stage, size, groups) + _reduce(where, k, link, pairs, alpha, beta, gradient)
    best, found = INFINITE, where.copy()
    fits = True
    for g in range(groups):
        fits = fits and (size[g] == 0 or room[g] >= numbers[0])
    if fits:
        best = kappa * stage.max() + _reduce(where, k, link, pairs, alpha, beta, gradient)
    for step in range(steps):
        heat = now * hot * (cold / hot) ** (step / steps)
        i = np.random.randint(n)
        slow = int(np.argmax(stage))
        if np.random.random() < 0.5 and size[slow] > 0:  # an empty one where all stages take no time
            i = list_of[slow, np.random.randint(size[slow])]
        g = where[i]
        other = -1
        h = g
        kind = np.random.random()
        if kind < 0.45:  # to the group of a near device
            h = where[nearest[i, np.random.randint(nearest.shape[1])]]
        elif kind < 0.6:
            h = np.random.randint(groups)
        else:  # swap
            if kind < 0.8:
                slow = np.random.randint(n)
                other = nearest[slow, np.random.randint(nearest.shape[1])]
            else:
                other = np.random.randint(n)
            h = where[other]
        if h == g:
            continue
        stage_g = _stage(g, i, other, list_of, size, near, wide, alpha, beta, rate, memory, total, room, numbers)
        stage_h = _stage(h, other, i, list_of, size, near, wide, alpha, beta, rate, memory, total, room, numbers)
        old_g, old_h = stage[g], stage[h]
        stage[g], stage[h] = stage_g, stage_h
        size_g, size_h = size[g], size[h]
        where[i] = h
        if other >= 0:
            where[other] = g
        else:
            size[g], size[h] = size_g - 1, size_h + 1
        k_new = k - (size_g == 1 and other < 0) + (size_h == 0)
        reduce_us = _reduce(where, k_new, link, pairs, alpha, beta, gradient)
        then = kappa * _blend(stage, size, groups) + reduce_us
        size[g], size[h] = size_g, size_h
        if then > now and np.random.random() >= np.exp((now - then) / heat):
            stage[g], stage[h] = old_g, old_h
            where[i] = g
            if other >= 0:
                where[other] = h
            continue
        now, k = then, k_new
        _carry(i, g, h, list_of, place, size, near, wide, alpha, beta, rate, memory, total, room)
        if other >= 0:
            _carry(other, h, g, list_of, place, size, near, wide, alpha, beta, rate, memory, total, room)
        longest = kappa * stage.max() + reduce_us
        if longest < best * (1 - 1e-12):
            fits = True
            for each in range(groups):
                fits = fits and (size[each] == 0 or room[each] >= numbers[0])
            if fits:
                best = longest
                found[:] = where
    return found, best


@jit
def _carry(i, g, h, list_of, place, size, near, wide, alpha, beta, rate, memory, total, room):
    """Book device i out of g and into h."""
    last = list_of[g, size[g] - 1]
    list_of[g, place[i]] = last
    place[last] = place[i]
    size[g] -= 1
    list_of[h, size[h]] = i
    place[i] = size[h]
    size[h] += 1
    total[g] -= rate[i]
    total[h] += rate[i]
    room[g] -= memory[i]
    room[h] += memory[i]
    for j in range(len(alpha)):
        near[j, g] -= alpha[j, i]
        near[j, h] += alpha[j, i]
        wide[j, g] -= beta[j, i]
        wide[j, h] += beta[j, i]
