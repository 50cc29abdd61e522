"""The fused backward call: the engine sends rows [dy | x] in the packed order of the forward call's rows.

The combine weight travels beside each row, and its gradient comes back beside the row of dx. An owner runs rows as they
land, and copies each row into its store, so no row occupies a ring while it waits for another. When the call has ended
without a refusal or a failure, each owner computes the gradients of its experts' weights. They are sums over an
expert's rows in the store, in global token order.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from kernel_cache.compile import warm_up

from ..config import MoEConfig
from ..engine import codes, schema, store, words
from ..engine import job as jobs
from ..engine.experts import GROUP
from ..errors import AristosError, InputError, MismatchError
from ..kernels.by_isa import module
from ..kernels.cpu.call_blocks import BLOCK_BYTES
from ..kernels.cpu.elements import element_type
from ..kernels.cpu.expert import hidden_bytes
from ..kernels.cpu.lowering import handle
from ..primitives import isa
from ..primitives.buffers import FLOAT, aligned
from ..substrate.cpu.runtime import RUN_LEAST, CpuRuntime
from ..transport.limits import Limits
from .arguments import on_input
from .backward import BackwardCall, BackwardCalls, _Tokens, experts_module
from .collective import Membership, Needs, status_of
from .tapes import row_bytes

RUN_ROWS = 192  # the most rows of a run, as many as in a forward call of float32
PIECES = 1 << 24  # the job's word TAPE is a tape's number times this, plus the number of pieces


def needs(cfg: MoEConfig) -> Needs:
    """Private memory of a worker for the backward calls of a layer."""
    kernel = experts_module(cfg.dtype, isa.chosen())
    return Needs(BLOCK_BYTES + kernel.store_bytes(RUN_ROWS, cfg.hidden, cfg.ffn))


class FusedBackward(BackwardCalls):
    """Makes the fused backward calls of one layer object on this rank."""

    blocks = False

    def __init__(self, member: Membership, used: str, number: int, cfgs: tuple[MoEConfig, ...], limits: Limits) -> None:
        super().__init__(member, used, number, cfgs)
        from numba import types

        assert isinstance(member.runtime, CpuRuntime)
        self.runtime, self.limits = member.runtime, limits
        self._handle = handle(module("backward_entries", used).KERNELS[element_type(cfgs[0].dtype).code])
        self._jobs: list[np.ndarray | None] = [None] * len(cfgs)
        self._filled = [-1] * len(cfgs)
        self._store = aligned((0,), np.uint8)
        self._counts = np.zeros((member.world, max(1, member.placement.held[member.rank])), np.int64)
        word, job, counts = types.int64, types.int64[::1], types.int64[:, ::1]
        warm_up(
            [
                (store.count_rows, (job, job, counts)),
                (self.kernels.expert.stored_gradients, (word, word, types.UniTuple(word, 6), *(word,) * 7)),
            ]
        )

    def refuse(self, error: AristosError) -> None:
        """Make a call without rows that announces that this rank refuses its arguments. Collective."""
        job = self._job(0)
        jobs.fill_some(job, schema.CALL, schema.CPU, status_in=status_of(error), routed=1)
        jobs.leave_out(job, schema.CPU, schema.TAPE, schema.BACKWARD)
        self._fill_weights(job, 0)
        self._call(job)

    def run_backward(self, call: BackwardCall) -> tuple[np.ndarray, np.ndarray]:
        """See `BackwardCalls.run_backward`."""
        cfg, weights, saved = self.cfgs[call.layer], call.weights, call.saved
        tokens = _Tokens(self.kernels, cfg, call)
        job, (count, k), hidden = self._job(call.layer), saved.ids.shape, cfg.hidden
        rows = tokens.sent()
        sent = tokens.factor(np.arange(count * k)).view(np.uint32).astype(np.int64)
        back = np.zeros((count, k), np.int64)
        factors = np.ones((count, k), np.float32)
        if not on_input(cfg):
            np.copyto(factors, saved.weights, where=saved.ids >= cfg.experts)  # identity experts: y = w x
        given = tokens.dy if cfg.identity_experts else rows  # an identity expert's row is dy, in float32 like dx
        combined = np.empty((count, hidden), np.float32)
        held = len(self.member.mine)
        addresses = [weights.expert(i) for i in range(held)]
        table = np.array([(*packed, *transposed) for packed, transposed, _ in addresses], np.int64)
        step = self.kernels.expert.place_bytes(hidden, cfg.ffn, cfg.gated)
        if self._store.size < step * saved.received:
            self._store = aligned((step * saved.received,), np.uint8)
        jobs.fill_some(
            job,
            schema.CALL,
            schema.CPU,
            status_in=codes.OK,
            tokens=count,
            x=rows.ctypes.data,
            x_stride=rows.strides[0],
            input=given.ctypes.data,
            input_stride=given.strides[0],
            y=combined.ctypes.data,
            routed=1,
            ids=saved.ids.ctypes.data,
            weights=factors.ctypes.data,
        )
        jobs.fill(
            job,
            schema.BACKWARD,
            schema.CPU,
            tape=PIECES * call.number + call.pieces,
            scalars_out=sent.ctypes.data,
            scalars_back=back.ctypes.data,
            store=self._store.ctypes.data,
            store_step=step,
            store_rows=saved.received,
            backward_weights=table.ctypes.data,
        )
        taped = 0 if saved.taped is None else saved.taped.ctypes.data
        jobs.fill_some(
            job,
            schema.TAPE,
            schema.CPU,
            taped=taped,
            tape_x=row_bytes(cfg),
            tape_hidden=hidden_bytes(cfg.ffn, cfg.gated),
        )
        self._fill_weights(job, weights.version)
        self._call(job)
        with self.runtime.failing(job):
            weights.half_changed = True
            self._add_weight_gradients(job, tokens, [sums for _, _, sums in addresses])
        tokens.add_combined(combined, back.astype(np.uint32).view(np.float32))
        return self._finish(tokens), tokens.dw

    # ------------------------------------------------------------ the call

    def _job(self, layer: int) -> np.ndarray:
        cfg, job = self.cfgs[layer], self._jobs[layer]
        if job is None:
            element = element_type(cfg.dtype)
            job = self.member.new_layer_job(
                schema.CPU,
                replace(cfg, shared_ffn=0, shared_sigmoid=False),  # no row of a shared expert travels
                some=True,
                stay_rows=1,
                scalars=1,
                row_bytes=2 * element.nbytes * cfg.hidden,
                return_bytes=FLOAT * cfg.hidden,
                kernels=self._handle,
            )
            jobs.fill(job, schema.KIND, schema.CPU, layer=layer, mode=codes.MODE_BACKWARD)
            jobs.leave_out(job, schema.CPU, schema.LANDING, schema.EVENTS)
            self._jobs[layer] = job
        if self._filled[layer] != self.runtime.version:
            jobs.renew(job, schema.ENGINE, schema.TILE)
            self.runtime.fill(job, self.member.threads)
            half = int(job[words.RUN_ROWS]) // 2 // GROUP * GROUP  # a row takes nearly twice a forward row's time
            jobs.update(job, run_rows=min(RUN_ROWS, max(RUN_LEAST, half)))
            self._filled[layer] = self.runtime.version
        jobs.renew_call(job)
        jobs.renew(job, schema.TAPE, schema.BACKWARD, schema.WEIGHTS)
        return job

    @staticmethod
    def _fill_weights(job: np.ndarray, version: int) -> None:
        """Write the part `weights` with addresses 0, because the kernels of a backward call read none of them."""
        jobs.fill_some(job, schema.WEIGHTS, schema.CPU, loaded=1, version=version)

    def _call(self, job: np.ndarray) -> None:
        """Run the call. Raises PeerInputError if another rank refused, MismatchError if ranks gave different tapes."""
        runtime, me = self.runtime, self.member.rank
        runtime.enter(self.member.number)
        try:
            runtime.run_call(job, self.limits)
            if job[words.STATUS_IN] != codes.OK:
                return
            state = runtime.state
            if state[words.STATUS] != codes.OK:
                raise InputError("the combine weights of the tape must be finite, got NaN or infinity")
            statuses = state[job[words.T_PEER_STATUS] :][: self.member.world].tolist()
            if codes.MISMATCH in statuses:
                raise MismatchError(
                    "backward must get the tape of the same forward call, and the same number of pieces, on all ranks:"
                    f" rank {statuses.index(codes.MISMATCH)} made a different call from rank {me}"
                )
            if self.member.world > 1:
                self.member.raise_peer_problem(job)
        finally:
            runtime.open = False

    def _add_weight_gradients(self, job: np.ndarray, tokens: _Tokens, sums: list[tuple[int, ...]]) -> None:
        """Add the gradients of every expert's weights, over its rows in order of (source, packed row)."""
        cfg, weights = tokens.cfg, tokens.weights
        held, world, counts = len(sums), self.member.world, self._counts
        store.count_rows(job, self.runtime.state, counts)
        each = counts[:, :held]
        at = self.runtime.state[job[words.T_STORE_AT] :][:world]
        first = at[:, None] + np.cumsum(each, axis=1) - each  # [W, held]
        base, step = int(job[words.STORE]), int(job[words.STORE_STEP])

        def run(part: tuple[int, int, int, int]) -> None:
            i, which, begin, end = part
            places = np.concatenate([np.arange(first[p, i], first[p, i] + each[p, i]) for p in range(world)])
            places = base + step * places
            scratch = self.kernels.scratch("stored", self.kernels.expert.stored_bytes(cfg.hidden, cfg.ffn))
            self.kernels.expert.stored_gradients(
                len(places),
                places.ctypes.data,
                sums[i],
                cfg.hidden,
                cfg.ffn,
                int(weights.adds(i)),
                scratch,
                which,
                begin,
                end,
            )

        rows = each.sum(axis=0)
        large = rows.sum() / (2 * self.member.threads)  # an expert with more rows than this is shared by workers
        whole = [(0, i, (i, self.kernels.expert.ALL, 0, 0)) for i in range(held) if 0 < rows[i] <= large]
        shared = [(1, i, (i, *part)) for i in range(held) if rows[i] > large for part in self._parts(cfg)]
        items = sorted([*shared, *whole], key=lambda item: (-item[0], -rows[item[1]]))
        self.everywhere(run, [part for _, _, part in items])
        weights.added(rows)

    def _parts(self, cfg: MoEConfig) -> list[tuple[int, int, int]]:
        """(matrix, first row, end) of the parts of an expert's gradients that workers add up. No sum is cut in two."""
        kernel, workers = self.kernels.expert, self.member.threads
        if workers == 1:
            return [(kernel.ALL, 0, 0)]
        found = []
        for which in (kernel.UP, kernel.GATE, kernel.DOWN) if cfg.gated else (kernel.UP, kernel.DOWN):
            rows = cfg.ffn if which == kernel.DOWN else cfg.hidden
            ends = [rows * cut // workers for cut in range(workers + 1)]
            found += [(which, begin, end) for begin, end in pairwise(ends) if begin < end]
        return found
