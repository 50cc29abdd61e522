"""A node from the output of nvidia-smi's commands: matrix, list, query and NVLinks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from kernel_cache.texts import whole

from ..errors import TopologyError
from . import cpusets, faults, listing, matrix, nvlink, query
from .listing import Listed
from .matrix import Matrix
from .model import Fault, Gpu, Nic, Node, Printed
from .nvlink import Wires
from .query import Queried

SMI = "nvidia-smi"


def read(text: str, name: str = "") -> tuple[Node, list[Fault]]:
    """The node that a text describes, and its faults. Raises TopologyError.

    The text is a matrix, perhaps between the output of other commands, or the output of one other command alone; then
    the links' classes are unknown.
    """
    if not matrix.looks_like(text):
        if re.search(r"^\s*Link \d+:|all links are inactive", text, re.MULTILINE | re.IGNORECASE):
            return assemble(name, None, wires=nvlink.parse(text))
        if re.search(r"^\s*GPU \d+:", text, re.MULTILINE):
            return assemble(name, None, listed=listing.parse(text))
        if (queried := _queried(text)) is not None:
            return assemble(name, None, queried=queried)
    return assemble(name, matrix.parse(text))


def _queried(text: str) -> tuple[Queried, ...] | None:
    try:
        return query.parse(text)
    except TopologyError:
        return None


def assemble(
    name: str,
    found: Matrix | None,
    listed: Sequence[Listed] = (),
    queried: Sequence[Queried] = (),
    wires: Sequence[Wires] = (),
) -> tuple[Node, list[Fault]]:
    """A node from the parts that are known, joined by the GPU's number, and its faults."""
    devices = _devices(found, listed, queried, wires)
    links, seen = faults.worse(found) if found else ({}, [])
    nics = tuple(Nic(label, device) for label, device in found.nics.items()) if found else ()
    seen += faults.fewer([d.label for d in devices], links) if found else []
    seen += faults.dark(wires) + faults.cut_lists(devices)
    return Node(name=name, devices=devices, nics=nics, links=links), seen


def _devices(
    found: Matrix | None, listed: Sequence[Listed], queried: Sequence[Queried], wires: Sequence[Wires]
) -> tuple[Gpu, ...]:
    devices = {int(label[3:]): _printed(int(label[3:]), found) for label in found.gpus} if found else {}
    for gpu in listed:
        devices[gpu.index] = replace(devices.get(gpu.index, Gpu(gpu.index)), name=gpu.name, uuid=gpu.uuid, mig=gpu.mig)
    for at, entry in enumerate(queried):
        index = at if entry.index is None else entry.index
        known = devices.get(index, Gpu(index))
        devices[index] = replace(
            known,
            name=entry.name or known.name,
            uuid=entry.uuid or known.uuid,
            pci=entry.pci or known.pci,
            memory=entry.memory or known.memory,
        )
    for each in wires:
        index = each.index or 0  # without a line for the GPU there is only one GPU
        known = devices.get(index, Gpu(index))
        devices[index] = replace(
            known, name=known.name or each.name, uuid=known.uuid or each.uuid, nvlinks=0 if each.dark else each.active
        )
    if found and len(devices) > len(found.gpus):
        extra = sorted(set(devices) - {int(label[3:]) for label in found.gpus})
        raise TopologyError(
            f"GPUs {extra} are listed but have no row in the matrix: the commands ran on other machines"
        )
    return tuple(devices[index] for index in sorted(devices))


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
