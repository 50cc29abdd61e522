"""Whole layers on the PTX machine, where each rank is a device that runs the router kernels and the persistent kernel.

This module fills the jobs itself, so that kernels are tested without the host's code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from kept_ptx import ptx

import ptxsim
from aristos import reference
from aristos.config import MoEConfig
from aristos.engine import codes, schema, words
from aristos.engine import job as builder
from aristos.engine.layout import StateLayout, lines, local_bytes
from aristos.host.nodes import Nodes
from aristos.kernels.common import activations
from aristos.kernels.common.scores import job_words
from aristos.kernels.cuda import catalogue, router_job
from aristos.kernels.cuda import router as r
from aristos.kernels.cuda.gemm import TILES
from aristos.kernels.cuda.pack import interleaved, narrow, outputs, pack, pack_bias, widen
from aristos.kernels.cuda.tile import BYTES
from aristos.layer.collective import shape_of, widths
from aristos.placement import Placement
from aristos.substrate.cuda import persistent as substrate
from aristos.substrate.standing import describe
from aristos.substrate.windows import EngineMemory, readers
from ptxsim import isa

MOST_ROWS = 256  # the most rows of a tile
SMALL = MoEConfig(hidden=32, ffn=48, experts=4, top_k=2, activation="silu", gated=True, bias=True, max_tokens=32)


@dataclass
class Layers:
    """Ranks of one machine and a layer on them.

    tokens: their number on each rank. grid: blocks of each rank. ring: rows of a ring, None for the default. tile: None
    for the first of TILES[kind]. timeout: nanoseconds. limit: warp instructions after which a run counts as stuck.
    given: (ids, weights) of each rank, None if the router chooses. counted: whether kernels keep their counters.
    """

    cfg: MoEConfig = SMALL
    kind: str = "f32"
    tile: Any = None
    tokens: tuple[int, ...] = (13, 20)
    grid: int = 2
    ring: int | None = None
    seed: int = 0
    check: bool = True
    placement: Any = None
    merge: int = 0
    timeout: int = 1 << 50
    limit: int = 1 << 40
    given: Any = None
    counted: bool = False
    machine: Any = None
    ranks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = len(self.tokens)
        self.tile = self.tile or TILES[self.kind][0]
        self.machine = ptxsim.Machine(devices=world, seed=self.seed, check=self.check, limit=self.limit)
        self.held = Placement(self.placement, self.cfg.experts, world)
        shape = shape_of(world, self.held, **widths(self.cfg))
        self.shape = replace(shape, ring_rows=self.ring or shape.ring_rows)
        self.weights = reference.weights(self.cfg)
        self._places()
        self.windows = [
            self.machine.device(p).array(np.zeros(local_bytes(self.shape, self.nodes, p) // 4, np.int32))
            for p in range(world)
        ]
        cfg, tile = self.cfg, self.tile
        self.runs = substrate.column_split_runs(tile, cfg.hidden, cfg.ffn, 0, cfg.gated, self.grid)
        self.tables = StateLayout(self.shape, self.grid, MOST_ROWS, self.runs["runs"])
        self.ranks = [self.make_rank(me) for me in range(world)]

    def _places(self) -> None:
        self.nodes = Nodes.split(len(self.tokens))

    def make_rank(self, me: int) -> Rank:
        return Rank(self, me)

    def run(self, calls: int = 1, ranks: Any = None) -> list[np.ndarray]:
        """Let all ranks, or the given ones, make `calls` calls. Returns every rank's y as float32.

        Fails if the machine reports anything.
        """
        for rank in self.ranks if ranks is None else ranks:
            for _ in range(calls):
                rank.launch()
        reports = self.machine.run()
        assert not reports, "\n".join(str(report) for report in reports[:8])
        return [widen(rank.y.copy_to_host(), self.kind) for rank in self.ranks]

    def expected(self) -> list[np.ndarray]:
        """The float64 reference with the rounded weights that the kernels read."""
        rounded = {
            name: widen(narrow(value, self.kind), self.kind) if name in ("up", "down", "gate") else value
            for name, value in self.weights.items()
            if name != "router"
        }
        found = []
        for rank in self.ranks:
            ids, weights = rank.ids.copy_to_host(), rank.combine.copy_to_host()
            found.append(reference.moe(self.cfg, rank.x, ids=ids, weights=weights, **rounded))
        return found


class Rank:
    """One rank's arrays, its job and its launches."""

    def __init__(self, layers: Layers, me: int) -> None:
        self.layers, self.me, self.kept = layers, me, []
        self.device = layers.machine.device(me)
        cfg, kind, k = layers.cfg, layers.kind, layers.cfg.top_k
        count = layers.tokens[me]
        x = narrow(np.random.default_rng(100 + me).standard_normal((count, cfg.hidden), dtype=np.float32), kind)
        self.x = widen(x, kind)
        self.y = self.device.array(np.zeros_like(x))
        self.given = layers.given[me] if layers.given else None
        ids, weights = self.given or (np.zeros((count, k), np.int64), np.zeros((count, k), np.float32))
        self.ids, self.combine = self.device.array(ids), self.device.array(weights)
        self.state = self._state()
        job = self._job(layers)
        self.x_at = self.put(x)
        self.routed_as = r.kind_of_rows(layers.kind)
        self._weights(job)
        builder.leave_out(job, schema.CUDA, schema.TAPE, schema.EVENTS, schema.BACKWARD, schema.LANDING)
        builder.check(job, schema.CUDA, 0, later=(schema.START, schema.CALL))
        self.job, self.routing = self.device.array(job), self.device.array(self._routing(count))

    def standing(self, state: np.ndarray) -> str:
        """The text of `standing.describe` for a state of this rank."""
        job, memory = self.job.copy_to_host(), self.layers.machine.memory

        def line(peer: int, word: int) -> int:
            at = int(state[job[words.T_LINE_FROM] + peer]) + 8 * word - isa.GLOBAL_START
            return int(memory.data[at : at + 8].view(np.int64)[0])

        return describe(job, state, int(self.lock.copy_to_host()[0]), line)

    def put(self, values: np.ndarray) -> int:
        """Copy an array to this rank's memory; returns its address."""
        array = self.device.array(np.ascontiguousarray(values))
        self.kept.append(array)
        return array.ptr

    def _zeros(self, shape: Any, dtype: Any) -> Any:
        return self.device.array(np.zeros(shape, dtype))

    def _state(self) -> Any:
        layers = self.layers
        base = [window.ptr for window in layers.windows]
        group: Any = SimpleNamespace(
            rank=self.me,
            world=len(layers.tokens),
            nodes=layers.nodes,
            local_window=lambda n: SimpleNamespace(base=base),
        )
        state = np.zeros(layers.tables.words, np.int64)
        EngineMemory(group, layers.shape).fill(state, layers.tables.starts)
        return self.device.array(state)

    def _job(self, layers: Layers) -> np.ndarray:
        cfg, shape, held = layers.cfg, layers.shape, layers.held
        tile, world = layers.tile, len(layers.tokens)
        job = np.zeros(builder.size(cfg.experts, world), np.int64)
        builder.fill_placement(job, held.slots_for(self.me), held.start)
        nbytes = substrate.run_scratch(layers.runs, tile, BYTES[layers.kind] * cfg.hidden)
        scratch, lock, abort = self.device.empty(nbytes // 4, np.int32), *(self._zeros(1, np.int64) for _ in range(2))
        self.scratch, self.lock, self.abort = scratch, lock, abort
        builder.fill_engine(
            job,
            schema.CUDA,
            shape,
            layers.tables,
            rank=self.me,
            world=world,
            all_workers=layers.grid,
            return_stride=lines(BYTES[layers.kind] * cfg.hidden),
            merge_polls=4,
            layout=0,
            scratch=scratch.ptr,
            lock=lock.ptr,
            wire=0,
            state=self.state.ptr,
            abort=abort.ptr,
            **readers(layers.nodes, self.me),
            **self._remote(),
        )
        builder.fill(
            job,
            schema.TILE,
            schema.CUDA,
            workers=layers.grid,
            tile=tile.m,
            batch=tile.m,
            run_rows=tile.m,
            merge_rows=layers.merge,
            **layers.runs,
        )
        builder.fill_some(
            job,
            schema.OBJECT,
            schema.CUDA,
            held=held.held[self.me],
            computed=held.held[self.me],
            experts=cfg.experts,
            top_k=cfg.top_k,
            hidden=cfg.hidden,
            ffn=cfg.ffn,
            object=1,
            row_bytes=BYTES[layers.kind] * cfg.hidden,
            timeout_ns=layers.timeout,
            absent_ns=10 * layers.timeout,
            activation=activations.word(cfg.activation, cfg.limit),
        )
        builder.fill(job, schema.KIND, schema.CUDA, layer=0, mode=codes.MODE_LAYER)
        return job

    def _remote(self) -> dict[str, int]:
        """The words of the job that are about other nodes."""
        return {"remote": 0, "bundle_pairs": 0, "mirror": 0, "mirror_bytes": 0}

    def _weights(self, job: np.ndarray) -> None:
        cfg, kind, w = self.layers.cfg, self.layers.kind, self.layers.weights
        mine = self.layers.held.mine(self.me)
        gate = w["gate"] if cfg.gated else w["up"]
        ups = [pack(interleaved(w["up"][e], gate[e]) if cfg.gated else w["up"][e], kind) for e in mine]
        downs = [pack(w["down"][e], kind) for e in mine]
        sides: list[Any] = [None] * len(mine)
        if cfg.bias and cfg.gated:
            sides = [interleaved(w["up_bias"][e][None], w["gate_bias"][e][None])[0] for e in mine]
        elif cfg.bias:
            sides = [w["up_bias"][e] for e in mine]
        up_biases = [pack_bias(side, outputs(up)) for side, up in zip(sides, ups)]
        down_biases = [
            pack_bias(w["down_bias"][e] if cfg.bias else None, outputs(down)) for e, down in zip(mine, downs)
        ]
        found = {}
        for name, parts in (("up", ups), ("down", downs), ("up_bias", up_biases), ("down_bias", down_biases)):
            found[name] = self.put(np.stack(parts)) if parts else 0
            found[f"{name}_step"] = parts[0].nbytes if parts else 0
        builder.fill_some(job, schema.WEIGHTS, schema.CUDA, loaded=1, gated=cfg.gated, **found)

    def _routing(self, count: int) -> np.ndarray:
        """The router's job."""
        layers, cfg = self.layers, self.layers.cfg
        slots = layers.held.slots
        starts = layers.tables.starts
        scratch = self.device.empty(r.scratch_bytes(max(1, count), cfg.experts, slots) // 4, np.int32)
        self.kept.append(scratch)

        def state(word: int) -> int:
            return self.state.ptr + 8 * word

        return router_job.new_job(
            hidden=cfg.hidden,
            router=self.put(r.pack_router(layers.weights["router"])),
            experts=cfg.experts,
            top_k=cfg.top_k,
            choices=cfg.top_k,
            **job_words(cfg.router),
            slot_of=self.put(layers.held.slots_for(self.me)),
            slots=slots,
            offset=state(starts[words.T_OFFSET]),
            token=state(starts[words.T_TOKEN]),
            position=state(starts[words.T_POSITION]),
            logits=0,
            select_bias=0,
            shared_sigmoid=0,
            weighted=0,
            kept_weights=0,
            status=state(words.STATUS),
            unbegun=state(words.UNBEGUN),
            scratch=scratch.ptr,
        )

    def launch(self) -> None:
        """Queue a call: begin, route, place, layer."""
        layers, cfg, tile = self.layers, self.layers.cfg, self.layers.tile
        count, slots = layers.tokens[self.me], layers.held.slots
        given = (self.ids.ptr, self.combine.ptr) if self.given is not None else (0, 0)
        stride = BYTES[layers.kind] * cfg.hidden
        opening = substrate.opening(
            job_address=self.job.ptr,
            state_address=self.state.ptr,
            routing_address=self.routing.ptr,
            x=self.x_at,
            x_stride=stride,
            tokens=count,
            y=self.y.ptr,
            ids=self.ids.ptr,
            weights=self.combine.ptr,
            status=codes.OK,
            router_x=self.x_at,
            router_x_stride=stride,
            given_ids=given[0],
            given_weights=given[1],
            most=0,
        )
        self._start(substrate.BEGIN, 1, 64, 0, *opening)
        steps = catalogue.route_kernels()
        if count:
            shared = r.route_shared(slots, self.routed_as)
            route = steps[r.route(self.routed_as).__name__]
            self._start(route, r.blocks(count), r.THREADS, shared, self.routing.ptr)
        place = max(1, r.blocks(count)), r.THREADS, r.place_shared(slots, cfg.top_k)
        self._start(steps["place"], *place, self.routing.ptr)
        kernel = substrate.layer_kernel(tile, layers.counted)
        self._start(kernel, layers.grid, tile.threads, tile.shared_bytes, self.job.ptr, self.state.ptr)

    def _start(self, kernel: catalogue.Kernel, grid: int, threads: int, shared: int, *args: int) -> None:
        """Queue a shipped kernel. Its PTX is kept on disk, because other tests compile the same kernel."""
        text, entry = ptx(kernel, self.layers.machine.arch)
        self.device.launch(text, grid, threads, *args, shared=shared, entry=entry)
