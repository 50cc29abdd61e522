"""`MoE(backend="cuda")` under the rules of a CUDA driver: streams, captures, interruption, several layers on a GPU.

The driver is the stand-in of tests/support/fake_cuda.py. The package's own kernels run on the PTX machine.
"""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
import weakref
from types import SimpleNamespace
from unittest import mock

import leftovers
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cases import tokens
from fake_cuda import REAL
from fake_ranks import on_driver
from simt_gpu import FakeComm

import aristos
from aristos import reference
from aristos.engine import words
from aristos.engine.layout import word_from
from aristos.errors import CorruptionError, EnvironmentProblem, InputError, MismatchError, PoisonedError, WaitTimeout
from aristos.substrate.attach import standing
from aristos.substrate.cuda import persistent
from aristos.substrate.cuda.device import CudaDevice

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

CFG = aristos.MoEConfig(hidden=32, ffn=40, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=24)
WEIGHTS = reference.weights(CFG)
NON_BLOCKING = 1
GLOBAL, THREAD_LOCAL, RELAXED = (REAL.CUstreamCaptureMode(n) for n in range(3))


def made(comm, **options):
    moe = aristos.MoE(CFG, comm, backend="cuda", **options)
    moe.load(**WEIGHTS)
    return moe


def right(y, x):
    assert reference.error(y, reference.moe(CFG, x, **WEIGHTS)) < 1e-5


class Array:
    """An array in GPU memory with `__cuda_array_interface__` alone. stream: the stream that it names, or None."""

    def __init__(self, gpu, values, stream=None):
        self.gpu, self.shape, self.dtype, self.stream = gpu, values.shape, values.dtype, stream
        self.at = gpu.allocate(values.nbytes)
        gpu.copy_in(self.at, np.ascontiguousarray(values))
        gpu.synchronize()

    @property
    def __cuda_array_interface__(self):
        return {
            "data": (self.at, False),
            "shape": self.shape,
            "typestr": self.dtype.str,
            "version": 3,
            "stream": self.stream,
        }

    def read(self, stream=0):
        out = np.empty(self.shape, self.dtype)
        self.gpu.copy_out(out, self.at, stream)
        return out


def user(driver, name, *arguments):
    """Call the driver as the user's program would, in the context of its GPU 0. Returns the result."""
    assert int(driver.cuCtxPushCurrent(100)[0]) == 0
    try:
        status, *values = getattr(driver, name)(*arguments)
    finally:
        driver.cuCtxPopCurrent()
    assert not int(status), f"{name}: {status.name}"
    return values[0] if values else None


def pair(gpu, x, stream=None):
    return Array(gpu, x, stream), Array(gpu, np.zeros_like(x), stream)


# ---- captures and replays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["global", "thread local", "relaxed"])
def test_a_capture_on_a_blocking_stream_after_a_call_on_the_default_one(mode):
    """Streams of CuPy and PyTorch wait for the default stream, so a captured call must not use the default stream."""

    def body(comm, rank, driver):
        gpu, first, now = CudaDevice(0), tokens(CFG, 9, seed=1), tokens(CFG, 9, seed=2)
        with made(comm) as moe:
            moe(*pair(gpu, first)[:1], out=pair(gpu, first)[1])
            stream = user(driver, "cuStreamCreate", 0)
            x, y = pair(gpu, first, stream)
            user(driver, "cuStreamBeginCapture", stream, mode)
            moe(x, out=y)
            graph = user(driver, "cuStreamEndCapture", stream)
            for _ in range(2):
                user(driver, "cuGraphLaunch", graph, stream)
            user(driver, "cuStreamSynchronize", stream)
            right(y.read(stream), first)
            gpu.copy_in(x.at, now, stream)
            user(driver, "cuGraphLaunch", graph, stream)
            moe.synchronize()
            right(y.read(stream), now)

    on_driver(1, body)


def test_a_replay_and_a_call_on_another_stream_never_overlap():
    """A replay is a call that Python does not see. The next call waits for the replay nevertheless."""

    def body(comm, rank, driver):
        gpu, x0, x1 = CudaDevice(0), tokens(CFG, 24, seed=1), tokens(CFG, 9, seed=2)
        machine = driver.process.machine
        with made(comm) as moe:
            a, b = (user(driver, "cuStreamCreate", NON_BLOCKING) for _ in range(2))
            replayed, called = pair(gpu, x0, b), pair(gpu, x1, a)
            moe(replayed[0], out=replayed[1])
            moe(called[0], out=called[1])
            moe.synchronize()
            user(driver, "cuStreamBeginCapture", b, RELAXED)
            moe(replayed[0], out=replayed[1])
            graph = user(driver, "cuStreamEndCapture", b)
            for _ in range(3):
                for _, y in (replayed, called):
                    gpu.clear(y.at, y.shape[0] * y.shape[1] * 4, a)
                gpu.synchronize(a)
                user(driver, "cuGraphLaunch", graph, b)
                moe(called[0], out=called[1])
                user(driver, "cuGraphLaunch", graph, b)
                moe.synchronize()
                right(called[1].read(a), x1)
                right(replayed[1].read(b), x0)
            kernels = [most for (_, name), most in machine.most.items() if name.startswith("layer")]
            assert max(kernels) == 1, "two calls on one state at once"

    on_driver(1, body)


def test_no_call_may_wait_for_the_drivers_lock():
    """A load or an allocation may hold the driver's lock until the GPU is idle. Both happen before the first call.

    So a call of any number of tokens, or a capture, needs no call before it.
    """

    def body(comm, rank, driver):
        gpu, machine = CudaDevice(0), driver.process.machine
        with made(comm) as moe:
            stream = gpu.new_stream()
            arrays = [(x, *pair(gpu, x, stream)) for x in (tokens(CFG, n, seed=n) for n in (3, 24, 11))]
            machine.log.clear()
            user(driver, "cuStreamBeginCapture", stream, GLOBAL)
            moe(arrays[0][1], out=arrays[0][2])
            graph = user(driver, "cuStreamEndCapture", stream)
            user(driver, "cuGraphLaunch", graph, stream)
            for _, given, out in arrays[1:]:
                moe(given, out=out)
            moe.synchronize()
            assert not {name for _, name in machine.log} & driver.HOLDS
            for x, _, out in arrays:
                right(out.read(), x)

    on_driver(1, body)


def test_calls_in_parallel_branches_of_a_graph_are_refused_where_ranks_could_differ():
    """Two streams of one capture have a call each. The second call must wait for an event after the first.

    Otherwise ranks could run the two calls in different orders.
    """

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 7, seed=rank)
        with made(comm) as moe:
            a, b = (user(driver, "cuStreamCreate", NON_BLOCKING) for _ in range(2))
            forked, joined = (user(driver, "cuEventCreate", 0) for _ in range(2))
            pairs = [pair(gpu, x, stream) for stream in (a, b, b)]
            user(driver, "cuStreamBeginCapture", a, RELAXED)
            user(driver, "cuEventRecord", forked, a)
            user(driver, "cuStreamWaitEvent", b, forked, 0)
            moe(pairs[0][0], out=pairs[0][1])
            with pytest.raises(InputError, match="calls must not be in parallel branches of a graph"):
                moe(pairs[1][0], out=pairs[1][1])
            user(driver, "cuEventRecord", joined, b)
            user(driver, "cuStreamWaitEvent", a, joined, 0)
            user(driver, "cuStreamEndCapture", a)
            user(driver, "cuStreamBeginCapture", a, RELAXED)
            moe(pairs[0][0], out=pairs[0][1])
            user(driver, "cuEventRecord", forked, a)
            user(driver, "cuStreamWaitEvent", b, forked, 0)
            moe(pairs[2][0], out=pairs[2][1])
            user(driver, "cuEventRecord", joined, b)
            user(driver, "cuStreamWaitEvent", a, joined, 0)
            graph = user(driver, "cuStreamEndCapture", a)
            user(driver, "cuGraphLaunch", graph, a)
            moe.synchronize()
            for _, out in (pairs[0], pairs[2]):
                right(out.read(a), x)

    on_driver(2, body, visible=[[0], [1]])


def test_a_call_in_the_body_of_a_conditional_node_is_refused():
    """The graph of such a body can have no event nodes. Nothing of the call is queued, and the layer stays usable."""

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 7, seed=1)
        with made(comm) as moe:
            stream = gpu.new_stream()
            given, out = pair(gpu, x, stream)
            driver.process.bodies.add(77)
            user(driver, "cuStreamBeginCaptureToGraph", stream, 77, None, None, 0, RELAXED)
            with pytest.raises(InputError, match=r"body of a conditional node or a loop, .*: make the call outside"):
                moe(given, out=out)
            graph = user(driver, "cuStreamEndCapture", stream)
            assert not driver.process.graphs[graph].nodes
            moe(given, out=out)
            moe.synchronize()
            right(out.read(stream), x)

    on_driver(1, body)


def test_replays_in_another_order_on_another_rank_are_an_error_where_layers_differ():
    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 7, seed=rank)
        moe = aristos.MoE(CFG, comm, backend="cuda", layers=2)
        with moe:
            stream, graphs = gpu.new_stream(), []
            given, out = pair(gpu, x, stream)
            for layer in range(2):
                moe.load(layer, **WEIGHTS)
            for layer in range(2):
                user(driver, "cuStreamBeginCapture", stream, RELAXED)
                moe(given, layer=layer, out=out)
                graphs.append(user(driver, "cuStreamEndCapture", stream))
            for graph in graphs if rank == 0 else graphs[::-1]:
                user(driver, "cuGraphLaunch", graph, stream)
            with pytest.raises(MismatchError):
                moe.synchronize()

    on_driver(2, body, visible=[[0], [1]])


def test_a_host_array_does_not_end_a_capture():
    """The call is refused before anything is copied or allocated. The capture goes on, and its graph is right."""

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 9, seed=1)
        with made(comm) as moe:
            stream = gpu.new_stream()
            given, out = pair(gpu, x, stream)
            user(driver, "cuStreamBeginCapture", stream, GLOBAL)
            for arrays in ((x, None), (x, out), (given, np.zeros_like(x))):
                with pytest.raises(InputError, match=r"needs all its arrays in GPU memory, got (x|out) as ndarray"):
                    moe(arrays[0], out=arrays[1], stream=stream)
            with pytest.raises(InputError, match="return_routing cannot be captured"):
                moe(given, out=out, stream=stream, return_routing=True)
            moe(given, out=out, stream=stream)
            user(driver, "cuGraphLaunch", user(driver, "cuStreamEndCapture", stream), stream)
            with pytest.raises(InputError, match="an earlier call"):  # a refusal is a call too: other ranks wait for it
                moe.synchronize()
            right(out.read(stream), x)

    on_driver(1, body)


def test_a_first_call_with_host_arrays_allocates_when_no_call_is_in_flight():
    """An allocation may hold the driver's lock until the GPU is idle, and a call in flight may need the lock."""

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 24, seed=1)
        busy = []
        with made(comm) as moe:
            allocate = type(gpu).allocate

            def noted(self, nbytes):
                busy.append(bool(driver.unfinished(driver.process, 0)))
                return allocate(self, nbytes)

            given, out = pair(gpu, x)
            with mock.patch.object(type(gpu), "allocate", noted):
                moe(given, out=out)
                right(moe(x), x)
            assert busy == [False] * len(busy)
            assert busy

    on_driver(1, body, eager=0.0)


def test_arrays_live_until_a_call_on_a_stream_of_the_callers_has_ended():
    """The arrays' library orders the next use of their memory by its current stream, not by the caller's."""

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 12, seed=1)
        with made(comm) as moe:
            stream = gpu.new_stream()
            for given_stream, kept in ((stream, True), (None, False)):
                given, out = pair(gpu, x, stream)
                moe(given, out=out, stream=given_stream)
                alive = [weakref.ref(array) for array in (given, out)]
                del given, out
                gc.collect()
                assert [ref() is not None for ref in alive] == [kept, kept]
                moe.synchronize()
            later = pair(gpu, x, stream)
            moe(later[0], out=later[1])
            gc.collect()
            assert [ref() for ref in alive] == [None, None]
            assert len(moe._backend._in_flight) == 0

    on_driver(1, body, eager=0.0)


# ---- interruption ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["host", "device"])
def test_ctrl_c_ends_a_call_while_the_kernel_waits_for_a_peer(monkeypatch, where):
    """Rank 0 is interrupted while its kernel, which holds the whole GPU, waits for rank 1.

    The kernel ends, and rank 1's call ends with an error that names rank 0.
    """
    gone, polls = threading.Event(), []

    def interrupted(plain):
        def poll(self, *args):
            if polls and threading.current_thread() is polls[0]:
                polls.append(1)
                if len(polls) == 30:
                    raise KeyboardInterrupt
            return plain(self, *args)

        return poll

    for name in ("done", "passed"):  # a waiting host calls these
        if hasattr(CudaDevice, name):
            monkeypatch.setattr(CudaDevice, name, interrupted(getattr(CudaDevice, name)))

    def body(comm, rank, driver):
        moe = made(comm)
        x = tokens(CFG, 5, seed=rank)
        try:
            if rank == 0:
                polls.append(threading.current_thread())
                started, (given, out) = time.monotonic(), pair(CudaDevice(0), x)
                with pytest.raises(KeyboardInterrupt):
                    _ = moe(x) if where == "host" else (moe(given, out=out), moe.synchronize())
                assert time.monotonic() - started < 20
                assert not driver.unfinished(driver.process, 0), "rank 0's kernel still runs"
                gone.set()
            else:
                assert gone.wait(60)
                with pytest.raises(
                    PoisonedError, match=r"rank 1: rank 0 gave up in epoch 1 because it was interrupted"
                ):
                    moe(x)
        finally:
            gone.set()
            moe._member.runtime.users = 0

    hooks = leftovers.registered()
    on_driver(2, body, seconds=25.0)
    leftovers.drop_since(hooks)


def test_a_kernel_that_hangs_is_given_up_and_its_state_reported(monkeypatch):
    """A worker that does not exist holds the lock, so no block can end. The host's wait is still bounded."""
    for name in ("ANSWER_SECONDS", "LOOK_SECONDS"):  # the stand-in is slower than a driver
        monkeypatch.setattr(f"aristos.substrate.cuda.runtime.{name}", 20.0)

    def body(comm, rank, driver):
        moe, x = made(comm, timeout=0.5, absent_timeout=0.5), tokens(CFG, 5, seed=rank)
        right(moe(x), x)
        runtime, gpu = moe.runtime, CudaDevice(0)
        gpu.copy_in(runtime.state_at + 8 * runtime.tables.words, np.array([1 + 98]))
        gpu.synchronize()
        given, out = pair(gpu, x)
        moe(given, out=out)
        while runtime._progress()[0] < 2:  # on a busy computer the stand-in may take longer than the bound to begin
            assert not gpu.passed(runtime._ended)  # a query lets the kernel go on for a turn
        monkeypatch.setattr("aristos.substrate.cuda.runtime.FAIL_SECONDS", 0.2)
        with pytest.raises(WaitTimeout, match="its own call 2, which makes no progress and does not end") as caught:
            moe.synchronize()
        assert caught.value.__notes__[0].startswith("rank 0 of 1, epoch 2: routing")
        assert "; worker 98 holds the lock" in caught.value.__notes__[0]
        assert "cuda: rank 0 of 1, epoch 2: " in standing()
        runtime.users = 0

    hooks = leftovers.registered()
    on_driver(1, body)
    leftovers.drop_since(hooks)


def test_a_hang_of_two_ranks_names_the_lock_the_run_and_the_tiles(monkeypatch):
    """A worker of rank 0 that computes a run keeps the lock, so rank 1 waits for the rows that it sent to rank 0.

    The error of each rank says so. `standing` of rank 0 says so while the calls are in flight.
    """
    monkeypatch.setattr("fake_kernels.TURN", 500)  # warp instructions that a kernel runs at a time
    monkeypatch.setattr("aristos.substrate.cuda.runtime.FAIL_SECONDS", 0.2)
    for name in ("ANSWER_SECONDS", "LOOK_SECONDS"):  # the stand-in is slower than a driver
        monkeypatch.setattr(f"aristos.substrate.cuda.runtime.{name}", 60.0)
    sent, held, seen = threading.Event(), threading.Event(), []

    def words_of(runtime, gpu, pattern):
        """Wait until this rank's report of its call in flight matches `pattern`. Returns the match."""
        while (found := re.search(pattern, runtime.standing(), re.S)) is None:
            assert not gpu.passed(runtime._ended), "the call has ended"  # a query lets the kernel go on for a turn
        return found

    def body(comm, rank, driver):
        moe, x = made(comm, timeout=0.5, absent_timeout=0.5), tokens(CFG, 24, seed=rank)
        right(moe(x), x)
        runtime, gpu = moe.runtime, CudaDevice(0)
        given, out = pair(gpu, x)
        moe(given, out=out)
        if rank == 1:
            words_of(runtime, gpu, r"\n  rank 0: 0 rows must still be sent, [1-9]")
            sent.set()
            assert held.wait(100)
        else:
            assert sent.wait(100)
            found = words_of(runtime, gpu, r"the lock is free.*\n  workers? (\d+)\S*: computes share")
            gpu.copy_in(runtime.state_at + 8 * runtime.tables.words, np.array([1 + int(found[1])]))
            seen.extend([found[1], standing()])
            held.set()
        with pytest.raises(WaitTimeout) as caught:
            moe.synchronize()
        runtime.users = 0
        return caught.value.__notes__[0]

    hooks = leftovers.registered()
    holds, waits = on_driver(2, body, visible=[[0], [1]], eager=0.0)
    leftovers.drop_since(hooks)
    worker, meanwhile = seen
    for line in (
        rf"rank 0 of 2, epoch 2: running, \d+ commands published; worker {worker} holds the lock$",
        rf"^  workers? {worker}\S*: computes share \d+ of the (first|second) product of run \d+$",
        r"^  run \d+: \d+ rows of held expert \d; \d+ shares are open, \d+ taken, \d+ done$",
    ):
        for text in (meanwhile, holds):
            assert re.search(line, text, re.M), text
    for line in (
        r"^rank 1 of 2, epoch 2: running, ",
        r"^  rank 0: announced \d+ rows for this rank; \d+ rows' records are not read yet, \d+ tiles are read of \d+ ",
        r"^  rank 0: 0 rows must still be sent, [1-9]\d* of \d+ ring rows are in use; [1-9]\d* sent tiles must come",
    ):
        assert re.search(line, waits, re.M), waits


def test_a_damaged_word_ends_the_call_on_both_gpus():
    """The kernel that reads the damaged word notifies the other kernel. The host names the word."""

    def body(comm, rank, driver):
        moe, x = made(comm), tokens(CFG, 5, seed=rank)
        moe(x)
        comm.Barrier()
        runtime = moe.runtime
        try:
            if rank == 1:
                runtime.read_all()
                at = int(word_from(runtime._blank_job(), runtime.state, 0, words.CREDIT))
                runtime.device.copy_in(at, np.array([1 << 40]))
                with pytest.raises(CorruptionError, match=rf"^rank 1 in epoch 2 .* its credit, got {1 << 40}"):
                    moe(x)
            else:
                damaged = "rank 0: rank 1 gave up in epoch 2 because a word that it read was damaged"
                with pytest.raises(PoisonedError, match=damaged):
                    moe(x)
        finally:
            runtime.users = 0

    hooks = leftovers.registered()
    on_driver(2, body, seconds=25.0)
    leftovers.drop_since(hooks)


# ---- streams of array libraries --------------------------------------------------------------------------------------


def test_results_are_ordered_on_pytorchs_current_stream(monkeypatch):
    """PyTorch's current stream is not the default one. The call reads what PyTorch has queued before the call.

    What PyTorch queues after the call reads the call's result. The host does not wait in between.
    """
    streams = {}
    torch = SimpleNamespace(
        cuda=SimpleNamespace(current_stream=lambda device=None: SimpleNamespace(cuda_stream=streams["now"]))
    )
    monkeypatch.setitem(sys.modules, "torch", torch)

    class Tensor(Array):
        pass

    Tensor.__module__ = "torch"

    def body(comm, rank, driver):
        gpu, x = CudaDevice(0), tokens(CFG, 12, seed=1)
        with made(comm) as moe:
            streams["now"] = user(driver, "cuStreamCreate", NON_BLOCKING)
            given, out, copy = (Tensor(gpu, np.zeros_like(x)) for _ in range(3))
            pinned, _ = gpu.host(x.nbytes)
            pinned[:] = x.view(np.uint8).reshape(-1)
            gpu.copy_in(given.at, pinned, streams["now"])
            moe(given, out=out)
            gpu.copy(copy.at, out.at, x.nbytes, streams["now"])
            gpu.synchronize(streams["now"])
            right(copy.read(), x)
            moe.synchronize()

    on_driver(1, body, eager=0.2)


# ---- several GPUs, several layers ------------------------------------------------------------------------------------


def test_a_rank_that_sees_only_its_own_gpu():
    """CUDA IPC opens the memory of a GPU that CUDA_VISIBLE_DEVICES hides."""

    def body(comm, rank, driver):
        with made(comm) as moe:
            x = tokens(CFG, 7 + rank, seed=rank)
            right(moe(x), x)

    on_driver(2, body, visible=[[0], [1]])


def test_two_layers_share_a_gpu_in_any_order():
    """Ranks queue calls of two layers on two communicators in opposite orders. Each layer has an SM."""

    def body(comm, rank, driver):
        gpu = CudaDevice(rank)
        other = FakeComm(comm.together, comm.rank)
        layers = [made(each, sms=1) for each in (comm, other)]
        streams = [gpu.new_stream() for _ in layers]
        x = [tokens(CFG, 6 + rank + n, seed=n) for n in range(2)]
        arrays = [pair(gpu, x[n], streams[n]) for n in range(2)]
        for _ in range(2):
            for n in (0, 1) if rank == 0 else (1, 0):
                layers[n](arrays[n][0], out=arrays[n][1])
        for n in range(2):
            layers[n].synchronize()
            right(arrays[n][1].read(streams[n]), x[n])
        for layer in layers:
            layer.close()

    on_driver(2, body, sms=2, seconds=25.0)


def test_a_budget_of_sms():
    def body(comm, rank, driver):
        for sms, why in ((0, "positive"), (3, "sms must be at most 2"), ("all", "positive")):
            with pytest.raises(InputError, match=why):
                aristos.MoE(CFG, comm, backend="cuda", sms=sms)
        with pytest.raises(InputError, match="sms applies only to backend='cuda'"):
            aristos.MoE(CFG, comm, backend="cpu", sms=1)

    on_driver(1, body, sms=2)


def test_kernels_that_count_are_refused_where_not_all_their_blocks_fit(monkeypatch):
    """Blocks that are not resident at once would wait for each other forever. The layer goes on without counters."""
    plain = CudaDevice.resident
    monkeypatch.setitem(persistent.ROWS, "f32", (16,))  # one tile: other tests compile the kernel too

    def fewer(self, loaded, shared_bytes):
        return plain(self, loaded, shared_bytes) - loaded.kernel.name.endswith("_counted")

    def body(comm, rank, driver):
        with made(comm) as moe:
            with monkeypatch.context() as patched:
                patched.setattr(CudaDevice, "resident", fewer)
                with pytest.raises(EnvironmentProblem, match=r"timeline\(True\) needs .*_counted, .* with sms=1$"):
                    moe.timeline(True)
            moe.timeline(True)
            x = tokens(CFG, 5, seed=0)
            right(moe(x), x)

    on_driver(1, body)
