"""The data of a topology: nodes, devices, NICs, NUMA domains, the class of every link, and faults.

The classes are frozen dataclasses without NumPy, MPI or a driver, so that objects can be pickled, sent between ranks
and compared. Other modules read the facts, one module for each source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .network import Network

# The classes from fast to slow. A link's class is the highest level on the path between its ends.
KINDS = ("self", "NV", "PIX", "PXB", "PHB", "NODE", "SYS", "NET")
_CELL = re.compile(r"NV(\d+)|X|self|PIX|PXB|PHB|NODE|SYS|SOC|NET(\d*)")


@dataclass(frozen=True)
class Link:
    """The class of a pair of devices, NICs or nodes: the highest level on the path between them.

    Attributes
    ----------
    kind : str
        One of `KINDS`, from fast to slow. "self": the same device; "NV": bonded NVLinks; "PIX": one PCIe bridge; "PXB":
        several PCIe bridges; "PHB": a PCIe host bridge (the CPU); "NODE": between host bridges of a NUMA domain; "SYS":
        between NUMA domains; "NET": between nodes.
    count : int
        The number of NVLinks of "NV", or of switches of "NET"; 0: unknown.
    printed : str
        "SOC" if the driver printed this old word for SYS, else empty. Comparisons ignore it.
    """

    kind: str
    count: int = 0
    printed: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> Link:
        """The link of a cell that nvidia-smi prints, or of str() of a link.

        Parameters
        ----------
        text : str
            The cell, such as "NV4", "PIX" or "NET3". "SOC" is the word for "SYS" in drivers up to 2017, "X" the word
            for "self".

        Returns
        -------
        Link
            The class of the pair.

        Raises
        ------
        ValueError
            The text is no link.

        Examples
        --------
        >>> from aristos.topology import Link
        >>> Link.parse("NV4").rank < Link.parse("SYS").rank
        True
        """
        found = _CELL.fullmatch(text)
        if not found or text == "NV0":
            raise ValueError(f"a link must be X, NV#, PIX, PXB, PHB, NODE, SYS, SOC, NET or NET#, got {text!r}")
        if found[1]:
            return cls("NV", int(found[1]))
        if text.startswith("NET"):
            return cls("NET", int(found[2] or 0))
        if text == "SOC":
            return cls("SYS", printed=text)
        return cls("self" if text == "X" else text)

    def __str__(self) -> str:
        return self.printed or f"{self.kind}{self.count or ''}"

    @property
    def rank(self) -> tuple[int, int]:
        """A sort key from fast to slow: a link with more NVLinks is faster, one with more switches slower."""
        return KINDS.index(self.kind), -self.count if self.kind == "NV" else self.count


SELF, NODE, SYS = Link("self"), Link("NODE"), Link("SYS")


@dataclass(frozen=True)
class Mig:
    """A slice of a GPU that works like a device.

    Attributes
    ----------
    index : int
        The slice's number on the GPU.
    uuid : str
        As NVML and nvidia-smi print it.
    name : str
        The slice's profile, such as 3g.40gb.
    """

    index: int
    uuid: str
    name: str


@dataclass(frozen=True)
class Printed:
    """A GPU's cells of `nvidia-smi topo -m` as printed; None for N/A and for an empty cell."""

    cpus: str | None = None
    numa: str | None = None
    gpu_numa: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU. A fact that is None is unknown.

    Attributes
    ----------
    index : int
        The number that nvidia-smi and NVML give the GPU, in PCI order. CUDA_VISIBLE_DEVICES has no effect on it.
    name : str or None
        The product's name.
    uuid : str or None
        As NVML and nvidia-smi print it.
    pci : str or None
        The PCI address, domain:bus:device.function in lower case.
    memory : int or None
        Bytes.
    numa : int or None
        The NUMA domain of the CPUs that are close to the GPU.
    cpus : frozenset of int, or None
        The CPUs that are close to the GPU.
    cpus_from : str or None
        The source of `cpus`: sysfs, or nvidia-smi, which may cut the list.
    gpu_numa : int or None
        The domain of the GPU's own memory (Grace).
    nvlinks : int or None
        The number of active NVLinks.
    mig : tuple of Mig
        The GPU's slices.
    printed : Printed or None
        The GPU's cells of `nvidia-smi topo -m`, if they were read.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci: str | None = None
    memory: int | None = None
    numa: int | None = None
    cpus: frozenset[int] | None = None
    cpus_from: str | None = None
    gpu_numa: int | None = None
    nvlinks: int | None = None
    mig: tuple[Mig, ...] = ()
    printed: Printed | None = None

    @property
    def label(self) -> str:
        return f"GPU{self.index}"


@dataclass(frozen=True)
class Wires:
    """The NVLinks of a GPU. up: whether each link is active."""

    index: int
    name: str | None
    up: tuple[bool, ...]

    @property
    def active(self) -> int:
        return sum(self.up)

    @property
    def inactive(self) -> list[int]:
        return [link for link, up in enumerate(self.up) if not up]


@dataclass(frozen=True)
class Nic:
    """A network adapter.

    Attributes
    ----------
    label : str
        The name that nvidia-smi's column has for the adapter.
    name : str
        The kernel's name, such as mlx5_0.
    pci : str or None
        The PCI address, domain:bus:device.function in lower case; None: unknown.
    numa : int or None
        The adapter's NUMA domain; None: unknown.
    """

    label: str
    name: str
    pci: str | None = None
    numa: int | None = None


@dataclass(frozen=True)
class Numa:
    """A NUMA domain.

    Attributes
    ----------
    index : int
        The domain's id.
    cpus : frozenset of int
        The domain's CPUs, whether this process may use them or not.
    memory : int or None
        Bytes; None: unknown.
    distance : mapping of int to int
        The distance to each domain by that domain's id; 10 to itself.
    """

    index: int
    cpus: frozenset[int]
    memory: int | None = None
    distance: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cache:
    """A data or unified cache and the CPUs that share it.

    Attributes
    ----------
    level : int
        The level: 1 for L1, and so on.
    size : int
        Bytes.
    cpus : frozenset of int
        The CPUs that share the cache.
    """

    level: int
    size: int
    cpus: frozenset[int]


@dataclass(frozen=True)
class Node:
    """One machine.

    Attributes
    ----------
    name : str
        The node's host name.
    devices : tuple of Gpu
        The node's GPUs.
    nics : tuple of Nic
        The node's network adapters.
    numa : tuple of Numa
        The node's NUMA domains.
    caches : tuple of Cache
        The node's data and unified caches.
    cores : tuple of frozenset of int
        The threads (CPUs) of each core.
    cpus : frozenset of int
        The CPUs that are online.
    allowed : frozenset of int
        The CPUs that this process, or the job, may use.
    memory : int or None
        Bytes; None: unknown.
    links : mapping of (str, str) to Link
        The class of each pair of labels, in both orders.
    tasks : int or None
        The number of tasks that the scheduler starts on this node; None: unknown.
    complete : bool
        Whether the node itself was examined. If not, only some facts are known.
    """

    name: str
    devices: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    numa: tuple[Numa, ...] = ()
    caches: tuple[Cache, ...] = ()
    cores: tuple[frozenset[int], ...] = ()
    cpus: frozenset[int] = frozenset()
    allowed: frozenset[int] = frozenset()
    memory: int | None = None
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    tasks: int | None = None
    complete: bool = False

    def device(self, index: int) -> Gpu:
        """The GPU with a number.

        Parameters
        ----------
        index : int
            `Gpu.index`.

        Returns
        -------
        Gpu
            The GPU.

        Raises
        ------
        KeyError
            The node has no GPU with this number.
        """
        for device in self.devices:
            if device.index == index:
                return device
        raise KeyError(f"{self.name} has no GPU{index}; its GPUs: {', '.join(d.label for d in self.devices) or 'none'}")

    def link(self, a: str, b: str) -> Link | None:
        """The class between two devices or NICs.

        Parameters
        ----------
        a, b : str
            Labels, such as GPU0 and NIC1.

        Returns
        -------
        Link or None
            The class; None if it is unknown.
        """
        return SELF if a == b else self.links.get((a, b))

    def nics_by_distance(self, device: str) -> tuple[Nic, ...]:
        """The node's NICs, from the closest to a device to the farthest. NICs of unknown distance are last.

        Parameters
        ----------
        device : str
            A label, such as GPU0.

        Returns
        -------
        tuple of Nic
            All NICs of the node.
        """
        unknown = (len(KINDS), 0)
        link = {nic.label: self.link(device, nic.label) for nic in self.nics}
        return tuple(sorted(self.nics, key=lambda nic: found.rank if (found := link[nic.label]) else unknown))

    def domain(self, cpus: Iterable[int]) -> int | None:
        """The NUMA domain that contains all of some CPUs.

        Parameters
        ----------
        cpus : iterable of int
            CPUs of this node.

        Returns
        -------
        int or None
            The domain's id; None if the CPUs span several domains or their domain is unknown.
        """
        wanted = frozenset(cpus)
        return next((n.index for n in self.numa if wanted and wanted <= n.cpus), None)

    def cpu_link(self, a: Iterable[int], b: Iterable[int]) -> Link:
        """The class between two sets of CPUs.

        Parameters
        ----------
        a, b : iterable of int
            CPUs of this node.

        Returns
        -------
        Link
            "SYS" if the CPUs span NUMA domains, else "NODE", also if the domains are unknown.
        """
        together = frozenset(a) | frozenset(b)
        return NODE if not self.numa or self.domain(together) is not None else SYS


@dataclass(frozen=True)
class Fault:
    """A problem of the machine.

    Attributes
    ----------
    text : str
        The observation.
    remedy : str
        A change that removes the fault.
    node : str or None
        The node's name if there are several nodes.
    """

    text: str
    remedy: str
    node: str | None = None

    def __str__(self) -> str:
        return f"{f'{self.node}: ' if self.node else ''}{self.text}: {self.remedy}"


def _short(name: str) -> str:
    """A host's name without its domain. An address is not changed, because it has no domain."""
    return name if re.fullmatch(r"[\d.]+", name) else name.split(".")[0]


@dataclass(frozen=True)
class Topology:
    """All nodes of a job, or one machine.

    Attributes
    ----------
    nodes : tuple of Node
        The machines.
    network : Network
        The network between the nodes.
    faults : tuple of Fault
        The faults found.
    here : int or None
        The index in `nodes` of the machine that this process runs on; None if it runs on none of them.
    ranks : tuple of int
        The index in `nodes` of each rank's node; empty if unknown.
    """

    nodes: tuple[Node, ...]
    network: Network = field(default_factory=Network)
    faults: tuple[Fault, ...] = ()
    here: int | None = 0
    ranks: tuple[int, ...] = ()

    def node(self, name: str) -> Node:
        """The node with a name.

        Parameters
        ----------
        name : str
            The node's name, with or without its domain.

        Returns
        -------
        Node
            The machine.

        Raises
        ------
        KeyError
            There is no node with this name.
        """
        for known in (lambda text: text, _short):
            for node in self.nodes:
                if known(node.name) == known(name):
                    return node
        raise KeyError(f"no node {name!r}; the nodes: {', '.join(n.name for n in self.nodes[:8]) or 'none'}")

    def link(self, a: tuple[int, str], b: tuple[int, str]) -> Link | None:
        """The class between two devices or NICs of any nodes.

        Parameters
        ----------
        a, b : (int, str)
            The index of the node in `nodes`, and the label on that node.

        Returns
        -------
        Link or None
            The class, or None if it is unknown. Between nodes it is "NET" with the number of switches on the way.
        """
        if a[0] != b[0]:
            return self.between(a[0], b[0])
        return self.nodes[a[0]].link(a[1], b[1])

    def between(self, a: int, b: int) -> Link:
        """The class between two nodes.

        Parameters
        ----------
        a, b : int
            Indices of the nodes in `nodes`.

        Returns
        -------
        Link
            "NET" with the number of switches on the way, or "self".
        """
        return SELF if a == b else Link("NET", self.network.distance(self.nodes[a].name, self.nodes[b].name) or 0)
