"""Ctrl-C while the main thread is inside a C call: a thread that reads the wakeup fd ends the call in flight."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SECONDS = 900.0  # kernels may have to be compiled, on a busy computer

HEAD = """
import asyncio, os, signal, socket, sys, threading, time
from blocked import Blocked
from aristos.substrate.cuda.interrupts import PROCESS

class User:
    def __init__(self):
        self.wait, self.at = Blocked(), []
    def interrupt(self):
        self.at.append(time.monotonic())
        self.wait.end()

def press(after=0.1, to=os.getpid(), what=signal.SIGINT):
    threading.Timer(after, lambda: os.kill(to, what)).start()

def released(after):
    threading.Timer(after, user.wait.end).start()

def wakeup():
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found

user = User()
handler = signal.default_int_handler
signal.signal(signal.SIGINT, handler)  # a job in a shell's background starts with SIGINT ignored
"""


def run(body):
    """Run a script whose main thread is a user's program; it must end by itself."""
    ran = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stderr


def test_the_call_in_flight_is_ended_and_the_main_thread_raises():
    assert not run("""
    PROCESS.join(user)
    press()
    since = time.monotonic()
    try:
        user.wait.enter()
        raise SystemExit("no KeyboardInterrupt")
    except KeyboardInterrupt:
        assert time.monotonic() - since < 1.0
    assert len(user.at) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    PROCESS.leave(user)
    assert wakeup() == -1
    time.sleep(0.1)
    assert not [t.name for t in threading.enumerate() if t.name == "aristos-interrupts"]
    PROCESS.join(user)  # a later layer
    press()
    try:
        user.wait.enter()
    except KeyboardInterrupt:
        pass
    assert len(user.at) == 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `python -m aristos.bench` takes it
    press(what=signal.SIGTERM)
    try:
        user.wait.enter()
    except KeyboardInterrupt:
        pass
    assert len(user.at) == 3
    """)


def test_one_user_that_waits_for_its_driver_does_not_hold_up_the_next():
    assert not run("""
    both = threading.Barrier(2)

    class Waits(User):
        def interrupt(self):
            try:
                both.wait(5)
            finally:
                user.wait.end()

    users = [Waits(), Waits()]
    for each in users:
        PROCESS.join(each)
    press()
    try:
        user.wait.enter()
    except KeyboardInterrupt:
        pass
    assert not both.broken
    """)


def test_nothing_is_ended_where_the_main_thread_takes_the_signal():
    assert not run("""
    PROCESS.join(user)
    press()
    try:
        time.sleep(5)
        raise SystemExit("no KeyboardInterrupt")
    except KeyboardInterrupt:
        pass
    for _ in range(10):
        time.sleep(0.05)
    assert user.at == []
    """)


def test_where_the_program_has_its_own_handler_the_second_signal_ends_the_call():
    """After the first signal the handler may let the program continue, for example to finish an epoch."""
    assert not run("""
    taken = []
    signal.signal(signal.SIGINT, lambda number, frame: taken.append(number))
    PROCESS.join(user)
    press(), released(1.0)
    user.wait.enter()
    assert (taken, user.at) == ([signal.SIGINT], [])
    press(), press(0.6)
    since = time.monotonic()
    user.wait.enter()
    assert len(user.at) == 1 and time.monotonic() - since < 2.0
    """)


def test_an_answer_that_reaches_a_thread_late_does_not_undo_a_newer_answer():
    assert not run("""
    from aristos.substrate.cuda import interrupts
    libc, asked, done, marks = interrupts.LIBC, threading.Event(), threading.Event(), []

    class Late:  # libc, whose answers reach the thread "late" late
        sem_post = libc.sem_post
        def __getattr__(self, name):
            def call(*arguments):
                result = getattr(libc, name)(*arguments)
                if threading.current_thread().name == "late":
                    asked.set(), done.wait(20)
                return result
            return call

    def ask():
        marks.append(interrupts._Mark())
        late = threading.Thread(target=marks[0].passed, name="late")
        late.start(), asked.wait(20)
        user.wait.end()
        while not marks[0].passed():
            time.sleep(0.01)
        done.set(), late.join(20)

    interrupts.LIBC = Late()
    thread = threading.Timer(0.2, ask)
    thread.start()
    user.wait.enter()
    thread.join(20)
    assert marks[0].passed()
    """)


def test_a_full_queue_of_pending_calls_does_not_count_as_a_stuck_main_thread():
    assert not run("""
    import ctypes
    from aristos.substrate.cuda import interrupts
    interrupts.GRACE_SECONDS = 3.0
    semaphore = ctypes.create_string_buffer(64)
    post, at = (ctypes.cast(each, ctypes.c_void_p) for each in (interrupts.LIBC.sem_post, semaphore))

    def fill():  # while the main thread waits in C
        while ctypes.pythonapi.Py_AddPendingCall(post, at) == 0:
            pass
        press(0), released(0.5)

    PROCESS.join(user)
    threading.Timer(0.1, fill).start()
    try:
        user.wait.enter()
    except KeyboardInterrupt:
        pass
    while any("_follow" in thread.name for thread in threading.enumerate()):
        time.sleep(0.05)
    assert user.at == []
    """)


def test_another_librarys_wakeup_fd_gets_the_bytes_and_is_restored():
    assert not run("""
    async def main(joins_first):
        loop, taken = asyncio.get_running_loop(), asyncio.Event()
        if joins_first:
            PROCESS.join(user)
        loop.add_signal_handler(signal.SIGINT, taken.set)
        theirs = wakeup()
        if joins_first:
            PROCESS.arm()  # as the next call does, however soon
        else:
            PROCESS.join(user)
        assert wakeup() != theirs
        press()
        await asyncio.wait_for(taken.wait(), 5)
        PROCESS.leave(user)
        assert wakeup() == theirs
        loop.remove_signal_handler(signal.SIGINT)

    asyncio.run(main(False))
    asyncio.run(main(True))
    assert wakeup() == -1 and user.at == []
    """)


def test_a_fork_takes_its_own_signals_alone():
    assert not run("""
    other, mine = socket.socketpair()
    mine.setblocking(False)
    signal.set_wakeup_fd(mine.fileno())
    PROCESS.join(user)
    child = os.fork()
    if child == 0:
        assert wakeup() == mine.fileno()
        try:
            time.sleep(5)
        except KeyboardInterrupt:
            os._exit(7)
    press(0.3, to=child), released(1.0)
    user.wait.enter()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert user.at == []
    """)


def test_a_layer_of_another_thread_sets_nothing_until_the_main_thread_calls():
    assert not run("""
    thread = threading.Thread(target=PROCESS.join, args=(user,))
    thread.start(), thread.join()
    assert wakeup() == -1
    PROCESS.arm()
    assert wakeup() != -1
    thread = threading.Thread(target=PROCESS.leave, args=(user,))
    thread.start(), thread.join()
    press()
    try:
        time.sleep(5)
    except KeyboardInterrupt:
        pass
    assert user.at == []
    """)


@pytest.mark.slow  # the PTX machine is compiled
@pytest.mark.parametrize("where", ["a user's wait", "a copy of a host array"])
def test_ctrl_c_ends_a_kernel_while_the_main_thread_is_in_the_driver(where):
    """Rank 0's kernel waits for rank 1, which makes its call late. The driver is the stand-in of fake_cuda.py.

    The report says what the kernel waits for. The call that copies is also ended if another library, such as asyncio,
    has set the wakeup fd since the previous call.
    """
    pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
    said = run(f"""
    import numpy as np
    import leftovers, fake_ranks
    from blocked import blocked
    from aristos import errors, reference
    import aristos
    from aristos.substrate.cuda import runtime
    from aristos.substrate.cuda.device import CudaDevice
    runtime.ANSWER_SECONDS = runtime.LOOK_SECONDS = 20.0  # the stand-in is slower than a driver

    CFG = aristos.MoEConfig(hidden=32, ffn=40, experts=5, top_k=2, activation="silu", gated=True, bias=True,
                            max_tokens=24)
    x = np.random.default_rng(1).standard_normal((5, 32), dtype=np.float32)
    gone, waits, pressed = threading.Event(), [], []

    class Array:
        def __init__(self, gpu, stream):
            self.at, self.stream = gpu.allocate(x.nbytes), stream
            gpu.copy_in(self.at, x)
        @property
        def __cuda_array_interface__(self):
            return {{"data": (self.at, False), "shape": x.shape, "typestr": "<f4", "version": 3,
                     "stream": self.stream}}

    def body(comm, rank, driver):
        moe = aristos.MoE(CFG, comm, backend="cuda")
        moe.load(**reference.weights(CFG))
        moe(x)
        if rank == 1:
            PROCESS.leave(moe._member.runtime)  # it would be another process, which gets no signal
            assert gone.wait(200)
            try:
                moe(x)
                raise SystemExit("no PoisonedError")
            except errors.PoisonedError as error:
                assert "rank 0 gave up in epoch 2 because it was interrupted" in str(error), error
            moe._member.runtime.users = 0
            return
        gpu, plain = CudaDevice(0), driver.cuStreamSynchronize
        stream = gpu.new_stream()
        given, out = Array(gpu, stream), Array(gpu, stream)

        def synchronize(which):  # as torch.cuda.synchronize() and a pageable copy do
            if threading.current_thread() is not threading.main_thread():
                return plain(which)
            contexts = list(driver.process.stack())

            def ask():
                driver.process.of_thread.contexts = contexts
                pressed.append(time.process_time())
                os.kill(os.getpid(), signal.SIGINT)
                waits.append(plain(which))

            blocked(ask)
            return waits[-1]

        moe(given, out=out)
        driver.cuStreamSynchronize = synchronize
        try:
            if {where!r}.startswith("a copy"):
                signal.set_wakeup_fd(-1)
                moe(x, stream=stream)
            else:
                gpu.synchronize(stream)
            raise SystemExit("no KeyboardInterrupt")
        except KeyboardInterrupt:
            took = time.process_time() - pressed[0]  # processor time, so that other programs do not count
            assert took < 1.5, took  # 0.5 s for the PTX machine
        try:
            moe(x)
            raise SystemExit("no ClosedError")
        except errors.ClosedError as error:
            assert "Ctrl-C while the program waited for its GPU" in str(error), error
        moe._member.runtime.users = 0
        gone.set()

    fake_ranks.on_driver(2, body, first_here=True, seconds=200.0)
    leftovers.drop_since([])
    """)
    for text in (
        "aristos: Ctrl-C during a call\nrank 0 of 2, epoch 2: running, ",
        "\n  rank 1: last seen at epoch 1, outside of a call\n",
        "\n  rank 1: its announcement is missing: the last one is of epoch 1\n",
    ):
        assert text in said, said
