"""Training: forward calls that keep a tape, backward calls, gradients, and weights that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from ..config import whole
from ..errors import AristosError, InputError, MismatchError
from ..primitives.arrays import rows as rows_of
from ..reproducible import total
from ..routing import Routing
from .arguments import refusal
from .backend import Backend
from .backward import BackwardCall, Saved
from .collective import Membership
from .holders import Holders
from .loading import LoadedWeights
from .pending import OpenCalls
from .tapes import Reserve, Taping, asked, kept_names
from .trained_weights import TrainedWeights, narrowed
from .updates import Updates


class Tape:
    """What `MoE.forward` keeps until `MoE.backward` or `discard`.

    Parameters
    ----------
    owner : Training
        The part of the layer object that made the tape.
    layer : int
        The layer that was called.
    number : int
        The serial number of the tape, equal on all ranks.
    lead : tuple of int
        The leading shape of x.
    saved : Saved
        x, the routing, and what ranks keep of the call's rows.
    routing : Routing
        The routing, in the engine's arrays.
    part : (int, int)
        What the tape holds of this rank's reserve: its first byte and its end.

    Attributes
    ----------
    kept : list of W str
        For each rank what it keeps of this rank's rows: "nothing", "rows" or "hidden".
    """

    def __init__(
        self,
        owner: Training,
        layer: int,
        number: int,
        lead: tuple[int, ...],
        saved: Saved,
        routing: Routing,
        part: tuple[int, int],
    ) -> None:
        self.layer, self.number, self.part = layer, number, part
        self._owner, self.lead, self._read = owner, lead, routing
        self._saved: Saved | None = saved
        self.kept = owner.kept(saved)

    @cached_property
    def routing(self) -> Routing:
        """The routing of the call, in arrays that the caller may change: `backward` does not read them."""
        return self._read.copy()

    def discard(self) -> None:
        """Drop the tape without a backward call. Call this on every rank. A second call does nothing."""
        if self._saved is not None:
            self._saved = None
            self._owner.tape_closed(self)

    def take_saved(self, owner: Training) -> Saved:
        if self._owner is not owner:
            raise InputError("the tape comes from another layer object: give it to backward() of that object")
        if self._saved is None:
            raise InputError(f"the tape of layer {self.layer} was used or discarded: make another forward call")
        return self._saved


class Training:
    """The part that a layer object has only with train=True: tapes, backward calls, gradients, masters.

    Optimizers use this part. layers: how many layers the object has. mine: ids of this rank's experts. updates:
    compiled steps of optimizers. everyone: the group of all ranks that train this object together; with a plan, the
    ranks of all its groups.
    """

    def __init__(
        self,
        backend: Backend,
        member: Membership,
        weights: LoadedWeights,
        calls: OpenCalls,
        holders: Holders,
        reserve: Reserve,
    ) -> None:
        """Make the part, after the layer has joined its runtime. `close` also closes `holders`."""
        self._backend, self._member, self._weights, self._open_calls = backend, member, weights, calls
        self._holders, self._reserve = holders, reserve
        self._trainer, self.layers, self.mine = backend.trainer(), backend.settings.layers, member.mine
        self.updates: Updates = self._trainer.updates()
        self._numbers = 0
        self._calls = self._trainer.backward_calls(holders.group.rank)
        self.everyone = member.everyone = holders.group

    def close(self) -> None:
        """Close what training has made; collective."""
        self._calls.close()
        self._holders.close(self._member.runtime.broken is not None)

    def agree(self, problem: Exception | None, what: str) -> None:
        """Raise `problem` here and PeerInputError on the other ranks of `everyone`. what: what this rank refused."""
        self._member.agree(problem, what)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A block in which weights change. If the block is interrupted, this rank refuses calls until `restore`."""
        self._weights.half_changed = True
        yield
        self._weights.half_changed = False

    def refuse_half_changed(self) -> None:
        """Raise InputError if this rank's weights were changed only in part by a step or a restore."""
        self._weights.refuse_half_changed()

    def everywhere(self, run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Run a function for every item, on all workers; returns the results in order."""
        return self._calls.everywhere(run, items)

    @property
    def open_tapes(self) -> int:
        """How many tapes of this object wait for `backward` or `discard`."""
        return len(self._open_calls.tapes)

    @property
    def tape_bytes_taken(self) -> int:
        """How many bytes of this rank's `tape_bytes` are held by open tapes."""
        return self._reserve.taken

    def saves(self, expert: int) -> bool:
        """Whether this rank saves an expert, because it is the first of the ranks that hold it."""
        return self._holders.first(expert)

    def weights(self, layer: Any) -> TrainedWeights:
        """The weights of a layer. Raises NotLoaded if they are not complete."""
        self._member.alive()
        found: TrainedWeights = self._weights.packed_weights(layer)
        return found

    # ------------------------------------------------------------ tapes

    @contextmanager
    def taping(self, layer: Any, save: Any) -> Iterator[Taping | None]:
        """A block with one forward call that keeps a tape. Yields where the call may keep rows; None: it keeps none.

        A wrong `save` is refused within the call, because the other ranks enter the call.
        """
        trainer, taping = self._trainer, None
        try:
            wanted = asked(save)
            if trainer.keeps_rows and isinstance(layer, int | np.integer) and 0 <= layer < self.layers:
                taping = self._reserve.offer(self._member.world, wanted)
            trainer.taping = taping
        except InputError as problem:
            trainer.taping = problem
        try:
            yield taping
        finally:
            trainer.taping = None

    def new_tape(self, x: Any, layer: int, routing: Routing, taping: Taping | None) -> Tape:
        """The tape of the last call, which was made in a block of `taping`. x, routing: the call's rows and routing."""
        trainer = self._trainer
        part = (0, 0) if taping is None else self._reserve.take_part(taping, trainer.kept_up_to())
        cfg = self._backend.cfgs[layer]
        rows, lead = rows_of("x", x, cfg.hidden, cfg.dtype)
        wide = (len(rows), cfg.top_k)
        saved = Saved(
            x=np.array(rows, order="C"),
            ids=np.ascontiguousarray(routing.ids.reshape(wide)),
            chosen=np.ascontiguousarray(routing.chosen.reshape(wide)),
            weights=np.ascontiguousarray(routing.weights.reshape(wide)),
            logits=None if routing.logits is None else routing.logits.reshape(len(rows), cfg.columns),
            shared=trainer.shared_weights(layer, len(rows)),
            received=trainer.received(layer),
            taped=None if taping is None else taping.table,
        )
        self._numbers += 1
        self._open_calls.tapes[self._numbers] = layer
        return Tape(self, layer, self._numbers, lead, saved, routing, part)

    def kept(self, saved: Saved) -> list[str]:
        """For each rank what it keeps of this rank's rows: see `Tape`."""
        member = self._member
        return ["nothing"] * member.world if saved.taped is None else kept_names(saved.taped, member.rank)

    def tape_closed(self, tape: Tape) -> None:
        """Free a tape's part of the reserve, because the tape was used or discarded."""
        self._open_calls.tapes.pop(tape.number, None)
        self._reserve.free(tape.part)

    # ------------------------------------------------------------ calls

    def backward(self, dy: Any, tape: Tape, dlogits: Any = None, pieces: int = 1) -> Any:
        """Compute dx = dL/dx from dy = dL/dy, and add dL/dw to `grads`. Collective.

        All ranks must give the tapes of the same forward calls, in the same order. `reduce_grads` adds the gradients of
        router and shared expert over the ranks. If a rank raises InputError, the others raise PeerInputError, and no
        gradient has changed.

        Parameters
        ----------
        dy : array [..., H] of cfg.dtype
            dL/dy, of the shape of y.
        tape : Tape
            The tape that a forward call of this object returned. It can be used once.
        dlogits : array [..., columns], float32, or None, default None
            The gradient of a further loss with respect to the router's logits. It is added to the gradient of L.
        pieces : int, default 1
            The number of equal pieces into which this rank's tokens are cut, see `reduce_grads`.

        Returns
        -------
        array [..., H] of cfg.dtype
            dx; for a call that brought its ids a tuple of dx and the gradient of its weights, [..., k] float32.

        Raises
        ------
        InputError
            Arrays do not fit, the tape was used or belongs to another object, or the number of pieces does not divide
            the number of tokens.
        PeerInputError
            Another rank raised InputError.
        MismatchError
            Another rank gives another tape.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed, or an earlier failure left its engine unusable.
        WaitTimeout, PoisonedError, CorruptionError
            A rank made no progress, a rank failed, or shared memory was damaged; the engine is unusable.
        """
        self._member.alive().refuse_open()
        calls = self._calls
        problem: AristosError | None = None
        try:
            if not isinstance(tape, Tape):
                raise InputError(f"tape must be what forward returned, got {type(tape).__name__}")
            saved = tape.take_saved(self)
            cfg, weights = self._backend.cfgs[tape.layer], self.weights(tape.layer)
            rows = self._given("dy", dy, tape.lead, cfg.hidden, cfg.dtype)
            extra = None if dlogits is None else self._given("dlogits", dlogits, tape.lead, cfg.columns)
            if extra is not None and saved.logits is None:
                raise InputError(
                    "dlogits must be None for a call that got ids, because no router computed scores, got an array"
                )
            parts = whole("pieces", pieces)
            if len(rows) % parts:
                raise InputError(f"pieces must divide the {len(rows)} tokens of the call, got {pieces!r}")
        except Exception as error:
            problem = refusal(error)
        if problem is not None:
            calls.refuse(problem)
            raise problem
        dx, dw = calls.run_backward(BackwardCall(tape.layer, tape.number, weights, saved, rows, extra, parts))
        tape.discard()
        dx = narrowed(dx, cfg).reshape(*tape.lead, cfg.hidden)
        return dx if saved.logits is not None else (dx, dw.reshape(*tape.lead, cfg.top_k))

    @staticmethod
    def _given(name: str, value: Any, lead: tuple[int, ...], columns: int, dtype: str = "float32") -> np.ndarray:
        rows, got = rows_of(name, value, columns, dtype)
        if got != lead:
            raise InputError(f"{name} must have shape {[*lead, columns]}, got {[*got, columns]}")
        return np.ascontiguousarray(rows)

    # ------------------------------------------------------------ gradients and weights

    def grads(self, layer: int = 0) -> dict[str, np.ndarray]:
        """The gradients of a layer by `load`'s names. `backward` adds to them.

        Parameters
        ----------
        layer : int, default 0
            The layer.

        Returns
        -------
        dict of str to array, float32
            Views of the gradients. Arrays of this rank's experts are [n, ...] in the order of `placement.mine(rank)`;
            arrays of router and shared expert have the shapes that `load` takes.

        Raises
        ------
        InputError
            There is no such layer, the layer was made without train=True, or a backward call was interrupted while it
            added to the gradients (`zero_grads` repairs them).
        NotLoaded
            The layer has no weights.
        ClosedError
            The layer is closed.
        """
        return self.weights(layer).gradients()

    def params(self, layer: int = 0) -> dict[str, np.ndarray]:
        """The float32 masters of a layer by `load`'s names. This rank's experts are ordered as in `grads`.

        Call `update` after you have written to them.

        Parameters
        ----------
        layer : int, default 0
            The layer.

        Returns
        -------
        dict of str to array, float32
            Views of the masters.

        Raises
        ------
        InputError
            There is no such layer, the layer was made without train=True, or an optimizer's step was interrupted while
            it changed the masters (`restore` repairs them).
        NotLoaded
            The layer has no weights.
        ClosedError
            The layer is closed.
        """
        self.refuse_half_changed()
        return dict(self.weights(layer).masters)

    def zero_grads(self) -> None:
        """Set the gradients of all loaded layers to zero. Not collective.

        For experts the zeros are written later: by the next backward call of the layer, or by `grads`. Until then
        views that `grads` returned before show the old values.

        Raises
        ------
        InputError
            The layer was made without train=True.
        ClosedError
            The layer is closed.
        """
        for weights in self._backend.weights:
            if weights is not None:
                weights.clear_gradients()

    def reduce_grads(self) -> None:
        """Add the gradients of router and shared expert over all ranks, so that all ranks have the sum. Collective.

        The tree of `aristos.reproducible_sum` adds the gradients of each backward call over the pieces of all ranks. If
        the pieces are equal parts of the tokens that all ranks, in rank order, brought to the call, the sum has the
        same bits on any number of ranks. The gradients of an expert with copies are added over the ranks that hold it,
        in rank order and by the same tree; gradients of other experts are complete already. With a plan, "all ranks"
        means the ranks of all its groups.

        Raises
        ------
        InputError
            The layer was made without train=True.
        MismatchError
            Ranks have made other backward calls.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed.
        """
        self._member.alive().refuse_open()
        backend, everyone = self._backend, self.everyone
        waiting = [None if weights is None else weights.pieces for weights in backend.weights]
        for rank, theirs in enumerate(everyone.allgather(waiting, "backward calls since the last reduce_grads")):
            if theirs != waiting:
                raise MismatchError(
                    "all ranks must make the same backward calls before reduce_grads: the calls' pieces, by layer, are"
                    f" {theirs} on rank {rank} and {waiting} on rank {everyone.rank}"
                )
        for weights in backend.weights:
            if weights is None or not weights.pieces:
                continue
            for nodes in weights.pending:
                with everyone.bounded("the other ranks (gradients of router and shared expert)"):
                    weights.common += total(everyone.comm, nodes, weights.common.dtype, weights.common.size)
            self._holders.add_up(weights)
            weights.pending, weights.pieces = [], []

    def update(self, /, layer: int = 0, **arrays: np.ndarray) -> None:
        """Write new values, if any are given, over masters, and pack the layer's weights again. Not collective.

        The counts of `summary` stay. If an error is raised, nothing has changed.

        Parameters
        ----------
        layer : int, default 0
            The layer.
        **arrays : array
            New values by `load`'s names, in the shapes of `params`. Without arrays, the layer's weights are packed from
            the present values in `params`.

        Raises
        ------
        InputError
            A name is unknown, a shape does not fit, or the layer was made without train=True.
        NotLoaded
            The layer has no weights.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
        self._open_calls.refuse_change(layer, "update")
        weights = self.weights(layer)
        self._backend.idle()
        weights.change(arrays, self.everywhere)
        self._backend.loaded(int(layer))
