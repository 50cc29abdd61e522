"""Weights of layers, as a user loads them: a whole layer, or expert by expert, router and shared expert."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import InputError, NotLoaded
from .backend import Backend, check_layer
from .collective import Membership
from .fused_arrays import separated
from .given import Given, GivenLayer
from .pending import OpenCalls
from .weights import WEIGHTS

Layout = Literal["in_out", "out_in"]
Bits = Literal["bfloat16", "float16"]


class LoadedWeights:
    """The weights of an object's layers, as a user loads them. The backend packs them.

    half_changed: a step or a restore writes weights now, or was interrupted while it did.
    """

    def __init__(self, backend: Backend, member: Membership, calls: OpenCalls) -> None:
        self._backend, self._member, self._calls = backend, member, calls
        self._slots = {expert: slot for slot, expert in enumerate(member.mine)}
        self.half_changed = False

    def load(
        self,
        layer: int = 0,
        *,
        up: Any = None,
        down: Any = None,
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
        gate_up: Any = None,
        gate_up_bias: Any = None,
        w13: Any = None,
        w2: Any = None,
        interleaved: bool = False,
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
        [E, H, F], router [E, H]. gate_up: gate and up in one array, [E, H, 2F], or [E, 2F, H] of "out_in", the gate's
        columns first, or interleaved with up's; gate_up_bias: [E, 2F]. w13, w2: gate_up and down of "out_in", by the
        names of vLLM. bits: the type whose bits arrays of uint16 hold. Weights are rounded to cfg.dtype;
        router and biases become float32. A router is needed unless every call brings its ids.

        Not collective. It clears what this rank adds to `summary`; the other calls that load keep it. Raises
        InputError; the layer then keeps the weights it had. If packing itself fails, it keeps them too, or its calls
        are refused on all ranks: experts that local peers read have one place.

        Raises OpenCallError between `start` of this object and `wait`. A call of another object may be open then, also
        where local peers read experts in place (`moves`): the load waits until they have ended the call before that.
        The other calls that load do the same.
        """
        self._calls.refuse_change(layer, "load")
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
        fused = {"gate_up": gate_up, "gate_up_bias": gate_up_bias, "w13": w13, "w2": w2}
        given = separated(given, fused, interleaved, layout)
        checked = GivenLayer(self._backend.cfgs[layer], self._member.mine, local, layout, bits, given)
        self._backend.load(int(layer), checked)
        self._backend.clear_totals()

    def holds(self, expert: int) -> bool:
        """Whether this rank holds the expert: `load_expert` ignores all others, so their arrays need not be read."""
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
        self._calls.refuse_change(layer, "load_expert")
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
        arrays = Given("load_expert", self._backend.cfgs[layer], layout, bits).expert(given)
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
        self._calls.refuse_change(layer, "load_shared")
        given = {
            "shared_up": up,
            "shared_gate": gate,
            "shared_down": down,
            "shared_up_bias": up_bias,
            "shared_gate_bias": gate_bias,
            "shared_down_bias": down_bias,
            "shared_sigmoid": sigmoid,
        }
        arrays = Given("load_shared", self._backend.cfgs[layer], layout, bits).shared(given)
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
        self._calls.refuse_change(layer, "load_router")
        given = Given("load_router", self._backend.cfgs[layer], layout, bits)
        arrays = given.router({"router": router, "router_bias": router_bias, "select_bias": select_bias})
        if not arrays:
            raise InputError("load_router needs router=, router_bias= or select_bias=")
        self._backend.load_part(int(layer), lambda weights: weights.take_router(arrays))

    def unload(self, layer: int) -> None:
        """Forget a layer's weights: calls of it are refused on all ranks until all parts have been loaded again.

        Before a layer is loaded again part by part, so that no call mixes old and new parts if that fails half-way.
        Memory stays. Not collective.
        """
        self._calls.refuse_change(layer, "unload")
        self._backend.unload(int(layer))

    def _slot(self, expert: Any) -> int | None:
        """The number of an expert among this rank's; None if another rank holds it."""
        most = self._backend.cfg.experts - 1
        if isinstance(expert, bool) or not isinstance(expert, int | np.integer) or not 0 <= expert <= most:
            raise InputError(f"expert must be an int in 0..{most}, got {expert!r}")
        return self._slots.get(int(expert))

    def packed_weights(self, layer: int = 0) -> Any:
        """A loaded layer's weights as this backend's kernels read them: `LayerWeights` or `DeviceWeights`.

        Raises InputError for a layer that does not exist, NotLoaded for one that lacks weights.
        """
        check_layer(layer, len(self._backend.cfgs))
        loaded = self._backend.weights[layer]
        if loaded is None:
            raise NotLoaded(f"layer {layer} has no weights: load() it first", WEIGHTS)
        loaded.check(layer)
        return loaded

    def refuse_half_changed(self) -> None:
        """Raise InputError if this rank's weights were changed only in part by a step or a restore."""
        if self.half_changed:
            raise InputError(
                "the weights are half changed, because step() or restore() was interrupted while it wrote them:"
                " restore() what was saved"
            )
