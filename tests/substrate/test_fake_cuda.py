"""The stand-in for the CUDA driver, tests/support/fake_cuda.py, is called like cuda.bindings and keeps CUDA's rules."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed: pip install 'aristos[simt]'")
import fake_cuda
from fake_cuda import REAL, Machine, Process

GLOBAL, THREAD_LOCAL, RELAXED = (REAL.CUstreamCaptureMode(n) for n in range(3))
BLOCKING, NON_BLOCKING = 0, 1


class Here:
    """Driver calls of one process, in the context of its GPU 0. A call returns its result, or the name of its error."""

    def __init__(self, driver):
        self.driver = driver
        self("cuInit", 0)
        self("cuCtxPushCurrent", 100)

    def __call__(self, name, *arguments):
        status, *values = getattr(self.driver, name)(*arguments)
        if int(status):
            return status.name.removeprefix("CUDA_ERROR_")
        return values[0] if values else None

    def memory(self, value, stream=None):
        """Eight bytes of device memory, all of this value."""
        at = self("cuMemAlloc", 8)
        stream = self("cuStreamCreate", NON_BLOCKING) if stream is None else stream
        self("cuMemsetD8Async", at, value, 8, stream)
        self("cuStreamSynchronize", stream)
        return at

    def read(self, at):
        """The first byte now, without waiting for anything."""
        return int(self.driver.view(self.driver.process, at, 1)[0])


@pytest.fixture
def here():
    return Here(fake_cuda.Driver(Process(Machine(gpus=2))))


def test_the_legacy_stream_and_blocking_streams_wait_for_each_other(here):
    """A wait for the last operation runs the earlier ones of both streams. Non-blocking streams are independent."""
    at, other = here.memory(1), here.memory(1)
    blocking, apart = here("cuStreamCreate", BLOCKING), here("cuStreamCreate", NON_BLOCKING)
    here("cuMemsetD8Async", at, 2, 8, blocking)
    here("cuMemsetD8Async", other, 9, 8, apart)
    here("cuMemsetD8Async", at, 3, 8, 0)
    here("cuMemsetD8Async", at, 4, 8, blocking)
    here("cuStreamSynchronize", blocking)
    assert (here.read(at), here.read(other)) == (4, 1)
    here("cuMemsetD8Async", at, 5, 8, blocking)
    here("cuStreamSynchronize", 0)
    assert here.read(at) == 5
    here("cuStreamSynchronize", apart)
    assert here.read(other) == 9


def test_a_stream_waits_for_the_last_record_of_an_event_before_the_call(here):
    at = here.memory(1)
    a, b, event = here("cuStreamCreate", 1), here("cuStreamCreate", 1), here("cuEventCreate", 2)
    assert here("cuEventQuery", event) is None, "an event that was never recorded is complete"
    here("cuMemsetD8Async", at, 2, 8, a)
    here("cuEventRecord", event, a)
    assert here("cuEventQuery", event) in ("NOT_READY", None)
    here("cuStreamWaitEvent", b, event, 0)
    here("cuMemsetD8Async", at, 3, 8, a)  # after the record
    here("cuStreamSynchronize", b)
    assert here.read(at) == 2
    here("cuEventSynchronize", event)
    assert here("cuStreamWaitEvent", b, event, 1) == "INVALID_VALUE", "the external flag is for captures"


@pytest.mark.parametrize("kind", [BLOCKING, NON_BLOCKING])
def test_the_legacy_stream_during_a_capture(here, kind):
    """Using the legacy stream invalidates the capture of a blocking stream, and no other capture."""
    at, stream = here.memory(1), here("cuStreamCreate", kind)
    here("cuStreamBeginCapture", stream, RELAXED)
    here("cuMemsetD8Async", at, 2, 8, stream)
    wrong = here("cuMemsetD8Async", at, 3, 8, 0)
    asked = here("cuStreamIsCapturing", 0)
    graph = here("cuStreamEndCapture", stream)
    if kind == BLOCKING:
        assert (wrong, asked, graph) == (
            "STREAM_CAPTURE_IMPLICIT",
            "STREAM_CAPTURE_IMPLICIT",
            "STREAM_CAPTURE_INVALIDATED",
        )
        return
    assert wrong is None
    here("cuStreamSynchronize", 0)
    assert here.read(at) == 3, "captured work must not run"
    here("cuGraphLaunch", graph, stream)
    here("cuStreamSynchronize", stream)
    assert here.read(at) == 2


@pytest.mark.parametrize(
    "act",
    [
        lambda here, stream: here("cuStreamSynchronize", stream),
        lambda here, stream: here("cuStreamQuery", stream),
    ],
    ids=["synchronize", "query"],
)
def test_a_capturing_stream_may_not_be_waited_for(here, act):
    stream = here("cuStreamCreate", NON_BLOCKING)
    here("cuStreamBeginCapture", stream, RELAXED)
    assert act(here, stream) == "STREAM_CAPTURE_UNSUPPORTED"
    assert here("cuStreamBeginCapture", 0, RELAXED) == "STREAM_CAPTURE_UNSUPPORTED"
    assert int(here("cuStreamIsCapturing", stream)) == 2
    assert here("cuStreamEndCapture", stream) == "STREAM_CAPTURE_INVALIDATED"


@pytest.mark.parametrize(
    ("mode", "mine", "other"),
    [(GLOBAL, False, False), (THREAD_LOCAL, False, True), (RELAXED, True, True)],
    ids=["global", "thread local", "relaxed"],
)
def test_unsafe_calls_during_a_capture(here, mode, mine, other):
    """An allocation is refused to the capturing thread, and in global mode to all threads. Relaxed mode allows it."""
    event = here("cuEventCreate", 2)

    def captured(act):
        stream = here("cuStreamCreate", NON_BLOCKING)
        here("cuStreamBeginCapture", stream, mode)
        act()
        return isinstance(here("cuStreamEndCapture", stream), int)

    def elsewhere():
        thread = threading.Thread(target=lambda: Here(here.driver)("cuEventQuery", event))
        thread.start()
        thread.join()

    def relaxed():
        before = here("cuThreadExchangeStreamCaptureMode", RELAXED)
        here("cuMemAlloc", 8)
        assert here("cuThreadExchangeStreamCaptureMode", before) == RELAXED

    assert captured(lambda: here("cuMemAlloc", 8)) == mine
    assert captured(elsewhere) == other
    assert captured(relaxed)


def test_events_join_streams_into_a_capture(here):
    """A captured event brings another stream into the capture. That stream must be joined again.

    Waiting for an event from outside the capture is an error, unless the event is external.
    """
    at = here.memory(1)
    a, b = here("cuStreamCreate", 1), here("cuStreamCreate", 1)
    inside, outside = here("cuEventCreate", 2), here("cuEventCreate", 2)
    here("cuEventRecord", outside, b)
    for joined in (True, False):
        here("cuStreamBeginCapture", a, RELAXED)
        here("cuEventRecord", inside, a)
        here("cuStreamWaitEvent", b, inside, 0)
        here("cuMemsetD8Async", at, 7, 8, b)
        if joined:
            here("cuEventRecord", inside, b)
            here("cuStreamWaitEvent", a, inside, 0)
            assert here("cuEventQuery", outside) is None
            graph = here("cuStreamEndCapture", a)
        else:
            assert here("cuStreamEndCapture", a) == "STREAM_CAPTURE_UNJOINED"
    assert here.read(at) == 1
    here("cuGraphLaunch", graph, a)
    here("cuStreamSynchronize", a)
    assert here.read(at) == 7
    assert here("cuEventQuery", inside) == "CAPTURED_EVENT"
    here("cuStreamBeginCapture", a, RELAXED)
    assert here("cuStreamWaitEvent", a, outside, 0) == "STREAM_CAPTURE_ISOLATION"
    assert here("cuStreamEndCapture", a) == "STREAM_CAPTURE_INVALIDATED"


def test_external_events_order_replays_with_other_work(here):
    """Each launch of the graph waits for the last record of the first event, and records the second event."""
    at, a, b = here.memory(1), here("cuStreamCreate", 1), here("cuStreamCreate", 1)
    first, last = here("cuEventCreate", 2), here("cuEventCreate", 2)
    here("cuStreamBeginCapture", a, GLOBAL)
    here("cuStreamWaitEvent", a, first, 1)
    here("cuMemsetD8Async", at, 5, 8, a)
    here("cuEventRecordWithFlags", last, a, 1)
    graph = here("cuStreamEndCapture", a)
    for value in (2, 3):
        here("cuMemsetD8Async", at, value, 8, b)
        here("cuEventRecord", first, b)
        here("cuGraphLaunch", graph, a)
        here("cuStreamWaitEvent", b, last, 0)
        here("cuMemsetD8Async", at, value + 8, 8, b)
        here("cuStreamSynchronize", a)
        assert here.read(at) == 5
        here("cuStreamSynchronize", b)
        assert here.read(at) == value + 8


def test_a_free_waits_for_the_gpu_and_holds_the_drivers_lock(here):
    """Meanwhile another thread's copy waits for the lock. A store to mapped memory does not."""
    p, machine = here.driver.process, here.driver.process.machine
    machine.seconds = 0.3
    at, spare = here.memory(1), here.memory(1)
    mapped = here("cuMemHostAlloc", 8, 0)
    word = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int64 * 1).from_address(mapped))
    word[:] = 0
    for set_word in (lambda: word.__setitem__(0, 1), None):
        stream = here("cuStreamCreate", NON_BLOCKING)
        word[:] = 0
        op = fake_cuda.Op(lambda: bool(word[0]), [], 0, p, "a kernel that waits for the host")
        p.streams[stream].last = op
        machine.work.append(op)
        done = []

        def other(set_word=set_word, done=done):
            if set_word is not None:
                set_word()
            else:
                mine = Here(here.driver)
                copied = mine("cuStreamCreate", NON_BLOCKING)
                mine("cuMemsetD8Async", at, 2, 8, copied)
                word[:] = 1
            done.append(True)

        thread = threading.Timer(0.05, other)
        thread.start()
        found = here("cuMemFree", spare) if set_word is not None else here("cuMemAlloc", 8)
        thread.join()
        assert done
        if set_word is not None:
            assert found is None
            assert not machine.violations
        else:
            assert found == "LAUNCH_TIMEOUT"
            assert "which holds the driver's lock, waits for a kernel that waits for the host" in machine.violations[0]


def test_streams_and_calls_belong_to_a_context(here):
    stream = here("cuStreamCreate", NON_BLOCKING)
    here("cuCtxPushCurrent", 101)
    assert here("cuStreamSynchronize", stream) == "INVALID_HANDLE"
    here("cuCtxPopCurrent")
    here("cuCtxPopCurrent")
    assert here("cuMemAlloc", 8) == "INVALID_CONTEXT"


def test_ipc_opens_hidden_gpus_and_no_forbidden_ones():
    machine = Machine(gpus=2)
    owner = Process(machine, [1])
    driver = fake_cuda.Driver(owner)
    handle = Here(driver)("cuIpcGetMemHandle", Here(driver).memory(3))
    for process, want in (
        (Process(machine, [0]), None),
        (Process(machine, [0], permitted=[0]), "INVALID_VALUE"),
        (Process(machine, [0], namespace=1), "INVALID_CONTEXT"),
        (owner, "INVALID_CONTEXT"),
    ):
        driver.here.process = process
        found = Here(driver)("cuIpcOpenMemHandle", handle, 1)
        assert found == want if want else Here(driver).read(found) == 3
