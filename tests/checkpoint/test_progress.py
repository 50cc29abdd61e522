"""Progress of a load: what is shown on a terminal and elsewhere, and when."""

from __future__ import annotations

import io
import sys

import pytest

from aristos.checkpoint import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock of the test: a list whose only entry is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def read(shown, clock, seconds):
    """Show the load of four experts of 1.5 GB, which takes `seconds` for each."""
    with shown.load("layer 3", 4):
        for _ in range(4):
            clock[0] += seconds
            shown.step(1_500_000_000)


def test_a_slow_load_prints_some_lines(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shown = progress.Progress()
    read(shown, clock, 0.25)
    assert sys.stderr.getvalue() == ""  # 1 s in all
    read(shown, clock, 6.0)
    assert sys.stderr.getvalue().splitlines() == [
        "layer 3: 1 of 4 experts, 7.5 GB at 1.07 GB/s",
        "layer 3: 3 of 4 experts, 10.5 GB at 0.55 GB/s",
    ]
    monkeypatch.setattr(sys, "stderr", None)  # as in pythonw
    read(shown, clock, 20.0)


def test_one_line_on_a_terminal_which_is_cleared(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = progress.Progress()

    def fail():
        with shown.load("layer 3", 4):
            clock[0] += 3.0
            shown.step(1_500_000_000)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    first, blank, end = sys.stderr.getvalue().split("\r")[1:]
    assert first == "layer 3: 1 of 4 experts, 1.5 GB at 0.50 GB/s"
    assert blank == " " * len(first)
    assert end == ""
