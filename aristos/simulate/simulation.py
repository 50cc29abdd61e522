"""One simulation: ranks with jobs and states as the substrate fills them, and a stack for each worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from kernel_cache.compile import Locator, compiling, warm_up
from kernel_cache.compile import entry as c_function

from ..engine import job as jobs
from ..engine import schema, words
from ..engine.layout import StateLayout
from ..errors import AristosError, InputError
from ..host.nodes import Nodes
from ..layer.collective import shape_of, widths
from ..primitives.buffers import aligned, zeros
from ..row_types import ROW_TYPES
from ..substrate.cpu.runtime import BATCH
from ..transport.capacity import free_memory
from . import control as c
from . import copied, flows
from .contexts import Contexts
from .control import CONTROL
from .machine import Machine
from .rank import Decisions, Layer, Rank, bulk_words
from .regions import Regions

Schedule = Literal["fused", "bulk"]
FLOWS_EACH = 64  # space for this many flows for each rank; there is further space for each pair of ranks
AHEAD_MOST = 100  # ns
EVENTS_MOST = 1 << 16  # the most timeline events of a worker in a call


_RUNNING = threading.Lock()  # held while a simulation uses the words of control.py


class SimulationEnded(AristosError):
    """A simulation ended before its calls did."""


class Simulation:
    """A layer's calls on a machine. `run` may be called only once. A process runs one simulation at a time.

    calls: how many calls each rank makes; a call begins when all ranks have ended the call before. schedule: see
    `aristos.MoE`.
    """

    def __init__(
        self,
        layer: Layer,
        nodes: Nodes,
        machine: Machine,
        workers: int = 1,
        calls: int = 2,
        schedule: Schedule = "fused",
    ) -> None:
        if schedule == "bulk":
            layer = replace(layer, moves="tokens")
        self.layer, self.nodes, self.machine, self.workers, self.calls = layer, nodes, machine, workers, calls
        self.schedule = schedule
        world = len(nodes.node_of)
        self.world, self.actors = world, world * workers
        self.routes = machine.links.routes(nodes.count)
        foreign = max(len(layer.foreign(nodes, rank)) for rank in range(world))
        shape = shape_of(world, layer.placement, foreign=foreign, nodes=nodes, **widths(layer.cfg))
        self.regions = Regions(shape, nodes)
        self.tables = StateLayout(shape, workers, BATCH)
        self._check_memory()
        self.regions.allocate()
        decisions = Decisions.from_layer(layer, machine.kernel)
        self.ranks = [
            Rank(me, layer, self.regions, self.tables, workers, decisions, schedule == "fused") for me in range(world)
        ]
        self.bulk_words = bulk_words(self.ranks, nodes) if schedule == "bulk" else []
        self.times = np.zeros((2, world, calls), np.int64)  # ns: when each call began, and when it ended
        self.pairs = zeros((world * world, c.PAIR_WORDS))
        self.events = 0  # how many were handled
        self.decisions = np.zeros(world, np.int64)  # how many decisions each rank has made in all calls
        self.kept: dict[int, np.ndarray] = {}  # rank -> [workers, EVENTS_MOST, words] the events of its last call
        self._kept: list[Any] = []

    def keep_events(self, ranks: Iterable[int]) -> None:
        """Keep the events of these ranks' workers, for a timeline. Call this before `run`."""
        for rank in ranks:
            job = self.ranks[rank].job
            self.kept[rank] = kept = aligned((self.workers, EVENTS_MOST, words.EVENT_WORDS), np.int64)
            jobs.renew(job, schema.EVENTS)
            jobs.fill(job, schema.EVENTS, schema.CPU, events=kept.ctypes.data, events_max=EVENTS_MOST)

    def _check_memory(self) -> None:
        """Raise InputError if the ranks' states and regions do not fit into this process's memory."""
        wanted = self.world * (8 * self.tables.words + self.regions.rank_bytes)
        free = free_memory()
        if free is not None and wanted > free:
            raise InputError(
                f"a simulation of {self.world} rank{'s'[: self.world != 1]} needs {wanted / 2**30:.1f} GiB here,"
                f" and {free / 2**30:.1f} GiB are free: simulate fewer ranks or tokens"
            )

    # ------------------------------------------------------------ memory that compiled code shares

    def _set(self, word: int, value: float) -> None:
        CONTROL[word] = round(value)

    def _point(self, word: int, array: np.ndarray) -> np.ndarray:
        """Store the address of an array, and keep the array."""
        self._kept.append(array)
        CONTROL[word] = array.ctypes.data
        return array

    def _fill(self) -> None:
        world = self.world
        CONTROL[:] = 0
        for word, value in (
            (c.WORLD, world), (c.WORKERS, self.workers), (c.CALLS, self.calls), (c.RANK_BYTES, self.regions.rank_bytes),
            (c.REGION_BYTES, self.regions.region_bytes), (c.MEMORY, self.regions.base),
            (c.SMALL_BYTES, 512), (c.AHEAD, self._ahead()),
            (c.NODE_FIRST, self.nodes.levels == 2 and not self.nodes.single),
        ):  # fmt: skip
            self._set(word, value)
        most = 4 * self.actors + 12 * world * world + FLOWS_EACH * world + 1024
        self._point(c.HEAP, zeros((most, c.EVENT_WORDS)))
        self._set(c.EVENTS_MOST, most)
        self._point(c.PAIRS, self.pairs)
        self._fill_costs()
        self._fill_actors()
        self._fill_network()

    def _ahead(self) -> float:
        """ns that a rank may run ahead of others, because no word reaches them sooner; at most AHEAD_MOST.

        A rank sees a word too late by at most this time. With several workers it is 0: workers of a rank see each
        other's words at once.
        """
        if self.workers > 1:
            return 0
        local = len(set(self.nodes.node_of)) < self.world
        return min(AHEAD_MOST, self.machine.costs.local if local else np.inf, self.routes.least_latency)

    def _fill_costs(self) -> None:
        costs, kernel, number = self.machine.costs, self.machine.kernel, ROW_TYPES[self.layer.cfg.dtype].nbytes
        for word, value in (
            (c.LOAD_NS, costs.load), (c.ACQUIRE_NS, costs.acquire), (c.ATOMIC_NS, costs.atomic),
            (c.PAUSE_NS, costs.pause), (c.CLOCK_NS, costs.clock), (c.DECIDE_NS, costs.decide), (c.PEER_NS, costs.peer),
            (c.PUBLISH_NS, costs.publish), (c.PACK_NS, costs.pack_pair), (c.ROUTE_PS, 1e3 * costs.route_token),
            (c.COPY_NS, costs.copy_row), (c.COPY_PS, 1e3 * costs.copy_kib),
            (c.COMBINE_NS, costs.combine_token), (c.COMBINE_PS, 1e3 * costs.combine_kib * number / 1024),
            (c.PUT_NS, costs.put), (c.FLUSH_NS, costs.flush),
            (c.PROGRESS_NS, costs.progress), (c.LOCAL_NS, costs.local), (c.LOCAL_PS, 1e3 * costs.local_kib),
            (c.CALL_NS, costs.call), (c.COLLECTIVE_NS, costs.collective),
            (c.COLLECTIVE_PS, 1e3 * costs.collective_kib), (c.MOST_HELD, max(self.layer.placement.held)),
            (c.KERNEL_NS, kernel.call), (c.KERNEL_ROWS, BATCH),
        ):  # fmt: skip
            self._set(word, value)
        self._point(c.KERNEL, kernel.table(BATCH))

    def _fill_actors(self) -> None:
        self._actors = actors = self._point(c.ACTORS, zeros((self.actors, c.ACTOR_WORDS)))
        ranks = self._point(c.RANKS, zeros((self.world, c.RANK_WORDS)))
        for number in range(self.actors):
            me = number // self.workers
            own = self.ranks[me]
            actors[number, [c.RANK, c.STATE, c.JOB]] = me, own.state.ctypes.data, own.job.ctypes.data
            actors[number, [c.RESTED, c.MERGE_POLLS]] = 1, own.job[words.MERGE_POLLS]
            if self.bulk_words:
                actors[number, c.BULK] = self.bulk_words[me].ctypes.data
        self._set(c.JOB_WORDS, self.ranks[0].job.size)
        self._set(c.STATE_WORDS, self.ranks[0].state.size)
        for rank in range(self.world):
            ranks[rank, [c.BEGAN, c.ENDED]] = [self.times[i, rank].ctypes.data for i in range(2)]
            ranks[rank, c.SLOWNESS] = round(1024 / self.machine.speeds.get(rank, 1.0))
            readers = self.nodes.readers(rank)
            ranks[rank, [c.FIRST_READER, c.END_READER]] = readers.start, readers.stop

    def _fill_network(self) -> None:
        node = np.unique(self.nodes.node_of, return_inverse=True)[1]
        of_pair = node[:, None] * self.nodes.count + node[None, :]
        of_pair[node[:, None] == node[None, :]] = -1
        arrays, numbers = flows.words(self.routes, of_pair, FLOWS_EACH * self.world + 8 * self.world * self.world)
        for word, array in arrays.items():
            self._point(word, array)
        for word, value in numbers.items():
            self._set(word, value)
        self.link_bytes = arrays[c.LINK_BYTES]

    # ------------------------------------------------------------ the run

    def run(self, progress: Callable[[int], None] = lambda now: None) -> None:
        """Simulate all calls. progress: called with the virtual time in ns, about every 0.2 s.

        Raises SimulationEnded if no rank can go on.
        """
        with _RUNNING:
            self._fill()
            try:
                self._run(progress)
            finally:
                self.events = int(CONTROL[c.NUMBERED])
                self.decisions = self._actors[:, c.DECISIONS].reshape(self.world, -1).sum(axis=1)

    def _run(self, progress: Callable[[int], None]) -> None:
        from numba import int64, void

        module = copied.module("bulk" if self.schedule == "bulk" else "actor")
        begin = module.scheduler.begin
        warm_up([(begin, (int64,))])
        with compiling(name=copied.NAME):
            enter = c_function(module.enter, void(int64), Locator)
        contexts = Contexts(self.actors, enter.address)
        self._actors[:, c.CONTEXT] = contexts.addresses
        thread_record = np.array([contexts.main], np.int64)
        self._set(c.SWAP, contexts.swap)
        self._set(c.MAIN, contexts.main)
        self._start(module.scheduler.start)
        thread = threading.Thread(target=begin, args=(thread_record.ctypes.data,), daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                progress(int(CONTROL[c.NOW]))
        except BaseException:
            CONTROL[c.STOP] = c.INTERRUPTED
            thread.join()
            raise
        if CONTROL[c.STOP] != 0:
            raise SimulationEnded(self._why())

    def _start(self, start: Callable[[int, int], None]) -> None:
        """Let all actors begin at time 0."""
        for number in range(self.actors):
            start(number, 0)

    def _why(self) -> str:
        """Why the calls did not end."""
        cause, now = int(CONTROL[c.STOP]), f"at {CONTROL[c.NOW] * 1e-6:.3f} ms of virtual time"
        if cause == c.FULL:
            return f"the simulation has no space for more events or flows {now}: simulate fewer ranks or tokens"
        if cause == c.FAILED:
            return f"a rank's call failed {now}: this is a fault of the simulation, please report it"
        names, waiting = ("UNREAD", "OWED", "UNSENT", "BLOCKS_LEFT"), []
        for me, rank in enumerate(self.ranks):
            left = {name: int(rank.state[getattr(words, name)]) for name in names}
            if any(left.values()):
                waiting.append(f"rank {me} ({', '.join(f'{name} {n}' for name, n in left.items() if n)})")
        return f"no rank can go on {now}; work is left on {', '.join(waiting[:4]) or 'no rank'}"
