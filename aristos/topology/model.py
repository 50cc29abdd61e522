"""The topology's data: nodes, devices, NICs, NUMA domains, the class of every link, faults.

Frozen dataclasses without NumPy, MPI or a driver, so that they can be pickled, sent between ranks and compared. Each
source of facts has a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .network import Network

# From fast to slow. A link's class is the highest level on the path between its ends.
KINDS = ("self", "NV", "PIX", "PXB", "PHB", "NODE", "SYS", "NET")
_CELL = re.compile(r"NV(\d+)|X|self|PIX|PXB|PHB|NODE|SYS|SOC|NET(\d*)")


@dataclass(frozen=True)
class Link:
    """The class of a pair of devices, NICs or nodes: the highest level on the path between them.

    Attributes
    ----------
    kind : str
        One of `KINDS`, from fast to slow. "self": the same device; "NV": bonded NVLinks; "PIX", "PXB": one PCIe bridge,
        several; "PHB": a PCIe host bridge (the CPU); "NODE": between host bridges of a NUMA domain; "SYS": between NUMA
        domains; "NET": between nodes.
    count : int
        NVLinks of "NV", switches of "NET"; 0: unknown.
    printed : str
        "SOC", if the driver printed this old word for SYS; else empty. It is not compared.
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
            Such as "NV4", "PIX" or "NET3"; "SOC" is "SYS" in drivers up to 2017, "X" is "self".

        Returns
        -------
        Link
            The class of the pair.

        Raises
        ------
        ValueError
            Another text.

        Examples
        --------
        >>> from aristos.topology import Link
        >>> Link.parse("NV4").rank < Link.parse("SYS").rank
        True
        """
        found = _CELL.fullmatch(text)
        if not found or text == "NV0":
            raise ValueError(f"a link is X, NV#, PIX, PXB, PHB, NODE, SYS, SOC, NET or NET#, got {text!r}")
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
        """Sort key from fast to slow: more NVLinks are faster, more switches slower."""
        return KINDS.index(self.kind), -self.count if self.kind == "NV" else self.count


SELF, NODE, SYS = Link("self"), Link("NODE"), Link("SYS")


@dataclass(frozen=True)
class Mig:
    """A slice of a GPU that works like a device.

    Attributes
    ----------
    index : int
        Its number on the GPU.
    uuid : str
        As NVML and nvidia-smi print it.
    name : str
        Its profile, such as 3g.40gb.
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
    """A GPU. What is None is unknown.

    Attributes
    ----------
    index : int
        nvidia-smi's and NVML's number, in PCI order, not CUDA_VISIBLE_DEVICES'.
    name : str or None
        Of the product.
    uuid : str or None
        As NVML and nvidia-smi print it.
    pci : str or None
        domain:bus:device.function in lower case.
    memory : int or None
        Bytes.
    numa : int or None
        The NUMA domain of the CPUs that are close to it.
    cpus : frozenset of int, or None
        Those CPUs.
    cpus_from : str or None
        Where `cpus` comes from: sysfs, or nvidia-smi, which may cut the list.
    gpu_numa : int or None
        The domain of the GPU's own memory (Grace).
    nvlinks : int or None
        Active NVLinks.
    mig : tuple of Mig
        Its slices.
    printed : Printed or None
        Its cells of `nvidia-smi topo -m`, where they were read.
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
    """The NVLinks of a GPU. up: whether each is active."""

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
        As nvidia-smi's column names it.
    name : str
        The kernel's, such as mlx5_0.
    pci : str or None
        domain:bus:device.function in lower case; None: unknown.
    numa : int or None
        Its NUMA domain; None: unknown.
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
        Its id.
    cpus : frozenset of int
        Its CPUs, allowed or not.
    memory : int or None
        Bytes; None: unknown.
    distance : mapping of int to int
        To each domain by its id, 10 to itself.
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
        1 for L1, and so on.
    size : int
        Bytes.
    cpus : frozenset of int
        The CPUs.
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
        Its host name.
    devices : tuple of Gpu
        Its GPUs.
    nics : tuple of Nic
        Its network adapters.
    numa : tuple of Numa
        Its NUMA domains.
    caches : tuple of Cache
        Its data and unified caches.
    cores : tuple of frozenset of int
        The threads (CPUs) of each core.
    cpus : frozenset of int
        CPUs that are online.
    allowed : frozenset of int
        Those that this process, or the job, may use.
    memory : int or None
        Bytes; None: unknown.
    links : mapping of (str, str) to Link
        The class of each pair of labels, in both orders.
    tasks : int or None
        How many the scheduler starts here; None: unknown.
    complete : bool
        Whether the node itself was examined; else only some facts are known.
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
            The node has none of this number.
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
        """The node's NICs, the closest to a device first; those of unknown distance last.

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
            The domain's id; None if they span several or it is unknown.
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
            "SYS" if they span NUMA domains, else "NODE", also with unknown domains.
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
        What to change.
    node : str or None
        The node's name, where there are several.
    """

    text: str
    remedy: str
    node: str | None = None

    def __str__(self) -> str:
        return f"{f'{self.node}: ' if self.node else ''}{self.text}: {self.remedy}"


def _short(name: str) -> str:
    """A host's name without its domain; addresses have none."""
    return name if re.fullmatch(r"[\d.]+", name) else name.split(".")[0]


@dataclass(frozen=True)
class Topology:
    """All nodes of a job, or one machine.

    Attributes
    ----------
    nodes : tuple of Node
        The machines.
    network : Network
        What joins them.
    faults : tuple of Fault
        What is wrong.
    here : int or None
        The index in `nodes` of the machine this runs on; None: none of them.
    ranks : tuple of int
        The index in `nodes` of each rank's node; empty if unknown.
    """

    nodes: tuple[Node, ...]
    network: Network = field(default_factory=Network)
    faults: tuple[Fault, ...] = ()
    here: int | None = 0
    ranks: tuple[int, ...] = ()

    def node(self, name: str) -> Node:
        """The node of a name.

        Parameters
        ----------
        name : str
            With or without its domain.

        Returns
        -------
        Node
            The machine.

        Raises
        ------
        KeyError
            There is none.
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
            The index in `nodes` and the label there.

        Returns
        -------
        Link or None
            The class, between nodes "NET" with the number of switches on the way; None if it is unknown.
        """
        if a[0] != b[0]:
            return self.between(a[0], b[0])
        return self.nodes[a[0]].link(a[1], b[1])

    def between(self, a: int, b: int) -> Link:
        """The class between two nodes.

        Parameters
        ----------
        a, b : int
            Indices in `nodes`.

        Returns
        -------
        Link
            "NET" with the number of switches on the way, or "self".
        """
        return SELF if a == b else Link("NET", self.network.distance(self.nodes[a].name, self.nodes[b].name) or 0)
