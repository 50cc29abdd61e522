"""The protocol without the experts, for a user's own: rows travel to the ranks that hold their experts, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays
from .collective import WHY, Collective, check_common, explain_ids, routing_arrays, weight_arrays
from .compile import warm_up
from .engine import exchange as step
from .engine import fields as f
from .engine import routing
from .errors import InputError, OpenCallError
from .kernels.cpu.gemm import aligned
from .placement import Placement
from .substrate.runtime import BATCH


@dataclass(frozen=True)
class Handle:
    """What a dispatch brought. counts: [L, W] rows by local expert and source; experts: [L] ids; rows: their sum.

    Rows are ordered by expert, source and the source's packed order.
    """

    counts: np.ndarray
    experts: tuple[int, ...]
    rows: int
    lead: tuple[int, ...]
    epoch: int


class Exchange(Collective):
    """Dispatch and combine over the ranks of a communicator, by one-sided puts. Collective.

    hidden: H, width of a token (float32). experts: E. top_k: choices a token. max_tokens: most tokens a rank brings
    to a call.
    placement, timeout: as for `MoE`. Shares the engine of the `MoE` objects on the same communicator.
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
    ) -> None:
        super().__init__(comm, None, 120.0)
        problem: Exception | None = None
        shape = {"hidden": hidden, "experts": experts, "top_k": top_k, "max_tokens": max_tokens}
        try:
            for name, value in shape.items():
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise InputError(f"{name} must be a positive int, got {value!r}")
            check_common(None, timeout)
            self.placement = Placement(placement, experts, self.world)
            mine = f"Exchange {shape}, placement={self.placement.ranks.tolist()}"
        except InputError as error:
            problem, mine = error, ""
        self._join(problem, mine, shape, BATCH * 16 + routing.scratch_bytes(1), 0, None)
        self.hidden, self.experts, self.top_k, self.max_tokens = hidden, experts, top_k, max_tokens
        self.timeout = float(timeout)
        self._jobs = self._new_job(hidden=hidden, experts=experts, top_k=top_k)
        self._ones = aligned((max_tokens, top_k))
        self._ones[:] = 1
        self._open: Handle | None = None
        self._compile()

    def _compile(self) -> None:
        from numba import int64, typeof

        job, state = typeof(np.zeros(1, np.int64)), typeof(self._alive().state)
        counts = typeof(np.zeros((1, 1), np.int64))
        warm_up(
            [
                (step.set_targets, (job, state, counts)),
                (step.give_back, (job, state, counts, int64)),
                (step.expect_back, (job, state)),
            ]
        )

    def dispatch(self, x: Any, ids: Any) -> tuple[np.ndarray, Handle]:
        """Send every token of x to the experts that `ids` names; collective.

        x: [..., H] float32; ids: [..., k] integers, -1: choice not taken. Returns the rows that all ranks sent to
        this rank's experts, [rows, H], and a handle for `combine`. No other call may be made on the communicator
        until then.
        """
        runtime = self._alive()
        runtime.enter()
        try:
            return self._dispatch(x, ids)
        except BaseException:
            runtime.open = False
            raise

    def _dispatch(self, x: Any, ids: Any) -> tuple[np.ndarray, Handle]:
        runtime, job = self._alive(), self._jobs
        runtime.fill(job)
        job[f.WORKERS], job[f.MODE], job[f.ROUTED], job[f.EVENTS_MAX] = 1, f.MODE_DISPATCH, 1, 0
        job[f.WEIGHTS] = self._ones.ctypes.data
        refusal: InputError | None = None
        lead: tuple[int, ...] = ()
        try:
            flat, lead = arrays.rows("x", x, self.hidden, np.dtype(np.float32))
            if len(flat) > self.max_tokens:
                raise InputError(f"x has {len(flat)} tokens, more than max_tokens={self.max_tokens}")
            chosen = routing_arrays(ids, (*lead, self.top_k))
            job[f.STATUS_IN], job[f.TOKENS] = f.OK, len(flat)
            job[f.X], job[f.X_STRIDE], job[f.IDS] = flat.ctypes.data, flat.strides[0], chosen.ctypes.data
        except InputError as error:
            refusal = error
            job[f.STATUS_IN], job[f.TOKENS] = f.REFUSED, 0
        counts = np.zeros((max(1, len(self._mine)), self.world), np.int64)
        runtime.begin(job)
        runtime.go_on(job, self.timeout)
        rows = int(step.set_targets(job, runtime.state, counts))
        landed = np.empty((rows, self.hidden), np.float32)
        job[f.OUT_ROWS] = landed.ctypes.data
        runtime.go_on(job, self.timeout)
        if refusal is not None:
            raise refusal
        if runtime.state[f.STATUS] != f.OK:
            why = explain_ids(chosen.reshape(-1, self.top_k), self.experts)
            raise InputError(why if runtime.state[f.STATUS] == f.BAD_IDS else WHY[int(runtime.state[f.STATUS])])
        if self.world > 1:
            self._raise_peer_problem(job, runtime)
        self._open = Handle(counts[: len(self._mine)], tuple(self._mine), rows, lead, runtime.epoch)
        return landed, self._open

    def combine(self, out: Any, handle: Handle, weights: Any) -> np.ndarray:
        """Send the rows of `out` back; y[t] = sum over j of weights[t, j] * row (t, j). Collective, ends the call.

        out: [rows, H] float32 in the order of the dispatched rows; weights: [..., k] floats. Returns [..., H].
        """
        runtime, job = self._alive(), self._jobs
        if handle is not self._open:
            raise OpenCallError("combine needs the handle of the dispatch that is open on this exchange")
        back, _ = arrays.rows("out", out, self.hidden, np.dtype(np.float32))
        if len(back) != handle.rows:
            raise InputError(f"out must have {handle.rows} rows, as dispatch gave, got {len(back)}")
        back = np.ascontiguousarray(back)
        scale = weight_arrays(weights, (*handle.lead, self.top_k))
        y = np.empty((*handle.lead, self.hidden), np.float32)
        job[f.MODE], job[f.WEIGHTS], job[f.Y] = f.MODE_COMBINE, scale.ctypes.data, y.ctypes.data
        counts = np.ascontiguousarray(handle.counts).reshape(-1, self.world)
        try:
            step.expect_back(job, runtime.state)
            step.give_back(job, runtime.state, counts, back.ctypes.data)
            runtime.go_on(job, self.timeout)
        finally:
            self._open = None
            runtime.open = False
        return y
