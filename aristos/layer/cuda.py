"""A layer on a GPU: the same calls as on CPUs, for host arrays and for arrays in GPU memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..config import MoEConfig, whole
from ..engine import codes, words
from ..engine import job as jobs
from ..errors import EnvironmentProblem, InputError, PeerInputError
from ..kernels.cuda.tile import BYTES, Tile
from ..routing import Routing, routing_of
from ..row_types import KINDS
from ..substrate.cuda import persistent
from ..substrate.cuda.runtime import NO_JOB, CudaRuntime
from ..substrate.runtime import Runtime
from . import device_arrays, streams
from .arguments import CallArguments, choices, on_input, routing_problem
from .backend import Backend, Settings
from .collective import Membership, Needs, status_of, why
from .cuda_arguments import DeviceArguments, DeviceCall
from .cuda_jobs import LayerJobs, blocks_of
from .cuda_weights import DeviceWeights, packed_bytes
from .in_flight import InFlight
from .stats import CallStats, call_stats

MOST_SMS = 1 << 20


class CudaBackend(Backend):
    """See `Backend`. A call with arrays in GPU memory is queued on a stream and returns before it has run."""

    name = "cuda"

    def __init__(self, settings: Settings, member: Membership) -> None:
        super().__init__(settings, member)
        assert isinstance(member.runtime, CudaRuntime)
        self._runtime = member.runtime
        self._kind = KINDS[self.cfg.dtype]
        self._jobs = LayerJobs(settings, member, self._runtime, self.weights)
        self._arguments = DeviceArguments(self._runtime, self.cfgs, self._jobs, self.weights)
        self._runtime.prepare(self._jobs.tiles)
        self._last: tuple[int, int] | None = None  # key of the last call's job in LayerJobs.host
        self._started = 0.0  # when the last call started
        # an event, recorded after the work that other streams have queued before a call
        self._queued = self._runtime.device.event(timed=False)
        self._counted = False  # whether calls use the kernels that keep workers' counters
        self._in_flight = InFlight(self._runtime.device)

    @staticmethod
    def check(cfg: MoEConfig, schedule: str, threads: int | None, sms: int | None = None) -> None:
        if sms is not None:
            whole("sms", sms, MOST_SMS, "None or a positive int")
        if cfg.packed is not None:
            raise InputError(f"backend='cuda' needs plain weights, got weight_dtype={cfg.packed.name!r}: leave it out")
        nbytes = BYTES[KINDS[cfg.dtype]] * cfg.hidden
        if nbytes % device_arrays.LINE:
            raise InputError(
                f"on a GPU the bytes of a row must be a multiple of {device_arrays.LINE}, got {nbytes} from"
                f" hidden={cfg.hidden} and dtype={cfg.dtype!r}: choose another hidden"
            )
        if schedule != "fused":
            raise InputError(f"backend='cuda' has only schedule='fused', got {schedule!r}")
        if threads is not None:
            raise InputError(
                f"threads applies only to backend='cpu', got {threads!r}: on a GPU sms limits the number of blocks"
            )

    @staticmethod
    def needs(cfg: MoEConfig, runtime: Runtime | None, sms: int | None = None, train: bool = False) -> Needs:
        assert isinstance(runtime, CudaRuntime)
        runtime.idle()  # no call may be in flight while kernels are loaded, see `CudaDevice.allocate`
        blocks = blocks_of(cfg, runtime, sms)
        tiles = persistent.layer_tiles(KINDS[cfg.dtype], runtime.device.target)
        runs = [
            persistent.column_split_runs(tile, cfg.hidden, cfg.ffn, cfg.shared_ffn, cfg.gated, blocks[tile.m])
            for tile in tiles
        ]
        row_bytes = BYTES[KINDS[cfg.dtype]] * cfg.hidden
        shared = max(persistent.run_scratch(run, tile, row_bytes) for run, tile in zip(runs, tiles))
        return Needs(shared_bytes=shared, workers=max(blocks.values()))

    @staticmethod
    def packed_bytes(cfg: MoEConfig, count: int, copied: int | None) -> int:
        return packed_bytes(cfg, count)

    def new_weights(self, layer: int) -> DeviceWeights:
        return DeviceWeights(self._runtime.device, self._kind, self.cfgs[layer], self.member.mine)

    def idle(self) -> None:
        self._runtime.idle()  # memory will be allocated, and memory that a call may read will be freed or overwritten

    def loaded(self, layer: int) -> None:
        self._jobs.fill(layer)

    # ------------------------------------------------------------ calls

    def _tile(self, tokens: int) -> Tile:
        """The tile for an expert's rows, if every rank brings as many tokens as this one."""
        rows = tokens * self.member.world * self.cfg.top_k / self.cfg.experts
        return persistent.layer_tile(self._kind, rows, self._runtime.device.target)

    def new_call(self) -> DeviceCall:
        return DeviceCall(self._kind, stream=self._runtime.device.stream)

    def take_arguments(self, call: DeviceCall, given: CallArguments, copy: bool) -> None:
        gpu, stream = self._runtime.device, given.stream
        x, ids, weights, out = given.x, given.ids, given.weights, given.out
        call.stream, call.before = streams.choose(stream, (x, out, ids, weights, given.router_x), gpu.stream)
        if stream is None:
            call.after = call.before
        capturing = gpu.capturing(call.stream)
        if capturing:  # checked first, because a copy from the host, or memory allocated for it, would end the capture
            self._begin_captured(call)
            self._refuse_host_arrays(given)
            self._runtime.refuse_branch(call.stream)
        call.unordered = not capturing and streams.unordered(stream, (x, out, ids, weights, given.router_x))
        self._arguments.take_arguments(call, given)
        call.wants_routing = given.return_routing
        if call.wants_routing:
            self._jobs.keep_logits()
        if capturing:
            if not self._jobs.current(call.layer):
                raise InputError(
                    "the engine has allocated its GPU memory again since this layer's last call, and a capture cannot"
                    " prepare the layer for that memory: call the layer once outside the capture, then capture"
                )
            call.before, call.after = [], []  # a capture contains no work of other streams

    def _begin_captured(self, call: DeviceCall) -> None:
        """Capture the wait for earlier calls; raises InputError for a graph that cannot hold a call."""
        try:
            self._runtime.follow(call.stream, capturing=True)
            call.captured = True
        except EnvironmentProblem as why:
            call.nowhere = True
            raise InputError(str(why)) from why

    @staticmethod
    def _refuse_host_arrays(given: CallArguments) -> None:
        """Raise InputError for a call that cannot be captured in a graph, because it copies to or from the host."""
        if given.return_routing:
            raise InputError(
                "return_routing cannot be captured in a graph, because it copies to the host: leave it out"
            )
        for name in ("x", "out", "ids", "weights", "router_x"):
            value = getattr(given, name)
            if value is not None and not device_arrays.is_on_device(value):
                raise InputError(
                    f"a call that is captured in a graph needs all its arrays in GPU memory, got {name} as"
                    f" {type(value).__name__} in main memory"
                )

    def refuse(self, call: DeviceCall) -> None:
        call.status, call.tokens, call.given_ids, call.host_ids = status_of(call.error), 0, 0, None

    @property
    def device(self) -> int:
        return int(self._runtime.device.ordinal)

    def run_call(self, call: DeviceCall) -> float:
        runtime = self._runtime
        if call.nowhere:
            runtime.leave()
            return 0.0
        started = self._started = time.perf_counter()
        tile = self._tile(call.tokens)
        call.slots, call.pitch = self._jobs.slots(call.layer), choices(self.cfgs[call.layer])
        with runtime.failing(NO_JOB):
            job, routing = self._jobs.addresses_of(call.layer, tile)
            self._last = (call.layer, tile.m)
            runtime.running = self._jobs.host[self._last]
            for stream in call.before:
                runtime.device.record(self._queued, stream)
                runtime.device.wait(call.stream, self._queued)
            if call.host_ids is not None:
                runtime.follow(call.stream)  # a call in flight may read the buffers
                runtime.device.copy_in(call.given_ids, call.host_ids, call.stream)
                runtime.device.copy_in(call.given_weights, call.host_weights, call.stream)
            runtime.launch(tile, self._jobs.blocks[tile.m], job, routing, call, call.stream, self._counted)
            for stream in call.after:
                runtime.follow(stream)
            self._in_flight.drop_ended()
            if call.unordered and call.keeps:
                self._in_flight.keep(call.keeps, call.stream)
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
        job = self._jobs.host[self._last]
        jobs.update(job, tokens=call.tokens, epoch=runtime.state[words.CALLS], capacity=call.capacity)
        self.totals.add(job, runtime.state, runtime.counted, seconds)
        schedule = self.settings.schedule
        return call_stats(job, runtime.state, runtime.counted, schedule=schedule, seconds=seconds, y=call.host_out)

    def _routing_of(self, call: DeviceCall) -> Routing:
        """The routing of a call that has ended, copied to the host."""
        gpu, cfg = self._runtime.device, self.cfgs[call.layer]
        shape, logits = (*call.lead, cfg.top_k), None
        kept, k = on_input(cfg), cfg.top_k
        ids = np.empty((call.tokens, call.pitch), np.int64)
        weights = np.empty((call.tokens, 1 if kept else call.pitch), np.float32)
        if call.tokens:
            gpu.copy_out(ids.reshape(-1), call.ids)
            gpu.copy_out(weights.reshape(-1), self._jobs.kept_weights() if kept else call.weights)
        if not call.routed:
            logits = np.empty((*call.lead, cfg.columns), np.float32)
            if call.tokens:
                gpu.copy_out(logits.reshape(-1), self._jobs.logits())
        return routing_of(ids[:, :k].reshape(shape), weights[:, :k].reshape(shape), logits, cfg.columns)

    def _raise_status(self, call: DeviceCall) -> None:
        """Raise the error of a call that has ended, if this rank or a peer refused its input."""
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
            raise InputError(f"this rank refused its input of an earlier call since the last synchronize() ({reason})")
        raise PeerInputError(f"rank {int(state[words.KEPT_RANK])} refused its input of an earlier call ({reason})")

    def _own_problem(self, call: DeviceCall, status: int) -> str:
        """Why the GPU has refused this rank's routing."""
        cfg = self.cfgs[call.layer]
        if call.host_ids is not None and call.host_weights is not None:
            return routing_problem(call.host_ids, call.host_weights, cfg, status)
        if status == codes.BAD_IDS:
            return f"ids must be in -1..{cfg.columns - 1}, and a token may name each expert once at most"
        given = "the weights of all choices whose id is not -1" if call.routed else "router scores"
        if cfg.shared_sigmoid:
            given += ", and x times shared_sigmoid,"
        return f"{given} must be finite, got NaN or infinity"

    def synchronize(self) -> None:
        runtime = self._runtime
        if self._last is None:
            return
        call = DeviceCall(self._kind, waits=False)
        runtime.refuse_open()
        self._raise_status(call)

    def timeline(self, on: bool, events: int) -> None:
        """Use the kernels that keep workers' counters, or stop using them. They record no events."""
        if on and not self._counted:
            self._runtime.idle()  # as in `needs`
            self._runtime.prepare(self._jobs.tiles, counted=True)
            self._jobs.refuse_counted()
        self._counted = on

    def close(self) -> None:
        if self._runtime.broken is None:
            self._runtime.idle()
            for loaded in self.weights:
                if loaded is not None:
                    loaded.free()
            self._jobs.free()
        super().close()
