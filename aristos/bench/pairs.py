"""Ranks two by two on windows: who is measured with whom and by which transport, where their words and slots lie.

Ranks of one node store into each other's window (shm); MPI puts go to the other nodes (rma). A round has as many
pairs at once as there are cores for both ends; ranks not in a pair sleep. Counters of a pair only grow, so nothing is
reset between measurements. It refuses to measure: suites call the compiled loops of `oneside.py`.
"""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WaitTimeout
from ..primitives import wire
from ..results import Table
from .world import World

LINE = 64
FLAG, ACK, PING, PONG, TAIL, CREDIT, WORDS = range(7)  # words a peer writes, each on its own line
TIMEOUT = 60  # seconds a compiled wait may take
PROBE = 3  # samples that tell how many more there is time for
Bytes = NDArray[np.uint8]


def bytes_text(n: float) -> str:
    """8 B, 4 KiB, 1 MiB."""
    power = min(3, int(np.log2(max(n, 1))) // 10)
    return f"{n / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def read_bytes(address: int, nbytes: int) -> Bytes:
    """A copy of `nbytes` of this process's memory."""
    return np.frombuffer(ctypes.string_at(address, nbytes), np.uint8)


def slot_bytes(world: World, most: int) -> int:
    """Bytes of slots a rank can expose: `most`, or what a quarter of the free shared memory allows for all ranks."""
    from ..transport.capacity import free_shared_memory

    have = free_shared_memory()
    room = most
    while have is not None and room > 1024 and room * world.size > have // 4:
        room //= 2
    return min(world.allgather(room))


def schedule(ranks: int, lanes: int) -> list[list[tuple[int, int]]]:
    """Every ordered pair once, in rounds of at most `lanes` pairs that share no rank (a round-robin tournament)."""
    seats = list(range(ranks + ranks % 2))
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [p for p in zip(seats[:half], reversed(seats[half:])) if max(p) < ranks]
        for ordered in (pairs, [(b, a) for a, b in pairs]):
            rounds += [ordered[i : i + lanes] for i in range(0, len(ordered), lanes)]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


@dataclass(frozen=True)
class Side:
    """This rank's side of a pair. first: it is the origin, the other the target."""

    pairs: Pairs
    rank: int
    peer: int
    first: bool

    @property
    def origin(self) -> int:
        return self.rank if self.first else self.peer

    @property
    def target(self) -> int:
        return self.peer if self.first else self.rank

    @property
    def far(self) -> bool:
        """Whether the two are on different nodes."""
        return self.peer not in self.pairs.base

    @property
    def coded(self) -> int:
        """Address of a buffer to put a word from."""
        return self.pairs.coded.ctypes.data

    def word(self, owner: int, kind: int) -> int:
        """Address of a word in the window of `owner`, one of the two, that the other one writes; for a far peer's
        window, the byte that MPI puts to."""
        writer = self.peer if owner == self.rank else self.rank
        return self._window(owner) + (writer * WORDS + kind) * LINE

    def slots(self, owner: int) -> int:
        """Where `owner`'s slots begin, as for `word`. A rank is in one pair at a time: all its peers use the same."""
        return self._window(owner) + self.pairs.head

    def _window(self, owner: int) -> int:
        far = self.pairs.far
        if not self.far or far is None:
            return self.pairs.base[owner]
        return far.base if owner == self.rank else far.shift[owner]

    def landed(self, nbytes: int, at: int = 0) -> Bytes:
        """What lies in this rank's own slots."""
        start = self.slots(self.rank) + at
        return read_bytes(start, nbytes)

    def payload(self, nbytes: int) -> Bytes:
        """The bytes that the origin of this pair sends at this size; both sides can make them."""
        rng = np.random.default_rng([self.origin, self.target, nbytes])
        return rng.integers(0, 256, max(8, nbytes), np.uint8)

    def advance(self, kind: int, steps: int) -> int:
        """The value of the ordered pair's counter before `steps` more, the same on both sides. The words it is for
        must be this direction's alone: one kind for what the origin writes, another for what the target does."""
        key = (self.origin, self.target, kind)
        base = self.pairs.counters[key]
        self.pairs.counters[key] += steps
        return base

    def agree(self, value: Any) -> Any:
        """The origin's value, on both sides."""
        if self.first:
            self.pairs.world.comm.send(value, dest=self.peer)
            return value
        return self.pairs.world.comm.recv(source=self.peer)

    def verdict(self, check: Callable[[], bool]) -> bool:
        """What the target's check says, on both sides; the origin writes nothing before it is known."""
        comm = self.pairs.world.comm
        if self.first:
            return comm.recv(source=self.peer)
        fine = bool(check())
        comm.send(fine, dest=self.peer)
        return fine

    def bounded(self, done: int) -> None:
        """Raise where a compiled loop came back with 0."""
        if not done:
            raise WaitTimeout(f"rank {self.rank} waited {TIMEOUT} s for a signal of rank {self.peer}, and none came")

    def samples(self, run: Callable[[int], Any], seconds: float, most: int, asked: int | None) -> Any:
        """What `run(n)` gives, n samples taken by both sides: as many as fit `seconds`, at most `most`."""
        start = time.perf_counter()
        run(PROBE)
        fits = int(seconds * PROBE / max(time.perf_counter() - start, 1e-7))
        return run(self.agree(asked or max(PROBE, min(most, fits))))


class Pairs:
    """Windows for near and far peers: words for every peer, then `room` bytes of slots. Collective; a context manager.

    ranks_per_node: pretend such nodes, whatever the run does.
    base: rank -> address of its near window, for the ranks of this node. far: what ranks of other nodes put into.
    """

    def __init__(self, world: World, room: int, ranks_per_node: int | None = None) -> None:
        from ..primitives.buffers import aligned
        from ..transport.group import Group

        self.world, self.room = world, room
        self.head = WORDS * LINE * world.size
        self.group = Group(world.comm, ranks_per_node=ranks_per_node or world.ranks_per_node)
        nodes, me = self.group.nodes, world.rank
        self.group.check_capacity(self.head + room, 0 if nodes.single else self.head + room)
        self._near = self.group.local_window(self.head + room)
        self.base: dict[int, int] = dict(zip(sorted([me, *nodes.local(me)]), self._near.base))
        self.far = None if nodes.single else self.group.remote_window(self.head + room)
        self.coded = aligned((2,), np.int64)
        if self.far is not None:
            self.group.watch_calls(self.far.calling)
            while not wire.take(self.wire):  # the loops make progress, and are alone with it
                pass
        self.counters: dict[tuple[int, int, int], int] = defaultdict(int)
        self.rounds = schedule(world.size, max(1, world.cores(world.hosts[0]) // 2))

    @property
    def wire(self) -> int:
        """Address of the wire to far peers; 0 without any."""
        return self.far.wire if self.far is not None else 0

    def transports(self) -> dict[str, np.ndarray]:
        """The ordered pairs of each transport in use. -> name: [W, W] bool"""
        from ..transport import choice

        return choice.masks(self.group.nodes)

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:  # freeing is collective: after an error the job goes down instead
            if self.far is not None:
                self.group.watch_calls(None)
                self.far.close()
            self._near.close()
            self.group.free()

    def sides(self) -> Iterator[tuple[int, Side | None]]:
        """Round by round: its number, and this rank's side of a pair, or None. Collective; others sleep."""
        for number, pairs in enumerate(self.rounds):
            side = None
            for origin, target in pairs:
                if self.world.rank in (origin, target):
                    first = self.world.rank == origin
                    side = Side(self, self.world.rank, target if first else origin, first)
            yield number, side
            self.world.sleepy_barrier()


def add_transports(table: Table, transports: dict[str, np.ndarray]) -> None:
    """Say in a table with the dimensions origin and target by which transport each pair talks; empty: none."""
    names = np.full(next(iter(transports.values())).shape, "", dtype="<U3")
    for name, pairs in transports.items():
        names[pairs] = name
    table.add("transport", ("origin", "target"), names, "", "how the pair talks")


def deadline() -> int:
    """Nanoseconds on the clock of `memory.clock` by which a compiled wait gives up."""
    return time.monotonic_ns() + TIMEOUT * 10**9
