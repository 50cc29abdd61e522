"""Schedules that show a fault are shortened: fewer turns of warps show the same fault, and nothing else does."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from ptxsim import core, shorten

pytestmark = pytest.mark.slow

# Thread 0 of each block adds to a word by a load and a store, {count} times.
ADD = """.version 8.0
.target sm_90
.address_size 64
.visible .entry add(.param .u64 sum) {{
.reg .u64 %s; .reg .u32 %x, %n; .reg .pred %p; ld.param.u64 %s, [sum]; mov.u32 %n, 0;
L: {add}
add.u32 %n, %n, 1; setp.lt.u32 %p, %n, {count}; @%p bra L; ret; }}
"""
PLAIN = "ld.relaxed.gpu.global.u32 %x, [%s]; add.u32 %x, %x, 1; st.global.u32 [%s], %x;"
ATOMIC = "atom.relaxed.gpu.global.add.u32 %x, [%s], 1;"


def launched(machine, add, count):
    device = machine.device(0)
    device.launch(ADD.format(add=add, count=count), 4, 32, device.array(np.zeros(1, np.uint32), "sum"))
    return machine.run()


@pytest.mark.parametrize("count", [1, 40])
def test_few_turns_show_the_fault(count):
    story = shorten.shorten(partial(ptxsim.Machine, seed=5), partial(launched, add=PLAIN, count=count))
    assert story.fault.kind == "race"
    assert len(story.turns) <= min(story.before, 4)
    assert story.said().count("\n") == min(len(story.turns), shorten.SHOWN)
    assert all("add on device 0" in turn for turn in story.turns)


def test_a_deadlock_has_a_story_too():
    spin = "ld.relaxed.gpu.global.u32 %x, [%s]; setp.eq.u32 %p, %x, 0; @%p bra L;"
    make = partial(ptxsim.Machine, seed=1, patience=2000)
    assert shorten.shorten(make, partial(launched, add=spin, count=1)).fault.kind == "deadlock"


def test_too_many_turns_are_said(monkeypatch):
    """A machine records so many turns; if a run has more, the story says so instead of naming turns."""
    monkeypatch.setattr(core, "MOST_TURNS", 1)
    story = shorten.shorten(partial(ptxsim.Machine, seed=5), partial(launched, add=PLAIN, count=40))
    assert (story.fault.kind, story.turns) == ("race", [])
    assert story.said().endswith(": after 1 turns of warps or more, too many for a short schedule")


def test_a_right_kernel_has_no_story():
    assert shorten.shorten(partial(ptxsim.Machine, seed=5), partial(launched, add=ATOMIC, count=8)) is None


def test_a_plan_is_followed():
    """Two runs of one plan take the same turns; a plan of another run may name warps that are not there."""
    turns = []
    for _ in range(2):
        machine = ptxsim.Machine(seed=3)
        machine.record(np.array([[2, 5, 0, 0], [0, 3, 0, 0], [99, 3, 0, 0]]))
        launched(machine, ATOMIC, 4)
        turns.append(machine.turns())
    assert np.array_equal(*turns)
    assert turns[0][:2, 0].tolist() == [2, 0]
