"""`aristos soak`: random layers and calls for a long time. Calls are checked; memory, files, threads must not grow.
All ranks draw the same objects from one seed: shape, router, element type, placement with or without copies, schedule,
`moves`, pretended nodes, workers, layers, training. Levels and nodes may be given instead of drawn. Each object makes
some calls with random tokens and routing, and loads other weights between these calls. Each rank checks its outputs
against `aristos.reference`, and after backward calls its gradients with respect to x. Then the object is closed. If a
call fails, the error names the seed and the object's number; `--first N` starts at that object again. The instruction
set is that of the process, which ARISTOS_ISA changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .. import reference
from ..config import ACTIVATIONS, SCORE_RULES, MoEConfig, Router
from ..errors import AristosError
from ..layer.moe import MoE
from ..row_types import ON_CPUS
from . import health
from .world import World

Arrays = dict[str, np.ndarray]  # weights by name
PROJECTIONS = ("up", "gate", "down")
LONG_WAIT = 1e-3  # seconds; longer waits for a peer are counted as long
SMALL = 0.2  # if a sum is smaller than this share of its terms, they have cancelled, and the sum is inexact
SAVES: tuple[Literal["nothing", "rows", "hidden"], ...] = ("nothing", "rows", "hidden")
KINK = 1e-5  # inputs of an activation are about 1; their float32 sums differ from float64 sums by less than this
SAMPLE_EVERY = 1.0  # after the first 8 samples, the least seconds between two; a sample is taken after an object


class SoakError(Exception):
    """A wrong result of a call.

    A SoakError is no AristosError, because only this rank knows of the wrong result, and other ranks must not wait for
    this rank.
    """


@dataclass(frozen=True)
class Asked:
    """The values that are given instead of drawn.

    largest: the most that hidden, ffn and shared_ffn may be. ranks_per_node: None if nodes are drawn.
    """

    seed: int
    largest: int = 128
    levels: int = 1
    ranks_per_node: int | None = None

    def command(self, first: int) -> str:
        """The command that draws the same objects from number `first` on."""
        levels = f" --levels {self.levels}" if self.levels != 1 else ""
        nodes = f" --ranks-per-node {self.ranks_per_node}" if self.ranks_per_node else ""
        return f"aristos soak --seed {self.seed} --first {first} --largest {self.largest}{levels}{nodes}"


@dataclass(frozen=True)
class Drawn:
    """An object and its calls, equal on all ranks. options: keyword arguments of MoE."""

    number: int
    cfg: MoEConfig
    options: dict[str, Any]
    calls: int

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"object {self.number}: {self.cfg!r}, {said}"


@dataclass
class Counts:
    """The counts of what a rank has done so far."""

    objects: int = 0
    calls: int = 0
    backward: int = 0
    loads: int = 0
    rows: int = 0
    long_waits: int = 0
    worst: float = 0.0  # the largest ratio of an error to its tolerance
    samples: list[health.Sample] = field(default_factory=list)


def draw(asked: Asked, number: int, world: int) -> Drawn:
    """Draw object `number`, for `world` ranks."""
    rng, largest = np.random.default_rng([asked.seed, number]), asked.largest

    def pick(*of: Any) -> Any:
        return of[int(rng.integers(len(of)))]

    experts = int(rng.integers(1, 4 * world + 9))
    top_k = int(rng.integers(1, min(experts, 8) + 1))
    gated = bool(rng.random() < 0.6)
    activation = pick(*(name for name, rule in ACTIVATIONS.items() if gated or not rule.gate_only))
    train = bool(rng.random() < 0.25)
    schedule = pick("fused", "fused", "fused", "bulk")
    router = Router(
        score=pick(*(name for name, rule in SCORE_RULES.items() if not rule.jumps)),
        renormalize=bool(rng.random() < 0.5),
        scale=pick(1.0, 2.5),
        capacity_factor=pick(None, None, None, 1.25),
    )
    cfg = MoEConfig(
        hidden=int(rng.integers(1, largest + 1)),
        ffn=int(rng.integers(1, largest + 1)),
        experts=experts,
        top_k=top_k,
        activation=activation,
        gated=gated,
        bias=bool(rng.random() < 0.3),
        dtype=pick(*(each.name for each in ON_CPUS.values() if each.trained or not train)),
        max_tokens=int(rng.integers(1, 200)),
        router=router,
        shared_ffn=pick(0, 0, int(rng.integers(1, largest + 1))),
        levels=asked.levels,
    )
    placement: list[Any] | None = None
    if rng.random() < 0.6:
        placement = [int(rank) for rank in rng.integers(0, world, experts)]
        if not train and rng.random() < 0.4:
            placement = [sorted({rank, int(rng.integers(0, world))}) for rank in placement]
    divisors = [n for n in range(1, world) if world % n == 0]
    options: dict[str, Any] = {
        "layers": pick(1, 1, 2, 3),
        "schedule": schedule,
        "threads": pick(1, 1, 2, 3),
        "placement": placement,
        "ranks_per_node": pick(None, *divisors),
        "moves": pick("auto", "tokens") if train or schedule == "bulk" else pick("auto", "tokens", "auto", "experts"),
        "train": train,
    }
    if schedule == "bulk":
        options["moves"] = "auto"
    options["ranks_per_node"] = asked.ranks_per_node or options["ranks_per_node"]
    calls = int(rng.integers(1, 13))
    if asked.levels == 2 and schedule == "fused" and not train and rng.random() < 0.4:
        cfg = replace(cfg, combine="sums")
    return Drawn(number, cfg, options, calls)


def soak(world: World, asked: Asked, first: int, go_on: Callable[[Counts], bool]) -> Counts:
    """Run objects, from number `first` on, while rank 0's `go_on(counts)` is true. Collective.

    Raises SoakError for a wrong result, and the errors that calls raise, all with a note that names the object.
    """
    counts, begun, sampled = Counts(), time.monotonic(), 0.0
    while world.bcast(go_on(counts) if world.lead else None):
        drawn = draw(asked, first + counts.objects, world.size)
        try:
            _one(world, asked.seed, drawn, counts)
        except (AristosError, SoakError) as why:
            why.add_note(f"{asked.command(drawn.number)}: {drawn}")
            raise
        counts.objects += 1
        now = time.monotonic() - begun
        if now - sampled >= SAMPLE_EVERY or len(counts.samples) < 8:
            sampled = now
            counts.samples.append(health.sample(now))
    return counts


def _one(world: World, seed: int, drawn: Drawn, counts: Counts) -> None:
    """Make an object, call it, and close it."""
    cfg, common = drawn.cfg, np.random.default_rng([seed, drawn.number, 1])
    own = np.random.default_rng([seed, drawn.number, 2, world.rank])
    loaded: list[Arrays] = []
    with MoE(cfg, world.comm, backend="cpu", **drawn.options) as moe:
        for layer in range(drawn.options["layers"]):
            loaded.append(_load(moe, layer, cfg, common))
        for _ in range(drawn.calls):
            layer = int(common.integers(len(loaded)))
            if common.random() < 0.15:
                loaded[layer] = _load(moe, layer, cfg, common)
                counts.loads += 1
            outside, backward = common.random() < 0.5, drawn.options["train"] and common.random() < 0.7
            _call(moe, layer, loaded[layer], own, outside, backward, counts)


def _load(moe: MoE, layer: int, cfg: MoEConfig, rng: np.random.Generator) -> Arrays:
    """Load random weights, the same on all ranks, and return them."""
    made: dict[str, Any] = dict(reference.weights(cfg, seed=int(rng.integers(2**62))))
    moe.load(layer, **made)
    return made


def _rounded(cfg: MoEConfig, weights: Arrays) -> Arrays:
    """Weights that forward and backward calls use: projections rounded to the layer's type, all others as loaded."""
    kind = ON_CPUS[cfg.dtype].array
    return {
        name: array.astype(kind).astype(np.float32) if name.split("_")[-1] in PROJECTIONS else array
        for name, array in weights.items()
    }


def _call(
    moe: MoE, layer: int, weights: Arrays, rng: np.random.Generator, outside: bool, backward: bool, counts: Counts
) -> None:
    """Make a call, and with `backward` its backward call, and check both.

    outside: whether ids and weights are given.
    """
    cfg = moe.cfg
    tokens = int(rng.choice([0, 1, cfg.max_tokens, int(rng.integers(cfg.max_tokens + 1))]))
    x = rng.standard_normal((tokens, cfg.hidden), np.float32).astype(ON_CPUS[cfg.dtype].array)
    given: dict[str, Any] = {}
    if outside:
        chance = 1.0 / np.arange(1, cfg.experts + 1) ** rng.choice([0.0, 1.2, 4.0])
        scores = np.log(chance) + rng.gumbel(size=(tokens, cfg.experts))
        ids = np.argsort(-scores, axis=1)[:, : cfg.top_k]
        ids[rng.random(ids.shape) < 0.1] = -1
        given = {"ids": ids, "weights": rng.random(ids.shape, np.float32)}
    if backward:
        save = SAVES[(counts.calls + moe.rank) % len(SAVES)]  # ranks keep different amounts
        y, tape = moe.forward(x, layer=layer, save=save, **given)
        routing = tape.routing
    else:
        y, stats, routing = moe(x, layer=layer, return_stats=True, return_routing=True, **given)
        counts.long_waits += sum(seconds > LONG_WAIT for seconds in stats.wait_seconds_by_peer)
    counts.calls += 1
    counts.rows += int((routing.ids >= 0).sum())
    shape = replace(cfg, router=Router())  # the routing is given from here on
    rows, chosen = x.astype(np.float32), {"ids": routing.ids, "weights": routing.weights}
    arrays = _rounded(cfg, weights)
    experts = {name: array for name, array in arrays.items() if name != "router"}
    usual = largest_terms(shape, experts, rows, routing.ids, routing.weights)
    _check("y", cfg, usual, y, reference.moe(shape, rows, **experts, **chosen), counts)
    if backward:
        dy = rng.standard_normal(x.shape, np.float32).astype(ON_CPUS[cfg.dtype].array)
        dx = moe.backward(dy, tape)
        counts.backward += 1
        if outside or np.array_equal(reference.route(cfg, rows, weights["router"])[0], routing.ids):  # no near tie
            truth = reference.backward(cfg, rows, dy.astype(np.float32), **arrays, **given)["x"]
            clear = ~near_kink(cfg, arrays, rows, routing.ids)
            _check("dx", cfg, usual, (dx[0] if outside else dx)[clear], truth[clear], counts)


def largest_terms(cfg: MoEConfig, experts: Arrays, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> float:
    """How large a token's sum would be if its terms did not cancel: the largest over all tokens, at least 1.

    An expert's output counts as a sum of terms of random signs, one term for each hidden activation. experts: arrays as
    `load` takes them, without a router. x: [S, H] float32. ids, weights: [S, k].
    """
    sums = np.ones(len(x))
    for e in range(cfg.experts):
        tokens, choices = np.nonzero(ids == e)
        h = hidden(cfg, experts, x[tokens], e)
        outputs = np.sqrt((h**2) @ (experts["down"][e].astype(np.float64) ** 2))
        np.add.at(sums, tokens, np.abs(weights[tokens, choices]) * outputs.max(axis=1, initial=0.0))
    return float(sums.max(initial=1.0))


def hidden(cfg: MoEConfig, weights: Arrays, x: np.ndarray, e: int) -> np.ndarray:
    """[S, F] float64: an expert's hidden activations of x [S, H]."""
    up = product(weights, "up", x, e)
    if not cfg.gated:
        return np.asarray(reference.ACTIVATIONS[cfg.activation](up))
    return np.asarray(reference.gated(cfg.activation, cfg.limit, product(weights, "gate", x, e), up, cfg.limit_after))


def near_kink(cfg: MoEConfig, weights: Arrays, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[S] bool: whether a token has an input of relu so near to 0 that rounding decides about its derivative.

    weights: as `load` takes them. x: [S, H] float32. ids: [S, k].
    """
    near = np.zeros(len(x), bool)
    if cfg.activation != "relu":
        return near
    name = "gate" if cfg.gated else "up"
    for e in range(cfg.experts):
        tokens = np.flatnonzero((ids == e).any(axis=1))
        near[tokens] |= (np.abs(product(weights, name, x[tokens], e)) < KINK).any(axis=1)
    if cfg.shared_ffn:
        near |= (np.abs(product(weights, f"shared_{name}", x, ...)) < KINK).any(axis=1)
    return near


def product(weights: Arrays, name: str, x: np.ndarray, e: Any) -> np.ndarray:
    """[S, F] float64: rows times a projection of expert e, plus its bias if any. e is ... for the shared expert."""
    bias = weights.get(f"{name}_bias")
    return np.asarray(x.astype(np.float64) @ weights[name][e] + (0 if bias is None else bias[e]))


def _check(what: str, cfg: MoEConfig, usual: float, found: np.ndarray, truth: np.ndarray, counts: Counts) -> None:
    """Raise SoakError if a result differs from the truth by more than its type explains. usual: see `largest_terms`."""
    if not found.size:
        return
    size = max(float(np.abs(truth).max()), SMALL * usual)
    off = float(np.abs(found.astype(np.float64) - truth).max()) / size / ON_CPUS[cfg.dtype].error
    counts.worst = max(counts.worst, off)
    if not off <= 1:
        raise SoakError(
            f"the error of {what} must be at most the error of rounding to {cfg.dtype}, got {off:.3g} times that error"
        )
