"""A cluster whose actors can be rebuilt from the values that each has read since its stretch of work began.

A stretch is one command, or one idle poll. It depends only on the rank's private memory and on the values that the
memory functions return. So if it runs again from that memory, with these values and without effects, the actor is where
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..engine import words
from ..engine.layout import word_from, word_to
from ..primitives import arithmetic, memory, wire
from ..substrate.cpu import loop
from .cases import Case
from .cluster import Cluster
from .landing import Landing, LandingCopies
from .network import SimulatedNetwork
from .places import WIRE, private
from .private_state import Host, Private
from .rank import Rank
from .reach import Reach
from .regions import WORD
from .replaced import replaced
from .scheduler import Actor, Slice, Strategy
from .violation import Livelock

Log = list[Any]


class Stretches(Cluster):
    """A cluster with one worker a rank, and on GPUs one proxy a rank, whose turns are stretches."""

    pause_ns = -1
    network_class: type[Landing] = Landing

    def __init__(self, case: Case, strategy: Strategy) -> None:
        super().__init__(case, strategy)
        for rank in self.ranks:
            rank.st[words.BELLS] = 0  # then each poll reads all words; bells only save such reads
        self.memory.keeps_acquired = False  # otherwise what each actor has acquired would be part of every state
        self.replaying = -1  # how many recorded values an actor being rebuilt has used; -1 if none is being rebuilt
        self.stretches: list[tuple[Private | Host, bytes, Log]] = [
            (Private.from_rank(self.ranks[actor.rank]), b"", []) for actor in self.sched.actors
        ]  # by actor: the state in which its stretch began, a hash of this state, and the values recorded since
        if self.memory.reach is not None:  # proxies release all words of a line, but changed ones suffice for order
            self.memory.skips_same = self.memory.reach.hosts
        for rank in self.ranks:
            for p in range(case.ranks):
                if p != rank.me:
                    self._take_for_local(rank, p)

    network: Landing

    def make_network(self) -> SimulatedNetwork:
        network = self.network_class(self.memory)
        network.again = lambda: self.replaying >= 0
        if self.case.proxy:
            self.memory.reach = Reach(self.memory.regions)
            self.copies = LandingCopies(network)
        return network

    def share_network(self) -> None:
        """Let the network and the copies know of each other's words under way."""
        if self.case.proxy:
            self.copies.flying, self.copies.sources = self.network.flying, self.network.sources

    def _take_for_local(self, rank: Rank, peer: int) -> None:
        """Mark words that no other actor reads in this search as local, so that accesses to them are no switch
        points."""
        job, st, local = rank.job, rank.st, self.memory.local
        remote = st[words.remote(job, peer)] != 0
        if self.case.proxy:  # no rank fails, and no rank reads heartbeats
            local |= {word_to(job, st, peer, w) for w in (words.POISON, words.AT_EPOCH)}
            local |= {word_from(job, st, peer, w) for w in (words.POISON, words.AT_EPOCH, words.AT_PROGRESS)}
            local |= {private(rank.me, WIRE, WORD * w) for w in range(wire.STATUS)}
            return
        local |= {
            word_to(job, st, peer, w)
            for w in (range(words.LINE_WORDS) if remote else (words.AT_EPOCH, words.AT_PROGRESS))
        }
        if remote:  # also words that arrive from the peer, and words of the wire such as its lock
            local |= {word_from(job, st, peer, w) for w in (*range(words.LINE_WORDS), words.POSTED)}
            local |= {job[words.WIRE] + WORD * w for w in range(wire.STATUS)}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While inside, record the values that steps read, or for a replay give steps the recorded values."""
        mem, network = self.memory, self.network
        operations = mem.functions().keys() - {"fetch_add", "clock"}
        groups: list[tuple[Any, Iterable[str]]] = [
            (memory, operations),
            (mem, ("fresh_return", "forget_returns")),
            (network, ("under_way", "settle")),
            (wire, ("put", "sync", "progress")),
            (arithmetic, ("expert_rows", "backward_rows")),
        ]
        groups += [(self.copies, ("settle",))] if self.case.proxy else []
        names: dict[tuple[Any, str], Any] = {
            (owner, name): self._recorded(getattr(owner, name)) for owner, some in groups for name in some
        }
        names |= {(memory, "clock"): lambda: 0, (loop, "tend_wire"): self._tended(loop.tend_wire)}
        with replaced(names):
            yield

    def _tended(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def tend_wire(*args: Any) -> bool:
            if real(*args):
                raise Slice  # something was sent or received, so the next poll is another stretch
            return False

        return tend_wire

    def _recorded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            if real.__name__ in ("load_acquire", "store_release") and self.memory.state_of(args[0]):
                return real(*args)  # private memory, which is saved and restored
            log = self.stretches[self.sched.me.number][2]
            if self.replaying >= 0:
                value = log[self.replaying]
                self.replaying = self.replaying + 1 if self.replaying + 1 < len(log) else -1
                return value
            value = real(*args)
            self.stretches[self.sched.me.number][2].append(value)
            return value

        return recorded

    def idle(self) -> None:
        """End the stretch of an idle poll, and let the actor wait for a word that it has read."""
        actor = self.sched.me
        value = self.memory.value
        if actor.fresh:
            raise Livelock(f"{actor.name} waits and reads no word that could change")
        moving = self.network.moving
        actor.enabled = any(at in moving or value.get(at, 0) != held for at, held in actor.seen.items())
        raise Slice

    def rest(self) -> None:
        self.idle()

    def mark(self, actor: Actor) -> None:
        """Begin a stretch of an actor, from the state that its rank is in."""
        rank = self.ranks[actor.rank]
        if not actor.daemon:
            rank.st[words.IDLE_SWEEPS] = rank.slices = 0
        start: Private | Host = (Host if actor.daemon else Private).from_rank(rank)
        self.stretches[actor.number] = start, start.digest(), []
        actor.fresh = True

    def replay(self, actor: Actor) -> None:
        """Run the actor's stretch again, up to the place where the actor was."""
        start, _, log = self.stretches[actor.number]
        start.restore(self.ranks[actor.rank])
        self.replaying = 0 if log else -1

    def summary(self, actor: Actor) -> tuple[Any, ...]:
        """A hashable description of where an actor is."""
        if actor.done:
            return ()
        _, digest, log = self.stretches[actor.number]
        return actor.enabled, actor.done, actor.op, actor.at, [] if actor.enabled else sorted(actor.seen), digest, log
