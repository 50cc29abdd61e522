"""The layer that a user calls. It checks options, joins the ranks' runtime, and gives each call to its backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..config import MoEConfig, boolean
from ..errors import InputError
from ..placement import Plan
from ..transport.group import Group
from .arguments import CallArguments, refusal
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

    With backend="cuda", a rank has one GPU. Host arrays are copied in and out, and a call with them has ended when it
    returns. Arrays in GPU memory (CuPy, PyTorch, JAX, Numba, `__cuda_array_interface__`, DLPack) are used in place. A
    call with them is queued on their library's current stream or on `stream`, and returns before it has run;
    `synchronize` waits for it. Such a call can be captured in a CUDA graph.

    Parameters
    ----------
    cfg : MoEConfig, or sequence of MoEConfig
        The configuration, equal on all ranks. A sequence, without `layers`: the configuration of each layer. They may
        differ in ffn, router, shared expert, activation, gated, limit and bias only.
    comm : communicator or None, default None
        An mpi4py communicator. None: one process without MPI.
    layers : int, default 1
        The number of layers. They have separate weights, and share windows, workers and threads.
    schedule : str, default "fused"
        "fused": one-sided puts, tile by tile. "bulk": the baseline, which is count exchange, Alltoallv, experts,
        Alltoallv.
    threads : int or None, default None
        The number of workers of each rank. None: the number of cores that this rank may use, divided by the number of
        ranks that share them.
    placement : sequence of E entries, array [E], or None, default None
        For each expert the rank that holds it, or a list of the ranks that hold copies. None: contiguous.
    timeout : float, default 120.0
        Seconds after which a wait fails if a rank in the same call makes no progress, or an MPI call has not returned.
    absent_timeout : float or None, default None
        Seconds after which a wait fails for a rank that is still in user code. None: ten times `timeout`. A warning
        comes after `timeout`.
    ranks_per_node : int or None, default None
        Treat every group of this many consecutive ranks as a node, although MPI sees larger nodes: transport shm is
        used within a node, rma between nodes. None: nodes as MPI sees them.
    plan : Plan or None, default None
        An `aristos.planner.Plan` for the communicator; rank i is device i. The layer then belongs to this rank's group:
        `group` is the group's number, `comm` its communicator, and `rank` this rank's number in it.
    backend : str or None, default None
        Where the layer runs: "cpu" or "cuda". None: "cpu". CUDA is experimental: it has never run on a GPU.
    sms : int or None, default None
        With backend="cuda", the most SMs of its GPU that this layer may use. The rest is left to layers on other
        communicators and to kernels of the program. None: all.
    moves : str, default "auto"
        What crosses between the ranks of a node, on CPUs. The bits of outputs do not depend on it. The attribute
        `moves` says what the layer does.

        - "tokens": rows travel to the ranks that hold their experts.
        - "experts": a rank computes its own rows, and reads the experts of local peers where they lie.
        - "auto": a rank computes rows for an expert of a local peer itself if copying the rows costs more than reading
          the weights, or if that relieves the busiest rank of the node; other rows travel.
    train : bool, default False
        Keep float32 weights and gradients, for `forward`, `backward` and `update`. Requires CPUs, and rows of float32
        or bfloat16.
    tape_bytes : int or None, default None
        With train=True, how many bytes this rank has for rows that tapes keep, see `forward`. None: enough for
        max_tokens * top_k rows of each layer, where a row takes whole cache lines; 0 if there is only one rank.

    Attributes
    ----------
    cfg : MoEConfig
        The first layer's configuration; `layer_config` returns the configuration of any layer.
    group : int
        The number of this rank's group of the plan; 0 without one.

    Raises
    ------
    InputError
        A value is out of its range, or options exclude one another.
    PeerInputError
        Another rank raised InputError.
    MismatchError
        Ranks give different arguments.
    OpenCallError
        A call on the communicator is open.
    ClosedError
        An earlier failure left the engine of the communicator unusable.
    MemoryProblem
        The windows do not fit into memory.
    EnvironmentProblem
        The launcher started several tasks, but MPI gives each of them a world of its own; or the backend or MPI lacks
        something that is needed.
    WaitTimeout, PoisonedError
        A rank did not come in time, or failed.
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
            cfg,
            layers,
            threads,
            placement,
            ranks_per_node,
            backend,
            train,
            tape_bytes,
            schedule,
            timeout,
            absent_timeout,
            plan,
            sms,
            moves,
        )
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
        """Set the parts that every layer object has. The layer must have joined its runtime."""
        settings = backend.settings
        self.cfg, self.schedule, self.layers = settings.cfgs[0], settings.schedule, settings.layers
        self._backend, self._calls = backend, OpenCalls(self._member, self.layers)
        self._weights = LoadedWeights(backend, self._member, self._calls)
        self._timeline = Timeline(backend, self._member, self._calls)
        self._training: Training | None = None
        self._saved: SavedWeights | None = None

    def _hold_training(self, options: Options, holders: list[list[int]], reserve: Reserve) -> None:
        """Set the parts of an object that is trained. holders: see `holders_of`."""
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
        """Bytes of windows and packed weights on the rank that needs most, if there are `world` ranks.

        A window holds rings, return rows and words. There is a ring for each source, with space for its rows of one
        call, but at most 64 MiB for all sources together, or 64 rows for each if that is more. With two levels at most
        192 MiB are for rings, outboxes and staged outputs together. There are max_tokens * top_k return rows, and
        max_tokens more for a shared expert. Neither skew nor `layers` changes the window's size.
        With several nodes there is a second window, and for each rank of another node an outbox and a ring of staged
        outputs. The weights are those of `layers` layers, padded as the kernels read them: a router for each layer, and
        the experts, with biases, of the rank that holds most.

        Not included are: up to 2 MiB and 4 KiB of each rank where ranks share weights in huge pages (`moves`); arrays
        given to `load` and to calls; ids and weights of max_tokens tokens, and their rows if weights are applied to the
        input; tables that grow with the workers; with train=True, the tokens of this rank's tapes, and buffers of
        backward calls.

        Parameters
        ----------
        cfg : MoEConfig, or sequence of MoEConfig
            As for `MoE`.
        world : int
            W, the number of ranks.
        placement : sequence of E entries, array [E], or None, default None
            As for `MoE`.
        ranks_per_node : int or None, default None
            As for `MoE`. None: all ranks are on one node.
        layers : int, default 1
            As for `MoE`.
        threads : int or None, default None
            Include the scratch memory of this many workers, which holds prepared rows, hidden activations and sums of
            a run for each worker and of one column-split run. None: include none.
        backend : str or None, default None
            "cpu" or "cuda". None: "cpu". With "cuda", weights, the first window and a copy of the second lie in GPU
            memory, and hidden activations are not included.
        train : bool, default False
            Include masters, gradients (twice for experts with copies) and transposed packed projections.
        tape_bytes : int or None, default None
            As for `MoE`. These bytes are included with train=True.

        Returns
        -------
        int
            The number of bytes.

        Raises
        ------
        InputError
            No layer can be made with these options.
        EnvironmentProblem
            backend="cuda" is given, but there is no numba-cuda.
        """
        options = Options(cfg, layers, threads, placement, ranks_per_node, backend, train, tape_bytes)
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

        If a rank raises InputError, the others raise PeerInputError, and the layer stays usable.

        Parameters
        ----------
        x : array [..., H] of cfg.dtype
            This rank's tokens, at most max_tokens.
        ids : array [..., k], integers, or None, default None
            The experts of each token, chosen by the caller; -1: choice not taken. None: the router chooses.
        weights : array [..., k], floats, or None, default None
            The combine weights of `ids`.
        layer : int, default 0
            The layer to call.
        out : array [..., H] of cfg.dtype, or None, default None
            Where to write y. It must be contiguous and not overlap x. None: a new array.
        return_stats : bool, default False
            Return a `CallStats` too.
        stream : stream, int or None, default None
            With backend="cuda", the stream on which the call is queued: a stream of any library, or CUDA's number of a
            stream. Only later work of this stream sees the result. None: the current stream of the first array whose
            library has one, beginning with x; then later work of every library sees the result. In both cases the call
            waits for work that the libraries have queued before.
        router_x : array [..., H] of cfg.dtype, or None, default None
            What the router reads instead of x.
        return_routing : bool, default False
            Return a `Routing` too.

        Returns
        -------
        array [..., H] of cfg.dtype
            y; with return_stats or return_routing a tuple: y, stats, routing.

        Raises
        ------
        InputError
            Arrays do not fit, there are more than max_tokens tokens, ids are out of range or repeated in a token, or
            router scores or weights are not finite.
        NotLoaded
            This rank has not loaded a part of the layer's weights.
        PeerInputError
            Another rank raised InputError.
        MismatchError
            Another rank made another call.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        WaitTimeout, PoisonedError, CorruptionError
            A rank made no progress, a rank failed, or shared memory was damaged; the engine is unusable.
        """
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        call = self._enter(given, layer)
        return self._backend.result(call, self._backend.run_call(call), return_stats)

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
        """Begin a call like `moe(x, ...)` in the background and return at once. Collective.

        Until you call `wait()` of the returned object, do not touch x and out, make no other call on the communicator,
        and load nothing into this object (other objects may load). If you drop the returned object, you drop the
        result too, and the next call waits until this one has ended.

        Parameters
        ----------
        x : array [..., H] of cfg.dtype
            This rank's tokens; all parameters are as for a call.
        ids : array [..., k], integers, or None, default None
            The experts of each token, chosen by the caller.
        weights : array [..., k], floats, or None, default None
            The combine weights of `ids`.
        layer : int, default 0
            The layer to call.
        out : array [..., H] of cfg.dtype, or None, default None
            Where to write y.
        return_stats : bool, default False
            `wait` returns a `CallStats` too.
        stream : stream, int or None, default None
            With backend="cuda", the stream on which the call is queued.
        router_x : array [..., H] of cfg.dtype, or None, default None
            What the router reads instead of x.
        return_routing : bool, default False
            `wait` returns a `Routing` too.

        Returns
        -------
        PendingCall
            A handle whose `wait` returns what a call returns, and raises what a call raises.

        Raises
        ------
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        """
        backend = self._backend
        given = CallArguments(x, ids, weights, out, stream, router_x, return_routing)
        runtime = self._member.alive()
        background = runtime.background()
        call = self._enter(given, layer, copy=True)
        done = background.submit(lambda: backend.run_call(call))
        pending = PendingCall(runtime, done, lambda seconds: backend.result(call, seconds, return_stats))
        self._calls.begin(pending)
        return pending

    def _enter(self, given: CallArguments, layer: Any, copy: bool = False) -> Any:
        """Open a call and check its arguments.

        An error is kept in the call and raised later with its result, because the other ranks enter the call.
        """
        runtime, backend = self._member.alive(), self._backend
        runtime.enter(self._member.number)
        call = backend.new_call()
        try:
            check_layer(layer, self.layers)
            call.layer = int(layer)
            self._weights.packed_weights(layer)
            self._weights.refuse_half_changed()
            boolean("return_routing", given.return_routing)
            backend.take_arguments(call, given, copy)
        except Exception as error:
            call.error = refusal(error)
            backend.refuse(call)
        except BaseException:
            runtime.leave()
            raise
        return call

    def synchronize(self) -> None:
        """Wait for the last call. Raise the first error of calls since the last `synchronize`. Not collective.

        Only calls with arrays in GPU memory need it: other calls have ended when they return.

        Raises
        ------
        InputError, PeerInputError, MismatchError
            A call has refused its arguments, see `MoE.__call__`.
        OpenCallError
            A call that `start` began has not been waited for.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        """
        self._calls.settled()
        self._backend.synchronize()

    @property
    def device(self) -> int | None:
        """The number that CUDA gives this rank's GPU in this process; None with backend="cpu"."""
        return self._backend.device

    @property
    def isa(self) -> str | None:
        """The instruction set of this rank's kernels, such as "amx"; None with backend="cuda"."""
        return self._backend.isa

    @property
    def moves(self) -> str:
        """What crosses between the ranks of a node: the option `moves`, or "tokens" if rows always travel.

        The value is equal on all ranks. Rows always travel with schedule="bulk", with train=True and on CUDA. They also
        always travel if the ranks share no memory for weights (`aristos doctor` shows this), or if no rank sends rows
        to experts of local peers, for example if each node has one rank.
        """
        return self._backend.moves

    # ------------------------------------------------------------ what calls did

    def summary(self) -> Summary:
        """Totals over all ranks and calls of this object: messages by size, times, waits by peer. Collective.

        The summary also has the relative error of each layer's packed weights against the plain arrays given to `load`.
        Messages within a node are puts of dispatched rows; outputs are not counted, because the expert kernel
        stores them itself. Messages between nodes are batches, see `MessageClass`. With backend="cuda" only calls with
        return_stats=True are counted.

        Raises
        ------
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        """
        runtime = self._calls.settled()
        runtime.refuse_open()
        return summarize(runtime.group.allgather(self._share(), "summaries"))

    def local_summary(self) -> Summary:
        """Like `summary`, but only of this rank's own calls, rows and times; wait_seconds is [1, W]. Not collective.

        Raises
        ------
        OpenCallError
            A call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
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
        """The configuration of one layer.

        Parameters
        ----------
        layer : int
            The layer.

        Returns
        -------
        MoEConfig
            Its configuration.

        Raises
        ------
        InputError
            There is no such layer.
        """
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
        """Make the call `moe(x, ids, weights, layer)`, and keep a tape for `backward`. Collective.

        The tape holds a copy of x and of the routing on this rank: S (H + 3 k + columns) numbers. `tape.routing` is the
        call's `Routing`, which is copied when it is first used.

        Parameters
        ----------
        x : array [..., H] of cfg.dtype
            This rank's tokens.
        ids : array [..., k], integers, or None, default None
            The experts of each token, chosen by the caller. None: the router chooses.
        weights : array [..., k], floats, or None, default None
            The combine weights of `ids`.
        layer : int, default 0
            The layer to call.
        save : str, default "rows"
            What this rank keeps of the rows that its experts compute. The bits of the gradients do not depend on it.
            "rows": x of other ranks' rows, so that the backward call need not copy it again. "hidden": also the
            products with up and gate, so that the backward call need not compute them again. "nothing": neither. A rank
            keeps less if this does not fit into the largest free part of its `tape_bytes`; `tape.kept` says what each
            rank keeps of this rank's rows.

        Returns
        -------
        y : array [..., H] of cfg.dtype
            The output, as a call returns it.
        tape : Tape
            The tape, which `backward` takes once.

        Raises
        ------
        InputError
            A call with these arguments would raise it too; or `save` is unknown, or the layer was made without
            train=True.
        NotLoaded
            This rank has not loaded a part of the layer's weights.
        PeerInputError
            Another rank raised InputError.
        MismatchError
            Another rank made another call.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        WaitTimeout, PoisonedError, CorruptionError
            A rank made no progress, a rank failed, or shared memory was damaged; the engine is unusable.
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
        """The part of this object that an optimizer uses.

        Raises InputError without train=True, ClosedError after `close`.
        """
        self._member.alive()
        if self._training is None:
            raise InputError("training requires a layer made with train=True, got train=False")
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
        """How many bytes of this rank's `tape_bytes` are held by open tapes."""
        return 0 if self._training is None else self._training.tape_bytes_taken

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Release windows, weights, threads and memory. Collective, and harmless when repeated."""
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
