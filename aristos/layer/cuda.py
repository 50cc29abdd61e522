"""A layer on a GPU: the same calls as on CPUs, for host arrays and for arrays in GPU memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import MoEConfig, whole
from ..engine import codes, schema, words
from ..errors import InputError, PeerInputError
from ..kernels.common import activations
from ..kernels.common.scores import rule
from ..kernels.cuda import router
from ..kernels.cuda.tile import BYTES, Tile
from ..primitives import arrays
from ..substrate.cuda import persistent
from ..substrate.cuda.runtime import CudaRuntime, timeout_ns
from ..substrate.runtime import Runtime
from . import device_arrays, streams
from .arguments import (
    CallArguments,
    capacity,
    choices,
    explain_ids,
    not_finite,
    on_input,
    routed_outside,
    routing_arrays,
    weight_arrays,
)
from .backend import Backend, Settings
from .collective import Membership, Needs, status_of, why
from .cuda_weights import DeviceWeights
from .device_arrays import KINDS
from .routing import Routing, routing_of
from .stats import CallStats, call_stats

MOST_SMS = 1 << 20
NO_JOB = np.zeros(0, np.int64)  # for `Runtime.failing`: the job is on the GPU


@dataclass
class DeviceCall:
    """One call between its checks and its result: addresses on the GPU, and the host's arrays.

    router_x: rows that the router reads, 0: those of x. ids, weights: what the engine reads, with the shared expert's
    column, of `pitch` columns; given_ids, given_weights: the routing from outside, or 0. wants_routing: the routing is
    copied to the host, so the call ends before its result is returned. waits: the result is a host array, so the call
    ends before it is returned. stream: that it is queued on. before: streams that it waits for; after: streams that
    wait for it. keeps: arrays that must stay alive.
    """

    kind: str
    layer: int = 0
    slots: int = 0
    pitch: int = 0
    x: int = 0
    x_stride: int = 0
    router_x: int = 0
    router_x_stride: int = 0
    lead: tuple[int, ...] = ()
    wants_routing: bool = False
    tokens: int = 0
    y: int = 0
    ids: int = 0
    weights: int = 0
    given_ids: int = 0
    given_weights: int = 0
    capacity: int = 0
    status: int = codes.OK
    routed: bool = False
    stream: int = 0
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    waits: bool = True
    result: Any = None
    host_out: np.ndarray | None = None
    host_ids: np.ndarray | None = None
    host_weights: np.ndarray | None = None
    error: Exception | None = None
    keeps: tuple[Any, ...] = ()


class CudaBackend(Backend):
    """See `Backend`. A call with arrays in GPU memory is queued on a stream and returns before it has run."""

    def __init__(self, settings: Settings, member: Membership) -> None:
        super().__init__(settings, member)
        assert isinstance(member.runtime, CudaRuntime)
        self._runtime = member.runtime
        self._kind = KINDS[self.cfg.dtype]
        self._blocks = _blocks(self.cfg, self._runtime, settings.sms)
        self._runtime.prepare(self._tiles())
        self._buffers: dict[str, int] = {}  # name -> address of this object's memory on the GPU
        self._jobs: dict[tuple[int, int], tuple[int, int]] = {}  # (layer, tile rows) -> addresses on the GPU
        self._host_jobs: dict[tuple[int, int], np.ndarray] = {}
        self._filled = [-1] * settings.layers  # the runtime's version that a layer's jobs were filled for
        self._keeps_logits = False  # until a call wants its routing, the router writes none
        self._last: tuple[int, int] | None = None  # key of the last call's job
        self._started = 0.0  # when the last call was
        self._queued = self._runtime.device.event(timed=False)  # what other streams have queued before a call

    @staticmethod
    def check(cfg: MoEConfig, schedule: str, threads: int | None, sms: int | None = None) -> None:
        if sms is not None:
            whole("sms", sms, MOST_SMS, "None or a positive int")
        nbytes = BYTES[KINDS[cfg.dtype]] * cfg.hidden
        if nbytes % device_arrays.LINE:
            raise InputError(
                f"hidden must make rows of whole {device_arrays.LINE} bytes on a GPU, got hidden={cfg.hidden}"
                f" with dtype={cfg.dtype!r}: {nbytes} bytes"
            )
        if schedule != "fused":
            raise InputError(f"backend='cuda' has only schedule='fused', got {schedule!r}")
        if threads is not None:
            raise InputError(
                f"threads applies only to backend='cpu', got {threads!r}: on CUDA the grid size comes from occupancy"
            )

    @staticmethod
    def needs(cfg: MoEConfig, runtime: Runtime | None, sms: int | None = None) -> Needs:
        assert isinstance(runtime, CudaRuntime)
        runtime.idle()  # kernels are loaded
        blocks = _blocks(cfg, runtime, sms)
        tiles = persistent.layer_tiles(KINDS[cfg.dtype], runtime.device.arch)
        runs = [
            persistent.column_split_runs(tile, cfg.hidden, cfg.ffn, cfg.shared_ffn, cfg.gated, blocks[tile.m])
            for tile in tiles
        ]
        row_bytes = BYTES[KINDS[cfg.dtype]] * cfg.hidden
        shared = max(persistent.run_scratch(run, tile, row_bytes) for run, tile in zip(runs, tiles))
        return Needs(shared_bytes=shared, workers=max(blocks.values()))

    def new_weights(self, layer: int) -> DeviceWeights:
        return DeviceWeights(self._runtime.device, self._kind, self.cfgs[layer], self.member.mine)

    def idle(self) -> None:
        self._runtime.idle()  # memory is allocated, and what a call may read is freed or overwritten

    def loaded(self, layer: int) -> None:
        self._filled[layer] = -1
        for tile in self._tiles():
            self._jobs_of(layer, tile)
        self._routing_buffers()

    def _slots(self, layer: int) -> int:
        """Copies of experts, with those of the shared one."""
        return self.member.placement.slots + self.member.world * bool(self.cfgs[layer].shared_ffn)

    def _routing_job(self, layer: int, slot_of: int) -> np.ndarray:
        """The job of the router kernels. slot_of: address of the engine's table on the GPU."""
        cfg, runtime, starts = self.cfgs[layer], self._runtime, self._runtime.tables.starts
        loaded = self.weights[layer]
        job = np.zeros(router.JOB_WORDS, np.int64)
        job[[router.HIDDEN, router.EXPERTS, router.TOP_K, router.CHOICES]] = (
            cfg.hidden,
            cfg.columns,
            choices(cfg),
            cfg.top_k,
        )
        job[router.LOGITS] = self._logits() if self._keeps_logits else 0
        job[[router.SCORE, router.RENORMALIZE]] = rule(cfg.router), cfg.router.renormalize
        job[router.SCALE] = np.float32(cfg.router.scale).view(np.int32)
        job[router.SLOTS], job[router.SLOT_OF] = self._slots(layer), slot_of
        for word, table in (
            (router.OFFSET, words.T_OFFSET),
            (router.TOKEN, words.T_TOKEN),
            (router.POSITION, words.T_POSITION),
        ):
            job[word] = runtime.state_at + 8 * starts[table]
        job[router.STATUS] = runtime.state_at + 8 * words.STATUS
        if loaded is not None:
            job[router.ROUTER], job[router.SELECT_BIAS] = loaded.router or 0, loaded.select_bias
            job[router.SHARED_SIGMOID] = loaded.shared_sigmoid
        if on_input(cfg):
            job[router.WEIGHTED] = self._buffer("weighted", BYTES[self._kind] * cfg.hidden * cfg.max_tokens)
            job[router.KEPT_WEIGHTS] = self._kept_weights()
        scratch = max(self._router_scratch(layer) for layer in range(len(self.cfgs)))
        job[router.SCRATCH] = self._buffer("scores", scratch)
        return job

    def _router_scratch(self, layer: int) -> int:
        cfg = self.cfgs[layer]
        limited = choices(cfg) if capacity(cfg, cfg.max_tokens) else 0
        return router.scratch_bytes(cfg.max_tokens, cfg.columns, self._slots(layer), limited)

    def _kept_weights(self) -> int:
        """Where the weights of tokens are, if these are weighted and not outputs."""
        return self._buffer("kept weights", 4 * self.cfg.max_tokens)

    def _buffer(self, name: str, nbytes: int) -> int:
        """Address of GPU memory of this object, allocated once."""
        if name not in self._buffers:
            self._buffers[name] = self._runtime.device.allocate(max(1, nbytes))
        return self._buffers[name]

    def _jobs_of(self, layer: int, tile: Tile) -> tuple[int, int]:
        """GPU addresses of the job and of the router's job, rebuilt when weights or windows have changed."""
        runtime = self._runtime
        if self._filled[layer] != runtime.version:
            runtime.idle()
            self._drop_jobs(layer)
            self._filled[layer] = runtime.version
        key = (layer, tile.m)
        if key not in self._jobs:
            cfg = self.cfgs[layer]
            job = self.member.new_job(
                schema.CUDA,
                hidden=cfg.hidden,
                ffn=cfg.ffn,
                experts=cfg.columns,
                top_k=choices(cfg),
                choices=cfg.top_k,
                shared=len(self.member.mine) + 1 if cfg.shared_ffn else 0,
                shared_ffn=cfg.shared_ffn,
                identity=cfg.identity_experts,
                row_bytes=BYTES[self._kind] * cfg.hidden,
                activation=activations.word(cfg.activation, cfg.limit, cfg.limit_after),
                timeout_ns=timeout_ns(self.settings.timeout),
            )
            job[words.LAYER] = layer
            runtime.fill(job)
            if self.weights[layer] is not None:
                self.weights[layer].fill(job)
            runtime.fill_tile(job, tile, self._blocks[tile.m], cfg.gated)
            self._host_jobs[key], at = job, self._copied(job)
            self._jobs[key] = at, self._copied(self._routing_job(layer, at + 8 * int(job[words.SLOT_OF])))
        return self._jobs[key]

    def _tiles(self) -> list[Tile]:
        return persistent.layer_tiles(self._kind, self._runtime.device.arch)

    def _routing_buffers(self) -> tuple[int, int]:
        """Where the router writes ids and weights."""
        pairs = max(choices(cfg) for cfg in self.cfgs) * self.cfg.max_tokens
        return self._buffer("ids", 8 * pairs), self._buffer("weights", 4 * pairs)

    def _copied(self, job: np.ndarray) -> int:
        at = self._runtime.device.allocate(job.nbytes)
        self._runtime.device.copy_in(at, job)
        return at

    def _drop_jobs(self, layer: int) -> None:
        for key in [key for key in self._jobs if key[0] == layer]:
            for at in self._jobs.pop(key):
                self._runtime.device.free(at)

    # ------------------------------------------------------------ calls

    def _tile(self, tokens: int) -> Tile:
        """The tile for an expert's rows if the other ranks bring as many tokens."""
        rows = tokens * self.member.world * self.cfg.top_k / self.cfg.experts
        return persistent.layer_tile(self._kind, rows, self._runtime.device.arch)

    def new_call(self) -> DeviceCall:
        return DeviceCall(self._kind, stream=self._runtime.device.stream)

    def take(self, call: DeviceCall, given: CallArguments, copy: bool) -> None:
        gpu, stream = self._runtime.device, given.stream
        x, ids, weights, out = given.x, given.ids, given.weights, given.out
        call.stream, call.before = streams.choose(stream, (x, out, ids, weights, given.router_x), gpu.stream)
        if stream is None:
            call.after = call.before
        self._take_arrays(call, given)
        call.wants_routing = given.return_routing
        if call.wants_routing and not self._keeps_logits:
            self._keeps_logits, self._filled = True, [-1] * len(self.cfgs)
        if gpu.capturing(call.stream):
            if call.wants_routing:
                raise InputError("return_routing cannot be captured in a graph: it copies to the host")
            if call.waits or call.host_ids is not None:
                raise InputError("a call that is captured in a graph needs all its arrays in GPU memory")
            if self._filled[call.layer] != self._runtime.version:
                raise InputError("make a call outside the capture first: another layer has changed this one's memory")
            call.before, call.after = [], []  # a capture holds no other stream's work

    def _take_arrays(self, call: DeviceCall, given: CallArguments) -> None:
        lead = call.lead = self._take_x(call, given.x)
        if call.tokens > self.cfg.max_tokens:
            raise InputError(f"x has {call.tokens} tokens, more than max_tokens={self.cfg.max_tokens}")
        self._take_routing(call, given.ids, given.weights, lead)
        self._take_router_x(call, given.router_x)
        self._take_y(call, given.x, given.out, lead)

    def _take_router_x(self, call: DeviceCall, router_x: Any) -> None:
        if router_x is None:
            return
        if call.routed:
            raise InputError("router_x needs the layer's router: give either router_x, or ids and weights")
        by = DeviceCall(self._kind, stream=call.stream)
        lead = self._take_x(by, router_x, "router_x")
        if lead != call.lead:
            wanted, got = [*call.lead, self.cfg.hidden], [*lead, self.cfg.hidden]
            raise InputError(f"router_x must have the shape of x {wanted}, got {got}")
        if by.waits != call.waits:
            where = "in main memory" if call.waits else "in GPU memory"
            raise InputError(f"router_x must lie {where} as x does, got {type(router_x).__name__}")
        call.router_x, call.router_x_stride = by.x, by.x_stride
        call.keeps += by.keeps

    def refuse(self, call: DeviceCall) -> None:
        call.status, call.tokens, call.given_ids, call.host_ids = status_of(call.error), 0, 0, None

    def _take_x(self, call: DeviceCall, x: Any, name: str = "x") -> tuple[int, ...]:
        cfg = self.cfg
        nbytes = BYTES[self._kind] * cfg.hidden
        found = device_arrays.on_device(name, x, call.stream)
        if found is not None:
            self._check_device(name, found)
            lead, call.x_stride = device_arrays.rows(name, found, cfg.hidden, cfg.dtype)
            call.x, call.tokens, call.waits = found.address, int(np.prod(lead, dtype=np.int64)), False
            call.keeps = (found,)
            return lead
        given = arrays.view(name, x)
        wanted = "float32" if cfg.dtype == "tf32" else cfg.dtype
        if given.dtype.name != wanted:
            raise arrays.wrong_dtype(name, given.dtype, wanted)
        flat, lead = arrays.rows(name, given, cfg.hidden, given.dtype.name)
        call.tokens, call.x_stride = len(flat), nbytes
        if call.tokens <= cfg.max_tokens:
            call.x = self._buffer(name, nbytes * cfg.max_tokens)
            self._runtime.device.copy_in(call.x, np.ascontiguousarray(flat).view(np.uint8), call.stream)
        return lead

    def _take_routing(self, call: DeviceCall, ids: Any, weights: Any, lead: tuple[int, ...]) -> None:
        cfg = self.cfgs[call.layer]
        call.ids, call.weights = self._routing_buffers()
        if not routed_outside(ids, weights, call.layer, self.weights[call.layer].router is not None):
            call.capacity = capacity(cfg, call.tokens)
            return
        call.routed, shape = True, (*lead, cfg.top_k)
        given = ("ids", ids), ("weights", weights)
        found = [device_arrays.on_device(name, value, call.stream) for name, value in given]
        if found[0] is not None and found[1] is not None:
            self._check_device("ids", found[0])
            self._check_device("weights", found[1])
            call.given_ids = device_arrays.whole("ids", found[0], shape, "int64")
            call.given_weights = device_arrays.whole("weights", found[1], shape, "float32")
            call.keeps += tuple(found)
        else:
            call.host_ids, call.host_weights = routing_arrays(ids, shape), weight_arrays(weights, shape)
            pairs = cfg.top_k * cfg.max_tokens
            call.given_ids, call.given_weights = self._buffer("given ids", 8 * pairs), self._buffer("given", 4 * pairs)
        if not cfg.shared_ffn and not on_input(cfg):  # then the engine reads them in place
            call.ids, call.weights = call.given_ids, call.given_weights

    def _take_y(self, call: DeviceCall, x: Any, out: Any, lead: tuple[int, ...]) -> None:
        cfg, shape = self.cfg, (*lead, self.cfg.hidden)
        nbytes = BYTES[self._kind] * cfg.hidden
        if call.waits:  # x is a host array
            given = arrays.view("x", x)
            if out is None:
                call.result = np.empty(shape, given.dtype)
            else:
                arrays.check_out(out, shape, given.dtype, given, call.host_ids, call.host_weights)
                call.result = out
            call.host_out, call.y = call.result, self._buffer("y", nbytes * cfg.max_tokens)
            return
        if out is None:
            out = _empty(x, shape, cfg.dtype)
        found = device_arrays.on_device("out", out, call.stream)
        if found is None:
            raise InputError(f"out must lie in GPU memory as x does, got {type(out).__name__}")
        device_arrays.writable("out", found)
        got, step = device_arrays.rows("out", found, cfg.hidden, cfg.dtype)
        if got != lead or step != nbytes:
            raise InputError(f"out must be contiguous with shape {list(shape)}, got {list(found.shape)}")
        self._check_device("out", found)
        for read in call.keeps:
            if device_arrays.overlap(found, read):
                raise InputError("out must not overlap x, ids or weights: they are read while outputs are written")
        call.result, call.y, call.keeps = out, found.address, (*call.keeps, found)

    def _check_device(self, name: str, found: device_arrays.DeviceRows) -> None:
        mine = self.device
        if found.device is not None and found.device != mine:
            raise InputError(
                f"{name} must lie on device {mine}, this rank's GPU (`device` of the layer), got device {found.device}"
            )

    @property
    def device(self) -> int:
        return int(self._runtime.device.ordinal)

    def run(self, call: DeviceCall) -> float:
        runtime = self._runtime
        started = self._started = time.perf_counter()
        tile = self._tile(call.tokens)
        call.slots, call.pitch = self._slots(call.layer), choices(self.cfgs[call.layer])
        with runtime.failing(NO_JOB):
            job, routing = self._jobs_of(call.layer, tile)
            self._last = (call.layer, tile.m)
            for stream in call.before:
                runtime.device.record(self._queued, stream)
                runtime.device.wait(call.stream, self._queued)
            if call.host_ids is not None:
                runtime.follow(call.stream)  # a call in flight may read the buffers
                runtime.device.copy_in(call.given_ids, call.host_ids, call.stream)
                runtime.device.copy_in(call.given_weights, call.host_weights, call.stream)
            runtime.launch(tile, self._blocks[tile.m], job, routing, call, call.stream)
            for stream in call.after:
                runtime.follow(stream)
            if call.waits or call.error is not None:
                runtime.outcome()
                if call.host_out is not None and call.host_out.size:
                    runtime.device.copy_out(call.host_out.reshape(-1).view(np.uint8), call.y, call.stream)
        return time.perf_counter() - started

    def result(self, call: DeviceCall, seconds: float, return_stats: bool) -> Any:
        runtime = self._runtime
        try:
            if call.error is not None:
                raise call.error
            if call.waits or return_stats or call.wants_routing:
                self._raise_status(call)
            found: tuple[Any, ...] = (call.result,)
            if return_stats:
                found += (self._stats(call, seconds),)
            if call.wants_routing:
                found += (self._routing_of(call),)
            return found if len(found) > 1 else call.result
        finally:
            runtime.open = False

    def _stats(self, call: DeviceCall, seconds: float) -> CallStats:
        runtime = self._runtime
        runtime.read_all()
        seconds = max(seconds, time.perf_counter() - self._started)
        assert self._last is not None
        job = self._host_jobs[self._last]
        job[words.TOKENS], job[words.EPOCH] = call.tokens, runtime.state[words.CALLS]
        job[words.CAPACITY] = call.capacity
        self.totals.add(job, runtime.state, runtime.counted, seconds)
        return call_stats(job, runtime.state, runtime.counted, schedule=self.settings.schedule, seconds=seconds)

    def _routing_of(self, call: DeviceCall) -> Routing:
        """The routing of a call that has ended, copied to the host."""
        gpu, cfg = self._runtime.device, self.cfgs[call.layer]
        shape, logits = (*call.lead, cfg.top_k), None
        kept, k = on_input(cfg), cfg.top_k
        ids = np.empty((call.tokens, call.pitch), np.int64)
        weights = np.empty((call.tokens, 1 if kept else call.pitch), np.float32)
        if call.tokens:
            gpu.copy_out(ids.reshape(-1), call.ids)
            gpu.copy_out(weights.reshape(-1), self._kept_weights() if kept else call.weights)
        if not call.routed:
            logits = np.empty((*call.lead, cfg.columns), np.float32)
            if call.tokens:
                gpu.copy_out(logits.reshape(-1), self._logits())
        return routing_of(ids[:, :k].reshape(shape), weights[:, :k].reshape(shape), logits, cfg.columns)

    def _logits(self) -> int:
        """Where the router writes the scores that callers want to have."""
        return self._buffer("logits", 4 * self.cfg.max_tokens * max(cfg.columns for cfg in self.cfgs))

    def _raise_status(self, call: DeviceCall) -> None:
        """Raise what this rank or a peer refused in a call that has ended."""
        runtime = self._runtime
        if not call.waits:
            with runtime.failing(NO_JOB):
                runtime.outcome()
        state = runtime.state
        status = int(state[words.STATUS])
        if status != codes.OK:
            raise InputError(self._own_problem(call, status))
        if self.member.world > 1:
            self.member.raise_peer_problem({words.T_PEER_STATUS: runtime.tables.starts[words.T_PEER_STATUS]})
        if call.waits or state[words.KEPT_STATUS] == codes.OK:
            return
        reason = why(int(state[words.KEPT_STATUS]))
        if state[words.KEPT_RANK] == self.member.rank:
            raise InputError(f"an earlier call since the last synchronize() was refused here ({reason})")
        raise PeerInputError(f"rank {int(state[words.KEPT_RANK])} refused an earlier call's input ({reason})")

    def _own_problem(self, call: DeviceCall, status: int) -> str:
        """Why the GPU has refused this rank's routing."""
        if call.host_ids is None:
            what = "ids must be in 0..E-1 or -1, none twice in a token" if status == codes.BAD_IDS else None
            given = "weights of choices taken" if call.routed else "router scores"
            if self.cfgs[call.layer].shared_sigmoid:
                given += ", and x times shared_sigmoid,"
            return what or f"{given} must be finite, got NaN or infinity"
        chosen = call.host_ids.reshape(-1, self.cfg.top_k)
        if status == codes.BAD_IDS:
            return explain_ids(chosen, self.cfgs[call.layer].columns)
        assert call.host_weights is not None
        problem = not_finite(call.host_weights.reshape(chosen.shape), chosen >= 0)
        return problem or "x times shared_sigmoid must be finite, got NaN or infinity: look for it in both"

    def synchronize(self) -> None:
        runtime = self._runtime
        if self._last is None:
            return
        call = DeviceCall(self._kind, waits=False)
        runtime.refuse_open()
        self._raise_status(call)

    def close(self) -> None:
        if self._runtime.broken is None:
            self._runtime.idle()
            for layer, loaded in enumerate(self.weights):
                self._drop_jobs(layer)
                if loaded is not None:
                    loaded.free()
            for at in self._buffers.values():
                self._runtime.device.free(at)
        self._buffers = {}
        super().close()


def _blocks(cfg: MoEConfig, runtime: CudaRuntime, sms: int | None) -> dict[int, int]:
    """Blocks of the persistent kernel that a rank launches, by the rows of its tile."""
    tiles = persistent.layer_tiles(KINDS[cfg.dtype], runtime.device.arch)
    return {tile.m: runtime.blocks.of(tile, sms) for tile in tiles}


def _empty(x: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array in GPU memory, of the library that x belongs to."""
    if type(x).__module__.partition(".")[0] == "torch":
        return x.new_empty(shape)
    cupy = sys.modules.get("cupy")
    if cupy is None or dtype == "bfloat16":
        raise InputError("give out=, an array in GPU memory: CuPy is not in use, or has no such dtype")
    return cupy.empty(shape, "float32" if dtype == "tf32" else dtype)
