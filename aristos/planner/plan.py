"""A plan: the groups, each term of their cost, the most by which they may miss the optimum, and the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import placement
from .achieved import Achieved, achieve
from .cost import Cost
from .placing import place
from .problem import Problem


@dataclass(frozen=True)
class Plan(placement.Plan):
    """The result of `solve`: the groups, each term of their cost, and the most by which they may miss the optimum.

    `MoE(..., plan=plan)` makes a layer with these groups and this placement; rank i is then device i.

    Attributes
    ----------
    problem : Problem
        The problem that was solved.
    objective : str
        "work_conserving" or "literal".
    allreduce : str
        "any" or "crossing": the pairs whose slowest link the all-reduce uses.
    groups : list of list of int
        Device indices, ascending. The groups are in the order of their first devices.
    cost : Cost
        The terms of the groups.
    lower_bound_us : float
        No partition costs less, in us.
    method : str
        How the groups and the bound were found.
    """

    problem: Problem
    objective: str
    allreduce: str
    groups: list[list[int]]
    cost: Cost
    lower_bound_us: float
    method: str

    @property
    def objective_us(self) -> float:
        """F of Equation 1."""
        return self.cost.objective_us

    @property
    def gap(self) -> float:
        """(objective - bound) / objective: the optimum is at most this fraction lower."""
        if self.objective_us <= 0:
            return 0.0
        return max(0.0, (self.objective_us - self.lower_bound_us) / self.objective_us)

    @cached_property
    def placement(self) -> list[dict[int, list[int]]]:
        """{expert: devices that hold it} of each group."""
        return [place(self.problem, group) for group in self.groups]

    @cached_property
    def achieved(self) -> Achieved:
        """The step that groups and placement give, with whole experts and with tokens sent as the layer sends them."""
        return achieve(self.problem, self.groups, self.cost.allreduce_us, self.objective == "work_conserving")

    @property
    def bottleneck(self) -> dict[str, Any]:
        """{group, device, term}: the largest of the step's terms, and the device responsible.

        term: `pi` (the device is the group's slowest), `comm` (the device has the group's largest C) or `allreduce`
        (the device is an end of the slowest link).
        """
        cost = self.cost
        g = cost.slowest
        stage = {"pi": cost.kappa * float(cost.pi_us[g]), "comm": cost.kappa * float(cost.comm_us[g])}
        term = max(stage, key=stage.__getitem__)
        if cost.allreduce_us > stage[term] and cost.link is not None:
            device = cost.link[0]
            g = next(g for g, members in enumerate(self.groups) if device in members)
            return {"group": g, "device": device, "term": "allreduce"}
        if term == "pi":
            members = np.array(self.groups[g])
            rate = np.where(self.problem.memory[members] > 0, self.problem.rate[members], np.inf)
            return {"group": g, "device": int(members[np.argmin(rate)]), "term": term}
        return {"group": g, "device": int(cost.worst[g]), "term": term}

    def to_json(self) -> dict[str, Any]:
        """The object that `aristos plan --json` prints; times in us."""
        cost = self.cost
        return {
            "feasible": True,
            "objective_us": self.objective_us,
            "achieved_us": self.achieved.step_us,
            "lower_bound_us": self.lower_bound_us,
            "gap": self.gap,
            "groups": self.groups,
            "placement": [{str(e): devices for e, devices in each.items()} for each in self.placement],
            "terms": {
                "kappa": cost.kappa,
                "allreduce_us": cost.allreduce_us,
                "pi_us": cost.pi_us.tolist(),
                "comm_us": cost.comm_us.tolist(),
            },
            "bottleneck": self.bottleneck,
            "method": self.method,
        }


def infeasible_json(missing: int) -> dict[str, Any]:
    """The object that `aristos plan --json` prints if no partition fits.

    missing: experts for which memory is missing.
    """
    keys = (
        "objective_us",
        "achieved_us",
        "lower_bound_us",
        "gap",
        "groups",
        "placement",
        "terms",
        "bottleneck",
        "method",
    )
    return {"feasible": False, "missing_memory": missing, **dict.fromkeys(keys)}


def ordered(groups: list[list[int]]) -> list[list[int]]:
    """The same groups, with ascending devices, in the order of their first devices."""
    return sorted(sorted(int(i) for i in members) for members in groups)
