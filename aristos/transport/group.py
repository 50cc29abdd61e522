"""The ranks of an EP group, and the few blocking MPI calls that Aristos makes. A watchdog bounds each of them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from ..errors import AristosError, EnvironmentProblem, MemoryProblem, PoisonedError
from ..host import launch_environment, mpi_files
from ..host.nodes import Nodes
from ..host.processes import ENDED, Process
from .capacity import Need, shortage
from .choice import DEVICE, HOST, LOCAL, REMOTE, SELF, choose
from .limits import ABSENT, DEFAULT, TIMEOUT, Limits
from .meeting import EXCHANGES, MEETS, NOTHING, Meeting
from .rma import RmaWindow
from .warning import warn
from .watchdog import NAMED, Calling, Watchdog
from .window import Window

T = TypeVar("T")
ABORTED = 86  # exit code of a job that ends itself
ABORT_SECONDS = 3  # seconds for last words and MPI_Abort; then SIGALRM ends this process, and the launcher ends the job
DRAIN_SECONDS = 0.2  # how long a process waits until the launcher has read its pipes
MOST_TEXT = 2000  # most characters of an error that other ranks get
MEETING_POLLS = 99  # polls of a barrier before it sleeps
EXCHANGE_POLLS = 5000  # polls of an exchange before it sleeps; they take some milliseconds. Ranks in step need fewer
FAILED = 1  # tag of the message by which a rank that cannot enter a collective says why


def end_job(comm: Any, code: int, last_words: str = "") -> None:
    """Print the last words, then end the whole job with MPI_Abort. Both together have a time limit.

    comm: any communicator of the job. The launcher gets time to forward the output, because some launchers lose what is
    in their pipes.
    """
    # A full pipe may block the output for ever. MPICH's MPI_Abort may wait for ever for a lock that a thread in MPI
    # holds, and mpi4py keeps the GIL meanwhile.
    ctypes.CDLL(None).signal(signal.SIGALRM, ctypes.c_void_p(signal.SIG_DFL))
    signal.setitimer(signal.ITIMER_REAL, ABORT_SECONDS + DRAIN_SECONDS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    if last_words:
        with contextlib.suppress(Exception):  # perhaps nobody reads the output any more
            print(last_words, file=sys.stderr)
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(Exception):
            stream.flush()
    time.sleep(DRAIN_SECONDS)
    _world(comm).Abort(code)


def _world(comm: Any) -> Any:
    """MPI_COMM_WORLD; `comm` itself if it is no communicator of MPI.

    MPICH 5.0 under Slurm (PMI-2) ends only the calling process if MPI_Abort gets any other communicator.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi.COMM_WORLD if mpi is not None and isinstance(comm, mpi.Comm) else comm


def until_done(request: Any) -> Iterator[None]:
    """An iterator that yields until a non-blocking collective is complete. The caller may stop early."""
    while not request.Test():
        yield


def until_all_are_in(comm: Any) -> Iterator[None]:
    """Yields until every rank has entered a barrier."""
    return until_done(comm.Ibarrier())


def world_size() -> int:
    """The number of ranks of the whole job."""
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.Get_size())


_aborts: dict[Group, Callable[[], None]] = {}  # for each failed group, what ends the job when this process exits
_job: dict[int, Process] = {}  # processes of this machine, by rank of the whole job; groups exchange them


def _ranks_of_job(members: Any) -> list[int]:
    """For each rank of an MPI group, its rank in the whole job; below 0 if it belongs to another job."""
    from mpi4py import MPI

    job = MPI.COMM_WORLD.Get_group()
    try:
        return members.Translate_ranks(range(members.Get_size()), job)
    finally:
        job.Free()


def _in_short(error: BaseException) -> str:
    """An error's text, shortened to a clause of a message."""
    return f"{type(error).__name__}: {error}"[:MOST_TEXT]


def _clause(lost: dict[int, str]) -> str:
    """A clause that says which ranks have ended or are stopped. lost: rank -> "has ended" or "is stopped"."""
    return ", ".join([f"rank {rank} {trouble}" for rank, trouble in lost.items()][:NAMED])


class Group:
    """An EP group: rank, world, and collectives with a time limit. `comm` None is one rank without MPI.

    ranks_per_node: pretend nodes of this many ranks each, instead of asking MPI which ranks share memory.
    """

    def __init__(self, comm: Any = None, limits: Limits = DEFAULT, ranks_per_node: int | None = None) -> None:
        self.limits, self.ranks_per_node = limits, ranks_per_node
        self.comm: Any = None
        self.node: Any = None
        self.rank, self.world = 0, 1
        self.nodes = Nodes.split(1)
        self._processes: dict[int, Process] = {}  # the processes of this machine, by rank
        if comm is None:
            return
        self.rank, self.world = comm.Get_rank(), comm.Get_size()
        self._members = comm.Get_group()
        self._watchdog = Watchdog(lambda why: end_job(comm, ABORTED, why), f"rank {self.rank}")
        self._watchdog.suspects, self._watchdog.ended = self.suspects, self.ended
        self._meeting: Meeting | None = None  # the last meeting; MPI may still write to its arrays after an exception
        self.failed = False  # whether a rank of the group has sent FAILED
        self._sent: list[Any] = []  # this rank's messages with the tag FAILED: MPI may still read them
        self._refused = False  # whether a rank cannot form the group: then every rank raises
        try:
            self._form(comm)
        except BaseException as error:
            if not self._refused:
                self.abort_at_exit(f"it could not make a layer ({_in_short(error)})", comm)
            raise

    def _form(self, comm: Any) -> None:
        """Meet on the user's communicator, learn the other ranks' processes, and make the group's own communicators."""
        ranks = _ranks_of_job(self._members)
        self._processes = {rank: _job[r] for rank, r in enumerate(ranks) if r in _job}
        self.meet("the other ranks to make a layer", comm)
        process, problem = None, self._watchdog.problem
        try:
            if self.world == world_size():  # then all ranks of this machine have left MPI_Init
                mpi_files.forget_names()
            process = Process.here()
        except Exception as error:
            problem = error
        limit = self.limits.timeout
        with self._watchdog.watch("the other ranks to make a layer (MPI_Comm_dup)", limit, TIMEOUT):
            offers = comm.allgather((process, problem and _in_short(problem)))
            self._refused = any(why is not None for _, why in offers)
            if problem is not None:
                raise problem
            for rank, (_, why) in enumerate(offers):
                if why is not None:
                    raise self._lost_to(rank, why)
            processes = [each for each, _ in offers]
            self._processes = {rank: process for rank, process in enumerate(processes) if process.seen_here()}
            _job.update({ranks[rank]: process for rank, process in self._processes.items() if ranks[rank] >= 0})
            self.comm = comm.Dup()
            self.nodes, self.node = Nodes.shared(self.comm, self.ranks_per_node)

    # ------------------------------------------------------------ collectives

    def allgather(self, value: Any, what: str) -> list[Any]:
        """Every rank's `value`, in rank order. what: the subject, for messages."""
        if self.comm is None:
            return [value]
        with self.together(f"the other ranks ({what})"):
            return self.comm.allgather(value)

    def on_all(self, step: Callable[[], T], what: str) -> T:
        """The result of a step on this rank; if the step fails on one rank, all ranks raise. Collective.

        what: the subject, for messages.
        """
        problem: AristosError | None = None
        try:
            made = step()
        except AristosError as error:
            problem = error
        for rank, why in enumerate(self.allgather(problem and str(problem), what)):
            if why is not None:
                problem = problem or EnvironmentProblem(f"rank {rank}: {why}")
                problem.on_all_ranks = True
                raise problem
        return made

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Meet, then bound the blocking MPI collective in the block. No rank enters it if another has failed."""
        self.meet(what)
        with self.bounded(what):
            yield

    @contextlib.contextmanager
    def bounded(self, what: str, limit: float | None = None) -> Iterator[None]:
        """Bound a blocking MPI call in the block to `limit` seconds, or the group's timeout."""
        if self.comm is None:
            yield
        else:
            with self._watchdog.watch(what, limit or self.limits.timeout, TIMEOUT):
                yield

    def meet(self, what: str, comm: Any = None) -> None:
        """Wait for all ranks before a blocking MPI collective, which Ctrl-C cannot interrupt.

        A late rank may be in user code, or may compile. After the timeout there is a warning; after absent_timeout the
        job ends. comm: the user's communicator, as long as the group has none of its own.
        """
        self._wait(self.until_all_come(what, comm), what)

    def exchange(self, words: np.ndarray, what: str) -> np.ndarray:
        """[W, n]: every rank's words, [n] int64, in rank order. Cheaper than `allgather`: one collective, no pickle.

        n is at most MOST_WORDS. Late ranks are waited for as in `meet`.
        """
        if self.comm is None:
            return words[None]
        self._wait(self._met(EXCHANGES, words, what, self.comm, EXCHANGE_POLLS), what)
        assert self._meeting is not None
        return self._meeting.words

    def _wait(self, waiting: Iterator[None], what: str) -> None:
        """Run a wait for ranks that may be in user code, and warn after the timeout."""
        start, warned = time.monotonic(), False
        for _ in waiting:
            waited = time.monotonic() - start
            if waited > self.limits.timeout and not warned:
                warned = True
                warn(
                    f"rank {self.rank} has waited {waited:.3g} s for {what}: a rank is still in user code, or compiles;"
                    f" rank {self.rank} gives up after {self.limits.absent:g} s ({ABSENT})"
                )

    def until_all_come(self, what: str, comm: Any = None, kind: str = MEETS) -> Iterator[None]:
        """Yields now and then until every rank has come here, but at most for absent_timeout. kind: one of KINDS.

        Raises MismatchError if another rank meets for another reason.
        """
        comm = comm or self.comm
        if comm is not None:
            yield from self._met(kind, NOTHING, what, comm, MEETING_POLLS)

    def _met(self, kind: str, words: np.ndarray, what: str, comm: Any, polls: int) -> Iterator[None]:
        """An iterator that holds a meeting, for absent_timeout at most. polls: the number of polls before it sleeps."""
        with self._watchdog.watch(what, self.limits.absent, ABSENT):
            self._meeting = meeting = Meeting(comm, kind, what, words)
            for tries, _ in enumerate(until_done(meeting.request)):
                yield
                if tries < polls:
                    time.sleep(0)
                    continue
                time.sleep(0.001)
                if self._watchdog.problem is not None:
                    self._watchdog.check()
                if comm is self.comm and comm.iprobe(tag=FAILED):
                    self.failed = True
                    raise self._lost_to(*comm.recv(tag=FAILED))
        meeting.check(self.rank)

    def cores(self) -> tuple[int, int]:
        """(cores that this rank may use divided by the ranks that share them, at least 1; ranks that share a core)."""
        mine = frozenset(os.sched_getaffinity(0))
        masks = self.allgather((os.uname().nodename, mine), "core masks")
        sharing = sum(1 for host, mask in masks if host == os.uname().nodename and mask & mine)
        return max(1, len(mine) // sharing), -(-sharing // len(mine))

    def _lost(self) -> dict[int, str]:
        """rank -> "has ended" or "is stopped", for each rank of this machine that this process sees in such a state."""
        found = {rank: process.trouble() for rank, process in self._processes.items()}
        return {rank: trouble for rank, trouble in found.items() if trouble}

    def ended(self) -> set[int]:
        """The ranks of this machine that have ended, as far as this process can see."""
        return {rank for rank, trouble in self._lost().items() if trouble == ENDED}

    def has_ended(self, rank: int) -> bool:
        """Whether a rank of this machine has ended; False if this process cannot see it."""
        return rank in self._processes and self._processes[rank].trouble() == ENDED

    def lost(self) -> str:
        """A clause that names ranks of this machine that have ended or are stopped; empty if none is seen."""
        return _clause(self._lost())

    def suspects(self) -> str:
        """The clause of `lost` with advice; empty if `lost` is empty."""
        lost = self._lost()
        return f"{_clause(lost)}: see the output of rank {min(lost)}" if lost else ""

    # ------------------------------------------------------------ windows

    def check_capacity(self, local: int, remote: int = 0, private: int = 0) -> None:
        """Raise MemoryProblem on every rank if a machine cannot hold what its ranks need, in bytes; collective."""
        problem = shortage(self.allgather(Need.here(local, remote, private), "the size of the windows"))
        if problem is not None:
            raise MemoryProblem(problem)

    def local_window(self, nbytes: int, device: Any = None) -> Window:
        """A window of `nbytes` for the ranks of this node, `base` in rank order; collective.

        device: the GPU whose memory the window takes; None for host memory.
        """
        transport = choose(SELF if self.node is None else LOCAL, HOST if device is None else DEVICE)
        with self.together("the other ranks to allocate windows"):
            return transport.open(self.node, nbytes, device)

    def remote_window(self, nbytes: int) -> RmaWindow:
        """A window of `nbytes` into which ranks of other nodes put; collective."""
        with self.together("the other ranks to allocate windows"):
            return choose(REMOTE).open(self.comm, nbytes, None)

    def watch_calls(self, calling: Calling | None) -> None:
        """From now on, end the job if a put or a flush takes longer than the timeout.

        calling: see RmaWindow.calling.
        """
        if self.comm is not None:
            self._watchdog.calls(calling, lambda: self.limits.timeout)

    # ------------------------------------------------------------ the end

    def fail(self, error: BaseException) -> None:
        """Report that this rank has failed: from now on it enters no collective.

        Ranks that wait for it in a collective, now or later, raise PoisonedError.
        """
        if self.comm is not None and not self.failed:
            self.failed = True
            why = self.rank, _in_short(error)
            self._sent = [self.comm.isend(why, rank, FAILED) for rank in range(self.world) if rank != self.rank]

    def _lost_to(self, rank: int, why: str) -> PoisonedError:
        """The error that this rank raises when it waits for `rank`, which has failed."""
        return PoisonedError(
            f"rank {self.rank}: rank {rank} gave up before the ranks had met, because of {why};"
            f" see the output of rank {rank}"
        )

    def abort_at_exit(self, why: str, comm: Any = None) -> None:
        """End the job when this process exits: after a failure, a peer may never reach MPI_Finalize.

        why: a clause. comm: the user's communicator, as long as the group has none of its own.
        """
        comm = self.comm or comm
        if comm is None or self in _aborts:
            return
        rank, pid = self.rank, os.getpid()

        def abort() -> None:
            if os.getpid() != pid:
                return  # a forked child must not end the job of its parent
            end_job(comm, ABORTED, f"aristos: rank {rank} ends the job, because {why}")

        _aborts[self] = abort
        atexit.register(abort)

    def abort_now(self) -> None:
        """Run now what `abort_at_exit` has registered. For exit handlers: what they register would never run."""
        if self in _aborts:
            _aborts[self]()

    def keep_job(self) -> None:
        """Undo `abort_at_exit` for each group within this one, because all ranks of this group have met."""
        for group in [failed for failed in _aborts if failed._is_within(self)]:
            atexit.unregister(_aborts.pop(group))

    def _is_within(self, other: Group) -> bool:
        """Whether all ranks of this group are ranks of another one."""
        if other.comm is None:
            return False
        from mpi4py import MPI

        rest = MPI.Group.Difference(self._members, other._members)
        try:
            return bool(rest.Get_size() == 0)
        finally:
            rest.Free()

    def free(self) -> None:
        """Free the communicators; collective."""
        if self.comm is not None:
            self.node.Free()
            self.comm.Free()
            self._members.Free()
            self.comm = self.node = None
            self._watchdog.close()


def warn_if_launched() -> None:
    """Warn if a launcher has started several tasks: without a communicator each computes alone."""
    started = launch_environment.started_as()
    if started is not None and started[1] > 1:
        warnings.warn(
            f"comm is None in one of {started[1]} tasks that {started[0]} started, so every task computes alone:"
            " pass comm=MPI.COMM_WORLD to share the experts",
            stacklevel=5,
        )
