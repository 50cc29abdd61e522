"""What is simulated: a layer with its routing, and the job and state of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..config import MoEConfig, whole
from ..engine import codes, schema, words
from ..engine import job as jobs
from ..engine.layout import StateLayout
from ..errors import InputError
from ..host.nodes import Nodes
from ..kernels.by_isa import module
from ..kernels.common import scores
from ..layer.arguments import choices
from ..layer.bulk import Bulk
from ..layer.collective import layer_values, object_job
from ..layer.cpu import COPIES
from ..layer.node_first import carriers
from ..layer.node_weights import foreign_slots
from ..layer.weights import expert_bytes
from ..placement import Placement
from ..primitives import isa, wire
from ..primitives.buffers import aligned, zeros
from ..row_types import ROW_TYPES
from ..substrate.cpu.runtime import BATCH, TILE, engine_values, tile_values
from ..substrate.runtime import BUNDLE_PAIRS
from ..substrate.windows import readers
from .control import FAR
from .machine import Kernel
from .regions import Regions


@dataclass(frozen=True)
class Layer:
    """The simulated layer, its placement and the routing. ids: for each rank [tokens, k] int64.

    moves: what moves within a node, see `aristos.MoE`: "tokens", "experts" or "auto". tile: most rows of a tile.

    Raises InputError for ids that the layer would refuse, and for a layer that cannot be simulated.
    """

    cfg: MoEConfig
    placement: Placement
    ids: Sequence[np.ndarray]
    moves: Literal["tokens", "experts", "auto"] = "tokens"
    tile: int = TILE

    def __post_init__(self) -> None:
        cfg, world = self.cfg, len(self.placement.held)
        if len(self.ids) != world:
            raise InputError(f"ids must have an array for each of {world} ranks, got {len(self.ids)}")
        if cfg.shared_sigmoid:
            raise InputError(
                "a shared expert that is weighted by a score cannot be simulated: pass shared_sigmoid=False"
            )
        whole("tile", self.tile, BATCH, f"an int in 1..{BATCH}")
        for rank, ids in enumerate(self.ids):
            if ids.ndim != 2 or ids.shape[1] != cfg.top_k or len(ids) > cfg.max_tokens:
                shape = f"[at most {cfg.max_tokens}, {cfg.top_k}]"
                raise InputError(f"ids of rank {rank} must have shape {shape}, got {list(ids.shape)}")
            if ids.size and not -1 <= ids.min() <= ids.max() < cfg.columns:
                raise InputError(f"ids of rank {rank} must be in -1..{cfg.columns - 1}, got {ids.min()} to {ids.max()}")

    def foreign(self, nodes: Nodes, rank: int) -> list[tuple[int, int]]:
        """(slot, owner) of the experts of local peers that a rank may compute; none if rows always move."""
        return [] if self.moves == "tokens" else foreign_slots(self.placement, nodes, rank)

    def routed(self, rank: int) -> np.ndarray:
        """[tokens, choices] int64: the ids of a rank, with a last column for the shared expert if there is one."""
        ids = np.zeros((len(self.ids[rank]), choices(self.cfg)), np.int64)
        ids[:, : self.cfg.top_k] = self.ids[rank]
        return ids


@dataclass(frozen=True)
class Decisions:
    """The numbers by which ranks decide how runs are cut and merged and which rows stay.

    In a real layer its kernels give them, or they are measured.

    run_rows: see `entries.run_rows`. stay_rows, reading_rows: the job's words of these names.
    """

    run_rows: tuple[int, int]
    stay_rows: int
    reading_rows: int

    @classmethod
    def from_layer(cls, layer: Layer, kernel: Kernel) -> Decisions:
        """The decisions of a layer's kernels, for the instruction set that this process may use.

        They assume that reading an expert's weights takes as long as a run of one row, and that the arithmetic of a row
        takes as long as in a long run.
        """
        cfg = layer.cfg
        element = module("elements", isa.chosen()).element_type(cfg.dtype, cfg.precision, cfg.packed)
        run_rows = module("entries", isa.chosen(), element.format).run_rows(element.code)
        if layer.moves != "auto":
            return cls(run_rows, 1, 0)
        reading = kernel.reading_rows
        copied = COPIES * element.nbytes * cfg.hidden
        return cls(run_rows, max(reading, sum(expert_bytes(element, cfg).values()) // copied), reading)


class Rank:
    """One rank's job and state, filled as `Membership.new_job` and `CpuRuntime.fill` fill them.

    fused: whether the schedule is fused. With the bulk schedule, all outputs come back into this rank's own memory.
    """

    def __init__(
        self,
        me: int,
        layer: Layer,
        regions: Regions,
        tables: StateLayout,
        workers: int,
        decisions: Decisions,
        fused: bool,
    ) -> None:
        shape, cfg, placement = regions.shape, layer.cfg, layer.placement
        foreign = layer.foreign(regions.nodes, me)
        self.state = zeros((tables.words,))
        regions.fill(me, self.state, tables.starts)
        self.ids = layer.routed(me)
        self.weights = np.ones(self.ids.shape, np.float32)
        self.sums = aligned((self.ids.shape[1] + 8,), np.int64)  # weights of a token
        self.locks, self.wire = zeros((64,)), zeros((wire.words(shape.world),))
        remote = len(regions.nodes.remote(me))
        self.job = job = object_job(
            schema.CPU,
            placement,
            me,
            object=1,
            foreign=foreign,
            stay_rows=decisions.stay_rows,
            reading_rows=decisions.reading_rows,
            busiest_decides=int(layer.moves != "experts"),
            on_input=0,
            sums=int(cfg.combine == "sums" and bool(remote)),
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
            remote=remote * fused,
            bundle_pairs=BUNDLE_PAIRS,
            **readers(regions.nodes, me),
            layout=0,
            scratch=self.sums.ctypes.data if cfg.combine == "sums" else FAR,
            lock=self.locks.ctypes.data,
            wire=self.wire.ctypes.data if remote else 0,
            state=self.state.ctypes.data,
            **engine_values(job, shape, crowded=False),
        )
        regions.layout.fill(job)  # instead of the layout with rows, which `fill_engine` writes
        tile = tile_values(job, workers, *decisions.run_rows) | {"tile": layer.tile}
        jobs.fill(job, schema.TILE, schema.CPU, scratch_step=0, **tile)
        weights = {"up": FAR, "gate": FAR * cfg.gated, "down": FAR}
        jobs.fill_some(job, schema.WEIGHTS, schema.CPU, loaded=1, version=1, **weights)
        for expert in range(int(job[words.HELD]), int(job[words.COMPUTED])):
            for name, address in weights.items():
                job[getattr(words, f"foreign_{name}")(int(words.foreign(job, expert)))] = address
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


def bulk_words(ranks: Sequence[Rank], nodes: Nodes) -> list[np.ndarray]:
    """For each rank the words of its bulk calls, which `enter` in inside/bulk.py reads.

    The words are the lengths of `order` and `ends`; the arrays `order`, `ends` and `next_row` of `run_experts` in
    engine/bulk.py; the number of rows to each rank, and from each; and the same for the messages of each step of the
    all-to-all that sends rows, and of the one that sends outputs back.
    """
    world = len(ranks)
    start = ranks[0].job[int(ranks[0].job[words.SLOT_START]) :][: world + 1]
    counts = np.array([_rows_of_slots(rank, int(start[world])) for rank in ranks])  # [source, slot]
    held = [counts[:, start[me] : start[me + 1]] for me in range(world)]
    rows = np.stack([here.sum(axis=1) for here in held], axis=1)  # [source, target]
    steps = np.concatenate([rows[None], messages(rows, nodes), messages(rows.T, nodes)])
    arrays = []
    for me, here in enumerate(held):
        order, ends = Bulk.by_expert(here)
        both = np.stack([steps[:, me], steps[:, :, me]], axis=1).reshape(-1)
        arrays.append(np.concatenate([[len(order), len(ends)], order, ends, [0], both]).astype(np.int64))
    return arrays


def messages(rows: np.ndarray, nodes: Nodes) -> np.ndarray:
    """[steps, source, target] the rows of the messages of an all-to-all, -1: no message. rows: [source, target].

    With one level there is one step. With two levels there is one within nodes and one between them, as in `NodeFirst`.
    """
    if nodes.levels == 1 or nodes.single:
        return rows[None]
    found = np.full((2, *rows.shape), -1)
    for me in range(len(rows)):
        members, (taken, _) = nodes.members(me), carriers(nodes, me)
        found[0, me, members] = [rows[me, ranks].sum() for ranks in taken]
        own = taken[me - members[0]]
        carried = rows[members][:, own].sum(axis=0)
        found[1, me, own] = np.where((carried > 0) | (np.array(own) == me), carried, -1)
    return found


def _rows_of_slots(rank: Rank, slots: int) -> np.ndarray:
    """[slots] how many rows a rank's routing has for each slot."""
    ids = rank.ids[rank.ids >= 0]
    slot = rank.job[int(rank.job[words.SLOT_OF]) :][ids]
    return np.bincount(slot[slot >= 0], minlength=slots)
