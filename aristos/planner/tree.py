"""A cluster in compressed form: switches and devices with counts. Two devices are linked by their lowest common switch.

    {"alpha_us": 15, "beta_us_per_mib": 47.7, "children": [
        {"count": 128, "alpha_us": 3, "beta_us_per_mib": 11.7, "children": [{"count": 8, "rate": 1.0, "memory": 26}]}]}

Devices are numbered in the order of that text, each copy of a child after the previous copy. A node with slower links
than its siblings is a child of its own. Equal subtrees are one object, and no array is n x n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .terms import slowness
from .values import IDLE, ProblemError, count, number, require

MAX_DEVICES = 1_000_000
MAX_LEVELS = 16  # the most levels of switches


@dataclass(frozen=True)
class Leaf:
    """One device."""

    rate: float
    memory: int
    size: int = 1


@dataclass(frozen=True)
class Switch:
    """A switch. children: (count, subtree).

    alpha_us, beta_us_per_mib: of the link between devices of different children.
    """

    alpha_us: float
    beta_us_per_mib: float
    children: tuple[tuple[int, Switch | Leaf], ...]

    @cached_property
    def size(self) -> int:
        """Number of devices below the switch."""
        return sum(times * child.size for times, child in self.children)

    def each(self) -> list[Switch | Leaf]:
        """Every child; a child with copies comes once for each copy."""
        return [child for times, child in self.children for _ in range(times)]


@dataclass(frozen=True, eq=False)
class Tree:
    """The cluster under one root. up: [levels, n] the number of the device's switch on that level, -1 below its lowest
    switch. switches: the Switch of each number. first: the first device of each switch. rate, memory: [n]."""

    root: Switch
    up: NDArray[np.int64]
    switches: list[Switch]
    first: NDArray[np.int64]
    rate: NDArray[np.float64]
    memory: NDArray[np.int64]

    @classmethod
    def from_root(cls, root: Switch) -> Tree:
        """Number the devices and switches under a root."""
        n, depth = root.size, _depth(root)
        up = np.full((depth, n), -1, np.int64)
        rate, memory = np.zeros(n), np.zeros(n, np.int64)
        switches: list[Switch] = []
        first: list[int] = []
        stack: list[tuple[Switch, int, int]] = [(root, 0, 0)]
        while stack:
            switch, level, at = stack.pop()
            up[level, at : at + switch.size] = len(switches)
            switches.append(switch)
            first.append(at)
            for times, child in switch.children:
                for _ in range(times if isinstance(child, Switch) else 1):
                    if isinstance(child, Switch):
                        stack.append((child, level + 1, at))
                        at += child.size
                if isinstance(child, Leaf):
                    rate[at : at + times], memory[at : at + times] = child.rate, child.memory
                    at += times
        return cls(root, up, switches, np.array(first, np.int64), rate, memory)

    @cached_property
    def links(self) -> NDArray[np.float64]:
        """[switches, 2] alpha and beta of each switch."""
        return np.array([[s.alpha_us, s.beta_us_per_mib] for s in self.switches])

    def partners(self, group_of: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[n] sums of alpha and of beta over each device's partners in its group."""
        n = len(group_of)
        alphas, betas = np.zeros(n), np.zeros(n)
        below = np.ones(n)
        for level in range(len(self.up) - 1, -1, -1):
            at = self.up[level]
            here = at >= 0
            _, where, held = np.unique(
                group_of[here] * np.int64(len(self.switches)) + at[here], return_inverse=True, return_counts=True
            )
            together = held[where].astype(np.float64)
            others = together - below[here]
            alphas[here] += others * self.links[at[here], 0]
            betas[here] += others * self.links[at[here], 1]
            below[here] = together
        return alphas, betas

    def slowest(self, gradient_mib: float | None, group_of: NDArray[np.int64] | None = None) -> tuple[int, int] | None:
        """The pair with the slowest link of the all-reduce; with group_of, among pairs of different groups."""
        if self.root.size < 2:
            return None
        key = slowness(self.links[:, 0], self.links[:, 1], gradient_mib)
        for value in np.unique(key)[::-1]:
            pairs = [self._pair(int(s), group_of) for s in np.flatnonzero(key == value)]
            found = [pair for pair in pairs if pair is not None]
            if found:
                return min(found)
        return None

    def _pair(self, s: int, group_of: NDArray[np.int64] | None) -> tuple[int, int] | None:
        """The first pair whose lowest common switch is switch s, or None. With group_of, the pair is in two groups."""
        switch, start = self.switches[s], int(self.first[s])
        child = switch.children[0][1].size
        if switch.size == child:
            return None  # the switch has one child, so no pair meets here
        if group_of is None:
            return start, start + child
        groups = group_of[start : start + switch.size]
        differs = np.flatnonzero(groups[child:] != groups[0])
        if differs.size:
            return start, start + child + int(differs[0])
        inside = np.flatnonzero(groups[:child] != groups[0])
        return (start + int(inside[0]), start + child) if inside.size else None

    def links_to(self, i: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        """[others, 2] alpha and beta between a device and each of the others."""
        mine = self.up[:, [i]]
        same = (self.up[:, others] == mine) & (mine >= 0)
        level = len(same) - 1 - np.argmax(same[::-1], axis=0)
        return self.links[self.up[level, i]]

    def betas(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """beta between each device of `a` and the device of `b` at the same place; the two must differ."""
        found = np.zeros(a.shape)
        for level in self.up:
            same = (level[a] == level[b]) & (level[a] >= 0)
            found[same] = self.links[level[a[same]], 1]
        return found

    def matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """alpha_us and beta_us_per_mib, [n, n]; for small clusters."""
        n = self.root.size
        alpha, beta = np.zeros((n, n)), np.zeros((n, n))
        for level in range(len(self.up)):
            at = self.up[level]
            same = (at[:, None] == at[None, :]) & (at >= 0)[:, None]
            for matrix, column in ((alpha, 0), (beta, 1)):
                np.copyto(matrix, self.links[at, column][:, None], where=same)
        for matrix in (alpha, beta):
            np.fill_diagonal(matrix, 0.0)
        return alpha, beta


def _depth(node: Switch | Leaf) -> int:
    return 0 if isinstance(node, Leaf) else 1 + max(_depth(child) for _, child in node.children)


@dataclass
class TreeBuilder:
    """Builds trees in which equal subtrees are one object."""

    known: dict[Any, Any] = field(default_factory=dict)
    # id of a subtree -> its number, which gives the same order in every run
    serial: dict[int, int] = field(default_factory=dict)

    def leaf(self, rate: float, memory: int) -> Leaf:
        rate = rate if memory else rate * IDLE
        return self._one((rate, memory), Leaf(rate, memory))

    def _one(self, key: Any, made: Any) -> Any:
        one = self.known.setdefault(key, made)
        self.serial.setdefault(id(one), len(self.serial))
        return one

    def switch(self, alpha: float, beta: float, children: list[tuple[int, Switch | Leaf]]) -> Switch:
        runs: list[tuple[int, Switch | Leaf]] = []
        for times, child in children:
            if runs and runs[-1][1] is child:
                runs[-1] = (runs[-1][0] + times, child)
            else:
                runs.append((times, child))
        key = (alpha, beta, *((times, id(child)) for times, child in runs))
        return self._one(key, Switch(alpha, beta, tuple(runs)))


def parse(data: Any) -> Tree:
    """Build the tree from the JSON under `cluster`. Raises ProblemError, which names the wrong field."""
    builder = TreeBuilder()
    root = _parse(data, "cluster", builder, 0)
    if isinstance(root, Leaf):
        root = builder.switch(0.0, 0.0, [(1, root)])
    if root.size > MAX_DEVICES:
        raise ProblemError("cluster", f"must have at most {MAX_DEVICES} devices, got {root.size}")
    return Tree.from_root(root)


def _parse(data: Any, where: str, builder: TreeBuilder, level: int) -> Switch | Leaf:
    if not isinstance(data, dict):
        raise ProblemError(where, f"must be an object, got {type(data).__name__}")
    if level > MAX_LEVELS:
        raise ProblemError(where, f"is deeper than {MAX_LEVELS} levels")
    if "children" not in data:
        hint = " (a switch needs children; a device needs rate and memory)"
        require(data, "rate", "memory", where=f"{where}.", hint=hint)
        rate = number(f"{where}.rate", data["rate"], positive=True)
        return builder.leaf(rate, count(f"{where}.memory", data["memory"]))
    require(data, "alpha_us", "beta_us_per_mib", where=f"{where}.")
    inside = data["children"]
    if not isinstance(inside, list) or not inside:
        raise ProblemError(f"{where}.children", "must be a list of at least one child")
    children = []
    for i, child in enumerate(inside):
        place = f"{where}.children[{i}]"
        times = count(f"{place}.count", child.get("count", 1), 1) if isinstance(child, dict) else 1
        if times > MAX_DEVICES:
            raise ProblemError(f"{place}.count", f"must be at most {MAX_DEVICES}, got {times}")
        children.append((times, _parse(child, place, builder, level + 1)))
    alpha = number(f"{where}.alpha_us", data["alpha_us"])
    return builder.switch(alpha, number(f"{where}.beta_us_per_mib", data["beta_us_per_mib"]), children)
