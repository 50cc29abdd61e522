"""`python -m aristos.launcher.take_seat -- PROGRAM ...`: takes a rank's seat on its node, then becomes the program.

The process finds its local rank, binds itself to the cores of that seat, and sets the variables for its device, its NIC
and its MPI. Then the program replaces it, with the same process id. So the binding is the same under every MPI and
Slurm, and fits each node, not only the one where the job was started. All threads of the rank inherit the binding. The
rank's memory follows them, because Linux takes a page from the NUMA domain of the thread that writes it first.

A rank sees all GPUs of its node, because CUDA IPC cannot open hidden ones. ARISTOS_DEVICE is its own GPU's number in
CUDA's order.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from kernel_cache.texts import whole

from ..errors import AristosError, EnvironmentProblem, TopologyError
from ..host import mpi_library, slurm_variables, workarounds
from ..host.mpi_facts import LOCAL as LOCAL_VARIABLES
from ..host.mpi_facts import under_srun
from ..topology import cpusets, slurm_job
from ..topology.visible import VARIABLE as VISIBLE
from . import left
from .seats import Seat, numa_seats, seats
from .this_node import find

PLAN = "ARISTOS_SEATS"  # the seats of the node that started the job; its ranks need not examine the node again
DEVICE, LOCAL = "ARISTOS_DEVICE", "ARISTOS_LOCAL_RANK"
JOB = "ARISTOS_JOB"  # marks every process of a job
RESTART = "ARISTOS_RESTART"  # number of this start of the job; above 0 after a loss


class NoRank(Exception):
    """No launcher variable gives the local rank."""


def local_rank(env: Mapping[str, str]) -> tuple[int, int]:
    """(local rank, ranks of this node). Raises NoRank."""
    for rank, size in LOCAL_VARIABLES:
        number, ranks = whole(env.get(rank, "")), whole(env.get(size, "")) if size else None
        if number is None:
            continue
        if ranks is not None:
            return number, ranks
        if rank == slurm_variables.LOCAL_RANK:
            return number, slurm_tasks(env)
    names = ", ".join(rank for rank, _ in LOCAL_VARIABLES)
    raise NoRank(f"none of {names} is set, because no launcher started this program: use `aristos run`")


def slurm_tasks(env: Mapping[str, str]) -> int:
    """How many tasks the step has on this node."""
    least = (whole(env.get(slurm_variables.LOCAL_RANK, "")) or 0) + 1
    try:
        counted = slurm_job.counts(slurm_variables.tasks_per_node(env))
    except TopologyError:
        return least
    node = slurm_variables.node_number(env)
    return max(counted[node], least) if node < len(counted) else least


def to_json(found: list[Seat]) -> str:
    """The seats of this node as JSON, for its ranks."""
    rows = [[cpusets.show(s.cpus), s.numa, s.device, s.order, s.device_name, s.mig, s.nic, s.sharing] for s in found]
    return json.dumps([platform.node(), rows], separators=(",", ":"))


def from_json(text: str, size: int) -> list[Seat]:
    """The seats in the text, if they are for this node and `size` ranks; else none."""
    try:
        host, rows = json.loads(text) if text else ("", [])
        if host != platform.node() or len(rows) != size:
            return []
        return [Seat(i, cpusets.parse(row[0]), *row[1:]) for i, row in enumerate(rows)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []  # the text is not from `to_json`


def environment(seat: Seat, env: Mapping[str, str], root: Path = Path("/sys")) -> dict[str, str]:
    """Variables for the program."""
    found = {LOCAL: str(seat.local)}
    if seat.mig:  # CUDA shows a process only one slice, so the rank's own slice is named
        found |= {DEVICE: "0", VISIBLE: seat.mig}
    elif seat.order is not None:
        found[DEVICE] = str(seat.order)
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order; CUDA's default order puts the fastest first
    port = active_port(seat.nic, root)
    if port:  # Open MPI and MPICH over UCX use the variable; other libraries choose a port themselves
        found["UCX_NET_DEVICES"] = f"{seat.nic}:{port}"
    return {name: value for name, value in found.items() if name in (LOCAL, DEVICE, VISIBLE) or name not in env}


def active_port(nic: str, root: Path = Path("/sys")) -> int:
    """The first active port of an InfiniBand or RoCE adapter; 0 if there is none."""
    for port in sorted((root / "class/infiniband" / nic / "ports").glob("[0-9]*")) if nic else ():
        try:
            if "ACTIVE" in (port / "state").read_text():
                return whole(port.name) or 0
        except OSError:
            continue
    return 0


def bind(cpus: frozenset[int], whole_seat: bool = False) -> None:
    """Bind this process to the CPUs of `cpus` that it may use. If it may use none of them, nothing changes.

    whole_seat: whether to raise EnvironmentProblem if the process may not use all CPUs of `cpus`.
    """
    allowed = os.sched_getaffinity(0)
    if whole_seat and not cpus <= allowed:
        raise EnvironmentProblem(
            f"--per numa: this rank needs all CPUs of its NUMA domain, {cpusets.show(cpus)}, but may use only"
            f" {cpusets.show(allowed)}: unset the variables that make the launcher bind ranks, or ask for whole nodes"
            " (sbatch --exclusive)"
        )
    mine = cpus & allowed
    if mine:
        os.sched_setaffinity(0, mine)


def here(size: int, smt: bool, per_numa: bool) -> list[Seat]:
    """The seats of this node for `size` ranks. Raises InputError, EnvironmentProblem."""
    node = find(os.environ)
    return numa_seats(node.node, size, smt) if per_numa else seats(node.node, size, node.devices, smt)


def main(argv: list[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    options, words = argv[:at], argv[at:]
    if not set(options) <= {"--smt", "--clean", "--per-numa"} or len(words) < 2:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    program = words[1:]
    try:
        rank, size = local_rank(os.environ)
    except NoRank as why:
        print(f"aristos run: {why}", file=sys.stderr)
        return 3
    found, per_numa = from_json(os.environ.pop(PLAN, ""), size), "--per-numa" in options
    try:
        seat = (found or here(size, "--smt" in options, per_numa))[rank]
        bind(seat.cpus, per_numa)
    except AristosError as why:
        print(f"aristos run: local rank {rank}: {why}", file=sys.stderr)
        return 3
    if not under_srun(os.environ):
        # This rank is killed when its launcher dies. Under srun Slurm ends it.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    elif rank == 0:
        left.handle("--clean" in options)  # on the starting node `aristos run` does this
    workarounds.apply(mpi_library.find())
    os.environ.update(environment(seat, os.environ))
    try:
        os.execvp(program[0], program)
    except OSError as why:
        print(f"aristos run: cannot start {program[0]}: {why.strerror}", file=sys.stderr)
        return 127 if isinstance(why, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
