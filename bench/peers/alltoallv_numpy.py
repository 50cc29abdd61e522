"""The usual exchange by hand: Alltoall of counts, Alltoallv, NumPy matmuls per expert, Alltoallv back, combine.

This baseline is as fast as mpi4py and NumPy allow. It sorts 16-bit ids by a stable radix argsort, and gathers rows into
buffers that it keeps. It computes the rows of all sources of an expert in one GEMM, without a copy if these rows are
contiguous already. It combines by a batched matmul in blocks that stay in cache. Only NumPy's BLAS is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jobs import Floats, Ints, Job
from numpy.typing import NDArray

BLOCK_BYTES = 2 << 20  # gathered rows per step of the combine; 2 MiB was best of 1 to 4 MiB


class AlltoallvNumPy:
    """Baseline with two-sided collectives; one BLAS thread per rank."""

    def __init__(self, comm: Any, job: Job) -> None:
        from mpi4py import MPI

        shape = job.shape
        self.comm, self.float = comm, MPI.FLOAT
        self.H, self.E, self.k = shape.hidden, shape.experts, shape.top_k
        self.each = shape.experts // comm.size
        self.up, self.down = np.array(job.up[job.local]), np.array(job.down[job.local])
        self.gate = None if job.gate is None else np.array(job.gate[job.local])
        self.xs, self.ids, self.weights = job.xs, job.ids, job.weights
        pairs = shape.tokens * shape.top_k
        self.send = np.empty((pairs, self.H), np.float32)
        self.back = np.empty((pairs, self.H), np.float32)
        self.y = np.empty((shape.tokens, self.H), np.float32)
        self.block = max(16, BLOCK_BYTES // (self.k * self.H * 4))
        self.gathered = np.empty((min(self.block, shape.tokens) * self.k, self.H), np.float32)
        self.hidden, self.gated = (np.empty((0, shape.ffn), np.float32) for _ in range(2))
        self.landed, self.outputs, self.merged, self.merged_out = (np.empty((0, self.H), np.float32) for _ in range(4))

    def __call__(self, i: int) -> None:
        x, ids, weights = self.xs[i], self.ids[i], self.weights[i]
        order = np.argsort(ids.ravel().astype(np.uint16), kind="stable")
        counts = np.bincount(ids.ravel(), minlength=self.E).reshape(-1, self.each)
        np.take(x, order // self.k, axis=0, out=self.send, mode="clip")
        landed_counts = np.empty_like(counts)  # [source, local expert]
        self.comm.Alltoall(counts, landed_counts)
        sent, landed = counts.sum(axis=1), landed_counts.sum(axis=1)
        self._grow(int(landed.sum()), int(landed_counts.sum(axis=0).max()))
        self._exchange(self.send, sent, self.landed, landed)
        self._experts(landed_counts)
        self._exchange(self.outputs, landed, self.back, sent)
        self._combine(order, weights)

    def arrays(self) -> list[Any]:
        return [self.xs, self.up, self.gate, self.down, self.y]

    def output(self) -> Floats:
        return self.y

    def close(self) -> None:
        """Does nothing: there are only arrays to free."""

    def _exchange(self, out: Floats, out_rows: Ints, into: Floats, into_rows: Ints) -> None:
        def message(buffer: Floats, rows: Ints) -> list[Any]:
            numbers = rows * self.H
            return [buffer, numbers, np.cumsum(numbers) - numbers, self.float]

        self.comm.Alltoallv(message(out, out_rows), message(into, into_rows))

    def _experts(self, counts: NDArray[np.int64]) -> None:
        """Run all experts. Rows are ordered by source, then expert; rows of one expert from several sources are copied
        together."""
        ends = np.cumsum(counts).reshape(counts.shape)
        starts = ends - counts
        for e in range(self.each):
            runs = [slice(a, b) for a, b in zip(starts[:, e].tolist(), ends[:, e].tolist()) if b > a]
            if len(runs) == 1:
                self._ffn(e, self.landed[runs[0]], self.outputs[runs[0]])
            elif runs:
                rows = self.merged[: int(counts[:, e].sum())]
                np.concatenate([self.landed[run] for run in runs], out=rows)
                result = self.merged_out[: len(rows)]
                self._ffn(e, rows, result)
                at = 0
                for run in runs:
                    self.outputs[run] = result[at : at + run.stop - run.start]
                    at += run.stop - run.start

    def _ffn(self, e: int, rows: Floats, out: Floats) -> None:
        h = self.hidden[: len(rows)]
        np.matmul(rows, self.up[e], out=h)
        if self.gate is None:
            np.maximum(h, 0, out=h)
        else:
            self._times_silu(h, np.matmul(rows, self.gate[e], out=self.gated[: len(rows)]))
        np.matmul(h, self.down[e], out=out)

    @staticmethod
    def _times_silu(h: Floats, g: Floats) -> None:
        """h *= silu(g), in place, in blocks that stay in cache: h g / (1 + exp(-g))."""
        step = max(1, BLOCK_BYTES // (8 * h.shape[1]))
        for t in range(0, len(h), step):
            hs, gs = h[t : t + step], g[t : t + step]
            hs *= gs
            np.negative(gs, out=gs)
            np.exp(gs, out=gs)
            gs += 1
            hs /= gs

    def _combine(self, order: Ints, weights: Floats) -> None:
        at = np.empty_like(order)
        at[order] = np.arange(len(order))
        for t in range(0, len(self.y), self.block):
            y = self.y[t : t + self.block]
            rows = self.gathered[: len(y) * self.k]
            np.take(self.back, at[t * self.k : t * self.k + len(rows)], axis=0, out=rows, mode="clip")
            np.matmul(weights[t : t + len(y), None], rows.reshape(len(y), self.k, self.H), out=y[:, None])

    def _grow(self, rows: int, most: int) -> None:
        """Grow the receive buffers to the largest call so far."""
        if rows > len(self.landed):
            self.landed, self.outputs = (np.empty((rows, self.H), np.float32) for _ in range(2))
        if most > len(self.hidden):
            self.hidden = np.empty((most, self.hidden.shape[1]), np.float32)
            self.gated = np.empty_like(self.hidden) if self.gate is not None else self.gated
            self.merged, self.merged_out = (np.empty((most, self.H), np.float32) for _ in range(2))
