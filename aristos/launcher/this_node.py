"""The node whose seats are assigned, and the GPUs of that node which the job may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..topology import Fault, Gpu, Topology, discover, from_text, texts
from ..topology.model import Node
from ..topology.visible import VARIABLE, VisibleDevice, visible


@dataclass(frozen=True)
class ThisNode:
    """This node. devices: in CUDA's order. outside: whether there is a Slurm job, and this is none of its nodes."""

    node: Node
    devices: tuple[VisibleDevice, ...]
    faults: tuple[Fault, ...] = ()
    outside: bool = False


def find(env: Mapping[str, str]) -> ThisNode:
    """This node, from the machine itself."""
    return this_node_of(discover(network=False, env=env), env)


def read(smi: str | Path) -> ThisNode:
    """The node that a file with the output of `nvidia-smi topo -m` describes; - is stdin.

    Raises TopologyError, InputError, OSError.
    """
    return this_node_of(from_text(texts.read(smi), None), {})


def this_node_of(topology: Topology, env: Mapping[str, str]) -> ThisNode:
    """This node in a topology. env: the job's environment, whose CUDA_VISIBLE_DEVICES limits the GPUs."""
    node = topology.nodes[topology.here or 0]
    outside = node.tasks == 0 and len(topology.nodes) > 1
    return ThisNode(node, usable(node.devices, env), topology.faults, outside)


def usable(devices: tuple[Gpu, ...], env: Mapping[str, str]) -> tuple[VisibleDevice, ...]:
    """A job's GPUs. Without CUDA_VISIBLE_DEVICES every MIG slice is one, although CUDA shows a process only one."""
    if VARIABLE in env:
        return visible(env, devices)[0]
    return tuple(VisibleDevice(device, mig) for device in devices for mig in device.mig or (None,))
