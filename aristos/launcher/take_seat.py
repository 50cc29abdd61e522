"""`python -m aristos.launcher.take_seat -- PROGRAM ...`: one rank takes its seat on its node and becomes the program.

It looks up which local rank it is, binds itself to the cores of that seat, sets what says which device and NIC are its
own, and what its MPI needs on this node; then the program takes its place, with the same process id. So the binding is
the same under every MPI and under Slurm, and holds for each node as it is, not as the one where the job was started.

A rank keeps seeing all GPUs of its node: CUDA IPC opens only what is not hidden. ARISTOS_DEVICE is its own one's number
in CUDA's order, that of its local rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from ..doctor.shared_memory import leftovers
from ..errors import TopologyError
from ..host import mpi_library, workarounds
from ..topology import cpusets, slurm_job
from ..topology.visible import VARIABLE as VISIBLE
from ..transport.capacity import SHM
from .machine import look
from .seats import Seat, seats

PLAN = "ARISTOS_SEATS"  # the seats of the machine that started the job, so that its ranks need not look at it again
DEVICE, LOCAL = "ARISTOS_DEVICE", "ARISTOS_LOCAL_RANK"
JOB = "ARISTOS_JOB"  # marks every process of a job
# (local rank, how many there are) as the launchers say it, the innermost first.
_PLACES = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_LOCALID", ""),
)


class NoRank(Exception):
    """No launcher says which rank this is."""


def local_rank(env: Mapping[str, str]) -> tuple[int, int]:
    """(local rank, ranks of this node). Raises NoRank."""
    for rank, size in _PLACES:
        if not env.get(rank, "").isdecimal():
            continue
        if size and env.get(size, "").isdecimal():
            return int(env[rank]), int(env[size])
        if rank == "SLURM_LOCALID":
            return int(env[rank]), slurm_tasks(env)
    names = ", ".join(rank for rank, _ in _PLACES)
    raise NoRank(f"none of {names} is set: this is a part of `aristos run` and no command of its own")


def slurm_tasks(env: Mapping[str, str]) -> int:
    """Tasks of the step on this node."""
    least = int(env.get("SLURM_LOCALID") or 0) + 1
    try:
        counted = slurm_job.counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", ""))
    except TopologyError:
        return least
    node = int(env.get("SLURM_NODEID") or 0)
    return max(counted[node], least) if node < len(counted) else least


def to_json(found: list[Seat]) -> str:
    """The seats of this machine for its ranks."""
    rows = [[cpusets.show(s.cpus), s.numa, s.device, s.order, s.device_name, s.mig, s.nic, s.sharing] for s in found]
    return json.dumps([platform.node(), rows], separators=(",", ":"))


def from_json(text: str, size: int) -> list[Seat]:
    """The seats if they are those of this machine and of so many ranks; else none."""
    host, rows = json.loads(text) if text else ("", [])
    if host != platform.node() or len(rows) != size:
        return []
    return [Seat(i, cpusets.parse(row[0]), *row[1:]) for i, row in enumerate(rows)]


def environment(seat: Seat, env: Mapping[str, str], root: Path = Path("/sys")) -> dict[str, str]:
    """What the program gets besides."""
    found = {LOCAL: str(seat.local)}
    if seat.mig:  # CUDA shows a process one slice: its own must be named
        found |= {DEVICE: "0", VISIBLE: seat.mig}
    elif seat.order is not None:
        found[DEVICE] = str(seat.order)
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; CUDA's own order puts the fastest first
    port = active_port(seat.nic, root)
    if port:  # Open MPI and MPICH over UCX; others choose by themselves
        found["UCX_NET_DEVICES"] = f"{seat.nic}:{port}"
    return {name: value for name, value in found.items() if name in (LOCAL, DEVICE, VISIBLE) or name not in env}


def active_port(nic: str, root: Path = Path("/sys")) -> int:
    """The first port of an InfiniBand or RoCE adapter that is up; 0 if there is none."""
    for port in sorted((root / "class/infiniband" / nic / "ports").glob("[0-9]*")) if nic else ():
        try:
            if "ACTIVE" in (port / "state").read_text():
                return int(port.name)
        except OSError:
            continue
    return 0


def bind(cpus: frozenset[int]) -> None:
    """Bind this process to those of `cpus` that it may use; as it is where it may use none of them."""
    mine = cpus & os.sched_getaffinity(0)
    if mine:
        os.sched_setaffinity(0, mine)


def here(size: int, smt: bool) -> list[Seat]:
    """The seats of this machine for `size` ranks."""
    machine = look(os.environ)
    return seats(machine.node, size, machine.devices, smt)


def clean_old(folder: str = SHM) -> int:
    """Remove what killed MPI jobs of this user left on this node and no process has mapped or open; how many files."""
    removed = 0
    for path, _ in leftovers(folder):
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed += 1
    return removed


def main(argv: list[str]) -> int:
    smt = argv[:1] == ["--smt"]
    words = argv[1:] if smt else argv
    if words[:1] != ["--"] or len(words) < 2:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    program = words[1:]
    try:
        rank, size = local_rank(os.environ)
    except NoRank as why:
        print(f"aristos run: {why}", file=sys.stderr)
        return 3
    found = from_json(os.environ.pop(PLAN, ""), size)
    seat = (found or here(size, smt))[rank]
    if not workarounds.under_srun(os.environ):
        # A rank whose launcher is killed goes too. Slurm sees to that itself.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    elif rank == 0:
        clean_old()  # where the job was started, that was done before
    bind(seat.cpus)
    workarounds.apply(mpi_library.find())
    os.environ.update(environment(seat, os.environ))
    try:
        os.execvp(program[0], program)
    except OSError as why:
        print(f"aristos run: cannot start {program[0]}: {why.strerror}", file=sys.stderr)
        return 127 if isinstance(why, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
