"""An emulated network of virtual nodes, in which all ranks of a node share one NIC.

Between virtual nodes MPI puts, inside one machine. While the network is in use, these puts take as long as on a NIC of
a set latency and bandwidth. A node's NIC sends all bytes that the node's ranks put at other nodes:

    free = max(now, free) + bytes / rate          due = free + alpha

A put only takes its share of the NIC and runs at once. A flush ends when the last put that it covers is due, so words
that wait for a flush come late. A flush sleeps and takes no processor time, but its worker does nothing else meanwhile.
A message of a collective takes its share of the NIC when its source enters the collective. On each rank the collective
ends when the messages for that rank are due. Within a node nothing is delayed. What a node receives has no limit of its
own.

Bulk has the same advantage as in `network.py`: it copies while the link is busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from kernel_cache.compile import jit, warm_up

from ...errors import InputError
from ...primitives import memory as mem
from ...primitives import wire as mpi
from ...primitives.buffers import aligned
from ...transport.rma import RmaWindow
from ...transport.shm import ShmWindow
from ..pairs import take_wire
from ..replaced_wire import OWN, ReplacedWire, c_functions, real_flush, real_put
from .network import COPIED, LIMIT_NS, TURNS, Emulated, copies, wait_until
from .words import LINE, MIB, WORD, due_after

PING_BYTES = 65536  # the most bytes of a ping
# Words of a NIC, each on a line of its own: a lock, and when the NIC has sent everything, in ns.
LOCK, FREE, NIC_LINES = 0, LINE, 2
NAPS = 1000  # tries to take the lock before a rank sleeps; by then the lock's holder has surely lost its core
TURN, DUE = 0, 1  # words of an entry for a collective: its number, and when the message is due in ns
# Words of a replaced wire after the first OWN: the address of the node's NIC, ns of latency, ns per MiB; then for each
# peer the time in ns at which the NIC has sent the bytes put since the last flush, 0 if there are none.
NIC, ALPHA, PER_MIB, SENT = OWN, OWN + 1, OWN + 2, OWN + 3


@jit
def reserve(nic, now, nbytes, per_mib):
    """Reserve a NIC for `nbytes`. Returns the time at which the NIC has sent these bytes, in ns."""
    tries = 0
    while not mem.compare_exchange(nic + LOCK, 0, 1):
        tries += 1
        if tries < NAPS:
            mem.pause()
        else:
            mem.nap()
    sent = due_after(mem.load(nic + FREE), now, nbytes, per_mib)
    mem.store(nic + FREE, sent)
    mem.store_release(nic + LOCK, 0)
    return sent


@jit
def shared_put(source, n, kind, peer, at, n_there, kind_there, words):
    """MPI_Put at once. The bytes take their share of the NIC."""
    sent = reserve(mem.load(words + WORD * NIC), mem.clock(), n, mem.load(words + WORD * PER_MIB))
    mem.store(words + WORD * (SENT + peer), sent)
    return real_put(source, n, kind, peer, at, n_there, kind_there, words)


@jit
def shared_flush(peer, words):
    """MPI_Win_flush, which ends when all bytes put at the peer have been sent and have crossed the link."""
    code = real_flush(peer, words)
    sent = words + WORD * (SENT + peer)
    if mem.load(sent) != 0:
        wait_until(mem.load(sent) + mem.load(words + WORD * ALPHA))
        mem.store(sent, 0)
    return code


@jit
def enter(entries, nbytes, me, turn, words):
    """Publish when the messages of this rank in collective number `turn` are due.

    entries: [W] addresses of this rank's entries for each rank. nbytes: [W] bytes that it sends to each rank of another
    node, 0 for local peers. words: address of the words of a replaced wire.
    """
    for i in range(1, len(entries)):
        p = (me + i) % len(entries)
        due = 0
        if nbytes[p] > 0:
            sent = reserve(mem.load(words + WORD * NIC), mem.clock(), nbytes[p], mem.load(words + WORD * PER_MIB))
            due = sent + mem.load(words + WORD * ALPHA)
        entry = entries[p] + LINE * (turn % TURNS)
        mem.store(entry + WORD * DUE, due)
        mem.store_release(entry + WORD * TURN, turn)


@jit
def leave(entries, me, turn):
    """Wait until the messages for this rank in collective number `turn` are due. The real collective has ended.

    entries: [W] addresses of each rank's entries for this rank. A rank that has not entered sends nothing: the real
    collective would have waited for it.
    """
    last = 0
    for p in range(len(entries)):
        entry = entries[p] + LINE * (turn % TURNS)
        if p != me and mem.load_acquire(entry + WORD * TURN) == turn:
            last = max(last, mem.load(entry + WORD * DUE))
    wait_until(last)


@jit
def pings(wire, peer, at, source, nbytes, rounds):
    """Put and flush `nbytes` at a peer `rounds` times, with the wire's lock. Returns ns."""
    begun = mem.clock()
    for _ in range(rounds):
        mpi.put(wire, peer, at, source, nbytes)
        mpi.flush(wire, peer)
    return mem.clock() - begun


def compile_all() -> None:
    """Compile or load the functions of this module."""
    from numba import int64, typeof

    c_functions(shared_put, shared_flush)
    a, i = typeof(np.zeros(1, np.int64)), int64
    warm_up([(enter, (a, a, i, i, i)), (leave, (a, i, i)), (pings, (i,) * 6), (copies, (i,) * 3)])


class SharedNics(Emulated):
    """The NICs of virtual nodes. Within a `with` block the puts and collectives of a runtime's calls use them.

    Arguments: see `Emulated`. Raises InputError if there is one node, and EnvironmentProblem if the ranks are on
    several machines.
    """

    noun = "NICs"

    def __init__(self, runtime: Any, bulk: Any) -> None:
        super().__init__(runtime, bulk)
        nodes = runtime.group.nodes
        if nodes.single:
            raise InputError("NICs connect several nodes, got one: pass --ranks-per-node")
        self._remote = np.array([node != nodes.node_of[self.rank] for node in nodes.node_of])
        self.ranks_of_link = max(nodes.node_of.count(node) for node in nodes.node_of)
        self._step = LINE * TURNS  # bytes of the entries of a pair
        self._window = ShmWindow(runtime.group.comm, LINE * NIC_LINES + self._step * self.world + COPIED)
        base = [int(each) for each in self._window.base]
        self._nic = base[nodes.node_of.index(nodes.node_of[self.rank])]
        self._to, self._from = (
            np.array([base[b] + LINE * NIC_LINES + self._step * a for a, b in pairs], np.int64)
            for pairs in ([(self.rank, p) for p in range(self.world)], [(p, self.rank) for p in range(self.world)])
        )
        self._copied = base[(self.rank + 1) % self.world] + LINE * NIC_LINES + self._step * self.world
        self._words = aligned((SENT + self.world,), np.int64)
        self._words[:] = 0
        self._words[NIC] = self._nic
        functions = c_functions(shared_put, shared_flush)
        self._replaced = ReplacedWire(runtime.wire, self.world, self._words, functions)
        self._pinged: RmaWindow | None = None

    def set(self, alpha_us: float, gb_per_s: float) -> None:
        """Give every NIC this latency and bandwidth; inf GB/s is unlimited."""
        self._meet()
        self._words[[ALPHA, PER_MIB]] = round(1e3 * alpha_us), round(MIB / gb_per_s)
        self._words[SENT:] = 0
        mem.store(self._nic + FREE, 0)
        self._meet()

    def carried(self, nbytes: int) -> int:
        """The most bytes that a NIC sends in an all-to-all of `nbytes` to each rank."""
        node_of = self.runtime.group.nodes.node_of
        return nbytes * max(node_of.count(node) * (self.world - node_of.count(node)) for node in node_of)

    def __enter__(self) -> Self:
        self._meet()  # after this all calls have ended, so nothing is put
        self._replaced.__enter__()
        self.bulk.collective = self.collective
        self._meet()
        return self

    def __exit__(self, kind: type[BaseException] | None, *why: object) -> None:
        self._replaced.__exit__(kind, *why)
        super().__exit__(kind, *why)
        if kind is None and self._pinged is not None:
            self._pinged.close()
            self._pinged = None

    def collective(self, call: Callable[[Any], object], nbytes: np.ndarray) -> None:
        """Make MPI calls with the delay of the NICs. It replaces `Bulk.collective`.

        nbytes: [W] bytes that this rank sends to each rank.
        """
        self._turn += 1
        enter(self._to, np.where(self._remote, nbytes, 0), self.rank, self._turn, self._words.ctypes.data)
        self.bulk.at_once(call, nbytes)
        leave(self._from, self.rank, self._turn)

    def ping(self, nbytes: int, rounds: int) -> float:
        """Seconds that rank 0 needs to put `nbytes`, at least 8 and at most PING_BYTES, at another node and to flush.

        Other ranks return 0. Call it within a `with` block.
        """
        return self.puts([0], nbytes, rounds)

    def puts(self, ranks: list[int], nbytes: int, rounds: int) -> float:
        """Seconds of a put and a flush, the mean of `rounds`, while `ranks` put at another node at once.

        Other ranks return 0. nbytes: see `ping`.
        """
        if self._pinged is None:
            self._pinged = RmaWindow(self.runtime.group.comm, PING_BYTES * self.world)
            self._pinged.in_call(True)  # its progress thread has nothing to do
        window, taken = self._pinged, 0
        words = aligned(self._words.shape, np.int64)
        words[:] = self._words
        source = np.ones(PING_BYTES, np.uint8)
        peer = int(np.flatnonzero(self._remote)[0])
        at = int(window.shift[peer]) + PING_BYTES * self.rank
        replaced = ReplacedWire(window.wire, self.world, words, c_functions(shared_put, shared_flush))
        with replaced:
            self._meet()
            if self.rank in ranks:
                take_wire(window.wire, LIMIT_NS / 1e9)
                taken = pings(window.wire, peer, at, source.ctypes.data, max(8, nbytes), rounds)
                mpi.unlock(window.wire)
            self._meet()
        return taken * 1e-9 / rounds
