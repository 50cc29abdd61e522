"""Measurements of ranks in pairs: the rounds, each pair's transport, and the layout of words and slots in the windows.

Ranks of one node store into each other's window (shm). They reach ranks of other nodes by MPI_Put (rma). In a round, as
many pairs measure at once as there are cores for both of their ranks; the other ranks sleep. Counters of a pair only
grow, so they need no reset between measurements. The loops that measure are in `oneside.py` and `oneside_rma.py`.
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

from kernel_cache.compile import warm_up

from ..errors import WaitTimeout
from ..primitives import wire
from ..primitives.buffers import LINE, aligned
from ..results import Table
from .disturbance import ENOUGH, FEW, Guard
from .world import World

FLAG, ACK, PING, PONG, TAIL, CREDIT, WORDS = range(7)  # words that a peer writes, each in a cache line of its own
TIMEOUT = 60  # seconds that a compiled wait, or the wait for the wire, may take
PROBE = 3  # number of first samples, from which the number of all samples is estimated
SIZES = ("B", "KiB", "MiB", "GiB")
Bytes = NDArray[np.uint8]


def bytes_text(n: float) -> str:
    """A size as text: 8 B, 4 KiB, 1 MiB."""
    power = min(len(SIZES) - 1, int(np.log2(max(n, 1))) // 10)
    return f"{n / 1024**power:.4g} {SIZES[power]}"


def bytes_of(text: str) -> float:
    """The size that a text of `bytes_text` stands for."""
    number, unit = text.split()
    return float(number) * 1024 ** SIZES.index(unit)


def read_bytes(address: int, nbytes: int) -> Bytes:
    """A copy of `nbytes` of this process's memory."""
    return np.frombuffer(ctypes.string_at(address, nbytes), np.uint8)


def slot_bytes(world: World, most: int) -> int:
    """Bytes of slots per rank, at most `most`. Collective.

    All ranks together use at most a quarter of the free shared memory."""
    from ..transport.capacity import free_shared_memory

    have = free_shared_memory()
    found = most
    while have is not None and found > 1024 and found * world.size > have // 4:
        found //= 2
    return min(world.allgather(found))


def schedule(ranks: int, lanes: int) -> list[list[tuple[int, int]]]:
    """The rounds of a tournament: every ordered pair once, in rounds of at most `lanes` pairs that share no rank."""
    seats = list(range(ranks + ranks % 2))
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [p for p in zip(seats[:half], reversed(seats[half:])) if max(p) < ranks]
        for ordered in (pairs, [(b, a) for a, b in pairs]):
            rounds += [ordered[i : i + lanes] for i in range(0, len(ordered), lanes)]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def take_wire(address: int, seconds: float) -> None:
    """Take the lock of a wire. Raises WaitTimeout if another thread keeps the lock for `seconds`."""
    end = time.monotonic() + seconds
    while not wire.try_lock(address):
        if time.monotonic() > end:
            raise WaitTimeout(f"waited {seconds:g} s for another thread to leave MPI: its put or flush does not return")
        time.sleep(1e-4)


def compile_loops(remote: bool, *names: str) -> None:
    """Compile or load loops of `oneside.py`. remote: whether also those with these names of `oneside_rma.py`."""
    from . import oneside, oneside_rma

    for loops in (oneside, oneside_rma)[: 1 + remote]:
        warm_up([oneside.entry(getattr(loops, name)) for name in names])


@dataclass(frozen=True)
class Side:
    """This rank's side of a pair. first: whether this rank is the origin."""

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
    def remote(self) -> bool:
        """Whether the two ranks are on different nodes."""
        return self.peer not in self.pairs.base

    @property
    def coded(self) -> int:
        """Address of the buffer from which words are put."""
        return self.pairs.coded.ctypes.data

    def run(self, loop: str, places: tuple[int, ...], *rest: Any) -> int:
        """Run a loop of `oneside.py`, or between nodes the loop with that name of `oneside_rma.py`."""
        from . import oneside, oneside_rma

        if not self.remote:
            return getattr(oneside, loop)(*places, *rest)
        return getattr(oneside_rma, loop)(self.pairs.wire, self.peer, *places, self.coded, *rest)

    def word(self, owner: int, kind: int) -> int:
        """Address of a word in the window of `owner`, which is one of the pair's ranks. The other one writes the word.

        If that window is a remote peer's, this is not the address but the word's offset for MPI puts.
        """
        writer = self.peer if owner == self.rank else self.rank
        return self._window(owner) + (writer * WORDS + kind) * LINE

    def slots(self, owner: int) -> int:
        """Start of the slots of `owner`, as an address or an offset like that of `word`.

        All peers share the slots, because a rank is in one pair at a time.
        """
        return self._window(owner) + self.pairs.head

    def _window(self, owner: int) -> int:
        window = self.pairs.rma
        if not self.remote or window is None:
            return self.pairs.base[owner]
        return window.base if owner == self.rank else window.shift[owner]

    def landed(self, nbytes: int, at: int = 0) -> Bytes:
        """A copy of the bytes in this rank's slots, from byte `at`."""
        start = self.slots(self.rank) + at
        return read_bytes(start, nbytes)

    def payload(self, nbytes: int) -> Bytes:
        """The bytes that the origin of this pair sends at this size, which both sides can compute."""
        rng = np.random.default_rng([self.origin, self.target, nbytes])
        return rng.integers(0, 256, max(8, nbytes), np.uint8)

    def advance(self, kind: int, steps: int) -> int:
        """Advance the ordered pair's counter of a kind by `steps`. Returns its value before, equal on both sides.

        Only one side of the pair may write words of this kind."""
        key = (self.origin, self.target, kind)
        base = self.pairs.counters[key]
        self.pairs.counters[key] += steps
        return base

    def agree(self, value: Any) -> Any:
        """Return the origin's value, for example a number of samples, on both sides. Collective over the pair.

        Raises WaitTimeout if the other side does not answer within the world's limit.
        """
        return self._same(value, from_origin=True, what="what to measure next")

    def verdict(self, check: Callable[[], bool]) -> bool:
        """Return the result of the target's check, on both sides. So the origin writes again only after the check.

        Raises WaitTimeout if the other side does not answer within the world's limit.
        """
        right = None if self.first else bool(check())
        return bool(self._same(right, from_origin=False, what="whether the bytes of a put were right"))

    def _same(self, value: Any, from_origin: bool, what: str) -> Any:
        """The value of origin or target, on both sides."""
        world = self.pairs.world
        if self.first == from_origin:
            world.send(value, self.peer, what)
            return value
        return world.receive(self.peer, what)

    def bounded(self, done: int) -> None:
        """Raise WaitTimeout if a compiled loop returned 0, which means that its wait has run out."""
        if not done:
            raise WaitTimeout(f"rank {self.rank} waited {TIMEOUT} s for a signal of rank {self.peer}; none came")

    def put_times(self, size: int, flight: int, samples: int) -> np.ndarray:
        """Time `samples` samples, each of `flight` puts of `size` bytes and a quiet. Both sides of the pair call this.

        Returns [samples] nanoseconds at the origin, and undefined values at the target.
        """
        base = self.advance(FLAG, samples)
        slots, stride = self.slots(self.target), max(64, size)
        flag, ack = self.word(self.target, FLAG), self.word(self.origin, ACK)
        out = np.empty(samples, np.int64)
        if self.first:
            source, scratch = self.payload(size), np.zeros(1, np.int64)
            places: tuple[int, ...] = (slots, stride, source.ctypes.data, size, flight, flag, ack)
            if not self.remote:
                places += (scratch.ctypes.data,)
            done = self.run("put_origin", places, base, samples, deadline(), out)
        elif self.remote:
            done = self.run("put_target", (flag, ack), base, samples, deadline())
        else:
            done = self.run("put_target", (slots, stride, size, flight, flag, ack), base, samples, deadline(), out)
        self.bounded(done)
        return out

    def has_all(self, size: int, flight: int) -> bool:
        """Whether every slot of this rank holds the origin's payload, after `put_times`."""
        want = self.payload(size)[:size]
        return all(np.array_equal(self.landed(size, p * max(64, size)), want) for p in range(flight))

    def samples(
        self, run: Callable[[int], Any], seconds: float, most: int, asked: int | None
    ) -> tuple[Any, tuple[float, float]]:
        """(result of `run(n)`, shares of their cores that origin and target had).

        `run` takes n samples on both sides, where n is `asked`, or as many as fit `seconds`, at most `most`. Disturbed
        samples are taken again, see `Pairs.repeats`."""
        start = time.perf_counter()
        run(PROBE)
        fits = int(seconds * PROBE / max(time.perf_counter() - start, 1e-7))
        count = self.agree(asked or max(PROBE, min(most, fits)))
        again = True
        while again:
            guard = Guard()
            guard.arm()
            guard.begin()
            start = time.perf_counter()
            found = run(count)
            guard.end(time.perf_counter() - start)
            mine = float(guard.shares()[0])
            target = self._same(mine, from_origin=False, what="its share of a core")
            origin, again = self.agree((mine, self.pairs.repeats(min(mine, target) < ENOUGH)))
        return found, (origin, target)


class Pairs:
    """Windows for local and remote peers: words for every peer, then `capacity` bytes of slots. Collective.

    A `Pairs` is a context manager. ranks_per_node: pretend nodes of this many ranks, even if the run has real nodes.
    base: rank -> address of its shared window, for the ranks of this node. rma: the window into which ranks of other
    nodes put, or None.
    """

    def __init__(self, world: World, capacity: int, ranks_per_node: int | None = None) -> None:
        from ..transport.group import Group

        self.world, self.capacity = world, capacity
        self.head = WORDS * LINE * world.size
        self.group = Group(world.comm, ranks_per_node=ranks_per_node or world.ranks_per_node)
        nodes, me = self.group.nodes, world.rank
        self.group.check_capacity(self.head + capacity, 0 if nodes.single else self.head + capacity)
        self._shm = self.group.local_window(self.head + capacity)
        self.base: dict[int, int] = dict(zip(sorted([me, *nodes.local(me)]), self._shm.base))
        self.rma = None if nodes.single else self.group.remote_window(self.head + capacity)
        self.coded = aligned((2,), np.int64)
        if self.rma is not None:
            self.group.watch_calls(self.rma.calling)
            # The wire's lock is kept until the windows are closed, because the loops make progress themselves.
            take_wire(self.wire, TIMEOUT)
        self.counters: dict[tuple[int, int, int], int] = defaultdict(int)
        self.taken = self.disturbed = 0  # how often this rank took samples as origin; how often disturbed ones
        self.rounds = schedule(world.size, max(1, world.cores(world.hosts[0]) // 2))

    def repeats(self, disturbed: bool) -> bool:
        """Count samples of this rank as origin. Returns whether to take them again.

        Disturbed samples are taken again, unless many of this rank's samples were disturbed.
        """
        self.taken += 1
        self.disturbed += disturbed
        return disturbed and self.disturbed <= max(1, FEW * self.taken)

    @property
    def wire(self) -> int:
        """Address of the wire to remote peers; 0 if there are none."""
        return self.rma.wire if self.rma is not None else 0

    def compile(self, *loops: str) -> None:
        """Compile or load loops for local peers, and for remote ones if there are any."""
        compile_loops(self.rma is not None, *loops)

    def transports(self) -> dict[str, np.ndarray]:
        """Which ordered pairs use each transport, name -> [W, W] bool."""
        from ..transport import choice

        return choice.masks(self.group.nodes)

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:  # freeing is collective; after an error the job is aborted
            if self.rma is not None:
                self.group.watch_calls(None)
                self.rma.close()
            self._shm.close()
            self.group.free()

    def sides(self) -> Iterator[tuple[int, Side | None]]:
        """(number, this rank's side of a pair or None) of each round. Collective; ranks without a pair sleep."""
        for number, pairs in enumerate(self.rounds):
            side = None
            for origin, target in pairs:
                if self.world.rank in (origin, target):
                    first = self.world.rank == origin
                    side = Side(self, self.world.rank, target if first else origin, first)
            yield number, side
            self.world.sleepy_barrier()


def medians(times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """([pair, size] each pair's median, [size] the median over pairs).

    times: [pair, size, sample], NaN for samples not taken.

    Tables and pictures show these medians. A rate is the bytes over such a median, never a median of rates."""
    each = np.nanmedian(times, axis=-1)
    return each, np.median(each, axis=0)


def add_transports(table: Table, transports: dict[str, np.ndarray]) -> None:
    """Add a variable [origin, target] to a table: the transport of each pair, empty on the diagonal."""
    names = np.full(next(iter(transports.values())).shape, "", dtype="<U3")
    for name, pairs in transports.items():
        names[pairs] = name
    table.add("transport", ("origin", "target"), names, "", "transport of the pair")


def deadline() -> int:
    """The time on `memory.clock`, in ns, at which a compiled wait that starts now gives up."""
    return time.monotonic_ns() + TIMEOUT * 10**9
