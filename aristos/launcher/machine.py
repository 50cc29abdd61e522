"""The node this runs on, as seats are taken from it, and which of its GPUs the job may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..topology import Device, Fault, Topology, discover, from_text, texts
from ..topology.model import Node
from ..topology.visible import VARIABLE, Seen, visible


@dataclass(frozen=True)
class Machine:
    """devices: what CUDA counts, in its order. outside: a Slurm job is known, and this is none of its nodes."""

    node: Node
    devices: tuple[Seen, ...]
    faults: tuple[Fault, ...] = ()
    outside: bool = False


def look(env: Mapping[str, str]) -> Machine:
    """This machine."""
    return of(discover(network=False, env=env), env)


def read(smi: str | Path) -> Machine:
    """The machine that a file with the text of `nvidia-smi topo -m` describes; - is stdin.

    Raises TopologyError, InputError, OSError.
    """
    return of(from_text(texts.read(smi), None), {})


def of(topology: Topology, env: Mapping[str, str]) -> Machine:
    node = topology.nodes[topology.here or 0]
    outside = node.tasks == 0 and len(topology.nodes) > 1
    return Machine(node, usable(node.devices, env), topology.faults, outside)


def usable(devices: tuple[Device, ...], env: Mapping[str, str]) -> tuple[Seen, ...]:
    """The GPUs that a job may use; where nobody chose, all slices of those cut up, though CUDA shows a process one."""
    if VARIABLE in env:
        return visible(env, devices)[0]
    return tuple(Seen(device, mig) for device in devices for mig in device.mig or (None,))
