"""The protocol without experts: rows travel to the ranks that hold their experts, and outputs back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ..config import whole
from ..engine import codes, schema, words
from ..engine import exchange as step
from ..engine import job as jobs
from ..errors import AristosError, InputError, OpenCallError
from ..kernels.by_isa import module
from ..kernels.cpu.call_blocks import BLOCK_BYTES
from ..kernels.cpu.convert import FLOAT32
from ..kernels.cpu.lowering import handle
from ..placement import Placement
from ..primitives import arrays, isa
from ..primitives.buffers import FLOAT, aligned
from ..substrate.cpu.runtime import BATCH, CpuRuntime
from .arguments import check_common, explain_ids, not_finite, refusal, routing_arrays, usable_limits, weight_arrays
from .collective import Collective, Membership, Needs, Request


@dataclass(frozen=True)
class Handle:
    """The result of a dispatch.

    Rows are ordered by expert, then by source, then by the source's packed order. The example of `Exchange` loops over
    `experts` and `counts`.

    Attributes
    ----------
    counts : array [L, W], int64
        The number of rows for each local expert from each source.
    experts : tuple of L ints
        Ids of the local experts.
    rows : int
        The sum of counts.
    lead : tuple of int
        The leading shape of x.
    epoch : int
        The serial number of the call.
    """

    counts: np.ndarray
    experts: tuple[int, ...]
    rows: int
    lead: tuple[int, ...]
    epoch: int


class Exchange(Collective):
    """Dispatch and combine over the ranks of a communicator, by one-sided puts, on CPUs. Collective.

    An exchange shares the engine of the `MoE` objects on the same communicator.

    Parameters
    ----------
    comm : communicator or None, default None
        An mpi4py communicator. None: one process without MPI.
    hidden : int
        H, the width of a token, float32.
    experts : int
        E, the number of experts.
    top_k : int, default 2
        k, the number of choices of a token.
    max_tokens : int, default 4096
        The most tokens that a rank brings to a call.
    placement : sequence of E entries, or None, default None
        For each expert the rank that holds it, or a list of the ranks that hold copies. None: contiguous.
    timeout : float, default 120.0
        Seconds after which a wait fails if a rank in the same call makes no progress, or an MPI call has not returned.
    absent_timeout : float or None, default None
        Seconds after which a wait fails for a rank that is still in user code. None: ten times `timeout`. A warning
        comes after `timeout`.
    ranks_per_node : int or None, default None
        Treat every group of this many consecutive ranks as a node, although MPI sees larger nodes. None: nodes as MPI
        sees them.

    Raises
    ------
    InputError
        A value is out of its range, or `ranks_per_node` differs from that of other objects on the communicator.
    PeerInputError
        Another rank raised InputError.
    MismatchError
        Ranks give different arguments.
    OpenCallError
        A call on the communicator is open.
    ClosedError
        An earlier failure left the engine of the communicator unusable.
    MemoryProblem
        The windows do not fit into memory.
    EnvironmentProblem
        The launcher started several tasks, but MPI gives each of them a world of its own; or MPI lacks something that
        is needed.
    WaitTimeout, PoisonedError
        A rank did not come in time, or failed.
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        hidden: int,
        experts: int,
        top_k: int = 2,
        max_tokens: int = 4096,
        placement: Sequence[int] | np.ndarray | None = None,
        timeout: float = 120.0,
        absent_timeout: float | None = None,
        ranks_per_node: int | None = None,
    ) -> None:
        self._limits = usable_limits(timeout, absent_timeout)
        self.timeout, self.absent_timeout = self._limits
        super().__init__(Membership("Exchange", comm, self._limits, ranks_per_node))
        with self._member.making():
            self._make(hidden, experts, top_k, max_tokens, placement, (None, timeout, ranks_per_node, absent_timeout))

    def _make(
        self, hidden: Any, experts: Any, top_k: Any, max_tokens: Any, placement: Any, common: tuple[Any, ...]
    ) -> None:
        """Check the options, join the runtime, and make what calls need. common: see `check_common`."""
        request: Request | AristosError
        needs = Needs(scratch_bytes=BLOCK_BYTES + BATCH * 16 + 64, workers=1)
        try:
            given = {"hidden": hidden, "experts": experts, "top_k": top_k, "max_tokens": max_tokens}
            shape = {name: whole(name, value) for name, value in given.items()}
            hidden, experts, top_k, max_tokens = shape.values()
            if top_k > experts:
                raise InputError(f"top_k must be at most experts ({experts}), got {top_k}")
            check_common(*common)
            places = Placement(placement, experts, self.world)
            alike = {"object": "Exchange", **{name: str(n) for name, n in shape.items()}, "placement": str(places)}
            request = Request(alike, places, shape, needs)
        except Exception as error:
            request = refusal(error)
        self._member.join(request)
        self.hidden, self.experts, self.top_k, self.max_tokens = hidden, experts, top_k, max_tokens
        kernels = handle(module("entries", isa.chosen()).KERNELS[FLOAT32])
        self._job = self._member.new_job(
            schema.CPU,
            some=True,
            hidden=hidden,
            experts=experts,
            top_k=top_k,
            choices=top_k,
            stay_rows=1,
            row_bytes=FLOAT * hidden,
            kernels=kernels,
        )
        jobs.leave_out(self._job, schema.CPU, schema.BACKWARD, schema.WEIGHTS, schema.EVENTS, schema.TAPE)
        self._ones = aligned((max_tokens, top_k))
        self._ones[:] = 1
        self._open: Handle | None = None
        self._lead: tuple[int, ...] = ()
        self._x = self._ids = np.zeros((0, 0), np.float32)
        self._taken = np.zeros((0, 0), bool)
        self._compile()

    def _alive(self) -> CpuRuntime:
        runtime = self._member.alive()
        assert isinstance(runtime, CpuRuntime)
        return runtime

    def _compile(self) -> None:
        from numba import int64, typeof

        job, state = typeof(np.zeros(1, np.int64)), typeof(self._alive().state)
        counts = typeof(np.zeros((1, 1), np.int64))
        warm_up(
            [
                (step.set_targets, (job, state, counts)),
                (step.give_back, (job, state, counts, int64, int64, int64)),
                (step.expect_back, (job, state)),
            ]
        )

    def dispatch(self, x: Any, ids: Any) -> tuple[np.ndarray, Handle]:
        """Send every token of x to the experts in `ids`. Collective.

        Until `combine`, no other call may be made on the communicator.

        Parameters
        ----------
        x : array [..., H], float32
            This rank's tokens.
        ids : array [..., k], integers
            The experts of each token. -1: choice not taken.

        Returns
        -------
        rows : array [rows, H], float32
            The rows that all ranks sent to this rank's experts.
        handle : Handle
            Which rank sent each row, and for which expert; `combine` takes it.

        Raises
        ------
        InputError
            Arrays do not fit, there are more than max_tokens tokens, or ids are out of range or repeated in a token.
        PeerInputError
            Another rank refused its input.
        MismatchError
            Another rank made another call.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The exchange is closed, or an earlier failure left its engine unusable.
        WaitTimeout, PoisonedError, CorruptionError
            A rank made no progress, a rank failed, or shared memory was damaged; the engine is unusable.
        """
        runtime = self._alive()
        runtime.enter(self._member.number)
        problem = self._prepare(x, ids)
        with runtime.failing(self._job):
            landed, counts = self._receive(runtime)
        try:
            if problem is not None:
                raise problem
            if runtime.state[words.STATUS] != codes.OK:
                raise InputError(explain_ids(self._ids.reshape(-1, self.top_k), self.experts))
            if self.world > 1:
                self._member.raise_peer_problem(self._job)
        except AristosError:
            runtime.open = False
            raise
        counts.flags.writeable = False
        experts = tuple(self._member.mine)
        self._taken = self._ids.reshape(-1, self.top_k) >= 0  # copied now: the caller may change ids later
        self._open = Handle(counts[: len(experts)], experts, len(landed), self._lead, runtime.epoch)
        return landed, self._open

    def _prepare(self, x: Any, ids: Any) -> Exception | None:
        """Fill the job. Returns an error instead of raising it, because the other ranks have entered the call."""
        runtime, job = self._alive(), self._job
        try:
            jobs.renew_call(job)
            jobs.renew(job, schema.ENGINE, schema.TILE, schema.LANDING)
            runtime.fill(job, 1)
            jobs.leave_out(job, schema.CPU, schema.LANDING)
            self._x, self._lead = arrays.rows("x", x, self.hidden, "float32")
            if len(self._x) > self.max_tokens:
                raise InputError(f"x has {len(self._x)} tokens, more than max_tokens={self.max_tokens}")
            self._ids = routing_arrays(ids, (*self._lead, self.top_k))
            self._fill(codes.MODE_DISPATCH)
        except Exception as problem:
            self._fill_refused()
            return refusal(problem)
        except BaseException:
            runtime.leave()
            raise
        return None

    def _fill(self, mode: int, y: np.ndarray | None = None, weights: np.ndarray | None = None) -> None:
        """Write into the job what calls of this mode need.

        If weights is None, each row that comes back has the weight 1.
        """
        job, x = self._job, self._x
        jobs.renew(job, schema.KIND, schema.CALL)
        jobs.fill(job, schema.KIND, schema.CPU, layer=0, mode=mode)
        jobs.fill_some(
            job,
            schema.CALL,
            schema.CPU,
            status_in=codes.OK,
            tokens=len(x),
            x=x.ctypes.data,
            x_stride=x.strides[0],
            y=0 if y is None else y.ctypes.data,
            routed=1,
            ids=self._ids.ctypes.data,
            weights=(self._ones if weights is None else weights).ctypes.data,
        )

    def _fill_refused(self) -> None:
        """Write a call without tokens into the job. The call announces that this rank refuses its input."""
        jobs.renew(self._job, schema.KIND, schema.CALL)
        jobs.fill(self._job, schema.KIND, schema.CPU, layer=0, mode=codes.MODE_DISPATCH)
        jobs.fill_some(self._job, schema.CALL, schema.CPU, status_in=codes.REFUSED, routed=1)

    def _receive(self, runtime: CpuRuntime) -> tuple[np.ndarray, np.ndarray]:
        """Run the first phase; returns (rows that landed here [rows, H], counts [L, W])."""
        job = self._job
        counts = np.zeros((max(1, len(self._member.mine)), self.world), np.int64)
        with runtime.progressing():
            runtime.begin(job)
            runtime.go_on(job, self._limits)
        landed = np.empty((int(step.set_targets(job, runtime.state, counts)), self.hidden), np.float32)
        jobs.renew(job, schema.LANDING)
        jobs.fill(job, schema.LANDING, schema.CPU, out_rows=landed.ctypes.data)
        with runtime.progressing():
            runtime.go_on(job, self._limits)
        return landed, counts

    def combine(self, out: Any, handle: Handle, weights: Any) -> np.ndarray:
        """Send the outputs of rows back and add them. Collective, ends the call.

        y[t] = sum over j of weights[t, j] * row (t, j)

        Parameters
        ----------
        out : array [rows, H], float32
            The outputs, in the order of the dispatched rows.
        handle : Handle
            The handle that the open dispatch returned.
        weights : array [..., k], floats
            The factors of each token's rows. They must be finite where a choice is taken.

        Returns
        -------
        array [..., H], float32
            A row for each token.

        Raises
        ------
        InputError
            Arrays do not fit, or weights are not finite. The call has ended.
        PeerInputError
            Another rank refused its input.
        MismatchError
            Another rank made another call.
        OpenCallError
            The handle does not belong to the open dispatch.
        ClosedError
            The exchange is closed, or an earlier failure left its engine unusable.
        WaitTimeout, PoisonedError, CorruptionError
            A rank made no progress, a rank failed, or shared memory was damaged; the engine is unusable.
        """
        self._alive()
        if self._open is None or handle is not self._open:
            raise OpenCallError("combine() must get the handle of the last dispatch() of this exchange, and only once")
        problem: Exception | None = None
        back = y = scale = None
        try:
            back, _ = arrays.rows("out", out, self.hidden, "float32")
            if len(back) != handle.rows:
                raise InputError(f"out must have {handle.rows} rows, as many as dispatch returned, got {len(back)}")
            back = np.ascontiguousarray(back)
            scale = weight_arrays(weights, (*handle.lead, self.top_k))
            if (wrong := not_finite(scale.reshape(-1, self.top_k), self._taken)) is not None:
                raise InputError(wrong)
            y = np.empty((*handle.lead, self.hidden), np.float32)
        except Exception as error:
            problem = refusal(error)
        if problem is not None:
            self._return(handle, None, None, None)
            raise problem
        self._return(handle, back, scale, y)
        if self.world > 1:
            self._member.raise_peer_problem(self._job)
        assert y is not None
        return y

    def _return(self, handle: Handle, back: Any, scale: Any, y: Any) -> None:
        """Run the second phase and close the call. back: the outputs; None if this rank refuses.

        The other ranks learn of the refusal and raise PeerInputError.
        """
        runtime, job = self._alive(), self._job
        counts = np.ascontiguousarray(handle.counts).reshape(-1, self.world)
        self._open = None
        with runtime.failing(job):
            unused = np.empty((len(self._x), self.hidden), np.float32) if y is None else y
            self._fill(codes.MODE_COMBINE, unused, scale)
            step.expect_back(job, runtime.state)
            address, status = (0, codes.REFUSED) if back is None else (back.ctypes.data, codes.OK)
            for i in range(1, self.world + 1):
                step.give_back(job, runtime.state, counts, (self.rank + i) % self.world, address, status)
            with runtime.progressing():
                runtime.go_on(job, self._limits)
        runtime.open = False

    def close(self) -> None:
        """Release everything; collective. If a dispatch is open, its combine raises on the other ranks."""
        if self._open is not None and self._member.joined and self._member.runtime.broken is None:
            self._return(self._open, None, None, None)
        super().close()
