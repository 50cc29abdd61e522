"""The jobs of calls on CPU cores: one for each layer, filled with what does not change from call to call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..config import MoEConfig
from ..engine import codes, schema
from ..engine import job as jobs
from ..kernels.common import scores
from ..substrate.cpu.runtime import CpuRuntime
from .arguments import on_input
from .collective import Membership


class CpuKernels(NamedTuple):
    """The kernels of a layer. handle: the handle of the element type's kernels. run_rows: see `entries.run_rows`."""

    element: Any
    handle: int
    run_rows: tuple[int, int]


class CpuJobs:
    """Jobs of an object's layers. They are filled again when weights or the runtime's windows have changed.

    weights: the backend's weights of each layer. foreign: (slot, owner) of experts of local peers. stay_rows: for each
    layer, the fewest rows for a foreign expert that stay. reading_rows: how many rows take as long to compute as it
    takes to read their expert's weights. events: the array into which workers write the timeline, or None.
    """

    def __init__(
        self,
        runtime: CpuRuntime,
        member: Membership,
        cfgs: tuple[MoEConfig, ...],
        kernels: CpuKernels,
        weights: list[Any],
        moves: str,
    ) -> None:
        self._runtime, self._member, self._cfgs, self._kernels = runtime, member, cfgs, kernels
        self._weights = weights
        self._busiest_decides = int(moves != "experts")
        self.made: list[np.ndarray | None] = [None] * len(cfgs)
        self.filled = [-1] * len(cfgs)  # the runtime's version for which each job was filled
        self.foreign: list[tuple[int, int]] = []
        self.stay_rows, self.reading_rows = [1] * len(cfgs), 0
        self.events: np.ndarray | None = None

    def open(self, layer: int) -> np.ndarray:
        """The job of a layer for a new call, filled again when its weights or the runtime's windows have changed."""
        runtime, cfg = self._runtime, self._cfgs[layer]
        job = self.made[layer]
        if job is None:
            job = self._member.new_layer_job(
                schema.CPU,
                cfg,
                foreign=self.foreign,
                on_input=on_input(cfg),
                sums=cfg.combine == "sums" and bool(runtime.group.nodes.remote(self._member.rank)),
                stay_rows=self.stay_rows[layer],
                reading_rows=self.reading_rows,
                busiest_decides=self._busiest_decides,
                scalars=0,
                row_bytes=self._kernels.element.nbytes * cfg.hidden,
                kernels=self._kernels.handle,
                **scores.job_words(cfg.router),
            )
            self.made[layer] = job
            jobs.fill(job, schema.KIND, schema.CPU, layer=layer, mode=codes.MODE_LAYER)
            jobs.leave_out(job, schema.CPU, schema.TAPE, schema.BACKWARD, schema.LANDING)
        if self.filled[layer] != runtime.version:
            jobs.renew(job, schema.ENGINE, schema.TILE, schema.WEIGHTS, schema.EVENTS)
            runtime.fill(job, self._member.threads, *self._kernels.run_rows)
            if self._weights[layer] is not None:
                self._weights[layer].fill(job)
                self.filled[layer] = runtime.version
            else:
                jobs.leave_out(job, schema.CPU, schema.WEIGHTS)
            at, most = (0, 0) if self.events is None else (self.events.ctypes.data, self.events.shape[1])
            jobs.fill(job, schema.EVENTS, schema.CPU, events=at, events_max=most)
        jobs.renew_call(job)
        return job

    def made_for(self, layer: int) -> np.ndarray:
        """The job of a layer that was called before."""
        job = self.made[layer]
        assert job is not None
        return job

    def forget(self) -> None:
        """Fill each job again before its next call."""
        self.filled = [-1] * len(self.filled)
