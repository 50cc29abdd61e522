"""Emulated links in one process: words arrive when they are due, and the ordinary steps are not changed."""

from __future__ import annotations

import argparse
import time

import numpy as np
import pytest

from aristos.bench.arguments import bandwidths, latencies
from aristos.primitives import memory
from aristos.primitives.buffers import aligned
from kernel_cache import compile as compiling

MS = 1_000_000


@pytest.fixture
def link():
    """(a line of words, the module `words`). Words reach the line's reader over a link of 20 ms and 1 GB/s."""
    from aristos.bench.delay import words

    link = aligned((words.link_bytes(16) // 8,), np.int64)
    link[:] = 0
    link[[words.ALPHA, words.PER_MIB, words.CAPACITY]] = 20 * MS, words.MIB, 16
    line = aligned((words.LINE_WORDS,), np.int64)
    line[:] = 0
    entry = words.TABLE[words.HEAD :]
    entry[: words.ENTRY_WORDS] = 0
    entry[[words.TO, words.FROM, words.OUT, words.IN]] = [line.ctypes.data] * 2 + [link.ctypes.data] * 2
    words.delayed_notify(line.ctypes.data, 0, 0)  # compile both functions; so far no word is delayed
    words.delayed_arrived(line.ctypes.data)
    words.TABLE[0] = 1
    yield line, words
    words.TABLE[0] = 0


def seen_until(words, word, value, begun):
    """Poll a word until it has `value`. Returns [(its value, seconds since `begun`)], one entry for each change."""
    found = [(words.delayed_arrived(word), time.monotonic() - begun)]
    while found[-1][0] != value:
        now = words.delayed_arrived(word)
        if now != found[-1][0]:
            found.append((now, time.monotonic() - begun))
        assert time.monotonic() - begun < 10
    return found


def test_words_arrive_in_order_after_bytes_and_latency(link):
    line, words = link
    word, other = line.ctypes.data + 8, line.ctypes.data + 16
    begun = time.monotonic()
    words.delayed_notify(word, 1, 0)
    words.delayed_notify(word, 2, 30 * MS)  # bytes: 30 ms at 1 GB/s
    words.delayed_notify(other, 5, 0)
    assert line.tolist()[1:3] == [2, 5], "an ordinary read finds the new values at once"
    first, second = seen_until(words, word, 2, begun)[-2:]
    assert first[0] == 1
    assert first[1] >= 0.020
    assert second[1] >= 0.050
    assert words.delayed_arrived(other) == 5, "the other word waits for the same bytes, and no longer"


def test_a_stream_of_words_does_not_hide_the_earlier_ones(link):
    line, words = link
    word = line.ctypes.data
    sent, first = 0, None
    while sent < 14:
        sent += 1
        words.delayed_notify(word, sent, 0)
        time.sleep(0.004)
        seen = words.delayed_arrived(word)
        if seen and first is None:
            first = seen, sent
    assert first is not None, "no value was seen while later ones were under way"
    assert first[0] < first[1]


def test_words_without_a_link_are_not_delayed(link):
    _, words = link
    own = np.zeros(1, np.int64)
    words.delayed_notify(own.ctypes.data, 3, 1 << 40)
    assert words.delayed_arrived(own.ctypes.data) == 3


def test_ordinary_steps_have_no_trace_of_the_emulation():
    """The emulation has its own step modules, and its own folder of the kernel cache."""
    from aristos.bench.delay import steps, words
    from aristos.engine import dispatch
    from aristos.substrate.cpu import loop

    delayed = steps.loop()
    assert delayed.work is not loop.work
    assert loop.steps.arrivals.mem is dispatch.mem is memory
    assert delayed.steps.arrivals.mem.arrived is words.arrived
    assert delayed.steps.dispatch.mem.notify is words.notify
    assert delayed.mem.clock is memory.clock
    assert compiling.module_folder(delayed.work.py_func) != compiling.module_folder(loop.work.py_func)
    for name in ("arrivals", "dispatch", "returns", "packing"):
        one, other = getattr(delayed.steps, name, None), getattr(loop.steps, name, None)
        if one is not None:
            assert one is not other


def test_times_and_rates_have_units():
    assert latencies("2us,1.5ms") == (2.0, 1500.0)
    assert latencies("2,50us,1s") == (2.0, 50.0, 1e6)
    assert bandwidths("100,25,1GB/s") == (100.0, 25.0, 1.0)
    assert bandwidths("500MB/s") == (0.5,)
    for wrong in ("2", "2us,3", "-1us", "0us", "9" * 400 + "us"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            latencies(wrong)
    assert (latencies("1s"), bandwidths("1MB/s")) == ((1e6,), (1e-3,))
    with pytest.raises(argparse.ArgumentTypeError, match="must be at most 1 s, got '2us,1001ms'"):
        latencies("2us,1001ms")
    with pytest.raises(argparse.ArgumentTypeError, match="must be at least 1 MB/s, got"):
        bandwidths("25,0.0009GB/s")
