"""Aristos as a peer of the comparison, through the public layer alone: `fused` and `bulk` are schedules of one class.

All options are defaults except threads=1, which holds for all peers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import oracle
from jobs import Floats, Job

import aristos
from aristos.bench.ran import Ran, of_layer
from peers import Absent


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name; NumPy has no bfloat16 of its own."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise Absent(f"{error}: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def kernels(found: Ran) -> dict[str, str]:
    """Element type, precision and ISA of kernels. If rows and weights differ in type, the element type names both."""
    return {"dtype": found.dtype, "precision": found.precision, "isa": found.isa}


class AristosLayer:
    """The layer with its output array kept between calls; config: further fields of MoEConfig."""

    def __init__(
        self, comm: Any, job: Job, schedule: Literal["fused", "bulk"], dtype: str, config: dict[str, Any]
    ) -> None:
        rows = numpy_dtype(dtype)
        cfg = replace(oracle.config(job.shape), dtype=dtype, **config)
        self.moe = aristos.MoE(cfg, comm=comm, schedule=schedule, threads=1)
        weights = {"up": job.up, "down": job.down} | ({} if job.gate is None else {"gate": job.gate})
        self.moe.load(local=True, **{name: weight[job.local].astype(rows) for name, weight in weights.items()})
        self.xs, self.ids, self.weights = job.xs.astype(rows), job.ids, job.weights
        self.y = np.empty(self.xs.shape[1:], rows)

    def __call__(self, i: int) -> None:
        self.moe(self.xs[i], ids=self.ids[i], weights=self.weights[i], out=self.y)

    def arrays(self) -> list[Any]:
        return [self.xs, self.y]

    def kernels(self) -> dict[str, str]:
        """Precision and ISA of the layer's kernels, and the type of packed weights as the layer has them."""
        kind = self.moe.cfg.packed
        return kernels(of_layer(self.moe, self.arrays(), self.moe.cfg)) | ({"weights": kind.name} if kind else {})

    def stats(self, i: int) -> Any:
        """The same call, returning its CallStats."""
        _, stats = self.moe(self.xs[i], ids=self.ids[i], weights=self.weights[i], out=self.y, return_stats=True)
        return stats

    def output(self) -> Floats:
        return self.y.astype(np.float32)

    def close(self) -> None:
        self.moe.close()
