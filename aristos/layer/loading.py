"""Loads a user's weights into layers: a whole layer at once, or its experts, router and shared expert one by one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import InputError, NotLoaded
from . import fused_arrays
from .backend import Backend, check_layer
from .collective import Membership
from .given import PROJECTIONS, ROUTERS, SHARED, Given, GivenLayer
from .pending import OpenCalls
from .weights import WEIGHTS

Layout = Literal["in_out", "out_in"]
Bits = Literal["bfloat16", "float16"]


class LoadedWeights:
    """The weights of an object's layers, as a user loads them. The backend packs them.

    half_changed: whether a step or a restore is writing weights now, or was interrupted while it wrote them.
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
        """Load the weights of one layer: pack them, so that later changes to the arrays have no effect. Not collective.

        Each array is float32, bfloat16 (ml_dtypes) or float16, and may be memory-mapped. Weights are rounded to
        cfg.dtype; router and biases become float32. In place of an array [E, ...] a list of E arrays may be given, with
        None for experts that this rank does not hold. `load` sets this rank's counts for `summary` to zero;
        `load_expert`, `load_shared` and `load_router` do not.

        After an error the layer keeps the weights it had. There is one exception: if packing itself fails where local
        peers read the layer's experts in place (`moves`), the layer's calls are refused on all ranks. A call of another
        object may be open during `load`. Where local peers read experts in place, `load` waits until these peers have
        ended every call that this rank has ended.

        Parameters
        ----------
        layer : int, default 0
            The layer.
        up : array [E, H, F] or None, default None
            The experts' up projections.
        down : array [E, F, H] or None, default None
            The experts' down projections.
        router : array [H, columns] or None, default None
            The router's weights; needed unless every call brings ids and weights.
        gate : array [E, H, F] or None, default None
            The experts' gate projections, with cfg.gated.
        up_bias : array [E, F] or None, default None
            The bias of the up projection, with cfg.bias.
        gate_bias : array [E, F] or None, default None
            The bias of the gate projection, with cfg.bias and cfg.gated.
        down_bias : array [E, H] or None, default None
            The bias of the down projection, with cfg.bias.
        router_bias : array [columns] or None, default None
            A bias that is added to the router scores.
        select_bias : array [columns] or None, default None
            A bias for choosing only: it is added to the weights when experts are compared, see `Router`.
        shared_up : array [H, Fs] or None, default None
            The shared expert's up projection, Fs = cfg.shared_ffn.
        shared_gate : array [H, Fs] or None, default None
            The shared expert's gate projection, with cfg.gated.
        shared_down : array [Fs, H] or None, default None
            The shared expert's down projection.
        shared_up_bias : array [Fs] or None, default None
            The bias of the up projection, with cfg.bias.
        shared_gate_bias : array [Fs] or None, default None
            The bias of the gate projection, with cfg.bias and cfg.gated.
        shared_down_bias : array [H] or None, default None
            The bias of the down projection, with cfg.bias.
        shared_sigmoid : array [H] or None, default None
            A vector v, with cfg.shared_sigmoid. The shared expert's output is multiplied by sigmoid(x·v).
        gate_up : array [E, H, 2F], or [E, 2F, H] of "out_in", or None, default None
            gate and up in one array. The columns of gate come first, or alternate with those of up (`interleaved`).
        gate_up_bias : array [E, 2F] or None, default None
            The biases of gate and up in one array.
        w13 : array [E, 2F, H] or None, default None
            gate_up in layout "out_in", by vLLM's name.
        w2 : array [E, H, F] or None, default None
            down in layout "out_in", by vLLM's name.
        interleaved : bool, default False
            Whether the columns of gate and up alternate in gate_up.
        local : bool, default False
            Whether arrays have only this rank's experts, in the order of their ids (`placement.mine(rank)`).
        layout : str, default "in_out"
            The order of matrices' axes. "out_in" is nn.Linear's: up and gate [E, F, H], down [E, H, F], router
            [columns, H].
        bits : str or None, default None
            If arrays are uint16: the type whose bits they hold.

        Raises
        ------
        InputError
            An array is missing or superfluous, has a wrong shape or type, or is to be packed and is not finite.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
        arguments = locals()
        self._calls.refuse_change(layer, "load")
        fused = {name: arguments[name] for name in fused_arrays.NAMES}
        given = {name: arguments[name] for name in (*PROJECTIONS, *ROUTERS, *SHARED)}
        given = fused_arrays.separated(given, fused, interleaved, layout)
        checked = GivenLayer(self._backend.cfgs[layer], self._member.mine, local, layout, bits, given)
        self._backend.load(int(layer), checked)
        self._backend.clear_totals()

    def holds(self, expert: int) -> bool:
        """Whether this rank holds an expert. `load_expert` ignores other experts, so their arrays need not be read.

        Parameters
        ----------
        expert : int
            The expert's id in 0..E-1.

        Returns
        -------
        bool
            True if this rank holds it.

        Raises
        ------
        InputError
            The id is out of range.
        ClosedError
            The layer is closed.
        """
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
        """Load the weights of one expert of a layer. Not collective.

        Memory is allocated once for all experts of this rank, and packing needs space for one more. While an expert is
        missing, calls are refused on all ranks. After an error the layer keeps the weights it had. Call `unload` before
        you load all experts again.

        Parameters
        ----------
        layer : int
            The layer.
        expert : int
            The expert's id in 0..E-1. An expert that this rank does not hold is ignored, whatever the arrays.
        up : array [H, F]
            The expert's up projection; types as in `load`.
        down : array [F, H]
            The expert's down projection.
        gate : array [H, F] or None, default None
            The expert's gate projection, with cfg.gated.
        up_bias : array [F] or None, default None
            The bias of the up projection, with cfg.bias.
        gate_bias : array [F] or None, default None
            The bias of the gate projection, with cfg.bias and cfg.gated.
        down_bias : array [H] or None, default None
            The bias of the down projection, with cfg.bias.
        layout : str, default "in_out"
            The order of matrices' axes, see `load`.
        bits : str or None, default None
            If arrays are uint16: the type whose bits they hold.

        Raises
        ------
        InputError
            The id is out of range, or an array is missing or superfluous, has a wrong shape or type, or is to be packed
            and is not finite.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
        arguments = locals()
        self._calls.refuse_change(layer, "load_expert")
        slot = self._slot(expert)
        if slot is None:
            return
        given = {name: arguments[name] for name in PROJECTIONS}
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
        """Load a layer's shared expert. Every rank must do this; it is not collective.

        After an error the layer keeps the shared expert it had.

        Parameters
        ----------
        layer : int
            The layer.
        up : array [H, Fs]
            The shared expert's up projection, Fs = cfg.shared_ffn; types as in `load`.
        down : array [Fs, H]
            The shared expert's down projection.
        gate : array [H, Fs] or None, default None
            The shared expert's gate projection, with cfg.gated.
        up_bias : array [Fs] or None, default None
            The bias of the up projection, with cfg.bias.
        gate_bias : array [Fs] or None, default None
            The bias of the gate projection, with cfg.bias and cfg.gated.
        down_bias : array [H] or None, default None
            The bias of the down projection, with cfg.bias.
        sigmoid : array [H] or None, default None
            A vector v, with cfg.shared_sigmoid. The expert's output is multiplied by sigmoid(x·v).
        layout : str, default "in_out"
            The order of matrices' axes, see `load`.
        bits : str or None, default None
            If arrays are uint16: the type whose bits they hold.

        Raises
        ------
        InputError
            An array is missing or superfluous, has a wrong shape or type, or is to be packed and is not finite.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
        arguments = locals()
        self._calls.refuse_change(layer, "load_shared")
        given = {f"shared_{name}": arguments[name] for name in (*PROJECTIONS, "sigmoid")}
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
        """Load a layer's router. Every rank must do this; it is not collective.

        An array for which None is given stays as it was. After an error the layer keeps the router it had.

        Parameters
        ----------
        layer : int
            The layer.
        router : array [H, columns] or None, default None
            The router's weights, also with a column for each identity expert; types as in `load`.
        router_bias : array [columns] or None, default None
            A bias that is added to the router scores.
        select_bias : array [columns] or None, default None
            A bias for choosing only: it is added to the weights when experts are compared, see `Router`.
        layout : str, default "in_out"
            The order of matrices' axes, see `load`.
        bits : str or None, default None
            If arrays are uint16: the type whose bits they hold.

        Raises
        ------
        InputError
            An array is superfluous, or has a wrong shape or type.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
        """
        self._calls.refuse_change(layer, "load_router")
        given = Given("load_router", self._backend.cfgs[layer], layout, bits)
        arrays = given.router({"router": router, "router_bias": router_bias, "select_bias": select_bias})
        if not arrays:
            raise InputError("load_router needs router=, router_bias= or select_bias=, got none of them")
        self._backend.load_part(int(layer), lambda weights: weights.take_router(arrays))

    def unload(self, layer: int) -> None:
        """Forget a layer's weights. Not collective.

        Calls of the layer are refused on all ranks until all parts have been loaded again.

        Call this before you load a layer again part by part: then no call mixes old and new parts, even if loading
        fails half-way. Memory stays allocated.

        Parameters
        ----------
        layer : int
            The layer.

        Raises
        ------
        InputError
            There is no such layer.
        OpenCallError
            A tape of the layer is open, or a call that `start` began has not been waited for.
        ClosedError
            The layer is closed.
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
        """A loaded layer's weights as this backend's kernels read them.

        Parameters
        ----------
        layer : int, default 0
            The layer.

        Returns
        -------
        LayerWeights or DeviceWeights
            The packed weights.

        Raises
        ------
        InputError
            There is no such layer.
        NotLoaded
            The layer has no weights.
        ClosedError
            The layer is closed.
        """
        check_layer(layer, len(self._backend.cfgs))
        loaded = self._backend.weights[layer]
        if loaded is None:
            raise NotLoaded(f"layer {layer} has no weights: call load() first", WEIGHTS)
        loaded.check(layer)
        return loaded

    def refuse_half_changed(self) -> None:
        """Raise InputError if this rank's weights were changed only in part by a step or a restore."""
        if self.half_changed:
            raise InputError(
                "the weights are half changed, because step() or restore() was interrupted while it wrote them:"
                " call restore() with a saved directory"
            )
