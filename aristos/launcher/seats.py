"""Computes the seats of a node: for each local rank a device, the cores close to it, and the closest NIC.

Seats are computed from a `topology.Node` alone: this module does not read the machine, and binds nothing. Cores follow
from where the GPU is attached, so nodes that number GPUs and NUMA domains differently need no special case.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kernel_cache.texts import aligned

from ..errors import EnvironmentProblem, InputError
from ..topology import Gpu, Node, cpusets
from ..topology.visible import VisibleDevice

Cores = list[frozenset[int]]


@dataclass(frozen=True)
class Seat:
    """The seat of one local rank. cpus: the CPUs to bind to. If they are unknown, `cpus` is empty and nothing is bound.

    sharing: how many ranks have some of these cores (1: only this rank). numa: the cores' domain, None if several.
    device: the GPU's index in nvidia-smi. order: its number in CUDA. mig: the UUID of the rank's slice, '' for the GPU.
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


def default_ranks(node: Node, devices: Sequence[VisibleDevice]) -> int:
    """Default number of ranks of a node: one for each GPU, or else one for each NUMA domain with usable cores."""
    return len(devices) or len(_domains(node, _cores(node, smt=False))) or 1


def seats(node: Node, ranks: int, devices: Sequence[VisibleDevice], smt: bool = False) -> list[Seat]:
    """The seats of `ranks` local ranks.

    devices: the GPUs, or their slices, that may be used, in CUDA's order. smt: whether to bind to all hardware threads
    of a core, instead of one.
    """
    cores = _cores(node, smt)
    chosen = [devices[r % len(devices)] for r in range(ranks)] if devices else []
    if chosen:
        cpus = _divide([_close_cores(node, each.device, cores) for each in chosen])
        nics = _spread([_closest_nics(node, each.device) for each in chosen])
    else:
        cpus = _divide(_by_domain(_domains(node, cores), ranks))
        nics = _spread([_nics_of_domain(node, mine) for mine in cpus])
    found = []
    for r, seat in enumerate(_on_cores(node, cpus, nics)):
        if chosen:
            device, mig = chosen[r].device, chosen[r].mig
            numa = seat.numa if node.numa else device.numa
            name = f"{device.name or ''} {mig.name if mig else ''}".strip()
            order, slice_of = r % len(devices), mig.uuid if mig else ""
            seat = replace(seat, numa=numa, device=device.index, order=order, device_name=name, mig=slice_of)
        found.append(seat)
    return found


def _on_cores(node: Node, cpus: list[frozenset[int]], nics: list[str]) -> list[Seat]:
    """Seats on these cores. cpus, nics: [ranks]."""
    counts = Counter(cpus)
    sharing = {mine: sum(count for other, count in counts.items() if mine & other) or 1 for mine in counts}
    return [Seat(r, mine, node.domain(mine), nic=nics[r], sharing=sharing[mine]) for r, mine in enumerate(cpus)]


def numa_cores(node: Node, smt: bool = False) -> dict[int, Cores]:
    """The usable cores of each NUMA domain that has any, by its number. Raises EnvironmentProblem if there is none."""
    if not node.numa:
        raise EnvironmentProblem(
            f"--per numa: {node.name or 'this machine'} lists no NUMA domains in /sys/devices/system/node (a container"
            " may hide them): give -n RANKS instead"
        )
    found = _by_number(node, _cores(node, smt))
    if not found:
        raise EnvironmentProblem(
            f"--per numa: this process may use CPUs {cpusets.show(node.allowed) or 'none'}, and no NUMA domain of"
            f" {node.name or 'this machine'} has one of them: {_listed(node)}; give -n RANKS instead"
        )
    return found


def numa_seats(node: Node, ranks: int, smt: bool = False) -> list[Seat]:
    """Seats without GPUs, each with all usable cores of one NUMA domain.

    If there are fewer ranks than domains, ranks are spread over the domains. Raises EnvironmentProblem if the domains
    are unknown, and InputError if there are fewer domains than ranks.
    """
    cores = numa_cores(node, smt)
    if ranks > len(cores):
        raise InputError(
            f"--per numa starts at most one rank for each NUMA domain, got {ranks} ranks: the CPUs that this process"
            f" may use, {cpusets.show(node.allowed)}, lie in {len(cores)} of the domains of"
            f" {node.name or 'this machine'} ({_listed(node)}); give at most -n {len(cores)} for each node, or leave"
            " out --per"
        )
    chosen = [list(cores)[r * len(cores) // ranks] for r in range(ranks)]
    cpus = _divide([cores[index] for index in chosen])
    nics = _spread([[nic.name for nic in node.nics if nic.numa == index] for index in chosen])
    return [replace(seat, numa=index) for seat, index in zip(_on_cores(node, cpus, nics), chosen)]


def numa_note(node: Node, found: list[Seat]) -> str:
    """What `--per numa` does on a node, and which of its NUMA domains have no rank."""
    left = [n for n in node.numa if n.index not in {seat.numa for seat in found}]
    out = [f"{n.index} ({_reason(node, n.cpus)})" for n in left]
    without = f"; domains without a rank: {', '.join(out)}" if out else ""
    return f"one rank for each NUMA domain; each rank binds itself when it starts, the launcher binds none{without}"


def _reason(node: Node, cpus: frozenset[int]) -> str:
    """Why a NUMA domain of these CPUs has no rank."""
    if not cpus:
        return "no CPUs, only memory"
    return "fewer ranks than domains" if cpus & node.allowed else "none of its CPUs is allowed"


def _listed(node: Node) -> str:
    """A text that lists the NUMA domains."""
    return ", ".join(f"domain {n.index}: {cpusets.show(n.cpus) or 'none'}" for n in node.numa)


def _cores(node: Node, smt: bool) -> Cores:
    """The usable cores, each as the set of hardware threads to bind to."""
    usable = [core & node.allowed for core in node.cores] if node.cores else [frozenset({c}) for c in node.allowed]
    kept = sorted((core for core in usable if core), key=min)
    return kept if smt else [frozenset({min(core)}) for core in kept]


def _domains(node: Node, cores: Cores) -> list[Cores]:
    """The cores of each NUMA domain that has any; one list if the domains are unknown."""
    return list(_by_number(node, cores).values()) or ([cores] if cores else [])


def _by_number(node: Node, cores: Cores) -> dict[int, Cores]:
    """The cores of each NUMA domain that has any, by its number."""
    found = {domain.index: [core for core in cores if core <= domain.cpus] for domain in node.numa}
    return {index: mine for index, mine in found.items() if mine}


def _close_cores(node: Node, device: Gpu, cores: Cores) -> Cores:
    """The usable cores close to a device, by sysfs, else by its NUMA domain, else by nvidia-smi's list; else all cores.

    nvidia-smi cuts its list short on some machines, so the domain's list comes first.
    """
    domain = next((n.cpus for n in node.numa if n.index == device.numa), None)
    printed = device.cpus_from is not None and device.cpus_from != "sysfs"
    order = (domain, device.cpus) if printed else (device.cpus, domain)
    for cpus in order:
        if not cpus:
            continue
        if not cores and not node.complete:  # the machine is known only from nvidia-smi's text
            return _as_linux_counts(cpus)
        close = [core for core in cores if core & cpus]
        if close:
            return close
    return cores


def _as_linux_counts(cpus: frozenset[int]) -> Cores:
    """One core for each CPU of a list, if cores are unknown.

    Of a list like 0-15,64-79 the second half is left out, because it has the cores' other hardware threads.
    """
    halves = cpusets.show(cpus).split(",")
    first, second = (cpusets.parse(halves[0]), cpusets.parse(halves[-1])) if len(halves) == 2 else (cpus, cpus)
    kept = first if len(first) == len(second) else cpus
    return [frozenset({cpu}) for cpu in sorted(kept)]


def _by_domain(domains: list[Cores], ranks: int) -> list[Cores]:
    """The cores that each rank may use.

    These are the cores of its domain, or of several domains if there are fewer ranks than domains. Ranks are divided
    among domains in proportion to the domains' usable cores.
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
    """[ranks] the CPUs of each rank: cores of its own among those that it may use, if possible neighbouring cores.

    If the ranks of a group may use fewer cores than there are ranks, all of them share these cores.
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
    """Sets of ranks whose possible cores overlap, directly or through other ranks."""
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
    """Give each core to the rank that has the fewest so far. A rank that gets none shares all cores that it may use."""
    taken: list[Cores] = [[] for _ in wanted]
    for core in sorted(pool, key=lambda c: (sum(c in each for each in wanted), min(c))):
        able = [i for i, each in enumerate(wanted) if core in each]
        taken[min(able, key=lambda i: (len(taken[i]), i))].append(core)
    return [mine or each for mine, each in zip(taken, wanted)]


def _closest_nics(node: Node, device: Gpu) -> list[str]:
    """The NICs closest to a device; several if they are equally close."""
    nics = [nic for nic in node.nics_by_distance(device.label) if node.link(device.label, nic.label) is not None]
    return [nic.name for nic in nics if node.link(device.label, nic.label) == node.link(device.label, nics[0].label)]


def _nics_of_domain(node: Node, cpus: frozenset[int]) -> list[str]:
    """The NICs of these CPUs' NUMA domain. If there are none, MPI chooses."""
    numa = node.domain(cpus)
    return [nic.name for nic in node.nics if numa is not None and nic.numa == numa]


def _spread(wanted: list[list[str]]) -> list[str]:
    """[ranks] a NIC for each rank: of its possible NICs, the one with the fewest ranks so far; '' if there is none."""
    used: dict[str, int] = {}
    found = []
    for names in wanted:
        best = min(names, key=lambda name: used.get(name, 0), default="")
        used[best] = used.get(best, 0) + 1
        found.append(best)
    return found


def table(found: list[Seat], first: int = 0) -> str:
    """The seats as a text table. first: the rank of local rank 0."""
    rows = [["rank", "cores", "NUMA", "device", "NIC"]]
    for seat in found:
        device = "-" if seat.device is None else f"GPU{seat.device} {seat.device_name}".strip()
        cores = cpusets.show(seat.cpus) or "any"
        shared = f" (shared by {seat.sharing})" if seat.sharing > 1 else ""
        numa = "-" if seat.numa is None else str(seat.numa)
        rows.append([str(first + seat.local), cores + shared, numa, device, seat.nic or "-"])
    return "\n".join(aligned(rows))
