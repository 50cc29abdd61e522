"""The layer a user calls. It checks options, joins the ranks' runtime, and hands each call to its backend."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..config import MOST_EXPERTS, MoEConfig, boolean, whole
from ..engine.layout import lines, rank_bytes
from ..errors import InputError, ResultsError
from ..host.nodes import Nodes
from ..placement import Placement, Plan
from . import timeline
from . import weights as cpu_weights
from .arguments import DEFAULT_TIMEOUT, CallArguments, check_common, refusal
from .backend import Event, check_layer
from .collective import Membership, Needs, shape_of, widths
from .cpu import CpuBackend
from .grouped import PlanGroup
from .holders import Holders
from .making import Checked, join
from .on_disk import SavedLayers
from .options import Options, Schedule, backend_class, check_training, checked_options
from .pending import PendingCall
from .stats import Summary, summarize
from .tapes import checked_bytes
from .trained_weights import training_bytes


class MoE(SavedLayers):
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
            super().__init__(Membership(self._part.comm, options.limits, ranks_per_node, self.backend))
            with self._member.making():
                kind = backend_class(self.backend)
                made = join(options, self._part.placement, kind, self._member)
                self.cfg, self.schedule = made.settings.cfgs[0], made.settings.schedule
                self._begin(kind(made.settings, self._member))
                if made.reserve is not None:
                    self._begin_training(self._everyone(made, options), made.reserve)

    def _everyone(self, made: Checked, options: Options) -> Holders:
        """All ranks that train this object together."""
        whole = self._part.whole
        return Holders(self._member.runtime, whole, options.limits, options.nodes, made.holders, self.isa)

    def __repr__(self) -> str:
        if not self._member.joined:
            return "<MoE, closed>"
        cfg, loaded = self.cfg, sum(weights is not None for weights in self._backend.weights)
        shape = f"H {cfg.hidden} F {cfg.ffn} E {cfg.experts} k {cfg.top_k} {cfg.dtype}"
        workers = f"{self.threads} worker{'s' * (self.threads != 1)}"
        where = f"rank {self.rank} of {self.world}, {self.backend}, {self.schedule}, {workers}"
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
        world = whole("world", world, MOST_EXPERTS, f"a positive int of at most {MOST_EXPERTS}")
        check_common(threads, DEFAULT_TIMEOUT, ranks_per_node)
        cfgs = checked_options(cfg, layers, "fused", backend)
        name = backend or "cpu"
        for each in dict.fromkeys(cfgs):
            backend_class(name).check(each, "fused", threads)
        places = Placement(placement, cfgs[0].experts, world)
        shape = shape_of(world, places, **widths(*cfgs), train=boolean("train", train))
        windows = rank_bytes(shape, Nodes.of(world, ranks_per_node), world - 1)
        packed_bytes = cpu_weights.packed_bytes
        if name == "cuda":
            from .cuda_weights import packed_bytes

            threads = None
        scratch = 0
        if threads is not None:
            needs = Needs.most(CpuBackend.needs(each, None, train=train) for each in dict.fromkeys(cfgs))
            scratch = int(threads) * lines(needs.scratch_bytes) + needs.shared_bytes
        weights = {each: packed_bytes(each, max(places.held)) for each in dict.fromkeys(cfgs)}
        if train:
            check_training(cfgs[0], backend_class(name), "tokens")
            mine = [places.mine(rank) for rank in range(world)]
            copied = max(sum(len(places.copies[e]) > 1 for e in experts) for experts in mine)
            weights = {each: n + training_bytes(each, max(places.held), copied) for each, n in weights.items()}
            scratch += checked_bytes(tape_bytes, cfgs, world)
        elif tape_bytes is not None:
            raise InputError(f"tape_bytes applies only to train=True, got {tape_bytes!r}")
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
        """Begin the same call in the background and return at once; `wait()` of the returned object ends the call.

        Until then x and out must not be touched, no other call may be made on the communicator, and this object loads
        nothing; other objects may load. If the returned object is dropped, so is the result, and the next call waits.
        """
        backend = self._backend
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        background = self._alive().background()
        call = self._enter(given, layer, copy=True)
        done = background.submit(lambda: backend.run(call))
        pending = PendingCall(self._alive(), done, lambda seconds: backend.result(call, seconds, return_stats))
        self._pending = weakref.ref(pending)
        return pending

    def _enter(self, given: CallArguments, layer: Any, copy: bool = False) -> Any:
        """Open a call and check its arguments; a refusal is kept for the result, because the other ranks enter too."""
        runtime, backend = self._alive(), self._backend
        runtime.enter(self._member.number)
        call = backend.new_call()
        try:
            check_layer(layer, self.layers)
            call.layer = int(layer)
            self._loaded(layer)
            self.refuse_half_changed()
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
        runtime = self._settled()
        runtime.refuse_open()
        return summarize(runtime.group.allgather(self._share(), "summaries"))

    def local_summary(self) -> Summary:
        """`summary` of this rank alone: its own calls, rows and times; wait_seconds is [1, W]. Not collective."""
        self._settled()
        return summarize([self._share()])

    def _share(self) -> dict[str, Any]:
        """What this rank adds to a summary."""
        squares = np.array([weights.squares for weights in self._backend.weights])
        return self._backend.totals.share(self.rank, self.world) | {"squares": squares}

    def timeline(self, on: bool, events: int = 100_000) -> None:
        """Record what every worker does in later calls, up to `events` a worker and call; `on=False` ends it.

        With backend="cuda" no events are kept: later calls take a little longer, and their stats have the seconds and
        idle polls of workers. Raises EnvironmentProblem where not all blocks of the kernels that count fit on the GPU.
        """
        events = whole("events", events, 10**8, "an int in 1..10**8")
        self._settled()
        self._backend.timeline(on, events)

    def events(self) -> list[Event]:
        """(worker, kind, start, end, peer or expert, rows) of the last call, in seconds on CLOCK_MONOTONIC.

        An expert is named by its id, also one of a local peer that is computed in place; the shared expert by the first
        number that is no id. Other numbers are of ranks, and of tokens where a worker routes or combines.
        A worker's events do not overlap, except that it serves the wire while it waits: such a "wire" event lies within
        a "wait".
        """
        self._alive()
        return self._backend.events()

    def write_timeline(self, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
        """Write the events of the last call on all ranks to one file for ui.perfetto.dev. Collective.

        Rank 0 writes it; `aristos plot FILE.json` draws it. facts: JSON values about the call, `otherData` of the file.
        Raises InputError where no rank has events: `timeline(True)` comes before the call. Every rank raises where the
        file cannot be written.
        """
        runtime = self._settled()
        runtime.refuse_open()
        mine = (self.threads, self.events(), socket.gethostname())
        gathered = runtime.group.allgather(mine, "the events of a timeline")
        if not any(events for _, events, _ in gathered):
            raise InputError("no events are recorded: call timeline(True) before the call of the layer")
        problem: Exception | None = None
        if self.rank == 0:
            known = {"schedule": self.schedule, "moves": self.moves} | dict(facts or {})
            try:
                timeline.write(path, [each[:2] for each in gathered], [host for *_, host in gathered], known)
            except (OSError, TypeError, ValueError) as error:
                problem = ResultsError(f"the timeline {os.fspath(path)} cannot be written: {error}")
        self.agree(problem, "the file of a timeline")

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Release windows, weights, threads and memory; collective, and harmless when repeated."""
        if (pending := self._started()) is not None:
            pending.abandon()
            self._alive().open = False
        if self._member.joined:
            self._alive().end_dropped_call()
            self._backend.close()
            self._end_training()
        super().close()
        self._part.leave()
