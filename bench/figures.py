"""The figures asked of Aristos, compared with those that one run reached.

A ratio is formed within each round, from turns that ran within seconds of each other. Then the median over rounds is
taken, and the least and the largest are shown with it. A figure is met if its median is; an unmeasured figure is not
met. Nothing is rounded before it is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rounds import BOUND, ShapeResults

FUSED_OVER_BULK = {"A": 1.0, "B": 1.2, "C": 1.2, "D": 1.0, "E": 1.0}
OVER_NUMPY = {"A": 1.1, "B": 1.8, "C": 2.0, "D": 2.2, "E": 1.35}
PEAK_SHARE = {"A": 0.92, "E": 0.92}
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


def gflops(measured: ShapeResults, peer: str) -> Spread | None:
    """Operations per rank (mean over ranks) over the slowest rank's time."""
    if peer not in measured.times:
        return None
    return Spread.of(float(np.mean(measured.mean)) / measured.turns(peer) / 1e9)


def peak_share(measured: ShapeResults, peer: str = "fused") -> Spread | None:
    """Time of the busiest rank's GEMMs at the micro-kernel's peak over the time of the call; None if not measured.

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


def figures(shapes: list[ShapeResults], signal_us: dict[int, list[float]], why: str) -> list[Figure]:
    """All asked figures of the shapes that ran, then those of signals. why: the reason if there are no signals."""
    by_name = {m.shape.name: m for m in shapes}
    found = [_error(m, peer) for m in shapes for peer in ("fused", "bulk") if peer in m.errors]
    for title, peer, asked_of in (
        ("fused over bulk", "bulk", FUSED_OVER_BULK),
        ("fused over Alltoallv + NumPy", "numpy", OVER_NUMPY),
    ):
        for name, asked in asked_of.items():
            if name in by_name:
                m = by_name[name]
                found.append(Figure(f"{name}: {title}", asked, "×", True, ratio(m, peer), _why(m, peer)))
    for name, asked in PEAK_SHARE.items():
        if name in by_name:
            share = peak_share(by_name[name])
            what = f"{name}: share of the micro-kernel's peak"
            percent = None if share is None else Spread(*(100 * v for v in share))
            found.append(Figure(what, 100 * asked, "%", True, percent, _why(by_name[name], "peak")))
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
    return Figure(f"{m.shape.name}: {peer}, relative error", BOUND, "", False, Spread(value, value, value))


def _why(m: ShapeResults, peer: str) -> str:
    """The reason why a comparison with this peer has no number."""
    for name in ("fused", peer):
        if name in m.wrong():
            return f"{name} gave a wrong output"
        if name in m.absent:
            return m.absent[name]
    return "not measured in this run"
