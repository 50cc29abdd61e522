"""A layer on CPU cores: host arrays in and out, schedules "fused" and "bulk"."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes, column_runs, schema, words
from ..engine import job as jobs
from ..engine.layout import lines
from ..errors import EnvironmentProblem, InputError
from ..kernels.by_isa import module
from ..kernels.common import activations, scores
from ..kernels.cpu.call_blocks import BLOCK_BYTES
from ..kernels.cpu.elements import ELEMENTS
from ..kernels.cpu.expert import hidden_bytes
from ..kernels.cpu.lowering import handle
from ..primitives import arrays, finite, isa
from ..primitives.buffers import LINE, aligned
from ..routing import Routing, routing_of
from ..substrate.cpu.runtime import CpuRuntime
from ..substrate.runtime import Runtime
from .arguments import (
    CallArguments,
    capacity,
    choices,
    explain_ids,
    form_of,
    not_finite,
    on_input,
    routed_outside,
    routing_arrays,
    weight_arrays,
)
from .backend import Backend, Event, Settings
from .backward import BackwardCalls
from .bulk import Bulk
from .collective import Membership, Needs, status_of
from .counting import compile_counting
from .fused_backward import FusedBackward
from .fused_backward import needs as backward_needs
from .given import GivenLayer
from .node_weights import NodeWeights, foreign_slots, most_foreign
from .stats import call_stats
from .tapes import Taping, row_bytes
from .trained_weights import TrainedWeights, training_bytes
from .updates import Updates
from .weights import LayerWeights, expert_bytes, packed_bytes

COPIES = 4  # readings and writings of a row that travels: of the ring row and of the return row, once each
EVENT_KINDS = {
    codes.IDLE: "wait",
    codes.ROUTE: "route",
    codes.PACK: "pack",
    codes.DISPATCH: "dispatch",
    codes.BUNDLE: "dispatch",
    codes.POST: "wire",
    codes.EXPERT: "expert",
    codes.SHARE: "expert",
    codes.LIST: "expert",
    codes.COMBINE: "combine",
}
OF_EXPERTS = (codes.EXPERT, codes.SHARE, codes.LIST)  # kinds whose events name an expert


@dataclass
class CpuCall:
    """One call between its checks and its result.

    x, router_x: [S, H]; ids, weights: [..., k], or None for the router's. logits: [S, columns] and kept: [S, k'], where
    the router writes logits and combine weights if the caller wants the routing.
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


def depends_on_isa(cfg: MoEConfig, train: bool) -> bool:
    """Whether a layer's ranks must have one instruction set in common.

    The bits of its outputs depend on it, except in float32: there a sum is one chain of fused multiply-adds in k order
    on every ISA. Training adds up gradients over ranks, in rows rounded up to its vectors.
    """
    return cfg.dtype != "float32" or cfg.precision != "highest" or train


def isa_of(cfg: MoEConfig, runtime: Runtime | None, train: bool) -> str:
    """The instruction set of a layer's kernels on this rank; without a runtime, on a process alone."""
    if depends_on_isa(cfg, train) and isinstance(runtime, CpuRuntime):
        return runtime.isa
    return isa.chosen()


class CpuBackend(Backend):
    """See `Backend`."""

    name = "cpu"
    reads_peers = trains = True

    def __init__(self, settings: Settings, member: Membership) -> None:
        super().__init__(settings, member)
        compile_counting()
        assert isinstance(member.runtime, CpuRuntime)
        self._runtime = member.runtime
        cfg = self.cfg
        self._isa = isa_of(cfg, self._runtime, settings.train)
        if depends_on_isa(cfg, settings.train):
            self._runtime.report_isa()
        self._elements = module("elements", self._isa)
        self._element = self._elements.element_type(cfg.dtype, cfg.precision, cfg.packed)
        self._entries = module("entries", self._isa, self._element.format)
        self._kernels = handle(self._entries.KERNELS[self._element.code])
        self._jobs: list[np.ndarray | None] = [None] * settings.layers
        self._filled = [-1] * settings.layers  # the runtime's version that each job was filled for
        pairs = cfg.max_tokens * max(choices(each) for each in self.cfgs)
        self._ids, self._combine_weights = aligned((pairs,), np.int64), aligned((pairs,))
        self._routing_at = self._ids.ctypes.data, self._combine_weights.ctypes.data
        self._weighted_step = lines(self._element.nbytes * cfg.hidden)
        weighted = cfg.max_tokens * any(on_input(each) for each in self.cfgs)
        self._weighted = aligned((weighted, self._weighted_step), np.uint8)
        self._events: np.ndarray | None = None
        self._recorded = 0  # the layer of the last call
        # the form of each layer's last call, see `form_of`
        self._forms: list[tuple[Any, ...] | None] = [None] * settings.layers
        self.taping: Taping | InputError | None = None  # what the next call tapes; an error: why that call is refused
        self._stay_rows = [1] * settings.layers
        self._reading_rows = 0
        self._home = self._open_home(settings, member)
        nodes, rank = member.runtime.group.nodes, member.rank
        self._foreign = [] if self._home is None else foreign_slots(member.placement, nodes, rank)
        self.bulk = Bulk(self._runtime, settings.limits.timeout) if settings.schedule == "bulk" else None

    def _open_home(self, settings: Settings, member: Membership) -> NodeWeights | None:
        """Memory for experts that local peers may read; None if this object's tokens always travel. Collective."""
        if settings.moves == "tokens" or settings.schedule == "bulk":
            return None
        if not most_foreign(member.placement, member.runtime.group.nodes):
            return None
        layers = [expert_bytes(self._element, cfg) for cfg in self.cfgs]
        always = settings.moves == "experts"
        home = NodeWeights.open(member.runtime.group, layers, member.placement.held, self._isa, always)
        if not home.problem:
            if not always:
                self._reading_rows = module("break_even", self._isa).rows(self._element, self._entries)
                copied = COPIES * self._element.nbytes * self.cfg.hidden
                self._stay_rows = [max(self._reading_rows, sum(nbytes.values()) // copied) for nbytes in layers]
            return home
        if always:
            error = EnvironmentProblem(f"moves='experts' needs memory that the ranks of a node share: {home.problem}")
            error.on_all_ranks = True
            raise error
        return None

    @staticmethod
    def check(cfg: MoEConfig, schedule: str, threads: int | None, sms: int | None = None) -> None:
        if sms is not None:
            raise InputError(f"sms applies only to backend='cuda', got {sms!r}")
        if cfg.dtype not in ELEMENTS:
            known = ", ".join(ELEMENTS)
            raise InputError(f"backend='cpu' computes in {known}, got dtype={cfg.dtype!r}: pass backend='cuda'")

    @staticmethod
    def needs(cfg: MoEConfig, runtime: Runtime | None, sms: int | None = None, train: bool = False) -> Needs:
        chosen = isa_of(cfg, runtime, train)
        tokens, elements = module("tokens", chosen), module("elements", chosen)
        kind = elements.element_type(cfg.dtype, cfg.precision, cfg.packed)
        element, entries = kind.code, module("entries", chosen, kind.format)
        route = tokens.route_bytes(words.TOKEN_BLOCK, cfg.hidden, cfg.columns)
        rows, _ = entries.run_rows(element)
        ffn = max(cfg.ffn, cfg.shared_ffn)
        run, activations = entries.run_bytes(element, rows, column_runs.MOST_ROWS, cfg.hidden, ffn, cfg.gated)
        most = max(run, route, tokens.combine_bytes(choices(cfg)))
        forward = Needs(BLOCK_BYTES + most, activations + LINE)
        return Needs.most([forward, backward_needs(cfg)]) if train else forward

    @staticmethod
    def packed_bytes(cfg: MoEConfig, count: int, copied: int | None) -> int:
        return packed_bytes(cfg, count) + (0 if copied is None else training_bytes(cfg, count, copied))

    @property
    def isa(self) -> str | None:
        return self._isa

    @property
    def keeps_rows(self) -> bool:
        return self.bulk is None

    def trainer(self) -> CpuBackend:
        return self

    def backward_calls(self, number: int) -> BackwardCalls:
        if self.bulk is not None:
            return BackwardCalls(self.member, self._isa, number, self.cfgs)
        return FusedBackward(self.member, self._isa, number, self.cfgs, self.settings.limits)

    def updates(self) -> Updates:
        return Updates(self._isa)

    @property
    def moves(self) -> str:
        return "tokens" if self._home is None else self.settings.moves

    def new_weights(self, layer: int) -> LayerWeights:
        float32 = self._elements.element_type("float32")
        if self.settings.train:
            copied = self.settings.copied
            return TrainedWeights(self._element, float32, self.cfgs[layer], self.member.mine, copied)
        home = None if self._home is None else (self._home, layer)
        return LayerWeights(self._element, float32, self.cfgs[layer], self.member.mine, home)

    def load(self, layer: int, given: GivenLayer) -> None:
        if self._home is None:
            super().load(layer, given)
        else:  # in place, after all arrays were checked; if it fails half-way, calls are refused
            self.unload(layer)
            self.load_part(layer, lambda weights: weights.take_layer(given))

    def idle(self) -> None:
        if self._home is not None:
            self._runtime.await_readers()

    def loaded(self, layer: int) -> None:
        self._filled[layer] = -1

    # ------------------------------------------------------------ calls

    def new_call(self) -> CpuCall:
        return CpuCall()

    def take_arguments(self, call: CpuCall, given: CallArguments, copy: bool) -> None:
        form = None if copy or self.taping is not None else form_of(given)
        if form is not None and form == self._forms[call.layer] and self._take_again(call, given):
            return
        self._forms[call.layer] = None
        self._take_checked(call, given, copy)
        as_given = call.x is given.x and call.ids is given.ids and call.weights is given.weights
        if as_given and not self.cfgs[call.layer].shared_ffn and not on_input(self.cfgs[call.layer]):
            self._forms[call.layer] = form

    def _take_again(self, call: CpuCall, given: CallArguments) -> bool:
        """Take arrays that need no check, as those of the layer's last call did not; False: one lies elsewhere."""
        out = np.empty(given.x.shape, given.x.dtype) if given.out is None else given.out
        x, ids, weights, y = (arrays.address(each) for each in (given.x, given.ids, given.weights, out))
        if (x | ids | weights | y) % 8:
            return False
        if given.out is not None and any(np.may_share_memory(out, each) for each in given[:3]):
            return False
        call.x, call.ids, call.weights = given.x, given.ids, given.weights
        call.lead = given.x.shape[:-1]
        call.out = out
        job = self._job(call.layer)
        jobs.fill_again(job, schema.CALL, schema.CPU, x=x, input=x, router_x=x, y=y, ids=ids, weights=weights)
        self._fill_tape(job, self.cfgs[call.layer], None)
        return True

    def _take_checked(self, call: CpuCall, given: CallArguments, copy: bool) -> None:
        cfg, ids, weights, out = self.cfgs[call.layer], given.ids, given.weights, given.out
        if isinstance(self.taping, InputError):
            raise self.taping
        if given.stream is not None:
            raise InputError(f"stream applies only to backend='cuda', got {given.stream!r}")
        call.wants_routing = given.return_routing
        call.x, lead = arrays.rows("x", given.x, cfg.hidden, cfg.dtype)
        call.lead = lead
        if len(call.x) > cfg.max_tokens:
            raise InputError(f"x has {len(call.x)} tokens, more than max_tokens={cfg.max_tokens}")
        if routed_outside(ids, weights, call.layer, self.weights[call.layer].router is not None):
            shape = (*lead, cfg.top_k)
            call.ids, call.weights = routing_arrays(ids, shape, copy), weight_arrays(weights, shape, copy)
        self._take_router_x(call, given.router_x)
        shape = (*lead, cfg.hidden)
        if out is None:
            call.out = np.empty(shape, call.x.dtype)
        else:
            arrays.check_out(out, shape, call.x.dtype, call.x, call.ids, call.weights, call.router_x)
            call.out = out
        self._fill(call, call.x, call.out)

    def _take_router_x(self, call: CpuCall, router_x: Any) -> None:
        if router_x is None:
            return
        if call.ids is not None:
            raise InputError("router_x needs the layer's router: give either router_x, or ids and weights")
        call.router_x, lead = arrays.rows("router_x", router_x, self.cfg.hidden, self.cfg.dtype)
        if lead != call.lead:
            wanted, got = [*call.lead, self.cfg.hidden], [*lead, self.cfg.hidden]
            raise InputError(f"router_x must have the shape of x {wanted}, got {got}")

    def _fill(self, call: CpuCall, x: np.ndarray, out: np.ndarray) -> None:
        """Write into the job what changes from call to call."""
        job, cfg, count = self._job(call.layer), self.cfgs[call.layer], len(x)
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
        self._fill_tape(job, cfg, self.taping)

    def _fill_tape(self, job: np.ndarray, cfg: MoEConfig, taping: Taping | InputError | None) -> None:
        if not isinstance(taping, Taping):
            if job[words.TAPED] != 0:  # by an earlier call
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

    def kept_up_to(self) -> int:
        return int(self._runtime.state[words.TAPE_NEXT])

    def _routing(self, call: CpuCall, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The arrays of ids and weights that the engine reads: the caller's, or those that it may write."""
        cfg = self.cfgs[call.layer]
        if call.ids is not None and call.weights is not None:
            if not cfg.shared_ffn and not on_input(cfg):
                return call.ids, call.weights
            own_ids, own_weights = self._own_routing(cfg, count)
            own_ids[:], own_weights[:] = call.ids.reshape(own_ids.shape), call.weights.reshape(own_weights.shape)
        return self._ids, self._combine_weights

    def _own_routing(self, cfg: MoEConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
        """[count, k] views of this object's ids and weights, without the shared expert's column."""
        pitch = choices(cfg)
        ids, weights = (a[: count * pitch].reshape(count, pitch) for a in (self._ids, self._combine_weights))
        return ids[:, : cfg.top_k], weights[:, : cfg.top_k]

    def refuse(self, call: CpuCall) -> None:
        job = self._job(call.layer)
        self._forms[call.layer] = None
        jobs.fill_some(job, schema.CALL, schema.CPU, status_in=status_of(call.error))
        self._fill_tape(job, self.cfgs[call.layer], None)

    def _job(self, layer: int) -> np.ndarray:
        """The job of a layer for a new call, filled again when its weights or the runtime's windows have changed."""
        runtime, cfg = self._runtime, self.cfgs[layer]
        job = self._jobs[layer]
        if job is None:
            job = self.member.new_job(
                schema.CPU,
                hidden=cfg.hidden,
                ffn=cfg.ffn,
                experts=cfg.columns,
                top_k=choices(cfg),
                choices=cfg.top_k,
                shared=len(self.member.mine) + 1 if cfg.shared_ffn else 0,
                shared_ffn=cfg.shared_ffn,
                identity=cfg.identity_experts,
                on_input=on_input(cfg),
                foreign=self._foreign,
                stay_rows=self._stay_rows[layer],
                reading_rows=self._reading_rows,
                busiest_decides=int(self.settings.moves != "experts"),
                scalars=0,
                row_bytes=self._element.nbytes * cfg.hidden,
                kernels=self._kernels,
                score=scores.rule(cfg.router),
                renormalize=cfg.router.renormalize,
                scale=int(np.float32(cfg.router.scale).view(np.int32)),
                activation=activations.word(cfg.activation, cfg.limit, cfg.limit_after),
            )
            self._jobs[layer] = job
            jobs.fill(job, schema.KIND, schema.CPU, layer=layer, mode=codes.MODE_LAYER)
            jobs.leave_out(job, schema.CPU, schema.TAPE, schema.BACKWARD, schema.LANDING)
        if self._filled[layer] != runtime.version:
            jobs.renew(job, schema.ENGINE, schema.TILE, schema.WEIGHTS, schema.EVENTS)
            runtime.fill(job, self.member.threads, *self._entries.run_rows(self._element.code))
            if self.weights[layer] is not None:
                self.weights[layer].fill(job)
                self._filled[layer] = runtime.version
            else:
                jobs.leave_out(job, schema.CPU, schema.WEIGHTS)
            at, most = (0, 0) if self._events is None else (self._events.ctypes.data, self._events.shape[1])
            jobs.fill(job, schema.EVENTS, schema.CPU, events=at, events_max=most)
        jobs.renew_call(job)
        return job

    def _job_of(self, call: CpuCall) -> np.ndarray:
        job = self._jobs[call.layer]
        assert job is not None
        return job

    def run_call(self, call: CpuCall) -> float:
        runtime, job = self._runtime, self._job_of(call)
        self._recorded = call.layer
        started = time.perf_counter()
        if self.bulk is not None:
            self.bulk.run(job)
        else:
            runtime.run_call(job, self.settings.limits)
        seconds = time.perf_counter() - started
        self.totals.add(job, runtime.state, runtime.counted, seconds)
        return seconds

    def result(self, call: CpuCall, seconds: float, return_stats: bool) -> Any:
        runtime, job = self._runtime, self._job_of(call)
        try:
            if call.error is not None:
                raise call.error
            state = runtime.state
            if state[words.STATUS] != codes.OK:
                raise InputError(self._own_problem(call, int(state[words.STATUS])))
            if self.member.world > 1:
                self.member.raise_peer_problem(job)
            if not (return_stats or call.wants_routing):
                return call.out
            found: tuple[Any, ...] = (call.out,)
            if return_stats:
                schedule, used = self.settings.schedule, self._isa
                stats = call_stats(
                    job, state, runtime.counted, schedule=schedule, seconds=seconds, y=call.out, isa=used
                )
                found += (stats,)
            return (*found, self._routing_of(call)) if call.wants_routing else found
        finally:
            runtime.open = False

    def _routing_of(self, call: CpuCall) -> Routing:
        assert call.x is not None
        cfg, count = self.cfgs[call.layer], len(call.x)
        own_ids, own_weights = self._own_routing(cfg, count)
        ids = own_ids if call.ids is None else call.ids
        weights = own_weights if call.weights is None else call.weights
        if call.kept is not None:
            weights = call.kept[:, : cfg.top_k]
        shape = (*call.lead, cfg.top_k)
        logits = None if call.logits is None else call.logits.reshape(*call.lead, cfg.columns)
        return routing_of(ids.reshape(shape), weights.reshape(shape), logits, cfg.columns)

    def shared_weights(self, layer: int, count: int) -> np.ndarray:
        cfg, pitch = self.cfgs[layer], choices(self.cfgs[layer])
        if not cfg.shared_ffn:
            return np.ones(count, np.float32)
        return self._combine_weights[: count * pitch].reshape(count, pitch)[:, -1].copy()

    def received(self, layer: int) -> int:
        job, state = self._jobs[layer], self._runtime.state
        assert job is not None
        rows = int(state[job[words.T_ROWS_FROM] :][: self.member.world].sum())
        return rows - int(job[words.TOKENS]) * bool(self.cfgs[layer].shared_ffn)

    def _own_problem(self, call: CpuCall, status: int) -> str:
        """Why the engine has refused this rank's routing."""
        if status == codes.BAD_IDS:
            assert call.ids is not None
            return explain_ids(call.ids.reshape(-1, self.cfg.top_k), self.cfgs[call.layer].columns)
        if call.weights is not None and call.ids is not None:
            given = call.weights.reshape(-1, self.cfg.top_k)
            problem = not_finite(given, call.ids.reshape(given.shape) >= 0)
            return problem or "x times shared_sigmoid must be finite, got NaN or infinity: look for it in both"
        assert call.x is not None
        name, rows = ("x", call.x) if call.router_x is None else ("router_x", call.router_x)
        at = finite.first(rows)
        if at is not None:
            return f"{name} must be finite, got {float(rows[at])} in token {at[0]}, column {at[1]}"
        return f"router scores must be finite, got NaN or infinity: {name} is finite, its products are not"

    # ------------------------------------------------------------ events

    def timeline(self, on: bool, events: int) -> None:
        threads = self.member.runtime.threads
        self._events = aligned((threads, events, words.EVENT_WORDS), np.int64) if on else None
        self._filled = [-1] * len(self._filled)

    def events(self) -> list[Event]:
        runtime, recorded = self.member.runtime, self._events
        if recorded is None:
            return []
        found = []
        experts = self._computed_experts(self._recorded)
        for worker in range(min(runtime.threads, len(recorded))):
            n = int(runtime.state[words.counter(runtime.tables.starts, worker, words.N_EVENTS)])
            for kind, start, end, what, rows in recorded[worker, :n].tolist():
                what = experts[what] if kind in OF_EXPERTS else what
                found.append((worker, EVENT_KINDS[kind], start * 1e-9, end * 1e-9, what, rows))
        return found

    def _computed_experts(self, layer: int) -> list[int]:
        """Ids of the experts that this rank may compute, in the engine's order: held, shared, foreign ones."""
        cfg, places = self.cfgs[layer], self.member.placement
        shared = [cfg.columns] if cfg.shared_ffn else []
        return [*self.member.mine, *shared, *(places.expert_of(slot) for slot, _ in self._foreign)]

    def close(self) -> None:
        super().close()
        self._jobs = []
        if self._home is not None:
            self._home.close()
        if self.bulk is not None:
            self.bulk.close()
