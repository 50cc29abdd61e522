"""Checks the arguments of a call on CPU cores, and writes them into the layer's job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes, schema, words
from ..engine import job as jobs
from ..engine.layout import lines
from ..errors import InputError
from ..kernels.cpu.expert import hidden_bytes
from ..primitives import arrays
from ..primitives.buffers import aligned
from .arguments import (
    CallArguments,
    capacity,
    choices,
    form_of,
    on_input,
    routed_outside,
    routing_arrays,
    weight_arrays,
)
from .collective import status_of
from .cpu_jobs import CpuJobs
from .tapes import Taping, row_bytes


@dataclass
class CpuCall:
    """One call between its checks and its result.

    x, router_x: [S, H]. lead: the shape of the caller's x, without H. ids, weights: [*lead, k]; None: the router
    chooses. If the caller wants the routing, the engine writes the router's scores into logits: [S, columns], and if
    weights are applied to the input, the combine weights into kept: [S, choices of a token].
    """

    layer: int = 0
    x: np.ndarray | None = None
    router_x: np.ndarray | None = None
    lead: tuple[int, ...] = ()
    wants_routing: bool = False
    logits: np.ndarray | None = None
    kept: np.ndarray | None = None
    out: np.ndarray | None = None
    ids: np.ndarray | None = None
    weights: np.ndarray | None = None
    error: Exception | None = None


class CpuArguments:
    """Takes the arguments of all calls of one MoE object.

    nbytes: the bytes of an element of a row. weights: the backend's weights of each layer. This object holds the arrays
    into which the engine writes ids, combine weights, and rows of x times their weights.
    """

    def __init__(self, cfgs: tuple[MoEConfig, ...], jobs: CpuJobs, nbytes: int, weights: list[Any]) -> None:
        self._cfgs, self._cfg, self._jobs, self._weights = cfgs, cfgs[0], jobs, weights
        tokens = self._cfg.max_tokens
        pairs = tokens * max(choices(each) for each in cfgs)
        self._ids, self._combine_weights = aligned((pairs,), np.int64), aligned((pairs,))
        self._routing_at = self._ids.ctypes.data, self._combine_weights.ctypes.data
        self._weighted_step = lines(nbytes * self._cfg.hidden)
        weighted = tokens * any(on_input(each) for each in cfgs)
        self._weighted = aligned((weighted, self._weighted_step), np.uint8)
        # the form of each layer's last call, see `form_of`
        self._forms: list[tuple[Any, ...] | None] = [None] * len(cfgs)

    def take_arguments(
        self, call: CpuCall, given: CallArguments, copy: bool, taping: Taping | InputError | None
    ) -> None:
        """Check the arguments of a call, and write into its layer's job what changes from call to call.

        copy: see `Backend.take_arguments`. taping: what the call tapes, or why it is refused. Raises InputError.
        """
        form = None if copy or taping is not None else form_of(given)
        if form is not None and form == self._forms[call.layer] and self._take_again(call, given):
            return
        self._forms[call.layer] = None
        self._take_checked(call, given, copy, taping)
        as_given = call.x is given.x and call.ids is given.ids and call.weights is given.weights
        if as_given and not self._cfgs[call.layer].shared_ffn and not on_input(self._cfgs[call.layer]):
            self._forms[call.layer] = form

    def _take_again(self, call: CpuCall, given: CallArguments) -> bool:
        """Take arrays of the last call's form without checking the form again.

        Returns False if an array is not aligned, or `out` overlaps another.
        """
        out = np.empty(given.x.shape, given.x.dtype) if given.out is None else given.out
        x, ids, weights, y = (arrays.address(each) for each in (given.x, given.ids, given.weights, out))
        if (x | ids | weights | y) % 8:
            return False
        if given.out is not None and any(np.may_share_memory(out, each) for each in given[:3]):
            return False
        call.x, call.ids, call.weights = given.x, given.ids, given.weights
        call.lead = given.x.shape[:-1]
        call.out = out
        job = self._jobs.open(call.layer)
        jobs.fill_again(job, schema.CALL, schema.CPU, x=x, input=x, router_x=x, y=y, ids=ids, weights=weights)
        self._fill_tape(job, self._cfgs[call.layer], None)
        return True

    def _take_checked(
        self, call: CpuCall, given: CallArguments, copy: bool, taping: Taping | InputError | None
    ) -> None:
        cfg, out = self._cfgs[call.layer], given.out
        if isinstance(taping, InputError):
            raise taping
        if given.stream is not None:
            raise InputError(f"stream applies only to backend='cuda', got {given.stream!r}")
        call.wants_routing = given.return_routing
        call.x, lead = arrays.rows("x", given.x, cfg.hidden, cfg.dtype)
        call.lead = lead
        if len(call.x) > cfg.max_tokens:
            raise InputError(f"x has {len(call.x)} tokens, more than max_tokens={cfg.max_tokens}")
        if routed_outside(given, call.layer, self._weights[call.layer].router is not None):
            shape = (*lead, cfg.top_k)
            call.ids, call.weights = routing_arrays(given.ids, shape, copy), weight_arrays(given.weights, shape, copy)
        self._take_router_x(call, given.router_x)
        shape = (*lead, cfg.hidden)
        if out is None:
            call.out = np.empty(shape, call.x.dtype)
        else:
            arrays.check_out(out, shape, call.x.dtype, call.x, call.ids, call.weights, call.router_x)
            call.out = out
        self._fill(call, call.x, call.out, taping)

    def _take_router_x(self, call: CpuCall, router_x: Any) -> None:
        if router_x is None:
            return
        call.router_x, lead = arrays.rows("router_x", router_x, self._cfg.hidden, self._cfg.dtype)
        if lead != call.lead:
            wanted, got = [*call.lead, self._cfg.hidden], [*lead, self._cfg.hidden]
            raise InputError(f"router_x must have the shape of x {wanted}, got {got}")

    def _fill(self, call: CpuCall, x: np.ndarray, out: np.ndarray, taping: Taping | None) -> None:
        """Write into the job what changes from call to call."""
        job, cfg, count = self._jobs.open(call.layer), self._cfgs[call.layer], len(x)
        by = x if call.router_x is None else call.router_x
        given, step = arrays.address(x), x.strides[0]
        travels = (arrays.address(self._weighted), self._weighted_step) if on_input(cfg) else (given, step)
        if call.wants_routing and call.ids is None:
            call.logits = np.empty((count, cfg.columns), np.float32)
        if call.wants_routing and on_input(cfg):
            call.kept = np.empty((count, choices(cfg)), np.float32)
        ids, weights = self._routing(call, count)
        at = self._routing_at if ids is self._ids else (arrays.address(ids), arrays.address(weights))
        jobs.fill(
            job,
            schema.CALL,
            schema.CPU,
            status_in=codes.OK,
            tokens=count,
            x=travels[0],
            x_stride=travels[1],
            input=given,
            input_stride=step,
            router_x=arrays.address(by) if call.router_x is not None else given,
            router_x_stride=by.strides[0],
            y=arrays.address(out),
            routed=call.ids is not None,
            capacity=0 if call.ids is not None else capacity(cfg, count),
            logits=0 if call.logits is None else call.logits.ctypes.data,
            kept_weights=0 if call.kept is None else call.kept.ctypes.data,
            ids=at[0],
            weights=at[1],
        )
        self._fill_tape(job, cfg, taping)

    def _fill_tape(self, job: np.ndarray, cfg: MoEConfig, taping: Taping | None) -> None:
        if taping is None:
            if job[words.TAPED] != 0:  # an earlier call kept a tape
                jobs.renew(job, schema.TAPE)
                jobs.leave_out(job, schema.CPU, schema.TAPE)
            return
        jobs.renew(job, schema.TAPE)
        jobs.fill(
            job,
            schema.TAPE,
            schema.CPU,
            taped=taping.table.ctypes.data,
            save=taping.save,
            tape_at=taping.first,
            tape_end=taping.end,
            tape_x=row_bytes(cfg),
            tape_hidden=hidden_bytes(cfg.ffn, cfg.gated),
        )

    def refuse(self, call: CpuCall) -> None:
        """Make the call announce a refusal instead of rows."""
        job = self._jobs.open(call.layer)
        self._forms[call.layer] = None
        jobs.fill_some(job, schema.CALL, schema.CPU, status_in=status_of(call.error))
        self._fill_tape(job, self._cfgs[call.layer], None)

    def _routing(self, call: CpuCall, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids and weights that the engine reads: the caller's, or this object's arrays, which the router writes."""
        cfg = self._cfgs[call.layer]
        if call.ids is not None and call.weights is not None:
            if not cfg.shared_ffn and not on_input(cfg):
                return call.ids, call.weights
            own_ids, own_weights = self.own_routing(cfg, count)
            own_ids[:], own_weights[:] = call.ids.reshape(own_ids.shape), call.weights.reshape(own_weights.shape)
        return self._ids, self._combine_weights

    def own_routing(self, cfg: MoEConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
        """[count, k] views of this object's ids and weights, without the shared expert's column."""
        pitch = choices(cfg)
        ids, weights = (a[: count * pitch].reshape(count, pitch) for a in (self._ids, self._combine_weights))
        return ids[:, : cfg.top_k], weights[:, : cfg.top_k]

    def shared_weights(self, layer: int, count: int) -> np.ndarray:
        """Weights of the shared expert's outputs in the last call, which had `count` tokens."""
        cfg, pitch = self._cfgs[layer], choices(self._cfgs[layer])
        if not cfg.shared_ffn:
            return np.ones(count, np.float32)
        return self._combine_weights[: count * pitch].reshape(count, pitch)[:, -1].copy()
