"""An MoE layer with random weights and tokens, and the float64 oracle that checks its outputs.

Each expert's weights are drawn from a seed of their own. So a rank stores only its experts, and the oracle can generate
any other expert when a token needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..config import MoEConfig
from ..errors import InputError
from ..placement import Placement
from ..row_types import ROW_TYPES
from ..weight_types import WEIGHT_TYPES
from . import routing
from .context import VERDICTS, Context
from .world import World

# the tolerance of errors against float64 for precision="high"; `row_types` has those of the element types
HIGH = 2e-5
NEAR_TIE = 1e-4  # closer scores may be ordered differently in float32 and float64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Call:
    """Arguments of one call on this rank. x: [S, H], float32 or as `Workload.typed` makes it.

    ids, weights: [S, k], or None if the layer is to route."""

    x: Array
    ids: routing.Ids | None = None
    weights: routing.Weights | None = None


class Workload:
    """One layer, its weights and its inputs. placement: [E] the rank of every expert, by the default placement."""

    def __init__(self, world: World, cfg: MoEConfig, seed: int) -> None:
        self.world, self.cfg, self.seed = world, cfg, seed
        self.placement = Placement(None, cfg.experts, world.size).ranks
        self.local = np.flatnonzero(self.placement == world.rank)
        self.router = self._rng(0).standard_normal((cfg.hidden, cfg.experts), np.float32)
        self.router *= np.float32(cfg.hidden**-0.5)
        self.router = self._rounded(self.router)  # published routers have the type of rows
        self.single = replace(cfg, experts=1, top_k=1)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def expert(self, e: int) -> dict[str, Array]:
        """Weights of expert e. Each array has a leading axis of length 1."""
        made = reference.weights(self.single, seed=int(self._rng(1, e).integers(2**62)))
        del made["router"]
        return made

    def weights(self, experts: Sequence[int] | NDArray[np.int64] | None = None) -> dict[str, Array]:
        """The weights of some experts, by default of this rank's, stacked [L, ...]; arrays of length 0 for none."""
        experts = self.local if experts is None else experts
        first = self.expert(int(experts[0]) if len(experts) else 0)
        stacked = {name: np.empty((len(experts), *w.shape[1:]), w.dtype) for name, w in first.items()}
        for i, e in enumerate(experts):
            for name, w in self.expert(int(e)).items():
                stacked[name][i] = w[0]
        return stacked

    def layer(self, schedule: Any, threads: int | None, stacked: dict[str, Any] | None = None, **options: Any) -> Any:
        """A loaded `aristos.MoE` in the default placement. options: other arguments of MoE. Bulk moves tokens."""
        usual = {"backend": "cpu", "placement": self.placement.tolist(), "ranks_per_node": self.world.ranks_per_node}
        if schedule == "bulk":
            options["moves"] = "tokens"
        return self.loaded(stacked, schedule=schedule, threads=threads, **usual | options)

    def loaded(self, stacked: dict[str, Any] | None = None, **options: Any) -> Any:
        """A loaded `aristos.MoE`. stacked: this rank's weights, if they are known. options: those of MoE."""
        import aristos

        moe = aristos.MoE(self.cfg, comm=self.world.comm, **options, **self.world.waits)
        weights: dict[str, Any] = self.weights(moe.placement.mine(moe.rank)) if stacked is None else stacked
        moe.load(router=self.router, local=True, **weights)
        return moe

    def tokens(self, count: int, *key: int, settle: bool = False) -> Array:
        """x: [count, H] float32, with values of the layer's dtype.

        settle: whether to draw a token again if its routing is a near tie, so that the float64 oracle and the layer's
        float32 router must agree."""
        rng = self._rng(2, self.world.rank, *key)
        x = self._rounded(rng.standard_normal((count, self.cfg.hidden), np.float32))
        k = self.cfg.top_k
        while settle and count and k < self.cfg.experts:
            scores = -np.sort(-(x.astype(np.float64) @ self.router), axis=1)
            close = np.flatnonzero(scores[:, k - 1] - scores[:, k] < NEAR_TIE)
            if not len(close):
                break
            x[close] = self._rounded(rng.standard_normal((len(close), self.cfg.hidden), np.float32))
        return x

    def _rounded(self, x: Array) -> Array:
        """x rounded to the layer's dtype, as float32."""
        return x.astype(ROW_TYPES[self.cfg.dtype].array).astype(np.float32)

    def typed(self, call: Call) -> Call:
        """The same call with x in the layer's dtype, as a layer on CPUs takes it."""
        return replace(call, x=call.x.astype(ROW_TYPES[self.cfg.dtype].array))

    def call(self, count: int, how: str, *key: int) -> Call:
        """A call of `count` tokens on this rank. how: "router", or the name of a generator of `routing`."""
        if how == "router":
            return Call(self.tokens(count, *key, settle=True))
        rng = self._rng(3, self.world.rank, *key)
        local = int((self.placement == 0).sum())
        ids = routing.generate(how, rng, count, self.cfg.experts, self.cfg.top_k, local)
        return Call(self.tokens(count, *key), ids, routing.combine_weights(rng, ids))

    def recorded(self, trace: routing.Trace, tokens: NDArray[np.int64], layer: int) -> Call:
        """A call with the trace's ids and weights of these tokens [S] in one layer.

        Raises InputError if the layer has fewer experts than the trace."""
        if trace.experts > self.cfg.experts:
            names = f"because {trace.path} names expert {trace.experts - 1}"
            raise InputError(f"experts must be at least {trace.experts}, {names}, got {self.cfg.experts}")
        return Call(self.tokens(len(tokens), layer), *trace.at(tokens, layer))

    def routed(self, call: Call) -> tuple[routing.Ids, NDArray[np.float64]]:
        """The ids and weights [S, k] that the oracle uses for a call."""
        if call.ids is not None and call.weights is not None:
            return call.ids, call.weights.astype(np.float64)
        return reference.route(self.cfg, call.x, self.router)

    def rows(self, ids: routing.Ids) -> NDArray[np.int64]:
        """Rows per expert [E] over all ranks. ids: those of this rank's call. Collective."""
        return self.counts(ids).sum(axis=0)

    def counts(self, ids: routing.Ids) -> NDArray[np.int64]:
        """Rows [W, E] of each rank for each expert. ids: those of this rank's call. Collective."""
        return np.array(self.world.allgather(np.bincount(ids[ids >= 0], minlength=self.cfg.experts)), np.int64)

    def oracle(self, call: Call) -> NDArray[np.float64]:
        """The right outputs y [S, H], float64, of this rank's tokens."""
        ids, weights = self.routed(call)
        y = np.zeros(call.x.shape)
        for e in np.unique(ids[ids >= 0]):
            token, choice = np.nonzero(ids == e)
            out = reference.expert(self.single, call.x[token].astype(np.float64), 0, **self.expert(int(e)))
            y[token] += weights[token, choice, None] * out
        return y

    def error(self, y: Any, truth: NDArray[np.float64]) -> float:
        """The largest relative error on any rank (see `reference.error`). Collective."""
        return self.world.largest(reference.error(y, truth))

    def passes(self, error: float) -> bool:
        """Whether an error is within the tolerance of the layer's dtype and precision."""
        return error <= (ROW_TYPES[self.cfg.dtype].error if self.cfg.precision == "highest" else HIGH)

    def verdict(self, error: float, right: bool = True) -> dict[str, Any]:
        """The part of a record that says whether outputs were right: by their error, and by what else was checked."""
        return {"error": error, "check": VERDICTS[right and self.passes(error)]}

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's matrices."""
        return WEIGHT_TYPES[self.cfg.dtype].nbytes(self.flops_per_row // 2, 1)

    @property
    def flops_per_row(self) -> int:
        """Multiplications and additions of the GEMMs for one row."""
        return 2 * self.cfg.hidden * self.cfg.ffn * (3 if self.cfg.gated else 2)


def routed_call(ctx: Context, work: Workload, count: int, usual: str = "router") -> Call:
    """A call of `count` tokens on this rank, routed as --routing says, or without that option as `usual` says."""
    if ctx.trace is not None:
        tokens = ctx.trace.prefill(ctx.world.rank, ctx.world.size, count, 0)
        return work.recorded(ctx.trace, tokens, ctx.trace.layers // 2)
    return work.call(count, ctx.options.routing or usual, count)


def compile_all(world: World) -> None:
    """Compile or load the kernels of layers of both schedules. Shows progress if that takes long. Collective."""
    work = Workload(world, MoEConfig(hidden=64, ffn=64, experts=world.size, top_k=1, max_tokens=8), seed=0)
    for schedule in ("bulk", "fused"):
        layer = work.layer(schedule, threads=1)
        execute(layer, work.call(8, "uniform"))
        layer.close()


def execute(moe: Any, call: Call, out: Array | None = None, return_stats: bool = False) -> Any:
    """Run the call. Returns y [S, H], or (y, stats) if return_stats."""
    if call.ids is None:
        return moe(call.x, out=out, return_stats=return_stats)
    return moe(call.x, ids=call.ids, weights=call.weights, out=out, return_stats=return_stats)
