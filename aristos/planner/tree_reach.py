"""The bound's programme of a cluster in compressed form: alike cells are one place, sizes lie in bins.

What a device pays follows from counting: partners as near as there are, the rest at the common switch; and c devices in
a child that has children of at most q devices lie in at least c / q of them, so that one holds at most c over that
number. A bin of sizes low..high pays what its cheapest size could.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bounds import Counts, Floats, Kind, Part, Place, Programme
from .problem import Problem
from .tree import Leaf, Switch

EXACT_SIZES, SIZE_STEP = 64, 1.05
EXACT_COUNTS, COUNT_STEP = 32, 1.2


def bins(most: int, exact: int, step: float) -> tuple[Counts, Counts]:
    """(lowest, highest) of ranges that cover 1..most: single numbers first, then ever wider."""
    low = [*range(1, min(exact, most) + 1)]
    while low[-1] < most:
        low.append(min(most, max(low[-1] + 1, int(low[-1] * step))))
    lows = np.array(low, np.int64)
    return lows, np.append(lows[1:] - 1, most)


@dataclass(frozen=True)
class _Chain:
    """Nested sizes around a device, from its bottom switch up, and the links on each level."""

    sizes: tuple[int, ...]
    links: tuple[tuple[float, float], ...]

    def near(self, partners: NDArray, scale: Floats) -> Floats:
        """What so many nearest partners cost at least; scale: payload over the group's size."""
        total = np.zeros(np.broadcast(partners, scale).shape)
        before = 1
        alpha = beta = np.inf  # of this level or any above: nearer is never dearer then
        floor = []
        for a, b in reversed(self.links):
            alpha, beta = min(alpha, a), min(beta, b)
            floor.append((alpha, beta))
        for size, (a, b) in zip(self.sizes, reversed(floor)):
            here = np.clip(partners - (before - 1), 0, size - before)
            total = total + here * (a + b * scale)
            before = size
        return total


def programme(problem: Problem, grows: bool) -> Programme:
    """The bound's programme of a problem in compressed form."""
    tree = problem.tree
    assert tree is not None
    kinds: list[Kind] = []
    chains: list[_Chain] = []
    places: list[Place] = []
    crossings, payload, experts = problem.crossings, problem.payload_mib, problem.experts

    def visit(switch: Switch, number: int, above: tuple[tuple[Switch, int], ...]) -> tuple[int, list[int]]:
        """Make the places below and of a switch of which there are so many; its place and its kinds."""
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
                chains.append(_Chain(tuple(s.size for s in up), tuple((s.alpha_us, s.beta_us_per_mib) for s in up)))
                leaves.append(len(kinds) - 1)
            else:
                place, below = visit(child, number * times, line)
                parts.append((place, child, times, below))
                mine += below
        mine = [*leaves, *mine]
        link = min((s.alpha_us for s, _ in line)), min((s.beta_us_per_mib for s, _ in line))
        places.append(_place(switch, number, mine, leaves, parts, link, len(line)))
        return len(places) - 1, mine

    def _place(switch, number, mine, leaves, parts, link, depth) -> Place:
        low, high = bins(switch.size, EXACT_SIZES, SIZE_STEP)
        rates, memories = _best(switch)
        comm, made = {}, []
        owner = {t: child.size for _, child, _, below in parts for t in below}
        for t in mine:
            own = owner.get(t, 1)  # devices of its child
            if parts and len(leaves) == 0 and len(parts) == 1 and parts[0][2] == 1:
                comm[t] = np.full(len(low), np.inf)  # one child: no group is here and not there
                continue
            spans = 0 if not parts else 1  # partners outside one's own child
            near = np.minimum(own - 1 if parts else switch.size - 1, np.maximum(low - 1 - spans, 0))
            far = low - 1 - near
            exact = (low == high) | (near == own - 1)
            share = np.where(exact, far / low, far / high) * payload
            value = chains[t].near(near, payload / high) + far * link[0] + share * link[1]
            room = memories[np.minimum(high, switch.size) - 1]
            inside = (low - 1 < spans) & ~((low == 1) & (t in leaves))  # one device of its own hangs from here alone
            comm[t] = np.where((room < experts) | inside, np.inf, crossings * value)
        for place, child, times, below in parts:
            made.append(_part(place, child, times, below, low, high, link))
        fastest = rates[high - 1]
        return Place(number, switch.size, low, high, fastest, rates[low - 1] / low, comm, made if not leaves else [])

    def _part(place, child, times, below, low, high, link) -> Part:
        some, most = bins(child.size, EXACT_COUNTS, COUNT_STEP)
        s, c = low[:, None], most[None, :]
        far = np.maximum(s - c, 1)
        scale = payload / high[:, None]
        cost = np.full((len(low), len(some)), np.inf)
        for t in below:
            near = chains[t].near(np.maximum(np.minimum(c, s - 1) - 1, 0), scale)
            cost = np.minimum(cost, near)
        widest = max(grandchild.size for _, grandchild in child.children)
        if widest < child.size:
            spans = -(-some // widest)
            few = np.where(some == most, some // np.maximum(spans, 1), np.minimum(widest, most))
            inner = min(chains[t].near(np.array(1), np.array(0.0)).item() for t in below)
            inner_beta = min(min(b for _, b in chains[t].links) for t in below)
            upper = child.alpha_us, child.beta_us_per_mib
            if upper[0] >= inner and upper[1] >= inner_beta and (upper[0] <= link[0] or upper[1] <= link[1]):
                k = np.minimum(few[None, :], s - 1)
                middle = np.maximum(np.minimum(some[None, :], s - 1) - k, 0)
                nested = (k - 1) * (inner + inner_beta * scale) + middle * (
                    min(upper[0], link[0]) + min(upper[1], link[1]) * scale
                )
                cost = np.maximum(cost, nested)
        cost = cost + far * link[0] + (far / np.where(s - c >= 1, s, high[:, None])) * payload * link[1]
        cost = np.where(some[None, :] > high[:, None] - 1, np.inf, crossings * cost)
        rates, memories = _best(child)
        return Part(place, times, some, most, cost, memories[most - 1], rates[most - 1])

    def _best(switch: Switch) -> tuple[Floats, Floats]:
        """Sums of the fastest rates and of the largest memories of a subtree."""
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
