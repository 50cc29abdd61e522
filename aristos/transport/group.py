"""The ranks of an EP group, and the few blocking MPI calls that Aristos makes: each is bounded by a watchdog."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..config import OVERDUE
from ..errors import EnvironmentProblem, MemoryProblem
from ..host import launch_environment
from ..host.nodes import Nodes
from .capacity import Need, shortage
from .rma import RmaWindow
from .shm import ShmWindow
from .window import SelfWindow, Window

Calling = Callable[[], tuple[int, int, list[int]]]
ABORTED = 86  # exit code of a job that ends itself
NAMED = 8  # most ranks that a message names
DRAIN_SECONDS = 0.2  # for the launcher's pipes


def end_job(comm: Any, code: int) -> None:
    """MPI_Abort, once the launcher has had time to forward what was said: some lose what is still in their pipes."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    time.sleep(DRAIN_SECONDS)
    comm.Abort(code)


def until_all_are_in(comm: Any) -> Iterator[None]:
    """A barrier to loop over, which hears signals and can be left: it yields until every rank of `comm` is in it."""
    barrier = comm.Ibarrier()
    while not barrier.Test():
        yield


class Watchdog:
    """Ends the job when a blocking MPI call takes longer than it may, naming who waited for what."""

    def __init__(self, abort: Any, who: str) -> None:
        self._abort, self._who = abort, who
        self._wait: tuple[str, float, float] | None = None  # what, since, limit
        self._calls: tuple[Calling, Callable[[], float]] | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    @contextlib.contextmanager
    def watch(self, what: str, limit: float) -> Iterator[None]:
        """Bound the MPI call in the block to `limit` seconds."""
        self._start()
        self._wait = (what, time.monotonic(), limit)
        try:
            yield
        finally:
            self._wait = None

    def calls(self, ask: Calling | None, limit: Callable[[], float]) -> None:
        """Bound puts and flushes, which compiled code makes; ask: see RmaWindow.calling."""
        self._calls = None if ask is None else (ask, limit)
        if ask is not None:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aristos-watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.25):
            wait = self._wait
            if wait is not None and time.monotonic() - wait[1] > wait[2]:
                what, since, limit = wait
                self._say(since, limit, what, "a rank is missing or in another collective call")
            if self._calls is not None:
                ask, limit_of = self._calls
                try:
                    peer, since_ns, others = ask()
                except EnvironmentProblem as failure:
                    self._end_job(f"ends: {failure}")
                    continue
                if peer >= 0 and time.monotonic() - since_ns * 1e-9 > limit_of():
                    what = f"rank {peer} to take in what is put (MPI_Put, MPI_Win_flush)"
                    if others:
                        what += f"; puts to {' and '.join(f'rank {r}' for r in others[:NAMED])} are under way too"
                    why = "one of these is stopped, gone, or makes no progress in MPI"
                    self._say(since_ns * 1e-9, limit_of(), what, why)

    def _say(self, since: float, limit: float, what: str, why: str) -> None:
        waited = f"{time.monotonic() - since:.1f} s (limit {limit:g} s)"
        self._end_job(f"waited {waited} for {what}; {why}")

    def _end_job(self, why: str) -> None:
        print(f"aristos: {self._who} {why}; aborting the job", file=sys.stderr, flush=True)
        self._abort()


class Group:
    """An EP group: rank, world, and collectives that cannot hang silently. `comm` None is one rank without MPI.

    ranks_per_node: pretend nodes of so many ranks each, instead of asking MPI who shares memory.
    """

    def __init__(self, comm: Any = None, timeout: float = 120.0, ranks_per_node: int | None = None) -> None:
        self.timeout, self.ranks_per_node = timeout, ranks_per_node
        self.comm: Any = None
        self.node: Any = None
        self.rank, self.world = 0, 1
        self.nodes = Nodes.of(1)
        if comm is None:
            return
        self.rank, self.world = comm.Get_rank(), comm.Get_size()
        self._watchdog = Watchdog(lambda: end_job(comm, ABORTED), f"rank {self.rank}")
        self.meet("the other ranks to make a layer", comm)
        with self._watchdog.watch("the other ranks to make a layer (MPI_Comm_dup)", timeout):
            self.comm = comm.Dup()
            self.nodes, self.node = Nodes.shared(self.comm, ranks_per_node)

    def allgather(self, value: Any, what: str) -> list[Any]:
        """Everybody's `value`, in rank order."""
        if self.comm is None:
            return [value]
        self.meet(f"the other ranks ({what})")
        with self._watchdog.watch(f"the other ranks ({what})", self.timeout):
            return self.comm.allgather(value)

    @contextlib.contextmanager
    def bounded(self, what: str, limit: float | None = None) -> Iterator[None]:
        """Bound a blocking MPI call in the block to `limit` seconds, or the group's timeout."""
        if self.comm is None:
            yield
        else:
            with self._watchdog.watch(what, limit or self.timeout):
                yield

    def meet(self, what: str, comm: Any = None) -> None:
        """Wait for all ranks before a blocking collective of MPI, which hears no Ctrl-C.

        A rank that is late may be in user code, or compile: past the timeout there is a warning, and the job goes down
        after OVERDUE of it. comm: the caller's communicator, as long as there is none of its own.
        """
        start, warned = time.monotonic(), False
        for _ in self.until_all_come(what, OVERDUE * self.timeout, comm):
            waited = time.monotonic() - start
            if waited > self.timeout and not warned:
                warned = True
                warnings.warn(
                    f"rank {self.rank} has waited {waited:.3g} s for {what}: one is still in user code, or compiles;"
                    f" it gives up after {OVERDUE * self.timeout:.3g} s",
                    stacklevel=2,
                )

    def until_all_come(self, what: str, limit: float, comm: Any = None) -> Iterator[None]:
        """A barrier to loop over: comes back every now and then until every rank is in it; `limit` seconds at most."""
        comm = comm or self.comm
        if comm is None:
            return
        with self._watchdog.watch(what, limit):
            for tries, _ in enumerate(until_all_are_in(comm)):
                yield
                time.sleep(0 if tries < 99 else 0.001)

    def check_room(self, near: int, far: int = 0, private: int = 0) -> None:
        """Raise MemoryProblem on every rank if a machine cannot hold what its ranks need, in bytes; collective."""
        problem = shortage(self.allgather(Need.here(near, far, private), "the size of the windows"))
        if problem is not None:
            raise MemoryProblem(problem)

    def window(self, nbytes: int) -> Window:
        """A window of `nbytes` for the ranks of this node, `base` in rank order; collective."""
        if self.node is None:
            return SelfWindow(nbytes)
        with self.bounded("the other ranks to allocate windows"):
            return ShmWindow(self.node, nbytes)

    def far_window(self, nbytes: int) -> RmaWindow:
        """A window of `nbytes` that ranks of other nodes put into; collective."""
        with self.bounded("the other ranks to allocate windows"):
            return RmaWindow(self.comm, nbytes)

    def watch_calls(self, calling: Calling | None) -> None:
        """End the job if a put or a flush takes longer than the timeout; calling: see RmaWindow.calling."""
        if self.comm is not None:
            self._watchdog.calls(calling, lambda: self.timeout)

    def cores(self) -> tuple[int, int]:
        """(cores this rank may use divided by the ranks that share them, at least 1; ranks a core is shared by)."""
        mine = frozenset(os.sched_getaffinity(0))
        masks = self.allgather((os.uname().nodename, mine), "core masks")
        sharing = sum(1 for host, mask in masks if host == os.uname().nodename and mask & mine)
        return max(1, len(mine) // sharing), -(-sharing // len(mine))

    def abort_at_exit(self, why: str) -> None:
        """End the job when this process ends: after a failed call a peer may never come to MPI_Finalize."""
        if self.comm is None:
            return
        comm, who, pid = self.comm, f"rank {self.rank}", os.getpid()

        def abort() -> None:
            if os.getpid() != pid:
                return  # a fork's child ends, and not its parent's job
            print(f"aristos: {who} ends the job, because its last call failed ({why})", file=sys.stderr, flush=True)
            end_job(comm, ABORTED)

        atexit.register(abort)

    def free(self) -> None:
        """Give the communicator back; collective."""
        if self.comm is not None:
            self.node.Free()
            self.comm.Free()
            self.comm = self.node = None
            self._watchdog.close()


def warn_if_launched() -> None:
    """Warn a task of several that computes alone."""
    started = launch_environment.started_as()
    if started is not None and started[1] > 1:
        warnings.warn(
            f"comm=None in one of {started[1]} tasks that {started[0]} started: every task computes alone;"
            " pass comm=MPI.COMM_WORLD to share the experts",
            stacklevel=5,
        )
