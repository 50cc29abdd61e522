"""Groups of a cluster in compressed form: pack devices into groups of one size, subtree by subtree, for many sizes.

A subtree with at least as many devices as a group is split into groups of nearly equal size; if its children are large
enough, each child is split instead. Smaller subtrees are combined with their siblings. Equal subtrees are packed once.
Links are not used. A *unit* is a set of neighbouring devices that is too small to be a group.
"""

from __future__ import annotations

import time

import numpy as np

from .cost import price
from .problem import Problem
from .tree import Leaf, Switch, Tree

Pattern = list[np.ndarray]  # groups of devices, which are counted from the subtree's first device
TRIES = 160  # the most sizes tried


def pack(problem: Problem, tree: Tree, size: int) -> Pattern:
    """Groups of about `size` devices, each able to hold all experts; if even all devices together cannot, one group."""
    known: dict[int, tuple[Pattern, Pattern]] = {}
    experts = problem.experts

    def fits(group: np.ndarray, memory: np.ndarray) -> bool:
        return bool(memory[group].sum() >= experts)

    def inside(node: Switch | Leaf, memory: np.ndarray) -> tuple[Pattern, Pattern]:
        """(groups, units left over) of a subtree whose devices have these memories."""
        if isinstance(node, Leaf):
            return [], [np.zeros(1, np.int64)]
        if id(node) in known:
            return known[id(node)]
        done: Pattern = []
        waiting: Pattern = []
        at = 0
        for child in node.each():
            groups, units = inside(child, memory[at : at + child.size])
            done += [g + at for g in groups]
            waiting += [u + at for u in units]
            at += child.size
        known[id(node)] = _close(done, waiting, memory)
        return known[id(node)]

    def _close(done: Pattern, waiting: Pattern, memory: np.ndarray) -> tuple[Pattern, Pattern]:
        """Make groups of a subtree's units if there are enough of them."""
        total = sum(len(u) for u in waiting)
        together = np.concatenate(waiting) if waiting else np.zeros(0, np.int64)
        if total < max(1, size * 0.75) or not fits(together, memory):
            return done, ([together] if total else [])
        for k in range(max(1, round(total / size)), 0, -1):
            groups = _deal(waiting, k)
            if all(fits(g, memory) for g in groups):
                return done + groups, []
        return [*done, together], []

    groups, left = inside(tree.root, problem.memory)
    if left:
        rest = np.concatenate(left)
        if groups and not fits(rest, problem.memory):
            groups = [*groups[:-1], np.concatenate([groups[-1], rest])]
        else:
            groups = [*groups, rest]
    return groups


def _deal(units: Pattern, k: int) -> Pattern:
    """Put neighbouring units into k groups with nearly equal numbers of devices.

    Units are cut only if there are fewer than k.
    """
    if len(units) < k:
        return [np.array(part) for part in np.array_split(np.concatenate(units), k)]
    ends = np.cumsum([len(u) for u in units])
    marks = np.searchsorted(ends, ends[-1] * np.arange(1, k) / k - 1e-9) + 1
    marks = np.maximum.accumulate(np.clip(marks, np.arange(1, k), len(units) - k + np.arange(1, k)))
    marks = np.maximum(marks, marks[0] + np.arange(k - 1)) if k > 1 else marks
    parts = np.split(np.arange(len(units)), marks)
    return [np.concatenate([units[i] for i in part]) for part in parts if len(part)]


def sizes(tree: Tree, least: int) -> list[int]:
    """Group sizes to try: parts and multiples of subtrees, and sizes in between."""
    n = tree.root.size
    found = {n, *range(max(1, least), min(n, least + 16) + 1)}
    for size in {switch.size for switch in tree.switches}:
        found |= {-(-size // d) for d in range(1, 17)} | {size * m for m in range(1, 17)}
    step = 1.0
    while step < n:
        found.add(int(step))
        step *= 1.25
    good = sorted(s for s in found if max(1, least) <= s <= n)
    return [good[int(i)] for i in np.unique(np.linspace(0, len(good) - 1, TRIES).astype(int))]


def best(problem: Problem, objective: str, allreduce: str, until: float) -> list[list[int]]:
    """The best packing of a compressed problem over all sizes tried."""
    tree = problem.tree
    assert tree is not None
    top = np.cumsum(np.sort(problem.memory)[::-1])
    least = int(np.searchsorted(top, problem.experts)) + 1
    found: Pattern = [np.arange(problem.n)]
    value = np.inf
    group_of = np.zeros(problem.n, np.int64)
    for size in sizes(tree, least):
        groups = pack(problem, tree, size)
        group_of[np.concatenate(groups)] = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
        cost = price(problem, group_of, len(groups), objective, allreduce).objective_us
        if cost < value:
            found, value = groups, cost
        if time.monotonic() > until:
            break
    return [sorted(g.tolist()) for g in found]
