"""The ranks of a benchmark, as a thin layer over COMM_WORLD that also works without any MPI library.

The module adds a barrier whose waiters sleep, so that idle ranks leave the cores to ranks that are measured. It also
adds an agreement on the exit, with a time limit. Every wait is bounded. Timed data does not pass through this module.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import WaitTimeout
from ..host import mpi_world
from ..host.nodes import Nodes
from .watch import Watch

LIMIT = 300.0  # seconds that a rank may wait for others; the limit is long because the first run compiles
GONE = 3  # exit code if other ranks do not come in time


class World:
    """The ranks of a benchmark.

    comm: an mpi4py communicator, or None for one process without MPI. ranks_per_node: pretend that nodes have this many
    ranks. limit: seconds that a rank may wait for others outside a layer's calls, which have another limit. After that
    a barrier raises WaitTimeout, and a blocking MPI call ends the job. waits: the options of layers that `--timeout`
    sets. watch: the bars that show calls while they are measured, if `watch_calls` was called.
    """

    def __init__(
        self, comm: Any = None, ranks_per_node: int | None = None, limit: float = LIMIT, timeout: float | None = None
    ) -> None:
        self.waits: dict[str, Any] = {} if timeout is None else {"timeout": timeout, "absent_timeout": timeout}
        self.comm, self.ranks_per_node, self._limit = comm, ranks_per_node, limit
        self.rank: int = comm.Get_rank() if comm is not None else 0
        self.size: int = comm.Get_size() if comm is not None else 1
        self.nodes = Nodes.split(1)
        self.watch: Watch | None = None
        self._exit: Any = None
        if comm is not None:
            from kernel_cache.compile import report_as

            from ..transport.group import end_job, until_all_are_in
            from ..transport.watchdog import Watchdog

            if self.size > 1:
                report_as(self.rank)

            self._until_all_are_in = until_all_are_in
            self._watchdog = Watchdog(lambda why: end_job(comm, GONE, why), f"rank {self.rank}")
            with self.bounded("MPI_Comm_dup"):
                # This communicator is for the exit alone: a failed rank cannot know in which collective the others are.
                self._exit = comm.Dup()
                self.nodes, node = Nodes.shared(comm, ranks_per_node)
                node.Free()
        names = self.allgather((socket.gethostname(), frozenset(os.sched_getaffinity(0))))
        self.hosts: list[str] = [host for host, _ in names]
        self.masks: list[frozenset[int]] = [mask for _, mask in names]

    @property
    def transports(self) -> str:
        """Names of the transports in use, for titles."""
        from ..transport import choice

        return " and ".join(choice.names(self.nodes))

    @property
    def lead(self) -> bool:
        """Whether this rank prints and writes files."""
        return self.rank == 0

    def cores(self, host: str) -> int:
        """Cores of `host` that any rank there may use."""
        return len(frozenset().union(*(m for h, m in zip(self.hosts, self.masks) if h == host)))

    def watch_calls(self) -> None:
        """Show each rank's calls while they are measured, from now on. Collective."""
        with self.bounded("MPI_Comm_dup"):
            self.watch = Watch(self.comm and self.comm.Dup())

    def end_watch(self) -> None:
        """End `watch_calls`, if it was called. Collective."""
        if self.watch is not None:
            with self.bounded("the last messages of --watch"):
                self.watch.close()
            self.watch = None

    def barrier(self) -> None:
        """Wait for all ranks by polling, so that Python can handle signals, unlike in a blocking MPI call."""
        self._meet(os.sched_yield)

    def sleepy_barrier(self, pause: float = 0.0005) -> None:
        """Wait for all ranks, and sleep between polls."""
        self._meet(lambda: time.sleep(pause))

    def _meet(self, between: Callable[[], object]) -> None:
        if self.comm is not None:
            self._poll(self._until_all_are_in(self.comm), "the other ranks", between)

    def _poll(self, polls: Iterable[object], what: str, between: Callable[[], object]) -> None:
        """Run `polls` until they end. Raises WaitTimeout past the limit. what: the awaited event, for the message."""
        end = time.monotonic() + self._limit
        for _ in polls:
            if time.monotonic() > end:
                raise WaitTimeout(f"rank {self.rank} waited {self._limit:g} s for {what}")
            between()

    def bounded(self, call: str) -> contextlib.AbstractContextManager[None]:
        """A block for blocking MPI calls. It ends the job if they exceed the limit: then some rank has stopped."""
        if self.comm is None:
            return contextlib.nullcontext()
        return self._watchdog.watch(f"the other ranks ({call})", self._limit)

    def allgather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank. Collective."""
        return [value] if self.comm is None else self._collective("allgather", value)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks on rank 0, an empty list elsewhere. Collective."""
        return [value] if self.comm is None else self._collective("gather", value) or []

    def bcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        return value if self.comm is None else self._collective("bcast", value)

    def _collective(self, name: str, value: Any) -> Any:
        """The result of a collective of pickled values, from or to rank 0. It starts when all ranks are there."""
        self.barrier()
        with self.bounded(name):
            return getattr(self.comm, name)(value)

    def send(self, value: Any, peer: int, what: str) -> None:
        """Send a small value to one rank, which calls `receive`. what: the value in words, for an error's message.

        Raises WaitTimeout past the limit.
        """
        going = self.comm.isend(value, dest=peer)
        self._poll(iter(going.Test, True), f"rank {peer} to receive {what}", os.sched_yield)

    def receive(self, peer: int, what: str) -> Any:
        """The value that rank `peer` sends. what: as in `send`. Raises WaitTimeout past the limit."""
        message: Any = None

        def arrived() -> bool:
            nonlocal message
            message = self.comm.improbe(source=peer)
            return message is not None

        awaited = f"rank {peer} to send {what}"
        self._poll(iter(arrived, True), awaited, os.sched_yield)
        with self._watchdog.watch(awaited, self._limit):
            return message.recv()

    def largest(self, value: float) -> float:
        """The largest value of any rank, on every rank. Collective."""
        return max(self.allgather(value))

    def every(self, value: bool) -> bool:
        """Whether the value is true on every rank. Collective."""
        return all(self.allgather(bool(value)))

    def agree_on_exit(self, message: str, seconds: float = 2.0) -> list[str] | None:
        """The messages of all ranks if all call this within `seconds`, else None: then not all ranks have failed."""
        if self._exit is None:
            return [message]
        end = time.monotonic() + seconds
        for _ in self._until_all_are_in(self._exit):
            if time.monotonic() > end:
                return None
            time.sleep(0.005)
        with self.bounded("exit"):
            return self._exit.allgather(message)

    def abort(self, code: int) -> int:
        """End the whole job with `code`. With one rank, return `code`.

        One rank has no others to end, and MPI_Abort would leave the library's shared memory behind.
        """
        if self.comm is not None and self.size > 1:
            from ..transport.group import end_job

            end_job(self.comm, code)
        return code


def connect(ranks_per_node: int | None = None, limit: float = LIMIT, timeout: float | None = None) -> World:
    """COMM_WORLD, perhaps with pretended nodes, or one process if there is no MPI library. Arguments: as in `World`.

    Raises EnvironmentProblem if a launcher started several tasks that MPI does not see as one job.
    """
    return World(mpi_world.connect(), ranks_per_node, limit, timeout)
