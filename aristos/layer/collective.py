"""What `MoE` and `Exchange` share: membership in a runtime, new jobs, and the errors that a peer's refusal raises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._first_refusal import raise_first
from ..config import MoEConfig
from ..engine import codes, schema, words
from ..engine import job as jobs
from ..engine.layout import (
    LINE,
    EngineShape,
    lines,
    local_peers,
    local_rows,
    most_announced,
    places,
    return_stride,
    ring_rows,
)
from ..errors import AristosError, ClosedError, InputError, MismatchError, NotLoaded, OpenCallError, PeerInputError
from ..host.nodes import Nodes
from ..kernels.common import activations
from ..placement import Placement
from ..primitives.buffers import FLOAT, zeros
from ..row_types import ROW_TYPES
from ..substrate.attach import attach
from ..substrate.runtime import OPEN_CALL, Runtime
from ..transport.group import Group
from ..transport.limits import Limits
from .arguments import check_comm, choices, usable_nodes
from .differences import Fields, differences
from .weights import part_name

_WHY = {codes.NOT_FINITE: "scores or weights that are not finite", codes.BAD_IDS: "ids out of range or repeated"}


def why(status: int) -> str:
    """Why a rank refused its input, by the status that it announced."""
    if status >= codes.NOT_LOADED:
        return f"it has not loaded {part_name(status - codes.NOT_LOADED)} of this layer"
    return _WHY.get(status, "see the error of that rank")


def status_of(error: Exception | None) -> int:
    """The status to announce for this rank's own error."""
    return codes.NOT_LOADED + error.part if isinstance(error, NotLoaded) else codes.REFUSED


def shape_of(
    world: int,
    placement: Placement,
    *,
    hidden: int,
    experts: int,
    top_k: int,
    max_tokens: int,
    dtype: str = "float32",
    shared: bool = False,
    foreign: int = 0,
    train: bool = False,
    nodes: Nodes | None = None,
) -> EngineShape:
    """The engine's capacity that a layer or an exchange needs.

    shared: whether there is a shared expert, which every rank holds. A token's row for it stays on the token's rank.
    foreign: the most experts of local peers that a rank computes. train: whether there are backward calls, which send
    rows [dy | x] and get rows of dx in float32, each with a scalar. nodes: one node by default.
    """
    nodes = nodes or Nodes.split(world)
    stride, back_stride = lines(ROW_TYPES[dtype].nbytes * (2 if train else 1) * hidden), 0
    if train:
        back_stride = return_stride(FLOAT * hidden, 1)
        stride = max(stride, back_stride)  # staged rows use slots of the same size as rows of a ring
    most_held, announced = max(placement.held), most_announced([held + shared for held in placement.held], nodes)
    most = max_tokens * min(top_k, max(1, most_held, announced))
    most_local = max_tokens * min(top_k, max(1, most_held))
    local = local_rows(nodes, stride, most_local)
    if local:
        local = max(local, min(top_k, most_local))
    rows = ring_rows(places(nodes), stride, most, local_peers(nodes) * local)
    return_rows = max_tokens * (top_k + shared)
    back = return_rows * back_stride
    return EngineShape(
        world=world,
        ring_rows=max(rows, min(top_k, most)) if world > 1 else 1,
        stride=stride,
        return_rows=return_rows,
        max_held=max(1, most_held) + shared,
        top_k=top_k + shared,
        experts=placement.slots + world * shared,
        max_tokens=max_tokens,
        foreign=foreign,
        return_bytes=back if back != return_rows * stride else 0,
        announced=announced,
        places=places(nodes) if nodes.levels == 2 else 0,
        local_rows=local,
        local_peers=local_peers(nodes),
    )


def widths(*layers: MoEConfig) -> dict[str, Any]:
    """The keywords of `shape_of` for layers of one object. Of these, only `shared` can differ between the layers."""
    common = {name: getattr(layers[0], name) for name in ("hidden", "experts", "top_k", "max_tokens", "dtype")}
    return common | {"shared": any(cfg.shared_ffn for cfg in layers)}


@dataclass(frozen=True)
class Needs:
    """Private memory and workers that an object's calls need.

    workers: a rank's default number of workers; 0: one for each core.
    """

    scratch_bytes: int = 0  # for each worker
    shared_bytes: int = 0  # for all workers of a rank
    workers: int = 0

    @classmethod
    def most(cls, needs: Iterable[Needs]) -> Needs:
        """The largest of each need."""
        each = list(needs)
        return cls(*(max(getattr(one, name) for one in each) for name in ("scratch_bytes", "shared_bytes", "workers")))


@dataclass(frozen=True)
class Request:
    """What an object needs of its runtime.

    alike: what must be equal on all ranks, as texts by name. shape: keywords of `shape_of`. levels: see
    `Runtime.settle_levels`.
    """

    alike: Fields
    placement: Placement
    shape: dict[str, Any]
    needs: Needs
    levels: int | str | None = None


class Membership:
    """One object's membership in the runtime of its communicator. Collective, in the same order on all ranks.

    kind: what the object is, for messages. everyone: all ranks of this object; if it is trained with a plan, the ranks
    of all groups of the plan. `join` sets placement, mine (the ids of this rank's experts in slot order), threads, and
    number (the object's number in the runtime).
    """

    placement: Placement
    mine: list[int]
    threads: int
    number: int

    def __init__(self, kind: str, comm: Any, limits: Limits, ranks_per_node: Any, backend: str = "cpu") -> None:
        check_comm(comm)
        self.kind, self.comm = kind, comm
        self.world = comm.Get_size() if comm is not None else 1
        self.nodes = usable_nodes(ranks_per_node)
        self.runtime: Runtime = attach(comm, limits, self.nodes, backend)
        self.everyone: Group = self.runtime.group
        self.rank = self.everyone.rank
        self.joined = False  # whether the object is in use

    @contextmanager
    def making(self) -> Iterator[None]:
        """A block that makes the object and calls `join`.

        The block ends when every rank has made its object; if one rank fails, every rank raises.
        """
        try:
            yield
            self.runtime.group.meet("the other ranks to make a layer")
        except BaseException as error:
            self.joined = False
            self.runtime.cannot_make(error)
            self.runtime.release()
            raise

    def join(self, request: Request | AristosError, threads: int | None = None) -> None:
        """Give the runtime the capacity for this object. If a rank has a problem, or ranks differ, every rank raises.

        request: what the object needs, or this rank's refusal of its arguments.
        """
        problem = request if isinstance(request, AristosError) else None
        runtime = self.runtime
        runtime.end_dropped_call()
        runtime.refuse_unusable()
        if problem is None and runtime.open:  # raised in agreed_alike, because other ranks may have no open call
            problem = OpenCallError(OPEN_CALL)
        first = runtime.group.ranks_per_node
        if problem is None and first != self.nodes:
            problem = InputError(
                f"ranks_per_node must be {first}, as for the other objects on this communicator, got {self.nodes}:"
                " pass another communicator (comm.Dup())"
            )
        common = {} if isinstance(request, AristosError) else request.alike
        alike = {**common, "ranks_per_node": str(self.nodes)}
        agreed_alike(runtime.group, problem, "its arguments", alike, "ranks are configured differently")
        assert isinstance(request, Request)
        runtime.settle_levels(request.levels)
        placement, needs = request.placement, request.needs
        workers = int(threads or needs.workers or runtime.cores)
        capacity = shape_of(self.world, placement, nodes=runtime.group.nodes, **request.shape)
        runtime.require(capacity, needs.scratch_bytes + LINE, needs.shared_bytes, workers)
        self.joined = True
        self.threads = workers
        self.placement = placement
        self.mine = placement.mine(self.rank)
        self.number = runtime.number_object()

    def new_job(self, substrate: str, **values: Any) -> np.ndarray:
        """`object_job` for this object on this rank."""
        return object_job(substrate, self.placement, self.rank, object=self.number, **values)

    def new_layer_job(self, substrate: str, cfg: MoEConfig, **values: Any) -> np.ndarray:
        """`new_job` for calls of a layer. values: the arguments of `object_job` that `cfg` does not give."""
        return self.new_job(substrate, **layer_values(cfg, len(self.mine)) | values)

    def agree(self, problem: Exception | None, what: str) -> None:
        """Raise `problem` here, and PeerInputError on the other ranks. Collective.

        what: what this rank refused, for the message.
        """
        self.alive().refuse_open()
        agreed(self.everyone, problem, what)

    def raise_peer_problem(self, job: Any) -> None:
        """Raise the refusal or mismatch that another rank has announced, if any.

        job: read for T_PEER_STATUS, the place of the peers' statuses in the state.
        """
        state = self.runtime.state
        for rank, status in enumerate(state[job[words.T_PEER_STATUS] :][: self.world].tolist()):
            if rank == self.rank or status == codes.OK:
                continue
            if status == codes.MISMATCH:
                raise MismatchError(
                    f"rank {rank} made a different call from rank {self.rank}: layer, object, top_k or width differ;"
                    " make the same calls in the same order on every rank"
                )
            if status == codes.MISPLACED:
                raise MismatchError(
                    f"rank {rank} has a different placement from rank {self.rank}: a placement must be equal on all"
                    " ranks; change the placement on every rank before the next call"
                )
            raise PeerInputError(
                f"rank {rank} refused its input ({why(status)}): this call has no result, but the layer stays usable"
            )

    def alive(self) -> Runtime:
        """The runtime; raises ClosedError after `leave`."""
        if not self.joined:
            raise ClosedError(f"this {self.kind} is closed")
        return self.runtime

    def leave(self) -> None:
        """Release the runtime; collective, and harmless when repeated."""
        if self.joined:
            self.joined = False
            self.runtime.release()


def agreed(group: Group, problem: Exception | None, what: str, value: Any = None) -> list[Any]:
    """Every rank's `value`. Raises `problem` here, and PeerInputError on the other ranks of a group. Collective."""
    reported = group.allgather((None if problem is None else str(problem), value), what)
    raise_first(problem, [error for error, _ in reported], f"refused {what}")
    return [each for _, each in reported]


def agreed_alike(group: Group, problem: Exception | None, what: str, alike: Fields, unlike: str) -> None:
    """Call `agreed`, then compare this rank's texts `alike` with those of rank 0. Collective.

    If texts differ, all ranks raise MismatchError. Its message begins with `unlike` and names the differing texts.
    """
    first, *others = agreed(group, problem, what, alike)
    for rank, theirs in enumerate(others, 1):
        if theirs != first:
            raise MismatchError(f"{unlike}: {differences(first, theirs, 'rank 0', f'rank {rank}')}")


def object_job(
    substrate: str,
    placement: Placement,
    rank: int,
    *,
    experts: int,
    foreign: Sequence[tuple[int, int]] = (),
    some: bool = False,
    **values: int,
) -> np.ndarray:
    """A new job whose part `object` is filled. `Runtime.fill`, the weights and each call write the other parts.

    foreign: (slot, rank) of the experts of local peers that this rank may compute; slots are those of `placement`.
    some: set the words that `values` does not name to 0. values: the words of the part `object` on this substrate, see
    `engine.job.fill`; `object` is the object's number, and return_bytes is row_bytes by default.
    """
    values = {"return_bytes": values["row_bytes"]} | values
    places, shared, world = placement, values.get("shared", 0) != 0, len(placement.held)
    if shared:
        places = Placement([*places.copies, list(range(world))], len(places.copies) + 1, world)
    slots = places.slots_for(rank)
    of_shared = slots[len(placement.copies) :]
    job = zeros((jobs.size(experts + len(of_shared), world, len(foreign)),))
    nowhere = np.full(values.get("identity", 0), -1)  # identity experts have no slot
    chosen = slots[: len(placement.copies)]
    moved = [(slot + rank * shared, rank) for slot, rank in foreign]  # earlier ranks have a shared expert each
    jobs.fill_placement(job, np.concatenate([chosen, nowhere, of_shared]), places.start, moved)
    held = places.held[rank]
    (jobs.fill_some if some else jobs.fill)(
        job,
        schema.OBJECT,
        substrate,
        held=held,
        computed=held + len(foreign),
        placement=placement.version,
        experts=experts,
        **values,
    )
    return job


def layer_values(cfg: MoEConfig, held: int) -> dict[str, Any]:
    """Words of a job's part `object` that a layer's configuration gives. held: experts that the rank holds."""
    return {
        "hidden": cfg.hidden,
        "ffn": cfg.ffn,
        "experts": cfg.columns,
        "top_k": choices(cfg),
        "choices": cfg.top_k,
        "shared": held + 1 if cfg.shared_ffn else 0,
        "shared_ffn": cfg.shared_ffn,
        "identity": cfg.identity_experts,
        "activation": activations.word(cfg.activation, cfg.limit, cfg.limit_after),
    }


class Collective:
    """Base of `MoE` and `Exchange`: an object that is a member of a runtime until `close` or a `with` block ends."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self.comm, self.world, self.rank = member.comm, member.world, member.rank

    @cached_property
    def placement(self) -> Placement:
        """Which ranks hold which expert, as a copy: a change to it does not change the engine's placement."""
        return deepcopy(self._member.placement)

    @property
    def threads(self) -> int:
        """Workers of this rank."""
        return self._member.threads

    @property
    def runtime(self) -> Runtime:
        """The engine, for tools that measure it. Other objects on the communicator use the same engine.

        Raises ClosedError after `close`.
        """
        return self._member.alive()

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A block of work that each rank does alone, such as reading a file. If it fails on one, all raise. Collective.

        With train=True and a plan, the ranks of all groups of the plan take part.

        Parameters
        ----------
        what : str
            A description of the work, for messages.

        Yields
        ------
        None
            The block has no value.

        Raises
        ------
        Exception
            What the block raised on this rank.
        PeerInputError
            The block failed on another rank.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The object is closed.
        """
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # the other ranks wait, so any exception must be reported to them
            problem = error
        self._member.agree(problem, what)

    def close(self) -> None:
        """Release windows, threads and memory; collective, and harmless when repeated."""
        self._member.leave()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Close the object. No exception is suppressed.

        An exception that is no AristosError was raised on this rank alone, so the other ranks are poisoned first.
        """
        unshared = kind is not None and not issubclass(kind, AristosError)
        if kind is SystemExit and getattr(value, "code", value) in (None, 0):
            unshared = False  # an exit without an error: the other ranks exit too
        if unshared and self._member.joined:
            self._member.runtime.give_up(value)
        self.close()
