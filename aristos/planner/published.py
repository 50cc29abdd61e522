"""Problems of published models on measured machines: shapes and links become the numbers of Equation 1.

A step is training (forward, backward twice as long) or inference (forward). Links, rates and memory come from a file of
`aristos topo --measure`, schema `aristos-links/1`. Does not guess a machine.
"""

from __future__ import annotations

from ..models import Model
from ..topology.links import MIB, SHARE, Links
from ..topology.links import problem as of_machine
from .moving import Moving, compare
from .problem import Infeasible, Problem, count, parse

ITEM = 2  # bytes of a value on the wire and of a weight: bfloat16
STATE = 16  # bytes a parameter in training: weight and gradient in bfloat16; master weight and two moments in float32


def build(model: Model, tokens: int, links: Links, inference: bool = False) -> Problem:
    """The problem of a model on a machine. tokens: of each device in a layer.

    Costs are MFLOP, rates MFLOP a us. Raises InputError if a figure is missing in the links, Infeasible if a device
    lacks memory for the parameters outside the experts, which every device holds.
    """
    tokens = count("tokens", tokens, 1)
    bytes_each = ITEM if inference else STATE
    machine = of_machine(links, model.expert * model.moe_layers * bytes_each, model.dense * bytes_each)
    _check_capacity(model, links, bytes_each)
    for device in machine["devices"]:
        device["memory"] = min(device["memory"], model.experts)
    passes = 1 if inference else 3
    return parse(
        {
            "experts": model.experts,
            "layer_cost": tokens * model.top_k * 2 * model.expert / 1e6,
            "payload_mib": tokens * model.top_k * model.hidden * ITEM / MIB,
            "crossings": 2 if inference else 4,
            "stages": passes * model.moe_layers * links.n,
            "gradient_mib": 0.0 if inference else model.dense * ITEM / MIB,
            **machine,
        }
    )


def _check_capacity(model: Model, links: Links, bytes_each: int) -> None:
    """Raise Infeasible where the parameters outside the experts alone are too much for a device."""
    needs = model.dense * bytes_each
    capacities = [int(device.memory_bytes * SHARE) for device in links.devices if device.memory_bytes is not None]
    short = [i for i, capacity in enumerate(capacities) if capacity < needs]
    if not short:
        return
    expert = model.expert * model.moe_layers * bytes_each
    held = sum(min(model.experts, (capacity - needs) // expert) for capacity in capacities if capacity >= needs)
    missing = sum(-((capacities[i] - needs) // expert) for i in short) + max(0, model.experts - held)
    worst = min(short, key=capacities.__getitem__)
    name = f"{links.hosts[worst]}:{links.devices[worst].label or worst}"
    raise Infeasible(
        missing,
        f"device {worst} ({name}) has {capacities[worst] / 1e9:.3g} GB for parameters ({SHARE} of its memory), and"
        f" those outside the experts, which every device holds, need {needs / 1e9:.3g} GB at {bytes_each} bytes each;"
        f" {len(short)} of {links.n} devices have too little",
    )


def moving(model: Model, tokens: int, group: int) -> Moving:
    """Whether tokens or weights are less to move in a group of so many devices."""
    return compare(tokens, model.hidden, model.ffn, model.experts, model.top_k, model.gated, group, ITEM)
