"""The interval of a ratio of medians, by drawing the calls of both sides again (the bootstrap).

Times of calls are skewed and have outliers, so medians are compared and no normal distribution is assumed (T. Hoefler
and R. Belli, *Scientific Benchmarking of Parallel Computing Systems*, SC 2015, rules 5 to 7). A change is given as a
ratio with an interval, from draws at each level of repetition: of the runs, and of the calls of a run (T. Kalibera and
R. Jones, *Rigorous Benchmarking in Reasonable Time*, ISMM 2013). Calls that follow one another resemble each other, so
blocks of consecutive calls are drawn instead of single ones (H. R. Künsch, *The Jackknife and the Bootstrap for General
Stationary Observations*, Annals of Statistics 17, 1989); a block has n^(1/3) of n calls.

With one run on a side, what changed between the runs (other load, other pages of memory, another node) is not in the
interval: only several runs show that. Draws come from a fixed seed: equal files give equal intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 600
LOW, HIGH = 0.025, 0.975
FEWEST = 6  # calls: of fewer, even the range of all calls holds the median with less than 95 % probability

Seconds = NDArray[np.float64]


def median(side: Sequence[Seconds]) -> float:
    """The median over runs of the median over groups of the median over calls. side: for each run [group, call]."""
    return float(np.median([np.median(np.nanmedian(each, axis=1)) for each in side]))


def of_ratio(first: Sequence[Seconds], second: Sequence[Seconds]) -> tuple[float, float]:
    """The interval, from 2.5 % to 97.5 %, of the median of `second` over that of `first`."""
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore", invalid="ignore"):  # for times that nobody measures
        low, high = np.quantile(_drawn(second, rng) / _drawn(first, rng), [LOW, HIGH])
    return float(low), float(high)


def _drawn(side: Sequence[Seconds], rng: np.random.Generator) -> Seconds:
    """[DRAWS] medians of a side whose runs and calls are drawn again, with replacement."""
    each = np.array([_of_run(run, rng) for run in side])
    if len(side) == 1:
        return each[0]
    shape = (len(side), DRAWS)
    picked: Seconds = each[rng.integers(len(side), size=shape), rng.integers(DRAWS, size=shape)]
    found: Seconds = np.median(picked, axis=0)
    return found


def _of_run(run: Seconds, rng: np.random.Generator) -> Seconds:
    """[DRAWS] medians of one run whose calls are drawn again, each group by itself."""
    medians = [np.median(_blocks(row[np.isfinite(row)], rng), axis=1) for row in run]
    found: Seconds = np.median(medians, axis=0)
    return found


def _blocks(calls: Seconds, rng: np.random.Generator) -> Seconds:
    """[DRAWS, n] calls in blocks of consecutive ones; the last call is followed by the first."""
    n = len(calls)
    length = int(np.ceil(n ** (1 / 3)))
    starts = rng.integers(n, size=(DRAWS, -(-n // length), 1))
    picked = ((starts + np.arange(length)) % n).reshape(DRAWS, -1)[:, :n]
    return calls[picked]
