"""The timeline of some ranks in a simulation's last call, as a file like those of `MoE.write_timeline`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..layer.backend import Event
from ..layer.cpu import computed_experts, kept_events, named_events
from ..layer.timeline import trace_events
from ..primitives.aside import write_text
from .rank import Layer
from .simulation import Simulation

MOST_RANKS = 12  # ranks whose events are kept


def interesting(layer: Layer) -> list[int]:
    """At most MOST_RANKS ranks: those whose experts have the most and the fewest rows, and others evenly between."""
    world = len(layer.ids)
    rows = np.bincount(layer.placement.ranks[np.concatenate([ids[ids >= 0] for ids in layer.ids])], minlength=world)
    if world <= MOST_RANKS:
        return list(range(world))
    even = np.linspace(0, world - 1, MOST_RANKS - 2).round().astype(int)
    return sorted({int(rows.argmax()), int(rows.argmin()), *even.tolist()})


def write(path: str, sim: Simulation, facts: Mapping[str, Any]) -> None:
    """Write the events of the last call. facts: JSON values for `otherData`."""
    ranks = [(sim.workers, events(sim, rank)) if rank in sim.kept else (0, []) for rank in range(sim.world)]
    found = trace_events(ranks, [f"simulated node {node}" for node in sim.nodes.node_of])
    shown = [each for each in found if each["pid"] in sim.kept]
    write_text(Path(path), json.dumps({"traceEvents": shown, "displayTimeUnit": "ns", "otherData": dict(facts)}))


def events(sim: Simulation, rank: int) -> list[Event]:
    """The events of a rank in the last call. Times are virtual, in s."""
    experts = computed_experts(sim.layer.cfg, sim.layer.placement, rank, sim.layer.foreign(sim.nodes, rank))
    return named_events(sim.kept[rank], kept_events(sim.ranks[rank].state, sim.tables.starts, sim.workers), experts)
