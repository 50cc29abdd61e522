"""The emulated network of a runtime whose ranks are on one node, with a link for each ordered pair of ranks.

While the network is in use, fused calls run the steps of `steps.py`. For a collective of the bulk schedule each rank
publishes when it entered and how many bytes it sends to each other rank. After the real collective it waits until its
last bytes are due. The real copying takes place within that wait, whereas in a fused call a worker spends time of its
own on copying rows. So the emulation favours bulk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from kernel_cache.compile import jit

from ...engine import words as engine
from ...errors import InputError, WaitTimeout
from ...host.nodes import Nodes
from ...primitives import memory as mem
from ...substrate.cpu import loop as ordinary
from ...transport.shm import ShmWindow
from . import steps, words
from .words import LINE, WORD

TURNS = 8  # entries of a pair, used in turn by its collectives; no rank is ever that many collectives ahead of another
TURN, TIME, BYTES = 0, 1, 2  # words of an entry
COPIED, COPIES, ROW = 1 << 20, 20, 4096  # for the copy rate: bytes of a copy, number of copies, bytes of a row
NAP_NS = 200_000  # a rank sleeps in waits longer than this
LIMIT_NS = 60 * 10**9  # the longest wait for another rank


@jit
def wait_until(time):
    """Wait until the clock has reached `time`, in ns; sleep as long as it is more than NAP_NS away."""
    left = time - mem.clock()
    while left > 0:
        if left > NAP_NS:
            mem.nap()
        else:
            mem.pause()
        left = time - mem.clock()


@jit
def enter(entries, nbytes, me, turn):
    """Publish that this rank enters collective number `turn`.

    entries: [W] addresses of this rank's entries for each rank. nbytes: [W] bytes that it sends to each rank.
    """
    now = mem.clock()
    for p in range(len(entries)):
        if p != me:
            entry = entries[p] + LINE * (turn % TURNS)
            mem.store(entry + WORD * TIME, now)
            mem.store(entry + WORD * BYTES, nbytes[p])
            mem.store_release(entry, turn)


@jit
def leave(entries, links, free, me, turn, limit):
    """Wait until the bytes of all ranks in collective number `turn` are due. Returns False after `limit` ns.

    entries: [W] addresses of each rank's entries for this rank. links: [W] addresses of each rank's link to this rank.
    free: [W] when each link becomes free, in ns.
    """
    begun = mem.clock()
    last = begun
    for p in range(len(entries)):
        if p == me:
            continue
        entry = entries[p] + LINE * (turn % TURNS)
        while mem.load_acquire(entry) < turn:
            mem.pause()
            if mem.clock() - begun > limit:
                return False
        sent = words.due_after(
            free[p],
            mem.load(entry + WORD * TIME),
            mem.load(entry + WORD * BYTES),
            mem.load(links[p] + WORD * words.PER_MIB),
        )
        free[p] = sent
        last = max(last, sent + mem.load(links[p] + WORD * words.ALPHA))
    wait_until(last)
    return True


@jit
def pings(to, back, nbytes, base, rounds, first):
    """Make round trips of a word with `nbytes`: first one in which the two ranks meet, then `rounds` timed ones.

    Returns the ns of the timed round trips together, or -1 after LIMIT_NS. Words are numbered from base + 1. first:
    whether this rank begins.
    """
    begun = mem.clock()
    for turn in range(base + 1, base + 2 + rounds):
        if turn == base + 2:
            begun = mem.clock()
        if first:
            words.delayed_notify(to, turn, nbytes)
        while words.delayed_arrived(back) < turn:
            if mem.clock() - begun > LIMIT_NS:
                return -1
        if not first:
            words.delayed_notify(to, turn, nbytes)
    return mem.clock() - begun


@jit
def copies(target, source, times):
    """Copy COPIED bytes row by row, `times` times; returns ns."""
    begun = mem.clock()
    for _ in range(times):
        for at in range(0, COPIED, ROW):
            mem.copy_row(target + at, source + at, ROW)
    return mem.clock() - begun


def fastest_copy(target: int, meet: Callable[[], None]) -> float:
    """GB/s at which this rank copies rows to the address `target`; the fastest of three tries.

    meet: waits for the other ranks, so that all copy at the same time.
    """
    source = np.ones(COPIED, np.uint8)
    taken = []
    for times in (1, COPIES, COPIES, COPIES):
        meet()
        taken.append(copies(target, source.ctypes.data, times) / times)
    return COPIED / min(taken[1:])


def check_ranks(nodes: Nodes) -> None:
    """Raise InputError unless links between these ranks can be emulated."""
    most, count = words.MOST_LINES // 2 + 1, len(nodes.node_of)
    if not nodes.single:
        raise InputError(f"links of pairs of ranks connect ranks of one node, got {nodes.count} nodes")
    if count > most:
        raise InputError(f"emulated links connect at most {most} ranks, got {count}: start fewer ranks")


class Emulated:
    """What emulated networks have in common: within a `with` block, a runtime's calls use the network.

    ranks_of_link: how many ranks share a link. runtime: the runtime of layers that are already made. The runtime's
    windows must not grow while the network exists. bulk: the bulk schedule of a layer on that runtime. Every method is
    collective.
    """

    noun = "links"
    ranks_of_link = 1
    _window: ShmWindow
    _copied: int  # address at a peer to which rows can be copied

    def __init__(self, runtime: Any, bulk: Any) -> None:
        self.runtime, self.bulk = runtime, bulk
        self.rank, self.world = runtime.group.rank, runtime.group.world
        self._turn = 0

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        self.bulk.collective = self.bulk.at_once

    def close(self) -> None:
        """Free the network."""
        self._window.close()

    def copy_rate(self) -> float:
        """GB/s at which this rank copies rows to a peer while all ranks do: see `fastest_copy`."""
        return fastest_copy(self._copied, self._meet)

    def _meet(self) -> None:
        self.runtime.group.meet(f"the other ranks to set {self.noun}")


class Network(Emulated):
    """Links between the ranks of a runtime. Within a `with` block the runtime's calls use these links.

    Arguments: see `Emulated`. Raises InputError if the ranks are on several nodes, or if there are too many ranks.
    """

    def __init__(self, runtime: Any, bulk: Any) -> None:
        super().__init__(runtime, bulk)
        check_ranks(runtime.group.nodes)
        self._capacity = 1 << (runtime.shape.ring_records + 8).bit_length()
        self._link = words.link_bytes(self._capacity)
        self._step = 2 * self._link + LINE * (TURNS + 1) + COPIED
        self._window = ShmWindow(runtime.group.comm, self._step * self.world)
        self._peers = [p for p in range(self.world) if p != self.rank]
        self._pinged = 0
        self._copied = self._ping_line(self.rank, min(self._peers, default=self.rank)) + LINE
        self._free = np.zeros(self.world, np.int64)
        self._to, self._from, self._links = (np.zeros(self.world, np.int64) for _ in range(3))
        for p in self._peers:
            self._to[p], self._from[p] = self._entries(self.rank, p), self._entries(p, self.rank)
            self._links[p] = self._place(p, self.rank)

    # ---- places. The target's part of the window has for each source, in this order: the engine's link, the link of
    # pings, the entries, the line of pings, space for copies

    def _place(self, source: int, target: int) -> int:
        return int(self._window.base[target]) + self._step * source

    def _entries(self, source: int, target: int) -> int:
        return self._place(source, target) + 2 * self._link

    def _ping_line(self, source: int, target: int) -> int:
        return self._entries(source, target) + LINE * TURNS

    # ---- use

    def set(self, alpha_us: float, gb_per_s: float) -> None:
        """Give every link this latency and bandwidth; inf GB/s is unlimited."""
        for p in self._peers:
            for link in (self._place(self.rank, p), self._place(self.rank, p) + self._link):
                head = mem.words(link, words.QUEUES)
                head[words.ALPHA], head[words.PER_MIB] = round(1e3 * alpha_us), round(words.MIB / gb_per_s)
                head[words.CAPACITY], head[words.FREE] = self._capacity, 0
        self._free[:] = 0
        self._meet()

    @staticmethod
    def carried(nbytes: int) -> int:
        """The most bytes that a link carries in an all-to-all of `nbytes` to each rank."""
        return nbytes

    def __enter__(self) -> Self:
        self._meet()  # after this all calls have ended, so no word changes
        state, starts = self.runtime.state, self.runtime.tables.starts
        lines = []
        for p in self._peers:
            lines.append((state[engine.region_to(starts, p)], state[engine.line_from(starts, p)], 0, p))
            lines.append((self._ping_line(self.rank, p), self._ping_line(p, self.rank), self._link, p))
        for i, (to, back, link, p) in enumerate(lines):
            entry = words.TABLE[words.HEAD + words.ENTRY_WORDS * i :]
            entry[[words.TO, words.FROM]] = to, back
            entry[[words.OUT, words.IN]] = self._place(self.rank, p) + link, self._place(p, self.rank) + link
            entry[words.SEEN :][: words.LINE_WORDS] = mem.words(int(back), words.LINE_WORDS)
            words.empty(self._place(p, self.rank) + link)
        words.TABLE[0] = len(lines)
        self.runtime.run_with(steps.loop())
        self.bulk.collective = self.collective
        self._meet()
        return self

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        words.TABLE[0] = 0
        self.runtime.loop = ordinary
        super().__exit__(kind, *why)

    def collective(self, call: Callable[[Any], object], nbytes: np.ndarray) -> None:
        """Run an MPI collective with the delay of the links. It replaces `Bulk.collective`.

        nbytes: [W] bytes that this rank sends to each rank.
        """
        self._turn += 1
        enter(self._to, nbytes, self.rank, self._turn)
        self.bulk.at_once(call, nbytes)
        if not leave(self._from, self._links, self._free, self.rank, self._turn, LIMIT_NS):
            raise WaitTimeout(
                f"rank {self.rank} waited {LIMIT_NS / 1e9:g} s for the other ranks to enter an MPI collective: check"
                " whether all ranks still run"
            )

    def ping(self, nbytes: int, rounds: int) -> float:
        """Seconds that a word with `nbytes` takes from rank 0 to rank 1 or back, that is half the mean of round trips.

        Other ranks return 0. Call it within a `with` block.
        """
        taken = 0.0
        self._meet()
        if self.rank < 2:
            peer = 1 - self.rank
            to, back = self._ping_line(self.rank, peer), self._ping_line(peer, self.rank)
            spent = pings(to, back, nbytes, self._pinged, rounds, self.rank == 0)
            if spent < 0:
                raise WaitTimeout(
                    f"rank {self.rank} waited {LIMIT_NS / 1e9:g} s for a word of rank {peer}: check whether rank {peer}"
                    " still runs"
                )
            taken = spent * 1e-9 / (2 * rounds)
        self._pinged += rounds + 1
        return taken
