"""The engine of one communicator: the part that CPUs and GPUs share.

All layers and objects on a communicator share one runtime: its windows, its state, and the one open call. It grows to
the size that its largest user needs, while no call is open, and ends with its last user. `cpu/runtime.py` and
`cuda/runtime.py` add the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from ..engine import job as jobs
from ..engine import words
from ..engine.layout import EngineShape, PairLayout, StateLayout
from ..engine.poison import failure_of
from ..errors import (
    AristosError,
    ClosedError,
    EnvironmentProblem,
    InputError,
    MismatchError,
    OpenCallError,
    WaitTimeout,
)
from ..transport import two_levels
from ..transport.group import Group
from ..transport.meeting import CLOSES
from .background import Background
from .counters import Tables
from .failure import Failure, damaged_poison
from .windows import EngineMemory, readers

OPEN_CALL = (
    "a call is open on this communicator: wait() for what start() returned, or combine() what was dispatched, before"
    " the next call"
)
BUNDLE_PAIRS = 512  # most (token, choice) pairs of a bundle


class Runtime(ABC):
    """The engine of one communicator. forget: a function that is called once, when the last user has left.

    users: how many objects use it. open: whether a call is open. epoch: the epoch of the last call. caller: the number
    of the object that made the last call. threads: how many workers there are. version: how often memory was allocated;
    a job that was filled for an earlier version must be filled again.
    """

    def __init__(self, group: Group, forget: Callable[[Runtime], None] = lambda runtime: None) -> None:
        self.group = group
        self._forget = forget
        self._pid = os.getpid()
        self.cores, self._sharing = group.cores()
        self.threads = 1
        self.shape: EngineShape | None = None
        self.layout: PairLayout | None = None
        self.version = 0
        self.epoch = 0
        self.caller = 0
        self.users = 0
        self.objects = 0
        self.levels: int | str | None = None  # as the first object asked, see `settle_levels`
        self.open = False
        self.running: np.ndarray | None = None  # the job of the last call
        self._dropped: Callable[[], object] | None = None
        self.failure = Failure(group)
        self._memory: EngineMemory | None = None
        self._background: Background | None = None
        atexit.register(self._at_exit)

    # ------------------------------------------------------------ capacity

    @abstractmethod
    def require(self, shape: EngineShape, scratch: int, shared: int, threads: int) -> None:
        """Provide for `shape`, `threads` workers, `scratch` bytes for each worker, and `shared` bytes for all workers.

        Collective, while no call is open.
        """

    def grown(self, shape: EngineShape, threads: int) -> tuple[EngineShape, int, bool]:
        """(shape and workers that suffice for all users and the new one, whether a rank has less now). Collective."""
        self.refuse_open()
        workers = max(threads, self.threads)
        if self.shape is not None:
            shape = self.shape.union(shape)
        more = shape != self.shape or workers != self.threads
        return shape, workers, any(self.group.allgather(more, "the size of the engine"))

    def _adopt(self, memory: EngineMemory, tables: StateLayout, state: np.ndarray, workers: int) -> None:
        """Use new windows and a new state from now on. Counters start again."""
        self._memory, self.layout, self.shape = memory, memory.layout, memory.shape
        self.tables, self.state, self.threads = tables, state, workers
        self.counted = Tables(tables.starts, workers, self.group.world)
        self.epoch = 0
        self.version += 1

    def settle_levels(self, asked: int | str | None) -> None:
        """Settle the levels of the wire between nodes, once. Collective. asked: None if the object works with both.

        Raises InputError on every rank if an earlier object has asked for something else, and EnvironmentProblem if two
        levels are asked for and do not work.
        """
        problem: AristosError | None = None
        if self.levels is None:
            lacking = ""
            if asked not in (None, 1) and not self.group.nodes.single:
                lacking = two_levels.lacking(self.group)
                self.group.nodes = self.group.nodes if lacking else self.group.nodes.with_streams()
            if lacking and asked == 2:
                problem = EnvironmentProblem(f"levels=2 does not work here: {lacking}; use levels=1 or 'auto'")
            else:
                self.levels = asked or 1
        elif asked not in (None, self.levels):
            problem = InputError(
                f"levels must be {self.levels!r}, as for the other objects on this communicator, got {asked!r}:"
                " pass another communicator (comm.Dup())"
            )
        if problem is not None:
            problem.on_all_ranks = True
            raise problem

    def number_object(self) -> int:
        """A number for an object on this communicator.

        Ranks make objects in one order, so the number is equal on all.
        """
        self.objects += 1
        return self.objects

    # ------------------------------------------------------------ jobs

    @property
    def wire(self) -> int:
        """Address of the wire to remote peers, 0 if there are none; see `aristos/primitives/wire.py`."""
        return 0 if self._memory is None else self._memory.wire

    @abstractmethod
    def fill(self, job: np.ndarray) -> None:
        """Write into a job what is the same for every call on this runtime."""

    def fill_engine(self, job: np.ndarray, substrate: str, **values: int) -> None:
        """Write a job's part `engine`: what all substrates share, and `values`."""
        assert self.shape is not None
        assert self._memory is not None
        jobs.fill_engine(
            job,
            substrate,
            self.shape,
            self.tables,
            rank=self.group.rank,
            world=self.group.world,
            all_workers=self.threads,
            remote=len(self._memory.remote),
            **readers(self.group.nodes, self.group.rank),
            bundle_pairs=BUNDLE_PAIRS,
            layout=self.version,
            **values,
        )

    def _blank_job(self) -> np.ndarray:
        """A job without a layer, for work that concerns only the engine."""
        job = np.zeros(jobs.size(0, 0), np.int64)
        self.fill(job)
        jobs.update(job, epoch=self.epoch)
        return job

    # ------------------------------------------------------------ the open call

    def refuse_unusable(self) -> None:
        """Raise ClosedError if a call has failed, or if this process is a fork."""
        if os.getpid() != self._pid:
            raise ClosedError(
                f"this layer was made in process {self._pid}, and this process is a fork of that one, without its"
                " threads: make layers after forking, or start processes with spawn"
            )
        if self.broken is not None:
            raise ClosedError(
                f"this engine is unusable, because an earlier call failed ({self.broken}): make a new layer"
            )

    def refuse_open(self) -> None:
        """Raise unless the engine is free for a collective step: no call open, none failed, not a fork's copy."""
        self.end_dropped_call()
        self.refuse_unusable()
        if self.open:
            raise OpenCallError(OPEN_CALL)

    def drop_call(self, end: Callable[[], object]) -> None:
        """Note that the handle of the open call was dropped. end: a function that waits until the call has ended."""
        self._dropped = end

    def end_dropped_call(self) -> None:
        """Wait until a call whose handle was dropped has ended, and close it."""
        if self._dropped is not None and os.getpid() == self._pid:
            self._dropped()
            self._dropped, self.open = None, False

    def enter(self, caller: int) -> None:
        """Open a call of the object with the number `caller`."""
        self.refuse_open()
        self.open, self.caller = True, caller
        self.epoch += 1

    def leave(self) -> None:
        """Undo `enter`, for a call that no other rank has seen."""
        self.open = False
        self.epoch -= 1

    def background(self) -> Background:
        """The thread that makes calls for `start`."""
        if self._background is None:
            self._background = Background()
        return self._background

    # ------------------------------------------------------------ failure

    @property
    def broken(self) -> str | None:
        """Why this engine is unusable; None if it is not."""
        return self.failure.reason

    @contextlib.contextmanager
    def failing(self, job: np.ndarray) -> Iterator[None]:
        """A block in which an exception makes the engine unusable, so that no rank and no worker keeps waiting."""
        self.watch(job)
        try:
            yield
        except BaseException as error:
            self.fail_call(job, error)
            raise

    def watch(self, job: np.ndarray) -> None:
        """Keep the job of the call that is about to run, for `standing`."""
        if job.size and job[words.SLOT_START] != 0:  # 0: a job of the engine alone, without a layer
            self.running = job

    def fail_call(self, job: np.ndarray, error: BaseException) -> None:
        """Make the engine unusable, because an exception has ended a call: see `failing`."""
        if isinstance(error, WaitTimeout):
            error.add_note(self.standing())
        self._fail(job, error, "its last call failed")

    def give_up(self, error: BaseException) -> None:
        """Notify peers at once that this rank leaves because of an exception in user code."""
        if self.broken is None and self.group.world > 1 and not self._is_foreign():
            ours = isinstance(error, AristosError)
            self._fail(self._blank_job(), error, "it cannot go on" if ours else "its program raised outside of a call")

    def cannot_make(self, error: BaseException, part: bool = False) -> None:
        """Leave the collective that makes an object, because this rank cannot make it: see `Failure.cannot_make`."""
        if not self._is_foreign():
            self.failure.cannot_make(error, part)

    def _fail(self, job: np.ndarray, error: BaseException, why: str) -> None:
        self.failure.record(error, why, lambda origin, cause: self._notify_peers(job, error, origin, cause))
        self.open = False

    def standing(self) -> str:
        """A text about where the last call stands on this rank, see standing.py.

        Any thread may call this method, which raises no exception.
        """
        me = f"rank {self.group.rank} of {self.group.world}"
        if self.running is None:
            return f"{me}: no call yet"
        try:
            return self._standing(self.running)
        except Exception as error:  # the caller has another error to report
            return f"{me}: the state of its call cannot be read: {type(error).__name__}: {error}"

    @abstractmethod
    def _standing(self, job: np.ndarray) -> str:
        """The text of `standing.describe` for this rank's state. job: the job of the last call."""

    @abstractmethod
    def _notify_peers(self, job: np.ndarray, error: BaseException, origin: int, cause: int) -> None:
        """Poison the engine of every peer, unless this was done where the error arose."""

    # ------------------------------------------------------------ the end

    def release(self) -> None:
        """Remove a user. The last one frees everything. Collective."""
        self.users -= 1
        if self.users or self._is_foreign():
            return
        self.end_dropped_call()
        self._forget(self)
        atexit.unregister(self._at_exit)
        together = self.broken is None and self._all_leave()
        self._end_threads()
        if together:
            with self.group.bounded("the other ranks to free windows"):
                self.group.watch_calls(None)
                if self._memory is not None:
                    self._memory.close()
                self.group.free()
        if self.broken is None:
            self._free()

    def _is_foreign(self) -> bool:
        """Whether this is a fork's copy, or MPI has ended: then other ranks must not be notified."""
        if os.getpid() != self._pid:
            return True
        if self.group.comm is None:
            return False
        from mpi4py import MPI

        return bool(MPI.Is_finalized())

    def _at_exit(self) -> None:
        """Notify ranks that make a call without this one, because the program ends without close()."""
        if self.users and not self.open:
            self.users, failed = 1, self.broken is not None
            self.release()
            if self.broken is not None and not failed:
                self.group.abort_now()

    def _all_leave(self) -> bool:
        """Wait until every rank has released the engine. False if one has failed, or makes a call instead."""
        if self.layout is None or self.group.world == 1:
            return True
        job = self._blank_job()
        peers = [p for p in range(self.group.world) if p != self.group.rank]
        try:
            for _ in self.group.until_all_come("the other ranks to close", kind=CLOSES):
                self._receive(job)
                if not self._all_stay(job, peers):
                    return False
        except MismatchError as apart:
            self.give_up(apart)
            return False
        return True

    def _all_stay(self, job: np.ndarray, peers: list[int]) -> bool:
        """Whether no peer has failed, and none makes a call while this rank closes. Gives up if one makes a call."""
        for p in peers:
            if poison := self._read_word(job, p, words.POISON):
                _, origin, cause = failure_of(poison)
                damaged = damaged_poison(self.group.rank, self.group.world, self.epoch, p, origin, cause)
                if damaged is not None:
                    self.give_up(damaged)
                return False
            if self._read_word(job, p, words.ANNOUNCED) > self.epoch:
                self.give_up(
                    MismatchError(
                        f"rank {self.group.rank} closes a layer, and rank {p} makes a call: make the same calls on all"
                        " ranks before close()"
                    )
                )
                return False
        return True

    @abstractmethod
    def _receive(self, job: np.ndarray) -> None:
        """Read what remote peers have put, outside a call."""

    @abstractmethod
    def _read_word(self, job: np.ndarray, peer: int, word: int) -> int:
        """A word that a peer wrote for this rank, outside a call."""

    def _end_threads(self) -> None:
        """End the threads of this engine."""
        if self._background is not None:
            self._background.close()

    @abstractmethod
    def _free(self) -> None:
        """Free the memory that this rank alone uses."""
