"""The layer a user calls. It checks options, joins the ranks' runtime, and hands each call to its backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..config import MoEConfig, boolean
from ..errors import InputError
from ..placement import Plan
from ..transport.group import Group
from .arguments import DEFAULT_TIMEOUT, CallArguments, refusal
from .backend import Backend, check_layer
from .collective import Collective, Membership
from .delegated import delegated
from .grouped import PlanGroup
from .holders import Holders
from .loading import LoadedWeights
from .making import join, rank_memory
from .on_disk import SavedWeights
from .options import Options, Schedule, backend_class
from .pending import OpenCalls, PendingCall
from .stats import Summary, summarize
from .tapes import Reserve
from .timeline import Timeline
from .training import Tape, Training


class MoE(Collective):
    """An expert-parallel Mixture-of-Experts layer, or `layers` of them, over the ranks of a communicator. Collective.

    cfg: equal on all ranks; or, without `layers`, a list with the configuration of each layer. Those are equal but for
    ffn, router, shared expert and what an expert is (activation, gated, limit, bias). The attribute `cfg` is the first
    one, `layer_config` has that of a layer. comm: an mpi4py communicator, or None for one process without MPI.
    layers: layers with weights of their own that share windows, workers and threads. schedule: "fused" (one-sided,
    tile by tile) or "bulk" (count exchange, Alltoallv, experts, Alltoallv: the baseline). threads: workers a rank; by
    default the cores that this rank may use, divided by the number of ranks that share them. placement: an entry for
    each expert, the rank that holds it or a list of the ranks that hold copies; by default contiguous. plan: an
    `aristos.planner.Plan` for the communicator, rank i being device i: the layer then lives in this rank's group,
    `group` is its number, `comm` its communicator and `rank` the rank there.
    timeout: seconds that a rank in the same call may make no progress, or an MPI call take, before a wait fails.
    absent_timeout: seconds that a rank may still be in user code before a wait for it fails; by default ten times
    `timeout`. A warning comes after `timeout`. backend: where the
    layer runs: "cpu", which None means too, or "cuda". CUDA is experimental: never run on a GPU.
    ranks_per_node: treat every group of this many consecutive ranks as a node, although MPI sees larger nodes;
    transport shm is used within a node, rma between nodes.
    Raises MismatchError where ranks disagree, InputError (a ValueError) on wrong arguments, MemoryProblem where
    windows do not fit, EnvironmentProblem where the launcher started several tasks and each is a world of its own.

    moves: what crosses between the ranks of a node, on CPUs. "tokens": rows travel to the ranks that hold their
    experts. "experts": a rank computes its own rows, and reads the experts of local peers where they lie. "auto":
    a rank computes the rows of an expert itself if they cost more to copy than its weights to read, or if that relieves
    the busiest rank of the node; other rows travel. The bits of the outputs are the same. The attribute `moves` is what
    holds: "tokens" where rows always travel, see there.

    train: keep float32 weights and gradients, for `forward`, `backward`, `update`; on CPUs, float32 or bfloat16.
    tape_bytes: with train=True, bytes of this rank in which tapes keep rows of forward calls; None: max_tokens * top_k
    rows of each layer, in whole cache lines, or 0 on one rank; see `forward`.

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
        absent_timeout: float | None = None,
        ranks_per_node: int | None = None,
        plan: Plan | None = None,
        backend: Literal["cpu", "cuda"] | None = None,
        sms: int | None = None,
        moves: Literal["auto", "tokens", "experts"] = "auto",
        train: bool = False,
        tape_bytes: int | None = None,
    ) -> None:
        options = Options(
            cfg, layers, schedule, threads, placement, timeout, absent_timeout, ranks_per_node, plan, backend, sms,
            moves, train, tape_bytes,
        )  # fmt: skip
        self._part = PlanGroup(comm, options)
        self.group, self.backend = self._part.number, options.backend_name
        self.timeout, self.absent_timeout = options.limits
        with self._part.making():
            super().__init__(Membership("MoE", self._part.comm, options.limits, ranks_per_node, self.backend))
            with self._member.making():
                kind = backend_class(self.backend)
                made = join(options, self._part.placement, kind, self._member)
                self._hold(kind(made.settings, self._member))
                if made.reserve is not None:
                    self._hold_training(options, made.holders, made.reserve)

    def _hold(self, backend: Backend) -> None:
        """Take the parts of every layer object. The layer has joined its runtime."""
        settings = backend.settings
        self.cfg, self.schedule, self.layers = settings.cfgs[0], settings.schedule, settings.layers
        self._backend, self._calls = backend, OpenCalls(self._member, self.layers)
        self._weights = LoadedWeights(backend, self._member, self._calls)
        self._timeline = Timeline(backend, self._member, self._calls)
        self._training: Training | None = None
        self._saved: SavedWeights | None = None

    def _hold_training(self, options: Options, holders: list[list[int]], reserve: Reserve) -> None:
        """Take the parts of an object that is trained. holders: see `holders_of`."""
        runtime, whole = self._member.runtime, self._part.whole
        everyone = Holders(runtime, whole, options.limits, options.nodes, holders, self.isa)
        self._training = Training(self._backend, self._member, self._weights, self._calls, everyone, reserve)
        self._saved = SavedWeights(self._training, self._backend, self._calls)

    def __repr__(self) -> str:
        if not self._member.joined:
            return "<MoE, closed>"
        cfg, loaded = self.cfg, sum(weights is not None for weights in self._backend.weights)
        shape = f"H {cfg.hidden} F {cfg.ffn} E {cfg.experts} k {cfg.top_k} {cfg.dtype}"
        workers = f"{self.threads} worker{'s' * (self.threads != 1)}"
        where = f"rank {self.rank} of {self.world}, {self.backend}, {self.schedule}, {workers}"
        where += ", train" if self._training is not None else ""
        broken = "" if self._member.runtime.broken is None else ", failed"
        return f"<MoE {shape}, {where}, {loaded} of {self.layers} layers have weights{broken}>"

    # ------------------------------------------------------------ memory

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
        train: bool = False,
        tape_bytes: int | None = None,
    ) -> int:
        """Bytes that the rank that needs most allocates for this layer on `world` ranks: windows and packed weights.

        Windows: rings (a source's rows of one call, at most 64 MiB over all sources or 64 rows each), return rows
        (max_tokens * top_k, and max_tokens more for a shared expert) and words; neither skew nor `layers` changes them.
        With several nodes there is a second window, and for each rank of another node an outbox and a ring of staged
        outputs. Weights: of `layers` layers, the experts of the rank that holds most of them, with biases, and a router
        a layer, padded as the kernels read them. Not included: up to 2 MiB and 4 KiB a rank where ranks share weights
        in huge pages (`moves`); the arrays given to `load` and to calls; ids and weights of max_tokens tokens, and with
        weights on the input their rows; tables that grow with the workers.

        threads: include the scratch of this many workers: prepared rows, hidden activations and sums of a run, and of
        one column-split run. cfg: one configuration, or a list with that of each layer. backend: None: "cpu".
        With "cuda", which needs numba-cuda here, weights, the first window and a copy of the second lie in
        GPU memory, and hidden activations are not included.
        train: include masters, gradients (of experts with copies twice), projections packed transposed, and
        `tape_bytes`, as the layer is made with; not what tapes hold of their own tokens, nor buffers of backward calls.
        Raises InputError for a layer that cannot be made, EnvironmentProblem without numba-cuda.
        """
        options = Options(
            cfg, layers, "fused", threads, placement, DEFAULT_TIMEOUT, None, ranks_per_node, None, backend, None,
            "tokens", train, tape_bytes,
        )  # fmt: skip
        return rank_memory(options, world)

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
        """Begin the same call in the background and return at once; `wait()` of the returned object ends the call.

        Until then x and out must not be touched, no other call may be made on the communicator, and this object loads
        nothing; other objects may load. If the returned object is dropped, so is the result, and the next call waits.
        """
        backend = self._backend
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        runtime = self._member.alive()
        background = runtime.background()
        call = self._enter(given, layer, copy=True)
        done = background.submit(lambda: backend.run(call))
        pending = PendingCall(runtime, done, lambda seconds: backend.result(call, seconds, return_stats))
        self._calls.begin(pending)
        return pending

    def _enter(self, given: CallArguments, layer: Any, copy: bool = False) -> Any:
        """Open a call and check its arguments; a refusal is kept for the result, because the other ranks enter too."""
        runtime, backend = self._member.alive(), self._backend
        runtime.enter(self._member.number)
        call = backend.new_call()
        try:
            check_layer(layer, self.layers)
            call.layer = int(layer)
            self._weights.packed_weights(layer)
            self._weights.refuse_half_changed()
            boolean("return_routing", given.return_routing)
            backend.take(call, given, copy)
        except Exception as error:
            call.error = refusal(error)
            backend.refuse(call)
        except BaseException:
            runtime.leave()
            raise
        return call

    def synchronize(self) -> None:
        """Wait for the last call and raise what calls since the last `synchronize` have refused. Not collective.

        For calls with arrays in GPU memory; other calls have ended when they return.
        """
        self._calls.settled()
        self._backend.synchronize()

    @property
    def device(self) -> int | None:
        """CUDA's number, in this process, of this rank's GPU; None with backend="cpu"."""
        return self._backend.device

    @property
    def isa(self) -> str | None:
        """The instruction set of this rank's kernels, such as "amx"; None with backend="cuda"."""
        return self._backend.isa

    @property
    def moves(self) -> str:
        """What crosses between the ranks of a node: as asked, or "tokens" where rows always travel; equal on all ranks.

        They do with schedule="bulk", with train=True and on CUDA; where the ranks share no memory for weights, see
        `aristos doctor`; and where no rank sends to experts of local peers, as with one rank a node.
        """
        return self._backend.moves

    # ------------------------------------------------------------ what calls did

    def summary(self) -> Summary:
        """Totals over all ranks and calls of this object: messages by size, times, waits by peer. Collective.

        Also, for each layer, what packed weights lost of plain arrays given to `load`.

        Messages within a node are the puts of dispatched rows, not the outputs, which the kernel stores itself; those
        between nodes are batches, see `MessageClass`.
        With backend="cuda", calls with return_stats=True are counted, and no others.
        """
        runtime = self._calls.settled()
        runtime.refuse_open()
        return summarize(runtime.group.allgather(self._share(), "summaries"))

    def local_summary(self) -> Summary:
        """`summary` of this rank alone: its own calls, rows and times; wait_seconds is [1, W]. Not collective."""
        self._calls.settled()
        return summarize([self._share()])

    def _share(self) -> dict[str, Any]:
        """What this rank adds to a summary."""
        squares = np.array([weights.squares for weights in self._backend.weights])
        return self._backend.totals.share(self.rank, self.world) | {"squares": squares}

    timeline = delegated("_timeline", Timeline.timeline)
    events = delegated("_timeline", Timeline.events)
    write_timeline = delegated("_timeline", Timeline.write_timeline)

    # ------------------------------------------------------------ weights

    load = delegated("_weights", LoadedWeights.load)
    load_expert = delegated("_weights", LoadedWeights.load_expert)
    load_shared = delegated("_weights", LoadedWeights.load_shared)
    load_router = delegated("_weights", LoadedWeights.load_router)
    unload = delegated("_weights", LoadedWeights.unload)
    holds = delegated("_weights", LoadedWeights.holds)
    packed_weights = delegated("_weights", LoadedWeights.packed_weights)

    def layer_config(self, layer: int) -> MoEConfig:
        """The configuration of one layer."""
        check_layer(layer, self.layers)
        return self._backend.cfgs[layer]

    # ------------------------------------------------------------ training

    def forward(
        self,
        x: Any,
        ids: Any = None,
        weights: Any = None,
        layer: int = 0,
        save: Literal["rows", "hidden", "nothing"] = "rows",
    ) -> tuple[np.ndarray, Tape]:
        """The same call as `moe(x, ids, weights, layer)`, with a tape for `backward`: (y, tape). Collective.

        The tape holds a copy of x and the routing, on this rank: S (H + 3 k + columns) numbers. `tape.routing` is the
        call's `Routing`, a copy made at its first use. Requires train=True.

        save: what this rank keeps of the rows that its experts compute. "rows": x of other ranks' rows, which the
        backward call then need not copy again; "hidden": also the products with up and gate, which it then need not
        compute again. A rank keeps less of a source's rows if they do not fit into the largest free part of its
        `tape_bytes`. `tape.kept` says, for each rank, what it keeps of this rank's rows. The bits of the gradients are
        the same.
        """
        training = self.training
        with training.taping(layer, save) as taping:
            y, routing = self(x, ids, weights, layer, return_routing=True)
        return y, training.new_tape(x, int(layer), routing, taping)

    backward = delegated("_training", Training.backward)
    grads = delegated("_training", Training.grads)
    params = delegated("_training", Training.params)
    zero_grads = delegated("_training", Training.zero_grads)
    reduce_grads = delegated("_training", Training.reduce_grads)
    update = delegated("_training", Training.update)
    save = delegated("_saved", SavedWeights.save)
    restore = delegated("_saved", SavedWeights.restore)

    @property
    def training(self) -> Training:
        """What an optimizer holds of this object. Raises InputError without train=True."""
        self._member.alive()
        if self._training is None:
            raise InputError("training requires a layer made with train=True")
        return self._training

    @property
    def everyone(self) -> Group:
        """The group of all ranks that train this object together; with a plan, the ranks of all its groups."""
        return self._member.everyone

    @property
    def open_tapes(self) -> int:
        """How many tapes of this object wait for `backward` or `discard`."""
        return len(self._calls.tapes)

    @property
    def tape_bytes_taken(self) -> int:
        """Bytes of this rank's `tape_bytes` that open tapes hold."""
        return 0 if self._training is None else self._training.tape_bytes_taken

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Release windows, weights, threads and memory; collective, and harmless when repeated."""
        if (pending := self._calls.started()) is not None:
            pending.abandon()
            self._member.alive().open = False
        if self._member.joined:
            self._member.alive().end_dropped_call()
            self._backend.close()
            if self._training is not None:
                self._training.close()
        super().close()
        self._part.leave()
