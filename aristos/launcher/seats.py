"""Who sits where on a node: for each local rank its device, the cores near that device, and the NIC nearest to it.

Pure arithmetic on a `topology.Node`: nothing is asked from the machine and nothing is bound here. Where a node numbers
its GPUs against its NUMA domains, the cores of a rank follow from where its GPU hangs; no machine is known by name.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..topology import Device, Node, cpusets
from ..topology.visible import Seen

Cores = list[frozenset[int]]


@dataclass(frozen=True)
class Seat:
    """Of one local rank. cpus: to bind to, empty: not known, leave it unbound.

    sharing: how many ranks have some of these cores (1: it is alone); numa: the domain that holds them, None: several.
    device: the GPU's index as nvidia-smi counts; order: its number among those that CUDA shows; mig: the UUID of the
    slice of it that is the rank's, '' for all of it.
    """

    local: int
    cpus: frozenset[int]
    numa: int | None = None
    device: int | None = None
    order: int | None = None
    device_name: str = ""
    mig: str = ""
    nic: str = ""
    sharing: int = 1


def default_ranks(node: Node, devices: Sequence[Seen]) -> int:
    """How many ranks a node wants: one for each of these GPUs, or one a NUMA domain with cores that may be used."""
    return len(devices) or len(_domains(node, _cores(node, smt=False))) or 1


def seats(node: Node, ranks: int, devices: Sequence[Seen], smt: bool = False) -> list[Seat]:
    """Seats of `ranks` local ranks.

    devices: the GPUs, or slices of them, that may be used, in CUDA's order. smt: bind to every hardware thread of a
    core, not to one.
    """
    cores = _cores(node, smt)
    chosen = [devices[r % len(devices)] for r in range(ranks)] if devices else []
    if chosen:
        cpus = _divide([_near(node, each.device, cores) for each in chosen])
        nics = _spread([_near_device(node, each.device) for each in chosen])
    else:
        cpus = _divide(_by_domain(_domains(node, cores), ranks))
        nics = _spread([_near_cpus(node, mine) for mine in cpus])
    counts = Counter(cpus)
    sharing = {mine: sum(count for other, count in counts.items() if mine & other) or 1 for mine in counts}
    found = []
    for r, mine in enumerate(cpus):
        seat = Seat(r, mine, node.domain(mine), nic=nics[r], sharing=sharing[mine])
        if chosen:
            device, mig = chosen[r].device, chosen[r].mig
            numa = seat.numa if node.numa else device.numa
            name = f"{device.name or ''} {mig.name if mig else ''}".strip()
            order, slice_of = r % len(devices), mig.uuid if mig else ""
            seat = replace(seat, numa=numa, device=device.index, order=order, device_name=name, mig=slice_of)
        found.append(seat)
    return found


def _cores(node: Node, smt: bool) -> Cores:
    """Each core that may be used, as the hardware threads to bind to."""
    usable = [core & node.allowed for core in node.cores] if node.cores else [frozenset({c}) for c in node.allowed]
    kept = sorted((core for core in usable if core), key=min)
    return kept if smt else [frozenset({min(core)}) for core in kept]


def _domains(node: Node, cores: Cores) -> list[Cores]:
    """The cores of each NUMA domain that has any; all in one where the domains are not known."""
    found = [[core for core in cores if core <= domain.cpus] for domain in node.numa]
    return [each for each in found if each] or ([cores] if cores else [])


def _near(node: Node, device: Device, cores: Cores) -> Cores:
    """The usable cores near a device: sysfs's list, else its NUMA domain's, else what nvidia-smi prints; else all.

    nvidia-smi cuts its list short on some machines, so the domain's own list goes before it.
    """
    domain = next((n.cpus for n in node.numa if n.index == device.numa), None)
    printed = device.cpus_from is not None and device.cpus_from != "sysfs"
    order = (domain, device.cpus) if printed else (device.cpus, domain)
    for cpus in order:
        if not cpus:
            continue
        if not cores and not node.complete:  # a machine known from nvidia-smi's text alone
            return _as_linux_counts(cpus)
        near = [core for core in cores if core & cpus]
        if near:
            return near
    return cores


def _as_linux_counts(cpus: frozenset[int]) -> Cores:
    """The first hardware threads of a list without its cores: in 0-15,64-79 the second half is those of the first."""
    halves = cpusets.show(cpus).split(",")
    first, second = (cpusets.parse(halves[0]), cpusets.parse(halves[-1])) if len(halves) == 2 else (cpus, cpus)
    kept = first if len(first) == len(second) else cpus
    return [frozenset({cpu}) for cpu in sorted(kept)]


def _by_domain(domains: list[Cores], ranks: int) -> list[Cores]:
    """For each rank the cores it may sit on: those of its domain, or of several where ranks are fewer.

    Ranks go to domains by the number of their cores: a job that was given half of one gets half as many ranks there.
    """
    if not domains:
        return [[] for _ in range(ranks)]
    if ranks <= len(domains):
        cuts = [r * len(domains) // ranks for r in range(ranks + 1)]
        return [[core for domain in domains[a:b] for core in domain] for a, b in itertools.pairwise(cuts)]
    total = sum(map(len, domains))
    shares = [ranks * len(domain) / total for domain in domains]
    counts = [int(share) for share in shares]
    by_rest = sorted(range(len(domains)), key=lambda d: counts[d] - shares[d])
    for d in by_rest[: ranks - sum(counts)]:
        counts[d] += 1
    return [domain for domain, count in zip(domains, counts) for _ in range(count)]


def _divide(wanted: list[Cores]) -> list[frozenset[int]]:
    """Give each rank cores of its own from those it may sit on: neighbours where several want the same ones.

    Where there are fewer cores than ranks that want them, these share them all. -> the CPUs of each rank.
    """
    cpus: list[frozenset[int]] = [frozenset()] * len(wanted)
    for group in _groups(wanted):
        pool = sorted({core for r in group for core in wanted[r]}, key=min)
        if pool and len(pool) < len(group):
            taken = [wanted[r] for r in group]
        elif all(len(wanted[r]) == len(pool) for r in group):
            cuts = [i * len(pool) // len(group) for i in range(len(group) + 1)]
            taken = [pool[a:b] for a, b in itertools.pairwise(cuts)]
        else:
            taken = _fewest_first([wanted[r] for r in group], pool)
        for r, mine in zip(group, taken):
            cpus[r] = frozenset().union(*mine) if mine else frozenset()
    return cpus


def _groups(wanted: list[Cores]) -> list[list[int]]:
    """Ranks whose wishes meet, directly or over others."""
    groups: list[tuple[set[frozenset[int]], list[int]]] = []
    for r, cores in enumerate(wanted):
        mine, ranks, apart = set(cores), [r], []
        for theirs, others in groups:
            if mine & theirs or (not mine and not theirs):
                mine, ranks = mine | theirs, others + ranks
            else:
                apart.append((theirs, others))
        groups = [*apart, (mine, sorted(ranks))]
    return [ranks for _, ranks in groups]


def _fewest_first(wanted: list[Cores], pool: Cores) -> list[Cores]:
    """Each core to whoever wants it and has fewest so far; who is left without shares all that it wants."""
    taken: list[Cores] = [[] for _ in wanted]
    for core in sorted(pool, key=lambda c: (sum(c in each for each in wanted), min(c))):
        able = [i for i, each in enumerate(wanted) if core in each]
        taken[min(able, key=lambda i: (len(taken[i]), i))].append(core)
    return [mine or each for mine, each in zip(taken, wanted)]


def _near_device(node: Node, device: Device) -> list[str]:
    """The NICs nearest to a device, all equally near."""
    near = [nic for nic in node.near(device.label) if node.link(device.label, nic.label) is not None]
    return [nic.name for nic in near if node.link(device.label, nic.label) == node.link(device.label, near[0].label)]


def _near_cpus(node: Node, cpus: frozenset[int]) -> list[str]:
    """The NICs of the domain that these CPUs are in; where none is there, MPI may choose."""
    numa = node.domain(cpus)
    return [nic.name for nic in node.nics if numa is not None and nic.numa == numa]


def _spread(wanted: list[list[str]]) -> list[str]:
    """Of the NICs that a rank could take, the one that fewest ranks have so far; '' where it has no choice."""
    used: dict[str, int] = {}
    found = []
    for names in wanted:
        best = min(names, key=lambda name: used.get(name, 0), default="")
        used[best] = used.get(best, 0) + 1
        found.append(best)
    return found


def table(found: list[Seat], first: int = 0) -> str:
    """The seats as a table for people. first: the rank of local rank 0."""
    head = ["rank", "cores", "NUMA", "device", "NIC"]
    rows = [head]
    for seat in found:
        device = "-" if seat.device is None else f"GPU{seat.device} {seat.device_name}".strip()
        cores = cpusets.show(seat.cpus) or "any"
        shared = f" (shared by {seat.sharing})" if seat.sharing > 1 else ""
        numa = "-" if seat.numa is None else str(seat.numa)
        rows.append([str(first + seat.local), cores + shared, numa, device, seat.nic or "-"])
    width = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip() for row in rows)
