"""What the all-reduce among k groups costs at least: the bound's other half.

Over `any` link it is known: the slowest of all. Over `crossing` ones it depends on the groups, but whatever they are,
their slowest crossing pair is one of the n - 1 that join two components when pairs are taken from slow to fast; the
slower ones lie inside groups then, and a group that holds a component pays for its links.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .cells import single_linkage
from .cost import allreduce_us, link_of, slowest_link
from .problem import Problem

PRICED_MOST = 256  # devices up to which components are priced


def least_reduce(problem: Problem, allreduce: str, objective: str, incumbent_us: float) -> Callable[[int], float]:
    """T_rho(k) at least, of every partition that costs less than the incumbent."""
    slowest = slowest_link(problem)
    if slowest is None:
        return lambda k: 0.0
    if allreduce == "any":
        links = [link_of(problem, *slowest)]
    elif problem.tree is not None:
        meeting = np.array([s.size > s.children[0][1].size for s in problem.tree.switches])
        real = problem.tree.links[meeting]  # at a switch with one child no two devices meet
        key = real @ np.array([1.0, problem.gradient_mib / 2])
        links = [(a, b) for a, b in np.unique(real[key >= key[0]], axis=0)]  # the topmost of them always crosses
    else:
        links = _links(problem, objective, incumbent_us)
    return lambda k: min(allreduce_us(problem, k, alpha, beta) for alpha, beta in links)


def _links(problem: Problem, objective: str, incumbent_us: float) -> list[tuple[float, float]]:
    """Links that a partition better than the incumbent may have as its slowest crossing one."""
    p = problem
    key = p.alpha_us + p.beta_us_per_mib * (p.gradient_mib / 2)
    joins = single_linkage(-key)
    label = np.arange(p.n)
    links = []
    held = 0.0  # a stage's least time, given what is together already
    for _, i, j in joins:
        link = float(p.alpha_us[i, j]), float(p.beta_us_per_mib[i, j])
        if p.kappa * held + allreduce_us(p, 2, *link) < incumbent_us:
            links.append(link)
        label[label == label[j]] = label[i]
        together = np.flatnonzero(label == label[i])
        if len(together) < p.n and p.n <= PRICED_MOST:
            held = max(held, _stage_at_least(p, together, objective))
    return links or [link_of(p, *slowest_link(p))]  # type: ignore[misc]


def _stage_at_least(problem: Problem, together: np.ndarray, objective: str) -> float:
    """What a group that holds these devices takes a stage at least."""
    p, found = problem, np.inf
    others = np.setdiff1d(np.arange(p.n), together)
    fastest = np.cumsum(np.sort(p.rate)[::-1])
    for s in range(len(together), p.n + 1):
        w = p.alpha_us + p.beta_us_per_mib * (p.payload_mib / s)
        more = np.sort(w[np.ix_(together, others)], axis=1)[:, : s - len(together)].sum(1)
        pays = p.crossings * float((w[np.ix_(together, together)].sum(1) + more).max())
        pi = (s if objective == "work_conserving" else 1) * p.layer_cost / fastest[s - 1]
        found = min(found, pays + pi)
    return found
