"""The layer a user calls: arrays in, arrays out. It checks, fills a job, runs it, and says what went wrong."""

from __future__ import annotations

import importlib.util
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config import BACKENDS, MoEConfig
from ..engine import codes, column_runs, words
from ..engine.layout import rank_bytes
from ..errors import AristosError, ClosedError, InputError, OpenCallError
from ..host.nodes import Nodes
from ..kernels.cpu import activation
from ..kernels.cpu.expert import scratch_bytes
from ..kernels.cpu.panels import LANES
from ..kernels.cpu.tokens import SCORES, route_bytes
from ..placement import Placement
from ..primitives import arrays
from ..primitives.buffers import aligned
from ..substrate.runtime import BATCH, Runtime
from .bulk import Bulk
from .collective import (
    Collective,
    check_comm,
    check_common,
    explain_ids,
    routing_arrays,
    shape_of,
    usable_nodes,
    usable_timeout,
    weight_arrays,
    widths,
)
from .grouped import split
from .stats import Summary, Totals, call_stats, summarize
from .weights import Given, LayerWeights

if TYPE_CHECKING:
    from ..planner import Plan

Schedule = Literal["fused", "bulk"]
KINDS = {  # of events: all that a worker notes
    codes.IDLE: "wait",
    codes.ROUTE: "route",
    codes.PACK: "pack",
    codes.DISPATCH: "dispatch",
    codes.BLOCK: "dispatch",
    codes.POST: "wire",
    codes.EXPERT: "expert",
    codes.SHARE: "expert",
    codes.LIST: "expert",
    codes.COMBINE: "combine",
}


@dataclass
class _Call:
    """One call between its checks and its result."""

    layer: int = 0
    x: np.ndarray | None = None
    out: np.ndarray | None = None
    result: np.ndarray | None = None
    ids: np.ndarray | None = None
    weights: np.ndarray | None = None
    error: Exception | None = None


class PendingCall:
    """A call that was started: `wait()` once for its result. x and out are untouched by the caller until then."""

    def __init__(self, moe: MoE, call: _Call, done: Any, return_stats: bool) -> None:
        self._moe, self._call, self._done, self._return_stats = moe, call, done, return_stats

    def wait(self) -> Any:
        """The result of the call, as `MoE.__call__` gives it; what went wrong in it is raised here."""
        if self._done is None:
            if self._moe._runtime is None:
                raise ClosedError("this layer was closed, and with it the call that start() began")
            raise InputError("wait() was called twice on one started call")
        seconds, error = self.end()
        if error is not None:
            raise error
        return self._moe._result(self._call, seconds, self._return_stats)

    def end(self) -> tuple[float, BaseException | None]:
        """Wait until the call has ended: its seconds, or what it raised."""
        while True:
            try:
                ended = self._done.get(timeout=0.1)  # comes back so that Ctrl-C works; one can wait again after it
                break
            except queue.Empty:
                continue
        self._done = self._moe._pending = None
        return ended


def default_backend(options: dict[str, Any]) -> str:
    """cuda where CuPy sees a device and nothing was asked that only CPUs have, else cpu. options: of a layer."""
    if options.get("threads") is not None or options.get("schedule", "fused") != "fused":
        return "cpu"
    if not all(importlib.util.find_spec(name) for name in ("cupy", "numba_cuda")):
        return "cpu"
    import cupy

    return "cuda" if cupy.is_available() else "cpu"


class MoE(Collective):
    """An expert-parallel Mixture-of-Experts layer, or `layers` of them, over the ranks of a communicator. Collective.

    cfg: equal on all ranks. comm: an mpi4py communicator, or None for one process without MPI.
    layers: layers with weights of their own that share windows, workers and threads. schedule: "fused" (one-sided,
    tile by tile) or "bulk" (count exchange, Alltoallv, experts, Alltoallv: the baseline). threads: workers a rank;
    default: the cores this rank may use over the ranks that share them. placement: E ranks, one for each expert, or
    several for one that has copies; default contiguous. plan: an `aristos.planner.Plan` for the communicator, rank i
    being device i: the layer then lives in this rank's group, `group` is its number, `comm` its communicator and
    `rank` the rank there.
    timeout: seconds a wait may see no progress. backend: "cpu" or "cuda", where the layer runs; the attribute of that
    name says which it is. ranks_per_node: take so many ranks in a row as a node, where MPI would
    see larger ones; transport shm serves a node, rma goes between them.
    Raises MismatchError where ranks disagree, InputError (a ValueError) on wrong arguments, MemoryProblem where
    windows do not fit.
    """

    def __init__(
        self,
        cfg: MoEConfig,
        comm: Any = None,
        layers: int = 1,
        schedule: Schedule = "fused",
        threads: int | None = None,
        placement: Sequence[Any] | np.ndarray | None = None,
        timeout: float = 120.0,
        ranks_per_node: int | None = None,
        plan: Plan | None = None,
        backend: Literal["cpu", "cuda"] | None = None,
    ) -> None:
        self.group, self._split = 0, None
        if plan is not None:
            if comm is None:
                raise InputError("plan needs comm, with a rank for each of its devices")
            check_comm(comm)
            experts = getattr(cfg, "experts", None)
            nodes = usable_nodes(ranks_per_node)
            comm, placement, self.group = split(comm, plan, experts, placement, usable_timeout(timeout), nodes)
            self._split = comm
        try:
            super().__init__(comm, usable_timeout(timeout), ranks_per_node)
        except BaseException:
            self._leave_group()
            raise
        problem: Exception | None = None
        mine, shape, scratch, shared, workers = "", {}, 0, 0, 0
        try:
            self._check(cfg, layers, schedule, threads, backend)
            check_common(threads, timeout, ranks_per_node)
            self.placement = Placement(placement, cfg.experts, self.world)
            mine = f"{cfg!r}, layers={layers}, schedule={schedule!r}, placement={self.placement}"
            shape = widths(cfg)
            scratch, shared, workers = self._needs(cfg)
        except Exception as error:
            problem = error if isinstance(error, AristosError) else InputError(f"{type(error).__name__}: {error}")
        try:
            self._join(problem, mine, shape, scratch, shared, threads, workers)
        except BaseException:
            self._leave_group()
            raise
        self.cfg, self.layers, self.schedule, self.timeout = cfg, layers, schedule, float(timeout)
        self._weights: list[Any] = [None] * layers
        self._jobs: list[np.ndarray | None] = [None] * layers
        self._filled = [-1] * layers
        self._ids = aligned((cfg.max_tokens, cfg.top_k), np.int64)
        self._combine_weights = aligned((cfg.max_tokens, cfg.top_k))
        self._events: np.ndarray | None = None
        self._pending: PendingCall | None = None
        self._totals = Totals()
        self._dtype = np.dtype(np.float32)
        self._bulk = Bulk(self._alive(), self.timeout) if schedule == "bulk" else None

    # ------------------------------------------------------------ set-up

    def __new__(cls, *args: Any, backend: Any = None, **options: Any) -> MoE:
        """The class of the backend, where none is named cuda if CuPy sees a device, else cpu."""
        if cls is MoE and (backend or default_backend(options)) == "cuda":
            from .cuda import CudaMoE  # needs numba-cuda

            return object.__new__(CudaMoE)
        return object.__new__(cls)

    def _check(self, cfg: Any, layers: Any, schedule: Any, threads: Any, backend: Any) -> None:
        if backend is not None and backend not in BACKENDS:
            raise InputError(f"backend must be None or one of {', '.join(BACKENDS)}, got {backend!r}")
        if not isinstance(cfg, MoEConfig):
            raise InputError(f"cfg must be an aristos.MoEConfig, got {type(cfg).__name__}")
        self._check_dtype(cfg)
        if not isinstance(layers, int) or isinstance(layers, bool) or not 0 < layers <= 1 << 20:
            raise InputError(f"layers must be an int in 1..{1 << 20}, got {layers!r}")
        if schedule not in ("fused", "bulk"):
            raise InputError(f"schedule must be 'fused' or 'bulk', got {schedule!r}")

    def _check_dtype(self, cfg: MoEConfig) -> None:
        if cfg.dtype != "float32":
            raise InputError(f"the backend cpu computes in float32, got dtype={cfg.dtype!r}: pass backend='cuda'")

    def _needs(self, cfg: MoEConfig) -> tuple[int, int, int]:
        """(bytes of scratch a worker, bytes for all workers, workers where no threads= is given; 0: one a core)."""
        scratch = max(scratch_bytes(BATCH, cfg.gated), route_bytes(words.TOKEN_BLOCK, -(-cfg.experts // LANES)))
        return scratch, column_runs.scratch_bytes(cfg.ffn, cfg.gated), 0

    def _pack(self, given: Given) -> Any:
        """Weights as this backend's kernels read them."""
        return LayerWeights(given)

    def load(
        self,
        layer: int = 0,
        *,
        up: Any,
        down: Any,
        router: Any = None,
        gate: Any = None,
        up_bias: Any = None,
        gate_bias: Any = None,
        down_bias: Any = None,
        local: bool = False,
        layout: Literal["in_out", "out_in"] = "in_out",
    ) -> None:
        """Take the weights of one layer; they are packed, so later changes to the arrays are not seen.

        up, gate: [E, H, F], down: [E, F, H], router: [H, E], up_bias, gate_bias: [E, F], down_bias: [E, H], all
        float32; with local=True only this rank's experts, in the order of their ids. layout="out_in": nn.Linear's
        order, up, gate [E, F, H], down [E, H, F], router [E, H]. A router is needed unless every call brings its ids.
        Not collective.
        """
        self._settled()
        self._check_layer(layer)
        given = {
            "up": up,
            "down": down,
            "router": router,
            "gate": gate,
            "up_bias": up_bias,
            "gate_bias": gate_bias,
            "down_bias": down_bias,
        }
        self._weights[layer] = self._pack(Given(self.cfg, self._mine, local=local, layout=layout, arrays_in=given))
        self._filled[layer] = -1
        self._totals.clear()

    @staticmethod
    def memory(
        cfg: MoEConfig,
        world: int,
        placement: Sequence[int] | np.ndarray | None = None,
        ranks_per_node: int | None = None,
    ) -> int:
        """Bytes a rank needs for this layer on `world` ranks, before anything is allocated.

        Rings (a source's rows of one call, at most 64 MiB over all sources or 64 rows each) + return rows (max_tokens
        * top_k) + words; skew does not change it, nor does the number of layers. With several nodes, a second window of
        that kind for the other nodes' ranks, and for each of those an outbox and a ring of staged outputs; this tells
        what a rank of the last node needs, which may be the smallest and has most of them. On a card the first window,
        and a copy of the second, lie in the card's memory; weights and hidden activations come to it.
        """
        if not isinstance(world, int) or isinstance(world, bool) or world < 1:
            raise InputError(f"world must be a positive int, got {world!r}")
        check_common(None, 1.0, ranks_per_node)
        shape = shape_of(world, Placement(placement, cfg.experts, world), **widths(cfg))
        return rank_bytes(shape, Nodes.of(world, ranks_per_node), world - 1)

    # ------------------------------------------------------------ calls

    def __call__(
        self,
        x: Any,
        ids: Any = None,
        weights: Any = None,
        layer: int = 0,
        out: np.ndarray | None = None,
        return_stats: bool = False,
    ) -> Any:
        """y = sum over a token's experts of weight * expert(x). Collective, in the same order on every rank.

        x: [..., H] of cfg.dtype; y has its shape. ids: [..., k] integers (-1: choice not taken) and weights: [..., k]
        route from outside. out: [..., H], contiguous, not overlapping x. With return_stats also a `CallStats`.
        Raises InputError here, and PeerInputError or MismatchError on the other ranks; the layer stays usable.
        """
        runtime = self._alive()
        runtime.enter()
        call = self._prepare(x, ids, weights, layer, out)
        return self._result(call, self._run(call), return_stats)

    def start(
        self,
        x: Any,
        ids: Any = None,
        weights: Any = None,
        layer: int = 0,
        out: np.ndarray | None = None,
        return_stats: bool = False,
    ) -> PendingCall:
        """Begin the same call in the background; `wait()` on what this returns ends it."""
        runtime = self._alive()
        runtime.enter()
        call = self._prepare(x, ids, weights, layer, out, copy=True)
        done = runtime.background().submit(lambda: self._run(call))
        self._pending = PendingCall(self, call, done, return_stats)
        return self._pending

    def _prepare(self, x: Any, ids: Any, weights: Any, layer: Any, out: Any, copy: bool = False) -> _Call:
        """Check the arguments and fill the job; a refusal is kept, because the other ranks are on their way."""
        call = _Call()
        try:
            loaded, call.layer = self._loaded(layer), layer
            call.x, lead = arrays.rows("x", x, self.cfg.hidden, self._dtype)
            if len(call.x) > self.cfg.max_tokens:
                raise InputError(f"x has {len(call.x)} tokens, more than max_tokens={self.cfg.max_tokens}")
            self._take_routing(call, ids, weights, lead, loaded, copy)
            self._take_out(call, out, lead)
            job = self._job(call.layer)
            job[words.STATUS_IN] = codes.OK
            job[words.TOKENS] = len(call.x)
            job[words.X] = call.x.ctypes.data
            job[words.X_STRIDE] = call.x.strides[0]
            job[words.Y] = call.out.ctypes.data  # type: ignore[union-attr]
            job[words.ROUTED] = call.ids is not None
            routed = (self._ids, self._combine_weights) if call.ids is None else (call.ids, call.weights)
            job[words.IDS], job[words.WEIGHTS] = routed[0].ctypes.data, routed[1].ctypes.data  # type: ignore[union-attr]
        except Exception as error:
            call.error = error if isinstance(error, AristosError) else InputError(f"{type(error).__name__}: {error}")
            job = self._job(call.layer)
            job[words.STATUS_IN], job[words.TOKENS], job[words.ROUTED] = codes.REFUSED, 0, 0
        except BaseException:
            self._runtime.leave()  # type: ignore[union-attr]
            raise
        return call

    def _loaded(self, layer: Any) -> Any:
        """The weights of a layer that is there and has some."""
        self._check_layer(layer)
        loaded = self._weights[layer]
        if loaded is None:
            raise InputError(f"layer {layer} has no weights: load() it first")
        return loaded

    @staticmethod
    def _is_routed(ids: Any, weights: Any, layer: int, loaded: Any) -> bool:
        """Is a call routed from outside? Raises where it is by half, or by nobody."""
        if (ids is None) != (weights is None):
            raise InputError("ids and weights come together: give both, or neither and a router")
        if ids is None and loaded.router is None:
            raise InputError(f"layer {layer} was loaded without a router: give ids and weights")
        return ids is not None

    def _take_routing(
        self, call: _Call, ids: Any, weights: Any, lead: tuple[int, ...], loaded: Any, copy: bool
    ) -> None:
        if not self._is_routed(ids, weights, call.layer, loaded):
            return
        shape = (*lead, self.cfg.top_k)
        call.ids, call.weights = routing_arrays(ids, shape, copy), weight_arrays(weights, shape, copy)

    def _take_out(self, call: _Call, out: Any, lead: tuple[int, ...]) -> None:
        shape = (*lead, self.cfg.hidden)
        if out is None:
            call.result = call.out = np.empty(shape, self._dtype)
            return
        arrays.check_out(out, shape, self._dtype, call.x, call.ids, call.weights)
        call.result = call.out = out

    def _job(self, layer: int) -> np.ndarray:
        """The job of a layer, filled anew when weights or windows have changed."""
        runtime = self._runtime
        assert runtime is not None
        job = self._jobs[layer]
        if job is None:
            cfg = self.cfg
            job = self._new_job(hidden=cfg.hidden, experts=cfg.experts, top_k=cfg.top_k)
            self._jobs[layer] = job
            job[words.FFN], job[words.LAYER] = cfg.ffn, layer
            job[words.SCORE], job[words.RENORMALIZE] = SCORES[cfg.router.score], cfg.router.renormalize
            job[words.SCALE] = int(np.float32(cfg.router.scale).view(np.int32))
            job[words.ACTIVATION] = activation.word(cfg.activation, cfg.limit)
        if self._filled[layer] != runtime.version:
            runtime.fill(job)
            job[words.WORKERS] = self.threads
            if self._weights[layer] is not None:
                self._weights[layer].fill(job)
                self._filled[layer] = runtime.version
        if self._events is not None:
            job[words.EVENTS], job[words.EVENTS_MAX] = self._events.ctypes.data, self._events.shape[1]
        else:
            job[words.EVENTS_MAX] = 0
        return job

    def _run(self, call: _Call) -> float:
        """Run an entered call; returns its seconds."""
        runtime, job = self._runtime, self._jobs[call.layer]
        assert runtime is not None
        assert job is not None
        started = time.perf_counter()
        if self._bulk is not None:
            self._bulk.run(job)
        else:
            runtime.run(job, self.timeout)
        seconds = time.perf_counter() - started
        self._totals.add(runtime.state, runtime.counted, seconds)
        return seconds

    def _result(self, call: _Call, seconds: float, return_stats: bool) -> Any:
        """The call's output, or its error; the call is closed."""
        runtime, job = self._runtime, self._jobs[call.layer]
        assert runtime is not None
        assert job is not None
        try:
            if call.error is not None:
                raise call.error
            state = runtime.state
            if state[words.STATUS] != codes.OK:
                raise InputError(self._own_problem(call, int(state[words.STATUS])))
            if self.world > 1:
                self._raise_peer_problem(job, runtime)
            if not return_stats:
                return call.result
            return call.result, call_stats(job, state, runtime.counted, schedule=self.schedule, seconds=seconds)
        finally:
            runtime.open = False

    def _own_problem(self, call: _Call, status: int) -> str:
        if status == codes.BAD_IDS:
            assert call.ids is not None
            return explain_ids(call.ids.reshape(-1, self.cfg.top_k), self.cfg.experts)
        if call.weights is not None:
            given = call.weights.reshape(-1, self.cfg.top_k)
            taken = call.ids.reshape(given.shape) >= 0  # type: ignore[union-attr]
            bad = int(np.flatnonzero((~np.isfinite(given) & taken).any(1))[0])
            return f"weights must be finite, got {given[bad].tolist()} at token {bad}"
        return "router scores must be finite, got NaN or infinity: look for it in x and in the router's weights"

    # ------------------------------------------------------------ looking in

    def summary(self) -> Summary:
        """Totals since load over all ranks: messages by size, times, and who waited for whom. Collective.

        Messages are the puts of dispatched rows; outputs return with the kernel's own stores and are not among them.
        """
        runtime = self._settled()
        runtime.refuse_open()
        share = self._totals.share(self.rank, self.world)
        return summarize(runtime.group.allgather(share, "summaries"))

    def timeline(self, on: bool, events: int = 100_000) -> None:
        """Record what every worker does in later calls, up to `events` a worker and call; `on=False` ends it."""
        if not isinstance(events, int) or not 0 < events <= 10**8:
            raise InputError(f"events must be an int in 1..10**8, got {events!r}")
        runtime = self._settled()
        self._events = aligned((runtime.threads, events, words.EVENT_WORDS), np.int64) if on else None

    def events(self) -> list[tuple[int, str, float, float, int, int]]:
        """(worker, kind, start, end, peer or expert, rows) of the last call, in seconds on CLOCK_MONOTONIC.

        A worker does one thing at a time, but looks after the wire while it waits: such a "wire" lies within a "wait".
        """
        runtime = self._alive()
        if self._events is None:
            return []
        found = []
        for worker in range(min(runtime.threads, len(self._events))):
            n = int(runtime.state[words.counter(runtime.tables.starts, worker, words.N_EVENTS)])
            for kind, start, end, what, rows in self._events[worker, :n].tolist():
                found.append((worker, KINDS[kind], start * 1e-9, end * 1e-9, what, rows))
        return found

    # ------------------------------------------------------------ life

    def _settled(self) -> Runtime:
        """The runtime, with no call of this layer still open."""
        if self._pending is not None:
            raise OpenCallError("a call of this layer was started: wait() for it first")
        return self._alive()

    def _check_layer(self, layer: Any) -> None:
        if not isinstance(layer, int | np.integer) or not 0 <= layer < self.layers:
            raise InputError(f"layer must be an int in 0..{self.layers - 1}, got {layer!r}")

    def close(self) -> None:
        """Give windows, threads and memory back; collective, and harmless when repeated."""
        if self._pending is not None:  # its result is nobody's any more
            self._pending.end()
            self._alive().open = False
        if self._runtime is not None:
            self._weights, self._jobs = [], []
            if self._bulk is not None:
                self._bulk.close()
        super().close()
        self._leave_group()

    def _leave_group(self) -> None:
        """Free the communicator that a plan's group got; collective in the group."""
        split_off, self._split = self._split, None
        if split_off is not None:
            split_off.Free()
