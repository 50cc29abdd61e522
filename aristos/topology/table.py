"""Links and devices from the table of defaults, for ranks whose links cannot be measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import cpusets, defaults
from .links import MIB, Links, RankDevice, Rows, Span
from .model import Gpu, Link, Node, Topology
from .visible import VisibleDevice

US_PER_MIB = MIB / 1e3  # microseconds for a MiB at one GB/s


def place(node: Node, device: Gpu | None, cpus: frozenset[int] = frozenset()) -> RankDevice:
    """A rank's device with its facts from topology and table. If device is None, the rank has cores."""
    if device is None:
        return RankDevice("cores", cpus=cpusets.show(cpus))
    known = defaults.device(device.name or "")
    memory, memory_from = device.memory, "the driver"
    if memory is None and known is not None:
        memory, memory_from = int(known.memory * 1e9), f"table: {known.source}"
    return RankDevice(
        device.name or "unknown GPU",
        device.label,
        cpusets.show(cpus or device.cpus or ()),
        known.bf16 * 1e3 if known else None,
        f"table: {known.source}" if known else "",
        memory,
        memory_from if memory is not None else "",
    )


def link_class(topology: Topology, a: tuple[int, str, frozenset[int]], b: tuple[int, str, frozenset[int]]) -> Link:
    """The class between two ranks, each (index of its node, label of its device or '', its CPUs)."""
    if a[0] != b[0]:
        return topology.between(a[0], b[0])
    node = topology.nodes[a[0]]
    if a[1] and b[1]:
        return node.link(a[1], b[1]) or Link("SYS")
    return node.cpu_link(a[2], b[2])


def from_table(classes: Sequence[Sequence[Link]], devices: Sequence[RankDevice], hosts: Sequence[str]) -> Links:
    """Links, each with the figures of its class. classes: [n, n]. devices, hosts: [n]."""
    n = len(hosts)
    alpha: Rows = [[None] * n for _ in range(n)]
    beta: Rows = [[None] * n for _ in range(n)]
    sources = set()
    for a in range(n):
        for b in range(n):
            if a != b:
                gpu = devices[a].name if devices[a].label and devices[b].label else ""
                figure = defaults.link(classes[a][b], gpu)
                alpha[a][b], beta[a][b] = figure.alpha, US_PER_MIB / figure.bandwidth
                sources.add(f"table, {classes[a][b]}: {figure.source}")
    span = Span(alpha, beta)
    return Links(
        hosts=list(hosts),
        devices=list(devices),
        classes=[[str(link) for link in row] for row in classes],
        small=span,
        large=span,
        residual=[[None] * n for _ in range(n)],
        origin=[["table"] * n for _ in range(n)],
        notes=sorted(sources),
    )


def of_machine(topology: Topology, devices: Sequence[VisibleDevice]) -> Links:
    """The table's links for all GPUs of a job, as if all its nodes were like this one. devices: this node's devices."""
    at = topology.here or 0
    node = topology.nodes[at]
    nodes = [i for i, each in enumerate(topology.nodes) if each.tasks != 0] or [at]
    seats = [(i, each.device) for i in nodes for each in devices]
    ends = [(i, device.label, device.cpus or frozenset()) for i, device in seats]
    whole = replace(topology, nodes=tuple(replace(node, name=each.name) for each in topology.nodes))
    classes = [[Link("self") if x is y else link_class(whole, x, y) for y in ends] for x in ends]
    found = from_table(classes, [place(node, d) for _, d in seats], [topology.nodes[i].name for i, _ in seats])
    if len(nodes) > 1:
        found = replace(found, notes=[*found.notes, f"all {len(nodes)} nodes are assumed to be like this one"])
    return found
