"""Simulates a stage of a plan's groups, and compares each term of its time with the term that Equation 1 predicts.

A device is a node with one rank. Its kernels have the rate of the plan's problem for any number of rows. So the compute
terms differ only because Equation 1 divides the work in proportion to the rates, while the simulation has whole experts
and a drawn routing. Costs of steps are those of `Costs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..host.nodes import Nodes
from ..placement import Placement
from ..planner import Plan
from ..planner.cost import communication
from .machine import Kernel, Machine
from .measured import KnownPairs
from .outcome import Outcome
from .rank import Layer
from .simulation import Simulation

MOST_DEVICES = 512  # a group of more devices is not simulated
CROSSINGS = 2  # a forward stage crosses the links twice: rows out, outputs back


@dataclass(frozen=True)
class Checked:
    """A group, the times of one forward stage of it in us, and `alike`, the groups with equal rates, memory and links.

    pi, comm: as Equation 1 predicts. compute: the longest time that a device spends in experts. network: how long that
    device waits and serves the wire. steps: the rest of that device's call. stage: from the first rank's start to the
    last rank's end.
    """

    group: int
    alike: list[int]
    devices: int
    pi: float
    comm: float
    compute: float
    network: float
    steps: float
    stage: float

    def to_json(self) -> dict[str, Any]:
        """The values, and the error of each predicted term: predicted / simulated - 1, None if simulated is 0."""
        predicted = {"pi_us": self.pi, "comm_us": self.comm, "stage_us": self.pi + self.comm}
        simulated = {"pi_us": self.compute, "comm_us": self.network, "steps_us": self.steps, "stage_us": self.stage}
        errors = {key: value / simulated[key] - 1 if simulated[key] > 0 else None for key, value in predicted.items()}
        about = {"group": self.group, "alike": self.alike, "devices": self.devices}
        return {**about, "predicted": predicted, "simulated": simulated, "error": errors}


def distinct(plan: Plan) -> list[list[int]]:
    """Lists of group numbers, a list for groups with equal rates, memory and links.

    Groups of more than MOST_DEVICES devices are left out."""
    problem, size = plan.problem, np.array([len(group) for group in plan.groups])
    group_of = np.empty(problem.n, np.int64)
    for number, group in enumerate(plan.groups):
        group_of[group] = number
    paid = communication(problem, group_of, size)
    found: dict[tuple[bytes, ...], list[int]] = {}
    for number, group in enumerate(plan.groups):
        key = tuple(each[group].tobytes() for each in (problem.rate, problem.memory, paid))
        found.setdefault(key, []).append(number)
    return [alike for alike in found.values() if len(plan.groups[alike[0]]) <= MOST_DEVICES]


def check(
    plan: Plan, alike: Sequence[int], cfg: MoEConfig, tokens: int, seed: int, progress: Callable[[int], None]
) -> Checked:
    """Simulate a call of the first of these groups, with uniform routing. cfg: the model's layer.

    Raises InputError if the call cannot be simulated, and SimulationEnded if it cannot end.
    """
    problem, number = plan.problem, alike[0]
    group = plan.groups[number]
    place = {device: rank for rank, device in enumerate(group)}
    copies = [[place[device] for device in plan.placement[number][expert]] for expert in range(cfg.experts)]
    rng, rates = np.random.default_rng(seed), problem.rate[group]
    shape = (tokens, cfg.experts)
    ids = [np.argsort(rng.random(shape), axis=1)[:, : cfg.top_k].astype(np.int64) for _ in group]
    fastest = 1e3 * float(rates.max())  # GFLOP/s; the plan's rates are in MFLOP/us, which is TFLOP/s
    machine = Machine(
        kernel=Kernel(0.0, {1: fastest, 384: fastest}),
        links=KnownPairs.of_problem(problem, group),
        speeds={rank: float(rate / rates.max()) for rank, rate in enumerate(rates)},
    )
    placement = Placement(copies, cfg.experts, len(group))
    sim = Simulation(Layer(cfg, placement, ids), Nodes.split(len(group), 1), machine, calls=1)
    sim.run(progress)
    return _checked(plan, alike, Outcome.from_simulation(sim))


def _checked(plan: Plan, alike: Sequence[int], found: Outcome) -> Checked:
    number, shares = alike[0], found.shares
    busiest = int(np.argmax(shares["expert"] * found.ranks))
    call = 1e3 * float(found.ranks[busiest])
    compute = call * float(shares["expert"][busiest])
    waits = call * float(shares["idle"][busiest] + shares["wire"][busiest])
    return Checked(
        number,
        list(alike),
        len(plan.groups[number]),
        float(plan.cost.pi_us[number]),
        float(plan.cost.comm_us[number]) * CROSSINGS / plan.problem.crossings,
        compute,
        waits,
        call - compute - waits,
        1e3 * float(found.calls[-1]),
    )
