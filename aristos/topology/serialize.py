"""A topology as JSON and as a text table. If a machine was read from a file, its JSON has the cells as printed."""

from __future__ import annotations

from typing import Any

from kernel_cache.texts import aligned

from . import cpusets
from .hostlist import fold
from .model import Gpu, Node, Topology

MATRIX = 256  # the most nodes for which the matrix of distances is written
WIDE = 100  # the most columns of a matrix that has rows of NICs


def as_json(topology: Topology, file: bool) -> dict[str, Any]:
    """The object that `aristos topo --json` prints.

    file: whether the topology was read from texts; then only facts from these texts are included."""
    node = topology.nodes[topology.here] if topology.here is not None and topology.nodes else None
    found: dict[str, Any] = {
        "gpus": [_gpu(device, file) for device in node.devices] if node else [],
        "nics": [{"name": nic.label, "device": nic.name} for nic in node.nics] if node else [],
        "links": _links(node) if node else {},
        "faults": [str(fault) for fault in topology.faults],
    }
    if not file and node:
        found["node"] = _node(node)
    if topology.network.kind != "unknown" or len(topology.nodes) > 1:
        found["network"] = _network(topology)
    return found


def _gpu(device: Gpu, file: bool) -> dict[str, Any]:
    printed = device.printed
    if file and printed:
        numa, cpus, gpu_numa = printed.numa, printed.cpus, printed.gpu_numa
    else:
        numa, gpu_numa = _text(device.numa), _text(device.gpu_numa)
        cpus = cpusets.show(device.cpus) if device.cpus is not None else None
    facts: dict[str, Any] = {"name": device.label, "numa": numa, "cpus": cpus, "gpu_numa": gpu_numa}
    if not file:
        facts |= {"product": device.name, "uuid": device.uuid, "pci": device.pci, "memory": device.memory}
        facts["mig"] = [{"name": mig.name, "uuid": mig.uuid} for mig in device.mig]
    return facts


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _links(node: Node) -> dict[str, dict[str, str]]:
    labels = [d.label for d in node.devices] + [nic.label for nic in node.nics]
    return {
        a: {b: str(link) for b in labels if a != b and (link := node.link(a, b)) is not None}
        for a in labels
        if node.links
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "cpus": cpusets.show(node.cpus),
        "allowed": cpusets.show(node.allowed),
        "cores": len(node.cores),
        "memory": node.memory,
        "numa": [{"index": n.index, "cpus": cpusets.show(n.cpus), "memory": n.memory} for n in node.numa],
        "caches": [{"level": c.level, "size": c.size, "cpus": cpusets.show(c.cpus)} for c in node.caches],
    }


def _network(topology: Topology) -> dict[str, Any]:
    """The nodes, each node's parents, and a matrix with the number of switches between two nodes, null for no known
    path."""
    nodes = [node for node in topology.nodes if node.name]
    names = [node.name for node in nodes]
    network = topology.network
    found: dict[str, Any] = {
        "kind": network.kind,
        "nodes": names,
        "tasks": [node.tasks for node in nodes],
        "parents": {name: list(above) for name, above in network.parents.items()},
        "distance": None,
    }
    if len(names) <= MATRIX:
        found["distance"] = [[network.distance(a, b) for b in names] for a in names]
    return found


def table(topology: Topology) -> str:
    """The topology as text: machine, devices, matrix, network, faults."""
    parts = []
    if topology.here is not None and topology.nodes:
        node = topology.nodes[topology.here]
        parts += [*_machine(node), *_gpus(node), *_matrix(node)]
    parts += _nodes(topology)
    for fault in topology.faults:
        parts.append(f"fault: {fault.node + ': ' if fault.node else ''}{fault.text}\n       -> {fault.remedy}")
    return "\n".join(parts)


def _machine(node: Node) -> list[str]:
    if not node.complete:
        return []
    lines = [f"{node.name or 'this machine'}: {len(node.cpus)} CPUs, {len(node.cores)} cores, {_bytes(node.memory)}"]
    if node.allowed != node.cpus:
        lines[0] += f"; allowed here: {cpusets.show(node.allowed)}"
    for domain in node.numa:
        shared = [c for c in node.caches if c.level == max(x.level for x in node.caches) and c.cpus & domain.cpus]
        caches = f", {len(shared)} x L{shared[0].level} {_bytes(shared[0].size)}" if shared else ""
        cpus = f"CPUs {cpusets.show(domain.cpus)}" if domain.cpus else "no CPUs"
        lines.append(f"  NUMA {domain.index}: {cpus}, {_bytes(domain.memory)}{caches}")
    return lines


def _gpus(node: Node) -> list[str]:
    if not node.devices:
        return ["  no GPU: ranks compute on their cores"] if node.complete else []
    rows = [["", "device", "memory", "NVLinks", "NUMA", "CPUs", "PCI, MIG's UUID", "nearest NIC"]]
    for device in node.devices:
        printed = device.printed
        cpus = cpusets.show(device.cpus) if device.cpus else "?"
        nics = node.nics_by_distance(device.label)
        link = node.link(device.label, nics[0].label) if nics else None
        rows.append(
            [
                device.label,
                device.name or "?",
                _bytes(device.memory),
                _text(device.nvlinks) or "?",
                (printed.numa if printed and printed.numa else _text(device.numa)) or "?",
                f"{cpus} (nvidia-smi)" if device.cpus_from == "nvidia-smi" else cpus,
                device.pci or "?",
                f"{nics[0].name} ({link})" if nics else "?",
            ]
        )
        rows += [["", f"MIG {mig.name}", "", "", "", "", mig.uuid, ""] for mig in device.mig]
    return aligned(_without_empty(rows))


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """The rows without columns that have no known value."""
    kept = [at for at in range(len(rows[0])) if at == 0 or any(row[at] not in ("?", "") for row in rows[1:])]
    return [[row[at] for at in kept] for row in rows]


def _matrix(node: Node) -> list[str]:
    labels = [d.label for d in node.devices] + [nic.label for nic in node.nics]
    if not node.links or len(labels) < 2:
        return []
    rows = [["", *labels]]
    for a in labels:
        rows.append([a, *("X" if a == b else str(node.link(a, b) or "?") for b in labels)])
    lines = aligned(rows)
    if len(lines[0]) > WIDE:  # leave out links between NICs, which matter least
        rows = [row for at, row in enumerate(rows) if at <= len(node.devices)]
        lines = aligned(rows)
    return ["", *lines]


def _nodes(topology: Topology) -> list[str]:
    network, names = topology.network, [node.name for node in topology.nodes if node.name]
    if network.kind == "unknown" and len(names) < 2:
        return []
    lines = ["", f"network: {network.kind}, {len(names)} nodes"]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(network.parents.get(name, ()), []).append(name)
    for above, members in groups.items():
        shown = fold(members)
        shown = shown if len(shown) <= WIDE else f"{shown[:WIDE]}..."
        lines.append(f"  {' and '.join(above) or 'no switch known'}: {shown} ({len(members)})")
    return lines


def _bytes(size: int | None) -> str:
    if size is None:
        return "?"
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.3g} {unit}"
    return f"{size} B"
