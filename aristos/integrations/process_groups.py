"""torch.distributed beside MPI: sets its variables from MPI's ranks, and makes communicators of its process groups."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch.distributed

from ..errors import EnvironmentProblem
from ..layer.arguments import check_comm
from ..substrate.attach import attach
from ..transport.limits import Limits

LOOPBACK = "127.0.0.1"
_comms: dict[tuple[int, ...], Any] = {}  # communicators, by their ranks in the whole job


def set_variables(comm: Any, limits: Limits) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, if they are missing. Collective.

    The ranks of torch.distributed are then the ranks of comm. The master is rank 0. Its address is loopback if all
    ranks share a node, or else the name of its host.
    """
    check_comm(comm)
    runtime = attach(comm, limits)
    try:
        group = runtime.group
        mine = (socket.gethostname(), _free_port()) if group.rank == 0 else None
        host, port = group.allgather(mine, "the address of torch.distributed")[0]
        found = {
            "RANK": group.rank,
            "WORLD_SIZE": group.world,
            "LOCAL_RANK": group.node.Get_rank(),
            "MASTER_ADDR": LOOPBACK if group.nodes.single else host,
            "MASTER_PORT": port,
        }
    finally:
        runtime.release()
    for name, value in found.items():
        os.environ.setdefault(name, str(value))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def communicator_of(group: Any) -> Any:
    """The mpi4py communicator of a process group's ranks, in the group's order; None for a group of one. Collective.

    Raises EnvironmentProblem if processes of torch.distributed are not ranks of one MPI job.
    """
    size = torch.distributed.get_world_size(group)
    if size == 1:
        return None
    from mpi4py import MPI

    ranks: list[Any] = [None] * size
    torch.distributed.all_gather_object(ranks, MPI.COMM_WORLD.Get_rank(), group=group)
    key = tuple(ranks)
    if len(set(key)) < size:
        raise EnvironmentProblem(
            f"the {size} processes of torch.distributed must be different ranks of MPI, got ranks"
            f" {', '.join(map(str, key))}: start the program by `aristos run -n RANKS`, not by torchrun"
        )
    if key not in _comms:
        whole = MPI.COMM_WORLD.Get_group()
        members = whole.Incl(key)
        _comms[key] = MPI.COMM_WORLD.Create_group(members)
        members.Free()
        whole.Free()
    return _comms[key]
