"""The engine of one communicator on GPUs. Windows are shared by CUDA IPC; the state and the jobs lie in GPU memory.

The host writes a job once. A call is at most five launches. The host reads the state when a call has ended. With remote
peers a proxy thread calls MPI (proxy_thread.py).

Calls share one state, so they run one after another, whatever their streams. Each call waits for an event that the call
before it records, even if the earlier call is a replay of a graph. The host's own copies and queries have a separate
stream. Driver calls that may hold the driver's lock while they wait for the GPU are made only while no call is in
flight.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kernel_cache.texts import whole

from ...engine import arrivals, codes, schema, words
from ...engine import job as jobs
from ...engine.layout import LINE, WORD, EngineShape, StateLayout, lines, word_from
from ...errors import AristosError, CorruptionError, EnvironmentProblem, InputError, PoisonedError, WaitTimeout
from ...host import mpi_facts
from ...kernels.cuda import capacity, router
from ...kernels.cuda.catalogue import route_kernels
from ...kernels.cuda.tile import Tile
from ...primitives.memory import store_release
from ...transport.group import Group
from ...transport.limits import ABSENT, TIMEOUT
from ...transport.warning import warn
from ...transport.window import Window
from .. import standing
from ..failure import bad_word, poisoned, wait_message
from ..idle import ALONE, CROWDED
from ..runtime import Runtime
from ..windows import EngineMemory
from . import device_puts, persistent
from .device import CudaDevice
from .interrupts import PROCESS as INTERRUPTS
from .outboxes import DeviceMemory
from .proxy_thread import DeviceWire, ProxyThread

MOST_ROWS = 256  # most rows of a tile
MOST_NS = 1 << 61  # the longest timeout; the sum of two, which kernels compute, still fits a word
MERGE_POLLS = 8  # idle polls for which a run of few rows waits for more rows of its expert
ANSWER_SECONDS = 0.3  # how long the driver may take to answer; then an abort or a check continues without its answer
LOOK_SECONDS = 2.0  # how long the driver may take to copy the state
ASK_SECONDS = 1.0  # interval at which the progress of a long call is read
FAIL_SECONDS = 5.0  # how long a failing rank waits for its GPU to notify the peers
AWAKE_SECONDS, NAP_SECONDS = 0.002, 0.01  # how long the host polls without pauses; its longest pause later
NO_JOB = np.zeros(0, np.int64)  # for `Runtime.failing`: the job is on the GPU
# Variables with the process's number on its node, the innermost launcher's first. A launcher counts all ranks of the
# job; the group may have fewer ranks on the node.
LOCAL_RANK = tuple(rank for rank, _ in mpi_facts.LOCAL)


class CudaRuntime(Runtime):
    """The engine of one communicator on GPUs. Each rank has one GPU, which ranks may share. device: this rank's GPU."""

    def __init__(self, group: Group, forget: Callable[[Runtime], None] = lambda runtime: None) -> None:
        super().__init__(group, forget)
        self.device = self._on_all(lambda: CudaDevice.find(local_rank(group)))
        self._ranks_on_gpu = group.allgather(self.device.uuid, "their GPUs").count(self.device.uuid)
        self.state_at = self._scratch_at = self._failure_job_at = self._shared = 0
        self._mirror = 0, 0  # (address for kernels, bytes) of what remote peers put
        self._proxy: ProxyThread | None = None
        self._device_wire: DeviceWire | None = None
        self._ended = self.device.event(timed=False)  # recorded at the end of every call
        self._abort, self._abort_at = self.device.host(LINE)  # a word that ends the call in flight
        self._captured: tuple[int, Any] | None = None  # (number of the last capture, its last node of a call)
        INTERRUPTS.join(self)

    def idle(self) -> None:
        """Wait until this GPU does nothing for this engine. Only then may peers free memory that this GPU writes to.

        The wait can be interrupted, and holds no lock of the driver.
        """
        with contextlib.suppress(EnvironmentProblem):  # a GPU that has failed does no work either
            self._wait()

    def _on_all(self, step: Callable[[], Any]) -> Any:
        return self.group.on_all(step, "memory of their GPUs")

    # ------------------------------------------------------------ capacity

    def require(self, shape: EngineShape, scratch: int, shared: int, threads: int) -> None:
        """See `Runtime.require`. shared: bytes of hidden activations; threads: blocks; scratch is not used."""
        shape, workers, grown = self.grown(shape, threads)
        first = self.shape is None
        try:
            if grown:
                self._allocate(shape, workers)
            if any(self.group.allgather(shared > self._shared, "hidden activations")):
                self._on_all(lambda: self._make_scratch(max(shared, self._shared)))
        except AristosError as error:
            if not first:  # old memory was freed before, so the engine is unusable on all ranks
                self.failure.reason = f"its memory could not grow for another layer: {error}"
            raise

    def _make_scratch(self, nbytes: int) -> None:
        self.version += 1
        old, self._scratch_at, self._shared = self._scratch_at, 0, 0
        if old:
            self.idle()
            self.device.free(old)
        self._scratch_at = self.device.allocate(nbytes)
        self._shared = nbytes

    def _window(self, nbytes: int) -> Window:
        return self.group.local_window(nbytes, self.device)

    def _allocate(self, shape: EngineShape, workers: int) -> None:
        """Make new windows and a new state."""
        tables = StateLayout(shape, workers, MOST_ROWS, persistent.MOST_RUNS)
        if self._memory is not None:
            self.idle()
            with self.group.together("the other ranks to free windows"):
                self.group.watch_calls(None)
                self._memory.close()
            self._memory = None
            self.version += 1
            old, self.state_at = self.state_at, 0
            self.device.free(old)
        memory = self._on_all(lambda: self._make_memory(shape))
        state = np.zeros(tables.words, np.int64)
        memory.fill(state, tables.starts)
        self.state_at = self._on_all(lambda: self.device.allocate(WORD * tables.words + LINE))
        if not self._failure_job_at:  # made now: notifying peers of a failure must neither allocate nor load
            self._failure_job_at = self._on_all(lambda: self.device.allocate(WORD * (jobs.size(0, 0))))
            self._on_all(lambda: self.device.load(persistent.FAIL))
        self.device.copy_in(self.state_at, state)
        self._adopt(memory, tables, state, workers)
        self._mirror = 0, 0
        if isinstance(memory, DeviceMemory):
            self._mirror = memory.mirror, memory.mirror_bytes
            self._start_proxy(memory)
        self.group.meet("the other ranks to allocate")

    def _make_memory(self, shape: EngineShape) -> EngineMemory:
        if self.group.nodes.single:
            return EngineMemory(self.group, shape, self._window)
        return DeviceMemory(self.group, shape, self._window, self.device, self._mpi_puts_from_device())

    def _mpi_puts_from_device(self) -> bool:
        """Whether MPI puts from the memory of this node's GPUs. The node's first rank tries it. Collective."""
        me, answer = self.group.rank, None
        first = min([me, *self.group.nodes.local(me)])
        if first == me:
            answer = device_puts.probe(self.device.ordinal, min(device_puts.SECONDS, self.group.limits.timeout))
        return bool(self.group.allgather(answer, "the first ranks of nodes to try puts from a GPU")[first].supported)

    def _start_proxy(self, memory: DeviceMemory) -> None:
        """Start the proxy thread; `_allocate` then waits for all ranks."""
        if self._device_wire is None:
            self._device_wire = DeviceWire(self.group.world)
        sides = memory.sides(self._device_wire.address, CROWDED if self._sharing > 1 else ALONE)
        self._proxy = ProxyThread(sides, self.device, self.group.rank)
        self.group.watch_calls(memory.calling)
        memory.start(self._proxy.run)

    # ------------------------------------------------------------ jobs

    def fill(self, job: np.ndarray, lock: int = 0) -> None:
        """See `Runtime.fill`. lock: address of a lock for a copy of the state; 0: the state's own lock."""
        self.fill_engine(
            job,
            schema.CUDA,
            return_stride=lines(int(job[words.ROW_BYTES])),
            merge_polls=MERGE_POLLS,
            wire=0,
            scratch=self._scratch_at,
            lock=lock or self.state_at + WORD * self.tables.words,
            state=self.state_at,
            abort=self._abort_at,
            mirror=self._mirror[0],
            mirror_bytes=self._mirror[1],
        )

    def fill_tile(self, job: np.ndarray, tile: Tile, blocks: int, gated: bool) -> None:
        """Write the part `tile` of a job, for the kernel that runs it.

        gated: whether experts have a gate projection.
        """
        hidden, ffn, shared = (int(job[word]) for word in (words.HIDDEN, words.FFN, words.SHARED_FFN))
        runs = persistent.column_split_runs(tile, hidden, ffn, shared, gated, blocks)
        jobs.fill(
            job,
            schema.TILE,
            schema.CUDA,
            tile=tile.m,
            batch=tile.m,
            run_rows=tile.m,
            merge_rows=tile.m // 2,
            workers=blocks,
            **runs,
        )

    # ------------------------------------------------------------ calls

    def enter(self, caller: int) -> None:
        """See `Runtime.enter`. From now on Ctrl-C is noticed, also while the call's arguments are copied."""
        super().enter(caller)
        INTERRUPTS.arm()

    def resident_blocks(self, tile: Tile, sms: int | None = None, counted: bool = False) -> int:
        """How many blocks of a tile's persistent kernel this rank may launch: its share of what its GPU holds at once.

        Raises EnvironmentProblem if the GPU cannot hold a block of each rank. sms: most SMs to use. The GPU may place
        every block on its own SM, so there are at most `sms` blocks. counted: see `persistent.layer`.
        """
        loaded = self.device.load(persistent.layer_kernel(tile, counted))
        found = self.device.resident(loaded, tile.shared_bytes) * self.device.sms
        if sms is not None:
            if sms > self.device.sms:
                raise InputError(
                    f"sms must be at most {self.device.sms}, the number of SMs of {self.device.name}, got {sms}"
                )
            found = min(found, sms)
        found //= self._ranks_on_gpu
        if found < 1:
            raise EnvironmentProblem(
                f"{self.device.name} has no space for a block of {loaded.kernel.name} for each of the"
                f" {self._ranks_on_gpu} ranks that share it: use fewer ranks on each GPU"
            )
        return found

    def launch(
        self, tile: Tile, blocks: int, job: int, routing: int, call: Any, stream: int, counted: bool = False
    ) -> None:
        """Queue a call on a stream: the kernels that open it, route it or check its routing, pack, and run the layer.

        job, routing: addresses of the jobs on the GPU. call: has x, x_stride, router_x, router_x_stride, tokens, y,
        ids, weights, given_ids, given_weights (addresses), status, capacity, kind, slots, pitch, captured. counted:
        see `persistent.layer`.
        """
        device = self.device
        capturing = device.capturing(stream)
        if not call.captured:
            self.follow(stream, capturing)
        opening = persistent.opening(
            job_address=job,
            state_address=self.state_at,
            routing_address=routing,
            x=call.x,
            x_stride=call.x_stride,
            tokens=call.tokens,
            y=call.y,
            ids=call.ids,
            weights=call.weights,
            status=call.status,
            router_x=call.router_x or call.x,
            router_x_stride=call.router_x_stride or call.x_stride,
            given_ids=call.given_ids,
            given_weights=call.given_weights,
            most=call.capacity,
        )
        device.launch(device.load(persistent.BEGIN), 1, 0, *opening, stream=stream)
        routes, count = route_kernels(), router.blocks(call.tokens)
        if count:
            kind = router.kind_of_rows(call.kind)
            shared = router.route_shared(call.slots, kind, call.pitch if call.capacity else 0)
            device.launch(device.load(routes[router.route(kind).__name__]), count, shared, routing, stream=stream)
        if count and call.capacity:
            shared = capacity.drop_shared(call.slots, call.pitch)
            device.launch(device.load(routes["drop"]), count, shared, routing, stream=stream)
        shared = router.place_shared(call.slots, call.pitch)
        device.launch(device.load(routes["place"]), max(1, count), shared, routing, stream=stream)
        kernel = device.load(persistent.layer_kernel(tile, counted))
        device.launch(kernel, blocks, tile.shared_bytes, job, self.state_at, stream=stream)
        device.record(self._ended, stream, capturing)
        if capturing and self.group.world > 1:
            number, nodes = device.captured(stream)
            self._captured = (number, nodes[0]) if nodes else None

    def refuse_branch(self, stream: int) -> None:
        """Raise InputError if a capture does not order this call after the capture's last call.

        The ranks' orders might differ.
        """
        if self.group.world == 1 or self._captured is None:
            return
        number, nodes = self.device.captured(stream)
        if number == self._captured[0] and not self.device.follows(nodes, self._captured[1]):
            raise InputError(
                "calls must not be in parallel branches of a graph, because ranks could run them in different orders:"
                " let the stream of the second call wait for an event that is recorded after the first"
            )

    def follow(self, stream: int, capturing: bool = False) -> None:
        """Let later work of a stream wait for all calls queued so far. capturing: see `device.wait`."""
        self.device.wait(stream, self._ended, capturing)

    def prepare(self, tiles: list[Tile], counted: bool = False) -> None:
        """Load every kernel that calls of these tiles need, because a later load might wait for the GPU.

        counted: see `persistent.layer`.
        """
        for kernel in (persistent.BEGIN, persistent.FAIL, *route_kernels().values()):
            self.device.load(kernel)
        for tile in tiles:
            self.device.load(persistent.layer_kernel(tile, counted))

    def outcome(self) -> None:
        """Wait for the queued calls, and read into `state` how they ended. Raises on every rank if one has failed."""
        self._wait()
        self._read(0, words.STATE_WORDS)
        statuses = self.tables.starts[words.T_PEER_STATUS]
        self._read(statuses, self.group.world)
        if self.state[words.FAILED] != 0:
            self._raise_failure()
        for first, count in ((words.STATUS, 1), (words.KEPT_STATUS, 2), (statuses, self.group.world)):
            if self.state[first : first + count].any():  # the refusal has been read, so clear it for the next call
                zeros = np.zeros(count, np.int64)
                self.device.copy_in(self.state_at + WORD * first, zeros)

    def _wait(self) -> None:
        """Wait for all calls; Ctrl-C can interrupt the wait.

        The kernel bounds its own waits (engine/timeout_check.py). If it cannot end because a block hangs, the host
        raises WaitTimeout.
        """
        limits, since, warned = self.group.limits, time.monotonic(), False
        longest, moved, asked, seen = limits.timeout + limits.absent + FAIL_SECONDS, since, since, (0, 0)
        answers = [seen]  # the last answer of the driver; until a late answer comes, the call counts as stuck
        while not self.device.passed(self._ended):
            now = time.monotonic()
            waited = now - since
            if now - asked > ASK_SECONDS and self.layout is not None:
                if answers:
                    answers = self._answer(self._progress, ANSWER_SECONDS)
                asked, before, seen = now, seen, answers[0] if answers else seen
                if seen != before:
                    moved = now
                elif now - moved > longest:
                    number = f" {seen[0]}" if seen[0] else ""  # 0: the driver has never answered
                    raise WaitTimeout(
                        f"rank {self.group.rank} has waited {now - moved:.3g} s (limit {longest:g} s) for its own call"
                        f"{number}, which makes no progress and does not end: see with nvidia-smi whether another"
                        " kernel holds the GPU; if not, a block of this call hangs"
                    )
            if waited > AWAKE_SECONDS:  # a short wait polls without pauses
                time.sleep(min(NAP_SECONDS, waited / 10))
            if waited > self.group.limits.timeout and not warned:
                warned = True
                warn(
                    f"rank {self.group.rank} has waited {waited:.3g} s for its call: a peer may still be in user code;"
                    f" the kernel gives up after {self.group.limits.absent:g} s ({ABSENT})"
                )

    def _progress(self) -> tuple[int, int]:
        """(calls begun, commands published), read from the GPU now."""
        found = np.zeros(2, np.int64)
        for i, word in enumerate((words.CALLS, words.PROGRESS)):
            self.device.copy_out(found[i : i + 1], self.state_at + WORD * word)
        return int(found[0]), int(found[1])

    def read_all(self) -> None:
        """Copy the whole state from the GPU, for counters and messages."""
        self._read(0, self.tables.words)

    def _read(self, first: int, count: int) -> None:
        self.device.copy_out(self.state[first : first + count], self.state_at + WORD * first)

    # ------------------------------------------------------------ failure

    def _raise_failure(self) -> None:
        self.read_all()
        state, me, epoch = self.state, self.group.rank, int(self.state[words.CALLS])
        origin, cause = int(state[words.ORIGIN]), int(state[words.FAILED])
        if origin == me and cause == codes.CAUSE_TIMEOUT:
            raise WaitTimeout(self._wait_message(epoch))
        if origin == me and state[words.BAD_WORD] != 0:
            raise bad_word(me, epoch, state)
        if self._proxy is not None and self._proxy.error is not None:
            raise EnvironmentProblem(f"rank {me}: its proxy thread has failed: {self._proxy.error}")
        raise poisoned(me, origin, epoch, cause)

    def _wait_message(self, epoch: int) -> str:
        """The message for the wait that the kernel gave up, made from the state that it left."""
        state, limits = self.state, self.group.limits
        if state[words.UNBEGUN] != 0:
            return (
                f"rank {self.group.rank} waited more than {limits.timeout + limits.absent:g} s ({TIMEOUT} + {ABSENT})"
                f" for its own call of epoch {epoch}, which is in flight and makes no progress: see whether another"
                " kernel holds this GPU, and whether all ranks queue their calls in the same order"
            )
        peer, seen = int(state[words.WAIT_PEER]), (int(state[words.WAIT_EPOCH]), int(state[words.WAIT_PROGRESS]))
        job = np.zeros(jobs.size(0, 0), np.int64)
        lock = np.zeros(1, np.int64)  # the lock of this copy of the state, which nothing else uses
        self.fill(job, lock.ctypes.data)
        jobs.update(job, epoch=self.epoch)
        _, _, owed = arrivals.standing(job, state)
        outside = peer != self.group.rank and (seen[0] != epoch or seen[1] < 0)
        name, limit = (ABSENT, limits.absent) if outside else (TIMEOUT, limits.timeout)
        waited = f"more than {limit:g} s ({name})"
        me = self.group.rank
        return wait_message(me, peer, epoch, waited=waited, name=name, owed=owed, seen=seen, rail=me)

    def _notify_peers(self, job: np.ndarray, error: BaseException, origin: int, cause: int) -> None:
        if self._memory is None:
            return
        store_release(self._abort.ctypes.data, cause)  # lets the call in flight notify the peers, and end
        if isinstance(error, WaitTimeout | PoisonedError | CorruptionError):
            return  # the kernel has notified the peers, or is unable to
        if self._proxy is not None:
            self._proxy.poison(origin, cause)
        with contextlib.suppress(AristosError):  # perhaps the GPU itself has failed; then the job ends at exit
            self._answer(lambda: self._launch_failure(origin, cause), 3 * FAIL_SECONDS)

    def _launch_failure(self, origin: int, cause: int) -> None:
        """Notify the peers by a kernel, once the call in flight has ended."""
        self._until(lambda: self.device.passed(self._ended))
        self.device.copy_in(self._failure_job_at, self._blank_job())
        fail, stream = self.device.load(persistent.FAIL), self.device.stream
        self.device.launch(fail, 1, 0, self._failure_job_at, self.state_at, origin, cause)
        self._until(lambda: self.device.done(stream))

    def interrupt(self) -> None:
        """End the calls in flight and refuse later ones, because Ctrl-C came while the main thread is in a driver call.

        A thread of `Interrupts` calls this. If no call is in flight, the layer stays usable. If the driver does not
        answer, a call counts as in flight. What the call waited for is printed to stderr, because the program may hang.
        """
        if self.broken is not None:
            return
        found = [f"rank {self.group.rank}: the driver has not answered for {ANSWER_SECONDS:g} s"]
        with contextlib.suppress(AristosError):  # on a GPU that has failed nothing is in flight
            found = self._answer(self._in_flight, ANSWER_SECONDS) or found
            if found[0]:
                error = KeyboardInterrupt("Ctrl-C while the program waited for its GPU")
                text = f"aristos: Ctrl-C during a call\n{found[0]}"
                stderr = {"file": sys.stderr, "flush": True}  # printing may block too
                threading.Thread(target=print, args=(text,), kwargs=stderr, daemon=True).start()
                self._fail(NO_JOB, error, "it was interrupted")  # the engine is unusable before the call ends

    def _in_flight(self) -> str:
        """The text of `standing` if a call is in flight, else ''."""
        return "" if self.device.passed(self._ended) else self.standing()

    @staticmethod
    def _answer(ask: Callable[[], Any], seconds: float) -> list[Any]:
        """Let another thread call ask(). Returns [result], or [] after `seconds`: the driver may never answer."""
        answers: list[Any] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                answers.append(ask())
            except Exception as error:
                errors.append(error)

        asking = threading.Thread(target=run, daemon=True)
        asking.start()
        asking.join(seconds)
        if errors:
            raise errors[0]
        return answers

    @staticmethod
    def _until(what: Callable[[], bool]) -> None:
        """Wait FAIL_SECONDS at most until what() is true. The wait is long only if a user's kernel occupies the GPU."""
        since = time.monotonic()
        while not what() and time.monotonic() - since < FAIL_SECONDS:
            time.sleep(min(NAP_SECONDS, 1e-3))

    # ------------------------------------------------------------ the end

    def _all_leave(self) -> bool:
        try:
            if self.layout is not None:
                self.idle()
                self._read(words.CALLS, 1)
                self.epoch = int(self.state[words.CALLS])
            return super()._all_leave()
        except EnvironmentProblem as error:  # the GPU has failed, and the other ranks must be notified
            self.give_up(error)
            raise

    def _receive(self, job: np.ndarray) -> None:
        pass  # the proxy thread does this, in calls and between them

    def _standing(self, job: np.ndarray) -> str:
        def look() -> str:
            copy = job.copy()
            state, lock = np.zeros(self.tables.words, np.int64), np.zeros(1, np.int64)
            self.device.copy_out(state, self.state_at)
            self.device.copy_out(lock, self.state_at + WORD * self.tables.words)
            jobs.update(copy, epoch=state[words.CALLS])
            return standing.describe(copy, state, int(lock[0]), lambda p, w: self._read_word(copy, p, w))

        found = self._answer(look, LOOK_SECONDS)
        return found[0] if found else f"rank {self.group.rank}: the driver has not answered for {LOOK_SECONDS:g} s"

    def _read_word(self, job: np.ndarray, peer: int, word: int) -> int:
        found = np.zeros(1, np.int64)
        self.device.copy_out(found, int(word_from(job, self.state, peer, word)))
        return int(found[0])

    def _end_threads(self) -> None:
        super()._end_threads()
        INTERRUPTS.leave(self)

    def _free(self) -> None:
        for at in (self.state_at, self._scratch_at, self._failure_job_at):
            if at:
                self.device.free(at)
        self.state_at = self._scratch_at = self._failure_job_at = 0
        self.device.free_host(self._abort)


def local_rank(group: Group) -> int:
    """This process's number on its node: the launcher's, or else its number among the group's ranks on the node."""
    for name in LOCAL_RANK:
        if (number := whole(os.environ.get(name, ""))) is not None:
            return number
    return group.node.Get_rank() if group.node is not None else 0


def timeout_ns(seconds: float) -> int:
    """A timeout in nanoseconds, at most MOST_NS, for a word of a job."""
    return min(int(seconds * 1e9), MOST_NS)
