"""The engine of one communicator on CPU cores: a state in main memory, and threads that run the steps."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ...engine import arrivals, bounds, codes, column_runs, outbox, schema, steps, words
from ...engine import job as jobs
from ...engine.experts import GROUP
from ...engine.layout import EngineShape, StateLayout, lines, return_stride, word_from
from ...errors import PoisonedError, WaitTimeout
from ...primitives import isa, wire
from ...primitives.buffers import aligned, zeros
from ...primitives.memory import load_acquire
from ...transport.group import Group
from ...transport.limits import Limits
from ...transport.watchdog import ENDED_SECONDS
from .. import standing
from ..failure import Patience, bad_word, damaged_poison, out_of_bounds, poisoned
from ..idle import ALONE, CROWDED
from ..runtime import Runtime
from ..windows import EngineMemory, window_bytes
from . import loop
from .workers import Workers

TILE = 96  # most rows of a tile
BATCH = 384  # most rows of a run of the expert kernel, whatever its element type
RUN_FLOPS = 5e9  # most work of a run, so that a worker polls again within about 50 ms
RUN_LEAST = 24  # least rows that a run is cut to: with fewer, reading the weights would take longer than computing
MERGE_ROWS = 32  # a run with fewer rows waits a little for more rows of its expert
MERGE_POLLS = 200  # idle polls for which such a run waits
# Tokens cross once to a local owner only if the call has at least ONCE_ROWS rows for this owner (four bundles), and at
# least ONCE_SHARE rows for each 100 tokens of the call. At least two thirds of the rows then repeat a token.
ONCE_ROWS = 2048
ONCE_SHARE = 300
PAUSE_NS = 100_000_000  # compiled code returns to Python at least this often
POISON_SECONDS = 0.1  # how long a failing rank lets MPI deliver its poison to other nodes


def engine_values(job: np.ndarray, shape: EngineShape, crowded: bool) -> dict[str, int]:
    """The words of a job's part `engine` that are neither addresses nor from the layout.

    job: its part `object` is filled already. crowded: whether ranks share cores.
    """
    spins, yields = CROWDED if crowded else ALONE
    back = return_stride(int(job[words.RETURN_BYTES]), int(job[words.SCALARS]))
    assert back <= shape.stride, "a returned row must fit a slot of the ring, because staged rows use such slots"
    return {
        "spins": spins,
        "yields": yields,
        "merge_polls": MERGE_POLLS,
        "return_stride": back,
        "pause_ns": PAUSE_NS,
        "once_rows": ONCE_ROWS if shape.local_ring >= ONCE_ROWS else 0,
        "once_share": ONCE_SHARE,
    }


def tile_values(job: np.ndarray, workers: int, run_rows: int = BATCH, merge_rows: int = MERGE_ROWS) -> dict[str, int]:
    """The words of a job's part `tile`, except `scratch_step`. See `CpuRuntime.fill`.

    job: its part `object` is filled already.
    """
    hidden, ffn, shared = int(job[words.HIDDEN]), int(job[words.FFN]), int(job[words.SHARED_FFN])
    limit = int(RUN_FLOPS / max(1, 4 * hidden * max(ffn, shared)))
    return {
        "tile": TILE,
        "batch": BATCH,
        "merge_rows": merge_rows,
        "runs": 1,
        "workers": workers,
        "run_rows": min(run_rows, max(RUN_LEAST, limit // GROUP * GROUP)),
        "split_rows": column_runs.MOST_ROWS,
        "up_shares": column_runs.shares(ffn),
        "shared_shares": column_runs.shares(shared),
        "down_shares": column_runs.shares(hidden),
        "all_split": 0,
        "run_step": 0,
        "run_pitch": 0,
    }


class CpuRuntime(Runtime):
    """The engine of one communicator on CPU cores. isa: the best instruction set that all of its ranks have.

    loop: the module whose compiled loops run calls, with the steps that begin and end them.
    """

    loop: Any = loop

    def __init__(self, group: Group, forget: Callable[[Runtime], None] = lambda runtime: None) -> None:
        super().__init__(group, forget)
        self._lock = aligned((8,), np.int64)
        self._workers: Workers | None = None
        self._scratch = aligned((0,), np.uint8)
        self._scratch_step = self._shared = 0
        offers = group.allgather(isa.offer(), "their instruction sets")
        self.isa = isa.agreed(offers)
        self._passed_over = isa.passed_over(self.isa, offers)

    def report_isa(self) -> None:
        """Report once, on rank 0, that ranks have better instruction sets than the common one, which is now used."""
        if self._passed_over and self.group.rank == 0:
            text = (
                f"kernels use {self.isa}, the best instruction set that all ranks have, instead of {self._passed_over}"
            )
            print(f"aristos: {text}", file=sys.stderr, flush=True)
        self._passed_over = ""

    # ------------------------------------------------------------ capacity

    def require(self, shape: EngineShape, scratch: int, shared: int, threads: int) -> None:
        """See `Runtime.require`. Raises MemoryProblem if a machine has too little memory."""
        shape, workers, grown = self.grown(shape, threads)
        tables = StateLayout(shape, workers, BATCH)
        step, common = max(self._scratch_step, lines(scratch)), max(self._shared, shared)
        sizes = window_bytes(shape, self.group.nodes, self.group.rank) if grown else (0, 0, 0)
        self.group.check_capacity(*sizes[:2], sizes[2] + 8 * tables.words * grown + step * workers + common)
        if (step, common, workers) != (self._scratch_step, self._shared, self.threads) or not self._scratch.size:
            self._scratch = aligned((step * workers + common,), np.uint8)
            self._scratch_step, self._shared = step, common
            self.version += 1
        if grown:
            self._allocate(shape, workers)

    def _allocate(self, shape: EngineShape, workers: int) -> None:
        """Make new windows and a new state. The old ones stay if there is no memory for the new."""
        tables = StateLayout(shape, workers, BATCH)
        memory = EngineMemory(self.group, shape)
        state = zeros((tables.words,))
        memory.fill(state, tables.starts)
        with self.group.together("the other ranks to free windows"):
            for old in (self._memory, self._workers):
                if old is not None:
                    old.close()
        self.group.watch_calls(memory.calling)
        self._adopt(memory, tables, state, workers)
        self._lock[0] = 0
        self._compile()
        self.group.meet("the other ranks to compile kernels")
        self._workers = Workers(workers)

    def run_with(self, module: Any) -> None:
        """Run later calls with the loops of another module like `loop`, compiled for other primitives."""
        self.refuse_open()
        self.loop = module
        self._compile()

    def _compile(self) -> None:
        from numba import int64, typeof

        plain = typeof(np.zeros(words.JOB_WORDS + 1, np.int64)), typeof(self.state)
        warm_up(
            [
                (self.loop.work, (*plain, int64)),
                (self.loop.run_alone, plain),
                (self.loop.packing.begin, plain),
                (self.loop.steps.end, plain),
                (arrivals.poisoned, plain),
                (arrivals.read_poison, (*plain, int64)),
                (arrivals.standing, plain),
                (outbox.receive, plain),
                (outbox.put_poison_words, plain),
                (word_from, (*plain, int64, int64)),
            ]
        )

    # ------------------------------------------------------------ jobs

    def fill(self, job: np.ndarray, workers: int = 0, run_rows: int = BATCH, merge_rows: int = MERGE_ROWS) -> None:
        """See `Runtime.fill`. Fills the part `tile` too. workers: 0 for all; run_rows: most rows of a run."""
        assert self.shape is not None
        self.fill_engine(
            job,
            schema.CPU,
            scratch=self._scratch.ctypes.data,
            lock=self._lock.ctypes.data,
            wire=self.wire,
            state=self.state.ctypes.data,
            **engine_values(job, self.shape, crowded=self._sharing > 1 or self.threads > self.cores),
        )
        tile = tile_values(job, workers or self.threads, run_rows, merge_rows)
        jobs.fill(job, schema.TILE, schema.CPU, scratch_step=self._scratch_step, **tile)

    # ------------------------------------------------------------ calls

    def run_call(self, job: np.ndarray, limits: Limits) -> None:
        """Run an entered call to its end, as worker 0. The call stays open until its result has been taken."""
        memory = self._memory
        assert memory is not None
        self.watch(job)
        try:  # this does what `failing` and `progressing` do, in half the time
            memory.in_call(True)
            if job[words.WORKERS] == 1:
                self.open_job(job)
                code = self.loop.run_alone(job, self.state)
                if code != codes.RAN:
                    self.go_on(job, limits, code=code)
            else:
                self.begin(job)
                self.go_on(job, limits)
        except BaseException as error:
            memory.in_call(False)
            self.fail_call(job, error)
            raise
        memory.in_call(False)

    @contextlib.contextmanager
    def progressing(self) -> Iterator[None]:
        """A block in which workers let MPI make progress. Outside of it the progress thread does."""
        assert self._memory is not None
        self._memory.in_call(True)
        try:
            yield
        finally:
            self._memory.in_call(False)

    def open_job(self, job: np.ndarray) -> None:
        """Write the epoch of an entered call into its job, which now belongs to the call."""
        jobs.start(job, schema.CPU, self.version, self.epoch)

    def begin(self, job: np.ndarray) -> None:
        """Start an entered call: write its epoch into the job, clear the tables, and release the other workers."""
        self.open_job(job)
        self.loop.packing.begin(job, self.state)
        assert self._workers is not None
        self._workers.release(self.loop.work, job, self.state)

    def go_on(self, job: np.ndarray, limits: Limits, code: int | None = None) -> int:
        """Run steps as worker 0 until the call ends, or all announcements are read. Returns RAN or ALL_ANNOUNCED.

        code: what the loop returned when it ran for this call before; None if it has not run.
        """
        assert self._workers is not None
        patience: Patience | None = None
        if code is None:
            code = self.loop.work(job, self.state, 0)
        while code == codes.PAUSED:
            if patience is None:
                group = self.group
                whose = group.lost, group.has_ended, group.nodes.rail
                patience = Patience(group.rank, self.epoch, job, self.state, limits, *whose)
            patience.check()
            code = self.loop.work(job, self.state, 0)
        if code == codes.POISONED:
            self._raise_poison(job)
        if code == codes.RAN:
            self._workers.gather()
            self.loop.steps.end(job, self.state)
        return code

    def await_readers(self) -> None:
        """Wait until every local peer has ended the last call that this rank has ended.

        After that no peer reads this rank's weights until this rank announces its next call. The wait does not include
        a call that is still open on this rank: the caller makes sure that such a call uses other weights. The wait
        fails if a peer makes no progress for the timeout, or has ended.
        """
        self.refuse_unusable()
        last, job = self.epoch - self.open, self._blank_job()
        with self.failing(job):
            for peer in self.group.nodes.local(self.group.rank):
                gone, started, seen = False, time.monotonic(), 0
                while (ended := self._read_word(job, peer, words.ENDED)) < last:
                    if self._read_word(job, peer, words.POISON):
                        self._raise_poison(job)
                    progress = self._read_word(job, peer, words.AT_PROGRESS)
                    if progress != seen:
                        gone, started, seen = False, time.monotonic(), progress
                    waited = time.monotonic() - started
                    if gone or waited > self.group.limits.timeout:
                        still = (
                            f"without progress for {self.group.limits.timeout:.3g} s (timeout), and may still read the"
                            " weights"
                        )
                        why = f"has ended in call {last}" if gone else f"has been in call {last} {still}"
                        raise WaitTimeout(
                            f"rank {self.group.rank} cannot load weights: rank {peer} {why};"
                            f" see the output of rank {peer}"
                        )
                    gone = waited > ENDED_SECONDS and self.group.has_ended(peer)
                    time.sleep(1e-5)
                if ended > self.epoch + 1:
                    rank, most = self.group.rank, self.epoch + 1
                    raise out_of_bounds(rank, self.epoch, peer, bounds.ENDED, ended, self.epoch, most)

    # ------------------------------------------------------------ failure

    def _raise_poison(self, job: np.ndarray) -> None:
        if self.state[words.BAD_WORD] != 0:
            raise bad_word(self.group.rank, self.epoch, self.state)
        peer = int(arrivals.poisoned(job, self.state))
        if peer < 0:
            raise PoisonedError(f"rank {self.group.rank}: a worker failed in epoch {self.epoch}")
        epoch, origin, cause = map(int, arrivals.read_poison(job, self.state, peer))
        damaged = damaged_poison(self.group.rank, self.group.world, self.epoch, peer, origin, cause)
        raise damaged or poisoned(self.group.rank, origin, epoch, cause, reporter=peer, known=self.group.lost())

    def _fail(self, job: np.ndarray, error: BaseException, why: str) -> None:
        super()._fail(job, error, why)
        assert self._workers is not None
        self._workers.gather()

    def _notify_peers(self, job: np.ndarray, error: BaseException, origin: int, cause: int) -> None:
        steps.poison(job, self.state, origin, cause)
        if job[words.REMOTE]:
            self._notify_remote_peers(job)

    def _notify_remote_peers(self, job: np.ndarray) -> None:
        """Put the poison word to remote peers, and give MPI a moment to move it."""
        until = time.monotonic() + POISON_SECONDS
        sent = False
        while time.monotonic() < until:
            if wire.try_lock(job[words.WIRE]):
                if not sent:
                    outbox.put_poison_words(job, self.state)
                    sent = True
                outbox.receive(job, self.state)
                wire.unlock(job[words.WIRE])
            time.sleep(0.001)

    # ------------------------------------------------------------ the end

    def _receive(self, job: np.ndarray) -> None:
        if job[words.REMOTE] and wire.try_lock(job[words.WIRE]):
            outbox.receive(job, self.state)
            wire.unlock(job[words.WIRE])

    def _standing(self, job: np.ndarray) -> str:
        def line(peer: int, word: int) -> int:
            return self._read_word(job, peer, word)

        return standing.describe(job, self.state, int(self._lock[0]), line)

    def _read_word(self, job: np.ndarray, peer: int, word: int) -> int:
        return int(load_acquire(int(word_from(job, self.state, peer, word))))

    def _free(self) -> None:
        self._scratch = aligned((0,), np.uint8)

    def _end_threads(self) -> None:
        super()._end_threads()
        if self._workers is not None:
            self._workers.close()
