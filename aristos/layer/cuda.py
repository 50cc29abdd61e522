"""The layer on a card: the same calls as on CPUs, for arrays of the host and of the card."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes, words
from ..errors import AristosError, InputError, PeerInputError
from ..kernels.cpu import activation
from ..kernels.cpu.tokens import SCORES
from ..kernels.cuda import router
from ..kernels.cuda.tile import BYTES, Tile
from ..primitives import arrays
from ..substrate.cuda import persistent
from ..substrate.cuda.runtime import CudaRuntime, timeout_ns
from . import device_arrays
from .collective import WHY, explain_ids, routing_arrays, weight_arrays
from .cuda_weights import DeviceWeights
from .device_arrays import KINDS
from .moe import MoE
from .stats import call_stats
from .weights import Given


@dataclass
class _DeviceCall:
    """One call between its checks and its result: addresses on the card, and what of it the host holds."""

    kind: str
    top_k: int
    slots: int
    layer: int = 0
    x: int = 0
    x_stride: int = 0
    tokens: int = 0
    y: int = 0
    ids: int = 0
    weights: int = 0
    status: int = codes.OK
    routed: bool = False
    stream: int = 0
    waits: bool = True
    result: Any = None
    host_out: np.ndarray | None = None
    host_ids: np.ndarray | None = None
    host_weights: np.ndarray | None = None
    error: Exception | None = None
    keeps: tuple[Any, ...] = ()


class CudaMoE(MoE):
    """`MoE` with backend="cuda"; a card a rank.

    Arrays of the host are copied in and out, and the call is over when it returns. Arrays of the card (CuPy,
    `__cuda_array_interface__`, DLPack) are used in place, on CuPy's current stream or else their own, and the call
    returns before it has run: it can be captured in a CUDA graph, once a call of as many tokens was made outside one;
    `synchronize()` waits and raises what went wrong since it was last called. `summary` counts calls with return_stats.
    """

    backend = "cuda"

    # ------------------------------------------------------------ set-up

    def _check(self, cfg: Any, layers: Any, schedule: Any, threads: Any, backend: Any) -> None:
        super()._check(cfg, layers, schedule, threads, backend)
        if schedule != "fused":
            raise InputError(f"backend cuda has schedule='fused' alone, got {schedule!r}")
        if threads is not None:
            raise InputError(
                f"threads are for the backend cpu, got {threads!r}: a card's blocks are the driver's to say"
            )

    def _check_dtype(self, cfg: MoEConfig) -> None:
        nbytes = BYTES[KINDS[cfg.dtype]] * cfg.hidden
        if nbytes % device_arrays.LINE:
            raise InputError(
                f"hidden must make rows of whole {device_arrays.LINE} bytes on a card, got hidden={cfg.hidden}"
                f" with dtype={cfg.dtype!r}: {nbytes} bytes"
            )

    @property
    def _engine(self) -> CudaRuntime:
        runtime = self._runtime or self._joined
        assert isinstance(runtime, CudaRuntime)
        return runtime

    def _needs(self, cfg: MoEConfig) -> tuple[int, int, int]:
        self._kind = KINDS[cfg.dtype]
        self._stage: dict[str, int] = {}
        self._on_card: dict[tuple[int, int], tuple[int, int]] = {}
        self._host_jobs: dict[tuple[int, int], np.ndarray] = {}
        tiles = persistent.layer_tiles(self._kind, self._engine.card.arch)
        self._blocks = {tile.m: self._engine.blocks.of(tile) for tile in tiles}
        runs = [persistent.shared_runs(tile, cfg.hidden, cfg.ffn, cfg.gated, self._blocks[tile.m]) for tile in tiles]
        return 0, max(run[words.RUNS] * run[words.RUN_STEP] for run in runs), max(self._blocks.values())

    def _pack(self, given: Given) -> DeviceWeights:
        return DeviceWeights(self._engine.card, self._kind, given)

    def device_weights(self, layer: int = 0) -> DeviceWeights:
        """A layer's weights as they lie on the card, once it is loaded."""
        loaded = self._weights[layer]
        assert loaded is not None
        return loaded

    def load(self, layer: int = 0, **weights: Any) -> None:
        """As `MoE.load`."""
        before = self._weights[layer] if isinstance(layer, int | np.integer) and 0 <= layer < self.layers else None
        super().load(layer, **weights)
        if before is not None:
            before.free()

    def _routing_job(self, layer: int) -> np.ndarray:
        """The job of the router kernels."""
        cfg, runtime, starts = self.cfg, self._engine, self._engine.tables.starts
        job = np.zeros(router.JOB_WORDS, np.int64)
        job[[router.HIDDEN, router.EXPERTS, router.TOP_K]] = cfg.hidden, cfg.experts, cfg.top_k
        job[[router.SCORE, router.RENORMALIZE]] = SCORES[cfg.router.score], cfg.router.renormalize
        job[router.SCALE] = np.float32(cfg.router.scale).view(np.int32)
        job[router.SLOTS] = self.placement.slots
        for word, table in (
            (router.OFFSET, words.T_OFFSET),
            (router.TOKEN, words.T_TOKEN),
            (router.POSITION, words.T_POSITION),
        ):
            job[word] = runtime.state_at + 8 * starts[table]
        job[router.STATUS] = runtime.state_at + 8 * words.STATUS
        job[router.ROUTER] = self._weights[layer].router or 0 if self._weights[layer] is not None else 0
        job[router.SLOT_OF] = self._room("slots", 8 * cfg.experts)
        runtime.card.copy_in(job[router.SLOT_OF], self.placement.slots_for(self.rank))
        scratch = router.scratch_bytes(cfg.max_tokens, cfg.experts, self.placement.slots)
        job[router.SCRATCH] = self._room("scores", scratch)
        return job

    def _room(self, name: str, nbytes: int) -> int:
        """Memory of this layer on the card, allocated once."""
        if name not in self._stage:
            self._stage[name] = self._engine.card.allocate(max(1, nbytes))
        return self._stage[name]

    def _jobs_of(self, layer: int, tile: Tile) -> tuple[int, int]:
        """Addresses of the job and of the router's job on the card, made anew when weights or windows have changed."""
        runtime = self._engine
        if self._filled[layer] != runtime.version:
            self._drop_jobs(layer)
            self._filled[layer] = runtime.version
        key = (layer, tile.m)
        if key not in self._on_card:
            cfg = self.cfg
            job = self._new_job(hidden=cfg.hidden, experts=cfg.experts, top_k=cfg.top_k)
            job[words.FFN], job[words.LAYER], job[words.ROW_BYTES] = cfg.ffn, layer, BYTES[self._kind] * cfg.hidden
            job[words.ACTIVATION] = activation.word(cfg.activation, cfg.limit)
            job[words.TIMEOUT_NS] = timeout_ns(self.timeout)
            runtime.fill(job)
            job[words.GATE] = cfg.gated
            if self._weights[layer] is not None:
                self._weights[layer].fill(job)
            runtime.fill_tile(job, tile, self._blocks[tile.m])
            self._host_jobs[key] = job
            self._on_card[key] = (self._copied(job), self._copied(self._routing_job(layer)))
        return self._on_card[key]

    def _copied(self, job: np.ndarray) -> int:
        at = self._engine.card.allocate(job.nbytes)
        self._engine.card.copy_in(at, job)
        return at

    def _drop_jobs(self, layer: int) -> None:
        for key in [key for key in self._on_card if key[0] == layer]:
            for at in self._on_card.pop(key):
                self._engine.card.free(at)

    # ------------------------------------------------------------ calls

    def _tile(self, tokens: int) -> Tile:
        """For what an expert gets if the other ranks bring as many tokens."""
        rows = tokens * self.world * self.cfg.top_k / self.cfg.experts
        return persistent.layer_tile(self._kind, rows, self._engine.card.arch)

    def _prepare(self, x: Any, ids: Any, weights: Any, layer: Any, out: Any, copy: bool = False) -> Any:
        call = _DeviceCall(self._kind, self.cfg.top_k, self.placement.slots)
        try:
            loaded, call.layer = self._loaded(layer), layer
            lead = self._take_x(call, x)
            if call.tokens > self.cfg.max_tokens:
                raise InputError(f"x has {call.tokens} tokens, more than max_tokens={self.cfg.max_tokens}")
            self._take_device_routing(call, ids, weights, lead, loaded)
            self._take_y(call, x, out, lead)
        except Exception as error:
            call.error = error if isinstance(error, AristosError) else InputError(f"{type(error).__name__}: {error}")
            call.status, call.tokens, call.routed = codes.REFUSED, 0, False
        except BaseException:
            self._engine.leave()
            raise
        return call

    def _take_x(self, call: _DeviceCall, x: Any) -> tuple[int, ...]:
        cfg = self.cfg
        nbytes = BYTES[self._kind] * cfg.hidden
        found = device_arrays.on_device("x", x)
        if found is not None:
            self._check_card("x", found)
            lead, call.x_stride = device_arrays.rows("x", found, cfg.hidden, cfg.dtype)
            call.x, call.tokens, call.waits = found.address, int(np.prod(lead, dtype=np.int64)), False
            call.stream, call.keeps = current_stream(found), (found,)
            return lead
        given = arrays.view("x", x)
        wanted = "float32" if cfg.dtype == "tf32" else cfg.dtype
        if given.dtype.name != wanted:
            raise InputError(f"x must have dtype {wanted}, got {given.dtype}: cast it yourself, none is done silently")
        flat, lead = arrays.rows("x", given, cfg.hidden, given.dtype)
        call.tokens, call.x_stride = len(flat), nbytes
        if call.tokens <= cfg.max_tokens:
            call.x = self._room("x", nbytes * cfg.max_tokens)
            self._engine.card.copy_in(call.x, np.ascontiguousarray(flat).view(np.uint8))
        return lead

    def _take_device_routing(
        self, call: _DeviceCall, ids: Any, weights: Any, lead: tuple[int, ...], loaded: DeviceWeights
    ) -> None:
        card, k, most = self._engine.card, self.cfg.top_k, self.cfg.max_tokens
        call.ids, call.weights = self._room("ids", 8 * k * most), self._room("weights", 4 * k * most)
        if not self._is_routed(ids, weights, call.layer, loaded):
            return
        call.routed, shape = True, (*lead, k)
        found = [device_arrays.on_device(name, value) for name, value in (("ids", ids), ("weights", weights))]
        if found[0] is not None and found[1] is not None:
            if call.waits:  # x is the host's: then these say which stream
                call.stream = current_stream(found[0])
            call.ids = device_arrays.whole("ids", found[0], shape, "int64")
            call.weights = device_arrays.whole("weights", found[1], shape, "float32")
            call.keeps += tuple(found)
            return
        call.host_ids, call.host_weights = routing_arrays(ids, shape), weight_arrays(weights, shape)
        card.copy_in(call.ids, call.host_ids, call.stream)
        card.copy_in(call.weights, call.host_weights, call.stream)

    def _take_y(self, call: _DeviceCall, x: Any, out: Any, lead: tuple[int, ...]) -> None:
        cfg, shape = self.cfg, (*lead, self.cfg.hidden)
        nbytes = BYTES[self._kind] * cfg.hidden
        if call.waits:  # arrays of the host
            given = arrays.view("x", x)
            if out is None:
                call.result = np.empty(shape, given.dtype)
            else:
                arrays.check_out(out, shape, given.dtype, given, call.host_ids, call.host_weights)
                call.result = out
            call.host_out, call.y = call.result, self._room("y", nbytes * cfg.max_tokens)
            return
        if out is None:
            out = _empty(shape, cfg.dtype)
        found = device_arrays.on_device("out", out)
        if found is None:
            raise InputError(f"out must lie on the card as x does, got {type(out).__name__}")
        device_arrays.writable("out", found)
        got, step = device_arrays.rows("out", found, cfg.hidden, cfg.dtype)
        if got != lead or step != nbytes:
            raise InputError(f"out must be contiguous with shape {list(shape)}, got {list(found.shape)}")
        self._check_card("out", found)
        for read in call.keeps:
            if device_arrays.overlap(found, read):
                raise InputError("out must not overlap x, ids or weights: they are read while outputs are written")
        call.result, call.y, call.keeps = out, found.address, (*call.keeps, found)

    def _check_card(self, name: str, found: device_arrays.DeviceRows) -> None:
        mine = self.device
        if found.device is not None and found.device != mine:
            raise InputError(
                f"{name} must lie on device {mine}, this rank's card (`device` of the layer), got device {found.device}"
            )

    @property
    def device(self) -> int:
        """CUDA's number, in this process, of this rank's card."""
        return int(self._engine.card.ordinal)

    def _run(self, call: Any) -> float:
        runtime = self._engine
        started = self._started = time.perf_counter()
        tile = self._tile(call.tokens)
        with runtime.failing(np.zeros(0, np.int64)):
            job, routing = self._jobs_of(call.layer, tile)
            self._last = (call.layer, tile.m)
            runtime.launch(tile, self._blocks[tile.m], job, routing, call, call.stream)
            if call.waits or call.error is not None:
                runtime.outcome(call.stream)
                if call.host_out is not None and call.host_out.size:
                    runtime.card.copy_out(call.host_out.reshape(-1).view(np.uint8), call.y, call.stream)
        self._stream = call.stream
        return time.perf_counter() - started

    def _result(self, call: Any, seconds: float, return_stats: bool) -> Any:
        runtime = self._engine
        try:
            if call.error is not None:
                raise call.error
            if call.waits or return_stats:
                self._raise_status(call)
            if not return_stats:
                return call.result
            runtime.read_all(call.stream)
            seconds = max(seconds, time.perf_counter() - self._started)
            self._totals.add(runtime.state, runtime.counted, seconds)
            job = self._host_jobs[self._last]
            job[words.TOKENS], job[words.EPOCH] = call.tokens, runtime.state[words.CALLS]
            stats = call_stats(job, runtime.state, runtime.counted, schedule=self.schedule, seconds=seconds)
            return call.result, stats
        finally:
            runtime.open = False

    def _raise_status(self, call: Any) -> None:
        """Raise what this rank or a peer refused in a call that has ended."""
        runtime = self._engine
        if not call.waits:
            with runtime.failing(np.zeros(0, np.int64)):
                runtime.outcome(call.stream)
        state = runtime.state
        status = int(state[words.STATUS])
        if status != codes.OK:
            raise InputError(self._own_problem(call, status))
        if self.world > 1:
            self._raise_peer_problem({words.T_PEER_STATUS: runtime.tables.starts[words.T_PEER_STATUS]}, runtime)
        if call.waits or state[words.KEPT_STATUS] == codes.OK:
            return
        why = WHY.get(int(state[words.KEPT_STATUS]), "its own error says why")
        if state[words.KEPT_RANK] == self.rank:
            raise InputError(f"an earlier call since the last synchronize() was refused here ({why})")
        raise PeerInputError(f"rank {int(state[words.KEPT_RANK])} refused an earlier call's input ({why})")

    def _own_problem(self, call: Any, status: int) -> str:
        if call.host_ids is None:
            what = "ids must be in 0..E-1 or -1, none twice in a token" if status == codes.BAD_IDS else None
            given = "weights of choices taken" if call.routed else "router scores"
            return what or f"{given} must be finite, got NaN or infinity"
        if status == codes.BAD_IDS:
            return explain_ids(call.host_ids.reshape(-1, self.cfg.top_k), self.cfg.experts)
        return "weights of choices taken must be finite, got NaN or infinity"

    def synchronize(self) -> None:
        """Wait for the last call and raise what went wrong in it; for calls with arrays of the card. Not collective."""
        runtime = self._engine
        if self._last is None:
            return
        call = _DeviceCall(self._kind, self.cfg.top_k, self.placement.slots, stream=self._stream, waits=False)
        runtime.refuse_open()
        self._raise_status(call)

    _stream, _started = 0, 0.0
    _last: Any = None

    # ------------------------------------------------------------ what is not there

    def timeline(self, on: bool, events: int = 100_000) -> None:
        """Not on cards: use Nsight Systems."""
        raise InputError("timeline is for the backend cpu: on a card nsys profile shows the kernels")

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Give windows and the card's memory back; collective, and harmless when repeated."""
        if self._pending is not None:  # its result is nobody's any more
            self._pending.end()
            self._alive().open = False
        if self._runtime is not None:
            card = self._engine.card
            if self._engine.broken is None:
                self._engine.idle()
                for layer in range(self.layers):
                    self._drop_jobs(layer)
                    if self._weights[layer] is not None:
                        self._weights[layer].free()
                for at in self._stage.values():
                    card.free(at)
            self._stage = {}
        super().close()


def current_stream(array: device_arrays.DeviceRows) -> int:
    """CuPy's current stream if CuPy is in use, else the array's own."""
    return device_arrays.calling_stream() if "cupy" in sys.modules else array.stream


def _empty(shape: tuple[int, ...], dtype: str) -> Any:
    """A new array on the card."""
    cupy = sys.modules.get("cupy")
    if cupy is None or dtype == "bfloat16":
        raise InputError("give out=, an array on the card: there is no CuPy here that could make one of this dtype")
    return cupy.empty(shape, "float32" if dtype == "tf32" else dtype)
