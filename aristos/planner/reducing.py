"""Lower bound on the time of the all-reduce among k groups: T_rho, the second term of F in Equation 1.

With allreduce="any" the bound is exact, because the all-reduce uses the slowest link of all. With "crossing" its link
depends on the groups. Take the pairs of devices from slow to fast links, and join the devices of each pair into one
component. The slowest pair whose devices are in different groups is always one of the n - 1 pairs that join two
components. All slower pairs lie inside groups. So each component that the slower pairs have formed lies inside one
group, which pays for the component's links.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import terms
from .cells import single_linkage
from .cost import allreduce_us, link_of, slowest_link
from .problem import Problem

PRICED_MOST = 256  # with more devices, no bound on a stage is computed


def least_reduce(problem: Problem, allreduce: str, objective: str, incumbent_us: float) -> Callable[[int], float]:
    """A lower bound on T_rho(k) for every partition that costs less than the incumbent, as a function of k."""
    slowest = slowest_link(problem)
    if slowest is None:
        return lambda k: 0.0
    if allreduce == "any":
        links = [link_of(problem, *slowest)]
    elif problem.tree is not None:
        meeting = np.array([s.size > s.children[0][1].size for s in problem.tree.switches])
        real = problem.tree.links[meeting]  # a switch with one child is left out: no two devices meet there
        key = terms.slowness(real[:, 0], real[:, 1], problem.gradient_mib)
        links = [(a, b) for a, b in np.unique(real[key >= key[0]], axis=0)]  # the topmost link always crosses
    else:
        links = _links(problem, objective, incumbent_us)
    return lambda k: min(allreduce_us(problem, k, alpha, beta) for alpha, beta in links)


def _links(problem: Problem, objective: str, incumbent_us: float) -> list[tuple[float, float]]:
    """Links that may be the slowest crossing link of a partition that is better than the incumbent."""
    p = problem
    joins = single_linkage(-terms.slowness(p.alpha_us, p.beta_us_per_mib, p.gradient_mib))
    label = np.arange(p.n)
    links = []
    held = 0.0  # lower bound on a stage, given the components so far
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
    """Lower bound on the stage of a group that contains these devices, us."""
    p, found = problem, np.inf
    others = np.setdiff1d(np.arange(p.n), together)
    fastest = np.cumsum(np.sort(p.rate)[::-1])
    for s in range(len(together), p.n + 1):
        w = terms.comm_us(p.crossings, p.alpha_us, p.beta_us_per_mib, terms.share_mib(p.payload_mib, s))
        more = np.sort(w[np.ix_(together, others)], axis=1)[:, : s - len(together)].sum(1)
        comm = float((w[np.ix_(together, together)].sum(1) + more).max())
        found = min(found, comm + terms.pi_us(p.layer_cost, s, fastest[s - 1], objective == "work_conserving"))
    return found
