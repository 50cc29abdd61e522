"""Cells: nested sets of devices, for example nodes or pods, whose links to each other are faster than to the rest.

Cells are found from links alone, by single linkage that is cut where the next link is much slower. Any nested family
of cells gives valid bounds; a good one gives sharp bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .problem import Problem
from .terms import link_us

LEVELS = 4  # levels of cells between a device and the whole cluster
STEP = 1.02  # a level begins where link costs rise by this ratio


@dataclass
class Cell:
    """A set of devices. members: the devices, ascending.

    children: cells that partition them, or none if no finer structure is known."""

    members: NDArray[np.int64]
    children: list[Cell] = field(default_factory=list)

    def walk(self) -> list[Cell]:
        """This cell and all cells below it, parents first."""
        return [self, *(each for child in self.children for each in child.walk())]


def link_key(problem: Problem) -> NDArray[np.float64]:
    """[n, n] the time of a whole payload over each link, us."""
    return link_us(problem.alpha_us, problem.beta_us_per_mib, problem.payload_mib)


def single_linkage(key: NDArray[np.float64]) -> list[tuple[float, int, int]]:
    """Links (height, a, b) of a minimum spanning tree, in ascending order of height. key: [n, n] the links' heights."""
    n = len(key)
    nearest, by = key[0].copy(), np.zeros(n, np.int64)
    out = np.ones(n, bool)
    out[0] = False
    links = []
    for _ in range(n - 1):
        j = int(np.argmin(np.where(out, nearest, np.inf)))
        links.append((float(nearest[j]), int(by[j]), j))
        out[j] = False
        closer = out & (key[j] < nearest)
        nearest[closer], by[closer] = key[j][closer], j
    return sorted(links)


def joined(links: list[tuple[float, int, int]], n: int) -> NDArray[np.int64]:
    """[n] a label for each device. Devices that these links connect have equal labels."""
    label = np.arange(n)
    for _, a, b in links:
        label[label == label[b]] = label[a]
    return label


def find(problem: Problem, step: float = STEP) -> Cell:
    """The cell of all devices, with the cells below it."""
    n = problem.n
    whole = Cell(np.arange(n))
    links = single_linkage(link_key(problem))
    heights = np.array([h for h, _, _ in links])
    if n < 3 or heights[-1] <= 0:
        return whole
    floor = np.maximum(heights, heights[-1] * 1e-9)
    steps = floor[1:] / floor[:-1]
    cuts = [at for at in np.argsort(-steps, kind="stable")[:LEVELS] if steps[at] > step]
    _refine(whole, links, sorted((int(at) for at in cuts), reverse=True))
    return whole


def _refine(cell: Cell, links: list[tuple[float, int, int]], cuts: list[int]) -> None:
    """Split a cell at the first cut, from slow to fast links, that divides it into several parts."""
    for number, at in enumerate(cuts):
        label = joined(links[: at + 1], len(links) + 1)[cell.members]
        parts = dict.fromkeys(label.tolist())  # in the order of their first devices
        if len(parts) > 1:
            cell.children = [Cell(cell.members[label == part]) for part in parts]
            for child in cell.children:
                if len(child.members) > 1:
                    _refine(child, links, cuts[number + 1 :])
            return
