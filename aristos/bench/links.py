"""Measure the links between ranks, and each rank's rate and memory, for the file that the planner reads.

One-sided puts are timed in two ranges of sizes, and alpha + beta n is fitted to each range by relative least squares.
Pairs meet in the rounds of a tournament, in which each rank has one partner. They are measured twice: quietly, with one
pair of a node at a time, and then with all pairs of a round at once, which gives the contended figure. Every link that
is much slower than its class is measured a second time, and each size keeps its shorter time. A link that is still much
slower after that is reported as a fault. Links between GPUs are not measured; their figures come from the table.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kernel_cache.texts import whole

from ..topology import Link, Topology, cpusets, discover
from ..topology.discover import join
from ..topology.links import MIB, SLOW, Links, RankDevice, Rows, Span, slow
from ..topology.table import from_table, link_class, place
from ..topology.visible import visible
from ..transport.capacity import free_memory, machine
from . import fit
from .bounds import at_once
from .pairs import PROBE, Pairs, Side, schedule, slot_bytes
from .world import World

# Sizes of puts in bytes: SMALL for start-up, LARGE for bandwidth. Between them, store buffers and protocols bend the
# curve.
SMALL = (64, 256, 1024)
LARGE = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
SIZES = SMALL + LARGE
SAMPLES = 100  # the most samples of each size
QUANTILE = 0.25  # the quantile of the samples that counts, because other load on the machine only adds time
RATE_SECONDS = 0.4
ROWS, HIDDEN, FFN = 192, 512, 1024  # sizes of the expert whose rate is measured
Times = NDArray[np.float64]  # [origin, target, size] seconds, NaN if not measured
Rounds = list[list[tuple[int, int]]]
Slower = list[tuple[int, int, float]]  # (origin, target, time over the median of the link's class)


@dataclass(frozen=True)
class RankPlace:
    """The place of a rank. node: index into the topology's nodes. label: the GPU's label, '' for a rank on cores."""

    node: int
    label: str
    cpus: frozenset[int]
    place: RankDevice

    @property
    def end(self) -> tuple[int, str, frozenset[int]]:
        return self.node, self.label, self.cpus


def survey(world: World) -> tuple[Topology, list[RankPlace]]:
    """(topology of all ranks' nodes, place of each rank). Collective."""
    mine = discover(network=world.lead)
    topology = join(world.allgather(mine))
    node = mine.nodes[mine.here or 0]
    order = os.environ.get("ARISTOS_DEVICE", "")
    seen = visible(os.environ, node.devices)[0]
    number = whole(order)
    device = seen[number].device if number is not None and number < len(seen) else None
    cpus = frozenset(os.sched_getaffinity(0))
    places = world.allgather((device.label if device else "", cpus, place(node, device, cpus)))
    return topology, [RankPlace(topology.ranks[r], *each) for r, each in enumerate(places)]


def quiet(rounds: Rounds, node_of: Sequence[int]) -> Rounds:
    """The same pairs in rounds with at most one pair for each node; a pair of two nodes counts for both."""
    found: Rounds = []
    for pairs in rounds:
        parts: list[tuple[set[int], list[tuple[int, int]]]] = []
        for a, b in pairs:
            nodes = {node_of[a], node_of[b]}
            part = next((part for part in parts if not part[0] & nodes), None)
            if part is None:
                part = (set(), [])
                parts.append(part)
            part[0].update(nodes)
            part[1].append((a, b))
        found += [part for _, part in parts]
    return found


def measure(world: World, topology: Topology, ranks: list[RankPlace], seconds: float) -> Links:
    """Measure links, rates and memory. The result is equal on every rank. seconds: about how long to spend on puts.

    Collective.
    """
    begun = time.monotonic()
    n = world.size
    classes = [[Link("self") if a is b else link_class(topology, a.end, b.end) for b in ranks] for a in ranks]
    rates = _rates(world, ranks)
    devices = _devices(world, ranks, rates)
    hosts = [topology.nodes[r.node].name for r in ranks]
    table = from_table(classes, devices, hosts)
    on_gpu = np.array([bool(each.label) for each in ranks])
    net = np.array([[link.kind == "NET" for link in row] for row in classes])
    ours = ~np.eye(n, dtype=bool) & (net | ~np.logical_and.outer(on_gpu, on_gpu))
    if not ours.any():
        return replace(table, seconds=time.monotonic() - begun)
    texts = [[str(link) for link in row] for row in classes]
    where = world.allgather(machine())
    crowded = _crowded(world, where)
    with Pairs(world, slot_bytes(world, SIZES[-1])) as pairs:
        sizes = [size for size in SIZES if size <= pairs.capacity]
        everything = [[p for p in row if ours[p]] for row in schedule(n, n)]
        # rounds go by machine: pairs of different virtual nodes on one machine disturb each other too
        hosts_of = [where.index(each) for each in where]
        alone = quiet(everything, hosts_of)
        times = _times(pairs, alone, sizes, 0.6 * seconds)
        suspects = world.bcast(_suspects(texts, _span(times, sizes, LARGE), crowded))
        if suspects:
            again = quiet(_only(everything, suspects), hosts_of)
            times = np.fmin(times, _times(pairs, again, sizes, 0.1 * seconds))
        large = [size for size in sizes if size in LARGE[:-1]]
        together = _times(pairs, everything, large, 0.3 * seconds)
    span = _span(times, sizes, LARGE)
    slow_twice = _still_slow(suspects, _suspects(texts, span, crowded))
    return Links(
        hosts=hosts,
        devices=devices,
        classes=texts,
        small=_mixed(_span(times, sizes, SMALL), table.small, ours),
        large=_mixed(span, table.large, ours),
        residual=_residual(times, sizes),
        origin=[["measured" if ours[a][b] or a == b else "table" for b in range(n)] for a in range(n)],
        contended=_span(together, large, LARGE),
        faults=[*_faults(texts, hosts, slow_twice), *(str(fault) for fault in topology.faults)],
        notes=_notes(hosts, crowded, table, ours),
        seconds=time.monotonic() - begun,
    )


def _times(pairs: Pairs, rounds: Rounds, sizes: list[int], seconds: float) -> Times:
    """The time of a put and a quiet for every pair in `rounds`. Collective."""
    world = pairs.world
    pairs.rounds = [row for row in rounds if row]
    mine = np.full((world.size, world.size, len(sizes)), np.nan)
    each = seconds / max(1, len(pairs.rounds) * len(sizes))
    for _, side in pairs.sides():
        if side is None:
            continue
        taken = _samples(side, sizes, each)
        if side.first:
            mine[side.rank, side.peer] = [np.quantile(values, QUANTILE) * 1e-9 for values in taken]
        if not side.verdict(partial(side.has_all, sizes[-1], 1)):
            raise RuntimeError(f"a put of rank {side.origin} did not arrive whole at rank {side.target}")
    return np.fmax.reduce(world.allgather(mine))


def _samples(side: Side, sizes: list[int], seconds: float) -> list[NDArray[np.int64]]:
    """Nanoseconds of puts of each size: PROBE samples, and more samples if they fit into `seconds` per size."""
    taken, fits = [], []
    for size in sizes:
        begun = time.perf_counter()
        taken.append(side.put_times(size, 1, PROBE))
        fits.append(int(seconds * PROBE / max(time.perf_counter() - begun, 1e-7)) - PROBE)
    for j, more in enumerate(side.agree(fits)):  # one message for all sizes, because it takes longer than most puts
        if more >= PROBE:
            taken[j] = np.concatenate([taken[j], side.put_times(sizes[j], 1, min(SAMPLES, more))])
    side.put_times(sizes[-1], 1, 1)  # the put whose bytes are checked
    return taken


def _fits(times: Times, sizes: list[int], wanted: Sequence[int]) -> dict[tuple[int, int], fit.Fit]:
    """The fit of each measured pair over the wanted sizes, (origin, target) -> fit."""
    at = [j for j, size in enumerate(sizes) if size in wanted]
    found = {}
    for a, b in np.argwhere(~np.isnan(times[:, :, at]).any(axis=2)):
        found[int(a), int(b)] = fit.alpha_beta([sizes[j] for j in at], times[a, b, at])
    return found


def _rows(n: int, found: dict[tuple[int, int], float]) -> Rows:
    """[origin][target] the values that were found, by pair; 0 on the diagonal, and None for all other pairs."""
    return [[0.0 if a == b else found.get((a, b)) for b in range(n)] for a in range(n)]


def _span(times: Times, sizes: list[int], wanted: Sequence[int]) -> Span:
    lines = {pair: each.segments[0] for pair, each in _fits(times, sizes, wanted).items()}
    return Span(
        _rows(len(times), {pair: line.alpha * 1e6 for pair, line in lines.items()}),
        _rows(len(times), {pair: line.beta * 1e6 * MIB for pair, line in lines.items()}),
    )


def _residual(times: Times, sizes: list[int]) -> Rows:
    """The relative residual of each pair over both ranges."""
    small, large = _fits(times, sizes, SMALL), _fits(times, sizes, LARGE)
    both = {pair: (small[pair].residual, large[pair].residual) for pair in small.keys() & large.keys()}
    return _rows(len(times), {pair: float(np.sqrt((a**2 + b**2) / 2)) for pair, (a, b) in both.items()})


def _mixed(measured: Span, table: Span, ours: NDArray[np.bool_]) -> Span:
    """Measured values for the pairs in `ours`, and values of the table for all others."""

    def rows(one: Rows, other: Rows) -> Rows:
        n = len(one)
        return [[one[a][b] if ours[a][b] or a == b else other[a][b] for b in range(n)] for a in range(n)]

    return Span(rows(measured.alpha_us, table.alpha_us), rows(measured.beta_us_per_mib, table.beta_us_per_mib))


def _crowded(world: World, where: Sequence[object]) -> set[int]:
    """The ranks of machines with more ranks than cores. They share cores, so their times say little about links."""
    found: set[int] = set()
    for each in dict.fromkeys(where):
        ranks = [r for r, at in enumerate(where) if at == each]
        if len(ranks) > len(frozenset().union(*(world.masks[r] for r in ranks))):
            found |= set(ranks)
    return found


def _suspects(classes: list[list[str]], span: Span, crowded: set[int]) -> Slower:
    """Links that are much slower than their class, without those of crowded ranks."""
    return [(a, b, times) for a, b, times in slow(classes, span) if not {a, b} & crowded]


def _only(rounds: Rounds, suspects: Slower) -> Rounds:
    """The same rounds without the pairs that are not suspects."""
    wanted = {(a, b) for a, b, _ in suspects}
    return [[pair for pair in row if pair in wanted] for row in rounds]


def _still_slow(suspects: Slower, after: Slower) -> Slower:
    """The links of `after` that were measured twice, because `suspects` has them too.

    `after` may also have other links, because shorter times shift a class's median.
    """
    twice = {each[:2] for each in suspects}
    return [each for each in after if each[:2] in twice]


def _faults(classes: list[list[str]], hosts: list[str], slower: Slower) -> list[str]:
    return [
        f"puts from rank {a} ({hosts[a]}) to rank {b} ({hosts[b]}) take {times:.1f} times as long as over other"
        f" links of class {classes[a][b]}, in two measurements (more than {SLOW:g} times is a fault): check that link,"
        " its adapters and cables, and whether other jobs compute on one of the two hosts"
        for a, b, times in slower
    ]


def _notes(hosts: list[str], crowded: set[int], table: Links, ours: NDArray[np.bool_]) -> list[str]:
    found = [] if ours[~np.eye(len(hosts), dtype=bool)].all() else list(table.notes)
    if crowded:
        names = list(dict.fromkeys(hosts[r] for r in sorted(crowded)))
        found.append(
            f"hosts with more ranks than cores: {', '.join(names[:8])}. Ranks share cores there, so slow links of these"
            " hosts are not reported"
        )
    return found


def _devices(world: World, ranks: list[RankPlace], rates: list[float | None]) -> list[RankDevice]:
    free = world.allgather((machine(), free_memory()))
    found = []
    for rank, rate, (here, bytes_) in zip(ranks, rates, free):
        each = rank.place
        if rate is not None:
            how = "measured: the expert kernel on all ranks at once, float32"
            each = replace(each, rate_gflops=rate, rate_from=how)
        if not rank.label and bytes_ is not None:
            sharers = sum(other == here for other, _ in free)
            how = f"free memory of the node, divided by {sharers}"
            each = replace(each, memory_bytes=bytes_ // sharers, memory_from=how)
        found.append(each)
    return found


def _rates(world: World, ranks: list[RankPlace]) -> list[float | None]:
    """GFLOP/s of the expert kernel on each rank's cores while all ranks run it; None for a GPU. Collective."""
    from ..kernels import Packed

    mine = ranks[world.rank]
    sharers = sum(r.node == mine.node and bool(r.cpus & mine.cpus) for r in ranks)
    threads = 0 if mine.label else max(1, len(mine.cpus) // sharers)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((HIDDEN, FFN), np.float32), rng.standard_normal((FFN, HIDDEN), np.float32)
    x = rng.standard_normal((ROWS, HIDDEN), np.float32)
    experts = [Packed(*weights) for _ in range(threads)]
    outs = [np.empty_like(x) for _ in range(threads)]
    for expert, out in zip(experts, outs):
        expert(x, out=out)  # compiles the kernel before the clock starts
    calls = [0] * threads

    def work(i: int) -> None:
        end = time.perf_counter() + RATE_SECONDS
        while time.perf_counter() < end:
            experts[i](x, out=outs[i])
            calls[i] += 1

    world.barrier()
    started = time.perf_counter()
    if threads:
        at_once(threads, work)
    took = time.perf_counter() - started
    rate = sum(calls) * 4.0 * ROWS * HIDDEN * FFN / took / 1e9 if threads else None
    return world.allgather(rate)


def compile_expert() -> None:
    """Compile or load the kernel that `_rates` runs."""
    from ..kernels import Packed

    one = np.zeros((1, 1), np.float32)
    Packed(one, one)(one)


def seats(topology: Topology, ranks: list[RankPlace]) -> list[str]:
    """The place of each rank as text. As part of the cache's key it distinguishes sets of ranks on the same hosts."""
    return [f"{topology.nodes[r.node].name} {r.label} {cpusets.show(r.cpus)}" for r in ranks]
