"""What all layers and objects on one communicator share: windows, state, workers, and the one open call.

A runtime grows to the largest of its users while no call is open, and ends with the last of them.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import OVERDUE
from ..engine import arrivals, codes, column_runs, outbox, packing, steps, words
from ..engine.experts import GROUP
from ..engine.layout import PairLayout, Shape, StateLayout, lines, word_from
from ..errors import ClosedError, MismatchError, OpenCallError, PoisonedError, WaitTimeout
from ..kernels.cpu.panels import row_stride
from ..primitives import wire
from ..primitives.buffers import aligned
from ..primitives.compile import warm_up
from ..primitives.memory import load, load_acquire
from ..transport.group import Group, warn_if_launched
from .counters import Tables
from .cpu.loop import run_alone, work
from .cpu.workers import Background, Workers
from .windows import Memory, window_bytes

TILE = 96  # most rows of a tile
BATCH = 192  # most rows of a run of the expert kernel: more read the weights less often, until x leaves the cache
RUN_FLOPS = 5e9  # most work of a run: a worker comes back to look around within about 50 ms
RUN_LEAST = 24  # but no fewer rows than make the run bound by arithmetic and not by reading weights
MERGE_ROWS = 32  # fewer rows than this wait a little for more of their expert
PATIENCE = 200  # idle sweeps that they wait
PAUSE_NS = 100_000_000  # compiled code comes back to Python at least this often
ALONE, CROWDED = (2000, 50_000), (4, 100)  # looks in vain after which a worker yields its core, and sleeps
LAST_WORDS_SECONDS = 0.1  # how long a failing rank helps its poison on the way to other nodes
FAR_BLOCK = 512  # most (token, choice) pairs of a block for a far owner
CAUSES = {
    codes.CAUSE_TIMEOUT: "a wait ran out",
    codes.CAUSE_INTERRUPT: "it was interrupted",
    codes.CAUSE_ERROR: "it failed",
}

_runtimes: dict[tuple[int, str], Runtime] = {}
_keyval: int | None = None
_numbers = itertools.count()


def signature(job: np.ndarray, state: np.ndarray, worker: bool = True) -> tuple:
    """Numba types of a step's arguments."""
    from numba import typeof, types

    return (typeof(job), typeof(state), types.int64) if worker else (typeof(job), typeof(state))


class Runtime:
    """The engine of one communicator."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._pid = os.getpid()
        self.cores, self._sharing = group.cores()
        self.threads = 1
        self.shape: Shape | None = None
        self.layout: PairLayout | None = None
        self.version = 0  # counts re-allocations: jobs made for an earlier one are refilled
        self.epoch = 0
        self.users = 0
        self.objects = 0
        self.open = False
        self.broken: str | None = None
        self.events: np.ndarray | None = None
        self._memory: Memory | None = None
        self._lock = aligned((8,), np.int64)
        self._workers: Workers | None = None
        self._failing = threading.Lock()
        self._background: Background | None = None
        self._scratch = aligned((0,), np.uint8)
        self._scratch_step = self._shared = 0
        atexit.register(self._at_exit)

    # ------------------------------------------------------------ life

    def require(self, shape: Shape, scratch: int, shared: int, threads: int) -> None:
        """Make room for `shape`, `scratch` bytes a worker, `shared` bytes for all of them, and `threads` workers.

        Collective, while no call is open.
        """
        shape, workers, grown = self.grown(shape, threads)
        tables = StateLayout(shape, workers, BATCH)
        step, room = max(self._scratch_step, lines(scratch)), max(self._shared, shared)
        sizes = window_bytes(shape, self.group.nodes, self.group.rank) if grown else (0, 0, 0)
        self.group.check_room(*sizes[:2], sizes[2] + 8 * tables.words * grown + step * workers + room)
        if (step, room, workers) != (self._scratch_step, self._shared, self.threads) or not self._scratch.size:
            self._scratch = aligned((step * workers + room,), np.uint8)
            self._scratch_step, self._shared = step, room
            self.version += 1
        if grown:
            self._allocate(shape, workers)

    def grown(self, shape: Shape, threads: int) -> tuple[Shape, int, bool]:
        """(shape, workers) that serve all users and the new one, and whether any rank has less; collective."""
        self.refuse_open()
        workers = max(threads, self.threads)
        if self.shape is not None:
            shape = self.shape.union(shape)
        more = shape != self.shape or workers != self.threads
        return shape, workers, any(self.group.allgather(more, "the size of the engine"))

    def _allocate(self, shape: Shape, workers: int) -> None:
        """New windows and a new state; counters start again. The old ones stay if there is no room for the new."""
        tables = StateLayout(shape, workers, BATCH)
        memory = Memory(self.group, shape)
        state = aligned((tables.words,), np.int64)
        state[:] = 0
        memory.fill(state, tables.starts)
        with self.group.bounded("the other ranks to free windows"):
            for old in (self._memory, self._workers):
                if old is not None:
                    old.close()
        self.group.watch_calls(memory.calling)
        self._memory, self.layout, self.tables, self.state, self.shape = memory, memory.layout, tables, state, shape
        self.threads = workers
        self.counted = Tables(tables.starts, workers, self.group.world)
        self._lock[0] = 0
        self.epoch = 0
        self.version += 1
        self._compile()
        self.group.meet("the other ranks to compile kernels")
        self._workers = Workers(workers)

    def _compile(self) -> None:
        job = np.zeros(words.JOB_WORDS + 1, np.int64)
        step, plain = signature(job, self.state), signature(job, self.state, worker=False)
        warm_up(
            [
                (work, step),
                (run_alone, plain),
                (packing.begin, plain),
                (steps.heartbeat, step),
                (arrivals.poisoned, plain),
                (arrivals.standing, plain),
                (outbox.listen, plain),
                (outbox.last_words, plain),
            ]
        )

    @property
    def wire(self) -> int:
        """Address of the wire to far peers, 0 without any; see `aristos/primitives/wire.py`."""
        return 0 if self._memory is None else self._memory.wire

    def number_object(self) -> int:
        """A number for an object on this communicator; collective order makes it the same on every rank."""
        self.objects += 1
        return self.objects

    def fill(self, job: np.ndarray) -> None:
        """Write into a job what every call on this runtime has in common."""
        assert self._memory is not None
        self.fill_shape(job)
        job[words.TILE], job[words.BATCH], job[words.MERGE_ROWS], job[words.MERGE_POLLS] = (
            TILE,
            BATCH,
            MERGE_ROWS,
            PATIENCE,
        )
        limit = int(RUN_FLOPS / max(1, 4 * job[words.HIDDEN] * job[words.FFN]))
        job[words.RUN_ROWS] = min(BATCH, max(RUN_LEAST, limit // GROUP * GROUP))
        crowded = self._sharing > 1 or self.threads > self.cores
        job[words.PAUSE_NS], job[words.SPINS], job[words.YIELDS] = PAUSE_NS, *(CROWDED if crowded else ALONE)
        job[words.LOCK], job[words.STATE] = self._lock.ctypes.data, self.state.ctypes.data
        job[words.SCRATCH] = self._scratch.ctypes.data
        job[words.SCRATCH_STEP] = self._scratch_step
        job[words.RUNS], job[words.SHARED_ROWS] = 1, column_runs.MOST_ROWS
        job[words.UP_SHARES], job[words.DOWN_SHARES] = (
            column_runs.shares(int(job[words.FFN])),
            column_runs.shares(int(job[words.HIDDEN])),
        )
        job[words.REMOTE], job[words.WIRE], job[words.REMOTE_BLOCK] = (
            len(self._memory.far),
            self._memory.wire,
            FAR_BLOCK,
        )

    def fill_shape(self, job: np.ndarray) -> None:
        """Write what does not depend on the substrate: where everything lies, and how much of it there is."""
        assert self.layout is not None
        assert self.shape is not None
        self.layout.fill(job)
        self.tables.fill(job)
        job[words.RANK], job[words.WORLD] = self.group.rank, self.group.world
        job[words.WORKERS] = job[words.ALL_WORKERS] = self.threads
        job[words.STRIDE], job[words.RING_ROWS], job[words.SLOTS] = (
            self.shape.stride,
            self.shape.ring_rows,
            self.shape.slots,
        )
        job[words.RETURN_STRIDE] = row_stride(int(job[words.HIDDEN]))
        job[words.MAX_HELD] = self.shape.max_local

    def release(self) -> None:
        """One user less; the last one frees everything. Collective."""
        self.users -= 1
        if self.users or self._is_foreign():
            return
        _forget(self)
        atexit.unregister(self._at_exit)
        together = self.broken is None and self._all_leave()
        for pool in (self._background, self._workers):
            if pool is not None:
                pool.close()
        if together:
            with self.group.bounded("the other ranks to free windows"):
                self.group.watch_calls(None)
                if self._memory is not None:
                    self._memory.close()
                self.group.free()

    def _is_foreign(self) -> bool:
        """Is this a fork's copy, or has MPI ended? Then there is nothing to be told to others."""
        if os.getpid() != self._pid:
            return True
        if self.group.comm is None:
            return False
        from mpi4py import MPI

        return bool(MPI.Is_finalized())

    def _at_exit(self) -> None:
        """A program that ends and has not closed: ranks that make a call without this one learn it."""
        if self.users and not self.open:
            self.users = 1
            self.release()

    def _all_leave(self) -> bool:
        """Wait for every rank to give the engine back; False if one has failed, or makes a call instead."""
        if self.layout is None or self.group.world == 1:
            return True
        job = self._blank_job()
        peers = [p for p in range(self.group.world) if p != self.group.rank]
        for _ in self.group.until_all_come("the other ranks to close", OVERDUE * self.group.timeout):
            self._listen(job)
            if any(self._word(job, p, words.POISON) for p in peers):
                return False
            for p in peers:
                if self._word(job, p, words.ANNOUNCED) > self.epoch:
                    self.give_up(MismatchError(f"rank {self.group.rank} closes, and rank {p} makes a call"))
                    return False
        return True

    def _word(self, job: np.ndarray, peer: int, word: int) -> int:
        """A word that a peer wrote for this rank, outside a call."""
        return int(load_acquire(int(word_from(job, self.state, peer, word))))

    def _listen(self, job: np.ndarray) -> None:
        """Read what far peers have put, outside a call."""
        if job[words.REMOTE] and wire.take(job[words.WIRE]):
            outbox.listen(job, self.state)
            wire.leave(job[words.WIRE])

    def _tell_far_peers(self, job: np.ndarray) -> None:
        """Put the poison word to far peers, and give MPI a moment to move it."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        told = False
        while time.monotonic() < until:
            if wire.take(job[words.WIRE]):
                if not told:
                    outbox.last_words(job, self.state)
                    told = True
                outbox.listen(job, self.state)
                wire.leave(job[words.WIRE])
            time.sleep(0.001)

    # ------------------------------------------------------------ calls

    def refuse_open(self) -> None:
        """Raise unless this engine is free for a collective step: no call open, none failed, not a fork's copy."""
        if os.getpid() != self._pid:
            raise ClosedError(
                f"this layer was made in process {self._pid}, and this is a fork of it, without its threads:"
                " make layers after forking, or start processes with spawn"
            )
        if self.broken is not None:
            raise ClosedError(f"an earlier call failed ({self.broken}), so this engine is unusable: make a new layer")
        if self.open:
            raise OpenCallError(
                "a call is open on this communicator: wait() for what start() gave, or combine() what was dispatched,"
                " before the next one"
            )

    def enter(self) -> None:
        """Open a call."""
        self.refuse_open()
        self.open = True
        self.epoch += 1

    def leave(self) -> None:
        """Take an entered call back, of which no other rank has heard yet."""
        self.open = False
        self.epoch -= 1

    def give_up(self, error: BaseException) -> None:
        """This rank leaves because of an exception of its user's: peers that wait for it learn that at once."""
        if self.broken is None and self.group.world > 1 and not self._is_foreign():
            self._fail(self._blank_job(), error)

    def _blank_job(self) -> np.ndarray:
        job = np.zeros(words.JOB_WORDS + 1, np.int64)
        self.fill(job)
        job[words.EPOCH] = self.epoch
        return job

    def background(self) -> Background:
        """The thread that makes calls for `start`."""
        if self._background is None:
            self._background = Background()
        return self._background

    def run(self, job: np.ndarray, timeout: float) -> None:
        """Run an entered call to its end as worker 0; it stays open until its result has been taken."""
        with self.failing(job), self.tending():
            if job[words.WORKERS] == 1:
                job[words.EPOCH] = self.epoch
                code = run_alone(job, self.state)
                if code != codes.RAN:
                    self.go_on(job, timeout, code=code)
            else:
                self.begin(job)
                self.go_on(job, timeout)

    @contextlib.contextmanager
    def tending(self) -> Iterator[None]:
        """Workers look after MPI's progress in the block, the pacing thread does before and after."""
        assert self._memory is not None
        self._memory.in_call(True)
        try:
            yield
        finally:
            self._memory.in_call(False)

    @contextlib.contextmanager
    def failing(self, job: np.ndarray) -> Iterator[None]:
        """What goes wrong in the block leaves no rank and no worker waiting; the engine is unusable after."""
        try:
            yield
        except BaseException as error:
            self._fail(job, error)
            raise

    def begin(self, job: np.ndarray) -> None:
        """Give an entered call its epoch, clear the tables, and let the other workers in."""
        job[words.EPOCH] = self.epoch
        packing.begin(job, self.state)
        assert self._workers is not None
        self._workers.release(job, self.state)

    def go_on(self, job: np.ndarray, timeout: float, code: int | None = None) -> int:
        """Run steps as worker 0 until the call ends or is ALL_ANNOUNCED; `code`: what they came back with last."""
        assert self._workers is not None
        patience: _Patience | None = None
        if code is None:
            code = work(job, self.state, 0)
        while code == codes.PAUSED:
            patience = patience or _Patience(self, job, timeout)
            patience.check()
            code = work(job, self.state, 0)
        if code == codes.POISONED:
            self._raise_poison(job)
        if code == codes.RAN:
            self._workers.gather()
            steps.heartbeat(job, self.state, -1)
        return code

    def _raise_poison(self, job: np.ndarray) -> None:
        peer = int(arrivals.poisoned(job, self.state))
        if peer < 0:
            raise PoisonedError(f"rank {self.group.rank}: a worker failed in epoch {self.epoch}")
        told, cause = divmod(load(int(word_from(job, self.state, peer, words.POISON))), 1 << codes.CAUSE_BITS)
        epoch, origin = divmod(told, 1 << codes.ORIGIN_BITS)
        error = PoisonedError(
            f"rank {self.group.rank}: rank {origin} gave up in epoch {epoch} because {CAUSES.get(cause, cause)}"
            f" (told by rank {peer}); its own message says more"
        )
        error.origin, error.cause = origin, cause  # type: ignore[attr-defined]
        raise error

    def _fail(self, job: np.ndarray, error: BaseException) -> None:
        cause = getattr(error, "cause", codes.CAUSE_ERROR)  # told on as it was told
        if isinstance(error, WaitTimeout):
            cause = codes.CAUSE_TIMEOUT
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            cause = codes.CAUSE_INTERRUPT
        with self._failing:  # the caller's thread and the one behind `start` may both come; the first says why
            first = self.broken is None
            self.open = False
            if first:
                self.broken = f"{type(error).__name__}: {error}"
                self.group.abort_at_exit(self.broken)
                steps.poison(job, self.state, getattr(error, "origin", self.group.rank), cause)
                if job[words.REMOTE]:
                    self._tell_far_peers(job)
        assert self._workers is not None
        self._workers.gather()


class _Patience:
    """Bounds a call: raises when the rank that is waited for has not moved for too long."""

    def __init__(self, runtime: Runtime, job: np.ndarray, timeout: float) -> None:
        self.runtime, self.job, self.timeout = runtime, job, timeout
        self.seen: Any = None
        self.since = time.monotonic()
        self.warned = False

    def check(self) -> None:
        """Call after each slice of a call that is not done yet."""
        runtime, job, state = self.runtime, self.job, self.runtime.state
        peer, done, owed = arrivals.standing(job, state)
        peer, done = int(peer), int(done)
        epoch, phase = self._published(peer)
        now = time.monotonic()
        seen = (done, peer, epoch, phase)
        if seen != self.seen:
            self.seen, self.since, self.warned = seen, now, False
            return
        waited = now - self.since
        if waited < self.timeout:
            return
        if peer == runtime.group.rank:
            raise WaitTimeout(
                f"rank {peer}: none of its own workers has moved for {waited:.1f} s in epoch {runtime.epoch}"
            )
        halfway = job[words.MODE] == codes.MODE_COMBINE
        mute = halfway and state[words.remote(job, peer)] != 0  # it cannot say that it is outside, between the halves
        inside = phase >= 0 and epoch == runtime.epoch and not mute
        if inside or waited > OVERDUE * self.timeout:
            raise WaitTimeout(self._message(peer, owed, epoch, phase, waited))
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"rank {runtime.group.rank} has waited {waited:.3g} s for rank {peer}, which has not"
                f" {'combined' if halfway else 'made its call'} in epoch {runtime.epoch} yet;"
                f" it gives up after {OVERDUE * self.timeout:.3g} s",
                stacklevel=2,
            )

    def _published(self, peer: int) -> tuple[int, int]:
        if peer == self.runtime.group.rank:
            return self.runtime.epoch, 0
        phase = load_acquire(int(word_from(self.job, self.runtime.state, peer, words.AT_PHASE)))
        return load_acquire(int(word_from(self.job, self.runtime.state, peer, words.AT_EPOCH))), phase

    def _message(self, peer: int, owed: tuple, epoch: int, phase: int, waited: float) -> str:
        me = self.runtime.group.rank
        announced, left, read, seen, sent = map(int, owed)
        if announced == codes.UNANNOUNCED:
            what = f"its announcement of epoch {self.runtime.epoch}"
        elif left > 0:
            what = f"{left} announced rows after tile {read}"
        else:
            what = f"the return of tile {seen} of {sent} sent"
        return (
            f"rank {me} waited {waited:.1f} s (timeout {self.timeout:g} s) for rank {peer} in epoch"
            f" {self.runtime.epoch}: {what}; last seen of it: epoch {epoch}, phase {phase}"
        )


def attach(comm: Any, timeout: float, ranks_per_node: int | None = None, backend: str = "cpu") -> Runtime:
    """The runtime of a communicator and backend, made on first use; collective. Every `attach` needs one `release`."""
    if comm is None:
        warn_if_launched()
    key = (_key(comm), backend)
    runtime = _runtimes.get(key)
    if runtime is None or runtime.broken is not None:
        group = Group(comm, timeout, ranks_per_node)
        for rank, theirs in enumerate(group.allgather(backend, "their backends")):
            if theirs != backend:
                raise MismatchError(
                    f"rank {group.rank} has backend {backend!r} and rank {rank} has {theirs!r}: pass backend= on all"
                )
        runtime = _runtimes[key] = _runtime_of(backend)(group)
    runtime.group.timeout = max(runtime.group.timeout, timeout)
    runtime.users += 1
    return runtime


def _runtime_of(backend: str) -> type[Runtime]:
    if backend == "cpu":
        return Runtime
    from .cuda.runtime import CudaRuntime  # needs numba-cuda

    return CudaRuntime


def _key(comm: Any) -> int:
    """A number for a communicator that is not given to another one while it lives."""
    global _keyval
    if comm is None:
        return -1
    from mpi4py import MPI

    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval()
    number = comm.Get_attr(_keyval)
    if number is None:
        number = next(_numbers)
        comm.Set_attr(_keyval, number)
    return number


def _forget(runtime: Runtime) -> None:
    for key, value in list(_runtimes.items()):
        if value is runtime:
            del _runtimes[key]
