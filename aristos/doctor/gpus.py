"""Checks of GPUs: the driver, which GPUs are visible, CUDA IPC between ranks, and the Python packages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kernel_cache.offline import capability

from ..errors import TopologyError
from ..host.nodes import Nodes
from ..kernels.cuda.target import NEEDED, OLDEST
from ..substrate.cuda import device_puts
from ..substrate.cuda.driver import ADVICE, INSTALL
from ..topology import slurm_job
from ..topology.faults import hidden
from ..topology.visible import visible
from .finding import Finding, guarded, named, ok, warn
from .gpu_facts import PIPES, DriverAnswer, NodeGpus, RankGpus

IPC = "srun --gpus-per-node=N --gpu-bind=none ..., and each rank takes the GPU of its SLURM_LOCALID"
GIVE = "docker run --gpus all, podman run --device nvidia.com/gpu=all, apptainer exec --nv; in a job, ask for GPUs"
PACKAGES = ("numba-cuda", "numpy", "cuda-bindings", "cuda-core")
FACTS = "GPU facts"  # name of the finding for facts that cannot be read
NO_GPU = "no GPU: ranks compute on their cores"
NOT_NEEDED = "not needed: there is no GPU"


def driver(node: NodeGpus) -> Finding:
    """Whether the driver answers, on a machine with GPUs."""
    name, on_bus = "GPU driver", len(node.bus) or len(node.devices)
    found = node.driver
    if found is not None and not found.error:
        count = f"{len(found.uuids)} GPU" + ("s" if len(found.uuids) != 1 else "")
        old = [at for at, arch in enumerate(found.archs) if capability(arch) < capability(OLDEST)]
        if old:
            why = f"supports CUDA {shown(found)}, {count}; GPU {old[0]} is {found.archs[old[0]]}: {NEEDED}"
            return warn(name, why, "MoE(backend='cpu'), or leave this GPU out of CUDA_VISIBLE_DEVICES")
        return ok(name, f"supports CUDA {shown(found)}, {count}", version=found.version, gpus=len(found.uuids))
    if not on_bus and not node.files:
        return ok(name, NOT_NEEDED)
    what = f"{on_bus} NVIDIA GPU" + ("s are" if on_bus != 1 else " is") + " in this machine"
    if found is None:
        return warn(name, f"{what}, but libcuda.so.1 is not here", f"install NVIDIA's driver; in a container: {GIVE}")
    if on_bus and not node.files:
        return warn(name, f"{what}, but no file /dev/nvidia* is here: a container without GPUs", GIVE)
    if any(each.mig for each in node.devices) and not node.caps:
        why = f"{what}, in MIG mode, but /dev/nvidia-caps, which slices need, is not here"
        return warn(name, why, f"give the container its slice: docker run --gpus device=MIG-UUID; or: {GIVE}")
    advice = ADVICE.get(found.error, "see the CUDA driver API's reference of cuInit, and nvidia-smi")
    return warn(name, f"{what}, but the driver answers {found.error}", advice)


def puts(node: NodeGpus, limit: float) -> Finding:
    """Whether MPI puts rows to other nodes directly from GPU memory, or the host copies them first.

    limit: seconds that other ranks wait for this check.
    """
    name = "GPU puts"
    if node.driver is None or node.driver.error or not node.driver.uuids:
        return ok(name, NOT_NEEDED)
    answer = device_puts.probe(0, min(device_puts.SECONDS, limit / 2))
    if answer.supported:
        return ok(name, "MPI puts to other nodes from the memory of GPU 0", from_gpu=True)
    return ok(name, f"puts to other nodes go through the host's pinned memory: {answer.why}", from_gpu=False)


def shown(found: DriverAnswer) -> str:
    return ".".join(str(part) for part in found.version)


def gpus(node: NodeGpus, env: Mapping[str, str], ranks: int) -> Finding:
    """The GPUs of a node as its first rank sees them. ranks: number on the node."""
    name = "GPUs"
    devices = node.devices
    if not devices:
        return ok(name, NO_GPU)
    seen = None if node.driver is None or node.driver.error else len(node.driver.uuids)
    of_machine = max(len(devices), len(node.bus))
    text = f"{len(devices)} x {devices[0].name}"
    if seen is not None and seen < of_machine:
        text += f", {seen} of the machine's {of_machine} visible to CUDA"
    variable = env.get("CUDA_VISIBLE_DEVICES")
    text += f", CUDA_VISIBLE_DEVICES={variable}" if variable is not None else ""
    values = {"names": [each.name for each in devices], "visible": variable, "seen": seen, "machine": of_machine}
    for why, remedy in _wrong(node, env, ranks):
        return warn(name, f"{text}; {why}", remedy, **values)
    pairs = (seen or 0) * ((seen or 0) - 1)
    return ok(name, text + (f", all {pairs} ordered pairs reach each other" if pairs else ""), **values)


def _wrong(node: NodeGpus, env: Mapping[str, str], ranks: int) -> list[tuple[str, str]]:
    """Pairs (problem, remedy), the most likely cause first."""
    found = [(fault.text, fault.remedy) for fault in visible(env, node.devices)[1]]
    option = slurm_job.hides_gpus(env)
    if ranks > 1:
        if option:
            found.append((f"{option} hides each task's GPU from its peers, so CUDA IPC between them fails", IPC))
        found += [(fault.text, fault.remedy) for fault in hidden(_job(env), node.devices, node.bus)]
        sliced = [each.label for each in node.devices if each.mig]
        if sliced:
            why = f"{', '.join(sliced)} in MIG mode: a slice reaches no other slice's memory, nor another GPU's"
            found.append((why, "nvidia-smi -mig 0 -i GPU (as root), or ask for whole GPUs; or one rank for each slice"))
    blocked = node.driver.blocked if node.driver else ()
    if blocked:
        count = len(node.driver.uuids) if node.driver else 0
        why = f"{len(blocked)} of {count * (count - 1)} ordered pairs cannot reach each other's memory"
        found.append((why, ADVICE["CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"]))
    return found


def _job(env: Mapping[str, str]) -> slurm_job.SlurmJob | None:
    try:
        return slurm_job.read(env)
    except TopologyError:  # another finding reports this error
        return None


def together(facts: Sequence[RankGpus | Finding], nodes: Nodes) -> list[Finding]:
    """The checks that compare ranks. facts: [ranks], with a failed finding for a rank that could not read its facts."""
    failed = {rank: each for rank, each in enumerate(facts) if isinstance(each, Finding)}
    if failed:
        first = failed[min(failed)]
        return [replace(first, text=f"{named(failed)}: {first.text}")]
    known = [each for each in facts if isinstance(each, RankGpus)]
    return [
        guarded("GPU peers", lambda: peers(known, nodes)),
        guarded("GPU sharing", lambda: sharing(known, nodes)),
    ]


def peers(facts: Sequence[RankGpus], nodes: Nodes) -> Finding:
    """Whether every rank can open the GPU memory of the other ranks of its node. facts: [ranks]"""
    name = "GPU peers"
    uuids_of = seats(facts, nodes)
    if not any(uuids_of):
        return ok(name, NOT_NEEDED)
    bare = [rank for rank, uuid in enumerate(uuids_of) if not uuid]
    if bare:
        return warn(
            name, f"no GPU is visible to {named(bare)}{_variable(facts[bare[0]])}, but other ranks see one", IPC
        )
    pairs = 0
    for rank, mine in enumerate(facts):
        for peer in nodes.local(rank):
            pairs += 1
            hidden_here = uuids_of[peer] not in (mine.driver.uuids if mine.driver else ())
            if hidden_here and mine.visible is None:  # IPC can open a GPU that only CUDA_VISIBLE_DEVICES hides
                why = f"the GPU of rank {peer} ({uuids_of[peer]}) is hidden from rank {rank} by the system"
                return warn(name, f"{why}: CUDA IPC between them fails", IPC)
            if facts[peer].space != mine.space:
                why = f"ranks {rank} and {peer} are in different PID namespaces: CUDA IPC between them fails"
                return warn(name, why, "one container for all ranks of a node, or docker run --pid=host")
    return ok(
        name, f"every rank may open the GPU memory of the other ranks of its node ({pairs} ordered pairs)", pairs=pairs
    )


def _variable(mine: RankGpus) -> str:
    return "" if mine.visible is None else f" (CUDA_VISIBLE_DEVICES={mine.visible})"


def sharing(facts: Sequence[RankGpus], nodes: Nodes) -> Finding:
    """Whether MPS lets kernels of ranks that share a GPU run at the same time."""
    name = "GPU sharing"
    uuids_of = seats(facts, nodes)
    if not any(uuids_of):
        return ok(name, NOT_NEEDED)
    group = next((same for each in uuids_of if each and len(same := _ranks(uuids_of, each)) > 1), [])
    if not group:
        return ok(name, "each rank has a GPU of its own")
    text = f"{named(group)} share {uuids_of[group[0]]}"
    found = {facts[rank].pipes for rank in group}
    if len(found) > 1:
        without = [rank for rank in group if not facts[rank].pipes]
        why = (
            f"{named(without)} {'use' if len(without) > 1 else 'uses'} no MPS daemon"
            if without
            else f"{named(group)} ask different MPS daemons"
        )
        return warn(name, f"{text}, but {why}", f"export the same {PIPES} on all ranks of the node")
    if found == {""}:
        start = f"export {PIPES}=FOLDER; nvidia-cuda-mps-control -d, on each node before the ranks start"
        why = f"{text} without MPS: only one of them computes at a time, and their times mean nothing"
        return warn(name, why, f"one rank a GPU, or {start}")
    return ok(name, f"{text}, by MPS in {found.pop()}")


def _ranks(uuids_of: Sequence[str], uuid: str) -> list[int]:
    return [rank for rank, each in enumerate(uuids_of) if each == uuid]


def seats(facts: Sequence[RankGpus], nodes: Nodes) -> list[str]:
    """[ranks] the UUID of each rank's GPU, the visible GPU with the rank's number on the node; '' if it sees none."""
    uuids_of = []
    for rank, mine in enumerate(facts):
        uuids = mine.driver.uuids if mine.driver else ()
        local = sum(node == nodes.node_of[rank] for node in nodes.node_of[:rank])
        uuids_of.append(uuids[local % len(uuids)] if uuids else "")
    return uuids_of


def packages(versions: Mapping[str, str | None], node: NodeGpus) -> Finding:
    """Whether the packages for GPUs are installed and fit each other and the driver. versions: PACKAGES' versions."""
    name = "GPU packages"
    if not node.devices:
        return ok(name, "not needed")
    missing = [package for package in PACKAGES if versions[package] is None]
    if missing:
        return warn(name, f"not installed: {', '.join(missing)}; ranks compute on their cores", INSTALL)
    text = ", ".join(f"{package} {versions[package]}" for package in PACKAGES)
    numbers = {package: _numbers(versions[package]) for package in PACKAGES}
    if numbers["numpy"] >= (2, 5):
        return warn(name, f"numba-cuda does not work with NumPy 2.5 and later: {text}", "pip install 'numpy<2.5'")
    if not (0, 30) <= numbers["numba-cuda"] < (0, 31):
        return warn(name, f"kernels are written for numba-cuda 0.30: {text}", "pip install 'numba-cuda>=0.30,<0.31'")
    if not (0, 5) <= numbers["cuda-core"] < (2, 0):
        return warn(name, f"numba-cuda 0.30 needs cuda-core 0.5 to 1: {text}", "pip install 'cuda-core>=0.5.1,<2'")
    found = node.driver
    if found is not None and found.version[0] < numbers["cuda-bindings"][0] and found.version != (0, 0):
        extra = f"cuda{found.version[0]}"
        why = f"the driver supports CUDA {shown(found)}, cuda-bindings is newer: {text}"
        return warn(name, why, f"pip install 'aristos[{extra}]' in a new environment, or update the driver")
    return ok(name, text)


def _numbers(text: str | None) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text or "")[:2])
