"""A layer on CPU cores: host arrays in and out, schedules "fused" and "bulk"."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes, column_runs, words
from ..engine.layout import lines
from ..errors import EnvironmentProblem, InputError
from ..kernels.by_isa import module
from ..kernels.cpu.call_blocks import BLOCK_BYTES
from ..kernels.cpu.elements import ELEMENTS
from ..kernels.cpu.lowering import handle
from ..placement import Placement
from ..primitives import isa
from ..primitives.buffers import FLOAT, LINE, aligned
from ..substrate.cpu.runtime import CpuRuntime
from ..substrate.runtime import Runtime
from .arguments import CallArguments, choices
from .backend import Backend, Event, Settings
from .backward import BackwardCalls
from .bulk import Bulk
from .collective import Membership, Needs
from .counting import compile_counting
from .cpu_arguments import CpuArguments, CpuCall
from .cpu_jobs import CpuJobs, CpuKernels
from .cpu_results import own_problem, routing_of_call
from .fused_backward import FusedBackward
from .fused_backward import needs as backward_needs
from .given import GivenLayer
from .node_weights import NodeWeights, foreign_slots, most_foreign
from .stats import call_stats
from .tapes import Taping
from .trained_weights import TrainedWeights, training_bytes
from .updates import Updates
from .weights import LayerWeights, expert_bytes, packed_bytes

COPIES = 4  # a row that travels is written and read once in the ring, and once in the return rows
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
    codes.SUM: "combine",
}
OF_EXPERTS = (codes.EXPERT, codes.SHARE, codes.LIST)  # kinds whose events name an expert


def depends_on_isa(cfg: MoEConfig, train: bool) -> bool:
    """Whether all ranks of a layer must use the same instruction set.

    The bits of outputs depend on the instruction set, except in float32, where every ISA computes a sum as one chain of
    fused multiply-adds in k order. Training adds gradients over ranks, in rows padded to the ISA's vectors.
    """
    return cfg.dtype != "float32" or cfg.precision != "highest" or train


def isa_of(cfg: MoEConfig, runtime: Runtime | None, train: bool) -> str:
    """The instruction set of a layer's kernels on this rank. runtime: None for a single process."""
    if depends_on_isa(cfg, train) and isinstance(runtime, CpuRuntime):
        return runtime.isa
    return isa.chosen()


def computed_experts(cfg: MoEConfig, places: Placement, rank: int, foreign: list[tuple[int, int]]) -> list[int]:
    """Ids of the experts that a rank may compute, in the engine's order: own, shared and foreign experts."""
    shared = [cfg.columns] if cfg.shared_ffn else []
    return [*places.mine(rank), *shared, *(places.expert_of(slot) for slot, _ in foreign)]


def kept_events(state: np.ndarray, starts: dict[int, int], workers: int) -> list[int]:
    """How many events each worker has kept."""
    return [int(state[words.counter(starts, worker, words.N_EVENTS)]) for worker in range(workers)]


def named_events(recorded: np.ndarray, kept: list[int], experts: list[int]) -> list[Event]:
    """Events with the names of their kinds and the ids of `experts`. kept: how many of each worker's are taken."""
    return [
        (worker, EVENT_KINDS[kind], start * 1e-9, end * 1e-9, experts[what] if kind in OF_EXPERTS else what, rows)
        for worker, n in enumerate(kept)
        for kind, start, end, what, rows in recorded[worker, :n].tolist()
    ]


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
        rows = self._entries.run_rows(self._element.code)
        kernels = CpuKernels(self._element, handle(self._entries.KERNELS[self._element.code]), rows)
        self._jobs = CpuJobs(self._runtime, member, self.cfgs, kernels, self.weights, settings.moves)
        self._arguments = CpuArguments(self.cfgs, self._jobs, self._element.nbytes, self.weights)
        self._recorded = 0  # the layer of the last call
        self._kept_events: list[int] = []  # how many events each worker has kept of that call
        self.taping: Taping | InputError | None = None  # what the next call tapes, or why it is refused
        self._home = self._open_home(settings, member)
        if self._home is not None:
            self._jobs.foreign = foreign_slots(member.placement, member.runtime.group.nodes, member.rank)
        self.bulk = Bulk(self._runtime, settings.limits.timeout) if settings.schedule == "bulk" else None

    def _open_home(self, settings: Settings, member: Membership) -> NodeWeights | None:
        """Open memory for experts that local peers may read; None if rows of this object always travel. Collective."""
        if settings.moves == "tokens" or settings.schedule == "bulk":
            return None
        if not most_foreign(member.placement, member.runtime.group.nodes):
            return None
        layers = [expert_bytes(self._element, cfg) for cfg in self.cfgs]
        always = settings.moves == "experts"
        home = NodeWeights.open(member.runtime.group, layers, member.placement.held, self._isa, always)
        if not home.problem:
            if not always:
                reading = self._jobs.reading_rows = module("break_even", self._isa).rows(self._element, self._entries)
                copied = COPIES * self._element.nbytes * self.cfg.hidden
                self._jobs.stay_rows = [max(reading, sum(nbytes.values()) // copied) for nbytes in layers]
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
        if cfg.combine == "sums" and schedule == "bulk":
            raise InputError("combine='sums' needs schedule='fused', got schedule='bulk': leave combine out")
        if cfg.dtype not in ELEMENTS:
            known = ", ".join(ELEMENTS)
            raise InputError(f"dtype must be one of {known} with backend='cpu', got {cfg.dtype!r}: pass backend='cuda'")

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
        sums = lines(FLOAT * choices(cfg)) + lines(kind.nbytes * cfg.hidden) if cfg.combine == "sums" else 0
        most = max(run, route, tokens.combine_bytes(choices(cfg)) + sums)
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
        else:  # all arrays are checked: pack in place; if this fails half-way, calls are refused
            self.unload(layer)
            self.load_part(layer, lambda weights: weights.take_layer(given))

    def idle(self) -> None:
        if self._home is not None:
            self._runtime.await_readers()

    def loaded(self, layer: int) -> None:
        self._jobs.filled[layer] = -1

    # ------------------------------------------------------------ calls

    def new_call(self) -> CpuCall:
        return CpuCall()

    def take_arguments(self, call: CpuCall, given: CallArguments, copy: bool) -> None:
        self._arguments.take_arguments(call, given, copy, self.taping)

    def refuse(self, call: CpuCall) -> None:
        self._arguments.refuse(call)

    def kept_up_to(self) -> int:
        return int(self._runtime.state[words.TAPE_NEXT])

    def run_call(self, call: CpuCall) -> float:
        runtime, job = self._runtime, self._jobs.made_for(call.layer)
        self._recorded = call.layer
        started = time.perf_counter()
        try:
            if self.bulk is not None:
                self.bulk.run_call(job)
            else:
                runtime.run_call(job, self.settings.limits)
        finally:
            if (recorded := self._jobs.events) is not None:
                workers = min(runtime.threads, len(recorded))  # another object may have more
                self._kept_events = kept_events(runtime.state, runtime.tables.starts, workers)
        seconds = time.perf_counter() - started
        self.totals.add(job, runtime.state, runtime.counted, seconds)
        return seconds

    def result(self, call: CpuCall, seconds: float, return_stats: bool) -> Any:
        runtime, job, cfg = self._runtime, self._jobs.made_for(call.layer), self.cfgs[call.layer]
        try:
            if call.error is not None:
                raise call.error
            state = runtime.state
            if state[words.STATUS] != codes.OK:
                raise InputError(own_problem(call, int(state[words.STATUS]), cfg))
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
            return (*found, routing_of_call(call, cfg, self._arguments)) if call.wants_routing else found
        finally:
            runtime.open = False

    def shared_weights(self, layer: int, count: int) -> np.ndarray:
        return self._arguments.shared_weights(layer, count)

    def received(self, layer: int) -> int:
        job, state = self._jobs.made_for(layer), self._runtime.state
        rows = int(state[job[words.T_ROWS_FROM] :][: self.member.world].sum())
        return rows - int(job[words.TOKENS]) * bool(self.cfgs[layer].shared_ffn)

    # ------------------------------------------------------------ events

    def timeline(self, on: bool, events: int) -> None:
        threads = self.member.runtime.threads
        self._jobs.events = aligned((threads, events, words.EVENT_WORDS), np.int64) if on else None
        self._kept_events = []
        self._jobs.forget()

    def events(self) -> list[Event]:
        if self._jobs.events is None:
            return []
        cfg, member = self.cfgs[self._recorded], self.member
        experts = computed_experts(cfg, member.placement, member.rank, self._jobs.foreign)
        return named_events(self._jobs.events, self._kept_events, experts)

    def close(self) -> None:
        super().close()
        self._jobs.made.clear()
        if self._home is not None:
            self._home.close()
        if self.bulk is not None:
            self.bulk.close()
