"""Discovery of this machine and its job, from all sources.

GPUs: NVML, else nvidia-smi's matrix, else the kernel's PCI list. CPUs close to a GPU: sysfs, else nvidia-smi's column.
Nodes: the ranks' host names if given, else Slurm's variables. Network: scontrol, else topology.conf or topology.yaml,
else SLURM_TOPOLOGY_ADDR.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TopologyError
from ..host import slurm_variables
from . import commands, nvml, pci, slurm_job, slurm_network, smi_node, sysfs
from .commands import Ask
from .faults import dark, fabric, fewer, hidden, mixed
from .model import Fault, Gpu, Node, Topology
from .network import Network
from .slurm_job import SlurmJob
from .visible import visible


def discover(
    hosts: Sequence[str] | None = None,
    *,
    network: bool = True,
    env: Mapping[str, str] | None = None,
    root: Path = Path("/"),
    ask: Ask = commands.ask,
    library: Callable[[], Any] = nvml.load,
) -> Topology:
    """This machine and the nodes of its job.

    A fact that cannot be read stays unknown, or a fault in `Topology.faults` says why it cannot be read.

    Parameters
    ----------
    hosts : sequence of str, or None, default None
        The host name of each rank, if the ranks are known. None: the nodes of Slurm's job, else this machine.
    network : bool, default True
        Whether to ask Slurm's controller for the network. One rank is enough, because `join` gives the network to all.
    env : mapping of str to str, or None, default None
        The variables to read. None: those of this process.
    root : path, default Path("/")
        The folder that holds the files of the kernel and of Slurm, for tests.
    ask : callable, default ask
        A function that runs a command and returns its output, for tests.
    library : callable, default load
        A function that loads NVML, for tests.

    Returns
    -------
    Topology
        The machine, its links and its network.
    """
    env = os.environ if env is None else env
    faults: list[Fault] = []
    try:
        job = slurm_job.read(env)
    except TopologyError as why:
        job = None
        faults.append(Fault(f"a variable of Slurm cannot be read: {why}", "unset it, or correct it"))
    name = slurm_variables.node_name(env) or platform.node()
    here, seen = node_here(name, root, ask, library)
    faults += seen + visible(env, here.devices)[1] + hidden(job, here.devices, pci.gpus(root))
    names, tasks = _nodes(job, hosts, name)
    nodes = tuple(here if each == name else Node(each) for each in names)
    nodes = tuple(replace(node, tasks=count) for node, count in zip(nodes, tasks))
    found, problem = network_of(job, ask, env, root) if network else (Network(), [])
    place = {node.name: at for at, node in enumerate(nodes)}
    ranks = tuple(place[host] for host in hosts) if hosts else ()
    return Topology(nodes, found, (*faults, *problem), place[name], ranks)


def _nodes(job: SlurmJob | None, hosts: Sequence[str] | None, name: str) -> tuple[list[str], list[int | None]]:
    """(names of the nodes, tasks on each), from the ranks, else from Slurm, else for this node alone."""
    if hosts:
        names = list(dict.fromkeys([*hosts, name]))
        return names, [list(hosts).count(each) for each in names]
    if job is None or not job.nodes:
        return [name], [None]
    tasks: Sequence[int | None] = job.tasks or [None] * len(job.nodes)
    if name in job.nodes:
        return list(job.nodes), list(tasks)
    if len(job.nodes) == 1:  # this machine, for which Slurm has another name
        return [name], list(tasks)
    return [*job.nodes, name], [*tasks, 0]


def node_here(
    name: str, root: Path = Path("/"), ask: Ask = commands.ask, library: Callable[[], Any] = nvml.load
) -> tuple[Node, list[Fault]]:
    """This machine with its GPUs and NICs, and the faults found."""
    base = sysfs.node(name, root / "sys")
    found, faults = _by_nvml(library) or _by_smi(ask) or _by_kernel(root)
    devices = tuple(_placed(device, root) for device in found.devices)
    known = {nic.name: nic for nic in pci.nics(root)}
    nics = tuple(replace(known.get(nic.name, nic), label=nic.label) for nic in found.nics) or tuple(known.values())
    links = dict(found.links)
    ends = [(d.label, d.pci) for d in devices] + [(nic.label, nic.pci) for nic in nics]
    for (a, one), (b, other) in itertools.combinations(ends, 2):
        if (a, b) not in links and one and other and (link := pci.link(root, one, other)) is not None:
            links[a, b] = links[b, a] = link
    return replace(base, devices=devices, nics=nics, links=links), faults


Found = tuple[Node, list[Fault]]


def _by_nvml(library: Callable[[], Any]) -> Found | None:
    loaded = library()
    found = nvml.read(loaded) if loaded is not None else None
    if found is None:
        return None
    devices, links, wires, states = found
    faults = fewer([d.label for d in devices], links) + dark(wires) + fabric(states)
    return Node("", devices=devices, links=links), faults


def _by_smi(ask: Ask) -> Found | None:
    """Read nvidia-smi's matrix, and nothing else of nvidia-smi, because its other commands also ask NVML.

    If nvidia-smi prints an error, the error becomes a fault.
    """
    shown = ask(("nvidia-smi", "topo", "-m"))
    if shown is None:
        return None
    try:
        return smi_node.read(shown)
    except TopologyError as why:
        fault = Fault(f"nvidia-smi gives no topology: {why}", "repair the driver (dmesg | grep NVRM), or reboot")
        return Node(""), [fault]


def _by_kernel(root: Path) -> Found:
    """Look for GPUs on the PCI bus. If there are any, the driver is missing, which is a fault."""
    addresses = pci.gpus(root)
    if not addresses:
        return Node(""), []
    text = f"NVIDIA GPUs on the PCI bus: {len(addresses)}, but neither NVML nor nvidia-smi was found"
    return Node(""), [Fault(text, "install NVIDIA's driver, or start the container with --gpus all")]


def _placed(device: Gpu, root: Path) -> Gpu:
    """The device with its CPUs and NUMA domain from sysfs, because sysfs has complete lists."""
    cpus, numa = pci.affinity(root, device.pci) if device.pci else (None, None)
    if cpus is not None:
        device = replace(device, cpus=cpus, cpus_from="sysfs")
    return replace(device, numa=numa) if numa is not None else device


def network_of(job: SlurmJob | None, ask: Ask, env: Mapping[str, str], root: Path) -> tuple[Network, list[Fault]]:
    """The network of the job's cluster, and faults if the network should be known but is not."""
    if job is None:
        return Network(), []
    why = None
    for text in _descriptions(ask, env, root):
        try:
            return slurm_network.parse(text), []
        except TopologyError as error:
            why = why or error
    found = Network()
    if job.address:
        try:
            found = slurm_network.from_addresses([job.address])
        except TopologyError as error:
            why = why or TopologyError(f"SLURM_TOPOLOGY_ADDR: {error}")
    faults = [Fault(f"Slurm's network cannot be read: {why}", "see `scontrol show topology`")] if why else []
    return found, faults


def _descriptions(ask: Ask, env: Mapping[str, str], root: Path) -> Iterator[str]:
    """What scontrol and Slurm's files say about the network."""
    answer = ask(("scontrol", "show", "topology"))
    if answer is not None and answer.ok and answer.strip():
        yield answer
    folders = [Path(env["SLURM_CONF"]).parent] if env.get("SLURM_CONF") else []
    for folder in (*folders, root / "etc/slurm", root / "run/slurm/conf"):
        yield from filter(None, (sysfs.read(folder / name) for name in ("topology.yaml", "topology.conf")))


def from_text(smi: str | None, network: str | None) -> Topology:
    """A topology from texts alone.

    Parameters
    ----------
    smi : str or None
        The output of `nvidia-smi topo -m`. None: no node.
    network : str or None
        The output of `scontrol show topology`, or a topology.conf or topology.yaml. None: no network.

    Returns
    -------
    Topology
        The machine, its links and its network.

    Raises
    ------
    TopologyError
        A text is wrong or incomplete, and the message quotes the line; or a topology.yaml needs PyYAML, which is not
        installed.
    """
    node, faults = smi_node.read(smi) if smi is not None else (None, [])
    net = slurm_network.parse(network) if network is not None else Network()
    names = sorted(net.nodes, key=sysfs.natural)
    nodes = ([node] if node else []) + [Node(name) for name in names]
    return Topology(tuple(nodes), net, tuple(faults), 0 if node else None)


def join(parts: Sequence[Topology]) -> Topology:
    """Join the ranks' topologies to one that has every node as its ranks see it, and each fault once.

    Parameters
    ----------
    parts : sequence of Topology
        The topologies that `discover` returned on the ranks, in the order of ranks.

    Returns
    -------
    Topology
        All nodes. `here` is the first rank's node, and `ranks` has the node of each rank.

    Raises
    ------
    ValueError
        A part does not know its own node, because `discover` did not make it.
    """
    seen: dict[str, Node] = {}
    for part in parts:
        if part.here is None:
            raise ValueError("only topologies of `discover` can be joined, because they know their own node")
        mine = part.nodes[part.here]
        before = seen.get(mine.name)
        seen[mine.name] = mine if before is None else replace(before, allowed=before.allowed | mine.allowed)
    order = [node.name for node in parts[0].nodes if node.name in seen]
    names = list(dict.fromkeys([*order, *seen]))
    place = {name: at for at, name in enumerate(names)}
    ranks = tuple(place[part.nodes[part.here or 0].name] for part in parts)
    nodes = tuple(replace(seen[name], tasks=ranks.count(place[name])) for name in names)
    faults = [
        replace(fault, node=fault.node or (part.nodes[part.here or 0].name if len(names) > 1 else None))
        for part in parts
        for fault in part.faults
    ]
    faults += mixed(nodes)
    network = next((part.network for part in parts if part.network.kind != "unknown"), parts[0].network)
    return Topology(nodes, network, tuple(dict.fromkeys(faults)), ranks[0], ranks)
