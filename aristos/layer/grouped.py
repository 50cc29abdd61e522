"""One rank's part of a plan: the communicator of the rank's group, and the placement in that group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ..errors import InputError, MismatchError
from ..placement import Plan
from ..substrate.attach import attach
from ..transport.limits import Limits
from .arguments import check_comm
from .differences import differences
from .options import Options


class PlanGroup:
    """This rank's group of a plan; without a plan, the group of all ranks. Collective.

    comm: the communicator of the group, which `leave` frees. placement: which ranks of the group hold which expert, in
    the form that `Placement` takes. number: the group's number. whole: the communicator of all groups; None without a
    plan. Raises what `_split` raises.
    """

    def __init__(self, comm: Any, options: Options) -> None:
        self.comm, self.placement, self.number, self.whole = comm, options.placement, 0, None
        self._options = options
        if options.plan is not None:
            if comm is None:
                raise InputError(
                    "plan needs comm=, an mpi4py communicator with a rank for each device of the plan, got None"
                )
            check_comm(comm)
            self.whole = comm
            self.comm, self.placement, self.number = _split(
                comm, options.plan, options.experts, options.placement, options.limits, options.nodes
            )

    @contextmanager
    def making(self) -> Iterator[None]:
        """A context manager for code that makes a layer of the group.

        If the block fails, the group's communicator is freed. If the layer will be trained and the block fails in one
        group, it fails in all groups.
        """
        options, train = self._options, self._options.train is True
        try:
            together = train and self.whole is not None
            with _together(self.whole, options.limits, options.nodes) if together else nullcontext():
                yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Free the group's communicator; collective in the group, and harmless when repeated."""
        if self.whole is not None:
            self.whole = None
            self.comm.Free()


def _split(
    comm: Any, plan: Plan, experts: int | None, placement: Any, limits: Limits, ranks_per_node: int | None
) -> tuple[Any, list[list[int]], int]:
    """Split the ranks into the plan's groups. Collective over comm.

    Returns (communicator of this rank's group, for each expert the ranks of the group that hold it, number of the
    group). comm: an mpi4py communicator with a rank for each of the plan's devices; rank i is device i. Raises
    InputError or MismatchError on every rank, even if another rank makes a layer without a plan, because that layer
    takes part in the same comparison of arguments.
    """
    rank, world = comm.Get_rank(), comm.Get_size()
    problem, mine = None, ""
    if not isinstance(plan, Plan):
        problem = f"plan must be an aristos.planner.Plan, got {plan!r}"
    else:
        mine = f"groups {plan.groups} and placement {plan.placement}"
        if placement is not None:
            problem = "give plan or placement, not both: the plan has its own placement"
        elif plan.ranks != world:
            problem = f"plan must have a device for each of the {world} ranks, got a plan for {plan.ranks} devices"
        elif experts is not None and plan.experts != experts:
            problem = f"plan must place the {experts} experts of cfg, got a plan for {plan.experts} experts"
    whole = attach(comm, limits, ranks_per_node)
    try:
        whole.refuse_open()
        reported = whole.group.allgather((problem, {"object": f"a plan with {mine}"}), "layer configurations")
        for each, _ in reported:
            if each:
                raise InputError(each)
        for other, (_, theirs) in enumerate(reported):
            if theirs != reported[0][1]:
                raise MismatchError(
                    f"ranks have different plans: {differences(reported[0][1], theirs, 'rank 0', f'rank {other}')}"
                )
        number = next(g for g, members in enumerate(plan.groups) if rank in members)
        with whole.group.bounded("the other ranks to form the plan's groups (MPI_Comm_split)"):
            part = comm.Split(number, rank)
    finally:
        whole.release()
    place = {device: at for at, device in enumerate(plan.groups[number])}
    held = plan.placement[number]
    return part, [[place[device] for device in held[e]] for e in range(plan.experts)], number


@contextmanager
def _together(comm: Any, limits: Limits, ranks_per_node: int | None) -> Iterator[None]:
    """A context manager for code that makes a layer on each group of a plan.

    If one rank fails in it, the ranks of all groups raise. comm: the communicator of all groups. Collective over comm.
    """
    whole = attach(comm, limits, ranks_per_node)
    try:
        yield
    except BaseException as error:
        whole.cannot_make(error, part=True)
        raise
    finally:
        whole.release()
