"""What a layer and an exchange share: joining a runtime with all ranks alike, a job's constants, peers' refusals."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import MOST_THREADS, NARROW, MoEConfig
from ..engine import codes, words
from ..engine.layout import LINE, Shape, lines, ring_rows
from ..errors import AristosError, ClosedError, InputError, MismatchError, PeerInputError
from ..kernels.cpu.panels import row_stride
from ..placement import Placement
from ..primitives.buffers import FLOAT, aligned
from ..substrate.runtime import Runtime, attach

WHY = {codes.NOT_FINITE: "scores or weights that are not finite", codes.BAD_IDS: "ids out of range or repeated"}


def shape_of(
    world: int,
    placement: Placement,
    *,
    hidden: int,
    experts: int,
    top_k: int,
    max_tokens: int,
    dtype: str = "float32",
) -> Shape:
    """What a user of the engine asks of it."""
    stride = lines(2 * hidden) if dtype in NARROW else row_stride(hidden)
    most_local = max(placement.held)
    most = max_tokens * min(top_k, max(1, most_local))
    return Shape(
        world=world,
        ring_rows=max(ring_rows(world, stride, most), min(top_k, most)) if world > 1 else 1,
        stride=stride,
        return_rows=max_tokens * top_k,
        max_local=max(1, most_local),
        top_k=top_k,
        experts=placement.slots,
        max_tokens=max_tokens,
    )


def widths(cfg: MoEConfig) -> dict[str, Any]:
    """The keywords of `shape_of` for a layer."""
    return {name: getattr(cfg, name) for name in ("hidden", "experts", "top_k", "max_tokens", "dtype")}


def check_common(threads: Any, timeout: Any, ranks_per_node: Any = None) -> None:
    """Raise InputError for options that make no sense."""
    if threads is not None and (
        not isinstance(threads, int) or isinstance(threads, bool) or not 0 < threads <= MOST_THREADS
    ):
        raise InputError(f"threads must be None or an int in 1..{MOST_THREADS}, got {threads!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 1e9:
        raise InputError(f"timeout must be a positive number of seconds, got {timeout!r}")
    whole = isinstance(ranks_per_node, int) and not isinstance(ranks_per_node, bool)
    if ranks_per_node is not None and (not whole or ranks_per_node < 1):
        raise InputError(f"ranks_per_node must be None or a positive int, got {ranks_per_node!r}")


def usable_timeout(timeout: Any) -> float:
    """`timeout`, or the default where it will be refused: the ranks must meet first to say so together."""
    try:
        check_common(None, timeout)
    except InputError:
        return 120.0
    return float(timeout)


def usable_nodes(ranks_per_node: Any) -> int | None:
    """The same of `ranks_per_node`."""
    return ranks_per_node if isinstance(ranks_per_node, int) and ranks_per_node > 0 else None


def check_comm(comm: Any) -> None:
    """Raise InputError for what is no communicator of one group of ranks."""
    if comm is None:
        return
    from mpi4py import MPI

    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        what = "MPI_COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else repr(comm)
        raise InputError(f"comm must be an mpi4py intracommunicator or None, got {what}")


class Collective:
    """Something that all ranks of a communicator made together."""

    placement: Placement
    timeout: float
    backend = "cpu"

    def __init__(self, comm: Any, timeout: float, ranks_per_node: int | None) -> None:
        check_comm(comm)
        self.comm = comm
        self.world = comm.Get_size() if comm is not None else 1
        self._runtime: Runtime | None = None
        self._nodes = usable_nodes(ranks_per_node)
        self._joined = attach(comm, timeout, self._nodes, self.backend)
        self.rank = self._joined.group.rank

    def _join(
        self,
        problem: Exception | None,
        mine: str,
        shape: dict[str, Any],
        scratch: int,
        shared: int,
        threads: Any,
        default_threads: int | None = None,
    ) -> None:
        """Take part in the runtime; raises on every rank if one has a problem or they are not configured alike.

        mine: all that must be equal on all ranks, as text. shape: keywords of `shape_of`. scratch: bytes a
        worker; shared: bytes for all workers of a rank.
        """
        runtime = self._joined
        try:
            runtime.refuse_open()
            first = runtime.group.ranks_per_node
            if problem is None and first != self._nodes:
                problem = InputError(
                    f"ranks_per_node must be {first} as for the other objects on this communicator, got {self._nodes}:"
                    " pass a communicator of its own (comm.Dup())"
                )
            mine = f"{mine}, ranks_per_node={self._nodes}"
            told = runtime.group.allgather((str(problem) if problem else None, mine), "layer configurations")
            if problem is not None:
                raise problem
            for rank, (error, _) in enumerate(told):
                if error is not None:
                    raise PeerInputError(f"rank {rank} refused its arguments: {error}")
            for rank, (_, theirs) in enumerate(told):
                if theirs != told[0][1]:
                    raise MismatchError(
                        f"ranks are configured differently: rank 0 has {told[0][1]}; rank {rank} has {theirs}"
                    )
            workers = threads or default_threads or runtime.cores
            runtime.require(shape_of(self.world, self.placement, **shape), scratch + LINE, shared, workers)
        except BaseException:
            runtime.release()
            raise
        self._runtime = runtime
        self.threads = workers
        self._object = runtime.number_object()
        self._mine = self.placement.mine(self.rank)

    def _new_job(self, *, hidden: int, experts: int, top_k: int) -> np.ndarray:
        """A job with all that does not change from call to call, but for what `Runtime.fill` writes."""
        job = aligned((words.JOB_WORDS + experts + self.world + 1,), np.int64)
        job[:] = 0
        job[words.SLOT_OF], job[words.SLOT_START] = words.JOB_WORDS, words.JOB_WORDS + experts
        job[words.JOB_WORDS : words.JOB_WORDS + experts] = self.placement.slots_for(self.rank)
        job[words.JOB_WORDS + experts :] = self.placement.start
        job[words.HELD] = len(self._mine)
        job[words.EXPERTS], job[words.TOP_K], job[words.HIDDEN] = experts, top_k, hidden
        job[words.OBJECT] = self._object
        job[words.ROW_BYTES] = FLOAT * hidden
        return job

    def _raise_peer_problem(self, job: Any, runtime: Runtime) -> None:
        """Raise what another rank's announcement said instead of rows. job: tells where T_STATUS starts."""
        for rank, status in enumerate(runtime.state[job[words.T_PEER_STATUS] :][: self.world].tolist()):
            if rank == self.rank or status == codes.OK:
                continue
            if status == codes.MISMATCH:
                raise MismatchError(
                    f"rank {rank} made another call than rank {self.rank}: layer, object, top_k or width differ;"
                    " calls are collective and come in the same order on every rank"
                )
            raise PeerInputError(
                f"rank {rank} refused its input ({WHY.get(status, 'its own error says why')}):"
                " this call has no result, the layer stays usable"
            )

    def _alive(self) -> Runtime:
        if self._runtime is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        return self._runtime

    def close(self) -> None:
        """Give windows, threads and memory back; collective, and harmless when repeated."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.release()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Close; after an exception that the other ranks cannot share, tell them instead, and let it through."""
        leaves = kind is not None and not issubclass(kind, AristosError)
        if kind is SystemExit and getattr(value, "code", value) in (None, 0):
            leaves = False  # a program that ends well ends on every rank
        if leaves and self._runtime is not None:
            self._runtime.give_up(value)
        self.close()


def routing_arrays(ids: Any, shape: tuple[int, ...], copy: bool = False) -> np.ndarray:
    """ids as contiguous int64 of exactly this shape, or InputError."""
    from ..primitives.arrays import view

    chosen = view("ids", ids)
    if chosen.shape != shape or chosen.dtype.kind not in "iu":
        raise InputError(f"ids must be integers of shape {list(shape)}, got {chosen.dtype} {list(chosen.shape)}")
    if chosen.dtype == np.uint64 and chosen.size and chosen.max() > np.iinfo(np.int64).max:
        raise InputError(f"ids must be expert numbers or -1, got {chosen.max()}")
    return np.array(chosen, np.int64, order="C", copy=copy or None)


def weight_arrays(weights: Any, shape: tuple[int, ...], copy: bool = False) -> np.ndarray:
    """weights as contiguous float32 of exactly this shape, or InputError."""
    from ..primitives.arrays import view

    scale = view("weights", weights)
    if scale.shape != shape or scale.dtype.kind != "f":
        raise InputError(f"weights must be floats of shape {list(shape)}, got {scale.dtype} {list(scale.shape)}")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite, with a better message
        return np.array(scale, np.float32, order="C", copy=copy or None)


def explain_ids(ids: np.ndarray, experts: int) -> str:
    """Which ids the engine has refused. ids: [S, k]."""
    for t, row in enumerate(ids):
        taken = row[row >= 0]
        if (row < -1).any() or (row >= experts).any():
            return f"ids of token {t} must be in -1..{experts - 1}, got {row.tolist()}"
        if len(set(taken.tolist())) < len(taken):
            return f"ids of token {t} name an expert twice: {row.tolist()}"
    return "ids are out of range or repeated"
