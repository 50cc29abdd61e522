"""A training step of Aristos as a peer of the comparison, through the public layer alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracle
from jobs import Floats, Job, flat

import aristos
from aristos.bench.ran import of_layer
from peers.aristos_layer import kernels, numpy_dtype


class AristosStep:
    """zero_grads, forward with `save`, and backward: gradients of x, of the combine weights and of own experts."""

    def __init__(self, comm: Any, job: Job, dtype: str, save: str) -> None:
        shape, rows = job.shape, numpy_dtype(dtype)
        assert job.dys is not None
        cfg = replace(oracle.config(shape), dtype=dtype)
        most = None if save == "rows" else 4 * shape.tokens * shape.top_k * (shape.hidden + 2 * shape.ffn + 32)
        self.moe = aristos.MoE(cfg, comm=comm, threads=1, train=True, tape_bytes=most)
        weights = {"up": job.up, "down": job.down} | ({} if job.gate is None else {"gate": job.gate})
        self.names, self.save = [name for name in ("up", "gate", "down") if name in weights], save
        self.moe.load(local=True, **{name: weight[job.local] for name, weight in weights.items()})
        self.xs, self.ids, self.weights = job.xs.astype(rows), job.ids, job.weights
        self.dys = job.dys.astype(rows)
        self.gradients: list[Any] = []

    def __call__(self, i: int) -> None:
        moe = self.moe
        moe.zero_grads()
        _, tape = moe.forward(self.xs[i], self.ids[i], self.weights[i], save=self.save)
        self.gradients = [*moe.backward(self.dys[i], tape)]

    def output(self) -> Floats:
        found = self.moe.grads()
        return flat(np.asarray(each, np.float32) for each in (*self.gradients, *(found[name] for name in self.names)))

    def arrays(self) -> list[Any]:
        return [self.xs, self.dys, self.gradients[0]]

    def kernels(self) -> dict[str, str]:
        """Precision and ISA of the layer's kernels."""
        return kernels(of_layer(self.moe, self.arrays(), self.moe.cfg))

    def close(self) -> None:
        self.moe.close()
