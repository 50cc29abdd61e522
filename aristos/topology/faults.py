"""Faults of a machine, found in the output of its tools. Each has a remedy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from .matrix import Matrix
from .model import Fault, Gpu, Link, Node, Wires
from .slurm_job import SlurmJob

RESET = "stop all jobs, then nvidia-smi --gpu-reset or a reboot; if that fails, have the board or the bridge checked"
BRIDGES = (  # words in the names of GPUs whose NVLinks need a bridge
    "PCIE",
    "NVL",
    "GEFORCE",
    "RTX",
    "QUADRO",
    "TITAN",
    "A40",
    "A30",
    "A10",
    "A16",
    "A2",
    "L4",
    "L40",
    "L40S",
    "L20",
    "T4",
)
BRIDGE = (1, 2, 4, 12)  # numbers of NVLinks that a bridge between two GPUs may have; a third GPU then has none
BOARD = 8  # number of GPUs of a board on which all GPUs have equally many NVLinks


def worse(matrix: Matrix) -> tuple[dict[tuple[str, str], Link], list[Fault]]:
    """(class of each pair, a fault for each pair whose directions differ).

    If two classes differ, the slower one counts.
    """
    links, faults = {}, []
    for a, b in itertools.combinations(matrix.labels, 2):
        there, back = Link.parse(matrix.cells[a, b]), Link.parse(matrix.cells[b, a])
        links[a, b] = links[b, a] = max(there, back, key=lambda link: link.rank)
        if there != back:
            text = f"asymmetric: {a} to {b} is {there}, {b} to {a} is {back}; both count as {links[a, b]}"
            faults.append(Fault(text, f"compare nvidia-smi nvlink -s for both; {RESET}"))
    return links, faults


def fewer(gpus: Sequence[str], links: Mapping[tuple[str, str], Link]) -> list[Fault]:
    """Return a fault for each GPU or pair that has fewer NVLinks than its siblings.

    In a cube mesh of V100s some pairs have half as many NVLinks as others. So a pair that has at most half of the
    largest number is no fault. NVML does not give a link for every pair.
    """
    known = [pair for pair in itertools.combinations(gpus, 2) if pair in links]
    bonds = {pair: links[pair].count for pair in known if links[pair].kind == "NV"}
    most = max(bonds.values(), default=0)
    few = [pair for pair, count in bonds.items() if most < 2 * count < 2 * most]
    total = {gpu: sum(count for pair, count in bonds.items() if gpu in pair) for gpu in gpus}
    peers = {gpu: sum(gpu in pair for pair in bonds) for gpu in gpus}
    down = [f"{a} and {b} share {bonds[a, b]} NVLinks, other pairs {most}" for a, b in few]
    if not few and len(gpus) >= BOARD:
        full = max(total.values())
        less = [gpu for gpu in gpus if 0 < total[gpu] < full]
        down = [f"{gpu} has fewer NVLinks in all than another GPU: {total[gpu]}, not {full}" for gpu in less]
    faults = [Fault(f"{text}: a link is down", f"find it by nvidia-smi nvlink -s; {RESET}") for text in down]
    for gpu in gpus:
        others = [peers[other] for other in gpus if other != gpu]
        if (
            (len(gpus) > 3 or (len(gpus) == 3 and most not in BRIDGE))
            and not peers[gpu]
            and min(others) == len(gpus) - 2
        ):
            text = f"{gpu} has no NVLink, but all other GPUs have {max(total.values()) // max(others)} to each other"
            faults.append(Fault(text, f"nvidia-smi nvlink -s -i {gpu[3:]} shows the inactive ones; {RESET}"))
    return faults


def dark(wires: Sequence[Wires]) -> list[Fault]:
    """Faults for inactive links, and for GPUs with fewer links than their siblings of the same name."""
    faults = []
    for each in wires:
        name = f"GPU{each.index}"
        bridged = any(word in (each.name or "").upper().replace("-", " ").split() for word in BRIDGES)
        if each.up and not each.active:
            if not bridged:  # a GPU without a bridge has no links that could be active
                text = f"{name} ({each.name}): all NVLinks are inactive"
                remedy = "start the fabric manager (systemctl status nvidia-fabricmanager), with the driver's version"
                faults.append(Fault(text, remedy))
            continue
        if each.inactive:
            listed = ", ".join(map(str, each.inactive))
            links = "NVLink" if len(each.inactive) == 1 else "NVLinks"
            text = f"{name}: {links} {listed} inactive, {each.active} of {len(each.up)} active"
            faults.append(Fault(text, "reseat the bridge" if bridged else RESET))
        siblings = [len(other.up) for other in wires if other.name == each.name]
        if len(each.up) < max(siblings, default=0):
            text = f"{name} shows fewer NVLinks than another {each.name}: {len(each.up)}, not {max(siblings)}"
            faults.append(Fault(text, RESET))
    return faults


def fabric(states: Mapping[str, tuple[str, str]]) -> list[Fault]:
    """A fault for each GPU whose NVLink fabric is not ready.

    states: label -> (state, status) in nvidia-smi's words; N/A means that there is no fabric.

    A GPU whose fabric is not ready looks healthy and its links are up, but no peer reaches its memory.
    """
    bad = {
        label: f"{state}, {status}"
        for label, (state, status) in states.items()
        if "N/A" not in state and (state, status) != ("Completed", "Success")
    }
    remedy = "start nvidia-fabricmanager, with the driver's version; then nvidia-smi --gpu-reset with all jobs stopped"
    return [Fault(f"{label}: the NVLink fabric is not ready ({status})", remedy) for label, status in bad.items()]


def cut_lists(devices: Sequence[Gpu]) -> list[Fault]:
    """Return a fault if nvidia-smi has cut lists of CPUs short. A cut list has four or more numbers without a range."""
    cut = [d.label for d in devices if d.cpus_from == "nvidia-smi" and d.printed and _looks_cut(d.printed.cpus or "")]
    if not cut:
        return []
    text = f"nvidia-smi cuts long lists of CPUs, and the list of {', '.join(cut)} looks cut"
    remedy = (
        "bind by /sys/bus/pci/devices/*/local_cpulist on the machine itself, as `aristos topo` does on that machine"
    )
    return [Fault(text, remedy)]


def _looks_cut(cpus: str) -> bool:
    return len(cpus.split(",")) >= 4 and "-" not in cpus


def hidden(job: SlurmJob | None, devices: Sequence[Gpu], on_bus: Sequence[str]) -> list[Fault]:
    """A fault if a cgroup hides GPUs of the job from this process, so that CUDA IPC between ranks fails.

    on_bus: PCI addresses of all GPUs of the machine, because the kernel also lists hidden ones.
    """
    if job is None:
        return []
    mine, seen = {d.pci for d in devices}, sum(len(d.mig) or 1 for d in devices)  # Slurm counts MIG slices as GPUs
    unseen = [address for address in on_bus if address not in mine]
    where = f" ({', '.join(unseen)})" if unseen and devices else ""
    remedy = "srun --gpus-per-node=N --gpu-bind=none, and each rank takes the GPU of its SLURM_LOCALID"
    several = job.tasks is None or max(job.tasks, default=1) > 1
    if job.gpus is not None and len(job.gpus) > seen > 0:
        text = f"the job has {len(job.gpus)} GPUs on this node, but this process sees {seen}{where}"
        option = f"{job.hides_gpus} hides" if job.hides_gpus else "a cgroup hides"
        return [Fault(f"{text}: {option} the other GPUs from this process, and CUDA IPC between ranks fails", remedy)]
    if job.hides_gpus and several and devices:
        text = f"{job.hides_gpus} hides each task's GPU from its peers, so CUDA IPC between them fails"
        return [Fault(text, remedy)]
    return []


def mixed(nodes: Sequence[Node]) -> list[Fault]:
    """A fault if the GPUs of a job's nodes differ in number or kind."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for node in nodes:
        kinds.setdefault(tuple(str(d.name) for d in node.devices), []).append(node.name)
    if len(kinds) < 2:
        return []
    shown = "; ".join(
        f"{', '.join(names[:4])}{' and others' if len(names) > 4 else ''}: {_counted(gpus)}"
        for gpus, names in kinds.items()
    )
    return [
        Fault(f"the nodes' GPUs differ ({shown})", "ask for one kind of node: srun --constraint or --gres=gpu:TYPE:N")
    ]


def _counted(gpus: Sequence[str]) -> str:
    return " + ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "none"
