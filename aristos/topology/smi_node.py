"""A node from the matrix of `nvidia-smi topo -m`."""

from __future__ import annotations

from kernel_cache.texts import whole

from . import cpusets, faults, matrix
from .matrix import Matrix
from .model import Fault, Gpu, Nic, Node, Printed

SMI = "nvidia-smi"


def read(text: str, name: str = "") -> tuple[Node, list[Fault]]:
    """The node that a text with a matrix describes, and its faults. Raises TopologyError."""
    found = matrix.parse(text)
    devices = tuple(_printed(int(label[3:]), found) for label in found.gpus)
    links, seen = faults.worse(found)
    nics = tuple(Nic(label, device) for label, device in found.nics.items())
    seen += faults.fewer(list(found.gpus), links) + faults.cut_lists(devices)
    return Node(name=name, devices=devices, nics=nics, links=links), seen


def _printed(index: int, found: Matrix) -> Gpu:
    label = f"GPU{index}"
    cpus, numa, own = found.cpus.get(label), found.numa.get(label), found.gpu_numa.get(label)
    return Gpu(
        index,
        numa=whole(numa or ""),
        cpus=cpusets.parse(cpus) if cpus is not None else None,
        cpus_from=SMI if cpus is not None else None,
        gpu_numa=whole(own or ""),
        printed=Printed(cpus, numa, own),
    )
