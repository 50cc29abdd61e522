"""Placing experts by their loads, with copies of hot experts where memory is left.

Copies of an expert have nearly equal shares of its load: each source rank uses one copy, which the rank's number
selects. Copies are added one by one, always to the expert with the largest load per copy. Copies are given to devices
from heavy to light, each to the device that would finish first with it. Then they are moved and swapped while that
shortens the time of the slowest device. Up to TRIES totals of copies are tried, from one copy of each expert to the
most that fit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Placement = list[list[int]]  # each expert's devices, ascending
PASSES = 400  # the most moves and swaps
TRIES = 12  # the most totals of copies that are tried


def longest(placement: Placement, loads: Floats, rate: Floats, sources: int | None = None) -> float:
    """The largest load / rate of a device. sources: see `held_loads`."""
    return float((held_loads(placement, loads, len(rate), sources) / rate).max())


def held_loads(placement: Placement, loads: Floats, devices: int, sources: int | None = None) -> Floats:
    """[devices] load of each device.

    sources: the number of source ranks, which have equally many tokens; each uses copy (its number mod copies). None:
    copies have equal shares."""
    found = np.zeros(devices)
    for expert, places in enumerate(placement):
        c = len(places)
        part = np.full(c, 1 / c) if sources is None else -(-(sources - np.arange(c)) // c) / sources
        np.add.at(found, places, loads[expert] * part)  # a baseline may put two copies on one device
    return found


def replicate(
    loads: Floats, rate: Floats, memory: Counts, most: int | None = None, sources: int | None = None
) -> Placement:
    """Devices of each expert. loads: [experts]. rate, memory: [devices]; memory must hold all experts.

    most: the most copies of all experts together; by default as many as memory allows. sources: see `held_loads`.
    """
    experts, devices = len(loads), len(rate)
    space = np.minimum(memory, experts)
    slots = min(int(space.sum()), experts * devices)
    slots = slots if most is None else max(experts, min(slots, most))
    best: Placement | None = None
    value = np.inf
    for total in np.unique(np.linspace(experts, slots, TRIES).astype(int)):
        copies = copies_of(loads, int(total), devices)
        placement = _pack(loads, copies, rate, space)
        if placement is None:
            continue
        mine = longest(placement, loads, rate, sources)
        if mine < value * (1 - 1e-12):
            best, value = placement, mine
    assert best is not None, "one copy of each expert always has a place"
    return best


def copies_of(loads: Floats, total: int, most: int) -> Counts:
    """[experts] number of copies, `total` in all.

    Copies are added one by one, always to the expert with the largest load per copy. most: the most copies of one
    expert."""
    copies = np.ones(len(loads), np.int64)
    share = loads.astype(np.float64).copy()
    for _ in range(total - len(loads)):
        expert = int(np.argmax(np.where(copies < most, share, -1.0)))
        copies[expert] += 1
        share[expert] = loads[expert] / copies[expert]
    return copies


def _pack(loads: Floats, copies: Counts, rate: Floats, space: Counts) -> Placement | None:
    """Give copies to devices, but never two of one expert to the same device.

    Returns None if a copy finds no device.
    """
    share = loads / copies
    held: list[set[int]] = [set() for _ in rate]
    load = np.zeros(len(rate))
    for expert in np.lexsort((np.arange(len(loads)), -share)):
        for _ in range(copies[expert]):
            free = [d for d in range(len(rate)) if len(held[d]) < space[d] and expert not in held[d]]
            if not free:
                return None
            d = min(free, key=lambda d: ((load[d] + share[expert]) / rate[d], d))
            held[d].add(int(expert))
            load[d] += share[expert]
    _improve(held, load, share, rate, space)
    placement: Placement = [[] for _ in loads]
    for d, mine in enumerate(held):
        for expert in mine:
            placement[expert].append(d)
    return placement


def _improve(held: list[set[int]], load: Floats, share: Floats, rate: Floats, space: Counts) -> None:
    """Make the slowest device faster, step by step, at most PASSES times.

    A step moves one of its copies to another device, or swaps it for a copy there. Both devices must then finish
    earlier than the slowest one did. The best such step is taken.
    """
    for _ in range(PASSES):
        time = load / rate
        slow = int(np.argmax(time))
        best = (time[slow] * (1 - 1e-12), -1, -1, -1)
        for d in range(len(rate)):
            if d == slow:
                continue
            give = [e for e in held[slow] if e not in held[d]]
            take = [-1] if len(held[d]) < space[d] else []
            take += [e for e in held[d] if e not in held[slow]]
            if not give or not take:
                continue
            out = share[give][:, None]
            back = np.array([0.0 if e < 0 else share[e] for e in take])[None, :]
            after = np.maximum((load[slow] - out + back) / rate[slow], (load[d] + out - back) / rate[d])
            at = int(np.argmin(after))
            if after.flat[at] < best[0]:
                best = (float(after.flat[at]), d, give[at // len(take)], take[at % len(take)])
        _, d, given, taken = best
        if d < 0:
            return
        held[slow].remove(given)
        held[d].add(given)
        load[slow] -= share[given]
        load[d] += share[given]
        if taken >= 0:
            held[d].remove(taken)
            held[slow].add(taken)
            load[slow] += share[taken]
            load[d] -= share[taken]
