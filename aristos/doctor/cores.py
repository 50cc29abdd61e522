"""Checks of cores: whether each rank has enough cores of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..host import launch_environment, mpi_facts
from ..host.mpi_library import Library
from .finding import Finding, named, ok, warn

AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")


@dataclass(frozen=True)
class RankCores:
    """A rank's place: its node, the cores that it may use, and how many cores the machine has online."""

    node: int
    cores: frozenset[int]
    online: int


def of_rank(node: int) -> RankCores:
    """This rank's place. node: the number of its node."""
    return RankCores(node, frozenset(os.sched_getaffinity(0)), os.cpu_count() or 1)


def remedy(library: Library | None, env: Mapping[str, str], cores: int) -> str:
    """Advice that names the option by which this launcher gives each rank `cores` cores of its own."""
    started = launch_environment.started_as(env)
    if started is not None and started[0] == "srun":
        return f"srun --cpus-per-task={cores} --cpu-bind=cores ... (since Slurm 22.05 srun ignores sbatch's value)"
    facts = mpi_facts.facts(library.kind if library is not None else "") or mpi_facts.DEFAULT
    return facts.binding.format(cores=cores)


def binding(seats: list[RankCores], library: Library | None, env: Mapping[str, str]) -> Finding:
    """Whether each rank of a node has its own cores, or all ranks share enough cores equally. seats: [ranks]."""
    name = "cores"
    single, crowded, overlapping = [], [], []
    share = 1
    for node in dict.fromkeys(s.node for s in seats):
        ranks = [r for r, s in enumerate(seats) if s.node == node]
        masks = [seats[r].cores for r in ranks]
        union = frozenset().union(*masks)
        each = max(1, seats[ranks[0]].online // len(ranks))
        if len(ranks) > len(union):
            crowded += ranks
            share = each
        elif sum(map(len, masks)) > len(union) and len(set(masks)) > 1:
            overlapping += ranks
            share = each
        elif each > 1 and any(len(mask) == 1 for mask in masks):
            single += [r for r in ranks if len(seats[r].cores) == 1]
            share = each
    values = {"cores": [sorted(s.cores) for s in seats], "online": [s.online for s in seats]}
    fix = remedy(library, env, share)
    if crowded:
        union = frozenset().union(*(seats[r].cores for r in crowded if seats[r].node == seats[crowded[0]].node))
        here = sum(seats[r].node == seats[crowded[0]].node for r in crowded)
        text = f"{here} ranks share {listed(union)}, so they often wait for each other"
        return warn(name, text, f"start at most one rank a core, or bind ranks to more cores: {fix}", **values)
    if overlapping:
        return warn(
            name, f"{named(overlapping)} share some cores but not all: some cores get twice the work", fix, **values
        )
    if single:
        online = seats[single[0]].online
        text = f"only one of {online} cores for each of {named(single)}, although each rank could have {share}"
        return warn(name, text, fix, **values)
    return ok(name, _usual(seats), **values)


def scheduler(seats: list[RankCores], autogroups: bool) -> Finding:
    """Whether Linux schedules each rank as a separate group while ranks share cores. seats: [ranks].

    Linux 6.18 kept a group off a core for minutes when another group on that core had two threads: one that yields, as
    MPI does in its collectives, and one that sleeps for a millisecond or less at a time.
    """
    name = "scheduler"
    nodes = dict.fromkeys(s.node for s in seats)
    masks = [[s.cores for s in seats if s.node == node] for node in nodes]
    if not autogroups or all(len(each) <= len(frozenset().union(*each)) for each in masks):
        return ok(name, f"autogroups {'on, no ranks share cores' if autogroups else 'off'}")
    text = (
        "autogroups are on, and ranks share cores: a rank that waits can keep another rank off their core for minutes"
    )
    return warn(name, text, "sysctl kernel.sched_autogroup_enabled=0 (as root), or at most one rank a core")


def autogroups() -> bool:
    """Whether Linux's scheduler treats every session as a group. Launchers start a session for each rank.

    See sched(7).
    """
    try:
        return AUTOGROUPS.read_text().strip() == "1"
    except OSError:
        return False


def _usual(seats: list[RankCores]) -> str:
    """The text for a good binding; it describes rank 0's node."""
    here = [s.cores for s in seats if s.node == seats[0].node]
    if len(here) == 1:
        return f"{listed(here[0])} of {seats[0].online}" + (" for each rank" if len(seats) > 1 else "")
    if len(set(here)) == 1:
        return f"{len(here)} ranks a node share {listed(here[0])}: {max(1, len(here[0]) // len(here))} for each"
    return f"each rank has cores of its own, rank 0 has {listed(here[0])} of {seats[0].online}"


def listed(cores: frozenset[int]) -> str:
    """Cores as a text: `core 1`, `cores 0-3, 8`."""
    numbers = named(cores).removeprefix("ranks ").removeprefix("rank ")
    return f"core {numbers}" if len(cores) == 1 else f"cores {numbers}"


def quota() -> float | None:
    """CPU time that the container grants, as a number of cores; None without a limit."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) / int(period)


def granted(cores: int, limit: float | None, env: Mapping[str, str]) -> Finding:
    """Whether the container grants a rank less CPU time than the cores that it may use would give.

    cores: how many the rank may use. limit: the granted time, see `quota`.
    """
    name = "core limits"
    if limit is not None and limit < cores - 0.5:
        text = f"the container grants the time of {limit:g} of the {cores} visible cores: threads will be throttled"
        return warn(name, text, "docker run --cpuset-cpus instead of --cpus, or MoE(threads=...)", quota=limit)
    if env.get("NUMBA_NUM_THREADS") or env.get("OMP_NUM_THREADS"):
        return ok(
            name, "none (OMP_NUM_THREADS and NUMBA_NUM_THREADS do not limit Aristos's workers; MoE(threads=) does)"
        )
    return ok(name, "none", quota=limit)


def torch_threads(env: Mapping[str, str], installed: bool) -> Finding:
    """How torch's threads wait after their work, on cores that a layer's workers need.

    installed: whether torch is there.
    """
    name = "torch's threads"
    if not installed:
        return ok(name, "torch is not installed")
    if env.get("OMP_NUM_THREADS") == "1":
        return ok(name, "one a rank, by OMP_NUM_THREADS")
    chosen = [f"{each}={env[each]}" for each in launch_environment.OPENMP_WAITS if each in env]
    if chosen:
        return ok(name, f"wait as set by {', '.join(chosen)}")
    return ok(name, "keep cores busy after each operation, unless OMP_WAIT_POLICY=passive is set before python starts")
