"""A node from the matrix of `nvidia-smi topo -m`."""

from __future__ import annotations

from kernel_cache.texts import whole

from . import cpusets, faults, matrix
from .model import Fault, Gpu, Nic, Node, Printed

SMI = "nvidia-smi"


def read(text: str, name: str = "") -> tuple[Node, list[Fault]]:
    """The node that a text with a matrix describes, and its faults. Raises TopologyError."""
    found = matrix.parse(text)
    devices = tuple(_gpu(int(label[3:]), printed) for label, printed in found.gpus.items())
    links, seen = faults.worse(found)
    nics = tuple(Nic(label, device) for label, device in found.nics.items())
    seen += faults.fewer(list(found.gpus), links) + faults.cut_lists(devices)
    return Node(name=name, devices=devices, nics=nics, links=links), seen


def _gpu(index: int, printed: Printed) -> Gpu:
    listed = printed.cpus is not None
    return Gpu(
        index,
        numa=whole(printed.numa or ""),
        cpus=cpusets.parse(printed.cpus or "") if listed else None,
        cpus_from=SMI if listed else None,
        gpu_numa=whole(printed.gpu_numa or ""),
        printed=printed,
    )
