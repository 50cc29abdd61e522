"""The figures asked of Aristos, compared with those that one run reached.

A ratio is formed within each round, from turns that ran within seconds of each other. Then the median over rounds is
taken, and the least and the largest are shown with it. A figure is met if its median is; an unmeasured figure is not
met. Nothing is rounded before it is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from micro import PRODUCT, Rates
from numpy.typing import ArrayLike
from peers import ENTRIES
from rounds import ShapeResults

from aristos.primitives import isa

FUSED_OVER_BULK = {"A": 1.0, "B": 1.2, "C": 1.2, "D": 1.0, "E": 1.0}
OVER_PEERS = {"A": 1.1, "B": 1.6, "C": 2.0, "D": 1.8, "E": 1.25}  # over the best float32 peer
PEERS = ("numpy", "torch-loop", "torch-grouped")
BFLOAT16_OVER_FLOAT32 = {  # by ISA
    "amx": {"A": 5.5, "B": 2.0, "C": 2.0, "D": 1.9, "E": 5.0},
    "avx512bf16": {"A": 1.7, "D": 1.8},
}
PRODUCT_SHARE = {"avx512": 0.86, "avx512 on znver4": 0.92}  # of the FMA peak, by ISA and CPU
SIGNAL_US = {8: 0.4, 4096: 1.5}
OUTSIDE_US = 60.0


class Spread(NamedTuple):
    """Median, least and largest over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
        v = np.asarray(values, dtype=np.float64)
        return cls(float(np.median(v)), float(v.min()), float(v.max()))


@dataclass(frozen=True)
class Figure:
    """One asked figure. at_least: whether more is better. reached: None if not measured; why: the reason."""

    what: str
    asked: float
    unit: str
    at_least: bool
    reached: Spread | None
    why: str = ""

    @property
    def met(self) -> bool:
        if self.reached is None:
            return False
        return self.reached.median >= self.asked if self.at_least else self.reached.median < self.asked


def ratio(measured: ShapeResults, peer: str, ours: str = "fused") -> Spread | None:
    """Time of the peer over ours, round by round; None if either was not timed."""
    if peer not in measured.times or ours not in measured.times:
        return None
    return Spread.of(measured.turns(peer) / measured.turns(ours))


def family() -> str:
    """The instruction set of the kernels and the CPU, as LLVM names it: what figures depend on."""
    return f"{isa.chosen()}, {isa.target()[0]}"


def over_best(measured: ShapeResults) -> Spread | None:
    """Time of the fastest float32 peer of a round over ours; None if none was timed."""
    timed = [measured.turns(peer) for peer in PEERS if peer in measured.times]
    if not timed or "fused" not in measured.times:
        return None
    return Spread.of(np.min(timed, axis=0) / measured.turns("fused"))


def gflops(measured: ShapeResults, peer: str) -> Spread | None:
    """Operations per rank (mean over ranks) over the slowest rank's time."""
    if peer not in measured.times:
        return None
    return Spread.of(float(np.mean(measured.mean)) / measured.turns(peer) / 1e9)


def peak_share(measured: ShapeResults, peer: str = "fused") -> Spread | None:
    """Time of the busiest rank's GEMMs at the FMA peak over the time of the call; None if not measured.

    The busiest rank, because no overlap can make the call shorter; the peak of the same round, averaged over ranks,
    which all ran at once.
    """
    if measured.peak is None or peer not in measured.times:
        return None
    calls = measured.busiest / measured.times[peer].max(axis=2)  # [rounds, iters] operations a second
    return Spread.of(np.median(calls, axis=1) / 1e9 / measured.peak.mean(axis=1))


def signal_figures(signal_us: dict[int, list[float]], why: str) -> list[Figure]:
    """signal_us: payload bytes -> microseconds there and back, of each sample."""
    found = []
    for size, asked in SIGNAL_US.items():
        what = "8 bytes + signal, there and back" if size == 8 else f"{size >> 10} KB row + signal, there and back"
        values = signal_us.get(size)
        found.append(Figure(what, asked, "µs", False, Spread.of(values) if values else None, why))
    return found


def product_figures(products: Rates) -> list[Figure]:
    """A matrix product's share of the FMA peak, round by round, averaged over ranks."""
    vectors = "avx512" if isa.chosen() in ("amx", "avx512", "avx512bf16") else isa.chosen()
    vectors += " on znver4" if isa.target()[0] == "znver4" else ""
    found = []
    for rows, rates in products.items() if vectors in PRODUCT_SHARE else ():
        share = Spread.of(100 * (rates[0] / rates[1]).mean(axis=1))
        what = f"product of {rows} rows with {PRODUCT[0]} x {PRODUCT[1]}, share of the FMA peak"
        found.append(Figure(what, 100 * PRODUCT_SHARE[vectors], "%", True, share))
    return found


def figures(shapes: list[ShapeResults], signal_us: dict[int, list[float]], why: str, products: Rates) -> list[Figure]:
    """All asked figures of the shapes that ran, of matrix products and of signals.

    why: the reason if there are no signals; products: see `micro.products`.
    """
    by_name = {m.shape.name: m for m in shapes}
    found = [_error(m, peer) for m in shapes for peer in ("fused", "bulk", "bf16", "bf16-bulk") if peer in m.errors]
    for name, m in by_name.items():
        if name in FUSED_OVER_BULK:
            reached = ratio(m, "bulk")
            found.append(Figure(f"{name}: fused over bulk", FUSED_OVER_BULK[name], "×", True, reached, _why(m, "bulk")))
    for name, m in by_name.items():
        if name in OVER_PEERS:
            what = f"{name}: fused over the best of NumPy and torch"
            found.append(Figure(what, OVER_PEERS[name], "×", True, over_best(m), _why(m, "numpy")))
    over = BFLOAT16_OVER_FLOAT32.get(isa.chosen(), {})
    for name, m in by_name.items():
        if name in over and "bf16" in m.times:
            reached = ratio(m, "fused", "bf16")
            what = f"{name}: bfloat16 over float32, fused"
            found.append(Figure(what, over[name], "×", True, reached, _why(m, "bf16")))
    found += product_figures(products)
    if "D" in by_name:
        found += _outside(by_name["D"])
    return found + signal_figures(signal_us, why)


def _outside(m: ShapeResults) -> list[Figure]:
    """Two readings, the stricter one first: only the experts' GEMMs are kernels."""
    found = []
    for i, kernels in enumerate(("expert kernels", "kernels (routing, row copies, experts, combine)")):
        what = f"{m.shape.name}: a call of {m.shape.tokens} tokens, outside {kernels} and waits"
        reached = None if m.outside is None else Spread.of(1e6 * m.outside[i])
        found.append(Figure(what, OUTSIDE_US, "µs", False, reached, _why(m, "fused")))
    return found


def _error(m: ShapeResults, peer: str) -> Figure:
    value = m.errors[peer]
    what = f"{m.shape.name}: {peer}, relative error"
    return Figure(what, ENTRIES[peer].bound, "", False, Spread(value, value, value))


def _why(m: ShapeResults, peer: str) -> str:
    """The reason why a comparison with this peer has no number."""
    for name in ("fused", peer):
        if name in m.wrong():
            return f"{name} gave a wrong output"
        if name in m.absent:
            return m.absent[name]
    return "not measured in this run"
