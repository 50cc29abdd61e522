"""The baselines that a plan must never be worse than: one group, one group a node, and the greedy merge of 2024.

Each function returns groups. Their cost is infinite if a group cannot hold all experts.
"""

from __future__ import annotations

import numpy as np

from .cells import joined, link_key, single_linkage
from .cost import Cost, evaluate, stage_us
from .problem import Problem

NAMES = ("one group", "one group a node", "2024 greedy")
GREEDY_MOST = 256  # devices; with more, `all_baselines` skips the greedy merge, whose time is cubic


def one_group(problem: Problem) -> list[list[int]]:
    """All devices together."""
    return [list(range(problem.n))]


def node_of(problem: Problem) -> np.ndarray:
    """[n] each device's node.

    In the compressed form a node is a lowest switch. Otherwise, if every device's name consists of a node's name, then
    letters or punctuation, then a last number ("n0d3", "a:1"), the names decide. Else links are sorted by time and
    divided at the largest relative gap; a node is then a set of devices connected by the faster links.
    """
    if problem.tree is not None:
        bottom = (problem.tree.up >= 0).sum(0) - 1
        return np.unique(problem.tree.up[bottom, np.arange(problem.n)], return_inverse=True)[1].astype(np.int64)
    named = _nodes_by_name(problem.names)
    if named is not None:
        return named
    key = link_key(problem)
    above = np.triu_indices(problem.n, 1)
    values = np.unique(key[above])
    values = values[values > 0]
    if len(values) < 2 or (steps := values[1:] / values[:-1]).max() < 2:
        return np.zeros(problem.n, np.int64)
    limit = values[int(np.argmax(steps))]
    return joined([link for link in single_linkage(key) if link[0] <= limit], problem.n)


def _nodes_by_name(names: tuple[str, ...]) -> np.ndarray | None:
    stems = []
    for name in names:
        stem = name.rstrip("0123456789")
        if stem == name or not any(c.isdigit() for c in stem):
            return None
        stems.append(stem)
    return np.unique(stems, return_inverse=True)[1].astype(np.int64) if stems else None


def groups_of(labels: np.ndarray) -> list[list[int]]:
    """Groups from labels. Devices ascend within a group, and groups are in the order of their first devices."""
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(int(label), []).append(i)
    return list(members.values())


def per_node(problem: Problem) -> list[list[int]]:
    """One group a node."""
    return groups_of(node_of(problem))


def greedy(problem: Problem, objective: str | None = None) -> list[list[int]]:
    """The merge of 2024. It visits links in ascending order of alpha + beta * payload. It merges the groups of both
    ends if neither group can hold all experts, or if the merged group's stage takes no longer than the longer of the
    two stages. Then each group that cannot hold the experts joins the group with which F rises least.
    """
    objective = objective or problem.objective
    n, kappa = problem.n, problem.kappa
    row, column = np.triu_indices(n, 1)
    order = np.argsort(link_key(problem)[row, column], kind="stable")
    grows = objective == "work_conserving"
    members: dict[int, list[int]] = {i: [i] for i in range(n)}
    where = list(range(n))
    stage: dict[int, float] = {i: stage_us(problem, [i], grows) for i in range(n)}
    for at in order:
        a, b = where[row[at]], where[column[at]]
        if a == b:
            continue
        merged = sorted(members[a] + members[b])
        both = stage_us(problem, merged, grows)
        hopeless = np.isinf(stage[a]) and np.isinf(stage[b])
        if hopeless or kappa * both <= max(kappa * stage[a], kappa * stage[b]):
            a, b = min(a, b), max(a, b)
            members[a], stage[a] = merged, both
            for i in members.pop(b):
                where[i] = a
            del stage[b]
    return _join_leftovers(problem, list(members.values()), objective)


def _join_leftovers(problem: Problem, groups: list[list[int]], objective: str) -> list[list[int]]:
    """Join each group that cannot hold all experts to the group with which F rises least."""
    while len(groups) > 1:
        short = [g for g in groups if problem.memory[g].sum() < problem.experts]
        if not short:
            break
        leaving = short[0]
        rest = [g for g in groups if g is not leaving]
        tries = [[*rest[:t], sorted(rest[t] + leaving), *rest[t + 1 :]] for t in range(len(rest))]
        costs = [_padded(problem, each, objective) for each in tries]
        groups = tries[costs.index(min(costs))]
    return sorted(groups)


def _padded(problem: Problem, groups: list[list[int]], objective: str) -> float:
    """F without the check of memory. It compares partitions in which some group may still lack memory."""
    cost = evaluate(problem, groups, objective)
    return cost.kappa * float((cost.pi_us + cost.comm_us).max()) + cost.allreduce_us


def all_baselines(
    problem: Problem, objective: str | None = None, allreduce: str = "any"
) -> dict[str, tuple[list[list[int]], Cost]]:
    """Groups and cost of each baseline by name.

    The greedy merge is left out for the compressed form and above GREEDY_MOST devices."""
    made = {NAMES[0]: one_group(problem), NAMES[1]: per_node(problem)}
    if problem.n <= GREEDY_MOST and problem.tree is None:
        made[NAMES[2]] = greedy(problem, objective)
    return {name: (groups, evaluate(problem, groups, objective, allreduce)) for name, groups in made.items()}
