"""The cost of a partition: Equation 1, term by term.

    F(G*) = kappa * max over g of (pi(g) + max over i in g of C_i(g)) + T_rho(|G*|)

pi(g) = |g| * layer_cost / sum of rates (`work_conserving`: every device brings its tokens) or layer_cost / sum of rates
(`literal`, as the poster has it). C_i(g) = crossings * sum over j of (alpha_ij + beta_ij * payload / |g|). T_rho(k) =
2 (k-1) (alpha* + beta* gradient / k), with alpha*, beta* of the slowest link of all (`any`) or of those that cross
groups (`crossing`).

The formulas are in `terms.py`, and only there. `subsets`, `moves`, `exact`, `search`, `reach`, `tree_reach`,
`reducing`, `bounds`, `columns`, `baselines`, `tree`, `solver` and `words` call them; `terms.py` lists what the bounds
assume of their form. `tests/planner/test_terms.py` changes each term and checks that all of these follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import terms
from .problem import OBJECTIVES, Problem

ALLREDUCES = ("any", "crossing")
Groups = Sequence[Sequence[int]]
BLOCK = 1 << 22  # entries of a matrix examined at once


@dataclass(frozen=True)
class Cost:
    """Terms of one partition of the devices into groups.

    Attributes
    ----------
    objective_us : float
        F of Equation 1, in us. Infinite if a group cannot hold all experts.
    kappa : float
        MoE stages that each device runs in a step.
    allreduce_us : float
        T_rho, the all-reduce among the groups, in us.
    pi_us : array [groups], float64
        pi, the time that a stage computes, in us.
    comm_us : array [groups], float64
        The largest C_i of each group, the time that a stage communicates, in us.
    worst : array [groups], int64
        The device with the group's largest C_i.
    link : (int, int) or None
        The pair of devices whose alpha and beta the all-reduce uses; None for one group.
    missing : array [groups], int64
        Experts that do not fit into the group's memory.
    """

    objective_us: float
    kappa: float
    allreduce_us: float
    pi_us: NDArray[np.float64]
    comm_us: NDArray[np.float64]
    worst: NDArray[np.int64]
    link: tuple[int, int] | None
    missing: NDArray[np.int64]

    @property
    def slowest(self) -> int:
        """The group with the longest stage, the first of equal ones."""
        return int(np.argmax(self.pi_us + self.comm_us))


def allreduce_us(problem: Problem, k: float, alpha: float, beta: float) -> float:
    """T_rho among k groups over a link with this alpha and beta."""
    return 0.0 if k <= 1 else terms.allreduce_us(k, alpha, beta, problem.gradient_mib)


def stage_us(problem: Problem, members: Sequence[int] | NDArray[np.int64], grows: bool) -> float:
    """pi + max C of one group; infinite if it cannot hold all experts. grows: `work_conserving`. Not for a tree."""
    group = np.asarray(members, np.int64)
    if problem.memory[group].sum() < problem.experts:
        return float("inf")
    inside, size = np.ix_(group, group), len(group)
    alphas, betas = problem.alpha_us[inside].sum(1), problem.beta_us_per_mib[inside].sum(1)
    comm = terms.comm_us(problem.crossings, alphas, betas, terms.share_mib(problem.payload_mib, size))
    pi = terms.pi_us(problem.layer_cost, size, problem.rate[group].sum(), grows)
    return float(pi + comm.max())


def slowest_link(problem: Problem, group_of: NDArray[np.int64] | None = None) -> tuple[int, int] | None:
    """The pair (i, j), i < j, with the slowest link of the all-reduce, the first of equal ones.

    group_of: [n] if given, only pairs of different groups count. None if there is no pair.
    """
    if problem.tree is not None:
        return problem.tree.slowest(problem.gradient_mib, group_of)
    found, most = None, -1.0
    rows = max(1, BLOCK // problem.n)
    for first in range(0, problem.n, rows):
        part = slice(first, min(first + rows, problem.n))
        key = terms.slowness(problem.alpha_us[part], problem.beta_us_per_mib[part], problem.gradient_mib)
        here = np.arange(part.start, part.stop)
        key[here[:, None] >= np.arange(problem.n)] = -1.0
        if group_of is not None:
            key[group_of[part, None] == group_of[None, :]] = -1.0
        at = int(np.argmax(key))
        if key.flat[at] > most:
            most = float(key.flat[at])
            found = (first + at // problem.n, at % problem.n)
    return found


def link_of(problem: Problem, i: int, j: int) -> tuple[float, float]:
    """alpha and beta between two devices."""
    alpha, beta = links_to(problem, i, np.array([j]))[0]
    return float(alpha), float(beta)


def links_to(problem: Problem, i: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """[others, 2] alpha and beta between a device and each of the others."""
    if problem.tree is not None:
        return problem.tree.links_to(i, others)
    return np.stack([problem.alpha_us[i, others], problem.beta_us_per_mib[i, others]], axis=1)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value, if it is one of the choices. Else raises InputError, which lists them."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def labels(n: int, groups: Groups) -> NDArray[np.int64]:
    """[n] number of each device's group. Raises InputError unless the groups are a partition of range(n)."""
    group_of = np.full(n, -1, np.int64)
    sizes = [len(members) for members in groups]
    flat = np.fromiter((i for members in groups for i in members), np.int64, sum(sizes))
    if len(flat) == n and all(sizes) and flat.min() >= 0 and (np.bincount(flat, minlength=n)[:n] == 1).all():
        group_of[flat] = np.repeat(np.arange(len(groups)), sizes)
        return group_of
    for number, members in enumerate(groups):
        if not len(members):
            raise InputError(f"groups[{number}] is empty")
        for i in members:
            if not 0 <= i < n:
                raise InputError(f"groups[{number}] holds {i}, which is not a device in 0..{n - 1}")
            if group_of[i] >= 0:
                raise InputError(f"device {i} is in groups[{group_of[i]}] and in groups[{number}]")
            group_of[i] = number
    if (group_of < 0).any():
        raise InputError(f"device {int(np.argmin(group_of))} is in no group")
    return group_of


def evaluate(problem: Problem, groups: Groups, objective: str | None = None, allreduce: str = "any") -> Cost:
    """All terms of a partition.

    Parameters
    ----------
    problem : Problem
        Devices, links and the layer's costs.
    groups : sequence of sequences of int
        A partition of the devices: each index in one group.
    objective : str or None, default None
        "work_conserving": every device brings its tokens. "literal": Equation 1 as the poster has it. None:
        `problem.objective`.
    allreduce : str, default "any"
        "any": the all-reduce uses the slowest of all links. "crossing": the slowest link between groups.

    Returns
    -------
    Cost
        The partition's terms, in us.

    Raises
    ------
    InputError
        The groups are no partition of the devices, or `objective` or `allreduce` is unknown.

    Source
    ------
    Equation 1; see `aristos/planner/cost.py`.
    """
    objective = check_choice("objective", objective or problem.objective, OBJECTIVES)
    check_choice("allreduce", allreduce, ALLREDUCES)
    return price(problem, labels(problem.n, groups), len(groups), objective, allreduce)


def price(problem: Problem, group_of: NDArray[np.int64], k: int, objective: str, allreduce: str) -> Cost:
    """`evaluate` for labels 0..k-1 that need no check. group_of: [n] each device's label."""
    size = np.bincount(group_of, minlength=k)
    rates = np.bincount(group_of, problem.rate, minlength=k)
    pi = terms.pi_us(problem.layer_cost, size, rates, objective == "work_conserving")
    missing = np.maximum(0, problem.experts - np.bincount(group_of, problem.memory, minlength=k).astype(np.int64))
    comm, worst = _longest(communication(problem, group_of, size), group_of, k)
    link = None if k == 1 else slowest_link(problem, group_of if allreduce == "crossing" else None)
    reduce_us = 0.0 if link is None else allreduce_us(problem, k, *link_of(problem, *link))
    objective_us = problem.kappa * float((pi + comm).max()) + reduce_us
    if missing.any():
        objective_us = float("inf")
    return Cost(objective_us, problem.kappa, reduce_us, pi, comm, worst, link, missing)


def communication(problem: Problem, group_of: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] C of every device. size: [groups]"""
    alphas, betas = partners(problem, group_of, size)
    share = terms.share_mib(problem.payload_mib, size[group_of])
    return terms.comm_us(problem.crossings, alphas, betas, share)


def partners(
    problem: Problem, group_of: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[n] sums of alpha and of beta over the other devices of each device's group. size: [groups]"""
    if problem.tree is not None:
        return problem.tree.partners(group_of)
    alphas, betas = np.zeros(problem.n), np.zeros(problem.n)
    order = np.argsort(group_of, kind="stable")
    for members in np.split(order, np.cumsum(size)[:-1]):
        inside = np.ix_(members, members)
        alphas[members] = problem.alpha_us[inside].sum(1)
        betas[members] = problem.beta_us_per_mib[inside].sum(1)
    return alphas, betas


def _longest(
    times: NDArray[np.float64], group_of: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[k] the largest time of each group, and the first device that has it."""
    order = np.lexsort((np.arange(len(times)), -times, group_of))
    first = np.searchsorted(group_of[order], np.arange(k))
    return times[order[first]], order[first]
