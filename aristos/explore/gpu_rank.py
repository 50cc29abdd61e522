"""One rank on a GPU, and its proxy, which is the host's thread that calls MPI for the GPU and copies arrived data to
it.

Workers are the GPU's blocks: they run the steps that a CPU's workers run, over the addresses that a GPU has, and call
no MPI. The proxy runs `engine.proxy` in turns, like `substrate.cuda.proxy_thread`. This module replaces
`substrate.cuda.runtime`, `proxy_thread.py` and the persistent kernel's loop.
"""

from __future__ import annotations

from typing import Any

from ..engine import codes, proxy, steps, words
from ..engine.layout import LINE, word_from
from ..engine.poison import poison_word
from ..primitives import wire
from . import places
from .places import ACCEPTED, LOCK, WIRE, address, private
from .rank import COUNTERS, Rank
from .regions import WORD
from .surroundings import Surroundings
from .violation import WrongResult


class GpuRank(Rank):
    """One rank of a cluster, on a GPU."""

    worker = "block"

    def __init__(self, cluster: Surroundings[Rank], me: int) -> None:
        self.host_cause = 0  # why this rank failed, if the host noticed the failure
        super().__init__(cluster, me)
        self.remote = cluster.case.nodes.remote(me)
        self.alone = {private(me, LOCK, LINE), private(me, LOCK, 2 * LINE)}
        self.alone |= {
            address(me, ACCEPTED, LINE * p + WORD * w) for p in self.remote for w in range(words.LINE_WORDS + 1)
        }
        cluster.memory.value[private(me, WIRE, WORD * wire.IN_CALL)] = 1

    def add_actors(self) -> None:
        super().add_actors()
        sched, reach = self.cluster.sched, self.cluster.memory.reach
        assert reach is not None
        hosts = [sched.add(f"rank {self.me} proxy", self.me, self.turn, daemon=True), self.progress_thread]
        reach.hosts |= {actor.number for actor in hosts if actor is not None}

    # ---- as the substrate fills it

    def _fill_places(self) -> None:
        """Fill the places of memory as `CudaRuntime._allocate` does."""
        sides = places.fill_gpu(self.case.shape, self.case.nodes, self.me, self.st, self.tables.starts)
        self.sides = tuple(array.tolist() for array in (sides.job, sides.st, sides.device_job, sides.device_st))

    def _fill_counters(self) -> None:
        super()._fill_counters()
        start, value = self.case.start, self.cluster.memory.value
        job, st, gpu, cs = self.sides
        for p in self.case.nodes.remote(self.me) if start else ():
            for table in COUNTERS:
                st[job[table] + p] = cs[gpu[table] + p] = start
            for word in (words.TAIL, words.CREDIT, words.RETURN_TAIL):
                value[word_from(job, st, p, word)] = start
            value[word_from(job, st, p, words.POSTED)] = 2 * start

    def _put_into(self, peer: int, word: int) -> int:
        _, _, gpu, cs = self.sides
        return cs[words.region_to(gpu, peer)]

    def _tend(self, yes: bool) -> None:
        """Do nothing: the proxy makes MPI progress, in calls and between them."""

    # ---- the host's threads

    def turn(self) -> bool:
        """Run the proxy for one turn of `proxy_thread.serve`. If `serve` would return, run the rest of
        `ProxyThread.run`."""
        job, st, gpu, cs = self.sides
        cluster = self.cluster
        moved = proxy.serve_both(job, st, gpu, cs)
        if moved >= 0:
            if moved == 0:
                cluster.rest()
            return True
        if cluster.memory.value.get(gpu[words.WIRE] + WORD * wire.ERROR, 0):
            self._host_fails(codes.CAUSE_ERROR)
        while not proxy.put_poison(job, st):
            cluster.rest()
        return False

    def _host_fails(self, cause: int) -> None:
        """Poison as `ProxyThread.poison` does.

        Blocks read and forward the poison. No kernel is launched to notify them, because such a kernel might not become
        resident.
        """
        job, st, gpu, cs = self.sides
        self.host_cause = cause
        if self.stage == "work":
            self.stage = "notified"
        proxy.poison(job, st, gpu, cs, poison_word(job[words.EPOCH], self.me, cause))

    # ---- when something goes wrong

    @property
    def lost(self) -> bool:
        return super().lost or self.host_cause != 0

    @property
    def poisons(self) -> set[tuple[int, int]]:
        """The pairs (epoch, origin) that poison may name. The host may not know yet that the GPU has begun a call."""
        mine = {(self.epoch - 1, self.me), (self.epoch, self.me)} if self.host_cause else set()
        return super().poisons | mine

    @property
    def causes(self) -> set[int]:
        return {self.cause, self.host_cause} - {0}

    def _fails_now(self) -> bool:
        return super()._fails_now() and not self.host_cause and self.me not in self.cluster.copies.broken

    def _fault(self) -> None:
        fault = self.case.fault
        assert fault is not None
        if fault.how == "gpu":
            super()._fault()
            return
        if fault.dies >= 0:
            self.cluster.doom(self.me, fault.dies)
        if fault.how == "copy":
            self.cluster.copies.broken.add(self.me)
            return
        reach, me = self.cluster.memory.reach, self.cluster.memory.me  # for a moment this actor is the host's thread
        assert reach is not None
        reach.hosts.add(me)
        self._host_fails(codes.CAUSE_INTERRUPT)
        reach.hosts.remove(me)

    def _close(self) -> None:
        """End the kernel. Raises WrongResult unless everything that it owes to remote peers has been put."""
        super()._close()
        job, st, _, _ = self.sides
        for p in self.remote:
            put = [st[job[t] + p] for t in (words.T_PUT_TILES, words.T_PUT_RETURNED, words.T_OPEN_EPOCH)]
            owed = [self.table(words.T_SENT_TILES, p), self.table(words.T_RETURNED, p), self.epoch]
            if put != owed:
                raise WrongResult(
                    f"call {self.epoch} ends on rank {self.me}, which owes rank {p} (tiles, returned tiles, epoch)"
                    f" {owed} and has put {put}"
                )

    def _open(self, call: Any) -> None:
        super()._open(call)
        if self.host_cause:
            self.stage = "notified"

    def _work(self) -> None:
        notified = self.stage == "notified"
        super()._work()
        if notified and self.stage == "close":  # the host raises although the kernel has ended
            self.cause = self.host_cause
            steps.poison(self.job, self.st, self.me, self.cause)
            self.stage = "failed"

    def _put_poison_words(self) -> None:
        """Do nothing: the proxy puts poison to remote peers."""

    def _forwarder(self, peer: int) -> int:
        return self.me if self.host_cause else peer
