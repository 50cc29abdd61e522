"""The search's loops, compiled: the best cuts of an order of devices, and moves of single devices."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import jit

from .terms import allreduce_us, comm_us, pi_us, share_mib

INFINITE = np.inf
SHARPNESS = 12.0  # exponent of the power mean that replaces the maximum, so that shortening any long stage is a gain
# the time of a stage without enough memory is multiplied by
# 1 + SHORT_OF_MEMORY * (1 + the share of experts that do not fit)
SHORT_OF_MEMORY = 4.0


@jit
def chain(distance):
    """Average linkage by nearest-neighbour chains. Returns [n - 1, 2]: the two clusters of each merge, in order.

    distance: [n, n], overwritten.

    Cluster c is device c at first; a merged cluster keeps the lower number.
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
    """Find the best cuts of an order's first b devices into groups of consecutive devices, for b from begin to end - 1.

    The best cuts of fewer devices must be known.

    best and starts, both [most + 1, n + 1], are written: best[k, b] is the longest stage of k groups that cover the
    first b devices, and starts[k, b] is where the last of them begins. Before the first call best is infinite, except
    best[0, 0] = 0.
    """
    n, most = len(order), len(best) - 1
    alphas, betas = np.zeros(n), np.zeros(n)
    for last in range(begin, end):  # groups order[first:last], from short to long
        alphas[:], betas[:] = 0.0, 0.0
        total, held = 0.0, 0
        for first in range(last - 1, -1, -1):
            i = order[first]
            total += rate[i]
            held += memory[i]
            for at in range(first + 1, last):
                j = order[at]
                alphas[first] += alpha[i, j]
                alphas[at] += alpha[i, j]
                betas[first] += beta[i, j]
                betas[at] += beta[i, j]
            if held < experts:
                continue
            size = last - first
            share = share_mib(payload, size)
            longest = 0.0
            for at in range(first, last):
                longest = max(longest, comm_us(crossings, alphas[at], betas[at], share))
            stage = pi_us(work, size, total, grows) + longest
            for k in range(1, most + 1):
                value = max(stage, best[k - 1, first])
                if value < best[k, last]:
                    best[k, last] = value
                    starts[k, last] = first


@jit
def _blend(stage, size, groups):
    """A smooth maximum of the stages."""
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
    """T_rho in us, the time of the all-reduce among k groups.

    link: the two devices whose link it uses; if link[0] < 0, it uses the first of `pairs` that crosses groups.
    gradient: MiB, -1 if there is none."""
    if k <= 1 or gradient < 0:
        return 0.0
    i, j = link[0], link[1]
    if i < 0:
        for at in range(len(pairs)):
            if where[pairs[at, 0]] != where[pairs[at, 1]]:
                i, j = pairs[at, 0], pairs[at, 1]
                break
    return allreduce_us(k, alpha[i, j], beta[i, j], gradient)


@jit
def _stage(g, leaving, coming, list_of, size, alphas, betas, alpha, beta, rate, memory, total, held, numbers):
    """The stage of group g without device `leaving` and with device `coming` (-1: none); larger if memory is short.

    alphas, betas: [n, groups] sums of alpha and beta from a device to a group's members.
    """
    experts, work, grows, crossings, payload = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    s, r, m = size[g], total[g], held[g]
    if leaving >= 0:
        s, r, m = s - 1, r - rate[leaving], m - memory[leaving]
    if coming >= 0:
        s, r, m = s + 1, r + rate[coming], m + memory[coming]
    if s == 0:
        return 0.0
    share = share_mib(payload, s)
    longest = 0.0
    for at in range(size[g]):
        i = list_of[g, at]
        if i == leaving:
            continue
        a, b = alphas[i, g], betas[i, g]
        if leaving >= 0:
            a, b = a - alpha[i, leaving], b - beta[i, leaving]
        if coming >= 0:
            a, b = a + alpha[i, coming], b + beta[i, coming]
        longest = max(longest, comm_us(crossings, a, b, share))
    if coming >= 0:
        a, b = alphas[coming, g], betas[coming, g]
        if leaving >= 0:
            a, b = a - alpha[coming, leaving], b - beta[coming, leaving]
        longest = max(longest, comm_us(crossings, a, b, share))
    time = pi_us(work, s, r, grows > 0) + longest
    if m < experts:
        time *= 1 + SHORT_OF_MEMORY * (1 + (experts - m) / experts)
    return time


@jit
def anneal(
    where, groups, alpha, beta, rate, memory, numbers, link, pairs, gradient, kappa, nearest, steps, hot, cold, seed
):
    """Move and swap devices while the temperature falls from hot to cold. Returns ([n] best feasible labels, their F).

    where: [n] the labels to start from, all below `groups`; groups may be empty. numbers: experts, layer_cost, 1 if pi
    grows with the group, crossings, payload. nearest: [n, q] the devices with the fastest links to each device. F is
    infinite if no labels were feasible.
    """
    n = len(where)
    np.random.seed(seed)
    where = where.copy()
    size, held = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    total, stage = np.zeros(groups), np.zeros(groups)
    list_of, place = np.zeros((groups, n), np.int64), np.zeros(n, np.int64)
    alphas, betas = np.zeros((n, groups)), np.zeros((n, groups))
    for i in range(n):
        g = where[i]
        list_of[g, size[g]] = i
        place[i] = size[g]
        size[g] += 1
        total[g] += rate[i]
        held[g] += memory[i]
        for j in range(n):
            alphas[j, g] += alpha[j, i]
            betas[j, g] += beta[j, i]
    k = 0
    for g in range(groups):
        k += size[g] > 0
        stage[g] = _stage(g, -1, -1, list_of, size, alphas, betas, alpha, beta, rate, memory, total, held, numbers)
    now = kappa * _blend(stage, size, groups) + _reduce(where, k, link, pairs, alpha, beta, gradient)
    best, found = INFINITE, where.copy()
    fits = True
    for g in range(groups):
        fits = fits and (size[g] == 0 or held[g] >= numbers[0])
    if fits:
        best = kappa * stage.max() + _reduce(where, k, link, pairs, alpha, beta, gradient)
    for step in range(steps):
        heat = now * hot * (cold / hot) ** (step / steps)
        i = np.random.randint(n)
        slow = int(np.argmax(stage))
        if np.random.random() < 0.5 and size[slow] > 0:  # group `slow` is empty if all stages take no time
            i = list_of[slow, np.random.randint(size[slow])]
        g = where[i]
        other = -1
        h = g
        kind = np.random.random()
        if kind < 0.45:  # move to the group of a device with a fast link
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
        stage_g = _stage(g, i, other, list_of, size, alphas, betas, alpha, beta, rate, memory, total, held, numbers)
        stage_h = _stage(h, other, i, list_of, size, alphas, betas, alpha, beta, rate, memory, total, held, numbers)
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
        _carry(i, g, h, list_of, place, size, alphas, betas, alpha, beta, rate, memory, total, held)
        if other >= 0:
            _carry(other, h, g, list_of, place, size, alphas, betas, alpha, beta, rate, memory, total, held)
        longest = kappa * stage.max() + reduce_us
        if longest < best * (1 - 1e-12):
            fits = True
            for each in range(groups):
                fits = fits and (size[each] == 0 or held[each] >= numbers[0])
            if fits:
                best = longest
                found[:] = where
    return found, best


@jit
def _carry(i, g, h, list_of, place, size, alphas, betas, alpha, beta, rate, memory, total, held):
    """Move device i from group g to group h in all tables."""
    last = list_of[g, size[g] - 1]
    list_of[g, place[i]] = last
    place[last] = place[i]
    size[g] -= 1
    list_of[h, size[h]] = i
    place[i] = size[h]
    size[h] += 1
    total[g] -= rate[i]
    total[h] += rate[i]
    held[g] -= memory[i]
    held[h] += memory[i]
    for j in range(len(alpha)):
        alphas[j, g] -= alpha[j, i]
        alphas[j, h] += alpha[j, i]
        betas[j, g] -= beta[j, i]
        betas[j, h] += beta[j, i]
