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
    """The class of a pair. kind: one of KINDS; count: NVLinks of NV, switches of NET (0: unknown).

    self: the same device; NV: bonded NVLinks; PIX, PXB: one PCIe bridge, several; PHB: a PCIe host bridge (the CPU);
    NODE: between host bridges of a NUMA domain; SYS: between NUMA domains; NET: between nodes.
    """

    kind: str
    count: int = 0
    printed: str = field(default="", compare=False)  # SOC, if the driver printed this old word for SYS

    @classmethod
    def parse(cls, text: str) -> Link:
        """From nvidia-smi's cell, or str() of a link; SOC is SYS in drivers up to 2017. Raises ValueError."""
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
    """A slice of a GPU that works like a device. name: its profile, e.g. 3g.40gb."""

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
    """A GPU. index: nvidia-smi's and NVML's number, in PCI order, not CUDA_VISIBLE_DEVICES'.

    name: of the product; pci: domain:bus:device.function in lower case; memory: bytes; cpus: those close to it, from
    sysfs or from nvidia-smi (`cpus_from`), which may cut the list; numa: their domain; gpu_numa: the domain of the
    GPU's own memory (Grace); nvlinks: active ones. None: unknown.
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
    """A network adapter. label: as nvidia-smi's column names it; name: the kernel's, e.g. mlx5_0."""

    label: str
    name: str
    pci: str | None = None
    numa: int | None = None


@dataclass(frozen=True)
class Numa:
    """A NUMA domain. cpus: allowed or not; memory: bytes; distance: to each domain by its id, 10 to itself."""

    index: int
    cpus: frozenset[int]
    memory: int | None = None
    distance: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cache:
    """A data or unified cache and the CPUs that share it. size: bytes."""

    level: int
    size: int
    cpus: frozenset[int]


@dataclass(frozen=True)
class Node:
    """One machine. cpus: online; allowed: those this process, or the job, may use; cores: threads of each core.

    links: the class of each pair of labels, in both orders; tasks: number that the scheduler starts here, or None.
    complete: whether the node itself was examined; else only some facts are known.
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
        """The GPU with this number. Raises KeyError."""
        for device in self.devices:
            if device.index == index:
                return device
        raise KeyError(f"{self.name} has no GPU{index}, only {', '.join(d.label for d in self.devices) or 'none'}")

    def link(self, a: str, b: str) -> Link | None:
        """The class between two labels, e.g. GPU0 and NIC1; None if unknown."""
        return SELF if a == b else self.links.get((a, b))

    def nics_by_distance(self, device: str) -> tuple[Nic, ...]:
        """The node's NICs, the closest to the device first; those of unknown distance last."""
        unknown = (len(KINDS), 0)
        link = {nic.label: self.link(device, nic.label) for nic in self.nics}
        return tuple(sorted(self.nics, key=lambda nic: found.rank if (found := link[nic.label]) else unknown))

    def domain(self, cpus: Iterable[int]) -> int | None:
        """The NUMA domain that contains all these CPUs; None if they span several or it is unknown."""
        wanted = frozenset(cpus)
        return next((n.index for n in self.numa if wanted and wanted <= n.cpus), None)

    def cpu_link(self, a: Iterable[int], b: Iterable[int]) -> Link:
        """The class between two sets of CPUs: SYS if they span NUMA domains, else NODE, also with unknown domains."""
        together = frozenset(a) | frozenset(b)
        return NODE if not self.numa or self.domain(together) is not None else SYS


@dataclass(frozen=True)
class Fault:
    """A problem of the machine. text: the observation; remedy: what to change."""

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
    """All nodes of a job, or one machine. here: index in `nodes` of the machine this runs on, or None.

    ranks: the index in `nodes` of each rank's node; empty if unknown.
    """

    nodes: tuple[Node, ...]
    network: Network = field(default_factory=Network)
    faults: tuple[Fault, ...] = ()
    here: int | None = 0
    ranks: tuple[int, ...] = ()

    def node(self, name: str) -> Node:
        """The node of this name, with or without its domain. Raises KeyError."""
        for known in (lambda text: text, _short):
            for node in self.nodes:
                if known(node.name) == known(name):
                    return node
        raise KeyError(f"no node {name!r} among {', '.join(n.name for n in self.nodes[:8]) or 'none'}")

    def link(self, a: tuple[int, str], b: tuple[int, str]) -> Link | None:
        """The class between two (index in `nodes`, label); between nodes NET with the number of switches on the way."""
        if a[0] != b[0]:
            return self.between(a[0], b[0])
        return self.nodes[a[0]].link(a[1], b[1])

    def between(self, a: int, b: int) -> Link:
        """The class between two nodes, given by their indices."""
        return SELF if a == b else Link("NET", self.network.distance(self.nodes[a].name, self.nodes[b].name) or 0)
