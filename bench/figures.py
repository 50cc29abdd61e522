"""The goals of Aristos, compared with the figures that one run reached.

A ratio is formed within each round, from turns that ran within seconds of each other. Then the median over all rounds
is taken; the least and the largest ratio are shown with it. A goal is reached if the median reaches it. A figure that
was not measured reaches no goal. Nothing is rounded before it is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jobs import Product, Shape, Step
from numpy.typing import ArrayLike
from peers import BOUNDS
from rounds import ShapeResults

FUSED_OVER_BULK = {"A": 1.0, "B": 1.2, "C": 1.2, "D": 1.0, "E": 1.0}  # float32
OVER_PEERS = {"A": 1.1, "B": 1.6, "C": 2.0, "D": 1.8, "E": 1.25}  # over the best float32 peer; 1 for other shapes
FIGURES_BY_ISA: dict[str, dict[str, dict[str, float]]] = {  # figures that layers in bfloat16 have to reach
    "amx": {
        "over peers": {"A": 1.5, "B": 2.5, "C": 2.2, "D": 1.7, "E": 2.0},
        "over float32": {"A": 5.5, "B": 2.0, "C": 2.0, "D": 1.9, "E": 5.0},
        "over bulk": {"A": 1.15, "B": 1.4, "E": 1.15},
        "bulk over peers": {"A": 1.0, "B": 1.0, "E": 1.0},
    },
    "avx512bf16": {
        "over peers": {"A": 1.1, "B": 2.2, "C": 2.2, "D": 1.6, "E": 1.6},
        "over float32": {"A": 1.7, "D": 1.8},
    },
}
HIGH_OVER_FLOAT32 = {"A": 1.8, "E": 1.8}  # precision="high" on AMX
STEPS = {"float32": ("step", 1.2), "bfloat16": ("bf16-step", 1.05)}  # dtype -> (our entry, goal over the best peer)
ONE_RANK = {1: 1.3, 16: 1.4, 128: 1.4, 1024: 1.4}  # tokens -> bfloat16's goal over the better of kt-kernel and torch
OF_MODULES = {  # ranks -> tokens -> the goal over the best of transformers' own ways
    1: {1: 1.8, 16: 1.8, 256: 1.4, 2048: 1.2},
    2: {1: 1.5, 16: 1.5, 256: 1.5, 2048: 1.3},
}
ADDED_US = 40.0  # the most that an experts module may add to a call of one token, on one rank
OVER_CODES, FEW_TOKENS, OVER_ANY = 1.2, 16, 1.0  # goals over peers with 16-bit rows; up to FEW_TOKENS, over all
FEW_ROWS, OVER_FEW, OVER_MANY = 64, 1.2, 1.0  # goals of bfloat16 products over oneDNN's: up to FEW_ROWS, and beyond
PRODUCT_SHARE = {"avx512": 0.86, "avx512 on znver4": 0.92}  # least share of the FMA peak, by ISA and CPU
SHARE_OF = (1024, 4096), (64, 512)  # the weight and the numbers of rows for which a product has a share to reach
SIGNAL_US = {8: 0.4, 4096: 1.5}
OUTSIDE_US = 60.0


class Spread(NamedTuple):
    """Median, least and largest over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: ArrayLike) -> Spread:
        v = np.asarray(values, dtype=np.float64)
        return cls(float(np.median(v)), float(v.min()), float(v.max()))


class Family(NamedTuple):
    """What figures depend on: the instruction set of the kernels, and the CPU as LLVM names it."""

    isa: str
    cpu: str

    def __str__(self) -> str:
        return f"{self.isa}, {self.cpu}"


@dataclass(frozen=True)
class Figure:
    """One figure and its goal.

    at_least: whether more is better. reached: what was measured, or None. why: the reason if nothing was measured.
    """

    what: str
    goal: float
    unit: str
    at_least: bool
    reached: Spread | None
    why: str = ""

    @property
    def met(self) -> bool:
        if self.reached is None:
            return False
        return self.reached.median >= self.goal if self.at_least else self.reached.median < self.goal


def ratio(measured: ShapeResults, peer: str, ours: str = "fused") -> Spread | None:
    """The peer's time divided by ours, round by round. None if one of the two was not timed."""
    return over_best(measured, [peer], ours)


def over_best(measured: ShapeResults, peers: Iterable[str], ours: str) -> Spread | None:
    """The time of each round's fastest peer divided by ours. None if no peer was timed, or ours was not."""
    timed = [measured.turns(peer) for peer in peers if peer in measured.times]
    if not timed or ours not in measured.times:
        return None
    return Spread.from_values(np.min(timed, axis=0) / measured.turns(ours))


def gflops(measured: ShapeResults, peer: str) -> Spread | None:
    """The mean of the ranks' operations, divided by the slowest rank's time."""
    if peer not in measured.times:
        return None
    return Spread.from_values(float(np.mean(measured.mean)) / measured.turns(peer) / 1e9)


def peak_share(measured: ShapeResults, peer: str = "fused") -> Spread | None:
    """The time that the busiest rank's GEMMs take at the FMA peak, divided by the time of the call.

    The busiest rank counts, because no overlap can make the call shorter. The peak is that of the same round, averaged
    over the ranks, which measured it at the same time. Returns None if the peak or the call was not measured.
    """
    if measured.peak is None or peer not in measured.times:
        return None
    calls = measured.busiest / measured.times[peer].max(axis=2)  # [rounds, iters] operations a second
    return Spread.from_values(np.median(calls, axis=1) / 1e9 / measured.peak.mean(axis=1))


def figures(
    shapes: list[ShapeResults], family: Family, signal_us: dict[int, list[float]] | None = None, why: str = ""
) -> list[Figure]:
    """All figures that have goals, for the jobs that ran and for signals.

    signal_us: payload bytes -> microseconds there and back; None if the part measures no signals. why: the reason if
    signal_us is empty.
    """
    found = _errors(shapes)
    for m in shapes:
        if isinstance(m.shape, Product):
            found += _product(m, family)
        elif isinstance(m.shape, Step):
            found += _step(m)
        elif m.shape.weights:
            found += _decode(m)
        elif {"hf", "hf-bf16"} & set(m.entries):
            found += _modules(m)
        elif m.world == 1:
            found += _one_rank(m)
        else:
            found += _layer(m, family)
    return found + _signals(signal_us, why)


def _times(what: str, goal: float, reached: Spread | None, m: ShapeResults, *peers: str) -> Figure:
    return Figure(f"{m.shape.name}: {what}", goal, "×", True, reached, "" if reached else _why(m, peers))


def _layer(m: ShapeResults, family: Family) -> list[Figure]:
    """The figures of a layer on several ranks."""
    name, found = m.shape.name, []
    if name in FUSED_OVER_BULK and "bulk" in m.entries:
        found.append(_times("fused over bulk", FUSED_OVER_BULK[name], ratio(m, "bulk"), m, "fused", "bulk"))
    others = m.timed("float32", ours=False)
    if others and "fused" in m.entries:
        reached = over_best(m, others, "fused")
        found.append(_times("fused over the best float32 peer", OVER_PEERS.get(name, 1.0), reached, m, "fused"))
    if family.isa == "amx" and name in HIGH_OVER_FLOAT32 and "high" in m.entries:
        what = 'precision="high" over float32, fused'
        found.append(_times(what, HIGH_OVER_FLOAT32[name], ratio(m, "fused", "high"), m, "fused", "high"))
    goals = FIGURES_BY_ISA.get(family.isa, {})
    others = m.timed("bfloat16", ours=False)
    reached = {
        "over peers": ("bfloat16, fused over the best bfloat16 peer", over_best(m, others, "bf16")),
        "bulk over peers": ("bfloat16, bulk over the best bfloat16 peer", over_best(m, others, "bf16-bulk")),
        "over bulk": ("bfloat16, fused over bulk", ratio(m, "bf16-bulk", "bf16")),
        "over float32": ("bfloat16 over float32, fused", ratio(m, "fused", "bf16")),
    }
    for key, (what, spread) in reached.items():
        if name in goals.get(key, {}) and "bf16" in m.entries:
            found.append(_times(what, goals[key][name], spread, m, "bf16", *others))
    return found + _outside(m)


def _step(m: ShapeResults) -> list[Figure]:
    """The figures of a training step: its speed over the best of torch's steps."""
    found = []
    for dtype, (ours, goal) in STEPS.items():
        others = m.timed(dtype, ours=False)
        if ours in m.entries and others:
            what = f"{dtype}, a step over the best of torch's"
            found.append(_times(what, goal, over_best(m, others, ours), m, ours, *others))
    return found


def _one_rank(m: ShapeResults) -> list[Figure]:
    """The figures of a layer in bfloat16 on one rank, whose peers are kt-kernel and torch."""
    tokens = getattr(m.shape, "tokens", 0)
    others = m.timed("bfloat16", ours=False)
    if tokens not in ONE_RANK or "bf16" not in m.entries:
        return []
    what = "bfloat16, over the better of kt-kernel and torch"
    return [_times(what, ONE_RANK[tokens], over_best(m, others, "bf16"), m, "bf16", "kt-kernel")]


def _modules(m: ShapeResults) -> list[Figure]:
    """The figures of experts modules: speed over the best of transformers' own ways, and the time added to a call."""
    found = []
    tokens = getattr(m.shape, "tokens", 0)
    goal = OF_MODULES.get(m.world, {}).get(tokens)
    for dtype, ours, alone in (("float32", "hf", "fused"), ("bfloat16", "hf-bf16", "bf16")):
        others = m.timed(dtype, ours=False)
        if goal is not None and ours in m.entries:
            what = f"{dtype}, over the best of transformers' own"
            found.append(_times(what, goal, over_best(m, others, ours), m, ours, *others))
        if (tokens, m.world) == (1, 1) and ours in m.times and alone in m.times:
            added = Spread.from_values(1e6 * (m.turns(ours) - m.turns(alone)))
            found.append(Figure(f"{m.shape.name}: {dtype}, a module's own time", ADDED_US, "µs", False, added))
    return found


def _decode(m: ShapeResults) -> list[Figure]:
    """The figures of a layer with weights of codes: speed over peers with 16-bit rows; for few tokens, over all."""
    assert isinstance(m.shape, Shape)
    ours = m.shape.weights
    if ours not in m.entries:
        return []
    others = [name for name, entry in m.entries.items() if entry.weights == ours and not entry.ours]
    wide = [name for name in others if not m.entries[name].int8_rows]
    found = [_times("over the best peer with 16-bit rows", OVER_CODES, over_best(m, wide, ours), m, ours, *wide)]
    if m.shape.tokens <= FEW_TOKENS:
        found.append(_times("over the best peer", OVER_ANY, over_best(m, others, ours), m, ours, *others))
    return found


def _product(m: ShapeResults, family: Family) -> list[Figure]:
    """The figures of a matrix product: its share of the FMA peak, and its speed in bfloat16 over oneDNN's."""
    shape, found = m.shape, []
    assert isinstance(shape, Product)
    weight, (least, most) = SHARE_OF
    vectors = "avx512" if family.isa in ("amx", "avx512", "avx512bf16") else family.isa
    vectors += " on znver4" if family.cpu == "znver4" else ""
    share = peak_share(m, "product")
    if (shape.depth, shape.columns) == weight and least <= shape.rows <= most and vectors in PRODUCT_SHARE and share:
        reached = Spread(*(100 * v for v in share))
        what = f"{shape.name}: float32, share of the FMA peak"
        found.append(Figure(what, 100 * PRODUCT_SHARE[vectors], "%", True, reached))
    if family.isa == "amx" and "product-bf16" in m.entries:
        goal = OVER_FEW if shape.rows <= FEW_ROWS else OVER_MANY
        reached = ratio(m, "torch-product-bf16-packed", "product-bf16")
        found.append(_times("bfloat16, over oneDNN packed", goal, reached, m, "torch-product-bf16-packed"))
    return found


def _signals(signal_us: dict[int, list[float]] | None, why: str) -> list[Figure]:
    found = []
    for size, goal in SIGNAL_US.items() if signal_us is not None else ():
        what = "8 bytes + signal, there and back" if size == 8 else f"{size >> 10} KB row + signal, there and back"
        values = (signal_us or {}).get(size)
        found.append(Figure(what, goal, "µs", False, Spread.from_values(values) if values else None, why))
    return found


def _outside(m: ShapeResults) -> list[Figure]:
    """Two figures about the time outside kernels. For the first one, only the experts' kernels count as kernels."""
    found = []
    for i, kernels in enumerate(("expert kernels", "kernels (routing, row copies, experts, combine)")):
        if m.outside is not None and not isinstance(m.shape, Product):
            what = f"{m.shape.name}: a call of {m.shape.tokens} tokens, outside {kernels} and waits"
            found.append(Figure(what, OUTSIDE_US, "µs", False, Spread.from_values(1e6 * m.outside[i])))
    return found


def _errors(shapes: list[ShapeResults]) -> list[Figure]:
    """The figures of Aristos's largest relative error, for each dtype and bound. precision="high" has its own bound."""
    worst: dict[tuple[str, float], float] = {}
    for m in shapes:
        for peer, error in m.errors.items():
            entry = m.entries[peer]
            if entry.ours:
                worst[entry.dtype, entry.bound] = float(np.max([error, worst.get((entry.dtype, entry.bound), 0.0)]))
    found = []
    for (dtype, bound), error in worst.items():
        what = f"Aristos in {dtype}{'' if bound == BOUNDS[dtype] else ', high precision'}, largest relative error"
        found.append(Figure(what, bound, "", False, Spread(error, error, error)))
    return found


def _why(m: ShapeResults, peers: Iterable[str]) -> str:
    """The reason why a comparison with these peers has no number."""
    for name in peers:
        if name in m.wrong():
            return f"{name} gave a wrong output"
        if name in m.absent:
            return m.absent[name]
    return "not measured in this run"
