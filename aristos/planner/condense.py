"""Condenses a problem given by matrices to a tree of switches, for problems too large to treat device by device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cells import Cell, find
from .problem import Problem
from .tree import Leaf, Switch, Tree, TreeBuilder


def from_matrices(problem: Problem) -> tuple[Tree, NDArray[np.int64]]:
    """(tree, [n] the problem's device at each place of the tree).

    No link of the tree is slower than the problem's links that it stands for, so the tree's costs are lower bounds.
    """
    builder = TreeBuilder()

    def build(cell: Cell) -> tuple[Switch | Leaf, list[int]]:
        m = cell.members
        if len(m) == 1:
            return builder.leaf(float(problem.rate[m[0]]), int(problem.memory[m[0]])), [int(m[0])]
        owner = np.arange(len(m))
        for at, child in enumerate(cell.children):
            owner[np.searchsorted(m, child.members)] = at
        apart = owner[:, None] != owner[None, :]
        links = []
        for matrix in (problem.alpha_us, problem.beta_us_per_mib):
            links.append(float(matrix[np.ix_(m, m)][apart].min()))
        made = [build(part) for part in cell.children or [Cell(m[i : i + 1]) for i in range(len(m))]]
        made.sort(key=lambda each: builder.serial[id(each[0])])
        children: list[tuple[int, Switch | Leaf]] = [(1, child) for child, _ in made]
        return builder.switch(links[0], links[1], children), [i for _, members in made for i in members]

    root, order = build(find(problem))
    if isinstance(root, Leaf):
        root = builder.switch(0.0, 0.0, [(1, root)])
    return Tree.from_root(root), np.array(order, np.int64)
