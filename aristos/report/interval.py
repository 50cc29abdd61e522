"""The interval of a ratio of medians, by drawing the calls of both sides again (the bootstrap).

Times of calls are skewed and have outliers, so medians are compared and no normal distribution is assumed (T. Hoefler
and R. Belli, *Scientific Benchmarking of Parallel Computing Systems*, SC 2015, rules 5 to 7). A change is given as a
ratio with an interval, from draws at each level of repetition: of the runs, and of the calls of a run (T. Kalibera and
R. Jones, *Rigorous Benchmarking in Reasonable Time*, ISMM 2013). Calls that follow one another resemble each other, so
blocks of consecutive calls are drawn instead of single ones (H. R. Künsch, *The Jackknife and the Bootstrap for General
Stationary Observations*, Annals of Statistics 17, 1989); a block has n^(1/3) of n calls.

Quantiles of the draws lie too close together if a side has few blocks, so they are taken farther out (T. Hesterberg,
*What Teachers Should Know About the Bootstrap*, The American Statistician 69, 2015: the expanded percentile interval).
Draws from a few runs show too little of how far runs may differ, because they repeat the same few runs. So if there are
several runs, the interval is at least as wide as Student's interval for the logarithms of their medians, with one
variance for both sides.

With one run on each side, the interval does not cover what changed between the runs: other load, other pages of memory,
another node. Only several runs show that. Draws come from a fixed seed, so equal files give equal intervals.
tests/report/test_interval.py counts how often equal sides are called different.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 600
TAIL = 0.025  # on each side of a 95 % interval
STUDENT = (12.706, 4.303, 3.182, 2.776)  # Student's quantiles of 1 to 4 degrees of freedom
MOST = 8192  # the most calls of a group from which blocks are drawn
FEWEST = 6  # calls; with fewer, even the range from fastest to slowest has the true median with less than 95 % chance

Seconds = NDArray[np.float64]


def median(side: Sequence[Seconds]) -> float:
    """The median over runs of the median over groups of the median over calls, in seconds.

    side: for each run [group, call] seconds; a group is a pair of ranks, see `samples.Row`.
    """
    return float(np.median([np.median(np.nanmedian(each, axis=1)) for each in side]))


def of_ratio(first: Sequence[Seconds], second: Sequence[Seconds]) -> tuple[float, float]:
    """The 95 % interval of the median of `second` over that of `first`."""
    rng = np.random.default_rng(0)
    tail = _tail(min(_count(first), _count(second)))
    with np.errstate(all="ignore"):  # for ratios that are not finite
        low, high = np.quantile(_drawn(second, rng) / _drawn(first, rng), [tail, 1 - tail])
        if len(first) + len(second) > 2:
            least, most = _between(first, second)
            low, high = min(low, least), max(high, most)
    return float(low), float(high)


def student(freedom: int) -> float:
    """Student's quantile at 1 - TAIL, by Abramowitz and Stegun's expansion 26.7.5. freedom: degrees, at least 1."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NormalDist().inv_cdf(1 - TAIL)
    one, two, three = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + one / (4 * freedom) + two / (96 * freedom**2) + three / (384 * freedom**3)


def _tail(count: int) -> float:
    """The quantile of the draws that is taken instead of TAIL, because a side has only `count` blocks."""
    if count < 2:
        return 0.0
    return NormalDist().cdf(-student(count - 1) * math.sqrt(count / (count - 1)))


def _count(side: Sequence[Seconds]) -> int:
    """The number of blocks of a side. Each run adds the blocks of the group that has the fewest."""
    calls = [int(np.isfinite(run).sum(axis=1).min()) for run in side]
    return sum(-(-n // _length(n)) for n in calls)


def _length(calls: int) -> int:
    """The number of calls in a block."""
    return math.ceil(calls ** (1 / 3))


def _between(first: Sequence[Seconds], second: Sequence[Seconds]) -> tuple[float, float]:
    """Student's interval of the ratio, from how much the runs of each side differ."""
    sides = [np.log([median([run]) for run in side]) for side in (first, second)]
    freedom = len(first) + len(second) - 2
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / freedom
    wide = student(freedom) * math.sqrt(variance * (1 / len(first) + 1 / len(second)))
    middle = float(sides[1].mean() - sides[0].mean())
    return float(np.exp(middle - wide)), float(np.exp(middle + wide))


def _drawn(side: Sequence[Seconds], rng: np.random.Generator) -> Seconds:
    """[DRAWS] medians of a side whose runs and calls are drawn again, with replacement."""
    each = np.array([_of_run(run, rng) for run in side])
    if len(side) == 1:
        return each[0]
    shape = (len(side), DRAWS)
    picked: Seconds = each[rng.integers(len(side), size=shape), rng.integers(DRAWS, size=shape)]
    return np.median(picked, axis=0)


def _of_run(run: Seconds, rng: np.random.Generator) -> Seconds:
    """[DRAWS] medians of one run whose calls are drawn again, in each group separately."""
    medians = [np.median(_blocks(_some(row[np.isfinite(row)]), rng), axis=1) for row in run]
    return np.median(medians, axis=0)


def _some(calls: Seconds) -> Seconds:
    """At most MOST of the calls, evenly spread. This bounds the memory, and makes the interval a little wider."""
    return calls[:: -(-len(calls) // MOST) or 1]


def _blocks(calls: Seconds, rng: np.random.Generator) -> Seconds:
    """[DRAWS, n] calls in blocks of consecutive ones; the last call is followed by the first."""
    n = len(calls)
    length = _length(n)
    starts = rng.integers(n, size=(DRAWS, -(-n // length), 1))
    picked = ((starts + np.arange(length)) % n).reshape(DRAWS, -1)[:, :n]
    return calls[picked]
