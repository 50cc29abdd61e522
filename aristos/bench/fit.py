"""The alpha-beta model of a link, t(n) = alpha + beta n in two segments, fitted by relative least squares.

The time of small messages is mostly start-up, that of large ones mostly bytes over bandwidth. Caches and protocols
change start-up and bandwidth at some size in between. The residuals are relative, because sizes span six decades.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 3  # the fewest sizes in a segment
SPAN = 100  # from a first size below LARGE, a segment must reach SPAN times that size; else its slope is noise
LARGE = 4096  # bytes; in larger messages, bytes take more time than start-up on any link
POOR = 0.3  # a fit with a larger relative residual gets a warning


@dataclass(frozen=True)
class Segment:
    """One line of a fit. alpha: seconds. beta: seconds per byte. first, last: fitted range, bytes."""

    alpha: float
    beta: float
    first: float
    last: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second; infinite if the time does not grow with size."""
        return 1 / self.beta if self.beta > 0 else float("inf")

    @property
    def resolved(self) -> bool:
        """Whether the slope is a bandwidth: the sizes span enough, and from first to last the time at least doubles."""
        grows = self.beta * (self.last - self.first) >= self.alpha + self.beta * self.first
        return self.beta > 0 and grows and (self.last >= SPAN * self.first or self.first >= LARGE)

    def __str__(self) -> str:
        slope = f"beta {self.beta * 1e9:.4f} ns/B ({self.bandwidth / 1e9:.2f} GB/s)"
        return f"alpha {self.alpha * 1e6:.3f} us, {slope if self.resolved else 'bandwidth not resolved'}"


@dataclass(frozen=True)
class Fit:
    """A fitted model. segments: one or two, by size. residual: root mean square of (fitted - measured) / measured."""

    segments: tuple[Segment, ...]
    residual: float

    @property
    def trust(self) -> str:
        """The residual as text, with a warning if it is large."""
        return f"relative residual {self.residual:.1%}" + (" (poor fit)" if self.residual > POOR else "")

    def __call__(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Seconds for sizes in bytes. Sizes between the segments belong to the second one."""
        n = np.asarray(sizes, dtype=np.float64)
        low, high = self.segments[0], self.segments[-1]
        return np.where(n <= low.last, low.alpha + low.beta * n, high.alpha + high.beta * n)


def _line(n: NDArray[np.float64], t: NDArray[np.float64]) -> tuple[float, float, float]:
    """(alpha, beta, sum of squared relative residuals); alpha, beta >= 0."""
    rows = np.stack([1 / t, n / t], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(rows, np.ones_like(t), rcond=None)
    if beta < 0:  # the line is flat except for noise
        alpha, beta = (1 / t).sum() / (1 / t**2).sum(), 0.0
    elif alpha < 0:
        alpha, beta = 0.0, (n / t).sum() / ((n / t) ** 2).sum()
    return float(alpha), float(beta), float((((alpha + beta * n) / t - 1) ** 2).sum())


def alpha_beta(sizes: ArrayLike, seconds: ArrayLike) -> Fit:
    """Fit two segments and the size that separates them, or one segment if there are too few sizes.

    sizes: [N] bytes, ascending; seconds: [N], positive.
    """
    n, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    best: tuple[float, list[slice]] = (np.inf, [])
    splits = [[slice(0, i), slice(i, n.size)] for i in range(POINTS, n.size - POINTS + 1)]
    for parts in splits or [[slice(0, n.size)]]:
        total = sum(_line(n[part], t[part])[2] for part in parts)
        if total < best[0]:
            best = (total, parts)
    segments = []
    for part in best[1]:
        alpha, beta, _ = _line(n[part], t[part])
        segments.append(Segment(alpha, beta, float(n[part][0]), float(n[part][-1])))
    return Fit(tuple(segments), float(np.sqrt(best[0] / n.size)))
