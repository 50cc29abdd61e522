"""Training: forward calls that keep a tape, backward calls, gradients, and weights that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..config import whole
from ..errors import AristosError, InputError, MismatchError, OpenCallError, PeerInputError
from ..primitives.arrays import rows as rows_of
from ..reproducible import total
from ..routing import Routing
from ..transport.group import Group
from .arguments import refusal
from .backward import BackwardCalls, Saved
from .collective import agreed
from .cpu import CpuBackend
from .fused_backward import FusedBackward
from .holders import Holders
from .loading import LoadedLayers
from .tapes import Reserve, Taping, asked, kept_names
from .trained_weights import TrainedWeights, narrowed
from .updates import Updates


class Tape:
    """What `MoE.forward` keeps until `MoE.backward` or `discard`.

    kept: for each rank what it keeps of this rank's rows, "nothing", "rows" or "hidden". part: what the tape holds of
    this rank's reserve, (first byte, end).
    """

    def __init__(
        self,
        owner: TrainedLayers,
        layer: int,
        number: int,
        lead: tuple[int, ...],
        saved: Saved,
        routing: Routing,
        part: tuple[int, int],
    ) -> None:
        self.layer, self.number, self.part = layer, number, part
        self._owner, self._lead, self._read = owner, lead, routing
        self._saved: Saved | None = saved
        self.kept = kept_names(saved.taped, owner.rank) if saved.taped is not None else ["nothing"] * owner.world

    @cached_property
    def routing(self) -> Routing:
        """The routing of the call, in arrays of the caller's: `backward` reads others."""
        return self._read.copy()

    def discard(self) -> None:
        """Drop the tape without a backward call; on every rank. A second time it does nothing."""
        if self._saved is not None:
            self._saved = None
            self._owner._closed(self)

    def _take(self, owner: TrainedLayers) -> Saved:
        if self._owner is not owner:
            raise InputError("tape comes from another layer object: give it to that one's backward")
        if self._saved is None:
            raise InputError(f"tape of layer {self.layer} was used or discarded: a forward call gives a new one")
        return self._saved


class TrainedLayers(LoadedLayers):
    """Base of `MoE`: what it does with train=True."""

    _train = False
    _half_changed = False

    def _begin_training(self, holders: Holders, reserve: Reserve) -> None:
        """Make what backward calls need; the layer has joined its runtime. holders: closed with this object."""
        assert isinstance(self._backend, CpuBackend)
        assert self._backend.isa is not None
        self._train, self._holders, self._updates = True, holders, Updates(self._backend.isa)
        self._tapes: dict[int, Tape] = {}
        self._numbers, self._reserve = 0, reserve
        settings, isa = self._backend.settings, self._backend.isa
        self._calls: BackwardCalls = (
            BackwardCalls(self._member, isa, holders.group.rank, settings.cfgs)
            if settings.schedule == "bulk"
            else FusedBackward(self._member, isa, holders.group.rank, settings.cfgs, settings.limits)
        )

    def _end_training(self) -> None:
        """Close what training has made; collective."""
        if self._train:
            self._calls.close()
            self._holders.close(self._member.runtime.broken is not None)

    @property
    def everyone(self) -> Group:
        """The group of all ranks that train this object together; with a plan, the ranks of all its groups."""
        return self._holders.group if self._train else self._member.runtime.group

    def agree(self, problem: Exception | None, what: str) -> None:
        """See `Collective.agree`; with train=True and a plan, over the ranks of all its groups."""
        self._alive().refuse_open()
        super().agree(problem, what) if not self._train else agreed(self.everyone, problem, what)

    def _trained(self, what: str) -> CpuBackend:
        self._alive()
        if not self._train:
            raise InputError(f"{what} requires a layer made with train=True")
        assert isinstance(self._backend, CpuBackend)
        return self._backend

    def _refuse_tapes(self, layer: int, what: str) -> None:
        if self._train and any(tape.layer == layer for tape in self._tapes.values()):
            raise OpenCallError(
                f"{what} would change weights of layer {layer} while a tape of it is open: give the tape to backward(),"
                " or discard() it"
            )

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A block in which weights change. If it is interrupted, this rank refuses its weights until `restore`."""
        self._half_changed = True
        yield
        self._half_changed = False

    def refuse_half_changed(self) -> None:
        """Raise InputError if this rank's weights were changed only in part by a step or a restore."""
        if self._half_changed:
            raise InputError(
                "the weights are half changed, because step() or restore() was interrupted while it wrote them:"
                " restore() what was saved"
            )

    def _closed(self, tape: Tape) -> None:
        self._tapes.pop(tape.number, None)
        self._reserve.free(tape.part)

    def _of(self, layer: Any) -> TrainedWeights:
        """The weights of a layer that is trained and complete."""
        weights = self._loaded(layer)
        assert isinstance(weights, TrainedWeights)
        return weights

    @property
    def open_tapes(self) -> int:
        """How many tapes of this object wait for `backward` or `discard`."""
        return len(self._tapes) if self._train else 0

    @property
    def tape_bytes_taken(self) -> int:
        """Bytes of this rank's `tape_bytes` that open tapes hold."""
        return self._reserve.taken if self._train else 0

    @property
    def updates(self) -> Updates:
        """Compiled steps of optimizers."""
        self._trained("updates")
        return self._updates

    def everywhere(self, run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Run a function for every item, on all workers; returns the results in order."""
        self._trained("everywhere")
        return self._calls.everywhere(run, items)

    # ------------------------------------------------------------ calls

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
        backend = self._trained("forward")
        taping: Taping | None = None
        try:
            wanted = asked(save)
            if backend.bulk is None and isinstance(layer, int | np.integer) and 0 <= layer < self.layers:
                taping = self._reserve.offer(self.world, wanted)
            backend.taping = taping
        except InputError as problem:
            backend.taping = problem
        try:
            y, routing = self(x, ids, weights, layer, return_routing=True)  # type: ignore[operator]
        finally:
            backend.taping = None
        part = (0, 0) if taping is None else self._reserve.take(taping, backend.kept_up_to())
        cfg = backend.cfgs[layer]
        rows, lead = rows_of("x", x, cfg.hidden, cfg.dtype)
        wide = (len(rows), cfg.top_k)
        saved = Saved(
            x=np.array(rows, order="C"),
            ids=np.ascontiguousarray(routing.ids.reshape(wide)),
            chosen=np.ascontiguousarray(routing.chosen.reshape(wide)),
            weights=np.ascontiguousarray(routing.weights.reshape(wide)),
            logits=None if routing.logits is None else routing.logits.reshape(len(rows), cfg.columns),
            shared=backend.shared_weights(layer, len(rows)),
            received=backend.received(layer),
            taped=None if taping is None else taping.table,
        )
        self._numbers += 1
        tape = Tape(self, int(layer), self._numbers, lead, saved, routing, part)
        self._tapes[tape.number] = tape
        return y, tape

    def backward(self, dy: Any, tape: Tape, dlogits: Any = None, pieces: int = 1) -> Any:
        """dx = dL/dx from dy = dL/dy, and dL/dw added to `grads`. Collective: equal tapes in equal order on all ranks.

        dy: [..., H] of cfg.dtype, of the shape of y. tape: of a forward call of this object, used once. dlogits: [...,
        columns], a loss's gradient by the router's logits, which is added to theirs. Returns dx [..., H] of cfg.dtype;
        for a call that brought its ids, (dx, gradient of its weights [..., k]). Gradients of router and shared expert
        come with `reduce_grads`. pieces: how many equal pieces this rank's tokens are cut into, see `reduce_grads`.
        Raises InputError here, PeerInputError or MismatchError on the other ranks; no gradient has changed then.
        """
        backend = self._trained("backward")
        runtime = self._alive()
        runtime.refuse_open()
        problem: AristosError | None = None
        name: Any = None
        try:
            if not isinstance(tape, Tape):
                raise InputError(f"tape must be what forward gave, got {type(tape).__name__}")
            saved = tape._take(self)
            cfg, weights = backend.cfgs[tape.layer], self._of(tape.layer)
            rows = self._given("dy", dy, tape._lead, cfg.hidden, cfg.dtype)
            extra = None if dlogits is None else self._given("dlogits", dlogits, tape._lead, cfg.columns)
            if extra is not None and saved.logits is None:
                raise InputError("dlogits must be None for a call that brought its ids: no router computed scores")
            parts = whole("pieces", pieces)
            if len(rows) % parts:
                raise InputError(f"pieces must divide the {len(rows)} tokens of the call, got {pieces!r}")
            name = tape.layer, tape.number, parts
        except Exception as error:
            problem = refusal(error)
        calls = self._calls
        if isinstance(calls, FusedBackward):
            if problem is not None:
                calls.refuse(problem)
                raise problem
            dx, dw = calls.run_tape(tape.layer, tape.number, weights, saved, rows, extra, parts)
        else:
            self._meet(problem, name)
            with runtime.failing(runtime._blank_job()):
                dx, dw = calls.run(cfg, weights, saved, rows, extra, parts)
        tape.discard()
        dx = narrowed(dx, cfg).reshape(*tape._lead, cfg.hidden)
        return dx if saved.logits is not None else (dx, dw.reshape(*tape._lead, cfg.top_k))

    @staticmethod
    def _given(name: str, value: Any, lead: tuple[int, ...], columns: int, dtype: str = "float32") -> np.ndarray:
        rows, got = rows_of(name, value, columns, dtype)
        if got != lead:
            raise InputError(f"{name} must have shape {[*lead, columns]}, got {[*got, columns]}")
        return np.ascontiguousarray(rows)

    def _meet(self, problem: AristosError | None, name: Any) -> None:
        """Raise on every rank if one refuses its arguments, or if the tapes or pieces differ."""
        group = self._alive().group
        reports = group.allgather((None if problem is None else str(problem), name), "arguments of backward")
        if problem is not None:
            raise problem
        for rank, (text, _) in enumerate(reports):
            if text is not None:
                raise PeerInputError(f"rank {rank} refused its arguments of backward: {text}")
        for rank, (_, theirs) in enumerate(reports):
            if theirs != name:
                raise MismatchError(
                    f"backward must get the tape of the same forward call and as many pieces on all ranks: rank {rank}"
                    f" has (layer, tape, pieces) {theirs}, rank {self.rank} {name}"
                )

    # ------------------------------------------------------------ gradients and weights

    def grads(self, layer: int = 0) -> dict[str, np.ndarray]:
        """Gradients by `load`'s names, float32 views: of this rank's experts [n, ...] in the order of
        `placement.mine(rank)`, of router and shared expert as `load` takes them. `backward` adds to them. If it is
        interrupted while it does, this raises InputError until `zero_grads`.
        """
        self._trained("grads")
        return self._of(layer).gradients()

    def params(self, layer: int = 0) -> dict[str, np.ndarray]:
        """Views of the float32 masters by `load`'s names, ordered as `grads`. After writing to them, call `update`.

        Raises InputError if an optimizer's step was interrupted while it changed them, until `restore`.
        """
        self._trained("params")
        self.refuse_half_changed()
        return dict(self._of(layer).masters)

    def zero_grads(self) -> None:
        """Set the gradients of all loaded layers to zero. Not collective.

        The gradients of experts are overwritten by the next backward call of the layer, or set to zero by `grads`:
        until then views that `grads` gave before show the old values.
        """
        for weights in self._trained("zero_grads").weights:
            if weights is not None:
                weights.clear_gradients()

    def reduce_grads(self) -> None:
        """Add the gradients of router and shared expert over all ranks, so that all have the same. Collective.

        Those of each backward call are added piece by piece, by the tree of `aristos.reproducible_sum` over the pieces
        of all ranks. If the pieces are equal parts of the call's tokens of all ranks, in rank order, their sum has the
        same bits on any number of ranks. Gradients of experts with copies are added over the ranks that hold them, in
        rank order by the same tree; those of other experts are complete already. With a plan, the ranks of all its
        groups are meant.
        """
        backend = self._trained("reduce_grads")
        self._alive().refuse_open()
        everyone = self.everyone
        waiting = [None if weights is None else weights.pieces for weights in backend.weights]
        for rank, theirs in enumerate(everyone.allgather(waiting, "backward calls since the last reduce_grads")):
            if theirs != waiting:
                raise MismatchError(
                    f"rank {rank} has other backward calls to reduce than rank {everyone.rank}: pieces of the calls of"
                    f" each layer are {theirs} and {waiting}"
                )
        for weights in backend.weights:
            if weights is None or not weights.pieces:
                continue
            assert isinstance(weights, TrainedWeights)
            for nodes in weights.pending:
                with everyone.bounded("the other ranks (gradients of router and shared expert)"):
                    weights.common += total(everyone.comm, nodes, weights.common.dtype, weights.common.size)
            self._holders.add_up(weights)
            weights.pending, weights.pieces = [], []

    def update(self, layer: int = 0, **arrays: np.ndarray) -> None:
        """Take new values of masters, if any, and pack the layer's weights again. Not collective; keeps `summary`.

        arrays: new values, in the shapes of `params`. Without arrays, what was written into `params` is packed. Raises
        OpenCallError while a tape of the layer is open, InputError for a shape that does not fit; then nothing has
        changed.
        """
        backend = self._trained("update")
        self._refuse_in_use(layer, "update")
        weights = self._of(layer)
        backend.idle()
        weights.change(arrays, self.everywhere)
        backend.loaded(int(layer))
