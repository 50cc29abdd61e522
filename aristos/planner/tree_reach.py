"""The bound's programme for a cluster in compressed form: equal cells are one place, and sizes are grouped in bins.

A device pays the least time if as many partners as possible are below its lower switches and the rest below the common
switch. The sizes of these switches therefore give a lower bound on its time. There is a second bound. Let a group have
c devices in a child, and let each grandchild, a child of that child, have at most q devices. Then at least c / q
grandchildren hold devices of the group, and one of these grandchildren holds at most their average number.

A bin of sizes low..high pays as little as its cheapest size could.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bounds import Counts, EqualCells, Floats, Kind, Part, Programme
from .problem import Problem
from .terms import comm_us, share_mib
from .tree import Leaf, Switch

# bins of sizes, and of counts in a child: one for each number up to EXACT, then each begins STEP times higher
EXACT_SIZES, SIZE_STEP = 64, 1.05
EXACT_COUNTS, COUNT_STEP = 32, 1.2


def bins(most: int, exact: int, step: float) -> tuple[Counts, Counts]:
    """(lowest, highest) of ranges that cover 1..most: first single numbers, then wider and wider ranges."""
    low = [*range(1, min(exact, most) + 1)]
    while low[-1] < most:
        low.append(min(most, max(low[-1] + 1, int(low[-1] * step))))
    lows = np.array(low, np.int64)
    return lows, np.append(lows[1:] - 1, most)


@dataclass(frozen=True)
class _Chain:
    """The switches above a device from the lowest up: their sizes and links."""

    sizes: tuple[int, ...]
    links: tuple[tuple[float, float], ...]
    crossings: float

    @property
    def alpha(self) -> float:
        """The least alpha of a partner, 0 if the device has no partners."""
        return min((a for size, (a, _) in zip(self.sizes, self.links) if size > 1), default=0.0)

    def least(self, partners: NDArray[Any], share: Floats) -> Floats:
        """Lower bound in us on C for this many cheapest partners. share: MiB to each partner."""
        total = np.zeros(np.broadcast(partners, share).shape)
        before = 1
        alpha = beta = np.inf  # the least of this level and all levels above, so that lower levels never cost more
        floor = []
        for a, b in reversed(self.links):
            alpha, beta = min(alpha, a), min(beta, b)
            floor.append((alpha, beta))
        for size, (a, b) in zip(self.sizes, reversed(floor)):
            here = np.clip(partners - (before - 1), 0, size - before)
            total = total + here * comm_us(self.crossings, a, b, share)
            before = size
        return total


def programme(problem: Problem, grows: bool) -> Programme:
    """The bound's programme for a problem in compressed form."""
    tree = problem.tree
    assert tree is not None
    kinds: list[Kind] = []
    chains: list[_Chain] = []
    places: list[EqualCells] = []
    crossings, payload, experts = problem.crossings, problem.payload_mib, problem.experts

    def visit(switch: Switch, number: int, above: tuple[tuple[Switch, int], ...]) -> tuple[int, list[int]]:
        """Add the places of a switch, which the cluster has `number` times, and of the switches below it.

        Returns the switch's place and its kinds."""
        line = (*above, (switch, len(above)))
        inside: dict[int, tuple[int, Switch | Leaf]] = {}
        for times, child in switch.children:
            had = inside.get(id(child), (0, child))
            inside[id(child)] = had[0] + times, child
        parts: list[tuple[int, Switch, int, list[int]]] = []
        mine: list[int] = []
        leaves: list[int] = []
        for times, child in inside.values():
            if isinstance(child, Leaf):
                kinds.append(Kind(number * times, child.rate, float(min(child.memory, experts))))
                up = [s for s, _ in reversed(line)]
                links = tuple((s.alpha_us, s.beta_us_per_mib) for s in up)
                chains.append(_Chain(tuple(s.size for s in up), links, crossings))
                leaves.append(len(kinds) - 1)
            else:
                place, below = visit(child, number * times, line)
                parts.append((place, child, times, below))
                mine += below
        mine = [*leaves, *mine]
        link = min((s.alpha_us for s, _ in line)), min((s.beta_us_per_mib for s, _ in line))
        places.append(_place(switch, number, mine, leaves, parts, link, len(line)))
        return len(places) - 1, mine

    def _place(switch, number, mine, leaves, parts, link, depth) -> EqualCells:
        low, high = bins(switch.size, EXACT_SIZES, SIZE_STEP)
        rates, memories = _best(switch)
        comm, made = {}, []
        owner = {t: child.size for _, child, _, below in parts for t in below}
        for t in mine:
            own = owner.get(t, 1)  # devices of the child that contains kind t; 1 if a device is itself a child
            if parts and len(leaves) == 0 and len(parts) == 1 and parts[0][2] == 1:
                # the switch has one child, and every group here is inside that child
                comm[t] = np.full(len(low), np.inf)
                continue
            spans = 0 if not parts else 1  # the fewest partners that lie outside the device's own child
            inner = np.minimum(own - 1 if parts else switch.size - 1, np.maximum(low - 1 - spans, 0))
            outer = low - 1 - inner
            exact = (low == high) | (inner == own - 1)
            share = share_mib(payload, np.where(exact, low, high))
            value = chains[t].least(inner, share_mib(payload, high)) + outer * comm_us(
                crossings, link[0], link[1], share
            )
            held = memories[np.minimum(high, switch.size) - 1]
            inside = (low - 1 < spans) & ~((low == 1) & (t in leaves))  # a device that is a child may be a group alone
            comm[t] = np.where((held < experts) | inside, np.inf, value)
        for place, child, times, below in parts:
            made.append(_part(place, child, times, below, low, high, link))
        fastest = rates[high - 1]
        return EqualCells(
            number, switch.size, low, high, fastest, rates[low - 1] / low, comm, made if not leaves else []
        )

    def _part(place, child, times, below, low, high, link) -> Part:
        some, most = bins(child.size, EXACT_COUNTS, COUNT_STEP)
        s, c = low[:, None], most[None, :]
        outer = np.maximum(s - c, 1)
        share = share_mib(payload, high[:, None])
        cost = np.full((len(low), len(some)), np.inf)
        for t in below:
            cost = np.minimum(cost, chains[t].least(np.maximum(np.minimum(c, s - 1) - 1, 0), share))
        widest = max(grandchild.size for _, grandchild in child.children)
        if widest < child.size:
            spans = -(-some // widest)
            few = np.where(some == most, some // np.maximum(spans, 1), np.minimum(widest, most))
            lowest = min(chains[t].alpha for t in below), min(min(b for _, b in chains[t].links) for t in below)
            upper = child.alpha_us, child.beta_us_per_mib
            if upper[0] >= lowest[0] and upper[1] >= lowest[1] and (upper[0] <= link[0] or upper[1] <= link[1]):
                k = np.minimum(few[None, :], s - 1)
                middle = np.maximum(np.minimum(some[None, :], s - 1) - k, 0)
                cheaper = min(upper[0], link[0]), min(upper[1], link[1])
                nested = (k - 1) * comm_us(crossings, *lowest, share) + middle * comm_us(crossings, *cheaper, share)
                cost = np.maximum(cost, nested)
        outer_share = share_mib(payload, np.where(s - c >= 1, s, high[:, None]))
        cost = cost + outer * comm_us(crossings, link[0], link[1], outer_share)
        cost = np.where(some[None, :] > high[:, None] - 1, np.inf, cost)
        rates, memories = _best(child)
        return Part(place, times, some, most, cost, memories[most - 1], rates[most - 1])

    def _best(switch: Switch) -> tuple[Floats, Floats]:
        """([devices] the sums of the 1, 2, ... fastest rates in a subtree, [devices] sums of the largest memories)."""
        found: dict[tuple[float, int], int] = {}

        def add(node: Switch | Leaf, times: int) -> None:
            if isinstance(node, Leaf):
                key = node.rate, min(node.memory, experts)
                found[key] = found.get(key, 0) + times
            else:
                for more, child in node.children:
                    add(child, times * more)

        add(switch, 1)
        counts = list(found.values())
        rate = np.repeat([r for r, _ in found], counts)
        memory = np.repeat([float(m) for _, m in found], counts)
        return np.cumsum(np.sort(rate)[::-1]), np.cumsum(np.sort(memory)[::-1])

    visit(tree.root, 1, ())
    return Programme(problem, grows, kinds, places)
