"""`schedule="bulk"` computes a layer as GShard does: count exchange, Alltoallv, experts, Alltoallv, combine.

This schedule is the baseline of every comparison. It can also check results of the fused schedule, because it uses the
same kernels, but nothing of the protocol. With two levels its rows go through `node_first.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ..engine import bulk as step
from ..engine import codes, packing, steps, words
from ..engine import job as jobs
from ..primitives import memory as mem
from ..primitives.buffers import aligned
from ..substrate.cpu.runtime import CpuRuntime
from .node_first import all_to_all


class Bulk:
    """Runs a layer's calls in phases on a runtime."""

    def __init__(self, runtime: CpuRuntime, timeout: float) -> None:
        self.runtime, self.timeout = runtime, timeout
        self.collective: Callable[[Callable[[Any], object], np.ndarray], None] = self.at_once
        # the pool starts threads when they are needed
        self._pool = ThreadPoolExecutor(runtime.threads, thread_name_prefix="aristos-bulk")
        self._all_to_all = all_to_all(runtime.group)
        self._send = self._received = self._results = aligned((0,), np.uint8)
        from numba import typeof, types

        job, st = typeof(np.zeros(1, np.int64)), typeof(runtime.state)
        i, a = types.int64, typeof(np.zeros(1, np.int64))
        warm_up(
            [
                (step.route, (job, st, i)),
                (step.pack, (job, st)),
                (step.copy_out, (job, st, i, i)),
                (step.run_experts, (job, st, i, a, a, i, i, a)),
                (step.all_back, (job, st)),
                (step.combine_all, (job, st, i)),
                (step.return_base, (job, st)),
                (steps.end, (job, st)),
            ]
        )

    def run_call(self, job: np.ndarray) -> None:
        """Run an entered call to its end; collective.

        The watchdog bounds the wait for a rank that is in a fused call.
        """
        runtime = self.runtime
        with runtime.failing(job):
            runtime.open_job(job)
            jobs.update(job, remote=0)  # all outputs come back into this rank's own window
            packing.begin(job, runtime.state)
            self._phases(job, runtime.state)
            steps.end(job, runtime.state)

    def _phases(self, job: np.ndarray, st: np.ndarray) -> None:
        world, me, stride = int(job[words.WORLD]), int(job[words.RANK]), int(job[words.RETURN_STRIDE])
        self._everywhere(job, step.route, job, st)
        rows = int(step.pack(job, st))
        counts = self._exchange_counts(job, st)  # [W, L]: how many rows each source has for each expert here
        sent = st[job[words.T_ROWS_TO] :][:world].copy()
        came = counts.sum(1)
        self._send = self._at_least(self._send, rows * stride)
        self._received = self._at_least(self._received, int(came.sum()) * stride)
        self._results = self._at_least(self._results, int(came.sum()) * stride)
        step.copy_out(job, st, rows, self._send.ctypes.data)
        self._alltoallv(job, st, self._send, sent, self._received, came, stride)
        order, ends = self.by_expert(counts)
        if job[words.LOADED] == 0:  # this rank has loaded no weights, so its call was refused
            order = ends = np.zeros(0, np.int64)
        self.run_experts(job, order, ends, self._received, self._results)
        back = mem.bits8(step.return_base(job, st), max(1, rows * stride))
        self._alltoallv(job, st, self._results, came, back, sent, stride)
        step.all_back(job, st)
        self._everywhere(job, step.combine_all, job, st)
        st[job[words.T_ROWS_FROM] :][:world] = came
        st[job[words.T_TILES_TO] :][:world] = sent > 0
        st[words.tiles_to(job, me)] = 0
        st[job[words.T_MOVED_TO] :][:world] = sent
        st[words.moved_to(job, me)] = 0

    def run_experts(
        self, job: np.ndarray, order: np.ndarray, ends: np.ndarray, received: np.ndarray, results: np.ndarray
    ) -> None:
        """Run this rank's experts on rows, on every worker. Rows lie RETURN_STRIDE bytes apart.

        order, ends: see `run_experts` in engine/bulk.py.
        """
        first = np.zeros(1, np.int64)
        at = received.ctypes.data, results.ctypes.data
        self._everywhere(job, step.run_experts, job, self.runtime.state, order, ends, *at, first)

    def _everywhere(self, job: np.ndarray, function: Any, j: np.ndarray, st: np.ndarray, *rest: Any) -> None:
        """Run a function on every worker; each claims parts of the work."""
        others = [self._pool.submit(function, j, st, worker, *rest) for worker in range(1, int(job[words.WORKERS]))]
        function(j, st, 0, *rest)
        for other in others:
            other.result()

    def _exchange_counts(self, job: np.ndarray, st: np.ndarray) -> np.ndarray:
        """Exchange row counts and statuses; returns the counts [W, L], all zero if any rank is in another call."""
        world, me, local = int(job[words.WORLD]), int(job[words.RANK]), int(job[words.HELD])
        assert self.runtime.shape is not None
        width = words.ANNOUNCED_WORDS + self.runtime.shape.max_held
        start = job[job[words.SLOT_START] :][: world + 1]
        offset = st[job[words.T_OFFSET] :][: int(start[world]) + 1]
        by_slot = np.diff(offset)
        sent, received = np.zeros((world, width), np.int64), np.zeros((world, width), np.int64)
        call = words.OBJECT, words.MODE, words.LAYER, words.ROW_BYTES, words.TOP_K, words.SCALARS, words.PLACEMENT
        head = [job[word] for word in call]
        placement, status, version = len(head) - 1, len(head), words.announced_version(0) // 8
        for p in range(world):
            sent[p, :status] = head
            sent[p, status], sent[p, version] = st[words.STATUS], job[words.VERSION]
            sent[p, words.ANNOUNCED_WORDS :][: start[p + 1] - start[p]] = by_slot[start[p] : start[p + 1]]
        if world == 1:
            received = sent
        else:
            each = np.full(world, sent[0].nbytes)
            self._blocking(job, st, "MPI_Alltoall of row counts", lambda comm: comm.Alltoall(sent, received), each)
        alike = received[:, :status] == sent[me, :status]
        same, same_call = alike.all(1), alike[:, :placement].all(1)
        statuses = received[:, status]  # a refusal is raised even if the calls differ too
        wrong = np.where(same_call, codes.MISPLACED, codes.MISMATCH)
        st[job[words.T_PEER_STATUS] :][:world] = np.where(same | (statuses != codes.OK), statuses, wrong)
        st[job[words.T_VERSION_OF] :][:world] = received[:, version]
        if not same.all():  # no rank can run rows of another layer, so no rows are exchanged, and all ranks raise
            st[job[words.T_ROWS_TO] :][:world] = 0
            st[job[words.T_OFFSET] :][: int(start[world]) + 1] = 0
            return np.zeros((world, local), np.int64)
        return received[:, words.ANNOUNCED_WORDS :][:, :local]

    @staticmethod
    def by_expert(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(received rows ordered by expert, the end of each expert in that order).

        Rows are received source by source.
        """
        world, local = counts.shape
        expert_of = np.repeat(np.tile(np.arange(local), world), counts.reshape(-1))
        return np.argsort(expert_of, kind="stable").astype(np.int64), np.cumsum(counts.sum(0)).astype(np.int64)

    def _alltoallv(self, job: Any, st: Any, out: Any, sent: Any, into: Any, came: Any, stride: int) -> None:
        """Exchange whole rows; a single rank copies."""
        if len(sent) == 1:
            into[: sent[0] * stride] = out[: sent[0] * stride]
            return
        self._all_to_all(partial(self._blocking, job, st), out, sent, into, came, stride)

    def at_once(self, call: Callable[[Any], object], nbytes: np.ndarray) -> None:
        """Make MPI calls at once. The attribute `collective` holds this function or one that delays the calls.

        call: makes the MPI calls on the communicator that it gets. nbytes: [W], how many bytes they send to each rank.
        """
        call(self.runtime.group.comm)

    def _blocking(self, job: Any, st: Any, what: str, call: Any, nbytes: np.ndarray) -> None:
        """Make blocking MPI calls under the watchdog. The call's time counts as idle: no tile can run meanwhile."""
        started = time.perf_counter_ns()
        with self.runtime.group.bounded(f"the other ranks ({what})", self.timeout):
            self.collective(call, nbytes)
        spent = time.perf_counter_ns() - started
        st[words.counter(job, 0, words.N_IDLE)] += spent * job[words.WORKERS]
        others = int(job[words.WORLD]) - 1
        st[job[words.T_PEER_WAIT] :][: int(job[words.WORLD])] += spent // others
        st[words.peer_wait(job, job[words.RANK])] = 0

    @staticmethod
    def _at_least(buffer: np.ndarray, nbytes: int) -> np.ndarray:
        return buffer if buffer.size >= nbytes else aligned((nbytes,), np.uint8)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
