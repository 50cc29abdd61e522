"""The driver's calls do not return, as when cuCtxSynchronize holds its lock. What needs no driver still happens."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")

from aristos.engine import codes
from aristos.errors import WaitTimeout
from aristos.substrate.cuda import runtime as cuda
from aristos.substrate.failure import Failure
from aristos.transport.limits import Limits


class Silent:
    """A device whose driver answers only the calls in `answers`. asked: the names of the other calls."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __getattr__(self, name):
        def call(*arguments):
            if name not in self.answers:
                self.asked.append(name)
                threading.Event().wait()
            return self.answers[name]

        return call


def engine(device):
    """A CudaRuntime with a call in flight. It has the attributes that a failure reads."""
    made = cuda.CudaRuntime.__new__(cuda.CudaRuntime)
    made.group = SimpleNamespace(rank=0, world=2, limits=Limits(0.1, 0.1), abort_at_exit=lambda why: None)
    made.failure, made.device, made.tables = Failure(made.group), device, SimpleNamespace(words=8)
    made.running, made.layout = np.zeros(8, np.int64), object()
    made._abort, made._ended, made.state_at = np.zeros(8, np.int64), 0, 0
    made._memory, made._proxy = object(), None
    return made


def ends(body):
    """Run `body` on a thread, which must end. Returns the error that it raised, or None."""
    errors = []

    def run():
        try:
            body()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return errors[0] if errors else None


def test_ctrl_c_sets_the_word_that_ends_the_call(monkeypatch, capsys):
    """The driver gets 0.3 s to answer. Then the word is set, and `interrupt` returns."""
    monkeypatch.setattr(cuda, "FAIL_SECONDS", 0.1)
    made, since, at = engine(Silent()), time.monotonic(), []

    def watch():
        while made._abort[0] == 0:
            time.sleep(0.01)
        at.append(time.monotonic() - since)

    threading.Thread(target=watch, daemon=True).start()
    assert ends(made.interrupt) is None
    assert at[0] < 1.5, at  # 0.3 s, and more on a busy machine
    assert made._abort[0] == codes.CAUSE_INTERRUPT
    assert "Ctrl-C while the program waited" in made.broken
    assert "aristos: Ctrl-C during a call\nrank 0: the driver has not answered for 0.3 s" in capsys.readouterr().err


def test_the_engine_is_unusable_before_its_call_is_ended(monkeypatch):
    """As soon as the call has ended, the main thread continues and may make another call."""
    monkeypatch.setattr(cuda, "FAIL_SECONDS", 0.1)
    made, broken = engine(Silent()), []
    monkeypatch.setattr(cuda, "store_release", lambda address, value: broken.append(made.broken))
    assert ends(made.interrupt) is None
    assert broken
    assert None not in broken


def test_the_bound_of_a_wait_holds(monkeypatch):
    """A copy of the state that does not return counts as no progress. The copy is requested once."""
    for name, seconds in (("FAIL_SECONDS", 0.1), ("ASK_SECONDS", 0.02), ("ANSWER_SECONDS", 0.02)):
        monkeypatch.setattr(cuda, name, seconds)
    device = Silent(passed=False)
    error = ends(engine(device)._wait)
    assert isinstance(error, WaitTimeout)
    assert "for its own call, which makes no progress and does not end" in str(error)
    assert device.asked == ["copy_out"]
