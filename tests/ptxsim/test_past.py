"""Launches that a host waits for one by one: races between launches of different runs, and what the host knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

import ptxsim
from ptxsim import runner
from ptxsim.libcuda import actions

pytestmark = pytest.mark.slow

PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry write(.param .u64 a, .param .u64 b)
{
.reg .u64 %a; ld.param.u64 %a, [a]; st.global.u32 [%a], 7;
ret;
}
.visible .entry signal(.param .u64 a, .param .u64 b)
{
.reg .u64 %a, %b; ld.param.u64 %a, [a]; ld.param.u64 %b, [b];
st.global.u32 [%a], 7;
st.release.gpu.global.u32 [%b], 1;
ret;
}
.visible .entry await(.param .u64 a, .param .u64 b)
{
.reg .u64 %b; .reg .u32 %v; .reg .pred %p; ld.param.u64 %b, [b];
L: ld.acquire.gpu.global.u32 %v, [%b]; setp.ne.u32 %p, %v, 1; @%p bra L;
ret;
}
"""


class Setting:
    """A machine, the words x and flag, and streams that wait for no others."""

    def __init__(self, count=3, seed=0):
        self.machine = ptxsim.Machine(seed=seed, patience=300_000)
        self.device = self.machine.device(0)
        self.x, self.flag = (self.device.array(np.zeros(1, np.uint32), name) for name in ("x", "flag"))
        self.streams = [self.device.stream(False) for _ in range(count)]

    def launch(self, kernel, stream):
        self.device.launch(PTX, 1, 1, self.x, self.flag, entry=kernel, stream=self.streams[stream])
        return self.machine.queue[-1]

    @property
    def races(self):
        return [report for report in self.machine.reports if report.kind == "race"]


def test_a_launch_that_the_host_does_not_wait_for_races_with_one_of_an_earlier_run():
    setting = Setting()
    setting.launch("write", 0)
    second = setting.launch("write", 1)
    setting.machine.wait([second])
    assert len(setting.machine.queue) == 1, "the first launch stays queued"
    assert not setting.races
    setting.machine.finish()
    assert [report.missing for report in setting.races] == ["order of launches"]
    assert not setting.machine.past, "the host has waited for all"


def test_what_is_launched_after_the_host_has_waited_has_an_order():
    setting = Setting()
    first, other = setting.launch("write", 0), setting.launch("await", 1)
    setting.machine.wait([first])
    setting.launch("write", 2)
    setting.launch("signal", 2)
    setting.machine.finish()
    assert not setting.races
    assert other in setting.machine.done


def test_a_wait_of_which_the_host_knows_nothing_orders_nothing():
    setting = Setting()
    setting.machine.wait([setting.launch("write", 0)], known=False)
    setting.machine.wait([setting.launch("write", 1)])
    assert len(setting.races) == 1
    assert len(setting.machine.past) == 2
    setting.machine.finish()
    setting.launch("write", 2)
    setting.machine.finish()
    assert len(setting.races) == 1


def test_clocks_go_on_in_the_next_run():
    """The flag orders the first launch before the second of another run, and the stream the third after it."""
    setting = Setting()
    setting.machine.wait([setting.launch("signal", 0)], known=False)
    setting.machine.wait([setting.launch("await", 1)], known=False)
    setting.machine.wait([setting.launch("write", 1)], known=False)
    assert not setting.races
    setting.machine.wait([setting.launch("write", 2)])
    assert len(setting.races) == 1


def test_a_kernel_that_polls_does_not_stop_the_launches_that_the_host_waits_for():
    setting = Setting()
    setting.launch("await", 0)
    copy = setting.launch("signal", 1)
    setting.machine.wait([copy])
    assert len(setting.machine.queue) == 1
    setting.machine.finish()
    assert not setting.machine.reports


def test_launches_that_others_need_without_saying_so_begin_in_the_end():
    setting = Setting()
    setting.launch("signal", 0)
    polls = setting.launch("await", 1)
    setting.machine.wait([polls])
    assert not setting.machine.queue
    assert not setting.machine.reports


def test_after_many_launches_the_host_counts_as_having_waited(monkeypatch):
    monkeypatch.setattr(runner, "MOST_PAST", 3)
    setting = Setting()
    for _ in range(4):
        setting.machine.wait([setting.launch("write", 0)], known=False)
    assert not setting.machine.past
    setting.machine.wait([setting.launch("write", 1)], known=False)
    assert not setting.races


def test_the_default_stream_and_blocking_streams_wait_for_each_others_events():
    setting = Setting()
    one, two = setting.device.stream(), setting.device.stream()
    setting.launch("write", 0)
    setting.device.default.wait(setting.streams[0].record())
    for stream in (one, two):  # what the default stream waits for, they wait for
        assert setting.machine.needs_of(stream) == [setting.machine.queue[0]]
    assert setting.machine.needs_of(setting.streams[1]) == []


# ---- copies and fills ----
def rows(array, source=None, width=64, **more):
    return actions.Rows(array.ptr, source.ptr if source is not None else 0, width, **more)


def enqueue(machine, stream, what, made, *fill, place=(__file__, 1)):
    """Queue a copy or a fill. place: file and line of the call that queues it."""
    return actions.enqueue(machine, stream, what, made, [], place, *fill)


@pytest.mark.parametrize(("to", "source", "width"), [(0, 0, 4096), (3, 0, 777), (2, 6, 30), (8, 24, 1001), (0, 0, 1)])
def test_copies_of_any_alignment(to, source, width):
    machine = ptxsim.Machine()
    values = np.random.default_rng(0).integers(0, 256, 8192, dtype=np.uint8)
    x, y = machine.device(0).array(values, "x"), machine.device(0).array(np.zeros(8192, np.uint8), "y")
    made = actions.Rows(y.ptr + to, x.ptr + source, width)
    launch = enqueue(machine, machine.device(0).default, "copy", made)
    machine.wait([launch])
    want = np.zeros(8192, np.uint8)
    want[to : to + width] = values[source : source + width]
    assert (y.copy_to_host() == want).all()
    assert not machine.reports


def test_copies_and_fills_of_rows():
    machine = ptxsim.Machine()
    values = np.arange(600, dtype=np.uint8)
    x, y = machine.device(0).array(values, "x"), machine.device(0).array(np.zeros(600, np.uint8), "y")
    stream = machine.device(0).default
    enqueue(machine, stream, "copy", rows(y, x, 10, height=7, stride=36, step=20))
    fill = actions.Rows(y.ptr + 320, 0, 6, 5, 50)
    enqueue(machine, stream, "fill", fill, 0x02010201, 2)
    machine.finish()
    want = np.zeros(600, np.uint8)
    for row in range(7):
        want[row * 36 : row * 36 + 10] = values[row * 20 : row * 20 + 10]
    for row in range(5):
        want[320 + row * 50 : 326 + row * 50] = [1, 2] * 3
    assert (y.copy_to_host() == want).all()
    assert not machine.reports


def test_a_copy_takes_no_part_of_an_sm():
    machine = ptxsim.Machine(sm_count=1)
    x = machine.device(0).array(np.zeros(2, np.uint32), "x")
    streams = [machine.device(0).stream(False) for _ in range(2)]
    device = machine.device(0)
    device.launch(PTX, 200, 1, x.ptr, x.ptr, entry="await", stream=streams[0])  # more blocks than the SM holds
    one = device.array(np.ones(1, np.uint32), "one")
    enqueue(machine, streams[1], "copy", rows(x, one, 4))
    machine.run()
    assert not [report for report in machine.reports if report.kind != "race"]


def test_reports_name_the_copy_and_where_it_is_called(monkeypatch, tmp_path):
    for folder in (tmp_path, Path(__file__).parent):  # of another folder the whole path is named
        monkeypatch.chdir(folder)
        machine = ptxsim.Machine()
        x, y = (machine.device(0).array(np.zeros(16, np.uint32), name) for name in "xy")
        one, two = (machine.device(0).stream(False) for _ in range(2))
        fill = enqueue(machine, one, "cuMemsetD8Async", rows(x), 3)
        machine.device(0).launch(PTX, 1, 1, x.ptr, x.ptr, entry="write", stream=two)
        enqueue(machine, two, "cuMemcpyDtoDAsync", rows(y, x))
        machine.wait([fill])
        machine.finish()
        texts = [str(report) for report in machine.reports]
        here = Path(__file__) if folder == tmp_path else Path(__file__).name
        assert any("write, block (0, 0, 0)" in one and f"cuMemsetD8Async ({here}:" in one for one in texts), texts
        assert any("cuMemcpyDtoDAsync: reads x[" in one and f"cuMemsetD8Async ({here}:" in one for one in texts), texts
        assert any(one.startswith(f"race: {__file__}:") for one in texts), texts


def test_reports_of_a_copy_without_a_place():
    machine = ptxsim.Machine()
    x = machine.device(0).array(np.zeros(16, np.uint32), "x")
    one, two = (machine.device(0).stream(False) for _ in range(2))
    first = enqueue(machine, one, "cuMemsetD8Async", rows(x), 3, place=("", 0))
    machine.device(0).launch(PTX, 1, 1, x.ptr, x.ptr, entry="write", stream=two)
    machine.wait([first])
    machine.finish()
    texts = sorted(str(report).split(" [")[0] for report in machine.reports)
    assert texts == [
        "race: cuMemsetD8Async: its access of x[0], with nothing that orders it before line 6 (st.global.u32) of write",
        "race: line 6: write, block (0, 0, 0), thread (0, 0, 0): st.global.u32 writes x[0], with nothing that orders it"
        " after cuMemsetD8Async",
    ]


def test_a_copy_of_what_nothing_has_written_is_no_fault():
    machine = ptxsim.Machine()
    x, y = (machine.device(0).empty(16, np.uint32, name) for name in "xy")
    enqueue(machine, machine.device(0).default, "copy", rows(x, y))
    machine.finish()
    assert not machine.reports
