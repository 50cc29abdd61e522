"""Checks the arguments of a call on a GPU. Arrays in GPU memory are used where they lie; others are copied there."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes
from ..errors import InputError
from ..kernels.cuda.tile import BYTES
from ..primitives import arrays
from ..row_types import KINDS, ROW_TYPES
from ..substrate.cuda.runtime import CudaRuntime
from . import device_arrays
from .arguments import CallArguments, capacity, on_input, routed_outside, routing_arrays, weight_arrays
from .cuda_jobs import LayerJobs


@dataclass
class DeviceCall:
    """One call between its checks and its result: addresses on the GPU, and arrays of the host.

    router_x: the rows that the router reads; 0 if it reads x. ids, weights: what the engine reads, with `pitch`
    columns, the last for the shared expert if there is one. given_ids, given_weights: the caller's routing, or 0.
    wants_routing: whether the routing is copied to the host, so that the call ends before its result is returned.
    waits: whether the result is a host array, so that the call ends before the result is returned. stream: the stream
    on which the call is queued. before: streams for which the call waits. after: streams that wait for the call. keeps:
    arrays that must stay alive. unordered: whether a library might reuse memory of `keeps` while the call uses it.
    captured: whether a graph has captured the call's wait for earlier calls. nowhere: whether the call is captured in a
    graph that cannot hold calls; then nothing is queued. slots: see `LayerJobs.slots`.
    """

    kind: str
    layer: int = 0
    slots: int = 0
    pitch: int = 0
    x: int = 0
    x_stride: int = 0
    router_x: int = 0
    router_x_stride: int = 0
    lead: tuple[int, ...] = ()
    wants_routing: bool = False
    tokens: int = 0
    y: int = 0
    ids: int = 0
    weights: int = 0
    given_ids: int = 0
    given_weights: int = 0
    capacity: int = 0
    status: int = codes.OK
    routed: bool = False
    stream: int = 0
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    waits: bool = True
    result: Any = None
    host_out: np.ndarray | None = None
    host_ids: np.ndarray | None = None
    host_weights: np.ndarray | None = None
    error: Exception | None = None
    keeps: tuple[Any, ...] = ()
    unordered: bool = False
    captured: bool = False
    nowhere: bool = False


class DeviceArguments:
    """Takes the arguments of calls of one object. weights: the backend's weights of each layer."""

    def __init__(self, runtime: CudaRuntime, cfgs: tuple[MoEConfig, ...], jobs: LayerJobs, weights: list[Any]) -> None:
        self._runtime, self._cfgs, self._cfg, self._jobs, self._weights = runtime, cfgs, cfgs[0], jobs, weights
        self._kind = KINDS[cfgs[0].dtype]

    def take_arguments(self, call: DeviceCall, given: CallArguments) -> None:
        """Check the arguments and write addresses and host arrays into `call`. Raises InputError."""
        lead = call.lead = self._take_x(call, given.x)
        if call.tokens > self._cfg.max_tokens:
            raise InputError(f"x has {call.tokens} tokens, more than max_tokens={self._cfg.max_tokens}")
        self._take_routing(call, given, lead)
        self._take_router_x(call, given.router_x)
        self._take_y(call, given.x, given.out, lead)

    def _take_router_x(self, call: DeviceCall, router_x: Any) -> None:
        if router_x is None:
            return
        by = DeviceCall(self._kind, stream=call.stream)
        lead = self._take_x(by, router_x, "router_x")
        if lead != call.lead:
            wanted, got = [*call.lead, self._cfg.hidden], [*lead, self._cfg.hidden]
            raise InputError(f"router_x must have the shape of x {wanted}, got {got}")
        if by.waits != call.waits:
            where = "in main memory" if call.waits else "in GPU memory"
            raise InputError(f"router_x must lie {where} as x does, got {type(router_x).__name__}")
        call.router_x, call.router_x_stride = by.x, by.x_stride
        call.keeps += by.keeps

    def _take_x(self, call: DeviceCall, x: Any, name: str = "x") -> tuple[int, ...]:
        cfg = self._cfg
        nbytes = BYTES[self._kind] * cfg.hidden
        found = device_arrays.on_device(name, x, call.stream)
        if found is not None:
            self._check_device(name, found)
            lead, call.x_stride = device_arrays.rows(name, found, cfg.hidden, cfg.dtype)
            call.x, call.tokens, call.waits = found.address, int(np.prod(lead, dtype=np.int64)), False
            call.keeps = (found,)
            return lead
        given = arrays.view(name, x)
        wanted = ROW_TYPES[cfg.dtype].stored
        if given.dtype.name != wanted:
            raise arrays.wrong_dtype(name, given.dtype, wanted)
        flat, lead = arrays.rows(name, given, cfg.hidden, given.dtype.name)
        call.tokens, call.x_stride = len(flat), nbytes
        if call.tokens <= cfg.max_tokens:
            call.x = self._jobs.buffer(name, nbytes * cfg.max_tokens)
            self._runtime.device.copy_in(call.x, np.ascontiguousarray(flat).view(np.uint8), call.stream)
        return lead

    def _take_routing(self, call: DeviceCall, given: CallArguments, lead: tuple[int, ...]) -> None:
        cfg = self._cfgs[call.layer]
        call.ids, call.weights = self._jobs.routing_buffers()
        if not routed_outside(given, call.layer, self._weights[call.layer].router is not None):
            call.capacity = capacity(cfg, call.tokens)
            return
        call.routed, shape = True, (*lead, cfg.top_k)
        found = [device_arrays.on_device(name, getattr(given, name), call.stream) for name in ("ids", "weights")]
        if found[0] is not None and found[1] is not None:
            self._check_device("ids", found[0])
            self._check_device("weights", found[1])
            call.given_ids = device_arrays.whole("ids", found[0], shape, "int64")
            call.given_weights = device_arrays.whole("weights", found[1], shape, "float32")
            call.keeps += tuple(found)
        else:
            call.host_ids, call.host_weights = routing_arrays(given.ids, shape), weight_arrays(given.weights, shape)
            pairs = cfg.top_k * cfg.max_tokens
            call.given_ids, call.given_weights = (
                self._jobs.buffer("given ids", 8 * pairs),
                self._jobs.buffer("given", 4 * pairs),
            )
        if not cfg.shared_ffn and not on_input(cfg):  # the engine reads the caller's ids and weights in place
            call.ids, call.weights = call.given_ids, call.given_weights

    def _take_y(self, call: DeviceCall, x: Any, out: Any, lead: tuple[int, ...]) -> None:
        cfg, shape = self._cfg, (*lead, self._cfg.hidden)
        nbytes = BYTES[self._kind] * cfg.hidden
        if call.waits:  # x is a host array
            given = arrays.view("x", x)
            if out is None:
                call.result = np.empty(shape, given.dtype)
            else:
                arrays.check_out(out, shape, given.dtype, given, call.host_ids, call.host_weights)
                call.result = out
            call.host_out, call.y = call.result, self._jobs.buffer("y", nbytes * cfg.max_tokens)
            return
        if out is None:
            out = _empty(x, shape, cfg.dtype)
        found = device_arrays.on_device("out", out, call.stream)
        if found is None:
            raise InputError(f"out must lie in GPU memory as x does, got {type(out).__name__}")
        device_arrays.writable("out", found)
        got, step = device_arrays.rows("out", found, cfg.hidden, cfg.dtype)
        if got != lead or step != nbytes:
            raise InputError(f"out must be contiguous with shape {list(shape)}, got {list(found.shape)}")
        self._check_device("out", found)
        for read in call.keeps:
            if device_arrays.overlap(found, read):
                raise InputError("out must not overlap an input: inputs are read while outputs are written")
        call.result, call.y, call.keeps = out, found.address, (*call.keeps, found)

    def _check_device(self, name: str, found: device_arrays.DeviceRows) -> None:
        mine = int(self._runtime.device.ordinal)
        if found.device is not None and found.device != mine:
            raise InputError(
                f"{name} must lie on device {mine}, this rank's GPU (`device` of the layer), got device {found.device}"
            )


def _empty(x: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array in GPU memory, of the library that x belongs to."""
    if type(x).__module__.partition(".")[0] == "torch":
        return x.new_empty(shape)
    cupy = sys.modules.get("cupy")
    if cupy is None or dtype == "bfloat16":
        why = "CuPy is not imported" if cupy is None else "CuPy has no bfloat16"
        raise InputError(f"the call cannot make its output, because {why}: give out=, an array in GPU memory")
    return cupy.empty(shape, ROW_TYPES[dtype].stored)
