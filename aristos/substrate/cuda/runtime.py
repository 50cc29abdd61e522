"""The engine of one communicator on GPUs: windows by CUDA IPC, the state and the jobs in the card's memory.

What the host writes is written once; a call is four launches. The host looks at the state again when a call has ended.
Where there are ranks on other nodes, a thread beside it calls MPI (see caller.py).
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...config import OVERDUE
from ...engine import arrivals, codes, words
from ...engine.layout import LINE, WORD, Shape, StateLayout, lines, word_from
from ...errors import AristosError, EnvironmentProblem, PoisonedError, WaitTimeout
from ...kernels.cuda import router
from ...kernels.cuda.catalogue import route_kernels
from ...kernels.cuda.tile import Tile
from ...transport.group import Group
from ...transport.ipc import IpcWindow
from ...transport.window import Window
from ..counters import Tables
from ..runtime import ALONE, CAUSES, CROWDED, FAR_BLOCK, Runtime
from ..windows import Memory
from . import device_puts, persistent
from .device import Card
from .outboxes import CardMemory
from .proxy_thread import Caller, CardWire

MOST_ROWS = 256  # of a tile
MOST_NS = 1 << 58  # of a timeout: ten of them must be a word
PATIENCE = 8  # idle sweeps that few rows wait for more of their expert
AWAKE_SECONDS, NAP_SECONDS = 0.002, 0.01  # a wait asks without pause, then every so often
# the innermost launcher's first; a group may hold some ranks of a node alone
LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


class _CardWindow:
    """The window of a rank that is alone."""

    def __init__(self, card: Any, nbytes: int) -> None:
        self.card, self.nbytes = card, nbytes
        self.base = [card.allocate(nbytes)]

    def close(self) -> None:
        self.card.free(self.base[0])


class CudaRuntime(Runtime):
    """The engine of one communicator, a card a rank; several ranks may share a card."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.card = self._together(lambda: Card.find(local_rank(group)))
        sharing = group.allgather(self.card.uuid, "their cards").count(self.card.uuid)
        self.blocks = Blocks(self.card, sharing)
        self.state_at = self._scratch_at = self._last_job_at = 0
        self._caller: Caller | None = None
        self._card_wire: CardWire | None = None
        self._stream: int | None = None  # that the last call was queued on
        self._looks = 0  # a stream to look at peers' words on, once it closes

    def idle(self) -> None:
        """Wait until this card does nothing for this engine: only then may peers free what it writes to."""
        if self._stream is not None:
            with contextlib.suppress(EnvironmentProblem):  # the stream may be gone, and with it all that was on it
                self.card.synchronize(self._stream)

    def _together(self, step: Callable[[], Any]) -> Any:
        """What a step gives this rank; where it fails on one rank, it raises on all."""
        made, mine = None, None
        try:
            made = step()
        except AristosError as error:
            mine = error
        for rank, why in enumerate(self.group.allgather(str(mine) if mine else None, "memory of their cards")):
            if why is not None:
                raise mine or EnvironmentProblem(f"rank {rank}: {why}")
        return made

    def require(self, shape: Shape, scratch: int, shared: int, threads: int) -> None:
        """Make room for `shape`, `shared` bytes of hidden activations, and `threads` blocks.

        Collective, while no call is open.
        """
        shape, workers, grown = self.grown(shape, threads)
        with self._growing():
            if grown:
                self._allocate(shape, workers)
            if any(self.group.allgather(shared > self._shared, "hidden activations")):
                self._together(lambda: self._make_scratch(max(shared, self._shared)))

    @contextlib.contextmanager
    def _growing(self) -> Iterator[None]:
        """The old is freed before there is room for the new: where that fails, this engine is unusable on all ranks."""
        first = self.shape is None
        try:
            yield
        except AristosError as error:
            if not first:
                self.broken = f"it could not grow for another layer: {error}"
            raise

    def _make_scratch(self, nbytes: int) -> None:
        self.version += 1
        old, self._scratch_at, self._shared = self._scratch_at, 0, 0
        if old:
            self.idle()
            self.card.free(old)
        self._scratch_at = self.card.allocate(nbytes)
        self._shared = nbytes

    def _window(self, nbytes: int) -> Window:
        if self.group.node is None:
            return _CardWindow(self.card, nbytes)
        with self.group.bounded("the other ranks to allocate windows"):
            return IpcWindow(self.group.node, self.card, nbytes)

    def _allocate(self, shape: Shape, workers: int) -> None:
        """New windows and a new state; counters start again."""
        tables = StateLayout(shape, workers, MOST_ROWS, persistent.MOST_RUNS)
        if self._memory is not None:
            self.idle()
            with self.group.bounded("the other ranks to free windows"):
                self.group.watch_calls(None)
                self._memory.close()
            self._memory = None
            self.version += 1
            old, self.state_at = self.state_at, 0
            self.card.free(old)
        memory = self._together(lambda: self._make_memory(shape))
        state = np.zeros(tables.words, np.int64)
        memory.fill(state, tables.starts)
        self.state_at = self._together(lambda: self.card.allocate(WORD * tables.words + LINE))
        if not self._last_job_at:  # what tells peers of a failure must not need memory or a compiler then
            self._last_job_at = self._together(lambda: self.card.allocate(WORD * (words.JOB_WORDS + 1)))
            self._together(lambda: self.card.load(persistent.FAIL))
        self.card.copy_in(self.state_at, state)
        self.card.synchronize()
        self._memory, self.layout, self.tables, self.state, self.shape = memory, memory.layout, tables, state, shape
        self.threads, self.epoch = workers, 0
        self.counted = Tables(tables.starts, workers, self.group.world)
        self.version += 1
        if isinstance(memory, CardMemory):
            self._start_caller(memory)
        self.group.meet("the other ranks to allocate")

    def _make_memory(self, shape: Shape) -> Memory:
        if self.group.nodes.single:
            return Memory(self.group, shape, self._window)
        return CardMemory(self.group, shape, self._window, self.card, self._mpi_takes_rows())

    def _mpi_takes_rows(self) -> bool:
        """Whether MPI puts from the memory of this node's cards: its first rank tries. Collective."""
        me, answer = self.group.rank, None
        first = min([me, *self.group.nodes.local(me)])
        if first == me:
            answer = device_puts.takes(self.card.ordinal, min(device_puts.SECONDS, self.group.timeout))
        return bool(self.group.allgather(answer, "the first ranks of nodes to try puts from a card")[first].takes)

    def _start_caller(self, memory: CardMemory) -> None:
        """Start the thread that calls MPI; the ranks wait for each other after it."""
        if self._card_wire is None:
            copy, wait = self.card.copier()
            self._card_wire = CardWire(copy, wait, self.card.new_stream(), self.group.world)
        sides = memory.sides(self._card_wire.address)
        sides.job[words.SPINS], sides.job[words.YIELDS] = CROWDED if self._sharing > 1 else ALONE
        self._caller = Caller(sides, self.card, self._card_wire, self.group.rank)
        self.group.watch_calls(memory.calling)
        memory.start(self._caller.run)

    def fill(self, job: np.ndarray) -> None:
        """Write into a job what every call on this runtime has in common."""
        self.fill_shape(job)
        job[words.PACKED], job[words.STATE] = 1, self.state_at
        job[words.LOCK] = self.state_at + WORD * self.tables.words
        job[words.RETURN_STRIDE] = lines(int(job[words.ROW_BYTES]))
        job[words.SCRATCH], job[words.MERGE_POLLS] = self._scratch_at, PATIENCE
        assert self._memory is not None
        job[words.REMOTE], job[words.REMOTE_BLOCK] = len(self._memory.far), FAR_BLOCK

    def fill_tile(self, job: np.ndarray, tile: Tile, blocks: int) -> None:
        """Write into a job, whose weights are known, what depends on the kernel that runs it."""
        job[words.TILE] = job[words.BATCH] = job[words.RUN_ROWS] = tile.m
        job[words.MERGE_ROWS], job[words.WORKERS] = tile.m // 2, blocks
        runs = persistent.shared_runs(tile, int(job[words.HIDDEN]), int(job[words.FFN]), bool(job[words.GATE]), blocks)
        for word, value in runs.items():
            job[word] = value

    # ------------------------------------------------------------ calls

    def launch(self, tile: Tile, blocks: int, job: int, routing: int, call: Any, stream: int) -> None:
        """Queue a call on a stream: open it, route it or check its routing, pack, run the layer.

        job, routing: addresses of the jobs on the card. call: has x, x_stride, tokens, y, ids, weights (addresses),
        status, routed, kind, slots, top_k.
        """
        card = self.card
        if stream != self._stream:  # calls share one state: they follow each other on any streams
            self.idle()
            self._stream = stream
        card.launch(
            card.load(persistent.BEGIN), 1, 0, job, self.state_at, routing, call.x, call.x_stride, call.tokens, call.y,
            call.ids, call.weights, call.status, stream=stream,
        )  # fmt: skip
        routes, count = route_kernels(), router.blocks(call.tokens)
        if count and call.routed:
            card.launch(card.load(routes["check"]), count, router.check_shared(call.slots), routing, stream=stream)
        elif count:
            kind = call.kind if call.kind in router.KINDS else "f32"
            kernel, shared = routes[router.route(kind).__name__], router.route_shared(call.slots, kind)
            card.launch(card.load(kernel), count, shared, routing, stream=stream)
        shared = router.place_shared(call.slots, call.top_k)
        card.launch(card.load(routes["place"]), max(1, count), shared, routing, stream=stream)
        card.launch(
            card.load(persistent.layer_kernel(tile)), blocks, tile.shared_bytes, job, self.state_at, stream=stream
        )  # fmt: skip

    def outcome(self, stream: int) -> None:
        """Wait for what was queued and read how it went into `state`; raises what failed, on every rank."""
        self._wait(stream)
        self._read(0, words.STATE_WORDS, stream)
        statuses = self.tables.starts[words.T_PEER_STATUS]
        self._read(statuses, self.group.world, stream)
        if self.state[words.FAILED] != 0:
            self._raise_failure(stream)
        for first, count in ((words.STATUS, 1), (words.KEPT_STATUS, 2), (statuses, self.group.world)):
            if self.state[first : first + count].any():  # it is known now
                zeros = np.zeros(count, np.int64)
                self.card.copy_in(self.state_at + WORD * first, zeros, stream)

    def _wait(self, stream: int) -> None:
        """Wait for a stream, and hear signals meanwhile. The kernel bounds the wait: see engine/patience.py."""
        since, warned = time.monotonic(), False
        while not self.card.done(stream):
            waited = time.monotonic() - since
            if waited > AWAKE_SECONDS:  # until then it is worth a core
                time.sleep(min(NAP_SECONDS, waited / 10))
            if waited > self.group.timeout and not warned:
                warned = True
                warnings.warn(
                    f"rank {self.group.rank} has waited {waited:.3g} s for its call: a peer may be in user code still;"
                    f" the kernel gives up after {OVERDUE * self.group.timeout:.3g} s",
                    stacklevel=2,
                )

    def read_all(self, stream: int) -> None:
        """The whole state, for counters and messages."""
        self._read(0, self.tables.words, stream)

    def _read(self, first: int, count: int, stream: int) -> None:
        self.card.copy_out(self.state[first : first + count], self.state_at + WORD * first, stream)
        self.card.synchronize(stream)

    def _raise_failure(self, stream: int) -> None:
        self.read_all(stream)
        state, me, epoch = self.state, self.group.rank, int(self.state[words.CALLS])
        origin, cause = int(state[words.ORIGIN]), int(state[words.FAILED])
        if origin == me and cause == codes.CAUSE_TIMEOUT:
            raise WaitTimeout(self._waited(epoch))
        if self._caller is not None and self._caller.error is not None:
            raise EnvironmentProblem(f"rank {me}: its caller of MPI has failed: {self._caller.error}")
        error = PoisonedError(
            f"rank {me}: rank {origin} gave up in epoch {epoch} because {CAUSES.get(cause, cause)};"
            " its own message says more"
        )
        error.origin, error.cause = origin, cause  # type: ignore[attr-defined]
        raise error

    def _waited(self, epoch: int) -> str:
        """Who waited for whom and for what, from the state that the kernel left."""
        state, me = self.state, self.group.rank
        peer, seconds = int(state[words.WAIT_PEER]), self.group.timeout
        job = self._blank_job()
        lock = np.zeros(1, np.int64)  # nobody else looks at this copy
        job[words.LOCK] = lock.ctypes.data
        _, _, (announced, left, read, seen, sent) = arrivals.standing(job, state)
        if peer == me:
            return f"rank {me}: none of its own blocks has moved for {seconds:g} s in epoch {epoch}"
        if announced == codes.UNANNOUNCED:
            what = f"its announcement of epoch {epoch}"
        elif left > 0:
            what = f"{left} announced rows after tile {read}"
        else:
            what = f"the return of tile {seen} of {sent} sent"
        return (
            f"rank {me} waited for rank {peer} in epoch {epoch} for longer than it may (timeout {seconds:g} s, ten of"
            f" them for a rank that has not made its call): {what}; last seen of it: epoch"
            f" {int(state[words.WAIT_EPOCH])}, phase {int(state[words.WAIT_PHASE])}"
        )

    # ------------------------------------------------------------ the end

    def _all_leave(self) -> bool:
        try:
            if self.layout is not None:
                self.idle()
                self._looks = self.card.new_stream()  # the default one would wait for whatever else the card does
                self._read(words.CALLS, 1, self._looks)
                self.epoch = int(self.state[words.CALLS])
            return super()._all_leave()
        except EnvironmentProblem as error:  # the card has failed, and the others do not know
            self.give_up(error)
            raise

    def _word(self, job: np.ndarray, peer: int, word: int) -> int:
        found = np.zeros(1, np.int64)
        self.card.copy_out(found, int(word_from(job, self.state, peer, word)), self._looks)
        return int(found[0])

    def _listen(self, job: np.ndarray) -> None:
        """The thread that calls MPI does."""

    def _fail(self, job: np.ndarray, error: BaseException) -> None:
        cause = getattr(error, "cause", codes.CAUSE_ERROR)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            cause = codes.CAUSE_INTERRUPT
        with self._failing:
            first = self.broken is None
            self.open = False
            if not first:
                return
            self.broken = f"{type(error).__name__}: {error}"
            self.group.abort_at_exit(self.broken)
            if isinstance(error, WaitTimeout | PoisonedError) or self._memory is None:
                return  # the kernel has told the peers
            if self._caller is not None:
                self._caller.poison(getattr(error, "origin", self.group.rank), cause)
            with contextlib.suppress(AristosError):  # the card may be what has failed; then the job ends at exit
                self._poison(getattr(error, "origin", self.group.rank), cause)

    def _poison(self, origin: int, cause: int) -> None:
        self.card.copy_in(self._last_job_at, self._blank_job())
        self.card.launch(self.card.load(persistent.FAIL), 1, 0, self._last_job_at, self.state_at, origin, cause)
        self.card.synchronize()

    def release(self) -> None:
        """One user less; the last one frees everything. Collective."""
        last = self.users == 1
        super().release()
        if last and self.broken is None and not self._is_foreign():
            for at in (self.state_at, self._scratch_at, self._last_job_at):
                if at:
                    self.card.free(at)
            self.state_at = self._scratch_at = self._last_job_at = 0


def local_rank(group: Group) -> int:
    """This process's number on its node, as the launcher says it; else its number among the group's ranks there."""
    for name in LOCAL_RANK:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return group.node.Get_rank() if group.node is not None else 0


class Blocks:
    """How many blocks of a kernel a rank may launch: all that its card holds at once, shared by the ranks on it."""

    def __init__(self, card: Any, sharing: int) -> None:
        self.card, self.sharing = card, sharing

    def of(self, tile: Tile) -> int:
        """For the persistent kernel of a tile. Raises EnvironmentProblem where not even one a rank fits."""
        loaded = self.card.load(persistent.layer_kernel(tile))
        found = self.card.resident(loaded, tile.shared_bytes) * self.card.sms // self.sharing
        if found < 1:
            raise EnvironmentProblem(
                f"{self.card.name} holds no block of {loaded.kernel.name} for each of {self.sharing} ranks that share"
                " it: fewer ranks a card, or a smaller tile"
            )
        return found


def timeout_ns(seconds: float) -> int:
    """A timeout as a job has it."""
    return min(int(seconds * 1e9), MOST_NS)
