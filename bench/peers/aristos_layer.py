"""Aristos as a peer of the comparison, through the public layer alone: `fused` and `bulk` are schedules of one class.

All options are defaults, but for threads=1, which holds for all peers.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jobs import Floats, Ints, Job

import aristos


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


def fused(comm: Any, job: Job) -> AristosLayer:
    return AristosLayer(comm, job, "fused")


def bulk(comm: Any, job: Job) -> AristosLayer:
    return AristosLayer(comm, job, "bulk")
