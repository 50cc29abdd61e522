"""Time collective calls, with a barrier before each call and a clock on every rank. The slowest rank's time counts.

Calls that are compared take turns, iteration by iteration, so that other load on the machine affects all of them alike.
Ranks are never averaged, and outliers are kept. Only disturbed calls (`disturbance.py`) are repeated, up to REPEATS
times, and only if they are few. A call that exceeds the world's limit ends the job. Another module checks outputs
(`workload.py`).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disturbance import ENOUGH, FEW, Guard, mark
from .world import World

Seconds = NDArray[np.float64]
Calls = dict[str, Callable[[], object]]  # by name
After = Callable[[str, int, float], None]  # (name of a call, iteration, seconds)

FEWEST = 4  # the fewest timed iterations, even if time is short
MOST = 2000
REPEATS = 3  # how often a disturbed call is repeated at most


@contextlib.contextmanager
def no_gc() -> Iterator[None]:
    """Turn Python's garbage collector off, because its pauses would be measured too."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of calls in turn number `turn`. Each turn starts one name later, so no call is always the first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


class Times(dict[str, Seconds]):
    """Seconds of every call on every rank, name -> [world, iterations].

    core: in the same form, the share of a core that each rank had in the call.
    """

    def __init__(self, names: Sequence[str], world: int, iterations: int) -> None:
        super().__init__({name: np.empty((world, iterations)) for name in names})
        self.core: dict[str, Seconds] = {name: np.ones((world, iterations)) for name in names}

    def disturbed(self) -> set[tuple[str, int]]:
        """(name, iteration) of the calls in which some rank lacked its core."""
        found = {name: np.flatnonzero(core.min(axis=0) < ENOUGH) for name, core in self.core.items()}
        return {(name, int(i)) for name, those in found.items() for i in those}

    def mark(self) -> dict[str, Any]:
        """The mark of a record that shows all calls: see `disturbance.mark`."""
        return mark(np.concatenate(list(self.core.values()), axis=1), *self.values())


def in_turns(world: World, calls: Calls, iterations: int, after: After | None = None, turn: int = 0) -> Times:
    """Seconds of every call, and the shares of cores. Collective.

    after(name, i, seconds): runs after each call, also after a repeated one, and is not timed. turn: number of the
    first iteration's turn, see `rotated`.
    """
    todo = [(name, i) for i in range(iterations) for name in rotated(list(calls), turn + i)]
    return in_order(world, calls, todo, after)


def in_order(world: World, calls: Calls, todo: Sequence[tuple[str, int]], after: After | None = None) -> Times:
    """The same as `in_turns`, but in the order of `todo`, which has (name, iteration) of each call. Collective."""
    times = Times(list(calls), world.size, len(todo) // len(calls))
    fewest = max(1, int(FEW * len(todo)))
    with no_gc():
        _once(world, calls, todo, times, after)
        for _ in range(REPEATS):
            again = times.disturbed()
            if not 0 < len(again) <= fewest:
                break
            _once(world, calls, [each for each in todo if each in again], times, after)
    return times


def _once(world: World, calls: Calls, todo: Sequence[tuple[str, int]], times: Times, after: After | None) -> None:
    """Time the calls (name, iteration) in this order. Collective."""
    guard, taken = Guard(), []
    for name, i in todo:
        call = calls[name]
        guard.arm()
        world.barrier()
        with world.bounded(name):
            guard.begin()
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            guard.end(elapsed)
        taken.append(elapsed)
        if world.watch is not None:
            world.watch.note(name, elapsed)
        if after is not None:
            after(name, i, elapsed)
    found = np.array(world.allgather((taken, guard.shares())))  # [world, seconds or share, call]
    for (name, i), each in zip(todo, np.moveaxis(found, 2, 0)):
        times[name][:, i], times.core[name][:, i] = each.T


def placed(values: list[Any], i: int) -> None:
    """Move the last value to place i. Call it after the call of iteration i has appended its value.

    If that call repeats an earlier one, its value replaces the earlier value.
    """
    if len(values) > i + 1:
        values[i] = values.pop()


def iterations(world: World, calls: Calls, seconds: float, *, warmup: int, asked: int | None) -> int:
    """Warm up, then return how many iterations of all calls fit into `seconds`. Equal on every rank. Collective.

    warmup: untimed iterations, at least one; without `asked` they end after a quarter of the time. asked: the user's
    --iters, which is returned if given.
    """
    start = time.perf_counter()
    one = spent = 0.0
    for done in range(max(1, warmup)):
        if done and spent > seconds / 4 and asked is None:
            break
        one = float(np.sum(list(in_turns(world, calls, 1).values()), axis=0).max())
        spent = world.largest(time.perf_counter() - start)
    return asked or int(min(MOST, max(FEWEST, (seconds - spent) / max(one, 1e-7))))


def gathered(world: World, times: Seconds) -> Seconds:
    """[..., iterations] of this rank -> [..., world, iterations] on every rank. Collective."""
    return np.stack(world.allgather(times), axis=-2)


def padded(arrays: Sequence[Any]) -> Seconds:
    """One array made of arrays that differ in the length of their last axis; shorter arrays are filled up with NaN.

    arrays: arrays of shape [..., n], equal except for n, or nested sequences of them. None stands for an array of NaN.
    At least one must be an array. [[a, b], [c, None]] -> [2, 2, ..., longest].
    """
    found = list(_leaves(arrays))
    shape = (*found[0].shape[:-1], max(each.shape[-1] for each in found))

    def filled(each: Any) -> Seconds:
        if each is not None and not isinstance(each, np.ndarray):
            return np.stack([filled(one) for one in each])
        whole = np.full(shape, np.nan)
        if each is not None:
            whole[..., : each.shape[-1]] = each
        return whole

    return filled(arrays)


def _leaves(arrays: Any) -> Iterator[NDArray[Any]]:
    if isinstance(arrays, np.ndarray):
        yield arrays
    elif arrays is not None:
        for each in arrays:
            yield from _leaves(each)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the slowest rank's seconds over iterations."""

    median: float
    p95: float
    p99: float
    fastest: float
    iterations: int

    def values_in(self, unit: str) -> dict[str, float]:
        """Median, 95 and 99 % quantile as values of a record. unit: "ms" or "us", with which the names end."""
        factor = {"ms": 1e3, "us": 1e6}[unit]
        return {f"{name}_{unit}": getattr(self, name) * factor for name in ("median", "p95", "p99")}

    @classmethod
    def from_times(cls, times: Seconds) -> Statistics:
        """The statistics of times: [world, iterations] seconds, or [iterations] seconds of one clock."""
        slowest = times.max(axis=0) if times.ndim == 2 else times
        median, p95, p99 = np.quantile(slowest, [0.5, 0.95, 0.99])
        return cls(float(median), float(p95), float(p99), float(slowest.min()), slowest.size)
