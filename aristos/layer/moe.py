"""The layer a user calls. It checks options, joins the ranks' runtime, and hands each call to its backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config import BACKENDS, MoEConfig, boolean, whole
from ..engine.layout import lines, rank_bytes
from ..errors import InputError, OpenCallError
from ..host.nodes import Nodes
from ..placement import Placement
from ..substrate.runtime import Runtime
from . import weights as cpu_weights
from .arguments import DEFAULT_TIMEOUT, CallArguments, check_comm, check_common, refusal, usable_nodes, usable_timeout
from .backend import COMMON, Backend, Event, Settings, check_layer
from .collective import Collective, Membership, Needs, shape_of, widths
from .cpu import CpuBackend
from .given import Given, GivenLayer
from .grouped import split
from .node_weights import most_foreign
from .pending import PendingCall
from .stats import Summary, summarize
from .weights import WEIGHTS, NotLoaded

if TYPE_CHECKING:
    from ..planner import Plan

MOST_LAYERS = 1 << 20
MOVES = "auto", "tokens", "experts"
Schedule = Literal["fused", "bulk"]
Layout = Literal["in_out", "out_in"]
Bits = Literal["bfloat16", "float16"]


def default_backend(threads: Any = None, schedule: Any = "fused") -> str:
    """The backend for backend=None: cuda where CuPy sees a device and no option for CPUs is given, else cpu."""
    if threads is not None or not isinstance(schedule, str) or schedule != "fused":
        return "cpu"
    if not all(importlib.util.find_spec(name) for name in ("cupy", "numba_cuda")):
        return "cpu"
    import cupy

    return "cuda" if cupy.is_available() else "cpu"


def backend_class(name: str) -> type[Backend]:
    """The class of a backend, imported only if it is used: cuda needs numba-cuda."""
    if name != "cuda":
        return CpuBackend
    from .cuda import CudaBackend

    return CudaBackend


class MoE(Collective):
    """An expert-parallel Mixture-of-Experts layer, or `layers` of them, over the ranks of a communicator. Collective.

    cfg: equal on all ranks; or a list with the configuration of each layer, without `layers`, which are equal but for
    ffn, router, shared expert and what an expert is (activation, gated, limit, bias). The attribute `cfg` is the first
    one, `layer_config` has that of a layer. comm: an mpi4py communicator, or None for one process without MPI.
    layers: layers with weights of their own that share windows, workers and threads. schedule: "fused" (one-sided,
    tile by tile) or "bulk" (count exchange, Alltoallv, experts, Alltoallv: the baseline). threads: workers a rank; by
    default the cores that this rank may use, divided by the number of ranks that share them. placement: an entry for
    each expert, the rank that holds it or a list of the ranks that hold copies; by default contiguous. plan: an
    `aristos.planner.Plan` for the communicator, rank i being device i: the layer then lives in this rank's group,
    `group` is its number, `comm` its communicator and `rank` the rank there.
    timeout: seconds that a wait may last while the awaited rank makes no progress. backend: "cpu" or "cuda", where the
    layer runs; None: "cuda" where CuPy sees a device and neither threads nor schedule="bulk" is given, else "cpu". The
    attribute `backend` has the choice.
    ranks_per_node: treat every group of so many consecutive ranks as a node, although MPI sees larger nodes; transport
    shm is used within a node, rma between nodes.
    Raises MismatchError where ranks disagree, InputError (a ValueError) on wrong arguments, MemoryProblem where
    windows do not fit.

    moves: what crosses between the ranks of a node, on CPUs. "tokens": rows travel to the ranks that hold their
    experts. "experts": a rank computes its own rows, and reads the experts of local peers where they lie. "auto": the
    latter for an expert that gets so many rows from a rank that computing them takes longer than reading its weights.
    The bits of the outputs are the same.

    With backend="cuda", a rank has one GPU. Host arrays are copied in and out, and a call has ended when it returns.
    Arrays in GPU memory (CuPy, PyTorch, JAX, Numba, `__cuda_array_interface__`, DLPack) are used in place, on their
    library's current stream or on `stream`, and a call returns before it has run; `synchronize` waits for it. Such a
    call can be captured in a CUDA graph. sms: the most SMs of its GPU that this layer may use, so that layers on other
    communicators or kernels of the program run beside it; by default all.
    """

    def __init__(
        self,
        cfg: MoEConfig | Sequence[MoEConfig],
        comm: Any = None,
        *,
        layers: int = 1,
        schedule: Schedule = "fused",
        threads: int | None = None,
        placement: Sequence[Any] | np.ndarray | None = None,
        timeout: float = 120.0,
        ranks_per_node: int | None = None,
        plan: Plan | None = None,
        backend: Literal["cpu", "cuda"] | None = None,
        sms: int | None = None,
        moves: Literal["auto", "tokens", "experts"] = "auto",
    ) -> None:
        self.group, self._group_comm = 0, None
        if plan is not None:
            if comm is None:
                raise InputError("plan needs comm, with a rank for each of its devices")
            check_comm(comm)
            first = cfg[0] if isinstance(cfg, list | tuple) and cfg else cfg
            experts = getattr(first, "experts", None)
            nodes = usable_nodes(ranks_per_node)
            comm, placement, self.group = split(comm, plan, experts, placement, usable_timeout(timeout), nodes)
            self._group_comm = comm
        self.backend = default_backend(threads, schedule) if backend is None else str(backend)
        if self.backend not in BACKENDS:
            self.backend = "cpu"  # refused below, after the ranks have met
        try:
            kind = backend_class(self.backend)
            super().__init__(Membership(comm, usable_timeout(timeout), ranks_per_node, self.backend))
            problem: Exception | None = None
            alike, places, shape, needs = "", None, {}, Needs()
            cfgs: tuple[MoEConfig, ...] = ()
            try:
                cfgs = _checked_options(cfg, layers, schedule, backend)
                for each in dict.fromkeys(cfgs):
                    kind.check(each, schedule, threads, sms)
                check_common(threads, timeout, ranks_per_node)
                check_moves(moves, self.backend, schedule)
                places = Placement(placement, cfgs[0].experts, self.world)
                alike = f"{cfg!r}, layers={len(cfgs)}, schedule={str(schedule)!r}, moves={moves}, placement={places}"
                shape = widths(*cfgs)
                if self.backend == "cpu" and schedule == "fused" and moves != "tokens":
                    shape["foreign"] = most_foreign(places, self._member.runtime.group.nodes)
                needs = Needs.most(kind.needs(each, self._member.runtime, sms) for each in dict.fromkeys(cfgs))
            except Exception as error:
                problem = refusal(error)
            self._member.join(problem, alike, places, shape, needs, threads)
        except BaseException:
            self._leave_group()
            raise
        self.cfg, self.layers, self.schedule, self.timeout = cfgs[0], len(cfgs), schedule, float(timeout)
        self._pending: PendingCall | None = None
        self._slots = {expert: slot for slot, expert in enumerate(self._member.mine)}
        try:
            self._backend = kind(Settings(cfgs, schedule, self.timeout, sms, moves), self._member)
        except BaseException:
            self._member.leave()
            self._leave_group()
            raise

    # ------------------------------------------------------------ weights and memory

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
        router_bias: Any = None,
        select_bias: Any = None,
        shared_up: Any = None,
        shared_gate: Any = None,
        shared_down: Any = None,
        shared_up_bias: Any = None,
        shared_gate_bias: Any = None,
        shared_down_bias: Any = None,
        shared_sigmoid: Any = None,
        local: bool = False,
        layout: Layout = "in_out",
        bits: Bits | None = None,
    ) -> None:
        """Take the weights of one layer; they are packed, so later changes to the arrays are not seen.

        up, gate: [E, H, F], down: [E, F, H], router: [H, E], up_bias, gate_bias: [E, F], down_bias: [E, H],
        router_bias (added to the scores), select_bias (added to the weights for choosing alone): [E]; shared_up and so
        on: the shared expert's, without E; shared_sigmoid: [H]. Each is float32,
        bfloat16 (ml_dtypes) or float16, memory-mapped or not; with local=True only this rank's experts, in the
        order of their ids (`placement.mine(rank)`). Instead of an array with E in front, a list of E arrays; those of
        experts that this rank does not hold may be None. layout="out_in": nn.Linear's order, up, gate [E, F, H], down
        [E, H, F], router [E, H]. bits: the type whose bits arrays of uint16 hold. Weights are rounded to cfg.dtype;
        router and biases become float32. A router is needed unless every call brings its ids.

        Not collective. It clears what this rank adds to `summary`; the other calls that load keep it. Raises
        InputError; the layer then keeps the weights it had, and memory is needed for both.
        """
        self._settled()
        check_layer(layer, self.layers)
        given = {
            "up": up,
            "down": down,
            "router": router,
            "gate": gate,
            "up_bias": up_bias,
            "gate_bias": gate_bias,
            "down_bias": down_bias,
            "router_bias": router_bias,
            "select_bias": select_bias,
            "shared_up": shared_up,
            "shared_gate": shared_gate,
            "shared_down": shared_down,
            "shared_up_bias": shared_up_bias,
            "shared_gate_bias": shared_gate_bias,
            "shared_down_bias": shared_down_bias,
            "shared_sigmoid": shared_sigmoid,
        }
        checked = GivenLayer(self.layer_config(layer), self._member.mine, local, layout, bits, given)
        self._backend.load(int(layer), checked)
        self._backend.clear_totals()

    def layer_config(self, layer: int) -> MoEConfig:
        """The configuration of one layer."""
        check_layer(layer, self.layers)
        return self._backend.cfgs[layer]

    def holds(self, expert: int) -> bool:
        """Whether this rank holds the expert: `load_expert` ignores all others, so their arrays need not be read."""
        self._alive()
        return self._slot(expert) is not None

    def load_expert(
        self,
        layer: int,
        expert: int,
        *,
        up: Any,
        down: Any,
        gate: Any = None,
        up_bias: Any = None,
        gate_bias: Any = None,
        down_bias: Any = None,
        layout: Layout = "in_out",
        bits: Bits | None = None,
    ) -> None:
        """Take the weights of one expert of a layer. expert: its id in 0..E-1.

        up, gate: [H, F], down: [F, H], up_bias, gate_bias: [F], down_bias: [H]; types, layout and bits as in `load`. An
        expert that this rank does not hold is ignored, whatever the arrays. Memory is allocated once for all experts of
        this rank, and packing needs space for one more. Not collective; a call is refused on all ranks while an expert
        is missing. Raises InputError; the layer then keeps the weights it had. To load all experts again: `unload`.
        """
        self._settled()
        check_layer(layer, self.layers)
        slot = self._slot(expert)
        if slot is None:
            return
        given = {
            "up": up,
            "down": down,
            "gate": gate,
            "up_bias": up_bias,
            "gate_bias": gate_bias,
            "down_bias": down_bias,
        }
        arrays = Given("load_expert", self.layer_config(layer), layout, bits).expert(given)
        self._backend.load_part(int(layer), lambda weights: weights.take_expert(slot, arrays))

    def load_shared(
        self,
        layer: int,
        *,
        up: Any,
        down: Any,
        gate: Any = None,
        up_bias: Any = None,
        gate_bias: Any = None,
        down_bias: Any = None,
        sigmoid: Any = None,
        layout: Layout = "in_out",
        bits: Bits | None = None,
    ) -> None:
        """Take a layer's shared expert, on every rank. Not collective.

        up, gate: [H, Fs], down: [Fs, H], up_bias, gate_bias: [Fs], Fs = cfg.shared_ffn, down_bias: [H]; sigmoid: [H],
        with cfg.shared_sigmoid. Types, layout and bits as in `load`. Raises InputError; the layer then keeps the one it
        had.
        """
        self._settled()
        check_layer(layer, self.layers)
        given = {
            "shared_up": up,
            "shared_gate": gate,
            "shared_down": down,
            "shared_up_bias": up_bias,
            "shared_gate_bias": gate_bias,
            "shared_down_bias": down_bias,
            "shared_sigmoid": sigmoid,
        }
        arrays = Given("load_shared", self.layer_config(layer), layout, bits).shared(given)
        if arrays:
            self._backend.load_part(int(layer), lambda weights: weights.take_shared(arrays))

    def load_router(
        self,
        layer: int,
        *,
        router: Any = None,
        router_bias: Any = None,
        select_bias: Any = None,
        layout: Layout = "in_out",
        bits: Bits | None = None,
    ) -> None:
        """Take a layer's router, on every rank; what is None stays as it was. Not collective.

        router: [H, E], router_bias, select_bias: [E]; with identity experts a column more for each; types, layout and
        bits as in `load`. Raises InputError; the layer then keeps the router it had.
        """
        self._settled()
        check_layer(layer, self.layers)
        given = Given("load_router", self.layer_config(layer), layout, bits)
        arrays = given.router({"router": router, "router_bias": router_bias, "select_bias": select_bias})
        if not arrays:
            raise InputError("load_router needs router=, router_bias= or select_bias=")
        self._backend.load_part(int(layer), lambda weights: weights.take_router(arrays))

    def unload(self, layer: int) -> None:
        """Forget a layer's weights: calls of it are refused on all ranks until all parts have been loaded again.

        Before a layer is loaded again part by part, so that no call mixes old and new parts if that fails half-way.
        Memory stays. Not collective.
        """
        self._settled()
        check_layer(layer, self.layers)
        self._backend.unload(int(layer))

    def _slot(self, expert: Any) -> int | None:
        """The number of an expert among this rank's; None if another rank holds it."""
        most = self.cfg.experts - 1
        if isinstance(expert, bool) or not isinstance(expert, int | np.integer) or not 0 <= expert <= most:
            raise InputError(f"expert must be an int in 0..{most}, got {expert!r}")
        return self._slots.get(int(expert))

    def packed_weights(self, layer: int = 0) -> Any:
        """A loaded layer's weights as this backend's kernels read them: `LayerWeights` or `DeviceWeights`."""
        self._alive()
        return self._loaded(layer)

    @staticmethod
    def memory(
        cfg: MoEConfig | Sequence[MoEConfig],
        world: int,
        placement: Sequence[Any] | np.ndarray | None = None,
        ranks_per_node: int | None = None,
        *,
        layers: int = 1,
        threads: int | None = None,
        backend: Literal["cpu", "cuda"] | None = None,
    ) -> int:
        """Bytes that the rank that needs most allocates for this layer on `world` ranks: windows and packed weights.

        Windows: rings (a source's rows of one call, at most 64 MiB over all sources or 64 rows each), return rows
        (max_tokens * top_k, and max_tokens more for a shared expert) and words; neither skew nor `layers` changes them.
        cfg: one, or a list with that of each layer. With several nodes there is a second
        window, and for each rank of another node an outbox and a ring of staged outputs. Weights: of `layers` layers,
        the experts of the rank that holds most of them, with biases, and a router a layer, padded as the kernels read
        them. Not included: up to 2 MiB and 4 KiB a rank where ranks share weights in huge pages (`moves`); the
        arrays given to `load` and to calls; tables that grow with the workers.

        threads: include the scratch of so many workers: prepared rows, hidden activations and sums of a run, and of one
        column-split run. backend: None is "cpu", but "cuda" for tf32. With "cuda", which needs numba-cuda here,
        weights, the first window and a copy of the second lie in GPU memory, and hidden activations are not included.
        Raises InputError for a layer that cannot be made, EnvironmentProblem without numba-cuda.
        """
        world = whole("world", world)
        check_common(threads, DEFAULT_TIMEOUT, ranks_per_node)
        cfgs = _checked_options(cfg, layers, "fused", backend)
        name = backend or ("cuda" if cfgs[0].dtype == "tf32" else "cpu")
        for each in dict.fromkeys(cfgs):
            backend_class(name).check(each, "fused", threads)
        places = Placement(placement, cfgs[0].experts, world)
        windows = rank_bytes(shape_of(world, places, **widths(*cfgs)), Nodes.of(world, ranks_per_node), world - 1)
        packed_bytes = cpu_weights.packed_bytes
        if name == "cuda":
            from .cuda_weights import packed_bytes

            threads = None
        scratch = 0
        if threads is not None:
            needs = Needs.most(CpuBackend.needs(each, None) for each in dict.fromkeys(cfgs))
            scratch = int(threads) * lines(needs.scratch_bytes) + needs.shared_bytes
        weights = {each: packed_bytes(each, max(places.held)) for each in dict.fromkeys(cfgs)}
        return windows + scratch + sum(weights[each] for each in cfgs)

    # ------------------------------------------------------------ calls

    def __call__(
        self,
        x: Any,
        ids: Any = None,
        weights: Any = None,
        layer: int = 0,
        out: Any = None,
        return_stats: bool = False,
        stream: Any = None,
        router_x: Any = None,
        return_routing: bool = False,
    ) -> Any:
        """y = sum over a token's experts of weight * expert(x). Collective, in the same order on every rank.

        x: [..., H] of cfg.dtype; y has its shape. ids: [..., k] integers (-1: choice not taken) and weights: [..., k]
        route from outside. router_x: what the router reads instead of x, of the same shape and dtype. out: [..., H],
        contiguous, not overlapping x. With return_stats also a `CallStats`, with return_routing also a `Routing`: y,
        stats, routing. Raises InputError here, and PeerInputError or MismatchError on the other ranks; the layer stays
        usable.

        stream: with backend="cuda", the stream that the call is queued on, of any library or as CUDA's number. By
        default the current one of the arrays' library, x's first; then every library's later work sees the result. With
        `stream`, only that stream's does. The call waits for what the libraries have queued before in either case.
        """
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        call = self._enter(given, layer)
        return self._backend.result(call, self._backend.run(call), return_stats)

    def start(
        self,
        x: Any,
        ids: Any = None,
        weights: Any = None,
        layer: int = 0,
        out: Any = None,
        return_stats: bool = False,
        stream: Any = None,
        router_x: Any = None,
        return_routing: bool = False,
    ) -> PendingCall:
        """Begin the same call in the background; `wait()` on what this returns ends it."""
        backend = self._backend
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        call = self._enter(given, layer, copy=True)
        done = self._alive().background().submit(lambda: backend.run(call))
        self._pending = PendingCall(done, lambda seconds: backend.result(call, seconds, return_stats), self._ended)
        return self._pending

    def _ended(self) -> None:
        self._pending = None

    def _enter(self, given: CallArguments, layer: Any, copy: bool = False) -> Any:
        """Open a call and check its arguments; a refusal is kept for the result, because the other ranks enter too."""
        runtime, backend = self._alive(), self._backend
        runtime.enter()
        call = backend.new_call()
        try:
            check_layer(layer, self.layers)
            call.layer = int(layer)
            self._loaded(layer)
            boolean("return_routing", given.return_routing)
            backend.take(call, given, copy)
        except Exception as error:
            call.error = refusal(error)
            backend.refuse(call)
        except BaseException:
            runtime.leave()
            raise
        return call

    def _loaded(self, layer: Any) -> Any:
        """The packed weights of a layer; raises InputError for a layer that does not exist or lacks weights."""
        check_layer(layer, self.layers)
        loaded = self._backend.weights[layer]
        if loaded is None:
            raise NotLoaded(f"layer {layer} has no weights: load() it first", WEIGHTS)
        loaded.check(layer)
        return loaded

    def synchronize(self) -> None:
        """Wait for the last call and raise what calls since the last `synchronize` have refused. Not collective.

        For calls with arrays in GPU memory; other calls have ended when they return.
        """
        self._settled()
        self._backend.synchronize()

    @property
    def device(self) -> int | None:
        """CUDA's number, in this process, of this rank's GPU; None with backend="cpu"."""
        return self._backend.device

    @property
    def isa(self) -> str | None:
        """The instruction set of this rank's kernels, such as "amx"; None with backend="cuda"."""
        return self._backend.isa

    # ------------------------------------------------------------ what calls did

    def summary(self) -> Summary:
        """Totals over all ranks and calls of this object: messages by size, times, waits by peer. Collective.

        Messages within a node are the puts of dispatched rows, not the outputs, which the kernel stores itself; those
        between nodes are batches, see `MessageClass`.
        With backend="cuda", calls with return_stats=True are counted, and no others.
        """
        runtime = self._settled()
        runtime.refuse_open()
        share = self._backend.totals.share(self.rank, self.world)
        return summarize(runtime.group.allgather(share, "summaries"))

    def timeline(self, on: bool, events: int = 100_000) -> None:
        """Record what every worker does in later calls, up to `events` a worker and call; `on=False` ends it.

        Raises InputError with backend="cuda".
        """
        events = whole("events", events, 10**8, "an int in 1..10**8")
        self._settled()
        self._backend.timeline(on, events)

    def events(self) -> list[Event]:
        """(worker, kind, start, end, peer or expert, rows) of the last call, in seconds on CLOCK_MONOTONIC.

        A worker's events do not overlap, except that it serves the wire while it waits: such a "wire" event lies within
        a "wait".
        """
        self._alive()
        return self._backend.events()

    # ------------------------------------------------------------ end

    def _settled(self) -> Runtime:
        """The runtime; raises OpenCallError while a started call of this layer is open."""
        if self._pending is not None:
            raise OpenCallError("a call of this layer was started: wait() for it first")
        return self._alive()

    def close(self) -> None:
        """Release windows, weights, threads and memory; collective, and harmless when repeated."""
        if self._pending is not None:
            self._pending.abandon()
            self._alive().open = False
        if self._member.joined:
            self._backend.close()
        super().close()
        self._leave_group()

    def _leave_group(self) -> None:
        """Free the communicator of a plan's group; collective in the group."""
        comm, self._group_comm = self._group_comm, None
        if comm is not None:
            comm.Free()


def check_moves(moves: Any, backend: str, schedule: Any) -> None:
    """Raise InputError unless `moves` can be had with this backend and schedule."""
    if not isinstance(moves, str) or moves not in MOVES:
        raise InputError(f"moves must be one of {', '.join(MOVES)}, got {moves!r}")
    if moves == "experts" and (backend == "cuda" or schedule == "bulk"):
        what = "backend='cuda'" if backend == "cuda" else "schedule='bulk'"
        raise InputError(f"moves='experts' is for CPUs and the fused schedule: with {what} tokens always travel")


def _checked_options(cfg: Any, layers: Any, schedule: Any, backend: Any) -> tuple[MoEConfig, ...]:
    """The configuration of each layer. Raises InputError for an option that no backend has."""
    if backend is not None and not (isinstance(backend, str) and backend in BACKENDS):
        raise InputError(f"backend must be None or one of {', '.join(BACKENDS)}, got {backend!r}")
    listed = isinstance(cfg, list | tuple)
    cfgs = tuple(cfg) if listed else (cfg,)
    if not cfgs:
        raise InputError("cfg must be an aristos.MoEConfig or a list of them, got an empty list")
    for number, each in enumerate(cfgs):
        if not isinstance(each, MoEConfig):
            name = f"cfg[{number}]" if listed else "cfg"
            raise InputError(f"{name} must be an aristos.MoEConfig, got {type(each).__name__}")
        for name in COMMON:
            if getattr(each, name) != getattr(cfgs[0], name):
                raise InputError(
                    f"layers of one object must have equal {', '.join(COMMON)}, got {name}={getattr(each, name)!r} in"
                    f" layer {number} and {getattr(cfgs[0], name)!r} in layer 0: make an object for each"
                )
    if not isinstance(schedule, str) or schedule not in ("fused", "bulk"):
        raise InputError(f"schedule must be 'fused' or 'bulk', got {schedule!r}")
    count = whole("layers", layers, MOST_LAYERS, f"an int in 1..{MOST_LAYERS}")
    if not listed:
        return cfgs * count
    if count != 1:
        raise InputError(f"layers must be left out where cfg is a list, got {layers!r}")
    return cfgs
