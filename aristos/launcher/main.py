"""`aristos run`: turns options into commands and a table of seats, and runs the job."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass

from ..errors import EnvironmentProblem, InputError
from ..host import launch_environment, mpi_library, slurm_variables
from . import commands, left, restarts, take_seat
from .commands import Command
from .seats import Seat, default_ranks, numa_cores, numa_note, numa_seats, seats, table
from .this_node import ThisNode, find, read

MOST = 4096  # the most ranks of a node; several times the hardware threads of the largest node


def launch(asked: Namespace, program: list[str]) -> int:
    """Start the job, or show its command. Returns the exit code. Raises AristosError before anything is started."""
    env = dict(os.environ)
    if asked.nvidia_smi and not asked.dry_run:
        raise InputError("--nvidia-smi FILE describes another machine, so it needs --dry-run: add --dry-run")
    if asked.restart_ranks and not asked.restarts:
        raise InputError("--restart-ranks says how many ranks a restart has, so it needs --restarts: add --restarts N")
    if asked.per and asked.nvidia_smi:
        raise InputError(
            "nvidia-smi does not list NUMA domains, so --per numa excludes --nvidia-smi: leave one of them out"
        )
    commands.check_not_inside_a_job(launch_environment.started_as(env))
    words = commands.seated(commands.find_program(program), asked.smt, asked.clean, bool(asked.per))
    machine = read(asked.nvidia_smi) if asked.nvidia_smi else find(env)
    nodes = commands.allocation(env)
    ranks = asked.ranks or _ranks(machine, nodes, env, asked.per, asked.smt)
    wanted = restarts.ranks_of(asked, ranks)
    made = {each: _start(asked, words, machine, nodes, each, env) for each in dict.fromkeys(wanted)}
    starts = [made[each] for each in wanted]
    for line in [*map(str, machine.faults), *starts[0].notes]:
        print(f"aristos run: {line}", file=sys.stderr, flush=True)
    if asked.dry_run:
        show(starts[0].command, starts[0].seats, machine.outside)
        sys.stdout.flush()
        return 0
    left.handle(asked.clean)
    return restarts.run_starts([(each.ranks, each.command.words, each.env) for each in starts], asked.clean)


@dataclass
class Start:
    """One start of the job. notes: sentences about its ranks. env: the launcher's environment."""

    ranks: int
    command: Command
    seats: list[Seat]
    notes: list[str]
    env: dict[str, str]


def _start(asked: Namespace, words: list[str], machine: ThisNode, nodes: int, ranks: int, env: dict[str, str]) -> Start:
    """The command that starts `ranks` ranks, and their seats."""
    env = dict(env)
    used = min(ranks, max(1, nodes))
    per_node = -(-ranks // used)
    if per_node > MOST:
        raise InputError(f"at most {MOST} ranks of a node can be placed, got {per_node} ({ranks} on {used} nodes)")
    here = _seats(asked, machine, per_node)
    if not machine.outside:
        env[take_seat.PLAN] = take_seat.to_json(here)
    library = mpi_library.find(env)
    with_srun = asked.launcher == "srun" or (asked.launcher is None and nodes > 0)
    if with_srun and not nodes:
        raise EnvironmentProblem(
            "srun needs an allocation: salloc -N 2 aristos run -- PROGRAM, or sbatch a script with that command"
        )
    start = commands.by_srun if with_srun else commands.by_mpirun
    command = start(ranks, per_node, used, words, library, env)
    about = [*notes(here, used), *short(per_node, env, with_srun)]
    if asked.per and not machine.outside:
        about.append(numa_note(machine.node, here))
    return Start(ranks, command, here, about, command.environment(env))


def _seats(asked: Namespace, machine: ThisNode, ranks: int) -> list[Seat]:
    """The seats of this node; none if it is not one of the job's."""
    if machine.outside:
        return []
    if asked.per:
        return numa_seats(machine.node, ranks, asked.smt)
    return seats(machine.node, ranks, machine.devices, asked.smt)


def _ranks(machine: ThisNode, nodes: int, env: dict[str, str], per: str | None = None, smt: bool = False) -> int:
    """How many ranks to start without -n: as many as the user asked of sbatch or salloc, or else the nodes' default.

    per: "numa" means one rank for each NUMA domain, however many tasks the user asked for.
    """
    wanted = slurm_variables.wanted_tasks(env)
    if nodes and wanted and not per:
        return wanted
    if machine.outside:
        raise InputError(
            "this machine is not a node of the job, so the devices of its nodes are unknown: give -n RANKS"
        )
    if per:
        return len(numa_cores(machine.node, smt)) * max(1, nodes)
    return default_ranks(machine.node, machine.devices) * max(1, nodes)


def short(per_node: int, env: dict[str, str], with_srun: bool) -> list[str]:
    """A note if the allocation has fewer processors than ranks."""
    cpus = commands.cpus_per_node(env)
    if not with_srun or per_node <= cpus:
        return []
    return [
        f"oversubscribed: {per_node} ranks of a node share {cpus} processor{'s'[: cpus != 1]} of the allocation: salloc"
        f" or sbatch --ntasks-per-node={per_node} gives each rank one"
    ]


def notes(here: list[Seat], nodes: int) -> list[str]:
    """Notes about ranks that share cores or GPUs."""
    found = []
    crowded = [s for s in here if s.sharing > max(1, len(s.cpus))]
    if crowded:
        where = f"each of {nodes} nodes" if nodes > 1 else "this machine"
        cores = len(frozenset().union(*(s.cpus for s in crowded)))
        found.append(
            f"oversubscribed: {len(crowded)} ranks share {cores} core{'s'[: cores != 1]} of {where}, so they often wait"
            f" for each other: start at most {cores * nodes}, so that each has a core"
        )
    by_device = Counter(seat.device for seat in here if seat.device is not None)
    if max(by_device.values(), default=0) > 1:
        found.append(
            f"{len(here)} ranks share {len(by_device)} GPU{'s'[: len(by_device) != 1]} of a node: the layer is made for"
            " one rank on each GPU"
        )
    return found


def show(command: Command, here: list[Seat], outside: bool) -> None:
    """Print the command, and the seat of each rank of a node."""
    for each in command.set:
        print(f"{each.name}={shlex.quote(each.value)}  # {each.why}")
    print(shlex.join(command.words))
    print()
    if outside:
        print("this machine is not one of the job's nodes; each node places its ranks when they start")
        return
    if command.nodes > 1:
        print(f"ranks of the first of {command.nodes} nodes, if it is like this one (every node places its own ranks):")
    print(table(here))
