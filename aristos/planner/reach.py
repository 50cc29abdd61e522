"""Lower bounds on a group's communication: the coefficients of the bound's programme.

For groups of s devices that lie in a cell, but in none of its children, and hold all experts:

- comm[i, s] is at most the largest C of any such group with device i. The device pays for s - 1 partners in the cell,
  so at least for the s - 1 cheapest ones. The bound also uses that the group has enough memory (a Lagrangian multiplier
  prices the missing memory), and that some partner is in another child.
- part[u][s, c] is at most the largest C of any such group with c devices in child u. Each device of u pays for c - 1
  partners in u and for s - c partners outside; the c-th smallest of these amounts is part[u][s, c]. If u has children
  and c devices lie in at least n of them, some child has between 1 and c / n of the devices.

`bounds.py` adds rates, and joins groups to partitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bounds import EqualCells, Kind, Part, Programme
from .cells import Cell, find
from .problem import Problem
from .terms import comm_us, share_mib

Floats = NDArray[np.float64]
PRICES = 2.0 ** np.arange(-4, 5)  # prices of missing memory, in units of a typical link's C over a typical memory


def programme(problem: Problem, grows: bool) -> Programme:
    """The bound's programme of a problem with matrices."""
    cells = find(problem).walk()
    reaches = [reach(problem, cell) for cell in cells]
    memory = np.minimum(problem.memory, problem.experts)
    keys: dict[int, list[Any]] = {i: [problem.rate[i], memory[i]] for i in range(problem.n)}
    for v, (cell, (comm, _)) in enumerate(zip(cells, reaches)):
        for at, i in enumerate(cell.members):
            keys[int(i)] += [v, comm[at].tobytes()]
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, key in keys.items():
        kinds.setdefault(tuple(key), []).append(i)
    first = {members[0]: t for t, members in enumerate(kinds.values())}
    index = {id(cell): v for v, cell in enumerate(cells)}
    places = []
    for cell, (comm, parts) in zip(cells, reaches):
        sizes = np.arange(1, len(cell.members) + 1)
        rates = np.cumsum(np.sort(problem.rate[cell.members])[::-1])
        by_kind = {first[int(i)]: comm[at, 1:] for at, i in enumerate(cell.members) if int(i) in first}
        made = []
        for u, cost in zip(cell.children, parts):
            most = np.arange(1, len(u.members) + 1)
            top = np.cumsum(np.sort(memory[u.members])[::-1]).astype(np.float64)
            fast = np.cumsum(np.sort(problem.rate[u.members])[::-1])
            made.append(Part(index[id(u)], 1, most, most, cost[1:, 1:], top, fast))
        places.append(EqualCells(1, len(sizes), sizes, sizes, rates, rates / sizes, by_kind, made))
    alike = [Kind(len(m), float(problem.rate[m[0]]), float(memory[m[0]])) for m in kinds.values()]
    return Programme(problem, grows, alike, places)


def reach(problem: Problem, cell: Cell) -> tuple[Floats, list[Floats]]:
    """Lower bounds on C of groups in this cell and in none of its children, us.

    Returns comm: [members, sizes + 1], and for each child part: [sizes + 1, its devices + 1].
    """
    p, m = problem, cell.members
    n = len(m)
    alpha, beta = p.alpha_us[np.ix_(m, m)], p.beta_us_per_mib[np.ix_(m, m)]
    memory = np.minimum(p.memory[m], p.experts).astype(np.float64)
    comm = np.full((n, n + 1), np.inf)
    part = [np.full((n + 1, len(u.members) + 1), np.inf) for u in cell.children]
    rows = [np.searchsorted(m, u.members) for u in cell.children]
    for s in range(1 if not cell.children else 2, n + 1):
        w = comm_us(p.crossings, alpha, beta, share_mib(p.payload_mib, s))
        comm[:, s] = _by_partners(w, memory, s, p.experts)
        for u, row, mine in zip(cell.children, rows, part):
            own = by_parts(w, row, s)
            nested = _nested(w, m, u, s)
            for c in range(1, own.shape[1]):
                least = np.partition(own[:, c], c - 1)[c - 1]
                mine[s, c] = max(least, nested[c])
            comm[row, s] = np.maximum(comm[row, s], own[:, 1:].min(axis=1))
    return comm, part


def _by_partners(w: Floats, memory: Floats, s: int, experts: int) -> Floats:
    """[n] the least sum of w over s - 1 partners with enough memory; infinite if there are no such partners.

    w: [n, n]
    """
    n = len(w)
    off = ~np.eye(n, dtype=bool)
    others = w[off].reshape(n, n - 1)
    best = _least(others, s - 1)
    ranked = np.sort(memory)[::-1]
    top = np.concatenate([[0.0], np.cumsum(ranked)])
    # the s - 1 largest memories of other devices: if a device is among the largest itself, the next one takes its place
    among = memory >= ranked[min(s - 1, n - 1)]
    held = np.where(among, top[min(s, n)], top[s - 1] + memory)
    if memory.min() * s < experts:  # some groups of this size cannot hold all experts
        of_others = np.broadcast_to(memory, (n, n))[off].reshape(n, n - 1)
        scale = max(w.mean(), 1e-300) / max(memory.mean(), 1e-300)
        for price in PRICES * scale:
            paid = _least(others - price * of_others, s - 1) + price * (experts - memory)
            best = np.maximum(best, paid)
    return np.where(held < experts, np.inf, best)


def _least(w: Floats, count: int) -> Floats:
    """[n] sum of the `count` smallest entries of each row of w."""
    if count <= 0:
        return np.zeros(len(w))
    if count >= w.shape[1]:
        return w.sum(1)
    return np.partition(w, count - 1, axis=1)[:, :count].sum(1)


def _sums(w: Floats) -> Floats:
    """[n, m + 1] the sums of the 0, 1, 2, ... smallest entries of each row of w, [n, m]."""
    return np.pad(np.cumsum(np.sort(w, axis=1), axis=1), ((0, 0), (1, 0)))


def by_parts(w: Floats, row: NDArray[np.int64], s: int) -> Floats:
    """[devices, counts] the least C of each device of a child, if c devices of the group are in that child.

    The result is infinite unless 1 <= c < s. row: places of the child's devices in w.
    """
    n, size = len(w), len(row)
    others = np.ones(n, bool)
    others[row] = False
    outside = _sums(w[np.ix_(row, np.flatnonzero(others))])
    inside = w[np.ix_(row, row)].copy()
    np.fill_diagonal(inside, np.inf)
    inside = _sums(inside)
    found = np.full((size, size + 1), np.inf)
    for c in range(1, min(size, s - 1) + 1):
        if s - c < outside.shape[1]:
            found[:, c] = inside[:, c - 1] + outside[:, s - c]
    return found


def _nested(w: Floats, members: NDArray[np.int64], u: Cell, s: int) -> Floats:
    """[c] lower bound, from u's children, on max C if c devices of u are in a group of s; 0 if u has no children."""
    size = len(u.members)
    found = np.zeros(size + 1)
    if not u.children:
        return found
    row = np.searchsorted(members, u.members)
    inside_u = np.zeros(len(w), bool)
    inside_u[row] = True
    outside = _sums(w[np.ix_(row, np.flatnonzero(~inside_u))])
    child_of = np.zeros(len(w), np.int64)
    for number, child in enumerate(u.children):
        child_of[np.searchsorted(members, child.members)] = number
    mine = child_of[row]
    same = mine[:, None] == mine[None, :]
    local = w[np.ix_(row, row)]
    inside = _sums(np.where(same & ~np.eye(size, dtype=bool), local, np.inf))
    middle = _sums(np.where(same, np.inf, local))
    held = np.sort([len(child.members) for child in u.children])[::-1]
    total = np.cumsum(held)
    for c in range(1, min(size, s - 1) + 1):
        if s - c >= outside.shape[1]:
            continue
        spans = int(np.searchsorted(total, c)) + 1
        few = c // spans  # some child has at most `few` of the c devices
        k = np.arange(1, few + 1)
        pays = inside[:, k - 1] + middle[:, c - k] + outside[:, [s - c]]
        found[c] = pays.min()
    return found
