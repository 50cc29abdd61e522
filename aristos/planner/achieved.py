"""The step that a plan's groups and placement give, with tokens sent as the layer sends them.

Equation 1 divides the work of a group by rate, and sends every device of the group the same share. But a placement
holds whole experts, and each source uses one of an expert's c copies, the one with number (the source's place in the
group mod c). So a stage takes

    pi  = work * max over devices of (load / rate)
    C_i = crossings * sum over j of (alpha_ij + beta_ij * payload * rows_ij / 2)

where rows_ij are the rows of i that j computes and the rows of j that i computes. Loads and rows are shares of a
device's rows. Half of the crossings carry rows out, half carry outputs back. The sum counts every alpha, because a rank
sends each rank of its group an announcement. This module searches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import terms
from .cost import Groups, labels, partners
from .placing import places
from .problem import Problem

BLOCK = 1 << 22  # entries of an array examined at once


@dataclass(frozen=True)
class Achieved:
    """The times that a placement gives, us. step_us: kappa times the longest stage, plus the all-reduce.

    pi_us: [groups] pi. comm_us: [groups] the largest C of a device of the group."""

    step_us: float
    pi_us: NDArray[np.float64]
    comm_us: NDArray[np.float64]


def achieve(problem: Problem, groups: Groups, allreduce_us: float, grows: bool) -> Achieved:
    """The times of a step of these groups, with the placement that `place` returns. allreduce_us: T_rho.

    grows: whether the objective is `work_conserving`."""
    group_of = labels(problem.n, groups)
    alphas, _ = partners(problem, group_of, np.bincount(group_of))
    pi, comm = np.zeros(len(groups)), np.zeros(len(groups))
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for g, group in enumerate(groups):
        at = np.asarray(group, np.int64)
        alike.setdefault((problem.rate[at].tobytes(), problem.memory[at].tobytes()), []).append(g)
    for same in alike.values():
        members = np.array([groups[g] for g in same], np.int64)
        size, shares = members.shape[1], _shares(problem, places(problem, members[0]))
        load = np.zeros(size)
        for owners, share in shares.items():
            np.add.at(load, _owner(owners, size), share / size)
        work = terms.pi_us(problem.layer_cost, size, 1.0, grows)
        pi[same] = work * float((load / problem.rate[members[0]]).max())
        step = max(1, BLOCK // size)
        for first in range(0, len(same), step):
            some = members[first : first + step]
            comm[same[first : first + step]] = _longest(problem, shares, some, alphas[some])
    return Achieved(problem.kappa * float((pi + comm).max()) + allreduce_us, pi, comm)


def _shares(problem: Problem, held: list[list[int]]) -> dict[tuple[int, ...], float]:
    """{owners: the share of all rows that goes to experts with exactly these owners}.

    held: [experts] the owners of each expert."""
    loads = problem.loads
    share = np.ones(problem.experts) if loads is None or not loads.any() else loads
    found: dict[tuple[int, ...], float] = {}
    for expert, owners in enumerate(held):
        key = tuple(owners)
        found[key] = found.get(key, 0.0) + float(share[expert] / share.sum())
    return found


def _owner(owners: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """[size] the owner that each source uses for an expert with these owners."""
    return np.array(owners, np.int64)[np.arange(size) % len(owners)]


def _longest(
    problem: Problem,
    shares: dict[tuple[int, ...], float],
    members: NDArray[np.int64],
    alphas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[groups] the largest C. members, alphas: [groups, size]."""
    size = members.shape[1]
    paid = np.zeros(members.shape)
    for owners, share in shares.items():
        owner = _owner(owners, size)
        source = np.flatnonzero(owner != np.arange(size))
        a, b = members[:, source], members[:, owner[source]]
        beta = problem.beta_us_per_mib[a, b] if problem.tree is None else problem.tree.betas(a, b)
        paid[:, source] += beta * share / 2
        np.add.at(paid.T, owner[source], beta.T * share / 2)
    return terms.comm_us(problem.crossings, alphas, paid, problem.payload_mib).max(1)
