"""Problems of published models on measured machines: the numbers of Equation 1 from shapes and links.

A step is one of training (forward, and backward that takes twice as long) or of inference (forward, no gradients).
Links, rates and memory come from a file of `aristos topo --measure`, schema `aristos-links/1`, or from a cluster file.
Nothing about a machine is guessed.
"""

from __future__ import annotations

from typing import Any

from ..models import Model
from ..topology.links import MIB, Links
from .machine import Need, fields, size
from .moving import Moving, compare
from .problem import Problem, parse
from .values import count

ITEM = 2  # bytes of a value on the wire and of a weight: bfloat16
STATE = 16  # bytes a parameter in training: weight and gradient in bfloat16, master and two moments in float32


def build(
    model: Model, tokens: int, machine: Links | dict[str, Any], inference: bool = False, each: float | None = None
) -> Problem:
    """The problem of a model on a machine. tokens: how many tokens each device has in a layer. machine: measured links,
    or a cluster that `machine.load` read. each: bytes a parameter, by default STATE in training and ITEM in inference.

    Costs are in MFLOP, rates in MFLOP a us. Raises InputError if the links lack a figure. Raises Infeasible if a device
    lacks memory for the parameters outside the experts, which every device holds, or if all devices together lack
    memory for the experts.
    """
    tokens = count("tokens", tokens, 1)
    each = (ITEM if inference else STATE) if each is None else each
    expert, dense = int(model.expert * model.moe_layers * each), int(model.dense * each)
    passes = 1 if inference else 3
    return parse(
        {
            "experts": model.experts,
            "layer_cost": tokens * model.top_k * 2 * model.expert / 1e6,
            "payload_mib": tokens * model.top_k * model.hidden * ITEM / MIB,
            "crossings": 2 if inference else 4,
            "stages": passes * model.moe_layers * size(machine),
            "gradient_mib": None if inference else model.dense * ITEM / MIB,
            "expert_gb": expert / 1e9,
            **fields(machine, Need(model.experts, expert, dense, each, inference)),
        }
    )


def moving(model: Model, tokens: int, group: int) -> Moving:
    """The bytes that moving tokens and moving weights take in a group of `group` devices."""
    return compare(tokens, model.hidden, model.ffn, model.experts, model.top_k, model.gated, group, ITEM)
