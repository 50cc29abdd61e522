"""What is simulated: a layer with its routing, and the job and state of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import MoEConfig
from ..engine import codes, schema, words
from ..engine import job as jobs
from ..engine.layout import StateLayout
from ..errors import InputError
from ..kernels.common import scores
from ..layer.arguments import choices
from ..layer.collective import layer_values, object_job
from ..placement import Placement
from ..primitives import wire
from ..primitives.buffers import aligned
from ..row_types import ROW_TYPES
from ..substrate.cpu.runtime import engine_values, tile_values
from ..substrate.runtime import BUNDLE_PAIRS
from .control import FAR
from .regions import Regions


@dataclass(frozen=True)
class Layer:
    """The simulated layer, its placement and the routing. ids: for each rank [tokens, k] int64.

    Raises InputError for ids that the layer would refuse, and for a layer that cannot be simulated.
    """

    cfg: MoEConfig
    placement: Placement
    ids: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        cfg, world = self.cfg, len(self.placement.held)
        if len(self.ids) != world:
            raise InputError(f"ids must have an array for each of {world} ranks, got {len(self.ids)}")
        if cfg.shared_sigmoid:
            raise InputError(
                "a shared expert that is weighted by a score cannot be simulated: pass shared_sigmoid=False"
            )
        for rank, ids in enumerate(self.ids):
            if ids.ndim != 2 or ids.shape[1] != cfg.top_k or len(ids) > cfg.max_tokens:
                shape = f"[at most {cfg.max_tokens}, {cfg.top_k}]"
                raise InputError(f"ids of rank {rank} must have shape {shape}, got {list(ids.shape)}")
            if ids.size and not -1 <= ids.min() <= ids.max() < cfg.columns:
                raise InputError(f"ids of rank {rank} must be in -1..{cfg.columns - 1}, got {ids.min()} to {ids.max()}")

    def routed(self, rank: int) -> np.ndarray:
        """[tokens, choices] int64: the ids of a rank, with a last column for the shared expert if there is one."""
        ids = np.zeros((len(self.ids[rank]), choices(self.cfg)), np.int64)
        ids[:, : self.cfg.top_k] = self.ids[rank]
        return ids


class Rank:
    """One rank's job and state, filled as `Membership.new_job` and `CpuRuntime.fill` fill them.

    run_rows: see `entries.run_rows`.
    """

    def __init__(
        self, me: int, layer: Layer, regions: Regions, tables: StateLayout, workers: int, run_rows: tuple[int, int]
    ) -> None:
        shape, cfg, placement = regions.shape, layer.cfg, layer.placement
        self.state = aligned((tables.words,), np.int64)
        self.state[:] = 0
        regions.fill(me, self.state, tables.starts)
        self.ids = layer.routed(me)
        self.weights = np.ones(self.ids.shape, np.float32)
        self.locks = aligned((64,), np.int64)
        self.locks[:] = 0
        self.wire = aligned((wire.words(shape.world),), np.int64)
        self.wire[:] = 0
        remote = len(regions.nodes.remote(me))
        self.job = job = object_job(
            schema.CPU,
            placement,
            me,
            object=1,
            stay_rows=1,
            reading_rows=0,
            busiest_decides=0,
            on_input=0,
            scalars=0,
            kernels=0,
            row_bytes=ROW_TYPES[cfg.dtype].nbytes * cfg.hidden,
            **{**scores.job_words(cfg.router), **layer_values(cfg, placement.held[me])},
        )
        jobs.fill_engine(
            job,
            schema.CPU,
            shape,
            tables,
            rank=me,
            world=shape.world,
            all_workers=workers,
            remote=remote,
            bundle_pairs=BUNDLE_PAIRS,
            layout=0,
            scratch=FAR,
            lock=self.locks.ctypes.data,
            wire=self.wire.ctypes.data if remote else 0,
            state=self.state.ctypes.data,
            **engine_values(job, shape, crowded=False),
        )
        regions.layout.fill(job)  # instead of the layout with rows, which `fill_engine` writes
        tile = tile_values(job, workers, *run_rows)
        jobs.fill(job, schema.TILE, schema.CPU, scratch_step=0, **tile)
        jobs.fill_some(job, schema.WEIGHTS, schema.CPU, loaded=1, version=1, up=FAR, gate=FAR * cfg.gated, down=FAR)
        jobs.fill(job, schema.KIND, schema.CPU, layer=0, mode=codes.MODE_LAYER)
        jobs.leave_out(job, schema.CPU, schema.TAPE, schema.BACKWARD, schema.LANDING, schema.EVENTS)
        row = int(job[words.ROW_BYTES])
        jobs.fill_some(
            job,
            schema.CALL,
            schema.CPU,
            tokens=len(self.ids),
            status_in=codes.OK,
            routed=1,
            x=FAR,
            x_stride=row,
            input=FAR,
            input_stride=row,
            y=FAR,
            ids=self.ids.ctypes.data,
            weights=self.weights.ctypes.data,
        )
        jobs.start(job, schema.CPU, 0, 1)
