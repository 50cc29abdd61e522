"""The cluster of a run: the memory and actors of every rank, and checks of both. The engine's steps run on it.

The cluster replaces `substrate.runtime` and MPI, and does only what they may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from ..config import OVERDUE
from ..engine import arrivals, codes, column_runs, experts, outbox, scalars, steps, words
from ..primitives import arithmetic, memory, wire
from ..substrate import failure
from ..substrate.cpu import loop
from .cases import Case
from .checks import Checks
from .copies import Copies
from .gpu_rank import GpuRank
from .memory_model import CHANGE, Memory
from .network import SimulatedNetwork
from .places import AREA, COPIES, LOCK, OUTBOX, PRIVATE, WIRE, private
from .rank import Rank
from .reach import Reach
from .regions import Regions
from .replaced import replaced
from .scheduler import Actor, Scheduler, Strategy
from .violation import Aborted, Livelock

PROGRESS_NS = 1_000 * wire.PROGRESS_US
TOKEN_BLOCK = 2  # tokens of a route or combine command; few, so that a call has several commands
ROUNDS_OF_TIME = 60  # how often time may be moved on because no actor can go on
PASSING = 130  # seconds by which time moves on in such a round, more than a timeout
# seconds within which every wait for a lost rank ends; `monotonic` lets them pass within half of the allowed steps
LATEST = 2 * OVERDUE * PASSING
BLIND = 50  # idle polls that an actor may make without having checked every peer's poison
KERNELS = ("expert_rows", "backward_rows", "up_columns", "down_columns", "combine_token")
PATIENT = 4_000  # visible operations allowed for each row, and twice as many for each call of a rank


def waits(memory: Memory, actor: Actor) -> str:
    """The operation that an actor is about to do, or what it waits for."""
    if actor.enabled:
        return f"at a {actor.op}" + (f" of {memory.name(actor.at)}" if actor.at >= 0 else "")
    if actor.why != CHANGE:
        return actor.why
    return f"{CHANGE} of " + ", ".join(n for n in map(memory.name, actor.seen) if "complement" not in n)


class Cluster:
    """A case, ready to run once. pause_ns: time after which a rank's steps return to its program."""

    pause_ns = 3_000_000
    memory_class = Memory

    def __init__(self, case: Case, strategy: Strategy) -> None:
        self.case = case
        regions = Regions.from_shape(case.shape, case.nodes)
        rows = sum(len(call.ids) * case.top_k + 1 for mine in case.calls for call in mine)
        self.sched = Scheduler(strategy, PATIENT * (rows + case.ranks * len(case.calls[0])))
        self.memory = self.memory_class(regions, self.sched)
        self.network = self.make_network()
        self.checks = Checks(self)
        self.ranks = [(GpuRank if case.proxy else Rank)(self, me) for me in range(case.ranks)]
        for rank in self.ranks:
            rank.add_actors()
        self.memory.begin(len(self.sched.actors))
        self.memory.delays = case.delays
        self.memory.states = [rank.st for rank in self.ranks]
        self.memory.released_at = self.released
        self.seconds = 0  # by how much time was moved on because no actor could go on
        self._passed = 0
        self._lost: int | None = None  # the step at which a rank was found lost
        self.sched.stuck = self.time_passes
        self.sched.describe = self.describe
        if case.workers == 1:  # then no other actor takes a rank's lock
            self.memory.local = {private(r, LOCK) for r in range(case.ranks)}
        for rank in self.ranks:
            self.memory.local |= rank.alone

    def make_network(self) -> SimulatedNetwork:
        network = SimulatedNetwork(self.memory, self.case.attention)
        if not self.case.nodes.single:
            network.add_actor()
        if self.case.proxy:
            self.memory.reach = Reach(self.memory.regions)
            self.copies = Copies(network)
            self.copies.add_actor("copies")
        return network

    @property
    def rank(self) -> Rank:
        """The rank whose actor runs now."""
        return self.ranks[self.memory.rank]

    def run_schedule(self) -> None:
        """Run all calls of all ranks. Raises Violation."""
        with self.patched(), suppress(Aborted):
            self.sched.run()
            self.checks.at_end()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """While inside, the engine's steps use this cluster."""
        names: dict[tuple[Any, str], Any] = {(memory, name): body for name, body in self.memory.functions().items()}
        names |= {(memory, name): self.idle for name in ("pause", "yield_core", "nap")}
        names |= {(wire, name): getattr(self.network, name) for name in ("put", "flush", "sync", "progress")}
        names |= {(arithmetic, name): self.by_rank(name) for name in KERNELS}
        if self.case.proxy:
            names |= {(wire, name): self.by_wire(name) for name in ("put", "flush")}
            names[loop, "tend_wire"] = lambda *_: False  # a GPU's blocks have no wire
        names |= {
            (memory, "call"): self.call,
            (steps, "decide"): self.decide(steps.decide),
            (scalars, "weight_at"): self.memory.weight_at,
            (scalars, "set_weight"): self.memory.set_weight,
            (words, "TOKEN_BLOCK"): TOKEN_BLOCK,
            (experts, "GROUP"): self.case.group,
            (column_runs, "SHARES_PER_TRY"): 2,
            # while no bell rings, a poll reads only poison, of all peers: a rank waits for ever if a bell fails to ring
            (outbox, "TURN_RANKS"): self.case.ranks - 1,
            (outbox, "TURN_WORDS"): words.POISON + 1,
            (failure, "load_acquire"): self.memory.load_acquire,
            (failure, "time"): SimpleNamespace(monotonic=self.monotonic),
        }
        with replaced(names):
            yield

    def decide(self, step: Callable[..., int]) -> Callable[..., int]:
        """Run step `decide`, and note the state that it decided from."""

        def decide(job: Any, st: Any, worker: int) -> int:
            kind, me = step(job, st, worker), self.sched.me
            if kind != codes.IDLE:
                me.locked_out = None  # the worker took a share without the lock
            elif self.case.workers > 1:  # None if the lock kept the worker out: it has then read nothing
                me.print = self.rank.fingerprint() if me.locked_out is None else None
            return kind

        return decide

    def by_rank(self, name: str) -> Callable[..., None]:
        """A replacement for a kernel of `arithmetic`: the method of this name of the rank whose actor runs."""
        return lambda kernels, call: getattr(self.rank, name)(call)

    def by_wire(self, name: str) -> Callable[..., None]:
        """A replacement for a function of `wire`, which calls the network's function or that of the copies to a GPU."""

        def call(address: int, *args: int) -> None:
            getattr(self.copies if address & (AREA - 1) == COPIES else self.network, name)(address, *args)

        return call

    # ---- events beside the steps

    def call(self, function: int, *_: int) -> int:
        """Replace `memory.call`, which calls a C function. The only such call is usleep, by which a progress thread
        waits."""
        rank = self.memory.rank
        if self.case.proxy:  # the progress thread makes progress if the proxy has made none for long
            self.memory.now += PROGRESS_NS
        wanted = self.case.proxy or not self.memory.value.get(private(rank, WIRE, 8 * wire.IN_CALL), 0)
        if wanted and self.network.wants(rank):
            self.sched.switch("sleep")
        else:
            self.sched.wait("sleeps")
        return 0

    def idle(self) -> None:
        """Let a worker that has nothing to do wait.

        Its wait for more rows to merge, and its polls before a check for poison, count as over at once.
        """
        actor = self.sched.me
        rank = self.ranks[actor.rank]
        st = rank.st
        if actor.locked_out is not None:
            self.memory.wait_for_lock()
            return
        running = actor.sweeping and st[words.PHASE] == codes.PHASE_RUN
        if running and not rank.looked_everywhere(actor):
            actor.blind += 1
            if actor.blind > BLIND:
                raise Livelock(f"{actor.name} waits and does not check every peer's poison\n{self.describe()}")
            st[words.IDLE_SWEEPS] = max(st[words.IDLE_SWEEPS], rank.job[words.MERGE_POLLS]) // 32 * 32 + 31
            self.sched.switch("idle")
            return
        actor.blind = 0
        if self.case.workers > 1 and actor.sweeping:
            now = self.look(rank)
            if actor.print != now:  # another worker has moved since this one decided
                actor.print = now
                actor.seen.clear()
                self.sched.switch("idle")
                return
        self.memory.idle()

    def rest(self) -> None:
        """Let a proxy that found nothing to do wait."""
        if self.network.wants(self.memory.rank):
            self.sched.switch("idle")
        else:
            self.memory.idle()

    def look(self, rank: Rank) -> int:
        """Wake a rank's waiting workers if the state that they decide from has changed. Returns its fingerprint."""
        now = rank.fingerprint()
        if rank.print != now:
            rank.print = now
            for actor in self.sched.actors:
                if actor.rank == rank.me and not actor.enabled and actor.sweeping:
                    self.sched.wake(actor)
        return now

    def released(self, at: int, old: int, new: int) -> None:
        """Note that a word was released."""
        place = self.memory.regions.place(at)
        if place.part == PRIVATE:
            shared = self.case.workers > 1 and at not in self.memory.local
            if new == 0 and shared and place.region in ("lock", "wire"):
                self.look(self.ranks[place.rank])
            return
        if place.region != "words":
            return
        me, peer = place.writer, place.rank if place.part != OUTBOX else place.peer
        self.checks.word(me, peer, place.offset // 8, old, new)

    def monotonic(self) -> float:
        """The time in seconds since the run began.

        Once a rank is lost, time also moves on while other ranks go on, so that their heartbeats do not hide the
        loss."""
        if self._lost is None and any(rank.lost for rank in self.ranks):
            self._lost = self.sched.steps
        if self._lost is None:
            return self.seconds
        return self.seconds + 2 * LATEST * (self.sched.steps - self._lost) / self.sched.bound

    def time_passes(self) -> bool:
        """If a rank is lost, move time on, so that timeouts run out. Returns whether an actor can then go on."""
        fault = self.case.fault
        lost = any(rank.lost for rank in self.ranks)
        if fault is None or not lost or self._passed >= ROUNDS_OF_TIME:
            return False
        self._passed += 1
        self.seconds += PASSING
        alive = [a for a in self.sched.actors if not a.done and a.flushing >= 0]
        # ranks inside a call of MPI, where their watchdogs act
        held = {a.rank for a in alive if self.ranks[a.flushing].stage == "gone"}
        self.checks.after_a_failure(held)
        if held:
            raise Aborted
        cut = [a for a in self.sched.actors if not a.done and a.sweeping and a.number == self.ranks[a.rank].caller]
        for actor in cut:
            actor.cut = True
            self.sched.wake(actor)
        return bool(cut)

    def doom(self, rank: int, steps: int) -> None:
        """Have a rank killed some steps from now."""
        self.sched.later[self.sched.steps + steps + 1] = lambda: self.kill(rank)

    def kill(self, rank: int) -> None:
        """End a rank's process, whatever its threads are doing."""
        for actor in self.sched.actors:
            if actor.rank == rank and not actor.done:
                actor.done, actor.enabled = True, False
        self.ranks[rank].stage = "gone"

    def describe(self) -> str:
        """What every actor waits for, as text."""
        lines = []
        before, self.sched.current = self.sched.current, None  # no actor shall count as the reader of these tables
        for rank in self.ranks:
            st, job = rank.st, rank.job
            names = ("PHASE", "UNREAD", "OWED", "UNSENT", "BLOCKS_LEFT")
            counts = ", ".join(f"{n} {st[getattr(words, n)]}" for n in names)
            state = f"{rank.stage} in call {rank.epoch}"
            if rank.stage == "work":
                with_whom = arrivals.awaited(job, st)
                state += f", waits for rank {with_whom}: {counts}"
            lines.append(f"rank {rank.me}: {state}")
        for actor in self.sched.actors:
            if not actor.done:
                lines.append(f"  {actor.name}: {waits(self.memory, actor)}")
        self.sched.current = before
        return "\n".join(lines)
