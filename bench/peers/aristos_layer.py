"""Aristos as a peer of the comparison, through the public layer alone: `fused` and `bulk` are schedules of one class.

All options are defaults, but for threads=1, which holds for all peers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jobs import Floats, Ints, Job

import aristos
from peers import Absent


class AristosLayer:
    """The layer with its output array kept between calls."""

    def __init__(self, comm: Any, job: Job, schedule: Literal["fused", "bulk"]) -> None:
        self.moe = aristos.MoE(job.cfg, comm=comm, schedule=schedule, threads=1)
        self.moe.load(up=job.up, down=job.down)
        self.y = np.empty((job.shape.tokens, job.shape.hidden), np.float32)

    def __call__(self, x: Floats, ids: Ints, weights: Floats) -> Floats:
        y: Floats = self.moe(x, ids=ids, weights=weights, out=self.y)
        return y

    def stats(self, x: Floats, ids: Ints, weights: Floats) -> Any:
        """The same call, returning its CallStats."""
        _, stats = self.moe(x, ids=ids, weights=weights, out=self.y, return_stats=True)
        return stats

    def close(self) -> None:
        self.moe.close()


class Bfloat16Layer:
    """The layer in bfloat16. Inputs are rounded in their first call, which is not timed."""

    def __init__(self, comm: Any, job: Job, schedule: Literal["fused", "bulk"]) -> None:
        try:
            import ml_dtypes
        except ImportError as error:
            raise Absent(f"{error}: pip install ml_dtypes") from None
        self.dtype = np.dtype(ml_dtypes.bfloat16)
        self.moe = aristos.MoE(replace(job.cfg, dtype="bfloat16"), comm=comm, schedule=schedule, threads=1)
        self.moe.load(up=job.up.astype(self.dtype), down=job.down.astype(self.dtype))
        self.rounded = {x.ctypes.data: x.astype(self.dtype) for x in job.xs}
        self.y = np.empty((job.shape.tokens, job.shape.hidden), self.dtype)

    def __call__(self, x: Floats, ids: Ints, weights: Floats) -> Any:
        return self.moe(self.rounded[x.ctypes.data], ids=ids, weights=weights, out=self.y)

    def close(self) -> None:
        self.moe.close()


def fused_bfloat16(comm: Any, job: Job) -> Bfloat16Layer:
    return Bfloat16Layer(comm, job, "fused")


def bulk_bfloat16(comm: Any, job: Job) -> Bfloat16Layer:
    return Bfloat16Layer(comm, job, "bulk")


def fused(comm: Any, job: Job) -> AristosLayer:
    return AristosLayer(comm, job, "fused")


def bulk(comm: Any, job: Job) -> AristosLayer:
    return AristosLayer(comm, job, "bulk")
